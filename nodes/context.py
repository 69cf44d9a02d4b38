"""The settings that the graph itself reads, which Studio shows as a form."""

from __future__ import annotations

import os
from copy import deepcopy
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from prompts import EditedPrompts, read_prompt
from prompts.validation import MAX_TEMPLATE_CHARS, PromptUnusable, check_prompt

FeedbackArm = Literal["reference", "sample", "none", "generic", "swapped"]
Pipeline = Literal["loop", "refed"]
JudgeMethod = Literal["verdict", "logodds"]
Review = Literal["never", "rejected", "borderline", "all"]
# Prompts that may be edited; each is a setting `NAME_prompt`.
PROMPT_NAMES = (
    *("extract", "propose", "screen", "screen_question"),
    *("generate", "critique", "question", "refine"),
)
MAX_NAME_LENGTH = 200
MAX_JURORS = 9
MAX_ATTEMPTS = 10
# The nodes inside `sample`.
LOOP_NODES = ("generate", "critique", "refine", "answer")


def default_model() -> str:
    """The embedded model, unless the environment names an endpoint: a key alone names none."""
    return "gpt-4o-mini" if os.environ.get("OPENAI_BASE_URL") else "local"


def is_embedded(model: str) -> bool:
    """Whether the name means a model inside this process."""
    return model == "local" or model.endswith(".gguf")


def split_jurors(names: str) -> tuple[str, ...]:
    """The models that a judge's name stands for; more than one are a jury.

    >>> split_jurors("a, ollama:b"), split_jurors("a")
    (('a', 'ollama:b'), ('a',))
    """
    return tuple(name.strip() for name in names.split(",")) if "," in names else (names,)


def at(*nodes: str) -> dict[str, Any]:
    """The schema entry that tells Studio at which nodes to show a setting."""
    return {"langgraph_nodes": list(nodes)}


def _check_prompt(text: str, info: ValidationInfo) -> str:
    try:
        check_prompt(str(info.field_name).removesuffix("_prompt"), text)
    except PromptUnusable as error:
        raise PydanticCustomError("prompt", "{why}", {"why": str(error)}) from error
    return text


Prompt = Annotated[str, AfterValidator(_check_prompt)]


def prompt_field(name: str, description: str, *nodes: str) -> Any:
    """A prompt as a field, for which Studio opens an editor."""
    return Field(
        default=read_prompt(name),
        title=f"Prompt of {name}",
        description=f"{description} A Jinja template with the blocks system and user; data goes "
        "through fence().",
        min_length=1,
        max_length=MAX_TEMPLATE_CHARS,
        json_schema_extra={**at(*nodes), "langgraph_type": "prompt"},
    )


class ContextOptions(BaseModel):
    """The settings that the graph and the command line share; the base of `refloom.Settings`.

    They hold no path, URL or key: a client of a server may set them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        title="Model",
        description="what the endpoint calls the writing model; 'local' is the embedded one; "
        "a path ending in .gguf runs that file",
        default_factory=default_model,
        min_length=1,
        max_length=MAX_NAME_LENGTH,
        json_schema_extra=at("extract", "propose", "sample", *LOOP_NODES),
    )
    judge_model: str | None = Field(
        default=None,
        title="Judge model",
        description="the model that judges (default: the writing model); A,B,C is a jury, of which "
        "more than half must pass a criterion",
        min_length=1,
        max_length=MAX_JURORS * (MAX_NAME_LENGTH + 1),
        json_schema_extra=at("extract", "screen", "sample", "critique"),
    )
    judge_method: JudgeMethod | None = Field(
        default=None,
        title="Judge method",
        description=(
            "verdict: the judge writes reason, evidence, verdict; logodds: one yes/no token a "
            "criterion (default: logodds for an embedded model)"
        ),
        json_schema_extra=at("extract", "sample", "critique"),
    )
    criteria_per_call: int | None = Field(
        default=None,
        title="Criteria a call",
        description="criteria that the judge is asked about in one call at most; 1 judges each by "
        "itself (default: all; written verdicts only)",
        ge=1,
        le=100,
        json_schema_extra=at("extract", "sample", "critique"),
    )
    references_per_seed: int = Field(
        default=3,
        title="References a seed",
        description="references retrieved for a seed",
        ge=1,
        le=20,
        json_schema_extra=at("retrieve"),
    )
    per_seed: int = Field(
        default=1,
        title="Instructions a seed",
        description="new instructions proposed for a seed",
        ge=1,
        le=50,
        json_schema_extra=at("propose"),
    )
    answer_seeds: bool = Field(
        default=False,
        title="Answer seeds",
        description="answer the seeds themselves, propose nothing",
        json_schema_extra=at("propose"),
    )
    screen: bool = Field(
        default=True,
        title="Screen instructions",
        description="hold new instructions to criteria before a response is paid for",
        json_schema_extra=at("extract", "propose", "screen"),
    )
    max_attempts: int = Field(
        default=3,
        title="Attempts",
        description="candidates an instruction at most",
        ge=1,
        le=MAX_ATTEMPTS,
        json_schema_extra=at("sample", "critique"),
    )
    max_criteria: int = Field(
        default=6,
        title="Criteria",
        description="criteria from references that a response is judged by at most",
        ge=0,
        le=30,
        json_schema_extra=at("extract"),
    )
    should_share: float = Field(
        default=0.5,
        title="Share of 'should' criteria",
        description="share of judged 'should' criteria that has to pass (written verdicts only; "
        "by log-odds they rank)",
        ge=0,
        le=1,
        json_schema_extra=at("sample", "critique"),
    )
    try_criteria: bool = Field(
        default=True,
        title="Try criteria",
        description="try each criterion on its own reference and on spoiled responses first",
        json_schema_extra=at("extract"),
    )
    novelty_threshold: float = Field(
        default=0.7,
        title="Novelty threshold",
        description="ROUGE-L F1 over which an instruction is a duplicate and dropped",
        gt=0,
        le=1,
        json_schema_extra=at("propose"),
    )
    feedback: FeedbackArm = Field(
        default="reference",
        title="Feedback arm",
        description=(
            "what a draft is refined by: reference (the method: criteria from references), sample "
            "(feedback of the judge on the draft, one refinement), none (draft only, no judge), "
            "generic (one fixed checklist), swapped (the criteria of another reference)"
        ),
        json_schema_extra=at("extract", "sample", *LOOP_NODES),
    )
    pipeline: Pipeline = Field(
        default="loop",
        title="Pipeline",
        description=(
            "loop: criteria, and refinement until they pass. refed: as the paper's authors ran it, "
            "feedback on each reference and one refinement by it, nothing judged"
        ),
        json_schema_extra=at("extract", "propose", "sample", *LOOP_NODES),
    )
    paired: bool = Field(
        default=False,
        title="Paired",
        description=(
            "make the instructions and drafts that every other feedback arm would make, so that "
            "arms can be compared: references are studied, drafts written without criteria"
        ),
        json_schema_extra=at("extract", "sample", "generate"),
    )
    judge_votes: int = Field(
        default=1,
        title="Votes of the judge",
        description="times the judge is asked where one written verdict alone fails a response; "
        "the majority counts",
        ge=1,
        le=9,
        json_schema_extra=at("sample", "critique"),
    )
    reasoning: bool = Field(
        default=False,
        title="Reasoning",
        description="answer accepted instructions again, without reference or criteria in view; an "
        "answer that is as good becomes the response, with what the model thought before it",
        json_schema_extra=at("sample", "critique", "answer"),
    )
    review: Review = Field(
        default="never",
        title="Review by a person",
        description=(
            "which samples wait for a person who accepts, edits or rejects them: never, rejected, "
            "borderline (one verdict decides, or the judge did not agree to all), all"
        ),
        json_schema_extra=at("review"),
    )
    random_seed: int = Field(
        default=0,
        title="Random seed",
        description="fixes every draw; the same answers give the same rows",
        ge=0,
        le=2**53 - 1,
        json_schema_extra=at("propose", "sample", *LOOP_NODES),
    )

    @field_validator("judge_model")
    @classmethod
    def _without_spaces(cls, names: str | None) -> str | None:
        return names if names is None else ",".join(split_jurors(names))

    @model_validator(mode="after")
    def _check_arm(self) -> Self:
        if self.pipeline == "refed" and self.feedback != "reference":
            raise PydanticCustomError(
                "pipeline", "with pipeline refed, feedback is reference and nothing else"
            )
        if self.pipeline == "refed" and self.reasoning:
            raise PydanticCustomError(
                "reasoning",
                "reasoning: the paper's pipeline (refed) judges nothing, so no bare answer can be "
                "held to anything; leave reasoning out",
            )
        return self

    @model_validator(mode="after")
    def _check_jury(self) -> Self:
        jurors = self.jurors
        if any(len(name) > MAX_NAME_LENGTH for name in jurors) or len(jurors) > MAX_JURORS:
            raise PydanticCustomError(
                "jury",
                "judge_model: at most {jurors} models, each of at most {length} characters",
                {"jurors": MAX_JURORS, "length": MAX_NAME_LENGTH},
            )
        if len(jurors) == 1:
            return self
        if "" in jurors:
            raise PydanticCustomError(
                "jury", "judge_model: a name is missing between the commas; a jury is A,B,C"
            )
        if len(set(jurors)) < len(jurors):
            raise PydanticCustomError("jury", "judge_model: a jury has each model once")
        if self.judge_method == "logodds":
            raise PydanticCustomError(
                "jury", "judge_model: a jury gives written verdicts; logodds is for one judge"
            )
        if self.judge_method is None and any(map(is_embedded, jurors)):
            raise PydanticCustomError(
                "jury",
                "judge_model: a jury gives written verdicts, and an embedded model judges by "
                "log-odds; leave it out, or set judge_method to verdict",
            )
        if self.judge_votes > 1:
            raise PydanticCustomError(
                "jury", "judge_votes is for one judge; a jury votes by itself: leave it at 1"
            )
        return self

    @property
    def jurors(self) -> tuple[str, ...]:
        """The models that judge, by name; more than one are a jury."""
        if self.judge_model is None or self.judge_model == self.model:
            return (self.judge_model or self.model,)
        return split_jurors(self.judge_model)

    @property
    def judge(self) -> str:
        """The model that judges; of a jury the first juror, who gives feedback and compares."""
        return self.jurors[0]

    @property
    def judge_names(self) -> str:
        """The name of the judge, or those of all jurors with commas, as a record has it."""
        return ",".join(self.jurors)


class Context(ContextOptions):
    """The settings that the graph reads: `ContextOptions`, and the prompts as texts."""

    extract_prompt: Prompt = prompt_field(
        "extract", "Finds what makes a reference good.", "extract"
    )
    propose_prompt: Prompt = prompt_field("propose", "Asks for new instructions.", "propose")
    screen_prompt: Prompt = prompt_field(
        "screen", "Asks for verdicts on instructions (judge method verdict).", "extract", "screen"
    )
    screen_question_prompt: Prompt = prompt_field(
        "screen_question",
        "Asks yes or no of an instruction (judge method logodds).",
        "extract",
        "screen",
    )
    generate_prompt: Prompt = prompt_field("generate", "Writes a response.", "sample", "generate")
    critique_prompt: Prompt = prompt_field(
        "critique", "Asks for verdicts (judge method verdict).", "extract", "sample", "critique"
    )
    question_prompt: Prompt = prompt_field(
        "question", "Asks yes or no (judge method logodds).", "extract", "sample", "critique"
    )
    refine_prompt: Prompt = prompt_field("refine", "Mends what failed.", "sample", "refine")

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The JSON schema; cached, since LangGraph's server asks for it with every run."""
        return super().model_json_schema(*args, **kwargs) if args or kwargs else deepcopy(_schema())

    @property
    def refines_once(self) -> bool:
        """Whether a draft is refined exactly once, whatever its verdicts."""
        return self.feedback == "sample" or self.pipeline == "refed"

    @property
    def learns_from_references(self) -> bool:
        """Whether characteristics are extracted; if not, references only calibrate bars."""
        return self.paired or self.feedback in ("reference", "swapped")

    @property
    def screens(self) -> bool:
        """Whether new instructions are held to criteria before a response is paid for."""
        return self.screen and not self.answer_seeds and self.pipeline == "loop"

    @property
    def extracts_instruction_criteria(self) -> bool:
        """Whether references are asked for criteria of instructions.

        By log-odds only the built-in ones are asked: a small model's own are noise (measured).
        """
        return self.screens and self.learns_from_references and self.method == "verdict"

    @property
    def holds_to_references(self) -> bool:
        """Whether responses are held to criteria of references, and to a person's by the judge."""
        return self.pipeline == "loop" and self.feedback in ("reference", "swapped")

    @property
    def extracts(self) -> bool:
        """Whether references are asked what makes them good: for criteria, or to screen by."""
        wanted = self.max_criteria > 0 or self.extracts_instruction_criteria
        return self.learns_from_references and wanted

    @cached_property
    def edited(self) -> EditedPrompts:
        """Names and texts of the prompts that differ from refloom's own."""
        texts = ((name, self.prompt(name)) for name in PROMPT_NAMES)
        return tuple((name, text) for name, text in texts if text != read_prompt(name))

    def prompt(self, name: str) -> str:
        """The text of a prompt."""
        return str(getattr(self, f"{name}_prompt"))

    @property
    def method(self) -> JudgeMethod:
        """How the judge judges: `judge_method`, or its default for the judge's model."""
        return self.judge_method or ("logodds" if "local" in self.jurors else "verdict")


@cache
def _schema() -> dict[str, Any]:
    return super(Context, Context).model_json_schema()
