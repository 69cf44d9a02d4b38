"""No keys, no endpoint and no other settings of the developer's reach a test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

PREFIXES = ("OPENAI_", "JUDGE_", "REFLOOM_", "LANGSMITH_", "LANGCHAIN_")


@pytest.fixture(autouse=True)
def no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(PREFIXES):
            monkeypatch.delenv(name)
    yield
