"""A server from its first moment to its last: socket, event loop, signals. Knows no routes."""

import asyncio
import errno
import socket
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from mdl.errors import Busy, DiskError, MdlError, UsageError
from mdl.library import Library
from mdl.server import app
from mdl.server.body import Room
from mdl.server.jobs import Jobs
from mdl.server.names import Names, files
from mdl.server.options import Limits, ServeOptions
from mdl.server.passing import Passing
from mdl.server.pool import Bounds, Pool
from mdl.server.service import Service

BACKLOG = 1024
LARGEST_HEADER = 64 << 10
KEEP_ALIVE_SECONDS = 60  # longer than the five for which the OpenAI client keeps a connection in its pool


def serve(library: Library, options: ServeOptions, ready: Callable[[str], None]) -> None:
    """Answers requests until SIGINT or SIGTERM, which take effect as ever when all is cleaned up. `ready` is
    called with the address once the models that were asked for are loaded; requests are taken before that.

    Raises UsageError for an address that may not or cannot be used, Busy for one that is in use, NotFound for
    models that are not here, and what the load of one that is given in the options fails with.
    """
    names = Names(library, options.models)
    bounds = Bounds(options.memory, options.max_models, options.idle_seconds, options.limits.room_seconds)
    pool = Pool(partial(files, library, adapters=options.adapters), options.engine, bounds, options.unsaid)
    names.loaded = pool.has
    jobs = Jobs(library, options.limits)
    room, passing = Room(options.limits), Passing(library.settings)
    service = Service(names, pool, room, library.for_clients(), jobs, passing)
    with listen(options) as sock:
        server = Server(service, options, partial(ready, address(sock)))
        server.run(sockets=[sock])
    if server.failure is not None:
        raise server.failure


class Server(uvicorn.Server):
    """uvicorn's, which begins and ends the pool: before the signal that ended it takes its usual effect."""

    def __init__(self, service: Service, options: ServeOptions, ready: Callable[[], None]) -> None:
        super().__init__(_config(app(service, options), options.limits))
        self.failure: Exception | None = None
        self._service = service
        local = [(name, model) for name, model in service.names.served.items() if not model.is_api]
        self._first = local[: options.max_models or None]
        self._ready = ready
        self._loading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loading = asyncio.create_task(self._load())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._loading is not None:
            self._loading.cancel()
        jobs = asyncio.create_task(self._service.jobs.close())  # those who watch one wait for its end
        await super().shutdown(sockets)
        await jobs
        await self._service.pool.close()
        await self._service.passing.close()

    async def _load(self) -> None:
        """Loads what was asked for by name. What fails ends the server: nobody asked for one without it."""
        try:
            for name, model in self._first:
                wanted = await self._service.names.wanted(name, "", model)
                async with self._service.pool.borrow(model, wanted=wanted):
                    pass
            self._service.ready = True
            self._ready()
        except Exception as error:  # noqa: BLE001 - raised again when the server has ended
            self.failure = error
            self.should_exit = True


def _config(application: Starlette, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        loop="asyncio",
        http=protocol(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=limits.grace_seconds,  # type: ignore[arg-type] # passed on to asyncio, as it is
        h11_max_incomplete_event_size=LARGEST_HEADER,
    )


def protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's, which cuts connections that are one too many, on which nothing but bytes arrive (a header
    without end, a body after its answer), or on which nothing is read. What else takes long is bounded where
    it is awaited."""

    class Bounded(H11Protocol):
        _hearing: asyncio.TimerHandle | None = None
        _telling: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._telling = self.loop.call_later(limits.stall_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            _cancel(self._telling)
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            _cancel(self._hearing)
            _cancel(self._telling)
            super().connection_lost(exc)

        def _watch(self) -> None:
            """A client is heard out while it says something that it will get an answer to."""
            answering = self.conn.our_state in (h11.SEND_RESPONSE, h11.SEND_BODY)
            if answering or self.conn.their_state is h11.DONE:
                _cancel(self._hearing)
                self._hearing = None
            elif self._hearing is None:
                self._hearing = self.loop.call_later(limits.header_seconds, self.transport.abort)

    return Bounded


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


# The address


def listen(options: ServeOptions) -> socket.socket:
    """The socket, bound; only to this machine unless there is a key or the user insists."""
    family, place = _resolve(options)
    is_closed = options.api_key or options.keys or ip_address(place[0].partition("%")[0]).is_loopback
    if not (is_closed or options.insecure):
        raise UsageError(
            f"on {options.host} others can reach the server, which needs an API key",
            hint="give it one with --api-key, or insist with --insecure",
        )
    try:
        both = options.host == "::" and socket.has_dualstack_ipv6()  # everybody: those of IPv4 too
        sock = socket.create_server(place, family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise _explained(error, options) from None
    # Inherited by each connection. asyncio sets it only where the protocol is said; without it the pieces of
    # a stream wait for the client's system to acknowledge the one before, 40 ms on Linux.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(
        socket, "TCP_USER_TIMEOUT"
    ):  # Linux; inherited by each connection, and holds after its end too
        patience = int(options.limits.stall_seconds * 1000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
    return sock


def address(sock: socket.socket) -> str:
    """Of a bound socket, as people type it."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _resolve(options: ServeOptions) -> tuple[socket.AddressFamily, Any]:
    try:
        found = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        cause = getattr(error, "strerror", None) or error
        raise UsageError(
            f"there is no address {options.host}: {cause}", hint="127.0.0.1 is this machine"
        ) from None
    return found[0][0], found[0][4]


def _explained(error: OSError, options: ServeOptions) -> MdlError:
    where = f"port {options.port} of {options.host}"
    if error.errno == errno.EADDRINUSE:
        return Busy(f"{where} is in use", hint="end what uses it, or take another with --port")
    if error.errno == errno.EACCES:
        return DiskError(f"{where} is not allowed", hint="take one above 1023 with --port")
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(f"{options.host} is no address of this machine", hint="127.0.0.1 always is")
    return DiskError(f"{where} cannot be used: {error}")
