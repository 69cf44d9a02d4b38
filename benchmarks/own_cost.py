"""refloom's own cost a sample of three dependent calls, against an asyncio + aiohttp floor.

    python benchmarks/own_cost.py --endpoint http://127.0.0.1:8900/v1 --n 1000 --in-flight 64 \\
        --out DIR [--json] [--profile]

The endpoint should answer at once or after a fixed time and mind the shape it is asked for; the
response is asked for as plain text. The
pipeline is the product's own, as a process: extract, generate, critique, each seed with a reference
not seen before, journal on; references are kept and the preflight is made before the clock starts.
The floor makes the same three calls in the same order, in a process of its own, right before. The
last line on stdout is JSON; OUT/own_cost.json has all that was measured, of both processes as a
whole, too, with their start-up. `--profile` makes the run once more, under a sampling profiler, and
adds its CPU by part of the program.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

WORDS = """
    model data train step graph prompt answer reason check signal vector token layer sample
    loss batch table query index cache route fetch parse merge split shard queue stream event
    clock
""".split()  # noqa: SIM905


def make_references(n: int) -> list[dict[str, str]]:
    draw = random.Random(7)
    return [
        {
            "id": f"r{i}",
            "instruction": f"ref {i}: " + " ".join(draw.choices(WORDS, k=30)),
            "response": " ".join(draw.choices(WORDS, k=80)) + ".",
        }
        for i in range(n)
    ]


def shape(name: str, *keys: str) -> dict[str, object]:
    properties = {key: {"type": "string"} for key in keys}
    schema = {"type": "object", "properties": properties, "required": list(keys)}
    named = {"name": name, "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": named}


SHAPES = {
    "extract": shape("extract", "topic", "skills"),
    "critique": shape("critique", "reason", "verdict"),
}


def fence(tag: str, text: str) -> str:
    """A text between tags, by which an endpoint knows what is asked for."""
    return f"<{tag}>\n{text}\n</{tag}>"


async def floor(endpoint: str, references: list[dict[str, str]], in_flight: int, out: Path) -> None:
    """The least that the same calls cost: one task a sample, one semaphore, one line a sample."""
    import aiohttp

    limit = asyncio.Semaphore(in_flight)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(prompt: str, **more: object) -> str:
            messages = [{"role": "user", "content": prompt}]
            body = {"model": "mock-model", "messages": messages, **more}
            async with session.post(f"{endpoint}/chat/completions", json=body) as reply:
                reply.raise_for_status()
                reply_body = json.loads(await reply.read())
            return reply_body["choices"][0]["message"]["content"]

        async def ask_json(stage: str, prompt: str) -> dict[str, str]:
            return json.loads(await ask(prompt, response_format=SHAPES[stage]))

        with (out / "floor.jsonl").open("w") as file:

            async def one(reference: dict[str, str]) -> None:
                async with limit:
                    pair = f"{reference['instruction']}\n\n{reference['response']}"
                    learned = await ask_json("extract", pair)
                    instruction = fence("instruction", reference["instruction"])
                    response = await ask(f"{learned}\n\n{instruction}")
                    judged = await ask_json("critique", fence("response", response))
                    row = {"id": reference["id"], "response": response, **judged}
                    file.write(json.dumps(row) + "\n")

            await asyncio.gather(*map(one, references))


def measured_run(args: argparse.Namespace) -> Any:
    """The product's own run over OUT/references.jsonl: three dependent calls a sample."""
    # Imported before the clock starts, as the rest of the program is.
    import graph.builder  # noqa: F401
    from refloom.data.read import Source
    from refloom.runs.run import Run
    from refloom.settings import Settings

    settings = Settings(
        model="mock-model",
        base_url=args.endpoint,
        answer_seeds=True,
        try_criteria=False,
        references_per_seed=1,
        concurrency=args.in_flight,
        memory=args.out / "memory",
    )
    path = args.out / "references.jsonl"
    return Run(settings, Source(path, as_reference=True), None, args.out / "run")


def index(args: argparse.Namespace) -> None:
    """Keep the references where the run looks for them; as its own seeds they need no vectors."""
    from memory.references import distinct
    from memory.store import write_references
    from refloom.data.read import Source

    references = Source(args.out / "references.jsonl", as_reference=True)
    write_references(args.out / "memory", distinct(references))


async def make_preflight(settings: Any, out: Path) -> None:
    """Make a run's preflight into its journal, so that the clock starts at its first seed."""
    from refloom.runs.client import Endpoints, open_client
    from refloom.runs.cost import Prices
    from refloom.runs.journal import Journal
    from refloom.runs.preflight import preflight

    endpoints = Endpoints(settings)
    with closing(Journal(out)) as journal:
        spent = {"prior_cost": 0.0, "prior_tokens": 0}
        async with open_client(settings, journal, endpoints, Prices({}), **spent) as calls:
            await preflight(calls, settings, endpoints.addresses, journal)


async def pipeline(args: argparse.Namespace, profile: bool = False) -> dict[str, Any]:
    """One run of the product over references made before; the clock starts at its first seed."""
    run = measured_run(args)
    with ExitStack() as stack:
        if profile:
            from benchmarks.cost_by_part import profiled

            watched = stack.enter_context(profiled())
        begun, used = time.perf_counter(), time.process_time()
        summary = await run.run()
    if profile:
        return {"parts_ms": watched.table_ms(summary.totals["calls"]["paid"] - 1)}
    return {
        "wall_s": time.perf_counter() - begun,
        "cpu_s": time.process_time() - used,
        # The preflight was made before the clock started.
        "calls": summary.totals["calls"]["paid"] - 1,
        "accepted": summary.counts["accepted"],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def part(
    name: str, args: argparse.Namespace, script: str = __file__, more: Sequence[str] = ()
) -> dict[str, Any]:
    """Run one part of a script as a process of its own, with `more` flags; read its last line."""
    command = [sys.executable, script, "--part", name, "--endpoint", args.endpoint, *more]
    command += ["--n", str(args.n), "--in-flight", str(args.in_flight), "--out", str(args.out)]
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(f"the {name} part failed:\n{process.stderr}")
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return figures | {"process_wall_s": wall, "process_cpu_s": used}


def ratios(least: dict[str, float], own: dict[str, float]) -> dict[str, float]:
    """What the product costs beside the floor of the same run."""
    return {
        "wall_ratio": round(own["wall_s"] / least["wall_s"], 3),
        "cpu_ratio": round(own["cpu_s"] / least["cpu_s"], 3),
        "cpu_ms_per_call": round(own["cpu_s"] / own["calls"] * 1000, 3),
        "samples_per_s": round(own["accepted"] / own["wall_s"], 1),
        "peak_mb": round(own["peak_mb"], 1),
        "calls": own["calls"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", default="http://127.0.0.1:8900/v1")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", action="store_true", help="only the last line")
    parser.add_argument("--profile", action="store_true", help="CPU by part of the program, too")
    parser.add_argument("--part", choices=("floor", "pipeline", "profile"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part in ("pipeline", "profile"):
        print(json.dumps(asyncio.run(pipeline(args, args.part == "profile"))))
        return
    references = make_references(args.n)
    if args.part == "floor":
        begun, used = time.perf_counter(), time.process_time()
        asyncio.run(floor(args.endpoint, references, args.in_flight, args.out))
        spent = {"wall_s": time.perf_counter() - begun, "cpu_s": time.process_time() - used}
        print(json.dumps(spent))
        return
    lines = "".join(json.dumps(reference) + "\n" for reference in references)
    (args.out / "references.jsonl").write_text(lines, encoding="utf-8")
    index(args)
    asyncio.run(make_preflight(measured_run(args).settings, args.out / "run"))
    least, own = part("floor", args), part("pipeline", args)
    if not args.json:
        print(f"floor {least}\nrefloom {own}")
    measured, shown = {"floor": least, "refloom": own}, ratios(least, own)
    if args.profile:
        shutil.rmtree(args.out / "run")
        asyncio.run(make_preflight(measured_run(args).settings, args.out / "run"))
        measured["profile"] = part("profile", args)
        shown["parts_ms"] = measured["profile"]["parts_ms"]
        for name, ms in () if args.json else shown["parts_ms"].items():
            print(f"{name:16}{ms:8.3f} ms a call")
    (args.out / "own_cost.json").write_text(json.dumps(measured))
    print(json.dumps(shown))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
