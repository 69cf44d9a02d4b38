"""How diverse and how novel a run's instructions are, and how well they cover its references.

All figures are of random samples with a fixed seed, of the same size for every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory.embed import Embed, Vectors
from memory.novelty import rouge_matrix
from memory.weights import WeightsUnavailable
from refloom.evaluation.report.collect import SAMPLE_SIZE, ReferenceSample, RunData
from refloom.evaluation.stats import FloatArray, Interval, proportion

# Tokens of a text that are compared.
MAX_TOKENS = 2000
MAX_CLUSTERS = 20
KMEANS_ROUNDS = 50


def pairs_of(alike: FloatArray) -> FloatArray:
    """The values above the diagonal of a square matrix: each pair once."""
    return alike[np.triu_indices(len(alike), 1)]


def nearest_of(alike: FloatArray) -> FloatArray:
    """The highest value of each row off the diagonal; empty if there is only one row."""
    if len(alike) < 2:
        return np.zeros(0)
    others = alike - np.diag(np.full(len(alike), np.inf))
    nearest: FloatArray = others.max(axis=1)
    return nearest


def cosines(left: Vectors, right: Vectors) -> FloatArray:
    """The cosines of unit vectors, shape (left, right)."""
    return left.astype(np.float64) @ right.astype(np.float64).T


def vendi(vectors: Vectors) -> float:
    """The effective number of different texts, from 1 (all alike) to n (all unrelated).

    exp of the entropy of the eigenvalues of K/n, where K is the kernel of cosines: Friedman and
    Dieng, "The Vendi Score: A Diversity Evaluation Metric for Machine Learning", TMLR 2023,
    https://arxiv.org/abs/2210.02410. It grows with n, so compare it at equal n only.

    >>> round(vendi(np.eye(3, dtype=np.float32)), 6), round(vendi(np.ones((3, 1), np.float32)), 6)
    (3.0, 1.0)
    """
    values = np.linalg.eigvalsh(cosines(vectors, vectors) / len(vectors))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def evenness(counts: Sequence[int]) -> float | None:
    """The evenness of counts, from 0 (all in one) to 1 (all equal): entropy over its maximum.

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
    """A cluster of references: the index of its most typical one, and how many fall into it."""

    centre: int
    references: int
    rows: int


@dataclass(frozen=True)
class Coverage:
    """How rows spread over clusters of references; `covered`: the share of clusters with a row."""

    clusters: list[Cluster]
    covered: Interval
    rows_even: float | None
    references_even: float | None


def coverage(references: Vectors, rows: Vectors) -> Coverage | None:
    """Cluster the references' vectors and count which rows are nearest to each. Blocks.

    The number of clusters is the square root of the number of references, at most 20. None without
    references or rows.
    """
    if not len(references) or not len(rows):
        return None
    limit = min(MAX_CLUSTERS, len(np.unique(references, axis=0)))
    centres = k_means(references, max(1, min(limit, round(len(references) ** 0.5))))
    near = cosines(references, centres)
    of_references, of_rows = near.argmax(axis=1), cosines(rows, centres).argmax(axis=1)
    clusters = [
        Cluster(
            int(near[:, i].argmax()), int((of_references == i).sum()), int((of_rows == i).sum())
        )
        for i in range(len(centres))
    ]
    clusters = sorted((c for c in clusters if c.references), key=lambda c: -c.references)
    return Coverage(
        clusters,
        proportion(sum(c.rows > 0 for c in clusters), len(clusters)),
        evenness([c.rows for c in clusters]),
        evenness([c.references for c in clusters]),
    )


def k_means(vectors: Vectors, k: int) -> Vectors:
    """The unit-length centres of k clusters by cosine, begun as k-means++. Blocks."""
    rng = np.random.default_rng(0)
    chosen = [int(rng.integers(len(vectors)))]
    while len(chosen) < k:
        distances = np.maximum(1 - cosines(vectors, vectors[chosen]).max(axis=1), 0) ** 2
        total = float(distances.sum())
        if total < 1e-9:
            break
        chosen.append(int(rng.choice(len(vectors), p=distances / total)))
    centres = vectors[chosen].astype(np.float64)
    previous: NDArray[np.int64] | None = None
    for _ in range(KMEANS_ROUNDS):
        nearest = (vectors @ centres.T).argmax(axis=1)
        if previous is not None and (nearest == previous).all():
            break
        previous = nearest
        for i in range(len(centres)):
            if (nearest == i).any():
                centre = vectors[nearest == i].mean(axis=0)
                centres[i] = centre / max(float(np.linalg.norm(centre)), 1e-9)
    return centres.astype(np.float32)


# Runs with fewer rows are ignored when the common sample size is chosen.
MIN_ROWS = 20
# Instructions of all runs together that are embedded, which takes most of the time.
MAX_EMBEDDED = 1000
# More characters than an embedding model reads.
MAX_CHARS = 2000
NO_VALUES = np.zeros(0)


class Spread(NamedTuple):
    """Texts compared with each other.

    `pairwise` and `nearest` are ROUGE-L F1 of all pairs, and of each text with its nearest one;
    `distances` are 1 - cosine to the nearest one.
    """

    n: int
    pairwise: FloatArray = NO_VALUES
    nearest: FloatArray = NO_VALUES
    distances: FloatArray = NO_VALUES
    vendi: float | None = None


@dataclass(frozen=True)
class RunDiversity:
    """The diversity of a run; `equal`: of as many rows as there are references.

    `novelty` is each row's highest ROUGE-L F1 with any of `compared` references.
    """

    rows: Spread
    equal: Spread
    references: Spread
    novelty: FloatArray
    compared: int
    covered: Coverage | None
    clustered: int


class EmbeddedTexts(NamedTuple):
    """Vectors by text, or the reason why there are none."""

    vectors: Mapping[str, Vectors]
    missing: str = ""

    def of(self, texts: Sequence[str]) -> Vectors | None:
        """The vectors of texts, stacked; None if there are none."""
        if self.missing or not texts:
            return None
        return np.stack([self.vectors[text[:MAX_CHARS]] for text in texts])


def sample_sizes(runs: Sequence[RunData]) -> list[int]:
    """The number of instructions compared in each run: equal for all runs with enough rows."""
    available = [len(run.rows.items()) for run in runs]
    common = min((n for n in available if n >= MIN_ROWS), default=SAMPLE_SIZE)
    limit = max(MAX_EMBEDDED // max(len(available), 1), MIN_ROWS)
    return [min(n, common, limit) for n in available]


def sampled_texts(run: RunData, sample: ReferenceSample, n: int) -> tuple[list[str], list[str]]:
    """The sampled instructions of a run's rows, and of its references."""
    rows = [row.instruction for row in run.rows.items()[:n]]
    return rows, [reference["instruction"] for reference in sample.references[:SAMPLE_SIZE]]


async def embed_texts(
    embed: Embed, texts: Sequence[str], stored: Mapping[str, Vectors]
) -> EmbeddedTexts:
    """Embed each text once; gives the reason if the model is not available.

    `stored`: the vectors of some texts that the runs' indexes have.
    """
    distinct = list(dict.fromkeys(text[:MAX_CHARS] for text in texts))
    if len(distinct) < 2:
        return EmbeddedTexts({}, "there are too few texts")
    known = {text[:MAX_CHARS]: vector for text, vector in stored.items()}
    new = [text for text in distinct if text not in known]
    # A tokenizer refuses lone surrogates.
    readable = [text.encode("utf-8", "replace").decode() for text in new]
    try:
        vectors = dict(zip(new, await embed(readable), strict=True)) if new else {}
    except WeightsUnavailable as error:
        return EmbeddedTexts({}, f"the embedding model is not available: {error}")
    vectors = known | vectors
    if len({len(vector) for vector in vectors.values()}) > 1:
        return await embed_texts(embed, texts, {})
    return EmbeddedTexts(vectors)


def measure_run(
    run: RunData, sample: ReferenceSample, n: int, embedded: EmbeddedTexts
) -> RunDiversity:
    """Compare the rows of a run with each other and with its references. Blocks."""
    rows, references = sampled_texts(run, sample, n)
    vectors, others = embedded.of(rows), embedded.of(references)
    equal = min(len(rows), len(references))
    against, ids = sample.references, {reference["id"] for reference in sample.references}
    if sample.count > len(against):
        # A row is most likely to be near the references it was made from.
        against = against + [r for id_, r in sample.known.items() if id_ not in ids]
    alike = rouge_matrix(
        rows, [reference["instruction"] for reference in against], max_tokens=MAX_TOKENS
    )
    covered = None
    if vectors is not None and others is not None:
        covered = coverage(others, vectors)
    return RunDiversity(
        measure_spread(rows, vectors),
        measure_spread(rows[:equal], None if vectors is None else vectors[:equal]),
        measure_spread(references[:equal], None if others is None else others[:equal]),
        alike.max(axis=1) if against else NO_VALUES,
        len(against),
        covered,
        len(references),
    )


def measure_spread(texts: Sequence[str], vectors: Vectors | None) -> Spread:
    """Compare texts with each other. Blocks."""
    if not texts:
        return Spread(0)
    alike = rouge_matrix(texts, max_tokens=MAX_TOKENS)
    spread = Spread(len(texts), pairs_of(alike), nearest_of(alike))
    if vectors is None:
        return spread
    near = nearest_of(cosines(vectors, vectors))
    return spread._replace(distances=1 - near, vendi=vendi(vectors))
