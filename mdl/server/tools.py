"""What a chat completion says of tools: those that there are, and which of them may or must be called. Knows
no form in which models write calls.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mdl.server.fields import Fields

MOST_TOOLS = 128

Tool = Mapping[str, Any]


class Choice(NamedTuple):
    """Fields of Chat, by the names there."""

    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    only: str = ""
    parallel_calls: bool = True


class _Wanted(NamedTuple):
    """How `tool_choice` chooses among the tools; `names` None: all of them."""

    mode: str = "auto"
    names: tuple[str, ...] | None = None
    only: str = ""


def tools(fields: Fields) -> Choice:
    """Raises Refused, which names the place, for what is wrong, contradicts or is not supported."""
    declared = tuple(map(_declared, fields.objects("tools", MOST_TOOLS)))
    names = [tool["function"]["name"] for tool in declared]
    if len(set(names)) < len(names):
        fields.fail("tools", "has two functions of one name")
    parallel = fields.flag("parallel_tool_calls")
    wanted = _wanted(fields)
    for name in (*(wanted.names or ()), *filter(None, [wanted.only])):
        if name not in names:
            fields.fail("tool_choice", f"names {name[:64]!a}, which is not among the tools")
    if wanted.mode == "required" and not declared:
        fields.fail("tool_choice", "requires a call, and there are no tools")
    if wanted.mode == "none":
        return Choice()
    shown = tuple(
        tool for tool in declared if wanted.names is None or tool["function"]["name"] in wanted.names
    )
    return Choice(shown, wanted.mode == "required", wanted.only, parallel is not False)


def _wanted(fields: Fields) -> _Wanted:
    choice = fields.take("tool_choice")
    if choice is None or choice in ("auto", "none", "required"):
        return _Wanted(choice or "auto")
    if not isinstance(choice, dict):
        fields.fail("tool_choice", "has to be auto, none, required, or name a function")
    named = Fields(choice, fields.path("tool_choice"))
    named.needs("type")
    kind = named.choice("type", "function", "allowed_tools")
    wanted = _named(named) if kind == "function" else _allowed(named)
    named.done()
    return wanted


def _named(fields: Fields) -> _Wanted:
    return _Wanted("required", None, _name(fields))


def _allowed(fields: Fields) -> _Wanted:
    fields.needs("allowed_tools")
    allowed = fields.object("allowed_tools")
    assert allowed is not None
    for name in ("mode", "tools"):
        allowed.needs(name)
    mode = allowed.choice("mode", "auto", "required") or "auto"
    names = tuple(map(_reference, allowed.objects("tools", MOST_TOOLS)))
    if not names:
        allowed.fail("tools", "is empty")
    allowed.done()
    return _Wanted(mode, names)


def _reference(fields: Fields) -> str:
    fields.needs("type")
    fields.choice("type", "function")
    name = _name(fields)
    fields.done()
    return name


def _name(fields: Fields) -> str:
    fields.needs("function")
    function = fields.object("function")
    assert function is not None
    function.needs("name")
    name = function.text("name") or ""
    function.done()
    return name


def _declared(fields: Fields) -> Tool:
    for name in ("type", "function"):
        fields.needs(name)
    fields.choice("type", "function")
    function = fields.object("function")
    assert function is not None
    function.needs("name")
    declared: dict[str, Any] = {"name": function.text("name")}
    if (description := function.text("description")) is not None:
        declared["description"] = description
    parameters = function.take("parameters")
    if not isinstance(parameters, dict | None):
        function.fail("parameters", "has to be an object")
    declared["parameters"] = parameters or {"type": "object", "properties": {}}
    if function.flag("strict"):
        declared["strict"] = True
    function.done()
    fields.done()
    return {"type": "function", "function": declared}
