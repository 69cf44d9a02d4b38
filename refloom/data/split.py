"""Training and validation rows apart, so that rows of one seed are never on both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from hashlib import sha256

MOST = 1_000_000


def shares(text: str) -> dict[str, float]:
    """Parts by name from text such as `train=0.95,validation=0.05`. Raises `ValueError`.

    >>> shares("train=3,validation=1")
    {'train': 0.75, 'validation': 0.25}
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, given, share = (piece.strip() for piece in part.partition("="))
        if not name.isidentifier() or not given or name in found:
            raise ValueError(f"{part.strip()!r} is no NAME=SHARE, each name once")
        try:
            found[name] = float(share)
        except ValueError as error:
            raise ValueError(f"{share!r} is no number") from error
        if not 0 < found[name] <= MOST:
            raise ValueError(f"the share of {name} must be over 0, and at most {MOST}")
        if name == "all":
            raise ValueError("'all' is what the datasets library calls all parts together")
    total = sum(found.values())
    return {name: share / total for name, share in found.items()}


def assign(seeds: Iterable[str], parts: dict[str, float], random_seed: int) -> dict[int, str]:
    """The part of each seed, by `key`; `seeds` names the seed of every row, in any order.

    Seeds are put in an order that only the random seed decides, and parts cut from it, so that the
    shares are of rows and right to within one seed's. No part stays empty while there are seeds.
    """
    counts = Counter(key(seed, random_seed) for seed in seeds)
    total = sum(counts.values())
    order = sorted(counts)
    names = list(parts)
    made: dict[int, str] = {}
    # The smallest first: it is the one that rounding could leave empty.
    places = iter(order)
    left = len(order)
    names.sort(key=lambda name: parts[name])
    for number, name in enumerate(names):
        last = number == len(names) - 1
        wanted, got = parts[name] * total, 0
        later = len(names) - 1 - number
        while left > later and (last or got == 0 or got + 0.5 <= wanted):
            seed = next(places)
            made[seed] = name
            got += counts[seed]
            left -= 1
    return made


def key(seed: str, random_seed: int) -> int:
    """63 bits that stand for a seed, in an order of their own for each random seed."""
    digest = sha256(f"{random_seed}\x1f{seed}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
