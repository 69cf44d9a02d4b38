"""Experiments: the same run in several feedback arms over one journal, then compared."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from nodes.context import FeedbackArm
from nodes.llm import Complete
from refloom.data.write import replace_lines
from refloom.errors import InputError, JournalError
from refloom.evaluation.compare import compare_runs, read_arm
from refloom.runs.cost import Prices
from refloom.runs.journal import Journal, is_experiment
from refloom.settings import Settings

BASE_ARM = "reference"
ARMS: tuple[str, ...] = get_args(FeedbackArm)


def parse_arms(text: str) -> tuple[str, ...]:
    """Parse a list of arms such as `none,sample`; `reference` always comes first.

    Raises `InputError` for an unknown arm.

    >>> parse_arms("none, sample")
    ('reference', 'none', 'sample')
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ARMS:
            raise InputError(f"--arms: unknown arm {name!r}; the arms are {', '.join(ARMS)}")
    others = [name for name in dict.fromkeys(names) if name != BASE_ARM]
    if not others:
        raise InputError(f"--arms: name at least one arm besides {BASE_ARM}: {', '.join(ARMS)}")
    return (BASE_ARM, *others)


def arm_settings(settings: Settings, arm: str, out: Path) -> Settings:
    """The settings of one arm: arms share instructions, drafts and memory, feedback differs."""
    if settings.pipeline != "loop":
        raise InputError("an experiment compares feedback arms; --preset refed has none")
    if settings.review != "never":
        raise InputError(
            "--review cannot be used in an experiment, which compares what models write"
        )
    if settings.reasoning:
        raise InputError(
            "--reasoning cannot be used in an experiment: a bare answer sees nothing of its arm, "
            "so all arms would get the same text"
        )
    memory = settings.memory or out / "memory"
    return settings.model_copy(update={"feedback": arm, "paired": True, "memory": memory})


@contextmanager
def open_experiment(out: Path, settings: Settings) -> Iterator[Journal]:
    """The journal of an experiment, which all arms share; it is made if there is none. Blocks.

    Raises `JournalError` if `out` holds a run.
    """
    journal = Journal(out)
    try:
        if journal.meta("settings") is not None:
            raise JournalError(f"{out}: holds a run, not an experiment; give another --out")
        prices = Prices.load(settings.prices)
        priced = {m: asdict(p) for m in settings.models if (p := prices.get(m)) is not None}
        for name, value in (("experiment", True), ("prices", priced)):
            asyncio.run(journal.put_meta(name, value))
        yield journal
    finally:
        journal.close()


def judging_directory(directories: Sequence[Path]) -> Path:
    """Whose journal gets a comparison's calls: the experiment's, else the first run's."""
    parents = {directory.resolve().parent for directory in directories}
    if len(parents) == 1 and is_experiment(parent := parents.pop()):
        return parent
    return directories[0]


def arm_directories(directory: Path) -> list[Path]:
    """The run directories of an experiment, `reference` first. Blocks."""
    directories = [
        directory / arm for arm in ARMS if (directory / arm / "journal.sqlite").is_file()
    ]
    if not directories:
        raise InputError(f"{directory}: no arm of the experiment has started yet")
    return directories


async def compare_arms(
    out: Path,
    arms: Sequence[str],
    settings: Settings,
    *,
    complete: Complete | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Compare every arm with `reference` and write `compare.json`; see `compare_runs`."""
    runs = [await asyncio.to_thread(read_arm, arm, out / arm) for arm in arms]
    base = list(arms).index(BASE_ARM)
    pairs = [(i, base) for i in range(len(arms)) if i != base]
    comparison = await compare_runs(
        runs, pairs, out, settings, strict=False, complete=complete, on_progress=on_progress
    )
    lines = [json.dumps(comparison, indent=2, ensure_ascii=False)]
    await asyncio.to_thread(replace_lines, out / "compare.json", lines)
    return comparison
