"""The ASGI app mounted in a LangGraph server: warm-up, /readyz, review page, request limits."""

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
from refloom.serve.api_keys import load_key_hashes
from refloom.serve.request_limits import RequestLimits
from refloom.serve.review_page import page_routes

stay_offline()
RETRY_S = 5.0


class WarmUp:
    """Loads the index and the embedding model in the background; retries after a failure."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._began = 0.0

    def begin(self) -> None:
        """Start loading in the background."""
        self._began = time.monotonic()
        self._task = asyncio.create_task(_warm_up())

    async def end(self) -> None:
        """Stop loading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def state(self) -> tuple[int, dict[str, object]]:
        """Status and body of /readyz; `references` counts those of the index searched last."""
        task = self._task
        if task is None or not task.done():
            return 503, {"ready": False, "why": "the index is being loaded"}
        error = None if task.cancelled() else task.exception()
        if error is not None:
            if time.monotonic() - self._began > RETRY_S:
                self.begin()
            return 503, {"ready": False, "why": f"{type(error).__name__}: {error}"}
        return 200, {"ready": True, "references": shared_search().count}


async def _warm_up() -> None:
    """Open the index and embed one word, so that the first request waits for neither."""
    # The first model call would import this.
    await asyncio.to_thread(import_module, "nodes.llm.tracing")
    search = shared_search()
    await search.current()
    await search.embed(["warm"])


warm_up = WarmUp()


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start the warm-up with the server, which serves meanwhile."""
    warm_up.begin()
    try:
        yield
    finally:
        await warm_up.end()


async def readyz(request: Request) -> Response:
    """Say whether index and embedding model are loaded."""
    status, body = warm_up.state()
    return JSONResponse(body, status)


# Read at import: malformed keys stop the server here instead of leaving it open.
load_key_hashes()

# FastAPI, because Aegra accepts nothing else; LangGraph's own server accepts any ASGI app.
app = FastAPI(
    routes=[Route("/readyz", readyz), *page_routes("threads")],
    lifespan=lifespan,
    middleware=[Middleware(RequestLimits)],
    openapi_url=None,
)
