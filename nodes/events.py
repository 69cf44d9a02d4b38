"""Progress events of the graphs, on LangGraph's stream mode `custom`.

Events of the inner loop come with the streams of subgraphs. An event that nobody listens to costs a
few microseconds.
"""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime

MAX_MESSAGE_LENGTH = 300


def emit(runtime: Runtime[Any], event: str, message: str, **data: Any) -> None:
    """Send an event: its name, a sentence for people, and the same as data for programs."""
    text = " ".join(message.split())
    if len(text) > MAX_MESSAGE_LENGTH:
        text = f"{text[: MAX_MESSAGE_LENGTH - 1]}…"
    runtime.stream_writer({"event": event, "message": text, **data})
