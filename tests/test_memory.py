"""What a model needs of memory, against what llama.cpp says itself; and what fits, by its properties."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ggufmaker import F16, MODEL, make, model
from giants import GIANTS, dense
from hypothesis import given, settings
from hypothesis import strategies as st

import mdl
from mdl import gguf, memory
from mdl.errors import UnsupportedModel
from mdl.header import NeedMore
from mdl.machine import Gpu, Machine
from mdl.memory import Layer, Shape

DEMO = Path(mdl.__file__).parent / "models" / "mdl-demo-Q8_0.gguf"
HERE = Path(__file__).parent
GIB = 1 << 30

CASES: dict[str, dict[str, Any]] = {
    "as the engine does, 512": {"context": 512},
    "as the engine does, 4k": {"context": 4096},
    "as the engine does, 32k": {"context": 32768},
    "4 requests, one cache": {"context": 5000, "slots": 4},
    "4 requests, a cache each": {"context": 32768, "slots": 4, "unified": False},
    "quantized to 8 bits": {"context": 32768, "cache_types": ("Q8_0", "Q8_0")},
    "quantized to 4 bits": {"context": 4096, "cache_types": ("Q4_0", "Q4_0")},
    "without flash attention": {"context": 4096, "flash_attention": False},
    "in small steps": {"context": 4096, "micro_batch": 128},
    "with short windows": {"context": 32768, "swa_full": False},
    "with short windows, 4 requests": {"context": 32768, "swa_full": False, "slots": 4},
}


def ask(cases: list[dict[str, Any]]) -> list[dict[str, int]]:
    """What llama.cpp says."""
    command = [sys.executable, str(HERE / "allocation.py")]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def giants(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("giants")
    return {
        name: giant.write(folder / f"{number}.gguf") for number, (name, giant) in enumerate(GIANTS.items())
    }


@pytest.fixture(scope="module")
def said(giants) -> dict[tuple[str, str], dict[str, int]]:
    names = [(giant, case) for giant in GIANTS for case in CASES]
    answers = ask([{"path": str(giants[giant]), **CASES[case]} for giant, case in names])
    return dict(zip(names, answers, strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("giant", GIANTS)
def test_an_estimate_is_within_three_percent_of_what_llama_cpp_allocates(giants, said, giant, case):
    needed = memory.need(memory.shape(gguf.read(giants[giant])), **CASES[case])
    found = said[giant, case]
    assert needed.weights == found["weights"]
    assert needed.cache == pytest.approx(found["cache"], rel=0.01 if "without" not in case else 0.1)
    assert needed.total == pytest.approx(sum(found.values()), rel=0.03)
    assert needed.compute >= 0.7 * found["compute"]


def test_what_llama_cpp_plans_is_what_it_allocates(tmp_path):
    small = dense("llama", 4, 512, 8, 4, 64, 1536, 32000).write(tmp_path / "small.gguf")
    case = {"path": str(small), "context": 4096, "slots": 2}
    planned, real = ask([case, {**case, "real": True}])
    assert planned == real
    needed = memory.need(memory.shape(gguf.read(small)), 4096, slots=2)
    assert needed.total == pytest.approx(sum(real.values()), rel=0.1)


def test_a_context_that_nobody_asked_for_is_the_one_that_the_engine_takes():
    from mdl.engine.devices import physical_memory
    from mdl.engine.llama import Runner
    from mdl.engine.request import EngineFiles, EngineSettings

    runner = Runner(EngineFiles(DEMO), EngineSettings(parallel=1))
    shape = memory.shape(gguf.read(DEMO))
    assert memory.default_context(shape, physical_memory()) == runner.context
    assert runner._cell_size() == sum(2 * (layer.key + layer.value) for layer in shape.layers)


def test_a_context_that_nobody_asked_for_takes_a_quarter_of_the_memory_at_most(giants):
    llama = memory.shape(gguf.read(giants["llama 2 7B, dense"]))  # half a MiB for each token
    assert memory.default_context(llama, 64 * GIB) == 16384
    assert memory.default_context(llama, 16 * GIB) == 8192
    assert memory.default_context(llama, 1 * GIB) == 1024
    assert memory.default_context(llama._replace(trained=512), 16 * GIB) == 512


# Where the layers lie

SMALL = Shape(
    "llama",
    tuple(Layer(10**number, 10**number // 2, key=32, value=32, heads=4) for number in range(5, 9)),
    embedding=64,
    vocabulary=1000,
    trained=4096,
    input=7,
    output=3,
    tied=5,
)


def weights(needed: memory.Need) -> list[int]:
    return [part.weights for part in (needed.cpu, *needed.gpus)]


@pytest.mark.parametrize(
    ("gpu_layers", "expected"),
    [
        (0, [111_100_010]),
        (1, [111_100_007, 8]),  # the output layer first, with its own copy of the token embedding
        (2, [11_100_007, 100_000_008]),
        (4, [100_007, 111_000_008]),
        (5, [7, 111_100_008]),
        (99, [7, 111_100_008]),
    ],
)
def test_the_last_layers_go_to_the_gpu_as_llama_cpp_takes_them(gpu_layers, expected):
    assert weights(memory.need(SMALL, 512, gpu_layers=gpu_layers)) == expected


def test_gpus_share_layers_by_their_free_memory():
    needed = memory.need(SMALL, 512, gpu_layers=5, split=(3 * GIB, 1 * GIB, 1 * GIB))
    assert weights(needed) == [7, 11_100_000, 100_000_000, 8]
    assert [part.cache > 0 for part in (needed.cpu, *needed.gpus)] == [False, True, True, False]


def test_matrices_of_the_layers_that_stay_visit_the_gpu():
    one, two, all_of_them = (memory.need(SMALL, 512, gpu_layers=count).gpus[0].compute for count in (1, 2, 5))
    assert one - two == pytest.approx((100_000_000 - 10_000_000) // 2, rel=0.01)
    assert two - all_of_them == 10_000_000 // 2


def test_several_gpus_that_hold_all_work_ahead():
    inputs = 512 * (512 * 2 + 64 * 4)  # the mask and what goes from layer to layer
    all_of_them, but_one = (memory.need(SMALL, 512, gpu_layers=count, split=(1, 1)) for count in (5, 4))
    alone = memory.need(SMALL, 512, gpu_layers=5)
    assert all_of_them.gpus[1].compute == alone.gpus[0].compute + 3 * inputs
    assert but_one.gpus[1].compute == alone.gpus[0].compute + 100_000 // 2


sizes = st.integers(0, 1 << 30)
widths = st.integers(0, 1 << 12)
layers = st.builds(
    Layer, weights=sizes, largest=sizes, key=widths, value=widths, window=widths, state=sizes,
    heads=st.integers(0, 64), attention=widths, feed=widths,
)  # fmt: skip
shapes = st.builds(
    Shape,
    architecture=st.just("llama"),
    layers=st.lists(layers, min_size=1, max_size=12).map(tuple),
    embedding=widths,
    vocabulary=st.integers(0, 1 << 18),
    trained=st.integers(0, 1 << 17),
    input=sizes,
    output=sizes,
    tied=sizes,
)
contexts = st.integers(1, 1 << 17)
gpus = st.builds(
    Gpu, st.just("GPU"), st.just(32 * GIB), st.integers(0, 32 * GIB), st.booleans(), st.booleans()
)
machines = st.builds(
    Machine, st.just(64 * GIB), st.integers(0, 64 * GIB), st.lists(gpus, max_size=3).map(tuple)
)
options = st.fixed_dictionaries(
    {
        "slots": st.integers(1, 8),
        "unified": st.booleans(),
        "swa_full": st.booleans(),
        "flash_attention": st.booleans(),
        "gpu_layers": st.integers(0, 14),
    }
)


@settings(deadline=None)
@given(shapes, contexts, contexts, options)
def test_a_longer_context_never_needs_less(shape, one, other, options):
    less, more = (memory.need(shape, context, **options) for context in sorted((one, other)))
    assert less.cpu.total <= more.cpu.total
    assert all(small.total <= large.total for small, large in zip(less.gpus, more.gpus, strict=True))


@settings(deadline=None)
@given(
    shapes, contexts, st.integers(0, 14), st.lists(st.integers(1, 1 << 40), min_size=1, max_size=4).map(tuple)
)
def test_wherever_layers_lie_nothing_is_lost(shape, context, gpu_layers, split):
    here, there = (memory.need(shape, context, gpu_layers=count, split=split) for count in (0, gpu_layers))
    assert here.weights == shape.weights
    assert there.weights == shape.weights + (shape.tied if gpu_layers else 0)
    assert there.cache == here.cache


@settings(deadline=None)
@given(shapes, machines, contexts)
def test_what_fits_takes_no_more_than_the_machine_has(shape, machine, context):
    found = memory.fit(shape, machine, context)
    assert found.fits is not bool(found.limit)
    if not found.fits:
        return
    usable = machine.usable_gpus
    assert len(found.need.gpus) == (len(usable) if found.gpu_layers else 0)
    shared = 0
    for gpu, part in zip(usable, found.need.gpus, strict=False):
        assert not part.total or part.total + (512 << 20) <= gpu.free
        shared += part.total if gpu.shared else 0
    memory_taken = found.need.cpu.total + shared
    assert not memory_taken or memory_taken + (512 << 20) <= machine.memory_available


@settings(deadline=None)
@given(
    shapes,
    contexts,
    st.integers(0, 64 * GIB),
    st.integers(0, 64 * GIB),
    st.lists(sizes, min_size=2, max_size=2),
)
def test_more_memory_never_gives_fewer_layers(shape, context, memory_free, gpu_free, more):
    one = Machine(128 * GIB, memory_free, (Gpu("GPU", 64 * GIB, gpu_free),))
    larger = Machine(128 * GIB, memory_free + more[0], (Gpu("GPU", 64 * GIB, gpu_free + more[1]),))
    before, after = memory.fit(shape, one, context), memory.fit(shape, larger, context)
    assert after.fits >= before.fits
    assert after.gpu_layers >= before.gpu_layers


def test_what_does_not_fit_says_what_it_lacks(giants):
    mixtral = memory.shape(gguf.read(giants["mixtral 8x7B, experts"]))
    found = memory.fit(mixtral, Machine(16 * GIB, 10 * GIB), 4096)
    assert (found.fits, found.gpu_layers, found.whole) == (False, 0, False)
    assert found.limit == "needs 27.0 GB of memory, where 10.2 GB can be used"


def test_a_gpu_takes_what_it_has_room_for_and_the_memory_the_rest(giants):
    mixtral = memory.shape(gguf.read(giants["mixtral 8x7B, experts"]))
    found = [
        memory.fit(
            mixtral, Machine(32 * GIB, 30 * GIB, (Gpu("RTX", size * GIB, size * GIB),)), 4096
        ).gpu_layers
        for size in (1, 8, 16, 24, 48)
    ]
    assert found[0] <= 1 < found[1] < found[2] < found[3] < found[4] == 33


def test_a_gpu_that_this_llama_cpp_does_not_know_counts_for_nothing(giants):
    shape = memory.shape(gguf.read(giants["llama 3.2 1B, tied"]))
    unknown = Machine(32 * GIB, 30 * GIB, (Gpu("RTX", 24 * GIB, 24 * GIB, usable=False),))
    assert memory.fit(shape, unknown, 4096) == memory.fit(shape, Machine(32 * GIB, 30 * GIB), 4096)


def test_memory_that_a_gpu_shares_is_counted_once(giants):
    shape = memory.shape(gguf.read(giants["llama 3.1 8B, grouped queries"]))
    apple = Gpu("Apple M2", 12 * GIB, 12 * GIB, shared=True)
    assert memory.fit(shape, Machine(16 * GIB, 12 * GIB, (apple,)), 4096).whole
    assert not memory.fit(shape, Machine(16 * GIB, 5 * GIB, (apple,)), 4096).fits


# Headers

values = st.one_of(
    st.integers(-(1 << 63), 1 << 64), st.floats(), st.booleans(), st.text(max_size=5),
    st.lists(st.one_of(st.integers(-9, 1 << 40), st.floats(), st.booleans()), max_size=5),
)  # fmt: skip
keys = st.sampled_from(
    [
        "block_count", "embedding_length", "vocab_size", "context_length", "nextn_predict_layers",
        "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
        "attention.sliding_window", "attention.sliding_window_pattern", "attention.key_length_mla",
        "attention.shared_kv_layers", "ssm.inner_size", "ssm.state_size", "ssm.conv_kernel", "wkv.head_size",
        "shortconv.l_cache", "kda.head_dim", "expert_used_count",
    ]
)  # fmt: skip
names = st.sampled_from(
    [
        "token_embd.weight",
        "output.weight",
        "blk.0.attn_k.weight",
        "blk.1.ssm_a",
        "blk.0.",
        "blk.9999.x",
        "blk.00.ffn_up.x",
    ]
)
tensors = st.lists(
    st.builds(
        gguf.Tensor,
        names,
        st.lists(st.integers(0, 1 << 40), max_size=4).map(tuple),
        st.just("F16"),
        st.just(0),
        sizes,
    ),
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["llama", "gemma3", "llama4", "exaone4"]), st.dictionaries(keys, values), tensors)
def test_no_header_is_taken_for_what_it_is_not(architecture, found, tensors):
    metadata = {"general.architecture": architecture, f"{architecture}.block_count": 2}
    metadata[f"{architecture}.embedding_length"] = 64
    metadata |= {f"{architecture}.{key}": value for key, value in found.items()}
    try:
        shape = memory.shape(gguf.Header(3, metadata, tuple(tensors), 32, 0))
    except UnsupportedModel:
        return
    assert all(number >= 0 for layer in shape.layers for number in layer)
    assert memory.need(shape, 4096, gpu_layers=2).total >= 0


@pytest.mark.parametrize(
    "content",
    [
        make(
            {"general.architecture": "clip", "clip.has_vision_encoder": True}, [("v.blk.0.x", (32, 2), F16)]
        ),
        make({**MODEL, "llama.embedding_length": 64}),
        model({"llama.block_count": 1 << 30, "llama.embedding_length": 64}),
        model({"llama.block_count": 0, "llama.embedding_length": 64}),
        make(tensors=[("token_embd.weight", (32, 2), F16)]),
    ],
)
def test_what_is_no_language_model_is_refused(content):
    with pytest.raises(UnsupportedModel, match="memory"):
        memory.shape(gguf.parse(content, len(content)))


def test_layers_that_only_draft_are_not_loaded(giants):
    """`load_mtp` of llama_model_params, which is off by default."""
    header = gguf.read(giants["qwen3 30B-A3B, experts"])
    drafting = replace(header, metadata={**header.metadata, "qwen3moe.nextn_predict_layers": 1})
    whole, needed = (memory.need(memory.shape(found), 4096) for found in (header, drafting))
    assert needed.weights == whole.weights - memory.shape(header).layers[-1].weights
    assert needed.cache * 48 == whole.cache * 47


def test_a_header_that_was_read_from_afar_tells_the_same(giants):
    path = giants["gemma 3 12B, sliding window"]
    with path.open("rb") as file:
        prefix = file.read(1 << 16)
        while True:
            try:
                header = gguf.parse(prefix, path.stat().st_size)
                break
            except NeedMore as short:
                prefix += file.read(short.n - len(prefix))
    assert memory.shape(header) == memory.shape(gguf.read(path))


def test_three_hundred_versions_are_reckoned_in_three_seconds(giants):
    shape = memory.shape(gguf.read(giants["mixtral 8x7B, experts"]))
    machine = Machine(64 * GIB, 60 * GIB, (Gpu("RTX", 8 * GIB, 8 * GIB), Gpu("RTX", 12 * GIB, 12 * GIB)))
    start = time.process_time()
    for _ in range(300):
        memory.fit(shape, machine, 4096)
    assert time.process_time() - start < 3
