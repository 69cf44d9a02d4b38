"""The report of a judge's check as plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LABELS = {
    "own": "own",
    "off_topic": "off topic",
    "built in": "fully answers the instruction",
    "drawn": "drawn from references",
    "drawn, must": "  of these the must",
    "drawn, should": "  of these the should",
}
# Criteria of the same words are shown singly from so many references on.
SINGLY = 5
WIDTH = 34
Row = Mapping[str, Any]


def shown(found: Row) -> str:
    """The report for a terminal: flags first, then the figures they rest on.

    Figures are a value, its 95 % interval, and of how many it is.
    """
    lines = [
        f"judge {found['judge']}, {' and '.join(found['method'])}, prompts {found['prompt']}, "
        f"random seed {found['random_seed']}: {found['samples']} accepted rows, "
        f"{found['references']} references, {found['calls']} calls ({found['paid']} paid now)"
    ]
    for method, why in found["unavailable"].items():
        lines.append(f"{method}: not available ({why})")
    lines += [f"note: {note}" for note in found["notes"]]
    lines += ["", *(f"FLAG {flag}" for flag in found["flags"] or ["none"])]
    for method in found["originals"]:
        lines += ["", *_criteria(method, found["criteria"])]
        lines += ["", *_canaries(method, found)]
    if found["duels"]:
        lines += ["", *_duels(found["duels"])]
    lines += ["", *_consistency(found["consistency"])]
    if found["human"] is not None:
        lines += ["", *_human(found["human"])]
    return "\n".join(lines)


def _figure(figure: Row) -> str:
    if not figure or figure["value"] is None:
        return "-".ljust(WIDTH - 6)
    low, high = figure["low"], figure["high"]
    between = "" if low is None else f" ({low:.2f} to {high:.2f})"
    return f"{figure['value']:.2f}{between}, n {figure['n']}".ljust(WIDTH - 6)


def _line(name: str, *figures: Row) -> str:
    return f"  {name[:WIDTH].ljust(WIDTH)}  {'  '.join(map(_figure, figures))}".rstrip()


def _head(name: str, *columns: str) -> str:
    cells = "  ".join(column.ljust(WIDTH - 6) for column in columns)
    return f"{name.ljust(WIDTH + 2)}  {cells}".rstrip()


def _criteria(method: str, rows: Sequence[Row]) -> Iterator[str]:
    yield _head(f"criteria on references, {method}", "AUC own over bad", "own pass", "bad pass")
    for row in rows:
        if row["method"] != method:
            continue
        name = LABELS.get(row["of"])
        if name is None and row["references"] < SINGLY:
            continue
        name = name or f"{row['of']}: {row['text']}"
        yield _line(name, row["auc"], row["own_passes"], row["bad_passes"])
        if row["of"] in ("built in", "drawn"):
            for kind, figure in row["against"].items():
                yield _line(f"    against {kind}", figure)


def _canaries(method: str, found: Row) -> Iterator[str]:
    yield _head(f"canaries caught, {method}", "in all", "by the judge", "by a rule")
    for row in found["canaries"]:
        if row["method"] == method:
            name = LABELS.get(row["kind"], row["kind"])
            yield _line(name, row["caught"], row["by_judge"], row["by_rule"])
    own = found["originals"][method]
    yield _head(f"accepted responses pass, {method}", "in all", "by the judge", "by the rules")
    yield _line("originals", own["passes"], own["by_judge"], own["by_rule"])
    yield _line("AUC over their canaries", own["over_canaries"])


def _duels(rows: Sequence[Row]) -> Iterator[str]:
    yield _head("duels against", "original wins both orders", "canary wins both", "its share")
    for row in rows:
        yield _line(row["kind"], row["original_wins"], row["canary_wins"], row["share"])


def _consistency(found: Row) -> Iterator[str]:
    yield _head("consistency", "share")
    for method, figure in found["verdicts"].items():
        yield _line(f"same verdict again, {method}", figure)
    yield _line("same winner in both orders", found["duels"])
    yield _line("picks that stood first", found["first_place"])


def _human(found: Row) -> Iterator[str]:
    source = f"verdicts of {found['verdicts']}" if found["verdicts"] == "the run" else "asked anew"
    yield _head(f"a person, {found['method']}, {source}", "kappa", "agreement")
    of = [("all", found["all"]), ("whole samples", found["samples"])]
    for name, row in [*of, *((row["of"], row) for row in found["criteria"])]:
        if not row["n"]:
            continue
        counts = ", ".join(f"{key.replace('_', '/')} {n}" for key, n in row["confusion"].items())
        yield f"{_line(name, row['kappa'], row['agreement'])}  {counts}"
    if found["without"]:
        yield f"  {found['without']} of {found['rows']} verdicts are on what was not judged"
