"""One judge, judging in one way: tried on references, on canaries, on the same text again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memory.embed import Embed, cosine
from memory.references import Reference
from nodes.context import Context
from nodes.criteria import RuleInput, answers_instruction, apply_rules, rule_criteria
from nodes.llm import CallFailed
from nodes.record import Record
from nodes.state import Criterion, Verdict
from nodes.trial import corruptions, topic_bar_of
from nodes.verdicts import meets_criteria, passes
from refloom.evaluation.judge_check import metrics as figures
from refloom.evaluation.judge_check.cases import (
    JudgeTestSet,
    load_learned,
    make_canaries,
    memory_directory,
)
from refloom.evaluation.judge_check.human import (
    WHOLE_SAMPLE,
    HumanVerdicts,
    VerdictKey,
    final_attempt,
)
from refloom.evaluation.judge_check.judgements import (
    CaseJudge,
    JudgeCase,
    Thresholds,
    applied_criteria,
    redraw,
)
from refloom.evaluation.judge_check.metrics import repeat_agreement

CORRUPTED_KINDS = ("cut", "shuffled", "another")
# What is judged again: good responses, and those that a judge may well be in two minds about.
REPEATED_KINDS = ("original", "truncated")


@dataclass
class MethodTrial:
    """What a judge said by one method, as figures.

    Attributes:
        criteria: Of each criterion, how well it tells references from spoiled responses.
        canaries: Of each kind, how many were caught.
        originals: How many accepted responses pass.
        agreement: How often a repeat brings the same verdict.
        faults: The calls that failed; what they were to judge is left out.
    """

    bars: Thresholds = field(default_factory=Thresholds)
    criteria: list[dict[str, Any]] = field(default_factory=list)
    canaries: list[dict[str, Any]] = field(default_factory=list)
    originals: dict[str, Any] = field(default_factory=dict)
    agreement: dict[str, Any] = field(default_factory=dict)
    faults: list[CallFailed] = field(default_factory=list)


async def try_judge(
    judge: CaseJudge, test_set: JudgeTestSet, embed: Embed | None, repeats: int
) -> MethodTrial:
    """Try a judge on everything but duels.

    `embed` is for the cosines of `on-topic`, which is a rule where judging is by log-odds. Raises
    what `CaseJudge.hear` raises.
    """
    trial = MethodTrial()
    if judge.context.method == "logodds":
        memory = memory_directory(judge.directory, judge.settings)
        kept = await load_learned(test_set, memory, judge.context)
        for id_, learned in kept.items():
            trial.bars.take(id_, learned)
    cases = reference_cases(test_set)
    heard, faults = await judge.judge_cases(cases, "criteria on references")
    trial.faults += faults
    trial.bars.fit(heard, CORRUPTED_KINDS)
    trial.criteria = figures.criteria_rows(
        figures.criterion_results(heard, trial.bars), judge.context.method
    )
    await _judge_samples(judge, test_set, embed, repeats, trial)
    return trial


async def _judge_samples(
    judge: CaseJudge, test_set: JudgeTestSet, embed: Embed | None, repeats: int, trial: MethodTrial
) -> None:
    """Canaries and originals, and some of them again."""
    context = judge.context
    cases = sample_cases(test_set, context, trial.bars)
    heard, faults = await judge.judge_cases(cases, "canaries")
    trial.faults += faults
    if embed is not None:
        await _add_topic_thresholds(embed, test_set.references, trial.bars)
    records = {record["id"]: record for record in test_set.samples}
    ruled = [
        (one, await _rule_verdicts(one.case, records[one.case.about], test_set, embed, trial.bars))
        for one in heard
    ]
    voted, faults = await judge.vote(ruled)
    trial.faults += faults
    outcomes = [
        figures.sample_outcome(one, rules, rule_criteria(), context) for one, rules in voted
    ]
    trial.canaries = figures.canary_rows(outcomes, context.method)
    trial.originals = figures.originals_row(outcomes)
    again = [case for case in cases if case.kind in REPEATED_KINDS]
    repeated = [case for draw in range(1, repeats) for case in redraw(again, draw)]
    more, faults = await judge.judge_cases(repeated, "repeats")
    trial.faults += faults
    trial.agreement = repeat_agreement(
        [one for one in heard if one.case.kind in REPEATED_KINDS] + more
    )


def reference_cases(test_set: JudgeTestSet) -> list[JudgeCase]:
    """Each reference's own response and bad ones to its instruction, with its criteria.

    The bad ones are those of a criterion's trial, and another reference's response, which no
    criterion has been tried on.
    """
    references = list(test_set.tested_references.values())
    cases = []
    for i, reference in enumerate(references):
        bad = corruptions(reference["instruction"], reference["response"])
        other = references[(i + 1) % len(references)]
        responses = {"own": reference["response"], **bad, "mismatched": other["response"]}
        criteria: list[Criterion] = [answers_instruction(None), *test_set.criteria[reference["id"]]]
        own = reference["response"].split()
        cases += [
            JudgeCase(
                reference["id"],
                kind,
                reference["instruction"],
                response,
                criteria,
                reference.get("history", ()),
            )
            for kind, response in responses.items()
            if kind == "own" or response.split() != own
        ]
    return cases


def sample_cases(test_set: JudgeTestSet, context: Context, bars: Thresholds) -> list[JudgeCase]:
    """Each accepted response and its canaries, with its own criteria."""
    cases = []
    for record in test_set.samples:
        id_, instruction, response = record["id"], record["instruction"], record["response"]
        bad = make_canaries(instruction, response, test_set.other_responses.get(id_))
        criteria = applied_criteria(record, context, bars)
        for kind, text in {"original": response, **bad}.items():
            cases.append(JudgeCase(id_, kind, instruction, text, criteria))
    return cases


async def _add_topic_thresholds(
    embed: Embed, references: Mapping[str, Reference], bars: Thresholds
) -> None:
    """What is still missing of the cosines' bars, as a trial sets them."""
    for id_, reference in references.items():
        if id_ not in bars.topics:
            bars.topics[id_] = await topic_bar_of(embed, reference)


async def _rule_verdicts(
    case: JudgeCase, record: Record, test_set: JudgeTestSet, embed: Embed | None, bars: Thresholds
) -> list[Verdict]:
    """The verdicts of the rules; benchmarks are not looked at again."""
    ids = record["reference_ids"]
    references = [test_set.references[id_] for id_ in ids if id_ in test_set.references]
    bar = bars.topic(ids)
    near = None
    if embed is not None and bar is not None:
        near = await cosine(embed, case.instruction, case.response)
    return apply_rules(RuleInput(case.instruction, case.response, references, near, bar))


async def judge_human_samples(
    judge: CaseJudge, human: HumanVerdicts, bars: Thresholds
) -> tuple[dict[VerdictKey, bool], list[CallFailed]]:
    """What a judge that is not the run's own says of the samples a person has judged.

    The rules' verdicts are those of the run.
    """
    cases = []
    for id_, record in human.samples.items():
        also = {one.criterion_id for one in human.verdicts if one.id == id_ and one.criterion_id}
        criteria = applied_criteria(record, judge.context, bars, also)
        cases.append(
            JudgeCase(
                id_, "human", record["instruction"], final_attempt(record)["response"], criteria
            )
        )
    heard, faults = await judge.judge_cases(cases, "a person's samples")
    found: dict[VerdictKey, bool] = {}
    for one in heard:
        record = human.samples[one.case.about]
        rules = [c for c in record["criteria"] if c["judged_by"] == "rule"]
        ids = {c["id"] for c in rules}
        ruled = [v for v in final_attempt(record)["verdicts"] if v["criterion_id"] in ids]
        said = [*one.verdicts.values(), *ruled]
        criteria = [*one.case.criteria, *rules]
        whole = meets_criteria(
            {"response": one.case.response, "verdicts": said}, criteria, judge.context
        )
        found[one.case.about, WHOLE_SAMPLE] = whole
        found |= {(one.case.about, v["criterion_id"]): passes(v) for v in said}
    return found, faults
