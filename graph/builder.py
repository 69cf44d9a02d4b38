"""The three graphs, every node and edge of them, on one screen: synthesizer, sample, indexer."""

from __future__ import annotations

from functools import partial
from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime

from graph.defaults import DefaultSearch, add_to_index, shared_embedder, shared_search
from graph.routing import (
    Route,
    after_critique,
    after_critique_alone,
    after_propose,
    after_sample,
    after_screen,
)
from memory.characteristics import Characteristics
from memory.contamination import Contamination
from memory.embed import Embed
from memory.index import DrawOther, Search
from nodes.add import AddToIndex, add
from nodes.answer import answer
from nodes.begin import begin
from nodes.checks import RunCheck, run_safe_check
from nodes.context import Context
from nodes.critique import critique
from nodes.extract import extract
from nodes.failures import catch_call_failure, skip_if_ended
from nodes.generate import generate
from nodes.hooks import RunHooks
from nodes.inputs import (
    IndexerInput,
    IndexerOutput,
    IndexerState,
    SampleInput,
    SampleOutput,
    SynthesizerInput,
    SynthesizerOutput,
)
from nodes.llm import Complete
from nodes.llm.chat_model import ModelClient
from nodes.own_criteria import OwnCriteria
from nodes.propose import propose
from nodes.refine import refine
from nodes.retrieve import retrieve
from nodes.review import review, review_one
from nodes.sample import sample as run_sample
from nodes.screen import screen
from nodes.state import SampleState, State

Graph = CompiledStateGraph[Any, Context, Any, Any]
Indexer = CompiledStateGraph[IndexerState, None, IndexerInput, IndexerOutput]


def describe_node(node: Any) -> dict[str, str]:
    """What Studio shows of a node: the first line of its docstring."""
    return {"description": str(node.__doc__).splitlines()[0]}


def build_graph(
    *,
    complete: Complete | None = None,
    search: Search | None = None,
    draw_other: DrawOther | None = None,
    embed: Embed | None = None,
    characteristics: Characteristics | None = None,
    hooks: RunHooks | None = None,
    contamination: Contamination | None = None,
    own_criteria: OwnCriteria | None = None,
    check: RunCheck | None = None,
    checkpointer: Any = None,
) -> Graph:
    """The graph of one seed: retrieve, extract, propose, screen, and a `sample` an instruction.

    What is left out defaults to the endpoint of the environment or the embedded model, the index of
    `REFLOOM_INDEX` or the demo references, a memory of this process, and a seed on its own. Without
    a `check`, checks that run and read nothing are made, and others are unknown.
    """
    check = check or run_safe_check
    if search is None:
        search = shared_search() if embed is None else DefaultSearch(embed)
        draw_other = draw_other or search.draw_other
    complete, embed = complete or ModelClient(only_listed=True), embed or shared_embedder()
    characteristics, hooks = characteristics or Characteristics(), hooks or RunHooks()
    loop = build_sample(
        complete=complete, embed=embed, contamination=contamination, check=check, inner=True
    )

    # A closure and no partial, so that LangGraph finds the loop in it, draws it and streams it.
    async def sample(state: SampleState, runtime: Runtime[Context]) -> dict[str, Any]:
        return await run_sample(state, runtime, loop=loop, hooks=hooks, contamination=contamination)

    retrieving = partial(retrieve, search=search, contamination=contamination)
    extracting = partial(
        extract,
        complete=complete,
        embed=embed,
        characteristics=characteristics,
        draw_other=draw_other,
        own_criteria=own_criteria,
        check=check,
    )
    proposing = partial(propose, complete=complete, hooks=hooks)
    screening = partial(screen, complete=complete, embed=embed, hooks=hooks)
    reviewing = partial(review, contamination=contamination)
    builder = StateGraph(
        State,
        context_schema=Context,
        input_schema=SynthesizerInput,
        output_schema=SynthesizerOutput,
    )
    builder.add_node("retrieve", retrieving, metadata=describe_node(retrieve))
    builder.add_node("extract", skip_if_ended(extracting), metadata=describe_node(extract))
    builder.add_node("propose", skip_if_ended(proposing), metadata=describe_node(propose))
    builder.add_node("screen", screening, metadata=describe_node(screen))
    builder.add_node("sample", sample, metadata=describe_node(run_sample))
    builder.add_edge(START, "retrieve")
    builder.add_edge("retrieve", "extract")
    builder.add_edge("extract", "propose")
    builder.add_conditional_edges("propose", Route(after_propose), ["screen", "sample"])
    builder.add_conditional_edges("screen", Route(after_screen), ["propose", "sample"])
    if hooks.interrupts:
        builder.add_node("review", reviewing, metadata=describe_node(review))
        builder.add_conditional_edges("sample", Route(after_sample), ["review", END])
        builder.add_edge("review", END)
    else:
        builder.add_edge("sample", END)
    return builder.compile(name="synthesizer", checkpointer=checkpointer)


def build_sample(
    *,
    complete: Complete | None = None,
    embed: Embed | None = None,
    contamination: Contamination | None = None,
    check: RunCheck | None = None,
    inner: bool = False,
    checkpointer: Any = None,
) -> Graph:
    """The graph of one instruction: generate, critique, and refine until the criteria pass.

    With `reasoning`, an accepted instruction is then answered again, bare, and that is judged too.

    On its own it checks its input first and may ask a person at the end; as the `inner` loop of the
    synthesizer it does neither.
    """
    complete, embed = complete or ModelClient(only_listed=True), embed or shared_embedder()
    schemas = {} if inner else {"input_schema": SampleInput, "output_schema": SampleOutput}
    builder = StateGraph(SampleState, context_schema=Context, **schemas)
    generating = partial(generate, complete=complete)
    critiquing = partial(
        critique,
        complete=complete,
        embed=embed,
        contamination=contamination,
        check=check or run_safe_check,
    )
    refining, answering = partial(refine, complete=complete), partial(answer, complete=complete)
    builder.add_node("generate", catch_call_failure(generating), metadata=describe_node(generate))
    builder.add_node("critique", catch_call_failure(critiquing), metadata=describe_node(critique))
    builder.add_node("refine", catch_call_failure(refining), metadata=describe_node(refine))
    builder.add_node("answer", catch_call_failure(answering), metadata=describe_node(answer))
    for writing in ("generate", "refine", "answer"):
        builder.add_edge(writing, "critique")
    if inner:
        builder.add_edge(START, "generate")
        builder.add_conditional_edges("critique", Route(after_critique), ["refine", "answer", END])
    else:
        beginning = partial(begin, check=check or run_safe_check)
        builder.add_node("begin", beginning, metadata=describe_node(begin))
        reviewing = partial(review_one, contamination=contamination)
        builder.add_node("review", reviewing, metadata=describe_node(review))
        builder.add_edge(START, "begin")
        builder.add_edge("begin", "generate")
        builder.add_conditional_edges("critique", after_critique_alone)
        builder.add_edge("review", END)
    return builder.compile(name="sample", checkpointer=checkpointer)


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
    # Nodes of the inner loop come as `sample\3agenerate`.
    diagram = diagram.replace("sample\\3a__end__", "ended").replace("sample\\3a", "")
    diagram = diagram.replace("\t", "  ")
    return diagram.replace("subgraph sample", 'subgraph sample["one sample"]').strip()
