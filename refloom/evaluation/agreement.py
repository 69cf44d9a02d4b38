"""How far the jurors of a jury agree, and how often each is overruled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from refloom.data.record_stats import JuryVotes
from refloom.evaluation.stats import krippendorff_alpha, proportion


def jury_agreement(counts: Mapping[JuryVotes, int]) -> dict[str, Any] | None:
    """Krippendorff's alpha of a jury's verdicts, and each juror's part; None without a jury.

    `counts` says how often the jurors voted so. Alpha is over what decides, pass (or not
    applicable) against fail; a juror who does not know is missing. It is given over all verdicts,
    by kind of criterion, and for each pair of jurors. A juror is overruled where the jury's
    verdict is not its own; `n` counts the verdicts that it gave.
    """
    counts = {votes: n for votes, n in counts.items() if len(votes.models) > 1}
    if not counts:
        return None
    # A run has one jury.
    models = max(Counter(_totals(counts, "models")).items(), key=lambda item: item[1])[0]
    counts = {votes: n for votes, n in counts.items() if votes.models == models}
    kinds = sorted(_totals(counts, "kind"))
    numbers = range(len(models))
    return {
        "verdicts": sum(counts.values()),
        "alpha": _alpha(counts, numbers),
        "kinds": [
            _alpha_row(k, {v: n for v, n in counts.items() if v.kind == k}, numbers) for k in kinds
        ],
        "pairs": [
            _alpha_row(f"{models[a]} and {models[b]}", counts, (a, b))
            for a, b in combinations(numbers, 2)
        ],
        "jurors": [_juror_row(models[number], number, counts) for number in numbers],
    }


def _totals(counts: Mapping[JuryVotes, int], name: str) -> dict[Any, int]:
    totals: dict[Any, int] = {}
    for votes, n in counts.items():
        totals[getattr(votes, name)] = totals.get(getattr(votes, name), 0) + n
    return totals


def _alpha(counts: Mapping[JuryVotes, int], numbers: Sequence[int]) -> float | None:
    units: Counter[tuple[bool | None, ...]] = Counter()
    for votes, n in counts.items():
        units[tuple(votes.votes[number] for number in numbers)] += n
    return krippendorff_alpha(units)


def _alpha_row(of: str, counts: Mapping[JuryVotes, int], numbers: Sequence[int]) -> dict[str, Any]:
    return {"of": of, "alpha": _alpha(counts, numbers), "verdicts": sum(counts.values())}


def _juror_row(model: str, number: int, counts: Mapping[JuryVotes, int]) -> dict[str, Any]:
    known = {votes: n for votes, n in counts.items() if votes.votes[number] is not None}
    overruled = sum(n for votes, n in known.items() if votes.votes[number] != votes.passed)
    passing = sum(n for votes, n in known.items() if votes.votes[number])
    votes_of_juror, total = sum(known.values()), sum(counts.values())
    return {
        "model": model,
        "overruled": proportion(overruled, votes_of_juror)._asdict(),
        "passes": proportion(passing, votes_of_juror)._asdict(),
        "unknown": proportion(total - votes_of_juror, total)._asdict(),
    }
