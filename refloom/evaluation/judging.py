"""Asking a judge about rows that are made: calls kept in a run's journal, limits, budget."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from nodes.llm import Call, Complete, ProviderStopped
from nodes.llm.endpoint import Connection
from refloom.runs.client import Addresses, Interrupted, JournaledCalls, Limits
from refloom.runs.cost import Prices, check_priced
from refloom.runs.journal import Journal, KeptCalls
from refloom.runs.outputs import status_of, used_before
from refloom.settings import Settings, embedded, load

# What measuring takes from the run it measures unless it is told otherwise.
OF_THE_RUN = (
    *("model", "judge_model", "judge_method", "base_url", "judge_base_url", "embedding_model"),
    *("random_seed", "judge_votes", "should_share", "concurrency", "timeout", "memory"),
)
ELSEWHERE = {"base_url": ("OPENAI_BASE_URL",)}
TOLD_EVERY_S = 5.0
# The stage of calls that put a judge to the test.
CHECK = "judge-check"

T = TypeVar("T")
R = TypeVar("R")


def settings_for(directory: Path, flags: Mapping[str, Any]) -> Settings:
    """The settings to measure a run with: what is given, the environment's, then the run's own.

    Raises `JournalError` when there is no run, and what `refloom.settings.load` raises. Blocks.
    """
    return settings_over(status_of(directory).get("settings", {}), flags)


def settings_over(own: Mapping[str, Any], flags: Mapping[str, Any]) -> Settings:
    """The same over the settings that a run.json has."""
    given = dict(flags)
    for name in OF_THE_RUN:
        elsewhere = (f"REFLOOM_{name.upper()}", *ELSEWHERE.get(name, ()))
        known = name in given or any(os.environ.get(variable) for variable in elsewhere)
        if not known and own.get(name) is not None:
            given[name] = own[name]
    return load(given)


@asynccontextmanager
async def asking(
    directory: Path,
    settings: Settings,
    complete: Complete | None = None,
    kept_as: str | None = None,
) -> AsyncIterator[JournaledCalls]:
    """The calls of a judge, each kept in the journal of `directory` before its answer is used.

    What was asked before, here or in the run that `reuse` names, is not paid for again. `complete`
    stands in for the endpoint; `kept_as` is the stage that the calls count under. Raises
    `JournalError` while another process is at work there, `InputError` for a cap without a price,
    and what stopped the calls: `ProviderStopped`, `BudgetSpent`.
    """
    addresses, prices = Addresses(settings), Prices.load(settings.prices)
    check_priced(prices, [settings.judge], settings.max_cost)
    if complete is None and not embedded(settings.judge):
        await addresses.resolve(settings.judge, True)
    journal = await asyncio.to_thread(Journal, directory)
    journal.kept_as = kept_as
    elsewhere: KeptCalls | None = None
    try:
        if settings.reuse is not None:
            elsewhere = await asyncio.to_thread(KeptCalls, settings.reuse)
        await _keep_prices(journal, settings, prices)
        _, cost, tokens = await asyncio.to_thread(used_before, journal)
        limits = Limits.of(settings, prices, cost, tokens)
        given = (settings, addresses, prices, limits, complete)
        async with _calls(journal, elsewhere, *given) as calls:
            yield calls
    finally:
        if elsewhere is not None:
            elsewhere.close()
        await asyncio.to_thread(journal.close)


@asynccontextmanager
async def _calls(
    journal: Journal,
    elsewhere: KeptCalls | None,
    settings: Settings,
    addresses: Addresses,
    prices: Prices,
    limits: Limits,
    complete: Complete | None,
) -> AsyncIterator[JournaledCalls]:
    """The calls themselves; what stops them is raised in place of their `Interrupted`."""

    def heed(call: Call, headers: Mapping[str, str]) -> None:
        limiter = limits.limiter
        limiter.heed(limiter.lane(addresses.name(call.judge), call.model), headers)

    connection = Connection(addresses.resolve, max_retries=0, heed=heed)
    calls = JournaledCalls(
        complete or connection,
        journal,
        limits,
        address=addresses.name,
        stages=dict(settings.stages),
        prices=prices,
        elsewhere=elsewhere,
    )
    try:
        yield calls
    except Interrupted as interrupted:
        raise calls.stopped_by or ProviderStopped("the calls were stopped") from interrupted
    finally:
        await calls.aclose()
        await connection.aclose()


async def _keep_prices(journal: Journal, settings: Settings, prices: Prices) -> None:
    """Let the run's own account know what this judge costs."""
    price = prices.of(settings.judge)
    if price is not None:
        kept = await asyncio.to_thread(journal.meta, "prices")
        await journal.put_meta("prices", (kept or {}) | {settings.judge: asdict(price)})


async def each(
    items: Sequence[T],
    work: Callable[[T], Awaitable[R]],
    *,
    at_once: int,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> list[R]:
    """The work on every item, in their order, so many under way at once; `told` how far it is.

    The first error ends it all.
    """
    free, done = asyncio.Semaphore(at_once), 0

    async def one(item: T) -> R:
        nonlocal done
        async with free:
            found = await work(item)
        done += 1
        told(done, len(items))
        return found

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def telling(what: str, quiet: bool) -> Callable[[int, int], None]:
    """Say on stderr every few seconds how far `what` is."""
    last = time.monotonic()

    def told(done: int, of: int) -> None:
        nonlocal last
        if not quiet and time.monotonic() - last > TOLD_EVERY_S:
            last = time.monotonic()
            sys.stderr.write(f"{what}: {done} of {of}\n")

    return told


def unique_names(directories: Iterable[Path]) -> list[str]:
    """Short names for directories: the last part where that tells them apart, else all of it."""
    given = list(directories)
    short = [path.resolve().name for path in given]
    return short if len(set(short)) == len(short) else [str(path) for path in given]
