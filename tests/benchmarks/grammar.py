"""What structured output costs and covers: llguidance, as mdl uses it, beside the grammars of llama.cpp.

    python tests/benchmarks/grammar.py [tokens of the vocabulary: 150000] [schemas: 300]

Prints three tables: the time to compile and for each token; of schemas by chance (tests/schemas.py) the
share that is taken and the share of answers that are then valid; what a token takes, free and held to a form,
of the demo and of a model of random weights with that vocabulary.

llama.cpp's schemas are converted by what llama-cpp-python has for it, and for the second table its grammars
are followed by mdl: llama.cpp ends the process for some of them.
"""

import ctypes
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import mean, quantiles
from time import perf_counter
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import models
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemas import SCHEMAS, of_bytes, valid, written

from mdl.engine import Engine
from mdl.engine.grammar import Grammars
from mdl.engine.llama import Runner
from mdl.engine.native import C
from mdl.engine.request import Chat, EngineFiles, EngineSettings, Format, Message, Sampling

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}},
        "born": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
    },
    "required": ["name", "age", "tags", "born"],
    "additionalProperties": False,
}
TEXT = json.dumps(
    {
        "name": "Ada, the first of them all",
        "age": 36,
        "tags": ["mathematics", "poet\nry"],
        "born": "1815-12-10",
    }
)


def main(vocabulary: int = 150_000, schemas: int = 300) -> None:
    models.SIZES["words"] = models.Size(2, 256, 4, 4, 512, vocabulary, "Q8_0")
    with tempfile.TemporaryDirectory() as folder:
        path = models.make("words", Path(folder))
        runner = Runner(EngineFiles(path), EngineSettings(context=1024, parallel=1))
        speed(runner)
        coverage(schemas)
        cost(path)


# Time


def speed(runner: Runner) -> None:
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    tokens = runner.vocabulary.tokens(TEXT)
    converted = json_schema_to_gbnf(json.dumps(PERSON))
    anything = json_schema_to_gbnf('{"type": "object"}')
    rows = {
        "schema, mdl": lambda: ours(runner, Format("schema", json.dumps(PERSON)), tokens),
        "schema, llama.cpp": lambda: theirs(runner, converted, tokens),
        "any JSON, mdl": lambda: ours(runner, Format("json"), tokens),
        "any JSON, llama.cpp": lambda: theirs(runner, anything, tokens),
        "that GBNF, mdl": lambda: ours(runner, Format("gbnf", anything), tokens),
    }
    print(f"{runner.loaded.vocabulary:,} tokens; milliseconds\n")
    started = perf_counter()
    runner.prepare(Format("regex", "a"))
    print(f"{'once for each model':24} {1000 * (perf_counter() - started):9.2f}")
    print(f"{'':24} {'compile':>9} {'token':>9} {'p95':>9} {'worst':>9}")
    for name, row in rows.items():
        compiling, each = row()
        each = [1000 * seconds for seconds in each]
        figures = (mean(each), quantiles(each, n=20)[-1], max(each))
        print(f"{name:24} {1000 * compiling:9.2f} " + " ".join(f"{figure:9.3f}" for figure in figures))


def ours(runner: Runner, format: Format, tokens: list[int]) -> tuple[float, list[float]]:
    """To try and to compile; a mask and what is accepted, for each token."""
    started = perf_counter()
    runner.prepare(format)
    compiling = perf_counter() - started
    constraint = runner.constraint(format)
    logits = np.zeros(runner.loaded.vocabulary, np.float32)
    seconds = []
    for token in tokens:
        logits[:] = 0
        started = perf_counter()
        constraint.mask(logits.ctypes.data)
        seconds.append(perf_counter() - started)
        assert logits[token] == 0, runner.vocabulary.text_of(token)
        constraint.accept(token)
    return compiling, seconds


def theirs(runner: Runner, grammar: str, tokens: list[int]) -> tuple[float, list[float]]:
    started = perf_counter()
    sampler = C.llama_sampler_init_grammar(runner.vocabulary.handle, grammar.encode(), b"root")
    compiling = perf_counter() - started
    count = runner.loaded.vocabulary
    entries = (C.llama_token_data * count)()
    view = np.frombuffer(entries, np.dtype([("id", "i4"), ("logit", "f4"), ("p", "f4")]))
    seconds = []
    for token in tokens:
        view["id"], view["logit"] = np.arange(count), 0
        candidates = C.llama_token_data_array(entries, count, -1, False)
        started = perf_counter()
        C.llama_sampler_apply(sampler, ctypes.byref(candidates))
        seconds.append(perf_counter() - started)
        if view["logit"][token] != 0:
            break  # it writes JSON in another way
        C.llama_sampler_accept(sampler, token)
    C.llama_sampler_free(sampler)
    return compiling, seconds


# Coverage


def coverage(schemas: int) -> None:
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    drawn, grammars = sample(schemas), of_bytes()
    print(f"\n{len(drawn)} schemas\n\n{'':24} {'taken':>9} {'valid':>9} {'invalid':>9} {'no end':>9}")
    for name, convert in (
        ("mdl", lambda schema: Format("schema", schema)),
        ("llama.cpp's converter", lambda schema: Format("gbnf", json_schema_to_gbnf(schema))),
    ):
        found = Counter(outcome(grammars, schema, convert, number) for number, schema in enumerate(drawn))
        taken = len(drawn) - found["refused"]
        shares = (taken / len(drawn), *(found[kind] / taken for kind in ("valid", "invalid", "no end")))
        print(f"{name:24} " + " ".join(f"{share:9.1%}" for share in shares))
    grammars.close()


def sample(count: int) -> list[Any]:
    found: list[Any] = []

    every = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}

    @settings(max_examples=count, phases=[Phase.generate], derandomize=True, **every)
    @given(st.lists(SCHEMAS, min_size=1, max_size=3))
    def draw(schemas: list[Any]) -> None:
        found.extend(schemas)

    draw()
    return found[:count]


def outcome(grammars: Grammars, schema: Any, convert: Callable[[str], Format], seed: int) -> str:
    try:
        answer = written(grammars, convert(json.dumps(schema)), seed, 300)
    except Exception:  # noqa: BLE001 - the converter raises what it comes upon
        return "refused"
    if answer is None:
        return "no end"
    try:
        return "valid" if valid(schema, answer) else "invalid"
    except ValueError:
        return "invalid"


# Cost


def cost(path: Path) -> None:
    """Of the processor, as other things may run beside; with one thread, prompts included."""
    print(f"\n{'milliseconds a token':24} {'free':>9} {'schema':>9} {'any JSON':>9}")
    for name, file in (("demo", models.DEMO), ("random weights", path)):
        with Engine() as engine:
            engine.load(EngineFiles(file), EngineSettings(context=1024, parallel=1, threads=1))
            forms = (None, Format("schema", json.dumps(PERSON)), Format("json"))
            print(f"{name:24} " + " ".join(f"{1000 * each(engine, form):9.3f}" for form in forms))


def each(engine: Engine, form: Format | None, count: int = 20) -> float:
    """Seconds that the worker is busy for a token."""
    answer(engine, form, 0)
    started = busy(engine)
    tokens = sum(answer(engine, form, seed) for seed in range(1, count + 1))
    return (busy(engine) - started) / tokens


def answer(engine: Engine, form: Format | None, seed: int) -> int:
    sampling = Sampling(temperature=1.0, seed=seed, max_tokens=100, ignore_eos=form is None)
    *_, last = engine.chat(Chat((Message("user", "Who are you?"),), sampling, format=form))
    return last.usage.completion_tokens if last.usage else 0


def busy(engine: Engine) -> float:
    fields = Path(f"/proc/{engine.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
