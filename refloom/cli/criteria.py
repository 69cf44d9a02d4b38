"""The command `criteria`: trying a file of one's own criteria before a run."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from pathlib import Path
from typing import Any

from refloom.cli.options import (
    add_json,
    add_setting,
    add_skip_bad_lines,
    print_result,
    warn_of_skipped_rows,
)
from refloom.data.read import read_references
from refloom.settings import JUDGE_SETTINGS, load_settings


def add_commands(add: Any) -> None:
    """Add the command of this module to the parser."""
    parser = add("criteria")
    parser.add_argument("file", type=Path, metavar="FILE", help="criteria, .toml or .jsonl")
    parser.add_argument(
        "--references", required=True, metavar="FILE", help="curated pairs, as for `run`"
    )
    add_json(parser)
    add_skip_bad_lines(parser)
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
    print_result(checked, format_check, as_json=args.json)
    return 0
