"""In-memory backends of the review page: a run's directory, a LangGraph server."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from refloom.serve.review_page import page_routes


def screened_sample(number: int, **other: Any) -> dict[str, Any]:
    """A sample whose instruction was judged too."""
    criteria = [
        _criterion("i1", "is a question or a request", reference_id=None),
        _criterion("i2", "states the situation that it is for", must=False),
    ]
    said = [
        _verdict("i1", "pass", "It asks why.", "why are there"),
        _verdict("i2", "fail", "It names nobody <b>who</b> asks.", ""),
    ]
    return sample(number, instruction_criteria=criteria, instruction_verdicts=said, **other)


NASTY = """<script>window.owned = 1</script>

<img src=x onerror="window.owned = 2"> ![pixel](http://evil.example/p.png)

[x](javascript:window.owned=3) [y](data:text/html,<script>window.owned=4</script>)
[z](//evil.example) [w](javascript:alert(1))

<svg xmlns="http://www.w3.org/2000/svg" onload="window.owned = 5">
<a href="javascript:alert(1)">q</a></svg>

<style>body { display: none }</style><iframe srcdoc="<script>alert(1)</script>"></iframe>

| right | left |
|---:|:---|
| 1 | 2 |

"""


def sample(number: int, **other: Any) -> dict[str, Any]:
    """A sample whose second attempt became its response."""
    draft = (
        "Tides come twice a day. The Moon pulls the water.\n\n"
        "- The near side bulges.\n- That is all there is to it.\n"
    )
    response = other.pop("response", None) or (
        "Tides come **twice a day** because the Moon’s pull is uneven:\n\n"
        "- The *near side* bulges towards the Moon.\n- The far side bulges away from it.\n\n"
        "The Earth turns through both bulges in 24 hours and 50 minutes.\n"
    )
    criteria = [
        _criterion("c1", "explains why there are two tides and not one"),
        _criterion("c2", "gives the length of a tidal day", must=False),
        _criterion("c3", "is under 120 words", judged_by="rule", reference_id=None),
        _criterion("c4", "names who measured it first", must=False),
    ]
    last = [
        _verdict("c1", "pass", "It names both bulges.", "the Moon's pull is uneven"),
        _verdict("c2", "pass", "It is given.", "24 hours\nand 50 minutes", score=3.214),
        _verdict("c3", "pass", "37 words.", ""),
        _verdict("c4", "fail", "Nobody is named.", "The near side bulges towards the Moon."),
    ]
    first = [_verdict("c1", "fail", "Only one bulge is explained.", "That is all there is to it.")]
    made: dict[str, Any] = {
        "id": f"s{number}",
        "seed_id": "seed-1",
        "instruction": f"Question {number}: why are there *two* tides a day?",
        "response": response,
        "status": "accepted",
        "reason": None,
        "criteria": criteria,
        "attempts": [
            {"response": draft, "verdicts": first},
            {"response": response, "verdicts": last},
        ],
        "model": "writer-1",
        "judge_model": "judge-1",
    }
    return {**made, **other}


def _criterion(id_: str, text: str, **other: Any) -> dict[str, Any]:
    plain = {"must": True, "reference_id": "r1", "quote": None, "judged_by": "judge"}
    return {"id": id_, "text": text, **plain, **other}


def _verdict(id_: str, verdict: str, reason: str, evidence: str, score: float | None = None):
    return {
        "criterion_id": id_,
        "verdict": verdict,
        "reason": reason,
        "evidence": evidence,
        "score": score,
    }


REFERENCES = [
    {
        "id": "r1",
        "score": 0.83,
        "instruction": "Why is the sky blue?",
        "response": "Air scatters **blue** light most.",
    },
    {
        "id": "r2",
        "instruction": "And at sunset?",
        "response": "The way through the air is longer.",
        "history": [{"role": "user", "content": "Why is the sky <b>blue</b>?"}],
    },
]


class Backend:
    """What both share: `fail` makes the next decision fail, `key` is what is asked for."""

    def __init__(self, samples: list[dict[str, Any]]) -> None:
        self.samples = {one["id"]: one for one in samples}
        self.taken: dict[str, Any] = {}
        self.fail = 0
        self.key: str | None = None

    async def authorise(self, request: Request) -> Response | None:
        if self.key and request.headers.get("x-api-key") != self.key:
            return JSONResponse({"detail": "no key"}, 401)
        return None

    def refusal(self) -> Response | None:
        if not self.fail:
            return None
        self.fail -= 1
        return JSONResponse({"detail": "the disk is full"}, 503)

    def counts(self) -> dict[str, int]:
        return {"waiting": len(self.samples) - len(self.taken), "decided": len(self.taken)}


class Run(Backend):
    """A run's directory, over REST. An instruction with "tide" in it is refused."""

    most = 500

    def __init__(self, samples: list[dict[str, Any]]) -> None:
        super().__init__(samples)
        self.run = "run"
        self.marks: dict[str, set[str]] = {"skip": set(), "flag": set()}
        self.reasons = ["It is about ponds.", "It is too long."]
        self.references = REFERENCES
        self.checked: list[dict[str, Any]] = []

    def routes(self) -> list[Route]:
        item = "/review/items/{id}"
        return [
            Route("/review/queue", self.queue),
            Route("/review/decided", self.decided),
            Route("/review/search", self.search),
            Route("/review/figures", self.figures),
            Route(f"{item}/check", self.check, methods=["POST"]),
            Route(f"{item}/marks", self.mark, methods=["POST"]),
            Route(item, self.item),
            Route(item, self.decide, methods=["POST"]),
            Route(item, self.undo, methods=["DELETE"]),
            Route("/review/config", self.config),
            *page_routes("run"),
        ]

    async def config(self, request: Request) -> Response:
        return JSONResponse({"source": "run", "run": self.run})

    def _listed(self, id_: str) -> dict[str, Any]:
        one = self.samples[id_]
        words = {c["id"]: c["text"] for c in one["criteria"]}
        failed = [
            words[v["criterion_id"]]
            for v in one["attempts"][-1]["verdicts"]
            if v["verdict"] == "fail" and v["criterion_id"] in words
        ]
        marks = {"flagged": id_ in self.marks["flag"], "skipped": id_ in self.marks["skip"]}
        keys = ("id", "instruction", "status", "reason")
        length = {"failed": failed, "length": len(one["response"])}
        return {**{key: one[key] for key in keys}, **length, **marks}

    async def queue(self, request: Request) -> Response:
        if refused := await self.authorise(request):
            return refused
        items = [self._listed(id_) for id_ in self.samples if id_ not in self.taken]
        more = {"reasons": self.reasons, "by": None}
        return JSONResponse({**self.counts(), **more, "items": items[: self.most]})

    async def decided(self, request: Request) -> Response:
        items = [
            {**self._listed(id_), "by": one.get("by"), "decision": one["decision"]}
            for id_, one in reversed(self.taken.items())
        ]
        return JSONResponse({"items": items})

    async def search(self, request: Request) -> Response:
        words = request.query_params["text"].casefold().split()
        texts = {
            id_: f"{one['instruction']} {one['response']}".casefold()
            for id_, one in self.samples.items()
        }
        return JSONResponse(
            {"ids": [id_ for id_, text in texts.items() if all(word in text for word in words)]}
        )

    async def figures(self, request: Request) -> Response:
        decisions = [one["decision"] for one in self.taken.values()]
        row = {"of": "response", "text": "names who <b>measured</b> it " + "x" * 90}
        return JSONResponse(
            {
                **self.counts(),
                "accepted": decisions.count("accept"),
                "edited": decisions.count("edit"),
                "rejected": decisions.count("reject"),
                "instructions_edited": 0,
                "median_seconds": 4.0,
                "reviewers": [{"by": "alice", "decided": 1}, {"by": "bob", "decided": 2}],
                "agreement": {"n": 4, "agree": 3},
                "criteria": [{**row, "n": 4, "failed": 3, "wrong_verdicts": 1, "wrong": 2}],
                "steps": [{"what": "Export", "command": "refloom export out out.jsonl"}],
            }
        )

    async def check(self, request: Request) -> Response:
        self.checked.append(await request.json())
        if "tide" in self.checked[-1].get("instruction", ""):
            return JSONResponse({"detail": "The instruction is too near to that of r1"}, 422)
        return JSONResponse({"ok": True})

    async def mark(self, request: Request) -> Response:
        said = await request.json()
        ids = self.marks[said["kind"]]
        (ids.add if said["on"] else ids.discard)(request.path_params["id"])
        return JSONResponse({"ok": True})

    async def item(self, request: Request) -> Response:
        id_ = request.path_params["id"]
        found = {"sample": self.samples[id_], "references": self.references}
        return JSONResponse({**found, "decision": self.taken.get(id_)})

    async def decide(self, request: Request) -> Response:
        if refused := self.refusal():
            return refused
        self.taken[request.path_params["id"]] = await request.json()
        return JSONResponse(self.counts())

    async def undo(self, request: Request) -> Response:
        await asyncio.sleep(0.2)
        del self.taken[request.path_params["id"]]
        return JSONResponse(self.counts())


class Threads(Backend):
    """One interrupted thread of a LangGraph server; ids of interrupts change with each fork."""

    def __init__(self, samples: list[dict[str, Any]]) -> None:
        super().__init__(samples)
        self.fork = 0

    def routes(self) -> list[Route]:
        return [
            *page_routes("threads"),
            Route("/threads/search", self.search, methods=["POST"]),
            Route("/threads/t1", self.thread),
            Route("/threads/t1/state", self.state),
            Route("/threads/t1/history", self.history, methods=["POST"]),
            Route("/threads/t1/runs/wait", self.wait, methods=["POST"]),
        ]

    def _interrupt(self, id_: str) -> dict[str, Any]:
        value = {"question": "Keep it?", "sample": self.samples[id_], "references": REFERENCES}
        return {"id": f"i-{self.fork}-{id_}", "value": value}

    def _task(self, id_: str, past: bool = False) -> dict[str, Any]:
        done = id_ in self.taken
        asked = [self._interrupt(id_)] if past or not done else []
        return {"name": "review", "interrupts": asked, "result": {} if done else None}

    async def search(self, request: Request) -> Response:
        if refused := await self.authorise(request):
            return refused
        offset = (await request.json())["offset"]
        # As the real server does: a question that has its answer may still be named here.
        thread = {
            "thread_id": "t1",
            "metadata": {"graph_id": "synthesizer", "assistant_id": "assistant-1"},
            "interrupts": {f"task-{id_}": [self._interrupt(id_)] for id_ in self.samples},
            "values": {},
        }
        other = {"thread_id": "t0", "metadata": {}, "interrupts": {"x": [{"id": "y", "value": 1}]}}
        # A thread that has come to its end is not interrupted any more.
        found = [other] if len(self.taken) == len(self.samples) else [thread, other]
        return JSONResponse(found if not offset else [])

    async def thread(self, request: Request) -> Response:
        metadata = {"graph_id": "synthesizer", "assistant_id": "assistant-1"}
        return JSONResponse({"thread_id": "t1", "metadata": metadata})

    async def state(self, request: Request) -> Response:
        tasks = [self._task(id_) for id_ in self.samples]
        # What finished tasks wrote is among the values before the others have finished.
        samples = [{**self.samples[id_], "review": one} for id_, one in self.taken.items()]
        return JSONResponse({"tasks": tasks, "values": {"samples": samples}, "metadata": {}})

    async def history(self, request: Request) -> Response:
        tasks = [self._task(id_, past=True) for id_ in self.samples]
        end = {"checkpoint": {"checkpoint_id": "c9"}, "next": [], "tasks": []}
        asked = {"checkpoint": {"checkpoint_id": "c1"}, "next": ["review"], "tasks": tasks}
        # A fork's own checkpoint cannot be forked again.
        fork: dict[str, Any] = {
            **asked,
            "checkpoint": {"checkpoint_id": "c2"},
            "metadata": {"source": "fork"},
        }
        fork["parent_checkpoint"] = asked["checkpoint"]
        return JSONResponse([end, fork, asked] if self.fork else [end, asked])

    async def wait(self, request: Request) -> Response:
        body = await request.json()
        assert body["assistant_id"] == "assistant-1"
        if "checkpoint" in body:
            assert body["checkpoint"] == {"checkpoint_id": "c1"}
            await asyncio.sleep(0.2)
            self.fork += 1
            self.taken.clear()
            return JSONResponse({})
        if self.fail:
            self.fail -= 1
            # A run that failed is no HTTP error there.
            error = {"error": "OSError", "message": "the disk is full"}
            return JSONResponse({"__error__": error})
        for interrupt, decision in body["command"]["resume"].items():
            _, fork, id_ = interrupt.split("-")
            assert int(fork) == self.fork
            self.taken[id_] = decision
        return JSONResponse({})


@contextmanager
def served(backend: Run | Threads) -> Iterator[str]:
    """Serve a backend and the page in a thread: its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = Starlette(routes=backend.routes())
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
