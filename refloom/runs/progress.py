"""The progress of a run on stderr: live lines on a terminal, else a line every 30 seconds."""

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

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live

    from nodes.record import Record

# Between two lines where there is no terminal.
LINE_INTERVAL_S = 30.0
# Rates are those of the last minute.
RATE_WINDOW_S = 60.0
# Without the end of a call for this long, the display says so.
SILENT_S = 60.0
MAX_LABEL_CHARS = 48
# Different texts that are counted, and how much of each.
MAX_COUNTED = 400
MAX_COUNTED_CHARS = 200

# Control characters that a terminal obeys, and lone surrogates, which cannot be written at all.
_TERMINAL_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


@dataclass(frozen=True)
class RunStats:
    """The counts of a run, in totals that include its earlier sessions.

    `slots` is the most samples there can be; None in a run with a target. `limit` is the number of
    calls allowed in flight now, `concurrency` the most it may become. `cost` and `max_cost` are US
    dollars; None is an unknown price or no limit.
    """

    target: int | None
    slots: int | None
    seeds: int
    limit: int
    concurrency: int
    max_cost: float | None
    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    candidates: int = 0
    accepted_before: int = 0
    paid: int = 0
    paid_before: int = 0
    reused: int = 0
    retried: int = 0
    in_flight: int = 0
    waiting: int = 0
    cost: float | None = None
    tokens: int = 0

    @property
    def rows_made(self) -> int:
        """Rows accepted in this session; `accepted_before` came from the journal."""
        return self.accepted - self.accepted_before

    @property
    def calls_ended(self) -> int:
        """Calls that ended, with or without an answer."""
        return self.paid + self.reused + self.retried

    @property
    def begun(self) -> bool:
        """Whether any call or sample has ended."""
        return bool(self.paid + self.reused + self.accepted + self.rejected + self.failed)

    @property
    def share(self) -> tuple[int, int]:
        """How many are done and how many there are: accepted rows of the target, else samples."""
        if self.target is not None:
            return self.accepted, self.target
        ended = self.accepted + self.rejected + self.failed
        total = max(self.candidates, self.seeds) if self.slots is None else self.slots
        return ended, max(total, ended)

    @property
    def estimated_cost(self) -> float | None:
        """US dollars for the whole run if the rest costs as much a sample as so far."""
        done, total = self.share
        return None if self.cost is None or not done else self.cost / done * max(total, done)


@dataclass(frozen=True)
class ProgressView:
    """What the display has at one moment; `elapsed` and `silent`, without a call, in seconds."""

    stats: RunStats
    elapsed: float
    rows_a_minute: float | None
    calls_a_second: float | None
    failed_criteria: list[tuple[str, int]]
    errors: list[tuple[str, int]]
    silent: float
    finished: bool


def format_line(view: ProgressView) -> str:
    """Return a view as one line."""
    stats = view.stats
    done, total = stats.share
    target = f" of {total}" if stats.target is not None else ""
    samples = "" if target else f" ({done} of {total} samples ended)"
    parts = [
        f"accepted {stats.accepted}{target}, rejected {stats.rejected}, "
        f"failed {stats.failed}{samples}"
    ]
    parts += format_facts(view)
    if view.failed_criteria:
        labels = (f'"{shorten(text)}" {number}' for text, number in view.failed_criteria)
        parts.append(f"fails most: {', '.join(labels)}")
    parts += format_troubles(view)
    return one_line("; ".join(parts))


def draw_lines(view: ProgressView) -> Group:
    """Return a view as lines for a terminal, each cut to its width."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def line(text: str, style: str = "") -> Text:
        # rich does not interpret markup inside a Text.
        return Text(one_line(text), style=style, no_wrap=True, overflow="ellipsis")

    stats = view.stats
    done, total = stats.share
    unit = "accepted" if stats.target is not None else f"ended, {stats.accepted} accepted"
    bar = Table.grid(expand=True, padding=(0, 1, 0, 0))
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True, overflow="ellipsis")
    bar.add_row(
        ProgressBar(total=total, completed=done),
        line(
            f"{done} of {total} {unit}, {stats.rejected} rejected, {stats.failed} failed, "
            f"{view.elapsed:.0f} s"
        ),
    )
    failing = [line(f"{number} x not: {text}", "yellow") for text, number in view.failed_criteria]
    troubles = [line(text, "red") for text in format_troubles(view)]
    return Group(bar, *map(line, format_facts(view)), *failing, *troubles)


def format_facts(view: ProgressView) -> list[str]:
    """Return speed, calls and cost, one text each."""
    stats = view.stats
    parts = [
        f"{_rate(view.rows_a_minute)} rows a minute, {_rate(view.calls_a_second)} calls a second",
        f"{stats.paid} calls paid, {stats.reused} reused, {stats.retried} retried",
    ]
    limit = "" if stats.max_cost is None else f" of {_usd(stats.max_cost)} allowed"
    cost = f"cost {_usd(stats.cost)}{limit}"
    if not view.finished:
        parts.append(
            f"{stats.in_flight} in flight of {stats.limit} allowed (at most {stats.concurrency}), "
            f"{stats.waiting} waiting"
        )
        cost += f", {_usd(stats.estimated_cost)} by the end"
    return [*parts, f"{cost}, {stats.tokens:,} tokens"]


def format_troubles(view: ProgressView) -> list[str]:
    """Return the errors by kind, and a warning when no call has ended for a minute."""
    parts = []
    if view.errors:
        counts = (f"{shorten(kind)} {number}" for kind, number in view.errors)
        parts.append(f"errors: {', '.join(counts)}")
    if view.silent >= SILENT_S and not view.finished:
        parts.append(f"no call has ended for {view.silent:.0f} s")
    return parts


def escape_controls(text: str) -> str:
    """Return untrusted text without control characters; line breaks stay."""
    return _TERMINAL_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """Return untrusted text on one line, without control characters."""
    return escape_controls(" ".join(text.split()))


def shorten(text: str) -> str:
    """Return the start of a text, at most `MAX_LABEL_CHARS` long."""
    return text if len(text) <= MAX_LABEL_CHARS else text[: MAX_LABEL_CHARS - 1] + "…"


def format_record(record: Record) -> str:
    """Return a record as text for a person."""
    if record["status"] == "failed":
        error = record["error"]
        cause = f"{error['stage']}: {error['kind']}: {error['message']}"
        return f"failed: {record['instruction'] or record['seed_id']}\n  {cause}"
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


class Progress:
    """Shows how a run goes. Use `begin(read_stats)` as a context manager; call it with records.

    It draws from its own thread, so that a slow terminal does not slow the run. `read_stats` is
    called from that thread and must only read plain values.
    """

    def __init__(
        self,
        *,
        show_rows: bool = False,
        to: TextIO | None = None,
        read_stats: Callable[[], RunStats] | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        tick_s: float = 0.5,
    ) -> None:
        """`show_rows` prints each record as it ends, without live lines; `to` is stderr if None."""
        self._show_rows = show_rows
        self._to = to or sys.stderr
        self._read_stats = read_stats
        self._console = console
        self._clock = clock
        self._tick_s = tick_s
        self._counts = Counter[str]()
        self._failed_criteria = Counter[str]()
        self._errors = Counter[str]()
        self._counts_lock = threading.Lock()
        self._draw_lock = threading.Lock()
        # Time, rows made and calls paid, at each tick of the last minute.
        self._history: deque[tuple[float, int, int]] = deque()
        self._rows: deque[str] = deque()
        self._calls_ended = 0
        self._started = self._last_write = self._last_activity = clock()
        self._session_start = (self._started, 0, 0)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None
        # A process may have been started without a stderr.
        self._reader_gone = self._to is None

    def __call__(self, record: Record) -> None:
        """Count a finished sample."""
        texts = {c["id"]: c["text"] for c in record["criteria"]}
        verdicts = [v for a in record["attempts"] for v in a["verdicts"] if v["verdict"] == "fail"]
        with self._counts_lock:
            self._counts[record["status"]] += 1
            for verdict in verdicts:
                count(
                    self._failed_criteria,
                    texts.get(verdict["criterion_id"], verdict["criterion_id"]),
                )
        if self._show_rows:
            self._rows.append(f"[{self._clock() - self._started:4.0f} s] {self.summary()}\n")
            self._rows.append(format_record(record) + "\n\n")
            if self._thread is None:
                self._write_rows()

    def count_error(self, kind: str) -> None:
        """Count a call's error, whether or not the call is retried."""
        with self._counts_lock:
            count(self._errors, kind)
        self._last_activity = self._clock()

    def notice(self, text: str) -> None:
        """Show a line of its own, once."""
        self._rows.append(f"{one_line(text)}\n")
        if self._thread is None:
            self._write_rows()

    def summary(self) -> str:
        """Return the samples of this session by status, as text."""
        return ", ".join(f"{s} {self._counts[s]}" for s in ("accepted", "rejected", "failed"))

    def begin(self, read_stats: Callable[[], RunStats] | None = None) -> Self:
        """Show the stats from now on, until `end`; without `read_stats`, only rows are shown."""
        self._read_stats = read_stats = read_stats or self._read_stats
        if read_stats is None or self._thread is not None:
            return self
        self._started = self._last_write = self._last_activity = self._clock()
        stats = read_stats()
        self._session_start = (self._started, stats.rows_made, stats.paid - stats.paid_before)
        self._calls_ended = stats.calls_ended
        self._history.append(self._session_start)
        self._live = (
            None if self._show_rows or self._reader_gone else open_live(self._to, self._console)
        )
        if self._live is not None:
            self._try_write(self._live.start)
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, name="refloom-display", daemon=True)
        self._thread.start()
        return self

    def end(self) -> None:
        """Show the last state, and stop."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        try:
            self.tick(finished=True)
        finally:
            self._history.clear()
            live, self._live = self._live, None
            if live is not None:
                # Stop it even when the reader has gone: this restores sys.stderr.
                with contextlib.suppress(OSError, ValueError):
                    live.stop()

    def __enter__(self) -> Self:
        return self.begin()

    def __exit__(self, *_: object) -> None:
        self.end()

    def _watch(self) -> None:
        while not self._stop.wait(self._tick_s):
            self.tick()

    def tick(self, *, finished: bool = False) -> None:
        """Refresh the display; without a terminal, write a line when one is due."""
        with self._draw_lock:
            self._write_rows()
            view = self._view(finished)
            live = self._live
            if live is not None:
                live.transient = finished and not view.stats.begun
                lines = draw_lines(view)
                self._try_write(lambda: live.update(lines, refresh=True))
            elif self._clock() - self._last_write >= LINE_INTERVAL_S or (
                finished and view.stats.begun
            ):
                self._write(f"[{view.elapsed:4.0f} s] {format_line(view)}\n")

    def _view(self, finished: bool) -> ProgressView:
        assert self._read_stats is not None
        stats, now = self._read_stats(), self._clock()
        calls = stats.calls_ended
        if calls != self._calls_ended:
            self._calls_ended, self._last_activity = calls, now
        # Rates are of this session only: what comes from the journal comes at once.
        rows_now, paid_now = stats.rows_made, stats.paid - stats.paid_before
        self._history.append((now, rows_now, paid_now))
        while len(self._history) > 1 and self._history[1][0] <= now - RATE_WINDOW_S:
            self._history.popleft()
        since, rows, paid = self._session_start if finished else self._history[0]
        elapsed = now - since
        with self._counts_lock:
            failed_criteria = self._failed_criteria.most_common(3)
            errors = self._errors.most_common(6)
        return ProgressView(
            stats=stats,
            elapsed=now - self._started,
            rows_a_minute=(rows_now - rows) / elapsed * 60 if elapsed > 0 else None,
            calls_a_second=(paid_now - paid) / elapsed if elapsed > 0 else None,
            failed_criteria=failed_criteria,
            errors=errors,
            silent=now - self._last_activity,
            finished=finished,
        )

    def _write_rows(self) -> None:
        while self._rows:
            self._write(self._rows.popleft())

    def _write(self, text: str) -> None:
        self._last_write = self._clock()
        encoding = getattr(self._to, "encoding", None) or "utf-8"
        writable = escape_controls(text).encode(encoding, "backslashreplace").decode(encoding)
        self._try_write(lambda: (self._to.write(writable), self._to.flush()))

    def _try_write(self, write: Callable[[], object]) -> None:
        if self._reader_gone:
            return
        try:
            write()
        except (OSError, ValueError):
            # The reader has gone. The run goes on without a display.
            self._reader_gone = True


def open_live(to: TextIO, console: Console | None) -> Live | None:
    """Return a live display; None unless `to` is a terminal that can move its cursor."""
    if console is None:
        if not to.isatty():
            return None
        from rich.console import Console

        console = Console(file=to)
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    from rich.live import Live

    # Other output to stderr goes above the live lines. stdout carries results and is left alone.
    is_stderr = to is sys.stderr
    return Live(
        console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=is_stderr
    )


def count(counter: Counter[str], text: str) -> None:
    """Count a text; beyond `MAX_COUNTED` different ones, drop the rarest half."""
    counter[" ".join(text.split())[:MAX_COUNTED_CHARS]] += 1
    if len(counter) > MAX_COUNTED:
        common = dict(counter.most_common(MAX_COUNTED // 2))
        counter.clear()
        counter.update(common)
