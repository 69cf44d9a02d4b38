"""Steps that a run walks: they end as LangGraph ends them, whatever happens on the way."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any
from zlib import crc32

import pytest
from fakes import ScriptedModel, letters, prompt_of, screened, verdicts
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.graph import END
from langgraph.runtime import Runtime
from langgraph.types import Send
from typing_extensions import TypedDict

from graph.builder import build_graph
from graph.walk import Branch, Steps
from nodes.context import Context
from nodes.hooks import RunHooks
from nodes.llm import Call, CallFailed
from nodes.state import append_or_reset

REFERENCES = [
    {
        "id": f"tides-{number}",
        "instruction": f"Why are there {number} tides a day?",
        "response": f"The Moon pulls on the near side most, {number} times. So there are bulges.",
    }
    for number in range(2)
]


def chance(call: Call, salt: int) -> float:
    """A number from 0 to 1 that is always the same for a call."""
    return crc32(f"{salt}{call.stage}{call.seed}{prompt_of(call)}".encode()) / 2**32


def moody_model(salt: int, failing: float, unfit: float) -> ScriptedModel:
    """A model whose calls fail, and whose verdicts are bad, as often as that."""

    def judge(call: Call) -> Any:
        if chance(call, salt + 1) < failing:
            return CallFailed(call.stage, "filtered", "withheld")
        bad = "fail" if chance(call, salt + 2) < unfit else "pass"
        give = screened if call.stage == "screen" else verdicts
        return give(prompt_of(call), bad)

    def write(call: Call) -> Any:
        if chance(call, salt + 3) < failing:
            return CallFailed(call.stage, "cut", "too long")
        text = f"Draft {int(chance(call, salt + 4) * 1e6)} of a fitting length is here."
        return {"plan": [], "response": text, "thoughts": "The tide comes, so I say so."}

    return ScriptedModel(critique=judge, screen=judge, generate=write, refine=write, answer=write)


@settings(max_examples=40)
@given(
    salt=st.integers(0, 10**6),
    failing=st.sampled_from([0.0, 0.1, 0.4]),
    unfit=st.sampled_from([0.0, 0.3, 0.7]),
    per_seed=st.integers(1, 4),
    reasoning=st.booleans(),
)
async def test_a_walk_ends_as_langgraph_does(salt, failing, unfit, per_seed, reasoning):
    context = Context(
        model="m", per_seed=per_seed, reasoning=reasoning, max_attempts=3, try_criteria=False
    )
    seed = {"seed": {"instruction": "How waves form at sea"}, "references": REFERENCES}
    ends = []
    for hooks in (RunHooks(), RunHooks(interrupts=False)):
        model = moody_model(salt, failing, unfit)
        graph = build_graph(complete=model, embed=letters, hooks=hooks)
        if hooks.interrupts:
            end = await graph.ainvoke(seed, context=context)
        else:
            assert graph.steps is not None
            end = await graph.steps.walk(seed, Runtime(context=context))
        samples = [{**sample, "created": None} for sample in end["samples"]]
        calls = sorted((c.stage, c.seed, prompt_of(c)) for c in model.calls)
        ends.append((samples, end["criteria"], end["references"], calls))
    assert ends[0] == ends[1]


class Trail(TypedDict, total=False):
    turn: int
    trail: Annotated[list[str], append_or_reset]


def steps_of(node: Any, *sends: int) -> Steps:
    """Steps that send to a node at once, as often as there are numbers."""

    async def begin(state: Trail, runtime: Runtime[None]) -> Trail:
        return {"trail": ["begin"]}

    def fan_out(state: Trail) -> list[Send]:
        return [Send("work", {"turn": number}) for number in sends]

    nodes = {"begin": begin, "work": node}
    return Steps(
        Trail, first="begin", nodes=nodes, edges={"begin": Branch(fan_out, ("work",)), "work": END}
    )


async def test_updates_are_joined_in_the_order_of_the_sends():
    async def work(state: Trail, runtime: Runtime[None]) -> Trail:
        await asyncio.sleep(0.001 * (5 - state["turn"]))
        return {"trail": [str(state["turn"])]}

    end = await steps_of(work, 0, 1, 2).walk({"trail": ["before"]}, Runtime())
    assert end["trail"] == ["before", "begin", "0", "1", "2"]
    assert (await steps_of(work).walk({}, Runtime()))["trail"] == ["begin"]


async def test_what_a_node_raises_ends_the_others():
    ended = []

    async def work(state: Trail, runtime: Runtime[None]) -> Trail:
        if state["turn"] == 1:
            raise ValueError("one is bad")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(state["turn"])
            raise
        return {}

    with pytest.raises(ValueError, match="one is bad"):
        await steps_of(work, 0, 1, 2).walk({}, Runtime())
    assert ended == [0, 2]


async def test_a_walk_that_is_cancelled_ends_its_nodes():
    ended = []

    async def work(state: Trail, runtime: Runtime[None]) -> Trail:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(state["turn"])
        return {}

    walk = asyncio.create_task(steps_of(work, 0, 1).walk({}, Runtime()))
    await asyncio.sleep(0.01)
    walk.cancel()
    with pytest.raises(asyncio.CancelledError):
        await walk
    assert ended == [0, 1]
