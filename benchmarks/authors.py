"""The authors' pipeline, by arithmetic: its calls, its tokens, and what its rows are worth.

Two feedback calls a reference (one on its instruction, one on its response), one call for ten new
instructions, then two calls a row: a draft, and one refinement by the response feedback. Every row
is exported; nothing judges it. (Mehri et al., EACL 2026, and their published code.)
"""

from __future__ import annotations

from dataclasses import dataclass

INSTRUCTIONS_A_CALL = 10
# Tokens of the authors' published prompts without the data in them.
TEMPLATES = {"on_instruction": 203, "on_response": 173, "instructions": 99, "draft": 167}
TEMPLATES |= {"refine": 332}
# Tokens assumed of their answers where refloom's run has nothing of the kind: the feedback on an
# instruction and on a response, and the analysis that a refinement writes before its response.
FIELDS, FEEDBACK, ANALYSIS = 90, 250, 320


@dataclass(frozen=True, slots=True)
class Sizes:
    """Mean tokens of the texts that both pipelines handle, and of one of refloom's judge calls."""

    reference_instruction: float
    reference_response: float
    instruction: float
    response: float
    judge_prompt: float
    judge_answer: float


def authors(
    sizes: Sizes,
    references: int,
    per_reference: int,
    *,
    passes: float,
    mends: float,
    spoils: float,
) -> dict[str, object]:
    """What their pipeline pays for these references, and how many of its rows are good.

    The refinement is made of every draft, good or bad.
    """
    rows = references * per_reference
    pair = sizes.reference_instruction + sizes.reference_response
    on_both = (TEMPLATES["on_instruction"] + TEMPLATES["on_response"]) / 2
    proposals = references * -(-per_reference // INSTRUCTIONS_A_CALL)
    to_propose = TEMPLATES["instructions"] + sizes.reference_instruction + FIELDS
    to_draft = TEMPLATES["draft"] + pair + sizes.instruction
    to_refine = TEMPLATES["refine"] + sizes.instruction + sizes.response + FEEDBACK
    return {
        "candidates": rows,
        "rows": rows,
        "good": rows * (passes * (1 - spoils) + (1 - passes) * mends),
        "stages": {
            "feedback": _stage(2 * references, pair + on_both, (FIELDS + FEEDBACK) / 2),
            "propose": _stage(proposals, to_propose, sizes.instruction * rows / proposals),
            "generate": _stage(rows, to_draft, sizes.response),
            "refine": _stage(rows, to_refine, ANALYSIS + sizes.response),
        },
    }


def judged_once(pipeline: dict, sizes: Sizes, errs: float) -> dict[str, object]:
    """The same pipeline with one judge call a row behind it, and only what passes exported."""
    rows, good = pipeline["rows"], pipeline["good"]
    passed = good * (1 - errs)
    judging = _stage(rows, sizes.judge_prompt, sizes.judge_answer)
    return {
        "candidates": pipeline["candidates"],
        "rows": passed + (rows - good) * errs,
        "good": passed,
        "stages": {**pipeline["stages"], "critique": judging},
    }


def _stage(calls: float, prompt: float, answer: float) -> dict[str, float]:
    """A stage's calls and tokens, of the tokens of one call."""
    return {
        "calls": calls,
        "prompt_tokens": calls * prompt,
        "completion_tokens": calls * answer,
    }


def total(pipeline: dict, name: str) -> float:
    """Calls, prompt tokens or completion tokens of all stages together."""
    return sum(stage.get(name, 0) for stage in pipeline["stages"].values())


def per_row(pipeline: dict) -> dict[str, float]:
    """Calls and tokens for one exported row and for one good one, and the share that is good."""
    rows, good = pipeline["rows"], pipeline["good"]
    calls = total(pipeline, "calls")
    return {
        "good_share": good / rows if rows else 0.0,
        "calls": calls / rows if rows else 0.0,
        "calls_a_good": calls / good if good else 0.0,
        "read": total(pipeline, "prompt_tokens") / rows if rows else 0.0,
        "written": total(pipeline, "completion_tokens") / rows if rows else 0.0,
        "written_a_good": total(pipeline, "completion_tokens") / good if good else 0.0,
    }
