"""Whole runs in this process: what goes in, a model that varies, and what comes out."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from fakes import Endpoint, ScriptedModel, answer, letters, prompt_of, tagged, verdicts, words

from nodes.llm import Call, CallFailed, Reply
from refloom.data.read import Source
from refloom.runs.run import Run, Tools
from refloom.settings import Settings

STATUSES = ("accepted", "rejected", "failed")
SEEDS = [words(f"seed {i}", 8) for i in range(8)]


def references(n: int = 3) -> list[dict[str, str]]:
    return [
        {
            "id": f"r{i}",
            "instruction": words(f"reference {i}", 10) + "?",
            "response": words(f"first {i}", 30) + ". " + words(f"then {i}", 20) + ".",
        }
        for i in range(n)
    ]


def build_run(
    out: Path,
    complete: Any,
    seeds: Sequence[Any] | None = SEEDS[:3],
    *,
    given: Sequence[Any] | None = None,
    on_record: Callable[[dict[str, Any]], None] | None = None,
    **settings: Any,
) -> Run:
    has_criteria = "criteria" in settings
    return Run(
        # What is tested alone is asked for: screening by tests/test_screen.py.
        Settings(**{"model": "m", "try_criteria": False, "screen": False, **settings}),
        Source(references() if given is None else given, as_reference=True),
        None if seeds is None else Source(seeds, as_reference=False, with_tags=has_criteria),
        out,
        on_record,
        Tools(complete=complete, embed=letters),
    )


async def finish_run(out: Path, complete: Any, *args: Any, **more: Any) -> dict[str, Any]:
    """Run to the end; return what run.json then says."""
    async with asyncio.timeout(20):
        await build_run(out, complete, *args, **more).run()
    return summary_of(out)


def summary_of(out: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return said


def rows(out: Path, status: str) -> list[dict[str, Any]]:
    text = (out / f"{status}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def all_rows(out: Path) -> list[dict[str, Any]]:
    found = [row for status in STATUSES for row in rows(out, status)]
    return sorted(found, key=lambda row: row["slot"])


def stable_rows(out: Path) -> list[dict[str, Any]]:
    """The rows without what may differ from run to run."""
    passing = ("created", "usage", "cost_usd")
    return [{k: v for k, v in row.items() if k not in passing} for row in all_rows(out)]


def call_content(call: Call) -> str:
    """All that makes a call's answer what it is."""
    rest = (call.answer.__name__ if call.answer else None, call.model, call.judge, call.seed)
    return repr((call.stage, call.messages, rest, call.temperature, call.max_tokens, call.room))


def number_of(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:4], "big")


class CountingModel:
    """A model in front of another: counts calls by content, and does something at one of them."""

    def __init__(self, model: Any, at: int = 0, then: Callable[[], Any] = lambda: None) -> None:
        self.model, self.at, self.then = model, at, then
        self.begun = 0
        self.answered: Counter[str] = Counter()

    async def __call__(self, call: Call) -> Reply:
        self.begun += 1
        if self.begun == self.at:
            self.then()
        reply = await self.model(call)
        self.answered[call_content(call)] += 1
        return reply


class MixedModel(ScriptedModel):
    """A model of varied success, fixed by seeds and instructions alone, not by prompts' wording."""

    def __init__(self) -> None:
        super().__init__(
            propose=self._propose,
            generate=self._generate,
            critique=self._critique,
            refine=self._refine,
        )

    def _propose(self, call: Call) -> Any:
        said = answer("propose", prompt_of(call), call.seed)
        if call.seed % 4 == 0:
            said["instructions"][0] = "which quartz river has umber and violet banks"
        return said

    def _generate(self, call: Call) -> Any:
        instruction = tagged(prompt_of(call), "instruction")[-1]
        if number_of(instruction) % 5 == 0:
            return CallFailed("generate", "bad_request", "not this one")
        return {"response": words(instruction, 40).capitalize() + "."}

    def _refine(self, call: Call) -> Any:
        response = tagged(prompt_of(call), "response")[-1]
        return {"plan": ["mend it"], "response": words(response, 40).capitalize() + "."}

    def _critique(self, call: Call) -> Any:
        response = tagged(prompt_of(call), "response")[-1]
        candidate = not any(r["response"] == response for r in references())
        bad = candidate and number_of(response) % 2 == 0
        return verdicts(prompt_of(call), "fail" if bad else "pass")

    async def __call__(self, call: Call) -> Reply:
        for _ in range(call.seed % 5):
            await asyncio.sleep(0)
        return await super().__call__(call)


def run_flags(references: Path, out: Path, endpoint: Endpoint, *more: object) -> list[object]:
    """The command line of a run of `references` at `endpoint`."""
    flags = ["run", "--references", references, "--out", out, "--base-url", endpoint.url]
    return [*flags, "--model", "m", "--references-per-seed", 1, *more]
