"""Which of a run's accepted samples `export` writes: its flags, and what they come to."""

from __future__ import annotations

import argparse
import asyncio
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refloom import values
from refloom.errors import InputError
from refloom.settings import ASKING
from refloom.shelf import NAMED

if TYPE_CHECKING:
    from refloom.evaluation.selection import Choice

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


def choice_of(given: Namespace, flags: dict[str, Any]) -> Choice | None:
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
    from refloom.evaluation.selection import Choice

    threshold = given.filter_threshold or THRESHOLD
    return Choice(filters, threshold, given.size, diverse, given.random_seed)


def chosen(directory: Path, choice: Choice, flags: dict[str, Any]) -> set[str]:
    """The ids of the samples that are chosen; says on stderr how.

    Raises what `refloom.evaluation.selection.select` raises.
    """
    from refloom.evaluation.judging import settings_for
    from refloom.evaluation.selection import select

    # Another draw of samples is no reason to pay for the same comparisons again.
    own = {name: value for name, value in flags.items() if name != "random_seed"}
    settings = settings_for(directory, own)
    found = asyncio.run(select(directory, choice, settings))
    missed = found.missed[:NAMED]
    if len(found.missed) > NAMED:
        missed.append(f"{len(found.missed) - NAMED} more lines like these")
    told = [] if settings.quiet else found.told
    sys.stderr.writelines(f"{line}\n" for line in [*told, *missed])
    return found.ids
