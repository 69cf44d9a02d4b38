"""Another reference than those that bear on a seed, fixed by a random seed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import sha256
from typing import Protocol

from memory.references import Reference

DRAWS = 64


class Another(Protocol):
    """The seam for references that have nothing to do with a seed."""

    async def __call__(
        self, reference: Reference, avoid: Collection[str], random_seed: int
    ) -> Reference | None:
        """See `another_of`."""
        ...


def another_of(
    references: Sequence[Reference], reference: Reference, avoid: Collection[str], random_seed: int
) -> Reference | None:
    """A reference drawn for `reference`, none whose id is in `avoid` as far as there is one.

    The same for the same arguments; None where there is no other. Blocks on a file of references.

    >>> pool = [{"id": i, "instruction": i, "response": i} for i in "abc"]
    >>> another_of(pool, pool[0], ("a", "b"), 0)["id"]
    'c'
    >>> another_of(pool[:1], pool[0], (), 0) is None
    True
    """
    second: Reference | None = None
    for draw in range(DRAWS if len(references) > 1 else 0):
        text = f"{random_seed}\x1f{reference['id']}\x1f{draw}"
        digest = sha256(text.encode("utf-8", "replace")).digest()
        found = references[int.from_bytes(digest[:8], "big") % len(references)]
        if found["id"] == reference["id"]:
            continue
        if found["id"] not in avoid:
            return found
        second = second or found
    return second or next((r for r in references if r["id"] != reference["id"]), None)
