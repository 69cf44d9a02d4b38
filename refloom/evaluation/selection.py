"""Selecting accepted samples of a run for export: the paper's filters, and k-centre.

Mehri et al. (EACL 2026) train on subsets: samples whose refinement a judge prefers to the draft,
samples with dissimilar instructions by ROUGE-L, and random ones. Filters pass or drop samples one
by one, in an order that depends on the random seed alone, until the size asked for is reached. So
with the same seed the first 1,000 are among the first 2,000.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory.embed import Embed, Embedder, Vectors
from memory.novelty import NoveltyFilter
from nodes.compare import compare
from nodes.llm import CallFailed, CallOrigin, Complete
from nodes.llm.fast_json import loads
from prompts import prompt_version
from refloom.data.export import seeded_hash
from refloom.errors import JournalError, TooManyFailed
from refloom.evaluation.judging import gather_bounded, judge_session, progress_printer
from refloom.runs.journal import connect_read_only, iter_records
from refloom.runs.scheduler import MIN_SAMPLES_FOR_FAILURE_RATE
from refloom.settings import Settings

SlotKey = tuple[int, int, int]
RefinementOutcome = Literal["better", "not better", "failed", "unchanged"]


class Sample(NamedTuple):
    """An accepted sample without its response; `changed`: the response is a refined attempt."""

    id: str
    slot: SlotKey
    seed_id: str
    instruction: str
    changed: bool


class RefinementJudge:
    """The filter `judge`: passes refinements that beat their draft in both orders.

    Samples that were never refined pass, since there is no draft to compare with. A sample whose
    comparison fails is left out, counted, and named in `unjudged`.
    """

    def __init__(
        self, complete: Complete, settings: Settings, pair: Callable[[SlotKey], tuple[str, str]]
    ) -> None:
        """`pair` reads a sample's response and its draft; it blocks."""
        self.label = f"judge ({settings.judge}, prompt {prompt_version('compare')})"
        self.counts: Counter[RefinementOutcome] = Counter()
        self.unjudged: list[str] = []
        self._complete, self._pair = complete, pair
        self._context, self._concurrency = settings.context(), settings.max_in_flight
        self._max_failure_rate = settings.max_failure_rate
        self._report = progress_printer("compared with their drafts", settings.quiet)

    async def filter_block(self, block: Sequence[Sample]) -> list[Sample]:
        """The samples of a block that pass, in order. Raises `TooManyFailed`."""
        before = self.counts.total() - self.counts["unchanged"]
        changed = [sample for sample in block if sample.changed]
        self.counts["unchanged"] += len(block) - len(changed)
        outcomes = await gather_bounded(
            changed,
            self._outcome,
            limit=self._concurrency,
            on_progress=lambda done, total: self._report(before + done, before + total),
        )
        better = {s.id for s, outcome in zip(changed, outcomes, strict=True) if outcome == "better"}
        return [sample for sample in block if not sample.changed or sample.id in better]

    async def _outcome(self, sample: Sample) -> RefinementOutcome:
        response, draft = await asyncio.to_thread(self._pair, sample.slot)
        place = CallOrigin(sample.seed_id, "/".join(map(str, sample.slot)), sample.slot)
        outcome: RefinementOutcome = "not better"
        try:
            duel = await compare(
                self._complete,
                self._context,
                place,
                instruction=sample.instruction,
                first=response,
                second=draft,
            )
            if duel.winner == "first":
                outcome = "better"
        except CallFailed as failed:
            outcome = "failed"
            self.unjudged.append(
                f"left out because it could not be judged: sample {sample.id} ({failed})"
            )
        self.counts[outcome] += 1
        judged, failures = self.counts.total() - self.counts["unchanged"], self.counts["failed"]
        if judged >= MIN_SAMPLES_FOR_FAILURE_RATE and failures > self._max_failure_rate * judged:
            last = self.unjudged[-1]
            raise TooManyFailed(f"{failures} of {judged} comparisons failed, the last: {last}")
        return outcome

    def summary(self) -> str:
        """One line about the samples compared so far."""
        counts = self.counts
        return (
            f"judge: {counts['better']} refined and better than their draft, kept; "
            f"{counts['not better']} refined and not better in both orders, dropped; "
            f"{counts['unchanged']} never refined, kept; {counts['failed']} not judged, left out"
        )


@contextmanager
def open_samples(path: Path) -> Iterator[AcceptedSamples]:
    """A snapshot of a journal that any thread may read. Raises `JournalError`."""
    connection = connect_read_only(path, check_same_thread=False)
    samples = AcceptedSamples(connection)
    try:
        # Later writes are not seen.
        connection.execute("BEGIN")
        yield samples
    except sqlite3.DatabaseError as error:
        raise JournalError(f"{path}: is damaged ({error})") from error
    finally:
        samples.close()


class AcceptedSamples:
    """The accepted samples of a journal; responses are read again when needed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def close(self) -> None:
        """Close the file once no thread reads it; a cancelled reader may still do so."""
        with self._lock:
            self._connection.close()

    def samples(self) -> list[Sample]:
        """All samples, in slot order. Blocks."""
        samples = []
        for line in iter_records(self._connection, "accepted"):
            record = loads(line)
            attempts = record["attempts"]
            # A bare answer is no refinement: it was written once, without criteria.
            refined = not record.get("reasoning")
            changed = refined and bool(attempts) and attempts[0]["response"] != record["response"]
            samples.append(
                Sample(
                    record["id"],
                    tuple(record["slot"]),
                    record["seed_id"],
                    record["instruction"],
                    changed,
                )
            )
        return samples

    def pair(self, slot: SlotKey) -> tuple[str, str]:
        """A sample's response, and its draft. Blocks."""
        sql = "SELECT record FROM samples WHERE round = ? AND position = ? AND slot = ?"
        with self._lock:
            (line,) = self._connection.execute(sql, slot).fetchone()
        record = loads(line)
        return record["response"], record["attempts"][0]["response"]


class Centres(NamedTuple):
    """The indices of the chosen points, in the order chosen.

    `radius` is the greatest distance of a point to its nearest centre; 0 if all are chosen.
    """

    indices: list[int]
    radius: float


def k_centre(vectors: NDArray[np.float32], k: int) -> Centres:
    """Greedy k-centre: choose k points, each farthest from those before it. Blocks.

    The radius is at most twice the optimum (Gonzalez, 1985). The first point is the one nearest to
    the mean; of equal ones the first is chosen, and the first j of k are those chosen for k = j.
    Takes O(n k) dot products, and about 12 bytes a point besides `vectors`.

    Args:
        vectors: Points as rows, float32; distances are Euclidean.
        k: How many points; all if there are fewer.

    >>> import numpy as np
    >>> k_centre(np.array([[0], [1], [4], [9]], np.float32), 3)
    Centres(indices=[2, 3, 0], radius=1.0)
    """
    if not len(vectors) or k < 1:
        return Centres([], 0.0)
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    squares = np.einsum("ij,ij->i", vectors, vectors)
    place = int((squares - 2 * (vectors @ mean)).argmin())
    # Squared distances to the nearest centre; a centre is chosen once.
    nearest, centres = np.full(len(vectors), np.inf, np.float32), list[int]()
    for _ in range(min(k, len(vectors))):
        centres.append(place)
        np.minimum(nearest, squares + squares[place] - 2 * (vectors @ vectors[place]), out=nearest)
        nearest[place] = -np.inf
        place = int(nearest.argmax())
    return Centres(centres, math.sqrt(max(float(nearest[place]), 0.0)))


FilterName = Literal["judge", "rouge", "random"]
# Samples filtered at once, and texts embedded at once.
FILTER_BLOCK = 4096
EMBED_BATCH = 256


@dataclass(frozen=True, slots=True)
class SelectionSettings:
    """Which filters to apply, in order, and how many samples to select (None: all).

    `threshold`: the highest ROUGE-L F1 of two selected instructions (filter `rouge`). `diverse`:
    select `size` of the filtered samples by k-centre.
    """

    filters: tuple[FilterName, ...] = ()
    threshold: float = 0.7
    size: int | None = None
    diverse: bool = False
    random_seed: int = 0


@dataclass(slots=True)
class Selection:
    """The selected ids, lines on how they were selected, and warnings."""

    ids: set[str]
    summary: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class FilterStage:
    """A filter, and how many samples entered and passed it so far."""

    label: str
    filter_block: Callable[[Sequence[Sample]], Awaitable[list[Sample]]]
    entered: int = 0
    passed: int = 0

    async def __call__(self, block: Sequence[Sample]) -> list[Sample]:
        """Filter a block and count."""
        passing = await self.filter_block(block)
        self.entered, self.passed = self.entered + len(block), self.passed + len(passing)
        return passing


async def select_samples(
    directory: Path,
    choice: SelectionSettings,
    settings: Settings,
    *,
    complete: Complete | None = None,
    embed: Embed | None = None,
) -> Selection:
    """Select from the accepted samples of the run in `directory`.

    Args:
        directory: A run directory; the calls of `judge` are kept in its journal, never paid twice.
        choice: What to choose.
        settings: Of the judge (see `refloom.evaluation.judging.judge_settings`) and embeddings.
        complete: Replaces the judge's endpoint.
        embed: Replaces the embedding model.

    Raises:
        JournalError: There is no run, or with `judge` another process holds the directory.
        TooManyFailed: More comparisons failed than `settings.max_failure_rate` allows.
        ProviderStopped: The judge cannot be reached; `BudgetSpent`: the budget is spent.
    """
    with open_samples(directory / "journal.sqlite") as stored:
        samples = await asyncio.to_thread(stored.samples)
        selection = Selection(set(), [f"{len(samples)} accepted samples"])
        samples.sort(key=lambda s: (seeded_hash(f"choose\x1f{s.id}", choice.random_seed), s.id))
        async with AsyncExitStack() as stack:
            judge = None
            if "judge" in choice.filters:
                calls = await stack.enter_async_context(
                    judge_session(directory, settings, complete)
                )
                judge = RefinementJudge(calls, settings, stored.pair)
            chosen = await _apply_filters(samples, choice, settings, judge, selection)
    if choice.diverse and choice.size is not None:
        embed = embed or Embedder(settings.embedding_model)
        chosen = await _choose_diverse(chosen, choice.size, embed, settings, selection.summary)
    selection.ids = {sample.id for sample in chosen}
    order = f", in an order of random seed {choice.random_seed}" if choice.filters else ""
    wanted = "" if choice.size is None else f" of the {choice.size} asked for"
    selection.summary.append(f"chosen: {len(chosen)} samples{wanted}{order}")
    if choice.size is not None and len(chosen) < choice.size:
        selection.warnings.append(f"only {len(chosen)} samples are left{wanted}")
    return selection


async def _apply_filters(
    samples: list[Sample],
    choice: SelectionSettings,
    settings: Settings,
    judge: RefinementJudge | None,
    selection: Selection,
) -> list[Sample]:
    """The samples that pass every filter, in order; adds a line a filter to `selection`."""
    stages = [_filter_stage(name, choice, judge) for name in dict.fromkeys(choice.filters)]
    min_block = settings.max_in_flight if judge else 1
    size = None if choice.diverse else choice.size
    chosen = await _filter_in_blocks(stages, samples, size, min_block)
    for stage in stages:
        selection.summary.append(f"{stage.label}: {stage.entered} came, {stage.passed} passed")
    if judge is not None:
        selection.summary.append(judge.summary())
        selection.warnings += judge.unjudged
    return chosen


def _filter_stage(
    name: FilterName, choice: SelectionSettings, judge: RefinementJudge | None
) -> FilterStage:
    if name == "judge" and judge is not None:
        return FilterStage(judge.label, judge.filter_block)
    if name == "rouge":
        known = NoveltyFilter(choice.threshold)

        def drop_similar(block: Sequence[Sample]) -> list[Sample]:
            return [s for s in block if known.admit(s.instruction, s.id) is None]

        label = f"rouge (ROUGE-L F1 of two instructions at most {choice.threshold:g})"
        return FilterStage(label, lambda block: asyncio.to_thread(drop_similar, block))

    async def pass_all(block: Sequence[Sample]) -> list[Sample]:
        return list(block)

    return FilterStage(f"random (random seed {choice.random_seed})", pass_all)


async def _filter_in_blocks(
    stages: Sequence[FilterStage], order: Sequence[Sample], size: int | None, min_block: int
) -> list[Sample]:
    """The first `size` samples that pass all filters; the judge is not asked about any further."""
    chosen: list[Sample] = []
    done = 0
    while done < len(order) and (size is None or len(chosen) < size):
        missing = FILTER_BLOCK if size is None else size - len(chosen)
        block: Sequence[Sample] = order[done : done + min(max(missing, min_block), FILTER_BLOCK)]
        done += len(block)
        for stage in stages:
            block = await stage(block)
        chosen += block
    return chosen[:size]


async def _choose_diverse(
    samples: Sequence[Sample], size: int, embed: Embed, settings: Settings, summary: list[str]
) -> list[Sample]:
    """The `size` samples whose instructions cover all others best, by k-centre."""
    # In slot order, so that the random seed has no influence.
    samples = sorted(samples, key=lambda sample: sample.slot)
    if not samples:
        return []
    vectors = await _embed([s.instruction for s in samples], embed, settings.quiet)
    indices, radius = await asyncio.to_thread(k_centre, vectors, size)
    line = f"diverse (k-centre, {settings.embedding_model}): {len(samples)} came, {len(indices)} "
    line += "chosen"
    if len(indices) < len(samples):
        line += f"; each of the others has a cosine of at least {1 - radius**2 / 2:.2f} with one"
    summary.append(line)
    return [samples[i] for i in indices]


async def _embed(texts: Sequence[str], embed: Embed, quiet: bool) -> Vectors:
    report = progress_printer("embedded", quiet)
    first = await embed(texts[:EMBED_BATCH])
    vectors = np.empty((len(texts), first.shape[1]), np.float32)
    vectors[:EMBED_BATCH] = first
    for start in range(EMBED_BATCH, len(texts), EMBED_BATCH):
        vectors[start : start + EMBED_BATCH] = await embed(texts[start : start + EMBED_BATCH])
        report(start, len(texts))
    return vectors
