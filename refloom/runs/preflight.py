"""The preflight of a run: one small call to each model, once all input has been read.

It is made before anything slow is imported, so that a wrong key, model or address ends the run
within seconds, and before any sample exists. It goes through the run's own client: journaled, so
that it is never paid for twice, and within the run's limits and budget.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress

from nodes.context import is_embedded
from nodes.llm import STAGES_OF_THE_JUDGE, Call, CallFailed, draw_seed
from nodes.llm.provider import address_of
from prompts import PREFLIGHT
from refloom.runs.client import CachedClient, Interrupted
from refloom.runs.journal import Journal, ReusedCalls
from refloom.settings import Settings

# Enough for a word, and few enough for a slow model; whether the answer is cut does not matter.
PREFLIGHT_MAX_TOKENS = 16
JUDGED = f"stage IN {STAGES_OF_THE_JUDGE}"
WRITTEN = f"stage NOT IN {(*STAGES_OF_THE_JUDGE, 'preflight', 'probe')}"


async def preflight(
    calls: CachedClient,
    settings: Settings,
    addresses: tuple[str, str],
    *journals: Journal | ReusedCalls | None,
    judges_only: bool = False,
) -> None:
    """Ask each model at each address for a word, unless one of the `journals` has its answer.

    `addresses` name the writer's and the judge's endpoint; a provider's model is at its own. Any
    answer will do, and so will a refusal of this very call. What passes (an endpoint that is
    loading, limits, timeouts) is waited for. What ends every call stops `calls`, with the reason.
    With `judges_only` nothing is written, and the writer is not asked.
    """
    new = await asyncio.to_thread(_calls_to_make, settings, addresses, journals, judges_only)
    with suppress(Interrupted):
        await asyncio.gather(*(_ask(calls, call) for call in new))


async def _ask(calls: CachedClient, call: Call) -> None:
    try:
        with suppress(CallFailed):
            await calls(call)
    except Interrupted:
        # A stop that was asked for lets the other model's call finish.
        if calls.stopped_by is not None:
            raise


def preflight_calls(
    settings: Settings, addresses: tuple[str, str], judges_only: bool = False
) -> list[Call]:
    """A call for each model at each address; none for a model inside this process."""
    calls: dict[tuple[str, str], Call] = {}
    writer = () if judges_only else ((settings.model, False),)
    for model, judge in (*writer, *((juror, True) for juror in settings.jurors)):
        if not is_embedded(model):
            call = Call(
                stage="preflight",
                messages=({"role": "user", "content": PREFLIGHT},),
                answer=None,
                model=model,
                judge=judge,
                seed=draw_seed(settings.random_seed, "", "", "preflight", 0),
                temperature=0.0,
                max_tokens=PREFLIGHT_MAX_TOKENS,
                text=True,
            )
            calls.setdefault((address_of(model) or addresses[judge], model), call)
    return list(calls.values())


def _calls_to_make(
    settings: Settings,
    addresses: tuple[str, str],
    journals: Iterable[Journal | ReusedCalls | None],
    judges_only: bool,
) -> list[Call]:
    """The calls that no journal has made needless. Blocks."""
    calls = preflight_calls(settings, addresses, judges_only)
    usable = [
        journal for journal in journals if journal and _is_of_same_addresses(journal, settings)
    ]
    return [call for call in calls if not has_answer(call, calls, usable)]


def _is_of_same_addresses(journal: Journal | ReusedCalls, settings: Settings) -> bool:
    """Whether a journal's answers came from the settings' addresses: a run's own did."""
    if isinstance(journal, Journal):
        return True
    rows = journal.read("SELECT value FROM meta WHERE key = 'settings'")
    then, now = json.loads(rows[0][0]) if rows else {}, settings.redacted()
    return all(then.get(name) == now[name] for name in ("base_url", "judge_base_url"))


def has_answer(
    call: Call, wanted: Sequence[Call], journals: Sequence[Journal | ReusedCalls]
) -> bool:
    """Whether a journal holds an answer of the call's model at its address. Blocks.

    A journal names models and no addresses: with one model at two, the stage tells which it was.
    """
    one_address = sum(other.model == call.model for other in wanted) == 1
    which = "true" if one_address else JUDGED if call.judge else WRITTEN
    return any(
        journal.read(f"SELECT 1 FROM {table} WHERE model = ? AND {which} LIMIT 1", call.model)
        for journal in journals
        for table in ("calls", "borrowed")
    )
