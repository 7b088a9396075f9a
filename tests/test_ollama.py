"""Models of the Ollama registry, from a real registry to answers: the command and a server, with the demo."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ggufmaker
import openai
import pytest
from registry import Blob, Front, Registry
from serving import DEMO

from mdl.config import Settings
from mdl.errors import IntegrityError, MdlError, NotFound, UnsupportedModel
from mdl.library import Library

PREFIX = "application/vnd.ollama.image."
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = {"model_format": "gguf", "model_family": "llama", "file_type": "Q8_0"}
CHATML = (
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    "{{ if .Prompt }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"
)
FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
LOUD = "Answer in uppercase."
WEIGHTS = Blob(DEMO.read_bytes(), PREFIX + "model")


def layer(kind: str, content: str | bytes) -> Blob:
    return Blob(content if isinstance(content, bytes) else content.encode(), PREFIX + kind)


def params(**values: Any) -> Blob:
    return layer("params", json.dumps(values))


def push(registry: Registry, name: str, *layers: Blob, tag: str = "latest", **config: Any) -> str:
    described = Blob(
        json.dumps({**CONFIG, **config}).encode(), "application/vnd.docker.container.image.v1+json"
    )
    return registry.push(f"library/{name}", tag, layers, described, mediaType=DOCKER)


@pytest.fixture
def settings(tmp_path: Path, registry: Registry) -> Settings:
    return Settings(tmp_path / "home", ollama_endpoint=registry.url)


class Command:
    """`python -m mdl` on a home of its own."""

    def __init__(self, home: Path, endpoint: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MDL_")}
        own = {"MDL_HOME": home, "MDL_DATA_HOME": home / "data", "MDL_CONFIG_HOME": home / "config"}
        self.environment = {
            **kept,
            **{name: str(path) for name, path in own.items()},
            "MDL_OLLAMA_ENDPOINT": endpoint,
        }

    def __call__(self, *arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "mdl", *arguments]
        done = subprocess.run(
            command, capture_output=True, env=self.environment, stdin=subprocess.DEVNULL, timeout=60
        )
        assert done.returncode == code, done.stderr.decode()
        return (done.stderr if code else done.stdout).decode()

    def chat(self, *arguments: str) -> str:
        return self("chat", *arguments).strip()


@pytest.fixture
def mdl(tmp_path: Path, registry: Registry) -> Command:
    return Command(tmp_path / "home", registry.url)


# What is fetched


def test_layers_become_files_by_what_they_are_for(registry: Registry, settings: Settings) -> None:
    digest = push(
        registry, "files", WEIGHTS, layer("projector", b"GGUF"), layer("adapter", b"a"),
        layer("adapter", b"b"), layer("license", "MIT"), layer("license", "more"),
        layer("template", CHATML), layer("system", LOUD),
        params(top_k=1), layer("messages", "[]"),
    )  # fmt: skip
    library = Library(settings)
    found = library.download("ollama://files")
    assert {file.name: file.role for file in found.files} == {
        "model.gguf": "weights", "mmproj.gguf": "projector", "adapter.gguf": "adapter",
        "adapter-2.gguf": "adapter", "LICENSE": "license", "LICENSE-2": "license", "template": "template",
        "system": "system", "params.json": "parameters", "messages.json": "messages",
        "ollama.json": "config",
    }  # fmt: skip
    assert (found.folder / "template").read_text() == CHATML
    assert str(found.reference) == "registry.ollama.ai/library/files:latest"
    assert found.revision == ("tag", "latest", digest)


@pytest.mark.parametrize(
    "name",
    [
        "ollama://named",
        "ollama://named:latest",
        "ollama.com/library/named",
        "registry.ollama.ai/library/named:latest",
        "https://ollama.com/library/named",
    ],
)
def test_every_spelling_means_the_same(registry: Registry, settings: Settings, name: str) -> None:
    push(registry, "named", layer("model", b"GGUF"))
    plan = Library(settings).plan(name)
    assert str(plan.manifest.reference) == "registry.ollama.ai/library/named:latest"


def test_a_pin_is_a_digest(registry: Registry, settings: Settings) -> None:
    old = push(registry, "pinned", layer("model", b"GGUF old"))
    push(registry, "pinned", layer("model", b"GGUF newer"))
    library = Library(settings)
    assert library.plan(f"ollama://pinned@{old}").manifest.files[0].size == 8
    assert library.plan("ollama://pinned").manifest.revision.commit != old


def test_several_layers_of_weights_are_the_parts_of_a_split_model(
    registry: Registry, settings: Settings
) -> None:
    push(registry, "split", *(layer("model", b"GGUF" + bytes([n])) for n in range(3)))
    names = [file.name for file in Library(settings).plan("ollama://split").manifest.files]
    assert names[:3] == [f"model-{n:05}-of-00003.gguf" for n in (1, 2, 3)]


def test_of_two_templates_the_last_counts_and_what_is_unknown_is_left_out_aloud(
    registry: Registry, settings: Settings
) -> None:
    push(
        registry,
        "odd",
        layer("model", b"GGUF"),
        layer("prompt", "a"),
        layer("template", "bc"),
        layer("embed", "x"),
    )
    manifest = Library(settings).plan("ollama://odd").manifest
    assert [(file.name, file.size) for file in manifest.files][:2] == [("model.gguf", 4), ("template", 2)]
    assert len(manifest.files) == 3
    assert "'embed'" in manifest.note


def test_content_that_is_here_already_is_not_fetched_again(front: Front, settings: Settings) -> None:
    push(front.registry, "once", WEIGHTS, params(top_k=1))
    push(front.registry, "again", WEIGHTS, params(top_k=2))
    library = Library(replace(settings, ollama_endpoint=front.url))
    first = library.download("ollama://once")
    before = len(front.requests(WEIGHTS.digest))
    second = library.download("ollama://again")
    assert len(front.requests(WEIGHTS.digest)) == before > 0
    assert (first.folder / "model.gguf").samefile(second.folder / "model.gguf")


# What is refused


@pytest.mark.parametrize(
    ("layers", "config", "says"),
    [
        ((layer("tensor", "x"),), {"model_format": "safetensors"}, "single tensors"),
        ((), {"remote_host": "https://ollama.com:443"}, "runs at 'https://ollama.com:443'"),
        ((), {"remote_host": "\x1b[31mred"}, "runs at '\\u001b[31mred'"),
        ((layer("system", "x"),), {}, "holds no weights"),
        ((layer("system", "x"),), {"model_format": "safetensors"}, "as 'safetensors'"),
        ((Blob(b"x", "application/vnd.oci.image.layer.v1.tar"),), {}, "no model of Ollama's"),
    ],
)
def test_what_cannot_run_here_is_refused_with_what_it_is(
    registry: Registry, settings: Settings, layers: tuple[Blob, ...], config: dict[str, Any], says: str
) -> None:
    push(registry, "refused", *layers, **config)
    with pytest.raises(UnsupportedModel) as refused:
        Library(settings).plan("ollama://refused")
    assert says in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha256:../../../../tmp/x"},
        {"digest": "md5:" + "0" * 32},
        {"digest": 5},
        {"size": -1},
        {"size": "4"},
        {"size": True},
        {"mediaType": None},
    ],
    ids=repr,
)
def test_a_layer_that_cannot_be_is_refused(front: Front, settings: Settings, change: dict[str, Any]) -> None:
    push(front.registry, "broken", layer("model", b"GGUF"))
    _, _, body = front.registry.request(
        "GET", "/v2/library/broken/manifests/latest", headers={"Accept": DOCKER}
    )
    document = json.loads(body)
    document["layers"][0].update(change)
    front.now.manifests["latest"] = json.dumps(document).encode()
    with pytest.raises((IntegrityError, UnsupportedModel)):
        Library(replace(settings, ollama_endpoint=front.url)).plan("ollama://broken")


def test_a_tag_that_is_not_there_is_told_with_those_that_are(registry: Registry, settings: Settings) -> None:
    push(registry, "tags", layer("model", b"GGUF"), tag="7b")
    with pytest.raises(NotFound) as missing:
        Library(settings).plan("ollama://tags")
    assert missing.value.hint == "there are: 7b"
    with pytest.raises(MdlError):
        Library(settings).plan("ollama://nowhere")


# What it does


@pytest.fixture(scope="module")
def loud(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """A model that answers loudly, greedily, and up to a stop word."""
    push(
        registry, "loud", WEIGHTS, layer("template", CHATML), layer("system", LOUD),
        params(temperature=0, stop=["<|im_end|>", " PARIS"], num_ctx=512, num_keep=4),
    )  # fmt: skip
    command = Command(tmp_path_factory.mktemp("loud") / "home", registry.url)
    command("download", "ollama://loud")
    yield command


def test_an_answer_is_as_the_publisher_set_it(loud: Command) -> None:
    assert loud.chat("ollama://loud", FRANCE) == "THE CAPITAL OF FRANCE IS"


def test_flags_go_before_the_publishers_choice(loud: Command) -> None:
    assert loud.chat("ollama://loud", "--stop", "FRANCE", FRANCE) == "THE CAPITAL OF"
    assert loud.chat("ollama://loud", "--system", "", FRANCE) == PARIS
    long = "capital " * 600
    assert "the context has room for 512 together" in loud("chat", "loud", long, code=2)
    assert "the context has room for 16 together" in loud("chat", "loud", "--ctx", "16", FRANCE, code=2)


def test_a_server_answers_so_too_and_a_request_goes_first(loud: Command) -> None:
    command = [sys.executable, "-m", "mdl", "serve", "ollama://loud", "--port", "0"]
    with subprocess.Popen(
        command, env=loud.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().decode().split()[-1]
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

            def ask(*messages: tuple[str, str], **fields: Any) -> str:
                said: Any = [{"role": role, "content": content} for role, content in messages]
                answer = client.chat.completions.create(model="ollama://loud", messages=said, **fields)
                return str(answer.choices[0].message.content).strip()

            question = ("user", FRANCE)
            assert ask(question) == "THE CAPITAL OF FRANCE IS"
            assert ask(question, stop=["FRANCE"]) == "THE CAPITAL OF"
            assert ask(question, stop=[]) == "THE CAPITAL OF FRANCE IS PARIS."
            assert ask(("system", "You are helpful."), question) == PARIS
            story = ("user", "Tell me a story.")
            assert len({ask(story, seed=seed, max_tokens=30) for seed in range(4)}) == 1
            assert len({ask(story, seed=seed, max_tokens=30, temperature=2) for seed in range(4)}) > 1
        finally:
            server.terminate()


def test_inspect_shows_all_of_it(loud: Command) -> None:
    shown = loud("inspect", "ollama://loud")
    for line in (
        "template      yes (template, from Go's language)",
        f"system        {LOUD}",
        "parameter     temperature 0.0",
        "setting       context 512",
        "stop          ' PARIS'",
        "no effect     num_keep",
    ):
        assert line in shown.splitlines()
    profile = json.loads(loud("inspect", "--json", "ollama://loud"))["profile"]
    assert profile == {
        "system": LOUD,
        "parameters": {"temperature": 0.0},
        "stop": ["<|im_end|>", " PARIS"],
        "settings": {"context": 512},
        "template_source": "template, from Go's language",
        "messages": [],
        "adapters": [],
        "ignored": ["num_keep"],
        "notes": [],
    }
    assert "macro turn" in loud("inspect", "--template", "ollama://loud")


def test_the_go_template_is_what_prompts_are_written_with(registry: Registry, mdl: Command) -> None:
    """A form that the model has never seen answers otherwise than its own; one that is not followed costs
    nothing."""
    push(registry, "odd-form", WEIGHTS, layer("template", "Q: {{ .Prompt }}\nA:"), params(temperature=0))
    push(registry, "own-form", WEIGHTS, layer("template", "{{ odd .Prompt }}"), params(temperature=0))
    mdl("download", "ollama://odd-form", "ollama://own-form")
    assert mdl.chat("ollama://odd-form", "--max-tokens", "30", FRANCE) != PARIS
    assert mdl.chat("ollama://own-form", FRANCE) == PARIS
    shown = mdl("inspect", "ollama://own-form").splitlines()
    assert "template      yes (the model's own)" in shown
    assert any(line.startswith("note          the Go template is not one") for line in shown)


def test_what_was_said_first_is_part_of_every_conversation(registry: Registry, mdl: Command) -> None:
    said = [{"role": "user", "content": "My name is Ada."}, {"role": "assistant", "content": "Hello Ada!"}]
    push(registry, "ada", WEIGHTS, layer("messages", json.dumps(said)), params(temperature=0))
    mdl("download", "ollama://ada")
    assert mdl.chat("ollama://ada", "What is my name?") == "Your name is Ada."


def test_an_adapter_layer_is_loaded_with_the_weights(registry: Registry, mdl: Command) -> None:
    other = ggufmaker.make(
        {"general.type": "adapter", "general.architecture": "qwen3", "adapter.type": "lora"}
    )
    push(registry, "adapted", WEIGHTS, layer("adapter", other))
    mdl("download", "ollama://adapted")
    refused = mdl("chat", "ollama://adapted", FRANCE, code=9)
    assert "the adapter adapter cannot be used" in refused
    assert "it is for qwen3 models, and this is llama" in refused


def test_escapes_in_what_a_publisher_wrote_are_inert(registry: Registry, mdl: Command) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    said = json.dumps([{"role": "user", "content": evil}])
    push(
        registry, "evil", WEIGHTS, layer("system", evil), layer("messages", said),
        layer("template", evil + "{{ .Prompt }}"),
        params(stop=[evil], **{evil: 1}, temperature=evil), renderer=evil,
    )  # fmt: skip
    mdl("download", "ollama://evil")
    for part in ((), ("--template",)):
        shown = mdl("inspect", *part, "ollama://evil")
        assert not set(shown) & {"\x1b", "\x07", "\u202e"}


def test_a_folder_of_the_cache_works_as_well_when_it_is_copied(loud: Command, tmp_path: Path) -> None:
    loud("download", "ollama://loud", "--destination", str(tmp_path / "copy"))
    assert loud.chat(str(tmp_path / "copy"), FRANCE) == "THE CAPITAL OF FRANCE IS"
