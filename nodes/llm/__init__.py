"""Model calls: what a call and its reply are, what can fail, and asking until an answer is read.

`Complete` is the seam. Nodes see calls and replies; whoever builds the graph decides what is behind
it: an endpoint, a run's client with journal and budget, a script in a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from nodes.context import Context
from nodes.llm.answers import UnreadableAnswer, read_answer
from nodes.state import Usage, add_usage, no_usage
from prompts import Message

Stage = Literal["extract", "propose", "generate", "critique", "refine", "feedback", "compare"]
STAGES_OF_THE_JUDGE = ("critique", "compare", "feedback")
# Writing wants variety, judging wants none.
TEMPERATURE_BY_STAGE = {
    "extract": 0.3,
    "generate": 0.7,
    "refine": 0.7,
    "critique": 0.0,
    "feedback": 0.3,
    "compare": 0.0,
}
DEFAULT_TEMPERATURE = 0.8
MAX_TOKENS_BY_STAGE = {"extract": 1200, "propose": 1500, "generate": 3000, "refine": 4000}
DEFAULT_MAX_TOKENS = 2000
MAX_ASKS = 3


class Answer(BaseModel):
    """What a model is asked for, as a JSON object of strict shape; unknown keys are let go."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False}, extra="ignore")


A = TypeVar("A", bound=Answer)


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a model. `answer` None asks for one yes/no token with its probabilities.

    `room` multiplies `max_tokens`, for an answer that was cut. Of calls that wait, the one with the
    lowest `order` goes first.
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
    """What came back. `odds` are the first token's candidates with their probabilities.

    `finish` is the endpoint's finish reason: `stop`, `length`, `content_filter`.
    """

    text: str | None
    finish: str
    usage: Usage
    refusal: str | None = None
    odds: dict[str, float] | None = None


class Complete(Protocol):
    """The seam for model calls: one call, one reply.

    Raises `CallFailed` if this call fails, `ProviderStopped` if every call would.
    """

    async def __call__(self, call: Call) -> Reply:
        """Answer the call."""
        ...


class CallFailed(Exception):
    """One call brought no answer; it costs the sample that wanted it, nothing else."""

    def __init__(self, stage: str, kind: str, message: str, usage: Usage | None = None) -> None:
        super().__init__(f"{stage}: {kind}: {message}")
        self.stage, self.kind, self.message = stage, kind, message
        self.usage = usage or no_usage()


class ProviderStopped(RuntimeError):
    """No call can succeed: wrong key, unknown model, no quota, no endpoint. Says what to do.

    A `RuntimeError`, since the server shows clients the messages of few other errors.
    """


@dataclass(frozen=True, slots=True)
class AskResult(Generic[A]):
    """An answer, and the usage of all asks it took."""

    answer: A
    usage: Usage


@dataclass(frozen=True, slots=True)
class CallOrigin:
    """Where in a run a call comes from, and the order of its calls: the lowest goes first."""

    seed_id: str
    slot: str = ""
    order: tuple[int, ...] = ()


def draw_seed(random_seed: int, seed_id: str, slot: str, stage: str, draw: int) -> int:
    """The `seed` of a request: 31 bits, always the same for a draw of a slot."""
    text = "\x1f".join([str(random_seed), seed_id, slot, stage, str(draw)])
    return int.from_bytes(sha256(text.encode("utf-8", "replace")).digest()[:4], "big") >> 1


def make_call(
    stage: Stage,
    messages: Sequence[Message],
    answer: type[Answer] | None,
    context: Context,
    place: CallOrigin,
    draw: int = 0,
) -> Call:
    """A call with its stage's defaults; `STAGES_OF_THE_JUDGE` go to the judge's model."""
    judge = stage in STAGES_OF_THE_JUDGE
    return Call(
        stage=stage,
        messages=tuple(messages),
        answer=answer,
        model=context.judge if judge else context.model,
        judge=judge,
        seed=draw_seed(context.random_seed, place.seed_id, place.slot, stage, draw),
        temperature=TEMPERATURE_BY_STAGE.get(stage, DEFAULT_TEMPERATURE),
        max_tokens=MAX_TOKENS_BY_STAGE.get(stage, DEFAULT_MAX_TOKENS) if answer else 1,
        order=place.order,
    )


async def ask(complete: Complete, call: Call, answer: type[A]) -> AskResult[A]:
    """Ask until the answer has the shape asked for: at most three times, each with its own seed.

    A cut answer is asked for once more with twice the room, an unreadable one with what is wrong
    with it, an empty or refused one as before. Raises `CallFailed` with the usage of all asks.
    """
    usage, current = no_usage(), call
    for number in range(1, MAX_ASKS + 1):
        try:
            reply = await complete(current)
        except CallFailed as failed:
            failed.usage = add_usage(usage, failed.usage)
            raise
        usage = add_usage(usage, reply.usage)
        fault = _fault_of(reply)
        if fault is None:
            try:
                return AskResult(read_answer(reply.text or "", answer), usage)
            except UnreadableAnswer as unreadable:
                fault = ("malformed", str(unreadable))
        kind, message = fault
        if number == MAX_ASKS or (kind == "cut" and current.room > call.room):
            raise CallFailed(call.stage, kind, message, usage)
        # With the same seed the journal would give the same answer again.
        current = replace(current, seed=(call.seed + number) & 0x7FFFFFFF)
        if kind == "cut":
            current = replace(current, room=2)
        elif kind == "malformed":
            first: Message = {"role": "assistant", "content": (reply.text or "")[:8000]}
            correction: Message = {
                "role": "user",
                "content": f"That could not be read: {message}\nGive the whole answer again as one "
                "JSON object of the shape asked for, and nothing else.",
            }
            current = replace(current, messages=(*call.messages, first, correction))
    raise AssertionError("the last ask returns or raises")


def _fault_of(reply: Reply) -> tuple[str, str] | None:
    """The kind and the message of what keeps a reply from being an answer."""
    if reply.finish == "content_filter":
        return "filtered", "the endpoint's content filter withheld the answer"
    if reply.refusal:
        return "refused", f"the model refused: {reply.refusal[:200]}"
    if reply.finish == "length":
        return "cut", "the answer was cut off at max_tokens"
    if not (reply.text or "").strip():
        return "empty", "the answer was empty"
    return None
