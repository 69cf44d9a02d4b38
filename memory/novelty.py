"""Novelty filters: near-duplicates by ROUGE-L (exact and greedy) or by cosine.

A text is a near-duplicate of another when the F1 of their longest common subsequence (LCS) of
tokens is over the threshold; in whole numbers, for 0.7: 20 * LCS > 7 * (m + n). Tokens are those
of the `rouge_score` package; a text without any is compared by its characters.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from rapidfuzz.distance import LCSseq

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CosineFilter", "NoveltyFilter", "find_copied_run", "novel", "tokens"]

COSINE_BLOCK = 4096


class CosineFilter:
    """Finds which known vector is too near to a new one. Exact.

    A lookup compares with every vector: about 1 ms for 10,000 of 384 dimensions.
    """

    def __init__(self, threshold: float) -> None:
        """`threshold`: a cosine over this is a duplicate; -1 <= threshold <= 1."""
        self._threshold = threshold
        self._blocks: list[NDArray[np.float32]] = []
        self._names: list[str] = []

    def collision(self, vector: NDArray[np.float32]) -> str | None:
        """Return the name of the first vector too near to `vector` (unit length), or None."""
        for i, block in enumerate(self._blocks):
            held = block[: len(self._names) - i * COSINE_BLOCK]
            over = held @ vector > self._threshold
            if over.any():
                return self._names[i * COSINE_BLOCK + int(over.argmax())]
        return None

    def add(self, vector: NDArray[np.float32], name: str) -> None:
        """Add a vector of unit length under `name`."""
        import numpy as np

        at = len(self._names) % COSINE_BLOCK
        if not at:
            self._blocks.append(np.empty((COSINE_BLOCK, len(vector)), np.float32))
        self._blocks[-1][at] = vector
        self._names.append(name)


_words = re.compile("[a-z0-9]+").findall

# Token numbers skip the surrogates, so that a tokenized text can be a string of code points.
_SURROGATES, _GAP = 0xD800, 0x800


def tokens(text: str) -> list[str]:
    """Return the words of `text` as `rouge_score` splits them; its characters if there are none.

    >>> tokens("Tides follow the Moon!")
    ['tides', 'follow', 'the', 'moon']
    >>> tokens("潮汐")
    ['潮', '汐']
    """
    return _words(text.lower()) or list(text)


class TokenNumbers(dict[str | int, int]):
    """Numbers tokens in order of first use. The key of a number is its token repeated.

    >>> numbers = TokenNumbers()
    >>> numbers.of("to be or not to be")
    [0, 1, 2, 3, 0, 1]
    >>> numbers.each([0, 1, 2, 3, 0, 1])
    [0, 1, 2, 3, 4, 5]
    """

    def __missing__(self, token: str | int) -> int:
        number = len(self) if len(self) < _SURROGATES else len(self) + _GAP
        self[token] = number
        return number

    def of(self, text: str) -> list[int]:
        """Return the numbers of a text's tokens."""
        return list(map(self.__getitem__, tokens(text)))

    def each(self, numbers: Sequence[int]) -> Sequence[int]:
        """Make repeated tokens distinct: the second "be" gets another number than the first."""
        if len(set(numbers)) == len(numbers):
            return numbers
        latest: dict[int, int] = {}
        found = []
        for number in numbers:
            key = self[latest[number]] if number in latest else number
            latest[number] = key
            found.append(key)
        return found


def find_copied_run(text: str, source: str, words: int, allowed: str = "") -> str | None:
    """Return the first run of `words` words that `text` copies from `source`, or None.

    A run that is also in `allowed` does not count.

    >>> find_copied_run("so we rise with the sea", "Boats rise with the sea each day.", 4)
    'rise with the sea'
    """
    runs = _all_runs(source, words) - set(_runs(allowed, words))
    return next((" ".join(run) for run in _runs(text, words) if run in runs), None)


@lru_cache(maxsize=32)
def _all_runs(source: str, words: int) -> frozenset[tuple[str, ...]]:
    """Return the runs of a reference; cached, as every draft made from it is checked."""
    return frozenset(_runs(source, words))


def _runs(text: str, words: int) -> Iterator[tuple[str, ...]]:
    found = tokens(text)
    return (tuple(found[i : i + words]) for i in range(len(found) - words + 1))


# After this many texts the token frequencies are good enough to order the index by.
LEARN_FROM_TEXTS = 1024
# A text with more tokens has a second mask of 1024 bits: nearly all of its 64 would be set.
LONG_TEXT = 24
LAST_CODE_POINT = 0x10FFFF

# A text with one code point a token, rapidfuzz's fastest form; a tuple when they run out.
Code = str | tuple[int, ...]


class _TokenRank(dict[int, int]):
    """Rank of a token, the rarest first. A token not counted yet is rarer, the later the rarer."""

    def __missing__(self, key: int) -> int:
        return -key


class _TokenizedText(NamedTuple):
    """A tokenized text: its code for the LCS, its rarest tokens, and a bit mask of its tokens."""

    code: Code
    size: int
    rarest: list[int]
    bits: int
    more: int


class NoveltyFilter:
    """Finds which known text is a near-duplicate of a new one. Exact.

    Near-duplicates share some of their rarest tokens, and more of them the closer they are in
    length. An inverted index over those finds the candidates, a 64-bit mask of each text's tokens
    rules out most of them, and the rest are compared exactly. A text of 30 tokens takes about 450
    bytes.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        """`threshold`: an F1 over this is a duplicate; 0 < threshold <= 1."""
        ratio = Fraction(str(threshold)) / 2
        self._num, self._den = ratio.numerator, ratio.denominator
        self._ratio = float(ratio)
        self._numbers = TokenNumbers()
        self._order = _TokenRank()
        self._rest_of: dict[int, int] = {}
        self._postings: dict[int, array[int]] = {}
        # For each text: its code as UTF-8 and its end, its mask, its size, its unindexed tokens.
        self._codes, self._ends = bytearray(), array("Q")
        self._wide: dict[int, Code] = {}
        self._more: dict[int, int] = {}
        self._bits, self._sizes, self._rests = array("Q"), array("f"), array("f")
        self._names: list[str] = []
        self._empty: str | None = None

    def __len__(self) -> int:
        return len(self._names)

    def collision(self, text: str) -> str | None:
        """Return the name of the first near-duplicate of `text`, or None if it is new."""
        return self._first_near(self._read(text))

    def add(self, text: str, name: str) -> None:
        """Add `text` under `name`."""
        self._remember(self._read(text), name)

    def admit(self, text: str, name: str) -> str | None:
        """Add `text` if it is new; else return the name of its first near-duplicate."""
        read = self._read(text)
        found = self._first_near(read)
        if found is None:
            self._remember(read, name)
        return found

    def _read(self, text: str) -> _TokenizedText:
        numbers = self._numbers.of(text)
        each = self._numbers.each(numbers)
        bits = 0
        for key in each:
            bits |= 1 << (key & 63)
        more = 0
        if len(each) > LONG_TEXT:
            for key in each:
                more |= 1 << (key & 1023)
        return _TokenizedText(_encode(numbers), len(numbers), self._rarest(each), bits, more)

    def _first_near(self, read: _TokenizedText) -> str | None:
        if not read.size:
            return self._empty
        for i in self._candidates(read):
            total = read.size + int(self._sizes[i])
            least = self._least(total)
            if read.more and i in self._more:
                differing = (read.more ^ self._more[i]).bit_count()
                if differing > total - 2 * least:
                    continue
            other = self._code(i)
            if LCSseq.similarity(read.code, other, score_cutoff=least) >= least:
                return self._names[i]
        return None

    def _candidates(self, read: _TokenizedText) -> list[int]:
        """Return the places of all possible near-duplicates, in order."""
        found = [self._postings[key] for key in read.rarest if key in self._postings]
        if not found:
            return []
        import numpy as np

        places = np.frombuffer(b"".join(found), np.uint32)
        # Each differing bit is a token that only one text has, and at most m + n - 2 * LCS tokens
        # are. The small excess makes up for rounding.
        bits = np.frombuffer(self._bits, np.uint64).take(places)
        sizes = np.frombuffer(self._sizes, np.float32)
        share = 1 - 2 * self._ratio
        most = sizes.take(places) * np.float32(share) + np.float32(share * read.size + 0.01)
        places = places[np.bitwise_count(bits ^ np.uint64(read.bits)) <= most]
        if not len(places):
            return []
        places, shared = _count_places(places)
        # Two texts share the indexed tokens counted here, and at most all the unindexed tokens of
        # one of them.
        least = np.floor((sizes.take(places) + read.size) * self._ratio - 0.01) + 1
        rests = np.frombuffer(self._rests, np.float32).take(places)
        enough = shared >= least - np.maximum(rests, self._rest(read.size))
        chosen: list[int] = places[enough].tolist()
        return chosen

    def _remember(self, read: _TokenizedText, name: str) -> None:
        place = len(self._names)
        if not read.size and self._empty is None:
            self._empty = name
        if isinstance(read.code, str):
            self._codes += read.code.encode()
        else:
            self._wide[place] = read.code
        self._ends.append(len(self._codes))
        self._bits.append(read.bits)
        self._sizes.append(read.size)
        self._rests.append(self._rest(read.size))
        if read.more:
            self._more[place] = read.more
        self._names.append(name)
        self._post(place, read.rarest)
        if place + 1 == LEARN_FROM_TEXTS:
            self._learn()

    def _post(self, place: int, rarest: Iterable[int]) -> None:
        for key in rarest:
            if key in self._postings:
                self._postings[key].append(place)
            else:
                self._postings[key] = array("I", (place,))

    def _learn(self) -> None:
        """Rebuild the index in the order of the measured token frequencies."""
        texts = [self._numbers.each(_decode(self._code(i))) for i in range(len(self))]
        counts = Counter(key for each in texts for key in each)
        by_count = sorted(counts, key=lambda key: (counts[key], -key))
        self._order.update((key, i) for i, key in enumerate(by_count))
        self._postings.clear()
        for place, each in enumerate(texts):
            self._post(place, self._rarest(each))

    def _code(self, place: int) -> Code:
        start = self._ends[place - 1] if place else 0
        code = self._codes[start : self._ends[place]]
        return code.decode() if code or place not in self._wide else self._wide[place]

    def _rarest(self, each: Sequence[int]) -> list[int]:
        """Return the tokens to index; a near-duplicate has at least one of them in its own."""
        ordered = sorted(map(self._order.__getitem__, each))
        return ordered[: len(each) - self._rest(len(each))]

    def _rest(self, size: int) -> int:
        """Return how many tokens need no index: any near-duplicate shares more than those."""
        rest = self._rest_of.get(size)
        if rest is None:
            shortest = min(self._num * size // (self._den - self._num) + 1, size)
            rest = max(min(self._least(size + shortest), size) - 1, 0)
            self._rest_of[size] = rest
        return rest

    def _least(self, total: int) -> int:
        """Return the shortest LCS of near-duplicates that have `total` tokens together."""
        return self._num * total // self._den + 1


def _encode(numbers: Sequence[int]) -> Code:
    if max(numbers, default=0) > LAST_CODE_POINT:
        return tuple(numbers)
    return "".join(map(chr, numbers))


def _decode(code: Code) -> Sequence[int]:
    return list(map(ord, code)) if isinstance(code, str) else code


def _count_places(places: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """Return each place once, in order, and how often it occurs."""
    import numpy as np

    places.sort()
    first = np.ones(len(places), np.bool_)
    np.not_equal(places[1:], places[:-1], out=first[1:])
    starts = first.nonzero()[0]
    counts = np.empty_like(starts)
    np.subtract(starts[1:], starts[:-1], out=counts[:-1])
    counts[-1] = len(places) - starts[-1]
    return places[starts], counts


def novel(texts: Iterable[str], threshold: float = 0.7) -> Iterator[int]:
    """Yield the indices of the texts that are no near-duplicate of an earlier one that passed.

    Streams; memory grows with the texts that pass (see `NoveltyFilter`).

    >>> list(novel(["Why are tides high twice a day?", "Why are tides high twice each day?", "x"]))
    [0, 2]
    """
    known = NoveltyFilter(threshold)
    for i, text in enumerate(texts):
        if known.admit(text, "") is None:
            yield i
