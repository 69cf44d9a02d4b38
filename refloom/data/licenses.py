"""The licence of a data set, derived from the licences of the references it is made from.

`parse_license` reads how people write a licence, `combine_licenses` derives one for the rows. Terms
are "nc" (non-commercial), "sa" (share-alike), "nd" (no derivatives), "own" (terms of its own) and
"unknown".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from refloom.data.read import NOT_STATED

# Words that may follow a licence's name without changing its meaning.
_SUFFIX = r"(?:[ -]*(?:international|unported|generic|deed|license|licence|public|universal|only))*"
_CC = re.compile(rf"(?:cc[ -]*)?by((?:[ -]+(?:nc|sa|nd))*)(?:[ -]+v?(\d\.\d))?{_SUFFIX}")
_ABBREVIATIONS = {
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
# Patterns of licences that require attribution at most, and of those that require the same licence
# of derived work, each with the hub's name for it.
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
_SHARE_ALIKE = (
    (r"odbl(?:[ -]*1\.0)?", "odbl"),
    (r"cdla[ -]*sharing[ -]*(?:1\.0)?", "cdla-sharing-1.0"),
    (r"(?:gnu )?agpl[ -]*v?3(?:\.0)?(?:[ -]*(?:or[ -]later|\+))?", "agpl-3.0"),
    (r"(?:gnu )?lgpl[ -]*v?3(?:\.0)?(?:[ -]*(?:or[ -]later|\+))?", "lgpl-3.0"),
    (r"(?:gnu )?gpl[ -]*v?2(?:\.0)?(?:[ -]*(?:or[ -]later|\+))?", "gpl-2.0"),
    (r"(?:gnu )?gpl[ -]*v?3(?:\.0)?(?:[ -]*(?:or[ -]later|\+))?", "gpl-3.0"),
    (r"gfdl(?:[ -]*1\.\d)?", "gfdl"),
)
# The terms that the words of any other licence point to.
_TERM_PATTERNS = (
    (r"\bnc\b|\bresearch\b|\bacademic\b|\bpersonal use|\beducational\b", "nc"),
    (r"\bsa\b|gpl|\bcopyleft\b|\bodbl\b", "sa"),
    (r"\bnd\b", "nd"),
    (r"rights reserved|proprietary|openrail|llama|commons clause|\bno ai\b|permission", "own"),
)
# Creative Commons licences that the hub has a name for, and their versions.
_CC_VERSIONS = {
    "by": ("2.0", "2.5", "3.0", "4.0"),
    "by-sa": ("3.0", "4.0"),
    "by-nc": ("2.0", "3.0", "4.0"),
    "by-nc-sa": ("2.0", "3.0", "4.0"),
    "by-nd": ("4.0",),
    "by-nc-nd": ("3.0", "4.0"),
}
DISCLAIMER = (
    "Whether the law treats rows made from a reference as derived from it is not settled; this "
    "card assumes that it does. It is not legal advice."
)


class License(NamedTuple):
    """The hub's name of a licence (None if it has none), and the licence's terms."""

    id: str | None
    terms: frozenset[str]


class CombinedLicense(NamedTuple):
    """The hub's name of the data set's licence, a name of our own for "other", and notes."""

    id: str
    name: str | None
    notes: list[str]


def parse_license(text: str) -> License:
    """Parse the name of a licence; text beside the name makes it unknown.

    An unknown licence has at least the terms that its words point to.

    >>> parse_license("Creative Commons Attribution-NonCommercial 4.0").id
    'cc-by-nc-4.0'
    >>> sorted(parse_license("MIT, for research only").terms)
    ['nc', 'unknown']
    """
    name = _normalize(text)
    match = _CC.fullmatch(name)
    if match:
        elements = [part for part in ("nc", "sa", "nd") if part in re.split(r"[ -]+", match[1])]
        cc_name = "-".join(["by", *elements])
        version = match[2] or "4.0"
        if version in _CC_VERSIONS.get(cc_name, ()):
            return License(f"cc-{cc_name}-{version}", frozenset(elements))
    for table, terms in ((_PERMISSIVE, frozenset[str]()), (_SHARE_ALIKE, frozenset({"sa"}))):
        for pattern, id_ in table:
            if re.fullmatch(pattern + _SUFFIX, name):
                return License(id_, terms)
    likely = {term for pattern, term in _TERM_PATTERNS if re.search(pattern, name)}
    return License(None, frozenset(likely | {"unknown"}))


def _normalize(text: str) -> str:
    text = text.lower()
    for phrase, short in _ABBREVIATIONS.items():
        text = re.sub(phrase, short, text)
    text = re.sub(r"\b(by|nc|sa|nd)(?=\d)", r"\1 ", text)
    return re.sub(r"[\s_/,&()\u2010-\u2015]+", " ", text).strip(" .-")


def combine_licenses(counts: Mapping[str, int]) -> CombinedLicense:
    """Derive the data set's licence from the number of references under each licence.

    The strictest terms apply: rows made from non-commercial or share-alike references are under
    the same terms. Without one licence that meets all terms, the result is "other" or "unknown".
    """
    licences = {text: parse_license(text) for text in counts}
    notes = [
        _describe_terms(text, counts[text], licence.terms)
        for text, licence in licences.items()
        if licence.terms & set(_TERM_TEXTS)
    ]
    terms = frozenset().union(*(licence.terms for licence in licences.values()))
    ids = {licence.id for licence in licences.values() if licence.id is not None}
    unparsed = [t for t, licence in licences.items() if licence.id is None and t != NOT_STATED]
    unknown = sum(counts[text] for text in unparsed) + counts.get(NOT_STATED, 0)
    if unknown:
        names = f" ({', '.join(unparsed[:3])}{', ...' if unparsed[3:] else ''})" if unparsed else ""
        notes.append(
            f"Without a licence that refloom knows: {unknown:,}{names}. Find out their terms "
            "before you publish."
        )
    if terms & {"nd", "own"}:
        notes.append("What is made from them may not be shared without their owners' permission.")
        return CombinedLicense("other", "see-references", [*notes, DISCLAIMER])
    strict = {i.id for i in licences.values() if i.id is not None and i.terms & {"nc", "sa"}}
    covered = all("-nc" in id_ for id_ in strict) and strict
    if unparsed and not covered:
        # The terms of licences that are not parsed may be stricter than those of the others.
        if not ids and terms == {"unknown"}:
            return CombinedLicense("unknown", None, notes)
        return CombinedLicense("other", "see-references", notes)
    if strict:
        return _combine_strict(strict, notes)
    if unknown or not ids:
        return CombinedLicense("unknown", None, notes)
    (first, *others) = sorted(ids)
    if not others:
        credit = " It asks that its authors are named." if first.startswith("cc-by") else ""
        return CombinedLicense(first, None, [f"All references are under {first}.{credit}"])
    notes.append(f"The references are under {', '.join(sorted(ids))}: name their authors.")
    return CombinedLicense("other", "see-references", notes)


def _combine_strict(ids: Iterable[str], notes: list[str]) -> CombinedLicense:
    """Combine licences with non-commercial or share-alike terms, of which there is at least one."""
    # A Creative Commons licence without its version; the latest version covers the earlier ones.
    families = {id_: id_.rpartition("-")[0] if id_.startswith("cc-") else id_ for id_ in ids}
    share_alike = {f for f in families.values() if "-sa" in f or not f.startswith("cc-")}
    non_commercial = any("-nc" in family for family in families.values())
    if len(share_alike) > 1 or (non_commercial and share_alike - {"cc-by-nc-sa"}):
        notes.append(
            f"No single licence meets the terms of {', '.join(sorted(ids))}: a share-alike licence "
            "must be the licence of the whole data set. Use references under only one of them."
        )
        return CombinedLicense("other", "conflicting-references", [*notes, DISCLAIMER])
    family = next(iter(share_alike), None) or "cc-by-nc"
    chosen = max(id_ for id_, id_family in families.items() if id_family == family)
    notes.append(f"The rows are therefore under {chosen}.")
    return CombinedLicense(chosen, None, [*notes, DISCLAIMER])


_TERM_TEXTS = {
    "nc": "non-commercial: what is made from them may not be used for money",
    "sa": "share-alike: what is made from them has to be under the same licence",
    "nd": "no derivatives: what is made from them may not be shared",
    "own": "terms of its own: read them before you use or share what is made from them",
}


def _describe_terms(text: str, count: int, terms: frozenset[str]) -> str:
    description = "; ".join(_TERM_TEXTS[term] for term in _TERM_TEXTS if term in terms)
    return f"Under {text}: {count:,}. {description[0].upper()}{description[1:]}."
