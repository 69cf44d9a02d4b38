from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.context import Context
from nodes.criteria import verdict
from nodes.state import Attempt, Criterion
from nodes.verdicts import MAX_STALLED_ROUNDS, best_of, is_better, meets_criteria, next_step, passes

WRITTEN = Context(model="m", judge_method="verdict", max_attempts=5)
BY_ODDS = Context(model="m", judge_method="logodds", max_attempts=5)
BOTH = pytest.mark.parametrize("context", [WRITTEN, BY_ODDS], ids=["written", "log-odds"])


def criterion(
    id_: str, must: bool, judged_by: Any = "judge", bar: float | None = None
) -> Criterion:
    return {
        "id": id_,
        "text": f"does {id_}",
        "must": must,
        "reference_id": None,
        "quote": None,
        "judged_by": judged_by,
        "bar": bar,
    }


MUSTS = [criterion("m1", True), criterion("m2", True)]
SHOULDS = [criterion("s1", False), criterion("s2", False)]
RULES = [criterion("rule", True, "rule"), criterion("length", False, "rule")]
CRITERIA = [*MUSTS, *SHOULDS, *RULES]
OUTCOMES: dict[str, Any] = {"+": "pass", "-": "fail", "0": "not_applicable", "?": "unknown"}


def attempt(
    outcomes: str, scores: Sequence[float | None] = (), criteria: Sequence[Criterion] = CRITERIA
) -> Attempt:
    """An attempt by signs, one a criterion: + pass, - fail, 0 not applicable, ? unknown, _ none."""
    scored = [*scores, *[None] * len(outcomes)]
    return {
        "response": outcomes,
        "verdicts": [
            verdict(c["id"], OUTCOMES[sign], score=score)
            for c, sign, score in zip(criteria, outcomes, scored, strict=False)
            if sign != "_"
        ],
    }


@pytest.mark.parametrize(
    ("sign", "expected"), [("+", True), ("0", True), ("-", False), ("?", False)]
)
def test_only_pass_and_not_applicable_stand_in_no_ones_way(sign: str, expected: bool) -> None:
    assert passes(attempt(sign)["verdicts"][0]) is expected


@BOTH
@pytest.mark.parametrize(
    "signs", ["-+++++", "+-++++", "++++-+", "?+++++", "_+++++", "++++?+", "++++_+", "______"]
)
def test_every_must_has_to_pass_judged_or_ruled(signs: str, context: Context) -> None:
    assert not meets_criteria(attempt(signs), CRITERIA, context)


@BOTH
@pytest.mark.parametrize("signs", ["++++++", "0+++++", "+++++-", "++++0-", "+++-+-", "++-+++"])
def test_a_missed_should_or_half_of_them_may_be_forgiven(signs: str, context: Context) -> None:
    assert meets_criteria(attempt(signs), CRITERIA, context)


@pytest.mark.parametrize("signs", ["++--++", "++??++", "++__++", "++?-++"])
def test_written_verdicts_ask_for_a_share_of_the_shoulds(signs: str) -> None:
    assert not meets_criteria(attempt(signs), CRITERIA, WRITTEN)
    assert meets_criteria(attempt(signs), CRITERIA, BY_ODDS)


@pytest.mark.parametrize(
    ("share", "signs", "expected"),
    [
        (0.0, "++--++", True),
        (0.5, "+++-++", True),
        (0.51, "+++-++", False),
        (1.0, "+++0++", True),
        (1.0, "+++?++", False),
    ],
)
def test_the_share_asked_for_is_the_contexts(share: float, signs: str, expected: bool) -> None:
    context = WRITTEN.model_copy(update={"should_share": share})
    assert meets_criteria(attempt(signs), CRITERIA, context) is expected


def test_the_shoulds_of_rules_are_no_part_of_the_share() -> None:
    context = WRITTEN.model_copy(update={"should_share": 1.0})
    assert meets_criteria(attempt("+++++-"), CRITERIA, context)


def test_a_share_is_counted_in_whole_criteria() -> None:
    criteria = [criterion(f"s{i}", False) for i in range(25)]
    context = WRITTEN.model_copy(update={"should_share": 0.56})
    assert meets_criteria(attempt("+" * 14 + "-" * 11, criteria=criteria), criteria, context)


@BOTH
def test_what_has_no_criteria_is_settled(context: Context) -> None:
    assert meets_criteria({"response": "", "verdicts": []}, [], context)


# Better


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ("++++++", "-+++++", True),
        ("-+++++", "-+++++", False),
        ("--++++", "-+++++", False),
        ("+-++++", "-+++++", False),
        ("-++-++", "-+-+++", False),
        ("+++-++", "-+++++", False),
        ("++++++", "-+-+++", True),
        ("-0++++", "-+++++", False),
        ("-?++++", "-+++++", False),
        ("-_++++", "-+++++", False),
        ("-+++++", "?+++++", False),
        ("-+++++", "-++-++", True),
        ("-+++-+", "-+++++", False),
        ("-++++-", "-+++++", False),
        ("-+++++", "-++++-", True),
    ],
)
def test_a_better_attempt_breaks_nothing_and_mends_something(
    new: str, old: str, expected: bool
) -> None:
    assert is_better(attempt(new), attempt(old), CRITERIA, WRITTEN) is expected


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ("+++-++", "-+++++", True),
        ("++--++", "-+++++", True),
        ("+-++++", "-+++++", False),
        ("+++++-", "-+++++", True),
        ("-++-++", "-+++++", False),
    ],
)
def test_by_log_odds_only_a_broken_must_is_a_loss(new: str, old: str, expected: bool) -> None:
    assert is_better(attempt(new), attempt(old), CRITERIA, BY_ODDS) is expected


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ((0.0, 1.0), (-1.0, 1.0), True),
        ((-1.0, 1.0), (-1.0, 1.0), False),
        ((-2.0, 1.0), (-1.0, 1.0), False),
        ((-1.0, None), (-1.0, 1.0), False),
    ],
)
def test_by_log_odds_scores_break_a_tie(new: Any, old: Any, expected: bool) -> None:
    assert is_better(attempt("-+++++", new), attempt("-+++++", old), CRITERIA, BY_ODDS) is expected


def test_scores_count_from_their_bars_and_a_rules_score_does_not_count() -> None:
    criteria = [criterion("m1", True, bar=5.0), criterion("topic", True, "rule")]
    old = attempt("-+", (4.0, 0.1), criteria)
    assert is_better(attempt("-+", (4.5, 0.0), criteria), old, criteria, BY_ODDS)
    assert not is_better(attempt("-+", (4.0, 0.9), criteria), old, criteria, BY_ODDS)


# The best


@BOTH
@pytest.mark.parametrize(
    ("signs", "best"),
    [
        (["-+++++"], 0),
        (["-+++++", "++++++"], 1),
        (["++++++", "++++++"], 0),
        (["--++++", "-+++++", "-+++++"], 1),
        (["-+++++", "+-++++"], 0),
        (["-+++++", "+-++++", "++++-+"], 0),
        (["--++++", "+-++++", "-+++++"], 1),
        (["------", "-+----", "-++---", "+-++++"], 2),
        (["?+++++", "-+++++"], 0),
    ],
)
def test_the_best_is_the_first_that_will_do_or_the_last_that_was_better(
    signs: list[str], best: int, context: Context
) -> None:
    assert best_of([attempt(s) for s in signs], CRITERIA, context) == best


@BOTH
def test_an_attempt_that_will_do_is_the_best_whatever_it_broke(context: Context) -> None:
    # s1 passed before and fails now, but all that has to pass does.
    attempts = [attempt("-+++++"), attempt("++-+++")]
    assert best_of(attempts, CRITERIA, context) == 1
    assert next_step(attempts, CRITERIA, context).status == "accepted"


# Deciding


@BOTH
@pytest.mark.parametrize(
    ("signs", "status", "reason", "best"),
    [
        (["++++++"], "accepted", None, 0),
        (["-+++++"], "open", None, 0),
        (["-+++++", "++++++"], "accepted", None, 1),
        (["-+++++", "-+++++"], "open", None, 0),
        (["-+++++", "-+++++", "-+++++"], "rejected", "no_progress", 0),
        (["--++++", "-+++++", "-+++++"], "open", None, 1),
        (["--++++", "-+++++", "-+++++", "-+++++"], "rejected", "no_progress", 1),
        (["----++", "---+++", "--++++", "-+++++", "-+++++"], "rejected", "criteria", 3),
        (["?+++++"], "rejected", "criteria", 0),
        (["?-++++"], "open", None, 0),
    ],
)
def test_a_sample_ends_on_evidence(
    signs: list[str], status: str, reason: str | None, best: int, context: Context
) -> None:
    decision = next_step([attempt(s) for s in signs], CRITERIA, context)
    assert (decision.status, decision.reason, decision.best) == (status, reason, best)


@BOTH
@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_last_attempt_that_may_be_made_decides(most: int, context: Context) -> None:
    context = context.model_copy(update={"max_attempts": most})
    signs = ["--++++", "-+++++", "-+++++"]
    for n in range(1, most):
        assert next_step([attempt(s) for s in signs[:n]], CRITERIA, context).status == "open"
    decision = next_step([attempt(s) for s in signs[:most]], CRITERIA, context)
    assert (decision.status, decision.reason) == ("rejected", "criteria")


@BOTH
def test_without_feedback_there_is_one_attempt(context: Context) -> None:
    context = context.model_copy(update={"feedback": "none"})
    decision = next_step([attempt("-+++++")], CRITERIA, context)
    assert (decision.status, decision.reason) == ("rejected", "criteria")
    assert next_step([attempt("++++++")], CRITERIA, context).status == "accepted"


@BOTH
@pytest.mark.parametrize("rounds", [3, 5])
def test_a_copy_is_rejected_as_a_copy(rounds: int, context: Context) -> None:
    criteria = [criterion("not-copied", True, "rule"), *MUSTS]
    attempts = [attempt("-++", criteria=criteria)] * rounds
    decision = next_step(attempts, criteria, context)
    assert (decision.status, decision.reason) == ("rejected", "copied")


# Whatever comes

SIGNS = st.text("+-0?_", min_size=len(CRITERIA), max_size=len(CRITERIA))
SCORES = st.lists(st.none() | st.floats(-9, 9), max_size=4)
ATTEMPTS = st.lists(st.builds(attempt, SIGNS, SCORES), min_size=1, max_size=8)
CONTEXTS = st.builds(
    Context,
    model=st.just("m"),
    judge_method=st.sampled_from(["verdict", "logodds"]),
    max_attempts=st.integers(1, 8),
    should_share=st.sampled_from([0.0, 0.5, 1.0]),
    feedback=st.sampled_from(["reference", "generic", "none"]),
)


def musts_passed(of: Attempt) -> set[str]:
    musts = {c["id"] for c in CRITERIA if c["must"]}
    return {v["criterion_id"] for v in of["verdicts"] if passes(v)} & musts


@given(ATTEMPTS, CONTEXTS)
def test_the_loop_ends_at_the_first_attempt_that_will_do_or_at_the_last(
    attempts: list[Attempt], context: Context
) -> None:
    for n in range(1, len(attempts) + 1):
        decision = next_step(attempts[:n], CRITERIA, context)
        if decision.status != "open":
            break
    last = attempts[n - 1]
    assert n <= context.max_attempts or n == 1
    assert not any(meets_criteria(a, CRITERIA, context) for a in attempts[: n - 1])
    if meets_criteria(last, CRITERIA, context):
        assert (decision.status, decision.reason, decision.best) == ("accepted", None, n - 1)
    elif n == context.max_attempts:
        assert decision.status == "rejected"
    assert decision.status != "accepted" or meets_criteria(last, CRITERIA, context)
    assert (decision.reason is None) == (decision.status != "rejected")


@given(ATTEMPTS, CONTEXTS)
def test_an_open_sample_has_something_to_mend_and_hope(
    attempts: list[Attempt], context: Context
) -> None:
    decision = next_step(attempts, CRITERIA, context)
    if decision.status == "open":
        assert any(v["verdict"] == "fail" for v in attempts[decision.best]["verdicts"])
        assert len(attempts) < context.max_attempts
        assert len(attempts) - 1 - decision.best < MAX_STALLED_ROUNDS


@given(ATTEMPTS, CONTEXTS)
def test_the_best_is_never_worse_than_an_earlier_best(
    attempts: list[Attempt], context: Context
) -> None:
    bests = [best_of(attempts[:n], CRITERIA, context) for n in range(1, len(attempts) + 1)]
    assert bests == sorted(bests)
    counts = [len(musts_passed(attempts[best])) for best in bests]
    assert counts == sorted(counts)


@given(ATTEMPTS, CONTEXTS)
def test_no_must_that_passed_is_lost_in_the_best(attempts: list[Attempt], context: Context) -> None:
    best = 0
    for n in range(1, len(attempts) + 1):
        now = best_of(attempts[:n], CRITERIA, context)
        assert musts_passed(attempts[best]) <= musts_passed(attempts[now])
        best = now


@given(ATTEMPTS, CONTEXTS)
def test_nothing_is_better_than_itself_nor_both_ways(
    attempts: list[Attempt], context: Context
) -> None:
    a, b = attempts[0], attempts[-1]
    assert not is_better(a, a, CRITERIA, context)
    assert not (is_better(a, b, CRITERIA, context) and is_better(b, a, CRITERIA, context))


@given(SIGNS, st.integers(0, len(CRITERIA) - 1))
def test_a_refinement_that_breaks_a_passed_criterion_does_not_replace(
    signs: str, broken: int
) -> None:
    whole = "+" * len(CRITERIA)
    new = whole[:broken] + "-" + whole[broken + 1 :]
    old = signs[:broken] + "+" + signs[broken + 1 :]
    assert not is_better(attempt(new), attempt(old), CRITERIA, WRITTEN)
    if CRITERIA[broken]["must"]:
        assert not is_better(attempt(new), attempt(old), CRITERIA, BY_ODDS)
        assert best_of([attempt(old), attempt(new)], CRITERIA, WRITTEN) == 0
