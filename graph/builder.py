"""The graphs that make samples, every node and edge of them, on one screen."""

from __future__ import annotations

from functools import partial
from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import interrupt

from graph.defaults import DefaultSearch, add_to_index, shared_embedder, shared_search
from graph.routing import (
    Route,
    after_critique,
    after_critique_alone,
    after_propose,
    after_sample,
)
from memory.characteristics import Characteristics
from memory.contamination import Contamination
from memory.embed import Embed
from memory.index import DrawOther, Search
from nodes.add import AddToIndex, add
from nodes.begin import begin
from nodes.context import Context
from nodes.critique import critique
from nodes.extract import extract
from nodes.failures import catch_call_failure, skip_if_ended
from nodes.generate import generate
from nodes.inputs import (
    IndexerInput,
    IndexerOutput,
    IndexerState,
    Input,
    Output,
    SampleInput,
    SampleOutput,
)
from nodes.llm import Complete
from nodes.llm.endpoint import EndpointClient
from nodes.propose import Taken, Turn, alone, nothing_taken, propose
from nodes.refine import refine
from nodes.retrieve import retrieve
from nodes.review import Ask, review, review_one
from nodes.sample import Finish, Start, at_once, not_kept
from nodes.sample import sample as run_sample
from nodes.state import SampleState, State

Graph = CompiledStateGraph[Any, Context, Any, Any]


def describe_node(node: Any) -> dict[str, str]:
    """What Studio says of a node: the first line of its docstring."""
    return {"description": str(node.__doc__).splitlines()[0]}


def build_sample(
    *,
    complete: Complete | None = None,
    embed: Embed | None = None,
    contamination: Contamination | None = None,
    inner: bool = False,
    ask: Ask | None = interrupt,
    checkpointer: Any = None,
) -> Graph:
    """The loop of one instruction: generate, critique, and refine until the criteria pass.

    It checks its input first, and asks a person in the end; as the `inner` loop it does neither.
    """
    complete, embed = complete or EndpointClient(), embed or shared_embedder()
    schemas = {} if inner else {"input_schema": SampleInput, "output_schema": SampleOutput}
    builder = StateGraph(SampleState, context_schema=Context, **schemas)
    writing = catch_call_failure(partial(generate, complete=complete))
    judging = partial(critique, complete=complete, embed=embed, contamination=contamination)
    mending = catch_call_failure(partial(refine, complete=complete))
    builder.add_node("generate", writing, metadata=describe_node(generate))
    builder.add_node("critique", catch_call_failure(judging), metadata=describe_node(critique))
    builder.add_node("refine", mending, metadata=describe_node(refine))
    builder.add_edge("generate", "critique")
    builder.add_edge("refine", "critique")
    if inner:
        builder.add_edge(START, "generate")
        builder.add_conditional_edges("critique", Route(after_critique), ["refine", END])
    else:
        asking = partial(review_one, ask=ask, contamination=contamination)
        builder.add_node("begin", begin, metadata=describe_node(begin))
        builder.add_node("review", asking, metadata=describe_node(review))
        builder.add_edge(START, "begin")
        builder.add_edge("begin", "generate")
        builder.add_conditional_edges("critique", after_critique_alone)
        builder.add_edge("review", END)
    return builder.compile(name="sample", checkpointer=checkpointer)


def build_graph(
    *,
    complete: Complete | None = None,
    search: Search | None = None,
    another: DrawOther | None = None,
    embed: Embed | None = None,
    characteristics: Characteristics | None = None,
    turn: Turn = alone,
    taken: Taken = nothing_taken,
    start: Start = at_once,
    finish: Finish = not_kept,
    ask: Ask | None = interrupt,
    contamination: Contamination | None = None,
    checkpointer: Any = None,
) -> Graph:
    """The way of one seed: retrieve, extract, propose, then one `sample` a new instruction.

    A tool not given is the environment's endpoint or the embedded model, the references of
    `REFLOOM_INDEX` or the demo's, a memory of this process. `ask` None: nobody is there to review.
    """
    if search is None:
        search = shared_search() if embed is None else DefaultSearch(embed)
        another = another or search.draw_other
    complete, embed = complete or EndpointClient(), embed or shared_embedder()
    characteristics = characteristics or Characteristics()
    loop = build_sample(complete=complete, embed=embed, contamination=contamination, inner=True)
    slot = partial(run_sample, start=start, finish=finish, contamination=contamination)

    # A closure, not a partial: so LangGraph sees the loop in it, draws it and streams its events.
    async def sample(state: SampleState, runtime: Runtime[Context]) -> dict[str, Any]:
        return await slot(state, runtime, loop=loop)

    finding = partial(retrieve, search=search, contamination=contamination)
    known: dict[str, Any] = {"characteristics": characteristics, "another": another}
    learning = partial(extract, complete=complete, embed=embed, **known)
    proposing = partial(propose, complete=complete, turn=turn, taken=taken)
    asking = None if ask is None else partial(review, ask=ask, contamination=contamination)
    return _joined(finding, learning, proposing, sample, asking, checkpointer)


def _joined(
    retrieving: Any, learning: Any, proposing: Any, sampling: Any, asking: Any, checkpointer: Any
) -> Graph:
    """The nodes of the synthesizer, each with its tools, and the edges between them."""
    builder = StateGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)
    builder.add_node("retrieve", retrieving, metadata=describe_node(retrieve))
    builder.add_node("extract", skip_if_ended(learning), metadata=describe_node(extract))
    builder.add_node("propose", skip_if_ended(proposing), metadata=describe_node(propose))
    builder.add_node("sample", sampling, metadata=describe_node(run_sample))
    builder.add_edge(START, "retrieve")
    builder.add_edge("retrieve", "extract")
    builder.add_edge("extract", "propose")
    builder.add_conditional_edges("propose", Route(after_propose), ["sample"])
    if asking is None:
        builder.add_edge("sample", END)
    else:
        builder.add_node("review", asking, metadata=describe_node(review))
        builder.add_conditional_edges("sample", Route(after_sample), ["review", END])
        builder.add_edge("review", END)
    return builder.compile(name="synthesizer", checkpointer=checkpointer)


Indexer = CompiledStateGraph[IndexerState, None, IndexerInput, IndexerOutput]


def build_indexer(*, add_to_index: AddToIndex = add_to_index, checkpointer: Any = None) -> Indexer:
    """The graph that adds references to an index, by default to the one the synthesizer searches.

    The server names that index, and no client.
    """
    builder = StateGraph(IndexerState, input_schema=IndexerInput, output_schema=IndexerOutput)
    builder.add_node("add", partial(add, add_to_index=add_to_index), metadata=describe_node(add))
    builder.add_edge(START, "add")
    builder.add_edge("add", END)
    return builder.compile(name="indexer", checkpointer=checkpointer)


def mermaid() -> str:
    """The synthesizer as a Mermaid diagram, for README and data-set cards."""
    diagram = build_graph().get_graph(xray=True).draw_mermaid(with_styles=False)
    # Nodes of the inner loop come as `sample\\3agenerate`.
    diagram = diagram.replace("sample\\3a__end__", "ended").replace("sample\\3a", "")
    diagram = diagram.replace("\t", "  ")
    return diagram.replace("subgraph sample", 'subgraph sample["one sample"]').strip()
