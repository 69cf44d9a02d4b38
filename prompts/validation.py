"""Prompts that a user edits, in Studio or through the API: what a template may do, and no more.

Whoever may start a run may write its prompts, so a template is untrusted. It is checked before it
is ever rendered: only the shape of refloom's own prompts is let through, so that there is nothing
to loop or compute with, no attribute of Python's to reach, and no data outside of its tags.
"""

from __future__ import annotations

from functools import lru_cache

from jinja2 import TemplateError, meta, nodes

from prompts import _edited, _environment, messages_of, source

LONGEST = 20_000
DEEPEST = 12
FENCES = ("fence", "fence_history", "fence_reference")
# What refloom sets itself, short and without a way out of its sentence.
PLAIN = ("count", "most", "text")
# What may be gone through, and what of it may be named.
LISTS = ("criteria", "failed", "references", "avoid", "relevant_skills", "subject_areas", "history")
PARTS = ("id", "text", "criterion_id", "must")
# What a prompt cannot do its work without.
NEEDED = {
    "extract": {"reference"},
    "propose": {"seed", "count"},
    "generate": {"instruction"},
    "critique": {"criteria", "instruction", "response"},
    "question": {"instruction", "response", "text"},
    "refine": {"instruction", "response", "failed"},
}
# What a template is filled with once, to see that it can be.
_REFERENCE = {"id": "a", "instruction": "Ask.", "response": "Say.", "history": []}
_CRITERION = {"id": "a", "text": "says so", "criterion_id": "a", "must": True}
_TRIAL = {
    **{name: ["a"] for name in ("avoid", "relevant_skills", "subject_areas")},
    **{name: [_CRITERION] for name in ("criteria", "failed")},
    **{name: "a" for name in ("instruction", "response", "seed", "text")},
    **{"reference": _REFERENCE, "references": [_REFERENCE], "history": [], "count": 1, "most": 4},
}
# What Jinja and Python raise for texts that are made to be odd.
_ODD = (
    *(TemplateError, ValueError, TypeError, KeyError, SyntaxError, ArithmeticError),
    *(RecursionError, MemoryError),
)


class PromptUnusable(ValueError):
    """A prompt that cannot be let through; the message says which line and why."""


@lru_cache(maxsize=256)
def check(name: str, text: str) -> None:
    """Raise `PromptUnusable` unless `text` may stand for the prompt `name`.

    A template has the blocks `system` and `user`, text, `{% if %}`, `{% for %}` over what it is
    given, and `{{ fence("tag", value) }}`, `{{ fence_reference(..) }}`, `{{ fence_history(..) }}`.
    """
    if text == source(name):
        return
    if len(text) > LONGEST:
        raise PromptUnusable(f"it has {len(text)} characters; at most {LONGEST} are allowed")
    try:
        given = meta.find_undeclared_variables(_environment.parse(source(name))) - set(FENCES)
        used = _shape(_environment.parse(text), given)
        if missing := NEEDED[name] - used:
            raise PromptUnusable(f"it does not use {', '.join(sorted(missing))}")
        # Only now: to compile it works constants out, however large they come to be.
        messages_of(_edited(text), _TRIAL)
    except PromptUnusable:
        raise
    except RecursionError as error:
        raise PromptUnusable("it is nested too deeply") from error
    except _ODD as error:
        line = getattr(error, "lineno", None) or 1
        raise PromptUnusable(f"line {line}: {' '.join(str(error).split())[:200]}") from error


def _shape(tree: nodes.Template, given: set[str]) -> set[str]:
    """Nothing but the two blocks, with nothing in them but what a prompt is made of.

    Gives the names that are used.
    """
    blocks = [node for node in tree.body if isinstance(node, nodes.Block)]
    if sorted(block.name for block in blocks) != ["system", "user"]:
        raise PromptUnusable("it needs the blocks system and user, each once")
    for node in tree.body:
        if not isinstance(node, nodes.Block) and not _blank(node):
            raise _refused(node, "text outside of the blocks")
    shape = _Shape(given)
    for block in blocks:
        shape.body(block.body, frozenset(), 0)
    return shape.used


def _blank(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Output) and all(
        isinstance(part, nodes.TemplateData) and not part.data.strip() for part in node.nodes
    )


def _refused(node: nodes.Node, what: str) -> PromptUnusable:
    return PromptUnusable(f"line {node.lineno}: {what} is not allowed in a prompt")


class _Shape:
    """Goes through a template, by what a prompt is given; refuses what is no part of one."""

    def __init__(self, given: set[str]) -> None:
        self.given, self.used = given, set[str]()

    def body(self, body: list[nodes.Node], loop: frozenset[str], depth: int) -> None:
        """Text, output, conditions, and loops over what is given, none inside another."""
        for node in body:
            if depth > DEEPEST:
                raise _refused(node, "nesting this deep")
            if isinstance(node, nodes.Output):
                for part in node.nodes:
                    self._output(part, loop)
            elif isinstance(node, nodes.If):
                self._test(node.test, loop, 0)
                branches: list[list[nodes.Node]] = [node.body, [*node.elif_], node.else_]
                for branch in branches:
                    self.body(branch, loop, depth + 1)
            elif isinstance(node, nodes.For):
                self._loop(node, loop, depth)
            else:
                raise _refused(node, f"{{% {type(node).__name__.lower()} %}}")

    def _loop(self, node: nodes.For, loop: frozenset[str], depth: int) -> None:
        if loop:
            raise _refused(node, "a loop in a loop")
        target, over = node.target, node.iter
        if node.test or node.recursive or not isinstance(target, nodes.Name):
            raise _refused(node, "this kind of loop")
        if not isinstance(over, nodes.Name) or over.name not in LISTS:
            raise _refused(node, "a loop over anything but a list the prompt is given")
        self._name(over, loop)
        taken = {*self.given, *FENCES, "loop", "self", "super"}
        if target.name in taken:
            raise _refused(node, f"calling what is looped over {target.name}")
        self.body([*node.body, *node.else_], frozenset({target.name}), depth + 1)

    def _output(self, node: nodes.Expr, loop: frozenset[str]) -> None:
        """Text as it stands, what refloom sets itself, or data between tags."""
        if isinstance(node, nodes.TemplateData):
            return
        if isinstance(node, nodes.Name) and node.name in PLAIN and node.name not in loop:
            self._name(node, loop)
            return
        if not isinstance(node, nodes.Call) or not isinstance(node.node, nodes.Name):
            raise _refused(node, "data outside of fence()")
        name = node.node.name
        if name not in FENCES or node.dyn_args is not None or node.dyn_kwargs is not None:
            raise _refused(node, f"calling {name}")
        values = node.args
        if name == "fence":
            tag = values[0] if values else None
            if not (isinstance(tag, nodes.Const) and str(tag.value).isalpha()):
                raise _refused(node, "a tag that is no plain word")
            values = values[1:]
        allowed = {"fence": ("id", "criterion_id"), "fence_reference": ("response",)}.get(name, ())
        keys = [pair.key for pair in node.kwargs]
        if len(values) != 1 or len(set(keys)) < len(keys) or set(keys) - set(allowed):
            raise _refused(node, f"{name} with these arguments")
        for value in (*values, *(pair.value for pair in node.kwargs)):
            self._value(value, loop, 0)

    def _value(self, node: nodes.Node, loop: frozenset[str], depth: int) -> None:
        """A name, a part of what is looped over, a list joined by a text, or several together."""
        if depth > DEEPEST:
            raise _refused(node, "nesting this deep")
        if isinstance(node, nodes.Name | nodes.Getattr):
            self._name(node, loop)
        elif isinstance(node, nodes.Concat):
            for child in node.nodes:
                self._value(child, loop, depth + 1)
        elif isinstance(node, nodes.Filter):
            by = node.args[0] if len(node.args) == 1 and not node.kwargs else None
            if node.name != "join" or not isinstance(by, nodes.Const) or len(str(by.value)) > 20:
                raise _refused(node, f"the filter {node.name}, or with these arguments,")
            if not isinstance(node.node, nodes.Name) or node.node.name not in LISTS:
                raise _refused(node, "joining anything but a list the prompt is given")
            self._name(node.node, loop)
        elif not (isinstance(node, nodes.Const) and isinstance(node.value, str | bool)):
            raise _refused(node, f"the expression {type(node).__name__.lower()}")

    def _name(self, node: nodes.Name | nodes.Getattr, loop: frozenset[str]) -> None:
        if isinstance(node, nodes.Getattr):
            of = node.node
            if node.attr not in PARTS or not isinstance(of, nodes.Name) or of.name not in loop:
                raise _refused(node, f"the attribute {node.attr[:40]}")
            return
        if node.name not in {*self.given, *loop}:
            known = ", ".join(sorted({*self.given, *loop}))
            raise PromptUnusable(
                f"line {node.lineno}: there is no {node.name} here; there are {known}"
            )
        self.used.add(node.name)

    def _test(self, node: nodes.Node, loop: frozenset[str], depth: int) -> None:
        """Whether something is there: names, parts, not, and, or."""
        if depth > DEEPEST:
            raise _refused(node, "nesting this deep")
        if isinstance(node, nodes.Name | nodes.Getattr):
            self._name(node, loop)
        elif isinstance(node, nodes.Not | nodes.And | nodes.Or):
            for child in node.iter_child_nodes():
                self._test(child, loop, depth + 1)
        else:
            raise _refused(node, f"the condition {type(node).__name__.lower()}")
