"""The command line: `refloom` and `python -m refloom`."""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsError

from memory.weights import DEFAULT_MODEL
from refloom import __version__, commands, shelf
from refloom.settings import Settings

EXAMPLES = """
examples:
  refloom demo                                       see it work, no key
  refloom run --references pairs.jsonl --out rows    each reference is a seed
  refloom run --references pairs.jsonl --seeds topics.txt --out rows \\
      --model gpt-4o-mini --target 1000              until 1000 rows are accepted
  refloom status rows
  refloom export rows train.jsonl --format messages
"""


def build_parser() -> argparse.ArgumentParser:
    """Every command and flag; those of `run` are the fields of `Settings`."""
    parser = argparse.ArgumentParser(
        prog="refloom",
        description="Make instruction-tuning data by reference-level feedback.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"refloom {__version__}")
    add = parser.add_subparsers(title="commands", metavar="", required=True).add_parser

    demo = add("demo", help="make rows on the embedded model from the bundled references")
    demo.add_argument("--out", type=Path, default=Path("demo-run"), metavar="DIR")
    demo.add_argument("--all", action="store_true", help="all 12 seeds, not the first 4")
    demo.set_defaults(command=commands.demo)
    _add_run(add("run", help="make rows from your references", allow_abbrev=False))

    status = add("status", help="say how a run stands")
    status.add_argument("directory", type=Path, metavar="DIR")
    status.add_argument("--json", action="store_true", help="everything, as JSON")
    status.set_defaults(command=commands.status)

    export = add("export", help="write a run's accepted rows as training data")
    export.add_argument("directory", type=Path, metavar="DIR")
    export.add_argument("file", type=Path, metavar="FILE", help="a .jsonl file")
    export.add_argument("--format", required=True, choices=("messages",))
    export.set_defaults(command=commands.export)
    _add_dedup(add("dedup", help="write a file without its near-duplicates"))
    _add_index(add("index", help="build or search an index of references"))

    model = add("model", help="the embedded model")
    pull = model.add_subparsers(metavar="", required=True).add_parser(
        "pull", help="fetch its weights (1.1 GB) into the cache"
    )
    pull.add_argument("--from-hub", action="store_true", help="from the publisher's own repository")
    pull.set_defaults(command=shelf.model_pull)
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--references",
        required=True,
        metavar="FILE",
        help="curated pairs: .jsonl .json .parquet .csv, or the name of a dataset",
    )
    run.add_argument(
        "--seeds", metavar="FILE", help="what rows should be about (default: the references)"
    )
    run.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="the run's directory; one that holds a run is gone on with",
    )
    run.add_argument("--config", type=Path, metavar="FILE.toml", help="settings from a file")
    run.add_argument(
        "--skip-bad-lines", action="store_true", help="count lines that cannot be parsed, go on"
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="make no call: count, show the settings, estimate calls, tokens and dollars",
    )
    run.add_argument(
        "--log-file", type=Path, metavar="FILE", help="append what happens to it, as JSON lines"
    )
    settings = run.add_argument_group("settings")
    for name, field in Settings.model_fields.items():
        if name != "stages":
            _add_setting(settings, name, field)
    run.set_defaults(command=commands.run)


def _add_setting(group: Any, name: str, field: FieldInfo) -> None:
    """A field as a flag; its value stays text, for pydantic to read and to judge."""
    flag = name.replace("_", "-")
    about = (field.description or "").replace("%", "%%")
    if field.annotation is bool:
        turned = field.default is True
        group.add_argument(
            f"--no-{flag}" if turned else f"--{flag}",
            dest=name,
            action="store_const",
            const=not turned,
            default=argparse.SUPPRESS,
            help=("do not " if turned else "") + about,
        )
        return
    if field.annotation == tuple[str, ...]:
        group.add_argument(
            f"--{flag}", dest=name, default=argparse.SUPPRESS, nargs="+", metavar="FILE", help=about
        )
        return
    if field.default not in (None, ...) and field.default_factory is None:
        about += f" (default: {field.default})"
    group.add_argument(
        f"--{flag}", dest=name, default=argparse.SUPPRESS, metavar=name.upper(), help=about
    )


def _add_index(index: argparse.ArgumentParser) -> None:
    add = index.add_subparsers(metavar="", required=True).add_parser
    build = add("build", help="embed references and keep them")
    build.add_argument("file", metavar="FILE")
    build.add_argument("--out", required=True, type=Path, metavar="DIR")
    build.set_defaults(command=shelf.index_build)
    search = add("search", help="show what is found for a text")
    search.add_argument("directory", type=Path, metavar="DIR")
    search.add_argument("text", metavar="TEXT")
    search.add_argument("-k", type=int, default=3, help="how many (default: 3)")
    for name in ("source", "license", "tags"):
        search.add_argument(
            f"--{name}", action="append", metavar="VALUE", help=f"only references of this {name}"
        )
    search.set_defaults(command=shelf.index_search)
    for one in (build, search):
        one.add_argument("--embedding-model", default=DEFAULT_MODEL)


def _add_dedup(dedup: argparse.ArgumentParser) -> None:
    dedup.add_argument("file", metavar="FILE", help="rows of any shape that `run` reads")
    dedup.add_argument("out", metavar="OUT", type=Path, help="a .jsonl or .parquet file")
    dedup.add_argument(
        "--threshold", type=_share, default=0.7, help="ROUGE-L F1 of instructions (default: 0.7)"
    )
    dedup.add_argument(
        "--embedding-threshold", type=_share, help="cosine over which a row is dropped as well"
    )
    dedup.add_argument("--embedding-model", default=DEFAULT_MODEL)
    dedup.add_argument("--skip-bad-lines", action="store_true", help="leave out what is no JSON")
    dedup.set_defaults(command=shelf.dedup)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not over 0 and at most 1")
    return value


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 2 bad input, 3 short, 4 stopped, 130 interrupted."""
    given = build_parser().parse_args(arguments)
    flags = {k: v for k, v in vars(given).items() if k in Settings.model_fields}
    try:
        sys.exit(given.command(given, flags))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        status = _status_of(error)
        if status is None:
            raise
        sys.stderr.write(f"refloom: {_one_line(error)}\n")
        sys.exit(status)


def _status_of(error: Exception) -> int | None:
    """The exit status of an error a person can do something about; None for a fault of ours."""
    from memory.references import IndexUnusable
    from memory.weights import WeightsUnavailable
    from nodes.llm import ProviderStopped
    from refloom.data.rows import BadFile
    from refloom.runs.budget import BudgetSpent
    from refloom.runs.lock import JournalUnusable
    from refloom.runs.seams import TooManyFailed

    if isinstance(error, ProviderStopped | WeightsUnavailable | BudgetSpent):
        return 4
    if isinstance(error, TooManyFailed):
        return 3
    bad = (
        BadFile
        | SettingsError
        | JournalUnusable
        | IndexUnusable
        | ValidationError
        | tomllib.TOMLDecodeError
    )
    return 2 if isinstance(error, bad | OSError) else None


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            return f"there is no setting {name!r}; `refloom run --help` lists them"
        if name.startswith("stages"):
            return f"{name} in the config file: {first['msg']}"
        flag, variable = name.replace("_", "-"), f"REFLOOM_{name.upper()}"
        return f"--{flag} ({name} in the config file, {variable}): {first['msg']}"
    return " ".join(str(error).split())
