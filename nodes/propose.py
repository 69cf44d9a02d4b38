"""New instructions for a seed, each new to the run before anything is paid for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial, reduce
from typing import Any, Protocol

from langgraph.runtime import Runtime

from memory.novelty import NoveltyFilter
from nodes.context import Context
from nodes.criteria import RuleInput, no_placeholder
from nodes.events import emit
from nodes.feedback import FEATURES, counts_by_feature, feature_phrases
from nodes.llm import Answer, CallFailed, CallOrigin, Complete, ask, make_call
from nodes.state import Seed, State, Usage, add_usage, no_usage
from prompts import render

Taken = Callable[[Seed, Sequence[str]], Awaitable[list[bool]]]
Proposals = tuple[list[str | None], Usage]
MAX_LENGTH_FLOOR = 400
_OF_THE_PROMPT = re.compile(
    r"\b(?:the|original|given) (?:\w+ )?(?:seed|references?)\b", re.IGNORECASE
)


class Admit(Protocol):
    """What a seed's turn is for: having instructions admitted that are new to the run."""

    async def __call__(
        self, texts: Sequence[str | None], most: int, *, last: bool = False
    ) -> list[str]:
        """Give the first `most` that are new, and remember them; None is one dropped before.

        `last`: nothing more will be offered in this turn.
        """
        ...


class Turn(Protocol):
    """The seam for the order of work: a seed waits for its turn, then has instructions admitted."""

    def __call__(self, seed: Seed, context: Context) -> AbstractAsyncContextManager[Admit]:
        """Wait for the seed's turn; leaving it lets the next seed in."""
        ...


@asynccontextmanager
async def alone(seed: Seed, context: Context) -> Any:
    """The `Turn` of a seed that is not part of a run: new is what differs from its siblings."""
    known = NoveltyFilter(context.novelty_threshold)

    async def admit(texts: Sequence[str | None], most: int, *, last: bool = False) -> list[str]:
        kept: list[str] = []
        for text in texts:
            if len(kept) < most and text is not None and known.collision(text) is None:
                known.add(text, "")
                kept.append(text)
        return kept

    yield admit


async def nothing_taken(seed: Seed, texts: Sequence[str]) -> list[bool]:
    """The `Taken` of a seed that is not part of a run."""
    return [False] * len(texts)


class Proposed(Answer):
    """What a proposal brings."""

    instructions: list[str]


async def propose(
    state: State,
    runtime: Runtime[Context],
    *,
    complete: Complete,
    turn: Turn,
    taken: Taken = nothing_taken,
) -> dict[str, Any]:
    """Propose the seed's new instructions; with `answer_seeds` the seed is the instruction.

    Reads `seed`, `references`, `learned`; writes `instructions`, one place a slot, None where an
    instruction was no news. Asks once more, told what to differ from, when too few are new: before
    the seed's turn if that is known by then, since a turn that waits for a call holds up the rest.
    """
    context = runtime.context or Context()
    seed = state["seed"]
    if context.answer_seeds:
        async with turn(seed, context) as admit:
            admitted = await admit([seed["instruction"]], 1, last=True)
            return {"instructions": [*admitted] or [None]}
    usage = no_usage()
    if context.pipeline == "refed":
        return await _of_features(state, context, complete, turn)
    try:
        first, usage = await _ask(state, context, complete, [], 0)
        kept, used = await _in_turn(state, context, complete, turn, taken, first)
        usage = add_usage(usage, used)
    except CallFailed as failed:
        failure = {"stage": failed.stage, "kind": failed.kind, "message": failed.message}
        return {"failure": failure, "usage": add_usage(usage, failed.usage)}
    new = [text for text in kept if text is not None]
    emit(runtime, "instructions", f"{len(new)} new instructions.", instructions=new)
    return {"instructions": kept + [None] * (context.per_seed - len(kept)), "usage": usage}


async def _of_features(
    state: State, context: Context, complete: Complete, turn: Turn
) -> dict[str, Any]:
    """As the paper's authors do: each feature asked for its share by itself, and never again.

    A feature whose call fails costs its own instructions, not the other's.
    """

    async def asked(draw: int, feature: str, count: int) -> Proposals | CallFailed:
        try:
            return await _ask(state, context, complete, [], draw, (feature, count))
        except CallFailed as failed:
            return failed

    shares = counts_by_feature(context.per_seed)
    calls = [asked(draw, *share) for draw, share in enumerate(shares.items())]
    found = await asyncio.gather(*calls)
    usage = reduce(add_usage, (f.usage if isinstance(f, CallFailed) else f[1] for f in found))
    got = [(name, f[0]) for name, f in zip(shares, found, strict=True) if isinstance(f, tuple)]
    if not got:
        failed = next(f for f in found if isinstance(f, CallFailed))
        failure = {"stage": failed.stage, "kind": failed.kind, "message": failed.message}
        return {"failure": failure, "usage": usage}
    features: dict[str, str] = {}
    for name, texts in got:
        features |= {text: name for text in texts if text and text not in features}
    async with turn(state["seed"], context) as admit:
        kept: list[str | None] = [*await admit([*features], context.per_seed, last=True)]
    return {"instructions": kept, "features": features, "usage": usage}


async def _in_turn(
    state: State,
    context: Context,
    complete: Complete,
    turn: Turn,
    taken: Taken,
    first: list[str | None],
) -> tuple[list[str | None], Usage]:
    """What is new of the first proposals, and of second ones where those are too few."""
    near, most = NoveltyFilter(context.novelty_threshold), context.per_seed
    for text in (state["seed"]["instruction"], *(r["instruction"] for r in state["references"])):
        near.add(text, "")
    again = partial(_ask_again, state, context, complete, first)
    # What is taken stays taken, so this says of no proposal what its turn would not.
    unlike = [t for t in first if t and near.collision(t) is None]
    gone = sum(await taken(state["seed"], unlike)) if len(unlike) >= most else 0
    second = await again() if len(unlike) - gone < most else None
    offered, known = _apart(first, near), second is not None
    if second is not None and not isinstance(second, CallFailed):
        offered += _apart(second[0], near)
    async with turn(state["seed"], context) as admit:
        kept = await admit(offered, most, last=known)
        if len(kept) < most and not known:
            second = await again()
            if not isinstance(second, CallFailed):
                kept += await admit(_apart(second[0], near), most - len(kept), last=True)
        if isinstance(second, CallFailed) and not kept:
            raise second
    if second is None:
        return [*kept], no_usage()
    return [*kept], second.usage if isinstance(second, CallFailed) else second[1]


def reads_as_instruction(text: str, taken: Sequence[str]) -> bool:
    """Whether a proposal reads as an instruction: not overlong, without blanks or prompt talk.

    A weak model writes an answer in place of a question; that is several times as long as the
    seed and references are.
    """
    most = max(MAX_LENGTH_FLOOR, 3 * max(map(len, taken), default=0))
    blank = no_placeholder(RuleInput("", text, ()))["verdict"] == "fail"
    spoken = _OF_THE_PROMPT.search(text) and not any(_OF_THE_PROMPT.search(t) for t in taken)
    return len(text) <= most and not spoken and not blank


def _apart(texts: Sequence[str | None], near: NoveltyFilter) -> list[str | None]:
    """The texts that are unlike the seed and its references; None for the others."""
    return [t if t is not None and near.collision(t) is None else None for t in texts]


async def _ask_again(
    state: State, context: Context, complete: Complete, first: list[str | None]
) -> Proposals | CallFailed:
    """Ask for others; whether it matters when that fails is known only in the seed's turn."""
    try:
        return await _ask(state, context, complete, [t for t in first if t is not None], 1)
    except CallFailed as failed:
        return failed


async def _ask(
    state: State,
    context: Context,
    complete: Complete,
    avoid: Sequence[str],
    draw: int,
    share: tuple[str, int] | None = None,
) -> Proposals:
    """Ask for new instructions; `share` is the one feature to make them from, and how many."""
    seed, learned = state["seed"], state.get("learned", [])
    count = share[1] if share else context.per_seed
    phrases = (
        feature_phrases(share[0], learned) if share else {f: _phrases(learned, f) for f in FEATURES}
    )
    messages = render(
        "propose",
        template=context.propose_prompt,
        count=count,
        seed=seed["instruction"],
        references=[r for r in state["references"] if r["instruction"] != seed["instruction"]],
        avoid=avoid,
        **phrases,
    )
    round_ = seed.get("round", 0)
    place = CallOrigin(seed.get("id", ""), str(round_), (round_, seed.get("position", 0)))
    asked = await ask(
        complete, make_call("propose", messages, Proposed, context, place, draw), Proposed
    )
    taken = [seed["instruction"], *(r["instruction"] for r in state["references"])]
    texts = [t.strip() for t in asked.answer.instructions if t.strip()]
    # The paper's authors look at none of them.
    fitting = [t if share or reads_as_instruction(t, taken) else None for t in texts]
    return fitting[:count], asked.usage


def _phrases(learned: Sequence[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(p for entry in learned for p in entry[key]))[:8]
