"""Choosing among the accepted samples of a run: the filters of the paper, and k-centre.

Mehri et al. (EACL 2026) train on subsets: of the samples whose refinement a judge ranks over the
draft, of those whose instructions ROUGE-L finds unlike each other, and of random ones. A filter
passes or drops one sample after the other, in one order that only the random seed decides; a size
cuts it off. So of one random seed the 1,000 chosen are among the 2,000 chosen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memory.embed import Embed, Embedder, Vectors
from memory.novelty import NoveltyFilter
from nodes.llm import Complete
from refloom.data.export import key
from refloom.measure.asking import asking, telling
from refloom.measure.improved import Judge, Sample
from refloom.measure.kcentre import farthest_first
from refloom.measure.stored import stored_in
from refloom.settings import Settings

Name = Literal["judge", "rouge", "random"]
# Samples that go through the filters at once, and texts that are embedded at once.
BLOCK = 4096
BATCH = 256


@dataclass(frozen=True, slots=True)
class Choice:
    """What to choose: filters in their order, and how many samples to end with (None: all).

    `threshold` is of `rouge`: the highest ROUGE-L F1 of two chosen instructions. `diverse` takes
    `size` of what the filters leave by k-centre.
    """

    filters: tuple[Name, ...] = ()
    threshold: float = 0.7
    size: int | None = None
    diverse: bool = False
    random_seed: int = 0


@dataclass(slots=True)
class Selection:
    """The ids of the chosen samples, how they were chosen in lines, and what went wrong."""

    ids: set[str]
    told: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Stage:
    """A filter at work: which samples of a block pass, and how many came and passed so far."""

    about: str
    passing: Callable[[Sequence[Sample]], Awaitable[list[Sample]]]
    came: int = 0
    left: int = 0

    async def __call__(self, block: Sequence[Sample]) -> list[Sample]:
        """Let a block through, and count."""
        passed = await self.passing(block)
        self.came, self.left = self.came + len(block), self.left + len(passed)
        return passed


async def select(
    directory: Path,
    choice: Choice,
    settings: Settings,
    *,
    complete: Complete | None = None,
    embed: Embed | None = None,
) -> Selection:
    """Choose among the accepted samples of the run in `directory`.

    Args:
        directory: A run's; calls of `judge` are kept in its journal and never paid twice.
        choice: What to choose.
        settings: Of the judge, see `refloom.measure.asking.settings_for`, and of the embeddings.
        complete: Stands in for the judge's endpoint.
        embed: Stands in for the embedding model.

    Raises:
        JournalError: No run is kept there, or with `judge` another process is at work there.
        TooManyFailed: More comparisons failed than `settings.max_failure_rate` lets fail.
        ProviderStopped: No comparison can be had; `BudgetSpent`: no further one may be paid.
    """
    with stored_in(directory / "journal.sqlite") as stored:
        samples = await asyncio.to_thread(stored.samples)
        found = Selection(set(), [f"{len(samples)} accepted samples"])
        samples.sort(key=lambda s: (key(f"choose\x1f{s.id}", choice.random_seed), s.id))
        async with AsyncExitStack() as stack:
            judge = None
            if "judge" in choice.filters:
                calls = await stack.enter_async_context(asking(directory, settings, complete))
                judge = Judge(calls, settings, stored.pair)
            chosen = await _filtered(samples, choice, settings, judge, found)
    if choice.diverse and choice.size is not None:
        embed = embed or Embedder(settings.embedding_model)
        chosen = await _spread(chosen, choice.size, embed, settings, found.told)
    _sum_up(found, chosen, choice)
    return found


async def _filtered(
    samples: list[Sample],
    choice: Choice,
    settings: Settings,
    judge: Judge | None,
    found: Selection,
) -> list[Sample]:
    """What passes every filter, in order; `found` is told what each of them did."""
    stages = [_stage(name, choice, judge) for name in dict.fromkeys(choice.filters)]
    least = settings.calls_at_once if judge else 1
    cut = None if choice.diverse else choice.size
    chosen = await _through(stages, samples, cut, least)
    for stage in stages:
        found.told.append(f"{stage.about}: {stage.came} came, {stage.left} passed")
    if judge is not None:
        found.told.append(judge.told())
        found.missed += judge.missed
    return chosen


def _stage(name: Name, choice: Choice, judge: Judge | None) -> Stage:
    if name == "judge" and judge is not None:
        return Stage(judge.about, judge.passing)
    if name == "rouge":
        known = NoveltyFilter(choice.threshold)

        def new(block: Sequence[Sample]) -> list[Sample]:
            return [s for s in block if known.admit(s.instruction, s.id) is None]

        about = f"rouge (ROUGE-L F1 of two instructions at most {choice.threshold:g})"
        return Stage(about, lambda block: asyncio.to_thread(new, block))

    async def all_of(block: Sequence[Sample]) -> list[Sample]:
        return list(block)

    return Stage(f"random (random seed {choice.random_seed})", all_of)


async def _through(
    stages: Sequence[Stage], order: Sequence[Sample], size: int | None, least: int
) -> list[Sample]:
    """The first `size` that pass all filters: what is not wanted any more is not asked about."""
    chosen: list[Sample] = []
    done = 0
    while done < len(order) and (size is None or len(chosen) < size):
        wanted = BLOCK if size is None else size - len(chosen)
        block: Sequence[Sample] = order[done : done + min(max(wanted, least), BLOCK)]
        done += len(block)
        for stage in stages:
            block = await stage(block)
        chosen += block
    return chosen[:size]


async def _spread(
    samples: Sequence[Sample], size: int, embed: Embed, settings: Settings, told: list[str]
) -> list[Sample]:
    """The samples that cover all best by the meaning of their instructions."""
    # In the order of the run, so that no random seed has a part in it.
    samples = sorted(samples, key=lambda sample: sample.slot)
    if not samples:
        return []
    vectors = await _vectors([s.instruction for s in samples], embed, settings.quiet)
    places, radius = await asyncio.to_thread(farthest_first, vectors, size)
    line = f"diverse (k-centre, {settings.embedding_model}): {len(samples)} came, {len(places)} "
    line += "chosen"
    if len(places) < len(samples):
        line += f"; each of the others has a cosine of at least {1 - radius**2 / 2:.2f} with one"
    told.append(line)
    return [samples[place] for place in places]


async def _vectors(texts: Sequence[str], embed: Embed, quiet: bool) -> Vectors:
    import numpy as np

    tell = telling("embedded", quiet)
    first = await embed(texts[:BATCH])
    vectors = np.empty((len(texts), first.shape[1]), np.float32)
    vectors[:BATCH] = first
    for start in range(BATCH, len(texts), BATCH):
        vectors[start : start + BATCH] = await embed(texts[start : start + BATCH])
        tell(start, len(texts))
    return vectors


def _sum_up(found: Selection, chosen: Sequence[Sample], choice: Choice) -> None:
    found.ids = {sample.id for sample in chosen}
    order = f", in an order of random seed {choice.random_seed}" if choice.filters else ""
    asked = "" if choice.size is None else f" of the {choice.size} asked for"
    found.told.append(f"chosen: {len(chosen)} samples{asked}{order}")
    if choice.size is not None and len(chosen) < choice.size:
        found.missed.append(f"only {len(chosen)} samples are left; {choice.size} were asked for")
