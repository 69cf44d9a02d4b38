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
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
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
from nodes.context import (
    Context,
    ContextOptions,
    JudgeMethod,
    default_model,
    is_embedded,
    split_jurors,
)
from nodes.llm import MIN_ANSWER_TOKENS
from refloom.errors import InputError

PRESETS = ("quick", "thorough", "refed")
# The fields of a reference or seed that --map and --seeds-map can point at a column.
COLUMNS = (
    *("instruction", "input", "response", "output", "messages", "conversations"),
    *("context", "system", "history", "id", "source", "license", "tags"),
)

# Settings that may change when a run resumes. A change of any other would change the rows.
MAY_DIFFER = frozenset(
    {
        *("concurrency", "rpm", "tpm", "timeout", "max_cost", "max_tokens", "prices"),
        "service_tier",
        *("engine", "workers", "ray_address"),
        *("max_failure_rate", "target", "limit", "quiet", "retry_failed"),
        # Its content may not differ.
        "criteria",
        # It permits, and changes nothing.
        "run_code",
        *("memory", "reuse", "preset"),
    }
)

# The settings of the commands that only ask a judge.
JUDGE_SETTINGS = (
    *("judge_model", "judge_method", "base_url", "judge_base_url", "concurrency", "rpm", "tpm"),
    *("timeout", "service_tier", "max_cost", "max_tokens", "prices", "random_seed", "quiet"),
)

# The service tier of a call whose answer names none, and the one with prices of its own.
DEFAULT_TIER, FLEX_TIER = "default", "flex"
# Seconds that a call may take in them unless --timeout says otherwise.
TIMEOUT_S = {DEFAULT_TIER: 600.0, FLEX_TIER: 900.0}

_SECRET = re.compile("key|token|secret|passw|auth|credential|cookie", re.IGNORECASE)


def without_secrets(value: Any) -> Any:
    """Return the value with everything under a secret-looking name hidden, except numbers.

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


def check_not_blank(text: str | None) -> str | None:
    """Return the text. Raises `PydanticCustomError` when it is blank."""
    if text is not None and not text.strip():
        raise PydanticCustomError("blank", "it is blank")
    return text


def check_url(url: str | None) -> str | None:
    """Return a server's URL without a trailing slash. Raises `PydanticCustomError`."""
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


def check_preset(name: str | None) -> str | None:
    """Return the name of a preset. Raises `PydanticCustomError` for an unknown one."""
    if name is not None and name not in PRESETS:
        raise PydanticCustomError("preset", f"no such preset; choose one of {', '.join(PRESETS)}")
    return name


def parse_columns(value: Any) -> Any:
    """Map fields to column names, from text such as `instruction=question,response=a` or a dict."""
    if isinstance(value, str):
        pairs = [part.partition("=")[::2] for part in value.split(",") if part.strip()]
        value = {name.strip(): column.strip() for name, column in pairs}
        if len(value) < len(pairs):
            raise PydanticCustomError("columns", "a field is mapped twice")
    if isinstance(value, dict):
        if {"response", "output"} <= value.keys():
            raise PydanticCustomError("columns", "response and output mean the same; map only one")
        for name, column in value.items():
            if name not in COLUMNS:
                raise PydanticCustomError(
                    "columns",
                    "{name} cannot be mapped; the fields are {known}",
                    {"name": repr(name), "known": ", ".join(COLUMNS)},
                )
            if not column:
                raise PydanticCustomError("columns", "{name} has no column", {"name": repr(name)})
    return value


StageName = Literal[
    "extract", "propose", "screen", "generate", "critique", "refine", "answer", "feedback",
    "compare",
]  # fmt: skip


class StageSettings(BaseModel):
    """How the calls of one stage are made. What is not set keeps its default."""

    model_config = ConfigDict(extra="forbid")

    temperature: float | None = Field(None, ge=0, le=2)
    max_tokens: int | None = Field(None, ge=1)
    extra_body: dict[str, Any] = Field(default_factory=dict)


def parse_stage_tokens(value: Any) -> Any:
    """Map stages to tokens, from `generate=8000,refine=9000`, a list of such texts, or a dict."""
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, list | tuple):
        pairs = [part.partition("=")[::2] for text in value for part in text.split(",") if part]
        value = {name.strip(): tokens.strip() for name, tokens in pairs}
        if len(value) < len(pairs):
            raise PydanticCustomError("stages", "a stage is set twice")
    if isinstance(value, dict):
        for name, tokens in value.items():
            if name not in get_args(StageName):
                raise PydanticCustomError(
                    "stages",
                    "{name} is no stage; give STAGE=N with one of {known}",
                    {"name": repr(name), "known": ", ".join(get_args(StageName))},
                )
            if isinstance(tokens, str) and not tokens.isdecimal():
                raise PydanticCustomError(
                    "stages", "{name} has no number of tokens; give STAGE=N", {"name": repr(name)}
                )
    return value


# Seeds in flight at least, unless there is one call at a time.
SEED_WINDOW = 64
_USER_INFO = re.compile(r"//[^/@]*@")
Address = Annotated[str | None, AfterValidator(check_url)]
StageTokens = Annotated[
    dict[StageName, Annotated[int, Field(ge=1)]], NoDecode, BeforeValidator(parse_stage_tokens)
]
# Text in the environment and on the command line, a table in a TOML file.
Columns = Annotated[dict[str, str], NoDecode, BeforeValidator(parse_columns)]


class Settings(ContextOptions, BaseSettings):
    """The settings of a run. Each field is a flag of `refloom run` and a key of `--config`."""

    model_config = SettingsConfigDict(
        env_prefix="REFLOOM_",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
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
    license: Annotated[str | None, AfterValidator(check_not_blank)] = Field(
        None, description="the licence of all references, whatever their rows say"
    )
    criteria: Path | None = Field(
        None,
        description="a file of your own criteria, .toml or .jsonl, that rows are held to (see "
        "docs/criteria.md)",
    )
    run_code: bool = Field(
        False,
        description="let the check python_tests run what a model wrote, in a process that is shut "
        "in (Linux)",
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
    reference_quota: float = Field(
        4,
        ge=1,
        allow_inf_nan=False,
        description="how many times as often as the mean a reference is retrieved at most",
    )
    benchmark: tuple[str, ...] = Field(
        (), description="files of benchmark prompts; rows that hold one are rejected"
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
    timeout: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="seconds a call may take at most (default: 600, and 900 in tier flex; in other "
        "tiers ended sooner, and made again, when it takes ten times as long as others of its "
        "kind)",
    )
    service_tier: Literal["default", "flex", "flex,default"] = Field(
        "default",
        description="flex: about half the price, slower, and waits while the endpoint has no "
        "resources for it; flex,default: such a call is made at the full price (OpenAI, Gemini)",
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
    retry_failed: bool = Field(
        True,
        description="try failed samples again when the same command goes on with a run that has "
        "ended",
    )
    max_candidates: int | None = Field(
        None, ge=1, description="stop after so many candidates (default with --target: 10 times it)"
    )
    preset: Annotated[str | None, AfterValidator(check_preset)] = Field(
        None, description=f"settings that go together: {', '.join(PRESETS)}"
    )
    quiet: bool = Field(False, description="say nothing on stderr but errors")
    max_tokens_per_call: StageTokens = Field(
        default_factory=dict,
        description="tokens an answer of a stage may have, thoughts among them: generate=8000 .. "
        "(default: what the stage needs, and more for a model that is seen to think)",
    )
    stages: dict[StageName, StageSettings] = Field(
        default_factory=dict,
        description="temperature, max_tokens and extra_body by stage (config file only)",
    )

    @model_validator(mode="after")
    def _check_room_of_answers(self) -> Self:
        tokens = self.stage_settings().get("answer", StageSettings()).max_tokens
        if tokens is not None and tokens < MIN_ANSWER_TOKENS:
            raise PydanticCustomError(
                "stages",
                "stage answer needs room for thoughts and answer: at least {least} tokens",
                {"least": MIN_ANSWER_TOKENS},
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the TOML files that `load_settings` names after the environment."""
        toml: Any = cls.model_config.get("toml_file") or ()
        files = (TomlConfigSettingsSource(settings_cls, path) for path in toml)
        return (init_settings, env_settings, *files)

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are called, each once: the writer, and the judge or the jurors."""
        return tuple(dict.fromkeys((self.model, *self.jurors)))

    @property
    def max_in_flight(self) -> int:
        """Calls in flight at most. An embedded model gains nothing from more than one."""
        local = all(map(is_embedded, self.models))
        return self.concurrency or (1 if local else 16)

    @property
    def service_tiers(self) -> tuple[str, ...]:
        """The service tiers that calls may be made in, the preferred one first."""
        return tuple(self.service_tier.split(","))

    @property
    def call_timeout(self) -> float:
        """Seconds that a call may take at most."""
        return self.timeout or max(TIMEOUT_S[tier] for tier in self.service_tiers)

    @property
    def worker_count(self) -> int:
        """The number of workers of a run on Ray."""
        return self.workers or os.cpu_count() or 1

    def seeds_in_flight(self, missing: int | None) -> int:
        """How many seeds to work on at once when `missing` rows remain; None without a target.

        With one call at a time there is one seed at a time: rows arrive early, and the endpoint's
        prefix cache still holds what the next call needs. Near the end of a target there are twice
        as many seeds as missing rows, since some rows are rejected.
        """
        limit = 1 if self.max_in_flight == 1 else max(SEED_WINDOW, 2 * self.max_in_flight)
        return limit if missing is None else min(limit, max(2, 2 * -(-missing // self.per_seed)))

    @property
    def candidate_limit(self) -> int | None:
        """Candidates at most, so that a run whose judge rejects everything ends too."""
        return self.max_candidates or (10 * self.target if self.target else None)

    def stage_settings(self) -> dict[StageName, StageSettings]:
        """Return how the calls of each stage are made."""
        stages = dict(self.stages)
        for name, tokens in self.max_tokens_per_call.items():
            stage = stages.get(name, StageSettings())
            stages[name] = stage.model_copy(update={"max_tokens": tokens})
        return stages

    def context(self) -> Context:
        """Return the settings that the graph reads."""
        options = {name: getattr(self, name) for name in ContextOptions.model_fields}
        options["judge_method"] = self.judge_method or default_judge_method(self.judge_names)
        return Context.model_validate(options)

    def fingerprint(self, criteria: str = "") -> str:
        """Return a hash of the settings that decide the rows, and of the content of `criteria`."""
        values = self.row_settings() | ({"criteria": criteria} if criteria else {})
        if not self.reasoning:
            # Without it the rows, and so the hash, are those of versions that had no such setting.
            del values["reasoning"]
        return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def row_settings(self) -> dict[str, Any]:
        """Return the settings that must stay the same when a run resumes."""
        return {k: v for k, v in self.redacted().items() if k not in MAY_DIFFER}

    def redacted(self) -> dict[str, Any]:
        """Return the settings as they are stored and printed, without passwords and keys."""
        values: dict[str, Any] = without_secrets(self.model_dump(mode="json"))
        for name in ("base_url", "judge_base_url"):
            if values[name]:
                values[name] = hide_user_info(values[name])
        return values


def default_judge_method(judge: str) -> JudgeMethod:
    """Return how a model, or a jury, judges unless a setting says otherwise."""
    return "logodds" if any(map(is_embedded, split_jurors(judge))) else "verdict"


# Variables that are not settings of a run but are read elsewhere.
OTHER_VARIABLES = {
    *("REFLOOM_INDEX", "REFLOOM_API_KEYS", "REFLOOM_OFFLINE", "REFLOOM_PROVIDERS"),
    *("REFLOOM_ORIGINS", "REFLOOM_MCP"),
}


def load_settings(
    flags: dict[str, Any],
    config: Path | None = None,
    *,
    calls: Literal["nothing", "judge", "all"] = "nothing",
) -> Settings:
    """Return the settings from flags, the environment, a TOML file, and a preset, in that order.

    `calls` says which models will be called, so that none of them is guessed from a key alone.

    Raises `pydantic.ValidationError` on a wrong value, an unknown key or preset, `SettingsError` on
    an unknown variable, `InputError` on a key without a model's name, `OSError` or
    `tomllib.TOMLDecodeError` when the file cannot be read.
    """
    _check_environment()
    toml_files: list[Path] = []
    if config is not None:
        try:
            toml_files.append(config)
            named = tomllib.loads(config.read_text(encoding="utf-8")).get("preset")
        except UnicodeDecodeError as error:
            raise tomllib.TOMLDecodeError(f"{config}: not UTF-8 text ({error.reason})") from error
        except tomllib.TOMLDecodeError as error:
            raise tomllib.TOMLDecodeError(f"{config}: not TOML ({error})") from error
    else:
        named = None
    preset = flags.get("preset") or os.environ.get("REFLOOM_PRESET") or named
    with as_file(files("refloom").joinpath("resources/presets")) as folder:
        if preset in PRESETS:
            toml_files.append(folder / f"{preset}.toml")

        class Layered(Settings):
            # pydantic-settings warns about an empty list.
            model_config = SettingsConfigDict(toml_file=toml_files or None)

        layered = Layered(**flags)
        named = {"model", "judge_model"} if calls == "judge" else {"model"}
        if calls != "nothing" and not named & layered.model_fields_set:
            _check_default_model(layered)
        return Settings.model_validate(layered.model_dump())


def _check_default_model(settings: Settings) -> None:
    """Refuse to guess a model from a key or an address: it would cost, or leave them unused."""
    if os.environ.get("OPENAI_API_KEY") and settings.base_url is None:
        raise InputError(
            "OPENAI_API_KEY is set, and no model is named. Give --model gpt-4o-mini, or another "
            "of OpenAI's, which costs; or --model local, the embedded one, which is free"
        )
    if settings.base_url is not None and is_embedded(default_model()):
        raise InputError(
            "an endpoint is given, and no model of it is named: the embedded one would be asked "
            "instead. Give --model NAME, as the endpoint calls it, or leave the endpoint out"
        )


def _check_environment() -> None:
    """Refuse an unknown `REFLOOM_` variable, which would otherwise be ignored silently."""
    known = {f"REFLOOM_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    unknown = [n for n in os.environ if n.startswith("REFLOOM_") and n.upper() not in known]
    if unknown:
        raise SettingsError(f"{unknown[0]}: no such setting; `refloom run --help` lists them")


def hide_user_info(text: str) -> str:
    """Take names and passwords out of the addresses in a text.

    >>> hide_user_info("https://me:secret@hub.example/api cannot be reached")
    'https://hub.example/api cannot be reached'
    """
    return _USER_INFO.sub("//", text)
