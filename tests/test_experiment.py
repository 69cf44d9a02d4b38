"""Experiments and comparisons: what is shared, what is resumed, what the figures say."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter

import pytest
from fakes import Endpoint, ScriptedModel, prompt_of, stage_of, tagged, verdicts, words
from processes import lines, refloom
from runs import finish_run, references

from refloom.errors import InputError
from refloom.evaluation.compare import Arm, ArmSample, compare_runs, format_comparison, read_arm
from refloom.evaluation.experiment import parse_arms
from refloom.runs.outputs import read_status
from refloom.settings import Settings

ARMS = "reference,sample,none,generic,swapped"
SHARED = {"extract", "propose", "generate"}


def wanting(body, number):
    """An endpoint whose drafts fail one criterion, whose refinements pass, whose judge likes ends.

    A refinement is longer than its draft by its last words, which name its arm's way.
    """
    stage = stage_of(body)
    prompt = "\n".join(m["content"] for m in body["messages"])
    if stage == "refine":
        draft = tagged(prompt, "response")[-1]
        end = "feedback" if "<feedback" in prompt else "criteria"
        return {"plan": ["mend"], "response": f"{draft} This is mended by {end}."}
    if stage == "critique" and not any(r["response"][:20] in prompt for r in references()):
        mended = "mended" in prompt
        return verdicts(prompt, lambda id_: "pass" if mended or id_[0] != "c" else "fail")
    if stage == "compare":
        a, b = tagged(prompt, "response")
        better = "A" if "criteria" in a else "B" if "criteria" in b else "tie"
        return {"reason": "its end", "winner": better}
    return None


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    rows = "\n".join(json.dumps(r) for r in references(4))
    (folder / "references.jsonl").write_text(rows)
    (folder / "seeds.txt").write_text("\n".join(words(f"seed {i}", 8) for i in range(6)))
    with Endpoint(wanting) as endpoint:
        command = (
            "experiment", "--arms", ARMS, "--references", folder / "references.jsonl",
            "--seeds", folder / "seeds.txt", "--out", folder / "out", "--base-url", endpoint.url,
            "--model", "m", "--no-try-criteria", "--references-per-seed", 1,
        )  # fmt: skip
        done = refloom(*command, cwd=folder)
        paid = list(endpoint.stages())
        again = refloom(*command, cwd=folder)
        resumed = len(endpoint.bodies) - len(paid)
    return folder / "out", done, paid, again, resumed


def test_an_experiment_runs_every_arm_and_compares_each_with_reference(tried):
    out, done, *_ = tried
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "compare.json").read_text())
    pairs = {(p["a"], p["b"]): p for p in found["pairs"]}
    assert set(pairs) == {(a, "reference") for a in ("sample", "none", "generic", "swapped")}
    for pair in pairs.values():
        assert {"n", "win_rate", "low", "high", "ties", "judge"} <= set(pair)
        assert (pair["n"], pair["judge"]) == (6, "m")
    # Sample-level feedback ends otherwise than the judge here likes, the drafts have no end.
    assert pairs["sample", "reference"]["win_rate"] == 0.0
    assert pairs["none", "reference"]["win_rate"] == 0.0
    assert pairs["swapped", "reference"]["ties"] == 6
    assert "sample : reference" in done.stdout
    for arm in ARMS.split(","):
        assert json.loads((out / arm / "run.json").read_text())["status"] == "done"


def test_arms_share_instructions_and_drafts_and_pay_for_them_once(tried):
    out, _, paid, *_ = tried
    made_of = {}
    for arm in ARMS.split(","):
        rows = lines(out / arm / "accepted.jsonl") + lines(out / arm / "rejected.jsonl")
        made_of[arm] = {(r["instruction"], r["attempts"][0]["response"]) for r in rows}
    assert len(made_of["reference"]) == 6
    assert all(pairs == made_of["reference"] for pairs in made_of.values())
    count = Counter(paid)
    assert (count["propose"], count["generate"], count["extract"]) == (6, 6, 4)


def test_the_paid_calls_of_the_arms_add_up_to_what_the_endpoint_answered(tried):
    out, _, paid, *_ = tried
    told = [json.loads((out / arm / "run.json").read_text())["calls"] for arm in ARMS.split(",")]
    compares = paid.count("compare")
    preflights = [calls["by_stage"].get("preflight", 0) for calls in told]
    assert preflights == [1, 0, 0, 0, 0]
    assert sum(calls["paid"] for calls in told) + compares == len(paid) + 1


def test_an_experiment_that_is_done_pays_nothing_when_it_is_run_again(tried):
    _, _, _, again, resumed = tried
    assert (again.returncode, resumed) == (0, 0)


def test_what_arms_share_counts_in_the_account_of_each(tried):
    out, *_ = tried
    none, sample = (read_arm(arm, out / arm).summary for arm in ("none", "sample"))
    assert none["by_stage"] == {"propose": 6, "screen": 6, "generate": 6}
    assert sample["by_stage"] == {**none["by_stage"], "feedback": 6, "refine": 6}


def test_equal_texts_are_ties_that_nobody_is_asked_for(tried):
    out, _, paid, *_ = tried
    found = json.loads((out / "compare.json").read_text())
    asked = sum(p["n"] - p["same_text"] for p in found["pairs"])
    # Here the arm `generic` ends with its drafts, as `none` does, and asks nothing new.
    assert asked == 18
    assert paid.count("compare") == 2 * 12
    assert any(p["same_text"] for p in found["pairs"])


def test_arms_can_be_compared_again_and_in_another_order(tried):
    out, *_ = tried
    # The endpoint is gone: what was asked before, the other way round, is all that is needed.
    done = refloom("compare", out, "--json", cwd=out)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pairs"] == json.loads((out / "compare.json").read_text())["pairs"]
    done = refloom("compare", out / "reference", out / "none", "--json", cwd=out)
    (pair,) = json.loads(done.stdout)["pairs"]
    assert (pair["a"], pair["b"], pair["win_rate"]) == ("reference", "none", 1.0)


def test_a_run_in_the_place_of_an_experiment_is_refused(tried, tmp_path):
    out, *_ = tried
    folder = out.parent
    done = refloom(
        "experiment", "--arms", ARMS, "--references", folder / "references.jsonl", "--out",
        out / "reference", "--base-url", "http://127.0.0.1:9/v1", "--model", "m", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 2
    assert "holds a run, not an experiment" in done.stderr


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ("reference", "at least one arm"),
        ("none,best", "unknown arm 'best'"),
        ("", "at least one arm"),
    ],
)
def test_arms_there_are_none_of_are_refused(arms, said):
    with pytest.raises(InputError, match=said):
        parse_arms(arms)


def test_the_arm_all_are_compared_with_is_added():
    assert parse_arms("none,sample,none") == ("reference", "none", "sample")


# Comparison by itself.


def arm(name: str, responses: dict[str, str], accepted: bool = True) -> Arm:
    account = {
        "name": name, "accepted": 0, "rejected": 0, "failed": 0, "calls": 0, "tokens": 0,
        "cost_usd": None, "criteria": [],
    }  # fmt: skip
    samples = {text: ArmSample(text, response, accepted) for text, response in responses.items()}
    return Arm(name, samples, account)


def judge_by(choose):
    def script(call):
        a, b = tagged(prompt_of(call), "response")
        return {"reason": "so", "winner": choose(a, b)}

    return ScriptedModel(compare=script)


def duel(tmp_path, a, b, choose, **settings):
    given = Settings(model="m", **settings)
    return asyncio.run(
        compare_runs(
            [arm("a", a), arm("b", b)], [(0, 1)], tmp_path, given, complete=judge_by(choose)
        )
    )["pairs"][0]


def many(word: str, n: int = 20) -> dict[str, str]:
    return {f"ask {i}": f"{word} {words(f'{word}{i}', 5)}" for i in range(n)}


def test_a_judge_that_prefers_what_stands_first_gives_ties_and_is_named(tmp_path):
    found = duel(tmp_path, many("good"), many("bad"), lambda a, b: "A")
    assert (found["win_rate"], found["ties"], found["wins"]) == (0.5, 20, 0)
    assert found["first_picked"]["value"] == 1.0
    assert found["same_in_both_orders"]["value"] == 0.0


def test_a_clear_winner_has_an_interval_and_a_sign_test(tmp_path):
    found = duel(tmp_path, many("good"), many("bad"), lambda a, b: "A" if "good" in a else "B")
    assert (found["win_rate"], found["high"], found["losses"]) == (1.0, 1.0, 0)
    assert 0.8 < found["low"] < 1.0
    assert found["sign_p"] < 0.001


def test_the_length_that_a_judge_likes_is_taken_out(tmp_path):
    draw = random.Random(0)
    a = {f"ask {i}": "a" * draw.randint(80, 400) for i in range(150)}
    b = {f"ask {i}": "b" * draw.randint(60, 200) for i in range(150)}
    found = duel(tmp_path, a, b, lambda x, y: "A" if len(x) > len(y) else "B")
    assert found["win_rate"] > 0.8
    assert found["length_controlled"]["low"] < 0.5 < found["length_controlled"]["high"] + 0.1


def test_what_was_asked_is_not_asked_again(tmp_path):
    model = judge_by(lambda a, b: "tie")
    arms, given = [arm("a", many("x")), arm("b", many("y"))], Settings(model="m")
    for _ in range(2):
        asyncio.run(compare_runs(arms, [(0, 1)], tmp_path, given, complete=model))
    assert len(model.calls) == 40


def test_runs_with_nothing_in_common_are_refused_before_any_call(tmp_path):
    model = judge_by(lambda a, b: "tie")
    arms = [arm("a", {"one": "x"}), arm("b", {"two": "y"})]
    with pytest.raises(InputError, match="no instruction that both"):
        asyncio.run(compare_runs(arms, [(0, 1)], tmp_path, Settings(model="m"), complete=model))
    assert not model.calls


def test_a_pair_that_cannot_be_judged_is_left_out_and_counted(tmp_path):
    model = ScriptedModel(compare=lambda call: "no JSON")
    arms = [arm("a", many("x", 3)), arm("b", many("y", 3))]
    found = asyncio.run(compare_runs(arms, [(0, 1)], tmp_path, Settings(model="m"), complete=model))
    (pair,) = found["pairs"]
    assert (pair["n"], pair["not_judged"], pair["win_rate"]) == (0, 3, None)
    text = format_comparison(found)
    assert "3 could not be judged" in text
    assert re.search(r"^a : b +none +0 +0 +0 +0$", text, re.M)


@pytest.mark.parametrize("said", ["A", "a", " B ", "Response A", "Tie.", "tie"])
def test_a_winner_is_read_however_it_is_spelt(tmp_path, said):
    model = ScriptedModel(compare=lambda call: {"reason": "so", "winner": said})
    arms = [arm("a", many("x", 1)), arm("b", many("y", 1))]
    found = asyncio.run(compare_runs(arms, [(0, 1)], tmp_path, Settings(model="m"), complete=model))
    assert (found["pairs"][0]["n"], len(model.calls)) == (1, 2)


async def test_arms_of_runs_can_be_read_while_they_are_made(tmp_path):
    await finish_run(tmp_path / "run", ScriptedModel())
    found = read_arm("run", tmp_path / "run")
    assert len(found.samples) == 3
    assert found.summary["by_stage"]["generate"] == 3


def test_the_page_of_an_experiment_has_its_arms_and_its_comparison(tried):
    out, *_ = tried
    done = refloom("report", out, cwd=out)
    assert done.returncode == 0, done.stderr
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(arm in page for arm in ARMS.split(","))
    assert "bootstrap over seeds" in page


def test_a_judge_is_checked_on_an_arm_and_not_on_a_whole_experiment(tried):
    out, *_ = tried
    with Endpoint(wanting) as endpoint:
        command = ("judge-check", out / "reference", "--base-url", endpoint.url, "--limit", 2)
        done = refloom(*command, "--json", cwd=out)
        asked = len(endpoint.bodies)
        again = refloom(*command, cwd=out)
        assert len(endpoint.bodies) == asked > 0
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["judge"], found["paid"]) == ("m", asked)
    assert "padded" in again.stdout
    whole = refloom("judge-check", out, cwd=out)
    assert (whole.returncode, "name one of its arms" in whole.stderr) == (2, True)
    # What a judge was asked since is no part of what making the rows took.
    account = read_arm("reference", out / "reference").summary
    kept = json.loads((out / "compare.json").read_text())["arms"][0]
    assert account["calls"] == kept["calls"]
    assert read_status(out / "reference")["calls"]["by_stage"]["judge-check"] == asked


def test_the_status_of_an_experiment_is_that_of_its_arms(tried):
    out, *_ = tried
    done = refloom("status", out, "--json", cwd=out)
    assert set(json.loads(done.stdout)["arms"]) == set(ARMS.split(","))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("export", "OUT", "rows.jsonl", "--format", "messages"), "name one of its arms"),
        (("push", "OUT", "me/rows", "--dry-run"), "name one of its arms"),
        (("report", "OUT", "OUT/none"), "name one of its arms"),
        (("compare", "OUT/none", "OUT/none"), "named twice"),
        (("compare", "OUT", "--out", "OUT/nowhere/page.html"), "there is no directory"),
        (("compare", "OUT/none"), "give two runs or more"),
    ],
)
def test_what_cannot_be_done_is_said_before_it_is_tried(tried, tmp_path, command, said):
    out, *_ = tried
    done = refloom(*(part.replace("OUT", str(out)) for part in command), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("rows", "said"), [(1, "criteria from another"), (None, "nofile.jsonl")], ids=["one", "none"]
)
def test_what_is_wrong_with_an_arm_is_known_before_anything_is_made(tmp_path, rows, said):
    name = "nofile.jsonl" if rows is None else "one.jsonl"
    if rows:
        (tmp_path / name).write_text(json.dumps(references(1)[0]))
    with Endpoint() as endpoint:
        done = refloom(
            "experiment", "--arms", "swapped", "--references", tmp_path / name, "--out",
            tmp_path / "out", "--base-url", endpoint.url, "--model", "m", cwd=tmp_path,
        )  # fmt: skip
        assert not endpoint.bodies
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_arm_of_which_nothing_came_leaves_the_others_their_comparison(tmp_path):
    def without_feedback(body, number):
        return "no JSON" if stage_of(body) == "feedback" else wanting(body, number)

    rows = "\n".join(json.dumps(r) for r in references(3))
    (tmp_path / "references.jsonl").write_text(rows)
    with Endpoint(without_feedback) as endpoint:
        done = refloom(
            "experiment", "--arms", "sample,none", "--references", tmp_path / "references.jsonl",
            "--out", tmp_path / "out", "--base-url", endpoint.url, "--model", "m",
            "--no-try-criteria", cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "nothing to compare" in done.stdout
    pairs = json.loads((tmp_path / "out" / "compare.json").read_text())["pairs"]
    assert [(p["a"], p["n"]) for p in pairs] == [("sample", 0), ("none", 3)]


def test_what_another_experiment_asked_its_judge_is_not_asked_again(tmp_path):
    model = judge_by(lambda a, b: "tie")
    arms = [arm("a", many("x")), arm("b", many("y"))]
    for name, given in (("one", {}), ("two", {"reuse": tmp_path / "one"})):
        settings = Settings(model="m", **given)
        asyncio.run(compare_runs(arms, [(0, 1)], tmp_path / name, settings, complete=model))
    assert len(model.calls) == 40
