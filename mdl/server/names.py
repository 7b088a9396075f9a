"""Which model a request means, and what to load of it. Knows no HTTP, and fetches nothing."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from mdl import layers, runnable
from mdl.catalog import catalog
from mdl.engine.request import EngineFiles
from mdl.errors import MdlError, NotFound, UnsupportedModel, UsageError
from mdl.library import Library
from mdl.model import Model
from mdl.profilefile import Asked
from mdl.profiles import Profile
from mdl.reference import show
from mdl.resolver import Resolver
from mdl.server.failure import Refused
from mdl.server.remembered import Remembered
from mdl.weights import Weights

REMEMBERED_SECONDS = 2.0  # a short name is looked for in the whole cache, which many requests need only once
MOST_REMEMBERED = 256
PATHS = ("/", "./", "../", "~", "file:")

Key = tuple[str, float]


def key(model: Model) -> Key:
    """What tells models apart: where they lie, and since when."""
    return str(model.place or model.folder), model.modified.timestamp()


class Wanted(NamedTuple):
    """How a model is used by those who ask for it in one way, and `usual`ly, by those who ask in no special
    way."""

    profile: Profile
    usual: Profile


class Names:
    """What clients may call models by: those that are served if there are any, else all that are here."""

    def __init__(self, library: Library, served: tuple[str, ...] = ()) -> None:
        self._library = library.for_clients()
        self.served = {name: _present(library, name) for name in served}
        self.loaded: Callable[[Model], bool] = lambda _: False  # whether it is up, where somebody knows
        self._remembered = Remembered[tuple[str, str], Model](REMEMBERED_SECONDS)
        self._wanted = Remembered[tuple[str, str, Key], Wanted](REMEMBERED_SECONDS)
        self._read: dict[Key, Weights] = {}

    def default(self, name: str | None) -> str:
        """The name that a request gave, or the only one that it can mean."""
        if name:
            return name
        if len(self.served) == 1:
            return next(iter(self.served))
        raise Refused("model is missing", "GET /v1/models lists what there is", param="model")

    async def find(self, name: str, path: str = "") -> Model:
        """What is meant by a name over this API path. Raises NotFound for what is not here or not served,
        Refused for what cannot be a name."""
        if name in self.served:
            return self.served[name]
        return await self._remembered.get((name, path), lambda: self._find(name, path))

    async def all(self) -> dict[str, Model]:
        """Name and model of all that can be asked for; also by the user's own names."""
        return await asyncio.to_thread(self._all)

    async def wanted(self, name: str, path: str, model: Model) -> Wanted:
        """How a model is used that was asked for by this name and over this API path."""
        at = name, path, key(model)
        return await self._wanted.get(at, lambda: self._want(name, path, model))

    def _want(self, name: str, path: str, model: Model) -> Wanted:
        weights = self._weights(model)
        ways = ((name, path), ())
        return Wanted(*(layers.of(self._library, model, weights, *way).merged() for way in ways))

    def _weights(self, model: Model) -> Weights | None:
        """None where they cannot run, which loading them tells."""
        at = key(model)
        if at not in self._read:
            if len(self._read) >= MOST_REMEMBERED:
                self._read.clear()
            try:
                self._read[at] = runnable.weights(model)
            except MdlError:
                return None
        return self._read[at]

    def forget(self) -> None:
        """What was here may not be any more."""
        self._remembered.forget()

    def _is_served(self, model: Model) -> bool:
        return not self.served or key(model) in map(key, self.served.values())

    def _find(self, name: str, path: str = "", resolver: Resolver | None = None) -> Model:
        model = self._resolved(name, path, resolver or self._library.resolver)
        if not self._is_served(model):
            raise NotFound(f"{show(name)} is not served here", hint=f"served: {', '.join(self.served)}")
        return model

    def _resolved(self, name: str, path: str, resolver: Resolver) -> Model:
        # A client has no business with the files beside the server, not even whether they are there.
        if name.startswith(PATHS):
            raise _missing(name)
        try:
            resolution = resolver.resolve(name, Asked(path, self._is_served, self.loaded))
        except (NotFound, UnsupportedModel):
            raise _missing(name) from None
        except UsageError as error:
            raise Refused(error.message, error.hint, param="model") from None
        model = resolution.model
        is_file = model is not None and model.place is not None and model.reference.scheme == "file"
        if is_file and not resolution.is_named:
            raise _missing(name)
        if model is not None and not resolution.is_named and not self._may_be_asked(model):
            raise _missing(name, f"to let clients ask for it: mdl alias set NAME {model.reference}")
        if model is None:
            source = resolution.reference
            raise _missing(name, f"mdl download {source}" if source else "")
        return model

    def _may_be_asked(self, model: Model) -> bool:
        """Clients may not have any host asked, and with the user's keys: only those that the user named."""
        if not model.reference.is_api:
            return True
        known = (*self.served.values(), *self._library.resolver.apis().values())
        return model.reference in [other.reference for other in known]

    def _all(self) -> dict[str, Model]:
        found = dict(self.served or self._here())
        resolver = self._library.resolver.at_once()
        for name in resolver.names():
            with suppress(MdlError):  # what it stands for is not here
                found.setdefault(name, self._find(name, "", resolver))
        return found

    def _here(self) -> dict[str, Model]:
        here = {str(model.reference): model for model in self._library.list() if _can_answer(model)}
        for entry in catalog().entries:
            if entry.file and (model := self._library.resolve(entry.name).model):
                here.setdefault(entry.name, model)
        return here


class Held(NamedTuple):
    """What to load of a model, which nobody removes meanwhile; how it is used; its weights."""

    files: EngineFiles
    profile: Profile
    weights: Weights


@contextmanager
def files(
    library: Library, model: Model, profile: Profile | None = None, *, adapters: Sequence[str] = ()
) -> Iterator[Held]:
    """With the adapters, MODEL or MODEL=SCALE, that are applied to it, and with those of the profile; where
    none is given, of that for those who ask in no special way. Raises UnsupportedModel for what cannot run
    here or does not fit, Busy for what is being removed."""
    with ExitStack() as held:
        runnable.hold(library.store, model, held)
        weights = runnable.weights(model)
        if weights.kind != "model" or weights.format != "gguf":
            what = f"{weights.format} {weights.kind}"
            raise UnsupportedModel(f"{model.reference} is a {what}, which cannot answer", "name a GGUF model")
        profile = layers.of(library, model, weights).merged() if profile is None else profile
        asked = (*profile.adapters, *adapters)
        found = runnable.adapters_for(library.store, model, weights, asked, library.here, held)
        chosen = EngineFiles(weights.first, weights.projector, tuple(found), profile.template)
        yield Held(chosen, profile, weights)


def _present(library: Library, name: str) -> Model:
    resolution = library.resolve(name)
    if resolution.model is None:
        raise _missing(name, f"mdl download {resolution.reference}" if resolution.reference else "")
    return resolution.model


def _missing(name: str, hint: str = "") -> MdlError:
    return NotFound(f"{show(name)} is not on this machine", hint or "mdl list shows what is")


def _can_answer(model: Model) -> bool:
    can = model.is_api or (model.summary.kind == "model" and model.summary.format == "gguf")
    return not model.problem and can
