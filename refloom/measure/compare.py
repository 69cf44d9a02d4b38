"""Runs against each other: the responses to the same instructions, judged in both orders."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory.references import content_id
from nodes.compare import Duel, compare
from nodes.context import Context
from nodes.llm import CallFailed, Complete, Place
from prompts import version
from refloom.errors import InputError
from refloom.measure.arms import Arm, Made
from refloom.measure.asking import asking, each
from refloom.measure.stats import length_controlled, mean, plain, share, sign_test
from refloom.settings import Settings

SHOWN = 24


@dataclass(frozen=True, slots=True)
class Match:
    """The two responses to one instruction, and what the judge said; None where it could not."""

    instruction: str
    a: Made
    b: Made
    duel: Duel | None
    same: bool

    @property
    def score(self) -> float | None:
        """The share of the win that is a's; two equal texts are a tie that nobody was asked for."""
        if self.same:
            return 0.5
        return None if self.duel is None else self.duel.score


async def compared(
    arms: Sequence[Arm],
    pairs: Sequence[tuple[int, int]],
    journal: Path,
    settings: Settings,
    *,
    limit: int | None = None,
    strict: bool = True,
    complete: Complete | None = None,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Judge the arms' responses pair by pair, and say what comes of it.

    Args:
        arms: The runs.
        pairs: Which to compare, by place in `arms`; win rates are of the first of each.
        journal: The directory in whose journal the judge's answers are kept.
        settings: Who judges, and what it may cost.
        limit: Compare the first so many instructions of each pair only.
        strict: Whether two arms with nothing in common are refused, or a pair of nothing.
        complete: What stands in for the endpoint.
        told: Hears how many of how many comparisons are done.

    Raises:
        InputError: Two of the arms have no instruction in common, and `strict` is on.
    """
    todo = _todo(arms, pairs, limit, strict)
    context = settings.context()
    async with asking(journal, settings, complete) as calls:

        async def work(one: tuple[int, str, Made, Made]) -> Match:
            return await _match(calls, context, *one[1:])

        matches = await each(todo, work, at_once=2 * settings.calls_at_once, told=told)
    by_pair: list[list[Match]] = [[] for _ in pairs]
    for (number, *_), match in zip(todo, matches, strict=True):
        by_pair[number].append(match)
    found = await asyncio.to_thread(_figures, arms, pairs, by_pair, settings)
    return found | {"arms": [arm.account for arm in arms]}


def _todo(
    arms: Sequence[Arm], pairs: Sequence[tuple[int, int]], limit: int | None, strict: bool
) -> list[tuple[int, str, Made, Made]]:
    """What is to be compared: the number of the pair, the instruction, and both samples."""
    return [
        (number, *one)
        for number, (i, j) in enumerate(pairs)
        for one in _in_common(arms[i], arms[j], strict)[:limit]
    ]


def _in_common(one: Arm, other: Arm, strict: bool) -> list[tuple[str, Made, Made]]:
    """The instructions that both answered, with what each made of them."""
    common = [(t, made, other.samples[t]) for t, made in one.samples.items() if t in other.samples]
    for arm in (one, other) if strict else ():
        if not arm.samples:
            raise InputError(f"{arm.name}: holds no response to compare; its failed.jsonl says why")
    if not common and strict:
        raise InputError(
            f"{one.name} and {other.name}: have no instruction in common that both answered; "
            "compare arms of one experiment, or runs with --answer-seeds of the same seeds"
        )
    return common


async def _match(complete: Complete, context: Context, text: str, a: Made, b: Made) -> Match:
    if a.response.strip() == b.response.strip():
        return Match(text, a, b, None, True)
    place = Place("compare", content_id(text))
    asked: dict[str, Any] = {"instruction": text, "first": a.response, "second": b.response}
    try:
        return Match(text, a, b, await compare(complete, context, place, **asked), False)
    except CallFailed:
        return Match(text, a, b, None, False)


def _figures(
    arms: Sequence[Arm],
    pairs: Sequence[tuple[int, int]],
    by_pair: Sequence[list[Match]],
    settings: Settings,
) -> dict[str, Any]:
    said = {
        "judge": settings.judge,
        "prompt": version("compare"),
        "random_seed": settings.random_seed,
    }
    rows, cards = [], []
    for (i, j), matches in zip(pairs, by_pair, strict=True):
        names = {"a": arms[i].name, "b": arms[j].name}
        accepted = [m for m in matches if m.a.accepted and m.b.accepted]
        rows.append(
            {
                **names,
                **figures(matches, settings.random_seed),
                "accepted": figures(accepted, settings.random_seed),
                **said,
            }
        )
        differing = [match for match in matches if match.duel is not None]
        cards += [names | _card(match) for match in differing[: max(SHOWN // len(pairs), 3)]]
    return {"pairs": rows, "cards": cards}


def _card(match: Match) -> dict[str, Any]:
    assert match.duel is not None
    texts = {"a_response": match.a.response, "b_response": match.b.response}
    asked = {"score": match.duel.score, "reasons": list(match.duel.reasons)}
    return {"instruction": match.instruction, **texts, **asked}


def figures(matches: Sequence[Match], random_seed: int) -> dict[str, Any]:
    """The figures of one pair: win rate with interval, ties, sign test, length, order."""
    judged = [(m, score) for m in matches if (score := m.score) is not None]
    scores = [score for _, score in judged]
    seeds = [m.a.seed_id for m, _ in judged]
    gaps = [len(m.a.response) - len(m.b.response) for m, _ in judged]
    rate = mean(scores, seeds, random_seed)
    wins, losses = sum(s > 0.5 for s in scores), sum(s < 0.5 for s in scores)
    duels = [m.duel for m, _ in judged if m.duel is not None]
    firsts = [picked for duel in duels for picked in duel.first_picked]
    return {
        "n": rate.n,
        "seeds": len(set(seeds)),
        "win_rate": rate.value,
        "low": rate.low,
        "high": rate.high,
        "wins": wins,
        "losses": losses,
        "ties": len(scores) - wins - losses,
        "same_text": sum(m.same for m, _ in judged),
        "not_judged": len(matches) - len(judged),
        "sign_p": sign_test(wins, losses),
        "length_controlled": plain(length_controlled(scores, gaps, seeds, random_seed)),
        "longer": round(sum(gaps) / len(gaps), 1) if gaps else None,
        "same_in_both_orders": plain(share(sum(duel.agreed for duel in duels), len(duels))),
        "first_picked": plain(share(sum(firsts), len(firsts))),
    }
