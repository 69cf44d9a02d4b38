"""The data that flows through the graphs, all of it plain JSON, and how updates are merged."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from typing_extensions import TypedDict

from memory.references import Reference

Outcome = Literal["pass", "fail", "not_applicable", "unknown"]
# A sample that waits for a person is pending.
Status = Literal["open", "accepted", "rejected", "failed", "pending"]
# Why an instruction never became a candidate.
DropReason = Literal["duplicate", "screened", "unfit", "surplus"]
# A slot's place in a run: round, position of its seed, number within the seed.
Slot = tuple[int, int, int]
RejectionReason = Literal["criteria", "no_progress", "copied", "contaminated", "reviewer"]


class Seed(TypedDict):
    """What new data should be about; `round` and `position` are its place in a run.

    Its calls take the draws of the round `draw_round`, if that is not its own: rounds of seeds that
    are proposed for again do not count for draws.
    """

    instruction: str
    id: NotRequired[str]
    round: NotRequired[int]
    position: NotRequired[int]
    draw_round: NotRequired[int]
    tags: NotRequired[list[str]]


class Trial(TypedDict):
    """How a criterion did on `references` good texts and on spoiled ones: how many passed.

    `own` counts the good texts that passed, `spoiled` those of each kind of spoiled text.
    """

    references: int
    own: int
    spoiled: dict[str, int]


class Criterion(TypedDict):
    """One condition: `text` completes the sentence "The response ..." or "The instruction ...".

    `check` names the function that decides it, if `judged_by` is "check". `weight` is a person's;
    a negative one marks a pitfall, which to hold is to fail. `trial` is None if it was not tried.
    `own` is there if a person gave the criterion.
    """

    id: str
    text: str
    must: bool
    reference_id: str | None
    quote: str | None
    judged_by: Literal["judge", "rule", "check"]
    bar: NotRequired[float | None]
    weight: NotRequired[float | None]
    check: NotRequired[str | None]
    trial: NotRequired[Trial | None]
    own: NotRequired[bool]


class JurorVerdict(TypedDict):
    """What one model of a jury says of one criterion."""

    model: str
    verdict: Outcome
    reason: str
    evidence: str


class Verdict(TypedDict):
    """The result for one criterion; `score` is a log-odds or a cosine if there is one.

    `jurors` is there if a jury judged.
    """

    criterion_id: str
    verdict: Outcome
    reason: str
    evidence: str
    score: float | None
    jurors: NotRequired[list[JurorVerdict]]


class Attempt(TypedDict):
    """A candidate response and its verdicts; `feedback` is what it was refined by, if given."""

    response: str
    verdicts: list[Verdict]
    feedback: NotRequired[list[str]]


class BareAnswer(TypedDict):
    """An answer to an accepted instruction alone, and what the model thought before it."""

    response: str
    thoughts: str | None


class AnswerError(TypedDict):
    """Why a bare answer could not be had, judged or taken: a stage, and the kind of fault.

    There is no message, which might quote what came: it stands in an accepted row.
    """

    stage: str
    kind: str


class Near(TypedDict):
    """What an instruction is too near to, with their ROUGE-L: a reference's, or that of a slot.

    Both are None for the seed's own text and for another proposal of the seed.
    """

    instruction: str
    reference_id: str | None
    slot: list[int] | None
    score: float


class Proposal(TypedDict):
    """A proposed instruction. `reason` says why it is dropped; None for one that stands.

    `ask` numbers the proposals of a seed from 1. `why` is the reason in words.
    """

    instruction: str
    ask: int
    reason: DropReason | None
    near: Near | None
    verdicts: list[Verdict]
    why: str


class Usage(TypedDict):
    """What model calls used, as the endpoint reports it; `cost_usd` if prices are known.

    `cached_tokens` were read from the endpoint's prompt cache and `cache_write_tokens` written to
    it: both are part of the prompt's. `reasoning_tokens`, which the model thought, are part of the
    completion's; what was stored before they were counted lacks them, which means 0.
    """

    calls: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_usd: NotRequired[float | None]
    cache_write_tokens: NotRequired[int]
    reasoning_tokens: NotRequired[int]


class Failure(TypedDict):
    """Why a call failed: its stage, the kind of fault, and the message."""

    stage: str
    kind: str
    message: str


class ReviewOutcome(TypedDict):
    """A person's decision about a sample; `proposed` is how it would have ended without it.

    `decision` None: nobody has decided yet. `by` is who, if the server knows; `at` is when, in UTC.
    """

    proposed: Status
    proposed_reason: RejectionReason | None
    decision: Literal["accept", "edit", "reject"] | None
    reason: str | None
    by: str | None
    at: str | None


def add_usage(left: Usage, right: Usage | None) -> Usage:
    """Add two usages key by key; LangGraph starts from an empty one. None resets it.

    The cost is None if one of the costs is unknown.
    """
    if right is None:
        return no_usage()
    total: Usage = {
        "calls": left.get("calls", 0) + right["calls"],
        "prompt_tokens": left.get("prompt_tokens", 0) + right["prompt_tokens"],
        "cached_tokens": left.get("cached_tokens", 0) + right["cached_tokens"],
        "completion_tokens": left.get("completion_tokens", 0) + right["completion_tokens"],
        "reasoning_tokens": left.get("reasoning_tokens", 0) + right.get("reasoning_tokens", 0),
    }
    written = left.get("cache_write_tokens", 0) + right.get("cache_write_tokens", 0)
    if written:
        total["cache_write_tokens"] = written
    if "cost_usd" in left or "cost_usd" in right:
        costs = [_cost(left), _cost(right)]
        total["cost_usd"] = None if None in costs else sum(c for c in costs if c is not None)
    return total


def _cost(usage: Usage) -> float | None:
    return usage.get("cost_usd") if usage.get("calls", 0) else 0.0


def no_usage() -> Usage:
    """A usage of zero."""
    return {
        "calls": 0,
        "prompt_tokens": 0,
        "cached_tokens": 0,
        "completion_tokens": 0,
        "reasoning_tokens": 0,
    }


def append_or_reset(left: list[Any] | None, right: list[Any] | None) -> list[Any]:
    """Append an update to a list; None resets it, for a thread that is used again."""
    return [] if right is None else [*(left or []), *right]


def merge_by_id(left: list[Any] | None, right: list[Any] | None) -> list[Any]:
    """Join the samples of parallel branches; the later one of an id counts. None resets them.

    >>> merge_by_id([{"id": "a", "status": "pending"}], [{"id": "a", "status": "accepted"}])
    [{'id': 'a', 'status': 'accepted'}]
    """
    if right is None:
        return []
    return list({sample["id"]: sample for sample in (*(left or []), *right)}.values())


class State(TypedDict, total=False):
    """State of the synthesizer: one seed."""

    seed: Seed
    contaminated: Verdict | None
    references: list[Reference]
    learned: list[dict[str, Any]]
    criteria: list[Criterion]
    own_criteria: list[dict[str, Any]]
    instruction_criteria: list[Criterion]
    asks: int
    proposals: list[Proposal]
    second_failure: Failure | None
    instructions: list[str | None] | None
    instruction_verdicts: dict[str, list[Verdict]]
    features: dict[str, str]
    samples: Annotated[list[dict[str, Any]], merge_by_id]
    failure: Failure | None
    usage: Annotated[Usage, add_usage]


class SampleState(TypedDict, total=False):
    """State of the graph `sample`: one slot, its candidate responses and their verdicts.

    With the setting `reasoning` an accepted sample goes on: `bare` is the answer to be judged,
    `answers` are those that were, `answer_errors` say why a draw brought none or one that may not
    be taken, `answering` that another is to be drawn. `reasoning` is that of the one taken.
    """

    seed: Seed
    slot: int
    instruction: str
    references: list[Reference]
    criteria: list[Criterion]
    instruction_criteria: list[Criterion]
    instruction_verdicts: list[Verdict]
    topic_bar: float | None
    contaminated: Verdict | None
    response_feedback: list[str]
    feature: str | None
    analysed: dict[str, Any] | None
    candidate: str
    response: str
    attempts: Annotated[list[Attempt], append_or_reset]
    bare: BareAnswer | None
    answers: Annotated[list[Attempt], append_or_reset]
    answer_errors: Annotated[list[AnswerError], append_or_reset]
    answering: bool
    reasoning: str | None
    status: Status
    reason: RejectionReason | None
    failure: Failure | None
    review: ReviewOutcome
    usage: Annotated[Usage, add_usage]
