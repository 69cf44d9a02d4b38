"""Sending a call, again after faults that pass, in its lane's turn."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from nodes.llm import Call, ProviderStopped, Reply
from nodes.llm.protocol import Transient
from refloom.runs.budget import Budget
from refloom.runs.lane import Lane, Turn
from refloom.runs.limits import Limiter

TRIES = 6
LONGEST_WAIT_S = 60.0
# How long an endpoint may ask a call to wait before the run had better be taken up later.
PATIENCE_S = 300.0

Send = Callable[[Call], Awaitable[Reply]]
Keep = Callable[[Reply], Awaitable[None]]


async def with_retries(
    send: Send,
    call: Call,
    lane: Lane,
    limiter: Limiter,
    *,
    budget: Budget,
    seconds: float,
    keep: Keep,
    faulted: Callable[[Transient], None],
) -> Reply:
    """Send a call, at most six times, each time in its turn; between tries it holds no place.

    What a try may cost is reserved before it and settled after it. The place is held until `keep`
    has the answer on disk, so that no more than the calls in flight are ever to be made again.
    Waits with full jitter, or as long as the endpoint asks. While the endpoint is down for
    everybody, tries are not counted. `seconds` bounds each try; `faulted` is told of
    every fault. Raises the last `Transient`, or `ProviderStopped` when there is no more hope.
    """
    tries = late = 0
    while True:
        async with limiter.place(lane, call, late) as turn:
            got = await _tried(send, call, turn, budget, seconds)
            if isinstance(got, Reply):
                lane.answered(turn, got, _now())
                await keep(got)
                return got
            lane.failed(turn, (call.stage, call.order, call.seed), got, _now())
        late += got.kind == "timeout"
        tries += not lane.breaker.down
        wait = _wait(tries, got, lane)
        if tries >= TRIES:
            raise got
        faulted(got)
        await asyncio.sleep(wait)


async def _tried(
    send: Send, call: Call, turn: Turn, budget: Budget, seconds: float
) -> Reply | Transient:
    """One try: the reply, or the fault that may pass."""
    reservation, usage = await budget.reserve(call), None
    turn.began = _now()
    try:
        async with asyncio.timeout(seconds) as turn.deadline:
            reply = await send(call)
        usage = reply.usage
    except TimeoutError:
        return Transient(call.stage, "timeout", "the endpoint did not answer in time")
    except Transient as transient:
        return transient
    finally:
        budget.settle(reservation, usage)
    return reply


def _wait(tries: int, fault: Transient, lane: Lane) -> float:
    """The seconds until the next try. Raises what there is no use in waiting for."""
    if lane.breaker.down:
        # Behind those that have not tried: one call's own trouble must not look like an outage.
        return max(lane.breaker.until - _now(), 0.0) + random.uniform(0.1, 1.0)
    if fault.retry_after is None:
        return random.uniform(0, min(0.5 * 2**tries, LONGEST_WAIT_S))
    if fault.retry_after <= PATIENCE_S:
        return fault.retry_after + random.uniform(0, 0.5)
    if fault.kind == "rate_limit":
        raise ProviderStopped(
            f"the endpoint asks to wait {fault.retry_after:.0f} s ({fault.message}). "
            "What was made is kept; the same command goes on"
        ) from fault
    raise fault


def _now() -> float:
    return asyncio.get_running_loop().time()
