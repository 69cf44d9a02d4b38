"""Texts as words, and words as numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

_words = re.compile("[a-z0-9]+").findall

# The numbers of tokens leave out the surrogates, so that a text is a string of code points too.
_SURROGATES, _GAP = 0xD800, 0x800


def tokens(text: str) -> list[str]:
    """The words of `text` as `rouge_score` splits them; its characters if there are none.

    >>> tokens("Tides follow the Moon!")
    ['tides', 'follow', 'the', 'moon']
    >>> tokens("潮汐")
    ['潮', '汐']
    """
    return _words(text.lower()) or list(text)


class Numbers(dict[str | int, int]):
    """The number of each token, given at first sight; of a number, that of its token come again.

    >>> numbers = Numbers()
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
        """The numbers of a text's tokens."""
        return list(map(self.__getitem__, tokens(text)))

    def each(self, numbers: Sequence[int]) -> Sequence[int]:
        """As many different numbers as there are tokens: the second "be" is not the first."""
        if len(set(numbers)) == len(numbers):
            return numbers
        latest: dict[int, int] = {}
        found = []
        for number in numbers:
            key = self[latest[number]] if number in latest else number
            latest[number] = key
            found.append(key)
        return found
