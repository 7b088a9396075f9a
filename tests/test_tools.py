import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdl.engine.answer import Answer
from mdl.engine.request import CallPiece
from mdl.engine.template import Reasoning
from mdl.engine.tools import FORMS, Calls, check, form_of, grammar
from mdl.errors import UnsupportedModel, UsageError

FORM = FORMS[0]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
WEATHER = ("get_weather", '{"city": "Paris"}')


def read(text, sizes=(), only_one=False, reasoning=None, stop=()):
    """Text, reasoning and calls of an answer that comes in pieces of these sizes, then in one."""
    answer = Answer(reasoning, stop, Calls(FORM, only_one, iter("abcdefghij").__next__))
    data, said, thought, pieces = text.encode(), "", "", []
    for size in (*sizes, len(data)):
        if answer.stopped:
            break
        answer.feed(data[:size])
        data = data[size:]
        text, reasoned, calls = answer.drain()
        said, thought, pieces = said + text, thought + reasoned, [*pieces, *calls]
    if not answer.stopped:
        answer.end()
    text, reasoned, calls = answer.drain()
    return said + text, thought + reasoned, put_together([*pieces, *calls])


def put_together(pieces):
    calls = {}
    for piece in pieces:
        name, arguments = calls.get(piece.index, ("", ""))
        assert bool(piece.id) == bool(piece.name) == (piece.index not in calls)
        calls[piece.index] = name + piece.name, arguments + piece.arguments
    assert list(calls) == list(range(len(calls)))
    return list(calls.values())


ANSWERS = [
    ("", "", []),
    ("Hello", "Hello", []),
    ("Hello \n", "Hello \n", []),
    (CALL, "", [WEATHER]),
    (f"\n{CALL}\n", "", [WEATHER]),
    (f"I look.\n\n{CALL}", "I look.", [WEATHER]),
    (f"{CALL}\n{CALL}", "", [WEATHER, WEATHER]),
    (f"{CALL}\nDone. ", "Done. ", [WEATHER]),
    (f"{CALL} then {CALL} end", "then end", [WEATHER, WEATHER]),
    ('<tool_call>{"name":"f","arguments":{}}</tool_call>', "", [("f", "{}")]),
    (
        '<tool_call>{"arguments": {"a": [1, {"b": "}"}]}, "name": "f"}</tool_call>',
        "",
        [("f", '{"a": [1, {"b": "}"}]}')],
    ),
    ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
    ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    (
        '<tool_call>{"name": "f", "arguments": {"t": "</tool_call> \\"}{\\\\"}}</tool_call>',
        "",
        [("f", '{"t": "</tool_call> \\"}{\\\\"}')],
    ),
    ('<tool_call>{"name": "Grüße", "arguments": {"s": "é"}}</tool_call>', "", [("Grüße", '{"s": "é"}')]),
    ('<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}")]),
    ('<tool_call>{"name": "\\u0066", "arguments": {}}</tool_call>', "", [("f", "{}")]),
    ('<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>', "", [("?", "{}")]),
    ('<tool_call>{"arguments": {"a": "\\ud800"}, "name": "f"}</tool_call>', "", [("f", '{"a": "?"}')]),
    # What a model has forgotten to close ends with the call.
    ('<tool_call>{"name": "f", "arguments": {"a": [1</tool_call> so', "so", [("f", '{"a": [1')]),
    ('<tool_call>{"name": "f", "arguments": {"a": <b </t}}</tool_call>', "", [("f", '{"a": <b </t}')]),
    # Not calls, after all: nothing is lost.
    ("a <tool_cal", "a <tool_cal", []),
    ("a <tool_call> b", "a <tool_call> b", []),
    ("<tool_call>hello</tool_call> you", "<tool_call>hello</tool_call> you", []),
    ('<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', []),
    *(
        (f"<tool_call>{broken}</tool_call>", f"<tool_call>{broken}</tool_call>", [])
        for broken in (
            "[]",
            '{"name": "", "arguments": {}}',
            '{"name": "a\\q", "arguments": {}}',
            '{"name": "a\nb", "arguments": {}}',
            '{"name": "a", "arguments": }',
            "[" * 3000,
        )
    ),
    (f"x <tool_call></tool_call>{CALL}", "x <tool_call></tool_call>", [WEATHER]),
    # Cut: what has been told stays.
    ('<tool_call>{"name": "f", "arguments": {"a": "b', "", [("f", '{"a": "b')]),
    ('<tool_call>{"name": "f", "argu', '<tool_call>{"name": "f", "argu', []),
    ('<tool_call>{"name": "f", "arguments": {}}', "", [("f", "{}")]),
]


@pytest.mark.parametrize(("text", "said", "calls"), ANSWERS)
def test_calls_are_told_from_text(text, said, calls):
    assert read(text) == (said, "", calls)


@given(st.sampled_from(ANSWERS), st.lists(st.integers(1, 9), max_size=80))
def test_however_an_answer_comes_in_pieces_it_is_the_same(answer, sizes):
    text, said, calls = answer
    assert read(text, sizes) == (said, "", calls)


@given(st.text(st.sampled_from('<>/{}":, \n\\atool_cnmergus1')), st.lists(st.integers(1, 5), max_size=60))
def test_whatever_comes_the_pieces_do_not_matter_and_no_text_is_lost(text, sizes):
    said, _, calls = read(text, sizes)
    assert (said, calls) == (read(text)[0], read(text)[2])
    if not calls:
        assert said == text


def test_arguments_come_while_they_are_written():
    calls = Calls(FORM, new_id=lambda: "id")
    pieces = []
    for character in CALL:
        pieces += calls.feed(character)[0]
    assert pieces[0] == CallPiece(0, "id", "get_weather")
    assert [piece.arguments for piece in pieces[1:]] == list('{"city": "Paris"}')


@pytest.mark.parametrize("sizes", [(), (1,) * 300])
def test_where_one_call_is_wanted_the_answer_ends_with_it(sizes):
    assert read(f"Well. {CALL}\n{CALL} and more", sizes, only_one=True) == ("Well.", "", [WEATHER])


def test_a_call_in_the_reasoning_is_reasoning_and_one_behind_it_is_a_call():
    text = f"<think>\nMaybe {CALL}?\n</think>\n\n{CALL}"
    assert read(text, (1,) * 300, reasoning=Reasoning()) == ("", f"Maybe {CALL}?", [WEATHER])


def test_stop_strings_are_looked_for_in_the_text_and_not_in_calls():
    assert read(f"{CALL}\nGo to Paris now", stop=("Paris",)) == ("Go to ", "", [WEATHER])


def test_the_form_of_a_model_is_told_from_its_template():
    assert form_of("{{ '<tool_call>' }} … {{ '</tool_call>' }}") is FORM
    assert form_of("{{ messages }}") is None


@pytest.mark.parametrize("other", ["<function=f>", "<arg_key>a</arg_key>"])
def test_what_others_write_between_the_same_tags_is_not_taken_for_it(other):
    assert form_of(f"{{{{ '<tool_call>{other}</tool_call>' }}}}") is None


def tool(name, parameters):
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_a_grammar_names_the_tool_of_which_the_schema_cannot_be_kept_to():
    with pytest.raises(UsageError, match=r"the tool add: .*#/type"):
        grammar(FORM, [tool("add", {"type": "number of kinds"})], "", True, ())


def test_what_cannot_be_held_to_a_call_is_refused():
    with pytest.raises(UnsupportedModel, match="how this model writes calls"):
        grammar(None, [tool("add", {})], "", True, ())
    with pytest.raises(UsageError, match="no tool 'sub'"):
        grammar(FORM, [tool("add", {})], "sub", True, ())


def test_a_tag_that_is_a_control_token_is_one_in_the_grammar():
    tools = [tool("add", {"type": "object"})]
    assert 'call: "<tool_call>" ' in grammar(FORM, tools, "", True, ()).text
    assert "call: <tool_call> " in grammar(FORM, tools, "", True, ("<tool_call>", "</tool_call>")).text


def test_names_are_quoted_in_a_grammar():
    name = 'a"b\\c\n'
    text = grammar(FORM, [tool(name, {"type": "object"})], "", False, ()).text
    [rule] = [line for line in text.splitlines() if line.startswith("tool_0")]
    head, _ = json.JSONDecoder().raw_decode(rule.removeprefix("tool_0: "))
    assert json.loads(f"{head}{{}}}}") == {"name": name, "arguments": {}}


@pytest.mark.parametrize(
    "bad", ["add", {}, {"function": "add"}, {"function": {"name": ""}}, tool("x" * 257, {})]
)
def test_a_tool_without_a_name_is_refused(bad):
    with pytest.raises(UsageError, match="has a name"):
        check([tool("add", {}), bad])


def test_two_tools_of_one_name_are_refused():
    with pytest.raises(UsageError, match="two tools have the name 'add'"):
        check([tool("add", {}), tool("sub", {}), tool("add", {})])
