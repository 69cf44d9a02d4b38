r"""The exam of a student, end to end: rows, training, answers, scores, and the difference.

    python examples/training/exam.py --out exam                            # the embedded model
    python examples/training/exam.py --out exam --base-url URL --model MODEL --rows 200

It prints each command before it does it, so that each can be given by hand, with a larger student
too. The student answers questions that it was not trained on, and is scored by criteria that were
held out; its answers before the training, and those of the teacher, are scored alike. What is done
is not done again: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from answer import write_answers
from train import plot as plot_loss
from train import rows_of, train

from refloom.cli import main as run_command
from refloom.data.rubrics import read_rubrics

HERE = Path(__file__).parent
DEMO = HERE.parent.parent / "refloom" / "resources" / "demo"
# Exit status of a run that is short of its target: its rows are rows.
SHORT = 3
# Tokens of a student's answer.
MAX_TOKENS = 160


def say(*words: object) -> None:
    """Print a command."""
    print("$", shlex.join(map(str, words)), flush=True)


def refloom(*words: object, allowed: tuple[int, ...] = (0,)) -> None:
    """Do a command of refloom in this process, and end with it if it fails."""
    say("refloom", *words)
    try:
        run_command([str(word) for word in words])
    except SystemExit as ended:
        if (ended.code or 0) not in allowed:
            raise


def make_data(out: Path, teacher: list[str], source: list[object], args: Any) -> None:
    """Rows, parts to train on and to ask, and rubrics without and with the criteria held out."""
    rows = out / "rows"
    wanted = ["--target", args.rows, "--per-seed", args.per_seed]
    refloom("run", *source, "--out", rows, *wanted, *teacher, allowed=(0, SHORT))
    share = args.exam_share
    parts = f"train={1 - share:g},exam={share:g}"
    refloom("export", rows, out / "data.jsonl", "--format", "messages", "--split", parts)
    split = ["--split-criteria", args.held_out]
    refloom("export", rows, out / "rubric.jsonl", "--format", "rubric", *split)
    if not any(rubric.criteria for rubric in read_rubrics(out / "rubric-heldout.jsonl").values()):
        sys.exit(f"of these rows {args.held_out:g} of the criteria are none: raise --held-out")


def train_student(out: Path, recipe_file: Path, model: str | None) -> str:
    """Train the student; the name of what it was before."""
    recipe = tomllib.loads(recipe_file.read_text(encoding="utf-8"))
    recipe["model"] = model or recipe["model"]
    student = out / "student"
    data = ["--train", out / "data-train.jsonl", "--validation", out / "data-exam.jsonl"]
    say("python", "examples/training/train.py", recipe_file, *data, "--out", student)
    if not (student / "loss.png").exists():
        rows, held_out = (rows_of(out / f"data-{part}.jsonl", "sft") for part in ("train", "exam"))
        trainer = train(recipe, rows, held_out, student)
        plot_loss(trainer.state.log_history, student / "loss.png")
    return str(student / "start") if recipe["model"] == "tiny" else recipe["model"]


def take_exam(out: Path, before: str, judge: list[str]) -> dict[str, list[float | None]]:
    """The scores of the student before and after, and those of the teacher, by question."""
    questions = out / "data-exam.jsonl"
    for name, model in (("before", before), ("after", str(out / "student"))):
        file = out / f"{name}.json"
        most = ["--max-tokens", MAX_TOKENS]
        say("python", "examples/training/answer.py", model, questions, file, *most)
        if not file.exists():
            write_answers(model, questions, file, max_tokens=MAX_TOKENS, generator=name)
    answered = {"before": out / "before.json", "after": out / "after.json", "teacher": questions}
    scores = {}
    for name, file in answered.items():
        scored = out / f"{name}-scored.jsonl"
        refloom(
            "score", file, "--criteria", out / "rubric-heldout.jsonl", "--out", scored, *judge
        )  # fmt: skip
        lines = scored.read_text(encoding="utf-8").splitlines()
        scores[name] = [json.loads(line)["score"] for line in lines]
    refloom("compare", out / "after-scored.jsonl", out / "before-scored.jsonl")
    return scores


def plot(scores: dict[str, list[float | None]], file: Path) -> None:
    """Draw the score of each question, before and after, and the means."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for line in zip(*scores.values(), strict=True):
        axes.plot(range(len(line)), line, color="tab:blue", alpha=0.25, marker="o", markersize=4)
    known = [[score for score in column if score is not None] for column in scores.values()]
    means = [sum(column) / len(column) if column else float("nan") for column in known]
    axes.plot(range(len(means)), means, color="black", marker="D", label="mean")
    labels = [f"{name}\n({len(column)} known)" for name, column in zip(scores, known, strict=True)]
    axes.set_xticks(range(len(labels)), labels)
    axes.set(ylabel="score by criteria held out", ylim=(-0.05, 1.05))
    axes.grid(alpha=0.3, axis="y")
    axes.legend(loc="upper left")
    figure.savefig(file, dpi=120, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--references", type=Path, default=DEMO / "references.jsonl")
    parser.add_argument("--seeds", type=Path, default=DEMO / "seeds.jsonl")
    parser.add_argument("--base-url", help="the teacher's endpoint (default: the embedded model)")
    parser.add_argument("--model", default="local", help="the teacher, who also judges")
    parser.add_argument("--judge-model", help="another judge, at the same endpoint")
    parser.add_argument("--rows", type=int, default=20, help="rows to make")
    parser.add_argument("--per-seed", type=int, default=2, help="rows of a seed")
    parser.add_argument("--exam-share", type=float, default=0.4, help="share of the rows to ask")
    parser.add_argument("--held-out", type=float, default=0.3, help="share of the criteria")
    parser.add_argument("--recipe", type=Path, default=HERE / "recipes" / "tiny-sft.toml")
    parser.add_argument("--student", help="in place of the recipe's model")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    judge = ["--judge-model", args.judge_model or args.model]
    if args.base_url:
        judge += ["--base-url", args.base_url]
    teacher = ["--model", args.model, *judge]
    source = ["--references", args.references, "--seeds", args.seeds]
    make_data(args.out, teacher, source, args)
    print(f"# {time.monotonic() - start:.0f} s: rows are made", flush=True)
    before = train_student(args.out, args.recipe, args.student)
    print(f"# {time.monotonic() - start:.0f} s: the student is trained", flush=True)
    scores = take_exam(args.out, before, judge)
    plot(scores, args.out / "exam.png")
    print(f"# {time.monotonic() - start:.0f} s: exam.png in {args.out}")


if __name__ == "__main__":
    main()
