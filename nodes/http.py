"""Requests to chat completion endpoints over aiohttp.

The OpenAI client's own layers cost several times what a request over aiohttp does, and a run makes
hundreds of thousands of them.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from nodes.quick_json import dumps, loads

TIMEOUT_S = 600.0
# An address that does not even take a connection is told to the caller within seconds.
CONNECT_S = 4.0

# Whatever else keeps an answer away: connections refused, broken, without a certificate.
NOT_CONNECTED = aiohttp.ClientError
NO_CONNECTION_IN_TIME = aiohttp.ConnectionTimeoutError


class Refused(Exception):
    """The endpoint answered with an error: its status, what it said, its headers."""

    def __init__(self, status: int, said: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"status {status}")
        self.status, self.said, self.headers = status, said, headers


class Http:
    """Keeps the connections of one event loop, which it must be made, used and closed in."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            # How many calls are in flight is bounded by whoever makes them.
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=CONNECT_S),
        )
        self._proxies: dict[str, str | None] = {}

    async def post(
        self, url: str, headers: Mapping[str, str], body: Mapping[str, Any]
    ) -> tuple[Any, Mapping[str, str]]:
        """Post JSON; give the answer's JSON and headers.

        Raises `Refused` for a status of 400 or more, `aiohttp.ClientError` or `TimeoutError` when
        there is no answer, `ValueError` when it is no JSON.
        """
        async with self._session.post(
            url,
            data=dumps(body),
            headers=headers,
            proxy=self._proxy(url),
            ssl=await _certificates() if url.startswith("https:") else True,
        ) as reply:
            raw = await reply.read()
        if reply.status >= 400:
            raise Refused(reply.status, raw.decode("utf-8", "replace"), reply.headers)
        return loads(raw), reply.headers

    def _proxy(self, url: str) -> str | None:
        """The proxy that the environment names for an address, looked up once."""
        if url not in self._proxies:
            there = URL(url)
            found = getproxies().get(there.scheme)
            bypassed = found is None or proxy_bypass(f"{there.host}:{there.port}")
            self._proxies[url] = None if bypassed else found
        return self._proxies[url]

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


@cache
def _context() -> ssl.SSLContext:
    from httpx2 import create_ssl_context

    # Those that the OpenAI client trusts: a bare container has none of its own.
    return create_ssl_context()


async def _certificates() -> ssl.SSLContext:
    if not _context.cache_info().currsize:
        await asyncio.to_thread(_context)
    return _context()
