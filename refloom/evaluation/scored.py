"""Files of scored rows: read, described, and two of them compared row by row."""

from __future__ import annotations

import heapq
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from memory.references import instruction_key
from refloom.data.files import read_rows
from refloom.data.responses import parse_response
from refloom.data.rubrics import SUBJECT
from refloom.data.shapes import UnknownShape
from refloom.errors import InputError
from refloom.evaluation.score_file import (
    MAX_CRITERIA,
    SCORE_FIELDS,
    SCORED_META,
    CriterionFigures,
    criterion_figures,
    journal_of,
)
from refloom.evaluation.stats import EMPTY, Interval, mean_interval, proportion, sign_test
from refloom.runs.journal import open_read_only

# Criteria and rows that are listed one by one.
MAX_CRITERIA_LISTED = 30
MAX_ROWS_LISTED = 12
# Scores nearer to one another than this are alike.
ALIKE = 1e-9


class ScoredRow(NamedTuple):
    """A scored row: its line, instruction and response, score, and verdicts by criterion id.

    `key` is what rows are matched by: the instruction, and the conversation before it.
    """

    line: int
    id: str | None
    key: str
    instruction: str
    response: str
    score: float | None
    outcomes: Mapping[str, str]
    verdicts: Sequence[Mapping[str, Any]]
    judge_model: str


class ScoredFile:
    """The scored rows of a file, which can be iterated again and again.

    `texts` says what criteria are, by id, as far as the journal beside the file tells.
    """

    def __init__(self, path: Path) -> None:
        """Read what is beside the file. Raises `InputError` if there is no such file."""
        self.path = path
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        about: dict[str, Any] = {}
        journal = journal_of(path)
        if journal.is_file():
            with open_read_only(journal) as connection:
                sql = "SELECT value FROM meta WHERE key = ?"
                stored = connection.execute(sql, (SCORED_META,)).fetchone()
            about = json.loads(stored[0]) if stored else {}
        self._columns: dict[str, str] = about.get("map", {})
        self.texts: dict[str, str] = about.get("criteria", {})

    def __iter__(self) -> Iterator[ScoredRow]:
        """Yield the rows; blocks. Raises `InputError` for a row that is none of `refloom score`."""
        for line, row in read_rows(self.path, None):
            if not isinstance(row, Mapping) or not row.keys() >= {*SCORE_FIELDS}:
                raise InputError(
                    f"{self.path}: line {line}: is no scored row; `refloom score` makes them"
                )
            try:
                _, _, parsed = parse_response(line, row, self._columns)
            except UnknownShape as error:
                raise InputError(
                    f"{self.path}: line {line}: its instruction and response are not found "
                    f"({error}); {journal_of(self.path).name} beside it tells their columns"
                ) from error
            if wrong := _find_wrong_field(row):
                raise InputError(
                    f"{self.path}: line {line}: {wrong!r} is not as `refloom score` writes it"
                )
            id_ = row.get("id")
            verdicts = row["verdicts"]
            yield ScoredRow(
                line,
                str(id_) if isinstance(id_, str | int) else None,
                parsed.key,
                parsed.text,
                parsed.response,
                row["score"],
                {one["criterion_id"]: one["verdict"] for one in verdicts},
                verdicts,
                str(row["judge_model"]),
            )

    def text_of(self, id_: str) -> str:
        """What a criterion says; its id where that is not known."""
        text = self.texts.get(id_)
        return id_ if text is None else SUBJECT + text


def _find_wrong_field(row: Mapping[str, Any]) -> str | None:
    """The field of a row that is not as scoring writes it, if one is not."""
    score, verdicts = row["score"], row["verdicts"]
    if score is not None and (
        isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1
    ):
        return "score"
    if not isinstance(verdicts, list) or not all(map(_is_verdict, verdicts)):
        return "verdicts"
    return None


def _is_verdict(one: Any) -> bool:
    return isinstance(one, Mapping) and all(
        isinstance(one.get(name), str) for name in ("criterion_id", "verdict")
    )


# What one file holds.


@dataclass
class ScoredFigures:
    """The figures of a file of scored rows."""

    name: str
    judge_models: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    scores: array[float] = field(default_factory=lambda: array("d"))
    mean: Interval = EMPTY
    without_score: int = 0
    without_criteria: int = 0
    verdicts: int = 0
    unknown: int = 0
    criteria: list[CriterionFigures] = field(default_factory=list)
    more_criteria: int = 0
    worst: list[ScoredRow] = field(default_factory=list)


def describe_file(file: ScoredFile) -> ScoredFigures:
    """Read a file and count. Blocks. Raises `InputError`.

    The worst rows are those of the lowest score, the earlier ones first.
    """
    figures, outcomes = ScoredFigures(file.path.name), Counter[tuple[str, str]]()
    texts: dict[str, str] = {}
    groups = array("q")
    worst: list[tuple[float, int, ScoredRow]] = []
    for row in file:
        figures.rows += 1
        figures.judge_models[row.judge_model] += 1
        figures.verdicts += len(row.outcomes)
        figures.without_criteria += not row.outcomes
        for id_, outcome in row.outcomes.items():
            figures.unknown += outcome == "unknown"
            if id_ in texts or len(texts) < MAX_CRITERIA:
                texts.setdefault(id_, file.text_of(id_))
                outcomes[id_, outcome] += 1
        if row.score is None:
            figures.without_score += 1
            continue
        figures.scores.append(row.score)
        groups.append(instruction_key(row.key))
        # A heap of the worst has the best of them on top.
        entry = (-row.score, -row.line, row)
        if len(worst) < MAX_ROWS_LISTED:
            heapq.heappush(worst, entry)
        else:
            heapq.heappushpop(worst, entry)
    if not figures.rows:
        raise InputError(f"{file.path}: holds no row")
    figures.mean = mean_interval(figures.scores, groups)
    figures.worst = [row for _, _, row in sorted(worst, reverse=True)]
    criteria = criterion_figures(texts, outcomes)
    figures.criteria = criteria[:MAX_CRITERIA_LISTED]
    figures.more_criteria = max(len(criteria) - MAX_CRITERIA_LISTED, 0)
    return figures


# Two files side by side.


class _Entry(NamedTuple):
    """What is held of a row until its partner is found."""

    line: int
    id: str | None
    score: float | None
    outcomes: Mapping[str, str]


class Pair(NamedTuple):
    """Two rows of one instruction, by the key of that; a score is None where it is not known."""

    group: int
    a: _Entry
    b: _Entry


def compare_scored(a: ScoredFile, b: ScoredFile, *, limit: int | None = None) -> dict[str, Any]:
    """The difference of the scores of two files, row by row. Blocks.

    Rows are paired by their instruction and the turns before it, white space folded; of several
    with one instruction by their `id` if both files have the same ones, else in their order.
    `limit` takes the first so many pairs of the first file.

    Raises:
        InputError: They have no instruction in common, or were scored by different judges or
            criteria, so that a difference would say nothing.
    """
    judges = {file: Counter[str]() for file in (a, b)}
    entries = {file: _entries(file, judges[file]) for file in (a, b)}
    names = sorted({*judges[a], *judges[b]})
    if len(names) != 1:
        raise InputError(
            f"{a.path} and {b.path}: scored by different judges ({'; '.join(names)}); score both "
            "by the same one"
        )
    pairs, only_a = [], 0
    for group, rows in entries[a].items():
        partners = entries[b].pop(group, [])
        paired = _pair(rows, partners)
        pairs += [Pair(group, *both) for both in paired]
        only_a += len(rows) - len(paired)
    # An instruction of which one file has more rows counts on either side.
    only_b = sum(judges[b].values()) - len(pairs)
    if not pairs:
        raise InputError(f"{a.path} and {b.path}: have no instruction in common")
    pairs = pairs[:limit]
    for pair in pairs:
        _check_criteria(a, b, pair)
    known = [
        (pair.group, pair.a.score, pair.b.score)
        for pair in pairs
        if pair.a.score is not None and pair.b.score is not None
    ]
    groups = [group for group, _, _ in known]
    gaps = [first - second for _, first, second in known]
    wins, losses = sum(gap > ALIKE for gap in gaps), sum(gap < -ALIKE for gap in gaps)
    difference = mean_interval(gaps, groups, low=-1.0)
    same = a.path.name == b.path.name
    return {
        "a": str(a.path) if same else a.path.name,
        "b": str(b.path) if same else b.path.name,
        "judge_model": names[0],
        "n": len(known),
        "instructions": len(set(groups)),
        "difference": difference._asdict(),
        "mean_a": mean_interval([one for _, one, _ in known], groups)._asdict(),
        "mean_b": mean_interval([one for _, _, one in known], groups)._asdict(),
        "wins": wins,
        "losses": losses,
        "ties": len(gaps) - wins - losses,
        "sign_p": sign_test(wins, losses),
        "without_score": len(pairs) - len(known),
        "only_a": only_a,
        "only_b": only_b,
        "criteria": _criterion_rows(a, b, pairs),
        "cards": _cards(a, b, pairs),
    }


def _entries(file: ScoredFile, judges: Counter[str]) -> dict[int, list[_Entry]]:
    """The rows of a file by instruction, without their texts; counts the judges."""
    entries: dict[int, list[_Entry]] = {}
    shared: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for row in file:
        judges[row.judge_model] += 1
        # Most rows have verdicts that others have too.
        outcomes = shared.setdefault(tuple(row.outcomes.items()), dict(row.outcomes))
        entry = _Entry(row.line, row.id, row.score, outcomes)
        entries.setdefault(instruction_key(row.key), []).append(entry)
    if not entries:
        raise InputError(f"{file.path}: holds no row")
    return entries


def _pair(rows: Sequence[_Entry], partners: Sequence[_Entry]) -> list[tuple[_Entry, _Entry]]:
    """Rows of one instruction with those of the other file."""
    if len(rows) > 1 or len(partners) > 1:
        by_id = {entry.id: entry for entry in partners if entry.id is not None}
        ids = [entry.id for entry in rows if entry.id is not None]
        unique = len(by_id) == len(partners) and len(set(ids)) == len(rows)
        if unique and not by_id.keys().isdisjoint(ids):
            return [(entry, by_id[entry.id]) for entry in rows if entry.id in by_id]
    return list(zip(rows, partners, strict=False))


def _check_criteria(a: ScoredFile, b: ScoredFile, pair: Pair) -> None:
    first, second = pair.a.outcomes.keys(), pair.b.outcomes.keys()
    if first == second:
        return
    other = sorted(first ^ second)[0]
    raise InputError(
        f"{a.path} (line {pair.a.line}) and {b.path} (line {pair.b.line}): one instruction was "
        f"scored by different criteria (such as {other}); score both by the same ones"
    )


def _criterion_rows(a: ScoredFile, b: ScoredFile, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """How often the responses of each file pass the commonest criteria."""
    outcomes: Counter[tuple[str, int, str]] = Counter()
    times: Counter[str] = Counter()
    for pair in pairs:
        for side, entry in enumerate((pair.a, pair.b)):
            for id_, outcome in entry.outcomes.items():
                outcomes[id_, side, outcome] += 1
        times.update(pair.a.outcomes.keys())
    rows = []
    for id_, _ in times.most_common(MAX_CRITERIA_LISTED):
        shares = []
        for side in (0, 1):
            passed, failed = outcomes[id_, side, "pass"], outcomes[id_, side, "fail"]
            shares.append(proportion(passed, passed + failed)._asdict())
        text = a.text_of(id_)
        text = b.text_of(id_) if text == id_ else text
        rows.append({"id": id_, "criterion": text, "a": shares[0], "b": shares[1]})
    return rows


def _cards(a: ScoredFile, b: ScoredFile, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The rows whose scores differ most, with their texts."""
    known = [p for p in pairs if p.a.score is not None and p.b.score is not None]
    gap = {id(p): abs((p.a.score or 0.0) - (p.b.score or 0.0)) for p in known}
    chosen = heapq.nlargest(MAX_ROWS_LISTED, known, key=lambda p: gap[id(p)])
    lines_a, lines_b = {p.a.line for p in chosen}, {p.b.line for p in chosen}
    texts_a = {row.line: row for row in a if row.line in lines_a}
    texts_b = {row.line: row for row in b if row.line in lines_b}
    return [
        {
            "instruction": texts_a[p.a.line].instruction,
            "a_response": texts_a[p.a.line].response,
            "b_response": texts_b[p.b.line].response,
            "a_score": p.a.score,
            "b_score": p.b.score,
            "differing": [
                a.text_of(id_) for id_ in p.a.outcomes if p.a.outcomes[id_] != p.b.outcomes[id_]
            ],
        }
        for p in chosen
        if gap[id(p)] > ALIKE
    ]


def format_scored(comparison: Mapping[str, Any]) -> str:
    """A comparison of two files of scores as plain text for a terminal."""
    a, b = comparison["a"], comparison["b"]
    lines = [f"{a} : {b}, judge {comparison['judge_model']}"]
    gap, n = comparison["difference"], comparison["n"]
    if not n:
        lines.append("no pair has two scores")
    else:
        lines += [
            f"difference {gap['value']:+.3f} (95 % interval {gap['low']:+.3f} to "
            f"{gap['high']:+.3f}), n = {n:,} rows of {comparison['instructions']:,} instructions",
            f"mean {comparison['mean_a']['value']:.3f} and {comparison['mean_b']['value']:.3f}; "
            f"{comparison['wins']:,} higher, {comparison['losses']:,} lower, "
            f"{comparison['ties']:,} alike; p (sign test) {comparison['sign_p']:.4f}",
        ]
    left_out = [
        f"{comparison[key]:,} {what}"
        for key, what in (
            ("without_score", "without a score"),
            ("only_a", f"only in {a}"),
            ("only_b", f"only in {b}"),
        )
        if comparison[key]
    ]
    if left_out:
        lines.append(f"left out: {', '.join(left_out)}")
    for row in comparison["criteria"]:
        if row["a"]["n"] and row["b"]["n"]:
            share = f"{row['a']['value']:>5.0%} {row['b']['value']:>5.0%}"
            lines.append(f"{share}  of {row['a']['n']:,}: {row['criterion']}"[:160])
    return "\n".join(lines)
