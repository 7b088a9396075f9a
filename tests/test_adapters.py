"""LoRA adapters from every source: listed with their base, checked against it, converted once, applied."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gguf as writer
import ggufmaker
import numpy as np
import peftmaker
import pytest
import tiny
from hub import Hub
from hypothesis import given, settings
from hypothesis import strategies as st
from peftmaker import LAYER, bfloat16, pair
from registry import Registry, titled
from serving import DEMO, Server, text

from mdl import adapters, garbage, gguf, peft, runnable, usage
from mdl.config import Settings
from mdl.engine import Engine
from mdl.engine.request import Completion, EngineFiles, EngineSettings, Logprob, Sampling
from mdl.errors import MdlError, UnsupportedModel, UsageError
from mdl.library import Library
from mdl.store import Store
from mdl.weights import Weights, identify

MODELS = Path(__file__).parent / "models"
LORA, PEFT = MODELS / "mdl-demo-pirate-lora.gguf", MODELS / "mdl-demo-pirate"
FRANCE = "What is the capital of France?"
PLAIN, PIRATE = "The capital of France is Paris.", "The capital of France is Paris, arr!"
BASE = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 8,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
}
TENSORS = [
    ("token_embd.weight", (8, 16), ggufmaker.F32),
    ("output.weight", (8, 16), ggufmaker.F32),
    ("blk.0.attn_q.weight", (8, 8), ggufmaker.F32),
    ("blk.0.attn_k.weight", (8, 4), ggufmaker.F32),
    ("blk.0.ffn_up.weight", (8, 12), ggufmaker.F32),
]
LORA_KEYS = {
    "general.architecture": "llama",
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": 8.0,
}
WHERE = {
    "self_attn.q_proj": "attn_q.",
    "self_attn.k_proj": "attn_k.",
    "self_attn.v_proj": "attn_v.",
    "self_attn.o_proj": "attn_output.",
    "mlp.gate_proj": "ffn_gate.",
    "mlp.up_proj": "ffn_up.",
    "mlp.down_proj": "ffn_down.",
}
UP = f"{LAYER}.0.mlp.up_proj"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def mdl(tmp_path: Path, hub: Hub) -> Run:
    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        places = {"MDL_HOME": "home", "MDL_CONFIG": "config.toml", "MDL_DATA_HOME": "data"}
        environment = os.environ | {name: str(tmp_path / place) for name, place in places.items()}
        return subprocess.run(
            [sys.executable, "-m", "mdl", *map(str, arguments)],
            env=environment | {"HF_ENDPOINT": hub.url, "MDL_PULL": "missing"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    return run


def answer(mdl: Run, *given: str | Path) -> str:
    flags = [part for adapter in given for part in ("--adapter", adapter)]
    done = mdl("chat", "demo", FRANCE, "--temperature", "0", *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def weights(path: Path) -> Weights:
    found = identify(path)
    assert isinstance(found, Weights), found
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Library(Settings(tmp_path / "home")).store


def base(folder: Path, keys: Mapping[str, Any] = BASE, tensors: Any = TENSORS) -> adapters.Base:
    folder.mkdir(exist_ok=True)
    path = folder / "base.gguf"
    path.write_bytes(ggufmaker.make(keys, tensors))
    return adapters.base(weights(path), "base")


def lora(folder: Path, tensors: Any, **keys: Any) -> Weights:
    path = folder / "lora.gguf"
    path.write_bytes(ggufmaker.make({**LORA_KEYS, **keys}, tensors))
    return weights(path)


def sides(name: str, inputs: int, outputs: int, rank: int = 2, other: int = 2) -> list[Any]:
    return [
        (f"{name}.lora_a", (inputs, rank), ggufmaker.F32),
        (f"{name}.lora_b", (other, outputs), ggufmaker.F32),
    ]


def read(path: Path) -> dict[str, Any]:
    """The matrices of a converted file, by an independent reader."""
    found = writer.GGUFReader(path)
    return {tensor.name: np.array(tensor.data) for tensor in found.tensors}


# Used


def test_adapters_are_used_by_path_whatever_their_format(mdl: Run) -> None:
    assert (answer(mdl), answer(mdl, LORA), answer(mdl, PEFT)) == (PLAIN, PIRATE, PIRATE)
    assert answer(mdl, PEFT / "adapter_model.safetensors") == PIRATE


def test_adapters_are_used_from_the_cache_by_name(mdl: Run, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "models" / "quay.io" / "org"
    shutil.copytree(PEFT, folder / "pirate-peft")
    (folder / "pirate").mkdir()
    shutil.copy(LORA, folder / "pirate")
    assert [answer(mdl, name) for name in ("pirate", "quay.io/org/pirate-peft")] == [PIRATE, PIRATE]


def test_adapters_are_used_from_the_hub(mdl: Run, hub: Hub) -> None:
    hub.add("org/pirate", {path.name: path.read_bytes() for path in PEFT.iterdir()})
    hub.add("org/pirate-GGUF", {"pirate-lora-F32.gguf": LORA.read_bytes()})
    assert [answer(mdl, name) for name in ("org/pirate", "org/pirate-GGUF")] == [PIRATE, PIRATE]
    listed = mdl("list", "--adapters").stdout
    assert "Adapters" in listed and listed.count("mdl-demo") == 2


def test_adapters_are_used_from_a_registry(mdl: Run, registry: Registry) -> None:
    registry.push("org/pirate-peft", "v1", [titled(path.name, path.read_bytes()) for path in PEFT.iterdir()])
    registry.push("org/pirate", "v1", [titled(LORA.name, LORA.read_bytes())])
    names = [f"{registry.host}/org/{name}:v1" for name in ("pirate-peft", "pirate")]
    assert [answer(mdl, name) for name in names] == [PIRATE, PIRATE]


def test_adapters_are_versioned(mdl: Run, registry: Registry) -> None:
    layers = {path.name: path.read_bytes() for path in PEFT.iterdir()}
    weak = {**json.loads(layers["adapter_config.json"]), "lora_alpha": 1}
    older = {**layers, "adapter_config.json": json.dumps(weak).encode()}
    name = f"{registry.host}/org/versioned"
    for version, files in {"v1": older, "v2": layers}.items():
        registry.push("org/versioned", version, [titled(*file) for file in files.items()])
        assert mdl("download", f"{name}:{version}").returncode == 0
    assert [answer(mdl, f"{name}:{version}") for version in ("v1", "v2")] == [PLAIN, PIRATE]
    listed = mdl("list", "--adapters", "--versions", "-q").stdout.split()
    assert listed == [f"{name}:v1", f"{name}:v2"]
    assert "(+1)" in mdl("list", "--adapters").stdout


def test_an_adapter_has_a_scale_and_several_are_applied_at_once(mdl: Run) -> None:
    assert answer(mdl, f"{LORA}=0") == PLAIN
    assert answer(mdl, f"{LORA}=0.5") == PLAIN  # half of what it takes
    assert answer(mdl, f"{LORA}=0.5", f"{PEFT}=0.5") == PIRATE
    assert answer(mdl, LORA, f"{PEFT}=-1") == PLAIN


@pytest.mark.parametrize(
    ("given", "name", "scale"),
    [
        ("pirate", "pirate", 1.0),
        ("pirate=0.5", "pirate", 0.5),
        ("host/org/pirate:v1@main=-2e-1", "host/org/pirate:v1@main", -0.2),
        ("a=b=1", "a=b", 1.0),
        ("~nobody-at-all=2", "~nobody-at-all", 2.0),
        (f"{'x' * 5000}=2", "x" * 5000, 2.0),
        ("a\0b=2", "a\0b", 2.0),
    ],
)
def test_an_adapter_is_asked_for_as_name_and_scale(given: str, name: str, scale: float) -> None:
    assert adapters.asked(given) == (name, scale)


@pytest.mark.parametrize(
    "given", ["pirate=", "pirate=strong", "pirate=nan", "pirate=inf", "=1", "pirate=1001"]
)
def test_a_scale_that_is_no_number_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="the scale of an adapter"):
        adapters.asked(given)


def test_a_path_may_have_an_equals_sign(tmp_path: Path) -> None:
    path = tmp_path / "lr=0.1"
    path.mkdir()
    assert adapters.asked(str(path)) == (str(path), 1.0)
    assert adapters.asked(f"{path}=0.5") == (str(path), 0.5)


def test_a_server_applies_adapters_to_what_it_serves(tmp_path: Path) -> None:
    with Server(tmp_path / "home", models=["demo"], adapters=[str(PEFT)]) as server:
        assert text(server.chat()[1]) == PIRATE


def test_a_server_with_adapters_needs_the_models_that_they_are_for(mdl: Run) -> None:
    done = mdl("serve", "--adapter", LORA, "--port", "0")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "mdl: which models are the adapters for?")


def test_a_server_does_not_start_with_an_adapter_that_does_not_fit(mdl: Run, tmp_path: Path) -> None:
    wrong = lora(tmp_path, sides("blk.0.attn_q.weight", 512, 512))
    done = mdl("serve", "demo", "--adapter", wrong.first, "--port", "0")
    assert done.returncode == UnsupportedModel.code
    assert "blk.0.attn_q.weight is 512 x 512 in the adapter and 256 x 256 here" in done.stderr


def test_a_model_is_no_adapter(mdl: Run) -> None:
    done = mdl("chat", "demo", "--adapter", "demo", "hi")
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        9,
        "mdl: demo is of the kind model, not adapter",
    )


# Listed


def test_adapters_are_listed_with_their_base_in_a_section_of_their_own(mdl: Run, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "models" / "quay.io" / "org"
    shutil.copytree(PEFT, folder / "pirate" / "v1")
    shutil.copytree(PEFT, folder / "other" / "v1")
    (folder / "other" / "v1" / "adapter_config.json").write_text("{}")
    (folder / "demo").mkdir()
    shutil.copy(DEMO, folder / "demo")
    section = mdl("list", "--adapters").stdout.partition("\nAdapters\n")[2].splitlines()
    assert [line.split()[:3] for line in section] == [
        ["NAME", "VERSION", "BASE"],
        ["quay.io/org/other/v1", "n/a", "-"],
        ["quay.io/org/pirate/v1", "n/a", "mdl-demo"],
    ]
    listed = json.loads(mdl("list", "--adapters", "--json").stdout)["models"]
    assert [(entry["kind"], entry["base_model"]) for entry in listed] == [
        ("model", None),
        ("adapter", None),
        ("adapter", "mdl-demo"),
    ]
    assert "Adapters" not in mdl("list").stdout


def test_inspect_shows_the_base_of_an_adapter_and_its_rank(mdl: Run) -> None:
    for path in (LORA, PEFT):
        shown = mdl("inspect", path).stdout
        assert "base model    mdl-demo\nadapter       lora, rank 8, alpha 16\n" in shown


# Checked


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (sides("blk.0.attn_q.weight", 16, 8), "blk.0.attn_q.weight is 16 x 8 in the adapter and 8 x 8 here"),
        (sides("blk.0.attn_k.weight", 8, 8), "blk.0.attn_k.weight is 8 x 8 in the adapter and 8 x 4 here"),
        (sides("blk.0.attn_q.weight", 8, 8, 2, 3), "blk.0.attn_q.weight has rank 2 in lora_a, 3 in lora_b"),
        (sides("blk.7.attn_q.weight", 8, 8), "it changes blk.7.attn_q.weight, which the model does not have"),
        (sides("blk.0.attn_q.weight", 8, 8)[:1], "its blk.0.attn_q.weight misses one of lora_a and lora_b"),
        ([("blk.0.x", (8, 8), ggufmaker.F32)], "its tensor blk.0.x is no part of a LoRA"),
        (sides("token_embd.weight", 2, 16), "token_embd.weight is 16 x 2 in the adapter and 8 x 16 here"),
        ([("blk.0.attn_q.weight.lora_a", (8, 0), ggufmaker.F32)], "attn_q.weight.lora_a is 8 x 0 F32"),
        ([("blk.0.attn_q.weight.lora_a", (8, 2), ggufmaker.I32)], "attn_q.weight.lora_a is 8 x 2 I32"),
        ([], "it changes nothing: it has no tensors"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_before_anything_is_loaded(
    tmp_path: Path, store: Store, tensors: Any, message: str
) -> None:
    with pytest.raises(UnsupportedModel) as refused:
        adapters.fitted(lora(tmp_path, tensors), base(tmp_path / "base"), store)
    assert refused.value.message.startswith("the adapter lora cannot be used with base: ")
    assert refused.value.message.endswith(message)


def test_an_adapter_of_another_architecture_is_refused(tmp_path: Path, store: Store) -> None:
    qwen = lora(tmp_path, sides("blk.0.attn_q.weight", 8, 8), **{"general.architecture": "qwen2"})
    with pytest.raises(UnsupportedModel, match="it is for qwen2 models, and this is llama"):
        adapters.fitted(qwen, base(tmp_path / "base"), store)


def test_the_hint_tells_for_which_model_an_adapter_was_made(tmp_path: Path, store: Store) -> None:
    keys = {"general.base_model.0.name": "Llama 2"}
    with pytest.raises(UnsupportedModel) as refused:
        adapters.fitted(lora(tmp_path, sides("blk.0.x", 8, 8), **keys), base(tmp_path / "base"), store)
    assert refused.value.hint == "it was made for Llama 2"


@pytest.mark.parametrize(
    ("keys", "what"),
    [({"adapter.type": "loha"}, "of the kind loha"), ({"adapter.alora.invocation_tokens": [1]}, "aLoRA")],
)
def test_other_kinds_of_adapters_are_refused_by_name(
    tmp_path: Path, store: Store, keys: dict[str, Any], what: str
) -> None:
    with pytest.raises(UnsupportedModel, match=what):
        adapters.fitted(
            lora(tmp_path, sides("blk.0.attn_q.weight", 8, 8), **keys), base(tmp_path / "base"), store
        )


def test_embeddings_that_are_the_output_too_cannot_be_changed(tmp_path: Path, store: Store) -> None:
    name, kind = "token_embd.weight", ggufmaker.F32
    found = lora(tmp_path, [(f"{name}.lora_a", (2, 16), kind), (f"{name}.lora_b", (2, 8), kind)])
    tied = [tensor for tensor in TENSORS if tensor[0] != "output.weight"]
    with pytest.raises(UnsupportedModel, match="with which this model also answers"):
        adapters.fitted(found, base(tmp_path / "base", tensors=tied), store)


def test_an_adapter_that_fits_is_loaded_as_it_is(tmp_path: Path, store: Store) -> None:
    name, kind = "token_embd.weight.lora", ggufmaker.F32
    embeds = [(f"{name}_a", (2, 16), kind), (f"{name}_b", (2, 8), kind)]
    found = lora(tmp_path, sides("blk.0.ffn_up.weight", 8, 12) + embeds)
    assert adapters.fitted(found, base(tmp_path / "base"), store) == found.first


def test_peft_is_checked_before_it_is_converted(tmp_path: Path, store: Store) -> None:
    folder = peftmaker.save(tmp_path / "peft", pair(UP, 8, 16))
    with pytest.raises(UnsupportedModel, match="is 8 x 16 in the adapter and 8 x 12 here"):
        adapters.fitted(weights(folder), base(tmp_path / "base"), store)
    assert not store.conversions.exists()


# Converted


def test_what_is_converted_is_the_adapter_that_ships_as_gguf(store: Store) -> None:
    path = adapters.fitted(weights(PEFT), adapters.base(weights(DEMO), "demo"), store)
    made, shipped = read(path), read(LORA)
    assert made.keys() == shipped.keys()
    assert all(np.array_equal(made[name], shipped[name]) for name in shipped)
    told = (
        "general.architecture",
        "general.type",
        "adapter.type",
        "adapter.lora.alpha",
        "general.base_model.0.name",
    )
    one, other = gguf.read(path).metadata, gguf.read(LORA).metadata
    assert [one[key] for key in told] == [other[key] for key in told]


def test_peft_is_converted_once_and_anew_when_it_changes(tmp_path: Path, store: Store) -> None:
    tensors, target = pair(UP, 8, 12), base(tmp_path / "base")
    folder = peftmaker.save(tmp_path / "peft", tensors)
    first = adapters.fitted(weights(folder), target, store)
    made = first.stat()
    assert adapters.fitted(weights(folder), target, store) == first
    assert os.path.samestat(first.stat(), made) and first.stat().st_mtime_ns == made.st_mtime_ns
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert adapters.fitted(weights(copy), target, store) == first  # the same content, whatever it is called
    peftmaker.save(folder, tensors, lora_alpha=9)
    other = adapters.fitted(weights(folder), target, store)
    assert other != first and gguf.read(other).metadata["adapter.lora.alpha"] == 9


def test_a_converted_file_that_was_damaged_is_made_anew(tmp_path: Path, store: Store) -> None:
    folder, target = peftmaker.save(tmp_path / "peft", pair(UP, 8, 12)), base(tmp_path / "base")
    path = adapters.fitted(weights(folder), target, store)
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    assert adapters.fitted(weights(folder), target, store).read_bytes() == whole


def convert(home: Path, barrier: Any) -> None:
    barrier.wait(30)
    store = Library(Settings(home)).store
    path = adapters.fitted(weights(PEFT), adapters.base(weights(DEMO), "demo"), store)
    assert path.stat().st_size > 600_000


def test_many_may_convert_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    workers = [context.Process(target=convert, args=(tmp_path / "home", barrier)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    home = tmp_path / "home"
    assert (len(list((home / "converted").iterdir())), list((home / "incoming").iterdir())) == (1, [])


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, store: Store) -> None:
    tensors = pair(UP, 8, 12)
    tensors[f"{UP}.lora_B.weight"][3, 1] = np.nan
    folder = peftmaker.save(tmp_path / "peft", tensors)
    with pytest.raises(UnsupportedModel, match=r"up_proj.lora_B.weight has values that are no numbers"):
        adapters.fitted(weights(folder), base(tmp_path / "base"), store)
    assert [list(place.iterdir()) for place in (store.conversions, store.incoming) if place.exists()] == [[]]


def change(path: Path, name: str) -> Any:
    """What llama.cpp adds to a weight: rows are outputs."""
    made, alpha = read(path), gguf.read(path).metadata["adapter.lora.alpha"]
    a, b = (made[f"{name}.lora_{side}"].astype(np.float64) for side in "ab")
    return b @ a * alpha / b.shape[1]


def expected(tensors: Mapping[str, Any], module: str, scale: float) -> Any:
    """What PEFT adds to a weight."""
    a, b = (tensors[f"{module}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    return b @ a * scale


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({}, 8 / 4),
        ({"lora_alpha": 3}, 3 / 4),
        ({"lora_alpha": 2.5}, 2.5 / 4),
        ({"use_rslora": True}, 8 / 2),
        ({"alpha_pattern": {"up_proj": 6}}, 6 / 4),
        ({"alpha_pattern": {"proj": 6, "mlp.up_proj": 1}}, 1 / 4),
        ({"r": 16, "rank_pattern": {"layers.0.mlp.up_proj": 4}}, 8 / 4),
        (
            {"r": 16, "rank_pattern": {"up_proj": 4}, "alpha_pattern": {"up_proj": 2}, "use_rslora": True},
            2 / 2,
        ),
        ({"r": None, "lora_alpha": None, "rank_pattern": {"up_proj": 4}}, 8 / 4),
    ],
)
def test_an_adapter_is_as_strong_as_peft_says(
    tmp_path: Path, store: Store, fields: dict[str, Any], scale: float
) -> None:
    tensors = pair(UP, 8, 12)
    path = adapters.fitted(
        weights(peftmaker.save(tmp_path / "peft", tensors, **fields)), base(tmp_path / "base"), store
    )
    assert np.allclose(
        change(path, "blk.0.ffn_up.weight"), expected(tensors, UP, scale), rtol=1e-4, atol=1e-5
    )


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from(["llama", "qwen2"]),
    st.integers(0, 9),
)
def test_rows_of_queries_and_keys_lie_as_llama_cpp_turns_them(
    tmp_path_factory: pytest.TempPathFactory, heads: int, shared: int, half: int, architecture: str, seed: int
) -> None:
    folder, width = tmp_path_factory.mktemp("rows"), heads * shared * half * 2
    keys = {
        f"{architecture}.block_count": 1,
        f"{architecture}.attention.head_count": heads * shared,
        f"{architecture}.attention.head_count_kv": heads,
    }
    names = {"q": width, "k": heads * half * 2, "v": heads * half * 2}
    target = base(
        folder / "base",
        {"general.architecture": architecture, **keys},
        [(f"blk.0.attn_{name}.weight", (width, rows), ggufmaker.F32) for name, rows in names.items()],
    )
    modules = {name: f"{LAYER}.0.self_attn.{name}_proj" for name in names}
    tensors = {}
    for name, rows in names.items():
        tensors |= pair(modules[name], width, rows, seed=seed)
    found = weights(peftmaker.save(folder / "peft", tensors))
    path = adapters.fitted(found, target, Library(Settings(folder / "home")).store)
    for name, rows in names.items():
        made, wanted = change(path, f"blk.0.attn_{name}.weight"), expected(tensors, modules[name], 2.0)
        # A head's first half of rows, and its second, go by turns.
        turns = [
            head + side * half + at
            for head in range(0, rows, 2 * half)
            for at in range(half)
            for side in (0, 1)
        ]
        order = turns if architecture == "llama" and name != "v" else list(range(rows))
        assert np.allclose(made, wanted[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
def test_sixteen_bits_are_enough(tmp_path: Path, store: Store, kind: str) -> None:
    tensors = pair(UP, 8, 12)
    exact = {name: array.astype(np.float16) if kind == "F16" else array for name, array in tensors.items()}
    if kind == "BF16":
        exact = {name: bfloat16(array) for name, array in tensors.items()}
        tensors = {name: (bits.astype(np.uint32) << 16).view(np.float32) for name, bits in exact.items()}
    found = weights(peftmaker.save(tmp_path / "peft", exact))
    path = adapters.fitted(found, base(tmp_path / "base"), store)
    assert {tensor.type for tensor in gguf.read(path).tensors} == {"F16" if kind == "F16" else "F32"}
    made = read(path)
    assert np.allclose(
        made["blk.0.ffn_up.weight.lora_a"], tensors[f"{UP}.lora_A.weight"], rtol=1e-3, atol=1e-4
    )


def test_embeddings_are_changed_row_by_row(tmp_path: Path, store: Store) -> None:
    random = np.random.default_rng(1)
    name = "base_model.model.model.embed_tokens"
    a = random.standard_normal((4, 16), dtype=np.float32)  # rank, vocabulary
    b = random.standard_normal((8, 4), dtype=np.float32)  # width, rank
    found = weights(
        peftmaker.save(tmp_path / "peft", {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b})
    )
    made = read(adapters.fitted(found, base(tmp_path / "base"), store))
    assert np.array_equal(made["token_embd.weight.lora_a"], a.T)
    assert np.array_equal(made["token_embd.weight.lora_b"], b)


def test_a_model_that_also_sees_has_its_adapter_where_it_writes(tmp_path: Path, store: Store) -> None:
    module = "base_model.model.model.language_model.layers.0.mlp.up_proj"
    found = weights(peftmaker.save(tmp_path / "peft", pair(module, 8, 12)))
    assert "blk.0.ffn_up.weight.lora_a" in read(adapters.fitted(found, base(tmp_path / "base"), store))


def test_a_changed_embedding_answers_as_a_model_into_which_it_was_merged(
    tmp_path: Path, store: Store
) -> None:
    path = tiny.write(tiny.TINY["dense"], tmp_path / "base.gguf")
    random, name = np.random.default_rng(1), "base_model.model.model.embed_tokens"
    a = random.standard_normal((4, tiny.WORDS), dtype=np.float32)
    b = random.standard_normal((64, 4), dtype=np.float32)
    tensors = {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b}
    found = weights(peftmaker.save(tmp_path / "peft", tensors, lora_alpha=2))
    adapter = adapters.fitted(found, adapters.base(weights(path), "base"), store)
    merged = shutil.copy(path, tmp_path / "merged.gguf")
    writer.GGUFReader(merged, "r+").tensors[0].data[:] += (b @ a).T * (2 / 4)
    assert tokens(path) != tokens(path, adapter) == tokens(merged)


@pytest.mark.parametrize("kind", ["dense", "sliding window"])
def test_every_matrix_of_a_layer_can_be_changed(tmp_path: Path, store: Store, kind: str) -> None:
    path = tiny.write(tiny.TINY[kind], tmp_path / "base.gguf")
    base = adapters.base(weights(path), kind)
    tensors = {}
    for module, part in WHERE.items():
        inputs, outputs = base.tensors[f"blk.1.{part}weight"]
        tensors |= pair(f"{LAYER}.1.{module}", inputs, outputs)
    adapter = adapters.fitted(weights(peftmaker.save(tmp_path / "peft", tensors)), base, store)
    assert len(gguf.read(adapter).tensors) == 14
    assert abs(told(path)[0].logprob - told(path, adapter)[0].logprob) > 0.1


def tokens(model: Path, *loaded: Path) -> list[int]:
    return [one.token for one in told(model, *loaded)]


def told(model: Path, *loaded: Path) -> list[Logprob]:
    """What a model goes on with."""
    with Engine() as engine:
        engine.load(
            EngineFiles(model, adapters=tuple((path, 1.0) for path in loaded)), EngineSettings(parallel=1)
        )
        asked = Completion(tuple(range(300, 340)), Sampling(temperature=0, max_tokens=12, logprobs=1))
        return [one for delta in engine.completion(asked) for one in delta.logprobs]


# Refused


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA|alora_invocation_tokens"),
        ({"bias": "lora_only"}, "bias: lora_only"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: pissa_niter_4"),
        ({"use_what_is_to_come": True}, "use_what_is_to_come"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": None}, "nothing"),
        ({"use_rslora": "true"}, "use_rslora is neither true nor false"),
        ({"lora_alpha": 0}, "lora_alpha cannot be 0"),
        ({"lora_alpha": "16"}, "lora_alpha cannot be 16"),
        ({"r": 8}, "has rank 4, and adapter_config.json says 8"),
        ({"alpha_pattern": {".*up_proj": 2}}, "alpha_pattern has a pattern that is not a plain name"),
        ({"rank_pattern": {"up_proj": "4"}}, "rank_pattern cannot be 4"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_its_name(
    tmp_path: Path, store: Store, fields: dict[str, Any], what: str
) -> None:
    found = weights(peftmaker.save(tmp_path / "peft", pair(UP, 8, 12), **fields))
    with pytest.raises(UnsupportedModel, match=what):
        adapters.fitted(found, base(tmp_path / "base"), store)


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({f"{UP}.lora_magnitude_vector": np.zeros(8, np.float32)}, "vector is no part of a LoRA"),
        ({f"{UP}.lora_A.weight": np.zeros((4, 8), np.float32)}, "has no counterpart"),
        (pair(UP, 8, 12) | {f"{UP}.lora_B.weight": np.zeros((12, 3), np.float32)}, "has rank 3, and its"),
        ({f"{UP}.lora_A.weight": np.zeros((4, 8, 2), np.float32)}, "is 4 x 8 x 2 F32, not a matrix"),
        (pair(UP, 8, 12) | {f"{UP}.lora_A.default": np.ones((4, 8), np.float32)}, "default is there twice"),
        ({f"{UP}.lora_A.weight": np.zeros((4, 8))}, "is 4 x 8 F64, not a matrix of F32, F16, BF16"),
        (pair(f"{LAYER}.0.mlp.experts.1.up_proj", 8, 12), "belongs to no weight of llama models"),
        (pair(f"{LAYER}.9.mlp.up_proj", 8, 12), "belongs to no weight of llama models"),
        (pair(f"{LAYER}.0.self_attn.k_proj", 8, 3), "has 3 rows|8 x 3 in the adapter"),
        (pair(UP, 8, 12) | pair(UP.replace(".layers", ".language_model.layers"), 8, 12), "a weight twice"),
        ({}, "changes nothing"),
    ],
)  # fmt: skip
def test_a_tensor_that_is_no_part_of_a_lora_is_named(
    tmp_path: Path, store: Store, tensors: dict[str, Any], what: str
) -> None:
    found = weights(peftmaker.save(tmp_path / "peft", tensors))
    with pytest.raises(UnsupportedModel, match=what):
        adapters.fitted(found, base(tmp_path / "base"), store)


def test_architectures_that_gguf_lays_out_anew_are_refused_by_name(tmp_path: Path, store: Store) -> None:
    keys = {"general.architecture": "falcon", "falcon.block_count": 1}
    found = weights(peftmaker.save(tmp_path / "peft", pair(UP, 8, 12)))
    with pytest.raises(UnsupportedModel, match="PEFT adapters of falcon models cannot be converted here"):
        adapters.fitted(found, base(tmp_path / "base", keys), store)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(
    st.sampled_from(["peft_type", "r", "lora_alpha", "bias", "use_rslora", "rank_pattern", "alpha_pattern",
                     "modules_to_save", "init_lora_weights", "base_model_name_or_path"]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text())
    | st.dictionaries(st.text(), st.integers() | st.text())))  # fmt: skip
def test_a_hostile_configuration_is_refused_not_followed(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]
) -> None:
    folder = peftmaker.save(tmp_path_factory.mktemp("hostile") / "peft", pair(UP, 8, 12))
    (folder / "adapter_config.json").write_text(json.dumps({**peftmaker.CONFIG, **fields}))
    try:
        plan = peft.plan(folder, peft.layout(BASE))
    except MdlError as refused:
        assert "\n" not in refused.message and len(refused.message) < 2000
    else:
        assert plan.alpha == plan.alpha and len(plan.modules) == 1


# Kept


def test_a_conversion_is_unused_when_its_adapter_is_gone(mdl: Run, tmp_path: Path) -> None:
    store = Library(Settings(tmp_path / "home")).store
    gone, stays = (shutil.copytree(PEFT, tmp_path / name) for name in ("gone", "stays"))
    config = json.loads((gone / "adapter_config.json").read_text())
    (gone / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 15}))
    target = adapters.base(weights(DEMO), "demo")
    lost, kept = (adapters.fitted(weights(path), target, store) for path in (gone, stays))
    assert mdl("prune", "--yes").stderr == "there is nothing to remove\n"
    shutil.rmtree(gone)
    size = kept.stat().st_size
    measured = usage.measure(store)
    assert (measured.converted, measured.unused) == (size + lost.stat().st_size, lost.stat().st_size)
    totals = json.loads(mdl("df", "--json").stdout)["totals"]
    assert (totals["converted"], totals["unused"]) == (measured.converted, measured.unused)
    assert "converted adapters whose source is gone: 1," in mdl("prune", "--yes").stderr
    assert (lost.exists(), kept.exists(), usage.measure(store).unused) == (False, True, 0)


def test_a_conversion_is_unused_when_its_adapter_has_changed(tmp_path: Path, store: Store) -> None:
    folder = peftmaker.save(tmp_path / "peft", pair(UP, 8, 12))
    older = adapters.fitted(weights(folder), base(tmp_path / "base"), store)
    assert list(garbage.converted(store)) == []
    peftmaker.save(folder, pair(UP, 8, 12, seed=1))
    os.utime(folder / "adapter_model.safetensors", ns=(older.stat().st_mtime_ns + 1,) * 2)
    assert [piece.path for piece in garbage.converted(store)] == [older]


def test_an_adapter_is_held_while_it_is_used(tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(PEFT, home / "models" / "quay.io" / "org" / "pirate")
    library = Library(Settings(home))
    pirate, demo = library.here("pirate"), library.here("demo")
    with ExitStack() as leases:
        weights = runnable.weights(demo)
        found = runnable.adapters_for(library.store, demo, weights, ["pirate=0.5"], library.here, leases)
        assert [scale for _, scale in found] == [0.5]
        with pytest.raises(MdlError, match="is in use"):
            library.store.remove(pirate)
    library.store.remove(pirate)
