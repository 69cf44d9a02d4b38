"""LangGraph `Auth`: who a request comes from, and which threads and assistants they see."""

from __future__ import annotations

from typing import Any

from langgraph_sdk import Auth

from refloom.serve import stay_offline
from refloom.serve.api_keys import identify, load_key_hashes

stay_offline()
auth = Auth()
KEY_HASHES = load_key_hashes()
# Marks the assistants made from langgraph.json: every user may read and run them, none may change.
SYSTEM_OWNED = {"created_by": "system"}


@auth.authenticate
async def authenticate(headers: dict[Any, Any]) -> dict[str, Any]:
    """The holder of the key; without configured keys, the user of this machine.

    `refloom.serve.request_limits` has already checked that the request comes from this machine.
    """
    user = identify(headers.items(), "127.0.0.1", KEY_HASHES)
    if not isinstance(user, str):
        status, reason = user
        raise Auth.exceptions.HTTPException(status_code=status, detail=reason)
    return {"identity": user, "is_authenticated": True}


@auth.on
async def nothing_else(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> bool:
    """Deny the store and crons to clients; only the graphs use them."""
    return False


@auth.on.threads
async def own_threads(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> dict[str, Any]:
    """A thread and its runs belong to the user who created it."""
    return _owned(ctx, value)


@auth.on.assistants
async def own_assistants(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> Any:
    """An assistant belongs to its creator; everybody may read those of langgraph.json."""
    if ctx.action in ("read", "search"):
        return {"$or": [{"owner": ctx.user.identity}, SYSTEM_OWNED]}
    return _owned(ctx, value)


def _owned(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> dict[str, Any]:
    owner = {"owner": ctx.user.identity}
    if ctx.action in ("create", "create_run", "update"):
        # Changed in place: the server keeps using this dictionary.
        metadata = value.get("metadata")
        if metadata is None:
            metadata = value["metadata"] = {}
        for name in SYSTEM_OWNED:
            metadata.pop(name, None)
        metadata.update(owner)
    return owner
