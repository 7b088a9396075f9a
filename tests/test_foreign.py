"""Profiles of other tools: Ollama's Modelfile and LocalAI's YAML, whatever they hold."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import Mdl, command
from hypothesis import given
from hypothesis import strategies as st
from serving import DEMO

from mdl import foreign
from mdl.errors import MdlError, UsageError
from mdl.profiletext import parse, text

QUESTION = "What is the capital of France?"
LOUD = "THE CAPITAL OF FRANCE IS PARIS."
CHATML = """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}<|im_start|>user
{{ .Prompt }}<|im_end|>
<|im_start|>assistant
"""
MODELFILE = f'''# made by hand
FROM ./demo.gguf
PARAMETER temperature 0
parameter num_ctx 1024
PARAMETER stop "<|im_end|>"
PARAMETER stop User:
PARAMETER num_keep 4
SYSTEM "Answer in uppercase."
TEMPLATE """{CHATML}"""
LICENSE """
MIT
"""
'''
YAML = """
name: gpt-4
description: of LocalAI
context_size: "1024"   # as a text
threads: 2
f16: true
backend: llama-cpp
parameters:
  model: demo.gguf
  temperature: 0
  top_k: "40"
stopwords: ["<|im_end|>", "User:"]
system_prompt: Answer in uppercase.
template:
  completion: "Q: {{.Input}}"
  chat: a-file-beside
  use_tokenizer_template: true
roles: {}
"""


@pytest.fixture
def mdl(tmp_path: Path) -> Mdl:
    return command(tmp_path)


def written(tmp_path: Path, name: str, content: str) -> Path:
    shutil.copy(DEMO, tmp_path / "demo.gguf")
    (tmp_path / name).write_text(content)
    return tmp_path / name


def test_a_modelfile_becomes_a_profile_that_answers(mdl: Mdl, tmp_path: Path) -> None:
    path = written(tmp_path, "Modelfile", MODELFILE)
    done = mdl("profile", "import", str(path), "shouting")
    assert done.returncode == 0, done.stderr
    assert "num_keep has no place in a profile" in done.stderr
    assert mdl("profile", "check").returncode == 0
    assert mdl("chat", "shouting", QUESTION).stdout.strip() == LOUD
    found = json.loads(mdl("profile", "show", "shouting", "--json").stdout)
    assert (found["settings"], found["stop"]) == ({"context": 1024}, ["<|im_end|>", "User:"])
    assert found["models"] == [str(tmp_path / "demo.gguf")]


def test_a_yaml_of_local_ai_becomes_a_profile_that_answers(mdl: Mdl, tmp_path: Path) -> None:
    path = written(tmp_path, "loud.yaml", YAML)
    done = mdl("profile", "import", str(path), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert Path(document["path"]).name == "gpt-4.toml"
    assert any("template.chat" in note for note in document["notes"])
    assert mdl("chat", "gpt-4", QUESTION).stdout.strip() == LOUD
    found = json.loads(mdl("profile", "show", "gpt-4", "--json").stdout)
    assert found["settings"] == {"context": 1024, "threads": 2}
    assert (found["parameters"], found["completion_template"]) == (
        {"temperature": 0.0, "top_k": 40},
        "Q: {{ prompt }}",
    )


def test_the_folder_of_a_modelfile_names_it(mdl: Mdl, tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    written(folder, "Modelfile", "FROM ./demo.gguf")
    assert Path(mdl("profile", "import", str(folder)).stdout.strip()).name == "my-model.toml"
    assert mdl("profile", "import", str(folder)).returncode == 2  # is there already
    assert mdl("profile", "import", str(folder), "--force").returncode == 0


@pytest.mark.parametrize(
    ("given_", "reference"),
    [
        ("mistral:7b", "ollama://mistral:7b"),
        ("me/mine", "ollama://me/mine"),
        ("hf.co/org/name:Q8_0", "hf.co/org/name:Q8_0"),
        ("registry.example.org/a/b:1", "registry.example.org/a/b:1"),
        ("./x.gguf", "./x.gguf"),
        ("x.gguf", "./x.gguf"),
        ("/models/x", "/models/x"),
        ('"~/x y.gguf"', "~/x y.gguf"),
    ],
)
def test_from_names_a_model_as_ollama_does(given_: str, reference: str) -> None:
    assert foreign.modelfile(f"FROM {given_}").fields["models"] == [reference]


@pytest.mark.parametrize(
    ("model", "reference"),
    [
        ("x.gguf", "./x.gguf"),
        ("a/b.gguf", "./a/b.gguf"),
        ("huggingface://org/name/file.gguf", "hf://org/name:file.gguf"),
        ("hf://org/name", "hf://org/name"),
        ("ollama://gemma:2b", "ollama://gemma:2b"),
        ("https://x.org/a.gguf", "https://x.org/a.gguf"),
    ],
)
def test_local_ai_names_a_model_by_scheme_or_file(model: str, reference: str) -> None:
    found = foreign.local_ai(f"parameters: {{ model: '{model}' }}")
    assert found.fields["models"] == [reference]
    parse(text(found.fields), "a", "a", Path("/x"))


def test_texts_of_a_modelfile_may_have_several_lines_and_either_quote() -> None:
    found = foreign.modelfile(
        'FROM x\r\nSYSTEM """a\n# b\n\nFROM c"""\nMESSAGE user """x\ny"""\nMESSAGE assistant "z\nw"\n'
    )
    assert found.fields["system"] == "a\n# b\n\nFROM c"
    assert [message["content"] for message in found.fields["messages"]] == ["x\ny", "z\nw"]


def test_words_of_a_modelfile_may_be_apart_by_tabs_and_lines_end_where_ollama_ends_them() -> None:
    found = foreign.modelfile(
        'FROM\tx\nPARAMETER\t temperature\t0.5\nPARAMETER stop  "a\tb"\nSYSTEM "a\u2028b\x0c"\n'
    )
    assert found.fields["models"] == ["ollama://x"]
    assert (found.fields["parameters"], found.fields["stop"]) == ({"temperature": 0.5}, ["a\tb"])
    assert found.fields["system"] == "a\u2028b\x0c"


def test_what_is_left_empty_in_a_yaml_says_nothing() -> None:
    empty = "name:\nsystem_prompt:\ntemplate:\nparameters: { top_k: }\nroles: { user: }\nstopwords: [~, a]"
    found = foreign.local_ai(empty)
    assert (found.fields, found.notes) == ({"stop": ["a"]}, [])


def test_an_adapter_is_a_path_beside(tmp_path: Path) -> None:
    found = foreign.modelfile("FROM x\nADAPTER ./lora.gguf\nADAPTER other.gguf")
    fields = foreign.beside(found.fields, tmp_path)
    assert fields["adapters"] == [str(tmp_path / "lora.gguf"), str(tmp_path / "other.gguf")]


def test_a_template_that_cannot_be_followed_is_left_out_and_said() -> None:
    found = foreign.modelfile('FROM x\nTEMPLATE "{{ .Prompt | slice 1 }} {{ foo }}"')
    assert "chat_template" not in found.fields
    assert found.notes[0].startswith("the template is left out: ")


def test_roles_become_prefixes() -> None:
    found = foreign.local_ai("roles: { user: 'User:', assistant: 'Bot:', function: 'F' }")
    assert found.fields["prefixes"] == {"user": "User: ", "assistant": "Bot: "}
    assert found.notes == ["roles.function has no place in a profile"]


@pytest.mark.parametrize(
    ("content", "name", "cause"),
    [
        ("FROM x\nFORM y", "Modelfile", "line 2: FORM is no instruction"),
        ("SYSTEM x", "Modelfile", "neither a Modelfile"),
        ('FROM x\nSYSTEM """never', "Modelfile", 'line 2: the """ is not closed'),
        ("FROM x\nMESSAGE robot hi", "Modelfile", "line 2: MESSAGE has no role robot"),
        ("FROM x\n" + "SYSTEM y\n" * 10_001, "Modelfile", "more than 10,000 instructions"),
        ("a: [", "x.yaml", "line 1: no YAML"),
        ("a: 1\nname: 0b" + "1" * 20_000, "x.yaml", "line 2: a number with too many digits"),
        ("name: { a: b }", "x.yaml", "name of the YAML is no text"),
        ("parameters: { model: [a] }", "x.yaml", "parameters.model of the YAML is no text"),
        ("stopwords: { a: b }", "x.yaml", "stopwords of the YAML is no text"),
        ("- 1", "x.yaml", "no table"),
        ("parameters: 3", "x.yaml", "parameters of the YAML"),
        ("template: 3", "x.yaml", "template of the YAML"),
        ("roles: 3", "x.yaml", "roles of the YAML"),
        ("a: !!python/object/apply:os.system ['true']", "x.yaml", "no YAML"),
        ("a: " + "[" * 5000, "x.yaml", "YAML"),
        ("a: &a [x]\n" + "".join(f"k{n}: &k{n} [*{p},*{p},*{p},*{p}]\n" for n, p in enumerate(
            ["a", *(f"k{n}" for n in range(18))])), "x.yaml", "10,000 values"),
        ("a: &a [*a]", "x.yaml", "deeper than 20"),
        ("x", "notes.txt", "neither a Modelfile"),
    ],
)  # fmt: skip
def test_what_is_none_is_refused_with_its_place(content: str, name: str, cause: str) -> None:
    with pytest.raises(UsageError) as refused:
        foreign.read(content, name)
    assert cause in refused.value.message


@given(st.text(), st.sampled_from(["Modelfile", "x.yaml"]))
def test_whatever_a_file_holds_it_is_a_profile_or_an_error_of_ours(content: str, name: str) -> None:
    content = f"FROM x\n{content}" if name == "Modelfile" else content
    settle(content, name)


_PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())


@given(
    st.dictionaries(
        st.one_of(st.sampled_from(sorted(foreign._LOCAL_AI)), st.text()),
        st.one_of(_PLAIN, st.lists(_PLAIN), st.dictionaries(st.text(), _PLAIN)),
    )
)
def test_whatever_a_yaml_has_for_its_names(document: dict[str, Any]) -> None:
    settle(json.dumps(document), "x.yaml")


def settle(content: str, name: str) -> None:
    try:
        found = foreign.read(content, name)
        written = text(foreign.beside(found.fields, Path("/x")), found.notes)
    except MdlError as failure:
        assert "\n" not in failure.message
    else:
        parse(written, "a", "a", Path("/x"))
