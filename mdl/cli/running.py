"""Commands that run models: chat, serve."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mdl import ui
from mdl.cli import options
from mdl.cli.options import Json, ModelOption, Offline, Pull
from mdl.errors import UsageError

if TYPE_CHECKING:
    from mdl.engine import Engine
    from mdl.engine.request import EngineSettings, Sampling
    from mdl.library import Library

AUTO = "auto"


def add_to(app: typer.Typer) -> None:
    app.command("chat")(chat)
    app.command("run", hidden=True)(chat)
    app.command("serve")(serve)


Context = Annotated[int | None, typer.Option("--ctx", metavar="TOKENS", help="Tokens of prompt and answer together.")]
GpuLayers = Annotated[str, typer.Option(metavar="auto|N", help="Layers on the GPU; auto is all where there is one.")]
Threads = Annotated[int | None, typer.Option(metavar="N", help="Threads on the CPU.")]


def engine_settings(context: int | None, gpu_layers: str, threads: int | None, parallel: int) -> "EngineSettings":
    from mdl.engine.request import EngineSettings

    layers = None if gpu_layers == AUTO else _whole(gpu_layers, "--gpu-layers")
    return EngineSettings(context=context, gpu_layers=layers, threads=threads, parallel=parallel)


def _whole(text: str, option: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"{option} cannot be {text!r}", hint="auto, or a number of layers")
    return int(text)
