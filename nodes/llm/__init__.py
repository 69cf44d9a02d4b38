"""Model calls: what a call is, what can go wrong with one, and asking until an answer can be read.

`Complete` is the seam: everything above it sees calls and replies, and whoever builds the graph
decides what stands behind it (an endpoint, a journal in front of one, a script in a test).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from nodes.context import Context
from nodes.llm.answers import Unreadable, read_answer
from nodes.state import Usage, add_usage, no_usage
from prompts import Message

Stage = Literal["extract", "propose", "generate", "critique", "refine", "feedback", "compare"]
# Writing wants variety, judging wants none.
TEMPERATURE = {
    "extract": 0.3,
    "generate": 0.7,
    "refine": 0.7,
    "critique": 0.0,
    "feedback": 0.3,
    "compare": 0.0,
}
MAX_TOKENS = {"extract": 1200, "propose": 1500, "generate": 3000, "refine": 4000}
ASKS = 3


class Answer(BaseModel):
    """What a model is asked for, as a JSON object of strict shape; unknown keys are let go."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False}, extra="ignore")


A = TypeVar("A", bound=Answer)


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a model. `answer` None asks for one yes/no token with its probabilities.

    `room` multiplies `max_tokens`, for an answer that was cut; `order` is whose turn it is.
    """

    stage: Stage
    messages: tuple[Message, ...]
    answer: type[Answer] | None
    model: str
    judge: bool
    seed: int
    temperature: float
    max_tokens: int
    room: int = 1
    order: tuple[int, ...] = ()
    extra_body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `odds` are the first token's candidates with their log-probabilities."""

    text: str | None
    finish: str
    usage: Usage
    refusal: str | None = None
    odds: dict[str, float] | None = None


class Complete(Protocol):
    """The seam for model calls: one call, one reply.

    Raises `CallFailed` when this call cannot be had, `ProviderStopped` when none can.
    """

    async def __call__(self, call: Call) -> Reply:
        """Answer the call."""
        ...


class CallFailed(Exception):
    """One call did not bring an answer; it costs the sample that wanted it, nothing else."""

    def __init__(self, stage: str, kind: str, message: str, usage: Usage | None = None) -> None:
        super().__init__(f"{stage}: {kind}: {message}")
        self.stage, self.kind, self.message = stage, kind, message
        self.usage = usage or no_usage()


class ProviderStopped(RuntimeError):
    """No call can succeed: wrong key, unknown model, no quota, no endpoint. Says what to do.

    A `RuntimeError`, since the server shows a client few other errors' messages.
    """


@dataclass(frozen=True, slots=True)
class Asked(Generic[A]):
    """An answer of the asked type, and what it used over all asks."""

    answer: A
    usage: Usage


def draw_seed(random_seed: int, seed_id: str, slot: str, stage: str, draw: int) -> int:
    """The `seed` a request carries: 31 bits that the same draw of the same slot always gets."""
    text = "\x1f".join([str(random_seed), seed_id, slot, stage, str(draw)])
    return int.from_bytes(sha256(text.encode("utf-8", "replace")).digest()[:4], "big") >> 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a run a call belongs: whose it is, and its turn (earlier ones go first)."""

    seed_id: str
    slot: str = ""
    order: tuple[int, ...] = ()


def make_call(
    stage: Stage,
    messages: Sequence[Message],
    answer: type[Answer] | None,
    context: Context,
    place: Place,
    draw: int = 0,
) -> Call:
    """The call of a stage with that stage's defaults; critique, compare and feedback go to the judge."""
    judge = stage in ("critique", "compare", "feedback")
    return Call(
        stage=stage,
        messages=tuple(messages),
        answer=answer,
        model=context.judge if judge else context.model,
        judge=judge,
        seed=draw_seed(context.random_seed, place.seed_id, place.slot, stage, draw),
        temperature=TEMPERATURE.get(stage, 0.8),
        max_tokens=MAX_TOKENS.get(stage, 2000) if answer else 1,
        order=place.order,
    )


async def ask(complete: Complete, call: Call, answer: type[A]) -> Asked[A]:
    """Ask until the answer has the asked shape: at most three times, each kept apart by its seed.

    A cut answer is asked once more with twice the room; an unreadable one with what is wrong with
    it; an empty or refused one as it was. Raises `CallFailed` with all usage when none will do.
    """
    usage, current, cut = no_usage(), call, False
    for ask_number in range(1, ASKS + 1):
        try:
            reply = await complete(current)
        except CallFailed as failed:
            failed.usage = add_usage(usage, failed.usage)
            raise
        usage = add_usage(usage, reply.usage)
        fault = _fault(reply)
        if fault is None:
            try:
                return Asked(read_answer(reply.text or "", answer), usage)
            except Unreadable as unreadable:
                fault = ("malformed", str(unreadable))
        kind, message = fault
        if ask_number == ASKS or (kind == "cut" and cut):
            raise CallFailed(call.stage, kind, message, usage)
        cut = cut or kind == "cut"
        current = _again(call, current, reply, kind, message, ask_number)
    raise AssertionError("the last ask returns or raises")


def _fault(reply: Reply) -> tuple[str, str] | None:
    if reply.finish == "content_filter":
        return "filtered", "the endpoint's content filter withheld the answer"
    if reply.refusal:
        return "refused", f"the model refused: {reply.refusal[:200]}"
    if reply.finish == "length":
        return "cut", "the answer was cut off at max_tokens"
    if not (reply.text or "").strip():
        return "empty", "the answer was empty"
    return None


def _again(call: Call, last: Call, reply: Reply, kind: str, message: str, ask_number: int) -> Call:
    """The next ask: the last one with a new seed, and what its fault calls for."""
    seed = (call.seed + ask_number) & 0x7FFFFFFF
    if kind == "cut":
        return replace(last, seed=seed, room=2)
    if kind == "malformed":
        said: Message = {"role": "assistant", "content": (reply.text or "")[:8000]}
        wrong: Message = {
            "role": "user",
            "content": f"That could not be read: {message}\nGive the whole answer again as one "
            "JSON object of the shape asked for, and nothing else.",
        }
        return replace(last, seed=seed, messages=(*call.messages, said, wrong))
    return replace(last, seed=seed)
