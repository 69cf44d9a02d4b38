"""Where in a run the calls of a seed and of a sample come from: what their draws rest on."""

from __future__ import annotations

from nodes.llm import CallOrigin
from nodes.state import SampleState, Seed


def origin_of(state: SampleState) -> CallOrigin:
    """Where in a run the calls of a sample come from."""
    seed, slot = state["seed"], state.get("slot", 0)
    round_, position = seed.get("round", 0), seed.get("position", 0)
    draws = f"{seed.get('draw_round', round_)}/{slot}"
    return CallOrigin(seed.get("id", ""), draws, (round_, position, slot))


def origin_of_proposals(seed: Seed) -> CallOrigin:
    """Where in a run the proposals of a seed come from."""
    round_, position = seed.get("round", 0), seed.get("position", 0)
    draws = str(seed.get("draw_round", round_))
    return CallOrigin(seed.get("id", ""), draws, (round_, position))
