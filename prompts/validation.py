"""Validation of prompts that a user edits, in Studio or through the API.

Anyone who may start a run may write its prompts, so a template is untrusted. It is checked before
it is rendered, and may only do what refloom's own prompts do. It cannot compute, loop over anything
but its lists, reach attributes of Python objects, or put data outside of tags.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, meta, nodes

from prompts import compile_edited, environment, read_prompt, render_template

MAX_TEMPLATE_CHARS = 20_000
MAX_TEMPLATE_DEPTH = 12
MAX_GLUE_CHARS = 20
FENCES = ("fence", "fence_history", "fence_reference")
# Values that need no tags: refloom sets them itself.
PLAIN_VALUES = ("count", "most", "text")
# The values that may be looped over, and the attributes of their items that may be used.
LISTS = (
    *("criteria", "failed", "references", "instructions", "avoid"),
    *("relevant_skills", "subject_areas", "history"),
)
ATTRIBUTES = ("id", "text", "criterion_id", "must", "number")
# The values that a prompt must use.
REQUIRED_NAMES = {
    "extract": {"reference"},
    "propose": {"seed", "count"},
    "generate": {"instruction"},
    "critique": {"criteria", "instruction", "response"},
    "question": {"instruction", "response", "text"},
    "screen": {"criteria", "instructions"},
    "screen_question": {"instruction", "text"},
    "refine": {"instruction", "response", "failed"},
}
# Values for the trial rendering.
_SAMPLE_REFERENCE = {"id": "a", "instruction": "Ask.", "response": "Say.", "history": []}
_SAMPLE_CRITERION = {"id": "a", "text": "says so", "criterion_id": "a", "must": True}
_SAMPLE_INSTRUCTION = {"number": "1", "text": "Ask."}
_SAMPLE_VALUES = {
    **{name: ["a"] for name in ("avoid", "relevant_skills", "subject_areas")},
    **{name: [_SAMPLE_CRITERION] for name in ("criteria", "failed")},
    **{name: "a" for name in ("instruction", "response", "seed", "text")},
    **{
        "reference": _SAMPLE_REFERENCE,
        "references": [_SAMPLE_REFERENCE],
        "instructions": [_SAMPLE_INSTRUCTION],
        "history": [],
        "count": 1,
        "most": 4,
        "screens": True,
        "plain": True,
    },
}
# What Jinja and Python raise for malformed or malicious templates.
_TEMPLATE_ERRORS = (
    TemplateError,
    ValueError,
    TypeError,
    KeyError,
    SyntaxError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)


class PromptUnusable(ValueError):
    """A prompt that is not allowed. The message names the line and the reason."""


@lru_cache(maxsize=256)
def check_prompt(name: str, text: str) -> None:
    """Raise `PromptUnusable` unless `text` may replace the prompt `name`.

    A template consists of the blocks `system` and `user`, with text, `{% if %}`, `{% for %}` over
    its values, and `{{ fence("tag", value) }}`, `{{ fence_reference(..) }}` and
    `{{ fence_history(..) }}` in them.
    """
    if text == read_prompt(name):
        return
    if len(text) > MAX_TEMPLATE_CHARS:
        raise PromptUnusable(
            f"it has {len(text)} characters; at most {MAX_TEMPLATE_CHARS} are allowed"
        )
    try:
        original = environment.parse(read_prompt(name))
        values = meta.find_undeclared_variables(original) - set(FENCES)
        used = _check_blocks(environment.parse(text), values)
        if missing := REQUIRED_NAMES[name] - used:
            raise PromptUnusable(f"it does not use {', '.join(sorted(missing))}")
        # Compiling comes after the check, since it computes constants, however large they get.
        render_template(compile_edited(text), _SAMPLE_VALUES)
    except PromptUnusable:
        raise
    except RecursionError as error:
        raise PromptUnusable("it is nested too deeply") from error
    except _TEMPLATE_ERRORS as error:
        line = getattr(error, "lineno", None) or 1
        raise PromptUnusable(f"line {line}: {' '.join(str(error).split())[:200]}") from error


def _check_blocks(tree: nodes.Template, values: set[str]) -> set[str]:
    """Check that a template is the two blocks and nothing else. Returns the values it uses."""
    blocks = [node for node in tree.body if isinstance(node, nodes.Block)]
    if sorted(block.name for block in blocks) != ["system", "user"]:
        raise PromptUnusable("it needs the blocks system and user, each once")
    for node in tree.body:
        if not isinstance(node, nodes.Block) and not _is_blank(node):
            raise _refusal(node, "text outside of the blocks")
    checker = _BlockChecker(values)
    for block in blocks:
        for node in block.body:
            checker.check(node, "body", frozenset())
    return checker.used


def _is_blank(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Output) and all(
        isinstance(part, nodes.TemplateData) and not part.data.strip() for part in node.nodes
    )


def _refusal(node: nodes.Node, what: str) -> PromptUnusable:
    return PromptUnusable(f"line {node.lineno}: {what} is not allowed in a prompt")


# What may stand in each place of a block: the types of nodes, and the place of what each field of
# theirs holds. A field that is not named here must be empty or plain text.
PLACES: Mapping[str, Mapping[type[nodes.Node], Mapping[str, str]]] = {
    "body": {
        nodes.Output: {"nodes": "output"},
        nodes.If: {"test": "condition", "body": "body", "elif_": "body", "else_": "body"},
        nodes.For: {"target": "variable", "iter": "list", "body": "body", "else_": "body"},
    },
    "output": {
        nodes.TemplateData: {},
        nodes.Name: {},
        nodes.Call: {"node": "fence", "args": "value", "kwargs": "pair"},
    },
    "pair": {nodes.Keyword: {"value": "value"}},
    "value": {
        nodes.Name: {},
        nodes.Getattr: {"node": "item"},
        nodes.Concat: {"nodes": "value"},
        nodes.Filter: {"node": "list", "args": "constant"},
        nodes.Const: {},
    },
    "condition": {
        nodes.Name: {},
        nodes.Getattr: {"node": "item"},
        nodes.Not: {"node": "condition"},
        nodes.And: {"left": "condition", "right": "condition"},
        nodes.Or: {"left": "condition", "right": "condition"},
    },
    "constant": {nodes.Const: {}},
    **{name: {nodes.Name: {}} for name in ("variable", "list", "item", "fence")},
}
# What is said of anything else there.
_REFUSALS = {
    "body": "{{% {} %}}",
    "value": "the expression {}",
    "condition": "the condition {}",
    "constant": "a filter with the argument {}",
    "variable": "this kind of loop",
    "list": "a loop over or joining anything but one of the prompt's lists",
}
_ALLOWED_ATTRIBUTES = {"fence": {"id", "criterion_id", "number"}, "fence_reference": {"response"}}


class _BlockChecker:
    """Checks the content of blocks against `PLACES` and the values that a prompt gets.

    `loop` holds the loop variable inside a loop, else nothing.
    """

    def __init__(self, values: set[str]) -> None:
        self.values, self.used = values, set[str]()
        self._rules: Mapping[type[nodes.Node], Callable[[Any, str, frozenset[str]], None]] = {
            nodes.Name: self._check_name,
            nodes.For: self._check_loop,
            nodes.Const: _check_constant,
            nodes.Getattr: _check_attribute,
            nodes.Filter: _check_filter,
            nodes.Call: _check_call,
        }

    def check(self, node: nodes.Node, place: str, loop: frozenset[str], depth: int = 0) -> None:
        """Check that a node, and all that is in it, may stand in a place."""
        if depth > MAX_TEMPLATE_DEPTH:
            raise _refusal(node, "nesting this deep")
        kind = type(node)
        if kind not in PLACES[place]:
            what = _REFUSALS.get(place, "data outside of fence()")
            raise _refusal(node, what.format(kind.__name__.lower()))
        if (rule := self._rules.get(kind)) is not None:
            rule(node, place, loop)
        if isinstance(node, nodes.For) and isinstance(node.target, nodes.Name):
            loop = frozenset({node.target.name})
        for field, content in () if kind is nodes.Const else node.iter_fields():
            inner = PLACES[place][kind].get(field, "")
            if not inner and content and not isinstance(content, str):
                raise _refusal(node, f"{kind.__name__.lower()} with {field}")
            children = content if isinstance(content, list) else [content]
            for child in children if inner else ():
                # No place is left and entered again, so each may count from 0.
                self.check(child, inner, loop, depth + 1 if inner == place else 0)

    def _check_name(self, node: nodes.Name, place: str, loop: frozenset[str]) -> None:
        name = node.name
        if place == "output" and (name not in PLAIN_VALUES or name in loop):
            raise _refusal(node, "data outside of fence()")
        if place == "list" and name not in LISTS:
            raise _refusal(node, _REFUSALS["list"])
        if place == "fence" and name not in FENCES:
            raise _refusal(node, f"calling {name}")
        if place in ("output", "value", "condition", "list"):
            known = self.values if place == "list" else {*self.values, *loop}
            if name not in known:
                raise PromptUnusable(
                    f"line {node.lineno}: there is no {name} here; "
                    f"there are {', '.join(sorted(known))}"
                )
            self.used.add(name)

    def _check_loop(self, node: nodes.For, place: str, loop: frozenset[str]) -> None:
        if loop:
            raise _refusal(node, "a loop in a loop")
        if not isinstance(node.target, nodes.Name):
            raise _refusal(node, _REFUSALS["variable"])
        if node.target.name in {*self.values, *FENCES, "loop", "self", "super"}:
            raise _refusal(node, f"a loop variable with the name {node.target.name}")


def _check_constant(node: nodes.Const, place: str, loop: frozenset[str]) -> None:
    if not isinstance(node.value, str | bool):
        raise _refusal(node, "the expression const")


def _check_attribute(node: nodes.Getattr, place: str, loop: frozenset[str]) -> None:
    is_item = isinstance(node.node, nodes.Name) and node.node.name in loop
    if node.attr not in ATTRIBUTES or not is_item:
        raise _refusal(node, f"the attribute {node.attr[:40]}")


def _check_filter(node: nodes.Filter, place: str, loop: frozenset[str]) -> None:
    """Allow only `join`, by one short text."""
    glue = node.args[0] if len(node.args) == 1 else None
    is_short = isinstance(glue, nodes.Const) and len(str(glue.value)) <= MAX_GLUE_CHARS
    if node.name != "join" or not is_short:
        raise _refusal(node, f"the filter {node.name} with these arguments")


def _check_call(node: nodes.Call, place: str, loop: frozenset[str]) -> None:
    """Allow one value, after the tag of `fence`, and the attributes that a fence has."""
    name = node.node.name if isinstance(node.node, nodes.Name) else ""
    values, keys = list(node.args), [pair.key for pair in node.kwargs]
    if name == "fence":
        tag = values.pop(0) if values else None
        if not (isinstance(tag, nodes.Const) and str(tag.value).isalpha()):
            raise _refusal(node, "a tag that is not a plain word")
    is_allowed = len(set(keys)) == len(keys) and set(keys) <= _ALLOWED_ATTRIBUTES.get(name, set())
    if name in FENCES and not (len(values) == 1 and is_allowed):
        raise _refusal(node, f"{name} with these arguments")
