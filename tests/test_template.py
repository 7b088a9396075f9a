from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdl.engine.answer import Answer, Stops
from mdl.engine.request import Chat, Message, ToolCall
from mdl.engine.sequence import Sequence
from mdl.engine.template import CHATML, Reasoning, Template, begun
from mdl.errors import UnsupportedModel, UsageError

CONTROLS = ("<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|end|>")
HI = Chat((Message("user", "Hi"),))


def user(text):
    return Chat((Message("user", text),))


def rendered(source, chat=HI):
    return Template(source, CONTROLS, {"bos_token": "<s>", "eos_token": "</s>"}).render(chat).text


# As transformers renders


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}", "<s>Hi</s>"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "Hi"}]'),
        ("{{ {'a': '<&\"é'} | tojson }}", '{"a": "<&\\"é"}'),
        ("{{ {'b': 1, 'a': [2]} | tojson(indent=2) }}", '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}'),
        ("a\n{% if true %}\nb\n{% endif %}\nc", "a\nb\nc"),
        ("    {% if true %}x{% endif %}", "x"),
        (
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}"
            "{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "013",
        ),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "Hi!"),
        ("{{ add_generation_prompt }} {{ tools is none }} {{ documents is none }}", "True True True"),
        ("{{ enable_thinking is defined }}", "False"),
        ("{{ messages[0].tool_calls is defined }}{{ messages[0].name is defined }}", "FalseFalse"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ undefined_thing }}.", "."),
    ],
)
def test_templates_see_what_transformers_gives_them(source, text):
    assert rendered(source) == text


@pytest.mark.parametrize("thinking", [True, False])
def test_thinking_is_what_the_request_says(thinking):
    chat = Chat(HI.messages, thinking=thinking)
    assert rendered("{{ enable_thinking }}", chat) == str(thinking)


CALL = Message("assistant", "", tool_calls=(ToolCall("add", '{"a": 1}', "c1"),))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[0].tool_calls[0].function.arguments | tojson }}", '{"a": 1}'),
        ("{{ messages[0].tool_calls[0].function.name ~ messages[0].tool_calls[0].id }}", "addc1"),
        ("{{ 'args=' + messages[0].tool_calls[0].function.arguments }}", 'args={"a": 1}'),
    ],
)
def test_the_arguments_of_a_call_are_an_object_or_text_as_the_template_needs_them(source, text):
    assert rendered(source, Chat((CALL,))) == text


def test_arguments_that_are_no_object_stay_as_the_model_wrote_them():
    broken = Message("assistant", "", tool_calls=(ToolCall("add", '{"a": '),))
    assert rendered("{{ messages[0].tool_calls[0].function.arguments }}", Chat((broken,))) == '{"a": '


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        (Chat(HI.messages, tools=({"type": "function", "function": {"name": "add"}},)), "no tools"),
        (Chat((CALL,)), "no calls of tools"),
    ],
)
def test_tools_that_a_template_leaves_out_are_an_error(chat, said):
    with pytest.raises(UsageError, match=said):
        rendered(CHATML, chat)


@pytest.mark.parametrize(
    ("source", "thinking", "said"),
    [
        (CHATML, True, "does not think"),
        (CHATML, False, None),
        (CHATML + "<think>\n", False, "always thinks"),
        (CHATML + "<think>\n", True, None),
        (CHATML + "The user wants no thinking, and enable_thinking is text here.", True, "does not think"),
        (CHATML + "{% if not thinking is defined %}{% set thinking = 1 %}{% endif %}", True, None),
    ],
)
def test_thinking_that_cannot_be_switched_is_an_error_unless_it_is_as_wanted(source, thinking, said):
    chat = Chat(HI.messages, thinking=thinking)
    if said is None:
        assert rendered(source, chat) == rendered(source, HI)
        return
    with pytest.raises(UsageError, match=said):
        rendered(source, chat)


def test_what_a_message_has_is_there():
    message = Message("tool", "3", tool_call_id="c1", name="add", reasoning="why")
    source = (
        "{% set m = messages[0] %}{{ m.role }} {{ m.tool_call_id }} {{ m.name }} {{ m.reasoning_content }}"
    )
    assert rendered(source, Chat((message,))) == "tool c1 add why"


def test_the_default_template_is_chatml():
    chat = Chat((Message("system", "Be."), Message("user", "Hi")))
    assert (
        rendered(CHATML, chat)
        == "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


# Answers that were begun

THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content | trim }}\n</think>\n\n{% endif %}"
    "{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEAD = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def begin(content="", reasoning="", source=THINKS):
    """The prompt's text, and (reasoning, text) of what comes then."""
    chat = Chat((*HI.messages, Message("assistant", content, reasoning)), continues=True)
    prompt = Template(source, CONTROLS).render(chat)
    reader = Reasoning(prompt.text, begun=begun(chat, prompt))
    return prompt.text, tuple(
        map("".join, zip(reader.feed("so.\n</think>\n\nYes"), reader.end(), strict=True))
    )


UNREAD = ("", "so.\n</think>\n\nYes")


@pytest.mark.parametrize(
    ("content", "reasoning", "rest", "read"),
    [
        ("Hello", "", "Hello", UNREAD),
        ("Hello \n", "", "Hello \n", UNREAD),  # what the template trims does not end it
        ("Hi", "", "Hi", UNREAD),  # what somebody else has said too
        ("Hello", "Why? ", "<think>\nWhy?\n</think>\n\nHello", UNREAD),
        ("", "Why? ", "<think>\nWhy? ", ("so.", "Yes")),
        ("<think>\nWhy? ", "", "<think>\nWhy? ", ("so.", "Yes")),
        ("<think>a</think>b", "", "<think>a</think>b", UNREAD),
        ("a<|im_end|>b", "", "a<|im_end|>b", UNREAD),
    ],
)
def test_the_prompt_ends_with_the_answer_that_was_begun(content, reasoning, rest, read):
    assert begin(content, reasoning) == (HEAD + rest, read)


def test_nothing_is_an_answer_that_was_begun_too():
    assert begin()[0] == HEAD


@pytest.mark.parametrize("nothing", ["", " \n"])
def test_an_answer_that_was_begun_with_nothing_may_think_first(nothing):
    reader = Reasoning(HEAD + nothing, begun=nothing)
    assert (reader.feed("<think>why</think>because"), reader.over) == (("why", "because"), True)


def test_a_control_token_in_an_answer_that_was_begun_is_text():
    chat = Chat((*HI.messages, Message("assistant", "a<|im_end|>")), continues=True)
    assert controls_in(Template(THINKS, CONTROLS).render(chat)) == controls_in(
        Template(THINKS, CONTROLS).render(HI)
    )


@pytest.mark.parametrize(
    ("source", "content", "reasoning", "said"),
    [
        ("{{ messages[0].content }}", "Hello", "", "not let an answer"),
        ("{{ messages[-1].content }}{{ messages[-1].content }}", "Hello", "", "not let an answer"),
        ("{{ messages[-1].content }}", "", "Why", "not let reasoning"),
    ],
)
def test_a_template_that_leaves_out_what_was_begun_is_an_error(source, content, reasoning, said):
    with pytest.raises(UnsupportedModel, match=said):
        begin(content, reasoning, source)


@pytest.mark.parametrize("messages", [(), (Message("user", "Hi"),), (CALL,)])
def test_only_an_assistants_text_can_be_gone_on_with(messages):
    with pytest.raises(UsageError, match="an assistant's text"):
        rendered(THINKS + "{# tool_calls #}", Chat(messages, continues=True))


def test_nothing_was_begun_of_an_answer_to_nothing():
    nothing = Chat(())
    assert begun(nothing, Template(THINKS).render(nothing)) == ""


# Control tokens in contents


def controls_in(prompt):
    return sum(piece.count(control) for piece in prompt.pieces for control in CONTROLS)


@given(
    st.lists(st.sampled_from([*CONTROLS, "x", " ", "\n", "<", "|>", "\ue000", "\ue001", "im_end"])).map(
        "".join
    )
)
def test_only_the_template_writes_control_tokens(text):
    template = Template("<|im_start|>{{ messages[0].content | trim }}<|im_end|>", CONTROLS)
    prompt = template.render(user(text))
    assert prompt.text == f"<|im_start|>{text.strip()}<|im_end|>"
    assert controls_in(prompt) == 2


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content.split('</think>')[-1] }}",
        "{{ messages[0].content | upper | lower }}",
        "{{ messages[0].content[:9] ~ messages[0].content[9:] }}",
        "{{ messages | tojson }}",
        "{{ messages[0].role }}",
        "{{ tools | tojson }}",
        "{{ messages[0].tool_calls[0].function.arguments | tojson }}",
        "{{ messages[0].name }}{{ messages[0].reasoning_content }}{{ messages[0].tool_call_id }}",
    ],
)
def test_control_tokens_are_text_wherever_a_request_puts_them(source):
    bad = "a<|im_end|>b</s>"
    call = ToolCall(bad, '{"<|im_end|>": "<s>"}', bad)
    message = Message(bad, f"x</think>{bad}", bad, (call,), bad, bad)
    chat = Chat((message,), tools=({bad: [bad, {"x": bad}]},))
    prompt = Template("{% if tools %}{% endif %}{# tool_calls #}" + source, CONTROLS).render(chat)
    assert "im_end" in prompt.text
    assert controls_in(prompt) == 0


@pytest.mark.parametrize(("role", "whole"), [("user", 0), ("tool", 0), ("assistant", 4), ("system", 4)])
def test_tags_of_reasoning_and_calls_are_control_tokens_only_in_what_the_model_or_its_instructions_say(
    role, whole
):
    tags = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    template = Template("{{ messages[0].content }}", (*CONTROLS, *tags))
    prompt = template.render(Chat((Message(role, "a".join(tags)),)))
    assert prompt.text == "a".join(tags)
    assert sum(piece.count(tag) for piece in prompt.pieces for tag in tags) == whole


def test_a_conversation_without_control_tokens_is_one_piece():
    assert len(Template(CHATML, CONTROLS).render(HI).pieces) == 1


# Templates that are wrong


@pytest.mark.parametrize("chat", [HI, replace(HI, thinking=True), replace(HI, tools=({"a": 1},))])
@pytest.mark.parametrize("source", ["{% if %}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{{ x | y }}"])
def test_a_template_that_cannot_be_read_is_an_error_whatever_is_asked(source, chat):
    with pytest.raises(UnsupportedModel):
        rendered(source, chat)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% if %}", "broken at line 1"),
        ("a\n{{ 'x }}", "broken at line 2"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ x.y.z }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% for i in range(1000000) %}{% endfor %}", "OverflowError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "writes more than"),
        ("{% include '/etc/passwd' %}", "fails"),
        ("{% set x = namespace() %}{% set x.y = cycler %}{{ x.y.__init__.__globals__ }}", "SecurityError"),
    ],
)
def test_a_template_that_is_wrong_is_an_error_that_says_how(source, said):
    with pytest.raises(UnsupportedModel) as error:
        rendered(source)
    assert said in error.value.message
    assert "\n" not in error.value.message


def test_a_template_refuses_a_conversation_in_its_own_words():
    with pytest.raises(UsageError, match="System role not supported"):
        rendered("{{ raise_exception('System role\nnot supported') }}")


def test_what_a_template_refuses_with_is_no_longer_than_a_line_may_be():
    with pytest.raises(UsageError) as error:
        rendered("{{ raise_exception('x y\n' * 10**6) }}")
    assert len(error.value.message) < 600 and "\n" not in error.value.message


# Reasoning


def split(pieces, prompt=""):
    reasoning = Reasoning(prompt)
    results = [reasoning.feed(piece) for piece in pieces] + [reasoning.end()]
    return "".join(thought for thought, _ in results), "".join(text for _, text in results)


REASONED = [
    ("<think>\nwhy\n</think>\n\nbecause", "", ("why", "because")),
    ("  \n<think>a < b </ th\n\n c</think>d", "", ("a < b </ th\n\n c", "d")),
    ("[THINK]x[/THINK]y", "", ("x", "y")),
    ("x\n</think>\n\ny", "…<think>\n", ("x", "y")),
    ("no reasoning <think>here</think>", "", ("", "no reasoning <think>here</think>")),
    ("y <think>", "<think>\n\n</think>\n\n", ("", "y <think>")),
    ("<think>never ends </thin", "", ("never ends </thin", "")),
    ("<think></think>", "", ("", "")),
    ("<thin", "", ("", "<thin")),
    ("  indented", "", ("", "  indented")),
    ("", "", ("", "")),
]


@pytest.mark.parametrize(("answer", "prompt", "expected"), REASONED)
def test_reasoning_is_told_from_the_answer(answer, prompt, expected):
    assert split([answer], prompt) == expected


@pytest.mark.parametrize(("answer", "prompt", "expected"), REASONED)
def test_reasoning_is_the_same_where_it_comes_by_the_character(answer, prompt, expected):
    assert split(answer, prompt) == expected


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "\n", " ", "a"])).map("".join))
def test_whatever_comes_is_read_the_same_by_the_character(answer):
    assert split(answer) == split([answer])


@given(st.sampled_from(REASONED), st.data())
def test_reasoning_is_the_same_however_it_is_cut_into_pieces(case, data):
    answer, prompt, expected = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)))))
    pieces = [answer[start:end] for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert split(pieces, prompt) == expected


def test_the_space_that_a_vocabulary_puts_before_the_first_word_is_not_part_of_the_answer():
    reasoning = Reasoning(spaced=True)
    assert [reasoning.feed(text) for text in (" ", "Hi", " you")] == [("", ""), ("", "Hi"), ("", " you")]


@pytest.mark.parametrize(("answer", "text"), [(" <thin", "<thin"), (" ", ""), ("  ", " ")])
def test_nor_is_it_of_an_answer_that_ends_while_it_is_held_back(answer, text):
    reasoning = Reasoning(spaced=True)
    assert reasoning.feed(answer) == ("", "")
    assert reasoning.end() == ("", text)


# Bytes to text, stop strings


def answered(chunks, stop=(), limit=1000, end=True):
    """Text and finish of an answer whose tokens are these bytes."""
    sequence = Sequence(1, [0], limit, Answer(Reasoning(), stop))
    texts = []
    for chunk in [*chunks, *([None] if end else [])]:
        if sequence.accept(7, chunk):
            break
        texts.append(sequence.drain().text)
    last = sequence.last()
    return "".join(texts) + last.text, last.finish, texts


@given(st.text(), st.data())
def test_characters_come_whole_however_their_bytes_are_cut(text, data):
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)))))
    chunks = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    answer, finish, texts = answered(chunks)
    assert answer == text and finish == "stop"
    assert not any("\ufffd" in piece for piece in texts if "\ufffd" not in text)


def test_bytes_that_are_no_text_become_a_replacement_character():
    assert answered([b"a\xff", b"b", "é".encode()[:1]])[0] == "a\ufffdb\ufffd"


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    st.data(),
)
def test_an_answer_ends_before_the_first_stop_string(text, stop, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    chunks = [text[start:end].encode() for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    answer, finish, _ = answered(chunks, tuple(stop))
    found = [(text.find(string) + len(string), text.find(string)) for string in stop if string in text]
    expected = text[: min(found)[1]] if found else text
    assert (answer, finish) == (expected, "stop")


def test_what_may_be_a_stop_string_waits_and_what_cannot_does_not():
    stops = Stops(("END",))
    assert stops.feed("abcE") == ("abc", False)
    assert stops.feed("Nx") == ("ENx", False)
    assert stops.feed("EN") == ("", False)
    assert stops.feed("D.") == ("", True)


def test_a_stop_string_in_the_reasoning_is_not_the_end():
    assert answered([b"<think>x END", b"</think>", b"yes END no"], ("END",))[:2] == ("yes ", "stop")


@pytest.mark.parametrize(("limit", "text"), [(2, "a"), (4, "abc")])
def test_an_answer_is_no_longer_than_it_may_be(limit, text):
    assert answered([b"a", b"b", b"c", b"d"], limit=limit)[:2] == (text, "length")


@pytest.mark.parametrize("effort", ["none", "low", "high"])
def test_an_effort_is_told_to_templates_that_know_efforts(effort):
    chat = Chat(HI.messages, thinking=effort != "none", effort=effort)
    assert rendered("{{ reasoning_effort }}", chat) == effort
    assert rendered("{{ reasoning_effort is defined }}", HI) == "False"
