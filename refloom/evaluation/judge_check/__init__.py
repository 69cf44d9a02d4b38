"""`refloom judge-check DIR`: how far the judge of a run is to be trusted.

The judge is asked about texts of known quality: references and corrupted responses to them,
accepted responses and their canaries, the same text again, and pairs in both orders. If a person
has judged samples too, the judge is compared with them.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
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

# For the report as text.
LABELS = {
    "own": "own",
    "off_topic": "off topic",
    "built in": "fully answers the instruction",
    "drawn": "drawn from references",
    "drawn, must": "  of these the must",
    "drawn, should": "  of these the should",
}
# A criterion gets a line of its own from this many references on.
MIN_LISTED_REFERENCES = 5
NAME_WIDTH = 34
FIGURE_WIDTH = 28

TableRow = Mapping[str, Any]


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
        cases = sample_cases(test_set, judge.context, Thresholds())
        check.duels, failures = await judge.run_duels(cases)
    check.failures += failures
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
            check.failures += trial.failures
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
            yield CaseJudge(client, context, check.settings, check.directory)
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
    judged, failures = await judge_human_samples(judge, human, trial.thresholds)
    check.failures += failures
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


def format_judge_check(results: TableRow) -> str:
    """The results as text for a terminal: the flags, then tables of the figures they rest on.

    A figure is shown as its value, its 95 % interval, and n, the number of cases.
    """
    lines = [
        f"judge {results['judge']}, {' and '.join(results['method'])}, "
        f"prompts {results['prompt']}, random seed {results['random_seed']}: "
        f"{results['samples']} accepted rows, {results['references']} references, "
        f"{results['calls']} calls ({results['paid']} paid now)"
    ]
    for method, reason in results["unavailable"].items():
        lines.append(f"{method}: not available ({reason})")
    lines += [f"note: {note}" for note in results["notes"]]
    lines += ["", *(f"FLAG {flag}" for flag in results["flags"] or ["none"])]
    for method, originals in results["originals"].items():
        lines += ["", *_criteria_lines(method, results["criteria"])]
        head = _head_line(f"canaries caught, {method}", "in all", "by the judge", "by a rule")
        lines += ["", head]
        lines += [
            _figures_line(
                LABELS.get(r["kind"], r["kind"]), r["caught"], r["by_judge"], r["by_rule"]
            )
            for r in results["canaries"]
            if r["method"] == method
        ]
        lines += [
            _head_line(
                f"accepted responses pass, {method}", "in all", "by the judge", "by the rules"
            ),
            _figures_line(
                "originals", originals["passes"], originals["by_judge"], originals["by_rule"]
            ),
            _figures_line("AUC over their canaries", originals["over_canaries"]),
        ]
    head = _head_line("duels against", "original wins both orders", "canary wins both", "its share")
    lines += ["", head]
    for row in results["duels"]:
        lines.append(
            _figures_line(row["kind"], row["original_wins"], row["canary_wins"], row["share"])
        )
    consistency = results["consistency"]
    lines += ["", _head_line("consistency", "share")]
    for method, figure in consistency["verdicts"].items():
        lines.append(_figures_line(f"same verdict again, {method}", figure))
    lines.append(_figures_line("same winner in both orders", consistency["duels"]))
    lines.append(_figures_line("picks that stood first", consistency["first_place"]))
    if results["jury"] is not None:
        lines += ["", *_jury_lines(results["jury"])]
    if results["human"] is not None:
        lines += ["", *_human_lines(results["human"])]
    return "\n".join(lines)


def _criteria_lines(method: str, rows: Sequence[TableRow]) -> list[str]:
    name = f"criteria on references, {method}"
    lines = [_head_line(name, "AUC own over bad", "own pass", "bad pass")]
    for row in rows:
        label = LABELS.get(row["of"])
        is_listed = label is not None or row["references"] >= MIN_LISTED_REFERENCES
        if row["method"] != method or not is_listed:
            continue
        label = label or f"{row['of']}: {row['text']}"
        lines.append(_figures_line(label, row["auc"], row["own_passes"], row["bad_passes"]))
        if row["of"] in ("built in", "drawn"):
            lines += [
                _figures_line(f"    against {kind}", auc) for kind, auc in row["against"].items()
            ]
    return lines


def _jury_lines(jury: TableRow) -> list[str]:
    """How far the jurors agree, and how each stands to the jury."""
    lines = [_head_line("jurors, Krippendorff's alpha", "alpha", "verdicts")]
    for row in ({"of": "all", **jury}, *jury["kinds"], *jury["pairs"]):
        alpha = "-" if row["alpha"] is None else f"{row['alpha']:.2f}"
        lines.append(f"  {row['of'][:NAME_WIDTH]:{NAME_WIDTH}}  {alpha:30}{row['verdicts']:,}")
    lines.append(_head_line("jurors", "overruled", "pass", "unknown"))
    for row in jury["jurors"]:
        figures = (row["overruled"], row["passes"], row["unknown"])
        lines.append(_figures_line(row["model"], *figures))
    return lines


def _human_lines(human: TableRow) -> list[str]:
    source = f"verdicts of {human['verdicts']}" if human["verdicts"] == "the run" else "asked anew"
    lines = [_head_line(f"a person, {human['method']}, {source}", "kappa", "agreement")]
    rows = [("all", human["all"]), ("whole samples", human["samples"])]
    rows += [(row["of"], row) for row in human["criteria"]]
    for name, row in rows:
        if row["n"]:
            counts = (f"{key.replace('_', '/')} {n}" for key, n in row["confusion"].items())
            figures = _figures_line(name, row["kappa"], row["agreement"])
            lines.append(f"{figures}  {', '.join(counts)}")
    for row in human["jurors"]:
        lines.append(_figures_line(f"juror {row['of']}", row["kappa"], row["agreement"]))
    if human["alpha"] is not None:
        lines.append(f"  {'alpha of the person and the jurors':{NAME_WIDTH}}  {human['alpha']:.2f}")
    if human["without"]:
        lines.append(f"  {human['without']} of {human['rows']} verdicts are on what was not judged")
    return lines


def _head_line(name: str, *columns: str) -> str:
    cells = "  ".join(f"{column:{FIGURE_WIDTH}}" for column in columns)
    return f"{name:{NAME_WIDTH + 2}}  {cells}".rstrip()


def _figures_line(name: str, *figures: TableRow) -> str:
    cells = "  ".join(f"{_format_figure(figure):{FIGURE_WIDTH}}" for figure in figures)
    return f"  {name[:NAME_WIDTH]:{NAME_WIDTH}}  {cells}".rstrip()


def _format_figure(figure: TableRow) -> str:
    if not figure or figure["value"] is None:
        return "-"
    low, high = figure["low"], figure["high"]
    interval = "" if low is None else f" ({low:.2f} to {high:.2f})"
    return f"{figure['value']:.2f}{interval}, n {figure['n']}"
