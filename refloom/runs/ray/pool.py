"""The worker pool of a run: each seed goes to the least busy worker, and to another if that dies.

A dead worker takes only its own work with it. What its seeds had reached in the run (turns,
admitted instructions, started slots, recorded samples) is stored in a `SeedReplay` and repeated
when another worker starts the seed from the beginning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from memory.characteristics import NAMESPACE, Characteristics, FileStore
from memory.contamination import Contamination
from nodes.checks import CheckInput, RunCheck
from nodes.context import Context
from nodes.hooks import Admitted
from nodes.llm import Call, Reply
from nodes.llm.capabilities import Capabilities
from nodes.llm.faults import Fault
from nodes.record import Record
from nodes.state import Near, Proposal, Seed
from refloom.errors import WorkersLost
from refloom.runs.client import reply_to_dict
from refloom.runs.event_log import event
from refloom.runs.ray.rpc import (
    RpcChannel,
    Transport,
    WorkerDied,
    call_from_dict,
    call_to_dict,
    outcome_from_dict,
)
from refloom.runs.retrieval import ReferenceQuota, Retrieved, SeedKey, seed_key
from refloom.runs.scheduler import SampleRecorder

# The fields of a call that the run may have changed since a worker asked for it.
CHANGED_FIELDS = ("temperature", "max_tokens", "extra_body", "wire_tokens")
# The stages of calls that the run makes by itself, in the course of a worker's call.
OWN_STAGES = ("probe", "preflight")


class SeedReplay:
    """One seed in flight. Each step happens once, however often workers ask for it."""

    def __init__(
        self, seed: Seed, context: Context, recorder: SampleRecorder, quota: ReferenceQuota
    ) -> None:
        self._seed, self._context = seed, context
        self._recorder, self._quota = recorder, quota
        self._place = seed_key(seed)
        self._steps: dict[Any, asyncio.Future[Any]] = {}
        self._compared = 0

    def restart(self) -> None:
        """Another worker starts the seed; it gets the same answers, in order."""
        self._compared = 0

    async def step(self, what: str, values: list[Any]) -> Any:
        """Take the step a worker asks for, or repeat its result."""
        steps: dict[str, Callable[..., Awaitable[Any]]] = {
            "are_known": self._are_known,
            "repeat": self._repeat,
            "compare": self._compare,
            "end_turn": self._end_turn,
            "start": self._start,
            "finish": self._finish,
            "try_take": self._try_take,
            "take": self._take,
        }
        key: Any = what
        if what == "compare":
            key, self._compared = (what, self._compared), self._compared + 1
        elif what == "start":
            key = (what, values[0])
            if ("finish", values[0]) in self._steps:
                await asyncio.wait([self._steps["finish", values[0]]])
                return False
        elif what == "finish":
            key = (what, values[0]["slot"][2])
        if key not in self._steps:
            self._steps[key] = asyncio.ensure_future(steps[what](*values))
        # The worker may die while the step is being taken; the step is finished all the same.
        return await asyncio.shield(self._steps[key])

    async def _are_known(self, texts: list[str]) -> list[bool]:
        return await self._recorder.scheduler.are_known(self._seed, texts)

    async def _repeat(self) -> list[Admitted] | None:
        return await self._recorder.scheduler.repeat_turn(self._seed)

    async def _compare(self, texts: list[str]) -> list[Near | None] | None:
        return await self._recorder.scheduler.compare(self._seed, texts, self._context)

    async def _end_turn(self, admitted: list[Admitted], dropped: list[Proposal]) -> None:
        await self._recorder.scheduler.end_turn(self._seed, admitted, dropped)

    async def _start(self, slot: int) -> bool:
        return await self._recorder.start((*self._place, slot))

    async def _finish(self, record: Record, references: list[Any]) -> None:
        await self._recorder.finish(record, references)

    async def _try_take(self, retrieved: list[Any], rows: list[int], k: int) -> list[bool] | None:
        return await self._quota.try_take(self._place, Retrieved(*retrieved), rows, k)

    async def _take(self, retrieved: list[Any]) -> None:
        await self._quota.take(self._place, Retrieved(*retrieved))

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


class _PoolWorker:
    """A worker of the pool: its channel, and the tasks that carry batches both ways."""

    def __init__(self, number: int, transport: Transport, channel: RpcChannel) -> None:
        self.number, self.transport, self.channel = number, transport, channel
        self.seeds = 0
        self.carriers: list[asyncio.Task[None]] = []


# The worker that asked for the call being answered, and the call's number there.
_caller: ContextVar[tuple[_PoolWorker, int] | None] = ContextVar("caller", default=None)


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
        self._start_worker, self._calls = start_worker, recorder.calls
        self._recorder, self._quota = recorder, quota
        self._store, self._learned, self._check = store, learned, check
        self._context: Context = recorder.context
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
        worker = _PoolWorker(
            number, transport, RpcChannel(lambda what, values: self._answer(worker, what, values))
        )
        worker.carriers = [
            asyncio.ensure_future(self._send_batches(worker)),
            asyncio.ensure_future(self._receive_batches(worker)),
        ]
        async with self._changed:
            self._workers.append(worker)
            self._changed.notify_all()
        event("worker", number=number, state="begun")

    async def _send_batches(self, worker: _PoolWorker) -> None:
        try:
            while True:
                await worker.transport.deliver(await worker.channel.batch())
        except WorkerDied as error:
            self._remove(worker, error)

    async def _receive_batches(self, worker: _PoolWorker) -> None:
        try:
            while True:
                worker.channel.receive(await worker.transport.collect())
        except WorkerDied as error:
            self._remove(worker, error)

    def _remove(self, worker: _PoolWorker, reason: WorkerDied) -> None:
        """Remove a dead worker: its pending requests fail, and others are asked."""
        if worker not in self._workers:
            return
        self._workers.remove(worker)
        event("worker", number=worker.number, state="lost", why=str(reason))
        worker.channel.fail_pending(reason)
        self._run_in_background(self._replace())

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
        replay = self._replays[place] = SeedReplay(seed, self._context, self._recorder, self._quota)
        try:
            while True:
                worker = await self._least_busy()
                replay.restart()
                worker.seeds += 1
                try:
                    await worker.channel.ask("run_seed", seed)
                    return
                except WorkerDied:
                    event("worker", number=worker.number, state="seed restarted", slot=place)
                finally:
                    worker.seeds -= 1
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
            return min(self._workers, key=lambda worker: worker.seeds)

    async def attempt(self, call: Call, known: Capabilities) -> Reply | Fault:
        """See `EndpointClient.attempt`: by the worker that asked for the call, if it lives."""
        caller, way = _caller.get(), known.to_dict()
        if caller is not None and caller[0] in self._workers and call.stage not in OWN_STAGES:
            worker, number = caller
            values = call_to_dict(call)
            changed = {name: values[name] for name in CHANGED_FIELDS}
            try:
                answer = await worker.channel.ask("attempt", number, changed, way)
                return outcome_from_dict(answer)
            except WorkerDied:
                event("worker", number=worker.number, state="call sent again")
        while True:
            worker = await self._least_busy()
            try:
                answer = await worker.channel.ask("attempt", None, call_to_dict(call), way)
                return outcome_from_dict(answer)
            except WorkerDied:
                continue

    async def _answer(self, worker: _PoolWorker, what: str, values: list[Any]) -> Any:
        """Answer a worker's request."""
        if what == "call":
            _caller.set((worker, values[0]))
            return reply_to_dict(await self._calls(call_from_dict(values[1])))
        if what == "check":
            return await self._check(CheckInput(*values))
        if what == "headers":
            self._calls.limiter.apply_headers(*values)
        elif what == "recall":
            entry = await self._store.aget(NAMESPACE, values[0])
            return entry and entry.value
        elif what == "store":
            await self._store.aput(NAMESPACE, values[0], values[1], index=False)
        elif what == "learned":
            self._learned.notify(*values)
        elif what == "warning":
            self._on_warning(*values)
        else:
            return await self._step(what, values)
        return None

    async def _step(self, what: str, values: list[Any]) -> Any:
        if what in ("start", "finish"):
            round_, position, slot = values[0] if what == "start" else values[0]["slot"]
            place, rest = (round_, position), [slot] if what == "start" else values
        else:
            place, rest = (values[0][0], values[0][1]), values[1:]
        if what == "leave":
            self._quota.leave(place)
            return None
        if what == "load":
            retrieved = await self._quota.load(place)
            return retrieved and [retrieved.rows, retrieved.scores, retrieved.counted]
        return await self._replays[place].step(what, rest)

    def prefetch(self, seeds: Sequence[Seed]) -> None:
        """See `Executor`: nothing to do, each worker has an index of its own."""

    def forget(self, key: SeedKey) -> None:
        """See `Executor`: nothing to do, `make` forgets a seed as it ends."""

    async def aclose(self) -> None:
        """Close all channels and cancel all tasks."""
        tasks = [*self._tasks, *(c for worker in self._workers for c in worker.carriers)]
        await asyncio.gather(*(worker.channel.close() for worker in self._workers))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
