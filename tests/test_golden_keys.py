"""The keys and the requests of whole runs are those of earlier versions of refloom.

A run is taken up, and another reused, by the keys of its calls. A key that changes by a byte makes
every journal pay again, and so does a request that changes by a word. `data/golden_keys.json` holds
the keys in the journals of scripted runs and the hashes of what was sent, stage by stage; only the
sets count, not their order.

Where a prompt, a schema or the recipe of a key is changed on purpose, write the file anew and say
so in CHANGELOG.md, since runs that were begun before cannot be reused for nothing:

    GOLDEN_REWRITE=1 python -m pytest tests/test_golden_keys.py -n 0
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fakes import Endpoint
from processes import refloom
from varied_model import (
    ANSWERS,
    BASE_URL,
    JUDGE_BASE_URL,
    calls_in,
    canonical,
    proxied,
    respond,
    stage_of,
    with_a_plain_judge,
    write_files,
)

GOLDEN = Path(__file__).parent / "data" / "golden_keys.json"
RUN = (
    "run", "--references", "references.jsonl", "--seeds", "seeds.txt", "--base-url", BASE_URL,
    "--model", "m", "--quiet", "--no-screen", "--out", "out",
)  # fmt: skip
BY_STAGE = """
[stages.extract]
temperature = 0.1
max_tokens = 900

[stages.generate]
temperature = 0.5
extra_body = { top_k = 40, chat_template_kwargs = { enable_thinking = false } }

[stages.critique]
max_tokens = 700
extra_body = { top_p = 0.9 }
"""


@dataclass(frozen=True)
class Scenario:
    """The commands of a scenario, which all end well, and the endpoint they are run against."""

    commands: Sequence[Sequence[str]]
    endpoint: Any = respond


SCENARIOS = {
    # Instructions held to criteria, those of references among them.
    "screen": Scenario(
        [
            (
                *(part for part in RUN if part != "--no-screen"), "--per-seed", "3",
                "--references-per-seed", "2", "--max-failure-rate", "1",
            )
        ]
    ),
    # Trials, proposals that are no news, rules that fail, malformed, cut and empty answers.
    "verdicts": Scenario(
        [
            (
                *RUN, "--per-seed", "3", "--references-per-seed", "2", "--judge-votes", "3",
                "--max-failure-rate", "1",
            ),
            ("judge-check", "out", "--limit", "3", "--quiet"),
            ("export", "out", "chosen.jsonl", "--filter", "judge", "--format", "messages"),
        ]
    ),
    "logodds": Scenario(
        [
            (
                *RUN, "--judge-method", "logodds", "--limit", "5", "--references-per-seed", "2",
                "--turns", "all", "--max-failure-rate", "1",
            ),
            ("judge-check", "out", "--limit", "1", "--quiet"),
        ]
    ),
    # A judge of its own at another address, settings by stage, the seeds as instructions. One call
    # at a time, so that what the judge's endpoint refuses is found out at the same calls.
    "stages": Scenario(
        [
            (
                *RUN, "--answer-seeds", "--judge-model", "j", "--judge-base-url", JUDGE_BASE_URL,
                "--config", "stages.toml", "--random-seed", "7", "--references-per-seed", "1",
                "--no-try-criteria", "--max-failure-rate", "1", "--concurrency", "1",
            )
        ],
        with_a_plain_judge,
    ),
    # Accepted instructions answered again, bare; the rest is as in "verdicts".
    "reasoning": Scenario(
        [
            (
                *RUN, "--reasoning", "--per-seed", "3", "--references-per-seed", "2",
                "--judge-votes", "3", "--max-failure-rate", "1",
            ),
        ]
    ),
    "refed": Scenario([(*RUN, "--preset", "refed", "--per-seed", "4")]),
    "arms": Scenario(
        [
            (
                "experiment", "--arms", "reference,sample,none,generic,swapped", *RUN[1:],
                "--references-per-seed", "1", "--max-failure-rate", "1",
            )
        ]
    ),
}  # fmt: skip


def by_stage(found: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Stages and hex digests as sorted lists of short digests, each once."""
    stages = defaultdict(set)
    for stage, digest in found:
        stages[stage].add(digest[:16])
    return {stage: sorted(stages[stage]) for stage in sorted(stages)}


def play(scenario: Scenario, folder: Path) -> dict[str, dict[str, list[str]]]:
    """Run the commands of a scenario; the keys in its journals, and what was sent."""
    write_files(folder)
    (folder / "stages.toml").write_text(BY_STAGE, encoding="utf-8")
    with Endpoint(scenario.endpoint) as endpoint:
        for command in scenario.commands:
            ended = refloom(*command, cwd=folder, **proxied(endpoint.url))
            assert ended.returncode == 0, (command, ended.stderr)
    sent = (
        (stage_of(body), sha256(canonical(body).encode()).hexdigest()) for body in endpoint.bodies
    )
    # A preflight makes no row: with another key a run would make one more.
    keys = (call for call in calls_in(folder / "out") if call[0] != "preflight")
    return {"keys": by_stage(keys), "requests": by_stage(sent)}


def differences(
    found: dict[str, dict[str, list[str]]], golden: dict[str, dict[str, list[str]]]
) -> list[str]:
    """A line for each stage whose keys or requests are not the golden ones."""
    lines = []
    for kind in ("keys", "requests"):
        for stage in sorted({*found[kind], *golden[kind]}):
            new, old = set(found[kind].get(stage, ())), set(golden[kind].get(stage, ()))
            if new != old:
                lines.append(
                    f"{stage}: of {len(old)} golden {kind}, {len(old - new)} are gone and "
                    f"{len(new - old)} are new"
                )
    return lines


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_has_the_keys_and_the_requests_it_always_had(name, tmp_path):
    found = play(SCENARIOS[name], tmp_path)
    known = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    if os.environ.get("GOLDEN_REWRITE"):
        known[name] = found
        text = json.dumps({key: known[key] for key in SCENARIOS if key in known}, indent=1)
        GOLDEN.write_text(f"{text}\n", encoding="utf-8")
    wrong = differences(found, known[name])
    assert not wrong, "\n".join([f"scenario {name}; see the docstring of this file:", *wrong])


def test_every_stage_has_golden_keys():
    known = json.loads(GOLDEN.read_text(encoding="utf-8"))
    stages = {stage for scenario in known.values() for stage in scenario["keys"]}
    assert stages == {*ANSWERS, "judge-check", "probe"}
    assert "question" in known["logodds"]["requests"]
