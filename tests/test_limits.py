"""How many calls are in flight, which goes next, and when a failed one is made again.

What waits here waits on a clock of its own, which jumps to whatever is due next.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from dataclasses import replace

import pytest
from fakes import USAGE
from hypothesis import given
from hypothesis import strategies as st

from nodes.llm import Call, CallFailed, ProviderStopped, Reply
from nodes.llm.protocol import Transient
from refloom.errors import BudgetSpent
from refloom.runs.client import MAX_TRIES, CachedClient, Interrupted
from refloom.runs.cost import Budget, Prices
from refloom.runs.rate_limit import (
    BREAKER_FAILURES,
    DECREASE,
    MAX_OUTAGE_AT_START_S,
    MAX_OUTAGE_S,
    MAX_WAIT_S,
    OVERDUE_MIN_S,
    OVERDUE_MIN_SAMPLES,
    PROBE_LIMIT,
    Limiter,
    ModelLimiter,
    Permit,
)


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
        async with limiter.acquire(call(order)):
            entered.append(order)
            self.inside = True
            await self.leave.wait()
        self.inside = False


def of_model(limiter: Limiter, model: str = "m") -> ModelLimiter:
    return limiter.for_model(model, judge=False)


def call(order: tuple[int, ...] = (), model: str = "m") -> Call:
    """A call that differs from those of another order by its seed, too: it has a key of its own."""
    return Call("generate", (), None, model, False, sum(order), 0.0, 1, order=order)


def open_limiter(concurrency: int, **more: int) -> Limiter:
    limiter = Limiter(concurrency, **more)
    of_model(limiter).responsive = True
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
        async with limiter.acquire(call((0, 0))):
            entered.append(name)

    await asyncio.gather(*(one(i) for i in range(6)))
    assert entered == list(range(6))


@pytest.mark.parametrize("concurrency", [1, 3, 4, 9])
async def test_until_a_call_has_succeeded_only_a_few_are_let_in(concurrency):
    limiter, entered = Limiter(concurrency), []
    places = [Place(limiter, (i,), entered) for i in range(20)]
    await settle()
    assert len(entered) == limiter.in_flight == min(PROBE_LIMIT, concurrency)
    assert not of_model(limiter).responsive
    of_model(limiter).responsive = True
    places[0].leave.set()
    await settle()
    assert limiter.in_flight == concurrency
    assert len(entered) == concurrency + 1
    assert of_model(limiter).responsive
    for place in places:
        place.leave.set()
    await asyncio.gather(*(p.task for p in places))
    assert limiter.in_flight == 0


async def test_an_exception_inside_gives_the_place_back():
    limiter = open_limiter(1)
    for _ in range(3):
        with pytest.raises(KeyError):
            async with limiter.acquire(call()):
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
    async with limiter.acquire(call((0,))):
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


@given(st.integers(1, 6), st.booleans(), st.integers(1, 25), st.randoms(use_true_random=False))
def test_never_more_than_concurrency_whatever_is_cancelled(concurrency, opened, n, draw):
    async def for_a_while(most: int) -> None:
        for _ in range(draw.randint(0, most)):
            await asyncio.sleep(0)

    async def main() -> tuple[int, int]:
        limiter = Limiter(concurrency)
        of_model(limiter).responsive = opened
        inside = most = 0

        async def one() -> None:
            nonlocal inside, most
            await for_a_while(4)
            async with limiter.acquire(call((draw.randint(0, 3),))):
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
        of_model(limiter).responsive = True
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            for _ in range(concurrency + 1):
                group.create_task(one())
        return most, left

    most, left = asyncio.run(main())
    assert most <= concurrency
    assert left == 0


REPLY = Reply("So.", "stop", dict(USAGE))


ANSWERED = replace(REPLY, usage=REPLY.usage | {"cost_usd": None})


class NoJournal:
    """A journal that remembers nothing and takes no time."""

    def is_unusable(self, key: bytes) -> bool:
        return False

    async def reply(self, key: bytes) -> str | None:
        return None

    async def record(self, *row: object) -> None:
        """Nothing is written."""


def unbounded() -> Budget:
    return Budget(max_cost=None, max_tokens=None, prices=Prices({}))


def client_of(
    send, limiter: Limiter, budget: Budget | None = None, timeout=600, **more
) -> CachedClient:
    return CachedClient(
        send,
        NoJournal(),
        limiter,
        budget or unbounded(),
        timeout=timeout,
        addresses=("writer", "judge"),
        stages={},
        prices=Prices({}),
        **more,
    )


async def outcome(client: CachedClient, one: Call) -> Reply:
    """The reply to a call; what stopped the client is raised in place of its `Interrupted`."""
    try:
        return await client(one)
    except Interrupted:
        raise client.stopped_by from None


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
        client = client_of(self, open_limiter(4) if opened else Limiter(4))
        try:
            return await outcome(client, call())
        finally:
            self.retried = client.counts["retried"]
            await client.aclose()

    @property
    def waits(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def test_a_call_that_succeeds_is_sent_once():
    send = Sending()
    assert jumping(send.with_retries()) == (ANSWERED, 0.0)
    assert (len(send.times), send.retried) == (1, 0)


@pytest.mark.parametrize("kind", ["server", "timeout", "rate_limit", "connection"])
@pytest.mark.parametrize("times", [1, 3, MAX_TRIES - 1])
def test_a_fault_that_passes_is_tried_again(kind, times):
    send = Sending(*(transient(kind) for _ in range(times)))
    reply, _ = jumping(send.with_retries())
    assert reply == ANSWERED
    assert (len(send.times), send.retried) == (times + 1, times)


def test_waits_are_drawn_up_to_a_bound_that_doubles():
    random.seed(5)
    for _ in range(20):
        send = Sending(*(transient() for _ in range(MAX_TRIES - 1)))
        jumping(send.with_retries())
        assert all(0 <= w <= 2**n for n, w in enumerate(send.waits))
        assert len({round(w, 6) for w in send.waits}) > 1


@pytest.mark.parametrize("kind", ["server", "timeout", "overloaded", "connection"])
def test_a_fault_that_does_not_pass_is_raised_after_the_last_try(kind):
    send = Sending(*(transient(kind) for _ in range(20)))
    with pytest.raises(Transient) as raised:
        jumping(send.with_retries())
    assert raised.value.kind == kind
    assert (len(send.times), send.retried) == (MAX_TRIES, MAX_TRIES - 1)


@pytest.mark.parametrize("kind", ["rate_limit", "no_resources", "loading"])
def test_a_call_that_is_asked_to_wait_waits_as_long_as_it_takes(kind):
    send = Sending(*(transient(kind) for _ in range(20)))
    found, passed = jumping(send.with_retries())
    assert found == ANSWERED
    assert len(send.times) == 21
    assert passed < 21 * 61


@pytest.mark.parametrize(("kind", "hours"), [("rate_limit", 1), ("loading", 1 / 3)])
def test_a_run_that_is_only_ever_asked_to_wait_stops_and_can_be_resumed(kind, hours):
    send = Sending(*(transient(kind, 50.0) for _ in range(200)))
    with pytest.raises(ProviderStopped, match=r"asked to wait .*the same command resumes"):
        jumping(send.with_retries())
    assert send.times[-1] - send.times[0] == pytest.approx(hours * 3600, abs=120)


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


@pytest.mark.parametrize("asked", [301.0, 86_400.0, 1e9])
def test_an_endpoint_that_asks_for_too_long_is_not_waited_for(asked):
    send = Sending(transient("rate_limit", asked))
    with pytest.raises(ProviderStopped, match="asks to wait"):
        jumping(send.with_retries())
    assert (len(send.times), send.retried) == (1, 0)
    send = Sending(transient("overloaded", asked))
    with pytest.raises(Transient):
        jumping(send.with_retries())
    assert (len(send.times), send.retried) == (1, 0)


@pytest.mark.parametrize("opened", [True, False])
def test_an_endpoint_that_never_answered_and_cannot_be_reached_stops_the_run(opened):
    send = Sending(*(transient("connection") for _ in range(20)))
    if opened:
        with pytest.raises(Transient):
            jumping(send.with_retries(opened=True))
        assert len(send.times) == MAX_TRIES
    else:
        with pytest.raises(ProviderStopped, match="--base-url"):
            jumping(send.with_retries(opened=False))
        assert len(send.times) == 3


def test_an_endpoint_that_answers_with_faults_is_reachable():
    send = Sending(*(transient("server") for _ in range(20)))
    with pytest.raises(Transient):
        jumping(send.with_retries(opened=False))
    assert len(send.times) == MAX_TRIES


def test_an_endpoint_that_opens_late_is_not_given_up():
    send = Sending(transient("connection"), transient("connection"))
    assert jumping(send.with_retries(opened=False))[0] == ANSWERED


def test_a_call_can_be_cancelled_while_it_waits_to_be_tried_again():
    send = Sending(transient("server", 100.0))

    async def main():
        client = client_of(send, open_limiter(4))
        waiting = asyncio.create_task(client(call()))
        await asyncio.sleep(1)
        await client.aclose()
        await asyncio.wait([waiting])
        return waiting.cancelled()

    cancelled, passed = jumping(main())
    assert cancelled
    assert passed < 100
    assert len(send.times) == 1


# --- what an endpoint can take -----------------------------------------------------------------


class Busy:
    """An endpoint that takes a while, and says "too much" when too many calls are in flight."""

    def __init__(self, takes: float = 1.0, most: int = 1000) -> None:
        self.takes, self.most = takes, most
        self.in_flight = self.refused = self.answered = 0
        self.begun: list[float] = []
        self.kind, self.down_until = "rate_limit", 0.0

    async def __call__(self, one: Call) -> Reply:
        now = asyncio.get_running_loop().time()
        self.begun.append(now)
        if now < self.down_until:
            raise transient("connection")
        self.in_flight += 1
        try:
            if self.in_flight > self.most:
                self.refused += 1
                raise transient(self.kind)
            await asyncio.sleep(self.takes)
            self.answered += 1
            return REPLY
        finally:
            self.in_flight -= 1


async def many(endpoint, n: int, limiter: Limiter, **more) -> list:
    client = client_of(endpoint, limiter, **more)
    try:
        calls = (outcome(client, call((i,))) for i in range(n))
        return await asyncio.gather(*calls, return_exceptions=True)
    finally:
        await client.aclose()


def test_an_endpoint_that_takes_less_is_asked_less_and_answers_everything():
    random.seed(1)
    endpoint, limiter = Busy(most=6), open_limiter(32)
    found, _ = jumping(many(endpoint, 300, limiter))
    assert found == [ANSWERED] * 300
    assert endpoint.refused < 100
    assert 3 <= of_model(limiter).limit <= 12


def test_the_limit_falls_once_for_what_was_in_flight_together_and_grows_again():
    limiter = ModelLimiter(10)
    limiter.responsive = True

    def begun(at: float) -> Permit:
        permit = Permit(limiter, call(), 0, 0.0, asyncio.get_running_loop().create_future())
        limiter.begin(permit, at)
        return permit

    async def main():
        permits = [begun(1.0) for _ in range(5)]
        for permit in permits:
            limiter.record_fault(permit, transient("rate_limit"), 2.0)
        assert limiter.limit == int(10 * DECREASE)
        for permit in permits * 4:
            limiter.record_reply(permit, REPLY, 3.0)
        assert limiter.limit == 9
        for kind in ("server", "connection"):
            limiter.record_fault(begun(4.0), transient(kind), 5.0)
        assert limiter.limit == 9
        for n in range(40):
            at = 10.0 + 2 * n
            limiter.record_fault(begun(at), transient("timeout"), at + 1)
        assert limiter.limit == 1

    asyncio.run(main())


@pytest.mark.parametrize("rpm", [6, 60, 600])
def test_no_minute_holds_more_calls_than_rpm_allows(rpm):
    endpoint, limiter = Busy(takes=0.5), open_limiter(64, rpm=rpm)
    n = 2 * rpm + 3
    found, passed = jumping(many(endpoint, n, limiter))
    assert found == [ANSWERED] * n
    for begun in endpoint.begun:
        assert sum(begun <= t < begun + 60 - 1e-3 for t in endpoint.begun) <= rpm
    assert passed == pytest.approx((n - 1) * 60 / rpm + 0.5, rel=0.01)


def test_no_minute_holds_many_more_tokens_than_tpm_allows():
    endpoint, limiter = Busy(takes=2.0), open_limiter(64, tpm=1500)
    # 15 tokens each, as the endpoint reports: at first more are expected, later just these.
    found, passed = jumping(many(endpoint, 300, limiter))
    assert found == [ANSWERED] * 300
    begun = endpoint.begun
    most = max(sum(t <= u < t + 60 for u in begun) for t in begun)
    assert 90 <= most <= 115
    assert 150 <= passed <= 260


def test_two_models_at_one_endpoint_have_a_pace_each_and_share_the_places():
    endpoint, limiter = Busy(takes=1.0), Limiter(3, rpm=60)

    async def main():
        for model in ("a", "b"):
            of_model(limiter, model).responsive = True
        client = client_of(endpoint, limiter)
        await asyncio.gather(*(client(call((i,), "ab"[i % 2])) for i in range(20)))
        await client.aclose()

    _, passed = jumping(main())
    assert passed == pytest.approx(10, abs=1.5)


def headers(**more: str) -> dict[str, str]:
    return {f"x-ratelimit-{k.replace('_', '-')}": v for k, v in more.items()}


@pytest.mark.parametrize(
    ("said", "pause"),
    [
        (headers(remaining_requests="0", reset_requests="12s"), 12),
        (headers(remaining_requests="3", reset_requests="12s"), 0),
        (headers(remaining_tokens="0", reset_tokens="1m3s"), 60),
        (headers(remaining_tokens="0", reset_tokens="250ms"), 0.25),
        (headers(remaining_requests="0"), 0),
        (headers(remaining_requests="many", reset_requests="12s"), 0),
        (headers(remaining_requests="0", reset_requests="inf"), 0),
        ({}, 0),
    ],
)
def test_rate_limit_headers_of_an_answer_are_heeded(said, pause):
    async def main():
        limiter = open_limiter(2)
        limiter.apply_headers("m", False, said)
        begun = []
        async with limiter.acquire(call()):
            begun.append(asyncio.get_running_loop().time())
        limiter.close()
        return begun[0]

    begun, _ = jumping(main())
    assert begun == pytest.approx(pause, abs=1e-3)


def test_a_retry_after_holds_the_others_back_as_well():
    endpoint = Sending(transient("rate_limit", 7.0))
    limiter = open_limiter(1)
    found, _ = jumping(many(endpoint, 3, limiter))
    assert found == [ANSWERED] * 3
    assert endpoint.times[0] == 0
    assert all(t >= 7 for t in endpoint.times[1:])


# --- calls that take too long ------------------------------------------------------------------


class Hanging(Busy):
    """Takes a second; hangs at the calls it is told, as often as it is told."""

    def __init__(self, **hangs: int) -> None:
        super().__init__()
        self.hangs = {int(k[1:]): n for k, n in hangs.items()}
        self.takes_of: dict[int, float] = {}

    async def __call__(self, one: Call) -> Reply:
        i = one.order[0]
        if self.hangs.get(i, 0):
            self.hangs[i] -= 1
            await asyncio.sleep(1e9)
        await asyncio.sleep(self.takes_of.get(i, 0))
        return await super().__call__(one)


def test_a_call_that_hangs_is_ended_long_before_the_timeout_and_made_again():
    limiter = open_limiter(4)
    found, passed = jumping(many(Hanging(_3=1, _20=2), 60, limiter))
    assert found == [ANSWERED] * 60
    assert passed < 4 * OVERDUE_MIN_S + 30


def test_a_call_that_is_merely_slow_is_given_more_time_each_try():
    endpoint, limiter = Hanging(), open_limiter(4)
    endpoint.takes_of[30] = 4.5 * OVERDUE_MIN_S
    found, passed = jumping(many(endpoint, 60, limiter))
    assert found == [ANSWERED] * 60
    assert passed < 14 * OVERDUE_MIN_S


def test_until_some_of_a_kind_were_answered_only_the_timeout_ends_a_call():
    limiter = open_limiter(OVERDUE_MIN_SAMPLES)
    found, passed = jumping(many(Hanging(_0=1), OVERDUE_MIN_SAMPLES - 1, limiter, timeout=100))
    assert found == [ANSWERED] * (OVERDUE_MIN_SAMPLES - 1)
    assert 100 <= passed < 110


# --- the circuit breaker -----------------------------------------------------------------------


def test_an_outage_fails_no_call_however_long_it_takes_to_pass():
    random.seed(3)
    endpoint, limiter = Busy(), open_limiter(8)
    endpoint.down_until = MAX_OUTAGE_S - 60
    found, passed = jumping(many(endpoint, 100, limiter))
    assert found == [ANSWERED] * 100
    assert passed > endpoint.down_until
    assert len(endpoint.begun) < 100 + 60


def test_an_outage_that_does_not_pass_stops_the_run_and_says_so():
    endpoint, limiter = Busy(), open_limiter(8)
    endpoint.down_until = 1e9
    found, passed = jumping(many(endpoint, 30, limiter))
    stopped = [f for f in found if isinstance(f, ProviderStopped)]
    assert stopped
    assert "answered no call for" in str(stopped[0])
    assert passed >= MAX_OUTAGE_S


def test_an_endpoint_that_only_ever_fails_is_given_up_sooner():
    endpoint, limiter = Busy(most=-1), Limiter(8)
    endpoint.kind = "server"

    async def main():
        tasks = [asyncio.ensure_future(many(endpoint, 30, limiter))]
        return await tasks[0]

    found, passed = jumping(main())
    assert any(isinstance(f, ProviderStopped) for f in found)
    assert len(endpoint.begun) < 100
    assert passed >= MAX_OUTAGE_AT_START_S


def test_one_call_that_always_fails_is_no_outage():
    class Poisoned(Busy):
        async def __call__(self, one: Call) -> Reply:
            if one.order == (0,):
                raise transient("server")
            return await super().__call__(one)

    for concurrency in (1, 8):
        limiter = open_limiter(concurrency)
        found, _ = jumping(many(Poisoned(), 30, limiter))
        assert isinstance(found[0], Transient)
        assert found[1:] == [ANSWERED] * 29
        assert not of_model(limiter).breaker.down


def test_while_an_endpoint_is_down_one_call_at_a_time_tries_it():
    endpoint, limiter = Busy(), open_limiter(16)
    endpoint.down_until = 40.0
    jumping(many(endpoint, 50, limiter))
    tried = [t for t in endpoint.begun if t < 40]
    assert BREAKER_FAILURES <= len(tried) <= 16 + 12


# --- the budget of a call ----------------------------------------------------------------------


def test_what_a_try_reserves_is_settled_by_its_answer_or_given_back():
    unlimited = Budget(max_cost=None, max_tokens=10**6, prices=Prices({}))
    reservation = unlimited.reserve(call())
    # Two answers, and room for one call at a time.
    budget = Budget(max_cost=None, max_tokens=15 + reservation.tokens, prices=Prices({}))
    send = Sending(transient(), transient("rate_limit"))
    for spent in (15, 30):
        answers = asyncio.wait_for(many(send, 1, open_limiter(1), budget=budget), 300)
        found, _ = jumping(answers)
        assert found == [ANSWERED]
        assert budget.spent_tokens == spent


def test_a_call_that_the_budget_does_not_cover_is_not_sent():
    budget = Budget(max_cost=None, max_tokens=20, prices=Prices({}))
    endpoint, limiter = Busy(), open_limiter(4)
    found, _ = jumping(many(endpoint, 3, limiter, budget=budget))
    assert all(isinstance(f, BudgetSpent) for f in found)
    assert endpoint.begun == []
    assert limiter.in_flight == 0


# --- service tiers -----------------------------------------------------------------------------


class Tiered(Busy):
    """An endpoint that has resources for the flex tier only after a while."""

    def __init__(self, full_until: float, **more: float) -> None:
        super().__init__(**more)
        self.full_until = full_until
        self.tiers: list[str | None] = []

    async def __call__(self, one: Call) -> Reply:
        self.tiers.append(one.tier)
        if one.tier == "flex" and asyncio.get_running_loop().time() < self.full_until:
            # Gemini says "overloaded" where OpenAI says that it has no resources.
            raise transient("overloaded" if len(self.tiers) % 3 == 0 else "no_resources")
        return replace(await super().__call__(one), tier=one.tier)


def test_a_tier_without_resources_is_waited_for_and_costs_no_try():
    endpoint, limiter = Tiered(MAX_WAIT_S["no_resources"] - 100), open_limiter(8)
    found, passed = jumping(many(endpoint, 20, limiter, tiers=("flex",)))
    assert found == [replace(ANSWERED, tier="flex")] * 20
    assert set(endpoint.tiers) == {"flex"}
    # No answer for so long is no outage: all calls go on together.
    assert not of_model(limiter).breaker.down
    assert passed < MAX_WAIT_S["no_resources"]
    # Asked for at most about once a minute and call.
    assert len(endpoint.tiers) < 20 * (MAX_WAIT_S["no_resources"] / 30 + 10)


def test_after_an_hour_without_resources_the_run_stops_and_says_how_to_go_on():
    endpoint = Tiered(1e9)
    found, passed = jumping(many(endpoint, 3, open_limiter(3), tiers=("flex",)))
    assert all(isinstance(one, ProviderStopped) for one in found)
    assert "the same command resumes the run" in str(found[0])
    assert "--service-tier flex,default" in str(found[0])
    assert MAX_WAIT_S["no_resources"] < passed < MAX_WAIT_S["no_resources"] + 200


def test_an_answer_begins_the_hour_anew():
    endpoint = Tiered(0.0)

    async def two_dry_spells():
        client = client_of(endpoint, open_limiter(2), tiers=("flex",))
        for i in range(2):
            endpoint.full_until = (
                asyncio.get_running_loop().time() + 0.6 * MAX_WAIT_S["no_resources"]
            )
            await outcome(client, call((i,)))
        await client.aclose()

    _, passed = jumping(two_dry_spells())
    assert passed > MAX_WAIT_S["no_resources"]


def test_with_a_tier_to_fall_back_to_a_call_waits_for_nothing():
    endpoint = Tiered(1e9)
    found, passed = jumping(many(endpoint, 5, open_limiter(5), tiers=("flex", "default")))
    assert found == [ANSWERED] * 5
    assert sorted(endpoint.tiers, key=str) == [None] * 5 + ["flex"] * 5
    assert passed < 2


def test_the_wait_that_a_full_tier_asks_for_is_kept():
    send = Sending(transient("no_resources", 45.0))

    async def once():
        client = client_of(send, open_limiter(1), tiers=("flex",))
        await outcome(client, call())
        await client.aclose()

    jumping(once())
    assert 45.0 <= send.waits[0] < 46.0
    # A long one is cut, and costs no sample.
    send = Sending(transient("no_resources", 2000.0))
    jumping(once())
    assert 300.0 <= send.waits[0] < 301.0


@pytest.mark.parametrize(("tiers", "late"), [(("default",), True), (("flex",), False)])
def test_a_call_in_a_cheaper_tier_is_never_ended_early_for_being_late(tiers, late):
    endpoint, limiter = Hanging(), open_limiter(4)
    endpoint.takes_of[30] = 10 * OVERDUE_MIN_S
    found, passed = jumping(many(endpoint, 60, limiter, tiers=tiers))
    assert found == [ANSWERED] * 60
    assert (passed > 12 * OVERDUE_MIN_S) == late


def test_calls_to_an_embedded_model_have_no_tier():
    endpoint = Tiered(0.0)
    client = client_of(endpoint, open_limiter(1), tiers=("flex",))
    jumping(outcome(client, call(model="local")))
    assert endpoint.tiers == [None]
