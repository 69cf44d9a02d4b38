"""The command `criteria`: trying a file of one's own criteria before a run."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from pathlib import Path
from typing import Any

from refloom.cli.options import add_setting, print_json, print_line, warn_of_skipped_rows
from refloom.data.read import read_references
from refloom.settings import JUDGE_SETTINGS, load_settings


def add_commands(add: Any) -> None:
    """Add the command of this module to the parser."""
    parser = add("criteria")
    parser.add_argument("file", type=Path, metavar="FILE", help="criteria, .toml or .jsonl")
    parser.add_argument(
        "--references", required=True, metavar="FILE", help="curated pairs, as for `run`"
    )
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.add_argument(
        "--skip-bad-lines", action="store_true", help="count and skip lines that cannot be parsed"
    )
    group = parser.add_argument_group("settings")
    for name in ("model", *JUDGE_SETTINGS, "map", "turns", "memory"):
        add_setting(group, name)
    parser.set_defaults(command=criteria)


def criteria(args: Namespace, flags: dict[str, Any]) -> int:
    """Show how many references each criterion applies to, how many pass it, and what it catches."""
    from refloom.data.criteria import load_criteria
    from refloom.evaluation.own_criteria import check_criteria, format_check

    settings = load_settings(flags, calls="judge")
    own = load_criteria(args.file)
    references = read_references(args.references, settings, skip_bad_lines=args.skip_bad_lines)
    warn_of_skipped_rows(references.scan())
    checked = asyncio.run(check_criteria(own, references, settings))
    if args.json:
        print_json(checked)
    else:
        print_line(format_check(checked))
    return 0
