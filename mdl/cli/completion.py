"""The command `completion`: what makes a shell complete the others. Knows what options take, and no shell."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import typer

from mdl import ui
from mdl.errors import UsageError

# What a value is; "" is for flags. Those of ASKED are known to `mdl __complete`.
Kind = Literal["", "model", "cached", "key", "alias", "profile", "entry", "folder", "file", "word", "text"]
ASKED: tuple[Kind, ...] = ("model", "cached", "key", "alias", "profile", "entry")

# What an option takes, where its metavar tells. All others take text that nobody can complete.
KINDS: dict[str, Kind] = {"MODEL": "model", "DIR": "folder", "FILE": "file", "PATH": "file"}
OF_THE_CACHE = ("rm", "verify")  # whose models are what is there, and not what could be


@dataclass(frozen=True, slots=True)
class Option:
    """An option by all its names. `words` are the values to choose from, if those are known."""

    names: tuple[str, ...]
    help: str
    kind: Kind
    words: tuple[str, ...] = ()
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class Argument:
    """What stands at one place, or, if it `repeats`, at all that follow."""

    kind: Kind
    words: tuple[str, ...] = ()
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """A command, its other names, its options, and what its arguments are. If the first one is a word that
    says what to do, `actions` tells for each such word what follows it."""

    name: str
    aliases: tuple[str, ...]
    help: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...] = ()
    actions: Mapping[str, tuple[Argument, ...]] = field(default_factory=dict)


_TEXT, _MODEL, _KEY, _ALIAS = Argument("text"), Argument("model"), Argument("key"), Argument("alias")

# Commands whose first argument says what to do, and what follows it.
ACTIONS: dict[str, dict[str, tuple[Argument, ...]]] = {
    "alias": {"list": (), "set": (_TEXT, _MODEL), "rm": (_ALIAS,)},
    "catalog": {"show": (Argument("entry"),), "refresh": (_TEXT,), "reset": ()},
    "config": {
        "show": (),
        "get": (_KEY,),
        "set": (_KEY, Argument("text", repeats=True)),
        "unset": (_KEY,),
        "path": (),
        "edit": (),
    },
    "profile": {
        "list": (),
        "show": (Argument("profile"),),
        "new": (_TEXT,),
        "check": (Argument("file", repeats=True),),
        "import": (Argument("file", repeats=True),),
        "refresh": (_TEXT,),
        "reset": (),
    },
}


def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print what makes a shell complete commands and models.

    \b
    source <(mdl completion bash)                  in ~/.bashrc
    mdl completion zsh > DIR/_mdl                  DIR is one of $fpath
    mdl completion fish > ~/.config/fish/completions/mdl.fish
    """
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
    labels = [param.metavar or "" for param in command.params if param.param_type_name == "argument"]
    actions = ACTIONS.get(name, {})
    if actions:
        arguments: tuple[Argument, ...] = (Argument("word", tuple(actions)),)
    else:
        arguments = tuple(_argument(name, label) for label in labels)
    return Command(name, aliases, _line(command.help), tuple(_options(command)), arguments, actions)


def _argument(command: str, label: str) -> Argument:
    words = _words(command, label)
    return Argument("word" if words else _kind(command, label), words, label.endswith("..."))


def _options(command: Any) -> Iterator[Option]:
    """Long names first, and --help last, as the help has them."""
    context = typer.Context(command, help_option_names=["-h", "--help"])
    for param in command.get_params(context):
        if param.param_type_name != "option" or param.hidden:
            continue
        names = sorted(param.opts, key=len, reverse=True) + list(param.secondary_opts)
        words = _words(command.name, param.opts[0])
        kind: Kind = "" if param.is_flag else "word" if words else _kind(command.name, param.metavar or "")
        yield Option(tuple(names), _line(param.help), kind, words, param.multiple)


def _kind(command: str, metavar: str) -> Kind:
    """MODEL, MODEL..., MODEL [PROMPT] and MODEL[=SCALE] are all models."""
    kind = KINDS.get(metavar.partition("[")[0].rstrip(" ."), "text")
    return "cached" if kind == "model" and command in OF_THE_CACHE else kind


def _words(command: str, name: str) -> tuple[str, ...]:
    """The values of an option or argument, where there are only a few."""
    from mdl import search
    from mdl.config import Pull
    from mdl.listing import SORTS

    known = {
        ("completion", "SHELL"): SHELLS,
        ("list", "--sort"): (*SORTS, *(f"-{key}" for key in SORTS)),
        ("search", "--sort"): search.SORTS,
    }
    if name == "--pull":
        return tuple(word for word in get_args(Pull) if word != "ask")  # what happens without the option
    return ("auto",) if name == "--gpu-layers" else known.get((command, name), ())


def _line(text: str | None) -> str:
    """The first paragraph, as one line."""
    return " ".join((text or "").partition("\n\n")[0].split()).removesuffix(".")
