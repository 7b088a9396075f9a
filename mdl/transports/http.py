"""A GGUF file at a web address. Knows no cache, and no credentials: none are sent."""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote

from mdl.address import Remote, shown
from mdl.card import Card, of_manifest
from mdl.connection import Trust
from mdl.errors import AuthError, MdlError, NetworkError, UnsupportedModel
from mdl.filename import role, split_of
from mdl.model import File, Manifest, Revision
from mdl.reference import ONLY, Reference
from mdl.remote import Client, Limits
from mdl.response import Answer

if TYPE_CHECKING:
    from mdl.config import Settings

_MAGIC = b"GGUF"
_MOST_PARTS = 1000
_LIMITS = Limits(retries=3, backoff=0.5, longest_wait=30)  # somebody waits for a few bytes


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a server tells of a file before it is fetched."""

    size: int | None
    sha256: str | None
    validator: str


class Http:
    """Files at http and https addresses; of a split model, all parts."""

    def __init__(self, settings: "Settings") -> None:
        self._client = Client(_LIMITS, trust=Trust(settings.ca, frozenset(settings.insecure)))

    def manifest(self, reference: Reference) -> Manifest:
        """The file, or all parts of a split one, with the sizes that the server tells.

        Raises what `Transport` says; UnsupportedModel also when the content does not begin as GGUF does.
        """
        seen = {path: self._look(_remote(reference, path)) for path in _parts(reference.path)}
        names = {path: PurePosixPath(path).name for path in seen}
        files = tuple(
            File(names[path], found.size, found.sha256, role=role(names[path]))
            for path, found in seen.items()
        )
        revision = _revision([found.validator for found in seen.values()])
        return Manifest(reference, files, revision, source=str(reference))

    def card(self, reference: Reference) -> Card:
        """The file and its size: an address says no more of what lies there."""
        return of_manifest(self.manifest(reference), ONLY)

    def remote(self, manifest: Manifest, file: File) -> Remote:
        """The address of one part; it lies beside the one that was named."""
        path = str(PurePosixPath(manifest.reference.path).with_name(file.name))
        return _remote(manifest.reference, path)

    def _look(self, remote: Remote) -> _Seen:
        def once() -> _Seen:
            answer = self._client.open(remote, {"Range": f"bytes=0-{len(_MAGIC) - 1}"})
            try:
                return _seen(answer)
            finally:
                answer.close()

        try:
            return self._client.patiently(once)
        except AuthError as error:
            raise AuthError(
                error.message, hint="mdl sends no credentials there: fetch it otherwise, and name the file"
            ) from None


def _parts(path: str) -> list[str]:
    """The paths of all parts of a split file, of any other file its own."""
    place = split_of(PurePosixPath(path).name)
    if place is None:
        return [path]
    stem, _, count = place
    if count > _MOST_PARTS:
        raise UnsupportedModel(f"a model in {count} parts is none", hint="check the address")
    names = [f"{stem}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    return [str(PurePosixPath(path).with_name(name)) for name in names]


def _remote(reference: Reference, path: str) -> Remote:
    """The address of a path on the reference's host. A query stays: it may be what opens the door."""
    query = f"?{reference.query}" if reference.query else ""
    return Remote(f"{reference.scheme}://{reference.host}/{quote(path)}{query}")


def _seen(answer: Answer) -> _Seen:
    answer.refuse_coding()
    head = b""
    while answer.status != 416 and len(head) < len(_MAGIC) and (data := answer.read(len(_MAGIC) - len(head))):
        head += data
    if head != _MAGIC:
        raise _no_model(answer, head)
    size = answer.extent[2] if answer.status == 206 and answer.extent else answer.length
    return _Seen(size, _sha256(answer.headers), answer.validator or "")


def _no_model(answer: Answer, head: bytes) -> MdlError:
    page = answer.headers.get("content-type", "").lower().startswith("text/html")
    if page or head.lstrip()[:1] == b"<":
        return NetworkError(
            f"{shown(answer.url)} answered with a web page instead of the file",
            hint="check the address, and whether this network wants you to log in first",
        )
    return UnsupportedModel(f"{shown(answer.url)} is no GGUF file", hint="check the address")


def _sha256(headers: Mapping[str, str]) -> str | None:
    """The digest of the whole file, if the server tells one: as Hugging Face does, or RFC 9530 or 3230."""
    linked = headers.get("x-linked-etag", "").strip().strip('"')
    if re.fullmatch(r"[0-9a-f]{64}", linked):
        return linked
    for name, form in (("repr-digest", r"sha-256=:([^:]+):"), ("digest", r"sha-256=([^,\s]+)")):
        if match := re.search(form, headers.get(name, ""), re.IGNORECASE):
            try:
                digest = base64.b64decode(match[1], validate=True)
            except binascii.Error:
                continue
            if len(digest) == hashlib.sha256().digest_size:
                return digest.hex()
    return None


def _revision(validators: list[str]) -> Revision:
    """Which state of the files this is; nothing where the server does not tell them apart."""
    if not all(validators):
        return Revision()
    alone = validators[0].strip('"')
    if len(validators) == 1 and re.fullmatch(r"[!-~]{1,128}", alone):
        return Revision("etag", "", alone)
    return Revision("etag", "", hashlib.sha256("\n".join(validators).encode()).hexdigest())
