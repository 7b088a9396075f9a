"""Calls of tools in the text of an answer: the forms that models write them in, read as they come, and
grammars that leave no other way. Knows no tokens.
"""

import json
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mdl.engine.request import CallPiece, Format
from mdl.errors import UnsupportedModel, UsageError

Tool = Mapping[
    str, Any
]  # as OpenAI has it: {"type": "function", "function": {name, description, parameters}}


@dataclass(frozen=True, slots=True)
class Form:
    """A call between two tags, as a JSON object that has its name and arguments under these names. `unlike`
    is what templates have of which the models write something else between the same tags."""

    start: str
    end: str
    name: str = "name"
    arguments: str = "arguments"
    unlike: tuple[str, ...] = ()

    def fits(self, template: str) -> bool:
        """Whether the model of this chat template writes calls so."""
        own = self.start in template and self.end in template
        return own and not any(mark in template for mark in self.unlike)


# The forms that are known. A model's is the first that fits its chat template.
FORMS = (
    # Hermes, Qwen, and others after them; but not Qwen3-Coder, GLM and Hunyuan, which write no JSON there.
    Form("<tool_call>", "</tool_call>", unlike=("<function=", "<arg_key>", "<tool_sep>")),
)

TAGS = tuple(tag for form in FORMS for tag in (form.start, form.end))


def form_of(template: str) -> Form | None:
    """How a model writes calls, by its chat template."""
    return next((form for form in FORMS if form.fits(template)), None)


def new_id() -> str:
    return f"call_{secrets.token_hex(12)}"


LONGEST_NAME = 256  # characters


def check(tools: Sequence[Tool]) -> None:
    """Raises UsageError for what could not be called by its name."""
    names: set[str] = set()
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
            raise UsageError(
                f"a tool is a function that has a name of up to {LONGEST_NAME} characters",
                hint='{"type": "function", "function": {"name": "add", "parameters": {…}}}',
                field="tools",
            )
        if name in names:
            raise UsageError(f"two tools have the name {name[:64]!a}", field="tools")
        names.add(name)


# Reading


class Calls:
    """Tells calls from the text around them, as it comes.

    The name is told when it is known, the arguments as they come where they follow it, as models are taught
    to write; else all at once. What is no call after all is text. `full`: with `only_one`, that is complete.
    """

    def __init__(self, form: Form, only_one: bool = False, new_id: Callable[[], str] = new_id) -> None:
        self.full = False
        self.count = 0
        self._form = form
        self._only_one = only_one
        self._new_id = new_id
        self._held = ""  # what may be the beginning of a tag, and the space before it
        self._said = False
        self._behind = False  # a call, of which the white space is
        self._call: _Call | None = None

    def feed(self, text: str) -> tuple[list[CallPiece], str]:
        """The pieces of calls, and the text around them."""
        pieces: list[CallPiece] = []
        said = ""
        while text and not self.full:
            if self._call is None:
                before, text = self._outside(text)
            else:
                found, before, text = self._inside(self._call, text)
                pieces += found
            said += before
        return pieces, said

    def end(self) -> tuple[list[CallPiece], str]:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        call, self._call = self._call, None
        if call is None:
            return [], "" if self._behind and not held.strip() else held
        return [], "" if call.told else held + self._form.start + call.text

    def _outside(self, text: str) -> tuple[str, str]:
        """The text that is certain, and what is left to be read within a call. White space around calls
        belongs to the form."""
        if text.isspace() and self._held[-1:].isspace():
            self._held += text  # which a model may write without end
            return "", ""
        text = self._held + text
        before, tag, after = text.partition(self._form.start)
        if tag:
            self._call = _Call(self._form, self.count)
            certain = before.rstrip()
        else:
            certain = text[: undecided(text, self._form.start)].rstrip()
        self._held = before[len(certain) :] if tag else text[len(certain) :]
        if self.count and not self._said:
            certain = certain.lstrip()
        self._said |= bool(certain)
        self._behind &= not certain
        return certain, after

    def _inside(self, call: "_Call", text: str) -> tuple[list[CallPiece], str, str]:
        """Pieces of the call, what turned out to be text, and what is left behind it."""
        arguments, rest, complete = call.feed(text)
        pieces = []
        if call.name is not None and not call.told:
            call.told = True
            self._held = ""
            pieces.append(CallPiece(call.index, self._new_id(), call.name))
        if arguments:
            pieces.append(CallPiece(call.index, arguments=arguments))
        if not complete:
            return pieces, "", ""
        self._call = None
        if not call.told:
            said, self._held = self._held + self._form.start + call.text, ""
            self._said, self._behind = True, False
            return [], said, rest
        self.count += 1
        self._behind = True
        self.full = self._only_one
        return pieces, "", rest


class _Call:
    """One call, from behind its first tag to its last one."""

    def __init__(self, form: Form, index: int) -> None:
        self.index = index
        self.name: str | None = None
        self.told = False
        self.text = ""  # so far; what has been told of it is left out
        self._form = form
        self._searched = 0
        self._value: _Value | None = None
        self._head = _head(form)

    def feed(self, text: str) -> tuple[str, str, bool]:
        """New text of the arguments, what follows the call, and whether it is complete."""
        undecided = len(self.text) < LONGEST_HEAD and "{" in text
        self.text += text
        arguments = ""
        if self._value is None and undecided and (head := self._head.match(self.text, 0, LONGEST_HEAD)):
            self.name = _encodable(json.loads(head[1]))
            self.text, self._searched = self.text[head.end() :], 0
            self._value = _Value(self._form.end)
        if self._value is not None and not self._value.over:
            length = self._value.feed(self.text)
            arguments, self.text = self.text[:length], self.text[length:]
            if not self._value.over:
                return arguments, "", False
        return self._close(arguments)

    def _close(self, arguments: str) -> tuple[str, str, bool]:
        place = self.text.find(self._form.end, max(0, self._searched - len(self._form.end)))
        self._searched = len(self.text)
        if place < 0:
            return arguments, "", False
        end = place + len(self._form.end)
        rest, self.text = self.text[end:], self.text[:end]
        if self.name is None:
            arguments = self._whole(self.text[:place])
        return arguments, rest, True

    def _whole(self, text: str) -> str:
        """The arguments of a call in another order; none where it is no call."""
        try:
            call = json.loads(text)
            name, arguments = call[self._form.name], call.get(self._form.arguments)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return ""
        if not isinstance(name, str) or not name:
            return ""
        self.name = _encodable(name)
        if arguments is None:
            return "{}"
        return _encodable(
            arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        )


def _encodable(text: str) -> str:
    """JSON may escape half of a surrogate pair, which no UTF-8 can tell."""
    return text.encode("utf-8", "replace").decode()


LONGEST_HEAD = 4096  # characters up to the arguments


_STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))+"'  # of JSON, and not empty


def _head(form: Form) -> re.Pattern[str]:
    """The beginning of a call up to its arguments, in the order in which models are taught to write it."""
    name, arguments = re.escape(form.name), re.escape(form.arguments)
    return re.compile(rf'\s*\{{\s*"{name}"\s*:\s*({_STRING})\s*,\s*"{arguments}"\s*:\s*(?=\{{)')


class _Value:
    """Finds the end of a JSON object as it comes: where it closes, or where `tag` comes outside of its
    strings, as a model that has forgotten a bracket writes it."""

    def __init__(self, tag: str) -> None:
        self.over = False
        self._tag = tag
        self._outside = re.compile(rf'["{{}}\[\]{re.escape(tag[0])}]')
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int:
        """How many characters of the text belong to it; what may be the tag comes again, with more."""
        place = 0
        while place < len(text):
            if self._escaped:
                self._escaped = False
                place += 1
                continue
            mark = (_IN_STRING if self._in_string else self._outside).search(text, place)
            if mark is None:
                return len(text)
            place = mark.end()
            if mark[0] == self._tag[0]:
                tail = text[mark.start() : mark.start() + len(self._tag)]
                if self._tag.startswith(tail):
                    self.over = tail == self._tag
                    return mark.start()
                continue
            self._meet(mark[0])
            if self.over:
                return place
        return len(text)

    def _meet(self, mark: str) -> None:
        if mark == '"':
            self._in_string = not self._in_string
        elif mark == "\\":
            self._escaped = True
        else:
            self._depth += 1 if mark in "{[" else -1
            self.over = self._depth == 0


_IN_STRING = re.compile(r'["\\]')


def undecided(text: str, *strings: str) -> int:
    """Where one of the strings may have begun at the end of the text, else the text's length."""
    for start in range(max(0, len(text) - max(map(len, strings)) + 1), len(text)):
        if any(string.startswith(text[start:]) for string in strings):
            return start
    return len(text)


# Writing


def grammar(
    form: Form | None,
    tools: Sequence[Tool],
    only: str,
    parallel: bool,
    controls: Collection[str],
    thoughts: Collection[str] = (),
) -> Format:
    """What an answer has to be that calls: one of the tools or more, or `only` that one, with arguments as
    its schema has them. One of the tags in `thoughts` may come first: what follows it up to the end of the
    reasoning is not held to anything, and not seen here.

    Raises UnsupportedModel where it is not known how the model writes calls, UsageError for a schema that
    cannot be kept to.
    """
    form = _known(form)
    chosen = [tool["function"] for tool in tools if only in ("", tool["function"]["name"])]
    if not chosen:
        raise UsageError(f"there is no tool {only[:64]!a}")
    first, thought = _thought(thoughts, controls)
    return _lark(f"start: {first}call{_again(parallel)}", *thought, *_calls(form, chosen, controls))


def open_grammar(
    form: Form | None,
    tools: Sequence[Tool],
    parallel: bool,
    controls: Collection[str],
    answer: Format | None = None,
    thoughts: Collection[str] = (),
) -> Format:
    """What an answer has to be that may call or say something: any text, or what `answer` has it be. The
    arguments of tools that are `strict` are as their schema has them, those of others are an object.

    Raises what `grammar` does, and UsageError for an `answer` that is not JSON.
    """
    first, thought = _thought(thoughts, controls)
    said = [] if answer is None else [_answer(answer)]
    if not tools:
        return _lark(f"start: {first}answer", *thought, *said)
    form = _known(form)
    chosen = [_loose(tool["function"]) for tool in tools]
    calls = f"call{_again(parallel)}"
    if answer is not None:
        start = [f"start: {first}(answer | {calls})"]
    elif form.start in controls:
        start = [f"start: {first}(TEXT | TEXT? {calls})", "TEXT: /(?s:.*)/"]
    else:  # the tag is text like what comes before it, which goes on to where it ends for the first time
        tag = re.escape(form.start)
        start = [
            f"start: TEXT | before rest{_again(parallel)}",
            f"TEXT: /(?s:.*)/ & ~/(?s:.*{tag}.*)/",
            f"before[lazy]: /(?s:.*){tag}/",
        ]
        thought = []
    return _lark(*start, *thought, *said, *_calls(form, chosen, controls))


def _known(form: Form | None) -> Form:
    if form is None:
        raise UnsupportedModel(
            "it is not known how this model writes calls, so it cannot be held to one",
            hint="leave the choice to it: tool_choice auto",
        )
    return form


def _lark(*rules: str) -> Format:
    return Format("lark", "\n".join(rules))


def _again(parallel: bool) -> str:
    return ' ("\\n" call)*' if parallel else ""


def _tag(tag: str, controls: Collection[str]) -> str:
    return tag if tag in controls else json.dumps(tag)


def _thought(thoughts: Collection[str], controls: Collection[str]) -> tuple[str, list[str]]:
    """How a rule begins that may begin with one, and the rule that this takes."""
    if not thoughts:
        return "", []
    tags = " | ".join(_tag(tag, controls) for tag in thoughts)
    return "thought? ", [f'thought: ({tags}) "\\n"?']  # which a token may have with the end of the tag


def _answer(answer: Format) -> str:
    from mdl.engine.schema import parsed, prepared

    if answer.kind not in ("json", "schema"):
        raise UsageError(
            "an answer that may call tools can only be held to JSON besides, not to a grammar", field="format"
        )
    schema = {"type": "object"} if answer.kind == "json" else parsed(answer.text)
    return f"answer: %json {json.dumps(prepared(schema))}"


def _loose(function: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is not strict may be called with anything."""
    return function if function.get("strict") else {"name": function["name"]}


def _calls(form: Form, chosen: Sequence[Mapping[str, Any]], controls: Collection[str]) -> list[str]:
    rules = [
        f"call: {_tag(form.start, controls)} rest",
        f'rest: "\\n" object "\\n" {_tag(form.end, controls)}',
        "object: " + " | ".join(f"tool_{number}" for number in range(len(chosen))),
    ]
    for number, function in enumerate(chosen):
        rules += _rules(form, number, function)
    return rules


def _object(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of its arguments. Raises UsageError for one that is not that of an object."""
    schema = {"type": "object", **(function.get("parameters") or {})}
    if schema["type"] in ("string", "number", "integer", "boolean", "array", "null"):
        raise UsageError("its parameters have to be an object")
    return schema


def _rules(form: Form, number: int, function: Mapping[str, Any]) -> list[str]:
    from mdl.engine.schema import prepared

    head = f'{{"{form.name}": {json.dumps(function["name"])}, "{form.arguments}": '
    try:
        schema = prepared(_object(function))
    except UsageError as error:
        raise UsageError(f"the tool {function['name']}: {error.message}", error.hint) from None
    return [
        f'tool_{number}: {json.dumps(head)} arguments_{number} "}}"',
        f"arguments_{number}: %json {json.dumps(schema)}",
    ]
