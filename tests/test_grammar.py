"""What answers are held to: each one that ends is what was asked for, and no grammar hurts anybody."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemas import CALL, END, PIECES, SCHEMAS, allowed, of_bytes, valid, written

import mdl
from mdl.engine import Engine
from mdl.engine.checking import Checker
from mdl.engine.grammar import Grammars
from mdl.engine.request import Chat, Delta, EngineFiles, EngineSettings, Format, Message, Sampling
from mdl.errors import MdlError, UsageError

DEMO = Path(mdl.__file__).parent / "models" / "mdl-demo-Q8_0.gguf"


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    """Of a model whose tokens are bytes."""
    grammars = of_bytes()
    yield grammars
    grammars.close()


@pytest.fixture(scope="module")
def demo() -> Iterator[Engine]:
    with Engine() as engine:
        engine.load(EngineFiles(DEMO), EngineSettings())
        engine.ready()
        yield engine


def schema(content: object) -> Format:
    return Format("schema", json.dumps(content))


def after(grammars: Grammars, format: Format, text: bytes) -> set[int]:
    constraint = grammars.constraint(format)
    for token in text:
        constraint.accept(token)
    return allowed(constraint)


def accepts(grammars: Grammars, format: Format, text: str) -> bool:
    constraint = grammars.constraint(format)
    for token in text.encode():
        if token not in allowed(constraint):
            return False
        constraint.accept(token)
    return END in allowed(constraint)


def refusal(grammars: Grammars, format: Format) -> str:
    with pytest.raises(UsageError) as caught:
        grammars.constraint(format)
    assert "\n" not in caught.value.message
    return caught.value.message


# What may follow


def test_only_what_may_follow_keeps_its_logit(grammars: Grammars) -> None:
    colours = schema({"enum": ["red", "green"]})
    assert after(grammars, colours, b"") == {ord('"')}
    assert after(grammars, colours, b'"') == {ord("r"), ord("g")}
    assert after(grammars, colours, b'"red"') == {END}


def test_an_end_is_known_and_so_is_what_must_come(grammars: Grammars) -> None:
    constraint = grammars.constraint(schema({"const": {"name": "x"}}))
    assert bytes(constraint.forced()) == b'{"name": "x"}'
    for token in constraint.forced():
        assert not constraint.ended
        constraint.accept(token)
    assert constraint.ended


def test_control_tokens_come_only_where_a_grammar_names_them(grammars: Grammars) -> None:
    assert after(grammars, Format("regex", "(?:.|\n)*"), b"x") & {END, CALL} == {END}
    named = Format("lark", 'start: <|call|> "a"')
    assert after(grammars, named, b"") == {CALL}


@pytest.mark.parametrize("tokenize", [list, lambda text: list(b" " + text), lambda _: [CALL], lambda _: []])
def test_a_tokenizer_that_writes_something_else_is_not_believed(tokenize: Any) -> None:
    grammars = Grammars(PIECES, {"<|call|>": CALL}, [END], tokenize)
    constraint = grammars.constraint(schema({"const": "<|call|>"}))
    grammars.close()
    assert bytes(constraint.forced()) == b'"<|call|>"'


def test_each_answer_has_a_constraint_of_its_own(grammars: Grammars) -> None:
    first, second = (grammars.constraint(schema({"enum": ["ab", "cd"]})) for _ in range(2))
    first.accept(ord('"'))
    first.accept(ord("a"))
    assert allowed(second) == {ord('"')}
    assert allowed(first) == {ord("b")}


def test_json_is_written_on_one_line_and_only_in_one_way(grammars: Grammars) -> None:
    value = {"a": [1, 2.5, 'x\n"\\é'], "b": {"c": None, "d": True}}
    assert accepts(grammars, Format("json"), json.dumps(value, ensure_ascii=False))
    for other in ('{"a":1}', '{ "a": 1}', '{"a": 1\n}', '{"\\u0061": 1}', "[1]", " {}"):
        assert not accepts(grammars, Format("json"), other), other


# That answers are what was asked for


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(SCHEMAS, st.integers(0, 2**32))
def test_what_is_written_by_chance_validates(grammars: Grammars, content: Any, seed: int) -> None:
    try:
        answer = written(grammars, schema(content), seed)
    except UsageError:
        return  # said, and not kept to in silence
    if answer is not None:
        assert valid(content, answer), answer


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(SCHEMAS, st.integers(0, 2**32))
def test_answers_of_a_model_validate(demo: Engine, content: Any, seed: int) -> None:
    try:
        answer = ask(demo, schema(content), temperature=1.5, seed=seed, max_tokens=300)
    except UsageError:
        return
    if answer[-1].finish == "stop":
        assert valid(content, text_of(answer)), text_of(answer)


def text_of(answer: list[Delta]) -> str:
    return "".join(delta.text for delta in answer)


def ask(engine: Engine, format: Format, **sampling: Any) -> list[Delta]:
    chat = Chat((Message("user", "Who are you?"),), Sampling(**sampling), format=format)
    return list(engine.chat(chat))


OBJECT = {"type": "object"}


def test_every_way_to_choose_keeps_to_the_form(demo: Engine) -> None:
    properties = {"name": {"type": "string", "maxLength": 20}, "age": {"enum": [1, 2]}}
    person = schema(
        {"properties": properties, "required": ["name", "age"], "additionalProperties": False} | OBJECT
    )
    for options in (
        {"temperature": 0.0},
        {"typical_p": 0.3},
        {"top_n_sigma": 0.5},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01},
        {"mirostat": 1},
        {"mirostat": 2},
        {"dry_multiplier": 2.0, "repeat_penalty": 1.5},
        {"top_k": 1, "logprobs": 2},
    ):
        answer = ask(demo, person, seed=1, **options)
        found = json.loads(text_of(answer))
        assert list(found) == ["name", "age"], options


NUMBER_K = {"properties": {"K": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
TREE = {"type": "array", "items": {"$ref": "#/$defs/tree"}}
KEPT = [
    ({"type": "object", "minProperties": 2, "required": ["a"]}, '{"a": 1, "b": 2}', '{"a": 1}'),
    (NUMBER_K, '{"b": "x"}', '{"K": "x"}'),
    (NUMBER_K, "{}", '{"\\u004b": "x"}'),
    ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, str(2**63 - 1024), str(2**63)),
    ({"type": "string", "pattern": "^[a&&b]$"}, '"&"', '"c"'),
    ({"type": "string", "pattern": r"^\W$"}, '"-"', '"é"'),
    ({"type": "string", "minLength": 1, "maxLength": 1}, '"😀"', '"ab"'),
    ({"type": "string", "format": "date"}, '"2026-11-21"', '"2026-11-31"'),
    ({"$ref": "#/$defs/tree", "$defs": {"tree": TREE}}, "[[], [[]]]", "[1]"),
    ({"oneOf": [{"type": "string"}, {"type": "null"}]}, "null", "1"),
    ({"type": "array", "prefixItems": [{"const": 1}], "items": False}, "[1]", "[1, 1]"),
    ({"title": "x", "x-any": 1, "uniqueItems": False, "examples": [2], "type": "null"}, "null", "2"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "good", "bad"), KEPT)
def test_keywords_are_kept_to(grammars: Grammars, content: Any, good: str, bad: str) -> None:
    assert accepts(grammars, schema(content), good)
    assert not accepts(grammars, schema(content), bad)


# What is refused

REFUSED = [
    ({"properties": {"a": {"uniqueItems": True}}}, "'uniqueItems' is not supported, at #/properties/a"),
    ({"items": {"not": {}}}, "'not' is not supported, at #/items"),
    ({"maxLenght": 3}, "'maxLenght' is not supported, at #"),
    ({"format": "password"}, "the format 'password' is not supported, at #/format"),
    ({"$ref": "http://example.org/x"}, "'http://example.org/x' is not within the schema, at #/$ref"),
    ({"$ref": "#/$defs/x"}, "'/$defs/x' does not exist"),
    ({"minProperties": 2}, "minProperties of 2 is not supported"),
    ({"type": "strin"}, "'strin' is no type, at #/type"),
    ({"pattern": "a(?=b)"}, "lookaround, (?= is not supported, at #/pattern"),
    ({"pattern": "(a"}, "unclosed group"),
    ({"const": 2**60}, "is too large a number, at #/const"),
    ({"type": "integer", "minimum": 2**53 + 1}, "is too large a number, at #/minimum"),
    ({"enum": ["\x00"]}, "has a control character, at #/enum"),
    ({"minLength": "3"}, "minLength"),
    ({"minLength": 3, "maxLength": 2, "type": "string"}, "minLength (3) is greater than maxLength (2)"),
    ({"$schema": "http://example.org/"}, "the dialect 'http://example.org/' is not supported"),
    ({"oneOf": [{"minimum": 1}, {"maximum": 2}]}, "oneOf"),
    ({"properties": {"a": 1}}, "has to be an object, true or false, at #/properties/a"),
    (False, "schema is false"),
    ([], "has to be an object, true or false, at #"),
    ({"$ref": "#"}, "no answer"),
    ({"required": ["a"], "properties": {"a": {"$ref": "#/$defs/a"}}, "type": "object",
      "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}, "no answer"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "why"), REFUSED)
def test_what_is_not_kept_to_is_refused_with_its_place(grammars: Grammars, content: Any, why: str) -> None:
    assert why in refusal(grammars, schema(content))


@pytest.mark.parametrize(
    ("format", "why"),
    [
        (Format("schema", "{"), "no JSON"),
        (Format("schema", '{"const": NaN}'), "no JSON"),
        (Format("schema", '{"const": "\\ud800"}'), "half of a character"),
        (Format("schema", "[" * 100_000), "nested too deeply"),
        (Format("lark", "start: x"), "x"),
        (Format("lark", "start: start"), "no answer"),
        (Format("lark", "hello"), "1(6)"),
        (Format("lark", "start: <|nope|>"), "special token"),
        (Format("lark", 'start: "\x00\udc80"'), "cannot be used"),
        (Format("regex", "(?<=a)b"), "lookaround"),
        (Format("regex", "a{2}{3}"), "repeats nothing"),
        (Format("regex", "x" * 300_000), "more than 262,144 characters"),
    ],
)  # fmt: skip
def test_what_is_no_grammar_is_refused(grammars: Grammars, format: Format, why: str) -> None:
    assert why in refusal(grammars, format)


# That nobody is hurt

HUGE = [
    Format("schema", json.dumps({"type": "object", "required": [f"{number}" for number in range(20_000)]})),
    Format(
        "lark", "start: r0\n" + "\n".join(f'r{at}: "a" r{at + 1}' for at in range(9_000)) + '\nr9000: "b"'
    ),
    Format("regex", "(a{1000}){1000}"),
    Format("regex", "(" * 10_000 + ")" * 10_000),
    Format("schema", json.dumps({"enum": [{"a": {"b": number}} for number in range(10_000)]})),
    Format("schema", '{"items":' * 500 + "{}" + "}" * 500),
    Format("lark", 'start: (("a"{1000}){1000}){1000}'),
]
HARMLESS = [
    Format("schema", json.dumps({"type": "string", "maxLength": 1_000_000})),
    Format("schema", json.dumps({"type": "array", "minItems": 10**9})),
    Format("schema", json.dumps({"enum": [f"value {number}" for number in range(10_000)]})),
    Format("lark", 'start: start "a" | "a"'),
    Format("lark", 'start: s\ns: s s | s s s | "a" | ""'),
]
ENDLESS = Format("schema", json.dumps({"type": "integer", "multipleOf": 999_983}))


@pytest.mark.parametrize("format", HUGE)
def test_a_grammar_that_is_too_much_costs_only_its_request(demo: Engine, format: Format) -> None:
    worker = demo.pid
    with pytest.raises(UsageError):
        ask(demo, format, max_tokens=20)
    assert json.loads(text_of(ask(demo, schema({"const": "still here"})))) == "still here"
    assert demo.pid == worker


@pytest.mark.parametrize("format", HARMLESS)
def test_what_only_looks_like_too_much_is_kept_to(demo: Engine, format: Format) -> None:
    assert ask(demo, format, max_tokens=20)[-1].finish in ("stop", "length")


def test_others_are_answered_while_a_grammar_is_tried(demo: Engine) -> None:
    heard: SimpleQueue[Any] = SimpleQueue()
    for asked in (ENDLESS, ENDLESS, None):
        chat = Chat((Message("user", "Who are you?"),), Sampling(temperature=0), format=asked)
        demo.submit(chat, heard.put)
    pieces = [heard.get(timeout=30)]
    while not isinstance(pieces[-1], MdlError):
        pieces.append(heard.get(timeout=30))
    assert pieces[-2].finish == "stop"
    assert "more than 3 seconds" in pieces[-1].message
    assert "more than 3 seconds" in heard.get(timeout=1).message  # found out once


def test_a_new_form_does_not_wait_for_those_that_take_long(demo: Engine) -> None:
    heard: SimpleQueue[Any] = SimpleQueue()
    slow = [schema({"type": "integer", "multipleOf": 999_979 - 2 * number}) for number in range(5)]
    chats = [Chat((Message("user", "Hi"),), format=form) for form in slow]
    cancels = [demo.submit(chat, heard.put) for chat in chats]
    assert text_of(ask(demo, schema({"const": "good"}))) == '"good"'
    assert heard.qsize() < 5
    for cancel in cancels:
        cancel()


def test_a_request_that_is_cancelled_while_its_grammar_is_tried_hears_nothing(demo: Engine) -> None:
    heard: SimpleQueue[Any] = SimpleQueue()
    demo.submit(Chat((Message("user", "Hi"),), format=schema({"enum": ["a", "b", "never"]})), heard.put)()
    assert text_of(ask(demo, schema({"const": "next"}))) == '"next"'
    assert heard.empty()


def test_a_checker_whose_process_is_ended_starts_another() -> None:
    others = children(os.getpid())
    checker = Checker(len(PIECES), {}, [END])
    try:
        checker.check(Format("json"))
        (process,) = children(os.getpid()) - others
        os.kill(process, signal.SIGKILL)
        while process in children(os.getpid()):
            time.sleep(0.01)
        checker.check(Format("json"))
    finally:
        checker.close()
    assert not children(os.getpid()) - others


def test_nothing_is_left_of_an_engine_that_is_killed() -> None:
    with Engine() as engine:
        engine.load(EngineFiles(DEMO))
        ask(engine, Format("json"), max_tokens=1)
        assert engine.pid is not None
        started = children(engine.pid)
        os.kill(engine.pid, signal.SIGKILL)
        end = time.monotonic() + 20
        while alive := started & {process for process, _ in processes()}:
            assert time.monotonic() < end, alive
            time.sleep(0.05)
        assert len(started) == 1


def processes() -> list[tuple[int, int]]:
    """Each process and its parent, but for those that have ended."""
    listed = subprocess.run(["ps", "-axo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
    lines = (line.split() for line in listed.stdout.splitlines())
    return [(int(process), int(parent)) for process, parent, state, *_ in lines if not state.startswith("Z")]


def children(parent: int) -> set[int]:
    """Those that try grammars."""
    own = {process for process, above in processes() if above == parent}
    return {process for process in own if "engine.trial" in command(process)}


def command(process: int) -> str:
    asked = ["ps", "-o", "command=", "-ww", "-p", str(process)]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout
