"""What verdicts add up to: whether an attempt is accepted, which is best, what happens next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from nodes.checks import DEFAULT_CHECKS
from nodes.context import Context
from nodes.criteria import NOT_CONTAMINATED_ID
from nodes.judge import JudgeResult
from nodes.llm import CallFailed
from nodes.state import Attempt, Criterion, RejectionReason, Status, Verdict, add_usage

# Attempts without progress after which a sample is rejected.
MAX_STALLED_ROUNDS = 2

# Judges the criteria once more; the number keeps the draws of votes apart.
AskAgain = Callable[[Sequence[Criterion], int], Awaitable[JudgeResult]]


@dataclass(frozen=True, slots=True)
class LoopDecision:
    """Where a sample stands: its status, why if rejected, and the number of its best attempt."""

    status: Status
    reason: RejectionReason | None
    best: int


def passes(verdict: Verdict) -> bool:
    """Whether a verdict counts as passed; unknown never does."""
    return verdict["verdict"] in ("pass", "not_applicable")


def meets_criteria(attempt: Attempt, criteria: Sequence[Criterion], context: Context) -> bool:
    """Whether all `must` criteria pass, and `should_share` of the judged `should` criteria.

    A person's checks count as judged; rules and the checks by default do not.
    By log-odds `should` criteria only rank: with the embedded model, requiring them rejects most
    good answers (measured).
    """
    passed = {v["criterion_id"]: passes(v) for v in attempt["verdicts"]}
    if not all(passed.get(c["id"], False) for c in criteria if c["must"]):
        return False
    shoulds = [c["id"] for c in criteria if not c["must"] and _counts(c)]
    if not shoulds or context.method == "logodds":
        return True
    n_passed = sum(passed.get(id_, False) for id_ in shoulds)
    return n_passed >= context.should_share * len(shoulds) - 1e-9


def _counts(criterion: Criterion) -> bool:
    """Whether a criterion that is no must counts in the share that has to pass."""
    if criterion["judged_by"] == "check":
        return criterion["id"] not in DEFAULT_CHECKS
    return criterion["judged_by"] == "judge"


def is_better(new: Attempt, old: Attempt, criteria: Sequence[Criterion], context: Context) -> bool:
    """Whether `new` replaces `old`: it ranks higher and breaks nothing that passed.

    By log-odds a score may fall under its bar by chance, so only a broken `must` counts.
    """
    firm = {c["id"] for c in criteria if c["must"] or context.method == "verdict"}
    passed_before = {v["criterion_id"] for v in old["verdicts"] if passes(v)} & firm
    passed_now = {v["criterion_id"] for v in new["verdicts"] if passes(v)}
    return passed_before <= passed_now and _rank(new, criteria) > _rank(old, criteria)


def _rank(attempt: Attempt, criteria: Sequence[Criterion]) -> tuple[int, int, float]:
    """How many musts and shoulds pass, and the mean margin over the bars."""
    by_id = {c["id"]: c for c in criteria}
    musts = shoulds = 0
    margins = []
    for verdict in attempt["verdicts"]:
        criterion = by_id.get(verdict["criterion_id"])
        if criterion is None:
            continue
        musts += passes(verdict) and criterion["must"]
        shoulds += passes(verdict) and not criterion["must"]
        if verdict["score"] is not None and criterion["judged_by"] == "judge":
            margins.append(verdict["score"] - (criterion.get("bar") or 0.0))
    return musts, shoulds, sum(margins) / len(margins) if margins else 0.0


def is_as_good(answer: Attempt, accepted: Attempt, criteria: Sequence[Criterion]) -> bool:
    """Whether a bare answer may take the place of an accepted response.

    All `must` criteria have to pass, and at least as many `should` as of the response.
    """
    passed, passed_before = (
        {v["criterion_id"] for v in attempt["verdicts"] if passes(v)}
        for attempt in (answer, accepted)
    )
    musts = {c["id"] for c in criteria if c["must"]}
    shoulds = {c["id"] for c in criteria} - musts
    return musts <= passed and len(shoulds & passed) >= len(shoulds & passed_before)


def best_of(attempts: Sequence[Attempt], criteria: Sequence[Criterion], context: Context) -> int:
    """The number of the best attempt: the first that meets the criteria, else the best so far.

    If a draft is refined just once: the refinement, unless only the draft meets the criteria.
    """
    if context.refines_once:
        latest_first = range(len(attempts) - 1, -1, -1)
        good = (i for i in latest_first if meets_criteria(attempts[i], criteria, context))
        return next(good, latest_first[0])
    best = 0
    for i, attempt in enumerate(attempts):
        if meets_criteria(attempt, criteria, context):
            return i
        if i and is_better(attempt, attempts[best], criteria, context):
            best = i
    return best


def next_step(
    attempts: Sequence[Attempt], criteria: Sequence[Criterion], context: Context
) -> LoopDecision:
    """Whether to accept, to reject and why, or to refine once more.

    The loop ends with an attempt that meets the criteria, after `max_attempts`, after two attempts
    without progress, and if there is nothing to refine by (no verdict failed).
    """
    best = best_of(attempts, criteria, context)
    refine_draft = (
        context.refines_once
        and len(attempts) == 1
        and bool(attempts[0].get("feedback"))
        and context.max_attempts > 1
    )
    if meets_criteria(attempts[best], criteria, context) and not refine_draft:
        return LoopDecision("accepted", None, best)
    failed = [v["criterion_id"] for v in attempts[best]["verdicts"] if v["verdict"] == "fail"]
    if NOT_CONTAMINATED_ID in failed:
        return LoopDecision("rejected", "contaminated", best)
    if refine_draft:
        return LoopDecision("open", None, best)
    exhausted = (
        context.refines_once
        or len(attempts) >= context.max_attempts
        or context.feedback == "none"
        or not failed
    )
    stalled = len(attempts) - 1 - best >= MAX_STALLED_ROUNDS
    if exhausted or stalled:
        if "not-copied" in failed:
            return LoopDecision("rejected", "copied", best)
        return LoopDecision("rejected", "criteria" if exhausted else "no_progress", best)
    return LoopDecision("open", None, best)


def decisive_ids(attempt: Attempt, criteria: Sequence[Criterion], context: Context) -> list[str]:
    """The criteria whose judged verdict alone keeps the attempt from meeting the criteria."""
    if meets_criteria(attempt, criteria, context):
        return []
    judged = {c["id"] for c in criteria if c["judged_by"] == "judge"}
    decisive = []
    for verdict in attempt["verdicts"]:
        if verdict["criterion_id"] not in judged or passes(verdict):
            continue
        passed: Verdict = {**verdict, "verdict": "pass"}
        verdicts = [passed if v is verdict else v for v in attempt["verdicts"]]
        if meets_criteria({**attempt, "verdicts": verdicts}, criteria, context):
            decisive.append(verdict["criterion_id"])
    return decisive


async def vote(
    judged: JudgeResult,
    rules: Sequence[Verdict],
    criteria: Sequence[Criterion],
    context: Context,
    ask_again: AskAgain,
) -> JudgeResult:
    """Replace each verdict that decides alone by the majority of `judge_votes`; a draw fails.

    By log-odds a repeated question has the same answer, so nothing is asked again. Raises
    `CallFailed`.
    """
    if context.judge_votes < 2 or context.method == "logodds":
        return judged
    attempt: Attempt = {"response": "", "verdicts": [*judged.verdicts, *rules]}
    decisive = set(decisive_ids(attempt, criteria, context))
    repeated = [c for c in criteria if c["id"] in decisive]
    if not repeated:
        return judged
    votes: dict[str, list[Verdict]] = {c["id"]: [] for c in repeated}
    usage = judged.usage
    for verdict in judged.verdicts:
        if verdict["criterion_id"] in votes:
            votes[verdict["criterion_id"]].append(verdict)
    for number in range(1, context.judge_votes):
        try:
            again = await ask_again(repeated, number)
        except CallFailed as error:
            error.usage = add_usage(usage, error.usage)
            raise
        usage = add_usage(usage, again.usage)
        for verdict in again.verdicts:
            votes[verdict["criterion_id"]].append(verdict)
    results = {id_: majority(verdicts) for id_, verdicts in votes.items()}
    return JudgeResult([results.get(v["criterion_id"], v) for v in judged.verdicts], usage)


def majority(votes: Sequence[Verdict]) -> Verdict:
    """The first verdict with the majority's outcome; its reason also has the count of votes."""
    passing = [verdict for verdict in votes if passes(verdict)]
    side = passing if 2 * len(passing) > len(votes) else [v for v in votes if not passes(v)]
    outcomes = Counter(verdict["verdict"] for verdict in side)
    outcome = outcomes.most_common(1)[0][0]
    first = next(verdict for verdict in side if verdict["verdict"] == outcome)
    reason = f"{first['reason']} ({len(side)} of {len(votes)} votes)".strip()
    return {**first, "reason": reason}
