"""What a run tells while it goes on: one event a step, for people and for programs.

They come with the stream mode `custom`; those of the inner loop with the subgraphs' streams.
Without anybody listening an event costs a few microseconds.
"""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime

MAX_MESSAGE_LENGTH = 300


def emit(runtime: Runtime[Any], event: str, message: str, **said: Any) -> None:
    """Send an event: its name, a sentence a person can follow, and the same as data."""
    line = " ".join(message.split())
    short = line if len(line) <= MAX_MESSAGE_LENGTH else f"{line[: MAX_MESSAGE_LENGTH - 1]}…"
    runtime.stream_writer({"event": event, "message": short, **said})
