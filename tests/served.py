"""`langgraph dev` started for real, as `make dev` does, on a free port."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("refloom", "graph", "nodes", "memory", "prompts")


def quiet() -> dict[str, str]:
    """What `make dev` sets in the environment."""
    text = (ROOT / "Makefile").read_text()
    recipe = text[text.index("\ndev:") : text.index("langgraph dev")]
    found = dict(re.findall(r"\b([A-Z_]+)=(\S*)", recipe))
    del found["REFLOOM_INDEX"]
    return found


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class Server:
    """A server that answers; `stop` it in the end."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def start(folder: Path, port: int | None = None, **environment: str) -> Server:
    """Start a server over this project's own langgraph.json, its threads kept in `folder`."""
    for name in ("langgraph.json", *PACKAGES):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    port = port or free_port()
    command = [shutil.which("langgraph", path=str(Path(sys.executable).parent)) or "langgraph"]
    command += ["dev", "--no-browser", "--no-reload", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--n-jobs-per-worker", "16"]
    log = folder / "log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **quiet(), **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_until_ready(server)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return server


def _wait_until_ready(server: Server) -> None:
    for _ in range(300):
        assert server.process.poll() is None, server.log.read_text()
        try:
            with urllib.request.urlopen(f"{server.url}/ok", timeout=2):
                return
        except urllib.error.HTTPError:
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(server.log.read_text())


@contextmanager
def serving(folder: Path, **environment: str) -> Iterator[Server]:
    """The same, stopped in the end."""
    server = start(folder, **environment)
    try:
        yield server
    finally:
        server.stop()
