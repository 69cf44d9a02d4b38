"""Choosing among the accepted samples of a run: the filters of the paper, and k-centre.

Mehri et al. (EACL 2026) train on subsets: of the samples whose refinement a judge ranks over the
draft, of those whose instructions ROUGE-L finds unlike each other, and of random ones. A filter
passes or drops one sample after the other, in one order that only the random seed decides; a size
cuts it off. So of one random seed the 1,000 chosen are among the 2,000 chosen.
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
from typing import TYPE_CHECKING, Literal, NamedTuple

from memory.embed import Embed, Embedder, Vectors
from memory.novelty import NoveltyFilter
from nodes.compare import compare
from nodes.llm import CallFailed, Complete, Place
from nodes.llm.fast_json import loads
from prompts import version
from refloom.data.export import key
from refloom.errors import JournalError, TooManyFailed
from refloom.evaluation.judging import asking, each, telling
from refloom.runs.journal import open_to_read, records_in
from refloom.runs.scheduler import JUDGED_AFTER
from refloom.settings import Settings

# MERGED refloom~measure~improved
# Whether a judge finds a sample's response better than the draft it was refined from.
Slot = tuple[int, int, int]
Outcome = Literal["better", "not better", "failed", "unchanged"]


class Sample(NamedTuple):
    """What is held of an accepted sample; `changed`: its response is not its first attempt."""

    id: str
    slot: Slot
    seed_id: str
    instruction: str
    changed: bool


class Judge:
    """Passes a refinement that beats its draft in both orders, and what was never refined.

    A draft that was accepted as it is has no improvement to judge, so nothing speaks against it.
    A comparison that fails leaves its sample out; it is counted, and named in `missed`.
    """

    def __init__(
        self, complete: Complete, settings: Settings, pair: Callable[[Slot], tuple[str, str]]
    ) -> None:
        """`pair` reads a sample's response and its draft; it blocks."""
        self.about = f"judge ({settings.judge}, prompt {version('compare')})"
        self.counts: Counter[Outcome] = Counter()
        self.missed: list[str] = []
        self._complete, self._pair = complete, pair
        self._context, self._at_once = settings.context(), settings.calls_at_once
        self._most_failed = settings.max_failure_rate
        self._tell = telling("compared with their drafts", settings.quiet)

    async def passing(self, block: Sequence[Sample]) -> list[Sample]:
        """The samples of a block that pass, in order. Raises `TooManyFailed`."""
        before = self.counts.total() - self.counts["unchanged"]
        changed = [sample for sample in block if sample.changed]
        self.counts["unchanged"] += len(block) - len(changed)
        outcomes = await each(
            changed,
            self._outcome,
            at_once=self._at_once,
            told=lambda done, of: self._tell(before + done, before + of),
        )
        better = {s.id for s, said in zip(changed, outcomes, strict=True) if said == "better"}
        return [sample for sample in block if not sample.changed or sample.id in better]

    async def _outcome(self, sample: Sample) -> Outcome:
        response, draft = await asyncio.to_thread(self._pair, sample.slot)
        place = Place(sample.seed_id, "/".join(map(str, sample.slot)), sample.slot)
        outcome: Outcome = "not better"
        try:
            duel = await compare(
                self._complete,
                self._context,
                place,
                instruction=sample.instruction,
                first=response,
                second=draft,
            )
            if duel.won == "first":
                outcome = "better"
        except CallFailed as failed:
            outcome = "failed"
            self.missed.append(
                f"left out, since it could not be judged: sample {sample.id} ({failed})"
            )
        self.counts[outcome] += 1
        self._check()
        return outcome

    def _check(self) -> None:
        asked, failed = self.counts.total() - self.counts["unchanged"], self.counts["failed"]
        if asked >= JUDGED_AFTER and failed > self._most_failed * asked:
            why = self.missed[-1]
            raise TooManyFailed(f"{failed} of {asked} comparisons failed, the last: {why}")

    def told(self) -> str:
        """What became of the samples it was asked about, in a line."""
        counts = self.counts
        return (
            f"judge: {counts['better']} refined and better than their draft, kept; "
            f"{counts['not better']} refined and not better in both orders, dropped; "
            f"{counts['unchanged']} never refined, kept; {counts['failed']} not judged, left out"
        )


# MERGED refloom~measure~stored
# The accepted samples of a journal as it is now, read from any thread.
@contextmanager
def stored_in(path: Path) -> Iterator[Stored]:
    """A journal as it is now, to read in any thread. Raises `JournalError`."""
    stored = Stored(open_to_read(path, check_same_thread=False))
    try:
        stored.begin()
        yield stored
    except sqlite3.DatabaseError as error:
        raise JournalError(f"{path}: is damaged ({error})") from error
    finally:
        stored.close()


class Stored:
    """The accepted samples of a journal; their texts are read again when they are wanted."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def begin(self) -> None:
        """See the journal from now on as it is now."""
        self._connection.execute("BEGIN")

    def close(self) -> None:
        """Let go of the file, once nobody reads; whoever was given up may still do."""
        with self._lock:
            self._connection.close()

    def samples(self) -> list[Sample]:
        """All of them, in slot order. Blocks."""
        found = []
        for line in records_in(self._connection, "accepted"):
            record = loads(line)
            attempts = record["attempts"]
            changed = bool(attempts) and attempts[0]["response"] != record["response"]
            slot = tuple(record["slot"])
            about = (record["id"], slot, record["seed_id"], record["instruction"])
            found.append(Sample(*about, changed))
        return found

    def pair(self, slot: Slot) -> tuple[str, str]:
        """The response of a sample, and its draft. Blocks."""
        sql = "SELECT record FROM samples WHERE round = ? AND position = ? AND slot = ?"
        with self._lock:
            (line,) = self._connection.execute(sql, slot).fetchone()
        record = loads(line)
        return record["response"], record["attempts"][0]["response"]


# MERGED refloom~measure~kcentre
# Choosing the points that cover all others best: greedy k-centre, farthest first.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# How many single distances are looked up before all are brought up to date at once.
LOOKS = 128
DISTANCE_BLOCK = 8192


class Centres(NamedTuple):
    """The places of the chosen points in the order they were chosen, and what they leave.

    `radius` is the distance of the farthest point to its nearest chosen one; 0 if all are chosen.
    """

    places: list[int]
    radius: float


class _Apart:
    """How far each point is from its nearest centre, at most: a new centre makes it no farther."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        import numpy as np

        self._vectors = vectors
        self._squares = np.einsum("ij,ij->i", vectors, vectors)
        self._bounds = np.full(len(vectors), np.inf, np.float32)
        # Of each point, how many of the centres its bound takes in.
        self._known = np.zeros(len(vectors), np.int64)
        self.centres: list[int] = []
        self._told, self._looks = 0, LOOKS

    def add(self, place: int) -> None:
        self.centres.append(place)
        self._bounds[place] = -float("inf")

    def farthest(self) -> int:
        """The point that is farthest from all centres; of equal ones the first."""
        place = int(self._bounds.argmax())
        while self._known[place] < len(self.centres):
            if self._looks >= LOOKS:
                self.tell_all()
            else:
                self._looks += 1
                late = self.centres[self._known[place] :]
                self._shorten(slice(place, place + 1), late)
                self._known[place] = len(self.centres)
            place = int(self._bounds.argmax())
        return place

    def tell_all(self) -> None:
        """Let every bound take in every centre."""
        late = self.centres[self._told :]
        for start in range(0, len(self._bounds), DISTANCE_BLOCK):
            self._shorten(slice(start, start + DISTANCE_BLOCK), late)
        self._known.fill(len(self.centres))
        self._told, self._looks = len(self.centres), 0

    def radius(self) -> float:
        """The greatest distance left."""
        return math.sqrt(max(float(self._bounds[self.farthest()]), 0.0))

    def _shorten(self, part: slice, late: list[int]) -> None:
        import numpy as np

        products = self._vectors[part] @ self._vectors[late].T
        nearest = (self._squares[late] - 2 * products).min(axis=1) + self._squares[part]
        np.minimum(self._bounds[part], nearest, out=self._bounds[part])


def farthest_first(vectors: NDArray[np.float32], k: int) -> Centres:
    """Choose k points, each the farthest from those chosen before it (Gonzalez, 1985). Blocks.

    Their radius is at most twice the smallest that k points can have. The first is the one nearest
    to the mean. The first j of k are those that j alone would be. It takes O(n k) products of rows;
    one row is compared with the newest centres only when it may be the farthest, all at once only
    now and then, which is six times as fast for 100,000 points. Memory beside `vectors`: some 30
    bytes a point, and 4 MB.

    Args:
        vectors: Points as rows, float32; distances are Euclidean.
        k: How many; all of them where there are fewer.

    >>> import numpy as np
    >>> farthest_first(np.array([[0], [1], [4], [9]], np.float32), 3)
    Centres(places=[2, 3, 0], radius=1.0)
    """
    import numpy as np

    if not len(vectors) or k < 1:
        return Centres([], 0.0)
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    apart = _Apart(vectors)
    squares = np.einsum("ij,ij->i", vectors, vectors)
    apart.add(int((squares - 2 * (vectors @ mean)).argmin()))
    while len(apart.centres) < min(k, len(vectors)):
        apart.add(apart.farthest())
    return Centres(apart.centres, apart.radius())


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
        settings: Of the judge (see `refloom.evaluation.judging.settings_for`) and embeddings.
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
