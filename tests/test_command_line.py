"""The command line names what it does not know, guesses no model, and speaks JSON where asked."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from fakes import Endpoint, error, stage_of, verdicts, words
from processes import command, env_of, lines, refloom
from runs import run_flags

from refloom.cli import build_parser
from refloom.cli.parser import walk_commands
from refloom.errors import InputError
from refloom.settings import load_settings

PAIR = {"instruction": "Why do tides rise?", "response": "The Moon pulls at the sea. So it rises."}


@pytest.fixture
def references(tmp_path: Path) -> Path:
    path = tmp_path / "references.jsonl"
    rows = [{**PAIR, "instruction": f"{PAIR['instruction']} Part {i}."} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_refloom_alone_shows_its_help(tmp_path):
    alone = refloom(cwd=tmp_path)
    assert (alone.returncode, alone.stderr) == (0, "")
    assert alone.stdout == refloom("--help", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["statsu", "x"], "unknown command 'statsu'; did you mean status?"),
        (["index", "bild"], "unknown command 'bild'; did you mean build?"),
        (["xyzzy"], "unknown command 'xyzzy'; `refloom --help` says more"),
        (["run", "--reference", "x"], "unknown flag '--reference'; did you mean --references"),
        (["run", "--targt=5"], "unknown flag '--targt'; did you mean --target"),
        (["--versoin"], "unknown flag '--versoin'; did you mean --version?"),
        (["status"], "required: DIR; `refloom status --help` says more"),
        (["status", "a", "b"], "unrecognized arguments: b"),
        (["export", "a", "b.jsonl", "--format", "mesages"], "--format: invalid choice: 'mesages'"),
    ],
)
def test_what_is_not_known_is_named_with_the_nearest_that_is(tmp_path, arguments, says):
    ended = refloom(*arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("refloom: ") and ended.stderr.count("\n") == 1
    assert says in ended.stderr


def test_a_flag_may_be_shortened_where_it_could_be(tmp_path):
    assert "there is no run here" in refloom("status", "x", "--js", cwd=tmp_path).stderr


@pytest.mark.parametrize("command", ["run", "criteria", "doctor"])
def test_a_key_alone_chooses_no_model(tmp_path, references, command):
    flags = {
        "run": ["run", "--references", references, "--out", "rows"],
        "criteria": ["criteria", "mine.toml", "--references", references],
        "doctor": ["doctor"],
    }
    (tmp_path / "mine.toml").write_text('[[criteria]]\ntext = "is short"\n')
    ended = refloom(*flags[command], cwd=tmp_path, OPENAI_API_KEY="sk-1")
    assert ended.returncode == 2
    assert "--model gpt-4o-mini" in ended.stderr and "--model local" in ended.stderr
    assert not (tmp_path / "rows").exists()


def test_where_no_model_is_called_or_only_a_named_judge_a_key_alone_does_no_harm(
    tmp_path, references
):
    (tmp_path / "mine.toml").write_text('[[criteria]]\ntext = "is short"\n')
    asked = ["criteria", "mine.toml", "--references", references, "--judge-model", "m"]
    with Endpoint() as endpoint:
        for command in (["dedup", references, "d.jsonl"], asked):
            more = ["--base-url", endpoint.url] if command is asked else []
            ended = refloom(*command, *more, cwd=tmp_path, OPENAI_API_KEY="sk-1")
            assert ended.returncode == 0, ended.stderr
    assert load_settings({"turns": "all"}).turns == "all"


def test_a_judge_may_be_named_in_place_of_the_writer_it_replaces(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    assert load_settings({"judge_model": "m"}, calls="judge").judge == "m"
    assert load_settings({}).model == "local"
    with pytest.raises(InputError, match="--model local"):
        load_settings({"judge_model": "m"}, calls="all")


def test_a_model_may_be_named_anywhere_for_a_key_alone(tmp_path, references):
    run = ["run", "--references", references, "--out", "rows", "--dry-run"]
    (tmp_path / "c.toml").write_text('model = "gpt-4o-mini"\n')
    key = {"OPENAI_API_KEY": "sk-1"}
    for more, environment in (
        (["--model", "local"], {}),
        (["--config", "c.toml"], {}),
        ([], {"REFLOOM_MODEL": "gpt-4o-mini"}),
        ([], {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}),
    ):
        ended = refloom(*run, *more, cwd=tmp_path, **key, **environment)
        assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("key", [{}, {"OPENAI_API_KEY": "sk-1"}])
def test_an_endpoint_without_a_model_is_not_passed_over_for_the_embedded_one(
    tmp_path, references, key
):
    address = ("--base-url", "http://127.0.0.1:9/v1")
    run = ["run", "--references", references, "--out", "rows", "--dry-run"]
    ended = refloom(*run, *address, cwd=tmp_path, **key)
    assert ended.returncode == 2 and "--model NAME" in ended.stderr
    assert refloom(*run, *address, "--model", "local", cwd=tmp_path).returncode == 0


def test_a_folder_in_which_nothing_was_paid_is_begun_anew(tmp_path, references):
    out = tmp_path / "out"

    def refuse(body, number):
        return error(401, "Incorrect API key provided")

    with Endpoint(refuse, refuse) as endpoint:
        assert refloom(*run_flags(references, out, endpoint), cwd=tmp_path).returncode == 4
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({**PAIR, "instruction": "Why do rivers bend?"}))
    with Endpoint() as endpoint:
        flags = run_flags(other, out, endpoint, "--per-seed", 2)
        done = refloom(*flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "held a run that paid for nothing; it begins anew" in done.stderr
        assert len(lines(out / "accepted.jsonl")) == 2
        # Now it holds work, and is another's no more.
        refused = refloom(*run_flags(references, out, endpoint), cwd=tmp_path)
    assert refused.returncode == 2 and "holds a run with other settings" in refused.stderr
    assert len(lines(out / "accepted.jsonl")) == 2


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_command_without_a_stream_to_write_to_does_its_work(tmp_path, references, closed):
    out = tmp_path / "out"
    with Endpoint() as endpoint:
        line = shlex.join(command(*run_flags(references, out, endpoint)))
        shell = ["sh", "-c", f"exec {line} {closed}>&-"]
        done = subprocess.run(
            shell, capture_output=True, text=True, cwd=tmp_path, env=env_of({}), timeout=120
        )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert len(lines(out / "accepted.jsonl")) == 3


def test_a_memory_that_is_a_file_is_refused_before_anything_is_paid(tmp_path, references):
    with Endpoint() as endpoint:
        flags = run_flags(references, tmp_path / "out", endpoint, "--memory", references)
        refused = refloom(*flags, cwd=tmp_path)
        assert not endpoint.preflights + endpoint.bodies
    assert refused.returncode == 2
    assert refused.stderr == f"refloom: --memory {references}: is a file; give a directory\n"


def test_a_file_that_cannot_be_opened_is_named_first(tmp_path, references):
    flags = ["run", "--references", references, "--out", "out", "--config", "none.toml"]
    refused = refloom(*flags, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == "refloom: none.toml: No such file or directory\n"


def test_a_folder_with_one_paid_call_is_not_begun_anew(tmp_path, references):
    out = tmp_path / "out"

    def script(body, number):
        return error(401, "no") if stage_of(body) == "propose" else None

    with Endpoint(script) as endpoint:
        flags = run_flags(references, out, endpoint, "--no-try-criteria")
        assert refloom(*flags, cwd=tmp_path).returncode == 4
        refused = refloom(*flags, "--per-seed", 2, cwd=tmp_path)
    assert refused.returncode == 2 and "holds a run with other settings" in refused.stderr


def test_status_shows_tokens_by_stage(tmp_path, references):
    out = tmp_path / "out"
    with Endpoint() as endpoint:
        refloom(*run_flags(references, out, endpoint), cwd=tmp_path)
    status = json.loads(refloom("status", out, "--json", cwd=tmp_path).stdout)
    by_stage = status["tokens_by_stage"]
    assert by_stage.keys() == status["calls"]["by_stage"].keys()
    for name in ("prompt_tokens", "completion_tokens"):
        assert sum(tokens[name] for tokens in by_stage.values()) == status["usage"][name]
    text = refloom("status", out, cwd=tmp_path).stdout
    tokens = by_stage["generate"]
    said = f"generate {tokens['prompt_tokens']:,} + {tokens['completion_tokens']:,}"
    assert said in text


def test_commands_say_in_json_what_they_say(tmp_path, references):
    out = tmp_path / "out"

    def read(*arguments: object) -> object:
        ended = refloom(*arguments, "--json", cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    with Endpoint() as endpoint:
        flags = run_flags(references, out, endpoint)
        estimated = read(*flags, "--dry-run")
        assert estimated["expected"]["candidates"] == 3
        done = read(*flags)
    assert (done["status"], done["counts"]["accepted"]) == ("done", 3)
    rows = read("export", out, "train.jsonl", "--format", "messages")
    assert rows == {"format": "messages", "rows": {"train.jsonl": 3}}
    assert read("push", out, "me/rows", "--dry-run")["rows"] == {"messages": 3}
    assert Path(read("report", out)["page"]).is_file()
    assert read("dedup", references, "distinct.jsonl")["rows"] == 1
    assert read("key", "ann").keys() == {"key", "hash"}


def test_every_command_that_says_something_has_json():
    silent = {("review",), ("completion",), (), ("index",), ("model",)}
    without = {
        path for path, parser in walk_commands(build_parser()) if "--json" not in parser.flags()
    }
    assert without == silent


def test_a_dry_run_of_a_large_order_ends_with_the_command_for_five_rows(tmp_path, references):
    with Endpoint() as endpoint:
        flags = run_flags(references, tmp_path / "out", endpoint, "--target", 500)
        said = refloom(*flags, "--dry-run", cwd=tmp_path).stdout
        assert (
            "look at 5 rows first"
            not in refloom(
                *run_flags(references, tmp_path / "out", endpoint), "--dry-run", cwd=tmp_path
            ).stdout
        ), "three rows are no large order"
        command = said.splitlines()[-2].strip()
        program, *first = shlex.split(command)
        assert program == "refloom" and first[-2:] == ["--target", "5"]
        done = refloom(*first, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(lines(tmp_path / "out-first" / "accepted.jsonl")) == 5
    assert f"--reuse {tmp_path / 'out-first'}" in said.splitlines()[-1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "has", "has_not"),
    [
        (["refloom", "st"], "status", "run"),
        (["refloom", "run", "--targ"], "--target", "--out"),
        (["refloom", "index", ""], "build", "status"),
        (["refloom", "index", "search", "--t"], "--tags", "--threshold"),
        (["refloom", "run", "--out", "status", "--li"], "--limit", "--json"),
    ],
)
def test_the_shell_completes_commands_and_flags(tmp_path, words, has, has_not):
    script = refloom("completion", cwd=tmp_path).stdout
    quoted = " ".join(map(shlex.quote, words))
    script += f"COMP_WORDS=({quoted})\nCOMP_CWORD={len(words) - 1}\n_refloom\n"
    script += 'printf "%s\\n" "${COMPREPLY[@]}"\n'
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    found = done.stdout.split()
    assert has in found and has_not not in found, done.stderr


@pytest.mark.parametrize("name", ["README.md", "accepted.jsonl"])
def test_a_file_of_somebody_elses_is_not_replaced_by_a_run(tmp_path, references, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine\n")
    with Endpoint() as endpoint:
        refused = refloom(*run_flags(references, out, endpoint), cwd=tmp_path)
    assert (out / name).read_text() == "mine\n"
    assert refused.returncode == 2 and f"but a file {name}" in refused.stderr
    assert not (out / "journal.sqlite").exists()


@pytest.mark.parametrize(("target", "status"), [((), 0), (("--target", 2), 3)])
@pytest.mark.parametrize("proposed", [[], ["", " "]])
def test_a_run_without_a_proposal_says_that_this_is_why_it_has_no_rows(
    tmp_path, references, proposed, target, status
):
    def script(body, number):
        return {"instructions": proposed} if stage_of(body) == "propose" else None

    with Endpoint(script) as endpoint:
        flags = run_flags(references, tmp_path / "out", endpoint, "--limit", 2, *target)
        done = refloom(*flags, cwd=tmp_path)
    assert done.returncode == status
    assert "\nno rows: no instruction was proposed for any of the 2 seeds\n" in done.stdout
    assert "\nrows: " not in done.stdout


def test_a_run_without_rows_says_what_became_of_all_that_was_begun(tmp_path, references):
    def script(body, number):
        if stage_of(body) == "propose":
            first = json.loads(references.read_text(encoding="utf-8").splitlines()[0])
            return {"instructions": [first["instruction"], words(f"{number}", 12) + "?"]}
        if stage_of(body) == "critique":
            return verdicts("\n".join(m["content"] for m in body["messages"]), "fail")
        return None

    with Endpoint(script) as endpoint:
        more = ("--limit", 2, "--per-seed", 2, "--no-screen", "--no-try-criteria")
        done = refloom(*run_flags(references, tmp_path / "out", endpoint, *more), cwd=tmp_path)
    counts = json.loads((tmp_path / "out" / "run.json").read_text())["counts"]
    dropped = tmp_path / "out" / "dropped.jsonl"
    assert counts["rejected"] and counts["duplicates"]
    assert (
        f"\nno rows: {counts['rejected']} rejected; instructions dropped: "
        f"{counts['duplicates']} too near to others ({dropped})\n"
    ) in done.stdout


def test_a_run_that_was_stopped_before_its_first_row_has_no_rows_yet(tmp_path, references):
    def script(body, number):
        return error(401, "no such key") if number else None

    with Endpoint(script) as endpoint:
        done = refloom(*run_flags(references, tmp_path / "out", endpoint), cwd=tmp_path)
    assert done.returncode == 4
    assert "\nno rows yet\n" in done.stdout and "\nrows: " not in done.stdout


def test_a_dry_run_refuses_what_a_run_would_replace_with_the_same_line(tmp_path, references):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("mine", encoding="utf-8")
    with Endpoint() as endpoint:
        flags = run_flags(references, out, endpoint)
        dry, real = (refloom(*flags, *more, cwd=tmp_path) for more in (("--dry-run",), ()))
    assert dry.returncode == real.returncode == 2
    assert "has no run in it, but a file README.md" in dry.stderr
    assert dry.stderr == real.stderr.splitlines(keepends=True)[-1]
    assert dry.stdout == "" and [path.name for path in out.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            "an answer without thoughts",
            "no bare answer could be judged; 2 without thoughts; it takes a model that shows its "
            "thoughts, as `refloom doctor` can tell",
        ),
        (
            None,
            "no bare answer could be judged; 2 failed (the rows' answer_errors say why)",
        ),
    ],
)
def test_a_run_without_reasoning_in_its_rows_says_what_it_would_take(
    tmp_path, references, said, line
):
    def script(body, number):
        if stage_of(body) != "answer":
            return None
        return said or error(400, "not this")

    with Endpoint(script) as endpoint:
        more = ("--reasoning", "--limit", 2, "--no-try-criteria")
        done = refloom(*run_flags(references, tmp_path / "out", endpoint, *more), cwd=tmp_path)
    assert f"\n0 of 2 accepted rows have reasoning: {line}\n" in done.stdout
    (row, _) = lines(tmp_path / "out" / "accepted.jsonl")
    assert row["answer_errors"]
