"""Completions, tokenize and detokenize by the real openai client and over sockets, with real answers."""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Completion
from pydantic import BaseModel
from serving import DEMO, FRANCE, Server, cache

from mdl.engine.request import Delta, Logprob, Sampling, Usage
from mdl.errors import MdlError
from mdl.profiles import Profile
from mdl.server import completions, texts, tokens

PATH = "/v1/completions"
PARIS = "The capital of France is Paris."
PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
OURS = {"timings"}  # what llama.cpp's server has and OpenAI has not


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("server") / "home"
    beginning(cache(home, "endless"))
    infilling(home)
    with Server(home) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def beginning(home: Path) -> None:
    """A copy of the demo that wants a token of its own before each text."""
    name = b"tokenizer.ggml.add_bos_token" + struct.pack("<I", 7)
    data = DEMO.read_bytes()
    assert name + b"\0" in data
    folder = home / "models" / "quay.io" / "org" / "begun"
    folder.mkdir(parents=True)
    (folder / "begun.gguf").write_bytes(data.replace(name + b"\0", name + b"\1"))


FIM = {"fim_pre": 5, "fim_suf": 6, "fim_mid": 7}


def infilling(home: Path) -> None:
    """A copy of the demo that says which tokens of it are for filling in."""
    keys = [packed(f"tokenizer.ggml.{name}_token_id") + struct.pack("<II", 4, at) for name, at in FIM.items()]
    filler = packed("filler") + struct.pack("<I", 8)
    more = b"".join(keys) + filler
    room = -(len(more) + 8) % 32  # what follows stays aligned
    more += packed("x" * room)
    data = DEMO.read_bytes()
    [count] = struct.unpack_from("<Q", data, 16)
    folder = home / "models" / "quay.io" / "org" / "infill"
    folder.mkdir(parents=True)
    head = data[:16] + struct.pack("<Q", count + len(keys) + 1)
    (folder / "infill.gguf").write_bytes(head + more + data[24:])


def packed(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def complete(server: Server, prompt: Any = PROMPT, **fields: Any) -> Any:
    """The answer; greedy unless the fields say otherwise."""
    return post(server, PATH, **{"prompt": prompt, "temperature": 0, **fields})


def post(server: Server, path: str, **fields: Any) -> Any:
    status, answer, _ = server.ask("POST", path, json.dumps({"model": "demo", **fields}).encode())
    assert status == 200, answer
    return answer


def texts_of(answer: Any) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def events(server: Server, **fields: Any) -> list[Any]:
    """The events of a streamed answer, without the last, which is checked."""
    *lines, done, rest = complete(server, stream=True, **fields).decode("ascii").split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def refused(server: Server, path: str = PATH, **fields: Any) -> tuple[int, str | None]:
    """The status, and the field that the refusal names."""
    status, answer, _ = server.ask("POST", path, json.dumps({"model": "demo", **fields}).encode())
    return status, answer["error"]["param"]


def extras(value: Any) -> set[str]:
    """The names of all fields that the published types do not have."""
    if isinstance(value, list):
        return set().union(*map(extras, value))
    if not isinstance(value, BaseModel):
        return set()
    inner = [extras(getattr(value, name)) for name in type(value).model_fields]
    return set(value.model_extra or ()).union(*inner)


# The real client


def test_the_openai_client_gets_a_completion_in_the_published_shape(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt=PROMPT, temperature=0, logprobs=2)
    Completion.model_validate(answer.model_dump(exclude_unset=True), strict=True)
    assert extras(answer) == OURS
    assert (answer.object, answer.model, answer.choices[0].text) == ("text_completion", "demo", PARIS)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        15,
        7,
    )


def test_the_openai_client_gets_a_streamed_completion(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    stream = client.completions.create(
        model="demo", prompt=PROMPT, temperature=0, stream=True, stream_options=options, user="me"
    )
    *chunks, last = stream
    assert "".join(chunk.choices[0].text for chunk in chunks) == PARIS
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert all(extras(chunk) == set() and chunk.usage is None for chunk in chunks)
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 7


# Prompts


def test_a_prompt_is_a_text_or_tokens_or_several_of_either(server: Server) -> None:
    ids = post(server, "/tokenize", content=PROMPT)["tokens"]
    counting = post(server, "/tokenize", content="1 2 3")["tokens"]
    for prompt in (PROMPT, [PROMPT], ids, [ids]):
        assert texts_of(complete(server, prompt)) == [PARIS]
    for prompts in ([PROMPT, "1 2 3"], [ids, counting], [PROMPT, counting]):
        first, second = texts_of(complete(server, prompts))
        assert (first, second[:6]) == (PARIS, " 4 5 6")


def test_each_prompt_is_answered_n_times_in_order_and_all_are_counted(server: Server) -> None:
    answer = complete(server, [PROMPT, "1 2 3"], n=2, max_tokens=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert texts_of(answer) == ["The capital", "The capital", " 4 5", " 4 5"]
    assert answer["usage"]["prompt_tokens"] == 15 + 3
    assert answer["usage"]["completion_tokens"] == 4 * 2
    assert answer["usage"]["total_tokens"] == 18 + 8


def test_what_is_cached_of_all_prompts_is_told(server: Server) -> None:
    prompts = ["The story of the lion and the lemon: once", "The story of the wood and the bear: twice"]
    complete(server, prompts)
    usage = complete(server, prompts)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - len(prompts)


def test_more_answers_than_there_is_room_for_are_refused(server: Server) -> None:
    body = json.dumps({"model": "demo", "prompt": ["a"] * 100, "n": 16}).encode()
    status, answer, _ = server.ask("POST", PATH, body)
    assert status == 400 and "1,600 answers" in answer["error"]["message"]


@pytest.mark.parametrize(
    "prompt", [None, [], [[]], 7, {}, [1.5], [-1], [True], ["a", 1], [[1], []], [[1], None], ["a"] * 2049]
)
def test_a_prompt_that_is_none_is_refused(server: Server, prompt: Any) -> None:
    assert refused(server, prompt=prompt) == (400, "prompt")


def test_a_token_that_the_model_does_not_have_is_refused(server: Server) -> None:
    assert refused(server, prompt=[1, 2048])[0] == 400
    assert refused(server, prompt=["fine", [1, 2**31 - 1]])[0] == 400


def test_a_prompt_that_is_too_long_is_refused_with_openais_word(server: Server) -> None:
    for prompt in ("word " * 3000, [5] * 3000, ["fine", [5] * 2048]):
        status, answer, _ = server.ask("POST", PATH, json.dumps({"model": "demo", "prompt": prompt}).encode())
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


# How much


def test_an_answer_has_16_tokens_unless_more_are_asked_for(server: Server) -> None:
    usual = complete(server, model="endless")
    assert usual["usage"]["completion_tokens"] == 16
    assert usual["choices"][0]["finish_reason"] == "length"
    assert complete(server, model="endless", max_tokens=40)["usage"]["completion_tokens"] == 40


def test_the_profile_of_a_model_fills_in_what_is_left_open() -> None:
    asked = completions.asked({"prompt": "a", "top_k": 7})
    assert asked.requests(Profile())[0].sampling == Sampling(top_k=7, max_tokens=16)
    profile = Profile(sampling={"top_k": 3, "min_p": 0.5, "max_tokens": 99})
    assert asked.requests(profile)[0].sampling == Sampling(top_k=7, min_p=0.5, max_tokens=99)


def test_several_answers_have_a_seed_each() -> None:
    requests = completions.asked({"prompt": ["a", "b"], "n": 2, "seed": 5}).requests(Profile())
    assert [(request.prompt, request.sampling.seed) for request in requests] == [
        ("a", 5),
        ("a", 6),
        ("b", 5),
        ("b", 6),
    ]


def test_no_tokens_at_all_can_be_asked_for(server: Server) -> None:
    answer = complete(server, max_tokens=0)
    assert texts_of(answer) == [""] and answer["usage"]["completion_tokens"] == 0
    assert answer["choices"][0]["finish_reason"] == "length"
    assert texts_of(complete(server, max_tokens=0, echo=True)) == [PROMPT]


def test_an_answer_ends_at_a_stop_string(server: Server) -> None:
    answer = complete(server, stop=[" is", "never"])
    assert texts_of(answer) == ["The capital of France"]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_an_answer_keeps_to_a_grammar_or_a_schema(server: Server) -> None:
    assert texts_of(complete(server, grammar='root ::= "no" | "yes"'))[0] in ("no", "yes")
    schema = {"enum": ["left", "right"]}
    assert json.loads(texts_of(complete(server, json_schema=schema))[0]) in schema["enum"]


def test_a_bias_forbids_a_token(server: Server) -> None:
    [the] = post(server, "/tokenize", content="The")["tokens"]
    assert not texts_of(complete(server, logit_bias={str(the): -100}))[0].startswith("The")


# What is told of the tokens


def test_a_prompt_is_told_again_before_its_answer(server: Server) -> None:
    assert texts_of(complete(server, echo=True)) == [PROMPT + PARIS]
    ids = post(server, "/tokenize", content=PROMPT)["tokens"]
    assert texts_of(complete(server, ids, echo=True)) == [PROMPT + PARIS]


def test_the_probability_of_each_token_is_told_in_the_older_shape(server: Server) -> None:
    told = complete(server, logprobs=2)["choices"][0]["logprobs"]
    assert "".join(told["tokens"]) == PARIS
    assert {len(told[name]) for name in told} == {len(told["tokens"])}
    for place, (token, value, top) in enumerate(
        zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True)
    ):
        assert value == top[token] == max(top.values()) <= 0
        assert len(top) == 2
        assert PARIS[told["text_offset"][place] :].startswith(token)


def test_what_is_likely_can_be_had_of_the_whole_prompt(server: Server) -> None:
    """As programs that evaluate models do: the likelihood of a text that is given."""
    answer = complete(server, PROMPT + PARIS, echo=True, max_tokens=0, logprobs=1)
    told = answer["choices"][0]["logprobs"]
    assert "".join(told["tokens"]) == PROMPT + PARIS == answer["choices"][0]["text"]
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    assert None not in told["token_logprobs"][1:]
    begins = told["text_offset"].index(len(PROMPT))
    sure = complete(server, logprobs=0)["choices"][0]["logprobs"]["token_logprobs"]
    assert told["token_logprobs"][begins:] == pytest.approx(sure, abs=0.1)
    wrong = complete(server, PROMPT + PARIS.replace("Paris", "Rome"), echo=True, max_tokens=0, logprobs=1)
    assert sum(wrong["choices"][0]["logprobs"]["token_logprobs"][1:]) < sum(told["token_logprobs"][1:]) - 3


def test_the_taken_token_is_told_beside_the_likeliest(server: Server) -> None:
    """So there may be one more than were asked for, as OpenAI documents it."""
    told = complete(server, "1 2 3 lemon", echo=True, max_tokens=0, logprobs=1)["choices"][0]["logprobs"]
    sizes = [len(top) for top in told["top_logprobs"][1:]]
    assert set(sizes) == {1, 2}
    alone = complete(server, logprobs=0)["choices"][0]["logprobs"]
    assert alone["top_logprobs"] == [
        {token: value} for token, value in zip(alone["tokens"], alone["token_logprobs"], strict=True)
    ]


def test_a_beginning_that_the_model_wants_is_no_text(server: Server) -> None:
    answer = complete(server, "1 2 3", model="begun", echo=True, max_tokens=0, logprobs=0)
    told = answer["choices"][0]["logprobs"]
    assert (told["tokens"], told["text_offset"]) == (["", "1", " 2", " 3"], [0, 0, 1, 3])
    assert told["token_logprobs"][0] is None and told["token_logprobs"][1] < 0
    assert answer["usage"]["prompt_tokens"] == 4


def test_parts_of_characters_are_told_as_bytes(server: Server) -> None:
    answer = complete(server, "a Καλ", echo=True, max_tokens=0, logprobs=0)
    told = answer["choices"][0]["logprobs"]
    assert answer["choices"][0]["text"] == "a Καλ"
    assert told["tokens"][-2:] == ["bytes:\\xce", "bytes:\\xbb"]
    assert told["text_offset"][-6:] == [2, 2, 3, 3, 4, 4]


def test_a_stream_tells_what_the_whole_answer_does(server: Server) -> None:
    whole = complete(server, [PROMPT, "1 2 3"], logprobs=1, echo=True)
    chunks = events(server, prompt=[PROMPT, "1 2 3"], logprobs=1, echo=True)
    for index, choice in enumerate(whole["choices"]):
        pieces = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        told = [piece["logprobs"] for piece in pieces if piece["logprobs"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        for name in ("tokens", "text_offset"):
            assert [item for part in told for item in part[name]] == choice["logprobs"][name]
        assert [piece["finish_reason"] for piece in pieces if piece["finish_reason"]] == [
            "length" if index else "stop"
        ]
    assert "timings" in chunks[-1] and not any("timings" in chunk for chunk in chunks[:-1])


def test_what_cannot_be_a_json_number_is_told_as_very_unlikely() -> None:
    told = texts.Told().tell([Logprob(5, b"a", -math.inf, ((6, b"b", -0.1),))])
    assert told["token_logprobs"] == [-9999.0] and told["top_logprobs"] == [{"b": -0.1, "a": -9999.0}]
    json.dumps(told, allow_nan=False)


def test_time_is_that_of_the_slowest_answer_and_tokens_are_those_of_all() -> None:
    usages = [Usage(10, 8, 5, 0.5, 1.0), Usage(10, 9, 5, 0.1, 2.0), Usage(4, 0, 1, 0.2, 0.1), Usage(4, 1, 1)]
    answers = [[Delta(usage=usage, finish="stop")] for usage in usages]
    answer = texts.completion("m", answers, 2, False)
    assert answer["usage"]["prompt_tokens"] == 14 and answer["usage"]["completion_tokens"] == 12
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}
    assert (answer["timings"]["prompt_ms"], answer["timings"]["predicted_ms"]) == (500.0, 2000.0)


# What is refused


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("best_of", {"best_of": 3, "n": 2}),
        ("best_of", {"best_of": 2}),
        ("echo", {"echo": True, "suffix": "."}),
        ("logprobs", {"logprobs": 6}),
        ("logprobs", {"logprobs": True}),
        ("max_tokens", {"max_tokens": -1}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("messages", {"messages": FRANCE}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("grammar", {"json_schema": {}, "grammar": "root ::= [a-z]"}),
        ("top_logprobs", {"top_logprobs": 1}),
        ("keep_alive", {"keep_alive": "1s" * 50 + "and more"}),
        ("nonsense", {"nonsense": 1}),
    ],
)
def test_what_is_not_supported_is_refused_by_name(server: Server, name: str, fields: dict[str, Any]) -> None:
    assert refused(server, prompt="a", **fields) == (400, name)


def test_best_of_may_say_what_n_says(server: Server) -> None:
    assert len(complete(server, n=2, best_of=2, max_tokens=1)["choices"]) == 2


def test_a_suffix_is_refused_by_a_model_that_cannot_fill_in(server: Server) -> None:
    status, answer, _ = server.ask(
        "POST", PATH, json.dumps({"model": "demo", "prompt": "a", "suffix": "b"}).encode()
    )
    assert (status, answer["error"]["code"]) == (422, "model_not_supported")
    assert answer["error"]["param"] == "suffix"


def test_a_model_that_can_fill_in_gets_what_comes_before_and_after(server: Server) -> None:
    before, after = (post(server, "/tokenize", content=said)["tokens"] for said in ("1 2 3", " 7 8 9"))
    pre, suf, mid = FIM.values()
    filled = complete(server, "1 2 3", suffix=" 7 8 9", model="infill")
    assert filled["usage"]["prompt_tokens"] == len(before) + len(after) + 3
    assert texts_of(filled) == texts_of(complete(server, [pre, *before, suf, *after, mid], model="infill"))
    assert texts_of(filled) != texts_of(complete(server, "1 2 3", model="infill"))


# Tokens


def test_texts_become_tokens_and_tokens_texts(server: Server) -> None:
    for said in ("Hello", "<|im_start|>", "Καλημέρα, κόσμε! \n\t", "", "  two  spaces "):
        found = post(server, "/tokenize", content=said)
        assert found["count"] == len(found["tokens"])
        assert post(server, "/detokenize", tokens=found["tokens"]) == {"content": said}
    assert post(server, "/tokenize", content="<|im_start|>")["count"] == 1


def test_a_text_begins_as_the_model_wants_where_that_is_asked_for(server: Server) -> None:
    def count(**fields: Any) -> int:
        return int(post(server, "/tokenize", model="begun", **fields)["count"])

    assert [count(content="Hello"), count(content="Hello", add_special=True)] == [1, 2]
    assert [count(prompt="Hello"), count(prompt="Hello", add_special_tokens=False)] == [2, 1]


def test_a_conversation_has_the_tokens_that_its_answer_is_charged(server: Server) -> None:
    conversation = [{"role": "system", "content": "Be short."}, *FRANCE]
    found = post(server, "/tokenize", messages=conversation, temperature=0.5)
    _, answer = server.chat(conversation)
    assert found["count"] == len(found["tokens"]) == answer["usage"]["prompt_tokens"]
    assert post(server, "/detokenize", tokens=found["tokens"])["content"].endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("path", "name", "fields"),
    [
        ("/tokenize", "content", {}),
        ("/tokenize", "content", {"content": "a", "prompt": "a"}),
        ("/tokenize", "content", {"content": 5}),
        ("/tokenize", "content", {"content": "\ud800"}),
        ("/tokenize", "prompt", {"prompt": "\ud800"}),
        ("/tokenize", "messages", {"messages": [{"role": "user", "content": "\ud800"}]}),
        ("/tokenize", "content", {"content": "a" * (tokens.MOST_CHARACTERS + 1)}),
        ("/tokenize", "add_special", {"prompt": "a", "add_special": True}),
        ("/tokenize", "messages", {"messages": []}),
        ("/tokenize", "content", {"messages": FRANCE, "content": "a"}),
        ("/detokenize", "tokens", {}),
        ("/detokenize", "tokens", {"tokens": "abc"}),
        ("/detokenize", "tokens", {"tokens": [1, "2"]}),
        ("/detokenize", "tokens", {"tokens": [-1]}),
        ("/detokenize", "tokens", {"tokens": [1] * (tokens.MOST_TOKENS + 1)}),
    ],
)
def test_tokens_that_cannot_be_told_are_refused(
    server: Server, path: str, name: str, fields: dict[str, Any]
) -> None:
    assert refused(server, path, **fields) == (400, name)


def test_a_token_that_there_is_not_has_no_text(server: Server) -> None:
    assert refused(server, "/detokenize", tokens=[2048])[0] == 400


def test_megabytes_hold_up_nobody(server: Server) -> None:
    """A conversation that no context could hold is refused before it is turned into tokens."""
    messages = [{"role": "user", "content": "word " * 1_000_000}]
    status, answer, _ = server.ask(
        "POST", "/tokenize", json.dumps({"model": "demo", "messages": messages}).encode()
    )
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert "at least" in answer["error"]["message"]


@pytest.mark.parametrize("read", [completions.asked, tokens.tokenize, tokens.detokenize])
@pytest.mark.parametrize("body", [None, [], "a", 5, [{}]])
def test_what_is_no_object_is_refused(read: Any, body: Any) -> None:
    with pytest.raises(MdlError):
        read(body)
