"""The first step of the graph `sample` when it is run on its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langgraph.runtime import Runtime

from memory.references import Reference, content_id
from nodes.checks import RunCheck, default_checks, run_safe_check
from nodes.context import Context
from nodes.criteria import answers_instruction, generic_criteria, rule_criteria
from nodes.inputs import BadInput, read_sample_input
from nodes.state import Criterion, SampleState


async def begin(
    state: SampleState, runtime: Runtime[Context], *, check: RunCheck = run_safe_check
) -> dict[str, Any]:
    """Check the input, and reset a thread that was used before.

    Reads `instruction`, `references`, `criteria`; writes all that the loop reads. Without criteria
    for the judge the checklist of the arm `generic` is used. Raises `BadInput`.
    """
    context = runtime.context or Context()
    instruction, references, own = read_sample_input(state)
    if context.pipeline == "refed":
        raise BadInput("the pipeline refed needs a seed's references: run the synthesizer")
    given = [_as_given(one["criterion"], references) for one in own]
    checks = [criterion for criterion in given if criterion["judged_by"] == "check"]
    if context.feedback in ("none", "sample"):
        criteria = checks
    else:
        judged = len(given) > len(checks)
        criteria = [answers_instruction(None), *given, *(() if judged else generic_criteria())]
    return {
        "seed": {"id": content_id(instruction), "instruction": instruction},
        "slot": 0,
        "instruction": instruction,
        "references": references,
        "criteria": [*criteria, *await default_checks(references, check), *rule_criteria()],
        **dict.fromkeys(("attempts", "answers", "answer_errors", "usage")),
        "status": "open",
        "answering": False,
        **dict.fromkeys(("reason", "failure", "contaminated", "topic_bar", "review", "analysed")),
        **dict.fromkeys(("bare", "reasoning")),
    }


def _as_given(criterion: Criterion, references: Sequence[Reference]) -> Criterion:
    """A person's criterion, as if it were of the reference; one without a name gets it of its text.

    So drafts are shown it.
    """
    own_name = not criterion["id"].startswith("own-")
    return {
        **criterion,
        "id": criterion["id"] if own_name else f"c{content_id(criterion['text'])[:8]}",
        "reference_id": references[0]["id"] if references else "given",
    }
