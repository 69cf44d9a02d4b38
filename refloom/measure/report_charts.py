"""The charts of a report: distributions of a run, beside those of its references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from refloom.measure.coverage import Floats
from refloom.measure.figures import (
    Histogram,
    binned,
    binned_counts,
    even_edges,
    highest,
    histogram,
)
from refloom.measure.report_account import Account
from refloom.measure.report_references import Shelf
from refloom.measure.report_spread import Measured
from refloom.measure.stats import Interval, mean

if TYPE_CHECKING:
    from markupsafe import Markup

UNIT = [i / 20 for i in range(21)]
# Few long texts would press all others into one bar.
LAST = 0.95


@dataclass(frozen=True)
class Chart:
    """A chart with what stands around it; without a drawing `note` says why there is none."""

    title: str
    note: str
    drawn: Histogram | None = None
    ticks: Sequence[str] = ()
    show: Callable[[float], str] = "{:,.0f}".format
    beside: str = ""
    limit: str = ""
    drawing: Markup | None = None
    top: str = ""


def together(runs: Sequence[dict[str, Chart]]) -> list[dict[str, Chart]]:
    """The charts of runs, drawn so that those of one name have one scale."""
    tops: dict[str, float] = {}
    for charts in runs:
        for name, chart in charts.items():
            if chart.drawn is not None:
                tops[name] = max(tops.get(name, 0.0), highest(chart.drawn))
    return [{n: _drawn(c, tops.get(n, 0.0)) for n, c in charts.items()} for charts in runs]


def _drawn(chart: Chart, top: float) -> Chart:
    if chart.drawn is None:
        return chart
    label = f"{chart.title}. {chart.note}"
    drawing = histogram(chart.drawn, label, chart.show, top)
    return replace(chart, drawing=drawing, top=_percent(top))


def nearness(account: Account, found: Measured) -> dict[str, Chart]:
    """How near instructions are to each other and to the references, by name of the chart."""
    threshold = (account.said.get("settings") or {}).get("novelty_threshold")
    limit = float(threshold) if isinstance(threshold, int | float) else None
    rows, others, beside = found.rows, found.references, f"references (n = {found.references.n:,})"
    many, pairs = f"n = {rows.n:,} rows", len(rows.pairwise)
    return {
        "pairwise": _unit(
            "Any two instructions, ROUGE-L F1",
            f"{pairs:,} pairs of {many}; mean {_mean(rows.pairwise)}",
            rows.pairwise,
            others.pairwise,
            beside,
        ),
        "nearest": _unit(
            "Each instruction and its nearest, ROUGE-L F1",
            f"{many}; mean {_interval(rows.nearest)}",
            rows.nearest,
            others.nearest,
            beside,
            limit,
        ),
        "distances": _unit(
            "Distance to the nearest by meaning, 1 - cosine",
            f"{many}; mean {_interval(rows.distances)}",
            rows.distances,
            others.distances,
            beside,
        ),
        "novelty": _unit(
            "Each instruction and the nearest reference, ROUGE-L F1",
            f"{many}, {found.compared:,} references; mean {_interval(found.novelty)}",
            found.novelty,
            None,
            "",
            limit,
        ),
    }


def _unit(
    title: str,
    note: str,
    values: Floats,
    baseline: Floats | None,
    beside: str,
    limit: float | None = None,
) -> Chart:
    if not len(values):
        return Chart(title, "There is nothing to measure it on.")
    has = baseline is not None and len(baseline) > 0
    drawn = Histogram(
        UNIT,
        binned(values, UNIT),
        len(values),
        binned(baseline, UNIT) if has else None,
        len(baseline) if baseline is not None else 0,
        limit,
    )
    said = f"the bar for duplicates ({limit:g})" if limit is not None else ""
    ticks = ("0", "0.25", "0.5", "0.75", "1")
    return Chart(title, note, drawn, ticks, "{:.2f}".format, beside if has else "", said)


def lengths(accounts: Sequence[Account], shelves: Sequence[Shelf]) -> list[dict[str, Chart]]:
    """Words of instructions and responses of each run, all on one scale."""
    own = [
        {
            "instructions": _words(r["instruction"] for r in shelf.sample),
            "responses": _words(r["response"] for r in shelf.sample),
        }
        for shelf in shelves
    ]
    theirs = [
        {"instructions": account.instruction_words, "responses": account.response_words}
        for account in accounts
    ]
    found: list[dict[str, Chart]] = [{} for _ in accounts]
    for what in ("instructions", "responses"):
        longest = [at for c in (*own, *theirs) if (at := quantile(c[what], LAST)) is not None]
        edges = even_edges(max(longest, default=1))
        for i, (ours, references) in enumerate(zip(theirs, own, strict=True)):
            found[i][what] = _length(what, ours[what], references[what], edges)
    return found


def _length(what: str, ours: Counter[int], own: Counter[int], edges: Sequence[int]) -> Chart:
    title = f"Words of {what}"
    if not ours:
        return Chart(title, "There is no accepted row.")
    note = f"n = {ours.total():,} rows; {_spread(ours)}"
    drawn = Histogram(
        edges,
        binned_counts(ours, edges),
        ours.total(),
        binned_counts(own, edges) if own else None,
        own.total(),
    )
    ticks = ("0", f"{edges[-1] / 2:,.0f}", f"{edges[-1]:,} and more")
    beside = f"references (n = {own.total():,}; {_spread(own)})" if own else ""
    return Chart(title, note, drawn, ticks, beside=beside)


def _words(texts: Iterable[str]) -> Counter[int]:
    return Counter(len(text.split()) for text in texts)


def quantile(counts: Counter[int], at: float) -> int | None:
    """The value that so large a share is not over; None of nothing.

    >>> quantile(Counter({3: 9, 50: 1}), 0.5), quantile(Counter({3: 9, 50: 1}), 0.95)
    (3, 50)
    """
    so_far, total = 0, counts.total()
    for value, n in sorted(counts.items()):
        so_far += n
        if so_far >= at * total:
            return value
    return None


def _spread(counts: Counter[int]) -> str:
    low, middle, high = (quantile(counts, at) for at in (0.05, 0.5, 0.95))
    return f"median {middle:,}, 5 to 95 % of them {low:,} to {high:,}"


def mean_of(values: Floats) -> Interval:
    """The mean of figures between 0 and 1 that each belong to a row, with its interval."""
    return mean([min(max(float(v), 0.0), 1.0) for v in values], range(len(values)))


def _interval(values: Floats) -> str:
    found = mean_of(values)
    if found.value is None:
        return "unknown"
    return f"{found.value:.3f} (95 % interval {found.low:.3f} to {found.high:.3f})"


def _mean(values: Floats) -> str:
    return f"{values.mean():.3f}" if len(values) else "unknown"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
