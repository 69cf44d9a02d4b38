"""Validation of prompts that a user edits, in Studio or through the API.

Anyone who may start a run may write its prompts, so a template is untrusted. It is checked before
it is rendered, and may only do what refloom's own prompts do. It cannot compute, loop over anything
but its lists, reach attributes of Python objects, or put data outside of tags.
"""

from __future__ import annotations

from functools import lru_cache

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
        checker.check_body(block.body, frozenset(), 0)
    return checker.used


def _is_blank(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Output) and all(
        isinstance(part, nodes.TemplateData) and not part.data.strip() for part in node.nodes
    )


def _refusal(node: nodes.Node, what: str) -> PromptUnusable:
    return PromptUnusable(f"line {node.lineno}: {what} is not allowed in a prompt")


class _BlockChecker:
    """Checks the content of blocks against the values that a prompt gets.

    `loop` holds the loop variable inside a loop, else nothing.
    """

    def __init__(self, values: set[str]) -> None:
        self.values, self.used = values, set[str]()

    def check_body(self, body: list[nodes.Node], loop: frozenset[str], depth: int) -> None:
        """Allow text, output, conditions, and loops, but no loop in a loop."""
        for node in body:
            if depth > MAX_TEMPLATE_DEPTH:
                raise _refusal(node, "nesting this deep")
            if isinstance(node, nodes.Output):
                for part in node.nodes:
                    self._check_output(part, loop)
            elif isinstance(node, nodes.If):
                self._check_condition(node.test, loop, 0)
                branches: list[list[nodes.Node]] = [node.body, [*node.elif_], node.else_]
                for branch in branches:
                    self.check_body(branch, loop, depth + 1)
            elif isinstance(node, nodes.For):
                self._check_loop(node, loop, depth)
            else:
                raise _refusal(node, f"{{% {type(node).__name__.lower()} %}}")

    def _check_loop(self, node: nodes.For, loop: frozenset[str], depth: int) -> None:
        if loop:
            raise _refusal(node, "a loop in a loop")
        target, over = node.target, node.iter
        if node.test or node.recursive or not isinstance(target, nodes.Name):
            raise _refusal(node, "this kind of loop")
        if not isinstance(over, nodes.Name) or over.name not in LISTS:
            raise _refusal(node, "a loop over anything but one of the prompt's lists")
        self._check_name(over, loop)
        reserved = {*self.values, *FENCES, "loop", "self", "super"}
        if target.name in reserved:
            raise _refusal(node, f"a loop variable with the name {target.name}")
        self.check_body([*node.body, *node.else_], frozenset({target.name}), depth + 1)

    def _check_output(self, node: nodes.Expr, loop: frozenset[str]) -> None:
        """Allow text, values that need no tags, and data between tags."""
        if isinstance(node, nodes.TemplateData):
            return
        if isinstance(node, nodes.Name) and node.name in PLAIN_VALUES and node.name not in loop:
            self._check_name(node, loop)
            return
        if not isinstance(node, nodes.Call) or not isinstance(node.node, nodes.Name):
            raise _refusal(node, "data outside of fence()")
        name = node.node.name
        if name not in FENCES or node.dyn_args is not None or node.dyn_kwargs is not None:
            raise _refusal(node, f"calling {name}")
        values = node.args
        if name == "fence":
            tag = values[0] if values else None
            if not (isinstance(tag, nodes.Const) and str(tag.value).isalpha()):
                raise _refusal(node, "a tag that is not a plain word")
            values = values[1:]
        allowed = {"fence": ("id", "criterion_id", "number"), "fence_reference": ("response",)}.get(
            name, ()
        )
        keys = [pair.key for pair in node.kwargs]
        if len(values) != 1 or len(set(keys)) < len(keys) or set(keys) - set(allowed):
            raise _refusal(node, f"{name} with these arguments")
        for value in (*values, *(pair.value for pair in node.kwargs)):
            self._check_value(value, loop, 0)

    def _check_value(self, node: nodes.Node, loop: frozenset[str], depth: int) -> None:
        """Allow names, attributes of list items, joined lists, and these joined by `~`."""
        if depth > MAX_TEMPLATE_DEPTH:
            raise _refusal(node, "nesting this deep")
        if isinstance(node, nodes.Name | nodes.Getattr):
            self._check_name(node, loop)
        elif isinstance(node, nodes.Concat):
            for child in node.nodes:
                self._check_value(child, loop, depth + 1)
        elif isinstance(node, nodes.Filter):
            glue = node.args[0] if len(node.args) == 1 and not node.kwargs else None
            if (
                node.name != "join"
                or not isinstance(glue, nodes.Const)
                or len(str(glue.value)) > MAX_GLUE_CHARS
            ):
                raise _refusal(node, f"the filter {node.name} with these arguments")
            if not isinstance(node.node, nodes.Name) or node.node.name not in LISTS:
                raise _refusal(node, "joining anything but one of the prompt's lists")
            self._check_name(node.node, loop)
        elif not (isinstance(node, nodes.Const) and isinstance(node.value, str | bool)):
            raise _refusal(node, f"the expression {type(node).__name__.lower()}")

    def _check_name(self, node: nodes.Name | nodes.Getattr, loop: frozenset[str]) -> None:
        if isinstance(node, nodes.Getattr):
            item = node.node
            is_item = isinstance(item, nodes.Name) and item.name in loop
            if node.attr not in ATTRIBUTES or not is_item:
                raise _refusal(node, f"the attribute {node.attr[:40]}")
            return
        if node.name not in {*self.values, *loop}:
            known = ", ".join(sorted({*self.values, *loop}))
            raise PromptUnusable(
                f"line {node.lineno}: there is no {node.name} here; there are {known}"
            )
        self.used.add(node.name)

    def _check_condition(self, node: nodes.Node, loop: frozenset[str], depth: int) -> None:
        """Allow names and attributes, with not, and, or."""
        if depth > MAX_TEMPLATE_DEPTH:
            raise _refusal(node, "nesting this deep")
        if isinstance(node, nodes.Name | nodes.Getattr):
            self._check_name(node, loop)
        elif isinstance(node, nodes.Not | nodes.And | nodes.Or):
            for child in node.iter_child_nodes():
                self._check_condition(child, loop, depth + 1)
        else:
            raise _refusal(node, f"the condition {type(node).__name__.lower()}")
