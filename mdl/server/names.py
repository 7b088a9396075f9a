"""Which model a request means, and what to load of it. Knows no HTTP, and fetches nothing."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from mdl import profiles
from mdl.engine.request import EngineFiles
from mdl.errors import Busy, MdlError, NotFound, UnsupportedModel, UsageError
from mdl.library import Library
from mdl.model import Model
from mdl.profiles import Profile, catalog, catalog_path
from mdl.reference import show
from mdl.server.failure import Refused

REMEMBERED_SECONDS = 2.0  # a short name is looked for in the whole cache, which many requests need only once
MOST_REMEMBERED = 256
_PATHS = ("/", "./", "../", "~", "file:")

Key = tuple[str, float]


def key(model: Model) -> Key:
    """What tells models apart: where they lie, and since when."""
    return str(model.place or model.folder), model.modified.timestamp()


class Names:
    """What clients may call models by: those that are served if there are any, else all that are here."""

    def __init__(self, library: Library, served: tuple[str, ...] = ()) -> None:
        self._library = library
        self.served = {name: _present(library, name) for name in served}
        self._remembered: dict[str, tuple[float, Model]] = {}

    def default(self, name: str | None) -> str:
        """The name that a request gave, or the only one that it can mean."""
        if name:
            return name
        if len(self.served) == 1:
            return next(iter(self.served))
        raise Refused("model is missing", "GET /v1/models lists what there is", param="model")

    async def find(self, name: str) -> Model:
        """Raises NotFound for what is not here or not served, Refused for what cannot be a name."""
        if name in self.served:
            return self.served[name]
        moment, model = self._remembered.get(name, (0.0, None))
        if model is None or monotonic() - moment > REMEMBERED_SECONDS:
            model = await asyncio.to_thread(self._find, name)
            if len(self._remembered) >= MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[name] = monotonic(), model
        return model

    async def all(self) -> dict[str, Model]:
        """Name and model of all that can be asked for."""
        return self.served or await asyncio.to_thread(self._all)

    def _find(self, name: str) -> Model:
        model = self._resolved(name)
        if self.served and key(model) not in map(key, self.served.values()):
            raise NotFound(f"{show(name)} is not served here", hint=f"served: {', '.join(self.served)}")
        return model

    def _resolved(self, name: str) -> Model:
        # A client has no business with the files beside the server, not even whether they are there.
        if name.startswith(_PATHS):
            raise _missing(name)
        try:
            resolution = self._library.resolve(name)
        except (NotFound, UnsupportedModel):
            raise _missing(name) from None
        except UsageError as error:
            raise Refused(error.message, error.hint, param="model") from None
        model = resolution.model
        if model is not None and model.place is not None and model.reference.scheme == "file":
            raise _missing(name)
        if model is None:
            source = resolution.reference
            raise _missing(name, f"mdl download {source}" if source else "")
        return model

    def _all(self) -> dict[str, Model]:
        here = {str(model.reference): model for model in self._library.list() if _can_answer(model)}
        for name in catalog():
            if catalog_path(name) and (model := self._library.resolve(name).model):
                here.setdefault(name, model)
        return here


class Held(NamedTuple):
    """What to load of a model, which nobody removes meanwhile; how the model wants to be used; and all the
    files that its weights are in."""

    files: EngineFiles
    profile: Profile
    parts: tuple[Path, ...]


@contextmanager
def files(library: Library, model: Model) -> Iterator[Held]:
    """Raises UnsupportedModel for what cannot run here, Busy for what is being removed."""
    with ExitStack() as held:
        try:
            held.enter_context(library.store.lease(model))
        except BlockingIOError:
            raise Busy(f"{model.reference} is being removed") from None
        weights = library.weights(model)
        if weights.kind != "model" or weights.format != "gguf":
            what = f"{weights.format} {weights.kind}"
            raise UnsupportedModel(f"{model.reference} is a {what}, which cannot answer", "name a GGUF model")
        profile = profiles.of(model)
        adapters = tuple((path, 1.0) for path in profile.adapters)
        chosen = EngineFiles(weights.first, weights.projector, adapters, profile.template)
        yield Held(chosen, profile, weights.files)


def _present(library: Library, name: str) -> Model:
    resolution = library.resolve(name)
    if resolution.model is None:
        raise _missing(name, f"mdl download {resolution.reference}" if resolution.reference else "")
    return resolution.model


def _missing(name: str, hint: str = "") -> MdlError:
    return NotFound(f"{show(name)} is not on this machine", hint or "mdl list shows what is")


def _can_answer(model: Model) -> bool:
    return not model.problem and model.summary.kind == "model" and model.summary.format == "gguf"
