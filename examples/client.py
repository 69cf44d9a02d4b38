"""A client of a refloom server: an assistant, seeds, a person's answers, samples in a file.

    make dev
    python examples/client.py topics.txt samples.jsonl --per-seed 2 --review rejected

Every seed has a thread of its own, named after what is asked. So the same command, given again
after anything that may happen to client or server, goes on with what is left and asks for nothing
twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import httpx
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import InternalServerError

GRAPH = "synthesizer"
TRIES = 60
# Seconds until a server that does not answer is asked again.
WAIT_S = 2.0
# A place among the connections is waited for, an answer for ten minutes.
PATIENCE = httpx.Timeout(600, connect=5, pool=None)


class Lost(Exception):
    """A run whose server went away under it."""


class Refused(Exception):
    """A seed the server will not have, or fails at; says why."""


# What passes: a server that is away or starting.
PASSING = (httpx.TransportError, InternalServerError, Lost)


async def assistant(client: LangGraphClient, context: dict[str, Any]) -> str:
    """An assistant with these settings, made once; the same settings are the same assistant."""
    name = uuid5(NAMESPACE_URL, f"refloom assistant {json.dumps(context, sort_keys=True)}")
    made = await client.assistants.create(
        GRAPH, context=context, assistant_id=str(name), if_exists="do_nothing", name="client"
    )
    return str(made["assistant_id"])


async def samples_of(
    client: LangGraphClient, assistant_id: str, seed: str, show: bool
) -> list[dict[str, Any]]:
    """The samples of a seed, whatever has to be done for them: begun, gone on with, or read."""
    thread_id = str(uuid5(UUID(assistant_id), seed))
    for tries in range(1, TRIES + 1):
        try:
            await client.threads.create(thread_id=thread_id, graph_id=GRAPH, if_exists="do_nothing")
            state = await client.threads.get_state(thread_id)
            if not state["next"] and "samples" in state["values"]:
                return list(state["values"]["samples"])
            if asked := [i for task in state["tasks"] for i in task["interrupts"]]:
                answers = {one["id"]: await answer(one["value"]) for one in asked}
                if None in answers.values():
                    raise Refused("it waits for a person: answer at /review, then ask again")
                await run(client, thread_id, assistant_id, show, command={"resume": answers})
            elif state["next"]:
                # Cut off in the middle: on from the last step that was kept.
                await run(client, thread_id, assistant_id, show, input=None)
            else:
                args = {"seed": {"instruction": seed}}
                await run(client, thread_id, assistant_id, show, input=args)
        except PASSING as error:
            if tries == TRIES:
                raise Refused(f"{type(error).__name__}: {error}") from error
            sys.stderr.write(f"{type(error).__name__}: once more in {WAIT_S:.0f} s\n")
            await asyncio.sleep(WAIT_S)
    raise Refused(f"it has come to no end in {TRIES} steps")


async def run(
    client: LangGraphClient, thread_id: str, assistant_id: str, show: bool, **options: Any
) -> None:
    """One run to its end or its next question, told of as it goes on."""
    stream = client.runs.stream(
        thread_id,
        assistant_id,
        stream_mode=["custom", "values"],
        stream_subgraphs=True,
        multitask_strategy="enqueue",
        **options,
    )
    async for part in stream:
        if part.event == "error":
            # An error of the server's own, such as a run it has forgotten, is not the seed's.
            lost = part.data.get("error") == "HTTPException"
            raise (Lost if lost else Refused)(f"{part.data.get('error')}: {part.data['message']}")
        if show and part.event.startswith("custom") and "message" in part.data:
            sys.stderr.write(f"  {part.data['message']}\n")


async def answer(question: Any) -> dict[str, str] | None:
    """Ask whoever sits here; nobody at a terminal means that the sample is left to a reviewer."""
    sample = question["sample"]
    sys.stderr.write(f"\n{sample['instruction']}\n---\n{sample['response']}\n")
    try:
        answer_text = await asyncio.to_thread(
            input, "[a]ccept, [r]eject and why, or a better text: "
        )
    except EOFError:
        return None
    if answer_text in ("", "a"):
        return {"decision": "accept"}
    if answer_text == "r" or answer_text.startswith("r "):
        return {"decision": "reject", "reason": answer_text[2:]}
    return {"decision": "edit", "response": answer_text}


def arguments() -> tuple[argparse.Namespace, list[str], dict[str, Any]]:
    """What was asked for: flags, seeds, the assistant's settings."""
    parser = argparse.ArgumentParser(description="Make samples on a refloom server.")
    parser.add_argument("seeds", type=Path, help="a text file, one seed a line")
    parser.add_argument("out", type=Path, help="samples as JSON lines")
    parser.add_argument("--url", default="http://127.0.0.1:2024")
    parser.add_argument("--per-seed", type=int, default=1)
    parser.add_argument("--review", default="never", help="never, rejected, borderline, all")
    parser.add_argument("--context", default="{}", help="more settings, as JSON")
    parser.add_argument("--at-once", type=int, default=16, help="seeds under way at once")
    args = parser.parse_args()
    try:
        context = {"per_seed": args.per_seed, "review": args.review, **json.loads(args.context)}
        text = args.seeds.read_text(encoding="utf-8")
    except (OSError, ValueError, TypeError) as error:
        parser.error(f"seeds or --context: {error}")
    return args, [line for line in text.splitlines() if line.strip()], context


async def main() -> None:
    """Read seeds, collect their samples in order."""
    args, seeds, context = arguments()
    # REFLOOM_KEY is what `refloom key NAME` printed, where the server asks for keys.
    key = os.environ.get("REFLOOM_KEY")
    client = get_client(url=args.url, api_key=key, timeout=PATIENCE)
    try:
        own = await assistant(client, context)
    except (httpx.TransportError, httpx.HTTPStatusError) as error:
        cause = error.response.text if isinstance(error, httpx.HTTPStatusError) else error
        sys.exit(f"{args.url}: {cause}")
    room = asyncio.Semaphore(1 if args.review != "never" else args.at_once)

    failed: list[str] = []

    async def one(number: int, seed: str) -> list[dict[str, Any]]:
        async with room:
            try:
                return await samples_of(client, own, seed, show=number == 0)
            except Refused as error:
                failed.append(f"{seed[:60]}: {error}")
                return []

    results = await asyncio.gather(*(one(i, seed) for i, seed in enumerate(seeds)))
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for some in results for sample in some]
    args.out.write_text("".join(lines), encoding="utf-8")
    accepted = sum(sample["status"] == "accepted" for some in results for sample in some)
    none = sum(not some for some in results) - len(failed)
    print(f"{len(seeds)} seeds, {len(lines)} samples, {accepted} accepted: {args.out}")
    if none:
        print(f"{none} seeds brought no instruction that is new")
    if failed:
        sys.exit("\n".join([f"{len(failed)} seeds brought nothing:", *failed[:20]]))


if __name__ == "__main__":
    asyncio.run(main())
