"""The command line: `refloom` and `python -m refloom`."""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic_settings import SettingsError

from refloom import __version__, arguments, commands, measuring, shelf
from refloom.errors import RefloomError
from refloom.runs.garbage_collection import seldom_in_this_process
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

    _add_making(add)
    _add_measuring(add)
    _add_rest(add)
    return parser


def _add_making(add: Any) -> None:
    demo = add("demo", help="make rows on the embedded model from the bundled references")
    demo.add_argument("--out", type=Path, default=Path("demo-run"), metavar="DIR")
    demo.add_argument("--all", action="store_true", help="all 12 seeds, not the first 4")
    demo.set_defaults(command=commands.demo)
    arguments.add_run(add("run", help="make rows from your references", allow_abbrev=False))

    status = add("status", help="say how a run stands")
    status.add_argument("directory", type=Path, metavar="DIR")
    status.add_argument("--json", action="store_true", help="everything, as JSON")
    status.set_defaults(command=commands.status)


def _add_measuring(add: Any) -> None:
    measuring.add_report(add("report", help="write a page of figures and samples of runs"))
    asked = add("compare", help="judge the responses of runs against each other")
    arguments.add_asking(asked)
    measuring.add_compare(asked)
    asked = add("judge-check", help="say how far the judge of a run is to be trusted")
    arguments.add_asking(asked)
    measuring.add_judge_check(asked)
    tried = add(
        "experiment", help="compare ways of feedback on the same drafts", allow_abbrev=False
    )
    arguments.add_experiment(tried)


def _add_rest(add: Any) -> None:
    arguments.add_export(add("export", help="write a run's accepted rows as training data"))
    arguments.add_review(add("review", help="accept, edit or reject samples of a run in a browser"))
    arguments.add_key(add("key", help="make a key for a user of the server or the review page"))
    arguments.add_push(add("push", help="publish a run's rows and card on the Hugging Face hub"))
    arguments.add_dedup(add("dedup", help="write a file without its near-duplicates"))
    arguments.add_index(add("index", help="build or search an index of references"))

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
