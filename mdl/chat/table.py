"""Tables of Markdown, in columns. Knows no stream: a table is drawn when it is over."""

import re
import sys

from mdl.chat.inline import BOLD, DIM, Inline
from mdl.chat.wrap import RESET, Lines

_BAR = re.compile(r"(?<!\\)\|")
_DASHES = re.compile(r":?-+:?")


def draw(rows: list[str], columns: int) -> list[str]:
    """The rows, aligned. Those of no table, and of one that is too wide, as they are."""
    table = [_cells(row) for row in rows]
    ruled = len(table) > 1 and all(_DASHES.fullmatch(cell) for cell in table[1])
    if not ruled or any(len(row) != len(table[0]) for row in table):
        return rows
    header, *body = [_drawn(row, "") for row in [table[0], *table[2:]]]
    widths = [max(size for _, size in column) for column in zip(header, *body, strict=True)]
    if sum(widths) + 2 * (len(widths) - 1) > columns:
        return rows
    rule = f"{DIM}{'  '.join('─' * size for size in widths)}{RESET}"
    return [_line(_drawn(table[0], BOLD), widths), rule, *(_line(row, widths) for row in body)]


def _cells(row: str) -> list[str]:
    bare = row.strip().removeprefix("|").removesuffix("|")
    return [cell.strip().replace("\\|", "|") for cell in _BAR.split(bare)]


def _drawn(row: list[str], style: str) -> list[tuple[str, int]]:
    """Each cell as it is written, and the columns that it takes."""
    return [_cell(text, style) for text in row]


def _cell(text: str, style: str) -> tuple[str, int]:
    lines = Lines(lambda: sys.maxsize)
    inline = Inline(lines, styled=True)
    inline.begin(style)
    inline.feed(text, whole=True)
    lines.flush()
    return lines.take(), lines.column


def _line(cells: list[tuple[str, int]], widths: list[int]) -> str:
    padded = [text + " " * (size - taken) for (text, taken), size in zip(cells, widths, strict=True)]
    return "  ".join(padded).rstrip()
