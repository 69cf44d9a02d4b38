"""Who may use the server: the holders of keys, or whoever is on this machine."""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from hashlib import sha256
from ipaddress import ip_address
from typing import Any

LOCAL = "local"
NAME = r"[A-Za-z0-9_.@-]{1,64}"
_ENTRY = re.compile(NAME + ":[0-9a-f]{64}")

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]{1,5})?")

Refusal = tuple[int, str]


class BadKeys(ValueError):
    """REFLOOM_API_KEYS holds what is no name and hash."""


def new_key(name: str) -> tuple[str, str]:
    """A key for `name`, and what the server is told of it: the name and the key's hash."""
    key = f"rk_{secrets.token_urlsafe(32)}"
    return key, f"{name}:{sha256(key.encode()).hexdigest()}"


def configured(text: str | None = None) -> dict[str, str]:
    """The hashes of `REFLOOM_API_KEYS` by name; none means that this machine alone is served.

    Hashes, so that whoever reads the configuration holds no key; keys are long and random, so that
    a plain sha256 tells nothing. Raises `BadKeys`.
    """
    text = os.environ.get("REFLOOM_API_KEYS", "") if text is None else text
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    for number, entry in enumerate(entries, 1):
        if not _ENTRY.fullmatch(entry):
            raise BadKeys(
                f"REFLOOM_API_KEYS: entry {number} is no NAME:HASH; `refloom key NAME` makes one"
            )
    if text.strip() and not entries:
        raise BadKeys("REFLOOM_API_KEYS: it holds no NAME:HASH; `refloom key NAME` makes one")
    keys = dict(entry.split(":", 1) for entry in entries)
    if LOCAL in keys:
        raise BadKeys(f"REFLOOM_API_KEYS: {LOCAL!r} is who asks where there are no keys; rename it")
    if len(keys) < len(entries):
        raise BadKeys("REFLOOM_API_KEYS: a name is there twice; give everybody one key")
    return keys


def holder_of(key: str, keys: Mapping[str, str]) -> str | None:
    """Whose key this is. Every hash is compared, so that time tells nothing."""
    found = sha256(key.encode("utf-8", "replace")).hexdigest()
    names = [name for name, kept in keys.items() if hmac.compare_digest(kept, found)]
    return names[0] if names else None


def user_of(
    headers: Iterable[tuple[Any, Any]], client: str | None, keys: Mapping[str, str]
) -> str | Refusal:
    """Who asks, or the status and reason with which they are refused.

    Without keys only this machine is served: the peer has to be loopback, and so has the name it
    called us by, or any web page could have a browser ask in its own name.
    """
    said = {_text(name).lower(): _text(value) for name, value in headers}
    if not keys:
        if loopback(client) and loopback(_host(said.get("host", ""))):
            return LOCAL
        return 403, "this server answers its own machine only: set REFLOOM_API_KEYS for others"
    scheme, _, token = said.get("authorization", "").partition(" ")
    key = said.get("x-api-key") or (token if scheme.lower() == "bearer" else "")
    if not key.strip():
        return 401, "give a key: Authorization: Bearer KEY, or X-Api-Key: KEY"
    return holder_of(key.strip(), keys) or (401, "this key is not known here")


def asking(scope: Mapping[str, Any], keys: Mapping[str, str]) -> str | Refusal:
    """The same of an ASGI request."""
    client = scope.get("client")
    return user_of(scope["headers"], client[0] if client else None, keys)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _host(header: str) -> str:
    """The name in a Host header, without its port; nothing where it is none."""
    found = _HOST.fullmatch(header)
    return (found[1] or found[2]) if found else ""


def loopback(name: str | None) -> bool:
    """Whether a name or an address means this very machine."""
    if name is None:
        return False
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"
