"""The messages of OpenAI's chat completions: JSON to Message. Knows no other field of a request."""

from collections.abc import Callable

from mdl.engine.request import Message, ToolCall
from mdl.server.fields import Fields

MOST_MESSAGES = 10_000
MOST_PARTS = 1_000  # of one message
MOST_CALLS = 128


def messages(fields: Fields) -> tuple[Message, ...]:
    """Raises Refused, which names the place, for what is wrong or not supported."""
    fields.needs("messages")
    found = tuple(map(_message, fields.objects("messages", MOST_MESSAGES)))
    if not found:
        fields.fail("messages", "is empty")
    return found


def _message(fields: Fields) -> Message:
    fields.needs("role")
    role = fields.choice("role", *_ROLES) or ""
    message = _ROLES[role](fields)
    fields.done()
    return message


def _instruction(fields: Fields) -> Message:
    """`developer` is OpenAI's name for the system's words to its newer models; templates know `system`."""
    return Message("system", _content(fields), name=fields.text("name") or "")


def _user(fields: Fields) -> Message:
    return Message("user", _content(fields), name=fields.text("name") or "")


def _assistant(fields: Fields) -> Message:
    calls = tuple(map(_call, fields.objects("tool_calls", MOST_CALLS)))
    refusal = fields.text("refusal") or ""  # said in the place of an answer
    fields.items("annotations", MOST_PARTS)  # on links in an answer, sent back with it: not part of the text
    fields.take("parsed")  # the content, as OpenAI's client read it
    return Message(
        "assistant",
        _content(fields, optional=bool(calls or refusal)) or refusal,
        reasoning=fields.text("reasoning_content") or "",
        tool_calls=calls,
        name=fields.text("name") or "",
    )


def _tool(fields: Fields) -> Message:
    fields.needs("tool_call_id")
    return Message(
        "tool",
        _content(fields),
        tool_call_id=fields.text("tool_call_id") or "",
        name=fields.text("name") or "",
    )


_ROLES: dict[str, Callable[[Fields], Message]] = {
    "system": _instruction,
    "developer": _instruction,
    "user": _user,
    "assistant": _assistant,
    "tool": _tool,
}


def _content(fields: Fields, optional: bool = False) -> str:
    """A string, or parts that are text, which are put one below the other."""
    content = fields.take("content")
    if content is None and optional:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        fields.fail("content", "is missing" if content is None else "has to be a string or an array of parts")
    if len(content) > MOST_PARTS:
        fields.fail("content", f"has {len(content):,} parts, and may have {MOST_PARTS:,}")
    where = fields.path("content")
    return "\n".join(_part(Fields(part, f"{where}[{index}]")) for index, part in enumerate(content))


def _part(fields: Fields) -> str:
    fields.needs("type")
    kind = fields.text("type")
    if kind not in ("text", "refusal"):
        fields.fail("type", "can only be text: this server reads no images, sound or files")
    fields.needs(kind)
    text = fields.text(kind) or ""
    fields.done()
    return text


def _call(fields: Fields) -> ToolCall:
    for name in ("id", "function"):
        fields.needs(name)
    fields.choice("type", "function")
    fields.integer("index", 0, MOST_CALLS)  # from the pieces that it was streamed in
    function = fields.object("function")
    assert function is not None
    for name in ("name", "arguments"):
        function.needs(name)
    function.take("parsed_arguments")  # the arguments, as OpenAI's client read them
    call = ToolCall(function.text("name") or "", function.text("arguments") or "", fields.text("id") or "")
    function.done()
    fields.done()
    return call
