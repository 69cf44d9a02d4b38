"""What failed is tried again when the same command finds the run ended, and only then."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fakes import (
    Endpoint,
    ScriptedModel,
    answer,
    error,
    prompt_of,
    stage_of,
    tagged,
    verdicts,
    words,
)
from processes import refloom
from runs import (
    SEEDS,
    CountingModel,
    MixedModel,
    all_rows,
    build_run,
    call_content,
    finish_run,
    number_of,
    references,
    rows,
    run_flags,
    stable_rows,
    summary_of,
)

from memory.novelty import novel
from nodes.llm import Call, CallFailed, ProviderStopped, Reply
from refloom.errors import TooManyFailed
from refloom.runs.outputs import read_status
from refloom.runs.retry import RETRY_BY_KIND

FEW: dict[str, Any] = {
    "references_per_seed": 1,
    "feedback": "none",
    "max_failure_rate": 1.0,
}


class Broken(ScriptedModel):
    """A model that fails at a stage for what a rule says, while it is broken."""

    def __init__(self, stage: str, fails: Callable[[Call], Any]) -> None:
        super().__init__(**{stage: self._say})
        self.broken = True
        self.fails = fails
        self.sent: list[Call] = []

    def _say(self, call: Call) -> Any:
        said = self.fails(call) if self.broken else None
        return answer(call.stage, prompt_of(call), call.seed) if said is None else said

    async def __call__(self, call: Call) -> Reply:
        self.sent.append(call)
        return await super().__call__(call)


def instruction_of(call: Call) -> str:
    return tagged(prompt_of(call), "instruction")[-1]


def fault(kind: str = "bad_request") -> Callable[[Call], CallFailed]:
    return lambda call: CallFailed(call.stage, kind, "no")


def of_some(said: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """For about half of the instructions."""
    return lambda call: said(call) if number_of(instruction_of(call)) % 2 else None


def check(out: Path) -> dict[str, int]:
    """Counts and files agree, and no instruction is near another."""
    counts: dict[str, int] = summary_of(out)["counts"]
    for status in ("accepted", "rejected", "failed"):
        assert counts[status] == len(rows(out, status))
    parts = ("accepted", "rejected", "failed", "pending")
    assert counts["candidates"] == sum(counts[part] for part in parts)
    texts = [row["instruction"] for row in all_rows(out) if row["instruction"]]
    assert list(novel(texts)) == list(range(len(texts)))
    assert len({row["id"] for row in all_rows(out)}) == len(all_rows(out))
    return counts


# --- in its own slot -----------------------------------------------------------------------------


async def test_a_failed_sample_is_tried_again_in_its_slot_once_the_run_has_ended(tmp_path):
    model = Broken("generate", of_some(fault()))
    await finish_run(tmp_path, model, SEEDS, per_seed=3, **FEW)
    before = {tuple(row["slot"]): row for row in all_rows(tmp_path)}
    failed = [row for row in rows(tmp_path, "failed")]
    assert 4 < len(failed) < 20
    model.broken, model.sent = False, []
    told: list[dict[str, Any]] = []
    said = await finish_run(
        tmp_path, model, SEEDS, per_seed=3, concurrency=1, on_record=told.append, **FEW
    )
    assert said["counts"]["failed"] == 0
    assert [row["slot"] for row in told] == [row["slot"] for row in failed]
    # Nothing else is asked: no proposal, no other slot.
    assert {call.stage for call in model.sent} == {"generate"}
    assert len(model.sent) == len(failed)
    after = {tuple(row["slot"]): row for row in all_rows(tmp_path)}
    assert after.keys() == before.keys()
    for slot, row in after.items():
        assert (row["id"], row["instruction"]) == (before[slot]["id"], before[slot]["instruction"])
        if before[slot]["status"] != "failed":
            assert row == before[slot]
    check(tmp_path)


async def test_a_call_that_got_no_reply_is_made_again_as_it_was(tmp_path):
    model = Broken("generate", of_some(fault("timeout")))
    await finish_run(tmp_path, model, SEEDS, **FEW)
    asked = Counter(map(call_content, model.sent))
    model.broken, model.sent = False, []
    await finish_run(tmp_path, model, SEEDS, **FEW)
    assert model.sent
    assert set(map(call_content, model.sent)) < set(asked)


@pytest.mark.parametrize("reply", ["", "<think>Hm", Reply("cut", "length", {"calls": 1})], ids=str)
async def test_what_could_not_be_read_takes_other_draws_each_time(tmp_path, reply):
    if isinstance(reply, Reply):
        usage = {"calls": 1, "prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 1}
        reply = Reply(reply.text, reply.finish, usage)
    only = SEEDS[:1]
    model = Broken("generate", lambda call: reply)
    asked: set[str] = set()
    for _ in range(3):
        model.sent = []
        said = await finish_run(tmp_path, model, only, **FEW)
        assert said["counts"]["failed"] == 1
        sent = [call_content(call) for call in model.sent if call.stage == "generate"]
        assert sent and len(set(sent)) == len(sent)
        assert not asked & set(sent)
        asked |= set(sent)
    model.broken, model.sent = False, []
    said = await finish_run(tmp_path, model, only, **FEW)
    assert said["counts"]["accepted"] == 1
    (call,) = model.sent
    assert call_content(call) not in asked
    check(tmp_path)


async def test_only_the_question_that_was_answered_in_vain_is_asked_anew(tmp_path):
    """The draft and its verdicts were paid for."""

    class Judged(Broken):
        def __init__(self) -> None:
            super().__init__("refine", lambda call: "")
            self.stages["critique"] = self._judge

        def _judge(self, call: Call) -> Any:
            refined = self.asked("refine") and not self.broken
            return verdicts(prompt_of(call), "pass" if refined else "fail")

    model = Judged()
    said = await finish_run(tmp_path, model, SEEDS[:2], references_per_seed=1)
    assert said["counts"]["failed"] == 2
    assert {row["error"]["kind"] for row in rows(tmp_path, "failed")} == {"empty"}
    model.broken, model.sent = False, []
    said = await finish_run(tmp_path, model, SEEDS[:2], references_per_seed=1)
    assert said["counts"]["accepted"] == 2
    assert Counter(call.stage for call in model.sent) == {"refine": 2, "critique": 2}


@pytest.mark.parametrize("kind", [k for k, way in RETRY_BY_KIND.items() if way == "never"])
async def test_what_somebody_decided_against_is_never_tried_again(tmp_path, kind):
    model = Broken("generate", of_some(fault(kind)))
    await finish_run(tmp_path, model, SEEDS, **FEW)
    kept = all_rows(tmp_path)
    assert read_status(tmp_path)["retriable"] == 0
    model.broken, model.sent = False, []
    await finish_run(tmp_path, model, SEEDS, **FEW)
    assert model.sent == []
    assert all_rows(tmp_path) == kept


async def test_nothing_is_tried_again_where_that_is_turned_off(tmp_path):
    model = Broken("generate", of_some(fault()))
    await finish_run(tmp_path, model, SEEDS, **FEW)
    kept = all_rows(tmp_path)
    model.broken, model.sent = False, []
    await finish_run(tmp_path, model, SEEDS, retry_failed=False, **FEW)
    assert model.sent == []
    assert all_rows(tmp_path) == kept
    await finish_run(tmp_path, model, SEEDS, **FEW)
    assert rows(tmp_path, "failed") == []


async def test_a_failed_row_stays_until_the_new_one_takes_its_place(tmp_path):
    model = Broken("generate", fault())
    await finish_run(tmp_path, model, SEEDS[:4], **FEW)
    model.broken = False
    counts: list[Counter[str]] = []

    def look(record: dict[str, Any]) -> None:
        with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as journal:
            counts.append(Counter(s for (s,) in journal.execute("SELECT status FROM samples")))

    await finish_run(tmp_path, model, SEEDS[:4], concurrency=1, on_record=look, **FEW)
    assert counts == [
        {"accepted": 1, "failed": 3},
        {"accepted": 2, "failed": 2},
        {"accepted": 3, "failed": 1},
        {"accepted": 4},
    ]


# --- the target ----------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 16])
@pytest.mark.parametrize("target", [10, 14, 40])
async def test_the_target_is_met_by_the_first_failed_slots_and_never_passed(
    tmp_path, target, concurrency
):
    model = Broken("generate", of_some(fault()))
    few = {**FEW, "per_seed": 3, "max_candidates": 24, "concurrency": concurrency}
    said = await finish_run(tmp_path, model, SEEDS, target=target, **few)
    before = said["counts"]
    assert before["failed"] > 3
    failed = [row["slot"] for row in rows(tmp_path, "failed")]
    model.broken, model.sent = False, []
    said = await finish_run(tmp_path, model, SEEDS, target=target, **few)
    counts = check(tmp_path)
    missing = target - before["accepted"]
    assert counts["accepted"] == min(target, before["accepted"] + before["failed"])
    assert (
        [row["slot"] for row in rows(tmp_path, "failed")] == failed[missing:] if missing else failed
    )
    assert len(model.sent) == min(missing, len(failed))
    assert said["status"] == ("done" if counts["accepted"] == target else "short")


async def test_with_the_target_met_nothing_is_tried_again_or_paid(tmp_path):
    model = Broken("generate", of_some(fault()))
    await finish_run(tmp_path, model, SEEDS, target=6, **FEW)
    kept = all_rows(tmp_path)
    assert rows(tmp_path, "failed")
    assert read_status(tmp_path)["retriable"] == 0
    model.broken, model.sent = False, []
    await finish_run(tmp_path, model, SEEDS, target=6, **FEW)
    assert model.sent == []
    assert all_rows(tmp_path) == kept
    # A higher one is reached by what failed first.
    await finish_run(tmp_path, model, SEEDS, target=7, **FEW)
    assert [call.stage for call in model.sent] == ["generate"]
    assert check(tmp_path)["accepted"] == 7


async def test_rows_accepted_behind_a_failed_slot_count_before_it_is_tried_again(tmp_path):
    """Without that, the slots behind would pass the target."""
    first = []

    def fails(call: Call) -> Any:
        first.append(call)
        return CallFailed("generate", "server", "no") if len(first) <= 3 else None

    model = Broken("generate", fails)
    few = {**FEW, "concurrency": 1, "target": 5, "max_candidates": 7}
    said = await finish_run(tmp_path, model, SEEDS, **few)
    assert (said["status"], said["counts"]["accepted"]) == ("short", 4)
    model.broken, model.sent = False, []
    said = await finish_run(tmp_path, model, SEEDS, **few)
    assert (said["status"], said["counts"]["accepted"]) == ("done", 5)
    assert len(model.sent) == 1


# --- seeds that failed before they had instructions ---------------------------------------------


@pytest.mark.parametrize("stage", ["propose", "extract"])
async def test_a_seed_without_instructions_is_proposed_for_behind_the_last_slot(tmp_path, stage):
    bad = SEEDS[1:4:2]
    lost = {seed: i for i, seed in enumerate(SEEDS) if seed in bad}

    def fails(call: Call) -> Any:
        data = tagged(prompt_of(call), "seed" if stage == "propose" else "instruction")[-1]
        return CallFailed(stage, "timeout", "no") if data in lost else None

    given = [
        {"id": f"r{i}", "instruction": s, "response": words(s, 30)} for i, s in enumerate(SEEDS)
    ]
    few = {"references_per_seed": 1, "per_seed": 2, "given": given}
    model = Broken(stage, fails)
    await finish_run(tmp_path, model, None, **few)
    before = rows(tmp_path, "failed")
    assert [(row["slot"], row["instruction"]) for row in before] == [
        ([0, 1, 0], None),
        ([0, 3, 0], None),
    ]
    kept = rows(tmp_path, "accepted")
    asked = {call_content(call) for call in model.sent if call.stage == stage}
    model.broken, model.sent = False, []
    said = await finish_run(tmp_path, model, None, **few)
    assert said["status"] == "done"
    new = rows(tmp_path, "accepted")[len(kept) :]
    assert rows(tmp_path, "accepted")[: len(kept)] == kept
    assert [row["slot"] for row in new] == [[1, 1, 0], [1, 1, 1], [1, 3, 0], [1, 3, 1]]
    assert [row["seed_id"] for row in new] == ["r1", "r1", "r3", "r3"]
    assert [row["reference_ids"] for row in new] == [["r1"], ["r1"], ["r3"], ["r3"]]
    assert said["counts"]["failed"] == 0
    # What got no reply is asked as it was.
    again = {call_content(call) for call in model.sent if call.stage == stage}
    assert again and again < asked
    check(tmp_path)
    model.sent = []
    again = await finish_run(tmp_path, model, None, **few)
    assert model.sent == []
    assert again["counts"] == said["counts"]


async def test_proposals_for_it_are_new_against_all_that_is_in_the_journal(tmp_path):
    near = "which quartz river has umber and violet banks"

    def propose(call: Call) -> Any:
        said = answer("propose", prompt_of(call), call.seed)
        said["instructions"][0] = near + (" today" if SEEDS[1] in prompt_of(call) else "")
        return said

    lost = True
    model = ScriptedModel(
        propose=lambda call: (
            CallFailed("propose", "server", "no")
            if lost and SEEDS[1] in tagged(prompt_of(call), "seed")
            else propose(call)
        )
    )
    # The near instruction is that of a later seed.
    await finish_run(tmp_path, model, SEEDS[1:4], per_seed=2, **FEW)
    assert [row["slot"] for row in rows(tmp_path, "failed")] == [[0, 0, 0]]
    lost = False
    said = await finish_run(tmp_path, model, SEEDS[1:4], per_seed=2, **FEW)
    assert said["counts"]["failed"] == 0
    texts = [row["instruction"] for row in all_rows(tmp_path)]
    assert near in texts
    assert near + " today" not in texts
    check(tmp_path)


async def test_a_seed_that_has_nothing_new_now_is_no_failed_sample_any_more(tmp_path):
    lost = SEEDS[0]
    model = ScriptedModel(
        propose=lambda call: (
            CallFailed("propose", "server", "no")
            if lost in tagged(prompt_of(call), "seed")
            else {"instructions": ["which quartz river has umber and violet banks"]}
        )
    )
    await finish_run(tmp_path, model, SEEDS[:2], **FEW)
    assert len(rows(tmp_path, "failed")) == 1
    model = ScriptedModel(
        propose=lambda call: {"instructions": ["which quartz river has umber and violet banks"]}
    )
    said = await finish_run(tmp_path, model, SEEDS[:2], **FEW)
    assert (said["counts"]["failed"], said["counts"]["accepted"]) == (0, 1)
    assert said["counts"]["pending"] == 0
    assert said["counts"]["duplicates"] >= 1
    model = ScriptedModel()
    again = await finish_run(tmp_path, model, SEEDS[:2], **FEW)
    assert model.calls == []
    assert again["counts"] == said["counts"]


async def test_a_seed_that_fails_time_and_again_keeps_one_row(tmp_path):
    model = Broken("propose", lambda call: "{")
    asked: set[str] = set()
    for number in range(3):
        model.sent = []
        said = await finish_run(tmp_path, model, SEEDS[:2], **FEW)
        assert said["counts"]["failed"] == said["counts"]["candidates"] == 2
        assert [row["slot"] for row in rows(tmp_path, "failed")] == [[number, 0, 0], [number, 1, 0]]
        sent = {call_content(call) for call in model.sent if call.stage == "propose"}
        assert sent and not sent & asked
        asked |= sent
    model.broken = False
    said = await finish_run(tmp_path, model, SEEDS[:2], **FEW)
    assert (said["counts"]["failed"], said["counts"]["accepted"]) == (0, 2)
    check(tmp_path)


async def test_a_target_is_gone_on_with_behind_what_is_proposed_for_again(tmp_path):
    model = Broken(
        "propose",
        lambda call: (
            CallFailed("propose", "server", "no")
            if SEEDS[0] in tagged(prompt_of(call), "seed")
            else None
        ),
    )
    await finish_run(tmp_path, model, SEEDS[:3], target=6, **FEW)
    failed = [row["slot"] for row in rows(tmp_path, "failed")]
    assert failed == [[r, 0, 0] for r in range(3)]
    model.broken = False
    said = await finish_run(tmp_path, model, SEEDS[:3], target=30, **FEW)
    assert (said["status"], said["counts"]["accepted"]) == ("done", 30)
    assert said["counts"]["failed"] == 0
    slots = [row["slot"] for row in all_rows(tmp_path)]
    positions = [{p for r, p, _ in slots if r == round_} for round_ in range(slots[-1][0])]
    # Rounds without the first seed, as many of it alone, then rounds of all.
    assert positions[:3] == [{1, 2}] * 3
    alone = [number for number, round_ in enumerate(positions) if round_ == {0}]
    assert alone == list(range(alone[0], alone[0] + 3))
    assert all(round_ == {0, 1, 2} for round_ in positions[alone[-1] + 1 :])
    check(tmp_path)
    # Rounds of the first seed alone stay such.
    kept = all_rows(tmp_path)
    said = await finish_run(tmp_path, model, SEEDS[:4], target=40, **FEW)
    assert said["status"] == "done"
    assert [row for row in all_rows(tmp_path) if row in kept] == kept
    slots = [row["slot"] for row in all_rows(tmp_path)]
    assert {p for r, p, _ in slots if r in alone} == {0}
    check(tmp_path)


# --- references ----------------------------------------------------------------------------------


async def test_a_reference_that_could_not_be_read_takes_other_draws(tmp_path):
    model = Broken("extract", lambda call: "{")
    few = {"references_per_seed": 1, "given": references(1)}
    said = await finish_run(tmp_path, model, SEEDS[:3], **few)
    assert said["counts"]["failed"] == 3
    first = {call_content(call) for call in model.sent if call.stage == "extract"}
    model.sent = []
    said = await finish_run(tmp_path, model, SEEDS[:3], **few)
    second = {call_content(call) for call in model.sent if call.stage == "extract"}
    assert second and not first & second
    model.broken = False
    said = await finish_run(tmp_path, model, SEEDS[:3], **few)
    assert (said["counts"]["failed"], said["counts"]["references_failed"]) == (0, 0)
    check(tmp_path)


async def test_a_question_without_odds_is_asked_anew(tmp_path):
    class Oddless(ScriptedModel):
        mended = False

        async def __call__(self, call: Call) -> Reply:
            reply = await super().__call__(call)
            if self.mended or call.kind != "question":
                return reply
            return Reply(reply.text, "stop", reply.usage)

    model = Oddless()
    few = {"references_per_seed": 1, "judge_method": "logodds"}
    said = await finish_run(tmp_path, model, SEEDS[:1], **few)
    assert said["counts"]["failed"] == 1
    model.mended = True
    said = await finish_run(tmp_path, model, SEEDS[:1], **few)
    assert said["counts"]["accepted"] == 1


# --- which runs ----------------------------------------------------------------------------------


async def test_a_run_that_was_interrupted_is_taken_up_without_trying_again(tmp_path):
    model = Broken("generate", of_some(fault()))
    counting = CountingModel(model, 20)
    run = build_run(tmp_path / "out", counting, SEEDS, per_seed=3, concurrency=2, **FEW)
    counting.then = run.stop
    await run.run()
    assert summary_of(tmp_path / "out")["status"] == "interrupted"
    assert rows(tmp_path / "out", "failed")
    await finish_run(tmp_path / "out", model, SEEDS, per_seed=3, **FEW)
    await finish_run(tmp_path / "calm", model, SEEDS, per_seed=3, **FEW)
    assert stable_rows(tmp_path / "out") == stable_rows(tmp_path / "calm")


async def test_a_run_that_was_stopped_for_its_failures_goes_on_once_they_are_mended(tmp_path):
    model = Broken("generate", fault())
    few = {**FEW, "per_seed": 10, "concurrency": 4, "max_failure_rate": 0.5}
    with pytest.raises(TooManyFailed, match=r"mostly generate bad_request: no.*same command again"):
        await finish_run(tmp_path, model, SEEDS, **few)
    failed = len(rows(tmp_path, "failed"))
    assert failed >= 20
    # While it lasts, the same command ends the same way.
    with pytest.raises(TooManyFailed):
        await finish_run(tmp_path, model, SEEDS, **few)
    model.broken = False
    said = await finish_run(tmp_path, model, SEEDS, **few)
    assert said["status"] == "done"
    assert said["counts"]["accepted"] == 80
    check(tmp_path)


async def test_a_provider_that_stops_ends_the_run_and_the_failed_are_tried_again(tmp_path):
    count = 0

    def fails(call: Call) -> Any:
        nonlocal count
        count += 1
        return ProviderStopped("no credit") if count == 12 else fault("server")(call)

    model = Broken("generate", fails)
    with pytest.raises(ProviderStopped):
        await finish_run(tmp_path, model, SEEDS, per_seed=3, concurrency=1, **FEW)
    model.broken = False
    said = await finish_run(tmp_path, model, SEEDS, per_seed=3, **FEW)
    assert (said["counts"]["failed"], said["counts"]["accepted"]) == (0, 24)
    check(tmp_path)


async def test_a_run_of_an_older_version_has_ended_if_its_run_json_says_so(tmp_path):
    model = Broken("generate", fault())
    await finish_run(tmp_path, model, SEEDS[:2], **FEW)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)) as journal:
        journal.execute("DELETE FROM meta WHERE key = 'status'")
        journal.execute("DROP TABLE retries")
        journal.execute("DROP TABLE unusable")
    shutil.copytree(tmp_path, tmp_path / "killed")
    assert read_status(tmp_path)["retriable"] == 2
    model.broken = False
    said = await finish_run(tmp_path, model, SEEDS[:2], **FEW)
    assert said["counts"]["accepted"] == 2
    killed = summary_of(tmp_path / "killed") | {"status": "running"}
    (tmp_path / "killed" / "run.json").write_text(json.dumps(killed))
    said = await finish_run(tmp_path / "killed", model, SEEDS[:2], **FEW)
    assert said["counts"]["failed"] == 2


class Kill(BaseException):
    """The end of a process, as far as one can have it inside a process."""


async def ended_run(out: Path, **few: Any) -> None:
    """A run with failed drafts, lost seeds and a lost reference, some for content."""
    model = Faulty()
    await finish_run(out, model, SEEDS, **few)
    failed = [row["error"]["stage"] for row in rows(out, "failed")]
    assert len(failed) > 8 and {"propose", "generate"} <= set(failed)


class Faulty(MixedModel):
    """Fails by the content of the calls, so that a repeated call fails again."""

    def __init__(self, mended: bool = False) -> None:
        super().__init__()
        self.mended = mended
        mixed = dict(self.stages)

        def generate(call: Call) -> Any:
            number = number_of(instruction_of(call) + str(call.seed))
            if not self.mended and number % 3 == 0:
                return CallFailed("generate", "bad_request", "not now")
            if number % 3 == 1:
                return ""
            return mixed["generate"](call)

        def propose(call: Call) -> Any:
            number = number_of(tagged(prompt_of(call), "seed")[-1] + str(call.seed))
            if not self.mended and number % 4 == 0:
                return CallFailed("propose", "bad_request", "not now")
            return mixed["propose"](call)

        self.stages |= {"generate": generate, "propose": propose}


@pytest.fixture(scope="session")
def retried(tmp_path_factory) -> Path:
    """A folder for runs that have ended, and what trying again makes of them, by their settings."""
    return tmp_path_factory.mktemp("retried")


@pytest.mark.parametrize("at", [2, 4, 9, 15])
@pytest.mark.parametrize("target", [None, 30])
async def test_trying_again_ends_alike_whenever_it_is_interrupted(tmp_path, retried, at, target):
    # What is interrupted at every few calls is smaller.
    per_seed = 2 if at < 9 else 3
    few: dict[str, Any] = {"per_seed": per_seed, "references_per_seed": 1, "target": target}
    few["max_failure_rate"] = 1.0
    if target:
        few["max_candidates"] = 8 * per_seed
    first, calm = (retried / f"{name}-{target}-{per_seed}" for name in ("first", "calm"))
    if not calm.exists():
        await ended_run(first, **few)
        shutil.copytree(first, calm)
        await finish_run(calm, Faulty(mended=True), SEEDS, **few)
        assert stable_rows(calm) != stable_rows(first)
    shutil.copytree(first, tmp_path / "out")
    answered: Counter[str] = Counter()
    for step in range(99):
        model = CountingModel(Faulty(mended=True), at)
        run = build_run(tmp_path / "out", model, SEEDS, concurrency=3, **few)
        task = asyncio.create_task(run.run())
        # In turn a stop that finishes what is in flight, and one that does not.
        model.then = run.stop if step % 2 else task.cancel
        await asyncio.wait([task])
        answered += model.answered
        if model.begun < at:
            break
        if not step % 2:
            # A process that is killed leaves no status.
            with closing(sqlite3.connect(tmp_path / "out" / "journal.sqlite")) as journal, journal:
                journal.execute("UPDATE meta SET value = '\"running\"' WHERE key = 'status'")
    assert summary_of(tmp_path / "out")["status"] in ("done", "short")
    assert stable_rows(tmp_path / "out") == stable_rows(calm)
    counts = [summary_of(out)["counts"] for out in (tmp_path / "out", calm)]
    if target:
        # How far proposals are ahead when the run ends depends on timing.
        counts = [each | {"duplicates": 0} for each in counts]
    assert counts[0] == counts[1]
    check(tmp_path / "out")


async def test_rows_that_are_tried_again_do_not_depend_on_concurrency(tmp_path):
    few = {"per_seed": 3, "references_per_seed": 1, "max_failure_rate": 1.0}
    await ended_run(tmp_path / "first", **few)
    for concurrency in (1, 32):
        out = tmp_path / str(concurrency)
        shutil.copytree(tmp_path / "first", out)
        for _ in range(2):
            await finish_run(out, Faulty(mended=True), SEEDS, concurrency=concurrency, **few)
    assert stable_rows(tmp_path / "1") == stable_rows(tmp_path / "32")
    check(tmp_path / "32")


async def test_a_sample_that_is_tried_again_may_wait_for_review(tmp_path):
    model = Broken("generate", of_some(fault()))
    few = {**FEW, "review": "all"}
    said = await finish_run(tmp_path, model, SEEDS, **few)
    failed, pending = said["counts"]["failed"], said["counts"]["pending"]
    assert failed and pending
    model.broken = False
    said = await finish_run(tmp_path, model, SEEDS, **few)
    assert said["counts"]["failed"] == 0
    assert said["counts"]["pending"] == failed + pending
    check(tmp_path)
    model.sent = []
    again = await finish_run(tmp_path, model, SEEDS, **few)
    assert model.sent == []
    assert again["counts"] == said["counts"]


async def test_nor_on_how_far_ahead_the_first_session_was(tmp_path):
    for concurrency in (1, 4, 32):
        out = tmp_path / str(concurrency)
        few = {"references_per_seed": 1, "max_failure_rate": 1.0, "concurrency": concurrency}
        paid: Counter[str] = Counter()
        for mended, target in ((False, 6), (True, 16), (True, 30)):
            model = CountingModel(Faulty(mended))
            said = await finish_run(out, model, SEEDS[:3], target=target, **few)
            assert said["counts"]["accepted"] == target
            paid += model.answered
        assert max(paid.values()) == 1
        check(out)
        if concurrency > 1:
            assert stable_rows(out) == stable_rows(tmp_path / "1")


# --- another run's calls --------------------------------------------------------------------------


async def test_reuse_leaves_out_the_replies_that_a_sample_failed_by_and_no_others(tmp_path):
    def fails(call: Call) -> Any:
        number = number_of(instruction_of(call)) % 3
        # One never gets a readable answer, one at its second ask.
        return "" if number == 0 or (number == 1 and call.draw == 0) else None

    model = Broken("generate", fails)
    said = await finish_run(tmp_path / "a", model, SEEDS, per_seed=3, **FEW)
    failed = said["counts"]["failed"]
    assert 2 < failed < 20
    model.sent = []
    model.fails = lambda call: "" if number_of(instruction_of(call)) % 3 == 1 else None
    said = await finish_run(tmp_path / "b", model, SEEDS, per_seed=3, reuse=tmp_path / "a", **FEW)
    assert said["counts"]["failed"] == 0
    assert len(model.sent) == said["calls"]["paid"] == failed
    # It needs the other no more.
    shutil.rmtree(tmp_path / "a")
    model.sent = []
    again = await finish_run(tmp_path / "b", model, SEEDS, per_seed=3, **FEW)
    assert model.sent == []
    assert again["counts"] == said["counts"]


async def test_reuse_of_a_run_that_was_mended_pays_nothing_and_has_its_rows(tmp_path):
    model = Broken("generate", of_some(lambda call: ""))
    await finish_run(tmp_path / "a", model, SEEDS, **FEW)
    model.broken = False
    await finish_run(tmp_path / "a", model, SEEDS, **FEW)
    assert rows(tmp_path / "a", "failed") == []
    model.sent = []
    await finish_run(tmp_path / "b", model, SEEDS, reuse=tmp_path / "a", **FEW)
    assert model.sent == []
    assert stable_rows(tmp_path / "b") == stable_rows(tmp_path / "a")


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "references.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in references(6)))
    yield path


def test_nothing_accepted_and_something_failed_is_exit_status_three(tmp_path, pairs):
    def script(body, number):
        if stage_of(body) != "propose":
            return None
        seed = tagged(body["messages"][-1]["content"], "seed")
        second = seed and seed[-1] == references(6)[1]["instruction"]
        return error(400, "the mouse is loose" if second else "the cat is out", "x")

    with Endpoint(script) as endpoint:
        flags = run_flags(pairs, tmp_path / "out", endpoint)
        done = refloom(*flags, "--quiet", cwd=tmp_path)
        assert done.returncode == 3, done.stderr
        assert done.stdout.startswith("done: 0 accepted")
        last = done.stderr.splitlines()[-1]
        assert last.startswith("refloom: nothing was accepted, and 6 samples failed: 5 at propose")
        assert last.index("the cat is out") < last.index("the mouse is loose")
        assert "6 failed samples are tried again by the same command" in done.stdout
        status = refloom("status", tmp_path / "out", cwd=tmp_path).stdout
        assert "6 failed samples are tried again by the same command" in status
        endpoint.script = None
        done = refloom(*flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "done: 6 accepted, 0 rejected, 0 failed" in done.stdout
        assert "tried again" not in done.stdout


def test_what_failed_is_left_alone_by_no_retry_failed(tmp_path, pairs):
    def script(body, number):
        bad = stage_of(body) == "critique" and "no other" not in str(body)
        return error(400, "out") if bad and number % 2 else None

    with Endpoint(script) as endpoint:
        flags = run_flags(pairs, tmp_path / "out", endpoint, "--quiet", "--no-try-criteria")
        refloom(*flags, "--max-failure-rate", "1", cwd=tmp_path)
        failed = rows(tmp_path / "out", "failed")
        assert failed
        endpoint.script = None
        endpoint.bodies.clear()
        refloom(*flags, "--max-failure-rate", "1", "--no-retry-failed", cwd=tmp_path)
        assert endpoint.bodies == []
        assert rows(tmp_path / "out", "failed") == failed
        done = refloom(*flags, "--max-failure-rate", "1", cwd=tmp_path)
        assert done.returncode == 0
        assert rows(tmp_path / "out", "failed") == []
