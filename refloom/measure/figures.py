"""Charts as inline SVG without text of its own: what is said stands beside them.

They stretch to the width there is. Colours are classes of the page's style sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

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
    baseline_n: int = 0
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
