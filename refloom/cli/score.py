"""The command `score`: verdicts and a score for any responses."""

from __future__ import annotations

import argparse
import asyncio
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refloom.cli.options import (
    add_judge_settings,
    add_setting,
    add_skip_bad_lines,
    positive_int,
    print_json,
    print_line,
    warn_of_skipped_rows,
)
from refloom.cli.run import EXIT_STATUS, run_until_signalled

if TYPE_CHECKING:
    from refloom.settings import Settings

# Beside those of every judge of finished rows.
SCORE_SETTINGS = (
    *("criteria_per_call", "max_failure_rate", "run_code", "reuse", "memory", "map"),
    "max_tokens_per_call",
)


def add_commands(add: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = add("score", allow_abbrev=False)
    parser.add_argument(
        "file", metavar="FILE", help="rows with an instruction and a response, in any known shape"
    )
    parser.add_argument(
        "--criteria",
        dest="criteria_source",
        required=True,
        type=Path,
        metavar="DIR|FILE",
        help="a run's directory, a file of rubrics (.jsonl, .parquet), or a file of criteria "
        "(.toml, .jsonl)",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="SCORED.jsonl",
        help="the rows with their scores; the same command goes on where it was ended",
    )
    parser.add_argument("--limit", type=positive_int, metavar="N", help="the first N rows only")
    add_skip_bad_lines(parser)
    parser.add_argument("--json", action="store_true", help="the summary as JSON")
    add_judge_settings(parser)
    group = parser.add_argument_group("scoring")
    for name in SCORE_SETTINGS:
        add_setting(group, name)
    parser.set_defaults(command=score)


def score(args: Namespace, flags: dict[str, Any]) -> int:
    """Score the rows of a file, in their order, into another file."""
    from refloom.data.responses import Responses, describe_responses
    from refloom.evaluation.judging import progress_printer
    from refloom.evaluation.score_file import (
        SCORE_FIELDS,
        ScoreRun,
        check_files,
        format_summary,
        journal_of,
        summary_to_dict,
    )

    check_files(args.file, args.criteria_source, args.out)
    settings = _settings(args.criteria_source, flags)
    rows = Responses(
        args.file, columns=settings.map, skip_bad_lines=args.skip_bad_lines, limit=args.limit
    )

    def begin() -> None:
        if not settings.quiet:
            sys.stderr.write("".join(f"{line}\n" for line in describe_responses(rows.report)))
            warn_of_skipped_rows(rows.report)

    session = ScoreRun(
        rows,
        args.criteria_source,
        args.out,
        settings,
        on_begin=begin,
        on_progress=progress_printer("scored", settings.quiet),
        on_warning=lambda text: None if settings.quiet else _warn(text),
    )
    stopped = f"stopped; every paid call is in {journal_of(args.out)}, the same command goes on\n"
    try:
        summary = asyncio.run(run_until_signalled(session))
    except asyncio.CancelledError:
        sys.stderr.write(stopped)
        return EXIT_STATUS["interrupted"]
    if summary.status == "interrupted":
        sys.stderr.write(stopped)
        return EXIT_STATUS["interrupted"]
    replaced = [name for name in SCORE_FIELDS if summary.overwritten[name]]
    if replaced and not settings.quiet:
        _warn(f"the rows had {', '.join(replaced)} already; they are replaced")
    if args.json:
        about = {"judge_model": settings.judge_names, "out": str(args.out)}
        print_json(summary_to_dict(summary, settings.random_seed) | about)
    else:
        for line in format_summary(summary, settings.random_seed):
            print_line(line)
        print_line(f"judge: {settings.judge_names}")
        print_line(f"rows: {args.out}")
    return EXIT_STATUS[summary.status]


def _warn(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _settings(source: Path, flags: dict[str, Any]) -> Settings:
    """The judge's settings: with a run's directory those of the run where no flag says otherwise.

    Nothing is written, so that the writer's model is of no account.
    """
    from refloom.evaluation.judging import judge_settings
    from refloom.evaluation.score_file import journal_of
    from refloom.runs.journal import check_run
    from refloom.settings import load_settings

    if source.is_dir():
        check_run(source)
        settings = judge_settings(source, flags)
    else:
        settings = load_settings(flags, calls="judge")
    reuse = settings.reuse
    if reuse is not None and reuse.suffix == ".jsonl":
        reuse = journal_of(reuse)
    return settings.model_copy(update={"model": settings.judge, "reuse": reuse})
