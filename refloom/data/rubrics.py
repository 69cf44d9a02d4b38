"""Rubrics: the criteria of one instruction, with weights, as other tools' files have them.

A rubric has the criteria that a judge or a person's check decides. Rules are none of it: they hold
for every response, and gate a draft. RaR (Rubrics as Rewards, arXiv 2507.17746) and HealthBench
(openai/simple-evals) name its parts differently; both are read, and so is what refloom exports.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from memory.references import Turn
from nodes.own_criteria import (
    PITFALL,
    check_id,
    check_weight,
    check_words,
    fault_of,
    read_own_criterion,
)
from nodes.state import Criterion
from refloom.data.files import read_rows
from refloom.data.shapes import UnknownShape, find_criteria, history_turns, is_missing, parse_cell
from refloom.errors import InputError

RubricShape = Literal["rar", "healthbench"]

MUST_WEIGHT = 5
SHOULD_WEIGHT = 2
# What a description begins with, as RaR's do.
CATEGORIES = {
    "must": "Essential Criteria: ",
    "should": "Important Criteria: ",
    "pitfall": "Pitfall Criteria: ",
}
SUBJECT = "The response "
MAX_TITLE_WORDS = 8
MAX_TITLE_CHARS = 60
# Public rubrics have up to 67 items.
MAX_ITEMS = 200
# More than any criterion of a run has.
MAX_ITEM_CHARS = 20_000
# The names of an item's text and weight.
ITEM_KEYS: dict[RubricShape, tuple[str, str]] = {
    "rar": ("description", "weight"),
    "healthbench": ("criterion", "points"),
}
_CLAUSE_END = re.compile(r"[,;:.()\n]|\s[-\u2013\u2014]\s")
# Words that a title does not end with.
_LINKS = re.compile(
    r"an?|and|as|at|but|by|for|from|if|in|into|is|it|its|not|of|on|or|so|such|than|that|the|their"
    r"|then|to|when|where|which|while|who|with|without"
)
SYSTEM_ROLES = frozenset({"system", "developer"})
_QUESTION_KEYS = ("question", "prompt", "instruction")


def rubric_of(criteria: Iterable[Criterion]) -> list[Criterion]:
    """The criteria that are items of a rubric: a judge's, and checks that a person named.

    Checks by default hold for every response, as rules do.
    """
    # Imported here: what only reads rubrics does not wait for it.
    from nodes.checks import DEFAULT_CHECKS

    return [c for c in criteria if c["judged_by"] != "rule" and c["id"] not in DEFAULT_CHECKS]


def weight_of(criterion: Criterion) -> float:
    """What a criterion counts in a score: its own weight, else 5 for a must and 2 for a should."""
    weight = criterion.get("weight")
    if weight is not None:
        return weight
    return MUST_WEIGHT if criterion["must"] else SHOULD_WEIGHT


def describe_item(criterion: Criterion, shape: RubricShape = "rar") -> str:
    """A criterion as other tools word it; in RaR's shape with its category before it.

    Theirs leave out "The response", and so do these, unless `read_item` could not find the text
    again: one that begins with a capital, say.

    >>> from nodes.own_criteria import read_own_criterion
    >>> describe_item(read_own_criterion("names the cause", trusted=False)["criterion"])
    'Essential Criteria: Names the cause'
    >>> describe_item(read_own_criterion("JSON is all it holds", trusted=False)["criterion"])
    'Essential Criteria: The response JSON is all it holds'
    """
    text = fault_of(criterion) or criterion["text"]
    ending = text[:1].upper() + text[1:]
    if _end_of_sentence(ending) != text:
        ending = SUBJECT + text
    return ending if shape == "healthbench" else CATEGORIES[_level_of(criterion)] + ending


def _level_of(criterion: Criterion) -> str:
    if fault_of(criterion) is not None:
        return "pitfall"
    return "must" if criterion["must"] else "should"


def _end_of_sentence(ending: str) -> str:
    """The text of a criterion from what `describe_item` makes of it."""
    if ending.startswith(SUBJECT):
        return ending.removeprefix(SUBJECT)
    return ending[:1].lower() + ending[1:]


def title_of(criterion: Criterion) -> str:
    """The first words of a criterion, up to its first comma, as a title.

    >>> from nodes.own_criteria import read_own_criterion
    >>> own = read_own_criterion("names the cause of the fault, if any", trusted=False)
    >>> title_of(own["criterion"])
    'Names the cause of the fault'
    """
    text = fault_of(criterion) or criterion["text"]
    clause = _CLAUSE_END.split(text, maxsplit=1)[0].strip() or text
    words = clause.split()[:MAX_TITLE_WORDS]
    while len(words) > 1 and _LINKS.fullmatch(words[-1].lower()):
        words.pop()
    title = " ".join(words)[:MAX_TITLE_CHARS].strip()
    return title[:1].upper() + title[1:]


def write_item(
    criterion: Criterion,
    shape: RubricShape,
    *,
    pass_rate: float | None = None,
    verdict: str = "",
    fractional: bool = False,
) -> dict[str, Any]:
    """A criterion as an item of a rubric, with what is known of it.

    Args:
        criterion: As a record has it.
        shape: Whose names the item has.
        pass_rate: The share of drafts that passed it.
        verdict: On the reference answer, "" if there is none.
        fractional: Write the weight as a number with decimals, since others of the file have some.
    """
    weight = weight_of(criterion)
    weight = float(weight) if fractional else int(weight)
    item: dict[str, Any]
    if shape == "rar":
        item = {
            "title": title_of(criterion),
            "description": describe_item(criterion, shape),
            "weight": weight,
        }
    else:
        item = {
            "criterion": describe_item(criterion, shape),
            "points": weight,
            "tags": [f"level:{_level_of(criterion)}", f"judged_by:{criterion['judged_by']}"],
        }
    trial, tried = criterion.get("trial"), None
    if trial is not None:
        # A list of kinds, since the names of an object's keys are part of a column's type.
        kinds = [{"kind": kind, "passed": n} for kind, n in trial["spoiled"].items()]
        tried = {"references": trial["references"], "own": trial["own"], "spoiled": kinds}
    return item | {
        "criterion_id": criterion["id"],
        "must": criterion["must"],
        "quote": criterion["quote"] or "",
        "reference_id": criterion["reference_id"] or "",
        "judged_by": criterion["judged_by"],
        "check": criterion.get("check") or "",
        "trial": tried,
        "pass_rate": pass_rate,
        "verdict": verdict,
    }


def is_held_out(criterion: Criterion, share: float) -> bool:
    """Whether a criterion is among the `share` that a policy is not trained on.

    It depends on the words alone, so that a criterion is held out in every row and every export, or
    in none.
    """
    digest = sha256(criterion["text"].encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


@dataclass(slots=True)
class RubricCounts:
    """What a run's drafts say of each criterion, and how many items its rubrics have.

    `held_out` counts items that `share` holds out; `none_held_out` and `all_held_out` count the
    rubrics of which it takes no item, or leaves none.
    """

    share: float = 0.0
    fractional: bool = False
    rubrics: int = 0
    items: int = 0
    held_out: int = 0
    none_held_out: int = 0
    all_held_out: int = 0
    _verdicts: dict[str, list[int]] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any]) -> None:
        """Count the verdicts on a record's drafts, bare answers included, and its rubric."""
        criteria = rubric_of(record["criteria"])
        for draft in (*record["attempts"], *(record.get("answers") or ())):
            for verdict in draft["verdicts"]:
                if verdict["verdict"] in ("pass", "fail"):
                    counts = self._verdicts.setdefault(verdict["criterion_id"], [0, 0])
                    counts[verdict["verdict"] == "pass"] += 1
        if not criteria or not has_standing_instruction(record):
            return
        self.fractional |= any(weight_of(c) != int(weight_of(c)) for c in criteria)
        held_out = sum(is_held_out(criterion, self.share) for criterion in criteria)
        self.rubrics += 1
        self.items += len(criteria)
        self.held_out += held_out
        self.none_held_out += held_out == 0
        self.all_held_out += held_out == len(criteria)

    def pass_rate(self, criterion_id: str) -> float | None:
        """The share of the drafts on which a verdict is known that passed; None without any."""
        failed, passed = self._verdicts.get(criterion_id, (0, 0))
        return passed / (passed + failed) if passed + failed else None


def has_standing_instruction(record: Mapping[str, Any]) -> bool:
    """Whether an instruction may be trained on, whatever became of its response.

    One that holds a benchmark's prompt may not, and of a failed sample nobody knows.
    """
    return record["status"] == "accepted" or (
        record["status"] == "rejected" and record.get("reason") != "contaminated"
    )


def read_item(item: Mapping[str, Any]) -> Criterion:
    """The criterion of an item: of refloom's own, word for word as in the run, or another tool's.

    Raises `ValueError` if it is of no known shape.
    """
    for shape, (text_key, weight_key) in ITEM_KEYS.items():
        text, weight = item.get(text_key), item.get(weight_key)
        id_, judged_by = item.get("criterion_id"), item.get("judged_by")
        if not (isinstance(text, str) and isinstance(id_, str)) or judged_by is None:
            continue
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"{weight_key}: must be a number")
        check_weight(weight, weight_key)
        check_id(id_)
        check_words(text)
        if shape == "rar":
            category = next((c for c in CATEGORIES.values() if text.startswith(c)), "")
            text = text.removeprefix(category)
        text = _end_of_sentence(text)
        if not text.strip():
            raise ValueError(f"{text_key}: says nothing")
        if len(text) > MAX_ITEM_CHARS:
            raise ValueError(
                f"{text_key}: has {len(text)} characters, at most {MAX_ITEM_CHARS} are read"
            )
        return {
            "id": id_,
            "text": PITFALL + text if weight < 0 else text,
            "must": bool(item.get("must")),
            # Empty where a criterion is from no reference, or no function decides it.
            "reference_id": item.get("reference_id") or None,
            "quote": item.get("quote") or None,
            "judged_by": "check" if judged_by == "check" else "judge",
            "weight": weight,
            "check": item.get("check") or None,
            "trial": None,
        }
    found = find_criteria({"rubric": [item]})
    if not found:
        raise ValueError("has no text and weight under names of RaR or HealthBench")
    return read_own_criterion(found[0], trusted=False)["criterion"]


@dataclass(slots=True)
class Rubric:
    """The criteria of one instruction, and the conversation before it, if there was one."""

    instruction: str
    criteria: list[Criterion]
    history: Sequence[Turn] = ()


def fold_instruction(text: str) -> str:
    r"""An instruction with its white space folded: what rubrics and responses are matched by.

    >>> fold_instruction(" Why\n so? ")
    'Why so?'
    """
    return " ".join(text.split())


def conversation_key(instruction: str, history: Sequence[Turn] = ()) -> str:
    r"""What a question and the conversation before it are matched by, white space folded.

    System prompts are no part of it: trainers and tools add their own.

    >>> conversation_key("And \n now?", [{"role": "user", "content": "Why?"}])
    'user: Why?\nAnd now?'
    """
    said = [
        f"{turn['role']}: {fold_instruction(turn['content'])}"
        for turn in history
        if turn["role"].strip().lower() not in SYSTEM_ROLES
    ]
    return "\n".join([*said, fold_instruction(instruction)])


def read_rubrics(source: Path) -> dict[str, Rubric]:
    """The rubrics of a file by `conversation_key` of their question or prompt. Blocks.

    Of several with the same question, and the same turns before it, the criteria are joined, each
    id once. Raises `InputError` with file and line.
    """
    rubrics: dict[str, Rubric] = {}
    # Many rows have the same criteria: each is held once.
    known: dict[str, Criterion] = {}
    for line, row in read_rows(source, None):
        try:
            rubric = read_rubric(row)
        except ValueError as error:
            raise InputError(f"{source}: line {line}: {error}") from error
        key = conversation_key(rubric.instruction, rubric.history)
        before = rubrics.setdefault(key, rubric)
        ids = {criterion["id"] for criterion in before.criteria}
        before.criteria += [c for c in rubric.criteria if c["id"] not in ids]
        firsts = [known.setdefault(c["id"], c) for c in before.criteria]
        before.criteria[:] = [
            first if first == c else c for first, c in zip(firsts, before.criteria, strict=True)
        ]
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
