"""How well a judge tells good instructions from poor ones, and what its bars let through.

    python -m benchmarks.instruction_pairs [--model local] [--method logodds|verdict]

Reads instruction_pairs.jsonl: 48 pairs of a good and a poor instruction for one seed, of four kinds
of poor ones: an answer in its place, a vague one, one that needs what is not there, and one off the
seed's subject. Bars are calibrated on the first N bundled demo references, as in a run. For each
kind: how often the good one ranks first by what decides it, and how many of each pass all criteria.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter, defaultdict
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

from memory.embed import Embedder
from memory.weights import DEFAULT_MODEL
from nodes.context import Context
from nodes.llm import CallOrigin
from nodes.llm.endpoint import EndpointClient
from nodes.screening import (
    ANSWERABLE_ID,
    BUILT_IN_IDS,
    built_in_criteria,
    judge_instruction_by_log_odds,
    judge_instructions,
    meets_instruction_criteria,
)
from nodes.state import Verdict
from nodes.trial import try_instruction_criteria
from refloom.runs.client import Endpoints
from refloom.settings import Settings

PAIRS = Path(__file__).with_name("instruction_pairs.jsonl")


async def calibrate(client: EndpointClient, context: Context, n: int) -> float | None:
    """The bar of the built-in question, from the first `n` demo references."""
    text = files("refloom").joinpath("resources/demo/references.jsonl").read_text(encoding="utf-8")
    bars = []
    for line in text.splitlines()[:n]:
        reference = json.loads(line)
        reference = {"id": "r", **reference}
        trial = await try_instruction_criteria(
            client, context, CallOrigin("reference"), reference, []
        )
        if trial.answerable_bar is not None:
            bars.append(trial.answerable_bar)
    print("bars", bars, "mean", fmean(bars) if bars else None)
    return fmean(bars) if bars else None


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="local")
    parser.add_argument("--method", choices=("logodds", "verdict"), default="logodds")
    parser.add_argument("--references", type=int, default=12)
    options = parser.parse_args()
    settings = Settings(model=options.model, judge_method=options.method)
    context, embed = settings.context(), Embedder(DEFAULT_MODEL)
    client = EndpointClient(Endpoints(settings).resolve)
    bars: dict[str, float | None] = {}
    if options.method == "logodds":
        bars[ANSWERABLE_ID] = await calibrate(client, context, options.references)
    criteria = built_in_criteria(context, bars)

    async def verdicts_of(seed: str, instruction: str) -> list[Verdict]:
        if options.method == "logodds":
            verdicts, _ = await judge_instruction_by_log_odds(
                client, context, CallOrigin("pair"), instruction, criteria, seed=seed, embed=embed
            )
            return verdicts
        result = await judge_instructions(
            client, context, CallOrigin("pair"), [instruction], criteria, seed=seed
        )
        return result.verdicts[0]

    seen: dict[tuple[str, str], list[Verdict]] = {}
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for line in PAIRS.read_text(encoding="utf-8").splitlines():
        pair: dict[str, Any] = json.loads(line)
        both = []
        for which in ("good", "poor"):
            key = (pair["seed"], pair[which])
            if key not in seen:
                seen[key] = await verdicts_of(*key)
                print(which, pair["kind"], pair[which][:60], flush=True)
                for verdict in seen[key]:
                    score = verdict["score"]
                    print("   ", verdict["criterion_id"], verdict["verdict"], score, flush=True)
            both.append(seen[key])
        good, poor = both
        count = counts[pair["kind"]]
        count["pairs"] += 1
        count["good pass"] += meets_instruction_criteria(good, criteria, context)
        count["poor pass"] += meets_instruction_criteria(poor, criteria, context)
        count["good first"] += rank(good) > rank(poor)
        for id_, verdict in zip(BUILT_IN_IDS, poor, strict=False):
            count[f"poor fail {id_}"] += verdict["verdict"] == "fail"
    for kind, count in counts.items():
        print(kind, dict(count))
    await client.aclose()


def rank(verdicts: list[Verdict]) -> tuple[int, float]:
    """How many criteria pass, and the sum of their scores."""
    passed = sum(v["verdict"] == "pass" for v in verdicts)
    return passed, sum(v["score"] or 0.0 for v in verdicts)


if __name__ == "__main__":
    asyncio.run(main())
