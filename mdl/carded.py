"""A model.json and the files that it is about, as one model: which files those are, and where to get them.

Knows no cache and no network.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mdl.errors import UnsupportedModel
from mdl.filename import role, split_of
from mdl.model import METADATA_NAME
from mdl.modeljson import NAME, Card, read
from mdl.reference import Reference
from mdl.refusal import GET_GGUF, Refusal, refuse
from mdl.weights import Weights, identify_set

MOST_BESIDE = 1000  # entries of a folder that are looked at


def weights(path: Path) -> Weights | Refusal | None:
    """What the model.json at a path is about; None where it is not on this machine.

    A file that is no JSON is a Refusal, unless the weights beside it tell enough.
    """
    try:
        card = read(path)
    except UnsupportedModel as failure:
        beside = _identified(Card(), path)
        return beside or Refusal(
            "a broken model.json", f"{path.parent}: {failure.message}", failure.hint, False
        )
    return refusal(card, path) or _identified(card, path)


def refusal(card: Card, path: Path) -> Refusal | None:
    """Why a model is not for llama.cpp, by what its JSON says."""
    if card.is_api:
        what = f"a model that an API runs: {card.source_url or card.engine}"
        return refuse(path, what, "its address and key have to be known: mdl login HOST", is_model=True)
    if card.is_foreign:
        what = f"a model for the engine {card.engine}, which mdl does not run"
        return refuse(path, what, GET_GGUF, is_model=True)
    return None


def sources(card: Card, path: Path) -> tuple[Reference, ...]:
    """Where the files of a card can be fetched from, each place once.

    Raises UsageError for an address that is none, UnsupportedModel where it names no place.
    """
    texts = [card.source_url, *(name for name in card.binaries if "://" in name)]
    remote = [text for text in texts if text and _local(text, path.parent) is None]
    if not remote:
        what = f"{path} names no place to get its model from"
        raise UnsupportedModel(what, hint="put a GGUF file beside it, or an address into source_url")
    return tuple(dict.fromkeys(Reference.parse(text) for text in remote))


def included(card: Card) -> tuple[str, ...]:
    """The names of those of a source's files that are wanted, where the card names them."""
    return tuple(name for name in card.binaries if "://" not in name and not name.startswith(("/", "~", ".")))


def _identified(card: Card, path: Path) -> Weights | Refusal | None:
    """What lies where the card says; the best-known of a folder if it says nothing."""
    files = _named(card, path) or _beside(path)
    if not files:
        return None
    found = identify_set(files)
    if isinstance(found, Refusal) and files == [path.parent] and not found.is_model:
        return None  # nothing is there yet
    return found


def _named(card: Card, path: Path) -> list[Path]:
    """The files that a card names and that are here: none of them if its weights are not."""
    folder = path.parent
    named = [_local(name, folder) or folder / _last(name) for name in card.binaries]
    source = _local(card.source_url, folder) if card.source_url else None
    if source is not None and source.is_dir() and not source.samefile(folder):
        return [source]
    if source is None and _last(card.source_url).lower().endswith(".gguf"):
        source = folder / _last(card.source_url)
    if source is not None and source.is_file():
        return list(dict.fromkeys([source, *(file for file in named if file.exists())]))
    return named if any(file.exists() for file in named) else []


def _beside(path: Path) -> list[Path]:
    """What a card is about that names nothing: those of its own name, with a projector; else its folder."""
    folder, stem = path.parent, path.parent.name if path.name == NAME else path.stem
    names = sorted(entry.name for entry, _ in zip(folder.iterdir(), range(MOST_BESIDE), strict=False))
    own = [name for name in names if _stem(name) == stem]
    if own:
        return [folder / name for name in (*own, *_projectors(names, stem))]
    if path.name != NAME:
        return [folder / stem] if (folder / stem).is_dir() else []
    if any((folder / name / METADATA_NAME).exists() for name in names):  # versions of their own
        return [folder / name for name in names if _stem(name)]
    return [folder]


def _projectors(names: list[str], stem: str) -> Iterator[str]:
    yield from (name for name in names if role(name) == "projector" and _stem(name) != stem)


def _stem(name: str) -> str:
    """Of a GGUF file or one of its parts; "" of others."""
    if not name.lower().endswith(".gguf"):
        return ""
    place = split_of(name)
    return place[0] if place else name[:-5]


def _local(text: str, folder: Path) -> Path | None:
    """The path that an address of a card means, None for what is elsewhere."""
    if text in (".", "./"):
        return folder
    if text.startswith("file://"):
        return Path(Reference.parse(text).path)
    if "://" in text:
        return None
    path = Path(text)
    if text.startswith("~"):
        try:
            return path.expanduser()
        except RuntimeError:  # nobody of that name
            return None
    is_file_name = len(path.parts) == 1 and path.suffix in (".gguf", ".safetensors", ".bin")
    if path.is_absolute() or text.startswith(("./", "../")) or is_file_name:
        return folder / path
    try:
        return folder / path if (folder / path).exists() else None
    except OSError:  # too long for a name
        return None


def _last(text: str) -> str:
    """The name of a file at the end of an address."""
    return PurePosixPath(text.partition("?")[0]).name
