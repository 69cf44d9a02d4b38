"""The review page: its static files, and the rendering of a sample as inert HTML.

Everything in a sample is untrusted. Its Markdown becomes HTML here and nowhere else, without raw
HTML or images and with web links only. The page's Content-Security-Policy is the second barrier.
"""

from __future__ import annotations

import asyncio
import html
import json
import re
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline, image
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from nodes.text_diff import diff

PAGE_DIR = Path(__file__).parent / "page"
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src "
    "'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
LINK_ATTRIBUTES = {"rel": "noopener noreferrer nofollow", "target": "_blank"}
WEB_URL = re.compile(r"https?://", re.IGNORECASE)

# Longer texts are shown as source: markdown-it takes seconds on hostile input, and time quadratic
# in the number of open brackets.
MAX_MARKDOWN_CHARS = 300_000
MAX_BRACKETS = 5_000
MAX_RENDERED_CHARS = 500_000


class MalformedBody(ValueError):
    """A request body that the page would not send."""


class _Attempt(BaseModel):
    response: str


class _Pair(BaseModel):
    id: str = ""
    instruction: str
    response: str
    attempts: list[_Attempt] = Field(default_factory=list)


class DisplayRequest(BaseModel):
    """A sample to render, and the references it was made from."""

    sample: _Pair
    references: list[_Pair] = Field(default_factory=list)


class _Markdown(MarkdownIt):
    """A Markdown parser whose only active output is web links."""

    def validateLink(self, url: str) -> bool:
        """Accept http and https links only."""
        return WEB_URL.match(url) is not None


def _image_as_source(state: StateInline, silent: bool) -> bool:
    start = state.pos
    if not image(state, True):
        return False
    if not silent:
        state.pending += state.src[start : state.pos]
    return True


MARKDOWN = _Markdown("js-default", {"html": False, "linkify": False})
MARKDOWN.inline.ruler.at("image", _image_as_source)


def render_markdown(text: str) -> str:
    """Render untrusted Markdown as inert HTML.

    >>> render_markdown("*so* <b>so</b>").strip()
    '<p><em>so</em> &lt;b&gt;so&lt;/b&gt;</p>'
    """
    if len(text) > MAX_MARKDOWN_CHARS or text.count("[") > MAX_BRACKETS:
        return _as_source(text)
    tokens = MARKDOWN.parse(text)
    for block in tokens:
        for token in (block, *(block.children or ())):
            if token.type == "link_open":
                token.attrs.update(LINK_ATTRIBUTES)
            elif token.type in ("heading_open", "heading_close"):
                # Below the page's own headings.
                token.tag = f"h{min(6, int(token.tag[1]) + 3)}"
            elif (style := token.attrs.pop("style", None)) is not None:
                # The CSP forbids style attributes, which markdown-it uses to align columns.
                token.attrs["class"] = str(style).replace("text-align:", "to-")
    return str(MARKDOWN.renderer.render(tokens, MARKDOWN.options, {}))


def _as_source(text: str) -> str:
    return f'<pre class="plain">{html.escape(text)}</pre>'


def parse_sample(body: bytes) -> DisplayRequest:
    """Parse the page's request. Raises `MalformedBody` with one line that says what is wrong."""
    try:
        return DisplayRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        raise MalformedBody(f"{field}: {first['msg']}") from error


def render_sample(request: DisplayRequest) -> dict[str, Any]:
    """The HTML of a sample and its references, and the changes since its first attempt."""
    sample, budget = request.sample, MAX_RENDERED_CHARS
    pairs: list[dict[str, Any]] = []
    for pair in (sample, *request.references):
        budget -= len(pair.instruction) + len(pair.response)
        show = render_markdown if budget >= 0 else _as_source
        texts = {"instruction": show(pair.instruction), "response": show(pair.response)}
        pairs.append({"id": pair.id, **texts})
    before = sample.attempts[0].response if sample.attempts else sample.response
    return {**pairs[0], "references": pairs[1:], "changes": diff(before, sample.response)}


class PageFiles(StaticFiles):
    """The files of the page, with the headers that keep foreign code out."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Serve a file. Raises `HTTPException` for what is none."""
        response = await super().get_response(path, scope)
        response.headers.update(SECURITY_HEADERS)
        return response


def page_routes(source: str, run: str | None = None) -> list[BaseRoute]:
    """The routes of the page; `source` ("run" or "threads") is where it gets samples from.

    Under the name of a `run` the browser keeps what it could not send.
    They come after other routes below /review. `RequestLimits` stands in front of them.
    """

    async def config(request: Request) -> Response:
        return _json_response(200, {"source": source, "run": run})

    async def show(request: Request) -> Response:
        body = await request.body()
        try:
            return await asyncio.to_thread(
                lambda: _json_response(200, render_sample(parse_sample(body)))
            )
        except MalformedBody as error:
            return _json_response(422, {"detail": str(error)})

    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    async def page_without_slash(request: Request) -> Response:
        # The page's links are relative.
        return RedirectResponse("../review")

    files = PageFiles(directory=PAGE_DIR)
    return [
        Route("/review/config", config),
        Route("/review/shown", show, methods=["POST"]),
        Route("/review", page),
        Route("/review/", page_without_slash),
        Mount("/review", files),
    ]


def _json_response(status: int, content: object) -> Response:
    # ASCII-only JSON: a lone surrogate in a text does not fail here.
    headers = {**SECURITY_HEADERS, "Cache-Control": "no-store"}
    return Response(json.dumps(content), status, headers, "application/json")
