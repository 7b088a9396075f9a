"""Connections to servers: whose certificates are believed, by which proxy, and how others break them."""

import contextlib
import socket
import ssl
import threading
import time
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mdl.address import origin_of, without_user
from mdl.errors import UsageError
from mdl.trouble import Stopped, words

if TYPE_CHECKING:
    from urllib3 import PoolManager

_AHEAD = 8  # the part of a second that a server may send ahead of a limited rate
_BUFFER = 8 << 10, 128 << 10  # bytes of a socket: the least to ask for, and what systems begin with


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom to believe: `ca` is a file of authorities besides the system's; `insecure` are the hosts (with the
    port, if there is one) whose certificates are not looked at."""

    ca: str = ""
    insecure: frozenset[str] = frozenset()


SYSTEM = Trust()
Busy = dict[int, tuple[socket.socket, float]]  # by thread: what it reads from, and since when


def tls(ca: str, insecure: bool) -> ssl.SSLContext:
    """Which certificates are believed; `ca` and `insecure` as Trust has them. Raises UsageError."""
    context = ssl.create_default_context()  # honours SSL_CERT_FILE and SSL_CERT_DIR
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca:
        try:
            context.load_verify_locations(ca)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"{ca} holds no certificate authorities ({words(error)})", "check --ca"
            ) from None
    return context


def proxy_manager(proxy: str, options: dict[str, Any]) -> "PoolManager":
    import urllib3

    address = proxy if "://" in proxy else f"http://{proxy}"
    try:
        origin_of(address)
    except ValueError as error:
        raise UsageError(f"the proxy's address cannot be used: {error}", hint="check HTTPS_PROXY") from None
    parts = urllib.parse.urlsplit(address)
    headers = {}
    if parts.username is not None:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers = urllib3.make_headers(proxy_basic_auth=pair)
    return urllib3.ProxyManager(without_user(address), proxy_headers=headers, **options)


def socket_options(rate: int) -> list[tuple[int, int, int]]:
    """A limited rate leaves little room for what the server sends ahead; a fast one is left to the system,
    which gives a connection room by how fast it is read."""
    from urllib3.connection import HTTPConnection

    options = list(HTTPConnection.default_socket_options)
    if rate and rate / _AHEAD < _BUFFER[1]:
        options.append((socket.SOL_SOCKET, socket.SO_RCVBUF, max(rate // _AHEAD, _BUFFER[0])))
    return options


def watched_pools(busy: Busy, stopping: threading.Event, timeout: float) -> dict[str, Any]:
    """Pools whose connections can be broken by another thread, and give up on headers that drip.

    urllib3 keeps the connections of a pool until the pool goes: they must not keep what has the pool.
    """
    import urllib3
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class Watched:
        def getresponse(self) -> Any:
            connection: socket.socket = self.sock  # type: ignore[attr-defined]
            busy[threading.get_ident()] = connection, time.monotonic()
            if stopping.is_set():
                raise Stopped
            cut = threading.Timer(timeout, shut, [connection])
            cut.daemon = True
            cut.start()
            try:
                return super().getresponse()  # type: ignore[misc]
            finally:
                cut.cancel()

    class Plain(Watched, HTTPConnection):
        pass

    class Secure(Watched, HTTPSConnection):
        pass

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


def shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError, TypeError):  # closed already; or TLS in TLS, which is no socket
        # The base class's method: SSLSocket's own forgets its TLS state, and the reader would then be given
        # what is left in the kernel's buffer as if it were plain text.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
