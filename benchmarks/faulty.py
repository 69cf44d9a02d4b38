"""An OpenAI-compatible endpoint that goes wrong as real ones do, and keeps its own log.

    python benchmarks/faulty.py --latency-ms 20 --reject 0.4 --faults 0.3 --log FILE

It prints `listening URL`. What it answers is a function of the request's content (messages and
seed), so that a request made again is answered alike. Faults of transport strike an attempt;
faults of content strike at random too, or, with `--deterministic-faults`, the same request always.
Every line of the log is JSON: n, key (sha256 of the request), stage, status, kind, t. A status of 0
is no answer: a hang, a reset, half a body, or `repeated`, which notes that a request came in that
had been answered with 200 before. GET /count says how many requests were answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import struct
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from aiohttp import web
from faulty_answers import (
    BROKEN,
    CONTENT,
    TRANSPORT,
    answer,
    completion,
    drawn,
    made,
    reply_to,
    stage_of,
)

# Faults of transport in a row that one request meets at most where rows are to be compared: fewer
# than a client's tries, so that no row hangs on luck.
MOST_IN_A_ROW = 3


@dataclass
class Endpoint:
    """What the endpoint was told, and what it has done."""

    args: argparse.Namespace
    log: int | None
    n: int = 0
    in_flight: int = 0
    paid: set[str] = field(default_factory=set)
    in_a_row: Counter[str] = field(default_factory=Counter)

    def note(self, status: int, kind: str, key: str, stage: str, **more: Any) -> None:
        """Write a line of the log at once; a status over 0 counts as an answer."""
        self.n += status > 0
        if status == 200:
            self.paid.add(key)
        line = {"n": self.n, "key": key, "stage": stage, "status": status, "kind": kind}
        if self.log is not None:
            os.write(self.log, (json.dumps(line | {"t": time.time()} | more) + "\n").encode())

    def kind(self, key: str) -> str:
        """What is to happen to a request: ok, or a fault."""
        args = self.args
        kinds: list[str] = args.kinds
        if not args.deterministic_faults:
            return random.choice(kinds) if random.random() < args.faults else "ok"
        transport = [k for k in kinds if k in TRANSPORT]
        content = [k for k in kinds if k in CONTENT]
        share = args.faults * len(transport) / max(len(kinds), 1)
        if random.random() < share and self.in_a_row[key] < MOST_IN_A_ROW:
            self.in_a_row[key] += 1
            return random.choice(transport)
        self.in_a_row.pop(key, None)
        if content and drawn(key, "whether") < args.faults - share:
            return content[int(drawn(key, "which") * len(content))]
        return "ok"


async def chat(request: web.Request) -> web.StreamResponse:
    """Answer a request or fail it; only what was sent whole is noted as answered."""
    endpoint: Endpoint = request.app[ENDPOINT]
    body = await request.json()
    key = sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    stage = stage_of(body)
    endpoint.in_flight += 1
    try:
        if key in endpoint.paid:
            endpoint.note(0, "repeated", key, stage)
        await asyncio.sleep(endpoint.args.latency_ms / 1000 * random.uniform(0.5, 1.5))
        kind = endpoint.kind(key)
        content = answer(body, endpoint.args.reject)
        if kind in BROKEN:
            endpoint.note(0, kind, key, stage)
            return await broken(kind, request, completion("ok", body, content))
        reply = reply_to(kind, body, content)
        await reply.prepare(request)
        await reply.write_eof()
        if request.transport is not None and not request.transport.is_closing():
            endpoint.note(reply.status, kind, key, stage, **made(stage, body, content))
        return reply
    finally:
        endpoint.in_flight -= 1


ENDPOINT = web.AppKey("endpoint", Endpoint)


async def broken(kind: str, request: web.Request, whole: web.Response) -> web.StreamResponse:
    """Send nothing until the client goes away, or break the connection off."""
    if kind == "hang":
        await asyncio.Event().wait()
    transport = request.transport
    assert transport is not None
    if kind == "reset":
        # Closing with a linger time of 0 sends a reset in place of an orderly end.
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
        return web.Response()
    content = whole.body
    assert isinstance(content, bytes)
    half = web.StreamResponse(headers={"Content-Type": "application/json"})
    half.content_length = len(content)
    with suppress(ConnectionError):
        await half.prepare(request)
        await half.write(content[: len(content) // 2])
    transport.close()
    return half


async def serve(args: argparse.Namespace) -> None:
    """Listen on a free port of this machine until the process is ended."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    endpoint = Endpoint(args, os.open(args.log, flags) if args.log else None)

    async def count(_: web.Request) -> web.Response:
        return web.json_response(endpoint.n)

    async def in_flight(_: web.Request) -> web.Response:
        return web.json_response(endpoint.in_flight)

    app = web.Application(client_max_size=1 << 26)
    app[ENDPOINT] = endpoint
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/count", count)
    app.router.add_get("/in_flight", in_flight)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(f"listening http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--reject", type=float, default=0.4, help="share of candidates failed")
    parser.add_argument("--faults", type=float, default=0.0, help="share of calls with a fault")
    parser.add_argument("--without", default="", help="kinds of fault to leave out, with commas")
    parser.add_argument("--deterministic-faults", action="store_true")
    parser.add_argument("--log", type=Path)
    args = parser.parse_args()
    args.kinds = [k for k in (*TRANSPORT, *CONTENT) if k not in args.without.split(",")]
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(args))


if __name__ == "__main__":
    main()
