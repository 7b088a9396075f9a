"""Templates of Go's text/template, read into nodes. Knows no Jinja, no models and no files.

What is read is what Go documents (https://pkg.go.dev/text/template), without templates within templates,
variables that an `if` declares, and numbers that are not whole. The rest is refused, with the reason.
"""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mdl.errors import UnsupportedModel

LONGEST = 256 << 10  # characters; the longest in use have about twenty thousand
DEEPEST = 30  # blocks in blocks, and parentheses in parentheses
MOST_TOKENS = 100  # of an action; they have thirty at most, and Jinja reads what is nested by recursion

_HINT = "the model's own template is used, if it has one"


def parse(source: str) -> "list[Node]":
    """What a template does. Raises UnsupportedModel for one that is broken, or does what is not read here."""
    if len(source) > LONGEST:
        raise refusal(f"it is longer than {LONGEST:,} characters")
    return _Parser(source.replace("\r\n", "\n")).parse()


def refusal(reason: str) -> UnsupportedModel:
    return UnsupportedModel(f"the Go template is not one that mdl can use: {reason}", hint=_HINT)


# What a template is made of


@dataclass(frozen=True, slots=True)
class Literal:
    value: str | int | bool | None


@dataclass(frozen=True, slots=True)
class Path:
    """Fields of what a name stands for: "" is the dot, "$" the root, "$x" a variable, None what `base` is."""

    name: str | None
    fields: tuple[str, ...] = ()
    base: "Expression | None" = None


@dataclass(frozen=True, slots=True)
class Call:
    function: str
    arguments: "tuple[Expression, ...]"


Expression = Literal | Path | Call


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Show:
    value: Expression


@dataclass(frozen=True, slots=True)
class Set:
    name: str
    value: Expression
    declares: bool


@dataclass(frozen=True, slots=True)
class Jump:
    word: str  # break, continue


@dataclass(frozen=True, slots=True)
class If:
    branches: "list[tuple[Expression, list[Node]]]"
    otherwise: "list[Node]"


@dataclass(frozen=True, slots=True)
class With:
    variable: str
    value: Expression
    body: "list[Node]"
    otherwise: "list[Node]"


@dataclass(frozen=True, slots=True)
class Range:
    index: str
    variable: str
    value: Expression
    body: "list[Node]"
    otherwise: "list[Node]"


Node = Text | Show | Set | Jump | If | With | Range


# Reading

_COMMENT = re.compile(r"\{\{(-[ \t\r\n]+)?/\*.*?\*/([ \t\r\n]+-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<string>"(?:\\.|[^"\\\n])*"|`[^`]*`)
    |(?P<path>\$\w*(?:\.\w+)*|(?:\.\w+)+|\.(?![\w.]))
    |(?P<number>[+-]?\d+(?![\w.]))
    |(?P<word>[A-Za-z_]\w*)
    |(?P<sign>:=|=|,|\||\(|\)(?:\.\w+)*)""",
    re.VERBOSE,
)
_END = re.compile(r"[ \t\r\n]+-\}\}|[ \t\r\n]*\}\}")
_SPACE = " \t\r\n"


class Token(NamedTuple):
    kind: str
    text: str


class _Parser:
    """From text to nodes. What stands between braces is an action."""

    def __init__(self, source: str) -> None:
        self._pieces = _pieces(source)
        self._tokens: deque[Token] = deque()
        self._depth = 0

    def parse(self) -> list[Node]:
        nodes, end = self._block()
        if end is not None:
            raise refusal(f"there is nothing for {{{{ {end} }}}} to end")
        return nodes

    def _block(self) -> tuple[list[Node], str | None]:
        """Nodes up to an `end` or `else`, which is given too; None is the end of the text."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise refusal(f"it has more than {DEEPEST} blocks in each other")
        nodes: list[Node] = []
        word: str | None = None
        for piece in self._pieces:
            if isinstance(piece, str):
                nodes += [Text(piece)] if piece else []
                continue
            self._tokens = deque(piece)
            if self._sees("word", "end", "else"):
                word = self._next().text
                break
            nodes.append(self._action())
            self._expect_nothing()
        self._depth -= 1
        return nodes, word

    def _action(self) -> Node:
        if self._sees("word", "define", "template", "block"):
            raise refusal(f"it has a {{{{ {self._tokens[0].text} }}}}, a template of its own")
        if self._sees("word", "break", "continue"):
            return Jump(self._next().text)
        if self._sees("word", "if"):
            return self._if()
        if self._sees("word", "with"):
            return self._with()
        if self._sees("word", "range"):
            return self._range()
        if names := self._names_before("=", ":="):
            sign = self._next().text
            return Set(_one(names), self._pipeline(), sign == ":=")
        return Show(self._pipeline())

    def _if(self) -> If:
        branches = []
        while True:
            self._next()
            value = self._condition()
            body, word = self._block()
            branches.append((value, body))
            if word == "else" and self._sees("word", "if"):
                continue
            return If(branches, self._otherwise(word))

    def _condition(self) -> Expression:
        if self._names_before(":="):
            raise refusal("it declares a variable in an {{ if }}")
        value = self._pipeline()
        self._expect_nothing()
        return value

    def _with(self) -> With:
        self._next()
        names = self._names_before(":=")
        if names:
            self._next()
        value = self._pipeline()
        self._expect_nothing()
        body, word = self._block()
        return With(_one(names) if names else "", value, body, self._otherwise(word))

    def _range(self) -> Range:
        self._next()
        names = self._names_before(":=")
        if names:
            self._next()
        if len(names) > 2:
            raise refusal("a {{ range }} has more than two variables")
        index, variable = ("", *names) if len(names) == 1 else names or ("", "")
        value = self._pipeline()
        self._expect_nothing()
        body, word = self._block()
        return Range(index, variable, value, body, self._otherwise(word))

    def _otherwise(self, word: str | None) -> list[Node]:
        """What follows the `else` of a block, up to its `end`."""
        nodes: list[Node] = []
        if word == "else":
            self._expect_nothing()
            nodes, word = self._block()
        if word != "end":
            raise refusal("a block has no {{ end }}")
        self._expect_nothing()
        return nodes

    def _names_before(self, *signs: str) -> tuple[str, ...]:
        """Variables at the beginning of the action that one of the signs follows; they are taken."""
        names: list[str] = []
        for token in self._tokens:
            if token.kind == "sign" and token.text in signs:
                for _ in range(2 * len(names) - 1):
                    self._next()
                return tuple(names)
            if token.kind == "path" and re.fullmatch(r"\$\w+", token.text):
                names.append(token.text)
            elif token != Token("sign", ","):
                break
        return ()

    def _pipeline(self) -> Expression:
        value = self._command()
        while self._sees("sign", "|"):
            self._next()
            value = self._command(value)
        return value

    def _command(self, *last: Expression) -> Expression:
        first = self._operand()
        arguments = []
        while self._tokens and (self._tokens[0].kind != "sign" or self._tokens[0].text == "("):
            arguments.append(self._operand())
        if isinstance(first, Call) and not first.arguments:
            return Call(first.function, (*arguments, *last))
        if arguments or last:
            raise refusal("it calls what is no function of templates")
        return first

    def _operand(self) -> Expression:
        token = self._next()
        if token.kind == "string":
            return Literal(_unquoted(token.text))
        if token.kind == "number" and len(token.text) < 10:
            return Literal(int(token.text))
        if token.kind == "path":
            name, *fields = token.text.split(".")
            return Path(name, tuple(part for part in fields if part))
        if token.kind == "word":
            return Literal(_WORDS[token.text]) if token.text in _WORDS else Call(token.text, ())
        if token.text == "(":
            return self._parenthesis()
        raise refusal(f"{token.text!r:.40} is not understood")

    def _parenthesis(self) -> Expression:
        self._depth += 1
        if self._depth > DEEPEST:
            raise refusal(f"it has more than {DEEPEST} parentheses in each other")
        value = self._pipeline()
        closed = self._next()
        if not closed.text.startswith(")"):
            raise refusal("a parenthesis is not closed")
        self._depth -= 1
        if isinstance(value, Call) and not value.arguments:
            value = Call("call", (value,))  # no longer the name of a function that arguments may follow
        fields = tuple(closed.text.split(".")[1:])
        return Path(None, fields, value) if fields else value

    def _sees(self, kind: str, *texts: str) -> bool:
        return bool(self._tokens) and self._tokens[0].kind == kind and self._tokens[0].text in texts

    def _next(self) -> Token:
        if not self._tokens:
            raise refusal("an action ends too early")
        return self._tokens.popleft()

    def _expect_nothing(self) -> None:
        if self._tokens:
            raise refusal(f"{self._tokens[0].text!r:.40} is not expected there")


_WORDS: dict[str, bool | None] = {"true": True, "false": False, "nil": None}


def _one(names: tuple[str, ...]) -> str:
    if len(names) != 1:
        raise refusal("it sets two variables at once")
    return names[0]


def _pieces(source: str) -> Iterator[str | list[Token]]:
    """Texts, and the tokens of each action. White space beside a `-` is gone."""
    place, trim = 0, False
    while True:
        start = source.find("{{", place)
        text = source[place:] if start < 0 else source[place:start]
        text = text.lstrip(_SPACE) if trim else text
        if start < 0:
            yield text
            return
        dash = source[start + 2 : start + 3] == "-" and source[start + 3 : start + 4] in tuple(_SPACE)
        yield text.rstrip(_SPACE) if dash else text
        if comment := _COMMENT.match(source, start):
            place, trim = comment.end(), comment[2] is not None
            continue
        tokens, place, trim = _tokens(source, start + (3 if dash else 2))
        yield tokens


def _tokens(source: str, place: int) -> tuple[list[Token], int, bool]:
    """The tokens up to the end of an action, where that is, and whether it trims what follows."""
    tokens: list[Token] = []
    while not (end := _END.match(source, place)):
        found = _TOKEN.match(source, place)
        if not found or not found.lastgroup:
            rest = source[place : place + 20]
            raise refusal(f"{rest!r} is not understood" if rest else "an action has no end")
        if found.lastgroup != "space":
            tokens.append(Token(found.lastgroup, found[0]))
        if len(tokens) > MOST_TOKENS:
            raise refusal(f"an action has more than {MOST_TOKENS} words")
        place = found.end()
    return tokens, end.end(), end[0].endswith("-}}")


_ESCAPE = re.compile(r"\\(?:([abfnrtv\\\"'])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.?))")
_ESCAPED = dict(zip("abfnrtv\\\"'", "\a\b\f\n\r\t\v\\\"'", strict=True))


def _unquoted(text: str) -> str:
    """The value of a string as Go writes it."""
    return text[1:-1] if text[0] == "`" else _ESCAPE.sub(_character, text[1:-1])


def _character(escape: re.Match[str]) -> str:
    if escape[1]:
        return _ESCAPED[escape[1]]
    code = int(escape[2] or escape[3] or escape[4] or "-1", 16)
    if not 0 <= code < (0x80 if escape[2] else 0x110000) or 0xD800 <= code < 0xE000:  # \xff is half a letter
        raise refusal(f"{escape[0]!r} is no character")
    return chr(code)
