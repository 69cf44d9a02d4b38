"""Model calls: what a call and its reply are, what can fail, and asking until an answer is read.

`Complete` is the seam. Nodes see calls and replies; whoever builds the graph decides what is behind
it: an endpoint, a run's client with journal and budget, a script in a test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from nodes.context import Context
from nodes.llm.answers import (
    UnreadableAnswer,
    find_usual_marks,
    has_thinking_mark,
    read_answer,
    read_text,
    split_plan,
)
from nodes.llm.faults import is_error_line
from nodes.llm.thoughts import find_thoughts, strip_marks
from nodes.state import Usage, add_usage, no_usage
from prompts import Message

Stage = Literal[
    "extract",
    "propose",
    "screen",
    "generate",
    "critique",
    "refine",
    "answer",
    "feedback",
    "compare",
    "preflight",
    "probe",
]
STAGES_OF_THE_JUDGE = ("critique", "compare", "feedback", "screen")
# Writing wants variety, judging wants none.
TEMPERATURE_BY_STAGE = {
    "extract": 0.3,
    "generate": 0.7,
    "refine": 0.7,
    "answer": 0.7,
    "critique": 0.0,
    "screen": 0.0,
    "feedback": 0.3,
    "compare": 0.0,
}
DEFAULT_TEMPERATURE = 0.8
MAX_TOKENS_BY_STAGE = {
    "extract": 1200,
    "propose": 1500,
    "screen": 4000,
    "generate": 3000,
    "refine": 4000,
    "answer": 3000,
}
# A bare question is known by the room it asks for: a probe has far less.
MIN_ANSWER_TOKENS = 1000
DEFAULT_MAX_TOKENS = 2000
MAX_ASKS = 3
# How many times a cut answer is asked for again, each time with twice the room.
MAX_GROWTHS = 3
# Failed calls that are asked again, and as what: a generation that the endpoint threw away, one
# that it gave up for want of room, and a cut one that can have no more room, but may be shorter.
KIND_OF_FAILED_ASK = {"bad_generation": "malformed", "unfinished": "cut", "cut": "long"}


class Answer(BaseModel):
    """What a model is asked for, as a JSON object of strict shape; unknown keys are let go."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False}, extra="ignore")


class LenientAnswer(Answer):
    """An answer that is read without the keys that have a default, though all are asked for."""

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The schema for endpoints: every key is required."""
        schema = super().model_json_schema(*args, **kwargs)
        for part in schema["properties"].values():
            part.pop("default", None)
        schema["required"] = list(schema["properties"])
        return schema


A = TypeVar("A", bound=Answer)


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a model, of one of three kinds.

    With an `answer` it asks for JSON of that shape, with `text` for plain text; with neither it is
    a question, which asks for one yes/no token with its probabilities. `room` multiplies
    `max_tokens`, for an answer that was cut. Of calls that wait, the one with the lowest `order`
    goes first.

    The last fields are for the wire and no part of what is asked: `unreadable` counts the replies
    to this call that could not be read, and `wire_tokens` is the `max_tokens` that is sent, where
    an endpoint has taught that it must be another. `tier` is the service tier that is asked for.
    `source` says who asks, and `draw` is the number of the draw among those of its question.
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
    text: bool = False
    unreadable: int = 0
    wire_tokens: int | None = None
    tier: str | None = None
    source: str = field(default="", compare=False)
    draw: int = field(default=0, compare=False)

    @property
    def kind(self) -> Literal["structured", "text", "question"]:
        """What is asked for."""
        if self.answer is not None:
            return "structured"
        return "text" if self.text else "question"

    @property
    def most_tokens(self) -> int:
        """The most tokens that the answer may have, as it is sent."""
        return self.max_tokens * self.room if self.wire_tokens is None else self.wire_tokens


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `odds` are the first token's candidates with their probabilities.

    `finish` is the endpoint's finish reason: `stop`, `length`, `content_filter`. `reasoning` is
    what the model thought, where that came in a field of its own. `tier` is the service tier that
    the answer names.
    """

    text: str | None
    finish: str
    usage: Usage
    refusal: str | None = None
    odds: dict[str, float] | None = None
    reasoning: str | None = None
    tier: str | None = None


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

    def __reduce__(self) -> tuple[Any, ...]:
        """How it crosses to another process."""
        return type(self), (self.stage, self.kind, self.message, self.usage), self.__dict__


class ProviderStopped(RuntimeError):
    """No call can succeed: wrong key, unknown model, no quota, no endpoint. Says what to do.

    A `RuntimeError`, since the server shows clients the messages of few other errors.
    """


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AskResult(Generic[T]):
    """An answer, and the usage of all asks it took."""

    answer: T
    usage: Usage


@dataclass(frozen=True, slots=True)
class PlainText:
    """An answer in plain text, and what was asked for beside it.

    `plan` is the one that stood before the text, `thoughts` what the model thought; None if there
    is none, or if none was asked for.
    """

    text: str
    plan: str | None = None
    thoughts: str | None = None


@dataclass(frozen=True, slots=True)
class CallOrigin:
    """Where in a run a call comes from, and the order of its calls: the lowest goes first."""

    seed_id: str
    slot: str = ""
    order: tuple[int, ...] = ()

    @property
    def source(self) -> str:
        """Who asks, as a call says it."""
        return f"{self.seed_id}\x1f{self.slot}"


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
    *,
    text: bool = False,
    juror: str | None = None,
) -> Call:
    """A call with its stage's defaults; `STAGES_OF_THE_JUDGE` go to the judge's model.

    Of a jury that is the model named by `juror`, or the first one.
    """
    judge = stage in STAGES_OF_THE_JUDGE
    return Call(
        stage=stage,
        messages=tuple(messages),
        answer=answer,
        model=(juror or context.judge) if judge else context.model,
        judge=judge,
        seed=draw_seed(context.random_seed, place.seed_id, place.slot, stage, draw),
        temperature=TEMPERATURE_BY_STAGE.get(stage, DEFAULT_TEMPERATURE),
        max_tokens=MAX_TOKENS_BY_STAGE.get(stage, DEFAULT_MAX_TOKENS) if answer or text else 1,
        order=place.order,
        text=text,
        source=place.source,
    )


async def ask(complete: Complete, call: Call, answer: type[A]) -> AskResult[A]:
    """Ask until the answer has the shape asked for: at most three draws, each with its own seed.

    A cut answer is asked for again with the same seed and twice the room, three times at most; an
    unreadable one with what is wrong with it, an empty or refused one as before. Thoughts that
    came in a field of their own are read only if nothing else came and they fit the shape. Raises
    `CallFailed` with the usage of all asks.
    """
    marks, usual = _has_marks(call), _usual_marks(call)

    def read(reply: Reply) -> A:
        name, text = call.stage, reply.text or ""
        if text.strip():
            return read_answer(text, answer, name=name, marks_in_prompt=marks, usual_marks=usual)
        return read_answer(reply.reasoning or "", answer, name=name, at_end=True)

    return await _ask(complete, call, read)


async def ask_text(
    complete: Complete,
    call: Call,
    *,
    code_only: bool = False,
    errors: bool = False,
    planned: bool = False,
    thoughts: bool = False,
    most_asks: int = MAX_ASKS,
) -> AskResult[PlainText]:
    """Ask for plain text until it can be told from the model's thoughts: as `ask` does.

    With `thoughts` those are kept beside it. `most_asks` counts the draws, but not the asks with
    more room for an answer that was cut.

    A tag or fence around the whole answer is taken off; with `code_only`, a fence stays. With
    `planned` the answer may open with a plan between marks, which is split off. What came only in
    a field for thoughts is never taken for the answer, nor is a line that says an error of the
    endpoint, but with `errors`: the instruction may ask for such a line.
    """
    marks, usual = _has_marks(call), _usual_marks(call)

    def read(reply: Reply) -> PlainText:
        text = read_text(
            reply.text or "", marks_in_prompt=marks, usual_marks=usual, code_only=code_only
        )
        plan = None
        if planned:
            plan, text = split_plan(text)
            if plan is not None:
                text = read_text(text, marks_in_prompt=True, usual_marks=usual, code_only=code_only)
        if not text.strip():
            raise UnreadableAnswer("nothing is left of the answer without its thoughts")
        if not errors and is_error_line(text):
            raise UnreadableAnswer(f"an error came in place of the answer: {text.strip()[:200]!r}")
        if not thoughts:
            return PlainText(text, plan)
        return PlainText(text, plan, _thoughts_of(reply, text, marks, usual))

    return await _ask(complete, call, read, most_asks)


def _thoughts_of(
    reply: Reply, text: str, marks_in_prompt: bool, usual_marks: frozenset[str]
) -> str | None:
    """What the model thought before it wrote `text`: from its own field, or from the content."""
    thoughts = strip_marks(reply.reasoning or "")
    if not thoughts and not marks_in_prompt:
        thoughts = find_thoughts(reply.text or "", usual_marks)
    # Some endpoints give a model that does not think its answer in both fields.
    return thoughts if thoughts and thoughts != text.strip() else None


async def _ask(
    complete: Complete, call: Call, read: Callable[[Reply], T], most_asks: int = MAX_ASKS
) -> AskResult[T]:
    """Ask until `read` takes the reply. The order of asks rests on replies alone."""
    usage, current, draw, unreadable = no_usage(), call, 0, 0
    while True:
        text, spent = "", 0
        try:
            reply = await complete(current)
            usage = add_usage(usage, reply.usage)
            text, spent = reply.text or "", reply.usage["completion_tokens"]
            return AskResult(read(_usable(reply)), usage)
        except CallFailed as failed:
            failed.usage = usage = add_usage(usage, failed.usage)
            if failed.kind not in KIND_OF_FAILED_ASK:
                raise
            kind, message = KIND_OF_FAILED_ASK[failed.kind], failed.message
        except _Unusable as fault:
            kind, message = fault.kind, fault.message
        except UnreadableAnswer as error:
            kind, message = "malformed", str(error)
            if not text.strip():
                kind, message = "empty", "the answer was empty, but for the model's thoughts"
        room = _room_after_cut(current, spent) if kind == "cut" else None
        if room is not None and room <= call.room * 2**MAX_GROWTHS:
            # With the same seed its text does not depend on when the room was learned.
            current = replace(current, room=room)
            continue
        draw += 1
        if draw == most_asks or kind == "cut":
            raise CallFailed(call.stage, "cut" if kind == "long" else kind, message, usage)
        unreadable += kind == "malformed"
        # With the same seed the journal would give the same answer again.
        current = replace(
            call,
            seed=(call.seed + draw) & 0x7FFFFFFF,
            draw=draw,
            unreadable=unreadable,
            room=call.room if kind == "long" else current.room,
        )
        if kind == "malformed" and text and call.answer is not None:
            current = replace(current, messages=(*call.messages, *_correction(text, message)))


def _room_after_cut(call: Call, spent: int) -> int:
    """The room for an answer that was cut: twice as much, and more than the answer spent.

    It may have had more room than it asked for: with less than it spent it is cut again.
    """
    room = call.room * 2
    while room * call.max_tokens <= spent:
        room *= 2
    return room


def _correction(text: str, fault: str) -> tuple[Message, Message]:
    """An unreadable answer, and what is wrong with it."""
    return {"role": "assistant", "content": text[:8000]}, {
        "role": "user",
        "content": f"That could not be read: {fault}\nGive the whole answer again as one "
        "JSON object of the shape asked for, and nothing else.",
    }


def _has_marks(call: Call) -> bool:
    """Whether the data in a prompt holds the marks by which thoughts are told from answers."""
    return any(has_thinking_mark(message["content"]) for message in call.messages)


def _usual_marks(call: Call) -> frozenset[str]:
    """The marks of thoughts in a prompt that are usual tags, and so no marks in its answer."""
    return frozenset().union(*(find_usual_marks(m["content"]) for m in call.messages))


class _Unusable(Exception):
    """A reply without an answer in it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


def _usable(reply: Reply) -> Reply:
    """The reply, if there may be an answer in it. Raises `_Unusable`."""
    if reply.finish == "content_filter":
        raise _Unusable("filtered", "the endpoint's content filter withheld the answer")
    if reply.refusal:
        raise _Unusable("refused", f"the model refused: {reply.refusal[:200]}")
    if reply.finish == "length":
        raise _Unusable("cut", "the answer was cut off at max_tokens")
    if not (reply.text or "").strip() and not (reply.reasoning or "").strip():
        raise _Unusable("empty", "the answer was empty")
    return reply
