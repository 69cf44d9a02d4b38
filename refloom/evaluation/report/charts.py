"""The charts of a report, as inline SVG: distributions of a run beside its references'.

The SVG has no text of its own: labels stand beside it as HTML. It stretches to the width there is.
Colours are classes of the style sheet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
from markupsafe import Markup

from refloom.evaluation.report.collect import ReferenceSample, RunData
from refloom.evaluation.report.diversity import RunDiversity
from refloom.evaluation.stats import FloatArray, Interval, bootstrap_mean

WIDTH, HEIGHT = 1000.0, 240.0


@dataclass(frozen=True)
class Chart:
    """A histogram with its labels: shares of values in bins, and of a baseline's if there is one.

    `edges` has one more entry than `shares`; without any, `note` says why. A line is drawn at the
    value `mark`. `scale_charts` adds the drawing, and the share at its top.
    """

    title: str
    note: str
    edges: Sequence[float] = ()
    shares: Sequence[float] = ()
    baseline: Sequence[float] | None = None
    mark: float | None = None
    ticks: Sequence[str] = ()
    show: Callable[[float], str] = "{:,.0f}".format
    beside: str = ""
    limit: str = ""
    drawing: Markup | None = None
    top: str = ""


def bin_shares(values: Sequence[float] | Any, edges: Sequence[float]) -> list[float]:
    """The share of values in each bin; values outside count in the first or last bin.

    >>> bin_shares([0, 0.5, 1, 7], [0, 0.5, 1])
    [0.25, 0.75]
    """
    if not len(values):
        return [0.0] * (len(edges) - 1)
    inside = np.clip(np.asarray(values, float), edges[0], edges[-1])
    return [float(count) / len(values) for count in np.histogram(inside, edges)[0]]


def bin_counts(counts: Mapping[int, int], edges: Sequence[float]) -> list[float]:
    """`bin_shares` for a counter of whole numbers.

    >>> bin_counts({1: 3, 9: 1}, [0, 5, 10])
    [0.75, 0.25]
    """
    bins, total = [0] * (len(edges) - 1), sum(counts.values())
    for value, n in counts.items():
        at = sum(value >= edge for edge in edges[1:-1])
        bins[at] += n
    return [n / total if total else 0.0 for n in bins]


def round_edges(most: int, bins: int = 24) -> list[int]:
    """Bin edges from 0 to at least `most`, in round whole steps.

    >>> round_edges(190, 4), round_edges(0)
    ([0, 50, 100, 150, 200], [0, 1])
    """
    least = max(1.0, most / bins)
    scale = 10 ** (len(str(int(least))) - 1)
    step = next(round(s * scale) for s in (1, 2, 2.5, 5, 10) if round(s * scale) >= least)
    return [step * i for i in range(max(ceil(most / step), 1) + 1)]


def svg(body: Iterable[Markup], label: str, kind: str, width: float, height: float) -> Markup:
    """An SVG element with an accessible name."""
    return Markup(
        '<svg class="{}" viewBox="0 0 {:g} {:g}" preserveAspectRatio="none" role="img"'
        ' aria-label="{}">{}</svg>'
    ).format(kind, width, height, label, Markup("").join(body))


def _rect(kind: str, x: float, y: float, width: float, height: float, title: str = "") -> Markup:
    tooltip = Markup("<title>{}</title>").format(title) if title else ""
    return Markup(
        '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">{}</rect>'
    ).format(kind, x, y, width, height, tooltip)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def histogram(chart: Chart, top: float) -> Markup:
    """A bar for each bin, with a tooltip; the baseline is an outline over them.

    `top` is the share at the top of the drawing, which several charts may have in common.
    """
    top = top or 1.0
    wide = WIDTH / len(chart.shares)
    body = [_line("grid", 0, HEIGHT * y, WIDTH, HEIGHT * y) for y in (0.002, 0.5)]
    for i, value in enumerate(chart.shares):
        high = HEIGHT * value / top
        title = f"{chart.show(chart.edges[i])} to {chart.show(chart.edges[i + 1])}"
        title += f": {100 * value:.1f} %"
        if chart.baseline is not None:
            title += f" (references {100 * chart.baseline[i]:.1f} %)"
        body.append(_rect("bar", i * wide + 1.5, HEIGHT - high, wide - 3, high))
        body.append(_rect("hit", i * wide, 0, wide, HEIGHT, title))
    if chart.baseline is not None:
        body.append(_outline([HEIGHT * (1 - value / top) for value in chart.baseline], wide))
    if chart.mark is not None and chart.edges[0] <= chart.mark <= chart.edges[-1]:
        at = WIDTH * (chart.mark - chart.edges[0]) / (chart.edges[-1] - chart.edges[0])
        body.append(_line("limit", at, 0, at, HEIGHT))
    body.append(_line("floor", 0, HEIGHT, WIDTH, HEIGHT))
    return svg(body, f"{chart.title}. {chart.note}", "histogram", WIDTH, HEIGHT)


def _outline(heights: Sequence[float], wide: float) -> Markup:
    steps = "".join(f"V{y:.1f}H{(i + 1) * wide:.1f}" for i, y in enumerate(heights))
    return Markup('<path class="outline" d="M0 {:.1f}{}"/>').format(HEIGHT, steps)


def interval(value: float, low: float, high: float, kind: str = "", middle: bool = False) -> Markup:
    """A dot between 0 and 1 with its interval; `middle` adds a line at 0.5."""
    label = f"{100 * value:.0f} %, interval {100 * low:.0f} to {100 * high:.0f} %"
    body = [_line("track", 0, 8, 100, 8)]
    if middle:
        body.append(_line("half", 50, 0, 50, 16))
    body.append(_line(f"span {kind}", 100 * low, 8, 100 * high, 8))
    # Zero-length line with round caps: stays a circle when the SVG is stretched.
    body.append(_line(f"dot {kind}", 100 * value, 8, 100 * value + 0.01, 8))
    return svg(body, label, "interval", 100, 16)


def stacked_bar(parts: Sequence[tuple[str, str, int]], label: str) -> Markup:
    """One bar of the parts of a whole, each a (class, name, count)."""
    total, at, body = sum(n for _, _, n in parts) or 1, 0.0, []
    for kind, name, n in parts:
        wide = 1000 * n / total
        if n:
            title = f"{name}: {n:,} of {total:,}"
            body.append(_rect(f"part {kind}", at, 0, max(wide - 2, 1.5), 10, title))
        at += wide
    return svg(body, label, "stack", 1000, 10)


def single_bar(value: float, most: float, kind: str = "", label: str = "") -> Markup:
    """One bar on a track, of length value / most."""
    wide = 100 * value / most if most else 0.0
    body = [_rect("rail", 0, 0, 100, 10), _rect(f"fill {kind}", 0, 0, wide, 10)]
    return svg(body, label or f"{value:,.3g} of {most:,.3g}", "single", 100, 10)


UNIT_EDGES = [i / 20 for i in range(21)]
# The last bin edge of length charts: a few long texts must not squeeze all others.
LENGTH_QUANTILE = 0.95


def scale_charts(runs: Sequence[dict[str, Chart]]) -> list[dict[str, Chart]]:
    """Draw the charts of several runs; those of the same name share a scale."""
    tops: dict[str, float] = {}
    for charts in runs:
        for name, chart in charts.items():
            shares = (*chart.shares, *(chart.baseline or ()), tops.get(name, 0.0))
            tops[name] = max(shares)
    return [{name: _draw(c, tops[name]) for name, c in charts.items()} for charts in runs]


def _draw(chart: Chart, top: float) -> Chart:
    if not chart.shares:
        return chart
    shown = f"{100 * top:.0f} %" if top >= 0.1 else f"{100 * top:.1f} %"
    return replace(chart, drawing=histogram(chart, top), top=shown)


def similarity_charts(run: RunData, diversity: RunDiversity) -> dict[str, Chart]:
    """Charts of how similar instructions are to each other and to the references, by name."""
    threshold = (run.run_json.get("settings") or {}).get("novelty_threshold")
    limit = float(threshold) if isinstance(threshold, int | float) else None
    rows, others = diversity.rows, diversity.references
    beside = f"references (n = {others.n:,})"
    size, pairs = f"n = {rows.n:,} rows", len(rows.pairwise)
    return {
        "pairwise": unit_chart(
            "Any two instructions, ROUGE-L F1",
            f"{pairs:,} pairs of {size}; mean {_format_mean(rows.pairwise)}",
            rows.pairwise,
            others.pairwise,
            beside,
        ),
        "nearest": unit_chart(
            "Each instruction and its nearest, ROUGE-L F1",
            f"{size}; mean {_format_interval(rows.nearest)}",
            rows.nearest,
            others.nearest,
            beside,
            limit,
        ),
        "distances": unit_chart(
            "Distance to the nearest by meaning, 1 - cosine",
            f"{size}; mean {_format_interval(rows.distances)}",
            rows.distances,
            others.distances,
            beside,
        ),
        "novelty": unit_chart(
            "Each instruction and the nearest reference, ROUGE-L F1",
            f"{size}, {diversity.compared:,} references; "
            f"mean {_format_interval(diversity.novelty)}",
            diversity.novelty,
            None,
            "",
            limit,
        ),
    }


def unit_chart(
    title: str,
    note: str,
    values: FloatArray,
    baseline: FloatArray | None = None,
    beside: str = "",
    limit: float | None = None,
) -> Chart:
    """A histogram of values between 0 and 1, beside those of a `baseline`, if there is one."""
    if not len(values):
        return Chart(title, "There are no rows to measure.")
    has = baseline is not None and len(baseline) > 0
    return Chart(
        title,
        note,
        UNIT_EDGES,
        bin_shares(values, UNIT_EDGES),
        bin_shares(baseline, UNIT_EDGES) if has else None,
        limit,
        ("0", "0.25", "0.5", "0.75", "1"),
        "{:.2f}".format,
        beside if has else "",
        f"threshold for duplicates ({limit:g})" if limit is not None else "",
    )


def length_charts(
    runs: Sequence[RunData], samples: Sequence[ReferenceSample]
) -> list[dict[str, Chart]]:
    """Charts of the words of instructions and responses of each run, on one scale."""
    own = [
        {
            "instructions": _count_words(r["instruction"] for r in sample.references),
            "responses": _count_words(r["response"] for r in sample.references),
        }
        for sample in samples
    ]
    theirs = [
        {"instructions": run.instruction_words, "responses": run.response_words} for run in runs
    ]
    by_run: list[dict[str, Chart]] = [{} for _ in runs]
    for what in ("instructions", "responses"):
        longest = [
            at for c in (*own, *theirs) if (at := quantile(c[what], LENGTH_QUANTILE)) is not None
        ]
        edges = round_edges(max(longest, default=1))
        for i, (ours, references) in enumerate(zip(theirs, own, strict=True)):
            by_run[i][what] = _length_chart(what, ours[what], references[what], edges)
    return by_run


def _length_chart(what: str, ours: Counter[int], own: Counter[int], edges: Sequence[int]) -> Chart:
    title = f"Words of {what}"
    if not ours:
        return Chart(title, "There is no accepted row.")
    return Chart(
        title,
        f"n = {ours.total():,} rows; {_format_spread(ours)}",
        edges,
        bin_counts(ours, edges),
        bin_counts(own, edges) if own else None,
        ticks=("0", f"{edges[-1] / 2:,.0f}", f"{edges[-1]:,} and more"),
        beside=f"references (n = {own.total():,}; {_format_spread(own)})" if own else "",
    )


def _count_words(texts: Iterable[str]) -> Counter[int]:
    return Counter(len(text.split()) for text in texts)


def quantile(counts: Counter[int], q: float) -> int | None:
    """The q-quantile of a counter of values; None if it is empty.

    >>> quantile(Counter({3: 9, 50: 1}), 0.5), quantile(Counter({3: 9, 50: 1}), 0.95)
    (3, 50)
    """
    so_far, total = 0, counts.total()
    for value, n in sorted(counts.items()):
        so_far += n
        if so_far >= q * total:
            return value
    return None


def _format_spread(counts: Counter[int]) -> str:
    low, middle, high = (quantile(counts, q) for q in (0.05, 0.5, 0.95))
    return f"median {middle:,}, 5 to 95 % of them {low:,} to {high:,}"


def bootstrap_mean_of(values: FloatArray) -> Interval:
    """The bootstrap mean of one figure between 0 and 1 for each row."""
    return bootstrap_mean([min(max(float(v), 0.0), 1.0) for v in values], range(len(values)))


def _format_interval(values: FloatArray) -> str:
    mean = bootstrap_mean_of(values)
    if mean.value is None:
        return "unknown"
    return f"{mean.value:.3f} (95 % interval {mean.low:.3f} to {mean.high:.3f})"


def _format_mean(values: FloatArray) -> str:
    return f"{values.mean():.3f}" if len(values) else "unknown"
