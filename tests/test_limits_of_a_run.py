"""Whole runs at their limits: budget, failure rate, another run's calls, presets, the log."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from aiohttp import web
from fakes import Endpoint, ScriptedModel, answer, completion, error, prompt_of, stage_of, words
from processes import lines, refloom, run_process
from runs import (
    SEEDS,
    CountingModel,
    all_rows,
    finish_run,
    references,
    rows,
    run_flags,
    stable_rows,
    summary_of,
)

from nodes.llm import Call, CallFailed, ProviderStopped, Reply
from refloom.errors import BudgetSpent, JournalError, TooManyFailed
from refloom.runs.journal import read_records
from refloom.runs.outputs import read_status
from refloom.runs.scheduler import MIN_SAMPLES_FOR_FAILURE_RATE
from refloom.settings import load_settings

PRICES = "[m]\ninput = 100.0\ncached_input = 50.0\noutput = 1000.0\n"
# Of one call of the scripted model: 10 prompt tokens, 4 of them cached, and 5 written.
COST = (6 * 100 + 4 * 50 + 5 * 1000) / 1_000_000


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    path = tmp_path / "prices.toml"
    path.write_text(PRICES)
    return path


# --- dollars -----------------------------------------------------------------------------------


async def test_dollars_are_counted_by_stage_model_and_sample(tmp_path, prices):
    said = await finish_run(tmp_path / "out", ScriptedModel(), prices=prices)
    calls = said["calls"]["by_stage"]
    assert said["cost_usd"] == pytest.approx(COST * sum(calls.values()))
    assert said["cost_by_stage"] == {k: pytest.approx(COST * n) for k, n in calls.items()}
    assert said["cost_by_model"] == {"m": pytest.approx(said["cost_usd"])}
    for row in rows(tmp_path / "out", "accepted"):
        assert row["cost_usd"] == pytest.approx(COST * row["usage"]["calls"])
        assert row["usage"]["calls"] == 2


async def test_an_unknown_price_is_null_and_no_guess(tmp_path, prices):
    said = await finish_run(tmp_path, ScriptedModel(), prices=prices, judge_model="another")
    assert said["cost_usd"] is None
    assert said["cost_by_stage"]["critique"] is None
    assert said["cost_by_stage"]["generate"] > 0
    assert said["cost_by_model"]["another"] is None
    assert [row["cost_usd"] for row in rows(tmp_path, "accepted")] == [None] * 3


@pytest.mark.parametrize("cap", [{"max_cost": 30.0}, {"max_tokens": 30_000}], ids=str)
async def test_a_cap_is_kept_and_a_higher_one_goes_on_without_paying_twice(tmp_path, prices, cap):
    ((name, most),) = cap.items()
    model = CountingModel(ScriptedModel())
    # A call of this model may cost dollars and costs cents, so the cap bites at its reservation.
    with pytest.raises(BudgetSpent, match=name.replace("_", "-")):
        await finish_run(tmp_path / "out", model, SEEDS, prices=prices, **{name: most / 10})
    said = summary_of(tmp_path / "out")
    assert said["status"] == "stopped"
    assert "raise --" in said["stopped"]
    usage = said["usage"]
    spent = {
        "max_cost": said["cost_usd"],
        "max_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
    }
    assert spent[name] <= most / 10
    counts = said["counts"]
    ended = counts["accepted"] + counts["rejected"] + counts["failed"]
    assert counts["failed"] == 0
    assert counts["candidates"] == ended + counts["pending"]
    said = await finish_run(tmp_path / "out", model, SEEDS, prices=prices, **{name: most * 10})
    assert said["status"] == "done"
    assert said["stopped"] is None
    assert max(model.answered.values()) == 1
    await finish_run(tmp_path / "calm", ScriptedModel(), SEEDS, prices=prices)
    assert stable_rows(tmp_path / "out") == stable_rows(tmp_path / "calm")


async def test_a_cap_holds_over_many_sessions(tmp_path, prices):
    short = {stage: {"max_tokens": 20} for stage in ("extract", "propose", "generate", "critique")}
    few = {"prices": prices, "max_cost": 0.2, "stages": short}
    paid = []
    for concurrency in (1, 8, 3):
        with pytest.raises(BudgetSpent):
            model = ScriptedModel()
            await finish_run(tmp_path, model, SEEDS, concurrency=concurrency, **few)
        said = summary_of(tmp_path)
        assert said["cost_usd"] <= 0.2
        paid.append(said["calls"]["paid"])
    assert 5 < paid[0] <= paid[1] <= paid[2] == round(said["cost_usd"] / COST)


# --- failures ----------------------------------------------------------------------------------


def failing(share: int) -> ScriptedModel:
    """A model of which every `share`-th draft fails."""
    asked = 0

    def generate(call: Call):
        nonlocal asked
        asked += 1
        if asked % share == 0:
            return CallFailed("generate", "filtered", "no")
        return answer("generate", prompt_of(call), call.seed)

    return ScriptedModel(generate=generate)


async def test_a_run_most_of_whose_samples_fail_is_stopped(tmp_path):
    with pytest.raises(TooManyFailed, match="--max-failure-rate"):
        await finish_run(tmp_path, failing(1), SEEDS, per_seed=10, concurrency=1)
    said = summary_of(tmp_path)
    assert said["status"] == "stopped"
    assert MIN_SAMPLES_FOR_FAILURE_RATE <= said["counts"]["failed"] < 40
    assert "failed.jsonl" in said["stopped"]


@pytest.mark.parametrize(("share", "rate"), [(3, 0.5), (1, 1.0), (4, 0.4)])
async def test_a_run_within_its_failure_rate_goes_on_to_its_end(tmp_path, share, rate):
    said = await finish_run(tmp_path, failing(share), SEEDS, per_seed=5, max_failure_rate=rate)
    assert said["status"] == "done"
    assert said["counts"]["failed"] > 5


async def test_what_is_in_flight_when_the_provider_stops_is_finished_and_kept(tmp_path):
    stopped = asyncio.Event()

    class Stopping(ScriptedModel):
        async def __call__(self, call: Call):
            if call.stage == "generate" and self.asked("generate"):
                stopped.set()
                raise ProviderStopped("the quota is used up")
            if call.stage == "generate":
                self.calls.append(call)
                await stopped.wait()
                await asyncio.sleep(0.1)
            return await super().__call__(call)

    with pytest.raises(ProviderStopped):
        await finish_run(tmp_path, Stopping())
    assert summary_of(tmp_path)["calls"]["by_stage"]["generate"] == 1


# --- another run's calls -----------------------------------------------------------------------


async def test_another_runs_calls_are_reused_and_only_what_changed_is_paid(tmp_path):
    first = CountingModel(ScriptedModel())
    await finish_run(tmp_path / "a", first, SEEDS[:3])
    before = summary_of(tmp_path / "a")["calls"]["paid"]
    model = CountingModel(ScriptedModel())
    said = await finish_run(tmp_path / "b", model, SEEDS[:4], reuse=tmp_path / "a")
    assert not set(first.answered) & set(model.answered)
    assert said["calls"]["reused"] == before
    assert said["calls"]["paid"] == sum(model.answered.values()) == 3
    assert stable_rows(tmp_path / "b")[:3] == stable_rows(tmp_path / "a")
    more = references(4)
    model = CountingModel(ScriptedModel())
    said = await finish_run(tmp_path / "c", model, None, given=more, reuse=tmp_path / "a")
    assert {c.stage for c in model.model.calls} == {"propose", "generate", "critique", "extract"}
    assert len([c for c in model.model.calls if c.stage == "extract"]) == 1


async def test_a_run_that_reused_calls_needs_the_other_no_more(tmp_path):
    await finish_run(tmp_path / "a", ScriptedModel(), SEEDS[:3])
    await finish_run(tmp_path / "b", ScriptedModel(), SEEDS[:3], reuse=tmp_path / "a", target=1)
    for path in sorted((tmp_path / "a").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    model = ScriptedModel()
    said = await finish_run(tmp_path / "b", model, SEEDS[:3], target=3)
    assert said["counts"]["accepted"] == 3
    assert said["calls"]["paid"] == 0 or not [c for c in model.calls if c.stage == "extract"]


def test_a_changed_prompt_is_refused_and_another_run_pays_for_it_alone(tmp_path):
    other = tmp_path / "other version"
    root = Path(__file__).parent.parent
    for name in ("refloom", "graph", "nodes", "memory", "prompts"):
        shutil.copytree(root / name, other / name)
    prompt = other / "prompts" / "generate.jinja"
    prompt.write_text(prompt.read_text().replace("You write the", "You write a good"))
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, references(3))))
    with Endpoint() as endpoint:

        def run(out, *more, **environment):
            flags = ("--references", "pairs.jsonl", "--references-per-seed", 1, "--model", "m")
            return run_process(
                "run", *flags, "--out", out, "--base-url", endpoint.url, *more,
                cwd=tmp_path, **environment,
            )  # fmt: skip

        assert run("a").returncode == 0
        refused = run("a", PYTHONPATH=str(other))
        assert refused.returncode == 2
        assert "other prompts: generate." in refused.stderr
        assert "--reuse" in refused.stderr
        endpoint.bodies.clear()
        assert run("b", "--reuse", "a", PYTHONPATH=str(other)).returncode == 0
        assert set(endpoint.stages()) == {"generate", "critique"}


# --- settings ----------------------------------------------------------------------------------


def test_a_preset_is_behind_a_config_file_and_flags(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text('preset = "thorough"\nmax_criteria = 7\n')
    settings = load_settings({"references_per_seed": 2}, config)
    assert (settings.references_per_seed, settings.max_criteria) == (2, 7)
    assert (settings.max_attempts, settings.should_share) == (5, 0.8)
    assert load_settings({"preset": "quick"}, config).max_attempts == 2
    assert load_settings({"preset": "quick"}).try_criteria is False
    assert load_settings({}).max_attempts == 3


# --- the command line --------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "references.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in references(30)))
    return path


def test_a_spent_budget_is_exit_status_four_and_one_line(tmp_path, pairs, prices):
    with Endpoint() as endpoint:
        flags = run_flags(pairs, tmp_path / "out", endpoint, "--prices", prices, "--quiet")
        done = refloom(*flags, "--max-cost", "4", cwd=tmp_path)
        assert done.returncode == 4, done.stderr
        assert done.stderr.startswith("refloom: --max-cost is $4") and done.stderr.count("\n") == 1
        assert done.stdout.startswith("stopped: ")
        status = refloom("status", tmp_path / "out", cwd=tmp_path).stdout
        assert "stopped" in status and "cost: $" in status
        done = refloom(*flags, "--max-cost", "1200", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        asked = [json.dumps(body, sort_keys=True) for body in endpoint.bodies]
        assert len(asked) == len(set(asked))


def test_too_many_failures_are_exit_status_three(tmp_path, pairs):
    def script(body, number):
        return error(400, "content_filter") if stage_of(body) == "generate" else None

    with Endpoint(script) as endpoint:
        done = refloom(*run_flags(pairs, tmp_path / "out", endpoint, "--quiet"), cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "--max-failure-rate" in done.stderr and done.stderr.count("\n") == 1


def test_a_dry_run_makes_no_call_and_no_directory(tmp_path, pairs, prices):
    with Endpoint() as endpoint:
        flags = run_flags(pairs, tmp_path / "out", endpoint, "--prices", prices)
        done = refloom(*flags, "--dry-run", cwd=tmp_path)
        assert endpoint.bodies == []
    assert done.returncode == 0, done.stderr
    assert "references: 30 taken" in done.stdout and "$" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_log_tells_of_calls_faults_and_samples_and_holds_no_key(tmp_path, pairs):
    def script(body, number):
        if number == 3:
            return error(500, "key sk-very-secret-key is not the trouble")
        return completion("{", body) if number == 5 else None

    with Endpoint(script) as endpoint:
        flags = run_flags(pairs, tmp_path / "out", endpoint, "--limit", 6)
        done = refloom(
            *flags,
            "--log-file",
            tmp_path / "log.jsonl",
            cwd=tmp_path,
            OPENAI_API_KEY="sk-very-secret-key",
        )
    assert done.returncode == 0, done.stderr
    events = lines(tmp_path / "log.jsonl")
    by_name = {e["event"] for e in events}
    assert {"begin", "call", "fault", "sample", "end"} <= by_name
    assert len([e for e in events if e["event"] == "sample"]) == 6
    assert all(e["stage"] for e in events if e["event"] in ("call", "fault"))
    assert "very-secret" not in (tmp_path / "log.jsonl").read_text()


def test_a_target_of_137_among_500_seeds_and_rejections_is_met_evenly(tmp_path):
    pairs = tmp_path / "r.jsonl"
    pairs.write_text("".join(json.dumps(r) + "\n" for r in references(500)))

    def script(body, number):
        if stage_of(body) == "critique" and body["seed"] % 10 < 4:
            said = answer("critique", body["messages"][1]["content"], 0)
            for verdict in said["verdicts"]:
                verdict["verdict"] = "fail"
            return said
        return None

    with Endpoint(script) as endpoint:
        flags = run_flags(pairs, tmp_path / "out", endpoint, "--target", 137, "--quiet")
        flags += ["--max-attempts", 1, "--no-try-criteria", "--per-seed", 2]
        done = refloom(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(lines(tmp_path / "out" / "accepted.jsonl")) == 137
    every = all_rows(tmp_path / "out")
    of_seed = [sum(row["slot"][1] == n for row in every) for n in range(len(every) // 2)]
    assert max(of_seed) - min(of_seed) <= 2


# --- what a stranger's mistakes lead to --------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"OPENAI_API_KEY": "two\nlines"}, "OPENAI_API_KEY: holds a character"),
        ({"OPENAI_API_KEY": "schlüssel"}, "OPENAI_API_KEY: holds a character"),
        ({"OPENAI_BASE_URL": "http://[::1"}, "--base-url"),
        ({"OPENAI_BASE_URL": "localhost:8000/v1"}, "http://127.0.0.1"),
        ({"REFLOOM_NONSENSE": "1"}, "REFLOOM_NONSENSE: no such setting"),
        ({"REFLOOM_STAGES": "abc"}, "stages"),
        ({"REFLOOM_LIMIT": "abc"}, "REFLOOM_LIMIT"),
    ],
    ids=str,
)
def test_an_odd_environment_is_one_line_and_status_two(tmp_path, pairs, environment, says):
    given = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", **environment}
    done = refloom(
        "run", "--references", pairs, "--out", "out", "--model", "m", cwd=tmp_path, **given
    )
    assert done.returncode == 2, done.stderr
    assert says in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


async def test_a_cap_is_not_passed_over_when_the_endpoint_reports_no_usage(tmp_path):
    nothing = {"calls": 1, "prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}

    class Silent(ScriptedModel):
        async def __call__(self, call: Call):
            reply = await super().__call__(call)
            return Reply(reply.text, reply.finish, dict(nothing))

    with pytest.raises(BudgetSpent, match="reports no usage"):
        await finish_run(tmp_path / "capped", Silent(), max_tokens=100_000)
    assert 0 < summary_of(tmp_path / "capped")["calls"]["paid"] <= 4
    said = await finish_run(tmp_path / "free", Silent())
    assert said["counts"]["accepted"] == 3


@pytest.mark.parametrize("usage", [{"prompt_tokens": "many"}, {"prompt_tokens": 10**30}, [], 7])
def test_a_usage_that_is_none_costs_no_answer(tmp_path, pairs, usage):
    def script(body, number):
        prompt = "\n".join(m["content"] for m in body["messages"])
        reply = completion(answer(stage_of(body), prompt, body["seed"]), body)
        said = json.loads(reply.body) | {"usage": usage}
        return web.json_response(said)

    with Endpoint(script) as endpoint:
        done = refloom(*run_flags(pairs, tmp_path / "out", endpoint, "--limit", 3), cwd=tmp_path)
    assert done.stdout.startswith("done: 3 accepted"), done.stderr


async def test_no_call_is_begun_once_the_target_is_met(tmp_path):
    met = []
    late = []

    class Slow(ScriptedModel):
        async def __call__(self, call: Call):
            if met:
                late.append(call)
            if call.stage == "propose":
                for _ in range(50):
                    await asyncio.sleep(0)
            return await super().__call__(call)

    def heard(record):
        if record["status"] == "accepted" and record["slot"][1] == 3:
            met.append(record)

    few = {"target": 4, "concurrency": 2, "on_record": heard}
    said = await finish_run(tmp_path, Slow(), [*SEEDS, *(f"{s} more" for s in SEEDS)], **few)
    assert said["counts"]["accepted"] == 4
    assert len(late) <= 2
    assert said["calls"]["by_stage"]["propose"] <= 8


async def test_another_endpoint_of_the_environment_is_refused_on_resume(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1/")
    await finish_run(tmp_path, ScriptedModel())
    await finish_run(tmp_path, ScriptedModel(), base_url="http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:10/v1")
    with pytest.raises(JournalError, match="base_url"):
        await finish_run(tmp_path, ScriptedModel())


async def test_a_damaged_run_is_told_in_one_line(tmp_path):
    await finish_run(tmp_path / "out", ScriptedModel(), SEEDS)
    for odd in ("[1]", '{"status": 5, "counts": [1]}', "{"):
        (tmp_path / "out" / "run.json").write_text(odd)
        assert read_status(tmp_path / "out")["counts"]["accepted"] == 8
    path = tmp_path / "out" / "journal.sqlite"
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))
    with pytest.raises(JournalError, match=r"damaged|no refloom journal"):
        read_status(tmp_path / "out")
    with pytest.raises(JournalError, match=r"damaged|no refloom journal"):
        list(read_records(path, "accepted"))


# --- benchmarks --------------------------------------------------------------------------------

QUESTIONS = [words(f"benchmark {i}", 14) for i in range(6)]


@pytest.fixture
def benchmark(tmp_path: Path) -> str:
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps({"turns": [q, "And why?"]}) + "\n" for q in QUESTIONS))
    return str(path)


@pytest.mark.parametrize("answer_seeds", [True, False])
async def test_seeds_that_are_a_benchmarks_prompts_are_rejected_and_nothing_is_paid(
    tmp_path, benchmark, answer_seeds
):
    model = ScriptedModel()
    few = {"benchmark": (benchmark,), "answer_seeds": answer_seeds}
    said = await finish_run(tmp_path / "out", model, [*QUESTIONS, SEEDS[0]], **few)
    assert said["counts"]["contaminated"] == said["counts"]["rejected"] == 6
    assert said["counts"]["accepted"] == 1
    for n, row in enumerate(rows(tmp_path / "out", "rejected")):
        assert (row["reason"], row["response"]) == ("contaminated", None)
        ((verdict,),) = [a["verdicts"] for a in row["attempts"]]
        assert verdict["criterion_id"] == "not-contaminated"
        assert f"bench.jsonl, row {n + 1}" in verdict["reason"]
    assert len([c for c in model.calls if c.stage == "generate"]) == 1


async def test_new_instructions_and_responses_that_hold_a_prompt_are_rejected(tmp_path, benchmark):
    def propose(call: Call):
        said = answer("propose", prompt_of(call), call.seed)
        if SEEDS[0] in prompt_of(call):
            said["instructions"][0] = f"Tell me: {QUESTIONS[2]}?"
        return said

    def generate(call: Call):
        said = answer("generate", prompt_of(call), call.seed)
        if len(model.asked("generate")) == 1:
            said["response"] = f"First: {QUESTIONS[4]}. {said['response']}"
        return said

    model = ScriptedModel(propose=propose, generate=generate)
    said = await finish_run(
        tmp_path / "out", model, SEEDS[:3], benchmark=(benchmark,), concurrency=1
    )
    assert said["counts"]["contaminated"] == 2
    by_seed = {row["slot"][1]: row for row in rows(tmp_path / "out", "rejected")}
    assert "row 3" in by_seed[0]["attempts"][0]["verdicts"][0]["reason"]
    assert len(by_seed[1]["attempts"]) == 1
    assert any("row 5" in v["reason"] for v in by_seed[1]["attempts"][0]["verdicts"])
    assert model.asked("refine") == []


async def test_a_benchmark_that_changed_is_refused_on_resume(tmp_path, benchmark):
    await finish_run(tmp_path / "out", ScriptedModel(), SEEDS[:1], benchmark=(benchmark,))
    Path(benchmark).write_text(json.dumps({"question": "Quite another one?"}) + "\n")
    with pytest.raises(JournalError, match="other benchmarks"):
        await finish_run(tmp_path / "out", ScriptedModel(), SEEDS[:1], benchmark=(benchmark,))
