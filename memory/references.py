"""What a reference is, and how references are told apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import NotRequired

from typing_extensions import TypedDict


class Turn(TypedDict):
    """One turn of a conversation; `role` is user, assistant, system or what the data says."""

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
    """What was said before the instruction, where it is a later turn or has a system prompt."""
    score: NotRequired[float]


class IndexUnusable(RuntimeError):
    """An index that is missing, damaged, or made otherwise. The message says how to rebuild.

    A `RuntimeError`, since the server shows a client few other errors' messages.
    """


def content_id(*parts: str) -> str:
    """A short, stable name for a content: 12 hex digits of its sha256."""
    return sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def reference_hash(reference: Reference) -> str:
    """The short name of all that a reference says."""
    before = (f"{turn['role']}: {turn['content']}" for turn in reference.get("history", ()))
    return content_id(reference["instruction"], reference["response"], *before)


def instruction_key(instruction: str) -> int:
    """63 bits that stand for an instruction, whatever white space is around it."""
    digest = sha256(instruction.strip().encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def exact_instruction_key(text: str) -> int:
    """The same, where white space counts."""
    return instruction_key(f".{text}.")


def distinct(references: Iterable[Reference]) -> Iterator[Reference]:
    """Every reference once: the same pair again is left out, another under its id is renamed.

    Sixteen bytes or so are kept of each, so that a million can be gone through.

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
