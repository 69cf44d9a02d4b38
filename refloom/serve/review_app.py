"""The review page over a run's directory: `refloom review DIR`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from memory.contamination import Contamination
from nodes.decisions import BadDecision, read_decision
from refloom.data.benchmarks import benchmarks
from refloom.errors import InputError, JournalError
from refloom.runs.journal import reading
from refloom.runs.outputs import refresh
from refloom.runs.review_queue import NoSuchSample, Reviews
from refloom.serve.api_keys import LOCAL, asking, configured
from refloom.serve.request_limits import Bounds, authorising
from refloom.serve.review_page import page_routes

# Seconds without a decision after which the run's files are written anew.
QUIET_S = 2.0


def contamination_of(directory: Path) -> Contamination | None:
    """The benchmarks a run was checked against; edited texts are checked against them too.

    Raises `InputError` when their files are gone, `JournalError` when there is no run. Blocks.
    """
    with reading(directory / "journal.sqlite") as connection:
        found = connection.execute("SELECT value FROM meta WHERE key = 'settings'").fetchone()
    files = json.loads(found[0]).get("benchmark") if found else None
    if not files:
        return None
    try:
        return benchmarks(tuple(files))
    except InputError as error:
        raise InputError(
            f"{error}. The run was checked against it, and edited texts have to be as well"
        ) from error


class Files:
    """Writes the run's files anew, a moment after the last decision and in the end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._decided = asyncio.Event()
        self._stale = False

    def decided(self) -> None:
        """Take note of a decision."""
        self._stale = True
        self._decided.set()

    async def keep_fresh(self) -> None:
        """Write when decisions have been made and none has come for a while; never returns."""
        while True:
            await self._decided.wait()
            self._decided.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET_S):
                    await self._decided.wait()
                    continue
            if self._stale and not await self.write():
                # A run is at work and will write them when it ends; look again then.
                self._decided.set()

    async def write(self) -> bool:
        """Write now; False if a run holds the directory."""
        self._stale = not await asyncio.to_thread(refresh, self._directory)
        return not self._stale


class Decisions:
    """What the page asks of a run's samples."""

    def __init__(self, reviews: Reviews, files: Files, keys: dict[str, str]) -> None:
        self._reviews, self._files, self._keys = reviews, files, keys

    async def queue(self, request: Request) -> Response:
        """The samples that wait."""
        return await _answered(self._reviews.queue)

    async def item(self, request: Request) -> Response:
        """One sample: shown, decided, or taken back."""
        id_ = request.path_params["id"]
        if request.method in ("GET", "HEAD"):
            return await _answered(lambda: self._reviews.item(id_))
        plain = request.headers.get("content-type", "").split(";")[0] != "application/json"
        if request.method == "POST" and plain:
            # No form of another site's can say so, nor send anything but a POST.
            return JSONResponse({"detail": "content-type: application/json is needed"}, 415)
        self._files.decided()
        if request.method == "DELETE":
            return await _answered(lambda: self._reviews.undo(id_))
        user = asking(request.scope, self._keys)
        by = user if isinstance(user, str) and user != LOCAL else None
        body = await request.body()
        return await _answered(lambda: self._reviews.decide(id_, read_decision(_json(body)), by))


def desk(directory: Path) -> Starlette:
    """The page and the decisions of the run in `directory`. Blocks while it reads.

    Raises `JournalError`, `InputError` or `BadKeys`.
    """
    files, keys = Files(directory), configured()
    asked = Decisions(Reviews(directory, contamination_of(directory)), files, keys)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        writing = asyncio.create_task(files.keep_fresh())
        try:
            yield
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await files.write()

    methods = ["GET", "POST", "DELETE"]
    return Starlette(
        routes=[
            Route("/", _home),
            *page_routes("run", authorising(keys)),
            Route("/review/queue", asked.queue),
            Route("/review/items/{id}", asked.item, methods=methods),
        ],
        lifespan=lifespan,
        middleware=[Middleware(Bounds)],
    )


async def _home(request: Request) -> Response:
    return RedirectResponse("/review")


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadDecision("the body is no JSON") from error


async def _answered(work: Callable[[], Any]) -> Response:
    """What blocking work brings, as JSON; what is wrong with a request, with its status."""
    try:
        said, status = await asyncio.to_thread(work), 200
    except NoSuchSample:
        said, status = {"detail": "no sample of this id waits or was decided"}, 404
    except BadDecision as error:
        said, status = {"detail": str(error)}, 422
    except JournalError as error:
        said, status = {"detail": str(error)}, 503
    # ASCII, so that half a surrogate pair in a text is no error here.
    return Response(json.dumps(said), status, media_type="application/json")
