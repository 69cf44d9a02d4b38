"""ASGI middleware that checks each request before LangGraph's routes see it: user, size, runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nodes.context import Context
from nodes.inputs import (
    MAX_REFERENCES_ADDED,
    NO_CHAT,
    BadInput,
    read_indexer_input,
    read_input,
    read_input_criteria,
    read_sample_input,
)
from nodes.llm.provider import find_unlisted
from refloom.serve.api_keys import identify_request, load_key_hashes
from refloom.serve.origins import AllowedOrigins

MAX_BODY_BYTES = 8 << 20
MAX_RUNS = 100
MAX_RECURSION = 1000
MAX_DEPTH = 64
MAX_SENDS = 50
_READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HEALTH_PATHS = frozenset({"/ok", "/readyz", "/health", "/ready", "/live", "/info"})
_PAGE_PATH = re.compile(r"/review(/config|/[a-z_]+\.(js|css|svg))?")
_CHECKED_PATHS = re.compile(r"/(runs|assistants|commands)(/|$)|/(threads|mcp)/?$")


class RequestRefused(Exception):
    """A refused request, with its HTTP status and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class RequestLimits:
    """Refuses unknown users, oversized bodies, and runs beyond the server's limits.

    LangGraph's servers check no input and read a whole body into memory, so this stands in front
    of all their routes.
    """

    def __init__(self, app: ASGIApp, origins: AllowedOrigins | None = None) -> None:
        """`origins` are the sites whose pages may call, beside the server's own.

        Raises `BadKeys` if the keys are malformed; the server then does not start.
        """
        self.app = app
        self.keys = load_key_hashes()
        self.origins = origins or AllowedOrigins()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a refusal."""
        # The server's calls to itself have this root path; no outside client can set one.
        internal = str(scope.get("root_path") or "").startswith("/noauth")
        if internal or scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            # Any web page may open a web socket to this machine, and nothing here needs one.
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            self._check_user(scope)
            if scope["method"] not in _READ_METHODS:
                body = await _read_body(scope, receive)
                _check_body(scope["path"], body)
                receive = _replay(body, receive)
        except ClientDisconnect:
            return
        except RequestRefused as refused:
            await JSONResponse({"detail": refused.reason}, refused.status)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check_user(self, scope: Scope) -> None:
        """Refuse requests without a valid key; without keys, those from other machines.

        `refloom.serve.auth` checks the same again, but LangGraph's server is known to stay open
        when its auth module cannot be loaded.
        """
        user = identify_request(scope, self.keys)
        if not isinstance(user, str) and (not self.keys or not _needs_no_key(scope)):
            raise RequestRefused(*user)
        if not self.keys and scope["method"] not in _READ_METHODS:
            # Any page in a browser of this machine could call a server without keys.
            refusal = self.origins.refuse(scope)
            if refusal is not None:
                raise RequestRefused(403, refusal)


def _needs_no_key(scope: Scope) -> bool:
    """Whether a request is answered without a key: health checks and the review page's files."""
    path = scope["path"].rstrip("/")
    known = path in _HEALTH_PATHS or _PAGE_PATH.fullmatch(path)
    return scope["method"] == "OPTIONS" or (scope["method"] in _READ_METHODS and bool(known))


async def _read_body(scope: Scope, receive: Receive) -> bytes:
    """Read the body; refuse one over `MAX_BODY_BYTES` by its length, or while it arrives."""
    length = dict(scope["headers"]).get(b"content-length", b"0")
    too_large = RequestRefused(413, f"the body is over {MAX_BODY_BYTES >> 20} MB")
    if not length.isdigit() or len(length) > 12 or int(length) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            raise too_large
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `Receive` that brings the body again, then whatever the client sends after it."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _check_body(path: str, body: bytes) -> None:
    """Refuse a body that starts runs or creates assistants beyond the limits. Others pass."""
    if not _CHECKED_PATHS.search(path) or not body:
        return
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(422, "the body is not valid JSON") from error
    if _nesting(parsed) > MAX_DEPTH:
        raise RequestRefused(422, f"the body is nested more than {MAX_DEPTH} levels deep")
    runs = parsed if isinstance(parsed, list) else [parsed]
    if len(runs) > MAX_RUNS:
        raise RequestRefused(
            422, f"{len(runs)} runs in a request; send at most {MAX_RUNS} at a time"
        )
    for run in runs:
        _check_run(run)


def _nesting(value: Any) -> int:
    """How deeply lists and objects are nested."""
    level, depth = [value], 0
    while level := [child for parent in level for child in _children(parent)]:
        depth += 1
    return depth


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _check_run(run: Any) -> None:
    """Check a run or an assistant; a command of the event stream holds a run in its `params`."""
    if not isinstance(run, dict):
        return
    if isinstance(run.get("params"), dict):
        _check_run(run["params"])
    command = run.get("command")
    goto = command.get("goto") if isinstance(command, dict) else None
    if isinstance(goto, list) and len(goto) > MAX_SENDS:
        raise RequestRefused(422, f"command.goto has {len(goto)} entries; at most {MAX_SENDS}")
    if run.get("webhook"):
        raise RequestRefused(422, "webhook: this server does not call addresses named by clients")
    _check_settings(run)
    graph_input = run.get("input")
    if isinstance(graph_input, dict) and graph_input:
        _check_input(graph_input)


def _check_settings(run: Mapping[str, Any]) -> None:
    config = run.get("config")
    config = config if isinstance(config, dict) else {}
    steps = config.get("recursion_limit")
    if steps is not None and not (isinstance(steps, int) and 1 <= steps <= MAX_RECURSION):
        raise RequestRefused(422, f"config.recursion_limit must be 1 to {MAX_RECURSION}")
    configurable = config.get("configurable")
    configurable = configurable if isinstance(configurable, dict) else {}
    settings = {k: v for k, v in configurable.items() if k in Context.model_fields}
    if any(name.startswith("__") for name in configurable):
        raise RequestRefused(
            422, "config.configurable: names that begin with __ are reserved for LangGraph"
        )
    for name, values in (("context", run.get("context")), ("config.configurable", settings)):
        if not isinstance(values, dict) or not values:
            continue
        try:
            context = Context.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join([name, *map(str, first["loc"])])
            raise RequestRefused(422, f"{field}: {first['msg']}") from error
        jurors = context.jurors if context.judge_model else ()
        for setting, model in (("model", context.model), *(("judge_model", j) for j in jurors)):
            unlisted = find_unlisted(model)
            if unlisted is not None:
                raise RequestRefused(422, f"{name}.{setting}: {unlisted}")


def _check_input(graph_input: dict[str, Any]) -> None:
    """Check a graph's input early; the graph's first node checks it again."""
    for name, value in graph_input.items():
        if isinstance(value, list) and len(value) > MAX_REFERENCES_ADDED:
            raise RequestRefused(
                422, f"input.{name} has {len(value)} entries; at most {MAX_REFERENCES_ADDED}"
            )
    if "messages" in graph_input and not graph_input.keys() & {"seed", "instruction", "references"}:
        raise RequestRefused(422, f"input.messages: {NO_CHAT}")
    try:
        if "seed" in graph_input:
            read_input(graph_input)
            read_input_criteria(graph_input)
        elif "instruction" in graph_input:
            read_sample_input(graph_input)
        elif "references" in graph_input:
            read_indexer_input(graph_input)
    except BadInput as error:
        raise RequestRefused(422, f"input.{error}") from error
