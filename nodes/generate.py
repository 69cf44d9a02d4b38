"""The first candidate response to an instruction."""

from __future__ import annotations

import re
from typing import Any

from langgraph.runtime import Runtime

from nodes.context import Context
from nodes.events import emit
from nodes.inputs import check_list_sizes
from nodes.llm import Answer, Complete, ask, ask_text, make_call
from nodes.origin import origin_of
from nodes.state import SampleState
from prompts import render

_CODE = (
    r"(?:code|json|yaml|toml|xml|csv|sql|html|css|latex|markdown|functions?|scripts?|programs?|"
    r"snippets?|quer(?:y|ies)|regex|regular expression|class|one-liner|dockerfile|makefile|"
    r"unit tests?|command)"
)
# "Only the code", "nothing but JSON", "no explanation"; or all that is asked for is code.
_CODE_ALONE = re.compile(
    rf"\b(?:only|just|solely)(?: [\w+#-]+){{0,4}}? {_CODE}\b"
    rf"|\b{_CODE}(?: [\w+#-]+){{0,2}}? (?:only|alone)\b"
    rf"|\bnothing (?:else )?(?:but|except|other than|besides)(?: [\w+#-]+){{0,4}}? {_CODE}\b"
    rf"|\b{_CODE}\b[^.!?\n]{{0,40}}\bnothing (?:else|more)\b"
    r"|\b(?:no|without(?: any)?|omit|skip) (?:\w+ ){0,2}?(?:explanations?|commentary|prose)\b"
    r"|\b(?:do not|don['’]t|never) (?:\w+ ){0,3}?(?:explain|explanations?|commentary)\b"
    r"|(?:^|[.!?:;,]\s++|\n[^\S\n]*+|\b(?:please|to) )"
    r"(?:write|implement|code|create|generate|produce|give|return|output|provide|show|build)"
    r"(?: me| us)?(?: an?| the| some| one)?"
    rf"(?: (?!on\b|of\b|about\b|for\b|to\b|in\b|that\b|how\b)[\w+#.-]+){{0,4}}? {_CODE}\b",
    re.IGNORECASE,
)
# A match holds one of these, in any case: they are found ten times as fast.
_CODE_HINTS = (
    *("code", "json", "yaml", "toml", "xml", "csv", "sql", "html", "css", "latex", "markdown"),
    *("function", "script", "program", "snippet", "quer", "regex", "regular expression", "class"),
    *("one-liner", "dockerfile", "makefile", "unit test", "command"),
    *("explanation", "commentary", "prose", "explain"),
)
_NO_FENCE = re.compile(
    r"\b(?:no|without|do(?: not|n['’]t) (?:use|add|include|put|wrap)|never|not)\b[^.!?\n]{0,40}"
    r"(?:\bfences?\b|\bfenced\b|\bbackticks?\b|\bcode ?blocks?\b|\bmarkdown\b|```)",
    re.IGNORECASE,
)


# What an instruction speaks of that may be answered by an error alone.
_ERRORS = re.compile(
    r"\b(?:errors?|exceptions?|tracebacks?|time(?:d|s)?[- ]?outs?|outages?|gateways?|upstream"
    r"|unavailable|overload(?:ed)?|crash(?:es|ed)?|prints?|printed|raises?|throws?|rate[- ]limits?"
    r"|(?:http|status|warning|log|console|terminal)(?: code| line| page| message| entry| output)s?"
    r"|(?:write|give|show)s?\b[^.!?\n]{0,40}\bmessage)\b",
    re.IGNORECASE,
)


class Generated(Answer):
    """What a generation brings in the paper's pipeline, which asks for JSON as its authors do."""

    response: str


def asks_for_code_alone(instruction: str) -> bool:
    """Whether an instruction asks for code and nothing else, so that a fence around it is meant.

    >>> asks_for_code_alone("Reverse a list in Python. Give only the code, please.")
    True
    >>> asks_for_code_alone("Return only JSON, and do not wrap it in backticks.")
    False
    >>> asks_for_code_alone("How do I reverse a list?")
    False
    """
    asked = instruction.casefold()
    if not any(hint in asked for hint in _CODE_HINTS):
        return False
    return bool(_CODE_ALONE.search(instruction)) and not _NO_FENCE.search(instruction)


def asks_about_errors(instruction: str) -> bool:
    """Whether a line that says an error may be the answer to an instruction.

    >>> asks_about_errors("What does a gateway say if the server is down?")
    True
    >>> asks_about_errors("Why do tides come twice a day?")
    False
    """
    return _ERRORS.search(instruction) is not None


async def generate(
    state: SampleState, runtime: Runtime[Context], *, complete: Complete
) -> dict[str, Any]:
    """Write a candidate after the example of the first reference, with the criteria in view.

    Reads `instruction`, `references`, `criteria`; writes `candidate`, `usage`.
    """
    check_list_sizes(state)
    context = runtime.context or Context()
    # Arms that are compared share their drafts, so no draft may depend on its arm's criteria.
    shown = (c for c in state["criteria"] if c["reference_id"] or c.get("own"))
    criteria = [] if context.paired else list(shown)
    plain, instruction = context.pipeline != "refed", state["instruction"]
    messages = render(
        "generate",
        template=context.generate_prompt,
        plain=plain,
        reference=next(iter(state["references"]), None),
        criteria=criteria,
        instruction=instruction,
    )
    origin = origin_of(state)
    if plain:
        call = make_call("generate", messages, None, context, origin, text=True)
        code_only, errors = asks_for_code_alone(instruction), asks_about_errors(instruction)
        text = await ask_text(complete, call, code_only=code_only, errors=errors)
        response, usage = text.answer.text, text.usage
    else:
        call = make_call("generate", messages, Generated, context, origin)
        generated = await ask(complete, call, Generated)
        response, usage = generated.answer.response, generated.usage
    message = f"A draft of {len(response.split())} words."
    emit(runtime, "candidate", message, instruction=instruction)
    return {"candidate": response, "usage": usage}
