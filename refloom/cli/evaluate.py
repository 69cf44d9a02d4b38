"""The commands that say whether rows are any good: report, compare, judge-check."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refloom.cli import options as values
from refloom.cli.index import say
from refloom.errors import InputError

if TYPE_CHECKING:
    pass


def report(given: Namespace, flags: dict[str, Any]) -> int:
    """Write a page about a run, about several side by side, or about an experiment."""
    from refloom.evaluation.experiment import arm_directories
    from refloom.evaluation.report import report as write
    from refloom.runs.journal import check_run, is_experiment

    directories: list[Path] = given.directories
    found = None
    if len(directories) > 1:
        for directory in directories:
            check_run(directory)
    elif is_experiment(directories[0]):
        home = directories[0]
        directories = arm_directories(home)
        found = _kept(home / "compare.json")
        given.out = given.out or home / "report.html"
    path = asyncio.run(write(directories, given.out, compared=found))
    say(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")
    return 0


def _kept(path: Path) -> dict[str, Any] | None:
    """What a comparison has left, or None."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path}: is no JSON ({error}); compare once more") from error
    return found if isinstance(found, dict) else None


def compare(given: Namespace, flags: dict[str, Any]) -> int:
    """Judge the responses of runs to the same instructions against each other."""
    from refloom.evaluation.compare import read_arm, compare_runs, format_comparison
    from refloom.evaluation.experiment import arm_directories, judging_directory
    from refloom.evaluation.judging import judge_settings, progress_printer, unique_names
    from refloom.evaluation.report import check_place
    from refloom.runs.journal import check_run, is_experiment

    directories: list[Path] = given.directories
    whole = len(directories) == 1 and is_experiment(directories[0])
    if whole:
        directories = arm_directories(directories[0])
    if len({path.resolve() for path in directories}) < len(directories):
        raise InputError("compare: a directory is named twice; give different runs")
    if len(directories) < 2:
        raise InputError(
            f"{directories[0].parent}: has only one arm yet; run the experiment to its end"
            if whole
            else "compare: give two runs or more, or the directory of an experiment"
        )
    for path in directories:
        check_run(path)
    if given.out is not None:
        check_place(given.out)
    settings = judge_settings(directories[0], flags)
    names = unique_names(directories)
    arms = [read_arm(name, path) for name, path in zip(names, directories, strict=True)]
    # Of an experiment as in its compare.json: each arm against `reference`.
    pairs = [(i, 0) if whole else (0, i) for i in range(1, len(arms))]
    home = judging_directory(directories)
    on_progress = progress_printer("compared", settings.quiet)
    found = asyncio.run(compare_runs(arms, pairs, home, settings, limit=given.limit, on_progress=on_progress))
    say(json.dumps(found, indent=2, ensure_ascii=False) if given.json else format_comparison(found))
    _page(found, given.out)
    return 0


def _page(found: dict[str, Any], out: Path | None) -> None:
    from refloom.evaluation.report import report as write

    if out is not None:
        path = asyncio.run(write([], out, compared=found))
        sys.stderr.write(f"page: {path}\n")


def judge_check(given: Namespace, flags: dict[str, Any]) -> int:
    """Say how far the judge of a run is to be trusted."""
    from refloom.evaluation.judge_check import judge_check as check
    from refloom.evaluation.judge_check import shown
    from refloom.evaluation.judging import judge_settings
    from refloom.runs.journal import check_run

    check_run(given.directory)
    settings = judge_settings(given.directory, flags)
    found = asyncio.run(
        check(
            given.directory,
            settings,
            human=given.human,
            limit=given.limit,
            methods=given.methods,
            repeats=given.repeats,
        )
    )
    say(json.dumps(found, indent=2, ensure_ascii=False) if given.json else shown(found))
    return 0


def add_report(parser: argparse.ArgumentParser) -> None:
    """A page about runs."""
    _directories(parser, "a run, several side by side, or an experiment")
    _out(parser, "the page (default: report.html in DIR)")
    parser.set_defaults(command=report)


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Runs against each other."""
    _directories(parser, "runs that answered the same instructions; or an experiment. Win rates "
                 "are those of the first against each of the others")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.add_argument(
        "--limit", type=values.count, metavar="N", help="the first N instructions only"
    )
    _out(parser, "write a page as well")
    parser.set_defaults(command=compare)


def add_judge_check(parser: argparse.ArgumentParser) -> None:
    """Trust in a judge."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="a run's directory")
    parser.add_argument(
        "--human",
        type=Path,
        metavar="FILE",
        help="verdicts of people: .jsonl or .csv of id (a sample's), verdict (pass or fail) and "
        "criterion_id (none: of the whole sample)",
    )
    parser.add_argument(
        "--limit",
        type=values.count,
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
        "--repeats", type=values.count, default=2, metavar="N", help="of each verdict (default: 2)"
    )
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.set_defaults(command=judge_check)


def _directories(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR", help=about)


def _out(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--out", type=Path, metavar="FILE.html", help=about)


# MERGED refloom~experimenting
# The command that runs feedback arms over the same drafts: experiment.
if TYPE_CHECKING:
    from refloom.settings import Settings


def experiment(given: Namespace, flags: dict[str, Any]) -> int:
    """Run several feedback arms over the same instructions and drafts, and compare them."""
    from memory.embed import Embedder
    from refloom.cli import run as commands
    from refloom.evaluation.experiment import ExperimentJournal, parse_arms, arm_settings
    from refloom.runs.client import Addresses
    from refloom.runs.event_log import log_to
    from refloom.runs.run import Tools

    settings, references, seeds = commands.read(given, flags)
    arms = parse_arms(given.arms)
    each = {arm: arm_settings(settings, arm, given.out) for arm in arms}
    if given.dry_run:
        return _dry_run(each, references, seeds)
    _check_arms(each.values(), references, seeds)
    status, tools = 0, Tools(embed=Embedder(settings.embedding_model))
    with log_to(given.log_file, Addresses(settings).keys()):
        shared = ExperimentJournal(given.out, settings)
        try:
            for number, (arm, own) in enumerate(each.items(), 1):
                if not settings.quiet:
                    sys.stderr.write(f"\narm {arm} ({number} of {len(arms)})\n")
                out = given.out / arm
                ended = commands.make(
                    own,
                    references,
                    seeds,
                    out,
                    show_rows=False,
                    shared=shared.journal,
                    tools=tools,
                )
                if ended not in (0, 3):
                    return ended
                status = max(status, ended)
        finally:
            shared.close()
        found = _compare(given, settings, arms)
    return status if all(pair["n"] for pair in found["pairs"]) else 3


def _check_arms(each: Iterable[Settings], references: Any, seeds: Any) -> None:
    """Find out what is wrong with any arm before anything is made or paid. Raises `InputError`."""
    from refloom.runs.run import read_given

    for own in each:
        checked, _ = read_given(own, references, seeds)
        if checked.elsewhere is not None:
            checked.elsewhere.close()


def _compare(given: Namespace, settings: Settings, arms: tuple[str, ...]) -> dict[str, Any]:
    from refloom.evaluation.compare import format_comparison
    from refloom.evaluation.experiment import compare_arms
    from refloom.evaluation.judging import progress_printer

    on_progress = progress_printer("compared", settings.quiet)
    found = asyncio.run(compare_arms(given.out, arms, settings, on_progress=on_progress))
    say(format_comparison(found))
    say(f"\n{given.out / 'compare.json'}; `refloom report {given.out}` makes a page of it")
    return found


def _dry_run(each: dict[str, Settings], references: Any, seeds: Any) -> int:
    from refloom.cli import run as commands

    for arm, own in each.items():
        say(f"\narm {arm}; what arms share is counted in each, and paid once")
        commands.dry_run(own, references, seeds)
    return 0
