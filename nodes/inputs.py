"""What callers give the graphs and get back; Studio makes its input forms of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NotRequired, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import TypedDict

from memory.references import Reference, content_id
from nodes.state import Attempt, Criterion, Reason, Reviewed, Seed, Status

LONGEST = 200_000
MOST_ADDED = 1_000


def _text(title: str, about: str, *examples: str) -> Any:
    """A field of text, as long as the graphs take it."""
    return Field(
        title=title,
        description=about,
        min_length=1,
        max_length=LONGEST,
        examples=list(examples) or None,
    )


SeedText = Annotated[
    str,
    _text(
        "Seed",
        "What new data should be about: a question, a task, or a topic.",
        "How waves form at sea",
    ),
]
InstructionText = Annotated[
    str,
    _text("Instruction", "What is to be answered.", "Explain to a child how waves form at sea."),
]
ResponseText = Annotated[str, _text("Response", "The response a person vouches for.")]
OwnId = Annotated[
    str, Field(title="Id", description="A name of your own; else made of the text.", max_length=200)
]


class GivenSeed(TypedDict):
    """What new data should be about, as a caller says it."""

    instruction: SeedText
    id: NotRequired[OwnId]


class GivenReference(TypedDict):
    """A curated instruction and response pair, as a caller gives it."""

    instruction: InstructionText
    response: ResponseText
    id: NotRequired[OwnId]


GivenReferences = Annotated[
    list[GivenReference],
    Field(
        title="References",
        description="Pairs to learn from, in place of what the index has for the seed.",
        max_length=20,
    ),
]


class Input(TypedDict):
    """What a caller gives the synthesizer: a seed, and references unless the index has them."""

    seed: Annotated[
        GivenSeed, Field(title="Seed", description="What the new samples should be about.")
    ]
    references: NotRequired[GivenReferences]


class Output(TypedDict):
    """What the synthesizer gives back."""

    samples: Annotated[
        list[dict[str, Any]],
        Field(
            title="Samples",
            description="Instruction, response, verdicts and status of each sample.",
        ),
    ]
    references: Annotated[
        list[Reference], Field(title="References", description="What was retrieved for the seed.")
    ]
    criteria: Annotated[
        list[Criterion], Field(title="Criteria", description="What responses were judged by.")
    ]


class SampleInput(TypedDict):
    """What a caller gives the graph `sample`: an instruction, and what to write and judge by."""

    instruction: InstructionText
    references: NotRequired[GivenReferences]
    criteria: NotRequired[
        Annotated[
            list[str],
            Field(
                title="Criteria",
                description='Each completes the sentence "The response ..."; without any, a fixed '
                "checklist is used.",
                max_length=30,
                examples=[["gives a reason for every claim"]],
            ),
        ]
    ]


class SampleOutput(TypedDict, total=False):
    """What the graph `sample` gives back."""

    status: Status
    reason: Reason | None
    response: str
    attempts: list[Attempt]
    criteria: list[Criterion]
    review: Reviewed


class IndexedReference(GivenReference):
    """A reference with what an index can tell it apart by."""

    source: NotRequired[Annotated[str, Field(title="Source", max_length=500)]]
    license: NotRequired[Annotated[str, Field(title="Licence", max_length=500)]]
    tags: NotRequired[Annotated[list[str], Field(title="Tags", max_length=50)]]


class IndexerInput(TypedDict):
    """What a caller gives the indexer."""

    references: Annotated[
        list[IndexedReference],
        Field(
            title="References",
            description="Curated pairs to add to the server's index; those it has are left alone.",
            min_length=1,
            max_length=MOST_ADDED,
        ),
    ]


class IndexerOutput(TypedDict):
    """What the indexer gives back: how many are new, were known before, and are there now."""

    added: Annotated[int, Field(title="Added", description="New ones.")]
    known: Annotated[int, Field(title="Known", description="Those the index had before.")]
    total: Annotated[int, Field(title="Total", description="How many the index has now.")]


class IndexerState(TypedDict):
    """References on their way into the index."""

    references: list[Reference]
    added: int
    known: int
    total: int


# MERGED nodes~checked
# Whether what a caller gives a graph can be worked with: LangGraph itself checks no input.
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
