"""The mock endpoint that a benchmark asks: one that is there, a program, or the Python one here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PYTHON_MOCK = Path(__file__).with_name("mock_endpoint.py")
KINDS = {
    "given": "an endpoint that was given",
    "program": "a mock program of its own",
    "python": "the Python mock of benchmarks/, which takes its part of the machine",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the endpoint is, without `/v1`, and which of `KINDS` it is."""

    root: str
    kind: str

    @property
    def url(self) -> str:
        """The address that a client of it is given."""
        return f"{self.root}/v1"

    def reset(self, latency_ms: int) -> None:
        """Set its latency and zero its counters; ends the program where it knows no such thing."""
        try:
            address = f"{self.root}/reset?latency_ms={latency_ms}"
            urllib.request.urlopen(address, timeout=10).close()
        except OSError as error:
            sys.exit(f"{self.root}: cannot be told its latency (/reset?latency_ms=): {error}")


@contextmanager
def started(
    mock: Path | None = None, endpoint: str | None = None, flags: Sequence[str] = ()
) -> Iterator[Endpoint]:
    """The endpoint at an address, or a process that is ended afterwards.

    `mock` is a program that takes PORT and LATENCY_MS from the environment; with neither, the
    Python mock is started, with `flags` of its own.
    """
    if endpoint and not mock:
        yield Endpoint(endpoint.rstrip("/").removesuffix("/v1"), "given")
        return
    if mock:
        process, root = _program(mock)
    else:
        process, root = _python(flags)
    try:
        yield Endpoint(root, "program" if mock else "python")
    finally:
        process.terminate()
        process.wait()


def _program(mock: Path) -> tuple[subprocess.Popen[str], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = os.environ | {"PORT": str(port), "LATENCY_MS": "0"}
    process = subprocess.Popen([mock], env=settings, stderr=subprocess.DEVNULL, text=True)
    root = f"http://127.0.0.1:{port}"
    for _ in range(100):
        try:
            urllib.request.urlopen(f"{root}/v1/models", timeout=5).close()
            return process, root
        except urllib.error.URLError:
            time.sleep(0.1)
    process.kill()
    sys.exit(f"{mock.name}: does not listen on the port it was given by PORT")


def _python(flags: Sequence[str]) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, str(PYTHON_MOCK), "--latency-ms", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.readline().split()
    if not said:
        sys.exit(f"{PYTHON_MOCK.name}: could not be started")
    return process, said[-1]
