"""Retrieval within a run: its order, its quota, what a stop does to it; and commands on files."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from fakes import ScriptedModel, answer, letters, prompt_of, words
from hypothesis import given
from hypothesis import strategies as st
from processes import refloom
from runs import (
    SEEDS,
    CountingModel,
    MixedModel,
    build_run,
    finish_run,
    references,
    rows,
    stable_rows,
)

from memory.index import ReferenceIndex
from nodes.llm import Call
from refloom.runs.journal import Journal
from refloom.runs.retrieval import (
    MIN_QUOTA,
    EmbeddingPace,
    OrderedGate,
    ReferenceQuota,
    RunRetrieval,
)


@given(st.integers(1, 20), st.randoms(use_true_random=False))
def test_a_gate_lets_all_through_in_order_whoever_leaves_without_entering(n, draw):
    async def main() -> list[int]:
        gate, entered = OrderedGate(), []

        async def one(number: int) -> None:
            for _ in range(draw.randint(0, 5)):
                await asyncio.sleep(0)
            if draw.random() < 0.7:
                await gate.wait(number)
                entered.append(number)
            gate.leave(number)
            gate.leave(number)

        async with asyncio.timeout(5):
            await asyncio.gather(*map(one, draw.sample(range(n), n)))
        return entered

    entered = asyncio.run(main())
    assert entered == sorted(entered)


def near_one(n: int) -> list[dict[str, str]]:
    """References of which the first is nearest to everything that is asked."""
    popular = {
        "id": "popular",
        "instruction": "tides " * 6,
        "response": "The Moon pulls. So it is.",
    }
    return [popular, *references(n)]


async def uses_of(directory: Path, quota: float | None, asked: int) -> Counter[str]:
    journal = Journal(directory)
    try:
        index = ReferenceIndex(near_one(20), letters, None, "m")
        uses = ReferenceQuota(journal, references=21, seeds=asked, quota=quota)
        await uses.begin()
        retrieval = RunRetrieval(index, uses)
        found = await asyncio.gather(
            *(retrieval(f"tides {words(str(i), 1)} tides", 2, (0, i)) for i in range(asked))
        )
        return Counter(r["id"] for taken in found for r in taken)
    finally:
        journal.close()


async def test_a_popular_reference_leaves_room_for_others(tmp_path):
    free = await uses_of(tmp_path / "free", None, 60)
    assert free["popular"] == 60
    bound = await uses_of(tmp_path / "bound", 2.0, 60)
    assert MIN_QUOTA <= bound["popular"] <= 2 * 60 * 2 / 21 + 1
    assert sum(bound.values()) == sum(free.values()) == 120


async def test_where_there_is_nothing_else_a_quota_does_not_leave_a_seed_without(tmp_path):
    journal = Journal(tmp_path)
    try:
        index = ReferenceIndex(references(2), letters, None, "m")
        retrieval = RunRetrieval(index, ReferenceQuota(journal, references=2, seeds=40, quota=1.0))
        for i in range(40):
            assert len(await retrieval(words(f"q{i}", 5), 2, (0, i))) == 2
    finally:
        journal.close()


@pytest.mark.parametrize("at", [9, 30, 61])
async def test_rows_with_a_quota_depend_neither_on_stops_nor_on_timing(tmp_path, at):
    given_ = references(8)
    few = {"given": given_, "references_per_seed": 2, "reference_quota": 1.0, "per_seed": 2}
    await finish_run(tmp_path / "calm", MixedModel(), SEEDS, concurrency=1, **few)
    first = CountingModel(MixedModel(), at)
    run = build_run(tmp_path / "out", first, SEEDS, concurrency=6, **few)
    first.then = run.stop
    async with asyncio.timeout(20):
        await run.run()
    await finish_run(tmp_path / "out", MixedModel(), SEEDS, concurrency=3, **few)
    assert stable_rows(tmp_path / "out") == stable_rows(tmp_path / "calm")


async def test_an_instruction_that_is_near_to_any_reference_is_no_news(tmp_path):
    given_ = references(6)

    def propose(call: Call):
        said = answer("propose", prompt_of(call), call.seed)
        if len(model.asked("propose")) == 1:
            said["instructions"][0] = given_[5]["instruction"] + " please"
        return said

    model = ScriptedModel(propose=propose)
    few = {"given": given_, "references_per_seed": 1, "concurrency": 1}
    said = await finish_run(tmp_path, model, SEEDS[:2], **few)
    assert said["counts"]["duplicates"] == 1
    assert len(model.asked("propose")) == 3
    assert not [r for r in rows(tmp_path, "accepted") if "please" in r["instruction"]]


async def test_after_ten_references_more_ten_are_learned_from(tmp_path):
    memory = tmp_path / "memory"
    for n, expected in ((12, 12), (12, 0), (22, 10)):
        model = ScriptedModel()
        out = tmp_path / f"{n}-{expected}"
        await finish_run(
            out, model, None, given=references(n), memory=memory, references_per_seed=1
        )
        assert len(model.asked("extract")) == expected


# --- commands ----------------------------------------------------------------------------------


def test_a_file_loses_its_near_duplicates_and_says_which(tmp_path):
    draw = random.Random(3)
    texts = [words(f"text {i}", 12) for i in range(40)]
    near = [" ".join([*t.split()[:-1], "changed"]) for t in texts[:10]]
    rows_ = [{"instruction": t, "response": "So.", "mine": i} for i, t in enumerate(texts + near)]
    draw.shuffle(rows_)
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_))
    done = refloom("dedup", path, tmp_path / "out.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kept = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(kept) == 40
    assert all(row in rows_ for row in kept)
    assert done.stdout.splitlines()[-1].startswith(f"40 rows in {tmp_path / 'out.jsonl'}; 10 near")
    assert done.stdout.count("is too near to line") == 10


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["in.jsonl", "in.jsonl"], "is the input file"),
        (["in.jsonl", "out.csv"], ".jsonl or .parquet"),
        (["gone.jsonl", "out.jsonl"], "no such file"),
        (["in.jsonl", "out.jsonl", "--threshold", "2"], "--threshold"),
        (["empty.jsonl", "out.jsonl"], "it is empty"),
    ],
)
def test_what_cannot_be_deduplicated_is_one_line_and_status_two(tmp_path, arguments, says):
    (tmp_path / "in.jsonl").write_text('{"instruction": "Why?"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    done = refloom("dedup", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr


def test_the_pace_of_embedding_is_that_of_the_last_batches():
    now = 0.0
    pace = EmbeddingPace(lambda: now)
    assert pace.describe(0, 100_000) == "embedding references, 0 of 100,000"
    # What an earlier session embedded is read in no time, and soon no longer counts.
    assert pace.describe(50_000, 100_000) == "embedding references, 50,000 of 100,000"
    for done in range(51_000, 62_000, 1_000):
        now += 10
        line = pace.describe(done, 100_000)
    assert line == "embedding references, 61,000 of 100,000, 100/s, 6 min left"
