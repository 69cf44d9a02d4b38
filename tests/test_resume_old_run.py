"""Runs that an earlier version of refloom has begun or finished can still be used.

`data/half_done_run` and `data/finished_run` were written by refloom 0.1.0, see data/README.md. They
are not made anew when refloom changes: that it reads them is what is tested. Only another prompt,
with which refloom refuses to go on with a run, is a reason to make them again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from fakes import Endpoint
from processes import CommandResult, refloom
from varied_model import BASE_URL, calls_in, canonical, proxied, respond, stage_of

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


def check_paid_only_the_rest(desk: Desk) -> None:
    """Each request is one that the killed run had not paid for, and was sent once."""
    sent = [canonical(body) for body in desk.endpoint.bodies]
    assert len(set(sent)) == len(sent)
    missing = len(desk.needed - desk.paid)
    assert len(sent) == missing, f"{missing} calls were missing, {len(sent)} were sent"


def test_the_killed_run_is_in_the_middle_of_things(desk):
    assert desk.paid < desk.needed
    assert 20 < len(desk.paid) < len(desk.needed) - 20
    assert {stage for stage, _ in calls_in(desk.folder / "half")} == {
        *("extract", "propose", "generate", "critique", "refine")
    }
    assert json.loads((OLD_HALF / "run.json").read_text(encoding="utf-8"))["status"] == "running"
    assert not (OLD_HALF / "accepted.jsonl").exists()


def test_a_killed_run_of_an_earlier_version_is_taken_up(desk):
    ended = desk.call(*RUN, "--out", "half")
    assert "done: 15 accepted, 6 rejected, 1 failed" in ended.stdout
    check_paid_only_the_rest(desk)
    assert keys(desk.folder / "half") == desk.needed
    assert rows(desk.folder / "half") == rows(OLD_WHOLE)


def test_a_new_run_reuses_what_a_killed_one_of_an_earlier_version_has_paid_for(desk):
    desk.call(*RUN, "--out", "new", "--reuse", "half")
    check_paid_only_the_rest(desk)
    assert rows(desk.folder / "new") == rows(OLD_WHOLE)


def test_reusing_a_finished_run_of_an_earlier_version_pays_nothing(desk):
    desk.call(*RUN, "--out", "new", "--reuse", "whole")
    assert desk.endpoint.bodies == []
    assert rows(desk.folder / "new") == rows(OLD_WHOLE)
    # Other settings, the same calls as far as they go; the two runs can be compared.
    desk.call(*RUN, "--out", "once", "--reuse", "whole", "--max-attempts", "1")
    assert desk.endpoint.bodies == []
    found = json.loads(desk.call("compare", "whole", "once", "--json").stdout)
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"], pair["n"]) == ("whole", "once", 21)
    assert {stage_of(body) for body in desk.endpoint.bodies} == {"compare"}


def test_a_finished_run_of_an_earlier_version_is_read(desk):
    status = json.loads(desk.call("status", "whole", "--json").stdout)
    old = json.loads((OLD_WHOLE / "run.json").read_text(encoding="utf-8"))
    for name in ("status", "counts", "calls", "usage", "criteria"):
        assert status[name] == old[name]
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


def test_going_on_with_a_finished_run_of_an_earlier_version_changes_nothing(desk):
    desk.call(*RUN, "--out", "whole", "--no-retry-failed")
    assert rows(desk.folder / "whole") == rows(OLD_WHOLE)
    assert desk.endpoint.bodies == []


def test_what_failed_in_a_finished_run_of_an_earlier_version_is_tried_again(desk):
    desk.call(*RUN, "--out", "whole")
    assert rows(desk.folder / "whole")["accepted"] == rows(OLD_WHOLE)["accepted"]
    (failed,) = rows(OLD_WHOLE)["failed"]
    assert {stage_of(body) for body in desk.endpoint.bodies} == {failed["error"]["stage"]}
