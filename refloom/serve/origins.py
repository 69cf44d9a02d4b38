"""Which sites' pages may call the server, and what a browser is told of it (CORS)."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

ORIGINS_VARIABLE = "REFLOOM_ORIGINS"
_ORIGIN = re.compile(r"https?://[^/\s*]+")
# Refused origins that are written to the log, once each.
MAX_LOGGED = 100

log = logging.getLogger(__name__)


class BadOrigins(ValueError):
    """The origins in the settings are malformed; the message says which and where."""


@dataclass(slots=True)
class AllowedOrigins:
    """The origins that may call beside the server's own, and the options of `CORSMiddleware`."""

    origins: frozenset[str] = frozenset()
    options: dict[str, Any] = field(default_factory=dict)
    _logged: set[str] = field(default_factory=set)

    @classmethod
    def load(cls) -> AllowedOrigins:
        """Those of `http.cors` in langgraph.json, and of `REFLOOM_ORIGINS` by commas. Blocks.

        Raises `BadOrigins` for what is no origin. `*` is none: a server without keys would answer
        every page.
        """
        options = dict(_read_cors())
        listed = [(one, "http.cors.allow_origins") for one in options.pop("allow_origins", [])]
        variable = os.environ.get(ORIGINS_VARIABLE, "")
        listed += [(one, ORIGINS_VARIABLE) for one in variable.split(",") if one.strip()]
        origins = set()
        for entry, place in listed:
            origin = entry.strip().rstrip("/")
            if not _ORIGIN.fullmatch(origin):
                raise BadOrigins(f"{place}: {entry!r} is not an origin such as https://example.org")
            origins.add(origin)
        if options.pop("allow_origin_regex", None):
            raise BadOrigins("http.cors.allow_origin_regex is not read: list the origins")
        return cls(frozenset(origins), options)

    def refuse(self, scope: Scope) -> str | None:
        """Why the page that sends a request may not call; None if it may, or is no page.

        Browsers always send the origin of a page with a request that may change something.
        """
        origin = _header(scope, b"origin")
        same = origin.partition("://")[2] == _header(scope, b"host")
        if not origin or same or origin in self.origins:
            return None
        refusal = (
            f"a page of {origin[:200]} may not call this server: add it to http.cors.allow_origins "
            f"in langgraph.json, or to {ORIGINS_VARIABLE}"
        )
        if origin not in self._logged and len(self._logged) < MAX_LOGGED:
            self._logged.add(origin)
            log.warning("%s", refusal)
        return refusal


class Cors:
    """Tells browsers which pages may call, and refuses the preflight of any other by name.

    It stands in front of `RequestLimits`, so that a page that may call can read a refusal too.
    """

    def __init__(self, app: ASGIApp, origins: AllowedOrigins) -> None:
        self.app, self.origins = app, origins
        options = {"allow_methods": ["*"], "allow_headers": ["*"], **origins.options}
        # A listed site on the internet, such as Studio, may call a server on this machine.
        options["allow_private_network"] = True
        self.cors = CORSMiddleware(app, allow_origins=sorted(origins.origins), **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with the headers for an allowed origin."""
        if scope["type"] != "http" or str(scope.get("root_path") or "").startswith("/noauth"):
            await self.app(scope, receive, send)
            return
        asked = _header(scope, b"access-control-request-method")
        refusal = self.origins.refuse(scope) if scope["method"] == "OPTIONS" and asked else None
        if refusal is not None:
            await PlainTextResponse(refusal, 403)(scope, receive, send)
            return
        await self.cors(scope, receive, send)


def _header(scope: Scope, name: bytes) -> str:
    value: bytes = dict(scope["headers"]).get(name, b"")
    return value.decode("latin-1")


def _read_cors() -> Mapping[str, Any]:
    """The object `http.cors` of langgraph.json.

    LangGraph's server hands it on in its environment; of another, the file itself is read.
    """
    text = os.environ.get("LANGGRAPH_HTTP")
    if text:
        http = json.loads(text)
    else:
        path = Path(os.environ.get("AEGRA_CONFIG") or "langgraph.json")
        http = json.loads(path.read_text(encoding="utf-8")).get("http") if path.is_file() else None
    cors = http.get("cors") if isinstance(http, dict) else None
    return cors if isinstance(cors, dict) else {}
