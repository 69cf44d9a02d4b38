"""New instructions for a seed, each new to the run before anything is paid for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

from langgraph.runtime import Runtime

from memory.novelty import NoveltyFilter
from nodes.context import Context
from nodes.criteria import RuleInput, no_placeholder
from nodes.events import emit
from nodes.failures import failure_from
from nodes.feedback import FEATURES, counts_by_feature, feature_phrases
from nodes.hooks import RunHooks
from nodes.llm import Answer, CallFailed, Complete, ask, make_call
from nodes.origin import origin_of_proposals
from nodes.state import State, Usage, add_usage, no_usage
from prompts import render

# An instruction may always be this long, in characters.
MAX_LENGTH_FLOOR = 400
_SEED_TALK = re.compile(r"\b(?:the|original|given) (?:\w+ )?(?:seed|references?)\b", re.IGNORECASE)


class Proposed(Answer):
    """What a proposal brings."""

    instructions: list[str]


class _Proposals(NamedTuple):
    """Proposed texts, None for one that does not read as an instruction, and what they cost."""

    texts: list[str | None]
    usage: Usage


async def propose(
    state: State, runtime: Runtime[Context], *, complete: Complete, hooks: RunHooks
) -> dict[str, Any]:
    """Propose the seed's new instructions; with `answer_seeds` the seed is the instruction.

    Reads `seed`, `references`, `learned`; writes `instructions`, one entry a slot, None where an
    instruction was not new. If too few are new, the model is asked once more and told what to
    differ from: before the seed's turn if that is known by then, since the seeds behind wait while
    a call is made in a turn.
    """
    context = runtime.context or Context()
    seed = state["seed"]
    if context.pipeline == "refed" and not context.answer_seeds:
        return await _propose_by_feature(state, context, complete, hooks)
    repeated = await hooks.repeat_turn(seed)
    if repeated is not None:
        return {"instructions": [*repeated]}
    if context.answer_seeds:
        async with hooks.turn(seed, context) as admit:
            admitted = await admit([seed["instruction"]], 1, last=True)
        return {"instructions": [*admitted] or [None]}
    usage = no_usage()
    try:
        first = await _ask(state, context, complete, count=context.per_seed)
        usage = first.usage
        admitted, second_usage = await _admit_new(state, context, complete, hooks, first.texts)
    except CallFailed as error:
        return {"failure": failure_from(error), "usage": add_usage(usage, error.usage)}
    emit(runtime, "instructions", f"{len(admitted)} new instructions.", instructions=admitted)
    missing = context.per_seed - len(admitted)
    return {
        "instructions": [*admitted, *[None] * missing],
        "usage": add_usage(usage, second_usage),
    }


async def _propose_by_feature(
    state: State, context: Context, complete: Complete, hooks: RunHooks
) -> dict[str, Any]:
    """Ask for each feature's share by itself, and never again, as the paper's authors do.

    A feature whose call fails costs its own instructions, not the other's.
    """

    async def ask_for(draw: int, feature: str, count: int) -> _Proposals | CallFailed:
        try:
            return await _ask(state, context, complete, count=count, draw=draw, feature=feature)
        except CallFailed as error:
            return error

    counts = counts_by_feature(context.per_seed)
    results = await asyncio.gather(
        *(ask_for(draw, feature, n) for draw, (feature, n) in enumerate(counts.items()))
    )
    usage = reduce(add_usage, (result.usage for result in results))
    failures = [result for result in results if isinstance(result, CallFailed)]
    if len(failures) == len(results):
        return {"failure": failure_from(failures[0]), "usage": usage}
    features: dict[str, str] = {}
    for feature, result in zip(counts, results, strict=True):
        if isinstance(result, _Proposals):
            features |= {text: feature for text in result.texts if text and text not in features}
    admitted = await hooks.repeat_turn(state["seed"])
    if admitted is None:
        async with hooks.turn(state["seed"], context) as admit:
            admitted = await admit([*features], context.per_seed, last=True)
    return {"instructions": admitted, "features": features, "usage": usage}


async def _admit_new(
    state: State,
    context: Context,
    complete: Complete,
    hooks: RunHooks,
    first: list[str | None],
) -> tuple[list[str], Usage]:
    """Admit what is new of the first proposals, and of second ones if those are too few."""
    seed, limit = state["seed"], context.per_seed
    examples = NoveltyFilter(context.novelty_threshold)
    for text in (seed["instruction"], *(r["instruction"] for r in state["references"])):
        examples.add(text, "")

    def drop_near(texts: Sequence[str | None]) -> list[str | None]:
        """None in place of a text that is too near to the seed or a reference."""
        return [t if t is not None and examples.collision(t) is None else None for t in texts]

    async def ask_again() -> _Proposals | CallFailed:
        """Whether a failure matters is known only in the seed's turn."""
        avoid = [text for text in first if text is not None]
        try:
            return await _ask(state, context, complete, count=limit, avoid=avoid, draw=1)
        except CallFailed as error:
            return error

    offered = drop_near(first)
    new = [text for text in offered if text is not None]
    # What is known stays known: no text counts as known here that its turn would admit.
    known = sum(await hooks.are_known(seed, new)) if len(new) >= limit else 0
    second = await ask_again() if len(new) - known < limit else None
    asked_before = second is not None
    if isinstance(second, _Proposals):
        offered += drop_near(second.texts)
    async with hooks.turn(seed, context) as admit:
        admitted = await admit(offered, limit, last=asked_before)
        if len(admitted) < limit and not asked_before:
            second = await ask_again()
            if isinstance(second, _Proposals):
                rest = limit - len(admitted)
                admitted = [*admitted, *await admit(drop_near(second.texts), rest, last=True)]
        if isinstance(second, CallFailed) and not admitted:
            raise second
    return admitted, no_usage() if second is None else second.usage


async def _ask(
    state: State,
    context: Context,
    complete: Complete,
    *,
    count: int,
    avoid: Sequence[str] = (),
    draw: int = 0,
    feature: str | None = None,
) -> _Proposals:
    """Ask for `count` new instructions, of one `feature` only if it is given."""
    seed, learned = state["seed"], state.get("learned", [])
    if feature is None:
        phrases = {
            name: list(dict.fromkeys(phrase for entry in learned for phrase in entry[name]))[:8]
            for name in FEATURES
        }
    else:
        phrases = feature_phrases(feature, learned)
    messages = render(
        "propose",
        template=context.propose_prompt,
        count=count,
        seed=seed["instruction"],
        references=[r for r in state["references"] if r["instruction"] != seed["instruction"]],
        avoid=avoid,
        **phrases,
    )
    call = make_call("propose", messages, Proposed, context, origin_of_proposals(seed), draw)
    result = await ask(complete, call, Proposed)
    examples = [seed["instruction"], *(r["instruction"] for r in state["references"])]
    texts = [text.strip() for text in result.answer.instructions if text.strip()]
    # The paper's authors check none of them.
    checked = [
        text if feature is not None or reads_as_instruction(text, examples) else None
        for text in texts
    ]
    return _Proposals(checked[:count], result.usage)


def reads_as_instruction(text: str, examples: Sequence[str]) -> bool:
    """Whether a proposal reads as an instruction: not too long, no placeholders, no prompt talk.

    `examples` are the seed and the references' instructions. A weak model writes an answer in place
    of a question, which is several times as long as they are.
    """
    max_length = max(MAX_LENGTH_FLOOR, 3 * max(map(len, examples), default=0))
    has_placeholder = no_placeholder(RuleInput("", text, ()))["verdict"] == "fail"
    talks_of_prompt = _SEED_TALK.search(text) and not any(map(_SEED_TALK.search, examples))
    return len(text) <= max_length and not talks_of_prompt and not has_placeholder
