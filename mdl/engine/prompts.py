"""From requests to prompts, and to how answers are read and held: by a model's template. Runs no model."""

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from mdl.engine.answer import Answer
from mdl.engine.bounds import bounded
from mdl.engine.request import Chat, Format, ToolCall
from mdl.engine.template import CHATML, CHATML_END, REASONING_TAGS, Prompt, Reasoning, Template, begun
from mdl.engine.tools import TAGS, Calls, Form, form_of, grammar, open_grammar
from mdl.errors import UsageError

if TYPE_CHECKING:
    from mdl.engine.vocabulary import Vocabulary

MOST_TEMPLATES = 8  # that requests brought, kept compiled


class Writing(NamedTuple):
    """How prompts are written, and calls in what comes back, if any."""

    template: Template
    calls: Form | None


class Prompts:
    """The prompts of one model, whose template is the `source`, if it has one."""

    def __init__(self, vocabulary: "Vocabulary", source: str | None) -> None:
        self._vocabulary = vocabulary
        self._own = self._writing(source or CHATML)
        self._others: dict[str, Writing] = {}
        # A model without a template may not know the end of a turn in ChatML as a token: then it is text.
        self._stop = () if source or CHATML_END in vocabulary.controls else (CHATML_END,)
        vocabulary.show((*TAGS, *(tag for pair in REASONING_TAGS for tag in pair)))

    def render(self, chat: Chat) -> Prompt:
        """It may be the last that this process does."""
        with bounded():
            return self._of(chat.template).template.render(chat)

    def around(self, prompt: str, template: str) -> str:
        """What is to be gone on with, as a template writes it. This too may be the last."""
        with bounded():
            return self._of(template).template.around(prompt)

    def answer(self, chat: Chat, prompt: Prompt) -> Answer:
        """How to read what the model says."""
        reasoning = Reasoning(prompt.text, spaced=self._vocabulary.adds_space, begun=begun(chat, prompt))
        form = self._of(chat.template).calls
        calls = Calls(form, not chat.parallel_calls) if chat.tools and form else None
        return Answer(reasoning, chat.sampling.stop + self._stop, calls)

    def form(self, chat: Chat) -> Format | None:
        """What the answer is held to. Raises what `tools.open_grammar` does."""
        controls, parallel = self._vocabulary.controls, chat.parallel_calls
        calls = self._of(chat.template).calls
        thoughts = self._thoughts(chat)
        if chat.continues and chat.messages[-1].content and (chat.format or chat.must_call):
            raise UsageError("an answer that was begun cannot be held to a form", field="format")
        if chat.must_call:
            # JSON is what the text has to be, of which there is none then; a grammar would be for all of it.
            if chat.format is not None and chat.format.kind not in ("json", "schema"):
                raise UsageError(
                    "an answer that has to be a call cannot keep to a grammar too", field="grammar"
                )
            return grammar(calls, chat.tools, chat.only, parallel, controls, thoughts)
        strict = any(tool["function"].get("strict") for tool in chat.tools)
        is_json = chat.format is not None and chat.format.kind in ("json", "schema")
        # Calls of a form that is known are held to it even where nothing has to be called: models misspell.
        if strict or (chat.tools and (calls or chat.format)) or (thoughts and is_json):
            return open_grammar(calls, chat.tools, parallel, controls, chat.format, thoughts)
        return chat.format

    def _thoughts(self, chat: Chat) -> tuple[str, ...]:
        """The tags that reasoning before the answer may begin with: those of the template, unless the request
        decides."""
        if chat.thinking is False:
            return ()
        source = self._of(chat.template).template.source
        return tuple(start for start, _ in REASONING_TAGS if chat.thinking or start in source)

    def _of(self, source: str | None) -> Writing:
        """The model's own, or that of a template that a request brings."""
        if not source or source == self._own.template.source:
            return self._own
        if source not in self._others:
            if len(self._others) >= MOST_TEMPLATES:
                self._others.clear()
            self._others[source] = self._writing(source)
        return self._others[source]

    def _writing(self, source: str) -> Writing:
        texts = {*self._vocabulary.controls, *self._vocabulary.tags}
        return Writing(Template(source, texts, self._vocabulary.named), form_of(source))


def turns(chat: Chat) -> int:
    """Messages and calls, each of which takes a token at least."""
    return len(chat.messages) + sum(1 for _ in _calls(chat))


def characters(chat: Chat) -> int:
    """Of what templates write into the prompt; reasoning, which many leave out, is not counted."""
    said = sum(len(message.content) for message in chat.messages)
    called = sum(len(call.name) + _shortest(call.arguments) for call in _calls(chat))
    return said + called + (len(json.dumps(chat.tools, ensure_ascii=False)) if chat.tools else 0)


def _shortest(arguments: str) -> int:
    """Characters of JSON as templates may write it anew: without white space, and nothing by its number."""
    return len(re.sub(r"\\u[0-9a-fA-F]{4}|\s+", "x", arguments)) // 2


def _calls(chat: Chat) -> Iterator[ToolCall]:
    return (call for message in chat.messages for call in message.tool_calls)
