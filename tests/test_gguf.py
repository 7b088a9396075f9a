import os
import random
import resource
import struct
from pathlib import Path
from typing import Any

import ggufmaker
import pytest
from ggufmaker import F16, F32, MODEL, Q8_0, make, model
from hypothesis import given, settings
from hypothesis import strategies as st

import mdl
from mdl import gguf, header
from mdl.errors import UnsupportedModel
from mdl.gguf import Array, NeedMore
from mdl.header import Adapter, Split, Tensor

DEMO = Path(mdl.__file__).parent / "models" / "mdl-demo-Q8_0.gguf"
SMALL = model({"tokenizer.ggml.tokens": ["a", "b"], "general.tags": ["x"], "llama.rope.freq_base": 1.5})


def facts(metadata: dict[str, Any], tensors: Any = (("token_embd.weight", (32, 2), F16),)) -> header.Facts:
    return gguf.facts(gguf.parse(make(metadata, tensors)))


def cause(content: bytes, size: int | None = None) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        gguf.parse(content, len(content) if size is None else size)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value.message


def test_the_facts_of_the_demo_model():
    found = gguf.facts(gguf.read(DEMO))
    assert found.chat_template is not None
    assert found.chat_template.startswith("{%- set ns = namespace(system='') -%}")
    assert found == header.Facts(
        kind="model",
        format="gguf",
        name="mdl-demo",
        architecture="llama",
        parameters=3_672_320,
        quantization="Q8_0",
        context_length=2048,
        embedding_length=256,
        layers=4,
        heads=4,
        kv_heads=2,
        vocabulary=2048,
        size_label="3.7M",
        license="MIT",
        tokenizer="gpt2",
        chat_template=found.chat_template,
    )


def written_by_the_package(path: Path) -> Path:
    """A file with every type of value, from the writer that converters use."""
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "qwen3")
    writer.add_context_length(40960)
    writer.add_custom_alignment(64)
    for number, add in enumerate(
        (
            writer.add_uint8,
            writer.add_int8,
            writer.add_uint16,
            writer.add_int16,
            writer.add_uint32,
            writer.add_int32,
        )
    ):
        add(f"test.{number}", number)
    writer.add_uint64("test.uint64", 1 << 40)
    writer.add_int64("test.int64", -(1 << 40))
    writer.add_float32("test.float32", 0.5)
    writer.add_float64("test.float64", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_array("test.texts", ["ä", "b\nc", "d"])
    writer.add_array("test.numbers", [1, 2, 3])
    writer.add_array("test.truths", [True, False])
    writer.add_tensor("one", np.ones((3, 5), dtype=np.float32))
    writer.add_tensor("two", np.ones((2, 3, 4), dtype=np.float16))
    writer.add_tensor("three", np.ones(7, dtype=np.int8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("source", ["the demo", "the package's writer"])
def test_agrees_with_the_reader_of_the_gguf_package(source, tmp_path):
    from gguf import GGUFReader

    path = DEMO if source == "the demo" else written_by_the_package(tmp_path / "made.gguf")
    found, expected = gguf.read(path), GGUFReader(path)
    fields = {
        name: field.contents() for name, field in expected.fields.items() if not name.startswith("GGUF.")
    }
    assert {name: whole(path, value) for name, value in found.metadata.items()} == fields
    tensors = [
        Tensor(t.name, tuple(int(n) for n in t.shape), t.tensor_type.name, int(t.data_offset), int(t.n_bytes))
        for t in expected.tensors
    ]
    assert [t._replace(offset=found.data_offset + t.offset) for t in found.tensors] == tensors


def whole(path: Path, value: gguf.Value) -> Any:
    return gguf.elements(path, value) if isinstance(value, Array) else value


def test_the_tables_are_those_of_the_gguf_package():
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

    known = {kind.value: (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType}
    assert known.items() <= gguf.TENSOR_TYPES.items()
    named = {kind.value: kind.name.partition("_")[2].removesuffix("_MOE") for kind in LlamaFileType}
    del named[1024]
    assert named.items() <= gguf.FILE_TYPES.items()


def test_a_prefix_cut_at_any_byte_asks_for_more_and_a_file_cut_there_is_refused():
    whole = gguf.parse(SMALL, len(SMALL))
    for cut in range(whole.data_offset):
        try:
            assert gguf.parse(SMALL[:cut], len(SMALL)) == whole
        except NeedMore as short:
            assert cut < short.n <= whole.data_offset
        assert cause(SMALL[:cut])
    for cut in range(whole.data_offset, len(SMALL)):
        assert gguf.parse(SMALL[:cut], len(SMALL)) == whole
        assert f"truncated: {len(SMALL) - cut:,} of {len(SMALL):,} bytes are missing" in cause(SMALL[:cut])


def test_giving_what_is_asked_for_leads_to_the_header():
    asked, prefix = 0, b""
    while True:
        try:
            found = gguf.parse(prefix)
            break
        except NeedMore as short:
            asked, prefix = asked + 1, SMALL[: short.n]
    assert found == gguf.parse(SMALL, len(SMALL))
    assert asked < 60


@pytest.mark.parametrize(
    ("content", "least"),
    [
        (make({"k": struct.pack("<IIQ", ggufmaker.ARRAY, ggufmaker.STRING, 100_000)}), 800_000),
        (make({}, key_count=4000), 52_000),
        (make({}, tensor_count=4000), 96_000),
    ],
)
def test_what_is_asked_for_is_enough_for_what_is_claimed(content, least):
    """So that a remote file takes few requests, and a lie about a small file is found at once."""
    with pytest.raises(NeedMore) as asked:
        gguf.parse(content)
    assert asked.value.n > least


def test_ten_thousand_mutations_of_a_real_header_are_read_or_refused_within_bounds():
    original = DEMO.read_bytes()
    size, end = len(original), gguf.read(DEMO).data_offset
    dice = random.Random(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for _ in range(10_000):
        content = bytearray(original[:end])
        for _ in range(dice.randint(1, 4)):
            mutate(content, dice)
        try:
            gguf.facts(gguf.parse(content, size))
        except UnsupportedModel as error:
            assert "\n" not in error.message
            refused += 1
        except NeedMore as short:
            assert len(content) < short.n <= size
    assert refused > 3000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024  # KiB


def mutate(content: bytearray, dice: random.Random) -> None:
    """One change, mostly where the structure is: the vocabulary in the middle is only text."""
    low, high = dice.choice([(0, 700), (len(content) - 2500, len(content)), (0, len(content))])
    at = dice.randrange(low, high - 8)
    match dice.randrange(4):
        case 0:
            content[at] ^= 1 << dice.randrange(8)
        case 1:
            content[at : at + 8] = struct.pack(
                "<Q", dice.choice([0, 1, 9, 2**31, 2**32, 2**62, 2**63, 2**64 - 1])
            )
        case 2:
            del content[at : at + dice.randint(1, 64)]
        case _:
            content[at:at] = dice.randbytes(dice.randint(1, 64))


@settings(max_examples=500, deadline=1000)
@given(st.integers(0, len(SMALL)), st.integers(0, 40), st.binary(max_size=40), st.booleans())
def test_whatever_stands_in_a_header_it_is_read_or_refused(at, gone, put, sized):
    content = SMALL[:at] + put + SMALL[at + gone :]
    try:
        gguf.facts(gguf.parse(content, len(content) if sized else None))
    except UnsupportedModel as error:
        assert "\n" not in error.message
    except NeedMore as short:
        assert not sized
        assert short.n > len(content)


LIE = 1 << 60
TEXT_LIE = struct.pack("<IQ", ggufmaker.STRING, LIE)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "header goes on past its end at 0 bytes"),
        (b"<!DOCTYPE html>" * 9, "not a GGUF file"),
        (b"lmgg" + bytes(60), "an old GGML file, from before GGUF"),
        (b"tjgg" + bytes(60), "an old GGJT file, from before GGUF"),
        (make(MODEL, version=1), "GGUF version 1, which is no longer read"),
        (make(MODEL, version=0), "GGUF version 0"),
        (make(MODEL, version=99), "GGUF version 99, which is not known"),
        (make(MODEL, version=3 << 24), "a big-endian GGUF file"),
        (make(MODEL, key_count=LIE), "metadata keys"),
        (make(MODEL, tensor_count=LIE), "tensors"),
        (make(MODEL, key_count=4000), "header goes on past its end"),
        (make(MODEL, tensor_count=4000), "header goes on past its end"),
        (make({"k": TEXT_LIE}), "claims a text of"),
        (make({"k": struct.pack("<IQ", ggufmaker.STRING, 1 << 20)}), "header goes on past its end"),
        (
            make({"k": struct.pack("<IIQ", ggufmaker.ARRAY, ggufmaker.STRING, LIE)}),
            "header goes on past its end",
        ),
        (
            make({"k": struct.pack("<IIQ", ggufmaker.ARRAY, ggufmaker.UINT64, LIE)}),
            "header goes on past its end",
        ),
        (
            make({"k": struct.pack("<IIQ", ggufmaker.ARRAY, ggufmaker.ARRAY, 1) + bytes(90)}),
            "array within an array",
        ),
        (make({"k": struct.pack("<IIQ", ggufmaker.ARRAY, 77, 1) + bytes(90)}), "unknown array"),
        (make({"k": struct.pack("<I", 77) + bytes(90)}), "a value of unknown type 77"),
        (make([("a.b", 1), ("a.b", 2)]), "the key 'a.b' twice"),
        (make([("a\nb", 1), ("a\nb", 2)]), "the key 'a b' twice"),
        (model({"general.alignment": 0}), "alignment is '0'"),
        (model({"general.alignment": 48}), "alignment is '48'"),
        (model({"general.alignment": "x\n" * 999}), "alignment is 'x x"),
        (make(MODEL, [("t", (1,) * 5, F32)]), "tensor 't' has 5 dimensions"),
        (make(MODEL, [("t", (4,), F32), ("t", (4,), F32)]), "the tensor 't' twice"),
        (make(MODEL, [("t", (31,), Q8_0)]), "impossible shape"),
    ],
)
def test_a_bad_file_is_refused_with_its_cause(content, expected):
    assert expected in cause(content)


def forged(shape: tuple[int, ...], kind: int, offset: int = 0) -> bytes:
    """A file with one tensor whose description is a lie."""
    head = make(MODEL, tensor_count=1) + ggufmaker.info("t", shape, kind, offset)
    return ggufmaker.padded(head, 32) + bytes(64)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (forged((1 << 40, 1 << 40), F32), "impossible shape"),
        (forged((1 << 40,), F32), "truncated: 4,398,046,511,040 of 4,398,046,511,"),
        (forged((4,), F32, offset=32), "tensor 't' is at 32 instead of 0"),
        (forged((4,), 999), "tensor 't' has the unknown type 999"),
        (forged((32,), 31), "its tensors are Q4_0_4_4, which llama.cpp no longer reads"),
    ],
)
def test_a_tensor_that_cannot_be_there_is_refused(content, expected):
    assert expected in cause(content)


def test_a_header_beyond_the_bound_is_refused_before_it_is_asked_for():
    content = make({"k": struct.pack("<IIQ", ggufmaker.ARRAY, ggufmaker.UINT64, 1 << 24)}) + bytes(64)
    assert "claims more than 64 MiB" in cause(content, size=1 << 40)


def test_short_arrays_are_kept_and_long_ones_read_when_asked(tmp_path):
    words = [f"word {number} ä" for number in range(100)]
    content = make({"texts": words, "numbers": list(range(513)), "few": words[:64], "layers": [2] * 512})
    (tmp_path / "file").write_bytes(content)
    metadata = gguf.read(tmp_path / "file").metadata
    assert metadata["few"] == words[:64]
    assert metadata["layers"] == [2] * 512
    texts, numbers = metadata["texts"], metadata["numbers"]
    assert isinstance(texts, Array)
    assert isinstance(numbers, Array)
    assert (texts.type, texts.count) == ("string", 100)
    assert (numbers.type, numbers.count, numbers.size) == ("uint32", 513, 4 * 513)
    assert gguf.elements(tmp_path / "file", texts) == words
    assert gguf.elements(tmp_path / "file", numbers) == list(range(513))


def test_an_array_that_is_gone_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(make({"texts": ["a word"] * 100}))
    array = gguf.read(tmp_path / "file").metadata["texts"]
    assert isinstance(array, Array)
    os.truncate(tmp_path / "file", 100)
    with pytest.raises(UnsupportedModel, match="past its end"):
        gguf.elements(tmp_path / "file", array)


def test_text_that_is_not_utf_8_is_shown_as_its_bytes():
    assert gguf.parse(make({"k": struct.pack("<IQ", 8, 2) + b"a\xff"})).metadata["k"] == "a\\xff"


def test_a_long_vocabulary_is_counted_beyond_the_first_read(tmp_path):
    content = make({**MODEL, **ggufmaker.vocabulary(40_000, 40_000)}, [("t", (32, 2), F16)])
    assert len(content) > header.FIRST_READ * 4
    (tmp_path / "file").write_bytes(content)
    found = gguf.facts(gguf.read(tmp_path / "file"))
    assert (found.vocabulary, found.chat_template, found.parameters) == (40_000, "{{ messages }}", 64)


def test_an_error_names_the_file(tmp_path):
    (tmp_path / "cut.gguf").write_bytes(model(cut=1))
    with pytest.raises(UnsupportedModel, match=r"cut\.gguf: truncated: 1 of"):
        gguf.read(tmp_path / "cut.gguf")


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * header.FIRST_READ))

    def shrinks(prefix: bytes, size: int) -> None:
        os.truncate(path, 10)
        raise NeedMore(size)

    with pytest.raises(UnsupportedModel, match="became shorter while it was read"):
        header.read(path, shrinks)


@pytest.mark.timeout(10)
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnsupportedModel, match="is not a regular file"):
        gguf.read(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("metadata", "tensors", "kind"),
    [
        (MODEL, True, "model"),
        ({**MODEL, "tokenizer.ggml.model": "gpt2"}, False, "vocabulary"),
        ({**MODEL, "tokenizer.ggml.model": "gpt2", "split.no": 0, "split.count": 2}, False, "model"),
        ({"general.architecture": "clip"}, True, "projector"),
        ({"general.architecture": "qwen2vl", "general.type": "mmproj"}, True, "projector"),
        ({"general.architecture": "llama", "general.type": "adapter"}, True, "adapter"),
        ({"general.type": "imatrix"}, True, "imatrix"),
        ({"general.architecture": "controlvector"}, True, "control-vector"),
        ({"general.type": ["model"]}, True, "model"),
    ],
)
def test_the_kind_of_a_file(metadata, tensors, kind):
    assert facts(metadata, [("t", (32,), F16)] if tensors else []).kind == kind


def test_the_facts_of_an_adapter():
    found = facts(
        {
            "general.architecture": "llama",
            "general.type": "adapter",
            "adapter.type": "lora",
            "adapter.lora.alpha": 16.0,
            "general.base_model.0.name": "Base",
        },
        [("blk.0.attn_q.weight.lora_a", (64, 8), F32), ("blk.0.attn_q.weight.lora_b", (8, 64), F32)],
    )
    assert (found.adapter, found.base_model, found.parameters) == (Adapter("lora", 8, 16.0), "Base", 1024)


def test_the_facts_of_a_projector_and_of_a_part():
    clip = {"general.architecture": "clip", "clip.has_vision_encoder": True, "clip.has_audio_encoder": False}
    assert facts(clip).projectors == ("vision",)
    assert facts({"split.no": 1, "split.count": 3}).split == Split(2, 3)
    assert facts({"split.no": 0, "split.count": 1}).split is None


@pytest.mark.parametrize(
    ("number", "expected"),
    [(15, "Q4_K_M"), (1024 + 15, "Q4_K_M"), (38, "MXFP4"), (9999, "F16"), ("x", "F16"), (None, "F16")],
)
def test_the_quantization_is_the_stated_one_else_that_of_most_weights(number, expected):
    stated = {} if number is None else {"general.file_type": number}
    tensors = [("a", (32,), F32), ("b", (64,), F16), ("c", (31,), F32)]
    assert facts({**MODEL, **stated}, tensors).quantization == expected


def test_a_number_for_each_layer_counts_as_its_largest():
    per_layer = {"llama.attention.head_count_kv": [0] * 40 + [8] * 40}
    assert facts({**MODEL, **per_layer}).kv_heads == 8


@pytest.mark.parametrize("value", ["2048", 1.5, True, ["a"], []])
def test_a_fact_of_the_wrong_type_is_unknown(value):
    found = facts({"general.architecture": "llama", "llama.context_length": value, "general.name": 7})
    assert found.context_length is None
    assert found.name is None


def test_texts_are_one_bounded_line():
    found = facts(
        {"general.name": "a\nb\t c" + "x" * 100_000, "general.license": " \n", "general.tags": ["y" * 999]}
    )
    assert found.name == ("a b c" + "x" * 1000)[: header.LONGEST_LINE]
    assert found.license is None
    assert found.tags == ("y" * header.LONGEST_LINE,)
