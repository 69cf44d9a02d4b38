"""Prompts that a user edits, in Studio or through the API: what a template may do, and no more.

Whoever may start a run may write its prompts, so a template is untrusted. It is checked before it
is ever rendered: only the shape of refloom's own prompts is let through, so that there is nothing
to loop or compute with, no attribute of Python's to reach, and no data outside of its tags.
"""

from __future__ import annotations

from functools import lru_cache

from jinja2 import TemplateSyntaxError, meta, nodes
from jinja2.exceptions import SecurityError

from prompts import _environment, source

LONGEST = 20_000
DEEPEST = 1
FENCES = ("fence", "fence_history", "fence_reference")
# What refloom sets itself, short and without a way out of its sentence.
PLAIN = ("count", "most", "text")
# What a prompt cannot do its work without.
NEEDED = {
    "extract": {"reference"},
    "propose": {"seed", "count"},
    "generate": {"instruction"},
    "critique": {"criteria", "instruction", "response"},
    "question": {"instruction", "response", "text"},
    "refine": {"instruction", "response", "failed"},
}
_TESTS = (nodes.Name, nodes.Getattr, nodes.Not, nodes.And, nodes.Or)
_VALUES = (nodes.Name, nodes.Getattr, nodes.Const, nodes.Concat, nodes.Filter)


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
        _shape(_environment.parse(text))
        # Only now: Jinja works constants out when it looks for names.
        used = meta.find_undeclared_variables(_environment.parse(text))
    except (TemplateSyntaxError, SecurityError, RecursionError) as error:
        raise PromptUnusable(f"line {getattr(error, 'lineno', 1)}: {error}") from error
    given = meta.find_undeclared_variables(_environment.parse(source(name)))
    if missing := NEEDED[name] - used:
        raise PromptUnusable(f"it does not use {', '.join(sorted(missing))}")
    if unknown := used - given:
        raise PromptUnusable(
            f"there is no {', '.join(sorted(unknown))} here; there are {', '.join(sorted(given))}"
        )


def _shape(tree: nodes.Template) -> None:
    """Nothing but the two blocks, with nothing in them but what a prompt is made of."""
    blocks = [node for node in tree.body if isinstance(node, nodes.Block)]
    if sorted(block.name for block in blocks) != ["system", "user"]:
        raise PromptUnusable("it needs the blocks system and user, each once")
    for node in tree.body:
        if not isinstance(node, nodes.Block) and not _blank(node):
            raise _refused(node, "text outside of the blocks")
    for block in blocks:
        _body(block.body, 0)


def _blank(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Output) and all(
        isinstance(part, nodes.TemplateData) and not part.data.strip() for part in node.nodes
    )


def _refused(node: nodes.Node, what: str) -> PromptUnusable:
    return PromptUnusable(f"line {node.lineno}: {what} is not allowed in a prompt")


def _body(body: list[nodes.Node], depth: int) -> None:
    """Text, output, conditions and loops over what is given."""
    for node in body:
        if isinstance(node, nodes.Output):
            for part in node.nodes:
                _output(part)
        elif isinstance(node, nodes.If):
            _test(node.test)
            _body(node.body, depth)
            for branch in node.elif_:
                _body([branch], depth)
            _body(node.else_, depth)
        elif isinstance(node, nodes.For):
            if depth >= DEEPEST:
                raise _refused(node, "a loop in a loop")
            if node.test or node.recursive or not isinstance(node.target, nodes.Name):
                raise _refused(node, "this kind of loop")
            if not isinstance(node.iter, nodes.Name | nodes.Getattr):
                raise _refused(node, "a loop over anything but what the prompt is given")
            _value(node.iter)
            _body([*node.body, *node.else_], depth + 1)
        else:
            raise _refused(node, f"{{% {type(node).__name__.lower()} %}}")


def _output(node: nodes.Expr) -> None:
    """Text as it stands, what refloom sets itself, or data between tags."""
    if isinstance(node, nodes.TemplateData) or (
        isinstance(node, nodes.Name) and node.name in PLAIN
    ):
        return
    if not isinstance(node, nodes.Call) or not isinstance(node.node, nodes.Name):
        raise _refused(node, "data outside of fence()")
    name = node.node.name
    if name not in FENCES or node.dyn_args is not None or node.dyn_kwargs is not None:
        raise _refused(node, f"calling {name}")
    values = [*node.args, *(pair.value for pair in node.kwargs)]
    if name == "fence":
        tag = values[0] if values else None
        if not (isinstance(tag, nodes.Const) and str(tag.value).isalpha()):
            raise _refused(node, "a tag that is no plain word")
    for value in values:
        _value(value)


def _value(node: nodes.Node) -> None:
    """A name, a part of what is given, a text, or several joined."""
    if not isinstance(node, _VALUES):
        raise _refused(node, f"the expression {type(node).__name__.lower()}")
    if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
        raise _refused(node, f"the attribute {node.attr}")
    if isinstance(node, nodes.Filter) and node.name != "join":
        raise _refused(node, f"the filter {node.name}")
    for child in node.iter_child_nodes():
        _value(child)


def _test(node: nodes.Node) -> None:
    if not isinstance(node, _TESTS):
        raise _refused(node, f"the condition {type(node).__name__.lower()}")
    if isinstance(node, nodes.Getattr):
        _value(node)
    for child in node.iter_child_nodes():
        _test(child)
