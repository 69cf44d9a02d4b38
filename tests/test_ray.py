"""A run on Ray itself, as a process: workers begin, make the rows, and leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import socket
import sys

import pytest
from fakes import Endpoint, screened, stage_of
from processes import refloom, run_process
from runs import build_run, number_of, references

from refloom.errors import InputError
from refloom.runs import ray as on_ray

KEY = "sk-secret-0123456789"
LASTING = (
    *("id", "slot", "instruction", "instruction_criteria", "instruction_verdicts"),
    *("response", "status", "criteria", "attempts"),
)


def rows_of(directory) -> list[dict]:
    lines = (directory / "accepted.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: json.loads(line)[k] for k in LASTING} for line in lines]


def screens_strictly(body, number):
    """One of three instructions fails, as its text says."""
    if stage_of(body) != "screen":
        return None
    prompt = "\n".join(message["content"] for message in body["messages"])
    return screened(prompt, lambda _, text: "fail" if number_of(text) % 3 == 0 else "pass")


def test_a_run_on_ray_makes_the_rows_of_a_run_alone_and_tells_no_key(tmp_path):
    file = tmp_path / "references.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in references(6)), encoding="utf-8")
    few = ("--references", file, "--no-try-criteria", "--references-per-seed", "1", "--model", "m")
    with Endpoint(screens_strictly) as endpoint:
        one = {"base_url": endpoint.url, "references_per_seed": 1, "given": references(6)}
        one["screen"] = True
        asyncio.run(build_run(tmp_path / "one", None, None, **one).run())
        asked = len(endpoint.bodies)
        command = ("run", *few, "--out", tmp_path / "two", "--engine", "ray", "--workers", "2")
        keys = {"OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": KEY}
        said = run_process(*command, cwd=tmp_path, **keys)
        assert said.returncode == 0, said.stderr
        assert len(endpoint.bodies) == 2 * asked
    assert rows_of(tmp_path / "two") == rows_of(tmp_path / "one") != []
    dropped = [(tmp_path / name / "dropped.jsonl").read_text() for name in ("one", "two")]
    assert dropped[0] == dropped[1]
    assert '"screened"' in dropped[0]
    assert KEY not in said.stdout + said.stderr
    kept = json.loads((tmp_path / "two" / "run.json").read_text(encoding="utf-8"))
    assert kept["settings"]["engine"] == "ray"
    assert KEY not in json.dumps(kept)


def test_a_cluster_that_is_not_there_is_one_line_before_anything_is_paid(tmp_path):
    file = tmp_path / "references.jsonl"
    file.write_text(json.dumps(references(1)[0]) + "\n", encoding="utf-8")
    with Endpoint() as endpoint:
        command = ("run", "--references", file, "--out", tmp_path / "out", "--model", "m")
        there = ("--base-url", endpoint.url, "--engine", "ray", "--ray-address", "nowhere")
        said = refloom(*command, *there, cwd=tmp_path, OPENAI_API_KEY=KEY)
        assert endpoint.bodies == []
    assert said.returncode == 2
    last = said.stderr.strip().splitlines()[-1]
    assert "--ray-address" in last
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize("address", ["", "nowhere", "127.0.0.1:", ":6379", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused_at_once(address):
    with pytest.raises(InputError, match="HOST:PORT"):
        on_ray.check_available(address)


def test_an_address_where_nobody_listens_is_refused_in_seconds():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(InputError, match="cannot be reached"):
        on_ray.check_available(address)


def test_without_ray_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"extra \[ray\]"):
        on_ray.check_available(None)
