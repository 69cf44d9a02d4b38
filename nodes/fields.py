"""How a setting of the graph is shown in Studio, and prompts as settings that may be edited."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from prompts import source
from prompts.validation import PromptUnusable, check


def at(*nodes: str) -> dict[str, Any]:
    """Tell Studio which nodes a setting belongs to."""
    return {"langgraph_nodes": list(nodes)}


def _usable(text: str, info: ValidationInfo) -> str:
    try:
        check(str(info.field_name).removesuffix("_prompt"), text)
    except PromptUnusable as error:
        raise PydanticCustomError("prompt", "{why}", {"why": str(error)}) from error
    return text


Prompt = Annotated[str, AfterValidator(_usable)]


def prompt_field(name: str, about: str, *nodes: str) -> Any:
    """A prompt as a field: Studio opens an editor for it."""
    return Field(
        default=source(name),
        title=f"Prompt of {name}",
        description=f"{about} A Jinja template with the blocks system and user; data goes "
        "through fence().",
        min_length=1,
        max_length=20_000,
        json_schema_extra={**at(*nodes), "langgraph_type": "prompt"},
    )
