"""Figures with intervals: shares, means, win rates with the length taken out, agreement."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
Z = 1.959964
RESAMPLES = 2000
# A pull towards no preference, as of one pair: where all pairs agree the model has no end.
PULL = 1.0
Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A figure with its 95 % interval, and of how many it is. None where there are none."""

    value: float | None
    low: float | None
    high: float | None
    n: int


NOTHING = Interval(None, None, None, 0)


def plain(found: Interval) -> dict[str, Any]:
    """An interval as JSON."""
    return found._asdict()


def _rounded(value: float, low: float, high: float, n: int) -> Interval:
    return Interval(round(float(value), 4), round(float(low), 4), round(float(high), 4), n)


def share(hits: float, n: int) -> Interval:
    """A share of n independent cases, with Wilson's score interval; `hits` may be fractional.

    >>> share(8, 10)
    Interval(value=0.8, low=0.4902, high=0.9433, n=10)
    """
    if not n:
        return NOTHING
    p, z2 = hits / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return _rounded(p, max(middle - half, 0.0), min(middle + half, 1.0), n)


def groups(names: Sequence[Hashable]) -> NDArray[np.int64]:
    """A number for each name, the same for the same."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names], np.int64)


def resampled(of: Sequence[Hashable], random_seed: int = 0, times: int = RESAMPLES) -> Floats:
    """How often each case is drawn in each resample, shape (times, cases).

    Whole groups are drawn (the rows of one seed stand or fall together), with replacement.
    """
    numbers = groups(of)
    count = int(numbers.max()) + 1
    draw = np.random.default_rng(random_seed)
    drawn = draw.multinomial(count, np.full(count, 1 / count), size=times)
    return drawn[:, numbers].astype(np.float64)


def mean(scores: Sequence[float], of: Sequence[Hashable], random_seed: int = 0) -> Interval:
    """The mean of scores between 0 and 1 with a bootstrap interval over the groups `of`.

    Where no two groups differ a bootstrap knows no doubt; Wilson's interval stands in.
    """
    n = len(scores)
    if not n:
        return NOTHING
    values, weights = np.asarray(scores, np.float64), resampled(of, random_seed)
    value = float(values.mean())
    means = weights @ values / weights.sum(axis=1)
    low, high = _quantiles(means)
    if high - low < 1e-12:
        count = len(set(of))
        found = share(value * count, count)
        return found._replace(n=n)
    return _rounded(value, low, high, n)


def _quantiles(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def sign_test(wins: int, losses: int) -> float:
    """The two-sided p of so uneven a split if neither side were better; ties are left out.

    >>> sign_test(8, 2)
    0.1094
    """
    n, most = wins + losses, max(wins, losses)
    tail = sum(math.comb(n, k) for k in range(most, n + 1)) / 2**n
    return round(min(1.0, float(2 * tail)), 4)


def length_controlled(
    scores: Sequence[float], gaps: Sequence[float], of: Sequence[Hashable], random_seed: int = 0
) -> Interval:
    """The win rate that is left when the difference in length is taken out.

    A logistic model of the scores (each between 0 and 1) with a constant and
    tanh(gap / standard deviation of the gaps), as AlpacaEval 2 has it (Dubois et al. 2024,
    arXiv 2404.04475); the win rate at no gap. Its term for an instruction's difficulty rests on the
    leaderboard's own 805 instructions and is left out. `gaps`: how much longer the first is.
    """
    n = len(scores)
    if not n:
        return NOTHING
    values, lengths = np.asarray(scores, np.float64), np.asarray(gaps, np.float64)
    spread = float(lengths.std())
    terms = np.tanh(lengths / spread) if spread > 0 else np.zeros(n)
    once = _constants(values, terms, np.ones((1, n)))
    drawn = _constants(values, terms, resampled(of, random_seed))
    low, high = _quantiles(drawn)
    if high - low < 1e-12:
        count = len(set(of))
        return share(float(once[0]) * count, count)._replace(n=n)
    return _rounded(once[0], low, high, n)


def _constants(values: Floats, terms: Floats, weights: Floats) -> Floats:
    """For each row of weights the fitted win rate at no difference, by Newton's method."""
    a, b = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(25):
        p = 1 / (1 + np.exp(-np.clip(a[:, None] + b[:, None] * terms, -30, 30)))
        error, curve = weights * (values - p), weights * p * (1 - p)
        # A pseudo-pair that is half a win, at no gap and over the gaps, keeps both numbers finite.
        lean = 1 / (1 + np.exp(-a))
        ga = error.sum(axis=1) + PULL * (0.5 - lean)
        gb = error @ terms - PULL * b / 4
        haa = curve.sum(axis=1) + PULL * lean * (1 - lean)
        hab, hbb = curve @ terms, curve @ (terms * terms) + PULL / 4
        det = haa * hbb - hab * hab
        step_a, step_b = (hbb * ga - hab * gb) / det, (haa * gb - hab * ga) / det
        a, b = a + np.clip(step_a, -2, 2), b + np.clip(step_b, -2, 2)
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < 1e-9:
            break
    found: Floats = 1 / (1 + np.exp(-a))
    return found


def auc(good: Sequence[float], bad: Sequence[float]) -> float | None:
    """How often a good one scores over a bad one, ties half: 0.5 is chance. None without both.

    >>> auc([1, 2], [0, 1])
    0.875
    """
    if not good or not bad:
        return None
    over = np.sign(np.subtract.outer(np.asarray(good, float), np.asarray(bad, float)))
    return round(float((over.mean() + 1) / 2), 4)


def kappa(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """Cohen's kappa of two raters' verdicts; None where chance alone makes them agree.

    >>> kappa([("pass", "pass"), ("fail", "fail"), ("pass", "fail"), ("fail", "fail")])
    0.5
    """
    n = len(pairs)
    if not n:
        return None
    labels = {label for pair in pairs for label in pair}
    agreed = sum(a == b for a, b in pairs) / n
    by_chance = sum(
        sum(a == label for a, _ in pairs) * sum(b == label for _, b in pairs) for label in labels
    ) / (n * n)
    return None if by_chance == 1 else round((agreed - by_chance) / (1 - by_chance), 4)
