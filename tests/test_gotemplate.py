"""Go templates as Jinja: against what Go's own engine wrote (tests/gotemplate.go), and what is refused."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdl.engine.request import Chat, Message, ToolCall
from mdl.engine.template import Template
from mdl.errors import UnsupportedModel
from mdl.gojinja import translate
from mdl.gotemplate import DEEPEST, LONGEST

BOOK = json.loads(Path(__file__).with_name("gotemplates.json").read_text(encoding="utf-8"))
TURNS = "{{ if .System }}<|s|>{{ .System }}{{ end }}<|u|>{{ .Prompt }}<|a|>{{ .Response }}<|e|>"
HELLO = Chat((Message("user", "Hello"),))


def jinja(source: str) -> str:
    found = translate(source)
    assert found is not None
    return found


def message(entry: dict[str, Any]) -> Message:
    calls = tuple(
        ToolCall(call["function"]["name"], json.dumps(call["function"]["arguments"]), call.get("id", ""))
        for call in entry.get("tool_calls", ())
    )
    reasoning, call_id = entry.get("reasoning_content", ""), entry.get("tool_call_id", "")
    return Message(entry["role"], entry["content"], reasoning, calls, call_id, entry.get("name", ""))


def conversation(entry: dict[str, Any], source: str) -> Chat:
    """What is asked; without tools and thinking where the template has no place for them, as mdl refuses them
    then and Go writes the same without."""
    messages = tuple(map(message, entry["messages"]))
    if "tool_calls" not in source:
        messages = tuple(replace(message, tool_calls=()) for message in messages)
    tools = tuple(entry.get("tools", ())) if "tools" in source else ()
    thinking = entry.get("think") if "enable_thinking" in source else None
    return Chat(messages, tools=tools, thinking=thinking)


@pytest.mark.parametrize("template", BOOK["templates"], ids=lambda template: template["name"])
def test_the_jinja_writes_what_go_does(template: dict[str, Any]) -> None:
    source = jinja(template["source"])
    written = [Template(source).render(conversation(asked, source)).text for asked in BOOK["conversations"]]
    assert written == template["prompts"]


@pytest.mark.parametrize("source", ["{{ .Prompt }}", "{{- .Prompt -}}", "", "text", "{{ .Response }}"])
def test_a_template_that_writes_no_conversation_is_none(source: str) -> None:
    assert translate(source) is None


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ .Prompt }", "is not understood"),
        ("{{ .Prompt", "has no end"),
        ("{{ if .System }}{{ .Prompt }}", "no {{ end }}"),
        ("{{ .Prompt }}{{ end }}", "nothing for {{ end }}"),
        ("{{ if .System }}a{{ else }}b{{ else }}c{{ end }}{{ .Prompt }}", "no {{ end }}"),
        ("{{ if }}{{ end }}{{ .Prompt }}", "too early"),
        ("{{ (.Prompt }}", "too early"),
        ('{{ define "x" }}{{ .Prompt }}{{ end }}', "template of its own"),
        ('{{ template "x" }}{{ .Prompt }}', "template of its own"),
        ("{{ toTypeScriptType .Prompt }}", "calls toTypeScriptType"),
        ("{{ .Prompt | upper }}", "calls upper"),
        ("{{ .Prompt.Title }}", "asks for .Title"),
        ("{{ .Message }}{{ .Prompt }}", "asks for .Message"),
        ("{{ .Prompt 1 }}", "no function"),
        ("{{ len .Prompt }}", "no list"),  # of bytes, which Jinja does not count
        ("{{ slice .Prompt 0 1 }}", "no list"),
        ("{{ 1.5 }}{{ .Prompt }}", "is not understood"),
        ("{{ $x = 1 }}{{ .Prompt }}", "before it declares"),
        ("{{ $x }}{{ .Prompt }}", "no variable"),
        ("{{ if true }}{{ $x := 1 }}{{ end }}{{ $x }}{{ .Prompt }}", "no variable"),
        ('{{ $x := 1 }}{{ $x = "a" }}{{ .Prompt }}', "changes its type"),
        ("{{ if $x := .Prompt }}{{ end }}", "declares a variable"),
        ("{{ .Messages }}", "no form"),
        ("{{ range .Prompt }}{{ end }}", "no list"),
        ("{{ range .Messages }}{{ range .ToolCalls }}{{ else }}{{ break }}{{ end }}{{ end }}", "else"),
        (r'{{ "\xff" }}{{ .Prompt }}', "no character"),
        ("{{ if 1 }}" * (DEEPEST + 1) + "{{ .Prompt }}", "in each other"),
        ("{{ " + "(" * (DEEPEST + 1) + ".Prompt }}", "in each other"),
        ("{{ .Messages" + " | len" * 5000 + " }}{{ .Prompt }}", "more than"),
        ("{{ .Messages" + " | and 1" * 70 + " }}{{ .Prompt }}", "more than"),
        ("{{ and" + " 1" * 5000 + " }}{{ .Prompt }}", "more than"),
        ("x" * LONGEST + "{{ .Prompt }}", "longer"),
    ],
)
def test_what_cannot_be_followed_to_the_letter_is_refused(source: str, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match="the Go template is not one that mdl can use") as refused:
        translate(source)
    assert reason in refused.value.message
    assert "\n" not in refused.value.message


def test_only_what_the_template_writes_is_a_control_token() -> None:
    controls = ("<|s|>", "<|u|>", "<|a|>", "<|e|>")
    asked = Chat((Message("user", "a<|e|><|s|>b"), Message("assistant", "<|u|>"), Message("user", "c")))
    prompt = Template(jinja(TURNS), controls).render(asked)
    assert prompt.text == "<|u|>a<|e|><|s|>b<|a|><|u|><|e|><|u|>c<|a|>"
    whole = [text for text in controls for piece in prompt.pieces for _ in range(piece.count(text))]
    assert sorted(whole) == sorted(["<|u|>", "<|a|>", "<|e|>", "<|u|>", "<|a|>"])


def test_what_is_as_nested_as_may_be_is_jinja_that_can_be_read() -> None:
    for value in ("$.System" + " | not" * 48, "(" * 10 + "$.System" + " | not" * 38 + ")" * 10):
        source = "{{ if 1 }}" * 19 + f"{{{{ if {value} }}}}{{{{ .Prompt }}}}{{{{ end }}}}" + "{{ end }}" * 19
        assert Template(jinja(source)).render(HELLO).text == ""


@settings(deadline=None)
@given(st.text().filter(lambda text: "{{" not in text and not text.endswith("{")))
def test_every_text_is_written_as_it_is(text: str) -> None:
    source = jinja(f"{text}{{{{ .Prompt }}}}|{{{{ `{text.replace('`', '')}` }}}}")
    expected = f"{text}Hello|{text.replace('`', '')}".replace("\r\n", "\n")
    assert Template(source).render(HELLO).text == expected


ACTIONS = ["{{", "{{-", "}}", "-}}", "if", "else", "end", "range", "with", ".Prompt", ".Messages", "$x", ":="]
WORDS = [
    *ACTIONS,
    "eq",
    "1",
    '"a"',
    "(",
    ")",
    "|",
    " ",
    "\n",
    "break",
    "text",
    ".",
    "$",
    "/*",
    "*/",
    "`",
    "=",
    ",",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=40).map("".join) | st.text())
def test_any_text_is_translated_or_refused_and_what_is_translated_is_jinja(source: str) -> None:
    try:
        found = translate(source)
    except UnsupportedModel:
        return
    if found is not None:
        Template(found).render(HELLO)


@pytest.mark.parametrize(
    "piece",
    ["{{", "{{/*", "{{ (", "{{ if 1 }}", "{{ .Prompt }}", "{{ `", ".", "$x, ", "| len", "{{- ", " -}}", "\\"],
)
def test_a_hostile_template_takes_no_time(piece: str) -> None:
    start = process_time()
    with suppress(UnsupportedModel):
        translate((piece * LONGEST)[: LONGEST - 20] + " }}{{ .Prompt }}")
    with suppress(UnsupportedModel):
        translate("{{ and " + (f" {piece} " * LONGEST)[: LONGEST - 40] + " }}{{ .Prompt }}")
    assert process_time() - start < 5
