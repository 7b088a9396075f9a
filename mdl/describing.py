"""What lies at a path, as the record of a model: weights with all that belongs to them, and a model.json.

Knows no cache and no network. The digests of the files are not known.
"""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mdl.model import API, METADATA_NAME, File, Model, Summary
from mdl.reference import Reference

if TYPE_CHECKING:
    from mdl.refusal import Refusal
    from mdl.weights import Weights

CARD = "model.json"
NAMELESS = Reference("short", "", "model")  # until its place gives it a name


def describe(path: Path) -> Model | None:
    """What a folder without `.metadata` holds, or a file that has a model of its own: a NAME.json, weights.

    None where nothing there is a model: a JSON file about something else, weights of no language model.
    """
    if path.suffix == ".json":
        return _carded(path)
    if (path / CARD).is_file():
        return _carded(path / CARD)
    found = model_at(path)
    if isinstance(found, Model):
        return found if found.place and found.place.is_file() else replace(found, place=None)
    return _refused(path, found)


def model_at(path: Path) -> "Model | Refusal":
    """The model that a path is, or why it is none."""
    from mdl.weights import Refusal, identify

    path = path.resolve() if ".." in path.parts else path.absolute()  # no name has .. in it
    card, found = _carded_at(path)
    found = found or identify(path)
    if isinstance(found, Refusal):
        return found
    folder = path if path.is_dir() else path.parent
    files = _inside(folder) if path.is_dir() else _files([*found.files, *_projectors(found)], folder)
    reference = Reference("file", "", path.as_posix())
    modified = _modified(found.first)
    return Model(reference, folder, files, _summary(found), modified=modified, place=path, card=card)


def _carded_at(path: Path) -> "tuple[Path | None, Weights | Refusal | None]":
    """The JSON that is about a folder, or about weights in it, with what it says; None where none is."""
    from mdl.filename import split_of
    from mdl.weights import Weights

    if (path / CARD).is_file():
        return path / CARD, _told(path / CARD)
    if path.suffix != ".gguf":
        return None, None
    place = split_of(path.name)
    for card in (path.with_name(f"{place[0] if place else path.stem}.json"), path.with_name(CARD)):
        found = _told(card) if card.is_file() else None
        if isinstance(found, Weights) and path in found.files:
            return card, found
    return None, None


def _told(card: Path) -> "Weights | Refusal | None":
    from mdl import carded

    return carded.weights(card)


def identified(model: Model) -> "Weights | Refusal":
    """What to load of a model on this machine, or why nothing of it."""
    from mdl.weights import identify

    if model.card is not None:
        if found := _told(model.card):
            return found
    elif card := _inside_card(model):  # of what mdl put there nothing lies elsewhere
        from mdl import carded, modeljson

        if refused := carded.refusal(modeljson.read_or_note(card), card):
            return refused
    return identify(model.place or model.folder)


def _inside_card(model: Model) -> Path | None:
    return model.folder / CARD if any(file.name == CARD for file in model.files) else None


def _carded(card: Path) -> Model | None:
    """What a model.json is about."""
    from mdl import carded
    from mdl.weights import Weights

    found = carded.weights(card)
    if found is None:
        model = _absent(card)
    elif isinstance(found, Weights):
        model = _with_weights(card, found)
    else:
        model = _unusable(card, found)
    return model and replace(model, card=card)


def _is_one(card: Path) -> bool:
    """Whether it is one of several in a folder."""
    return card.name != CARD


def _with_weights(card: Path, found: "Weights") -> Model:
    is_elsewhere = not found.first.is_relative_to(card.parent)
    folder = found.first.parent if is_elsewhere else card.parent
    paths = [*found.files, *_projectors(found), *([] if is_elsewhere else [card])]
    alone = _is_one(card) or is_elsewhere
    return Model(
        NAMELESS,
        folder,
        _files(paths, folder) if alone else _inside(folder),
        _summary(found),
        modified=_modified(found.first),
        place=found.first if alone else None,
    )


def _absent(card: Path) -> Model | None:
    """A model of which only the JSON is here. One without an address is about something else."""
    from mdl import modeljson

    said = modeljson.read(card)
    if _is_one(card) and not (said.source_url or said.binaries):
        return None
    summary = Summary(quantization=said.quantization or None)
    return replace(_only(card), summary=summary)


def _unusable(card: Path, found: "Refusal") -> Model:
    """What its JSON tells of a model that is not for llama.cpp; or what is beside it."""
    from mdl import modeljson

    model = _refused(card if _is_one(card) else card.parent, found)
    if modeljson.read_or_note(card).is_api:
        return replace(model, summary=Summary(format=API), modified=_modified(card))
    return model


def _only(path: Path) -> Model:
    """A file, or a JSON for a folder, of which nothing else is known."""
    place = path if _is_one(path) else None
    return Model(NAMELESS, path.parent, _files([path], path.parent), modified=_modified(path), place=place)


def _refused(path: Path, found: "Refusal") -> Model:
    """What cannot run here, or what should be a model and is none."""
    model = _only(path) if path.is_file() else Model(NAMELESS, path, _inside(path), modified=_modified(path))
    if found.is_model and not found.is_damage:
        return replace(model, summary=Summary(unsupported=found.what))
    return replace(model, problem=found.message)


def _projectors(found: "Weights") -> list[Path]:
    return [found.projector] if found.projector else []


def _inside(folder: Path) -> tuple[File, ...]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != METADATA_NAME)
    return _files(sorted(paths), folder)


def _files(paths: list[Path], folder: Path) -> tuple[File, ...]:
    return tuple(_file(path.absolute(), folder) for path in dict.fromkeys(paths))


def _file(path: Path, folder: Path) -> File:
    from mdl.filename import role

    name = path.relative_to(folder.absolute()).as_posix()
    return File(name, path.stat().st_size, role=role(name))


def _modified(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _summary(found: "Weights") -> Summary:
    facts = found.facts
    return Summary(
        kind=found.kind,
        format=found.format,
        architecture=facts.architecture,
        parameters=facts.parameters,
        context_length=facts.context_length,
        quantization=facts.quantization,
        license=facts.license,
    )
