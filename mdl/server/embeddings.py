"""OpenAI's embeddings, and reranking as Jina and Cohere have it: JSON to what an engine is asked, and what it
says to JSON. Knows no sockets.
"""

import json
import struct
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mdl.engine.request import Embed, Input, Rank
from mdl.profiles import Profile
from mdl.server import openai
from mdl.server.fields import Fields
from mdl.server.openai import Harmless

MOST_INPUTS = 2048
MOST_DOCUMENTS = 2048
LARGEST = 1 << 20  # dimensions: no model has as many
PIECE = 1 << 16  # characters of base64 that are written at once

HARMLESS: Harmless = {"user": (str, None, "tells OpenAI whom to blame")}


@dataclass(frozen=True, slots=True)
class Embeddings:
    model: str | None
    embed: Embed
    as_text: bool
    keep_alive: float | None

    params: ClassVar[Mapping[str, str]] = {"inputs": "input"}

    def question(self, _: Profile) -> tuple[str, Embed]:
        return "embed", self.embed

    def read(self, result: dict[str, Any]) -> int:
        return sum(result["tokens"])

    def answer(self, name: str, result: dict[str, Any]) -> Iterator[str]:
        """The vectors come as base64 of little-endian float32, which is how OpenAI writes them, too."""
        yield '{"object":"list","data":['
        vectors: Sequence[str] = result["vectors"]
        some = 1 + PIECE // (1 + len(vectors[0]))
        for start in range(0, len(vectors), some):
            written = (
                self._embedding(index, vector)
                for index, vector in enumerate(vectors[start : start + some], start)
            )
            yield ("," if start else "") + ",".join(written)
        rest = {"model": name, "usage": _usage(self.read(result))}
        yield "]," + json.dumps(rest, separators=(",", ":"))[1:]

    def _embedding(self, index: int, vector: str) -> str:
        written = f'"{vector}"' if self.as_text else f"[{numbers(vector)}]"
        return f'{{"object":"embedding","index":{index},"embedding":{written}}}'


@dataclass(frozen=True, slots=True)
class Reranking:
    model: str | None
    rank: Rank
    most: int | None
    with_documents: bool
    keep_alive: float | None

    params: ClassVar[Mapping[str, str]] = {}

    def question(self, _: Profile) -> tuple[str, Rank]:
        return "rank", self.rank

    def read(self, result: dict[str, Any]) -> int:
        return int(result["tokens"])

    def answer(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        """The most relevant document first. The scores are as the model gives them."""
        scores: Sequence[float] = result["scores"]
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[: self.most]
        results = [self._result(index, scores[index]) for index in best]
        return {"object": "list", "model": name, "results": results, "usage": _usage(self.read(result))}

    def _result(self, index: int, score: float) -> dict[str, Any]:
        document = {"document": {"text": self.rank.documents[index]}} if self.with_documents else {}
        return {"index": index, "relevance_score": score, **document}


def numbers(vector: str) -> str:
    """Of base64 of float32. Nine digits tell each one, and `json` takes three times as long for more."""
    data = b64decode(vector)
    count = len(data) // 4
    return ",".join(["%.9g"] * count) % struct.unpack(f"<{count}f", data)


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def embeddings(body: Any) -> Embeddings:
    """Raises Refused (400), which names the field, for what is wrong or unknown."""
    fields = Fields(body)
    model, keep_alive = fields.text("model"), openai.keep_alive(fields)
    as_text = fields.choice("encoding_format", "float", "base64") == "base64"
    dimensions = fields.integer("dimensions", 1, LARGEST)
    truncate = fields.flag("truncate") or False
    embed = Embed(_inputs(fields), truncate, dimensions)
    openai.pass_over(fields, HARMLESS)
    fields.done()
    return Embeddings(model, embed, as_text, keep_alive)


def _inputs(fields: Fields) -> tuple[Input, ...]:
    """A text, tokens, or an array of either."""
    fields.needs("input")
    given = fields.take("input")
    several = isinstance(given, list) and not _is_tokens(given)
    inputs = given if several else [given]
    if not 1 <= len(inputs) <= MOST_INPUTS:
        fields.fail("input", f"has {len(inputs):,} entries, and may have 1 to {MOST_INPUTS:,}")
    for index, one in enumerate(inputs):
        if not one or not (isinstance(one, str) or _is_tokens(one)):
            where = f"input[{index}]" if several else "input"
            fields.fail(where, "is empty" if one == "" else "has to be a text, or an array of tokens")
    return tuple(one if isinstance(one, str) else tuple(one) for one in inputs)


def _is_tokens(value: Any) -> bool:
    """True for numbers in an array. Whether the model has such tokens is for it to say."""
    return isinstance(value, list) and bool(value) and all(openai.is_token(token) for token in value)


def rerank(body: Any) -> Reranking:
    """Raises Refused (400), which names the field, for what is wrong or unknown."""
    fields = Fields(body)
    model, keep_alive = fields.text("model"), openai.keep_alive(fields)
    fields.needs("query")
    query = fields.text("query") or fields.fail("query", "is empty")
    fields.needs("documents")
    given = fields.items("documents", MOST_DOCUMENTS) or fields.fail("documents", "is empty")
    documents = tuple(_document(fields, index, document) for index, document in enumerate(given))
    most = fields.integer("top_n", 1, MOST_DOCUMENTS)
    with_documents = fields.flag("return_documents") or False
    fields.done()
    return Reranking(model, Rank(query, documents), most, with_documents, keep_alive)


def _document(fields: Fields, index: int, document: Any) -> str:
    where = f"documents[{index}]"
    text = document
    if isinstance(document, dict):
        inner = Fields(document, where)
        text = inner.text("text")
        inner.done()
    if not isinstance(text, str) or not text:
        fields.fail(where, "is empty" if text == "" else "has to be a text, or an object with one")
    return text
