import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdl.filename import quantization_of, role, split_of


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-2-7b-chat.Q4_K_M.gguf", "Q4_K_M"),
        ("Qwen3-0.6B-Q8_0.gguf", "Q8_0"),
        ("qwen2.5-7b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("model-q4-k-m.gguf", "Q4_K_M"),
        ("model.q5.k.s.gguf", "Q5_K_S"),
        ("Meta-Llama-3-8B-IQ2_XXS.gguf", "IQ2_XXS"),
        ("m-IQ1_S.gguf", "IQ1_S"),
        ("m-iq4_nl.gguf", "IQ4_NL"),
        ("m-IQ4_KSS.gguf", "IQ4_KSS"),
        ("m-IQ4_K_R4.gguf", "IQ4_K_R4"),
        ("gemma-3-4b-it-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("DeepSeek-R1-UD-IQ1_S-00001-of-00003.gguf", "UD-IQ1_S"),
        ("Model.i1-Q4_K_M.gguf", "I1-Q4_K_M"),
        ("m-Q6_K_L.gguf", "Q6_K_L"),
        ("m-Q2_K.gguf", "Q2_K"),
        ("m-Q3_K_XL.gguf", "Q3_K_XL"),
        ("m.Q4_0_4_4.gguf", "Q4_0_4_4"),
        ("m-IQ4_NL_8_8.gguf", "IQ4_NL_8_8"),
        ("m-TQ1_0.gguf", "TQ1_0"),
        ("m-Q1_0.gguf", "Q1_0"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("m-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("m-NVFP4.gguf", "NVFP4"),
        ("m-BF16.gguf", "BF16"),
        ("m.f16.gguf", "F16"),
        ("qwen2.5-0.5b-instruct-fp16.gguf", "F16"),
        ("m-F32.GGUF", "F32"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4"),
        ("m.f16.q4_k.gguf", "Q4_K"),
        ("m-Q4_K_M-imat.gguf", "Q4_K_M"),
        ("Q4_K_M/model-00001-of-00002.gguf", "Q4_K_M"),
        ("BF16/GLM-4.5-BF16-00001-of-00005.gguf", "BF16"),
        ("UD-Q2_K_XL/sub/model.gguf", "UD-Q2_K_XL"),
        ("Q8_0/model-Q4_0.gguf", "Q4_0"),
        ("mmproj-model-f16.gguf", "F16"),
        ("Q4_K_M", "Q4_K_M"),
        ("llama-2-7b.gguf", None),
        ("model.gguf", None),
        ("xQ4_K_Mx.gguf", None),
        ("Q9_K.gguf", None),
        ("q4-in-the-middle.gguf", None),
        ("MF16.gguf", None),
        ("", None),
    ],
)
def test_the_quantization_in_a_name(name, expected):
    assert quantization_of(name) == expected


@given(st.sampled_from(["Q4_K_M", "IQ3_XXS", "UD-Q5_K_XL", "BF16", "MXFP4_MOE", "TQ2_0", "Q4_0_8_8"]))
def test_a_quantization_names_itself_in_any_case_and_place(name):
    for text in (name.lower(), f"a-{name}.gguf", f"{name}/a.gguf", f"a.{name.lower()}-00001-of-00002.gguf"):
        assert quantization_of(text) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a-00001-of-00003.gguf", ("a", 1, 3)),
        ("Q4_K_M/a-b-00010-of-00010.GGUF", ("Q4_K_M/a-b", 10, 10)),
        ("a-1-of-3.gguf", None),
        ("a-00004-of-00003.gguf", None),
        ("a-00000-of-00003.gguf", None),
        ("a-00001-of-00003.safetensors", None),
        ("a-00001-of-00003.gguf.part", None),
        ("-00001-of-00003.gguf", None),
        ("a-０0001-of-00003.gguf", None),
        ("a.gguf", None),
    ],
)
def test_the_parts_of_a_split(name, expected):
    assert split_of(name) == expected


ROLES = {
    "weights": "m-Q4_K_M.gguf model.safetensors model-00001-of-00002.safetensors alpaca-lora-7b.Q4_0.gguf "
    "Q8_0/m-00002-of-00002.gguf",
    "projector": "mmproj-F16.gguf mmproj.gguf gemma-3-4b-mmproj-f16.gguf m.mmproj-Q8_0.gguf "
    "sub/mmproj-model.gguf",
    "adapter": "adapter_config.json adapter_model.safetensors pirate-lora.gguf LoRA-Qwen2.5-f16.gguf "
    "m-lora-Q8_0.gguf adapter.gguf",
    "config": "config.json generation_config.json model.safetensors.index.json preprocessor_config.json",
    "tokenizer": "tokenizer.json tokenizer.model tokenizer_config.json merges.txt vocab.json",
    "template": "chat_template.jinja sub/chat_template.json tool.jinja template",
    "license": "LICENSE LICENSE.txt license.md LICENCE COPYING NOTICE USE_POLICY.md",
    "readme": "README.md readme README.txt",
    "other": "imatrix.gguf m-imatrix.gguf m.imatrix.gguf imatrix.dat pytorch_model.bin model.pt model.onnx "
    ".gitattributes licensed.bin readmeplease",
}


@pytest.mark.parametrize(
    ("name", "expected"), [(name, role) for role, names in ROLES.items() for name in names.split()]
)
def test_the_role_of_a_file(name, expected):
    assert role(name) == expected


@given(st.text(max_size=200))
def test_any_text_can_be_asked_for(name):
    assert role(name) in ROLES
    assert split_of(name) is None or name.lower().endswith(".gguf")
    assert (quantization_of(name) or "").isupper() or quantization_of(name) is None
