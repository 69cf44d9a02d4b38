"""The command that runs feedback arms over the same drafts: experiment."""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from refloom.shelf import say

if TYPE_CHECKING:
    from refloom.settings import Settings


def experiment(given: Namespace, flags: dict[str, Any]) -> int:
    """Run several feedback arms over the same instructions and drafts, and compare them."""
    from memory.embed import Embedder
    from refloom import commands
    from refloom.evaluation.experiment import Shared, arms_of, settings_of
    from refloom.runs.client import Addresses
    from refloom.runs.event_log import log_to
    from refloom.runs.run import Tools

    settings, references, seeds = commands.read(given, flags)
    arms = arms_of(given.arms)
    each = {arm: settings_of(settings, arm, given.out) for arm in arms}
    if given.dry_run:
        return _dry_run(each, references, seeds)
    _check_arms(each.values(), references, seeds)
    status, tools = 0, Tools(embed=Embedder(settings.embedding_model))
    with log_to(given.log_file, Addresses(settings).keys()):
        shared = Shared(given.out, settings)
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
    from refloom.evaluation.compare import shown
    from refloom.evaluation.experiment import compare_arms
    from refloom.evaluation.judging import telling

    told = telling("compared", settings.quiet)
    found = asyncio.run(compare_arms(given.out, arms, settings, told=told))
    say(shown(found))
    say(f"\n{given.out / 'compare.json'}; `refloom report {given.out}` makes a page of it")
    return found


def _dry_run(each: dict[str, Settings], references: Any, seeds: Any) -> int:
    from refloom import commands

    for arm, own in each.items():
        say(f"\narm {arm}; what arms share is counted in each, and paid once")
        commands.dry_run(own, references, seeds)
    return 0
