"""mdl serve beside llama-server and llama-cpp-python's server: same models, threads, batch, client; in turns.

    python tests/benchmarks/serve.py [--models 15M,150M,1B] [--scenarios one,8,32,common,mix,schema,memory]
        [--rounds 5] [--threads N] [--xllamacpp PYTHON] [--llama-cpp PYTHON] [--llama-server BINARY]
        [--peers mdl,xllamacpp,llama_cpp,llama-server] [--json FILE]

The models are made on the spot, of random weights (models.py); the others' packages are installed into
environments of their own, unless interpreters that have them are given. Each scenario starts all servers
with the same cells for each request and as many slots as requests are sent at once (`one`: 4), warms them up
with a round that does not count, and then asks one after the other, the first one changing from round to
round. All questions of a round are the same for everybody, and new in each round, so that no cache helps but
where it should. Answers are greedy, streamed, and of full length.

The tables have medians, and ratios of each round's figures to the same round's of the others (median).
"first" is the time to the first piece of text; "between" what a token takes after that, of each answer;
"gap" what passes between two pieces, which may be several tokens. "memory" is what all processes of a server
take beyond the pages of the model's file (PSS): cache, compute buffers and weights that were packed anew are
in it.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import models
import peers
from bare import Bare
from platformdirs import user_cache_path
from streams import Answer, ask

WORDS = models.words()
COMMON, LONG, SHORT = 1000, 800, 16  # tokens


class Load(NamedTuple):
    """How much is asked of a model of some size, so that a round takes seconds."""

    length: int  # tokens of an answer
    questions: int  # with a common prompt


LOADS = {"15M": Load(256, 16), "150M": Load(96, 16), "1B": Load(32, 16)}

Figures = dict[str, float]


class Round(NamedTuple):
    """What is asked in one round, of everybody alike."""

    load: Load
    seed: int
    who: str

    def body(self, prompt: str, length: int, system: str = "", **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        return {"messages": messages, "temperature": 0, "max_tokens": length, **fields}

    def text(self, words: int, part: int = 0) -> str:
        return " ".join(random.Random(self.seed * 1000 + part).choices(WORDS, k=words))

    def answers(self, count: int, **fields: Any) -> list[Answer]:
        return [Answer(self.body(self.text(10, i), self.load.length, **fields)) for i in range(count)]


def one(port: int, round_: Round) -> Figures:
    (answer,) = answers = round_.answers(1)
    ask(port, answers)
    return {
        "tokens/s": 1 / answer.pace,
        "with the prompt": answer.tokens / answer.whole,
        "first, ms": answer.first * 1e3,
    }


def many(count: int) -> Callable[[int, Round], Figures]:
    def streams(port: int, round_: Round) -> Figures:
        answers = round_.answers(count)
        seconds = ask(port, answers)
        return {
            "tokens/s": sum(answer.tokens for answer in answers) / seconds,
            "first p50, ms": statistics.median(answer.first for answer in answers) * 1e3,
            "between p50, ms": statistics.median(answer.pace for answer in answers) * 1e3,
        }

    return streams


def common(port: int, round_: Round) -> Figures:
    """Questions that arrive at once, below the same thousand words."""
    system = round_.text(COMMON)
    count = round_.load.questions
    answers = [Answer(round_.body(round_.text(10, i), SHORT, system)) for i in range(1, count + 1)]
    seconds = ask(port, answers)
    firsts = [answer.first for answer in answers]
    return {
        "first p50, ms": statistics.median(firsts) * 1e3,
        "first max, ms": max(firsts) * 1e3,
        "all, ms": seconds * 1e3,
    }


def mix(port: int, round_: Round) -> Figures:
    """Four that talk, and eight with long prompts and short answers that come when those have begun."""
    talking = round_.answers(4)
    reading = [Answer(round_.body(round_.text(LONG, 10 + i), SHORT), after=4) for i in range(8)]
    seconds = ask(port, [*talking, *reading])
    firsts = sorted(answer.first for answer in reading)
    paces = sorted(answer.pace for answer in talking + reading)
    gaps = sorted(gap for answer in talking for gap in answer.gaps)
    return {
        "first p50, ms": _part(firsts, 0.5) * 1e3,
        "first p95, ms": _part(firsts, 0.95) * 1e3,
        "between p50, ms": _part(paces, 0.5) * 1e3,
        "between p95, ms": _part(paces, 0.95) * 1e3,
        "gap p95, ms": _part(gaps, 0.95) * 1e3,
        "gap max, ms": gaps[-1] * 1e3,
        "all, ms": seconds * 1e3,
    }


_THING = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "kind": {"enum": ["person", "place", "thing"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9999},
        "good": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
    },
    "required": ["name", "kind", "count", "good", "tags"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": _THING, "minItems": 90, "maxItems": 100}  # too long to end in time


def schema(port: int, round_: Round) -> Figures:
    """Free and held to a schema, in turns: one stream, and eight together."""
    held: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "things", "schema": SCHEMA}}
    if round_.who == "llama_cpp":  # has no other way to say it
        held = {"type": "json_object", "schema": SCHEMA}
    rates: list[float] = []
    for count in (1, 8):
        for fields in ({}, {"response_format": held}):
            answers = round_._replace(seed=round_.seed + len(rates) * 10_000).answers(count, **fields)
            seconds = ask(port, answers)
            rates.append(1 / answers[0].pace if count == 1 else count * round_.load.length / seconds)
    return {
        "free, tokens/s": rates[0],
        "held, tokens/s": rates[1],
        "held/free": rates[1] / rates[0],
        "8 free, tokens/s": rates[2],
        "8 held, tokens/s": rates[3],
        "8 held/free": rates[3] / rates[2],
    }


class Scenario(NamedTuple):
    """`context` is for each request, beyond the length of answers."""

    run: Callable[[int, Round], Figures]
    parallel: int
    context: int


SCENARIOS = {
    "one": Scenario(one, 4, 256),
    "8": Scenario(many(8), 8, 256),
    "32": Scenario(many(32), 32, 256),
    "common": Scenario(common, 16, 1280),
    "mix": Scenario(mix, 12, 1280),
    "schema": Scenario(schema, 8, 256),
    "memory": Scenario(many(4), 4, 1024),
}


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.rounds: int = options.rounds
        self.threads: int | None = options.threads
        self.commands = _commands(options)
        self.folder: Path = options.folder
        self.log = Path(tempfile.mkstemp(suffix=".log", prefix="servers-")[1])
        self.results: list[dict[str, Any]] = []

    def run(self, name: str, chosen: list[str]) -> None:
        model = models.make(name, self.folder)
        threads = self.threads or _threads(model)
        busy = os.getloadavg()[0]
        print(f"\n# {model.stem}, {threads} thread(s); {busy:.1f} processes at work before\n")
        for each in chosen:
            scenario = SCENARIOS[each]
            length = LOADS[name].length
            terms = peers.Terms(model, threads, scenario.context + length, scenario.parallel)
            figures = self.memory(terms) if each == "memory" else self.measure(each, name, terms)
            self.results.append({"model": name, "scenario": each, "threads": threads, "figures": figures})
            _show(each, figures)

    def measure(self, scenario: str, name: str, terms: peers.Terms) -> dict[str, list[Figures]]:
        """The figures of each round, by server."""
        load = LOADS[name]
        found: dict[str, list[Figures]] = {each: [] for each in self.commands}
        with ExitStack() as stack:
            servers = [stack.enter_context(each) for each in self.servers(terms)]
            _compare(servers)
            turns: list[tuple[str, Callable[[Round], Figures]]] = [
                (server.name, lambda now, port=server.port: SCENARIOS[scenario].run(port, now))
                for server in servers
            ]
            if scenario == "one":
                prompt = Round(load, 1, "").text(16)
                loop = stack.enter_context(
                    Bare(terms.model, terms.threads, terms.context, prompt, load.length)
                )
                found["bare loop"] = []
                turns.append(("bare loop", lambda _: {"tokens/s": loop.rate()}))
            for number in range(self.rounds + 1):
                turns = turns[1:] + turns[:1]
                for who, turn in turns:
                    figures = turn(Round(load, number + 1, who))
                    if number:
                        found[who].append(figures)
        return found

    def servers(self, terms: peers.Terms) -> Iterator[Any]:
        for name, command in self.commands.items():
            yield peers.running(name, command, terms, self.log)

    def memory(self, terms: peers.Terms) -> dict[str, list[Figures]]:
        """After a round of each, one server at a time: those that run together would share pages."""
        found = {}
        for context in self.servers(terms):
            with context as server:
                SCENARIOS["memory"].run(server.port, Round(Load(32, 4), 1, server.name))
                used = peers.memory(server.pid, terms.model)
                found[server.name] = [
                    {"beyond the file, MB": used.beyond / 1e6, "file, MB": used.model / 1e6}
                ]
        return found


def _compare(servers: list[peers.Running]) -> None:
    """Ends it where they do not see the same prompt: then they would not do the same work."""
    body = Round(Load(2, 1), 0, "").body("How are you?", 2)
    seen = {server.name: peers.say(server.port, body)["usage"]["prompt_tokens"] for server in servers}
    if len(set(seen.values())) > 1:
        raise SystemExit(f"the same prompt has not the same tokens everywhere: {seen}")


def _part(values: list[float], part: float) -> float:
    """The quantile of sorted values."""
    return values[min(len(values) - 1, int(part * len(values)))]


def _threads(model: Path) -> int:
    """As mdl chooses for this model."""
    from mdl.engine import Engine
    from mdl.engine.request import EngineFiles, EngineSettings

    with Engine() as engine:
        engine.load(EngineFiles(model), EngineSettings(context=256))
        return engine.ready().threads


def _show(scenario: str, figures: dict[str, list[Figures]]) -> None:
    first = next(iter(figures))
    names = list(figures[first][0])
    print(f"{scenario:<14}" + "".join(f"{name:>18}" for name in names))
    for who, rounds in figures.items():
        values = [f"{_median(rounds, name):,.1f}" if name in rounds[0] else "-" for name in names]
        print(f"{who:<14}" + "".join(f"{value:>18}" for value in values))
    for who, rounds in figures.items():
        if who == first:
            continue
        ratios = [_ratio(figures[first], rounds, name) if name in rounds[0] else "-" for name in names]
        print(f"{first + '/' + who:<14}" + "".join(f"{value:>18}" for value in ratios))
    print(flush=True)


def _median(rounds: list[Figures], name: str) -> float:
    return statistics.median(each[name] for each in rounds)


def _ratio(ours: list[Figures], theirs: list[Figures], name: str) -> str:
    pairs = [(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) if b[name]]
    return f"{statistics.median(a / b for a, b in pairs):.3f}" if pairs else "-"


def _commands(options: argparse.Namespace) -> dict[str, peers.Command]:
    made: dict[str, peers.Command] = {}
    for name in options.peers.split(","):
        if name == "mdl":
            made[name] = peers.mdl
        elif name == "xllamacpp":
            made[name] = peers.xllamacpp(peers.python_with(name, peers.XLLAMACPP, options.xllamacpp))
        elif name == "llama_cpp":
            made[name] = peers.llama_cpp(peers.python_with(name, peers.LLAMA_CPP, options.llama_cpp))
        elif name != "llama-server":
            raise SystemExit(f"no such server: {name}")
    if options.llama_server:
        made["llama-server"] = peers.llama_server(options.llama_server)
    return made


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="mdl serve beside its peers")
    parser.add_argument("--models", default="15M,150M")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--peers", default="mdl,xllamacpp,llama_cpp")
    parser.add_argument("--xllamacpp", type=Path, metavar="PYTHON")
    parser.add_argument("--llama-cpp", type=Path, metavar="PYTHON")
    parser.add_argument("--llama-server", type=Path, metavar="BINARY")
    parser.add_argument("--folder", type=Path, default=user_cache_path("mdl-benchmarks", appauthor=False))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if wrong := set(options.models.split(",")) - set(models.SIZES):
        parser.error(f"no such model: {', '.join(wrong)}")
    if wrong := set(options.scenarios.split(",")) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(wrong)}")
    return options


def main() -> None:
    options = _options()
    bench = Bench(options)
    for name in options.models.split(","):
        bench.run(name, options.scenarios.split(","))
    if options.json:
        options.json.write_text(json.dumps(bench.results, indent=1))
    print(f"what the servers said: {bench.log}", file=sys.stderr)


if __name__ == "__main__":
    main()
