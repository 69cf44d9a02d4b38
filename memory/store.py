"""References on disk, and locks on their directory.

References are stored in a parquet file that is memory-mapped, read a few rows at a time, and shared
by any number of processes: a million references do not fit in memory beside a model.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast, overload
from uuid import uuid4

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from memory.references import IndexUnusable, Reference, content_id, instruction_key

# Rows read together, and how many such groups are cached: about 20 MB in all.
ROW_GROUP = 256
MAX_CACHED_GROUPS = 64
WRITE_BATCH = ROW_GROUP * 64
REFERENCE_FIELDS = ("id", "instruction", "response", "source", "license", "tags", "history")
# Columns that files of earlier versions lack; their values are JSON.
ADDED_FIELDS = ("criteria",)
HOW_TO_BUILD = "Build it with `refloom index build FILE --out DIR`."
LOCK_RETRY_S = 0.1

# The `instruction_key` of every reference, in order.
Keys = NDArray[np.int64]
P = ParamSpec("P")
T = TypeVar("T")


class ReferenceFile(Sequence[Reference]):
    """The references of a parquet file by row number, read when needed."""

    def __init__(self, path: Path) -> None:
        """Map the file. Raises `IndexUnusable` if it is missing or damaged. Blocks."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        self._lock = threading.Lock()
        self._groups: OrderedDict[int, Any] = OrderedDict()
        try:
            self._file = pq.ParquetFile(path, memory_map=True)
            if any(
                name not in self._file.schema_arrow.names for name in (*REFERENCE_FIELDS, "key")
            ):
                raise ValueError("columns are missing")
            # Not by `to_numpy`, nor `take` below: they import pandas, for a third of a second.
            chunks = self._file.read(columns=["key"])["key"].chunks
            keys = np.concatenate([np.zeros(0, np.int64), *map(np.from_dlpack, chunks)])
        except (OSError, ValueError, pa.ArrowException) as error:
            raise IndexUnusable(
                f"{path}: the references cannot be read ({error}). {HOW_TO_BUILD}"
            ) from error
        present = self._file.schema_arrow.names
        self._columns = [*REFERENCE_FIELDS, *(name for name in ADDED_FIELDS if name in present)]
        self.keys: Keys = keys

    @property
    def digest(self) -> str:
        """The hash of the file's content, which is part of its name."""
        return self.path.stem.removeprefix("references-")

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, row: int) -> Reference: ...

    @overload
    def __getitem__(self, row: slice) -> list[Reference]: ...

    def __getitem__(self, row: int | slice) -> Reference | list[Reference]:
        """Return a row or a slice of rows. Blocks."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        group, at = divmod(row, ROW_GROUP)
        return _reference(self._group(group).slice(at, 1).to_pylist()[0])

    def rows(self, rows: Sequence[int]) -> list[Reference]:
        """Return some rows; reads each row group once. Blocks."""
        references = {row: self[row] for row in sorted(set(rows))}
        return [references[row] for row in rows]

    def __iter__(self) -> Iterator[Reference]:
        """Read all references, a group at a time, past the cache. Blocks."""
        for group in range(self._file.num_row_groups):
            for row in self._read(group).to_pylist():
                yield _reference(row)

    def column(self, name: str) -> Any:
        """Return a whole column, as an Arrow array. Blocks."""
        with self._lock:
            return self._file.read(columns=[name])[name]

    def _group(self, group: int) -> Any:
        with self._lock:
            if group in self._groups:
                self._groups.move_to_end(group)
                return self._groups[group]
        table = self._read(group)
        with self._lock:
            self._groups[group] = table
            while len(self._groups) > MAX_CACHED_GROUPS:
                self._groups.popitem(last=False)
        return table

    def _read(self, group: int) -> Any:
        with self._lock:
            return self._file.read_row_group(group, columns=self._columns)


def _reference(row: dict[str, Any]) -> Reference:
    reference = {k: v for k, v in row.items() if v is not None}
    for name in ADDED_FIELDS:
        if name in reference:
            reference[name] = json.loads(reference[name])
    return cast(Reference, reference)


def write_references(directory: Path, references: Iterable[Reference]) -> ReferenceFile:
    """Write references to a file in `directory` that is named by their hash. Streams; blocks.

    The file appears at once and complete. Raises `OSError`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    turn = pa.struct([("role", text), ("content", text)])
    lists = {"tags": pa.list_(text), "history": pa.list_(turn)}
    schema = pa.schema(
        [
            *((name, lists.get(name, text)) for name in REFERENCE_FIELDS),
            *((name, text) for name in ADDED_FIELDS),
            ("key", pa.int64()),
        ]
    )
    directory.mkdir(parents=True, exist_ok=True)
    staged = directory / f"references-{os.getpid()}-{uuid4().hex[:8]}.new"
    digest, rows = sha256(), iter(references)
    with pq.ParquetWriter(staged, schema, compression="zstd") as writer:
        while batch := list(islice(rows, WRITE_BATCH)):
            for reference in batch:
                digest.update(_serialise(reference))
            dicts = [
                {
                    **{name: r.get(name) for name in REFERENCE_FIELDS},
                    **{name: json.dumps(r[name]) for name in ADDED_FIELDS if name in r},  # type: ignore[literal-required]
                    "key": instruction_key(r["instruction"]),
                }
                for r in batch
            ]
            writer.write_table(pa.Table.from_pylist(dicts, schema), row_group_size=ROW_GROUP)
    path = _references_path(directory, digest)
    os.replace(staged, path)
    return ReferenceFile(path)


def load_or_write_references(
    directory: Path, references: Callable[[], Iterable[Reference]]
) -> ReferenceFile:
    """Open the file of these references in `directory`; write it if there is none. Blocks.

    A resumed run finds its file by the hash of the references.
    """
    if any(directory.glob("references-*.parquet")):
        digest = sha256()
        for reference in references():
            digest.update(_serialise(reference))
        with suppress(IndexUnusable):
            return ReferenceFile(_references_path(directory, digest))
    return write_references(directory, references())


def _serialise(reference: Reference) -> bytes:
    return json.dumps(reference, sort_keys=True).encode()


def _references_path(directory: Path, digest: Any) -> Path:
    return directory / f"references-{digest.hexdigest()[:16]}.parquet"


def instruction_keys(references: Sequence[Reference]) -> Keys:
    """Return the key of each reference's instruction. Blocks."""
    if isinstance(references, ReferenceFile):
        return references.keys
    return np.array([instruction_key(r["instruction"]) for r in references], dtype=np.int64)


def references_digest(references: Sequence[Reference]) -> str:
    """Return a hash of the content of references."""
    if isinstance(references, ReferenceFile):
        return references.digest
    return content_id(*(json.dumps(r, sort_keys=True) for r in references))


def open_reference_file(directory: Path) -> ReferenceFile:
    """Open the references of the index in `directory`. Raises `IndexUnusable`. Blocks."""
    try:
        manifest = json.loads((directory / "index.json").read_text(encoding="utf-8"))
        name = f"references-{manifest['references']}.parquet"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexUnusable(
            f"{directory}: there is no usable index here ({error}). {HOW_TO_BUILD}"
        ) from error
    return ReferenceFile(directory / name)


async def run_to_completion(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a thread. If cancelled, wait for the thread before raising.

    A thread cannot be cancelled, and a lock must not be released while it still writes.
    """
    thread = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise


async def acquire_lock(directory: Path, name: str) -> FileLock:
    """Wait for a file lock in `directory`, which is created if needed.

    Waiting occupies no thread, since the holder of the lock may need one.
    """
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    lock = FileLock(directory / name, thread_local=False)
    while True:
        try:
            await asyncio.to_thread(lock.acquire, blocking=False)
            return lock
        except Timeout:
            await asyncio.sleep(LOCK_RETRY_S)
