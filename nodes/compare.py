"""Two responses to one instruction against each other, asked in both orders."""

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
WORTH = {"first": 1.0, "tie": 0.5, "second": 0.0}


def _winner(said: Any) -> Any:
    """A winner as the schema has it, however it is spelt: "a", "Response B", "Tie."."""
    if not isinstance(said, str):
        return said
    word = said.strip().strip(".\"'").removeprefix("Response ").strip()
    return "tie" if word.lower() == "tie" else word.upper()


class Compared(Answer):
    """What a comparison brings: the reason first, so that it is made before the choice."""

    reason: str
    winner: Annotated[
        Literal["A", "B", "tie"],
        BeforeValidator(_winner),
        Field(json_schema_extra={"enum": ["A", "B", "tie"]}),
    ]


@dataclass(frozen=True, slots=True)
class PairwiseResult:
    """What a judge said of two responses: who won as A then B, and with the places changed.

    `reasons` are those of the two orders.
    """

    orders: tuple[Side, Side]
    reasons: tuple[str, str]
    usage: Usage

    @property
    def score(self) -> float:
        """The first response's share of the win, 0 to 1: the mean over both orders.

        >>> Duel(("first", "second"), ("", ""), {}).score  # the judge took what stood first
        0.5
        """
        return sum(WORTH[side] for side in self.orders) / 2

    @property
    def agreed(self) -> bool:
        """Whether both orders say the same."""
        return self.orders[0] == self.orders[1]

    @property
    def first_picked(self) -> list[bool]:
        """Of each order that has a winner, whether it is what stood first; in the second, B did.

        >>> Duel(("first", "first"), ("", ""), {}).first_picked
        [True, False]
        """
        standing = zip(self.orders, ("first", "second"), strict=True)
        return [side == first for side, first in standing if side != "tie"]

    @property
    def won(self) -> Side:
        """Who won in both orders; a tie where the orders do not agree."""
        return self.orders[0] if self.agreed else "tie"


async def compare(
    complete: Complete,
    context: Context,
    place: CallOrigin,
    *,
    instruction: str,
    first: str,
    second: str,
    draw: int = 0,
) -> PairwiseResult:
    """Ask the judge which response is better, twice, each standing first once.

    `draw` tells repeats apart. Which of the two is called first makes no difference to what is
    asked, so that the same question the other way round is not paid for again. Raises `CallFailed`.
    """

    async def asked(a: str, b: str) -> AskResult[Compared]:
        number = int(a > b)
        messages = render("compare", instruction=instruction, first=a, second=b)
        call = make_call("compare", messages, Compared, context, place, draw * 2 + number)
        return await ask(complete, call, Compared)

    # Both are waited for: an answer that is under way is paid for, and wanted later.
    orders = (asked(first, second), asked(second, first))
    found = await asyncio.gather(*orders, return_exceptions=True)
    for fault in found:
        if isinstance(fault, BaseException):
            raise fault
    one, other = (asked for asked in found if not isinstance(asked, BaseException))
    sides: dict[str, Side] = {"A": "first", "B": "second", "tie": "tie"}
    turned: dict[str, Side] = {"A": "second", "B": "first", "tie": "tie"}
    return PairwiseResult(
        (sides[one.answer.winner], turned[other.answer.winner]),
        (one.answer.reason, other.answer.reason),
        add_usage(one.usage, other.usage),
    )
