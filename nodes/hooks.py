"""What a run supplies to the graph: the order of its seeds and slots, and where its records go.

The graph does not know whether it works for a run. `RunHooks()`, the default, is for a seed on its
own: it waits for nobody and stores nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from typing_extensions import TypedDict

from memory.novelty import NoveltyFilter, rouge_matrix
from memory.references import Reference
from nodes.context import Context
from nodes.record import Record
from nodes.state import Near, Proposal, Seed, Slot, Verdict


class Admitted(TypedDict):
    """An instruction that was admitted to the run, with its verdicts."""

    text: str
    verdicts: list[Verdict]


async def _compare_siblings(
    seed: Seed, texts: Sequence[str], context: Context
) -> list[Near | None] | None:
    siblings = NoveltyFilter(context.novelty_threshold)
    names = [siblings.admit(text, str(i)) for i, text in enumerate(texts)]
    return [
        None if name is None else near_to(text, texts[int(name)])
        for text, name in zip(texts, names, strict=True)
    ]


def near_to(
    text: str, other: str, *, reference_id: str | None = None, slot: Sequence[int] | None = None
) -> Near:
    """How near `text` is to an instruction that was there before it."""
    score = round(float(rouge_matrix([text], [other])[0, 0]), 4)
    place = None if slot is None else list(slot)
    return {"instruction": other, "reference_id": reference_id, "slot": place, "score": score}


async def _end_no_turn(
    seed: Seed, admitted: Sequence[Admitted], dropped: Sequence[Proposal]
) -> None:
    pass


async def _no_earlier_turn(seed: Seed) -> list[Admitted] | None:
    return None


async def _none_known(seed: Seed, texts: Sequence[str]) -> list[bool]:
    return [False] * len(texts)


async def _start_at_once(slot: Slot) -> bool:
    return True


async def _drop_record(record: Record, references: Sequence[Reference]) -> None:
    pass


@dataclass(frozen=True, slots=True)
class RunHooks:
    """The functions of a run that nodes call, each with a default for a seed on its own."""

    compare: Callable[[Seed, Sequence[str], Context], Awaitable[list[Near | None] | None]] = (
        _compare_siblings
    )
    """Waits for the seed's turn, and says what each text is too near to: an instruction admitted
    earlier, or a text before it. None if the run needs nothing of the seed. The next seed waits
    until `end_turn`; until then the answer stays the same."""
    end_turn: Callable[[Seed, Sequence[Admitted], Sequence[Proposal]], Awaitable[None]] = (
        _end_no_turn
    )
    """Ends the seed's turn: what it admits is remembered, what it dropped is written with it."""
    repeat_turn: Callable[[Seed], Awaitable[list[Admitted] | None]] = _no_earlier_turn
    """Repeats the turn that the seed had in an earlier session of the run: the instructions it
    admitted. None if it has had none, or none that admitted any; then it takes a turn."""
    are_known: Callable[[Seed, Sequence[str]], Awaitable[list[bool]]] = _none_known
    """Says, before the seed's turn, which texts the run already has something too near to."""
    start: Callable[[Slot], Awaitable[bool]] = _start_at_once
    """Waits until it is known whether a slot may start; False if the run has enough rows."""
    finish: Callable[[Record, Sequence[Reference]], Awaitable[None]] = _drop_record
    """Stores the record of a finished sample, with its references for a person who reviews it."""
    interrupts: bool = True
    """Whether the graph stops for a person to review a sample; a run queues such samples."""
