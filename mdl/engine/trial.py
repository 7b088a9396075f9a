"""The process in which grammars are tried, which may hang, bloat or die of them: questions and answers.

Knows no model but the size of its vocabulary, and its control tokens.
"""

import faulthandler
import json
import random
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import IO, Any

from mdl.engine.checking import SECONDS, line
from mdl.engine.grammar import compiled, complaint, vocabulary
from mdl.engine.request import Format
from mdl.errors import MdlError

MEMORY = 1 << 30
STACK = 1 << 20  # a small one: what fits into it fits everywhere
STEPS = 64


def main() -> None:
    _bound_memory()
    threading.stack_size(STACK)
    thread = threading.Thread(target=_answer, args=(sys.stdin.buffer, sys.stdout.buffer))
    thread.start()
    thread.join()


def _bound_memory() -> None:
    """Not on Windows, which has no such limit, and not on macOS, which does not keep it."""
    with suppress(ImportError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _answer(questions: IO[bytes], answers: IO[bytes]) -> None:
    tokenizer, letters = _vocabulary(*json.loads(questions.readline()))
    answers.write(line("ready"))
    answers.flush()
    for question in questions:
        # By the hand of the parent if it is there: this is for the case that it is not.
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
        wrong = _tried(tokenizer, letters, Format(*json.loads(question)))
        faulthandler.cancel_dump_traceback_later()
        answers.write(line(wrong))
        answers.flush()


def _vocabulary(size: int, controls: Mapping[str, int], ends: list[int]) -> tuple[Any, dict[int, int]]:
    """Of bytes and the control tokens, which have their own numbers; and the bytes by number."""
    taken = {*controls.values(), *ends}
    letters = dict(
        zip((token for token in range(size + 256) if token not in taken), range(256), strict=False)
    )
    pieces = [b""] * max(size, *letters, *ends)
    pieces += [b""]
    for token, letter in letters.items():
        pieces[token] = bytes([letter])
    for text, token in controls.items():
        pieces[token] = text.encode()
    numbers = list(letters)
    return vocabulary(pieces, controls, ends, lambda text: [numbers[letter] for letter in text]), letters


def _tried(tokenizer: Any, letters: Iterable[int], format: Format) -> str:
    """What is wrong; nothing if it compiles, and lets itself be followed for some bytes."""
    try:
        matcher = compiled(tokenizer, format)
    except MdlError as error:
        return error.message
    chance = random.Random(0)
    for _ in range(STEPS):
        mask = matcher.compute_bitmask()
        allowed = [token for token in letters if mask[token >> 3] >> (token & 7) & 1]
        if matcher.is_error():
            return complaint(matcher)
        if not allowed:  # the end, or a control token
            break
        matcher.consume_token(chance.choice(allowed))
    return ""
