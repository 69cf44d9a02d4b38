"""The record of a finished sample: a line of a run's files, and what callers of the graph get."""

from __future__ import annotations

import time
from typing import Any

from memory.references import content_id
from nodes.context import Context
from nodes.feedback import refed_fields
from nodes.state import Attempt, Criterion, SampleState, no_usage
from nodes.verdicts import best_of
from prompts import prompt_version

Record = dict[str, Any]
CRITERION_KEYS = ("id", "text", "must", "reference_id", "quote", "judged_by")
# Null where a criterion has none.
OPTIONAL_CRITERION_KEYS = ("weight", "check", "trial")


def criterion_of(criterion: Criterion) -> dict[str, Any]:
    """A criterion as a record has it."""
    fields: dict[str, Any] = {key: criterion[key] for key in CRITERION_KEYS}  # type: ignore[literal-required]
    return fields | {key: criterion.get(key) for key in OPTIONAL_CRITERION_KEYS}


def record_of(state: SampleState, slot: tuple[int, int, int], context: Context) -> Record:
    """The record of a finished sample, as accepted, rejected or failed.jsonl has it."""
    attempts: list[Attempt] = state.get("attempts") or []
    criteria = state.get("criteria", [])
    failure = state.get("failure")
    status = "failed" if failure else state["status"]
    response = None
    if attempts:
        response = attempts[best_of(attempts, criteria, context)]["response"] or None
    reasoning = state.get("reasoning")
    if reasoning is not None:
        # The bare answer that was taken, which is the last one.
        response = state["answers"][-1]["response"]
    seed_id = state["seed"].get("id", "")
    usage = dict(state.get("usage") or no_usage())
    cost: Any = usage.pop("cost_usd", None)
    record: Record = {
        "id": content_id(seed_id, *map(str, slot)),
        "seed_id": seed_id,
        "slot": list(slot),
        "instruction": state.get("instruction"),
        "response": response if attempts else state.get("candidate"),
        "status": status,
        "reason": state.get("reason") if status == "rejected" else None,
        "reference_ids": [r["id"] for r in state.get("references", [])],
        "criteria": [criterion_of(c) for c in criteria],
        "instruction_criteria": [criterion_of(c) for c in state.get("instruction_criteria") or []],
        "instruction_verdicts": state.get("instruction_verdicts") or [],
        "reasoning": reasoning,
        "attempts": attempts,
        "feedback": context.feedback,
        "model": context.model,
        "judge_model": context.judge_names,
        "prompt_version": prompt_version(edited=context.edited),
        "random_seed": context.random_seed,
        "usage": usage,
        "cost_usd": None if cost is None else round(cost, 9),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if context.reasoning:
        record["answers"] = state.get("answers") or []
        record["answer_errors"] = state.get("answer_errors") or []
    if context.pipeline == "refed":
        record |= refed_fields(state)
    if status == "failed":
        record["error"] = failure
    return record
