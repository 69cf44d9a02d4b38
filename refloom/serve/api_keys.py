"""API keys of the server: without any, only this machine is served."""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from hashlib import sha256
from ipaddress import ip_address
from typing import Any

LOCAL_USER = "local"
NAME_PATTERN = r"[A-Za-z0-9_.@-]{1,64}"
_ENTRY = re.compile(NAME_PATTERN + ":[0-9a-f]{64}")

_HOST_HEADER = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]{1,5})?")

Refusal = tuple[int, str]


class BadKeys(ValueError):
    """`REFLOOM_API_KEYS` is not a list of NAME:HASH."""


def create_key(name: str) -> tuple[str, str]:
    """A new key for `name`, and its NAME:HASH entry for `REFLOOM_API_KEYS`."""
    key = f"rk_{secrets.token_urlsafe(32)}"
    return key, f"{name}:{sha256(key.encode()).hexdigest()}"


def load_key_hashes(text: str | None = None) -> dict[str, str]:
    """The key hashes of `REFLOOM_API_KEYS` (or `text`) by name; an empty dict: this machine only.

    Hashes, so that the configuration holds no key. Keys are long and random, so a plain sha256
    cannot be reversed. Raises `BadKeys`.
    """
    text = os.environ.get("REFLOOM_API_KEYS", "") if text is None else text
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    for number, entry in enumerate(entries, 1):
        if not _ENTRY.fullmatch(entry):
            raise BadKeys(
                f"REFLOOM_API_KEYS: entry {number} is not NAME:HASH; `refloom key NAME` makes one"
            )
    if text.strip() and not entries:
        raise BadKeys("REFLOOM_API_KEYS has no NAME:HASH entry; `refloom key NAME` makes one")
    keys = dict(entry.split(":", 1) for entry in entries)
    if LOCAL_USER in keys:
        raise BadKeys(
            f"REFLOOM_API_KEYS: {LOCAL_USER!r} is reserved for a server without keys; rename it"
        )
    if len(keys) < len(entries):
        raise BadKeys("REFLOOM_API_KEYS names somebody twice; give each user one key")
    return keys


def find_holder(key: str, keys: Mapping[str, str]) -> str | None:
    """The name of the key's holder, or None. Compares every hash, so that timing leaks nothing."""
    digest = sha256(key.encode("utf-8", "replace")).hexdigest()
    names = [name for name, known in keys.items() if hmac.compare_digest(known, digest)]
    return names[0] if names else None


def identify(
    headers: Iterable[tuple[Any, Any]], client: str | None, keys: Mapping[str, str]
) -> str | Refusal:
    """The user a request comes from, or the HTTP status and reason of its refusal.

    Without keys only this machine is served: both the peer's address and the Host header must be
    loopback. The Host check stops DNS rebinding, where a web page makes a browser send the request.
    """
    received = {_decode(name).lower(): _decode(value) for name, value in headers}
    if not keys:
        if is_loopback(client) and is_loopback(_host_name(received.get("host", ""))):
            return LOCAL_USER
        return 403, "this server answers its own machine only; set REFLOOM_API_KEYS to serve others"
    scheme, _, token = received.get("authorization", "").partition(" ")
    key = received.get("x-api-key") or (token if scheme.lower() == "bearer" else "")
    if not key.strip():
        return 401, "no API key: send Authorization: Bearer KEY, or X-Api-Key: KEY"
    return find_holder(key.strip(), keys) or (401, "unknown API key")


def identify_request(scope: Mapping[str, Any], keys: Mapping[str, str]) -> str | Refusal:
    """`identify` for an ASGI scope."""
    client = scope.get("client")
    return identify(scope["headers"], client[0] if client else None, keys)


def _decode(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _host_name(header: str) -> str:
    """The host of a Host header, without its port; empty if the header is malformed."""
    match = _HOST_HEADER.fullmatch(header)
    return (match[1] or match[2]) if match else ""


def is_loopback(name: str | None) -> bool:
    """Whether a host name or address is this machine's loopback."""
    if name is None:
        return False
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"
