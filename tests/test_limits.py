"""How many calls are in flight, which goes next, and when a failed one is made again.

What waits here waits on a clock of its own, which jumps to whatever is due next.
"""

from __future__ import annotations

import asyncio
import random
import selectors

import pytest
from fakes import USAGE
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.faults import Transient
from nodes.llm import Call, CallFailed, ProviderStopped, Reply
from refloom.runs.limits import OPENING, TRIES, Limiter, with_retries

quick = settings(max_examples=60, deadline=None, database=None)


class Clock(selectors.DefaultSelector):
    """A selector that never waits: the time it is asked to wait is added to its clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout=None):
        self.now += timeout or 0.0
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop on such a clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def jumping(main):
    """Run a coroutine; return what it returned and the time that passed on its clock."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        result = runner.run(main)
        return result, runner.get_loop().time()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class Place:
    """A task that takes a place, says so, and keeps it until it is told to leave."""

    def __init__(self, limiter: Limiter, order: tuple[int, ...], entered: list) -> None:
        self.leave = asyncio.Event()
        self.inside = False
        self.task = asyncio.create_task(self._run(limiter, order, entered))

    async def _run(self, limiter, order, entered) -> None:
        async with limiter.place(order):
            entered.append(order)
            self.inside = True
            await self.leave.wait()
        self.inside = False


def open_limiter(concurrency: int) -> Limiter:
    limiter = Limiter(concurrency)
    limiter.open()
    return limiter


async def test_earlier_orders_go_first_whenever_they_came():
    limiter, entered = open_limiter(1), []
    first = Place(limiter, (9,), entered)
    await settle()
    orders = [(2, 1), (0, 5, 1), (1,), (0, 5, 0), (0, 5), (2, 0, 7), (1, 0)]
    places = [Place(limiter, order, entered) for order in orders]
    for place in [first, *places]:
        place.leave.set()
    await asyncio.gather(*(p.task for p in [first, *places]))
    assert entered == [(9,), *sorted(orders)]
    assert limiter.in_flight == 0


async def test_of_the_same_order_who_came_first_goes_first():
    limiter, entered = open_limiter(1), []

    async def one(name):
        async with limiter.place((0, 0)):
            entered.append(name)

    await asyncio.gather(*(one(i) for i in range(6)))
    assert entered == list(range(6))


@pytest.mark.parametrize("concurrency", [1, 3, 4, 9])
async def test_until_a_call_has_succeeded_only_a_few_are_let_in(concurrency):
    limiter, entered = Limiter(concurrency), []
    places = [Place(limiter, (i,), entered) for i in range(20)]
    await settle()
    assert len(entered) == limiter.in_flight == min(OPENING, concurrency)
    assert not limiter.opened
    limiter.open()
    await settle()
    assert len(entered) == limiter.in_flight == concurrency
    assert limiter.opened
    for place in places:
        place.leave.set()
    await asyncio.gather(*(p.task for p in places))
    assert limiter.in_flight == 0


async def test_an_exception_inside_gives_the_place_back():
    limiter = open_limiter(1)
    for _ in range(3):
        with pytest.raises(KeyError):
            async with limiter.place(()):
                raise KeyError
    assert limiter.in_flight == 0


async def test_a_waiter_that_is_cancelled_frees_nothing_twice():
    limiter, entered = open_limiter(2), []
    inside = [Place(limiter, (i,), entered) for i in range(2)]
    await settle()
    waiting = [Place(limiter, (i,), entered) for i in range(2, 6)]
    await settle()
    waiting[0].task.cancel()
    waiting[2].task.cancel()
    await settle()
    assert limiter.in_flight == 2
    inside[0].leave.set()
    await settle()
    assert entered == [(0,), (1,), (3,)]
    assert limiter.in_flight == 2
    for place in [*inside, *waiting]:
        place.leave.set()
    await asyncio.gather(*(p.task for p in [*inside, *waiting]), return_exceptions=True)
    assert entered == [(0,), (1,), (3,), (5,)]
    assert limiter.in_flight == 0


async def test_a_waiter_cancelled_in_the_moment_it_is_let_in_gives_its_place_to_the_next():
    limiter, entered = open_limiter(1), []
    async with limiter.place((0,)):
        chosen, following = (Place(limiter, (i,), entered) for i in (1, 2))
        await settle()
    # Leaving has let the first one in; it has not run since.
    chosen.task.cancel()
    await settle()
    assert chosen.task.cancelled()
    assert entered == [(2,)]
    assert limiter.in_flight == 1
    following.leave.set()
    await following.task
    assert limiter.in_flight == 0


async def test_a_task_cancelled_inside_gives_its_place_back_once():
    limiter, entered = open_limiter(1), []
    inside, waiting = (Place(limiter, (i,), entered) for i in range(2))
    await settle()
    inside.task.cancel()
    await settle()
    assert entered == [(0,), (1,)]
    assert limiter.in_flight == 1
    waiting.leave.set()
    await waiting.task
    assert limiter.in_flight == 0


@quick
@given(st.integers(1, 6), st.booleans(), st.integers(1, 25), st.randoms(use_true_random=False))
def test_never_more_than_concurrency_whatever_is_cancelled(concurrency, opened, n, draw):
    async def for_a_while(most: int) -> None:
        for _ in range(draw.randint(0, most)):
            await asyncio.sleep(0)

    async def main() -> tuple[int, int]:
        limiter = Limiter(concurrency)
        if opened:
            limiter.open()
        inside = most = 0

        async def one() -> None:
            nonlocal inside, most
            await for_a_while(4)
            async with limiter.place((draw.randint(0, 3),)):
                inside += 1
                most = max(most, inside)
                try:
                    await for_a_while(4)
                finally:
                    inside -= 1

        async def give_up(task: asyncio.Task) -> None:
            await for_a_while(30)
            task.cancel()

        tasks = [asyncio.create_task(one()) for _ in range(n)]
        given_up = [give_up(task) for task in tasks if draw.random() < 0.5]
        await asyncio.gather(*tasks, *given_up, return_exceptions=True)
        left = limiter.in_flight
        limiter.open()
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            for _ in range(concurrency + 1):
                group.create_task(one())
        return most, left

    most, left = asyncio.run(main())
    assert most <= concurrency
    assert left == 0


def call(order: tuple[int, ...] = ()) -> Call:
    return Call("generate", (), None, "m", False, 1, 0.0, 1, order=order)


REPLY = Reply("So.", "stop", dict(USAGE))


def transient(kind: str = "server", retry_after: float | None = None) -> Transient:
    fault = Transient("generate", kind, "not now")
    fault.retry_after = retry_after
    return fault


class Sending:
    """A send that raises what it is given, one after another, then replies; and when it was."""

    def __init__(self, *faults: BaseException) -> None:
        self.faults = list(faults)
        self.times: list[float] = []
        self.retried = 0

    async def __call__(self, call: Call) -> Reply:
        self.times.append(asyncio.get_running_loop().time())
        if self.faults:
            raise self.faults.pop(0)
        return REPLY

    async def with_retries(self, opened: bool = True) -> Reply:
        def count() -> None:
            self.retried += 1

        return await with_retries(self, call(), retried=count, opened=lambda: opened)

    @property
    def waits(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def test_a_call_that_succeeds_is_sent_once():
    send = Sending()
    assert jumping(send.with_retries()) == (REPLY, 0.0)
    assert (len(send.times), send.retried) == (1, 0)


@pytest.mark.parametrize("kind", ["server", "timeout", "rate_limit", "connection"])
@pytest.mark.parametrize("times", [1, 3, TRIES - 1])
def test_a_fault_that_passes_is_tried_again(kind, times):
    send = Sending(*(transient(kind) for _ in range(times)))
    reply, _ = jumping(send.with_retries())
    assert reply == REPLY
    assert (len(send.times), send.retried) == (times + 1, times)


def test_waits_are_drawn_up_to_a_bound_that_doubles():
    random.seed(5)
    for _ in range(20):
        send = Sending(*(transient() for _ in range(TRIES - 1)))
        jumping(send.with_retries())
        assert all(0 <= w <= 2**n for n, w in enumerate(send.waits))
        assert len({round(w, 6) for w in send.waits}) > 1


@pytest.mark.parametrize("kind", ["server", "timeout", "rate_limit", "connection"])
def test_a_fault_that_does_not_pass_is_raised_after_the_last_try(kind):
    send = Sending(*(transient(kind) for _ in range(20)))
    with pytest.raises(Transient) as raised:
        jumping(send.with_retries())
    assert raised.value.kind == kind
    assert (len(send.times), send.retried) == (TRIES, TRIES - 1)


@pytest.mark.parametrize(
    "fault",
    [CallFailed("generate", "bad_request", "no"), ProviderStopped("no quota"), KeyError("ours")],
)
@pytest.mark.parametrize("before", [0, 2])
def test_any_other_fault_is_raised_at_once(fault, before):
    send = Sending(*(transient() for _ in range(before)), fault)
    with pytest.raises(type(fault)) as raised:
        jumping(send.with_retries())
    assert raised.value is fault
    assert len(send.times) == before + 1


@pytest.mark.parametrize("asked", [0.0, 0.001, 3.0, 59.0, 120.0])
def test_an_endpoint_is_given_the_time_it_asks_for_and_little_more(asked):
    send = Sending(transient("rate_limit", asked), transient("rate_limit", asked))
    jumping(send.with_retries())
    assert len(send.waits) == 2
    assert all(asked <= w <= asked + 0.5 + 1e-6 for w in send.waits)


@pytest.mark.parametrize("asked", [301.0, 86_400.0, float("inf")])
def test_an_endpoint_that_asks_for_too_long_is_not_waited_for(asked):
    send = Sending(transient("rate_limit", asked))
    with pytest.raises(Transient):
        jumping(send.with_retries())
    assert (len(send.times), send.retried) == (1, 0)


@pytest.mark.parametrize("opened", [True, False])
def test_an_endpoint_that_never_answered_and_cannot_be_reached_stops_the_run(opened):
    send = Sending(*(transient("connection") for _ in range(20)))
    if opened:
        with pytest.raises(Transient):
            jumping(send.with_retries(opened=True))
        assert len(send.times) == TRIES
    else:
        with pytest.raises(ProviderStopped, match="--base-url"):
            jumping(send.with_retries(opened=False))
        assert len(send.times) == 3


def test_an_endpoint_that_answers_with_faults_is_reachable():
    send = Sending(*(transient("server") for _ in range(20)))
    with pytest.raises(Transient):
        jumping(send.with_retries(opened=False))
    assert len(send.times) == TRIES


def test_an_endpoint_that_opens_late_is_not_given_up():
    send = Sending(transient("connection"), transient("connection"))
    assert jumping(send.with_retries(opened=False))[0] == REPLY


def test_a_call_can_be_cancelled_while_it_waits_to_be_tried_again():
    send = Sending(transient("server", 100.0))

    async def main():
        waiting = asyncio.create_task(send.with_retries())
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.wait([waiting])
        return waiting.cancelled()

    cancelled, passed = jumping(main())
    assert cancelled
    assert passed < 100
    assert len(send.times) == 1
