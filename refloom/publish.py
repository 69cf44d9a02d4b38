"""The commands that give a run's rows away: export, push."""

from __future__ import annotations

import shutil
import sys
import tempfile
from argparse import ArgumentTypeError, Namespace
from functools import partial
from pathlib import Path
from typing import Any

from refloom.data.rows import BadFile
from refloom.shelf import say

WHY_NONE = {
    "preference": "no accepted row had an earlier attempt that failed a `must` criterion",
}
NO_ROW = "no row was accepted"


def parts(text: str) -> dict[str, float]:
    """Shares of an export, for argparse."""
    from refloom.data.split import shares

    try:
        return shares(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{error}; give train=0.95,validation=0.05") from error


def export(given: Namespace, flags: dict[str, Any]) -> int:
    """Write a run's accepted rows as training data."""
    from refloom.data.export import export as write
    from refloom.runs.kept import records

    if given.file.suffix not in (".jsonl", ".parquet"):
        raise BadFile(f"{given.file}: exports are written as .jsonl or .parquet; name it so")
    journal = given.directory / "journal.sqlite"
    # Where there is no run, that is to be said before any file is begun.
    next(records(journal, "accepted"), None)
    try:
        written = write(
            partial(records, journal, "accepted"),
            given.file,
            given.format,
            parts=given.split,
            most=given.max_rows,
            random_seed=given.random_seed,
        )
    except OSError as error:
        raise BadFile(f"{given.file}: cannot be written ({error.strerror or error})") from error
    for path, count in written.items():
        say(f"{count} rows in {path}")
        if not count:
            why = WHY_NONE.get(given.format, NO_ROW)
            why = "there are too few seeds" if given.split and sum(written.values()) else why
            sys.stderr.write(f"{path} is empty: {why}\n")
    return 0


def push(given: Namespace, flags: dict[str, Any]) -> int:
    """Publish a run's accepted rows with its card on the Hugging Face hub."""
    from refloom.data.push import push as upload
    from refloom.runs.files import card_of, status_of

    said = status_of(given.directory)
    if "reading" not in said:
        raise BadFile(f"{given.directory / 'run.json'}: is missing or damaged; run it once more")
    found = said["counts"]["contaminated"]
    if found and not given.despite_contamination:
        raise BadFile(
            f"{given.directory}: {found} samples held a benchmark's prompt. They are not among the "
            "rows, but their seeds were: look at rejected.jsonl, then give --despite-contamination"
        )
    if given.dry_run:
        say(card_of(given.directory, said, title=given.repo_id))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        configs = _written(given, Path(folder))
        text = card_of(given.directory, said, title=given.repo_id, configs=configs)
        (Path(folder) / "README.md").write_text(text, encoding="utf-8")
        address = upload(Path(folder), given.repo_id, private=not given.public)
    say(f"{address} ({'public' if given.public else 'private'}): {said['counts']['accepted']} rows")
    return 0


def _written(given: Namespace, folder: Path) -> list[dict[str, Any]]:
    """Write the data files of each format; what the hub is to know of them."""
    from refloom.data.export import export as write
    from refloom.runs.kept import records

    read = partial(records, given.directory / "journal.sqlite", "accepted")
    configs: list[dict[str, Any]] = []
    for format_ in given.format or ["messages"]:
        (folder / format_).mkdir()
        stem = folder / format_ / "rows.parquet"
        parts = given.split or {"train": 1.0}
        written = write(read, stem, format_, parts=parts, random_seed=given.random_seed)
        filled = [(name, path) for name, path in zip(parts, written, strict=True) if written[path]]
        if not filled:
            sys.stderr.write(f"{format_}: left out, {WHY_NONE.get(format_, NO_ROW)}\n")
            shutil.rmtree(folder / format_)
            continue
        configs.append(
            {
                "config_name": format_,
                "data_files": [
                    {"split": name, "path": f"{format_}/{path.name}"} for name, path in filled
                ],
                **({} if configs else {"default": True}),
            }
        )
    if not configs:
        raise BadFile(f"{given.directory}: there is no row to publish")
    return configs
