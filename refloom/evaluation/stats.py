"""Statistics with intervals: proportions, means, length-controlled win rates, agreement."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
Z = 1.959964
RESAMPLES = 2000
# Ridge prior worth one tied pair. Without it the fit diverges when all pairs agree.
PRIOR_WEIGHT = 1.0
FloatArray = NDArray[np.float64]


class Interval(NamedTuple):
    """A value with its 95 % interval over `n` cases; all None if there are none."""

    value: float | None
    low: float | None
    high: float | None
    n: int


EMPTY = Interval(None, None, None, 0)


def rounded_interval(value: float, low: float, high: float, n: int) -> Interval:
    """An interval to four decimals."""
    return Interval(round(float(value), 4), round(float(low), 4), round(float(high), 4), n)


def proportion(hits: float, n: int) -> Interval:
    """The proportion of `hits` in n independent cases, with Wilson's score interval.

    `hits` may be fractional (a tie counts half).

    >>> proportion(8, 10)
    Interval(value=0.8, low=0.4902, high=0.9433, n=10)
    """
    if not n:
        return EMPTY
    p, z2 = hits / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return rounded_interval(p, max(middle - half, 0.0), min(middle + half, 1.0), n)


def resample_weights(groups: Sequence[Hashable], random_seed: int = 0) -> FloatArray:
    """How often each case is drawn in each bootstrap resample, shape (RESAMPLES, cases).

    Whole groups are drawn with replacement, because the rows of one seed are not independent.
    """
    known: dict[Hashable, int] = {}
    numbers = np.array([known.setdefault(name, len(known)) for name in groups], np.int64)
    count = len(known)
    rng = np.random.default_rng(random_seed)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return draws[:, numbers].astype(np.float64)


def bootstrap_mean(
    scores: Sequence[float], groups: Sequence[Hashable], random_seed: int = 0
) -> Interval:
    """The mean of scores between 0 and 1, with a bootstrap interval over groups of cases.

    If no two groups differ the bootstrap interval has no width; Wilson's is given instead.
    """
    if not len(scores):
        return EMPTY
    values, weights = np.asarray(scores, np.float64), resample_weights(groups, random_seed)
    means = weights @ values / weights.sum(axis=1)
    return _resampled_interval(float(values.mean()), means, groups)


# With more groups the interval is the normal one: resamples of all cases would not fit in memory.
MAX_RESAMPLED = 2000


def mean_interval(
    values: Sequence[float], groups: Sequence[Hashable], random_seed: int = 0, *, low: float = 0.0
) -> Interval:
    """The mean of values between `low` and 1, with a 95 % interval over groups of cases.

    By bootstrap; of more than `MAX_RESAMPLED` cases by the normal distribution, with the variance
    of the groups' sums.

    >>> mean_interval([-1, 0, 0, 1], range(4), low=-1).value
    0.0
    """
    if not len(values):
        return EMPTY
    span = 1.0 - low
    shares = (np.asarray(values, np.float64) - low) / span
    if len(values) <= MAX_RESAMPLED:
        found = bootstrap_mean(shares.tolist(), groups, random_seed)
    else:
        known: dict[Hashable, int] = {}
        numbers = np.array([known.setdefault(name, len(known)) for name in groups], np.int64)
        mean, count = float(shares.mean()), len(known)
        sums = np.bincount(numbers, shares - mean, minlength=count)
        half = Z * math.sqrt(float(sums @ sums) * count / max(count - 1, 1)) / len(shares)
        found = rounded_interval(mean, max(mean - half, 0.0), min(mean + half, 1.0), len(shares))
    value, bottom, top = (low + span * float(part or 0.0) for part in found[:3])
    return rounded_interval(value, bottom, top, found.n)


def percentiles(values: FloatArray) -> tuple[float, float]:
    """The bounds between which `CONFIDENCE` of the values lie."""
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _resampled_interval(
    value: float, resampled: FloatArray, groups: Sequence[Hashable]
) -> Interval:
    """A value with the interval of its resamples, or Wilson's over groups if that has no width."""
    low, high = percentiles(resampled)
    if high - low < 1e-12:
        count = len(set(groups))
        return proportion(value * count, count)._replace(n=len(groups))
    return rounded_interval(value, low, high, len(groups))


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of the sign test; ties are left out.

    >>> sign_test(8, 2)
    0.1094
    """
    n, most = wins + losses, max(wins, losses)
    if n > MAX_RESAMPLED:
        # The normal distribution with its correction: exact sums take long for so many.
        return round(math.erfc(max(abs(wins - losses) - 1, 0) / math.sqrt(2 * n)), 4)
    tail = sum(math.comb(n, k) for k in range(most, n + 1)) / 2**n
    return round(min(1.0, float(2 * tail)), 4)


def length_controlled(
    scores: Sequence[float],
    gaps: Sequence[float],
    groups: Sequence[Hashable],
    random_seed: int = 0,
) -> Interval:
    """The win rate at equal length: AlpacaEval 2's length-controlled rate, without its third term.

    A logistic model of the scores (each between 0 and 1) with a constant and
    tanh(gap / standard deviation of the gaps), evaluated at no gap (Dubois et al. 2024,
    arXiv 2404.04475). The term for an instruction's difficulty needs the leaderboard's own 805
    instructions and is left out. `gaps`: how many characters longer the first response is.
    """
    n = len(scores)
    if not n:
        return EMPTY
    values, lengths = np.asarray(scores, np.float64), np.asarray(gaps, np.float64)
    spread = float(lengths.std())
    terms = np.tanh(lengths / spread) if spread > 0 else np.zeros(n)
    (rate,) = _fit_win_rates(values, terms, np.ones((1, n)))
    rates = _fit_win_rates(values, terms, resample_weights(groups, random_seed))
    return _resampled_interval(float(rate), rates, groups)


def _fit_win_rates(values: FloatArray, terms: FloatArray, weights: FloatArray) -> FloatArray:
    """The fitted win rate at equal length for each row of weights, by Newton's method."""
    a, b = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(25):
        p = 1 / (1 + np.exp(-np.clip(a[:, None] + b[:, None] * terms, -30, 30)))
        error, curve = weights * (values - p), weights * p * (1 - p)
        # The prior: half a win at no gap, and a slope near 0, keep both parameters finite.
        prior = 1 / (1 + np.exp(-a))
        ga = error.sum(axis=1) + PRIOR_WEIGHT * (0.5 - prior)
        gb = error @ terms - PRIOR_WEIGHT * b / 4
        haa = curve.sum(axis=1) + PRIOR_WEIGHT * prior * (1 - prior)
        hab, hbb = curve @ terms, curve @ (terms * terms) + PRIOR_WEIGHT / 4
        det = haa * hbb - hab * hab
        step_a, step_b = (hbb * ga - hab * gb) / det, (haa * gb - hab * ga) / det
        a, b = a + np.clip(step_a, -2, 2), b + np.clip(step_b, -2, 2)
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < 1e-9:
            break
    rates: FloatArray = 1 / (1 + np.exp(-a))
    return rates


def auc(good: Sequence[float], bad: Sequence[float]) -> float | None:
    """How often a good case scores over a bad one, ties counting half; 0.5 is chance.

    None unless there are cases of both.

    >>> auc([1, 2], [0, 1])
    0.875
    """
    if not good or not bad:
        return None
    over = np.sign(np.subtract.outer(np.asarray(good, float), np.asarray(bad, float)))
    return round(float((over.mean() + 1) / 2), 4)


def kappa(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """Cohen's kappa of two raters' verdicts; None if chance alone makes them agree.

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


def krippendorff_alpha(units: Mapping[tuple[Any, ...], int]) -> float | None:
    """Krippendorff's alpha of nominal verdicts by any number of raters; 1 is agreement, 0 chance.

    `units` says how many units have these verdicts, one a rater; None is a missing one. A unit with
    fewer than two says nothing (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").
    None if all verdicts are alike, or there are none to compare.

    >>> krippendorff_alpha({("a", "a"): 2, ("b", "b"): 1, ("a", "b"): 1})
    0.5333
    """
    totals: Counter[Hashable] = Counter()
    disagreed = 0.0
    for verdicts, times in units.items():
        counts = Counter(v for v in verdicts if v is not None)
        n = counts.total()
        if n < 2:
            continue
        for value, count in counts.items():
            totals[value] += count * times
            # Ordered pairs of different verdicts, of which a unit counts as many as verdicts.
            disagreed += count * (n - count) / (n - 1) * times
    n = totals.total()
    by_chance = sum(count * (n - count) for count in totals.values())
    return round(1 - (n - 1) * disagreed / by_chance, 4) if by_chance else None
