"""The review page: its files, and what it asks of the server to show a sample.

Everything a sample holds is untrusted. Its Markdown becomes HTML here and nowhere else: without raw
HTML, without images, with web links only; the page's Content-Security-Policy is the second wall.
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

from nodes.text_diff import changes

Authorise = Callable[[Request], Awaitable[Response | None]]

FILES = Path(__file__).parent / "page"
# Every name that is served, and nothing else of the disk.
TYPES = {
    ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"
}  # fmt: skip
NAMES = (
    "index.html", "review.css", "icon.svg", "main.js", "api.js", "desk.js", "dialogs.js", "dom.js",
    "editor.js", "evidence.js", "keys.js", "outbox.js", "queue.js", "references.js", "response.js",
    "run.js", "sample.js", "threads.js", "verdicts.js",
)  # fmt: skip
ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><rect width="9" height="9"
rx="2" fill="#2b5f75"/><path d="M2.3 4.8l1.5 1.5L6.7 3" fill="none" stroke="#fff"/></svg>"""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src "
    "'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
LINK = {"rel": "noopener noreferrer nofollow", "target": "_blank"}
WEB = re.compile(r"https?://", re.IGNORECASE)

MOST_BYTES = 8 << 20
# Beyond these a text is shown as its source: markdown-it needs seconds for what is made to be slow,
# and quadratic time for open brackets.
MOST_MARKDOWN = 300_000
MOST_BRACKETS = 5_000
MOST_RENDERED = 500_000


class Malformed(ValueError):
    """A body that is not what the page sends."""


class _Attempt(BaseModel):
    response: str


class _Pair(BaseModel):
    id: str = ""
    instruction: str
    response: str
    attempts: list[_Attempt] = Field(default_factory=list)


class Asked(BaseModel):
    """What the page wants to see: a sample, and the references it was made from."""

    sample: _Pair
    references: list[_Pair] = Field(default_factory=list)


class _Markdown(MarkdownIt):
    """Markdown that can only make text: web links at most."""

    def validateLink(self, url: str) -> bool:
        """Keep links to the web only."""
        return WEB.match(url) is not None


def _image_as_source(state: StateInline, silent: bool) -> bool:
    start = state.pos
    if not image(state, True):
        return False
    if not silent:
        state.pending += state.src[start : state.pos]
    return True


MARKDOWN = _Markdown("js-default", {"html": False, "linkify": False})
MARKDOWN.inline.ruler.at("image", _image_as_source)


def rendered(text: str) -> str:
    """Make inert HTML of untrusted Markdown.

    >>> rendered("*so* <b>so</b>").strip()
    '<p><em>so</em> &lt;b&gt;so&lt;/b&gt;</p>'
    """
    if len(text) > MOST_MARKDOWN or text.count("[") > MOST_BRACKETS:
        return _plain(text)
    tokens = MARKDOWN.parse(text)
    for block in tokens:
        for token in (block, *(block.children or ())):
            if token.type == "link_open":
                token.attrs.update(LINK)
            elif token.type in ("heading_open", "heading_close"):
                # The page's own headings come first in its outline.
                token.tag = f"h{min(6, int(token.tag[1]) + 3)}"
            elif (style := token.attrs.pop("style", None)) is not None:
                # The page's policy forbids style attributes; markdown-it aligns columns by them.
                token.attrs["class"] = str(style).replace("text-align:", "to-")
    return str(MARKDOWN.renderer.render(tokens, MARKDOWN.options, {}))


def _plain(text: str) -> str:
    return f'<pre class="plain">{html.escape(text)}</pre>'


def asked(body: bytes) -> Asked:
    """Read what the page sent; says in one line what is wrong with it."""
    try:
        return Asked.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise Malformed(f"{where}: {first['msg']}") from error


def shown(given: Asked) -> dict[str, Any]:
    """Everything of a sample that the page shows as HTML, and how its response came about."""
    sample, left = given.sample, MOST_RENDERED
    pairs: list[dict[str, Any]] = []
    for pair in (sample, *given.references):
        left -= len(pair.instruction) + len(pair.response)
        show = rendered if left >= 0 else _plain
        texts = {"instruction": show(pair.instruction), "response": show(pair.response)}
        pairs.append({"id": pair.id, **texts})
    before = sample.attempts[0].response if sample.attempts else sample.response
    return {**pairs[0], "references": pairs[1:], "changes": changes(before, sample.response)}


async def _body(request: Request) -> bytes | None:
    """The body, or None as soon as it is too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            return None
    return bytes(body)


def _answer(status: int, content: object) -> Response:
    # ASCII, so that half a surrogate pair in a text is no error here.
    headers = {**HEADERS, "Cache-Control": "no-store"}
    return Response(json.dumps(content), status, headers, "application/json")


def _file(name: str) -> Route:
    content = ICON if name == "icon.svg" else (FILES / name).read_text(encoding="utf-8")
    path = "/review" if name == "index.html" else f"/review/{name}"

    async def serve(request: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=TYPES[Path(name).suffix])

    return Route(path, serve)


def page_routes(source: str, authorise: Authorise | None = None) -> list[Route]:
    """The routes of the page; `source` tells it where samples wait and decisions go.

    The files are read now, so a request names one of them or nothing. `authorise` is awaited before
    a sample is shown; the refusal it may return is sent instead.
    """

    async def config(request: Request) -> Response:
        return _answer(200, {"source": source})

    async def show(request: Request) -> Response:
        if authorise and (refusal := await authorise(request)) is not None:
            return refusal
        body = await _body(request)
        if body is None:
            return _answer(413, {"detail": f"the body is over {MOST_BYTES >> 20} MB"})
        try:
            return await asyncio.to_thread(lambda: _answer(200, shown(asked(body))))
        except Malformed as error:
            return _answer(422, {"detail": str(error)})

    return [
        Route("/review/config", config),
        Route("/review/shown", show, methods=["POST"]),
        *map(_file, NAMES),
    ]
