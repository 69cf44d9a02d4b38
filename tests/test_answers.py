import json
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from nodes.llm.answers import UnreadableAnswer, read_answer, strip_wrapping


class Said(BaseModel):
    response: str


class Judged(BaseModel):
    id: str
    passed: bool


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
    "second object": '{"response": "so"} {"response": "no"}',
}


@pytest.mark.parametrize("text", WRAPPED.values(), ids=WRAPPED)
def test_an_answer_is_read_from_what_models_put_round_it(text: str) -> None:
    assert read(text) == "so"


def test_a_think_passage_or_fence_inside_the_answer_is_left_alone() -> None:
    text = "<think>not mine</think>\n```python\nprint({})\n```"
    assert read(json.dumps({"response": text})) == text


def test_unwrapping_leaves_a_plain_text_alone() -> None:
    assert strip_wrapping("a ``` b </think> c") == "a ``` b </think> c"


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
    assume(not LATEX_LOOKING.search(text))
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
    assert read(f"{before}{json.dumps({'response': text})}{after}") == text


UNREADABLE = {
    "nothing": ("", Said, "no JSON object"),
    "prose": ("I cannot say.", Said, "no JSON object"),
    "a list": ('["so"]', Said, "no JSON object"),
    "only thoughts": ('<think>{"response": "so"}</think>', Said, "no JSON object"),
    "cut": ('{"response": "so', Said, "not valid JSON"),
    "single quotes": ("{'response': 'so'}", Said, "not valid JSON"),
    "trailing comma": ('{"response": "so",}', Said, "not valid JSON"),
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
