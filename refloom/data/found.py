"""What reading a file found, counted, and in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

NOT_STATED = "not stated"
OTHERS = "others, which are too many to name"
MOST_NAMED = 1000
MOST_LICENCES = 1000
LICENCE_CHARS = 500


@dataclass(slots=True)
class Report:
    """What reading found, in what: items taken, rows left out and why, a hash of what was taken.

    `several_turns` counts rows that hold more than one exchange.
    """

    name: str | None = None
    taken: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    skipped_count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    several_turns: int = 0
    licences: Counter[str] = field(default_factory=Counter)
    digest: str = ""

    def skip(self, name: str, line: int, why: str, kind: str = "that cannot be parsed") -> None:
        """Count a row that is left out; the first thousand are named."""
        self.skipped_count += 1
        self.kinds[kind] += 1
        if len(self.skipped) < MOST_NAMED:
            self.skipped.append({"file": name, "line": line, "why": why})

    def shown(self) -> dict[str, Any]:
        """The counts as run.json has them."""
        return {
            "name": self.name,
            "taken": self.taken,
            "shapes": dict(self.shapes),
            "several_turns": self.several_turns,
            "skipped": dict(self.kinds),
            "licences": dict(self.licences),
        }

    def took(self, shape: str, licence: str) -> None:
        """Count what was read under its shape and its licence."""
        self.taken += 1
        self.shapes[shape] += 1
        name = " ".join(licence.split()) or NOT_STATED
        if len(name) > LICENCE_CHARS:
            name = name[:LICENCE_CHARS] + "..."
        known = name in self.licences or len(self.licences) < MOST_LICENCES
        self.licences[name if known else OTHERS] += 1


def told(
    what: str,
    name: str,
    report: Report,
    *,
    takes_first: bool,
    listed: str = "; run.json names them",
) -> list[str]:
    """What was read, in lines for a person; what nobody needs to know is left out."""
    shapes = ", ".join(f"{n} {shape}" for shape, n in report.shapes.most_common())
    lines = [f"{what}: {report.taken} of {name}" + (f" ({shapes})" if shapes else "")]
    if report.several_turns and not takes_first:
        lines.append(f"  {report.several_turns} rows of several turns: every exchange is used")
    if report.several_turns and takes_first:
        more = "; --turns all takes every one" if what == "references" else ""
        lines.append(f"  {report.several_turns} of several turns: the first exchange is used{more}")
    if report.skipped_count:
        kinds = ", ".join(f"{n} {kind}" for kind, n in report.kinds.most_common())
        lines.append(f"  {report.skipped_count} left out: {kinds}{listed}")
    if set(report.licences) - {NOT_STATED}:
        each = ", ".join(f"{n} {name}" for name, n in report.licences.most_common(8))
        lines.append(f"  licences: {each}")
    return lines
