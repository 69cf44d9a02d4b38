"""The command line: `refloom` and `python -m refloom`.

Each module of this package holds a group of commands: their flags beside what they do. A command
takes the parsed arguments and the settings among them, and returns its exit status.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic_settings import SettingsError

from refloom import __version__
from refloom.cli import criteria, doctor, evaluate, export, index, review, run, score
from refloom.cli.options import print_line
from refloom.cli.parser import CommandParser, completion_script
from refloom.errors import RefloomError
from refloom.runs.garbage_collection import relax_gc_for_process
from refloom.settings import Settings

EXAMPLES = """
examples:
  refloom demo                                       see it work, without a key
  refloom run --references pairs.jsonl --out rows    each reference is a seed
  refloom run --references pairs.jsonl --seeds topics.txt --out rows \\
      --model gpt-4o-mini --target 1000              until 1000 rows are accepted
  refloom status rows
  refloom export rows train.jsonl --format messages
"""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 2 bad input, 3 short, 4 stopped, 130 interrupted."""
    parser = build_parser()
    given = sys.argv[1:] if arguments is None else arguments
    if not given:
        parser.print_help()
        sys.exit(0)
    parser.check_names(given)
    args = parser.parse_args(given, argparse.Namespace(given=given))
    flags = {k: v for k, v in vars(args).items() if k in Settings.model_fields}
    relax_gc_for_process()
    try:
        sys.exit(args.command(args, flags))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        status = _exit_status(error)
        if status is None:
            raise
        sys.stderr.write(f"refloom: {_one_line(error)}\n")
        sys.exit(status)


def build_parser() -> CommandParser:
    """The parser of all commands; the flags of `run` are the fields of `Settings`."""
    parser = CommandParser(
        prog="refloom",
        description="Make instruction-tuning data by reference-level feedback.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"refloom {__version__}")
    add = parser.add_subparsers(title="commands", metavar="", required=True).add_parser
    for group in (run, criteria, doctor, evaluate, score, export, review, index):
        group.add_commands(add)
    completion = add("completion", help="print a script that completes commands in bash and zsh")
    completion.set_defaults(command=print_completion)
    return parser


def print_completion(args: argparse.Namespace, flags: dict[str, Any]) -> int:
    """Print the script of the shell's completion: `eval "$(refloom completion)"`."""
    print_line(completion_script(build_parser()))
    return 0


def _exit_status(error: Exception) -> int | None:
    """The exit status of an error the user can do something about; None for a bug."""
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
    """The error's message in one line; a setting that is wrong is named as a user would set it."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
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
