"""The progress of a run on stderr: a live view on a terminal, a cell in a notebook, else lines.

What a run is doing, its rows, rate and time left, its calls and dollars, and what fails most.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import textwrap
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

    from nodes.record import Record

# Between two lines where there is no terminal.
LINE_INTERVAL_S = 30.0
# A line says what a run is doing, other than making rows, once it has taken so long.
ACTIVITY_S = 5.0
# Rates are those of the last minute or so.
RATE_WINDOW_S = 60.0
# So many rows, or as many as are made at once or a twentieth of all, tell how long the rest takes.
MIN_MADE, MIN_SHARE = 3, 20
# Without the end of a call for this long, the display says so.
SILENT_S = 60.0
# A bar that is narrower says nothing: what stands beside it goes above and below it.
MIN_BAR_CHARS = 8
# A line where there is no terminal.
MAX_LINE_CHARS = 98
LINE_INDENT = " " * 9
MAX_LABEL_CHARS = 48
# Criteria that fail most, in a live view and in lines.
MAX_SHOWN, MAX_IN_LINES = 3, 1
# Different texts that are counted, and how much of each.
MAX_COUNTED = 400
MAX_COUNTED_CHARS = 200
# Places of a refinement that are shown, and characters of each side.
MAX_CHANGES, MAX_CHANGE_CHARS = 3, 60

MAKING_ROWS = "making rows"

# Control characters that a terminal obeys, and lone surrogates, which cannot be written at all.
_TERMINAL_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_DIGITS = re.compile(r"\d")


@dataclass(frozen=True)
class RunStats:
    """The counts of a run, in totals that include its earlier sessions.

    `activity` says what it is doing. `slots` is the most samples there can be; None in a run with a
    target. `limit` is the number of calls allowed in flight now. `cost` and `max_cost` are US
    dollars; None is an unknown price or no limit.
    """

    target: int | None
    slots: int | None
    seeds: int
    limit: int
    max_cost: float | None
    activity: str = MAKING_ROWS
    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    candidates: int = 0
    paid: int = 0
    reused: int = 0
    retried: int = 0
    in_flight: int = 0
    waiting: int = 0
    cost: float | None = None

    @property
    def calls_ended(self) -> int:
        """Calls that ended, with or without an answer."""
        return self.paid + self.reused + self.retried

    @property
    def samples_ended(self) -> int:
        """Samples that ended, in whatever way."""
        return self.accepted + self.rejected + self.failed

    @property
    def begun(self) -> bool:
        """Whether any call or sample has ended."""
        return bool(self.paid + self.reused + self.samples_ended)

    @property
    def share(self) -> tuple[int, int]:
        """How many are done and how many there are: accepted rows of the target, else samples."""
        if self.target is not None:
            return self.accepted, self.target
        ended = self.samples_ended
        total = max(self.candidates, self.seeds) if self.slots is None else self.slots
        return ended, max(total, ended)

    def tells_rest(self, made: int) -> bool:
        """Whether as many as were made tell what the rest needs; the first few do not."""
        return made >= max(MIN_MADE, min(self.limit, self.share[1] // MIN_SHARE))

    @property
    def cost_to_come(self) -> float | None:
        """US dollars for the rest, if it costs as much a sample as so far; None until it tells."""
        done, total = self.share
        if self.cost is None or not self.tells_rest(done):
            return None
        return self.cost / done * max(total - done, 0)


@dataclass(frozen=True)
class ProgressView:
    """What the display has at one moment.

    `rows_a_minute` are accepted rows or, without a target, samples; None until it is known, as are
    `seconds_left`. `silent` are the seconds without the end of a call.
    """

    stats: RunStats
    elapsed: float
    rows_a_minute: float | None
    seconds_left: float | None
    failed_criteria: list[tuple[str, int]]
    errors: list[tuple[str, int]]
    silent: float
    finished: bool


def format_lines(view: ProgressView) -> list[str]:
    """Return a view as short lines, the first of which says how far the run is."""
    stats = view.stats
    done, total = stats.share
    target = f" of {total:,}" if stats.target is not None else ""
    ended = "" if target else f" ({done:,} of {total:,} samples)"
    counts = (
        f"accepted {stats.accepted:,}{target}, rejected {stats.rejected:,}, "
        f"failed {stats.failed:,}{ended}"
    )
    lines = ["; ".join([counts, *format_pace(view)])]
    lines += ["; ".join(format_calls(view)), "; ".join(format_cost(view))]
    lines += format_failing(view, MAX_IN_LINES)
    lines += format_troubles(view)
    return [line for line in map(one_line, lines) if line]


def draw_view(view: ProgressView, width: int) -> RenderableType:
    """Return a live view: the activity, a bar and counts on a line, and facts that wrap under it.

    Where a line of `width` characters is too short for that, each has its own.
    """
    from rich.cells import cell_len
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Column, Table
    from rich.text import Text

    def lines(texts: Iterable[str], style: str = "") -> list[Text]:
        # rich does not interpret markup inside a Text.
        return [Text(one_line(text), style=style) for text in texts if text]

    stats = view.stats
    done, total = stats.share
    activity = "ended" if view.finished else one_line(stats.activity)
    parts = [f"{stats.rejected:,} rejected", *([f"{stats.failed:,} failed"] * bool(stats.failed))]
    head, joint = f"{done:,} of {total:,} accepted", ", "
    if stats.target is None:
        head, joint = f"{done:,} of {total:,} samples", ": "
        parts.insert(0, f"{stats.accepted:,} accepted")
    rest = ", ".join(parts)
    above, left, right, below = "", activity, head + joint + rest, ""
    if cell_len(left) + cell_len(right) + 2 + MIN_BAR_CHARS > width:
        above, left, right, below = activity, "", head, rest
    bar = ProgressBar(total=max(total, 1), completed=done)
    cells: list[RenderableType] = [*lines([left]), bar, *lines([right])]
    columns = (Column(ratio=1 if cell is bar else None, no_wrap=True) for cell in cells)
    grid = Table.grid(*columns, padding=(0, 1), expand=True)
    grid.add_row(*cells)
    facts = [", ".join(part(view)) for part in (format_pace, format_calls, format_cost)]
    return Group(
        *lines([above]),
        grid,
        *lines([below]),
        *lines(facts if stats.begun else ()),
        *lines(format_failing(view, MAX_SHOWN), "yellow"),
        *lines(format_troubles(view), "red"),
    )


def format_pace(view: ProgressView) -> list[str]:
    """Return the rate, and the time that is left."""
    if view.rows_a_minute is None:
        return []
    unit = "rows" if view.stats.target is not None else "samples"
    parts = [f"{view.rows_a_minute:,.1f} {unit} a minute"]
    if view.seconds_left is not None and not view.finished:
        parts.append(f"about {format_seconds(view.seconds_left)} left")
    return parts


def format_calls(view: ProgressView) -> list[str]:
    """Return the calls that were made and, while the run goes on, those in flight."""
    stats = view.stats
    parts = ["1 call paid" if stats.paid == 1 else f"{stats.paid:,} calls paid"]
    parts += [f"{stats.reused:,} reused"] if stats.reused else []
    parts += [f"{stats.retried:,} retried"] if stats.retried else []
    if not view.finished:
        parts.append(f"{stats.in_flight} of {stats.limit} in flight")
        parts += [f"{stats.waiting} waiting"] if stats.waiting else []
    return parts


def format_cost(view: ProgressView) -> list[str]:
    """Return the dollars so far and to come, where they are known and a model has a price."""
    stats = view.stats
    if not stats.cost and stats.max_cost is None:
        return []
    parts = [f"{format_dollars(stats.cost)} so far"]
    if stats.cost_to_come and not view.finished:
        parts.append(f"about {format_dollars(stats.cost_to_come)} to come")
    if stats.max_cost is not None:
        parts.append(f"{format_dollars(stats.max_cost)} allowed")
    return parts


def format_failing(view: ProgressView, most: int) -> list[str]:
    """Return the criteria that fail most, each in full with how often it failed."""
    return [
        f"failed {'once' if number == 1 else f'{number:,} times'}: the response {text}"
        for text, number in view.failed_criteria[:most]
    ]


def format_troubles(view: ProgressView) -> list[str]:
    """Return the errors by kind, and a warning when no call has ended for a minute."""
    parts = []
    if view.errors:
        counts = (f"{shorten(kind)} {number}" for kind, number in view.errors)
        parts.append(f"errors: {', '.join(counts)}")
    if view.silent >= SILENT_S and not view.finished:
        parts.append(f"no call has ended for {format_seconds(view.silent)}")
    return parts


def format_seconds(seconds: float) -> str:
    """Return a time in words.

    >>> format_seconds(40), format_seconds(170), format_seconds(9000)
    ('40 s', '3 min', '2 h 30 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = max(round(seconds / 60), 1)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def format_dollars(value: float | None) -> str:
    """Return US dollars, with cents' parts of a small sum."""
    if value is None:
        return "an unknown sum"
    return f"${value:,.2f}" if value >= 1 or not value else f"${value:.4f}"


def escape_controls(text: str) -> str:
    """Return untrusted text without control characters; line breaks stay."""
    return _TERMINAL_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """Return untrusted text on one line, without control characters."""
    return escape_controls(" ".join(text.split()))


def shorten(text: str, most: int = MAX_LABEL_CHARS) -> str:
    """Return the start of a text, at most `most` characters long."""
    return text if len(text) <= most else text[: most - 1] + "…"


def wrap_lines(lines: Iterable[str], start: str, most: int = MAX_LINE_CHARS) -> str:
    """Return lines of at most `most` characters, the first after `start`, the others indented.

    One that is too long is broken after a semicolon where it has one.
    """
    width = max(most - len(LINE_INDENT), 1)
    wrapped: list[str] = []
    for line in lines:
        first, *parts = line.split("; ")
        joined = [first]
        for part in parts:
            if len(joined[-1]) + len(part) + 2 <= width:
                joined[-1] += f"; {part}"
            else:
                joined.append(part)
        wrapped += [short for one in joined for short in textwrap.wrap(one, width)]
    head, *rest = wrapped or [""]
    return "".join([f"{start} {head}\n", *(f"{LINE_INDENT}{line}\n" for line in rest)])


def format_record(record: Record) -> str:
    """Return a record as text for a person: what failed, what was changed, what came out."""
    if record["status"] == "failed":
        error = record["error"]
        cause = f"{error['stage']}: {error['kind']}: {error['message']}"
        return f"failed: {record['instruction'] or record['seed_id']}\n  {cause}"
    attempts = record["attempts"]
    tries = "at the first attempt" if len(attempts) == 1 else f"after {len(attempts)} attempts"
    lines = [f"{record['status']} {tries}"]
    lines.append(indent(record["instruction"] or "", "> "))
    for number, attempt in enumerate(attempts):
        if number:
            lines += describe_changes(attempts[number - 1]["response"], attempt["response"])
        if record["status"] != "accepted" or number < len(attempts) - 1:
            lines += [
                indent(line, "           ").replace("           ", "  failed:  ", 1)
                for line in describe_failures(record, attempt)
            ]
        elif number:
            lines.append("  passed:  all that it has to")
    lines.append(indent(record["response"] or "", "  | "))
    return "\n".join(lines)


def indent(text: str, margin: str) -> str:
    """Return a text with a margin before each line; those that are too long are wrapped."""
    width = MAX_LINE_CHARS - len(margin)
    lines: list[str] = []
    for line in text.splitlines():
        # What fits keeps its spaces: it may be code.
        lines += [line] if len(line) <= width else textwrap.wrap(line, width)
    return "\n".join(f"{margin}{line}".rstrip() for line in lines)


def describe_failures(record: Record, attempt: dict[str, Any]) -> list[str]:
    """Return what an attempt failed in: the musts if there are any, else the others."""
    criteria = {criterion["id"]: criterion for criterion in record["criteria"]}
    failed = [
        (criteria[verdict["criterion_id"]], verdict.get("reason") or "")
        for verdict in attempt["verdicts"]
        if verdict["verdict"] == "fail" and verdict["criterion_id"] in criteria
    ]
    musts = [pair for pair in failed if pair[0].get("must", True)]
    return [
        one_line(f'"{criterion["text"]}"' + (f": {reason}" if reason else ""))
        for criterion, reason in musts or failed
    ] or [f"{record['reason'] or 'no verdict that is known'}"]


def describe_changes(before: str, after: str) -> list[str]:
    """Return what a refinement changed: its length, and the first places where it differs."""
    # Imported here: a run is begun before anything slow is imported.
    from nodes.text_diff import diff_parts

    if before == after:
        return ["  changed: nothing"]
    lines = [f"  changed: {len(before.split())} words to {len(after.split())}"]
    for part in diff_parts(before, after, MAX_CHANGES):
        sides = [shorten(one_line(part[side]), MAX_CHANGE_CHARS) for side in ("removed", "added")]
        if any(sides):
            removed, added = (f'"{side}"' if side else "nothing" for side in sides)
            lines.append(f"           {removed} to {added}")
    return lines


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
        notebook: Callable[[str], None] | None = None,
    ) -> None:
        """`show_rows` prints each record as it ends; `to` is stderr if None.

        `notebook` shows a text in the place of the one before; by default a notebook's cell does,
        where there is one.
        """
        self._show_rows = show_rows
        self._to = to or sys.stderr
        self._read_stats = read_stats
        self._console = console
        self._clock = clock
        self._tick_s = tick_s
        self._notebook = notebook
        self._failed_criteria = Counter[str]()
        self._errors = Counter[str]()
        self._counts_lock = threading.Lock()
        self._rows: deque[str] = deque()
        self._calls_ended = 0
        self._started = self._last_write = self._last_activity = clock()
        # When rows were begun, and how many were done at the looks of the last minute.
        self._making_since: float | None = None
        self._made: deque[tuple[float, int]] = deque()
        # What the run was doing, since when, and whether a line said so.
        self._activity, self._activity_since, self._activity_told = "", self._started, False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None
        self._line_chars = MAX_LINE_CHARS
        # A process may have been started without a stderr.
        self._reader_gone = self._to is None

    def __call__(self, record: Record) -> None:
        """Count a finished sample."""
        texts = {c["id"]: c["text"] for c in record["criteria"]}
        verdicts = [v for a in record["attempts"] for v in a["verdicts"] if v["verdict"] == "fail"]
        with self._counts_lock:
            for verdict in verdicts:
                count(
                    self._failed_criteria,
                    texts.get(verdict["criterion_id"], verdict["criterion_id"]),
                )
        if self._show_rows:
            self._rows.append(
                f"[{self._clock() - self._started:4.0f} s] {format_record(record)}\n\n"
            )
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

    def begin(self, read_stats: Callable[[], RunStats] | None = None) -> Self:
        """Show the stats from now on, until `end`; without `read_stats`, only rows are shown."""
        self._read_stats = read_stats = read_stats or self._read_stats
        if read_stats is None or self._thread is not None:
            return self
        self._started = self._last_write = self._last_activity = self._clock()
        stats = read_stats()
        self._making_since = None
        self._made.clear()
        self._count_made(stats, self._started)
        self._calls_ended = stats.calls_ended
        self._activity, self._activity_since = "", self._started
        self._open()
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, name="refloom-display", daemon=True)
        self._thread.start()
        return self

    def _open(self) -> None:
        """Choose where to show: in a notebook, on a terminal that can be drawn on, or in lines."""
        if self._notebook is None and self._console is None:
            self._notebook = find_notebook()
        console = None
        if self._notebook is None and not self._reader_gone:
            console = find_terminal(self._to, self._console)
        if console is not None:
            from rich.live import Live

            # Other output to stderr goes above it. stdout carries results and is left alone.
            self._live = Live(
                console=console,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=self._to is sys.stderr,
            )
            self._try_write(self._live.start)
        elif not self._reader_gone and self._to.isatty():
            # One that cannot be drawn on, and wraps anywhere what is longer than a line of it.
            columns = shutil.get_terminal_size((MAX_LINE_CHARS, 0)).columns
            self._line_chars = min(self._line_chars, columns)

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
        self._write_rows()
        view = self._view(finished)
        if self._notebook is not None:
            self._show_in_notebook(view)
        elif self._live is not None:
            self._draw(self._live, view)
        else:
            self._write_due_lines(view)

    def _draw(self, live: Live, view: ProgressView) -> None:
        live.transient = view.finished and not view.stats.begun
        drawn = draw_view(view, live.console.width)
        self._try_write(lambda: live.update(drawn, refresh=True))

    def _show_in_notebook(self, view: ProgressView) -> None:
        assert self._notebook is not None
        words = "" if view.finished else f"{view.stats.activity}; "
        lines = format_lines(view)
        lines[0] = words + lines[0]
        self._notebook(wrap_lines(lines, f"[{view.elapsed:4.0f} s]"))

    def _write_due_lines(self, view: ProgressView) -> None:
        now, activity = self._clock(), view.stats.activity
        start = f"[{view.elapsed:4.0f} s]"
        if view.finished:
            if view.stats.begun:
                self._write(wrap_lines(format_lines(view)[:1], start, self._line_chars))
            return
        # Numbers in it do not make it another activity.
        kind = _DIGITS.sub("", activity)
        if kind != self._activity:
            self._activity, self._activity_since, self._activity_told = kind, now, False
        if now - self._last_write >= LINE_INTERVAL_S:
            self._activity_told = True
            busy = activity == MAKING_ROWS or view.stats.samples_ended
            lines = format_lines(view) if busy else [activity, *format_troubles(view)]
            self._write(wrap_lines(lines, start, self._line_chars))
        elif (
            not self._activity_told
            and activity != MAKING_ROWS
            and now - self._activity_since >= ACTIVITY_S
        ):
            self._activity_told = True
            self._write(wrap_lines([activity], start, self._line_chars))

    def _view(self, finished: bool) -> ProgressView:
        assert self._read_stats is not None
        stats, now = self._read_stats(), self._clock()
        if stats.calls_ended != self._calls_ended:
            self._calls_ended, self._last_activity = stats.calls_ended, now
        made, speed = self._count_made(stats, now, whole=finished)
        done, total = stats.share
        left = max(total - done, 0) / speed if speed and stats.tells_rest(made) else None
        with self._counts_lock:
            failed_criteria = self._failed_criteria.most_common(MAX_SHOWN)
            errors = self._errors.most_common(6)
        return ProgressView(
            stats=stats,
            elapsed=now - self._started,
            rows_a_minute=None if speed is None else speed * 60,
            seconds_left=left,
            failed_criteria=failed_criteria,
            errors=errors,
            silent=now - self._last_activity,
            finished=finished,
        )

    def _count_made(
        self, stats: RunStats, now: float, *, whole: bool = False
    ) -> tuple[int, float | None]:
        """The rows made by this session, and those made a second, of late or in the `whole`.

        The time before the first row is begun makes none, and what comes from the journal comes at
        once: neither counts.
        """
        if self._making_since is None:
            if stats.activity != MAKING_ROWS:
                return 0, None
            self._making_since, self._done_before = now, stats.share[0]
        done, looks = stats.share[0], self._made
        looks.append((now, done))
        while len(looks) > 1 and looks[1][0] <= now - RATE_WINDOW_S:
            looks.popleft()
        since, before = looks[0]
        if whole or done - before < MIN_MADE:
            since, before = self._making_since, self._done_before
        made = done - before
        return done - self._done_before, made / (now - since) if made and now > since else None

    def _write_rows(self) -> None:
        while self._rows:
            self._write(self._rows.popleft())

    def _write(self, text: str) -> None:
        self._last_write = self._clock()
        encoding = getattr(self._to, "encoding", None) or "utf-8"
        writable = escape_controls(text).encode(encoding, "backslashreplace").decode(encoding)
        if self._live is not None:
            # Above the live lines.
            console = self._live.console
            self._try_write(lambda: console.out(writable, end="", highlight=False))
            return
        self._try_write(lambda: (self._to.write(writable), self._to.flush()))

    def _try_write(self, write: Callable[[], object]) -> None:
        if self._reader_gone:
            return
        try:
            write()
        except (OSError, ValueError):
            # The reader has gone. The run goes on without a display.
            self._reader_gone = True


def find_terminal(to: TextIO, console: Console | None) -> Console | None:
    """Return a console to draw on; None unless `to` is a terminal that can move its cursor."""
    if console is None:
        if not to.isatty():
            return None
        from rich.console import Console

        console = Console(file=to)
    return None if not console.is_terminal or console.is_dumb_terminal else console


def find_notebook() -> Callable[[str], None] | None:
    """Return what shows a text in a notebook's cell in the place of the last; None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    # A shell in a terminal has no kernel.
    if shell is None or getattr(shell, "kernel", None) is None:
        return None
    handle = import_module("IPython.display").display({"text/plain": ""}, raw=True, display_id=True)

    def show(text: str) -> None:
        handle.update({"text/plain": escape_controls(text)}, raw=True)

    return show


def count(counter: Counter[str], text: str) -> None:
    """Count a text; beyond `MAX_COUNTED` different ones, drop the rarest half."""
    counter[" ".join(text.split())[:MAX_COUNTED_CHARS]] += 1
    if len(counter) > MAX_COUNTED:
        common = dict(counter.most_common(MAX_COUNTED // 2))
        counter.clear()
        counter.update(common)
