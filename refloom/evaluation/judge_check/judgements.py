"""Asking a judge about texts of known quality: the cases, the judge, its thresholds and criteria.

Built on `nodes.judge`, `nodes.compare` and `nodes.verdicts.vote`, as a run is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
    """One response to be judged.

    Attributes:
        source_id: The id of the reference or sample that the response was made from.
        kind: "own" or "original" for its own response, else how the response was corrupted.
        instruction: The instruction.
        response: The response.
        criteria: The criteria of the judge; rules are not among them.
        history: The turns before the instruction.
        draw: The number of the repeat, from 0.
    """

    source_id: str
    kind: str
    instruction: str
    response: str
    criteria: Sequence[Criterion]
    history: Sequence[Turn] = ()
    draw: int = 0


@dataclass(frozen=True)
class JudgedCase:
    """A case with the judge's verdicts by criterion id, and the rules' if they were applied."""

    case: JudgeCase
    verdicts: Mapping[str, Verdict]
    rule_verdicts: Sequence[Verdict] = ()

    def passes_judge(self, context: Context) -> bool:
        """Whether the response passes by the judge alone."""
        return self._passes(list(self.verdicts.values()), self.case.criteria, context)

    def passes_rules(self, context: Context) -> bool:
        """Whether the response passes by the rules alone."""
        return self._passes(self.rule_verdicts, rule_criteria(), context)

    def is_accepted(self, context: Context) -> bool:
        """Whether a run would accept the response, by the judge and the rules together."""
        verdicts = [*self.verdicts.values(), *self.rule_verdicts]
        return self._passes(verdicts, [*self.case.criteria, *rule_criteria()], context)

    def _passes(
        self, verdicts: Sequence[Verdict], criteria: Sequence[Criterion], context: Context
    ) -> bool:
        attempt: Attempt = {"response": self.case.response, "verdicts": list(verdicts)}
        return meets_criteria(attempt, criteria, context)


@dataclass(frozen=True)
class CanaryDuel:
    """A duel between an accepted response, which is first, and the canary of a case."""

    canary: JudgeCase
    duel: PairwiseResult


@dataclass(frozen=True)
class CaseJudge:
    """The judge under test: where its calls go, and how it judges.

    Its methods return what succeeded and, apart, the calls that failed.
    """

    complete: Complete
    context: Context
    settings: Settings
    directory: Path

    async def judge_cases(
        self, cases: Sequence[JudgeCase], label: str
    ) -> tuple[list[JudgedCase], list[CallFailed]]:
        """Judge cases; `label` names them in the progress lines.

        Raises `MethodUnavailable` if the endpoint gives no log-probabilities for `logodds`.
        """
        if not cases:
            return [], []
        # The first case goes alone, so an endpoint that cannot judge this way is asked only once.
        first = await self._judge_case(0, cases[0])
        if (
            isinstance(first, CallFailed)
            and self.context.method == "logodds"
            and lacks_logprobs(first)
        ):
            raise MethodUnavailable(first.message) from first
        rest = await gather_bounded(
            list(enumerate(cases))[1:],
            lambda numbered: self._judge_case(*numbered),
            limit=self.settings.max_in_flight,
            on_progress=progress_printer(f"judge-check: {label}", self.settings.quiet),
        )
        return _split_failures([first, *rest])

    async def _judge_case(self, number: int, case: JudgeCase) -> JudgedCase | CallFailed:
        try:
            judged = await self._call_judge(number, case, case.criteria, case.draw)
        except CallFailed as failure:
            return failure
        return JudgedCase(case, {v["criterion_id"]: v for v in judged.verdicts})

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

    async def vote(
        self, judged_cases: Sequence[JudgedCase]
    ) -> tuple[list[JudgedCase], list[CallFailed]]:
        """Replace each verdict that alone decides by the majority of a vote, as a run does."""

        async def vote_on(numbered: tuple[int, JudgedCase]) -> JudgedCase | CallFailed:
            number, judged = numbered
            case = judged.case

            async def judge_again(criteria: Sequence[Criterion], draw: int) -> JudgeResult:
                return await self._call_judge(
                    number, case, criteria, case.draw + VOTE_DRAW_STRIDE * draw
                )

            try:
                voted = await vote(
                    JudgeResult(list(judged.verdicts.values()), no_usage()),
                    judged.rule_verdicts,
                    [*case.criteria, *rule_criteria()],
                    self.context,
                    judge_again,
                )
            except CallFailed as failure:
                return failure
            return replace(judged, verdicts={v["criterion_id"]: v for v in voted.verdicts})

        results = await gather_bounded(
            list(enumerate(judged_cases)), vote_on, limit=self.settings.max_in_flight
        )
        return _split_failures(results)

    async def run_duels(
        self, cases: Sequence[JudgeCase]
    ) -> tuple[list[CanaryDuel], list[CallFailed]]:
        """Compare each original with its canaries of `DUEL_KINDS`, in both orders."""
        originals = {c.source_id: c for c in cases if c.kind == "original"}
        canaries = [c for c in cases if c.kind in DUEL_KINDS and not c.draw]

        async def run_duel(numbered: tuple[int, JudgeCase]) -> CanaryDuel | CallFailed:
            number, canary = numbered
            try:
                duel = await compare(
                    self.complete,
                    self.context,
                    CallOrigin(f"judge-check {canary.source_id}", f"duel {canary.kind}", (number,)),
                    instruction=canary.instruction,
                    first=originals[canary.source_id].response,
                    second=canary.response,
                )
            except CallFailed as failure:
                return failure
            return CanaryDuel(canary, duel)

        results = await gather_bounded(
            list(enumerate(canaries)),
            run_duel,
            # A duel is two calls at once.
            limit=max(1, self.settings.max_in_flight // 2),
            on_progress=progress_printer("judge-check: duels", self.settings.quiet),
        )
        return _split_failures(results)


def _split_failures(results: Sequence[T | CallFailed]) -> tuple[list[T], list[CallFailed]]:
    failures = [result for result in results if isinstance(result, CallFailed)]
    return [result for result in results if not isinstance(result, CallFailed)], failures


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

    def fit(self, judged_cases: Sequence[JudgedCase], corrupted_kinds: Sequence[str]) -> None:
        """Set the thresholds still missing from the scores of references, as a trial does."""
        scores: dict[tuple[str, str], dict[str, float]] = {}
        for judged in judged_cases:
            for id_, verdict in judged.verdicts.items():
                if verdict["score"] is not None:
                    by_kind = scores.setdefault((judged.case.source_id, id_), {})
                    by_kind[judged.case.kind] = verdict["score"]
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
