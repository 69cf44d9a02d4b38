"""Pairwise comparison: two responses to one instruction, judged in both orders."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from nodes.context import Context
from nodes.llm import Answer, AskResult, CallOrigin, Complete, ask, make_call
from nodes.state import Usage, add_usage
from prompts import render

Side = Literal["first", "second", "tie"]
SCORES = {"first": 1.0, "tie": 0.5, "second": 0.0}


def _normalize_winner(value: Any) -> Any:
    """A winner as the schema spells it, from "a", "Response B" or "Tie."."""
    if not isinstance(value, str):
        return value
    word = value.strip().strip(".\"'").removeprefix("Response ").strip()
    return "tie" if word.lower() == "tie" else word.upper()


class Compared(Answer):
    """What a comparison brings: the reason first, so that it is made before the choice."""

    reason: str
    winner: Annotated[
        Literal["A", "B", "tie"],
        BeforeValidator(_normalize_winner),
        Field(json_schema_extra={"enum": ["A", "B", "tie"]}),
    ]


@dataclass(frozen=True, slots=True)
class PairwiseResult:
    """Which of two responses a judge prefers.

    `orders` has the winner with the first response as A, then with the places swapped; `reasons`
    are the judge's, in the same order.
    """

    orders: tuple[Side, Side]
    reasons: tuple[str, str]
    usage: Usage

    @property
    def score(self) -> float:
        """The first response's share of the win, 0 to 1: the mean over both orders.

        >>> PairwiseResult(("first", "second"), ("", ""), {}).score  # A was preferred in both
        0.5
        """
        return sum(SCORES[side] for side in self.orders) / 2

    @property
    def consistent(self) -> bool:
        """Whether both orders have the same winner."""
        return self.orders[0] == self.orders[1]

    @property
    def first_position_wins(self) -> list[bool]:
        """For each order with a winner, whether that was A, the response shown first.

        >>> PairwiseResult(("first", "first"), ("", ""), {}).first_position_wins
        [True, False]
        """
        shown_first = zip(self.orders, ("first", "second"), strict=True)
        return [side == first for side, first in shown_first if side != "tie"]

    @property
    def winner(self) -> Side:
        """The winner of both orders; a tie if they disagree."""
        return self.orders[0] if self.consistent else "tie"


async def compare(
    complete: Complete,
    context: Context,
    origin: CallOrigin,
    *,
    instruction: str,
    first: str,
    second: str,
    draw: int = 0,
) -> PairwiseResult:
    """Ask the judge which response is better, twice, with each one shown first once.

    `draw` distinguishes repeats. The same two responses passed the other way round make the same
    two calls, which are not paid again. Raises `CallFailed`.
    """

    async def ask_order(a: str, b: str) -> AskResult[Compared]:
        number = int(a > b)
        messages = render("compare", instruction=instruction, first=a, second=b)
        call = make_call("compare", messages, Compared, context, origin, draw * 2 + number)
        return await ask(complete, call, Compared)

    # Wait for both even if one fails: a call that is under way is paid, and its answer cached.
    results = await asyncio.gather(
        ask_order(first, second), ask_order(second, first), return_exceptions=True
    )
    for result in results:
        if isinstance(result, BaseException):
            raise result
    forward, backward = (r for r in results if not isinstance(r, BaseException))
    sides: dict[str, Side] = {"A": "first", "B": "second", "tie": "tie"}
    swapped_sides: dict[str, Side] = {"A": "second", "B": "first", "tie": "tie"}
    return PairwiseResult(
        (sides[forward.answer.winner], swapped_sides[backward.answer.winner]),
        (forward.answer.reason, backward.answer.reason),
        add_usage(forward.usage, backward.usage),
    )
