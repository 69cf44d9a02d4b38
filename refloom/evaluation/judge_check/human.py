"""A person's verdicts on a run's samples, from a file, and how far a judge agrees with them.

A row of the file (.jsonl or .csv) is `{id, verdict}` for a whole sample or
`{id, criterion_id, verdict}` for one criterion of it, with the words pass and fail (or accept and
reject, true and false, 1 and 0). A second verdict on the same thing is refused.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nodes.record import Record
from nodes.state import Attempt
from nodes.verdicts import passes
from refloom.data.files import read_rows
from refloom.errors import InputError
from refloom.evaluation.stats import (
    CONFIDENCE,
    EMPTY,
    Interval,
    bootstrap_mean,
    kappa,
    resample_weights,
)
from refloom.runs.journal import read_records

VERDICT_WORDS = {
    **dict.fromkeys(("pass", "passed", "accept", "accepted", "true", "yes", "1"), True),
    **dict.fromkeys(("fail", "failed", "reject", "rejected", "false", "no", "0"), False),
}
ACCEPTED_WORDS = "pass or fail (or accept/reject, true/false, 1/0)"
FILE_SUFFIXES = (".jsonl", ".csv")
# Criteria drawn from references are shown singly from so many verdicts on.
MIN_LISTED = 5
# What a verdict on a whole sample has in the place of a criterion.
WHOLE_SAMPLE = None

VerdictKey = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class HumanVerdict:
    """A person's verdict: on which line, of which sample, on which criterion (None: the whole)."""

    line: int
    id: str
    criterion_id: str | None
    passes: bool

    @property
    def key(self) -> VerdictKey:
        """What the verdict is about."""
        return self.id, self.criterion_id


@dataclass(frozen=True)
class HumanVerdicts:
    """The verdicts of a file, and the samples they are about, by id."""

    said: list[HumanVerdict]
    samples: dict[str, Record]


def read_human_verdicts(path: Path, directory: Path) -> HumanVerdicts:
    """Read verdicts and find what they are about in the run of `directory`. Blocks.

    Raises `InputError` naming file and line for a row that cannot be used, `JournalError` when
    there is no run.
    """
    if path.suffix not in FILE_SUFFIXES:
        raise InputError(f"{path}: verdicts are read from {' or '.join(FILE_SUFFIXES)} files only")
    said = [_read_row(path, line, row) for line, row in read_rows(path, _raise_bad_line)]
    if not said:
        raise InputError(
            f"{path}: holds no verdict. Give rows with id and verdict ({ACCEPTED_WORDS})"
        )
    _check_once(path, said)
    wanted = {one.id for one in said}
    samples: dict[str, Record] = {}
    for text in read_records(directory / "journal.sqlite", "accepted", "rejected", "failed"):
        record: Record = json.loads(text)
        if record["id"] in wanted:
            samples[record["id"]] = record
    for one in said:
        _check_sample(path, one, samples.get(one.id), directory)
    return HumanVerdicts(said, samples)


def _check_once(path: Path, said: Sequence[HumanVerdict]) -> None:
    """Refuse a second verdict on the same thing, be it the same or another."""
    lines: dict[VerdictKey, int] = {}
    for one in said:
        first = lines.setdefault(one.key, one.line)
        if first != one.line:
            raise InputError(
                f"{path}: line {one.line} judges what line {first} has judged. Give one verdict on "
                "each sample and criterion; where people differ, what they agree on"
            )


def _raise_bad_line(file: str, line: int, what: str) -> None:
    raise InputError(f"{file}: line {line} {what}. Mend the line")


def _read_row(path: Path, line: int, row: Any) -> HumanVerdict:
    if not isinstance(row, dict):
        raise InputError(f"{path}: line {line} is no row of names and values. Give id and verdict")
    found: dict[str, str] = {}
    for name in ("id", "verdict"):
        # `true` and 1 are words in JSON too.
        found[name] = str(row.get(name) if row.get(name) is not None else "").strip()
        if not found[name]:
            columns = ", ".join(map(str, row)) or "nothing"
            raise InputError(
                f"{path}: line {line} has no {name} (it has {columns}). Give the sample's id, "
                f"the verdict ({ACCEPTED_WORDS}), and a criterion_id if it is about one"
            )
    word = found["verdict"].casefold()
    if word not in VERDICT_WORDS:
        raise InputError(
            f"{path}: line {line} has the verdict {found['verdict'][:40]!r}. Write {ACCEPTED_WORDS}"
        )
    criterion = row.get("criterion_id")
    about = str(criterion).strip() if criterion is not None else ""
    return HumanVerdict(line, found["id"], about or WHOLE_SAMPLE, VERDICT_WORDS[word])


def _check_sample(path: Path, said: HumanVerdict, record: Record | None, directory: Path) -> None:
    at = f"{path}: line {said.line}"
    if record is None:
        raise InputError(
            f"{at} names the sample {said.id[:40]!r}, which is not in {directory}. Take the ids "
            "of its accepted.jsonl and rejected.jsonl"
        )
    if record["status"] == "failed":
        raise InputError(
            f"{at} names the sample {said.id!r}, which failed and was never judged. Leave it out"
        )
    known = [v["criterion_id"] for v in final_attempt(record)["verdicts"]]
    if said.criterion_id is not WHOLE_SAMPLE and said.criterion_id not in known:
        raise InputError(
            f"{at} names the criterion {said.criterion_id[:40]!r}, by which the sample {said.id!r} "
            f"was not judged. It was by {', '.join(known) or 'none'}"
        )


def final_attempt(record: Record) -> Attempt:
    """The attempt that became the sample; the last one where a person has written another text."""
    attempts: list[Attempt] = record["attempts"]
    same = [a for a in attempts if a["response"] == (record["response"] or "")]
    nothing: Attempt = {"response": "", "verdicts": []}
    return same[0] if same else attempts[-1] if attempts else nothing


def run_verdicts(human: HumanVerdicts) -> dict[VerdictKey, bool]:
    """What the run's own judge and rules said, by what it is about.

    Where a person has decided since, a whole sample counts as it would have ended without them.
    """
    found: dict[VerdictKey, bool] = {}
    for id_, record in human.samples.items():
        review = record.get("review") or {}
        found[id_, WHOLE_SAMPLE] = review.get("proposed", record["status"]) == "accepted"
        for verdict in final_attempt(record)["verdicts"]:
            found[id_, verdict["criterion_id"]] = passes(verdict)
    return found


def human_agreement(human: HumanVerdicts, verdicts: Mapping[VerdictKey, bool]) -> dict[str, Any]:
    """Kappa, raw agreement and counts: over all, for whole samples, and by criterion.

    `verdicts` is the judge's side; rows it says nothing about are counted as `without`.
    """
    both = [(one, verdicts[one.key]) for one in human.said if one.key in verdicts]
    criteria = {
        (id_, c["id"]): c for id_, record in human.samples.items() for c in record["criteria"]
    }
    by: dict[str, list[tuple[HumanVerdict, bool]]] = defaultdict(list)
    drawn: dict[str, list[tuple[HumanVerdict, bool]]] = defaultdict(list)
    for said, passed in both:
        criterion = criteria.get((said.id, said.criterion_id or ""))
        if criterion is None:
            continue
        if criterion["reference_id"] is None:
            by[criterion["id"]].append((said, passed))
        else:
            drawn[criterion["text"]].append((said, passed))
    rows = [{"of": id_, **_agreement_figures(pairs)} for id_, pairs in by.items()]
    if drawn:
        pooled = [pair for pairs in drawn.values() for pair in pairs]
        rows.append({"of": "criteria from references", **_agreement_figures(pooled)})
    enough = {text: pairs for text, pairs in drawn.items() if len(pairs) >= MIN_LISTED}
    rows += [{"of": text, **_agreement_figures(pairs)} for text, pairs in enough.items()]
    whole = [pair for pair in both if pair[0].criterion_id is WHOLE_SAMPLE]
    return {
        "rows": len(human.said),
        "without": len(human.said) - len(both),
        "all": _agreement_figures(both),
        "samples": _agreement_figures(whole),
        "criteria": rows,
    }


def _agreement_figures(pairs: Sequence[tuple[HumanVerdict, bool]]) -> dict[str, Any]:
    """Figures over pairs of a person's verdict and the judge's; intervals are over samples.

    Counts are named after the person first: `pass_fail` is what the judge fails and they pass.
    """
    verdicts = [(said.passes, passed) for said, passed in pairs]
    of = [said.id for said, _ in pairs]
    names = {True: "pass", False: "fail"}
    counts = {
        f"{names[theirs]}_{names[its]}": verdicts.count((theirs, its))
        for theirs in (True, False)
        for its in (True, False)
    }
    agreed = bootstrap_mean([float(a == b) for a, b in verdicts], of)
    return {
        "n": len(pairs),
        "kappa": bootstrap_kappa(verdicts, of)._asdict(),
        "agreement": agreed._asdict(),
        "confusion": counts,
    }


def bootstrap_kappa(verdicts: Sequence[tuple[bool, bool]], of: Sequence[str]) -> Interval:
    """Cohen's kappa with a bootstrap interval over the groups `of`.

    Resamples in which chance alone makes both agree say nothing and are left out; without any
    other there is no interval.
    """
    value = kappa(verdicts)
    if value is None:
        return EMPTY._replace(n=len(verdicts))
    pairs, weights = np.asarray(verdicts, np.float64), resample_weights(of)
    n = weights.sum(axis=1)
    agreed = weights @ (pairs[:, 0] == pairs[:, 1]).astype(np.float64) / n
    mine, its = weights @ pairs[:, 0] / n, weights @ pairs[:, 1] / n
    chance = mine * its + (1 - mine) * (1 - its)
    known = chance < 1 - 1e-12
    found = (agreed[known] - chance[known]) / (1 - chance[known])
    if not len(found) or float(np.ptp(found)) < 1e-12:
        return Interval(value, None, None, len(verdicts))
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, round(float(low), 4), round(float(high), 4), len(verdicts))
