"""A worker of a run: it has its own graph, client and index; scheduler, journal and limits do not.

Every hook of the graph that needs the scheduler, the journal or a budget is a request to the run's
process. So a worker makes the rows that the run itself would have made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from graph.builder import build_graph
from memory.characteristics import Characteristics, Learned, StoredEntry
from memory.contamination import Contamination
from memory.embed import Embed, Embedder
from memory.index import ReferenceIndex
from memory.store import ReferenceFile
from nodes.checks import QUICK_CHECKS, CheckInput, run_safe_check
from nodes.hooks import Admitted, RunHooks
from nodes.llm import Call, Complete, Reply
from nodes.llm.capabilities import Capabilities
from nodes.llm.chat_model import ModelClient
from nodes.llm.faults import Fault
from nodes.own_criteria import OwnCriteria
from nodes.state import Seed, Verdict
from refloom.runs.client import Endpoints
from refloom.runs.rate_limit import RATE_LIMIT_HEADERS
from refloom.runs.ray.rpc import RpcChannel
from refloom.runs.retrieval import Retrieved, RunRetrieval, SeedKey, seed_key
from refloom.runs.scheduler import LocalExecutor
from refloom.settings import Settings


class Worker:
    """Sends seeds through its graph. `complete` and `embed` replace its own in tests."""

    def __init__(
        self,
        config: Mapping[str, Any],
        contamination: Contamination | None = None,
        *,
        complete: Complete | None = None,
        embed: Embed | None = None,
    ) -> None:
        """`config`: the run's settings, API keys, references file, own criteria, if resumed."""
        self.channel = RpcChannel(self._answer)
        settings: Settings = config["settings"]
        os.environ.update({name: key for name, key in config["keys"].items() if key})
        self._connection = ModelClient(
            Endpoints(settings).resolve,
            max_retries=0,
            timeout=settings.call_timeout,
            on_headers=self._send_headers,
        )
        self._send = complete
        self._resumed: bool = config["resumed"]
        path: Path = config["references"]
        embed = embed or Embedder(settings.embedding_model)
        index = ReferenceIndex(ReferenceFile(path), embed, path.parent, settings.embedding_model)
        retrieval = RunRetrieval(index, _RemoteQuota(self.channel, self._resumed))
        graph = build_graph(
            complete=self._complete,
            search=retrieval,
            draw_other=index.draw_other,
            embed=embed,
            characteristics=Characteristics(_RemoteStore(self.channel), self._send_counts),
            hooks=self._hooks(),
            contamination=contamination,
            own_criteria=OwnCriteria(**config["own_criteria"], on_warning=self._send_warning),
            check=self._check,
        )
        self._executor = LocalExecutor(graph, settings.context(), retrieval)

    async def _answer(self, what: str, values: Sequence[Any]) -> Any:
        """Answer the run: run a seed, or make a request."""
        if what == "run_seed":
            return await self._executor.run_seed(*values)
        assert what == "attempt"
        return await self._attempt(*values)

    async def _attempt(self, call: Call, known: Capabilities) -> Reply | Fault:
        if self._send is not None:
            return await self._send(call)
        return await self._connection.attempt(call, known)

    async def _complete(self, call: Call) -> Reply:
        reply: Reply = await self.channel.ask("call", call)
        return reply

    def _send_headers(self, model: str, judge: bool, headers: Mapping[str, str]) -> None:
        limits = {name: headers[name] for name in RATE_LIMIT_HEADERS if name in headers}
        if limits:
            self.channel.notify("headers", model, judge, limits)

    def _hooks(self) -> RunHooks:
        """The run's hooks, each a request that names the seed's key first."""
        ask = self.channel.ask

        async def repeat_turn(seed: Seed) -> list[Admitted] | None:
            repeated: list[Admitted] | None = None
            if self._resumed:
                repeated = await ask("repeat_turn", seed_key(seed))
            return repeated

        return RunHooks(
            compare=lambda seed, texts, context: ask("compare", seed_key(seed), texts),
            end_turn=lambda seed, *turn: ask("end_turn", seed_key(seed), *turn),
            repeat_turn=repeat_turn,
            are_known=lambda seed, texts: ask("are_known", seed_key(seed), texts),
            start=lambda slot: ask("start", slot[:2], slot),
            finish=lambda record, references: ask(
                "finish", tuple(record["slot"][:2]), record, references
            ),
            interrupts=False,
        )

    def _send_counts(self, reference_id: str, learned: Learned | None) -> None:
        self.channel.notify("learned", reference_id, learned and {"counts": learned["counts"]})

    async def _check(self, check: CheckInput) -> Verdict:
        """Checks are made by the run, which keeps their verdicts."""
        if check.kind in QUICK_CHECKS:
            return await run_safe_check(check)
        references = check.references if check.reads_references else ()
        verdict: Verdict = await self.channel.ask("check", replace(check, references=references))
        return verdict

    def _send_warning(self, text: str) -> None:
        self.channel.notify("warning", text)

    async def close(self) -> None:
        """Cancel what is in flight and close the connections."""
        await self.channel.close()
        await self._connection.aclose()


class _RemoteQuota:
    """The run's quota of references: see `refloom.runs.retrieval.QuotaClient`."""

    def __init__(self, channel: RpcChannel, resumed: bool) -> None:
        self._channel, self._resumed = channel, resumed

    async def load(self, key: SeedKey) -> Retrieved | None:
        return await self._channel.ask("load", key) if self._resumed else None

    async def try_take(
        self, key: SeedKey, retrieved: Retrieved, rows: Sequence[int], k: int
    ) -> list[bool] | None:
        allowed: list[bool] | None = await self._channel.ask("try_take", key, retrieved, rows, k)
        return allowed

    async def take(self, key: SeedKey, retrieved: Retrieved) -> None:
        await self._channel.ask("take", key, retrieved)

    def leave(self, key: SeedKey) -> None:
        self._channel.notify("leave", key)


class _RemoteStore:
    """The run's store of what was learned: see `memory.characteristics.Store`."""

    def __init__(self, channel: RpcChannel) -> None:
        self._channel = channel

    async def aget(self, namespace: tuple[str, ...], key: str) -> StoredEntry | None:
        entry: StoredEntry | None = await self._channel.ask("aget", namespace, key)
        return entry

    async def aput(
        self, namespace: tuple[str, ...], key: str, value: dict[str, Any], index: Literal[False]
    ) -> None:
        self._channel.notify("aput", namespace, key, value, index)
