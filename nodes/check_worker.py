"""A process that makes checks which may hang, crash or write: `python -m nodes.check_worker`.

It reads a request a line of JSON and writes a line for each. What the functions print goes nowhere.
It imports nothing of refloom until it needs it, so it is there at once.
"""

from __future__ import annotations

import faulthandler
import hashlib
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

# Seconds that importing the module of a function may take.
IMPORT_TIMEOUT_S = 60.0
MAX_REASON_CHARS = 1000
COMMAND = (sys.executable, "-m", "nodes.check_worker")


def environment() -> dict[str, str]:
    """The environment of the process: modules are found where this process finds them, and here."""
    path = os.pathsep.join([os.getcwd(), *(p for p in sys.path if p)])
    return {**os.environ, "PYTHONPATH": path}


def find_in_new_process(name: str) -> str | None:
    """Why there is no function `module:function`; None if there is. Blocks."""
    request = json.dumps({"load": name}) + "\n"
    try:
        ended = subprocess.run(
            COMMAND,
            input=request.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=IMPORT_TIMEOUT_S,
            env=environment(),
            check=False,
        )
        answer = json.loads(ended.stdout or b"{}")
    except subprocess.TimeoutExpired:
        return f"{name}: importing its module takes over {IMPORT_TIMEOUT_S:.0f} s"
    except ValueError:
        answer = {}
    if "source" in answer:
        return None
    return str(answer.get("error") or f"{name}: importing its module ended the process")


def load(name: str) -> Callable[..., Any]:
    """The function `module:function`. Raises `LookupError`, which says what is missing."""
    module_name, _, function = name.partition(":")
    try:
        target = getattr(importlib.import_module(module_name), function, None)
    except ModuleNotFoundError as error:
        raise LookupError(f"there is no module {error.name!r}") from error
    except BaseException as error:
        raise LookupError(
            f"the module {module_name!r} cannot be imported: {first_line(error)}"
        ) from error
    if not callable(target):
        raise LookupError(f"there is no function {function!r} in {module_name!r}")
    return cast(Callable[..., Any], target)


def hash_source(function: Callable[..., Any]) -> str:
    """A hash of the file that a function is in, or of what is known of it."""
    try:
        data = Path(inspect.getsourcefile(function) or "").read_bytes()
    except (OSError, TypeError):
        data = repr(
            (getattr(function, "__module__", ""), getattr(function, "__name__", ""))
        ).encode()
    return hashlib.sha256(data).hexdigest()


def first_line(error: BaseException) -> str:
    """An error's class and the first line of its message."""
    try:
        lines = str(error).splitlines()
    except Exception:  # noqa: BLE001 - the error is of the user's own kind
        lines = []
    name = type(error).__name__
    return f"{name}: {lines[0]}"[:MAX_REASON_CHARS] if lines else name


def decide(request: dict[str, Any]) -> dict[str, str]:
    """The outcome of a request, and its reason."""
    kind, _, argument = request["check"].partition(":")
    if kind == "regex":
        import re

        match = re.search(argument, request["response"])
        return _passed() if match else _failed(f"Nothing in it matches {argument[:200]}.")
    if kind == "json_schema":
        return _fit_schema(request)
    if kind == "math":
        return _compare_answers(request)
    why = load(request["check"])(request["response"], request["instruction"], request["reference"])
    if why is None:
        return _passed()
    if not isinstance(why, str):
        kind = type(why).__name__
        return {"outcome": "unknown", "reason": f"it returned {kind}, neither None nor a text"}
    return _failed(why[: 4 * MAX_REASON_CHARS].strip() or "It fails.")


def _passed() -> dict[str, str]:
    return {"outcome": "pass", "reason": ""}


def _failed(why: str) -> dict[str, str]:
    return {"outcome": "fail", "reason": why[:MAX_REASON_CHARS]}


def _fit_schema(request: dict[str, Any]) -> dict[str, str]:
    from nodes.checks import parse_json
    from nodes.json_schema import find_fault

    try:
        value = parse_json(request["response"])
    except ValueError as error:
        return _failed(f"It is not valid JSON: {error}.")
    why = find_fault(request["source"], value)
    return _passed() if why is None else _failed(why)


def _compare_answers(request: dict[str, Any]) -> dict[str, str]:
    from nodes.checks import NotApplicable, describe_answers, find_answers
    from nodes.final_answer import is_same_answer, is_same_expression

    references = [request["reference"]] if request["reference"] else []
    try:
        wanted, final = find_answers(request["response"], request["instruction"], references)
    except NotApplicable as reason:
        return {"outcome": "not_applicable", "reason": str(reason)}
    same = is_same_answer(final, wanted) or (final and is_same_expression(final, wanted))
    return _passed() if same else _failed(describe_answers(final, wanted))


def answer(request: dict[str, Any]) -> dict[str, str]:
    """The answer to a request; whatever a function raises is unknown."""
    try:
        if "load" in request:
            return {"source": hash_source(load(request["load"]))}
        return decide(request)
    except LookupError as error:
        return {"outcome": "unknown", "reason": first_line(error), "error": str(error.args[0])}
    except BaseException as error:  # noqa: BLE001 - a function that leaves does not end the process
        return {"outcome": "unknown", "reason": first_line(error)}


def serve() -> None:
    """Answer requests until there are no more."""
    # What functions print or read must not mix with requests and answers.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    for line in requests:
        request = json.loads(line)
        # For a time when nobody is there any more to end it.
        faulthandler.dump_traceback_later(2 * request.get("seconds", IMPORT_TIMEOUT_S), exit=True)
        text = json.dumps(answer(request))
        faulthandler.cancel_dump_traceback_later()
        answers.write(text.encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    serve()
