"""The commands for people who review, and for who lets them in: review, key."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from refloom.cli.index import say
from refloom.errors import InputError

INSTALL = "the review page needs the extra 'serve': pip install 'refloom[serve]'"


def review(given: Namespace, flags: dict[str, Any]) -> int:
    """Serve the review page of a run until it is stopped; decisions go into its journal and files.

    Raises `InputError` where the page cannot be served, `JournalError` where there is no run.
    """
    try:
        import uvicorn

        from refloom.serve.review_app import review_app
    except ImportError as error:
        raise InputError(INSTALL) from error
    _check_keys(given)
    from refloom.runs.journal import check_run

    check_run(given.directory)
    app = review_app(given.directory)
    server = uvicorn.Server(
        uvicorn.Config(app, given.host, given.port, log_level="error", lifespan="on")
    )
    host = f"[{given.host}]" if ":" in given.host else given.host
    sys.stderr.write(
        f"review {given.directory} at http://{host}:{given.port}/review (Ctrl-C ends)\n"
    )
    try:
        server.run()
    except KeyboardInterrupt:
        return 0
    except SystemExit as error:
        raise InputError(
            f"--port {given.port}: it cannot be listened on; is another review open? Give --port"
        ) from error
    return 0


def _check_keys(given: Namespace) -> None:
    """Refuse to show the page to others without keys. Raises `InputError`."""
    from refloom.serve.api_keys import BadKeys, load_key_hashes, is_loopback

    try:
        keys = load_key_hashes()
    except BadKeys as error:
        raise InputError(str(error)) from error
    if not keys and not is_loopback(given.host):
        raise InputError(
            f"--host {given.host}: others would reach the page; set REFLOOM_API_KEYS first "
            "(`refloom key NAME` makes a key), or leave --host out"
        )


def key(given: Namespace, flags: dict[str, Any]) -> int:
    """Make a key for somebody; it is shown once and kept nowhere."""
    from refloom.serve.api_keys import create_key

    made, entry = create_key(given.name)
    say(f"{made}")
    sys.stderr.write(
        f"This is {given.name}'s key, shown once. Add its hash to REFLOOM_API_KEYS, by commas:\n"
        f"{entry}\n"
    )
    return 0
