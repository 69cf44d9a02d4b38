r"""Train a model by GRPO with rubrics as the reward, each completion scored by a judge.

    refloom export rows rubric.jsonl --format rubric --split-criteria 0.3
    python examples/training/grpo.py examples/training/recipes/tiny-grpo.toml \
        --rubric rubric.jsonl --held-out rubric-heldout.jsonl \
        --judge-model MODEL --base-url URL --max-cost 1 --out trained

What a recipe's [training] holds goes to TRL's `GRPOConfig` as it is. Criteria held out are scored
too, but not trained on: a reward that rises while they fall is being hacked. If the judge goes away
or the budget is spent, the model is saved; the same command goes on from the last checkpoint, and
pays for no completion twice.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from datasets import Dataset
from peft import LoraConfig
from tiny import make_tiny
from transformers import AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from nodes.llm import ProviderStopped
from refloom.data.rubrics import read_rubrics
from refloom.errors import RefloomError
from refloom.reward import RubricReward, rubric_reward

RUBRICS = Path(__file__).parent / "rubrics.jsonl"
REWARDS = {"rubric_reward": "rubric", "held_out": "criteria held out"}


def prompts_of(file: Path) -> Dataset:
    """The questions of a rubric file, with what was said before them, as messages."""
    asked = (
        [*rubric.history, {"role": "user", "content": rubric.instruction}]
        for rubric in read_rubrics(file).values()
    )
    return Dataset.from_list([{"prompt": messages} for messages in asked])


def plot(history: list[dict[str, Any]], file: Path) -> None:
    """Draw reward and loss over the steps."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 6), sharex=True)
    for name, label in REWARDS.items():
        key = f"rewards/{name}/mean"
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            above.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    above.set(ylabel="mean reward", ylim=(-0.02, 1.02))
    above.legend(loc="lower right")
    points = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    below.plot(*zip(*points, strict=True), marker="o", markersize=3) if points else None
    below.set(xlabel="step", ylabel="loss")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120, bbox_inches="tight")
    plt.close(figure)


def build_trainer(
    recipe: dict[str, Any], rows: Dataset, rewards: list[RubricReward], out: Path
) -> GRPOTrainer:
    """A trainer whose first reward counts; the others are only watched."""
    name = recipe["model"]
    if name == "tiny":
        start = out / "start"
        # A model that training goes on with must not be made anew.
        name = str(start) if start.exists() else make_tiny(rows, start)
    weights = [1.0] + [0.0] * (len(rewards) - 1)
    return GRPOTrainer(
        model=name,
        reward_funcs=list(rewards),
        args=GRPOConfig(
            output_dir=str(out), report_to="none", reward_weights=weights, **recipe["training"]
        ),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(name),
        peft_config=LoraConfig(**recipe["lora"]) if "lora" in recipe else None,
    )


def train(trainer: GRPOTrainer, out: Path) -> Exception | None:
    """Train and save the model; what stopped the judge, if something did."""
    stopped_by: Exception | None = None
    try:
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(out)))
    except (ProviderStopped, RefloomError) as error:
        stopped_by = error
    trainer.save_model(str(out))
    trainer.save_state()
    plot(trainer.state.log_history, out / "reward.png")
    return stopped_by


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--rubric", type=Path, default=RUBRICS, help="prompts and their rubrics")
    parser.add_argument("--held-out", type=Path, help="criteria that are watched, not trained on")
    parser.add_argument("--judge-model", help="as the endpoint calls it; A,B,C is a jury")
    parser.add_argument("--base-url", help="the judge's endpoint (default: OPENAI_BASE_URL)")
    parser.add_argument("--concurrency", type=int, help="the judge's calls in flight")
    parser.add_argument("--max-cost", type=float, help="US dollars that a reward may cost")
    parser.add_argument(
        "--journal", type=Path, help="what was paid for (default: OUT/judge.sqlite)"
    )
    parser.add_argument("--steps", type=int, help="in place of the recipe's max_steps")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    recipe = tomllib.loads(args.recipe.read_text(encoding="utf-8"))
    if args.steps is not None:
        recipe["training"]["max_steps"] = args.steps
    args.out.mkdir(parents=True, exist_ok=True)
    journal = args.journal or args.out / "judge.sqlite"
    options = {
        "judge_model": args.judge_model,
        "base_url": args.base_url,
        "concurrency": args.concurrency,
        "max_cost": args.max_cost,
    }
    watched = [("rubric_reward", args.rubric, journal)]
    if args.held_out:
        aside = journal.with_name(f"{journal.stem}-held-out{journal.suffix}")
        watched.append(("held_out", args.held_out, aside))
    try:
        rows = prompts_of(args.rubric)
        with ExitStack() as stack:
            rewards = [
                stack.enter_context(rubric_reward(file, name=name, journal=path, **options))
                for name, file, path in watched
            ]
            trainer = build_trainer(recipe, rows, rewards, args.out)
            stopped_by = train(trainer, args.out)
    except (ProviderStopped, RefloomError) as error:
        print(error, file=sys.stderr)
        sys.exit(getattr(error, "exit_status", 4))
    if not trainer.state.global_step and stopped_by is None:
        sys.exit(
            f"{args.rubric}: has {len(rows)} prompts, fewer than a step takes; nothing was done"
        )
    scores = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    if scores:
        print(f"mean reward: {scores[0]:.3f} at first, {scores[-1]:.3f} in the end")
    print(f"model and reward.png in {args.out}")
    if stopped_by is not None:
        print(f"stopped at step {trainer.state.global_step}: {stopped_by}", file=sys.stderr)
        sys.exit(getattr(stopped_by, "exit_status", 4))


if __name__ == "__main__":
    main()
