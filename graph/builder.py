"""The three graphs, every node and edge of them, on one screen: synthesizer, sample, indexer."""

from __future__ import annotations

from functools import cache, partial
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
from graph.synchronous import SynchronousGraph
from graph.walk import Branch, Steps
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
from nodes.llm.endpoint import is_traced
from nodes.own_criteria import OwnCriteria
from nodes.propose import propose
from nodes.refine import refine
from nodes.retrieve import retrieve
from nodes.review import review, review_one
from nodes.sample import sample as run_sample
from nodes.screen import screen
from nodes.state import SampleState, State

Graph = SynchronousGraph
Indexer = CompiledStateGraph[IndexerState, None, IndexerInput, IndexerOutput]


# What each node does is the first line of its function's docstring.
NODES = {
    node.__name__: node
    for node in (retrieve, extract, propose, screen, run_sample, generate, critique, refine, answer)
}


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
    hooks, check = hooks or RunHooks(), check or run_safe_check
    if search is None:
        search = shared_search() if embed is None else DefaultSearch(embed)
        draw_other = draw_other or search.draw_other
    complete, embed = complete or ModelClient(only_listed=True), embed or shared_embedder()
    loop = loop_steps(complete=complete, embed=embed, contamination=contamination, check=check)
    graph = build_loop(loop)

    # A closure and no partial, so that LangGraph finds the graph in it, draws it and streams it.
    async def sample(state: SampleState, runtime: Runtime[Context]) -> dict[str, Any]:
        watched = hooks.interrupts or is_traced()
        run_loop = graph.ainvoke if watched else partial(loop.walk, runtime=runtime)
        return await run_sample(
            state, runtime, run_loop=run_loop, hooks=hooks, contamination=contamination
        )

    extracting = partial(
        extract,
        complete=complete,
        embed=embed,
        characteristics=characteristics or Characteristics(),
        draw_other=draw_other,
        own_criteria=own_criteria,
        check=check,
    )
    steps = Steps(
        State,
        first="retrieve",
        nodes={
            "retrieve": partial(retrieve, search=search, contamination=contamination),
            "extract": skip_if_ended(extracting),
            "propose": skip_if_ended(partial(propose, complete=complete, hooks=hooks)),
            "screen": partial(screen, complete=complete, embed=embed, hooks=hooks),
            "sample": sample,
        },
        edges={
            "retrieve": "extract",
            "extract": "propose",
            "propose": Branch(after_propose, ("screen", "sample")),
            "screen": Branch(after_screen, ("propose", "sample")),
            "sample": END,
        },
    )
    builder = StateGraph(
        State,
        context_schema=Context,
        input_schema=SynthesizerInput,
        output_schema=SynthesizerOutput,
    )
    _add_steps(builder, steps, but="sample" if hooks.interrupts else "")
    builder.add_edge(START, steps.first)
    if hooks.interrupts:
        reviewing = partial(review, contamination=contamination)
        builder.add_node("review", reviewing, metadata=describe_node(review))
        builder.add_conditional_edges("sample", Route(after_sample), ["review", END])
        builder.add_edge("review", END)
    return SynchronousGraph.of(
        builder.compile(name="synthesizer", checkpointer=checkpointer), steps
    )


def loop_steps(
    *,
    complete: Complete,
    embed: Embed,
    contamination: Contamination | None = None,
    check: RunCheck = run_safe_check,
) -> Steps:
    """The loop of one instruction: generate, critique, and refine until the criteria pass.

    With `reasoning`, an accepted instruction is then answered again, bare, and that is judged too.
    """
    judging = partial(
        critique, complete=complete, embed=embed, contamination=contamination, check=check
    )
    nodes = {
        "generate": partial(generate, complete=complete),
        "critique": judging,
        "refine": partial(refine, complete=complete),
        "answer": partial(answer, complete=complete),
    }
    return Steps(
        SampleState,
        first="generate",
        nodes={name: catch_call_failure(node) for name, node in nodes.items()},
        edges={
            "generate": "critique",
            "critique": Branch(after_critique, ("refine", "answer", END)),
            "refine": "critique",
            "answer": "critique",
        },
    )


def build_loop(steps: Steps) -> Graph:
    """The loop of one instruction as the graph `sample` inside the synthesizer."""
    builder = StateGraph(SampleState, context_schema=Context)
    _add_steps(builder, steps)
    builder.add_edge(START, steps.first)
    return SynchronousGraph.of(builder.compile(name="sample"))


def build_sample(
    *,
    complete: Complete | None = None,
    embed: Embed | None = None,
    contamination: Contamination | None = None,
    check: RunCheck | None = None,
    checkpointer: Any = None,
) -> Graph:
    """The graph of one instruction on its own.

    It checks its input first, then runs the loop, and may ask a person at the end.
    """
    complete, embed = complete or ModelClient(only_listed=True), embed or shared_embedder()
    check = check or run_safe_check
    steps = loop_steps(complete=complete, embed=embed, contamination=contamination, check=check)
    builder = StateGraph(
        SampleState, context_schema=Context, input_schema=SampleInput, output_schema=SampleOutput
    )
    _add_steps(builder, steps, but="critique")
    beginning = partial(begin, check=check)
    builder.add_node("begin", beginning, metadata=describe_node(begin))
    reviewing = partial(review_one, contamination=contamination)
    builder.add_node("review", reviewing, metadata=describe_node(review))
    builder.add_edge(START, "begin")
    builder.add_edge("begin", steps.first)
    builder.add_conditional_edges("critique", after_critique_alone)
    builder.add_edge("review", END)
    return SynchronousGraph.of(builder.compile(name="sample", checkpointer=checkpointer))


def _add_steps(builder: StateGraph[Any, Any, Any, Any], steps: Steps, but: str = "") -> None:
    """Add the nodes of steps, and where each of them leads, `but` for one of them."""
    for name, node in steps.nodes.items():
        builder.add_node(name, node, metadata=describe_node(NODES[name]))
    for name, edge in steps.edges.items():
        if name == but:
            continue
        if isinstance(edge, str):
            builder.add_edge(name, edge)
        else:
            builder.add_conditional_edges(name, Route(edge.route), list(edge.ends))


def build_indexer(*, add_to_index: AddToIndex = add_to_index, checkpointer: Any = None) -> Indexer:
    """The graph that adds references to an index, by default to the one the synthesizer searches.

    The server names that index, and no client.
    """
    builder = StateGraph(IndexerState, input_schema=IndexerInput, output_schema=IndexerOutput)
    builder.add_node("add", partial(add, add_to_index=add_to_index), metadata=describe_node(add))
    builder.add_edge(START, "add")
    builder.add_edge("add", END)
    return SynchronousGraph.of(builder.compile(name="indexer", checkpointer=checkpointer))


@cache
def mermaid() -> str:
    """The synthesizer as a Mermaid diagram, for README and data-set cards."""
    diagram = build_graph().get_graph(xray=True).draw_mermaid(with_styles=False)
    # Nodes of the inner loop come as `sample\3agenerate`.
    diagram = diagram.replace("sample\\3a__end__", "ended").replace("sample\\3a", "")
    diagram = diagram.replace("\t", "  ")
    return diagram.replace("subgraph sample", 'subgraph sample["one sample"]').strip()
