"""A small endpoint that answers in the shape it is asked for, where no faster one is at hand.

    python benchmarks/mock_endpoint.py [--latency-ms 200] [--like-a-run]

With `--like-a-run` its texts are as long as real ones, a share of its verdicts fail, and it
proposes some near-duplicates (scripted_run.py). It prints `listening URL`. GET /reset?latency_ms=N
sets the latency and zeroes the counters, GET /stats gives them, GET /sizes the bytes of every
request and answer. It is one Python process: it takes a part of the machine, and at a latency of
nothing it, and not its client, sets the pace.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

WORDS = """
    model data train step graph prompt answer reason check signal vector token layer sample loss
    batch table query index cache route fetch parse merge split shard queue stream event clock
    budget quota policy schema field record column union filter window scale bound proof claim
""".split()  # noqa: SIM905
LENGTHS = {"instruction": 30, "instructions": 30, "response": 80, "topic": 3}
_CRITERION = re.compile(r'<criterion(?:-\w+)? id="([^"]+)"')
_RESPONSE = re.compile(r"<response(?:-\w+)?>\s*([^<]{1,40})")
_INSTRUCTION = re.compile(r"^<instruction[>-]", re.MULTILINE)
# What only a refinement shows, which is asked for as plain text.
_VERDICT = re.compile(r"^<(?:verdict|feedback)[ >-]", re.MULTILINE)
_HOW_MANY = re.compile(r"(\d{1,3}) (?:new )?instructions")


def made(schema: dict[str, Any], prompt: str) -> Any:
    """A value of a schema's shape that agrees with its prompt, always the same one for the two."""
    draw = random.Random(zlib.crc32(prompt.encode()))
    return _fit(_value(schema, schema.get("$defs", {}), "", draw), prompt, draw)


def _value(schema: dict[str, Any], defs: dict[str, Any], name: str, draw: random.Random) -> Any:
    if "$ref" in schema:
        return _value(defs[schema["$ref"].rpartition("/")[2]], defs, name, draw)
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _value(schema["anyOf"][0], defs, name, draw)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if kind == "object":
        return {k: _value(v, defs, k, draw) for k, v in schema.get("properties", {}).items()}
    if kind == "array":
        return [_value(schema["items"], defs, name, draw) for _ in range(2)]
    if kind == "boolean":
        return True
    if kind in ("integer", "number"):
        return 5
    return _text(draw, LENGTHS.get(name, 15))


def _text(draw: random.Random, n: int) -> str:
    return " ".join(draw.choices(WORDS, k=n)).capitalize() + "."


def _fit(value: Any, prompt: str, draw: random.Random) -> Any:
    """One verdict a criterion, quotes that are there, as many instructions as were asked for."""
    if not isinstance(value, dict):
        return value
    found = _RESPONSE.findall(prompt)
    quote = found[-1].strip() if found else ""
    for one in value.get("characteristics", ()):
        one["quote"] = quote
    if value.get("verdicts"):
        first = value["verdicts"][0] | {"evidence": quote}
        value["verdicts"] = [first | {"criterion_id": id_} for id_ in _CRITERION.findall(prompt)]
    if "instructions" in value and (count := _HOW_MANY.search(prompt)):
        value["instructions"] = [_text(draw, 30) for _ in range(int(count.group(1)))]
    return value


def plain_response(prompt: str) -> str:
    """A response in plain text, always the same one for a prompt; a plan before a refined one."""
    draw = random.Random(zlib.crc32(prompt.encode()))
    plan = f"<plan>\n{_text(draw, 15)}\n</plan>\n" if _VERDICT.search(prompt) else ""
    return plan + _text(draw, LENGTHS["response"])


def simple_answer(prompt: str, shape: dict[str, Any] | None) -> str:
    """What it says to a prompt: JSON of a shape, or plain text."""
    return orjson.dumps(made(shape, prompt)).decode() if shape else plain_response(prompt)


Say = Callable[[str, dict[str, Any] | None], str]


def completion(body: dict[str, Any], say: Say = simple_answer) -> bytes:
    """The chat completion that answers a request."""
    prompt = "".join(message["content"] for message in body["messages"])
    shape = body.get("response_format", {}).get("json_schema", {}).get("schema")
    text = say(prompt, shape)
    read, written = len(prompt) // 4, len(text) // 4
    message = {"role": "assistant", "content": text}
    if (
        say is simple_answer
        and shape is None
        and len(body["messages"]) == 1
        and not _INSTRUCTION.search(prompt)
    ):
        # A bare answer, whose thoughts are wanted.
        message["reasoning_content"] = plain_response(f"thoughts on {prompt}")
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return orjson.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": usage,
        }
    )


def application(latency_ms: float, say: Say = simple_answer) -> web.Application:
    """The endpoint's routes around its state: the latency, and what it has counted."""
    state = {"latency_ms": latency_ms, "requests": 0, "in_flight": 0, "max_inflight": 0}
    # Bytes of the request's and of the answer's body, call by call.
    sizes: list[tuple[int, int]] = []

    async def chat(request: web.Request) -> web.Response:
        begun = asyncio.get_running_loop().time()
        state["in_flight"] += 1
        state["max_inflight"] = max(state["max_inflight"], state["in_flight"])
        try:
            said = await request.read()
            # A floor asks for bytes alone: no time goes into making them up.
            size = request.headers.get("x-answer-bytes")
            reply_body = _padded(int(size)) if size else completion(orjson.loads(said), say)
            state["requests"] += 1
            sizes.append((len(said), len(reply_body)))
            spent = asyncio.get_running_loop().time() - begun
            await asyncio.sleep(max(state["latency_ms"] / 1000 - spent, 0))
            return web.Response(body=reply_body, content_type="application/json")
        finally:
            state["in_flight"] -= 1

    async def reset(request: web.Request) -> web.Response:
        latency = float(request.query.get("latency_ms", state["latency_ms"]))
        state.update(latency_ms=latency, requests=0, max_inflight=0)
        sizes.clear()
        return web.Response(text="ok")

    async def stats(_: web.Request) -> web.Response:
        return web.json_response(state)

    async def sizes_so_far(_: web.Request) -> web.Response:
        return web.json_response(sizes)

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "mock-model"}]})

    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/reset", reset)
    app.router.add_get("/stats", stats)
    app.router.add_get("/sizes", sizes_so_far)
    return app


def _padded(size: int) -> bytes:
    """A completion of so many bytes."""
    message = {"role": "assistant", "content": ""}
    bare = orjson.dumps({"choices": [{"index": 0, "message": message}]})
    filling = "word " * (size // 5 + 1)
    message["content"] = filling[: max(size - len(bare), 0)]
    return orjson.dumps({"choices": [{"index": 0, "message": message}]})


async def serve(latency_ms: float, say: Say = simple_answer) -> None:
    """Listen on a free port of this machine until the process is ended."""
    runner = web.AppRunner(application(latency_ms, say), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(f"listening http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=200)
    parser.add_argument("--like-a-run", action="store_true")
    args = parser.parse_args()
    said_by: Say = simple_answer
    if args.like_a_run:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        from benchmarks.scripted_run import ScriptedRun

        said_by = ScriptedRun()
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(args.latency_ms, said_by))
