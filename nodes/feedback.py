"""Feedback on a draft with no reference in view: the traditional way, the arm `sample`."""

from __future__ import annotations

from nodes.context import Context
from nodes.llm import Answer, Asked, Complete, Place, ask, make_call
from prompts import render


class Feedback(Answer):
    """What feedback brings: points, each a text."""

    feedback: list[str]


async def feedback(
    complete: Complete, context: Context, place: Place, *, instruction: str, response: str
) -> Asked[Feedback]:
    """Ask the judge what is good and what is not in a draft. Raises `CallFailed`."""
    messages = render("feedback", instruction=instruction, response=response)
    return await ask(complete, make_call("feedback", messages, Feedback, context, place), Feedback)
