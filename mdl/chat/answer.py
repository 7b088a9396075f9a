"""One answer, written as it comes. Knows no conversation and imports nothing that is slow."""

import sys
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Literal, cast

from mdl.chat import Options
from mdl.chat.session import begin, save
from mdl.chat.speaker import Speaker
from mdl.chat.terminal import Sink, Terminal
from mdl.engine.request import Chat, Delta, Finish, Loaded, Message, Usage
from mdl.errors import Busy


@dataclass(frozen=True, slots=True)
class Reply:
    """What was answered, and why it ended. `usage` is None for one that was interrupted."""

    text: str
    reasoning: str
    end: Finish | Literal["interrupt"]
    usage: Usage | None = None

    @property
    def message(self) -> Message:
        return Message("assistant", self.text, self.reasoning)


def answer(engine: Speaker, chat: Chat, sink: Sink) -> Reply:
    """Streams the answer into `sink`. Ctrl-C ends it there, and what came until then is the reply.

    Raises what the engine raises, and OSError when nobody takes the answer; the engine then stops.
    """
    said: list[str] = []
    thought: list[str] = []
    end: Finish | Literal["interrupt"] = "interrupt"
    usage = None
    try:
        with closing(cast("Generator[Delta, None, None]", engine.chat(chat))) as deltas:  # closing it cancels
            for delta in deltas:
                said.append(delta.text)
                thought.append(delta.reasoning)
                sink.put(delta)
                end, usage = delta.finish or end, delta.usage
    except KeyboardInterrupt:
        end = "interrupt"
    sink.end()
    return Reply("".join(said), "".join(thought), end, usage)


def answer_once(engine: Speaker, prompt: str, options: Options) -> int:
    """Answers one prompt: the answer to stdout, and with `options.stats` what it took to stderr. Gives the
    exit code.

    Raises UsageError for options that cannot be, what the engine and the session's file raise,
    KeyboardInterrupt after Ctrl-C, and OSError when stdout takes no more; the engine has stopped then. A pipe
    that is closed (`| head -1`) is no error: the exit code is that of a tool which it ends.
    """
    terminal = Terminal(sys.stdout, sys.stderr, options.color)
    session = begin(options)
    question = Message("user", prompt)
    loaded = wait(engine, options.model, terminal)
    try:
        chat = replace(session.chat(question), format=options.format)
        reply = answer(engine, chat, terminal.sink())
    except BrokenPipeError:
        return terminal.abandon()
    if reply.end == "interrupt":
        raise KeyboardInterrupt
    if session.name:
        save(session.plus(question, reply.message))
    if is_full(reply, loaded.context):
        terminal.note(f"the answer is cut: the context of {loaded.context:,} tokens is full")
    if options.stats and reply.usage:
        terminal.note(statistics(reply.usage, loaded.context))
    return 0


def wait(engine: Speaker, model: str, terminal: Terminal) -> Loaded:
    """What was loaded, once it is; says so when that takes long. Raises what the load fails with."""
    try:
        return engine.ready(0.3)
    except Busy:
        terminal.status(f"loading {model or 'the model'}…")
    try:
        while True:
            with suppress(Busy):
                return engine.ready(1.0)  # for ever would not let Ctrl-C through on Windows
    finally:
        terminal.clear()


def is_full(reply: Reply, context: int) -> bool:
    """Whether the answer ended because there was no room for more."""
    usage = reply.usage
    return (
        reply.end == "length"
        and usage is not None
        and context > 0
        and usage.prompt_tokens + usage.completion_tokens >= context
    )


def statistics(usage: Usage, context: int) -> str:
    """What an answer took, in a line."""
    count, seconds = usage.completion_tokens, usage.completion_seconds
    speed = f" · {count / seconds:.1f} tokens/s" if seconds > 0 else ""
    total = f"/{context}" if context else ""
    cached = f" ({usage.cached_tokens} of them known)" if usage.cached_tokens else ""
    return (
        f"{count} token{'' if count == 1 else 's'} in {seconds:.2f} s{speed}"
        f" · prompt {usage.prompt_tokens} tokens{cached} in {usage.prompt_seconds:.2f} s"
        f" · context {usage.prompt_tokens + count}{total}"
    )
