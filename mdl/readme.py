"""The words with which a README introduces a model: its first paragraph, as plain text. Pure.

Reads just as much Markdown as is needed to leave out what is none of these words. The text is anybody's: what
is looked at is bounded, so that no spelling of it takes long.
"""

import html
import re

LONGEST = 500  # characters of an introduction
SHORTEST = 40  # characters; less is a caption or a badge
MOST_READ = 64 << 10  # bytes of a README that are looked at
_LONGEST_BLOCK = 4096
_FRONT_MATTER = re.compile(r"---[ \t]*\n.*?\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_NO_PROSE = ("#", "|", ">", "```", "~~~", "---", "===", "***", "- ", "* ", "+ ", "[!", "![", "$$", "    ")
_MARKUP = (
    (re.compile(r"<!--.{0,4096}?-->|<[^<>]{0,1000}>", re.DOTALL), ""),
    (re.compile(r"!\[[^\[\]]{0,300}\]\([^()]{0,1000}\)"), ""),
    (re.compile(r"\[([^\[\]]{1,300})\](?:\([^()]{0,1000}\)|\[[^\[\]]{0,300}\])"), r"\1"),
    (re.compile(r"\*\*|__|``?|(?<!\w)[*_]|[*_](?!\w)"), ""),
)


def introduction(content: bytes) -> str:
    """The first paragraph of prose on one line; empty where there is none."""
    text = content[:MOST_READ].decode("utf-8", "replace").removeprefix("\ufeff").replace("\r\n", "\n")
    text = _FRONT_MATTER.sub("", text, count=1) if text.startswith("---") else text
    return next((words for block in _blocks(text) if len(words := _plain(block)) >= SHORTEST), "")


def _blocks(text: str) -> list[str]:
    """Paragraphs of what may be prose: without headings, tables, lists, quotations and code."""
    blocks: list[str] = []
    lines: list[str] = []
    fenced = False
    for line in [*text.split("\n"), ""]:
        bare = line.strip()
        fenced ^= bare.startswith(("```", "~~~"))
        if not bare or fenced or line.startswith(_NO_PROSE) or bare.startswith(_NO_PROSE):
            blocks.append("\n".join(lines))
            lines = []
        else:
            lines.append(bare)
    return [block for block in blocks if block]


def _plain(block: str) -> str:
    """A paragraph without its markup, cut at a word."""
    text = block[:_LONGEST_BLOCK]
    for pattern, words in _MARKUP:
        text = pattern.sub(words, text)
    text = " ".join(html.unescape(text).split())
    if len(text) <= LONGEST:
        return text
    return text[:LONGEST].rpartition(" ")[0].rstrip(" ,;:") + " …"
