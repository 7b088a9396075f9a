"""What an answer may be, token by token. Knows no llama.cpp: a vocabulary is bytes, logits are an address.

llguidance does the work. What it is given was checked before, by `checking`, in a process that may end.
"""

import ctypes
import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from mdl.engine.pattern import translated
from mdl.engine.request import Format
from mdl.engine.schema import parsed, prepared
from mdl.errors import EngineError, UsageError

MOST_COMPILED = 32


class Grammars:
    """The grammars of one model, compiled for its vocabulary. Used from one thread.

    `pieces` are the bytes of each token, those of control tokens their text; `controls` are the control
    tokens by text, which only a grammar that names them allows; `ends` end an answer. `tokenize` turns bytes
    of UTF-8 into the tokens that the model would have learned for them.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        controls: Mapping[str, int],
        ends: Collection[int],
        tokenize: Callable[[bytes], list[int]],
    ) -> None:
        import numpy
        from llguidance import LLTokenizer

        vocabulary: Any = _Vocabulary(pieces, controls, ends, tokenize)
        self._tokenizer = LLTokenizer(vocabulary, n_vocab=len(pieces), eos_token=sorted(ends))
        self._mask = numpy.zeros((len(pieces) + 31) // 32 * 4, numpy.uint8)
        self._size = len(pieces)
        self._compiled: OrderedDict[Format, Any] = OrderedDict()

    def constraint(self, format: Format) -> "Constraint":
        """Of one answer. Raises UsageError with what is wrong in the schema or grammar."""
        matcher = self._compiled.get(format)
        if matcher is None:
            matcher = self._compiled[format] = compiled(self._tokenizer, format)
        self._compiled.move_to_end(format)
        if len(self._compiled) > MOST_COMPILED:
            self._compiled.popitem(last=False)
        return Constraint(matcher.deep_copy(), self._mask, self._size)


class Constraint:
    """Where one answer stands in its grammar.

    Raises UsageError where the grammar turns out to take too much time for a token: that is of its request.
    """

    def __init__(self, matcher: Any, mask: Any, size: int) -> None:
        self._matcher = matcher
        self._mask = mask
        self._size = size

    @property
    def ended(self) -> bool:
        """Nothing may follow but the end."""
        return bool(self._matcher.is_stopped())

    def mask(self, logits: int) -> None:
        """Forbids what may not follow: minus infinity in the float32 of each such token at this address."""
        import numpy

        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        forbidden = numpy.unpackbits(~self._mask, bitorder="little", count=self._size).view(bool)
        floats = numpy.ctypeslib.as_array((ctypes.c_float * self._size).from_address(logits))
        numpy.copyto(floats, -numpy.inf, where=forbidden)

    def allows(self, token: int) -> bool:
        """Whether a token may follow: far cheaper than a mask."""
        return bool(self._matcher.validate_tokens([token]))

    def accept(self, token: int) -> None:
        """It follows. Raises EngineError for one that may not."""
        if not self._matcher.consume_token(token):
            self._check()
            raise EngineError(f"token {token} does not follow from the grammar")

    def forced(self) -> list[int]:
        """The tokens that must follow, whatever the model says; they are not accepted yet."""
        return list(self._matcher.compute_ff_tokens())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UsageError(f"the grammar cannot be followed: {_line(self._matcher.get_error())}")


class _Vocabulary:
    """What llguidance asks of a tokenizer: it looks for these names."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self,
        pieces: Sequence[bytes],
        controls: Mapping[str, int],
        ends: Collection[int],
        tokenize: Callable[[bytes], list[int]],
    ) -> None:
        self.tokens = list(pieces)
        self.special_token_ids = sorted({*controls.values(), *ends})
        self.eos_token_id = min(ends)
        self._tokenize = tokenize

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenize(text.encode() if isinstance(text, str) else text)


def compiled(tokenizer: Any, format: Format) -> Any:
    """A matcher at the beginning. Raises UsageError."""
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(tokenizer, source(format), log_level=0, limits=LLParserLimits(verbose_errors=False))
    if matcher.is_error():
        raise UsageError(f"the {_NAMES[format.kind]} cannot be used: {_line(matcher.get_error())}")
    return matcher


_NAMES = {"json": "format", "schema": "JSON schema", "gbnf": "grammar", "lark": "grammar", "regex": "regex"}


def source(format: Format) -> str:
    """The same for llguidance: JSON text of its list of grammars."""
    if format.kind == "json":
        return _grammar(json_schema=prepared({"type": "object"}))
    if format.kind == "schema":
        return _grammar(json_schema=prepared(parsed(format.text)))
    if format.kind == "lark":
        return _grammar(lark_grammar=format.text)
    if format.kind == "regex":
        return _grammar(lark_grammar=f"start: /{translated(format.text)}/")
    raise UsageError("a grammar in GBNF is not supported yet")


def _grammar(**grammar: object) -> str:
    return json.dumps({"grammars": [grammar]})


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
