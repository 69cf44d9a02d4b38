"""Refinement by feedback instead of criteria: the arm `sample`, and the paper's pipeline `refed`.

The arm `sample` is the traditional way: the judge gives feedback on a draft, without a reference.
`refed` follows Mehri et al. (EACL 2026) and the authors' code: two pieces of feedback on each
reference, new instructions from each feature by itself, a draft after the reference's example, one
refinement by the reference's feedback. It has no criteria and no loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from memory.references import Reference, content_id, reference_hash
from nodes.context import Context
from nodes.llm import (
    Answer,
    AskResult,
    CallFailed,
    CallOrigin,
    Complete,
    LenientAnswer,
    ask,
    make_call,
)
from nodes.state import Attempt, SampleState, add_usage
from prompts import prompt_version, render

if TYPE_CHECKING:
    # Loads LangGraph, which commands that only write rows do without.
    from memory.characteristics import Learned

FEATURES = ("subject_areas", "relevant_skills")


class Feedback(Answer):
    """What feedback brings: points, each a text."""

    feedback: list[str]


class Improved(LenientAnswer):
    """A refinement after the authors' order: analysis, plan, response.

    Only the paper's pipeline asks for it. An answer of a plan and a response alone is read as well.
    """

    original_strengths: list[str] = Field(default_factory=list)
    improvement_opportunities: list[str] = Field(default_factory=list)
    relevant_feedback: list[str] = Field(default_factory=list)
    plan: list[str] = Field(default_factory=list)
    rationale: str = ""
    response: str


async def give_feedback(
    complete: Complete, context: Context, origin: CallOrigin, *, instruction: str, response: str
) -> AskResult[Feedback]:
    """Ask the judge for feedback on a draft. Raises `CallFailed`."""
    messages = render("feedback", instruction=instruction, response=response)
    return await ask(complete, make_call("feedback", messages, Feedback, context, origin), Feedback)


def feedback_key(reference: Reference, context: Context) -> str:
    """The key of an entry of `collect_feedback`; it covers all that the entry depends on."""
    prompts = prompt_version("feedback_instruction", "feedback_response")
    return content_id(reference_hash(reference), prompts, context.judge, "refed")


async def collect_feedback(
    reference: Reference, context: Context, origin: CallOrigin, complete: Complete
) -> Learned:
    """Ask for feedback on a reference's instruction and on its response. Raises `CallFailed`."""
    origin = CallOrigin(f"reference {reference['id']}", "", origin.order)

    async def ask_about(part: str, draw: int) -> AskResult[Feedback] | CallFailed:
        messages = render(f"feedback_{part}", reference=reference)
        call = make_call("feedback", messages, Feedback, context, origin, draw)
        try:
            return await ask(complete, call, Feedback)
        except CallFailed as error:
            return error

    on_instruction, on_response = await asyncio.gather(
        ask_about("instruction", 0), ask_about("response", 1)
    )
    usage = add_usage(on_instruction.usage, on_response.usage)
    if isinstance(on_instruction, CallFailed):
        on_instruction.usage = usage
        raise on_instruction
    if isinstance(on_response, CallFailed):
        on_response.usage = usage
        raise on_response
    points = [text.strip() for text in on_instruction.answer.feedback if text.strip()] or [""]
    return {
        "reference_id": reference["id"],
        "subject_areas": points[:1],
        # A single point serves as both features.
        "relevant_skills": points[1:] or points,
        "response_feedback": [t.strip() for t in on_response.answer.feedback if t.strip()],
        "criteria": [],
        "answers_bar": None,
        "topic_bar": None,
        "counts": {"proposed": 0, "earned": 0, "demoted": 0, "dropped": 0},
        "usage": usage,
    }


def counts_by_feature(per_seed: int) -> dict[str, int]:
    """How many new instructions each feature is asked for; the first gets the odd one.

    >>> counts_by_feature(20), counts_by_feature(1)
    ({'subject_areas': 10, 'relevant_skills': 10}, {'subject_areas': 1})
    """
    counts = dict(zip(FEATURES, (-(-per_seed // 2), per_seed // 2), strict=True))
    return {name: count for name, count in counts.items() if count}


def feature_phrases(feature: str, learned: Sequence[Learned]) -> dict[str, list[str]]:
    """The variables of the propose prompt: phrases of one feature, none of the other."""
    phrases = [phrase for entry in learned[:1] for phrase in entry[feature] if phrase]
    return {**{name: [] for name in FEATURES}, feature: phrases}


def analysis_fields(improved: Improved) -> dict[str, Any]:
    """The analysis of a refinement, under the names of the authors' data."""
    return {
        "analysis": {
            "original_strengths": improved.original_strengths,
            "improvement_opportunities": improved.improvement_opportunities,
            "relevant_feedback": improved.relevant_feedback,
        },
        "implementation_strategy": {
            "planned_changes": improved.plan,
            "rationale": improved.rationale,
        },
        "improved_response": improved.response,
    }


def refed_fields(state: SampleState) -> dict[str, Any]:
    """The fields that a record of `refed` has beyond others: those of the authors' data.

    Their `response` is the draft, the first of `attempts`.
    """
    attempts: list[Attempt] = state.get("attempts") or []
    unrefined: dict[str, Any] = {
        **analysis_fields(Improved(response="")),
        "improved_response": None,
    }
    return {
        "feature": state.get("feature"),
        "response_feedback": attempts[0].get("feedback", []) if attempts else [],
        **(state.get("analysed") or unrefined),
    }
