"""References, and the hashes that identify them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any, NotRequired

from typing_extensions import TypedDict


class Turn(TypedDict):
    """One turn of a conversation; `role` is user, assistant, system, or as in the data."""

    role: str
    content: str


class Reference(TypedDict):
    """A curated instruction and response pair that a person vouches for."""

    id: str
    instruction: str
    response: str
    source: NotRequired[str]
    license: NotRequired[str]
    tags: NotRequired[list[str]]
    history: NotRequired[list[Turn]]
    """The conversation before the instruction, system prompt included."""
    criteria: NotRequired[list[dict[str, Any]]]
    """A person's criteria of it, each with at least a `text`; see `nodes.own_criteria`."""
    score: NotRequired[float]


class IndexUnusable(RuntimeError):
    """An index or store that is missing, damaged or does not match. The message says what to do.

    A `RuntimeError`, because the server shows clients the messages of few other errors.
    """


def content_id(*parts: str) -> str:
    """Return an id for some texts: the first 12 hex digits of their sha256."""
    return sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def reference_hash(reference: Reference) -> str:
    """Return the content id of a reference's history, instruction and response."""
    before = (f"{turn['role']}: {turn['content']}" for turn in reference.get("history", ()))
    return content_id(reference["instruction"], reference["response"], *before)


def instruction_key(instruction: str) -> int:
    """Return a 63-bit hash of an instruction, without the white space around it."""
    digest = sha256(instruction.strip().encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def exact_instruction_key(text: str) -> int:
    """Return the same hash of a text with the white space around it."""
    return instruction_key(f".{text}.")


def distinct(references: Iterable[Reference]) -> Iterator[Reference]:
    """Yield each reference once. A different one with an id seen before gets another id.

    Streams; remembers two 63-bit hashes of each reference.

    >>> two = [{"id": "a", "instruction": "Why?", "response": r} for r in ("So.", "So.", "Thus.")]
    >>> [r["response"] for r in distinct(two)], len({r["id"] for r in distinct(two)})
    (['So.', 'Thus.'], 2)
    """
    seen: set[int] = set()
    for reference in references:
        content = reference_hash(reference)
        for id_ in (reference["id"], f"{reference['id']}-{content[:6]}"):
            same = instruction_key(f"{id_} {content}")
            if same in seen:
                break
            if instruction_key(id_) not in seen:
                seen |= {instruction_key(id_), same}
                yield {**reference, "id": id_}
                break
