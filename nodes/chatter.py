"""Chatter: a first or last line of a response that speaks of the response, not of its matter.

Models open with "Sure! Here is the improved response:" and close with "Let me know if you have any
questions." A row with such a line teaches it. Only the first and the last line are looked at.
"""

from __future__ import annotations

import re
from functools import lru_cache

# Longer lines are matter with, at most, a sentence of chatter at one end.
MAX_CHARS = 400
SENTENCES = 3

_APOSTROPHE = "['’]"
# Words that can only mean the answer itself, and those that do when a colon follows.
_SELF = (
    r"(?:response|answer|reply|rewrite|rewording|revision|version|draft|output|completion|"
    r"re-?write up|reformulation|paraphrase)s?"
)
_FORM = (
    r"(?:list|table|code|script|function|class|program|implementation|snippet|query|explanation|"
    r"summary|breakdown|overview|outline|guide|walkthrough|template|"
    r"translation|text|email|e-mail|letter|message|poem|haiku|limerick|story|essay|article|post|"
    r"paragraph|paragraphs|report|speech|dialogue|plan|recipe|description|analysis|review|"
    r"comparison|schedule|json|yaml|sql|html|regex|step-by-step \w+)s?"
)
_BETTER = (
    r"(?:improved|revised|updated|refined|rewritten|re-written|corrected|edited|enhanced|"
    r"polished|reworded|amended)"
)
_WORDS = r"(?:[\w'’*`-]+[ ,]+){0,6}?"
_HERE = (
    rf"(?:here(?:{_APOSTROPHE}s|{_APOSTROPHE}re| is| are| you (?:go|are)[:,!.-]*)|"
    r"(?:please )?(?:find )?below(?:,? (?:is|are|you(?:['’]ll| will| can) find))?|"
    r"(?:the )?following (?:is|are)|this is|these are|please find)"
)
_THANKS = (
    r"thank(?:s| you)(?: very much| so much)? for (?:(?:your|the|this) )?(?:\w+ )?"
    r"(?:question|request|feedback|prompt|instructions?|clarification|input|asking|reaching out|"
    r"providing|sharing)"
)
# An acknowledgement says that an answer comes. To a question it may be the answer.
_YES = r"(?:sure(?: thing)?|certainly|of course|absolutely|definitely|gladly|with pleasure)"
_ACKNOWLEDGEMENT = re.compile(
    rf"(?:{_YES}|okay|ok|alright|all right|understood|got it|no problem|noted|happy to help|"
    r"(?:that(?:['’]s| is) an? |what an? )?(?:great|good|excellent|interesting) question)"
    rf"(?:[!.](?=\s|$)|:?$)|{_THANKS}\b",
    re.IGNORECASE,
)
_LEAD = rf"(?:(?:{_YES}|okay|ok|alright|great|yes|understood|got it|well|so)[,!.:;–—-]+ *)?"
# An announcement names the answer, whatever was asked for.
_ANNOUNCEMENT = re.compile(
    rf"{_LEAD}(?:{_HERE} {_WORDS}(?:{_SELF}\b|{_BETTER} {_WORDS}{_FORM}\b[^.!?]*[:.]?$)"
    rf"|{_HERE} {_WORDS}{_FORM}\b[^.!?]*:$"
    rf"|(?:the |my |your )?{_BETTER} (?:\w+ )?(?:{_SELF}|text)(?: below)? ?:"
    rf"|(?:the |my )?(?:response|answer|reply|final (?:response|version|draft)) ?:$"
    rf"|(?:the |my )?{_BETTER} {_SELF}$)",
    re.IGNORECASE,
)
# What the writer of an answer says of writing it; in a letter or a story it may be the matter.
_WRITER = re.compile(
    rf"{_LEAD}(?:i(?:['’]d| would|['’]ll| will| can|['’]m|"
    r" am)(?: certainly| gladly| definitely| now)? (?:be )?"
    r"(?:(?:so |very |more than )?(?:happy|glad|delighted|pleased) to (?:help|assist|provide|write|"
    r"explain|share|improve|revise)"
    r"|(?:help|assist) (?:you )?with"
    r"|(?:write|provide|rewrite|revise|improve|refine|give you|present|draft|create|explain)\b"
    rf"[^.!?:]{{0,60}}\b(?:{_SELF}|{_FORM}|for you|below)\b)"
    r"|i(?:['’]ve| have) (?:carefully |now )?(?:written|rewritten|revised|improved|updated|refined|"
    r"drafted|created|prepared|corrected|edited|addressed|incorporated|put together|made)\b"
    rf"[^.!?:]{{0,60}}\b(?:{_SELF}|{_FORM}|feedback|changes|criteria|points|for you|below)\b"
    r"|(?:based on|given|following|in line with|according to) (?:your|the|these) "
    r"(?:\w+ )?(?:feedback|verdicts?|criteria|request|instructions?|prompt)\b"
    r"|as (?:you )?(?:requested|asked|instructed)\b"
    r"|let me (?:help|assist|provide|rewrite|revise|improve)\b)",
    re.IGNORECASE,
)
# A closing remark offers more or hopes that this was enough. A letter may end so.
_REMARK = re.compile(
    r"(?:please |just |and |but |so |otherwise,? )?(?:do )?let me know\b"
    r"|(?:please )?(?:feel free|do(?: not|n['’]t) hesitate) to (?:ask|reach out|contact me|"
    r"let me know|message me|request|share (?:more|any|your))"
    rf"|(?:please )?feel free to (?:adjust|modify|customi[sz]e|adapt|tweak|edit|change|use|copy) "
    rf"(?:(?:this|the|these|my) {_WORDS}(?:{_SELF}|{_FORM})\b|it (?:to|as|for|further)\b)"
    r"|(?:i )?(?:really |truly |do )?hope (?:that )?(?:this|that|these|it|the|my)\b[^.!?]{0,60}?"
    r"\b(?:helps?|helped|(?:is|are|was|were|proves?|be) (?:helpful|useful|of help|what you)|"
    r"answers? (?:your|the)|clarif(?:y|ies)|meets? (?:your|the)|suits? your|works? for you|"
    r"gives? you)"
    r"|hope (?:this|that|it) helps?"
    r"|if (?:you(?:['’]d| would| have| need| want| still)|there(?:['’]s| is| are)|anything)\b"
    r"[^.!?]{0,120}?\b(?:let me know|feel free|just ask|(?:please )?ask\b|i(?:['’]m| am) here|"
    r"i(?:['’]d| would| can| will|['’]ll) (?:be |also |gladly )*(?:happy|glad|help|assist|provide|"
    r"explain|write|give|go|expand|adjust|add|share|turn|draft|create|revise)\b|reach out|"
    r"do(?: not|n['’]t) hesitate)"
    r"|(?:would you like|do you want|shall i|should i|do you need|want) "
    r"(?:me to|more (?:details|examples|help|information)|any (?:more|further|other)|another|"
    r"a(?:nother)? (?:shorter|longer|different)|to see|help|provide|add|write|explain|go)\b"
    r"|is there anything else\b"
    r"|(?:i(?:['’]m| am)|we(?:['’]re| are)) (?:always |just )?(?:here|happy|glad) to "
    r"(?:help|assist)"
    r"|i(?:['’]d| would) be (?:happy|glad) to (?:help|assist|provide|explain|adjust|revise)",
    re.IGNORECASE,
)
# A closing note says what was done to the text, whatever was asked for.
_NOTE = re.compile(
    rf"(?:please )?note(?: that)?:? (?:that )?(?:i (?:have|\w+ed)\b|i['’]ve\b|"
    rf"(?:this|the(?: above)?|my) (?:\w+ ){{0,2}}?{_SELF}\b)"
    rf"|(?:this|my) {_BETTER} (?:\w+ )?(?:{_SELF}|text|{_FORM})\b"
    rf"|the (?:above )?{_BETTER} (?:\w+ )?(?:{_SELF}|text)\b"
    rf"|(?:this|the|my) (?:above |whole )?{_SELF} (?:now |also |fully )?(?:addresses|meets|"
    r"fulfils|fulfills|satisfies|adheres to|follows|covers|incorporates|complies with|ensures)\b"
    r"[^.!?]{0,80}\b(?:instructions?|criteria|criterion|requirements?|request|feedback|prompt|"
    r"question|verdicts?|user|points)\b"
    rf"|(?:this|the|my) (?:above )?{_SELF} (?:provides|gives|offers|presents) an? "
    r"(?:clear|comprehensive|detailed|complete|concise|thorough|full|balanced)\b"
    r"|i(?:['’]ve| have)? (?:also |carefully )?(?:changed|revised|rewritten|rewrote|improved|"
    r"updated|edited|adjusted|corrected|reworded|made sure|ensured|addressed)\b[^.!?]{0,80}"
    rf"\b(?:{_SELF}|wording|criteria|feedback|original|instructions?|changes|requested)\b"
    r"|(?:the )?(?:main |key )?(?:changes|edits|improvements|revisions)(?: i)? "
    r"(?:made|were made|include|are)\b"
    r"|(?:total )?word count ?[:=]? ?~?\d+|~?\d+ words(?: in total)?$"
    rf"|end of (?:the )?{_SELF}$",
    re.IGNORECASE,
)
# Texts that one person says to another, in which the writer may speak of helping and answering.
_IN_PERSON = re.compile(
    r"\b(?:letters?|e-?mails?|messages?|repl(?:y|ies)|respond|dialog(?:ue)?s?|conversations?|"
    r"chats?|dms?|memos?|notes? (?:to|for)|invitations?|posts?|tweets?|announcements?|"
    r"newsletters?|speech(?:es)?|scripts?|role-?play|monologues?|stor(?:y|ies)|poems?|lyrics|"
    r"songs?|scenes?|skits?|interviews?|diary|apolog(?:y|ise|ize)|toast|voicemail|testimonials?|"
    r"greetings?|welcome|slogans?|adverts?|advertisements?|customers?|"
    r"texts? (?:to|for|my|message)|pretend|act as|play the (?:role|part)|in the voice of|"
    r"say to|tell (?:my|him|her|them)|thank-?you)\b",
    re.IGNORECASE,
)
_YES_NO = re.compile(
    r"(?:^|[.!?:,]\s++|\n[^\S\n]*+)"
    r"(?:can|could|should|may|might|must|is|are|was|were|do|does|did|has|have|will|would|am)"
    r"(?:n['’]t)? (?!you\b)[^.!?]*\?",
    re.IGNORECASE,
)
_EMPHASIS = re.compile(r"[*_`]+")
_MARKS = " \t*_#>\"'“”‘’()[]-–—`"


def opening_chatter(response: str, instruction: str) -> str:
    r"""What the first line says of the response, as it stands there; "" if nothing.

    >>> opening_chatter("Sure! Here is the list:\n- rye", "Name a grain.")
    'Sure! Here is the list:'
    >>> opening_chatter("Here is where the tide turns.", "Describe a bay.")
    ''
    """
    first = next((line for line in response.splitlines() if line.strip(_MARKS)), "")
    start = _EMPHASIS.sub("", first[:MAX_CHARS]).strip(_MARKS)
    in_person = _is_in_person(instruction)
    patterns = [_ANNOUNCEMENT]
    if not in_person:
        patterns.append(_WRITER)
        if not _YES_NO.search(instruction):
            patterns.append(_ACKNOWLEDGEMENT)
    for part in (start, *_rest_of_acknowledgement(start)):
        for pattern in patterns:
            if pattern.match(part) and not _held_by(instruction, part, pattern):
                return first.strip()[:MAX_CHARS]
    return ""


def closing_chatter(response: str, instruction: str) -> str:
    r"""What the last line says of the response, as it stands there; "" if nothing.

    >>> closing_chatter("Bake it.\n\nI hope this helps!", "How is bread made?")
    'I hope this helps!'
    >>> closing_chatter("Let me know if you can come.", "Write a letter to a friend.")
    ''
    """
    last = next((line for line in reversed(response.splitlines()) if line.strip(_MARKS)), "")
    tail = last.strip()[-MAX_CHARS:]
    in_person = _is_in_person(instruction)
    patterns = [_NOTE] if in_person else [_NOTE, _REMARK]
    for sentence in re.split(r"(?<=[.!?])\s+", tail)[-SENTENCES:]:
        start = _EMPHASIS.sub("", sentence).strip(_MARKS)
        for pattern in patterns:
            if pattern.match(start) and not _held_by(instruction, start, pattern):
                return sentence.strip()
    return ""


@lru_cache(maxsize=256)
def _is_in_person(instruction: str) -> bool:
    """Whether what is asked for is a text that one person says to another."""
    return _IN_PERSON.search(instruction) is not None


def _rest_of_acknowledgement(start: str) -> list[str]:
    """What follows an acknowledgement in the same line."""
    found = _ACKNOWLEDGEMENT.match(start)
    rest = start[found.end() :].strip(f"{_MARKS}!.:,;") if found else ""
    return [rest] if rest else []


def _held_by(instruction: str, text: str, pattern: re.Pattern[str]) -> bool:
    """Whether the instruction holds the phrase: then it may have asked for it."""
    found = pattern.match(text)
    phrase = " ".join(found.group(0).split()).casefold().strip(f"{_MARKS}!.:,;") if found else ""
    return phrase in " ".join(instruction.split()).casefold()
