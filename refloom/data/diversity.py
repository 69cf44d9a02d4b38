"""How different texts are from each other, in figures that cost no model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from memory.novelty import tokens


class Diversity(NamedTuple):
    """Figures of `texts` many texts; None where there are too few of them.

    `pairwise` is the mean ROUGE-L F1 over all pairs, `nearest` the mean of each text's highest,
    `distinct_2` the share of different pairs of words among all pairs of neighbouring words.
    """

    texts: int
    pairwise: float | None
    nearest: float | None
    distinct_2: float | None


def diversity(texts: Sequence[str]) -> Diversity:
    """Compare every text with every other; meant for some hundreds of them. Blocks.

    >>> diversity(["why two tides", "why two moons"]).pairwise
    0.667
    """
    from rapidfuzz.distance import LCSseq

    split = [tokens(text) for text in texts]
    total, nearest = 0.0, [0.0] * len(split)
    for i, one in enumerate(split):
        for j in range(i):
            size = len(one) + len(split[j])
            alike = 2 * LCSseq.similarity(one, split[j]) / size if size else 1.0
            total += alike
            nearest[i], nearest[j] = max(nearest[i], alike), max(nearest[j], alike)
    pairs = [pair for one in split for pair in pairwise(one)]
    count = len(split) * (len(split) - 1) // 2
    return Diversity(
        len(split),
        round(total / count, 3) if count else None,
        round(sum(nearest) / len(split), 3) if count else None,
        round(len(set(pairs)) / len(pairs), 3) if pairs else None,
    )
