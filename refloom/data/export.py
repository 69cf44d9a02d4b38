"""Accepted rows as training data, one format a function, from a record to its rows.

Rows of one seed stay in one part when an export is split, so that no part has texts made from the
same seed as another's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from nodes.context import Context
from nodes.record import Record
from nodes.verdicts import is_better
from refloom.data.write import open_row_writer

ExportRow = dict[str, Any]
# An attempt that shares more of its words with the accepted response is no counterexample to it.
MAX_SIMILARITY = 0.95
MAX_SHARE = 1_000_000
# Values that stand for their type in a format's example.
TEXT = ""
TURNS = [{"role": TEXT, "content": TEXT}]


class Format(NamedTuple):
    """A function from a record to rows, and an example row, from which parquet types are taken."""

    rows: Callable[[Record], list[ExportRow]]
    example: ExportRow


def export_rows(
    read_records: Callable[[], Iterable[str]],
    path: Path,
    format_: str,
    *,
    parts: dict[str, float] | None = None,
    limit: int | None = None,
    random_seed: int = 0,
) -> dict[Path, int]:
    """Write the rows of a format; return the number of rows of each file. Blocks.

    Args:
        read_records: Called to read the records, as JSON lines; twice if there are several parts.
            Rows are written in the order of the records.
        path: A `.jsonl` or `.parquet` file; with `parts`, `FILE-PART` beside it for each part.
        format_: A name in `FORMATS`.
        parts: Shares by the name of a part, which sum to 1.
        limit: The highest number of rows.
        random_seed: Decides which seeds go into which part.

    Raises:
        OSError: A file cannot be written; existing files stay as they are.
    """
    paths = {name: path.with_stem(f"{path.stem}-{name}") for name in parts or {}} or {"": path}
    several = parts is not None and len(parts) > 1
    assigned: dict[int, str] = {}
    if parts is not None and several:
        rows = islice(format_rows(read_records(), format_), limit)
        assigned = assign_parts((seed for seed, _ in rows), parts, random_seed)
    counts = dict.fromkeys(paths.values(), 0)
    with ExitStack() as stack:
        example = FORMATS[format_].example
        writers = {
            name: stack.enter_context(open_row_writer(part_path, example))
            for name, part_path in paths.items()
        }
        for seed, row in islice(format_rows(read_records(), format_), limit):
            name = assigned[seeded_hash(seed, random_seed)] if several else next(iter(paths))
            writers[name](row)
            counts[paths[name]] += 1
    return counts


def format_rows(records: Iterable[str], format_: str) -> Iterator[tuple[str, ExportRow]]:
    """The seed id and the row, for each row of an export, in the order of the records."""
    rows_of = FORMATS[format_].rows
    for line in records:
        record = json.loads(line)
        for row in rows_of(record):
            yield record["seed_id"], row


# Formats


def messages(record: Record) -> list[ExportRow]:
    """TRL's conversational shape for SFT, and that of OpenAI's fine-tuning.

    >>> messages({"instruction": "Why?", "response": "So."})[0]["messages"][1]
    {'role': 'assistant', 'content': 'So.'}
    """
    return [{"messages": _user_turn(record["instruction"]) + _assistant_turn(record["response"])}]


def prompt_completion(record: Record) -> list[ExportRow]:
    """TRL's prompt-completion shape, as plain text."""
    return [{"prompt": record["instruction"], "completion": record["response"]}]


def alpaca(record: Record) -> list[ExportRow]:
    """Stanford Alpaca's shape. `input` is empty, since the instruction contains it."""
    return [{"instruction": record["instruction"], "input": "", "output": record["response"]}]


def sharegpt(record: Record) -> list[ExportRow]:
    """ShareGPT's shape, as Axolotl and LLaMA-Factory read it."""
    turns = [("human", record["instruction"]), ("gpt", record["response"])]
    return [{"conversations": [{"from": who, "value": text} for who, text in turns]}]


def preference(record: Record) -> list[ExportRow]:
    """TRL's conversational preference shape: the accepted response over an earlier attempt.

    The rejected response is the attempt that failed the most `must` criteria that the accepted one
    passes; `decided_by` has these verdicts. Without such an attempt there is no row.
    """
    failed = failed_attempts(record)
    if not failed:
        return []
    worst, verdicts = max(failed, key=lambda pair: len(pair[1]))
    return [
        {
            "prompt": _user_turn(record["instruction"]),
            "chosen": _assistant_turn(record["response"]),
            "rejected": _assistant_turn(worst["response"]),
            "decided_by": verdicts,
        }
    ]


def kto(record: Record) -> list[ExportRow]:
    """TRL's unpaired preference shape: the accepted response, and attempts that failed before it.

    The attempts are those that `preference` chooses from.
    """
    prompt = _user_turn(record["instruction"])
    labels = [(record["response"], True)]
    labels += [(attempt["response"], False) for attempt, _ in failed_attempts(record)]
    return [
        {"prompt": prompt, "completion": _assistant_turn(text), "label": label}
        for text, label in labels
    ]


def trajectory(record: Record) -> list[ExportRow]:
    """Every attempt with its verdicts and the refinements made from it, to train critics.

    There is a row for each refinement, and one with an empty `refinement` if there is none.
    """
    # Earlier attempts were at the instruction before a person edited it.
    attempts = record["attempts"][-1 if "instruction_before" in record else 0 :]
    criteria = [{key: c[key] for key in _CRITERION_TYPES} for c in record["criteria"]]
    refined = [best_attempt(record, i) for i in range(1, len(attempts))]
    rows = []
    for index, attempt in enumerate(attempts):
        refinements = [
            attempts[i]["response"] for i, base in enumerate(refined, 1) if base == index
        ]
        rows += [
            {
                "instruction": record["instruction"],
                "criteria": criteria,
                "draft": attempt["response"],
                "verdicts": [verdict_fields(v) for v in attempt["verdicts"]],
                "refinement": refinement,
            }
            for refinement in refinements or [""]
        ]
    return rows


def refed(record: Record) -> list[ExportRow]:
    """The shape of the data set published with the paper, for records of `--preset refed`.

    `response` is the draft. Other records have no analysis, so they have no row.
    """
    if "improved_response" not in record or not record["attempts"]:
        return []
    fields = ("analysis", "implementation_strategy", "improved_response")
    draft = {"instruction": record["instruction"], "response": record["attempts"][0]["response"]}
    return [draft | {key: record[key] for key in fields}]


def _user_turn(text: str) -> list[ExportRow]:
    return [{"role": "user", "content": text}]


def _assistant_turn(text: str) -> list[ExportRow]:
    return [{"role": "assistant", "content": text}]


_VERDICT_TYPES = {"criterion_id": TEXT, "verdict": TEXT, "reason": TEXT, "evidence": TEXT}
_CRITERION_TYPES = {"id": TEXT, "text": TEXT, "must": True, "judged_by": TEXT}

# To add a format: write a function from a record to rows and name it here.
FORMATS: dict[str, Format] = {
    "messages": Format(messages, {"messages": TURNS}),
    "prompt_completion": Format(prompt_completion, {"prompt": TEXT, "completion": TEXT}),
    "alpaca": Format(alpaca, {"instruction": TEXT, "input": TEXT, "output": TEXT}),
    "sharegpt": Format(sharegpt, {"conversations": [{"from": TEXT, "value": TEXT}]}),
    "preference": Format(
        preference,
        {
            "prompt": TURNS,
            "chosen": TURNS,
            "rejected": TURNS,
            "decided_by": [{**_VERDICT_TYPES, "criterion": TEXT}],
        },
    ),
    "kto": Format(kto, {"prompt": TURNS, "completion": TURNS, "label": True}),
    "refed": Format(
        refed,
        {
            "instruction": TEXT,
            "response": TEXT,
            "analysis": {
                "original_strengths": [TEXT],
                "improvement_opportunities": [TEXT],
                "relevant_feedback": [TEXT],
            },
            "implementation_strategy": {"planned_changes": [TEXT], "rationale": TEXT},
            "improved_response": TEXT,
        },
    ),
    "trajectory": Format(
        trajectory,
        {
            "instruction": TEXT,
            "criteria": [_CRITERION_TYPES],
            "draft": TEXT,
            "verdicts": [_VERDICT_TYPES],
            "refinement": TEXT,
        },
    ),
}


# Attempts


def failed_attempts(record: Record) -> list[tuple[ExportRow, list[ExportRow]]]:
    """Attempts before the accepted one that failed a `must` it passes, with those verdicts.

    Empty attempts and those that hardly differ from the accepted response are left out.
    """
    from rapidfuzz.distance import Indel

    if "instruction_before" in record:
        # They were attempts at another instruction.
        return []
    attempts = record["attempts"]
    same = [i for i, a in enumerate(attempts) if a["response"] == record["response"]]
    if not same:
        return []
    accepted = same[-1]
    accepted_words = record["response"].split()
    texts = {c["id"]: c["text"] for c in record["criteria"] if c["must"]}
    passed = {
        v["criterion_id"]
        for v in attempts[accepted]["verdicts"]
        if v["verdict"] == "pass" and v["criterion_id"] in texts
    }
    reviewer_verdict = _reviewer_verdict(record)
    failed = []
    for attempt in attempts[:accepted]:
        verdicts = [
            {**verdict_fields(v), "criterion": f"The response {texts[v['criterion_id']]}."}
            for v in attempt["verdicts"]
            if v["verdict"] == "fail" and v["criterion_id"] in passed
        ]
        if reviewer_verdict and attempt is attempts[accepted - 1]:
            verdicts.append(reviewer_verdict)
        words = attempt["response"].split()
        if (
            verdicts
            and words
            and Indel.normalized_similarity(words, accepted_words) <= MAX_SIMILARITY
        ):
            failed.append((attempt, verdicts))
    return failed


def _reviewer_verdict(record: Record) -> ExportRow | None:
    """A reviewer's edit as a failed verdict on the attempt before it; None without an edit."""
    review = record.get("review") or {}
    if review.get("decision") != "edit":
        return None
    return {
        "criterion_id": "reviewer",
        "verdict": "fail",
        "reason": review.get("reason") or "A reviewer edited it.",
        "evidence": "",
        "criterion": "The response is as a reviewer wants it.",
    }


def best_attempt(record: Record, index: int) -> int:
    """The index of the attempt that the one at `index` refines: the best before it."""
    attempts, criteria = record["attempts"], record["criteria"]
    judged = {c["id"] for c in criteria if c["judged_by"] == "judge"}
    scored = any(
        v["score"] is not None and v["criterion_id"] in judged
        for attempt in attempts
        for v in attempt["verdicts"]
    )
    context = Context(judge_method="logodds" if scored else "verdict")
    best = 0
    for i in range(1, index):
        if is_better(attempts[i], attempts[best], criteria, context):
            best = i
    return best


def verdict_fields(verdict: ExportRow) -> ExportRow:
    """A verdict without its score."""
    return {key: verdict[key] for key in _VERDICT_TYPES}


# Parts


def parse_shares(text: str) -> dict[str, float]:
    """Parse shares such as `train=0.95,validation=0.05` and scale them to sum to 1.

    Raises `ValueError`.

    >>> parse_shares("train=3,validation=1")
    {'train': 0.75, 'validation': 0.25}
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, equals, share = (piece.strip() for piece in part.partition("="))
        if not name.isidentifier() or not equals or name in shares:
            raise ValueError(f"{part.strip()!r} is not NAME=SHARE, each name once")
        try:
            shares[name] = float(share)
        except ValueError as error:
            raise ValueError(f"{share!r} is not a number") from error
        if not 0 < shares[name] <= MAX_SHARE:
            raise ValueError(f"the share of {name} must be above 0 and at most {MAX_SHARE}")
        if name == "all":
            raise ValueError("'all' is the name the datasets library has for all parts together")
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def assign_parts(seeds: Iterable[str], parts: dict[str, float], random_seed: int) -> dict[int, str]:
    """The part of each seed, by its `seeded_hash`.

    Seeds are ordered by that hash and parts are cut from the order, so that a part's share of the
    rows is right to within the rows of one seed. No part is empty unless there are fewer seeds than
    parts.

    Args:
        seeds: The seed of every row, in any order.
        parts: Shares by the name of a part, which sum to 1.
        random_seed: Goes into the hash of a seed.
    """
    counts = Counter(seeded_hash(seed, random_seed) for seed in seeds)
    total = sum(counts.values())
    ordered = iter(sorted(counts))
    assigned: dict[int, str] = {}
    # The smallest part first, since rounding could leave it empty.
    names = sorted(parts, key=lambda name: parts[name])
    for number, name in enumerate(names):
        later = len(names) - 1 - number
        wanted, rows = parts[name] * total, 0
        while len(counts) - len(assigned) > later and (
            later == 0 or rows == 0 or rows + 0.5 <= wanted
        ):
            seed = next(ordered)
            assigned[seed] = name
            rows += counts[seed]
    return assigned


def seeded_hash(text: str, random_seed: int) -> int:
    """A 63-bit hash of a text with the random seed."""
    digest = sha256(f"{random_seed}\x1f{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
