"""Where a state goes next: pure functions of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.runtime import Runtime
from langgraph.types import Send

from nodes.context import Context
from nodes.review import awaits_review
from nodes.state import SampleState, State

# As many as a seed may have; whoever edits a thread's state in Studio gets no more either.
MAX_SLOTS = 50


class Route(Runnable[Any, Any]):
    """A route in the form that costs LangGraph least.

    It would run a plain function in a thread, and as a step that callbacks hear of, each time, for
    what takes a microsecond.
    """

    def __init__(self, route: Callable[[Any], Any]) -> None:
        self.name = route.__name__
        self._route = route

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Where the state goes next."""
        return self._route(input)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """The same on the event loop."""
        return self._route(input)


def after_propose(state: State) -> list[Send]:
    """One sample a new instruction; a seed that ended before it had any leaves one that says why.

    A seed that is a benchmark's prompt ends as it is, with nothing made of it.
    """
    if state.get("contaminated"):
        given = ("seed", "references", "contaminated", "usage")
        kept = {name: state[name] for name in given}  # type: ignore[literal-required]
        return [Send("sample", {**kept, "slot": 0, "instruction": state["seed"]["instruction"]})]
    if state.get("failure"):
        given = ("seed", "references", "failure", "usage")
        lost = {name: state[name] for name in given}  # type: ignore[literal-required]
        return [Send("sample", {**lost, "slot": 0})]
    learned = [e["topic_bar"] for e in state.get("learned", []) if e["topic_bar"] is not None]
    shared: dict[str, Any] = {
        "seed": state["seed"],
        "references": state["references"],
        "criteria": state["criteria"],
        "topic_bar": sum(learned) / len(learned) if learned else None,
    }
    return [
        Send("sample", {**shared, **_fed(state, text), "slot": slot, "instruction": text})
        for slot, text in enumerate(state["instructions"][:MAX_SLOTS])
        if text is not None
    ]


def _fed(state: State, instruction: str) -> dict[str, Any]:
    """Feedback on the reference, for samples that are refined by it."""
    learned = next(iter(state.get("learned", [])), {})
    if "response_feedback" not in learned:
        return {}
    feature = (state.get("features") or {}).get(instruction)
    return {"response_feedback": learned["response_feedback"], "feature": feature}


def after_sample(state: State) -> Literal["__end__"] | list[Send]:
    """Show a person the samples that wait for one."""
    waiting = [s for s in state["samples"] if s["status"] == "pending"]
    sends = [Send("review", {"sample": s, "references": state["references"]}) for s in waiting]
    return sends or "__end__"


def after_critique(state: SampleState) -> Literal["refine", "__end__"]:
    """Try again while the sample is open; `nodes.verdicts.decide` closes it."""
    return "refine" if state.get("status") == "open" else "__end__"


def after_critique_alone(
    state: SampleState, runtime: Runtime[Context]
) -> Literal["refine", "review", "__end__"]:
    """The same where the loop is called by itself: a person may be asked before the end."""
    if state.get("status") == "open":
        return "refine"
    return "review" if awaits_review(state, runtime.context or Context()) else "__end__"
