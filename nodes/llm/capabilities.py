"""What is known of a model at an endpoint: how to ask it, what it refuses, and how much it takes.

All of it changes what is put on the wire and nothing else. A call's key, its draws and the order of
its asks rest on settings and on replies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from nodes.llm import MAX_GROWTHS, Call, Reply
from nodes.llm.thoughts import has_thinking_mark

Mode = Literal["json_schema", "tools", "json_object", "text"]
# From the strictest way to ask for an answer's shape to the one every endpoint understands.
MODES: tuple[Mode, ...] = ("json_schema", "tools", "json_object", "text")
# Fields of a request that some endpoints refuse. Without `max_tokens` a request has
# `max_completion_tokens`, without `top_logprobs` it asks for fewer candidates.
OPTIONAL_FIELDS = ("seed", "temperature", "max_tokens", "top_logprobs", "service_tier")
# How to ask: what a refusal may be about.
Way = tuple[Mode, frozenset[str]]
MAX_ROOM = 2**MAX_GROWTHS
# Tokens a character of a prompt takes until an answer has shown better, and what is left free for
# what a prompt takes beside its text.
TOKENS_PER_CHAR = 0.3
MARGIN_TOKENS = 32
# The part of its `max_tokens` that an answer needs at least to be worth asking for.
LEAST_SHARE = 8


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an endpoint can do with a model.

    `window` bounds prompt and answer together, `largest_answer` the answer, both in tokens; None
    is not known. `rooms` is how many times its `max_tokens` a stage's answer needs, because the
    model thinks before it answers. `answers_in` is the field that holds a plain text.
    """

    mode: Mode = "json_schema"
    refused_fields: frozenset[str] = frozenset()
    window: int | None = None
    largest_answer: int | None = None
    rooms: Mapping[str, int] = field(default_factory=dict)
    tokens_per_char: float | None = None
    answers_in: Literal["content", "reasoning"] | None = None

    @property
    def way(self) -> Way:
        """How to ask."""
        return self.mode, self.refused_fields

    def with_way(self, other: Capabilities) -> Capabilities:
        """These with the way to ask of others."""
        return replace(self, mode=other.mode, refused_fields=other.refused_fields)

    def without(self, feature: str) -> Capabilities:
        """These without an optional field, or with the next mode in place of a refused one."""
        if feature in OPTIONAL_FIELDS:
            return replace(self, refused_fields=self.refused_fields | {feature})
        return replace(self, mode=MODES[min(MODES.index(self.mode) + 1, len(MODES) - 1)])

    def wanted_tokens(self, call: Call) -> int:
        """The `max_tokens` of a call with the room that its stage is known to need."""
        return call.max_tokens * max(call.room, self.rooms.get(call.stage, 1))

    def fit(self, call: Call, limit: int | None = None) -> int:
        """The `max_tokens` to send: what is wanted, within window, largest answer and `limit`.

        A prompt that seems to leave no room is sent with what is wanted: the endpoint counts it,
        and says.
        """
        limits = [n for n in (self.largest_answer, limit) if n is not None]
        if self.window is not None:
            left = self.window - self.prompt_tokens(call)
            if left >= least_tokens(call):
                limits.append(left)
        return min([self.wanted_tokens(call), *limits])

    def prompt_tokens(self, call: Call) -> int:
        """An estimate of a prompt's tokens, rather too high than too low."""
        characters = sum(len(message["content"]) for message in call.messages)
        return MARGIN_TOKENS + int(characters * 1.05 * (self.tokens_per_char or TOKENS_PER_CHAR))

    def observe(self, call: Call, reply: Reply) -> Capabilities:
        """What is known after a reply: the room that thinking needs, the tokens of a character.

        Only a model that is seen to think gets more room at once: by thoughts in a field of their
        own, by tokens that are reported as thoughts, or by an answer that was cut before it began.
        """
        known = self
        characters = sum(len(message["content"]) for message in call.messages)
        if characters > 400 and call.kind != "structured":
            ratio = reply.usage["prompt_tokens"] / characters
            if 0 < ratio < 2 and ratio > (self.tokens_per_char or 0):
                known = replace(known, tokens_per_char=ratio)
        if reply.finish == "length" and call.kind != "question" and _thinks(reply):
            needed = min(2 * -(-call.most_tokens // call.max_tokens), MAX_ROOM)
            if needed > known.rooms.get(call.stage, 1):
                known = replace(known, rooms={**known.rooms, call.stage: needed})
        return known

    def to_dict(self) -> dict[str, Any]:
        """These as plain JSON values; `from_dict` is the inverse."""
        return {
            "mode": self.mode,
            "refused_fields": sorted(self.refused_fields),
            "window": self.window,
            "largest_answer": self.largest_answer,
            "rooms": dict(self.rooms),
            "answers_in": self.answers_in,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Capabilities:
        """See `to_dict`."""
        refused = frozenset(values["refused_fields"])
        return cls(**{**values, "refused_fields": refused, "rooms": dict(values["rooms"])})


def least_tokens(call: Call) -> int:
    """The fewest tokens with which an answer is worth asking for."""
    return max(1, call.max_tokens // LEAST_SHARE)


def _thinks(reply: Reply) -> bool:
    """Whether a cut reply shows that its tokens went into thoughts."""
    text = reply.text or ""
    thought = reply.reasoning or reply.usage.get("reasoning_tokens", 0)
    return bool(thought) or not text.strip() or has_thinking_mark(text)
