"""Asking a judge about texts of known worth: what is asked, with which bars, and what came back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from memory.characteristics import Learned
from memory.references import Turn
from nodes.compare import Duel, compare
from nodes.context import Context
from nodes.criteria import ANSWERS_ID, answers_instruction
from nodes.judge import judge
from nodes.llm import CallFailed, Complete, Place, ProviderStopped
from nodes.record import Record
from nodes.state import Criterion, Verdict
from refloom.measure.asking import each, telling
from refloom.settings import Settings

DUELS = ("padded", "truncated", "flattering")


class NotAvailable(Exception):
    """The endpoint cannot judge in this way."""


@dataclass(frozen=True)
class Case:
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
class Heard:
    """A case with the judge's verdicts by criterion id."""

    case: Case
    verdicts: Mapping[str, Verdict]


@dataclass(frozen=True)
class Fought:
    """A duel of an accepted response against one of its canaries."""

    about: str
    kind: str
    duel: Duel


@dataclass
class Bars:
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

    def fit(self, heard: Sequence[Heard], spoils: Sequence[str]) -> None:
        """Set what is still missing from scores at hand, as a trial does.

        A bar is the midpoint of the reference's own score and the mean of its spoiled ones.
        """
        scores: dict[tuple[str, str], dict[str, float]] = {}
        for one in heard:
            for id_, verdict in one.verdicts.items():
                if verdict["score"] is not None:
                    of = scores.setdefault((one.case.about, id_), {})
                    of[one.case.kind] = verdict["score"]
        for (about, id_), by_kind in scores.items():
            worse = _mean([by_kind[kind] for kind in spoils if kind in by_kind])
            if "own" in by_kind and worse is not None:
                kept, key = (self.answers, about) if id_ == ANSWERS_ID else (self.criteria, id_)
                kept.setdefault(key, (by_kind["own"] + worse) / 2)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def criteria_of(
    record: Record, context: Context, bars: Bars, also: Collection[str] = ()
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


@dataclass(frozen=True)
class Judge:
    """A judge at work: where its calls go, and how it judges."""

    complete: Complete
    context: Context
    settings: Settings
    directory: Path

    async def hear(self, cases: Sequence[Case], what: str) -> tuple[list[Heard], list[CallFailed]]:
        """Have cases judged; those whose call failed are left out, and their faults returned.

        Raises `NotAvailable` when the endpoint gives no log-probabilities where they are asked for.
        """
        if not cases:
            return [], []
        # The first one alone: an endpoint that cannot judge so is not asked for all of them.
        first = await self._one(0, cases[0], certain=True)
        told = telling(f"judge-check: {what}", self.settings.quiet)
        numbered = list(enumerate(cases))[1:]
        rest = await each(
            numbered,
            lambda item: self._one(*item),
            at_once=self.settings.calls_at_once,
            told=told,
        )
        found = [first, *rest]
        heard = [one for one in found if isinstance(one, Heard)]
        return heard, [one for one in found if isinstance(one, CallFailed)]

    async def _one(self, number: int, case: Case, certain: bool = False) -> Heard | CallFailed:
        place = Place(f"judge-check {case.about}", case.kind, (number,))
        try:
            judged = await judge(
                self.complete,
                self.context,
                place,
                instruction=case.instruction,
                response=case.response,
                criteria=case.criteria,
                draw=case.draw,
                history=case.history,
            )
        except CallFailed as failed:
            if certain and self.context.method == "logodds" and lacks_odds(failed):
                raise NotAvailable(failed.message) from failed
            return failed
        return Heard(case, {v["criterion_id"]: v for v in judged.verdicts})

    async def duels(self, cases: Sequence[Case]) -> tuple[list[Fought], list[CallFailed]]:
        """Each original against its canaries of the kinds `DUELS`, in both orders."""
        originals = {c.about: c for c in cases if c.kind == "original"}
        fought = [c for c in cases if c.kind in DUELS and not c.draw]

        async def one(item: tuple[int, Case]) -> Fought | CallFailed:
            number, case = item
            place = Place(f"judge-check {case.about}", f"duel {case.kind}", (number,))
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
            return Fought(case.about, case.kind, duel)

        told = telling("judge-check: duels", self.settings.quiet)
        at_once = max(1, self.settings.calls_at_once // 2)
        found = await each(list(enumerate(fought)), one, at_once=at_once, told=told)
        kept = [one_ for one_ in found if isinstance(one_, Fought)]
        return kept, [one_ for one_ in found if isinstance(one_, CallFailed)]


def lacks_odds(error: CallFailed | ProviderStopped) -> bool:
    """Whether an endpoint was given up since it gives no log-probabilities."""
    return "log-probabilities" in str(error)


def with_draw(cases: Sequence[Case], draw: int) -> list[Case]:
    """The same cases, to be judged once more."""
    return [replace(case, draw=draw) for case in cases]
