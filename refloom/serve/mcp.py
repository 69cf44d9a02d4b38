"""The synthesizer as a tool of the Model Context Protocol, for coding agents.

LangGraph's own endpoint for it gives results as Python text, takes any run, and can stop for a
person whom nobody asks. This one gives typed JSON within limits of its own. It is stateless: each
request is answered by one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Coroutine
from functools import cache
from importlib.metadata import version
from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from graph.builder import Graph
from nodes.context import Context
from nodes.inputs import (
    BadInput,
    CriterionInputs,
    ReferenceInputs,
    SeedInput,
    read_input,
    read_input_criteria,
)
from nodes.llm import ProviderStopped
from nodes.state import Usage, add_usage, no_usage

MCP_VARIABLE = "REFLOOM_MCP"
PROTOCOL_VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26")
TOOL_NAME = "synthesizer"
# An agent waits for a call, often for no longer than a minute.
MAX_SAMPLES = 5
MAX_CALLS = 4

# What servers write into their log of a client that did not wait; nobody is sent it.
CLIENT_CLOSED_REQUEST = 499
INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32600, -32601, -32602

DESCRIPTION = """Make instruction-tuning samples about a subject by reference-level feedback.

Give a seed: what the new data should be about, in a sentence. For it the tool takes curated
references (those you give, else the most relevant of the server's index), learns what makes them
good, writes new instructions, and writes, judges and refines a response to each until the criteria
pass. It takes from half a minute to some minutes and calls a language model several times a sample.

Use only samples with status "accepted" as training data. "rejected" ones did not pass: `reason` and
`verdicts` say why. "failed" ones have an `error`. An empty list means that every instruction was
too near to the seed or the references, or failed its own criteria: give another seed. Nothing is
stored on the server, and the same arguments make much the same samples again."""


class SynthesizerArguments(TypedDict):
    """What an agent gives."""

    seed: Annotated[
        SeedInput, Field(title="Seed", description="What the new samples should be about.")
    ]
    references: NotRequired[ReferenceInputs]
    criteria: NotRequired[CriterionInputs]
    samples: NotRequired[
        Annotated[
            int,
            Field(
                title="Samples",
                description="Instructions proposed; those that pass get a response. 1 unless said.",
                ge=1,
                le=MAX_SAMPLES,
            ),
        ]
    ]


class VerdictResult(TypedDict):
    """The verdict of one criterion on a response."""

    criterion: str
    must: bool
    verdict: str
    reason: str


class SampleResult(TypedDict):
    """One sample, without the attempts before the last."""

    id: str
    status: Annotated[str, Field(description='"accepted", "rejected" or "failed".')]
    reason: str | None
    instruction: str | None
    response: str | None
    verdicts: list[VerdictResult]
    attempts: Annotated[int, Field(description="Responses that were written and judged.")]
    reference_ids: list[str]
    error: str | None


class UsageResult(TypedDict):
    """The model calls of all samples."""

    calls: int
    prompt_tokens: int
    completion_tokens: int


class SynthesizerResult(TypedDict):
    """What an agent gets."""

    samples: list[SampleResult]
    usage: UsageResult


_ARGUMENTS = TypeAdapter(SynthesizerArguments)


def is_mcp_on() -> bool:
    """Whether `REFLOOM_MCP` switches the endpoint on."""
    return os.environ.get(MCP_VARIABLE, "").strip().lower() in ("1", "true", "yes", "on")


def _models() -> dict[str, Any]:
    """The models that the server's environment names; an agent cannot choose them."""
    variables = {"model": "REFLOOM_MODEL", "judge_model": "REFLOOM_JUDGE_MODEL"}
    return {name: os.environ[value] for name, value in variables.items() if os.environ.get(value)}


class McpEndpoint:
    """The endpoint `/mcp`: answers JSON-RPC requests, and runs the graph for calls of the tool."""

    def __init__(self, graph: Graph) -> None:
        """`graph` is the synthesizer."""
        self._graph = graph
        self._calls = asyncio.Semaphore(MAX_CALLS)

    async def respond(self, request: Request) -> Response:
        """Answer one request; another status than 200 says why there is no answer."""
        if not is_mcp_on():
            return _refusal(404, f"MCP is off on this server: start it with {MCP_VARIABLE}=1")
        if request.method != "POST":
            # No session that could be read from or ended.
            return _refusal(405, "send JSON-RPC requests by POST")
        try:
            message = json.loads(await request.body())
        except (ValueError, RecursionError):
            return _refusal(400, "the body is not valid JSON")
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            return _refusal(400, "the body is not one JSON-RPC 2.0 message")
        if "id" not in message or "method" not in message:
            # A notification or a response: there is nothing to say to either.
            return Response(status_code=202)
        id_ = message["id"]
        if isinstance(id_, bool) or not isinstance(id_, str | int | float):
            return _refusal(400, "the id is neither a text nor a number")
        if isinstance(id_, float) and not math.isfinite(id_):
            return _refusal(400, "the id is not a number that JSON has")
        try:
            answer = {"result": await _while_connected(request, self._answer(message))}
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except _RpcError as error:
            answer = {"error": {"code": error.code, "message": str(error)}}
        # ASCII-only JSON: a lone surrogate in a text does not fail here.
        body = json.dumps({"jsonrpc": "2.0", "id": id_, **answer})
        return Response(body, media_type="application/json")

    async def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """The result of a request. Raises `_RpcError`."""
        method, params = message["method"], message.get("params") or {}
        if not isinstance(params, dict):
            raise _RpcError(INVALID_REQUEST, "params is not an object")
        if method == "initialize":
            wanted = params.get("protocolVersion")
            return {
                "protocolVersion": wanted if wanted in PROTOCOL_VERSIONS else PROTOCOL_VERSIONS[0],
                "capabilities": {"tools": {"listChanged": False}},
                "serverInfo": {"name": "refloom", "version": version("refloom")},
            }
        if method == "ping":
            return {}
        if method == "tools/list":
            return {"tools": [describe_tool()]}
        if method == "tools/call":
            if params.get("name") != TOOL_NAME:
                raise _RpcError(INVALID_PARAMS, f"unknown tool; there is {TOOL_NAME!r}")
            return await self._call(params.get("arguments") or {})
        raise _RpcError(METHOD_NOT_FOUND, f"no method {str(method)[:100]!r}")

    async def _call(self, arguments: Any) -> dict[str, Any]:
        """Run the synthesizer; what an agent can mend comes back as the tool's error."""
        try:
            read = _ARGUMENTS.validate_python(arguments)
            graph_input = {
                name: read[name] for name in ("seed", "references", "criteria") if name in read
            }
            read_input(graph_input)
            read_input_criteria(graph_input)
            context = Context(**_models(), per_seed=read.get("samples", 1), review="never")
            async with self._calls:
                state = await self._graph.ainvoke(graph_input, context=context)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            return _tool_error(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        except (BadInput, ProviderStopped) as error:
            return _tool_error(str(error))
        result = summarise(state["samples"])
        return {
            "content": [{"type": "text", "text": json.dumps(result)}],
            "structuredContent": result,
        }


@cache
def describe_tool() -> dict[str, Any]:
    """The tool as `tools/list` gives it, with the JSON schemas of its input and output."""
    return {
        "name": TOOL_NAME,
        "title": "Make instruction-tuning samples",
        "description": DESCRIPTION,
        "inputSchema": _ARGUMENTS.json_schema(),
        "outputSchema": TypeAdapter(SynthesizerResult).json_schema(),
        "annotations": {
            "readOnlyHint": False,
            "destructiveHint": False,
            "idempotentHint": False,
            "openWorldHint": True,
        },
    }


def summarise(samples: list[dict[str, Any]]) -> SynthesizerResult:
    """The samples of a run as an agent gets them."""
    usage: Usage = no_usage()
    for sample in samples:
        usage = add_usage(usage, sample["usage"])
    return {
        "samples": [_summarise_sample(sample) for sample in samples],
        "usage": {
            "calls": usage["calls"],
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
        },
    }


def _summarise_sample(sample: dict[str, Any]) -> SampleResult:
    criteria = {criterion["id"]: criterion for criterion in sample.get("criteria") or ()}
    attempts = sample.get("attempts") or []
    # The response that stands is that of the best attempt, not always the last.
    best = next((a for a in attempts if a["response"] == sample.get("response")), None)
    error = sample.get("error")
    return {
        "id": sample["id"],
        "status": sample["status"],
        "reason": sample.get("reason"),
        "instruction": sample.get("instruction"),
        "response": sample.get("response"),
        "verdicts": [
            {
                "criterion": criteria[one["criterion_id"]]["text"],
                "must": criteria[one["criterion_id"]]["must"],
                "verdict": one["verdict"],
                "reason": one["reason"],
            }
            for one in (best["verdicts"] if best else ())
            if one["criterion_id"] in criteria
        ],
        "attempts": len(attempts),
        "reference_ids": sample.get("reference_ids") or [],
        "error": None if error is None else f"{error['stage']}: {error['message']}",
    }


async def _while_connected(
    request: Request, work: Coroutine[Any, Any, dict[str, Any]]
) -> dict[str, Any]:
    """The result of some work, which is stopped if the client hangs up.

    Its result could be given to nobody: the endpoint keeps none. Raises `ClientDisconnect`.
    """
    working, hanging_up = asyncio.create_task(work), asyncio.create_task(_hang_up(request))
    try:
        await asyncio.wait((working, hanging_up), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        for task in (working, hanging_up):
            task.cancel()
        await asyncio.gather(working, hanging_up, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    """Return once the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _RpcError(Exception):
    """A request that has no result, with JSON-RPC's code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def _tool_error(message: str) -> dict[str, Any]:
    return {"isError": True, "content": [{"type": "text", "text": message}]}


def _refusal(status: int, reason: str) -> Response:
    return JSONResponse({"detail": reason}, status)
