"""Near-duplicates: texts by ROUGE-L, exact and fast; vectors by cosine; copied runs of words.

A text is a near-duplicate of another when the ROUGE-L F1 of the two is over the threshold. ROUGE-L
F1 is 2 * LCS / (m + n) for texts of m and n tokens, where LCS is the length of their longest common
subsequence. Decisions are made in integers: for 0.7, 20 * LCS > 7 * (m + n). Tokens are those of
the `rouge_score` package; a text without any is compared by its characters.
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

# After this many texts the token frequencies are good enough to order the index by.
LEARN_FROM_TEXTS = 1024
# A text with more tokens has a second mask of 1024 bits: nearly all of its 64 would be set.
LONG_TEXT = 24
LAST_CODE_POINT = 0x10FFFF
COSINE_BLOCK = 4096

# A text with one code point a token, rapidfuzz's fastest form; a tuple when they run out.
Code = str | tuple[int, ...]

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


def novel(texts: Iterable[str], threshold: float = 0.7) -> Iterator[int]:
    """Yield the indices of the texts that are not a near-duplicate of any text yielded before.

    Streams; memory grows with the texts yielded (see `NoveltyFilter`).

    >>> list(novel(["Why are tides high twice a day?", "Why are tides high twice each day?", "x"]))
    [0, 2]
    """
    known = NoveltyFilter(threshold)
    for i, text in enumerate(texts):
        if known.admit(text, "") is None:
            yield i


def rouge_matrix(
    left: Sequence[str], right: Sequence[str] | None = None, *, max_tokens: int | None = None
) -> NDArray[np.float64]:
    """Compute the ROUGE-L F1 of every left text with every right one, shape (left, right).

    Without `right`, the left texts are compared with each other, each pair once: a symmetric
    matrix. Only the first `max_tokens` tokens of a text count. Blocks.

    >>> rouge_matrix(["why two tides"], ["why two moons", "amber"]).round(3).tolist()
    [[0.667, 0.0]]
    >>> rouge_matrix(["why two tides", "why two moons"]).round(3).tolist()
    [[1.0, 0.667], [0.667, 1.0]]
    """
    import numpy as np
    from rapidfuzz.process import cdist

    numbers = TokenNumbers()
    rows = [_encode(numbers.of(text)[:max_tokens]) for text in left]
    # For the same list twice, `cdist` compares each pair once.
    columns = rows
    if right is not None:
        columns = [_encode(numbers.of(text)[:max_tokens]) for text in right]
    if not rows or not columns:
        return np.zeros((len(rows), len(columns)))
    common = cdist(rows, columns, scorer=LCSseq.similarity, dtype=np.int32)
    sizes = np.add.outer([len(code) for code in rows], [len(code) for code in columns])
    # Two texts without tokens are equal.
    return np.where(sizes > 0, 2 * common.astype(np.float64) / np.maximum(sizes, 1), 1.0)


class TokenNumbers(dict[str | int, int]):
    """Numbers tokens in order of first use. The key of a number is its token repeated.

    >>> numbers = TokenNumbers()
    >>> numbers.of("to be or not to be")
    [0, 1, 2, 3, 0, 1]
    >>> numbers.distinct([0, 1, 2, 3, 0, 1])
    [0, 1, 2, 3, 4, 5]
    """

    def __missing__(self, token: str | int) -> int:
        number = len(self) if len(self) < _SURROGATES else len(self) + _GAP
        self[token] = number
        return number

    def of(self, text: str) -> list[int]:
        """Return the numbers of a text's tokens."""
        return list(map(self.__getitem__, tokens(text)))

    def distinct(self, numbers: Sequence[int]) -> Sequence[int]:
        """Make repeated tokens distinct: the second "be" gets another number than the first."""
        if len(set(numbers)) == len(numbers):
            return numbers
        latest: dict[int, int] = {}
        keys = []
        for number in numbers:
            key = self[latest[number]] if number in latest else number
            latest[number] = key
            keys.append(key)
        return keys


def _encode(numbers: Sequence[int], last_code_point: int = LAST_CODE_POINT) -> Code:
    if max(numbers, default=0) > last_code_point:
        return tuple(numbers)
    return "".join(map(chr, numbers))


class _TokenRank(dict[int, int]):
    """Rank of a token, the rarest first. A token not counted yet is rarer, the later the rarer."""

    def __missing__(self, key: int) -> int:
        return -key


class _TokenizedText(NamedTuple):
    """A text as the filter compares it: `mask` has a bit for each token, modulo 64.

    `long_mask` is the same modulo 1024, for a long text; else 0.
    """

    code: Code
    size: int
    rarest: list[int]
    mask: int
    long_mask: int


class NoveltyFilter:
    """Finds which known text is a near-duplicate of a new one. Exact.

    Near-duplicates share some of their rarest tokens, and more of them the closer they are in
    length. An inverted index over those finds the candidates, a 64-bit mask of each text's tokens
    rules out most of them, and the rest are compared exactly. A text of 30 tokens takes about 450
    bytes.
    """

    def __init__(
        self,
        threshold: float = 0.7,
        *,
        learn_from_texts: int = LEARN_FROM_TEXTS,
        last_code_point: int = LAST_CODE_POINT,
    ) -> None:
        """Start without texts.

        Args:
            threshold: An F1 over this is a duplicate; 0 < threshold <= 1.
            learn_from_texts: The index is rebuilt by token frequency after this many texts.
            last_code_point: Texts with a greater token number are compared as tuples.
        """
        ratio = Fraction(str(threshold)) / 2
        self._num, self._den = ratio.numerator, ratio.denominator
        self._ratio = float(ratio)
        self._learn_from_texts, self._last_code_point = learn_from_texts, last_code_point
        self._numbers = TokenNumbers()
        self._rank = _TokenRank()
        self._unindexed_of_size: dict[int, int] = {}
        self._postings: dict[int, array[int]] = {}
        # The codes of all texts as UTF-8, one after another, and where each ends.
        self._codes, self._ends = bytearray(), array("Q")
        self._wide_codes: dict[int, Code] = {}
        self._masks, self._sizes, self._unindexed = array("Q"), array("f"), array("f")
        self._long_masks: dict[int, int] = {}
        self._names: list[str] = []
        self._empty: str | None = None

    def __len__(self) -> int:
        return len(self._names)

    def collision(self, text: str, ignore: str | None = None) -> str | None:
        """Return the name of the first near-duplicate of `text`, or None if it is new.

        Texts under the name `ignore` do not count.
        """
        return self._first_near(self._tokenize(text), ignore)

    def add(self, text: str, name: str) -> None:
        """Add `text` under `name`."""
        self._append(self._tokenize(text), name)

    def admit(self, text: str, name: str) -> str | None:
        """Add `text` if it is new; else return the name of its first near-duplicate."""
        tokenized = self._tokenize(text)
        collision = self._first_near(tokenized)
        if collision is None:
            self._append(tokenized, name)
        return collision

    def _tokenize(self, text: str) -> _TokenizedText:
        numbers = self._numbers.of(text)
        keys = self._numbers.distinct(numbers)
        mask = 0
        for key in keys:
            mask |= 1 << (key & 63)
        long_mask = 0
        if len(keys) > LONG_TEXT:
            for key in keys:
                long_mask |= 1 << (key & 1023)
        code = _encode(numbers, self._last_code_point)
        return _TokenizedText(code, len(numbers), self._rarest(keys), mask, long_mask)

    def _first_near(self, text: _TokenizedText, ignore: str | None = None) -> str | None:
        if not text.size:
            return self._empty if self._empty != ignore else None
        for i in self._candidates(text):
            if self._names[i] == ignore:
                continue
            total = text.size + int(self._sizes[i])
            least = self._least_common(total)
            if text.long_mask and i in self._long_masks:
                differing = (text.long_mask ^ self._long_masks[i]).bit_count()
                if differing > total - 2 * least:
                    continue
            other = self._code(i)
            if LCSseq.similarity(text.code, other, score_cutoff=least) >= least:
                return self._names[i]
        return None

    def _candidates(self, text: _TokenizedText) -> list[int]:
        """Return the indices of all possible near-duplicates, in order."""
        postings = [self._postings[key] for key in text.rarest if key in self._postings]
        if not postings:
            return []
        import numpy as np

        indices = np.frombuffer(b"".join(postings), np.uint32)
        # Each differing bit is a token that only one text has, and at most m + n - 2 * LCS tokens
        # are. The small excess makes up for rounding.
        masks = np.frombuffer(self._masks, np.uint64).take(indices)
        sizes = np.frombuffer(self._sizes, np.float32)
        share = 1 - 2 * self._ratio
        limit = sizes.take(indices) * np.float32(share) + np.float32(share * text.size + 0.01)
        indices = indices[np.bitwise_count(masks ^ np.uint64(text.mask)) <= limit]
        if not len(indices):
            return []
        indices, shared = _count_each(indices)
        # Two texts share the indexed tokens counted here, and at most all the unindexed tokens of
        # one of them.
        least = np.floor((sizes.take(indices) + text.size) * self._ratio - 0.01) + 1
        unindexed = np.frombuffer(self._unindexed, np.float32).take(indices)
        enough = shared >= least - np.maximum(unindexed, self._count_unindexed(text.size))
        candidates: list[int] = indices[enough].tolist()
        return candidates

    def _append(self, text: _TokenizedText, name: str) -> None:
        i = len(self._names)
        if not text.size and self._empty is None:
            self._empty = name
        if isinstance(text.code, str):
            self._codes += text.code.encode()
        else:
            self._wide_codes[i] = text.code
        self._ends.append(len(self._codes))
        self._masks.append(text.mask)
        self._sizes.append(text.size)
        self._unindexed.append(self._count_unindexed(text.size))
        if text.long_mask:
            self._long_masks[i] = text.long_mask
        self._names.append(name)
        self._post(i, text.rarest)
        if i + 1 == self._learn_from_texts:
            self._learn_frequencies()

    def _post(self, i: int, rarest: Iterable[int]) -> None:
        for key in rarest:
            if key in self._postings:
                self._postings[key].append(i)
            else:
                self._postings[key] = array("I", (i,))

    def _learn_frequencies(self) -> None:
        """Rebuild the index in the order of the measured token frequencies."""
        codes = map(self._code, range(len(self)))
        numbers = (list(map(ord, code)) if isinstance(code, str) else code for code in codes)
        texts = list(map(self._numbers.distinct, numbers))
        counts = Counter(key for keys in texts for key in keys)
        by_count = sorted(counts, key=lambda key: (counts[key], -key))
        self._rank.update((key, i) for i, key in enumerate(by_count))
        self._postings.clear()
        for i, keys in enumerate(texts):
            self._post(i, self._rarest(keys))

    def _code(self, i: int) -> Code:
        start = self._ends[i - 1] if i else 0
        code = self._codes[start : self._ends[i]]
        return code.decode() if code or i not in self._wide_codes else self._wide_codes[i]

    def _rarest(self, keys: Sequence[int]) -> list[int]:
        """Return the tokens to index; a near-duplicate has at least one of them in its own."""
        ranks = sorted(map(self._rank.__getitem__, keys))
        return ranks[: len(keys) - self._count_unindexed(len(keys))]

    def _count_unindexed(self, size: int) -> int:
        """Return how many tokens need no index: any near-duplicate shares more than those."""
        count = self._unindexed_of_size.get(size)
        if count is None:
            shortest = min(self._num * size // (self._den - self._num) + 1, size)
            count = max(min(self._least_common(size + shortest), size) - 1, 0)
            self._unindexed_of_size[size] = count
        return count

    def _least_common(self, total: int) -> int:
        """Return the shortest LCS of near-duplicates that have `total` tokens together."""
        return self._num * total // self._den + 1


def _count_each(indices: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """Return each index once, in order, and how often it occurs."""
    import numpy as np

    indices.sort()
    first = np.ones(len(indices), np.bool_)
    np.not_equal(indices[1:], indices[:-1], out=first[1:])
    starts = first.nonzero()[0]
    counts = np.empty_like(starts)
    np.subtract(starts[1:], starts[:-1], out=counts[:-1])
    counts[-1] = len(indices) - starts[-1]
    return indices[starts], counts


class CosineFilter:
    """Finds which known vector is too near to a new one. Exact.

    A lookup compares with every vector: about 1 ms for 10,000 of 384 dimensions.
    """

    def __init__(self, threshold: float, *, block: int = COSINE_BLOCK) -> None:
        """Start without vectors.

        Args:
            threshold: A cosine over this is a duplicate; -1 <= threshold <= 1.
            block: Vectors allocated and compared together.
        """
        self._threshold = threshold
        self._block = block
        self._blocks: list[NDArray[np.float32]] = []
        self._names: list[str] = []

    def collision(self, vector: NDArray[np.float32]) -> str | None:
        """Return the name of the first vector too near to `vector` (unit length), or None."""
        for i, block in enumerate(self._blocks):
            filled = block[: len(self._names) - i * self._block]
            over = filled @ vector > self._threshold
            if over.any():
                return self._names[i * self._block + int(over.argmax())]
        return None

    def add(self, vector: NDArray[np.float32], name: str) -> None:
        """Add a vector of unit length under `name`."""
        import numpy as np

        at = len(self._names) % self._block
        if not at:
            self._blocks.append(np.empty((self._block, len(vector)), np.float32))
        self._blocks[-1][at] = vector
        self._names.append(name)


def find_copied_run(text: str, source: str, words: int, allowed: str = "") -> str | None:
    """Return the first run of `words` words that `text` copies from `source`, or None.

    A run that is also in `allowed` does not count.

    >>> find_copied_run("so we rise with the sea", "Boats rise with the sea each day.", 4)
    'rise with the sea'
    """
    runs = _source_runs(source, words) - set(_runs(allowed, words))
    return next((" ".join(run) for run in _runs(text, words) if run in runs), None)


@lru_cache(maxsize=32)
def _source_runs(source: str, words: int) -> frozenset[tuple[str, ...]]:
    """Return the runs of a reference; cached, as every draft made from it is checked."""
    return frozenset(_runs(source, words))


def _runs(text: str, words: int) -> Iterator[tuple[str, ...]]:
    split = tokens(text)
    return (tuple(split[i : i + words]) for i in range(len(split) - words + 1))
