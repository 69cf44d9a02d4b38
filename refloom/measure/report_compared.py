"""The part of a report on a comparison of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from refloom.measure.report_cards import clip
from refloom.measure.report_checked import interval_of
from refloom.measure.report_head import money, named, number
from refloom.measure.stats import NOTHING, Interval

MOST_LINES = 60
MOST_CARDS = 24
LONG = 2500


class Pair(NamedTuple):
    """How often one run's row was preferred to another's; its share, and with length taken out."""

    a: str
    b: str
    found: Interval
    controlled: Interval
    wins: str
    ties: str
    losses: str
    sign_p: str
    judge: str
    prompt: str
    same_order: Interval | None
    first_picked: Interval | None
    not_judged: str


def comparison(compared: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison says, ready to be shown; what it lacks is left out."""
    pairs = [pair for pair in compared.get("pairs") or () if isinstance(pair, Mapping)]
    accepted = [
        _pair({**{k: pair.get(k) for k in ("a", "b", "judge", "prompt")}, **pair["accepted"]})
        for pair in pairs
        if isinstance(pair.get("accepted"), Mapping)
    ]
    cards = list(compared.get("cards") or ())
    arms = [arm for arm in compared.get("arms") or () if isinstance(arm, Mapping)]
    return {
        "pairs": list(map(_pair, pairs)),
        "accepted": accepted,
        "arms": list(map(_arm, arms)),
        "criteria": _criteria(arms),
        "cards": list(map(_card, cards[:MOST_CARDS])),
        "more_cards": max(len(cards) - MOST_CARDS, 0),
    }


def _pair(pair: Mapping[str, Any]) -> Pair:
    found = interval_of({**pair, "value": pair.get("win_rate")})
    p = pair.get("sign_p")
    controlled = interval_of(pair.get("length_controlled"))
    return Pair(
        str(pair.get("a") or ""),
        str(pair.get("b") or ""),
        found or NOTHING,
        controlled or NOTHING,
        number(pair.get("wins")),
        number(pair.get("ties")),
        number(pair.get("losses")),
        "" if p is None else f"{p:.4f}",
        named(pair.get("judge")),
        str(pair.get("prompt") or ""),
        interval_of(pair.get("same_in_both_orders")),
        interval_of(pair.get("first_picked")),
        number(pair.get("not_judged")),
    )


def _arm(arm: Mapping[str, Any]) -> dict[str, str]:
    counts = ("accepted", "rejected", "failed", "calls", "tokens")
    return {
        "name": str(arm.get("name") or ""),
        **{name: number(arm.get(name)) for name in counts},
        "dollars": "unknown" if arm.get("cost_usd") is None else money(arm["cost_usd"]),
    }


def _criteria(arms: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Interval | None]]]:
    """Each criterion with a share an arm."""
    found: dict[str, list[Interval | None]] = {}
    for i, arm in enumerate(arms):
        for one in arm.get("criteria") or ():
            cells = found.setdefault(str(one.get("criterion")), [None] * len(arms))
            cells[i] = _share_of(one)
    return list(found.items())[:MOST_LINES]


def _share_of(one: Mapping[str, Any]) -> Interval | None:
    """A criterion's share; `passed` may be the share itself or how many passed."""
    value, low, high, n = (one.get(name) for name in ("passed", "low", "high", "n"))
    if value is None or low is None or high is None or not n:
        return None
    return interval_of({**one, "value": value if low <= value <= high else value / n})


def _card(card: Mapping[str, Any]) -> dict[str, Any]:
    score = card.get("score")
    a, b = str(card.get("a") or ""), str(card.get("b") or "")
    said = "" if score is None else "as good" if score == 0.5 else a if score > 0.5 else b
    return {
        "instruction": clip(card.get("instruction"), 1500),
        "a": a,
        "b": b,
        "a_response": clip(card.get("a_response"), LONG),
        "b_response": clip(card.get("b_response"), LONG),
        "better": said,
        "score": "" if score is None else f"{score:g}",
        "reasons": [clip(reason, 500) for reason in card.get("reasons") or () if reason],
    }
