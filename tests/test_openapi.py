"""The OpenAPI document: it says what the server does, no more and no less. Judged by schemathesis."""

import ast
import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis import CheckFunction, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from serving import CHAT, FRANCE, Server
from starlette.routing import Route

import mdl.server
from mdl.errors import MdlError
from mdl.server import app, chat, completions, embeddings, tokens
from mdl.server.openapi import document
from mdl.server.options import ServeOptions
from mdl.server.schemas import ANSWERS, REQUESTS
from mdl.server.service import Service

Reader = Callable[[Any], object]

# Each reader of bodies: the schema that describes it, and the least that it takes.
READERS: dict[str, tuple[Reader, dict[str, Any]]] = {
    "ChatRequest": (chat.asked, {"messages": FRANCE}),
    "CompletionRequest": (completions.asked, {"prompt": "1 2 3"}),
    "EmbeddingRequest": (embeddings.embeddings, {"input": "a"}),
    "RerankRequest": (embeddings.rerank, {"query": "a", "documents": ["a"]}),
    "DetokenizeRequest": (tokens.detokenize, {"tokens": [1]}),
}
EXAMPLES = 25  # of what fits a schema, and as many of what does not, for each operation
MOST_ITEMS = 4  # in what is made up: the limits themselves are tested where they are


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("server") / "home"
    with Server(home, models=["demo"], engine={"context": 128}) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def published(server: Server) -> dict[str, Any]:
    """As a client gets it."""
    status, found, _ = server.ask("GET", "/openapi.json")
    assert status == 200
    return dict(found)


def walk(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from walk(inner)


# What there is


def test_each_route_is_described_and_each_description_has_a_route() -> None:
    service = Service(None, None, None, None, None, None)  # type: ignore[arg-type] # nothing is asked
    routes = [route for route in app(service, ServeOptions()).routes if isinstance(route, Route)]
    paths = document(False)["paths"]
    assert {re.sub(r":\w+}", "}", route.path) for route in routes} == set(paths)
    for route in routes:
        described = set(paths[re.sub(r":\w+}", "}", route.path)]) - {"parameters"}
        assert {method.lower() for method in (route.methods or ())} - {"head"} == described, route.path


def test_the_document_is_valid_and_says_whether_a_key_is_asked_for(published: dict[str, Any]) -> None:
    meta = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    for name, schema in published["components"]["schemas"].items():
        Draft202012Validator.check_schema({**meta, **schema}), name
    named = published["components"].items()
    known = {f"#/components/{kind}/{name}" for kind, names in named for name in names}
    assert {schema["$ref"] for schema in walk(published) if "$ref" in schema} <= known
    assert published["security"] == [] and document(True)["security"] == [{"key": []}]
    assert document(True)["paths"]["/healthz"]["get"]["security"] == []


def words() -> set[str]:
    """All words in quotes in the source of the server, among which are the names of all fields."""
    found = set()
    for path in Path(mdl.server.__file__).parent.glob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        texts = {
            node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        found |= {text for text in texts if re.fullmatch(r"[a-z][a-z_]*", text)}
    return found


def is_known(read: Reader, least: dict[str, Any], name: str) -> bool:
    try:
        read({**least, name: {"an": ["odd", "value"]}})
    except MdlError as error:
        return "is not a field" not in error.message or getattr(error, "param", None) != name
    return True


@pytest.mark.parametrize("name", READERS)
def test_each_field_that_is_read_is_described_and_no_other(name: str) -> None:
    read, least = READERS[name]
    described = set(document(False)["components"]["schemas"][name]["properties"])
    assert {word for word in words() | described if is_known(read, least, word)} == described
    assert len(words()) > 200 and not is_known(read, least, "fields")


def refusal(read: Reader, body: dict[str, Any]) -> str | None:
    """The field that it names; None where the body is taken."""
    try:
        read(body)
    except MdlError as error:
        return str(getattr(error, "param", ""))
    return None


NUMBERS = [
    (reader, field, schema)
    for reader in READERS
    for field, schema in document(False)["components"]["schemas"][reader]["properties"].items()
    if "minimum" in schema
]


@pytest.mark.parametrize(("reader", "field", "schema"), NUMBERS)
def test_a_number_is_taken_within_the_limits_that_are_described(
    reader: str, field: str, schema: dict[str, Any]
) -> None:
    read, least = READERS[reader]
    least = {**least, "logprobs": True} if field == "top_logprobs" else least
    low, high = schema["minimum"], schema["maximum"]
    for good in (low, high, *map(float, (low, high) if abs(low) < 2**53 else ())):
        least = {**least, "n": good} if field == "best_of" else least
        assert refusal(read, {**least, field: good}) is None, good
    for bad in (low - 1, high + 1, *([1.5] if "integer" in schema["type"] else [])):
        assert refusal(read, {**least, field: bad}) == field, bad


# Schemathesis


# Where what a model can do, or another field, decides whether a value is taken: one that is.
TAKEN = {
    "model": ["demo", "", None],
    "source_url": ["demo"],
    "prompt": ["1 2 3", "", [1, 2, 3], ["1 2", "3"], [[1, 2], "3"]],
    "tokens": [[1, 2, 2047], []],
    "suffix": [None],
    "best_of": [None],
    "stream_options": [None],
    "top_logprobs": [None],
    "grammar": [None],
    "json_schema": [None, {"type": "boolean"}],
    "response_format": [None, {"type": "text"}],
    "tool_choice": [None, "auto", "none"],
    "max_completion_tokens": [None],
    "typical": [None],
    "keep_alive": [None, "5m", 60],
    "logit_bias": [None, {"5": -100}],
}


def narrowed(published: dict[str, Any], mode: GenerationMode) -> dict[str, Any]:
    """The document, from which requests are made up: short ones for a model that there is. Answers may have
    nothing but what it describes."""
    narrow = copy.deepcopy(published)
    schemas = narrow["components"]["schemas"]
    for schema in walk({name: schemas[name] for name in REQUESTS}):
        if schema.get("additionalProperties") is False:
            schema["additionalProperties"] = {"type": "null"}  # the same as absent, whatever its name
        if "maxItems" in schema:
            schema["maxItems"] = min(schema["maxItems"], MOST_ITEMS)
            if mode is GenerationMode.NEGATIVE:
                del schema["maxItems"]  # five are not too many
        for name in set(TAKEN) & set(schema.get("properties", {})):
            if mode is GenerationMode.POSITIVE or name == "model":
                schema["properties"][name] = {"enum": TAKEN[name]}
    for schema in walk({name: schemas[name] for name in ANSWERS}):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return narrow


def strictly(published: dict[str, Any], name: str) -> Draft202012Validator:
    """For what may have nothing but what is described."""
    whole = narrowed(published, GenerationMode.NEGATIVE)
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": whole["components"]})


WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
STREAMS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": FRANCE}),
    (CHAT, {"messages": FRANCE, "n": 2, "logprobs": True, "top_logprobs": 2, "max_tokens": 3}),
    (CHAT, {"messages": FRANCE, "stream_options": {"include_usage": True}, "reasoning_effort": "high"}),
    (CHAT, {"messages": FRANCE, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 40}),
    ("/v1/completions", {"prompt": ["1 2 3", "a"], "logprobs": 2, "echo": True}),
    ("/v1/completions", {"prompt": "1 2 3", "stream_options": {"include_usage": True}}),
]


@pytest.mark.parametrize(("path", "fields"), STREAMS)
def test_each_event_of_a_stream_is_as_described(
    server: Server, published: dict[str, Any], path: str, fields: dict[str, Any]
) -> None:
    chunk = strictly(published, "ChatChunk" if path == CHAT else "CompletionChunk")
    body = json.dumps({**fields, "temperature": 0, "stream": True}).encode()
    _, data, _ = server.ask("POST", path, body)
    *events, done, _ = [line.removeprefix("data: ") for line in data.decode().split("\n\n")]
    assert done == "[DONE]" and len(events) >= 2
    for event in events:
        chunk.validate(json.loads(event))


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
PATHS = sorted(document(False)["paths"])
BOUNDED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
WITH_BODIES = [path for path in PATHS if "requestBody" in document(False)["paths"][path].get("post", {})]


@pytest.mark.parametrize("path", PATHS)
def test_what_is_asked_for_as_described_is_answered_as_described(
    server: Server, published: dict[str, Any], path: str
) -> None:
    ask(server, published, path, GenerationMode.POSITIVE, CHECKS)


@pytest.mark.parametrize("path", WITH_BODIES)
def test_what_is_not_as_described_is_refused_as_described(
    server: Server, published: dict[str, Any], path: str
) -> None:
    ask(server, published, path, GenerationMode.NEGATIVE, [*CHECKS, negative_data_rejection])


def ask(
    server: Server, published: dict[str, Any], path: str, mode: GenerationMode, checks: list[CheckFunction]
) -> None:
    """Made-up requests to each operation of a path, with what schemathesis says to the answers."""
    document = schemathesis.openapi.from_dict(narrowed(published, mode))
    for found in document.get_all_operations():
        bodies = found.ok().definition.raw.get("requestBody")
        if found.ok().path != path or (mode is GenerationMode.NEGATIVE and not bodies):
            continue
        examples = EXAMPLES if found.ok().method == "post" else 3

        @settings(BOUNDED, max_examples=examples)
        @given(case=found.ok().as_strategy(generation_mode=mode))
        def try_it(case: schemathesis.Case) -> None:
            case.call_and_validate(base_url=server.url, checks=checks)

        try_it()
