"""The command `doctor`: what an endpoint and its models can do."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from nodes.context import is_embedded
from refloom.cli.options import add_json, add_setting, print_json, print_line
from refloom.settings import load_settings

if TYPE_CHECKING:
    from refloom.runs.doctor import DoctorReport, ModelReport

EXIT_UNFIT = 4
WORDS = {True: "yes", False: "no", None: "not found out"}


def add_commands(add: Any) -> None:
    """Add the command of this module to the parser."""
    parser = add("doctor")
    for name in ("model", "judge_model", "base_url", "judge_base_url", "prices"):
        add_setting(parser, name)
    add_json(parser)
    parser.set_defaults(command=doctor)


def doctor(args: Namespace, flags: dict[str, Any]) -> int:
    """Examine the models, and say which flags suit them. Returns 0 if a run can use them."""
    from refloom.runs.doctor import examine

    report = asyncio.run(examine(load_settings(flags, calls="all")))
    if args.json:
        print_json(report.to_dict())
    else:
        _print_report(report)
    return 0 if report.fit else EXIT_UNFIT


def _print_report(report: DoctorReport) -> None:
    for found in report.models:
        place = f"at {found.base_url or 'the default address'}"
        if is_embedded(found.model):
            place = "in this process"
        print_line(f"{found.role} {found.model} {place}")
        for name, value in _describe(found):
            print_line(f"  {name:16} {value}")
    if report.error:
        print_line(f"trouble: {report.error}")
    for entry in report.advice:
        print_line(f"advice: {entry['flag']} {entry['value']}  ({entry['why']})")
    verdict = "fit for a run" if report.fit else "not fit for a run"
    print_line(f"{verdict}; {report.calls} calls, {report.seconds:.1f} s")


def _describe(found: ModelReport) -> list[tuple[str, str]]:
    modes = ", ".join(f"{mode} {WORDS[ok]}" for mode, ok in found.modes.items())
    thinking = "no" if found.known else WORDS[None]
    if found.thinking:
        where = {"field": "in a field of its own", "content": "in the answer", "hidden": "hidden"}
        thinking = f"{where[found.thinking['where']]}, {found.thinking['tokens']} tokens"
    seconds = [f"{s} s with {n} in flight" for n, s in found.latency_s.items() if s is not None]
    price = found.price and f"${found.price['input']} in, ${found.price['output']} out a million"
    return [
        ("reachable", WORDS[found.reachable]),
        ("key", WORDS[found.key]),
        ("model known", WORDS[found.known]),
        ("structured", f"{found.mode or 'none'} ({modes})"),
        ("log-probabilities", WORDS[found.logprobs]),
        ("seed", WORDS[found.seed]),
        ("thinking", thinking),
        ("window", f"{found.window:,} tokens" if found.window else WORDS[None]),
        (
            "largest answer",
            f"{found.largest_answer:,} tokens" if found.largest_answer else WORDS[None],
        ),
        ("prompt cache", WORDS[found.cache]),
        ("latency", ", ".join(seconds) or WORDS[None]),
        ("pace", f"{found.tokens_per_s} tokens/s" if found.tokens_per_s else WORDS[None]),
        ("price", price or "not known"),
    ]
