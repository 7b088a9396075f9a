"""Where a model goes in machines that are made up, by the header of a real shape."""

from dataclasses import replace

import pytest
from giants import GIANTS

from mdl import gguf, memory
from mdl.engine.request import EngineSettings
from mdl.errors import UnsupportedModel
from mdl.machine import Gpu, Machine
from mdl.placement import place, read

GIB = 1 << 30
LAYERS = 33


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Llama 3.1 8B: 4.6 GB, 128 KiB for each token of its context."""
    path = GIANTS["llama 3.1 8B, grouped queries"].write(tmp_path_factory.mktemp("giant") / "llama.gguf")
    return read((path,))


def machine(memory=32, *gpus, shared=False):
    found = tuple(Gpu("GPU", size * GIB, size * GIB, True, shared) for size in gpus)
    return Machine(memory * GIB, memory * GIB, found, 8)


def test_without_a_gpu_a_model_is_on_the_cpu(llama):
    placed = place(llama, EngineSettings(parallel=1), machine(), 30 * GIB)
    assert (placed.processor, placed.layers, placed.gpus) == ("100% CPU", 0, ())
    assert placed.settings.context == placed.settings.cells == 16384
    assert placed.settings.gpu_layers is None and not placed.note
    assert 6 * GIB < placed.cpu == placed.size < 8 * GIB


def test_a_gpu_with_room_takes_all_of_it(llama):
    placed = place(llama, EngineSettings(), machine(32, 24), 30 * GIB)
    assert (placed.processor, placed.layers, placed.settings.gpu_layers) == ("100% GPU", LAYERS, LAYERS)
    assert placed.gpus[0] > 6 * GIB > placed.cpu


def test_a_small_gpu_takes_as_many_layers_as_it_has_room_for(llama):
    here = machine(32, 4)
    placed = place(llama, EngineSettings(), here, 30 * GIB)
    assert 0 < placed.layers < LAYERS and placed.settings.gpu_layers == placed.layers
    assert placed.gpus[0] <= memory.room(4 * GIB)
    assert placed.processor.endswith("CPU/GPU") and not placed.note
    more = replace(placed.settings, gpu_layers=placed.layers + 1)
    with pytest.raises(UnsupportedModel, match="GPU"):
        place(llama, more, here, 30 * GIB)


def test_layers_that_are_asked_for_are_what_is_taken(llama):
    assert place(llama, EngineSettings(gpu_layers=7), machine(32, 24), 30 * GIB).layers == 7
    assert place(llama, EngineSettings(gpu_layers=0), machine(32, 24), 30 * GIB).processor == "100% CPU"


def test_requests_share_fewer_cells_before_the_context_gets_shorter(llama):
    settings = EngineSettings(context=4096, parallel=4)
    roomy, tight = (place(llama, settings, machine(), size * GIB) for size in (16, 6))
    assert roomy.settings.cells == 16384
    assert tight.settings.context == 4096 and 4096 <= tight.settings.cells < 16384
    assert not tight.note


def test_a_context_that_nobody_asked_for_is_shortened_and_that_is_said(llama):
    placed = place(llama, EngineSettings(), machine(), 5 * GIB + GIB // 2)
    assert placed.settings.context < 8192
    assert placed.note == f"the context is {placed.settings.context:,} tokens: there is no memory for 8,192"
    assert placed.cpu <= 5 * GIB + GIB // 2


@pytest.mark.parametrize("settings", [EngineSettings(), EngineSettings(context=16384)])
def test_what_does_not_fit_is_refused_with_the_numbers(llama, settings):
    with pytest.raises(UnsupportedModel, match=r"needs [\d.]+ GB of memory, where 3\.2 GB can be used"):
        place(llama, settings, machine(), 3 * GIB)


def test_a_model_in_parts_is_one(tmp_path):
    parts = [GIANTS["llama 3.2 1B, tied"].write(tmp_path / f"{number}.gguf") for number in range(2)]
    assert len(read(tuple(parts)).tensors) == 2 * len(gguf.read(parts[0]).tensors)
