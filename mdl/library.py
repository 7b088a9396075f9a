"""From a string to a model: resolve, get, download, list, remove. Knows no terminal and no HTTP."""

import contextlib
import fnmatch
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from mdl.adopting import adopt
from mdl.cached import Choose, names_version
from mdl.config import Settings
from mdl.describing import describe
from mdl.errors import OFFLINE, AuthError, NetworkError, NotFound, UnsupportedModel, UsageError
from mdl.model import Manifest, Model
from mdl.reference import Reference, show
from mdl.resolution import Resolution, unknown
from mdl.resolver import Resolver, of_checkpoint
from mdl.runnable import elsewhere
from mdl.store import Store
from mdl.traffic import Traffic

if TYPE_CHECKING:
    from mdl.card import Card
    from mdl.checkpoints import Checkpoint
    from mdl.download import Progress
    from mdl.fetch import Fetcher, Plan
    from mdl.transports import Transport

T = TypeVar("T")
Models = list[Model]
Trained = list[tuple["Checkpoint", Model]]


class Watch(NamedTuple):
    """What a caller wants to hear and is asked while a model is fetched."""

    progress: "Progress | None" = None
    note: Callable[[str], None] = lambda _: None
    confirm: Callable[[str], bool] | None = None  # None: nobody is there to answer
    place: Callable[[Reference], object] = lambda _: (
        None
    )  # each that is about to be asked; may raise MdlError
    planned: "Callable[[Plan], object] | None" = None  # what is about to be fetched
    stoppable: Callable[[Callable[[], None]], object] = lambda _: None  # what stops it, from another thread


class Library:
    """The models of this machine and those that it can reach, by name.

    `choose` asks a person which of several models a short name means; None where nobody is there.
    """

    def __init__(self, settings: Settings, choose: Choose | None = None) -> None:
        self.settings = settings
        self.store = Store(settings.home, describe)
        self.resolver = Resolver(settings, self.store, choose)
        self._traffic = Traffic(settings.limit_rate)

    def for_clients(self) -> "Library":
        """The same for those who ask from elsewhere, and have no business with the paths of this machine."""
        found = copy(self)
        found.resolver = self.resolver.without_paths()
        return found

    # By name

    def resolve(self, text: str) -> Resolution:
        """What a string names, here or elsewhere; raises what the resolver does."""
        return self.resolver.resolve(text)

    def get(self, text: str, watch: Watch = Watch()) -> Model:
        """The model of this name, fetched first if it has to be and may be (`settings.pull`, `offline`)."""
        resolution = self.resolve(text)
        if resolution.model is not None:
            return self._freshened(resolution.model, watch)
        if resolution.reference is None:
            raise self.resolver.unknown(resolution)
        if not self._may_fetch(resolution.reference, watch):
            raise NotFound(
                f"{resolution.reference} is not on this machine", hint=f"mdl download {resolution.reference}"
            )
        return self.download(text, watch)  # as it was written: an address may have a query that opens it

    def here(self, text: str) -> Model:
        """The model of this name on this machine, whatever it takes to find it; raises NotFound."""
        return _present(self.resolve(text))

    def removable(self, text: str) -> Model:
        """The one version in the cache that a name means; raises UsageError where it may mean several."""
        resolution = self.resolve(text)
        model = resolution.wanted or _present(resolution)
        if model.is_api and model.card is None:
            raise elsewhere(model)
        if model.place is not None and (copied := self.store.find(model.reference)):
            return copied  # what was downloaded from a path has its name
        if model.place is not None:
            raise UsageError(
                f"{model.place} is not in the cache", hint="mdl removes only what is in its cache"
            )
        versions = self.store.versions(model.reference)
        if len(versions) > 1 and not names_version(resolution.name, model):
            names = ", ".join(str(version.reference) for version in versions)
            raise UsageError(
                f"{show(text)} has {len(versions)} versions: {names}", hint="write which of them"
            )
        return model

    def meant(self, text: str) -> Models:
        """Every version here that a name means: all of a model, where it leaves that open."""
        resolution = self.resolve(text)
        model = _present(resolution)
        if model.is_api and model.card is None:
            raise elsewhere(model)
        if model.place is not None:
            return [self.store.find(model.reference) or model]
        return [model] if names_version(resolution.name, model) else self.store.versions(model.reference)

    def download(
        self,
        text: str,
        watch: Watch = Watch(),
        *,
        include: Sequence[str] = (),
        destination: Path | None = None,
        force: bool = False,
    ) -> Model:
        """Fetch a model, or what of it is missing or has changed at its source."""
        resolution = self.resolve(text)
        if resolution.model is not None and resolution.model.is_api:
            raise elsewhere(resolution.model)
        model = resolution.model
        if model is not None and not _has_source(model) and _json_of(resolution) is None:
            return self._export(model, destination)
        if model is not None and self._is_out_of_reach(model.reference) and destination is None:
            watch.note(f"offline: {resolution.reference} is used as it is")
            return model
        fetcher, manifest = self._offered(resolution, watch, include)
        if manifest.note:
            watch.note(manifest.note)
        if watch.planned is not None:
            watch.planned(fetcher.plan(manifest))
        if destination is not None:
            return fetcher.fetch_to(manifest, destination)
        fetched = fetcher.fetch(manifest, force=force)
        if resolution.wanted is not None:
            self.store.settle(resolution.wanted, fetched)
        return fetched

    def plan(self, text: str, include: Sequence[str] = ()) -> "Plan":
        """What `download` would do."""
        from mdl.fetch import Plan

        resolution = self.resolve(text)
        if resolution.model is not None and not _has_source(resolution.model):
            model = resolution.model
            return Plan(Manifest(model.reference, model.files), frozenset(file.name for file in model.files))
        fetcher, manifest = self._offered(resolution, Watch(), include)
        return fetcher.plan(manifest)

    def card(self, text: str) -> "tuple[Transport, Card]":
        """What the source of a model says of it, and the way to its files there.

        Raises what `download` does, and UnsupportedModel where the source cannot be asked.
        """

        def ask(place: Reference) -> "tuple[Transport, Card]":
            from mdl.transports import Cards

            transport = self._transport(place)
            if isinstance(transport, Cards):
                return transport, transport.card(place)
            raise UnsupportedModel(
                f"{place} has no card: its source tells nothing but its files", hint=f"mdl inspect {place}"
            )

        return _at_first(self.resolve(text), ask)

    def list(self) -> Models:
        """What is here; weights that were dropped into the tree get a folder of their own first."""
        adopt(self.store)
        return self.store.models()

    def checkpoints(self) -> "Trained":
        """The training checkpoints in the folders that are configured, each run in the order of training."""
        from mdl import checkpoints

        trained = []
        for found in checkpoints.everything(self.settings.checkpoints):
            with contextlib.suppress(UsageError):  # a path that cannot be written as a name hides no other
                trained.append((found, of_checkpoint(found)))
        return trained

    # Inside

    def _freshened(self, model: Model, watch: Watch) -> Model:
        """What is here, looked for changes at its source first where the user wants that."""
        wanted = self.settings.pull in ("always", "newer") and not self.settings.offline
        if not wanted or not model.source or model.partial or not _has_source(model):
            return model  # also a path, what was put here by hand, and what is here in parts on purpose
        try:
            return self.download(str(model.reference), watch)
        except (NetworkError, NotFound, AuthError) as error:
            if self.settings.pull == "always":
                raise
            watch.note(f"{error.message}: {model.reference} is used as it is")
            return model

    def _may_fetch(self, reference: Reference, watch: Watch) -> bool:
        if self.settings.offline or self.settings.pull == "never":
            return False
        if self.settings.pull != "ask":
            return True
        return watch.confirm is not None and watch.confirm(
            f"{reference} is not on this machine. Download it?"
        )

    def _offered(
        self, resolution: Resolution, watch: Watch, include: Sequence[str]
    ) -> "tuple[Fetcher, Manifest]":
        """Who fetches a model, and what its source has."""

        def load(place: Reference) -> "Transport":
            watch.place(place)
            return self._transport(place)

        def ask(place: Reference) -> "tuple[Fetcher, Manifest]":
            fetcher = self._fetcher(load(place), watch)
            return fetcher, _included(fetcher.transport.manifest(place), include)

        path = _json_of(resolution)
        if path is None or resolution.reference is None:
            return _at_first(resolution, ask)
        from mdl.sources import Sources

        sources = Sources(path, load)
        return self._fetcher(sources, watch), _included(sources.manifest(resolution.reference), include)

    def _is_out_of_reach(self, reference: Reference) -> bool:
        return self.settings.offline and reference.scheme != "file"

    def _fetcher(self, transport: "Transport", watch: Watch) -> "Fetcher":
        from mdl.connection import Trust
        from mdl.download import Downloader
        from mdl.fetch import Fetcher
        from mdl.remote import Limits

        limits = Limits(files=self.settings.jobs, connections=self.settings.connections)
        trust = Trust(self.settings.ca, frozenset(self.settings.insecure))
        downloader = Downloader(limits, watch.progress, trust=trust, traffic=self._traffic)
        watch.stoppable(downloader.cancel)
        return Fetcher(
            self.store, transport, downloader, lambda name: watch.note(f"another mdl fetches {name}: waiting")
        )

    def _transport(self, reference: Reference) -> "Transport":
        from mdl import transports

        if self._is_out_of_reach(reference):
            raise NotFound(
                f"{reference} cannot be fetched: mdl is offline",
                hint=OFFLINE,
            )
        return transports.load(reference, self.settings)

    def _export(self, model: Model, destination: Path | None) -> Model:
        """What needs no download, copied to where the user wants it."""
        if destination is None:
            return model
        from mdl import disk

        with disk.disk_errors(destination):
            for file in model.files:
                target = destination / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                disk.copy(model.folder / file.name, target)
        return replace(model, folder=destination)


def _present(resolution: Resolution) -> Model:
    if resolution.model is None:
        name = resolution.reference or show(resolution.text)
        hint = f"mdl download {name}" if resolution.reference else "mdl list shows what is here"
        raise NotFound(f"{name} is not on this machine", hint=hint)
    return resolution.model


def _source(resolution: Resolution) -> Reference:
    """What to ask the source for: as it was written, unless that was short for something that is here."""
    if resolution.reference is None:
        raise unknown(resolution)
    model, name = resolution.model, resolution.name
    if resolution.wanted is not None and resolution.wanted.card is not None:
        from mdl import carded, modeljson

        return carded.sources(modeljson.read(resolution.wanted.card), resolution.wanted.card)[0]
    if model is None or model.reference.scheme == "file":
        return resolution.reference
    written = Reference.parse(name) if not name.startswith("sha256:") else model.reference
    return written if written.model == model.reference.model else model.reference


def _at_first(resolution: Resolution, ask: Callable[[Reference], T]) -> T:
    """What is answered by the first of the places where a name is looked for that has the model."""
    places = (_source(resolution), *resolution.others)
    misses = []
    for place in places:
        try:
            return ask(place)
        except (NotFound, AuthError) as failure:
            if len(places) == 1:
                raise
            misses.append(failure.message)
    raise NotFound(f"{show(resolution.name)} is nowhere: {'; '.join(misses)}", hint="write its full name")


def _json_of(resolution: Resolution) -> Path | None:
    """The model.json that tells where to get a model: it is all that is here, or the rest is damaged."""
    model = resolution.model
    if resolution.wanted is not None:
        return resolution.wanted.card
    if model is None or not model.damaged or _has_source(model):
        return None
    from mdl.modeljson import path_of

    return path_of(model)


def _has_source(model: Model) -> bool:
    from mdl.transports import TRANSPORTS

    return model.reference.scheme in TRANSPORTS


def _included(manifest: Manifest, patterns: Sequence[str]) -> Manifest:
    """The files that match any of the patterns; a manifest without patterns stays as it is."""
    if not patterns:
        return manifest
    if any(file.is_archive for file in manifest.files):
        raise UsageError(
            f"the files of {manifest.reference} come packed together", hint="leave out --include"
        )
    files = tuple(file for file in manifest.files if any(fnmatch.fnmatch(file.name, p) for p in patterns))
    if not files:
        raise NotFound(
            f"no file of {manifest.reference} matches {' '.join(patterns)}",
            hint=f"mdl download --dry-run {manifest.reference} lists its files",
        )
    return replace(manifest, files=files, partial=len(files) < len(manifest.files))
