"""The server: `langgraph dev` started for real, asked through its SDK."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import Endpoint
from langgraph_sdk import get_sync_client

ROOT = Path(__file__).parent.parent
QUIET = {
    "LANGGRAPH_CLI_NO_ANALYTICS": "1",
    "LANGGRAPH_NO_VERSION_CHECK": "true",
    "LANGSMITH_TRACING": "false",
}
REFERENCE = {
    "instruction": "Why are there two tides a day?",
    "response": "The Moon pulls on the near side most, so there are two bulges. The Earth turns "
    "through both of them in a day.",
}
INPUT = {"seed": {"instruction": "How waves form at sea"}, "references": [REFERENCE]}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def server(endpoint, tmp_path_factory) -> Iterator[str]:
    """The address of a server over this project's own langgraph.json."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The server keeps its threads in the folder it starts in, so it starts in a linked copy.
    folder = tmp_path_factory.mktemp("server")
    for name in ("langgraph.json", "refloom", "graph", "nodes", "memory", "prompts"):
        (folder / name).symlink_to(ROOT / name)
    command = [shutil.which("langgraph", path=str(Path(sys.executable).parent)) or "langgraph"]
    command += ["dev", "--no-browser", "--no-reload", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--n-jobs-per-worker", "4"]
    environment = {**os.environ, **QUIET, "OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": "k"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process, folder / "log")
            yield url
        finally:
            process.terminate()
            process.wait(20)


def _wait_until_ready(url: str, process: subprocess.Popen, log: Path) -> None:
    import urllib.error
    import urllib.request

    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{url}/ok", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def client(server):
    client = get_sync_client(url=server)
    yield client
    client.http.client.close()


@pytest.fixture(scope="module")
def assistant(client) -> str:
    found = client.assistants.search(graph_id="synthesizer")
    return found[0]["assistant_id"]


def test_schemas_describe_input_output_and_every_setting(client, assistant):
    schemas = client.assistants.get_schemas(assistant)
    assert set(schemas["input_schema"]["properties"]) == {"seed", "references"}
    assert set(schemas["output_schema"]["properties"]) == {"samples", "references", "criteria"}
    settings = schemas["context_schema"]["properties"]
    assert {"model", "judge_method", "references_per_seed", "feedback"} <= set(settings)
    assert all(s["title"] and s["description"] for s in settings.values())
    assert not {"base_url", "api_key", "memory"} & set(settings)


def test_the_drawing_shows_the_loop(client, assistant):
    drawn = client.assistants.get_graph(assistant, xray=True)
    names = {node["id"] for node in drawn["nodes"]}
    assert {"retrieve", "extract", "propose", "sample:critique", "sample:refine"} <= names


def test_a_run_is_streamed_step_by_step(client, assistant):
    parts = list(
        client.runs.stream(
            None, assistant, input=INPUT, context={"model": "m"}, stream_mode=["updates"]
        )
    )
    seen = [name for part in parts if part.event == "updates" for name in part.data]
    assert seen == ["retrieve", "extract", "propose", "sample"]


def test_a_run_brings_samples_and_what_was_learned_is_kept_by_the_server(
    client, assistant, endpoint
):
    context = {"model": "m", "random_seed": 3}
    client.runs.wait(None, assistant, input=INPUT, context=context)
    endpoint.bodies.clear()
    out = client.runs.wait(None, assistant, input=INPUT, context={**context, "random_seed": 4})
    assert [s["status"] for s in out["samples"]] == ["accepted"]
    assert endpoint.stages() == ["propose", "generate", "critique"]


def test_input_that_is_no_seed_is_refused_with_the_field_named(client, assistant):
    out = client.runs.wait(None, assistant, input={"seed": {}}, raise_error=False)
    assert "seed.instruction" in str(out["__error__"])
