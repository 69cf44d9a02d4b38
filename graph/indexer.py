"""The graph that adds references to the index that the synthesizer searches."""

from __future__ import annotations

from functools import partial
from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from graph.builder import about
from graph.defaults import add_to_index
from nodes.add import Add, add, check
from nodes.inputs import IndexerInput, IndexerOutput, IndexerState

Indexer = CompiledStateGraph[IndexerState, None, IndexerInput, IndexerOutput]


def build_indexer(*, add_to: Add = add_to_index, checkpointer: Any = None) -> Indexer:
    """The way of references into an index; by default the server's own, which no client names."""
    builder = StateGraph(IndexerState, input_schema=IndexerInput, output_schema=IndexerOutput)
    builder.add_node("check", check, metadata=about(check))
    builder.add_node("add", partial(add, add_to_index=add_to), metadata=about(add))
    builder.add_edge(START, "check")
    builder.add_edge("check", "add")
    builder.add_edge("add", END)
    return builder.compile(name="indexer", checkpointer=checkpointer)
