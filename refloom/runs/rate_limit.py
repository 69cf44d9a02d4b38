"""Rate limits of a run: how many calls are in flight, which goes next, and when.

`Limiter` bounds the calls of a whole run and admits them by their place in it; a call waits once,
for its turn and for room under the caps of the budget. Each model at each endpoint has a
`ModelLimiter`: a concurrency limit that adapts to what the endpoint can take, requests and tokens a
minute, pauses that the endpoint asks for, and a circuit breaker. Times are those of the event
loop's clock, in seconds.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from nodes.llm import Call, ProviderStopped, Reply
from nodes.llm.protocol import Transient
from nodes.llm.provider import address_of
from refloom.errors import BudgetSpent, InputError
from refloom.runs.cost import Budget, Reservation

# The headers that `pause_from_headers` reads.
RATE_LIMIT_HEADERS = tuple(
    f"x-ratelimit-{name}-{unit}"
    for name in ("remaining", "reset")
    for unit in ("requests", "tokens")
)
# A header that asks for a longer pause is read again after this one.
MAX_PAUSE_S = 60.0
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")

# Calls in flight until the first has succeeded: enough to get past one that hangs, few enough to
# fail fast.
PROBE_LIMIT = 4
# Multiplicative decrease of the concurrency limit when the endpoint is congested.
DECREASE = 0.7
CONGESTION_FAULTS = ("rate_limit", "timeout", "overloaded")
# Faults that say that the endpoint is there and will answer: no outage, for so long.
MAX_WAIT_S = {"rate_limit": 3600.0, "no_resources": 3600.0, "loading": 1200.0}
# A call is overdue after this many times the slowest call of its kind, but never sooner than the
# minimum, nor before so many calls of its kind have been answered.
OVERDUE_FACTOR = 10
OVERDUE_MIN_S = 30.0
OVERDUE_MIN_SAMPLES = 8
SWEEP_INTERVAL_S = 1.0

# The circuit breaker opens after so many consecutive failures of at least two calls.
BREAKER_FAILURES = 5
FIRST_COOLDOWN_S = 1.0
MAX_COOLDOWN_S = 20.0
# How long an endpoint may be down before the run stops: one that answers, if only with errors, and
# one that has never said anything.
MAX_OUTAGE_S = 300.0
MAX_OUTAGE_AT_START_S = 60.0
# Failures to connect before the first answer that stop the run.
MAX_REFUSED_AT_START = 3
# A preflight that fails to connect only after so long fails for good.
SLOW_CONNECT_S = 1.5

# Completion tokens assumed of a kind of call until one has been answered.
DEFAULT_COMPLETION_TOKENS = 500
CHARS_PER_TOKEN = 4
# A timer may fire this much early, because of the clock's resolution.
CLOCK_RESOLUTION_S = 1e-6

CallKind = tuple[str, bool]


def kind_of(call: Call) -> CallKind:
    """What calls are alike in time and tokens: those of a stage, one-token questions apart."""
    return call.stage, call.kind == "question"


@dataclass(eq=False, slots=True)
class Permit:
    """Leave to send one call: waited for in a queue, then held while the call is in flight.

    `fit` gives the call, as it is admitted, the room that its endpoint is known to need. The most
    it may cost is reserved with the permit. `timeouts` counts earlier tries of the call that took
    too long. Whoever sends the call sets `deadline`, by which an overdue call is ended.
    """

    limiter: ModelLimiter
    call: Call
    timeouts: int
    expected_tokens: float
    admission: asyncio.Future[None]
    fit: Callable[[Call], Call] = lambda call: call
    reservation: Reservation | None = None
    start: float = 0.0
    deadline: asyncio.Timeout | None = None


class Limiter:
    """Admits calls: at most `concurrency` at once over all models, the lowest `order` first."""

    def __init__(
        self,
        concurrency: int,
        rpm: int | None = None,
        tpm: int | None = None,
        *,
        addresses: tuple[str, str] = ("", ""),
    ) -> None:
        """`rpm` and `tpm` bound the requests and tokens a minute of each model.

        `addresses` name the writer's and the judge's endpoint, which may be one; a provider's
        model is at its own.
        """
        self.concurrency = concurrency
        self.in_flight = 0
        # Where the most that a call may cost is reserved; without one there are no caps.
        self.budget: Budget | None = None
        self._rpm, self._tpm = rpm, tpm
        self._addresses = addresses
        self._models: dict[tuple[str, str], ModelLimiter] = {}
        self._arrivals = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    def for_model(self, model: str, judge: bool) -> ModelLimiter:
        """The limiter of a model at its endpoint."""
        key = address_of(model) or self._addresses[judge], model
        limiter = self._models.get(key)
        if limiter is None:
            limiter = self._models[key] = ModelLimiter(self.concurrency, self._rpm, self._tpm)
        return limiter

    @property
    def limit(self) -> int:
        """How many calls may be in flight now."""
        limits = [limiter.limit for limiter in self._models.values()]
        return min(self.concurrency, sum(limits)) if limits else self.concurrency

    @property
    def waiting(self) -> int:
        """How many calls wait for a permit."""
        return sum(len(limiter.queue) for limiter in self._models.values())

    @asynccontextmanager
    async def acquire(
        self, call: Call, timeouts: int = 0, fit: Callable[[Call], Call] = lambda call: call
    ) -> AsyncIterator[Permit]:
        """Wait for a permit, and hold it inside the block; calls of equal order by arrival.

        A reservation that is not settled inside the block is given back at its end. Raises
        `BudgetSpent` if the call can never fit under a cap.
        """
        limiter = self.for_model(call.model, call.judge)
        admission: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        permit = Permit(limiter, call, timeouts, limiter.expected_tokens(call), admission, fit)
        heapq.heappush(limiter.queue, (call.order, next(self._arrivals), permit))
        self._admit()
        try:
            await admission
            yield permit
        finally:
            # A caller that was cancelled may have been admitted, or refused, in the same moment.
            done = admission.done() and not admission.cancelled()
            if done and admission.exception() is None:
                limiter.in_flight.discard(permit)
                self.in_flight -= 1
                reservation = permit.reservation
                if self.budget is not None and reservation is not None and not reservation.settled:
                    self.budget.settle(reservation, None)
            # Even a call that was not admitted may have kept others waiting for room.
            self._admit()

    def apply_headers(self, model: str, judge: bool, headers: Mapping[str, str]) -> None:
        """Pause a model's calls if the rate-limit headers of an answer ask for it."""
        limiter = self.for_model(model, judge)
        tokens = limiter.queue[0][2].expected_tokens if limiter.queue else 1.0
        pause = pause_from_headers(headers, tokens)
        if pause:
            limiter.pause(asyncio.get_running_loop().time(), pause)

    def close(self) -> None:
        """Cancel all timers."""
        for timer in (self._timer, self._sweeper):
            if timer is not None:
                timer.cancel()
        self._timer = self._sweeper = None

    def _admit(self) -> None:
        """Grant permits while the limits allow, and set a timer for the next one."""
        loop = asyncio.get_running_loop()
        now = loop.time() + CLOCK_RESOLUTION_S
        while self.in_flight < self.concurrency:
            able = [limiter for limiter in self._models.values() if limiter.has_work()]
            if not able:
                break
            ready = [limiter for limiter in able if limiter.ready_at() <= now]
            if not ready:
                if self._timer is not None:
                    self._timer.cancel()
                earliest = min(limiter.ready_at() for limiter in able)
                self._timer = loop.call_at(earliest, self._admit)
                break
            limiter = min(ready, key=lambda limiter: limiter.queue[0][:2])
            permit = limiter.queue[0][2]
            try:
                if not self._reserve(permit):
                    # There is room when another call ends.
                    break
            except (BudgetSpent, InputError) as refusal:
                permit.admission.set_exception(refusal)
                continue
            heapq.heappop(limiter.queue)
            limiter.begin(permit, loop.time())
            permit.admission.set_result(None)
            self.in_flight += 1
        if self.in_flight and self._sweeper is None:
            self._sweeper = loop.call_later(SWEEP_INTERVAL_S, self._sweep)

    def _reserve(self, permit: Permit) -> bool:
        """Reserve what a call may cost; False while the reservations of others leave no room."""
        if self.budget is None:
            return True
        call = permit.fit(permit.call)
        permit.reservation = self.budget.reserve(call)
        if permit.reservation is None:
            return False
        permit.call = call
        return True

    def _sweep(self) -> None:
        """End overdue calls, again and again while any are in flight."""
        loop = asyncio.get_running_loop()
        for limiter in self._models.values():
            limiter.cancel_overdue(loop.time())
        self._sweeper = loop.call_later(SWEEP_INTERVAL_S, self._sweep) if self.in_flight else None


class ModelLimiter:
    """Limits the calls to one model at one endpoint.

    The concurrency limit adapts by additive increase and multiplicative decrease, as TCP's window
    does (RFC 5681): each round of answers adds one, a congested endpoint cuts it to `DECREASE`.
    """

    def __init__(self, concurrency: int, rpm: int | None = None, tpm: int | None = None) -> None:
        """`concurrency` is the most the limit grows to; `rpm` and `tpm` are a minute's bounds."""
        self.concurrency = concurrency
        self.queue: list[tuple[tuple[int, ...], int, Permit]] = []
        self.in_flight: set[Permit] = set()
        self.breaker = CircuitBreaker()
        # Whether any call has been answered yet.
        self.responsive = False
        self._paused_until = 0.0
        # Since when every call was asked to wait; None after an answer.
        self._waiting_since: float | None = None
        self._window = float(concurrency)
        self._last_decrease = float("-inf")
        self._requests = RateBucket(rpm) if rpm else None
        self._tokens = RateBucket(tpm) if tpm else None
        self._slowest: defaultdict[CallKind, float] = defaultdict(float)
        self._answers: Counter[CallKind] = Counter()
        self._completion_tokens: dict[CallKind, float] = {}

    @property
    def limit(self) -> int:
        """How many calls may be in flight now; one while the circuit breaker is open."""
        if self.breaker.down:
            return 1
        ceiling = self.concurrency if self.responsive else min(PROBE_LIMIT, self.concurrency)
        return max(1, min(ceiling, int(self._window)))

    def has_work(self) -> bool:
        """Whether a call waits here and the limit has room for it."""
        while self.queue and self.queue[0][2].admission.done():
            heapq.heappop(self.queue)
        return bool(self.queue) and len(self.in_flight) < self.limit

    def ready_at(self) -> float:
        """The time from which the next call may begin."""
        ready = max(self._paused_until, self.breaker.until)
        for bucket in (self._requests, self._tokens):
            ready = max(ready, bucket.ready_at()) if bucket else ready
        return ready

    def expected_tokens(self, call: Call) -> float:
        """The tokens a call will likely use; 0 without a limit on tokens.

        The prompt is estimated by its length, the completion by the mean of its kind.
        """
        if self._tokens is None:
            return 0.0
        prompt = sum(len(m["content"]) for m in call.messages) / CHARS_PER_TOKEN
        default = min(call.most_tokens, DEFAULT_COMPLETION_TOKENS)
        return prompt + self._completion_tokens.get(kind_of(call), default)

    def begin(self, permit: Permit, now: float) -> None:
        """Count a call that begins."""
        permit.start = now
        self.in_flight.add(permit)
        if self._requests:
            self._requests.take(now)
        if self._tokens:
            self._tokens.take(now, permit.expected_tokens)

    def record_reply(self, permit: Permit, reply: Reply, now: float) -> None:
        """Learn from an answer: the limit may grow, times and tokens of its kind are updated."""
        kind = kind_of(permit.call)
        self.responsive = True
        self._waiting_since = None
        self.breaker.record_success()
        self._window = min(self.concurrency, self._window + 1 / self._window)
        self._slowest[kind] = max(self._slowest[kind], now - permit.start)
        self._answers[kind] += 1
        if self._tokens:
            tokens = reply.usage["completion_tokens"]
            mean = self._completion_tokens.get(kind, tokens)
            self._completion_tokens[kind] = 0.9 * mean + 0.1 * tokens
            self._tokens.correct(tokens + reply.usage["prompt_tokens"] - permit.expected_tokens)

    def record_fault(self, permit: Permit, fault: Transient, now: float) -> None:
        """Learn from a fault: the limit may fall, and calls may be paused.

        Raises `ProviderStopped` when the endpoint has been unreachable, or without resources for
        the service tier, for too long.
        """
        if fault.kind in CONGESTION_FAULTS:
            # Calls that were in flight together report the same congestion: it counts once.
            if permit.start > self._last_decrease:
                self._window = max(1.0, self._window * DECREASE)
                self._last_decrease = now
            if fault.retry_after is not None:
                self.pause(now, fault.retry_after)
        if self._tokens:
            self._tokens.correct(-permit.expected_tokens)
        call, waits = permit.call, fault.kind in MAX_WAIT_S
        # A preflight is alone and asks for next to nothing: what fails it is the endpoint's.
        which = now if call.stage == "preflight" else (call.stage, call.order, call.seed)
        # A service tier that is full says nothing about calls in another.
        if fault.kind != "no_resources":
            self.breaker.record_failure(which, now, outage=not waits)
        if waits:
            self._check_wait(fault, now)
        else:
            slow = call.stage == "preflight" and now - permit.start > SLOW_CONNECT_S
            self.breaker.check_outage(self.responsive, fault, now, slow=slow)

    def _check_wait(self, fault: Transient, now: float) -> None:
        """Raise `ProviderStopped` if the endpoint has only asked to wait for too long."""
        if self._waiting_since is None:
            self._waiting_since = now
        seconds = now - self._waiting_since
        if seconds > MAX_WAIT_S[fault.kind]:
            more = ", and --service-tier flex,default does not wait for the cheaper tier"
            raise ProviderStopped(
                f"the endpoint has asked to wait for {seconds:.0f} s (last: {fault.message}). "
                "Finished work is kept; the same command resumes the run"
                + (more if fault.kind == "no_resources" else "")
            ) from fault

    def pause(self, now: float, seconds: float) -> None:
        """Begin no call for so many seconds, up to `MAX_PAUSE_S`."""
        self._paused_until = max(self._paused_until, now + min(seconds, MAX_PAUSE_S))

    def cancel_overdue(self, now: float) -> None:
        """End calls that are overdue by their deadline; each retry is allowed twice the time.

        A call in a service tier of its own may be slow: it is left its whole time.
        """
        for permit in self.in_flight:
            kind = kind_of(permit.call)
            late = permit.call.tier is None and self._answers[kind] >= OVERDUE_MIN_SAMPLES
            if permit.deadline is None or not late:
                continue
            allowed = max(OVERDUE_MIN_S, OVERDUE_FACTOR * self._slowest[kind]) * 2**permit.timeouts
            if now - permit.start > allowed and not permit.deadline.expired():
                permit.deadline.reschedule(now)


@dataclass(slots=True)
class CircuitBreaker:
    """Whether an endpoint is down, by its consecutive failures.

    While `down`, one call at a time tries it, not before the time `until`.
    """

    down: bool = False
    until: float = 0.0
    _consecutive: int = 0
    _since: float | None = None
    _cooldown: float = FIRST_COOLDOWN_S
    _calls: set[object] = field(default_factory=set)

    def record_success(self) -> None:
        """Close the breaker: an answer has come."""
        if self._consecutive:
            self.down, self._consecutive, self._cooldown = False, 0, FIRST_COOLDOWN_S
            self._since = None
            self._calls.clear()

    def record_failure(self, call: object, now: float, *, outage: bool = True) -> None:
        """Count a failure of a call, known by any hashable value.

        One call that always fails says nothing about the endpoint. Without `outage` the endpoint
        has only asked to wait: it is there.
        """
        if not outage:
            self._since = None
        elif self._since is None:
            self._since = now
        self._consecutive += 1
        if len(self._calls) < 2:
            self._calls.add(call)
        if self._consecutive >= BREAKER_FAILURES and len(self._calls) > 1 and now >= self.until:
            self.down, self.until = True, now + self._cooldown
            self._cooldown = min(2 * self._cooldown, MAX_COOLDOWN_S)

    def check_outage(
        self, responsive: bool, fault: Transient, now: float, *, slow: bool = False
    ) -> None:
        """Raise `ProviderStopped` if the endpoint was never reached, or is down for too long.

        `slow`: it took seconds to fail, and is not waited for again.
        """
        unreachable = not responsive and fault.kind == "connection"
        if unreachable and (slow or self._consecutive >= MAX_REFUSED_AT_START):
            raise ProviderStopped(
                f"the endpoint cannot be reached: {fault.message}. Check --base-url"
            ) from fault
        seconds = 0.0 if self._since is None else now - self._since
        answered = responsive or fault.kind not in ("connection", "timeout")
        if self.down and seconds > (MAX_OUTAGE_S if answered else MAX_OUTAGE_AT_START_S):
            raise ProviderStopped(
                f"the endpoint has answered no call for {seconds:.0f} s (last error: "
                f"{fault.message}). Finished work is kept; the same command resumes the run"
            ) from fault


class RateBucket:
    """A limit per minute, as the time at which the next unit is due (GCRA).

    Nothing is saved up, so no minute holds more than `per_minute` units, not even the first.
    """

    def __init__(self, per_minute: float) -> None:
        self._interval = 60.0 / per_minute
        self._due = 0.0

    def ready_at(self) -> float:
        """The time from which the next unit may be taken."""
        return self._due

    def take(self, now: float, amount: float = 1.0) -> None:
        """Take so many units."""
        self._due = max(self._due, now) + amount * self._interval

    def correct(self, amount: float) -> None:
        """Add to (or subtract from) what was taken, when an estimate was off."""
        self._due += amount * self._interval


def pause_from_headers(headers: Mapping[str, str], tokens: float) -> float:
    """The seconds for which rate-limit headers ask that no call begin; 0 if they do not.

    `tokens` is what the next call is expected to use. The headers are those of OpenAI and most
    others: `x-ratelimit-remaining-requests`, `-tokens`, and an `x-ratelimit-reset-` of each.
    """
    pause = 0.0
    for unit, least in (("requests", 1.0), ("tokens", tokens)):
        remaining = _number(headers.get(f"x-ratelimit-remaining-{unit}"))
        if remaining is not None and remaining < least:
            pause = max(pause, _seconds(headers.get(f"x-ratelimit-reset-{unit}")))
    return min(pause, MAX_PAUSE_S)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _seconds(text: str | None) -> float:
    """A duration such as `6m0s`, `20ms` or `1.5`; 0 if it cannot be read.

    >>> [_seconds(t) for t in ("1m2s", "20ms", "1.5", "soon", None)]
    [62.0, 0.02, 1.5, 0.0, 0.0]
    """
    number = _number(text)
    if number is not None:
        return max(number, 0.0) if number < float("inf") else 0.0
    parts = _DURATION.findall(text or "")
    return sum((float(value) * _UNIT_SECONDS[unit] for value, unit in parts), 0.0)
