"""A comparison for people, as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
