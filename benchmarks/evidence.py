"""Whether comparisons can be believed: experiments in a world of which the truth is known.

    python benchmarks/evidence.py --experiments 200 --seeds 40 --out DIR

A simulated teacher follows feedback with a known probability in each arm, and a judge picks the
better of two responses but for a known share of errors. refloom's own arms, journal and comparison
run on it, and what they say is held against what follows from these numbers. A second world has a
judge that likes length, between arms that are truly equal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import shutil
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.scripted import QUALITIES, drawn, embed, make_references, tagged, words
from nodes.llm import Call, Reply
from refloom.data.read import Source
from refloom.evaluation.compare import Arm, ArmSample, compare_runs
from refloom.evaluation.experiment import arm_settings, compare_arms
from refloom.evaluation.stats import proportion
from refloom.runs.journal import Journal
from refloom.runs.run import Run, Tools
from refloom.settings import Settings

# How often the teacher does what it is told, by whose feedback it is.
FOLLOWS = {"reference": 0.8, "sample": 0.6, "generic": 0.4, "swapped": 0.2, "none": 0.0}
ERRS = 0.15
USAGE = {"calls": 1, "prompt_tokens": 100, "cached_tokens": 0, "completion_tokens": 50}
# The second world: how much longer the longer arm is, in words, and how much the judge likes it.
LONGER, SPREAD, LIKES = 40, 60, 1.2


def true_rate(arm: str) -> float:
    """The win rate of an arm over `reference` that follows from `FOLLOWS` and `ERRS`."""
    a, b = FOLLOWS[arm], FOLLOWS["reference"]
    better, worse = a * (1 - b), (1 - a) * b
    return better * (1 - ERRS) + worse * ERRS + (1 - better - worse) / 2


class Teacher:
    """A `Complete` that writes and judges in a world of its own, and knows what each text is worth.

    `arm` is whose feedback it is told now.
    """

    def __init__(self, number: int, references: Sequence[dict[str, str]]) -> None:
        self.number, self.arm = number, "reference"
        self._references = [r["response"] for r in references]
        self.worth: dict[str, int] = {}
        self._drafts: set[str] = set()

    async def __call__(self, call: Call) -> Reply:
        prompt = "\n".join(m["content"] for m in call.messages)
        lot = drawn(self.number, call.stage, call.seed, prompt)
        answer = getattr(self, f"_{call.stage}")(prompt, lot)
        text = answer if call.text else json.dumps(answer)
        return Reply(text, "stop", dict(USAGE))

    def _extract(self, prompt: str, lot: float) -> dict[str, Any]:
        response = tagged(prompt, "response")[-1]
        text = QUALITIES[self._references.index(response)]
        quality = {"text": text, "quote": response[:30], "must": True}
        return {"subject_areas": ["one"], "relevant_skills": ["one"], "characteristics": [quality]}

    def _generate(self, prompt: str, lot: float) -> str:
        text = words(40, self.number, prompt)
        self._drafts.add(text)
        self.worth[text] = 0
        return text

    def _refine(self, prompt: str, lot: float) -> str:
        text = words(40, self.number, self.arm, prompt)
        self.worth[text] = int(lot < FOLLOWS[self.arm])
        return text

    def _feedback(self, prompt: str, lot: float) -> dict[str, Any]:
        return {"feedback": ["mend it"]}

    def _critique(self, prompt: str, lot: float) -> dict[str, Any]:
        """Drafts fail in everything, so that each is refined once; refinements pass."""
        response = tagged(prompt, "response")[-1]
        verdict = "fail" if response in self._drafts else "pass"
        ids = re.findall(r'<criterion(?:-\w+)? id="([^"]+)"', prompt)
        judgement = {"reason": "so", "evidence": response[:20], "verdict": verdict}
        return {"verdicts": [{"criterion_id": id_, **judgement} for id_ in ids]}

    def _compare(self, prompt: str, lot: float) -> dict[str, Any]:
        a, b = (self.worth[text] for text in tagged(prompt, "response"))
        if a == b:
            return {"reason": "a toss", "winner": "A" if lot < 0.5 else "B"}
        return {"reason": "so", "winner": "A" if (a > b) != (lot < ERRS) else "B"}


async def experiment(number: int, seeds: int, out: Path) -> dict[str, Any]:
    """One experiment of all arms: the figures of each against the first."""
    references = make_references(len(QUALITIES))
    questions = [{"id": f"s{i}", "instruction": words(12, "seed", number, i)} for i in range(seeds)]
    settings = Settings(
        model="known",
        answer_seeds=True,
        try_criteria=False,
        references_per_seed=1,
        random_seed=number,
        concurrency=16,
    )
    teacher, journal = Teacher(number, references), await asyncio.to_thread(Journal, out)
    try:
        for arm in FOLLOWS:
            teacher.arm = arm
            run = Run(
                arm_settings(settings, arm, out),
                Source(references, as_reference=True),
                Source(questions, as_reference=False),
                out / arm,
                tools=Tools(complete=teacher, embed=embed),
                shared=journal,
            )
            await run.run()
    finally:
        await asyncio.to_thread(journal.close)
    return await compare_arms(out, list(FOLLOWS), settings, complete=teacher)


class Liking:
    """A judge that sees no difference in worth, and likes what is longer."""

    async def __call__(self, call: Call) -> Reply:
        prompt = "\n".join(m["content"] for m in call.messages)
        a, b = (len(text.split()) for text in tagged(prompt, "response"))
        picks_a = 1 / (1 + math.exp(-LIKES * math.tanh((a - b) / (LONGER + SPREAD))))
        winner = "A" if drawn(call.seed, prompt) < picks_a else "B"
        return Reply(json.dumps({"reason": "so", "winner": winner}), "stop", dict(USAGE))


async def length_experiment(number: int, seeds: int, out: Path) -> dict[str, Any]:
    """Two arms of equal worth, one of them longer: the figures of the longer one."""
    draw = random.Random(number)
    texts: dict[str, dict[str, ArmSample]] = {"longer": {}, "shorter": {}}
    for i in range(seeds):
        for name, more in (("longer", LONGER), ("shorter", 0)):
            n = max(10, round(draw.gauss(150 + more, SPREAD)))
            text = words(n, number, i, name)
            texts[name][f"ask {number} {i}"] = ArmSample(f"s{i}", text, True)
    arms = [Arm(name, samples, {"name": name}) for name, samples in texts.items()]
    settings = Settings(model="known", random_seed=number)
    comparison = await compare_runs(arms, [(0, 1)], out, settings, complete=Liking())
    return dict(comparison["pairs"][0])


def summary(
    experiments: Sequence[dict[str, Any]], lengths: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """How often intervals hold the truth, the order is found, and length is taken out."""
    order = sorted(FOLLOWS, key=lambda arm: -FOLLOWS[arm])[1:]
    rows, right = {}, 0
    for one in experiments:
        rates = {p["a"]: p["win_rate"] for p in one["pairs"]}
        right += all(rates[a] > rates[b] for a, b in pairwise(order)) and max(rates.values()) < 0.5
    for arm in order:
        pairs = [next(p for p in one["pairs"] if p["a"] == arm) for one in experiments]
        truth = true_rate(arm)
        rows[arm] = {
            "true": round(truth, 4),
            "mean": round(fmean(p["win_rate"] for p in pairs), 4),
            "covered": proportion(sum(p["low"] <= truth <= p["high"] for p in pairs), len(pairs)),
            "width": round(fmean(p["high"] - p["low"] for p in pairs), 4),
        }
    means = {arm: row["mean"] for arm, row in rows.items()}
    even = [p["length_controlled"] for p in lengths]
    return {
        "arms": rows,
        "order_in_the_means": sorted(means, key=lambda arm: -means[arm]) == order,
        "order_in_every_rate": proportion(right, len(experiments)),
        "length": {
            "raw": round(fmean(p["win_rate"] for p in lengths), 4),
            "raw_covers_half": proportion(
                sum(p["low"] <= 0.5 <= p["high"] for p in lengths), len(lengths)
            ),
            "controlled": round(fmean(e["value"] for e in even), 4),
            "controlled_covers_half": proportion(
                sum(e["low"] <= 0.5 <= e["high"] for e in even), len(even)
            ),
        },
    }


async def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--experiments", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=40, help="instructions of each")
    parser.add_argument("--out", type=Path, required=True, help="made anew and removed as it goes")
    args = parser.parse_args()
    experiments, lengths = [], []
    for number in range(args.experiments):
        for run, results in ((experiment, experiments), (length_experiment, lengths)):
            out = args.out / f"{run.__name__}-{number}"
            shutil.rmtree(out, ignore_errors=True)
            results.append(await run(number, args.seeds, out))
            shutil.rmtree(out)
        if number % 10 == 9:
            sys.stderr.write(f"{number + 1} of {args.experiments}\n")
    print(json.dumps(summary(experiments, lengths)))


if __name__ == "__main__":
    asyncio.run(main())
