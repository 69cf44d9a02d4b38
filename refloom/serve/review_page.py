"""The review page: its static files, and the rendering of a sample as inert HTML.

Everything in a sample is untrusted. Its Markdown becomes HTML here and nowhere else, without raw
HTML or images and with web links only. The page's Content-Security-Policy is the second barrier.
"""

from __future__ import annotations

import asyncio
import html
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline, image
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nodes.text_diff import diff

Authorise = Callable[[Request], Awaitable[Response | None]]

PAGE_DIR = Path(__file__).parent / "page"
# The only files that are served.
MEDIA_TYPES = {
    ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"
}  # fmt: skip
PAGE_FILES = (
    "index.html", "review.css", "icon.svg", "main.js", "api.js", "dialogs.js", "dom.js",
    "editor.js", "evidence.js", "keys.js", "outbox.js", "queue.js", "references.js", "response.js",
    "run_source.js", "sample.js", "store.js", "thread_source.js", "verdicts.js",
)  # fmt: skip
ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><rect width="9" height="9"
rx="2" fill="#2b5f75"/><path d="M2.3 4.8l1.5 1.5L6.7 3" fill="none" stroke="#fff"/></svg>"""
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

MAX_BODY_BYTES = 8 << 20
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


async def _read_body(request: Request) -> bytes | None:
    """Read the body; None as soon as it is over `MAX_BODY_BYTES`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _json_response(status: int, content: object) -> Response:
    # ASCII-only JSON: a lone surrogate in a text does not fail here.
    headers = {**SECURITY_HEADERS, "Cache-Control": "no-store"}
    return Response(json.dumps(content), status, headers, "application/json")


def _file_route(name: str) -> Route:
    content = ICON if name == "icon.svg" else (PAGE_DIR / name).read_text(encoding="utf-8")
    path = "/review" if name == "index.html" else f"/review/{name}"

    async def serve(request: Request) -> Response:
        return Response(
            content, headers=SECURITY_HEADERS, media_type=MEDIA_TYPES[Path(name).suffix]
        )

    return Route(path, serve)


def page_routes(source: str, authorise: Authorise | None = None) -> list[Route]:
    """The routes of the page; `source` ("run" or "threads") is where it gets samples from.

    The files are read here, so no request can name another. `authorise` is awaited before a sample
    is rendered; a response it returns is sent instead.
    """

    async def config(request: Request) -> Response:
        return _json_response(200, {"source": source})

    async def show(request: Request) -> Response:
        if authorise and (refusal := await authorise(request)) is not None:
            return refusal
        body = await _read_body(request)
        if body is None:
            return _json_response(413, {"detail": f"the body is over {MAX_BODY_BYTES >> 20} MB"})
        try:
            return await asyncio.to_thread(
                lambda: _json_response(200, render_sample(parse_sample(body)))
            )
        except MalformedBody as error:
            return _json_response(422, {"detail": str(error)})

    return [
        Route("/review/config", config),
        Route("/review/shown", show, methods=["POST"]),
        *map(_file_route, PAGE_FILES),
    ]
