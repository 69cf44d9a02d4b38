"""The paper's pipeline as its authors ran it: what it asks, and what it keeps of the answers.

Two pieces of feedback a reference, new instructions from each feature by itself, a draft after the
reference's example, one refinement by the reference's feedback (Mehri et al., EACL 2026, and the
authors' code). There are no criteria, and there is no loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from memory.references import Reference, content_id, reference_hash
from nodes.context import Context
from nodes.llm import Answer, AskResult, CallOrigin, Complete, ask, make_call
from nodes.state import Attempt, SampleState, add_usage
from prompts import render, version


# MERGED nodes~feedback
# Feedback on a draft with no reference in view: the traditional way, the arm `sample`.
class Feedback(Answer):
    """What feedback brings: points, each a text."""

    feedback: list[str]


async def give_feedback(
    complete: Complete, context: Context, place: CallOrigin, *, instruction: str, response: str
) -> AskResult[Feedback]:
    """Ask the judge what is good and what is not in a draft. Raises `CallFailed`."""
    messages = render("feedback", instruction=instruction, response=response)
    return await ask(complete, make_call("feedback", messages, Feedback, context, place), Feedback)


if TYPE_CHECKING:
    # It brings LangGraph, which a command that only writes rows can do without.
    from memory.characteristics import Learned

FEATURES = ("subject_areas", "relevant_skills")


class Improved(Answer):
    """A refinement after the authors' order: analysis, plan, response.

    An endpoint that was told of plan and response only, and knows no more, is read as well.
    """

    original_strengths: list[str] = Field(default_factory=list)
    improvement_opportunities: list[str] = Field(default_factory=list)
    relevant_feedback: list[str] = Field(default_factory=list)
    plan: list[str] = Field(default_factory=list)
    rationale: str = ""
    response: str

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The strict shape that is asked for: every key."""
        schema = super().model_json_schema(*args, **kwargs)
        for one in schema["properties"].values():
            one.pop("default", None)
        schema["required"] = list(schema["properties"])
        return schema


def feedback_key(reference: Reference, context: Context) -> str:
    """What an entry of `collect_feedback` rests on; a change of any of it is another entry."""
    asked = version("feedback_instruction", "feedback_response")
    return content_id(reference_hash(reference), asked, context.judge, "refed")


async def collect_feedback(
    reference: Reference, context: Context, place: CallOrigin, complete: Complete
) -> Learned:
    """The two pieces of feedback on a reference, on its instruction and on its response."""
    at = CallOrigin(f"reference {reference['id']}", "", place.order)

    async def asked(name: str, draw: int) -> AskResult[Feedback]:
        messages = render(f"feedback_{name}", reference=reference)
        call = make_call("feedback", messages, Feedback, context, at, draw)
        return await ask(complete, call, Feedback)

    of_instruction, of_response = await asyncio.gather(
        asked("instruction", 0), asked("response", 1)
    )
    points = [text.strip() for text in of_instruction.answer.feedback if text.strip()] or [""]
    return {
        "reference_id": reference["id"],
        "subject_areas": points[:1],
        # A list that was not told apart serves as both.
        "relevant_skills": points[1:] or points,
        "response_feedback": [t.strip() for t in of_response.answer.feedback if t.strip()],
        "criteria": [],
        "answers_bar": None,
        "topic_bar": None,
        "counts": {"proposed": 0, "earned": 0, "demoted": 0, "dropped": 0},
        "usage": add_usage(of_instruction.usage, of_response.usage),
    }


def counts_by_feature(per_seed: int) -> dict[str, int]:
    """How many new instructions each feature is asked for; the first takes what is over.

    >>> counts_by_feature(20), counts_by_feature(1)
    ({'subject_areas': 10, 'relevant_skills': 10}, {'subject_areas': 1})
    """
    counts = dict(zip(FEATURES, (-(-per_seed // 2), per_seed // 2), strict=True))
    return {name: count for name, count in counts.items() if count}


def feature_phrases(feature: str, learned: Sequence[Learned]) -> dict[str, list[str]]:
    """The one feature a prompt of new instructions is to show."""
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
    """What a record of this pipeline has beyond others: the fields of the authors' data.

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
