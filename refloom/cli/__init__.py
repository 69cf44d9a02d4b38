"""The command line: `refloom` and `python -m refloom`."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsError

from memory.weights import DEFAULT_MODEL
from refloom import __version__
from refloom.cli import evaluate as experimenting
from refloom.cli import evaluate as measuring
from refloom.cli import export as choosing
from refloom.cli import export as publish
from refloom.cli import index as shelf
from refloom.cli import options as values
from refloom.cli import review as reviewing
from refloom.cli import run as commands
from refloom.data.export import FORMATS
from refloom.errors import RefloomError
from refloom.runs.garbage_collection import seldom_in_this_process
from refloom.settings import ASKING, Settings


# MERGED refloom~arguments
# The arguments of each command; those of `run` are the fields of `Settings`.
def add_run(run: argparse.ArgumentParser, without: Sequence[str] = ()) -> None:
    """Making rows: files, and every setting but those `without`."""
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
        if name != "stages" and name not in without:
            _add_setting(settings, name, field)
    run.set_defaults(command=commands.run)


def add_experiment(experiment: argparse.ArgumentParser) -> None:
    """Feedback arms: everything a run takes, and which arms."""
    # What an arm decides, or what cannot be compared.
    add_run(experiment, without=("feedback", "pipeline", "paired", "review"))
    experiment.add_argument(
        "--arms",
        required=True,
        metavar="A,B,..",
        help="of reference, sample, none, generic, swapped; each is compared with reference",
    )
    experiment.set_defaults(command=experimenting.experiment)


def add_asking(parser: argparse.ArgumentParser) -> None:
    """Who judges what is made already, and what that may cost; by default the run's own judge."""
    settings = parser.add_argument_group("judge (default: as in the run)")
    for name in ASKING:
        _add_setting(settings, name, Settings.model_fields[name])


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


def add_export(export: argparse.ArgumentParser) -> None:
    """Writing training data."""
    export.add_argument("directory", type=Path, metavar="DIR", help="a run's directory")
    export.add_argument("file", type=Path, metavar="FILE", help="a .jsonl or .parquet file")
    export.add_argument("--format", required=True, choices=tuple(FORMATS))
    _add_split(export, "which seeds go where, and in which order samples are chosen from")
    export.add_argument("--max-rows", type=values.count, metavar="N", help="the first N rows only")
    group = choosing.add_choosing(export)
    for name in choosing.SETTINGS:
        _add_setting(group, name, Settings.model_fields[name])
    export.set_defaults(command=publish.export)


def add_push(push: argparse.ArgumentParser) -> None:
    """Publishing a data set."""
    push.add_argument("directory", type=Path, metavar="DIR", help="a run's directory")
    push.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME on the hub")
    push.add_argument(
        "--format",
        action="append",
        choices=tuple(FORMATS),
        help="a format of the rows; may be given several times (default: messages)",
    )
    _add_split(push, "which seeds go where")
    push.add_argument("--public", action="store_true", help="for everybody (default: private)")
    push.add_argument(
        "--despite-contamination",
        action="store_true",
        help="publish although some samples held a benchmark's prompt",
    )
    push.add_argument("--dry-run", action="store_true", help="show the card, send nothing")
    push.set_defaults(command=publish.push)


def _add_split(parser: argparse.ArgumentParser, decides: str) -> None:
    parser.add_argument(
        "--split",
        type=publish.parts,
        metavar="NAME=SHARE,..",
        help="write parts, FILE-NAME each: train=0.95,validation=0.05; "
        "rows of one seed stay together",
    )
    parser.add_argument(
        "--random-seed", type=int, default=0, metavar="N", help=f"decides {decides}"
    )


def add_review(review: argparse.ArgumentParser) -> None:
    """The review page over a run."""
    review.add_argument("directory", type=Path, metavar="DIR", help="a run's directory")
    review.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    review.add_argument("--port", type=values.port, default=2025, help="default: 2025")
    review.set_defaults(command=reviewing.review)


def add_key(key: argparse.ArgumentParser) -> None:
    """Keys of the server."""
    key.add_argument("name", type=values.name, metavar="NAME", help="letters, digits and _ . @ -")
    key.set_defaults(command=reviewing.key)


def add_index(index: argparse.ArgumentParser) -> None:
    """Building and searching an index."""
    add = index.add_subparsers(metavar="", required=True).add_parser
    build = add("build", help="embed references and keep them")
    build.add_argument("file", metavar="FILE")
    build.add_argument("--out", required=True, type=Path, metavar="DIR")
    for name in ("map", "turns", "license"):
        _add_setting(build, name, Settings.model_fields[name])
    build.set_defaults(command=shelf.index_build)
    search = add("search", help="show what is found for a text")
    search.add_argument("directory", type=Path, metavar="DIR")
    search.add_argument("text", metavar="TEXT")
    search.add_argument("-k", type=values.count, default=3, help="how many (default: 3)")
    for name in ("source", "license", "tags"):
        search.add_argument(
            f"--{name}", action="append", metavar="VALUE", help=f"only references of this {name}"
        )
    search.set_defaults(command=shelf.index_search)
    for one in (build, search):
        one.add_argument("--embedding-model", default=DEFAULT_MODEL)


def add_dedup(dedup: argparse.ArgumentParser) -> None:
    """Leaving out near-duplicates of any file."""
    dedup.add_argument("file", metavar="FILE", help="rows of any shape that `run` reads")
    dedup.add_argument("out", metavar="OUT", type=Path, help="a .jsonl or .parquet file")
    dedup.add_argument(
        "--threshold",
        type=values.share,
        default=0.7,
        help="ROUGE-L F1 of instructions (default: 0.7)",
    )
    dedup.add_argument(
        "--embedding-threshold",
        type=values.share,
        help="cosine over which a row is dropped as well",
    )
    dedup.add_argument("--embedding-model", default=DEFAULT_MODEL)
    dedup.add_argument("--skip-bad-lines", action="store_true", help="leave out what is no JSON")
    dedup.set_defaults(command=shelf.dedup)


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

    _add_making(add)
    _add_measuring(add)
    _add_rest(add)
    return parser


def _add_making(add: Any) -> None:
    demo = add("demo", help="make rows on the embedded model from the bundled references")
    demo.add_argument("--out", type=Path, default=Path("demo-run"), metavar="DIR")
    demo.add_argument("--all", action="store_true", help="all 12 seeds, not the first 4")
    demo.set_defaults(command=commands.demo)
    add_run(add("run", help="make rows from your references", allow_abbrev=False))

    status = add("status", help="say how a run stands")
    status.add_argument("directory", type=Path, metavar="DIR")
    status.add_argument("--json", action="store_true", help="everything, as JSON")
    status.set_defaults(command=commands.status)


def _add_measuring(add: Any) -> None:
    measuring.add_report(add("report", help="write a page of figures and samples of runs"))
    asked = add("compare", help="judge the responses of runs against each other")
    add_asking(asked)
    measuring.add_compare(asked)
    asked = add("judge-check", help="say how far the judge of a run is to be trusted")
    add_asking(asked)
    measuring.add_judge_check(asked)
    tried = add(
        "experiment", help="compare ways of feedback on the same drafts", allow_abbrev=False
    )
    add_experiment(tried)


def _add_rest(add: Any) -> None:
    add_export(add("export", help="write a run's accepted rows as training data"))
    add_review(add("review", help="accept, edit or reject samples of a run in a browser"))
    add_key(add("key", help="make a key for a user of the server or the review page"))
    add_push(add("push", help="publish a run's rows and card on the Hugging Face hub"))
    add_dedup(add("dedup", help="write a file without its near-duplicates"))
    add_index(add("index", help="build or search an index of references"))

    model = add("model", help="the embedded model")
    pull = model.add_subparsers(metavar="", required=True).add_parser(
        "pull", help="fetch its weights (1.1 GB) into the cache"
    )
    pull.add_argument("--from-hub", action="store_true", help="from the publisher's own repository")
    pull.set_defaults(command=shelf.model_pull)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 2 bad input, 3 short, 4 stopped, 130 interrupted."""
    given = build_parser().parse_args(arguments)
    flags = {k: v for k, v in vars(given).items() if k in Settings.model_fields}
    seldom_in_this_process()
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
    if isinstance(error, RefloomError):
        return error.exit_status
    if isinstance(error, SettingsError | ValidationError | tomllib.TOMLDecodeError | OSError):
        return 2
    from memory.references import IndexUnusable
    from memory.weights import WeightsUnavailable
    from nodes.llm import ProviderStopped

    if isinstance(error, ProviderStopped | WeightsUnavailable):
        return 4
    return 2 if isinstance(error, IndexUnusable) else None


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        if not name:
            return str(first["msg"])
        if first["type"] == "extra_forbidden":
            return f"there is no setting {name!r}; `refloom run --help` lists them"
        if name.startswith("stages"):
            return f"{name} in the config file: {first['msg']}"
        flag, variable = name.replace("_", "-"), f"REFLOOM_{name.upper()}"
        return f"--{flag} ({name} in the config file, {variable}): {first['msg']}"
    return " ".join(str(error).split())
