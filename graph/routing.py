"""Where a state goes next: pure functions of it."""

from __future__ import annotations

from typing import Any, Literal

from langgraph.types import Send

from nodes.state import SampleState, State


def after_retrieve(state: State) -> Literal["extract"] | list[Send]:
    """Learn from the references, unless the seed is a benchmark's prompt: that ends as it is."""
    if "contaminated" not in state:
        return "extract"
    given = ("seed", "references", "contaminated", "usage")
    kept = {name: state[name] for name in given}  # type: ignore[literal-required]
    return [Send("sample", {**kept, "slot": 0, "instruction": state["seed"]["instruction"]})]


def after_extract(state: State) -> Literal["propose"] | list[Send]:
    """Propose, unless nothing could be learned from any reference."""
    return failed_slots(state, 1) if "failure" in state else "propose"


def after_propose(state: State) -> list[Send]:
    """One sample a new instruction; a seed whose proposal failed leaves a failed sample."""
    if "failure" in state:
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
        for slot, instruction in enumerate(state["instructions"])
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


def after_writing(state: SampleState) -> Literal["critique", "__end__"]:
    """Judge what was written, unless the writing failed."""
    return "__end__" if state.get("status") == "failed" else "critique"


def after_critique(state: SampleState) -> Literal["refine", "__end__"]:
    """Try again while the sample is open; `nodes.verdicts.decide` closes it."""
    return "refine" if state.get("status") == "open" else "__end__"
