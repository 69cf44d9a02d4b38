"""Scoring a response by criteria: verdicts, and what they add up to, one number from 0 to 1.

`score_verdicts` is the sum, `Scorer` brings the verdicts, and `open_scorer` opens what that needs:
a journal, the judge's endpoint within its limits, and the checks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from memory.references import Reference, Turn, content_id
from nodes.checks import CheckInput, RunCheck, apply_checks, is_check, parse_check
from nodes.context import Context
from nodes.criteria import verdict
from nodes.judge import judge
from nodes.llm import CallFailed, CallOrigin, Complete, ProviderStopped
from nodes.llm.endpoint import OnLearned
from nodes.llm.protocol import Transient
from nodes.state import Criterion, Usage, Verdict, no_usage
from refloom.data.rubrics import rubric_of, weight_of
from refloom.evaluation.judging import open_judge
from refloom.runs.checks import RunChecks
from refloom.runs.client import CachedClient
from refloom.runs.journal import Journal
from refloom.settings import Settings

# With more than this share of the weight unknown, nothing is known.
MAX_UNKNOWN_SHARE = 0.5


class Score(NamedTuple):
    """A response's score from 0 to 1, None if too little is known; and how many are unknown."""

    value: float | None
    unknown: int


def score_verdicts(criteria: Sequence[Criterion], verdicts: Sequence[Verdict]) -> Score:
    """Add up verdicts by the weights of their criteria: HealthBench's sum, clipped to 0 and 1.

    Criteria that do not apply, and those whose verdict is unknown or missing, count in neither sum.
    A pitfall fails if the fault is there, and then adds its negative weight. The score is None if
    the unknown ones have more than half of the weight, or if no positive weight is known.
    """
    outcomes = {verdict["criterion_id"]: verdict["verdict"] for verdict in verdicts}
    passed = positive = weight = unknown_weight = 0.0
    unknown = 0
    for criterion in criteria:
        outcome, own = outcomes.get(criterion["id"], "unknown"), weight_of(criterion)
        if outcome == "not_applicable":
            continue
        weight += abs(own)
        if outcome == "unknown":
            unknown += 1
            unknown_weight += abs(own)
        elif own < 0:
            passed += own if outcome == "fail" else 0.0
        else:
            positive += own
            passed += own if outcome == "pass" else 0.0
    if positive <= 0 or unknown_weight > MAX_UNKNOWN_SHARE * weight:
        return Score(None, unknown)
    return Score(min(max(passed / positive, 0.0), 1.0), unknown)


class ScoredResponse(NamedTuple):
    """A response's score, its verdicts in the order of the criteria, and how many are unknown.

    `usage` is that of the judge's calls. `fault` is the call that failed, if one did: then what the
    judge would have said is unknown.
    """

    value: float | None
    verdicts: list[Verdict]
    unknown: int
    usage: Usage
    fault: CallFailed | None = None


class Scorer:
    """Scores responses, one at a time or many at once, by checks and a judge, jury or log-odds."""

    def __init__(self, complete: Complete, context: Context, *, run_check: RunCheck) -> None:
        """`complete` makes the judge's calls, as `context` says; `run_check` makes checks."""
        self._complete, self._context, self._run_check = complete, context, run_check

    async def score(
        self,
        instruction: str,
        response: str,
        criteria: Sequence[Criterion],
        *,
        history: Sequence[Turn] = (),
        references: Sequence[Reference] = (),
        trusted: bool = False,
        place: tuple[int, ...] = (),
    ) -> ScoredResponse:
        """Score one response by those criteria that a check or a judge decides.

        The same response to the same instruction is the same calls, whenever and wherever it is
        scored. An empty one is not asked about: it passes nothing but pitfalls. Where a call fails,
        because of the content or for good, its verdicts are unknown.

        Args:
            instruction: The instruction.
            response: The response; may be empty.
            criteria: The criteria, each id once; of several with one id the first counts.
            history: The turns before the instruction.
            references: What checks may look at, such as `math`.
            trusted: Whether the criteria may name checks that run code or read a file. Those of
                files that somebody else made may not: such a verdict is unknown.
            place: Which calls go first when there are many: those with the lowest.

        Raises:
            ProviderStopped: No call can succeed, or the judge gives no log-probabilities.
            Interrupted: The client is stopping.
        """
        first: dict[str, Criterion] = {}
        for criterion in rubric_of(criteria):
            first.setdefault(criterion["id"], criterion)
        items = list(first.values())
        if not response.strip():
            return _add_up(items, [_verdict_on_nothing(item) for item in items], no_usage())
        run_check = self._run_check if trusted else _only_safe(self._run_check)
        checks = await apply_checks(items, instruction, response, references, run_check)
        fault = None
        try:
            content = content_id(instruction, response, *(turn["content"] for turn in history))
            judged = await judge(
                self._complete,
                self._context,
                CallOrigin(f"score {content}", "", place),
                instruction=instruction,
                response=response,
                criteria=items,
                history=history,
            )
            verdicts, usage = judged.verdicts, judged.usage
        except CallFailed as error:
            if self._context.method == "logodds" and "log-probabilities" in error.message:
                raise ProviderStopped(error.message) from error
            reason = f"The judge could not be asked: {error.message}"
            unasked = [item for item in items if not is_check(item)]
            verdicts = [verdict(item["id"], "unknown", reason) for item in unasked]
            fault, usage = error, error.usage
        return _add_up(items, [*checks, *verdicts], usage, fault)


def _add_up(
    items: Sequence[Criterion],
    verdicts: Sequence[Verdict],
    usage: Usage,
    fault: CallFailed | None = None,
) -> ScoredResponse:
    by_id = {one["criterion_id"]: one for one in verdicts}
    ordered = [by_id[item["id"]] for item in items]
    score = score_verdicts(items, ordered)
    return ScoredResponse(score.value, ordered, score.unknown, usage, fault)


def _verdict_on_nothing(item: Criterion) -> Verdict:
    """The verdict on an empty response: it has no merit, and no fault either."""
    outcome = "pass" if weight_of(item) < 0 else "fail"
    return verdict(item["id"], outcome, "The response is empty.")  # type: ignore[arg-type]


def _only_safe(run_check: RunCheck) -> RunCheck:
    """A `RunCheck` for criteria of others: unknown for a check that runs code or reads a file."""

    async def run(check: CheckInput) -> Verdict:
        try:
            parse_check(check.name, trusted=False)
        except ValueError as error:
            return verdict(check.criterion["id"], "unknown", f"It was not checked: {error}.")
        return await run_check(check)

    return run


class ScorerSession(NamedTuple):
    """An open scorer; its client, which counts calls and can be stopped; and their journal."""

    scorer: Scorer
    client: CachedClient
    journal: Journal


@asynccontextmanager
async def open_scorer(
    journal: Path,
    settings: Settings,
    *,
    complete: Complete | None = None,
    on_warning: Callable[[str], None] = lambda text: None,
    on_learned: OnLearned = lambda model, sentence: None,
) -> AsyncIterator[ScorerSession]:
    """Open a scorer whose calls are journaled in the file `journal`, beside which it is locked.

    Limits, budget, prices and `reuse` are those of the settings; no call is paid twice. `complete`
    replaces the endpoint, `on_warning` gets each trouble with a check, and each kind of fault that
    calls are made again for, once. Raises what
    `refloom.evaluation.judging.open_judge` raises.
    """
    kinds: set[str] = set()

    def tell_of_fault(fault: CallFailed) -> None:
        if isinstance(fault, Transient) and fault.kind not in kinds:
            kinds.add(fault.kind)
            on_warning(f"calls are made again, after a wait if need be: {fault.message}")

    async with open_judge(
        journal,
        settings,
        complete,
        asks_first=True,
        on_fault=tell_of_fault,
        on_learned=on_learned,
    ) as session:
        client = session.client
        checks = RunChecks(
            session.journal, settings, client, reused=session.reused, on_warning=on_warning
        )
        try:
            scorer = Scorer(client, settings.context(), run_check=checks)
            yield ScorerSession(scorer, client, session.journal)
        finally:
            await checks.aclose()
