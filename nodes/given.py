"""What callers give the graphs and get back; Studio makes its input forms of these."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from memory.references import Reference
from nodes.state import Attempt, Criterion, Reason, Reviewed, Status

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
