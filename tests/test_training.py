"""What is exported trains with the usual trainers, by the recipes of examples/training."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import env_of, refloom

METHODS = {"sft": "messages", "dpo": "preference", "kto": "kto"}
ROOT = Path(__file__).parent.parent / "examples" / "training"
# One process for all: to import the trainers takes longer than to train.
PROGRAM = """
import dataclasses, json, sys, tomllib
from pathlib import Path
root, methods = Path(sys.argv[1]), sys.argv[2:]
sys.path.insert(0, str(root))
import answer, train
for method in methods:
    sys.argv = ["train.py", f"{method}.toml", "--train", f"{method}.jsonl"]
    sys.argv += ["--validation", f"{method}.jsonl", "--out", f"trained-{method}"]
    print(method)
    train.main()
sys.argv = ["answer.py", "trained-sft", "q.txt", "a.json", "--max-tokens", "5"]
answer.main()
unknown = {}
for path in (root / "recipes").glob("*.toml"):
    recipe = tomllib.loads(path.read_text())
    known = {field.name for field in dataclasses.fields(train.METHODS[recipe["method"]][1])}
    unknown[path.name] = sorted(set(recipe["training"]) - known)
    train.LoraConfig(**recipe.get("lora", {}))
Path("unknown.json").write_text(json.dumps(unknown))
"""


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
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ROOT, *METHODS],
        cwd=folder, env={**env_of({}), "PYTHONWARNINGS": "default", "MPLBACKEND": "agg"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
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


def test_every_recipe_is_one_that_its_trainer_takes(models):
    unknown = json.loads((models[0] / "unknown.json").read_text())
    assert set(unknown) == {path.name for path in (ROOT / "recipes").glob("*.toml")}
    assert not any(unknown.values()), unknown
