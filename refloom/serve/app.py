"""What refloom adds to a LangGraph server: warm-up, /readyz, the review page, and bounds."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from importlib import import_module

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from graph.defaults import shared_search
from refloom.serve import stay_offline
from refloom.serve.api_keys import configured
from refloom.serve.request_limits import Bounds, authorising
from refloom.serve.review_page import page_routes

stay_offline()
AGAIN_S = 5.0


class WarmUp:
    """Loads index and embedding model beside the serving, and tries again when asked later."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._began = 0.0

    def begin(self) -> None:
        """Load in the background."""
        self._began = time.monotonic()
        self._task = asyncio.create_task(_load())

    async def end(self) -> None:
        """Stop loading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def state(self) -> tuple[int, dict[str, object]]:
        """The status and body of /readyz; the references are those of the index searched last."""
        task = self._task
        if task is None or not task.done():
            return 503, {"ready": False, "why": "the index is being loaded"}
        failed = None if task.cancelled() else task.exception()
        if failed is not None:
            if time.monotonic() - self._began > AGAIN_S:
                self.begin()
            return 503, {"ready": False, "why": f"{type(failed).__name__}: {failed}"}
        return 200, {"ready": True, "references": shared_search().count}


async def _load() -> None:
    """Open the index, embed a word."""
    # What the first model call would import.
    await asyncio.to_thread(import_module, "nodes.llm.tracing")
    search = shared_search()
    await search.current()
    await search.embed(["warm"])


warm_up = WarmUp()


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Begin to warm up as the server starts; it serves meanwhile."""
    warm_up.begin()
    try:
        yield
    finally:
        await warm_up.end()


async def readyz(request: Request) -> Response:
    """Whether the first request would find index and model loaded."""
    status, said = warm_up.state()
    return JSONResponse(said, status)


# Read now, so that keys nobody can read stop the server and do not leave it open.
KEYS = configured()

# A FastAPI, since Aegra takes nothing else; langgraph's own server takes both.
app = FastAPI(
    routes=[Route("/readyz", readyz), *page_routes("threads", authorising(KEYS))],
    lifespan=lifespan,
    middleware=[Middleware(Bounds)],
    openapi_url=None,
)
