"""The commands on files and weights: `dedup`, `index build`, `index search`, `model pull`."""

from __future__ import annotations

import asyncio
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from memory.weights import DEFAULT_MODEL
from refloom.cli.options import (
    add_json,
    add_setting,
    add_skip_bad_lines,
    positive_int,
    print_json,
    print_line,
    print_result,
    ratio,
    warn_of_skipped_rows,
)
from refloom.data.read import describe_report, read_references
from refloom.settings import load_settings

# Seconds between two lines about an embedding where no bar can be drawn.
LINE_EVERY_S = 10
EMBEDDING_MODEL_HELP = f"sentence-transformers model, by name or path (default: {DEFAULT_MODEL})"


def add_commands(add: Any) -> None:
    """Add the commands of this module to the parser."""
    parser = add("dedup")
    parser.add_argument("file", metavar="FILE", help="rows of any shape that `run` reads")
    parser.add_argument("out", metavar="OUT", type=Path, help="a .jsonl or .parquet file")
    parser.add_argument(
        "--threshold", type=ratio, default=0.7, help="ROUGE-L F1 of instructions (default: 0.7)"
    )
    parser.add_argument(
        "--embedding-threshold", type=ratio, help="cosine above which a row is dropped as well"
    )
    parser.add_argument("--embedding-model", default=DEFAULT_MODEL, help=EMBEDDING_MODEL_HELP)
    add_skip_bad_lines(parser)
    add_json(parser)
    parser.set_defaults(command=dedup)

    parser = add("index")
    add_index = parser.add_subparsers(metavar="COMMAND", required=True).add_parser
    build = add_index("build", help="embed references and store them as an index")
    build.add_argument("file", metavar="FILE", help="references, of any shape that `run` reads")
    build.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="where the index is stored"
    )
    for name in ("map", "turns", "license"):
        add_setting(build, name)
    build.set_defaults(command=index_build)
    search = add_index("search", help="show the references nearest to a text")
    search.add_argument("directory", type=Path, metavar="DIR", help="the index")
    search.add_argument("text", metavar="TEXT", help="what to search for")
    search.add_argument("-k", type=positive_int, default=3, help="how many (default: 3)")
    for name in ("source", "license", "tags"):
        search.add_argument(
            f"--{name}", action="append", metavar="VALUE", help=f"only references of this {name}"
        )
    search.set_defaults(command=index_search)
    for command in (build, search):
        command.add_argument("--embedding-model", default=DEFAULT_MODEL, help=EMBEDDING_MODEL_HELP)
        add_json(command)

    parser = add("model")
    pull = parser.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "pull", help="download its weights (1.1 GB) into the cache"
    )
    pull.add_argument("--from-hub", action="store_true", help="from the publisher's own repository")
    add_json(pull)
    pull.set_defaults(command=model_pull)


def dedup(args: Namespace, flags: dict[str, Any]) -> int:
    """Write a file's rows without near-duplicates; report which row each was too near to."""
    from refloom.data.dedup import MeaningFilter, deduplicate

    meaning = None
    if args.embedding_threshold is not None:
        from memory.embed import Embedder

        meaning = MeaningFilter(args.embedding_threshold, Embedder(args.embedding_model).encode)
    summary = deduplicate(
        args.file,
        args.out,
        threshold=args.threshold,
        skip_bad_lines=args.skip_bad_lines,
        meaning=meaning,
    )
    skipped = summary.report.skipped_count
    if args.json:
        dropped = [row._asdict() for row in summary.dropped]
        print_json(
            {"out": str(args.out), "rows": summary.written, "dropped": dropped, "left_out": skipped}
        )
    for row in () if args.json else summary.dropped:
        print_line(
            f"line {row.line} is too near to line {row.near} ({row.by}): {row.instruction[:80]!r}"
        )
    warn_of_skipped_rows(summary.report)
    for note in summary.report.notes:
        sys.stderr.write(note + "\n")
    if args.json:
        return 0
    print_line(
        f"{summary.written} rows in {args.out}; {len(summary.dropped)} near-duplicates"
        + (f", {skipped} rows left out" if skipped else "")
    )
    return 0


def index_build(args: Namespace, flags: dict[str, Any]) -> int:
    """Embed references and store them as an index; those already in it are not embedded again."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress

    from memory.embed import Embedder
    from memory.index import ReferenceIndex
    from memory.references import distinct
    from memory.store import write_references
    from refloom.runs.retrieval import EmbeddingPace

    source = read_references(args.file, load_settings(flags))
    report = source.scan()
    lines = describe_report(
        "references", source.name, report, takes_first=source.takes_first, listed=""
    )
    if not args.json:
        print_line("\n".join(lines))
    warn_of_skipped_rows(report)
    references = write_references(args.out, distinct(source))
    with Progress(
        "{task.description}",
        BarColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        bar = progress.add_task("embedding references", total=len(references))
        pace, last_line = EmbeddingPace(), time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal last_line
            line = pace.describe(done, total)
            progress.update(bar, completed=done, total=total, description=line)
            if progress.disable and done < total and time.monotonic() - last_line >= LINE_EVERY_S:
                last_line = time.monotonic()
                sys.stderr.write(line + "\n")

        index = ReferenceIndex(
            references, Embedder(args.embedding_model), args.out, args.embedding_model, show
        )
        count = asyncio.run(index.build())
    if args.json:
        print_json({"out": str(args.out), "references": count, "left_out": report.skipped_count})
    else:
        print_line(f"{count} references in {args.out}")
    return 0


def index_search(args: Namespace, flags: dict[str, Any]) -> int:
    """Show the references nearest to a text."""
    from memory.embed import Embedder
    from memory.index import FILTERS, ReferenceIndex
    from memory.store import open_reference_file

    index = ReferenceIndex(
        open_reference_file(args.directory),
        Embedder(args.embedding_model),
        args.directory,
        args.embedding_model,
    )
    where = {name: values for name in FILTERS if (values := getattr(args, name))}
    hits = asyncio.run(index.search(args.text, args.k, where=where or None))
    if args.json:
        print_json(hits)
        return 0
    if not hits:
        sys.stderr.write("nothing found" + (" with these filters\n" if where else "\n"))
    for hit in hits:
        print_line(f"{hit['score']:.3f}  {hit['id']}  {hit['instruction'][:100]!r}")
    return 0


def model_pull(args: Namespace, flags: dict[str, Any]) -> int:
    """Download the embedded model and the default embedding model into the user's cache."""
    from memory.weights import minilm_path
    from refloom.local import pull

    paths = {"model": str(pull(from_hub=args.from_hub)), "embedding_model": str(minilm_path())}
    print_result(paths, lambda paths: "\n".join(paths.values()), as_json=args.json)
    return 0
