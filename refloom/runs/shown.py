"""What is shown of a run and of its rows, as text: pure functions of what was seen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group

    from nodes.record import Record

SILENT_S = 60.0
PLAIN_CHARS = 48

# What would move the cursor or turn text round; half a surrogate pair cannot be written at all.
_UNSHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Seen:
    """How a run stands, in totals that include its earlier sessions.

    `limit` is the number of calls allowed in flight now, `concurrency` the most it may become;
    `cost` and `max_cost` are US dollars, None for an unknown price and no bound; `slots` is the
    most samples there can be, the measure of a run that has no target.
    """

    accepted: int
    rejected: int
    failed: int
    target: int | None
    seeds: int
    candidates: int
    paid: int
    reused: int
    retried: int
    in_flight: int
    limit: int
    concurrency: int
    waiting: int
    cost: float | None
    max_cost: float | None
    tokens: int
    slots: int | None = None
    paid_before: int = 0
    accepted_before: int = 0

    @property
    def rows_made(self) -> int:
        """Rows accepted in this session; `accepted_before` are those the journal gave again."""
        return self.accepted - self.accepted_before

    @property
    def calls_ended(self) -> int:
        """Calls that came to an end, well or not; only a change of it means something."""
        return self.paid + self.reused + self.retried

    @property
    def begun(self) -> bool:
        """Whether anything has come of it yet."""
        return bool(self.paid + self.reused + self.accepted + self.rejected + self.failed)

    @property
    def share(self) -> tuple[int, int]:
        """How much is done, of how much: accepted rows of the target, else ended samples."""
        if self.target is not None:
            return self.accepted, self.target
        ended = self.accepted + self.rejected + self.failed
        whole = max(self.candidates, self.seeds) if self.slots is None else self.slots
        return ended, max(whole, ended)

    @property
    def cost_by_the_end(self) -> float | None:
        """US dollars when all is done, should the rest cost what it cost so far."""
        done, whole = self.share
        return None if self.cost is None or not done else self.cost / done * max(whole, done)


@dataclass(frozen=True)
class View:
    """All that is shown at one moment; times in seconds."""

    seen: Seen
    passed: float
    rows_a_minute: float | None
    calls_a_second: float | None
    failing: list[tuple[str, int]]
    errors: list[tuple[str, int]]
    silent: float
    ended: bool


def plain(view: View) -> str:
    """A view as one line."""
    seen = view.seen
    done, whole = seen.share
    target = f" of {whole}" if seen.target is not None else ""
    samples = "" if target else f" ({done} of {whole} samples ended)"
    said = [
        f"accepted {seen.accepted}{target}, rejected {seen.rejected}, failed {seen.failed}{samples}"
    ]
    said += facts(view)
    if view.failing:
        most = (f'"{cut(text)}" {count}' for text, count in view.failing)
        said.append(f"fails most: {', '.join(most)}")
    said += troubles(view)
    return one_line("; ".join(said))


def drawn(view: View) -> Group:
    """A view as lines for a terminal, none of which is wider than it."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def line(text: str, style: str = "") -> Text:
        # A Text is taken as it is: what looks like markup in it is shown, not obeyed.
        return Text(one_line(text), style=style, no_wrap=True, overflow="ellipsis")

    seen = view.seen
    done, whole = seen.share
    what = "accepted" if seen.target is not None else f"ended, {seen.accepted} accepted"
    bar = Table.grid(expand=True, padding=(0, 1, 0, 0))
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True, overflow="ellipsis")
    bar.add_row(
        ProgressBar(total=whole, completed=done),
        line(
            f"{done} of {whole} {what}, {seen.rejected} rejected, {seen.failed} failed, "
            f"{view.passed:.0f} s"
        ),
    )
    most = [line(f"{count} x not: {text}", "yellow") for text, count in view.failing]
    return Group(bar, *map(line, facts(view)), *most, *(line(t, "red") for t in troubles(view)))


def facts(view: View) -> list[str]:
    """Speed, calls and money, a text each."""
    seen = view.seen
    said = [
        f"{_rate(view.rows_a_minute)} rows a minute, {_rate(view.calls_a_second)} calls a second",
        f"{seen.paid} calls paid, {seen.reused} reused, {seen.retried} retried",
    ]
    most = "" if seen.max_cost is None else f" of {_usd(seen.max_cost)} allowed"
    money = f"cost {_usd(seen.cost)}{most}"
    if not view.ended:
        said.append(
            f"{seen.in_flight} in flight of {seen.limit} allowed (at most {seen.concurrency}), "
            f"{seen.waiting} waiting"
        )
        money += f", {_usd(seen.cost_by_the_end)} by the end"
    return [*said, f"{money}, {seen.tokens:,} tokens"]


def troubles(view: View) -> list[str]:
    """Faults by kind, and that nothing happens any more; mostly there are none."""
    said = []
    if view.errors:
        said.append("errors: " + ", ".join(f"{cut(kind)} {count}" for kind, count in view.errors))
    if view.silent >= SILENT_S and not view.ended:
        said.append(f"no call has ended for {view.silent:.0f} s")
    return said


def visible(text: str) -> str:
    """A text with nothing in it that a terminal would obey; its lines stay."""
    return _UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """A text of strangers on one line, with nothing in it that a terminal would obey."""
    return visible(" ".join(text.split()))


def cut(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= PLAIN_CHARS else text[: PLAIN_CHARS - 1] + "…"


def shown(record: Record) -> str:
    """A record as a person reads it."""
    if record["status"] == "failed":
        error = record["error"]
        said = f"{error['stage']}: {error['kind']}: {error['message']}"
        return f"failed: {record['instruction'] or record['seed_id']}\n  {said}"
    response = "\n".join("  " + line for line in (record["response"] or "").splitlines())
    why = "" if record["status"] == "accepted" else f" ({_missed(record)})"
    head = f"{record['status']} after {len(record['attempts'])} attempt(s){why}"
    return f"{head}\n> {record['instruction']}\n{response}"


def _missed(record: Record) -> str:
    texts = {c["id"]: c["text"] for c in record["criteria"]}
    last = record["attempts"][-1]["verdicts"] if record["attempts"] else []
    missed = [texts[v["criterion_id"]] for v in last if v["verdict"] in ("fail", "unknown")]
    return f"{record['reason']}: not {'; not '.join(missed[:3])}" if missed else record["reason"]


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _usd(value: float | None) -> str:
    if value is None:
        return "-"
    return f"${value:,.2f}" if value >= 1 else f"${value:.4f}"
