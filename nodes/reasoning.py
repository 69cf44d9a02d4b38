"""Reasoning: what a model thought before a bare answer, and whether it can be kept.

Who learns from thoughts that talk of a reference or of criteria learns to cite what nobody has
shown. Thoughts say more than a response does, so more is looked for here than by the rule for
responses.
"""

from __future__ import annotations

import re

from memory.contamination import Hit

# Why an answer that came is not taken, whatever its verdicts.
NO_THOUGHTS, PROMPT_TALK, CONTAMINATED = "no_thoughts", "prompt_talk", "contaminated"
FAULTS_OF_THOUGHTS = (NO_THOUGHTS, PROMPT_TALK, CONTAMINATED)
# A model may well think of an ideal answer, or of how to improve its own: only what is spoken of as
# known is talk of a prompt.
_KNOWN = (
    r"(?:the|this|that|these|those|each|given|provided|curated)\s+"
    r"(?:(?:given|provided|curated|original|above|following|other)\s+)?"
)
_ANSWER = r"(?:responses?|answers?|instructions?|pairs?)"
# Each group is the word that may be the instruction's own; other meanings are left alone.
_TALK = re.compile(
    rf"\b{_KNOWN}(?P<kind>references?|example|sample|exemplary|gold(?:en)?)\s+{_ANSWER}\b"
    rf"|\b{_KNOWN}(?P<model>model)\s+(?:response|answer)\b"
    rf"|\b{_KNOWN}(?P<reference>references?)\b"
    r"(?!\s+(?:points?|frames?|manuals?|books?|desks?|letters?|numbers?|counts?|levels?|values?|"
    r"standards?|implementations?|systems?|types?|variables?|voltages?|genomes?|lines?|works?|to)\b)"
    r"|\b(?:the|these|those|all|every|each|any|given|listed|stated)\s+"
    r"(?:(?:given|provided|listed|stated|above|following|evaluation|grading|judging|scoring|"
    r"assessment|acceptance|quality|must|should)\s+)*(?P<criteria>criteria|criterion)\b"
    r"|\b(?P<rubric>rubrics?)\b"
    r"|\bthe\s+(?:(?:given|provided|above|judge['’]s|reviewer['’]s|previous)\s+)?"
    r"(?P<feedback>feedback)\b(?!\s+(?:loops?|mechanisms?|controls?|systems?|forms?|process))"
    r"|\bthe\s+(?:(?:failed|given|judge['’]s)\s+(?P<verdict>verdicts?)|(?P<verdicts>verdicts))\b"
    r"|</?(?P<tag>reference|criterion|criteria|verdict|feedback|characteristic)\b[^<>]*>",
    re.IGNORECASE,
)


def find_prompt_talk(thoughts: str, instruction: str) -> str:
    """What thoughts say of a prompt that holds more than the instruction; "" if nothing.

    A word that the instruction uses is its own matter.

    >>> find_prompt_talk("The reference answer has three steps.", "Why are there tides?")
    'The reference answer'
    >>> find_prompt_talk("The criteria are cost and time.", "Which criteria decide a purchase?")
    ''
    """
    asked = instruction.casefold()
    for found in _TALK.finditer(thoughts):
        word = next(filter(None, found.groups())).casefold()
        if word.removesuffix("s") not in asked:
            return found.group(0)
    return ""


def find_fault(thoughts: str | None, instruction: str, hit: Hit | None = None) -> str | None:
    """Why an answer with these thoughts may not be taken; None if it may.

    `hit` is the benchmark prompt that they hold.
    """
    if not thoughts:
        return NO_THOUGHTS
    if find_prompt_talk(thoughts, instruction):
        return PROMPT_TALK
    return None if hit is None else CONTAMINATED
