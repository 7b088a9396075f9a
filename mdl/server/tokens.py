"""Texts to tokens and back: JSON to what an engine is asked, and its answer to JSON. Knows no sockets.

There is no such thing in OpenAI's API. The fields are those of llama.cpp's server (`content`, `add_special`)
and of vLLM's (`prompt`, `add_special_tokens`), each with its own default: there the model's beginning is not
added, here it is, as a completion of that prompt has it. With `messages`, the body is that of a chat
completion, and the tokens are those of its prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mdl.engine.request import Chat
from mdl.profiles import Profile
from mdl.server import chat, openai
from mdl.server.fields import Fields

MOST_CHARACTERS = 1_000_000  # take a worker a quarter of a second, in which it does nothing else
MOST_TOKENS = 250_000

# The name of the text, that of the wish for the model's own beginning, and what is wished by default.
SPELLINGS = {"content": ("add_special", False), "prompt": ("add_special_tokens", True)}


@dataclass(frozen=True, slots=True)
class Tokenize:
    """A text and whether the model's own beginning comes before it, or a conversation."""

    model: str | None
    said: tuple[str, bool] | chat.Asked
    keep_alive: float | None
    params: Mapping[str, str]

    def question(self, profile: Profile) -> tuple[str, tuple[str, bool] | Chat]:
        if isinstance(self.said, chat.Asked):
            return "prompt", self.said.requests(profile)[0]
        return "tokenize", self.said

    def read(self, _: list[int]) -> int:
        return 0

    def answer(self, _: str, result: list[int]) -> dict[str, Any]:
        return {"tokens": result, "count": len(result)}


@dataclass(frozen=True, slots=True)
class Detokenize:
    model: str | None
    tokens: tuple[int, ...]
    keep_alive: float | None

    params: ClassVar[Mapping[str, str]] = {}

    def question(self, _: Profile) -> tuple[str, tuple[int, ...]]:
        return "detokenize", self.tokens

    def read(self, _: str) -> int:
        return 0

    def answer(self, _: str, result: str) -> dict[str, Any]:
        return {"content": result}


def tokenize(body: Any) -> Tokenize:
    """Raises Refused (400), which names the field, for what is wrong or unknown."""
    if isinstance(body, dict) and body.get("messages") is not None:
        asked = chat.asked(body)
        return Tokenize(asked.model, asked, asked.keep_alive, asked.params)
    fields = Fields(body)
    model, keep_alive = fields.text("model"), openai.keep_alive(fields)
    name, said = _said(fields)
    fields.done()
    return Tokenize(model, said, keep_alive, {"text": name})


def _said(fields: Fields) -> tuple[str, tuple[str, bool]]:
    """What the text is called, and what `Tokenize` has of it."""
    texts = {name: text for name in SPELLINGS if (text := fields.text(name)) is not None}
    if len(texts) != 1:
        what = "cannot go with prompt, its other name" if texts else "is missing: a text, or messages instead"
        fields.fail("content", what)
    [(name, text)] = texts.items()
    if len(text) > MOST_CHARACTERS:
        fields.fail(name, f"has {len(text):,} characters, and may have {MOST_CHARACTERS:,}")
    wish, usual = SPELLINGS[name]
    begun = fields.flag(wish)
    return name, (text, usual if begun is None else begun)


def detokenize(body: Any) -> Detokenize:
    """Raises Refused (400), which names the field, for what is wrong or unknown."""
    fields = Fields(body)
    model, keep_alive = fields.text("model"), openai.keep_alive(fields)
    fields.needs("tokens")
    tokens = fields.items("tokens", MOST_TOKENS) or []
    if not all(openai.is_token(token) for token in tokens):
        fields.fail("tokens", "has to hold tokens, which are numbers")
    fields.done()
    return Detokenize(model, tuple(tokens), keep_alive)
