"""Runs of words that a text copies from another."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from memory.tokens import tokens


def copied_run(text: str, source: str, words: int, allowed: str = "") -> str | None:
    """The first run of `words` words that `text` takes from `source`, or None.

    A run that `allowed` holds as well does not count.

    >>> copied_run("so we rise with the sea", "Boats rise with the sea each day.", 4)
    'rise with the sea'
    """
    runs = _all_runs(source, words) - set(_runs(allowed, words))
    return next((" ".join(run) for run in _runs(text, words) if run in runs), None)


@lru_cache(maxsize=32)
def _all_runs(source: str, words: int) -> frozenset[tuple[str, ...]]:
    """The runs of a reference, which is asked about with every draft made from it."""
    return frozenset(_runs(source, words))


def _runs(text: str, words: int) -> Iterator[tuple[str, ...]]:
    found = tokens(text)
    return (tuple(found[i : i + words]) for i in range(len(found) - words + 1))
