"""One model at one endpoint: how many calls it may have in flight now, and from when."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from nodes.llm import Call, ProviderStopped, Reply
from nodes.llm.protocol import Transient

# MERGED refloom~runs~pace
# How fast calls may follow one another, as the user or the endpoint says.
MINUTE_S = 60.0
# No header pauses all calls for longer; a longer limit shows itself again after it.
LONGEST_PAUSE_S = 60.0
# What `pause_of` reads.
TOLD_IN = tuple(
    f"x-ratelimit-{what}-{of}" for what in ("remaining", "reset") for of in ("requests", "tokens")
)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


class Pace:
    """A token bucket as the time at which the next unit is due (GCRA).

    Nothing is saved up, so that no minute holds more than `per_minute`, not even the first.
    """

    def __init__(self, per_minute: float) -> None:
        """`per_minute`: calls or tokens that may begin in any minute."""
        self._interval = MINUTE_S / per_minute
        self._due = 0.0

    def ready_at(self) -> float:
        """The time from which the next may begin, on the caller's clock."""
        return self._due

    def take(self, now: float, amount: float = 1.0) -> None:
        """Begin something of `amount`."""
        self._due = max(self._due, now) + amount * self._interval

    def correct(self, by: float) -> None:
        """Count `by` more (or less) for what was begun: the estimate was off."""
        self._due += by * self._interval


def pause_of(headers: Mapping[str, str], tokens: float) -> float:
    """The seconds for which rate-limit headers ask that no call begin; 0: they do not.

    `tokens` is what the next call is expected to use. Read are `x-ratelimit-remaining-requests`,
    `-tokens` and the `x-ratelimit-reset-` of each, as OpenAI and most others send them.
    """
    pause = 0.0
    for what, least in (("requests", 1.0), ("tokens", tokens)):
        left = _number(headers.get(f"x-ratelimit-remaining-{what}"))
        if left is not None and left < least:
            pause = max(pause, _seconds(headers.get(f"x-ratelimit-reset-{what}")))
    return min(pause, LONGEST_PAUSE_S)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _seconds(text: str | None) -> float:
    """A duration such as `6m0s`, `20ms` or `1.5`.

    >>> [_seconds(t) for t in ("1m2s", "20ms", "1.5", "soon", None)]
    [62.0, 0.02, 1.5, 0.0, 0.0]
    """
    plain = _number(text)
    if plain is not None:
        return max(plain, 0.0) if plain < float("inf") else 0.0
    parts = _DURATION.findall(text or "")
    return sum((float(n) * _UNITS[unit] for n, unit in parts), 0.0)


# Until a first call has succeeded: enough to get past one that hangs, few enough to fail fast.
OPENING = 4
# After an endpoint's "too much" the limit falls to this share; each full round without adds one.
CUT = 0.7
CONGESTED = ("rate_limit", "timeout", "overloaded")
# A call is late when it takes ten times as long as the slowest of its kind, but never sooner.
LATE = 10
LATE_AT_LEAST_S = 30.0
LATE_AFTER = 8
# The circuit breaker: so many failures in a row, of more than one call, and the endpoint is down.
BREAK_AFTER = 5
FIRST_COOL_S = 1.0
OUTAGE_S = 300.0
OUTAGE_AT_START_S = 60.0
REFUSED_AT_START = 3
# What a call writes is not known before; the first of a kind are taken for this much.
FIRST_GUESS_TOKENS = 500
CHARACTERS_A_TOKEN = 4

Kind = tuple[str, bool]


@dataclass(eq=False, slots=True)
class Turn:
    """A call that is under way. `patience` counts how often it was late before."""

    kind: Kind
    began: float
    expected: float
    patience: int
    deadline: asyncio.Timeout | None = None


@dataclass(eq=False, slots=True, order=False)
class Waiting:
    """A call that waits for its turn."""

    kind: Kind
    expected: float
    patience: int
    let_in: asyncio.Future[Turn]


def kind_of(call: Call) -> Kind:
    """What calls are alike in time and use: those of a stage, one-token questions apart."""
    return call.stage, call.answer is None


@dataclass(slots=True)
class Breaker:
    """Whether an endpoint is down: failures in a row with no answer between them."""

    down: bool = False
    until: float = 0.0
    _in_a_row: int = 0
    _since: float = 0.0
    _cool: float = FIRST_COOL_S
    _calls: set[object] = field(default_factory=set)

    def answered(self) -> None:
        """An answer came: whatever was, is over."""
        if self._in_a_row:
            self.down, self._in_a_row, self._cool = False, 0, FIRST_COOL_S
            self._calls.clear()

    def failed(self, call: object, now: float) -> None:
        """A failure more; one call that always fails says nothing of the endpoint."""
        if not self._in_a_row:
            self._since = now
        self._in_a_row += 1
        if len(self._calls) < 2:
            self._calls.add(call)
        if self._in_a_row >= BREAK_AFTER and len(self._calls) > 1 and now >= self.until:
            self.down, self.until = True, now + self._cool
            self._cool = min(2 * self._cool, LONGEST_PAUSE_S)

    def give_up(self, opened: bool, fault: Transient, now: float) -> None:
        """Raise `ProviderStopped` when the endpoint was never reached, or is down for too long."""
        if not opened and fault.kind == "connection" and self._in_a_row >= REFUSED_AT_START:
            raise ProviderStopped(
                f"the endpoint cannot be reached: {fault.message}. Check --base-url"
            ) from fault
        lasted = now - self._since
        if self.down and lasted > (OUTAGE_S if opened else OUTAGE_AT_START_S):
            raise ProviderStopped(
                f"the endpoint has answered no call for {lasted:.0f} s (the last said: "
                f"{fault.message}). What was made is kept; the same command goes on"
            ) from fault


class Lane:
    """The limit is adaptive (additive increase, multiplicative decrease, as TCP's).

    An endpoint that says "too much" gets less, and is tried with more again while it answers.
    """

    def __init__(self, concurrency: int, rpm: int | None = None, tpm: int | None = None) -> None:
        """`concurrency` bounds the limit; `rpm` and `tpm` are calls and tokens a minute."""
        self.concurrency = concurrency
        self.waiting: list[tuple[tuple[int, ...], int, Waiting]] = []
        self.turns: set[Turn] = set()
        self.breaker = Breaker()
        self.opened = False
        self._paused_until = 0.0
        self._allowed = float(concurrency)
        self._cut_at = float("-inf")
        self._requests = Pace(rpm) if rpm else None
        self._tokens = Pace(tpm) if tpm else None
        self._slowest: defaultdict[Kind, float] = defaultdict(float)
        self._ended: Counter[Kind] = Counter()
        self._written: dict[Kind, float] = {}

    @property
    def limit(self) -> int:
        """How many calls may be in flight now; while the endpoint is down, one to try it."""
        if self.breaker.down:
            return 1
        most = self.concurrency if self.opened else min(OPENING, self.concurrency)
        return max(1, min(most, int(self._allowed)))

    def ready_at(self) -> float:
        """The time from which the next call may begin."""
        ready = max(self._paused_until, self.breaker.until)
        for pace in (self._requests, self._tokens):
            ready = max(ready, pace.ready_at()) if pace else ready
        return ready

    def begin(self, waiting: Waiting, now: float) -> Turn:
        """A call begins: pace and limit count it."""
        turn = Turn(waiting.kind, now, waiting.expected, waiting.patience)
        self.turns.add(turn)
        if self._requests:
            self._requests.take(now)
        if self._tokens:
            self._tokens.take(now, turn.expected)
        return turn

    def expected(self, call: Call) -> float:
        """What a call will likely use, in tokens: its prompt's length and its kind's mean."""
        if self._tokens is None:
            return 0.0
        prompt = sum(len(m["content"]) for m in call.messages) / CHARACTERS_A_TOKEN
        guess = min(call.max_tokens * call.room, FIRST_GUESS_TOKENS)
        return prompt + self._written.get(kind_of(call), guess)

    def answered(self, turn: Turn, reply: Reply, now: float) -> None:
        """A call was answered: its time and its use are learned from, the limit may grow."""
        self.opened = True
        self.breaker.answered()
        self._allowed = min(self.concurrency, self._allowed + 1 / self._allowed)
        self._slowest[turn.kind] = max(self._slowest[turn.kind], now - turn.began)
        self._ended[turn.kind] += 1
        if self._tokens:
            written = reply.usage["completion_tokens"]
            self._written[turn.kind] = 0.9 * self._written.get(turn.kind, written) + 0.1 * written
            self._tokens.correct(written + reply.usage["prompt_tokens"] - turn.expected)

    def failed(self, turn: Turn, call: object, fault: Transient, now: float) -> None:
        """A call failed in passing: an overloaded endpoint is asked less, or not for a while.

        Raises `ProviderStopped` when there is no more hope for it.
        """
        if fault.kind in CONGESTED and turn.began > self._cut_at:
            # Those that were in flight with it say the same thing once more.
            self._allowed = max(1.0, self._allowed * CUT)
            self._cut_at = now
        if fault.kind in CONGESTED and fault.retry_after is not None:
            self.pause(now, fault.retry_after)
        if self._tokens:
            self._tokens.correct(-turn.expected)
        self.breaker.failed(call, now)
        self.breaker.give_up(self.opened, fault, now)

    def pause(self, now: float, seconds: float) -> None:
        """Begin no call for a while."""
        self._paused_until = max(self._paused_until, now + min(seconds, LONGEST_PAUSE_S))

    def end_late(self, now: float) -> None:
        """End the calls that are long overdue; tried again, each is given twice the time."""
        for turn in self.turns:
            if turn.deadline is None or self._ended[turn.kind] < LATE_AFTER:
                continue
            allowance = max(LATE_AT_LEAST_S, LATE * self._slowest[turn.kind]) * 2**turn.patience
            if now - turn.began > allowance and not turn.deadline.expired():
                turn.deadline.reschedule(now)


# MERGED refloom~runs~limits
# How many calls are in flight, and which goes next. Calls to one model at one endpoint share a
# lane: its limit, its pace, its pauses. All lanes share the places of the run.
SWEEP_S = 1.0
# A timer may come this much early by the clock's own grain.
GRAIN_S = 1e-6


class Limiter:
    """Lets calls through: at most `concurrency` at once, those of earlier slots first."""

    def __init__(self, concurrency: int, rpm: int | None = None, tpm: int | None = None) -> None:
        """`rpm` and `tpm` bound the calls and tokens a minute of each lane."""
        self.concurrency = concurrency
        self.in_flight = 0
        self._rpm, self._tpm = rpm, tpm
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._count = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    def lane(self, address: str, model: str) -> Lane:
        """The lane of a model at an endpoint."""
        found = self._lanes.get((address, model))
        if found is None:
            found = self._lanes[address, model] = Lane(self.concurrency, self._rpm, self._tpm)
        return found

    @property
    def limit(self) -> int:
        """How many calls may be in flight now, over all lanes."""
        lanes = [lane.limit for lane in self._lanes.values()]
        return min(self.concurrency, sum(lanes)) if lanes else self.concurrency

    @property
    def waiting(self) -> int:
        """How many calls wait for a place."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    @asynccontextmanager
    async def place(self, lane: Lane, call: Call, patience: int = 0) -> AsyncIterator[Turn]:
        """Hold one of the places for the length of a call; earlier orders are let in first."""
        let_in: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        waiting = Waiting(kind_of(call), lane.expected(call), patience, let_in)
        heapq.heappush(lane.waiting, (call.order, next(self._count), waiting))
        self._let_in()
        try:
            turn = await let_in
        except asyncio.CancelledError:
            if let_in.done() and not let_in.cancelled():
                self._leave(lane, let_in.result())
            raise
        try:
            yield turn
        finally:
            self._leave(lane, turn)

    def heed(self, lane: Lane, headers: Mapping[str, str]) -> None:
        """Mind the rate-limit headers of an answer."""
        pause = pause_of(headers, lane.waiting[0][2].expected if lane.waiting else 1.0)
        if pause:
            lane.pause(asyncio.get_running_loop().time(), pause)

    def close(self) -> None:
        """Let no timer outlive the run."""
        for timer in (self._timer, self._sweeper):
            if timer is not None:
                timer.cancel()
        self._timer = self._sweeper = None

    def _leave(self, lane: Lane, turn: Turn) -> None:
        lane.turns.discard(turn)
        self.in_flight -= 1
        self._let_in()

    def _let_in(self) -> None:
        """Let in whom the limits allow, and come again when the next may begin."""
        loop = asyncio.get_running_loop()
        now = loop.time() + GRAIN_S
        while self.in_flight < self.concurrency:
            able = [lane for lane in self._lanes.values() if _wants(lane)]
            if not able:
                break
            due = [lane for lane in able if lane.ready_at() <= now]
            if not due:
                self._come_again(loop, min(lane.ready_at() for lane in able))
                break
            lane = min(due, key=lambda lane: lane.waiting[0][:2])
            waiting = heapq.heappop(lane.waiting)[2]
            waiting.let_in.set_result(lane.begin(waiting, loop.time()))
            self.in_flight += 1
        if self.in_flight and self._sweeper is None:
            self._sweeper = loop.call_later(SWEEP_S, self._sweep)

    def _come_again(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(at, self._let_in)

    def _sweep(self) -> None:
        self._sweeper = None
        loop = asyncio.get_running_loop()
        for lane in self._lanes.values():
            lane.end_late(loop.time())
        if self.in_flight:
            self._sweeper = loop.call_later(SWEEP_S, self._sweep)


def _wants(lane: Lane) -> bool:
    """Whether somebody waits in the lane and it has room."""
    while lane.waiting and lane.waiting[0][2].let_in.done():
        heapq.heappop(lane.waiting)
    return bool(lane.waiting) and len(lane.turns) < lane.limit
