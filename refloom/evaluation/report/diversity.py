"""How different instructions are, how new, and how much of the references' ground they cover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory.embed import Embed
from memory.novelty import Numbers, tokens
from memory.weights import WeightsUnavailable
from refloom.evaluation.report.collect import SAMPLE, Account, Shelf
from refloom.evaluation.stats import Interval, proportion

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]

# Of a very long text so many tokens are compared.
MOST_TOKENS = 2000
LAST_CODE_POINT = 0x10FFFF
MOST_CLUSTERS = 20
ROUNDS = 50


def rouge(left: Sequence[str], right: Sequence[str]) -> Floats:
    """The ROUGE-L F1 of every left text with every right one, shape (left, right). Blocks.

    Tokens are those of the novelty filter; of a text the first 2,000 count.

    >>> rouge(["why two tides"], ["why two moons", "amber"]).round(3).tolist()
    [[0.667, 0.0]]
    """
    from rapidfuzz.distance import LCSseq
    from rapidfuzz.process import cdist

    if not left or not right:
        return np.zeros((len(left), len(right)))
    numbers = Numbers()
    ours, theirs = [_code(t, numbers) for t in left], [_code(t, numbers) for t in right]
    common = cdist(ours, theirs, scorer=LCSseq.similarity, dtype=np.int32).astype(np.float64)
    sizes = np.add.outer(np.array([*map(len, ours)]), np.array([*map(len, theirs)]))
    # Two texts without any token are the same.
    return np.where(sizes > 0, 2 * common / np.maximum(sizes, 1), 1.0)


def _code(text: str, numbers: Numbers) -> str:
    """A text as one code point a token, the fastest form there is to compare."""
    return "".join(chr(min(numbers[t], LAST_CODE_POINT)) for t in tokens(text)[:MOST_TOKENS])


def pairs_of(alike: Floats) -> Floats:
    """The values of a square matrix over its diagonal: each pair once."""
    return alike[np.triu_indices(len(alike), 1)]


def nearest_of(alike: Floats) -> Floats:
    """The highest value of each row but its own on the diagonal; nothing where there is one row."""
    if len(alike) < 2:
        return np.zeros(0)
    others = alike - np.diag(np.full(len(alike), np.inf))
    found: Floats = others.max(axis=1)
    return found


def cosines(left: Vectors, right: Vectors) -> Floats:
    """The cosines of unit vectors, shape (left, right)."""
    return left.astype(np.float64) @ right.astype(np.float64).T


def vendi(vectors: Vectors) -> float:
    """The effective number of different texts, from 1 (all alike) to n (all unrelated).

    exp of the entropy of the eigenvalues of K/n, where K is the kernel of cosines: Friedman and
    Dieng, "The Vendi Score: A Diversity Evaluation Metric for Machine Learning", TMLR 2023,
    https://arxiv.org/abs/2210.02410. It cannot be over n, so compare it at equal n only.

    >>> round(vendi(np.eye(3, dtype=np.float32)), 6), round(vendi(np.ones((3, 1), np.float32)), 6)
    (3.0, 1.0)
    """
    values = np.linalg.eigvalsh(cosines(vectors, vectors) / len(vectors))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def evenness(counts: Sequence[int]) -> float | None:
    """How evenly counts are spread, 0 (all in one) to 1 (all alike): entropy over its most.

    >>> evenness([5, 5]), evenness([5, 0]), evenness([3])
    (1.0, 0.0, None)
    """
    total = sum(counts)
    if len(counts) < 2 or not total:
        return None
    shares = np.array([count / total for count in counts if count])
    return round(abs(float(-(shares * np.log(shares)).sum())) / float(np.log(len(counts))), 4)


@dataclass(frozen=True)
class Cluster:
    """References that are alike: the place of the most typical, and how many of each fall in."""

    centre: int
    references: int
    rows: int


@dataclass(frozen=True)
class Coverage:
    """How rows spread over clusters of references; `covered` is the share that has one at least."""

    clusters: list[Cluster]
    covered: Interval
    rows_even: float | None
    references_even: float | None


def coverage(references: Vectors, rows: Vectors, random_seed: int = 0) -> Coverage | None:
    """Cluster the references' vectors and count which rows are nearest to each. Blocks.

    There are as many clusters as the root of the number of references, 20 at most. None without
    references or rows.
    """
    if not len(references) or not len(rows):
        return None
    most = min(MOST_CLUSTERS, len(np.unique(references, axis=0)))
    centres = k_means(references, max(1, min(most, round(len(references) ** 0.5))), random_seed)
    near = cosines(references, centres)
    own, fallen = near.argmax(axis=1), cosines(rows, centres).argmax(axis=1)
    clusters = [
        Cluster(int(near[:, i].argmax()), int((own == i).sum()), int((fallen == i).sum()))
        for i in range(len(centres))
    ]
    clusters = sorted((c for c in clusters if c.references), key=lambda c: -c.references)
    return Coverage(
        clusters,
        proportion(sum(c.rows > 0 for c in clusters), len(clusters)),
        evenness([c.rows for c in clusters]),
        evenness([c.references for c in clusters]),
    )


def k_means(vectors: Vectors, k: int, random_seed: int = 0) -> Vectors:
    """The unit-length centres of k clusters by cosine, always the same ones. Blocks.

    The first centres are drawn as k-means++ does: the farther from those there are, the likelier.
    """
    draw = np.random.default_rng(random_seed)
    chosen = [int(draw.integers(len(vectors)))]
    while len(chosen) < k:
        away = np.maximum(1 - cosines(vectors, vectors[chosen]).max(axis=1), 0) ** 2
        total = float(away.sum())
        if total < 1e-9:
            break
        chosen.append(int(draw.choice(len(vectors), p=away / total)))
    centres = vectors[chosen].astype(np.float64)
    before: NDArray[np.int64] | None = None
    for _ in range(ROUNDS):
        nearest = (vectors @ centres.T).argmax(axis=1)
        if before is not None and (nearest == before).all():
            break
        before = nearest
        for i in range(len(centres)):
            if (nearest == i).any():
                centre = vectors[nearest == i].mean(axis=0)
                centres[i] = centre / max(float(np.linalg.norm(centre)), 1e-9)
    return centres.astype(np.float32)


# MERGED refloom~measure~report_spread
# How a run's instructions differ from each other and from its references, on fair samples.
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
