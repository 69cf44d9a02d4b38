"""What a person sees of a run, on stderr: some live lines on a terminal, else a line at times."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TextIO

from refloom.runs.shown import Seen, View, drawn, plain, shown, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from nodes.record import Record

__all__ = ["Progress", "Seen"]

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
        look: Callable[[], Seen] | None = None,
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

    def begin(self, look: Callable[[], Seen] | None = None) -> Self:
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
