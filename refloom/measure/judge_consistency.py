"""Whether a judge says the same again: of one response twice, and of two with places changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from refloom.measure.judge_asked import DUELS, Fought, Heard
from refloom.measure.judge_figures import Row, share_of
from refloom.measure.stats import mean, plain


def agreement(heard: Sequence[Heard]) -> Row:
    """How often two judgements of the same response by the same criterion are the same."""
    said: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for one in heard:
        for id_, verdict in one.verdicts.items():
            said[one.case.about, one.case.kind, id_].append(verdict["verdict"])
    values, of = [], []
    for (about, _, _), outcomes in said.items():
        pairs = list(combinations(outcomes, 2))
        if pairs:
            values.append(sum(a == b for a, b in pairs) / len(pairs))
            of.append(about)
    return plain(mean(values, of))


def duel_rows(fought: Sequence[Fought]) -> list[Row]:
    """Originals against canaries by kind: who won in both orders, and the original's share."""
    rows = []
    for kind in DUELS:
        among = [f for f in fought if f.kind == kind]
        scores = mean([f.duel.score for f in among], [f.about for f in among])
        rows.append(
            {
                "kind": kind,
                "n": len(among),
                "original_wins": share_of((f.about, f.duel.won == "first") for f in among),
                "canary_wins": share_of((f.about, f.duel.won == "second") for f in among),
                "share": plain(scores),
            }
        )
    return rows


def over_orders(fought: Sequence[Fought]) -> tuple[Row, Row]:
    """How often both orders have the same winner, and the first place's share of the picks."""
    same = share_of((f.about, f.duel.agreed) for f in fought)
    picked = [(f.about, picks) for f in fought if (picks := f.duel.first_picked)]
    shares = [sum(picks) / len(picks) for _, picks in picked]
    return same, plain(mean(shares, [about for about, _ in picked]))
