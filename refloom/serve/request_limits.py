"""What a request may ask of the server, looked at before anything else sees it."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nodes.context import Context
from nodes.inputs import MOST_ADDED, BadInput, checked, checked_references, checked_sample
from refloom.serve.api_keys import asking, configured

MOST_BYTES = 8 << 20
MOST_RUNS = 100
MOST_STEPS = 1000
MOST_DEPTH = 64
MOST_SENDS = 50
# The one foreign page that may ask: see `cors` in langgraph.json.
STUDIO = ("https://smith.langchain.com",)
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_HEALTH = frozenset({"/ok", "/readyz", "/health", "/ready", "/live", "/info"})
_PAGE = re.compile(r"/review(/config|/[a-z]+\.(js|css|svg))?")
_LOOKED_AT = re.compile(r"/(runs|assistants|commands)(/|$)|/threads/?$")


class TooMuch(Exception):
    """A request that is refused: its status and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Bounds:
    """Refuses strangers, bodies that are too large, and runs that ask for what nobody may.

    LangGraph's servers check no input and hold a whole body in memory, so this stands before all
    of their routes.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Raises `BadKeys` where the keys cannot be read: then nothing is served."""
        self.app = app
        self.keys = configured()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        # The server's own calls to itself come from nowhere; nobody outside can set a root path.
        own = str(scope.get("root_path") or "").startswith("/noauth")
        if own or scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            # A web page of anybody's may open a socket to this machine, and nothing here needs one.
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            self._who(scope)
            if scope["method"] not in _READS:
                body = await _body(scope, receive)
                _check(scope["path"], body)
                receive = _again(body, receive)
        except ClientDisconnect:
            return
        except TooMuch as refused:
            await JSONResponse({"detail": refused.why}, refused.status)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _who(self, scope: Scope) -> None:
        """Refuse who has no key; without keys, whoever is not on this machine.

        The server's own door does the same again. But one server is known to stay open when its
        door cannot be loaded.
        """
        user = asking(scope, self.keys)
        if not isinstance(user, str) and (not self.keys or not _open(scope)):
            raise TooMuch(*user)
        if not self.keys and scope["method"] not in _READS and not _own_page(scope):
            raise TooMuch(403, "a page of another site may not ask this server for anything")


def authorising(keys: Mapping[str, str]) -> Callable[[Request], Awaitable[Response | None]]:
    """What refuses a request from who has no key, where keys are asked for, and lets others by."""

    async def authorise(request: Request) -> Response | None:
        user = asking(request.scope, keys)
        return None if isinstance(user, str) else JSONResponse({"detail": user[1]}, user[0])

    return authorise


def _own_page(scope: Scope) -> bool:
    """Whether a request comes from Studio, from this server's own page, or from no page at all.

    Without keys a browser is all that a foreign page needs; browsers say whose page it is.
    """
    headers = dict(scope["headers"])
    origin = headers.get(b"origin", b"").decode("latin-1")
    host = headers.get(b"host", b"").decode("latin-1")
    return not origin or origin in STUDIO or origin.partition("://")[2] == host


def _open(scope: Scope) -> bool:
    """What is answered without a key: whether the server is well, and the page's own files."""
    path = scope["path"].rstrip("/")
    known = path in _HEALTH or _PAGE.fullmatch(path)
    return scope["method"] == "OPTIONS" or (scope["method"] in _READS and bool(known))


async def _body(scope: Scope, receive: Receive) -> bytes:
    """The whole body; one that is too large is refused before it is read, or while it is."""
    length = dict(scope["headers"]).get(b"content-length", b"0")
    too_large = TooMuch(413, f"the body is over {MOST_BYTES >> 20} MB")
    if not length.isdigit() or len(length) > 12 or int(length) > MOST_BYTES:
        raise too_large
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MOST_BYTES:
            raise too_large
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body once more, for whoever comes next; after it what the client does."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _check(path: str, body: bytes) -> None:
    """Refuse a body that starts runs or makes assistants as nobody may. Other bodies pass."""
    if not _LOOKED_AT.search(path) or not body:
        return
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise TooMuch(422, "the body is no JSON") from error
    if _depth(said) > MOST_DEPTH:
        raise TooMuch(422, f"the body is nested over {MOST_DEPTH} deep")
    if isinstance(said, list):
        if len(said) > MOST_RUNS:
            raise TooMuch(422, f"{len(said)} runs in a request; at most {MOST_RUNS}, send the rest")
        for one in said:
            _check_one(one)
    else:
        _check_one(said)


def _depth(value: Any) -> int:
    """How deep lists and objects stand in each other."""
    level, depth = [value], 0
    while level := [part for one in level for part in _parts(one)]:
        depth += 1
    return depth


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _check_one(said: Any) -> None:
    """One run or assistant; a command of the event stream holds a run in its `params`."""
    if not isinstance(said, dict):
        return
    if isinstance(said.get("params"), dict):
        _check_one(said["params"])
    command = said.get("command")
    goto = command.get("goto") if isinstance(command, dict) else None
    if isinstance(goto, list) and len(goto) > MOST_SENDS:
        raise TooMuch(422, f"command.goto: {len(goto)} of them; at most {MOST_SENDS}")
    if said.get("webhook"):
        raise TooMuch(422, "webhook: this server calls no address that a client names")
    _check_settings(said)
    given = said.get("input")
    if isinstance(given, dict) and given:
        _check_input(given)


def _check_settings(said: Mapping[str, Any]) -> None:
    config = said.get("config")
    config = config if isinstance(config, dict) else {}
    steps = config.get("recursion_limit")
    if steps is not None and not (isinstance(steps, int) and 1 <= steps <= MOST_STEPS):
        raise TooMuch(422, f"config.recursion_limit: give 1 to {MOST_STEPS}")
    own = config.get("configurable")
    own = own if isinstance(own, dict) else {}
    known = {k: v for k, v in own.items() if k in Context.model_fields}
    if any(name.startswith("__") for name in own):
        raise TooMuch(422, "config.configurable: names that begin with __ are LangGraph's own")
    context = said.get("context")
    for name, given in (("context", context), ("config.configurable", known)):
        if not isinstance(given, dict) or not given:
            continue
        try:
            Context.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join([name, *map(str, first["loc"])])
            raise TooMuch(422, f"{where}: {first['msg']}") from error


def _check_input(given: dict[str, Any]) -> None:
    """The input of a graph, which its own first node checks again."""
    for name, value in given.items():
        if isinstance(value, list) and len(value) > MOST_ADDED:
            raise TooMuch(422, f"input.{name}: {len(value)} of them; at most {MOST_ADDED}")
    try:
        if "seed" in given:
            checked(given)
        elif "instruction" in given:
            checked_sample(given)
        elif "references" in given:
            checked_references(given)
    except BadInput as error:
        raise TooMuch(422, f"input.{error}") from error
