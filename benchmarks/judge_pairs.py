"""How often a judge ranks the good of two responses first, in each way of judging.

    python -m benchmarks.judge_pairs [--model local] [--method logodds|verdict]

Reads judge_pairs.jsonl: 30 pairs of a good and a poor response to one instruction. Both are asked
about by the built-in criterion, "fully answers the instruction". By log-odds the higher score ranks
first, by written verdict the one that passes where the other does not. Ties are counted apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from pathlib import Path

from nodes.context import Context
from nodes.criteria import answers_instruction
from nodes.judge import judge
from nodes.llm import CallOrigin
from nodes.llm.endpoint import EndpointClient
from refloom.runs.client import Endpoints
from refloom.settings import Settings

PAIRS = Path(__file__).with_name("judge_pairs.jsonl")


async def worth(
    connection: EndpointClient, context: Context, instruction: str, response: str
) -> float:
    criteria = [answers_instruction(None)]
    judged = await judge(
        connection,
        context,
        CallOrigin("pair"),
        instruction=instruction,
        response=response,
        criteria=criteria,
    )
    if context.method == "logodds":
        return judged.verdicts[0]["score"] or 0.0
    return float(judged.verdicts[0]["verdict"] == "pass")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="local")
    parser.add_argument("--method", choices=("logodds", "verdict"), default="logodds")
    given = parser.parse_args()
    settings = Settings(model=given.model, judge_method=given.method)
    connection = EndpointClient(Endpoints(settings).resolve)
    first: Counter[str] = Counter()
    ties: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for line in PAIRS.read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        good, poor = [
            await worth(connection, settings.context(), pair["instruction"], pair[which])
            for which in ("good", "poor")
        ]
        for kind in (pair["kind"], "all"):
            total[kind] += 1
            first[kind] += good > poor
            ties[kind] += good == poor
        print(f"{pair['kind']:<13}{pair['id']:<32} good {good:6.2f}  poor {poor:6.2f}", flush=True)
    await connection.aclose()
    for kind in total:
        print(f"{kind:<13} good first {first[kind]}/{total[kind]}, ties {ties[kind]}")


if __name__ == "__main__":
    asyncio.run(main())
