"""What goes wrong for a client: statuses, and the error in the form of OpenAI's API. Knows no routes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from mdl.errors import Busy, MdlError, NotFound, TooLong, UnsupportedModel, UsageError

RETRY_SECONDS = 2

# Which failure is whose: (status, type, code). What is not here is the server's own.
_KINDS: tuple[tuple[type[MdlError], tuple[int, str, str | None]], ...] = (
    (TooLong, (400, "invalid_request_error", "context_length_exceeded")),
    (UsageError, (400, "invalid_request_error", None)),
    (NotFound, (404, "invalid_request_error", "model_not_found")),
    (UnsupportedModel, (422, "invalid_request_error", "model_not_supported")),
    (Busy, (503, "server_error", "overloaded")),
)
_OWN = (500, "server_error", "engine_error")


class Refused(UsageError):
    """A request that is answered with an error: `param` names the field that is wrong, `code` is the word
    that OpenAI's API has for it."""

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, hint, param or "")
        self.status = status
        self.api_code = code

    @property
    def param(self) -> str | None:
        return self.field or None


@contextmanager
def named(params: Mapping[str, str]) -> Iterator[None]:
    """What fails inside is told by the name that its field has in the request."""
    try:
        yield
    except MdlError as error:
        error.field = params.get(error.field, error.field)
        raise


def status(error: MdlError) -> int:
    return error.status if isinstance(error, Refused) else _kind(error)[0]


def body(error: MdlError) -> dict[str, Any]:
    """The error as OpenAI's API writes it: {"error": {message, type, param, code}}."""
    _, kind, code = _kind(error)
    param = error.field or None
    if isinstance(error, Refused):
        code = error.api_code
        kind = "server_error" if error.status >= 500 else kind
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response(error: MdlError) -> JSONResponse:
    number = status(error)
    headers = {503: {"Retry-After": str(RETRY_SECONDS)}, 401: {"WWW-Authenticate": "Bearer"}}.get(number)
    return _json(body(error), number, headers)


async def on_error(_: Request, error: Exception) -> JSONResponse:
    """For MdlError, wherever it comes from."""
    assert isinstance(error, MdlError)
    return response(error)


async def on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """For what starlette finds: no such route, or not by this method."""
    assert isinstance(error, HTTPException)
    path = request.scope["raw_path"].decode("ascii")[:200]
    what = {404: f"there is no {path} here", 405: f"{path} does not take {request.method}"}
    refused = Refused(what.get(error.status_code, str(error.detail)), status=error.status_code)
    return _json(body(refused), error.status_code, error.headers)


async def on_bug(_: Request, __: Exception) -> JSONResponse:
    """For what should not happen; the log has its traceback, the client has not."""
    return response(MdlError("the server failed at this request", hint="its log says why"))


def _kind(error: MdlError) -> tuple[int, str, str | None]:
    return next((kind for family, kind in _KINDS if isinstance(error, family)), _OWN)


def _json(content: dict[str, Any], number: int, headers: Mapping[str, str] | None) -> JSONResponse:
    return Ascii(content, number, headers)


class Ascii(JSONResponse):
    """JSON in ASCII: names and texts may hold lone surrogates, which UTF-8 cannot."""

    def render(self, content: Any) -> bytes:
        import json

        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
