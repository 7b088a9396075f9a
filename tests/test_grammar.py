"""What answers are held to: each one that ends is what was asked for, and no grammar hurts anybody."""

import ctypes
import json

import pytest

from mdl.engine.grammar import Grammars
from mdl.engine.request import Format

PIECES = [bytes([byte]) for byte in range(256)] + [b"<|end|>"]
END = 256


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    """Of a model whose tokens are bytes."""
    return Grammars(PIECES, {"<|end|>": END}, [END], list)


def allowed(grammars: Grammars, format: Format, text: bytes) -> set[int]:
    """The tokens that may follow a text."""
    constraint = grammars.constraint(format)
    for token in text:
        constraint.accept(token)
    logits = (ctypes.c_float * len(PIECES))()
    constraint.mask(ctypes.addressof(logits))
    return {token for token, logit in enumerate(logits) if logit == 0}


def test_only_what_may_follow_keeps_its_logit(grammars: Grammars) -> None:
    schema = Format("schema", json.dumps({"enum": ["red", "green"]}))
    assert allowed(grammars, schema, b'"') == {ord("r"), ord("g")}
    assert allowed(grammars, schema, b'"red"') == {END}
