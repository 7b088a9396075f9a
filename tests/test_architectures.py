"""Small real models of several architectures: what they go on from is what they would have computed."""

import pytest
from tiny import TINY, write

from mdl.engine import Engine
from mdl.engine.request import Completion, EngineFiles, EngineSettings, Sampling

PROMPT = tuple(range(300, 400))
RECURRENT = {"recurrent", "hybrid, by turns", "hybrid, side by side"}


@pytest.fixture(scope="module", params=TINY)
def engine(request, tmp_path_factory):
    model = write(TINY[request.param], tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    with Engine() as engine:
        engine.load(EngineFiles(model), EngineSettings(parallel=2))
        engine.ready(30)
        yield engine, request.param in RECURRENT


def answer(engine, prompt, seed=None):
    """What comes first: the likeliest tokens and their logprobs; all tokens; and how many of the prompt's
    were there. With a seed everything is computed anew."""
    sampling = Sampling(temperature=0, max_tokens=16, logprobs=5, seed=seed)
    deltas = [*engine.completion(Completion(prompt, sampling))]
    told = [logprob for delta in deltas for logprob in delta.logprobs]
    first = {token: logprob for token, _, logprob in told[0].top}
    return first, [logprob.token for logprob in told], deltas[-1].usage.cached_tokens


def same(one, other):
    """But for the last digits, which depend on how many tokens are computed at once."""
    both = one.keys() & other.keys()
    return len(both) >= 3 and all(abs(one[token] - other[token]) < 0.05 for token in both)


def test_each_begins_where_it_can_and_answers_as_from_the_beginning(engine):
    engine, recurrent = engine
    asked = {
        "first": PROMPT,
        "again": PROMPT,
        "goes on": (*PROMPT, 7, 8, 9),
        "once more": (*PROMPT, 10, 11),
        "branches off": (*PROMPT[:60], 5, 6),
        "at the same place": (*PROMPT[:60], 7, 8),
        "and again": (*PROMPT[:60], 9, 10),
    }
    cached = {}
    for name, prompt in asked.items():
        first, tokens, cached[name] = answer(engine, prompt)
        assert same(first, answer(engine, prompt, seed=1)[0]), name
        assert len(tokens) == 16
    assert cached["first"] == 0
    if not recurrent:
        assert cached["again"] == 99 and cached["goes on"] == 100 and cached["branches off"] == 60
    else:
        assert cached["branches off"] == 0 and cached["at the same place"] == 60
    assert cached["and again"] == 60


def test_a_conversation_goes_on_from_its_last_answer(engine):
    engine, _ = engine
    prompt = tuple(range(500, 560))
    for turn in range(3):
        _, tokens, cached = answer(engine, prompt)
        # The last token of an answer has been chosen, and nothing been computed from it.
        assert cached >= len(prompt) - 4 if turn else cached == 0
        prompt = (*prompt, *tokens, 20 + turn, 30, 40)
