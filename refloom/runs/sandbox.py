"""Running what a model wrote, shut in: no network, no files but Python's own, and limits.

Linux only, by its namespaces; where they cannot be had, nothing is run. The child is in
`refloom.runs.sandbox_child`, which says what is shut in and what is not.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from random import randint

# A longer program is not run.
MAX_PROGRAM_CHARS = 200_000
# Seconds that a program may take.
PROGRAM_TIMEOUT_S = 10.0
# Seconds after which a child that has not ended by itself is ended.
END_S = PROGRAM_TIMEOUT_S + 10.0
FOLDER_PREFIX = "refloom-code-"
# Ids of users that no system gives out, so that limits on processes count only the child's own.
UNUSED_IDS = (1_600_000_000, 1_999_999_999)


async def run_in_sandbox(program: str) -> str | None:
    """Run a program: None if it comes to its end, else why not.

    Raises `OSError` if it cannot be shut in; then it has not run.
    """
    if len(program) > MAX_PROGRAM_CHARS:
        return f"it has over {MAX_PROGRAM_CHARS} characters"
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder:
        process = await asyncio.create_subprocess_exec(
            *_command(folder),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            cwd="/",
        )
        try:
            async with asyncio.timeout(END_S):
                said, _ = await process.communicate(program.encode("utf-8", "replace"))
        except TimeoutError:
            return f"it does not end in {END_S:.0f} s"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    return _read_answer(said)


@cache
def find_obstacle() -> str | None:
    """Why programs cannot be shut in on this machine; None if they can. Blocks."""
    if sys.platform != "linux":
        return "it takes Linux"
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder:
        try:
            ended = subprocess.run(
                _command(folder),
                input=b"import json, random, re\nassert json.loads('1') == 1\n",
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                timeout=END_S,
                check=False,
            )
            why = _read_answer(ended.stdout)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return None if why is None else f"a trial failed: {why}"


def _command(folder: str) -> list[str]:
    child = str(Path(__file__).resolve().with_name("sandbox_child.py"))
    user, seconds = str(randint(*UNUSED_IDS)), str(PROGRAM_TIMEOUT_S)
    return [sys.executable, "-I", "-S", child, folder, user, sys.base_prefix, seconds]


def _read_answer(said: bytes) -> str | None:
    """Why a program failed, as the child says. Raises `OSError` if it was not run."""
    try:
        answer = json.loads(said)
    except ValueError:
        answer = {"obstacle": "the child that shuts it in ended"}
    if "obstacle" in answer:
        raise OSError(str(answer["obstacle"]))
    why = answer["why"]
    return None if why is None else str(why)
