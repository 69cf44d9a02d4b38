"""The settings of a run that the graph itself reads; Studio shows them as a form."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Feedback = Literal["reference", "generic", "none"]
JudgeMethod = Literal["verdict", "logodds"]


def default_model() -> str:
    """The embedded model, unless the environment names an endpoint."""
    named = os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY")
    return "gpt-4o-mini" if named else "local"


def _at(*nodes: str) -> dict[str, Any]:
    """Tell Studio which nodes a setting belongs to."""
    return {"langgraph_nodes": list(nodes)}


class Context(BaseModel):
    """The settings of a run. They hold no path, URL or key: a client of a server may set them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        title="Model",
        description="What the endpoint calls the writing model; 'local' is the embedded one.",
        default_factory=default_model,
        min_length=1,
        json_schema_extra=_at("extract", "propose", "sample"),
    )
    judge_model: str | None = Field(
        default=None,
        title="Judge model",
        description="The model that judges; the writing model when empty.",
        json_schema_extra=_at("extract", "sample"),
    )
    judge_method: JudgeMethod | None = Field(
        default=None,
        title="Judge method",
        description=(
            "verdict: the judge writes reason, evidence, verdict. logodds: one yes/no token a "
            "criterion. Empty: logodds for the embedded model, verdict for any other."
        ),
        json_schema_extra=_at("extract", "sample"),
    )
    references_per_seed: int = Field(
        default=3,
        title="References a seed",
        description="How many references are retrieved for a seed.",
        ge=1,
        le=20,
        json_schema_extra=_at("retrieve"),
    )
    per_seed: int = Field(
        default=1,
        title="Instructions a seed",
        description="How many new instructions are proposed for a seed.",
        ge=1,
        le=50,
        json_schema_extra=_at("propose"),
    )
    answer_seeds: bool = Field(
        default=False,
        title="Answer seeds",
        description="Take each seed's instruction as it is and make only the response.",
        json_schema_extra=_at("propose"),
    )
    max_attempts: int = Field(
        default=3,
        title="Attempts",
        description="How many candidates are made for an instruction at most.",
        ge=1,
        le=10,
        json_schema_extra=_at("sample"),
    )
    max_criteria: int = Field(
        default=6,
        title="Criteria",
        description="How many criteria drawn from references a response is judged by at most.",
        ge=0,
        le=30,
        json_schema_extra=_at("extract"),
    )
    should_share: float = Field(
        default=0.5,
        title="Share of 'should' criteria",
        description="What share of the judged criteria that are no 'must' has to pass too "
        "(written verdicts only; by log-odds they rank).",
        ge=0,
        le=1,
        json_schema_extra=_at("sample"),
    )
    try_criteria: bool = Field(
        default=True,
        title="Try criteria",
        description="Try each criterion on its own reference and on spoiled responses first.",
        json_schema_extra=_at("extract"),
    )
    novelty_threshold: float = Field(
        default=0.7,
        title="Novelty threshold",
        description="An instruction whose ROUGE-L F1 with another is over this is dropped.",
        gt=0,
        le=1,
        json_schema_extra=_at("propose"),
    )
    feedback: Feedback = Field(
        default="reference",
        title="Feedback arm",
        description=(
            "Where criteria come from: reference (the method), generic (one fixed "
            "checklist), none (draft only, no judge)."
        ),
        json_schema_extra=_at("extract", "sample"),
    )
    random_seed: int = Field(
        default=0,
        title="Random seed",
        description="Fixes every draw; the same answers give the same rows.",
        ge=0,
        json_schema_extra=_at("propose", "sample"),
    )

    @property
    def judge(self) -> str:
        """The model that judges."""
        return self.judge_model or self.model

    @property
    def method(self) -> JudgeMethod:
        """How the judge judges."""
        return self.judge_method or ("logodds" if self.judge == "local" else "verdict")
