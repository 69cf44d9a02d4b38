"""A person's verdicts on the samples of a run, from a file, and how far a judge agrees with them.

A row of the file (.jsonl or .csv) is `{id, verdict}` for a whole sample or
`{id, criterion_id, verdict}` for one of its criteria. The verdict is pass or fail (or accept and
reject, true and false, 1 and 0). A second verdict on the same thing is refused.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nodes.record import Record
from nodes.state import Attempt, Verdict
from nodes.verdicts import passes
from refloom.data.files import file_format, read_rows
from refloom.data.record_stats import JuryVotes, jury_votes
from refloom.errors import InputError
from refloom.evaluation.stats import (
    EMPTY,
    Interval,
    bootstrap_mean,
    kappa,
    krippendorff_alpha,
    percentiles,
    resample_weights,
    rounded_interval,
)
from refloom.runs.journal import read_records

VERDICT_WORDS = {
    **dict.fromkeys(("pass", "passed", "accept", "accepted", "true", "yes", "1"), True),
    **dict.fromkeys(("fail", "failed", "reject", "rejected", "false", "no", "0"), False),
}
ACCEPTED_WORDS = "pass or fail (or accept/reject, true/false, 1/0)"
FILE_SUFFIXES = (".jsonl", ".csv")
# Criteria drawn from references get a row of their own from this many verdicts on.
MIN_LISTED = 5
# Stands in a key in place of a criterion id if the verdict is on the whole sample.
WHOLE_SAMPLE = None

# A sample id, and a criterion id or WHOLE_SAMPLE.
VerdictKey = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class HumanVerdict:
    """A person's verdict on a sample or on one of its criteria, and the line it stands on."""

    line: int
    id: str
    criterion_id: str | None
    passes: bool

    @property
    def key(self) -> VerdictKey:
        """What the verdict is on."""
        return self.id, self.criterion_id


@dataclass(frozen=True)
class HumanVerdicts:
    """The verdicts of a file, and by id the samples they are on."""

    verdicts: list[HumanVerdict]
    samples: dict[str, Record]


def read_human_verdicts(path: Path, directory: Path) -> HumanVerdicts:
    """Read the verdicts in `path`, and their samples from the run in `directory`. Blocks.

    Raises `InputError` naming file and line for a row that cannot be used, `JournalError` if there
    is no run.
    """
    if file_format(path) not in FILE_SUFFIXES:
        raise InputError(f"{path}: verdicts are read from {' or '.join(FILE_SUFFIXES)} files only")
    verdicts = [_parse_row(path, line, row) for line, row in read_rows(path, _raise_bad_line)]
    if not verdicts:
        raise InputError(
            f"{path}: holds no verdict. Give rows with id and verdict ({ACCEPTED_WORDS})"
        )
    lines: dict[VerdictKey, int] = {}
    for verdict in verdicts:
        first = lines.setdefault(verdict.key, verdict.line)
        if first != verdict.line:
            raise InputError(
                f"{path}: line {verdict.line} repeats the sample and criterion of line {first}. "
                "Give one verdict on each; where people differ, the one they agree on"
            )
    ids = {verdict.id for verdict in verdicts}
    samples: dict[str, Record] = {}
    for text in read_records(directory / "journal.sqlite", "accepted", "rejected", "failed"):
        record: Record = json.loads(text)
        if record["id"] in ids:
            samples[record["id"]] = record
    for verdict in verdicts:
        _check_sample(path, verdict, samples.get(verdict.id), directory)
    return HumanVerdicts(verdicts, samples)


def _raise_bad_line(file: str, line: int, what: str) -> None:
    raise InputError(f"{file}: line {line} {what}. Fix the line")


def _parse_row(path: Path, line: int, row: Any) -> HumanVerdict:
    if not isinstance(row, dict):
        raise InputError(
            f"{path}: line {line} is not an object of names and values. Give id and verdict"
        )
    values: dict[str, str] = {}
    for name in ("id", "verdict"):
        # In JSON a verdict may be the value true or the number 1.
        values[name] = str(row.get(name) if row.get(name) is not None else "").strip()
        if not values[name]:
            columns = ", ".join(map(str, row)) or "nothing"
            raise InputError(
                f"{path}: line {line} has no {name} (it has {columns}). Give the sample's id, "
                f"the verdict ({ACCEPTED_WORDS}), and criterion_id if it is on one criterion"
            )
    word = values["verdict"].casefold()
    if word not in VERDICT_WORDS:
        raise InputError(
            f"{path}: line {line} has the verdict {values['verdict'][:40]!r}. "
            f"Write {ACCEPTED_WORDS}"
        )
    criterion = row.get("criterion_id")
    criterion_id = str(criterion).strip() if criterion is not None else ""
    return HumanVerdict(line, values["id"], criterion_id or WHOLE_SAMPLE, VERDICT_WORDS[word])


def _check_sample(
    path: Path, verdict: HumanVerdict, record: Record | None, directory: Path
) -> None:
    """Raise `InputError` unless the sample of a verdict was judged, by its criterion if any."""
    at = f"{path}: line {verdict.line}"
    if record is None:
        raise InputError(
            f"{at} names the sample {verdict.id[:40]!r}, which is not in {directory}. Use the ids "
            "in its accepted.jsonl and rejected.jsonl"
        )
    if record["status"] == "failed":
        raise InputError(
            f"{at} names the sample {verdict.id!r}, which failed and was never judged. "
            "Remove the line"
        )
    known = [v["criterion_id"] for v in final_attempt(record)["verdicts"]]
    if verdict.criterion_id is not WHOLE_SAMPLE and verdict.criterion_id not in known:
        raise InputError(
            f"{at} names the criterion {verdict.criterion_id[:40]!r}, but the sample "
            f"{verdict.id!r} was judged by {', '.join(known) or 'none'}"
        )


def final_attempt(record: Record) -> Attempt:
    """The attempt that became the sample; the last attempt if a person rewrote the response.

    With reasoning that is the bare answer that was taken.
    """
    attempts: list[Attempt] = record["attempts"]
    if record.get("reasoning") is not None:
        attempts = record["answers"]
    same = [a for a in attempts if a["response"] == (record["response"] or "")]
    empty: Attempt = {"response": "", "verdicts": []}
    return same[0] if same else attempts[-1] if attempts else empty


@dataclass
class JudgeVerdicts:
    """Whether a judge passes what a person judged, and the votes of its jurors, if it is a jury."""

    passes: dict[VerdictKey, bool] = field(default_factory=dict)
    votes: dict[VerdictKey, JuryVotes] = field(default_factory=dict)

    def add(self, record: Record, verdicts: Iterable[Verdict]) -> None:
        """Add the verdicts on a sample by its criteria."""
        criteria = {c["id"]: c for c in record["criteria"]}
        for verdict in verdicts:
            key = record["id"], verdict["criterion_id"]
            self.passes[key] = passes(verdict)
            criterion = criteria.get(verdict["criterion_id"])
            if criterion is not None and (votes := jury_votes(verdict, criterion)) is not None:
                self.votes[key] = votes


def run_verdicts(human: HumanVerdicts) -> JudgeVerdicts:
    """The verdicts of the run's own judge and rules on the samples that a person judged.

    For a sample decided in a review, the verdict on the whole is the one that the run proposed.
    """
    judged = JudgeVerdicts()
    for id_, record in human.samples.items():
        review = record.get("review") or {}
        judged.passes[id_, WHOLE_SAMPLE] = review.get("proposed", record["status"]) == "accepted"
        judged.add(record, final_attempt(record)["verdicts"])
    return judged


def human_agreement(human: HumanVerdicts, judged: JudgeVerdicts) -> dict[str, Any]:
    """Kappa, agreement and counts over all verdicts, for whole samples, and by criterion.

    A person's verdicts on what the judge has not judged are counted as `without`. Of a jury also by
    `jurors`, and Krippendorff's `alpha` of the person and the jurors together; else it is None.
    """
    verdicts = judged.passes
    pairs = [(v, verdicts[v.key]) for v in human.verdicts if v.key in verdicts]
    criteria = {
        (id_, c["id"]): c for id_, record in human.samples.items() for c in record["criteria"]
    }
    built_in: dict[str, list[tuple[HumanVerdict, bool]]] = defaultdict(list)
    drawn: dict[str, list[tuple[HumanVerdict, bool]]] = defaultdict(list)
    for pair in pairs:
        criterion = criteria.get((pair[0].id, pair[0].criterion_id or ""))
        if criterion is not None and criterion["reference_id"] is None:
            built_in[criterion["id"]].append(pair)
        elif criterion is not None:
            drawn[criterion["text"]].append(pair)
    rows = [{"of": id_, **_agreement_figures(group)} for id_, group in built_in.items()]
    if drawn:
        pooled = [pair for group in drawn.values() for pair in group]
        rows.append({"of": "criteria from references", **_agreement_figures(pooled)})
    rows += [
        {"of": text, **_agreement_figures(group)}
        for text, group in drawn.items()
        if len(group) >= MIN_LISTED
    ]
    by_jurors = [(v, judged.votes[v.key]) for v in human.verdicts if v.key in judged.votes]
    by_model: dict[str, list[tuple[HumanVerdict, bool]]] = defaultdict(list)
    for human_verdict, votes in by_jurors:
        for model, vote in zip(votes.models, votes.votes, strict=True):
            if vote is not None:
                by_model[model].append((human_verdict, vote))
    on_samples = [pair for pair in pairs if pair[0].criterion_id is WHOLE_SAMPLE]
    return {
        "rows": len(human.verdicts),
        "without": len(human.verdicts) - len(pairs),
        "all": _agreement_figures(pairs),
        "samples": _agreement_figures(on_samples),
        "criteria": rows,
        "jurors": [{"of": model, **_agreement_figures(group)} for model, group in by_model.items()],
        "alpha": krippendorff_alpha(Counter((v.passes, *votes.votes) for v, votes in by_jurors)),
    }


def _agreement_figures(pairs: Sequence[tuple[HumanVerdict, bool]]) -> dict[str, Any]:
    """Figures over pairs of a person's verdict and the judge's; intervals are over samples.

    A count is named after the person first: `pass_fail` is what they pass and the judge fails.
    """
    outcomes = [(verdict.passes, judge_passes) for verdict, judge_passes in pairs]
    sample_ids = [verdict.id for verdict, _ in pairs]
    counts = {
        f"{person}_{judge}": outcomes.count((person == "pass", judge == "pass"))
        for person in ("pass", "fail")
        for judge in ("pass", "fail")
    }
    agreement = bootstrap_mean([float(a == b) for a, b in outcomes], sample_ids)
    return {
        "n": len(pairs),
        "kappa": bootstrap_kappa(outcomes, sample_ids)._asdict(),
        "agreement": agreement._asdict(),
        "confusion": counts,
    }


def bootstrap_kappa(outcomes: Sequence[tuple[bool, bool]], groups: Sequence[str]) -> Interval:
    """Cohen's kappa with a bootstrap interval over groups (one per pair of outcomes).

    Kappa is undefined for a resample in which both sides must agree by chance; it is left out.
    Without any other, or if all resamples give the same kappa, there is no interval.
    """
    value = kappa(outcomes)
    if value is None:
        return EMPTY._replace(n=len(outcomes))
    pairs, weights = np.asarray(outcomes, np.float64), resample_weights(groups)
    n = weights.sum(axis=1)
    agreement = weights @ (pairs[:, 0] == pairs[:, 1]).astype(np.float64) / n
    rate_a, rate_b = weights @ pairs[:, 0] / n, weights @ pairs[:, 1] / n
    chance = rate_a * rate_b + (1 - rate_a) * (1 - rate_b)
    defined = chance < 1 - 1e-12
    kappas = (agreement[defined] - chance[defined]) / (1 - chance[defined])
    if not len(kappas) or float(np.ptp(kappas)) < 1e-12:
        return Interval(value, None, None, len(outcomes))
    return rounded_interval(value, *percentiles(kappas), len(outcomes))
