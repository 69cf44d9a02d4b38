"""Runs that an earlier version of refloom has begun or finished can still be used.

`data/half_done_run` and `data/finished_run` were written by refloom 0.1.0, see data/README.md. They
are not made anew when refloom changes: that it reads them is what is tested. That version asked for
responses inside JSON, so refloom refuses to go on with its runs, and reuses all else they paid for.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from fakes import Endpoint
from processes import CommandResult, refloom
from reviewing import ReviewProcess
from varied_model import (
    BASE_URL,
    blocks,
    calls_in,
    canonical,
    prompt_of,
    proxied,
    respond,
    stage_of,
)

DATA = Path(__file__).parent / "data"
OLD_HALF, OLD_WHOLE = DATA / "half_done_run" / "out", DATA / "finished_run" / "out"
STATUSES = ("accepted", "rejected", "failed")
OLD_RULES = {
    *("not-empty", "finished", "no-refusal", "no-placeholder", "not-copied", "not-contaminated"),
    *("no-prompt-talk", "on-topic", "length"),
}
MAY_DIFFER = ("created", "usage", "cost_usd")
RUN = (
    "run", "--references", "references.jsonl", "--seeds", "seeds.txt", "--model", "m", "--quiet",
    "--base-url", BASE_URL, "--per-seed", "2", "--references-per-seed", "2", "--max-criteria", "3",
    "--concurrency", "4", "--max-failure-rate", "1",
)  # fmt: skip
# That version did not screen: without screening the calls before a response are the same.
PLAIN = (*RUN, "--no-screen")


@dataclass
class Desk:
    """A folder with copies of the old directories, `half` and `whole`, and an endpoint.

    `paid` are the keys of the calls in the killed run, `needed` those in the finished one.
    """

    folder: Path
    endpoint: Endpoint
    paid: set[str]
    needed: set[str]

    def call(self, *arguments: object) -> CommandResult:
        """Run a command in the folder; it has to end well."""
        ended = refloom(*arguments, cwd=self.folder, **proxied(self.endpoint.url))
        assert ended.returncode == 0, ended.stderr
        return ended


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    for name in ("references.jsonl", "seeds.txt"):
        shutil.copy(DATA / "half_done_run" / name, tmp_path / name)
    shutil.copytree(OLD_HALF, tmp_path / "half")
    shutil.copytree(OLD_WHOLE, tmp_path / "whole")
    # Not read where they are, since SQLite may write beside a file that it reads.
    paid, needed = keys(tmp_path / "half"), keys(tmp_path / "whole")
    with Endpoint(respond) as endpoint:
        yield Desk(tmp_path, endpoint, paid, needed)


def keys(directory: Path) -> set[str]:
    return {key for _, key in calls_in(directory)}


def rows(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows by status, without what depends on when and how often a run was taken up.

    Rules that the earlier version did not have are left out too, with their verdicts.
    """
    every = {
        status: [
            {name: value for name, value in json.loads(line).items() if name not in MAY_DIFFER}
            for line in (directory / f"{status}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for status in STATUSES
    }
    for row in chain.from_iterable(every.values()):
        new = {c["id"] for c in row["criteria"] if c["judged_by"] == "rule"} - OLD_RULES
        row["criteria"] = [c for c in row["criteria"] if c["id"] not in new]
        for attempt in row["attempts"]:
            verdicts = attempt["verdicts"]
            attempt["verdicts"] = [v for v in verdicts if v["criterion_id"] not in new]
    return every


def sent_by_stage(desk: Desk) -> Counter[str]:
    return Counter(stage_of(body) for body in desk.endpoint.bodies)


def check_paid_only_what_changed(desk: Desk, new: Path, missing: int) -> None:
    """Responses were asked for anew and judged; of all else `missing` calls were not there.

    And a few more: a cut or an unreadable answer is asked for again in another way since.
    """
    sent = [canonical(body) for body in desk.endpoint.bodies]
    assert len(set(sent)) == len(sent)
    by_stage = sent_by_stage(desk)
    assert by_stage["generate"] >= 20
    assert by_stage["extract"] + by_stage["propose"] <= missing + 8
    found = list(chain.from_iterable(rows(new).values()))
    assert len(found) == 22
    responses = {attempt["response"] for row in found for attempt in row["attempts"]}
    judged = [
        blocks(prompt_of(body), "response")[-1]
        for body in desk.endpoint.bodies
        if stage_of(body) == "critique"
    ]
    few = sum(response not in responses for response in judged)
    assert few <= 8, "trials are not paid again, but for answers that were cut or unreadable"


def test_the_killed_run_is_in_the_middle_of_things(desk):
    assert desk.paid < desk.needed
    assert 20 < len(desk.paid) < len(desk.needed) - 20
    assert {stage for stage, _ in calls_in(desk.folder / "half")} == {
        *("extract", "propose", "generate", "critique", "refine")
    }
    assert json.loads((OLD_HALF / "run.json").read_text(encoding="utf-8"))["status"] == "running"
    assert not (OLD_HALF / "accepted.jsonl").exists()


@pytest.mark.parametrize("name", ["half", "whole"])
def test_a_run_of_an_earlier_version_is_refused_with_its_prompts_named(desk, name):
    environment = proxied(desk.endpoint.url)
    ended = refloom(*RUN, "--out", name, cwd=desk.folder, **environment)
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        f"refloom: {name}: holds a run with other prompts: extract, generate, propose, "
        "refine, refine_by_feedback. Give another --out with --reuse of this one; only what they "
        "changed is paid again"
    ]
    assert desk.endpoint.bodies == []
    assert keys(desk.folder / name) == (desk.paid if name == "half" else desk.needed)


def test_a_new_run_pays_only_for_what_the_prompts_changed(desk):
    desk.call(*PLAIN, "--out", "new", "--reuse", "half")
    whole, half = (Counter(s for s, _ in calls_in(desk.folder / d)) for d in ("whole", "half"))
    missing = whole - half
    check_paid_only_what_changed(desk, desk.folder / "new", missing["extract"] + missing["propose"])


def test_reusing_a_finished_run_pays_for_responses_and_their_judging_alone(desk):
    desk.call(*PLAIN, "--out", "new", "--reuse", "whole")
    check_paid_only_what_changed(desk, desk.folder / "new", 0)
    first = sent_by_stage(desk)
    # The new run is one of this version: it goes on, and is reused, for nothing.
    desk.call(*PLAIN, "--out", "new")
    desk.call(*PLAIN, "--out", "again", "--reuse", "new")
    assert rows(desk.folder / "again") == rows(desk.folder / "new")
    # Other settings, the same calls as far as they go; the two runs can be compared.
    desk.call(*PLAIN, "--out", "once", "--reuse", "new", "--max-attempts", "1")
    assert sent_by_stage(desk) == first
    found = json.loads(desk.call("compare", "new", "once", "--json").stdout)
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"]) == ("new", "once")
    assert set(sent_by_stage(desk) - first) == {"compare"}


def test_a_finished_run_of_an_earlier_version_is_read(desk):
    status = json.loads(desk.call("status", "whole", "--json").stdout)
    old = json.loads((OLD_WHOLE / "run.json").read_text(encoding="utf-8"))
    assert status["status"] == old["status"]
    # What was not counted then is there too: thinking, calls by tier.
    for name in ("counts", "calls", "usage", "criteria"):
        assert {key: status[name][key] for key in old[name]} == old[name]
    desk.call("report", "whole", "--out", "page.html")
    page = (desk.folder / "page.html").read_text(encoding="utf-8")
    accepted = rows(OLD_WHOLE)["accepted"]
    assert accepted[0]["instruction"] in page
    for form in ("messages", "alpaca", "preference"):
        desk.call("export", "whole", f"{form}.jsonl", "--format", form)
        assert (desk.folder / f"{form}.jsonl").stat().st_size
    texts = (desk.folder / "messages.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["messages"][-1]["content"] for line in texts] == [
        row["response"] for row in accepted
    ]
    assert desk.endpoint.bodies == []


def test_every_command_that_reads_a_run_reads_one_of_an_earlier_version(desk):
    for name, status in (("half", "interrupted"), ("whole", "done")):
        said = json.loads(desk.call("status", name, "--json").stdout)
        assert said["status"] == status
        # What that version did not count is none, and it left no list of what it dropped.
        new = ("screened", "unfit", "surplus")
        assert [said["counts"][key] for key in new] == [0, 0, 0]
        assert set(said["instruction_criteria"].values()) == {0}
        assert sum(seed["rows"] for seed in said["seeds"]) == said["counts"]["accepted"]
        assert {seed[key] for seed in said["seeds"] for key in new} == {0}
        page = f"{name}.html"
        desk.call("report", name, "--out", page)
        assert 'href="#screening"' not in (desk.folder / page).read_text(encoding="utf-8")
    desk.call(*PLAIN, "--out", "new", "--reuse", "whole")
    desk.endpoint.bodies.clear()
    found = json.loads(desk.call("compare", "whole", "new", "--json").stdout)
    assert found["pairs"][0]["n"] > 15
    desk.call("judge-check", "whole", "--limit", "2", "--quiet")
    assert {stage_of(body) for body in desk.endpoint.bodies} == {"compare", "critique"}
    card = desk.call("push", "whole", "me/rows", "--dry-run").stdout
    assert "instruction tuning" in card and "screened" not in card
    with ReviewProcess(desk.folder / "whole") as process:
        assert process.ask("/review/config")
