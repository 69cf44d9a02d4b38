"""Rubrics as files have them, and what verdicts on a response add up to."""

import json
from pathlib import Path
from typing import Any

import pytest

from nodes.criteria import verdict
from nodes.own_criteria import read_own_criterion
from nodes.state import Criterion
from refloom.data.rubrics import (
    conversation_key,
    describe_item,
    read_rubrics,
    rubric_of,
    weight_of,
)
from refloom.errors import InputError
from refloom.evaluation.score import score_verdicts


def criterion(text: str, **fields: Any) -> Criterion:
    return read_own_criterion({"text": text, **fields}, trusted=False)["criterion"]


MUST = criterion("names the cause", id="a")
SHOULD = criterion("is short", must=False, id="b")
PITFALL = criterion("blames the reader", weight=-3, id="c")


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def exported(item: Criterion, shape: Any) -> dict[str, Any]:
    text, weight = ("description", "weight") if shape == "rar" else ("criterion", "points")
    return {
        text: describe_item(item, shape),
        weight: weight_of(item),
        "criterion_id": item["id"],
        "must": item["must"],
        "judged_by": item["judged_by"],
    }


@pytest.mark.parametrize(
    ("outcomes", "score", "unknown"),
    [
        ("pass pass pass", 1.0, 0),
        ("pass fail pass", 5 / 7, 0),
        ("fail pass pass", 2 / 7, 0),
        ("pass pass fail", 4 / 7, 0),  # The fault is there.
        ("fail pass fail", 0.0, 0),  # Never below 0.
        ("pass not_applicable pass", 1.0, 0),
        ("pass unknown pass", 1.0, 1),
        ("unknown pass pass", 1.0, 1),  # 5 of 10 is half, and not more.
        ("unknown unknown pass", None, 2),
        ("not_applicable not_applicable fail", None, 0),  # No positive weight.
        ("unknown not_applicable pass", None, 1),  # 5 of 8.
    ],
)
def test_a_score_is_the_share_of_weight(outcomes: str, score: float | None, unknown: int) -> None:
    criteria = [MUST, SHOULD, PITFALL]
    verdicts = [verdict(c["id"], o) for c, o in zip(criteria, outcomes.split(), strict=True)]  # type: ignore[arg-type]
    got = score_verdicts(criteria, verdicts)
    assert got.unknown == unknown
    assert got.value == (None if score is None else pytest.approx(score))


def test_a_missing_verdict_is_unknown() -> None:
    assert score_verdicts([MUST, SHOULD], [verdict("b", "pass")]) == (None, 1)


def test_rules_and_checks_by_default_are_no_items_of_a_rubric() -> None:
    rule: Criterion = {**MUST, "id": "not-empty", "judged_by": "rule"}
    check: Criterion = {**SHOULD, "judged_by": "check", "check": "json"}
    default: Criterion = {**check, "id": "check-python"}
    assert rubric_of([MUST, rule, check, default]) == [MUST, check]


@pytest.mark.parametrize("shape", ["rar", "healthbench"])
@pytest.mark.parametrize(
    "item",
    [
        MUST,
        SHOULD,
        PITFALL,
        criterion("JSON is all it holds.", id="d"),
        {**MUST, "text": "Should say: the response is 5."},
        {**SHOULD, "judged_by": "check", "check": "max_words:9"},
    ],
)
def test_what_is_exported_is_read_word_for_word(
    item: Criterion, shape: Any, tmp_path: Path
) -> None:
    column = "rubric" if shape == "rar" else "rubrics"
    row = {"question": "Why?", column: [exported(item, shape)]}
    rubrics = read_rubrics(write(tmp_path / "rubric.jsonl", row))
    (got,) = rubrics["Why?"].criteria
    for key in ("id", "text", "must", "judged_by"):
        assert got[key] == item[key]  # type: ignore[literal-required]
    if item.get("check") and item["judged_by"] == "check":
        assert got["judged_by"] == "check"


def test_public_shapes_are_read(tmp_path: Path) -> None:
    rar = {
        "question": "What  is\nit?",
        "rubric": [
            {"title": "Cause", "description": "Essential Criteria: Names the cause", "weight": 5},
            {"title": "Tone", "description": "Pitfall Criteria: Blames the reader", "weight": -1},
        ],
    }
    health = {
        "prompt": [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": "It hurts."},
        ],
        "rubrics": [{"criterion": "Asks where it hurts.", "points": 7, "tags": ["axis:x"]}],
    }
    rubrics = read_rubrics(write(tmp_path / "rubric.jsonl", rar, health))
    talk = "user: Hello.\nassistant: Yes?\nIt hurts."
    assert list(rubrics) == ["What is it?", talk]
    names, blames = rubrics["What is it?"].criteria
    assert (names["text"], names["must"], weight_of(names)) == ("names the cause", True, 5)
    assert blames["text"] == "avoids this fault: blames the reader"
    assert [turn["content"] for turn in rubrics[talk].history] == ["Hello.", "Yes?"]
    assert conversation_key(" It  hurts.\n", rubrics[talk].history) == talk


def test_rubrics_of_one_question_are_joined(tmp_path: Path) -> None:
    rows = [
        {"question": "Why?", "rubric": [exported(item, "rar") for item in items]}
        for items in ([MUST], [MUST, SHOULD])
    ]
    rubrics = read_rubrics(write(tmp_path / "rubric.jsonl", *rows))
    assert [c["id"] for c in rubrics["Why?"].criteria] == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([1], "line 2: is not an object"),
        ({"question": "Why?"}, "line 2: is no rubric"),
        ({"rubric": [exported(MUST, "rar")]}, "line 2: is no rubric"),
        ({"question": "Why?", "rubric": "all"}, "line 2"),
        ({"question": "Why?", "rubric": ["one"]}, "rubric, item 1: is not an object"),
        ({"question": "Why?", "rubric": [{"title": "x"}]}, "rubric, item 1: has no text"),
        (
            {"question": "Why?", "rubric": [{**exported(MUST, "rar"), "weight": "5"}]},
            "rubric, item 1: weight: must be a number",
        ),
        *(
            (
                {"question": "Why?", "rubric": [{**exported(MUST, "rar"), "weight": weight}]},
                "rubric, item 1: weight: must be a finite number",
            )
            for weight in (float("nan"), float("inf"), 10**400, 1e308, -1e308)
        ),
        *(
            (
                {"question": "Why?", "rubric": [{**exported(MUST, "rar"), **fields}]},
                f"rubric, item 1: {said}",
            )
            for fields, said in (
                ({"description": "Essential Criteria: "}, "description: says nothing"),
                ({"description": "Is " + "x" * 20_000}, "description: has 20003 characters"),
                ({"description": "Is \ud800 kind"}, "text: has a lone surrogate"),
                ({"criterion_id": "a b"}, "id: 'a b' is not"),
                ({"criterion_id": "a\ud800"}, "id: "),
                ({"criterion_id": ""}, "id: "),
            )
        ),
        (
            {"question": "Why?", "rubric": [{"description": "Is \ud800 kind", "weight": 1}]},
            "rubric, item 1: text: has a lone surrogate",
        ),
        (
            {"question": "Why?", "rubric": [{"description": "Is kind", "weight": 10**400}]},
            "rubric, item 1: weight: must be a finite number",
        ),
        ({"prompt": [{"role": "assistant", "content": "a"}], "rubric": []}, "line 2: prompt: must"),
    ],
)
def test_a_bad_rubric_is_named(row: Any, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rubric.jsonl", {"question": "Hm?", "rubric": []}, row)
    with pytest.raises(InputError, match="rubric") as raised:
        read_rubrics(path)
    assert said in str(raised.value)


def test_an_empty_file_is_no_rubric(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rubric"):
        read_rubrics(write(tmp_path / "rubric.jsonl"))
