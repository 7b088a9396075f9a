"""Where a person types: history, several lines, completion. The only import of prompt_toolkit. Knows no
commands."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth, create_output
from prompt_toolkit.utils import is_dumb_terminal

from mdl.errors import MdlError

HINT = "A message, or /? for help"

Complete = Callable[[str], list[tuple[str, str]]]


class Prompt:
    """`complete` tells what the text before the cursor may become, `is_open` whether a text goes on after
    Enter."""

    def __init__(
        self, complete: Complete, is_open: Callable[[str], bool], history: Path, color: bool
    ) -> None:
        def unfinished() -> bool:
            return is_open(get_app().current_buffer.document.text_before_cursor)

        output = create_output()
        # The terminal is not asked where its cursor is: a late reply would be typed into the next prompt.
        output.enable_cpr = False  # type: ignore[attr-defined]
        self._session: PromptSession[str] = PromptSession(
            ">>> ",
            output=output,
            history=_history(history),
            multiline=Condition(unfinished),
            prompt_continuation="... ",
            completer=_Completer(complete),
            complete_while_typing=Condition(lambda: get_app().current_buffer.text.startswith("/")),
            complete_in_thread=True,
            placeholder=FormattedText([("dim", HINT)]) if color else None,
            color_depth=None if color else ColorDepth.DEPTH_1_BIT,
            key_bindings=_keys(),
            reserve_space_for_menu=6,
            enable_suspend=True,
        )

    def read(self, watch: Callable[[], object] | None = None) -> str:
        """A text. Raises EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C on an empty line, and what
        `watch`, which runs meanwhile, raises of ours."""
        with self._ended_by_signal():
            if watch is not None:
                return self._session.prompt(pre_run=lambda: self._run_beside(watch))
            return self._session.prompt()

    def _run_beside(self, watch: Callable[[], object]) -> None:
        def run() -> None:
            try:
                watch()
            except MdlError as error:
                self._leave(error)

        threading.Thread(target=run, daemon=True).start()

    @contextmanager
    def _ended_by_signal(self) -> Iterator[None]:
        """SIGTERM ends a prompt as a key does. What it raises amid the loop would be taken for a failure of
        some callback there, shown, and the terminal left as it was drawn."""
        before = signal.getsignal(signal.SIGTERM)

        def end(number: int, frame: FrameType | None) -> None:
            if not self._leave(SystemExit(128 + number)) and callable(before):
                before(number, frame)

        signal.signal(signal.SIGTERM, end)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _leave(self, error: BaseException) -> bool:
        """End the prompt with this error, from any thread; False where none is running."""
        app = self._session.app
        loop = app.loop

        def leave() -> None:
            if app.future is not None and not app.future.done():
                app.exit(exception=error)

        if loop is None or not app.is_running:
            return False
        with suppress(RuntimeError):  # the loop is over
            loop.call_soon_threadsafe(leave)
            return True
        return False


def can_prompt() -> bool:
    """Whether this terminal can do more than lines."""
    return not is_dumb_terminal()


class _Completer(Completer):
    def __init__(self, complete: Complete) -> None:
        self._complete = complete

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:  # noqa: ARG002 - as it is called
        text = document.text_before_cursor
        start = text.partition(" ")[2] if " " in text else text
        for candidate, meaning in self._complete(text):
            yield Completion(candidate, -len(start), display_meta=meaning)


class _KeptHistory(FileHistory):
    def store_string(self, string: str) -> None:
        with suppress(OSError):  # a full disk is no reason to end a conversation
            super().store_string(string)


def _history(path: Path) -> History:
    """What was typed before, readable by its owner alone; only of this run where no file can be."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return _KeptHistory(str(path))


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys
