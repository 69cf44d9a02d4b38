"""Where the calls of a run go: the writer's endpoint and the judge's, or the embedded model."""

from __future__ import annotations

import asyncio
import os

from nodes.llm import ProviderStopped
from nodes.llm.endpoint import Endpoint
from refloom import local
from refloom.errors import InputError
from refloom.settings import Settings, embedded


class Addresses:
    """The endpoints of a run, from its settings and the environment's keys."""

    def __init__(self, settings: Settings) -> None:
        self._base_url = settings.base_url
        self._judge_base_url = settings.judge_base_url or self._base_url
        self._key = os.environ.get("OPENAI_API_KEY", "")
        own_judge = settings.judge_base_url is not None
        for name in ("OPENAI_API_KEY", "JUDGE_API_KEY"):
            key = os.environ.get(name, "")
            if not (key.isascii() and key.isprintable()) or " " in key:
                raise InputError(
                    f"{name}: holds a character that no key has (a line break, a blank, an "
                    "accent?). Set it anew"
                )
        self._judge_key = os.environ.get("JUDGE_API_KEY") or ("" if own_judge else self._key)

    def keys(self) -> list[str]:
        """The secrets in use, so that a log can leave them out."""
        return [key for key in (self._key, self._judge_key) if key]

    async def check(self, settings: Settings) -> None:
        """Raise `ProviderStopped` now if a model of the run has no endpoint at all."""
        for model, judge in ((settings.model, False), (settings.judge, True)):
            if not embedded(model):
                await self.resolve(model, judge)

    def name(self, judge: bool) -> str:
        """What stands for the endpoint in a call's key."""
        return (self._judge_base_url if judge else self._base_url) or "default"

    async def resolve(self, model: str, judge: bool) -> Endpoint:
        """See `nodes.llm.endpoint.Resolve`. Raises `ProviderStopped` if there is no endpoint."""
        if embedded(model):
            return await asyncio.to_thread(local.endpoint, model)
        base_url, key = (
            (self._judge_base_url, self._judge_key) if judge else (self._base_url, self._key)
        )
        if not base_url and not key:
            raise ProviderStopped(
                f"no endpoint for model {model!r}: set OPENAI_BASE_URL and OPENAI_API_KEY, give "
                "--base-url, or use the embedded model with --model local"
            )
        return Endpoint(base_url, key)
