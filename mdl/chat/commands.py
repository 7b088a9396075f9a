"""What a line that starts with a slash does. Knows no terminal: a command says what to show or to ask."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mdl.chat import attachment, session, setting
from mdl.chat.nearest import nearest
from mdl.chat.talk import Talk
from mdl.errors import Busy, UsageError

_QUOTED = re.compile(r'(/\S+\s+(system\s+)?)?"""')
# What ollama's people write after /set, and the command that it is here.
_ELSEWHERE = {
    "system": "/system",
    "verbose": "/stats on",
    "quiet": "/stats off",
    "think": "/think on",
    "nothink": "/think off",
}


@dataclass(frozen=True, slots=True)
class Result:
    """What comes of a line: something to say, a table of two columns, a question for the model."""

    say: str = ""
    rows: tuple[tuple[str, str], ...] = ()
    ask: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """`run` gets the conversation and what follows the name. `complete` lists what may follow it."""

    names: tuple[str, ...]
    argument: str
    help: str
    run: Callable[[Talk, str], Result]
    complete: Callable[[Talk, str], Iterable[str]] = lambda *_: ()


def respond(talk: Talk, line: str) -> Result:
    """What a line comes to. Raises UsageError for an unknown command, and what commands raise."""
    if line.startswith("//"):
        return Result(ask=line[1:])
    if not line.startswith("/"):
        return Result(ask=_unquoted(line))
    word, _, argument = line.partition(" ") if "\n" not in line.partition(" ")[0] else line.partition("\n")
    command = BY_NAME.get(word[1:].lower())
    if command is None:
        known = nearest(word, [f"/{name}" for name in BY_NAME])
        raise UsageError(
            f"{word:.60} is no command", hint=known or "/? lists them; // starts a text with a slash"
        )
    return command.run(talk, _unquoted(argument.strip()))


def is_open(text: str) -> bool:
    """Whether more lines follow: three quotes began the text and have not ended it."""
    quoted = _QUOTED.match(text)
    return quoted is not None and '"""' not in text[quoted.end() :]


def completions(talk: Talk, text: str) -> list[tuple[str, str]]:
    """What the line up to the cursor may become: the end to put in the place of its last word, and help."""
    if not text.startswith("/"):
        return []
    word, space, argument = text.partition(" ")
    if not space:
        found = [(f"/{c.names[0]}", c) for c in COMMANDS if f"/{c.names[0]}".startswith(word)]
        return [(f"{name} " if c.argument else name, c.help) for name, c in found]
    command = BY_NAME.get(word[1:].lower())
    suggested = command.complete(talk, argument) if command else ()
    return [(candidate, "") for candidate in suggested if candidate.startswith(argument)]


def _unquoted(text: str) -> str:
    if not text.startswith('"""'):
        return text
    inner = text[3:].removesuffix('"""') if len(text) > 5 else text[3:]
    return inner.removeprefix("\n").removesuffix("\n")


def _help(talk: Talk, argument: str) -> Result:
    commands = [(" ".join([f"/{c.names[0]}", c.argument]).rstrip(), c.help) for c in COMMANDS]
    keys = [
        ('"""', "begins and ends a text of several lines; so does Alt-Enter, line by line"),
        ("Ctrl-C", "stops an answer"),
        ("Ctrl-D", "leaves"),
        ("//TEXT", "sends a text that starts with a slash"),
    ]
    return Result(rows=(*commands, *keys))


def _bye(talk: Talk, argument: str) -> Result:
    talk.over = True
    return Result()


def _clear(talk: Talk, argument: str) -> Result:
    kept = talk.session.name
    talk.session = replace(talk.session, messages=talk.profile.messages, name="")
    talk.attachments, talk.unanswered = (), ""
    return Result(f"a new conversation; {kept} stays as it was saved" if kept else "a new conversation")


def _system(talk: Talk, text: str) -> Result:
    if not text:
        return Result(talk.session.system or "there is no system text")
    text = "" if text in ('""', "''") else text
    talk.session = replace(talk.session, system=text)
    return Result("the system text is set" if text else "there is no system text now")


def _set(talk: Talk, text: str) -> Result:
    name, _, value = text.removeprefix("parameter ").lstrip().partition(" ")
    if not name:
        return Result(rows=_settings(talk))
    if command := _ELSEWHERE.get(name.lower()):
        return respond(talk, f"{command} {value}".rstrip())
    if not value.strip():
        raise UsageError(f"/set {name:.40} has no value", hint="/set NAME VALUE; /set alone lists them")
    defaults = session.fresh(talk.profile).sampling
    changed = setting.changed(talk.session.sampling, name, value, defaults)
    talk.session = replace(talk.session, sampling=changed)
    name = name.lower().replace("-", "_")
    return Result(f"{name} is {setting.shown(talk.session.sampling, name)}")


def _settings(talk: Talk) -> tuple[tuple[str, str], ...]:
    sampling = talk.session.sampling
    return tuple((name, setting.shown(sampling, name)) for name in setting.telling(sampling))


def _show(talk: Talk, argument: str) -> Result:
    session = talk.session
    thinking = {True: "on", False: "off", None: "as the model likes"}[session.thinking]
    said = f"{len(session.messages)} messages" + (f", kept as {session.name}" if session.name else "")
    return Result(
        rows=(
            ("model", f"{session.model}{_facts(talk)}"),
            ("system", session.system or "none"),
            ("thinking", thinking),
            ("said", said),
            *_settings(talk),
        )
    )


def _facts(talk: Talk) -> str:
    try:
        loaded = talk.engine.ready(0)
    except Busy:
        return " (being loaded)"
    context = f"context {loaded.context}, " if loaded.context else ""
    return f" ({loaded.description}, {context}on {', '.join(loaded.devices)})"


def _model(talk: Talk, text: str) -> Result:
    if not text:
        return Result(rows=(("model", talk.session.model), ("there are", "  ".join(talk.model_names()))))
    talk.switch(text)
    return Result(f"{text} answers now, and knows what was said")


def _think(talk: Talk, text: str) -> Result:
    thinking = None if text.lower() == "auto" else _switched(text, talk.session.thinking is True, "/think")
    talk.session = replace(talk.session, thinking=thinking)
    return Result({True: "thinking is on", False: "thinking is off", None: "the model decides"}[thinking])


def _stats(talk: Talk, text: str) -> Result:
    talk.stats = _switched(text, talk.stats, "/stats")
    return Result("each answer is followed by its speed" if talk.stats else "no more statistics")


def _switched(text: str, now: bool, command: str) -> bool:
    if text.lower() not in ("", "on", "off"):
        raise UsageError(
            f"{command} cannot be {text!r:.40}", hint=f"{command}, {command} on or {command} off"
        )
    return not now if not text else text.lower() == "on"


def _save(talk: Talk, text: str) -> Result:
    force, name = text.endswith("!"), text.removesuffix("!") or talk.session.name
    if not name:
        raise UsageError("a session needs a name", hint="/save NAME")
    if name in session.names() and name != talk.session.name and not force:
        raise UsageError(
            f"there is a session {name} already", hint=f"/save {name}! replaces it; or take another name"
        )
    named = replace(talk.session, name=name)
    session.save(named)
    talk.session = named
    return Result(f"saved as {name}, and kept up to date; mdl chat --session {name} goes on with it")


def _load(talk: Talk, text: str) -> Result:
    if not text:
        return Result("  ".join(session.names()) or "no session is saved")
    loaded = session.load(text)
    talk.session = replace(loaded, model=talk.session.model)
    talk.attachments, talk.unanswered = (), ""
    other = loaded.model not in ("", talk.session.model)
    hint = f"; it was with {loaded.model}: /model {loaded.model} takes that" if other else ""
    return Result(f"{text}: {len(loaded.messages)} messages{hint}")


def _undo(talk: Talk, argument: str) -> Result:
    question = " ".join(talk.undo().split())
    return Result(f"taken back: {question[:60]}{'…' * (len(question) > 60)}")


def _retry(talk: Talk, argument: str) -> Result:
    return Result(ask=talk.retry())


def _context(talk: Talk, argument: str) -> Result:
    used, context = talk.used()
    return Result(f"{used:,} of {context:,} tokens ({used * 100 // context} %)")


def _attach(talk: Talk, text: str) -> Result:
    if not text:
        names = ", ".join(name for name, _ in talk.attachments)
        return Result(f"with the next prompt: {names}" if names else "nothing is attached")
    name, content = attachment.read(text)
    talk.attachments = (*talk.attachments, (name, content))
    return Result(f"{name} goes with the next prompt ({len(content):,} characters)")


def _paths(talk: Talk, begun: str) -> list[str]:
    folder = begun[: begun.rfind("/") + 1]
    try:
        inside = sorted(Path(folder or ".").expanduser().iterdir())
    except (OSError, RuntimeError, ValueError):
        return []
    return [f"{folder}{path.name}{'/' * path.is_dir()}" for path in inside if not path.name.startswith(".")]


def _names_of_settings(talk: Talk, begun: str) -> tuple[str, ...]:
    return tuple(f"{name} " for name in setting.NAMES)


def _switches(talk: Talk, begun: str) -> tuple[str, ...]:
    return ("on", "off")


COMMANDS = (
    Command(("?", "help", "h"), "", "this list", _help),
    Command(("bye", "exit", "quit", "q"), "", "leave", _bye),
    Command(("clear", "new"), "", "start a new conversation", _clear),
    Command(("system",), "TEXT", "how the model is to answer", _system),
    Command(("set",), "NAME VALUE", "a setting, such as temperature", _set, _names_of_settings),
    Command(("show",), "", "the model and the settings", _show),
    Command(("model",), "MODEL", "go on with another model", _model, lambda talk, _: talk.model_names()),
    Command(("think",), "", "let the model think first, or not", _think, _switches),
    Command(("save", "s"), "NAME", "keep the conversation", _save, lambda *_: session.names()),
    Command(("load", "l"), "NAME", "go on with a kept one", _load, lambda *_: session.names()),
    Command(("undo",), "", "take back the last question", _undo),
    Command(("retry",), "", "ask the last question again", _retry),
    Command(("stats",), "", "show how fast answers are, or not", _stats, _switches),
    Command(("context",), "", "how much of the context is used", _context),
    Command(("attach",), "FILE", "put a text file into the next prompt", _attach, _paths),
)
BY_NAME = {name: command for command in COMMANDS for name in command.names}
