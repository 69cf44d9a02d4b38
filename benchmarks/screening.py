"""What screening keeps out, saves and costs, at a teacher whose proposals are bad in 40 %.

    python -m benchmarks.screening [--seeds N]

Through the whole pipeline with a model of which everything is known: a bad proposal is an answer in
place of a question, vague, off the seed, or points at what is not there. The judge of instructions
errs in 0, 10 and 25 %, by the text. Responses to bad instructions pass the critique as others do,
which is what a critique of the response alone sees.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import scripted
from benchmarks.scripted import KnownModel, World, drawn, embed, make_references, words
from benchmarks.tables import table
from nodes.llm import Call, Reply
from nodes.screening import ANSWERABLE_ID, REQUEST_ID, SUBJECT_ID
from refloom.data.read import Source
from refloom.runs.run import Run, Tools
from refloom.settings import Settings

BAD = 0.4
KINDS = {"answer": REQUEST_ID, "vague": ANSWERABLE_ID, "off": SUBJECT_ID, "absent": ANSWERABLE_ID}


class Teacher(KnownModel):
    """A `KnownModel` whose proposals are bad in 40 %, and whose judge of them errs."""

    def __init__(self, world: World, references: list[dict[str, str]], errs: float) -> None:
        super().__init__(world, references)
        self._errs = errs

    async def __call__(self, call: Call) -> Reply:
        self.used["all"].update({"calls": 1})
        return await super().__call__(call)

    def _propose(self, prompt: str, draw: Any) -> tuple[str, dict[str, Any]]:
        part, said = super()._propose(prompt, draw)
        for i, text in enumerate(said["instructions"]):
            if draw("bad", i) < BAD:
                kind = list(KINDS)[int(draw("kind", i) * len(KINDS))]
                said["instructions"][i] = f"{kind}bad {text}"
        return part, said

    def _screen(self, prompt: str, draw: Any) -> tuple[str, dict[str, Any]]:
        ids = scripted.criterion_ids(prompt)
        items = []
        for number, text in scripted.numbered_instructions(prompt):
            failed = KINDS.get(text.split()[0].removesuffix("bad"))
            # By the text, not by the call: asked about the same instruction it says the same.
            if drawn(self.world.seed, text, "errs") < self._errs:
                failed = None if failed else ANSWERABLE_ID
            verdicts = [scripted.verdict_on(text, id_, id_ != failed, text) for id_ in ids]
            items.append({"number": number, "verdicts": verdicts})
        return "screen", {"instructions": items}


async def measure(screen: bool, errs: float, seeds: int) -> dict[str, Any]:
    """One run: the bad ones among its accepted rows, and its calls by stage."""
    references = make_references(20)
    model = Teacher(World(passes=0.6, errs=0.0), references, errs)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            Settings(model="m", per_seed=4, screen=screen, max_failure_rate=1.0),
            Source(references, as_reference=True),
            Source([words(12, "seed", i) for i in range(seeds)], as_reference=False),
            Path(folder),
            tools=Tools(complete=model, embed=embed),
        )
        await run.run()
        text = (Path(folder) / "accepted.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        counts = run.summary.counts if run.summary else {}
    bad = sum(row["instruction"].split()[0].endswith("bad") for row in rows)
    calls = {part: int(used["calls"]) for part, used in model.used.items()}
    responses = sum(calls.get(part, 0) for part in ("generate", "refine", "critique"))
    return {
        "rows": len(rows),
        "bad": bad,
        "screened": counts.get("screened", 0),
        "responses": responses,
        "propose": calls.get("propose", 0),
        "screen": calls.get("screen", 0),
        "all": calls["all"],
    }


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=100)
    options = parser.parse_args()
    lines = []
    for name, screen, errs in (
        ("--no-screen", False, 0.0),
        ("judge errs in 0 %", True, 0.0),
        ("judge errs in 10 %", True, 0.1),
        ("judge errs in 25 %", True, 0.25),
    ):
        m = await measure(screen, errs, options.seeds)
        share, good = m["bad"] / max(m["rows"], 1), m["rows"] - m["bad"]
        counts = (m[key] for key in ("screened", "responses", "propose", "screen", "all"))
        each = f"{m['all'] / max(good, 1):.2f}"
        lines.append([name, m["rows"], m["bad"], f"{share:.1%}", *counts, each])
    head = ["", "rows", "bad", "share", "screened", "response calls", "propose", "screen", "all"]
    print(table([*head, "calls a good row"], lines))


if __name__ == "__main__":
    asyncio.run(main())
