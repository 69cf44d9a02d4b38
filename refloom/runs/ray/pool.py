"""The worker pool of a run: each seed goes to the least busy worker, and to another if that dies.

A dead worker takes only its own work with it. What its seeds had reached in the run (turns,
admitted instructions, started slots, recorded samples) is stored in a `SeedReplay` and repeated
when another worker starts the seed from the beginning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from typing import Any

from memory.characteristics import Characteristics, FileStore
from memory.contamination import Contamination
from nodes.checks import RunCheck
from nodes.llm import Call, Reply
from nodes.llm.capabilities import Capabilities
from nodes.llm.faults import Fault
from nodes.state import Seed, Slot
from refloom.errors import WorkersLost
from refloom.runs.event_log import event
from refloom.runs.ray.rpc import RpcChannel, Transport, WorkerDied
from refloom.runs.retrieval import ReferenceQuota, SeedKey, seed_key
from refloom.runs.scheduler import SampleRecorder


class SeedReplay:
    """One seed in flight. Each step happens once, however often workers ask for it."""

    def __init__(self, seed: Seed, recorder: SampleRecorder, quota: ReferenceQuota) -> None:
        scheduler, place = recorder.scheduler, seed_key(seed)
        self._actions: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
            "are_known": partial(scheduler.are_known, seed),
            "repeat_turn": partial(scheduler.repeat_turn, seed),
            "compare": partial(scheduler.compare, seed, context=recorder.context),
            "end_turn": partial(scheduler.end_turn, seed),
            "start": recorder.start,
            "finish": recorder.finish,
            "try_take": partial(quota.try_take, place),
            "take": partial(quota.take, place),
        }
        self._steps: dict[Any, asyncio.Future[Any]] = {}
        self._compared = 0

    def restart(self) -> None:
        """Another worker starts the seed; it gets the same answers, in order."""
        self._compared = 0

    async def step(self, what: str, *values: Any) -> Any:
        """Take the step a worker asks for, or repeat its result."""
        key: Any = what
        if what == "compare":
            key, self._compared = (what, self._compared), self._compared + 1
        elif what == "start":
            slot: Slot = values[0]
            key, finish = (what, slot), self._steps.get(("finish", slot))
            if finish is not None:
                await asyncio.wait([finish])
                return False
        elif what == "finish":
            key = (what, tuple(values[0]["slot"]))
        if key not in self._steps:
            self._steps[key] = asyncio.ensure_future(self._actions[what](*values))
        # The worker may die while the step is being taken; the step is finished all the same.
        return await asyncio.shield(self._steps[key])

    async def aclose(self) -> None:
        """The seed has ended: cancel what is left of its steps."""
        for step in self._steps.values():
            step.cancel()
        await asyncio.gather(*self._steps.values(), return_exceptions=True)


# Replacements of dead workers in a run, for each worker.
MAX_REPLACEMENTS = 5
START_TIMEOUT_S = 180

StartWorker = Callable[[], Awaitable[Transport]]
WorkerStarter = Callable[[Mapping[str, Any], Contamination | None], StartWorker]


@dataclass(frozen=True)
class _PoolWorker:
    """A worker of the pool, and the way to it."""

    number: int
    transport: Transport
    channel: RpcChannel


# The worker whose request is being answered: its batches carry what that leads to for no more.
_caller: ContextVar[_PoolWorker | None] = ContextVar("caller", default=None)


class WorkerPool:
    """An `Executor` over workers that `start_worker` starts; a dead one is replaced.

    Its `attempt` makes the requests below journal and limits: a call goes back to the worker that
    asked for it, or to another if that is dead.
    """

    def __init__(self, workers: int, on_warning: Callable[[str], None] = lambda text: None) -> None:
        self._size = workers
        self._on_warning = on_warning
        self._workers: list[_PoolWorker] = []
        self._changed = asyncio.Condition()
        self._replays: dict[SeedKey, SeedReplay] = {}
        self._started = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._fault: Exception | None = None

    async def begin(
        self,
        start_worker: StartWorker,
        recorder: SampleRecorder,
        quota: ReferenceQuota,
        store: FileStore,
        learned: Characteristics,
        check: RunCheck,
    ) -> None:
        """Start all workers and return when the first is ready: a cluster may have less room.

        Raises what the first worker raises at its start, or `WorkersLost` if none starts in time.
        """
        self._start_worker, self._recorder, self._quota = start_worker, recorder, quota
        # What a worker may ask for beside the steps of a seed.
        self._answers: dict[str, Callable[..., Any]] = {
            "call": recorder.calls,
            "headers": recorder.calls.limiter.apply_headers,
            "check": check,
            "aget": store.aget,
            "aput": store.aput,
            "learned": learned.notify,
            "warning": self._on_warning,
            "load": quota.load,
            "leave": quota.leave,
        }
        first = asyncio.ensure_future(self._add())
        for _ in range(self._size - 1):
            self._run_in_background(self._replace())
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await first
        except (TimeoutError, WorkerDied) as error:
            reason = (
                str(error) or f"none within {START_TIMEOUT_S} s; each needs one CPU of the cluster"
            )
            raise WorkersLost(f"no worker started: {reason}") from None

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _add(self) -> None:
        self._started += 1
        number = self._started
        transport = await self._start_worker()
        channel = RpcChannel(lambda what, values: self._answer(worker, what, values))
        worker = _PoolWorker(number, transport, channel)
        async with self._changed:
            self._workers.append(worker)
            self._changed.notify_all()
        self._run_in_background(self._carry(worker))
        event("worker", number=number, state="begun")

    async def _carry(self, worker: _PoolWorker) -> None:
        """Carry batches both ways until that fails: then the worker's requests go to others."""
        channel, transport = worker.channel, worker.transport

        async def send() -> None:
            while True:
                await transport.deliver(await channel.batch())

        async def receive() -> None:
            while True:
                channel.receive(await transport.collect())

        try:
            async with asyncio.TaskGroup() as both_ways:
                both_ways.create_task(send())
                both_ways.create_task(receive())
        except* Exception as errors:  # noqa: BLE001 - see below
            # Whatever it is: a worker that is not heard of any more must not be waited for.
            reason = WorkerDied(str(errors.exceptions[0]))
            self._workers.remove(worker)
            event("worker", number=worker.number, state="lost", why=str(reason))
            channel.fail_pending(reason)
            self._run_in_background(self._replace())
            # It may live, and would keep its processor from the one that takes its place.
            transport.kill()

    async def _replace(self) -> None:
        try:
            if self._started >= self._size * (1 + MAX_REPLACEMENTS):
                raise WorkersLost("each worker was replaced several times")
            await self._add()
        except Exception as error:  # noqa: BLE001 - the other workers go on
            self._fault = error
            async with self._changed:
                self._changed.notify_all()

    async def run_seed(self, seed: Seed) -> None:
        """See `Executor`. Raises `WorkersLost` if no worker is left."""
        place = seed_key(seed)
        replay = self._replays[place] = SeedReplay(seed, self._recorder, self._quota)
        try:
            while True:
                worker = await self._least_busy()
                replay.restart()
                try:
                    await worker.channel.ask("run_seed", seed)
                    return
                except WorkerDied:
                    event("worker", number=worker.number, state="seed restarted", slot=place)
        finally:
            self._replays.pop(place, None)
            await replay.aclose()

    async def _least_busy(self) -> _PoolWorker:
        async with self._changed:
            await self._changed.wait_for(lambda: self._workers or self._fault)
            if not self._workers:
                raise WorkersLost(
                    f"all {self._started} workers were lost ({self._fault}). "
                    "Finished work is kept; the same command resumes the run"
                )
            return min(self._workers, key=lambda worker: worker.channel.load)

    async def attempt(self, call: Call, known: Capabilities) -> Reply | Fault:
        """See `EndpointClient.attempt`: by the worker that asked for the call, if it lives."""
        worker = _caller.get()
        while True:
            if worker not in self._workers:
                worker = await self._least_busy()
            try:
                outcome: Reply | Fault = await worker.channel.ask("attempt", call, known)
                return outcome
            except WorkerDied:
                event("worker", number=worker.number, state="call sent again")

    async def _answer(self, worker: _PoolWorker, what: str, values: Sequence[Any]) -> Any:
        """Answer a worker's request."""
        _caller.set(worker)
        if what in self._answers:
            result = self._answers[what](*values)
        else:
            place, *rest = values
            result = self._replays[place].step(what, *rest)
        return await result if isawaitable(result) else result

    def prefetch(self, seeds: Sequence[Seed]) -> None:
        """See `Executor`: nothing to do, each worker has an index of its own."""

    def forget(self, key: SeedKey) -> None:
        """See `Executor`: nothing to do, `make` forgets a seed as it ends."""

    async def aclose(self) -> None:
        """Close all channels and cancel all tasks."""
        await asyncio.gather(*(worker.channel.close() for worker in self._workers))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
