"""From a string to a model: resolve, get, download, list, remove. Knows no terminal and no HTTP."""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from mdl.config import Settings
from mdl.errors import AuthError, NetworkError, NotFound, UnsupportedModel, UsageError
from mdl.model import METADATA_NAME, File, Manifest, Model, Summary
from mdl.reference import LONGEST, Reference, show
from mdl.store import Store

if TYPE_CHECKING:
    from mdl.download import Progress
    from mdl.fetch import Fetcher, Plan
    from mdl.weights import Refusal, Weights

Outcome = Literal["found", "miss", "skipped", "error"]
SHORTEST_DIGEST = 6  # hex digits of sha256:PREFIX
SHORTEST_PIN = 7  # of a commit


class Step(NamedTuple):
    """One step of a resolution: what was looked at and what came of it."""

    step: str
    outcome: Outcome
    detail: str


Steps = list[Step]
Models = list[Model]


class Resolution(NamedTuple):
    """How a string was decided. `model` is what is on this machine; else `reference` tells what to fetch."""

    text: str
    steps: tuple[Step, ...]
    reference: Reference | None = None
    model: Model | None = None


class Watch(NamedTuple):
    """What a caller wants to hear and is asked while a model is fetched."""

    progress: "Progress | None" = None
    note: Callable[[str], None] = lambda _: None
    confirm: Callable[[str], bool] | None = None  # None: nobody is there to answer


class Library:
    """The models of this machine and those that it can reach, by name."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.home, describe)

    # By name

    def resolve(self, text: str) -> Resolution:
        """Decide what a string names: a path, the cache, what ships with mdl, a remote source, in this order.

        Never touches the network. Raises UsageError for what cannot be a name, UnsupportedModel for a path
        that is written as one and is no model, NotFound for a path that is not there.
        """
        steps: Steps = []
        for look in (self._look_at_path, self._look_in_cache, self._look_in_catalog, self._look_remotely):
            found = look(text, steps)
            if found is not None:
                reference = found.reference if isinstance(found, Model) else found
                model = found if isinstance(found, Model) else None
                return Resolution(text, tuple(steps), reference, model)
        return Resolution(text, tuple(steps))

    def get(self, text: str, watch: Watch = Watch()) -> Model:
        """The model of this name, fetched first if it has to be and may be (`settings.pull`, `offline`)."""
        resolution = self.resolve(text)
        if resolution.model is not None:
            return self._freshened(resolution.model, watch)
        if resolution.reference is None:
            raise NotFound(f"no model is called {show(text)}", hint="mdl list shows what is here")
        if not self._may_fetch(resolution.reference, watch):
            raise NotFound(
                f"{resolution.reference} is not on this machine", hint=f"mdl download {resolution.reference}"
            )
        return self.download(text, watch)  # as it was written: an address may have a query that opens it

    def here(self, text: str) -> Model:
        """The model of this name on this machine, whatever it takes to find it; raises NotFound."""
        resolution = self.resolve(text)
        if resolution.model is None:
            name = resolution.reference or show(text)
            hint = f"mdl download {name}" if resolution.reference else "mdl list shows what is here"
            raise NotFound(f"{name} is not on this machine", hint=hint)
        return resolution.model

    def removable(self, text: str) -> Model:
        """The one version in the cache that a name means; raises UsageError where it may mean several."""
        model = self.here(text)
        if model.place is not None and (copied := self.store.find(model.reference)):
            return copied  # what was downloaded from a path has its name
        if model.place is not None:
            raise UsageError(
                f"{model.place} is not in the cache", hint="mdl removes only what is in its cache"
            )
        versions = self.store.versions(model.reference)
        if len(versions) > 1 and not _names_version(text, model):
            names = ", ".join(str(version.reference) for version in versions)
            raise UsageError(
                f"{show(text)} has {len(versions)} versions: {names}", hint="write which of them"
            )
        return model

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
        if resolution.model is not None and not _has_source(resolution.model):
            return self._export(resolution.model, destination)
        reference = self._source_reference(text, resolution)
        if self._is_out_of_reach(reference) and resolution.model is not None and destination is None:
            watch.note(f"offline: {reference} is used as it is")
            return resolution.model
        fetcher = self._fetcher(reference, watch)
        manifest = _included(fetcher.transport.manifest(reference), include)
        if manifest.note:
            watch.note(manifest.note)
        if destination is not None:
            return fetcher.fetch_to(manifest, destination)
        return fetcher.fetch(manifest, force=force)

    def plan(self, text: str, include: Sequence[str] = ()) -> "Plan":
        """What `download` would do."""
        from mdl.fetch import Plan

        resolution = self.resolve(text)
        if resolution.model is not None and not _has_source(resolution.model):
            model = resolution.model
            return Plan(Manifest(model.reference, model.files), frozenset(file.name for file in model.files))
        reference = self._source_reference(text, resolution)
        fetcher = self._fetcher(reference, Watch())
        return fetcher.plan(_included(fetcher.transport.manifest(reference), include))

    def list(self) -> Models:
        return self.store.models()

    def versions(self, reference: Reference) -> Models:
        return self.store.versions(reference)

    def weights(self, model: Model) -> "Weights":
        """What to load of a model. Raises UnsupportedModel, with the reason, when none of it can run here."""
        from mdl.weights import Refusal, identify

        if model.problem:
            raise UnsupportedModel(f"{model.reference}: {model.problem}", hint=f"mdl rm {model.reference}")
        found = identify(model.place or model.folder)
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
        if found.format != "gguf":
            raise UnsupportedModel(
                f"{model.reference} has its weights as {found.format}, which llama.cpp does not load",
                hint="look for a GGUF version of this model",
            )
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
        model = _model_at(path)
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

    def _look_in_cache(self, text: str, steps: Steps) -> Model | None:
        if text.startswith("sha256:"):
            return self._look_for_digest(text.removeprefix("sha256:"), steps)
        reference = Reference.parse(text)
        found = self._cached(reference, text)
        if found is not None:
            steps.append(Step("cache", "found", str(found.folder)))
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

    def _look_in_catalog(self, text: str, steps: Steps) -> Model | None:
        from mdl.profiles import catalog_path

        path = catalog_path(text)
        if path is None:
            steps.append(Step("catalog", "miss", f"no entry {show(text)}"))
            return None
        model = _model_at(path)
        if not isinstance(model, Model):
            raise UnsupportedModel(model.message, "reinstall mdl: what ships with it is damaged")
        steps.append(Step("catalog", "found", str(path)))
        return replace(model, reference=Reference("short", "", text))

    def _look_remotely(self, text: str, steps: Steps) -> Reference | None:
        if text.startswith("sha256:"):
            steps.append(Step("remote", "miss", "a digest alone names no source"))
            return None
        reference = Reference.parse(text)
        if reference.scheme == "short":
            steps.append(
                Step("remote", "miss", f"{show(text)} names no source: a remote model has at least org/name")
            )
            return None
        outcome: Outcome = "skipped" if self.settings.offline else "found"
        steps.append(Step("remote", outcome, f"{reference}, by the {reference.scheme} transport"))
        return reference

    # Inside

    def _cached(self, reference: Reference, text: str) -> Model | None:
        """What is here under a name: this version, else the newest; else what the name is short for."""
        found = self._version(reference) or self._version(_slashed(reference))
        return found or (self._abbreviated(reference, text) if _has_no_host(text) else None)

    def _version(self, reference: Reference | None) -> Model | None:
        if reference is None:
            return None
        if reference.version is not None and (exact := self.store.find(reference)):
            return exact
        versions = self.store.versions(reference)
        usable = [model for model in versions if not model.problem] or versions
        return next((model for model in usable if _is_asked_for(model, reference)), None)

    def _abbreviated(self, reference: Reference, text: str) -> Model | None:
        """The one model whose name ends so; UsageError, with the candidates, when there are several."""
        wanted = f"/{reference.path}"
        found: dict[Reference, Model] = {}
        for candidate, _ in self.store.names():
            name = f"/{candidate.host}/{candidate.path}"
            if name.endswith(wanted):
                asked = candidate.with_version(reference.version, reference.pin)
            elif f"{name}/{candidate.version}".casefold().endswith(wanted.casefold()):  # as it lies there
                asked = candidate
            else:
                continue
            if candidate.model not in found and (model := self._version(asked)):
                found[candidate.model] = model
        if len(found) > 1:
            names = ", ".join(sorted(str(model) for model in found))
            raise UsageError(f"{show(text)} may be any of {names}", hint="write one of these names")
        return next(iter(found.values()), None)

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

    def _source_reference(self, text: str, resolution: Resolution) -> Reference:
        """What to ask the source for: as it was written, unless that was short for something that is here."""
        if resolution.reference is None:
            raise NotFound(f"no model is called {show(text)}", hint="a remote model has at least org/name")
        model = resolution.model
        if model is None or model.reference.scheme == "file":
            return resolution.reference
        written = Reference.parse(text) if not text.startswith("sha256:") else model.reference
        return written if written.model == model.reference.model else model.reference

    def _is_out_of_reach(self, reference: Reference) -> bool:
        return self.settings.offline and reference.scheme != "file"

    def _fetcher(self, reference: Reference, watch: Watch) -> "Fetcher":
        from mdl import transports
        from mdl.download import Downloader
        from mdl.fetch import Fetcher
        from mdl.remote import Limits

        if self._is_out_of_reach(reference):
            raise NotFound(
                f"{reference} cannot be fetched: mdl is offline",
                hint="leave out --offline, or unset HF_HUB_OFFLINE",
            )
        transport = transports.load(reference, self.settings)
        limits = Limits(files=self.settings.jobs, connections=self.settings.connections)
        downloader = Downloader(limits, watch.progress)
        return Fetcher(
            self.store, transport, downloader, lambda name: watch.note(f"another mdl fetches {name}: waiting")
        )

    def _export(self, model: Model, destination: Path | None) -> Model:
        """What needs no download, copied to where the user wants it."""
        if destination is None:
            return model
        from mdl.store import copy, disk_errors

        with disk_errors(destination):
            for file in model.files:
                target = destination / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                copy(model.folder / file.name, target)
        return replace(model, folder=destination)


_ROLE_HINTS = {
    "adapter": "name its base model, and the adapter with --adapter",
    "projector": "name the model that it belongs to",
    "model": "a model goes before the adapter: mdl chat MODEL --adapter ADAPTER",
}


def describe(folder: Path) -> Model:
    """A folder without `.metadata`, from its content; the digests of its files are not known."""
    found = _model_at(folder)
    if isinstance(found, Model):
        return replace(found, place=None)
    reference = Reference("short", "", "model")
    files = tuple(_file(path, folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return Model(reference, folder, files, problem="" if found.is_model else found.message)


def _model_at(path: Path) -> "Model | Refusal":
    """The model that a path is, or why it is none."""
    from mdl.weights import Refusal, identify

    found = identify(path)
    if isinstance(found, Refusal):
        return found
    path = path.absolute()
    folder = path if path.is_dir() else path.parent
    paths = [*found.files, *([found.projector] if found.projector else [])]
    if path.is_dir():
        paths = sorted(file for file in path.rglob("*") if file.is_file() and file.name != METADATA_NAME)
    files = tuple(_file(file.absolute(), folder) for file in paths)
    modified = datetime.fromtimestamp(found.first.stat().st_mtime, UTC)
    reference = Reference("file", "", path.as_posix())
    return Model(reference, folder, files, _summary(found), modified=modified, place=path)


def _file(path: Path, folder: Path) -> File:
    from mdl.weights import role

    name = path.relative_to(folder).as_posix()
    return File(name, path.stat().st_size, role=role(name))


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


def _as_path(text: str) -> Path | None:
    """The path that a string means: it is written as one, or something is there."""
    if text.startswith("file://"):
        return Path(Reference.parse(text).path)
    if "\0" in text or len(text) > LONGEST or "://" in text:
        return None
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
    files = tuple(file for file in manifest.files if any(fnmatch.fnmatch(file.name, p) for p in patterns))
    if not files:
        raise NotFound(
            f"no file of {manifest.reference} matches {' '.join(patterns)}",
            hint=f"mdl download --dry-run {manifest.reference} lists its files",
        )
    return replace(manifest, files=files, partial=len(files) < len(manifest.files))
