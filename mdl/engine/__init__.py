"""The handle of an engine in the caller's process. Knows no llama.cpp: that is in a worker process.

The worker starts with the handle, so that Python and llama.cpp start while the caller still decides what to
load. It may die, of a model or of a signal: that costs the requests it had, and the next one starts a new
worker.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mdl.engine.request import (
    Chat,
    Completion,
    Delta,
    Embed,
    Embedded,
    EngineFiles,
    EngineSettings,
    Loaded,
    Rank,
    Ranked,
)
from mdl.errors import Busy, EngineError, MdlError, UnsupportedModel

if TYPE_CHECKING:
    from mdl.engine.process import Process

Deliver = Callable[[Delta | MdlError], None]
Asked = Chat | Completion | Embed | Rank | tuple[str, bool] | tuple[int, ...]

MOST_DEATHS, WITHIN_SECONDS = 5, 60.0
GREETING_SECONDS = 30.0  # to start CUDA on a machine with many GPUs takes seconds


def _at_once(call: Callable[[], None]) -> None:
    call()


class Engine:
    """A model at work. Its methods may be called from any thread; it ends with `close`, or with the caller's
    process.

    `post` gets a function to call for each message of the worker, which delivers what is in it: by default
    at once, on a thread of the engine. A server passes `loop.call_soon_threadsafe` and is woken once for a
    step, not once for each of its requests. The worker `starts` at once, or when it is first needed.
    """

    def __init__(
        self, post: Callable[[Callable[[], None]], object] = _at_once, *, starts: bool = True
    ) -> None:
        self._post = post
        self._lock = threading.RLock()
        self._waiting: dict[int, Callable[[Any], None]] = {}
        self._requests = 0
        self._rendering = 0
        self._load: list[Any] | None = None
        self._loaded: Loaded | None = None
        self._failure: MdlError | None = None
        self._settled = threading.Event()
        self._deaths: deque[float] = deque(maxlen=MOST_DEATHS)
        self.died = 0  # workers, so far
        self._closed = False
        self._gpus: list[dict[str, Any]] = []
        self._greeted = threading.Event()
        self._process: Process | None = self._start() if starts else None

    @property
    def pid(self) -> int | None:
        """Of the worker; None while there is none."""
        process = self._process
        return process.pid if process else None

    def gpus(self) -> list[dict[str, Any]]:
        """The GPUs that llama.cpp computes on here, with their memory, as `llama.gpus` tells them; none where
        the worker cannot say. Waits until it has started."""
        with self._lock:
            self._refuse_if_closed()
            if self._process is None and self._load is None:
                self._process = self._start_again()
        self._greeted.wait(GREETING_SECONDS)
        return self._gpus

    def load(self, files: EngineFiles, settings: EngineSettings = EngineSettings()) -> None:
        """Sends what to load, once, and does not wait. What may fail is told by `ready` and by each
        request. Raises Busy for a closed engine."""
        from mdl.engine.wire import pack

        with self._lock:
            self._refuse_if_closed()
            self._load = pack([files, settings])
            if self._process is None:
                self._process = self._start_again()
            self._process.send({"load": self._load})

    def ready(self, timeout: float | None = None) -> Loaded:
        """What was loaded, once it is.

        Raises what the load failed with (UnsupportedModel, NotFound, DiskError, UsageError), EngineError when
        the worker died of it, Busy after `timeout` seconds.
        """
        if not self._settled.wait(timeout):
            raise Busy(
                f"the model is still being loaded after {timeout:g} seconds", hint="try again in a while"
            )
        if self._loaded is None:
            raise self._failure or _stopped()
        return self._loaded

    def submit(self, request: Chat | Completion, deliver: Deliver) -> Callable[[], None]:
        """Asks for an answer, without waiting. Calls `deliver` with its pieces, the last of which has
        `finish`, or with an error, after which nothing comes. The function that it returns cancels: nothing
        is delivered any more.

        Raises what the load failed with, Busy for a closed engine, and EngineError for one that keeps dying.
        """
        return self.post("chat" if isinstance(request, Chat) else "completion", request, deliver)

    def post(self, what: str, asked: Asked, deliver: Callable[[Any], None]) -> Callable[[], None]:
        """The same for anything that is asked for: `deliver` gets the one result, or an error.

        `what` is one of the methods below, by name.
        """
        from mdl.engine.wire import pack

        return self._send(what, pack(asked), deliver)

    def chat(self, chat: Chat) -> Iterator[Delta]:
        """The answer, piece by piece. Closing the iterator cancels the request. Raises what went wrong."""
        return self._pieces(chat)

    def completion(self, completion: Completion) -> Iterator[Delta]:
        """The same for a text that is gone on with."""
        return self._pieces(completion)

    def _pieces(self, request: Chat | Completion) -> Iterator[Delta]:
        pieces: SimpleQueue[Delta | MdlError] = SimpleQueue()
        cancel = self.submit(request, pieces.put)
        try:
            finished = False
            while not finished:
                piece = _take(pieces)
                yield piece
                finished = piece.finish is not None
        finally:
            cancel()

    def count(self, chat: Chat) -> int:
        """How many tokens the prompt has."""
        return int(self._ask("count", chat))

    def render(self, chat: Chat) -> str:
        """The prompt as the model's template writes it."""
        return str(self._ask("render", chat))

    def embed(self, embed: Embed) -> Embedded:
        """Raises UnsupportedModel where the model has no vectors, UsageError for what is too long."""
        from mdl.engine.wire import unpack

        return unpack(Embedded, self._ask("embed", embed))

    def rank(self, rank: Rank) -> Ranked:
        """Raises UnsupportedModel for a model that was not made for it."""
        from mdl.engine.wire import unpack

        return unpack(Ranked, self._ask("rank", rank))

    def prompt(self, chat: Chat) -> tuple[int, ...]:
        """The tokens of the prompt."""
        return tuple(self._ask("prompt", chat))

    def tokenize(self, text: str, begun: bool = False) -> tuple[int, ...]:
        """The tokens of a text; what reads like a control token is one. `begun`: after the model's own
        beginning, if it has one, as for a completion."""
        return tuple(self._ask("tokenize", (text, begun)))

    def detokenize(self, tokens: tuple[int, ...]) -> str:
        """Raises UsageError for what is no token."""
        return str(self._ask("detokenize", tokens))

    def close(self) -> None:
        """Ends the worker, within three seconds at worst. Requests in flight get an EngineError."""
        with self._lock:
            self._closed = True
            process = self._process
        if process is not None:
            process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Asking

    def _ask(self, what: str, asked: Asked) -> Any:
        answers: SimpleQueue[Any] = SimpleQueue()
        self.post(what, asked, answers.put)
        return _take(answers)

    def _send(self, what: str, asked: Any, deliver: Callable[[Any], None]) -> Callable[[], None]:
        with self._lock:
            process = self._alive()
            self._requests += 1
            request = self._requests
            self._waiting[request] = deliver
            process.send({what: asked, "id": request})

        def cancel() -> None:
            with self._lock:
                if self._waiting.pop(request, None) and self._process:
                    self._process.send({"cancel": request})

        return cancel

    def _alive(self) -> "Process":
        """The worker; a new one in the place of one that died."""
        self._refuse_if_closed()
        if self._load is None:
            raise EngineError("the engine has been given no model")
        if self._failure is not None and not isinstance(self._failure, EngineError):
            raise self._failure
        if self._process is None:
            self._refuse_to_loop()
            self._process = self._start_again()
            self._process.send({"load": self._load})
        return self._process

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise _stopped()

    def _refuse_to_loop(self) -> None:
        if len(self._deaths) == MOST_DEATHS and monotonic() - self._deaths[0] < WITHIN_SECONDS:
            raise EngineError(
                f"the engine died {MOST_DEATHS} times within {WITHIN_SECONDS:.0f} seconds without an answer",
                hint="look at the model, or try again in a minute",
            )

    def _start_again(self) -> "Process":
        self._failure = self._loaded = None
        self._rendering = 0
        self._settled.clear()
        self._greeted.clear()
        return self._start()

    def _start(self) -> "Process":
        from mdl.engine.process import Process

        return Process(self._hear, self._end)

    # Hearing: on the reader thread of the worker's process

    def _hear(self, message: dict[str, Any]) -> None:
        if "deltas" in message:
            from mdl.engine.wire import unpack_piece

            self._hand_over([(*unpack_piece(piece), False) for piece in message["deltas"]])
        elif "done" in message:
            from mdl.engine.wire import unpack_done

            self._deaths.clear()
            self._hand_over([(*unpack_done(message["done"]), True)])
        elif "rendering" in message:
            self._rendering = message["rendering"]
        elif "gpus" in message:
            self._gpus = message["gpus"]
            self._greeted.set()
        elif "loaded" in message:
            from mdl.engine.wire import unpack

            self._loaded = unpack(Loaded, message["loaded"])
            self._settled.set()
        else:
            self._hear_the_rest(message)

    def _hear_the_rest(self, message: dict[str, Any]) -> None:
        from mdl.engine.wire import unpack_error

        if "failed" in message:
            self._failure = unpack_error(message["failed"])
        elif "error" in message:
            self._hand_over([(message["id"], unpack_error(message["error"]), True)])
        else:
            self._hand_over([(message["id"], message["result"], True)])

    def _hand_over(self, news: list[tuple[int, Any, bool]]) -> None:
        """What is posted as one call. Looks up who waits only when that runs, so that a cancelled one hears
        nothing."""

        def call() -> None:
            for request, what, final in news:
                deliver = self._waiting.pop(request, None) if final else self._waiting.get(request)
                if deliver is not None:
                    _guarded(deliver, what)

        _guarded(self._post, call)

    def _end(self, process: "Process", status: int) -> None:
        with self._lock:
            self._process = None
            if self._closed:
                error: MdlError = _stopped()
            elif self._failure is not None:
                error = self._failure
            else:
                error = self._death(process.death(status))
                self._deaths.append(monotonic())
                self.died += 1
            if self._loaded is None:
                self._failure = error
            waiting = list(self._waiting)
            self._greeted.set()
            self._settled.set()  # before another thread may start a new worker, which clears it
        runaway = self._rendering if status == 1 else 0  # as the worker's watchdog ends it
        others = _beside_a_runaway() if runaway and not self._closed else error
        self._hand_over(
            [(request, _runaway() if request == runaway else others, True) for request in waiting]
        )

    def _death(self, how: str) -> EngineError:
        if self._loaded is not None:
            return EngineError(f"the engine {how}", hint="the next request starts a new one")
        hint = "the file may be damaged, or of a kind that this llama.cpp cannot load"
        return EngineError(f"while loading the model, the engine {how}", hint=hint)


def _stopped() -> Busy:
    return Busy("the model was stopped", hint="ask for it again")


def _runaway() -> UnsupportedModel:
    return UnsupportedModel(
        "the chat template of the model took more than three seconds, and was stopped",
        hint="mdl inspect --template shows it",
    )


def _beside_a_runaway() -> EngineError:
    return EngineError(
        "the engine was ended: another request's chat template took too long", hint="ask again"
    )


def _guarded(function: Callable[[Any], object], argument: Any) -> None:
    """What the caller's code raises is reported as by a thread; the other requests get their answers."""
    try:
        function(argument)
    except Exception as error:  # noqa: BLE001 - whatever the caller's code raises
        report = (type(error), error, error.__traceback__, threading.current_thread())
        threading.excepthook(threading.ExceptHookArgs(report))


def _take(pieces: SimpleQueue[Any]) -> Any:
    """The next one; raised if it is an error. Looks up every second, because on Windows Ctrl-C does not wake
    it."""
    while True:
        try:
            piece = pieces.get(timeout=1.0)
        except Empty:
            continue
        if isinstance(piece, MdlError):
            raise piece
        return piece
