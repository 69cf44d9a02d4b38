"""An estimate for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

WAYS = ("low", "expected", "high")
TOKENS = ("calls", "prompt_tokens", "completion_tokens")


def shown(estimated: Mapping[str, Any]) -> str:
    """An estimate for people, as plain text."""
    lines = ["dry run: no call is made and nothing is written", ""]
    for name in ("references", "seeds"):
        said = estimated[name]
        lines.append(f"{name}: {said['taken']:,} taken, {said['left_out']:,} left out")
    lines += ["", "settings:"]
    lines += [f"  {k} = {json.dumps(v)}" for k, v in estimated["settings"].items()]
    for name in WAYS:
        way = estimated[name]
        lines += ["", f"{name}: {way['candidates']:,} candidates, {way['accepted']:,} accepted"]
        lines.append(f"  {'stage':<10}{'calls':>12}{'prompt':>16}{'completion':>16}  dollars")
        named = [*way["by_stage"].items(), ("total", way["total"])]
        lines += [_row(stage, part) for stage, part in named if part["calls"]]
    lines += ["", "assumed:"]
    for name, one in estimated["assumptions"].items():
        lines.append(f"  {name} = {json.dumps(one['value'])}: {one['why']}")
    return "\n".join(lines)


def _row(stage: str, part: Mapping[str, Any]) -> str:
    calls, prompt, completion = (part[key] for key in TOKENS)
    cost = "unknown" if part["cost_usd"] is None else f"${part['cost_usd']:,.4f}"
    model = f"  {json.dumps(part['model'])}" if "model" in part else ""
    return f"  {stage:<10}{calls:>12,}{prompt:>16,}{completion:>16,}  {cost}{model}"
