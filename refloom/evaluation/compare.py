"""Runs against each other: the responses to the same instructions, judged in both orders."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memory.references import content_id
from nodes.compare import Duel, compare
from nodes.context import Context
from nodes.llm import CallFailed, Complete, Place
from prompts import version
from refloom.data.record_stats import Facts, Passing
from refloom.errors import InputError
from refloom.evaluation.judging import CHECK, asking, each
from refloom.evaluation.stats import length_controlled, mean, plain, share, sign_test
from refloom.runs.journal import reading, records_in
from refloom.runs.outputs import cost_of, status_of, used_in
from refloom.settings import Settings

# MERGED refloom~measure~arms
# What runs made, as a comparison wants it: a response for each instruction, and what it took.
# Criteria from references that are shown one by one; the others count in the sum of all.
MOST_SHOWN = 12
TABLES: tuple[Literal["calls", "borrowed"], ...] = ("calls", "borrowed")


@dataclass(frozen=True, slots=True)
class Made:
    """One finished sample: whose it is, its response, whether it was accepted."""

    seed_id: str
    response: str
    accepted: bool


@dataclass(frozen=True, slots=True)
class Arm:
    """One run of a comparison: its samples by instruction, and its account."""

    name: str
    samples: Mapping[str, Made]
    account: dict[str, Any]


def arm_of(name: str, directory: Path) -> Arm:
    """Read a run, finished or not. Blocks. Raises `JournalError` for what is none."""
    said = status_of(directory)
    facts, samples = Facts(), dict[str, Made]()
    with reading(directory / "journal.sqlite") as journal:
        for line in records_in(journal, "accepted", "rejected"):
            record = json.loads(line)
            facts.add(record)
            if record["instruction"] and record["response"]:
                made = Made(record["seed_id"], record["response"], record["status"] == "accepted")
                samples.setdefault(record["instruction"], made)
        spent = _spent(journal)
    counts = said.get("counts", {})
    settings = said.get("settings", {})
    account = {
        "name": name,
        "feedback": settings.get("feedback"),
        "model": settings.get("model"),
        "status": said["status"],
        **{key: counts.get(key, 0) for key in ("accepted", "rejected", "failed", "pending")},
        **spent,
        "criteria": _criteria(facts),
    }
    return Arm(name, samples, account)


def _spent(journal: Any) -> dict[str, Any]:
    """What a run would have cost by itself: calls it shares with others count in each.

    What was asked about the rows later, comparisons and checks of the judge, is no part of it.
    """
    every = [used for table in TABLES for used in used_in(journal, table)]
    every = [used for used in every if used.stage not in ("compare", CHECK)]
    by_stage: Counter[str] = Counter()
    for used in every:
        by_stage[used.stage] += used.calls
    return {
        "calls": by_stage.total(),
        "by_stage": dict(by_stage),
        "tokens": sum(used.prompt_tokens + used.completion_tokens for used in every),
        "cost_usd": cost_of(every),
    }


def _criteria(facts: Facts) -> list[dict[str, Any]]:
    """Pass rates at the last attempt: rules and built-in ones, then those from references."""
    shown = facts.passing(MOST_SHOWN)
    rows = [_passing(f"The response {one.text}", one.judged_by, one.must, [one]) for one in shown]
    drawn = [one for one in facts.criteria.values() if one.drawn and one.times]
    if drawn:
        rows.append(_passing("all criteria from references", "judge", None, drawn))
    return rows


def _passing(text: str, by: str, must: bool | None, parts: list[Passing]) -> dict[str, Any]:
    n, passed = sum(one.times for one in parts), sum(one.last["pass"] for one in parts)
    found = share(passed, n)
    said = {"criterion": text, "judged_by": by, "must": must, "n": n, "passed": passed}
    return {**said, "share": found.value, "low": found.low, "high": found.high}


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


# MERGED refloom~measure~compare_shown
# A comparison for people, as plain text.
# A bootstrap over fewer groups is too sure of itself.
FEW = 20


def shown(found: Mapping[str, Any]) -> str:
    """A comparison for people, as plain text."""
    lines = [
        f"{'':<22}{'win rate':>9}  95 % interval    n   won lost tied  p (sign)  at equal length"
    ]
    for pair in found["pairs"]:
        lines.append(_line(f"{pair['a']} : {pair['b']}", pair))
        if pair["accepted"]["n"] not in (0, pair["n"]):
            lines.append(_line("  both accepted", pair["accepted"]))
    first = found["pairs"][0]
    lines += ["", f"judge {first['judge']}, both orders, prompt {first['prompt']}; a pair of equal"]
    lines[-1] += " texts is a tie; intervals by bootstrap over seeds"
    lines += _warnings(found["pairs"])
    lines += [
        "",
        f"{'run':<14}{'accepted':>9}{'rejected':>9}{'failed':>7}{'calls':>8}{'tokens':>11}",
    ]
    lines[-1] += "  dollars"
    for arm in found["arms"]:
        cost = "unknown" if arm["cost_usd"] is None else f"${arm['cost_usd']:.4f}"
        lines.append(
            f"{arm['name']:<14}{arm['accepted']:>9,}{arm['rejected']:>9,}{arm['failed']:>7,}"
            f"{arm['calls']:>8,}{arm['tokens']:>11,}  {cost}"
        )
    lines.append("what runs share counts in each; learning a reference in the run that did it")
    return "\n".join(lines)


def _line(name: str, of: Mapping[str, Any]) -> str:
    if not of["n"]:
        return f"{name:<22}{'none':>9}"
    even = of["length_controlled"]
    return (
        f"{name:<22}{of['win_rate']:>9.1%}  {of['low']:>6.1%} to {of['high']:>6.1%}{of['n']:>5,}"
        f"{of['wins']:>6,}{of['losses']:>5,}{of['ties']:>5,}{of['sign_p']:>10.3f}  "
        f"{even['value']:.1%} ({even['low']:.1%} to {even['high']:.1%})"
    )


def _warnings(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader has to know before they believe the figures."""
    found = []
    for pair in pairs:
        name, first = f"{pair['a']} : {pair['b']}", pair["first_picked"]
        if first["n"] and not first["low"] <= 0.5 <= first["high"]:
            found.append(
                f"{name}: the judge took what stood first in {first['value']:.0%} of picks"
            )
        if pair["not_judged"]:
            found.append(
                f"{name}: {pair['not_judged']} could not be judged and are left out; `refloom "
                "compare` with another --judge-model or --random-seed asks anew"
            )
        if not pair["n"] and not pair["not_judged"]:
            found.append(f"{name}: nothing to compare; the failed.jsonl of the two say why")
        if 0 < pair["seeds"] < FEW:
            few = f"{pair['seeds']} seeds are few; intervals of fewer than {FEW} are too narrow"
            found.append(f"{name}: {few}")
    return found
