"""Hugging Face: what a repository holds and where its bytes are. Knows no cache.

huggingface_hub speaks the hub's API (addresses, tokens, pages, error codes); its requests are carried by our
own client, which bounds, retries and keeps secrets at home, and the files are fetched by `download`.
"""

import contextlib
import difflib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import httpx2
from huggingface_hub import HfApi, constants, errors, get_token, set_client_factory
from huggingface_hub.hf_api import ExpandModelProperty_T, ModelInfo, ModelSort_T, RepoFile

from mdl.address import Remote, origin_of, shown
from mdl.card import MOST_OFFERS, About, Card, Listed, Offer
from mdl.connection import Trust
from mdl.errors import (
    AuthError,
    DiskError,
    IntegrityError,
    MdlError,
    NetworkError,
    NotFound,
    UnsupportedModel,
    UsageError,
)
from mdl.filename import role
from mdl.model import File, Manifest, Revision, refuse_twins
from mdl.readme import MOST_READ, introduction
from mdl.reference import Reference, show
from mdl.remote import Client, Limits
from mdl.response import Response
from mdl.transports import hubcard
from mdl.variants import Choice, choices, choose, labels

if TYPE_CHECKING:
    from mdl.config import Settings

MAIN = "main"
MOST_ENTRIES = 10_000  # of a listing; models have some hundred files
LARGEST_ANSWER = 32 << 20  # bytes; a page of 1,000 files takes about 400 kB
# Somebody waits for an answer of a few kB: fewer retries than a download of hours gets.
_LIMITS = Limits(retries=3, backoff=0.5, longest_wait=30)


MOST_SHOWN = 12  # names in a hint
MOST_REFS = 1000  # branches and tags of a card
SHORTEST_COMMIT = 7
# What tells the wire whose request it is and whom to trust for it; these headers go no further.
_HUB, _CA = "X-Mdl-Hub", "X-Mdl-Ca"
_SORTS: dict[str, ModelSort_T] = {
    "downloads": "downloads",
    "likes": "likes",
    "modified": "last_modified",
    "created": "created_at",
    "trending": "trending_score",
}
# What is asked for of each entry of a list.
_LISTED: list[ExpandModelProperty_T] = [
    *("downloads", "gated", "gguf", "lastModified", "likes", "pipeline_tag", "private", "siblings", "tags"),
]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNDERSTOOD = ("content-type", "link", "x-error-code", "x-error-message")
_STUMBLES = (ValueError, TypeError, LookupError, AttributeError, RecursionError, httpx2.InvalidURL)
_LOG_IN = "log in again with mdl login huggingface.co, or correct HF_TOKEN"
_SPELLING = "write it as org/name, as in the address of its page"


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of a repository at one commit, as they were listed."""

    revision: Revision
    files: dict[str, RepoFile]
    gated: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        return {name: file.size for name, file in self.files.items() if isinstance(file.size, int)}


class HuggingFace:
    """The models of a hub."""

    def __init__(self, settings: "Settings") -> None:
        self._endpoint = settings.hf_endpoint
        _origin(self._endpoint)
        self._token = _token()
        self._ca = settings.ca
        self._api = _api(settings, self._token)

    def manifest(self, reference: Reference) -> Manifest:
        """What a repository has under this reference, at one commit for all files.

        The version is a quantization, else a file, else a revision. A revision keeps its name as the version,
        and the note says which quantization was chosen there.
        """
        with self._words(reference):
            tree, choice = self._choose(reference)
        files = [_file(name, tree.files[name]) for name in choice.files]
        refuse_twins(files)
        return Manifest(
            reference.with_version(choice.version, reference.pin),
            tuple(files),
            tree.revision,
            source=f"{self._endpoint}/{reference.path}",
            note=choice.note,
        )

    def remote(self, manifest: Manifest, file: File) -> Remote:
        """Where the hub has a file at the commit of the manifest; the token goes to the hub alone."""
        place = f"{manifest.reference.path}/resolve/{manifest.revision.commit}/{quote(file.name)}"
        return self._at(f"{self._endpoint}/{place}")

    def card(self, reference: Reference) -> Card:
        """What a repository offers and what is said of it, for people who have no access to its files too."""
        with self._words(reference):
            tree, choice, problem = self._offered(reference)
            about = self._about(reference, tree)
            branches, tags = self._shown_refs(reference)
        offers = tuple(_offer(one, tree) for one in _choices(tree))
        first = choice.files[0] if choice else None
        return Card(
            reference,
            offers,
            next((offer.version for offer in offers if offer.files and offer.files[0].name == first), None),
            problem,
            about,
            tree.revision,
            branches,
            tags,
            f"{self._endpoint}/{reference.path}",
        )

    def search(self, words: str, author: str, sort: str, most: int) -> list[Listed]:
        """The repositories of GGUF files that have all the words in their names, at most so many.

        `author` is the exact name of their owner, "" for anybody; `sort` is one of `search.SORTS`, the most
        first. Raises AuthError, NetworkError.
        """
        try:
            with self._understood():
                found = self._api.list_models(
                    filter="gguf",
                    search=words or None,
                    author=author or None,
                    sort=_SORTS[sort],
                    limit=most,
                    expand=_LISTED,
                )
                return [one for info in found if (one := _listed(info)) is not None]
        except errors.HfHubHTTPError as error:
            raise self._refused(error.response.status_code) from None

    def _offered(self, reference: Reference) -> tuple["Tree", Choice | None, str]:
        """The files that a reference is about, and what would be taken of them or why nothing would."""
        looked: list[Tree] = []

        def look(reference: Reference, revision: str | None) -> Tree:
            looked.append(self._listed(reference, revision))
            return looked[-1]

        try:
            return *self._choose(reference, look), ""
        except (UnsupportedModel, UsageError) as error:
            return looked[-1], None, error.message

    def _about(self, reference: Reference, tree: "Tree") -> About:
        """What the owner and the hub say. What of it cannot be had is left out: the files count."""
        client = Client(_LIMITS, trust=Trust(self._ca))
        place = f"{self._endpoint}/api/models/{reference.path}/revision/{tree.revision.commit}"
        query = "&".join(f"expand={name}" for name in hubcard.EXPAND.split())
        about = hubcard.about(_json(client.get(self._at(f"{place}?{query}"), LARGEST_ANSWER)))
        about = replace(about, access=self._may_read(reference) if tree.gated else None)
        if about.access is False or "README.md" not in tree.files:
            return about
        readme = f"{self._endpoint}/{reference.path}/resolve/{tree.revision.commit}/README.md"
        with contextlib.suppress(MdlError):
            head = client.peek(self._at(readme), 0, MOST_READ)
            return replace(about, description=introduction(head))
        return about

    def _may_read(self, reference: Reference) -> bool:
        try:
            self._api.auth_check(reference.path)
        except errors.GatedRepoError:
            return False
        return True

    def _shown_refs(self, reference: Reference) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Branches and tags, bounded; none where a hub does not list them."""
        try:
            branches, tags = self._refs(reference)
        except errors.HfHubHTTPError:
            return (), ()
        return tuple(branches[:MOST_REFS]), tuple(tags[:MOST_REFS])

    def _at(self, url: str) -> Remote:
        return Remote(url, {"Authorization": f"Bearer {self._token}"} if self._token else {})

    def _choose(
        self, reference: Reference, look: "Callable[[Reference, str | None], Tree] | None" = None
    ) -> tuple["Tree", Choice]:
        look = look or self._tree
        version = None if reference.version == MAIN else reference.version
        tree = look(reference, reference.pin)
        choice = choose(tree.sizes, version, MAIN)
        if choice is not None:
            return tree, choice
        assert version is not None
        if reference.pin is not None:
            raise self._no_version(reference, tree, revisions=False)
        try:
            tree = look(reference, version)
        except errors.RevisionNotFoundError:
            raise self._no_version(reference, tree, revisions=True) from None
        choice = choose(tree.sizes, None, version)
        assert choice is not None
        note = "" if choice.version == version else f"{choice.version} of {version} was chosen"
        return tree, replace(choice, version=version, note=note)

    def _tree(self, reference: Reference, revision: str | None) -> "Tree":
        """The files at a revision, all of which may be fetched."""
        tree = self._listed(reference, revision)
        if tree.gated:  # anybody may list its files, and only their bytes are refused
            self._api.auth_check(reference.path)
        return tree

    def _listed(self, reference: Reference, revision: str | None) -> "Tree":
        """The files at a revision, all of the one commit that it is now."""
        with self._understood():
            info = self._api.model_info(reference.path, revision=revision, expand=["sha", "gated"])
            commit = info.sha or ""
            if not _COMMIT.fullmatch(commit):
                raise ValueError
            files = self._files(reference, commit)
        return Tree(self._revision(reference, revision, commit), files, bool(info.gated))

    def _files(self, reference: Reference, commit: str) -> dict[str, RepoFile]:
        files: dict[str, RepoFile] = {}
        for entry in self._api.list_repo_tree(reference.path, revision=commit, recursive=True):
            if isinstance(entry, RepoFile):
                if not isinstance(entry.path, str):
                    raise TypeError
                if entry.path in files:
                    raise IntegrityError(f"{reference.model} lists {show(entry.path)} twice")
                files[entry.path] = entry
            if len(files) > MOST_ENTRIES:
                raise UnsupportedModel(f"more than {MOST_ENTRIES:,} files", hint="is it a model?")
        return files

    def _revision(self, reference: Reference, name: str | None, commit: str) -> Revision:
        if name in (None, MAIN):
            return Revision("branch", MAIN, commit)
        if len(name) >= SHORTEST_COMMIT and commit.startswith(name):
            return Revision("commit", "", commit)
        _, tags = self._refs(reference)
        return Revision("tag" if name in tags else "branch", name, commit)

    def _refs(self, reference: Reference) -> tuple[list[str], list[str]]:
        """The names of the branches and tags."""
        with self._understood():
            refs = self._api.list_repo_refs(reference.path)
            return [str(branch.name) for branch in refs.branches], [str(tag.name) for tag in refs.tags]

    # What can go wrong

    @contextlib.contextmanager
    def _words(self, reference: Reference) -> Iterator[None]:
        """Turn what huggingface_hub raises into errors in a person's words."""
        model = reference.model
        try:
            yield
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{model} holds {error.message}", error.hint) from None
        except errors.GatedRepoError:
            raise self._gated(reference) from None
        except errors.DisabledRepoError:
            raise NotFound(f"{model} was disabled by its hub", hint="look for another copy of it") from None
        except errors.RevisionNotFoundError:
            raise self._no_revision(reference) from None
        except errors.RepositoryNotFoundError:
            raise self._no_repository(reference) from None
        except errors.HfHubHTTPError as error:
            raise self._refused(error.response.status_code) from None
        except errors.HFValidationError:
            raise UsageError(f"{model} cannot be the name of a repository", hint=_SPELLING) from None

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        """Tell a server that answers nonsense, at which huggingface_hub stumbles, from a bug of ours."""
        try:
            yield
        except (errors.HfHubHTTPError, errors.HFValidationError):
            raise
        except _STUMBLES:
            raise NetworkError(
                f"{shown(self._endpoint)} answers, but not as a hub does",
                hint="check HF_ENDPOINT and the network",
            ) from None

    def _no_repository(self, reference: Reference) -> NotFound:
        if self._token:
            hint = "check the spelling; the token may not be allowed to see it"
        else:
            hint = "check the spelling; for a private one: mdl login huggingface.co, or set HF_TOKEN"
        return NotFound(f"{reference.model} does not exist or is private", hint)

    def _gated(self, reference: Reference) -> AuthError:
        page = f"{self._endpoint}/{reference.path}"
        if self._token:
            return AuthError(
                f"{reference.model} is gated, and the account of your token has no access",
                hint=f"open {page}, accept its conditions with that account, and wait to be let in",
            )
        return AuthError(
            f"{reference.model} is gated: its owner wants to know who downloads it",
            hint=f"open {page}, accept its conditions, then mdl login huggingface.co, or set HF_TOKEN",
        )

    def _refused(self, status: int) -> MdlError:
        if status in (401, 403):
            what = "refuses your token" if self._token else "wants a token"
            return AuthError(f"{shown(self._endpoint)} {what} ({status})", _LOG_IN)
        return NetworkError(f"{shown(self._endpoint)} answered {status}", hint="check HF_ENDPOINT")

    def _no_revision(self, reference: Reference) -> NotFound:
        return NotFound(
            f"{reference.model} has no revision {show(reference.pin or MAIN)}",
            hint=f"there are: {', '.join(self._revisions(reference, reference.pin or ''))}",
        )

    def _no_version(self, reference: Reference, tree: "Tree", *, revisions: bool) -> NotFound:
        version = reference.version or ""
        there = _nearest(version, labels(tree.files))
        hint = f"versions: {', '.join(there)}" if there else "it has one version: leave it out"
        if revisions:
            hint += f"; revisions: {', '.join(self._revisions(reference, version))}"
        place = f"{reference.model}@{reference.pin}" if reference.pin else str(reference.model)
        return NotFound(f"{place} has no version {show(version)}", hint)

    def _revisions(self, reference: Reference, wanted: str) -> list[str]:
        branches, tags = self._refs(reference)
        return _nearest(wanted, [*branches, *tags])


def _choices(tree: Tree) -> list[Choice]:
    try:
        return choices(tree.sizes, tree.revision.name or MAIN, MOST_OFFERS)
    except UnsupportedModel:  # what it holds instead is the card's problem
        return []


def _listed(info: ModelInfo) -> Listed | None:
    """An entry of a hub's list; None where its name is none."""
    try:
        reference = _repository(info.id)
    except UsageError:
        return None
    names = [file.rfilename for file in (info.siblings or [])[:MOST_ENTRIES]]
    try:
        found = choices(dict.fromkeys(names, 0), MAIN, MOST_OFFERS)
    except UnsupportedModel:
        found = []
    modified = info.last_modified.isoformat() if info.last_modified else None
    about = hubcard.about({**vars(info), "lastModified": modified})
    return Listed(reference, about, tuple(choice.version for choice in found if not choice.problem))


def _repository(name: object) -> Reference:
    if not isinstance(name, str):
        raise TypeError
    return Reference.parse(f"hf://{name}")


def _offer(choice: Choice, tree: Tree) -> Offer:
    """A version with its files; without them where one has a name that is refused."""
    try:
        return Offer(
            choice.version, tuple(_file(name, tree.files[name]) for name in choice.files), choice.problem
        )
    except IntegrityError as error:
        return Offer(choice.version, (), error.message)


def _json(response: Response) -> dict[str, Any]:
    """The object that a hub answered, empty where it is none."""
    try:
        document = json.loads(response.body) if response.status == 200 else {}
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _nearest(wanted: str, names: list[str]) -> list[str]:
    """The names, bounded and inert, those that are spelled alike first."""
    close = difflib.get_close_matches(wanted, names, n=3)
    return [show(name)[1:-1] for name in dict.fromkeys([*close, *names])][:MOST_SHOWN]


def _file(name: str, entry: RepoFile) -> File:
    """A listed file. The id of an LFS file is that of its pointer, so only its sha256 counts."""
    if entry.lfs is not None:
        return File(name, entry.lfs.size, sha256=entry.lfs.sha256, role=role(name))
    return File(name, entry.size, git_id=entry.blob_id, role=role(name))


def _origin(endpoint: str) -> tuple[str, str, int]:
    """Where the hub is; raises UsageError for no address, and for one with secrets: records would keep it."""
    try:
        if not set("@?#") & set(endpoint):
            return origin_of(endpoint)
    except ValueError:
        pass
    raise UsageError("HF_ENDPOINT is not the address of a hub", hint="write it as https://host, and no more")


def _api(settings: "Settings", token: str | None) -> HfApi:
    told = {_HUB: settings.hf_endpoint, _CA: quote(settings.ca)}
    return HfApi(settings.hf_endpoint, token or False, headers=told)


def keep_token(token: str, settings: "Settings") -> str:
    """Store a token where `hf auth login` does, once the hub says whose it is; that name. Raises AuthError,
    NetworkError, DiskError."""
    _origin(settings.hf_endpoint)
    _refuse_odd(token)
    api = _api(settings, token)
    try:
        name = str(api.whoami()["name"])
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise AuthError("Hugging Face does not know this token", hint="copy it again") from None
        raise NetworkError(
            f"{shown(settings.hf_endpoint)} cannot tell whose token it is", "try again"
        ) from None
    except _STUMBLES:
        raise NetworkError(f"{shown(settings.hf_endpoint)} answers, but not as a hub does") from None
    path = _token_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.unlink(missing_ok=True)
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token)
        beside.replace(path)
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror}", hint="check its permissions") from None
    return show(name)[1:-1]


def forget_token() -> bool:
    """Remove the stored token; whether there was one. Raises DiskError."""
    path = _token_file()
    there = path.exists()
    path.unlink(missing_ok=True)
    return there


def _token_file() -> Path:
    """Raises DiskError for what is none, such as /dev/null: it would not be that any more."""
    path = Path(constants.HF_TOKEN_PATH)
    if path.exists() and not path.is_file():
        raise DiskError(f"{path} is no file to write to", hint="HF_TOKEN_PATH names another")
    return path


def token_source() -> str:
    """Where the token is that is used: a file, or HF_TOKEN; empty if there is none. Raises AuthError."""
    token = _token()
    if token is None:
        return ""
    path = Path(constants.HF_TOKEN_PATH)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_text().strip() == token:
            return str(path)
    return "HF_TOKEN"


def _token() -> str | None:
    """The user's token: HF_TOKEN, or what `hf auth login` has stored."""
    try:
        token: str | None = get_token()
    except (OSError, UnicodeDecodeError, errors.OIDCError, httpx2.HTTPError) as error:
        raise AuthError(
            f"the Hugging Face token cannot be read ({type(error).__name__})", hint=_LOG_IN
        ) from None
    _refuse_odd(token or "")
    return token


def _refuse_odd(token: str) -> None:
    if not (token.isascii() and token.isprintable()):
        raise AuthError("the Hugging Face token has characters that no token has", hint=_LOG_IN)


class _Wire(httpx2.BaseTransport):
    """Carries the requests of huggingface_hub. Each names its hub; nobody else is asked, whatever a redirect
    or a link to the next page says, since every request may bring the token."""

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}
        self._plain = httpx2.HTTPTransport()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        url = str(request.url)
        if origin_of(url) != origin_of(request.headers.get(_HUB, constants.ENDPOINT)):
            raise NetworkError(f"the hub sends on to {shown(url)}, which is none", hint="check HF_ENDPOINT")
        if request.method != "GET":  # an expiring login is renewed by POST
            return self._plain.handle_request(request)
        headers = {
            name: request.headers[name] for name in ("Authorization", "Accept") if name in request.headers
        }
        answer = self._client(unquote(request.headers.get(_CA, ""))).get(Remote(url, headers), LARGEST_ANSWER)
        if answer.body.lstrip()[:1] == b"<" and answer.status < 400:
            raise NetworkError(
                f"{shown(answer.url)} answered with a web page",
                hint="does this network want you to log in first?",
            )
        kept = {name: value for name, value in answer.headers.items() if name in _UNDERSTOOD}
        if answer.body.strip() == b"[]":
            kept.pop("link", None)  # empty pages could go on for ever
        return httpx2.Response(answer.status, headers=kept, content=answer.body, request=request)

    def _client(self, ca: str) -> Client:
        if ca not in self._clients:
            self._clients[ca] = Client(_LIMITS, trust=Trust(ca))
        return self._clients[ca]


_WIRE = _Wire()
constants.HF_HUB_DISABLE_TELEMETRY = True  # else the first request asks an address of its own
logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # what matters is raised
set_client_factory(lambda: httpx2.Client(transport=_WIRE, timeout=_LIMITS.read_timeout))
