"""`refloom judge-check DIR`: how far the judge of a run is to be trusted.

The judge is asked about texts of known worth: references and spoiled responses to them, accepted
responses and canaries with a fault of a known kind, the same text again, and pairs in both orders.
Where a person has judged too, the judge is compared with them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory.embed import Embed
from nodes.llm import CallFailed, Complete, ProviderStopped
from prompts import version
from refloom.data.write import replace_lines
from refloom.evaluation.judge_check import human as people
from refloom.evaluation.judge_check.cases import (
    JudgeTestSet,
    build_test_set,
    judge_context,
    judge_identity,
    run_judge_identity,
    run_judge_method,
    writer_identity,
)
from refloom.evaluation.judge_check.human import HumanVerdicts, read_human_verdicts
from refloom.evaluation.judge_check.judgements import (
    CanaryDuel,
    CaseJudge,
    MethodUnavailable,
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

# MERGED refloom~measure~judge_shown
# The report of a judge's check as plain text.
LABELS = {
    "own": "own",
    "off_topic": "off topic",
    "built in": "fully answers the instruction",
    "drawn": "drawn from references",
    "drawn, must": "  of these the must",
    "drawn, should": "  of these the should",
}
# Criteria of the same words are shown singly from so many references on.
MIN_LISTED_REFERENCES = 5
WIDTH = 34
TableRow = Mapping[str, Any]


def format_judge_check(found: TableRow) -> str:
    """The report for a terminal: flags first, then the figures they rest on.

    Figures are a value, its 95 % interval, and of how many it is.
    """
    lines = [
        f"judge {found['judge']}, {' and '.join(found['method'])}, prompts {found['prompt']}, "
        f"random seed {found['random_seed']}: {found['samples']} accepted rows, "
        f"{found['references']} references, {found['calls']} calls ({found['paid']} paid now)"
    ]
    for method, why in found["unavailable"].items():
        lines.append(f"{method}: not available ({why})")
    lines += [f"note: {note}" for note in found["notes"]]
    lines += ["", *(f"FLAG {flag}" for flag in found["flags"] or ["none"])]
    for method in found["originals"]:
        lines += ["", *_criteria_lines(method, found["criteria"])]
        lines += ["", *_canary_lines(method, found)]
    if found["duels"]:
        lines += ["", *_duel_lines(found["duels"])]
    lines += ["", *_consistency_lines(found["consistency"])]
    if found["human"] is not None:
        lines += ["", *_human_lines(found["human"])]
    return "\n".join(lines)


def _format_figure(figure: TableRow) -> str:
    if not figure or figure["value"] is None:
        return "-".ljust(WIDTH - 6)
    low, high = figure["low"], figure["high"]
    between = "" if low is None else f" ({low:.2f} to {high:.2f})"
    return f"{figure['value']:.2f}{between}, n {figure['n']}".ljust(WIDTH - 6)


def _format_line(name: str, *figures: TableRow) -> str:
    return f"  {name[:WIDTH].ljust(WIDTH)}  {'  '.join(map(_format_figure, figures))}".rstrip()


def _format_head(name: str, *columns: str) -> str:
    cells = "  ".join(column.ljust(WIDTH - 6) for column in columns)
    return f"{name.ljust(WIDTH + 2)}  {cells}".rstrip()


def _criteria_lines(method: str, rows: Sequence[TableRow]) -> Iterator[str]:
    yield _format_head(
        f"criteria on references, {method}", "AUC own over bad", "own pass", "bad pass"
    )
    for row in rows:
        if row["method"] != method:
            continue
        name = LABELS.get(row["of"])
        if name is None and row["references"] < MIN_LISTED_REFERENCES:
            continue
        name = name or f"{row['of']}: {row['text']}"
        yield _format_line(name, row["auc"], row["own_passes"], row["bad_passes"])
        if row["of"] in ("built in", "drawn"):
            for kind, figure in row["against"].items():
                yield _format_line(f"    against {kind}", figure)


def _canary_lines(method: str, found: TableRow) -> Iterator[str]:
    yield _format_head(f"canaries caught, {method}", "in all", "by the judge", "by a rule")
    for row in found["canaries"]:
        if row["method"] == method:
            name = LABELS.get(row["kind"], row["kind"])
            yield _format_line(name, row["caught"], row["by_judge"], row["by_rule"])
    own = found["originals"][method]
    yield _format_head(
        f"accepted responses pass, {method}", "in all", "by the judge", "by the rules"
    )
    yield _format_line("originals", own["passes"], own["by_judge"], own["by_rule"])
    yield _format_line("AUC over their canaries", own["over_canaries"])


def _duel_lines(rows: Sequence[TableRow]) -> Iterator[str]:
    yield _format_head(
        "duels against", "original wins both orders", "canary wins both", "its share"
    )
    for row in rows:
        yield _format_line(row["kind"], row["original_wins"], row["canary_wins"], row["share"])


def _consistency_lines(found: TableRow) -> Iterator[str]:
    yield _format_head("consistency", "share")
    for method, figure in found["verdicts"].items():
        yield _format_line(f"same verdict again, {method}", figure)
    yield _format_line("same winner in both orders", found["duels"])
    yield _format_line("picks that stood first", found["first_place"])


def _human_lines(found: TableRow) -> Iterator[str]:
    source = f"verdicts of {found['verdicts']}" if found["verdicts"] == "the run" else "asked anew"
    yield _format_head(f"a person, {found['method']}, {source}", "kappa", "agreement")
    of = [("all", found["all"]), ("whole samples", found["samples"])]
    for name, row in [*of, *((row["of"], row) for row in found["criteria"])]:
        if not row["n"]:
            continue
        counts = ", ".join(f"{key.replace('_', '/')} {n}" for key, n in row["confusion"].items())
        yield f"{_format_line(name, row['kappa'], row['agreement'])}  {counts}"
    if found["without"]:
        yield f"  {found['without']} of {found['rows']} verdicts are on what was not judged"


__all__ = ["METHODS", "RESULT_FILE", "format_judge_check", "judge_check"]

RESULT_FILE = "judge-check.json"
METHODS = ("verdict", "logodds")


@dataclass
class Check:
    """A check under way: what it stands on, and what it has found so far."""

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
    """Try the judge of a run, write judge-check.json there; what was asked before is not paid for.

    Args:
        directory: The run's.
        settings: Who judges, how, where, within which budget.
        human: A file of a person's verdicts; see `refloom.evaluation.judge_check.human`.
        limit: How many accepted rows, and how many references, are used at most.
        methods: Ways of judging; None: the settings' own.
        repeats: How often the same response is judged in all.
        complete: Stands in for the endpoint.
        embed: Stands in for the embedding model.

    Returns:
        The report; a figure is `{"value", "low", "high", "n"}`, a 95 % interval, None if unknown.

    Raises:
        InputError: `human` cannot be used, or no row is accepted; nothing was asked by then.
        JournalError: There is no run, or another process is at work on it.
        ProviderStopped, BudgetSpent: What stopped the calls; what was paid is kept.
    """
    chosen = list(dict.fromkeys(methods or [settings.context().method]))
    if set(chosen) - set(METHODS) or limit < 1 or repeats < 1:
        raise ValueError(f"methods are {', '.join(METHODS)}; limit and repeats are 1 or more")
    test_set = await asyncio.to_thread(build_test_set, directory, settings, limit)
    check = Check(directory, settings, test_set, complete, embed)
    if human is not None:
        check.human = await asyncio.to_thread(read_human_verdicts, human, directory)
    return await _run_check(check, chosen, repeats)


async def _run_check(check: Check, chosen: Sequence[str], repeats: int) -> dict[str, Any]:
    """Ask the judge everything, and write the report."""
    for method in chosen:
        await _check_method(check, method, repeats)
    await _run_duels(check, next(iter(check.trials), chosen[0]))
    if check.human is not None and check.human_agreement is None:
        check.human_agreement = _human_agreement(
            check.human, None, run_judge_method(check.test_set)
        )
    found = _results(check, chosen)
    line = json.dumps(found, indent=2, ensure_ascii=False)
    await asyncio.to_thread(replace_lines, check.directory / RESULT_FILE, [line])
    return found


async def _check_method(check: Check, method: str, repeats: int) -> None:
    """Try the judge in one way; that an endpoint cannot judge so is noted, and no more."""
    context = judge_context(check.test_set, check.settings, method)
    embed = None
    if method == "logodds":
        embed = check.embed or _open_embedder(check.settings)
    # The method that comes first stands for the judge against a person.
    first = check.human is not None and check.human_agreement is None
    try:
        async with judge_session(
            check.directory, check.settings, check.complete, JUDGE_CHECK_STAGE
        ) as calls:
            try:
                judge = CaseJudge(calls, context, check.settings, check.directory)
                trial = await try_judge(judge, check.test_set, embed, repeats)
                check.trials[method] = trial
                check.failures += trial.failures
                if first and check.human is not None:
                    await _compare_with_human(check, judge, check.human, trial)
            finally:
                check.paid += calls.counts["paid"]
                check.reused += calls.counts["reused"]
    except MethodUnavailable as error:
        check.unavailable[method] = str(error)
    except ProviderStopped as error:
        # An endpoint that refuses the question outright stops its calls, but only these.
        if not (method == "logodds" and lacks_logprobs(error)):
            raise
        check.unavailable[method] = str(error)


def _open_embedder(settings: Settings) -> Embed:
    from memory.embed import Embedder

    return Embedder(settings.embedding_model)


async def _compare_with_human(
    check: Check, judge: CaseJudge, human: HumanVerdicts, trial: MethodTrial
) -> None:
    """Compare the judge with a person: by what the run kept if it is the same, else ask it."""
    method = judge.context.method
    same = run_judge_identity(check.test_set) == judge_identity(check.settings)
    if same and run_judge_method(check.test_set) == method:
        check.human_agreement = _human_agreement(human, None, method)
        return
    verdicts, failures = await judge_human_samples(judge, human, trial.thresholds)
    check.failures += failures
    check.human_agreement = _human_agreement(human, verdicts, method)


def _human_agreement(
    human: HumanVerdicts, asked: dict[people.VerdictKey, bool] | None, method: str
) -> dict[str, Any]:
    verdicts = people.run_verdicts(human) if asked is None else asked
    source = "the run" if asked is None else "asked anew"
    return {"verdicts": source, "method": method, **people.human_agreement(human, verdicts)}


async def _run_duels(check: Check, method: str) -> None:
    """Originals against canaries; how a judge gives single verdicts does not matter here."""
    context = judge_context(check.test_set, check.settings, method)
    thresholds = (
        check.trials[method].thresholds if method in check.trials else MethodTrial().thresholds
    )
    async with judge_session(
        check.directory, check.settings, check.complete, JUDGE_CHECK_STAGE
    ) as calls:
        judge = CaseJudge(calls, context, check.settings, check.directory)
        check.duels, failures = await judge.run_duels(
            sample_cases(check.test_set, context, thresholds)
        )
        check.paid += calls.counts["paid"]
        check.reused += calls.counts["reused"]
    check.failures += failures


def _results(check: Check, chosen: Sequence[str]) -> dict[str, Any]:
    trials, settings = check.trials, check.settings
    same, first = order_consistency(check.duels)
    notes = list(check.test_set.notes)
    if check.failures:
        why = check.failures[0]
        notes.append(f"{len(check.failures)} questions had no answer, the first: {why.message}")
    if len(check.test_set.samples) < MIN_CASES:
        notes.append(
            f"fewer than {MIN_CASES} accepted rows: too few to hold anything against a judge"
        )
    found: dict[str, Any] = {
        "judge": settings.judge,
        "method": list(chosen),
        "unavailable": check.unavailable,
        "prompt": version("critique", "question", "compare"),
        "random_seed": settings.random_seed,
        "samples": len(check.test_set.samples),
        "references": len(check.test_set.tested_references),
        "flags": [],
        "notes": notes,
        "criteria": [row for trial in trials.values() for row in trial.criteria],
        "canaries": [row for trial in trials.values() for row in trial.canaries],
        "originals": {method: trial.originals for method, trial in trials.items()},
        "duels": duel_rows(check.duels),
        "human": check.human_agreement,
        "consistency": {
            "verdicts": {method: trial.agreement for method, trial in trials.items()},
            "duels": same,
            "first_place": first,
        },
        "failed": len(check.failures),
        "calls": check.paid + check.reused,
        "paid": check.paid,
    }
    found["flags"] = raise_flags(found, writer_identity(check.test_set), judge_identity(settings))
    return found
