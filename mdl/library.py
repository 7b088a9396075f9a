"""From a string to a model: resolve, get, download, list, remove. Knows no terminal and no HTTP."""

import contextlib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from mdl.config import Settings
from mdl.describing import describe, identified, model_at
from mdl.errors import AuthError, Busy, MdlError, NetworkError, NotFound, UnsupportedModel, UsageError
from mdl.model import API, Manifest, Model, Summary
from mdl.reference import APIS, LONGEST, Reference, show
from mdl.store import Store
from mdl.traffic import Traffic

if TYPE_CHECKING:
    from mdl.card import Card
    from mdl.checkpoints import Checkpoint
    from mdl.download import Progress
    from mdl.fetch import Fetcher, Plan
    from mdl.profilefile import Asked
    from mdl.transports import Transport
    from mdl.weights import Weights

T = TypeVar("T")
_UNKNOWN = datetime.fromtimestamp(0, UTC)
Outcome = Literal["found", "miss", "skipped", "error"]
SHORTEST_DIGEST = 6  # hex digits of sha256:PREFIX
SHORTEST_PIN = 7  # of a commit


class Step(NamedTuple):
    """One step of a resolution: what was looked at and what came of it."""

    step: str
    outcome: Outcome
    detail: str


Steps = list[Step]
References = list[Reference]
Models = list[Model]
Trained = list[tuple["Checkpoint", Model]]
Scaled = list[tuple[Path, float]]  # files of adapters, and how strongly each is applied


class Resolution(NamedTuple):
    """How a string was decided. `model` is what is on this machine; else `reference` tells what to fetch.

    `name` is what was looked for: the text, or what it is an alias of. `others` are the places where a short
    name is looked for when the first one does not have it.
    """

    text: str
    name: str
    steps: tuple[Step, ...]
    reference: Reference | None = None
    model: Model | None = None
    others: tuple[Reference, ...] = ()
    wanted: Model | None = None  # what has only its model.json here, under `reference`

    @property
    def is_named(self) -> bool:
        """Whether the user gave it this name, by an alias or in a profile."""
        return any(step.step in ("alias", "profile") and step.outcome == "found" for step in self.steps)


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


Choose = Callable[[str, Sequence[str]], int | None]  # a question and its answers; which one, or None


class Library:
    """The models of this machine and those that it can reach, by name.

    `choose` asks a person which of several models a short name means; None where nobody is there.
    """

    def __init__(self, settings: Settings, choose: Choose | None = None) -> None:
        self.settings = settings
        self._choose = choose
        self._traffic = Traffic(settings.limit_rate)
        self.store = Store(settings.home, describe)

    # By name

    def resolve(self, text: str) -> Resolution:
        """Decide what a string names: a path, an alias, the cache, what ships with mdl, a remote source, in
        this order.

        Never touches the network. Raises UsageError for what cannot be a name and for what may be several
        models, UnsupportedModel for a path that is written as one and is no model, NotFound for a path that
        is not there.
        """
        return self._decide(text, [])

    def names(self) -> list[str]:
        """The user's own names of models: aliases, and those in profiles."""
        from mdl import profilefile

        return list(dict.fromkeys((*self.settings.aliases, *profilefile.names())))

    def asked(self, text: str, asked: "Asked") -> Resolution:
        """The same for somebody who asks for a model in a certain way: a name of a profile may stand for
        another model then."""
        return self._decide(text, [], asked)

    def explain(self, text: str) -> tuple[Resolution, MdlError | None]:
        """The same, with the steps that were taken even where `resolve` raises, and what it raises."""
        steps: Steps = []
        try:
            return self._decide(text, steps), None
        except MdlError as failure:
            steps.append(Step("end", "error", failure.message))
            return Resolution(text, text, tuple(steps)), failure

    def _decide(self, text: str, steps: Steps, asked: "Asked | None" = None) -> Resolution:
        model = self._look_at_path(text, steps)
        name = text
        if model is None and (meant := self._look_among_aliases(text, steps)):
            name = meant
            model = self._look_at_path(name, steps)
        if model is None:
            model, name = self._look_among_profiles(name, asked, steps)
        model = model or self._look_at_api(name, steps)
        model = model or self._look_in_cache(name, steps) or self._look_among_checkpoints(name, steps)
        if model is None:
            model, name = self._look_in_catalog(name, steps)
        if model is not None and model.is_absent:
            return Resolution(text, name, tuple(steps), model.reference, wanted=model)
        if model is not None:
            return Resolution(text, name, tuple(steps), model.reference, model)
        places = self._look_remotely(name, steps)
        return Resolution(text, name, tuple(steps), places[0] if places else None, others=tuple(places[1:]))

    def get(self, text: str, watch: Watch = Watch()) -> Model:
        """The model of this name, fetched first if it has to be and may be (`settings.pull`, `offline`)."""
        resolution = self.resolve(text)
        if resolution.model is not None:
            return self._freshened(resolution.model, watch)
        if resolution.reference is None:
            raise unknown(text)
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
            raise _elsewhere(model)
        if model.place is not None and (copied := self.store.find(model.reference)):
            return copied  # what was downloaded from a path has its name
        if model.place is not None:
            raise UsageError(
                f"{model.place} is not in the cache", hint="mdl removes only what is in its cache"
            )
        versions = self.store.versions(model.reference)
        if len(versions) > 1 and not _names_version(resolution.name, model):
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
            raise _elsewhere(model)
        if model.place is not None:
            return [self.store.find(model.reference) or model]
        return [model] if _names_version(resolution.name, model) else self.store.versions(model.reference)

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
            raise _elsewhere(resolution.model)
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
        self._adopt()
        return self.store.models()

    def _adopt(self) -> bool:
        """Whether anything had been dropped."""
        from mdl import dropped

        found = bool(dropped.adopt(self.store))
        if dropped.has_packages(self.store):
            from mdl import importing

            found = bool(importing.adopt(self.store)) or found
        return found

    def checkpoints(self) -> "Trained":
        """The training checkpoints in the folders that are configured, each run in the order of training."""
        from mdl import checkpoints

        trained = []
        for found in checkpoints.everything(self.settings.checkpoints):
            with contextlib.suppress(UsageError):  # a path that cannot be written as a name hides no other
                trained.append((found, _checkpoint(found)))
        return trained

    def base_model(self, model: Model) -> str | None:
        """For which model an adapter says that it was made; None where it does not, or is damaged."""
        try:
            return self.weights(model).facts.base_model
        except (MdlError, OSError):
            return None

    def apis(self) -> dict[str, Model]:
        """Models of APIs that the user has given names, by these names."""
        from mdl import profilefile

        found = {}
        for name in self.names():
            target = self.settings.aliases.get(name)
            meant = None if target else profilefile.meant(name, profilefile.Asked(), self)
            model = self.found(target) if target else meant and meant.model
            if model is not None and model.is_api:
                found[name] = model
        return found

    def versions(self, reference: Reference) -> Models:
        return self.store.versions(reference)

    def weights(self, model: Model) -> "Weights":
        """What to load of a model. Raises UnsupportedModel, with the reason, when none of it can run here."""
        from mdl.weights import Refusal

        if model.is_api:
            raise _elsewhere(model)
        if model.is_absent:
            cause = f"{model.reference} is not on this machine, only its model.json"
            raise NotFound(cause, hint=f"mdl download {model.reference}")
        if model.problem and model.place is None:
            verb = "download" if model.damaged else "rm"
            raise UnsupportedModel(f"{model.reference}: {model.problem}", f"mdl {verb} {model.reference}")
        found = identified(model)
        if isinstance(found, Refusal):
            raise found.error()
        return found

    def runnable(self, model: Model, kind: str = "model") -> "Weights":
        """What an engine loads of a model. Raises UnsupportedModel for what is stored here but cannot run."""
        found = self.weights(model)
        if found.kind != kind:
            raise UnsupportedModel(
                f"{model.reference} is of the kind {found.kind}, not {kind}", _ROLE_HINTS.get(found.kind, "")
            )
        if found.format != "gguf" and kind != "adapter":  # these are converted
            raise UnsupportedModel(
                f"{model.reference} has its weights as {found.format}, which llama.cpp does not load",
                hint=_GGUF_HINTS.get(model.summary.kind, "look for a GGUF version of this model"),
            )
        return found

    def adapters(
        self,
        model: Model,
        weights: "Weights",
        asked: Sequence[str],
        find: Callable[[str], Model],
        leases: contextlib.ExitStack,
    ) -> Scaled:
        """The files to load with a model of what is asked for as MODEL or MODEL=SCALE, and their scales; what
        PEFT saved is converted first. They are held as long as the `leases`.

        Raises UsageError for a scale that is no number, UnsupportedModel for what is no adapter, or with what
        of it does not fit, Busy for what is being removed; and what `find` raises.
        """
        if not asked:
            return []
        from mdl import adapters

        base = adapters.base(weights, str(model.reference))
        found = []
        for name, scale in map(adapters.asked, asked):
            adapter = find(name)
            try:
                leases.enter_context(self.store.locks.lease(adapter.folder))
            except BlockingIOError:
                raise Busy(f"{adapter.reference} is being removed") from None
            contents = {adapter.folder / file.name: file.sha256 for file in adapter.files}
            files = self.runnable(adapter, "adapter")
            found.append((adapters.fitted(files, base, self.store, contents.get(files.first)), scale))
        return found

    # The steps of a resolution

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
        return text.startswith("file://") and self.store.find(Reference.parse(text)) is not None

    def _look_at_api(self, text: str, steps: Steps) -> Model | None:
        """A model that others run, which is named by its address alone."""
        if not text.lower().startswith(tuple(f"{scheme}://" for scheme in APIS)):
            return None
        reference = Reference.parse(text)
        steps.append(Step("api", "found", f"{reference.api_parts[1]}, which {reference.host} runs"))
        return self._of_api(reference)

    def _of_api(self, reference: Reference) -> Model:
        folder = self.store.tree.joinpath(*reference.path_parts())  # which is not there
        return Model(reference, folder, (), Summary(format=API), modified=_UNKNOWN)

    def _look_in_cache(self, text: str, steps: Steps) -> Model | None:
        if text.startswith("sha256:"):
            return self._look_for_digest(text.removeprefix("sha256:"), steps)
        reference = Reference.parse(text)
        found = self._cached(reference, text, steps)
        if (found is None or found.folder == self.store.tree) and self._adopt():
            found = self._cached(reference, text, steps)
        if found is not None:
            where = f"{found.card}, not downloaded" if found.is_absent else found.folder
            steps.append(Step("cache", "found", f"{where}{self._among(found, text)}"))
            return found
        steps.append(Step("cache", "miss", f"no {reference} in {self.store.tree}"))
        return None

    def _look_for_digest(self, prefix: str, steps: Steps) -> Model | None:
        if len(prefix) < SHORTEST_DIGEST or not set(prefix) <= set("0123456789abcdef"):
            raise UsageError(
                f"sha256:{show(prefix)} is no digest", hint=f"write {SHORTEST_DIGEST} to 64 hex digits"
            )
        found = [
            (model, file)
            for model in self.store.models()
            for file in model.files
            if (file.sha256 or "").startswith(prefix)
        ]
        if len({file.sha256 for _, file in found}) > 1:
            names = ", ".join(
                f"{file.sha256[:12]} ({model.reference})" for model, file in found if file.sha256
            )
            raise UsageError(f"sha256:{prefix} may be any of {names}", hint="write more digits")
        if found:
            steps.append(Step("cache", "found", f"sha256:{found[0][1].sha256} in {found[0][0].folder}"))
            return found[0][0]
        steps.append(Step("cache", "miss", f"no file with the digest sha256:{prefix}…"))
        return None

    def _look_among_checkpoints(self, text: str, steps: Steps) -> Model | None:
        folders = [folder for folder in self.settings.checkpoints if folder.is_dir()]
        if not folders:
            return None
        from mdl import checkpoints

        if found := checkpoints.find(folders, text):
            steps.append(Step("checkpoint", "found", str(found.path)))
            return _checkpoint(found)
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
            return self._look_in_cache(str(entry.reference), steps), str(entry.reference)
        model = model_at(entry.file)
        if not isinstance(model, Model):
            raise UnsupportedModel(model.message, "reinstall mdl: what ships with it is damaged")
        steps.append(Step("catalog", "found", str(entry.file)))
        return replace(model, reference=Reference("short", "", entry.name)), entry.name

    def _look_among_aliases(self, text: str, steps: Steps) -> str | None:
        target = self.settings.aliases.get(text)
        if target is not None:
            steps.append(Step("alias", "found", target))
        elif self.settings.aliases:
            steps.append(Step("alias", "miss", f"{show(text)} is none of the {len(self.settings.aliases)}"))
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

    def found(self, text: str) -> Model | None:
        """The model here that a profile names so, by a path or a reference; None where none is."""
        with contextlib.suppress(MdlError):
            model = self._look_at_path(text, []) or self._look_at_api(text, [])
            model = model or self._look_in_cache(text, [])
            return model or self._look_among_checkpoints(text, []) or self._look_in_catalog(text, [])[0]
        return None

    def everything(self) -> Models:
        """All that is here: the cache, and what ships with mdl."""
        from mdl.catalog import catalog

        shipped = (self.found(entry.name) for entry in catalog().entries if entry.file is not None)
        return [*self.store.models(), *(model for model in shipped if model is not None)]

    def _look_remotely(self, text: str, steps: Steps) -> References:
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
        outcome: Outcome = "skipped" if self.settings.offline else "found"
        for place in found:
            steps.append(Step("remote", outcome, f"{place}, by the {place.scheme} transport"))
        return found

    def _expanded(self, text: str) -> References:
        """What a short name means at each of the user's hosts; some need more than a name."""
        found = []
        for place in self.settings.hosts:
            with contextlib.suppress(UsageError):
                found.append(Reference.parse(f"{place}/{text}"))
        return found

    # Inside

    def _among(self, model: Model, text: str) -> str:
        """Of how many versions this is the newest, where the name left that open."""
        versions = 1 if _names_version(text, model) else len(self.store.versions(model.reference))
        return f", the newest of {versions} versions" if versions > 1 else ""

    def _cached(self, reference: Reference, text: str, steps: Steps) -> Model | None:
        """What is here under a name: this version, else the newest; else what the name is short for."""
        found = self._version(reference) or self._version(_slashed(reference))
        return found or (self._abbreviated(reference, text, steps) if _has_no_host(text) else None)

    def _version(self, reference: Reference | None) -> Model | None:
        if reference is None:
            return None
        if reference.version is not None and (exact := self.store.find(reference)):
            return exact
        versions = self.store.versions(reference)
        usable = [model for model in versions if not model.problem] or versions
        usable = [model for model in usable if not model.is_absent] or usable
        return next((model for model in usable if _is_asked_for(model, reference)), None)

    def _abbreviated(self, reference: Reference, text: str, steps: Steps) -> Model | None:
        """The model whose name ends so. Of several the one at the first of the user's hosts, else the one
        that a person chooses."""
        path, colon, _ = text.partition("@")[0].partition(":")
        wanted = f"/{path.rstrip('/')}"
        version = reference.version if colon else None
        found: dict[Reference, Model] = {}
        for candidate, _ in self.store.names():
            name = f"/{candidate.host}/{candidate.path}"
            folder = f"{name}/{candidate.version}".casefold()
            if name.endswith(wanted):
                asked = candidate.with_version(version, reference.pin)
            elif not colon and folder.endswith(wanted.casefold()):
                asked = candidate
            else:
                continue
            if candidate.model not in found and (model := self._version(asked)):
                found[candidate.model] = model
        return self._decided(text, found, steps) if found else None

    def _decided(self, text: str, found: Mapping[Reference, Model], steps: Steps) -> Model:
        """One of several models; raises UsageError, with their names, where nothing decides."""
        names = sorted(found, key=lambda name: (self._rank(name), str(name)))
        first = [name for name in names if self._rank(name) == self._rank(names[0])]
        if len(names) > 1:
            steps.append(Step("cache", "found", f"{show(text)} may be any of {_listed(names)}"))
        if len(first) == 1:
            return found[first[0]]
        chosen = self._choose and self._choose(f"Which {text}?", [str(name) for name in first])
        if chosen is None:
            raise UsageError(f"{show(text)} may be any of {_listed(first)}", hint="write one of these names")
        return found[first[chosen]]

    def _rank(self, name: Reference) -> int:
        """How early in the order of the user's hosts a model comes."""
        places = self.settings.hosts
        return next((i for i, place in enumerate(places) if f"{name}/".startswith(f"{place}/")), len(places))

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
        from mdl.download import Downloader
        from mdl.fetch import Fetcher
        from mdl.remote import Limits, Trust

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
                hint="leave out --offline, or unset HF_HUB_OFFLINE",
            )
        return transports.load(reference, self.settings)

    def _export(self, model: Model, destination: Path | None) -> Model:
        """What needs no download, copied to where the user wants it."""
        if destination is None:
            return model
        from mdl.disk import copy, disk_errors

        with disk_errors(destination):
            for file in model.files:
                target = destination / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                copy(model.folder / file.name, target)
        return replace(model, folder=destination)


def unknown(text: str) -> NotFound:
    """What to tell of a name that means nothing: those of the catalog that are like it."""
    from mdl.catalog import catalog

    near = catalog().near(text, least=0.7)
    hint = "mdl list shows what is here, mdl search TERMS what there is: a remote model has at least org/name"
    return NotFound(
        f"no model is called {show(text)}", hint=f"did you mean {' or '.join(near)}?" if near else hint
    )


def _elsewhere(model: Model) -> UnsupportedModel:
    return UnsupportedModel(f"{model.reference} runs at an API: nothing of it is here", "mdl chat can ask it")


def _present(resolution: Resolution) -> Model:
    if resolution.model is None:
        name = resolution.reference or show(resolution.text)
        hint = f"mdl download {name}" if resolution.reference else "mdl list shows what is here"
        raise NotFound(f"{name} is not on this machine", hint=hint)
    return resolution.model


def _source(resolution: Resolution) -> Reference:
    """What to ask the source for: as it was written, unless that was short for something that is here."""
    if resolution.reference is None:
        raise unknown(resolution.name)
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


def _listed(names: Sequence[Reference]) -> str:
    return ", ".join(map(str, names))


_ROLE_HINTS = {
    "adapter": "name its base model, and the adapter with --adapter",
    "projector": "name the model that it belongs to",
    "model": "a model goes before the adapter: mdl chat MODEL --adapter ADAPTER",
}


_GGUF_HINTS = {
    "checkpoint": "make a GGUF file of it with llama.cpp's convert_hf_to_gguf.py, and put it beside it"
}


def _checkpoint(found: "Checkpoint") -> Model:
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


def _has_no_host(text: str) -> bool:
    first, slash, _ = text.partition("/")
    return "://" not in text and not (slash and ("." in first or ":" in first or first == "localhost"))


def _slashed(reference: Reference) -> Reference | None:
    """…/granite-7b-lab/v1.1, as it lies in the cache, read with its version."""
    path, slash, version = reference.path.rpartition("/")
    if not slash or reference.version is not None or reference.scheme != "oci":
        return None
    return replace(reference, path=path, version=version)


def _is_asked_for(model: Model, reference: Reference) -> bool:
    """Whether a version is what a reference means, though its folder is called otherwise."""
    pin, version = reference.pin, reference.version
    if pin not in (None, model.reference.pin) and not _is_commit(pin, model):
        return False
    if version is None:
        return True
    if pin is None and model.reference.pin is not None:
        return False
    from mdl.variants import variants

    called = any(variant.is_called(version) for variant in variants(file.name for file in model.files))
    return called or version.casefold() == (model.reference.version or "").casefold()


def _names_version(text: str, model: Model) -> bool:
    if text.startswith("sha256:"):
        return True
    written = Reference.parse(text)
    return written.version is not None or written.pin is not None or text.endswith(f"/{model.version}")


def _is_commit(pin: str | None, model: Model) -> bool:
    return len(pin or "") >= SHORTEST_PIN and model.revision.commit.startswith(pin or "")


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
