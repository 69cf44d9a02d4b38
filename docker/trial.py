"""Try what rehearse.py made, in a network of a loopback alone: a run by command or server.

A scripted endpoint of the tests answers in place of a model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from fakes import Endpoint

import refloom

PORT = 2024
# The server takes its licence, its database and its Redis from these; here the runtime of
# `langgraph dev` stands in for the three.
RUNTIME = {
    "LANGGRAPH_RUNTIME_EDITION": "inmem",
    "LANGSMITH_LANGGRAPH_API_VARIANT": "local_dev",
    "MIGRATIONS_PATH": "__inmem",
    "DATABASE_URI": ":memory:",
    "REDIS_URI": "fake",
    "N_JOBS_PER_WORKER": "4",
}
REFERENCE = {"instruction": "Why two tides a day?", "response": "The Moon raises two bulges. " * 6}


def ask(path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Status and body of an answer of the server."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def try_server(endpoint: Endpoint, folder: Path) -> None:
    """Start the server as the image does; wait until it is ready; make a run."""
    environment = {**os.environ, **RUNTIME, "OPENAI_BASE_URL": endpoint.url}
    command = [sys.executable, "-m", "uvicorn", "langgraph_api.server:app", "--port", str(PORT)]
    began = time.monotonic()
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        status, body = 0, None
        while status != 200:
            if server.poll() is not None or time.monotonic() - began > 180:
                raise SystemExit((folder / "server.log").read_text()[-3000:])
            time.sleep(0.5)
            try:
                status, body = ask("/readyz")
            except OSError:
                continue
        print(f"/readyz {body} after {time.monotonic() - began:.1f} s")
        print("/review", urllib.request.urlopen(f"http://127.0.0.1:{PORT}/review").status)
        # Without references in the input they are found by the embedding model.
        inputs = {"seed": {"instruction": "Read a file line by line in Python"}}
        run = {"assistant_id": "synthesizer", "input": inputs}
        status, out = ask("/runs/wait", run | {"context": {"model": "m", "try_criteria": False}})
        print("run", status, [sample["status"] for sample in out.get("samples", [])] or out)
        if [sample["status"] for sample in out["samples"]] != ["accepted"]:
            raise SystemExit("no sample was accepted")
    finally:
        server.terminate()
        server.wait(30)


def try_command(endpoint: Endpoint, folder: Path) -> None:
    """Make rows with the image's entry point."""
    data = folder / "root" / "data"
    (data / "pairs.jsonl").write_text(json.dumps(REFERENCE) + "\n")
    (data / "topics.txt").write_text("waves at sea\nships in a storm\n")
    command = ["refloom", "run", "--references", "pairs.jsonl", "--seeds", "topics.txt"]
    command += ["--out", "rows", "--model", "m", "--base-url", endpoint.url]
    subprocess.run(command, check=True, cwd=data)
    print("rows:", len((data / "rows" / "accepted.jsonl").read_text().splitlines()))


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    place = Path(refloom.__file__)
    if folder not in place.parents:
        raise SystemExit(f"refloom is {place}, not the image's own")
    try:
        urllib.request.urlopen("http://192.0.2.1", timeout=5)
    except OSError as error:
        print("no network:", error)
    with Endpoint() as endpoint:
        {"server": try_server, "command": try_command}[sys.argv[1]](endpoint, folder)
