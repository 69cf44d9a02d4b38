"""Write a model's answers to questions in the shape that `alpaca_eval` scores.

    python examples/training/answer.py trained questions.jsonl answers.json
    alpaca_eval --model_outputs answers.json

Questions are read as refloom reads seeds: `instruction`, `prompt`, `messages`, `turns`, ...
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from refloom.data.read import Source


def answers(model_name: str, questions: list[str], most: int) -> list[str]:
    """The greedy answer to each question, at most so many tokens long."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name, torch_dtype="auto").eval()
    texts = []
    for question in questions:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.inference_mode():
            tokens = model.generate(
                **inputs, max_new_tokens=most, do_sample=False, pad_token_id=tokenizer.eos_token_id
            )
        texts.append(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], True).strip())
    return texts


def write_answers(
    model: str,
    file: Path,
    out: Path,
    *,
    max_tokens: int = 1024,
    generator: str | None = None,
    limit: int | None = None,
) -> None:
    """Write a model's answers to the questions of a file; `generator` is its name in the rows."""
    questions = [seed["instruction"] for seed in Source(file, as_reference=False, limit=limit)]
    name = generator or Path(model).name
    rows = [
        {"instruction": question, "output": output, "generator": name}
        for question, output in zip(questions, answers(model, questions, max_tokens), strict=True)
    ]
    out.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a folder that train.py wrote, or a model of the hub")
    parser.add_argument("questions", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--generator", help="the model's name in the results (default: MODEL)")
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--limit", type=int, help="the first so many questions")
    args = parser.parse_args()
    write_answers(
        args.model,
        args.questions,
        args.out,
        max_tokens=args.max_tokens,
        generator=args.generator,
        limit=args.limit,
    )


if __name__ == "__main__":
    main()
