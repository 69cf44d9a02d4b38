"""The commands that show whether rows are any good: report, compare, judge-check, experiment."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refloom.cli.options import (
    add_json,
    add_judge_settings,
    positive_int,
    print_json,
    print_line,
    print_result,
)
from refloom.cli.run import add_run_flags, dry_run, read_inputs, run_with_progress
from refloom.errors import InputError

if TYPE_CHECKING:
    from refloom.settings import Settings

# An arm decides these, or they cannot be compared.
NOT_IN_EXPERIMENTS = ("feedback", "pipeline", "paired", "review", "reasoning")


def add_commands(add: Any) -> None:
    """Add the commands of this module to the parser."""
    parser = add("report")
    _add_directories(parser, "a run, several side by side, an experiment, or files of scored rows")
    _add_out(parser, "the page (default: report.html in DIR)")
    add_json(parser)
    parser.set_defaults(command=report)

    parser = add("compare")
    add_judge_settings(parser)
    _add_directories(
        parser,
        "runs that answered the same instructions, or an experiment. Win rates are those of the "
        "first against each of the others. Or two files of scored rows: the difference of their "
        "scores, without a call",
    )
    add_json(parser)
    parser.add_argument(
        "--limit", type=positive_int, metavar="N", help="the first N instructions only"
    )
    _add_out(parser, "write a page as well")
    parser.set_defaults(command=compare)

    parser = add("judge-check")
    add_judge_settings(parser)
    parser.add_argument("directory", type=Path, metavar="DIR", help="run directory")
    parser.add_argument(
        "--human",
        type=Path,
        metavar="FILE",
        help="verdicts of people: .jsonl or .csv with id (a sample's), verdict (pass or fail) and "
        "criterion_id (empty: of the whole sample)",
    )
    parser.add_argument(
        "--limit",
        type=positive_int,
        default=20,
        metavar="N",
        help="references and samples (default: 20)",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=("verdict", "logodds"),
        help="ways of judging to try (default: the run's own)",
    )
    parser.add_argument(
        "--repeats",
        type=positive_int,
        default=2,
        metavar="N",
        help="of each verdict (default: 2)",
    )
    add_json(parser)
    parser.set_defaults(command=judge_check)

    parser = add("experiment", allow_abbrev=False)
    add_run_flags(parser, without=NOT_IN_EXPERIMENTS)
    # Read, so that it can be refused with the reason.
    parser.add_argument(
        "--reasoning",
        action="store_const",
        const=True,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--arms",
        required=True,
        metavar="A,B,..",
        help="of reference, sample, none, generic, swapped; each is compared with reference",
    )
    parser.set_defaults(command=experiment)


def _add_directories(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR", help=help_text)


def _add_out(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--out", type=Path, metavar="FILE.html", help=help_text)


def report(args: Namespace, flags: dict[str, Any]) -> int:
    """Write a page about a run, about several side by side, or about an experiment."""
    from refloom.evaluation.experiment import arm_directories
    from refloom.evaluation.report import FILE_NAME
    from refloom.evaluation.report import report as write_report
    from refloom.runs.journal import check_run, is_experiment

    directories: list[Path] = args.directories
    out: Path | None = args.out
    if _are_scored(directories):
        from refloom.evaluation.report.scores import report_scores

        return _print_page(asyncio.run(report_scores(directories, out)), as_json=args.json)
    comparison = None
    if len(directories) > 1:
        for directory in directories:
            check_run(directory)
    elif is_experiment(directories[0]):
        home = directories[0]
        directories = arm_directories(home)
        comparison = _read_comparison(home / "compare.json")
        out = out or home / FILE_NAME
    path = asyncio.run(write_report(directories, out, compared=comparison))
    return _print_page(path, as_json=args.json)


def _print_page(path: Path, *, as_json: bool) -> int:
    if as_json:
        print_json({"page": str(path), "bytes": path.stat().st_size})
    else:
        print_line(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")
    return 0


def _are_scored(paths: list[Path]) -> bool:
    """Whether files are named, and no directories. Raises `InputError` if it is both."""
    files = [path for path in paths if path.is_file()]
    if files and len(files) < len(paths):
        other = next(path for path in paths if path not in files)
        raise InputError(
            f"{other}: is not a file of scored rows as {files[0]} is; give such files or "
            "directories of runs"
        )
    return bool(files)


def _compare_scores(args: Namespace) -> int:
    """Compare two files of scored rows. Nothing is asked of a judge."""
    from refloom.evaluation.report import check_output
    from refloom.evaluation.report.scores import write_scores_page
    from refloom.evaluation.scored import ScoredFile, compare_scored, format_scored

    if len(args.directories) != 2:
        raise InputError("compare: give two files of scored rows")
    if args.out is not None:
        check_output(args.out)
    first, second = map(ScoredFile, args.directories)
    if first.path.resolve() == second.path.resolve():
        raise InputError("compare: a file is named twice; give different ones")
    comparison = compare_scored(first, second, limit=args.limit)
    print_result(comparison, format_scored, as_json=args.json)
    if args.out is not None:
        path = asyncio.run(write_scores_page([first, second], comparison, args.out))
        sys.stderr.write(f"page: {path}\n")
    return 0


def _read_comparison(path: Path) -> dict[str, Any] | None:
    """The contents of a compare.json; None if there is none."""
    try:
        comparison = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON ({error}); compare again") from error
    if not isinstance(comparison, dict) or not {"pairs", "arms", "cards"} <= comparison.keys():
        raise InputError(f"{path}: is not what `refloom compare` writes; compare again")
    return comparison


def compare(args: Namespace, flags: dict[str, Any]) -> int:
    """Judge the responses of runs to the same instructions against each other."""
    from refloom.evaluation.compare import compare_runs, format_comparison, read_arm
    from refloom.evaluation.experiment import arm_directories, judging_directory
    from refloom.evaluation.judging import judge_settings, progress_printer, unique_names
    from refloom.evaluation.report import check_output
    from refloom.evaluation.report import report as write_report
    from refloom.runs.journal import check_run, is_experiment

    directories: list[Path] = args.directories
    if _are_scored(directories):
        return _compare_scores(args)
    of_experiment = len(directories) == 1 and is_experiment(directories[0])
    if of_experiment:
        directories = arm_directories(directories[0])
    if len({path.resolve() for path in directories}) < len(directories):
        raise InputError("compare: a directory is named twice; give different runs")
    if len(directories) < 2:
        raise InputError(
            f"{directories[0].parent}: has only one arm yet; run the experiment to its end"
            if of_experiment
            else "compare: give two runs or more, or the directory of an experiment"
        )
    for path in directories:
        check_run(path)
    if args.out is not None:
        check_output(args.out)
    settings = judge_settings(directories[0], flags)
    names = unique_names(directories)
    arms = [read_arm(name, path) for name, path in zip(names, directories, strict=True)]
    # As in the compare.json of an experiment: each arm against `reference`.
    pairs = [(i, 0) if of_experiment else (0, i) for i in range(1, len(arms))]
    comparison = asyncio.run(
        compare_runs(
            arms,
            pairs,
            judging_directory(directories),
            settings,
            limit=args.limit,
            on_progress=progress_printer("compared", settings.quiet),
        )
    )
    print_result(comparison, format_comparison, as_json=args.json)
    if args.out is not None:
        path = asyncio.run(write_report([], args.out, compared=comparison))
        sys.stderr.write(f"page: {path}\n")
    return 0


def judge_check(args: Namespace, flags: dict[str, Any]) -> int:
    """Test how far the judge of a run can be trusted."""
    from refloom.evaluation.judge_check import judge_check as check_judge
    from refloom.evaluation.judge_check.tables import format_judge_check
    from refloom.evaluation.judging import judge_settings
    from refloom.runs.journal import check_run

    check_run(args.directory)
    results = asyncio.run(
        check_judge(
            args.directory,
            judge_settings(args.directory, flags),
            human=args.human,
            limit=args.limit,
            methods=args.methods,
            repeats=args.repeats,
        )
    )
    print_result(results, format_judge_check, as_json=args.json)
    return 0


def experiment(args: Namespace, flags: dict[str, Any]) -> int:
    """Run several feedback arms over the same instructions and drafts, and compare them."""
    from memory.embed import Embedder
    from refloom.evaluation.experiment import arm_settings, open_experiment, parse_arms
    from refloom.runs.client import Endpoints
    from refloom.runs.event_log import log_to
    from refloom.runs.run import Tools

    settings, references, seeds = read_inputs(args, flags)
    arms = parse_arms(args.arms)
    settings_by_arm = {arm: arm_settings(settings, arm, args.out) for arm in arms}
    if args.dry_run:
        estimates = {}
        for arm, own_settings in settings_by_arm.items():
            if not args.json:
                print_line(f"\narm {arm}; calls shared by arms are counted in each, and paid once")
            # Of all arms there is one object in JSON.
            estimates[arm] = dry_run(own_settings, references, seeds, quiet=args.json)
        if args.json:
            print_json({"arms": estimates})
        return 0
    _check_arms(settings_by_arm.values(), references, seeds)
    status, tools = 0, Tools(embed=Embedder(settings.embedding_model))
    with log_to(args.log_file, Endpoints(settings).api_keys()):
        with open_experiment(args.out, settings) as journal:
            for number, (arm, own_settings) in enumerate(settings_by_arm.items(), 1):
                if not settings.quiet:
                    sys.stderr.write(f"\narm {arm} ({number} of {len(arms)})\n")
                arm_status = run_with_progress(
                    own_settings,
                    references,
                    seeds,
                    args.out / arm,
                    show_rows=False,
                    shared=journal,
                    tools=tools,
                    print_summary=(lambda summary, out: None) if args.json else None,
                )
                if arm_status not in (0, 3):
                    return arm_status
                status = max(status, arm_status)
        comparison = _compare_arms(args.out, settings, arms, as_json=args.json)
    return status if all(pair["n"] for pair in comparison["pairs"]) else 3


def _check_arms(all_settings: Iterable[Settings], references: Any, seeds: Any) -> None:
    """Raise `InputError` for a fault of any arm before anything is written or paid."""
    from refloom.runs.run import load_inputs

    for settings in all_settings:
        inputs, _ = load_inputs(settings, references, seeds)
        if inputs.reused is not None:
            inputs.reused.close()


def _compare_arms(
    out: Path, settings: Settings, arms: tuple[str, ...], *, as_json: bool
) -> dict[str, Any]:
    from refloom.evaluation.compare import format_comparison
    from refloom.evaluation.experiment import compare_arms
    from refloom.evaluation.judging import progress_printer

    on_progress = progress_printer("compared", settings.quiet)
    comparison = asyncio.run(compare_arms(out, arms, settings, on_progress=on_progress))
    print_result(comparison, format_comparison, as_json=as_json)
    if not as_json:
        print_line(f"\n{out / 'compare.json'}; `refloom report {out}` makes a page of it")
    return comparison
