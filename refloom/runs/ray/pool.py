"""The workers of a run: a seed goes to the one with the fewest; what one lost had, others make."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any

from memory.characteristics import NAMESPACE, Characteristics, FileStore
from memory.contamination import Contamination
from nodes.context import Context
from nodes.llm import Call, Reply
from nodes.propose import Admit
from nodes.record import Record
from nodes.state import Seed
from refloom.errors import WorkersLost
from refloom.runs.client import kept_form
from refloom.runs.event_log import event
from refloom.runs.ray.rpc import Far, Line, Lost, call_of, plain_call
from refloom.runs.retrieval import Place, Quota, Taken
from refloom.runs.scheduler import Kept


# MERGED refloom~runs~held
# What a seed has got of the run so far, so that another worker can make it again from the
# start. A worker that is lost takes only its own work with it: turns that were taken,
# instructions that were admitted, slots that were begun and samples that were kept are the
# run's. Asked again, they are given again.
class Held:
    """One seed under way. Each step is taken once, however often it is asked for."""

    def __init__(self, seed: Seed, context: Context, kept: Kept, uses: Quota) -> None:
        self._seed, self._context = seed, context
        self._kept, self._uses = kept, uses
        self._place = (seed["round"], seed["position"])
        self._steps: dict[Any, asyncio.Future[Any]] = {}
        self._turn: AbstractAsyncContextManager[Admit] | None = None
        self._admit: Admit | None = None
        self._admits = 0

    def anew(self) -> None:
        """Another worker begins with it; what it is told are the same answers, in order."""
        self._admits = 0

    async def step(self, what: str, values: list[Any]) -> Any:
        """Take a step the worker asks for, or say again what came of it."""
        steps: dict[str, Callable[..., Awaitable[Any]]] = {
            "taken": self._taken,
            "admit": self._admitted,
            "close": self._close,
            "start": self._start,
            "finish": self._finish,
            "offer": self._offer,
            "take": self._take,
        }
        key: Any = what
        if what == "admit":
            key, self._admits = (what, self._admits), self._admits + 1
        elif what == "start":
            key = (what, values[0])
            if ("finish", values[0]) in self._steps:
                await asyncio.wait([self._steps["finish", values[0]]])
                return False
        elif what == "finish":
            key = (what, values[0]["slot"][2])
        if key not in self._steps:
            self._steps[key] = asyncio.ensure_future(steps[what](*values))
        # The worker that asked may be lost while the step is being taken; it is taken all the same.
        return await asyncio.shield(self._steps[key])

    async def _taken(self, texts: list[str]) -> list[bool]:
        return await self._kept.order.taken(self._seed, texts)

    async def _admitted(self, texts: list[str | None], most: int, last: bool) -> list[str]:
        if self._turn is None:
            turn = self._kept.order.turn(self._seed, self._context)
            self._admit = await turn.__aenter__()
            self._turn = turn
        assert self._admit is not None
        admitted = await self._admit(texts, most, last=last)
        if last or len(admitted) == most:
            await self._close()
        return admitted

    async def _close(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            await turn.__aexit__(None, None, None)

    async def _start(self, slot: int) -> bool:
        return await self._kept.start((*self._place, slot))

    async def _finish(self, record: Record, references: list[Any]) -> None:
        await self._kept.finish(record, references)

    async def _offer(self, taken: list[Any], rows: list[int], k: int) -> list[bool] | None:
        return await self._uses.offer(self._place, Taken(*taken), rows, k)

    async def _take(self, taken: list[Any]) -> None:
        await self._uses.take(self._place, Taken(*taken))

    async def aclose(self) -> None:
        """The seed has ended: nothing of it goes on."""
        for step in self._steps.values():
            step.cancel()
        await asyncio.gather(*self._steps.values(), return_exceptions=True)
        if self._turn is not None:
            # Left without closing it, as a seed that fails in its turn leaves it.
            given_up = asyncio.CancelledError()
            await self._turn.__aexit__(type(given_up), given_up, None)


# How often a run replaces a worker, for each it has.
REPLACEMENTS = 5
HIRE_S = 180

Hire = Callable[[], Awaitable[Far]]
Hiring = Callable[[Mapping[str, Any], Contamination | None], Hire]
Heed = Callable[[Call, Mapping[str, str]], None]


class _Member:
    """A worker as the run sees it."""

    def __init__(self, number: int, far: Far, line: Line) -> None:
        self.number, self.far, self.line = number, far, line
        self.seeds = 0
        self.carriers: list[asyncio.Task[None]] = []


# Who asked for the call that is being answered, and the number it has there.
_asker: ContextVar[tuple[_Member, int] | None] = ContextVar("asker", default=None)


class Team:
    """A `Maker` over workers that `hire` finds; one that is lost is replaced.

    Its `send` is the `Complete` below journal and limits: the call goes back to the worker that
    asked for it, or, if that is gone, to another.
    """

    def __init__(self, workers: int, heed: Heed) -> None:
        self._workers, self._heed = workers, heed
        self._members: list[_Member] = []
        self._changed = asyncio.Condition()
        self._held: dict[Place, Held] = {}
        self._hired = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._fault: Exception | None = None

    async def begin(
        self, hire: Hire, kept: Kept, uses: Quota, store: FileStore, learned: Characteristics
    ) -> None:
        """Hire everybody, and return as soon as one is there: a cluster may have less room.

        Raises what the first one that cannot be hired raises, or `WorkersLost` if none comes.
        """
        self._hire, self._calls, self._kept, self._uses = hire, kept.calls, kept, uses
        self._store, self._learned = store, learned
        self._context: Context = kept.context
        first = asyncio.ensure_future(self._join())
        for _ in range(self._workers - 1):
            self._keep(self._replaced())
        try:
            async with asyncio.timeout(HIRE_S):
                await first
        except (TimeoutError, Lost) as why:
            said = str(why) or f"none began within {HIRE_S} s; each takes one CPU of the cluster"
            raise WorkersLost(f"no worker could be had: {said}") from None

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self) -> None:
        self._hired += 1
        number = self._hired
        far = await self._hire()
        member = _Member(number, far, Line(lambda what, values: self._answer(member, what, values)))
        member.carriers = [
            asyncio.ensure_future(self._out(member)),
            asyncio.ensure_future(self._back(member)),
        ]
        async with self._changed:
            self._members.append(member)
            self._changed.notify_all()
        event("worker", number=number, state="begun")

    async def _out(self, member: _Member) -> None:
        try:
            while True:
                await member.far.deliver(await member.line.batch())
        except Lost as lost:
            self._leave(member, lost)

    async def _back(self, member: _Member) -> None:
        try:
            while True:
                member.line.receive(await member.far.collect())
        except Lost as lost:
            self._leave(member, lost)

    def _leave(self, member: _Member, why: Lost) -> None:
        """A worker is lost; what it was asked fails, and is asked of others."""
        if member not in self._members:
            return
        self._members.remove(member)
        event("worker", number=member.number, state="lost", why=str(why))
        member.line.cut(why)
        self._keep(self._replaced())

    async def _replaced(self) -> None:
        try:
            if self._hired >= self._workers * (1 + REPLACEMENTS):
                raise WorkersLost("each was replaced several times")
            await self._join()
        except Exception as error:  # noqa: BLE001 - the others go on without it
            self._fault = error
            async with self._changed:
                self._changed.notify_all()

    async def make(self, seed: Seed) -> None:
        """See `Maker`. Raises `WorkersLost` when nobody is left."""
        place = (seed["round"], seed["position"])
        held = self._held[place] = Held(seed, self._context, self._kept, self._uses)
        try:
            while True:
                member = await self._idlest()
                held.anew()
                member.seeds += 1
                try:
                    await member.line.ask("make", seed)
                    return
                except Lost:
                    event("worker", number=member.number, state="seed made again", slot=place)
                finally:
                    member.seeds -= 1
        finally:
            self._held.pop(place, None)
            await held.aclose()

    async def _idlest(self) -> _Member:
        async with self._changed:
            await self._changed.wait_for(lambda: self._members or self._fault)
            if not self._members:
                raise WorkersLost(
                    f"all {self._hired} workers were lost ({self._fault}). "
                    "What was made is kept; the same command goes on"
                )
            return min(self._members, key=lambda member: member.seeds)

    async def send(self, call: Call) -> Reply:
        """Send a call by the worker that asked for it, or by another if that is lost."""
        asker = _asker.get()
        if asker is not None and asker[0] in self._members:
            member, number = asker
            said = plain_call(call)
            changed = {k: said[k] for k in ("temperature", "max_tokens", "extra_body")}
            try:
                return Reply(**await member.line.ask("send", number, changed))
            except Lost:
                event("worker", number=member.number, state="call sent again")
        while True:
            member = await self._idlest()
            try:
                return Reply(**await member.line.ask("send", None, plain_call(call)))
            except Lost:
                continue

    async def _answer(self, member: _Member, what: str, values: list[Any]) -> Any:
        """What a worker asks of the run."""
        if what == "call":
            _asker.set((member, values[0]))
            return kept_form(await self._calls(call_of(values[1])))
        if what == "heed":
            judge, model, headers = values
            # Only whose it was and by which model counts here.
            self._heed(Call("critique", (), None, model, judge, 0, 0.0, 1), headers)
        elif what == "recall":
            found = await self._store.aget(NAMESPACE, values[0])
            return found and found.value
        elif what == "keep":
            await self._store.aput(NAMESPACE, values[0], values[1], index=False)
        elif what == "heard":
            self._learned.tell(*values)
        else:
            return await self._step(what, values)
        return None

    async def _step(self, what: str, values: list[Any]) -> Any:
        if what in ("start", "finish"):
            round_, position, slot = values[0] if what == "start" else values[0]["slot"]
            place, rest = (round_, position), [slot] if what == "start" else values
        else:
            place, rest = (values[0][0], values[0][1]), values[1:]
        if what == "passed":
            self._uses.passed(place)
            return None
        if what == "written":
            taken = await self._uses.written(place)
            return taken and [taken.rows, taken.scores, taken.counted]
        return await self._held[place].step(what, rest)

    def look_ahead(self, seeds: Sequence[Seed]) -> None:
        """See `Maker`: each worker has an index of its own."""

    def forget(self, place: Place) -> None:
        """See `Maker`: what a seed had is forgotten as it ends."""

    async def aclose(self) -> None:
        """Let everybody go."""
        tasks = [*self._tasks, *(c for member in self._members for c in member.carriers)]
        await asyncio.gather(*(member.line.close() for member in self._members))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
