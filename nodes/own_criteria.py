"""Criteria that a person gives: in a file, with a reference, or with a graph's input.

A person's criterion is never dropped or demoted. It is tried on references all the same, and what
comes of that is told, and kept with it.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from typing_extensions import TypedDict

from memory.references import Reference, content_id, reference_hash
from nodes.state import Criterion, Seed

MAX_TEXT_CHARS = 1000
MAX_WEIGHT = 1_000_000
# Of a row, and of a seed.
MAX_CRITERIA = 50
# References that a criterion is tried on at most.
MAX_EXAMPLES = 5
KEYS = ("text", "must", "of", "id", "tags", "seed_id", "check", "weight")

# What stands before the words of a pitfall, which to hold is to fail.
PITFALL = "avoids this fault: "

OnWarning = Callable[[str], None]

_LABEL = re.compile(r"(?:essential|important|optional|pitfall)(?: criteri(?:a|on))?:\s*", re.I)
_SUBJECT = re.compile(r"(?:(?:the|this) (?:response|instruction)|response|instruction|it)\s+", re.I)
_MODAL = re.compile(r"(?:should|must)(?P<rest>\s.+)", re.I)
_ADVERB = re.compile(
    r"(?!(?:ap|re|sup|im|com|multip)p?ly\b|rely\b)(?:always|never|only|also|not|\w+ly)", re.I
)
_IRREGULAR = {"be": "is", "have": "has"}
_ID = re.compile(r"[\w.:/-]{1,80}", re.ASCII)
_RESERVED_ID = re.compile(r"generic-\d+")


class OwnCriterion(TypedDict):
    """A person's criterion, and whom it holds for: without tags or `seed_id`, for all."""

    criterion: Criterion
    of: Literal["response", "instruction"]
    tags: list[str]
    seed_id: str | None


class Chosen(NamedTuple):
    """A criterion of a seed: of what, tried with which others, and on which references."""

    criterion: Criterion
    of: str
    group: str
    examples: Sequence[Reference]


def read_own_criterion(value: Any, *, trusted: bool) -> OwnCriterion:
    """Read a criterion: a text, or an object with a `text`.

    `trusted` ones may name any check. Raises `ValueError`, with a message that names the key.
    """
    fields = _read_fields(value)
    must = _read(fields, "must", bool, "true or false", True)
    of = _read(fields, "of", str, "a text", "response")
    if of not in ("response", "instruction"):
        raise ValueError(f"of: {of!r} is neither 'response' nor 'instruction'")
    weight = _read(fields, "weight", (int, float), "a number", None)
    if weight is not None:
        check_weight(weight)
    check = _read(fields, "check", str, "a text", None)
    if check is not None:
        _check_check(check, of, weight, trusted)
    words, text = _read_text(fields)
    if weight is not None and weight < 0:
        text = PITFALL + text
    id_ = _read(fields, "id", str, "a text", None)
    if id_ is not None:
        _check_own_id(id_)
    criterion: Criterion = {
        "id": id_ or f"own-{content_id(of, text, str(must), str(check), str(weight))[:8]}",
        "text": text,
        "must": must,
        "reference_id": None,
        # The person's words, where they were changed.
        "quote": None if words == text else words,
        "judged_by": "judge" if check is None else "check",
        "weight": weight,
        "check": check,
        "trial": None,
        "own": True,
    }
    tags = _read(fields, "tags", list, "a list of texts", [])
    if not all(isinstance(tag, str) for tag in tags):
        raise ValueError("tags: must be a list of texts")
    seed_id = _read(fields, "seed_id", str, "a text", None)
    return {"criterion": criterion, "of": of, "tags": sorted(set(tags)), "seed_id": seed_id}


def check_weight(weight: float, name: str = "weight") -> None:
    """Raise `ValueError` for a weight that no sum of weights can hold."""
    # Of an integer beyond all floats, and of NaN, too.
    if not abs(weight) <= MAX_WEIGHT:
        raise ValueError(f"{name}: must be a finite number, not beyond {MAX_WEIGHT:,}")


def check_id(id_: str) -> None:
    """Raise `ValueError` for an id that a prompt cannot show as it is."""
    if not _ID.fullmatch(id_):
        raise ValueError(f"id: {id_[:80]!r} is not 1 to 80 letters, digits, and _ - . : /")


def check_words(text: str) -> None:
    """Raise `ValueError` for a text that no request can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("text: has a lone surrogate, which is no character") from error


def fault_of(criterion: Criterion) -> str | None:
    """What a pitfall says that a response should not do; None if the criterion is none."""
    is_pitfall = (criterion.get("weight") or 0) < 0
    return criterion["text"].removeprefix(PITFALL) if is_pitfall else None


def _read_fields(value: Any) -> dict[str, Any]:
    """The fields of a criterion that have a value; each is known."""
    fields = {"text": value} if isinstance(value, str) else value
    if not isinstance(fields, Mapping):
        raise ValueError(f"a criterion is a text or an object, not {_name_type(value)}")
    for key in fields:
        if key not in KEYS:
            raise ValueError(f"unknown key {key!r}; the keys are {', '.join(KEYS)}")
    return {key: part for key, part in fields.items() if part is not None}


# What is left of a text that breaks off before it says anything.
_SAYS_NOTHING = ("the response", "the instruction", "should", "must", "must be", "is", "be")


def _read_text(fields: Mapping[str, Any]) -> tuple[str, str]:
    """The person's words, and the same made to fit."""
    words = " ".join(_read(fields, "text", str, "a text", "").split())
    check_words(words)
    text = fit_text(words)
    if not text or text.lower() in _SAYS_NOTHING:
        raise ValueError("text: is missing or empty")
    if len(text) > MAX_TEXT_CHARS:
        raise ValueError(f"text: has {len(text)} characters, at most {MAX_TEXT_CHARS} are read")
    return words, text


def _read(fields: Mapping[str, Any], key: str, kind: Any, name: str, default: Any) -> Any:
    value = fields.get(key, default)
    if value is default:
        return default
    # True is an int.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{key}: must be {name}, not {_name_type(value)}")
    return value


def _name_type(value: Any) -> str:
    names = {bool: "true or false", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else repr(value))


def _check_check(check: str, of: str, weight: float | None, trusted: bool) -> None:
    if of == "instruction":
        raise ValueError("check: is made of responses; leave out of = 'instruction'")
    if weight is not None and weight < 0:
        raise ValueError("weight: a check is no pitfall; name a check that is to pass")
    # Imported here: what only reads criteria does not wait for it.
    from nodes.checks import parse_check

    try:
        parse_check(check, trusted=trusted)
    except ValueError as error:
        raise ValueError(f"check: {error}") from error


def _check_own_id(id_: str) -> None:
    # Imported here: what only reads criteria does not wait for NumPy.
    from nodes.checks import DEFAULT_CHECKS
    from nodes.criteria import ANSWERS_ID, RULES
    from nodes.screening import BUILT_IN_IDS

    check_id(id_)
    reserved = {ANSWERS_ID, *RULES, *DEFAULT_CHECKS, *BUILT_IN_IDS}
    if id_ in reserved or _RESERVED_ID.fullmatch(id_):
        raise ValueError(f"id: {id_!r} is a criterion of refloom's own")


def fit_text(text: str) -> str:
    """A person's words as the end of the sentence "The response ..." or "The instruction ...".

    >>> fit_text("The response should always name its source.")
    'always names its source'
    >>> fit_text("Essential Criteria: Identifies the cause")
    'identifies the cause'
    >>> fit_text("It should not be longer than a page")
    'is not longer than a page'
    """
    ending = _LABEL.sub("", " ".join(text.split()).rstrip(" ."), count=1)
    if subject := _SUBJECT.match(ending):
        ending = ending[subject.end() :]
    if modal := _MODAL.fullmatch(ending):
        ending = _in_third_person(modal["rest"].strip())
    # JSON and other capitals stay as they are.
    return ending if ending[1:2].isupper() else ending[:1].lower() + ending[1:]


def _in_third_person(clause: str) -> str:
    """A clause after "should" as it is without that word: "always name it", "always names it"."""
    words = clause.split(" ")
    at = next((i for i, word in enumerate(words) if not _ADVERB.fullmatch(word)), None)
    if at is None:
        return clause
    before, verb, after = words[:at], words[at], words[at + 1 :]
    negated = [word.lower() for word in before] == ["not"]
    if negated and verb.lower() == "be":
        return " ".join(["is", "not", *after])
    if negated:
        return " ".join(["does", "not", verb, *after])
    return " ".join([*before, _third_person(verb), *after])


def _third_person(verb: str) -> str:
    low = verb.lower()
    if low in _IRREGULAR:
        return _IRREGULAR[low]
    if low.endswith(("s", "x", "z", "ch", "sh", "o")):
        return f"{verb}es"
    if low.endswith("y") and low[-2:-1] not in "aeiou":
        return f"{verb[:-1]}ies"
    return f"{verb}s"


class OwnCriteria:
    """The criteria of a person for a whole run, and the references that they are tried on.

    Those that come with a reference, or with a graph's input, need not be known before.
    """

    def __init__(
        self,
        criteria: Sequence[OwnCriterion] = (),
        examples: Mapping[str, Sequence[Reference]] | None = None,
        on_warning: OnWarning = lambda text: None,
    ) -> None:
        """`on_warning` gets each warning of a trial, once; `examples` are as `to_dict` has them."""
        self.criteria = list(criteria)
        self._examples = dict(examples or {})
        self._on_warning = on_warning
        self._warnings: set[str] = set()

    def to_dict(self) -> dict[str, Any]:
        """The criteria and their examples as plain JSON, for a worker."""
        return {"criteria": self.criteria, "examples": self._examples}

    def choose_examples(self, references: Iterable[Reference]) -> None:
        """Choose by hash the references that each criterion is tried on. Blocks.

        Of references none of which has its tags, any will do: then seeds have them.
        """
        wanted = {group_of(own): own["tags"] for own in self.criteria if not own["seed_id"]}
        if not wanted:
            return
        nearest: dict[str, list[tuple[str, Reference]]] = {group: [] for group in wanted}
        any_of_all: list[tuple[str, Reference]] = []
        for reference in references:
            entry = reference_hash(reference), reference
            tags = set(reference.get("tags") or ())
            _keep_first(any_of_all, entry)
            for group, own_tags in wanted.items():
                if own_tags and tags.intersection(own_tags):
                    _keep_first(nearest[group], entry)
        self._examples = {
            group: [reference for _, reference in nearest[group] or any_of_all] for group in wanted
        }

    def examples_of(self, own: OwnCriterion) -> Sequence[Reference]:
        """The references that a criterion of the file is tried on."""
        return self._examples.get(group_of(own), ())

    def select(
        self, seed: Seed, references: Sequence[Reference], given: Sequence[OwnCriterion] = ()
    ) -> tuple[list[Criterion], list[Criterion]]:
        """The criteria of a seed's responses, and of its instructions, each id once.

        They are those of the file that hold for it, those `given` with it, and those that come with
        its references. Raises `ValueError` for one of a reference that cannot be used.
        """
        by_kind: dict[str, list[Criterion]] = {"response": [], "instruction": []}
        for chosen in self.choose(seed, references, given):
            by_kind[chosen.of].append(chosen.criterion)
        return by_kind["response"], by_kind["instruction"]

    def choose(
        self, seed: Seed, references: Sequence[Reference], given: Sequence[OwnCriterion]
    ) -> list[Chosen]:
        """The criteria that hold for a seed, each id once."""
        tags = {tag for reference in references for tag in reference.get("tags") or ()}
        tags.update(seed.get("tags") or ())
        chosen: dict[str, Chosen] = {}

        def add(own: OwnCriterion, source: str, examples: Sequence[Reference]) -> None:
            tagged = not own["tags"] or not tags.isdisjoint(own["tags"])
            if not tagged or own["seed_id"] not in (None, seed.get("id")):
                return
            criterion = own["criterion"]
            id_, before = criterion["id"], chosen.get(criterion["id"])
            if before is not None and before.criterion["text"] != criterion["text"]:
                # Two references may have given different criteria the same name.
                id_ = f"{id_[:70]}-{content_id(criterion['text'])[:6]}"
            if id_ not in chosen and len(chosen) < MAX_CRITERIA:
                group = f"{source} {group_of(own)}"
                chosen[id_] = Chosen({**criterion, "id": id_}, own["of"], group, examples)

        for own in self.criteria:
            add(own, "file", self._examples.get(group_of(own), references))
        for own in given:
            add(own, "input", references)
        for reference in references:
            for value in reference.get("criteria") or ():
                own = read_own_criterion(value, trusted=False)
                own["criterion"]["reference_id"] = reference["id"]
                add(own, f"reference {reference['id']}", [reference])
        return list(chosen.values())

    def warn(self, text: str) -> None:
        """Pass a warning on, once."""
        if text not in self._warnings:
            self._warnings.add(text)
            self._on_warning(text)


def group_of(own: OwnCriterion) -> str:
    """The name of those criteria of a file that hold for the same seeds."""
    return content_id("tags", *own["tags"], "seed", own["seed_id"] or "")


def _keep_first(first: list[tuple[str, Reference]], entry: tuple[str, Reference]) -> None:
    """Add an entry if it is among the first by hash, which are kept in order."""
    if len(first) == MAX_EXAMPLES and entry[0] >= first[-1][0]:
        return
    if all(entry[0] != other for other, _ in first):
        first[:] = heapq.nsmallest(MAX_EXAMPLES, [*first, entry], key=lambda pair: pair[0])
