"""A running server, as commands see it: which models it has loaded, and that it lets go of them. Knows no
terminal.
"""

import json
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from mdl.errors import AuthError, Busy, MdlError, NetworkError, NotFound, UsageError

LARGEST = 16 << 20  # bytes of an answer
SECONDS = 10.0
PATIENCE = 600.0  # for the answers that a model gives before it goes

_KINDS: dict[int, type[MdlError]] = {
    400: UsageError,
    401: AuthError,
    403: AuthError,
    404: NotFound,
    503: Busy,
}


class Client:
    """Of the server at an address, http or https. `key` goes to that server alone: redirects are not
    followed."""

    def __init__(self, url: str, key: str = "") -> None:
        try:
            parts = urlsplit(url)
            self._place = parts.hostname or "", parts.port
        except ValueError:
            self._place = "", None
        if not self._place[0] or parts.scheme not in ("http", "https"):
            raise UsageError(f"{url!r:.200} is no address of a server", hint="such as http://127.0.0.1:3000")
        self.url = url
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._path = parts.path.rstrip("/")
        self._key = key

    def engines(self) -> list[dict[str, Any]]:
        """What is loaded, as `server.engines.document` tells it."""
        found = self._ask("GET", "/mdl/engines").get("engines")
        if not isinstance(found, list) or not all(isinstance(engine, dict) for engine in found):
            raise self._stranger()
        return found

    def stop(self, model: str, force: bool = False) -> None:
        """Waits for the answers that it is giving, unless by `force`. Raises NotFound where it is not
        loaded."""
        self._ask("POST", "/mdl/engines/stop", {"model": model, "force": force}, PATIENCE)

    def _ask(self, method: str, path: str, body: Any = None, seconds: float = SECONDS) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        connection = self._connection(*self._place, timeout=seconds)
        try:
            connection.request(method, self._path + path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            data = response.read(LARGEST)
        except (OSError, HTTPException) as error:
            cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise NetworkError(
                f"there is no answer from {self.url}: {cause}", hint="mdl serve starts a server"
            ) from None
        finally:
            connection.close()
        return self._understood(response.status, data)

    def _understood(self, status: int, data: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._stranger()
        if status == 200:
            return answer
        error = answer.get("error")
        message = error.get("message") if isinstance(error, dict) else None
        if not isinstance(message, str) or (status == 404 and "/mdl/engines" in message):
            raise self._stranger()
        hint = "set MDL_API_KEY" if status == 401 else ""
        raise _KINDS.get(status, MdlError)(" ".join(message.split())[:500], hint)

    def _stranger(self) -> MdlError:
        return NetworkError(f"what answers at {self.url} is not mdl", hint="name the server with --url")
