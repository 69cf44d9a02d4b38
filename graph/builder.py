"""The two graphs, every node and edge of them, on one screen."""

from __future__ import annotations

from functools import partial
from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime

from graph.defaults import DemoSearch, shared_embedder
from graph.routing import (
    after_critique,
    after_extract,
    after_propose,
    after_retrieve,
    after_writing,
)
from memory.characteristics import Characteristics
from memory.contamination import Contamination
from memory.embed import Embed
from memory.index import Search
from nodes.context import Context
from nodes.critique import critique
from nodes.endpoint import Connection
from nodes.extract import extract
from nodes.generate import generate
from nodes.llm import Complete
from nodes.propose import Taken, Turn, alone, nothing_taken, propose
from nodes.refine import refine
from nodes.retrieve import retrieve
from nodes.sample import Finish, Start, at_once, failing_softly, not_kept
from nodes.sample import sample as run_sample
from nodes.state import Input, Output, SampleState, State

Graph = CompiledStateGraph[Any, Context, Any, Any]


def build_sample(
    *, complete: Complete, embed: Embed, contamination: Contamination | None = None
) -> Graph:
    """The loop of one instruction: generate, critique, and refine until the criteria pass."""
    builder = StateGraph(SampleState, context_schema=Context)
    builder.add_node("generate", failing_softly(partial(generate, complete=complete)))
    judging = partial(critique, complete=complete, embed=embed, contamination=contamination)
    builder.add_node("critique", failing_softly(judging))
    builder.add_node("refine", failing_softly(partial(refine, complete=complete)))
    builder.add_edge(START, "generate")
    builder.add_conditional_edges("generate", after_writing)
    builder.add_conditional_edges("critique", after_critique)
    builder.add_conditional_edges("refine", after_writing)
    return builder.compile(name="sample")


def build_graph(
    *,
    complete: Complete | None = None,
    search: Search | None = None,
    embed: Embed | None = None,
    characteristics: Characteristics | None = None,
    turn: Turn = alone,
    taken: Taken = nothing_taken,
    start: Start = at_once,
    finish: Finish = not_kept,
    contamination: Contamination | None = None,
    checkpointer: Any = None,
) -> Graph:
    """The way of one seed: retrieve, extract, propose, then one `sample` a new instruction.

    A tool not given is the environment's endpoint or the embedded model, the references of
    `REFLOOM_INDEX` or the demo's, a memory of this process.
    """
    complete, embed = complete or Connection(), embed or shared_embedder()
    search, characteristics = search or DemoSearch(embed), characteristics or Characteristics()
    loop = build_sample(complete=complete, embed=embed, contamination=contamination)

    slot = partial(run_sample, start=start, finish=finish, contamination=contamination)

    # A closure, not a partial: so LangGraph sees the loop in it, draws it and streams its events.
    async def sample(state: SampleState, runtime: Runtime[Context]) -> dict[str, Any]:
        return await slot(state, runtime, loop=loop)

    builder = StateGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)
    builder.add_node("retrieve", partial(retrieve, search=search, contamination=contamination))
    learning = partial(extract, complete=complete, embed=embed, characteristics=characteristics)
    builder.add_node("extract", learning)
    builder.add_node("propose", partial(propose, complete=complete, turn=turn, taken=taken))
    builder.add_node("sample", sample)
    builder.add_edge(START, "retrieve")
    builder.add_conditional_edges("retrieve", after_retrieve, ["extract", "sample"])
    builder.add_conditional_edges("extract", after_extract, ["propose", "sample"])
    builder.add_conditional_edges("propose", after_propose, ["sample"])
    builder.add_edge("sample", END)
    return builder.compile(name="synthesizer", checkpointer=checkpointer)
