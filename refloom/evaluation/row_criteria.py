"""Which criteria a row is scored by: those of its instruction, or of references retrieved for it.

They come from a run's directory, which is only read, from a file of rubrics, or from a file of a
person's criteria.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

from memory.characteristics import Learned, StoredCharacteristics
from memory.embed import Embed, Embedder
from memory.references import IndexUnusable, Reference, Turn, instruction_key
from nodes.checks import SAFE_CHECKS, TRUSTED_CHECKS, parse_check
from nodes.context import Context
from nodes.criteria import ANSWERS_ID
from nodes.judge import fold_text
from nodes.own_criteria import OwnCriteria, OwnCriterion
from nodes.state import Criterion
from refloom.data.criteria import load_criteria
from refloom.data.files import read_rows
from refloom.data.responses import ResponseRow
from refloom.data.rubrics import (
    SYSTEM_ROLES,
    Rubric,
    conversation_key,
    fold_instruction,
    read_rubrics,
    rubric_of,
)
from refloom.errors import InputError
from refloom.runs.checks import check_permitted
from refloom.runs.journal import JOURNAL_NAME, check_run, connect_read_only, iter_records
from refloom.runs.outputs import read_status
from refloom.settings import Settings, default_judge_method

if TYPE_CHECKING:
    from memory.index import ReferenceIndex
    from memory.store import ReferenceFile

CriteriaFrom = Literal["instruction", "retrieved"]
# Criteria of retrieved references that are held: rows on one subject share them.
MAX_MERGED = 1024


class RowCriteria(NamedTuple):
    """What a row is scored by; without `criteria_from` nothing is known of its instruction.

    `references` are for checks to look at, `trusted` says whether checks may run or read something.
    """

    criteria: Sequence[Criterion] = ()
    criteria_from: CriteriaFrom | None = None
    history: Sequence[Turn] = ()
    references: Sequence[Reference] = ()
    trusted: bool = False


class CriteriaSource(Protocol):
    """Finds the criteria of a row."""

    async def find(self, row: ResponseRow) -> RowCriteria:
        """What the row is scored by."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


def check_outside_run(out: Path, source: Path) -> None:
    """Raise `InputError` if a file to be written is in the run's directory `source`."""
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{out}: is in {source}, and the run's directory is only read")


def open_criteria(
    source: Path,
    settings: Settings,
    *,
    embed: Embed | None = None,
    on_warning: Callable[[str], None] = lambda text: None,
) -> CriteriaSource:
    """The criteria in a run's directory, a file of rubrics, or a file of criteria. Blocks.

    `settings` are those of the judge; `embed` replaces the run's embedding model. `on_warning` gets
    each trouble once. Raises `InputError` or `JournalError`, with file and line.
    """
    if settings.run_code:
        check_permitted(["python_tests"], settings)
    if source.is_dir():
        return RunCriteria(source, settings, embed=embed, on_warning=on_warning)
    if not source.exists():
        raise InputError(f"{source}: no such file or directory")
    if source.suffix.lower() == ".toml" or _is_of_criteria(source):
        criteria = load_criteria(source)
        named = settings.model_copy(update={"criteria": source})
        check_permitted([own["criterion"].get("check") for own in criteria], named)
        return PersonCriteria(criteria)
    return FileRubrics(source, read_rubrics(source), on_warning)


def _is_of_criteria(source: Path) -> bool:
    """Whether the first row of a file is a person's criterion, and no rubric."""
    if source.suffix.lower() != ".jsonl":
        return False
    first = next(iter(read_rows(source, None)), (0, None))[1]
    return isinstance(first, Mapping) and "text" in first and "prompt" not in first


class PersonCriteria:
    """The criteria of a file of a person's; those with tags or a seed hold where a row has them."""

    def __init__(self, criteria: Sequence[OwnCriterion]) -> None:
        self.criteria = list(criteria)
        self._own = OwnCriteria(self.criteria)

    async def find(self, row: ResponseRow) -> RowCriteria:
        """See `CriteriaSource`. A row's seed is its `seed_id`, else its `id`."""
        id_ = row.fields.get("seed_id", row.fields.get("id"))
        seed: Any = {"id": str(id_), "instruction": row.text, "tags": list(row.tags)}
        criteria, _ = self._own.select(seed, [])
        return RowCriteria(criteria, "instruction", trusted=True)

    def close(self) -> None:
        """See `CriteriaSource`."""


class FileRubrics:
    """The rubrics of a file, by question, and by the turns before it where there are some.

    What another made may name no check that runs code.
    """

    def __init__(
        self, source: Path, rubrics: Mapping[str, Rubric], on_warning: Callable[[str], None]
    ) -> None:
        self._rubrics = rubrics
        # Of one question after several conversations nobody knows which a row means.
        talks = [one for one in rubrics.values() if one.history]
        times = Counter(fold_instruction(one.instruction) for one in talks)
        last = ((fold_instruction(one.instruction), one) for one in talks)
        self._by_last = {text: rubric for text, rubric in last if times[text] == 1}
        refused: Counter[str] = Counter()
        for rubric in rubrics.values():
            for criterion in rubric.criteria:
                check = criterion.get("check") or ""
                try:
                    if criterion["judged_by"] == "check":
                        parse_check(check, trusted=False)
                except ValueError:
                    refused[check] += 1
        if refused:
            names = ", ".join(name[:80] or "without a name" for name, _ in refused.most_common(3))
            on_warning(
                f"{source}: {refused.total()} items name a check that a file of rubrics may not "
                f"({names}); their verdicts are unknown"
            )

    async def find(self, row: ResponseRow) -> RowCriteria:
        """See `CriteriaSource`. A row may leave out the conversation, but not have another."""
        texts = (row.text, row.instruction)
        keys = (conversation_key(row.instruction, row.history), *map(fold_instruction, texts))
        rubric = next((self._rubrics[key] for key in keys if key in self._rubrics), None)
        if rubric is None and all(turn["role"] in SYSTEM_ROLES for turn in row.history):
            rubric = self._by_last.get(fold_instruction(row.instruction))
        if rubric is None:
            return RowCriteria()
        return RowCriteria(rubric.criteria, "instruction", rubric.history)

    def close(self) -> None:
        """See `CriteriaSource`."""


class RunCriteria:
    """The criteria of a run: of its own instructions, and of references for any others.

    Nothing is learned or tried here, and nothing is written to the run's directory.
    """

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        *,
        embed: Embed | None = None,
        on_warning: Callable[[str], None] = lambda text: None,
    ) -> None:
        check_run(directory)
        self._directory, self._on_warning = directory, on_warning
        self._by_log_odds = settings.context().method == "logodds"
        self._runs_code = settings.run_code
        run_settings = read_status(directory).get("settings") or {}
        self._context = _context_of_run(settings, run_settings)
        folder = settings.memory or directory / "memory"
        model = str(run_settings.get("embedding_model") or settings.embedding_model)
        self._lock = Lock()
        self._journal = connect_read_only(directory / JOURNAL_NAME, check_same_thread=False)
        self._memory = RunMemory(folder, self._digest(), model, self._context, embed, on_warning)
        self._rows: dict[int, int] = {}
        sql = (
            "SELECT rowid, json_extract(record, '$.instruction') FROM samples "
            "WHERE status IN ('accepted', 'rejected') ORDER BY round, position, slot"
        )
        for row, instruction in self._journal.execute(sql):
            # Of several samples with one instruction the first slot's counts.
            if instruction:
                self._rows.setdefault(instruction_key(fold_instruction(instruction)), row)
        self._merged: OrderedDict[tuple[str, ...], list[Criterion]] = OrderedDict()
        self._of_person: list[Criterion] | None = None
        self._of_person_lock = asyncio.Lock()

    @property
    def unlearned(self) -> int:
        """Of how many of the references looked up nothing was learned."""
        return len(self._memory.unlearned)

    def _digest(self) -> str:
        found = self._journal.execute("SELECT value FROM meta WHERE key = 'references'").fetchone()
        return str((json.loads(found[0]) if found else {}).get("digest", ""))

    async def find(self, row: ResponseRow) -> RowCriteria:
        """See `CriteriaSource`."""
        for text in (row.text, row.instruction):
            record = await asyncio.to_thread(self._find_record, fold_instruction(text))
            if record is not None:
                return await self._of_instruction(record)
        return await self._of_references(row.text)

    def close(self) -> None:
        """See `CriteriaSource`."""
        with self._lock:
            self._journal.close()
        self._memory.close()

    def _find_record(self, folded: str) -> dict[str, Any] | None:
        number = self._rows.get(instruction_key(folded))
        if number is None:
            return None
        sql = "SELECT record FROM samples WHERE rowid = ?"
        with self._lock:
            (text,) = self._journal.execute(sql, (number,)).fetchone()
        record: dict[str, Any] = json.loads(text)
        return record if fold_instruction(record["instruction"]) == folded else None

    async def _of_instruction(self, record: dict[str, Any]) -> RowCriteria:
        criteria = rubric_of(record["criteria"])
        if not self._runs_code and any(c.get("check") == "python_tests" for c in criteria):
            self._on_warning(
                "the check python_tests runs what a model wrote: without --run-code its verdicts "
                "are unknown"
            )
        references: list[Reference] = []
        if self._by_log_odds or any(map(_reads_references, criteria)):
            references = await self._memory.read(record["reference_ids"])
        if self._by_log_odds:
            learned = await self._memory.learned(references)
            criteria = [_with_bar(criterion, learned) for criterion in criteria]
        return RowCriteria(criteria, "instruction", references=references, trusted=True)

    async def _of_references(self, text: str) -> RowCriteria:
        references = await self._memory.search(text)
        if references is None:
            return RowCriteria()
        # What else may hold depends on the references alone.
        key = tuple(reference["id"] for reference in references)
        criteria = self._merged.get(key)
        if criteria is None:
            criteria = self._merged[key] = await self._merge(references)
            if len(self._merged) > MAX_MERGED:
                self._merged.popitem(last=False)
        return RowCriteria(criteria, "retrieved", references=references, trusted=True)

    async def _merge(self, references: Sequence[Reference]) -> list[Criterion]:
        """The criteria of references as a run merges them."""
        # Imported here: nodes import LangGraph.
        from nodes.extract import merge_criteria

        learned = await self._memory.learned(references)
        async with self._of_person_lock:
            if self._of_person is None:
                self._of_person = await asyncio.to_thread(self._read_person)
        seed: Any = {"instruction": "", "id": None}
        try:
            of_references, _ = OwnCriteria().select(seed, references)
        except ValueError as error:
            self._on_warning(f"criteria of references are left out: {error}")
            of_references = []
        own = [*self._of_person, *of_references]
        embed = self._memory.embed
        # The arms without criteria of references are of the making of rows.
        context = self._context.model_copy(update={"feedback": "reference", "pipeline": "loop"})
        return rubric_of(await merge_criteria(learned, context, embed, own))

    def _read_person(self) -> list[Criterion]:
        """The criteria of the run's file that held for all its samples. Blocks.

        Rows do not tell which tags a criterion was for: one that held for some only is left out.
        """
        found: dict[str, Criterion] = {}
        times: Counter[str] = Counter()
        rows = 0
        with self._lock:
            for line in iter_records(self._journal, "accepted", "rejected"):
                rows += 1
                for criterion in rubric_of(json.loads(line)["criteria"]):
                    if criterion["reference_id"] is None and not _is_built_in(criterion["id"]):
                        found.setdefault(criterion["id"], criterion)
                        times[criterion["id"]] += 1
        return [criterion for id_, criterion in found.items() if times[id_] == rows]


def _context_of_run(settings: Settings, run_settings: Mapping[str, Any]) -> Context:
    """The context that the run had: what it learned is stored under keys of it."""
    values = settings.context().model_dump()
    values |= {name: v for name, v in run_settings.items() if name in Context.model_fields}
    judge = str(values["judge_model"] or values["model"])
    values["judge_method"] = run_settings.get("judge_method") or default_judge_method(judge)
    return Context.model_validate(values)


def _is_built_in(id_: str) -> bool:
    return id_ == ANSWERS_ID or id_.startswith("generic-")


def _reads_references(criterion: Criterion) -> bool:
    kind = (criterion.get("check") or "").partition(":")[0]
    own = kind not in (*SAFE_CHECKS, *TRUSTED_CHECKS)
    return criterion["judged_by"] == "check" and (kind == "math" or own)


def _with_bar(criterion: Criterion, learned: Sequence[Learned]) -> Criterion:
    """A criterion with the bar that its trial set, if the memory has it."""
    if criterion["id"] == ANSWERS_ID:
        known = [entry["answers_bar"] for entry in learned]
    else:
        of_all = [one for entry in learned for one in entry["criteria"]]
        known = [one.get("bar") for one in of_all if one["id"] == criterion["id"]]
    bars = [bar for bar in known if bar is not None]
    return {**criterion, "bar": sum(bars) / len(bars) if bars else None}


class RunMemory:
    """What a run remembers, only read: references, their vectors, what was learned of them."""

    def __init__(
        self,
        folder: Path,
        digest: str,
        model: str,
        context: Context,
        embed: Embed | None,
        on_warning: Callable[[str], None],
    ) -> None:
        """Open nothing yet.

        Args:
            folder: The directory in which the run stored it.
            digest: The hash of the run's references.
            model: The run's embedding model, which `embed` may replace.
            context: The run's; what it learned is stored under keys of it.
            embed: Replaces the embedding model.
            on_warning: Gets each trouble once.
        """
        self.embed = embed or Embedder(model)
        self._folder, self._digest, self._model = folder, digest, model
        self._context, self._on_warning = context, on_warning
        self._opening = asyncio.Lock()
        self._is_open = self._has_vectors = False
        self._index: ReferenceIndex | None = None
        self._stored: StoredCharacteristics | None = None
        self._rows: dict[int, int] | None = None
        self.unlearned: set[str] = set()

    async def search(self, text: str) -> list[Reference] | None:
        """The references for a text, as a run retrieves them; None if there are none to search."""
        await self._open()
        if self._index is None:
            return None
        number = self._context.references_per_seed
        own = (await asyncio.to_thread(self._index.find_own, [text]))[0]
        if own is not None and number == 1:
            return [own[1]]
        await self._open_vectors()
        return await self._index.search(text, number)

    async def read(self, ids: Sequence[str]) -> list[Reference]:
        """References by id, as far as the memory has them."""
        await self._open()
        return await asyncio.to_thread(self._read, ids)

    async def learned(self, references: Sequence[Reference]) -> list[Learned]:
        """What was learned of references; nothing for those that the run never studied."""
        await self._open()
        return await asyncio.to_thread(self._find_learned, references)

    def close(self) -> None:
        """Close what is open."""
        if self._stored is not None:
            self._stored.close()

    async def _open(self) -> None:
        async with self._opening:
            if not self._is_open:
                await asyncio.to_thread(self._open_files)
                self._is_open = True

    def _open_files(self) -> None:
        # Imported here: NumPy and Arrow, which a row of the run itself does not need.
        from memory.index import ReferenceIndex
        from memory.store import ReferenceFile

        exact = self._folder / f"references-{self._digest[:16]}.parquet"
        files = list(self._folder.glob("references-*.parquet"))
        newest = sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)
        for path in [exact] if exact in files else newest:
            with suppress(IndexUnusable):
                file = ReferenceFile(path)
                self._index = ReferenceIndex(file, self.embed, self._folder, self._model)
                break
        if self._index is None:
            self._on_warning(
                f"{self._folder}: there are no references of the run, so instructions that are not "
                "its own have no criteria (--memory names the directory where it stored them)"
            )
        with suppress(IndexUnusable):
            self._stored = StoredCharacteristics(self._folder)

    async def _open_vectors(self) -> None:
        """Open the stored vectors; where there are none they are made, and kept in memory."""
        async with self._opening:
            if self._has_vectors or self._index is None:
                return
            try:
                await self._index.open()
            except IndexUnusable:
                # Imported here, as above.
                from memory.index import ReferenceIndex

                self._on_warning(
                    "the run has no vectors of its references: they are made now, and not stored"
                )
                references = self._index.references
                self._index = ReferenceIndex(references, self.embed, None, self._model)
            self._has_vectors = True

    def _read(self, ids: Sequence[str]) -> list[Reference]:
        if self._index is None:
            return []
        file = cast("ReferenceFile", self._index.references)
        if self._rows is None:
            names = file.column("id").to_pylist()
            self._rows = {instruction_key(id_): row for row, id_ in enumerate(names)}
        keys = map(instruction_key, ids)
        return file.rows([self._rows[key] for key in keys if key in self._rows])

    def _find_learned(self, references: Sequence[Reference]) -> list[Learned]:
        # Imported here: nodes import LangGraph.
        from nodes.learn import learned_key

        entries = []
        for reference in references:
            entry = None
            if self._stored is not None:
                entry = self._stored.find(learned_key(reference, self._context))
                entry = entry or self._find_other(reference)
            if entry is None:
                self.unlearned.add(reference["id"])
            else:
                entries.append(entry)
        return entries

    def _find_other(self, reference: Reference) -> Learned | None:
        """What was learned of it by other prompts, or by another version of refloom."""
        entry = None if self._stored is None else self._stored.find_newest(reference["id"])
        if entry is None or not isinstance(entry.get("criteria"), list):
            return None
        # Another run's reference may have the same id.
        response = fold_text(reference["response"])
        quotes = (one["quote"] or "" for one in entry["criteria"])
        return entry if all(fold_text(quote) in response for quote in quotes) else None
