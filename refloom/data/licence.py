"""What the licences of references ask of a data set that is made from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from refloom.data.found import NOT_STATED

_CC = re.compile(r"\bcc[ -]*by((?:[ -]+(?:nc|sa|nd))*)\b(?:[ -]+v?(\d\.\d))?")
_LONG = {
    r"creative commons": "cc",
    r"attribution": "by",
    r"non[- ]?commercial": "nc",
    r"share[- ]?alike": "sa",
    r"no[- ]?deriv(?:ative|ativework|ativeworks|atives|s)?\b": "nd",
}
# Names that the hub knows, by how they are written; the second word says what they ask.
_OTHERS = (
    (r"\bcc[ -]*(?:0|zero)\b", "cc0-1.0", ""),
    (r"\bapache\b", "apache-2.0", ""),
    (r"\bmit\b", "mit", ""),
    (r"\bbsd[ -]*2", "bsd-2-clause", ""),
    (r"\bbsd[ -]*3|\bbsd\b", "bsd-3-clause", ""),
    (r"\bodc[ -]*by\b", "odc-by", ""),
    (r"\bodbl\b", "odbl", "sa"),
    (r"\bcdla[ -]*perm", "cdla-permissive-2.0", ""),
    (r"\bcdla[ -]*shar", "cdla-sharing-1.0", "sa"),
    (r"\bagpl", "agpl-3.0", "sa"),
    (r"\blgpl", "lgpl-3.0", "sa"),
    (r"\bgpl[ -]*v?2", "gpl-2.0", "sa"),
    (r"\bgpl", "gpl-3.0", "sa"),
    (r"\b(?:gfdl|gnu free documentation)\b", "gfdl", "sa"),
    (r"\b(?:unlicense|public domain|pddl)\b", "unlicense", ""),
    (r"\ball rights reserved|\bproprietary|\bno ai\b|\bopenrail|\bllama", None, "own"),
)
_CC_KNOWN = {
    "by": ("2.0", "2.5", "3.0", "4.0"),
    "by-sa": ("3.0", "4.0"),
    "by-nc": ("2.0", "3.0", "4.0"),
    "by-nc-sa": ("2.0", "3.0", "4.0"),
    "by-nd": ("4.0",),
    "by-nc-nd": ("3.0", "4.0"),
}
NOT_LAW = (
    "Whether rows written after a reference are derived from it in law is not settled; this card "
    "takes the careful side and is no legal advice."
)


class Licence(NamedTuple):
    """A licence as the hub names it (None: it has no name for it), and what it asks."""

    id: str | None
    asks: frozenset[str]


class Outcome(NamedTuple):
    """The licence of the data set, a name where it is "other", and what is to be said of it."""

    id: str
    name: str | None
    said: list[str]


UNKNOWN = Licence(None, frozenset({"unknown"}))


def licence_of(text: str) -> Licence:
    """The licence that a text means.

    >>> licence_of("Creative Commons Attribution-NonCommercial 4.0").id
    'cc-by-nc-4.0'
    """
    plain = text.lower().replace("_", "-")
    for long, short in _LONG.items():
        plain = re.sub(long, short, plain)
    found = _CC.search(plain.replace("(", " ").replace(")", " "))
    if found:
        asks = [part for part in ("nc", "sa", "nd") if part in re.split(r"[ -]+", found[1])]
        name = "-".join(["by", *asks])
        version = found[2] if found[2] in _CC_KNOWN.get(name, ()) else "4.0"
        return Licence(f"cc-{name}-{version}", frozenset(asks))
    for pattern, id_, asked in _OTHERS:
        if re.search(pattern, plain):
            return Licence(id_, frozenset({asked} - {""}))
    return UNKNOWN


def outcome(counts: Mapping[str, int]) -> Outcome:
    """The licence that follows from those of the references, each with how many have it.

    The strictest is carried on: non-commercial and share-alike terms hold for what is made from
    the references. Where terms cannot all be met by one licence, or none is stated, that is said.
    """
    named = {text: licence_of(text) for text in counts}
    said = [_sentence(text, count, named[text]) for text, count in _strict(counts, named)]
    unknown = sum(n for text, n in counts.items() if "unknown" in named[text].asks)
    asks = frozenset().union(*(licence.asks for licence in named.values()))
    ids = {licence.id for licence in named.values() if licence.id is not None}
    if unknown:
        odd = [text for text in counts if "unknown" in named[text].asks and text != NOT_STATED]
        shown = f" ({', '.join(odd[:3])}{', ...' if odd[3:] else ''})" if odd else ""
        said.append(
            f"References without a licence that is known here: {unknown:,}{shown}. Find out what "
            "theirs asks before you publish."
        )
    if asks & {"nd", "own"}:
        said.append("What is made from them may not be shared without leave of their owners.")
        return Outcome("other", "see-references", [*said, NOT_LAW])
    strict = {licence.id for licence in named.values() if licence.asks & {"nc", "sa"}}
    if strict:
        return _of_strict({id_ for id_ in strict if id_ is not None}, said)
    if unknown or not ids:
        return Outcome("unknown", None, said)
    (first, *more) = sorted(ids)
    if not more:
        credit = " It asks that its authors are named." if first.startswith("cc-by") else ""
        return Outcome(first, None, [f"All references are under {first}.{credit}"])
    said.append(f"The references are under {', '.join(sorted(ids))}: name their authors.")
    return Outcome("other", "see-references", said)


def _of_strict(ids: Iterable[str], said: list[str]) -> Outcome:
    families = {id_: id_.rpartition("-")[0] if id_.startswith("cc-") else id_ for id_ in ids}
    alike = {f for f in families.values() if "-sa" in f or not f.startswith("cc-")}
    non_commercial = any("-nc" in family for family in families.values())
    if len(alike) > 1 or (non_commercial and alike - {"cc-by-nc-sa"}):
        said.append(
            f"{', '.join(sorted(ids))} cannot all be kept by one licence: each share-alike licence "
            "wants to be the licence of the whole. Leave out the references of all but one."
        )
        return Outcome("other", "conflicting-references", [*said, NOT_LAW])
    family = next(iter(alike), None) or "cc-by-nc"
    chosen = max(id_ for id_, found in families.items() if found == family)
    said.append(f"The rows are therefore under {chosen}.")
    return Outcome(chosen, None, [*said, NOT_LAW])


def _strict(counts: Mapping[str, int], named: Mapping[str, Licence]) -> Iterable[tuple[str, int]]:
    return (
        (text, count)
        for text, count in counts.items()
        if text != NOT_STATED and named[text].asks & {"nc", "sa", "nd", "own"}
    )


def _sentence(text: str, count: int, licence: Licence) -> str:
    meaning = {
        "nc": "non-commercial: what is made from them may not be used for money",
        "sa": "share-alike: what is made from them has to be under the same licence",
        "nd": "no derivatives: what is made from them may not be shared",
        "own": "terms of its own: read them before you use or share what is made from them",
    }
    asked = "; ".join(meaning[ask] for ask in meaning if ask in licence.asks)
    return f"References under {text}: {count:,}. {asked[0].upper()}{asked[1:]}."
