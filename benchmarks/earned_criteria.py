"""How many criteria a model proposes for given references, and how many earn their place.

python -m benchmarks.earned_criteria FILE [--model local] [--limit 20]
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter

from langgraph.runtime import Runtime

from memory.characteristics import Characteristics
from memory.embed import Embedder
from nodes.extract import extract
from nodes.llm.endpoint import EndpointClient
from refloom.data.read import Source
from refloom.runs.client import Endpoints
from refloom.settings import Settings


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--model", default="local")
    parser.add_argument("--limit", type=int, default=20)
    args = parser.parse_args()
    settings = Settings(model=args.model)
    context = settings.context()
    connection = EndpointClient(Endpoints(settings).resolve)
    embed, learned = Embedder(), Characteristics()
    total: Counter[str] = Counter()
    for reference in Source(args.file, as_reference=True, limit=args.limit):
        state = {"seed": {"id": "x", "instruction": "x"}, "references": [reference]}
        update = await extract(
            state,
            Runtime(context=context),
            complete=connection,
            embed=embed,
            characteristics=learned,
        )
        for entry in update["learned"]:
            total.update(entry["counts"])
            print(entry["reference_id"], entry["counts"], entry["answers_bar"], flush=True)
            for criterion in entry["criteria"]:
                print(f"    {criterion['must']!s:<6}{criterion['bar']} {criterion['text']}")
        if "failure" in update:
            print(reference["id"], update["failure"], flush=True)
    await connection.aclose()
    print(dict(total))


if __name__ == "__main__":
    asyncio.run(main())
