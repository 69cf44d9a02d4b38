"""The words of texts of any script, and where runs of words stand in many of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

# Scripts whose characters stand for words or syllables and have no spaces between them.
_SINGLE = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# What parts words outside ASCII: signs, spaces, punctuation of several scripts.
_PARTING = "\u0080-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7\u037e\u055c-\u055e"
_PARTING += "\u05be\u060c\u061b\u061f\u066a-\u066d\u06d4\u0964\u0965\u2000-\u2bff\u3000-\u303f"
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_WORD = re.compile(rf"[{_SINGLE}]|[^\x00-\x2f\x3a-\x60\x7b-\x7f{_SINGLE}{_PARTING}]+")

# Bits of a place that number the word.
_SHIFT = 32


def words(text: str) -> list[str]:
    """The lower-cased words of `text`; of English the tokens of `memory.novelty`, if it has any.

    Of other alphabets whole words too, since a run of 13 letters says nothing; Chinese and
    Japanese by character. Scripts without spaces such as Thai give few and long words.

    >>> words("Why do tides — Flut und Ebbe — follow 月亮?")
    ['why', 'do', 'tides', 'flut', 'und', 'ebbe', 'follow', '月', '亮']
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


class Runs:
    """Where each run of `size` words stands in the texts of a list, by the digest of the run.

    The texts have one character a word. What a digest finds is compared with the run, so that
    equal digests of different runs do no harm.
    """

    def __init__(
        self, texts: list[str], size: int, digest: Callable[[str], int], *, first_only: bool
    ) -> None:
        """`first_only`: of several places of a run only the first is kept."""
        self._texts, self._size, self._digest, self._first_only = texts, size, digest, first_only
        # text << 32 | word; a list only where there are more, as most runs stand in one place.
        self._places: dict[int, int | list[int]] = {}

    def add(self, number: int) -> None:
        """Remember the runs of `texts[number]`."""
        text, size = self._texts[number], self._size
        for i in range(len(text) - size + 1):
            key, place = self._digest(text[i : i + size]), number << _SHIFT | i
            there = self._places.get(key)
            if there is None:
                self._places[key] = place
            elif self._first_only and self.first(text[i : i + size]) is not None:
                continue
            elif isinstance(there, list):
                there.append(place)
            else:
                self._places[key] = [there, place]

    def starts(self, text: str) -> list[int]:
        """Where runs begin in `text` that may be known; that others are not is certain."""
        size, digest, known = self._size, self._digest, self._places
        return [i for i in range(len(text) - size + 1) if digest(text[i : i + size]) in known]

    def places(self, run: str) -> Iterator[tuple[int, int]]:
        """Which texts have the run, and at which word, in the order they were added."""
        there = self._places.get(self._digest(run))
        if there is None:
            return
        for place in there if isinstance(there, list) else (there,):
            number, at = place >> _SHIFT, place & ((1 << _SHIFT) - 1)
            if self._texts[number].startswith(run, at):
                yield number, at

    def first(self, run: str) -> tuple[int, int] | None:
        """The first of `places`, or None."""
        return next(self.places(run), None)


def spans(starts: list[int], size: int) -> list[tuple[int, int]]:
    """The stretches that runs of `size` words from `starts` cover together, in order."""
    spans: list[tuple[int, int]] = []
    for start in sorted(starts):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], start + size)
        else:
            spans.append((start, start + size))
    return spans
