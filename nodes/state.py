"""The data that flows through the graphs, all of it JSON-plain."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from typing_extensions import TypedDict

from memory.references import Reference

Outcome = Literal["pass", "fail", "not_applicable", "unknown"]
Status = Literal["open", "accepted", "rejected", "failed"]
Reason = Literal["criteria", "no_progress", "copied", "contaminated", "reviewer", "budget"]


class Seed(TypedDict):
    """What new data should be about. `round` and `position` are its place in a run."""

    instruction: str
    id: NotRequired[str]
    round: NotRequired[int]
    position: NotRequired[int]


class Criterion(TypedDict):
    """One condition on a response: `text` completes the sentence "The response ..."."""

    id: str
    text: str
    must: bool
    reference_id: str | None
    quote: str | None
    judged_by: Literal["judge", "rule"]
    bar: NotRequired[float | None]


class Verdict(TypedDict):
    """What was found about one criterion; `score` is a log-odds or a cosine where there is one."""

    criterion_id: str
    verdict: Outcome
    reason: str
    evidence: str
    score: float | None


class Attempt(TypedDict):
    """A candidate response and its verdicts."""

    response: str
    verdicts: list[Verdict]


class Usage(TypedDict):
    """What model calls used, as the endpoint reports it; `cost_usd` where prices are known."""

    calls: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_usd: NotRequired[float | None]


class Failure(TypedDict):
    """Why something could not be made: the stage, the kind of fault, and what was said."""

    stage: str
    kind: str
    message: str


def add_usage(left: Usage, right: Usage) -> Usage:
    """Add two usages, key by key; LangGraph starts the channel from an empty one.

    Dollars add up to None as soon as one of them is unknown.
    """
    total: Usage = {
        "calls": left.get("calls", 0) + right["calls"],
        "prompt_tokens": left.get("prompt_tokens", 0) + right["prompt_tokens"],
        "cached_tokens": left.get("cached_tokens", 0) + right["cached_tokens"],
        "completion_tokens": left.get("completion_tokens", 0) + right["completion_tokens"],
    }
    if "cost_usd" in left or "cost_usd" in right:
        costs = [_cost(left), _cost(right)]
        total["cost_usd"] = None if None in costs else sum(c for c in costs if c is not None)
    return total


def _cost(usage: Usage) -> float | None:
    return usage.get("cost_usd") if usage.get("calls", 0) else 0.0


def no_usage() -> Usage:
    """A usage of nothing."""
    return {"calls": 0, "prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}


def append(left: list[Any], right: list[Any]) -> list[Any]:
    """Join what parallel branches found."""
    return [*left, *right]


class Input(TypedDict):
    """What a caller gives the synthesizer: a seed, and references unless the index has them."""

    seed: Seed
    references: NotRequired[list[Reference]]


class Output(TypedDict):
    """What the synthesizer gives back."""

    samples: list[dict[str, Any]]
    references: list[Reference]
    criteria: list[Criterion]


class State(TypedDict, total=False):
    """One seed on its way through the synthesizer."""

    seed: Seed
    contaminated: Verdict
    references: list[Reference]
    learned: list[dict[str, Any]]
    criteria: list[Criterion]
    instructions: list[str | None]
    samples: Annotated[list[dict[str, Any]], append]
    failure: Failure
    usage: Annotated[Usage, add_usage]


class SampleState(TypedDict, total=False):
    """One slot on its way: an instruction, its candidate responses and what was found in them."""

    seed: Seed
    slot: int
    instruction: str
    references: list[Reference]
    criteria: list[Criterion]
    topic_bar: float | None
    contaminated: Verdict
    candidate: str
    attempts: Annotated[list[Attempt], append]
    status: Status
    reason: Reason | None
    failure: Failure
    usage: Annotated[Usage, add_usage]
