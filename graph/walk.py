"""The steps of a graph: LangGraph compiles them, and a run walks them without LangGraph around it.

LangGraph checkpoints, streams and traces every step, which takes more processor time a sample than
all of refloom's own work. A run wants none of that: its journal is what it resumes from, and its
hooks are told of every sample. Where somebody watches, in Studio, in a server, in a program that
invokes the graph, or by a trace of a run, LangGraph takes the same steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from langgraph.graph import END
from langgraph.runtime import Runtime
from langgraph.types import Send

Node = Callable[..., Awaitable[dict[str, Any]]]


class Branch(NamedTuple):
    """A function of the state that says where a node leads, and all that it may say."""

    route: Callable[[Any], str | list[Send]]
    ends: tuple[str, ...]


# Where a node leads: to one node, or by a branch. Nodes that are sent to at once lead to the same.
Edge = str | Branch


@dataclass(frozen=True, slots=True)
class Steps:
    """The nodes of a graph, and where each leads; it begins with `first`.

    `state` is the `TypedDict` of its state. A key whose annotation has a function is joined by it,
    as LangGraph does; of others the last value counts.
    """

    state: type
    first: str
    nodes: Mapping[str, Node]
    edges: Mapping[str, Edge]
    _joins: dict[str, tuple[type, Callable[[Any, Any], Any]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        for key, hint in get_type_hints(self.state, include_extras=True).items():
            if get_origin(hint) is Annotated:
                kind, join = get_args(hint)[:2]
                # As LangGraph does: a list is joined to an empty one, a TypedDict to an empty dict.
                self._joins[key] = get_origin(kind) or kind, join

    async def walk(self, state: Mapping[str, Any], runtime: Runtime[Any]) -> dict[str, Any]:
        """Take the steps from a state, and return the state at their end.

        What a node raises is raised, and ends the nodes beside it.
        """
        values: dict[str, Any] = {key: empty() for key, (empty, _) in self._joins.items()}
        self._update(values, state)
        step: str | list[Send] = self.first
        while step != END:
            if isinstance(step, str):
                name, updates = step, [await self.nodes[step]({**values}, runtime)]
            else:
                name, updates = step[0].node, await self._take_all(step, runtime)
            for update in updates:
                self._update(values, update)
            edge = self.edges[name]
            step = edge if isinstance(edge, str) else (edge.route(values) or END)
        return values

    async def _take_all(self, sends: Sequence[Send], runtime: Runtime[Any]) -> list[dict[str, Any]]:
        """The updates of nodes that are sent to at once, in the order of the sends."""
        if len(sends) == 1:
            return [await self.nodes[sends[0].node](sends[0].arg, runtime)]
        tasks = [asyncio.ensure_future(self.nodes[s.node](s.arg, runtime)) for s in sends]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _update(self, values: dict[str, Any], update: Mapping[str, Any]) -> None:
        for key, value in update.items():
            joined = self._joins.get(key)
            values[key] = value if joined is None else joined[1](values[key], value)
