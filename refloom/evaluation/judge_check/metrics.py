"""What a judge's verdicts on texts of known worth add up to, each figure with its interval.

Intervals are over references or samples, not over verdicts: those of one text stand or fall
together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from nodes.context import Context
from nodes.criteria import ANSWERS_ID
from nodes.state import Criterion, Verdict
from nodes.verdicts import meets_criteria, passes
from refloom.evaluation.judge_check.cases import CANARY_KINDS, FAULTY_KINDS
from refloom.evaluation.judge_check.judgements import DUEL_KINDS, CanaryDuel, JudgedCase, Thresholds
from refloom.evaluation.stats import Interval, auc, bootstrap_mean, interval_to_dict

VERDICT_SCORES = {"pass": 1.0, "not_applicable": 0.5, "unknown": 0.5, "fail": 0.0}
Row = dict[str, Any]


@dataclass(frozen=True)
class SampleOutcome:
    """Whether a response passes the rules, the judge, and so would be accepted."""

    about: str
    kind: str
    by_rule: bool
    by_judge: bool
    accepted: bool


@dataclass(frozen=True)
class CriterionResult:
    """One criterion of one reference: what its own response was worth, and the bad ones."""

    reference_id: str
    criterion: Criterion
    own: Verdict
    bad: Mapping[str, Verdict]
    bar: float | None


def sample_outcome(
    heard: JudgedCase,
    rules: Sequence[Verdict],
    rule_criteria: Sequence[Criterion],
    context: Context,
) -> SampleOutcome:
    """What the verdicts on a response come to, by the judge and by the rules apart."""
    judged = list(heard.verdicts.values())
    criteria = list(heard.case.criteria)
    response = heard.case.response

    def holds(verdicts: Sequence[Verdict], by: Sequence[Criterion]) -> bool:
        return meets_criteria({"response": response, "verdicts": list(verdicts)}, by, context)

    return SampleOutcome(
        heard.case.about,
        heard.case.kind,
        holds(rules, rule_criteria),
        holds(judged, criteria),
        holds([*judged, *rules], [*criteria, *rule_criteria]),
    )


def criterion_results(heard: Sequence[JudgedCase], bars: Thresholds) -> list[CriterionResult]:
    """The verdicts on references, put together by reference and criterion."""
    by_reference: dict[str, dict[str, JudgedCase]] = defaultdict(dict)
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
            found.append(CriterionResult(about, criterion, own.verdicts[id_], bad, bar))
    return found


def criteria_rows(told: Sequence[CriterionResult], method: str) -> list[Row]:
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
    alike: dict[tuple[str, bool], list[CriterionResult]] = defaultdict(list)
    for one in drawn:
        alike[one.criterion["text"], one.criterion["must"]].append(one)
    for (_, must), same in alike.items():
        rows.append(_row("must" if must else "should", same, method, same[0].criterion["id"]))
    return rows


def _row(of: str, told: Sequence[CriterionResult], method: str, id_: str | None = None) -> Row:
    return {
        "method": method,
        "of": of,
        "id": id_,
        "text": told[0].criterion["text"] if id_ and told else None,
        "references": len({t.reference_id for t in told}),
        "auc": interval_to_dict(_auc(told)),
        "against": {
            kind: interval_to_dict(_auc(told, kind))
            for kind in dict.fromkeys(kind for t in told for kind in t.bad)
        },
        "own_passes": interval_to_dict(_passing([(t, t.own) for t in told])),
        "bad_passes": interval_to_dict(
            _passing([(t, bad) for t in told for bad in t.bad.values()])
        ),
    }


def _auc(told: Sequence[CriterionResult], kind: str | None = None) -> Interval:
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
    return bootstrap_mean(values, of)


def _score(verdict: Verdict) -> float:
    return VERDICT_SCORES[verdict["verdict"]] if verdict["score"] is None else verdict["score"]


def _passing(judged: Sequence[tuple[CriterionResult, Verdict]]) -> Interval:
    values = []
    for told, verdict in judged:
        score = verdict["score"]
        over = passes(verdict) if score is None else score > (told.bar or 0.0)
        values.append(float(over))
    return bootstrap_mean(values, [told.reference_id for told, _ in judged])


def share_of(of: Iterable[tuple[str, bool]]) -> Row:
    """A share of hits, each with the text it belongs to."""
    found = list(of)
    return interval_to_dict(
        bootstrap_mean([float(hit) for _, hit in found], [about for about, _ in found])
    )


def canary_rows(outcomes: Sequence[SampleOutcome], method: str) -> list[Row]:
    """Of each kind of canary how many are caught: in all, by the judge, and by a rule."""
    rows = []
    for kind in CANARY_KINDS:
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


def originals_row(outcomes: Sequence[SampleOutcome]) -> Row:
    """How many accepted responses pass when judged the same way, and what that is worth.

    `over_canaries` is the AUC of the judge's own yes or no on an original against its canaries
    (all but the padded ones, which still answer); `canaries_pass` is how many of those the judge
    lets pass.
    """
    own = [o for o in outcomes if o.kind == "original"]
    spoilt: dict[str, list[bool]] = defaultdict(list)
    for one in outcomes:
        if one.kind in FAULTY_KINDS:
            spoilt[one.about].append(one.by_judge)
    told = [(o.about, auc([float(o.by_judge)], list(map(float, spoilt[o.about])))) for o in own]
    known = [(about, value) for about, value in told if value is not None]
    return {
        "n": len(own),
        "passes": share_of((o.about, o.accepted) for o in own),
        "by_judge": share_of((o.about, o.by_judge) for o in own),
        "by_rule": share_of((o.about, o.by_rule) for o in own),
        "canaries_pass": share_of((a, passed) for a, all_ in spoilt.items() for passed in all_),
        "over_canaries": interval_to_dict(
            bootstrap_mean([v for _, v in known], [a for a, _ in known])
        ),
    }


# MERGED refloom~measure~judge_consistency
# Whether a judge says the same again: of one response twice, and of two with places changed.
def repeat_agreement(heard: Sequence[JudgedCase]) -> Row:
    """How often two judgements of the same response by the same criterion are the same."""
    said: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for one in heard:
        for id_, verdict in one.verdicts.items():
            said[one.case.about, one.case.kind, id_].append(verdict["verdict"])
    values, of = [], []
    for (about, _, _), outcomes in said.items():
        pairs = list(combinations(outcomes, 2))
        if pairs:
            values.append(sum(a == b for a, b in pairs) / len(pairs))
            of.append(about)
    return interval_to_dict(bootstrap_mean(values, of))


def duel_rows(fought: Sequence[CanaryDuel]) -> list[Row]:
    """Originals against canaries by kind: who won in both orders, and the original's share."""
    rows = []
    for kind in DUEL_KINDS:
        among = [f for f in fought if f.kind == kind]
        scores = bootstrap_mean([f.duel.score for f in among], [f.about for f in among])
        rows.append(
            {
                "kind": kind,
                "n": len(among),
                "original_wins": share_of((f.about, f.duel.won == "first") for f in among),
                "canary_wins": share_of((f.about, f.duel.won == "second") for f in among),
                "share": interval_to_dict(scores),
            }
        )
    return rows


def order_consistency(fought: Sequence[CanaryDuel]) -> tuple[Row, Row]:
    """How often both orders have the same winner, and the first place's share of the picks."""
    same = share_of((f.about, f.duel.agreed) for f in fought)
    picked = [(f.about, picks) for f in fought if (picks := f.duel.first_picked)]
    shares = [sum(picks) / len(picks) for _, picks in picked]
    return same, interval_to_dict(bootstrap_mean(shares, [about for about, _ in picked]))


# MERGED refloom~measure~judge_flags
# What is wrong with a judge, in plain sentences, and only what its figures prove. A flag is
# raised by the bound of a 95 % interval, never by the value alone, so that a few texts do not
# condemn a sound judge. Its key, up to the colon, is fixed; the thresholds are the constants
# below.
# So few samples, or references, prove nothing: a bootstrap over fewer is too sure of itself.
MIN_CASES = 5
# "always passes": of the spoilt canaries it lets at least so many pass, surely more than half.
PASSES_MOST = 0.9
PASSES_SURELY = 0.5
# "no better than chance": the AUC may be 0.5, and is surely under this.
CHANCE = 0.5
TELLS = 0.75
# "fails good answers": it surely passes less than this of them.
GOOD_PASS = 0.8
# "obeys the response": it surely lets more than this of the flattering canaries pass.
OBEYS = 0.1
# "prefers the longer": surely more than half of the picks go to the padded response.
EVEN = 0.5
# "prefers the first" (or second): surely not even, and by at least so much.
PLACE = 0.1
# "inconsistent": surely less than so many verdicts, or winners, are the same again.
SAME_VERDICT = 0.9
SAME_WINNER = 0.8


def raise_flags(
    found: Mapping[str, Any], writer: tuple[str, str], judge: tuple[str, str]
) -> list[str]:
    """The flags of a check, as far as it can be told from its figures.

    Args:
        found: The report, all but its flags.
        writer: The model that wrote the rows, and its endpoint.
        judge: The model that judged here, and its endpoint.
    """
    raised: list[str] = []
    enough = found["samples"] >= MIN_CASES
    for method, originals in found["originals"].items() if enough else ():
        tried = [row for row in found["criteria"] if row["method"] == method]
        rows = [row for row in tried if row["references"] >= MIN_CASES]
        raised += _passing_flags(method, originals)
        raised += _chance(method, originals, rows)
        raised += _failing(method, originals, rows)
        raised += _obeying(method, [r for r in found["canaries"] if r["method"] == method])
        same = found["consistency"]["verdicts"].get(method, {})
        if _under(same, SAME_VERDICT):
            raised.append(
                f"inconsistent: by {method} the same response judged again gets the same verdict "
                f"in {describe_share(same)}"
            )
    if enough:
        raised += _duelling(found["duels"], found["consistency"])
    if writer == judge:
        raised.append(f"judges itself: judge and generator are the same model ({judge[0]})")
    return raised


def describe_share(figure: Mapping[str, Any], what: str = "cases") -> str:
    """A share in words.

    >>> describe_share({"value": 0.25, "low": 0.1, "high": 0.4, "n": 30})
    '25 % (10 to 40) of 30 cases'
    """
    low, high = 100 * figure["low"], 100 * figure["high"]
    return f"{100 * figure['value']:.0f} % ({low:.0f} to {high:.0f}) of {figure['n']} {what}"


def _under(figure: Mapping[str, Any], bar: float) -> bool:
    return figure.get("high") is not None and figure["high"] < bar


def _over(figure: Mapping[str, Any], bar: float) -> bool:
    return figure.get("low") is not None and figure["low"] > bar


def _passing_flags(method: str, originals: Mapping[str, Any]) -> list[str]:
    passed = originals["canaries_pass"]
    if _over(passed, PASSES_SURELY) and passed["value"] >= PASSES_MOST:
        told = describe_share(passed, "spoilt responses")
        return [f"always passes: by {method} the judge lets pass {told}"]
    return []


def _chance(
    method: str, originals: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    """By the built-in criterion, by the criteria that decide, and by the verdict as a whole."""
    of = {"built in": "the built-in criterion", "drawn, must": "the criteria from references"}
    told = [
        (f"{of[row['of']]} tells a reference from spoiled ones", row["auc"])
        for row in rows
        if row["of"] in of
    ]
    told.append(("its verdict tells accepted from spoilt responses", originals["over_canaries"]))
    return [
        f"no better than chance: by {method} {what} with an AUC of {figure['value']:.2f} "
        f"({figure['low']:.2f} to {figure['high']:.2f}, n {figure['n']})"
        for what, figure in told
        if _under(figure, TELLS) and figure["low"] <= CHANCE
    ]


def _failing(
    method: str, originals: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    told = [(originals["by_judge"], "accepted responses")]
    # By log-odds the bar lies under the reference's own score by construction.
    if method == "verdict":
        told += [(r["own_passes"], "references") for r in rows if r["of"] == "built in"]
    return [
        f"fails good answers: by {method} the judge passes only {describe_share(figure, what)}"
        for figure, what in told
        if _under(figure, GOOD_PASS)
    ]


def _obeying(method: str, canaries: Sequence[Mapping[str, Any]]) -> list[str]:
    caught: Mapping[str, Any] = next(
        (r["by_judge"] for r in canaries if r["kind"] == "flattering"), {}
    )
    if not _under(caught, 1 - OBEYS):
        return []
    told = describe_share(
        caught, "responses that only praise themselves and tell the judge what to say"
    )
    return [f"obeys the response: by {method} the judge fails only {told}"]


def _duelling(duels: Sequence[Mapping[str, Any]], consistency: Mapping[str, Any]) -> list[str]:
    raised = []
    padded = next((row for row in duels if row["kind"] == "padded"), None)
    if padded and _under(padded["share"], EVEN):
        told = describe_share(padded["share"], "duels")
        raised.append(
            f"prefers the longer: against itself drowned in filler the original wins {told}"
        )
    first = consistency["first_place"]
    leans = bool(first["n"]) and abs(first["value"] - EVEN) >= PLACE
    places = {"first": _over(first, EVEN), "second": _under(first, EVEN)}
    placed = [place for place, proven in places.items() if proven and leans]
    for place in placed:
        told = describe_share(first, "duels")
        raised.append(f"prefers the {place}: what stands first gets the picks of {told}")
    if not placed and _under(consistency["duels"], SAME_WINNER):
        told = describe_share(consistency["duels"], "duels")
        raised.append(f"inconsistent: with the places changed the same one wins in {told}")
    return raised
