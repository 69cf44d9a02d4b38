"""What every response is judged by: rules as plain functions, and the built-in judge criteria.

To add a rule, write a function from `RuleInput` to a `Verdict` and add it to `RULES`. The texts of
criteria and the reasons of failed rules are sent to models. Which criteria from references stay a
must is decided in `nodes.trial`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from memory.contamination import Hit
from memory.novelty import find_copied_source
from memory.references import Reference
from nodes.chatter import closing_chatter, opening_chatter
from nodes.state import Criterion, Outcome, Verdict

COPIED_RUN_WORDS = 20
ANSWERS_ID = "answers-instruction"
NOT_CONTAMINATED_ID = "not-contaminated"

_REFUSAL = re.compile(
    r"\bas an ai( language)? model\b"
    r"|^\W*(i['’]?m|i am) (very |really )?sorry,? but (i|as an)\b"
    r"|^\W*(i['’]?m|i am) (unable|not able) to (assist|help|provide|answer|complete|fulfil)"
    r"|^\W*i (cannot|can['’]?t|can not|won['’]?t) "
    r"(assist|help|provide|answer|complete|fulfil|comply)",
    re.IGNORECASE,
)
_REFUSAL_HINTS = (
    *("as an a", "sorry", "unable to", "not able to", "cannot", "can not", "can't", "can’t"),
    *("cant", "won't", "won’t", "wont"),
)
# The word TODO counts in capitals only: "todo" is a common one of Spanish and Portuguese.
_PLACEHOLDER = re.compile(
    r"(?i:\[(?:insert|your|add|enter|fill in|name of)\b(?!\()[^\]\n]{0,60}\](?!\())"
    r"|\bTODO\b|(?i:\blorem ipsum\b)"
)
_PLACEHOLDER_HINTS = ("[", "todo", "lorem ")
_PROMPT_TALK = re.compile(
    r"\bthe reference (response|answer|instruction|pair)\b|\bthe criteria\b|\bthe feedback\b",
    re.IGNORECASE,
)
_PROMPT_TALK_HINTS = ("the reference ", "the cr", "the feedback")
_DANGLING = re.compile(r"(?:[,;:(\[{–]|\b(?:and|or|the|a|an|of|to|with|for|in|is|are))\s*$")


@dataclass(frozen=True, slots=True)
class RuleInput:
    """A response, and what rules may need to know about it.

    `cosine`, of instruction and response, and `topic_bar` are set for log-odds judging only. `hit`
    is the benchmark prompt that the response holds; `checked` says whether one was searched for.
    """

    instruction: str
    response: str
    references: Sequence[Reference]
    cosine: float | None = None
    topic_bar: float | None = None
    hit: Hit | None = None
    checked: bool = False


def verdict(
    criterion_id: str,
    outcome: Outcome,
    reason: str = "",
    evidence: str = "",
    score: float | None = None,
) -> Verdict:
    """A verdict, as state and records hold it."""
    return {
        "criterion_id": criterion_id,
        "verdict": outcome,
        "reason": reason,
        "evidence": evidence,
        "score": score,
    }


def _fail_on_match(
    id_: str, pattern: re.Pattern[str], hints: Sequence[str], candidate: RuleInput, reason: str
) -> Verdict:
    """Fail if the response matches; phrases that the instruction holds too are allowed.

    A match holds one of the `hints`, in any case: they are found ten times as fast.
    """
    response = candidate.response.casefold()
    if not any(hint in response for hint in hints):
        return verdict(id_, "pass")
    allowed = candidate.instruction.casefold()
    for match in pattern.finditer(candidate.response):
        phrase = match.group(0).strip()
        if phrase.casefold() not in allowed:
            return verdict(id_, "fail", reason, phrase)
    return verdict(id_, "pass")


def not_empty(candidate: RuleInput) -> Verdict:
    """Fail an empty response."""
    return verdict("not-empty", "pass" if candidate.response.strip() else "fail", "")


def finished(candidate: RuleInput) -> Verdict:
    """Fail a response that stops in mid-sentence or inside a code block."""
    if candidate.response.count("```") % 2:
        return verdict("finished", "fail", "A code block is never closed.")
    tail = candidate.response.rstrip()[-60:]
    if _DANGLING.search(tail):
        return verdict("finished", "fail", "The response stops in mid-sentence.", tail)
    return verdict("finished", "pass")


def no_refusal(candidate: RuleInput) -> Verdict:
    """Fail set phrases of refusal, unless the instruction holds one."""
    reason = "The response refuses with a set phrase."
    result = _fail_on_match("no-refusal", _REFUSAL, _REFUSAL_HINTS, candidate, reason)
    if result["verdict"] == "fail" and _REFUSAL.search(candidate.instruction):
        return verdict("no-refusal", "pass")
    return result


def no_placeholder(candidate: RuleInput) -> Verdict:
    """Fail placeholders such as "[your name]" or "lorem ipsum"."""
    reason = "The response leaves a blank."
    return _fail_on_match("no-placeholder", _PLACEHOLDER, _PLACEHOLDER_HINTS, candidate, reason)


def no_prompt_talk(candidate: RuleInput) -> Verdict:
    """Fail mentions of the prompt that produced the response."""
    reason = "The response speaks of its prompt."
    return _fail_on_match("no-prompt-talk", _PROMPT_TALK, _PROMPT_TALK_HINTS, candidate, reason)


def no_chatter(candidate: RuleInput) -> Verdict:
    """Fail a first or last line about the response itself, unless every reference has one."""
    references = candidate.references
    for chatter, reason in (
        (opening_chatter, "Its first line speaks of the response, not of the matter."),
        (closing_chatter, "Its last line speaks of the response, not of the matter."),
    ):
        found = chatter(candidate.response, candidate.instruction)
        if found and not (
            references and all(chatter(r["response"], r["instruction"]) for r in references)
        ):
            return verdict("no-chatter", "fail", reason, found)
    return verdict("no-chatter", "pass")


def not_copied(candidate: RuleInput) -> Verdict:
    """Fail a long run of words taken from a reference, unless the instruction holds it too."""
    sources = [reference["response"] for reference in candidate.references]
    copied = find_copied_source(
        candidate.response, sources, COPIED_RUN_WORDS, allowed=candidate.instruction
    )
    if copied:
        i, run = copied
        id_ = candidate.references[i]["id"]
        reason = f"{COPIED_RUN_WORDS} words in a row are those of reference {id_}."
        return verdict("not-copied", "fail", reason, run)
    return verdict("not-copied", "pass")


def not_contaminated(candidate: RuleInput) -> Verdict:
    """Fail a response that holds a benchmark's prompt; not applicable without benchmarks."""
    if candidate.hit is not None:
        return contamination_verdict(candidate.hit)
    if not candidate.checked:
        return verdict(NOT_CONTAMINATED_ID, "not_applicable", "No benchmark was given.")
    return verdict(NOT_CONTAMINATED_ID, "pass")


def contamination_verdict(hit: Hit) -> Verdict:
    """The failed verdict on a text that holds a benchmark's prompt."""
    reason = f"It holds the prompt of {hit.benchmark}, row {hit.row} ({hit.how})."
    return verdict(NOT_CONTAMINATED_ID, "fail", reason, hit.evidence)


def on_topic(candidate: RuleInput) -> Verdict:
    """Fail a response whose cosine with its instruction is not above the topic bar."""
    if candidate.cosine is None or candidate.topic_bar is None:
        return verdict("on-topic", "not_applicable")
    over = candidate.cosine > candidate.topic_bar
    reason = f"cosine {candidate.cosine:.2f}, bar {candidate.topic_bar:.2f}"
    return verdict("on-topic", "pass" if over else "fail", reason, score=round(candidate.cosine, 4))


def fitting_length(candidate: RuleInput) -> Verdict:
    """Fail under a quarter of the shortest reference's length, or over four times the longest."""
    lengths = [len(r["response"]) for r in candidate.references]
    if not lengths:
        return verdict("length", "not_applicable")
    n = len(candidate.response)
    low, high = min(lengths) / 4, max(lengths) * 4
    reason = f"{n} characters; the references suggest {low:.0f} to {high:.0f}"
    return verdict("length", "pass" if low <= n <= high else "fail", reason)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule criterion: its text, whether it is a must, and the function that checks it."""

    text: str
    must: bool
    check: Callable[[RuleInput], Verdict]


RULES: dict[str, Rule] = {
    "not-empty": Rule("is not empty", True, not_empty),
    "finished": Rule("is finished and not cut off", True, finished),
    "no-refusal": Rule("does not refuse with a set phrase", True, no_refusal),
    "no-placeholder": Rule("leaves no blanks to fill in", True, no_placeholder),
    "not-copied": Rule("copies no long run of words from a reference", True, not_copied),
    NOT_CONTAMINATED_ID: Rule("holds no prompt of a benchmark", True, not_contaminated),
    "no-prompt-talk": Rule("does not speak of its prompt", True, no_prompt_talk),
    "no-chatter": Rule("neither opens nor closes with talk about itself", True, no_chatter),
    "on-topic": Rule("is about what the instruction is about", True, on_topic),
    "length": Rule("is of a length like the references'", False, fitting_length),
}

# The checklist of the arm `generic`.
GENERIC = (
    "gives correct information",
    "is specific and goes into enough detail to be useful",
    "is clear and well organised",
    "keeps to what was asked",
)


def rule_criteria() -> list[Criterion]:
    """The rules as criteria."""
    return [_criterion(id_, rule.text, rule.must, "rule") for id_, rule in RULES.items()]


def answers_instruction(bar: float | None) -> Criterion:
    """The built-in judge criterion, which is in every arm with a judge and always a must.

    `bar` is its calibrated log-odds. With a small judge this one question, calibrated on
    references, separated good from bad answers better than criteria the model extracted itself.
    """
    criterion = _criterion(ANSWERS_ID, "fully answers the instruction", True, "judge")
    return {**criterion, "bar": bar}


def generic_criteria() -> list[Criterion]:
    """The checklist of the arm `generic` as criteria."""
    return [_criterion(f"generic-{i}", t, True, "judge") for i, t in enumerate(GENERIC, 1)]


def _criterion(id_: str, text: str, must: bool, judged_by: Literal["judge", "rule"]) -> Criterion:
    return {
        "id": id_,
        "text": text,
        "must": must,
        "reference_id": None,
        "quote": None,
        "judged_by": judged_by,
    }


def apply_rules(candidate: RuleInput) -> list[Verdict]:
    """Every rule's verdict on a response, in the order of `RULES`."""
    return [rule.check(candidate) for rule in RULES.values()]
