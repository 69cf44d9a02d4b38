"""What is exported trains with the usual trainers, by the recipes of examples/training."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import env_of, refloom

from refloom.data.export import FORMATS


@pytest.mark.parametrize(
    ("method", "format_"), [("sft", "messages"), ("dpo", "preference"), ("kto", "kto")]
)
def test_an_export_trains_with_the_usual_trainer(made, tmp_path, method, format_):
    root = Path(__file__).parent.parent / "examples" / "training"
    data = tmp_path / "d.jsonl"
    assert refloom("export", made, data, "--format", format_, cwd=tmp_path).returncode == 0
    recipe = (root / "recipes" / f"tiny-{method}.toml").read_text()
    recipe = re.sub(r"num_train_epochs = \d+", "max_steps = 4", recipe)
    (tmp_path / "recipe.toml").write_text(recipe)
    done = subprocess.run(
        [sys.executable, root / "train.py", "recipe.toml", "--train", data, "--validation", data,
         "--out", "trained"],
        cwd=tmp_path, env={**env_of({}), "PYTHONWARNINGS": "default", "MPLBACKEND": "agg"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = map(float, re.findall(r"(\d+\.\d+) (?:before|after)", done.stdout))
    assert after < before
    assert (tmp_path / "trained" / "loss.png").stat().st_size > 1000
    if method == "sft":
        (tmp_path / "q.txt").write_text("Why?\n")
        subprocess.run(
            [sys.executable, root / "answer.py", "trained", "q.txt", "a.json", "--max-tokens", "5"],
            cwd=tmp_path, env={**env_of({}), "PYTHONWARNINGS": "default"}, check=True, timeout=120,
        )  # fmt: skip
        (answer,) = json.loads((tmp_path / "a.json").read_text())
        assert set(answer) == {"instruction", "output", "generator"}
        assert (answer["instruction"], answer["generator"]) == ("Why?", "trained")


def test_every_recipe_is_one_that_its_trainer_takes():
    import dataclasses
    import tomllib

    from peft import LoraConfig
    from trl import DPOConfig, KTOConfig, SFTConfig

    configs = {"sft": SFTConfig, "dpo": DPOConfig, "kto": KTOConfig}
    root = Path(__file__).parent.parent / "examples" / "training" / "recipes"
    for path in root.glob("*.toml"):
        recipe = tomllib.loads(path.read_text())
        known = {field.name for field in dataclasses.fields(configs[recipe["method"]])}
        assert set(recipe["training"]) <= known, path
        LoraConfig(**recipe.get("lora", {}))


def test_every_format_is_named_in_the_readme():
    text = (Path(__file__).parent.parent / "README.md").read_text()
    assert all(f"`{name}`" in text for name in FORMATS)
