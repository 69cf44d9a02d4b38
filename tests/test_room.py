"""Models that think before they answer: room grows on the wire, and the rows do not notice."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fakes import Endpoint, completion, stage_of
from processes import lines, refloom
from varied_model import BASE_URL, canonical, proxied, respond

DATA = Path(__file__).parent / "data" / "half_done_run" / "references.jsonl"
RUN = (
    *(
        "run",
        "--references",
        DATA,
        "--model",
        "m",
        "--base-url",
        BASE_URL,
        "--references-per-seed",
        "1",
    ),
    *("--per-seed", "4", "--random-seed", "1", "--max-failure-rate", "1", "--quiet"),
)


def thinking(body: dict[str, Any], number: int) -> Any:
    """Each answer takes its own number of tokens, thoughts among them; with fewer it is cut."""
    room = body.get("max_tokens") or body.get("max_completion_tokens") or 0
    asked = json.dumps([body["messages"], body.get("seed")]).encode()
    needed = 300 + int(sha256(asked).hexdigest(), 16) % 16_000
    if stage_of(body) in ("probe", "preflight") or needed <= room:
        return respond(body, number)
    cut = json.loads(completion(None, body, "length").body)
    cut["usage"] = {"prompt_tokens": 50, "completion_tokens": room, "total_tokens": 50 + room}
    return web.json_response(cut)


def run(folder: Path, out: str, *flags: Any) -> dict[str, Any]:
    with Endpoint(thinking) as endpoint:
        ended = refloom(*RUN, *flags, "--out", out, cwd=folder, **proxied(endpoint.url))
    assert ended.returncode in (0, 4), ended.stderr
    said: dict[str, Any] = json.loads((folder / out / "run.json").read_text(encoding="utf-8"))
    return said


def rows(directory: Path) -> list[dict[str, Any]]:
    """All rows, without what may differ from run to run."""
    changing = ("created", "usage", "cost_usd")
    names = ("accepted", "rejected", "failed")
    found = [row for name in names for row in lines(directory / f"{name}.jsonl")]
    return [{k: v for k, v in row.items() if k not in changing} for row in found]


def test_the_rows_do_not_depend_on_when_the_room_was_learned(tmp_path):
    said = run(tmp_path, "one", "--concurrency", "1")
    run(tmp_path, "many", "--concurrency", "32")
    assert rows(tmp_path / "many") == rows(tmp_path / "one")
    assert said["counts"]["accepted"] > 0
    assert said["endpoints"][0]["rooms"]["generate"] > 1


def test_an_answer_that_no_room_is_enough_for_is_not_paid_for_again(tmp_path):
    with Endpoint(thinking) as endpoint:
        flags = ("--concurrency", "1", "--out", "out")
        ended = refloom(*RUN, *flags, cwd=tmp_path, **proxied(endpoint.url))
    assert ended.returncode == 0, ended.stderr
    asked = [canonical(body) for body in endpoint.asked()]
    assert len(set(asked)) == len(asked) > 20


@pytest.mark.parametrize("dollars", [0.05, 0.3])
def test_a_cap_holds_while_room_grows(tmp_path, dollars):
    (tmp_path / "prices.toml").write_text('"m" = { input = 1.0, output = 2.0 }\n')
    said = run(tmp_path, "out", "--max-cost", dollars, "--prices", "prices.toml")
    assert said["status"] == "stopped"
    assert 0 < said["cost_usd"] <= dollars


def test_room_set_by_hand_is_what_is_asked_for(tmp_path):
    with Endpoint(respond) as endpoint:
        flags = ("--max-tokens-per-call", "generate=9000", "propose=777")
        ended = refloom(*RUN, *flags, "--out", "out", cwd=tmp_path, **proxied(endpoint.url))
    assert ended.returncode == 0, ended.stderr
    first: dict[str, int] = {}
    for body in endpoint.bodies:
        first.setdefault(stage_of(body), body["max_tokens"])
    assert (first["generate"], first["propose"], first["extract"]) == (9000, 777, 1200)
