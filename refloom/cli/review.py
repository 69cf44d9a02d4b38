"""The commands `review` and `key`: the review page, and the keys of those who may use it."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from refloom.cli.options import add_json, port, print_json, print_line, user_name
from refloom.errors import InputError

MAX_REASONS = 30
MAX_REASON_LENGTH = 300
NEEDS_SERVE = "the review page needs the extra 'serve': pip install 'refloom[serve]'"


def add_commands(add: Any) -> None:
    """Add the commands of this module to the parser."""
    parser = add("review")
    parser.add_argument("directory", type=Path, metavar="DIR", help="run directory")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    parser.add_argument("--port", type=port, default=2025, help="default: 2025")
    parser.add_argument(
        "--reviewer",
        type=user_name,
        metavar="NAME",
        help="who stands with the decisions, unless an API key says it",
    )
    parser.add_argument(
        "--reasons",
        type=Path,
        metavar="FILE",
        help="reasons for a rejection, one a line: the first nine are on the keys 1 to 9",
    )
    parser.set_defaults(command=review)

    parser = add("key")
    parser.add_argument("name", type=user_name, metavar="NAME", help="letters, digits and _ . @ -")
    add_json(parser)
    parser.set_defaults(command=key)


def review(args: Namespace, flags: dict[str, Any]) -> int:
    """Serve the review page of a run until stopped; decisions go to its journal and files.

    Raises `InputError` if the page cannot be served, `JournalError` if there is no run.
    """
    try:
        import uvicorn

        from refloom.serve.review_app import DEFAULT_REASONS, review_app
    except ImportError as error:
        raise InputError(NEEDS_SERVE) from error
    _check_keys(args.host)
    reasons = DEFAULT_REASONS if args.reasons is None else read_reasons(args.reasons)
    from refloom.runs.journal import check_run

    check_run(args.directory)
    app = review_app(args.directory, args.reviewer, reasons)
    server = uvicorn.Server(
        uvicorn.Config(app, args.host, args.port, log_level="error", lifespan="on")
    )
    host = f"[{args.host}]" if ":" in args.host else args.host
    sys.stderr.write(f"review {args.directory} at http://{host}:{args.port}/review (Ctrl-C ends)\n")
    try:
        server.run()
    except KeyboardInterrupt:
        return 0
    except SystemExit as error:
        raise InputError(
            f"--port {args.port} cannot be used; is another review open? Give another --port"
        ) from error
    return 0


def read_reasons(path: Path) -> list[str]:
    """The reasons in a file, one a line; empty lines do not count. Raises `InputError`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--reasons {path}: cannot be read ({error})") from error
    reasons = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not reasons or len(reasons) > MAX_REASONS:
        raise InputError(
            f"--reasons {path}: has {len(reasons)} reasons; one a line, 1 to {MAX_REASONS}"
        )
    for reason in reasons:
        if len(reason) > MAX_REASON_LENGTH:
            raise InputError(
                f"--reasons {path}: {reason[:40]!r}... is over {MAX_REASON_LENGTH} characters"
            )
    return reasons


def _check_keys(host: str) -> None:
    """Refuse to show the page to other machines without keys. Raises `InputError`."""
    from refloom.serve.api_keys import BadKeys, is_loopback, load_key_hashes

    try:
        keys = load_key_hashes()
    except BadKeys as error:
        raise InputError(str(error)) from error
    if not keys and not is_loopback(host):
        raise InputError(
            f"--host {host}: other machines could open the page; set REFLOOM_API_KEYS first "
            "(`refloom key NAME` makes a key), or leave --host out"
        )


def key(args: Namespace, flags: dict[str, Any]) -> int:
    """Make a key for a user; it is shown once and stored nowhere."""
    from refloom.serve.api_keys import create_key

    secret, entry = create_key(args.name)
    if args.json:
        print_json({"key": secret, "hash": entry})
        return 0
    print_line(secret)
    sys.stderr.write(
        f"This is {args.name}'s key, shown once. Add its hash to REFLOOM_API_KEYS, separated by "
        f"commas:\n{entry}\n"
    )
    return 0
