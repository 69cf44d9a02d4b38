"""What an endpoint and a model can do, found out by a few small calls before a run relies on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from nodes.llm import Answer, Call, ProviderStopped, Reply
from nodes.llm.answers import UnreadableAnswer, has_thinking_mark, read_answer
from nodes.llm.capabilities import MODES, Capabilities, Mode
from nodes.llm.chat_model import ModelClient
from nodes.llm.endpoint import EndpointClient, Probed
from nodes.llm.faults import PASSING, Fault
from nodes.llm.protocol import Transient
from nodes.llm.provider import address_of
from refloom.runs.client import Endpoints
from refloom.runs.cost import Prices, example_line
from refloom.settings import Settings

# At most so many calls and seconds for a model.
MAX_CALLS = 12
MAX_SECONDS = 20.0
ANSWER_TOKENS = 64
# Seconds before a model that is loading or busy is asked again.
WAITS_S = (4.0, 8.0)
# A model that thinks needs room for that before it answers anything.
THINKING_TOKENS = 2048
# More than any model gives, so that the endpoint names its limit.
TOO_MANY_TOKENS = 100_000_000
# Prompts of fewer tokens than about 1,024 are in no provider's cache.
CACHED_PROMPT = "The tide comes in and goes out again, twice in a day and a bit. " * 90
TEXT_PROMPT = "Say in one sentence why bread rises."
SHAPE_PROMPT = "Answer with a JSON object in which ok is true."
WINDOW_KEYS = ("max_model_len", "context_length", "context_window", "max_context_length", "n_ctx")
# Calls four at a time that take this much longer than one alone wait for each other.
QUEUED_RATIO = 3.0
SMALL_WINDOW = 8192


@dataclass
class ModelReport:
    """What was found out of a model; None is what the time did not tell."""

    model: str
    role: Literal["writer", "judge"]
    base_url: str | None
    reachable: bool | None = None
    key: bool | None = None
    known: bool | None = None
    mode: Mode | None = None
    modes: dict[str, bool | None] = field(default_factory=lambda: dict.fromkeys(MODES))
    logprobs: bool | None = None
    seed: bool | None = None
    thinking: dict[str, Any] | None = None
    window: int | None = None
    largest_answer: int | None = None
    cache: bool | None = None
    latency_s: dict[str, float | None] = field(default_factory=lambda: {"1": None, "4": None})
    tokens_per_s: float | None = None
    price: dict[str, float] | None = None


@dataclass
class DoctorReport:
    """What `refloom doctor --json` prints."""

    fit: bool = False
    calls: int = 0
    seconds: float = 0.0
    models: list[ModelReport] = field(default_factory=list)
    advice: list[dict[str, str]] = field(default_factory=list)
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """This as plain JSON values."""
        return asdict(self)


async def examine(settings: Settings) -> DoctorReport:
    """Examine the models of the settings, the writer's and, if they are others, the judge's.

    Raises `InputError` or `ProviderStopped` if a model has no endpoint at all.
    """
    started = time.monotonic()
    endpoints, prices = Endpoints(settings), Prices.load(settings.prices)
    report = DoctorReport()
    models: dict[tuple[str, str], bool] = {}
    for model, judge in ((settings.model, False), *((juror, True) for juror in settings.jurors)):
        models.setdefault((address_of(model) or endpoints.addresses[judge], model), judge)
    for (address, model), judge in models.items():
        limits: dict[str, str] = {}

        def keep_limits(
            model: str, judge: bool, headers: Mapping[str, str], limits: dict[str, str] = limits
        ) -> None:
            names = ("x-ratelimit-limit-requests", "x-ratelimit-limit-tokens")
            limits.update({name: headers[name] for name in names if name in headers})

        client = ModelClient(endpoints.resolve, max_retries=0, on_headers=keep_limits)
        price = prices.get(model)
        findings = ModelReport(
            model,
            "judge" if judge else "writer",
            None if address == "default" else address,
            price=None if price is None else {"input": price.input, "output": price.output},
        )
        examination = Examination(client, findings, judge)
        try:
            async with asyncio.timeout(MAX_SECONDS):
                await examination.run()
        except TimeoutError:
            over = f"the {MAX_SECONDS:.0f} s were over before all was found out"
            if findings.reachable is None:
                over = (
                    f"no answer within {MAX_SECONDS:.0f} s: the model is slow, busy or loading; "
                    "a run would wait for it"
                )
            examination.error = examination.error or f"{model}: {over}"
        except ProviderStopped as stop:
            examination.error = str(stop)
        finally:
            await client.aclose()
        report.models.append(findings)
        report.calls += examination.calls
        report.error = report.error or examination.error
        report.advice += advise(findings, limits)
    report.fit = all(is_fit(findings) for findings in report.models)
    report.seconds = round(time.monotonic() - started, 2)
    return report


def is_fit(findings: ModelReport) -> bool:
    """Whether a run can use a model: it answers, in some mode or in one that may be found yet."""
    answers = findings.reachable and findings.key and findings.known is not False
    return bool(answers) and any(works is not False for works in findings.modes.values())


class Examination:
    """The calls by which one model is examined, and what they have told so far."""

    def __init__(self, client: EndpointClient, findings: ModelReport, judge: bool) -> None:
        self._client, self.findings, self._judge = client, findings, judge
        self._known = Capabilities()
        self.calls = 0
        self.error: str | None = None

    async def run(self) -> None:
        """Make the calls, from what a run needs most to what is good to know."""
        findings = self.findings
        if not await self._reach():
            return
        await self._read_models()
        start = time.monotonic()
        try:
            await asyncio.gather(*(self._try_mode(mode) for mode in MODES))
        finally:
            findings.mode = next((mode for mode in MODES if findings.modes[mode]), None)
        if None not in findings.modes.values():
            findings.latency_s["4"] = round(time.monotonic() - start, 3)
        await self._log_probabilities()
        await self._limits()
        await self._cache()

    async def _reach(self) -> bool:
        """Whether the model answers plain text; learns of key, seed, thinking and pace."""
        findings = self.findings
        for refused in (
            (),
            ("seed",),
            ("seed", "temperature"),
            ("seed", "temperature", "max_tokens"),
        ):
            self._known = Capabilities(refused_fields=frozenset(refused))
            outcome, seconds = await self._ask_patiently()
            if isinstance(outcome, Reply):
                findings.reachable = findings.key = findings.known = True
                findings.seed = not refused
                self._measure(outcome, seconds)
                return True
            if outcome is None:
                findings.reachable = False
                return False
            findings.reachable = outcome.kind != "address"
            findings.key = False if outcome.kind in ("key", "credit") else findings.key
            if outcome.kind == "model":
                findings.key, findings.known = True, False
            if outcome.kind not in ("unsupported", "bad_request"):
                passes = "; a run would wait for it" if outcome.kind in PASSING else ""
                kind = outcome.kind.replace("_", " ")
                self.error = f"{findings.model}: {kind}: {outcome.message}{passes}"
                return False
            message = outcome.message
        self.error = f"{findings.model}: refuses every plain request: {message}"
        return False

    async def _ask_patiently(self) -> tuple[Reply | Fault | None, float]:
        """The outcome of a plain request and its seconds; what passes is waited for a little."""
        for wait in (*WAITS_S, None):
            start = time.monotonic()
            outcome = await self._call(TEXT_PROMPT, text=True)
            if wait is None or not isinstance(outcome, Fault) or outcome.kind not in PASSING:
                break
            await asyncio.sleep(wait)
        return outcome, time.monotonic() - start

    def _measure(self, reply: Reply, seconds: float) -> None:
        findings, usage = self.findings, reply.usage
        findings.latency_s["1"] = round(seconds, 3)
        if usage["completion_tokens"] and seconds > 0:
            findings.tokens_per_s = round(usage["completion_tokens"] / seconds, 1)
        tokens = usage.get("reasoning_tokens", 0)
        unseen = reply.finish == "length" and not (reply.text or "").strip()
        if reply.reasoning or tokens or unseen:
            findings.thinking = {
                "where": "field" if reply.reasoning else "hidden",
                "tokens": tokens or usage["completion_tokens"],
            }
        elif has_thinking_mark(reply.text or ""):
            findings.thinking = {"where": "content", "tokens": usage["completion_tokens"]}

    async def _read_models(self) -> None:
        """What the endpoint's list of models says of this one."""
        findings = self.findings
        self.calls += 1
        listed = await self._client.list_models(findings.model, self._judge)
        for entry in listed or ():
            # A server of one model answers to any name.
            names = (entry.get("id"), entry.get("name"), entry.get("model"))
            if listed == [entry] or findings.model in names:
                meta = entry.get("meta")
                values = entry | (meta if isinstance(meta, dict) else {})
                sizes = [values[key] for key in WINDOW_KEYS if isinstance(values.get(key), int)]
                findings.window = sizes[0] if sizes else None

    async def _try_mode(self, mode: Mode) -> None:
        self.findings.modes[mode] = await self._mode(mode)

    async def _mode(self, mode: Mode) -> bool | None:
        """Whether an answer of a shape comes in a mode; None if its thoughts took the room."""
        known = Capabilities(mode=mode, refused_fields=self._known.refused_fields)
        room = THINKING_TOKENS if self.findings.thinking else ANSWER_TOKENS
        outcome = await self._call(SHAPE_PROMPT, answer=Probed, known=known, max_tokens=room)
        if outcome is None:
            return None
        if isinstance(outcome, Fault):
            return False if outcome.kind in ("unsupported", "bad_request", "server") else None
        try:
            read_answer(outcome.text or outcome.reasoning or "", Probed, name="probe")
        except UnreadableAnswer:
            return None if outcome.finish == "length" else False
        return True

    async def _log_probabilities(self) -> None:
        outcome = await self._call("Is water wet? Answer Yes or No.", max_tokens=1)
        if isinstance(outcome, Reply):
            self.findings.logprobs = outcome.odds is not None
        elif outcome is not None and outcome.kind in ("unsupported", "bad_request"):
            self.findings.logprobs = False

    async def _limits(self) -> None:
        """The limits that an endpoint names when it is asked for far too much."""
        findings = self.findings
        outcome = await self._call("Say ok.", text=True, max_tokens=TOO_MANY_TOKENS)
        if isinstance(outcome, Fault):
            findings.window = outcome.window or findings.window
            findings.largest_answer = outcome.largest_answer

    async def _cache(self) -> None:
        """Whether a prompt that was just sent is served from the endpoint's cache."""
        for repeated in (False, True):
            outcome = await self._call(CACHED_PROMPT + "How often? Answer in a word.", text=True)
            if not isinstance(outcome, Reply):
                return
            if repeated:
                self.findings.cache = outcome.usage["cached_tokens"] > 0

    async def _call(
        self,
        prompt: str,
        *,
        text: bool = False,
        answer: type[Answer] | None = None,
        known: Capabilities | None = None,
        max_tokens: int = ANSWER_TOKENS,
    ) -> Reply | Fault | None:
        """One call; None if no answer came or there are no calls left."""
        if self.calls >= MAX_CALLS:
            return None
        self.calls += 1
        call = Call(
            stage="probe",
            messages=({"role": "user", "content": prompt},),
            answer=answer,
            model=self.findings.model,
            judge=self._judge,
            seed=1,
            temperature=0.0,
            max_tokens=max_tokens,
            text=text,
        )
        try:
            return await self._client.attempt(call, known or self._known)
        except Transient as fault:
            self.error = self.error or f"{self.findings.model}: {fault.message}"
            return None


def advise(findings: ModelReport, limits: Mapping[str, str]) -> list[dict[str, str]]:
    """Flags that suit what was found, each with its reason."""
    fit, window = is_fit(findings), findings.window or SMALL_WINDOW
    one, four = findings.latency_s["1"] or 0.0, findings.latency_s["4"] or 0.0
    requests, tokens = (limits.get(f"x-ratelimit-limit-{n}", "") for n in ("requests", "tokens"))
    line = example_line(findings.model)
    advice = (
        (
            findings.reachable is False,
            ("--base-url", "URL", "no chat completions were reached at this address"),
        ),
        (
            findings.known is False,
            (f"--{'judge-' * (findings.role == 'judge')}model", "NAME", "the model is not known"),
        ),
        (
            fit and findings.thinking is not None,
            (
                "--max-tokens-per-call",
                "generate=12000",
                "the model thinks before it answers, and its thoughts take the answer's room",
            ),
        ),
        (
            fit and requests.isdecimal() and requests != "0",
            ("--rpm", requests, "the endpoint names this limit"),
        ),
        (
            fit and tokens.isdecimal() and tokens != "0",
            ("--tpm", tokens, "the endpoint names this limit"),
        ),
        (
            fit and four > max(QUEUED_RATIO * one, 1.0),
            ("--concurrency", "2", f"four calls at once took {four} s, one alone {one} s"),
        ),
        (
            fit and window < SMALL_WINDOW,
            ("--references-per-seed", "1", f"a window of {window:,} tokens is small"),
        ),
        (
            fit and findings.price is None,
            ("--prices", "FILE.toml", f"no price is known; a line of it: {line}"),
        ),
        (
            fit and findings.role == "judge" and findings.logprobs is False,
            ("--judge-method", "verdict", "the endpoint gives no log-probabilities"),
        ),
    )
    return [
        dict(zip(("flag", "value", "why"), parts, strict=True)) for suits, parts in advice if suits
    ]
