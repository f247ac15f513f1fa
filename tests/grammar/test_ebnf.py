"""Callers' grammars: EBNF is converted exactly, Lark passes, and neither reaches outside of the text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mmserve.errors import InvalidConstraint, UnsupportedConstraint
from mmserve.grammar.ebnf import convert, is_ebnf
from mmserve.grammar.judge import judge
from mmserve.grammar.larktext import check_lark
from mmserve.grammar.spec import Grammar
from tests.grammar.conftest import Bench

JSON = r"""
# llama.cpp's JSON grammar in short
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,3})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        (JSON, ['{"a":[1,-2.5e3,"\\u00e9\\n"], "名": {}}', "{}"], ["[1]", '{"a":}', '{"a":"\\x"}']),
        ('root ::= expr\nexpr ::= term ("+" term)*\nterm ::= [0-9]+ | "(" expr ")"', ["1+(2+34)"], ["1+", "(1"]),
        ('root ::= ident "b"\nident ::= [a-z]+', ["ab", "abb"], ["b", "ac"]),
        ("root ::= '\\u4e2d' #x6587 /* W3C */ | \"😀\" // more\n", ["中文", "😀"], ["中"]),
        ('root ::= "a" # no "b"\n  | [\\]\\-^] [^\\n"]', ["a", "]x", "-é", "^]"], ["b", ']"', "]"]),
        ('root ::= ("a" | b-c){2,3} [x-z]{2} "d"{2,} "e"?\nb-c ::= "bc"', ["abcxydd", "aaaxyddde"], ["axydd", "aaxyd"]),
        ('root ::= a |\n  "z"\na ::=\n  "x"\n  "y"', ["xy", "z"], ["x"]),
        ('root ::= "\\"" [^"]* "\\"" "!"', ['"any 文"!', '""!'], ['"a"b"!']),
        ('root ::= ""', [""], ["a"]),
        ("root ::= .", ["a", "中"], ["\n", "ab"]),
    ],
)
def test_ebnf(bench: Bench, text: str, right: Sequence[str], wrong: Sequence[str]) -> None:
    assert is_ebnf(text)
    for answer in right:
        assert bench.accepts(Grammar(text), answer), answer
    for answer in wrong:
        assert not bench.accepts(Grammar(text), answer), answer
    assert judge(Grammar(text), right[0]) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('a ::= "b"', "no rule named root"),
        ("root ::= a", "line 1: there is no rule a"),
        ('root ::= "a"\n\nb ::= (a', "line 3"),
        ('root ::= "a"\nroot ::= "b"', "line 2: the rule root is defined twice"),
        ('root ::= "a\n', "line 1"),
        ("root ::= [z-a]", "from high to low"),
        (r'root ::= "\q"', "unknown escape"),
        (r'root ::= "\ud800"', "no character"),
        ("root ::= []", "line 1"),
        ('root ::= "a" )', "line 1"),
        ("root ::= " + "(" * 50 + '"a"' + ")" * 50, "nested"),
    ],
)
def test_ebnf_errors_name_the_line(text: str, words: str) -> None:
    with pytest.raises(InvalidConstraint, match=words) as caught:
        convert(text)
    assert caught.value.param == "grammar"


def test_lark_passes(bench: Bench) -> None:
    text = 'start: "say " WORD (", " WORD)* end\nWORD: /[a-z]+/\nend: "." | "。" // the end\n%import common.INT'
    assert bench.accepts(Grammar(text), "say a, bc。")
    assert not bench.accepts(Grammar(text), "say a,b.")


def test_lark_may_hold_a_schema_which_is_strict_and_compact(bench: Bench) -> None:
    text = 'start: "a" b\nb: %json {"type": "object", "properties": {"x": {"type": "integer"}}}'
    assert bench.accepts(Grammar(text), 'a{"x":1}')
    assert not bench.accepts(Grammar(text), 'a{"x": 1}')
    assert not bench.accepts(Grammar(text), 'a{"\\u0078":"1"}')
    with pytest.raises(UnsupportedConstraint):
        bench.compile(Grammar('start: %json {"not": {}}'))


def test_a_special_tokens_name_in_quotes_is_text(bench: Bench) -> None:
    grammar = bench.compile(Grammar('start: "<|im_end|>"'))
    assert bench.vocabulary.bytes_of(grammar.completion) == b"<|im_end|>"
    assert not bench.vocabulary.eos_ids & set(grammar.completion)
    assert len(grammar.completion) > 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("start: <|im_end|>", "line 1: special tokens"),
        ('start: "a"\n  | <[0-5]>', "line 2: special tokens"),
        ("start: @other", "no other grammars"),
        ('%llguidance {"allow_invalid_utf8": true}\nstart: "a"', "allow_invalid_utf8"),
        ("start[max_tokens=3]: /a+/", "max_tokens"),
        ('start: a\na[lazy, stop="b"]: /.*/', "line 2: the option stop"),
        ('start: "a"{100000}', "repetitions"),
        ("start: A\nA: " + " & ".join(["/a/"] * 9), "& and ~"),
        ("start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(900)) + 'r900: "a"', "in a row"),
        (
            "start: " + " ".join(f"r{i}" for i in range(2500)) + "".join(f'\nr{i}: "a"' for i in range(2500)),
            "2000 rules",
        ),
        ('start: %lark { start: "a" }', "%lark"),
    ],
)
def test_lark_that_reaches_outside_is_refused(text: str, words: str) -> None:
    with pytest.raises(UnsupportedConstraint) as caught:
        check_lark(text)
    assert words in caught.value.message
    assert caught.value.param == "grammar"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('strt: "a"', "no start rule"),
        ('start: "a"\nb: "c', "line 2"),
        ("start: x", 'line 1, column 8: unknown name: "x"'),
        ("start: /[/", "line 1"),
        ("start: %json x", "line 1: %json"),
    ],
)
def test_lark_errors_name_the_line(bench: Bench, text: str, words: str) -> None:
    with pytest.raises(InvalidConstraint) as caught:
        bench.compile(Grammar(text))
    assert words in caught.value.message


def test_llguidances_own_form_is_not_for_callers(bench: Bench) -> None:
    with pytest.raises((InvalidConstraint, UnsupportedConstraint)):
        bench.compile(Grammar('{"grammars": [{"lark_grammar": "start: <|im_end|>"}]}'))
