"""Every setting of a run: from the command line, the environment, a TOML file, or its default.

The command line wins over the environment (`REFLOOM_*`), that over `--config`, that over defaults.
"""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from memory.weights import DEFAULT_MODEL
from nodes.context import Context, Feedback, JudgeMethod, default_model

_USER_INFO = re.compile(r"//[^/@]*@")
StageName = Literal["extract", "propose", "generate", "critique", "refine", "feedback", "compare"]

# What may differ when a run is taken up again; anything else would make other rows.
MAY_DIFFER = frozenset({"concurrency", "target", "limit", "quiet"})


class StageSettings(BaseModel):
    """How the calls of one stage are made, where it should not be the default way."""

    model_config = ConfigDict(extra="forbid")

    temperature: float | None = Field(None, ge=0, le=2)
    max_tokens: int | None = Field(None, ge=1)
    extra_body: dict[str, Any] = Field(default_factory=dict)


class Settings(BaseSettings):
    """The settings of a run. Each field is a flag of `refloom run` and a key of `--config`."""

    model_config = SettingsConfigDict(
        env_prefix="REFLOOM_",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    model: str = Field(
        default_factory=default_model,
        min_length=1,
        description="what the endpoint calls the writing model; 'local' is the embedded one; "
        "a path ending in .gguf runs that file",
    )
    judge_model: str | None = Field(None, description="the model that judges (default: --model)")
    judge_method: JudgeMethod | None = Field(
        None, description="verdict or logodds (default: logodds for an embedded model)"
    )
    embedding_model: str = Field(
        DEFAULT_MODEL, description="sentence-transformers model, by name or path"
    )
    base_url: str | None = Field(
        None, description="the endpoint's address (default: OPENAI_BASE_URL)"
    )
    judge_base_url: str | None = Field(None, description="the judge's own endpoint")
    memory: Path | None = Field(
        None, description="where index and characteristics are kept (default: inside --out)"
    )
    target: int | None = Field(None, ge=1, description="stop at exactly this many accepted rows")
    limit: int | None = Field(None, ge=1, description="use only the first LIMIT seeds")
    per_seed: int = Field(1, ge=1, le=50, description="new instructions a seed")
    answer_seeds: bool = Field(False, description="answer the seeds themselves, propose nothing")
    references_per_seed: int = Field(3, ge=1, le=20, description="references a seed")
    max_attempts: int = Field(3, ge=1, le=10, description="candidates an instruction at most")
    max_criteria: int = Field(6, ge=0, le=30, description="criteria from references at most")
    should_share: float = Field(
        0.5, ge=0, le=1, description="share of judged 'should' criteria that has to pass"
    )
    try_criteria: bool = Field(
        True, description="try each criterion on its own reference and on spoiled responses"
    )
    novelty_threshold: float = Field(
        0.7, gt=0, le=1, description="ROUGE-L F1 over which an instruction is a duplicate"
    )
    feedback: Feedback = Field(
        "reference", description="where the criteria come from: reference, generic, none"
    )
    concurrency: int | None = Field(
        None, ge=1, le=1024, description="calls in flight (default: 16, embedded model: 1)"
    )
    max_candidates: int | None = Field(
        None, ge=1, description="stop after so many candidates (default with --target: 10 times it)"
    )
    random_seed: int = Field(0, ge=0, description="fixes every draw")
    quiet: bool = Field(False, description="say nothing on stderr but errors")
    stages: dict[StageName, StageSettings] = Field(
        default_factory=dict,
        description="temperature, max_tokens and extra_body by stage (config file only)",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the TOML file that `load` names after the environment."""
        toml = TomlConfigSettingsSource(settings_cls) if cls.model_config.get("toml_file") else None
        sources = (init_settings, env_settings)
        return (*sources, toml) if toml else sources

    @property
    def judge(self) -> str:
        """The model that judges."""
        return self.judge_model or self.model

    @property
    def calls_at_once(self) -> int:
        """How many calls may be in flight; an embedded model gains nothing by more than one."""
        local = embedded(self.model) and embedded(self.judge)
        return self.concurrency or (1 if local else 16)

    @property
    def most_candidates(self) -> int | None:
        """After how many candidates to stop, so that a judge nothing pleases ends the run too."""
        return self.max_candidates or (10 * self.target if self.target else None)

    def context(self) -> Context:
        """The part of the settings that the graph reads."""
        named = {k: getattr(self, k) for k in Context.model_fields if k in type(self).model_fields}
        named["judge_method"] = self.judge_method or (
            "logodds" if embedded(self.judge) else "verdict"
        )
        return Context.model_validate(named)

    def fingerprint(self) -> str:
        """A hash of the settings that make the rows what they are."""
        return sha256(json.dumps(self.rows_rest_on(), sort_keys=True).encode()).hexdigest()[:16]

    def rows_rest_on(self) -> dict[str, Any]:
        """The settings that may not differ when a run is taken up again."""
        return {k: v for k, v in self.shown().items() if k not in MAY_DIFFER | {"memory"}}

    def shown(self) -> dict[str, Any]:
        """The settings as they may be kept and shown: no password of an address is in them."""
        said = self.model_dump(mode="json")
        for name in ("base_url", "judge_base_url"):
            if said[name]:
                said[name] = _USER_INFO.sub("//", said[name])
        return said


def embedded(model: str) -> bool:
    """Whether a model name means a model inside this process."""
    return model == "local" or model.endswith(".gguf")


def load(given: dict[str, Any], config: Path | None = None) -> Settings:
    """The settings from what was given on the command line and, behind it, a TOML file.

    Raises `pydantic.ValidationError` on a wrong value or unknown key, `OSError` or
    `tomllib.TOMLDecodeError` when the file cannot be read.
    """
    if config is None:
        return Settings(**given)
    config.read_bytes()

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    return Settings.model_validate(FromFile(**given).model_dump())
