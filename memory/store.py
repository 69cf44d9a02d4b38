"""References on disk: a parquet file that is read a few rows at a time, by any number of processes.

A million references do not fit beside a model; what a seed needs of them does.
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

from memory.references import IndexUnusable, Reference, content_id, key_of

# Rows that are read together, and how many such groups are kept: some 20 MB.
GROUP = 256
KEPT_GROUPS = 64
WRITTEN = GROUP * 64
COLUMNS = ("id", "instruction", "response", "source", "license", "tags", "history")
REBUILD = "Build it with `refloom index build FILE --out DIR`."

Keys = NDArray[np.int64]


class ReferenceFile(Sequence[Reference]):
    """The references of a parquet file, by row number; rows are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Raises `IndexUnusable` when the file is missing or damaged. Blocks."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        self._lock = threading.Lock()
        self._groups: OrderedDict[int, Any] = OrderedDict()
        try:
            self._file = pq.ParquetFile(path, memory_map=True)
            if any(name not in self._file.schema_arrow.names for name in (*COLUMNS, "key")):
                raise ValueError("it has other columns")
            keys = self._file.read(columns=["key"])["key"].to_numpy()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise IndexUnusable(
                f"{path}: the references cannot be read ({error}). {REBUILD}"
            ) from error
        self.keys: Keys = np.ascontiguousarray(keys, dtype=np.int64)

    @property
    def digest(self) -> str:
        """What the file is called after: a hash of all it holds."""
        return self.path.stem.removeprefix("references-")

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, row: int) -> Reference: ...

    @overload
    def __getitem__(self, row: slice) -> list[Reference]: ...

    def __getitem__(self, row: int | slice) -> Reference | list[Reference]:
        """Read a row, or some. Blocks."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        group, at = divmod(row, GROUP)
        return _reference(self._group(group).slice(at, 1).to_pylist()[0])

    def rows(self, rows: Sequence[int]) -> list[Reference]:
        """Read some rows, each group of them at once. Blocks."""
        found: dict[int, Reference] = {}
        for group in sorted({row // GROUP for row in rows}):
            among = sorted({row for row in rows if row // GROUP == group})
            table = self._group(group).take([row % GROUP for row in among])
            found |= zip(among, map(_reference, table.to_pylist()), strict=True)
        return [found[row] for row in rows]

    def __iter__(self) -> Iterator[Reference]:
        """Read everything, a group at a time; reading does not crowd out what is kept. Blocks."""
        for group in range(self._file.num_row_groups):
            for row in self._read(group).to_pylist():
                yield _reference(row)

    def column(self, name: str) -> Any:
        """A whole column, as an Arrow array. Blocks."""
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
            while len(self._groups) > KEPT_GROUPS:
                self._groups.popitem(last=False)
        return table

    def _read(self, group: int) -> Any:
        with self._lock:
            return self._file.read_row_group(group, columns=list(COLUMNS))


def _reference(row: dict[str, Any]) -> Reference:
    return cast(Reference, {k: v for k, v in row.items() if v is not None})


def write_references(directory: Path, references: Iterable[Reference]) -> ReferenceFile:
    """Keep references in `directory` under the name of their content; streams. Blocks.

    Raises `OSError`. A file appears whole or not at all.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    turn = pa.struct([("role", text), ("content", text)])
    lists = {"tags": pa.list_(text), "history": pa.list_(turn)}
    schema = pa.schema([*((name, lists.get(name, text)) for name in COLUMNS), ("key", pa.int64())])
    directory.mkdir(parents=True, exist_ok=True)
    staged = directory / f"references-{os.getpid()}-{uuid4().hex[:8]}.new"
    digest, rows = sha256(), iter(references)
    with pq.ParquetWriter(staged, schema, compression="zstd") as writer:
        while batch := list(islice(rows, WRITTEN)):
            for reference in batch:
                digest.update(_line(reference))
            listed = [
                {**{name: r.get(name) for name in COLUMNS}, "key": key_of(r["instruction"])}
                for r in batch
            ]
            writer.write_table(pa.Table.from_pylist(listed, schema), row_group_size=GROUP)
    path = _named(directory, digest)
    os.replace(staged, path)
    return ReferenceFile(path)


def kept_references(
    directory: Path, references: Callable[[], Iterable[Reference]]
) -> ReferenceFile:
    """The references as `directory` has them, written if it has not; goes through them. Blocks.

    A run that is taken up again finds them there, and needs to read them only.
    """
    if any(directory.glob("references-*.parquet")):
        digest = sha256()
        for reference in references():
            digest.update(_line(reference))
        with suppress(IndexUnusable):
            return ReferenceFile(_named(directory, digest))
    return write_references(directory, references())


def _line(reference: Reference) -> bytes:
    return json.dumps(reference, sort_keys=True).encode()


def _named(directory: Path, digest: Any) -> Path:
    return directory / f"references-{digest.hexdigest()[:16]}.parquet"


def keys_of(references: Sequence[Reference]) -> Keys:
    """The keys of the references' instructions, in their order. Blocks."""
    if isinstance(references, ReferenceFile):
        return references.keys
    return np.array([key_of(r["instruction"]) for r in references], dtype=np.int64)


def digest_of(references: Sequence[Reference]) -> str:
    """A name for the content of references."""
    if isinstance(references, ReferenceFile):
        return references.digest
    return content_id(*(json.dumps(r, sort_keys=True) for r in references))


def references_in(directory: Path) -> ReferenceFile:
    """The references of the index in `directory`. Raises `IndexUnusable`. Blocks."""
    try:
        manifest = json.loads((directory / "index.json").read_text(encoding="utf-8"))
        name = f"references-{manifest['references']}.parquet"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexUnusable(f"{directory}: there is no index here ({error}). {REBUILD}") from error
    return ReferenceFile(directory / name)


# MERGED memory~threads
# Blocking work in threads: waited for to its end, and one at a time over all processes.
ASK_AGAIN = 0.1  # seconds
P = ParamSpec("P")
T = TypeVar("T")


async def to_end(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work off the event loop; cancelled, wait for it, and only then give up.

    A thread cannot be called back. Whoever lets go of a lock while one still writes has two
    writers.
    """
    thread = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise


def _lock(directory: Path, name: str) -> FileLock:
    directory.mkdir(parents=True, exist_ok=True)
    return FileLock(directory / name, thread_local=False)


async def hold(directory: Path, name: str) -> FileLock:
    """Wait for a lock without keeping a thread, which the build that has it may need."""
    lock = await asyncio.to_thread(_lock, directory, name)
    while True:
        try:
            await asyncio.to_thread(lock.acquire, blocking=False)
            return lock
        except Timeout:
            await asyncio.sleep(ASK_AGAIN)
