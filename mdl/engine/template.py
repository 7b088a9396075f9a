"""A model's chat template: messages to a prompt, and the reasoning in what comes back. Knows no tokens.

Templates are rendered as Hugging Face's transformers does it (same environment, filters and names), in
jinja2's sandbox. That holds against escapes, not against time and memory: whoever calls `render` has to bound
those.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn

from mdl.engine.request import Chat, Message, ToolCall
from mdl.engine.tools import TAGS, undecided
from mdl.errors import MdlError, UnsupportedModel, UsageError

# For models that bring no template: the form that most of those that were trained to chat understand.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CHATML_END = "<|im_end|>"

# How models mark their reasoning. A form that is not here is a line.
REASONING_TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)

# The variables by which templates are told whether to let the model think first: Qwen's, and DeepSeek's.
SWITCHES = ("enable_thinking", "thinking")
EFFORT = "reasoning_effort"  # how long to think, by a word: gpt-oss's

MAX_PROMPT = 16_000_000  # characters; the largest contexts hold about five million

_PRIVATE_USE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt. A control token is one only if it is whole in one of the pieces."""

    pieces: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Template:
    """`controls` are the texts of the vocabulary's control tokens; `tokens` names some of them (bos_token,
    …)."""

    def __init__(
        self, source: str, controls: Collection[str] = (), tokens: Mapping[str, str] | None = None
    ) -> None:
        self.source = source
        self._tokens = dict(tokens or {})
        tags = {*TAGS, *(tag for pair in REASONING_TAGS for tag in pair)}
        texts = [text for text in controls if len(text) > 1]
        self._controls = _any_of(texts)
        self._others = _any_of(text for text in texts if text not in tags)
        self._compiled: _Program | None = None

    def render(self, chat: Chat) -> Prompt:
        """The prompt up to where the answer begins.

        Control tokens are those that the template writes. The same characters in a message, a tool or a role
        are text: a mark is put into them that no tokenizer matches across, that survives what templates do to
        strings, and at which the rendered prompt is cut.

        Raises UsageError for what the template refuses or cannot be encoded, UnsupportedModel for a template
        that is broken or writes without end.
        """
        self._refuse_what_it_leaves_out(chat)
        if chat.continues:
            return self._begun(chat)
        chat, mark = self._disarm(chat)
        text = self._whole(chat)
        return Prompt(tuple(text.split(mark)) if mark else (text,))

    def _begun(self, chat: Chat) -> Prompt:
        """The prompt up to the end of the last message, which is the beginning of the answer."""
        last = chat.messages[-1] if chat.messages else Message("", "")
        if last.role != "assistant" or last.tool_calls:
            raise UsageError("only an assistant's text can be gone on with")
        end = _unused(chat, self.source)
        if thinks := _only_thinks(last):
            last = replace(last, reasoning=last.reasoning + end)
        else:
            last = replace(last, content=last.content + end)
        marked, mark = self._disarm(replace(chat, messages=(*chat.messages[:-1], last)))
        text, found, rest = self._whole(marked).partition(end)
        if not found or end in rest:
            what = "reasoning" if thinks else "an answer"
            raise UnsupportedModel(
                f"the chat template of the model does not let {what} be gone on with",
                hint="give some of the answer too" if thinks else "",
            )
        return Prompt(tuple(text.split(mark)) if mark else (text,))

    def around(self, prompt: str) -> str:
        """A prompt that is to be gone on with, as the template writes it. Raises what `render` does."""
        return self._written({**self._tokens, "prompt": prompt})

    def _whole(self, chat: Chat) -> str:
        try:
            return self._write(_messages(chat, _parsed), chat)
        except UnsupportedModel:
            if not any(message.tool_calls for message in chat.messages):
                raise
            # Some templates want the arguments of a call as the text that they are in OpenAI's API.
            return self._write(_messages(chat, _as_text), chat)

    def _refuse_what_it_leaves_out(self, chat: Chat) -> None:
        """Of what a request asks for, nothing is dropped in silence."""
        if chat.tools and not self._looks_at("tools"):
            raise UsageError("the chat template of the model knows no tools", _NO_TOOLS, "tools")
        if any(message.tool_calls for message in chat.messages) and "tool_calls" not in self.source:
            raise UsageError("the chat template of the model knows no calls of tools", hint=_NO_TOOLS)
        reasons = any(tag in self.source for pair in REASONING_TAGS for tag in pair) or self._looks_at(EFFORT)
        switches = (*SWITCHES, EFFORT) if chat.effort else SWITCHES
        if chat.thinking not in (None, reasons) and not self._looks_at(*switches):
            what = "always thinks" if reasons else "does not think first"
            raise UsageError(
                f"the model {what}: its chat template has no switch for it",
                hint="leave it to the model",
                field="thinking",
            )

    def _disarm(self, chat: Chat) -> tuple[Chat, str]:
        """The chat with the mark in what reads like a control token, and the mark; "" if nothing does."""
        if self._controls is None:
            return chat, ""
        mark = _unused(chat, self.source)
        others = _marking(self._others, mark)
        foreign = _marking(self._controls, mark)
        messages = tuple(
            _walk(message, others if message.role in _SPEAK_IN_TAGS else foreign) for message in chat.messages
        )
        return replace(chat, messages=messages, tools=_walk(chat.tools, others)), mark

    def _write(self, messages: list[dict[str, Any]], chat: Chat) -> str:
        variables: dict[str, Any] = {
            **self._tokens,
            "messages": messages,
            "tools": [_shown(tool) for tool in chat.tools] or None,
            "documents": None,
            "add_generation_prompt": not chat.continues,
        }
        if chat.thinking is not None:
            variables |= dict.fromkeys(SWITCHES, chat.thinking)
        if chat.effort:
            variables[EFFORT] = chat.effort
        return self._written(variables)

    def _written(self, variables: Mapping[str, Any]) -> str:
        try:
            return _bounded(self._program().template.generate(**variables))
        except MdlError:
            raise
        except Exception as error:  # noqa: BLE001 - a template is a program, and may raise anything
            raise _failed(error) from None

    def _looks_at(self, *names: str) -> bool:
        """Whether one of these variables makes a difference."""
        return not self._program().variables.isdisjoint(names)

    def _program(self) -> "_Program":
        if self._compiled is None:
            self._compiled = _compile(self.source)
        return self._compiled


def check(source: str) -> None:
    """Raises UnsupportedModel, with the line, for a template that is broken."""
    _compile(source)


def import_jinja() -> None:
    """What the first `render` would otherwise wait for; some 40 ms."""
    import jinja2.ext
    import jinja2.sandbox  # noqa: F401 - for what that loads


_NO_TOOLS = "take a model that was trained to call tools"
_HINT = "mdl inspect --template shows it"


class _Program(NamedTuple):
    template: Any
    variables: frozenset[str]  # that it reads


def _compile(source: str) -> _Program:
    from jinja2 import meta, nodes
    from jinja2.exceptions import TemplateSyntaxError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words for training; here it is what it contains."""

        tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            inside: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return inside

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        variables = meta.find_undeclared_variables(environment.parse(source))
        return _Program(environment.from_string(source), frozenset(variables))
    except TemplateSyntaxError as error:
        raise UnsupportedModel(
            f"the chat template is broken at line {error.lineno}: {error.message}", hint=_HINT
        ) from None
    except Exception as error:  # noqa: BLE001 - RecursionError, and what Python does not compile
        raise _failed(error) from None


def _failed(error: BaseException) -> UnsupportedModel:
    return UnsupportedModel(f"the chat template fails: {_cause(error)}", hint=_HINT)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Without jinja2's escapes for HTML, which a model has never seen."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: object) -> NoReturn:
    words = " ".join(str(message)[:500].split())
    raise UsageError(f"the chat template refuses this conversation: {words}")


def _strftime_now(form: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(form)


def _bounded(chunks: Iterator[str]) -> str:
    written, size = [], 0
    for chunk in chunks:
        size += len(chunk)
        if size > MAX_PROMPT:
            raise UnsupportedModel(
                f"the chat template writes more than {MAX_PROMPT:,} characters", hint=_HINT
            )
        written.append(chunk)
    return "".join(written)


def _cause(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _unused(chat: Chat, source: str) -> str:
    """A character for private use that nobody uses here."""
    used = set(source)

    def collect(text: str) -> str:
        used.update(text)
        return text

    _walk(chat, collect)
    for code in _PRIVATE_USE:
        if chr(code) not in used:
            return chr(code)
    raise UsageError("the messages use every private character that Unicode has")


def _walk(value: Any, change: Callable[[str], str]) -> Any:
    """The value with each text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_walk(key, change): _walk(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_walk(item, change) for item in value)
    if isinstance(value, Chat):
        return replace(value, messages=_walk(value.messages, change), tools=_walk(value.tools, change))
    if isinstance(value, Message | ToolCall):
        return type(value)(*(_walk(getattr(value, name), change) for name in value.__slots__))
    return value


# Templates look for the tags of reasoning and of calls in what a model said, and instructions may explain
# them. In what others say, users and tools, they are text like any other control token.
_SPEAK_IN_TAGS = ("system", "developer", "assistant")


def _any_of(texts: Iterable[str]) -> "re.Pattern[str] | None":
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _marking(pattern: "re.Pattern[str] | None", mark: str) -> Callable[[str], str]:
    if pattern is None:
        return lambda text: text
    return lambda text: pattern.sub(lambda found: found[0][0] + mark + found[0][1:], text)


def _shown(tool: Mapping[str, Any]) -> dict[str, Any]:
    """As models learned to read it: how strictly calls are held to it is no part of that."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return dict(tool)
    return {**tool, "function": {name: value for name, value in function.items() if name != "strict"}}


def _messages(chat: Chat, arguments: Callable[[str], Any]) -> list[dict[str, Any]]:
    """In the shape that templates are written for. What a message does not have is not there."""
    return [_message(message, arguments) for message in chat.messages]


def _message(message: Message, arguments: Callable[[str], Any]) -> dict[str, Any]:
    shape: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        shape["reasoning_content"] = message.reasoning
    if message.tool_calls:
        shape["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.name, "arguments": arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        shape["tool_call_id"] = message.tool_call_id
    if message.name:
        shape["name"] = message.name
    return shape


def _parsed(arguments: str) -> Any:
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _as_text(arguments: str) -> str:
    return arguments


def begun(chat: Chat, prompt: Prompt) -> str:
    """The answer as far as it was given, from the tag on where that is reasoning."""
    if not chat.continues:
        return ""
    last = chat.messages[-1]
    if not _only_thinks(last):
        return last.content
    place, tag = max((prompt.text.rfind(start), start) for start, _ in REASONING_TAGS)
    return (tag if place >= 0 else "") + last.reasoning


def _only_thinks(message: Message) -> bool:
    return bool(message.reasoning) and not message.content


class Reasoning:
    """Tells the reasoning at the beginning of an answer from the answer, and trims the white space around
    both.

    `prompt` is the rendered prompt: some templates open the reasoning there. `begun` is what it has of the
    answer already. `spaced`: the vocabulary puts a space before the first word. `over` is True once all that
    follows is the answer.
    """

    def __init__(self, prompt: str = "", spaced: bool = False, begun: str = "") -> None:
        tail = prompt[-64:].rstrip()
        self._close = next((close for start, close in REASONING_TAGS if tail.endswith(start)), "")
        if words := begun.strip():
            self._close = _left_open(words)
        self.over = bool(words) and not self._close
        self._held = ""
        self._spaced = spaced
        self._begun = bool(words)
        self._closed = False

    @property
    def thinks(self) -> bool:
        """It has begun to reason, and is not done."""
        return bool(self._close) and not self._closed

    def feed(self, text: str) -> tuple[str, str]:
        """What is certain of the (reasoning, answer) with this text."""
        if self.over:
            return "", text
        if text.isspace() and self._held[-1:].isspace():
            self._held += text  # which a model may write without end
            return "", ""
        text = self._held + text
        self._held = ""
        if self._closed:
            return "", self._answer(text)
        if self._close:
            return self._reason(text)
        return self._begin(text)

    def end(self) -> tuple[str, str]:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        self.over = True
        return (held.rstrip(), "") if self._close else ("", self._unspaced(held))

    def _begin(self, text: str) -> tuple[str, str]:
        words = text.lstrip()
        for start, close in REASONING_TAGS:
            if words.startswith(start):
                self._close = close
                return self._reason(words[len(start) :])
            if start.startswith(words):
                self._held = text
                return "", ""
        self.over = True
        return "", self._unspaced(text)

    def _unspaced(self, text: str) -> str:
        return text.removeprefix(" ") if self._spaced else text

    def _reason(self, text: str) -> tuple[str, str]:
        text = text if self._begun else text.lstrip()
        thought, tag, rest = text.partition(self._close)
        if tag:
            self._closed = True
            return thought.rstrip(), self._answer(rest)
        certain = text[: undecided(text, self._close)].rstrip()
        self._held = text[len(certain) :]
        self._begun = self._begun or bool(certain)
        return certain, ""

    def _answer(self, text: str) -> str:
        text = text.lstrip()
        self.over = bool(text)
        return text


def _left_open(text: str) -> str:
    """The tag that ends the reasoning which a text begins with, where it has not come yet."""
    for start, close in REASONING_TAGS:
        if text.startswith(start) and close not in text:
            return close
    return ""
