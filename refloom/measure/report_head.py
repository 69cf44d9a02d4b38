"""What a report says of runs first: what they are, what came of them, what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from refloom.measure.figures import stack
from refloom.measure.report_account import Account
from refloom.measure.report_spread import Measured
from refloom.measure.stats import Interval, share
from refloom.runs.outputs import Used
from refloom.settings import embedded

STATES = {
    "done": "done",
    "short": "ended short of its target",
    "stopped": "stopped",
    "interrupted": "interrupted",
    "running": "under way",
}
SHOWN = (
    *("feedback", "review", "per_seed", "answer_seeds", "references_per_seed", "reference_quota"),
    *("max_attempts", "max_criteria", "should_share", "try_criteria", "novelty_threshold"),
    *("target", "limit", "turns", "random_seed", "preset", "engine"),
)
PARTS = (
    ("good", "accepted"),
    ("poor", "rejected"),
    ("doubt", "failed"),
    ("soft", "pending"),
)


class Line(NamedTuple):
    """A line of the table of runs: a value a run, and whether they differ."""

    name: str
    values: list[str]
    differs: bool


class Tile(NamedTuple):
    """A figure to see first; `note` says of how many it is."""

    name: str
    value: str
    note: str
    interval: Interval | None = None


def head(account: Account, found: Measured) -> dict[str, Any]:
    """A run's name, state and first figures."""
    said, counts = account.said, account.said["counts"]
    parts = [(kind, name, int(counts.get(name, 0))) for kind, name in PARTS]
    label = ", ".join(f"{n:,} {name}" for _, name, n in parts)
    return {
        "state": STATES.get(said["status"], said["status"]),
        "status": said["status"],
        "stopped": said.get("stopped") or "",
        "parts": parts,
        "candidates": int(counts.get("candidates", 0)),
        "bar": stack(parts, label),
        "tiles": _tiles(account, found),
    }


def _tiles(account: Account, found: Measured) -> list[Tile]:
    judged, accepted = account.judged, int(account.said["counts"]["accepted"])
    first = account.facts.attempts[1]
    rows, cost = found.rows, account.said.get("cost_usd")
    each = f"${cost / accepted:.4f}" if accepted and cost is not None else "unknown"
    near = f"{rows.nearest.mean():.2f}" if len(rows.nearest) else "unknown"
    score = f"{rows.vendi:,.0f}" if rows.vendi is not None else "unknown"
    return [
        _share("accepted", share(accepted, judged), "judged samples"),
        _share("accepted at once", share(first, judged), "judged samples"),
        Tile("different instructions", score, f"Vendi score of n = {rows.n:,} rows"),
        Tile("nearest instruction", near, f"mean ROUGE-L F1 of n = {rows.n:,} rows"),
        Tile("dollars a row", each, f"n = {accepted:,} accepted rows{_apart(account.borrowed)}"),
    ]


def _apart(borrowed: int) -> str:
    """What a cost leaves out, as the end of a sentence."""
    return f"; {borrowed:,} calls that another run paid for are not in it" if borrowed else ""


def _share(name: str, found: Interval, what: str) -> Tile:
    value = "unknown" if found.value is None else f"{100 * found.value:.0f} %"
    return Tile(name, value, f"n = {found.n:,} {what}", found)


def overview(accounts: Sequence[Account]) -> dict[str, list[Line]]:
    """Two tables of runs: what they were made with, and what there was of everything."""
    found = {}
    for title, facts in (("Settings", _settings), ("Counts and use", _use)):
        columns = [facts(account) for account in accounts]
        lines = []
        for name in dict.fromkeys(name for column in columns for name in column):
            values = [column.get(name, "") for column in columns]
            if any(values):
                lines.append(Line(name, values, facts is _settings and len(set(values)) > 1))
        found[title] = lines
    return found


def _settings(account: Account) -> dict[str, str]:
    said = account.said
    settings: Mapping[str, Any] = said.get("settings") or {}
    judge = settings.get("judge_model") or settings.get("model") or ""
    method = settings.get("judge_method") or ("logodds" if embedded(str(judge)) else "verdict")
    return {
        "model": named(settings.get("model")),
        "judge": f"{named(judge)}, {method}" if judge else "",
        "embedding model": named(settings.get("embedding_model")),
        "prompt version": text(said.get("prompt_version")),
        "refloom": text((said.get("versions") or {}).get("refloom")),
        **{k.replace("_", " "): text(settings.get(k)) for k in SHOWN},
        "benchmarks": ", ".join(map(named, settings.get("benchmark") or ())),
    }


def _use(account: Account) -> dict[str, str]:
    said = account.said
    calls, usage = said["calls"], said.get("usage") or {}
    return {
        **_counted(said["counts"]),
        **(_trials(said.get("criteria") or {}) if said.get("settings") else {}),
        "calls paid": number(calls.get("paid")),
        "calls reused": number(calls.get("reused")),
        "calls tried again": number(calls.get("retried")),
        "prompt tokens": number(usage.get("prompt_tokens")),
        "of them cached": number(usage.get("cached_tokens")),
        "completion tokens": number(usage.get("completion_tokens")),
        "dollars": money(said.get("cost_usd")),
        "time": duration(said.get("seconds")),
        "decided by people": account.facts.reviewed,
    }


def _counted(counts: Mapping[str, Any]) -> dict[str, str]:
    names = ("seeds", "references", "candidates", "accepted", "rejected", "failed", "pending")
    named_ = {name: name for name in names} | {
        "duplicates": "duplicates, dropped before",
        "contaminated": "contaminated, of the rejected",
        "references_failed": "references nothing was learned of",
        "rows_skipped": "rows left out in reading",
    }
    return {shown: number(counts.get(name)) for name, shown in named_.items()}


def _trials(criteria: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"criteria {name}": number(criteria.get(name))
        for name in ("proposed", "earned", "demoted", "dropped")
    }


def stages(account: Account) -> dict[str, Any]:
    """Calls, tokens and dollars by stage and model, and in all."""
    found = account.stages
    costs = [stage.cost_usd for stage in found]
    known = [cost for cost in costs if cost is not None]
    total = Used(
        "in all",
        "",
        sum(s.calls for s in found),
        sum(s.prompt_tokens for s in found),
        sum(s.cached_tokens for s in found),
        sum(s.completion_tokens for s in found),
        sum(known) if len(known) == len(costs) else None,
    )
    return {"lines": found, "total": total, "models": len({s.model for s in found}) > 1}


def named(value: object) -> str:
    """A model or file without the folders it is in, which are another machine's."""
    said = str(value or "")
    pure = PurePath(said)
    local = pure.is_absolute() or said.startswith((".", "~")) or pure.suffix == ".gguf"
    return pure.name if local else said


def text(value: object) -> str:
    """A setting in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def number(value: object) -> str:
    """A count with its thousands set apart."""
    return f"{value:,}" if isinstance(value, int | float) else ""


def money(value: float | None) -> str:
    """Dollars; a cost that is not known is not nothing."""
    if value is None:
        return "unknown: a model has no price"
    return f"${value:,.2f}" if value >= 1 else f"${value:.4f}"


def duration(seconds: float | None) -> str:
    """A time in the two largest units that it fills.

    >>> duration(3725), duration(12.3), duration(None)
    ('1 h 2 min', '12 s', '')
    """
    if seconds is None:
        return ""
    whole = round(seconds)
    for size, name, less, smaller in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // less} {smaller}"
    return f"{whole} s"
