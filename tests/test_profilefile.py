"""Profiles: how models are used, by which names, over which paths; the sentences of D5 and D6, with real
answers of the demo model."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from commands import Mdl, command
from hub import Hub
from hypothesis import given
from hypothesis import strategies as st
from serving import DEMO, FRANCE, Server, cache, text

from mdl import profilefile
from mdl.config import Settings
from mdl.engine import Engine
from mdl.engine.request import Chat, EngineFiles, EngineSettings, Message
from mdl.errors import MdlError, NotFound, UsageError
from mdl.library import Library
from mdl.matching import Condition, template_hash
from mdl.profiletext import FIELDS, as_text, parse, prefixed
from mdl.weights import Weights, identify

QUESTION = "What is the capital of France?"
QUIET, LOUD = "The capital of France is Paris.", "THE CAPITAL OF FRANCE IS PARIS."
PIRATE = "The capital of France is Paris, arr!"
LORA = Path(__file__).parent / "models" / "mdl-demo-pirate-lora.gguf"
COMPLETIONS = "/v1/completions"


def profiles(folder: Path, **texts: str) -> Path:
    """A configuration folder with these profiles."""
    (folder / "profiles").mkdir(parents=True, exist_ok=True)
    for name, written in texts.items():
        (folder / "profiles" / f"{name.replace('_', '-')}.toml").write_text(written)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes profiles where this process, and those that it starts, look for them."""
    monkeypatch.setenv("MDL_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("MDL_DATA_HOME", str(tmp_path / "data"))
    return lambda **texts: profiles(tmp_path / "config", **texts)


@pytest.fixture
def mdl(tmp_path: Path, place: Callable[..., Path]) -> Mdl:
    return command(tmp_path, MDL_CONFIG=str(tmp_path / "config" / "config.toml"))


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def applied(library: Library, model: str = "demo", name: str = "", path: str = "") -> list[str]:
    """Where what is set for a model comes from."""
    shipped, own = profilefile.matching(library.here(model), name, path)
    return [source for source, _ in (*shipped, *own)]


# A server with profiles, for the tests that only ask

SERVED = {
    "chat": """
names = ["gpt-4", "gpt-3.5-turbo", "org/loud:v1"]
models = ["org/not-here", "demo"]
paths = ["/v1/chat/completions"]
system = "Answer in uppercase."
""",
    "other": 'names = ["gpt-4"]\nmodels = ["demo"]\npaths = ["/v1/comp*", "/tokenize"]\n'
    'completion_template = "<|im_start|>user\\n{{ prompt }}<|im_end|>\\n<|im_start|>assistant\\n"\n',
    "quiet": 'names = ["quiet"]\nmodels = ["demo"]\n[parameters]\nmax_tokens = 3\n',
    "small": 'names = ["small"]\nmodels = ["demo"]\nsettings = { context = 32 }\n',
    "prefixed": 'names = ["prefixed"]\nmodels = ["demo"]\n'
    'prefixes.user = "<|im_start|>user\\n"\nprefixes.assistant = "<|im_start|>assistant\\n"\n'
    'prefixes.end = "<|im_end|>\\n"\n',
    "absent": 'names = ["absent"]\nmodels = ["org/not-here"]\n',
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("profiles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MDL_CONFIG_HOME", str(profiles(folder / "config", **SERVED)))
        patch.setenv("MDL_DATA_HOME", str(folder / "data"))
        (folder / "home").mkdir()
        settings = {"aliases": {"my-alias": "demo"}}
        keys = [["all", ""], ["sk-loud", "gpt-4"]]
        with Server(folder / "home", settings=settings, keys=keys) as running:
            running.key = "all"
            yield running


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="all", max_retries=0) as client:
        yield client


def said(server: Server, name: str, **fields: Any) -> str:
    status, answer = server.chat(model=name, **fields)
    assert status == 200, answer
    return text(answer)


# D5: profiles are kept apart from the files


def test_profiles_with_different_system_prompts_give_different_answers_over_http(server: Server) -> None:
    assert (said(server, "gpt-4"), said(server, "demo")) == (LOUD, QUIET)


def test_profiles_with_different_system_prompts_give_different_answers_in_mdl_chat(
    mdl: Mdl, place: Callable[..., Path]
) -> None:
    place(
        loud='names = ["loud"]\nmodels = ["demo"]\nsystem = "Answer in uppercase."\n'
        "parameters.temperature = 0",
        quiet='names = ["quiet"]\nmodels = ["demo"]\nparameters = { temperature = 0 }',
    )
    assert [mdl("chat", name, QUESTION).stdout.strip() for name in ("loud", "quiet")] == [LOUD, QUIET]


def test_parameters_are_kept_apart_from_the_files(server: Server) -> None:
    assert server.chat(model="quiet")[1]["usage"]["completion_tokens"] == 3
    assert (
        server.chat(model="quiet", max_tokens=4)[1]["usage"]["completion_tokens"] == 4
    )  # a request goes first


def test_settings_are_kept_apart_and_each_name_has_its_own(server: Server) -> None:
    long = [{"role": "user", "content": "capital " * 40}]
    status, answer = server.chat(long, model="small", max_tokens=1)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert server.chat(long, model="demo", max_tokens=1)[0] == 200


def test_what_a_flag_decides_for_all_needs_one_engine(tmp_path: Path, place: Callable[..., Path]) -> None:
    place(small='names = ["small"]\nmodels = ["demo"]\nsettings = { context = 64, threads = 1 }')
    (tmp_path / "home").mkdir()
    for flags, engines in (({"context": 512, "threads": 1}, 1), ({"context": 512}, 2)):
        with Server(tmp_path / "home", engine=flags) as server:
            assert [said(server, name) for name in ("demo", "small")] == [QUIET, QUIET]
            assert len(server.ask("GET", "/mdl/engines")[1]["engines"]) == engines


def test_names_of_one_model_may_have_adapters_of_their_own(
    tmp_path: Path, place: Callable[..., Path]
) -> None:
    place(
        pirate=f'names = ["pirate"]\nmodels = ["demo"]\nadapters = ["{LORA}"]',
        loud='names = ["loud"]\nmodels = ["demo"]\nsystem = "Answer in uppercase."',
    )
    (tmp_path / "home").mkdir()
    with Server(tmp_path / "home") as server:
        assert [said(server, name) for name in ("demo", "pirate", "loud", "demo")] == [
            QUIET,
            PIRATE,
            LOUD,
            QUIET,
        ]
        engines = server.ask("GET", "/mdl/engines")[1]["engines"]
        assert len(engines) == 2  # what differs in its prompt alone shares one
        stop = json.dumps({"model": "pirate"}).encode()
        assert server.ask("POST", "/mdl/engines/stop", stop)[0] == 200
        assert server.ask("GET", "/mdl/engines")[1]["engines"] == []


@pytest.mark.parametrize(
    ("adapter", "answer"),
    [
        (str(LORA), PIRATE),
        (str(LORA.with_name("mdl-demo-pirate")), PIRATE),  # as PEFT saved it
        ("./beside.gguf", PIRATE),
        ("pirate:v1", PIRATE),
        ("pirate=0", QUIET),
        ("../profiles/beside.gguf=0", QUIET),
    ],
)
def test_adapters_of_a_profile_are_named_like_those_of_a_command(
    mdl: Mdl, place: Callable[..., Path], adapter: str, answer: str
) -> None:
    folder = place(mine=f'names = ["mine"]\nmodels = ["demo"]\nadapters = ["{adapter}"]')
    shutil.copy(LORA, folder / "profiles/beside.gguf")
    assert mdl("import", str(LORA), "--name", "pirate:v1").returncode == 0
    assert mdl("chat", "mine", "--temperature", "0", QUESTION).stdout.strip() == answer


def test_adapters_of_a_profile_that_do_not_fit_are_told(mdl: Mdl, place: Callable[..., Path]) -> None:
    place(mine='names = ["mine"]\nmodels = ["demo"]\nadapters = ["demo"]')
    refused = mdl("chat", "mine", "hi")
    assert (refused.returncode, "is of the kind model, not adapter" in refused.stderr) == (9, True)


def test_the_template_is_kept_apart(server: Server) -> None:
    assert said(server, "prefixed") == QUIET
    count = {}
    for name in ("prefixed", "demo"):
        body = {"model": name, "messages": FRANCE}
        count[name] = server.ask("POST", "/tokenize", json.dumps(body).encode())[1]["count"]
    assert count["prefixed"] == count["demo"]  # written by other means, the prompt is the same


def test_completions_have_a_template_of_their_own(client: openai.OpenAI) -> None:
    asked = {"prompt": QUESTION, "temperature": 0, "max_tokens": 12}
    templated = client.completions.create(model="gpt-4", **asked)  # type: ignore[call-overload]
    assert templated.choices[0].text.strip() == QUIET
    plain = client.completions.create(model="demo", **asked)  # type: ignore[call-overload]
    assert plain.choices[0].text.strip() != QUIET


def test_stop_words_are_kept_apart(tmp_path: Path, mdl: Mdl, place: Callable[..., Path]) -> None:
    place(stop='names = ["short"]\nmodels = ["demo"]\nstop = ["capital"]\nparameters = { temperature = 0 }')
    assert mdl("chat", "short", QUESTION).stdout.strip() == "The"


def test_a_profile_is_matched_by_api_path_and_model_name(client: openai.OpenAI) -> None:
    """gpt-4 is one profile for chats, and another for completions."""
    chat = client.chat.completions.create(
        model="gpt-4", messages=[{"role": "user", "content": QUESTION}], temperature=0
    )
    assert chat.choices[0].message.content == LOUD
    completed = client.completions.create(model="gpt-4", prompt=QUESTION, temperature=0, max_tokens=12)
    assert completed.choices[0].text.strip() == QUIET


@pytest.fixture
def cached(tmp_path: Path) -> Library:
    return Library(Settings(cache(tmp_path / "home", "one", "two")))


@pytest.mark.parametrize(
    "condition",
    [
        "quay.io/org/one", "org/one", "one", "quay.io/org/*", "*ONE*", "o?e", "architecture:llama",
        "architecture:LLA*", "template:<|im_start|>", "architecture:llama & one", "{sha256}",
        "{sha256}:{size}", "template:{template}", "./../../home/models/quay.io/org/one",
        "../../home/models/quay.io/org/one/one.gguf", "{folder}/one.gguf",
    ],
)  # fmt: skip
def test_a_profile_is_matched_by_reference_by_sha256_or_by_path(
    cached: Library, place: Callable[..., Path], condition: str
) -> None:
    facts = identify(DEMO)
    assert isinstance(facts, Weights)
    written = condition.format(
        sha256=f"sha256:{hashlib.sha256(DEMO.read_bytes()).hexdigest()}",
        size=DEMO.stat().st_size,
        template=f"sha256:{template_hash(facts.facts.chat_template or '')}",
        folder=cached.here("one").folder,
    )
    place(mine=f'models = ["{written}"]\nsystem = "Hi"')
    assert "the profile mine" in applied(cached, "one")


@pytest.mark.parametrize(
    "condition",
    [
        "quay.io/org/two", "ghcr.io/org/one", "on", "one:v2", "architecture:qwen2", "template:<|nothing|>",
        f"sha256:{'0' * 64}", f"template:sha256:{'0' * 64}", "{sha256}:1", "architecture:llama & two",
        "./one.gguf",
    ],
)  # fmt: skip
def test_and_by_nothing_else(cached: Library, place: Callable[..., Path], condition: str) -> None:
    written = condition.format(sha256=f"sha256:{hashlib.sha256(DEMO.read_bytes()).hexdigest()}")
    place(mine=f'models = ["{written}"]\nsystem = "Hi"')
    assert "the profile mine" not in applied(cached, "one")


def test_one_profile_is_for_many_models(cached: Library, place: Callable[..., Path]) -> None:
    place(mine='models = ["one", "two"]\nsystem = "Hi"')
    assert ["the profile mine" in applied(cached, name) for name in ("one", "two", "demo")] == [
        True,
        True,
        False,
    ]


def test_a_profile_without_models_and_names_is_for_all(cached: Library, place: Callable[..., Path]) -> None:
    place(mine='system = "Hi"')
    assert all("the profile mine" in applied(cached, name) for name in ("one", "two", "demo"))


def test_a_profile_with_paths_counts_over_these_alone(cached: Library, place: Callable[..., Path]) -> None:
    place(mine='models = ["one"]\npaths = ["/v1/chat/*"]\nsystem = "Hi"')
    paths = ("/v1/chat/completions", COMPLETIONS, "")
    assert ["the profile mine" in applied(cached, "one", "one", path) for path in paths] == [
        True,
        False,
        False,
    ]


def test_a_profile_with_names_counts_for_those_who_use_them(
    cached: Library, place: Callable[..., Path]
) -> None:
    place(mine='names = ["a"]\nmodels = ["one"]\nsystem = "Hi"')
    assert ["the profile mine" in applied(cached, "one", name) for name in ("a", "one", "")] == [
        True,
        False,
        False,
    ]


def test_of_profiles_the_first_goes_first_and_names_go_before_all(
    cached: Library, place: Callable[..., Path]
) -> None:
    place(
        a='models = ["one"]\nsystem = "A"\nparameters.top_k = 1',
        b='models = ["one"]\nsystem = "B"\nparameters = { top_k = 2, temperature = 2 }',
        c='names = ["x"]\nmodels = ["one"]\nsystem = "C"',
        d='names = ["x"]\nmodels = ["one"]\nsystem = "D"',
    )
    from mdl import layers

    merged = layers.of(cached, cached.here("one"), None, "x").merged()
    assert (merged.system, merged.sampling["top_k"], merged.sampling["temperature"]) == ("C", 1, 2.0)


def test_those_shipped_with_mdl_are_defaults_and_the_user_s_own_override_them(
    cached: Library, place: Callable[..., Path], tmp_path: Path
) -> None:
    shipped = (
        '[[profile]]\ntitle = "kind"\nmodels = ["architecture:llama"]\nsystem = "S"\nparameters.top_k = 7\n'
    )
    (tmp_path / "data").mkdir()
    profilefile.refreshed().write_text(shipped)
    place(mine='models = ["architecture:llama"]\nsystem = "U"')
    from mdl import layers

    found = layers.of(cached, cached.here("one"))
    assert (found.merged().system, found.merged().sampling["top_k"]) == ("U", 7)
    assert (found.source("system"), found.parameters()["top_k"].source) == (
        "the profile mine",
        "the profile kind, shipped",
    )
    place(kind="description = 'nothing'")  # of the same title: in its place
    assert "top_k" not in layers.of(cached, cached.here("one")).merged().sampling


def test_what_ships_is_recognised_by_sha256_and_template_whatever_the_file_is_called(
    tmp_path: Path, place: Callable[..., Path]
) -> None:
    changed = bytearray(DEMO.read_bytes())
    changed[-1] ^= 1  # in the last tensor: another file with the same template
    library = Library(Settings(tmp_path / "home"))
    for name, data in (("whatever.gguf", DEMO.read_bytes()), ("requantized.gguf", bytes(changed))):
        (tmp_path / name).write_bytes(data)
        assert "the profile mdl-demo, shipped" in applied(library, str(tmp_path / name))
    place(mdl_demo="system = 'Hi'")
    assert applied(library, str(tmp_path / "whatever.gguf")) == ["the profile mdl-demo"]


def test_what_ships_is_right_and_for_known_models(place: Callable[..., Path]) -> None:
    found = profilefile.shipped()
    assert (found.failures, len(found.written) >= 12) == ((), True)
    for written in found.written:
        assert written.shipped and written.models and written.description
        assert not written.names


# A request's API path and model name -> profiles in order -> the model that is loaded or here -> the next


def test_of_the_profiles_of_a_name_the_first_whose_model_is_here_counts(
    cached: Library, place: Callable[..., Path]
) -> None:
    place(
        a='names = ["gpt-4"]\nmodels = ["org/not-here", "architecture:qwen2"]',
        b='names = ["gpt-4"]\nmodels = ["two", "one"]',
        c='names = ["gpt-4"]\nmodels = ["one"]',
    )
    assert cached.here("gpt-4").reference.name == "two"


def test_and_of_its_models_the_one_that_is_loaded(cached: Library, place: Callable[..., Path]) -> None:
    place(b='names = ["gpt-4"]\nmodels = ["two", "org/*", "demo"]')
    one = cached.here("one").reference
    asked = profilefile.Asked(loaded=lambda model: model.reference == one)
    found = cached.resolver.resolve("gpt-4", asked).model
    assert found is not None and found.reference == one


def test_a_server_takes_the_model_that_is_loaded(tmp_path: Path, place: Callable[..., Path]) -> None:
    place(any='names = ["gpt-4"]\nmodels = ["one", "two"]')
    with Server(cache(tmp_path / "home", "one", "two")) as server:
        server.chat(model="two")
        server.chat(model="gpt-4")
        engines = server.ask("GET", "/mdl/engines")[1]["engines"]
        assert [engine["name"] for engine in engines] == ["two"]


def test_a_model_that_is_not_here_is_fetched_by_its_own_name(
    cached: Library, place: Callable[..., Path], server: Server
) -> None:
    place(a='names = ["gpt-4"]\nmodels = ["quay.io/org/not-here:v1"]')
    resolution, _ = cached.resolver.explain("gpt-4")
    assert str(resolution.reference) == "quay.io/org/not-here:v1"
    assert [step.outcome for step in resolution.steps if step.step == "profile"] == ["miss"]
    status, answer = server.chat(model="absent")
    assert (status, "mdl download huggingface.co/org/not-here" in answer["error"]["message"]) == (404, True)


def test_a_profile_may_name_a_file_that_clients_cannot(tmp_path: Path, place: Callable[..., Path]) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(DEMO.read_bytes())
    place(mine=f'names = ["gpt-4"]\nmodels = ["{file}"]')
    (tmp_path / "home").mkdir()
    with Server(tmp_path / "home") as server:
        assert said(server, "gpt-4") == QUIET
        assert server.chat(model=str(file))[0] == 404


def test_a_profile_may_be_for_a_model_of_the_catalog_by_its_short_name(
    tmp_path: Path, place: Callable[..., Path]
) -> None:
    folder = tmp_path / "home" / "models" / "huggingface.co" / "Qwen" / "Qwen3-0.6B-GGUF" / "Q8_0"
    folder.mkdir(parents=True)
    (folder / "x.gguf").write_bytes(DEMO.read_bytes())
    place(mine='names = ["gpt-4"]\nmodels = ["qwen3:0.6b"]\nsystem = "Hi"')
    library = Library(Settings(tmp_path / "home"))
    assert library.here("gpt-4").folder == folder
    assert "the profile mine" in applied(library, "gpt-4", "gpt-4")


def test_a_profile_may_be_for_a_training_checkpoint(tmp_path: Path, place: Callable[..., Path]) -> None:
    """Whatever names its model: the name that stands for it brings what the profile sets."""
    run = tmp_path / "runs" / "shout"
    run.mkdir(parents=True)
    (run / "step-10.gguf").write_bytes(DEMO.read_bytes())
    place(mine='names = ["gpt-4"]\nmodels = ["shout@latest"]\nsystem = "Hi"')
    library = Library(Settings(tmp_path / "home", checkpoints=(tmp_path / "runs",)))
    assert library.here("gpt-4").size == DEMO.stat().st_size
    from mdl import layers

    assert layers.of(library, library.here("gpt-4"), None, "gpt-4").merged().system == "Hi"


def test_a_name_may_stand_for_a_model_that_others_run(cached: Library, place: Callable[..., Path]) -> None:
    place(mine='names = ["gpt-4"]\nmodels = ["org/not-here", "openai://localhost:1/v1/big"]\nsystem = "Hi"')
    assert cached.here("gpt-4").is_api
    assert "the profile mine" in applied(cached, "gpt-4", "gpt-4")


# D6: names


@pytest.mark.parametrize("name", ["gpt-4", "gpt-3.5-turbo", "my-alias", "org/loud:v1"])
def test_a_client_that_insists_on_a_name_uses_a_local_model(client: openai.OpenAI, name: str) -> None:
    answer = client.chat.completions.create(model=name, messages=FRANCE, temperature=0)  # type: ignore[arg-type]
    assert answer.model == name
    assert (answer.choices[0].message.content or "").lower() == QUIET.lower()


def test_aliases_appear_in_v1_models(client: openai.OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert {"demo", "gpt-4", "gpt-3.5-turbo", "org/loud:v1", "my-alias", "small"} <= names
    assert "absent" not in names
    assert client.models.retrieve("gpt-4").id == "gpt-4"


def test_with_models_of_its_own_a_server_has_the_names_of_these(
    tmp_path: Path, place: Callable[..., Path]
) -> None:
    place(
        a='names = ["gpt-4"]\nmodels = ["one"]',
        b='names = ["gpt-4"]\nmodels = ["two"]\nsystem = "Answer in uppercase."',
        c='names = ["gpt-5"]\nmodels = ["one"]',
    )
    with Server(cache(tmp_path / "home", "one", "two"), models=["two"]) as server:
        names = [model["id"] for model in server.ask("GET", "/v1/models")[1]["data"]]
        assert names == ["two", "gpt-4"]
        assert (said(server, "gpt-4"), server.chat(model="gpt-5")[0]) == (LOUD, 404)


def test_a_name_works_wherever_a_model_is_named(mdl: Mdl, place: Callable[..., Path]) -> None:
    place(a='names = ["gpt-4"]\nmodels = ["demo"]\nparameters.top_k = 3')
    assert "=> " in mdl("resolve", "gpt-4").stdout
    assert document(mdl("inspect", "gpt-4", "--json"))["reference"] == "demo"
    settings = document(mdl("inspect", "gpt-4", "--settings", "--json"))
    assert settings["parameters"]["top_k"] == {"value": 3, "source": "the profile a"}


def test_an_alias_may_stand_for_a_name_of_a_profile(mdl: Mdl, place: Callable[..., Path]) -> None:
    place(loud='names = ["gpt-4"]\nmodels = ["demo"]\nsystem = "Answer in uppercase."')
    assert mdl("alias", "set", "mine", "gpt-4").returncode == 0
    assert mdl("chat", "mine", "--temperature", "0", QUESTION).stdout.strip() == LOUD


def test_a_name_may_be_that_of_a_model_that_is_here(mdl: Mdl, place: Callable[..., Path]) -> None:
    place(a='names = ["demo"]\nmodels = ["demo"]\nsystem = "Answer in uppercase."')
    assert mdl("chat", "demo", "--temperature", "0", QUESTION).stdout.strip() == LOUD


# A client that cannot choose a model is given one by its key


def asked_with(server: Server, key: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    status, answer, _ = server.ask(method, path, data, {"Authorization": f"Bearer {key}"})
    return status, answer


@pytest.mark.parametrize("name", ["demo", "whatever", "", None])
def test_a_client_that_cannot_choose_is_given_a_model_by_its_key(server: Server, name: str | None) -> None:
    body = {"messages": FRANCE, "temperature": 0, "model": name}
    status, answer = asked_with(server, "sk-loud", "POST", "/v1/chat/completions", body)
    assert (status, answer["model"], text(answer)) == (200, "gpt-4", LOUD)


def test_such_a_client_sees_that_model_alone_and_changes_nothing(server: Server) -> None:
    listed = asked_with(server, "sk-loud", "GET", "/v1/models")[1]["data"]
    assert [model["id"] for model in listed] == ["gpt-4"]
    assert asked_with(server, "sk-loud", "GET", "/v1/models/demo")[1]["id"] == "gpt-4"
    for method, path, body in (
        ("POST", "/v1/models", {"source_url": "org/x"}),
        ("DELETE", "/v1/models/demo", None),
        ("POST", "/v1/models/demo/stop", {}),
        ("POST", "/mdl/engines/stop", {"model": "demo"}),
        ("GET", "/mdl/engines", None),
        ("GET", "/v1/jobs", None),
    ):
        assert asked_with(server, "sk-loud", method, path, body)[0] == 403, path
    assert asked_with(server, "sk-lou", "GET", "/v1/models")[0] == 401


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["a=demo"], [("a", "demo")]),
        (["a=demo", "b=org/x:y", "c"], [("a", "demo"), ("b", "org/x:y"), ("c", "")]),
        (["YWJj=="], [("YWJj==", "")]),
        (["a="], [("a=", "")]),
        ([], []),
        ([""], []),
    ],
)
def test_a_key_may_be_given_a_model_on_the_command_line(
    arguments: list[str], keys: list[tuple[str, str]]
) -> None:
    from mdl.cli.running import _keys

    key, found = _keys(arguments, "configured")
    assert list(found) == keys
    assert key == ("" if arguments == [""] or any(not model for _, model in keys) else "configured")


def test_a_key_is_for_one_model(mdl: Mdl) -> None:
    done = mdl("serve", "--port", "0", "--api-key", "a=demo", "--api-key", "a=quiet")
    assert (done.returncode, "another KEY" in done.stderr) == (2, True)
    done = mdl("serve", "--port", "0", "--api-key", "a=not-here")
    assert done.returncode == 3


def test_a_server_with_such_keys_alone_lets_nobody_else_in(
    tmp_path: Path, place: Callable[..., Path]
) -> None:
    (tmp_path / "home").mkdir()
    with Server(tmp_path / "home", host="0.0.0.0", keys=[["sk-1", "demo"]]) as server:
        assert server.url
        assert server.ask("GET", "/v1/models")[0] == 401
        assert [m["id"] for m in asked_with(server, "sk-1", "GET", "/v1/models")[1]["data"]] == ["demo"]


# Files are read strictly


@pytest.mark.parametrize(
    ("written", "cause"),
    [
        (
            'names = ["a"]\nmodel = ["demo"]',
            "line 2: 'model' is no field of a profile | did you mean models?",
        ),
        ("[parameters]\n\ntemprature = 1", "line 3: parameters: temprature | did you mean temperature?"),
        ("[parameters]\ntemperature = 'hot'", "line 2: parameters: temperature"),
        ("[settings]\ncontext = 5", "line 2: settings: context"),
        ("temperature = 0.5", "line 1: 'temperature' is no field | write it below [parameters]"),
        ("n_ctx = 5", "line 1: 'n_ctx' is no field | write it below [settings]"),
        ("models = ['']", "x.toml, line 1: 'models' has to hold"),
        ("names = 3", "line 1: 'names' has to be a list"),
        ("names = ['']", "line 1: 'names' has to hold"),
        ("names = ['a\\u0000b']", "not valid TOML|cannot hold"),
        ('names = ["a\\nb"]', "line 1: 'names' cannot hold"),
        ("models = ['sha256:12']", "line 1: 'models' cannot hold"),
        ("models = ['template:']", "line 1: 'models' cannot hold"),
        ("models = ['a & ']", "line 1: 'models' cannot hold"),
        ("models = ['a//b::c']", "line 1: 'models' cannot hold"),
        ("paths = ['v1']", "line 1: 'paths' cannot hold"),
        ("system = 1", "line 1: 'system' has to be a text"),
        ("stop = [1]", "line 1: stop"),
        ("prefixes = { usr = 'x' }", "'prefixes.usr' is no prefix | did you mean user?"),
        ("prefixes = { user = 'x' }\nchat_template = 'y'", "line 1: 'prefixes' cannot go"),
        ("chat_template = 'y'\nchat_template_file = 'z'", "line 2: 'chat_template_file' cannot go"),
        ("chat_template_file = 'not-there'", "line 1: "),
        ("messages = [{ role = 'robot', content = 'x' }]", "line 1: 'messages' have to be"),
        ('chat_template_file = "a\\u0000b"', "line 1: 'chat_template_file' cannot be"),
        ('adapters = ["~nobody-of-this-name/x"]', "line 1: 'adapters' cannot be"),
        ('adapters = ["x=strong"]', "line 1: 'adapters' cannot hold the scale"),
        (f'adapters = ["{"a" * 300}/"]', "line 1: 'adapters' cannot hold"),
        ('adapters = ["a\\u0000b"]', "x.toml, line 1: 'adapters' cannot be"),
        ('adapters = ["a//b::c"]', "line 1: 'adapters' cannot hold"),
        ('models = ["./a\\u0000b"]', "line 1: 'models' cannot hold"),
        ("[[profile]]\ntitle = 'a'\n[[profile]]\ntitle = 3", "profile 2, line 4: 'title' has to be a text"),
        ("version = 9", "version 9"),
        ("a = [", "not valid TOML"),
        ("[[profile]]\nsystem = 'x'", "'title' is missing"),
        ("system = 'x'\n[[profile]]\ntitle = 'x'", "cannot stand beside"),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_the_nearest_name(written: str, cause: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(written, "title", "x.toml", Path("/nowhere"))
    told = f"{refused.value.message} | {refused.value.hint}"
    assert told.startswith("x.toml")
    pieces = [piece.strip() for piece in cause.split("|")]
    assert (any if "valid TOML|" in cause else all)(piece in told for piece in pieces), told
    assert len(told) < 700


@given(st.dictionaries(st.sampled_from(FIELDS), st.one_of(st.text(), st.integers(), st.lists(st.text()))))
def test_whatever_is_written_is_a_profile_or_an_error_of_ours(fields: dict[str, Any]) -> None:
    import tomli_w

    try:
        [found] = parse(tomli_w.dumps(fields), "title", "x.toml", Path("/nowhere"))
    except MdlError as failure:
        assert "\n" not in failure.message
    else:
        [again] = parse(as_text(found), found.title, "x.toml", Path("/nowhere"))
        assert (again.names, again.models, again.paths) == (found.names, found.models, found.paths)
        assert (again.profile.system or "", again.profile.sampling) == (
            found.profile.system or "",
            found.profile.sampling,
        )


def test_a_broken_profile_is_an_error_of_check_and_a_warning_elsewhere(
    mdl: Mdl, place: Callable[..., Path]
) -> None:
    place(bad="sistem = 'x'", good='names = ["gpt-4"]\nmodels = ["demo"]\nparameters.temperature = 0')
    checked = mdl("profile", "check")
    assert checked.returncode == 2
    assert "bad.toml, line 1: 'sistem' is no field of a profile\ndid you mean system?" in checked.stderr
    answered = mdl("chat", "gpt-4", QUESTION)
    assert (answered.returncode, answered.stdout.strip()) == (0, QUIET)
    assert answered.stderr.count("bad.toml, line 1") == 1
    notes = document(mdl("inspect", "demo", "--settings", "--json"))["notes"]
    assert any("bad.toml, line 1" in note for note in notes)


def test_a_folder_that_cannot_be_read_is_told_too(mdl: Mdl, place: Callable[..., Path]) -> None:
    folder = place() / "profiles"
    folder.rmdir()
    none = mdl("profile", "check")
    assert (none.returncode, none.stderr) == (
        0,
        "no profiles of your own yet: mdl profile new shows an example\n",
    )
    folder.write_text("a file")
    assert mdl("profile", "check").returncode == 7
    answered = mdl("chat", "demo", QUESTION)
    assert (answered.returncode, "profiles cannot be read" in answered.stderr) == (0, True)


def test_check_reads_the_templates_too(mdl: Mdl, place: Callable[..., Path]) -> None:
    place(bad="chat_template = '{% if %}'", good="chat_template = '{{ messages }}'")
    found = mdl("profile", "check", "--json")
    assert (found.returncode, len(json.loads(found.stdout)["problems"])) == (2, 1)
    assert mdl("profile", "check", "good").returncode == 0


def test_a_template_may_lie_in_a_file_beside(place: Callable[..., Path]) -> None:
    folder = place(a="chat_template_file = 'x.jinja'\nmodels = ['demo']") / "profiles"
    (folder / "x.jinja").write_text("{{ messages[0].content }}")
    [written] = profilefile.users().written
    assert written.profile.template == "{{ messages[0].content }}"


def test_a_file_may_be_as_windows_writes_it(place: Callable[..., Path]) -> None:
    place(mine="\ufeffnames = ['x']\r\nmodels = ['demo']\r\n")
    assert [written.names for written in profilefile.users().written] == [("x",)]


def test_a_profile_is_read_once_for_as_long_as_it_and_its_template_are_the_same(
    place: Callable[..., Path], tmp_path: Path
) -> None:
    beside = tmp_path / "config/profiles/a.jinja"
    place(a='chat_template_file = "a.jinja"', b='system = "B"')
    beside.write_text("one")
    [first, other] = profilefile.users().written
    assert first.profile.template == "one"
    assert all(same is known for same, known in zip(profilefile.users().written, (first, other), strict=True))
    beside.write_text("other")
    [changed, same] = profilefile.users().written
    assert (changed.profile.template, same is other) == ("other", True)
    place(b='system = "C"')
    assert profilefile.users().written[1].profile.system == "C"
    beside.unlink()
    assert [len(shelf) for shelf in profilefile.users()] == [1, 1]


def test_prefixes_are_written_before_each_turn(tmp_path: Path) -> None:
    tricky = "{{ 'U' }}\\n\"' é🦀 {% raw %}: "
    template = prefixed({"user": tricky, "assistant": "A: ", "system": "S: "})
    turns = (Message("system", "be"), Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "!"))
    with Engine() as engine:
        engine.load(EngineFiles(DEMO, template=template), EngineSettings(parallel=1))
        written = engine.render(Chat(turns))
    assert written == f"S: be\n{tricky}Hi\nA: Ho\n{tricky}!\nA: "


def test_with_prefixes_an_answer_ends_where_the_user_would_speak() -> None:
    [written] = parse('prefixes = { user = "User: " }', "a", "a", Path())
    assert written.profile.sampling["stop"] == ("User:",)
    [written] = parse('prefixes = { user = "User: " }\nstop = ["X"]', "a", "a", Path())
    assert written.profile.sampling["stop"] == ("X",)


def test_a_condition_reads_back_what_it_prints() -> None:
    for text_ in ("demo", "a/b:c & architecture:llama", f"sha256:{'a' * 64}:12", "template:x & y", "*x*"):
        condition = Condition.parse(text_, Path("/"))
        assert (condition.text, Condition.parse(condition.text, Path("/"))) == (text_, condition)


# mdl profile


def test_a_profile_is_made_listed_shown_and_used(mdl: Mdl) -> None:
    made = mdl(
        *("profile", "new", "loud", "-m", "demo", "--name", "gpt-4", "--system", "Answer in uppercase."),
        *("--set", "temp=0", "--set", "num_ctx=512"),
    )
    assert made.returncode == 0, made.stderr
    assert Path(made.stdout.strip()).name == "loud.toml"
    assert mdl("chat", "gpt-4", QUESTION).stdout.strip() == LOUD
    shown = document(mdl("profile", "show", "loud", "--json"))
    assert (shown["names"], shown["models"], shown["settings"]) == (["gpt-4"], ["demo"], {"context": 512})
    assert "Answer in uppercase." in mdl("profile", "show", "gpt-4").stdout
    listed = document(mdl("profile", "--json"))["profiles"]
    assert [(each["title"], each["shipped"]) for each in listed][:2] == [("loud", False), ("mdl-demo", True)]
    assert mdl("profile", "-q").stdout.split()[0] == "loud"
    assert "loud" in mdl("profile").stdout
    again = mdl("profile", "new", "loud", "-m", "demo")
    assert (again.returncode, "--force" in again.stderr) == (2, True)


def test_a_new_profile_tells_by_what_else_its_model_is_recognised(mdl: Mdl) -> None:
    """Those signs are conditions, which hold."""
    made = mdl("profile", "new", "mine", "-m", "demo", "--set", "top_k=3")
    lines = Path(made.stdout.strip()).read_text().splitlines()
    signs = [line.removeprefix("# demo is ") for line in lines if line.startswith("# demo is ")]
    assert [sign.partition(":")[0] for sign in signs] == ["sha256", "template", "architecture"]
    made = mdl("profile", "new", "all", "-m", " & ".join(signs), "--name", "x", "--set", "top_k=4")
    assert made.returncode == 0, made.stderr
    settings = document(mdl("inspect", "x", "--settings", "--json"))
    assert settings["parameters"]["top_k"] == {"value": 4, "source": "the profile all"}


def test_the_example_is_right(mdl: Mdl, tmp_path: Path) -> None:
    example = mdl("profile", "new").stdout
    [written] = parse(example, "example", "example", tmp_path)
    assert written.names == ("gpt-4", "gpt-4o")
    assert mdl("profile", "new", "example").returncode == 0
    assert mdl("profile", "check", "example").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nonsense"], 2),
        (["show"], 2),
        (["show", "not-there"], 3),
        (["check", "not-there"], 3),
        (["check", "./not-there.toml"], 7),
        (["new", "../evil"], 2),
        (["new", "a", "--set", "temprature=1"], 2),
        (["new", "a", "--set", "x"], 2),
        (["list", "--system", "x"], 2),
        (["import"], 2),
        (["refresh"], 2),
        (["refresh", "ftp://x/y"], 2),
    ],
)
def test_what_cannot_be_is_told(mdl: Mdl, arguments: list[str], code: int) -> None:
    done = mdl("profile", *arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


def test_what_ships_is_shown_as_it_could_be_written(mdl: Mdl, tmp_path: Path) -> None:
    shown = mdl("profile", "show", "qwen3")
    [written] = parse(shown.stdout, "qwen3", "qwen3", tmp_path)
    assert written.profile.sampling["temperature"] == 0.6


def test_shipped_profiles_are_refreshed_from_an_address_and_the_user_s_are_never_touched(
    mdl: Mdl, place: Callable[..., Path], hub: Hub, tmp_path: Path
) -> None:
    own = place(mine="system = 'U'") / "profiles" / "mine.toml"
    before = own.stat().st_mtime_ns
    newer = '[[profile]]\ntitle = "newer"\nmodels = ["architecture:llama"]\nsystem = "N"\n'
    address = hub.put("/newer.toml", newer.encode())
    assert document(mdl("profile", "refresh", address, "--json"))["profiles"] == 1
    assert mdl("profile", "-q").stdout.split() == ["mine", "newer"]
    for broken in (b"[[profile]]\ntitle = 3", b"\xff", b"names = ['gpt-4']", b"x" * (1 << 21)):
        assert mdl("profile", "refresh", hub.put("/broken.toml", broken)).returncode in (5, 6)
        assert mdl("profile", "-q").stdout.split() == ["mine", "newer"]
    assert (own.stat().st_mtime_ns, own.read_text()) == (before, "system = 'U'")
    document(mdl("profile", "reset", "--json"))
    assert "qwen3" in mdl("profile", "-q").stdout


def test_profiles_that_were_fetched_and_broke_are_left_for_those_that_ship(
    place: Callable[..., Path],
) -> None:
    profilefile.refreshed().parent.mkdir(parents=True)
    profilefile.refreshed().write_text("[")
    found = profilefile.shipped()
    assert (len(found.failures), len(found.written) >= 12) == (1, True)


@pytest.mark.parametrize(
    "field",
    [
        "names = ['gpt-4']",
        "chat_template_file = '/etc/passwd'",
        "completion_template_file = 'x'",
        "adapters = ['/x']",
    ],
)
def test_profiles_that_come_from_elsewhere_name_no_files_and_no_names(field: str) -> None:
    with pytest.raises(UsageError, match=r"line 3: .* is for profiles of users"):
        parse(f"[[profile]]\ntitle = 'x'\n{field}", "x", "x", Path(), shipped=True)


def test_what_is_not_there_is_told_with_the_nearest(place: Callable[..., Path]) -> None:
    with pytest.raises(NotFound) as missing:
        profilefile.find("qwen33")
    assert missing.value.hint == "did you mean qwen3?"
