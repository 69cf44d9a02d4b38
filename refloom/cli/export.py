"""The commands `export` and `push`: a run's rows as training data, and on the Hugging Face hub."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sqlite3
import sys
import tempfile
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nodes.llm.fast_json import loads
from refloom.cli.options import (
    MAX_LISTED,
    add_json,
    add_setting,
    positive_int,
    print_json,
    print_line,
    ratio,
)
from refloom.data.export import (
    FORMATS,
    TAGGED_FORMATS,
    RubricSettings,
    export_rows,
    has_taggable_thoughts,
    parse_shares,
)
from refloom.data.rubrics import ITEM_KEYS, RubricCounts
from refloom.errors import InputError
from refloom.settings import JUDGE_SETTINGS

if TYPE_CHECKING:
    from refloom.evaluation.selection import SelectionSettings

# Flags of the filter `judge`. It compares by verdict, with the run's own random seed: see
# `_select_ids`.
JUDGING = tuple(
    name for name in JUDGE_SETTINGS if name not in ("judge_method", "random_seed", "quiet")
)
SETTINGS = ("quiet", "embedding_model", *JUDGING)
THRESHOLD = 0.7


def add_commands(add: Any) -> None:
    """Add the commands of this module to the parser."""
    parser = add("export")
    parser.add_argument("directory", type=Path, metavar="DIR", help="run directory")
    parser.add_argument("file", type=Path, metavar="FILE", help="a .jsonl or .parquet file")
    parser.add_argument("--format", required=True, choices=tuple(FORMATS))
    _add_split(parser, "which seeds go into which part, and the order samples are selected in")
    _add_format_options(parser)
    parser.add_argument("--max-rows", type=positive_int, metavar="N", help="the first N rows only")
    _add_selection(parser)
    add_json(parser)
    parser.set_defaults(command=export)

    parser = add("push")
    parser.add_argument("directory", type=Path, metavar="DIR", help="run directory")
    parser.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME on the hub")
    parser.add_argument(
        "--format",
        action="append",
        choices=tuple(FORMATS),
        help="a format of the rows; may be given several times (default: messages)",
    )
    _add_format_options(parser)
    _add_split(parser, "which seeds go into which part")
    parser.add_argument("--public", action="store_true", help="visible to all (default: private)")
    parser.add_argument(
        "--despite-contamination",
        action="store_true",
        help="publish although some samples held a benchmark's prompt",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the card, send nothing")
    add_json(parser)
    parser.set_defaults(command=push)


def _add_format_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags that only some formats take."""
    parser.add_argument(
        "--rubric-shape",
        choices=tuple(ITEM_KEYS),
        help="whose names a rubric has (--format rubric; default: rar)",
    )
    parser.add_argument(
        "--split-criteria",
        type=_parse_criteria_share,
        metavar="SHARE",
        help="hold out this share of all criteria: FILE has the rubrics without them and "
        "FILE-heldout, row by row, with them alone. A hash of a criterion's words decides, so a "
        "short rubric may have none held out (--format rubric)",
    )
    parser.add_argument(
        "--think-tags",
        action="store_true",
        help="put thoughts into the response's text, between <think> and </think> (formats "
        f"{', '.join(TAGGED_FORMATS)}; by default only `messages` has them, as reasoning_content)",
    )


def _check_format_options(args: Namespace, formats: Sequence[str]) -> None:
    """Raise `InputError` for a flag that a format does not take."""
    for format_ in formats:
        if args.think_tags and format_ not in TAGGED_FORMATS:
            raise InputError(
                f"--think-tags: not with --format {format_}; only with {', '.join(TAGGED_FORMATS)}"
            )
    rubric_flags = {"--rubric-shape": args.rubric_shape, "--split-criteria": args.split_criteria}
    for flag, value in rubric_flags.items():
        if value is not None and RUBRIC not in formats:
            raise InputError(f"{flag}: only with --format {RUBRIC}")


def _read_format(
    args: Namespace, format_: str, journal: sqlite3.Connection, ids: set[str] | None = None
) -> tuple[Callable[[], Iterator[str]], RubricSettings | None]:
    """What reads the records of a format, and how rubrics are written, which needs all of them.

    Says on stderr what became of weights, and of the criteria that are held out.
    """
    from refloom.runs.journal import iter_records

    if format_ != RUBRIC:
        return partial(_accepted, journal, ids), None
    read = partial(iter_records, journal, *STATUSES)
    counts = RubricCounts(args.split_criteria or 0.0)
    for line in read():
        counts.add(loads(line))
    if counts.fractional:
        sys.stderr.write(
            "some weights have decimals, so all are written as decimals; RaR's and HealthBench's "
            "are whole numbers\n"
        )
    if counts.share and counts.rubrics:
        sys.stderr.write(
            f"held out: {counts.held_out} of {counts.items} items; of {counts.rubrics} rubrics "
            f"{counts.none_held_out} have none held out and {counts.all_held_out} have all\n"
        )
    return read, RubricSettings(args.rubric_shape or "rar", counts)


def _add_split(parser: argparse.ArgumentParser, decides: str) -> None:
    parser.add_argument(
        "--split",
        type=_parse_split,
        metavar="NAME=SHARE,..",
        help="write parts as FILE-NAME: train=0.95,validation=0.05; rows of one seed stay together",
    )
    parser.add_argument(
        "--random-seed", type=int, default=0, metavar="N", help=f"decides {decides}"
    )


def _add_selection(parser: argparse.ArgumentParser) -> None:
    """Add filters and sizes, and the settings of the judge they may need."""
    group = parser.add_argument_group(
        "selecting from the accepted samples (default judge: the run's own)"
    )
    group.add_argument(
        "--filter",
        action="append",
        choices=("judge", "rouge", "random"),
        help="may be given several times; each filters what the one before it passed. judge: asks "
        "a model, and drops refined responses that it does not prefer to their draft in both "
        "orders; rouge: drops instructions too similar to one already selected; random: passes "
        "any. --random-seed decides the order of samples",
    )
    group.add_argument(
        "--filter-threshold",
        type=ratio,
        metavar="R",
        help=f"for rouge: highest ROUGE-L F1 of two instructions (default: {THRESHOLD}; the run "
        "itself dropped what is above its --novelty-threshold)",
    )
    group.add_argument(
        "--size",
        type=positive_int,
        metavar="N",
        help="select N samples; those of a smaller N are among them",
    )
    group.add_argument(
        "--sample",
        choices=("diverse",),
        help="diverse: of the filtered samples, the --size that cover all others best "
        "(k-centre over embeddings of the instructions)",
    )
    for name in SETTINGS:
        add_setting(group, name)


def _selection_settings(args: Namespace, flags: dict[str, Any]) -> SelectionSettings | None:
    """The selection the flags ask for; None: everything. Raises `InputError` if they conflict."""
    filters, diverse = tuple(args.filter or ()), args.sample == "diverse"
    random, size = "random" in filters, args.size is not None
    conflicts = {
        "--filter random and --sample diverse: each selects --size samples; give one": (
            random and diverse
        ),
        "--filter random: give --size N, how many to select": random and not size,
        "--sample diverse: give --size N, how many to select": diverse and not size,
        "--size: give --filter or --sample, how to select (--max-rows N takes the first N rows)": (
            size and not filters and not diverse
        ),
        "--filter-threshold: only with --filter rouge": (
            args.filter_threshold is not None and "rouge" not in filters
        ),
        "--embedding-model: only with --sample diverse": "embedding_model" in flags and not diverse,
    }
    for name in JUDGING:
        conflict = f"--{name.replace('_', '-')}: only with --filter judge"
        conflicts[conflict] = name in flags and "judge" not in filters
    for conflict, holds in conflicts.items():
        if holds:
            raise InputError(conflict)
    if not filters and not diverse:
        return None
    if args.format == RUBRIC:
        raise InputError(
            "--filter and --sample: choose among accepted samples, and --format rubric has "
            "rejected ones too"
        )
    from refloom.evaluation.selection import SelectionSettings

    threshold = args.filter_threshold or THRESHOLD
    return SelectionSettings(filters, threshold, args.size, diverse, args.random_seed)


def _select_ids(directory: Path, choice: SelectionSettings, flags: dict[str, Any]) -> set[str]:
    """The ids of the selected samples; tells on stderr how they were selected.

    Raises what `refloom.evaluation.selection.select_samples` raises.
    """
    from refloom.evaluation.judging import judge_settings
    from refloom.evaluation.selection import select_samples

    # Another order of samples must not pay for the same comparisons again.
    own_flags = {name: value for name, value in flags.items() if name != "random_seed"}
    settings = judge_settings(directory, own_flags)
    selection = asyncio.run(select_samples(directory, choice, settings))
    warnings = selection.warnings[:MAX_LISTED]
    if len(selection.warnings) > MAX_LISTED:
        warnings.append(f"{len(selection.warnings) - MAX_LISTED} more lines like these")
    summary = [] if settings.quiet else selection.summary
    sys.stderr.writelines(f"{line}\n" for line in [*summary, *warnings])
    return selection.ids


RUBRIC = "rubric"
# Whose records are read for rubrics: drafts of all of them have verdicts.
STATUSES = ("accepted", "rejected", "failed")
NO_PAIR = "no accepted row had an earlier attempt that failed a `must` criterion"
EMPTY_REASONS = {
    "preference": NO_PAIR,
    "preference_text": NO_PAIR,
    RUBRIC: "no instruction has a criterion that a judge or a check decides",
    "refed": "no accepted row was made with --preset refed",
}
NO_ROW = "no row was accepted"
NONE_LEFT = "no sample passed the filters"
# Keys that run.json has once a run has started.
CARD_NEEDS = {"settings", "reading", "prompts", "versions", "fingerprint", "written"}


def _parse_split(text: str) -> dict[str, float]:
    """Parse the value of --split."""
    try:
        return parse_shares(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{error}; give train=0.95,validation=0.05") from error


def _parse_criteria_share(text: str) -> float:
    """Parse the value of --split-criteria."""
    try:
        share = float(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not a number") from error
    if not 0 < share < 1:
        raise ArgumentTypeError(f"{text} is not between 0 and 1")
    return share


def export(args: Namespace, flags: dict[str, Any]) -> int:
    """Write a run's accepted rows, or a selection of them, as training data."""
    from refloom.runs.journal import check_run, read_snapshot

    _check_file(args.file)
    _check_format_options(args, [args.format])
    check_run(args.directory)
    choice = _selection_settings(args, flags)
    ids = None if choice is None else _select_ids(args.directory, choice, flags)
    with read_snapshot(args.directory / "journal.sqlite") as journal:
        read, rubric = _read_format(args, args.format, journal, ids)
        try:
            written = export_rows(
                read,
                args.file,
                args.format,
                parts=args.split,
                limit=args.max_rows,
                random_seed=args.random_seed,
                think_tags=args.think_tags,
                rubric=rubric,
            )
        except OSError as error:
            raise InputError(
                f"{args.file}: cannot be written ({error.strerror or error})"
            ) from error
        if args.think_tags:
            _tell_of_thoughts(read())
    if args.json:
        print_json({"format": args.format, "rows": {str(p): n for p, n in written.items()}})
    for path, count in written.items():
        if not args.json:
            print_line(f"{count} rows in {path}")
        if not count:
            reason = NONE_LEFT if ids == set() else EMPTY_REASONS.get(args.format, NO_ROW)
            if args.split and sum(written.values()):
                reason = "there are too few seeds"
            sys.stderr.write(f"{path} is empty: {reason}\n")
    return 0


def _tell_of_thoughts(records: Iterable[str]) -> None:
    """Say how many rows have thoughts that cannot stand between tags."""
    thoughtful = (record for record in map(loads, records) if record.get("reasoning"))
    closing = sum(not has_taggable_thoughts(record) for record in thoughtful)
    if closing:
        sys.stderr.write(f"{closing} rows without their thoughts: these hold a closing tag\n")


def _check_file(path: Path) -> None:
    """Raise `InputError` for a file that cannot be written, before anything is paid."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{path}: exports are written as .jsonl or .parquet; name it so")
    if path.is_dir():
        raise InputError(f"{path}: cannot be written (is a directory)")
    if not os.access(path.parent, os.W_OK):
        reason = "is not writable" if path.parent.is_dir() else "is not a directory"
        raise InputError(f"{path}: cannot be written ({path.parent} {reason})")


def _accepted(journal: sqlite3.Connection, ids: set[str] | None) -> Iterator[str]:
    """The accepted records, or the selected ones of them, in slot order."""
    from refloom.runs.journal import iter_records

    for line in iter_records(journal, "accepted"):
        if ids is None or loads(line)["id"] in ids:
            yield line


def push(args: Namespace, flags: dict[str, Any]) -> int:
    """Publish a run's accepted rows with its card on the Hugging Face hub."""
    from refloom.data.hub import check_repo_id, push_folder
    from refloom.runs.journal import check_run, read_snapshot
    from refloom.runs.outputs import card_text, read_status, refresh_counts

    check_repo_id(args.repo_id)
    _check_format_options(args, args.format or ["messages"])
    check_run(args.directory)
    status = read_status(args.directory)
    if not status.keys() >= CARD_NEEDS or "references" not in status["reading"]:
        raise InputError(
            f"{args.directory / 'run.json'}: is missing or damaged; run the same command again"
        )
    with (
        read_snapshot(args.directory / "journal.sqlite") as journal,
        tempfile.TemporaryDirectory() as folder,
    ):
        status = refresh_counts(status, journal)
        contaminated = status["counts"]["contaminated"]
        if contaminated and not args.despite_contamination:
            raise InputError(
                f"{args.directory}: {contaminated} samples held a benchmark's prompt. They are not "
                "among the rows, but their seeds were: look at rejected.jsonl, then give "
                "--despite-contamination"
            )
        rows, configs = _write_formats(args, journal, Path(folder))
        text = card_text(journal, status, title=args.repo_id, configs=configs, rows=rows)
        if args.dry_run:
            if args.json:
                print_json({"repo_id": args.repo_id, "rows": rows, "card": text})
            else:
                print_line(text)
            return 0
        (Path(folder) / "README.md").write_text(text, encoding="utf-8")
        address, new = push_folder(Path(folder), args.repo_id, private=not args.public)
    visibility = "visibility unchanged"
    if new:
        visibility = "public" if args.public else "private"
    if args.json:
        print_json({"address": address, "visibility": visibility, "rows": rows})
        return 0
    print_line(
        f"{address} ({visibility}): " + ", ".join(f"{n} rows of {name}" for name, n in rows.items())
    )
    return 0


def _write_formats(
    args: Namespace, journal: sqlite3.Connection, folder: Path
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Write the data files of each format; their row counts, and the configs for the hub."""
    rows: dict[str, int] = {}
    configs: list[dict[str, Any]] = []
    parts = args.split or {"train": 1.0}
    for format_ in dict.fromkeys(args.format or ["messages"]):
        (folder / format_).mkdir()
        read, rubric = _read_format(args, format_, journal)
        written = export_rows(
            read,
            folder / format_ / "rows.parquet",
            format_,
            parts=parts,
            random_seed=args.random_seed,
            think_tags=args.think_tags,
            rubric=rubric,
        )
        if not any(written.values()):
            sys.stderr.write(f"{format_}: left out, {EMPTY_REASONS.get(format_, NO_ROW)}\n")
            shutil.rmtree(folder / format_)
            continue
        # Files with the criteria that are held out come after the others, a part each.
        files = list(written)
        for start in range(0, len(files), len(parts)):
            filled = [
                {"split": name, "path": f"{format_}/{path.name}"}
                for name, path in zip(parts, files[start : start + len(parts)], strict=True)
                if written[path]
            ]
            config = f"{format_}_heldout" if start else format_
            first = {} if configs else {"default": True}
            configs.append({"config_name": config, "data_files": filled, **first})
            rows[config] = sum(written[path] for path in files[start : start + len(parts)])
    if not configs:
        raise InputError(f"{args.directory}: there are no rows to publish")
    return rows, configs
