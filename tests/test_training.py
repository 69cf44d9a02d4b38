"""What is exported trains with the usual trainers, by the recipes of examples/training."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fakes import Endpoint, error, stage_of, tagged, verdicts
from processes import env_of, lines, refloom

METHODS = {"sft": "messages", "dpo": "preference", "kto": "kto"}
ROOT = Path(__file__).parent.parent / "examples" / "training"
# One process for all: to import the trainers takes longer than to train.
PROGRAM = """
import dataclasses, json, sys, tomllib
from pathlib import Path
root, url, methods = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
sys.path.insert(0, str(root))
import answer, exam, grpo, train
from refloom.runs import rate_limit
for method in methods:
    sys.argv = ["train.py", f"{method}.toml", "--train", f"{method}.jsonl"]
    sys.argv += ["--validation", f"{method}.jsonl", "--out", f"trained-{method}"]
    print(method)
    train.main()
sys.argv = ["answer.py", "trained-sft", "q.txt", "a.json", "--max-tokens", "5"]
answer.main()
def grpo_of(judge, steps):
    print(f"grpo {judge}")
    sys.argv = ["grpo.py", "grpo.toml", "--rubric", "rubric.jsonl", "--judge-model", judge]
    sys.argv += ["--base-url", url, "--steps", str(steps), "--out", f"grpo-{judge}"]
    try:
        grpo.main()
    except SystemExit as ended:
        print(f"exit status {ended.code}")
grpo_of("steady", 25)
rate_limit.MAX_OUTAGE_S = 0.5
grpo_of("fading", 6)
Path("back").touch()
grpo_of("fading", 6)
print("exam")
sys.argv = ["exam.py", "--out", "exam", "--references", "references.jsonl", "--seeds", "seeds.txt"]
sys.argv += ["--base-url", url, "--model", "m", "--rows", "10", "--per-seed", "1"]
sys.argv += ["--recipe", "sft.toml"]
exam.MAX_TOKENS = 20
exam.main()
unknown = {}
for path in (root / "recipes").glob("*.toml"):
    recipe = tomllib.loads(path.read_text())
    config = grpo.GRPOConfig if recipe["method"] == "grpo" else train.METHODS[recipe["method"]][1]
    known = {field.name for field in dataclasses.fields(config)}
    unknown[path.name] = sorted(set(recipe["training"]) - known)
    train.LoraConfig(**recipe.get("lora", {}))
Path("unknown.json").write_text(json.dumps(unknown))
"""


# What the judge of the GRPO runs looks for, in the order of the rubric.
WANTED = ("e", "th", " ")


@pytest.fixture(scope="module")
def models(made, tmp_path_factory) -> tuple[Path, str]:
    """A folder with a model by each method, and what was printed as they were trained."""
    folder = tmp_path_factory.mktemp("training")
    for method, format_ in METHODS.items():
        data = folder / f"{method}.jsonl"
        assert refloom("export", made, data, "--format", format_, cwd=folder).returncode == 0
        recipe = (ROOT / "recipes" / f"tiny-{method}.toml").read_text()
        recipe = re.sub(r"num_train_epochs = \d+", "max_steps = 4", recipe)
        (folder / f"{method}.toml").write_text(recipe)
    (folder / "q.txt").write_text("Why?\n")
    shutil.copy(ROOT / "recipes" / "tiny-grpo.toml", folder / "grpo.toml")
    with (folder / "grpo.toml").open("a") as recipe:
        recipe.write("disable_tqdm = true\n")
    items = [{"description": f"Has {text!r}", "weight": 5, "title": text} for text in WANTED]
    questions = ["Why is the sea salty?", "How do cats purr?", "What is the moon made of?"]
    questions.append("Where do storks go?")
    rows = (json.dumps({"question": question, "rubric": items}) for question in questions)
    (folder / "rubric.jsonl").write_text("\n".join(rows))
    for name in ("references.jsonl", "seeds.txt"):
        shutil.copy(made.parent / name, folder)
    calls = Counter[str]()

    def judge(body: dict[str, Any], number: int) -> Any:
        calls[body["model"]] += 1
        if body["model"] == "fading" and calls["fading"] > 150 and not (folder / "back").exists():
            return error(500, "out of order")
        if stage_of(body) != "critique":
            return None
        response = tagged(body["messages"][-1]["content"], "response")[-1]
        if body["model"] == "m":
            finished = response.endswith(".")
            return verdicts(body["messages"][-1]["content"], "pass" if finished else "fail")
        said = verdicts(body["messages"][-1]["content"])
        for one, text in zip(said["verdicts"], WANTED, strict=False):
            one["verdict"] = "pass" if text in response else "fail"
        # Of one that has a "q" the judge says nothing that can be read.
        return {"verdicts": []} if "q" in response else said

    with Endpoint(judge) as endpoint:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, ROOT, endpoint.url, *METHODS],
            cwd=folder, env={**env_of({}), "PYTHONWARNINGS": "default", "MPLBACKEND": "agg"},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
    (folder / "stderr").write_text(done.stderr)
    (folder / "asked.json").write_text(json.dumps(endpoint.bodies))
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, done.stdout


@pytest.mark.parametrize("method", METHODS)
def test_an_export_trains_with_the_usual_trainer(models, method):
    folder, output = models
    of_method = output.split(f"{method}\n", 1)[1]
    before, after = map(float, re.findall(r"(\d+\.\d+) (?:before|after)", of_method)[:2])
    assert after < before
    assert (folder / f"trained-{method}" / "loss.png").stat().st_size > 1000


def test_a_trained_model_answers(models):
    (answer,) = json.loads((models[0] / "a.json").read_text())
    assert set(answer) == {"instruction", "output", "generator"}
    assert (answer["instruction"], answer["generator"]) == ("Why?", "trained-sft")


def history_of(folder: Path) -> list[dict[str, Any]]:
    """What was logged at each step."""
    state = json.loads((folder / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "reward" in entry]


def test_the_reward_rises_where_a_judge_scores_completions(models):
    folder, output = models
    first, last = map(float, re.findall(r"mean reward: (\S+) at first, (\S+) in", output)[0])
    assert first < 0.8
    assert last > first + 0.15
    assert (folder / "grpo-steady" / "reward.png").stat().st_size > 5000
    assert (folder / "grpo-steady" / "model.safetensors").exists()


def test_unknown_verdicts_do_not_enter_the_reward(models):
    """Those with a q are unknown: the others' mean is never dragged down to nothing by them."""
    history = history_of(models[0] / "grpo-steady")
    unknown = [entry["rewards/rubric_reward/none"] for entry in history]
    assert any(0 < share < 1 for share in unknown)
    assert len(history) == 25
    assert all(entry["reward"] == entry["rewards/rubric_reward/mean"] for entry in history)


def test_a_judge_that_goes_away_ends_training_with_one_line_and_a_saved_model(models):
    folder, output = models
    stopped, resumed = output.split("grpo fading\n")[1:]
    assert "exit status 4" in stopped
    said = [line for line in (folder / "stderr").read_text().splitlines() if "stopped" in line]
    assert len(said) == 1
    assert re.match(r"stopped at step \d: the endpoint has answered no call for", said[0])
    # The same command goes on from the last checkpoint, and pays for nothing twice.
    assert "exit status" not in resumed
    assert [entry["step"] for entry in history_of(folder / "grpo-fading")] == [1, 2, 3, 4, 5, 6]
    asked = json.loads((folder / "asked.json").read_text())
    fading = [json.dumps(body) for body in asked if body["model"] == "fading"]
    paid = fading[:150]
    assert len(set(paid)) == len(paid)
    assert not set(paid) & set(fading[-20:])


def test_the_exam_scores_a_student_before_and_after_by_criteria_held_out(models):
    folder, output = models
    said = output.split("exam\n", 1)[1]
    commands = [line.split()[1:3] for line in said.splitlines() if line.startswith("$ ")]
    assert [words[1] for words in commands if words[0] == "refloom"] == [
        "run", "export", "export", "score", "score", "score", "compare",
    ]  # fmt: skip
    assert [Path(words[1]).name for words in commands if words[0] == "python"] == [
        "train.py", "answer.py", "answer.py",
    ]  # fmt: skip
    scored = {
        name: lines(folder / "exam" / f"{name}-scored.jsonl")
        for name in ("before", "after", "teacher")
    }
    asked = {name: len(rows) for name, rows in scored.items()}
    assert len(set(asked.values())) == 1
    assert any(row["score"] == 1 for row in scored["teacher"])
    assert all(row["score"] in (0, None) for row in scored["before"])
    trained = {row["messages"][0]["content"] for row in lines(folder / "exam" / "data-train.jsonl")}
    assert not trained & {row["instruction"] for row in scored["after"]}
    assert (folder / "exam" / "exam.png").stat().st_size > 5000


@pytest.mark.skipif(find_spec("verifiers") is None, reason="the package verifiers is not installed")
def test_the_environment_of_verifiers_has_a_task_for_each_rubric(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    environment = import_module("rubric_env")
    tasks = list(environment.RubricTaskset(environment.RubricTasksetConfig()))
    assert len(tasks) == 8
    assert all(task.data.prompt and task.data.rubric for task in tasks)


def test_every_recipe_is_one_that_its_trainer_takes(models):
    unknown = json.loads((models[0] / "unknown.json").read_text())
    assert set(unknown) == {path.name for path in (ROOT / "recipes").glob("*.toml")}
    assert not any(unknown.values()), unknown
