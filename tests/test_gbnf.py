"""llama.cpp's grammars: what they allow is what is allowed, found out by trying all short texts."""

import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemas import CALL, END, allowed, of_bytes

from mdl.engine.gbnf import to_lark
from mdl.engine.grammar import Grammars
from mdl.engine.request import Format
from mdl.errors import UsageError

# As in llama.cpp's documentation
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws   # "any"
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    grammars = of_bytes()
    yield grammars
    grammars.close()


def accepts(grammars: Grammars, grammar: str, text: str) -> bool:
    constraint = grammars.constraint(Format("gbnf", grammar))
    for token in text.encode():
        if token not in allowed(constraint):
            return False
        constraint.accept(token)
    return END in allowed(constraint)


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (JSON, ['{"a": [1, -2.5e3, null], "b":{}}', '{"\\u00e9é": "\\n"\n  }'],
         ['{"a"}', "{'a': 1}", "[1]", '{"a":01}']),
        ('root ::= word "end"\nword ::= [a-z]+', ["abcend", "endend"], ["end", "abc"]),
        ('root ::= word "end" root?\nword ::= [a-z]+', ["abcend", "endend", "xendyend"], ["end", "abc"]),
        ('root ::= word "end" root?\nword ::= "x" [a-z]*', ["xabcend", "xendxend"], ["xen", "abcend"]),
        ('root ::= (x | y) "z" root?\nx ::= "ab"\ny ::= "abz"', ["abz", "abzz", "abzabzz"], ["ab", "abzzz"]),
        ('root ::= (x | "a") "bc" root?\nx ::= "ab"', ["abc", "abbc", "abcabbc"], ["ab", "abb"]),
        ('root ::= x "b" root?\nx ::= "a" | "ab"', ["ab", "abb", "abab"], ["a", "abbb"]),
        ('root ::= ("a" | "ab") "bc"', ["abc", "abbc"], ["ab", "abb"]),
        ("root ::= [^\\n\\]-]+ # a ] too", ["a^b", "é😀"], ["a\nb", "]", "-", ""]),
        ("root ::= [+-] [\\x41-\\u0042] .", ["+A\n", "-B😀"], ["+C.", "A."]),
        ('root ::= ("x"? [0-9]{2,3}\n | "y" {2}){1,2}', ["x12", "123yy", "1212"], ["1", "yyyyyy", "y"]),
        ("root ::= a-b | a_b\na-b ::= \"1\"\na_b ::= \"2\"", ["1", "2"], ["3"]),
        ("root ::= ", [""], ["a"]),
        ("root ::= root \"a\" | \"a\"", ["a", "aaa"], ["", "b"]),
    ],
)  # fmt: skip
def test_texts_are_told_apart(grammars: Grammars, grammar: str, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not accepts(grammars, grammar, text)] == []
    assert [text for text in bad if accepts(grammars, grammar, text)] == []


def test_control_tokens_can_be_named(grammars: Grammars) -> None:
    for name in ("<|call|>", f"<[{CALL}]>"):
        constraint = grammars.constraint(Format("gbnf", f'root ::= {name} "a"'))
        assert allowed(constraint) == {CALL}


def test_strings_of_json_are_words_and_numbers_are_not() -> None:
    words = re.findall(r"^W\d+: (.{9})", to_lark(JSON), re.MULTILINE)
    assert words[0] == r"(/[\x{22}"


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ('# rules\n"a"', "a rule begins with its name and ::=, in line 2"),
        ('root ::= "a"\nx y', "there is no rule 'x', in line 2"),
        ("root ::= a\n\nb ::= c", "there is no rule 'a', in line 1"),
        ('root ::= "a\nb"', "'\"' is not expected, in line 1"),
        ('root ::= ("a"\nb ::= "c"', "a ) is missing, in line 2"),
        ('root ::= "a")', "a rule begins with its name and ::=, in line 1"),
        ('root ::= *"a"', "'*' is not expected, in line 1"),
        ("root ::= [b-a]", "a range ends before it begins, in line 1"),
        ("root ::= []", "[] matches nothing, in line 1"),
        ('root ::= "\\q"', "\\q is no character, in line 1"),
        ('root ::= "\\x1"', "an escape is cut off, in line 1"),
        ('root ::= "\\ud800"', "\\ud800 is no character, in line 1"),
        ('root ::= "a"\nroot ::= "b"', "the rule 'root' is there twice, in line 2"),
        ('x ::= "a"', "a rule named root"),
        ("", "a rule named root"),
        ("root ::= " + "(" * 100 + ")" * 100, "too many parentheses in each other, in line 1"),
        ("root ::= root", "no answer"),
        ("root ::= <|nope|>", "special token"),
        ("root ::= !<|call|>", "'!' is not expected, in line 1"),
        ("\n".join(f"r{at} ::= r{at + 1}" for at in range(3000)), "there is no rule 'r3000', in line 3000"),
        ('root ::= "a"\n' + "\n".join(f"r{at} ::= root" for at in range(3000)), "at most 2000 rules"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(grammars: Grammars, grammar: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        grammars.constraint(Format("gbnf", grammar))
    assert why in caught.value.message


# Grammars by chance, of two letters: (kind, …) as they are written, and as they are followed

RULES = ("root", "x", "y")
NODES = st.recursive(
    st.one_of(st.sampled_from(['"a"', '"b"', '"ab"', "[ab]", "[^a]", '""']), st.sampled_from(RULES)),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(lambda items: ("row", *items)),
        st.lists(inner, min_size=2, max_size=3).map(lambda items: ("choice", *items)),
        st.tuples(st.sampled_from(["?", "*", "+", "{2}", "{1,2}"]), inner),
    ),
    max_leaves=5,
)
TEXTS = ["".join(letters) for length in range(5) for letters in product("ab", repeat=length)]
TIMES = {"?": (0, 1), "*": (0, 9), "+": (1, 9), "{2}": (2, 2), "{1,2}": (1, 2)}
LETTERS = {'"a"': "a", '"b"': "b", "[ab]": "ab", "[^a]": "b"}


def printed(node: Any) -> str:
    if isinstance(node, str):
        return node
    kind, *items = node
    if kind in TIMES:
        return f"({printed(items[0])}){kind}"
    return f"({(' | ' if kind == 'choice' else ' ').join(map(printed, items))})"


Ends = dict[tuple[str, int], frozenset[int]]


def ends(node: Any, start: int, text: str, known: Ends) -> frozenset[int]:
    """Where a node that begins there may end, by what is known of the rules so far."""
    if isinstance(node, str):
        if node in RULES:
            return known.get((node, start), frozenset())
        if node in LETTERS:
            return frozenset({start + 1} if text[start : start + 1] and text[start] in LETTERS[node] else ())
        return frozenset({start + len(node) - 2} if text.startswith(node[1:-1], start) else ())
    kind, *items = node
    if kind == "choice":
        return frozenset().union(*(ends(item, start, text, known) for item in items))
    if kind == "row":
        return _in_turn(items, start, text, known)
    least, most = TIMES[kind]
    return frozenset().union(
        *(_in_turn(items * times, start, text, known) for times in range(least, most + 1))
    )


def _in_turn(items: list[Any], start: int, text: str, known: Ends) -> frozenset[int]:
    places = frozenset({start})
    for item in items:
        places = frozenset().union(*(ends(item, place, text, known) for place in places))
    return places


def derives(rules: dict[str, Any], text: str) -> bool:
    known: Ends = {}
    while True:
        found = {
            (name, start): ends(rule, start, text, known)
            for name, rule in rules.items()
            for start in range(len(text) + 1)
        }
        if found == known:
            return len(text) in known["root", 0]
        known = found


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.fixed_dictionaries(dict.fromkeys(RULES, NODES)))
def test_what_a_grammar_derives_is_what_is_allowed(grammars: Grammars, rules: dict[str, Any]) -> None:
    grammar = "\n".join(f"{name} ::= {printed(rule)}" for name, rule in rules.items())
    derived = [text for text in TEXTS if derives(rules, text)]
    try:
        assert [text for text in TEXTS if accepts(grammars, grammar, text)] == derived
    except UsageError as error:  # what goes on for ever once it is begun is refused
        assert "too complex" in error.message or derived == []
