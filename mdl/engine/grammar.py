"""What an answer may be, token by token. Knows no llama.cpp: a vocabulary is bytes, logits are an address.

llguidance does the work. What it is given was tried before, by `checking`, in a process that may end.
"""

import ctypes
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from time import perf_counter
from typing import Any

from mdl.engine.checking import SECONDS, SHORT_SECONDS, Checker
from mdl.engine.gbnf import to_lark
from mdl.engine.pattern import translated
from mdl.engine.request import Format
from mdl.engine.schema import parsed, prepared
from mdl.errors import EngineError, MdlError, UsageError

MOST_COMPILED = 64
MOST_TEXT = 1 << 18  # characters
SLOW_SECONDS = 0.5
MOST_STATES = 50_000  # of the lexer, a KB or two each


class Grammars:
    """The grammars of one model, compiled for its vocabulary.

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

        self._checker = Checker(len(pieces), controls, ends)  # starts while the vocabulary is read
        self._patient = Checker(len(pieces), controls, ends, lazy=True)
        self._tokenizer = vocabulary(pieces, controls, ends, tokenize)
        self._mask = numpy.zeros((len(pieces) + 31) // 32 * 4, numpy.uint8)
        self._size = len(pieces)
        self._known: OrderedDict[Format, Any] = OrderedDict()
        self._lock = threading.Lock()

    def knows(self, format: Format) -> bool:
        """Whether `constraint` answers at once."""
        return format in self._known

    def prepare(self, format: Format, patient: bool = True) -> bool:
        """Tries and compiles it, or finds out what is wrong with it. Takes seconds at worst; unless `patient`
        a moment, after which it may still be unknown: then False. Any thread may call it: who is not patient
        does not wait for who is."""
        try:
            if patient:
                self._patient.check(format, SECONDS)
            else:
                self._checker.check(format, SHORT_SECONDS)
            prepared = compiled(self._tokenizer, format)
        except TimeoutError:
            if not patient:
                return False
            prepared = UsageError(f"the grammar takes too much time: more than {SECONDS:g} seconds")
        except MdlError as error:
            prepared = error
        self._keep(format, prepared)
        return True

    def _keep(self, format: Format, prepared: Any) -> None:
        with self._lock:
            self._known[format] = prepared
            if len(self._known) > MOST_COMPILED:
                self._known.popitem(last=False)

    def constraint(self, format: Format) -> "Constraint":
        """Of one answer. Raises UsageError with what is wrong in the schema or grammar."""
        if not self.knows(format):
            self.prepare(format)
        with self._lock:
            known = self._known[format]
            self._known.move_to_end(format)
            if isinstance(known, EngineError):  # of this moment, not of the grammar
                del self._known[format]
        if isinstance(known, MdlError):
            raise known
        return Constraint(known.deep_copy(), self._mask, self._size)

    def close(self) -> None:
        """Ends the processes that try grammars."""
        self._checker.close()
        self._patient.close()


class Constraint:
    """Where one answer stands in its grammar. Used from one thread, that of all the others.

    Its methods raise UsageError where the grammar turns out to take too much time or memory for a token.
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

        started = perf_counter()
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        if perf_counter() - started > SLOW_SECONDS:
            raise UsageError(f"the grammar takes more than {SLOW_SECONDS:g} seconds for a token")
        forbidden = numpy.unpackbits(~self._mask, bitorder="little", count=self._size).view(bool)
        floats = numpy.ctypeslib.as_array((ctypes.c_float * self._size).from_address(logits))
        numpy.copyto(floats, -numpy.inf, where=forbidden)

    def allows(self, token: int) -> bool:
        """Whether the last `mask`, which was this one's, left it."""
        return bool(self._mask[token >> 3] >> (token & 7) & 1)

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
            raise UsageError(complaint(self._matcher))


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
        self._special = frozenset(self.special_token_ids)
        self._known: dict[bytes, int] = {}

    def __call__(self, text: str | bytes) -> list[int]:
        """llguidance takes these tokens for the text without a look at them."""
        data = text.encode() if isinstance(text, str) else text
        tokens = self._tokenize(data)
        if self._special.isdisjoint(tokens) and b"".join(map(self.tokens.__getitem__, tokens)) == data:
            return tokens
        return self._longest_first(data)

    def _longest_first(self, data: bytes) -> list[int]:
        """For what a model's tokenizer writes in another way, such as names of control tokens."""
        if not self._known:
            numbers = (number for number in range(len(self.tokens)) if number not in self._special)
            self._known = {self.tokens[number]: number for number in numbers if self.tokens[number]}
        tokens, start, longest = [], 0, max(map(len, self._known))
        while start < len(data):
            ends = range(min(len(data), start + longest), start, -1)
            end = next((end for end in ends if data[start:end] in self._known), 0)
            if not end:
                break
            tokens.append(self._known[data[start:end]])
            start = end
        return tokens


def vocabulary(
    pieces: Sequence[bytes],
    controls: Mapping[str, int],
    ends: Collection[int],
    tokenize: Callable[[bytes], list[int]],
) -> Any:
    """llguidance's own. Takes half a second for 150,000 tokens."""
    from llguidance import LLTokenizer

    wrapped: Any = _Vocabulary(pieces, controls, ends, tokenize)
    return LLTokenizer(wrapped, n_vocab=len(pieces), eos_token=sorted(ends))


def compiled(tokenizer: Any, format: Format) -> Any:
    """A matcher at the beginning. Raises UsageError."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(max_lexer_states=MOST_STATES, verbose_errors=False)
    matcher = LLMatcher(tokenizer, source(format), log_level=0, limits=limits)
    if matcher.is_error():
        raise UsageError(f"the {_NAMES[format.kind]} cannot be used: {_line(matcher.get_error())}")
    return matcher


def complaint(matcher: Any) -> str:
    """Why a matcher that was followed goes no further."""
    error = _line(matcher.get_error())
    if error.startswith("NoExtension"):  # enum StopReason of llguidance
        return "there is no answer that the grammar allows"
    return f"the grammar is too complex: {error}"


_NAMES = {"json": "format", "schema": "JSON schema", "gbnf": "grammar", "lark": "grammar", "regex": "regex"}


def source(format: Format) -> str:
    """The same for llguidance: JSON text of its list of grammars. Raises UsageError."""
    if len(format.text) > MOST_TEXT:
        raise UsageError(f"the {_NAMES[format.kind]} has more than {MOST_TEXT:,} characters")
    if format.kind == "json":
        return _grammar(json_schema=prepared({"type": "object"}))
    if format.kind == "schema":
        return _grammar(json_schema=prepared(parsed(format.text)))
    if format.kind == "lark":
        return _grammar(lark_grammar=format.text)
    if format.kind == "regex":
        return _grammar(lark_grammar=f"start: /{translated(format.text)}/")
    return _grammar(lark_grammar=to_lark(format.text))


def _grammar(**grammar: object) -> str:
    return json.dumps({"grammars": [grammar]})


def _line(text: str) -> str:
    """Of what llguidance says; of what it says about a regex, what its parser says."""
    text = text.replace("<non-verbose/>", "")
    if match := re.search(r"regex parse error:.*error: (.*)", text, re.DOTALL):
        text = f"in a regex: {match[1]}"
    return " ".join(text.split())[:300]
