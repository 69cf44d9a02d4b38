"""The tables of a report: outcomes, criteria, references, a share with its interval in each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from refloom.data.record_stats import Passing
from refloom.measure.coverage import Coverage, Floats
from refloom.measure.report_account import Account, Taught, source_key
from refloom.measure.report_charts import mean_of
from refloom.measure.report_references import Shelf
from refloom.measure.report_spread import Measured, Spread
from refloom.measure.stats import NOTHING, Interval, share

MOST_CRITERIA = 30
MOST_REFERENCES = 40
MOST_SOURCES = 2
REASONS = {
    "criteria": "criteria still failed",
    "no_progress": "no progress in two rounds",
    "copied": "copied from a reference",
    "contaminated": "holds a benchmark's prompt",
    "reviewer": "a person rejected it",
    "budget": "the budget was spent",
}


class Part(NamedTuple):
    """One of the things that came out, and how often."""

    name: str
    times: int
    share: Interval


def outcomes(account: Account) -> dict[str, list[Part]]:
    """After how many attempts samples were accepted, why they were rejected, how they failed."""
    facts, judged = account.facts, account.judged
    accepted = [
        Part(f"accepted at attempt {at}", n, share(n, judged))
        for at, n in sorted(facts.attempts.items())
    ]
    rejected = facts.reasons.total()
    never = [Part("never: rejected", rejected, share(rejected, judged))] if judged else []
    return {
        "attempts": [*accepted, *never],
        "reasons": _parts(Counter({REASONS.get(k, k): n for k, n in facts.reasons.items()})),
        "failures": _parts(facts.errors),
    }


def _parts(counts: Counter[str], most: int = 12) -> list[Part]:
    total, common = counts.total(), counts.most_common(most)
    parts = [Part(name, n, share(n, total)) for name, n in common]
    rest = total - sum(n for _, n in common)
    return [*parts, Part("others", rest, share(rest, total))] if rest else parts


@dataclass(frozen=True)
class CriterionLine:
    """A criterion, and for each run how often it passed at first and at last."""

    text: str
    must: bool
    judged_by: str
    sources: list[tuple[str, str]]
    cells: list[tuple[Interval, Interval]]


def criteria(
    accounts: Sequence[Account], shelves: Sequence[Shelf]
) -> tuple[list[CriterionLine], int]:
    """Rules and built-in criteria, then the most judged ones of the references; how many more."""
    merged: dict[str, list[Passing | None]] = {}
    for i, account in enumerate(accounts):
        for key, passing in account.facts.criteria.items():
            if passing.times:
                merged.setdefault(key, [None] * len(accounts))[i] = passing
    ours: list[str] = []
    theirs: list[str] = []
    for key, found in merged.items():
        (theirs if any(p and p.drawn for p in found) else ours).append(key)
    theirs.sort(key=lambda key: -sum(p.times for p in merged[key] if p))
    shown = [*ours, *theirs[:MOST_CRITERIA]]
    lines = [_criterion(merged[key], accounts, shelves) for key in shown]
    return lines, max(len(theirs) - MOST_CRITERIA, 0)


def _criterion(
    found: Sequence[Passing | None], accounts: Sequence[Account], shelves: Sequence[Shelf]
) -> CriterionLine:
    one = next(passing for passing in found if passing)
    key, sources = source_key(one.text, one.must), dict[str, str]()
    for account, shelf in zip(accounts, shelves, strict=True):
        for id_, _ in account.sources.get(key, Counter[str]()).most_common(MOST_SOURCES):
            sources[id_] = sources.get(id_) or shelf.start(id_)
    cells = [(_passed(p.first), _passed(p.last)) if p else (NOTHING, NOTHING) for p in found]
    named = list(sources.items())[:MOST_SOURCES] if one.drawn else []
    return CriterionLine(one.text, one.must, one.judged_by, named, cells)


def _passed(counts: Counter[str]) -> Interval:
    return share(counts["pass"], counts["pass"] + counts["fail"] + counts["unknown"])


class TaughtCell(NamedTuple):
    """What came of a reference in a run."""

    samples: int
    failed: int
    accepted: Interval
    attempts: float | None
    criteria: Interval


@dataclass(frozen=True)
class ReferenceLine:
    """A reference, and for each run what came of the samples that used it."""

    id: str
    start: str
    cells: list[TaughtCell]


def ranked(accounts: Sequence[Account]) -> tuple[list[str], list[str], int]:
    """The ids of the references that teach best and worst, and how many were judged.

    By the near end of the interval, so that one lucky sample makes no best reference.
    """
    added: dict[str, list[int]] = {}
    for account in accounts:
        for id_, taught in account.taught.items():
            pair = added.setdefault(id_, [0, 0])
            pair[0], pair[1] = pair[0] + taught.accepted, pair[1] + taught.judged
    shares = {id_: share(hits, n) for id_, (hits, n) in added.items() if n}
    best = sorted(shares, key=lambda id_: (-(shares[id_].low or 0), id_))
    if len(best) <= MOST_REFERENCES:
        return best, [], len(best)
    half = MOST_REFERENCES // 2
    worst = sorted(shares, key=lambda id_: (shares[id_].high or 0, id_))
    return best[:half], worst[:half], len(best)


def references(
    ids: Sequence[str], accounts: Sequence[Account], shelves: Sequence[Shelf]
) -> list[ReferenceLine]:
    """Lines for some references."""
    return [
        ReferenceLine(
            id_,
            next((start for shelf in shelves if (start := shelf.start(id_))), ""),
            [_cell(account.taught.get(id_) or Taught()) for account in accounts],
        )
        for id_ in ids
    ]


def _cell(taught: Taught) -> TaughtCell:
    return TaughtCell(
        taught.judged,
        taught.failed,
        share(taught.accepted, taught.judged),
        taught.attempts / taught.judged if taught.judged else None,
        share(taught.criteria_passed, taught.criteria_judged),
    )


class Compared(NamedTuple):
    """A figure of the rows, of as many of them as there are references beside, and of those."""

    name: str
    rows: str
    equal: str
    references: str


def beside(found: Measured) -> list[Compared]:
    """Figures that hang on n, at equal n too."""
    shown: dict[str, Callable[[Spread], str]] = {
        "mean ROUGE-L F1 of all pairs": lambda spread: _plain(spread.pairwise),
        "mean ROUGE-L F1 of the nearest": lambda spread: _mean(spread.nearest),
        "mean distance of the nearest by meaning": lambda spread: _mean(spread.distances),
        "Vendi score": _vendi,
    }
    return [
        Compared(name, show(found.rows), show(found.equal), show(found.references))
        for name, show in shown.items()
    ]


def _plain(values: Floats) -> str:
    return f"{values.mean():.3f} ({len(values):,} pairs)" if len(values) else ""


def _mean(values: Floats) -> str:
    found = mean_of(values)
    if found.value is None:
        return ""
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _vendi(spread: Spread) -> str:
    return "" if spread.vendi is None else f"{spread.vendi:,.1f} of {spread.n:,}"


class ClusterLine(NamedTuple):
    """A cluster of references: the start of its most typical one, and what falls into it."""

    start: str
    references: Interval
    rows: Interval


def clusters(covered: Coverage, shelf: Shelf) -> list[ClusterLine]:
    """The clusters, the largest first."""
    many = sum(c.references for c in covered.clusters)
    rows = sum(c.rows for c in covered.clusters)
    return [
        ClusterLine(
            " ".join(shelf.sample[c.centre]["instruction"].split())[:160],
            share(c.references, many),
            share(c.rows, rows),
        )
        for c in covered.clusters
    ]
