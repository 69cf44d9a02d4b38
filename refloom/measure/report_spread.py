"""How a run's instructions differ from each other and from its references, on fair samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from memory.embed import Embed
from memory.weights import WeightsUnavailable
from refloom.measure.coverage import (
    Coverage,
    Floats,
    Vectors,
    cosines,
    coverage,
    nearest_of,
    pairs_of,
    rouge,
    vendi,
)
from refloom.measure.report_account import SAMPLE, Account
from refloom.measure.report_references import Shelf

# Under this a comparison at equal n says nothing, and does not hold the other runs down.
FEWEST = 20
# Of all runs together so many instructions are embedded, since that takes most of the time.
MOST_TOGETHER = 1000
# An embedding model reads less of a text than this.
MOST_CHARS = 2000
NOTHING = np.zeros(0)


class Spread(NamedTuple):
    """Texts beside each other: ROUGE-L F1 of all pairs and of each one's nearest; cosines."""

    n: int
    pairwise: Floats = NOTHING
    nearest: Floats = NOTHING
    distances: Floats = NOTHING
    vendi: float | None = None


@dataclass(frozen=True)
class Measured:
    """What was found of a run; `equal` are as many of its rows as there are references beside.

    `novelty` is each row's highest ROUGE-L F1 with any of `compared` references.
    """

    rows: Spread
    equal: Spread
    references: Spread
    novelty: Floats
    compared: int
    covered: Coverage | None
    clustered: int


class Embedded(NamedTuple):
    """Vectors of texts, or why there are none."""

    vectors: Mapping[str, Vectors]
    missing: str = ""

    def of(self, texts: Sequence[str]) -> Vectors | None:
        """The vectors of texts, None where there are none."""
        if self.missing or not texts:
            return None
        return np.stack([self.vectors[text[:MOST_CHARS]] for text in texts])


def sizes(accounts: Sequence[Account]) -> list[int]:
    """How many instructions of each run are looked at: as many in each, where there are enough."""
    drawn = [len(account.rows.drawn()) for account in accounts]
    common = min((n for n in drawn if n >= FEWEST), default=SAMPLE)
    most = max(MOST_TOGETHER // max(len(drawn), 1), FEWEST)
    return [min(n, common, most) for n in drawn]


def texts_of(account: Account, shelf: Shelf, n: int) -> tuple[list[str], list[str]]:
    """The instructions of rows and of references that are looked at closely."""
    rows = [row.instruction for row in account.rows.drawn()[:n]]
    return rows, [reference["instruction"] for reference in shelf.sample[:SAMPLE]]


async def embedded(embed: Embed, texts: Sequence[str], kept: Mapping[str, Vectors]) -> Embedded:
    """Embed each of the texts once; where the model cannot be had it is said why.

    `kept` are vectors that the run's own index has of some of them.
    """
    each = list(dict.fromkeys(text[:MOST_CHARS] for text in texts))
    if len(each) < 2:
        return Embedded({}, "there are too few texts")
    known = {text[:MOST_CHARS]: vector for text, vector in kept.items()}
    new = [text for text in each if text not in known]
    # Half a surrogate pair is no text to a tokenizer.
    readable = [text.encode("utf-8", "replace").decode() for text in new]
    try:
        vectors = dict(zip(new, await embed(readable), strict=True)) if new else {}
    except WeightsUnavailable as error:
        return Embedded({}, f"the embedding model cannot be had: {error}")
    found = known | vectors
    if len({len(vector) for vector in found.values()}) > 1:
        return await embedded(embed, texts, {})
    return Embedded(found)


def measured(account: Account, shelf: Shelf, n: int, found: Embedded) -> Measured:
    """Compare the rows of a run with each other and with its references. Blocks."""
    rows, references = texts_of(account, shelf, n)
    vectors, others = found.of(rows), found.of(references)
    equal = min(len(rows), len(references))
    against, ids = shelf.sample, {reference["id"] for reference in shelf.sample}
    if shelf.count > len(against):
        # What a row was made from is the likeliest to be near it.
        against = against + [r for id_, r in shelf.known.items() if id_ not in ids]
    alike = rouge(rows, [reference["instruction"] for reference in against])
    covered = None
    if vectors is not None and others is not None:
        covered = coverage(others, vectors)
    return Measured(
        spread(rows, vectors),
        spread(rows[:equal], None if vectors is None else vectors[:equal]),
        spread(references[:equal], None if others is None else others[:equal]),
        alike.max(axis=1) if against else NOTHING,
        len(against),
        covered,
        len(references),
    )


def spread(texts: Sequence[str], vectors: Vectors | None) -> Spread:
    """Compare texts with each other. Blocks."""
    if not texts:
        return Spread(0)
    alike = rouge(texts, texts)
    found = Spread(len(texts), pairs_of(alike), nearest_of(alike))
    if vectors is None:
        return found
    near = nearest_of(cosines(vectors, vectors))
    return found._replace(distances=1 - near, vendi=vendi(vectors))
