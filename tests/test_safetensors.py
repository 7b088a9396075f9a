import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdl import safetensors
from mdl.errors import UnsupportedModel
from mdl.header import Adapter, Facts, NeedMore, Tensor

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 2048,
}


def made(header: Any, data: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def entry(shape: list[int], start: int = 0, kind: str = "F16", size: int = 2) -> dict[str, Any]:
    for length in shape:
        size *= length
    return {"dtype": kind, "shape": shape, "data_offsets": [start, start + size]}


SMALL = made({"__metadata__": {"format": "pt"}, "a": entry([4, 2]), "b": entry([3], 16, "F32", 4)}, 28)


def folder(path: Path, config: dict[str, Any] = CONFIG, **files: dict[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes(SMALL)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def facts(path: Path) -> Facts:
    return safetensors.facts(path, [safetensors.read(path / "model.safetensors")], path.name)


def cause(content: bytes) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        safetensors.parse(content, len(content))
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value.message


def test_the_tensors_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(SMALL)
    header = safetensors.read(tmp_path / "file")
    assert header.tensors == (Tensor("a", (4, 2), "F16", 0, 16), Tensor("b", (3,), "F32", 16, 12))
    assert header.metadata == {"format": "pt"}
    assert header.data_offset == len(SMALL) - 28


def test_a_prefix_cut_at_any_byte_asks_for_more_and_a_file_cut_there_is_refused():
    whole = safetensors.parse(SMALL, len(SMALL))
    for cut in range(len(SMALL)):
        try:
            assert safetensors.parse(SMALL[:cut], len(SMALL)) == whole
        except NeedMore as short:
            assert cut < short.n <= whole.data_offset
        assert cause(SMALL[:cut])
    assert "truncated: 1 of" in cause(SMALL[:-1])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x01", "shorter than its header"),
        (struct.pack("<Q", 1 << 60) + b"{}", "claims a header of"),
        (struct.pack("<Q", 17 << 20) + bytes(17 << 20), "claims a header of"),
        (made(b"{"), "a damaged safetensors file: "),
        (made(b"[]"), "its JSON is no object"),
        (made(b"[" * 100_000), "recursion"),
        (made(b'{"a":' * 100_000), "recursion"),
        (made(b'{"a": ' + b"9" * 5000 + b"}"), "a damaged safetensors file: "),
        (made(b'{"\xff": 1}'), "a damaged safetensors file: "),
        (made(b'{"a": {"dtype": "U8", "dtype": "F16"}}'), "a key stands there twice"),
        (made({"a": 1}), "tensor 'a' is not described as one"),
        (made({"a\nb": {**entry([1]), "dtype": 1}}), "tensor 'a b' is not described as one"),
        (made({"a": {**entry([1]), "data_offsets": [0]}}), "is not described as one"),
        (made({"a": entry([-4, -2])}, 16), "an impossible shape or place"),
        (made({"a": {**entry([1]), "shape": ["x"]}}, 2), "an impossible shape or place"),
        (made({"a": {**entry([1]), "shape": [True]}}, 2), "an impossible shape or place"),
        (made({"a": {**entry([1]), "data_offsets": [-2, 0]}}, 2), "an impossible shape or place"),
        (made({"a": {**entry([4]), "data_offsets": [8, 0]}}, 8), "which is not its type and shape"),
        (made({"a": {**entry([4]), "data_offsets": [0, 9]}}, 9), "which is not its type and shape"),
        (made({"a": {**entry([4]), "dtype": "X9"}}, 8), "which is not its type and shape"),
        (made({"a": entry([1] * 17)}, 2), "which is not its type and shape"),
        (made({"a": entry([1 << 40])}, 2), "truncated: 2,199,023,255,550 of"),
    ],
)
def test_a_bad_file_is_refused_with_its_cause(content, expected):
    assert expected in cause(content)


def test_elements_smaller_than_a_byte_are_counted_in_bits():
    content = made({"a": {"dtype": "F4", "shape": [3, 5], "data_offsets": [0, 8]}}, 8)
    assert safetensors.parse(content, len(content)).tensors[0].elements == 15


@settings(max_examples=500, deadline=1000)
@given(st.integers(0, len(SMALL)), st.integers(0, 30), st.binary(max_size=30), st.booleans())
def test_whatever_stands_in_a_header_it_is_read_or_refused(at, gone, put, sized):
    content = SMALL[:at] + put + SMALL[at + gone :]
    try:
        safetensors.parse(content, len(content) if sized else None)
    except UnsupportedModel as error:
        assert "\n" not in error.message
    except NeedMore as short:
        assert not sized
        assert short.n > len(content)


def test_the_facts_of_a_folder(tmp_path):
    path = folder(tmp_path / "tiny", tokenizer_config={"chat_template": "{{ a }}"})
    assert facts(path) == Facts(
        kind="model",
        format="safetensors",
        name="tiny",
        architecture="llama",
        parameters=11,
        quantization="F16",
        context_length=2048,
        embedding_length=64,
        layers=2,
        heads=4,
        kv_heads=2,
        vocabulary=100,
        chat_template="{{ a }}",
    )


def test_a_model_that_also_sees_is_described_by_its_text_part(tmp_path):
    config = {"model_type": "gemma3", "vision_config": {"hidden_size": 9}, "text_config": CONFIG}
    found = facts(folder(tmp_path, config))
    assert (found.architecture, found.embedding_length, found.projectors) == ("gemma3", 64, ("vision",))


@pytest.mark.parametrize(
    "config", [{}, {key: [{}] for key in CONFIG}, {**CONFIG, "text_config": 1}, {"x": float("inf")}]
)
def test_a_config_that_tells_little_gives_few_facts(tmp_path, config):
    assert facts(folder(tmp_path, config)).parameters == 11


def test_the_template_is_taken_from_its_own_file_first(tmp_path):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}, 7]
    path = folder(tmp_path, tokenizer_config={"chat_template": named})
    assert facts(path).chat_template == "D"
    (path / "chat_template.jinja").write_text("J")
    assert facts(path).chat_template == "J"


def test_texts_can_be_written(tmp_path):
    path = folder(tmp_path, {"model_type": "a\ud800"}, tokenizer_config={"chat_template": "\udfff{{ a }}"})
    assert (facts(path).architecture, facts(path).chat_template) == ("a?", "?{{ a }}")


def test_a_config_that_is_damaged_or_huge_is_refused(tmp_path):
    path = folder(tmp_path)
    (path / "config.json").write_bytes(b"{")
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        facts(path)
    (path / "config.json").write_bytes(b" " * ((16 << 20) + 1))
    with pytest.raises(UnsupportedModel, match="larger than 16 MiB"):
        facts(path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {}}, "an unknown method"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "mlx"),
    ],
)
def test_the_method_that_quantized_a_folder(tmp_path, config, expected):
    assert safetensors.quantizer(folder(tmp_path, config)) == expected


def test_gptq_is_also_told_by_the_file_that_its_first_tools_wrote(tmp_path):
    assert safetensors.quantizer(folder(tmp_path, quantize_config={"bits": 4})) == "gptq"


def indexed(path: Path, names: list[Any]) -> Path:
    path.mkdir(exist_ok=True)
    index = {"weight_map": {f"tensor{number}": name for number, name in enumerate(names)}}
    (path / safetensors.INDEX).write_text(json.dumps(index))
    return path


def test_the_shards_are_those_of_the_index(tmp_path):
    names = [
        "model-00002-of-00002.safetensors",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    path = indexed(tmp_path, names)
    (path / names[0]).write_bytes(SMALL)
    with pytest.raises(UnsupportedModel, match=r"misses model-00001-of-00002\.safetensors, which"):
        safetensors.shards(path)
    (path / names[1]).write_bytes(SMALL)
    assert [shard.name for shard in safetensors.shards(path)] == sorted(set(names))


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "C:x.safetensors", "x", 7]
)
def test_an_index_that_points_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(UnsupportedModel, match="names no weights"):
        safetensors.shards(indexed(tmp_path, [name]))


def test_the_facts_of_a_peft_adapter(tmp_path):
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": "org/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = safetensors.adapter_facts(tmp_path, safetensors.parse(SMALL, len(SMALL)), "pirate")
    assert found == Facts(
        kind="adapter",
        format="safetensors",
        name="pirate",
        parameters=11,
        quantization="F16",
        base_model="org/base",
        adapter=Adapter("lora", 8, 16.0),
    )
