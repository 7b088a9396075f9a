from collections.abc import Iterable, Sequence

import pytest

from mdl.errors import UnsupportedModel, UsageError
from mdl.variants import LARGEST_TEXT, ORDER, Choice, choose, labels

USUAL = ["README.md", "m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-F16.gguf"]
FOLDER = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def pick(names: Iterable[str], version: str | None = None, default: str = "main") -> Choice:
    choice = choose(dict.fromkeys(names, 100), version, default)
    assert choice is not None
    return choice


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (USUAL, "Q4_K_M"),
        (["m-Q8_0.gguf", "m-Q2_K.gguf"], "Q8_0"),
        (["m-Q4_K_S.gguf", "m-Q5_K_M.gguf"], "Q4_K_S"),
        (["m-Q6_K.gguf", "m-Q3_K_L.gguf"], "Q6_K"),
        (["m-F16.gguf", "m-BF16.gguf", "m-IQ1_S.gguf"], "IQ1_S"),
        (["m-UD-Q4_K_XL.gguf", "m-Q8_0.gguf"], "UD-Q4_K_XL"),
        (["m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf"], "Q4_K_M"),
        (["m.i1-Q4_K_M.gguf", "m.i1-IQ1_S.gguf", "m.imatrix.gguf"], "Q4_K_M"),
        (["whatever.gguf"], "whatever"),
        (["Q8_0/m.gguf", "Q4_K_M/m.gguf"], "Q4_K_M"),
        (["strange.gguf", "m-Q8_0.gguf"], "Q8_0"),
    ],
)
def test_without_a_version_the_documented_order_decides(names: list[str], chosen: str) -> None:
    assert pick(names).version == chosen
    assert pick(reversed(names)).version == chosen


def test_the_order_has_each_quantization_once_and_starts_with_the_usual_one() -> None:
    assert ORDER[0] == "Q4_K_M"
    assert len(set(ORDER)) == len(ORDER)


def test_the_choice_and_what_else_there_is_are_said() -> None:
    assert pick(USUAL).note == "Q4_K_M was chosen; there are also Q8_0, Q2_K, F16"
    assert pick(USUAL, "Q8_0").note == ""
    assert pick(["alone-Q8_0.gguf"]).note == ""


@pytest.mark.parametrize("version", ["Q8_0", "q8_0", "m-Q8_0.gguf", "m-Q8_0"])
def test_a_quantization_in_any_case_its_file_and_its_stem_are_one_version(version: str) -> None:
    choice = pick(USUAL, version)
    assert (choice.version, choice.files) == ("Q8_0", ("m-Q8_0.gguf", "README.md"))


@pytest.mark.parametrize(
    ("names", "version", "file"),
    [
        (["m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf"], "Q4_K_M", "m-Q4_K_M.gguf"),
        (["m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf"], "ud-q4_k_m", "m-UD-Q4_K_M.gguf"),
        (["m-UD-Q4_K_XL.gguf", "m-Q8_0.gguf"], "Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        (["m.i1-Q4_K_M.gguf"], "Q4_K_M", "m.i1-Q4_K_M.gguf"),
        (["m.i1-Q4_K_M.gguf"], "i1-q4_k_m", "m.i1-Q4_K_M.gguf"),
    ],
)
def test_an_exact_name_goes_before_an_abbreviated_one_and_keeps_its_spelling(
    names: list[str], version: str, file: str
) -> None:
    choice = pick(names, version)
    assert (choice.version, choice.files) == (version.upper(), (file,))


def test_what_may_be_several_files_is_an_error_that_lists_them() -> None:
    with pytest.raises(UsageError, match=r"7b-Q8_0.*13b-Q8_0|13b-Q8_0.*7b-Q8_0"):
        pick(["7b-Q8_0.gguf", "13b-Q8_0.gguf"], "Q8_0")
    with pytest.raises(UsageError, match="may be any of"):
        pick(["7b-Q8_0.gguf", "13b-Q8_0.gguf"])
    assert pick(["7b-Q8_0.gguf", "13b-Q8_0.gguf"], "7b-Q8_0").version == "7b-Q8_0"


def test_what_no_file_is_called_is_left_to_the_caller() -> None:
    for names in (USUAL, FOLDER):
        assert choose(dict.fromkeys(names, 100), "v1.0", "main") is None


def parts(stem: str, count: int, *, missing: Sequence[int] = ()) -> list[str]:
    return [f"{stem}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1) if n not in missing]


def test_a_split_file_is_one_version_with_all_its_parts_in_order() -> None:
    names = [*parts("BF16/m-BF16", 3), *parts("Q4_K_M/m-Q4_K_M", 2)]
    assert pick(reversed(names)).files == tuple(parts("Q4_K_M/m-Q4_K_M", 2))
    for version in ("BF16", "m-BF16", "BF16/m-BF16", "m-BF16-00002-of-00003.gguf"):
        assert pick(names, version).files == tuple(parts("BF16/m-BF16", 3))
        assert pick(names, version).version == "BF16"


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_part_that_is_missing_is_named(lost: int) -> None:
    with pytest.raises(UnsupportedModel, match=f"2 of 3 parts.*m-Q8_0-0000{lost}-of-00003.gguf.*missing"):
        pick(parts("m-Q8_0", 3, missing=[lost]))


def test_the_best_projector_comes_along_and_no_imatrix_and_no_other_quantization() -> None:
    names = ["imatrix.gguf", "m.imatrix.gguf", "mmproj-F32.gguf", "mmproj-BF16.gguf", *USUAL]
    assert pick(names, "Q8_0").files == ("m-Q8_0.gguf", "mmproj-BF16.gguf", "README.md")
    assert "mmproj-F16.gguf" in pick([*names, "mmproj-F16.gguf"], "Q8_0").files
    assert "mmproj-BF16.gguf" in pick(["mmproj-Q8_0.gguf", *names], "Q8_0").files
    assert pick(["mmproj-F16.gguf", "Q8_0/mmproj-F32.gguf", "Q8_0/m.gguf"]).files == (
        "Q8_0/m.gguf",
        "Q8_0/mmproj-F32.gguf",
    )


def test_licence_and_card_come_along_while_they_are_small() -> None:
    sizes = {
        "m-Q8_0.gguf": 1 << 40,
        "README.md": LARGEST_TEXT,
        "LICENSE": LARGEST_TEXT + 1,
        "docs/README.md": 1,
    }
    choice = choose(sizes, None, "main")
    assert choice is not None
    assert choice.files == ("m-Q8_0.gguf", "README.md")


def test_a_repository_of_adapters_in_gguf_is_their_versions() -> None:
    assert pick(["README.md", "lora-F16.gguf"]).files == ("lora-F16.gguf", "README.md")


def test_a_safetensors_repository_is_one_version_with_what_it_needs_and_no_weights_twice() -> None:
    also = ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "original/x.pth"]
    more = ["model.fp16.safetensors", "consolidated.safetensors", "evil.py", "chat_template.jinja", "LICENSE"]
    choice = pick([*FOLDER, *also, *more])
    assert sorted(choice.files) == sorted([*FOLDER, "chat_template.jinja", "LICENSE"])
    assert choice.version == "main"
    assert pick(FOLDER, default="v1.0").version == "v1.0"
    unusual = pick(["config.json", "consolidated.safetensors", "weights.safetensors"])
    assert unusual.files == ("weights.safetensors", "config.json")


def test_all_shards_come_with_their_index_and_one_that_is_missing_is_named() -> None:
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    rest = ["config.json", "model.safetensors.index.json", "consolidated.safetensors"]
    assert pick([*rest, *shards]).files == (*shards, "model.safetensors.index.json", "config.json")
    with pytest.raises(UnsupportedModel, match=r"model-00002-of-00003\.safetensors"):
        pick([*rest, shards[0], shards[2]])


def test_a_peft_adapter_is_recognised() -> None:
    names = ["adapter_config.json", "adapter_model.safetensors", "README.md", "optimizer.pt"]
    assert pick(names).files == tuple(names[:3])


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["config.json", "pytorch_model.bin"], "only PyTorch pickles"),
        (["config.json", "model.onnx"], "only ONNX weights"),
        (["config.json", "tf_model.h5"], "only Keras weights"),
        (["model_index.json", "unet/model.safetensors"], "a diffusers pipeline"),
        (["model.safetensors"], "safetensors without the config.json"),
        (["README.md"], "no GGUF files and no safetensors"),
        ([], "no GGUF files and no safetensors"),
    ],
)
def test_what_cannot_be_used_is_called_what_it_is(names: list[str], what: str) -> None:
    with pytest.raises(UnsupportedModel, match=what):
        pick(names)


def test_what_can_be_written_as_a_version_is_listed_best_first() -> None:
    assert labels([*USUAL, "mmproj-F16.gguf"]) == ["Q4_K_M", "Q8_0", "Q2_K", "F16"]
