r"""Train a model on an export as a recipe says: SFT on `messages`, DPO on `preference`, or KTO.

    refloom export rows data.jsonl --format messages --split train=0.9,validation=0.1
    python examples/training/train.py examples/training/recipes/tiny-sft.toml \
        --train data-train.jsonl --validation data-validation.jsonl --out trained

What a recipe's [training] holds goes to TRL's config as it is, [lora] to peft's `LoraConfig`.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from datasets import Dataset, load_dataset
from peft import LoraConfig
from tiny import make_tiny
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

METHODS = {
    "sft": (SFTTrainer, SFTConfig),
    "dpo": (DPOTrainer, DPOConfig),
    "kto": (KTOTrainer, KTOConfig),
}
NEEDED = {
    "sft": ("prompt", "completion"),
    "dpo": ("prompt", "chosen", "rejected"),
    "kto": ("prompt", "completion", "label"),
}


def rows_of(file: Path, method: str) -> Dataset:
    """The rows of an export; of `messages` the answer is split off, so that only it is learned."""
    if not file.is_file() or not file.stat().st_size:
        sys.exit(f"{file}: is missing or holds no row")
    kind = "parquet" if file.suffix == ".parquet" else "json"
    rows = load_dataset(kind, data_files=str(file), split="train")
    if method == "sft" and "messages" in rows.column_names:

        def parted(row: dict[str, Any]) -> dict[str, Any]:
            return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}

        rows = rows.map(parted, remove_columns=rows.column_names)
    if not set(NEEDED[method]) <= set(rows.column_names):
        sys.exit(f"{file}: {method} needs an export with {', '.join(NEEDED[method])}")
    return rows


def plot(history: list[dict[str, Any]], file: Path) -> None:
    """Draw the losses of training and of the held-out rows over the steps."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for key, label in (("loss", "training"), ("eval_loss", "held-out")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120, bbox_inches="tight")


def train(recipe: dict[str, Any], rows: Dataset, held_out: Dataset | None, out: Path) -> Any:
    """Train, save model and tokenizer into `out`, and give the trainer."""
    trainer_class, config_class = METHODS[recipe["method"]]
    name = make_tiny(rows, out / "start") if recipe["model"] == "tiny" else recipe["model"]
    args = {"eval_strategy": "no", **recipe["training"]} if held_out is None else {
        "eval_strategy": "steps", "eval_on_start": True, **recipe["training"]
    }  # fmt: skip
    config = config_class(output_dir=str(out), report_to="none", save_strategy="no", **args)
    trainer = trainer_class(
        model=name,
        args=config,
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(name),
        peft_config=LoraConfig(**recipe["lora"]) if "lora" in recipe else None,
    )
    trainer.train()
    trainer.save_model(str(out))
    return trainer


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--train", type=Path, required=True, help="an export of refloom")
    parser.add_argument("--validation", type=Path, help="rows held out")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    recipe = tomllib.loads(args.recipe.read_text(encoding="utf-8"))
    rows = rows_of(args.train, recipe["method"])
    held_out = rows_of(args.validation, recipe["method"]) if args.validation else None
    trainer = train(recipe, rows, held_out, args.out)
    plot(trainer.state.log_history, args.out / "loss.png")
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    if losses:
        print(f"held-out loss: {losses[0]:.3f} before, {losses[-1]:.3f} after")
    print(f"model and loss.png in {args.out}")


if __name__ == "__main__":
    main()
