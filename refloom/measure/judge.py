"""`refloom judge-check DIR`: how far the judge of a run is to be trusted.

The judge is asked about texts of known worth: references and spoiled responses to them, accepted
responses and canaries with a fault of a known kind, the same text again, and pairs in both orders.
Where a person has judged too, the judge is compared with them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory.embed import Embed
from nodes.llm import CallFailed, Complete, ProviderStopped
from prompts import version
from refloom.data.write import replace_lines
from refloom.measure import human as people
from refloom.measure.asking import CHECK, asking
from refloom.measure.human import Human, read_human
from refloom.measure.judge_asked import Fought, Judge, NotAvailable, lacks_odds
from refloom.measure.judge_consistency import duel_rows, over_orders
from refloom.measure.judge_flags import FEWEST, flags
from refloom.measure.judge_ground import (
    Ground,
    context_of,
    ground_of,
    judge_of,
    run_judge_of,
    run_method_of,
    writer_of,
)
from refloom.measure.judge_shown import shown
from refloom.measure.judge_trial import Trial, sample_cases, tried, verdicts_on
from refloom.settings import Settings

__all__ = ["FILE", "METHODS", "judge_check", "shown"]

FILE = "judge-check.json"
METHODS = ("verdict", "logodds")


@dataclass
class Check:
    """A check under way: what it stands on, and what it has found so far."""

    directory: Path
    settings: Settings
    ground: Ground
    complete: Complete | None
    embed: Embed | None
    human: Human | None = None
    trials: dict[str, Trial] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    fought: list[Fought] = field(default_factory=list)
    agreed: dict[str, Any] | None = None
    faults: list[CallFailed] = field(default_factory=list)
    paid: int = 0
    reused: int = 0


async def judge_check(
    directory: Path,
    settings: Settings,
    *,
    human: Path | None = None,
    limit: int = 20,
    methods: Sequence[str] | None = None,
    repeats: int = 2,
    complete: Complete | None = None,
    embed: Embed | None = None,
) -> dict[str, Any]:
    """Try the judge of a run, write judge-check.json there; what was asked before is not paid for.

    Args:
        directory: The run's.
        settings: Who judges, how, where, within which budget.
        human: A file of a person's verdicts; see `refloom.measure.human`.
        limit: How many accepted rows, and how many references, are used at most.
        methods: Ways of judging; None: the settings' own.
        repeats: How often the same response is judged in all.
        complete: Stands in for the endpoint.
        embed: Stands in for the embedding model.

    Returns:
        The report; a figure is `{"value", "low", "high", "n"}`, a 95 % interval, None if unknown.

    Raises:
        InputError: `human` cannot be used, or no row is accepted; nothing was asked by then.
        JournalError: There is no run, or another process is at work on it.
        ProviderStopped, BudgetSpent: What stopped the calls; what was paid is kept.
    """
    chosen = list(dict.fromkeys(methods or [settings.context().method]))
    if set(chosen) - set(METHODS) or limit < 1 or repeats < 1:
        raise ValueError(f"methods are {', '.join(METHODS)}; limit and repeats are 1 or more")
    ground = await asyncio.to_thread(ground_of, directory, settings, limit)
    check = Check(directory, settings, ground, complete, embed)
    if human is not None:
        check.human = await asyncio.to_thread(read_human, human, directory)
    return await _made(check, chosen, repeats)


async def _made(check: Check, chosen: Sequence[str], repeats: int) -> dict[str, Any]:
    """Ask the judge everything, and write the report."""
    for method in chosen:
        await _by(check, method, repeats)
    await _duels(check, next(iter(check.trials), chosen[0]))
    if check.human is not None and check.agreed is None:
        check.agreed = _agreed(check.human, None, run_method_of(check.ground))
    found = _report(check, chosen)
    line = json.dumps(found, indent=2, ensure_ascii=False)
    await asyncio.to_thread(replace_lines, check.directory / FILE, [line])
    return found


async def _by(check: Check, method: str, repeats: int) -> None:
    """Try the judge in one way; that an endpoint cannot judge so is noted, and no more."""
    context = context_of(check.ground, check.settings, method)
    embed = None
    if method == "logodds":
        embed = check.embed or _embedder(check.settings)
    # The method that comes first stands for the judge against a person.
    first = check.human is not None and check.agreed is None
    try:
        async with asking(check.directory, check.settings, check.complete, CHECK) as calls:
            try:
                judge = Judge(calls, context, check.settings, check.directory)
                trial = await tried(judge, check.ground, embed, repeats)
                check.trials[method] = trial
                check.faults += trial.faults
                if first and check.human is not None:
                    await _against(check, judge, check.human, trial)
            finally:
                check.paid += calls.counts["paid"]
                check.reused += calls.counts["reused"]
    except NotAvailable as error:
        check.unavailable[method] = str(error)
    except ProviderStopped as error:
        # An endpoint that refuses the question outright stops its calls, but only these.
        if not (method == "logodds" and lacks_odds(error)):
            raise
        check.unavailable[method] = str(error)


def _embedder(settings: Settings) -> Embed:
    from memory.embed import Embedder

    return Embedder(settings.embedding_model)


async def _against(check: Check, judge: Judge, human: Human, trial: Trial) -> None:
    """Compare the judge with a person: by what the run kept if it is the same, else ask it."""
    method = judge.context.method
    same = run_judge_of(check.ground) == judge_of(check.settings)
    if same and run_method_of(check.ground) == method:
        check.agreed = _agreed(human, None, method)
        return
    verdicts, faults = await verdicts_on(judge, human, trial.bars)
    check.faults += faults
    check.agreed = _agreed(human, verdicts, method)


def _agreed(human: Human, asked: dict[people.Key, bool] | None, method: str) -> dict[str, Any]:
    verdicts = people.own_verdicts(human) if asked is None else asked
    source = "the run" if asked is None else "asked anew"
    return {"verdicts": source, "method": method, **people.agreement(human, verdicts)}


async def _duels(check: Check, method: str) -> None:
    """Originals against canaries; how a judge gives single verdicts does not matter here."""
    context = context_of(check.ground, check.settings, method)
    bars = check.trials[method].bars if method in check.trials else Trial().bars
    async with asking(check.directory, check.settings, check.complete, CHECK) as calls:
        judge = Judge(calls, context, check.settings, check.directory)
        check.fought, faults = await judge.duels(sample_cases(check.ground, context, bars))
        check.paid += calls.counts["paid"]
        check.reused += calls.counts["reused"]
    check.faults += faults


def _report(check: Check, chosen: Sequence[str]) -> dict[str, Any]:
    trials, settings = check.trials, check.settings
    same, first = over_orders(check.fought)
    notes = list(check.ground.notes)
    if check.faults:
        why = check.faults[0]
        notes.append(f"{len(check.faults)} questions had no answer, the first: {why.message}")
    if len(check.ground.samples) < FEWEST:
        notes.append(f"fewer than {FEWEST} accepted rows: too few to hold anything against a judge")
    found: dict[str, Any] = {
        "judge": settings.judge,
        "method": list(chosen),
        "unavailable": check.unavailable,
        "prompt": version("critique", "question", "compare"),
        "random_seed": settings.random_seed,
        "samples": len(check.ground.samples),
        "references": len(check.ground.tried),
        "flags": [],
        "notes": notes,
        "criteria": [row for trial in trials.values() for row in trial.criteria],
        "canaries": [row for trial in trials.values() for row in trial.canaries],
        "originals": {method: trial.originals for method, trial in trials.items()},
        "duels": duel_rows(check.fought),
        "human": check.agreed,
        "consistency": {
            "verdicts": {method: trial.agreement for method, trial in trials.items()},
            "duels": same,
            "first_place": first,
        },
        "failed": len(check.faults),
        "calls": check.paid + check.reused,
        "paid": check.paid,
    }
    found["flags"] = flags(found, writer_of(check.ground), judge_of(settings))
    return found
