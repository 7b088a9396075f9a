"""What people see: sizes and times in words, tables that fit, and text that cannot harm a terminal."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdl import ui

NOW = datetime(2026, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (4_100_000_000, "4.1 GB"),
        (99_940_000, "99.9 MB"),
        (99_960_000, "100 MB"),
        (999_499_999, "999 MB"),
        (999_500_000, "1.0 GB"),
        (10**18, "1000 PB"),
    ],
)
def test_sizes_are_short(count: int | None, text: str) -> None:
    assert ui.size(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (999, "999"), (3_672_320, "3.7M"), (7_000_000_000, "7B"), (1_500_000, "1.5M")],
)
def test_numbers_of_parameters_are_said_as_people_do(count: int | None, text: str) -> None:
    assert ui.amount(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "just now"),
        (59, "just now"),
        (60, "1 minute ago"),
        (7200, "2 hours ago"),
        (2 * 86400, "2 days ago"),
        (604800, "1 week ago"),
        (70 * 86400, "2 months ago"),
        (800 * 86400, "2 years ago"),
        (-50, "just now"),
    ],
)
def test_times_are_ages(seconds: int, text: str) -> None:
    assert ui.ago(NOW - timedelta(seconds=seconds), NOW) == text


@given(st.text())
def test_nothing_that_is_shown_moves_a_cursor_or_hides(text: str) -> None:
    shown = ui.inert(text)
    assert not any((ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 for c in shown)
    assert not set(shown) & set("\u202e\u2066\u200f\u2028\ufeff")
    assert "\n" not in ui.inert(text, one_line=True)


@given(st.text())
def test_json_hides_nothing_moves_no_cursor_and_reads_back(text: str) -> None:
    shown = ui.as_json({"text": text})
    assert json.loads(shown) == {"text": text}
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]", shown)


def test_json_is_ascii_where_utf_8_is_not_taken(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    code = "from mdl import ui; ui.show_json({'text': 'é漢'})"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONIOENCODING": "latin-1"}, check=True)
    assert json.loads(capfdbinary.readouterr().out.decode("ascii"))["text"] == "é漢"


def test_ordinary_text_of_all_languages_stays_as_it_is() -> None:
    for text in ("Qwen/Qwen3 (8B)", "通义千问", "Ünïcödé", "नमस्ते", "👩‍🚀"):
        assert ui.inert(text) == text


def test_a_table_in_a_pipe_is_never_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    ui.table(("NAME", "SIZE"), [("x" * 300, "1 B"), ("y\x1b[2J", "20 GB")], right=(1,))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "x" * 300 + "    1 B"
    assert lines[2] == "y\\x1b[2J".ljust(300) + "  20 GB"


def test_what_is_wide_is_measured_in_columns() -> None:
    assert ui.width("abc") == 3
    assert ui.width("通义") == 4
    assert ui.shorten("huggingface.co/org/name", 10) == "…/org/name"
    assert ui.width(ui.shorten("通义千问", 5)) <= 5


@pytest.mark.parametrize(
    ("available", "widths"),
    [(100, [30, 8, 6, 10]), (55, [25, 8, 6, 10]), (42, [12, 8, 6, 10]), (41, [23, 8, 6]), (20, [12, 8])],
)
def test_a_table_is_made_to_fit_a_terminal(available: int, widths: list[int]) -> None:
    assert ui.fitted([30, 8, 6, 10], available) == widths
