"""Runs whose samples wait for a person, and `refloom review` as a process."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from fakes import ScriptedModel
from processes import command, env_of
from runs import SEEDS, finish_run
from served import free_port

BETTER = "Wind pushes on the water, and gravity pulls it back."


async def run_for_review(out: Path, model=None, seeds=SEEDS[:3], **more):
    more = {"review": "all", "try_criteria": False, "max_attempts": 1} | more
    return await finish_run(out, model or ScriptedModel(), seeds, **more)


class ReviewProcess:
    """`refloom review DIR` on a free port, or on the one that it is `at`."""

    def __init__(
        self, out: Path, *flags: object, at: int | None = None, **environment: str
    ) -> None:
        self.port = at or free_port()
        self.process = subprocess.Popen(
            command("review", out, "--port", self.port, *flags),
            env=env_of(environment),
            cwd=out,
            stderr=subprocess.PIPE,
        )

    def __enter__(self) -> ReviewProcess:
        for _ in range(200):
            assert self.process.poll() is None, self.process.stderr.read()
            try:
                self.ask("/review/config")
                return self
            except urllib.error.URLError as error:
                if isinstance(error, urllib.error.HTTPError):
                    return self
                time.sleep(0.05)
        raise AssertionError("it does not answer")

    def __exit__(self, *exc: object) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)
        self.process.stderr.close()

    def kill(self) -> None:
        """End it without a last word, as a lost machine does."""
        self.process.kill()
        self.process.wait(20)

    def ask(self, path: str, said: object = None, method: str = "GET", **headers: str):
        body = None if said is None else json.dumps(said).encode()
        headers = {"Content-Type": "application/json", **headers}
        address = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(address, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())
