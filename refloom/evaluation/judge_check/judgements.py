"""Asking a judge about texts of known worth: what is asked, and what came back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from memory.characteristics import Learned
from memory.references import Turn
from nodes.compare import Duel, compare
from nodes.context import Context
from nodes.criteria import ANSWERS_ID, answers_instruction, rule_criteria
from nodes.judge import Judged, judge
from nodes.llm import CallFailed, CallOrigin, Complete, ProviderStopped
from nodes.record import Record
from nodes.state import Criterion, Verdict, no_usage
from nodes.trial import midpoint
from nodes.verdicts import vote
from refloom.evaluation.judging import gather_bounded, progress_printer
from refloom.settings import Settings

DUEL_KINDS = ("padded", "truncated", "flattering")
# More draws than a response is judged again: what tells a vote's from a repeat's.
VOTE_DRAW_STRIDE = 1000

T = TypeVar("T")


class MethodUnavailable(Exception):
    """The endpoint cannot judge in this way."""


@dataclass(frozen=True)
class JudgeCase:
    """One response to be judged.

    Attributes:
        about: The id of the reference or sample it belongs to; cases of one id hang together.
        kind: What it is: "own", "original", or how it was spoiled.
        instruction: What it answers.
        response: The response.
        criteria: What it is judged by; rules among them are not the judge's.
        history: What was said before the instruction.
        draw: Which repeat this is.
    """

    about: str
    kind: str
    instruction: str
    response: str
    criteria: Sequence[Criterion]
    history: Sequence[Turn] = ()
    draw: int = 0


@dataclass(frozen=True)
class JudgedCase:
    """A case with the judge's verdicts by criterion id."""

    case: JudgeCase
    verdicts: Mapping[str, Verdict]


# With the rules' verdicts on the same response.
JudgedWithRules = tuple[JudgedCase, list[Verdict]]


@dataclass(frozen=True)
class CanaryDuel:
    """A duel of an accepted response against one of its canaries."""

    about: str
    kind: str
    duel: Duel


@dataclass(frozen=True)
class CaseJudge:
    """A judge at work: where its calls go, and how it judges."""

    complete: Complete
    context: Context
    settings: Settings
    directory: Path

    async def judge_cases(
        self, cases: Sequence[JudgeCase], what: str
    ) -> tuple[list[JudgedCase], list[CallFailed]]:
        """Have cases judged; those whose call failed are left out, and their faults returned.

        Raises `MethodUnavailable` if the endpoint gives no log-probabilities for `logodds`.
        """
        if not cases:
            return [], []
        # The first one alone: an endpoint that cannot judge so is not asked for all of them.
        first = await self._one(0, cases[0], certain=True)
        on_progress = progress_printer(f"judge-check: {what}", self.settings.quiet)
        numbered = list(enumerate(cases))[1:]
        rest = await gather_bounded(
            numbered,
            lambda item: self._one(*item),
            limit=self.settings.calls_at_once,
            on_progress=on_progress,
        )
        return _split_failures([first, *rest])

    async def _judged(
        self, number: int, case: JudgeCase, criteria: Sequence[Criterion], draw: int
    ) -> Judged:
        return await judge(
            self.complete,
            self.context,
            CallOrigin(f"judge-check {case.about}", case.kind, (number,)),
            instruction=case.instruction,
            response=case.response,
            criteria=criteria,
            draw=draw,
            history=case.history,
        )

    async def _one(
        self, number: int, case: JudgeCase, certain: bool = False
    ) -> JudgedCase | CallFailed:
        try:
            judged = await self._judged(number, case, case.criteria, case.draw)
        except CallFailed as failed:
            if certain and self.context.method == "logodds" and lacks_logprobs(failed):
                raise MethodUnavailable(failed.message) from failed
            return failed
        return JudgedCase(case, {v["criterion_id"]: v for v in judged.verdicts})

    async def vote(
        self, ruled: Sequence[JudgedWithRules]
    ) -> tuple[list[JudgedWithRules], list[CallFailed]]:
        """The verdicts that a run would decide by: where one alone does, its majority."""

        async def one(item: tuple[int, JudgedWithRules]) -> JudgedWithRules | CallFailed:
            number, (heard, rules) = item
            case = heard.case

            async def again(criteria: Sequence[Criterion], draw: int) -> Judged:
                return await self._judged(
                    number, case, criteria, case.draw + VOTE_DRAW_STRIDE * draw
                )

            once = Judged(list(heard.verdicts.values()), no_usage())
            criteria = [*case.criteria, *rule_criteria()]
            try:
                judged = await vote(once, rules, criteria, self.context, again)
            except CallFailed as failed:
                return failed
            return JudgedCase(case, {v["criterion_id"]: v for v in judged.verdicts}), rules

        at_once = self.settings.calls_at_once
        found = await gather_bounded(list(enumerate(ruled)), one, limit=at_once)
        return _split_failures(found)

    async def duels(self, cases: Sequence[JudgeCase]) -> tuple[list[CanaryDuel], list[CallFailed]]:
        """Each original against its canaries of the kinds `DUEL_KINDS`, in both orders."""
        originals = {c.about: c for c in cases if c.kind == "original"}
        fought = [c for c in cases if c.kind in DUEL_KINDS and not c.draw]

        async def one(item: tuple[int, JudgeCase]) -> CanaryDuel | CallFailed:
            number, case = item
            place = CallOrigin(f"judge-check {case.about}", f"duel {case.kind}", (number,))
            try:
                duel = await compare(
                    self.complete,
                    self.context,
                    place,
                    instruction=case.instruction,
                    first=originals[case.about].response,
                    second=case.response,
                )
            except CallFailed as failed:
                return failed
            return CanaryDuel(case.about, case.kind, duel)

        on_progress = progress_printer("judge-check: duels", self.settings.quiet)
        at_once = max(1, self.settings.calls_at_once // 2)
        found = await gather_bounded(
            list(enumerate(fought)), one, limit=at_once, on_progress=on_progress
        )
        return _split_failures(found)


def _split_failures(found: Sequence[T | CallFailed]) -> tuple[list[T], list[CallFailed]]:
    """What came back, and the faults."""
    faults = [one for one in found if isinstance(one, CallFailed)]
    return [one for one in found if not isinstance(one, CallFailed)], faults


def lacks_logprobs(error: CallFailed | ProviderStopped) -> bool:
    """Whether an endpoint was given up since it gives no log-probabilities."""
    return "log-probabilities" in str(error)


def redraw(cases: Sequence[JudgeCase], draw: int) -> list[JudgeCase]:
    """The same cases, to be judged once more."""
    return [replace(case, draw=draw) for case in cases]


# MERGED refloom~measure~judge_bars
# By what a judge judges here: the criteria of a sample, and the bars of log-odds.
@dataclass
class Thresholds:
    """Above which log-odds a response passes: by criterion, and of what depends on the reference.

    `answers` (the built-in criterion) and `topics` (cosines) are by reference id.
    """

    criteria: dict[str, float] = field(default_factory=dict)
    answers: dict[str, float] = field(default_factory=dict)
    topics: dict[str, float] = field(default_factory=dict)

    def take(self, reference_id: str, learned: Learned) -> None:
        """Take the bars that a trial left with a reference."""
        for name, kept in (("answers_bar", self.answers), ("topic_bar", self.topics)):
            if learned[name] is not None:
                kept[reference_id] = learned[name]
        for criterion in learned["criteria"]:
            if criterion.get("bar") is not None:
                self.criteria[criterion["id"]] = criterion["bar"]

    def answer(self, reference_ids: Sequence[str]) -> float | None:
        """The built-in criterion's bar for what rests on these references, as a run has it.

        Where none of them was tried it is the mean over all that were.
        """
        own = _mean([self.answers[id_] for id_ in reference_ids if id_ in self.answers])
        return own if own is not None else _mean(list(self.answers.values()))

    def topic(self, reference_ids: Sequence[str]) -> float | None:
        """The bar of the cosine of instruction and response."""
        return _mean([self.topics[id_] for id_ in reference_ids if id_ in self.topics])

    def fit(self, heard: Sequence[JudgedCase], spoils: Sequence[str]) -> None:
        """Set what is still missing from scores at hand, as a trial does."""
        scores: dict[tuple[str, str], dict[str, float]] = {}
        for one in heard:
            for id_, verdict in one.verdicts.items():
                if verdict["score"] is not None:
                    of = scores.setdefault((one.case.about, id_), {})
                    of[one.case.kind] = verdict["score"]
        for (about, id_), by_kind in scores.items():
            bar = midpoint(by_kind.get("own"), [by_kind[k] for k in spoils if k in by_kind])
            if bar is not None:
                kept, key = (self.answers, about) if id_ == ANSWERS_ID else (self.criteria, id_)
                kept.setdefault(key, bar)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def applied_criteria(
    record: Record, context: Context, bars: Thresholds, also: Collection[str] = ()
) -> list[Criterion]:
    """The criteria of a sample as this judge applies them.

    By log-odds only the built-in ones are a `must`, and the others, which decide nothing, are not
    asked, but for those `also` names. A sample of an arm without a judge has the built-in one.
    """
    given: list[Criterion] = [c for c in record["criteria"] if c["judged_by"] == "judge"]
    given = given or [answers_instruction(None)]
    if context.method == "verdict":
        return given
    asked: list[Criterion] = []
    for criterion in given:
        id_ = criterion["id"]
        bar = bars.answer(record["reference_ids"]) if id_ == ANSWERS_ID else bars.criteria.get(id_)
        if criterion["reference_id"] is None:
            asked.append({**criterion, "bar": bar})
        elif id_ in also:
            asked.append({**criterion, "must": False, "bar": bar})
    return asked
