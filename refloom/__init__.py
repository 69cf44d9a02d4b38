"""refloom makes instruction-tuning data by reference-level feedback."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refloom.runs.run import synthesize
    from refloom.settings import Settings

__version__ = "0.1.0"
__all__ = ["Settings", "__version__", "synthesize"]


def _check_identity() -> None:
    """Refuse to start if another package's `graph`, `nodes`, `memory` or `prompts` is in the way.

    Raises `ImportError` naming it; their names are plain, and an installed one would win silently.
    """
    root = Path(__file__).resolve().parent.parent
    for name in ("graph", "nodes", "memory", "prompts"):
        spec = find_spec(name)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != root / name:
            raise ImportError(
                f"the package {name!r} is {found}, not refloom's own in {root}: "
                "uninstall the other one, or put refloom's folder first on PYTHONPATH"
            )


_check_identity()
# In a notebook without ipywidgets tqdm warns of bars that refloom does not draw.
warnings.filterwarnings("ignore", message="IProgress not found")


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: the graph's libraries take a second."""
    if name == "Settings":
        from refloom.settings import Settings

        return Settings
    if name == "synthesize":
        from refloom.runs.run import synthesize

        return synthesize
    raise AttributeError(f"module 'refloom' has no attribute {name!r}")
