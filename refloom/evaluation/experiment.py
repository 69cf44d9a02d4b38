"""An experiment: the same run in several feedback arms, over one journal, and its comparison."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from nodes.context import Feedback
from nodes.llm import Complete
from refloom.data.write import replace_lines
from refloom.errors import InputError, JournalError
from refloom.evaluation.compare import arm_of, compared
from refloom.runs.cost import Prices
from refloom.runs.journal import Journal, is_experiment
from refloom.settings import Settings

BASE = "reference"
ARMS: tuple[str, ...] = get_args(Feedback)


def arms_of(text: str) -> tuple[str, ...]:
    """The arms named in text such as `reference,sample`, the one all are compared with first.

    It is added where it is not named. Raises `InputError` for a name there is none of.

    >>> arms_of("none, sample")
    ('reference', 'none', 'sample')
    """
    named = [name.strip() for name in text.split(",") if name.strip()]
    for name in named:
        if name not in ARMS:
            raise InputError(f"--arms: there is no arm {name!r}; there are {', '.join(ARMS)}")
    others = [name for name in dict.fromkeys(named) if name != BASE]
    if not others:
        raise InputError(f"--arms: name at least one arm beside {BASE}: {', '.join(ARMS)}")
    return (BASE, *others)


def settings_of(settings: Settings, arm: str, out: Path) -> Settings:
    """The settings of one arm: instructions and drafts are those of every other, feedback is not.

    All arms share one memory, so that each reference is learned from once.
    """
    if settings.pipeline != "loop":
        raise InputError("an experiment compares feedback arms; --preset refed has none")
    if settings.review != "never":
        raise InputError("--review: an experiment compares what models make; leave it out")
    memory = settings.memory or out / "memory"
    return settings.model_copy(update={"feedback": arm, "paired": True, "memory": memory})


class Shared:
    """The experiment's directory while it runs: one journal that all arms pay into."""

    def __init__(self, out: Path, settings: Settings) -> None:
        """Open or make it. Raises `JournalError` when it holds something else. Blocks."""
        self.journal = Journal(out)
        try:
            if self.journal.meta("settings") is not None:
                raise JournalError(f"{out}: holds a run, not an experiment; give another --out")
            prices = Prices.load(settings.prices)
            models = {settings.model, settings.judge}
            priced = {m: asdict(p) for m in models if (p := prices.of(m)) is not None}
            asyncio.run(self._begin(priced))
        except BaseException:
            self.journal.close()
            raise

    async def _begin(self, prices: dict[str, Any]) -> None:
        await self.journal.put_meta("experiment", True)
        await self.journal.put_meta("prices", prices)

    def close(self) -> None:
        """Let go of the directory. Blocks."""
        self.journal.close()


def home_of(directories: Sequence[Path]) -> Path:
    """Whose journal keeps what a judge says of these runs: their experiment's, else the first's."""
    parents = {directory.resolve().parent for directory in directories}
    if len(parents) == 1 and is_experiment(parent := parents.pop()):
        return parent
    return directories[0]


def arms_in(directory: Path) -> list[Path]:
    """The run directories of an experiment, the one all are compared with first. Blocks."""
    made = [directory / arm for arm in ARMS if (directory / arm / "journal.sqlite").is_file()]
    if not made:
        raise InputError(f"{directory}: holds no arm of an experiment yet")
    return made


async def compare_arms(
    out: Path,
    arms: Sequence[str],
    settings: Settings,
    *,
    complete: Complete | None = None,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Compare every arm with `reference` and write `compare.json`; see `compared`."""
    read = [await asyncio.to_thread(arm_of, arm, out / arm) for arm in arms]
    base = list(arms).index(BASE)
    pairs = [(i, base) for i in range(len(arms)) if i != base]
    asked = compared(read, pairs, out, settings, strict=False, complete=complete, told=told)
    found = await asked
    lines = [json.dumps(found, indent=2, ensure_ascii=False)]
    await asyncio.to_thread(replace_lines, out / "compare.json", lines)
    return found
