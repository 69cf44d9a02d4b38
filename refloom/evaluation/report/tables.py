"""The tables of a report: outcomes, criteria, references, a share with its interval in each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

from refloom.data.record_stats import Passing
from refloom.evaluation.report.charts import mean_of, stack
from refloom.evaluation.report.collect import Account, Shelf, Taught, source_key
from refloom.evaluation.report.diversity import Coverage, Floats, Measured, Spread
from refloom.evaluation.stats import EMPTY, Interval, proportion
from refloom.runs.outputs import Used
from refloom.settings import embedded

MOST_CRITERIA = 30
MOST_REFERENCES = 40
MOST_SOURCES = 2
REASONS = {
    "criteria": "criteria still failed",
    "no_progress": "no progress in two rounds",
    "copied": "copied from a reference",
    "contaminated": "holds a benchmark's prompt",
    "reviewer": "a person rejected it",
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
        Part(f"accepted at attempt {at}", n, proportion(n, judged))
        for at, n in sorted(facts.attempts.items())
    ]
    rejected = facts.reasons.total()
    never = [Part("never: rejected", rejected, proportion(rejected, judged))] if judged else []
    return {
        "attempts": [*accepted, *never],
        "reasons": _parts(Counter({REASONS.get(k, k): n for k, n in facts.reasons.items()})),
        "failures": _parts(facts.errors),
    }


def _parts(counts: Counter[str], most: int = 12) -> list[Part]:
    total, common = counts.total(), counts.most_common(most)
    parts = [Part(name, n, proportion(n, total)) for name, n in common]
    rest = total - sum(n for _, n in common)
    return [*parts, Part("others", rest, proportion(rest, total))] if rest else parts


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
    cells = [(_passed(p.first), _passed(p.last)) if p else (EMPTY, EMPTY) for p in found]
    named = list(sources.items())[:MOST_SOURCES] if one.drawn else []
    return CriterionLine(one.text, one.must, one.judged_by, named, cells)


def _passed(counts: Counter[str]) -> Interval:
    return proportion(counts["pass"], counts["pass"] + counts["fail"] + counts["unknown"])


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
    shares = {id_: proportion(hits, n) for id_, (hits, n) in added.items() if n}
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
        proportion(taught.accepted, taught.judged),
        taught.attempts / taught.judged if taught.judged else None,
        proportion(taught.criteria_passed, taught.criteria_judged),
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
            proportion(c.references, many),
            proportion(c.rows, rows),
        )
        for c in covered.clusters
    ]


# MERGED refloom~measure~report_head
# What a report says of runs first: what they are, what came of them, what they cost.
STATES = {
    "done": "done",
    "short": "ended short of its target",
    "stopped": "stopped",
    "interrupted": "interrupted",
    "running": "under way",
}
SHOWN = (
    *("feedback", "review", "per_seed", "answer_seeds", "references_per_seed", "reference_quota"),
    *("max_attempts", "max_criteria", "should_share", "try_criteria", "novelty_threshold"),
    *("target", "limit", "turns", "random_seed", "preset", "engine"),
)
PARTS = (
    ("good", "accepted"),
    ("poor", "rejected"),
    ("doubt", "failed"),
    ("soft", "pending"),
)


class Line(NamedTuple):
    """A line of the table of runs: a value a run, and whether they differ."""

    name: str
    values: list[str]
    differs: bool


class Tile(NamedTuple):
    """A figure to see first; `note` says of how many it is."""

    name: str
    value: str
    note: str
    interval: Interval | None = None


def head(account: Account, found: Measured) -> dict[str, Any]:
    """A run's name, state and first figures."""
    said, counts = account.said, account.said["counts"]
    parts = [(kind, name, int(counts.get(name, 0))) for kind, name in PARTS]
    label = ", ".join(f"{n:,} {name}" for _, name, n in parts)
    return {
        "state": STATES.get(said["status"], said["status"]),
        "status": said["status"],
        "stopped": said.get("stopped") or "",
        "parts": parts,
        "candidates": int(counts.get("candidates", 0)),
        "bar": stack(parts, label),
        "tiles": _tiles(account, found),
    }


def _tiles(account: Account, found: Measured) -> list[Tile]:
    judged, accepted = account.judged, int(account.said["counts"]["accepted"])
    first = account.facts.attempts[1]
    rows, cost = found.rows, account.said.get("cost_usd")
    each = f"${cost / accepted:.4f}" if accepted and cost is not None else "unknown"
    near = f"{rows.nearest.mean():.2f}" if len(rows.nearest) else "unknown"
    score = f"{rows.vendi:,.0f}" if rows.vendi is not None else "unknown"
    return [
        _share("accepted", proportion(accepted, judged), "judged samples"),
        _share("accepted at once", proportion(first, judged), "judged samples"),
        Tile("different instructions", score, f"Vendi score of n = {rows.n:,} rows"),
        Tile("nearest instruction", near, f"mean ROUGE-L F1 of n = {rows.n:,} rows"),
        Tile("dollars a row", each, f"n = {accepted:,} accepted rows{_apart(account.borrowed)}"),
    ]


def _apart(borrowed: int) -> str:
    """What a cost leaves out, as the end of a sentence."""
    return f"; {borrowed:,} calls that another run paid for are not in it" if borrowed else ""


def _share(name: str, found: Interval, what: str) -> Tile:
    value = "unknown" if found.value is None else f"{100 * found.value:.0f} %"
    return Tile(name, value, f"n = {found.n:,} {what}", found)


def overview(accounts: Sequence[Account]) -> dict[str, list[Line]]:
    """Two tables of runs: what they were made with, and what there was of everything."""
    found = {}
    for title, facts in (("Settings", _settings), ("Counts and use", _use)):
        columns = [facts(account) for account in accounts]
        lines = []
        for name in dict.fromkeys(name for column in columns for name in column):
            values = [column.get(name, "") for column in columns]
            if any(values):
                lines.append(Line(name, values, facts is _settings and len(set(values)) > 1))
        found[title] = lines
    return found


def _settings(account: Account) -> dict[str, str]:
    said = account.said
    settings: Mapping[str, Any] = said.get("settings") or {}
    judge = settings.get("judge_model") or settings.get("model") or ""
    method = settings.get("judge_method") or ("logodds" if embedded(str(judge)) else "verdict")
    return {
        "model": named(settings.get("model")),
        "judge": f"{named(judge)}, {method}" if judge else "",
        "embedding model": named(settings.get("embedding_model")),
        "prompt version": text(said.get("prompt_version")),
        "refloom": text((said.get("versions") or {}).get("refloom")),
        **{k.replace("_", " "): text(settings.get(k)) for k in SHOWN},
        "benchmarks": ", ".join(map(named, settings.get("benchmark") or ())),
    }


def _use(account: Account) -> dict[str, str]:
    said = account.said
    calls, usage = said["calls"], said.get("usage") or {}
    return {
        **_counted(said["counts"]),
        **(_trials(said.get("criteria") or {}) if said.get("settings") else {}),
        "calls paid": number(calls.get("paid")),
        "calls reused": number(calls.get("reused")),
        "calls tried again": number(calls.get("retried")),
        "prompt tokens": number(usage.get("prompt_tokens")),
        "of them cached": number(usage.get("cached_tokens")),
        "completion tokens": number(usage.get("completion_tokens")),
        "dollars": money(said.get("cost_usd")),
        "time": duration(said.get("seconds")),
        "decided by people": account.facts.reviewed,
    }


def _counted(counts: Mapping[str, Any]) -> dict[str, str]:
    names = ("seeds", "references", "candidates", "accepted", "rejected", "failed", "pending")
    named_ = {name: name for name in names} | {
        "duplicates": "duplicates, dropped before",
        "contaminated": "contaminated, of the rejected",
        "references_failed": "references nothing was learned of",
        "rows_skipped": "rows left out in reading",
    }
    return {shown: number(counts.get(name)) for name, shown in named_.items()}


def _trials(criteria: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"criteria {name}": number(criteria.get(name))
        for name in ("proposed", "earned", "demoted", "dropped")
    }


def stages(account: Account) -> dict[str, Any]:
    """Calls, tokens and dollars by stage and model, and in all."""
    found = account.stages
    costs = [stage.cost_usd for stage in found]
    known = [cost for cost in costs if cost is not None]
    total = Used(
        "in all",
        "",
        sum(s.calls for s in found),
        sum(s.prompt_tokens for s in found),
        sum(s.cached_tokens for s in found),
        sum(s.completion_tokens for s in found),
        sum(known) if len(known) == len(costs) else None,
    )
    return {"lines": found, "total": total, "models": len({s.model for s in found}) > 1}


def named(value: object) -> str:
    """A model or file without the folders it is in, which are another machine's."""
    said = str(value or "")
    pure = PurePath(said)
    local = pure.is_absolute() or said.startswith((".", "~")) or pure.suffix == ".gguf"
    return pure.name if local else said


def text(value: object) -> str:
    """A setting in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def number(value: object) -> str:
    """A count with its thousands set apart."""
    return f"{value:,}" if isinstance(value, int | float) else ""


def money(value: float | None) -> str:
    """Dollars; a cost that is not known is not nothing."""
    if value is None:
        return "unknown: a model has no price"
    return f"${value:,.2f}" if value >= 1 else f"${value:.4f}"


def duration(seconds: float | None) -> str:
    """A time in the two largest units that it fills.

    >>> duration(3725), duration(12.3), duration(None)
    ('1 h 2 min', '12 s', '')
    """
    if seconds is None:
        return ""
    whole = round(seconds)
    for size, name, less, smaller in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // less} {smaller}"
    return f"{whole} s"
