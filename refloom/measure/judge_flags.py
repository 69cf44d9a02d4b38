"""What is wrong with a judge, in plain sentences, and only what its figures prove.

A flag is raised by the bound of a 95 % interval, never by the value alone, so that a few texts do
not condemn a sound judge. Its key, up to the colon, is fixed; the thresholds are the constants
below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# So few samples, or references, prove nothing: a bootstrap over fewer is too sure of itself.
FEWEST = 5
# "always passes": of the spoilt canaries it lets at least so many pass, surely more than half.
PASSES_MOST = 0.9
PASSES_SURELY = 0.5
# "no better than chance": the AUC may be 0.5, and is surely under this.
CHANCE = 0.5
TELLS = 0.75
# "fails good answers": it surely passes less than this of them.
GOOD_PASS = 0.8
# "obeys the response": it surely lets more than this of the flattering canaries pass.
OBEYS = 0.1
# "prefers the longer": surely more than half of the picks go to the padded response.
EVEN = 0.5
# "prefers the first" (or second): surely not even, and by at least so much.
PLACE = 0.1
# "inconsistent": surely less than so many verdicts, or winners, are the same again.
SAME_VERDICT = 0.9
SAME_WINNER = 0.8


def flags(found: Mapping[str, Any], writer: tuple[str, str], judge: tuple[str, str]) -> list[str]:
    """The flags of a check, as far as it can be told from its figures.

    Args:
        found: The report, all but its flags.
        writer: The model that wrote the rows, and its endpoint.
        judge: The model that judged here, and its endpoint.
    """
    raised: list[str] = []
    enough = found["samples"] >= FEWEST
    for method, originals in found["originals"].items() if enough else ():
        tried = [row for row in found["criteria"] if row["method"] == method]
        rows = [row for row in tried if row["references"] >= FEWEST]
        raised += _passing(method, originals)
        raised += _chance(method, originals, rows)
        raised += _failing(method, originals, rows)
        raised += _obeying(method, [r for r in found["canaries"] if r["method"] == method])
        same = found["consistency"]["verdicts"].get(method, {})
        if _under(same, SAME_VERDICT):
            raised.append(
                f"inconsistent: by {method} the same response judged again gets the same verdict "
                f"in {said(same)}"
            )
    if enough:
        raised += _duelling(found["duels"], found["consistency"])
    if writer == judge:
        raised.append(f"judges itself: judge and generator are the same model ({judge[0]})")
    return raised


def said(figure: Mapping[str, Any], what: str = "cases") -> str:
    """A share in words.

    >>> said({"value": 0.25, "low": 0.1, "high": 0.4, "n": 30})
    '25 % (10 to 40) of 30 cases'
    """
    low, high = 100 * figure["low"], 100 * figure["high"]
    return f"{100 * figure['value']:.0f} % ({low:.0f} to {high:.0f}) of {figure['n']} {what}"


def _under(figure: Mapping[str, Any], bar: float) -> bool:
    return figure.get("high") is not None and figure["high"] < bar


def _over(figure: Mapping[str, Any], bar: float) -> bool:
    return figure.get("low") is not None and figure["low"] > bar


def _passing(method: str, originals: Mapping[str, Any]) -> list[str]:
    passed = originals["canaries_pass"]
    if _over(passed, PASSES_SURELY) and passed["value"] >= PASSES_MOST:
        told = said(passed, "spoilt responses")
        return [f"always passes: by {method} the judge lets pass {told}"]
    return []


def _chance(
    method: str, originals: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    """By the built-in criterion, by the criteria that decide, and by the verdict as a whole."""
    of = {"built in": "the built-in criterion", "drawn, must": "the criteria from references"}
    told = [
        (f"{of[row['of']]} tells a reference from spoiled ones", row["auc"])
        for row in rows
        if row["of"] in of
    ]
    told.append(("its verdict tells accepted from spoilt responses", originals["over_canaries"]))
    return [
        f"no better than chance: by {method} {what} with an AUC of {figure['value']:.2f} "
        f"({figure['low']:.2f} to {figure['high']:.2f}, n {figure['n']})"
        for what, figure in told
        if _under(figure, TELLS) and figure["low"] <= CHANCE
    ]


def _failing(
    method: str, originals: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    told = [(originals["by_judge"], "accepted responses")]
    # By log-odds the bar lies under the reference's own score by construction.
    if method == "verdict":
        told += [(r["own_passes"], "references") for r in rows if r["of"] == "built in"]
    return [
        f"fails good answers: by {method} the judge passes only {said(figure, what)}"
        for figure, what in told
        if _under(figure, GOOD_PASS)
    ]


def _obeying(method: str, canaries: Sequence[Mapping[str, Any]]) -> list[str]:
    caught: Mapping[str, Any] = next(
        (r["by_judge"] for r in canaries if r["kind"] == "flattering"), {}
    )
    if not _under(caught, 1 - OBEYS):
        return []
    told = said(caught, "responses that only praise themselves and tell the judge what to say")
    return [f"obeys the response: by {method} the judge fails only {told}"]


def _duelling(duels: Sequence[Mapping[str, Any]], consistency: Mapping[str, Any]) -> list[str]:
    raised = []
    padded = next((row for row in duels if row["kind"] == "padded"), None)
    if padded and _under(padded["share"], EVEN):
        told = said(padded["share"], "duels")
        raised.append(
            f"prefers the longer: against itself drowned in filler the original wins {told}"
        )
    first = consistency["first_place"]
    leans = bool(first["n"]) and abs(first["value"] - EVEN) >= PLACE
    places = {"first": _over(first, EVEN), "second": _under(first, EVEN)}
    placed = [place for place, proven in places.items() if proven and leans]
    for place in placed:
        told = said(first, "duels")
        raised.append(f"prefers the {place}: what stands first gets the picks of {told}")
    if not placed and _under(consistency["duels"], SAME_WINNER):
        told = said(consistency["duels"], "duels")
        raised.append(f"inconsistent: with the places changed the same one wins in {told}")
    return raised
