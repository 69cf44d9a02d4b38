"""What refloom's critique loop costs in calls and tokens a row, and what it buys.

    python benchmarks/calls.py [--references 40] [--drafts 0.3 0.6 0.9] [--quick] [--json]

refloom itself runs over made-up references with a model of known quality (scripted.py): so it is
known which of its rows are truly good. Beside it, on the same references and texts: refloom without
its loop (drafts that pass the rules), and the authors' pipeline by arithmetic (authors.py), as it
is and with the same judge asked once a row behind it. Counts are those of the runs' journals and
files. The last line on stdout is JSON; `--json` prints only that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import sys
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import sections
from benchmarks.authors import Sizes, authors, judged_once, per_row
from benchmarks.scripted import LETTERS_A_TOKEN, KnownModel, World, embed, make_references
from nodes.criteria import RULES


def run(model: KnownModel, references: list[dict[str, str]], per_seed: int, arm: str, out: Path):
    """One run of refloom with every reference its own seed, as the paper has it."""
    from refloom.data.read import Source
    from refloom.runs.run import Run, Tools
    from refloom.settings import Settings

    settings = Settings(
        model="known",
        base_url=None,
        per_seed=per_seed,
        references_per_seed=1,
        feedback=arm,
        random_seed=model.world.seed,
    )
    tools = Tools(complete=model, embed=embed)
    asyncio.run(Run(settings, Source(references, as_reference=True), None, out, tools=tools).run())


def records(out: Path) -> list[dict[str, Any]]:
    """The samples that a run ended with, accepted or not; a failed one is a fault of this file."""
    rows = [
        json.loads(line)
        for name in ("accepted", "rejected", "failed")
        for line in (out / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    failed = [row["error"] for row in rows if row["status"] == "failed"]
    if failed:
        sys.exit(f"{len(failed)} samples failed: {failed[0]}")
    return rows


def journaled(out: Path) -> dict[str, Counter[str]]:
    """Calls and tokens by stage, as the journal holds them."""
    sql = "SELECT stage, count(*), sum(prompt_tokens), sum(completion_tokens) FROM calls GROUP BY 1"
    keys = ("calls", "prompt_tokens", "completion_tokens")
    with closing(sqlite3.connect(out / "journal.sqlite")) as connection:
        return {
            row[0]: Counter(dict(zip(keys, row[1:], strict=True)))
            for row in connection.execute(sql)
        }


def checked(out: Path, model: KnownModel) -> dict[str, Counter[str]]:
    """The journal's calls by part of the pipeline: its stage "critique" holds the trials, too.

    The model kept the two apart; that both have counted the same is made sure of here.
    """
    used = {part: Counter(spent) for part, spent in model.used.items()}
    merged = {part: spent for part, spent in used.items() if part != "trial"}
    if "trial" in used:
        merged["critique"] = merged.get("critique", Counter()) + used["trial"]
    held = journaled(out)
    paid = json.loads((out / "run.json").read_text(encoding="utf-8"))["calls"]["by_stage"]
    if held != merged or paid != {stage: spent["calls"] for stage, spent in held.items()}:
        sys.exit(f"journal, run.json and model disagree: {held}, {paid}, {merged}")
    return used


def exits(rows: list[dict[str, Any]], model: KnownModel) -> dict[str, int]:
    """The early ends: what rules decided alone, and what needed no refinement."""
    musts = {id_ for id_, rule in RULES.items() if rule.must}
    ruled, at_once = [], []
    for row in rows:
        first = row["attempts"][0]
        found = {v["criterion_id"]: v["verdict"] for v in first["verdicts"]}
        if any(found.get(id_) == "fail" for id_ in musts):
            ruled.append(first["response"])
        elif row["status"] == "accepted" and len(row["attempts"]) == 1:
            at_once.append(row["instruction"])
    return {
        "drafts": len(rows),
        "failed_a_rule": len(ruled),
        "judge_calls_on_them": sum(model.judged[text] for text in ruled),
        "passed_at_once": len(at_once),
        "refinements_of_them": sum(model.refined[text] for text in at_once),
        "attempts": sum(len(row["attempts"]) for row in rows),
        "judge_calls": model.judged.total(),
        "refinements": model.refined.total(),
    }


def measured(out: Path, model: KnownModel) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a run paid and exported, in the same form as the authors' arithmetic."""
    rows = records(out)
    accepted = [row for row in rows if row["status"] == "accepted"]
    return {
        "candidates": len(rows),
        "rows": len(accepted),
        "good": sum(model.good[row["response"]] for row in accepted),
        "stages": {part: dict(spent) for part, spent in checked(out, model).items()},
        "early": exits(rows, model),
    }, rows


def sizes(references: list[dict[str, str]], rows: list[dict[str, Any]], figures: dict) -> Sizes:
    """The mean lengths of a run's texts, in tokens."""

    def mean(texts: list[str]) -> float:
        return sum(map(len, texts)) / len(texts) / LETTERS_A_TOKEN

    judge = figures["stages"]["critique"]
    return Sizes(
        reference_instruction=mean([r["instruction"] for r in references]),
        reference_response=mean([r["response"] for r in references]),
        instruction=mean([row["instruction"] for row in rows]),
        response=mean([row["response"] for row in rows]),
        judge_prompt=judge["prompt_tokens"] / judge["calls"],
        judge_answer=judge["completion_tokens"] / judge["calls"],
    )


def compared(world: World, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """All four pipelines where drafts are of one quality."""
    references = make_references(args.references)
    own, bare = KnownModel(world, references), KnownModel(world, references)
    run(own, references, args.per_reference, "reference", out / "reference")
    run(bare, references, args.per_reference, "none", out / "none")
    refloom, rows = measured(out / "reference", own)
    no_loop, _ = measured(out / "none", bare)
    texts = sizes(references, rows, refloom)
    chances = {"passes": world.passes, "mends": world.mends, "spoils": world.spoils}
    theirs = authors(texts, args.references, args.per_reference, **chances)
    pipelines = {
        "authors": theirs,
        "authors_judged": judged_once(theirs, texts, world.errs),
        "no_loop": no_loop,
        "refloom": refloom,
    }
    return {
        "world": asdict(world),
        "sizes": asdict(texts),
        "pipelines": {name: {**one, "per_row": per_row(one)} for name, one in pipelines.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--references", type=int, default=40)
    parser.add_argument("--per-reference", type=int, default=10, help="new instructions of each")
    parser.add_argument("--drafts", type=float, nargs="+", default=[0.3, 0.6, 0.9], metavar="P")
    parser.add_argument("--mends", type=float, default=World.mends, metavar="P")
    parser.add_argument("--spoils", type=float, default=World.spoils, metavar="P")
    parser.add_argument("--errs", type=float, default=World.errs, metavar="P", help="of the judge")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="2 references")
    parser.add_argument("--json", action="store_true", help="only the last line")
    args = parser.parse_args()
    args.references = min(args.references, 2) if args.quick else args.references
    for name in [n for n in os.environ if n.startswith(("REFLOOM_", "OPENAI_", "JUDGE_"))]:
        del os.environ[name]
    chances = {"mends": args.mends, "spoils": args.spoils, "errs": args.errs}
    qualities = []
    with tempfile.TemporaryDirectory() as folder:
        for passes in args.drafts:
            world = World(passes, seed=args.seed, **chances)
            qualities.append(compared(world, args, Path(folder) / str(passes)))
    if not args.json:
        print(sections.calls({"qualities": qualities}), end="\n\n")
    print(json.dumps({"per_reference": args.per_reference, "qualities": qualities}))


if __name__ == "__main__":
    main()
