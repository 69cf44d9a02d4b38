"""The web app of `refloom review DIR`: the review page over a run directory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from memory.contamination import Contamination
from memory.references import content_id
from nodes.decisions import BadDecision, read_decision
from refloom.data.benchmarks import load_benchmarks
from refloom.errors import InputError, JournalError
from refloom.runs.journal import open_read_only
from refloom.runs.outputs import rewrite_files
from refloom.runs.review_figures import review_figures
from refloom.runs.review_queue import Conflict, ReviewQueue, UnknownSample, read_wrong_ids
from refloom.serve.api_keys import LOCAL_USER, identify_request, load_key_hashes
from refloom.serve.request_limits import RequestLimits
from refloom.serve.review_page import page_routes

# Seconds without a decision before the run's files are rewritten.
REFRESH_DELAY_S = 2.0
# Why people most often reject a sample: what the keys 1 to 9 give without a file of reasons.
DEFAULT_REASONS = (
    "It is wrong in fact.",
    "It does not do what the instruction asks.",
    "It is incomplete.",
    "It is too long or repeats itself.",
    "It is badly written or badly laid out.",
    "The code does not work.",
    "It makes something up.",
    "The instruction is unclear or no good.",
    "It is unsafe or not for training.",
)


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
    """The endpoints the page calls: lists, one sample's view and decision, marks and figures.

    `reviewer` decides where no key names somebody; `reasons` are offered for a rejection.
    """

    def __init__(
        self,
        directory: Path,
        files: FileRefresher,
        keys: dict[str, str],
        reviewer: str | None,
        reasons: Sequence[str],
    ) -> None:
        self._directory, self._files, self._keys = directory, files, keys
        self._reviewer, self._reasons = reviewer, list(reasons)
        self._reviews = ReviewQueue(directory, load_run_benchmarks(directory))

    def routes(self) -> list[Route]:
        """The routes of the endpoints."""
        item = "/review/items/{id}"
        return [
            Route("/review/queue", self.queue),
            Route("/review/decided", self.decided),
            Route("/review/search", self.search),
            Route("/review/figures", self.figures),
            Route(item, self.item),
            Route(item, self.decide, methods=["POST"]),
            Route(item, self.undo, methods=["DELETE"]),
            Route(f"{item}/check", self.check, methods=["POST"]),
            Route(f"{item}/marks", self.mark, methods=["POST"]),
        ]

    def close(self) -> None:
        """Leave the journal as one file. Raises `JournalError`."""
        self._reviews.close()

    def _by(self, request: Request) -> str | None:
        user = identify_request(request.scope, self._keys)
        return user if isinstance(user, str) and user != LOCAL_USER else self._reviewer

    async def queue(self, request: Request) -> Response:
        """The samples that wait for review, who reviews, and the reasons offered."""
        by = self._by(request)
        more = {"by": by, "reasons": self._reasons}
        return await _respond(lambda: {**self._reviews.queue(by), **more})

    async def decided(self, request: Request) -> Response:
        """The samples that are decided, the newest first."""
        return await _respond(lambda: {"items": self._reviews.decided(self._by(request))})

    async def search(self, request: Request) -> Response:
        """The ids of the listed samples that have all words of `text`."""
        text = request.query_params.get("text", "")
        return await _respond(lambda: {"ids": self._reviews.search(text)})

    async def figures(self, request: Request) -> Response:
        """The figures of all decisions, and the commands to go on with."""
        steps = _next_steps(self._directory)
        return await _respond(lambda: {**review_figures(self._directory), "steps": steps})

    async def item(self, request: Request) -> Response:
        """A sample with its references, and its decision if it has one."""
        return await _respond(lambda: self._reviews.item(request.path_params["id"]))

    async def decide(self, request: Request) -> Response:
        """Decide a sample."""
        by = self._by(request)

        def work(id_: str, answer: Any) -> dict[str, int]:
            counts = self._reviews.decide(
                id_,
                read_decision(answer),
                by,
                read_wrong_ids(answer, "wrong_criteria"),
                read_wrong_ids(answer, "wrong_verdicts"),
                revise=isinstance(answer, dict) and answer.get("revise") is True,
            )
            self._files.mark_stale()
            return counts

        return await _respond_to_json(request, work)

    async def check(self, request: Request) -> Response:
        """Say with 422 why a decision could not be applied."""

        def work(id_: str, answer: Any) -> dict[str, bool]:
            self._reviews.check(id_, read_decision(answer))
            return {"ok": True}

        return await _respond_to_json(request, work)

    async def mark(self, request: Request) -> Response:
        """Skip or flag a sample, or take that back: `{"kind": "skip" | "flag", "on": bool}`."""
        by = self._by(request)

        def work(id_: str, answer: Any) -> dict[str, bool]:
            kind = answer.get("kind") if isinstance(answer, dict) else None
            on = answer.get("on") if isinstance(answer, dict) else None
            if kind not in ("skip", "flag") or not isinstance(on, bool):
                raise BadDecision('A mark is {"kind": "skip" or "flag", "on": true or false}.')
            self._reviews.mark(id_, kind, on, by)
            return {"ok": True}

        return await _respond_to_json(request, work)

    async def undo(self, request: Request) -> Response:
        """Undo the decision of a sample."""

        def work() -> dict[str, int]:
            counts = self._reviews.undo(request.path_params["id"])
            self._files.mark_stale()
            return counts

        return await _respond(work)


def _next_steps(directory: Path) -> list[dict[str, str]]:
    """What to do after a review, each with its command."""
    folder = shlex.quote(str(directory))
    file = shlex.quote(f"{directory.resolve().name or 'run'}.jsonl")
    return [
        {
            "what": "Export the accepted samples",
            "command": f"refloom export {folder} {file} --format messages",
        },
        {"what": "See the run as a whole", "command": f"refloom report {folder}"},
        {
            "what": "See how far the judge is to be trusted",
            "command": f"refloom judge-check {folder}",
        },
    ]


def review_app(
    directory: Path, reviewer: str | None = None, reasons: Sequence[str] = DEFAULT_REASONS
) -> Starlette:
    """Build the app for the run in `directory`. Blocks while it reads.

    `reviewer` stands with the decisions of whoever has no key; `reasons` are offered for a
    rejection. Raises `JournalError`, `InputError` or `BadKeys`.
    """
    files, keys = FileRefresher(directory), load_key_hashes()
    endpoints = ReviewEndpoints(directory, files, keys, reviewer, reasons)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        writing = asyncio.create_task(files.keep_fresh())
        try:
            yield
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await files.write()
            await asyncio.to_thread(endpoints.close)

    return Starlette(
        routes=[
            Route("/", _redirect_home),
            *endpoints.routes(),
            # By its directory, since runs of the same seeds have the same ids of samples.
            *page_routes("run", content_id(str(directory.resolve()))),
        ],
        lifespan=lifespan,
        middleware=[Middleware(RequestLimits)],
    )


async def _redirect_home(request: Request) -> Response:
    return RedirectResponse("/review")


async def _respond_to_json(request: Request, work: Callable[[str, Any], Any]) -> Response:
    """`_respond` with the work on the sample's id and a JSON body; 415 for another type."""
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        # An HTML form of another site can send neither this type nor another method.
        return JSONResponse({"detail": "content-type must be application/json"}, 415)
    body = await request.body()
    return await _respond(lambda: work(request.path_params["id"], _parse_json(body)))


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
    except Conflict as error:
        body, status = {"detail": str(error)}, 409
    except JournalError as error:
        body, status = {"detail": str(error)}, 503
    # ASCII-only JSON: a lone surrogate in a text does not fail here.
    return Response(json.dumps(body), status, media_type="application/json")
