"""Every setting of a run: from the command line, the environment, a TOML file, or its default.

The command line wins over the environment (`REFLOOM_*`), that over `--config`, that over a preset,
that over defaults.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from hashlib import sha256
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from memory.weights import DEFAULT_MODEL
from nodes.context import Context, FeedbackArm, JudgeMethod, Pipeline, Review, default_model

# MERGED refloom~checks
# What a setting's value has to be, beyond its type; each check raises for pydantic to tell.
PRESETS = ("quick", "thorough", "refed")
# What a row of a reference or seed may be read from, under whatever name a file has for it.
COLUMNS = (
    *("instruction", "input", "response", "output", "messages", "conversations"),
    *("id", "source", "license", "tags"),
)

# What may differ when a run is taken up again; anything else would make other rows.
MAY_DIFFER = frozenset(
    {
        *("concurrency", "rpm", "tpm", "timeout", "max_cost", "max_tokens", "prices"),
        *("engine", "workers", "ray_address"),
        *("max_failure_rate", "target", "limit", "quiet"),
        *("memory", "reuse", "preset"),
    }
)

# The settings that the commands which ask a judge take.
ASKING = (
    *("judge_model", "judge_method", "base_url", "judge_base_url", "concurrency", "rpm", "tpm"),
    *("timeout", "max_cost", "max_tokens", "prices", "random_seed", "quiet"),
)

_SECRET = re.compile("key|token|secret|passw|auth|credential|cookie", re.IGNORECASE)


def without_secrets(value: Any) -> Any:
    """The value, with what is no number hidden where it stands under the name of a secret.

    >>> without_secrets({"extra_body": {"api_keys": ["sk-1"], "top_k": 5, "max_tokens": 9}})
    {'extra_body': {'api_keys': '(hidden)', 'top_k': 5, 'max_tokens': 9}}
    """
    if isinstance(value, list):
        return [without_secrets(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        name: "(hidden)"
        if isinstance(part, str | list | dict) and _SECRET.search(name)
        else without_secrets(part)
        for name, part in value.items()
    }


def not_blank(text: str | None) -> str | None:
    """A text that says something."""
    if text is not None and not text.strip():
        raise PydanticCustomError("blank", "it is blank")
    return text


def address(url: str | None) -> str | None:
    """An address of a server, without a slash at its end."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good or not url.isprintable() or " " in url:
        raise PydanticCustomError("address", "give an address such as http://127.0.0.1:8000/v1")
    return url.rstrip("/")


def known_preset(name: str | None) -> str | None:
    """The name of a preset there is."""
    if name is not None and name not in PRESETS:
        raise PydanticCustomError("preset", f"there is none of this name; there are {PRESETS}")
    return name


def columns(given: Any) -> Any:
    """Names of columns by what they hold, from text such as `instruction=question,response=a`."""
    if isinstance(given, str):
        pairs = [part.partition("=")[::2] for part in given.split(",") if part.strip()]
        given = {name.strip(): column.strip() for name, column in pairs}
        if len(given) < len(pairs):
            raise PydanticCustomError("columns", "it names something twice")
    if isinstance(given, dict):
        if {"response", "output"} <= given.keys():
            raise PydanticCustomError("columns", "response and output are one thing; map one")
        for name, column in given.items():
            if name not in COLUMNS:
                raise PydanticCustomError(
                    "columns",
                    "{name} cannot be mapped; give instruction=COLUMN,response=COLUMN of {known}",
                    {"name": repr(name), "known": ", ".join(COLUMNS)},
                )
            if not column:
                raise PydanticCustomError(
                    "columns", "{name} is given no column", {"name": repr(name)}
                )
    return given


# MERGED refloom~stages
# How the calls of one stage are made, where it should not be the default way.
StageName = Literal["extract", "propose", "generate", "critique", "refine", "feedback", "compare"]


class StageSettings(BaseModel):
    """How the calls of one stage are made, where it should not be the default way."""

    model_config = ConfigDict(extra="forbid")

    temperature: float | None = Field(None, ge=0, le=2)
    max_tokens: int | None = Field(None, ge=1)
    extra_body: dict[str, Any] = Field(default_factory=dict)


WINDOW = 64
_USER_INFO = re.compile(r"//[^/@]*@")
Address = Annotated[str | None, AfterValidator(address)]
# Text in the environment and on the command line, a table in a TOML file.
Columns = Annotated[dict[str, str], NoDecode, BeforeValidator(columns)]


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
    base_url: Address = Field(
        default_factory=lambda: os.environ.get("OPENAI_BASE_URL") or None,
        description="the endpoint's address (default: OPENAI_BASE_URL)",
    )
    judge_base_url: Address = Field(None, description="the judge's own endpoint")
    map: Columns = Field(
        default_factory=dict,
        description="columns of the references by what they hold: instruction=question,response=a",
    )
    seeds_map: Columns = Field(
        default_factory=dict, description="the same for the columns of the seeds"
    )
    turns: Literal["first", "all"] = Field(
        "first",
        description="of rows of several turns: first takes the first exchange as the reference; "
        "all takes every one, with what was said before it",
    )
    license: Annotated[str | None, AfterValidator(not_blank)] = Field(
        None, description="the licence of all references, whatever their rows say"
    )
    memory: Path | None = Field(
        None, description="where index and characteristics are kept (default: inside --out)"
    )
    reuse: Path | None = Field(
        None,
        description="another run's or experiment's directory: what it paid for is not paid again",
    )
    target: int | None = Field(None, ge=1, description="stop at exactly this many accepted rows")
    limit: int | None = Field(None, ge=1, description="use only the first LIMIT seeds")
    per_seed: int = Field(1, ge=1, le=50, description="new instructions a seed")
    answer_seeds: bool = Field(False, description="answer the seeds themselves, propose nothing")
    references_per_seed: int = Field(3, ge=1, le=20, description="references a seed")
    reference_quota: float = Field(
        4,
        ge=1,
        allow_inf_nan=False,
        description="how many times as often as the mean a reference is retrieved at most",
    )
    max_attempts: int = Field(3, ge=1, le=10, description="candidates an instruction at most")
    max_criteria: int = Field(6, ge=0, le=30, description="criteria from references at most")
    judge_votes: int = Field(
        1, ge=1, le=9, description="times to ask about a verdict that alone fails a response"
    )
    should_share: float = Field(
        0.5, ge=0, le=1, description="share of judged 'should' criteria that has to pass"
    )
    try_criteria: bool = Field(
        True, description="try each criterion on its own reference and on spoiled responses"
    )
    novelty_threshold: float = Field(
        0.7, gt=0, le=1, description="ROUGE-L F1 over which an instruction is a duplicate"
    )
    benchmark: tuple[str, ...] = Field(
        (), description="files of benchmark prompts; rows that hold one are rejected"
    )
    feedback: FeedbackArm = Field(
        "reference",
        description="what a draft is refined by: reference, sample, none, generic, swapped",
    )
    pipeline: Pipeline = Field(
        "loop", description="loop, or refed: as the paper's authors ran it, one refinement"
    )
    paired: bool = Field(
        False, description="make the instructions and drafts that every feedback arm would make"
    )
    review: Review = Field(
        "never",
        description="which samples wait for a person: never, rejected, borderline, all "
        "(`refloom review DIR` shows them)",
    )
    concurrency: int | None = Field(
        None, ge=1, le=1024, description="calls in flight (default: 16, embedded model: 1)"
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="local: this process; ray: workers on this machine or a Ray cluster"
    )
    workers: int | None = Field(
        None, ge=1, le=1024, description="workers of --engine ray (default: one a processor)"
    )
    ray_address: str | None = Field(
        None, description="the Ray cluster to join, HOST:PORT (default: begin one on this machine)"
    )
    rpm: int | None = Field(None, ge=1, description="calls a minute at most, to each model")
    tpm: int | None = Field(None, ge=1, description="tokens a minute at most, to each model")
    timeout: float = Field(
        600,
        gt=0,
        allow_inf_nan=False,
        description="seconds a call may take at most (ended sooner, and made again, when it takes "
        "ten times as long as others of its kind)",
    )
    max_cost: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="US dollars the run may cost in all"
    )
    max_tokens: int | None = Field(None, ge=1, description="tokens the run may use in all")
    prices: Path | None = Field(
        None, description="a TOML file of prices, over the bundled ones (see docs/run.md)"
    )
    max_failure_rate: float = Field(
        0.5, ge=0, le=1, description="stop when more than this share of 20 or more samples failed"
    )
    max_candidates: int | None = Field(
        None, ge=1, description="stop after so many candidates (default with --target: 10 times it)"
    )
    random_seed: int = Field(0, ge=0, le=2**53 - 1, description="fixes every draw")
    preset: Annotated[str | None, AfterValidator(known_preset)] = Field(
        None, description=f"settings that go together: {', '.join(PRESETS)}"
    )
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
        """Put the TOML files that `load` names after the environment."""
        toml: Any = cls.model_config.get("toml_file") or ()
        files = (TomlConfigSettingsSource(settings_cls, path) for path in toml)
        return (init_settings, env_settings, *files)

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
    def at_work(self) -> int:
        """How many workers a run on Ray has."""
        return self.workers or os.cpu_count() or 1

    def seeds_at_once(self, wanted: int | None) -> int:
        """How many seeds may be under way when so many more rows are wanted (None: of all seeds).

        One call at a time means one seed at a time: rows come early, and the endpoint's prefix
        cache keeps what the next call wants. Towards the end of a target twice as many seeds as
        rows are wanted, since some rows are rejected.
        """
        most = 1 if self.calls_at_once == 1 else max(WINDOW, 2 * self.calls_at_once)
        return most if wanted is None else min(most, max(2, 2 * -(-wanted // self.per_seed)))

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
        return {k: v for k, v in self.shown().items() if k not in MAY_DIFFER}

    def shown(self) -> dict[str, Any]:
        """The settings as they may be kept and shown, without passwords and keys."""
        said: dict[str, Any] = without_secrets(self.model_dump(mode="json"))
        for name in ("base_url", "judge_base_url"):
            if said[name]:
                said[name] = _USER_INFO.sub("//", said[name])
        return said


def embedded(model: str) -> bool:
    """Whether a model name means a model inside this process."""
    return model == "local" or model.endswith(".gguf")


# MERGED refloom~loading
# Settings from everywhere they can come from, each source behind the one before it.
# Read elsewhere: the index of the graph, the keys of the server.
OTHER_VARIABLES = {"REFLOOM_INDEX", "REFLOOM_API_KEYS", "REFLOOM_OFFLINE"}


def load(given: dict[str, Any], config: Path | None = None) -> Settings:
    """The settings from what was given on the command line and, behind it, a TOML file and preset.

    Raises `pydantic.ValidationError` on a wrong value or unknown key or preset, `SettingsError` on
    an odd variable, `OSError` or `tomllib.TOMLDecodeError` when the file cannot be read.
    """
    _check_environment()
    behind: list[Path] = []
    if config is not None:
        try:
            behind.append(config)
            named = tomllib.loads(config.read_text(encoding="utf-8")).get("preset")
        except UnicodeDecodeError as error:
            raise tomllib.TOMLDecodeError(f"{config}: is no UTF-8 text ({error.reason})") from error
        except tomllib.TOMLDecodeError as error:
            raise tomllib.TOMLDecodeError(f"{config}: is no TOML ({error})") from error
    else:
        named = None
    preset = given.get("preset") or os.environ.get("REFLOOM_PRESET") or named
    with as_file(files("refloom").joinpath("resources/presets")) as folder:
        if preset in PRESETS:
            behind.append(folder / f"{preset}.toml")

        class Layered(Settings):
            # None and not an empty list, of which pydantic-settings warns.
            model_config = SettingsConfigDict(toml_file=behind or None)

        settings = Settings.model_validate(Layered(**given).model_dump())
    # Checks what only the graph knows of: settings that exclude each other.
    settings.context()
    return settings


def _check_environment() -> None:
    """Refuse a misspelt variable, which would be passed over in silence."""
    known = {f"REFLOOM_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    unknown = [n for n in os.environ if n.startswith("REFLOOM_") and n.upper() not in known]
    if unknown:
        raise SettingsError(
            f"{unknown[0]}: there is no such setting; `refloom run --help` lists them"
        )
