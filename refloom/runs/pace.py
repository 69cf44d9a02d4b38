"""How fast calls may follow one another, as the user or the endpoint says."""

from __future__ import annotations

import re
from collections.abc import Mapping

MINUTE_S = 60.0
# No header pauses all calls for longer; a longer limit shows itself again after it.
LONGEST_PAUSE_S = 60.0
# What `pause_of` reads.
TOLD_IN = tuple(
    f"x-ratelimit-{what}-{of}" for what in ("remaining", "reset") for of in ("requests", "tokens")
)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


class Pace:
    """A token bucket as the time at which the next unit is due (GCRA).

    Nothing is saved up, so that no minute holds more than `per_minute`, not even the first.
    """

    def __init__(self, per_minute: float) -> None:
        """`per_minute`: calls or tokens that may begin in any minute."""
        self._interval = MINUTE_S / per_minute
        self._due = 0.0

    def ready_at(self) -> float:
        """The time from which the next may begin, on the caller's clock."""
        return self._due

    def take(self, now: float, amount: float = 1.0) -> None:
        """Begin something of `amount`."""
        self._due = max(self._due, now) + amount * self._interval

    def correct(self, by: float) -> None:
        """Count `by` more (or less) for what was begun: the estimate was off."""
        self._due += by * self._interval


def pause_of(headers: Mapping[str, str], tokens: float) -> float:
    """The seconds for which rate-limit headers ask that no call begin; 0: they do not.

    `tokens` is what the next call is expected to use. Read are `x-ratelimit-remaining-requests`,
    `-tokens` and the `x-ratelimit-reset-` of each, as OpenAI and most others send them.
    """
    pause = 0.0
    for what, least in (("requests", 1.0), ("tokens", tokens)):
        left = _number(headers.get(f"x-ratelimit-remaining-{what}"))
        if left is not None and left < least:
            pause = max(pause, _seconds(headers.get(f"x-ratelimit-reset-{what}")))
    return min(pause, LONGEST_PAUSE_S)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _seconds(text: str | None) -> float:
    """A duration such as `6m0s`, `20ms` or `1.5`.

    >>> [_seconds(t) for t in ("1m2s", "20ms", "1.5", "soon", None)]
    [62.0, 0.02, 1.5, 0.0, 0.0]
    """
    plain = _number(text)
    if plain is not None:
        return max(plain, 0.0) if plain < float("inf") else 0.0
    parts = _DURATION.findall(text or "")
    return sum((float(n) * _UNITS[unit] for n, unit in parts), 0.0)
