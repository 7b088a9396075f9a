"""The conversation in a terminal: read, answer, again. Knows no keys and no drawing."""

import sys
from collections.abc import Callable, Iterable
from typing import TextIO

from mdl.chat import Options, commands
from mdl.chat.answer import statistics
from mdl.chat.session import begin
from mdl.chat.speaker import Speaker
from mdl.chat.talk import Talk
from mdl.chat.terminal import Terminal
from mdl.config import data_path
from mdl.errors import MdlError
from mdl.profiles import Profile

Read = Callable[[], str]


def converse(
    engine: Speaker,
    options: Options,
    open_model: Callable[[str], tuple[Speaker, Profile]],
    model_names: Callable[[], Iterable[str]] = tuple,
) -> int:
    """Talks until the person leaves. The exit code.

    `engine` has been told what to load, and may still be at it. `open_model` gives the same for another
    reference, with the profile of that model. Raises UsageError for options that cannot be, what the
    session's file raises, and what loading the first model raises; later failures are told, and the
    conversation goes on. OSError when stdout takes no more.
    """
    terminal = Terminal(sys.stdout, sys.stderr, options.color)
    session = begin(options)
    talk = Talk(
        engine,
        session,
        open_model,
        model_names,
        options.stats,
        profile=options.profile,
        format=options.format,
    )
    if talk.session.messages and talk.session.name:
        terminal.note(f"{talk.session.name}: {len(talk.session.messages)} messages so far")
    try:
        read = _reader(talk, terminal)
        while not talk.over:
            _turn(talk, read, terminal)
    except BrokenPipeError:
        return terminal.abandon()
    finally:
        talk.engine.close()
    return 0


def _turn(talk: Talk, read: Read, terminal: Terminal) -> None:
    try:
        line = read().strip()
    except EOFError:
        talk.over = True
        return
    except KeyboardInterrupt:
        terminal.note("Ctrl-D or /bye leaves")
        return
    try:
        if line:
            _respond(talk, line, terminal)
    except KeyboardInterrupt:
        terminal.note("stopped")
    except MdlError as error:
        if talk.cannot_load():
            raise
        terminal.fail(error)


def _respond(talk: Talk, line: str, terminal: Terminal) -> None:
    result = commands.respond(talk, line)
    if result.rows:
        terminal.show(result.rows)
    if result.say:
        terminal.say(result.say)
    if result.ask:
        _ask(talk, result.ask, terminal)


def _ask(talk: Talk, text: str, terminal: Terminal) -> None:
    reply = talk.ask(text, terminal)
    if reason := talk.why_cut(reply):
        terminal.note(reason)
    if talk.stats and reply.usage and talk.loaded:
        terminal.note(statistics(reply.usage, talk.loaded.context))
    terminal.gap()


def _reader(talk: Talk, terminal: Terminal) -> Read:
    """How lines are read: with history and completion where the terminal can do that."""
    from mdl.chat.prompt import Prompt, can_prompt

    if not (sys.stdout.isatty() and can_prompt()):
        return lambda: _read_lines(sys.stdin, terminal)
    prompt = Prompt(
        lambda text: commands.completions(talk, text),
        commands.is_open,
        data_path() / "history",
        terminal.color,
    )

    def read() -> str:
        return prompt.read(talk.watch if talk.loaded is None else None)

    return read


def _read_lines(stdin: TextIO, terminal: Terminal) -> str:
    """A text from a terminal that can do no more than lines."""
    text = ""
    try:
        while not text or commands.is_open(text):
            terminal.ask("... " if text else ">>> ")
            line = stdin.readline()
            if not line:
                raise EOFError
            text += line
    except (EOFError, KeyboardInterrupt):
        terminal.ask("\n")
        raise
    return text
