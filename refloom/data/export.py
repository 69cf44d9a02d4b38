"""Accepted rows as training data: one pure function a format, from a record to its rows."""

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
from refloom.data.write import writing

ExportRow = dict[str, Any]
# More similar responses (share of equal words) teach no difference.
MAX_SIMILARITY = 0.95


def plain_verdict(verdict: ExportRow) -> ExportRow:
    """A verdict without its score."""
    return {key: verdict[key] for key in ("criterion_id", "verdict", "reason", "evidence")}


def failed_attempts(record: Record) -> list[tuple[ExportRow, list[ExportRow]]]:
    """Attempts before the accepted one that failed a `must` it passes, with those verdicts."""
    attempts = record["attempts"]
    places = [i for i, a in enumerate(attempts) if a["response"] == record["response"]]
    if not places:
        return []
    texts = {c["id"]: c["text"] for c in record["criteria"] if c["must"]}
    edited = _edited_attempt(record)
    passed = {
        v["criterion_id"] for v in attempts[places[-1]]["verdicts"] if v["verdict"] == "pass"
    } & set(texts)
    failed = []
    for attempt in attempts[: places[-1]]:
        decided = [
            {**plain_verdict(v), "criterion": f"The response {texts[v['criterion_id']]}."}
            for v in attempt["verdicts"]
            if v["verdict"] == "fail" and v["criterion_id"] in passed
        ]
        if edited and attempt is attempts[places[-1] - 1]:
            decided.append(edited)
        if decided and attempt["response"].strip() and _differs(attempt["response"], record):
            failed.append((attempt, decided))
    return failed


def _edited_attempt(record: Record) -> ExportRow | None:
    """A reviewer's edit as a failed verdict on the text before it; None without an edit."""
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


def _differs(text: str, record: Record) -> bool:
    from rapidfuzz.distance import Indel

    one, other = text.split(), record["response"].split()
    return Indel.normalized_similarity(one, other) <= MAX_SIMILARITY


def best_attempt(record: Record, place: int) -> int:
    """The index of the attempt that the one at `place` refines: the best before it."""
    attempts, criteria = record["attempts"], record["criteria"]
    judged = {c["id"] for c in criteria if c["judged_by"] == "judge"}
    scored = any(
        v["score"] is not None and v["criterion_id"] in judged
        for attempt in attempts
        for v in attempt["verdicts"]
    )
    context = Context(judge_method="logodds" if scored else "verdict")
    best = 0
    for i in range(1, place):
        if is_better(attempts[i], attempts[best], criteria, context):
            best = i
    return best


MAX_SHARE = 1_000_000


def parse_shares(text: str) -> dict[str, float]:
    """Parse shares such as `train=0.95,validation=0.05`, which are normalised. Raises `ValueError`.

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
    """The part of each seed, by `hash_key`; `seeds` has the seed of every row, in any order.

    Seeds are ordered by a hash with the random seed, and parts are cut from that order: shares of
    rows are right to within one seed's rows. No part stays empty while there are seeds.
    """
    counts = Counter(hash_key(seed, random_seed) for seed in seeds)
    total = sum(counts.values())
    order = sorted(counts)
    names = list(parts)
    assigned: dict[int, str] = {}
    # The smallest first, since rounding could leave it empty.
    places = iter(order)
    left = len(order)
    names.sort(key=lambda name: parts[name])
    for number, name in enumerate(names):
        last = number == len(names) - 1
        wanted, got = parts[name] * total, 0
        later = len(names) - 1 - number
        while left > later and (last or got == 0 or got + 0.5 <= wanted):
            seed = next(places)
            assigned[seed] = name
            got += counts[seed]
            left -= 1
    return assigned


def hash_key(seed: str, random_seed: int) -> int:
    """A 63-bit hash of a seed with the random seed."""
    digest = sha256(f"{random_seed}\x1f{seed}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


TEXT = ""
TURNS = [{"role": TEXT, "content": TEXT}]


class Format(NamedTuple):
    """A function from a record to rows, and an example of a row's types."""

    rows: Callable[[Record], list[ExportRow]]
    types: ExportRow


def messages(record: Record) -> list[ExportRow]:
    """TRL's conversational shape for SFT, and that of OpenAI's fine-tuning.

    >>> messages({"instruction": "Why?", "response": "So."})[0]["messages"][1]
    {'role': 'assistant', 'content': 'So.'}
    """
    return [
        {
            "messages": [
                *_prompt_messages("user", record["instruction"]),
                *_answer_messages(record["response"]),
            ]
        }
    ]


def prompt_completion(record: Record) -> list[ExportRow]:
    """Plain text in and out, as TRL's prompt-completion shape has it."""
    return [{"prompt": record["instruction"], "completion": record["response"]}]


def alpaca(record: Record) -> list[ExportRow]:
    """Stanford Alpaca's shape; the input is part of the instruction."""
    return [{"instruction": record["instruction"], "input": "", "output": record["response"]}]


def sharegpt(record: Record) -> list[ExportRow]:
    """ShareGPT's shape, as Axolotl and LLaMA-Factory read it."""
    turns = [("human", record["instruction"]), ("gpt", record["response"])]
    return [{"conversations": [{"from": who, "value": text} for who, text in turns]}]


def preference(record: Record) -> list[ExportRow]:
    """TRL's conversational preference shape: the accepted response over an earlier attempt.

    The attempt taken failed most of the `must` criteria that the accepted one passes; these
    verdicts are in `decided_by`. No row if there is no such attempt, or if the texts hardly differ.
    """
    failed = failed_attempts(record)
    if not failed:
        return []
    worst, decided = max(failed, key=lambda pair: len(pair[1]))
    return [
        {
            "prompt": _prompt_messages("user", record["instruction"]),
            "chosen": _answer_messages(record["response"]),
            "rejected": _answer_messages(worst["response"]),
            "decided_by": decided,
        }
    ]


def kto(record: Record) -> list[ExportRow]:
    """TRL's unpaired preference shape: the accepted response, and attempts that failed before it.

    The attempts are those `preference` would take, each once.
    """
    prompt = _prompt_messages("user", record["instruction"])
    labelled = [(record["response"], True)]
    labelled += [(attempt["response"], False) for attempt, _ in failed_attempts(record)]
    return [
        {"prompt": prompt, "completion": _answer_messages(r), "label": good} for r, good in labelled
    ]


def trajectory(record: Record) -> list[ExportRow]:
    """Every attempt with its verdicts and the refinement made from it, to train critics on.

    A refinement starts from the best attempt so far; `refinement` is empty if there is none.
    """
    attempts, criteria = record["attempts"], record["criteria"]
    fields = ("id", "text", "must", "judged_by")
    criterion_rows = [{key: c[key] for key in fields} for c in criteria]
    rows = []
    for place, attempt in enumerate(attempts):
        refinements = [
            a["response"] for i, a in enumerate(attempts) if i and best_attempt(record, i) == place
        ]
        rows += [
            {
                "instruction": record["instruction"],
                "criteria": criterion_rows,
                "draft": attempt["response"],
                "verdicts": [plain_verdict(v) for v in attempt["verdicts"]],
                "refinement": refinement,
            }
            for refinement in refinements or [""]
        ]
    return rows


def refed(record: Record) -> list[ExportRow]:
    """The shape of the paper's own data, for records made with `--preset refed`.

    `response` is the draft. Other records have no analysis and give no row.
    """
    if "improved_response" not in record or not record["attempts"]:
        return []
    fields = ("analysis", "implementation_strategy", "improved_response")
    draft = {"instruction": record["instruction"], "response": record["attempts"][0]["response"]}
    return [draft | {key: record[key] for key in fields}]


def _prompt_messages(role: str, text: str) -> list[ExportRow]:
    return [{"role": role, "content": text}]


def _answer_messages(text: str) -> list[ExportRow]:
    return _prompt_messages("assistant", text)


_VERDICT = {"criterion_id": TEXT, "verdict": TEXT, "reason": TEXT, "evidence": TEXT}
_CRITERION = {"id": TEXT, "text": TEXT, "must": True, "judged_by": TEXT}

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
            "decided_by": [{**_VERDICT, "criterion": TEXT}],
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
            "criteria": [_CRITERION],
            "draft": TEXT,
            "verdicts": [_VERDICT],
            "refinement": TEXT,
        },
    ),
}


def format_rows(records: Iterable[str], format_: str) -> Iterator[tuple[str, ExportRow]]:
    """The rows of an export with their seed ids, in the order of the records."""
    make = FORMATS[format_].rows
    for line in records:
        record = json.loads(line)
        for row in make(record):
            yield record["seed_id"], row


def export(
    records: Callable[[], Iterable[str]],
    path: Path,
    format_: str,
    *,
    parts: dict[str, float] | None = None,
    most: int | None = None,
    random_seed: int = 0,
) -> dict[Path, int]:
    """Write the rows of a format, and say how many are in which file. Blocks.

    Args:
        records: Gives the records, each time anew, in the order the rows will have.
        path: A `.jsonl` or `.parquet` file; with `parts`, `FILE-PART` beside it for each of them.
        format_: A name in `FORMATS`.
        parts: Shares by name; the rows of one seed all go into one part.
        most: Write the first so many rows.
        random_seed: Decides which seeds go into which part.

    Raises:
        OSError: A file cannot be written; those that were there stay as they are.
    """
    paths = {name: path.with_stem(f"{path.stem}-{name}") for name in parts or {}} or {"": path}
    several = parts is not None and len(parts) > 1
    seeds = (seed for seed, _ in islice(format_rows(records(), format_), most)) if several else ()
    assigned = assign_parts(seeds, parts or {}, random_seed)
    written = dict.fromkeys(paths.values(), 0)
    with ExitStack() as stack:
        types = FORMATS[format_].types
        put = {name: stack.enter_context(writing(to, types)) for name, to in paths.items()}
        for seed, row in islice(format_rows(records(), format_), most):
            name = assigned[hash_key(seed, random_seed)] if several else next(iter(paths))
            put[name](row)
            written[paths[name]] += 1
    return written
