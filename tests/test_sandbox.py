"""What a model wrote, run shut in: what it cannot do, as root and as somebody else."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from refloom.runs import sandbox, sandbox_child

OBSTACLE = sandbox.find_obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=f"no sandbox here: {OBSTACLE}")
SECONDS = 2.0
# Run by root: becomes another user before it does anything. What a program imports is imported
# first, since Python's own files need not be readable for that user.
AS_ANOTHER = """
import __future__, encodings.idna, ctypes, json, os, resource, select, signal, socket
import subprocess, sys, time, types
source = open(sys.argv[0]).read()
os.setgroups([]); os.setresgid(23456, 23456, 23456); os.setresuid(23456, 23456, 23456)
# Its files in /proc are its own again.
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
exec(compile(source, "child", "exec"), {"__name__": "__main__"})
"""

Run = Callable[[str], Awaitable[str | None]]


async def run_as_oneself(program: str) -> str | None:
    return await sandbox.run_in_sandbox(program)


def another_user(folder: Path) -> Run:
    async def run(program: str) -> str | None:
        os.chown(folder, 23456, 23456)
        child = sandbox_child.__file__
        start = f"import sys; sys.argv = [{child!r}, *sys.argv[1:]]\n{AS_ANOTHER}"
        ended = subprocess.run(
            [sys.executable, "-I", "-S", "-c", start, folder, "0", "/usr", str(SECONDS)],
            input=program.encode(),
            capture_output=True,
            env={},
            timeout=30,
            check=False,
        )
        assert not ended.stderr, ended.stderr.decode()
        said = json.loads(ended.stdout)
        assert "obstacle" not in said, said
        why: str | None = said["why"]
        return why

    return run


@pytest.fixture(params=["oneself", "another"])
def run(request, tmp_path_factory, monkeypatch) -> Run:
    monkeypatch.setattr(sandbox, "PROGRAM_TIMEOUT_S", SECONDS)
    if request.param == "oneself":
        return run_as_oneself
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    folder = Path("/tmp") / f"refloom-sandbox-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    request.addfinalizer(folder.rmdir)
    return another_user(folder)


async def test_a_program_comes_to_its_end_or_says_why_not(run):
    assert await run("def f(x):\n    return 2 * x\nassert f(2) == 4") is None
    assert await run("print('much ' * 1000)\nraise SystemExit") is None
    for program, why in (
        ("assert 1 == 2, 'one is not two'", "AssertionError: one is not two (line 1 of its code)"),
        ("x = 1\nx +\n", "SyntaxError: invalid syntax (line 2 of its code)"),
        ("raise SystemExit(3)", "it leaves with 3"),
        ("import os\nos._exit(0)", "it ended before its last line"),
        ("def f():\n    f()\nf()", "RecursionError"),
    ):
        said = await run(program)
        assert said is not None
        assert said.startswith(why)


async def test_it_reaches_no_network(run):
    for address in ("('127.0.0.1', 9)", "('192.0.2.1', 53)"):
        said = await run(f"import socket\nsocket.create_connection({address}, 1)")
        assert said is not None
        assert "Network is unreachable" in said


async def test_an_endless_loop_is_ended(run):
    for program in ("while True:\n    pass", "import time\ntime.sleep(60)"):
        assert await run(program) == "it does not end in 2 s"


# The limit holds for the namespace of processes that the program has to itself.
BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
COUNT = """
import os, time
number = 0
try:
    while number < 100:
        if os.fork() == 0:
            time.sleep(30)
        number += 1
except OSError:
    pass
raise SystemExit(f"{number} children")
"""


async def test_a_fork_bomb_stays_small_and_ends_whole(run):
    before = count_processes()
    said = await run(COUNT)
    assert said is not None
    number = int(said.split()[3])
    assert 0 < number < sandbox_child.LIMITS["NPROC"]
    assert await run(BOMB) == "it does not end in 2 s"
    # Other tests have programs of their own at the same time.
    async with asyncio.timeout(20):
        while count_processes() > before:
            await asyncio.sleep(0.1)


def count_processes() -> int:
    """The processes that have the child in their command."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found += b"sandbox_child" in (entry / "cmdline").read_bytes()
            except OSError:
                # It has ended meanwhile.
                continue
    return found


async def test_it_fills_neither_memory_nor_disk(run):
    for program, why in (
        ("x = bytearray(1 << 30)", "MemoryError"),
        ("open('x', 'wb').write(bytes(100 << 20))", "File too large"),
        ("for i in range(50):\n    open(f'x{i}', 'wb').write(bytes(7 << 20))", "No space left"),
    ):
        said = await run(program)
        assert said is not None
        assert why in said


async def test_it_sees_no_files_but_pythons_and_changes_none(run, tmp_path):
    home = Path.home()
    secret = tmp_path / "secret"
    secret.write_text("secret", encoding="utf-8")
    secret.chmod(0o644)
    for program, why in (
        (f"open({str(secret)!r}).read()", "FileNotFoundError"),
        ("open('/etc/passwd').read()", "FileNotFoundError"),
        ("open('/proc/1/environ').read()", "FileNotFoundError"),
        ("open('/usr/x', 'w')", "Read-only"),
        ("import os\nassert os.listdir('.') == [], os.listdir('.')", None),
        ("import os\nassert not os.environ", None),
        (f"import os\nassert not os.path.exists({str(home / '.bashrc')!r})", None),
    ):
        said = await run(program)
        assert (said is None) == (why is None), said
        assert why is None or why in (said or "")


async def test_it_is_nobody_and_stays_so(run):
    said = await run("import os\nraise SystemExit(f'{os.getuid()} {os.getpid()}')")
    assert said is not None
    user, process = said.split()[-2:]
    assert user != "0"
    assert process == "1"
    # No new namespace, in which it would be privileged again.
    assert (
        await run(
            "import ctypes\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "assert libc.unshare(0x10000000) == -1\n"
            "assert libc.setresuid(0, 0, 0) == -1\n"
            "assert libc.chroot(b'/') == -1\n"
        )
        is None
    )


async def test_a_program_that_is_too_long_is_not_run():
    said = await sandbox.run_in_sandbox("#" * (sandbox.MAX_PROGRAM_CHARS + 1))
    assert said == "it has over 200000 characters"
