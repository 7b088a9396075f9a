"""A model in the cache by what people write: its name, the end of that, a digest. Knows no other places."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import NamedTuple

from mdl.adopting import adopt
from mdl.errors import UsageError
from mdl.model import Model
from mdl.reference import Reference, show
from mdl.resolution import Step, Steps
from mdl.store import Store

SHORTEST_DIGEST = 6  # hex digits of sha256:PREFIX
SHORTEST_PIN = 7  # of a commit

Choose = Callable[[str, Sequence[str]], int | None]  # a question and its answers; which one, or None


class _Candidate(NamedTuple):
    """What a short name may mean: its name from the host on, and that with the version, in small letters."""

    reference: Reference
    name: str
    folder: str


class Cached:
    """The models of a cache, by name.

    Of models that a short name may mean, those at the first of the `hosts` are taken; else `choose` asks a
    person which, if anybody is there.
    """

    def __init__(self, store: Store, hosts: Sequence[str], choose: Choose | None) -> None:
        self._store = store
        self._hosts = hosts
        self._choose = choose
        self._walked: tuple[_Candidate, ...] | None = None

    def at_once(self) -> "Cached":
        """The same for many names, for which the cache is walked once: it is taken to stay as it is."""
        found = copy(self)
        found._walked = tuple(self._names())
        return found

    def find(self, text: str, steps: Steps) -> Model | None:
        """What a string names here. Raises UsageError for what cannot be a name, or may be several models."""
        if text.startswith("sha256:"):
            return self._by_digest(text.removeprefix("sha256:"), steps)
        try:
            reference = Reference.parse(text)
        except UsageError:
            if (found := self._put_there(text)) is None:
                raise
            steps.append(Step("cache", "found", str(found.folder)))
            return found
        found = self._named(reference, text, steps)
        if (
            (found is None or found.folder == self._store.tree)
            and self._walked is None
            and adopt(self._store)
        ):
            found = self._named(reference, text, steps)
        if found is not None:
            where = f"{found.card}, not downloaded" if found.is_absent else found.folder
            steps.append(Step("cache", "found", f"{where}{self._among(found, text)}"))
            return found
        steps.append(Step("cache", "miss", f"no {reference} in {self._store.tree}"))
        return None

    def _put_there(self, text: str) -> Model | None:
        """What somebody put into a folder whose name is none for models, by what `mdl list` calls it."""
        return next((model for model in self._store.models() if str(model.reference) == text), None)

    def _by_digest(self, prefix: str, steps: Steps) -> Model | None:
        if len(prefix) < SHORTEST_DIGEST or not set(prefix) <= set("0123456789abcdef"):
            raise UsageError(
                f"sha256:{show(prefix)} is no digest", hint=f"write {SHORTEST_DIGEST} to 64 hex digits"
            )
        found = [
            (model, file)
            for model in self._store.models()
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

    def _among(self, model: Model, text: str) -> str:
        """Of how many versions this is the newest, where the name left that open."""
        versions = 1 if names_version(text, model) else len(self._store.versions(model.reference))
        return f", the newest of {versions} versions" if versions > 1 else ""

    def _named(self, reference: Reference, text: str, steps: Steps) -> Model | None:
        """What is here under a name: this version, else the newest; else what the name is short for."""
        found = self._version(reference) or self._version(_slashed(reference))
        return found or (self._abbreviated(reference, text, steps) if _has_no_host(text) else None)

    def _version(self, reference: Reference | None) -> Model | None:
        if reference is None:
            return None
        if reference.version is not None and (exact := self._store.find(reference)):
            return exact
        versions = self._store.versions(reference)
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
        for candidate, name, folder in self._names():
            if name.endswith(wanted):
                asked = candidate.with_version(version, reference.pin)
            elif not colon and folder.endswith(wanted.casefold()):
                asked = candidate
            else:
                continue
            if candidate.model not in found and (model := self._version(asked)):
                found[candidate.model] = model
        return self._decided(text, found, steps) if found else None

    def _names(self) -> Iterable[_Candidate]:
        return map(_candidate, self._store.names()) if self._walked is None else self._walked

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
        places = self._hosts
        return next((i for i, place in enumerate(places) if f"{name}/".startswith(f"{place}/")), len(places))


def _candidate(found: tuple[Reference, object]) -> _Candidate:
    reference, _ = found
    name = f"/{reference.host}/{reference.path}"
    return _Candidate(reference, name, f"{name}/{reference.version}".casefold())


def names_version(text: str, model: Model) -> bool:
    """Whether a text that means a model leaves no choice of its version."""
    if text.startswith("sha256:"):
        return True
    try:
        written = Reference.parse(text)
    except UsageError:  # the name of a folder that somebody put there, and of nothing else
        return True
    return written.version is not None or written.pin is not None or text.endswith(f"/{model.version}")


def _listed(names: Sequence[Reference]) -> str:
    return ", ".join(map(str, names))


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


def _is_commit(pin: str | None, model: Model) -> bool:
    return len(pin or "") >= SHORTEST_PIN and model.revision.commit.startswith(pin or "")
