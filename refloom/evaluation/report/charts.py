"""The charts of a report: distributions of a run, beside those of its references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from refloom.evaluation.report.collect import Account, Shelf
from refloom.evaluation.report.diversity import Floats, Measured
from refloom.evaluation.stats import Interval, bootstrap_mean

# MERGED refloom~measure~figures
# Charts as inline SVG without text of its own: what is said stands beside them. They stretch to
# the width there is. Colours are classes of the page's style sheet.
if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 1000.0, 240.0


@dataclass(frozen=True)
class Histogram:
    """Shares of n values by bins, beside those of a baseline where there is one.

    `edges` has one more than there are shares. `mark` is a value to draw a line at.
    """

    edges: Sequence[float]
    shares: Sequence[float]
    n: int
    baseline: Sequence[float] | None = None
    mark: float | None = None


def binned(values: Sequence[float] | Any, edges: Sequence[float]) -> list[float]:
    """The share of values in each bin; what lies outside is counted in the first or last.

    >>> binned([0, 0.5, 1, 7], [0, 0.5, 1])
    [0.25, 0.75]
    """
    import numpy as np

    if not len(values):
        return [0.0] * (len(edges) - 1)
    inside = np.clip(np.asarray(values, float), edges[0], edges[-1])
    return [float(count) / len(values) for count in np.histogram(inside, edges)[0]]


def binned_counts(counts: Mapping[int, int], edges: Sequence[float]) -> list[float]:
    """The same of whole numbers and how often each comes.

    >>> binned_counts({1: 3, 9: 1}, [0, 5, 10])
    [0.75, 0.25]
    """
    found, total = [0] * (len(edges) - 1), sum(counts.values())
    for value, n in counts.items():
        at = sum(value >= edge for edge in edges[1:-1])
        found[at] += n
    return [n / total if total else 0.0 for n in found]


def even_edges(most: int, bins: int = 24) -> list[int]:
    """Edges from 0 to `most` or a little over, in whole and round steps.

    >>> even_edges(190, 4), even_edges(0)
    ([0, 50, 100, 150, 200], [0, 1])
    """
    least = max(1.0, most / bins)
    scale = 10 ** (len(str(int(least))) - 1)
    step = next(round(s * scale) for s in (1, 2, 2.5, 5, 10) if round(s * scale) >= least)
    return [step * i for i in range(max(ceil(most / step), 1) + 1)]


def svg(body: Iterable[Markup], label: str, kind: str, width: float, height: float) -> Markup:
    """A drawing with a name for those who cannot see it."""
    from markupsafe import Markup

    return Markup(
        '<svg class="{}" viewBox="0 0 {:g} {:g}" preserveAspectRatio="none" role="img"'
        ' aria-label="{}">{}</svg>'
    ).format(kind, width, height, label, Markup("").join(body))


def _rect(kind: str, x: float, y: float, width: float, height: float, title: str = "") -> Markup:
    from markupsafe import Markup

    said = Markup("<title>{}</title>").format(title) if title else ""
    return Markup(
        '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">{}</rect>'
    ).format(kind, x, y, width, height, said)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    from markupsafe import Markup

    return Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def highest(drawn: Histogram) -> float:
    """The share that reaches the top of the chart."""
    return max([*drawn.shares, *(drawn.baseline or ())], default=0.0)


def histogram(
    drawn: Histogram, label: str, show: Callable[[float], str], top: float | None = None
) -> Markup:
    """Bars a bin, the baseline as an outline over them; each bar says what it is of.

    `top` is the share at the top of the chart, where several charts are to have one scale.
    """
    top = top or highest(drawn) or 1.0
    bins = max(len(drawn.shares), 1)
    wide = WIDTH / bins
    body = [_line("grid", 0, HEIGHT * y, WIDTH, HEIGHT * y) for y in (0.002, 0.5)]
    for i, value in enumerate(drawn.shares):
        high = HEIGHT * value / top
        title = f"{show(drawn.edges[i])} to {show(drawn.edges[i + 1])}: {100 * value:.1f} %"
        if drawn.baseline is not None:
            title += f" (references {100 * drawn.baseline[i]:.1f} %)"
        body.append(_rect("bar", i * wide + 1.5, HEIGHT - high, wide - 3, high))
        body.append(_rect("hit", i * wide, 0, wide, HEIGHT, title))
    if drawn.baseline is not None:
        body.append(_outline([HEIGHT * (1 - value / top) for value in drawn.baseline], wide))
    if drawn.mark is not None and drawn.edges[0] <= drawn.mark <= drawn.edges[-1]:
        at = WIDTH * (drawn.mark - drawn.edges[0]) / (drawn.edges[-1] - drawn.edges[0])
        body.append(_line("limit", at, 0, at, HEIGHT))
    body.append(_line("floor", 0, HEIGHT, WIDTH, HEIGHT))
    return svg(body, label, "histogram", WIDTH, HEIGHT)


def _outline(heights: Sequence[float], wide: float) -> Markup:
    from markupsafe import Markup

    steps = "".join(f"V{y:.1f}H{(i + 1) * wide:.1f}" for i, y in enumerate(heights))
    return Markup('<path class="outline" d="M0 {:.1f}{}"/>').format(HEIGHT, steps)


def interval(value: float, low: float, high: float, kind: str = "", middle: bool = False) -> Markup:
    """A dot between 0 and 1 with its interval; with `middle` a line at a half."""
    label = f"{100 * value:.0f} %, interval {100 * low:.0f} to {100 * high:.0f} %"
    body = [_line("track", 0, 8, 100, 8)]
    if middle:
        body.append(_line("half", 50, 0, 50, 16))
    body.append(_line(f"span {kind}", 100 * low, 8, 100 * high, 8))
    # A line of no length with round ends is a dot that no stretching makes an egg.
    body.append(_line(f"dot {kind}", 100 * value, 8, 100 * value + 0.01, 8))
    return svg(body, label, "interval", 100, 16)


def stack(parts: Sequence[tuple[str, str, int]], label: str) -> Markup:
    """Parts of a whole as one bar, from (class, name, count)."""
    total, at, body = sum(n for _, _, n in parts) or 1, 0.0, []
    for kind, name, n in parts:
        wide = 1000 * n / total
        if n:
            title = f"{name}: {n:,} of {total:,}"
            body.append(_rect(f"part {kind}", at, 0, max(wide - 2, 1.5), 10, title))
        at += wide
    return svg(body, label, "stack", 1000, 10)


def bar(value: float, most: float, kind: str = "", label: str = "") -> Markup:
    """One bar on a track, as long as the value is of the most."""
    wide = 100 * value / most if most else 0.0
    body = [_rect("rail", 0, 0, 100, 10), _rect(f"fill {kind}", 0, 0, wide, 10)]
    return svg(body, label or f"{value:,.3g} of {most:,.3g}", "single", 100, 10)


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
    return bootstrap_mean([min(max(float(v), 0.0), 1.0) for v in values], range(len(values)))


def _interval(values: Floats) -> str:
    found = mean_of(values)
    if found.value is None:
        return "unknown"
    return f"{found.value:.3f} (95 % interval {found.low:.3f} to {found.high:.3f})"


def _mean(values: Floats) -> str:
    return f"{values.mean():.3f}" if len(values) else "unknown"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
