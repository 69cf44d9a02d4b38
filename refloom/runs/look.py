"""A run at one moment, as the display wants it."""

from __future__ import annotations

from refloom.runs.calls import JournaledCalls, Limits
from refloom.runs.order import Order
from refloom.runs.shown import Seen
from refloom.settings import Settings


def seen(
    settings: Settings,
    calls: JournaledCalls | None,
    limits: Limits | None,
    order: Order | None,
    seeds: int,
    paid_before: int,
    priced: bool,
) -> Seen:
    """How a run stands; what has not begun yet counts as nothing. Plain reads, from any thread."""
    counts = calls.counts if calls else {}
    limiter = limits.limiter if limits else None
    budget = limits.budget if limits else None
    return Seen(
        accepted=order.accepted if order else 0,
        rejected=order.rejected if order else 0,
        failed=order.failed if order else 0,
        target=settings.target,
        seeds=seeds,
        candidates=order.candidates if order else 0,
        paid=paid_before + counts.get("paid", 0),
        reused=counts.get("reused", 0),
        retried=counts.get("retried", 0),
        in_flight=limiter.in_flight if limiter else 0,
        limit=limiter.limit if limiter else settings.calls_at_once,
        concurrency=settings.calls_at_once,
        waiting=limiter.waiting if limiter else 0,
        cost=budget.spent_cost if budget and priced else None,
        max_cost=settings.max_cost,
        paid_before=paid_before,
        accepted_before=order.accepted_before if order else 0,
        tokens=budget.spent_tokens if budget else 0,
        slots=None
        if settings.target
        else seeds * (1 if settings.answer_seeds else settings.per_seed),
    )
