"""What a person sees of a run, on stderr."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TextIO

from nodes.sample import Record

EVERY_S = 15.0


class Progress:
    """Says how a run goes: a line every quarter of a minute, and each accepted row if wanted."""

    def __init__(self, *, show_rows: bool = False, to: TextIO = sys.stderr) -> None:
        self._counts: Counter[str] = Counter()
        self._show_rows = show_rows
        self._to = to
        self._begun = self._said = time.monotonic()

    def __call__(self, record: Record) -> None:
        """Take note of a finished sample."""
        self._counts[record["status"]] += 1
        now = time.monotonic()
        if self._show_rows:
            self._to.write(f"[{now - self._begun:4.0f} s] {self.line()}\n{shown(record)}\n\n")
        elif now - self._said >= EVERY_S:
            self._said = now
            self._to.write(f"[{now - self._begun:4.0f} s] {self.line()}\n")
        self._to.flush()

    def line(self) -> str:
        """The counts in words."""
        counts = self._counts
        return (
            f"accepted {counts['accepted']}, rejected {counts['rejected']}, "
            f"failed {counts['failed']}"
        )


def shown(record: Record) -> str:
    """A record as a person reads it."""
    if record["status"] == "failed":
        error = record["error"]
        said = f"{error['stage']}: {error['kind']}: {error['message']}"
        return f"failed: {record['instruction'] or record['seed_id']}\n  {said}"
    response = "\n".join("  " + line for line in (record["response"] or "").splitlines())
    why = "" if record["status"] == "accepted" else f" ({_failed(record)})"
    head = f"{record['status']} after {len(record['attempts'])} attempt(s){why}"
    return f"{head}\n> {record['instruction']}\n{response}"


def _failed(record: Record) -> str:
    texts = {c["id"]: c["text"] for c in record["criteria"]}
    last = record["attempts"][-1]["verdicts"] if record["attempts"] else []
    missed = [texts[v["criterion_id"]] for v in last if v["verdict"] in ("fail", "unknown")]
    return f"{record['reason']}: not {'; not '.join(missed[:3])}" if missed else record["reason"]
