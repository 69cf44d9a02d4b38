"""What is new: the exact greedy ROUGE-L filter, and runs of words copied from a text.

A text is a near-duplicate of another when the F1 of their longest common subsequence (LCS) of
tokens is over the threshold; in whole numbers, for 0.7: 20 * LCS > 7 * (m + n). Tokens are those
of the `rouge_score` package; a text without any is compared by its characters.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from fractions import Fraction

from rapidfuzz.distance import LCSseq

_SPLIT = re.compile(r"[^a-z0-9]+")


def tokens(text: str) -> list[str]:
    """The words of `text` as `rouge_score` splits them; its characters if there are none.

    >>> tokens("Tides follow the Moon!")
    ['tides', 'follow', 'the', 'moon']
    >>> tokens("潮汐")
    ['潮', '汐']
    """
    return [word for word in _SPLIT.split(text.lower()) if word] or list(text)


class NoveltyFilter:
    """The instructions there are, asked whether a new one is too near to one of them.

    An inverted index over each text's rarest tokens finds the few texts that can be near enough
    (prefix filtering); those are compared exactly. Any fixed order of tokens is correct; here a
    token first seen later counts as rarer, which needs no counting beforehand.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        """`threshold`: an F1 over this is a duplicate; 0 < threshold <= 1."""
        ratio = Fraction(str(threshold)) / 2
        self._num, self._den = ratio.numerator, ratio.denominator
        self._ids: dict[str, int] = {}
        self._texts: list[str] = []
        self._names: list[str] = []
        self._postings: defaultdict[tuple[int, int], list[int]] = defaultdict(list)

    def collision(self, text: str) -> str | None:
        """The name of the first text that `text` is too near to, or None if it is new."""
        code = self._encode(text)
        seen: set[int] = set()
        for key in self._prefix(code):
            seen.update(self._postings.get(key, ()))
        for i in sorted(seen):
            if self._near(code, self._texts[i]):
                return self._names[i]
        return None

    def add(self, text: str, name: str) -> None:
        """Remember `text` under `name`."""
        code = self._encode(text)
        for key in self._prefix(code):
            self._postings[key].append(len(self._texts))
        self._texts.append(code)
        self._names.append(name)

    def _encode(self, text: str) -> str:
        # One code point a token is rapidfuzz's fastest form; surrogates are left out.
        ids = (self._ids.setdefault(token, len(self._ids)) for token in tokens(text))
        return "".join(chr(i if i < 0xD800 else i + 0x800) for i in ids)

    def _prefix(self, code: str) -> list[tuple[int, int]]:
        """The tokens of which a near text must share one: (token, which of its occurrences)."""
        if not code:
            return [(-1, 0)]
        m = len(code)
        shortest = self._num * m // (self._den - self._num) + 1
        needed = self._num * (m + min(shortest, m)) // self._den + 1
        counts: Counter[str] = Counter()
        keys = []
        for token in code:
            keys.append((ord(token), counts[token]))
            counts[token] += 1
        keys.sort(reverse=True)
        return keys[: max(m - needed + 1, 1)]

    def _near(self, a: str, b: str) -> bool:
        if not a or not b:
            return a == b
        least = self._num * (len(a) + len(b)) // self._den + 1
        return int(LCSseq.similarity(a, b, score_cutoff=least)) >= least


def novel(texts: Iterable[str], threshold: float = 0.7) -> Iterator[int]:
    """Yield the indices that the exact greedy ROUGE-L filter keeps, in order.

    A text is kept unless it is a near-duplicate of one kept before it.

    >>> list(novel(["Why are tides high twice a day?", "Why are tides high twice each day?", "x"]))
    [0, 2]
    """
    known = NoveltyFilter(threshold)
    for i, text in enumerate(texts):
        if known.collision(text) is None:
            known.add(text, str(i))
            yield i


def copied_run(text: str, source: str, words: int, allowed: str = "") -> str | None:
    """The first run of `words` words that `text` takes from `source`, or None.

    A run that `allowed` holds as well does not count.

    >>> copied_run("so we rise with the sea", "Boats rise with the sea each day.", 4)
    'rise with the sea'
    """
    runs = set(_runs(source, words)) - set(_runs(allowed, words))
    return next((" ".join(run) for run in _runs(text, words) if run in runs), None)


def _runs(text: str, words: int) -> Iterator[tuple[str, ...]]:
    found = tokens(text)
    return (tuple(found[i : i + words]) for i in range(len(found) - words + 1))
