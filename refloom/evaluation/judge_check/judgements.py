"""Asking a judge about texts of known quality: the cases, the judge, its thresholds and criteria.

Built on `nodes.judge`, `nodes.compare` and `nodes.verdicts.vote`, as a run is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from memory.characteristics import Learned
from memory.references import Turn
from nodes.compare import PairwiseResult, compare
from nodes.context import Context
from nodes.criteria import ANSWERS_ID, answers_instruction, rule_criteria
from nodes.judge import JudgeResult, judge
from nodes.llm import CallFailed, CallOrigin, Complete, ProviderStopped
from nodes.record import Record
from nodes.state import Attempt, Criterion, Verdict, no_usage
from nodes.trial import midpoint
from nodes.verdicts import meets_criteria, vote
from refloom.evaluation.judging import gather_bounded, progress_printer
from refloom.settings import Settings

DUEL_KINDS = ("padded", "truncated", "flattering")
# Keeps the draws of votes apart from those of repeats: more than the repeats of a response.
VOTE_DRAW_STRIDE = 1000

T = TypeVar("T")


class MethodUnavailable(Exception):
    """The endpoint does not support this method of judging."""


@dataclass(frozen=True)
class JudgeCase:
    """One response that is put to the judge, and what came of it.

    Attributes:
        source_id: The id of the reference or sample that the response was made from.
        kind: "own" or "original" for its own response, else how the response was corrupted.
        instruction: The instruction.
        response: The response.
        criteria: The criteria of the judge; rules are not among them.
        history: The turns before the instruction.
        draw: The number of the repeat, from 0.
        verdicts: The judge's verdicts by criterion id, once it has judged.
        rule_verdicts: Those of the rules, if they were applied.
    """

    source_id: str
    kind: str
    instruction: str
    response: str
    criteria: Sequence[Criterion]
    history: Sequence[Turn] = ()
    draw: int = 0
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    rule_verdicts: Sequence[Verdict] = ()

    def passes_judge(self, context: Context) -> bool:
        """Whether the response passes by the judge alone."""
        return self._passes(list(self.verdicts.values()), self.criteria, context)

    def passes_rules(self, context: Context) -> bool:
        """Whether the response passes by the rules alone."""
        return self._passes(self.rule_verdicts, rule_criteria(), context)

    def is_accepted(self, context: Context) -> bool:
        """Whether a run would accept the response, by the judge and the rules together."""
        verdicts = [*self.verdicts.values(), *self.rule_verdicts]
        return self._passes(verdicts, [*self.criteria, *rule_criteria()], context)

    def _passes(
        self, verdicts: Sequence[Verdict], criteria: Sequence[Criterion], context: Context
    ) -> bool:
        attempt: Attempt = {"response": self.response, "verdicts": list(verdicts)}
        return meets_criteria(attempt, criteria, context)


# The canary of a case, and its comparison with the accepted response, which is first.
CanaryDuel = tuple[JudgeCase, PairwiseResult]


@dataclass(frozen=True)
class CaseJudge:
    """The judge under test: where its calls go, how it judges, and the calls that failed.

    Its methods return what succeeded.
    """

    complete: Complete
    context: Context
    settings: Settings
    directory: Path
    failures: list[CallFailed]

    async def judge_cases(self, cases: Sequence[JudgeCase], label: str) -> list[JudgeCase]:
        """Judge cases; `label` names them in the progress lines.

        Raises `MethodUnavailable` if the endpoint gives no log-probabilities for `logodds`.
        """
        if not cases:
            return []

        async def work(number: int, case: JudgeCase) -> JudgeCase:
            return _with_verdicts(
                case, await self._call_judge(number, case, case.criteria, case.draw)
            )

        # The first case goes alone, so an endpoint that cannot judge this way is asked only once.
        first = await self._gather([(0, cases[0])], work)
        if not first and self.context.method == "logodds" and lacks_logprobs(self.failures[-1]):
            failure = self.failures.pop()
            raise MethodUnavailable(failure.message) from failure
        rest = await self._gather(list(enumerate(cases))[1:], work, label=label)
        return first + rest

    async def _gather(
        self,
        cases: Sequence[tuple[int, JudgeCase]],
        work: Callable[[int, JudgeCase], Awaitable[T]],
        *,
        calls_at_once: int = 1,
        label: str = "",
    ) -> list[T]:
        """What `work` brings for numbered cases, in their order; notes the calls that failed."""

        async def settle(numbered: tuple[int, JudgeCase]) -> T | CallFailed:
            try:
                return await work(*numbered)
            except CallFailed as failure:
                return failure

        results = await gather_bounded(
            cases,
            settle,
            limit=max(1, self.settings.max_in_flight // calls_at_once),
            on_progress=progress_printer(f"judge-check: {label}", self.settings.quiet or not label),
        )
        self.failures.extend(result for result in results if isinstance(result, CallFailed))
        return [result for result in results if not isinstance(result, CallFailed)]

    async def _call_judge(
        self, number: int, case: JudgeCase, criteria: Sequence[Criterion], draw: int
    ) -> JudgeResult:
        return await judge(
            self.complete,
            self.context,
            CallOrigin(f"judge-check {case.source_id}", case.kind, (number,)),
            instruction=case.instruction,
            response=case.response,
            criteria=criteria,
            draw=draw,
            history=case.history,
        )

    async def vote(self, cases: Sequence[JudgeCase]) -> list[JudgeCase]:
        """Replace each verdict that alone decides by the majority of a vote, as a run does."""

        async def work(number: int, case: JudgeCase) -> JudgeCase:
            async def judge_again(criteria: Sequence[Criterion], draw: int) -> JudgeResult:
                return await self._call_judge(
                    number, case, criteria, case.draw + VOTE_DRAW_STRIDE * draw
                )

            voted = await vote(
                JudgeResult(list(case.verdicts.values()), no_usage()),
                case.rule_verdicts,
                [*case.criteria, *rule_criteria()],
                self.context,
                judge_again,
            )
            return _with_verdicts(case, voted)

        return await self._gather(list(enumerate(cases)), work)

    async def run_duels(self, cases: Sequence[JudgeCase]) -> list[CanaryDuel]:
        """Compare each original with its canaries of `DUEL_KINDS`, in both orders."""
        originals = {c.source_id: c for c in cases if c.kind == "original"}
        canaries = [c for c in cases if c.kind in DUEL_KINDS and not c.draw]

        async def work(number: int, canary: JudgeCase) -> CanaryDuel:
            duel = await compare(
                self.complete,
                self.context,
                CallOrigin(f"judge-check {canary.source_id}", f"duel {canary.kind}", (number,)),
                instruction=canary.instruction,
                first=originals[canary.source_id].response,
                second=canary.response,
            )
            return canary, duel

        return await self._gather(list(enumerate(canaries)), work, calls_at_once=2, label="duels")


def _with_verdicts(case: JudgeCase, result: JudgeResult) -> JudgeCase:
    return replace(case, verdicts={v["criterion_id"]: v for v in result.verdicts})


def lacks_logprobs(error: CallFailed | ProviderStopped) -> bool:
    """Whether the error is that the endpoint gives no log-probabilities."""
    return "log-probabilities" in str(error)


@dataclass
class Thresholds:
    """The log-odds or cosine above which a response passes.

    Attributes:
        criteria: By criterion id, of the criteria drawn from references.
        answers: By reference id, of the built-in criterion.
        topics: By reference id, of the cosine of instruction and response.
    """

    criteria: dict[str, float] = field(default_factory=dict)
    answers: dict[str, float] = field(default_factory=dict)
    topics: dict[str, float] = field(default_factory=dict)

    def add_learned(self, reference_id: str, learned: Learned) -> None:
        """Add the thresholds that an earlier trial stored for a reference."""
        if learned["answers_bar"] is not None:
            self.answers[reference_id] = learned["answers_bar"]
        if learned["topic_bar"] is not None:
            self.topics[reference_id] = learned["topic_bar"]
        for criterion in learned["criteria"]:
            if criterion.get("bar") is not None:
                self.criteria[criterion["id"]] = criterion["bar"]

    def answers_threshold(self, reference_ids: Sequence[str]) -> float | None:
        """The threshold of the built-in criterion for a sample of these references, as in a run.

        The mean over these references, or over all if none of these has one.
        """
        values = [self.answers[id_] for id_ in reference_ids if id_ in self.answers]
        return _mean(values or list(self.answers.values()))

    def topic_threshold(self, reference_ids: Sequence[str]) -> float | None:
        """The threshold of the cosine for a sample of these references."""
        return _mean([self.topics[id_] for id_ in reference_ids if id_ in self.topics])

    def fit(self, cases: Sequence[JudgeCase], corrupted_kinds: Sequence[str]) -> None:
        """Set the thresholds still missing from the scores of references, as a trial does."""
        scores: dict[tuple[str, str], dict[str, float]] = {}
        for case in cases:
            for id_, verdict in case.verdicts.items():
                if verdict["score"] is not None:
                    scores.setdefault((case.source_id, id_), {})[case.kind] = verdict["score"]
        for (source_id, id_), by_kind in scores.items():
            corrupted = [by_kind[kind] for kind in corrupted_kinds if kind in by_kind]
            threshold = midpoint(by_kind.get("own"), corrupted)
            if threshold is not None and id_ == ANSWERS_ID:
                self.answers.setdefault(source_id, threshold)
            elif threshold is not None:
                self.criteria.setdefault(id_, threshold)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def applied_criteria(
    record: Record, context: Context, thresholds: Thresholds, extra_ids: Collection[str] = ()
) -> list[Criterion]:
    """The criteria of a sample as the judge under test applies them.

    By log-odds, criteria drawn from references decide nothing: only the built-in ones are asked,
    and those of `extra_ids` as a `should`. A sample that no judge judged has the built-in one.
    """
    criteria: list[Criterion] = [c for c in record["criteria"] if c["judged_by"] == "judge"]
    criteria = criteria or [answers_instruction(None)]
    if context.method == "verdict":
        return criteria
    applied: list[Criterion] = []
    for criterion in criteria:
        id_ = criterion["id"]
        if id_ == ANSWERS_ID:
            threshold = thresholds.answers_threshold(record["reference_ids"])
        else:
            threshold = thresholds.criteria.get(id_)
        if criterion["reference_id"] is None:
            applied.append({**criterion, "bar": threshold})
        elif id_ in extra_ids:
            applied.append({**criterion, "must": False, "bar": threshold})
    return applied
