"""Workers as Ray actors, on this machine or on a cluster's."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from memory.contamination import Contamination
from nodes.llm.fast_json import dumps, loads
from refloom.errors import InputError
from refloom.runs.ray.pool import Hire
from refloom.runs.ray.rpc import Lost, error_of, plain_error

if TYPE_CHECKING:
    from refloom.runs.ray.worker import Worker

STORE_BYTES = 128 << 20
# A batch is delivered while another is waited for, and one may be under way each.
METHODS_AT_ONCE = 8
CONNECT_S = 5.0


class Actor:
    """A worker in a process of its own. What it raises at the start it gives as a value."""

    def __init__(self) -> None:
        self._open = AsyncExitStack()
        self._worker: Worker | None = None

    async def begin(self, orders: bytes, contamination: Contamination | None) -> Any:
        """Make graph, client and index."""
        from refloom.runs.garbage_collection import seldom_collected
        from refloom.runs.ray.worker import Worker

        try:
            # It imports, and opens files.
            self._worker = await asyncio.to_thread(Worker, loads(orders), contamination)
        except Exception as error:  # noqa: BLE001 - it is raised where somebody reads it
            return plain_error(error)
        self._open.enter_context(seldom_collected())
        return None

    async def deliver(self, batch: bytes) -> None:
        """See `refloom.runs.ray.rpc.Far`."""
        assert self._worker is not None
        self._worker.line.receive(batch)

    async def collect(self) -> bytes:
        """See `refloom.runs.ray.rpc.Far`."""
        assert self._worker is not None
        return await self._worker.line.batch()


class _Far:
    """The way to an actor: see `refloom.runs.ray.rpc.Far`."""

    def __init__(self, actor: Any, errors: type[Exception]) -> None:
        self._actor, self._errors = actor, errors

    async def deliver(self, batch: bytes) -> None:
        try:
            await self._actor.deliver.remote(batch)
        except self._errors as error:
            raise Lost(_first_line(error)) from None

    async def collect(self) -> bytes:
        try:
            batch: bytes = await self._actor.collect.remote()
        except self._errors as error:
            raise Lost(_first_line(error)) from None
        return batch


def check(address: str | None) -> None:
    """Raise `InputError` now when Ray is not installed or nobody answers at `address`. Blocks.

    Ray itself would look for a cluster for minutes.
    """
    if sys.modules.get("ray", find_spec) is None or find_spec("ray") is None:
        raise InputError("--engine ray: Ray is not installed; install refloom with the extra [ray]")
    if address is None:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise InputError(f"--ray-address {address!r}: give the head node's HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise InputError(f"--ray-address {address}: nobody answers there ({error})") from error


def connect(address: str | None, workers: int) -> None:
    """Join the cluster at `address`, or begin one on this machine that ends with this process.

    Raises `InputError` when it cannot be had. Blocks.
    """
    # No news of this run goes to Ray's makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    quiet |= {"ignore_reinit_error": True, "namespace": "refloom"}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(
                address="local",
                num_cpus=max(workers, os.cpu_count() or 1),
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise InputError(f"--engine ray: {where} cannot be used: {_first_line(error)}") from error


def disconnect() -> None:
    """Leave the cluster; one that was begun for this process ends. Blocks."""
    import ray

    ray.shutdown()


def hiring(orders: Mapping[str, Any], contamination: Contamination | None) -> Hire:
    """Who begins a worker on the cluster, with the keys in its orders.

    Orders go to the actor itself and not into its creation, which Ray's head node keeps.
    """
    import ray
    from ray.exceptions import RayError

    said = dumps(orders)
    kept = ray.put(contamination)
    remote: Any = ray.remote
    of = {"num_cpus": 1, "max_concurrency": METHODS_AT_ONCE, "scheduling_strategy": "SPREAD"}
    kind = remote(**of)(Actor)

    async def hire() -> _Far:
        actor = kind.remote()
        try:
            fault = await actor.begin.remote(said, kept)
        except RayError as error:
            raise Lost(_first_line(error)) from None
        if fault is not None:
            raise error_of(fault)
        return _Far(actor, RayError)

    return hire


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
