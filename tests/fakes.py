"""Stand-ins given as arguments: a scripted model, an embedding of letters, an endpoint."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np
from aiohttp import web

from nodes.llm import Call, Reply
from nodes.llm.endpoint import PROBE_PROMPT
from prompts import PREFLIGHT

USAGE = {
    "calls": 1,
    "prompt_tokens": 10,
    "cached_tokens": 4,
    "completion_tokens": 5,
    "reasoning_tokens": 2,
}
WORDS = """
    amber basil cedar delta ember fjord grove heron inlet jetty kelp lotus maple north olive
    pearl quartz river slate thorn umber violet willow yarrow zephyr acorn birch clover dune
    easel fable gable harbor iris jasper knoll lagoon meadow nectar oasis prairie quiver
""".split()  # noqa: SIM905


def words(key: str, n: int) -> str:
    """n words made from a key: the same key, the same words; another key, others."""
    digest = sha256(key.encode()).digest() * (n // 16 + 1)
    pairs = zip(digest[::2], digest[1::2], strict=True)
    return " ".join(WORDS[(a * 256 + b) % len(WORDS)] for a, b in list(pairs)[:n])


def tagged(prompt: str, tag: str) -> list[str]:
    """What stands between a prompt's tags of a name, suffixed or not."""
    found = re.findall(rf"<({tag}(?:-\w+)?)(?: [^>]*)?>\n(.*?)\n</\1>", prompt, re.DOTALL)
    return [text for _, text in found]


def criterion_ids(prompt: str) -> list[str]:
    return re.findall(r'<criterion(?:-\w+)? id="([^"]+)"', prompt)


def verdicts(prompt: str, verdict: str | Callable[[str], str] = "pass") -> dict[str, Any]:
    """A verdict for every criterion of a critique prompt, with evidence that is there."""
    response = tagged(prompt, "response")[-1]
    return {
        "verdicts": [
            {
                "criterion_id": id_,
                "reason": f"about {id_}",
                "evidence": " ".join(response.split()[:3]),
                "verdict": verdict(id_) if callable(verdict) else verdict,
            }
            for id_ in criterion_ids(prompt)
        ]
    }


def screened(prompt: str, verdict: str | Callable[[str, str], str] = "pass") -> dict[str, Any]:
    """A verdict for every criterion of every instruction of a screening prompt.

    `verdict` may be a function of the criterion's id and the instruction.
    """
    found = re.findall(r'<(instruction(?:-\w+)?) number="(\d+)">\n(.*?)\n</\1>', prompt, re.DOTALL)
    return {
        "instructions": [
            {
                "number": int(number),
                "verdicts": [
                    {
                        "criterion_id": id_,
                        "reason": f"about {id_}",
                        "evidence": " ".join(text.split()[:3]),
                        "verdict": verdict(id_, text) if callable(verdict) else verdict,
                    }
                    for id_ in criterion_ids(prompt)
                ],
            }
            for _, number, text in found
        ]
    }


def answer(stage: str, prompt: str, seed: int) -> dict[str, Any]:
    """What a capable, agreeable model answers at each stage."""
    if stage == "extract":
        response = tagged(prompt, "response")[-1]
        quote = " ".join(response.split()[:4])
        return {
            "subject_areas": ["one field"],
            "relevant_skills": ["one skill"],
            "characteristics": [
                {"text": "gives a reason for every claim", "quote": quote, "must": True},
                {"text": "closes with a short summary", "quote": quote, "must": False},
            ],
        }
    if stage == "propose":
        count = int(re.findall(r"(\d+) instructions", prompt)[0])
        return {"instructions": [words(f"{seed} {i}", 12) + "?" for i in range(count)]}
    if stage == "screen":
        return screened(prompt)
    # In a text call both are written as plain text, see `as_text`.
    if stage == "generate":
        return {"response": words(prompt, 40).capitalize() + "."}
    if stage == "refine":
        return {"plan": ["mend it"], "response": words(prompt, 41).capitalize() + "."}
    if stage == "answer":
        # From the instruction alone, for that is all there is.
        said = words(f"{seed} {prompt}", 40).capitalize() + "."
        return {"thoughts": f"First, {words(f'{seed} thought {prompt}', 12)}.", "response": said}
    if stage == "feedback":
        return {"feedback": [words(f"{seed} first", 3), words(f"{seed} second", 3)]}
    if stage == "compare":
        return {"reason": "neither is better", "winner": "tie"}
    if stage in ("probe", "preflight"):
        return {"ok": True}
    return verdicts(prompt)


def as_text(said: dict[str, Any]) -> str:
    """A response in plain text, with its plan between marks before it, if there is one."""
    plan = "".join(f"{step}\n" for step in said.get("plan", ()))
    # A probe and a preflight are answered in a word.
    response = str(said.get("response", "ok"))
    return f"<plan>\n{plan}</plan>\n{response}" if plan else response


class ScriptedModel:
    """A `Complete` whose answers are functions of the call; keeps every call it was given.

    `stages` maps a stage to a function from the call to an answer (a dict), a text, or a Reply;
    an exception it returns is raised. Stages without one are answered agreeably. In a text call a
    dict is a response with its plan, or with thoughts in a field of their own.
    """

    def __init__(self, **stages: Callable[[Call], Any]) -> None:
        self.stages = stages
        self.calls: list[Call] = []

    async def __call__(self, call: Call) -> Reply:
        self.calls.append(call)
        await asyncio.sleep(0)
        if call.kind == "question":
            said = self.stages["odds"](call) if "odds" in self.stages else 2.0
            if isinstance(said, Exception):
                raise said
            p = 1 / (1 + np.exp(-said))
            return Reply("Yes", "stop", dict(USAGE), odds={"yes": float(p), "no": float(1 - p)})
        script = self.stages.get(call.stage)
        said = script(call) if script else answer(call.stage, prompt_of(call), call.seed)
        if isinstance(said, Exception):
            raise said
        if isinstance(said, Reply):
            return said
        thoughts = None
        if isinstance(said, dict):
            thoughts = said.get("thoughts") if call.kind == "text" else None
            said = as_text(said) if call.kind == "text" else json.dumps(said)
        return Reply(said, "stop", dict(USAGE), reasoning=thoughts)

    def asked(self, stage: str) -> list[str]:
        """The prompts of a stage, in the order they came."""
        return [prompt_of(c) for c in self.calls if c.stage == stage]


def prompt_of(call: Call) -> str:
    return "\n".join(m["content"] for m in call.messages)


async def letters(texts: list[str]) -> np.ndarray:
    """An `Embed` by letter pairs: near texts have near vectors, and nothing is loaded."""
    out = np.zeros((len(texts), 64), np.float32)
    for row, text in enumerate(texts):
        low = text.lower()
        for a, b in pairwise(low):
            out[row, (ord(a) * 7 + ord(b)) % 64] += 1
        out[row] /= max(float(np.linalg.norm(out[row])), 1e-9)
    return out


class Endpoint:
    """An OpenAI-compatible endpoint on loopback, in a thread of its own.

    `script(body, number)` gives an answer dict, a text, a ready response, or None for the
    agreeable answer; it may be a coroutine function. Everything asked is kept in `bodies`, but for
    preflights: those are kept in `preflights`, and answered by `preflight(body, number)`.
    """

    def __init__(
        self,
        script: Callable[[dict[str, Any], int], Any] | None = None,
        preflight: Callable[[dict[str, Any], int], Any] = lambda body, number: "ok",
    ) -> None:
        self.script, self.preflight = script, preflight
        self.bodies: list[dict[str, Any]] = []
        self.preflights: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        # What `GET /models` lists; nothing is no such list.
        self.models: list[dict[str, Any]] = []
        self.in_flight = self.most_in_flight = 0
        self.latency = 0.0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Endpoint:
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def stages(self) -> list[str]:
        return [stage_of(body) for body in self.bodies]

    def asked(self) -> list[dict[str, Any]]:
        """What was asked but for probes."""
        return [body for body in self.bodies if stage_of(body) != "probe"]

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())
        self._loop.close()

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        self._stopping = asyncio.ensure_future(self._stop.wait())
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._list_models)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": self.models}, status=200 if self.models else 404)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        is_preflight = is_a_preflight(body)
        asked, script = (
            (self.preflights, self.preflight) if is_preflight else (self.bodies, self.script)
        )
        number = len(asked)
        asked.append(body)
        self.keys.append(request.headers.get("Authorization"))
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            # In the end nothing is waited for any more.
            await asyncio.wait([self._stopping], timeout=self.latency)
            said = script(body, number) if script else None
            if asyncio.iscoroutine(said):
                said = await said
            if isinstance(said, web.StreamResponse):
                return said
            if said is None and not is_preflight:
                prompt = "\n".join(m["content"] for m in body["messages"])
                said = answer(stage_of(body), prompt, body.get("seed", 0))
            return completion(said, body)
        finally:
            self.in_flight -= 1


def is_a_preflight(body: dict[str, Any]) -> bool:
    """Whether a request is what a run sends to each model first."""
    return [m["content"] for m in body.get("messages", [])] == [PREFLIGHT]


def is_text(body: dict[str, Any]) -> bool:
    """Whether a request asks for plain text: not for JSON, and not for log-probabilities."""
    shaped = any(key in body for key in ("response_format", "tools", "logprobs"))
    return not shaped and not any(
        "JSON object, named" in message["content"] for message in body["messages"]
    )


def stage_of(body: dict[str, Any]) -> str:
    """The stage a request carries: the name of its schema or tool, or what its text says.

    A text request has no name: a refinement is one that shows verdicts or feedback, and a bare
    answer is asked for by one message without tags.
    """
    if body["messages"][-1]["content"].startswith(PROBE_PROMPT):
        return "probe"
    if is_a_preflight(body):
        return "preflight"
    if is_text(body):
        data = body["messages"][-1]["content"]
        shown = re.search(r"^<(?:verdict|feedback)(?:-\w+)?(?: [^>]*)?>$", data, re.MULTILINE)
        return "refine" if shown else "answer" if is_bare(body) else "generate"
    shape = body.get("response_format", {})
    if shape.get("type") == "json_schema":
        return str(shape["json_schema"]["name"])
    if body.get("tools"):
        return str(body["tools"][0]["function"]["name"])
    found = re.search(r"JSON object, named (\w+)", body["messages"][0]["content"])
    return found.group(1) if found else "critique"


def is_bare(body: dict[str, Any]) -> bool:
    """Whether a text request holds one message, and in it nothing between tags."""
    (*others, last) = body["messages"]
    return not others and not re.search(r"^<instruction(?:-\w+)?>$", last["content"], re.MULTILINE)


def completion(said: Any, body: dict[str, Any], finish: str = "stop") -> web.Response:
    """A chat completion around an answer; by a tool call if the request had tools."""
    thoughts = None
    if isinstance(said, dict):
        thoughts = said.get("thoughts") if is_text(body) else None
        said = as_text(said) if is_text(body) and "response" in said else json.dumps(said)
    text = said
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thoughts is not None:
        message["reasoning_content"] = thoughts
    if body.get("tools"):
        function = {"name": body["tools"][0]["function"]["name"], "arguments": text}
        message = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "t", "type": "function", "function": function}],
        }
    return web.json_response(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }
    )


def error(status: int, message: str, code: str | None = None, **headers: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": "x", "code": code}}, status=status, headers=headers
    )
