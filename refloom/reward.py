"""A reward for RL trainers: how far completions meet the criteria of their prompt, says a judge.

    from refloom.reward import rubric_reward

    with rubric_reward("rubric.jsonl", judge_model="m", journal="judge.sqlite") as reward:
        GRPOTrainer(model=.., reward_funcs=reward, train_dataset=..).train()

TRL calls an async reward on an event loop of its own, and another trainer, or a notebook, on
another one. Connections, limits and locks belong to one loop. So a reward has a thread with a loop
of its own, where all calls of the judge are made; it may be called from any loop, and from several
at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from typing_extensions import TypedDict, Unpack

from nodes.llm import ProviderStopped
from nodes.llm.thoughts import UnclearThoughts, find_answer, find_usual_marks
from nodes.own_criteria import MAX_WEIGHT
from refloom.data.rubrics import (
    Rubric,
    read_rubric,
    weight_of,
)
from refloom.data.shapes import (
    RUBRIC_COLUMNS,
    UnknownShape,
    history_turns,
    is_missing,
    read_text,
    valid_text,
)
from refloom.errors import InputError, TooManyFailed
from refloom.settings import Settings, load_settings

if TYPE_CHECKING:
    from memory.references import Turn
    from refloom.evaluation.row_criteria import CriteriaSource, RowCriteria
    from refloom.evaluation.score import Scorer
    from refloom.runs.client import CachedClient

_LOGGER = logging.getLogger("refloom.reward")
# A longer criterion of a row's own is no criterion.
MAX_CRITERION_CHARS = 2000
# Columns that say which criteria of a file hold for a row.
ROW_COLUMNS = frozenset({"id", "seed_id", "tags"})
# Why a completion has no reward; each is logged once.
WHY_NONE = {
    "no_rubric": "no rubric matches the prompt",
    "unreadable_rubric": "the rubric of the row cannot be read",
    "unreadable_text": "the prompt or the completion is no text and no messages of text",
    "unknown": "too few of the verdicts are known",
    "failed": "the judge's call failed",
}
# Fewer completions say nothing about how many calls fail.
MIN_COMPLETIONS_FOR_FAILURE_RATE = 20

T = TypeVar("T")


class JudgeOptions(TypedDict, total=False):
    """The settings of the judge, as the flags of `refloom score` have them; None is the default."""

    judge_model: str | None
    judge_method: str | None
    base_url: str | None
    judge_base_url: str | None
    criteria_per_call: int | None
    concurrency: int | None
    rpm: int | None
    tpm: int | None
    timeout: float | None
    max_cost: float | None
    max_tokens: int | None
    prices: str | Path | None
    reuse: str | Path | None
    memory: str | Path | None
    embedding_model: str | None
    run_code: bool | None


def rubric_reward(
    criteria: str | Path | None = None,
    *,
    journal: str | Path | None = None,
    name: str = "rubric_reward",
    **options: Unpack[JudgeOptions],
) -> RubricReward:
    """Make a reward function of criteria and a judge, for TRL's `GRPOTrainer` and the like.

    Args:
        criteria: A file of rubrics or of criteria, or a run's directory, as `refloom score` takes
            them; None if the data set has a column `rubric` or `rubrics`.
        journal: The file in which every answer of the judge is kept: the same response to the same
            prompt is paid for once, also in the next training. Without it there is a temporary one.
        name: What trainers log the reward under.
        options: The judge and its limits. Caps are for all processes of a training together.

    Raises:
        pydantic.ValidationError: A setting has a wrong value.
    """
    return RubricReward(criteria, journal=journal, name=name, **options)


class RubricReward:
    """An async reward function: a list with a number from 0 to 1, or None, for each completion.

    None is what is not known: no rubric matches, or too many verdicts are unknown. Trainers leave
    such completions out. `counts` says how many completions were `scored` and why others have no
    reward. As a context manager it is open from the beginning, so that a wrong key or file is told
    before the training begins; else it is opened by the first call. It is closed by `close`,
    `aclose`, or with the last reference to it.

    A copy, or what is made of it in another process, opens its own journal, and one file is open
    in one process: in a training by several (`RANK`, `WORLD_SIZE`) each but the first has a journal
    of its own beside the first one's, and a share of the caps.
    """

    def __init__(
        self,
        criteria: str | Path | None = None,
        *,
        journal: str | Path | None = None,
        name: str = "rubric_reward",
        **options: Unpack[JudgeOptions],
    ) -> None:
        """See `rubric_reward`."""
        unknown = sorted(set(options) - set(JudgeOptions.__annotations__))
        if unknown:
            raise TypeError(f"rubric_reward has no option {unknown[0]!r}")
        self.__name__ = name
        self.counts: Counter[str] = Counter()
        self._made_by = partial(RubricReward, criteria, journal=journal, name=name, **options)
        flags = {key: value for key, value in options.items() if value is not None}
        rank, processes = _place_among_processes()
        self._settings = _share(load_settings(flags), processes)
        self._criteria = None if criteria is None else Path(criteria)
        self._journal = None if journal is None else _journal_of(Path(journal), rank)
        self._judge: _JudgeThread | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # What is open stays with this one.
        return self._made_by, ()

    async def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """Score a batch at once, within the limits; see the class.

        Args:
            prompts: Texts or messages; the last message of the user is the question.
            completions: Texts or messages; the last message counts. Thoughts are cut off.
            columns: What else a trainer has: the columns of the data set, `log_metric`, ..

        Raises:
            ProviderStopped: The judge is down for good, or for too long; what was paid is kept.
            BudgetSpent: A cap leaves no room.
            TooManyFailed: More than half of the judge's calls fail.
            InputError: The criteria cannot be used, or there are none.
            ValueError: There are not as many completions, or values of a column, as prompts.
        """
        prompts, n = _to_plain(prompts), len(prompts)
        rubrics = _check_number("rubrics", self._column(columns, n), n)
        about = {name: _check_number(name, columns[name], n) for name in ROW_COLUMNS & {*columns}}
        fields = [{name: values[row] for name, values in about.items()} for row in range(n)]
        completions = _check_number("completions", completions, n)
        rows = list(map(_Row, prompts, completions, rubrics, fields))
        judge = await asyncio.to_thread(self._open_judge)
        results = await judge.do(partial(self._score_batch, rows=rows))
        self._report(results, columns.get("log_metric"))
        return [None if isinstance(result, str) else result for result in results]

    async def aclose(self) -> None:
        """Close the judge's connections and the journal; a later call opens them again."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """`aclose` for code that is not async. Blocks."""
        with self._lock:
            judge, self._judge = self._judge, None
        if judge is not None:
            judge.close()

    def __enter__(self) -> Self:
        self._open_judge()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._open_judge)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def _column(self, columns: Mapping[str, Any], rows: int) -> Sequence[Any]:
        """The rows' own rubrics; None for each if there are criteria for all."""
        if self._criteria is not None:
            return [None] * rows
        for key in sorted(RUBRIC_COLUMNS):
            if key in columns:
                column: Sequence[Any] = columns[key]
                return column
        raise InputError(
            "there are no criteria to reward by: give rubric_reward a rubric file, or the data set "
            "a column 'rubric' or 'rubrics'"
        )

    def _open_judge(self) -> _JudgeThread:
        """The open judge. Blocks while it is opened."""
        with self._lock:
            # The thread of a process does not live on in one that is forked from it.
            if self._judge is None or self._judge.pid != os.getpid():
                self._judge = _JudgeThread(self._settings, self._journal, self._criteria)
                weakref.finalize(self, self._judge.stop).atexit = False
            return self._judge

    async def _score_batch(self, judge: _Judge, rows: Sequence[_Row]) -> list[float | str]:
        """The reward of each row, or why it has none: a key of `WHY_NONE`."""
        from refloom.evaluation.judging import gather_bounded

        limit = 2 * self._settings.max_in_flight
        return await gather_bounded(rows, partial(self._score, judge), limit=limit)

    async def _score(self, judge: _Judge, row: _Row) -> float | str:
        from refloom.evaluation.score_file import is_failure

        try:
            asked = read_prompt(row.prompt)
            response = read_completion(row.completion, asked)
        except (ValueError, UnknownShape):
            return "unreadable_text"
        try:
            found = await _find_criteria(judge.source, row, asked, response)
        except (ValueError, UnknownShape):
            return "unreadable_rubric"
        if not found.criteria:
            return "no_rubric"
        scored = await judge.scorer.score(
            asked.instruction,
            response,
            found.criteria,
            history=asked.history or found.history,
            references=found.references,
            trusted=found.trusted,
        )
        if scored.value is None:
            return "failed" if is_failure(scored.fault) else "unknown"
        return scored.value

    def _report(self, results: Sequence[float | str], log_metric: Any) -> None:
        """Count what has no reward, and log each reason once."""
        why = Counter(result for result in results if isinstance(result, str))
        for reason in why.keys() - self.counts.keys():
            _LOGGER.warning(
                "%s: %d of %d completions have no reward, since %s; more of them are counted only",
                self.__name__,
                why[reason],
                len(results),
                WHY_NONE[reason],
            )
        self.counts.update(why)
        self.counts["scored"] += len(results) - why.total()
        if callable(log_metric) and results:
            log_metric(f"rewards/{self.__name__}/none", why.total() / len(results))
        failed, total = self.counts["failed"], self.counts.total()
        allowed = self._settings.max_failure_rate
        if why["failed"] and total >= MIN_COMPLETIONS_FOR_FAILURE_RATE and failed > allowed * total:
            raise TooManyFailed(
                f"the judge's calls failed for {failed} of {total} completions, more than "
                f"max_failure_rate {allowed} allows; `refloom doctor` says what the endpoint can do"
            )


def _check_number(name: str, values: Any, n: int) -> Sequence[Any]:
    """What a trainer has of each of `n` prompts, as plain Python. Raises `ValueError`."""
    values = _to_plain(values)
    if not isinstance(values, list) or len(values) != n:
        raise ValueError(f"there must be as many {name} as prompts, in a list")
    return values


def _to_plain(value: Any) -> Any:
    """A value with the arrays and numbers of NumPy in it, and the like, as plain Python."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _to_plain(part) for name, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(map(_to_plain, value))
    return value


class _Row(NamedTuple):
    """What a trainer has of a completion: its prompt, and what stands in columns."""

    prompt: Any
    completion: Any
    rubric: Any
    fields: Mapping[str, Any]


class _Judge(NamedTuple):
    """What an open judge has: where criteria come from, unless each row has its own."""

    scorer: Scorer
    client: CachedClient
    source: CriteriaSource | None


class Asked(NamedTuple):
    """A question, and the turns before it."""

    instruction: str
    history: Sequence[Turn]


def read_prompt(prompt: Any) -> Asked:
    """The question of a prompt: a text, or the last message of the user.

    Raises `ValueError` if there is none.

    >>> read_prompt([{"role": "user", "content": "Why?"}]).instruction
    'Why?'
    """
    if isinstance(prompt, str):
        return Asked(valid_text(prompt), ())
    turns = history_turns(list(prompt) if isinstance(prompt, Sequence) else None) or []
    last = max((n for n, turn in enumerate(turns) if turn["role"] == "user"), default=None)
    if last is None:
        raise ValueError("has no message of the user")
    return Asked(valid_text(turns[last]["content"]), turns[:last])


def read_completion(completion: Any, asked: Asked) -> str:
    """The text of a completion without its thoughts; nothing if these are not at an end.

    Raises `ValueError` for what holds no text.

    >>> read_completion([{"role": "assistant", "content": "<think>Hm.</think>So."}], Asked("", ()))
    'So.'
    """
    text = completion
    if isinstance(completion, Sequence) and not isinstance(completion, str):
        last = completion[-1] if completion else {}
        text = read_text(last, "content") or "" if isinstance(last, Mapping) else None
    if not isinstance(text, str):
        raise ValueError("is no text and no messages")
    try:
        start = find_answer(text, find_usual_marks(asked.instruction))
    except UnclearThoughts:
        return ""
    return valid_text(text[start:].lstrip() if start else text)


def read_column(instruction: str, value: Any) -> Rubric | None:
    """The rubric in a row's own column; None if there is none. Raises `ValueError`.

    A stranger may have written it: it is short, and its numbers are numbers.
    """
    if is_missing(value):
        return None
    rubric = read_rubric({"question": instruction, "rubric": value})
    for criterion in rubric.criteria:
        if (
            len(criterion["text"]) > MAX_CRITERION_CHARS
            or not abs(weight_of(criterion)) < MAX_WEIGHT
        ):
            raise ValueError("has an item that is too long, or whose weight is no weight")
    return rubric


async def _find_criteria(
    source: CriteriaSource | None, row: _Row, asked: Asked, response: str
) -> RowCriteria:
    """What a row is scored by. Raises `ValueError` for a column that cannot be read."""
    from refloom.data.responses import ResponseRow
    from refloom.evaluation.row_criteria import RowCriteria

    if source is None:
        rubric = read_column(asked.instruction, row.rubric)
        return RowCriteria() if rubric is None else RowCriteria(rubric.criteria, "instruction")
    tags = row.fields.get("tags")
    return await source.find(
        ResponseRow(
            line=0,
            fields=row.fields,
            instruction=asked.instruction,
            response=response,
            history=asked.history,
            text=asked.instruction,
            tags=list(map(str, tags)) if isinstance(tags, list) else [],
        )
    )


class _JudgeThread:
    """An open judge, on an event loop in a thread of its own."""

    def __init__(self, settings: Settings, journal: Path | None, criteria: Path | None) -> None:
        """Open it. Blocks; raises what `open_criteria` and `open_scorer` raise."""
        self.pid = os.getpid()
        self._settings, self._criteria = settings, criteria
        if journal is None:
            folder = tempfile.mkdtemp(prefix="rubric-reward-")
            self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            journal = Path(folder) / "journal.sqlite"
        self._journal = journal
        self._opened: Future[_Judge] = Future()
        # A daemon: whoever ends without closing it loses nothing, since answers are on disk.
        self._thread = threading.Thread(target=self._run, name="rubric_reward", daemon=True)
        self._thread.start()
        self._judge = self._opened.result()

    async def do(self, work: Callable[[_Judge], Coroutine[Any, Any, T]]) -> T:
        """Do something with the open judge, on its loop, for a caller on another one."""
        doing = asyncio.run_coroutine_threadsafe(self._until_stopped(work), self._loop)
        return await asyncio.wrap_future(doing)

    async def _until_stopped(self, work: Callable[[_Judge], Coroutine[Any, Any, T]]) -> T:
        from refloom.runs.client import Interrupted

        try:
            return await work(self._judge)
        except Interrupted as interrupted:
            stopped_by = self._judge.client.stopped_by
            raise stopped_by or ProviderStopped("the calls were stopped") from interrupted

    def stop(self) -> None:
        """Ask the thread to close everything, and do not wait for it."""
        if self._thread.is_alive() and self.pid == os.getpid():
            with suppress(RuntimeError):  # Its loop has ended just now.
                self._loop.call_soon_threadsafe(self._stopping.set)

    def close(self) -> None:
        """Close everything. Blocks."""
        self.stop()
        if self.pid == os.getpid():
            self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)

    async def _serve(self) -> None:
        from refloom.evaluation.row_criteria import check_outside_run, open_criteria
        from refloom.evaluation.score import open_scorer

        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        warn, source = _LOGGER.warning, None
        async with AsyncExitStack() as stack:
            if self._criteria is not None:
                check_outside_run(self._journal, self._criteria)
                source = await asyncio.to_thread(
                    open_criteria, self._criteria, self._settings, on_warning=warn
                )
                stack.callback(source.close)
            scorer = open_scorer(self._journal, self._settings, on_warning=warn)
            session = await stack.enter_async_context(scorer)
            self._opened.set_result(_Judge(session.scorer, session.client, source))
            await self._stopping.wait()


def _place_among_processes() -> tuple[int, int]:
    """The number of this process in a training by several, and how many these are."""
    rank, processes = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    if not (rank.isdecimal() and processes.isdecimal()):
        return 0, 1
    return int(rank), max(int(processes), 1)


def _share(settings: Settings, processes: int) -> Settings:
    """The settings of one of so many processes, which share limits and caps evenly."""
    if processes == 1:
        return settings
    caps = {name: getattr(settings, name) for name in ("rpm", "tpm", "max_tokens")}
    shares: dict[str, Any] = {
        name: max(cap // processes, 1) for name, cap in caps.items() if cap is not None
    }
    if settings.max_cost is not None:
        shares["max_cost"] = settings.max_cost / processes
    shares["concurrency"] = max(settings.max_in_flight // processes, 1)
    return settings.model_copy(update=shares)


def _journal_of(path: Path, rank: int) -> Path:
    """The journal of one process: the file itself for the first."""
    return path if rank == 0 else path.with_name(f"{path.stem}-{rank}{path.suffix}")
