"""Whole runs with a scripted model: rows, counts, and what a stop, a fault or a change does."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from fakes import (
    USAGE,
    Endpoint,
    ScriptedModel,
    answer,
    error,
    letters,
    prompt_of,
    stage_of,
    tagged,
    verdicts,
    words,
)
from runs import (
    SEEDS,
    STATUSES,
    CountingModel,
    MixedModel,
    all_rows,
    build_run,
    finish_run,
    references,
    rows,
    stable_rows,
    summary_of,
)

from nodes.llm import Call, CallFailed, ProviderStopped, Reply
from refloom import synthesize
from refloom.data.read import Source
from refloom.errors import InputError, JournalError
from refloom.runs.client import CachedClient
from refloom.runs.cost import Budget, Prices
from refloom.runs.journal import Journal, lock_holder
from refloom.runs.outputs import RunSummary, read_status
from refloom.runs.rate_limit import Limiter
from refloom.settings import Settings

RECORD = {
    *("instruction_criteria", "instruction_verdicts", "reasoning"),
    *("id", "seed_id", "slot", "instruction", "response", "status", "reason", "reference_ids"),
    *("criteria", "attempts", "feedback", "model", "judge_model", "prompt_version"),
    *("random_seed", "usage", "cost_usd", "created"),
}
COUNTS = {
    *("seeds", "candidates", "accepted", "rejected", "failed", "pending", "duplicates"),
    *("screened", "unfit", "surplus"),
    *("contaminated", "references", "references_failed", "rows_skipped"),
}


def assert_adds_up(out: Path) -> None:
    """What run.json counts is what is in the files, and in the journal."""
    said = summary_of(out)
    counts = said["counts"]
    assert set(counts) == COUNTS
    for status in STATUSES:
        found = rows(out, status)
        assert counts[status] == len(found)
        assert all(row["status"] == status for row in found)
        assert [row["slot"] for row in found] == sorted(row["slot"] for row in found)
    slots = [tuple(row["slot"]) for row in all_rows(out)]
    assert len(slots) == len(set(slots))
    ended = counts["accepted"] + counts["rejected"] + counts["failed"]
    assert counts["candidates"] == ended + counts["pending"]
    assert counts["contaminated"] <= counts["rejected"]
    assert said["calls"]["paid"] == sum(said["calls"]["by_stage"].values())
    assert said["usage"]["calls"] == said["calls"]["paid"]
    assert not list(out.glob("*.new"))


# --- what a run leaves -------------------------------------------------------------------------


async def test_a_run_of_an_agreeable_model_accepts_a_row_a_seed(tmp_path):
    model = ScriptedModel()
    said = await finish_run(tmp_path, model, try_criteria=True)
    assert said["status"] == "done"
    assert said["counts"] == {
        **dict.fromkeys(COUNTS, 0),
        **{"seeds": 3, "candidates": 3, "accepted": 3, "references": 3},
    }
    assert said["criteria"] == {"proposed": 6, "earned": 0, "demoted": 6, "dropped": 0}
    assert said["calls"]["by_stage"]["extract"] == 3
    assert said["calls"]["by_stage"]["propose"] == said["calls"]["by_stage"]["generate"] == 3
    assert said["calls"]["paid"] == len(model.calls)
    assert (said["calls"]["reused"], said["calls"]["retried"]) == (0, 0)
    assert said["usage"]["prompt_tokens"] == 10 * len(model.calls)
    assert said["usage"]["cached_tokens"] == 4 * len(model.calls)
    assert said["usage"]["completion_tokens"] == 5 * len(model.calls)
    assert said["cost_usd"] is None
    assert said["seconds"] > 0
    assert said["settings"]["model"] == "m"
    assert len(said["fingerprint"]) == 16
    assert_adds_up(tmp_path)


async def test_a_record_has_the_keys_of_the_design_and_no_other(tmp_path):
    await finish_run(tmp_path, MixedModel(), SEEDS, per_seed=3)
    by_status = {status: rows(tmp_path, status) for status in STATUSES}
    assert all(by_status.values())
    for status, found in by_status.items():
        for row in found:
            assert set(row) == RECORD | ({"error"} if status == "failed" else set())
            assert set(row["usage"]) == set(USAGE)
            for criterion in row["criteria"]:
                keys = {"id", "text", "must", "reference_id", "quote", "judged_by"}
                keys |= {"weight", "check", "trial"}
                assert set(criterion) == keys
            for attempt in row["attempts"]:
                assert set(attempt) == {"response", "verdicts"}
                for verdict in attempt["verdicts"]:
                    keys = {"criterion_id", "verdict", "reason", "evidence", "score"}
                    assert set(verdict) == keys
                    assert verdict["verdict"] in ("pass", "fail", "not_applicable", "unknown")
            assert (row["model"], row["judge_model"], row["feedback"]) == ("m", "m", "reference")
    assert all(row["reason"] is None for row in by_status["accepted"] + by_status["failed"])
    assert all(row["reason"] in ("criteria", "no_progress") for row in by_status["rejected"])
    for row in by_status["failed"]:
        assert row["error"] == {
            "stage": "generate",
            "kind": "bad_request",
            "message": "not this one",
        }
        assert row["instruction"]
        assert row["response"] is None
    assert_adds_up(tmp_path)


async def test_the_response_of_a_record_is_that_of_one_of_its_attempts(tmp_path):
    await finish_run(tmp_path, MixedModel(), SEEDS)
    for row in rows(tmp_path, "accepted") + rows(tmp_path, "rejected"):
        assert row["response"] in [a["response"] for a in row["attempts"]]
        assert 1 <= len(row["attempts"]) <= 3


async def test_ids_are_the_seeds_own_and_records_have_their_own(tmp_path):
    seeds = [{"id": "mine", "instruction": SEEDS[0]}, {"instruction": SEEDS[1]}]
    await finish_run(tmp_path, ScriptedModel(), seeds, per_seed=2)
    found = all_rows(tmp_path)
    assert [row["seed_id"] for row in found][:2] == ["mine", "mine"]
    assert len({row["id"] for row in found}) == 4
    assert [row["slot"] for row in found] == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]


async def test_ids_too_long_for_a_seed_cost_no_sample(tmp_path):
    seeds = [{"id": "x" * 300 + end, "instruction": SEEDS[0]} for end in "ab"]
    said = await finish_run(tmp_path, ScriptedModel(), seeds, per_seed=1)
    assert said["counts"]["failed"] == 0
    found = {row["seed_id"] for row in all_rows(tmp_path)}
    assert {id_[:100] for id_ in found} == {"x" * 100}


async def test_without_seeds_every_reference_is_its_own_seed(tmp_path):
    said = await finish_run(tmp_path, ScriptedModel(), None, references_per_seed=1)
    assert said["counts"]["seeds"] == 3
    found = rows(tmp_path, "accepted")
    assert [(row["seed_id"], row["reference_ids"]) for row in found] == [
        (f"r{i}", [f"r{i}"]) for i in range(3)
    ]


async def test_each_record_is_told_of_once_it_is_kept(tmp_path):
    heard: list[dict[str, Any]] = []
    await finish_run(tmp_path, MixedModel(), SEEDS, on_record=heard.append, per_seed=2)
    assert sorted(heard, key=lambda row: row["slot"]) == all_rows(tmp_path)


async def test_rows_do_not_depend_on_concurrency(tmp_path):
    for concurrency in (1, 5, 50):
        said = await finish_run(
            tmp_path / str(concurrency), MixedModel(), SEEDS, per_seed=3, concurrency=concurrency
        )
        assert said["counts"]["duplicates"] > 0
    assert (
        stable_rows(tmp_path / "1") == stable_rows(tmp_path / "5") == stable_rows(tmp_path / "50")
    )


async def test_rows_that_were_skipped_are_counted_and_named(tmp_path):
    said = await finish_run(tmp_path, ScriptedModel(), [SEEDS[0], {"question": "x"}, 7])
    assert said["counts"]["rows_skipped"] == 2
    assert [s["line"] for s in said["skipped"]] == [2, 3]
    assert_adds_up(tmp_path)


async def test_a_file_that_cannot_be_read_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "seeds.jsonl").write_text('{"instruction": "Why?"}\n{')
    model = ScriptedModel()
    run = build_run(tmp_path / "out", model)
    run.seeds = Source(tmp_path / "seeds.jsonl", as_reference=False)
    with pytest.raises(InputError, match="line 2"):
        await run.run()
    assert model.calls == []
    assert not (tmp_path / "out").exists()


# --- what goes wrong ---------------------------------------------------------------------------


async def test_one_failing_call_is_one_failed_sample_and_its_siblings_go_on(tmp_path):
    seen = []

    def once(call: Call) -> Any:
        seen.append(call)
        if len(seen) == 2:
            return CallFailed("generate", "filtered", "not that")
        return answer("generate", prompt_of(call), call.seed)

    said = await finish_run(tmp_path, ScriptedModel(generate=once), SEEDS[:2], per_seed=3)
    assert (said["counts"]["accepted"], said["counts"]["failed"]) == (5, 1)
    (failed,) = rows(tmp_path, "failed")
    assert failed["error"] == {"stage": "generate", "kind": "filtered", "message": "not that"}
    assert_adds_up(tmp_path)


@pytest.mark.parametrize(
    ("stage", "failed", "kind"),
    [("propose", 1, "bad_request"), ("critique", 3, "bad_request"), ("generate", 3, "bad_request")],
)
async def test_a_stage_that_fails_for_one_seed_fails_that_seed_alone(tmp_path, stage, failed, kind):
    marked = SEEDS[1]

    def for_one(call: Call) -> Any:
        prompt = prompt_of(call)
        if marked in prompt or "of seed 1" in prompt:
            return CallFailed(stage, kind, "no")
        return answer(stage, prompt, call.seed)

    def propose(call: Call) -> Any:
        said = answer("propose", prompt_of(call), call.seed)
        if marked in prompt_of(call):
            said["instructions"] = [t + " of seed 1" for t in said["instructions"]]
        return said

    stages = {"propose": propose} | {stage: for_one}
    said = await finish_run(tmp_path, ScriptedModel(**stages), per_seed=3)
    assert said["counts"]["failed"] == failed
    assert said["counts"]["accepted"] == 6
    for row in rows(tmp_path, "failed"):
        assert row["slot"][1] == 1
        assert row["error"]["stage"] == stage
        assert (row["instruction"] is None) == (stage == "propose")
    assert_adds_up(tmp_path)


async def test_a_reference_that_cannot_be_learned_from_is_left_out(tmp_path):
    bad = references()[1]["response"]

    def extract(call: Call) -> Any:
        if bad in prompt_of(call):
            return CallFailed("extract", "refused", "no")
        return answer("extract", prompt_of(call), call.seed)

    said = await finish_run(tmp_path, ScriptedModel(extract=extract))
    assert said["counts"]["references_failed"] == 1
    assert said["counts"]["accepted"] == 3
    assert all(c["reference_id"] != "r1" for row in all_rows(tmp_path) for c in row["criteria"])
    assert_adds_up(tmp_path)


@pytest.mark.parametrize(
    ("stage", "target"),
    [
        *[(stage, None) for stage in ("extract", "propose", "generate", "critique", "every")],
        *[(stage, 4) for stage in ("propose", "every")],
    ],
)
async def test_a_run_in_which_every_call_fails_ends(tmp_path, stage, target):
    class Failing(ScriptedModel):
        async def __call__(self, call: Call) -> Reply:
            if stage in (call.stage, "every"):
                raise CallFailed(call.stage, "refused", "no")
            return await super().__call__(call)

    said = await finish_run(tmp_path, Failing(), target=target, max_candidates=target and 7)
    assert said["status"] == ("short" if target else "done")
    counts = said["counts"]
    assert counts["accepted"] == 0
    assert counts["failed"] == counts["candidates"] == (7 if target else 3)
    assert_adds_up(tmp_path)


@pytest.mark.parametrize(
    ("max_attempts", "attempts", "reason"),
    [(1, 1, "criteria"), (3, 3, "criteria"), (6, 3, "no_progress")],
)
async def test_a_judge_that_never_passes_ends_with_rejected(
    tmp_path, max_attempts, attempts, reason
):
    model = ScriptedModel(critique=lambda call: verdicts(prompt_of(call), "fail"))
    said = await finish_run(tmp_path, model, max_attempts=max_attempts)
    assert said["counts"]["rejected"] == said["counts"]["candidates"] == 3
    for row in rows(tmp_path, "rejected"):
        assert len(row["attempts"]) == attempts
        assert row["reason"] == reason
        assert row["response"]
    assert rows(tmp_path, "accepted") == []
    assert_adds_up(tmp_path)


async def test_a_judge_that_never_passes_ends_a_run_with_a_target_too(tmp_path):
    model = ScriptedModel(critique=lambda call: verdicts(prompt_of(call), "fail"))
    said = await finish_run(tmp_path, model, target=2, max_attempts=1)
    assert said["status"] == "short"
    assert said["counts"]["rejected"] == said["counts"]["candidates"] == 20
    assert_adds_up(tmp_path)


@pytest.mark.parametrize("said_of", ["", "I think it is fine.", '{"verdicts": []}', "{"])
async def test_a_judge_that_cannot_be_read_accepts_nothing(tmp_path, said_of):
    said = await finish_run(tmp_path, ScriptedModel(critique=lambda call: said_of), SEEDS[:1])
    assert said["counts"]["accepted"] == 0
    assert said["counts"]["candidates"] == 1
    assert_adds_up(tmp_path)


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(
            3,
        ),
        70,
    ],
)
async def test_a_model_that_proposes_nothing_new_ends_the_run(tmp_path, seeds):
    asked = 0

    def same(call: Call) -> Any:
        nonlocal asked
        asked += 1
        if asked > 600:
            return ProviderStopped("asked for ever")
        return {"instructions": ["which quartz river has umber and violet banks"]}

    given = [words(f"many {i}", 8) for i in range(seeds)]
    few = {"feedback": "none", "references_per_seed": 1, "target": 5}
    said = await finish_run(tmp_path, ScriptedModel(propose=same), given, **few)
    assert said["status"] == "short"
    assert said["counts"]["accepted"] == said["counts"]["candidates"] == 1
    assert said["counts"]["duplicates"] > 1
    assert_adds_up(tmp_path)


async def test_a_provider_that_stops_ends_the_run_and_what_was_paid_is_kept(tmp_path):
    def out_of_quota(call: Call) -> Any:
        return ProviderStopped("the quota is used up")

    with pytest.raises(ProviderStopped, match="quota"):
        await finish_run(tmp_path, ScriptedModel(generate=out_of_quota))
    said = summary_of(tmp_path)
    assert said["status"] == "stopped"
    assert said["calls"]["by_stage"]["extract"] == 3
    assert said["counts"]["pending"] == said["counts"]["candidates"] > 0
    assert_adds_up(tmp_path)
    again = CountingModel(ScriptedModel())
    said = await finish_run(tmp_path, again)
    assert said["counts"]["accepted"] == 3
    assert not any(c.stage == "extract" for c in again.model.calls)


@pytest.mark.parametrize("seed", ["x" * 100_001, "half an emoji \ud83d", ""], ids=lambda s: s[:9])
async def test_a_seed_that_the_graph_does_not_take_costs_itself_alone(tmp_path, seed):
    said = await finish_run(tmp_path, ScriptedModel(), [SEEDS[0], seed, SEEDS[1]])
    assert said["counts"]["accepted"] >= 2
    assert_adds_up(tmp_path)


async def test_a_reference_with_half_an_emoji_does_not_end_the_run(tmp_path):
    given = [*references(), {"instruction": "Why \ud83d?", "response": "So."}]
    said = await finish_run(tmp_path, ScriptedModel(), given=given)
    assert said["counts"]["accepted"] == 3


async def test_a_refusal_with_half_an_emoji_is_a_failed_sample(tmp_path):
    refusal = Reply(None, "stop", dict(USAGE), refusal="no \ud83d")
    run = build_run(tmp_path, ScriptedModel(generate=lambda call: refusal), SEEDS[:1])
    async with asyncio.timeout(20):
        await run.run()
    assert summary_of(tmp_path)["counts"]["failed"] == 1


# --- how much is made --------------------------------------------------------------------------


async def test_duplicate_seeds_are_seeds_but_their_instructions_are_new(tmp_path):
    said = await finish_run(tmp_path, CountingModel(ScriptedModel()), [SEEDS[0]] * 3 + [SEEDS[1]])
    assert said["counts"]["seeds"] == 4
    assert said["counts"]["duplicates"] > 0
    instructions = [row["instruction"] for row in all_rows(tmp_path)]
    assert len(instructions) == len(set(instructions)) == said["counts"]["candidates"]
    assert_adds_up(tmp_path)


async def test_a_call_is_made_once_in_a_run(tmp_path):
    model = CountingModel(MixedModel())
    said = await finish_run(tmp_path, model, [*SEEDS, SEEDS[0]], per_seed=3, concurrency=2)
    assert max(model.answered.values()) == 1
    assert said["calls"]["paid"] == len(model.answered)


async def test_an_equal_call_later_in_the_session_is_answered_from_the_journal(tmp_path):
    replies = iter(range(9))

    async def send(call: Call) -> Reply:
        return Reply(str(next(replies)), "stop", dict(USAGE))

    journal = Journal(tmp_path)
    try:
        prices = Prices({})
        budget = Budget(max_cost=None, max_tokens=None, prices=prices)
        calls = CachedClient(
            send,
            journal,
            Limiter(2),
            budget,
            timeout=600,
            addresses=("", ""),
            stages={},
            prices=prices,
        )
        call = Call("generate", ({"role": "user", "content": "x"},), None, "m", False, 1, 0.0, 1)
        assert [(await calls(call)).text for _ in range(3)] == ["0", "0", "0"]
        assert calls.counts["paid"] == 1
    finally:
        journal.close()


@pytest.mark.parametrize(("target", "concurrency"), [(1, 40), (4, 7), (9, 1), (9, 40)])
async def test_a_target_is_met_exactly(tmp_path, target, concurrency):
    model = MixedModel()
    said = await finish_run(
        tmp_path, model, SEEDS, per_seed=2, target=target, concurrency=concurrency
    )
    assert said["status"] == "done"
    assert said["counts"]["accepted"] == target == len(rows(tmp_path, "accepted"))
    assert said["counts"]["pending"] == 0
    last = all_rows(tmp_path)[-1]
    assert last["status"] == "accepted"
    assert_adds_up(tmp_path)


async def test_what_a_target_starts_is_the_beginning_of_what_a_higher_one_starts(tmp_path):
    for target in (3, 6):
        await finish_run(tmp_path / str(target), MixedModel(), SEEDS, per_seed=2, target=target)
    few, many = stable_rows(tmp_path / "3"), stable_rows(tmp_path / "6")
    assert many[: len(few)] == few


async def test_a_round_is_over_when_all_of_its_seeds_have_had_their_turn(tmp_path):
    """One seed has no news any more; the other's first row takes long, and it needs many."""
    exhausted, fresh = SEEDS[:2]
    proposed = written = 0

    def generate(call: Call) -> Any:
        nonlocal written
        written += 1
        return {"response": "A fine answer." if written == 75 else "TODO"}

    class Uneven(ScriptedModel):
        async def __call__(self, call: Call) -> Reply:
            nonlocal proposed
            if call.stage == "generate" and not written:
                before = -1
                while before != proposed:
                    before = proposed
                    await asyncio.sleep(0.15)
            elif call.stage == "propose" and fresh in prompt_of(call):
                proposed += 1
                await asyncio.sleep(0.005)
            return await super().__call__(call)

    def propose(call: Call) -> Any:
        if exhausted in prompt_of(call):
            return {"instructions": ["which quartz river has umber and violet banks"]}
        return answer("propose", prompt_of(call), call.seed)

    model = Uneven(propose=propose, generate=generate)
    few = {"feedback": "none", "references_per_seed": 1, "target": 1, "max_candidates": 200}
    said = await finish_run(tmp_path, model, [exhausted, fresh], **few)
    assert (said["status"], said["counts"]["candidates"]) == ("done", 75)


async def test_no_more_candidates_are_made_than_asked_for(tmp_path):
    said = await finish_run(tmp_path, ScriptedModel(), SEEDS, per_seed=3, max_candidates=5)
    assert said["counts"]["accepted"] == said["counts"]["candidates"] == 5
    assert_adds_up(tmp_path)


async def test_each_seed_has_as_many_rows_as_asked_for_and_those_that_fail_are_counted(tmp_path):
    said = await finish_run(tmp_path, MixedModel(), SEEDS, per_seed=3)
    counts = said["counts"]
    assert counts["failed"] > 0
    assert counts["rejected"] > 0
    assert counts["accepted"] > 0
    assert counts["candidates"] <= 3 * len(SEEDS)
    assert all(row["slot"][2] < 3 for row in all_rows(tmp_path))
    assert_adds_up(tmp_path)


async def test_with_answer_seeds_the_seeds_themselves_are_answered(tmp_path):
    model = ScriptedModel()
    seeds = [*SEEDS, SEEDS[2], "  " + SEEDS[3]]
    said = await finish_run(tmp_path, model, seeds, answer_seeds=True)
    assert [row["instruction"] for row in all_rows(tmp_path)] == SEEDS
    assert model.asked("propose") == []
    assert said["counts"]["duplicates"] == 2
    assert said["counts"]["candidates"] == said["counts"]["accepted"] == 8
    assert_adds_up(tmp_path)


async def test_answered_seeds_that_are_alike_but_not_the_same_are_all_answered(tmp_path):
    seeds = ["why do tides rise twice a day", "why do tides rise twice a day?"]
    said = await finish_run(tmp_path, ScriptedModel(), seeds, answer_seeds=True)
    assert said["counts"]["accepted"] == 2


# --- taking a run up again ---------------------------------------------------------------------


_undisturbed: dict[int, list[dict[str, Any]]] = {}


async def undisturbed(folder: Path, per_seed: int) -> list[dict[str, Any]]:
    if per_seed not in _undisturbed:
        await finish_run(folder, MixedModel(), SEEDS, per_seed=per_seed, try_criteria=True)
        _undisturbed[per_seed] = stable_rows(folder)
    return _undisturbed[per_seed]


async def stopped_and_resumed(out: Path, at: int, per_seed: int) -> Counter[str]:
    first = CountingModel(MixedModel(), at)
    same = {"per_seed": per_seed, "try_criteria": True}
    run = build_run(out, first, SEEDS, concurrency=4, **same)
    first.then = run.stop
    async with asyncio.timeout(20):
        await run.run()
    assert summary_of(out)["status"] == "interrupted"
    assert first.begun == at
    assert_adds_up(out)
    second = CountingModel(MixedModel())
    said = await finish_run(out, second, SEEDS, **same)
    assert said["status"] == "done"
    assert_adds_up(out)
    return first.answered + second.answered


@pytest.mark.parametrize("at", [1, 9, 22, 29, 36])
async def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, at):
    answered = await stopped_and_resumed(tmp_path / "out", at, 1)
    assert stable_rows(tmp_path / "out") == await undisturbed(tmp_path / "whole", 1)
    assert max(answered.values()) == 1


@pytest.mark.parametrize("at", [44, 60, 76])
async def test_a_stop_among_the_samples_of_one_seed_loses_nothing(tmp_path, at, monkeypatch):
    died: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    answered = await stopped_and_resumed(tmp_path / "out", at, 3)
    assert died == []
    assert stable_rows(tmp_path / "out") == await undisturbed(tmp_path / "whole", 3)
    assert max(answered.values()) == 1


async def test_a_sample_that_failed_before_a_stop_stays_failed_and_is_not_tried_again(tmp_path):
    stopped = asyncio.Event()

    class FailingFirst(ScriptedModel):
        """Its first draft fails; the others are done when that is kept and the run stops."""

        async def __call__(self, call: Call) -> Reply:
            if call.stage == "generate" and self.asked("generate"):
                await stopped.wait()
            elif call.stage == "generate":
                self.calls.append(call)
                raise CallFailed("generate", "filtered", "not that")
            return await super().__call__(call)

    def stop(record: dict[str, Any]) -> None:
        run.stop()
        stopped.set()

    few = {"per_seed": 3, "concurrency": 1, "target": 5, "max_candidates": 6}
    run = build_run(tmp_path, FailingFirst(), SEEDS[:2], on_record=stop, **few)
    async with asyncio.timeout(20):
        await run.run()
    before = rows(tmp_path, "failed")
    assert len(before) == 1
    assert rows(tmp_path, "accepted") == []
    model = ScriptedModel()
    said = await finish_run(tmp_path, model, SEEDS[:2], **few)
    assert rows(tmp_path, "failed") == before
    assert said["counts"]["accepted"] == 5
    asked = [tagged(prompt, "instruction")[-1] for prompt in model.asked("generate")]
    assert not set(asked) & {row["instruction"] for row in before}
    assert_adds_up(tmp_path)


@pytest.mark.parametrize("at", [2, 20, 30])
async def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path, at):
    first = CountingModel(MixedModel(), at)
    run = build_run(tmp_path / "out", first, SEEDS, concurrency=4, try_criteria=True)
    cut_off = asyncio.create_task(run.run())
    first.then = cut_off.cancel
    async with asyncio.timeout(20):
        await asyncio.wait([cut_off])
    assert cut_off.cancelled()
    assert lock_holder(tmp_path / "out") is None
    said = await finish_run(tmp_path / "out", MixedModel(), SEEDS, try_criteria=True)
    assert said["status"] == "done"
    assert stable_rows(tmp_path / "out") == await undisturbed(tmp_path / "whole", 1)
    assert_adds_up(tmp_path / "out")


def calls_left(before: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    names = ("CachedClient", "Characteristics")
    return [t for t in asyncio.all_tasks() - before if any(n in repr(t) for n in names)]


async def test_a_run_that_was_cut_off_makes_no_further_call_and_leaves_no_task(tmp_path):
    before = asyncio.all_tasks()
    over = asyncio.Event()

    class Slow(ScriptedModel):
        async def __call__(self, call: Call) -> Reply:
            if len(self.calls) == 12:
                cut_off.cancel()
            if len(self.calls) >= 12:
                await over.wait()
            return await super().__call__(call)

    model = Slow()
    cut_off = asyncio.create_task(build_run(tmp_path, model, SEEDS, concurrency=2).run())
    async with asyncio.timeout(10):
        await asyncio.wait([cut_off])
    asked = len(model.calls)
    over.set()
    await asyncio.sleep(0.1)
    left = calls_left(before)
    for task in left:
        task.cancel()
    assert left == []
    assert len(model.calls) == asked


async def test_a_run_that_is_stopped_before_its_first_call_makes_none(tmp_path):
    model = ScriptedModel()
    run = build_run(tmp_path, model)
    run.stop()
    async with asyncio.timeout(20):
        await run.run()
    assert model.calls == []
    assert summary_of(tmp_path)["status"] == "interrupted"


async def test_a_stop_while_references_are_learned_is_no_failure_of_theirs(tmp_path):
    model = CountingModel(ScriptedModel(), 4)
    run = build_run(tmp_path, model, concurrency=1, try_criteria=True)
    model.then = run.stop
    await run.run()
    assert read_status(tmp_path)["counts"]["references_failed"] == 0


async def test_a_reference_that_is_learned_at_the_second_try_is_not_counted_as_failed(tmp_path):
    failed = asyncio.Event()

    def extract(call: Call) -> Any:
        if not failed.is_set():
            failed.set()
            return CallFailed("extract", "filtered", "not now")
        return answer("extract", prompt_of(call), call.seed)

    async def embed(texts: Sequence[str]) -> Any:
        if SEEDS[1] in texts:
            await failed.wait()
            await asyncio.sleep(0.05)
        return await letters(list(texts))

    run = build_run(tmp_path, ScriptedModel(extract=extract), SEEDS[:2], given=references(1))
    run.tools.embed = embed
    async with asyncio.timeout(20):
        await run.run()
    said = summary_of(tmp_path)
    assert (said["counts"]["failed"], said["counts"]["accepted"]) == (1, 1)
    assert said["counts"]["references_failed"] == 0
    assert said["criteria"]["proposed"] == 2


async def test_a_finished_run_is_done_at_once_when_taken_up_again(tmp_path):
    before = await finish_run(tmp_path, MixedModel(), SEEDS, per_seed=2)
    kept = stable_rows(tmp_path)
    model = ScriptedModel()
    after = await finish_run(tmp_path, model, SEEDS, per_seed=2, retry_failed=False)
    assert model.calls == []
    assert stable_rows(tmp_path) == kept
    assert after["counts"] == before["counts"]
    assert after["calls"]["paid"] == before["calls"]["paid"]
    assert after["criteria"] == before["criteria"]


def files_of(out: Path) -> dict[str, tuple[str, int]]:
    names = (*(f"{status}.jsonl" for status in STATUSES), "dropped.jsonl", "run.json", "README.md")
    return {name: ((out / name).read_text(), (out / name).stat().st_mtime_ns) for name in names}


async def test_the_files_of_a_finished_run_are_left_as_they_are(tmp_path):
    first = await finish_run(tmp_path, ScriptedModel(), target=2)
    files = files_of(tmp_path)
    again = build_run(tmp_path, ScriptedModel(), target=2)
    summary = await again.run()
    assert files_of(tmp_path) == files
    assert (summary.status, summary.counts, summary.seconds) == (
        "done",
        first["counts"],
        pytest.approx(first["seconds"], abs=0.01),
    )


@pytest.mark.parametrize("name", ["accepted.jsonl", "dropped.jsonl", "README.md", "run.json"])
async def test_a_file_of_a_finished_run_that_was_changed_is_written_again(tmp_path, name):
    await finish_run(tmp_path, ScriptedModel())
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(text.replace("seed", "weed") + "{}")
    await finish_run(tmp_path, ScriptedModel())

    def timeless(text: str) -> str:
        text = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "then", text)
        return re.sub(r'("seconds": )[\d.]+', r"\g<1>0", text)

    assert timeless((tmp_path / name).read_text()) == timeless(text)
    (tmp_path / name).unlink()
    await finish_run(tmp_path, ScriptedModel())
    assert (tmp_path / name).is_file()


async def test_seeds_appended_in_a_session_that_is_cut_off_at_once_are_not_forgotten(
    tmp_path, monkeypatch
):
    await finish_run(tmp_path, ScriptedModel(), SEEDS[:3])

    class CutOff(BaseException):
        pass

    store = RunSummary.store

    async def store_and_end(summary: RunSummary, journal: Journal) -> None:
        await store(summary, journal)
        await journal.flush()
        raise CutOff

    with monkeypatch.context() as patch, pytest.raises(CutOff):
        patch.setattr(RunSummary, "store", store_and_end)
        await build_run(tmp_path, ScriptedModel(), SEEDS[:5]).run()
    after = await finish_run(tmp_path, ScriptedModel(), SEEDS[:5])
    assert after["counts"]["accepted"] == 5


async def test_references_that_were_deleted_are_stored_again_by_the_same_command(tmp_path):
    await finish_run(tmp_path, ScriptedModel())
    (stored,) = (tmp_path / "memory").glob("references-*.parquet")
    stored.unlink()
    await finish_run(tmp_path, ScriptedModel())
    assert stored.is_file()


async def test_failed_samples_of_a_finished_run_are_tried_again(tmp_path):
    def fail(call: Call) -> str:
        raise CallFailed("timeout", "no reply")

    await finish_run(tmp_path, ScriptedModel(generate=fail), max_failure_rate=1)
    model = ScriptedModel()
    after = await finish_run(tmp_path, model, retry_failed=False, max_failure_rate=1)
    assert (model.calls, after["counts"]["failed"]) == ([], 3)
    for _ in range(2):
        after = await finish_run(tmp_path, model, max_failure_rate=1)
        assert (after["counts"]["accepted"], after["counts"]["failed"]) == (3, 0)


async def test_appended_seeds_are_taken_up_and_the_others_are_kept(tmp_path):
    await finish_run(tmp_path, MixedModel(), SEEDS[:5])
    kept = stable_rows(tmp_path)
    model = CountingModel(MixedModel())
    said = await finish_run(tmp_path, model, SEEDS)
    assert said["counts"]["seeds"] == 8
    assert [r for r in stable_rows(tmp_path) if r["slot"][1] < 5] == kept
    assert {r["slot"][1] for r in stable_rows(tmp_path)} > {5, 6}
    assert_adds_up(tmp_path)


async def test_appended_references_are_taken_up_and_finished_rows_are_kept(tmp_path):
    await finish_run(tmp_path, ScriptedModel(), SEEDS[:2])
    kept = stable_rows(tmp_path)
    said = await finish_run(tmp_path, ScriptedModel(), SEEDS[:4], given=references(5))
    assert said["counts"]["references"] == 5
    assert stable_rows(tmp_path)[:2] == kept
    assert said["counts"]["accepted"] == 4
    model = ScriptedModel()
    await finish_run(tmp_path / "own", ScriptedModel(), None)
    said = await finish_run(tmp_path / "own", model, None, given=references(5))
    assert said["counts"]["seeds"] == said["counts"]["accepted"] == 5
    assert len(model.asked("generate")) == 2


async def test_a_higher_target_continues(tmp_path):
    await finish_run(tmp_path / "once", MixedModel(), SEEDS, target=8)
    before = CountingModel(MixedModel())
    await finish_run(tmp_path / "twice", before, SEEDS, target=4)
    assert len(rows(tmp_path / "twice", "accepted")) == 4
    after = CountingModel(MixedModel())
    said = await finish_run(tmp_path / "twice", after, SEEDS, target=8)
    assert said["counts"]["accepted"] == 8
    assert stable_rows(tmp_path / "twice") == stable_rows(tmp_path / "once")
    assert max((before.answered + after.answered).values()) == 1
    assert_adds_up(tmp_path / "twice")


@pytest.mark.parametrize(
    "changed",
    [
        {"concurrency": 3},
        {"quiet": True},
        {"memory": "elsewhere"},
        {"limit": 9},
    ],
    ids=str,
)
async def test_what_makes_no_other_rows_may_differ(tmp_path, changed):
    if "memory" in changed:
        changed = {"memory": tmp_path / "elsewhere"}
    few = {"target": 3, "feedback": "none", "references_per_seed": 1}
    await finish_run(tmp_path / "out", ScriptedModel(), **few)
    said = await finish_run(tmp_path / "out", ScriptedModel(), **{**few, **changed})
    assert said["status"] == "done"


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run that is refused to all who would go on with it otherwise, and so is never changed."""
    out = tmp_path_factory.mktemp("finished")
    asyncio.run(finish_run(out, ScriptedModel()))
    return out


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "another"},
        {"judge_model": "another"},
        {"judge_method": "logodds"},
        {"embedding_model": "another"},
        {"base_url": "http://127.0.0.1:9/v1"},
        {"per_seed": 2},
        {"answer_seeds": True},
        {"references_per_seed": 2},
        {"max_attempts": 4},
        {"max_criteria": 2},
        {"should_share": 0.25},
        {"try_criteria": True},
        {"novelty_threshold": 0.6},
        {"feedback": "generic"},
        {"random_seed": 5},
        {"stages": {"generate": {"temperature": 0.125}}},
    ],
    ids=str,
)
async def test_any_other_setting_that_differs_is_refused_and_named(finished_run, changed):
    before = (finished_run / "run.json").read_bytes()
    model = ScriptedModel()
    with pytest.raises(JournalError) as refusal:
        await finish_run(finished_run, model, **changed)
    ((name, value),) = changed.items()
    assert name in str(refusal.value)
    assert (str(value) if not isinstance(value, dict) else "0.125") in str(refusal.value)
    assert "another --out" in str(refusal.value)
    assert model.calls == []
    assert (finished_run / "run.json").read_bytes() == before
    assert lock_holder(finished_run) is None


async def test_a_lower_target_is_refused(tmp_path):
    await finish_run(tmp_path, ScriptedModel(), target=4)
    with pytest.raises(JournalError, match="target"):
        await finish_run(tmp_path, ScriptedModel(), target=2)


def changed_rows(kind: str) -> dict[str, Any]:
    other = references()
    other[1] = {**other[1], "response": "Another response altogether."}
    return {
        "a seed changed": {"seeds": [SEEDS[0], "something else", SEEDS[2]]},
        "a seed left out": {"seeds": SEEDS[:2]},
        "seeds in another order": {"seeds": SEEDS[2::-1]},
        "a seed put before": {"seeds": [SEEDS[5], *SEEDS[:3]]},
        "a reference changed": {"given": other},
        "a reference left out": {"given": references()[:2]},
        "references in another order": {"given": references()[::-1]},
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        *("a seed changed", "a seed left out", "seeds in another order", "a seed put before"),
        *("a reference changed", "a reference left out", "references in another order"),
    ],
)
async def test_rows_that_are_not_only_appended_are_refused(finished_run, kind):
    kept = {p.name: p.read_bytes() for p in finished_run.glob("*.json*")}
    model = ScriptedModel()
    with pytest.raises(JournalError, match="references" if "reference" in kind else "seeds"):
        await finish_run(finished_run, model, **changed_rows(kind))
    assert model.calls == []
    assert {p.name: p.read_bytes() for p in finished_run.glob("*.json*")} == kept


async def test_a_second_run_in_the_same_directory_at_once_is_refused(tmp_path):
    model = CountingModel(ScriptedModel(), 5)
    run = build_run(tmp_path, model)
    refused: list[Any] = []

    async def second() -> None:
        with pytest.raises(JournalError, match="pid") as refusal:
            await build_run(tmp_path, ScriptedModel()).run()
        refused.append(refusal)

    tasks: list[asyncio.Task[None]] = []
    model.then = lambda: tasks.append(asyncio.create_task(second()))
    summary = await run.run()
    await asyncio.gather(*tasks)
    assert len(refused) == 1
    assert summary.counts["accepted"] == 3


async def test_the_status_of_a_run_is_brought_up_to_date_from_its_journal(tmp_path):
    await finish_run(tmp_path, MixedModel(), SEEDS)
    said = read_status(tmp_path)
    assert said["status"] == "done"
    assert said["counts"] == summary_of(tmp_path)["counts"]
    (tmp_path / "run.json").unlink()
    assert read_status(tmp_path)["status"] == "interrupted"
    assert read_status(tmp_path)["counts"]["accepted"] == len(rows(tmp_path, "accepted"))
    with pytest.raises(JournalError):
        read_status(tmp_path / "gone")


# --- memory that is shared ---------------------------------------------------------------------


def learning(model: ScriptedModel) -> list[Call]:
    """The calls that learn from references: extractions, and trials of what was extracted."""
    asked_of = {r["instruction"] for r in references()}
    return [
        c
        for c in model.calls
        if c.stage == "extract"
        or (c.stage == "critique" and tagged(prompt_of(c), "instruction")[-1] in asked_of)
    ]


async def test_a_second_run_that_shares_the_memory_learns_nothing_anew(tmp_path):
    first, second = ScriptedModel(), ScriptedModel()
    memory = tmp_path / "memory"
    before = await finish_run(tmp_path / "a", first, SEEDS[:3], memory=memory, try_criteria=True)
    after = await finish_run(tmp_path / "b", second, SEEDS[3:6], memory=memory, try_criteria=True)
    assert len(learning(first)) == 3 + 3 * 4
    assert learning(second) == []
    assert after["criteria"] == before["criteria"]
    assert after["counts"]["accepted"] == 3
    assert not (tmp_path / "b" / "memory").exists()


async def test_what_was_learned_is_learned_anew_for_another_model(tmp_path):
    memory = tmp_path / "memory"
    await finish_run(tmp_path / "a", ScriptedModel(), SEEDS[:1], memory=memory)
    for name, changed in {"b": {"model": "x"}, "c": {"try_criteria": True}}.items():
        model = ScriptedModel()
        await finish_run(tmp_path / name, model, SEEDS[:1], memory=memory, **changed)
        assert len(model.asked("extract")) == 3


async def test_a_run_without_trials_makes_no_trial_call(tmp_path):
    model = ScriptedModel()
    await finish_run(tmp_path, model, try_criteria=False)
    assert {c.stage for c in learning(model)} == {"extract"}


# --- the Python API ----------------------------------------------------------------------------


@pytest.fixture
async def endpoint(monkeypatch, tmp_path):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    before = asyncio.all_tasks()
    with Endpoint() as endpoint:
        endpoint.threads = set(threading.enumerate())
        yield endpoint
    assert calls_left(before) == []


def settings_for(endpoint: Endpoint, **more: Any) -> Settings:
    given = {"model": "m", "base_url": endpoint.url, "references_per_seed": 1}
    return Settings(**{**given, "try_criteria": False, **more})


def left_behind(folder: Path, endpoint: Endpoint) -> list[str]:
    threads = [t.name for t in set(threading.enumerate()) - endpoint.threads]
    return [p.name for p in (folder / "tmp").iterdir()] + [t for t in threads if t == "journal"]


async def nothing_left_behind(folder: Path, endpoint: Endpoint) -> None:
    async with asyncio.timeout(10):
        while left_behind(folder, endpoint):
            await asyncio.sleep(0.01)


async def test_synthesize_yields_records_and_leaves_nothing_behind(tmp_path, endpoint):
    before = asyncio.all_tasks()
    found = [r async for r in synthesize(references(4), settings=settings_for(endpoint))]
    assert [r["status"] for r in found] == ["accepted"] * 4
    assert sorted(r["seed_id"] for r in found) == ["r0", "r1", "r2", "r3"]
    assert all(set(r) == RECORD for r in found)
    assert left_behind(tmp_path, endpoint) == []
    assert [t for t in asyncio.all_tasks() - before if "langgraph" not in repr(t)] == []
    assert endpoint.in_flight == 0


async def test_synthesize_takes_paths_and_iterables(tmp_path, endpoint):
    path = tmp_path / "references.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in references(2)))
    for given in (path, str(path), iter(references(2)), tuple(references(2))):
        found = [r async for r in synthesize(given, settings=settings_for(endpoint))]
        assert len(found) == 2
    seeds = [{"instruction": references(2)[0]["instruction"]}]
    found = [r async for r in synthesize(path, seeds, settings_for(endpoint))]
    assert [r["reference_ids"] for r in found] == [["r0"]]


async def test_synthesize_yields_failed_samples_too(tmp_path, endpoint):
    endpoint.script = lambda body, _: error(400, "no") if stage_of(body) == "generate" else None
    found = [r async for r in synthesize(references(2), settings=settings_for(endpoint))]
    assert [r["status"] for r in found] == ["failed", "failed"]


async def test_synthesize_with_a_directory_keeps_the_run_and_takes_it_up_again(tmp_path, endpoint):
    out = tmp_path / "out"
    settings = settings_for(endpoint)
    first = [r async for r in synthesize(references(2), settings=settings, out=out)]
    asked = len(endpoint.bodies)
    second = [r async for r in synthesize(references(3), settings=settings, out=str(out))]
    assert [r["seed_id"] for r in second] == [*sorted(r["seed_id"] for r in first), "r2"]
    assert len(rows(out, "accepted")) == 3
    assert [stage_of(b) for b in endpoint.bodies[asked:]].count("propose") == 1
    assert_adds_up(out)


async def test_synthesize_on_a_finished_run_yields_its_rows_and_pays_for_nothing(
    tmp_path, endpoint
):
    first = [
        r async for r in synthesize(references(5), settings=settings_for(endpoint), out=tmp_path)
    ]
    asked = len(endpoint.bodies)
    again = [
        r async for r in synthesize(references(5), settings=settings_for(endpoint), out=tmp_path)
    ]
    assert again == sorted(first, key=lambda r: r["slot"]) == rows(tmp_path, "accepted")
    assert len(endpoint.bodies) == asked


@pytest.mark.parametrize("progress", [False, True])
async def test_synthesize_shows_its_progress_if_asked_to(endpoint, capsys, progress):
    found = [
        r
        async for r in synthesize(references(3), settings=settings_for(endpoint), progress=progress)
    ]
    assert len(found) == 3
    assert ("accepted 3" in capsys.readouterr().err) is progress


async def test_synthesize_makes_no_call_before_the_stored_rows_are_taken(tmp_path, endpoint):
    settings = settings_for(endpoint)
    assert len([r async for r in synthesize(references(3), settings=settings, out=tmp_path)]) == 3
    asked = len(endpoint.bodies) + len(endpoint.preflights)
    async with aclosing(synthesize(references(9), settings=settings, out=tmp_path)) as records:
        async for _ in records:
            await asyncio.sleep(0.05)
            break
    assert len(endpoint.bodies) + len(endpoint.preflights) == asked
    found = [r["seed_id"] async for r in synthesize(references(9), settings=settings, out=tmp_path)]
    assert found[:3] == ["r0", "r1", "r2"] and sorted(found) == [f"r{i}" for i in range(9)]


async def test_synthesize_yields_a_failed_sample_once_whether_it_is_tried_again_or_not(
    tmp_path, endpoint
):
    endpoint.script = lambda body, _: error(400, "no") if stage_of(body) == "generate" else None
    settings = settings_for(endpoint)
    first = [r async for r in synthesize(references(3), settings=settings, out=tmp_path)]
    assert [r["status"] for r in first] == ["failed"] * 3
    left = settings_for(endpoint, retry_failed=False)
    again = [r async for r in synthesize(references(3), settings=left, out=tmp_path)]
    assert again == sorted(first, key=lambda r: r["slot"])
    tried = [r async for r in synthesize(references(3), settings=settings, out=tmp_path)]
    assert sorted(r["id"] for r in tried) == sorted(r["id"] for r in first)
    assert [r["status"] for r in tried] == ["failed"] * 3
    endpoint.script = None
    mended = [r async for r in synthesize(references(3), settings=settings, out=tmp_path)]
    assert [r["status"] for r in mended] == ["accepted"] * 3


async def test_synthesize_yields_what_is_there_although_the_endpoint_is_gone(tmp_path, endpoint):
    settings = settings_for(endpoint)
    assert len([r async for r in synthesize(references(2), settings=settings, out=tmp_path)]) == 2
    endpoint.preflight = endpoint.script = lambda body, _: error(401, "no")
    found = []
    with pytest.raises(ProviderStopped):
        async for record in synthesize(references(3), settings=settings, out=tmp_path):
            found.append(record["status"])
    assert found == ["accepted"] * 2
    with pytest.raises(JournalError, match="per_seed"):
        other = settings_for(endpoint, per_seed=2)
        async for _ in synthesize(references(2), settings=other, out=tmp_path):
            pytest.fail("these are not the rows of these settings")


async def first_of(endpoint: Endpoint, closing: bool) -> int:
    """Take one record and break off; return how many calls had been made by then."""
    records = synthesize(references(12), settings=settings_for(endpoint, concurrency=2))
    if closing:
        async with aclosing(records):
            async for _ in records:
                break
    else:
        async for _ in records:
            break
        del records
    return len(endpoint.bodies)


@pytest.mark.parametrize("closing", [True, False])
async def test_synthesize_stops_cleanly_when_the_consumer_breaks_off(tmp_path, endpoint, closing):
    endpoint.latency = 0.02
    async with asyncio.timeout(10):
        asked = await first_of(endpoint, closing)
    await nothing_left_behind(tmp_path, endpoint)
    assert 4 <= asked < 48


async def test_synthesize_sends_no_further_call_when_the_consumer_breaks_off(tmp_path, endpoint):
    endpoint.latency = 0.02
    before = asyncio.all_tasks()
    asked = await first_of(endpoint, closing=True)
    await asyncio.sleep(0.2)
    assert len(endpoint.bodies) == asked
    assert calls_left(before) == []


async def test_synthesize_can_be_cancelled_by_its_consumer(tmp_path, endpoint):
    started = asyncio.Event()

    async def consume() -> None:
        async for _ in synthesize(references(8), settings=settings_for(endpoint, concurrency=1)):
            started.set()

    task = asyncio.create_task(consume())
    await asyncio.wait_for(started.wait(), 10)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await nothing_left_behind(tmp_path, endpoint)


async def test_synthesize_raises_what_ends_the_run_after_what_was_made(tmp_path, endpoint):
    endpoint.script = lambda body, _: error(401, "no") if stage_of(body) == "generate" else None
    with pytest.raises(ProviderStopped, match="OPENAI_API_KEY"):
        async for _ in synthesize(references(2), settings=settings_for(endpoint)):
            pytest.fail("nothing can have been made")
    with pytest.raises(InputError, match="no such file"):
        async for _ in synthesize(tmp_path / "gone.jsonl", settings=settings_for(endpoint)):
            pytest.fail("nothing can have been made")
    assert left_behind(tmp_path, endpoint) == []


async def test_synthesize_heeds_the_limit_of_its_settings(tmp_path, endpoint):
    seeds = [{"instruction": r["instruction"]} for r in references(4)]
    settings = settings_for(endpoint, limit=2)
    assert len([r async for r in synthesize(references(4), seeds, settings)]) == 2


@pytest.mark.parametrize("per_seed", [1, 3])
async def test_a_fault_of_the_graph_itself_costs_its_seed_and_holds_up_no_other(tmp_path, per_seed):
    broken = []

    def critique(call: Call):
        if not broken or call.order[:2] == broken[0]:
            broken.append(call.order[:2])
            return TypeError("no such thing")
        return verdicts(prompt_of(call))

    model = ScriptedModel(critique=critique)
    said = await finish_run(tmp_path, model, SEEDS[:4], per_seed=per_seed, max_failure_rate=1.0)
    counts = said["counts"]
    assert said["status"] == "done"
    assert counts["candidates"] == 4 * per_seed
    assert counts["failed"] == per_seed
    assert counts["accepted"] == 3 * per_seed
    assert all("TypeError" in row["error"]["message"] for row in rows(tmp_path, "failed"))
