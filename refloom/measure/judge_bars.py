"""By what a judge judges here: the criteria of a sample, and the bars of log-odds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from memory.characteristics import Learned
from nodes.context import Context
from nodes.criteria import ANSWERS_ID, answers_instruction
from nodes.record import Record
from nodes.state import Criterion
from nodes.trial import midpoint
from refloom.measure.judge_asked import Heard


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
