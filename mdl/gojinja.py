"""Prompt templates of Ollama's models, made from Go's into Jinja. Knows no models and no files.

What is written here is what Ollama passes to a template: a conversation as `.Messages`, or, to older ones,
turn by turn as `.System`, `.Prompt` and `.Response`. The Jinja that comes out writes the same prompt. A
template that does anything else (functions of its own, text cut by bytes) is refused, with the reason: a
prompt that is nearly right is wrong.

Two things differ, on purpose: JSON does not escape `<`, `>` and `&` for HTML, and its objects stay in the
order of the request.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from mdl.gotemplate import (
    Call,
    Expression,
    If,
    Jump,
    Literal,
    Node,
    Path,
    Range,
    Set,
    Show,
    Text,
    With,
    parse,
    refusal,
)

_PROMPT = Show(Path("", ("Prompt",)))
_RESPONSE = Show(Path("", ("Response",)))


def translate(source: str) -> str | None:
    """The Jinja that writes what the Go template does; None for one that only passes the prompt on, which is
    what Ollama takes for a model that has none.

    Raises UnsupportedModel for a template that is broken, or that Jinja could not follow to the letter.
    """
    nodes = parse(source)
    names = {name.lower() for name in _names(nodes)}
    if not names & {"messages", "prompt", "system"} or nodes == [_PROMPT]:
        return None
    if "messages" in names:
        return _whole(nodes)
    return _turns(nodes if "response" in names else [*nodes, _RESPONSE])


def _names(nodes: list[Node]) -> Iterator[str]:
    """The names of all fields that a template looks at."""
    for node in nodes:
        for value in _values(node):
            yield from _fields(value)
        for body in _bodies(node):
            yield from _names(body)


def _values(node: Node) -> list[Expression]:
    if isinstance(node, If):
        return [value for value, _ in node.branches]
    return [node.value] if isinstance(node, Show | Set | With | Range) else []


def _bodies(node: Node) -> list[list[Node]]:
    if isinstance(node, If):
        return [*(body for _, body in node.branches), node.otherwise]
    return [node.body, node.otherwise] if isinstance(node, With | Range) else []


def _fields(value: Expression) -> Iterator[str]:
    if isinstance(value, Path):
        yield from value.fields
        if value.base is not None:
            yield from _fields(value.base)
    elif isinstance(value, Call):
        for argument in value.arguments:
            yield from _fields(argument)


# The types of what Ollama passes to a template, and where Jinja finds it: field -> (key, type)
# Types that begin with "[" are lists of the type that follows.

_TYPES: dict[str, dict[str, tuple[str, str]]] = {
    "Message": {
        "Role": ("role", "string"),
        "Content": ("content", "string"),
        "Thinking": ("reasoning_content", "string"),
        "ToolCalls": ("tool_calls", "[ToolCall"),
        "ToolName": ("name", "string"),
        "ToolCallID": ("tool_call_id", "string"),
        "Images": ("images", "[image"),
    },
    "ToolCall": {"ID": ("id", "string"), "Function": ("function", "CalledFunction")},
    "CalledFunction": {"Name": ("name", "string"), "Arguments": ("arguments", "Arguments")},
    "Tool": {"Type": ("type", "string"), "Function": ("function", "Function")},
    "Function": {
        "Name": ("name", "string"),
        "Description": ("description", "string"),
        "Parameters": ("parameters", "Parameters"),
    },
    "Parameters": {
        "Type": ("type", "string"),
        "Required": ("required", "[string"),
        "Properties": ("properties", "Properties"),
    },
    "Property": {
        "Type": ("type", "any"),
        "Description": ("description", "string"),
        "Enum": ("enum", "[any"),
        "Items": ("items", "any"),
    },
}
_OBJECTS = {"Properties": "Property", "Arguments": "any"}  # of any keys: the type of their values
_AS_JSON = ("Tool", "[Tool", "Function", "Parameters", "Arguments")  # those that Ollama gives that form
_JSON = "tojson(separators=(',', ':'))"

_THINKS = "(enable_thinking is defined and enable_thinking)"
_SWITCHED = "(enable_thinking is defined)"
_ALWAYS = {"Think": (_THINKS, "bool"), "IsThinkSet": (_SWITCHED, "bool")}
_NEVER = {"Suffix": ("''", "string"), "ThinkLevel": ("''", "string"), "First": ("false", "bool")}


class Typed(NamedTuple):
    """A Jinja expression, and the type that its value has in Go."""

    text: str
    type: str


def _by(operator: str) -> Callable[[list[Typed]], Typed]:
    """A function that gives one of its arguments, chosen by an operator."""

    def call(arguments: list[Typed]) -> Typed:
        types = {argument.type for argument in arguments}
        text = f" {operator} ".join(argument.text for argument in arguments)
        return Typed(f"({text})", types.pop() if len(types) == 1 else "mixed")

    return call


def _compare(operator: str) -> Callable[[list[Typed]], Typed]:
    def call(arguments: list[Typed]) -> Typed:
        left, *rights = arguments
        if operator == "==" and len(rights) > 1:
            return Typed(f"({left.text} in ({', '.join(right.text for right in rights)}))", "bool")
        _expect(len(rights) == 1, f"a comparison has {len(arguments)} arguments")
        return Typed(f"({left.text} {operator} {rights[0].text})", "bool")

    return call


def _not(arguments: list[Typed]) -> Typed:
    _expect(len(arguments) == 1, "not has one argument")
    return Typed(f"(not {arguments[0].text})", "bool")


def _len(arguments: list[Typed]) -> Typed:
    _expect(len(arguments) == 1 and _is_many(arguments[0]), "len is asked of what is no list")
    return Typed(f"({arguments[0].text}|length)", "int")


def _slice(arguments: list[Typed]) -> Typed:
    _expect(arguments[0].type.startswith("[") and len(arguments) < 4, "slice is asked of what is no list")
    bounds = ":".join([bound.text for bound in arguments[1:]] + [""] * (3 - len(arguments)))
    return Typed(f"{arguments[0].text}[{bounds}]", arguments[0].type)


def _index(arguments: list[Typed]) -> Typed:
    _expect(len(arguments) == 2 and _is_many(arguments[0]), "index is asked of what is no list")
    found, key = arguments
    return Typed(f"{found.text}[{key.text}]", _OBJECTS.get(found.type, found.type[1:]))


def _json(arguments: list[Typed]) -> Typed:
    _expect(len(arguments) == 1, "json has one argument")
    return Typed(f"({arguments[0].text}|{_JSON})", "string")


def _today(arguments: list[Typed]) -> Typed:
    _expect(not arguments, "currentDate has no arguments")
    return Typed("strftime_now('%Y-%m-%d')", "string")


def _same(arguments: list[Typed]) -> Typed:
    return arguments[0]


_FUNCTIONS: dict[str, tuple[int, Callable[[list[Typed]], Typed]]] = {  # with the fewest arguments
    "and": (1, _by("and")),
    "or": (1, _by("or")),
    "not": (1, _not),
    "eq": (2, _compare("==")),
    "ne": (2, _compare("!=")),
    "lt": (2, _compare("<")),
    "le": (2, _compare("<=")),
    "gt": (2, _compare(">")),
    "ge": (2, _compare(">=")),
    "len": (1, _len),
    "slice": (1, _slice),
    "index": (2, _index),
    "json": (1, _json),
    "currentDate": (0, _today),
    "call": (1, _same),
}


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise refusal(otherwise)


def _is_many(value: Typed) -> bool:
    return value.type.startswith("[") or value.type in _OBJECTS


# Writing

_COLLATED = """\
{%- set go = namespace(system='', messages=[]) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}
    {%- set go.system = go.system ~ ('\\n\\n' if go.said else '') ~ message['content'] -%}
    {%- set go.said = true -%}
  {%- endif -%}
  {%- if go.messages and go.messages[-1]['role'] == message['role'] != 'tool' -%}
    {%- set text = go.messages[-1]['content'] ~ '\\n\\n' ~ message['content'] -%}
    {%- set go.messages = go.messages[:-1] + [dict(go.messages[-1], content=text)] -%}
  {%- else -%}
    {%- set go.messages = go.messages + [message] -%}
  {%- endif -%}
{%- endfor -%}
"""

_EACH = """\
{%- set next = namespace(system='', prompt='', response='') -%}
{%- for message in go.messages -%}
  {%- set role = message['role'] -%}
  {%- if (role in ('system', 'user') and next.response) or (role == 'system' and next.prompt) -%}
    {{- turn(next.system, next.prompt, next.response) -}}
    {%- set next.system = '' -%}
    {%- set next.prompt = '' -%}
    {%- set next.response = '' -%}
  {%- endif -%}
  {%- if role == 'system' -%}
    {%- set next.system = message['content'] -%}
  {%- elif role == 'user' -%}
    {%- set next.prompt = message['content'] -%}
  {%- elif role == 'assistant' -%}
    {%- set next.response = message['content'] -%}
  {%- endif -%}
{%- endfor -%}
{{- last(next.system, next.prompt, next.response) -}}
"""


def _whole(nodes: list[Node]) -> str:
    """For a template that is given the conversation."""
    root = {
        "System": ("go.system", "string"),
        "Messages": ("go.messages", "[Message"),
        "Tools": ("(tools or [])", "[Tool"),
        "Prompt": ("''", "string"),
        "Response": ("''", "string"),
        **_ALWAYS,
        **_NEVER,
    }
    return _COLLATED + _Writer(root, nodes).write(nodes)


def _turns(nodes: list[Node]) -> str:
    """For a template that is given one turn after the other, of which the last ends where the answer goes."""
    root = {
        "System": ("system", "string"),
        "Prompt": ("prompt", "string"),
        "Response": ("response", "string"),
        "Tools": ("[]", "[Tool"),
        **_ALWAYS,
        **_NEVER,
    }
    writer = _Writer(root, nodes)
    last, _ = _up_to_response(nodes)
    macros = "".join(
        f"{{%- macro {name}(system, prompt, response) -%}}\n{writer.write(body)}{{%- endmacro -%}}\n"
        for name, body in (("turn", nodes), ("last", last))
    )
    return _COLLATED + macros + _EACH


def _up_to_response(nodes: list[Node]) -> tuple[list[Node], bool]:
    """The nodes up to where the response is written, and whether it is."""
    kept: list[Node] = []
    for node in nodes:
        node, found = _cut(node)
        kept.append(node)
        if found:
            return kept, True
    return kept, False


def _cut(node: Node) -> tuple[Node, bool]:
    if isinstance(node, Show):
        return node, _has_response(node.value)
    if isinstance(node, If):
        bodies = [_up_to_response(body) for _, body in node.branches]
        otherwise, found = _up_to_response(node.otherwise)
        branches = [(value, body) for (value, _), (body, _) in zip(node.branches, bodies, strict=True)]
        return If(branches, otherwise), found or any(found for _, found in bodies)
    if isinstance(node, With):
        body, found = _up_to_response(node.body)
        otherwise, also = _up_to_response(node.otherwise)
        return With(node.variable, node.value, body, otherwise), found or also
    return node, False


def _has_response(value: Expression) -> bool:
    if isinstance(value, Call):
        return any(map(_has_response, value.arguments))
    return isinstance(value, Path) and value.name == "" and "Response" in value.fields


@dataclass
class _Scope:
    """What the dot and the variables are, where a node stands."""

    dot: Typed
    variables: dict[str, Typed] = field(default_factory=dict)

    def within(self, dot: Typed | None = None) -> "_Scope":
        return _Scope(dot or self.dot, dict(self.variables))


class _Writer:
    """From nodes to Jinja, a tag a line. White space between tags is stripped by all of them."""

    def __init__(self, root: Mapping[str, tuple[str, str]], nodes: list[Node]) -> None:
        self._types = {**_TYPES, "Root": dict(root)}
        self._changing = set(_reassigned(nodes))
        self._numbers = count(1)

    def write(self, nodes: list[Node]) -> str:
        return "".join(f"{line}\n" for line in self._block(nodes, _Scope(Typed("", "Root"))))

    def _block(self, nodes: list[Node], scope: _Scope) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, Text):
                yield f"{{{{- {_quoted(node.text)} -}}}}"
            elif isinstance(node, Show):
                yield f"{{{{- {_shown(self._value(node.value, scope))} -}}}}"
            elif isinstance(node, Set):
                yield self._set(node, scope)
            elif isinstance(node, Jump):
                yield f"{{%- {node.word} -%}}"
            elif isinstance(node, If):
                yield from self._if(node, scope)
            elif isinstance(node, With):
                yield from self._with(node, scope)
            else:
                yield from self._range(node, scope)

    def _indented(self, nodes: list[Node], scope: _Scope) -> Iterator[str]:
        return (f"  {line}" for line in self._block(nodes, scope))

    def _if(self, node: If, scope: _Scope) -> Iterator[str]:
        word = "if"
        for value, body in node.branches:
            yield f"{{%- {word} {self._value(value, scope).text} -%}}"
            yield from self._indented(body, scope.within())
            word = "elif"
        yield from self._otherwise(node.otherwise, scope)
        yield "{%- endif -%}"

    def _otherwise(self, nodes: list[Node], scope: _Scope) -> Iterator[str]:
        if nodes:
            yield "{%- else -%}"
            yield from self._indented(nodes, scope.within())

    def _with(self, node: With, scope: _Scope) -> Iterator[str]:
        value = self._value(node.value, scope)
        dot = Typed(f"with_{next(self._numbers)}", value.type)
        inner = scope.within(dot)
        yield f"{{%- set {dot.text} = {value.text} -%}}"
        if node.variable:
            yield self._declare(node.variable, dot, inner)
        yield f"{{%- if {dot.text} -%}}"
        yield from self._indented(node.body, inner)
        yield from self._otherwise(node.otherwise, scope)
        yield "{%- endif -%}"

    def _range(self, node: Range, scope: _Scope) -> Iterator[str]:
        value = self._value(node.value, scope)
        _expect(_is_many(value), "it goes through what is no list")
        if not node.otherwise:
            yield from self._loop(node, value, scope)
            return
        _expect(
            not _jumps(node.otherwise), "it leaves the else of a range, which Go does in a way of its own"
        )
        # The else of Jinja's loops also runs when the first round ends early.
        items = Typed(f"items_{next(self._numbers)}", value.type)
        yield f"{{%- set {items.text} = {value.text} -%}}"
        yield f"{{%- if {items.text} -%}}"
        yield from self._loop(node, items, scope)
        yield from self._otherwise(node.otherwise, scope)
        yield "{%- endif -%}"

    def _loop(self, node: Range, value: Typed, scope: _Scope) -> Iterator[str]:
        number = next(self._numbers)
        key, item = f"key_{number}", f"item_{number}"
        inner = scope.within(Typed(item, _OBJECTS.get(value.type, value.type[1:])))
        if value.type in _OBJECTS:
            kind = "string"
            yield f"{{%- for {key}, {item} in {value.text}|dictsort(true) -%}}"
        else:
            kind = "int"
            yield f"{{%- for {item} in {value.text} -%}}"
            yield f"  {{%- set {key} = loop.index0 -%}}"
        for name, typed in ((node.index, Typed(key, kind)), (node.variable, inner.dot)):
            if name:
                yield f"  {self._declare(name, typed, inner)}"
        yield from self._indented(node.body, inner)
        yield "{%- endfor -%}"

    def _set(self, node: Set, scope: _Scope) -> str:
        value = self._value(node.value, scope)
        if node.declares:
            return self._declare(node.name, value, scope)
        known = scope.variables.get(node.name)
        if known is None:
            raise refusal(f"it sets {node.name:.40} before it declares it")
        _expect(known.type == value.type, f"{node.name:.40} changes its type")
        return f"{{%- set {known.text} = {value.text} -%}}"

    def _declare(self, name: str, value: Typed, scope: _Scope) -> str:
        """Jinja forgets what a loop sets when it ends, except in a namespace."""
        plain = f"{'go.' if name in self._changing else ''}var_{next(self._numbers)}"
        scope.variables[name] = Typed(plain, value.type)
        return f"{{%- set {plain} = {value.text} -%}}"

    def _value(self, value: Expression, scope: _Scope) -> Typed:
        if isinstance(value, Literal):
            return _literal(value.value)
        if isinstance(value, Path):
            return self._path(value, scope)
        if value.function not in _FUNCTIONS:
            raise refusal(f"it calls {value.function:.40}")
        fewest, call = _FUNCTIONS[value.function]
        _expect(len(value.arguments) >= fewest, f"{value.function} has too few arguments")
        return call([self._value(argument, scope) for argument in value.arguments])

    def _path(self, path: Path, scope: _Scope) -> Typed:
        if path.base is not None:
            found = self._value(path.base, scope)
        elif path.name == "":
            found = scope.dot
        elif path.name == "$":
            found = Typed("", "Root")
        elif path.name in scope.variables:
            found = scope.variables[path.name]
        else:
            raise refusal(f"it has no variable {path.name:.40}")
        for name in path.fields:
            found = self._field(found, name)
        return found

    def _field(self, found: Typed, name: str) -> Typed:
        known = self._types.get(found.type, {}).get(name)
        if known is None:
            raise refusal(f"it asks for .{name:.40}, which is not known")
        key, kind = known
        if found.type == "Root":
            return Typed(key, kind)
        text = f"{found.text}['{key}']"
        if (empty := _empty(kind)) and key not in ("role", "content"):
            return Typed(f"({text} or {empty})", kind)  # what a request leaves out is empty in Go
        return Typed(text, kind)


def _jumps(nodes: list[Node]) -> bool:
    inner = (body for node in nodes for body in _bodies(node))
    return any(isinstance(node, Jump) for node in nodes) or any(map(_jumps, inner))


def _reassigned(nodes: list[Node]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, Set) and not node.declares:
            yield node.name
        for body in _bodies(node):
            yield from _reassigned(body)


def _empty(kind: str) -> str:
    if kind in ("string", "any"):
        return "''"
    return "[]" if kind.startswith("[") else "{}"


def _literal(value: str | int | bool | None) -> Typed:
    if isinstance(value, str):
        return Typed(_quoted(value), "string")
    if value is None:
        return Typed("none", "nil")
    return Typed(str(value).lower(), "bool" if isinstance(value, bool) else "int")


def _shown(value: Typed) -> str:
    """What an expression writes, as Go has it."""
    if value.type in ("string", "int"):
        return value.text
    if value.type == "bool":
        return f"('true' if {value.text} else 'false')"
    if value.type in _AS_JSON:
        return f"({value.text}|{_JSON})"
    if value.type == "any":  # as it stands in a request: a text, or something else in JSON
        return f"({value.text} if {value.text} is string else {value.text}|{_JSON})"
    if value.type == "[string":
        return f"('[' ~ {value.text}|join(' ') ~ ']')"
    raise refusal("it writes what has no form in a text")


def _quoted(text: str) -> str:
    """A text as Jinja writes it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return "'" + re.sub(r"[^ -~]", _escaped, escaped) + "'"


def _escaped(character: re.Match[str]) -> str:
    code = ord(character[0])
    if character[0].isprintable() and code > 0x7F:
        return character[0]
    return f"\\U{code:08x}" if code > 0xFFFF else f"\\u{code:04x}"
