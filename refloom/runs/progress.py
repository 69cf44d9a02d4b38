"""What a person sees of a run, on stderr: some live lines on a terminal, else a line at times."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TextIO

# MERGED refloom~runs~shown
# What is shown of a run and of its rows, as text: pure functions of what was seen.
if TYPE_CHECKING:
    from rich.console import Group

    from nodes.record import Record

SILENT_S = 60.0
PLAIN_CHARS = 48

# What would move the cursor or turn text round; half a surrogate pair cannot be written at all.
_UNSHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class RunStats:
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

    seen: RunStats
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


if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from nodes.record import Record

__all__ = ["Progress", "RunStats"]

EVERY_S = 30.0
WINDOW_S = 60.0
MOST_KEYS = 400
KEY_CHARS = 200


class Progress:
    """Shows how a run goes. Enter `begin(look)` as a context; tell it of samples and faults.

    It draws from a thread of its own, so that a run that hangs or a terminal that is slow is not
    made worse by it: `look` is called from there, and must do no more than read plain values.
    """

    def __init__(
        self,
        *,
        show_rows: bool = False,
        to: TextIO | None = None,
        look: Callable[[], RunStats] | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        tick_s: float = 0.5,
    ) -> None:
        """`show_rows` shows each record as it ends, and nothing live; `to` is stderr if None."""
        self._show_rows, self._to, self._look = show_rows, to or sys.stderr, look
        self._console, self._clock, self._tick_s = console, clock, tick_s
        self._counts, self._failing, self._errors = Counter[str](), Counter[str](), Counter[str]()
        self._counting, self._drawing = threading.Lock(), threading.Lock()
        self._marks: deque[tuple[float, int, int]] = deque()
        self._rows: deque[str] = deque()
        self._calls_ended = 0
        self._begun = self._said = self._heard = clock()
        self._first = (self._begun, 0, 0)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None
        # A process may have been started without a stderr.
        self._gone = self._to is None

    def __call__(self, record: Record) -> None:
        """Take note of a finished sample."""
        texts = {c["id"]: c["text"] for c in record["criteria"]}
        verdicts = [v for a in record["attempts"] for v in a["verdicts"] if v["verdict"] == "fail"]
        with self._counting:
            self._counts[record["status"]] += 1
            for verdict in verdicts:
                count(self._failing, texts.get(verdict["criterion_id"], verdict["criterion_id"]))
        if self._show_rows:
            self._rows.append(f"[{self._clock() - self._begun:4.0f} s] {self.line()}\n")
            self._rows.append(shown(record) + "\n\n")
            if self._thread is None:
                self._write_rows()

    def fault(self, kind: str) -> None:
        """Take note of a call's fault, whether or not it is made again."""
        with self._counting:
            count(self._errors, kind)
        self._heard = self._clock()

    def line(self) -> str:
        """The samples of this session in words."""
        return ", ".join(f"{s} {self._counts[s]}" for s in ("accepted", "rejected", "failed"))

    def begin(self, look: Callable[[], RunStats] | None = None) -> Self:
        """Show what `look` says from now on, until `end`; without one, only rows are shown."""
        self._look = look = look or self._look
        if look is None or self._thread is not None:
            return self
        self._begun = self._said = self._heard = self._clock()
        seen = look()
        self._first = (self._begun, seen.rows_made, seen.paid - seen.paid_before)
        self._calls_ended = seen.calls_ended
        self._marks.append(self._first)
        self._live = None if self._show_rows or self._gone else live_on(self._to, self._console)
        if self._live is not None:
            self._unless_gone(self._live.start)
        self._over.clear()
        self._thread = threading.Thread(target=self._watch, name="refloom-display", daemon=True)
        self._thread.start()
        return self

    def end(self) -> None:
        """Show how it stands a last time, and stop."""
        if self._thread is None:
            return
        self._over.set()
        self._thread.join()
        self._thread = None
        try:
            self.tick(ended=True)
        finally:
            self._marks.clear()
            live, self._live = self._live, None
            if live is not None:
                # Stopped even where nobody reads any more: it gives sys.stderr back.
                with contextlib.suppress(OSError, ValueError):
                    live.stop()

    def __enter__(self) -> Self:
        return self.begin()

    def __exit__(self, *_: object) -> None:
        self.end()

    def _watch(self) -> None:
        while not self._over.wait(self._tick_s):
            self.tick()

    def tick(self, *, ended: bool = False) -> None:
        """Bring what is shown up to date; a line is written only when it is time for one."""
        with self._drawing:
            self._write_rows()
            view = self._view(ended)
            if self._live is not None:
                self._draw(self._live, view)
            elif self._clock() - self._said >= EVERY_S or (ended and view.seen.begun):
                self._write(f"[{view.passed:4.0f} s] {plain(view)}\n")

    def _view(self, ended: bool) -> View:
        assert self._look is not None
        seen, now = self._look(), self._clock()
        calls = seen.calls_ended
        if calls != self._calls_ended:
            self._calls_ended, self._heard = calls, now
        # Of this session alone: what a journal gives again at once is no speed.
        rows_now, paid_now = seen.rows_made, seen.paid - seen.paid_before
        self._marks.append((now, rows_now, paid_now))
        while len(self._marks) > 1 and self._marks[1][0] <= now - WINDOW_S:
            self._marks.popleft()
        since, rows, paid = self._first if ended else self._marks[0]
        passed = now - since
        with self._counting:
            failing, errors = self._failing.most_common(3), self._errors.most_common(6)
        return View(
            seen,
            now - self._begun,
            (rows_now - rows) / passed * 60 if passed > 0 else None,
            (paid_now - paid) / passed if passed > 0 else None,
            failing,
            errors,
            now - self._heard,
            ended,
        )

    def _draw(self, live: Live, view: View) -> None:
        live.transient = view.ended and not view.seen.begun
        lines = drawn(view)
        self._unless_gone(lambda: live.update(lines, refresh=True))

    def _write_rows(self) -> None:
        while self._rows:
            self._write(self._rows.popleft())

    def _write(self, text: str) -> None:
        self._said = self._clock()
        encoding = getattr(self._to, "encoding", None) or "utf-8"
        writable = visible(text).encode(encoding, "backslashreplace").decode(encoding)
        self._unless_gone(lambda: (self._to.write(writable), self._to.flush()))

    def _unless_gone(self, show: Callable[[], object]) -> None:
        if self._gone:
            return
        try:
            show()
        except (OSError, ValueError):
            # Nobody reads any more: a run is worth more than its being seen.
            self._gone = True


def live_on(to: TextIO, console: Console | None) -> Live | None:
    """What draws on a terminal; None where there is no terminal that can be drawn on."""
    if console is None:
        if not to.isatty():
            return None
        from rich.console import Console

        console = Console(file=to)
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    from rich.live import Live

    # What else is written to stderr goes above the lines; stdout carries results, and is left be.
    ours = to is sys.stderr
    return Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=ours)


def count(counter: Counter[str], text: str) -> None:
    """Count a text; of very many different ones those that came rarely are forgotten."""
    counter[" ".join(text.split())[:KEY_CHARS]] += 1
    if len(counter) > MOST_KEYS:
        kept = dict(counter.most_common(MOST_KEYS // 2))
        counter.clear()
        counter.update(kept)
