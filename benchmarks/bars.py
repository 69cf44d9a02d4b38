"""The bars that refloom holds itself to, and whether a figure reaches one."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.tabled import figure


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit on one figure; `most` False: the figure has to be at least that."""

    limit: float
    unit: str = ""
    most: bool = True
    digits: int = 2

    def __str__(self) -> str:
        side = "at most" if self.most else "at least"
        return f"{side} {figure(self.limit, self.digits)}{self.unit}"

    def reached(self, value: float) -> bool:
        """Whether a figure keeps to the limit; one that is on it does."""
        return value <= self.limit if self.most else value >= self.limit


# By part and figure; `own_cost` by calls in flight, at an endpoint that takes 200 ms.
WALL = {64: Bar(1.15, "x"), 256: Bar(1.6, "x")}
CPU_MS_A_CALL = Bar(1.2, " ms", digits=1)
HELP_S = Bar(0.5, " s", digits=1)
OVER_START_MB = Bar(300, " MB", digits=0)
OVER_START_AT = 100_000
NOVELTY_S = {10_000: Bar(1, " s", digits=0), 100_000: Bar(30, " s", digits=0)}
SEARCH_MS = Bar(10, " ms", digits=0)
RECALL = Bar(0.95, most=False)
OPEN_S = Bar(1, " s", digits=0)
RETRIEVAL_AT = 1_000_000
LATENCY_MS = 200


def judged(value: float | None, bar: Bar | None, counts: bool = True) -> str:
    """What stands in the column "reached": yes, NO, or why nothing can be said.

    `counts` False: the figure is of smaller numbers than the bar is for.
    """
    if bar is None:
        return "no bar"
    if value is None:
        return "not measured"
    if not counts:
        return "too few to say"
    return "yes" if bar.reached(value) else "**no**"


def beside(value: float | None, bar: Bar | None, counts: bool = True) -> list[str]:
    """The two columns beside a figure: its bar, and whether that is reached."""
    return ["–" if bar is None else str(bar), judged(value, bar, counts)]
