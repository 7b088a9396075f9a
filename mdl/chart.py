"""Pictures of figures: bars for a terminal, and SVG. Knows no models."""

from collections.abc import Sequence
from typing import NamedTuple

BLOCKS = " ▏▎▍▌▋▊▉"  # eighths of a column
WIDEST, NARROWEST = 48, 8  # columns of a bar


class Bar(NamedTuple):
    """`low` and `high` are what the value varied between."""

    label: str
    value: float
    low: float
    high: float


class Chart(NamedTuple):
    title: str
    bars: tuple[Bar, ...]


def lines(chart: Chart, columns: int, *, blocks: bool) -> list[tuple[str, str, str]]:
    """A line for each bar: label, bar, value. Without `blocks` the bars are made of # signs."""
    labels = max(len(bar.label) for bar in chart.bars)
    values = max(len(_number(bar.value)) for bar in chart.bars)
    wide = max(NARROWEST, min(WIDEST, columns - labels - values - 6))
    top = max(bar.value for bar in chart.bars) or 1.0
    draw = _blocks if blocks else _signs
    return [
        (f"{bar.label:>{labels}}", draw(bar.value / top * wide), f"{_number(bar.value):>{values}}")
        for bar in chart.bars
    ]


def _blocks(length: float) -> str:
    eighths = round(length * 8)
    return "█" * (eighths // 8) + BLOCKS[eighths % 8].strip()


def _signs(length: float) -> str:
    return "#" * round(length)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


# SVG

WIDTH, ROW, HEAD, EDGE, LABELS, VALUES = 720, 26, 44, 24, 130, 90
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 15px }
.value { font-variant-numeric: tabular-nums }
.bar { fill: #0969da }
.spread { stroke: #1f2328; stroke-opacity: .6; fill: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .bar { fill: #4493f8 }
  .spread { stroke: #e6edf3 }
}
"""


def svg(title: str, charts: Sequence[Chart]) -> str:
    """The charts one below the other, for light and dark pages. A whisker is what a value varied between."""
    parts, y = [_text(EDGE, EDGE + 8, title, "title")], EDGE + 16
    for chart in charts:
        parts += _chart(chart, y)
        y += HEAD + ROW * len(chart.bars)
    height = y + EDGE
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<title>{_escaped(title)}</title>",
            f"<style>{_STYLE}</style>",
            *parts,
            "</svg>\n",
        )
    )


def _chart(chart: Chart, y: int) -> list[str]:
    top = max(bar.high for bar in chart.bars) or 1.0
    scale = (WIDTH - 2 * EDGE - LABELS - VALUES) / top
    rows = enumerate(chart.bars)
    head = _text(EDGE, y + HEAD - 16, chart.title, "")
    return [head, *(part for i, bar in rows for part in _bar(bar, y + HEAD + i * ROW, scale))]


def _bar(bar: Bar, y: int, scale: float) -> list[str]:
    x, middle = EDGE + LABELS, y + ROW // 2 - 2
    low, high = (f"{x + value * scale:.1f}" for value in (bar.low, bar.high))
    return [
        _text(x - 10, middle + 5, bar.label, "", end=True),
        f'<rect class="bar" x="{x}" y="{y}" width="{bar.value * scale:.1f}" height="{ROW - 6}" rx="2"/>',
        f'<path class="spread" d="M{low} {middle - 4}v8M{low} {middle}H{high}M{high} {middle - 4}v8"/>',
        _text(WIDTH - EDGE, middle + 5, _number(bar.value), "value", end=True),
    ]


def _text(x: int, y: int, text: str, kind: str, *, end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}"{name}{anchor}>{_escaped(text)}</text>'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
