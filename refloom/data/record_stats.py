"""Statistics of a run's records, computed in one pass and bounded memory."""

from __future__ import annotations

import heapq
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from typing import Any, NamedTuple

from memory.novelty import rouge_matrix, tokens
from nodes.criteria import NOT_CONTAMINATED_ID

INSTRUCTION_SAMPLE = 200
MAX_HITS = 200
MAX_CRITERIA_COUNTED = 20_000


@dataclass(slots=True)
class CriterionStats:
    """Verdicts on a criterion at the first and at the last attempt; `drawn`: from a reference."""

    text: str
    must: bool
    judged_by: str
    drawn: bool
    first: Counter[str] = field(default_factory=Counter)
    last: Counter[str] = field(default_factory=Counter)

    @property
    def times(self) -> int:
        """The number of samples in which it was judged."""
        return sum(n for outcome, n in self.last.items() if outcome != "not_applicable")


@dataclass
class RecordStats:
    """Counts and samples of records, which `add` takes one by one."""

    reasons: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    reviews: Counter[str] = field(default_factory=Counter)
    criteria: dict[str, CriterionStats] = field(default_factory=dict)
    hits: list[tuple[str, str]] = field(default_factory=list)
    instructions: array[int] = field(default_factory=lambda: array("l"))
    responses: array[int] = field(default_factory=lambda: array("l"))
    _sample: list[tuple[int, str]] = field(default_factory=list)

    def add(self, record: dict[str, Any]) -> None:
        """Count a record."""
        status = record["status"]
        if status == "rejected":
            self.reasons[record["reason"] or "criteria"] += 1
            if record["reason"] == "contaminated":
                self._hit(record)
        if status == "failed":
            error = record.get("error") or {}
            self.errors[f"{error.get('kind')} in {error.get('stage')}"] += 1
            return
        if review := record.get("review"):
            self.reviews[str(review["decision"])] += 1
        self._judged(record)
        if status == "accepted":
            self.attempts[len(record["attempts"])] += 1
            self.instructions.append(len(record["instruction"]))
            self.responses.append(len(record["response"]))
            self._take(record)

    @property
    def reviewed(self) -> str:
        """The decisions of reviewers, as text."""
        words = {"accept": "accepted", "edit": "edited", "reject": "rejected"}
        counts = ((self.reviews[key], word) for key, word in words.items())
        return ", ".join(f"{n:,} {word}" for n, word in counts if n)

    @property
    def sample(self) -> list[str]:
        """A sample of the accepted instructions that does not depend on the order of records."""
        return [text for _, text in sorted(self._sample)]

    def _hit(self, record: dict[str, Any]) -> None:
        verdicts = [v for attempt in record["attempts"] for v in attempt["verdicts"]]
        reasons = [v["reason"] for v in verdicts if v["criterion_id"] == NOT_CONTAMINATED_ID]
        if len(self.hits) < MAX_HITS:
            self.hits.append((record["seed_id"], reasons[-1] if reasons else ""))

    def _judged(self, record: dict[str, Any]) -> None:
        attempts = record["attempts"]
        if not attempts:
            return
        criteria = {c["id"]: c for c in record["criteria"]}
        for attempt, name in ((attempts[0], "first"), (attempts[-1], "last")):
            for verdict in attempt["verdicts"]:
                criterion = criteria.get(verdict["criterion_id"])
                if criterion is None:
                    continue
                passing = self._passing(criterion)
                if passing is not None:
                    getattr(passing, name)[verdict["verdict"]] += 1

    def _passing(self, criterion: dict[str, Any]) -> CriterionStats | None:
        # Criteria of several references with the same words are counted as one.
        drawn = criterion["reference_id"] is not None
        id_ = f"{criterion['text']} {criterion['must']}" if drawn else criterion["id"]
        if id_ not in self.criteria:
            if len(self.criteria) >= MAX_CRITERIA_COUNTED:
                return None
            by = "judge, from references" if drawn else criterion["judged_by"]
            self.criteria[id_] = CriterionStats(criterion["text"], criterion["must"], by, drawn)
        return self.criteria[id_]

    def _take(self, record: dict[str, Any]) -> None:
        """Keep the instructions with the smallest hashes of ids: a reproducible random sample."""
        digest = sha256(record["id"].encode()).digest()
        item = (-int.from_bytes(digest[:8], "big"), record["instruction"])
        if len(self._sample) < INSTRUCTION_SAMPLE:
            heapq.heappush(self._sample, item)
        else:
            heapq.heappushpop(self._sample, item)

    def passing(self, limit: int) -> list[CriterionStats]:
        """Rules and built-in criteria, then the most judged ones from references."""
        judged = [p for p in self.criteria.values() if p.times]
        ours = [p for p in judged if not p.drawn]
        theirs = sorted((p for p in judged if p.drawn), key=lambda p: -p.times)
        return ours + theirs[:limit]


def collect_stats(records: Iterable[str]) -> RecordStats:
    """The statistics of records given as JSON lines. Blocks."""
    stats = RecordStats()
    for line in records:
        stats.add(json.loads(line))
    return stats


def quantiles(lengths: Iterable[int]) -> tuple[int, int, int] | None:
    """The 5th, 50th and 95th percentile; None if there are no values."""
    ordered = sorted(lengths)
    if not ordered:
        return None
    at = [round(share * (len(ordered) - 1)) for share in (0.05, 0.5, 0.95)]
    return ordered[at[0]], ordered[at[1]], ordered[at[2]]


class Diversity(NamedTuple):
    """Diversity of `texts` texts; figures are None if there are too few of them.

    `pairwise` is the mean ROUGE-L F1 over all pairs, `nearest` the mean of each text's highest,
    `distinct_2` the share of different pairs of words among all pairs of neighbouring words.
    """

    texts: int
    pairwise: float | None
    nearest: float | None
    distinct_2: float | None


def measure_diversity(texts: Sequence[str]) -> Diversity:
    """Compare all pairs of texts; meant for some hundreds. Blocks.

    >>> measure_diversity(["why two tides", "why two moons"]).pairwise
    0.667
    """
    import numpy as np

    n = len(texts)
    words = [tokens(text) for text in texts]
    neighbours = [pair for text in words for pair in pairwise(text)]
    distinct_2 = round(len(set(neighbours)) / len(neighbours), 3) if neighbours else None
    if n < 2:
        return Diversity(n, None, None, distinct_2)
    alike = rouge_matrix(texts)
    mean = alike[np.triu_indices(n, 1)].mean()
    np.fill_diagonal(alike, 0.0)
    return Diversity(n, round(float(mean), 3), round(float(alike.max(1).mean()), 3), distinct_2)
