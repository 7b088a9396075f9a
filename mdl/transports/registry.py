"""The HTTP API of registries: manifests, tags and small contents of a repository. Knows no kinds of artifact.

https://github.com/opencontainers/distribution-spec. Large contents are fetched by `download`, from where
`remote` says they are.
"""

import contextlib
import difflib
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

from mdl.address import Remote, is_loopback, origin_of, shown
from mdl.connection import Trust
from mdl.credentials import Credentials
from mdl.errors import AuthError, IntegrityError, MdlError, NetworkError, NotFound, UsageError
from mdl.reference import Reference, show
from mdl.remote import Client, Limits
from mdl.response import Response
from mdl.transports.token import WIRE, Session, unknown
from mdl.trouble import Untrusted

if TYPE_CHECKING:
    from mdl.config import Settings

MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
LARGEST_MANIFEST = 4 << 20  # bytes; what the specification asks registries to take
LARGEST_CONTENT = 16 << 20  # bytes of a configuration, template or licence
LARGEST_ERROR = 64 << 10  # bytes of what comes in place of a content
MOST_TAGS = 10_000
MOST_PAGES = 100  # of tags; some registries send fewer at a time than they are asked for
MOST_SHOWN = 12  # names in a hint
DEEPEST = 32  # levels of a document
# Somebody waits for an answer of a few kB: fewer retries than a download of hours gets.
_LIMITS = Limits(retries=3, backoff=0.5, longest_wait=30)
_PROBE = Limits(retries=0, connect_timeout=5)  # only for registries that are near
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest as it came: its digest (`sha256:…`) is that of its bytes, `size` their number."""

    media_type: str
    digest: str
    size: int
    content: Mapping[str, Any] = field(repr=False)


class Registry:
    """One repository. `base` is the address of its registry where that is not told by the host's name; then
    it is asked with the credentials for that address and no others."""

    def __init__(self, reference: Reference, settings: "Settings", base: str = "") -> None:
        self._reference = reference.model
        self._settings = settings
        self._client = Client(_LIMITS, trust=_trust(settings))
        self._given = base.rstrip("/")
        self._found = ""
        self._lock = threading.Lock()
        self._host = urlsplit(self._given).netloc or reference.host
        self._session = Session(self._host, reference.path, settings, self._client)

    def document(self, name: str) -> Document:
        """The manifest of a tag or digest, its digest checked.

        Raises NotFound with the tags that are there, AuthError, NetworkError, IntegrityError.
        """
        if not (_is_tag(name) or _DIGEST.fullmatch(name)):
            raise UsageError(
                f"{show(name)} cannot be a tag", hint="letters, digits, '.', '_' and '-', at most 128"
            )
        answer = self._ask(f"manifests/{name}", LARGEST_MANIFEST, ", ".join(MANIFESTS))
        if answer.status == 404:
            raise self._missing(name)
        self._require(answer)
        digest = f"sha256:{hashlib.sha256(answer.body).hexdigest()}"
        for promised in (
            name if name.startswith("sha256:") else None,
            answer.headers.get("docker-content-digest"),
        ):
            if promised and _DIGEST.fullmatch(promised) and promised != digest:
                raise IntegrityError(
                    f"the manifest of {self._reference} is not what was promised: {promised[:19]}… was, "
                    f"{digest[:19]}… came",
                    hint="the registry or something before it is at fault: try again later",
                )
        content = parse(answer.body, f"the manifest of {self._reference}")
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        return Document(str(content.get("mediaType") or kind), digest, len(answer.body), content)

    def blob(self, digest: str, size: int) -> bytes:
        """A small content, its digest and size checked. Raises as `document` does."""
        if not _DIGEST.fullmatch(digest) or not 0 <= size <= LARGEST_CONTENT:
            raise IntegrityError(
                f"{self._reference} names an impossible content: {show(digest)}, {size} bytes"
            )
        answer = self._ask(f"blobs/{digest}", max(size, LARGEST_ERROR))
        if answer.status == 404:
            raise NotFound(
                f"{self._reference} has no content {digest[:19]}…, which its manifest names",
                hint="it was not pushed in full, or was partly deleted: ask its owner",
            )
        self._require(answer)
        if len(answer.body) != size or f"sha256:{hashlib.sha256(answer.body).hexdigest()}" != digest:
            raise IntegrityError(
                f"{digest[:19]}… of {self._reference} is not what was promised",
                hint="the registry or something before it is at fault: try again later",
            )
        return answer.body

    def remote(self, digest: str) -> Remote:
        """Where a large content is, for the downloader; its token is renewed when it expires on the way."""
        if not _DIGEST.fullmatch(digest):
            raise IntegrityError(f"{self._reference} names an impossible content: {show(digest)}")
        return Remote(self._address(f"blobs/{digest}"), authority=self._session)

    def tags(self) -> list[str]:
        """The names of all versions, in the registry's order. Raises as `document` does."""
        found: dict[str, None] = {}
        url = self._address("tags/list?n=1000")
        for _ in range(MOST_PAGES):
            answer = self._get(url, LARGEST_MANIFEST, "application/json")
            self._require(answer)
            before = len(found)
            found |= dict.fromkeys(_tags(parse(answer.body, f"the list of tags of {self._reference}")))
            url = _next_page(url, answer.headers.get("link", ""))
            if not url or len(found) == before or len(found) >= MOST_TAGS:
                break
        return list(found)[:MOST_TAGS]

    # Inside

    def _ask(self, place: str, most: int, accept: str = "*/*") -> Response:
        return self._get(self._address(place), most, accept)

    def _get(self, url: str, most: int, accept: str) -> Response:
        return self._client.get(Remote(url, {"Accept": accept}, self._session), most)

    def _address(self, place: str) -> str:
        return f"{self.base}/v2/{quote(self._reference.path)}/{place}"

    @property
    def base(self) -> str:
        """Scheme and host of the registry's API."""
        with self._lock:
            self._found = self._found or self._given or address(self._reference.host, self._settings)
            return self._found

    def _require(self, answer: Response) -> None:
        """Raise what an answer that is no success means."""
        if answer.status == 200:
            return
        told = _told(answer)
        if answer.status in (401, 403):
            raise self._denied(answer.status, told)
        if answer.status == 404:
            raise NotFound(f"{self._host} has no {self._reference.path}{told}", hint="check the spelling")
        raise NetworkError(f"{shown(answer.url)} answered {answer.status}{told}", hint="try again later")

    def _denied(self, status: int, told: str) -> AuthError:
        host, path = self._host, self._reference.path
        told += "".join(f"; {trouble}" for trouble in self._session.troubles)
        if self._session.is_known:
            return AuthError(
                f"{host} does not let you have {path} ({status}){told}",
                hint=f"check the spelling and your rights there, or log in anew: mdl login {host}",
            )
        return AuthError(
            f"{host} wants to know who asks for {path}, or has none ({status}){told}",
            hint=f"check the spelling; for a private one: mdl login {host}",
        )

    def _missing(self, name: str) -> MdlError:
        """A repository may be there and the tag not; asking for its tags tells."""
        try:
            tags = self.tags()
        except MdlError as failure:
            return failure
        wanted = f"tag {show(name)}" if not name.startswith("sha256:") else f"content {name[:19]}…"
        near = difflib.get_close_matches(name, tags, n=3)
        names = ", ".join([*dict.fromkeys([*near, *tags])][:MOST_SHOWN])
        return NotFound(
            f"{self._reference} has no {wanted}",
            hint=f"there are: {names}" if names else "it has no tags at all",
        )


def check(host: str, credentials: Credentials, settings: "Settings") -> None:
    """Raise AuthError unless a registry takes these credentials, UsageError if it wants none; NetworkError if
    it cannot be asked."""
    client = Client(_LIMITS, trust=_trust(settings))
    session = Session(host, "", settings, client, credentials)
    answer = client.get(Remote(f"{address(host, settings)}/v2/", authority=session), LARGEST_MANIFEST)
    if answer.status in (401, 403):
        raise unknown(host)
    if answer.status != 200:
        raise NetworkError(f"{host} answers as no registry does ({answer.status})", hint="check the host")
    if not session.was_asked:
        raise UsageError(f"{host} asks nobody who they are", hint="there is no need to log in")


def address(host: str, settings: "Settings") -> str:
    """Scheme and host of a registry's API: https, but for one on this machine or that may be insecure, which
    are asked by what they speak."""
    wire = WIRE.get(host, host)
    if not is_loopback(host) and host not in settings.insecure:
        return f"https://{wire}"
    order = ("http", "https") if is_loopback(host) and not settings.ca else ("https", "http")
    with contextlib.closing(Client(_PROBE, trust=_trust(settings))) as client:
        spoken = (f"{scheme}://{wire}" for scheme in order if _speaks(f"{scheme}://{wire}", client))
        return next(spoken, f"{order[0]}://{wire}")


def _trust(settings: "Settings") -> Trust:
    return Trust(settings.ca, frozenset(settings.insecure))


def _speaks(base: str, client: Client) -> bool:
    """Whether a server speaks http or https, as the address says."""
    try:
        answer = client.get(Remote(f"{base}/v2/"), LARGEST_ERROR)
    except Untrusted:
        return True  # whoever asks next is told
    except NetworkError:
        return False
    # 400 is what a server that speaks TLS answers to plain text; some send on to where they do.
    return answer.status != 400 and answer.url.startswith(f"{base}/")


def parse(body: bytes, what: str) -> dict[str, Any]:
    """A JSON object that is not too deep, each name in it once. Raises NetworkError."""
    try:
        content = json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or _depth(content) > DEEPEST:
        raise NetworkError(f"{what} cannot be understood", hint="is this a registry?")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name stands there twice")
    return dict(pairs)


def _refuse(text: str) -> None:
    raise ValueError(text)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= DEEPEST:
        depth += 1
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level = [item for items in inner for item in items]
    return depth


def _tags(content: Mapping[str, Any]) -> list[str]:
    names = content.get("tags")  # null where there are none
    return (
        [name for name in names if isinstance(name, str) and _is_tag(name)] if isinstance(names, list) else []
    )


def _is_tag(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", name) is not None


def _next_page(url: str, link: str) -> str:
    """The next page of a list, where it is one of the same server."""
    match = re.match(r"\s*<([^>]{1,2048})>\s*;[^,]*rel=\"?next\"?", link)
    try:
        following = urljoin(url, match[1]) if match else ""
        return following if following and origin_of(following) == origin_of(url) else ""
    except ValueError:
        return ""


def _told(answer: Response) -> str:
    """What the registry says of an error, if it does so as the specification asks."""
    try:
        first = json.loads(answer.body)["errors"][0]
        text = str(first.get("message") or first.get("code") or "")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    return f": {show(text, 120)[1:-1]}" if text else ""
