"""How the calls of one stage are made, where it should not be the default way."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

StageName = Literal["extract", "propose", "generate", "critique", "refine", "feedback", "compare"]


class StageSettings(BaseModel):
    """How the calls of one stage are made, where it should not be the default way."""

    model_config = ConfigDict(extra="forbid")

    temperature: float | None = Field(None, ge=0, le=2)
    max_tokens: int | None = Field(None, ge=1)
    extra_body: dict[str, Any] = Field(default_factory=dict)
