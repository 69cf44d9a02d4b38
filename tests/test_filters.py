"""Choosing among accepted samples: what each filter keeps, what it costs, what it says."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from fakes import Endpoint, ScriptedModel, answer, letters, prompt_of, stage_of, tagged, words
from hypothesis import given
from hypothesis import strategies as st
from processes import lines, refloom
from runs import build_run

from memory.novelty import tokens
from nodes.llm import CallFailed, ProviderStopped
from refloom.cli import main
from refloom.cli.export import JUDGING, SETTINGS
from refloom.errors import BudgetSpent, JournalError, TooManyFailed
from refloom.evaluation.judging import judge_settings
from refloom.evaluation.selection import Selection, SelectionSettings, k_centre, select_samples
from refloom.runs.journal import Journal
from refloom.runs.outputs import read_status

# A third of the drafts fail, and so are refined; of these a half are found better.
FAMILY = [words(f"seed {i}", 9) for i in range(24)]


def odd(text: str, by: int = 2) -> bool:
    return bool(sum(map(ord, text)) % by)


def poor(response: str) -> bool:
    return len(response.split()) == 40 and odd(response)


def verdicts_of(prompt: str) -> dict:
    found = answer("critique", prompt, 0)
    response = tagged(prompt, "response")[-1]
    for one in found["verdicts"]:
        one["verdict"] = "fail" if poor(response) and one["criterion_id"][0] == "c" else "pass"
    return found


def duel(prompt: str) -> dict:
    """The refinement, which has a word more, wins if its sum is odd; else what stands first."""
    a, b = tagged(prompt, "response")
    refined = a if len(a.split()) == 41 else b
    won = ("A" if a == refined else "B") if odd(refined) else "A"
    return {"reason": "so", "winner": won}


def family(scripted: type[ScriptedModel] = ScriptedModel, **stages) -> ScriptedModel:
    critique = lambda call: verdicts_of(prompt_of(call))  # noqa: E731
    return scripted(critique=critique, **{"compare": lambda call: duel(prompt_of(call)), **stages})


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A run that no test changes."""
    out = tmp_path_factory.mktemp("here") / "run"
    asyncio.run(build_run(out, family(), FAMILY).run())
    return out


@pytest.fixture
def run(here, tmp_path) -> Path:
    """The same run, to write to."""
    return Path(shutil.copytree(here, tmp_path / "run"))


def accepted(run: Path) -> dict[str, dict]:
    return {r["id"]: r for r in lines(run / "accepted.jsonl")}


async def choose(run: Path, model=None, *, embed=letters, **given) -> Selection:
    judge = {
        k: given.pop(k) for k in list(given) if k not in SelectionSettings.__dataclass_fields__
    }
    its = judge_settings(run, {"quiet": True, **judge})
    return await select_samples(
        run, SelectionSettings(**given), its, complete=model or family(), embed=embed
    )


def refined(record: dict) -> bool:
    return record["response"] != record["attempts"][0]["response"]


# The judge.


async def test_the_judge_keeps_what_beats_its_draft_in_both_orders_and_what_was_not_refined(run):
    model = family()
    found = await choose(run, model, filters=("judge",))
    rows = accepted(run)
    wanted = {i for i, r in rows.items() if not refined(r) or odd(r["response"])}
    kinds = {(refined(r), odd(r["response"])) for r in rows.values()}
    assert found.ids == wanted and len(kinds) == 3
    asked = [r for r in rows.values() if refined(r)]
    assert len(model.asked("compare")) == len(model.calls) == 2 * len(asked)
    better = sum(odd(r["response"]) for r in asked)
    assert f"{better} refined and better" in found.summary[2]
    assert f"{len(asked) - better} refined and not better" in found.summary[2]
    assert f"{len(rows) - len(asked)} never refined, kept" in found.summary[2]
    assert found.warnings == []


@pytest.mark.parametrize("winner", ["tie", "A", "B"])
async def test_a_tie_or_a_judge_that_goes_by_places_keeps_no_refinement(run, winner):
    model = family(compare=lambda call: {"reason": "so", "winner": winner})
    found = await choose(run, model, filters=("judge",))
    assert found.ids == {i for i, r in accepted(run).items() if not refined(r)}


async def test_no_comparison_is_paid_twice_whatever_the_random_seed(run):
    first = await choose(run, filters=("judge",))
    model = family()
    assert (await choose(run, model, filters=("judge",))).ids == first.ids
    assert (await choose(run, model, filters=("judge",), random_seed=5)).ids == first.ids
    assert model.calls == []


async def test_with_a_size_no_more_is_judged_than_is_wanted(run):
    model = family()
    few = await choose(run, model, filters=("judge",), size=4, concurrency=1)
    asked = len(model.calls)
    every = await choose(run, model, filters=("judge",))
    assert few.ids < every.ids and len(few.ids) == 4
    assert 0 < asked < len(model.calls)


async def test_a_comparison_that_fails_leaves_its_sample_out_counted_and_named(run):
    lost: list[str] = []

    def fails(call):
        response = tagged(prompt_of(call), "response")[0]
        if not lost or response in lost:
            lost.append(response)
            return "no JSON"
        return duel(prompt_of(call))

    found = await choose(run, family(compare=fails), filters=("judge",))
    gone = {i for i, r in accepted(run).items() if lost[0] in str(r["attempts"])}
    (missed,) = found.warnings
    assert len(gone) == 1 and not gone & found.ids and next(iter(gone)) in missed
    assert "malformed" in missed and "1 not judged, left out" in found.summary[2]


async def test_a_judge_that_fails_all_the_time_ends_it(tmp_path):
    run = await stored(tmp_path, [f"Why {i}?" for i in range(200)], draft="Oh.")
    model = family(compare=lambda call: CallFailed("compare", "status", "no"))
    with pytest.raises(TooManyFailed, match="20 of 20 comparisons failed"):
        await choose(run, model, filters=("judge",), judge_model="m")
    assert len(model.calls) < 100


async def test_what_was_paid_before_a_stop_is_kept(run):
    calls = []

    def stops(call):
        calls.append(call)
        return ProviderStopped("no quota") if len(calls) > 4 else duel(prompt_of(call))

    with pytest.raises(ProviderStopped, match="no quota"):
        await choose(run, family(compare=stops), filters=("judge",), concurrency=1)
    model = family()
    await choose(run, model, filters=("judge",))
    asked = sum(refined(r) for r in accepted(run).values())
    assert len(model.calls) == 2 * asked - 4


async def test_the_budget_of_the_run_bounds_the_judge(run):
    used = read_status(run)["usage"]
    spent = used["prompt_tokens"] + used["completion_tokens"] + 10
    with pytest.raises(BudgetSpent):
        await choose(run, filters=("judge",), max_tokens=spent)


async def test_the_judge_is_refused_while_another_process_has_the_run_and_the_others_not(run):
    journal = Journal(run)
    try:
        model = family()
        with pytest.raises(JournalError, match="another process"):
            await choose(run, model, filters=("judge",))
        assert model.calls == []
        assert len((await choose(run, filters=("random",), size=3)).ids) == 3
    finally:
        journal.close()


async def test_a_journal_that_is_damaged_is_one_error(run):
    with sqlite3.connect(run / "journal.sqlite") as connection:
        connection.execute("DROP TABLE samples")
    connection.close()
    with pytest.raises(JournalError, match="damaged"):
        await choose(run, filters=("random",), size=3)


# ROUGE-L, random, k-centre.


def near(one: str, other: str, threshold: float) -> bool:
    """By the plain definition, in whole numbers of a hundredth."""
    a, b = tokens(one), tokens(other)
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return 2 * row[-1] * 100 > round(threshold * 100) * (len(a) + len(b))


async def test_a_bare_answer_is_no_refinement_and_is_kept_without_a_comparison(run):
    path = run / "journal.sqlite"
    changed = [r for r in accepted(run).values() if refined(r)]
    bare = changed[0]
    attempt = bare["attempts"][-1]
    bare |= {
        "response": "Bare.",
        "reasoning": "I think.",
        "answers": [attempt | {"response": "Bare."}],
    }
    with sqlite3.connect(path) as journal:
        sql = "UPDATE samples SET record = ? WHERE round = ? AND position = ? AND slot = ?"
        journal.execute(sql, (json.dumps(bare), *bare["slot"]))
    model = family(compare=lambda call: {"reason": "so", "winner": "tie"})
    found = await choose(run, model, filters=("judge",))
    assert bare["id"] in found.ids and not found.ids & {r["id"] for r in changed[1:]}
    assert len(model.asked("compare")) == 2 * (len(changed) - 1)


async def stored(folder: Path, instructions: list[str], draft: str = "So.") -> Path:
    journal = Journal(folder)
    for i, instruction in enumerate(instructions):
        record = {"id": f"i{i}", "seed_id": f"s{i}", "slot": [0, i, 0], "response": "So."}
        record |= {"instruction": instruction, "attempts": [{"response": draft}]}
        values = (0, i, 0, "accepted", json.dumps(record))
        await journal.put("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", *values)
    journal.close()
    return folder


instructions = st.lists(st.lists(st.sampled_from("abcdef"), max_size=6).map(" ".join), max_size=12)


@given(instructions, st.sampled_from([0.3, 0.5, 0.7]), st.integers(0, 3), st.integers(1, 12))
async def test_rouge_takes_greedily_what_is_not_too_like_what_it_took(
    tmp_path_factory, texts, threshold, draw, size
):
    run = await stored(tmp_path_factory.mktemp("rouge"), texts)
    every = await choose(run, filters=("rouge",), threshold=threshold, random_seed=draw)
    taken = {int(i[1:]) for i in every.ids}
    whole = {i for i in taken if texts[i].strip()}
    assert not any(near(texts[a], texts[b], threshold) for a, b in itertools.combinations(whole, 2))
    for left in set(range(len(texts))) - taken:
        blank = not texts[left].strip()
        assert blank or any(near(texts[left], texts[i], threshold) for i in taken)
    some = await choose(run, filters=("rouge",), threshold=threshold, random_seed=draw, size=size)
    assert some.ids <= every.ids and len(some.ids) == min(size, len(every.ids))


async def test_the_smaller_choice_is_among_the_greater_and_a_seed_draws_another(tmp_path):
    texts = [words(f"text {i}", 9) for i in range(60)]
    run = await stored(tmp_path, texts)
    ways = [
        {"filters": ("random",)},
        {"filters": ("rouge",), "threshold": 0.45},
        {"filters": ("rouge",), "threshold": 0.5, "diverse": True},
        {"diverse": True},
    ]
    for way in ways:
        sets = [(await choose(run, size=n, **way)).ids for n in (1, 7, 20, 60)]
        assert [len(s) for s in sets[:3]] == [1, 7, 20]
        assert sets[0] < sets[1] < sets[2] < sets[3]
        assert sets[1] == (await choose(run, size=7, **way)).ids
    assert (await choose(run, filters=("random",), size=7, random_seed=1)).ids != (
        await choose(run, filters=("random",), size=7)
    ).ids
    draws = [(await choose(run, size=7, diverse=True, random_seed=n)).ids for n in (0, 1)]
    assert draws[0] == draws[1]


async def test_a_random_choice_stays_when_the_run_goes_on(tmp_path):
    texts = [words(f"text {i}", 9) for i in range(40)]
    before = await choose(await stored(tmp_path / "a", texts[:30]), filters=("random",), size=30)
    whole = await stored(tmp_path / "b", texts)
    after = await choose(whole, filters=("random",), size=20)
    few = await choose(tmp_path / "a", filters=("random",), size=20)
    assert after.ids & before.ids <= few.ids


async def test_fewer_than_asked_for_are_all_that_are_left(tmp_path):
    run = await stored(tmp_path, ["Why two tides?", "Why two tides?", "What is a fjord?"])
    found = await choose(run, filters=("rouge",), size=9)
    assert len(found.ids) == 2
    assert found.warnings == ["only 2 samples are left of the 9 asked for"]
    assert "3 came, 2 passed" in found.summary[1]
    assert (await choose(run, size=9, diverse=True)).ids == {"i0", "i1", "i2"}


async def test_of_no_samples_none_are_chosen(tmp_path):
    run = await stored(tmp_path, [])
    for way in ({"filters": ("judge", "rouge", "random")}, {"diverse": True}):
        found = await choose(run, size=2, **way)
        assert found.ids == set() and len(found.warnings) == 1


async def test_filters_work_in_the_order_they_are_given(run):
    model = family()
    few = await choose(run, model, filters=("rouge", "judge"), threshold=0.1)
    assert re.match(r"rouge .*: 24 came, (\d+) passed", few.summary[1])
    assert len(model.calls) < 2 * sum(refined(r) for r in accepted(run).values())
    assert few.summary[2].startswith("judge (m, prompt ")


async def test_diverse_takes_one_of_each_kind_first(tmp_path):
    kinds = ["zzzz zzz zz", "qqqq qqq qq", "mmmm mmm mm"]
    run = await stored(tmp_path, [f"{kinds[i % 3]} {'ab'[i % 2]}" for i in range(30)])
    found = await choose(run, size=3, diverse=True)
    assert {int(i[1:]) % 3 for i in found.ids} == {0, 1, 2}
    cosine = float(re.search(r"a cosine of at least (0\.\d+) with one", found.summary[1])[1])
    assert 0.5 < cosine < 1


points = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=9)


@given(points, st.integers(1, 9))
def test_the_radius_is_at_most_twice_the_least_there_is(found, k):
    vectors = np.array(found, np.float32)
    chosen = k_centre(vectors, k)
    k = min(k, len(vectors))
    assert len(set(chosen.indices)) == k
    apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    assert chosen.radius == pytest.approx(apart[:, chosen.indices].min(axis=1).max(), abs=1e-3)
    every = itertools.combinations(range(len(vectors)), k)
    least = min(apart[:, list(one)].min(axis=1).max() for one in every)
    assert chosen.radius <= 2 * least + 1e-3
    assert k_centre(vectors, k - 1).indices == chosen.indices[:-1]


def test_each_centre_is_the_farthest_from_those_before_it():
    random = np.random.default_rng(3)
    vectors = random.standard_normal((3000, 12)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    places = k_centre(vectors, 400).indices
    nearest = np.full(len(vectors), np.inf)
    for before, place in itertools.pairwise(places):
        nearest = np.minimum(nearest, np.linalg.norm(vectors - vectors[before], axis=1))
        assert nearest[place] >= nearest.max() - 1e-5


# The command.


def script(body, number):
    prompt = "\n".join(m["content"] for m in body["messages"])
    if stage_of(body) == "critique":
        return verdicts_of(prompt)
    return duel(prompt) if stage_of(body) == "compare" else None


def test_export_writes_what_the_filters_leave_in_slot_order_and_says_how(here, tmp_path):
    with Endpoint(script) as endpoint:
        flags = ("--format", "prompt_completion", "--filter", "judge", "--filter", "rouge")
        flags += ("--filter-threshold", "0.5", "--judge-model", "j", "--base-url", endpoint.url)
        done = refloom("export", here, tmp_path / "a.jsonl", *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        paid = len(endpoint.bodies)
        assert set(endpoint.stages()) == {"compare"}
        assert {body["model"] for body in endpoint.bodies} == {"j"}
        parts = ("--split", "train=0.8,validation=0.2", "--quiet")
        again = refloom("export", here, tmp_path / "b.parquet", *flags, *parts, cwd=tmp_path)
        assert again.returncode == 0 and again.stderr == ""
        assert len(endpoint.bodies) == paid > 0
    rows = accepted(here)
    order = [r["instruction"] for r in sorted(rows.values(), key=lambda r: r["slot"])]
    found = [row["prompt"] for row in lines(tmp_path / "a.jsonl")]
    assert found == [text for text in order if text in set(found)] and 0 < len(found) < len(rows)
    kept = {r["instruction"] for r in rows.values() if not refined(r) or odd(r["response"])}
    assert set(found) <= kept
    assert f"{len(rows)} accepted samples" in done.stderr
    assert re.search(rf"judge \(j, prompt \w+\): {len(rows)} came, {len(kept)} passed", done.stderr)
    assert "rouge (ROUGE-L F1 of two instructions at most 0.5)" in done.stderr
    assert f"chosen: {len(found)} samples, in an order of random seed 0" in done.stderr
    assert sum(int(n) for n in re.findall(r"(\d+) rows in", again.stdout)) == len(found)


def test_a_size_counts_samples_and_says_when_there_are_fewer(here, tmp_path):
    some = ("--filter", "random", "--random-seed", 3)
    for size, count in ((5, 5), (900, len(accepted(here)))):
        done = refloom("export", here, tmp_path / f"{size}.jsonl", "--format", "messages",
                       "--size", size, *some, cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0 and f"{count} rows" in done.stdout
        assert ("samples are left of the" in done.stderr) == (size == 900)
    first, every = (lines(tmp_path / f"{size}.jsonl") for size in (5, 900))
    assert [row for row in every if row in first] == first


def test_a_choice_of_nothing_says_that_it_was_the_filters(tmp_path, capsys):
    run = asyncio.run(stored(tmp_path / "run", ["Why two tides?", "What is a fjord?"], "Oh."))
    with Endpoint(lambda body, number: {"reason": "so", "winner": "tie"}) as endpoint:
        flags = ["--format", "messages", *JUDGE, "--judge-model", "j", "--base-url", endpoint.url]
        with pytest.raises(SystemExit) as ended:
            main(["export", str(run), str(tmp_path / "d.jsonl"), *flags])
    said = capsys.readouterr()
    assert ended.value.code == 0 and (tmp_path / "d.jsonl").read_text() == ""
    assert said.out.startswith("0 rows in")
    assert "d.jsonl is empty: no sample passed the filters" in said.err


JUDGE = ("--filter", "judge")
ODD = [
    (("d.jsonl", "--filter", "length"), "invalid choice"),
    (("d.jsonl", "--filter", "random"), "--filter random: give --size"),
    (("d.jsonl", "--sample", "diverse"), "--sample diverse: give --size"),
    (("d.jsonl", *JUDGE, "--size", "0"), "not a whole number of at least 1"),
    (("d.jsonl", "--size", "3"), "--size: give --filter or --sample"),
    (("d.jsonl", "--filter", "random", "--sample", "diverse", "--size", "3"), "give one"),
    (
        ("d.jsonl", *JUDGE, "--filter", "rouge", "--filter-threshold", "1.5"),
        "is not a number above 0",
    ),
    (("d.jsonl", *JUDGE, "--filter-threshold", "0.5"), "--filter-threshold: only with"),
    (("d.jsonl", "--filter", "rouge", "--judge-model", "j"), "--judge-model: only with"),
    (("d.jsonl", *JUDGE, "--embedding-model", "e"), "--embedding-model: only with"),
    (("d.jsonl", *JUDGE, "--concurrency", "none"), "--concurrency"),
    (("d.csv", *JUDGE), "written as .jsonl or .parquet"),
    (("no/such/d.jsonl", *JUDGE), "cannot be written"),
    (("d.jsonl", *JUDGE, "--max-cost", "1"), "price"),
]


@pytest.mark.parametrize(("arguments", "says"), ODD)
def test_what_is_odd_is_refused_before_anything_is_paid(
    here, tmp_path, arguments, says, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with Endpoint(script) as endpoint:
        judge = ["--base-url", endpoint.url] if "judge" in arguments else []
        with pytest.raises(SystemExit) as ended:
            main(["export", str(here), *arguments, "--format", "messages", *judge])
        assert endpoint.bodies == []
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("refloom")]
    assert ended.value.code == 2 and len(said) == 1 and says in said[0]
    assert list(tmp_path.iterdir()) == []


def test_an_endpoint_that_is_gone_stops_it_and_the_file_that_was_there_stays(here, tmp_path):
    (tmp_path / "d.jsonl").write_text("old\n")
    done = refloom("export", here, tmp_path / "d.jsonl", "--format", "messages", *JUDGE,
                   "--judge-model", "another", "--base-url", "http://127.0.0.1:9/v1",
                   cwd=tmp_path)  # fmt: skip
    assert done.returncode == 4 and len(done.stderr.splitlines()) == 1
    assert (tmp_path / "d.jsonl").read_text() == "old\n"


def test_the_flags_of_the_judge_are_those_of_the_other_commands_that_ask_one():
    from refloom.settings import JUDGE_SETTINGS

    assert set(JUDGE_SETTINGS) - set(SETTINGS) == {"judge_method", "random_seed"}
    assert set(JUDGING) < set(SETTINGS)
