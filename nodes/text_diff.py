"""The difference of two texts, by words; by lines if they are long."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# A word and the space after it are one token, so that differences are whole words.
_WORD_UNIT = re.compile(r"\S+\s*|\s+")
_LINE_UNIT = re.compile(r"[^\n]*\n|[^\n]+")
MAX_TOKENS_COMPARED = 4_000
MAX_LENGTH_COMPARED = 1_000_000


def diff(before: str, after: str) -> list[tuple[str, str]]:
    """Parts that are equal, deleted or inserted: words, or lines if there are too many words.

    >>> diff("The tide rises twice.", "The tide falls twice.")
    [('equal', 'The tide '), ('delete', 'rises '), ('insert', 'falls '), ('equal', 'twice.')]
    """
    from rapidfuzz.distance import Postfix, Prefix

    if before == after:
        return []
    for unit in (_WORD_UNIT, _LINE_UNIT) if len(before) + len(after) <= MAX_LENGTH_COMPARED else ():
        old, new = unit.findall(before), unit.findall(after)
        first = Prefix.similarity(old, new)
        head, old, new = "".join(old[:first]), old[first:], new[first:]
        last = Postfix.similarity(old, new)
        tail = "".join(old[len(old) - last :])
        old, new = old[: len(old) - last], new[: len(new) - last]
        if max(len(old), len(new)) <= MAX_TOKENS_COMPARED:
            parts = [("equal", head), *_join_adjacent(_opcodes(old, new)), ("equal", tail)]
            return [(tag, text) for tag, text in parts if text]
    return [(tag, text) for tag, text in (("delete", before), ("insert", after)) if text]


def _opcodes(old: Sequence[str], new: Sequence[str]) -> Iterable[tuple[str, str, str]]:
    from rapidfuzz.distance import LCSseq

    ids: dict[str, int] = {}
    numbers = [[ids.setdefault(token, len(ids)) for token in text] for text in (old, new)]
    for code in LCSseq.opcodes(*numbers):
        deleted, inserted = old[code.src_start : code.src_end], new[code.dest_start : code.dest_end]
        yield code.tag, "".join(deleted), "".join(inserted)


def _join_adjacent(codes: Iterable[tuple[str, str, str]]) -> Iterable[tuple[str, str]]:
    """Join adjacent changes, also across a single short word between two of them."""
    deleted = inserted = ""
    for tag, old, new in codes:
        short = len(old) <= 4 and "\n" not in old
        if tag != "equal" or (short and deleted and inserted):
            deleted, inserted = deleted + old, inserted + new
        else:
            yield from (("delete", deleted), ("insert", inserted), ("equal", old))
            deleted = inserted = ""
    yield from (("delete", deleted), ("insert", inserted))


def diff_parts(before: str, after: str, limit: int = 20) -> list[dict[str, str]]:
    """The first `limit` places that changed, each with at most 500 characters a part.

    >>> diff_parts("The Moon pulls.", "The Sun pulls.")
    [{'removed': 'Moon ', 'added': 'Sun '}]
    """
    parts: list[dict[str, str]] = []
    last = "equal"
    for tag, text in diff(before, after):
        if tag != "equal":
            if last == "equal":
                parts.append({"removed": "", "added": ""})
            parts[-1]["removed" if tag == "delete" else "added"] += text[:500]
        last = tag
    return parts[:limit]
