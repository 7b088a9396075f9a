"""Texts to vectors, or to scores, in llama.cpp. Knows no requests and no pipes."""

import ctypes
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from mdl.engine.devices import physical_cores
from mdl.engine.llama import Runner
from mdl.engine.native import C
from mdl.engine.request import EngineSettings
from mdl.errors import EngineError, UnsupportedModel

TEXTS, WHOLE_TEXTS = 64, 8  # in one step; where states are whole, each one takes memory
SMALL = 5_000_000  # parameters: below this not even hundreds of tokens at once pay for a second thread


class Vectors:
    """Texts to vectors, or to scores, many at once; `mdl.engine.embedding.Vectors` says what is what.

    In a context of its own, which is made anew when a text needs more room: most need little, and a model
    that reads in both directions takes memory for the square of what it reads at once. A model that does not
    say how to pool gives the mean.
    """

    def __init__(self, runner: Runner, settings: EngineSettings) -> None:
        """Raises UnsupportedModel when there is no memory for it."""
        self._runner = runner
        parameters = C.llama_model_n_params(runner.model)
        self._threads = settings.threads or (1 if parameters < SMALL else physical_cores())
        self.limit: int = runner.context
        self.step: int = min(settings.batch, self.limit)
        self.most: int = min(self.step, WHOLE_TEXTS if runner.whole else TEXTS)
        self.width: int = runner.loaded.width
        self.splits = False
        self._context: Any = None
        self._room = 0
        pointer, width = ctypes.POINTER(C.llama_seq_id), ctypes.sizeof(C.llama_seq_id)
        self._numbers = (C.llama_seq_id * self.most)(*range(self.most))
        start = ctypes.addressof(self._numbers)
        self._slots = [ctypes.cast(start + index * width, pointer) for index in range(self.most)]
        self._make(self.step)

    def _make(self, room: int) -> None:
        """A context for texts of so many tokens, and for steps."""
        if self._context:
            C.llama_free(self._context)
        self._room = 0
        self._context = C.llama_init_from_model(self._runner.model, self._params(room))
        if not self._context:
            raise UnsupportedModel(
                f"there is no room for a text of {room:,} tokens: {self._runner.log.cause()}",
                hint="send shorter texts",
            )
        self._runner.adapt(self._context)
        self._room = room
        self._memory = C.llama_get_memory(self._context)
        self.splits = bool(self._memory) and bool(C.llama_get_causal_attn(self._context))
        self.pooling: int = C.llama_pooling_type(self._context)

    def _params(self, room: int) -> Any:
        params = C.llama_context_default_params()
        params.n_ctx = room
        # For more than a batch at once, or less than a token of each text, llama.cpp ends the process.
        params.n_batch = params.n_ubatch = max(self.step if self.splits else room, self.most)
        params.n_seq_max, params.kv_unified = self.most, True
        params.embeddings = True
        if self._runner.pooling <= C.LLAMA_POOLING_TYPE_NONE:
            params.pooling_type = C.LLAMA_POOLING_TYPE_MEAN
        params.n_threads = params.n_threads_batch = self._threads
        return params

    # Reading

    def read(self, text: str) -> list[int]:
        return self._bounded(self._runner.vocabulary.framed, text)

    def read_pair(self, query: str, document: str) -> list[int]:
        begin = query[: 8 * self.limit + 1024]
        if len(begin) < len(query) and len(tokens := self._runner.vocabulary.pair(begin, "")) > self.limit:
            return tokens
        return self._bounded(lambda text: self._runner.vocabulary.pair(query, text), document)

    def _bounded(self, tokens_of: Callable[[str], list[int]], text: str) -> list[int]:
        """Without a look at the rest of a text of which the beginning is too long: megabytes take seconds."""
        begin = text[: 8 * self.limit + 1024]
        tokens = tokens_of(begin)
        return tokens if len(begin) == len(text) or len(tokens) > self.limit else tokens_of(text)

    def checked(self, tokens: Sequence[int]) -> list[int]:
        return self._runner.vocabulary.checked(tokens)

    def cut(self, tokens: list[int]) -> list[int]:
        if len(tokens) <= self.limit:
            return tokens
        end = tokens[-1:] if tokens[-1] in self._runner.vocabulary.closing else []
        return tokens[: self.limit - len(end)] + end

    # Running

    def begin(self, room: int) -> None:
        if room > self._room:
            self._make(min(self.limit, max(self.step, 1 << (room - 1).bit_length())))
        if self._memory:
            C.llama_memory_clear(self._memory, False)

    def run(self, pieces: Sequence[tuple[Sequence[int], int]]) -> "list[array[float]]":
        status = C.llama_decode(self._context, self._batch(pieces))
        if status:
            cause = self._runner.log.cause()
            raise EngineError(f"llama.cpp cannot compute this (llama_decode: {status}): {cause}")
        return [self._values(slot) for slot in range(len(pieces))]

    def _batch(self, pieces: Sequence[tuple[Sequence[int], int]]) -> Any:
        """What it points to is kept until the next one."""
        tokens = [token for piece, _ in pieces for token in piece]
        places = [place for piece, start in pieces for place in range(start, start + len(piece))]
        slots = [self._slots[slot] for slot, (piece, _) in enumerate(pieces) for _ in piece]
        size = len(tokens)
        self._arrays = (
            (C.llama_token * size)(*tokens),
            (C.llama_pos * size)(*places),
            (ctypes.c_int32 * size)(*[1] * size),
            (ctypes.POINTER(C.llama_seq_id) * size)(*slots),
        )
        kinds = C.llama_token, C.llama_pos, ctypes.c_int32, ctypes.POINTER(C.llama_seq_id)
        pointers = map(ctypes.cast, self._arrays, map(ctypes.POINTER, kinds))
        first, *rest = pointers
        return C.llama_batch(size, first, None, *rest, None)

    def _values(self, slot: int) -> "array[float]":
        values = C.llama_get_embeddings_seq(self._context, slot)
        if not values:
            raise EngineError("llama.cpp computed no vector for this text")
        return array("f", ctypes.string_at(values, 4 * self.width))
