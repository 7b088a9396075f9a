import io
import json
import os
import pickle
import socket
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ggufmaker import F16, F32, MODEL, Q8_0, make, model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_safetensors import SMALL, folder, indexed

from mdl.errors import DiskError, NotFound, UnsupportedModel
from mdl.weights import Refusal, Weights, identify

PROJECTOR = {"general.architecture": "clip", "clip.has_vision_encoder": True}
LORA = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
VOCABULARY = {**MODEL, "tokenizer.ggml.model": "gpt2"}


def used(path: Path) -> Weights:
    found = identify(path)
    assert isinstance(found, Weights), found
    return found


def refused(path: Path) -> Refusal:
    found = identify(path)
    assert isinstance(found, Refusal), found
    assert found.hint
    assert "\n" not in found.message + found.hint
    return found


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def split(folder: Path, count: int = 3, stem: str = "big") -> list[Path]:
    """A model in parts, as llama-gguf-split writes it: only the first has the metadata."""
    parts = []
    for number in range(count):
        metadata = {**(MODEL if number == 0 else {}), "split.no": number, "split.count": count}
        content = make(metadata, [(f"blk.{number}", (32,), F16)])
        parts.append(write(folder / f"{stem}-{number + 1:05}-of-{count:05}.gguf", content))
    return parts


@pytest.mark.parametrize("name", ["model.gguf", "sha256-0a1b2c", "model.bin", "page.html"])
def test_a_gguf_file_is_known_whatever_its_name(tmp_path, name):
    path = write(tmp_path / name, model())
    found = used(path)
    assert (found.kind, found.format, found.files, found.first) == ("model", "gguf", (path,), path)
    assert (found.facts.parameters, found.facts.quantization, found.projector) == (64, "F16", None)


@pytest.mark.parametrize(
    ("metadata", "kind"), [(PROJECTOR, "projector"), (LORA, "adapter"), (VOCABULARY, "vocabulary")]
)
def test_the_kinds_of_a_gguf_file(tmp_path, metadata, kind):
    tensors = [] if kind == "vocabulary" else [("t", (32,), F16)]
    assert used(write(tmp_path / "x.gguf", make(metadata, tensors))).kind == kind


def test_any_part_of_a_split_model_finds_all(tmp_path):
    parts = split(tmp_path)
    for start in (*parts, tmp_path):
        found = used(start)
        assert found.files == tuple(parts)
        assert (found.facts.parameters, found.facts.architecture, found.facts.split) == (96, "llama", None)


def test_a_split_that_misses_parts_names_them(tmp_path):
    parts = split(tmp_path, 6)
    for part in parts[1:]:
        part.unlink()
    missing = ", ".join(f"big-0000{number}-of-00006.gguf" for number in (2, 3, 4))
    for start in (parts[0], tmp_path):
        assert refused(start).message.endswith(f"one of 6 parts; missing beside it: {missing} and 2 more")
        assert refused(start).is_model


def test_a_part_under_another_name_is_refused_with_the_name_it_needs(tmp_path):
    part = split(tmp_path)[1].rename(tmp_path / "part.gguf")
    assert "NAME-00002-of-00003.gguf" in refused(part).hint


def test_a_split_with_a_wrong_or_damaged_part_is_refused(tmp_path):
    parts = split(tmp_path)
    whole = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    assert "is not part 2 of 3" in refused(parts[0]).message
    parts[1].write_bytes(whole[:-30])
    assert "big-00002-of-00003.gguf: truncated" in refused(parts[0]).message


def test_a_folder_with_one_model_and_its_projectors(tmp_path):
    path = write(tmp_path / "model-Q8_0.gguf", make(MODEL, [("t", (32,), Q8_0)]))
    write(tmp_path / "mmproj-a-F32.gguf", make(PROJECTOR, [("t", (32,), F32)]))
    best = write(tmp_path / "mmproj-b-F16.gguf", make(PROJECTOR, [("t", (32,), F16)]))
    write(tmp_path / "mmproj-c-Q8_0.gguf", make(PROJECTOR, [("t", (32,), Q8_0)]))
    write(tmp_path / "imatrix.gguf", make({"general.type": "imatrix"}, [("t", (32,), F32)]))
    write(tmp_path / "README.md", b"# A model")
    found = used(tmp_path)
    assert (found.kind, found.files, found.projector) == ("model", (path,), best)


def test_a_model_in_a_subfolder_is_found(tmp_path):
    parts = split(tmp_path / "Q4_K_M")
    projector = write(tmp_path / "mmproj-F16.gguf", make(PROJECTOR, [("t", (32,), F16)]))
    found = used(tmp_path)
    assert (found.files, found.projector) == (tuple(parts), projector)


def test_a_folder_with_several_models_asks_for_one(tmp_path):
    for name in ("a.gguf", "sub/b.gguf"):
        write(tmp_path / name, model())
    found = refused(tmp_path)
    assert found.message == f"{tmp_path} is a folder with more than one model: a.gguf, {Path('sub/b.gguf')}"
    assert (found.hint, found.is_model) == ("name one of its files", True)


@pytest.mark.parametrize("metadata", [PROJECTOR, LORA])
def test_a_folder_with_no_model_is_what_it_holds(tmp_path, metadata):
    path = write(tmp_path / "x.gguf", make(metadata, [("t", (32,), F16)]))
    assert used(tmp_path).files == (path,)


def test_a_damaged_model_makes_its_folder_damaged(tmp_path):
    write(tmp_path / "x.gguf", model(cut=3))
    assert "x.gguf: truncated: 3 of" in refused(tmp_path).message
    assert refused(tmp_path).is_model


def test_a_safetensors_folder_and_any_of_its_shards(tmp_path):
    path = indexed(folder(tmp_path / "m"), ["b.safetensors", "a.safetensors"])
    (path / "model.safetensors").unlink()
    shards = (write(path / "a.safetensors", SMALL), write(path / "b.safetensors", SMALL))
    for start in (path, *shards):
        found = used(start)
        assert (found.kind, found.format, found.files) == ("model", "safetensors", shards)
        assert (found.facts.parameters, found.facts.name) == (22, "m")
    shards[1].unlink()
    assert "misses b.safetensors" in refused(path).message


def test_a_peft_folder_and_its_weights(tmp_path):
    write(tmp_path / "adapter_config.json", json.dumps({"r": 8, "base_model_name_or_path": "b"}).encode())
    path = write(tmp_path / "adapter_model.safetensors", SMALL)
    for start in (tmp_path, path):
        found = used(start)
        assert (found.kind, found.files, found.facts.base_model) == ("adapter", (path,), "b")


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_quantized_safetensors_folder_is_a_model_that_cannot_run(tmp_path, method):
    found = refused(folder(tmp_path, {"quantization_config": {"quant_method": method}}))
    assert f"quantized with {method.upper()}, which llama.cpp does not run" in found.message
    assert found.is_model


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    return content.getvalue()


class Bomb:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 4200000000\n"
MODELS_FROM_ELSEWHERE = {
    "Git LFS pointer, not the file itself (4,200,000,000 bytes, sha256:abababababab)": POINTER,
    "Xet pointer": b"# xet version 0\nfilesize = 9\nhash = 'ab'\n",
    "PyTorch checkpoint": zipped("archive/data.pkl", "archive/data/0"),
    "Python pickle": pickle.dumps({"a": 1}),
    "ONNX": b"\x08\x08\x12\x07pytorch\x1a\x032.1" + bytes(90),
    "TensorRT": b"ftrt" + bytes(90),
    "old GGML": b"lmgg" + bytes(90),
    "old GGJT": b"tjgg" + bytes(90),
    "TensorFlow Lite": b"\x1c\0\0\0TFL3" + bytes(90),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(90),
    "importance matrix": make({"general.type": "imatrix"}, [("t", (32,), F32)]),
    "control vector": make({"general.architecture": "controlvector"}, [("t", (32,), F32)]),
    "big-endian GGUF": model(version=3 << 24),
    "truncated: 1 of": model(cut=1),
    "config.json that belongs to it": SMALL,
}
NO_MODELS = {
    "HTML page": b"\n <!DOCTYPE html><html><title>Sign in</title>",
    "an HTML page": b"<HTML>\n",
    "JSON file": b' {"error": "Repository not found"}',
    "text file (Entry not found)": b"Entry not found",
    "zip archive": zipped("a.txt"),
    "tar archive": tarred(),
    "gzip archive": b"\x1f\x8b\x08" + bytes(90),
    "zstd archive": b"\x28\xb5\x2f\xfd" + bytes(90),
    "an empty file": b"",
    "saved session of llama.cpp": b"nsgg" + bytes(90),
    "begin with nothing but zeros": bytes(9000),
    "no model file": b"\x01\x02\x00\x03" * 90,
    "is no model file": b"{\0\0\0" * 90,
}


@pytest.mark.parametrize(("what", "content"), MODELS_FROM_ELSEWHERE.items(), ids=MODELS_FROM_ELSEWHERE)
def test_a_model_that_cannot_run_here_is_named_for_what_it_is(tmp_path, what, content):
    found = refused(write(tmp_path / "m.gguf", content))
    assert what in found.message
    assert found.is_model
    assert isinstance(found.error(), UnsupportedModel)


@pytest.mark.parametrize(("what", "content"), NO_MODELS.items(), ids=NO_MODELS)
def test_a_file_that_is_no_model_is_named_for_what_it_is(tmp_path, what, content):
    found = refused(write(tmp_path / "m.gguf", content))
    assert what in found.message
    assert not found.is_model


@pytest.mark.parametrize("what", ["Git LFS pointer", "PyTorch checkpoint", "ONNX", "TensorRT", "old GGML"])
def test_a_folder_of_what_cannot_run_says_so(tmp_path, what):
    content = next(content for name, content in MODELS_FROM_ELSEWHERE.items() if name.startswith(what))
    write(tmp_path / "README.md", b"# A model")
    write(tmp_path / "config.json", b"{}")
    write(tmp_path / "model", content)
    assert what in refused(tmp_path).message
    assert refused(tmp_path).is_model


def test_pointers_in_the_place_of_shards_are_named(tmp_path):
    write(folder(tmp_path) / "model.safetensors", POINTER)
    assert "model.safetensors is a Git LFS pointer" in refused(tmp_path).message


def test_an_adapter_without_its_configuration_is_no_model(tmp_path):
    (folder(tmp_path) / "model.safetensors").rename(tmp_path / "adapter_model.safetensors")
    assert refused(tmp_path).what == "a folder without a model"


def test_a_pickle_is_never_loaded(tmp_path):
    mark = tmp_path / "mark"
    content = pickle.dumps(Bomb(mark))
    pickle.loads(content)
    mark.unlink()  # so it would have worked
    for name in ("pytorch_model.bin", "model.pt", "adapter_model.bin"):
        assert "never loaded" in refused(write(tmp_path / name, content)).hint
    assert "never loaded" in refused(tmp_path).hint
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.engine", "rank0.plan"])
def test_an_engine_without_a_known_beginning_is_told_by_its_name(tmp_path, name):
    assert "TensorRT engine" in refused(write(tmp_path / name, b"\x99\0\x01" * 99)).message


@pytest.mark.parametrize("length", [b"\x08\x12\x12\0", b"BZh\0", b"\x80\x02\0\0", b"MZ\0\0", b"\x1f\x8b\0\0"])
def test_a_safetensors_length_that_looks_like_another_format_is_a_length(tmp_path, length):
    size = int.from_bytes(length, "little")
    text = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode().ljust(size)
    write(folder(tmp_path) / "model.safetensors", struct.pack("<Q", size) + text + b"x")
    assert used(tmp_path).facts.parameters == 1


def test_a_folder_without_a_model(tmp_path):
    write(tmp_path / "notes.txt", b"hello")
    found = refused(tmp_path)
    assert (found.what, found.is_model) == ("a folder without a model", False)


def test_what_is_not_there_or_may_not_be_read_has_its_own_exit_code(tmp_path):
    assert isinstance(refused(tmp_path / "nothing").error(), NotFound)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert isinstance(refused(tmp_path / "loop").error(), DiskError)
    assert isinstance(refused(tmp_path / ("x" * 300)).error(), DiskError)


@pytest.mark.timeout(10)
def test_pipes_devices_and_sockets_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "pipe.gguf", Path("/dev/zero"), tmp_path / "socket"):
            assert refused(path).what == "a device, pipe or socket"
    assert refused(tmp_path).what == "a folder without a model"


@pytest.mark.timeout(10)
def test_a_folder_is_searched_only_so_far(tmp_path):
    for number in range(40):
        for other in range(40):
            write(tmp_path / "wide" / f"{number:02}" / f"{other}.txt", b"")
    for beyond in ("wide/99/model.gguf", "deep/1/2/3/model.gguf", "elsewhere/model.gguf"):
        write(tmp_path / beyond, model())
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "again").symlink_to(tmp_path / "links")
    (tmp_path / "links" / "elsewhere").symlink_to(tmp_path / "elsewhere")
    for name in ("wide", "deep", "links"):
        assert refused(tmp_path / name).what == "a folder without a model"


@settings(max_examples=300, deadline=2000)
@given(
    st.sampled_from([SMALL, model(), POINTER, zipped("a"), b""]), st.integers(0, 200), st.binary(max_size=99)
)
def test_any_file_gets_an_answer(tmp_path_factory, content, at, put):
    path = write(tmp_path_factory.getbasetemp() / "any", content[:at] + put + content[at + len(put) :])
    found = identify(path)
    assert isinstance(found, Weights) or found.hint
