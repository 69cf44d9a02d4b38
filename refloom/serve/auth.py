"""LangGraph's door: who asks, and whose threads and assistants they see."""

from __future__ import annotations

from typing import Any

from langgraph_sdk import Auth

from refloom.serve import stay_offline
from refloom.serve.api_keys import configured, user_of

stay_offline()
auth = Auth()
KEYS = configured()
# What every user sees and runs, and nobody changes: the assistants made of langgraph.json.
OURS = {"created_by": "system"}


@auth.authenticate
async def authenticate(headers: dict[Any, Any]) -> dict[str, Any]:
    """The holder of the key, or whoever is on this machine where there are no keys.

    That it is this machine was seen to by `refloom.serve.request_limits`, before this.
    """
    user = user_of(headers.items(), "127.0.0.1", KEYS)
    if not isinstance(user, str):
        status, why = user
        raise Auth.exceptions.HTTPException(status_code=status, detail=why)
    return {"identity": user, "is_authenticated": True}


@auth.on
async def nothing_else(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> bool:
    """No store, no crons: the graphs alone have business there."""
    return False


@auth.on.threads
async def own_threads(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> dict[str, Any]:
    """A thread and its runs belong to whoever made it."""
    return _owned(ctx, value)


@auth.on.assistants
async def own_assistants(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> Any:
    """An assistant belongs to whoever made it; the graphs' own may be read by all."""
    if ctx.action in ("read", "search"):
        return {"$or": [{"owner": ctx.user.identity}, OURS]}
    return _owned(ctx, value)


def _owned(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> dict[str, Any]:
    owner = {"owner": ctx.user.identity}
    if ctx.action in ("create", "create_run", "update"):
        # In its place: the server goes on with the very dictionary.
        metadata = value.get("metadata")
        if metadata is None:
            metadata = value["metadata"] = {}
        for name in OURS:
            metadata.pop(name, None)
        metadata.update(owner)
    return owner
