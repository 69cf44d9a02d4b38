"""What a judge's verdicts on texts of known worth add up to, each figure with its interval.

Intervals are over references or samples, not over verdicts: those of one text stand or fall
together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nodes.context import Context
from nodes.criteria import ANSWERS_ID
from nodes.state import Criterion, Verdict
from nodes.verdicts import passes, settled
from refloom.measure.canaries import KINDS, SPOILT
from refloom.measure.judge_asked import Heard
from refloom.measure.judge_bars import Bars
from refloom.measure.stats import Interval, auc, mean, plain

WORTH = {"pass": 1.0, "not_applicable": 0.5, "unknown": 0.5, "fail": 0.0}
Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """Whether a response passes the rules, the judge, and so would be accepted."""

    about: str
    kind: str
    by_rule: bool
    by_judge: bool
    accepted: bool


@dataclass(frozen=True)
class Told:
    """One criterion of one reference: what its own response was worth, and the bad ones."""

    reference_id: str
    criterion: Criterion
    own: Verdict
    bad: Mapping[str, Verdict]
    bar: float | None


def outcome(
    heard: Heard, rules: Sequence[Verdict], rule_criteria: Sequence[Criterion], context: Context
) -> Outcome:
    """What the verdicts on a response come to, by the judge and by the rules apart."""
    judged = list(heard.verdicts.values())
    criteria = list(heard.case.criteria)
    response = heard.case.response

    def holds(verdicts: Sequence[Verdict], by: Sequence[Criterion]) -> bool:
        return settled({"response": response, "verdicts": list(verdicts)}, by, context)

    return Outcome(
        heard.case.about,
        heard.case.kind,
        holds(rules, rule_criteria),
        holds(judged, criteria),
        holds([*judged, *rules], [*criteria, *rule_criteria]),
    )


def told_of(heard: Sequence[Heard], bars: Bars) -> list[Told]:
    """The verdicts on references, put together by reference and criterion."""
    by_reference: dict[str, dict[str, Heard]] = defaultdict(dict)
    for one in heard:
        by_reference[one.case.about][one.case.kind] = one
    found = []
    for about, kinds in by_reference.items():
        if "own" not in kinds:
            continue
        own = kinds.pop("own")
        for criterion in own.case.criteria:
            id_ = criterion["id"]
            bad = {kind: one.verdicts[id_] for kind, one in kinds.items()}
            bar = bars.answers.get(about) if id_ == ANSWERS_ID else bars.criteria.get(id_)
            found.append(Told(about, criterion, own.verdicts[id_], bad, bar))
    return found


def criteria_rows(told: Sequence[Told], method: str) -> list[Row]:
    """How well each criterion tells references from worse responses to the same instruction.

    The built-in criterion; all drawn from references together, and of them the `must` and the
    `should`; then each by itself, those of the same words as one.
    """
    built_in = [t for t in told if t.criterion["id"] == ANSWERS_ID]
    drawn = [t for t in told if t.criterion["reference_id"]]
    musts = [t for t in drawn if t.criterion["must"]]
    shoulds = [t for t in drawn if not t.criterion["must"]]
    rows = [_row("built in", built_in, method, ANSWERS_ID)]
    for of, among in (("drawn", drawn), ("drawn, must", musts), ("drawn, should", shoulds)):
        if among:
            rows.append(_row(of, among, method))
    alike: dict[tuple[str, bool], list[Told]] = defaultdict(list)
    for one in drawn:
        alike[one.criterion["text"], one.criterion["must"]].append(one)
    for (_, must), same in alike.items():
        rows.append(_row("must" if must else "should", same, method, same[0].criterion["id"]))
    return rows


def _row(of: str, told: Sequence[Told], method: str, id_: str | None = None) -> Row:
    return {
        "method": method,
        "of": of,
        "id": id_,
        "text": told[0].criterion["text"] if id_ and told else None,
        "references": len({t.reference_id for t in told}),
        "auc": plain(_auc(told)),
        "against": {
            kind: plain(_auc(told, kind))
            for kind in dict.fromkeys(kind for t in told for kind in t.bad)
        },
        "own_passes": plain(_passing([(t, t.own) for t in told])),
        "bad_passes": plain(_passing([(t, bad) for t in told for bad in t.bad.values()])),
    }


def _auc(told: Sequence[Told], kind: str | None = None) -> Interval:
    """How often the own response scores over a bad one by the same criterion, ties half.

    Each is compared with those to its own instruction only: scores of different instructions
    and criteria have no common measure.
    """
    values, of = [], []
    for one in told:
        bad = [_score(v) for k, v in one.bad.items() if kind in (None, k)]
        value = auc([_score(one.own)], bad)
        if value is not None:
            values.append(value)
            of.append(one.reference_id)
    return mean(values, of)


def _score(verdict: Verdict) -> float:
    return WORTH[verdict["verdict"]] if verdict["score"] is None else verdict["score"]


def _passing(judged: Sequence[tuple[Told, Verdict]]) -> Interval:
    values = []
    for told, verdict in judged:
        score = verdict["score"]
        over = passes(verdict) if score is None else score > (told.bar or 0.0)
        values.append(float(over))
    return mean(values, [told.reference_id for told, _ in judged])


def share_of(of: Iterable[tuple[str, bool]]) -> Row:
    """A share of hits, each with the text it belongs to."""
    found = list(of)
    return plain(mean([float(hit) for _, hit in found], [about for about, _ in found]))


def canary_rows(outcomes: Sequence[Outcome], method: str) -> list[Row]:
    """Of each kind of canary how many are caught: in all, by the judge, and by a rule."""
    rows = []
    for kind in KINDS:
        among = [o for o in outcomes if o.kind == kind]
        rows.append(
            {
                "method": method,
                "kind": kind,
                "n": len(among),
                "caught": share_of((o.about, not o.accepted) for o in among),
                "by_judge": share_of((o.about, not o.by_judge) for o in among),
                "by_rule": share_of((o.about, not o.by_rule) for o in among),
            }
        )
    return rows


def originals(outcomes: Sequence[Outcome]) -> Row:
    """How many accepted responses pass when judged the same way, and what that is worth.

    `over_canaries` is the AUC of the judge's own yes or no on an original against its canaries
    (all but the padded ones, which still answer); `canaries_pass` is how many of those the judge
    lets pass.
    """
    own = [o for o in outcomes if o.kind == "original"]
    spoilt: dict[str, list[bool]] = defaultdict(list)
    for one in outcomes:
        if one.kind in SPOILT:
            spoilt[one.about].append(one.by_judge)
    told = [(o.about, auc([float(o.by_judge)], list(map(float, spoilt[o.about])))) for o in own]
    known = [(about, value) for about, value in told if value is not None]
    return {
        "n": len(own),
        "passes": share_of((o.about, o.accepted) for o in own),
        "by_judge": share_of((o.about, o.by_judge) for o in own),
        "by_rule": share_of((o.about, o.by_rule) for o in own),
        "canaries_pass": share_of((a, passed) for a, all_ in spoilt.items() for passed in all_),
        "over_canaries": plain(mean([v for _, v in known], [a for a, _ in known])),
    }
