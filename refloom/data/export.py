"""Accepted rows as training data, one format a function, from a record to its rows.

Rows of one seed stay in one part when an export is split, so that no part has texts made from the
same seed as another's.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from nodes.context import Context
from nodes.record import Record
from nodes.state import Criterion
from nodes.verdicts import is_better
from refloom.data.rubrics import (
    ITEM_KEYS,
    RubricCounts,
    RubricShape,
    has_standing_instruction,
    is_held_out,
    rubric_of,
    write_item,
)
from refloom.data.write import open_row_writer

ExportRow = dict[str, Any]
# An attempt that shares more of its words with the accepted response is no counterexample to it.
MAX_SIMILARITY = 0.95
MAX_SHARE = 1_000_000
# Values that stand for their type in a format's example.
TEXT = ""
TURNS = [{"role": TEXT, "content": TEXT}]
THINKING_TURNS = [{"role": TEXT, "content": TEXT, "reasoning_content": TEXT}]
# What would close the tag around thoughts.
_CLOSING_TAG = re.compile(r"<\s*/\s*think(?:ing)?\s*>", re.IGNORECASE)
# Formats whose responses may have their thoughts inside the text.
TAGGED_FORMATS = ("messages", "prompt_completion", "alpaca", "sharegpt")


class RubricSettings(NamedTuple):
    """How rubrics are exported: whose names they have, and what is known of the run's drafts.

    With `counts.share` above 0, that share of the criteria goes into a file of its own.
    """

    shape: RubricShape
    counts: RubricCounts


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
    think_tags: bool = False,
    rubric: RubricSettings | None = None,
) -> dict[Path, int]:
    """Write the rows of a format; return the number of rows of each file. Blocks.

    The rows of `rubric` are written twice if criteria are held out: to the files without them, and
    to `FILE-heldout` beside each with them alone.

    Args:
        read_records: Called to read the records, as JSON lines, once or more often. Rows are
            written in the order of the records.
        path: A `.jsonl` or `.parquet` file; with `parts`, `FILE-PART` beside it for each part.
        format_: A name in `FORMATS`.
        parts: Shares by the name of a part, which sum to 1.
        limit: The highest number of rows.
        random_seed: Decides which seeds go into which part.
        think_tags: Put thoughts into the text of the response, for a format of `TAGGED_FORMATS`.
        rubric: How the format `rubric` is written; records of all statuses are read for it.

    Raises:
        OSError: A file cannot be written; existing files stay as they are.
    """
    paths = {name: path.with_stem(f"{path.stem}-{name}") for name in parts or {}} or {"": path}
    formats = {"": FORMATS[format_]}
    if rubric is not None:
        formats = rubric_formats(rubric)
    elif (
        format_ == "messages"
        and path.suffix == ".parquet"
        and not think_tags
        and any(json.loads(line).get("reasoning") for line in read_records())
    ):
        # A column of thoughts only where there are any, as in lines of JSON.
        formats = {"": Format(messages, {"messages": THINKING_TURNS})}
    first, *_ = formats.values()
    assigned: dict[int, str] = {}
    several = parts is not None and len(parts) > 1
    if parts is not None and several:
        rows = islice(format_rows(read_records(), first, think_tags), limit)
        assigned = assign_parts((seed for seed, _ in rows), parts, random_seed)
    counts: dict[Path, int] = {}
    for suffix, format_of in formats.items():
        files = {
            name: part_path.with_stem(f"{part_path.stem}-{suffix}") if suffix else part_path
            for name, part_path in paths.items()
        }
        counts |= dict.fromkeys(files.values(), 0)
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(open_row_writer(file, format_of.example))
                for name, file in files.items()
            }
            for seed, row in islice(format_rows(read_records(), format_of, think_tags), limit):
                name = assigned[seeded_hash(seed, random_seed)] if several else next(iter(files))
                writers[name](row)
                counts[files[name]] += 1
    return counts


def format_rows(
    records: Iterable[str], format_: str | Format, think_tags: bool = False
) -> Iterator[tuple[str, ExportRow]]:
    """The seed id and the row, for each row of an export, in the order of the records."""
    if isinstance(format_, str):
        format_ = FORMATS[format_]
    for line in records:
        record = json.loads(line)
        if think_tags:
            record = tag_thoughts(record)
        for row in format_.rows(record):
            yield record["seed_id"], row


# Formats


def messages(record: Record) -> list[ExportRow]:
    """TRL's conversational shape for SFT, and that of OpenAI's fine-tuning.

    The thoughts behind a response stand in `reasoning_content`, where chat templates look for them;
    a response without thoughts has no such key.

    >>> messages({"instruction": "Why?", "response": "So."})[0]["messages"][1]
    {'role': 'assistant', 'content': 'So.'}
    """
    answer = _assistant_turn(record["response"])
    if record.get("reasoning"):
        answer[0]["reasoning_content"] = record["reasoning"]
    return [{"messages": _user_turn(record["instruction"]) + answer}]


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
    passes; `decided_by` has these verdicts. Without such an attempt there is no row. Neither side
    has thoughts, since attempts were not written by a model that thought over the instruction
    alone.
    """
    return list(map(_as_turns, preference_text(record)))


def preference_text(record: Record) -> list[ExportRow]:
    """The rows of `preference` as plain text: TRL's without a chat template, LLaMA-Factory's."""
    failed = failed_attempts(record)
    if not failed:
        return []
    worst, verdicts = max(failed, key=lambda pair: len(pair[1]))
    return [
        {
            "prompt": record["instruction"],
            "chosen": record["response"],
            "rejected": worst["response"],
            "decided_by": verdicts,
        }
    ]


def kto(record: Record) -> list[ExportRow]:
    """TRL's unpaired preference shape: the accepted response, and attempts that failed before it.

    The attempts are those that `preference` chooses from, and none has thoughts.
    """
    return list(map(_as_turns, kto_text(record)))


def kto_text(record: Record) -> list[ExportRow]:
    """The rows of `kto` as plain text: TRL's without a chat template, LLaMA-Factory's."""
    labels = [(record["response"], True)]
    labels += [(attempt["response"], False) for attempt, _ in failed_attempts(record)]
    return [
        {"prompt": record["instruction"], "completion": text, "label": label}
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
    if "instruction_before" in record:
        # What was analysed and improved answered that one.
        return []
    fields = ("analysis", "implementation_strategy", "improved_response")
    draft = {"instruction": record["instruction"], "response": record["attempts"][0]["response"]}
    return [draft | {key: record[key] for key in fields}]


def rubric_rar(
    record: Record,
    counts: RubricCounts | None = None,
    takes: Callable[[Criterion], bool] = lambda _: True,
) -> list[ExportRow]:
    """The rubric of an instruction, accepted or rejected, with the names of the RaR data sets.

    Args:
        record: One whose rubric has no item has no row.
        counts: What is known of the run's drafts.
        takes: Which items the row has; those that it leaves out stand in another file.
    """
    items = _rubric_items(record, "rar", counts, takes)
    if items is None:
        return []
    return [
        {
            "question": record["instruction"],
            "reference_answer": _reference_answer(record) or "",
            "question_source": record["seed_id"],
            "rubric": items,
            "rubric_list": [item["description"] for item in items],
            "rubric_count": len(items),
        }
    ]


def rubric_healthbench(
    record: Record,
    counts: RubricCounts | None = None,
    takes: Callable[[Criterion], bool] = lambda _: True,
) -> list[ExportRow]:
    """The row of `rubric_rar` with the names of HealthBench.

    The reference completions are the attempts that the ideal one was refined from.
    """
    items = _rubric_items(record, "healthbench", counts, takes)
    if items is None:
        return []
    answer, completions = _reference_answer(record), None
    if answer is not None:
        attempts, accepted = record["attempts"], accepted_attempt(record)
        before = next((i for i, attempt in enumerate(attempts) if attempt is accepted), 0)
        if "instruction_before" in record:
            # Those before it answered another instruction.
            before = 0
        completions = {
            "ideal_completion": answer,
            "ideal_completions_group": "refloom",
            "ideal_completions_ref_completions": [a["response"] for a in attempts[:before]],
        }
    return [
        {
            "example_tags": [f"status:{record['status']}", f"seed:{record['seed_id']}"],
            "ideal_completions_data": completions,
            "prompt": _user_turn(record["instruction"]),
            "prompt_id": record["id"],
            "rubrics": items,
        }
    ]


def rubric_formats(settings: RubricSettings) -> dict[str, Format]:
    """The format of the rubrics' file, by the suffix of its name, and of held-out criteria's."""
    shape, counts = settings
    rows = rubric_rar if shape == "rar" else rubric_healthbench
    example = RUBRIC_EXAMPLES[shape]
    if counts.fractional:
        column, (_, weight) = ("rubric" if shape == "rar" else "rubrics"), ITEM_KEYS[shape]
        example = example | {column: [{**example[column][0], weight: 1.0}]}
    if not counts.share:
        return {"": Format(partial(rows, counts=counts), example)}

    def is_out(criterion: Criterion) -> bool:
        return is_held_out(criterion, counts.share)

    return {
        "": Format(partial(rows, counts=counts, takes=lambda c: not is_out(c)), example),
        "heldout": Format(partial(rows, counts=counts, takes=is_out), example),
    }


def _rubric_items(
    record: Record,
    shape: RubricShape,
    counts: RubricCounts | None,
    takes: Callable[[Criterion], bool],
) -> list[ExportRow] | None:
    """The items of a record's rubric; None if it has no rubric or its instruction cannot stand."""
    criteria = rubric_of(record["criteria"])
    if not criteria or not has_standing_instruction(record):
        return None
    counts = counts or RubricCounts()
    accepted = accepted_attempt(record) if record["status"] == "accepted" else None
    verdicts = accepted["verdicts"] if accepted is not None else []
    outcomes = {verdict["criterion_id"]: verdict["verdict"] for verdict in verdicts}
    return [
        write_item(
            criterion,
            shape,
            pass_rate=counts.pass_rate(criterion["id"]),
            verdict=outcomes.get(criterion["id"], ""),
            fractional=counts.fractional,
        )
        for criterion in criteria
        if takes(criterion)
    ]


def _reference_answer(record: Record) -> str | None:
    return record["response"] if record["status"] == "accepted" else None


def has_taggable_thoughts(record: Record) -> bool:
    """Whether a record's thoughts can stand between tags: they do not hold the closing one."""
    return _CLOSING_TAG.search(record["reasoning"]) is None


def tag_thoughts(record: Record) -> Record:
    """The record with its thoughts in front of the response, between `<think>` and `</think>`.

    Without them where they hold the closing tag: whoever reads the text would take the rest of them
    for the answer.
    """
    if not record.get("reasoning"):
        return record
    if not has_taggable_thoughts(record):
        return {**record, "reasoning": None}
    response = f"<think>\n{record['reasoning']}\n</think>\n\n{record['response']}"
    return {**record, "response": response, "reasoning": None}


def _user_turn(text: str) -> list[ExportRow]:
    return [{"role": "user", "content": text}]


def _assistant_turn(text: str) -> list[ExportRow]:
    return [{"role": "assistant", "content": text}]


def _as_turns(row: ExportRow) -> ExportRow:
    """A row of plain text in TRL's conversational shape."""
    roles = {"prompt": "user", **dict.fromkeys(("completion", "chosen", "rejected"), "assistant")}
    return {
        key: [{"role": roles[key], "content": value}] if key in roles else value
        for key, value in row.items()
    }


_VERDICT_TYPES = {"criterion_id": TEXT, "verdict": TEXT, "reason": TEXT, "evidence": TEXT}
_PREFERENCE_TYPES = {
    **dict.fromkeys(("prompt", "chosen", "rejected"), TEXT),
    "decided_by": [{**_VERDICT_TYPES, "criterion": TEXT}],
}
_KTO_TYPES = {"prompt": TEXT, "completion": TEXT, "label": True}
_CRITERION_TYPES = {"id": TEXT, "text": TEXT, "must": True, "judged_by": TEXT}

_PROOF_TYPES = {
    "criterion_id": TEXT,
    "must": True,
    "quote": TEXT,
    "reference_id": TEXT,
    "judged_by": TEXT,
    "check": TEXT,
    "trial": {"references": 1, "own": 1, "spoiled": [{"kind": TEXT, "passed": 1}]},
    "pass_rate": 1.0,
    "verdict": TEXT,
}
RUBRIC_EXAMPLES: dict[RubricShape, ExportRow] = {
    "rar": {
        "question": TEXT,
        "reference_answer": TEXT,
        "question_source": TEXT,
        "rubric": [{"title": TEXT, "description": TEXT, "weight": 1, **_PROOF_TYPES}],
        "rubric_list": [TEXT],
        "rubric_count": 1,
    },
    "healthbench": {
        "example_tags": [TEXT],
        "ideal_completions_data": {
            "ideal_completion": TEXT,
            "ideal_completions_group": TEXT,
            "ideal_completions_ref_completions": [TEXT],
        },
        "prompt": TURNS,
        "prompt_id": TEXT,
        "rubrics": [{"criterion": TEXT, "points": 1, "tags": [TEXT], **_PROOF_TYPES}],
    },
}

# To add a format: write a function from a record to rows and name it here.
FORMATS: dict[str, Format] = {
    "messages": Format(messages, {"messages": TURNS}),
    "prompt_completion": Format(prompt_completion, {"prompt": TEXT, "completion": TEXT}),
    "alpaca": Format(alpaca, {"instruction": TEXT, "input": TEXT, "output": TEXT}),
    "sharegpt": Format(sharegpt, {"conversations": [{"from": TEXT, "value": TEXT}]}),
    "preference": Format(preference, _as_turns(_PREFERENCE_TYPES)),
    "preference_text": Format(preference_text, _PREFERENCE_TYPES),
    "kto": Format(kto, _as_turns(_KTO_TYPES)),
    "kto_text": Format(kto_text, _KTO_TYPES),
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
    "rubric": Format(rubric_rar, RUBRIC_EXAMPLES["rar"]),
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

    The bare answers of `--reasoning` count as attempts: one of them may be the accepted one, and
    all others may have failed. Empty attempts and those that hardly differ from the accepted
    response are left out.
    """
    from rapidfuzz.distance import Indel

    if "instruction_before" in record:
        # They were attempts at another instruction.
        return []
    accepted = accepted_attempt(record)
    if accepted is None:
        return []
    earlier: list[ExportRow] = []
    for others in (record["attempts"], record.get("answers") or []):
        before = next((i for i, other in enumerate(others) if other is accepted), len(others))
        earlier += others[:before]
    accepted_words = record["response"].split()
    texts = {c["id"]: c["text"] for c in record["criteria"] if c["must"]}
    passed = {
        v["criterion_id"]
        for v in accepted["verdicts"]
        if v["verdict"] == "pass" and v["criterion_id"] in texts
    }
    reviewer_verdict = _reviewer_verdict(record)
    # Where there are bare answers, it is not known which text the reviewer saw.
    reviewed = None if record.get("answers") else next(iter(earlier[-1:]), None)
    failed = []
    for attempt in earlier:
        verdicts = [
            {**verdict_fields(v), "criterion": f"The response {texts[v['criterion_id']]}."}
            for v in attempt["verdicts"]
            if v["verdict"] == "fail" and v["criterion_id"] in passed
        ]
        if reviewer_verdict and attempt is reviewed:
            verdicts.append(reviewer_verdict)
        words = attempt["response"].split()
        if (
            verdicts
            and words
            and Indel.normalized_similarity(words, accepted_words) <= MAX_SIMILARITY
        ):
            failed.append((attempt, verdicts))
    return failed


def accepted_attempt(record: Record) -> ExportRow | None:
    """The attempt, or the bare answer, that is the record's response; None if a person wrote it."""
    drafts = [*record["attempts"], *(record.get("answers") or [])]
    if not record.get("reasoning"):
        # A bare answer is taken with its thoughts or not at all.
        drafts = [*(record.get("answers") or []), *record["attempts"]]
    return next((d for d in reversed(drafts) if d["response"] == record["response"]), None)


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
