"""How the server is to run: frozen records that check themselves. Knows no sockets."""

from dataclasses import dataclass, field

from mdl.engine.request import EngineSettings
from mdl.errors import UsageError


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may ask for at most, all together; sizes in bytes.

    `requests` are being answered or wait for it, and past that the answer is 503. `grace_seconds` is what
    answers have left to finish when the server is told to end.
    """

    requests: int = 256
    downloads: int = 2  # that clients have asked for, at once
    jobs: int = 100  # downloads that wait, and as many that are over are kept
    job_seconds: float = 3600.0  # for which those are kept
    connections: int = 800
    body: int = 32 << 20
    bodies: int = 256 << 20  # of all requests in flight
    header_seconds: float = 20.0
    body_seconds: float = 60.0
    room_seconds: float = 60.0  # for which a request waits until there is room for its model
    stall_seconds: float = 60.0  # for which a client may not read what it is sent
    grace_seconds: float = 10.0
    begin_seconds: float = 5.0  # after which a stream begins, even if nothing is there to be sent
    silence_seconds: float = 15.0  # after which a stream says that it goes on


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Where to listen, who may ask, and for what.

    `models` are all that is served, loaded at once; none: everything in the cache, on demand. To each of them
    all `adapters` are applied, MODEL or MODEL=SCALE. Those that are loaded take `memory` bytes at most (0:
    what is free at the start), and are at most `max_models` (0: any number); one that nobody asked for in
    `idle_seconds` is let go (None: never). `allow_hosts` are further names by which clients may call this
    server. `unsaid` are settings of `engine` that nobody asked for: the profile of a model may set them.
    Who sends one of the `keys` is given its model, whatever the request names. Without an `api_key`, and any
    of these, anybody who reaches it may ask, which has to be `insecure` by choice where that is more than
    this machine.

    Raises UsageError for values out of range.
    """

    host: str = "127.0.0.1"
    port: int = 3000
    api_key: str = field(default="", repr=False)
    keys: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    models: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    engine: EngineSettings = field(default_factory=EngineSettings)
    unsaid: frozenset[str] = frozenset()
    idle_seconds: float | None = 300.0
    memory: int = 0
    max_models: int = 0
    allow_hosts: tuple[str, ...] = ()
    insecure: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.adapters and not self.models:
            raise UsageError("which models are the adapters for?", hint="mdl serve MODEL --adapter ADAPTER")
        if not 0 <= self.port <= 65535:
            raise UsageError(f"the port is {self.port}, and has to be from 0 to 65535")
        if not 0 <= self.max_models <= 64:
            raise UsageError(f"max_models is {self.max_models}, and has to be from 0 to 64")
        if not 0 <= self.memory < 1 << 60:
            raise UsageError(f"memory is {self.memory}, and has to be a number of bytes")
        if self.idle_seconds is not None and not 0 <= self.idle_seconds <= 1e9:
            raise UsageError(f"idle_seconds is {self.idle_seconds:g}, and has to be from 0 to 1e9")
        if not self.host:
            raise UsageError("the host is empty", hint="127.0.0.1 is this machine alone, 0.0.0.0 everybody")
