"""Whether a judge finds a sample's response better than the draft it was refined from."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from nodes.compare import compare
from nodes.llm import CallFailed, Complete, Place
from prompts import version
from refloom.errors import TooManyFailed
from refloom.measure.asking import each, telling
from refloom.runs.scheduler import JUDGED_AFTER
from refloom.settings import Settings

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
