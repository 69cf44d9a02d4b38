"""Statistics of a run's records, computed in one pass and bounded memory."""

from __future__ import annotations

import heapq
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from typing import Any, Generic, NamedTuple, TypeVar

from memory.novelty import rouge_matrix, tokens
from nodes.criteria import ANSWERS_ID, NOT_CONTAMINATED_ID
from nodes.reasoning import CONTAMINATED, FAULTS_OF_THOUGHTS, NO_THOUGHTS, PROMPT_TALK
from nodes.state import Attempt, Criterion
from nodes.verdicts import is_as_good, passes

INSTRUCTION_SAMPLE = 200
MAX_HITS = 200
MAX_CRITERIA_COUNTED = 20_000


T = TypeVar("T")


class HashSample(Generic[T]):
    """The `size` items with the smallest hashes.

    It is a random sample that depends neither on the order of the items nor on a random state.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        # A heap of the negated hash, the item's number, which decides among equal hashes, and it.
        self._heap: list[tuple[int, int, T]] = []
        self._seen = 0

    def add(self, digest: int, item: T) -> None:
        """Take the item if its hash is among the smallest so far."""
        self._seen += 1
        entry = (-digest, -self._seen, item)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def items(self) -> list[T]:
        """The items, smallest hash first: the first n of them are a sample of n."""
        return [item for _, _, item in sorted(self._heap, key=lambda e: e[:2], reverse=True)]


def hash_id(id_: str) -> int:
    """The hash by which a record is sampled: the first 64 bits of its id's SHA-256."""
    return int.from_bytes(sha256(id_.encode("utf-8", "replace")).digest()[:8], "big")


@dataclass(slots=True)
class CriterionStats:
    """Counts of the verdicts on a criterion at the first and at the last attempt.

    `wrong` is in how many samples a reviewer marked it as wrong.
    """

    text: str
    must: bool
    judged_by: str
    from_reference: bool
    first: Counter[str] = field(default_factory=Counter)
    last: Counter[str] = field(default_factory=Counter)
    wrong: int = 0

    @property
    def judged(self) -> int:
        """The number of samples in which it was judged."""
        return sum(n for outcome, n in self.last.items() if outcome != "not_applicable")


@dataclass(slots=True)
class TrialStats:
    """The trials of the criteria with the same words: how many texts passed, of what kind.

    `of` says what the criterion is about, "response" or "instruction".
    """

    text: str
    of: str
    references: int = 0
    own: int = 0
    spoiled: Counter[str] = field(default_factory=Counter)


class JuryVotes(NamedTuple):
    """What the jurors of a jury say of one criterion: whether it passes; None is unknown.

    `kind` says which sort of criterion it is, `passed` whether the jury passes it.
    """

    kind: str
    models: tuple[str, ...]
    votes: tuple[bool | None, ...]
    passed: bool


def jury_votes(verdict: Mapping[str, Any], criterion: Mapping[str, Any]) -> JuryVotes | None:
    """The votes behind a verdict; None if no jury gave it."""
    jurors = verdict.get("jurors")
    if not jurors:
        return None
    strength = "must" if criterion["must"] else "should"
    source = "a reference" if criterion["reference_id"] is not None else "a person"
    kind = "built in" if criterion["id"] == ANSWERS_ID else f"from {source}, {strength}"
    votes = (None if j["verdict"] == "unknown" else j["verdict"] != "fail" for j in jurors)
    passed = verdict["verdict"] in ("pass", "not_applicable")
    return JuryVotes(kind, tuple(j["model"] for j in jurors), tuple(votes), passed)


@dataclass
class AnswerStats:
    """Counts of the bare answers to accepted instructions, which `add` takes record by record.

    Of those `asked` for, `failed` brought none and `without_thoughts` nothing that could be kept;
    the others were `judged`. `passed` are as good as the accepted response. The thoughts of
    `prompt_talk` speak of a prompt, those of `contaminated` hold a benchmark's; `taken` are those
    that became the response and stayed it. The first one judged of each sample is in
    `first_judged`, and in `first_passed` if it is as good: of these there is one an instruction,
    whereas later ones are drawn only where the first was left.
    """

    samples: int = 0
    asked: int = 0
    failed: int = 0
    without_thoughts: int = 0
    prompt_talk: int = 0
    contaminated: int = 0
    judged: int = 0
    passed: int = 0
    first_judged: int = 0
    first_passed: int = 0
    taken: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a record; one without bare answers, and one of an older version, counts nothing."""
        answers, errors = record.get("answers") or [], record.get("answer_errors") or []
        if not answers and not errors:
            return
        kinds = Counter(error["kind"] for error in errors)
        failed = len(errors) - sum(kinds[kind] for kind in FAULTS_OF_THOUGHTS)
        self.samples += 1
        self.asked += len(answers) + failed
        self.failed += failed
        self.without_thoughts += kinds[NO_THOUGHTS]
        self.prompt_talk += kinds[PROMPT_TALK]
        self.contaminated += kinds[CONTAMINATED]
        self.judged += len(answers) - kinds[NO_THOUGHTS]
        self.taken += record["reasoning"] is not None
        criteria = record["criteria"]
        accepted = next((a for a in reversed(record["attempts"]) if _holds(a, criteria)), None)
        # Who comes without thoughts was not judged, and is the last.
        judged = answers[:-1] if kinds[NO_THOUGHTS] else answers
        if accepted is not None and judged:
            passing = [is_as_good(answer, accepted, criteria) for answer in judged]
            self.passed += sum(passing)
            self.first_judged += 1
            self.first_passed += passing[0]


def _holds(attempt: Attempt, criteria: Sequence[Criterion]) -> bool:
    """Whether all `must` criteria pass, as they do of an accepted attempt."""
    passed = {v["criterion_id"] for v in attempt["verdicts"] if passes(v)}
    return all(c["id"] in passed for c in criteria if c["must"])


@dataclass
class RecordStats:
    """Counts of records, which `add` takes one by one, and a sample of accepted instructions.

    `hits` has the seed id of the first contaminated samples, and the benchmark prompt they hold;
    `instructions` and `responses` have the lengths of accepted texts, in characters. `juries`
    counts the votes behind the verdicts of all attempts, `answers` the bare answers.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    reviews: Counter[str] = field(default_factory=Counter)
    criteria: dict[str, CriterionStats] = field(default_factory=dict)
    trials: dict[tuple[str, str], TrialStats] = field(default_factory=dict)
    juries: Counter[JuryVotes] = field(default_factory=Counter)
    answers: AnswerStats = field(default_factory=AnswerStats)
    hits: list[tuple[str, str]] = field(default_factory=list)
    instructions: array[int] = field(default_factory=lambda: array("l"))
    responses: array[int] = field(default_factory=lambda: array("l"))
    sample: HashSample[str] = field(default_factory=lambda: HashSample(INSTRUCTION_SAMPLE))
    instructions_edited: int = 0
    _tried: set[str] = field(default_factory=set)

    def add(self, record: dict[str, Any]) -> None:
        """Count a record."""
        status = record["status"]
        if status == "rejected":
            self.reasons[record["reason"] or "criteria"] += 1
            if record["reason"] == "contaminated" and len(self.hits) < MAX_HITS:
                verdicts = [v for attempt in record["attempts"] for v in attempt["verdicts"]]
                hits = [v["reason"] for v in verdicts if v["criterion_id"] == NOT_CONTAMINATED_ID]
                self.hits.append((record["seed_id"], hits[-1] if hits else ""))
        if status == "failed":
            error = record.get("error") or {}
            self.errors[f"{error.get('kind')} in {error.get('stage')}"] += 1
            return
        if review := record.get("review"):
            self.reviews[str(review["decision"])] += 1
            self.instructions_edited += "instruction_before" in record
        self._count_verdicts(record)
        self._count_trials(record)
        self.answers.add(record)
        if status == "accepted":
            self.attempts[len(record["attempts"])] += 1
            self.instructions.append(len(record["instruction"]))
            self.responses.append(len(record["response"]))
            self.sample.add(hash_id(record["id"]), record["instruction"])

    @property
    def review_summary(self) -> str:
        """The reviewers' decisions as text, such as "2 accepted, 1 edited"."""
        words = {"accept": "accepted", "edit": "edited", "reject": "rejected"}
        counts = ((self.reviews[key], word) for key, word in words.items())
        summary = ", ".join(f"{n:,} {word}" for n, word in counts if n)
        if self.instructions_edited:
            summary = summary.replace(
                " edited", f" edited (the instruction of {self.instructions_edited:,})"
            )
        return summary

    def _count_verdicts(self, record: dict[str, Any]) -> None:
        attempts = record["attempts"]
        if not attempts:
            return
        criteria = {c["id"]: c for c in record["criteria"]}
        for attempt, name in ((attempts[0], "first"), (attempts[-1], "last")):
            for verdict in attempt["verdicts"]:
                criterion = criteria.get(verdict["criterion_id"])
                if criterion is None:
                    continue
                stats = self._criterion_stats(criterion)
                if stats is not None:
                    getattr(stats, name)[verdict["verdict"]] += 1
        for verdict in (v for attempt in attempts for v in attempt["verdicts"]):
            criterion = criteria.get(verdict["criterion_id"])
            if criterion is not None and (votes := jury_votes(verdict, criterion)) is not None:
                self.juries[votes] += 1
        for id_ in marked_as_wrong(record):
            stats = self._criterion_stats(criteria[id_]) if id_ in criteria else None
            if stats is not None:
                stats.wrong += 1

    def _count_trials(self, record: dict[str, Any]) -> None:
        """Add the trials of criteria that no earlier record has. Old records have none."""
        for of, name in (("response", "criteria"), ("instruction", "instruction_criteria")):
            for criterion in record.get(name) or ():
                trial, id_ = criterion.get("trial"), criterion["id"]
                if not trial or id_ in self._tried or len(self._tried) >= MAX_CRITERIA_COUNTED:
                    continue
                self._tried.add(id_)
                text = criterion["text"]
                stats = self.trials.setdefault((of, text), TrialStats(text, of))
                stats.references += trial["references"]
                stats.own += trial["own"]
                stats.spoiled.update(trial["spoiled"])

    def _criterion_stats(self, criterion: dict[str, Any]) -> CriterionStats | None:
        text, must = criterion["text"], criterion["must"]
        from_reference = criterion["reference_id"] is not None
        key = criterion_key(text, must) if from_reference else criterion["id"]
        if key not in self.criteria:
            if len(self.criteria) >= MAX_CRITERIA_COUNTED:
                return None
            by = "judge, from references" if from_reference else criterion["judged_by"]
            self.criteria[key] = CriterionStats(text, must, by, from_reference)
        return self.criteria[key]

    def top_criteria(self, limit: int) -> list[CriterionStats]:
        """Rules and built-in criteria, then up to `limit` from references, the most judged first.

        Criteria that were never judged are left out.
        """
        judged = [c for c in self.criteria.values() if c.judged]
        built_in = [c for c in judged if not c.from_reference]
        extracted = sorted((c for c in judged if c.from_reference), key=lambda c: -c.judged)
        return built_in + extracted[:limit]


def criterion_key(text: str, must: bool) -> str:
    """The key under which criteria of several references with the same words count as one."""
    return f"{text} {must}"


def marked_as_wrong(record: dict[str, Any]) -> list[str]:
    """The ids of the criteria that a reviewer of a sample marked as wrong."""
    return (record.get("review") or {}).get("wrong_criteria") or []


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
