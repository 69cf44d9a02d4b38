"""Figures and their intervals, against what is known of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refloom.evaluation.stats import (
    auc,
    bootstrap_mean,
    kappa,
    krippendorff_alpha,
    length_controlled,
    proportion,
    sign_test,
)

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=40)


@given(SCORES)
def test_a_mean_lies_within_its_interval_and_that_within_nought_and_one(scores):
    found = bootstrap_mean(scores, range(len(scores)))
    assert 0 <= found.low <= found.value + 1e-4
    assert found.value - 1e-4 <= found.high <= 1
    assert found.n == len(scores)


def test_nothing_has_no_figure():
    for found in (bootstrap_mean([], []), proportion(0, 0), length_controlled([], [], [])):
        assert found == (None, None, None, 0)
    assert auc([], [1.0]) is None
    assert kappa([]) is None


def test_rows_of_one_seed_are_no_more_evidence_than_their_seed():
    scores = [1.0, 0.0] * 20
    apart = bootstrap_mean(scores, range(40))
    together = bootstrap_mean(
        [s for s in (1.0, 0.0) for _ in range(20)], [s for s in "ab" for _ in range(20)]
    )
    assert together.high - together.low > 2 * (apart.high - apart.low)


@pytest.mark.parametrize("truth", [0.2, 0.5, 0.7])
def test_about_ninety_five_of_a_hundred_intervals_hold_the_truth(truth):
    draw, held = np.random.default_rng(7), 0
    for number in range(200):
        scores = draw.binomial(2, truth, size=50) / 2
        found = bootstrap_mean(scores.tolist(), range(50), number)
        held += found.low <= truth <= found.high
    assert 180 <= held <= 199


def test_unanimous_scores_still_have_an_interval():
    found = bootstrap_mean([1.0] * 10, range(10))
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.6 < found.low < 0.8


def liking(n: int, better: float, likes: float, longer: float, seed: int):
    """Wins of a side that is longer by so much, under a judge that likes length by so much."""
    draw = np.random.default_rng(seed)
    gaps = draw.normal(longer, 100, size=n)
    odds = better + likes * np.tanh(gaps / gaps.std())
    return (draw.random(n) < 1 / (1 + np.exp(-odds))).astype(float).tolist(), gaps.tolist()


def test_at_equal_length_a_liking_for_length_is_gone():
    raw, even = [], []
    for seed in range(40):
        scores, gaps = liking(120, 0.0, 1.5, 80, seed)
        raw.append(np.mean(scores))
        even.append(length_controlled(scores, gaps, range(120), seed))
    assert np.mean(raw) > 0.62
    assert abs(np.mean([e.value for e in even]) - 0.5) < 0.03
    assert sum(e.low <= 0.5 <= e.high for e in even) >= 34


def test_at_equal_length_a_true_difference_stays():
    scores, gaps = liking(400, 1.0, 1.5, 80, 3)
    found = length_controlled(scores, gaps, range(400))
    assert found.low < 1 / (1 + np.exp(-1.0)) < found.high
    assert found.low > 0.5


def test_texts_of_one_length_have_their_plain_win_rate():
    scores = [1.0] * 30 + [0.0] * 10
    found = length_controlled(scores, [0.0] * 40, range(40))
    assert abs(found.value - 0.75) < 0.01


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (8, 2, 0.1094), (10, 0, 0.002), (9, 1, 0.0215)],
)
def test_the_sign_test_is_the_binomial_one(wins, losses, p):
    assert sign_test(wins, losses) == sign_test(losses, wins) == p


@given(st.lists(st.floats(-5, 5), min_size=1), st.lists(st.floats(-5, 5), min_size=1))
def test_auc_turns_round_with_its_sides(good, bad):
    assert abs(auc(good, bad) + auc(bad, good) - 1) < 2e-4


def test_kappa_is_one_where_all_agree_and_nought_where_chance_does():
    assert kappa([("a", "a"), ("b", "b")]) == 1.0
    assert kappa([("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")]) == 0.0
    assert kappa([("a", "a")] * 5) is None


def test_alpha_is_that_of_the_hand():
    """Three raters, six units, a dot for no verdict.

        unit     1  2  3  4  5  6      verdicts in units of two or more: n = 3+3+2+3+2 = 13,
        rater A  p  p  f  f  p  p      of which p = 3+2+0+0+1 = 6 and f = 0+1+2+3+1 = 7;
        rater B  p  p  f  f  f  .      unit 6 has one verdict and says nothing
        rater C  p  f  .  f  .  .

    Ordered pairs that differ, over (verdicts of the unit - 1): unit 2 has 2*1 + 1*2 = 4, over 2;
    unit 5 has 1*1 + 1*1 = 2, over 1. Observed: (2 + 2) / 13 = 0.3077. By chance:
    (6*7 + 7*6) / (13*12) = 0.5385. Alpha = 1 - 0.3077 / 0.5385 = 3/7 = 0.4286.
    """
    table = {
        ("p", "p", "p"): 1,
        ("p", "p", "f"): 1,
        ("f", "f", None): 1,
        ("f", "f", "f"): 1,
        ("p", "f", None): 1,
        ("p", None, None): 1,
    }
    assert krippendorff_alpha(table) == 0.4286


def test_alpha_is_that_of_krippendorffs_own_example():
    """Four observers, twelve units, five values: 0.743 (Krippendorff 2011, nominal data)."""
    observers = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    units = Counter(
        tuple(None if value == "." else value for value in unit)
        for unit in zip(*observers, strict=True)
    )
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=0.0005)


def test_alpha_needs_verdicts_that_could_differ():
    assert krippendorff_alpha({}) is None
    assert krippendorff_alpha({("p", None): 9}) is None
    assert krippendorff_alpha({("p", "p"): 9}) is None
    assert krippendorff_alpha({("p", "p"): 2, ("f", "f"): 2}) == 1.0


@given(st.dictionaries(st.tuples(*[st.sampled_from([None, "p", "f"])] * 3), st.integers(1, 5)))
def test_alpha_does_not_ask_who_a_rater_is_and_a_unit_may_be_counted_twice(units):
    turned = Counter()
    for unit, times in units.items():
        turned[unit[::-1]] += times
    assert krippendorff_alpha(turned) == krippendorff_alpha(units)
