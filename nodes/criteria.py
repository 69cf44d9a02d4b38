"""What a response is judged by: rules as plain functions, and criteria drawn from references.

To add a rule: write a function from `RuleInput` to a `Verdict` and name it in `RULES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memory.contamination import Hit
from memory.novelty import find_copied_run
from memory.references import Reference
from nodes.state import Criterion, Outcome, Verdict

MAX_COPIED_WORDS = 20
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
# The word TODO counts in capitals only: "todo" is a common one of Spanish and Portuguese.
_PLACEHOLDER = re.compile(
    r"(?i:\[(?:insert|your|add|enter|fill in|name of)\b(?!\()[^\]\n]{0,60}\](?!\())"
    r"|\bTODO\b|(?i:\blorem ipsum\b)"
)
_PROMPT_TALK = re.compile(
    r"\bthe reference (response|answer|instruction|pair)\b|\bthe criteria\b|\bthe feedback\b",
    re.IGNORECASE,
)
_DANGLING = re.compile(r"(?:[,;:(\[{–]|\b(?:and|or|the|a|an|of|to|with|for|in|is|are))\s*$")


@dataclass(frozen=True, slots=True)
class RuleInput:
    """What a rule may look at. `cosine` and `topic_bar` are given for log-odds judging only.

    `hit` is the benchmark prompt the response holds, if it was `checked` for one.
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
    """A verdict as the record keeps it."""
    return {
        "criterion_id": criterion_id,
        "verdict": outcome,
        "reason": reason,
        "evidence": evidence,
        "score": score,
    }


def _absent(id_: str, pattern: re.Pattern[str], facts: RuleInput, reason: str) -> Verdict:
    """Fail if the response holds the pattern; what the instruction itself holds is allowed."""
    allowed = facts.instruction.casefold()
    for found in pattern.finditer(facts.response):
        said = found.group(0).strip()
        if said.casefold() not in allowed:
            return verdict(id_, "fail", reason, said)
    return verdict(id_, "pass")


def not_empty(facts: RuleInput) -> Verdict:
    """Fail a response without a word."""
    return verdict("not-empty", "pass" if facts.response.strip() else "fail", "")


def finished(facts: RuleInput) -> Verdict:
    """Fail a response that stops in mid-sentence or inside a code block."""
    if facts.response.count("```") % 2:
        return verdict("finished", "fail", "A code block is never closed.")
    found = _DANGLING.search(facts.response.rstrip())
    if found:
        tail = facts.response.rstrip()[-60:]
        return verdict("finished", "fail", "The response stops in mid-sentence.", tail)
    return verdict("finished", "pass")


def no_refusal(facts: RuleInput) -> Verdict:
    """Fail the set phrases of a refusal."""
    if _REFUSAL.search(facts.instruction):
        return verdict("no-refusal", "pass")
    return _absent("no-refusal", _REFUSAL, facts, "The response refuses with a set phrase.")


def no_placeholder(facts: RuleInput) -> Verdict:
    """Fail blanks left for somebody to fill in."""
    return _absent("no-placeholder", _PLACEHOLDER, facts, "The response leaves a blank.")


def no_prompt_talk(facts: RuleInput) -> Verdict:
    """Fail talk of the prompt that made the response."""
    return _absent("no-prompt-talk", _PROMPT_TALK, facts, "The response speaks of its prompt.")


def not_copied(facts: RuleInput) -> Verdict:
    """Fail a long run of words taken from a reference, unless the instruction holds it too."""
    for reference in facts.references:
        run = find_copied_run(
            facts.response, reference["response"], MAX_COPIED_WORDS, allowed=facts.instruction
        )
        if run:
            reason = f"{MAX_COPIED_WORDS} words in a row are those of reference {reference['id']}."
            return verdict("not-copied", "fail", reason, run)
    return verdict("not-copied", "pass")


def not_contaminated(facts: RuleInput) -> Verdict:
    """Fail a response that holds a benchmark's prompt; without benchmarks nothing is known."""
    if facts.hit is not None:
        return contamination_verdict(facts.hit)
    if not facts.checked:
        return verdict(NOT_CONTAMINATED_ID, "not_applicable", "No benchmark was given.")
    return verdict(NOT_CONTAMINATED_ID, "pass")


def contamination_verdict(hit: Hit) -> Verdict:
    """The verdict on a text that holds a benchmark's prompt: which, where, and how."""
    reason = f"It holds the prompt of {hit.benchmark}, row {hit.row} ({hit.how})."
    return verdict(NOT_CONTAMINATED_ID, "fail", reason, hit.evidence)


def on_topic(facts: RuleInput) -> Verdict:
    """Fail a response whose cosine with its instruction is no better than a mismatched one's."""
    if facts.cosine is None or facts.topic_bar is None:
        return verdict("on-topic", "not_applicable")
    over = facts.cosine > facts.topic_bar
    reason = f"cosine {facts.cosine:.2f}, bar {facts.topic_bar:.2f}"
    return verdict("on-topic", "pass" if over else "fail", reason, score=round(facts.cosine, 4))


def fitting_length(facts: RuleInput) -> Verdict:
    """Fail less than a quarter of the shortest or over four times the longest reference."""
    lengths = [len(r["response"]) for r in facts.references]
    if not lengths:
        return verdict("length", "not_applicable")
    n = len(facts.response)
    low, high = min(lengths) / 4, max(lengths) * 4
    reason = f"{n} characters; the references suggest {low:.0f} to {high:.0f}"
    return verdict("length", "pass" if low <= n <= high else "fail", reason)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule criterion: its text, whether it is a must, and the function that looks."""

    text: str
    must: bool
    look: Callable[[RuleInput], Verdict]


RULES: dict[str, Rule] = {
    "not-empty": Rule("is not empty", True, not_empty),
    "finished": Rule("is finished and not cut off", True, finished),
    "no-refusal": Rule("does not refuse with a set phrase", True, no_refusal),
    "no-placeholder": Rule("leaves no blanks to fill in", True, no_placeholder),
    "not-copied": Rule("copies no long run of words from a reference", True, not_copied),
    NOT_CONTAMINATED_ID: Rule("holds no prompt of a benchmark", True, not_contaminated),
    "no-prompt-talk": Rule("does not speak of its prompt", True, no_prompt_talk),
    "on-topic": Rule("is about what the instruction is about", True, on_topic),
    "length": Rule("is of a length like the references'", False, fitting_length),
}

# The fixed checklist of the arm `generic`.
GENERIC = (
    "gives correct information",
    "is specific and goes into enough detail to be useful",
    "is clear and well organised",
    "keeps to what was asked",
)


def rule_criteria() -> list[Criterion]:
    """The rules as criteria, for the record."""
    return [_criterion(id_, rule.text, rule.must, "rule") for id_, rule in RULES.items()]


def answers_instruction(bar: float | None) -> Criterion:
    """The one judge criterion that is always there, and always a must (see notes on judging).

    A single fixed question, calibrated on references, told good from bad answers better than
    criteria a small model proposed itself.
    """
    built_in = _criterion(ANSWERS_ID, "fully answers the instruction", True, "judge")
    return {**built_in, "bar": bar}


def generic_criteria() -> list[Criterion]:
    """The fixed checklist as criteria."""
    return [_criterion(f"generic-{i}", t, True, "judge") for i, t in enumerate(GENERIC, 1)]


def _criterion(id_: str, text: str, must: bool, judged_by: str) -> Criterion:
    return {
        "id": id_,
        "text": text,
        "must": must,
        "reference_id": None,
        "quote": None,
        "judged_by": "rule" if judged_by == "rule" else "judge",
    }


def apply_rules(facts: RuleInput) -> list[Verdict]:
    """Every rule's verdict on a response, in the order of `RULES`."""
    return [rule.look(facts) for rule in RULES.values()]
