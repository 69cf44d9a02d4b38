"""The trial of a judge by one method: on references, on canaries, and on the same text again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from memory.embed import Embed, cosine
from nodes.context import Context
from nodes.criteria import RuleInput, answers_instruction, apply_rules
from nodes.state import Criterion, Verdict
from nodes.trial import corruptions, topic_bar_of
from nodes.verdicts import meets_criteria
from refloom.data.record_stats import JuryVotes, jury_votes
from refloom.evaluation.judge_check.cases import (
    JudgeTestSet,
    load_learned,
    make_canaries,
    memory_directory,
)
from refloom.evaluation.judge_check.human import (
    WHOLE_SAMPLE,
    HumanVerdicts,
    JudgeVerdicts,
    final_attempt,
)
from refloom.evaluation.judge_check.judgements import (
    CaseJudge,
    JudgeCase,
    Thresholds,
    applied_criteria,
)
from refloom.evaluation.judge_check.metrics import (
    canary_rows,
    criteria_rows,
    criterion_results,
    originals_row,
    repeat_agreement,
)

# The corrupted responses by which a run sets the thresholds of criteria.
CORRUPTED_KINDS = ("cut", "shuffled", "another")
# Judged more than once: good responses, and bad ones that are hard to tell from good ones.
REPEATED_KINDS = ("original", "truncated")


@dataclass(frozen=True)
class MethodTrial:
    """The results of a judge by one method.

    Attributes:
        thresholds: The thresholds of log-odds; empty by verdicts.
        criteria: A row for each criterion: how well it tells references from bad responses.
        canaries: A row for each kind: how many were caught.
        originals: How many accepted responses pass.
        agreement: How often a repeat gives the same verdict.
        juries: How often the jurors of a jury voted so.
    """

    thresholds: Thresholds
    criteria: list[dict[str, Any]]
    canaries: list[dict[str, Any]]
    originals: dict[str, Any]
    agreement: dict[str, Any]
    juries: Counter[JuryVotes]


async def try_judge(
    judge: CaseJudge, test_set: JudgeTestSet, embed: Embed | None, repeats: int
) -> MethodTrial:
    """Try a judge on everything but duels; cases whose calls fail are left out of the figures.

    Args:
        judge: The judge.
        test_set: The texts.
        embed: Gives the cosines of the rule `on-topic`, which only log-odds has; None by verdicts.
        repeats: How many times a response of `REPEATED_KINDS` is judged.

    Raises:
        MethodUnavailable: The endpoint does not support the judge's method.
    """
    thresholds, context = Thresholds(), judge.context
    if context.method == "logodds":
        memory = memory_directory(judge.directory, judge.settings)
        for id_, learned in (await load_learned(test_set, memory, context)).items():
            thresholds.add_learned(id_, learned)
    on_references = await judge.judge_cases(reference_cases(test_set), "criteria on references")
    thresholds.fit(on_references, CORRUPTED_KINDS)

    cases = sample_cases(test_set, context, thresholds)
    judged = await judge.judge_cases(cases, "canaries")
    if embed is not None:
        for id_, reference in test_set.references.items():
            if id_ not in thresholds.topics:
                thresholds.topics[id_] = await topic_bar_of(embed, reference)
    ids = {record["id"]: record["reference_ids"] for record in test_set.samples}
    with_rules = [
        replace(
            case,
            rule_verdicts=await _rule_verdicts(
                case, ids[case.source_id], test_set, embed, thresholds
            ),
        )
        for case in judged
    ]
    voted = await judge.vote(with_rules)
    again = [
        replace(case, draw=draw)
        for draw in range(1, repeats)
        for case in cases
        if case.kind in REPEATED_KINDS
    ]
    first = [case for case in judged if case.kind in REPEATED_KINDS]
    return MethodTrial(
        thresholds,
        criteria=criteria_rows(criterion_results(on_references, thresholds), context.method),
        canaries=canary_rows(voted, context),
        originals=originals_row(voted, context),
        agreement=repeat_agreement([*first, *await judge.judge_cases(again, "repeats")]),
        juries=count_votes([*on_references, *judged]),
    )


def count_votes(cases: Sequence[JudgeCase]) -> Counter[JuryVotes]:
    """How often the jurors of a jury voted so; empty for one judge."""
    return Counter(
        votes
        for case in cases
        for criterion in case.criteria
        if (votes := jury_votes(case.verdicts[criterion["id"]], criterion)) is not None
    )


def reference_cases(test_set: JudgeTestSet) -> list[JudgeCase]:
    """The own response of each tested reference and bad ones to its instruction, by its criteria.

    The bad ones are those by which a run tries criteria, and the response of another reference,
    on which no criterion has been tried.
    """
    references = list(test_set.tested_references.values())
    cases = []
    for i, reference in enumerate(references):
        own = reference["response"]
        bad = corruptions(reference["instruction"], own)
        bad["mismatched"] = references[(i + 1) % len(references)]["response"]
        criteria: list[Criterion] = [
            answers_instruction(None),
            *test_set.criteria[reference["id"]],
        ]
        responses = {"own": own}
        responses |= {kind: text for kind, text in bad.items() if text.split() != own.split()}
        cases += [
            JudgeCase(
                source_id=reference["id"],
                kind=kind,
                instruction=reference["instruction"],
                response=response,
                criteria=criteria,
                history=reference.get("history", ()),
            )
            for kind, response in responses.items()
        ]
    return cases


def sample_cases(
    test_set: JudgeTestSet, context: Context, thresholds: Thresholds
) -> list[JudgeCase]:
    """Each accepted response and its canaries, by the criteria of its sample."""
    cases = []
    for record in test_set.samples:
        id_, instruction, response = record["id"], record["instruction"], record["response"]
        canaries = make_canaries(instruction, response, test_set.other_responses.get(id_))
        criteria = applied_criteria(record, context, thresholds)
        for kind, text in {"original": response, **canaries}.items():
            cases.append(JudgeCase(id_, kind, instruction, text, criteria))
    return cases


async def _rule_verdicts(
    case: JudgeCase,
    ids: Sequence[str],
    test_set: JudgeTestSet,
    embed: Embed | None,
    thresholds: Thresholds,
) -> list[Verdict]:
    """The verdicts of the rules on a response after the references of these ids.

    Benchmarks are not checked again.
    """
    references = [test_set.references[id_] for id_ in ids if id_ in test_set.references]
    threshold = thresholds.topic_threshold(ids)
    similarity = None
    if embed is not None and threshold is not None:
        similarity = await cosine(embed, case.instruction, case.response)
    return apply_rules(
        RuleInput(case.instruction, case.response, references, similarity, threshold)
    )


async def judge_human_samples(
    judge: CaseJudge, human: HumanVerdicts, thresholds: Thresholds
) -> JudgeVerdicts:
    """The verdicts of a judge that the run did not use on the samples that a person judged.

    The verdicts of the rules are those of the run.
    """
    cases = []
    for id_, record in human.samples.items():
        extra_ids = {v.criterion_id for v in human.verdicts if v.id == id_ and v.criterion_id}
        criteria = applied_criteria(record, judge.context, thresholds, extra_ids)
        response = final_attempt(record)["response"]
        cases.append(JudgeCase(id_, "human", record["instruction"], response, criteria))
    results = JudgeVerdicts()
    for case in await judge.judge_cases(cases, "a person's samples"):
        record = human.samples[case.source_id]
        rules = {c["id"]: c for c in record["criteria"] if c["judged_by"] == "rule"}
        verdicts = [
            *case.verdicts.values(),
            *(v for v in final_attempt(record)["verdicts"] if v["criterion_id"] in rules),
        ]
        results.passes[case.source_id, WHOLE_SAMPLE] = meets_criteria(
            {"response": case.response, "verdicts": verdicts},
            [*case.criteria, *rules.values()],
            judge.context,
        )
        results.add(record, verdicts)
    return results
