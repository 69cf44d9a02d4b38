"""Whether what a caller gives a graph can be worked with: LangGraph itself checks no input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memory.references import Reference, content_id
from nodes.given import LONGEST, MOST_ADDED
from nodes.state import Seed

MOST_REFERENCES = 20
MOST_CRITERIA = 100


class BadInput(ValueError):
    """The input has no usable seed or reference; the message says which field and why.

    A `ValueError`, since the server shows a client no other error's message.
    """


class _Seed(BaseModel):
    model_config = ConfigDict(extra="allow", str_strip_whitespace=True)

    instruction: str = Field(min_length=1, max_length=LONGEST)
    id: str | None = Field(None, max_length=200)
    round: int = Field(0, ge=0)
    position: int = Field(0, ge=0)


class _Reference(BaseModel):
    model_config = ConfigDict(extra="allow")

    instruction: str = Field(min_length=1, max_length=LONGEST, pattern=r"\S")
    response: str = Field(min_length=1, max_length=LONGEST, pattern=r"\S")
    id: str | None = Field(None, max_length=200)


class _Input(BaseModel):
    seed: _Seed
    references: list[_Reference] = Field(default_factory=list, max_length=20)


class _Indexed(_Reference):
    source: str | None = Field(None, max_length=500)
    license: str | None = Field(None, max_length=500)
    tags: list[Annotated[str, Field(max_length=200)]] | None = Field(None, max_length=50)


class _IndexerInput(BaseModel):
    references: list[_Indexed] = Field(min_length=1, max_length=MOST_ADDED)


class _SampleInput(BaseModel):
    instruction: str = Field(min_length=1, max_length=LONGEST)
    references: list[_Reference] = Field(default_factory=list, max_length=20)
    criteria: list[Annotated[str, Field(min_length=1, max_length=300)]] = Field(
        default_factory=list, max_length=30
    )


M = TypeVar("M", bound=BaseModel)


def _read(model: type[M], given: Any) -> M:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{where}: {first['msg']}") from error


def checked(state: Any) -> tuple[Seed, list[Reference]]:
    """The input's seed and references with ids. Raises `BadInput` naming the first wrong field."""
    given = _read(_Input, {"seed": state.get("seed"), "references": state.get("references") or []})
    seed: Seed = {
        "id": given.seed.id or content_id(given.seed.instruction),
        "instruction": given.seed.instruction,
        "round": given.seed.round,
        "position": given.seed.position,
    }
    return seed, _references(given.references)


def within(state: Any) -> None:
    """Refuse a state that somebody wrote into a thread with more than a run ever has.

    Raises `BadInput`: each reference is a call, and each criterion a part of one.
    """
    for name, most in (("references", MOST_REFERENCES), ("criteria", MOST_CRITERIA)):
        found = state.get(name) or ()
        if not isinstance(found, Sequence) or len(found) > most:
            raise BadInput(f"{name}: a list of at most {most} is wanted")


def checked_sample(state: Any) -> tuple[str, list[Reference], list[str]]:
    """The instruction, references and criteria's texts of the graph `sample`; see `checked`."""
    names = ("instruction", "references", "criteria")
    given = _read(_SampleInput, {name: state[name] for name in names if state.get(name)})
    return given.instruction, _references(given.references), given.criteria


def _references(given: Sequence[_Reference]) -> list[Reference]:
    return [
        {
            "id": r.id or content_id(r.instruction, r.response),
            "instruction": r.instruction,
            "response": r.response,
        }
        for r in given
    ]


def checked_references(state: Any) -> list[Reference]:
    """The references of the indexer's input with ids; see `checked`."""
    given = _read(_IndexerInput, {"references": state.get("references")}).references
    found = _references(given)
    for reference, one in zip(found, given, strict=True):
        more = {"source": one.source, "license": one.license, "tags": one.tags}
        reference.update({k: v for k, v in more.items() if v})  # type: ignore[typeddict-item]
    return found
