"""Near-duplicates: texts by ROUGE-L, exact and fast; vectors by cosine; copied runs of words.

A text is a near-duplicate of another when the ROUGE-L F1 of the two is over the threshold. ROUGE-L
F1 is 2 * LCS / (m + n) for texts of m and n tokens, where LCS is the length of their longest common
subsequence. Decisions are made in integers: for 0.7, 20 * LCS > 7 * (m + n). Tokens are those of
the `rouge_score` package; a text without any is compared by its characters.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from rapidfuzz.distance import LCSseq

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Texts of fewer tokens than the first number have masks as long as the second, in bits.
SHORT_TEXT = 64
MASK_LENGTHS = ((SHORT_TEXT, 128), (160, 512), (1 << 32, 1024))
LAST_WORD = (1 << 64) - 1
# To look up a text's rare tokens pays from so many texts on, if they lead to at most this share.
INDEXED_TEXTS, INDEXED_SHARE = 1024, 4
LAST_CODE_POINT = 0x10FFFF
COSINE_BLOCK = 4096
# About 30 kB for a source of 400 words.
REMEMBERED_SOURCES = 512

# A text with one code point a token, rapidfuzz's fastest form; a tuple when they run out.
Code = str | tuple[int, ...]

_WORD = b"abcdefghijklmnopqrstuvwxyz0123456789"
_BLANKED = bytes(byte if byte in _WORD else 32 for byte in range(256))

# Token numbers skip the surrogates, so that a tokenized text can be a string of code points.
_SURROGATES, _GAP = 0xD800, 0x800


def tokens(text: str) -> list[str]:
    """Return the words of `text` as `rouge_score` splits them; its characters if there are none.

    >>> tokens("Tides follow the Moon!")
    ['tides', 'follow', 'the', 'moon']
    >>> tokens("潮汐")
    ['潮', '汐']
    """
    # Several times as fast as a regular expression.
    words = text.lower().encode("ascii", "replace").translate(_BLANKED).decode("ascii")
    return words.split() or list(text)


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

    `keys` are its tokens, repeated ones made distinct; `rarest` those of which each near-duplicate
    has at least one among its own rarest, from the greatest number down; `shortest` is the least
    size of a near-duplicate; `masks` are its masks by their length.
    """

    code: Code
    keys: Sequence[int]
    shortest: int
    rarest: list[int]
    masks: dict[int, int]


class _MaskTable:
    """Texts of fewer than `end` tokens: their places in the filter, and their masks.

    A mask has a bit for each number that an odd number of the text's tokens have, modulo its
    length. Where the masks of two texts differ, only one of them has a token.
    """

    def __init__(self, end: int, length: int) -> None:
        self.end = end
        self._length, self._bits = length, _bits(length)
        self._columns = [(start, array("Q")) for start in range(0, length, 64)]
        # The tokens that each text lets differ, or at least as many as a mask has bits.
        self._narrow = length <= 128
        self._limits = array("B" if self._narrow else "H")
        self._most = 127 if self._narrow else 0x7FFF
        self.places = array("I")

    def append(self, place: int, text: _TokenizedText, limit: int) -> None:
        """Add a text, of which `limit` tokens may be missing in a near-duplicate."""
        self.places.append(place)
        self._limits.append(min(limit, self._most + 1))
        mask = self._mask(text)
        for start, column in self._columns:
            column.append(mask >> start & LAST_WORD)

    def find_like(self, text: _TokenizedText, limit: int, rows: array[int] | None) -> list[int]:
        """Return the places of the texts of like mask.

        Only those in `rows` are compared, if it is given; one may be there, and returned, twice.
        """
        import numpy as np

        mask, number = self._mask(text), np.uint8 if self._narrow else np.uint16
        limits: NDArray[Any] = np.frombuffer(self._limits, number)
        columns = [np.frombuffer(column, np.uint64) for _, column in self._columns]
        if rows is not None:
            chosen = np.frombuffer(rows, np.uint32).astype(np.intp)
            limits, columns = limits[chosen], [column[chosen] for column in columns]
        differing: Any = None
        for (start, _), column in zip(self._columns, columns, strict=True):
            bits = np.bitwise_count(column ^ (mask >> start & LAST_WORD))
            if differing is None:
                differing = bits if self._narrow else bits.astype(number)
            else:
                differing += bits
        limits = limits + min(limit, self._most)
        like = (differing <= limits).nonzero()[0].tolist()
        if rows is not None:
            like = [rows[i] for i in like]
        places = self.places
        return [places[i] for i in like]

    def _mask(self, text: _TokenizedText) -> int:
        mask = text.masks.get(self._length)
        if mask is None:
            mask, bits, last = 0, self._bits, self._length - 1
            for key in text.keys:
                mask ^= bits[key & last]
            text.masks[self._length] = mask
        return mask


@cache
def _bits(length: int) -> list[int]:
    return [1 << i for i in range(length)]


class _RareTokens:
    """Which rows of a table have a token among their rarest.

    Two texts with more than a number of tokens in common have one of them among the rarest of
    each: all but that number. Rare is what was first used late; any fixed order would do.
    """

    def __init__(self) -> None:
        # By number: the rows that have it, where it is one row the row itself.
        self._rows: list[array[int] | int | None] = []

    def append(self, row: int, rarest: Sequence[int]) -> None:
        """Add a row with its rarest tokens, from the greatest number down."""
        known = self._rows
        if rarest and rarest[0] >= len(known):
            known += [None] * (rarest[0] + 1 - len(known))
        for key in rarest:
            rows = known[key]
            if rows is None:
                known[key] = row
            elif isinstance(rows, int):
                known[key] = array("I", (rows, row))
            else:
                rows.append(row)

    def find(self, rarest: Sequence[int], most: int) -> array[int] | None:
        """Return the rows with one of these tokens, some twice; None if they are over `most`."""
        known, rows = self._rows, array("I")
        end = len(known)
        for key in rarest:
            holders = known[key] if key < end else None
            if holders is None:
                continue
            if isinstance(holders, int):
                rows.append(holders)
            elif len(rows) + len(holders) > most:
                return None
            else:
                rows += holders
        return rows


class NoveltyFilter:
    """Finds which known text is a near-duplicate of a new one. Exact.

    A short text is compared with the known ones that share a rare token with it, or with all if
    these are many, and a long one with all, by masks of their tokens; that rules out nearly all
    others. Those left are compared exactly. A text of 18 tokens takes about 170 bytes.
    """

    def __init__(
        self,
        threshold: float = 0.7,
        *,
        mask_lengths: Iterable[tuple[int, int]] = MASK_LENGTHS,
        indexed_texts: int = INDEXED_TEXTS,
        last_code_point: int = LAST_CODE_POINT,
    ) -> None:
        """Start without texts.

        Args:
            threshold: An F1 over this is a duplicate; 0 < threshold <= 1.
            mask_lengths: As `MASK_LENGTHS`; the last has no end that a text could reach.
            indexed_texts: From so many short texts on, their rare tokens are looked up.
            last_code_point: Texts with a greater token number are compared as tuples.
        """
        ratio = Fraction(str(threshold)) / 2
        self._num, self._den = ratio.numerator, ratio.denominator
        self._last_code_point = last_code_point
        self._numbers = TokenNumbers()
        # The codes of all texts as UTF-8, one after another, and where each ends.
        self._codes, self._ends = bytearray(), array("Q")
        self._wide_codes: dict[int, Code] = {}
        self._sizes = array("I")
        self._tables = [_MaskTable(end, length) for end, length in mask_lengths]
        # Of the texts in the first table only: longer ones have too many tokens that are not rare.
        self._rare, self._indexed_texts = _RareTokens(), indexed_texts
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
        code, keys = _encode(numbers, self._last_code_point), self._numbers.distinct(numbers)
        # The LCS of two texts is at most the shorter one.
        shortest = self._num * len(keys) // (self._den - self._num) + 1
        rarest: list[int] = []
        if shortest < self._tables[0].end:
            rarest = sorted(keys, reverse=True)[: len(keys) - shortest + 1]
        return _TokenizedText(code, keys, shortest, rarest, {})

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

    def _candidates(self, text: _TokenizedText) -> Collection[int]:
        """Return the indices of all possible near-duplicates, in order."""
        size, shortest, sizes = len(text.keys), text.shortest, self._sizes
        longest = ((self._den - self._num) * size - 1) // self._num
        if shortest > longest:
            return ()
        # At most m + n - 2 * LCS tokens are in one text only: this text's share, rounded down, and
        # the other's, rounded up.
        start, limit = 0, (self._den - 2 * self._num) * size // self._den
        candidates: list[int] = []
        for table in self._tables:
            if start <= longest and shortest < table.end and table.places:
                rows = self._with_rare_token(text) if not start else None
                like = table.find_like(text, limit, rows)
                candidates += [i for i in like if shortest <= sizes[i] <= longest]
            start = table.end
        return sorted(set(candidates)) if len(candidates) > 1 else candidates

    def _with_rare_token(self, text: _TokenizedText) -> array[int] | None:
        """Return the rows of the first table to compare with; None for all."""
        n = len(self._tables[0].places)
        if n < self._indexed_texts:
            return None
        return self._rare.find(text.rarest, n // INDEXED_SHARE)

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
        for table in self._tables:
            if size < table.end:
                if table is self._tables[0]:
                    self._rare.append(len(table.places), text.rarest)
                table.append(i, text, -(-(self._den - 2 * self._num) * size // self._den))
                return

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
