"""The web app of `refloom review DIR`: the review page over a run directory."""

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
from refloom.data.benchmarks import load_benchmarks
from refloom.errors import InputError, JournalError
from refloom.runs.journal import open_read_only
from refloom.runs.outputs import rewrite_files
from refloom.runs.review_queue import ReviewQueue, UnknownSample, read_wrong_criteria
from refloom.serve.api_keys import LOCAL_USER, identify_request, load_key_hashes
from refloom.serve.request_limits import RequestLimits, require_key
from refloom.serve.review_page import page_routes

# Seconds without a decision before the run's files are rewritten.
REFRESH_DELAY_S = 2.0


def load_run_benchmarks(directory: Path) -> Contamination | None:
    """The benchmarks the run was checked against, to check edited texts too. Blocks.

    Raises `InputError` if their files are gone, `JournalError` if there is no run.
    """
    with open_read_only(directory / "journal.sqlite") as connection:
        row = connection.execute("SELECT value FROM meta WHERE key = 'settings'").fetchone()
    files = json.loads(row[0]).get("benchmark") if row else None
    if not files:
        return None
    try:
        return load_benchmarks(tuple(files))
    except InputError as error:
        raise InputError(
            f"{error}. The run was checked against this file, and edited texts are too"
        ) from error


class FileRefresher:
    """Rewrites the run's files `REFRESH_DELAY_S` after the last decision, and at shutdown."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._decided = asyncio.Event()
        self._stale = False

    def mark_stale(self) -> None:
        """Note that a decision was made."""
        self._stale = True
        self._decided.set()

    async def keep_fresh(self) -> None:
        """Rewrite whenever decisions have paused for a while. Never returns."""
        while True:
            await self._decided.wait()
            self._decided.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_DELAY_S):
                    await self._decided.wait()
                    continue
            if self._stale and not await self.write():
                # A run holds the directory and writes the files itself when it ends; try again.
                self._decided.set()

    async def write(self) -> bool:
        """Rewrite now; False if a run holds the directory."""
        self._stale = not await asyncio.to_thread(rewrite_files, self._directory)
        return not self._stale


class ReviewEndpoints:
    """The endpoints the page calls: the queue, and one sample's view, decision and undo."""

    def __init__(self, reviews: ReviewQueue, files: FileRefresher, keys: dict[str, str]) -> None:
        self._reviews, self._files, self._keys = reviews, files, keys

    async def queue(self, request: Request) -> Response:
        """The samples that wait for review."""
        return await _respond(self._reviews.queue)

    async def item(self, request: Request) -> Response:
        """Show a sample (GET), decide it (POST) or undo its decision (DELETE)."""
        id_ = request.path_params["id"]
        if request.method in ("GET", "HEAD"):
            return await _respond(lambda: self._reviews.item(id_))
        content_type = request.headers.get("content-type", "").split(";")[0]
        if request.method == "POST" and content_type != "application/json":
            # An HTML form of another site can send neither this type nor another method.
            return JSONResponse({"detail": "content-type must be application/json"}, 415)
        self._files.mark_stale()
        if request.method == "DELETE":
            return await _respond(lambda: self._reviews.undo(id_))
        user = identify_request(request.scope, self._keys)
        by = user if isinstance(user, str) and user != LOCAL_USER else None
        body = await request.body()

        def decide() -> dict[str, int]:
            answer = _parse_json(body)
            wrong = read_wrong_criteria(answer)
            return self._reviews.decide(id_, read_decision(answer), by, wrong)

        return await _respond(decide)


def review_app(directory: Path) -> Starlette:
    """Build the app for the run in `directory`. Blocks while it reads.

    Raises `JournalError`, `InputError` or `BadKeys`.
    """
    files, keys = FileRefresher(directory), load_key_hashes()
    endpoints = ReviewEndpoints(ReviewQueue(directory, load_run_benchmarks(directory)), files, keys)

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
            Route("/", _redirect_home),
            *page_routes("run", require_key(keys)),
            Route("/review/queue", endpoints.queue),
            Route("/review/items/{id}", endpoints.item, methods=methods),
        ],
        lifespan=lifespan,
        middleware=[Middleware(RequestLimits)],
    )


async def _redirect_home(request: Request) -> Response:
    return RedirectResponse("/review")


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadDecision("the body is not valid JSON") from error


async def _respond(work: Callable[[], Any]) -> Response:
    """Run blocking `work` in a thread and send its result as JSON, or its error with a status."""
    try:
        body, status = await asyncio.to_thread(work), 200
    except UnknownSample:
        body, status = {"detail": "no sample with this id is waiting or decided"}, 404
    except BadDecision as error:
        body, status = {"detail": str(error)}, 422
    except JournalError as error:
        body, status = {"detail": str(error)}, 503
    # ASCII-only JSON: a lone surrogate in a text does not fail here.
    return Response(json.dumps(body), status, media_type="application/json")
