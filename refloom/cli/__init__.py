"""The command line: `refloom` and `python -m refloom`.

Each module of this package holds a group of commands: their flags beside what they do. A command
takes the parsed arguments and the settings among them, and returns its exit status. Only the module
of the command that is named is imported: pydantic alone takes ten times as long as Python's start.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from refloom import __version__
from refloom.cli.parser import CommandParser, completion_script
from refloom.errors import RefloomError

if TYPE_CHECKING:
    from pydantic import ValidationError

# The commands by the module that holds them, and what the help says of each.
COMMANDS = {
    "run": {
        "demo": "make rows on the embedded model from the bundled references",
        "run": "make rows from your references",
        "status": "show how a run stands",
    },
    "criteria": {"criteria": "try a file of your own criteria on references"},
    "doctor": {"doctor": "find out by a few small calls what an endpoint and a model can do"},
    "evaluate": {
        "report": "write an HTML page of figures and samples of runs",
        "compare": "judge the responses of runs against each other",
        "judge-check": "test how far the judge of a run can be trusted",
        "experiment": "compare feedback arms on the same drafts",
    },
    "score": {"score": "judge any responses by criteria, and give each a score"},
    "export": {
        "export": "write a run's accepted rows as training data",
        "push": "publish a run's rows and card on the Hugging Face hub",
    },
    "review": {
        "review": "accept, edit or reject samples of a run in a browser",
        "key": "make an API key for a user of the server or the review page",
    },
    "index": {
        "dedup": "write a file without its near-duplicates",
        "index": "build or search an index of references",
        "model": "the embedded model",
    },
}

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
    _open_missing_streams()
    given = sys.argv[1:] if arguments is None else arguments
    parser = build_parser(next((text for text in given if not text.startswith("-")), ""))
    if not given:
        parser.print_help()
        sys.exit(0)
    parser.check_names(given)
    args = parser.parse_args(given, argparse.Namespace(given=given))
    from refloom.runs.garbage_collection import relax_gc_for_process
    from refloom.settings import Settings

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


def _open_missing_streams() -> None:
    """Give a process that was started without stdin, stdout or stderr one that leads nowhere.

    Else the journal could get its number, and what libraries write there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest free number, which is the stream's own.
            number = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def build_parser(command: str | None = None) -> CommandParser:
    """The parser of all commands; with `command`, only that one and its module's have their flags.

    The flags of `run` are the fields of `Settings`.
    """
    parser = CommandParser(
        prog="refloom",
        description="Make instruction-tuning data by reference-level feedback.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"refloom {__version__}")
    add = parser.add_subparsers(title="commands", metavar="COMMAND", required=True).add_parser
    help_of = {name: text for group in COMMANDS.values() for name, text in group.items()}

    def add_with_help(name: str, **options: Any) -> CommandParser:
        return add(name, help=help_of[name], **options)

    for module, commands in COMMANDS.items():
        if command is None or command in commands:
            import_module(f"refloom.cli.{module}").add_commands(add_with_help)
        else:
            for name in commands:
                add_with_help(name)
    completion = add("completion", help="print a script that completes commands in bash and zsh")
    completion.set_defaults(command=print_completion)
    return parser


def print_completion(args: argparse.Namespace, flags: dict[str, Any]) -> int:
    """Print the script of the shell's completion: `eval "$(refloom completion)"`."""
    sys.stdout.write(completion_script(build_parser()) + "\n")
    return 0


def _exit_status(error: Exception) -> int | None:
    """The exit status of an error the user can do something about; None for a bug."""
    if isinstance(error, RefloomError):
        return error.exit_status
    import tomllib

    from pydantic import ValidationError
    from pydantic_settings import SettingsError

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
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return _describe_invalid(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _describe_invalid(error: ValidationError) -> str:
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
