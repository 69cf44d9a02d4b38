"""Runs compared with each other: responses to the same instructions, judged in both orders."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memory.references import content_id
from nodes.compare import PairwiseResult, compare
from nodes.llm import CallFailed, CallOrigin, Complete
from prompts import prompt_version
from refloom.data.record_stats import CriterionStats, RecordStats
from refloom.errors import InputError
from refloom.evaluation.judging import JUDGE_CHECK_STAGE, gather_bounded, judge_session
from refloom.evaluation.stats import (
    bootstrap_mean,
    length_controlled,
    proportion,
    sign_test,
)
from refloom.runs.journal import iter_records, open_read_only
from refloom.runs.outputs import read_status, total_cost, usage_by_stage
from refloom.runs.text_table import text_table
from refloom.settings import Settings

# Criteria from references that are listed one by one; the others only count in their total.
MAX_CRITERIA_LISTED = 12
CALL_TABLES: tuple[Literal["calls", "borrowed"], ...] = ("calls", "borrowed")


@dataclass(frozen=True, slots=True)
class ArmSample:
    """A finished sample of an arm."""

    seed_id: str
    response: str
    accepted: bool


@dataclass(frozen=True, slots=True)
class Arm:
    """One run of a comparison: its samples by instruction, and a summary of it."""

    name: str
    samples: Mapping[str, ArmSample]
    summary: dict[str, Any]


def read_arm(name: str, directory: Path) -> Arm:
    """Read a run, finished or not. Blocks. Raises `JournalError` if there is no run."""
    status = read_status(directory)
    stats, samples = RecordStats(), dict[str, ArmSample]()
    with open_read_only(directory / "journal.sqlite") as journal:
        for line in iter_records(journal, "accepted", "rejected"):
            record = json.loads(line)
            stats.add(record)
            if record["instruction"] and record["response"]:
                sample = ArmSample(
                    record["seed_id"], record["response"], record["status"] == "accepted"
                )
                samples.setdefault(record["instruction"], sample)
        usage = _usage(journal)
    counts = status.get("counts", {})
    settings = status.get("settings", {})
    summary = {
        "name": name,
        "feedback": settings.get("feedback"),
        "model": settings.get("model"),
        "status": status["status"],
        **{key: counts.get(key, 0) for key in ("accepted", "rejected", "failed", "pending")},
        **usage,
        "criteria": _criteria_rows(stats),
    }
    return Arm(name, samples, summary)


def _usage(journal: Any) -> dict[str, Any]:
    """What a run would have cost by itself: calls shared with other arms count in each.

    Later calls about the rows (comparisons, checks of the judge) are left out.
    """
    usages = [usage for table in CALL_TABLES for usage in usage_by_stage(journal, table)]
    usages = [usage for usage in usages if usage.stage not in ("compare", JUDGE_CHECK_STAGE)]
    by_stage: Counter[str] = Counter()
    for usage in usages:
        by_stage[usage.stage] += usage.calls
    return {
        "calls": by_stage.total(),
        "by_stage": dict(by_stage),
        "tokens": sum(usage.prompt_tokens + usage.completion_tokens for usage in usages),
        "cost_usd": total_cost(usages),
    }


def _criteria_rows(stats: RecordStats) -> list[dict[str, Any]]:
    """Pass rates at the last attempt: rules and built-in criteria, then those from references."""
    rows = [
        _pass_rate(f"The response {c.text}", c.judged_by, c.must, [c])
        for c in stats.top_criteria(MAX_CRITERIA_LISTED)
    ]
    extracted = [c for c in stats.criteria.values() if c.from_reference and c.judged]
    if extracted:
        rows.append(_pass_rate("all criteria from references", "judge", None, extracted))
    return rows


def _pass_rate(
    text: str, by: str, must: bool | None, parts: list[CriterionStats]
) -> dict[str, Any]:
    n, passed = sum(part.judged for part in parts), sum(part.last["pass"] for part in parts)
    share, low, high, _ = proportion(passed, n)
    counts = {"n": n, "passed": passed, "share": share, "low": low, "high": high}
    return {"criterion": text, "judged_by": by, "must": must, **counts}


MAX_CARDS = 24


@dataclass(frozen=True, slots=True)
class Match:
    """Two responses to one instruction, and the judge's duel; None if it could not be judged."""

    instruction: str
    a: ArmSample
    b: ArmSample
    duel: PairwiseResult | None
    same: bool

    @property
    def score(self) -> float | None:
        """A's share of the win; two equal texts are a tie without asking the judge."""
        if self.same:
            return 0.5
        return None if self.duel is None else self.duel.score


async def compare_runs(
    arms: Sequence[Arm],
    pairs: Sequence[tuple[int, int]],
    journal: Path,
    settings: Settings,
    *,
    limit: int | None = None,
    strict: bool = True,
    complete: Complete | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Judge the arms' responses pair by pair. Returns the contents of compare.json.

    Args:
        arms: The runs.
        pairs: Which arms to compare, by index; win rates are those of the first of each pair.
        journal: The directory in whose journal the judge's answers are kept.
        settings: The judge, and its budget.
        limit: Compare only the first so many instructions of each pair.
        strict: Refuse arms without responses, or without an instruction in common.
        complete: Replaces the endpoint.
        on_progress: Called with the comparisons done and their total.

    Raises:
        InputError: With `strict`, if there is nothing to compare.
    """
    todo = [
        (number, *common)
        for number, (i, j) in enumerate(pairs)
        for common in _common_instructions(arms[i], arms[j], strict)[:limit]
    ]
    context = settings.context()
    async with judge_session(journal, settings, complete) as calls:

        async def work(item: tuple[int, str, ArmSample, ArmSample]) -> Match:
            _, text, a, b = item
            if a.response.strip() == b.response.strip():
                return Match(text, a, b, None, True)
            place = CallOrigin("compare", content_id(text))
            try:
                duel = await compare(
                    calls, context, place, instruction=text, first=a.response, second=b.response
                )
            except CallFailed:
                duel = None
            return Match(text, a, b, duel, False)

        matches = await gather_bounded(
            todo, work, limit=2 * settings.max_in_flight, on_progress=on_progress
        )
    by_pair: list[list[Match]] = [[] for _ in pairs]
    for (number, *_), match in zip(todo, matches, strict=True):
        by_pair[number].append(match)
    results = await asyncio.to_thread(_results, arms, pairs, by_pair, settings)
    return results | {"arms": [arm.summary for arm in arms]}


def _common_instructions(a: Arm, b: Arm, strict: bool) -> list[tuple[str, ArmSample, ArmSample]]:
    """The instructions that both arms answered, with both samples."""
    common = [
        (text, sample, b.samples[text]) for text, sample in a.samples.items() if text in b.samples
    ]
    for arm in (a, b) if strict else ():
        if not arm.samples:
            raise InputError(f"{arm.name}: has no response to compare; its failed.jsonl says why")
    if not common and strict:
        raise InputError(
            f"{a.name} and {b.name}: there is no instruction that both answered; "
            "compare arms of one experiment, or runs with --answer-seeds of the same seeds"
        )
    return common


def _results(
    arms: Sequence[Arm],
    pairs: Sequence[tuple[int, int]],
    by_pair: Sequence[list[Match]],
    settings: Settings,
) -> dict[str, Any]:
    provenance = {
        "judge": settings.judge,
        "prompt": prompt_version("compare"),
        "random_seed": settings.random_seed,
    }
    rows, cards = [], []
    for (i, j), matches in zip(pairs, by_pair, strict=True):
        names = {"a": arms[i].name, "b": arms[j].name}
        accepted = [m for m in matches if m.a.accepted and m.b.accepted]
        rows.append(
            {
                **names,
                **pair_metrics(matches, settings.random_seed),
                "accepted": pair_metrics(accepted, settings.random_seed),
                **provenance,
            }
        )
        differing = [match for match in matches if match.duel is not None]
        cards += [names | _card(match) for match in differing[: max(MAX_CARDS // len(pairs), 3)]]
    return {"pairs": rows, "cards": cards}


def _card(match: Match) -> dict[str, Any]:
    assert match.duel is not None
    return {
        "instruction": match.instruction,
        "a_response": match.a.response,
        "b_response": match.b.response,
        "score": match.duel.score,
        "reasons": list(match.duel.reasons),
    }


def pair_metrics(matches: Sequence[Match], random_seed: int) -> dict[str, Any]:
    """The results of one pair: win rate with interval, ties, sign test, length, order."""
    judged = [(m, score) for m in matches if (score := m.score) is not None]
    scores = [score for _, score in judged]
    seeds = [m.a.seed_id for m, _ in judged]
    gaps = [len(m.a.response) - len(m.b.response) for m, _ in judged]
    rate = bootstrap_mean(scores, seeds, random_seed)
    wins, losses = sum(s > 0.5 for s in scores), sum(s < 0.5 for s in scores)
    duels = [m.duel for m, _ in judged if m.duel is not None]
    firsts = [picked for duel in duels for picked in duel.first_position_wins]
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
        "length_controlled": length_controlled(scores, gaps, seeds, random_seed)._asdict(),
        "longer": round(sum(gaps) / len(gaps), 1) if gaps else None,
        "same_in_both_orders": proportion(
            sum(duel.consistent for duel in duels), len(duels)
        )._asdict(),
        "first_picked": proportion(sum(firsts), len(firsts))._asdict(),
    }


# Bootstrap intervals over fewer seeds are too narrow.
FEW_SEEDS = 20


def format_comparison(comparison: Mapping[str, Any]) -> str:
    """A comparison as plain text for a terminal."""
    pairs = []
    for pair in comparison["pairs"]:
        pairs.append(_pair_cells(f"{pair['a']} : {pair['b']}", pair))
        if pair["accepted"]["n"] not in (0, pair["n"]):
            pairs.append(_pair_cells("  both accepted", pair["accepted"]))
    head = ("", "win rate", "95 % interval", "n", "won", "lost", "tied", "p (sign)")
    first = comparison["pairs"][0]
    counts = ("accepted", "rejected", "failed", "calls", "tokens")
    arms = [
        [
            arm["name"],
            *(arm[name] for name in counts),
            "unknown" if arm["cost_usd"] is None else f"${arm['cost_usd']:.4f}",
        ]
        for arm in comparison["arms"]
    ]
    return "\n".join(
        [
            text_table([*head, "at equal length"], pairs),
            "",
            f"judge {first['judge']}, both orders, prompt {first['prompt']}; a pair of equal "
            "texts is a tie; intervals by bootstrap over seeds",
            *_warnings(comparison["pairs"]),
            "",
            text_table(["run", *counts, "dollars"], arms),
            "calls shared by runs count in each; learning from a reference in the run that did it",
        ]
    )


def _pair_cells(name: str, result: Mapping[str, Any]) -> list[object]:
    counts = [result[key] for key in ("n", "wins", "losses", "ties")]
    if not result["n"]:
        return [name, "none", "", *counts, "", ""]
    even = result["length_controlled"]
    return [
        name,
        f"{result['win_rate']:.1%}",
        f"{result['low']:.1%} to {result['high']:.1%}",
        *counts,
        f"{result['sign_p']:.3f}",
        f"{even['value']:.1%} ({even['low']:.1%} to {even['high']:.1%})",
    ]


def _warnings(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know before trusting the figures."""
    warnings = []
    for pair in pairs:
        name, first = f"{pair['a']} : {pair['b']}", pair["first_picked"]
        if first["n"] and not first["low"] <= 0.5 <= first["high"]:
            warnings.append(
                f"{name}: the judge picked the first response in {first['value']:.0%} of its picks"
            )
        if pair["not_judged"]:
            warnings.append(
                f"{name}: {pair['not_judged']} could not be judged and are left out; run "
                "`refloom compare` again with another --judge-model or --random-seed"
            )
        if not pair["n"] and not pair["not_judged"]:
            warnings.append(f"{name}: nothing to compare; see failed.jsonl of both")
        if 0 < pair["seeds"] < FEW_SEEDS:
            warnings.append(
                f"{name}: {pair['seeds']} seeds are few; intervals over fewer than {FEW_SEEDS} are "
                "too narrow"
            )
    return warnings
