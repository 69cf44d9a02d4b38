"""What differs between two texts, by words; by lines where they are long."""

from __future__ import annotations

import re

Change = tuple[str, str]
# Over so many words in both together, lines are compared: the work grows with their product.
MOST_WORDS = 8_000
MOST_LINES = 20_000
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


def changes(before: str, after: str) -> list[Change]:
    """The way from one text to the other: pieces that are equal, deleted or inserted.

    What is deleted in a place stands before what is inserted there; two places with nothing but
    white space between them are one.

    >>> changes("The Moon pulls.", "The Sun pulls.")
    [('equal', 'The '), ('delete', 'Moon'), ('insert', 'Sun'), ('equal', ' pulls.')]
    """
    from rapidfuzz.distance import Indel

    one, other = _WORDS.findall(before), _WORDS.findall(after)
    if len(one) + len(other) > MOST_WORDS:
        one, other = before.splitlines(keepends=True), after.splitlines(keepends=True)
    if len(one) + len(other) > MOST_LINES:
        one, other = [before], [after]
    found: list[Change] = []
    removed = added = space = ""
    for step in Indel.opcodes(one, other):
        old = "".join(one[step.src_start : step.src_end])
        new = "".join(other[step.dest_start : step.dest_end])
        if step.tag == "equal":
            if old.isspace() and (removed or added) and not space:
                space = old
                continue
            found += [*_place(removed, added), ("equal", space + old)]
            removed = added = space = ""
        else:
            removed, added, space = removed + space + old, added + space + new, ""
    return [*found, *_place(removed, added), *([("equal", space)] if space else [])]


def _place(removed: str, added: str) -> list[Change]:
    return [part for part in (("delete", removed), ("insert", added)) if part[1]]


def changed_parts(before: str, after: str, most: int = 20) -> list[dict[str, str]]:
    """Only what was taken out and put in, the first `most` places of it, none of them long.

    >>> changed_parts("The Moon pulls.", "The Sun pulls.")
    [{'removed': 'Moon', 'added': 'Sun'}]
    """
    found: list[dict[str, str]] = []
    last = "equal"
    for tag, text in changes(before, after):
        if tag != "equal":
            if last == "equal":
                found.append({"removed": "", "added": ""})
            found[-1]["removed" if tag == "delete" else "added"] += text[:500]
        last = tag
    return found[:most]
