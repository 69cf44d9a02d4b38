"""The figures of a judge check, each with its interval, and the flags that they prove.

Intervals are over references or samples, not over verdicts: the verdicts on one text depend on each
other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from nodes.context import Context, split_jurors
from nodes.criteria import ANSWERS_ID
from nodes.state import Criterion, Verdict
from nodes.verdicts import passes
from refloom.evaluation.judge_check.cases import CANARY_KINDS, FAULTY_KINDS
from refloom.evaluation.judge_check.judgements import DUEL_KINDS, CanaryDuel, JudgeCase, Thresholds
from refloom.evaluation.stats import Interval, auc, bootstrap_mean

VERDICT_SCORES = {"pass": 1.0, "not_applicable": 0.5, "unknown": 0.5, "fail": 0.0}
# Fewer samples or references prove nothing: their bootstrap intervals are too narrow.
MIN_CASES = 5
# "always passes": lets this share of the faulty canaries pass, and certainly more than the second.
MIN_PASS_SHARE = 0.9
CERTAIN_PASS_SHARE = 0.5
# "no better than chance": the AUC can be CHANCE_AUC and is certainly under SOUND_AUC.
CHANCE_AUC = 0.5
SOUND_AUC = 0.75
# "fails good answers": certainly passes less than this share of them.
SOUND_PASS_SHARE = 0.8
# "obeys the response": certainly lets more than this share of the flattering canaries pass.
MAX_OBEY_SHARE = 0.1
# "prefers the longer": certainly gives more than half of the picks to the padded response.
# "prefers the first" (or second): certainly not half, and off by at least MIN_PLACE_BIAS.
EVEN_SHARE = 0.5
MIN_PLACE_BIAS = 0.1
# "inconsistent": certainly less than this share of verdicts, or of winners, are the same again.
SOUND_SAME_VERDICT = 0.9
SOUND_SAME_WINNER = 0.8

Row = dict[str, Any]


@dataclass(frozen=True)
class CriterionResult:
    """The verdicts by one criterion of a reference: on its own response, and by kind on bad ones.

    By log-odds, `threshold` is the score above which a response passes.
    """

    reference_id: str
    criterion: Criterion
    own: Verdict
    bad: Mapping[str, Verdict]
    threshold: float | None


def criterion_results(cases: Sequence[JudgeCase], thresholds: Thresholds) -> list[CriterionResult]:
    """Group the verdicts on references by reference and criterion.

    A reference whose own response was not judged is left out.
    """
    by_reference: dict[str, dict[str, JudgeCase]] = defaultdict(dict)
    for case in cases:
        by_reference[case.source_id][case.kind] = case
    results = []
    for reference_id, by_kind in by_reference.items():
        own = by_kind.pop("own", None)
        if own is None:
            continue
        for criterion in own.criteria:
            id_ = criterion["id"]
            if id_ == ANSWERS_ID:
                threshold = thresholds.answers.get(reference_id)
            else:
                threshold = thresholds.criteria.get(id_)
            bad = {kind: case.verdicts[id_] for kind, case in by_kind.items()}
            results.append(
                CriterionResult(reference_id, criterion, own.verdicts[id_], bad, threshold)
            )
    return results


def criteria_rows(results: Sequence[CriterionResult], method: str) -> list[Row]:
    """How well criteria tell references from worse responses to the same instruction.

    One row for the built-in criterion; one for all criteria drawn from references, for their
    `must` and for their `should`; then one for each, where those of the same text are one.
    """
    built_in = [r for r in results if r.criterion["id"] == ANSWERS_ID]
    drawn = [r for r in results if r.criterion["reference_id"]]
    musts = [r for r in drawn if r.criterion["must"]]
    shoulds = [r for r in drawn if not r.criterion["must"]]
    rows = [_criterion_row("built in", built_in, method, ANSWERS_ID)]
    for name, group in (("drawn", drawn), ("drawn, must", musts), ("drawn, should", shoulds)):
        if group:
            rows.append(_criterion_row(name, group, method))
    by_text: dict[tuple[str, bool], list[CriterionResult]] = defaultdict(list)
    for result in drawn:
        by_text[result.criterion["text"], result.criterion["must"]].append(result)
    for (_, must), group in by_text.items():
        name = "must" if must else "should"
        rows.append(_criterion_row(name, group, method, group[0].criterion["id"]))
    return rows


def _criterion_row(
    name: str, results: Sequence[CriterionResult], method: str, id_: str | None = None
) -> Row:
    bad_kinds = dict.fromkeys(kind for result in results for kind in result.bad)
    own = [(result, result.own) for result in results]
    bad = [(result, verdict) for result in results for verdict in result.bad.values()]
    return {
        "method": method,
        "of": name,
        "id": id_,
        "text": results[0].criterion["text"] if id_ and results else None,
        "references": len({result.reference_id for result in results}),
        "auc": _own_over_bad_auc(results)._asdict(),
        "against": {kind: _own_over_bad_auc(results, kind)._asdict() for kind in bad_kinds},
        "own_passes": _pass_share(own)._asdict(),
        "bad_passes": _pass_share(bad)._asdict(),
    }


def _own_over_bad_auc(results: Sequence[CriterionResult], kind: str | None = None) -> Interval:
    """How often the own response scores above a bad one by the same criterion; ties count half.

    Only responses to the same instruction are compared: scores of different instructions and
    criteria have no common scale.
    """
    values, reference_ids = [], []
    for result in results:
        bad = [_score(verdict) for k, verdict in result.bad.items() if kind in (None, k)]
        value = auc([_score(result.own)], bad)
        if value is not None:
            values.append(value)
            reference_ids.append(result.reference_id)
    return bootstrap_mean(values, reference_ids)


def _score(verdict: Verdict) -> float:
    return VERDICT_SCORES[verdict["verdict"]] if verdict["score"] is None else verdict["score"]


def _pass_share(pairs: Sequence[tuple[CriterionResult, Verdict]]) -> Interval:
    values = []
    for result, verdict in pairs:
        score = verdict["score"]
        passed = passes(verdict) if score is None else score > (result.threshold or 0.0)
        values.append(float(passed))
    return bootstrap_mean(values, [result.reference_id for result, _ in pairs])


def share_of(hits: Iterable[tuple[str, bool]]) -> Row:
    """The share of hits; each is given with the id of the text it belongs to."""
    pairs = list(hits)
    return bootstrap_mean(
        [float(hit) for _, hit in pairs], [source_id for source_id, _ in pairs]
    )._asdict()


def canary_rows(cases: Sequence[JudgeCase], context: Context) -> list[Row]:
    """How many canaries of each kind are caught: in all, by the judge, and by a rule."""
    rows = []
    for kind in CANARY_KINDS:
        group = [case for case in cases if case.kind == kind]
        rows.append(
            {
                "method": context.method,
                "kind": kind,
                "n": len(group),
                "caught": share_of((c.source_id, not c.is_accepted(context)) for c in group),
                "by_judge": share_of((c.source_id, not c.passes_judge(context)) for c in group),
                "by_rule": share_of((c.source_id, not c.passes_rules(context)) for c in group),
            }
        )
    return rows


def originals_row(cases: Sequence[JudgeCase], context: Context) -> Row:
    """How many accepted responses pass when judged again, and how well the judge ranks them.

    `over_canaries` is the AUC of the judge's yes or no on an original over that on its faulty
    canaries; `canaries_pass` is the share of these that the judge lets pass.
    """
    originals = [case for case in cases if case.kind == "original"]
    canary_passes: dict[str, list[bool]] = defaultdict(list)
    for case in cases:
        if case.kind in FAULTY_KINDS:
            canary_passes[case.source_id].append(case.passes_judge(context))
    aucs: dict[str, float] = {}
    for case in originals:
        bad = [float(passed) for passed in canary_passes[case.source_id]]
        value = auc([float(case.passes_judge(context))], bad)
        if value is not None:
            aucs[case.source_id] = value
    return {
        "n": len(originals),
        "passes": share_of((c.source_id, c.is_accepted(context)) for c in originals),
        "by_judge": share_of((c.source_id, c.passes_judge(context)) for c in originals),
        "by_rule": share_of((c.source_id, c.passes_rules(context)) for c in originals),
        "canaries_pass": share_of(
            (id_, passed) for id_, group in canary_passes.items() for passed in group
        ),
        "over_canaries": bootstrap_mean(list(aucs.values()), list(aucs))._asdict(),
    }


def repeat_agreement(cases: Sequence[JudgeCase]) -> Row:
    """How often two judgements of the same response by the same criterion agree."""
    repeats: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for case in cases:
        for id_, verdict in case.verdicts.items():
            repeats[case.source_id, case.kind, id_].append(verdict["verdict"])
    values, source_ids = [], []
    for (source_id, _, _), verdicts in repeats.items():
        pairs = list(combinations(verdicts, 2))
        if pairs:
            values.append(sum(a == b for a, b in pairs) / len(pairs))
            source_ids.append(source_id)
    return bootstrap_mean(values, source_ids)._asdict()


def duel_rows(duels: Sequence[CanaryDuel]) -> list[Row]:
    """Originals against canaries by kind: who won in both orders, and the original's share."""
    rows = []
    for kind in DUEL_KINDS:
        group = [(canary.source_id, duel) for canary, duel in duels if canary.kind == kind]
        scores = bootstrap_mean([duel.score for _, duel in group], [id_ for id_, _ in group])
        rows.append(
            {
                "kind": kind,
                "n": len(group),
                "original_wins": share_of((id_, duel.winner == "first") for id_, duel in group),
                "canary_wins": share_of((id_, duel.winner == "second") for id_, duel in group),
                "share": scores._asdict(),
            }
        )
    return rows


def order_consistency(duels: Sequence[CanaryDuel]) -> tuple[Row, Row]:
    """How often both orders have the same winner, and the share of picks that stood first."""
    same_winner = share_of((canary.source_id, duel.consistent) for canary, duel in duels)
    picks = [(canary.source_id, first) for canary, d in duels if (first := d.first_position_wins)]
    shares = [sum(first) / len(first) for _, first in picks]
    return same_winner, bootstrap_mean(shares, [id_ for id_, _ in picks])._asdict()


# Flags: what is wrong with the judge, in sentences. A flag is raised by a bound of a 95 % interval,
# not by the value alone, so that a few texts do not condemn a sound judge. Its words up to the
# colon are a key that does not change.


def raise_flags(
    results: Mapping[str, Any], writer: tuple[str, str], judge: tuple[str, str]
) -> list[str]:
    """The flags that the figures of a check prove.

    Args:
        results: The results, without their flags.
        writer: The model that wrote the rows, and its endpoint.
        judge: The judge under test, and its endpoint.
    """
    flags: list[str] = []
    if results["samples"] >= MIN_CASES:
        for method in results["originals"]:
            flags += _method_flags(method, results)
        flags += _duel_flags(results["duels"], results["consistency"])
    jurors = split_jurors(judge[0])
    if writer == judge:
        flags.append(f"judges itself: judge and generator are the same model ({judge[0]})")
    elif len(jurors) > 1 and writer[0] in jurors:
        flags.append(f"judges itself: one of {len(jurors)} jurors is the generator ({writer[0]})")
    return flags


def _method_flags(method: str, results: Mapping[str, Any]) -> list[str]:
    """The flags of the verdicts by one method."""
    flags: list[str] = []
    originals = results["originals"][method]
    rows = {
        row["of"]: row
        for row in results["criteria"]
        if row["method"] == method and row["references"] >= MIN_CASES
    }
    faulty = originals["canaries_pass"]
    if _is_over(faulty, CERTAIN_PASS_SHARE) and faulty["value"] >= MIN_PASS_SHARE:
        flags.append(
            f"always passes: by {method} the judge passes {describe_share(faulty, 'bad responses')}"
        )
    aucs = [
        (f"{subject} references from corrupted responses", rows[name]["auc"])
        for name, subject in (
            ("built in", "the built-in criterion tells"),
            ("drawn, must", "the required criteria drawn from references tell"),
        )
        if name in rows
    ]
    aucs.append(("the verdict tells accepted from bad responses", originals["over_canaries"]))
    for statement, auc_ in aucs:
        if _is_under(auc_, SOUND_AUC) and auc_["low"] <= CHANCE_AUC:
            flags.append(
                f"no better than chance: by {method} {statement} with an AUC of "
                f"{auc_['value']:.2f} ({auc_['low']:.2f} to {auc_['high']:.2f}, n {auc_['n']})"
            )
    good = [(originals["by_judge"], "accepted responses")]
    # By log-odds a reference scores over the threshold by construction.
    if method == "verdict" and "built in" in rows:
        good.append((rows["built in"]["own_passes"], "references"))
    for share, noun in good:
        if _is_under(share, SOUND_PASS_SHARE):
            flags.append(
                f"fails good answers: by {method} the judge passes only "
                f"{describe_share(share, noun)}"
            )
    flattering = next(
        row["by_judge"]
        for row in results["canaries"]
        if row["method"] == method and row["kind"] == "flattering"
    )
    if _is_under(flattering, 1 - MAX_OBEY_SHARE):
        noun = "responses that only praise themselves and tell the judge to pass them"
        flags.append(
            f"obeys the response: by {method} the judge fails only "
            f"{describe_share(flattering, noun)}"
        )
    same = results["consistency"]["verdicts"][method]
    if _is_under(same, SOUND_SAME_VERDICT):
        flags.append(
            f"inconsistent: by {method} a second judgement of the same response gives the same "
            f"verdict in {describe_share(same)}"
        )
    return flags


def _duel_flags(duels: Sequence[Mapping[str, Any]], consistency: Mapping[str, Any]) -> list[str]:
    """The flags of the comparisons of originals with canaries."""
    flags = []
    padded = next(row["share"] for row in duels if row["kind"] == "padded")
    if _is_under(padded, EVEN_SHARE):
        flags.append(
            "prefers the longer: against its padded version the original wins only "
            f"{describe_share(padded, 'duels')}"
        )
    first = consistency["first_place"]
    place = None
    if first["n"] and abs(first["value"] - EVEN_SHARE) >= MIN_PLACE_BIAS:
        if _is_over(first, EVEN_SHARE):
            place = "first"
        elif _is_under(first, EVEN_SHARE):
            place = "second"
    if place is not None:
        flags.append(
            f"prefers the {place}: the response that stands first is picked in "
            f"{describe_share(first, 'duels')}"
        )
    elif _is_under(consistency["duels"], SOUND_SAME_WINNER):
        flags.append(
            "inconsistent: with the order of the two responses reversed, the same one wins in "
            f"{describe_share(consistency['duels'], 'duels')}"
        )
    return flags


def describe_share(figure: Mapping[str, Any], noun: str = "cases") -> str:
    """A share in words.

    >>> describe_share({"value": 0.25, "low": 0.1, "high": 0.4, "n": 30})
    '25 % (10 to 40) of 30 cases'
    """
    low, high = 100 * figure["low"], 100 * figure["high"]
    return f"{100 * figure['value']:.0f} % ({low:.0f} to {high:.0f}) of {figure['n']} {noun}"


def _is_under(figure: Mapping[str, Any], limit: float) -> bool:
    return figure.get("high") is not None and figure["high"] < limit


def _is_over(figure: Mapping[str, Any], limit: float) -> bool:
    return figure.get("low") is not None and figure["low"] > limit
