"""Judge sessions over a finished run: journaled calls, limits, budget, progress."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from nodes.llm import Complete, ProviderStopped
from nodes.llm.endpoint import OnLearned
from refloom.runs.client import CachedClient, Endpoints, FaultCallback, Interrupted, open_client
from refloom.runs.cost import Prices, check_priced
from refloom.runs.journal import FORGET_FILES, JOURNAL_NAME, Journal, ReusedCalls
from refloom.runs.outputs import prior_usage, read_status
from refloom.runs.preflight import preflight
from refloom.settings import Settings, load_settings

# Settings taken from the evaluated run unless flags or the environment give others.
RUN_SETTINGS = (
    "model",
    "judge_model",
    "judge_method",
    "base_url",
    "judge_base_url",
    "embedding_model",
    "random_seed",
    "judge_votes",
    "criteria_per_call",
    "should_share",
    "concurrency",
    "timeout",
    "service_tier",
    "memory",
)
ENVIRONMENT = {"base_url": ("OPENAI_BASE_URL",)}
PROGRESS_INTERVAL_S = 5.0
# The stage of the calls of `refloom judge-check`.
JUDGE_CHECK_STAGE = "judge-check"

T = TypeVar("T")
R = TypeVar("R")


def judge_settings(directory: Path, flags: Mapping[str, Any]) -> Settings:
    """The settings to evaluate a run with: flags, then the environment, then the run's own.

    Raises `JournalError` if there is no run, and what `load_settings` raises. Blocks.
    """
    return judge_settings_over(read_status(directory).get("settings", {}), flags)


def judge_settings_over(run_settings: Mapping[str, Any], flags: Mapping[str, Any]) -> Settings:
    """`judge_settings`, given the settings of a run.json."""
    values = dict(flags)
    for name in RUN_SETTINGS:
        variables = (f"REFLOOM_{name.upper()}", *ENVIRONMENT.get(name, ()))
        is_set = name in values or any(os.environ.get(variable) for variable in variables)
        # A jury in place of the run's judge does not take its votes.
        is_set = is_set or (name == "judge_votes" and "," in str(values.get("judge_model", "")))
        if not is_set and run_settings.get(name) is not None:
            values[name] = run_settings[name]
    return load_settings(values)


class JudgeSession(NamedTuple):
    """An open judge: its client, the journal of its calls, and the calls that it may reuse."""

    client: CachedClient
    journal: Journal
    reused: ReusedCalls | None


@asynccontextmanager
async def judge_session(
    directory: Path,
    settings: Settings,
    complete: Complete | None = None,
    stage: str | None = None,
) -> AsyncIterator[CachedClient]:
    """Open a judge whose calls go to the journal of `directory`; see `open_judge`."""
    path = directory / JOURNAL_NAME
    async with open_judge(path, settings, complete, stage=stage) as session:
        yield session.client


@asynccontextmanager
async def open_judge(
    path: Path,
    settings: Settings,
    complete: Complete | None = None,
    *,
    stage: str | None = None,
    asks_first: bool = False,
    on_fault: FaultCallback = lambda fault: None,
    on_learned: OnLearned = lambda model, sentence: None,
) -> AsyncIterator[JudgeSession]:
    """Open a judge whose calls go to the journal at `path` before their answers are used.

    Calls paid for before, there or in the journal that `reuse` names, are not paid again.
    `complete` replaces the endpoint; `stage` is what the calls are recorded under in place of their
    own. With `asks_first` a small call finds out whether the judge can be reached. `on_fault` and
    `on_learned` are those of `open_client`.

    Raises `JournalError` while another process holds the journal, `InputError` for a cap without
    a price, and what stopped the calls: `ProviderStopped` or `BudgetSpent`.
    """
    endpoints, prices = Endpoints(settings), Prices.load(settings.prices)
    check_priced(prices, settings.jurors, settings.max_cost)
    if complete is None:
        await endpoints.check_judge(settings)
    journal = await asyncio.to_thread(Journal, path.parent, path.name)
    journal.stage = stage
    reused: ReusedCalls | None = None
    try:
        if settings.reuse is not None:
            reused = await asyncio.to_thread(ReusedCalls, settings.reuse)
        await _record_prices(journal, settings, prices)
        _, cost, tokens = await asyncio.to_thread(prior_usage, journal)
        async with open_client(
            settings,
            journal,
            endpoints,
            prices,
            prior_cost=cost,
            prior_tokens=tokens,
            complete=complete,
            reused=reused,
            on_fault=on_fault,
            on_learned=on_learned,
        ) as client:
            try:
                if asks_first and complete is None:
                    journals = (journal, reused)
                    await preflight(
                        client, settings, endpoints.addresses, *journals, judges_only=True
                    )
                    if client.stopped_by is not None:
                        raise client.stopped_by
                yield JudgeSession(client, journal, reused)
            except Interrupted as interrupted:
                stopped_by = client.stopped_by or ProviderStopped("the calls were stopped")
                raise stopped_by from interrupted
    finally:
        if reused is not None:
            reused.close()
        await asyncio.to_thread(journal.close)


async def _record_prices(journal: Journal, settings: Settings, prices: Prices) -> None:
    """Add the judge's price to the run's journal, so that its costs can be summed later."""
    # The run's files do not have what these calls cost.
    await journal.put(FORGET_FILES)
    known = {m: asdict(p) for m in settings.jurors if (p := prices.get(m)) is not None}
    if known:
        prices_so_far = await asyncio.to_thread(journal.meta, "prices")
        await journal.put_meta("prices", (prices_so_far or {}) | known)


async def gather_bounded(
    items: Sequence[T],
    work: Callable[[T], Awaitable[R]],
    *,
    limit: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[R]:
    """Run `work` on every item, at most `limit` concurrently; results in the order of the items.

    `on_progress` is called with the items done and their total. The first error cancels the rest.
    """
    slots, done = asyncio.Semaphore(limit), 0

    async def run(item: T) -> R:
        nonlocal done
        async with slots:
            result = await work(item)
        done += 1
        on_progress(done, len(items))
        return result

    tasks = [asyncio.ensure_future(run(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def progress_printer(label: str, quiet: bool) -> Callable[[int, int], None]:
    """A progress callback that prints `label: done of total` to stderr every few seconds."""
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if not quiet and time.monotonic() - last > PROGRESS_INTERVAL_S:
            last = time.monotonic()
            sys.stderr.write(f"{label}: {done} of {total}\n")

    return report


def unique_names(directories: Iterable[Path]) -> list[str]:
    """Names for directories: their last parts if those differ, else their whole paths."""
    paths = list(directories)
    short = [path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]
