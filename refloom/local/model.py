"""The embedded model as an endpoint: llama.cpp's OpenAI-compatible server inside this process.

xllamacpp brings it as a wheel. It listens on loopback only, on a free port, and wants a random key
that never leaves the process.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nodes.llm import ProviderStopped
from nodes.llm.endpoint import Endpoint
from refloom.local.pull import MODELS, pull

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
