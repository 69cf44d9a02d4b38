"""`--engine ray`: the workers of a run as Ray actors, on this machine or on a cluster."""

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
from refloom.errors import InputError
from refloom.runs.ray.pool import StartWorker
from refloom.runs.ray.rpc import Batch, WorkerDied, sendable

if TYPE_CHECKING:
    from refloom.runs.ray.worker import Worker

OBJECT_STORE_BYTES = 128 << 20
# One call delivers a batch while another waits for one; the rest is room for overlaps.
MAX_CONCURRENT_METHODS = 8
RAY_CONNECT_TIMEOUT_S = 5.0


class WorkerActor:
    """A worker in its own process. `begin` returns an error as a value instead of raising it."""

    def __init__(self) -> None:
        self._open = AsyncExitStack()
        self._worker: Worker | None = None

    async def begin(
        self, config: Mapping[str, Any], contamination: Contamination | None
    ) -> Exception | None:
        """Build the worker's graph, client and index."""
        from refloom.runs.garbage_collection import relaxed_gc
        from refloom.runs.ray.worker import Worker

        try:
            # In a thread: it imports modules and opens files.
            self._worker = await asyncio.to_thread(Worker, config, contamination)
        except Exception as error:  # noqa: BLE001 - the run raises it
            return sendable(error)
        self._open.enter_context(relaxed_gc())
        return None

    async def deliver(self, batch: Batch) -> None:
        """See `refloom.runs.ray.rpc.Transport`."""
        assert self._worker is not None
        self._worker.channel.receive(batch)

    async def collect(self) -> Batch:
        """See `refloom.runs.ray.rpc.Transport`."""
        assert self._worker is not None
        return await self._worker.channel.batch()


class ActorTransport:
    """The transport to an actor: see `refloom.runs.ray.rpc.Transport`."""

    def __init__(self, actor: Any, errors: type[Exception]) -> None:
        self._actor, self._errors = actor, errors

    async def deliver(self, batch: Batch) -> None:
        """Send a batch to the actor."""
        try:
            await self._actor.deliver.remote(batch)
        except self._errors as error:
            raise WorkerDied(_first_line(error)) from None

    async def collect(self) -> Batch:
        """Wait for a batch of the actor."""
        try:
            batch: Batch = await self._actor.collect.remote()
        except self._errors as error:
            raise WorkerDied(_first_line(error)) from None
        return batch

    def kill(self) -> None:
        """End the actor's process; it is not started again."""
        import ray

        ray.kill(self._actor)


def check_available(address: str | None) -> None:
    """Raise `InputError` if Ray is not installed or nothing listens at `address`. Blocks.

    Ray itself would search for the cluster for minutes.
    """
    if sys.modules.get("ray", find_spec) is None or find_spec("ray") is None:
        raise InputError("--engine ray: Ray is not installed; install refloom with the extra [ray]")
    if address is None:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise InputError(f"--ray-address {address!r}: give the head node's HOST:PORT")
    try:
        socket.create_connection(
            (host.strip("[]"), int(port)), timeout=RAY_CONNECT_TIMEOUT_S
        ).close()
    except OSError as error:
        raise InputError(f"--ray-address {address}: cannot be reached ({error})") from error


def connect(address: str | None, workers: int) -> None:
    """Join the cluster at `address`, or start one on this machine that ends with this process.

    Raises `InputError` if that fails. Blocks.
    """
    # No usage statistics are sent to Ray's authors.
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
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        target = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise InputError(f"--engine ray: cannot use {target}: {_first_line(error)}") from error


def disconnect() -> None:
    """Leave the cluster; one that was started for this process ends. Blocks."""
    import ray

    ray.shutdown()


def worker_starter(config: Mapping[str, Any], contamination: Contamination | None) -> StartWorker:
    """A function that starts a worker on the cluster and gives the transport to it.

    The config, which holds API keys, goes to the actor itself and not into its creation, which
    Ray's head node would store.
    """
    import ray
    from ray.exceptions import RayError

    contamination_ref = ray.put(contamination)
    remote: Any = ray.remote
    options = {
        "num_cpus": 1,
        "max_concurrency": MAX_CONCURRENT_METHODS,
        "scheduling_strategy": "SPREAD",
    }
    actor_class = remote(**options)(WorkerActor)

    async def start() -> ActorTransport:
        actor = actor_class.remote()
        try:
            fault = await actor.begin.remote(config, contamination_ref)
        except RayError as error:
            raise WorkerDied(_first_line(error)) from None
        if fault is not None:
            raise fault
        return ActorTransport(actor, RayError)

    return start


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
