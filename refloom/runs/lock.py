"""One process a run directory, and its pid for the others."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from refloom.errors import JournalError

FILES = ("accepted.jsonl", "rejected.jsonl", "failed.jsonl", "run.json", "README.md")


def hold(directory: Path) -> FileLock:
    """Take the directory for this process. Raises `JournalError` naming the pid that has it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # It is taken in one thread and let go of in another.
        lock = FileLock(directory / ".lock", thread_local=False)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise JournalError(
            f"{directory}: another process (pid {holder(directory)}) is at work here; "
            "wait for it or end it"
        ) from error
    except OSError as error:
        raise JournalError(f"{directory}: cannot be written ({error.strerror or error})") from error
    (directory / ".pid").write_text(str(os.getpid()), encoding="utf-8")
    for name in FILES:
        # Nobody else writes these now: a process that was killed has left its half.
        for half_written in directory.glob(f"{name}.*.new"):
            half_written.unlink(missing_ok=True)
    return lock


def holder(directory: Path) -> int | None:
    """The pid of the process at work in `directory`, or None if there is none."""
    if not (directory / ".lock").is_file():
        return None
    try:
        with FileLock(directory / ".lock").acquire(timeout=0):
            return None
    except Timeout:
        pid = (directory / ".pid").read_text(encoding="utf-8")
        return int(pid) if pid.isdigit() else -1
    except OSError:
        return None
