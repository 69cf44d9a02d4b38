"""What callers give the graphs and get back.

Studio makes its input forms of these types. LangGraph validates no input, so the first node of each
graph reads it through `read_input`, `read_sample_input` or `read_indexer_input`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from memory.references import Reference, content_id
from nodes.checks import SAFE_CHECKS
from nodes.own_criteria import MAX_TEXT_CHARS, OwnCriterion, read_own_criterion
from nodes.state import Attempt, Criterion, RejectionReason, ReviewOutcome, Seed, Status

MAX_TEXT_LENGTH = 200_000
MAX_INPUT_REFERENCES = 20
MAX_REFERENCES_ADDED = 1_000
# More than any setting allows, rules included.
MAX_STATE_CRITERIA = 100
MAX_INPUT_CRITERIA = 30


class BadInput(ValueError):
    """The input cannot be used; the message says which field is wrong and why.

    A `ValueError`, because LangGraph's server hides the message of most other errors.
    """


def _text_field(title: str, description: str, *examples: str) -> Any:
    """A text with at least one character that is not white space."""
    return Field(
        title=title,
        description=description,
        min_length=1,
        max_length=MAX_TEXT_LENGTH,
        pattern=r"\S",
        examples=list(examples) or None,
    )


def _drop_nulls(value: Any) -> Any:
    """An object without its null fields, which count as missing."""
    if not isinstance(value, dict):
        return value
    return {name: part for name, part in value.items() if part is not None}


InstructionText = Annotated[
    str,
    _text_field(
        "Instruction", "What is to be answered.", "Explain to a child how waves form at sea."
    ),
]
ResponseText = Annotated[str, _text_field("Response", "The response a person vouches for.")]
IdText = Annotated[
    str, Field(title="Id", description="A name of your own; else made of the text.", max_length=200)
]


@with_config(ConfigDict(str_strip_whitespace=True))
class SeedInput(TypedDict):
    """What new data should be about."""

    instruction: Annotated[
        str,
        _text_field(
            "Seed",
            "What new data should be about: a question, a task, or a topic.",
            "How waves form at sea",
        ),
    ]
    id: NotRequired[IdText]


class ReferenceInput(TypedDict):
    """A curated instruction and response pair."""

    instruction: InstructionText
    response: ResponseText
    id: NotRequired[IdText]


ReferenceInputs = Annotated[
    list[Annotated[ReferenceInput, BeforeValidator(_drop_nulls)]],
    Field(
        title="References",
        description="Pairs to learn from, in place of what the index has for the seed.",
        max_length=MAX_INPUT_REFERENCES,
    ),
]


class CriterionInput(TypedDict):
    """A criterion of the caller's own."""

    text: Annotated[
        str,
        Field(
            title="Criterion",
            description='Completes the sentence "The response ...".',
            min_length=1,
            max_length=MAX_TEXT_CHARS,
            examples=["gives a reason for every claim"],
        ),
    ]
    must: NotRequired[
        Annotated[bool, Field(title="Must", description="Nothing is accepted that fails it.")]
    ]
    of: NotRequired[
        Annotated[
            Literal["response", "instruction"],
            Field(title="Of", description="What it is a criterion of."),
        ]
    ]
    id: NotRequired[IdText]
    check: NotRequired[
        Annotated[
            str,
            Field(
                title="Check",
                description="A function that decides it in place of the judge: "
                f"{', '.join(SAFE_CHECKS)} (max_words:N).",
                max_length=200,
            ),
        ]
    ]
    weight: NotRequired[
        Annotated[
            float,
            Field(title="Weight", description="A negative one marks a fault to be avoided."),
        ]
    ]


CriterionInputs = Annotated[
    list[str | CriterionInput],
    Field(
        title="Criteria",
        description='Each completes the sentence "The response ...", or is an object with that as '
        "its text.",
        max_length=MAX_INPUT_CRITERIA,
        examples=[["gives a reason for every claim"]],
    ),
]


class SynthesizerInput(TypedDict):
    """Input of the synthesizer: a seed, and references unless the index has them."""

    seed: Annotated[
        SeedInput, Field(title="Seed", description="What the new samples should be about.")
    ]
    references: NotRequired[ReferenceInputs]
    criteria: NotRequired[CriterionInputs]


class SynthesizerOutput(TypedDict):
    """Output of the synthesizer."""

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
    """Input of the graph `sample`: an instruction, and what to write and judge by.

    Without criteria a fixed checklist is used.
    """

    instruction: InstructionText
    references: NotRequired[ReferenceInputs]
    criteria: NotRequired[CriterionInputs]


class SampleOutput(TypedDict, total=False):
    """Output of the graph `sample`."""

    status: Status
    reason: RejectionReason | None
    response: str
    reasoning: str | None
    attempts: list[Attempt]
    answers: list[Attempt]
    criteria: list[Criterion]
    review: ReviewOutcome


class IndexedReference(ReferenceInput):
    """A reference with the fields that an index also stores."""

    source: NotRequired[Annotated[str, Field(title="Source", max_length=500)]]
    license: NotRequired[Annotated[str, Field(title="Licence", max_length=500)]]
    tags: NotRequired[
        Annotated[list[Annotated[str, Field(max_length=200)]], Field(title="Tags", max_length=50)]
    ]


class IndexerInput(TypedDict):
    """Input of the indexer."""

    references: Annotated[
        list[Annotated[IndexedReference, BeforeValidator(_drop_nulls)]],
        Field(
            title="References",
            description="Curated pairs to add to the server's index; those it has are left alone.",
            min_length=1,
            max_length=MAX_REFERENCES_ADDED,
        ),
    ]


class IndexerOutput(TypedDict):
    """Output of the indexer: how many are new, were known before, and are there now."""

    added: Annotated[int, Field(title="Added", description="New ones.")]
    known: Annotated[int, Field(title="Known", description="Those the index had before.")]
    total: Annotated[int, Field(title="Total", description="How many the index has now.")]


class IndexerState(TypedDict):
    """State of the indexer."""

    references: list[Reference]
    added: int
    known: int
    total: int


@with_config(ConfigDict(str_strip_whitespace=True))
class _RunSeed(SeedInput):
    """A seed with its place in a run, which no form shows."""

    round: NotRequired[Annotated[int, Field(ge=0)]]
    position: NotRequired[Annotated[int, Field(ge=0)]]
    draw_round: NotRequired[Annotated[int, Field(ge=0)]]
    tags: NotRequired[list[str]]


class _RunInput(TypedDict):
    seed: Annotated[_RunSeed, BeforeValidator(_drop_nulls)]
    references: NotRequired[ReferenceInputs]


class _SampleRunInput(TypedDict):
    instruction: InstructionText
    references: NotRequired[ReferenceInputs]


_RUN_INPUT = TypeAdapter(_RunInput)
_SAMPLE_INPUT = TypeAdapter(_SampleRunInput)
_INDEXER_INPUT = TypeAdapter(IndexerInput)
T = TypeVar("T")


def _validate(adapter: TypeAdapter[T], value: dict[str, Any]) -> T:
    """Validate an input; the first wrong field is named in a `BadInput`."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{field}: {first['msg']}") from error


def read_input(state: Any) -> tuple[Seed, list[Reference]]:
    """The seed and references of the synthesizer's input, with ids. Raises `BadInput`."""
    value = {"seed": state.get("seed"), "references": state.get("references") or []}
    read = _validate(_RUN_INPUT, value)
    seed = read["seed"]
    result: Seed = {
        "id": seed.get("id") or content_id(seed["instruction"]),
        "instruction": seed["instruction"],
        "round": seed.get("round", 0),
        "position": seed.get("position", 0),
    }
    if "draw_round" in seed:
        result["draw_round"] = seed["draw_round"]
    if "tags" in seed:
        result["tags"] = seed["tags"]
    return result, _with_ids(read["references"])


def read_input_criteria(state: Any) -> list[OwnCriterion]:
    """The criteria that the input of a graph carries. Raises `BadInput`.

    Those that an earlier seed of a thread was judged by are none of the input's.
    """
    values = state.get("criteria") or []
    if not isinstance(values, list) or len(values) > MAX_INPUT_CRITERIA:
        raise BadInput(f"criteria: must be a list of at most {MAX_INPUT_CRITERIA}")
    read = []
    for number, value in enumerate(values):
        if isinstance(value, dict) and "judged_by" in value:
            return []
        try:
            read.append(read_own_criterion(value, trusted=False))
        except ValueError as error:
            raise BadInput(f"criteria.{number}: {error}") from error
    return read


def read_sample_input(state: Any) -> tuple[str, list[Reference], list[OwnCriterion]]:
    """Instruction, references and criteria of the graph `sample`. Raises `BadInput`."""
    names = ("instruction", "references")
    read = _validate(_SAMPLE_INPUT, {name: state[name] for name in names if state.get(name)})
    criteria = read_input_criteria(state)
    for number, own in enumerate(criteria):
        if own["of"] == "instruction":
            raise BadInput(f"criteria.{number}: of: the graph `sample` screens no instruction")
    return read["instruction"], _with_ids(read.get("references", [])), criteria


def read_indexer_input(state: Any) -> list[Reference]:
    """The references of the indexer's input, with ids. Raises `BadInput`."""
    read = _validate(_INDEXER_INPUT, {"references": state.get("references")})["references"]
    references = _with_ids(read)
    for reference, row in zip(references, read, strict=True):
        extra = {name: row.get(name) for name in ("source", "license", "tags")}
        reference.update({name: value for name, value in extra.items() if value})  # type: ignore[typeddict-item]
    return references


def _with_ids(references: Sequence[ReferenceInput]) -> list[Reference]:
    return [
        {
            "id": r.get("id") or content_id(r["instruction"], r["response"]),
            "instruction": r["instruction"],
            "response": r["response"],
        }
        for r in references
    ]


def check_list_sizes(state: Any) -> None:
    """Check that nobody wrote longer lists into a thread's state than a run ever has.

    Each reference costs a call, and each criterion a part of one. Raises `BadInput`.
    """
    limits = {"references": MAX_INPUT_REFERENCES, "own_criteria": MAX_INPUT_CRITERIA}
    limits |= dict.fromkeys(("criteria", "instruction_criteria"), MAX_STATE_CRITERIA)
    for name, limit in limits.items():
        value = state.get(name) or ()
        if not isinstance(value, Sequence) or len(value) > limit:
            raise BadInput(f"{name}: must be a list of at most {limit}")
