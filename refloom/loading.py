"""Settings from everywhere they can come from, each source behind the one before it."""

from __future__ import annotations

import os
import tomllib
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from pydantic_settings import SettingsConfigDict, SettingsError

from refloom.checks import PRESETS
from refloom.settings import Settings

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
    with as_file(files("refloom.presets")) as folder:
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
