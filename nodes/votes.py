"""A vote of the judge where one written verdict alone stands against a response."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from nodes.context import Context
from nodes.judge import Judged
from nodes.state import Attempt, Criterion, Verdict, add_usage
from nodes.verdicts import passes, settled

# Judges the criteria once more; the number tells the draws apart.
Again = Callable[[Sequence[Criterion], int], Awaitable[Judged]]


def deciding(attempt: Attempt, criteria: Sequence[Criterion], context: Context) -> list[str]:
    """The judge's verdicts each of which, were it a pass, would let the attempt through."""
    if settled(attempt, criteria, context):
        return []
    judged = {c["id"] for c in criteria if c["judged_by"] == "judge"}
    return [
        verdict["criterion_id"]
        for verdict in attempt["verdicts"]
        if verdict["criterion_id"] in judged
        and not passes(verdict)
        and settled(_with_a_pass(attempt, verdict), criteria, context)
    ]


def _with_a_pass(attempt: Attempt, verdict: Verdict) -> Attempt:
    passed: Verdict = {**verdict, "verdict": "pass"}
    return {**attempt, "verdicts": [passed if v is verdict else v for v in attempt["verdicts"]]}


async def vote(
    judged: Judged,
    rules: Sequence[Verdict],
    criteria: Sequence[Criterion],
    context: Context,
    again: Again,
) -> Judged:
    """The verdicts, those that decide alone by the majority of `judge_votes`; a draw fails.

    By log-odds the same question has the same answer, so nothing is asked again.
    """
    if context.judge_votes < 2 or context.method == "logodds":
        return judged
    attempt: Attempt = {"response": "", "verdicts": [*judged.verdicts, *rules]}
    ids = set(deciding(attempt, criteria, context))
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
    return Judged([won.get(v["criterion_id"], v) for v in judged.verdicts], usage)


def majority(votes: Sequence[Verdict]) -> Verdict:
    """The first of the verdicts that the most agree with, with the count in its reason."""
    passing = [verdict for verdict in votes if passes(verdict)]
    side = passing if 2 * len(passing) > len(votes) else [v for v in votes if not passes(v)]
    counts = Counter(verdict["verdict"] for verdict in side)
    outcome = counts.most_common(1)[0][0]
    first = next(verdict for verdict in side if verdict["verdict"] == outcome)
    said = f"{first['reason']} ({len(side)} of {len(votes)} votes)".strip()
    return {**first, "reason": said}
