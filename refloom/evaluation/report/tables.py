"""The tables of a report: head, settings, outcomes, criteria, references, diversity, cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nodes.context import split_jurors
from refloom.data.card import short_name
from refloom.data.record_stats import CriterionStats, TrialStats, criterion_key
from refloom.evaluation.agreement import jury_agreement
from refloom.evaluation.report.charts import bootstrap_mean_of, stacked_bar
from refloom.evaluation.report.collect import ReferenceSample, ReferenceStats, RunData
from refloom.evaluation.report.diversity import Coverage, RunDiversity, Spread
from refloom.evaluation.stats import EMPTY, FloatArray, Interval, proportion
from refloom.runs.journal import TOKEN_FIELDS
from refloom.runs.outputs import StageUsage
from refloom.settings import DEFAULT_TIER, default_judge_method

MAX_CRITERIA = 30
MAX_TRIALS = 30
MAX_REFERENCES = 40
MAX_SOURCES_SHOWN = 2
MAX_SHARES = 12
REASONS = {
    "criteria": "criteria still failed",
    "no_progress": "no progress in two rounds",
    "copied": "copied from a reference",
    "contaminated": "holds a benchmark's prompt",
    "reviewer": "a person rejected it",
}


class OutcomeShare(NamedTuple):
    """An outcome, how often it came, and its share."""

    name: str
    times: int
    share: Interval


def outcome_tables(run: RunData) -> dict[str, list[OutcomeShare]]:
    """At which attempt samples were accepted, why they were rejected, and how they failed.

    With reasoning also what became of the bare answers.
    """
    stats, judged = run.stats, run.judged
    accepted = [
        OutcomeShare(f"accepted at attempt {at}", n, proportion(n, judged))
        for at, n in sorted(stats.attempts.items())
    ]
    rejected = stats.reasons.total()
    never = (
        [OutcomeShare("never: rejected", rejected, proportion(rejected, judged))] if judged else []
    )
    waiting = (
        [OutcomeShare("not yet: waits for a person", run.waiting, proportion(run.waiting, judged))]
        if run.waiting
        else []
    )
    return {
        "answers": _answer_shares(run),
        "attempts": [*accepted, *never, *waiting],
        "reasons": _shares(Counter({REASONS.get(k, k): n for k, n in stats.reasons.items()})),
        "failures": _shares(stats.errors),
    }


def _answer_shares(run: RunData) -> list[OutcomeShare]:
    """How often bare answers are as good, beside the loop's drafts; empty without any."""
    answers = run.stats.answers
    if not answers.samples:
        return []
    first, judged = run.stats.attempts[1], run.judged
    return [
        OutcomeShare(
            "of the loop: first drafts that passed, of judged samples",
            first,
            proportion(first, judged),
        ),
        OutcomeShare(
            "first bare answers as good as the accepted response",
            answers.first_passed,
            proportion(answers.first_passed, answers.first_judged),
        ),
        OutcomeShare(
            "all bare answers judged, up to three a sample",
            answers.passed,
            proportion(answers.passed, answers.judged),
        ),
        OutcomeShare(
            "accepted samples that have reasoning",
            answers.taken,
            proportion(answers.taken, answers.samples),
        ),
        *(
            OutcomeShare(f"answers, of all asked for: {name}", n, proportion(n, answers.asked))
            for name, n in (
                ("without thoughts", answers.without_thoughts),
                ("thoughts that speak of a prompt", answers.prompt_talk),
                ("thoughts that hold a benchmark's prompt", answers.contaminated),
                ("none came", answers.failed),
            )
            if n
        ),
    ]


def _shares(counts: Counter[str]) -> list[OutcomeShare]:
    total, common = counts.total(), counts.most_common(MAX_SHARES)
    parts = [OutcomeShare(name, n, proportion(n, total)) for name, n in common]
    rest = total - sum(n for _, n in common)
    return [*parts, OutcomeShare("others", rest, proportion(rest, total))] if rest else parts


@dataclass(frozen=True)
class CriterionLine:
    """A criterion, with its first and last pass rate in each run.

    `wrong` is in how many samples a reviewer marked it as wrong.
    """

    text: str
    must: bool
    judged_by: str
    sources: list[tuple[str, str]]
    cells: list[tuple[Interval, Interval]]
    wrong: int


def criterion_table(
    runs: Sequence[RunData], samples: Sequence[ReferenceSample]
) -> tuple[list[CriterionLine], int]:
    """Rules and built-in criteria, then the most judged ones from references; how many are left."""
    merged: dict[str, list[CriterionStats | None]] = {}
    for i, run in enumerate(runs):
        for key, stats in run.stats.criteria.items():
            if stats.judged:
                merged.setdefault(key, [None] * len(runs))[i] = stats
    fixed: list[str] = []
    extracted: list[str] = []
    for key, stats_of_runs in merged.items():
        (extracted if any(s and s.from_reference for s in stats_of_runs) else fixed).append(key)
    extracted.sort(key=lambda key: -sum(s.judged for s in merged[key] if s))
    keys = [*fixed, *extracted[:MAX_CRITERIA]]
    lines = [_criterion_line(merged[key], runs, samples) for key in keys]
    return lines, max(len(extracted) - MAX_CRITERIA, 0)


def _criterion_line(
    stats_of_runs: Sequence[CriterionStats | None],
    runs: Sequence[RunData],
    samples: Sequence[ReferenceSample],
) -> CriterionLine:
    first = next(stats for stats in stats_of_runs if stats)
    key, sources = criterion_key(first.text, first.must), dict[str, str]()
    for run, sample in zip(runs, samples, strict=True):
        for id_, _ in run.sources.get(key, Counter[str]()).most_common(MAX_SOURCES_SHOWN):
            sources[id_] = sources.get(id_) or sample.start(id_)
    cells = [
        (_pass_rate(p.first), _pass_rate(p.last)) if p else (EMPTY, EMPTY) for p in stats_of_runs
    ]
    named = list(sources.items())[:MAX_SOURCES_SHOWN] if first.from_reference else []
    wrong = sum(stats.wrong for stats in stats_of_runs if stats)
    return CriterionLine(first.text, first.must, first.judged_by, named, cells, wrong)


def jury_tables(run: RunData) -> dict[str, Any] | None:
    """How far the jurors of a run agree, and how often each is overruled; None without a jury."""
    agreement = jury_agreement(run.stats.juries)
    if agreement is None:
        return None
    jurors = [
        {name: value if name == "model" else Interval(**value) for name, value in row.items()}
        for row in agreement["jurors"]
    ]
    whole = {"of": "all", "alpha": agreement["alpha"], "verdicts": agreement["verdicts"]}
    return {"alphas": [whole, *agreement["kinds"], *agreement["pairs"]], "jurors": jurors}


def _pass_rate(counts: Counter[str]) -> Interval:
    return proportion(counts["pass"], counts["pass"] + counts["fail"] + counts["unknown"])


def trial_table(run: RunData) -> tuple[list[TrialStats], int]:
    """The trials of a run's criteria, the most tried first; how many are left out."""
    trials = sorted(run.stats.trials.values(), key=lambda t: (t.of != "response", -t.references))
    return trials[:MAX_TRIALS], max(len(trials) - MAX_TRIALS, 0)


class ReferenceCell(NamedTuple):
    """What became of the samples of a run that used a reference."""

    samples: int
    failed: int
    accepted: Interval
    attempts: float | None
    criteria: Interval


@dataclass(frozen=True)
class ReferenceLine:
    """A reference, with a cell for each run."""

    id: str
    start: str
    cells: list[ReferenceCell]


class Ranking(NamedTuple):
    """The ids of the references whose samples do best and worst; `judged`: how many were ranked."""

    best: list[str]
    worst: list[str]
    judged: int


def rank_references(runs: Sequence[RunData]) -> Ranking:
    """Rank references by the share of their samples that were accepted.

    By the nearer end of the interval, so that one lucky sample does not make a best reference.
    """
    totals: dict[str, list[int]] = {}
    for run in runs:
        for id_, stats in run.reference_stats.items():
            pair = totals.setdefault(id_, [0, 0])
            pair[0], pair[1] = pair[0] + stats.accepted, pair[1] + stats.judged
    shares = {id_: proportion(hits, n) for id_, (hits, n) in totals.items() if n}
    best = sorted(shares, key=lambda id_: (-(shares[id_].low or 0), id_))
    if len(best) <= MAX_REFERENCES:
        return Ranking(best, [], len(best))
    half = MAX_REFERENCES // 2
    worst = sorted(shares, key=lambda id_: (shares[id_].high or 0, id_))
    return Ranking(best[:half], worst[:half], len(best))


def reference_table(
    ids: Sequence[str], runs: Sequence[RunData], samples: Sequence[ReferenceSample]
) -> list[ReferenceLine]:
    """The lines of the table of references, for the given ids."""
    return [
        ReferenceLine(
            id_,
            next((start for sample in samples if (start := sample.start(id_))), ""),
            [_reference_cell(run.reference_stats.get(id_) or ReferenceStats()) for run in runs],
        )
        for id_ in ids
    ]


def _reference_cell(stats: ReferenceStats) -> ReferenceCell:
    return ReferenceCell(
        stats.judged,
        stats.failed,
        proportion(stats.accepted, stats.judged),
        stats.attempts / stats.judged if stats.judged else None,
        proportion(stats.criteria_passed, stats.criteria_judged),
    )


class DiversityLine(NamedTuple):
    """A diversity figure of all rows, of rows at equal n, and of the references."""

    name: str
    rows: str
    equal: str
    references: str


def diversity_table(diversity: RunDiversity) -> list[DiversityLine]:
    """Diversity figures; those that depend on n are given at equal n too."""
    figures: dict[str, Callable[[Spread], str]] = {
        "mean ROUGE-L F1 of all pairs": lambda spread: _format_pairs(spread.pairwise),
        "mean ROUGE-L F1 of the nearest": lambda spread: _format_mean(spread.nearest),
        "mean distance of the nearest by meaning": lambda spread: _format_mean(spread.distances),
        "Vendi score": _format_vendi,
    }
    return [
        DiversityLine(name, show(diversity.rows), show(diversity.equal), show(diversity.references))
        for name, show in figures.items()
    ]


def _format_pairs(values: FloatArray) -> str:
    return f"{values.mean():.3f} ({len(values):,} pairs)" if len(values) else ""


def _format_mean(values: FloatArray) -> str:
    mean = bootstrap_mean_of(values)
    return "" if mean.value is None else f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"


def _format_vendi(spread: Spread) -> str:
    return "" if spread.vendi is None else f"{spread.vendi:,.1f} of {spread.n:,}"


class ClusterLine(NamedTuple):
    """A cluster of references: its most typical instruction, and the shares that fall into it."""

    start: str
    references: Interval
    rows: Interval


def cluster_table(covered: Coverage, sample: ReferenceSample) -> list[ClusterLine]:
    """The lines of the table of clusters, the largest first."""
    references = sum(c.references for c in covered.clusters)
    rows = sum(c.rows for c in covered.clusters)
    return [
        ClusterLine(
            " ".join(sample.references[c.centre]["instruction"].split())[:160],
            proportion(c.references, references),
            proportion(c.rows, rows),
        )
        for c in covered.clusters
    ]


LISTED_SETTINGS = (
    "feedback",
    "review",
    "per_seed",
    "answer_seeds",
    "references_per_seed",
    "reference_quota",
    "max_attempts",
    "max_criteria",
    "screen",
    "criteria_per_call",
    "should_share",
    "try_criteria",
    "reasoning",
    "novelty_threshold",
    "target",
    "limit",
    "turns",
    "random_seed",
    "preset",
    "engine",
)
STATUS_PARTS = (
    ("good", "accepted"),
    ("poor", "rejected"),
    ("doubt", "failed"),
    ("soft", "pending"),
)


class OverviewLine(NamedTuple):
    """A line of the overview: a value for each run, and whether they differ."""

    name: str
    values: list[str]
    differs: bool


class Tile(NamedTuple):
    """A key figure; `note` says what it is a share or mean of."""

    name: str
    value: str
    note: str
    interval: Interval | None = None


def run_head(run: RunData, diversity: RunDiversity) -> dict[str, Any]:
    """A run's state and key figures."""
    status, counts = run.run_json["status"], run.run_json["counts"]
    parts = [(kind, name, int(counts.get(name, 0))) for kind, name in STATUS_PARTS]
    label = ", ".join(f"{n:,} {name}" for _, name, n in parts)
    return {
        "state": "ended short of its target" if status == "short" else status,
        "status": status,
        "stopped": run.run_json.get("stopped") or "",
        "parts": parts,
        "candidates": int(counts.get("candidates", 0)),
        "bar": stacked_bar(parts, label),
        "tiles": _tiles(run, diversity),
    }


def _tiles(run: RunData, diversity: RunDiversity) -> list[Tile]:
    judged, accepted = run.judged, int(run.run_json["counts"]["accepted"])
    first = run.stats.attempts[1]
    rows, cost = diversity.rows, run.run_json.get("cost_usd")
    each = f"${cost / accepted:.4f}" if accepted and cost is not None else "unknown"
    near = f"{rows.nearest.mean():.2f}" if len(rows.nearest) else "unknown"
    # Alone it would read as a count.
    score = f"{rows.vendi:,.1f} of {rows.n:,}" if rows.vendi is not None else "unknown"
    samples = "judged samples"
    if run.waiting:
        wait = "waits" if run.waiting == 1 else "wait"
        samples += f", of which {run.waiting:,} {wait} for a person"
    borrowed = f"; without {run.borrowed:,} calls that another run paid for" if run.borrowed else ""
    return [
        _share_tile("accepted", proportion(accepted, judged), samples),
        _share_tile("accepted at once", proportion(first, judged), samples),
        Tile("variety", score, "Vendi score: as varied as so many unrelated instructions"),
        Tile("nearest instruction", near, f"mean ROUGE-L F1 of n = {rows.n:,} rows"),
        Tile(
            "dollars a row",
            each,
            f"n = {accepted:,} accepted rows{borrowed}",
        ),
    ]


def _share_tile(name: str, share: Interval, of: str) -> Tile:
    value = "unknown" if share.value is None else f"{100 * share.value:.0f} %"
    return Tile(name, value, f"n = {share.n:,} {of}", share)


def overview_tables(runs: Sequence[RunData]) -> dict[str, list[OverviewLine]]:
    """Two tables with a column for each run: its settings, and its counts and use."""
    overview = {}
    for title, rows_of in (("Settings", _setting_rows), ("Counts and use", _usage_rows)):
        columns = [rows_of(run) for run in runs]
        lines = []
        for name in dict.fromkeys(name for column in columns for name in column):
            values = [column.get(name, "") for column in columns]
            if any(values):
                lines.append(
                    OverviewLine(name, values, rows_of is _setting_rows and len(set(values)) > 1)
                )
        overview[title] = lines
    return overview


def _setting_rows(run: RunData) -> dict[str, str]:
    run_json = run.run_json
    settings: Mapping[str, Any] = run_json.get("settings") or {}
    judge = str(settings.get("judge_model") or settings.get("model") or "")
    method = settings.get("judge_method") or default_judge_method(judge)
    names = ", ".join(map(short_name, split_jurors(judge)))
    return {
        "model": short_name(settings.get("model")),
        "judge": f"{names}, {method}" if judge else "",
        "embedding model": short_name(settings.get("embedding_model")),
        "prompt version": format_setting(run_json.get("prompt_version")),
        "refloom": format_setting((run_json.get("versions") or {}).get("refloom")),
        **{k.replace("_", " "): format_setting(settings.get(k)) for k in LISTED_SETTINGS},
        "benchmarks": ", ".join(map(short_name, settings.get("benchmark") or ())),
    }


def _usage_rows(run: RunData) -> dict[str, str]:
    run_json = run.run_json
    calls, usage = run_json["calls"], run_json.get("usage") or {}
    criteria = (run_json.get("criteria") or {}) if run_json.get("settings") else {}
    return {
        **_count_rows(run_json["counts"]),
        **{
            f"criteria {name}": format_count(criteria.get(name))
            for name in ("proposed", "earned", "demoted", "dropped")
        },
        "calls paid": format_count(calls.get("paid")),
        "calls reused": format_count(calls.get("reused")),
        "calls retried": format_count(calls.get("retried")),
        "prompt tokens": format_count(usage.get("prompt_tokens")),
        "of them cached": format_count(usage.get("cached_tokens")),
        "completion tokens": format_count(usage.get("completion_tokens")),
        "of them thinking": format_count(usage.get("reasoning_tokens") or None),
        **_tier_rows(run_json),
        "dollars": format_dollars(run_json.get("cost_usd")),
        "time": format_duration(run_json.get("seconds")),
        "decided by people": run.stats.review_summary,
    }


def _tier_rows(run_json: Mapping[str, Any]) -> dict[str, str]:
    """Calls and dollars of each service tier, if there is one but the default."""
    calls, costs = run_json["calls"].get("by_tier") or {}, run_json.get("cost_by_tier") or {}
    if not calls.keys() - {DEFAULT_TIER}:
        return {}
    return {
        f"in tier {tier}": f"{format_count(number)} calls, {format_dollars(costs.get(tier))}"
        for tier, number in calls.items()
    }


def _count_rows(counts: Mapping[str, Any]) -> dict[str, str]:
    names = ("seeds", "references", "candidates", "accepted", "rejected", "failed", "pending")
    labels = {name: name for name in names} | {
        "duplicates": "duplicates, dropped before",
        "screened": "screened instructions, dropped before",
        "unfit": "unfit instructions, dropped before",
        "surplus": "surplus instructions, dropped before",
        "contaminated": "contaminated, of the rejected",
        "references_failed": "references that could not be learned from",
        "rows_skipped": "rows skipped in reading",
    }
    # Those of an earlier version's run are in the duplicates.
    unknown = {name for name in ("screened", "unfit", "surplus") if not counts.get(name)}
    return {
        label: format_count(counts.get(name))
        for name, label in labels.items()
        if name not in unknown
    }


def stage_costs(run: RunData) -> dict[str, Any]:
    """Calls, tokens and dollars by stage, model and service tier, and in total."""
    stages = run.stages
    costs = [stage.cost_usd for stage in stages]
    known = [cost for cost in costs if cost is not None]
    counts: dict[str, Any] = {
        name: sum(getattr(stage, name) for stage in stages) for name in ("calls", *TOKEN_FIELDS)
    }
    cost = sum(known) if len(known) == len(costs) else None
    total = StageUsage("total", "", "", cost_usd=cost, **counts)
    return {
        "lines": stages,
        "total": total,
        "models": len({s.model for s in stages}) > 1,
        "tiers": any(s.tier != DEFAULT_TIER for s in stages),
    }


def format_setting(value: object) -> str:
    """A setting as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def format_count(value: object) -> str:
    """A count with thousands separators; empty if it is not a number."""
    return f"{value:,}" if isinstance(value, int | float) else ""


def format_dollars(value: float | None) -> str:
    """A cost in dollars; says so if it is unknown."""
    if value is None:
        return "unknown: a model has no price"
    return f"${value:,.2f}" if value >= 1 else f"${value:.4f}"


def format_duration(seconds: float | None) -> str:
    """A duration in its two largest units.

    >>> format_duration(3725), format_duration(12.3), format_duration(None)
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
