"""Rubrics: the criteria of one instruction, with weights, as other tools' files have them.

A rubric has the criteria that a judge or a check decides. Rules are none of it: they hold for every
response, and gate a draft. RaR (Rubrics as Rewards, arXiv 2507.17746) and HealthBench (openai/
simple-evals) name the parts of a rubric differently; both are read, and so is what refloom exports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from memory.references import Turn
from nodes.own_criteria import PITFALL, fault_of, read_own_criterion
from nodes.state import Criterion
from refloom.data.files import read_rows
from refloom.data.shapes import UnknownShape, find_criteria, history_turns, is_missing, parse_cell
from refloom.errors import InputError

RubricShape = Literal["rar", "healthbench"]

MUST_WEIGHT = 5
SHOULD_WEIGHT = 2
# What a description begins with, as RaR's do.
CATEGORIES = {"must": "Essential Criteria: ", "should": "Important Criteria: "}
PITFALL_CATEGORY = "Pitfall Criteria: "
SUBJECT = "The response "
# Public rubrics have up to 67 items.
MAX_ITEMS = 200
# The names of an item's text and weight.
ITEM_KEYS: dict[RubricShape, tuple[str, str]] = {
    "rar": ("description", "weight"),
    "healthbench": ("criterion", "points"),
}
_QUESTION_KEYS = ("question", "prompt", "instruction")


def rubric_of(criteria: Iterable[Criterion]) -> list[Criterion]:
    """The criteria that are items of a rubric: those that a judge or a check decides."""
    return [criterion for criterion in criteria if criterion["judged_by"] != "rule"]


def weight_of(criterion: Criterion) -> float:
    """What a criterion counts in a score: its own weight, else 5 for a must and 2 for a should."""
    weight = criterion.get("weight")
    if weight is not None:
        return weight
    return MUST_WEIGHT if criterion["must"] else SHOULD_WEIGHT


def describe_item(criterion: Criterion, shape: RubricShape = "rar") -> str:
    """A criterion as a sentence; in RaR's shape with its category before it.

    >>> from nodes.own_criteria import read_own_criterion
    >>> describe_item(read_own_criterion("names the cause", trusted=False)["criterion"])
    'Essential Criteria: The response names the cause'
    """
    fault = fault_of(criterion)
    sentence = SUBJECT + (criterion["text"] if fault is None else fault)
    if shape == "healthbench":
        return sentence
    category = CATEGORIES["must" if criterion["must"] else "should"]
    return (PITFALL_CATEGORY if fault is not None else category) + sentence


def read_item(item: Mapping[str, Any]) -> Criterion:
    """The criterion of an item: of refloom's own, word for word as in the run, or another tool's.

    Raises `ValueError` if it is of no known shape.
    """
    for text_key, weight_key in ITEM_KEYS.values():
        text, weight = item.get(text_key), item.get(weight_key)
        id_, judged_by = item.get("criterion_id"), item.get("judged_by")
        if not (isinstance(text, str) and isinstance(id_, str)) or judged_by is None:
            continue
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"{weight_key}: must be a number")
        for category in (*CATEGORIES.values(), PITFALL_CATEGORY):
            text = text.removeprefix(category)
        text = text.removeprefix(SUBJECT)
        return {
            "id": id_,
            "text": PITFALL + text if weight < 0 else text,
            "must": bool(item.get("must")),
            "reference_id": item.get("reference_id"),
            "quote": item.get("quote"),
            "judged_by": "check" if judged_by == "check" else "judge",
            "weight": weight,
            "check": item.get("check"),
            "trial": None,
        }
    found = find_criteria({"rubric": [item]})
    if not found:
        raise ValueError("has no text and weight under names of RaR or HealthBench")
    return read_own_criterion(found[0], trusted=False)["criterion"]


class Rubric:
    """The criteria of one instruction, and the conversation before it, if there was one."""

    def __init__(
        self, instruction: str, criteria: Sequence[Criterion], history: Sequence[Turn] = ()
    ) -> None:
        self.instruction, self.criteria, self.history = instruction, list(criteria), list(history)


def fold_instruction(text: str) -> str:
    r"""An instruction with its white space folded: what rubrics and responses are matched by.

    >>> fold_instruction(" Why\n so? ")
    'Why so?'
    """
    return " ".join(text.split())


def read_rubrics(source: Path) -> dict[str, Rubric]:
    """The rubrics of a file by `fold_instruction` of their question or prompt. Blocks.

    Of several with the same question the criteria are joined, each id once. Raises `InputError`
    with file and line.
    """
    rubrics: dict[str, Rubric] = {}
    for line, row in read_rows(source, None):
        try:
            rubric = read_rubric(row)
        except ValueError as error:
            raise InputError(f"{source}: line {line}: {error}") from error
        before = rubrics.setdefault(fold_instruction(rubric.instruction), rubric)
        ids = {criterion["id"] for criterion in before.criteria}
        before.criteria += [c for c in rubric.criteria if c["id"] not in ids]
    if not rubrics:
        raise InputError(f"{source}: holds no rubric (it is empty)")
    return rubrics


def read_rubric(row: Any) -> Rubric:
    """The rubric of a row. Raises `ValueError` with what is wrong."""
    if not isinstance(row, Mapping):
        raise ValueError("is not an object")
    key = next((key for key in _QUESTION_KEYS if not is_missing(row.get(key))), None)
    column = next((key for key in ("rubric", "rubrics") if row.get(key) is not None), None)
    if key is None or column is None:
        raise ValueError(
            "is no rubric: it needs a question (or prompt) and a rubric (or rubrics), a list of "
            "objects"
        )
    instruction, history = _read_question(row, key)
    try:
        items = parse_cell(row, column)
    except UnknownShape as error:
        raise ValueError(str(error)) from error
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise ValueError(f"{column}: must be a list")
    if len(items) > MAX_ITEMS:
        raise ValueError(f"{column}: has {len(items)} items, and at most {MAX_ITEMS} are read")
    criteria = []
    for number, item in enumerate(items, 1):
        try:
            if not isinstance(item, Mapping):
                raise ValueError("is not an object")
            criteria.append(read_item(item))
        except ValueError as error:
            raise ValueError(f"{column}, item {number}: {error}") from error
    return Rubric(instruction, criteria, history)


def _read_question(row: Mapping[str, Any], key: str) -> tuple[str, Sequence[Turn]]:
    """The instruction, and the turns before it where the prompt is a conversation."""
    value = row[key]
    if isinstance(value, str):
        return value, ()
    turns = history_turns(value)
    if not turns or turns[-1]["role"] != "user":
        raise ValueError(f"{key}: must be a text, or messages that end with one of the user")
    return turns[-1]["content"], turns[:-1]
