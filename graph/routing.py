"""Where a state goes next: pure functions of it."""

from __future__ import annotations

from typing import Any, Literal

from langgraph.runtime import Runtime
from langgraph.types import Send

from nodes.context import Context
from nodes.review import awaited
from nodes.state import SampleState, State

# As many as a seed may have; whoever edits a thread's state in Studio gets no more either.
MOST_SLOTS = 50


def after_retrieve(state: State) -> Literal["extract"] | list[Send]:
    """Learn from the references, unless the seed is a benchmark's prompt: that ends as it is."""
    if not state.get("contaminated"):
        return "extract"
    given = ("seed", "references", "contaminated", "usage")
    kept = {name: state[name] for name in given}  # type: ignore[literal-required]
    return [Send("sample", {**kept, "slot": 0, "instruction": state["seed"]["instruction"]})]


def after_extract(state: State) -> Literal["propose"] | list[Send]:
    """Propose, unless nothing could be learned from any reference."""
    return failed_slots(state, 1) if state.get("failure") else "propose"


def after_propose(state: State) -> list[Send]:
    """One sample a new instruction; a seed whose proposal failed leaves a failed sample."""
    if state.get("failure"):
        return failed_slots(state, 1)
    learned = [e["topic_bar"] for e in state.get("learned", []) if e["topic_bar"] is not None]
    shared: dict[str, Any] = {
        "seed": state["seed"],
        "references": state["references"],
        "criteria": state["criteria"],
        "topic_bar": sum(learned) / len(learned) if learned else None,
    }
    return [
        Send("sample", {**shared, "slot": slot, "instruction": instruction})
        for slot, instruction in enumerate(state["instructions"][:MOST_SLOTS])
        if instruction is not None
    ]


def failed_slots(state: State, slots: int) -> list[Send]:
    """The slots of a seed that failed before any of them had an instruction."""
    lost = {
        "seed": state["seed"],
        "references": state["references"],
        "failure": state["failure"],
        "usage": state["usage"],
    }
    return [Send("sample", {**lost, "slot": slot}) for slot in range(slots)]


def after_sample(state: State) -> Literal["__end__"] | list[Send]:
    """Show a person the samples that wait for one."""
    waiting = [s for s in state["samples"] if s["status"] == "pending"]
    sends = [Send("review", {"sample": s, "references": state["references"]}) for s in waiting]
    return sends or "__end__"


def after_writing(state: SampleState) -> Literal["critique", "__end__"]:
    """Judge what was written, unless the writing failed."""
    return "__end__" if state.get("status") == "failed" else "critique"


def after_critique(state: SampleState) -> Literal["refine", "__end__"]:
    """Try again while the sample is open; `nodes.verdicts.decide` closes it."""
    return "refine" if state.get("status") == "open" else "__end__"


def judged(state: SampleState, runtime: Runtime[Context]) -> Literal["refine", "review", "__end__"]:
    """The same where the loop is called by itself: a person may be asked before the end."""
    if state.get("status") == "open":
        return "refine"
    return "review" if awaited(state, runtime.context or Context()) else "__end__"
