"""Vectors and scores: what is computed together, models that were made for it, and the API."""

import asyncio
import json
import os
import time
from array import array
from base64 import b64decode
from collections import Counter
from pathlib import Path
from queue import SimpleQueue

import embedders
import numpy as np
import openai
import pytest
from embedders import BEGIN, CLS, END, LAST, MEAN, RANK
from hypothesis import given
from hypothesis import strategies as st
from serving import DEMO, Server, cache, wait_until
from tiny import TINY, write

from mdl.engine import Engine, embedding
from mdl.engine.embedding import Embeddings, Job, joined, pack
from mdl.engine.request import Chat, Embed, EngineFiles, EngineSettings, Message, Rank, Sampling
from mdl.engine.wire import pack as packed
from mdl.errors import EngineError, TooLong, UnsupportedModel, UsageError

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)
TEXTS = [f"{'hello there ' * (number % 7)}number {number}" for number in range(100)]

# What is computed together


def job(request, lengths):
    made = Job(request, iter(()), len(lengths), lambda _: None)
    for index, length in enumerate(lengths):
        made.add(index, [0] * length)
    return made


@given(st.lists(LENGTHS, min_size=1, max_size=5), st.integers(1, 32), st.integers(1, 8), st.booleans())
def test_every_text_is_computed_once_and_no_step_has_more_than_it_may(requests, step, most, ending):
    jobs = [job(request, lengths) for request, lengths in enumerate(requests)]
    seen = Counter()
    while batch := pack(jobs, step, most, ending):
        lengths = [len(text.tokens) for text in batch]
        assert len(batch) <= most
        assert sum(lengths) <= step or len(batch) == 1
        seen.update((text.job.request, text.index) for text in batch)
    assert seen == Counter((job.request, index) for job in jobs for index in job.lengths)
    assert [job.size for job in jobs] == [0] * len(jobs)


@given(LENGTHS, st.integers(1, 32))
def test_one_text_is_in_the_next_step_whatever_somebody_else_has(lengths, length):
    small = job(1, [length])
    pack([job(0, lengths * 10), small], 64, 8)
    assert small.waiting == [] or max(lengths) > 64 - length


def test_requests_end_in_the_order_in_which_they_came_where_they_can():
    jobs = [job(request, [4, 4]) for request in range(4)]
    assert [text.job.request for text in pack(jobs, 18, 8)] == [0, 0, 1, 1]


class Adder:
    """In the place of a model: the vector of a text is its tokens' mean and 1."""

    limit, step, most, width, splits, pooling = 100, 16, 4, 2, True, MEAN

    def __init__(self):
        self.steps = []

    def read(self, text):
        return [ord(letter) for letter in text]

    def read_pair(self, query, document):
        return self.read(query + document)

    def checked(self, tokens):
        return list(tokens)

    def cut(self, tokens):
        return tokens[: self.limit]

    def begin(self, room):
        self.steps.append(room)

    def run(self, pieces):
        if any(0 in piece.tokens for piece in pieces):
            raise EngineError("a zero")
        return [array("f", [sum(piece.tokens) / len(piece.tokens), 1]) for piece in pieces]


class Asking:
    """Requests, and what came back for them."""

    def __init__(self):
        self.heard = {}
        self.vectors = Adder()
        self.embeddings = Embeddings(self.vectors, self.hear)

    def hear(self, id, **what):
        self.heard[id] = what

    def embed(self, request, *inputs, **fields):
        self.embeddings.embed(request, packed(Embed(inputs, **fields)))

    def steps(self, most=10_000):
        while self.embeddings.busy and most:
            self.embeddings.step()
            most -= 1

    def ratios(self, request):
        """Of the two numbers of each vector: the means, however long the vectors are."""
        vectors = self.heard[request]["result"]["vectors"]
        return [pair[0] / pair[1] for pair in (array("f", b64decode(vector)) for vector in vectors)]


@given(st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=90), min_size=1, max_size=20))
def test_each_text_gets_its_own_vector_in_the_order_of_the_request_however_long_it_is(texts):
    asking = Asking()
    asking.embed(1, *map(tuple, texts))
    asking.steps()
    assert asking.ratios(1) == pytest.approx([sum(text) / len(text) for text in texts], rel=1e-5)
    assert asking.heard[1]["result"]["tokens"] == [len(text) for text in texts]


def test_who_asks_for_one_text_does_not_wait_for_those_who_ask_for_thousands():
    asking = Asking()
    asking.embed(1, *["some words"] * 2000)
    asking.steps(5)
    asking.embed(2, "abc")
    asking.steps(2)
    assert [*asking.heard] == [2]


def test_who_asks_for_thousands_of_texts_goes_on_whatever_others_ask_for():
    asking = Asking()
    asking.embed(0, *["some words"] * 50)
    for request in range(1, 400):
        asking.embed(request, (1,) * 16)
        asking.steps(1)
    assert 0 in asking.heard


def test_a_cancelled_request_leaves_nothing_behind_not_even_in_the_middle_of_a_text():
    asking = Asking()
    asking.embed(1, (5,) * 90)
    asking.steps(2)
    asking.embed(2, (7,))
    asking.embeddings.cancel(1)
    asking.steps()
    assert asking.ratios(2) == pytest.approx([7])
    assert 1 not in asking.heard


def test_what_cannot_be_computed_fails_alone():
    asking = Asking()
    asking.embed(1, (1, 0, 1) * 20)
    asking.steps()
    asking.embed(2, "abc")
    asking.steps()
    assert asking.heard[1]["error"]["message"] == "a zero"
    assert asking.ratios(2) == pytest.approx([98])


def test_a_request_for_nothing_is_answered_at_once():
    asking = Asking()
    asking.embed(1)
    assert asking.heard[1]["result"] == {"vectors": [], "tokens": []}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_an_error_and_no_vector(number):
    with pytest.raises(EngineError, match="no numbers"):
        embedding.normalised(array("f", [1.0, number]))


def test_pieces_come_to_what_the_whole_would_have():
    first, second = array("f", [1.0]), array("f", [4.0])
    assert joined(MEAN, first, second, 2, 1) == array("f", [2.0])
    assert joined(CLS, first, second, 2, 1) == first
    assert joined(LAST, first, second, 2, 1) == second


# Models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def loaded(path, **settings):
    engine = Engine()
    engine.load(EngineFiles(path), EngineSettings(**settings))
    engine.ready()
    return engine


@pytest.fixture(scope="module")
def last(folder):
    with loaded(write(embedders.decoder(LAST), folder / "last.gguf")) as engine:
        yield engine


@pytest.fixture(scope="module")
def bert(folder):
    weights = embedders.write_bert(folder / "bert.gguf", MEAN)
    with loaded(folder / "bert.gguf", batch=32, parallel=1) as engine:
        yield engine, weights


def vectors(engine, *inputs, **fields):
    return [np.frombuffer(vector, "<f4") for vector in engine.embed(Embed(inputs, **fields)).vectors]


def unit(vector):
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("pooling", [None, MEAN, CLS])
def test_bert_s_vectors_are_those_that_numpy_computes(tmp_path, pooling):
    weights = embedders.write_bert(tmp_path / "bert.gguf", pooling)
    texts = ["hello abc, hello 12?", "z", "a b c d e f g"]
    with loaded(tmp_path / "bert.gguf") as engine:
        assert (engine.ready().task, engine.ready().width) == ("embed", embedders.WIDTH)
        found = vectors(engine, *texts)
        rows = [embedders.hidden(weights, [*engine.tokenize(text, True)]) for text in texts]
    expected = [unit(row[0] if pooling == CLS else row.mean(0)) for row in rows]
    assert np.abs(np.array(found) - np.array(expected)).max() < 2e-3


def test_a_text_that_is_longer_than_a_step_is_read_at_once_by_a_model_that_reads_in_both_directions(bert):
    engine, weights = bert
    text = "a b c " * 40
    (found,) = vectors(engine, text)
    expected = unit(embedders.hidden(weights, [*engine.tokenize(text, True)]).mean(0))
    assert np.abs(found - expected).max() < 2e-3


@pytest.mark.parametrize("pooling", [None, MEAN, LAST])
def test_a_text_that_is_longer_than_a_step_is_read_in_pieces_by_a_model_that_reads_forwards(
    tmp_path, pooling
):
    path = write(embedders.decoder(pooling), tmp_path / "model.gguf")
    text = "Once upon a time there was a fox. " * 30
    with loaded(path, batch=32) as short, loaded(path, batch=1024) as long:
        [pieces], [whole] = vectors(short, text), vectors(long, text)
    assert pieces @ whole > 0.9999


def test_a_text_has_the_same_vector_alone_and_among_others(last, bert):
    for engine in (last, bert[0]):
        together = vectors(engine, *TEXTS)
        alone = [vectors(engine, text)[0] for text in TEXTS[:10]]
        assert np.abs(np.array(together[:10]) - np.array(alone)).max() < 1e-3
        assert [float(vector @ vector) for vector in together] == pytest.approx([1] * len(TEXTS), abs=1e-5)


def test_another_text_has_another_vector(last):
    one, other = vectors(last, "a fox", "a completely different story")
    assert one @ other < 0.99


def test_tokens_are_taken_as_they_are(last):
    tokens = last.tokenize("Once upon a time")
    by_text, by_tokens = vectors(last, "Once upon a time", tokens)
    assert by_text @ by_tokens > 0.9999
    assert last.embed(Embed((tokens,))).tokens == (len(tokens),)


def test_the_first_dimensions_are_of_length_one_again(last):
    [whole], [cut] = vectors(last, "a fox"), vectors(last, "a fox", dimensions=8)
    assert np.abs(cut - unit(whole[:8])).max() < 1e-5
    with pytest.raises(UsageError, match="dimensions is 65, and has to be from 1 to 64"):
        vectors(last, "a fox", dimensions=65)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [(("a", ""), "input 1 is empty"), (((),), "input 0 is empty"), (((1, 99_999),), "no token 99999"),
     (("a", "b\ud800"), "half of a character")],
)  # fmt: skip
def test_what_is_no_text_is_named_and_the_next_one_is_answered(last, inputs, message):
    with pytest.raises(UsageError, match=message):
        last.embed(Embed(inputs))
    assert len(vectors(last, "a")) == 1


def test_a_text_that_is_too_long_is_refused_with_numbers_or_cut_at_its_end(bert):
    engine, _ = bert
    text = "hello " * 200
    with pytest.raises(TooLong, match="input 1 has 202 tokens or more, and the model takes 128 at most"):
        engine.embed(Embed(("a", text)))
    found = engine.embed(Embed((text,), truncate=True))
    tokens = engine.tokenize(text, True)
    assert found.tokens == (128,)
    cut = (*tokens[:127], END)
    assert np.abs(np.frombuffer(found.vectors[0], "<f4") - vectors(engine, cut)[0]).max() < 1e-5


def test_megabytes_are_refused_and_hold_up_nobody(bert):
    engine, _ = bert
    with pytest.raises(TooLong):
        engine.embed(Embed(("hello " * 2_000_000,)))
    assert engine.embed(Embed((" " * 100_000 + "a",))).tokens == (3,)


def test_scores_are_those_that_numpy_computes(tmp_path):
    weights = embedders.write_bert(tmp_path / "bert.gguf", RANK)
    documents = ("abc 1", "xyz", "hello")
    with loaded(tmp_path / "bert.gguf") as engine:
        assert engine.ready().task == "rank"
        found = engine.rank(Rank("hello", documents))
        query = engine.tokenize("hello")
        pairs = [[BEGIN, *query, END, *engine.tokenize(document), END] for document in documents]
    assert found.scores == pytest.approx([embedders.score(weights, pair) for pair in pairs], abs=5e-3)
    assert found.tokens == sum(map(len, pairs))


def test_control_tokens_in_a_document_are_text(tmp_path):
    embedders.write_bert(tmp_path / "bert.gguf", RANK)
    with loaded(tmp_path / "bert.gguf") as engine:
        tricky, honest = (engine.rank(Rank("a", (document,))).tokens for document in ("[SEP]", "b"))
        assert tricky > honest


def test_control_tokens_in_a_text_are_text(tmp_path):
    embedders.write_bert(tmp_path / "bert.gguf", MEAN)
    with loaded(tmp_path / "bert.gguf") as engine:
        tricky, honest = (engine.embed(Embed((text,))).tokens[0] for text in ("[SEP]", "b"))
        assert tricky > honest


def test_control_tokens_in_what_a_rerankers_template_is_given_are_text(tmp_path):
    path = write(embedders.ranker("Q {query} D {document}!"), tmp_path / "ranker.gguf")
    with loaded(path) as engine:
        for one, other in (("x<|im_end|>y", "xqy"), ("xqy", "x<|im_end|>y")):
            assert engine.rank(Rank(one, (other,))).tokens > engine.rank(Rank("xqy", ("xqy",))).tokens


def test_a_reranker_with_a_template_reads_its_pairs_by_it(tmp_path):
    path = write(embedders.ranker("Q {query} D {document}!"), tmp_path / "ranker.gguf")
    tricky = "{query} and {document}"
    with loaded(path) as engine:
        tokens = [engine.tokenize(f"Q a fox D {document}!") for document in ("a dog", tricky)]
        found = engine.rank(Rank("a fox", ("a dog", tricky)))
    assert found.tokens == sum(map(len, tokens))
    assert all(0 < score < 1 for score in found.scores)


@pytest.mark.parametrize("name", [*TINY])
def test_models_that_write_answers_have_vectors_too(tmp_path, name):
    with loaded(write(TINY[name], tmp_path / "model.gguf"), parallel=2) as engine:
        assert engine.ready().task == "generate"
        together = vectors(engine, *TEXTS[:12])
        alone = [vectors(engine, text)[0] for text in TEXTS[:12]]
    assert min(float(a @ b) for a, b in zip(together, alone, strict=True)) > 0.999


def test_vectors_and_answers_come_side_by_side():
    chat = Chat((Message("user", "What is the capital of France?"),), Sampling(temperature=0))
    with loaded(DEMO) as engine:
        alone = "".join(delta.text for delta in engine.chat(chat))
        results = SimpleQueue()
        engine.post("embed", Embed(tuple(TEXTS * 5)), results.put)
        beside = "".join(delta.text for delta in engine.chat(chat))
        assert beside == alone
        assert len(results.get(timeout=30)["vectors"]) == 500


def test_each_model_does_what_it_was_made_for(last, tmp_path):
    embedders.write_bert(tmp_path / "bert.gguf", RANK)
    chat = Chat((Message("user", "Hello"),))
    with loaded(tmp_path / "bert.gguf") as ranker, loaded(DEMO) as demo:
        with pytest.raises(UnsupportedModel, match="reranker"):
            ranker.embed(Embed(("a",)))
        with pytest.raises(UnsupportedModel, match="reranker"):
            [*ranker.chat(chat)]
        with pytest.raises(UnsupportedModel, match="not made to rank"):
            demo.rank(Rank("a", ("b",)))
    with pytest.raises(UnsupportedModel, match="embedding model"):
        [*last.chat(chat)]
    with pytest.raises(UnsupportedModel, match="embedding model"):
        last.rank(Rank("a", ("b",)))


def seconds(pid):
    """Of computing, so far."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def test_a_cancelled_request_costs_nothing_more(last):
    results = SimpleQueue()
    cancel = last.post("embed", Embed(((7,) * 500,) * 2000), results.put)
    assert len(vectors(last, "a")) == 1
    cancel()

    def is_idle():
        before = seconds(last.pid)
        time.sleep(0.1)
        return seconds(last.pid) == before

    wait_until(is_idle)
    assert results.empty()


# The API


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = cache(tmp_path_factory.mktemp("served") / "home", "demo")
    for name in ("last", "bert", "ranker"):
        (home / "models" / "quay.io" / "org" / name).mkdir(parents=True)
    models = home / "models" / "quay.io" / "org"
    write(embedders.decoder(LAST), models / "last" / "last.gguf")
    embedders.write_bert(models / "bert" / "bert.gguf", MEAN)
    embedders.write_bert(models / "ranker" / "ranker.gguf", RANK)
    with Server(home, max_models=4) as running:
        yield running


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def post(server, path, **body):
    status, answer, _ = server.ask("POST", path, json.dumps(body).encode())
    return status, answer


def embed(server, given, **fields):
    return post(server, "/v1/embeddings", model="last", input=given, **fields)


def test_openai_s_client_gets_the_vectors_of_texts_and_of_tokens(client):
    many = client.embeddings.create(model="last", input=TEXTS * 4, user="somebody")
    one = client.embeddings.create(model="last", input=TEXTS[3])
    tokens = client.embeddings.create(model="last", input=[[1, 2, 3], [4]])
    assert [item.index for item in many.data] == [*range(400)]
    assert many.data[3].embedding == pytest.approx(one.data[0].embedding, abs=1e-3)
    assert (tokens.usage.prompt_tokens, tokens.usage.total_tokens) == (4, 4)
    assert many.model == "last"


def test_openai_s_asynchronous_client_gets_as_many_at_once(server):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            asked = (client.embeddings.create(model="bert", input=[text, "hello"]) for text in TEXTS[:32])
            return await asyncio.gather(*asked)

    answers = asyncio.run(ask())
    assert len({tuple(answer.data[1].embedding[:3]) for answer in answers}) <= 32
    first = answers[0].data[1].embedding
    assert all(answer.data[1].embedding == pytest.approx(first, abs=1e-3) for answer in answers)


def test_numbers_and_base64_say_the_same_and_dimensions_cut_both(server):
    _, as_numbers = embed(server, "a fox", dimensions=8)
    _, as_text = embed(server, "a fox", dimensions=8, encoding_format="base64")
    numbers = as_numbers["data"][0]["embedding"]
    assert b64decode(as_text["data"][0]["embedding"]) == np.array(numbers, "<f4").tobytes()
    assert sum(number * number for number in numbers) == pytest.approx(1, abs=1e-5)
    assert as_numbers["usage"] == {"prompt_tokens": 2, "total_tokens": 2}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "input", "is missing"),
        ({"input": []}, "input", "may have 1 to 2,048"),
        ({"input": ["a"] * 2049}, "input", "has 2,049 entries"),
        ({"input": ""}, "input", "is empty"),
        ({"input": ["a", ""]}, "input[1]", "is empty"),
        ({"input": ["a", []]}, "input[1]", "has to be a text"),
        ({"input": [1, "a"]}, "input[0]", "has to be a text"),
        ({"input": [[1, -1]]}, "input[0]", "has to be a text"),
        ({"input": {"a": 1}}, "input", "has to be a text"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "has to be one of"),
        ({"input": "a", "dimensions": 0}, "dimensions", "whole number"),
        ({"input": "a", "dimensions": 65}, "dimensions", "from 1 to 64 for this model"),
        ({"input": [[9_999_999]]}, "input", "no token 9999999"),
        ({"input": "b\ud800"}, "input", "the text holds half of a character"),
        ({"input": "a", "pooling": "mean"}, "pooling", "not a field"),
        ({"input": "fox " * 5000}, "input", "and the model takes 2,048 at most"),
    ],
)
def test_what_cannot_be_taken_is_named(server, fields, param, message):
    status, answer = post(server, "/v1/embeddings", model="last", **fields)
    assert status == 400
    assert answer["error"]["param"] == param
    assert message in answer["error"]["message"]


def test_a_text_that_is_too_long_can_be_cut(server):
    status, answer = embed(server, "fox " * 5000, truncate=True)
    assert (status, answer["usage"]["prompt_tokens"]) == (200, 2048)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_come_back_with_the_most_relevant_first(server, path):
    documents = ["abc 1", {"text": "xyz"}, "hello"]
    status, answer = post(server, path, model="ranker", query="hello", documents=documents)
    assert status == 200
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2]
    tokens = answer["usage"]["prompt_tokens"]
    assert answer["usage"]["total_tokens"] == tokens > 9
    counted = f'mdl_tokens_total{{kind="prompt",model="quay.io/org/ranker"}} {float(tokens)}'
    assert path != "/v1/rerank" or counted in server.ask("GET", "/metrics")[1].decode()
    top = {"query": "hello", "documents": documents, "top_n": 1, "return_documents": True}
    _, short = post(server, path, model="ranker", **top)
    place = answer["results"][0]["index"]
    text = ["abc 1", "xyz", "hello"][place]
    assert [(one["index"], one["document"]) for one in short["results"]] == [(place, {"text": text})]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "", "documents": ["a"]}, "query"),
        ({"query": "a"}, "documents"),
        ({"query": "a", "documents": []}, "documents"),
        ({"query": "a", "documents": ["a", ""]}, "documents[1]"),
        ({"query": "a", "documents": [{"title": "a"}]}, "documents[0].title"),
        ({"query": "a", "documents": ["a", "fox " * 5000]}, "documents"),
        ({"query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
        ({"query": "a", "documents": ["a"], "max_chunks_per_doc": 3}, "max_chunks_per_doc"),
    ],
)
def test_what_cannot_be_ranked_is_named(server, fields, param):
    status, answer = post(server, "/v1/rerank", model="ranker", **fields)
    assert (status, answer["error"]["param"]) == (400, param)


def test_a_model_that_was_made_for_something_else_says_so(server):
    chat = {"messages": [{"role": "user", "content": "Hello"}]}
    for path, fields in (
        ("/v1/chat/completions", {"model": "last", **chat}),
        ("/v1/completions", {"model": "bert", "prompt": "a"}),
        ("/v1/embeddings", {"model": "ranker", "input": "a"}),
        ("/v1/rerank", {"model": "demo", "query": "a", "documents": ["b"]}),
    ):
        status, answer = post(server, path, **fields)
        assert (status, answer["error"]["code"]) == (422, "model_not_supported"), path


def test_models_that_embed_are_listed_and_their_tokens_told(server, client):
    assert {"bert", "last", "ranker"} <= {
        model.id.rpartition("/")[2].partition(":")[0] for model in client.models.list()
    }
    assert post(server, "/tokenize", model="bert", prompt="a")[1]["tokens"][0] == BEGIN
    assert post(server, "/tokenize", model="bert", content="a")[1]["count"] == 1


def test_a_chat_model_gives_vectors_between_its_answers(server):
    status, answer = post(server, "/v1/embeddings", model="demo", input=TEXTS[:5])
    assert (status, len(answer["data"])) == (200, 5)
    assert server.chat(max_tokens=8)[0] == 200


def test_a_client_that_leaves_takes_its_request_with_it(server):
    connection = server.connect()
    body = json.dumps({"model": "last", "input": ["fox " * 1500] * 300}).encode()
    connection.request("POST", "/v1/embeddings", body)
    connection.close()
    assert embed(server, "a")[0] == 200
