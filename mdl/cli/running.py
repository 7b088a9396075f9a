"""Commands that run models: chat, serve."""

import typer


def add_to(app: typer.Typer) -> None:
    pass
