"""The command line: every command and option. Bodies import what they need; only this package exits."""

import signal
import sys
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer

from mdl import ui
from mdl.cli import old
from mdl.errors import MdlError, UsageError

# name: where it is. A command line builds only the command that it names: building all of them takes longer
# than most commands do.
COMMANDS = {
    "download": "mdl.cli.models:download",
    "list": "mdl.cli.models:list_models",
    "inspect": "mdl.cli.inspecting:inspect",
    "import": "mdl.cli.importing:import_models",
    "resolve": "mdl.cli.models:resolve",
    "rm": "mdl.cli.models:remove",
    "verify": "mdl.cli.keeping:verify",
    "prune": "mdl.cli.keeping:prune",
    "df": "mdl.cli.keeping:df",
    "alias": "mdl.cli.models:alias",
    "catalog": "mdl.cli.finding:catalog",
    "search": "mdl.cli.finding:search",
    "config": "mdl.cli.configuring:configure",
    "profile": "mdl.cli.profiling:profile",
    "login": "mdl.cli.access:login",
    "logout": "mdl.cli.access:logout",
    "chat": "mdl.cli.running:chat",
    "serve": "mdl.cli.running:serve",
    "ps": "mdl.cli.engines:ps",
    "stop": "mdl.cli.engines:stop",
    "bench": "mdl.cli.benching:bench",
    "completion": "mdl.cli.completion:completion",
}
INTERRUPTED = 128 + signal.SIGINT
ALIASES = {"pull": "download", "ls": "list", "show": "inspect", "remove": "rm", "run": "chat"}


def build(named: str = "") -> typer.Typer:
    """The command line with just the command of this name, or with all if there is none."""
    app = typer.Typer(
        name="mdl",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(main)
    names = [ALIASES.get(named, named)] if ALIASES.get(named, named) in COMMANDS else list(COMMANDS)
    for name in names:
        module, _, function = COMMANDS[name].partition(":")
        command = getattr(import_module(module), function)
        app.command(name)(command)
        for alias in [alias for alias, target in ALIASES.items() if target == name]:
            app.command(alias, hidden=True)(command)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        from mdl import __version__

        ui.out(f"mdl {__version__}")
        raise typer.Exit


def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Get, keep and run open language models on your own machine."""


def _terminated(number: int, _: object) -> NoReturn:
    """End as after Ctrl-C, so that a terminal is given back and what arrived is kept."""
    raise SystemExit(128 + number)


def _refusal(failure: typer.TyperException) -> UsageError:
    """What typer refuses, in our words where the option is one that other tools have."""
    context: Any = getattr(failure, "ctx", None)
    if context and hasattr(failure, "possibilities"):  # no such option
        from mdl.parameters import find

        known = find(getattr(failure, "option_name", ""))
        flags = {flag for param in context.command.params for flag in param.opts}
        if known and "--gpu-layers" in flags:
            flag = "--ctx" if known.name == "context" else f"--{known.name.replace('_', '-')}"
            variable = f"MDL_{known.name.upper()} sets it, or a profile: mdl profile new"
            return UsageError(failure.message, hint=f"here it is {flag}" if flag in flags else variable)
    return UsageError(failure.format_message(), hint=f"{context.command_path if context else 'mdl'} --help")


def run(arguments: list[str] | None = None) -> int:
    """The exit code of a command line. What went wrong is told here, once."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, _terminated)
    json = "--json" in arguments
    try:
        arguments = old.renewed(arguments)
        app = build(arguments[0] if arguments else "")
        code = int(app(arguments, standalone_mode=False) or 0)
        if code == INTERRUPTED:  # typer makes that of Ctrl-C
            ui.end_line()
        return code
    except MdlError as failure:
        ui.error(failure, json=json)
        return failure.code
    except typer.TyperException as failure:
        if getattr(failure, "ctx", None) and not arguments:  # no command at all: help, as everybody does
            ui.talk(failure.format_message())
        else:
            ui.error(_refusal(failure), json=json)
        return failure.exit_code
    except OSError as failure:
        return ui.refused(failure, json=json)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
