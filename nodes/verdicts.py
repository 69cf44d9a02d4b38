"""What verdicts add up to: whether an attempt will do, which is best, whether to go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from nodes.context import Context
from nodes.criteria import NOT_CONTAMINATED_ID
from nodes.judge import JudgeResult
from nodes.state import Attempt, Criterion, RejectionReason, Status, Verdict, add_usage

MAX_STALLED_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class LoopDecision:
    """Where a sample stands: its status, why if rejected, and its best attempt's place."""

    status: Status
    reason: RejectionReason | None
    best: int


def passes(verdict: Verdict) -> bool:
    """Whether a verdict stands in no one's way; unknown never does."""
    return verdict["verdict"] in ("pass", "not_applicable")


def meets_criteria(attempt: Attempt, criteria: Sequence[Criterion], context: Context) -> bool:
    """Whether all `must` criteria pass, and the share of judged `should` criteria asked for.

    By log-odds the `should` criteria only rank: measured on the embedded model, requiring them
    rejects most good answers.
    """
    found = {v["criterion_id"]: passes(v) for v in attempt["verdicts"]}
    if not all(found.get(c["id"], False) for c in criteria if c["must"]):
        return False
    shoulds = [c["id"] for c in criteria if not c["must"] and c["judged_by"] == "judge"]
    if not shoulds or context.method == "logodds":
        return True
    return (
        sum(found.get(id_, False) for id_ in shoulds) >= context.should_share * len(shoulds) - 1e-9
    )


def is_better(new: Attempt, old: Attempt, criteria: Sequence[Criterion], context: Context) -> bool:
    """Whether `new` replaces `old`: it breaks nothing that passed, and is worth more.

    By log-odds a score may dip under its bar by chance, so there only a broken `must` counts.
    """
    firm = {c["id"] for c in criteria if c["must"] or context.method == "verdict"}
    kept = {v["criterion_id"] for v in new["verdicts"] if passes(v)}
    if any(
        passes(v) and v["criterion_id"] not in kept
        for v in old["verdicts"]
        if v["criterion_id"] in firm
    ):
        return False
    return _worth(new, criteria) > _worth(old, criteria)


def _worth(attempt: Attempt, criteria: Sequence[Criterion]) -> tuple[int, int, float]:
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


def best_of(attempts: Sequence[Attempt], criteria: Sequence[Criterion], context: Context) -> int:
    """The place of the best attempt: the first that will do, else the last that was better.

    Of a draft that is refined once whatever it is, the refinement, unless only the draft will do.
    """
    if context.once:
        places = range(len(attempts) - 1, -1, -1)
        return next(
            (i for i in places if meets_criteria(attempts[i], criteria, context)), places[0]
        )
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

    Ends on: an attempt that will do; `max_attempts`; two rounds without a better attempt; nothing
    that a refinement could be told (verdicts unknown, none failed).
    """
    best = best_of(attempts, criteria, context)
    fed_back = context.once and len(attempts) == 1 and bool(attempts[0].get("feedback"))
    more = fed_back and context.max_attempts > 1
    if meets_criteria(attempts[best], criteria, context) and not more:
        return LoopDecision("accepted", None, best)
    failed = [v["criterion_id"] for v in attempts[best]["verdicts"] if v["verdict"] == "fail"]
    if NOT_CONTAMINATED_ID in failed:
        return LoopDecision("rejected", "contaminated", best)
    if more:
        return LoopDecision("open", None, best)
    over = (
        context.once
        or len(attempts) >= context.max_attempts
        or context.feedback == "none"
        or not failed
    )
    stuck = len(attempts) - 1 - best >= MAX_STALLED_ROUNDS
    if over or stuck:
        if "not-copied" in failed:
            return LoopDecision("rejected", "copied", best)
        return LoopDecision("rejected", "criteria" if over else "no_progress", best)
    return LoopDecision("open", None, best)


# MERGED nodes~votes
# A vote of the judge where one written verdict alone stands against a response.
# Judges the criteria once more; the number tells the draws apart.
Again = Callable[[Sequence[Criterion], int], Awaitable[JudgeResult]]


def decisive_ids(attempt: Attempt, criteria: Sequence[Criterion], context: Context) -> list[str]:
    """The judge's verdicts each of which, were it a pass, would let the attempt through."""
    if meets_criteria(attempt, criteria, context):
        return []
    judged = {c["id"] for c in criteria if c["judged_by"] == "judge"}
    return [
        verdict["criterion_id"]
        for verdict in attempt["verdicts"]
        if verdict["criterion_id"] in judged
        and not passes(verdict)
        and meets_criteria(_with_a_pass(attempt, verdict), criteria, context)
    ]


def _with_a_pass(attempt: Attempt, verdict: Verdict) -> Attempt:
    passed: Verdict = {**verdict, "verdict": "pass"}
    return {**attempt, "verdicts": [passed if v is verdict else v for v in attempt["verdicts"]]}


async def vote(
    judged: JudgeResult,
    rules: Sequence[Verdict],
    criteria: Sequence[Criterion],
    context: Context,
    again: Again,
) -> JudgeResult:
    """The verdicts, those that decide alone by the majority of `judge_votes`; a draw fails.

    By log-odds the same question has the same answer, so nothing is asked again.
    """
    if context.judge_votes < 2 or context.method == "logodds":
        return judged
    attempt: Attempt = {"response": "", "verdicts": [*judged.verdicts, *rules]}
    ids = set(decisive_ids(attempt, criteria, context))
    asked = [c for c in criteria if c["id"] in ids]
    if not asked:
        return judged
    found: dict[str, list[Verdict]] = {c["id"]: [] for c in asked}
    usage = judged.usage
    for verdict in judged.verdicts:
        if verdict["criterion_id"] in found:
            found[verdict["criterion_id"]].append(verdict)
    for number in range(1, context.judge_votes):
        more = await again(asked, number)
        usage = add_usage(usage, more.usage)
        for verdict in more.verdicts:
            found[verdict["criterion_id"]].append(verdict)
    won = {id_: majority(votes) for id_, votes in found.items()}
    return JudgeResult([won.get(v["criterion_id"], v) for v in judged.verdicts], usage)


def majority(votes: Sequence[Verdict]) -> Verdict:
    """The first of the verdicts that the most agree with, with the count in its reason."""
    passing = [verdict for verdict in votes if passes(verdict)]
    side = passing if 2 * len(passing) > len(votes) else [v for v in votes if not passes(v)]
    counts = Counter(verdict["verdict"] for verdict in side)
    outcome = counts.most_common(1)[0][0]
    first = next(verdict for verdict in side if verdict["verdict"] == outcome)
    said = f"{first['reason']} ({len(side)} of {len(votes)} votes)".strip()
    return {**first, "reason": said}
