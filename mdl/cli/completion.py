"""The command `completion`: what makes a shell complete the others. Knows what options take, and no shell."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import typer

from mdl import ui
from mdl.errors import UsageError

Kind = Literal["", "model", "folder", "file", "word", "text"]  # what a value is; "" is for flags

# What an option takes, where its metavar tells. All others take text that nobody can complete.
KINDS: dict[str, Kind] = {"MODEL": "model", "DIR": "folder", "FILE": "file"}


@dataclass(frozen=True, slots=True)
class Option:
    """An option by all its names. `words` are the values to choose from, if those are known."""

    names: tuple[str, ...]
    help: str
    kind: Kind
    words: tuple[str, ...] = ()
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """A command, its other names, its options, and what its arguments are."""

    name: str
    aliases: tuple[str, ...]
    help: str
    options: tuple[Option, ...]
    argument: Kind = ""
    words: tuple[str, ...] = ()
    repeats: bool = False  # whether all arguments are such, or only the first


def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print what makes a shell complete commands, options and names of models."""
    if shell not in SHELLS:
        raise UsageError(f"there is no completion for {shell!r}", hint=f"one of {', '.join(SHELLS)}")
    ui.out(script(shell), end="")


SHELLS = ("bash", "zsh", "fish")


def script(shell: str) -> str:
    """The completion of the whole command line for one of SHELLS."""
    from importlib import import_module

    text: str = import_module(f"mdl.cli.{shell}").script(commands())
    return text


def commands() -> list[Command]:
    """The commands that people see; the first one is `mdl` itself."""
    from mdl.cli import ALIASES, build

    group: Any = typer.main.get_command(build())
    found = [Command("mdl", (), "", tuple(_options(group)))]
    for name, command in group.commands.items():
        if not command.hidden:
            aliases = tuple(alias for alias, target in ALIASES.items() if target == name)
            found.append(_command(name, aliases, command))
    return found


def _command(name: str, aliases: tuple[str, ...], command: Any) -> Command:
    argument = next((param for param in command.params if param.param_type_name == "argument"), None)
    label = (argument.metavar or "") if argument else ""
    words = _words(name, label)
    kind: Kind = "" if argument is None else "word" if words else _kind(label)
    options = tuple(_options(command))
    return Command(name, aliases, _line(command.help), options, kind, words, label.endswith("..."))


def _options(command: Any) -> Iterator[Option]:
    """Long names first, and --help last, as the help has them."""
    context = typer.Context(command, help_option_names=["-h", "--help"])
    for param in command.get_params(context):
        if param.param_type_name != "option" or param.hidden:
            continue
        names = sorted(param.opts, key=len, reverse=True) + list(param.secondary_opts)
        words = _words(command.name, param.opts[0])
        kind: Kind = "" if param.is_flag else "word" if words else _kind(param.metavar or "")
        yield Option(tuple(names), _line(param.help), kind, words, param.multiple)


def _kind(metavar: str) -> Kind:
    """MODEL, MODEL..., MODEL [PROMPT] and MODEL[=SCALE] are all models."""
    return KINDS.get(metavar.partition("[")[0].rstrip(" ."), "text")


def _words(command: str, name: str) -> tuple[str, ...]:
    """The values of an option or argument, where there are only a few."""
    from mdl.config import Pull
    from mdl.listing import SORTS

    known = {
        ("completion", "SHELL"): SHELLS,
        ("alias", "ACTION"): ("list", "set", "rm"),
        ("list", "--sort"): (*SORTS, *(f"-{key}" for key in SORTS)),
    }
    if name == "--pull":
        return tuple(word for word in get_args(Pull) if word != "ask")  # what happens without the option
    return ("auto",) if name == "--gpu-layers" else known.get((command, name), ())


def _line(text: str | None) -> str:
    return " ".join((text or "").split()).removesuffix(".")
