"""From a string to what it names: the steps of a resolution, in their order. Fetches nothing."""

import contextlib
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mdl.cached import Cached, Choose
from mdl.config import Settings
from mdl.describing import model_at
from mdl.errors import MdlError, NotFound, UnsupportedModel, UsageError
from mdl.model import API, Model, Summary
from mdl.reference import APIS, LONGEST, Reference, show
from mdl.resolution import Outcome, Resolution, Step, Steps, unknown
from mdl.store import Store

if TYPE_CHECKING:
    from mdl.checkpoints import Checkpoint
    from mdl.profilefile import Asked

_UNKNOWN = datetime.fromtimestamp(0, UTC)


class Resolver:
    """What names mean, under the settings of a user."""

    def __init__(self, settings: Settings, store: Store, choose: Choose | None) -> None:
        self._settings = settings
        self._store = store
        self._cached = Cached(store, settings.hosts, choose)
        self._paths = True  # whether a name may be one of this machine

    def without_paths(self) -> "Resolver":
        """The same for those who ask from elsewhere: a path means nothing unless the user gave it a name."""
        found = copy(self)
        found._paths = False
        return found

    def at_once(self) -> "Resolver":
        """The same for many names, for which the cache is walked once: it is taken to stay as it is."""
        found = copy(self)
        found._cached = self._cached.at_once()
        return found

    def resolve(self, text: str, asked: "Asked | None" = None) -> Resolution:
        """Decide what a string names: a path, an alias, the cache, what ships with mdl, a remote source, in
        this order. A name of a profile may stand for another model where somebody `asked` in a certain way.

        Never touches the network. Raises UsageError for what cannot be a name and for what may be several
        models, UnsupportedModel for a path that is written as one and is no model, NotFound for a path that
        is not there.
        """
        return self._decide(text, [], asked)

    def names(self) -> list[str]:
        """The user's own names of models: aliases, and those in profiles."""
        from mdl import profilefile

        return list(dict.fromkeys((*self._settings.aliases, *profilefile.names())))

    def unknown(self, resolution: Resolution) -> NotFound:
        """What to tell of a name that means nothing, with those that mean something and are like it."""
        return unknown(resolution, (*self.names(), *(reference.name for reference, _ in self._store.names())))

    def apis(self) -> dict[str, Model]:
        """Models of APIs that the user has given names, by these names."""
        from mdl import profilefile

        found = {}
        for name in self._of_apis():
            target = self._settings.aliases.get(name)
            meant = None if target else profilefile.meant(name, profilefile.Asked(), self)
            model = self.found(target) if target else meant and meant.model
            if model is not None and model.is_api:
                found[name] = model
        return found

    def _of_apis(self) -> list[str]:
        """Those of the user's names that may stand for models of APIs: as a rule few, and told by an address.
        The others are looked for only where a model.json in the cache says that an API runs its model."""
        from mdl import profilefile

        aliases = {name: [target] for name, target in self._settings.aliases.items()}
        named = {**aliases, **profilefile.names(), **aliases}  # in this order
        if named and any(model.is_api for model in self._store.models()):
            return list(named)
        return [name for name, texts in named.items() if any(map(_is_elsewhere, texts))]

    def explain(self, text: str) -> tuple[Resolution, MdlError | None]:
        """The same, with the steps that were taken even where `resolve` raises, and what it raises."""
        steps: Steps = []
        try:
            return self._decide(text, steps), None
        except MdlError as failure:
            steps.append(Step("end", "error", failure.message))
            return Resolution(text, text, tuple(steps)), failure

    def found(self, text: str) -> Model | None:
        """The model here that a profile names so, by a path or a reference; None where none is."""
        with contextlib.suppress(MdlError):
            model = self._look_at_path(text, []) or self._look_at_api(text, [])
            model = model or self._cached.find(text, [])
            return model or self._look_among_checkpoints(text, []) or self._look_in_catalog(text, [])[0]
        return None

    def everything(self) -> list[Model]:
        """All that is here: the cache, and what ships with mdl."""
        from mdl.catalog import catalog

        shipped = (self.found(entry.name) for entry in catalog().entries if entry.file is not None)
        return [*self._store.models(), *(model for model in shipped if model is not None)]

    def _decide(self, text: str, steps: Steps, asked: "Asked | None" = None) -> Resolution:
        model = self._look_at_path(text, steps) if self._paths else None
        name = text
        if model is None and (meant := self._look_among_aliases(text, steps)):
            name = meant
            model = self._look_at_path(name, steps)
        if model is None:
            model, name = self._look_among_profiles(name, asked, steps)
        model = model or self._look_at_api(name, steps)
        model = model or self._cached.find(name, steps) or self._look_among_checkpoints(name, steps)
        if model is None:
            model, name = self._look_in_catalog(name, steps)
        if model is not None and model.is_absent:
            return Resolution(text, name, tuple(steps), model.reference, wanted=model)
        if model is not None:
            return Resolution(text, name, tuple(steps), model.reference, model)
        places = self._look_remotely(name, steps)
        return Resolution(text, name, tuple(steps), places[0] if places else None, others=tuple(places[1:]))

    def _look_at_path(self, text: str, steps: Steps) -> Model | None:
        path = _as_path(text)
        if path is None:
            steps.append(
                Step("path", "skipped", "it is not written as a path and nothing here has that name")
            )
            return None
        if not path.exists() and self._is_copied(text):
            steps.append(Step("path", "miss", f"{path} is not there any more"))
            return None
        if not path.exists():
            raise NotFound(f"there is no file or folder {show(str(path), 200)}", hint="check the path")
        model = model_at(path)
        if isinstance(model, Model):
            steps.append(Step("path", "found", str(path.absolute())))
            return model
        if model.is_model or _is_written_as_path(text):
            raise model.error()
        steps.append(Step("path", "miss", f"{path} exists but is no model: {model.what}"))
        return None

    def _is_copied(self, text: str) -> bool:
        """Whether a path that is gone was downloaded before: its copy goes by its full name, file:///…"""
        return text.startswith("file://") and self._store.find(Reference.parse(text)) is not None

    def _look_among_aliases(self, text: str, steps: Steps) -> str | None:
        target = self._settings.aliases.get(text)
        if target is not None:
            steps.append(Step("alias", "found", target))
        elif self._settings.aliases:
            steps.append(Step("alias", "miss", f"{show(text)} is none of the {len(self._settings.aliases)}"))
        return target

    def _look_among_profiles(
        self, text: str, asked: "Asked | None", steps: Steps
    ) -> tuple[Model | None, str]:
        """The model that a profile gives this name to; else the name under which it could be fetched."""
        from mdl import profilefile

        meant = profilefile.meant(text, asked or profilefile.Asked(), self)
        if meant is None:
            return None, text
        source = f"{show(text)} is a name in {meant.profile.source}"
        if meant.model is not None:
            steps.append(Step("profile", "found", f"{source}: {meant.model.reference}"))
            return meant.model, str(meant.model.reference)
        steps.append(Step("profile", "miss", f"{source}, whose models are not here"))
        return None, meant.reference or text

    def _look_at_api(self, text: str, steps: Steps) -> Model | None:
        """A model that others run, which is named by its address alone."""
        if not _is_api(text):
            return None
        reference = Reference.parse(text)
        steps.append(Step("api", "found", f"{reference.api_parts[1]}, which {reference.host} runs"))
        return self._of_api(reference)

    def _of_api(self, reference: Reference) -> Model:
        folder = self._store.tree.joinpath(*reference.path_parts())  # which is not there
        return Model(reference, folder, (), Summary(format=API), modified=_UNKNOWN)

    def _look_among_checkpoints(self, text: str, steps: Steps) -> Model | None:
        folders = [folder for folder in self._settings.checkpoints if folder.is_dir()]
        if not folders:
            return None
        from mdl import checkpoints

        if found := checkpoints.find(folders, text):
            steps.append(Step("checkpoint", "found", str(found.path)))
            return of_checkpoint(found)
        steps.append(Step("checkpoint", "miss", f"no run {show(text)} in {', '.join(map(str, folders))}"))
        return None

    def _look_in_catalog(self, text: str, steps: Steps) -> tuple[Model | None, str]:
        """What ships with mdl, or is recommended and in the cache; and what the name stands for."""
        from mdl.catalog import catalog

        entry = catalog().find(text)
        if entry is None:
            steps.append(Step("catalog", "miss", f"no entry {show(text)}"))
            return None, text
        if entry.file is None:
            steps.append(Step("catalog", "found", f"{text} is {entry.reference}"))
            return self._cached.find(str(entry.reference), steps), str(entry.reference)
        model = model_at(entry.file)
        if not isinstance(model, Model):
            raise UnsupportedModel(model.message, "reinstall mdl: what ships with it is damaged")
        steps.append(Step("catalog", "found", str(entry.file)))
        return replace(model, reference=Reference("short", "", entry.name)), entry.name

    def _look_remotely(self, text: str, steps: Steps) -> list[Reference]:
        """Where it can be fetched from: one place, or for a short name all that are configured."""
        if text.startswith("sha256:"):
            steps.append(Step("remote", "miss", "a digest alone names no source"))
            return []
        reference = Reference.parse(text)
        found = [reference] if reference.scheme != "short" else self._expanded(text)
        if not found:
            steps.append(
                Step("remote", "miss", f"{show(text)} names no source: a remote model has at least org/name")
            )
        outcome: Outcome = "skipped" if self._settings.offline else "found"
        for place in found:
            steps.append(Step("remote", outcome, f"{place}, by the {place.scheme} transport"))
        return found

    def _expanded(self, text: str) -> list[Reference]:
        """What a short name means at each of the user's hosts; some need more than a name."""
        found = []
        for place in self._settings.hosts:
            with contextlib.suppress(UsageError):
                found.append(Reference.parse(f"{place}/{text}"))
        return found


def _is_api(text: str) -> bool:
    """Whether it names a model by the address of the API that runs it."""
    return text.lower().startswith(tuple(f"{scheme}://" for scheme in APIS))


def _is_elsewhere(text: str) -> bool:
    """Whether what it names may be a model of an API that is not in the cache."""
    return _is_api(text) or _is_written_as_path(text)


def of_checkpoint(found: "Checkpoint") -> Model:
    """What a checkpoint is, under the name of its run; with a problem where it is no model."""
    reference = Reference("file", "", found.path.as_posix())
    if found.has_plain_name:
        reference = Reference("short", "", found.run, found.name)
    model = model_at(found.path)
    if not isinstance(model, Model):
        model = Model(reference, found.path, (), problem=model.message, place=found.path)
    return replace(
        model,
        reference=reference,
        summary=model.summary._replace(kind="checkpoint"),
        modified=found.modified,
        place=found.path,
    )


def _as_path(text: str) -> Path | None:
    """The path that a string means: it is written as one, or something is there."""
    if text.startswith("file://"):
        return Path(Reference.parse(text).path)
    if not text or "\0" in text or len(text) > LONGEST or "://" in text:
        return None  # of no text Path makes the current folder
    try:
        path = Path(text).expanduser()
        return path if _is_written_as_path(text) or path.exists() else None
    except (OSError, RuntimeError):  # too long a name, ~nobody
        return None


def _is_written_as_path(text: str) -> bool:
    bare = text.endswith(".gguf") and "/" not in text and ":" not in text
    return bare or text in (".", "..") or text.startswith(("/", "./", "../", "~", "file://"))
