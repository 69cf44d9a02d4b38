"""`refloom score`: the rows of a file scored in their order, resumable and within limits.

Every answer of the judge is in a journal beside the output before anything uses it. The output
appears when all rows are scored: a run of the command that was ended is gone on with by the same.
"""

from __future__ import annotations

import asyncio
import glob
import json
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from memory.embed import Embed
from memory.references import instruction_key
from nodes.judge import FAULTS_OF_CONTENT
from nodes.llm import CallFailed, Complete
from nodes.state import Criterion
from refloom.data.responses import ResponseRow, Responses
from refloom.data.rubrics import SUBJECT
from refloom.data.write import write_atomically
from refloom.errors import InputError, TooManyFailed
from refloom.evaluation.row_criteria import (
    CriteriaFrom,
    CriteriaSource,
    RunCriteria,
    check_outside_run,
    open_criteria,
)
from refloom.evaluation.score import ScoredResponse, Scorer, open_scorer
from refloom.evaluation.stats import Interval, mean_interval, proportion
from refloom.runs.client import CachedClient, Interrupted
from refloom.settings import Settings

# What a scored row has beside its own fields.
SCORE_FIELDS = ("score", "verdicts", "unknown", "judge_model", "criteria_from")
JOURNAL_SUFFIX = ".journal.sqlite"
# Under this name the journal tells what criteria say, and which columns the rows have.
SCORED_META = "scored"
# Rows read together, and rows that wait for their turn to be written.
READ_BATCH = 64
MIN_WINDOW = 64
# Fewer rows say nothing about how many calls fail.
MIN_ROWS_FOR_FAILURE_RATE = 20
# Criteria whose figures are counted apart, and those that a terminal shows.
MAX_CRITERIA = 10_000
MAX_CRITERIA_LISTED = 12


def journal_of(out: Path) -> Path:
    """The journal beside a file of scores."""
    return out.with_name(out.name + JOURNAL_SUFFIX)


class CriterionFigures(NamedTuple):
    """How a criterion was judged: in how many rows it passed, of those where that is known."""

    id: str
    text: str
    passed: Interval
    unknown: int


def criterion_figures(
    texts: Mapping[str, str], outcomes: Counter[tuple[str, str]]
) -> list[CriterionFigures]:
    """The figures of each criterion, the commonest first.

    `texts` is what they say by id, `outcomes` counts their verdicts by id and outcome.
    """
    figures = []
    for id_, text in texts.items():
        passed, failed = outcomes[id_, "pass"], outcomes[id_, "fail"]
        share = proportion(passed, passed + failed)
        figures.append(CriterionFigures(id_, text, share, outcomes[id_, "unknown"]))
    return sorted(figures, key=lambda one: -(one.passed.n + one.unknown))


@dataclass
class ScoreSummary:
    """What came of scoring a file, so far.

    `values` are the scores, `groups` the instructions they are of, in the order of the rows;
    `unmatched` counts rows without criteria, `failed` those whose calls failed, not for what is in
    them, `last_failure` the last one's kind and message, `calls` those of this session. `status` is
    "done" or "interrupted".
    """

    rows: int = 0
    values: array[float] = field(default_factory=lambda: array("d"))
    groups: array[int] = field(default_factory=lambda: array("q"))
    without_score: int = 0
    criteria_from: Counter[CriteriaFrom | None] = field(default_factory=Counter)
    verdicts: int = 0
    unknown: int = 0
    failed: int = 0
    last_failure: str | None = None
    overwritten: Counter[str] = field(default_factory=Counter)
    unlearned: int = 0
    texts: dict[str, str] = field(default_factory=dict)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    calls: Mapping[str, int] = field(default_factory=dict)
    cost_usd: float | None = None
    status: str = "done"

    def add(self, row: ResponseRow, source: CriteriaFrom | None, scored: ScoredResponse) -> None:
        """Count a row."""
        self.rows += 1
        self.criteria_from[source] += 1
        self.unknown += scored.unknown
        self.verdicts += len(scored.verdicts)
        if scored.fault is not None and is_failure(scored.fault):
            self.failed += 1
            self.last_failure = f"{scored.fault.kind}: {scored.fault.message}"
        self.overwritten.update(name for name in SCORE_FIELDS if name in row.fields)
        for one in scored.verdicts:
            if one["criterion_id"] in self.texts:
                self.outcomes[one["criterion_id"], one["verdict"]] += 1
        if scored.value is None:
            self.without_score += 1
        else:
            self.values.append(scored.value)
            self.groups.append(instruction_key(row.key))

    def note_criteria(self, criteria: Sequence[Criterion]) -> None:
        """Remember what criteria say; of very many only the first."""
        for criterion in criteria:
            if len(self.texts) < MAX_CRITERIA:
                self.texts.setdefault(criterion["id"], criterion["text"])

    def mean(self, random_seed: int = 0) -> Interval:
        """The mean score, with its interval over instructions."""
        return mean_interval(self.values, self.groups, random_seed)


def is_failure(fault: CallFailed | None) -> bool:
    """Whether a call failed for another reason than what it asked about."""
    return fault is not None and fault.kind not in FAULTS_OF_CONTENT


def check_files(source: str, criteria: Path, out: Path) -> None:
    """Raise `InputError` for an output that cannot be written or would replace an input."""
    if out.suffix.lower() != ".jsonl":
        raise InputError(f"{out}: scored rows are written as lines of JSON; name it .jsonl")
    if out.is_dir():
        raise InputError(f"{out}: is a directory; --out names a file")
    if not out.parent.is_dir():
        raise InputError(f"{out}: cannot be written: there is no directory {out.parent}")
    for path, what in ((Path(source), "the rows"), (criteria, "the criteria")):
        if path.exists() and path.resolve() == out.resolve():
            raise InputError(f"{out}: is the file of {what}; give another --out")
    check_outside_run(out, criteria)


@dataclass
class ScoreRun:
    """One session of scoring a file into `out`.

    `on_begin` is called with the rows once they are read through and before any call, `on_progress`
    with the rows done and their total, `on_warning` with each trouble once. `complete` and `embed`
    replace the endpoint and the run's embedding model.
    """

    rows: Responses
    criteria: Path
    out: Path
    settings: Settings
    on_begin: Callable[[], None] = lambda: None
    on_progress: Callable[[int, int], None] = lambda done, total: None
    on_warning: Callable[[str], None] = lambda text: None
    complete: Complete | None = None
    embed: Embed | None = None
    summary: ScoreSummary = field(default_factory=ScoreSummary)
    _client: CachedClient | None = None
    _stopping: bool = False
    _warnings: set[str] = field(default_factory=set)

    def stop(self) -> None:
        """Begin no further call; what is in flight is finished and recorded."""
        self._stopping = True
        if self._client is not None:
            self._client.stop()

    async def run(self) -> ScoreSummary:
        """Score all rows and write the output.

        Raises `InputError` or `JournalError` before any call; `ProviderStopped`, `BudgetSpent` or
        `TooManyFailed` when the calls were stopped. Every paid call is in the journal by then.
        """
        check_files(self.rows.name, self.criteria, self.out)
        source = await asyncio.to_thread(
            open_criteria, self.criteria, self.settings, embed=self.embed, on_warning=self._warn
        )
        try:
            report = await asyncio.to_thread(self.rows.scan)
            self.on_begin()
            await self._score(source, report.taken)
        finally:
            await asyncio.to_thread(source.close)
        return self.summary

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.add(text)
            self.on_warning(text)

    async def _score(self, source: CriteriaSource, total: int) -> None:
        async with open_scorer(
            journal_of(self.out),
            self.settings,
            complete=self.complete,
            on_warning=self._warn,
            on_learned=lambda model, news: self._warn(f"the endpoint of {model} {news}"),
        ) as session:
            client = self._client = session.client
            if self._stopping:
                client.stop()
            for path in self.out.parent.glob(f"{glob.escape(self.out.name)}.*.new"):
                path.unlink(missing_ok=True)
            try:
                with write_atomically(self.out) as temporary:
                    await self._write_rows(temporary, source, session.scorer, client, total)
                    # For whoever reads the output: its rows name criteria by their ids.
                    about = {"map": dict(self.settings.map), "criteria": self.summary.texts}
                    await session.journal.put_meta(SCORED_META, about)
            except Interrupted:
                if client.stopped_by is not None:
                    raise client.stopped_by from None
                self.summary.status = "interrupted"
            finally:
                self.summary.calls = dict(client.counts)
                self.summary.cost_usd = client.budget.spent_cost
                if isinstance(source, RunCriteria):
                    self.summary.unlearned = source.unlearned

    async def _write_rows(
        self,
        path: Path,
        source: CriteriaSource,
        scorer: Scorer,
        client: CachedClient,
        total: int,
    ) -> None:
        """Score a window of rows at once, and write them in the order of the file."""
        summary = self.summary
        window = max(MIN_WINDOW, 4 * self.settings.max_in_flight)
        pending: deque[asyncio.Task[str]] = deque()
        rows = iter(self.rows)
        number = 0

        async def score(row: ResponseRow, place: int) -> str:
            scored_by = await source.find(row)
            summary.note_criteria(scored_by.criteria)
            scored = await scorer.score(
                row.instruction,
                row.response,
                scored_by.criteria,
                history=row.history or scored_by.history,
                references=scored_by.references,
                trusted=scored_by.trusted,
                place=(place,),
            )
            summary.add(row, scored_by.criteria_from, scored)
            self._check_failures(client, scored.fault)
            self.on_progress(summary.rows, total)
            return line_of(row.fields, scored, self.settings.judge_names, scored_by.criteria_from)

        try:
            with path.open("w", encoding="utf-8", newline="\n") as file:
                while batch := await asyncio.to_thread(list, islice(rows, READ_BATCH)):
                    for row in batch:
                        if client.stopping:
                            raise Interrupted
                        if len(pending) >= window:
                            file.write(await pending.popleft() + "\n")
                        pending.append(asyncio.ensure_future(score(row, number)))
                        number += 1
                while pending:
                    file.write(await pending.popleft() + "\n")
        except Interrupted:
            # Calls in flight are paid for: they end, and are recorded.
            await asyncio.gather(*pending, return_exceptions=True)
            raise
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def _check_failures(self, client: CachedClient, fault: CallFailed | None) -> None:
        summary, allowed = self.summary, self.settings.max_failure_rate
        enough = summary.rows >= MIN_ROWS_FOR_FAILURE_RATE
        known = summary.rows + self.settings.max_in_flight
        if is_failure(fault) and enough and summary.failed > allowed * known:
            assert fault is not None
            client.stop(
                TooManyFailed(
                    f"the calls of {summary.failed} of {summary.rows} rows failed, more than "
                    f"--max-failure-rate {allowed} allows (the last: {fault.message}). Fix the "
                    "cause and give the same command again, or raise --max-failure-rate"
                )
            )


def line_of(
    fields: Mapping[str, Any],
    scored: ScoredResponse,
    judge_model: str,
    criteria_from: CriteriaFrom | None,
) -> str:
    """A scored row as a line of JSON: its own fields, then those of `SCORE_FIELDS`.

    A field of one of these names is replaced. What JSON has no word for is written as text, and
    what is no number as null.
    """
    own = {name: value for name, value in fields.items() if name not in SCORE_FIELDS}
    row = own | {
        "score": None if scored.value is None else round(scored.value, 6),
        "verdicts": scored.verdicts,
        "unknown": scored.unknown,
        "judge_model": judge_model,
        "criteria_from": criteria_from,
    }
    try:
        line = json.dumps(row, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        line = json.dumps(_without_nan(row), ensure_ascii=False, default=str)
    # A lone surrogate cannot be written but as an escape.
    return line if line.isascii() or _is_valid(line) else json.dumps(json.loads(line))


def _is_valid(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Mapping):
        return {name: _without_nan(part) for name, part in value.items()}
    return [_without_nan(part) for part in value] if isinstance(value, list | tuple) else value


def format_summary(summary: ScoreSummary, random_seed: int) -> Iterator[str]:
    """What came of it, as lines for a terminal."""
    mean = summary.mean(random_seed)
    if mean.value is None:
        yield f"scored {summary.rows:,} rows: none has a score"
    else:
        yield (
            f"scored {summary.rows:,} rows: mean {mean.value:.3f} "
            f"(95 % interval {mean.low:.3f} to {mean.high:.3f}, n = {mean.n:,})"
        )
    sources = summary.criteria_from
    counts = (
        (summary.without_score, "without a score"),
        (sources[None], "of these without criteria: no rubric has their instruction"),
        (sources["retrieved"], "by criteria of retrieved references"),
        (summary.failed, "with calls that failed: the same command asks again"),
    )
    # Criteria of several references that say the same are one for a reader.
    outcomes = Counter[tuple[str, str]]()
    for (id_, outcome), count in summary.outcomes.items():
        outcomes[summary.texts[id_], outcome] += count
    yield from (f"  {count:,} {what}" for count, what in counts if count)
    if summary.last_failure is not None:
        yield f"  the last that failed: {' '.join(summary.last_failure.split())}"[:300]
    if summary.unlearned:
        yield (
            f"  of {summary.unlearned} retrieved references nothing was learned: only the "
            "built-in criterion holds"
        )
    calls = summary.calls
    cost = f" (${summary.cost_usd:.4f} in all)" if summary.cost_usd else ""
    yield (
        f"  {summary.unknown:,} of {summary.verdicts:,} verdicts unknown; "
        f"{calls.get('paid', 0):,} calls paid, {calls.get('reused', 0):,} reused{cost}"
    )
    texts = {text: text for text in summary.texts.values()}
    known = [one for one in criterion_figures(texts, outcomes) if one.passed.n]
    for one in known[:MAX_CRITERIA_LISTED]:
        share = one.passed
        yield (
            f"  {share.value or 0:>4.0%} ({share.low or 0:.0%} to {share.high or 0:.0%}) of "
            f"{share.n:,} pass: {SUBJECT}{one.text}"[:160]
        )
    if len(known) > MAX_CRITERIA_LISTED:
        yield f"  and {len(known) - MAX_CRITERIA_LISTED:,} more criteria"


def summary_to_dict(summary: ScoreSummary, random_seed: int) -> dict[str, Any]:
    """What came of it, as plain JSON values."""
    return {
        "status": summary.status,
        "rows": summary.rows,
        "score": summary.mean(random_seed)._asdict(),
        "without_score": summary.without_score,
        "criteria_from": {
            "instruction": summary.criteria_from["instruction"],
            "retrieved": summary.criteria_from["retrieved"],
            "none": summary.criteria_from[None],
        },
        "verdicts": summary.verdicts,
        "unknown": summary.unknown,
        "failed": summary.failed,
        "last_failure": summary.last_failure,
        "calls": {name: summary.calls.get(name, 0) for name in ("paid", "reused", "retried")},
        "cost_usd": summary.cost_usd,
        "criteria": [
            {"id": one.id, "text": one.text, **one.passed._asdict(), "unknown": one.unknown}
            for one in criterion_figures(summary.texts, summary.outcomes)
        ],
    }
