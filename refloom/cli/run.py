"""What each command of `refloom` does; the exit status is what they return."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from argparse import Namespace
from functools import partial
from importlib.resources import as_file, files
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refloom.cli.index import name_left_out, say
from refloom.data.read import Report, Source, references_of, seeds_of, told
from refloom.settings import Settings, load

if TYPE_CHECKING:
    from refloom.runs.journal import Journal
    from refloom.runs.outputs import Summary
    from refloom.runs.run import Tools

# How many references a dry run reads the lengths of.
DRY_RUN_SAMPLE = 1000
# A run that is stopped raises what stopped it.
EXIT = {"done": 0, "short": 3, "interrupted": 130}


def read(given: Namespace, flags: dict[str, Any]) -> tuple[Settings, Source, Source | None]:
    """The settings of a run, its references and its seeds, as the command line names them."""
    settings = load(flags, given.config)
    skip = given.skip_bad_lines
    references = references_of(given.references, settings, skip_bad_lines=skip)
    seeds = None
    if given.seeds is not None:
        seeds = seeds_of(given.seeds, settings, skip_bad_lines=skip)
    return settings, references, seeds


def run(given: Namespace, flags: dict[str, Any]) -> int:
    """Make rows from references and seeds into a directory, or go on with what is there."""
    from refloom.runs.client import Addresses
    from refloom.runs.event_log import log_to

    settings, references, seeds = read(given, flags)
    if given.dry_run:
        return dry_run(settings, references, seeds)
    with log_to(given.log_file, Addresses(settings).keys()):
        return make(settings, references, seeds, given.out, show_rows=False)


def demo(given: Namespace, flags: dict[str, Any]) -> int:
    """Make rows from the bundled references and seeds on the embedded model."""
    settings = Settings(
        model="local",
        references_per_seed=1,
        max_criteria=3,
        max_attempts=2,
        limit=None if given.all else 4,
    )
    folder = files("refloom").joinpath("resources/demo")
    with as_file(folder / "references.jsonl") as references, as_file(folder / "seeds.jsonl") as s:
        sys.stderr.write(
            "refloom demo: the embedded model writes and judges on this machine; no key is used.\n"
            "It is small: this shows the whole way of a row, not rows worth training on.\n"
        )
        status = make(
            settings,
            references_of(references, settings),
            seeds_of(s, settings),
            given.out,
            show_rows=True,
        )
    with (given.out / "accepted.jsonl").open(encoding="utf-8") as file:
        for _, line in zip(range(3), file, strict=False):
            row = json.loads(line)
            say(f"> {row['instruction']}\n{row['response']}\n")
    return status


def make(
    settings: Settings,
    references: Source,
    seeds: Source | None,
    out: Path,
    *,
    show_rows: bool,
    shared: Journal | None = None,
    tools: Tools | None = None,
) -> int:
    """Run with a display, until it ends or is stopped; the exit status.

    `shared`, `tools`: see `refloom.runs.run.Run`.
    """
    from refloom.runs.progress import Progress
    from refloom.runs.run import Run, Tools

    session = Run(settings, references, seeds, out, tools=tools or Tools(), shared=shared)
    try:
        if settings.quiet:
            asyncio.run(_until_signalled(session))
        else:
            session.on_begin = partial(_say_what_was_read, references, seeds)
            progress = Progress(show_rows=show_rows)
            session.on_record, session.on_fault = progress, progress.fault
            with progress.begin(session.look):
                asyncio.run(_until_signalled(session))
    except asyncio.CancelledError:
        sys.stderr.write(f"stopped; what was paid for is in {out / 'journal.sqlite'}\n")
        return EXIT["interrupted"]
    finally:
        if session.summary is not None and session.summary.counts:
            _sum_up(session.summary, out)
    assert session.summary is not None
    return EXIT[session.summary.status]


def _told(
    references: Source, seeds: Source | None, reports: tuple[Report, Report], **more: str
) -> list[str]:
    """What was read, in lines; references that are seeds as well are told of once."""
    first = references.takes_first
    lines = told("references", references.name, reports[0], takes_first=first, **more)
    if seeds is not None:
        lines += told("seeds", seeds.name, reports[1], takes_first=True, **more)
    return lines


def _say_what_was_read(references: Source, seeds: Source | None, summary: Summary) -> None:
    lines = _told(references, seeds, (summary.references, summary.seeds))
    sys.stderr.write("\n".join(lines) + "\n")


def _sum_up(summary: Summary, out: Path) -> None:
    counts, cost = summary.counts, summary.more["cost_usd"]
    say(
        f"{summary.status}: {counts['accepted']} accepted, {counts['rejected']} rejected, "
        f"{counts['failed']} failed, {counts['pending']} pending, {counts['duplicates']} "
        f"duplicates, {summary.more['calls']['paid']} calls paid"
        + (f" (${cost:.4f})" if cost else "")
        + f", in {summary.seconds:.0f} s"
    )
    usage = summary.more["usage"]
    if usage["cached_tokens"]:
        share = usage["cached_tokens"] / usage["prompt_tokens"]
        say(f"{share:.0%} of {usage['prompt_tokens']:,} prompt tokens were in the endpoint's cache")
    if (out / "accepted.jsonl").is_file():
        say(f"rows: {out / 'accepted.jsonl'}")
    if summary.settings.review != "never" and counts["pending"]:
        say(f"{counts['pending']} wait for a person: `refloom review {out}` shows them")
    if counts["failed"]:
        say(f"why samples failed: {out / 'failed.jsonl'}")


def dry_run(settings: Settings, references: Source, seeds: Source | None) -> int:
    """Say what a run would be and cost, without a call and without writing anything."""
    from refloom.runs.cost import Prices
    from refloom.runs.estimate import estimate, format_estimate

    prices = Prices.load(settings.prices)
    report = references.scan()
    own = seeds or Source(references, as_reference=False, limit=settings.limit)
    counted = own.scan()
    reports = (report, counted)
    for line in _told(references, seeds, reports, listed=""):
        say(line)
    for one in reports:
        name_left_out(one)
    estimated = asyncio.run(
        estimate(
            settings,
            report,
            counted,
            list(islice(references, DRY_RUN_SAMPLE)),
            prices,
            seed_texts=[seed["instruction"] for seed in islice(own, DRY_RUN_SAMPLE)],
        )
    )
    say(format_estimate(estimated))
    return 0


async def _until_signalled(session: Any) -> Any:
    """Run; a first Ctrl-C or SIGTERM lets what is in flight end, a second one stops at once."""
    work = asyncio.create_task(session.go())
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            sys.stderr.write("stopping: what is in flight is finished; once more to stop now\n")
            session.stop()
        else:
            work.cancel()

    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, stop)
    return await work


def status(given: Namespace, flags: dict[str, Any]) -> int:
    """Say how a run stands, whether it is running, ended, or was killed."""
    from refloom.evaluation.experiment import arm_directories
    from refloom.runs.journal import is_experiment
    from refloom.runs.outputs import status_of

    if is_experiment(given.directory):
        arms = {path.name: status_of(path) for path in arm_directories(given.directory)}
        if given.json:
            say(json.dumps({"arms": arms}, indent=2, ensure_ascii=False))
            return 0
        for name, said in arms.items():
            say(f"arm {name}")
            _say_status(said)
        return 0
    said = status_of(given.directory)
    if given.json:
        say(json.dumps(said, indent=2, ensure_ascii=False))
        return 0
    _say_status(said)
    return 0


def _say_status(said: dict[str, Any]) -> None:
    say(said["status"] + (f" (pid {said['pid']})" if "pid" in said else ""))
    for group in ("counts", "criteria", "calls", "usage"):
        pairs = (f"{k} {v}" for k, v in said.get(group, {}).items() if k != "by_stage")
        say(f"  {group}: " + ", ".join(pairs))
    stages, costs = said["calls"].get("by_stage", {}), said["cost_by_stage"]
    each = (f"{k} {v}{_dollars(costs.get(k))}" for k, v in stages.items())
    say("  calls by stage: " + (", ".join(each) or "none"))
    if said["cost_usd"] is None:
        say("  cost: unknown; there is no price for a model (--prices FILE gives it one)")
    else:
        say(f"  cost: ${said['cost_usd']:.4f}")
    if said.get("stopped"):
        say(f"  stopped: {said['stopped']}")


def _dollars(cost: float | None) -> str:
    return f" (${cost:.4f})" if cost else ""
