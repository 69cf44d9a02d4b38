"""`refloom judge-check DIR`: how far the judge of a run is to be trusted.

The judge is asked about texts of known quality: references and corrupted responses to them,
accepted responses and their canaries, the same text again, and pairs in both orders. If a person
has judged samples too, the judge is compared with them.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory.embed import Embed, Embedder
from nodes.llm import CallFailed, Complete, ProviderStopped
from prompts import prompt_version
from refloom.data.write import replace_lines
from refloom.errors import InputError
from refloom.evaluation.agreement import jury_agreement
from refloom.evaluation.judge_check.cases import (
    JudgeTestSet,
    build_test_set,
    judge_context,
    judge_identity,
    run_judge_identity,
    run_judge_method,
    writer_identity,
)
from refloom.evaluation.judge_check.human import (
    HumanVerdicts,
    JudgeVerdicts,
    human_agreement,
    read_human_verdicts,
    run_verdicts,
)
from refloom.evaluation.judge_check.judgements import (
    CanaryDuel,
    CaseJudge,
    MethodUnavailable,
    Thresholds,
    lacks_logprobs,
)
from refloom.evaluation.judge_check.metrics import (
    MIN_CASES,
    duel_rows,
    order_consistency,
    raise_flags,
)
from refloom.evaluation.judge_check.trial import (
    MethodTrial,
    judge_human_samples,
    sample_cases,
    try_judge,
)
from refloom.evaluation.judging import JUDGE_CHECK_STAGE, judge_session
from refloom.settings import Settings

RESULT_FILE = "judge-check.json"
METHODS = ("verdict", "logodds")


@dataclass
class JudgeCheck:
    """The state of a check: its inputs, and the results so far.

    `human_agreement` holds the figures of `human`; `failures` the calls that failed; `paid` and
    `reused` count calls.
    """

    directory: Path
    settings: Settings
    test_set: JudgeTestSet
    complete: Complete | None
    embed: Embed | None
    human: HumanVerdicts | None = None
    trials: dict[str, MethodTrial] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    duels: list[CanaryDuel] = field(default_factory=list)
    human_agreement: dict[str, Any] | None = None
    failures: list[CallFailed] = field(default_factory=list)
    paid: int = 0
    reused: int = 0


async def judge_check(
    directory: Path,
    settings: Settings,
    *,
    human: Path | None = None,
    limit: int = 20,
    methods: Sequence[str] | None = None,
    repeats: int = 2,
    complete: Complete | None = None,
    embed: Embed | None = None,
) -> dict[str, Any]:
    """Test the judge of a run and write `RESULT_FILE` into its directory.

    Calls that were paid for before are not paid again.

    Args:
        directory: The run's directory.
        settings: The judge, its method and endpoint, and the budget.
        human: A file of a person's verdicts; see `refloom.evaluation.judge_check.human`.
        limit: The most accepted rows, and the most references, that are used.
        methods: The methods to test, of `METHODS`; None for the one of the settings.
        repeats: How many times the same response is judged.
        complete: Replaces the endpoint.
        embed: Replaces the embedding model.

    Returns:
        The contents of the file. A figure is `{"value", "low", "high", "n"}` with a 95 % interval;
        what is unknown is None.

    Raises:
        InputError: `human` cannot be used, no row is accepted, or a jury is to be tested by
            log-odds. No call was made.
        JournalError: There is no run, or another process is using it.
        ProviderStopped, BudgetSpent: The calls were stopped. What was paid for is kept.
        ValueError: An unknown method, or a `limit` or `repeats` under 1.
    """
    methods = list(dict.fromkeys(methods or [settings.context().method]))
    if set(methods) - set(METHODS) or limit < 1 or repeats < 1:
        raise ValueError(f"methods are {', '.join(METHODS)}; limit and repeats are 1 or more")
    if "logodds" in methods and len(settings.jurors) > 1:
        raise InputError(
            f"a jury ({settings.judge_names}) gives written verdicts; to check one juror by "
            "log-odds, name it with --judge-model"
        )
    test_set = await asyncio.to_thread(build_test_set, directory, settings, limit)
    check = JudgeCheck(directory, settings, test_set, complete, embed)
    if human is not None:
        check.human = await asyncio.to_thread(read_human_verdicts, human, directory)
    for method in methods:
        await _check_method(check, method, repeats)
    # A duel is the same question whatever the method.
    async with _open_judge(check, next(iter(check.trials), methods[0])) as judge:
        # A duel uses no criteria, so it needs no thresholds.
        check.duels = await judge.run_duels(sample_cases(test_set, judge.context, Thresholds()))
    if check.human is not None and check.human_agreement is None:
        method = run_judge_method(test_set)
        check.human_agreement = _human_figures(check.human, None, method)
    results = _collect_results(check, methods)
    text = json.dumps(results, indent=2, ensure_ascii=False)
    await asyncio.to_thread(replace_lines, directory / RESULT_FILE, [text])
    return results


async def _check_method(check: JudgeCheck, method: str, repeats: int) -> None:
    """Try the judge by one method; if the endpoint does not support it, only note that."""
    embed = None
    if method == "logodds":
        embed = check.embed or Embedder(check.settings.embedding_model)
    try:
        async with _open_judge(check, method) as judge:
            trial = await try_judge(judge, check.test_set, embed, repeats)
            check.trials[method] = trial
            # A person is compared with the first method that is available.
            if check.human is not None and check.human_agreement is None:
                await _compare_with_human(check, judge, check.human, trial)
    except MethodUnavailable as error:
        check.unavailable[method] = str(error)
    except ProviderStopped as error:
        # An endpoint that refuses to give log-probabilities may still give verdicts.
        if not (method == "logodds" and lacks_logprobs(error)):
            raise
        check.unavailable[method] = str(error)


@asynccontextmanager
async def _open_judge(check: JudgeCheck, method: str) -> AsyncIterator[CaseJudge]:
    """Open the judge under test by one method, and count its calls."""
    context = judge_context(check.test_set, check.settings, method)
    async with judge_session(
        check.directory, check.settings, check.complete, JUDGE_CHECK_STAGE
    ) as client:
        try:
            yield CaseJudge(client, context, check.settings, check.directory, check.failures)
        finally:
            check.paid += client.counts["paid"]
            check.reused += client.counts["reused"]


async def _compare_with_human(
    check: JudgeCheck, judge: CaseJudge, human: HumanVerdicts, trial: MethodTrial
) -> None:
    """Compare the judge with a person: by the run's verdicts if they are its own, else anew."""
    method = judge.context.method
    is_run_judge = run_judge_identity(check.test_set) == judge_identity(check.settings)
    if is_run_judge and run_judge_method(check.test_set) == method:
        check.human_agreement = _human_figures(human, None, method)
        return
    judged = await judge_human_samples(judge, human, trial.thresholds)
    check.human_agreement = _human_figures(human, judged, method)


def _human_figures(
    human: HumanVerdicts, judged: JudgeVerdicts | None, method: str
) -> dict[str, Any]:
    """The agreement of a person with verdicts of the judge under test; None: with the run's."""
    source = "the run" if judged is None else "asked anew"
    judged = run_verdicts(human) if judged is None else judged
    return {"verdicts": source, "method": method, **human_agreement(human, judged)}


def _collect_results(check: JudgeCheck, methods: Sequence[str]) -> dict[str, Any]:
    trials, settings, samples = check.trials, check.settings, check.test_set.samples
    same_winner, first_place = order_consistency(check.duels)
    notes = list(check.test_set.notes)
    if check.failures:
        notes.append(
            f"{len(check.failures)} questions had no answer; the first failed with: "
            f"{check.failures[0].message}"
        )
    if len(samples) < MIN_CASES:
        notes.append(f"fewer than {MIN_CASES} accepted rows: too few to raise a flag")
    results: dict[str, Any] = {
        "judge": settings.judge_names,
        "method": list(methods),
        "unavailable": check.unavailable,
        "prompt": prompt_version("critique", "question", "compare"),
        "random_seed": settings.random_seed,
        "samples": len(samples),
        "references": len(check.test_set.tested_references),
        "flags": [],
        "notes": notes,
        "criteria": [row for trial in trials.values() for row in trial.criteria],
        "canaries": [row for trial in trials.values() for row in trial.canaries],
        "originals": {method: trial.originals for method, trial in trials.items()},
        "duels": duel_rows(check.duels),
        "human": check.human_agreement,
        "jury": jury_agreement(sum((t.juries for t in trials.values()), Counter())),
        "consistency": {
            "verdicts": {method: trial.agreement for method, trial in trials.items()},
            "duels": same_winner,
            "first_place": first_place,
        },
        "failed": len(check.failures),
        "calls": check.paid + check.reused,
        "paid": check.paid,
    }
    judge = judge_identity(settings)
    results["flags"] = raise_flags(results, writer_identity(check.test_set), judge)
    return results
