"""The command line against a local endpoint."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiohttp import web
from fakes import Endpoint, answer, completion, criterion_ids, error, stage_of, verdicts, words
from processes import command, env_of, lines, refloom, run_process
from runs import run_flags

KEYS = {
    *("instruction_criteria", "instruction_verdicts", "reasoning"),
    "id", "seed_id", "slot", "instruction", "response", "status", "reason", "reference_ids",
    "criteria", "attempts", "feedback", "model", "judge_model", "prompt_version", "random_seed",
    "usage", "cost_usd", "created",
}  # fmt: skip


@pytest.fixture
def references(tmp_path: Path) -> Path:
    path = tmp_path / "references.jsonl"
    rows = [
        {"instruction": f"Explain {words(f'r{i}', 8)}", "response": words(f"a{i}", 50) + "."}
        for i in range(8)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_help_and_version_say_what_a_stranger_needs(tmp_path):
    assert "refloom demo" in refloom("--help", cwd=tmp_path).stdout
    assert "--target" in refloom("run", "--help", cwd=tmp_path).stdout
    version = run_process("--version", cwd=tmp_path)
    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout.startswith("refloom 0.")


def test_what_the_endpoint_had_in_its_cache_is_told(tmp_path, references):
    def script(body, number):
        said = json.loads(completion(answer(stage_of(body), prompt(body), 0), body).text)
        said["usage"] = {
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 25},
        }
        return web.json_response(said)

    def prompt(body):
        return "\n".join(m["content"] for m in body["messages"])

    with Endpoint(script, script) as endpoint:
        flags = run_flags(references, tmp_path / "out", endpoint, "--limit", 2)
        done = refloom(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sent = 100 * (1 + len(endpoint.bodies))
    assert f"25% of {sent:,} prompt tokens were in the endpoint's cache" in done.stdout


def test_a_run_makes_rows_and_files_and_says_so(tmp_path, references):
    with Endpoint() as endpoint:
        done = refloom(*run_flags(references, tmp_path / "out", endpoint), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    read, progress = done.stderr.splitlines()
    assert read == f"references: 8 of {references} (8 instruction/response)"
    assert "accepted 8, rejected 0, failed 0" in progress
    assert done.stdout.startswith("done: 8 accepted, 0 rejected, 0 failed")
    rows = lines(tmp_path / "out" / "accepted.jsonl")
    assert [row["slot"] for row in rows] == [[0, i, 0] for i in range(8)]
    assert all(set(row) == KEYS for row in rows)
    said = json.loads((tmp_path / "out" / "run.json").read_text())
    counts = said["counts"]
    total = sum(counts[k] for k in ("accepted", "rejected", "failed", "pending"))
    assert counts["candidates"] == total == 8
    calls, asked = said["calls"], len(endpoint.preflights) + len(endpoint.bodies)
    assert calls["paid"] == sum(calls["by_stage"].values()) == asked
    status = refloom("status", tmp_path / "out", "--json", cwd=tmp_path)
    assert json.loads(status.stdout)["counts"] == counts


def test_every_request_carries_stage_seed_and_tags(tmp_path, references):
    with Endpoint() as endpoint:
        refloom(*run_flags(references, tmp_path / "out", endpoint), cwd=tmp_path)
    assert set(endpoint.stages()) == {"extract", "propose", "screen", "generate", "critique"}
    assert all(0 <= body["seed"] < 2**31 for body in endpoint.bodies)
    critiques = [b for b in endpoint.bodies if stage_of(b) == "critique"]
    assert all(criterion_ids(b["messages"][1]["content"]) for b in critiques)


def test_a_second_run_sharing_the_memory_learns_nothing_anew(tmp_path, references):
    memory = tmp_path / "memory"
    with Endpoint() as endpoint:
        flags = run_flags(references, tmp_path / "a", endpoint, "--memory", memory)
        refloom(*flags, cwd=tmp_path)
        endpoint.bodies.clear()
        flags = run_flags(references, tmp_path / "b", endpoint, "--memory", memory)
        refloom(*flags, "--random-seed", 7, cwd=tmp_path)
        stages = endpoint.stages()
    assert stages.count("extract") == 0
    assert stages.count("critique") == stages.count("generate") == 8
    assert len(lines(tmp_path / "b" / "accepted.jsonl")) == 8


def test_kill_minus_nine_and_resume_make_the_same_rows_and_pay_nothing_twice(tmp_path, references):
    with Endpoint() as endpoint:
        endpoint.latency = 0.02
        flags = run_flags(references, tmp_path / "calm", endpoint, "--concurrency", 2)
        refloom(*flags, cwd=tmp_path)
        calm = len(endpoint.bodies)
        endpoint.bodies.clear()
        flags = run_flags(references, tmp_path / "out", endpoint, "--concurrency", 2)
        for answered in (5, 20, 35):
            process = subprocess.Popen(
                command(*flags),
                cwd=tmp_path,
                env=env_of({}),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            while len(endpoint.bodies) < answered and process.poll() is None:
                time.sleep(0.005)
            process.kill()
            process.wait()
        assert "interrupted" in refloom("status", tmp_path / "out", cwd=tmp_path).stdout
        done = refloom(*flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    varying = ("created", "usage", "cost_usd")

    def rows(out: str) -> list[dict]:
        kept = lines(tmp_path / out / "accepted.jsonl")
        return [{k: v for k, v in row.items() if k not in varying} for row in kept]

    assert rows("out") == rows("calm")
    assert len(endpoint.bodies) <= calm + 3 * 2, "only calls in flight at a kill are repeated"


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_lets_calls_in_flight_end_and_writes_everything(tmp_path, references, name):
    with Endpoint() as endpoint:
        endpoint.latency = 0.1
        flags = run_flags(references, tmp_path / "out", endpoint, "--concurrency", 2)
        process = subprocess.Popen(
            command(*flags),
            cwd=tmp_path,
            env=env_of({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while len(endpoint.bodies) < 12 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(name)
        said, told = process.communicate(timeout=30)
        answered = len(endpoint.bodies)
        assert process.returncode == 130, told
        assert said.startswith("interrupted")
        kept = json.loads((tmp_path / "out" / "run.json").read_text())
        assert kept["status"] == "interrupted"
        assert kept["calls"]["paid"] == answered + 1, "and the preflight"


def test_a_second_signal_stops_at_once_and_says_where_the_work_is(tmp_path, references):
    def preflight(body, number):
        # From here on an answer takes longer than the test.
        endpoint.latency = 20
        return "ok"

    with Endpoint(preflight=preflight) as endpoint:
        process = subprocess.Popen(
            command(*run_flags(references, tmp_path / "out", endpoint)),
            cwd=tmp_path,
            env=env_of({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not endpoint.bodies and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=10)
        assert process.returncode == 130
        assert "journal.sqlite" in told and "Traceback" not in told
        kept = json.loads((tmp_path / "out" / "run.json").read_text())
        assert kept["status"] == "interrupted"


def test_export_writes_messages(tmp_path, references):
    with Endpoint() as endpoint:
        refloom(*run_flags(references, tmp_path / "out", endpoint), cwd=tmp_path)
    target = tmp_path / "train.jsonl"
    done = refloom("export", tmp_path / "out", target, "--format", "messages", cwd=tmp_path)
    assert done.returncode == 0
    rows = lines(tmp_path / "out" / "accepted.jsonl")
    assert lines(target)[0]["messages"] == [
        {"role": "user", "content": rows[0]["instruction"]},
        {"role": "assistant", "content": rows[0]["response"]},
    ]


def test_an_exact_target_among_rejections(tmp_path, references):
    def script(body, number):
        if stage_of(body) == "critique" and "refloom" not in str(body):
            prompt = "\n".join(m["content"] for m in body["messages"])
            return verdicts(prompt, "fail" if body["seed"] % 5 < 2 else "pass")
        return None

    with Endpoint(script) as endpoint:
        flags = run_flags(references, tmp_path / "out", endpoint, "--target", 11)
        done = refloom(*flags, "--no-try-criteria", "--max-attempts", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(lines(tmp_path / "out" / "accepted.jsonl")) == 11


def test_a_judge_nothing_pleases_ends_short_of_the_target(tmp_path, references):
    def script(body, number):
        prompt = "\n".join(m["content"] for m in body["messages"])
        return verdicts(prompt, "fail") if stage_of(body) == "critique" else None

    with Endpoint(script) as endpoint:
        flags = run_flags(references, tmp_path / "out", endpoint, "--target", 3)
        done = refloom(*flags, "--no-try-criteria", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout.startswith("short: 0 accepted, 30 rejected")
    assert "short of 3 rows: --max-candidates, 30, is reached" in done.stdout


def test_a_run_that_runs_out_of_new_instructions_asks_for_seeds(tmp_path, references):
    def script(body, number):
        if stage_of(body) != "propose":
            return None
        return completion({"instructions": ["which quartz river has umber banks"]}, body)

    with Endpoint(script) as endpoint:
        flags = run_flags(references, tmp_path / "out", endpoint, "--target", 3)
        done = refloom(*flags, "--no-screen", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "short of 3 rows: the last round of seeds brought nothing new" in done.stdout


def test_an_endpoint_that_takes_neither_schema_nor_tools_is_asked_by_text(tmp_path, references):
    def script(body, number):
        if "response_format" in body:
            return error(400, "response_format is not supported")
        if "tools" in body:
            return error(400, "this server has no tools")
        return None

    with Endpoint(script) as endpoint:
        done = refloom(*run_flags(references, tmp_path / "out", endpoint), cwd=tmp_path)
    assert done.stdout.startswith("done: 8 accepted"), done.stderr


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (lambda: error(401, "Incorrect API key provided: sk-secret"), "refused the key"),
        (lambda: error(404, "The model `m` does not exist"), "does not know model 'm'"),
        (lambda: error(429, "You exceeded your quota", "insufficient_quota"), "quota"),
    ],
)
def test_a_provider_that_refuses_stops_the_run_at_once(tmp_path, references, response, says):
    def refuse(body, number):
        return response()

    with Endpoint(refuse, refuse) as endpoint:
        done = refloom(
            *run_flags(references, tmp_path / "out", endpoint),
            cwd=tmp_path,
            OPENAI_API_KEY="sk-secret",
        )
    assert done.returncode == 4
    assert says in done.stderr.splitlines()[-1] and done.stderr.count("\n") == 2
    assert (len(endpoint.preflights), endpoint.bodies) == (1, [])
    stopped = json.loads((tmp_path / "out" / "run.json").read_text())
    assert stopped["status"] == "stopped" and says in stopped["stopped"]
    kept = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert b"sk-secret" not in kept and "sk-secret" not in done.stderr


def test_a_dead_endpoint_stops_the_run(tmp_path, references):
    done = refloom(
        "run", "--references", references, "--out", tmp_path / "out", "--model", "m",
        "--base-url", "http://127.0.0.1:9/v1", "--references-per-seed", 1, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 4
    assert "cannot be reached" in done.stderr.splitlines()[-1] and done.stderr.count("\n") == 2


BAD = {
    "no such file": (["--references", "absent.jsonl"], "absent.jsonl: no such file"),
    "a directory without data": (["--references", "empty-dir"], "empty-dir"),
    "an empty file": (["--references", "empty.jsonl"], "no usable row"),
    "rows of no shape": (["--references", "odd.jsonl"], "known shape"),
    "wrong types": (["--references", "types.jsonl"], "'instruction' is dict, not text"),
    "no JSON at line 2": (["--references", "broken.jsonl"], "broken.jsonl: line 2"),
    "a wrong number": (["--per-seed", "-1"], "--per-seed"),
    "no number": (["--per-seed", "many"], "--per-seed"),
    "an unknown arm": (["--feedback", "loud"], "--feedback"),
    "an unknown key in the config": (["--config", "odd.toml"], "no setting 'colour'"),
    "a config that is no TOML": (["--config", "odd.jsonl"], "refloom:"),
    "an out that is a file": (["--out", "empty.jsonl"], "cannot be written"),
    "a directory in place of a file": (["--references", "empty-dir/"], "refloom:"),
    "no JSON at line 7": (["--references", "seven.jsonl"], "seven.jsonl: line 7"),
    "NUL bytes": (["--references", "nul.jsonl"], "nul.jsonl: line 1 has a NUL byte"),
    "no UTF-8": (["--references", "latin.jsonl"], "latin.jsonl: line 2 is not UTF-8"),
    "a line of ten megabytes": (["--references", "long.jsonl"], "more than 1,000,000"),
    "an unknown preset": (["--preset", "magic"], "--preset"),
    "a cap without a price": (["--max-cost", "1"], "--prices"),
    "no cap": (["--max-cost", "-1"], "--max-cost"),
    "a rate over one": (["--max-failure-rate", "1.5"], "--max-failure-rate"),
    "no pace": (["--rpm", "0"], "--rpm"),
    "a price table that is none": (["--prices", "odd.toml"], "odd.toml"),
    "a run to reuse that is none": (["--reuse", "empty-dir"], "there is no run here"),
    "a log that cannot be written": (["--log-file", "empty-dir"], "empty-dir"),
    "an unknown flag": (["--colour", "red"], "--colour"),
    "a column for nothing": (["--map", "colour=x"], "'colour' cannot be mapped"),
    "a map that is none": (["--map", "instruction"], "'instruction' has no column"),
    "a column that is not there": (["--map", "instruction=question"], "no column 'question'"),
    "other turns": (["--turns", "last"], "--turns"),
    "later turns answered alone": (["--turns", "all", "--answer-seeds"], "give --seeds"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_two_and_nothing_is_paid(tmp_path, references, case):
    (tmp_path / "empty-dir").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "odd.jsonl").write_text('{"colour": "red"}\n')
    (tmp_path / "types.jsonl").write_text('{"instruction": {"a": 5}, "response": "x"}\n')
    (tmp_path / "broken.jsonl").write_text('{"instruction": "a", "response": "b"}\n{"inst\n')
    pair = json.dumps({"instruction": "a", "response": "b"}) + "\n"
    (tmp_path / "seven.jsonl").write_text(6 * pair + "{\n" + pair)
    (tmp_path / "nul.jsonl").write_bytes(b'{"instruction": "a\x00", "response": "b"}\n')
    (tmp_path / "latin.jsonl").write_bytes(pair.encode() + b'{"instruction": "\xe9"}\n')
    long = {"instruction": "a", "response": "tide " * 2_000_000}
    (tmp_path / "long.jsonl").write_text(json.dumps(long) + "\n")
    (tmp_path / "odd.toml").write_text('colour = "red"\n')
    flags, says = BAD[case]
    with Endpoint() as endpoint:
        given = run_flags(references, tmp_path / "out", endpoint)
        given = [
            g for g in given if "--references" not in flags or g not in ("--references", references)
        ]
        done = refloom(*given, *flags, cwd=tmp_path, HF_HUB_OFFLINE="1")
        assert not endpoint.bodies
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("refloom"), done.stderr


def test_no_endpoint_for_a_named_model_says_what_to_do(tmp_path, references):
    done = refloom(
        "run", "--references", references, "--out", "out", "--model", "gpt-x", cwd=tmp_path
    )
    assert done.returncode == 4
    assert "OPENAI_BASE_URL" in done.stderr and done.stderr.count("\n") == 1


def test_bad_lines_can_be_skipped_and_are_counted(tmp_path):
    path = tmp_path / "r.jsonl"
    good = json.dumps({"instruction": "Why tides?", "response": "The Moon pulls. So they rise."})
    path.write_text(f'{good}\n{{"inst\n{{"colour": 1}}\n')
    with Endpoint() as endpoint:
        done = refloom(
            *run_flags(path, tmp_path / "out", endpoint), "--skip-bad-lines", cwd=tmp_path
        )
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "out" / "run.json").read_text())
    assert said["counts"]["rows_skipped"] == 2
    assert [s["line"] for s in said["skipped"]] == [2, 3]


def test_settings_come_from_flag_then_environment_then_file(tmp_path, references):
    config = tmp_path / "c.toml"
    config.write_text("max_attempts = 7\nper_seed = 3\nrandom_seed = 5\n")
    with Endpoint() as endpoint:
        refloom(
            *run_flags(references, tmp_path / "out", endpoint, "--config", config),
            "--per-seed",
            1,
            cwd=tmp_path,
            REFLOOM_PER_SEED="2",
            REFLOOM_RANDOM_SEED="6",
        )
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert (settings["per_seed"], settings["random_seed"], settings["max_attempts"]) == (1, 6, 7)


def test_a_cut_answer_is_asked_once_with_more_room(tmp_path, references):
    def script(body, number):
        if stage_of(body) == "generate" and body["max_tokens"] == 3000:
            return completion('{"response": "cut o', body, finish="length")
        return None

    with Endpoint(script) as endpoint:
        done = refloom(*run_flags(references, tmp_path / "out", endpoint), cwd=tmp_path)
    assert done.stdout.startswith("done: 8 accepted")
    rooms = [b["max_tokens"] for b in endpoint.bodies if stage_of(b) == "generate"]
    assert sorted(rooms) == [3000] * 8 + [6000] * 8


def test_the_graph_called_from_python_leaves_nothing_open(tmp_path):
    code = (
        "import asyncio\n"
        "from graph.builder import build_graph\n"
        "from nodes.context import Context\n"
        "reference = {'instruction': 'Why tides?', 'response': 'The Moon pulls. So they rise.'}\n"
        "given = {'seed': {'instruction': 'Waves at sea'}, 'references': [reference]}\n"
        "graph, context = build_graph(), Context(model='m')\n"
        "for _ in range(2):\n"
        "    print(asyncio.run(graph.ainvoke(given, context=context))['samples'][0]['status'])\n"
    )
    with Endpoint() as endpoint:
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-c", code],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=env_of({"OPENAI_BASE_URL": endpoint.url}) | {"PYTHONWARNINGS": ""},
            timeout=60,
        )
    assert done.stdout.split() == ["accepted", "accepted"], done.stderr
    assert "nclosed" not in done.stderr


def test_a_password_in_an_address_is_kept_nowhere(tmp_path, references):
    with Endpoint() as endpoint:
        address = endpoint.url.replace("http://", "http://user:verysecret@")
        flags = ["run", "--references", references, "--out", tmp_path / "out"]
        flags += ["--base-url", address, "--model", "m", "--references-per-seed", 1]
        done = refloom(*flags, "--feedback", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kept = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert b"verysecret" not in kept
