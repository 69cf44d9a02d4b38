"""The bare answer: an accepted instruction answered again, with nothing else in view.

What a model thought over a reference and criteria must not be trained on, since it cites what the
student cannot see. So, with the setting `reasoning`, the instruction alone is put to the model. The
first answer that is as good as the accepted response, and whose thoughts can be kept, becomes the
response; if there is none, the response stays. Nothing here costs a sample that was accepted.
"""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime

from nodes.context import Context
from nodes.events import emit
from nodes.generate import asks_about_errors, asks_for_code_alone
from nodes.inputs import check_list_sizes
from nodes.llm import CallFailed, Complete, ask_text, make_call
from nodes.origin import origin_of
from nodes.reasoning import FAULTS_OF_THOUGHTS
from nodes.state import AnswerError, SampleState

MAX_ANSWERS = 3
# Faults of what came; another draw may do better. After any other fault it would meet the same.
FAULTS_OF_A_DRAW = ("malformed", "empty", "cut", "bad_generation", "refused", "filtered")


async def answer(
    state: SampleState, runtime: Runtime[Context], *, complete: Complete
) -> dict[str, Any]:
    """Answer the accepted instruction once more, without reference or criteria.

    Reads `instruction`, `answers`, `answer_errors`; writes `bare`, `usage`.
    """
    check_list_sizes(state)
    context, instruction = runtime.context or Context(), state["instruction"]
    messages = [{"role": "user", "content": instruction}]
    draw = count_draws(state)
    call = make_call("answer", messages, None, context, origin_of(state), draw, text=True)
    # Another draw is as good as another ask.
    result = await ask_text(
        complete,
        call,
        code_only=asks_for_code_alone(instruction),
        errors=asks_about_errors(instruction),
        thoughts=True,
        most_asks=1,
    )
    text, thoughts = result.answer.text, result.answer.thoughts
    thought = f"{len(thoughts.split())} words of thought" if thoughts else "no thoughts"
    emit(runtime, "answer", f"A bare answer of {len(text.split())} words, {thought}.")
    return {"bare": {"response": text, "thoughts": thoughts}, "usage": result.usage}


def count_draws(state: SampleState) -> int:
    """How many bare answers of a sample were asked for."""
    errors = state.get("answer_errors") or []
    failed = sum(error["kind"] not in FAULTS_OF_THOUGHTS for error in errors)
    return len(state.get("answers") or []) + failed


def fail_draw(state: SampleState, error: CallFailed) -> dict[str, Any]:
    """The update after a call for a bare answer, or for its verdicts, that failed."""
    fault: AnswerError = {"stage": error.stage, "kind": error.kind}
    another = error.kind in FAULTS_OF_A_DRAW and count_draws(state) + 1 < MAX_ANSWERS
    update = {"answer_errors": [fault], "bare": None, "answering": another}
    return {**update, "usage": error.usage}
