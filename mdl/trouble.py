"""What goes wrong on the way to a server, as errors that name the cause in words, and whether it may pass."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from mdl.address import origin_of, shown
from mdl.errors import AuthError, MdlError, NetworkError, NotFound

AT_FAULT = "the server or something before it is at fault: try again later, or another source"
# What OpenSSL, by its version, calls an answer that is no TLS at all.
_NO_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"}
)


class Transient(NetworkError):
    """A failure that may pass; `wait` is how many seconds the server asked for.

    `refusal`: it may have been one connection too many. `news`: that nobody may ask the server now is new.
    `crowded` is set by who knows that the server is busy with others of ours.
    """

    def __init__(
        self,
        message: str,
        hint: str = "",
        wait: float | None = None,
        *,
        refusal: bool = False,
        news: bool = False,
    ) -> None:
        super().__init__(message, hint or "check the connection and run it again: it goes on from here")
        self.wait, self.refusal, self.news = wait, refusal, news
        self.crowded = False


class Untrusted(NetworkError):
    """The server's certificate is not one to believe."""


class Stopped(Exception):
    """The client was stopped while it was at work."""


def refusal(status: int, url: str, elsewhere: bool = False) -> MdlError:
    """The error for an answer of that status; `elsewhere` if a redirect led to another origin."""
    where = shown(url)
    if status in (401, 403) and elsewhere:  # a signed address that ran out: the origin gives a new one
        return Transient(f"{where} answered {status} (the address may have expired)")
    if status in (401, 403):
        return AuthError(f"{where} wants other credentials ({status})", hint="check the token and its rights")
    if status in (404, 410):
        return NotFound(f"{where} does not exist ({status})", hint="check the spelling")
    if status == 407:
        return NetworkError("the proxy wants credentials (407)", hint="put them into the proxy's address")
    return NetworkError(f"{where} answered {status}", hint="check the address")


@contextmanager
def network_errors(url: str, known: bool = True) -> Iterator[None]:
    """Turn what urllib3 and sockets raise into errors that name the cause in words. A host is `known` if it
    has answered before."""
    import urllib3

    try:
        yield
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _translated(error, origin_of(url)[1], known) from error


def _translated(error: BaseException, host: str, known: bool) -> NetworkError:
    from urllib3 import exceptions

    cause = _deepest(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        reason = cause.verify_message or "the certificate cannot be verified"
        return Untrusted(
            f"{host} is not trusted: {reason}",
            hint="if it is your own authority, name its file: --ca FILE, or SSL_CERT_FILE",
        )
    if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
        return NetworkError(
            f"{host} does not speak https", hint="a registry may be asked by http with --insecure"
        )
    if isinstance(error, exceptions.ProxyError):
        return _proxy_error(cause)
    if isinstance(error, exceptions.NameResolutionError):
        return _unresolved(host, cause, known)
    if isinstance(cause, ConnectionRefusedError):  # asked first: urllib3 counts it among the timeouts
        return Transient(f"{host} refused the connection", refusal=True)
    if isinstance(error, TimeoutError | exceptions.TimeoutError):
        return Transient(f"{host} did not answer in time", refusal=True)
    return Transient(f"the connection to {host} broke ({words(cause)})", refusal=True)


def _unresolved(host: str, cause: BaseException, known: bool) -> NetworkError:
    unknown = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
    if unknown and not known:
        message = f"{host} is not known to the name server"
        return NetworkError(message, hint="check the network, and the spelling")
    return Transient(f"the name {host} cannot be looked up")


def _proxy_error(cause: BaseException) -> NetworkError:
    if " 407 " in str(cause):
        return NetworkError("the proxy wants credentials (407)", hint="put them into the proxy's address")
    return Transient(f"the proxy failed ({words(cause)})", hint="check HTTPS_PROXY, HTTP_PROXY and NO_PROXY")


def _deepest(error: BaseException) -> BaseException:
    """The error that urllib3 wrapped: it keeps it as cause, context, reason or argument."""
    for _ in range(8):
        inner = [error.__cause__, getattr(error, "original_error", None), getattr(error, "reason", None)]
        inner += [*error.args, error.__context__]
        found = next((one for one in inner if isinstance(one, Exception)), None)
        if found is None:
            break
        error = found
    return error


def words(error: BaseException) -> str:
    if type(error).__name__ == "IncompleteRead":  # of urllib3 and of http.client; both only count bytes
        return "it ended early"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:120].lower()
