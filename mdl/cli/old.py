"""Flags that have other names now. They work until GOES, are in no help, and each is warned about once."""

from collections.abc import Iterator
from pathlib import Path

from mdl import ui
from mdl.errors import UsageError

GOES = "0.3"  # the release that no longer knows them

ARGUMENT, HOME = "", "MDL_HOME"  # what takes the flag's place: what it took, alone; or a variable
_MODEL = {"--model-path": "--model", "--model-name": "--model", "--model-dir": "--model"}

# command: what its flags were called, and what is written instead
FLAGS: dict[str, dict[str, str]] = {
    "chat": _MODEL,
    "serve": _MODEL,
    "inspect": _MODEL,
    "download": {**_MODEL, "--model-dir": "--destination"},
    "list": {"--list-checkpoints": "--checkpoints", "--model-dir": HOME, "--model-name": ARGUMENT},
}
FLAGS["ls"], FLAGS["pull"], FLAGS["run"] = FLAGS["list"], FLAGS["download"], FLAGS["chat"]
FLAGS["show"] = FLAGS["inspect"]


def renewed(arguments: list[str]) -> list[str]:
    """A command line as it is written now. Says what was written otherwise."""
    flags = FLAGS.get(arguments[0]) if arguments else None
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if not flags or not any(word.partition("=")[0] in flags for word in arguments[:end]):
        return arguments
    written = [word.partition("=")[0] for word in arguments[:end]]
    for flag in dict.fromkeys(word for word in written if word in flags):
        ui.talk(
            f"mdl: {flag} is deprecated and goes in mdl {GOES}: write {_instead(flags[flag], arguments[0])}"
        )
    return [*_replaced(arguments[:end], flags), *arguments[end:]]


def _instead(new: str, command: str) -> str:
    if new == HOME:
        return f"{HOME}=DIR mdl {command}"
    return new or "the name alone"


def _replaced(words: list[str], flags: dict[str, str]) -> Iterator[str]:
    rest = iter(words)
    for word in rest:
        flag, sign, value = word.partition("=")
        new = flags.get(flag)
        if new is None:
            yield word
        elif new.startswith("--"):
            yield new + sign + value
        elif not (value := value if sign else next(rest, "")):
            raise UsageError(f"{flag} needs a value", hint=f"write {_instead(new, 'list')}")
        elif new == HOME:
            _use(value)
        else:
            yield value


def _use(folder: str) -> None:
    """List what is in a folder of models, which may be the tree itself."""
    from mdl import config

    path = Path(folder).expanduser().absolute()
    config.use_home(path.parent if path.name == "models" else path)
