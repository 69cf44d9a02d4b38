"""Calls and errors as plain values, for another process."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from memory.references import IndexUnusable
from memory.weights import WeightsUnavailable
from nodes.feedback import Feedback, Improved
from nodes.generate import Generated
from nodes.inputs import BadInput
from nodes.judge import Critiqued
from nodes.learn import Extracted
from nodes.llm import Answer, Call, CallFailed, ProviderStopped
from nodes.llm.protocol import Transient
from nodes.propose import Proposed
from nodes.refine import Refined
from refloom.errors import BudgetSpent, JournalError
from refloom.runs.calls import Interrupted

ANSWERS: dict[str, type[Answer]] = {
    answer.__name__: answer
    for answer in (Extracted, Proposed, Generated, Critiqued, Refined, Feedback, Improved)
}


_SAID: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        *(ProviderStopped, BudgetSpent, Interrupted, BadInput),
        *(IndexUnusable, WeightsUnavailable, JournalError),
    )
}


def plain_call(call: Call) -> dict[str, Any]:
    """A call as JSON."""
    said = {field.name: getattr(call, field.name) for field in fields(call)}
    return said | {"answer": call.answer.__name__ if call.answer else None}


def call_of(said: dict[str, Any]) -> Call:
    """The call again."""
    answer = ANSWERS[said["answer"]] if said["answer"] else None
    messages, order = tuple(said["messages"]), tuple(said["order"])
    return Call(**{**said, "answer": answer, "messages": messages, "order": order})


def plain_error(error: Exception) -> dict[str, Any]:
    """An error as JSON: its kind, and what it says."""
    said: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
    if isinstance(error, CallFailed):
        said |= {"stage": error.stage, "kind": error.kind, "message": error.message}
        said |= {"usage": error.usage, "retry_after": getattr(error, "retry_after", None)}
        said["error"] = "Transient" if isinstance(error, Transient) else "CallFailed"
    return said


def error_of(said: dict[str, Any]) -> Exception:
    """The error again; one of a kind unknown here bears its name all the same."""
    name, message = said["error"], said["message"]
    if name in ("Transient", "CallFailed"):
        kind = Transient if name == "Transient" else CallFailed
        failed = kind(said["stage"], said["kind"], message, said["usage"])
        if isinstance(failed, Transient):
            failed.retry_after = said["retry_after"]
        return failed
    known = _SAID.get(name)
    return known(message) if known else type(name, (Exception,), {})(message)
