"""The commands that give a run's rows away: export, push."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sqlite3
import sys
import tempfile
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nodes.llm.fast_json import loads
from refloom.cli import options as values
from refloom.cli.index import NAMED, say
from refloom.errors import InputError
from refloom.settings import ASKING

# MERGED refloom~choosing
# Which of a run's accepted samples `export` writes: its flags, and what they come to.
if TYPE_CHECKING:
    from refloom.evaluation.selection import SelectionSettings

# A comparison is always in words, and keeps the run's random seed: see `chosen`.
JUDGING = tuple(name for name in ASKING if name not in ("judge_method", "random_seed", "quiet"))
SETTINGS = ("quiet", "embedding_model", *JUDGING)
THRESHOLD = 0.7


def add_choosing(parser: argparse.ArgumentParser) -> Any:
    """Filters and sizes, in a group that `SETTINGS` belong to as well."""
    group = parser.add_argument_group(
        "choosing among the accepted samples (the judge is the run's own if not said otherwise)"
    )
    group.add_argument(
        "--filter",
        action="append",
        choices=("judge", "rouge", "random"),
        help="may be given several times, each works on what the one before it left. judge: asks "
        "a model, and drops a refined response that it does not find better than its draft, "
        "whichever stands first; rouge: drops an instruction too like one that was taken before; "
        "random: takes any. Samples come in an order of --random-seed",
    )
    group.add_argument(
        "--filter-threshold",
        type=values.share,
        metavar="R",
        help=f"of rouge: the highest ROUGE-L F1 of two instructions (default: {THRESHOLD}; a run "
        "has dropped what is over its own --novelty-threshold)",
    )
    group.add_argument(
        "--size",
        type=values.count,
        metavar="N",
        help="choose N samples; those of a smaller N are among them",
    )
    group.add_argument(
        "--sample",
        choices=("diverse",),
        help="diverse: of what the filters left, the --size samples that cover all best "
        "(k-centre over embeddings of the instructions)",
    )
    return group


def choice_of(given: Namespace, flags: dict[str, Any]) -> SelectionSettings | None:
    """What is to be chosen; None: everything. Raises `InputError` for flags that do not fit."""
    filters, diverse = tuple(given.filter or ()), given.sample == "diverse"
    random, size = "random" in filters, given.size is not None
    wrong = {
        "--filter random and --sample diverse: each chooses --size samples; give one": (
            random and diverse
        ),
        "--filter random: give --size N, how many to choose": random and not size,
        "--sample diverse: give --size N, how many to choose": diverse and not size,
        "--size: give --filter or --sample, how to choose (--max-rows N takes the first N rows)": (
            size and not filters and not diverse
        ),
        "--filter-threshold: is for --filter rouge": (
            given.filter_threshold is not None and "rouge" not in filters
        ),
        "--embedding-model: is for --sample diverse": "embedding_model" in flags and not diverse,
    }
    for name in JUDGING:
        why = f"--{name.replace('_', '-')}: is for --filter judge"
        wrong[why] = name in flags and "judge" not in filters
    for why, holds in wrong.items():
        if holds:
            raise InputError(why)
    if not filters and not diverse:
        return None
    from refloom.evaluation.selection import SelectionSettings

    threshold = given.filter_threshold or THRESHOLD
    return SelectionSettings(filters, threshold, given.size, diverse, given.random_seed)


def chosen(directory: Path, choice: SelectionSettings, flags: dict[str, Any]) -> set[str]:
    """The ids of the samples that are chosen; says on stderr how.

    Raises what `refloom.evaluation.selection.select` raises.
    """
    from refloom.evaluation.judging import judge_settings
    from refloom.evaluation.selection import select_samples

    # Another draw of samples is no reason to pay for the same comparisons again.
    own = {name: value for name, value in flags.items() if name != "random_seed"}
    settings = judge_settings(directory, own)
    found = asyncio.run(select_samples(directory, choice, settings))
    missed = found.warnings[:NAMED]
    if len(found.warnings) > NAMED:
        missed.append(f"{len(found.warnings) - NAMED} more lines like these")
    told = [] if settings.quiet else found.summary
    sys.stderr.writelines(f"{line}\n" for line in [*told, *missed])
    return found.ids


WHY_NONE = {
    "preference": "no accepted row had an earlier attempt that failed a `must` criterion",
    "refed": "no accepted row was made with --preset refed",
}
NO_ROW = "no row was accepted"
NONE_LEFT = "no sample passed the filters"
# What run.json has once a session of a run has begun.
CARD_NEEDS = {"settings", "reading", "prompts", "versions", "fingerprint", "written"}


def parts(text: str) -> dict[str, float]:
    """Shares of an export, for argparse."""
    from refloom.data.export import shares

    try:
        return shares(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{error}; give train=0.95,validation=0.05") from error


def export(given: Namespace, flags: dict[str, Any]) -> int:
    """Write a run's accepted rows, or a choice of them, as training data."""
    from refloom.data.export import export as write
    from refloom.runs.journal import check_run, snapshot

    _check_file(given.file)
    check_run(given.directory)
    choice = choice_of(given, flags)
    ids = None if choice is None else chosen(given.directory, choice, flags)
    with snapshot(given.directory / "journal.sqlite") as journal:
        try:
            written = write(
                partial(_accepted, journal, ids),
                given.file,
                given.format,
                parts=given.split,
                most=given.max_rows,
                random_seed=given.random_seed,
            )
        except OSError as error:
            raise InputError(
                f"{given.file}: cannot be written ({error.strerror or error})"
            ) from error
    for path, count in written.items():
        say(f"{count} rows in {path}")
        if not count:
            why = NONE_LEFT if ids == set() else WHY_NONE.get(given.format, NO_ROW)
            why = "there are too few seeds" if given.split and sum(written.values()) else why
            sys.stderr.write(f"{path} is empty: {why}\n")
    return 0


def _check_file(path: Path) -> None:
    """Refuse before anything is paid for what could not be written in the end."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{path}: exports are written as .jsonl or .parquet; name it so")
    if path.is_dir():
        raise InputError(f"{path}: cannot be written (is a directory)")
    if not os.access(path.parent, os.W_OK):
        why = "may not be written to" if path.parent.is_dir() else "is no directory"
        raise InputError(f"{path}: cannot be written ({path.parent} {why})")


def _accepted(journal: sqlite3.Connection, ids: set[str] | None) -> Iterator[str]:
    """The accepted records, or those of them that were chosen, in slot order."""
    from refloom.runs.journal import records_in

    for line in records_in(journal, "accepted"):
        if ids is None or loads(line)["id"] in ids:
            yield line


def push(given: Namespace, flags: dict[str, Any]) -> int:
    """Publish a run's accepted rows with its card on the Hugging Face hub."""
    from refloom.data.hub import check_name
    from refloom.data.hub import push as upload
    from refloom.runs.journal import check_run, snapshot
    from refloom.runs.outputs import card_of, status_of, up_to_date

    check_name(given.repo_id)
    check_run(given.directory)
    said = status_of(given.directory)
    if not said.keys() >= CARD_NEEDS or "references" not in said["reading"]:
        raise InputError(f"{given.directory / 'run.json'}: is missing or damaged; run it once more")
    with (
        snapshot(given.directory / "journal.sqlite") as journal,
        tempfile.TemporaryDirectory() as folder,
    ):
        said = up_to_date(said, journal)
        _check_clean(given, said["counts"]["contaminated"])
        rows, configs = _written(given, journal, Path(folder))
        text = card_of(journal, said, title=given.repo_id, configs=configs, rows=rows)
        if given.dry_run:
            say(text)
            return 0
        (Path(folder) / "README.md").write_text(text, encoding="utf-8")
        address, new = upload(Path(folder), given.repo_id, private=not given.public)
    kind = ("public" if given.public else "private") if new else "was there, and is as it was"
    say(f"{address} ({kind}): " + ", ".join(f"{n} rows of {name}" for name, n in rows.items()))
    return 0


def _check_clean(given: Namespace, found: int) -> None:
    if found and not given.despite_contamination:
        raise InputError(
            f"{given.directory}: {found} samples held a benchmark's prompt. They are not among the "
            "rows, but their seeds were: look at rejected.jsonl, then give --despite-contamination"
        )


def _written(
    given: Namespace, journal: sqlite3.Connection, folder: Path
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Write the data files of each format: how many rows each has, what the hub is to know."""
    from refloom.data.export import export as write
    from refloom.runs.journal import records_in

    read = partial(records_in, journal, "accepted")
    rows: dict[str, int] = {}
    configs: list[dict[str, Any]] = []
    for format_ in dict.fromkeys(given.format or ["messages"]):
        (folder / format_).mkdir()
        stem = folder / format_ / "rows.parquet"
        parts = given.split or {"train": 1.0}
        written = write(read, stem, format_, parts=parts, random_seed=given.random_seed)
        filled = [(name, path) for name, path in zip(parts, written, strict=True) if written[path]]
        if not filled:
            sys.stderr.write(f"{format_}: left out, {WHY_NONE.get(format_, NO_ROW)}\n")
            shutil.rmtree(folder / format_)
            continue
        files = [{"split": name, "path": f"{format_}/{path.name}"} for name, path in filled]
        first = {} if configs else {"default": True}
        configs.append({"config_name": format_, "data_files": files, **first})
        rows[format_] = sum(written.values())
    if not configs:
        raise InputError(f"{given.directory}: there is no row to publish")
    return rows, configs
