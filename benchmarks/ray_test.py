"""Runs on Ray: the same rows with any number of workers, whoever is killed, and what it takes.

    python benchmarks/ray_test.py --endpoint http://127.0.0.1:8900/v1 --out DIR --part same|all

The endpoint answers a repeated prompt alike, GET /reset?latency_ms=N and GET /stats (requests,
span_s). `same` compares one process with 1, 2 and 3 workers. `worker`, `node`, `frozen` and
`driver` kill in mid-run: a worker, the second of two nodes on loopback (`frozen` stops it, as if
the network had lost it), and the run itself, which is begun again. `scale` compares one worker with
two, and counts processor time. The last line is JSON; the exit status is 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import kill_test
import psutil
from processes import ENDS, LONGEST_S, ended, lines_of, start, started, write_references

Given = argparse.Namespace
Figures = dict[str, Any]
Strike = Callable[[int], None] | None
PORT, QUICK_MS, SLOW_MS = 6399, 200, 1000
# Two workers do so much more at least; Ray's own agents look once a minute whether they are alone.
LEAST_RATIO, LINGER_S = 1.5, 90
PROPOSING = ("--per-seed", "2", "--references-per-seed", "1")
REJECTED = ("--per-seed", "2", "--references-per-seed", "2", "--concurrency", "16")
ANSWERING = ("--answer-seeds", "--no-try-criteria", "--references-per-seed", "1")
ON_RAY = ("--engine", "ray", "--workers")


def endpoint(args: Given, what: str = "stats") -> Figures:
    root = args.endpoint.rstrip("/").removesuffix("/v1")
    with urllib.request.urlopen(f"{root}/{what}", timeout=30) as reply:
        return dict(json.load(reply)) if what == "stats" else {}


def told(args: Given, name: str) -> Figures:
    report = json.loads((args.out / name / "killed" / "run.json").read_bytes())
    return {"counts": report["counts"], **report["calls"]}


def expect(args: Given, fulfilled: bool, problem: str) -> None:
    if not fulfilled:
        args.problems.append(problem)


def family(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it; none once it has ended."""
    with suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return []


def workers(of: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in of if one.is_running() and one.name().startswith("ray::WorkerActor")]


def cpu_s(pid: int, used: dict[psutil.Process, float]) -> float:
    """The processor time of a process and its descendants, those that have ended included."""
    for process in family(pid):
        with suppress(psutil.Error):
            used[process] = sum(process.cpu_times()[:2])
    return sum(used.values())


def run(
    args: Given, name: str, *flags: str, url: str | None = None, strike: Strike = None
) -> Figures:
    """Make a run as a process to its end; `strike` comes once a share of the calls was asked."""
    own = [f"--references={args.out / 'references.jsonl'}", f"--out={args.out / name / 'killed'}"]
    own += [f"--base-url={url or args.endpoint}", "--model=m", "--random-seed=5", "--quiet"]
    own += [f"--log-file={args.out / name}.log", f"--concurrency={args.concurrency}"]
    process = start([sys.executable, "-m", "refloom", "run", *own, *flags])
    cpu, at_start, used = 0.0, 0.0, dict[psutil.Process, float]()
    begun, struck = time.monotonic(), None
    while process.poll() is None and time.monotonic() - begun < LONGEST_S:
        calls = endpoint(args)["requests"]
        if strike is not None and struck is None and calls >= args.at * args.calls:
            struck = time.time()
            strike(process.pid)
        cpu = cpu_s(process.pid, used)
        at_start = at_start if calls else cpu
        time.sleep(0.02 if strike and struck is None else 0.4)
    status, output = ended(process, 30)
    good = ENDS if strike is None else (*ENDS, -signal.SIGKILL)
    expect(args, status in good, f"{name}: exit status {status}\n{output}")
    expect(args, strike is None or struck is not None, f"{name}: it ended before the strike")
    print(f"{name}: exit status {status} after {time.monotonic() - begun:.0f} s", flush=True)
    return {"struck": struck, "cpu_s": cpu - at_start}


def compare(args: Given, one: str, other: str) -> Figures:
    """How many rows two runs have, and how many are the same; what differs is a problem."""
    (args.out / other / "calm").symlink_to(args.out / one / "killed")
    rows, same = kill_test.compare(args.out / other, args.problems)
    a, b = told(args, one), told(args, other)
    expect(args, a["counts"] == b["counts"], f"{other}: {b['counts']}, not {a['counts']}")
    expect(args, a["paid"] == b["paid"], f"{other}: {b['paid']} calls paid, not {a['paid']}")
    return {"rows": rows, "same": same, "paid": b["paid"], "reused": b["reused"]}


def disturbed(args: Given, name: str, strike: Strike, *flags: str) -> Figures:
    """A run that is struck, and begun again if it was killed, against one that nobody disturbs."""
    if not args.calls:
        endpoint(args, f"reset?latency_ms={QUICK_MS}")
        run(args, "calm", *PROPOSING)
        args.calls = told(args, "calm")["paid"]
    endpoint(args, f"reset?latency_ms={QUICK_MS}")
    line = (*PROPOSING, *ON_RAY, "2", *flags)
    struck = run(args, name, *line, strike=strike)["struck"]
    if name == "driver":
        run(args, name, *line)
    figures = compare(args, "calm", name)
    extra = endpoint(args)["requests"] - figures["paid"]
    expect(args, 0 <= extra <= args.concurrency, f"{name}: {extra} calls were not paid for")
    lost = [e["time"] for e in lines_of(args.out / f"{name}.log") if e.get("state") == "lost"]
    noticed = [round(datetime.fromisoformat(at).timestamp() - struck, 2) for at in lost]
    return figures | {"extra": extra, "noticed_after_s": noticed}


def same(args: Given) -> Figures:
    """One process against 1, 2 and 3 workers, where samples are rejected and ideas collide."""
    figures: Figures = {}
    with started(args.out / "faulty.log", "--latency-ms", "20") as url:
        run(args, "alone", *REJECTED, url=url)
        for n in ("1", "2", "3"):
            run(args, n, *REJECTED, *ON_RAY, n, url=url)
            figures[n] = compare(args, "alone", n)
    return figures | {"counts": told(args, "alone")["counts"]}


def worker(args: Given) -> Figures:
    """Kill one worker of two."""
    return disturbed(args, "worker", lambda pid: workers(family(pid))[0].kill())


def driver(args: Given) -> Figures:
    """Kill the run, begin it again at once, and look what the killed one has left."""
    others: list[psutil.Process] = []

    def strike(pid: int) -> None:
        others.extend(family(pid))
        others.pop(0).kill()

    figures = disturbed(args, "driver", strike)
    left = workers(others) or psutil.wait_procs(others, timeout=LINGER_S)[1]
    expect(args, not left, f"driver: the run that was killed has left {left}")
    return figures


def node(args: Given, name: str = "node", sent: int = signal.SIGKILL) -> Figures:
    """Kill all processes of the second of two nodes, or stop them."""
    with cluster(args) as second:

        def strike(_: int) -> None:
            struck = family(second)
            expect(args, len(workers(struck)) == 1, f"{name}: no worker is on the second node")
            for process in struck:
                process.send_signal(sent)

        return disturbed(args, name, strike, "--ray-address", f"127.0.0.1:{PORT}")


@contextmanager
def cluster(args: Given) -> Iterator[int]:
    """Two nodes on loopback with a token of their own, ended afterwards; gives the second's pid."""
    folder = tempfile.mkdtemp(prefix="ray-test-", dir="/tmp")
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    first = f"--head --port={PORT} --temp-dir={folder} --include-dashboard=false"
    always = f"{Path(sys.executable).with_name('ray')} start --block --num-cpus=1"
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for n, flags in ((1, first), (2, f"--address=127.0.0.1:{PORT}")):
            line = f"{always} --disable-usage-stats --node-ip-address=127.0.0.{n} {flags}".split()
            with (args.out / f"node-{n}-{time.time():.0f}.log").open("w+b") as log:
                nodes.append(subprocess.Popen(line, stdout=log, stderr=log))
                while b"Ray runtime started" not in Path(log.name).read_bytes():
                    assert nodes[-1].poll() is None, f"a node did not start; see {log.name}"
                    time.sleep(0.2)
        yield nodes[1].pid
    finally:
        for process in [p for one in nodes for p in family(one.pid)]:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def scale(args: Given) -> Figures:
    """Calls a second and processor time a call, of one process, one worker and two."""
    figures: Figures = {}
    write_references(args.out / "references.jsonl", args.seeds * 10)
    for latency in (QUICK_MS, SLOW_MS):
        for n, at_once in ((0, 128), (1, 64), (2, 128)):
            name, more = f"{latency} ms {n}", (*ON_RAY, str(n)) if n else ()
            endpoint(args, f"reset?latency_ms={latency}")
            used = run(args, name, *ANSWERING, "--concurrency", str(at_once), *more)
            said, paid = endpoint(args), told(args, name)["paid"]
            expect(args, said["requests"] == paid, f"{name}: {said}, but {paid} calls paid")
            rate, ms = round(paid / said["span_s"], 1), round(used["cpu_s"] / paid * 1000, 2)
            figures[name] = {"calls_per_s": rate, "cpu_ms_per_call": ms}
            print(f"  {figures[name]}", flush=True)
        one, two = (figures[f"{latency} ms {n}"]["calls_per_s"] for n in (1, 2))
        figures[f"{latency} ms ratio"] = ratio = round(two / one, 2)
    expect(args, ratio >= LEAST_RATIO, f"scale: two workers do {ratio} times what one does")
    return figures


PARTS: dict[str, Callable[[Given], Figures]] = {
    **{one.__name__: one for one in (same, worker, node, driver, scale)},
    "frozen": lambda args: node(args, "frozen", signal.SIGSTOP),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", default="http://127.0.0.1:8900/v1")
    parser.add_argument("--out", type=Path, required=True, help="has a folder for each time")
    parser.add_argument("--seeds", type=int, default=120, help="ten times as many in scale")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--at", type=float, default=0.4, help="share of calls before the strike")
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    args = parser.parse_args()
    args.out = args.out.resolve() / time.strftime("%m-%d-%H-%M-%S")
    args.out.mkdir(parents=True)
    write_references(args.out / "references.jsonl", args.seeds)
    args.problems, args.calls = [], 0
    figures = {name: part(args) for name, part in PARTS.items() if args.part in (name, "all")}
    sys.stdout.writelines(f"BROKEN: {problem}\n" for problem in args.problems[:20])
    print(json.dumps(figures | {"broken": len(args.problems)}))
    sys.exit(1 if args.problems else 0)


if __name__ == "__main__":
    main()
