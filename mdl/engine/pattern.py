"""Regular expressions of JSON schemas (ECMA-262), written for Rust. Knows neither JSON nor grammars.

Validators search with the language that they are written in, and so differ in what `\\w`, `\\s` and `.` are.
Here the narrowest reading is taken: what is written matches in ECMA-262 and in Python.
"""

import re
from collections.abc import Iterator

from mdl.errors import UsageError

_ESCAPE = r"\\(?:u\{[0-9A-Fa-f]+\}|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|c[A-Za-z]|[pP]\{[^}]*\}|.)"
_ITEM = re.compile(f"{_ESCAPE}|.", re.DOTALL)
_TOKEN = re.compile(
    rf"""
    (?P<look>\(\?<?[=!])
    | (?P<open>\((?:\?:|\?<[A-Za-z_$][\w$]*>|(?!\?)))
    | (?P<close>\))
    | (?P<class>\[\^?(?:\\.|[^\]\\])*\])
    | (?P<repeat>(?:[*+?]|\{{\d+(?:,\d*)?\}})\??)
    | (?P<escape>{_ESCAPE})
    | (?P<any>\.)
    | (?P<anchor>[\^$])
    | (?P<bar>\|)
    | (?P<wrong>\(\?.?|\{{,?\d+|[\[\\])
    | (?P<character>.)
    """,
    re.DOTALL | re.VERBOSE | re.ASCII,
)

_SPACES = r" \t\n\r\f\v"
_ANY_SPACES = r"\p{White_Space}\x{feff}\x1c-\x1f"
_WORD = "0-9A-Za-z_"
_ANY_WORD = r"\p{Alphabetic}\p{M}\p{N}\p{Pc}\p{Join_Control}"

# of the readings of a class the one that matches least, and the one that matches most
_NARROW = {"d": "[0-9]", "D": r"[^\p{Nd}]", "w": f"[{_WORD}]", "W": f"[^{_ANY_WORD}]",
           "s": f"[{_SPACES}]", "S": f"[^{_ANY_SPACES}]"}  # fmt: skip
_WIDE = {"d": r"[\p{Nd}]", "D": "[^0-9]", "w": f"[{_ANY_WORD}]", "W": f"[^{_WORD}]",
         "s": f"[{_ANY_SPACES}]", "S": f"[^{_SPACES}]"}  # fmt: skip
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_ANY = r"[^\n\r\x{2028}\x{2029}]"


def translated(pattern: str) -> str:
    """The same for Rust, without a slash or a line's end in it.

    Raises UsageError for what is wrong, and for what cannot be followed from one character to the next:
    lookaround, backreferences, word boundaries.
    """
    written = []
    before = "bar"
    for kind, text in _tokens(pattern):
        if kind == "repeat" and before in ("bar", "open", "anchor", "repeat"):
            raise UsageError(f"{text} repeats nothing")
        written.append(_write(kind, text))
        before = kind
    return "".join(written)


def _tokens(pattern: str) -> Iterator[tuple[str, str]]:
    """Of halves of characters, as `\\ud83d\\ude00` writes them, the whole one is made."""
    joined = re.sub(r"\\u([dD][89abAB]\w\w)\\u([dD][c-fC-F]\w\w)", _character, pattern, flags=re.ASCII)
    return ((match.lastgroup or "", match[0]) for match in _TOKEN.finditer(joined))


def _character(halves: re.Match[str]) -> str:
    try:
        high, low = int(halves[1], 16), int(halves[2], 16)
    except ValueError:
        return halves[0]
    return f"\\u{{{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):x}}}"


def _write(kind: str, text: str) -> str:
    if kind in ("look", "wrong"):
        raise UsageError(f"{'lookaround, ' if kind == 'look' else ''}{text} is not supported")
    if kind == "class":
        return _class(text)
    if kind == "escape":
        return _NARROW.get(text[1:]) or _escape(text)
    if kind == "any":
        return _ANY
    if kind == "open":
        return "(?:"
    return literal(ord(text)) if kind == "character" else text


def _class(text: str) -> str:
    """`[...]`. Within a negated one, what matches most is what leaves least."""
    negated = text.startswith("[^")
    shorthands = _WIDE if negated else _NARROW
    items = _ITEM.findall(text[1 + negated : -1])
    if not items:
        if negated:
            return r"[\x00-\x{10ffff}]"
        raise UsageError("[] matches nothing")
    written = "".join(_ranges(items, shorthands))
    return f"[^{written}]" if negated else f"[{written}]"


def _ranges(items: list[str], shorthands: dict[str, str]) -> Iterator[str]:
    """A hyphen at an end, or beside a class, is one."""
    while items:
        item, *items = items
        single = item[1:] not in shorthands or item[0] != "\\"
        if not single:
            yield shorthands[item[1:]]
        elif len(items) > 1 and items[0] == "-" and not (items[1][0] == "\\" and items[1][1:] in shorthands):
            yield f"{_escape(item)}-{_escape(items[1])}"
            items = items[2:]
        else:
            yield _escape(item)


def _escape(text: str) -> str:
    """One character, or `\\p{...}`."""
    name = text[1:]
    if text[0] != "\\":
        return literal(ord(text))
    if name in _CONTROLS:
        return literal(_CONTROLS[name])
    if name[0] in "ux" and len(name) > 1:
        return literal(int(name[1:].strip("{}"), 16))
    if name[0] == "c" and len(name) > 1:
        return literal(ord(name[1]) % 32)
    if name[0] in "pP" and len(name) > 1:
        return text
    if name.isalnum():
        raise UsageError(f"{text} is not supported")
    return literal(ord(name))


def literal(code: int) -> str:
    """One character, by its code point."""
    if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
        raise UsageError(f"{code:x} is no character")
    return chr(code) if code < 128 and chr(code).isalnum() else f"\\x{{{code:x}}}"
