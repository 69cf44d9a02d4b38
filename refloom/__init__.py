"""refloom makes instruction-tuning data by reference-level feedback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refloom.runs.synthesize import synthesize
    from refloom.settings import Settings

__version__ = "0.1.0"
__all__ = ["Settings", "__version__", "synthesize"]


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: the graph's libraries take a second."""
    if name == "Settings":
        from refloom.settings import Settings

        return Settings
    if name == "synthesize":
        from refloom.runs.synthesize import synthesize

        return synthesize
    raise AttributeError(f"module 'refloom' has no attribute {name!r}")
