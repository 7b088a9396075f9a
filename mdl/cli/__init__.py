"""The command line: every command and option. Bodies import what they need; only this package exits."""

import signal
import sys
from typing import Annotated

import typer

from mdl import ui
from mdl.cli import models, running
from mdl.errors import MdlError, UsageError

app = typer.Typer(
    name="mdl",
    help="Get, keep and run open language models on your own machine.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
models.add_to(app)
running.add_to(app)


def _version(wanted: bool) -> None:
    if wanted:
        from mdl import __version__

        ui.out(f"mdl {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Get, keep and run open language models on your own machine."""


def run(arguments: list[str] | None = None) -> int:
    """The exit code of a command line. What went wrong is told here, once."""
    arguments = sys.argv[1:] if arguments is None else arguments
    json = "--json" in arguments
    try:
        return int(app(arguments, standalone_mode=False) or 0)
    except MdlError as failure:
        ui.error(failure, json=json)
        return failure.code
    except typer.TyperException as failure:
        context = getattr(failure, "ctx", None)
        command = context.command_path if context else "mdl"
        if context and not arguments:  # no command at all: help, as everybody does
            ui.talk(failure.format_message())
            return failure.exit_code
        ui.error(UsageError(failure.format_message(), hint=f"{command} --help"), json=json)
        return failure.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 128 + signal.SIGINT
