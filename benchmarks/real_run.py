"""refloom's cost in a run like a real one, against an asyncio + aiohttp floor of as many calls.

    python benchmarks/real_run.py [--n 1000] [--in-flight 64] [--latency-ms 200] \\
        [--references FILE] [--seeds FILE] [--no-embeddings] --out DIR [--json]

Texts of natural lengths, ten instructions a seed, three references a seed, trials, screening,
near-duplicates, drafts that fail their first critique, journal on. `--references` and `--seeds`
take any shape that refloom reads; without them both are made up (prose.py). The endpoint is the
Python one here (scripted_run.py), whose answers follow from the prompts.

Three processes in turn: a run under a sampling profiler, which gives the cost by part and the sizes
of all bodies; the floor, which sends and reads as many bodies of the same sizes; the run that is
measured. In each the clock starts with everything imported, the index built, the preflight made and
the embedding model loaded; OUT/real_run.json has the whole processes, too, and the functions that
most went to. The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import shutil
import sqlite3
import sys
import time
import urllib.request
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import own_cost, prose, scripted
from benchmarks.cost_by_part import profiled
from benchmarks.endpoints import started

PER_SEED, REFERENCES_PER_SEED = 10, 3
# What a made-up run takes; of LIMA's size in proportion to the seeds.
REFERENCES = 300


def write_inputs(args: argparse.Namespace) -> None:
    """Make up what was not given."""
    if args.references is None:
        args.references = args.out / "references.jsonl"
        lines = (json.dumps(pair) + "\n" for pair in prose.make_pairs(REFERENCES))
        args.references.write_text("".join(lines), encoding="utf-8")
    if args.seeds is None:
        args.seeds = args.out / "seeds.jsonl"
        draw = random.Random(11)
        asked = ({"id": f"s{i}", "instruction": prose.instruction(draw)} for i in range(args.n))
        args.seeds.write_text("".join(json.dumps(one) + "\n" for one in asked), encoding="utf-8")


def settings_of(args: argparse.Namespace, memory: Path) -> Any:
    """The settings of the run."""
    from refloom.settings import Settings

    return Settings(
        model="mock-model",
        base_url=args.endpoint,
        per_seed=PER_SEED,
        references_per_seed=REFERENCES_PER_SEED,
        limit=-(-args.n // PER_SEED),
        concurrency=args.in_flight,
        memory=memory,
        quiet=True,
    )


def embed_of(args: argparse.Namespace) -> Any:
    """The embedding model, loaded; with --no-embeddings vectors that no model made."""
    from memory.embed import Embedder

    if args.no_embeddings:
        return scripted.embed
    embedder = Embedder()
    embedder.encode(["Load the model."])
    return embedder


async def prepare(args: argparse.Namespace) -> None:
    """Embed the references and make the preflight, before any clock starts."""
    from memory.index import ReferenceIndex
    from memory.references import distinct
    from memory.store import write_references
    from refloom.data.read import read_references

    memory = args.out / "memory"
    settings = settings_of(args, memory)
    file = write_references(memory, distinct(read_references(args.references, settings)))
    index = ReferenceIndex(file, embed_of(args), memory, settings.embedding_model)
    await index.search("any", 1)


async def pipeline(args: argparse.Namespace, profile: bool) -> dict[str, Any]:
    """One run of the product; its figures."""
    # Imported before the clock starts, as the rest of the program is.
    import graph.builder  # noqa: F401
    from refloom.data.read import read_references, read_seeds
    from refloom.runs.run import Run, Tools

    out, memory = args.out / "run", args.out / "run-memory"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(memory, ignore_errors=True)
    # Each run studies its references anew; only their vectors are there.
    shutil.copytree(args.out / "memory", memory)
    settings = settings_of(args, memory)
    embed = embed_of(args)
    await own_cost.make_preflight(settings, out)
    references = read_references(args.references, settings)
    seeds = read_seeds(args.seeds, settings)
    run = Run(settings, references, seeds, out, tools=Tools(embed=embed))
    with ExitStack() as stack:
        watched = stack.enter_context(profiled()) if profile else None
        begun, used = time.perf_counter(), time.process_time()
        summary = await run.run()
        wall, cpu = time.perf_counter() - begun, time.process_time() - used
    # The preflight was made before the clock started.
    paid = summary.totals["calls"]["paid"] - 1
    figures = {
        "wall_s": wall,
        "cpu_s": cpu,
        "calls": paid,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **{key: summary.counts[key] for key in ("accepted", "rejected", "failed")},
        "by_stage": by_stage(out / "journal.sqlite"),
    }
    if watched is not None:
        figures |= {"parts_ms": watched.table_ms(paid), "dearest_ms": watched.dearest(paid)}
    return figures


def by_stage(journal: Path) -> dict[str, int]:
    """The journal's calls by stage."""
    with closing(sqlite3.connect(journal)) as connection:
        return dict(connection.execute("SELECT stage, count(*) FROM calls GROUP BY 1 ORDER BY 2"))


async def floor(args: argparse.Namespace) -> None:
    """As many calls with bodies of the same sizes; one line a call."""
    import aiohttp

    sizes = json.loads((args.out / "sizes.json").read_text(encoding="utf-8"))
    limit = asyncio.Semaphore(args.in_flight)
    bare = len(json.dumps({"messages": [{"role": "user", "content": ""}]}))
    filling = "word " * (max(size for size, _ in sizes) // 5 + 1)
    connector = aiohttp.TCPConnector(limit=0)
    with (args.out / "floor.jsonl").open("w") as file:
        async with aiohttp.ClientSession(connector=connector) as session:

            async def one(asked: int, answered: int) -> None:
                content = filling[: max(asked - bare, 0)]
                body = {"messages": [{"role": "user", "content": content}]}
                # The endpoint pads its answer to so many bytes.
                headers = {"x-answer-bytes": str(answered)}
                url = f"{args.endpoint}/chat/completions"
                async with limit, session.post(url, json=body, headers=headers) as reply:
                    reply.raise_for_status()
                    text = json.loads(await reply.read())["choices"][0]["message"]["content"]
                file.write(json.dumps({"text": text}) + "\n")

            await asyncio.gather(*(one(*size) for size in sizes))


def part(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one part as a process of its own and read its last line."""
    more = ["--references", str(args.references), "--seeds", str(args.seeds)]
    more += ["--no-embeddings"] if args.no_embeddings else []
    return own_cost.part(name, args, __file__, more)


def ratios(least: dict[str, float], own: dict[str, Any]) -> dict[str, Any]:
    """What the product costs beside the floor of the same run."""
    return {
        **own_cost.ratios(least, own),
        "by_stage": own["by_stage"],
        "floor_cpu_ms_per_call": round(least["cpu_s"] / own["calls"] * 1000, 3),
        **{key: own[key] for key in ("accepted", "rejected", "failed")},
    }


def run_part(args: argparse.Namespace) -> None:
    """What a process of its own does; its figures are its last line."""
    if args.part == "floor":
        begun, used = time.perf_counter(), time.process_time()
        asyncio.run(floor(args))
        wall, cpu = time.perf_counter() - begun, time.process_time() - used
        print(json.dumps({"wall_s": wall, "cpu_s": cpu}))
    elif args.part == "prepare":
        asyncio.run(prepare(args))
        print("{}")
    else:
        print(json.dumps(asyncio.run(pipeline(args, args.part == "profile"))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000, help="candidates: ten a seed")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--latency-ms", type=int, default=200)
    parser.add_argument("--references", type=Path, metavar="FILE")
    parser.add_argument("--seeds", type=Path, metavar="FILE")
    parser.add_argument(
        "--no-embeddings", action="store_true", help="vectors by chance: leaves out what they cost"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", action="store_true", help="only the last line")
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.resolve()
    if args.part:
        run_part(args)
        return
    shutil.rmtree(args.out / "memory", ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)
    write_inputs(args)
    with started(flags=["--like-a-run"]) as mock:
        args.endpoint = mock.url
        mock.reset(0)
        part("prepare", args)
        # Without a latency: the profile is of CPU time.
        profile = part("profile", args)
        with urllib.request.urlopen(f"{mock.root}/sizes", timeout=60) as reply:
            # The first is the preflight's.
            sizes = json.loads(reply.read())[1:]
        (args.out / "sizes.json").write_text(json.dumps(sizes), encoding="utf-8")
        mock.reset(args.latency_ms)
        least, own = part("floor", args), part("pipeline", args)
    everything = {"profile": profile, "floor": least, "refloom": own}
    (args.out / "real_run.json").write_text(json.dumps(everything, indent=1), encoding="utf-8")
    if not args.json:
        for name, ms in profile["parts_ms"].items():
            print(f"{name:16}{ms:8.3f} ms a call")
    print(json.dumps({**ratios(least, own), "parts_ms": profile["parts_ms"]}))


if __name__ == "__main__":
    main()
