"""`mdl bench`: how fast a model is here."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdl import ui
from mdl.cli import options
from mdl.cli.options import ContextSize, Json, ModelOption, Offline, Pull
from mdl.cli.running import AUTO, GpuLayers, Threads, engine_settings, held_files, load
from mdl.errors import DiskError, UsageError

if TYPE_CHECKING:
    from mdl.bench import Figure, Load, Plan, Report, Watch
    from mdl.chart import Chart
    from mdl.engine.request import Loaded


def bench(
    model: options.Model = None,
    named: ModelOption = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="N,…", help="Tokens of the prompts; 128,512,2048 as far as they fit."),
    ] = None,
    streams: Annotated[str, typer.Option(metavar="N,…", help="Answers at once.")] = "1,2,4,8",
    tokens: Annotated[int, typer.Option(metavar="N", help="Tokens of an answer.")] = 64,
    repeat: Annotated[int, typer.Option(metavar="N", help="How often each figure is measured.")] = 3,
    context: ContextSize = None,
    gpu_layers: GpuLayers = AUTO,
    threads: Threads = None,
    svg: Annotated[str | None, typer.Option(metavar="FILE", help="Draw a picture of the figures.")] = None,
    json: Json = False,
    pull: Pull = None,
    offline: Offline = False,
) -> int:
    """Measure how fast a model is here. Prompts, answers, several at once.

    \b
    mdl bench demo --svg speed.svg               with a picture
    mdl bench qwen3:4b --prompt 512 --streams 1  just these
    """
    from mdl.bench import Plan, document, run
    from mdl.engine import Engine

    name = options.one(model, named)
    plan = Plan(_numbers("--prompt", prompt), _numbers("--streams", streams) or (1,), tokens, repeat)
    settings = engine_settings(context, gpu_layers, threads, parallel=max(plan.streams))
    picture = _writable(svg)
    with ExitStack() as leases, Engine() as engine:
        library = options.open_library(pull=pull, offline=offline)
        files, profile = held_files(library, name, [], leases)
        load(engine, files, profile.engine_settings(settings), library)
        with _steps(json) as watch:
            report = run(engine, plan, watch)
    if picture is not None:
        _draw(picture, name, report)
    if json:
        ui.show_json({"name": name, **document(report, plan)})
    else:
        _show(report, plan)
    return 0


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """1,2,4; in order, each once."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 9 for part in parts):
        raise UsageError(f"{option} cannot be {text!r:.40}", hint="numbers, such as 1,2,4")
    return tuple(sorted({int(part) for part in parts}))


def _writable(path: str | None) -> Path | None:
    """Where the picture goes. Raises DiskError now, not after minutes of measuring."""
    if path is None:
        return None
    file = Path(path).expanduser()
    if not file.parent.is_dir():
        raise DiskError(f"there is no folder {file.parent}", hint="make it, or name another file")
    if file.is_dir():
        raise DiskError(f"{file} is a folder", hint="name a file, such as bench.svg")
    return file


@contextmanager
def _steps(json: bool) -> "Iterator[Watch]":
    """What is being measured: a line that changes on a terminal, JSON lines for scripts, else plain ones."""
    if json:
        yield lambda text: ui.talk(ui.as_json({"event": "step", "text": text}))
    elif not sys.stderr.isatty():
        yield ui.talk
    else:
        try:
            yield lambda text: ui.talk(f"\r\x1b[K{text} …", end="")
        finally:
            ui.talk("\r\x1b[K", end="")


def _show(report: "Report", plan: "Plan") -> None:
    loaded = report.loaded
    memory = f", {ui.size(report.memory)} of memory" if report.memory else ""
    ui.out(f"{_what(loaded)}; {_where(loaded)}, context {loaded.context:,}")
    ui.out(f"ready in {report.start:.2f} s{memory}\n")
    ui.table(
        ("PROMPT", "TOKENS/S", "FIRST TOKEN", f"NEXT {plan.tokens - 1}, TOKENS/S"),
        [
            (f"{each.tokens:,}", _spread(each.speed), _seconds(each.first), _spread(each.generation))
            for each in report.prompts
        ],
        right=(0, 1, 2, 3),
    )
    ui.out("")
    ui.table(
        ("STREAMS", "TOKENS/S", "EACH"),
        [(str(each.streams), _spread(each.speed), _each(each)) for each in report.loads],
        right=(0, 1, 2),
    )
    for chart in charts(report):
        _picture(chart)


def _what(loaded: "Loaded") -> str:
    architecture = ui.inert(loaded.architecture, one_line=True)
    return f"{architecture}, {ui.amount(loaded.parameters)} parameters, {ui.size(loaded.size)}"


def _where(loaded: "Loaded") -> str:
    """What computes."""
    threads = f"{loaded.threads} thread{'s' if loaded.threads > 1 else ''}"
    return f"{loaded.gpu_layers} layers on the GPU, {threads}" if loaded.gpu_layers else threads


def _spread(figure: "Figure") -> str:
    """The median, and half of what it varied by."""
    digits = 0 if figure.median >= 100 else 1
    return f"{figure.median:,.{digits}f} ± {(figure.high - figure.low) / 2:,.{digits}f}"


def _seconds(figure: "Figure") -> str:
    return f"{figure.median * 1e3:,.0f} ms" if figure.median < 10 else f"{figure.median:,.1f} s"


def _each(load: "Load") -> str:
    return f"{load.speed.median / load.streams:,.1f}"


def charts(report: "Report") -> "tuple[Chart, ...]":
    from mdl.chart import Bar, Chart

    loads = tuple(Bar(_streams(each.streams), *each.speed) for each in report.loads)
    prompts = tuple(Bar(f"{each.tokens:,} tokens", *each.speed) for each in report.prompts)
    depths = tuple(Bar(f"after {each.tokens:,}", *each.generation) for each in report.prompts)
    return (
        Chart("Answers, tokens/s of all streams", loads),
        Chart("Answer to a long prompt, tokens/s", depths),
        Chart("Prompt, tokens/s", prompts),
    )


def _streams(count: int) -> str:
    return f"{count} stream{'s' if count > 1 else ''}"


def _picture(chart: "Chart") -> None:
    from mdl import config
    from mdl.chart import lines

    on, off = ("\x1b[36m", "\x1b[0m") if sys.stdout.isatty() and config.wants_color() else ("", "")
    blocks = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    ui.out(f"\n{chart.title}")
    for label, bar, value in lines(chart, ui.columns(), blocks=blocks):
        ui.out(f"  {label}  {on}{bar}{off} {value}")


def _draw(path: Path, name: str, report: "Report") -> None:
    from mdl.chart import svg

    loaded = report.loaded
    title = f"{name}: {_what(loaded)}; {_where(loaded)}"
    try:
        path.write_text(svg(ui.inert(title, one_line=True), charts(report)), encoding="utf-8")
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror}", hint="name another file") from None
