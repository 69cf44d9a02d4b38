import json
import re
import time

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from nodes.llm.answers import (
    UnreadableAnswer,
    find_usual_marks,
    has_thinking_mark,
    read_answer,
    read_text,
    split_plan,
)
from nodes.llm.thoughts import find_thinking_marks


class Said(BaseModel):
    response: str


class Judged(BaseModel):
    id: str
    passed: bool


class Listed(BaseModel):
    instructions: list[str]


class Many(BaseModel):
    verdicts: list[Judged]
    plan: list[str]


def read(text: str) -> str:
    return read_answer(text, Said).response


def careless(text: str) -> str:
    """JSON as models write it that forget to double their backslashes."""
    return f'{{"response": "{text}"}}'


WRAPPED = {
    "bare": '{"response": "so"}',
    "white space": '\n\n  {"response": "so"}  \n',
    "fence": '```\n{"response": "so"}\n```',
    "json fence": '```json\n{"response": "so"}\n```\n',
    "indented fence": '  ```json  \n{"response": "so"}\n  ```  ',
    "fence after prose": 'Here it is:\n```json\n{"response": "so"}\n```\nI hope it helps.',
    "prose before": 'Sure! The answer is {"response": "so"}',
    "prose after": '{"response": "so"}\n\nLet me know (or say {no}).',
    "think": '<think>Say "so"? {"response": "no"}</think>{"response": "so"}',
    "thinking": '<thinking>\nfirst {\nthen }\n</thinking>\n{"response": "so"}',
    "think in capitals": '<THINK>hm</THINK>{"response": "so"}',
    "think, then fence": '<think>hm</think>\n\n```json\n{"response": "so"}\n```',
    "think, then prose": '<think>hm</think>I say: {"response": "so"}',
    "unknown keys": '{"mood": {"deep": [1, null]}, "response": "so", "more": 1}',
    "draft before": '{"response": "no"} {"response": "so"}',
}


@pytest.mark.parametrize("text", WRAPPED.values(), ids=WRAPPED)
def test_an_answer_is_read_from_what_models_put_round_it(text: str) -> None:
    assert read(text) == "so"


def test_a_fence_inside_the_answer_is_left_alone() -> None:
    text = "```python\nprint({})\n```"
    assert read(json.dumps({"response": text})) == text


LATEX = [
    r"\frac{1}{2}",
    r"\theta",
    r"\nabla f",
    r"\beta + \bar{x}",
    r"\rho",
    r"\binom{n}{k}",
    r"\begin{matrix} a & b \end{matrix}",
    r"\forall x \exists y",
    r"a \times b",
    r"\text{if } x",
    r"\left( x \right)",
    r"f \rightarrow g",
    r"\langle x \rangle",
    r"\lim_{x \to 0} x",
    r"\alpha \neq \tau",
    r"\mu \nu \cdot \tan x",
    r"\sum_i \not\in S",
    r"\uparrow \underline{x}",
    r"\{ x \}",
    r"\(x\) and \[y\]",
    r"100\%",
    r"x \in \mathbb{R} \text{ and } \top",
    r"50\$ \ne 50\, \neg p",
]


@pytest.mark.parametrize("latex", LATEX)
def test_latex_with_single_backslashes_survives(latex: str) -> None:
    assert read(careless(latex)) == latex


@pytest.mark.parametrize("latex", LATEX)
def test_latex_with_doubled_backslashes_survives_as_well(latex: str) -> None:
    assert read(json.dumps({"response": latex})) == latex


@pytest.mark.parametrize(
    "latex",
    [
        r"\theta_1",
        r"y = \beta_0 + \beta_1 x",
        r"\rho_0",
        r"\nabla_x",
        r"\frac12",
        r"\alpha + \tau_1",
        r"\alpha \neq_1 \nu_2",
    ],
)
def test_latex_names_may_be_followed_by_a_subscript_or_digit(latex: str) -> None:
    assert read(careless(latex)) == latex


@pytest.mark.parametrize(
    "latex",
    [
        r"\boxed{4}",
        r"\bigcup_i A_i",
        r"\bmatrix",
        r"\fbox{a}",
        r"\fill",
        r"\rvert",
        r"\ref{eq}",
        r"\rightharpoonup",
        r"\newcommand{\R}{x}",
        r"\noindent \a",
        r"\textcolor{red}{x}",
        r"\text {a}",
    ],
)
def test_latex_commands_that_are_on_no_list_survive(latex: str) -> None:
    assert read(careless(latex)) == latex


@pytest.mark.parametrize("text", ["import os\nexists = os.path.exists(p)", "what\nexists\n\tto x"])
def test_a_line_may_start_with_the_word_exists(text: str) -> None:
    assert read(json.dumps({"response": text})) == text


CODE = [
    "def f(x):\n\treturn x\n",
    "if a:\n\tfor b in c:\n\t\tprint(b, '\\n', \"\\t\")\n",
    "all:\n\tgcc -o to main.c\n\ttouch out\n",
    "a\tb\tc\nnu\tna\tno\n",
    "top\n\ttop\n\tto\n\tan\nnot\nne x\nnu\nmid\neq",
    "re.sub(r'\\bfoo\\b', '', s)",
    'print("C:\\\\temp\\\\new")',
    "\\frac in a raw string, a real\nline break\tand a tab",
    "\r\nright\r\nangle\r\nfloor",
    "naïve — “quotes” \U0001f600 \u2028 \x00 \x7f",
    "\\",
    "\\\\",
    "\\\n",
    '"\\"',
    "{} {{ }} [",
]


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_well_escaped_code_survives_byte_for_byte(code: str, ascii_only: bool) -> None:
    assert read(json.dumps({"response": code}, ensure_ascii=ascii_only)) == code


@pytest.mark.parametrize("code", ["def f():\n\treturn 1\n", "a\tb\r\nc"])
def test_raw_line_breaks_and_tabs_inside_a_string_are_read(code: str) -> None:
    assert read(careless(code)) == code


# What the module says it reads as LaTeX: one of the control characters that \b \f \n \r \t stand
# for, before the rest of a command's name. Of those that are no words, any letter is left out.
LATEX_LOOKING = re.compile(
    r"[\x08\f\r][a-zA-Z]|\n(?:abla|otin|exists)|\t(?:heta|imes|ext|frac|ilde|herefore|riangle)"
)
ANY_TEXT = st.text(max_size=200)
ESCAPES = st.lists(st.sampled_from([*'\\"/\n\t\r\b\f{}ubfnrt0aé ', "u00e9"]), max_size=40)


@given(ANY_TEXT | ESCAPES.map("".join), st.booleans())
@example("\\u0041 \\n \\\\n \\frac", True)
@example("\n\\nabla", False)
def test_any_well_escaped_text_comes_back_as_it_was(text: str, ascii_only: bool) -> None:
    assume(not LATEX_LOOKING.search(text) and not find_thinking_marks(text))
    assert read(json.dumps({"response": text}, ensure_ascii=ascii_only)) == text


@given(ANY_TEXT)
def test_any_text_at_all_is_either_read_or_unreadable(text: str) -> None:
    for said in (text, "{" + text, careless(text)):
        try:
            assert isinstance(read(said), str)
        except UnreadableAnswer as unreadable:
            assert str(unreadable)


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_prose_without_braces_round_an_answer_changes_nothing(
    before: str, text: str, after: str
) -> None:
    assume("{" not in before and "\\" not in after and not LATEX_LOOKING.search(text))
    whole = f"{before}{json.dumps({'response': text})}{after}"
    # Hypothesis draws the marks too: they stand in this file.
    assume(not find_thinking_marks(whole) and not find_thinking_marks(text))
    assert read(whole) == text


UNREADABLE = {
    "nothing": ("", Said, "no JSON object"),
    "prose": ("I cannot say.", Said, "no JSON object"),
    "a list": ('["so"]', Said, "no JSON object"),
    "only thoughts": ('<think>{"response": "so"}</think>', Said, "no JSON object"),
    "cut": ('{"response": "so', Said, "not valid JSON"),
    "unescaped quotes": (
        'So:\n{"response": "say "so" now"}',
        Said,
        "not valid JSON: line 2 column 20: a comma",
    ),
    "unescaped backslashes before": (
        r'{"response": "\frac \(a\)" "so"}',
        Said,
        "not valid JSON: line 1 column 28: a comma",
    ),
    "apostrophe in single quotes": (
        "{'response': 'it's so'}",
        Said,
        "not valid JSON: line 1 column 2: a key in double quotes",
    ),
    "curly quotes in curly quotes": (
        "{“response”: “say “so”, or “no””}",
        Said,
        "not valid JSON: line 1 column 2: a key in double quotes",
    ),
    "cut, with a trailing comma": (
        '{"response": {"a": 1,}, "more": "',
        Said,
        "not valid JSON: line 1 column 22: a comma before a closing",
    ),
    "cut after a draft": (
        'First {"response": "no"}, then\n{"response": "so',
        Said,
        "not valid JSON: line 2 column 14: the string that begins here has no end",
    ),
    "wrong after a draft": (
        'First {"response": "no"}, then\n{"response": ["so"]}',
        Said,
        "response: Input should be a valid string",
    ),
    "other keys": (
        '{"foo": 1, "bar": 2}',
        Said,
        "response: Field required (the keys are `foo`, `bar`; wanted: `response`)",
    ),
    "inside of an object that cannot be read": (
        '{"plan": [], "draft": {"response": "no"} "response": "so"}',
        Said,
        "not valid JSON: line 1 column 42: a comma",
    ),
    "an example after": (
        '{"response": "so"}\nAs {"response": "string"} says.',
        Said,
        "several JSON objects fit",
    ),
    "a list of several": ('[{"response": "a"}, {"response": "b"}]', Said, "several JSON objects"),
    "missing key": ('{"answer": "so"}', Said, "response: "),
    "number": ('{"response": 3}', Said, "response: "),
    "null": ('{"response": null}', Said, "response: "),
    "list for text": ('{"response": ["so"]}', Said, "response: "),
    "missing inner key": (
        '{"plan": [], "verdicts": [{"id": "a", "passed": true}, {"id": "b"}]}',
        Many,
        "verdicts.1.passed: ",
    ),
    "wrong inner type": ('{"plan": ["a", 1], "verdicts": []}', Many, "plan.1: "),
    "text for list": ('{"plan": "a", "verdicts": []}', Many, "plan: "),
}


@pytest.mark.parametrize(("text", "answer", "said"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_says_what_is_wrong_with_it(
    text: str, answer: type[BaseModel], said: str
) -> None:
    with pytest.raises(UnreadableAnswer) as raised:
        read_answer(text, answer)
    assert str(raised.value).startswith(said)


@pytest.mark.parametrize(
    "text",
    ['{"response": ' + "[" * 5000, '{"n": ' + "1" * 5000 + ', "response": "so"}'],
    ids=["brackets", "digits"],
)
def test_endless_repetition_is_unreadable_and_nothing_worse(text: str) -> None:
    with pytest.raises(UnreadableAnswer):
        read(text)


ENDLESS = [
    *("{'", '{"', "{“", '{"a":', "{/*", '{"\\', "{a: ", "{a: 1\n\n", '{"x": 1} ', "{ ", ","),
    *(" ", "\n", "<response>", "```\n", "<think>", "</think>", "<|channel|>final ", "analysisA"),
    *("[", "thought\n", " <|im_end|>x"),
]


@pytest.mark.parametrize("piece", ENDLESS)
@pytest.mark.parametrize("before", ["", '{"response": "a" '])
def test_endless_repetition_takes_no_endless_time(piece: str, before: str) -> None:
    start = time.process_time()
    for read_it in (read, read_text):
        try:
            read_it(before + piece * (50_000 // len(piece)))
        except UnreadableAnswer:
            continue
    assert time.process_time() - start < 3


def test_half_of_a_surrogate_pair_does_not_get_into_an_answer() -> None:
    try:
        text = read('{"response": "smile \\ud83d"}')
    except UnreadableAnswer:
        return
    text.encode("utf-8")


@pytest.mark.parametrize(
    "text",
    ['For the set {1, 2} I say: {"response": "so"}', 'hm {x}</think>\n{"response": "so"}'],
    ids=["prose", "think without its opening tag"],
)
def test_braces_in_the_prose_before_do_not_hide_the_answer(text: str) -> None:
    assert read(text) == "so"


# What fits the shape, in the forms in which models write it


MENDED = {
    "trailing comma": '{"response": "so",}',
    "trailing commas": '{"more": [1, 2, ], "response": "so", }',
    "single quotes": "{'response': 'so'}",
    "Python's names": "{'more': [True, False, None], 'response': 'so'}",
    "double quotes in single ones": "{'more': 'he said \"so\": a, b', 'response': 'so'}",
    "escaped apostrophe": "{'more': 'it\\'s', 'response': 'so'}",
    "curly quotes": "{“response”: “so”}",
    "one curly quote everywhere": "{”more”: ”a \\”b\\” c”, ”response”: ”so”}",
    "low and high quotes": "{„response“: „so“}",
    "low quote closed by a straight one": '{„response": „so"}',
    "comments": '{// first\n"response": "so", /* {more} */ # last\n}',
    "bare keys": '{response: "so", more: 1}',
    "not a number": '{"more": NaN, "response": "so"}',
    "byte-order mark": '\ufeff{"response": "so"}',
    "braces doubled": '{{"response": "so"}}',
    "braces in single quotes": "{'more': 'a } b', 'response': 'so'}",
    "all in a fence": "So:\n```json\n{'response': “so”, /* a */ more: [None,],}\n```\nDone.",
}


@pytest.mark.parametrize("text", MENDED.values(), ids=MENDED)
def test_what_is_no_json_only_outside_of_strings_is_read(text: str) -> None:
    assert read(text) == "so"


@pytest.mark.parametrize(
    "said", ["a, } b", "{'a': True,}", "“so”, ‘no’", "// no comment", "#1, None", "say: 'so',"]
)
def test_nothing_is_mended_inside_of_a_string(said: str) -> None:
    assert read(f'{{"response": {json.dumps(said)},}}') == said


@pytest.mark.parametrize("latex", [r"\frac{1}{2}", r"\nabla f", r"a \times b", r"\(x\)"])
def test_latex_survives_a_mended_object(latex: str) -> None:
    assert read(f'{{"response": "{latex}",}}') == latex
    assert read(f"{{'response': '{latex}'}}") == latex


SO = {"response": "so"}
WRAPPERS = {
    "the stage": {"generate": SO},
    "the stage, spelled otherwise": {"Generate": SO},
    "the shape": {"Said": SO},
    "a call": {"name": "generate", "parameters": SO},
    "a call with arguments": {"name": "generate", "arguments": SO},
    "a call with arguments as text": {"name": "generate", "arguments": json.dumps(SO)},
    "a call as an endpoint writes it": {
        "type": "function",
        "function": {"name": "generate", "arguments": json.dumps(SO)},
    },
    "calls": {"tool_calls": [{"id": "1", "function": {"name": "generate", "arguments": SO}}]},
    "Anthropic's call": {"type": "tool_use", "name": "generate", "input": SO},
    "a list": [SO],
    "a list of a call": [{"name": "generate", "parameters": SO}],
    "a schema": {"type": "object", "properties": SO, "required": ["response"]},
    "a string": json.dumps(SO),
    "a string in a string": json.dumps(json.dumps(SO)),
    "a field of the same name": {"response": SO, "answer": SO},
    "a draft beside it": {"draft": {"response": "no"}, "answer": SO},
}


@pytest.mark.parametrize("value", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("around", ["{}", "<think>hm {{</think>\n```json\n{}\n```"])
def test_an_answer_is_taken_out_of_what_it_is_wrapped_in(value: object, around: str) -> None:
    assert read_answer(around.format(json.dumps(value)), Said, name="generate") == Said(**SO)


def test_a_call_in_tags_is_read() -> None:
    text = '<tool_call>\n{"name": "generate", "arguments": {"response": "so"}}\n</tool_call>'
    assert read(text) == "so"


def test_lists_that_came_as_text_are_read() -> None:
    value = {"plan": '["a"]', "verdicts": json.dumps([{"id": "a", "passed": True}])}
    assert read_answer(json.dumps(value), Many).verdicts == [Judged(id="a", passed=True)]


def test_the_list_of_a_shape_of_one_list_is_read_without_its_object() -> None:
    for value in (["a", "b"], {"propose": ["a", "b"]}, {"arguments": '["a", "b"]'}):
        read = read_answer(json.dumps(value), Listed, name="propose")
        assert read.instructions == ["a", "b"]


def test_a_text_that_looks_like_json_stays_text() -> None:
    assert read(json.dumps({"response": '{"response": "no"}'})) == '{"response": "no"}'


def test_a_wrapper_that_is_not_the_answers_hides_it() -> None:
    with pytest.raises(UnreadableAnswer, match="the keys are `draft`"):
        read('{"draft": {"response": "no"}}')


IN_TWO_WRAPPERS = {
    "one fits": {"result": {"draft": "no"}, "answer": SO},
    "both are equal": {"answer": SO, "result": json.dumps(SO)},
    "one stands in the other": {"answer": SO | {"data": {"response": "no"}}},
    "one stands beside the answer": SO | {"data": {"response": "no"}},
}


@pytest.mark.parametrize("value", IN_TWO_WRAPPERS.values(), ids=IN_TWO_WRAPPERS)
@pytest.mark.parametrize("around", ["{}", "So: {}."])
def test_of_two_wrappers_the_one_that_holds_the_shape_counts(value: object, around: str) -> None:
    assert read(around.replace("{}", json.dumps(value))) == "so"


@pytest.mark.parametrize("before", ["", '{"response": "a draft"}\n\n'])
def test_two_answers_in_wrappers_that_differ_are_none(before: str) -> None:
    for value in (
        {"answer": SO, "result": {"response": "no"}},
        {"function": {"arguments": SO}, "output": json.dumps({"response": "no"})},
    ):
        with pytest.raises(UnreadableAnswer, match="several answers stand in the object, in `"):
            read(before + json.dumps(value))


FITTING = {
    "an example before": 'As {"response": "your text"} asks: {"response": "so"}',
    "the same inside of a line after": '{"response": "so"}, that is {"response": "so"}.',
    "thoughts without marks": 'Maybe {"response": "no"}? No, better.\n\n{"response": "so"}',
    "two drafts": '{"response": "n"} or {"response": "no"}\nSo:\n```json\n{"response": "so"}\n```',
    "another object after": '{"response": "so"}\nI used {"style": "short"} for this.',
    "a schema before": '{"properties": {"response": {"type": "string"}}}\n{"response": "so"}',
    "a draft that was cut": 'Draft: {"response": "no..\n\nFinal: {"response": "so"}',
    "a draft that was cut on the line before": 'Draft: {"response": "no\nFinal: {"response": "so"}',
    "code before": 'f(x) {x} { a: 1 } {"a": [1}\n{"response": "so"}',
    "many braces before": "{x} " * 50 + '{"response": "so"}',
}


@pytest.mark.parametrize("text", FITTING.values(), ids=FITTING)
def test_the_last_object_that_fits_is_the_answer(text: str) -> None:
    assert read(text) == "so"


# Thoughts


CLOSINGS = [
    "</think>",
    "</thinking>",
    "&lt;/think&gt;",
    "<|end_of_thought|>",
    "</THINK>",
    "<\\think>",
    "</seed:think>",
    "</think:opensource>",
    "</longcat_think>",
    "</ifm|think_fast>",
    "[/THINK]",
    "◁/think▷",
    "[unused17]",
    "<|inner_suffix|>",
    "<|END_THINKING|>",
    "<channel|>",
    "<|channel|>final<|message|>",
    "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.generate <|constrain|>json<|message|>",
]
OPENINGS = [
    "<think>",
    "<thinking>",
    "&lt;think&gt;",
    "<|begin_of_thought|>",
    "<seed:think>",
    "<think:opensource>",
    "<longcat_think>",
    "<ifm|think>",
    "[THINK]",
    "◁think▷",
    "[unused16]",
    "<|inner_prefix|>",
    "<|START_THINKING|>",
    "<|channel>thought\n",
    "<|channel|>analysis<|message|>",
]
PAIRS_AT_THE_START = [
    ("analysisWe", "assistantfinal"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("<scratchpad>", "</scratchpad>"),
    ("Here is my thought process:", "Here is my response:"),
    ("<analysis>", "</analysis>"),
    ('<details type="reasoning" done="true" duration="3">\n<summary>Hm</summary>', "</details>"),
]


@pytest.mark.parametrize("closing", CLOSINGS)
@pytest.mark.parametrize("opening", ["", "<think>", "\n <|channel|>analysis<|message|>"])
def test_thoughts_end_at_the_last_closing_mark_opened_or_not(opening: str, closing: str) -> None:
    thoughts = f'{opening}Say "so"? {{"response": "no"}}{closing} Or {{"response": "n"}}.{closing}'
    assert read_text(thoughts + "\n\nSo.") == "So."
    assert read(thoughts + '\n\n{"response": "so"}') == "so"


@pytest.mark.parametrize(("opening", "closing"), PAIRS_AT_THE_START)
def test_words_that_stand_in_other_texts_mark_thoughts_only_at_the_start(
    opening: str, closing: str
) -> None:
    assert read_text(f"{opening} Hm. {closing}So.") == "So."
    assert read(f'{opening} {{"response": "no"}} {closing}{{"response": "so"}}') == "so"
    with pytest.raises(UnreadableAnswer, match="not closed"):
        read_text(f" {opening} Hm.")
    text = f"As in {opening} a {closing} it is."
    assert read_text(text) == text


def test_a_closing_tag_that_nothing_opens_ends_thoughts_on_its_own_line() -> None:
    assert read_text("Hm.\n</reasoning>\nSo.") == "So."
    xml = "Like this:\n<reasoning>\nHm.\n</reasoning>\nSo."
    assert read_text(xml) == xml


@pytest.mark.parametrize("opening", [*OPENINGS, *(first for first, _ in PAIRS_AT_THE_START)])
def test_thoughts_that_never_end_are_no_answer(opening: str) -> None:
    for text in (f"{opening} Say so.", f'<think>Hm.</think>{opening} {{"response": "so"}}'):
        with pytest.raises(UnreadableAnswer, match="not closed"):
            read_text(text)
        with pytest.raises(UnreadableAnswer, match="not closed"):
            read(text)


@pytest.mark.parametrize(
    "text",
    [
        "<think>Hm.</think>\nEnd it by `</think>`, then answer.",
        'Call `s.split("</think>")[-1]`.',
        "text.rpartition('</think>')",
        "```python\nclose = re.compile(r'\\s*</think>\\s*')\n```",
    ],
)
def test_a_closing_mark_in_quotes_or_code_is_neither_cut_at_nor_left(text: str) -> None:
    with pytest.raises(UnreadableAnswer, match="stands in quotes"):
        read_text(text)


ANY_CLOSING = st.sampled_from(CLOSINGS)
PIECES = st.lists(
    st.sampled_from(
        [
            *CLOSINGS,
            *OPENINGS,
            *(mark for pair in PAIRS_AT_THE_START for mark in pair),
            *(
                '{"response": "no"}',
                '{"response": "',
                '"}',
                "```",
                "\n",
                "`",
                "<response>",
                "'",
                "\\",
            ),
        ]
    )
    | st.text(max_size=10),
    max_size=8,
).map("".join)


@given(PIECES, ANY_CLOSING, PIECES)
@example("Maybe `a`.", "</think>", "So.")
def test_no_text_can_hold_anything_from_before_a_closing_mark(
    before: str, closing: str, after: str
) -> None:
    for code_only in (False, True):
        try:
            text = read_text(before + closing + after, code_only=code_only)
        except UnreadableAnswer:
            continue
        assert text in after
        assert not any(mark in text for mark in CLOSINGS)


@given(PIECES, ANY_CLOSING, PIECES | ANY_TEXT.map(lambda text: json.dumps({"response": text})))
def test_no_object_can_come_from_before_a_closing_mark(
    before: str, closing: str, after: str
) -> None:
    try:
        answer = read(before + closing + after)
    except UnreadableAnswer:
        return
    assert answer == read(after)
    assert not any(mark in answer for mark in CLOSINGS)


@given(PIECES)
def test_where_a_prompt_holds_marks_nothing_is_cut_and_no_mark_gets_through(text: str) -> None:
    try:
        answer = read_text(text, marks_in_prompt=True)
    except UnreadableAnswer:
        return
    assert not any(mark in answer for mark in (*CLOSINGS, *OPENINGS))


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("Split at </think>.", True),
        ("A model writes <think> first.", True),
        ("[THINK] is Mistral's", True),
        ("Mark it up with <reasoning> tags", True),
        ("Put it in <analysis>..</analysis>", False),
        ('<details type="reasoning">', False),
        ("HTML that shows &lt;think&gt;", True),
        ("I think; on reflection, my reasoning", False),
        ("Here is my response: no", False),
        ("thought\nanalysisA", False),
        ("<answer> and <b>", False),
    ],
)
def test_marks_in_a_prompt_are_tags(text: str, marked: bool) -> None:
    assert has_thinking_mark(text) == marked


def test_an_object_may_quote_a_mark_that_the_prompt_holds() -> None:
    text = '{"response": "it ends at </think>"}'
    assert read_answer(text, Said, marks_in_prompt=True).response == "it ends at </think>"
    assert read_answer(f"So: {text}.", Said, marks_in_prompt=True).response[-1] == ">"
    for other in (
        f"Hm.</think>{text}",
        f"<think>{text}",
        f'{{"response": "no</think>"}} or {text}',
    ):
        with pytest.raises(UnreadableAnswer, match="outside of the JSON object"):
            read_answer(other, Said, marks_in_prompt=True)
    with pytest.raises(UnreadableAnswer, match="stands in quotes"):
        read(text)
    with pytest.raises(UnreadableAnswer, match="all up to '</think>' was taken for thoughts"):
        read('{"response": "it is </think> that ends it"}')


def test_a_text_that_holds_a_mark_as_its_prompt_does_is_unreadable() -> None:
    for text in ("Hm.</think>So.", "Cut at `</think>`.", "<think>", "<reasoning>a</reasoning>b"):
        with pytest.raises(UnreadableAnswer, match="mark of thoughts or a part of the answer"):
            read_text(text, marks_in_prompt=True)
    assert read_text("I think so.", marks_in_prompt=True) == "I think so."


USUAL = {
    "<analysis>": "<analysis>\nHm.\n</analysis>\nSo.",
    "Give it as <analysis>..</analysis>": "<analysis>Hm.</analysis>",
    "Put <details type='reasoning'> first": '<details type="reasoning">Hm.</details>\nSo.',
}


@pytest.mark.parametrize(("prompt", "text"), USUAL.items())
def test_usual_tags_that_the_prompt_holds_are_no_marks(prompt: str, text: str) -> None:
    usual = find_usual_marks(prompt)
    assert read_text(text, usual_marks=usual) == text
    assert read_text(text, usual_marks=usual, marks_in_prompt=True) == text
    assert read_text(f"<think>So?</think>{text}", usual_marks=usual) == text
    assert read_answer(f'{text} {{"response": "so"}}', Said, usual_marks=usual).response == "so"


ORDINARY = {
    "not at the start": "As in:\n<analysis>\nHm.\n</analysis>\nSo.",
    "closed only": "Hm.\n</analysis>\nSo.",
    "a fold": "<details>\n<summary>More</summary>\nHm.\n</details>\nSo.",
    "a fold that is open": '<details open="">\nHm.\n</details>\nSo.',
}


@pytest.mark.parametrize("text", ORDINARY.values(), ids=ORDINARY)
def test_usual_tags_elsewhere_are_no_marks(text: str) -> None:
    assert read_text(text) == text
    assert read_text(f"<think>Hm.</think>{text}") == text


@pytest.mark.parametrize(
    "text",
    [
        "<analysis>a</analysis>\n<analysis>b</analysis>\nSo.",
        "<analysis>a</analysis> b</analysis>\nSo.",
        '<details type="reasoning">Hm.</details>\n<details>\nSo.\n</details>',
    ],
)
def test_usual_tags_that_follow_such_a_pair_leave_it_unclear(text: str) -> None:
    with pytest.raises(UnreadableAnswer, match="what is answer and what is thought is unclear"):
        read_text(text)


def test_a_draft_in_a_text_of_thoughts_is_no_answer_but_an_object_at_its_end_is() -> None:
    for text in ('{"response": "so"}', 'Hm. So:\n```json\n{"response": "so"}\n```\n'):
        assert read_answer(text, Said, at_end=True).response == "so"
    with pytest.raises(UnreadableAnswer, match="does not end the text"):
        read_answer('Maybe {"response": "no"}? Not good enough.', Said, at_end=True)


# Plain text


ROUND_ALL = {
    "nothing": ("So.", "So."),
    "blank lines": ("\n \n  a\n\tb \n\n", "  a\n\tb"),
    "the tokenizer's space": (" So.", "So."),
    "a tag": ("<response>\nSo.\n</response>", "So."),
    "a tag of the prompt": ("<response-3fa9c1>\n</response>\n</response-3fa9c1>", "</response>"),
    "a tag with attributes": ('<response id="A">So.</response>', "So."),
    "an answer": ("<think>Hm.</think>\n<answer>\nSo.\n</answer>", "So."),
    "Command A": ("<|END_THINKING|><|START_RESPONSE|>So.<|END_RESPONSE|>", "So."),
    "GLM": ("</think><|begin_of_box|>So.<|end_of_box|>", "So."),
    "Sky-T1": ("<|end_of_thought|>\n<|begin_of_solution|>\nSo.\n<|end_of_solution|>", "So."),
    "Sky-T1 without its end": ("<|end_of_thought|>\n\n<|begin_of_solution|>So.", "So."),
    "a closing tag": ("So.\n</response>", "So."),
    "a closing tag of the prompt": ("<think>Hm.</think>So it is.</response-3fa9c1>\n", "So it is."),
    "a closing tag behind a block": ("```py\na\n```\n\n</answer>", "```py\na\n```"),
    "a closing tag and the end of a turn": ("So.\n</response><|im_end|>", "So."),
    "the end of a turn": ("So.<|im_end|>\n<|return|>", "So."),
    "a fence": ("```\nSo.\n```", "So."),
    "a fence of Markdown": ("```markdown\n# So\n\n- a\n```\n", "# So\n\n- a"),
    "a fence in a tag": ("<response>\n```md\nSo.\n```\n</response>", "So."),
    "a fence round fences": ("```md\na\n```py\nb\n```\nc\n```", "a\n```py\nb\n```\nc"),
    "a longer fence": ("````md\n```\nb\n```\n````", "```\nb\n```"),
}


@pytest.mark.parametrize(("text", "answer"), ROUND_ALL.values(), ids=ROUND_ALL)
def test_what_stands_round_all_of_a_text_is_taken_off(text: str, answer: str) -> None:
    assert read_text(text) == answer


LEFT = {
    "code in its language": "```python\nprint(1)\n```",
    "two blocks": "```\na\n```\nand\n```\nb\n```",
    "a block and words": "So:\n```\na\n```",
    "words after a block": "```\na\n```\nSo.",
    "two tags": "<response>a</response> or <response>b</response>",
    "XML": "<response>\n  <status>200</status>\n</response>",
    "HTML": "<p>So.</p>",
    "a tag that is not closed": "<response>So.",
    "a closing tag spoken of": "Close it with </response>",
    "a closing tag of XML": "<a>\n<response>\n1\n</response>",
    "a closing tag of another": "So.\n</div>",
    "two closing tags": "a\n</answer>\nb\n</answer>",
    "a box in a sentence": "It is <|begin_of_box|>4<|end_of_box|>",
    "braces, quotes and backslashes": 'a \\frac{1}{2} "b" \\n {c}\\',
    "quoted tag": "Use `<response>`.",
    "empty block": "```\n",
    "carriage returns": "a\r\n\tb",
}


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_all_else_of_a_text_is_left_as_it_is(text: str) -> None:
    assert read_text(text) == text.rstrip()
    assert read_text(f"Hm.</think>\n\n{text}") == text.rstrip()


def test_a_fence_stays_where_code_alone_is_asked_for() -> None:
    text = "```\nprint(1)\n```"
    assert read_text(text, code_only=True) == text
    assert read_text(f"<response>{text}</response>", code_only=True) == text


@given(ANY_TEXT)
def test_a_text_without_marks_loses_nothing_but_what_is_round_it(text: str) -> None:
    assume(not re.search(r"[<\[`]|\A\s*(?:analysis|thought)", text))
    assume(not find_thinking_marks(text))
    read = read_text(text)
    assert read.strip() == text.removeprefix("\ufeff").strip()


def test_a_plan_counts_only_at_the_start_and_closed() -> None:
    assert split_plan("\n<plan>\nMore.\n</plan>\n\n    code") == ("More.", "    code")
    assert split_plan("<PLAN>a</PLAN> b") == ("a", "b")
    assert split_plan("So. <plan>a</plan>") == (None, "So. <plan>a</plan>")
    assert split_plan("") == (None, "")
    with pytest.raises(UnreadableAnswer, match="not closed"):
        split_plan("<plan>\nMore.\n\nSo.")


@pytest.mark.parametrize(
    "text",
    [
        "<response>\nSo it is.\n</response>\n<feedback>\nSay why.\n</feedback>",
        'Here is the response: So it is. </response> <verdict criterion_id="a">It is.</verdict>',
        "Here:\n<response-3fa9c1>So.</response-3fa9c1>\n<instruction>Why?</instruction>",
    ],
)
def test_a_response_that_goes_on_with_the_prompts_own_tags_is_asked_for_again(text: str) -> None:
    with pytest.raises(UnreadableAnswer, match="after the response comes more"):
        read_text(text)


def test_tags_in_a_block_of_code_are_a_part_of_the_answer() -> None:
    assert read_text("<response>\nSo it is.\n</response>") == "So it is."
    text = "Write:\n```xml\n<response>a</response>\n<seed n='1'/>\n```"
    assert read_text(text) == text
