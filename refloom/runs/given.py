"""What a run is given, read and checked before anything is made or paid."""

from __future__ import annotations

from dataclasses import dataclass

from memory.contamination import Contamination
from refloom.data.benchmarks import benchmarks
from refloom.data.read import Report, Source
from refloom.errors import InputError
from refloom.runs import ray
from refloom.runs.budget import check_priced
from refloom.runs.files import Summary
from refloom.runs.kept import KeptCalls
from refloom.runs.prices import Prices
from refloom.runs.where import Addresses
from refloom.settings import Settings


@dataclass(frozen=True)
class Given:
    """What a run works on and with. `elsewhere` has to be closed."""

    seeds: Source
    prices: Prices
    addresses: Addresses
    elsewhere: KeptCalls | None
    contamination: Contamination | None


def read_given(
    settings: Settings, references: Source, seeds: Source | None
) -> tuple[Given, Summary]:
    """Read everything once, so that what is wrong is known at the start. Blocks.

    Without seeds every reference is its own. Raises `InputError` or `JournalError`.
    """
    if seeds is None and settings.answer_seeds and settings.turns == "all":
        raise InputError(
            "--answer-seeds with --turns all: a later turn cannot be answered without what was "
            "said before it; give --seeds, or --turns first"
        )
    if settings.engine == "ray":
        ray.check(settings.ray_address)
    prices = Prices.load(settings.prices)
    check_priced(prices, [settings.model, settings.judge], settings.max_cost)
    reference_report = references.scan()
    seeds = seeds or Source(references, as_reference=False, limit=settings.limit)
    report = Report()
    if settings.feedback == "swapped" and reference_report.taken < 2:
        raise InputError(
            f"{references.name}: has one reference; --feedback swapped needs another to take "
            "criteria from"
        )
    contamination = benchmarks(settings.benchmark, report=report) if settings.benchmark else None
    summary = Summary(settings, reference_report, seeds.scan(), prices, report)
    addresses = Addresses(settings)
    # The last, since from here on somebody has to close it.
    elsewhere = KeptCalls(settings.reuse) if settings.reuse is not None else None
    return Given(seeds, prices, addresses, elsewhere, contamination), summary
