"""Models of providers: whose name is whose, how they are asked, and what their errors mean."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest
from fakes import Endpoint, ScriptedModel, error
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from processes import env_of, refloom

from graph.builder import build_graph
from nodes.context import Context
from nodes.inputs import BadInput
from nodes.llm import Answer, Call, CallFailed, ProviderStopped
from nodes.llm.chat_model import ModelClient, read_message
from nodes.llm.protocol import Transient
from nodes.llm.provider import (
    LISTED_VARIABLE,
    PROVIDERS,
    address_of,
    find_missing,
    keys_of,
    provider_of,
    variables_of,
)
from refloom.errors import InputError
from refloom.runs.client import CachedClient, Endpoints
from refloom.runs.cost import Budget, Price, Prices
from refloom.runs.journal import Journal
from refloom.runs.rate_limit import Limiter
from refloom.serve.request_limits import RequestRefused, _check_settings
from refloom.settings import OTHER_VARIABLES, Settings

KEY = "a-key-of-a-provider"


class Draft(Answer):
    response: str


def call(**fields: Any) -> Call:
    given: dict[str, Any] = {
        "stage": "generate",
        "messages": (
            {"role": "system", "content": "You write."},
            {"role": "user", "content": "Say <instruction>\nhi\n</instruction>"},
        ),
        "answer": Draft,
        "model": "groq:m",
        "judge": False,
        "seed": 7,
        "temperature": 0.5,
        "max_tokens": 300,
    }
    return Call(**(given | fields))


def text_call(**fields: Any) -> Call:
    return call(answer=None, text=True, **fields)


def says(*messages: AIMessage) -> Any:
    """An `init` whose model says these messages, in this order."""
    waiting = iter(messages)
    return lambda name, model_provider, **fields: GenericFakeChatModel(messages=waiting)


def openai_at(endpoint: Endpoint, made: list[dict[str, Any]] | None = None) -> Any:
    """An `init` of langchain-openai's model at a local server."""

    def init(name: str, model_provider: str, **fields: Any) -> ChatOpenAI:
        if made is not None:
            made.append({"name": name, "model_provider": model_provider, **fields})
        return ChatOpenAI(model=name, base_url=endpoint.url, api_key=KEY, **fields)

    return init


# Whose name it is.


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("anthropic:claude-x", "anthropic"),
        ("google_genai:gemini-x", "google_genai"),
        ("bedrock_converse:anthropic.claude-v1:0", "bedrock_converse"),
        ("ollama:qwen2.5:7b", "ollama"),
        # Taken for LangChain's, whoever else may have such a name.
        ("deepseek:7b", "deepseek"),
        ("openai:gpt-x", None),
        ("qwen2.5:7b", None),
        ("deepseek-r1:7b", None),
        ("library/deepseek:7b", None),
        ("ft:gpt-4o:org::id", None),
        ("anthropic/claude-3.5:beta", None),
        ("ollama/qwen2.5:7b", None),
        ("anthropic", None),
        ("anthropic:", None),
        ("Anthropic:claude-x", None),
        ("google-genai:gemini-x", None),
        ("local", None),
    ],
)
def test_only_a_prefix_that_langchain_knows_is_a_provider(model, provider) -> None:
    assert provider_of(model) == provider


def test_the_prefixes_are_those_of_the_installed_langchain() -> None:
    base = pytest.importorskip("langchain.chat_models.base", reason="langchain is not installed")
    modules = {name: entry[0].split(".")[0] for name, entry in base._BUILTIN_PROVIDERS.items()}
    assert {name: provider.module for name, provider in PROVIDERS.items()} == {
        name: module for name, module in modules.items() if name != "openai"
    }


def test_the_address_in_a_key_is_the_providers_own(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert address_of("anthropic:claude-x") == "anthropic"
    assert address_of("claude-x") is None
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://me:secret@127.0.0.1:2")
    assert address_of("anthropic:claude-x") == "anthropic http://127.0.0.1:2"


def test_keys_and_addresses_of_a_provider_are_known_by_their_variables(monkeypatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("GROQ_API_KEY", "another")
    assert keys_of(["anthropic:claude-x", "m"]) == [KEY]
    assert {"ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"} <= set(variables_of(["anthropic:x"]))
    settings = Settings(model="m", judge_model="anthropic:claude-x")
    assert KEY in Endpoints(settings).api_keys()


async def test_a_providers_model_needs_no_endpoint_but_its_package() -> None:
    settings = Settings(model="anthropic:claude-x", judge_model="local")
    assert find_missing("m") is None
    missing = find_missing("anthropic:claude-x")
    if missing is None:
        await Endpoints(settings).check(settings)
        return
    assert "needs the package" in missing and "pip install 'refloom[providers]'" in missing
    with pytest.raises(InputError, match="langchain"):
        await Endpoints(settings).check(settings)


def test_a_package_beside_the_extra_is_named() -> None:
    assert "langchain-perplexity" in str(find_missing("perplexity:sonar"))


def test_a_missing_package_ends_a_run_before_any_call(tmp_path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"instruction": "Why?", "response": "So."}\n')
    with Endpoint() as endpoint:
        done = refloom(
            "run", "--references", "pairs.jsonl", "--out", "rows", "--base-url", endpoint.url,
            "--model", "m", "--judge-model", "perplexity:sonar", cwd=tmp_path,
        )  # fmt: skip
    assert (done.returncode, endpoint.bodies) == (2, [])
    (line,) = done.stderr.splitlines()
    assert "model 'perplexity:sonar' needs the package langchain-perplexity" in line


def test_no_package_of_a_provider_is_imported_for_an_endpoints_name() -> None:
    code = """
import asyncio, sys
from nodes.llm import Call, ProviderStopped
from nodes.llm.chat_model import ModelClient
messages = ({"role": "user", "content": "hi"},)
call = Call("generate", messages, None, "m", False, 0, 0.0, 9, text=True)
try:
    asyncio.run(ModelClient()(call))
except ProviderStopped:
    print([name for name in sys.modules if name.startswith("langchain")])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env_of({}), timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_price_is_that_of_the_name_without_the_provider() -> None:
    prices = Prices({"claude-x": Price(1.0, 2.0), "groq:m": Price(3.0, 4.0), "m": Price(5.0, 6.0)})
    assert prices.get("anthropic:claude-x") == Price(1.0, 2.0)
    assert prices.get("anthropic:claude-x-2026-01-31") == Price(1.0, 2.0)
    assert prices.get("groq:m") == Price(3.0, 4.0)
    assert prices.get("ft:m") is None


# Who may name it.


async def test_the_graph_refuses_a_provider_that_is_not_listed(monkeypatch) -> None:
    refused = ModelClient(only_listed=True, init=says(AIMessage("Hi.")))
    with pytest.raises(BadInput, match="REFLOOM_PROVIDERS must list it"):
        await refused(text_call())
    monkeypatch.setenv(LISTED_VARIABLE, "anthropic, groq")
    assert (await refused(text_call())).text == "Hi."
    await refused.aclose()


async def test_a_graph_built_for_clients_refuses_it() -> None:
    reference = {"instruction": "Why two tides a day?", "response": "The Moon raises two bulges."}
    inputs = {"seed": {"instruction": "Waves"}, "references": [reference]}
    with pytest.raises(BadInput, match="model: 'groq:m'"):
        await build_graph().ainvoke(inputs, context=Context(model="groq:m"))


def test_the_variable_is_no_unknown_setting() -> None:
    assert LISTED_VARIABLE in OTHER_VARIABLES


# How it is asked, by a model that ships with LangChain.


async def test_plain_text_comes_back_with_thoughts_apart() -> None:
    message = AIMessage(
        [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "So."}],
        usage_metadata={
            "input_tokens": 30,
            "output_tokens": 12,
            "total_tokens": 42,
            "input_token_details": {"cache_read": 20},
            "output_token_details": {"reasoning": 4},
        },
        response_metadata={"stop_reason": "end_turn"},
    )
    client = ModelClient(init=says(message))
    reply = await client(text_call())
    await client.aclose()
    assert (reply.text, reply.reasoning, reply.finish) == ("So.", "hm", "stop")
    counts = [reply.usage[k] for k in ("prompt_tokens", "cached_tokens", "completion_tokens")]
    assert counts == [30, 20, 12]


async def test_a_model_without_tools_is_asked_by_the_prompt() -> None:
    learned: list[str] = []
    client = ModelClient(
        init=says(AIMessage('{"response": "So."}')),
        on_learned=lambda model, sentence: learned.append(sentence),
    )
    assert (await client(call())).text == '{"response": "So."}'
    await client.aclose()
    assert any("asked by text" in sentence for sentence in learned)


async def test_a_model_without_log_probabilities_is_no_judge_by_odds() -> None:
    client = ModelClient(init=says(AIMessage("Yes")))
    with pytest.raises(ProviderStopped, match="--judge-method verdict"):
        await client(call(answer=None))
    await client.aclose()


@pytest.mark.parametrize(
    ("metadata", "finish"),
    [
        ({"stop_reason": "end_turn"}, "stop"),
        ({"stop_reason": "tool_use"}, "stop"),
        ({"stop_reason": "max_tokens"}, "length"),
        ({"stopReason": "guardrail_intervened"}, "content_filter"),
        ({"finish_reason": "STOP"}, "stop"),
        ({"finish_reason": "MAX_TOKENS"}, "length"),
        ({"finish_reason": "FinishReason.MAX_TOKENS"}, "length"),
        ({"finish_reason": "SAFETY"}, "content_filter"),
        ({"prompt_feedback": {"block_reason": "SAFETY"}}, "content_filter"),
        ({"done_reason": "length"}, "length"),
        ({}, "stop"),
    ],
)
def test_finish_reasons_of_all_spellings(metadata, finish) -> None:
    reply = read_message(AIMessage("So.", response_metadata=metadata), structured=False)
    assert reply.finish == finish


def test_a_refusal_says_why() -> None:
    message = AIMessage("I will not.", response_metadata={"stop_reason": "refusal"})
    assert read_message(message, structured=True).refusal == "I will not."


def test_the_arguments_are_read_as_the_model_wrote_them() -> None:
    written = r'{"response": "\frac{1}{2}"}'
    kwargs = {"tool_calls": [{"function": {"name": "generate", "arguments": written}}]}
    parsed = [{"name": "generate", "args": {"response": "\frac{1}{2}"}, "id": "1"}]
    message = AIMessage("", additional_kwargs=kwargs, tool_calls=parsed)
    assert read_message(message, structured=True).text == written
    only_parsed = AIMessage("", tool_calls=[{"name": "g", "args": {"response": "é"}, "id": "1"}])
    assert read_message(only_parsed, structured=True).text == '{"response": "é"}'
    broken = [{"name": "g", "args": '{"response": ', "id": "1", "error": None}]
    message = AIMessage("", invalid_tool_calls=broken)
    assert read_message(message, structured=True).text == '{"response": '


# The same at a server, by langchain-openai.


async def test_a_call_has_its_parameters_and_the_clients_retries_are_off() -> None:
    made: list[dict[str, Any]] = []
    with Endpoint(lambda body, number: {"response": "So."}) as endpoint:
        client = ModelClient(init=openai_at(endpoint, made), timeout=33)
        structured = await client(call())
        text = await client(text_call(room=2))
        await client.aclose()
    assert made[1] == {
        "name": "m", "model_provider": "groq", "max_retries": 0, "timeout": 33,
        "disable_streaming": True, "cache": False,
    }  # fmt: skip
    assert json.loads(structured.text or "") == {"response": "So."}
    assert text.text == "So."
    first, second = endpoint.bodies
    assert (first["temperature"], first["seed"]) == (0.5, 7)
    assert first["response_format"]["json_schema"]["name"] == "generate"
    assert second.get("max_completion_tokens", second.get("max_tokens")) == 600
    assert "response_format" not in second
    assert structured.usage["prompt_tokens"] == 10


async def test_a_stages_own_fields_are_sent() -> None:
    with Endpoint(lambda body, number: "So.") as endpoint:
        client = ModelClient(init=openai_at(endpoint))
        await client(text_call(extra_body={"top_p": 0.9, "verbosity_of_mine": 1}))
        await client.aclose()
    (body,) = endpoint.bodies
    assert (body["top_p"], body["verbosity_of_mine"]) == (0.9, 1)


@pytest.mark.parametrize(
    ("answer", "kind", "wait"),
    [
        (error(429, "slow down", "rate_limit_exceeded", **{"retry-after": "3"}), "rate_limit", 3),
        (error(529, "Overloaded"), "overloaded", None),
        (error(500, "boom"), "server", None),
    ],
)
async def test_what_passes_is_transient_and_sent_once(answer, kind, wait) -> None:
    with Endpoint(lambda body, number: answer) as endpoint:
        client = ModelClient(init=openai_at(endpoint), max_retries=0)
        with pytest.raises(Transient) as failed:
            await client(text_call())
        await client.aclose()
    assert (failed.value.kind, failed.value.retry_after) == (kind, wait)
    assert len(endpoint.bodies) == 1


async def test_the_wrong_key_names_the_variable_and_not_the_key(monkeypatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    refusal = error(401, f"Incorrect API key provided: {KEY}", "invalid_api_key")
    with Endpoint(lambda body, number: refusal) as endpoint:
        client = ModelClient(init=openai_at(endpoint), max_retries=0)
        with pytest.raises(ProviderStopped, match="check GROQ_API_KEY") as stopped:
            await client(text_call())
        await client.aclose()
    assert KEY not in str(stopped.value)


async def test_an_unknown_model_stops() -> None:
    refusal = error(404, "The model `m` does not exist", "model_not_found")
    with Endpoint(lambda body, number: refusal) as endpoint:
        client = ModelClient(init=openai_at(endpoint), max_retries=0)
        with pytest.raises(ProviderStopped, match="groq does not know model 'groq:m'"):
            await client(text_call())
        await client.aclose()


async def test_no_connection_is_transient() -> None:
    with Endpoint() as endpoint:
        pass
    client = ModelClient(init=openai_at(endpoint), max_retries=0)
    with pytest.raises(Transient) as failed:
        await client(text_call())
    await client.aclose()
    assert failed.value.kind == "connection"


async def test_a_mode_that_a_model_refuses_is_left_after_a_probe() -> None:
    def script(body: dict[str, Any], number: int) -> Any:
        if "response_format" in body:
            return error(400, "response_format is not supported by this model")
        return {"response": "So."}

    with Endpoint(script) as endpoint:
        client = ModelClient(init=openai_at(endpoint), max_retries=0)
        reply = await client(call())
        await client.aclose()
    assert json.loads(reply.text or "") == {"response": "So."}
    assert "tools" in endpoint.bodies[-1]


async def test_an_error_in_a_prompts_words_changes_nothing() -> None:
    with Endpoint(lambda body, number: error(400, "the prompt is odd")) as endpoint:
        client = ModelClient(init=openai_at(endpoint), max_retries=0)
        with pytest.raises(CallFailed, match="bad_request"):
            await client(text_call())
        await client.aclose()


async def test_a_model_that_cannot_be_made_stops() -> None:
    def init(name: str, model_provider: str) -> Any:
        raise ValueError("no region is set\nand more")

    client = ModelClient(init=init)
    with pytest.raises(ProviderStopped, match=r"'groq:m' cannot be set up: no region is set: che"):
        await client(text_call())
    await client.aclose()


async def test_an_endpoints_models_go_to_the_endpoint(monkeypatch) -> None:
    with Endpoint(lambda body, number: "So.") as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        client = ModelClient(init=says(AIMessage("Hi.")))
        assert (await client(text_call(model="qwen2.5:7b"))).text == "So."
        assert (await client(text_call(judge=True))).text == "Hi."
        await client.aclose()
    assert [body["model"] for body in endpoint.bodies] == ["qwen2.5:7b"]


def client_at(base_url: str, journal: Journal) -> CachedClient:
    """A run's client; only its keys are looked at."""
    prices = Prices({})
    return CachedClient(
        ScriptedModel(),
        journal,
        Limiter(1),
        Budget(max_cost=None, max_tokens=None, prices=prices),
        timeout=1,
        addresses=(base_url, base_url),
        stages={},
        prices=prices,
    )


async def test_the_key_of_a_call_holds_provider_and_address(tmp_path, monkeypatch) -> None:
    journal = Journal(tmp_path)
    here, there = (client_at(url, journal) for url in ("http://here/v1", "http://there/v1"))
    assert here._key(call(model="m")) != there._key(call(model="m"))
    at_groq = here._key(call())
    assert at_groq == there._key(call())
    monkeypatch.setenv("GROQ_API_BASE", "http://127.0.0.1:1")
    assert here._key(call()) != at_groq
    journal.close()


def test_a_server_refuses_it_before_a_run_begins(monkeypatch) -> None:
    for setting in ("model", "judge_model"):
        with pytest.raises(RequestRefused, match=f"context.{setting}: 'groq:m' .* must list it"):
            _check_settings({"context": {"model": "m", setting: "groq:m"}})
    monkeypatch.setenv(LISTED_VARIABLE, "groq")
    _check_settings({"context": {"model": "groq:m"}})


def test_one_event_loop_after_another_gets_its_answers() -> None:
    """Packages keep connections for the process, and a connection works in one loop only."""

    async def ask(endpoint: Endpoint) -> str | None:
        client = ModelClient(init=openai_at(endpoint), max_retries=0)
        replies = [await client(text_call(seed=seed)) for seed in range(2)]
        await client.aclose()
        return replies[-1].text

    with Endpoint(lambda body, number: "So.") as endpoint:
        assert [asyncio.run(ask(endpoint)) for _ in range(3)] == ["So."] * 3
