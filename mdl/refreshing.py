"""A newer copy of a file that ships with mdl: from an address, or from an artifact of a registry. Knows not
what such files hold.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from mdl.address import Remote, is_among, is_loopback
from mdl.connection import Trust
from mdl.errors import OFFLINE, DiskError, IntegrityError, NotFound, UnsupportedModel, UsageError
from mdl.reference import ONLY, Reference, show
from mdl.remote import Client, Limits
from mdl.transports import artifact
from mdl.transports.registry import Registry
from mdl.trouble import refusal

if TYPE_CHECKING:
    from mdl.settings import Settings

T = TypeVar("T")
_LIMITS = Limits(retries=3, backoff=0.5, longest_wait=30)  # somebody waits
_HINT = "write https://host/file, or oci://host/path:tag"


def fetch(address: str, settings: "Settings", title: str, most: int) -> bytes:
    """What lies at an https address, or in the layer of an artifact that has this title or is the only one.

    `most` is how many bytes it may have. Plain http is for this machine, and for hosts that the settings call
    insecure. Raises UsageError for other addresses, NotFound, AuthError, NetworkError, IntegrityError.
    """
    if settings.offline:
        raise NotFound(
            f"{_named(address)} cannot be fetched: mdl is offline",
            hint=OFFLINE,
        )
    if address.startswith(("oci://", "docker://")):
        return _from_registry(Reference.parse(address), settings, title, most)
    if not _is_allowed(address, settings):
        raise UsageError(f"{_named(address)} is no address to fetch from", _HINT)
    answer = Client(_LIMITS, trust=_trust(settings)).get(Remote(address), most)
    if answer.status != 200:
        raise refusal(answer.status, answer.url)
    return answer.body


def refresh(address: str, settings: "Settings", path: Path, most: int, check: Callable[[bytes], T]) -> T:
    """Put what lies at an address in the place of a file, if `check` raises no UsageError; what it returns.

    The layer of an artifact has the name of the file. Raises what `fetch` does, IntegrityError for what
    cannot be used, DiskError.
    """
    data = fetch(address, settings, path.name, most)
    try:
        checked = check(data)
    except UsageError as failure:
        raise IntegrityError(
            f"{_named(address)} cannot be used: {failure.message}", hint="what was there before stays"
        ) from None
    keep(path, data)
    return checked


def keep(path: Path, data: bytes) -> None:
    """Put a file in the place of what was there, in one step. Raises DiskError."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror}", hint="check its permissions") from None


def _from_registry(reference: Reference, settings: "Settings", title: str, most: int) -> bytes:
    registry = Registry(reference, settings)
    document = registry.document(reference.pin or reference.version or ONLY)
    try:
        layer = artifact.titled(document.content, title)
    except (UnsupportedModel, IntegrityError) as failure:
        raise artifact.within(reference, failure) from None
    if layer.size > most:
        raise IntegrityError(f"{title} of {reference} has more than {most:,} bytes", "is it the right one?")
    return registry.blob(f"sha256:{layer.digest}", layer.size)


def _is_allowed(address: str, settings: "Settings") -> bool:
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
        if not host or "@" in parts.netloc:  # no password would be sent
            return False
        plain = is_loopback(host) or is_among(address, settings.insecure)
        return address.startswith("https://") or (address.startswith("http://") and plain)
    except ValueError:
        return False


def _named(address: str) -> str:
    """Without a user and a query, which may hold a secret."""
    return show(re.sub(r"//[^/]*@", "//", address.partition("?")[0]), 200)


def _trust(settings: "Settings") -> Trust:
    return Trust(settings.ca, frozenset(settings.insecure))
