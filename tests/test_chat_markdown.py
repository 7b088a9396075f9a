"""Markdown as it streams: nothing lost, nothing drawn twice, the same however it is cut."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdl.chat.inline import BOLD, CODE, DIM, ITALIC, LONGEST_SPAN
from mdl.chat.markdown import Markdown
from mdl.chat.wrap import RESET
from mdl.ui import width

SGR = re.compile(r"\x1b\[[0-9;]*m")

# What models write, in pieces that make and break every rule.
MARKS = ["*", "**", "_", "`", "```", "~~", "|", "|-|", "#", "# ", "- ", "1. ", "> ", "---", "\\|"]
WORDS = ["word", "a", "(", "é", "日本", "👍", "very long words " * 9, "x" * 99, "python\n", "0"]
PIECES = st.sampled_from([*MARKS, *WORDS, "\n", "\n\n", " ", "  ", "\t"])
TEXTS = st.lists(PIECES, max_size=40).map("".join)


def draw(text: str, columns: int = 80, styled: bool = True) -> str:
    markdown = Markdown(lambda: columns, styled)
    return markdown.feed(text) + markdown.end()


def plain(text: str) -> str:
    return SGR.sub("", text)


@given(TEXTS, st.integers(20, 90), st.booleans(), st.data())
def test_however_an_answer_is_cut_the_same_is_drawn(text, columns, styled, data):
    whole = draw(text, columns, styled)
    markdown, drawn, rest = Markdown(lambda: columns, styled), "", text
    while rest:
        size = data.draw(st.integers(1, 9))
        drawn += markdown.feed(rest[:size])
        rest = rest[size:]
    assert drawn + markdown.end() == whole


ALL = """# A `heading`
Some **bold text** and ~~old~~ *words*, snake_case, 2 * 3, `code`, **open and `open
- item ***one*** (**two**)
> quoted `x``y` text
---
```python
x = '**a**' ```
```
| a | **b** |
|---|:-:|
| `x` | ~~日本~~ |
这是**重点**内容, ~1 ~~2 km"""


@pytest.mark.parametrize("styled", [True, False])
def test_wherever_an_answer_is_cut_the_same_is_drawn(styled):
    whole = draw(ALL, 40, styled)
    markdown = Markdown(lambda: 40, styled)
    assert "".join(map(markdown.feed, ALL)) + markdown.end() == whole
    for cut in range(len(ALL)):
        markdown = Markdown(lambda: 40, styled)
        assert markdown.feed(ALL[:cut]) + markdown.feed(ALL[cut:]) + markdown.end() == whole


@given(TEXTS, st.integers(20, 90))
def test_every_letter_is_drawn(text, columns):
    letters = re.compile(r"[^\W_]")
    assert letters.findall(plain(draw(text, columns))) == letters.findall(text)


@given(TEXTS, st.integers(20, 90))
def test_without_style_only_white_space_changes(text, columns):
    drawn = draw(text, columns, styled=False)
    assert "".join(drawn.split()) == "".join(text.split())


@given(st.lists(st.text("abcdé日本*_`", min_size=1, max_size=18), max_size=60), st.integers(40, 90))
def test_no_line_of_words_is_wider_than_the_terminal(words, columns):
    drawn = plain(draw(" ".join(words), columns))
    assert max(map(width, drawn.split("\n"))) <= columns


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("**a** b", f"{BOLD}a{RESET} b"),
        ("*a b*, c", f"{ITALIC}a{RESET} {ITALIC}b{RESET}, c"),
        ("`a*b*`.", f"{CODE}a*b*{RESET}."),
        ("**a `b`**", f"{BOLD}a{RESET} {BOLD}{CODE}b{RESET}"),
        ("这是**重点**内容", f"这是{BOLD}重{RESET}{BOLD}点{RESET}内容"),
        ("## Title\n", f"{BOLD}Title{RESET}\n"),
        ("- a\n* b\n", "• a\n• b\n"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("snake_case_name", "snake_case_name"),
        ("def f(*args, **kwargs)", "def f(*args, **kwargs)"),
        ("a **b", "a **b"),
        ("#hashtag, 1.5, -x", "#hashtag, 1.5, -x"),
        ("| a | b |\n", "| a | b |\n"),
        ("~5 km", "~5 km"),
        ("2**3** 4", "2**3** 4"),
        ("a_b_ c", "a_b_ c"),
    ],
)
def test_what_is_markup_and_what_is_not(text, drawn):
    assert draw(text) == drawn


def test_words_wrap_where_a_list_item_began():
    assert draw("1. one two three four five", columns=20) == "1. one two three\n   four five"


def test_code_is_not_wrapped_and_not_styled_inside():
    drawn = draw("```python\n" + "x = '**a**' * 2  # " + "y" * 60 + "\n```\nafter", columns=40)
    assert plain(drawn) == "```python\nx = '**a**' * 2  # " + "y" * 60 + "\n```\nafter"
    assert f"{DIM}```python{RESET}\n{CODE}x" in drawn


def test_a_table_stands_in_columns_and_as_it_is_where_there_is_no_room():
    table = "| city | **people** |\n|---|:-:|\n| 東京 | 14 |\n| Rome | 3 |\n"
    assert plain(draw(table)).splitlines() == ["city  people", "────  ──────", "東京  14", "Rome  3"]
    wide = f"| {'a' * 30} | {'b' * 30} |\n|---|---|\n| 1 | 2 |\n"
    assert plain(draw(wide, columns=40)) == wide


def test_a_word_is_drawn_as_soon_as_it_is_whole():
    markdown = Markdown(lambda: 80)
    assert [markdown.feed(piece) for piece in ("Hel", "lo wo", "rld\nNe")] == ["", "Hello", " world\n"]


def test_emphasis_that_never_closes_waits_no_longer_than_it_may():
    markdown = Markdown(lambda: 80)
    assert markdown.feed("*" + "a " * (LONGEST_SPAN // 2)) != ""
