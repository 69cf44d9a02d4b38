"""A server that is silent: it looks nothing up and fetches nothing while it serves."""

from __future__ import annotations

import os

from memory.weights import offline


def stay_offline() -> None:
    """Keep the libraries of this process off the network; call it before they are imported.

    Only the endpoints that whoever started the server named are called. `REFLOOM_OFFLINE=0` turns
    it off, so that weights which are missing are fetched.
    """
    os.environ.setdefault("REFLOOM_OFFLINE", "1")
    if offline():
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
            os.environ.setdefault(name, "1")
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


# MERGED refloom~serve~__init__
# What a LangGraph server is given.
