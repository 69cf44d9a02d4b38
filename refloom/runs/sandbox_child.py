"""A child that runs a program shut in: `python -I -S sandbox_child.py FOLDER ID PREFIX SECONDS`.

It reads the program from its input and writes JSON: `{"why": null}` if the program came to its end,
`{"why": ".."}` if it failed, `{"obstacle": ".."}` if it could not be shut in and so was not run. It
imports the standard library alone.

What is shut in: the program has namespaces of its own for processes, network, mounts and messages.
It sees no network, no other process, and no files but Python's and the system's libraries, all
read-only, and an empty folder in memory. It has no environment, no privileges, and limits on time,
memory, processes and the size of files. As root it becomes a user that nobody else is.

What is not: bugs of the kernel; the load of a few processes for a few seconds; and the program can
see what libraries and which kernel the machine has.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
import types

LIMITS = {
    "CPU": 8,
    "AS": 512 << 20,
    "FSIZE": 8 << 20,
    "NOFILE": 64,
    "NPROC": 8,
    "CORE": 0,
    "MEMLOCK": 0,
    "MSGQUEUE": 0,
}
FOLDER_BYTES = 32 << 20
MAX_REPORT_BYTES = 4096
# Where libraries are, beside Python's own.
LIBRARIES = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/nix/store")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT = 1, 2, 4, 32
MS_NOEXEC, MS_NOATIME, MS_NODIRATIME, MS_RELATIME = 8, 1024, 2048, 1 << 21
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
ST_RELATIME = 4096
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CAPABILITIES_V3 = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raise `OSError`, which names `what` failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str | None = None
) -> None:
    """Mount; texts or None."""
    values = [None if v is None else os.fsencode(v) for v in (source, target, kind, options)]
    check(libc.mount(*values[:3], ctypes.c_ulong(flags), values[3]), f"mount {target}")


def enter_namespaces(as_root: bool) -> None:
    """Enter namespaces of one's own; those of processes hold for the next child."""
    user, group = os.getuid(), os.getgid()
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    check(libc.unshare(flags if as_root else flags | CLONE_NEWUSER), "unshare")
    if not as_root:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def build_root(folder: str, prefix: str) -> None:
    """Make a root of libraries, devices and an empty folder, and go there."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    options = f"size={FOLDER_BYTES},nr_inodes=4096,mode=755"
    mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, options)
    places = [path for path in LIBRARIES if os.path.exists(path)]
    for python in dict.fromkeys((prefix, os.path.realpath(prefix))):
        if not any(f"{python}/".startswith(f"{place}/") for place in places):
            places.append(python)
    for path in (*places, *DEVICES):
        target = folder + path
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
        elif os.path.isdir(path):
            os.mkdir(target, 0o755)
            bind(path, target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
            mount(path, target, None, MS_BIND)
    os.mkdir(f"{folder}/tmp", 0o1777)
    os.chmod(f"{folder}/tmp", 0o1777)
    os.chroot(folder)
    os.chdir("/tmp")


def bind(path: str, target: str) -> None:
    """Show a directory read-only; the flags it has already must stay."""
    mount(path, target, None, MS_BIND | MS_REC)
    has = os.statvfs(target).f_flag
    flags = has & (MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME)
    flags |= MS_RELATIME if has & ST_RELATIME else 0
    mount(None, target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | flags)


def set_limits() -> None:
    """Limit time, memory, processes, files."""
    for name, most in LIMITS.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def drop_privileges(as_root: bool, user: int) -> None:
    """Become a user that nobody else is, or lose what one had in the namespace; for good."""
    if as_root:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    else:
        header = (ctypes.c_uint32 * 2)(CAPABILITIES_V3, 0)
        check(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    if os.getuid() == 0 or os.geteuid() == 0:
        raise OSError("the child would run as root")


def describe(error: BaseException) -> str:
    """An error's class, the first line of its message, and its line in the program."""
    lines = str(error).splitlines()
    line: int | None = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<program>":
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        line, lines = error.lineno, [error.msg]
    cause = f": {lines[0][:300]}" if lines else ""
    return f"{type(error).__name__}{cause}" + (f" (line {line} of its code)" if line else "")


def run_program(program: str, report: int) -> None:
    """Run a program to its end, and write to the file `report` how it ended."""
    why = None
    try:
        code = compile(program, "<program>", "exec", dont_inherit=True)
        sys.argv, sys.modules["__main__"] = ["program"], (module := types.ModuleType("__main__"))
        os.environ.clear()
        exec(code, module.__dict__)
    except SystemExit as left:
        why = None if not left.code else f"it leaves with {str(left.code)[:100]}"
    except BaseException as error:  # noqa: BLE001 - whatever it raises is why it fails
        why = describe(error)
    os.write(report, json.dumps({"why": why}).encode()[:MAX_REPORT_BYTES])


def be_shut_in(
    folder: str, user: int, prefix: str, as_root: bool, program: str, report: int
) -> None:
    """Be the first process of the new namespaces: shut oneself in, and run the program."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        build_root(folder, prefix)
        set_limits()
        drop_privileges(as_root, user)
    except OSError as error:
        os.write(report, json.dumps({"obstacle": str(error)}).encode()[:MAX_REPORT_BYTES])
        return
    # Dropping privileges has undone it.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    nowhere = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    os.write(report, b"\n")
    run_program(program, report)


def wait_for(child: int, report: int, seconds: float) -> dict[str, str | None]:
    """What the first process reports, or why it ended without; it and all others are ended."""
    output, end = b"", time.monotonic() + seconds
    while len(output) <= MAX_REPORT_BYTES:
        readable, _, _ = select.select([report], [], [], max(end - time.monotonic(), 0))
        part = os.read(report, MAX_REPORT_BYTES) if readable else b""
        if not part:
            break
        output += part
        if output.count(b"\n") and output.split(b"\n", 1)[1]:
            break
    ended = not readable
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    begun, _, rest = output.partition(b"\n")
    try:
        result: dict[str, str | None] = json.loads(rest or begun)
    except ValueError:
        # No report came, or half of one: how the child ended says why.
        return _describe_end(output, ended, status, seconds)
    return result


def _describe_end(output: bytes, ended: bool, status: int, seconds: float) -> dict[str, str | None]:
    """Why a child that did not report has ended."""
    if not output:
        return {"obstacle": "the child ended before it was shut in"}
    if ended:
        return {"why": f"it does not end in {seconds:.0f} s"}
    if os.WIFSIGNALED(status):
        return {"why": f"it was ended by {signal.Signals(os.WTERMSIG(status)).name}"}
    return {"why": "it ended before its last line"}


def main() -> None:
    """Shut a child in, have it run the program, and say how that ended."""
    folder, user, prefix, seconds = sys.argv[1:]
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    program = sys.stdin.buffer.read().decode()
    as_root = os.geteuid() == 0
    reading, writing = os.pipe()
    try:
        enter_namespaces(as_root)
        child = os.fork()
    except OSError as error:
        sys.stdout.write(json.dumps({"obstacle": str(error)}))
        return
    if child == 0:
        os.close(reading)
        try:
            be_shut_in(folder, int(user), prefix, as_root, program, writing)
        finally:
            os._exit(0)
    os.close(writing)
    sys.stdout.write(json.dumps(wait_for(child, reading, float(seconds))))


if __name__ == "__main__":
    main()
