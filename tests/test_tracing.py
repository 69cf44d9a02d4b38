"""Traces of model calls: what a collector of LangSmith's is sent, and what callbacks see."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fakes import Endpoint, error
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from processes import env_of, run_process
from traces import Collector

from nodes.context import Context
from nodes.generate import Generated
from nodes.llm import Call, CallFailed, CallOrigin, make_call
from nodes.llm.chat_model import ModelClient
from nodes.llm.endpoint import Endpoint as Address
from nodes.llm.endpoint import EndpointClient

REFERENCE = {
    "instruction": "Why are there two tides a day?",
    "response": "The Moon pulls on the near side most, so there are two bulges.",
}
STAGES = {"preflight", "extract", "propose", "screen", "generate", "critique"}
KEY, SECRET = "sk-not-for-traces", "lsv2_pt_not_for_traces"
USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
MESSAGES = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})
ORIGIN = CallOrigin("a", "0/0")
CALL = make_call("generate", MESSAGES, Generated, Context(model="writer"), ORIGIN)
TEXT_CALL = replace(CALL, answer=None, text=True)


def client_at(url: str) -> EndpointClient:
    async def resolve(model: str, judge: bool) -> Address:
        return Address(url, KEY)

    return EndpointClient(resolve, max_retries=0)


@pytest.fixture(scope="module")
def collector(tmp_path_factory):
    """What was sent of one traced run of the command line.

    Its seed is its reference, so nothing is embedded: to import what embeds takes most of the time.
    """
    folder = tmp_path_factory.mktemp("traced")
    (folder / "references.jsonl").write_text(json.dumps(REFERENCE) + "\n")
    flags = ["--references", "references.jsonl", "--out", "run"]
    flags += ["--model", "gpt-4o-mini", "--quiet", "--references-per-seed", "1"]
    with Collector() as collector, Endpoint() as endpoint:
        done = run_process(
            "run",
            *flags,
            cwd=folder,
            OPENAI_BASE_URL=endpoint.url,
            OPENAI_API_KEY=KEY,
            LANGSMITH_TRACING="true",
            LANGSMITH_ENDPOINT=collector.url,
            LANGSMITH_API_KEY=SECRET,
        )
        assert done.returncode == 0, done.stderr
        collector.calls = len(endpoint.bodies) + len(endpoint.preflights)
    return collector


def metadata(run: dict[str, Any]) -> dict[str, Any]:
    return run["extra"]["metadata"]


def test_every_call_is_a_model_run_named_by_its_stage(collector):
    assert {run["name"] for run in collector.model_runs} == STAGES
    assert len(collector.model_runs) == collector.calls
    tree = collector.tree()
    assert tree[tree.index("synthesizer") + 1] == "  retrieve"
    assert "    propose" in tree
    assert not any("ChatOpenAI" in line for line in tree)


def test_every_model_run_has_its_usage_and_cost(collector):
    for run in collector.model_runs:
        usage = metadata(run)["usage_metadata"]
        assert usage["input_tokens"] > 0
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        assert usage["input_token_details"] == {"cache_read": 0}
        assert usage["output_token_details"] == {"reasoning": 0}
        assert usage["total_cost"] == pytest.approx(usage["input_cost"] + usage["output_cost"])
        assert usage["total_cost"] > 0


def test_every_model_run_says_which_model_was_asked_for_which_sample(collector):
    (generate,) = [run for run in collector.model_runs if run["name"] == "generate"]
    found = metadata(generate)
    assert found["ls_model_name"] == "gpt-4o-mini"
    assert found["ls_provider"] == "127.0.0.1"
    assert found["ls_temperature"] == 0.7
    assert (found["slot"], found["draw"]) == ("0/0", 0)
    assert found["seed_id"]


def test_a_prompt_is_sent_once_and_no_key(collector):
    for run in collector.model_runs:
        prompt = run["inputs"]["messages"][0][-1]["kwargs"]["content"]
        assert json.dumps(run).count(json.dumps(prompt)[1:-1]) == 1
        assert run["outputs"]["generations"][0][0]["text"]
    text = json.dumps(collector.runs)
    assert KEY not in text
    assert SECRET not in text


class Watcher(BaseCallbackHandler):
    def __init__(self) -> None:
        self.begun: list[str] = []
        self.texts: list[str] = []
        self.messages: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.failed: CallFailed | None = None

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.begun.append(kwargs["name"])
        self.metadata.append(kwargs["metadata"])

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.texts.append(response.generations[0][0].text)
        self.messages.append(response.generations[0][0].message)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(str(error))


async def watched(complete: EndpointClient, call: Call) -> Watcher:
    watcher = Watcher()
    try:
        await RunnableLambda(complete.__call__).ainvoke(call, config={"callbacks": [watcher]})
    except CallFailed as failed:
        watcher.failed = failed
    finally:
        await complete.aclose()
    return watcher


async def test_an_answer_by_tools_is_shown_as_text():
    def script(body: dict[str, Any], number: int) -> Any:
        if "response_format" in body:
            return error(400, "'response_format' of type 'json_schema' is not supported")
        return {"response": "so"}

    with Endpoint(script) as endpoint:
        watcher = await watched(client_at(endpoint.url), CALL)
    assert watcher.texts[-1] == '{"response": "so"}'
    assert "probe" in watcher.begun
    assert watcher.errors


async def test_thoughts_and_cached_tokens_are_shown():
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 6},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    message = {"role": "assistant", "content": "So.", "reasoning_content": "It is so."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}

    def script(body: dict[str, Any], number: int) -> Any:
        return web.json_response({"model": "m", "choices": [choice], "usage": usage})

    with Endpoint(script) as endpoint:
        watcher = await watched(client_at(endpoint.url), TEXT_CALL)
    (shown,) = watcher.messages
    assert shown.additional_kwargs["reasoning_content"] == "It is so."
    assert shown.usage_metadata["input_token_details"]["cache_read"] == 6
    assert shown.usage_metadata["output_token_details"]["reasoning"] == 4
    assert "total_cost" not in shown.usage_metadata


async def test_a_failed_request_is_a_run_that_failed():
    with Endpoint(lambda body, n: error(400, "no such thing")) as endpoint:
        watcher = await watched(client_at(endpoint.url), TEXT_CALL)
    assert watcher.failed is not None
    assert watcher.errors
    assert not watcher.texts


async def test_a_providers_call_is_one_run_too():
    class Model(FakeMessagesListChatModel):
        pass

    def init(name: str, model_provider: str, **fields: Any) -> Any:
        return Model(responses=[AIMessage("Hi.", usage_metadata=USAGE)])

    call = replace(TEXT_CALL, model="anthropic:claude")
    watcher = await watched(ModelClient(init=init), call)
    assert watcher.begun == ["generate"]
    assert watcher.texts == ["Hi."]
    assert watcher.metadata[0]["ls_provider"] == "anthropic"
    assert watcher.metadata[0]["ls_model_name"] == "claude"
    assert watcher.messages[0].usage_metadata["input_tokens"] == 3


def test_without_tracing_none_of_it_is_imported():
    code = (
        "import sys; from nodes.llm.endpoint import EndpointClient, is_traced; "
        "assert not is_traced(); assert 'nodes.llm.tracing' not in sys.modules; "
        "assert 'langchain_core' not in sys.modules"
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, env=env_of({}), cwd=root)
