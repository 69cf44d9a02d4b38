"""Near-duplicates: texts by ROUGE-L, exact and fast; vectors by cosine; copied runs of words.

A text is a near-duplicate of another when the ROUGE-L F1 of the two is over the threshold. ROUGE-L
F1 is 2 * LCS / (m + n) for texts of m and n tokens, where LCS is the length of their longest common
subsequence. Decisions are made in integers: for 0.7, 20 * LCS > 7 * (m + n). Tokens are those of
the `rouge_score` package; a text without any is compared by its characters.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from rapidfuzz.distance import LCSseq

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Texts of fewer tokens than the first number have masks as long as the second, in bits.
SHORT_TEXT = 40
MASK_LENGTHS = ((SHORT_TEXT, 128), (160, 512), (1 << 32, 2048))
LAST_WORD = (1 << 64) - 1
LAST_CODE_POINT = 0x10FFFF
COSINE_BLOCK = 4096
# About 30 kB for a source of 400 words.
REMEMBERED_SOURCES = 512

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


class _TokenizedText(NamedTuple):
    """A text as the filter compares it.

    `keys` are its tokens, repeated ones made distinct; `masks` are its masks by their length.
    """

    code: Code
    keys: Sequence[int]
    masks: dict[int, int]


class _MaskTable:
    """Texts of fewer than `end` tokens: their places in the filter, their sizes and masks.

    A mask has a bit for each number that an odd number of the text's tokens have, modulo its
    length. Where the masks of two texts differ, only one of them has a token. All texts are
    compared by the halves of their masks, XORed, and those left by the whole mask.
    """

    def __init__(self, end: int, length: int) -> None:
        self.end, self.length = end, length
        self._bits = [1 << i for i in range(length)]
        code = "B" if end <= SHORT_TEXT else "H"
        self._largest = 0xFF if code == "B" else 0xFFFF
        # Sizes, and twice the bits that each text lets differ; neither over what its type holds.
        self._sizes, self._twice = array(code), array(code)
        self._columns = [array("Q") for _ in range(0, length // 2, 64)]
        self._masks: list[int] = []
        self.places = array("I")

    def append(self, place: int, text: _TokenizedText, twice: int) -> None:
        """Add a text."""
        mask = self._mask(text)
        self.places.append(place)
        self._sizes.append(min(len(text.keys), self._largest))
        self._twice.append(min(twice, self._largest // 2))
        for column, word in zip(self._columns, self._words(mask), strict=True):
            column.append(word)
        self._masks.append(mask)

    def find_like(
        self, text: _TokenizedText, shortest: int, longest: int, twice: int
    ) -> list[tuple[int, int]]:
        """Return the place of each text of such a size and like mask, and how many bits differ."""
        import numpy as np

        mask, largest = self._mask(text), self._largest
        number = np.uint8 if largest == 0xFF else np.uint16
        sizes: NDArray[Any] = np.frombuffer(self._sizes, number)
        words = self._words(mask)
        differing = np.bitwise_count(np.frombuffer(self._columns[0], np.uint64) ^ words[0])
        differing = differing.astype(number, copy=False)
        for column, word in zip(self._columns[1:], words[1:], strict=True):
            differing += np.bitwise_count(np.frombuffer(column, np.uint64) ^ word)
        differing += differing
        like = differing <= np.frombuffer(self._twice, number) + min(twice, largest // 2)
        # A size under the least wraps around to a great number.
        least = min(shortest, largest)
        like &= sizes - least <= min(longest, largest) - least
        masks, places = self._masks, self.places
        return [(places[i], (masks[i] ^ mask).bit_count()) for i in like.nonzero()[0].tolist()]

    def _mask(self, text: _TokenizedText) -> int:
        mask = text.masks.get(self.length)
        if mask is None:
            mask, bits, last = 0, self._bits, self.length - 1
            for key in text.keys:
                mask ^= bits[key & last]
            text.masks[self.length] = mask
        return mask

    def _words(self, mask: int) -> list[int]:
        """Return the halves of a mask, XORed, by 64 bits."""
        folded = mask ^ mask >> self.length // 2
        return [folded >> start & LAST_WORD for start in range(0, self.length // 2, 64)]


class NoveltyFilter:
    """Finds which known text is a near-duplicate of a new one. Exact.

    A new text is compared with all known ones, by masks of their tokens; that rules out nearly all
    others. Those left are compared exactly. A text of 18 tokens takes about 170
    bytes.
    """

    def __init__(
        self,
        threshold: float = 0.7,
        *,
        mask_lengths: Iterable[tuple[int, int]] = MASK_LENGTHS,
        last_code_point: int = LAST_CODE_POINT,
    ) -> None:
        """Start without texts.

        Args:
            threshold: An F1 over this is a duplicate; 0 < threshold <= 1.
            mask_lengths: As `MASK_LENGTHS`; the last has no end that a text could reach.
            last_code_point: Texts with a greater token number are compared as tuples.
        """
        ratio = Fraction(str(threshold)) / 2
        self._num, self._den = ratio.numerator, ratio.denominator
        self._may_differ = float(1 - 2 * ratio)
        self._last_code_point = last_code_point
        self._numbers = TokenNumbers()
        # The codes of all texts as UTF-8, one after another, and where each ends.
        self._codes, self._ends = bytearray(), array("Q")
        self._wide_codes: dict[int, Code] = {}
        self._sizes = array("I")
        self._tables = [_MaskTable(end, length) for end, length in mask_lengths]
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
        code = _encode(numbers, self._last_code_point)
        return _TokenizedText(code, self._numbers.distinct(numbers), {})

    def _first_near(self, text: _TokenizedText, ignore: str | None = None) -> str | None:
        size = len(text.keys)
        if not size:
            return self._empty if self._empty != ignore else None
        for i in self._candidates(text):
            if self._names[i] == ignore:
                continue
            least = self._num * (size + self._sizes[i]) // self._den + 1
            if LCSseq.similarity(text.code, self._code(i), score_cutoff=least) >= least:
                return self._names[i]
        return None

    def _candidates(self, text: _TokenizedText) -> list[int]:
        """Return the indices of all possible near-duplicates, in order."""
        size, sizes, share = len(text.keys), self._sizes, self._may_differ
        # The LCS of two texts is at most the shorter one.
        shortest = self._num * size // (self._den - self._num) + 1
        longest = ((self._den - self._num) * size - 1) // self._num
        if shortest > longest:
            return []
        twice, start = self._twice(size), 0
        candidates: list[int] = []
        for table in self._tables:
            if start <= longest and shortest < table.end and table.places:
                # At most m + n - 2 * LCS tokens are in one text only. The excess is for rounding.
                candidates += [
                    i
                    for i, differing in table.find_like(text, shortest, longest, twice)
                    if differing <= (size + sizes[i]) * share + 0.01
                ]
            start = table.end
        return sorted(candidates)

    def _append(self, text: _TokenizedText, name: str) -> None:
        i, size = len(self._names), len(text.keys)
        if not size and self._empty is None:
            self._empty = name
        if isinstance(text.code, str):
            self._codes += text.code.encode()
        else:
            self._wide_codes[i] = text.code
        self._ends.append(len(self._codes))
        self._sizes.append(size)
        self._names.append(name)
        table = next(table for table in self._tables if size < table.end)
        table.append(i, text, self._twice(size))

    def _twice(self, size: int) -> int:
        """Return twice the share of a text of this size in the tokens that may differ, or more."""
        return -(-2 * (self._den - 2 * self._num) * size // self._den)

    def _code(self, i: int) -> Code:
        start = self._ends[i - 1] if i else 0
        code = self._codes[start : self._ends[i]]
        return code.decode() if code or i not in self._wide_codes else self._wide_codes[i]


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
    runs = set(_runs(source, words)) - set(_runs(allowed, words))
    return next((" ".join(run) for run in _runs(text, words) if run in runs), None)


def find_copied_source(
    text: str, sources: Iterable[str], words: int, allowed: str = ""
) -> tuple[int, str] | None:
    """Return which of the sources is the first that `find_copied_run` finds a run of, and the run.

    >>> find_copied_source("so we rise with the sea", ["We rise.", "Rise with the sea!"], 4)
    (1, 'rise with the sea')
    """
    # Cut into blocks of half a run, a text has a whole block in every run.
    size = (words + 1) // 2
    split = tokens(text)
    starts = range(0, len(split) - size + 1, size)
    blocks = {hash(tuple(split[i : i + size])) for i in starts}
    for i, source in enumerate(sources):
        if not blocks.isdisjoint(_hash_runs(source, size)):
            run = find_copied_run(text, source, words, allowed)
            if run is not None:
                return i, run
    return None


@lru_cache(maxsize=REMEMBERED_SOURCES)
def _hash_runs(source: str, words: int) -> frozenset[int]:
    """Return the hashes of a reference's runs; cached, as every draft made from it is checked."""
    return frozenset(map(hash, _runs(source, words)))


def _runs(text: str, words: int) -> Iterator[tuple[str, ...]]:
    split = tokens(text)
    return (tuple(split[i : i + words]) for i in range(len(split) - words + 1))
