"""Where bytes are: an address, and the secrets that go to its origin and to nobody else. Asks nothing."""

import re
import urllib.parse
import urllib.request
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mdl.errors import UsageError


class Authority(Protocol):
    """Who speaks for us at one server. Safe to use from several threads."""

    def headers(self) -> Mapping[str, str]:
        """What goes along with a request as things are now."""

    def renew(self, used: Mapping[str, str], challenge: str) -> Mapping[str, str] | None:
        """Better ones after a 401 to `used`, by its WWW-Authenticate; None where there are none."""


@dataclass(frozen=True, slots=True, repr=False)
class Remote:
    """Where bytes are. `headers` may hold secrets: they are sent to the origin of `url` only, and so are
    those of `authority`, which are renewed once when the server refuses them."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    authority: Authority | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        try:
            origin_of(self.url)
        except ValueError as error:
            raise UsageError(f"not an address: {error}", hint="write it as https://host/path") from None

    def __repr__(self) -> str:
        return f"Remote({shown(self.url)!r})"


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an http or https URL. Raises ValueError."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"only http and https can be asked, not {parts.scheme[:20]!r}")
    if not parts.hostname or not re.fullmatch(r"[^\x00-\x20\x7f]+", url):
        raise ValueError("it has no host, or spaces or control characters")
    if "\\" in parts.netloc:  # where urllib3 ends the host, so that it would ask another one than this
        raise ValueError("its host has a backslash")
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]


def is_among(url: str, hosts: Collection[str]) -> bool:
    """Whether the host of an address, with its port or without, is one of these."""
    netloc = urllib.parse.urlsplit(url).netloc.rpartition("@")[2].lower()
    return netloc in hosts or origin_of(url)[1] in hosts


def proxy_for(url: str, proxies: Mapping[str, str]) -> str | None:
    """The address of the proxy to ask for a URL; `proxies` as Client has them."""
    scheme, host, port = origin_of(url)
    if urllib.request.proxy_bypass_environment(f"{host}:{port}", proxies):  # type: ignore[attr-defined]
        return None
    return proxies.get(scheme) or proxies.get("all")


def shown(url: str) -> str:
    """`url` as messages may show it: without user, password, query and fragment, where secrets are."""
    scheme, host, port = origin_of(url)
    number = "" if port in (80, 443) else f":{port}"
    path = urllib.parse.quote(urllib.parse.urlsplit(url).path, safe="/%:@~!$&'()*+,;=")
    return f"{scheme}://{f'[{host}]' if ':' in host else host}{number}{path[:300]}"


def without_user(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def is_loopback(host: str) -> bool:
    """Whether a host, with its port or without, is this machine."""
    import ipaddress

    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
