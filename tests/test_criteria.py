import re
from collections.abc import Sequence
from typing import Any

import pytest
from fakes import words
from hypothesis import given
from hypothesis import strategies as st

from memory.references import Reference
from nodes import criteria, generate
from nodes.criteria import (
    ANSWERS_ID,
    COPIED_RUN_WORDS,
    GENERIC,
    RULES,
    RuleInput,
    answers_instruction,
    apply_rules,
    generic_criteria,
    rule_criteria,
)
from nodes.state import Verdict

ASK = "Why do tides come twice a day?"
GOOD = (
    "The Moon pulls the near side of the sea more than the Earth, and the Earth more than the far "
    "side. So the sea is high on both sides, and the turning Earth meets each of them once a day."
)
REFERENCE: Reference = {"id": "r1", "instruction": "How does a sundial work?", "response": "s" * 80}


def look(rule: str, response: str, instruction: str = ASK, **facts: Any) -> Verdict:
    given_ = {"references": [REFERENCE], **facts}
    return RULES[rule].check(RuleInput(instruction, response, **given_))


def outcome(rule: str, response: str, instruction: str = ASK, **facts: Any) -> str:
    found = look(rule, response, instruction, **facts)
    assert found["criterion_id"] == rule
    return found["verdict"]


@pytest.mark.parametrize("response", ["", " ", "\n\t \n", "\u00a0"])
def test_a_response_without_a_word_is_empty(response: str) -> None:
    assert outcome("not-empty", response) == "fail"


@pytest.mark.parametrize("response", ["4", ".", GOOD, "\U0001f600"])
def test_a_response_of_anything_is_not_empty(response: str) -> None:
    assert outcome("not-empty", response) == "pass"


CUT = [
    "The tide is high and",
    "The tide follows the",
    "It is a matter of",
    "Tides, which are",
    "There are three causes:",
    "first the Moon,",
    "the Moon (and",
    "the Moon (",
    "see also [",
    "body {",
    "first;",
    "the Moon –",
    "the tide is high,  \n\n",
    "```python\nprint(1)\n",
    "Do this:\n```\nls\n```\nand this:\n```\ncd",
]
WHOLE = [
    GOOD,
    "4",
    "Yes",
    "twice a day",
    "```python\nprint({\n})\n```",
    "Use `a,` or `b`.",
    "- one\n- two\n- three",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "body { color: red; }",
    "What is it for?",
    "Come in!",
    "the mainland",
    "Sí, por la luna",
    "潮汐是月亮引起的",
    "(and so on)",
]


@pytest.mark.parametrize("response", CUT)
def test_a_response_that_stops_in_the_middle_is_not_finished(response: str) -> None:
    assert outcome("finished", response) == "fail"


@pytest.mark.parametrize("response", WHOLE)
def test_a_response_that_ends_is_finished(response: str) -> None:
    assert outcome("finished", response) == "pass"


def test_a_cut_response_is_shown_where_it_was_cut() -> None:
    found = look("finished", "x" * 100 + " and the")
    assert found["evidence"].endswith(" and the")
    assert found["evidence"] in "x" * 100 + " and the"
    assert found["reason"]


REFUSED = [
    "I'm sorry, but I can't help with that.",
    "I am very sorry, but I cannot do so.",
    "I'm really sorry but as an assistant I must not.",
    "As an AI language model, I have no opinions.",
    "Well, as an AI model I never saw the sea.",
    "I cannot assist with this request.",
    "I can't provide that.",
    "I won't answer this.",
    "I am unable to help.",
    "I'm not able to fulfil that.",
    '"I cannot comply."',
]
ANSWERED = [
    GOOD,
    "I'm sorry to hear that. Try this:",
    "Sorry for the wait: here is the letter.",
    "You cannot help the tide.",
    "The poet writes: I cannot help but stare.",
    "AI models are trained on text.",
    "He said he was unable to answer.",
]


@pytest.mark.parametrize("response", REFUSED)
def test_a_set_phrase_of_refusal_fails(response: str) -> None:
    assert outcome("no-refusal", response) == "fail"


@pytest.mark.parametrize("response", ANSWERED)
def test_words_that_only_look_like_a_refusal_pass(response: str) -> None:
    assert outcome("no-refusal", response) == "pass"


@pytest.mark.parametrize(
    "response",
    ["I’m sorry, but I can’t help with that.", "I can’t assist with that.", "I won’t answer this."],
)
def test_a_refusal_with_a_curly_apostrophe_fails(response: str) -> None:
    assert outcome("no-refusal", response) == "fail"


BLANKS = [
    "Dear [Your Name],",
    "Dear [insert name here],",
    "Call [ADD NUMBER].",
    "On [enter date] we met.",
    "by [fill in the blank]",
    "in [name of city]",
    "TODO: write the rest",
    "def f(): pass  # TODO",
    "Lorem ipsum dolor sit amet.",
]
NO_BLANKS = [
    GOOD,
    "Todo el mundo lo sabe, sobre todo en la costa.",
    "Isso é tudo. Todo dia é assim.",
    "Keep a to-do list, or a todo list.",
    "a = [1, 2, 3]; b = [address, additive]",
    "as shown in [1] and [Smith 2001]",
    "[x] done",
    "TODOS",
    "insert it here, in your own words",
    "[the addition of your own list]",
]


@pytest.mark.parametrize("response", BLANKS)
def test_a_blank_left_to_fill_in_fails(response: str) -> None:
    found = look("no-placeholder", response)
    assert found["verdict"] == "fail"
    assert found["evidence"] in response


@pytest.mark.parametrize("response", NO_BLANKS)
def test_what_only_looks_like_a_blank_passes(response: str) -> None:
    assert outcome("no-placeholder", response) == "pass"


@pytest.mark.parametrize(
    "response", ["sums = [add(x, 1) for x in xs]", "See [Your First Tide](https://tides.test)."]
)
def test_code_and_links_in_brackets_are_no_blanks(response: str) -> None:
    assert outcome("no-placeholder", response) == "pass"


TALK = [
    "As the reference response says, tides are slow.",
    "Like the reference answer, this is short.",
    "This meets the criteria.",
    "I changed it after The Feedback.",
]
NO_TALK = [
    GOOD,
    "A reference response time is 3 ms.",
    "There are three criteria for it.",
    "Feedback makes it howl.",
    "the references are below",
]


@pytest.mark.parametrize("response", TALK)
def test_talk_of_the_prompt_fails(response: str) -> None:
    assert outcome("no-prompt-talk", response) == "fail"


@pytest.mark.parametrize("response", NO_TALK)
def test_the_same_words_in_another_sense_pass(response: str) -> None:
    assert outcome("no-prompt-talk", response) == "pass"


EXEMPT = [
    ("no-placeholder", "# TODO: later", "What does TODO mean in code?"),
    ("no-placeholder", "Dear [Your Name],", "Write a letter that begins: Dear [Your Name],"),
    ("no-placeholder", "Lorem ipsum is filler text.", "Where does lorem ipsum come from?"),
    ("no-refusal", "As an AI model, I ...", "Begin with the words: As an AI language model"),
    ("no-prompt-talk", "Weigh the criteria.", "How do I set out the criteria of a tender?"),
    ("no-prompt-talk", "Damp the feedback.", "Why does the feedback of my amplifier howl?"),
]


@pytest.mark.parametrize(("rule", "response", "instruction"), EXEMPT)
def test_what_the_instruction_itself_holds_is_allowed(
    rule: str, response: str, instruction: str
) -> None:
    assert outcome(rule, response) == "fail"
    assert outcome(rule, response, instruction) == "pass"


# Copies

RUN = words("the run", COPIED_RUN_WORDS)


def references(*responses: str) -> list[Reference]:
    return [{"id": f"r{i}", "instruction": "?", "response": r} for i, r in enumerate(responses, 1)]


@pytest.mark.parametrize(
    "response",
    [f"First {RUN} last", RUN.upper(), RUN.replace(" ", ",\n"), f"{GOOD} {RUN}."],
    ids=["inside", "other case", "other marks", "at the end"],
)
def test_a_run_of_twenty_words_of_a_reference_is_copied(response: str) -> None:
    found = look("not-copied", response, references=references("none", f"so {RUN} it is"))
    assert found["verdict"] == "fail"
    assert found["evidence"] == RUN
    assert "r2" in found["reason"]


def test_nineteen_words_in_a_row_are_not_copied() -> None:
    short = " ".join(RUN.split()[1:])
    assert outcome("not-copied", short, references=references(RUN)) == "pass"
    broken = RUN.split()
    broken[10] = "other"
    assert outcome("not-copied", " ".join(broken), references=references(RUN)) == "pass"


def test_a_run_that_the_instruction_holds_may_be_repeated() -> None:
    told = f"Translate: {RUN}"
    assert outcome("not-copied", RUN, told, references=references(RUN)) == "pass"


def test_a_run_that_the_instruction_holds_excuses_no_other() -> None:
    other = words("another run", COPIED_RUN_WORDS)
    whole = f"{RUN} {other}"
    assert outcome("not-copied", whole, f"Go on: {RUN}", references=references(whole)) == "fail"


def test_without_references_nothing_is_copied() -> None:
    assert outcome("not-copied", RUN, references=[]) == "pass"


HAN = "月亮的引力使海水在地球的两侧同时隆起因此每天有两次涨潮和落潮"


def test_a_run_of_another_script_is_copied_too() -> None:
    assert outcome("not-copied", HAN, references=references(HAN)) == "fail"


def test_a_run_of_another_script_that_the_instruction_holds_may_be_repeated() -> None:
    assert outcome("not-copied", HAN, f"翻译：{HAN}", references=references(HAN)) == "pass"


# Topic and length


@pytest.mark.parametrize(
    ("cosine", "bar", "expected"),
    [
        (0.5, 0.4, "pass"),
        (0.4, 0.4, "fail"),
        (0.3, 0.4, "fail"),
        (-0.1, -0.2, "pass"),
        (None, 0.4, "not_applicable"),
        (0.5, None, "not_applicable"),
    ],
)
def test_a_response_is_on_its_topic_above_the_bar(
    cosine: float | None, bar: float | None, expected: str
) -> None:
    found = look("on-topic", GOOD, cosine=cosine, topic_bar=bar)
    assert found["verdict"] == expected
    assert found["score"] == (None if expected == "not_applicable" else cosine)


@pytest.mark.parametrize(
    ("lengths", "n", "expected"),
    [
        ((80,), 20, "pass"),
        ((80,), 19, "fail"),
        ((80,), 320, "pass"),
        ((80,), 321, "fail"),
        ((40, 400), 10, "pass"),
        ((40, 400), 9, "fail"),
        ((400, 40), 1600, "pass"),
        ((400, 40), 1601, "fail"),
        ((), 5, "not_applicable"),
    ],
)
def test_a_length_fits_between_a_quarter_and_four_times_the_references(
    lengths: Sequence[int], n: int, expected: str
) -> None:
    given_ = references(*("x" * length for length in lengths))
    assert outcome("length", "y" * n, references=given_) == expected


# All of them


def test_the_rules_are_applied_in_the_order_they_are_listed() -> None:
    found = apply_rules(RuleInput(ASK, GOOD, references("s" * 200)))
    assert [v["criterion_id"] for v in found] == list(RULES)
    assert {v["verdict"] for v in found} == {"pass", "not_applicable"}
    assert [c["id"] for c in rule_criteria()] == list(RULES)


def test_only_the_length_is_no_must() -> None:
    assert [c["id"] for c in rule_criteria() if not c["must"]] == ["length"]
    assert {c["judged_by"] for c in rule_criteria()} == {"rule"}


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=200))
def test_any_text_gets_a_verdict_of_every_rule(ask: str, response: str, other: str) -> None:
    found = apply_rules(RuleInput(ask, response, references(other), 0.1, 0.2))
    assert [v["criterion_id"] for v in found] == list(RULES)
    for one in found:
        assert one["verdict"] in ("pass", "fail", "not_applicable")
        assert one["reason"] or one["verdict"] == "pass" or one["criterion_id"] == "not-empty"


@pytest.mark.parametrize("bar", [None, 0.0, 1.5])
def test_the_built_in_criterion_is_always_a_must_with_its_bar(bar: float | None) -> None:
    built_in = answers_instruction(bar)
    assert built_in == {
        "id": ANSWERS_ID,
        "text": "fully answers the instruction",
        "must": True,
        "reference_id": None,
        "quote": None,
        "judged_by": "judge",
        "bar": bar,
    }


def test_the_fixed_checklist_is_made_of_judged_musts() -> None:
    checklist = generic_criteria()
    assert [c["text"] for c in checklist] == list(GENERIC)
    assert len({c["id"] for c in checklist}) == len(GENERIC)
    assert all(c["must"] and c["judged_by"] == "judge" for c in checklist)


def test_every_criterion_completes_its_sentence() -> None:
    for criterion in [answers_instruction(None), *generic_criteria(), *rule_criteria()]:
        text = criterion["text"]
        assert text[0].islower()
        assert not text.endswith(".")


@pytest.mark.parametrize(
    ("pattern", "hints"),
    [
        (criteria._REFUSAL, criteria._REFUSAL_HINTS),
        (criteria._PLACEHOLDER, criteria._PLACEHOLDER_HINTS),
        (criteria._PROMPT_TALK, criteria._PROMPT_TALK_HINTS),
        (re.compile(generate._CODE_ALONE.pattern), generate._CODE_HINTS),
    ],
)
@given(data=st.data())
def test_whatever_a_rule_matches_holds_one_of_its_hints(pattern, hints, data):
    text = data.draw(st.from_regex(pattern)).casefold()
    assert any(hint in text for hint in hints)
