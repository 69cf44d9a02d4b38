"""Where a state goes next: pure functions of the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.runtime import Runtime
from langgraph.types import Send

from nodes.context import Context
from nodes.review import awaits_review
from nodes.state import SampleState, State

# The most `per_seed` allows; a state that was edited in Studio may hold more instructions.
MAX_SLOTS = 50


class Route(Runnable[Any, Any]):
    """A routing function in the form that LangGraph runs fastest.

    LangGraph would run a plain function in a thread and trace it as a step, each time, for what
    takes a microsecond.
    """

    def __init__(self, route: Callable[[Any], Any]) -> None:
        self.name = route.__name__
        self._route = route

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Where the state goes next."""
        return self._route(input)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """The same, on the event loop."""
        return self._route(input)


def after_propose(state: State) -> list[Send] | Literal["screen"]:
    """Proposals are screened; instructions that the run has admitted are made samples of."""
    ended = state.get("contaminated") or state.get("failure")
    if ended or state.get("instructions") is not None:
        return to_samples(state)
    return "screen"


def after_screen(state: State) -> list[Send] | Literal["propose"]:
    """One sample for each admitted instruction; until that is known, propose once more."""
    if state.get("failure") or state.get("instructions") is not None:
        return to_samples(state)
    return "propose"


def to_samples(state: State) -> list[Send]:
    """One `sample` for each new instruction.

    A seed that failed, or is a benchmark's prompt, gets a single slot that records why.
    """
    shared: dict[str, Any] = {"seed": state["seed"], "references": state["references"]}
    if state.get("contaminated"):
        shared |= {"contaminated": state["contaminated"], "usage": state["usage"]}
        return [Send("sample", {**shared, "slot": 0, "instruction": state["seed"]["instruction"]})]
    if state.get("failure"):
        shared |= {"failure": state["failure"], "usage": state["usage"]}
        return [Send("sample", {**shared, "slot": 0})]
    learned = state.get("learned", [])
    bars = [entry["topic_bar"] for entry in learned if entry["topic_bar"] is not None]
    shared |= {
        "criteria": state["criteria"],
        "instruction_criteria": state.get("instruction_criteria") or [],
        "topic_bar": sum(bars) / len(bars) if bars else None,
    }
    features = state.get("features") or {}
    by_feedback = bool(learned) and "response_feedback" in learned[0]
    sends = []
    verdicts = state.get("instruction_verdicts") or {}
    for slot, text in enumerate((state["instructions"] or [])[:MAX_SLOTS]):
        if text is None:
            continue
        sample = {**shared, "slot": slot, "instruction": text}
        sample["instruction_verdicts"] = verdicts.get(text, [])
        if by_feedback:
            sample["response_feedback"] = learned[0]["response_feedback"]
            sample["feature"] = features.get(text)
        sends.append(Send("sample", sample))
    return sends


def after_sample(state: State) -> Literal["__end__"] | list[Send]:
    """A `review` for each sample that waits for a person."""
    pending = [sample for sample in state["samples"] if sample["status"] == "pending"]
    sends = [Send("review", {"sample": s, "references": state["references"]}) for s in pending]
    return sends or "__end__"


def after_critique(state: SampleState) -> Literal["refine", "answer", "__end__"]:
    """Refine while the sample is open; `nodes.verdicts.next_step` closes it.

    An accepted sample may be answered again, bare, until `critique` says that it is enough.
    """
    if state.get("status") == "open":
        return "refine"
    return "answer" if state.get("answering") else "__end__"


def after_critique_alone(
    state: SampleState, runtime: Runtime[Context]
) -> Literal["refine", "answer", "review", "__end__"]:
    """The same in the graph `sample` on its own, where a person may be asked before the end."""
    step = after_critique(state)
    if step != "__end__":
        return step
    return "review" if awaits_review(state, runtime.context or Context()) else "__end__"
