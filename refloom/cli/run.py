"""The commands `run`, `demo` and `status`: making rows, and how a run stands."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import as_file, files
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refloom.cli.options import (
    add_json,
    add_setting,
    add_skip_bad_lines,
    print_json,
    print_line,
    warn_of_skipped_rows,
)
from refloom.data.criteria import load_criteria
from refloom.data.read import ReadReport, Source, describe_report, read_references, read_seeds
from refloom.settings import DEFAULT_TIER, Settings, load_settings

if TYPE_CHECKING:
    from refloom.runs.journal import Journal
    from refloom.runs.outputs import RunSummary
    from refloom.runs.run import Tools

# References and seeds that a dry run measures.
DRY_RUN_SAMPLE = 1000
# Counts of tokens that status shows only where there are any.
RARE_TOKENS = ("cache_write_tokens", "reasoning_tokens")
# Why bare answers were not taken, but for their verdicts.
LEFT = ("without_thoughts", "prompt_talk", "contaminated", "failed")
# Why instructions were dropped before they were candidates, as the summary says it.
DROPPED = (
    ("unfit", "empty or unfit"),
    ("screened", "failed their criteria"),
    ("duplicates", "too near to others"),
    ("surplus", "not needed"),
)
# A run that is stopped raises what stopped it.
EXIT_STATUS = {"done": 0, "short": 3, "interrupted": 130}
NOTHING_ACCEPTED = 3
# Candidates of an order that is worth a look at a few rows first, and how few.
LARGE_ORDER, FIRST_ROWS = 50, 5
ABOUT_CODE = """\
refloom demo: a small model writes and judges on this machine. No key is used.
Six tasks on code are answered after two references. What fails a criterion is refined.
This takes about four minutes on two idle cores.
"""
CODE_IS_RUN = "The code that it writes is run shut in, without network and files.\n"
ABOUT_ALL = """\
refloom demo: a small model writes and judges on this machine. No key is used.
It shows each step of making rows of many kinds. They are not worth training on.
This takes about fifteen minutes on two idle cores.
"""


def add_commands(add: Any) -> None:
    """Add the commands of this module to the parser."""
    parser = add("demo")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo-run"),
        metavar="DIR",
        help="run directory (default: demo-run)",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="instead of small code: 12 seeds of many kinds, for which new instructions are made",
    )
    add_json(parser)
    parser.set_defaults(command=demo)

    parser = add("run", allow_abbrev=False)
    add_run_flags(parser)
    parser.set_defaults(command=run)

    parser = add("status")
    parser.add_argument("directory", type=Path, metavar="DIR", help="run directory")
    add_json(parser)
    parser.set_defaults(command=status)


def add_run_flags(parser: argparse.ArgumentParser, without: Sequence[str] = ()) -> None:
    """Add the flags that make rows: files, and every setting but those `without`."""
    parser.add_argument(
        "--references",
        required=True,
        metavar="FILE",
        help="curated pairs: .jsonl .json .parquet .csv, or the name of a dataset",
    )
    parser.add_argument(
        "--seeds", metavar="FILE", help="what rows should be about (default: the references)"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="run directory; an existing run in it is resumed",
    )
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="settings from a file")
    add_skip_bad_lines(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="make no call: count, show the settings, estimate calls, tokens and dollars",
    )
    parser.add_argument(
        "--log-file", type=Path, metavar="FILE", help="append events to it, as JSON lines"
    )
    add_json(parser)
    group = parser.add_argument_group("settings")
    for name in Settings.model_fields:
        if name != "stages" and name not in without:
            add_setting(group, name)


def read_inputs(args: Namespace, flags: dict[str, Any]) -> tuple[Settings, Source, Source | None]:
    """The settings, references and seeds of a run, as the command line names them."""
    settings = load_settings(flags, args.config, calls="all")
    skip = args.skip_bad_lines
    references = read_references(args.references, settings, skip_bad_lines=skip)
    seeds = None
    if args.seeds is not None:
        seeds = read_seeds(args.seeds, settings, skip_bad_lines=skip)
    return settings, references, seeds


def run(args: Namespace, flags: dict[str, Any]) -> int:
    """Make rows from references and seeds into a directory, or resume the run in it."""
    from refloom.runs.client import Endpoints
    from refloom.runs.event_log import log_to
    from refloom.runs.journal import check_own_files

    settings, references, seeds = read_inputs(args, flags)
    if args.dry_run:
        check_own_files(args.out)
        estimated = dry_run(settings, references, seeds, quiet=args.json)
        if args.json:
            print_json(estimated)
        elif estimated["expected"]["candidates"] > LARGE_ORDER:
            print_line(_describe_first_rows(args.given, args.out, settings))
        return 0
    with log_to(args.log_file, Endpoints(settings).api_keys()):
        return run_with_progress(
            settings,
            references,
            seeds,
            args.out,
            show_rows=False,
            print_summary=_print_json_summary if args.json else _print_summary,
        )


def _describe_first_rows(given: Sequence[str], out: Path, settings: Settings) -> str:
    """The command that makes a few rows of an order first, in a directory of their own."""
    first = out.with_name(f"{out.name}-first")
    kept: list[str] = []
    words = iter(given)
    for word in words:
        flag, equals, _ = word.partition("=")
        if flag in ("--out", "--target", "--limit"):
            if not equals:
                next(words, None)
        elif flag != "--dry-run":
            kept.append(word)
    size = ["--target", str(FIRST_ROWS)]
    if settings.target is None:
        size = ["--limit", str(-(-FIRST_ROWS // settings.per_seed))]
    command = shlex.join(["refloom", *kept, "--out", str(first), *size])
    return (
        f"\nto look at {FIRST_ROWS} rows first:\n  {command}\n"
        f"and then give the whole order with --reuse {shlex.quote(str(first))}: "
        "what is paid by then is not paid again"
    )


def demo(args: Namespace, flags: dict[str, Any]) -> int:
    """Make rows from the bundled references and seeds on the embedded model."""
    from refloom.runs.sandbox import find_obstacle

    with as_file(files("refloom").joinpath("resources/demo")) as folder:
        if args.all:
            settings, references, seeds = choose_wide_demo(folder)
            sys.stderr.write(ABOUT_ALL)
        else:
            obstacle = find_obstacle()
            settings, references, seeds = choose_code_demo(folder, run_code=obstacle is None)
            sys.stderr.write(ABOUT_CODE)
            sys.stderr.write(CODE_IS_RUN if obstacle is None else f"Code is not run: {obstacle}.\n")
        exit_status = run_with_progress(
            settings,
            read_references(references, settings),
            read_seeds(seeds, settings),
            args.out,
            show_rows=True,
            print_summary=_print_json_summary if args.json else _print_summary,
        )
    if not args.json:
        print_line(_format_next_commands(args.out))
    return exit_status


def choose_code_demo(folder: Path, *, run_code: bool) -> tuple[Settings, str, str]:
    """The settings, references and seeds of the demo: tasks that suit a small model.

    The seeds are answered as they are, since such a model thinks of few tasks of its own.
    """
    settings = Settings(
        model="local",
        answer_seeds=True,
        references_per_seed=1,
        max_criteria=2,
        max_attempts=3,
        criteria=folder / ("code_criteria.toml" if run_code else "code_criteria_unrun.toml"),
        run_code=run_code,
    )
    return settings, str(folder / "code_references.jsonl"), str(folder / "code_seeds.jsonl")


def choose_wide_demo(folder: Path) -> tuple[Settings, str, str]:
    """The same for many kinds of tasks, for which new instructions are made."""
    settings = Settings(model="local", references_per_seed=1, max_criteria=3, max_attempts=2)
    return settings, str(folder / "references.jsonl"), str(folder / "seeds.jsonl")


def _format_next_commands(out: Path) -> str:
    """The commands to go on with after a demo."""
    folder = shlex.quote(str(out))
    commands = {
        f"refloom report {folder}": "a page of figures and samples",
        f"refloom export {folder} train.jsonl --format messages": "the rows as training data",
        "refloom run --references FILE --out rows --model NAME": "rows from references of yours",
    }
    width = max(map(len, commands))
    lines = (f"  {command:<{width}}  {what}" for command, what in commands.items())
    return "\n".join(["", "to go on:", *lines])


def run_with_progress(
    settings: Settings,
    references: Source,
    seeds: Source | None,
    out: Path,
    *,
    show_rows: bool,
    shared: Journal | None = None,
    tools: Tools | None = None,
    print_summary: Callable[[RunSummary, Path], None] | None = None,
) -> int:
    """Run with a progress display until it ends or is stopped. Returns the exit status.

    `show_rows` shows each row as it ends, and not what was read. `print_summary` writes what has
    come of it to stdout, by default as text. `shared`, `tools`: see `refloom.runs.run.Run`.
    """
    from refloom.runs.progress import Progress
    from refloom.runs.run import Run, Tools

    session = Run(settings, references, seeds, out, tools=tools or Tools(), shared=shared)
    try:
        if settings.quiet:
            asyncio.run(run_until_signalled(session))
        else:
            if not show_rows:
                session.on_begin = partial(_print_inputs, references, seeds)
            progress = Progress(show_rows=show_rows)
            session.on_record, session.on_fault = progress, progress.count_error
            session.on_notice = progress.notice
            with progress.begin(session.stats):
                asyncio.run(run_until_signalled(session))
    except asyncio.CancelledError:
        sys.stderr.write(
            f"stopped; every paid call is in {out / 'journal.sqlite'}, "
            "and the same command goes on\n"
        )
        return EXIT_STATUS["interrupted"]
    finally:
        if session.summary is not None and session.summary.counts:
            (print_summary or _print_summary)(session.summary, out)
    summary = session.summary
    assert summary is not None
    counts, ended = summary.counts, summary.status in ("done", "short")
    if ended and counts["failed"] and not counts["accepted"] and not counts["pending"]:
        sys.stdout.flush()
        reasons = "; ".join(f"{number} at {reason}" for number, reason in summary.failures)
        sys.stderr.write(
            f"refloom: nothing was accepted, and {counts['failed']} samples failed: {reasons}\n"
        )
        return NOTHING_ACCEPTED
    return EXIT_STATUS[summary.status]


async def run_until_signalled(session: Any) -> Any:
    """Run; a first Ctrl-C or SIGTERM finishes what is in flight, a second one stops at once."""
    work = asyncio.create_task(session.run())
    signals = 0

    def stop() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            sys.stderr.write("stopping: finishing calls in flight; Ctrl-C again stops now\n")
            session.stop()
        else:
            work.cancel()

    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, stop)
    return await work


def _describe_inputs(
    references: Source, seeds: Source | None, reports: tuple[ReadReport, ReadReport], **more: str
) -> list[str]:
    """Lines on what was read; references that are also the seeds are described once."""
    first = references.takes_first
    lines = describe_report("references", references.name, reports[0], takes_first=first, **more)
    if seeds is not None:
        lines += describe_report("seeds", seeds.name, reports[1], takes_first=True, **more)
    return lines


def _print_inputs(references: Source, seeds: Source | None, summary: RunSummary) -> None:
    lines = _describe_inputs(references, seeds, (summary.references, summary.seeds))
    lines += _describe_jury(summary.settings)
    sys.stderr.write("\n".join(lines) + "\n")


def _describe_jury(settings: Settings) -> list[str]:
    """The line that names the juror that writes too, if there is one."""
    if len(settings.jurors) == 1 or settings.model not in settings.jurors:
        return []
    return [f"jury: {settings.model} writes and judges; models are lenient with their own writing"]


def _print_json_summary(summary: RunSummary, out: Path) -> None:
    """Write what `refloom status --json` says."""
    from refloom.runs.outputs import read_status

    print_json(read_status(out))


def _print_summary(summary: RunSummary, out: Path) -> None:
    counts, cost = summary.counts, summary.totals["cost_usd"]
    screened = f"{counts['screened']} screened, " if counts["screened"] else ""
    print_line(
        f"{summary.status}: {counts['accepted']} accepted, {counts['rejected']} rejected, "
        f"{counts['failed']} failed, {counts['pending']} pending, {counts['duplicates']} "
        f"duplicates, {screened}{summary.totals['calls']['paid']} calls paid"
        + (f" (${cost:.4f})" if cost else "")
        + f", in {summary.seconds:.0f} s"
    )
    usage = summary.totals["usage"]
    if usage["cached_tokens"]:
        share = usage["cached_tokens"] / usage["prompt_tokens"]
        print_line(
            f"{share:.0%} of {usage['prompt_tokens']:,} prompt tokens were in the endpoint's cache"
        )
    if usage["reasoning_tokens"]:
        share = usage["reasoning_tokens"] / max(usage["completion_tokens"], 1)
        print_line(f"{share:.0%} of {usage['completion_tokens']:,} completion tokens were thinking")
    if (answers := summary.totals["answers"]) is not None and answers["asked"]:
        print_line(_describe_answers(answers, counts["accepted"]))
    if summary.settings.service_tier != DEFAULT_TIER:
        print_line(_describe_tiers(summary.totals))
    if summary.status == "short" and (line := _describe_shortfall(summary)) is not None:
        print_line(line)
    if counts["accepted"]:
        print_line(f"rows: {out / 'accepted.jsonl'}")
    else:
        print_line(_describe_no_rows(summary, out))
    if summary.settings.review != "never" and counts["pending"]:
        print_line(
            f"{counts['pending']} samples wait for review: "
            f"`refloom review {shlex.quote(str(out))}` shows them"
        )
    if counts["failed"]:
        print_line(f"why samples failed: {out / 'failed.jsonl'}")
    retry_failed = summary.settings.retry_failed
    if (line := _describe_next(summary.status, summary.retriable, retry_failed)) is not None:
        print_line(line)


def _describe_no_rows(summary: RunSummary, out: Path) -> str:
    """The line that says that there are no rows, and what became of all that was begun."""
    counts = summary.counts
    samples = [f"{counts[name]} {name}" for name in ("rejected", "failed") if counts[name]]
    dropped = [f"{counts[name]} {why}" for name, why in DROPPED if counts[name]]
    parts = [", ".join(samples)] if samples else []
    if dropped:
        parts.append(f"instructions dropped: {', '.join(dropped)} ({out / 'dropped.jsonl'})")
    if counts["references_failed"]:
        parts.append(f"references that could not be learned from: {counts['references_failed']}")
    if counts["pending"] or summary.status not in ("done", "short"):
        return "; ".join(["no rows yet", *parts])
    nothing = f"no instruction was proposed for any of the {counts['seeds']} seeds"
    return f"no rows: {'; '.join(parts) or nothing}"


def _describe_shortfall(summary: RunSummary) -> str | None:
    """Why a run ended short of its target, unless reviews alone are missing."""
    counts, target = summary.counts, summary.settings.target or 0
    limit = summary.settings.candidate_limit
    if counts["accepted"] + counts["pending"] >= target:
        return None
    if limit is not None and counts["candidates"] + counts["screened"] >= limit:
        return f"short of {target} rows: --max-candidates, {limit}, is reached"
    return f"short of {target} rows: the last round of seeds brought nothing new; add seeds"


def _describe_answers(answers: dict[str, int], accepted: int) -> str:
    """How many rows have reasoning, and what became of the bare answers asked for."""
    line = f"{answers['taken']} of {accepted} accepted rows have reasoning: "
    if answers["judged"]:
        line += f"{answers['passed']} of {answers['judged']} bare answers were as good as the "
        line += "response"
    else:
        line += "no bare answer could be judged"
    rest = [f"{answers[name]} {name.replace('_', ' ')}" for name in LEFT if answers[name]]
    if answers["failed"]:
        rest[-1] += " (the rows' answer_errors say why)"
    if answers["asked"] == answers["without_thoughts"]:
        rest.append("it takes a model that shows its thoughts, as `refloom doctor` can tell")
    return "; ".join([line, *rest])


def _describe_next(status: str, retriable: int, retry_failed: bool) -> str | None:
    """What the same command would do with a run, if that is more than to show it."""
    if status in ("done", "short", "stopped") and retriable:
        if not retry_failed:
            return f"without --no-retry-failed, {retriable} failed samples would be tried again"
        samples = "1 failed sample is" if retriable == 1 else f"{retriable} failed samples are"
        return f"{samples} tried again by the same command, once the cause is mended"
    if status == "interrupted":
        return "the same command goes on with the run"
    return None


def dry_run(
    settings: Settings, references: Source, seeds: Source | None, *, quiet: bool = False
) -> dict[str, Any]:
    """Show what a run would do and cost, without a call and without writing anything.

    `quiet` shows nothing. Returns the estimate; see `refloom.runs.estimate.estimate`.
    """
    from refloom.runs.checks import check_permitted
    from refloom.runs.cost import Prices
    from refloom.runs.estimate import estimate, format_estimate

    prices = Prices.load(settings.prices)
    own_criteria = [] if settings.criteria is None else load_criteria(settings.criteria)
    check_permitted([own["criterion"].get("check") for own in own_criteria], settings)
    seed_source = seeds or Source(references, as_reference=False, limit=settings.limit)
    reports = (references.scan(), seed_source.scan())
    if not quiet:
        for line in _describe_inputs(references, seeds, reports, listed=""):
            print_line(line)
    for report in reports:
        warn_of_skipped_rows(report)
    sys.stderr.writelines(f"{line}\n" for line in _describe_jury(settings))
    estimated = asyncio.run(
        estimate(
            settings,
            *reports,
            list(islice(references, DRY_RUN_SAMPLE)),
            prices,
            seed_texts=[seed["instruction"] for seed in islice(seed_source, DRY_RUN_SAMPLE)],
            own_criteria=own_criteria,
        )
    )
    if not quiet:
        print_line(format_estimate(estimated))
    return estimated


def status(args: Namespace, flags: dict[str, Any]) -> int:
    """Show how a run or an experiment stands, whether it is running, ended, or was killed."""
    from refloom.evaluation.experiment import arm_directories
    from refloom.runs.journal import is_experiment
    from refloom.runs.outputs import read_status
    from refloom.runs.seed_table import read_seed_table

    def read(path: Path) -> dict[str, Any]:
        return read_status(path) | read_seed_table(path)

    if is_experiment(args.directory):
        arms = {path.name: read(path) for path in arm_directories(args.directory)}
        if args.json:
            print_json({"arms": arms})
            return 0
        for name, arm_status in arms.items():
            print_line(f"arm {name}")
            _print_status(arm_status)
        return 0
    run_status = read(args.directory)
    if args.json:
        print_json(run_status)
    else:
        _print_status(run_status)
    return 0


def _describe_tiers(totals: dict[str, Any]) -> str:
    """The calls and dollars of each service tier that answers name."""
    costs = {t: f" (${c:.4f})" for t, c in totals["cost_by_tier"].items() if c is not None}
    by_tier = totals["calls"]["by_tier"].items()
    return "calls by tier: " + ", ".join(f"{t} {n}{costs.get(t, '')}" for t, n in by_tier)


def _describe_seeds(run: dict[str, Any]) -> str | None:
    """How many seeds left no row, and what became of the first one; None if all left one."""
    number = run["seeds_without_rows"]
    if not number:
        return None
    first = run["seeds"][0]
    ends = (f"{n} {name}" for name, n in first.items() if name not in ("seed_id", "rows") and n)
    why = ", ".join(ends) or "nothing was proposed"
    seeds = "1 seed has" if number == 1 else f"{number} seeds have"
    name = first["seed_id"] or "one without an id"
    return f"{seeds} left no row, such as {name}: {why} (--json lists them)"


def _print_status(run: dict[str, Any]) -> None:
    print_line(run["status"] + (f" (pid {run['pid']})" if "pid" in run else ""))
    for group in ("counts", "criteria", "instruction_criteria", "calls", "usage"):
        if group == "instruction_criteria" and not any(run[group].values()):
            continue
        values = {k: v for k, v in run.get(group, {}).items() if isinstance(v, int)}
        pairs = (f"{k} {v}" for k, v in values.items() if v or k not in RARE_TOKENS)
        print_line(f"  {group}: " + ", ".join(pairs))
    if (line := _describe_seeds(run)) is not None:
        print_line(f"  {line}")
    if run["answers"] is not None and run["answers"]["asked"]:
        print_line(f"  {_describe_answers(run['answers'], run['counts']['accepted'])}")
    stages = []
    for stage, calls in run["calls"].get("by_stage", {}).items():
        cost = run["cost_by_stage"].get(stage)
        stages.append(f"{stage} {calls}" + (f" (${cost:.4f})" if cost else ""))
    print_line("  calls by stage: " + (", ".join(stages) or "none"))
    tokens = (
        f"{stage} {counts['prompt_tokens']:,} + {counts['completion_tokens']:,}"
        for stage, counts in run["tokens_by_stage"].items()
    )
    print_line("  tokens by stage, of prompts + of answers: " + (", ".join(tokens) or "none"))
    if run["calls"].get("by_tier", {}).keys() - {DEFAULT_TIER}:
        print_line(f"  {_describe_tiers(run)}")
    if run["cost_usd"] is None:
        print_line("  cost: unknown; a model has no price (--prices FILE gives it one)")
    else:
        print_line(f"  cost: ${run['cost_usd']:.4f}")
    if run.get("stopped"):
        print_line(f"  stopped: {run['stopped']}")
    retry_failed = run.get("settings", {}).get("retry_failed", True)
    if (line := _describe_next(run["status"], run["retriable"], retry_failed)) is not None:
        print_line(f"  {line}")
