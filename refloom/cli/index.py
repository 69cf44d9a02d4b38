"""The commands on files and indexes, beside runs: index, dedup, model."""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from typing import Any

from refloom.data.read import Report, references_of, told
from refloom.settings import load

# Rows left out that are named one by one.
NAMED = 20


def index_build(given: Namespace, flags: dict[str, Any]) -> int:
    """Embed references and keep them as an index; what is there already is not embedded again."""
    from rich.progress import Progress

    from memory.embed import Embedder
    from memory.index import ReferenceIndex
    from memory.references import distinct
    from memory.store import write_references

    source = references_of(given.file, load(flags))
    report = source.scan()
    first = source.takes_first
    say("\n".join(told("references", source.name, report, takes_first=first, listed="")))
    name_left_out(report)
    references = write_references(given.out, distinct(source))
    with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("embedding", total=len(references))
        index = ReferenceIndex(
            references,
            Embedder(given.embedding_model),
            given.out,
            given.embedding_model,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )
        count = asyncio.run(index.build())
    say(f"{count} references in {given.out}")
    return 0


def index_search(given: Namespace, flags: dict[str, Any]) -> int:
    """Show the references an index finds for a text."""
    from memory.embed import Embedder
    from memory.index import FILTERS, ReferenceIndex
    from memory.store import references_in

    index = ReferenceIndex(
        references_in(given.directory),
        Embedder(given.embedding_model),
        given.directory,
        given.embedding_model,
    )
    where = {name: values for name in FILTERS if (values := getattr(given, name))}
    hits = asyncio.run(index.search(given.text, given.k, where=where or None))
    if not hits:
        sys.stderr.write("nothing found" + (" with these filters\n" if where else "\n"))
    for found in hits:
        say(f"{found['score']:.3f}  {found['id']}  {found['instruction'][:100]!r}")
    return 0


def model_pull(given: Namespace, flags: dict[str, Any]) -> int:
    """Fetch the embedded model and the default embedding model into the user's cache."""
    from memory.weights import minilm
    from refloom.local import pull

    say(str(pull(from_hub=given.from_hub)))
    say(str(minilm()))
    return 0


def dedup(given: Namespace, flags: dict[str, Any]) -> int:
    """Write a file's rows without near-duplicates, and say which row each was too near to."""
    from refloom.data.dedup import ByMeaning
    from refloom.data.dedup import dedup as without_duplicates

    meaning = None
    if given.embedding_threshold is not None:
        from memory.embed import Embedder

        meaning = ByMeaning(given.embedding_threshold, Embedder(given.embedding_model).encode)
    found = without_duplicates(
        given.file,
        given.out,
        threshold=given.threshold,
        skip_bad_lines=given.skip_bad_lines,
        meaning=meaning,
    )
    for one in found.dropped:
        say(f"line {one.line} is too near to line {one.near} ({one.by}): {one.instruction[:80]!r}")
    left_out = found.report.skipped_count
    name_left_out(found.report)
    say(
        f"{found.kept} rows in {given.out}; {len(found.dropped)} near-duplicates"
        + (f", {left_out} rows left out" if left_out else "")
    )
    return 0


def name_left_out(report: Report) -> None:
    """Name rows that were left out, and why, on stderr."""
    for row in report.skipped[:NAMED]:
        sys.stderr.write(f"left out: {row['file']}: line {row['line']}: {row['why']}\n")
    if report.skipped_count > NAMED:
        sys.stderr.write(f"left out: {report.skipped_count - NAMED} more\n")


def say(text: str) -> None:
    """Write a result to stdout."""
    sys.stdout.write(text + "\n")
