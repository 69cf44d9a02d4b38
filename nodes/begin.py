"""The first step of the graph `sample` when it is run on its own."""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime

from memory.references import content_id
from nodes.context import Context
from nodes.criteria import answers_instruction, generic_criteria, rule_criteria
from nodes.inputs import BadInput, read_sample_input
from nodes.state import Criterion, SampleState


async def begin(state: SampleState, runtime: Runtime[Context]) -> dict[str, Any]:
    """Check the input, and reset a thread that was used before.

    Reads `instruction`, `references`, `criteria` (texts); writes all that the loop reads. Without
    criteria the checklist of the arm `generic` is used. Raises `BadInput`.
    """
    context = runtime.context or Context()
    instruction, references, texts = read_sample_input(state)
    if context.pipeline == "refed":
        raise BadInput("the pipeline refed needs a seed's references: run the synthesizer")
    criteria: list[Criterion] = [
        {
            "id": f"c{content_id(text)[:8]}",
            "text": text,
            "must": True,
            "reference_id": references[0]["id"] if references else "given",
            "quote": None,
            "judged_by": "judge",
        }
        for text in texts
    ]
    if context.feedback in ("none", "sample"):
        criteria = []
    else:
        criteria = [answers_instruction(None), *(criteria or generic_criteria())]
    return {
        "seed": {"id": content_id(instruction), "instruction": instruction},
        "slot": 0,
        "instruction": instruction,
        "references": references,
        "criteria": [*criteria, *rule_criteria()],
        "attempts": None,
        "usage": None,
        "status": "open",
        **dict.fromkeys(("reason", "failure", "contaminated", "topic_bar", "review", "analysed")),
    }
