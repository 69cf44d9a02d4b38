"""How often a score ranks the good of two responses first, against one question for a mark.

    python -m benchmarks.score_pairs --criteria DIR --out DIR [--pairs N]

Reads judge_pairs.jsonl: 30 pairs of a good and a poor response to one instruction. The embedded
model scores both by the criteria of a run (`refloom score`), and is asked for a mark from 1 to 10
of the whole response: its expected value over the probabilities of the first digit. It has no word
for 10 but "1", so that "1" counts as 10 where the other digits' mean is above 5, else as 1. What is
told is how often the good response is higher, alike, or lower, with a 95 % interval for higher,
ties counting half. The same command goes on where it was ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refloom import local
from refloom.data.responses import Responses
from refloom.evaluation.judging import judge_settings
from refloom.evaluation.score_file import ScoreRun
from refloom.evaluation.stats import proportion

PAIRS = Path(__file__).with_name("judge_pairs.jsonl")
QUESTION = """\
Here is an instruction and a response to it.

<instruction>
{instruction}
</instruction>
<response>
{response}
</response>

How good is the response on a scale from 1 (useless) to 10 (perfect)? Answer with the number only.
"""


def write_rows(path: Path, pairs: int | None) -> list[dict[str, Any]]:
    """A row for each response of the first `pairs`, good and poor in turn."""
    rows = [
        {
            "id": f"{pair['id']}-{which}",
            "kind": pair["kind"],
            "instruction": pair["instruction"],
            "response": pair[which],
        }
        for pair in map(json.loads, PAIRS.read_text(encoding="utf-8").splitlines()[:pairs])
        for which in ("good", "poor")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def ask_mark(row: Mapping[str, Any]) -> float:
    """The expected mark of a response, by the embedded model. Blocks."""
    server = local.endpoint()
    body = {
        "model": "local",
        "messages": [{"role": "user", "content": QUESTION.format_map(row)}],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
    }
    request = urllib.request.Request(
        f"{server.base_url}/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {server.api_key}"},
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        said = json.load(reply)
    tokens = said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    share = dict.fromkeys(range(1, 10), 1e-9)
    for token in tokens:
        text = token["token"].strip()
        if text in map(str, share):
            share[int(text)] += math.exp(token["logprob"])
    others = sum(share[digit] for digit in range(2, 10))
    mean = sum(digit * share[digit] for digit in range(2, 10)) / others
    ten = 10 if mean > 5 else 1
    return (mean * others + ten * share[1]) / (others + share[1])


def ask_marks(rows: list[dict[str, Any]], path: Path) -> dict[str, float]:
    """The marks of all rows; those in the file are not asked for again."""
    known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    for row in rows:
        if row["id"] not in known:
            known[row["id"]] = ask_mark(row)
            path.write_text(json.dumps(known, indent=1), encoding="utf-8")
            print(f"marked {len(known)} of {len(rows)}", flush=True)
    return known


def describe(name: str, rows: list[dict[str, Any]], values: Mapping[str, float | None]) -> None:
    """Print how often the good response is higher, of all pairs and by kind."""
    for kind in ("all", *dict.fromkeys(row["kind"] for row in rows)):
        pairs = [
            (values[good["id"]], values[poor["id"]])
            for good, poor in zip(rows[::2], rows[1::2], strict=True)
            if kind in ("all", good["kind"])
        ]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        higher = sum(a > b + 1e-9 for a, b in known)
        lower = sum(b > a + 1e-9 for a, b in known)
        alike = len(known) - higher - lower
        rate = proportion(higher + alike / 2, len(known))
        print(
            f"{name:<10}{kind:<14}higher {higher:>2}, alike {alike:>2}, lower {lower:>2} of "
            f"{len(known):>2}; ties as half: {rate.value} ({rate.low} to {rate.high})",
            flush=True,
        )


def main() -> None:
    """Score the pairs, ask for marks, and tell both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--criteria", type=Path, required=True, help="a run's directory")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, metavar="N", help="the first N only")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = write_rows(given.out / "rows.jsonl", given.pairs)
    chosen = {"judge_model": "local", "judge_method": "logodds", "concurrency": 1}
    settings = judge_settings(given.criteria, chosen)
    session = ScoreRun(
        Responses(str(given.out / "rows.jsonl")),
        given.criteria,
        given.out / "scored.jsonl",
        settings.model_copy(update={"model": "local"}),
        on_progress=lambda done, total: print(f"scored {done} of {total}", flush=True),
        on_warning=print,
    )
    asyncio.run(session.run())
    text = (given.out / "scored.jsonl").read_text(encoding="utf-8")
    scored = {row["id"]: row for row in map(json.loads, text.splitlines())}
    describe("score", rows, {id_: row["score"] for id_, row in scored.items()})
    odds = {
        id_: next((v["score"] for v in row["verdicts"] if v["score"] is not None), None)
        for id_, row in scored.items()
    }
    describe("built in", rows, odds)
    describe("mark", rows, ask_marks(rows, given.out / "marks.json"))


if __name__ == "__main__":
    main()
