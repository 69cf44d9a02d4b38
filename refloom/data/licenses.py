"""What the licences of references ask of a data set that is made from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from refloom.data.read import NOT_STATED

# What a licence's text may hold beside its name without saying anything more.
_ENDS = r"(?:[ -]*(?:international|unported|generic|deed|license|licence|public|universal|only))*"
_CC = re.compile(rf"(?:cc[ -]*)?by((?:[ -]+(?:nc|sa|nd))*)(?:[ -]+v?(\d\.\d))?{_ENDS}")
_LONG = {
    r"gnu general public licen[cs]e": "gpl",
    r"gnu lesser general public licen[cs]e": "lgpl",
    r"gnu affero general public licen[cs]e": "agpl",
    r"https?://(?:www\.)?creativecommons\.org/(?:licenses|publicdomain)/": "cc ",
    r"creative[ -]*commons": "cc",
    r"\battribution\b": "by",
    r"\bnon?[ -]?commercial(?:[ -]use)?\b": "nc",
    r"\bshare[ -]?alike\b": "sa",
    r"\bno[ -]?deriv\w*": "nd",
    r"\bversion\b": "",
}
# Licences that ask for a name at most, and those that ask for the same licence, by how they are
# written, whole; the hub's names of them.
_PERMISSIVE = (
    (r"cc[ -]*(?:0|zero)[ -]*(?:1\.0)?", "cc0-1.0"),
    (r"apache[ -]*(?:software )?(?:license|licence)?[ -]*v?2(?:\.0)?", "apache-2.0"),
    (r"apache(?: license)?", "apache-2.0"),
    (r"(?:the )?mit", "mit"),
    (r"bsd[ -]*2(?:[ -]*clause)?", "bsd-2-clause"),
    (r"bsd[ -]*3(?:[ -]*clause)?", "bsd-3-clause"),
    (r"odc[ -]*by(?:[ -]*1\.0)?", "odc-by"),
    (r"cdla[ -]*permissive[ -]*(?:2\.0)?", "cdla-permissive-2.0"),
    (r"(?:the )?unlicense", "unlicense"),
)
_ALIKE = (
    (r"odbl(?:[ -]*1\.0)?", "odbl"),
    (r"cdla[ -]*sharing[ -]*(?:1\.0)?", "cdla-sharing-1.0"),
    (r"(?:gnu )?agpl[ -]*v?3(?:\.0)?(?:[ -]*(?:or[ -]later|\+))?", "agpl-3.0"),
    (r"(?:gnu )?lgpl[ -]*v?3(?:\.0)?(?:[ -]*(?:or[ -]later|\+))?", "lgpl-3.0"),
    (r"(?:gnu )?gpl[ -]*v?2(?:\.0)?(?:[ -]*(?:or[ -]later|\+))?", "gpl-2.0"),
    (r"(?:gnu )?gpl[ -]*v?3(?:\.0)?(?:[ -]*(?:or[ -]later|\+))?", "gpl-3.0"),
    (r"gfdl(?:[ -]*1\.\d)?", "gfdl"),
)
# What a text asks that is no licence of these, as far as its words say.
_ASKING = (
    (r"\bnc\b|\bresearch\b|\bacademic\b|\bpersonal use|\beducational\b", "nc"),
    (r"\bsa\b|gpl|\bcopyleft\b|\bodbl\b", "sa"),
    (r"\bnd\b", "nd"),
    (r"rights reserved|proprietary|openrail|llama|commons clause|\bno ai\b|permission", "own"),
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


class License(NamedTuple):
    """A licence as the hub names it (None: it has no name for it), and what it asks."""

    id: str | None
    asks: frozenset[str]


class CombinedLicense(NamedTuple):
    """The licence of the data set, a name where it is "other", and what is to be said of it."""

    id: str
    name: str | None
    said: list[str]


def parse_license(text: str) -> License:
    """The licence that a text means; anything beside a licence's own name makes it unknown.

    Of what is unknown the words still tell what it asks at least.

    >>> parse_license("Creative Commons Attribution-NonCommercial 4.0").id
    'cc-by-nc-4.0'
    >>> sorted(parse_license("MIT, for research only").asks)
    ['nc', 'unknown']
    """
    plain = re.sub(r"[\s_/,&()\u2010-\u2015]+", " ", _short_id(text.lower())).strip(" .-")
    found = _CC.fullmatch(plain)
    if found:
        asks = [part for part in ("nc", "sa", "nd") if part in re.split(r"[ -]+", found[1])]
        name = "-".join(["by", *asks])
        if (found[2] or "4.0") in _CC_KNOWN.get(name, ()):
            return License(f"cc-{name}-{found[2] or '4.0'}", frozenset(asks))
    for table, asked in ((_PERMISSIVE, frozenset[str]()), (_ALIKE, frozenset({"sa"}))):
        for pattern, id_ in table:
            if re.fullmatch(pattern + _ENDS, plain):
                return License(id_, asked)
    asking = {ask for pattern, ask in _ASKING if re.search(pattern, plain)}
    return License(None, frozenset(asking | {"unknown"}))


def _short_id(text: str) -> str:
    for long, short in _LONG.items():
        text = re.sub(long, short, text)
    return re.sub(r"\b(by|nc|sa|nd)(?=\d)", r"\1 ", text)


def combine_licenses(counts: Mapping[str, int]) -> CombinedLicense:
    """The licence that follows from those of the references, each with how many have it.

    The strictest is carried on: non-commercial and share-alike terms hold for what is made from
    the references. Where terms cannot all be met by one licence, or none is stated, that is said.
    """
    named = {text: parse_license(text) for text in counts}
    strict_ones = (text for text in counts if _is_strict(named[text]))
    said = [_describe(text, counts[text], named[text]) for text in strict_ones]
    asks = frozenset().union(*(licence.asks for licence in named.values()))
    ids = {licence.id for licence in named.values() if licence.id is not None}
    odd = [text for text in counts if "unknown" in named[text].asks and text != NOT_STATED]
    unknown = sum(counts[text] for text in odd) + counts.get(NOT_STATED, 0)
    if unknown:
        shown = f" ({', '.join(odd[:3])}{', ...' if odd[3:] else ''})" if odd else ""
        said.append(
            f"Without a licence that is known here: {unknown:,}{shown}. Find out what theirs asks "
            "before you publish."
        )
    if asks & {"nd", "own"}:
        said.append("What is made from them may not be shared without leave of their owners.")
        return CombinedLicense("other", "see-references", [*said, NOT_LAW])
    strict = {i.id for i in named.values() if i.id is not None and i.asks & {"nc", "sa"}}
    covered = all("-nc" in id_ for id_ in strict) and strict
    if odd and not covered:
        # Their terms may ask for more than any licence that is known here.
        if not ids and asks == {"unknown"}:
            return CombinedLicense("unknown", None, said)
        return CombinedLicense("other", "see-references", said)
    if strict:
        return _combine_strict(strict, said)
    if unknown or not ids:
        return CombinedLicense("unknown", None, said)
    (first, *more) = sorted(ids)
    if not more:
        credit = " It asks that its authors are named." if first.startswith("cc-by") else ""
        return CombinedLicense(first, None, [f"All references are under {first}.{credit}"])
    said.append(f"The references are under {', '.join(sorted(ids))}: name their authors.")
    return CombinedLicense("other", "see-references", said)


def _combine_strict(ids: Iterable[str], said: list[str]) -> CombinedLicense:
    families = {id_: id_.rpartition("-")[0] if id_.startswith("cc-") else id_ for id_ in ids}
    alike = {f for f in families.values() if "-sa" in f or not f.startswith("cc-")}
    non_commercial = any("-nc" in family for family in families.values())
    if len(alike) > 1 or (non_commercial and alike - {"cc-by-nc-sa"}):
        said.append(
            f"{', '.join(sorted(ids))} cannot all be kept by one licence: each share-alike licence "
            "wants to be the licence of the whole. Leave out the references of all but one."
        )
        return CombinedLicense("other", "conflicting-references", [*said, NOT_LAW])
    family = next(iter(alike), None) or "cc-by-nc"
    chosen = max(id_ for id_, found in families.items() if found == family)
    said.append(f"The rows are therefore under {chosen}.")
    return CombinedLicense(chosen, None, [*said, NOT_LAW])


def _is_strict(licence: License) -> bool:
    return bool(licence.asks & {"nc", "sa", "nd", "own"})


def _describe(text: str, count: int, licence: License) -> str:
    meaning = {
        "nc": "non-commercial: what is made from them may not be used for money",
        "sa": "share-alike: what is made from them has to be under the same licence",
        "nd": "no derivatives: what is made from them may not be shared",
        "own": "terms of its own: read them before you use or share what is made from them",
    }
    asked = "; ".join(meaning[ask] for ask in meaning if ask in licence.asks)
    return f"Under {text}: {count:,}. {asked[0].upper()}{asked[1:]}."
