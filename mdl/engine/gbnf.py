"""llama.cpp's grammars (GBNF), written as llguidance has them (a kind of Lark). Knows no tokens.

llguidance cuts a text into words first, the longest that it finds, where GBNF goes by characters. So each
character is a word of its own, which is always right, and slow: milliseconds for a mask of 150,000 tokens.
Rules that can be words, as nothing that follows them or begins like them could be taken for a part of them,
become such, and these make a mask a hundred times faster: the strings of JSON, say.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mdl.engine.pattern import literal
from mdl.errors import UsageError

MOST_RULES = 2000
MOST_DEPTH = 64
LAST = 0x10FFFF
DEEP = 6

_TOKEN = re.compile(
    r"""
    (?P<space>\s+ | \#[^\n]*)
    | (?P<head>[A-Za-z0-9_-]+\s*::=)
    | (?P<name>[A-Za-z0-9_-]+)
    | (?P<text>"(?:\\.|[^"\\\n])*")
    | (?P<set>\[(?:\\.|[^\]\\\n])*\])
    | (?P<any>\.)
    | (?P<open>\()
    | (?P<close>\))
    | (?P<bar>\|)
    | (?P<repeat>[*+?] | \{\s*\d{1,9}\s*(?:,\s*\d{0,9}\s*)?\})
    | (?P<token><[^<>\s]+>)
    | (?P<wrong>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[^xuU])|[^\\]", re.DOTALL)
_ESCAPES = {"n": 10, "r": 13, "t": 9} | {sign: ord(sign) for sign in '\\"[]'}


class Characters(NamedTuple):
    """One of these: the first and the last of each range, in order."""

    ranges: tuple[tuple[int, int], ...]


class Rule(NamedTuple):
    name: str


class Control(NamedTuple):
    """A control token, as `<text>` or `<[number]>`."""

    text: str


class Row(NamedTuple):
    items: tuple["Node", ...]


class Choice(NamedTuple):
    items: tuple["Node", ...]


class Repeat(NamedTuple):
    item: "Node"
    least: int
    most: int | None


Node = Characters | Rule | Control | Row | Choice | Repeat


def to_lark(text: str) -> str:
    """Raises UsageError with the line of what is wrong."""
    rules = _Reader(text).rules()
    return _written(rules, _words(rules))


# Reading


class _Reader:
    """A rule ends where the next one begins: lines mean nothing else."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [match for match in _TOKEN.finditer(text) if match.lastgroup != "space"]
        self._tokens.reverse()
        self._depth = 0

    def rules(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        used: dict[str, re.Match[str]] = {}
        self._used = used
        while self._tokens:
            head = self._take("head")
            if head is None:
                raise self._wrong("a rule begins with its name and ::=")
            name = head[0].removesuffix("::=").rstrip()
            if name in rules:
                raise self._wrong(f"the rule {name!r} is there twice", head)
            rules[name] = self._choice()
        for name, place in used.items():
            if name not in rules:
                raise self._wrong(f"there is no rule {name!r}", place)
        if "root" not in rules or len(rules) > MOST_RULES:
            raise UsageError(f"a grammar needs a rule named root, and at most {MOST_RULES} rules")
        return rules

    def _take(self, kind: str) -> re.Match[str] | None:
        if self._tokens and self._tokens[-1].lastgroup == kind:
            return self._tokens.pop()
        return None

    def _wrong(self, what: str, place: re.Match[str] | None = None) -> UsageError:
        place = place or (self._tokens[-1] if self._tokens else None)
        line = self._text.count("\n", 0, place.start() if place else len(self._text)) + 1
        return UsageError(f"the grammar cannot be used: {what}, in line {line}")

    def _choice(self) -> Node:
        items = [self._row()]
        while self._take("bar"):
            items.append(self._row())
        return Choice(tuple(items)) if len(items) > 1 else items[0]

    def _row(self) -> Node:
        items = []
        while (item := self._item()) is not None:
            while repeat := self._take("repeat"):
                item = _repeated(item, repeat[0])
            items.append(item)
        return items[0] if len(items) == 1 else Row(tuple(items))

    def _item(self) -> Node | None:
        if name := self._take("name"):
            self._used.setdefault(name[0], name)
            return Rule(name[0])
        if text := self._take("text"):
            letters = [Characters(((code, code),)) for code in self._codes(text[0][1:-1], text)]
            return letters[0] if len(letters) == 1 else Row(tuple(letters))
        if found := self._take("set"):
            return self._set(found)
        if self._take("any"):
            return Characters(((0, LAST),))
        if token := self._take("token"):
            return Control(token[0])
        if self._take("open"):
            return self._group()
        if self._tokens and self._tokens[-1].lastgroup in ("wrong", "repeat"):
            raise self._wrong(f"{self._tokens[-1][0]!r} is not expected")
        return None

    def _group(self) -> Node:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise self._wrong("there are too many parentheses in each other")
        group = self._choice()
        if not self._take("close"):
            raise self._wrong("a ) is missing")
        self._depth -= 1
        return group

    def _codes(self, text: str, place: re.Match[str]) -> list[int]:
        found = _CHARACTER.findall(text)
        if sum(map(len, found)) != len(text):
            raise self._wrong("an escape is cut off", place)
        return [self._code(character, place) for character in found]

    def _code(self, character: str, place: re.Match[str]) -> int:
        if len(character) == 1:
            return ord(character)
        code = int(character[2:], 16) if character[1] in "xuU" else _ESCAPES.get(character[1], -1)
        if not 0 <= code <= LAST or 0xD800 <= code < 0xE000:
            raise self._wrong(f"{character} is no character", place)
        return code

    def _set(self, place: re.Match[str]) -> Node:
        text = place[0][1:-1]
        negated = text.startswith("^")
        text = text[negated:]
        hyphens = [match[0] == "-" for match in _CHARACTER.finditer(text)]
        codes = self._codes(text, place)
        ranges, at = [], 0
        while at < len(codes):
            end = at + 2 if at + 2 < len(codes) and hyphens[at + 1] else at
            ranges.append((codes[at], codes[end]))
            at = end + 1
        if any(first > last for first, last in ranges):
            raise self._wrong("a range ends before it begins", place)
        if not ranges and not negated:
            raise self._wrong("[] matches nothing", place)
        return Characters(_outside(ranges) if negated else tuple(sorted(ranges)))


def _repeated(item: Node, how: str) -> Node:
    if how in "*+?":
        return Repeat(item, int(how == "+"), 1 if how == "?" else None)
    least, _, most = how.strip("{}").partition(",")
    return Repeat(item, int(least), (int(most) if most.strip() else None) if "," in how else int(least))


def _outside(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    found, start = [], 0
    for first, last in sorted(ranges):
        if first > start:
            found.append((start, first - 1))
        start = max(start, last + 1)
    return (*found, (start, LAST)) if start <= LAST else tuple(found)


# Which rules can be words


class Facts(NamedTuple):
    """Of a node: whether it can be nothing, what it may begin with, and what may follow within it when it
    could be at its end; sets of characters are bits. `clear`: with each character there is one way on."""

    nothing: bool
    first: int
    more: int = 0
    clear: bool = True


def _words(rules: Mapping[str, Node]) -> set[str]:
    """The rules that can be words. All, if the first one is without recursion: then there is one word."""
    bits = _Bits(rules)
    plain = _plain(rules, bits)
    if "root" in plain:
        return set(plain)
    words = {name for name, facts in plain.items() if facts.clear and not facts.nothing}
    while bad := _confused(rules, words, plain, bits):
        words -= bad
    return words


class _Bits:
    """A bit for each range of characters that no rule tells apart."""

    def __init__(self, rules: Mapping[str, Node]) -> None:
        sets = [node for rule in rules.values() for node in _within(rule) if isinstance(node, Characters)]
        self._starts = sorted(
            {edge for item in sets for first, last in item.ranges for edge in (first, last + 1)}
        )

    def of(self, characters: Characters) -> int:
        found = 0
        for first, last in characters.ranges:
            found |= (1 << bisect_left(self._starts, last + 1)) - (1 << bisect_left(self._starts, first))
        return found


def _within(node: Node) -> Iterator[Node]:
    yield node
    if isinstance(node, Row | Choice):
        for item in node.items:
            yield from _within(item)
    elif isinstance(node, Repeat):
        yield from _within(node.item)


def _plain(rules: Mapping[str, Node], bits: _Bits) -> dict[str, Facts]:
    """Those without recursion and control tokens, each after those that it is made of."""
    plain: dict[str, Facts] = {}
    needs = {
        name: {item for item in _within(rule) if isinstance(item, Rule | Control)}
        for name, rule in rules.items()
    }
    while True:
        known = {Rule(name) for name in plain}
        found = [name for name, needed in needs.items() if name not in plain and needed <= known]
        if not found:
            return plain
        for name in found:
            plain[name] = _facts(rules[name], plain, bits)


def _facts(node: Node, rules: Mapping[str, Facts], bits: _Bits) -> Facts:
    if isinstance(node, Characters):
        return Facts(False, bits.of(node))
    if isinstance(node, Rule):
        return rules[node.name]
    if isinstance(node, Control):
        return Facts(False, 0)
    if isinstance(node, Repeat):
        return _repetition(node, _facts(node.item, rules, bits))
    inner = [_facts(item, rules, bits) for item in node.items]
    return _row(inner) if isinstance(node, Row) else _choice(inner)


def _repetition(node: Repeat, inner: Facts) -> Facts:
    nothing = inner.nothing or node.least == 0
    if node.most is not None and node.most <= 1:
        return inner._replace(nothing=nothing)
    more = inner.more if node.least == node.most else inner.more | inner.first
    return Facts(nothing, inner.first, more, inner.clear and not inner.more & inner.first)


def _row(inner: list[Facts]) -> Facts:
    whole = Facts(True, 0)
    for item in inner:
        whole = Facts(
            whole.nothing and item.nothing,
            whole.first | (item.first if whole.nothing else 0),
            item.more | (whole.more | item.first if item.nothing else 0),
            whole.clear and item.clear and not (whole.more | whole.first * whole.nothing) & item.first,
        )
    return whole


def _choice(inner: list[Facts]) -> Facts:
    whole = inner[0]
    for item in inner[1:]:
        clear = whole.clear and item.clear and not whole.first & item.first
        whole = Facts(whole.nothing or item.nothing, whole.first | item.first, whole.more | item.more, clear)
    return whole


def _confused(
    rules: Mapping[str, Node], words: set[str], plain: Mapping[str, Facts], bits: _Bits
) -> set[str]:
    """Those of the words that what follows would lengthen, or that begin like another word."""
    facts = _settled(rules, words, plain, bits)
    flow = _Flow(words, facts, bits)
    while flow.grows(rules):
        pass
    twice, seen = 0, flow.letters
    for word in flow.follow:
        twice |= seen & facts[word].first
        seen |= facts[word].first
    return {
        word
        for word, follow in flow.follow.items()
        if facts[word].more & follow or facts[word].first & (twice | flow.letters)
    }


def _settled(
    rules: Mapping[str, Node], words: set[str], plain: Mapping[str, Facts], bits: _Bits
) -> dict[str, Facts]:
    """Of all rules, whether they can be nothing and what they begin with."""
    facts = {name: plain[name] if name in words else Facts(False, 0) for name in rules}
    changed = True
    while changed:
        changed = False
        for name in rules.keys() - words:
            nothing, first, *_ = _facts(rules[name], facts, bits)
            changed |= facts[name][:2] != (nothing, first)
            facts[name] = Facts(nothing, first)
    return facts


class _Flow:
    """What may follow each rule that is met on the way from the first one; `letters` are those that are words
    of their own."""

    def __init__(self, words: set[str], facts: Mapping[str, Facts], bits: _Bits) -> None:
        self.follow: dict[str, int] = {}
        self.letters = 0
        self._words, self._facts, self._bits = words, facts, bits
        self._after = {"root": 0}
        self._state: object = None

    def grows(self, rules: Mapping[str, Node]) -> bool:
        """Goes through all that was met so far once. False when nothing new was."""
        before = self._state
        for name in list(self._after):
            self._go(rules[name], self._after[name])
        self._state = (dict(self.follow), dict(self._after))
        return self._state != before

    def _go(self, node: Node, after: int) -> None:
        if isinstance(node, Characters):
            self.letters |= self._bits.of(node)
        elif isinstance(node, Rule):
            met = self.follow if node.name in self._words else self._after
            met[node.name] = met.get(node.name, 0) | after
        elif isinstance(node, Choice):
            for item in node.items:
                self._go(item, after)
        elif isinstance(node, Repeat):
            again = 0 if node.most == 1 else _facts(node.item, self._facts, self._bits).first
            self._go(node.item, after | again)
        elif isinstance(node, Row):
            for item in reversed(node.items):
                self._go(item, after)
                nothing, first, *_ = _facts(item, self._facts, self._bits)
                after = first | (after if nothing else 0)


# Writing


def _written(rules: Mapping[str, Node], words: set[str]) -> str:
    """Words, and what they are made of, are in capitals. The rules have numbers, as GBNF tells more names
    apart than Lark."""
    numbers = {name: str(number) for number, name in enumerate(rules)}
    parts = {name: f"W{number}" for name, number in numbers.items()}
    names = {name: parts[name] if name in words else f"r{number}" for name, number in numbers.items()}
    needed = _parts(rules, words)
    sentences, lexicon = _Writer("r", names), _Writer("W", parts)
    for name, rule in rules.items():
        if name not in words:
            sentences.write(names[name], rule)
        if name in needed:
            lexicon.write(parts[name], rule)
    return "\n".join([f"start: {names['root']}", *sentences.lines, *lexicon.lines])


def _parts(rules: Mapping[str, Node], words: set[str]) -> set[str]:
    """Words, and the rules within them."""
    found, new = set[str](), words
    while new:
        found |= new
        new = {item.name for name in new for item in _within(rules[name]) if isinstance(item, Rule)} - found
    return found


class _Writer:
    """Lines of Lark. What is nested deeper than llguidance reads gets rules of its own."""

    def __init__(self, prefix: str, names: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self._prefix = prefix
        self._names = names

    def write(self, name: str, rule: Node) -> None:
        self.lines.append(f"{name}: {self._node(rule, 0)}")

    def _node(self, node: Node, depth: int) -> str:
        if isinstance(node, Characters):
            return _set(node)
        if isinstance(node, Rule):
            return self._names[node.name]
        if isinstance(node, Control):
            return node.text
        if depth == DEEP:
            return self._apart(node)
        if isinstance(node, Repeat):
            most = "" if node.most is None else node.most
            return f"({self._node(node.item, depth + 1)}){{{node.least},{most}}}"
        items = [self._node(item, depth + 1) for item in node.items]
        return f"({(' ' if isinstance(node, Row) else ' | ').join(items)})" if items else '""'

    def _apart(self, node: Node) -> str:
        line = self._node(node, 0)
        name = f"{self._prefix}_{len(self.lines)}"
        self.lines.append(f"{name}: {line}")
        return name


def _set(characters: Characters) -> str:
    ranges = (
        literal(first) + (f"-{literal(last)}" if last > first else "") for first, last in characters.ranges
    )
    return f"/[{''.join(ranges)}]/"
