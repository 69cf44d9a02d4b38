"""What refloom adds to a LangGraph server: auth, request limits, warm-up and the review page."""

from __future__ import annotations

import os

from memory.weights import is_offline


def stay_offline() -> None:
    """Keep the libraries of this process off the network. Call it before they are imported.

    The server then calls only the model endpoints it was started with. `REFLOOM_OFFLINE=0` turns
    this off, so that missing weights are downloaded.
    """
    os.environ.setdefault("REFLOOM_OFFLINE", "1")
    if is_offline():
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
            os.environ.setdefault(name, "1")
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
