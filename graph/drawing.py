"""The graph as a drawing, for README and data-set cards."""

from __future__ import annotations

from graph.builder import build_graph


def mermaid() -> str:
    """The graph in mermaid's words, with the plain names of the inner loop."""
    drawn = build_graph().get_graph(xray=True).draw_mermaid(with_styles=False)
    plain = drawn.replace("sample\\3a__end__", "ended").replace("sample\\3a", "")
    plain = plain.replace("\t", "  ").replace("subgraph sample", 'subgraph sample["one sample"]')
    return plain.strip()
