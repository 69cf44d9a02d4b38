"""The checks of a run: where each is made, and its verdict kept in the journal like a reply.

Checks that run and read nothing are made in a thread. The others are made in a process of their
own, which is ended after a time, or, if they run what a model wrote, in a sandbox. A verdict is
committed before anything uses it, and is taken from there ever after: a check that is slow, or that
draws lots, must not make other rows when a run is resumed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from typing import Any

from memory.references import Reference
from nodes.check_worker import COMMAND, IMPORT_TIMEOUT_S, environment
from nodes.checks import (
    CHECKS_VERSION,
    QUICK_CHECKS,
    SAFE_CHECKS,
    TRUSTED_CHECKS,
    CheckInput,
    NotApplicable,
    blocks_with_asserts,
    read_schema,
    reference_of,
    run_safe_check,
)
from nodes.criteria import verdict
from nodes.state import Verdict
from refloom.errors import CheckUnusable, InputError
from refloom.runs.client import CachedClient, Interrupted
from refloom.runs.journal import Journal, ReusedCalls
from refloom.runs.sandbox import find_obstacle, run_in_sandbox
from refloom.runs.single_flight import SingleFlight
from refloom.settings import Settings

# Seconds that a check may take in its process.
CHECK_TIMEOUT_S = 10.0
# Ends of a check's process, one after another, that end the run.
MAX_ENDS = 3
# Bytes of an answer; reasons are cut to less.
MAX_ANSWER_BYTES = 1 << 16
# Programs that run at the same time.
MAX_PROGRAMS = 2
# Verdicts kept at hand: references are checked again for each of their seeds.
MAX_AT_HAND = 4096


def check_permitted(names: Iterable[str | None], settings: Settings) -> None:
    """Raise `InputError` if a criterion names a check that this run may not or cannot make."""
    if "python_tests" not in names:
        return
    if not settings.run_code:
        raise InputError(
            f"{settings.criteria}: a criterion asks for the check python_tests, which runs what a "
            "model wrote; give --run-code to permit it, or leave the criterion out"
        )
    obstacle = find_obstacle()
    if obstacle is not None:
        raise InputError(
            f"--run-code: what a model wrote cannot be shut in on this machine ({obstacle}), so it "
            "is not run; leave the check python_tests out"
        )


class ProcessEnded(Exception):
    """The process of a check was ended, or ended itself; the message says why."""


class CheckProcess:
    """A process that makes one check after another; a new one takes the place of one that ended."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._loaded: set[str] = set()
        self._lock = asyncio.Lock()

    async def load(self, name: str) -> dict[str, Any]:
        """Import a function: its `source`, or an `error`. Raises `ProcessEnded`."""
        async with self._lock:
            return await self._load(name)

    async def decide(self, request: dict[str, Any], *, own: bool) -> dict[str, Any]:
        """The `outcome` and `reason` of a check, `own` if it is the user's. Raises `ProcessEnded`.

        Importing the function does not count as its time.
        """
        async with self._lock:
            name = request["check"]
            if own and (self._process is None or name not in self._loaded):
                await self._load(name)
            return await self._ask(request, CHECK_TIMEOUT_S)

    async def _load(self, name: str) -> dict[str, Any]:
        loaded = await self._ask({"load": name}, IMPORT_TIMEOUT_S)
        self._loaded.add(name)
        return loaded

    async def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        process = self._process or await self._begin()
        assert process.stdin is not None
        assert process.stdout is not None
        line = json.dumps({**request, "seconds": seconds}).encode() + b"\n"
        try:
            async with asyncio.timeout(seconds):
                process.stdin.write(line)
                await process.stdin.drain()
                answer = await process.stdout.readline()
            if not answer.endswith(b"\n"):
                raise ProcessEnded("its process ended")
            outcome: dict[str, Any] = json.loads(answer)
        except TimeoutError as error:
            await self.aclose()
            raise ProcessEnded(f"it took over {seconds:.0f} s") from error
        except (OSError, ValueError) as error:
            await self.aclose()
            raise ProcessEnded(f"its process failed ({type(error).__name__})") from error
        except BaseException:
            await self.aclose()
            raise
        return outcome

    async def _begin(self) -> asyncio.subprocess.Process:
        self._loaded.clear()
        self._process = await asyncio.create_subprocess_exec(
            *COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment(),
            limit=MAX_ANSWER_BYTES,
            start_new_session=True,
        )
        return self._process

    async def aclose(self) -> None:
        """End the process, and those that it has begun."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()
            with contextlib.suppress(OSError):
                await process.stdin.wait_closed()


class RunChecks:
    """The `RunCheck` of a run; close it at the end."""

    def __init__(
        self,
        journal: Journal,
        settings: Settings,
        calls: CachedClient,
        *,
        reused: ReusedCalls | None = None,
        shared: Journal | None = None,
        on_warning: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`reused` and `shared`: see `CachedClient`. `on_warning` gets each trouble once.

        A check that cannot be used stops `calls`.
        """
        self._journal, self._reused, self._shared = journal, reused, shared
        self._settings, self._calls, self._on_warning = settings, calls, on_warning
        self._process, self._places = CheckProcess(), asyncio.Semaphore(MAX_PROGRAMS)
        self._sources: dict[str, asyncio.Future[str]] = {}
        self._in_progress = SingleFlight[dict[str, Any]]()
        self._at_hand: OrderedDict[bytes, dict[str, Any]] = OrderedDict()
        self._warnings: set[str] = set()
        self._ends: Counter[str] = Counter()

    async def __call__(self, check: CheckInput) -> Verdict:
        """See `nodes.checks.RunCheck`. Raises `Interrupted` once the run is stopping."""
        if check.kind in QUICK_CHECKS:
            # They need no journal: they come out the same whenever they are made.
            return await run_safe_check(check)
        source = await self._source_of(check)
        reference = self._reference_of(check)
        key = _key(check, source, reference)
        outcome = self._at_hand.get(key)
        if outcome is None:
            outcome = await self._in_progress.do(
                key, partial(self._recall_or_make, key, check, source, reference)
            )
            self._at_hand[key] = outcome
            if len(self._at_hand) > MAX_AT_HAND:
                self._at_hand.popitem(last=False)
        return verdict(check.criterion["id"], outcome["verdict"], outcome["reason"])

    def _reference_of(self, check: CheckInput) -> Reference | None:
        if not check.reads_references:
            return None
        found = reference_of(check.instruction, check.references)
        if found is None:
            return None
        # What else a reference may have is not what a verdict rests on.
        return {
            "id": found["id"],
            "instruction": found["instruction"],
            "response": found["response"],
        }

    async def _source_of(self, check: CheckInput) -> str:
        """What a check is beyond its name: a version, a schema's text, a hash of a module."""
        if check.kind in SAFE_CHECKS or check.kind == "regex":
            return str(CHECKS_VERSION)
        if check.kind == "python_tests":
            return f"{CHECKS_VERSION} python {sys.version_info.major}.{sys.version_info.minor}"
        if check.name not in self._sources:
            self._sources[check.name] = asyncio.ensure_future(self._load(check))
        try:
            return await asyncio.shield(self._sources[check.name])
        except (ValueError, ProcessEnded) as error:
            raise self._stop(f"the check {check.name} cannot be used: {error}") from error

    async def _load(self, check: CheckInput) -> str:
        if check.kind == "json_schema":
            return await asyncio.to_thread(read_schema, check.name.partition(":")[2])
        loaded = await self._process.load(check.name)
        if "source" not in loaded:
            raise ValueError(loaded["error"])
        return str(loaded["source"])

    def _stop(self, why: str) -> Interrupted:
        """Stop the run, since a check cannot be used: what is to be raised."""
        self._calls.stop(
            CheckUnusable(f"{why}. Finished work is kept; mend it, and the same command goes on")
        )
        return Interrupted()

    async def _recall_or_make(
        self, key: bytes, check: CheckInput, source: str, reference: Reference | None
    ) -> dict[str, Any]:
        stored = await self._journal.check(key)
        if stored is not None:
            return dict(json.loads(stored))
        if self._shared is not None:
            stored = await self._shared.check(key)
        if stored is None and self._reused is not None:
            stored = await asyncio.to_thread(self._reused.check, key)
        if stored is None:
            made = await self._make(check, source, reference)
            stored = json.dumps({"verdict": made["verdict"], "reason": made["reason"]})
            if self._shared is not None:
                await self._shared.record_check(key, check.name, stored)
        await self._journal.record_check(key, check.name, stored)
        return dict(json.loads(stored))

    async def _make(self, check: CheckInput, source: str, reference: Reference | None) -> Verdict:
        id_ = check.criterion["id"]
        if check.kind in SAFE_CHECKS:
            safe = await run_safe_check(check)
            if safe["verdict"] != "fail" or not _tells_expressions():
                return safe
        if self._calls.stopping or self._calls.closed:
            raise Interrupted
        if check.kind == "python_tests":
            return await self._run_code(check)
        request = {
            "check": check.name,
            "source": source,
            "response": check.response,
            "instruction": check.instruction,
            "reference": reference,
        }
        own = check.kind not in (*SAFE_CHECKS, *TRUSTED_CHECKS)
        try:
            answer = await self._process.decide(request, own=own)
        except ProcessEnded as error:
            self._ends[check.name] += 1
            if self._ends[check.name] >= MAX_ENDS:
                raise self._stop(
                    f"the check {check.name} was ended {MAX_ENDS} times in a row: {error}"
                ) from error
            self._warn(f"the check {check.name} was ended: {error}; its verdict is unknown")
            return verdict(id_, "unknown", f"The check was ended: {error}.")
        self._ends[check.name] = 0
        outcome, reason = answer["outcome"], answer["reason"]
        if outcome == "unknown":
            self._warn(f"the check {check.name} could not be made: {reason}")
        return verdict(id_, outcome, reason)

    async def _run_code(self, check: CheckInput) -> Verdict:
        id_ = check.criterion["id"]
        if not self._settings.run_code:
            return verdict(id_, "unknown", "Code is run with --run-code only.")
        try:
            program = blocks_with_asserts(check.response)
        except NotApplicable as reason:
            return verdict(id_, "not_applicable", str(reason))
        try:
            async with self._places:
                why = await run_in_sandbox(program)
        except OSError as error:
            raise self._stop(f"the check python_tests cannot be made: {error}") from error
        if why is None:
            return verdict(id_, "pass")
        return verdict(id_, "fail", f"Its code fails by its own asserts: {why}.")

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.add(text)
            self._on_warning(text)

    async def aclose(self) -> None:
        """Cancel what is being made, and end the process."""
        tasks: list[asyncio.Future[Any]] = [*self._in_progress.tasks(), *self._sources.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._process.aclose()


def _tells_expressions() -> bool:
    """Whether answers can be compared as expressions."""
    return find_spec("math_verify") is not None


def _key(check: CheckInput, source: str, reference: Reference | None) -> bytes:
    """The hash of all that the verdict of a check rests on."""
    parts = [check.name, source, check.instruction, check.response, reference]
    return sha256(json.dumps(["check", *parts]).encode()).digest()
