"""What endpoints say of a fault, by provider: the forms that are known, and what must not count.

The bodies are rebuilt from public reports; the name of a row says who answers so, and how.
"""

import json
import re
import time
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nodes.llm.faults import (
    FORMS,
    Fault,
    FaultKind,
    Form,
    is_error_line,
    read_fault,
    read_wait,
    redact_keys,
)

Row = tuple[int, Any, Fault]


def sure(kind: FaultKind, feature: str | None = None, certain: bool = True, **more: Any) -> Fault:
    return Fault(kind, "", feature, certain, **more)


def unsure(kind: FaultKind, feature: str | None = None, **more: Any) -> Fault:
    return sure(kind, feature, certain=False, **more)


def error(message: Any, type: Any = None, code: Any = None, param: Any = None) -> dict[str, Any]:
    """OpenAI's form."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def vllm(message: str, type: str = "BadRequestError", param: Any = None) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": type, "param": param, "code": 400}


def anthropic(type: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": type, "message": message}, "request_id": "req_1"}


def google(code: int, status: str, message: str, *details: dict[str, Any]) -> list[dict[str, Any]]:
    """Gemini's compatible endpoint answers with a list."""
    found: dict[str, Any] = {"code": code, "message": message, "status": status}
    return [{"error": found | ({"details": list(details)} if details else {})}]


def google_detail(type: str, **more: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/google.rpc.{type}", **more}


def openrouter(code: int, message: str, **metadata: Any) -> dict[str, Any]:
    return {"error": {"message": message, "code": code, "metadata": metadata}, "user_id": "u"}


def raw(provider: str, text: Any) -> dict[str, Any]:
    return {"provider_name": provider, "raw": text if isinstance(text, str) else json.dumps(text)}


def litellm(name: str, provider: str, inner: str, code: str) -> dict[str, Any]:
    """A LiteLLM proxy: the upstream's error as text, behind the names of two exceptions."""
    return error(
        f"litellm.{name}: {provider}Exception - {inner}. Received Model Group=m", code=code
    )


def llamacpp(code: int, message: str, type: str, **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "type": type, **more}}


INVALID = "invalid_request_error"
TOO_LONG = "This model's maximum context length is {} tokens. However, "
UNKNOWN = "Invalid JSON payload received. Unknown name "

KEY: dict[str, Row] = {
    "OpenAI: 401 invalid_api_key": (
        401, error("Incorrect API key provided: sk-a**b.", INVALID, "invalid_api_key"), sure("key")
    ),
    "OpenAI: 401 without a key": (
        401, error("You didn't provide an API key. Use an Authorization header.", INVALID),
        sure("key"),
    ),
    "OpenAI: 403 country": (
        403, error("Country, region, or territory not supported", "request_forbidden",
                   "unsupported_country_region_territory"), sure("key"),
    ),
    "Gemini: 400 API_KEY_INVALID": (
        400, google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.",
                    google_detail("ErrorInfo", reason="API_KEY_INVALID")), sure("key"),
    ),
    "Gemini: 400 in words": (
        400, google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."),
        unsure("key"),
    ),
    "Gemini: 403 PERMISSION_DENIED": (
        403, google(403, "PERMISSION_DENIED", "The caller does not have permission"), sure("key")
    ),
    "Gemini: 400 expired": (
        400, google(400, "INVALID_ARGUMENT", "API key expired. Please renew the API key."),
        unsure("key"),
    ),
    "Anthropic: 401 authentication_error": (
        401, anthropic("authentication_error", "invalid x-api-key"), sure("key")
    ),
    "Anthropic: 403 permission_error": (
        403, anthropic("permission_error", "Your account may not use this resource"), sure("key")
    ),
    "Mistral: 401 detail": (401, {"detail": "Unauthorized"}, sure("key")),
    "DeepSeek: 401": (
        401, error("Authentication Fails, Your api key: ****7a6f is invalid",
                   "authentication_error", INVALID), sure("key"),
    ),
    "DashScope: 401 InvalidApiKey": (
        401, {"code": "InvalidApiKey", "message": "No API-key provided."}, sure("key")
    ),
    "DashScope: 401 invalid_api_key": (
        401, error("Incorrect API key provided.", INVALID, "invalid_api_key"), sure("key")
    ),
    "Together: 401": (
        401, error("Invalid API key provided.", INVALID, "invalid_api_key"), sure("key")
    ),
    "xAI: 400 with a string as error": (
        400, {"code": "Client specified an invalid argument", "error":
              "Incorrect API key provided: na***ys. You can obtain an API key."}, unsure("key"),
    ),
    "Cerebras: 401 wrong_api_key": (
        401, {"message": "Wrong API Key", "type": INVALID, "param": "api_key",
              "code": "wrong_api_key"}, sure("key"),
    ),
    "OpenRouter: 401": (401, openrouter(401, "No auth credentials found"), sure("key")),
    "OpenRouter: 401 in a 200": (200, openrouter(401, "No auth credentials found"), sure("key")),
    "OpenRouter: 401 user": (401, openrouter(401, "User not found."), sure("key")),
    "LiteLLM: 401 auth_error": (
        401, error("Authentication Error, Invalid proxy server token passed.", "auth_error",
                   "401"), sure("key"),
    ),
    "LiteLLM: 400 wraps 401 of another": (
        400, litellm("AuthenticationError", "OpenAI", json.dumps(error(
            "Incorrect API key provided: x.", INVALID, "invalid_api_key")), "401"), sure("key"),
    ),
    "Azure: 401": (
        401, {"error": {"code": "401", "message": "Access denied due to invalid subscription key "
              "or wrong API endpoint."}}, sure("key"),
    ),
    "Open WebUI: 200 detail": (200, {"detail": "Not authenticated"}, unsure("key")),
    "FastAPI: 403 detail": (403, {"detail": "Not authenticated"}, unsure("key")),
    "llama.cpp: 401": (
        401, llamacpp(401, "Invalid API Key", "authentication_error"), sure("key")
    ),
    "vLLM: 401": (401, {"error": "Unauthorized"}, sure("key")),
    "Groq: 401": (401, error("Invalid API Key", INVALID, "invalid_api_key"), sure("key")),
    "Bedrock: 403": (
        403, {"message": "The security token included in the request is invalid."}, unsure("key")
    ),
    "nginx: 401 page": (401, "<html><h1>401 Authorization Required</h1></html>", sure("key")),
    "One API: 400": (400, error("无效的令牌 (request id: 1)", "one_api_error"), unsure("key")),
}  # fmt: skip

MODEL: dict[str, Row] = {
    "OpenAI: 404 model_not_found": (
        404, error("The model `gpt-x` does not exist or you do not have access to it.", INVALID,
                   "model_not_found"), sure("model"),
    ),
    "OpenAI: 404 not a chat model": (
        404, error("This is not a chat model and thus not supported in the v1/chat/completions "
                   "endpoint.", INVALID, None, "model"), sure("model"),
    ),
    "OpenRouter: 400 not a valid model ID": (
        400, {"error": {"message": "no/such is not a valid model ID", "code": 400},
              "user_id": "u"}, unsure("model"),
    ),
    "OpenRouter: 404 no endpoints": (
        404, openrouter(404, "No endpoints found for no/such."), unsure("model")
    ),
    "DeepSeek: 400": (400, error("Model Not Exist", INVALID, INVALID), unsure("model")),
    "Ollama: 404": (
        404, error('model "llama3:70b" not found, try pulling it first', "api_error"),
        unsure("model"),
    ),
    "Ollama: 404 with a string": (404, {"error": "model 'x:7b' not found"}, unsure("model")),
    "Ollama: 500 too little memory": (
        500, error("model requires more system memory (40.1 GiB) than is available (7.1 GiB)",
                   "api_error"), unsure("model"),
    ),
    "vLLM: 404": (
        404, {"object": "error", "message": "The model `Qwen/Qwen2.5-7B` does not exist.", "type":
              "NotFoundError", "param": None, "code": 404}, unsure("model"),
    ),
    "vLLM: 404 names the parameter": (
        404, error("The model `q` does not exist.", "NotFoundError", 404, "model"), sure("model")
    ),
    "Azure: 404 DeploymentNotFound": (
        404, {"error": {"code": "DeploymentNotFound", "message":
              "The API deployment for this resource does not exist."}}, sure("model"),
    ),
    "LiteLLM: 400 a dict in the message": (
        400, {"error": {"message": {"error": "/chat/completions: Invalid model name passed in "
              "model=x. Call `/v1/models` to view available models."}, "type": "None", "param":
              "None", "code": "400"}}, unsure("model"),
    ),
    "LiteLLM: 400 a dict's print": (
        400, error("400: {'error': 'Invalid model name passed in model=x'}", "None", 400, "None"),
        unsure("model"),
    ),
    "LiteLLM: 401 key_model_access_denied": (
        401, error("key not allowed to access model. This key can only access models=['a'].",
                   "key_model_access_denied", "401", "model"), sure("model"),
    ),
    "Gemini: 404": (
        404, google(404, "NOT_FOUND", "models/gemini-x is not found for API version v1main, or is "
                    "not supported for generateContent."), unsure("model"),
    ),
    "Anthropic: 404 not_found_error": (
        404, anthropic("not_found_error", "model: claude-x"), unsure("model")
    ),
    "Groq: 404": (
        404, error("The model `x` does not exist or you do not have access to it.", INVALID,
                   "model_not_found"), sure("model"),
    ),
    "Groq: 400 decommissioned": (
        400, error("The model `mixtral` has been decommissioned and is no longer supported.",
                   INVALID, "model_decommissioned"), sure("model"),
    ),
    "Together: 400 model_not_available": (
        400, error("Unable to access model x. Please visit the list of models.", INVALID,
                   "model_not_available"), sure("model"),
    ),
    "Fireworks: 404": (
        404, {"error": {"message": "Model not found, inaccessible, and/or not deployed", "param":
              "model", "code": "NOT_FOUND", "type": "error"}}, sure("model"),
    ),
    "LM Studio: 404 nothing is loaded": (
        404, error("No models loaded. Please load a model in the developer page.", INVALID,
                   "model_not_found", "model"), sure("model"),
    ),
    "LM Studio: 400 could not load": (
        400, {"error": 'Failed to load model "qwen". Error: Model loading was stopped.'},
        unsure("model"),
    ),
    "Mistral: 400": (
        400, {"object": "error", "message": "Invalid model: mistral-x", "type": "invalid_model",
              "param": None, "code": "1500"}, sure("model"),
    ),
    "Volcengine: 404": (
        404, error("The model or endpoint x does not exist.", "NotFound",
                   "InvalidEndpointOrModel.NotFound"), sure("model"),
    ),
    "Zhipu: 400": (400, {"error": {"code": "1211", "message": "模型不存在"}}, sure("model")),
    "NVIDIA: 410 retired": (
        410, {"status": 410, "title": "Gone", "detail": "The model 'x' has reached its end of "
              "life on 2026-01-01."}, unsure("model"),
    ),
}  # fmt: skip

ADDRESS: dict[str, Row] = {
    "Open WebUI: 200 page": (200, "<!DOCTYPE html><title>Open WebUI</title>", sure("address")),
    "nginx: 404 page": (404, "<html><center>404 Not Found</center></html>", sure("address")),
    "Cloudflare: 403 page": (403, "<!DOCTYPE html><title>Just a moment..", sure("address")),
    "Go: 404 text": (404, "404 page not found", sure("address")),
    "405 empty": (405, "", sure("address")),
    "FastAPI: 404 detail": (404, {"detail": "Not Found"}, unsure("address")),
    "FastAPI: 405 detail": (405, {"detail": "Method Not Allowed"}, unsure("address")),
    "OpenAI: 404 doubled path": (
        404, error("Invalid URL (POST /v1/v1/chat/completions)", INVALID), unsure("address")
    ),
    "Azure: 404": (
        404, {"error": {"code": "404", "message": "Resource not found"}}, unsure("address")
    ),
    "llama.cpp: 404": (
        404, llamacpp(404, "File Not Found", "not_found_error"), unsure("address")
    ),
    "LM Studio: 200": (
        200, {"error": "Unexpected endpoint or method. (POST /chat/completion)"},
        unsure("address"),
    ),
    "Ollama: 200 at the root": (200, "Ollama is running", unsure("address")),
    "something else: 200": (200, {"status": "ok", "version": "1.2"}, unsure("address")),
    "moved: 301": (301, "", sure("address")),
    "moved: 307 page": (307, "<html>Temporary Redirect</html>", sure("address")),
}  # fmt: skip

CREDIT: dict[str, Row] = {
    "OpenAI: 429 insufficient_quota": (
        429, error("You exceeded your current quota, please check your plan and billing details.",
                   "insufficient_quota", "insufficient_quota"), sure("credit"),
    ),
    "OpenAI: 429 in words": (
        429, {"detail": "You exceeded your current quota, please check your plan and billing "
              "details."}, unsure("credit"),
    ),
    "OpenAI: 400 billing_hard_limit_reached": (
        400, error("Billing hard limit has been reached", INVALID, "billing_hard_limit_reached"),
        sure("credit"),
    ),
    "Anthropic: 400": (
        400, anthropic(INVALID, "Your credit balance is too low to access the API. Please go to "
                       "Plans & Billing."), unsure("credit"),
    ),
    "Anthropic: 402 billing_error": (
        402, anthropic("billing_error", "There is an issue with your payment."), sure("credit")
    ),
    "DeepSeek: 402": (
        402, error("Insufficient Balance", "unknown_error", INVALID), sure("credit")
    ),
    "OpenRouter: 402 too few": (
        402, openrouter(402, "This request requires more credits, or fewer max_tokens. You "
                        "requested up to 32000 tokens, but can only afford 2666.",
                        provider_name=None), sure("credit"),
    ),
    "OpenRouter: 403 key limit": (
        403, openrouter(403, "Key limit exceeded (daily limit). Manage it in the settings"),
        unsure("credit"),
    ),
    "OpenRouter behind a proxy: 402 twice wrapped": (
        402, {"error": {"error": {"message": "More credits are required to run this request.",
                                  "code": 402}, "code": 402}}, sure("credit"),
    ),
    "Together: 402 credit_limit": (
        402, error("Credit limit exceeded. Please add credit.", "credit_limit"), sure("credit")
    ),
    "Fireworks: 412": (
        412, error("Account x is suspended, possibly due to reaching the monthly spending limit or "
                   "failure to pay past invoices.", "error", "PRECONDITION_FAILED"),
        unsure("credit"),
    ),
    "DashScope: 400 Arrearage": (
        400, {"code": "Arrearage", "message": "Access denied, please make sure your account is in "
              "good standing."}, sure("credit"),
    ),
    "Gemini: 429 no free tier": (
        429, google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your "
                    "plan and billing details.\n* Quota exceeded for metric: requests, limit: 0, "
                    "model: gemini-pro\nPlease retry in 36.2s.",
                    google_detail("QuotaFailure", violations=[{"quotaId": "FreeTier"}])),
        unsure("credit"),
    ),
    "xAI: 403 new team": (
        403, {"code": "The caller does not have permission to execute the specified operation",
              "error": "Your newly created team doesn't have any credits or licenses yet."},
        unsure("credit"),
    ),
    "xAI: 429 used up": (
        429, {"code": "Some resource has been exhausted", "error": "Your team has used all "
              "available credits or reached its monthly spending limit."}, unsure("credit"),
    ),
    "LiteLLM: 400 budget_exceeded": (
        400, error("Budget has been exceeded! Current cost: 0.2, Max budget: 0.1",
                   "budget_exceeded", "400"), sure("credit"),
    ),
    "Hugging Face: 402": (
        402, {"error": "You have exceeded your monthly included credits for Inference Providers."},
        sure("credit"),
    ),
    "Moonshot: 429": (
        429, error("Your account is suspended, please check your plan and billing details",
                   "exceeded_current_quota_error"), sure("credit"),
    ),
    "Volcengine: 403": (
        403, error("The account has an overdue balance.", "Forbidden", "AccountOverdueError"),
        sure("credit"),
    ),
    "Zhipu: 429": (429, {"error": {"code": "1113", "message": "您的账户已欠费"}}, sure("credit")),
}  # fmt: skip

RATE_LIMIT: dict[str, Row] = {
    "OpenAI: 429": (
        429, error("Rate limit reached for gpt-4o on requests per min (RPM): Limit 3, Used 3, "
                   "Requested 1. Please try again in 20s.", "requests", "rate_limit_exceeded"),
        sure("rate_limit", wait=20.0),
    ),
    "OpenAI: 429 in milliseconds": (
        429, error("Rate limit reached. Please try again in 86ms.", "tokens",
                   "rate_limit_exceeded"), sure("rate_limit", wait=0.086),
    ),
    "OpenAI: 429 larger than a minute's tokens": (
        429, error("Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested "
                   "342389.", "tokens", "rate_limit_exceeded"), sure("rate_limit", window=30000),
    ),
    "Groq: 413 rate_limit_exceeded": (
        413, error("Request too large for model `llama` in organization `org_1` service tier "
                   "`on_demand` on tokens per minute (TPM): Limit 6000, Requested 12328, please "
                   "reduce your message size and try again. Need more tokens? Upgrade in billing",
                   "tokens", "rate_limit_exceeded"), sure("rate_limit", window=6000),
    ),
    "Groq: 429 a day's tokens": (
        429, error("Rate limit reached for model `llama` on tokens per day (TPD): Limit 100000, "
                   "Used 97050, Requested 3619. Please try again in 9m38.016s. Need more tokens? "
                   "Upgrade at settings/billing", "tokens", "rate_limit_exceeded"),
        sure("rate_limit", wait=578.016),
    ),
    "Groq: 413 in words behind a gateway": (
        413, "413 Request too large for model `llama` on tokens per minute (TPM): Limit 12000, "
        "Requested 14137, please reduce your message size", unsure("rate_limit", window=12000),
    ),
    "Gemini: 429 with retryDelay": (
        429, google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your "
                    "plan and billing details. * Quota exceeded for metric: requests, limit: 10",
                    google_detail("QuotaFailure", violations=[{"quotaMetric": "requests"}]),
                    google_detail("RetryInfo", retryDelay="36s")), sure("rate_limit", wait=36.0),
    ),
    "Gemini: 429 in words": (
        429, google(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
        sure("rate_limit"),
    ),
    "Gemini behind LiteLLM: 429 in words": (
        429, error("litellm.RateLimitError: You exceeded your current quota, please check your "
                   "plan and billing details. Please retry in 13.5s."),
        sure("rate_limit", wait=13.5),
    ),
    "Vertex: 429 errors": (
        429, [{"error": {"code": 429, "message": "Resource exhausted. Please try again later.",
                         "errors": [{"reason": "rateLimitExceeded", "domain": "global"}],
                         "status": "RESOURCE_EXHAUSTED"}}], sure("rate_limit"),
    ),
    "gemini-cli: the error as text": (
        429, error(json.dumps({"error": {"code": 429, "message": "Resource has been exhausted",
                                         "status": "RESOURCE_EXHAUSTED"}}), None, 429),
        sure("rate_limit"),
    ),
    "DashScope: 429 in the words of an empty account": (
        429, error("You exceeded your current quota, please check your plan and billing details. "
                   "See https://help.example/error-code#token-limit", "insufficient_quota",
                   "insufficient_quota"), sure("rate_limit"),
    ),
    "DashScope: 400 Throttling": (
        400, {"code": "Throttling.RateQuota", "message": "Requests rate limit exceeded, please try "
              "again later."}, sure("rate_limit"),
    ),
    "DashScope: 429 limit_requests": (
        429, error("You have exceeded your current request limit.", "limit_requests",
                   "limit_requests"), sure("rate_limit"),
    ),
    "403 in words": (
        403, error("Rate limit exceeded: 20 requests per minute. Please slow down."),
        unsure("rate_limit"),
    ),
    "403 by its type": (
        403, error("Rate limit exceeded: 20 requests per minute.", "rate_limit_exceeded", 403),
        sure("rate_limit"),
    ),
    "OpenRouter: 429 of a free model": (
        429, openrouter(429, "Rate limit exceeded: free-models-per-min. Add 10 credits to unlock "
                        "1000 free model requests per day", headers={"Retry-After": "12"}),
        sure("rate_limit", wait=12.0),
    ),
    "OpenRouter: 429 of a provider": (
        429, openrouter(429, "Provider returned error", **raw(
            "BaseTen", "z/glm is temporarily rate-limited upstream. Please retry shortly.")),
        sure("rate_limit"),
    ),
    "OpenRouter: 429 in a 200": (200, openrouter(429, "Slow"), sure("rate_limit")),
    "Anthropic: 429": (
        429, anthropic("rate_limit_error", "This request would exceed your rate limit of 40,000 "
                       "input tokens per minute."), sure("rate_limit"),
    ),
    "Mistral: 429": (
        429, {"object": "error", "message": "Rate limit exceeded", "type": "rate_limited",
              "param": None, "code": "1300"}, sure("rate_limit"),
    ),
    "Mistral: 429 capacity": (
        429, {"object": "error", "message": "Service tier capacity exceeded for this model.",
              "type": "service_tier_capacity_exceeded", "param": None, "code": "3505"},
        sure("rate_limit"),
    ),
    "Mistral: 400 capacity in words": (
        400, vllm("Service tier capacity exceeded for this model.", INVALID),
        unsure("rate_limit"),
    ),
    "Azure: 429": (
        429, {"error": {"code": "429", "message": "Requests to the Create Operation have exceeded "
              "the token rate limit. Please retry after 10 seconds."}},
        sure("rate_limit", wait=10.0),
    ),
    "GitHub Models: 429": (
        429, {"error": {"code": "RateLimitReached", "message": "Rate limit of 10 per 60s exceeded. "
              "Please wait 35 seconds before retrying."}}, sure("rate_limit", wait=35.0),
    ),
    "Cerebras: 429 of tokens": (
        429, {"message": "Tokens per minute limit exceeded - too many tokens processed.", "type":
              "too_many_tokens_error", "param": "quota", "code": "token_quota_exceeded"},
        sure("rate_limit"),
    ),
    "Together: 500 in words": (
        500, error("You have reached the rate limit specific to this model. The maximum rate limit "
                   "for this model is 9.0 queries per minute."), unsure("rate_limit"),
    ),
    "Bedrock: 400 Throttling": (
        400, {"message": "Too many requests, please wait before trying again."},
        unsure("rate_limit"),
    ),
    "503 in words": (503, error("Rate limit hit, retry in 2 minutes"),
                     unsure("rate_limit", wait=120.0)),
    "Zhipu: 429": (
        429, {"error": {"code": "1302", "message": "您的账户已达到速率限制"}}, sure("rate_limit")
    ),
    "429 empty": (429, "", sure("rate_limit")),
    "nginx: 429 page": (429, "<html><h1>429 Too Many Requests</h1></html>", sure("rate_limit")),
    "rotating proxy: 429 with a reset": (
        429, {"error": {"message": "[p/m] [429]: Rate limited (reset after 30s)"}},
        sure("rate_limit", wait=30.0),
    ),
}  # fmt: skip

NO_RESOURCES: dict[str, Row] = {
    "OpenAI flex: 429 resource_unavailable": (
        429, error("Resource unavailable", "resource_unavailable", "resource_unavailable"),
        sure("no_resources"),
    ),
    "Groq flex: 498": (
        498, error("Flex tier capacity exceeded", "flex", "capacity_exceeded"),
        sure("no_resources"),
    ),
    "Groq flex: 498 empty": (498, "", sure("no_resources")),
    "LiteLLM before flex: 429": (
        429, litellm("RateLimitError", "OpenAI", json.dumps(error(
            "Resource unavailable", None, "resource_unavailable")), "429"), sure("no_resources"),
    ),
    "flex in words: 503": (
        503, error("There is no capacity for flex requests now"), unsure("no_resources")
    ),
}  # fmt: skip

ROOM = "you requested {} tokens ({} in the messages, {} in the completion)."
TOO_LONG_ROWS: dict[str, Row] = {
    "OpenAI: 400": (
        400, error(TOO_LONG.format(8192) + ROOM.format(9000, 6000, 3000), INVALID,
                   "context_length_exceeded", "messages"),
        sure("too_long", window=8192, prompt_tokens=6000),
    ),
    "OpenAI: 400 of the messages": (
        400, error(TOO_LONG.format(16385) + "your messages resulted in 38551 tokens.", INVALID,
                   "context_length_exceeded", "messages"),
        sure("too_long", window=16385, prompt_tokens=38551),
    ),
    "vLLM: 400": (
        400, vllm(TOO_LONG.format(16384) + ROOM.format(19591, 9591, 10000)),
        unsure("too_long", window=16384, prompt_tokens=9591),
    ),
    "vLLM: 400 of the input": (
        400, vllm(TOO_LONG.format(40960) + "your request has 91714 input tokens."),
        unsure("too_long", window=40960, prompt_tokens=91714),
    ),
    "vLLM: 400 of the answer's room": (
        400, vllm("'max_tokens' or 'max_completion_tokens' is too large: 64000. This model's "
                  "maximum context length is 64001 tokens and your request has 24235 input tokens "
                  "(64000 > 64001 - 24235)."),
        unsure("too_long", window=64001, prompt_tokens=24235),
    ),
    "vLLM: 400 names the parameter": (
        400, vllm("You passed 5000 input tokens and requested 4096 output tokens. However, the "
                  "model's context length is only 8192 tokens.", param="input_tokens"),
        unsure("too_long", window=8192, prompt_tokens=5000),
    ),
    "vLLM: 400 names max_tokens": (
        400, vllm("This model's maximum context length is 8192 tokens. However, you requested 4096 "
                  "output tokens and your prompt contains at least 5000 input tokens.",
                  param="max_tokens"), sure("too_long", window=8192, prompt_tokens=5000),
    ),
    "vLLM: 400 less than nothing, by name": (
        400, vllm("max_tokens must be at least 1, got -186.", param="max_tokens"),
        sure("too_long"),
    ),
    "vLLM: 400 less than nothing": (
        400, vllm("max_tokens must be at least 1, got -186."), unsure("too_long")
    ),
    "SGLang: 400": (
        400, vllm("Requested token count exceeds the model's maximum context length of 8192 "
                  "tokens. You requested a total of 9000 tokens: 6000 tokens from the input "
                  "messages and 3000 tokens for the completion."),
        unsure("too_long", window=8192, prompt_tokens=6000),
    ),
    "SGLang: 400 of the input": (
        400, vllm("The input (9000 tokens) is longer than the model's context length (8192 "
                  "tokens)."), unsure("too_long", window=8192, prompt_tokens=9000),
    ),
    "llama.cpp: 400": (
        400, llamacpp(400, "request (14429 tokens) exceeds the available context size (8192 "
                      "tokens), try increasing it", "exceed_context_size_error",
                      n_prompt_tokens=14429, n_ctx=8192),
        sure("too_long", window=8192, prompt_tokens=14429),
    ),
    "llama.cpp: 200": (
        200, llamacpp(400, "the request exceeds the available context size.",
                      "exceed_context_size_error", n_prompt_tokens=1407, n_ctx=256),
        sure("too_long", window=256, prompt_tokens=1407),
    ),
    "llama.cpp: 500": (
        500, llamacpp(500, "Context size has been exceeded.", "server_error"), unsure("too_long")
    ),
    "llama-cpp-python: 500": (
        500, error("Requested tokens (2285) exceed context window of 2048", "internal_error"),
        unsure("too_long", window=2048, prompt_tokens=2285),
    ),
    "Gemini: 400": (
        400, google(400, "INVALID_ARGUMENT", "The input token count (461428) exceeds the maximum "
                    "number of tokens allowed (131072)."),
        unsure("too_long", window=131072, prompt_tokens=461428),
    ),
    "Anthropic: 400 of the prompt": (
        400, anthropic(INVALID, "prompt is too long: 210000 tokens > 200000 maximum"),
        unsure("too_long", window=200000, prompt_tokens=210000),
    ),
    "Anthropic: 400 of both": (
        400, anthropic(INVALID, "input length and `max_tokens` exceed context limit: 190000 + "
                       "20000 > 204798, decrease input length or `max_tokens` and try again"),
        unsure("too_long", window=204798, prompt_tokens=190000),
    ),
    "Anthropic behind LiteLLM: bytes": (
        400, litellm("BadRequestError", "Anthropic", "b'" + json.dumps(anthropic(
            INVALID, "prompt is too long: 209353 tokens > 199999 maximum")) + "'", "400"),
        unsure("too_long", window=199999, prompt_tokens=209353),
    ),
    "Mistral: 400": (
        400, vllm("Prompt contains 40000 tokens and 0 draft tokens, too large for model with "
                  "32768 maximum context length", INVALID),
        unsure("too_long", window=32768, prompt_tokens=40000),
    ),
    "Together: 422": (
        422, error("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. "
                   "Given: 2019 `inputs` tokens and 30 `max_new_tokens`", INVALID),
        unsure("too_long", window=2048, prompt_tokens=2019),
    ),
    "Hugging Face: 422": (
        422, {"error": "Input validation error: `inputs` must have less than 4096 tokens. Given: "
              "4545", "error_type": "validation"},
        unsure("too_long", window=4096, prompt_tokens=4545),
    ),
    "DeepSeek behind a router: 400": (
        400, error("Error from provider(deepseek,deepseek-chat: 400): " + json.dumps(error(
            TOO_LONG.format(131072) + ROOM.format(131329, 123137, 8192), INVALID, INVALID))),
        unsure("too_long", window=131072, prompt_tokens=123137),
    ),
    "OpenRouter: 400 raw": (
        400, openrouter(400, "Provider returned error", **raw("Nvidia", error(
            TOO_LONG.format(262144) + "your messages resulted in 262897 tokens.", "Bad Request",
            400))), unsure("too_long", window=262144, prompt_tokens=262897),
    ),
    "OpenRouter: 400 its own": (
        400, openrouter(400, "This endpoint's maximum context length is 131072 tokens. However, "
                        "you requested about 150000 tokens (149000 of text input, 1000 in the "
                        "output)."), unsure("too_long", window=131072, prompt_tokens=149000),
    ),
    "LM Studio: 400": (
        400, {"error": "Trying to keep the first 6547 tokens when context the overflows. However, "
              "the model is loaded with context length of only 4096 tokens, which is not enough."},
        unsure("too_long", window=4096, prompt_tokens=6547),
    ),
    "LM Studio: 400 n_keep": (
        400, {"error": "The number of tokens to keep from the initial prompt is greater than the "
              "context length (n_keep: 13055>= n_ctx: 4096). Try to load the model with a larger "
              "context length."}, unsure("too_long", window=4096, prompt_tokens=13055),
    ),
    "Cerebras: 400": (
        400, {"message": "Please reduce the length of the messages or completion. Current length "
              "is 42328 while limit is 40000", "type": INVALID, "param": "messages", "code":
              "context_length_exceeded"}, sure("too_long", window=40000, prompt_tokens=42328),
    ),
    "Groq: 400": (
        400, error("Please reduce the length of the messages or completion.", INVALID,
                   "context_length_exceeded", "messages"), sure("too_long"),
    ),
    "xAI: 400": (
        400, {"code": "Client specified an invalid argument", "error": "This model's maximum "
              "prompt length is 131072 but the request contains 140000 tokens."},
        unsure("too_long", window=131072, prompt_tokens=140000),
    ),
    "Moonshot: 400": (
        400, error("Invalid request: Your request exceeded model token limit: 8192 (requested: "
                   "9000)", INVALID), unsure("too_long", window=8192, prompt_tokens=9000),
    ),
    "DashScope: 400": (
        400, error("Range of input length should be [1, 30720]", INVALID,
                   "invalid_parameter_error"), unsure("too_long", window=30720),
    ),
    "GitHub Models: 413": (
        413, {"error": {"code": "tokens_limit_reached", "message": "Request body too large for "
              "gpt-4o model. Max size: 8000 tokens."}}, sure("too_long", window=8000),
    ),
    "Fireworks: 400": (
        400, error("The prompt is too long: 40000, model maximum context length: 32768", INVALID,
                   "INVALID_REQUEST"), unsure("too_long", window=32768, prompt_tokens=40000),
    ),
    "Bedrock: 400": (400, {"message": "Input is too long for requested model."},
                     unsure("too_long")),
    "nginx: 413 page": (413, "<html><h1>413 Request Entity Too Large</h1></html>",
                        unsure("too_long")),
}  # fmt: skip

ANSWER_TOO_LARGE: dict[str, Row] = {
    "DeepSeek: 400": (
        400, error("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]", INVALID,
                   INVALID), unsure("answer_too_large", largest_answer=8192),
    ),
    "DashScope: 400": (
        400, error("<400> InternalError.Algo.InvalidParameter: Range of max_tokens should be [1, "
                   "16384]", INVALID, "invalid_parameter_error"),
        unsure("answer_too_large", largest_answer=16384),
    ),
    "OpenAI: 400 code null": (
        400, error("max_tokens is too large: 8192. This model supports at most 4096 completion "
                   "tokens, whereas you provided 8192.", INVALID, None, "max_tokens"),
        sure("answer_too_large", largest_answer=4096),
    ),
    "OpenAI: 400 invalid_value": (
        400, error("max_tokens is too large: 20480. This model supports at most 16384 completion "
                   "tokens, whereas you provided 20480.", INVALID, "invalid_value", "max_tokens"),
        sure("answer_too_large", largest_answer=16384),
    ),
    "OpenAI behind LiteLLM: in words": (
        400, litellm("BadRequestError", "OpenAI", "max_tokens is too large: 32000. This model "
                     "supports at most 16384 completion tokens", "400"),
        unsure("answer_too_large", largest_answer=16384),
    ),
    "Xiaomi: 400 the message as param": (
        400, error("Param Incorrect", "upstream_error", "400", "max_tokens is too large: 1048576. "
                   "This model supports at most 131072 completion tokens"),
        unsure("answer_too_large", largest_answer=131072),
    ),
    "Volcengine: 400": (
        400, error("The parameter `max_completion_tokens` specified in the request are not valid: "
                   "integer above maximum value, expected a value <= 12288, but got 32000 instead.",
                   "BadRequest", "InvalidParameter", "max_completion_tokens"),
        sure("answer_too_large", largest_answer=12288),
    ),
    "Anthropic: 400": (
        400, anthropic(INVALID, "max_tokens: 300000 > 64000, which is the maximum allowed number "
                       "of output tokens for claude-x"),
        unsure("answer_too_large", largest_answer=64000),
    ),
    "Groq: 400": (
        400, error("`max_tokens` must be less than or equal to `8192`, the maximum value for "
                   "`max_tokens` is less than the `context_window` for this model", INVALID),
        unsure("answer_too_large", largest_answer=8192),
    ),
    "Gemini: 400": (
        400, google(400, "INVALID_ARGUMENT", "Unable to submit request because it has a "
                    "maxOutputTokens value of 100000 but the supported range is from 1 (inclusive) "
                    "to 65537 (exclusive). Update the value and try again."),
        unsure("answer_too_large", largest_answer=65536),
    ),
    "Bedrock: 400": (
        400, {"message": "The maximum tokens you requested exceeds the model limit of 4096. Try "
              "again with a maximum tokens value that is lower than 4096."},
        unsure("answer_too_large", largest_answer=4096),
    ),
    "Mistral: 422 by its bound": (
        422, {"detail": [{"type": "less_than_equal", "loc": ["body", "max_tokens"], "msg":
              "Input should be less than or equal to 8192", "input": 9000, "ctx": {"le": 8192}}]},
        sure("answer_too_large", largest_answer=8192),
    ),
    "Hugging Face: 422": (
        422, {"error": "Input validation error: `max_new_tokens` must be <= 192. Given: 500"},
        unsure("answer_too_large", largest_answer=192),
    ),
    "vLLM: 400 names max_tokens": (
        400, vllm("max_tokens=9000 cannot be greater than max_model_len=8192.", param="max_tokens"),
        sure("answer_too_large", window=8192, largest_answer=8192),
    ),
    "Zhipu: 400": (
        400, {"error": {"code": "1210", "message": "max_tokens参数非法：限制为[1,4095]"}},
        unsure("answer_too_large", largest_answer=4095),
    ),
}  # fmt: skip

UNSUPPORTED: dict[str, Row] = {
    "OpenAI: max_tokens": (
        400, error("Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                   "'max_completion_tokens' instead.", INVALID, "unsupported_parameter",
                   "max_tokens"), sure("unsupported", "max_tokens"),
    ),
    "OpenAI: max_tokens in words": (
        400, {"detail": "Unsupported parameter: 'max_tokens' is not supported with this model. "
              "Use 'max_completion_tokens' instead."}, unsure("unsupported", "max_tokens"),
    ),
    "OpenAI: temperature": (
        400, error("Unsupported value: 'temperature' does not support 0.3 with this model. Only "
                   "the default (1) value is supported.", INVALID, "unsupported_value",
                   "temperature"), sure("unsupported", "temperature"),
    ),
    "OpenAI: unknown_parameter": (
        400, error("Unknown parameter: 'seed'.", INVALID, "unknown_parameter", "seed"),
        sure("unsupported", "seed"),
    ),
    "OpenAI: unrecognized argument": (
        400, error("Unrecognized request argument supplied: seed", INVALID),
        unsure("unsupported", "seed"),
    ),
    "OpenAI: logprobs": (
        403, error("You are not allowed to request logprobs from this model", INVALID, None,
                   "logprobs"), sure("unsupported", "logprobs"),
    ),
    "OpenAI: logprobs in words": (
        403, error("You are not allowed to request logprobs from this model", INVALID),
        unsure("unsupported", "logprobs"),
    ),
    "OpenAI: json_schema": (
        400, error("Invalid parameter: 'response_format' of type 'json_schema' is not supported "
                   "with this model.", INVALID, None, "response_format"),
        sure("unsupported", "json_schema"),
    ),
    "OpenAI: json_object": (
        400, error("Invalid parameter: 'response_format' of type 'json_object' is not supported "
                   "with this model.", INVALID, None, "response_format"),
        sure("unsupported", "json_object"),
    ),
    "OpenAI: invalid_json_schema": (
        400, error("Invalid schema for response_format 'x': 'additionalProperties' is required to "
                   "be supplied and to be false.", INVALID, "invalid_json_schema",
                   "text.format.schema"), sure("unsupported", "json_schema"),
    ),
    "OpenAI: invalid_function_parameters": (
        400, error("Invalid schema for function 'x'", INVALID, "invalid_function_parameters",
                   "tools[0].function.parameters"), sure("unsupported", "tools"),
    ),
    "OpenAI: service_tier": (
        400, error("Invalid service_tier argument", INVALID, "invalid_value", "service_tier"),
        sure("unsupported", "service_tier"),
    ),
    "OpenAI: the word json": (
        400, error("'messages' must contain the word 'json' in some form, to use "
                   "'response_format' of type 'json_object'.", INVALID, None, "messages"),
        unsure("unsupported", "json_object"),
    ),
    "Azure: old version": (
        400, {"error": {"code": "BadRequest", "message": "response_format value as json_schema is "
              "enabled only for api versions 2024-08-01-preview and later"}},
        unsure("unsupported", "json_schema"),
    ),
    "Mistral: 422 seed": (
        422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg":
              "Extra inputs are not permitted", "input": 1}]}, sure("unsupported", "seed"),
    ),
    "Mistral: 422 behind a proxy": (
        422, {"object": "error", "message": json.dumps({"detail": [
            {"type": "extra_forbidden", "loc": ["body", "logprobs"], "msg":
             "Extra inputs are not permitted", "input": True}]}), "type": "internal_error_proxy",
            "param": None, "code": "1000"}, sure("unsupported", "logprobs"),
    ),
    "Mistral: 422 the list in message": (
        422, {"object": "Error", "message": [{"type": "extra_forbidden", "loc": ["body", "tools"],
              "msg": "Extra inputs are not permitted", "input": []}], "code": 3001},
        sure("unsupported", "tools"),
    ),
    "Mistral: 422 max_completion_tokens": (
        422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"],
                          "msg": "Extra inputs are not permitted"}]},
        sure("unsupported", "max_completion_tokens"),
    ),
    "Mistral: 422 a field of a message": (
        422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "messages", 0, "user", "name"],
                          "msg": "Extra inputs are not permitted"}]}, sure("bad_request"),
    ),
    "vLLM: 400 a list's print": (
        400, vllm("[{'type': 'extra_forbidden', 'loc': ('body', 'seed'), 'msg': 'Extra inputs are "
                  "not permitted', 'input': 1}]"), sure("unsupported", "seed"),
    ),
    "vLLM: 400 old response_format": (
        400, vllm("[{'type': 'literal_error', 'loc': ('body', 'response_format', 'type'), 'msg': "
                  "\"Input should be 'text' or 'json_object'\", 'input': 'json_schema'}]"),
        sure("unsupported", "json_schema"),
    ),
    "vLLM: 400 xgrammar": (
        400, vllm("The provided JSON schema contains features not supported by xgrammar."),
        unsure("unsupported", "json_schema"),
    ),
    "vLLM: 400 grammar": (
        400, vllm("Grammar error: Unknown format: uri"), unsure("unsupported", "json_schema")
    ),
    "vLLM: 400 tools": (
        400, vllm('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser '
                  "to be set"), unsure("unsupported", "tool_choice"),
    ),
    "Gemini: 400 unknown field": (
        400, google(400, "INVALID_ARGUMENT", UNKNOWN + '"seed": Cannot find field.',
                    google_detail("BadRequest", fieldViolations=[
                        {"description": UNKNOWN + '"seed": Cannot find field.'}])),
        sure("unsupported", "seed"),
    ),
    "Gemini: 400 unknown field in words": (
        400, google(400, "INVALID_ARGUMENT", UNKNOWN + '"seed": Cannot find field.'),
        unsure("unsupported", "seed"),
    ),
    "Gemini: 400 schema": (
        400, google(400, "INVALID_ARGUMENT", UNKNOWN + "\"additionalProperties\" at "
                    "'generation_config.response_schema': Cannot find field."),
        unsure("unsupported", "json_schema"),
    ),
    "Gemini: 400 schema by its field": (
        400, google(400, "INVALID_ARGUMENT", UNKNOWN + "\"$defs\" at "
                    "'generation_config.response_schema': Cannot find field.",
                    google_detail("BadRequest", fieldViolations=[
                        {"field": "generation_config.response_schema", "description": "x"}])),
        sure("unsupported", "json_schema"),
    ),
    "Gemini: 400 tools": (
        400, google(400, "INVALID_ARGUMENT", UNKNOWN + "\"const\" at 'tools[0].function_"
                    "declarations[5].parameters.properties[8].value.any_of[0]': Cannot find field.",
                    google_detail("BadRequest", fieldViolations=[
                        {"field": "tools[0].function_declarations[5].parameters", "description":
                         "x"}])), sure("unsupported", "tools"),
    ),
    "Gemini: 400 states": (
        400, google(400, "INVALID_ARGUMENT", "The specified schema produces a constraint that has "
                    "too many states for serving."), unsure("unsupported", "json_schema"),
    ),
    "Gemini: 400 logprobs": (
        400, google(400, "INVALID_ARGUMENT", "Logprobs is not enabled for models/gemini-2.5-pro"),
        unsure("unsupported", "logprobs"),
    ),
    "Anthropic: 400 grammar": (
        400, anthropic(INVALID, "The compiled grammar is too large, which would cause performance "
                       "issues. Simplify your tool schemas."),
        unsure("unsupported", "json_schema"),
    ),
    "Anthropic: 400 extra": (
        400, anthropic(INVALID, "seed: Extra inputs are not permitted"),
        unsure("unsupported", "seed"),
    ),
    "llama.cpp: 400 schema": (
        400, llamacpp(400, 'JSON schema conversion failed:\nUnrecognized schema: {"const":null}',
                      INVALID), unsure("unsupported", "json_schema"),
    ),
    "llama.cpp: 400 grammar": (
        400, llamacpp(400, "Failed to initialize samplers: failed to parse grammar", INVALID),
        unsure("unsupported", "json_schema"),
    ),
    "llama.cpp: 500 tools": (
        500, llamacpp(500, "Unsupported param: tools", "server_error"),
        unsure("unsupported", "tools"),
    ),
    "llama.cpp: 500 jinja": (
        500, llamacpp(500, "tools param requires --jinja flag", "server_error"),
        unsure("unsupported", "tools"),
    ),
    "Ollama: 400 tools": (
        400, error("registry.ollama.ai/library/gemma:2b does not support tools", "api_error"),
        unsure("unsupported", "tools"),
    ),
    "LM Studio: 400 json_object": (
        400, {"error": "'response_format.type' must be 'json_schema' or 'text'"},
        unsure("unsupported", "json_object"),
    ),
    "DeepSeek: 400": (
        400, error("This response_format type is unavailable now", INVALID, INVALID),
        unsure("unsupported", "json_schema"),
    ),
    "DeepSeek: 422": (
        422, "Failed to deserialize the JSON body into the target type: response_format: "
        "response_format.type `json_schema` is unavailable now at line 1 column 12440",
        unsure("unsupported", "json_schema"),
    ),
    "Groq: 400 logprobs": (
        400, error("'logprobs' is not supported with this model", INVALID),
        unsure("unsupported", "logprobs"),
    ),
    "LiteLLM: 400 UnsupportedParams": (
        400, error("litellm.UnsupportedParamsError: cohere does not support parameters: ['seed'], "
                   "for model=command.", None, "400"), unsure("unsupported", "seed"),
    ),
    "OpenRouter: 404 tools": (
        404, openrouter(404, "No endpoints found that support tool use."),
        unsure("unsupported", "tools"),
    ),
    "OpenRouter: 400 raw schema": (
        400, openrouter(400, "Provider returned error", **raw("OpenAI", error(
            "Invalid schema for response_format 'x'", INVALID, "invalid_json_schema",
            "response_format"))), sure("unsupported", "json_schema"),
    ),
    "Fireworks: 400": (
        400, error("Extra inputs are not permitted, field: 'service_tier', value: 'flex'", INVALID),
        unsure("unsupported", "service_tier"),
    ),
    "a code without a name": (
        400, error("This is not possible: top_logprobs", INVALID, "unsupported_parameter"),
        unsure("unsupported", "top_logprobs"),
    ),
    "strict": (
        422, {"detail": [{"type": "extra_forbidden", "msg": "Extra inputs are not permitted",
                          "loc": ["body", "response_format", "json_schema", "strict"]}]},
        sure("unsupported", "strict"),
    ),
}  # fmt: skip

BAD_GENERATION: dict[str, Row] = {
    "Groq: json_validate_failed": (
        400, {"error": {"message": "Failed to generate JSON. Please adjust your prompt.", "type":
              INVALID, "code": "json_validate_failed", "failed_generation":
              '{"a": "api key not valid, rate limit"'}}, sure("bad_generation"),
    ),
    "Groq: tool_use_failed": (
        400, error("Failed to call a function. Please adjust your prompt.", INVALID,
                   "tool_use_failed"), sure("bad_generation"),
    ),
    "Groq behind LiteLLM": (
        400, litellm("BadRequestError", "Groq", json.dumps({"error": {"message":
             "Failed to generate JSON.", "code": "json_validate_failed", "failed_generation":
             "{"}}), "400"), sure("bad_generation"),
    ),
    "Ollama: 500": (
        500, error("error parsing tool call: raw='{\"error\": {\"code\": \"invalid_api_key\"}}', "
                   "err=unexpected end of JSON input", "api_error"), unsure("bad_generation"),
    ),
    "llama.cpp: 500": (
        500, llamacpp(500, "Failed to parse input at pos 12: I have the rate limit", "server"),
        unsure("bad_generation"),
    ),
    "Gemini behind OpenRouter: 200": (
        200, {"choices": [{"finish_reason": "error", "native_finish_reason":
                           "MALFORMED_FUNCTION_CALL", "message": {"content": ""}}]},
        sure("bad_generation"),
    ),
    "OpenAI: 400 thinking took all the room": (
        400, error("Could not finish the message because max_tokens or model output limit was "
                   "reached. Please try again with higher max_tokens.", INVALID),
        unsure("bad_generation", "max_tokens"),
    ),
}  # fmt: skip

POLICY = "The response was filtered due to the prompt triggering the content management policy."
FILTERED: dict[str, Row] = {
    "Azure: 400 content_filter": (
        400, {"error": {"message": POLICY, "type": None, "param": "prompt", "code":
              "content_filter", "status": 400, "innererror": {"code":
              "ResponsibleAIPolicyViolation", "content_filter_result": {"jailbreak":
              {"filtered": True}}}}}, sure("filtered"),
    ),
    "Azure behind LiteLLM: 400": (
        400, {"error": {"message": "litellm.ContentPolicyViolationError: Azure - " + POLICY,
              "type": None, "code": "400", "provider_specific_fields": {"innererror":
              {"code": "ResponsibleAIPolicyViolation"}}}}, sure("filtered"),
    ),
    "Azure in words: 400": (400, {"detail": POLICY}, unsure("filtered")),
    "OpenAI: 400 invalid_prompt": (
        400, error("Invalid prompt: your prompt was flagged as potentially violating our usage "
                   "policy.", INVALID, "invalid_prompt"), unsure("filtered"),
    ),
    "OpenAI: 400 content_policy_violation": (
        400, error("Your request was rejected.", INVALID, "content_policy_violation"),
        sure("filtered"),
    ),
    "OpenRouter: 403 moderation": (
        403, openrouter(403, "Your chosen model requires moderation and your input was flagged",
                        reasons=["violence"], flagged_input="api key not valid",
                        provider_name="OpenAI"), sure("filtered"),
    ),
    "DashScope: 400": (
        400, {"code": "DataInspectionFailed", "message": "Input data may contain inappropriate "
              "content."}, sure("filtered"),
    ),
    "DashScope, compatible: 400": (
        400, error("Output data may contain inappropriate content.", "data_inspection_failed",
                   "data_inspection_failed"), sure("filtered"),
    ),
    "DeepSeek: 400": (400, error("Content Exists Risk", INVALID, INVALID), unsure("filtered")),
    "Gemini: 200 blockReason": (
        200, {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}, sure("filtered")
    ),
    "Gemini: 400 in words": (
        400, google(400, "INVALID_ARGUMENT", "The prompt was blocked by the safety filters"),
        unsure("filtered"),
    ),
    "Bedrock guardrail behind LiteLLM: 400": (
        400, error("Violated guardrail policy", "None", "400"), unsure("filtered")
    ),
    "Volcengine: 400": (
        400, error("The request failed because the input text may contain sensitive information.",
                   "BadRequest", "InputTextSensitiveContentDetected"), sure("filtered"),
    ),
    "Zhipu: 400": (400, {"error": {"code": "1301", "message": "系统检测到"}}, sure("filtered")),
}  # fmt: skip

PASSING: dict[str, Row] = {
    "llama.cpp: 503 loading": (
        503, llamacpp(503, "Loading model", "unavailable_error"), sure("loading")
    ),
    "Hugging Face: 503 loading": (
        503, {"error": "Model x is currently loading", "estimated_time": 20.0},
        sure("loading", wait=20.0),
    ),
    "Hugging Face behind LiteLLM: loading": (
        503, litellm("APIError", "Huggingface", "[{'error': 'Model x is currently loading', "
                     "'estimated_time': 20.0}]", "503"), sure("loading", wait=20.0),
    ),
    "Ollama: 500 loading": (
        500, error("timed out waiting for llama runner to start - progress 1.00", "api_error"),
        unsure("loading"),
    ),
    "Ollama: 503 loading": (503, {"error": "llm server loading model"}, unsure("loading")),
    "LM Studio: 400 unloaded": (400, {"error": "Model is unloaded."}, unsure("loading")),
    "Bedrock: 429 not ready": (
        429, {"error": {"type": "ModelNotReadyException", "message": "Wait"}}, sure("loading")
    ),
    "Anthropic: 529": (529, anthropic("overloaded_error", "Overloaded"), sure("overloaded")),
    "Anthropic: 200": (200, anthropic("overloaded_error", "Overloaded"), sure("overloaded")),
    "OpenAI: 503": (
        503, error("The engine is currently overloaded, please try again later", "server_error"),
        unsure("overloaded"),
    ),
    "OpenAI: 503 slow_down": (503, error("Slow down", "server_error", "slow_down"),
                              sure("overloaded")),
    "an error object: 200": (
        200, {"object": "error", "message": "The model is overloaded", "type": "ServerError",
              "code": 40303}, unsure("overloaded"),
    ),
    "Gemini: 503": (
        503, google(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
        unsure("overloaded"),
    ),
    "Google: 429 capacity": (
        429, google(429, "RESOURCE_EXHAUSTED", "No capacity available for the model", google_detail(
            "ErrorInfo", reason="MODEL_CAPACITY_EXHAUSTED")), sure("overloaded"),
    ),
    "Cerebras: 429 queue_exceeded": (
        429, {"message": "We're experiencing high traffic right now!", "type":
              "too_many_requests_error", "param": "queue", "code": "queue_exceeded"},
        sure("overloaded"),
    ),
    "Moonshot: 429": (
        429, error("The engine is currently overloaded", "engine_overloaded_error"),
        sure("overloaded"),
    ),
    "Ollama: 503 busy": (
        503, {"error": "server busy, please try again.  maximum pending requests exceeded"},
        unsure("overloaded"),
    ),
    "Hugging Face: 503 busy": (
        503, {"error": "Model too busy, unable to get response in less than 60 second(s)"},
        unsure("overloaded"),
    ),
    "LiteLLM: 429 no deployments": (
        429, error("No deployments available for selected model, Try again in 5 seconds. Passed "
                   "model=m.", "None", "429"), unsure("overloaded", wait=5.0),
    ),
    "DeepSeek: 503": (503, error("Service is too busy."), unsure("overloaded")),
    "503 empty": (503, "", unsure("overloaded")),
    "OpenAI: 500": (
        500, error("The server had an error while processing your request", "server_error"),
        sure("server"),
    ),
    "500 text": (500, "Internal Server Error", unsure("server")),
    "502 page": (502, "<html><h1>502 Bad Gateway</h1></html>", unsure("server")),
    "Cloudflare: 520": (520, "error code: 520", unsure("server")),
    "Cloudflare: 530": (530, "error code: 1033", unsure("server")),
    "409": (409, error("busy"), unsure("server")),
    "421": (421, "", unsure("server")),
    "424": (424, error("Failed dependency"), unsure("server")),
    "OpenRouter: 502 in a choice": (
        200, {"choices": [{"index": 0, "finish_reason": "error", "error": {"code": 502, "message":
              "Upstream error from provider"}, "message": {"content": "the rate limit"}}]},
        unsure("server"),
    ),
    "200 without choices": (200, {"id": "x", "choices": []}, unsure("server")),
    "200 nothing": (200, b"", unsure("server")),
    "200 null": (200, None, unsure("server")),
    "200 cut": (200, '{"choices": [{"message": {"content": "half', unsure("server")),
    "200 as a stream": (
        200, 'event: error\ndata: {"error": {"type": "overloaded_error", "message": "x"}}\n\n',
        sure("overloaded"),
    ),
    "408": (408, "", unsure("timeout")),
    "Cloudflare: 524": (524, "error code: 524", unsure("timeout")),
    "504 page": (504, "<html>504 Gateway Time-out</html>", unsure("timeout")),
    "499": (499, "", unsure("timeout")),
    "Google: 504": (504, google(504, "DEADLINE_EXCEEDED", "Deadline expired"), sure("timeout")),
    "Go: 500 a deadline is no context": (
        500, error("context deadline exceeded (Client.Timeout or context cancellation while "
                   "reading body)"), unsure("timeout"),
    ),
    "LiteLLM: 408": (408, error("litellm.Timeout: APITimeoutError - Request timed out."),
                     unsure("timeout")),
}  # fmt: skip

BAD_REQUEST: dict[str, Row] = {
    "OpenAI: 400": (
        400, error("Invalid value for 'content': expected a string, got null.", INVALID, None,
                   "messages.[1].content"), unsure("bad_request"),
    ),
    "OpenAI: 400 less room than can be": (
        400, error("Invalid 'max_tokens': integer below minimum value.", INVALID,
                   "integer_below_min_value", "max_tokens"), sure("bad_request"),
    ),
    "OpenAI: 400 role": (
        400, error("Unsupported value: 'messages[0].role' does not support 'system' with this "
                   "model.", INVALID, "unsupported_value", "messages[0].role"),
        sure("bad_request"),
    ),
    "FastAPI: 422": (
        422, {"detail": [{"loc": ["body", "messages"], "msg": "Field required", "type": "missing",
                          "input": {"seed": "rate limit"}}]}, unsure("bad_request"),
    ),
    "418": (418, error("teapot"), unsure("bad_request")),
    "400 text": (400, "Bad Request", unsure("bad_request")),
    "501": (501, error("This is not made yet"), unsure("bad_request")),
}  # fmt: skip

FURTHER: dict[str, Row] = {
    "SiliconFlow: 400 model": (
        400, {"code": 20012, "message": "Model does not exist. Please check it carefully."},
        unsure("model"),
    ),
    "SiliconFlow: 403 balance": (
        403, {"code": 30001, "message": "Sorry, your account balance is insufficient"},
        unsure("credit"),
    ),
    "SiliconFlow: 401 only a string": (401, '"Invalid token"', sure("key")),
    "SiliconFlow: 400 room": (
        400, {"code": 20015, "message": "max_tokens (32000) must be less than or equal to 16384"},
        unsure("answer_too_large", largest_answer=16384),
    ),
    "MiniMax: 200 balance": (
        200, {"choices": None, "base_resp": {"status_code": 1008, "status_msg":
              "insufficient balance"}}, unsure("credit"),
    ),
    "MiniMax: 200 rate": (
        200, {"base_resp": {"status_code": 1002, "status_msg": "rate limit"}},
        unsure("rate_limit"),
    ),
    "text-generation-inference: 429": (
        429, {"error": "Model is overloaded", "error_type": "overloaded"}, sure("overloaded")
    ),
    "Cloudflare: 400 model": (
        400, {"errors": [{"message": "No such model @cf/x or task", "code": 5007}], "success":
              False}, unsure("model"),
    ),
    "Databricks: 429": (
        429, {"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "Exceeded workspace rate limit"},
        sure("rate_limit"),
    ),
    "Databricks: 400 prompt": (
        400, {"error_code": "BAD_REQUEST", "message": "Bad request: prompt token count (9000) "
              "cannot exceed 4096."}, unsure("too_long", window=4096, prompt_tokens=9000),
    ),
    "DeepInfra: 402": (
        402, {"detail": {"error": "inference prohibited, please top up"}}, sure("credit")
    ),
    "DeepInfra: 429": (
        429, {"detail": {"error": "Model busy, retry later"}}, unsure("overloaded")
    ),
    "NVIDIA: 404 function": (
        404, {"status": 404, "title": "Not Found", "detail": "Function '1234-x': Not found for "
              "account 'abc'"}, unsure("model"),
    ),
    "NVIDIA: 403": (
        403, {"status": 403, "title": "Forbidden", "detail": "Authorization failed"},
        unsure("key"),
    ),
    "Novita: 403": (
        403, {"code": 403, "reason": "NOT_ENOUGH_BALANCE", "message": "not enough balance"},
        sure("credit"),
    ),
    "Novita: 404": (
        404, {"code": 404, "reason": "MODEL_NOT_FOUND", "message": "model: x not found"},
        sure("model"),
    ),
    "Cohere: 400": (
        400, {"message": "too many tokens: total number of tokens in the prompt cannot exceed 4081 "
              "- received 5000"}, unsure("too_long", window=4081, prompt_tokens=5000),
    ),
    "watsonx: 400": (
        400, {"errors": [{"code": "invalid_request_entity", "message": "the number of input tokens "
              "9000 cannot exceed the total tokens limit 8192 for this model"}]},
        unsure("too_long", window=8192, prompt_tokens=9000),
    ),
    "SambaNova: 400": (
        400, error("The maximum context length of Meta-Llama is 16384. However, the input contains "
                   "20000 tokens.", INVALID, "context_length_exceeded"),
        sure("too_long", window=16384, prompt_tokens=20000),
    ),
    "TensorRT-LLM: 500": (
        500, vllm("Prompt length (9000) exceeds maximum input length (8192)"),
        unsure("too_long", window=8192, prompt_tokens=9000),
    ),
    "Bedrock: 429 tokens": (
        429, {"message": "Too many tokens, please wait before trying again."}, sure("rate_limit")
    ),
    "Anthropic: 400 spending": (
        400, anthropic(INVALID, "You have reached your specified API usage limits. You will regain "
                       "access on 2026-05-01."), unsure("credit"),
    ),
    "Anthropic: 400 deprecated": (
        400, anthropic(INVALID, "`temperature` is deprecated for this model."),
        unsure("unsupported", "temperature"),
    ),
    "Anthropic: 400 strict": (
        400, anthropic(INVALID, "tools.0.custom.strict: Extra inputs are not permitted"),
        unsure("unsupported", "strict"),
    ),
    "OpenRouter: 404 parameters": (
        404, openrouter(404, "No endpoints found that can handle the requested parameters."),
        unsure("unsupported", "json_schema"),
    ),
    "OpenRouter: 404 policy": (
        404, openrouter(404, "No endpoints found matching your data policy."), unsure("model")
    ),
    "vLLM: 400 fewer logprobs": (
        400, vllm("Requested sample logprobs of 20, which is greater than max allowed: 5",
                  param="logprobs"), unsure("unsupported", "top_logprobs"),
    ),
    "OpenAI: 400 room too small": (
        400, error("Invalid 'max_tokens': must be at least 16.", INVALID, "invalid_value",
                   "max_tokens"), sure("bad_request"),
    ),
    "OpenAI: 404 not verified": (
        404, error("Your organization must be verified to use the model `gpt-5`.", INVALID,
                   "model_not_found"), sure("model"),
    ),
    "LiteLLM: 429 of Vertex": (
        429, error("litellm.RateLimitError: VertexAIException - " + json.dumps(google(
            429, "RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan",
            google_detail("RetryInfo", retryDelay="41s"))) + ". Received Model Group=g",
            "throttling_error", "429"), sure("rate_limit", wait=41.0),
    ),
    "LiteLLM: 500 connection": (
        500, litellm("InternalServerError", "OpenAI", "Connection error", "500"),
        unsure("server"),
    ),
    "LiteLLM: 400 over budget": (
        400, error("ExceededBudget: End User=x over budget. Spend=0.2, Budget=0.1", "auth_error",
                   "400"), unsure("credit"),
    ),
    "DashScope: 403 free tier": (
        403, error("The free tier of the model has been exhausted.", "AllocationQuota.FreeTierOnly",
                   "AllocationQuota.FreeTierOnly"), sure("credit"),
    ),
    "Azure: 403 volume": (
        403, {"error": {"code": "403", "message": "Out of call volume quota. Quota will be "
              "replenished in 10:12:33."}}, unsure("rate_limit"),
    ),
    "Gemini: 400 location": (
        400, google(400, "FAILED_PRECONDITION", "User location is not supported for the API use."),
        unsure("key"),
    ),
    "LM Studio: 400 crash": (
        400, {"error": "The model has crashed without additional information. (Exit code: 1)"},
        unsure("server"),
    ),
    "nginx: 400 page": (
        400, "<html><title>400 The plain HTTP request was sent to HTTPS port</title>",
        sure("address"),
    ),
    "Ollama: 500 format": (
        500, error("failed to load model vocabulary required for format", "api_error"),
        unsure("unsupported", "json_schema"),
    ),
    "Gemini: 400 depth": (
        400, google(400, "INVALID_ARGUMENT", "A schema in GenerationConfig in the request exceeds "
                    "the maximum allowed nesting depth."), unsure("unsupported", "json_schema"),
    ),
    "Gemini: 400 a property": (
        400, google(400, "INVALID_ARGUMENT", "* GenerateContentRequest.generation_config."
                    "response_schema.properties[x].enum: only allowed for STRING type"),
        unsure("unsupported", "json_schema"),
    ),
    "llama.cpp: 400 two ways at once": (
        400, llamacpp(400, "Cannot use custom grammar constraints with tools.", INVALID),
        unsure("unsupported", "json_schema"),
    ),
    "Perplexity: 400 a list as text": (
        400, error('["At body -> response_format -> json_schema: this schema is no object"]',
                   "bad_request", 400), unsure("unsupported", "json_schema"),
    ),
    "OpenAI: 400 a role is no tool": (
        400, error("Invalid value: 'developer'. Supported values are: 'system', 'user', and "
                   "'tool'.", INVALID, "invalid_value", "messages[0].role"),
        unsure("bad_request"),
    ),
    "xAI: 403 guidelines": (
        403, {"code": "The caller does not have permission", "error":
              "Content violates usage guidelines. Failed check: SAFETY_CHECK"},
        unsure("filtered"),
    ),
    "xAI: 400 argument": (
        400, {"code": "Client specified an invalid argument", "error":
              "Argument not supported on this model: logprobs"}, unsure("unsupported", "logprobs"),
    ),
    "Azure: 404 no version": (
        404, {"error": {"code": "404", "message": "Missing required query parameter: api-version"}},
        unsure("address"),
    ),
    "llama-swap: 404": (404, "could not find real modelID for x", unsure("model")),
    "OpenAI: 500 the model's fault": (
        500, error("The model produced invalid content. Consider modifying your prompt.",
                   "model_error"), unsure("bad_generation"),
    ),
    "Hugging Face: 400 key": (
        400, {"error": "Invalid credentials in Authorization header"}, unsure("key")
    ),
    "Hugging Face: 400 model": (
        400, error("The requested model 'x' is not supported by any provider you have enabled.",
                   INVALID, "model_not_supported", "model"), sure("model"),
    ),
    "vLLM: 400 template": (
        400, vllm("Conversation roles must alternate user/assistant/user/assistant/..."),
        unsure("bad_request"),
    ),
    "vLLM: 400 image": (
        400, vllm("This model does not support image input"), unsure("bad_request")
    ),
    "Together: 429 credit_limit": (
        429, error("Credit limit exceeded, please add a payment method.", INVALID, "credit_limit"),
        sure("credit"),
    ),
    "SiliconFlow: 400 room in brackets": (
        400, {"code": 20015, "message": "max_tokens (6000) is too large, max 4096", "data": None},
        unsure("answer_too_large", largest_answer=4096),
    ),
    "SiliconFlow: 400 room in a second sentence": (
        400, {"code": 20015, "message": "max_tokens: 6000 is too high. The maximum is 4,096."},
        unsure("answer_too_large", largest_answer=4096),
    ),
    "SiliconFlow: 403 model": (
        403, {"code": 30003, "message": "Model disabled.", "data": None}, unsure("model")
    ),
    "Bedrock: 400 only by a profile": (
        400, {"message": "Invocation of model ID anthropic.claude-4 with on-demand throughput "
              "isn\u2019t supported. Retry your request with the ID or ARN of an inference profile "
              "that contains this model."}, unsure("model"),
    ),
    "Bedrock behind LiteLLM: 400 only by a profile": (
        400, litellm("BadRequestError", "Bedrock", json.dumps({"message":
             "Invocation of model ID x with on-demand throughput isn't supported."}), "400"),
        unsure("model"),
    ),
    "OpenAI: 400 not verified": (
        400, error("Your organization must be verified to use the model `gpt-5`. Please go to: the "
                   "settings and click on Verify Organization.", INVALID, "unsupported_value",
                   "model"), sure("model"),
    ),
    "OpenAI: 403 not verified, in words": (
        403, error("Your organization must be verified to use the model `gpt-5`.", INVALID),
        unsure("model"),
    ),
    "OpenAI: 400 not verified for streams": (
        400, error("Your organization must be verified to stream this model.", INVALID,
                   "unsupported_value", "stream"), sure("unsupported", "stream"),
    ),
    "Anthropic: 400 both together name the room": (
        400, error("input length and `max_tokens` exceed context limit: 9000 + 4000 > 12000",
                   INVALID, None, "max_tokens"),
        sure("too_long", window=12000, prompt_tokens=9000),
    ),
    "Envoy: 503": (503, "upstream connect error or disconnect/reset before headers",
                   unsure("overloaded")),
}  # fmt: skip

# Messages of OpenAI's form without a code.
IN_WORDS: dict[str, tuple[int, str, Fault]] = {
    "OpenAI": (400, "Invalid schema for function 'x': no object", unsure("unsupported", "tools")),
    "Volcengine": (
        400, "max_tokens: integer above maximum value, expected a value <= 12288",
        unsure("answer_too_large", largest_answer=12288),
    ),
    "vLLM, max_model_len": (
        400, "max_tokens=9000 cannot be greater than max_model_len=8192.",
        unsure("answer_too_large", window=8192, largest_answer=8192),
    ),
    "Scaleway": (
        416, "max_completion_tokens is limited to 4096 for this model",
        unsure("answer_too_large", largest_answer=4096),
    ),
    "Novita": (
        400, "max_tokens: 32000 is too large, max 16000",
        unsure("answer_too_large", largest_answer=16000),
    ),
    "Cerebras": (
        400, "Current length is 42328 while limit is 40000",
        unsure("too_long", window=40000, prompt_tokens=42328),
    ),
    "Groq": (400, "Please reduce the length of the messages", unsure("too_long")),
    "OpenRouter": (
        402, "Prompt tokens limit exceeded: 230799 > 91442.",
        unsure("too_long", window=91442, prompt_tokens=230799),
    ),
    "Express": (413, "request entity too large", unsure("too_long")),
    "LM Studio": (400, "Model unloaded.", unsure("loading")),
    "flex": (429, "Flex has no resources left", unsure("no_resources")),
    "LiteLLM": (500, "No healthy deployment for m", unsure("overloaded")),
    "Google": (500, "The service is currently unavailable", unsure("overloaded")),
    "queue": (400, "the queue is full", unsure("overloaded")),
    "gateway": (400, "limit of 10 requests per minute", unsure("rate_limit")),
    "DashScope": (400, "请求过于频繁，请 5 秒后重试", unsure("rate_limit", wait=5.0)),
    "One API": (403, "用户额度不足", unsure("credit")),
    "Zhipu": (400, "您的账户余额不足", unsure("credit")),
    "DashScope, filter": (400, "Input may contain inappropriate content", unsure("filtered")),
    "blocked": (400, "This was blocked by our policy", unsure("filtered")),
    "Gemini, tools": (
        400, UNKNOWN + "\"$schema\" at 'tools[0].function_declarations[0].parameters': Cannot "
        "find field.", unsure("unsupported", "tools"),
    ),
    "Anthropic": (400, "The compiled grammar cannot be", unsure("unsupported", "json_schema")),
    "OpenAI, tier": (400, "Invalid service_tier argument", unsure("unsupported", "service_tier")),
    "pydantic": (400, "seed: something is wrong", unsure("unsupported", "seed")),
    "a field": (400, "no max_tokens please", unsure("unsupported", "max_tokens")),
    "Azure": (400, "API version not supported", unsure("address")),
    "retired": (400, "The model x has been deprecated", unsure("model")),
    "GitHub": (403, "No access to model: x", unsure("model")),
    "Azure, name": (400, "The API deployment x does not exist", unsure("model")),
    "Anthropic, both": (
        400, "input length and max_tokens exceed context limit", unsure("too_long"),
    ),
    "Bedrock, input": (400, "Input too long", unsure("too_long")),
    "llama.cpp, sequence": (
        400, "Sequence length of 5000 exceeds 4096", unsure("too_long", window=4096)
    ),
    "a sequence with a maximum": (
        400, "sequence length (5000) exceeds the maximum sequence length of 4096",
        unsure("too_long", window=4096),
    ),
    "One API, balance": (403, "Account balance is not enough", unsure("credit")),
    "One API, quota": (403, "user quota is not enough, remain quota: 0", unsure("credit")),
    "a subscription": (403, "Your subscription has expired. Please renew it.", unsure("credit")),
    "a subscription, short": (403, "subscription expired", unsure("credit")),
    "a model that is off": (403, "The model x is currently disabled", unsure("model")),
    "CUDA": (
        400, "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free",
        unsure("server"),
    ),
    "CUDA, 500": (500, "torch.OutOfMemoryError: CUDA out of memory.", unsure("server")),
    "CUDA, driver": (400, "CUDA error: an illegal memory access was met", unsure("server")),
    "NCCL": (400, "NCCL error: unhandled system error", unsure("server")),
    "a worker": (400, "worker died", unsure("server")),
    "a worker, 500": (500, "The worker process has died unexpectedly", unsure("server")),
    "vLLM, engine": (400, "EngineCore encountered an issue. See the stack trace", unsure("server")),
    "vLLM, loop": (400, "Background loop has errored already.", unsure("server")),
    "Ray": (400, "The actor died unexpectedly before it could finish", unsure("server")),
    "Ollama, runner": (400, "llama runner process no longer running: 1", unsure("server")),
    "Envoy": (400, "no healthy upstream", unsure("overloaded")),
    "Envoy, reset": (
        400, "upstream connect error or disconnect/reset before headers. reset reason: overflow",
        unsure("server"),
    ),
    "aiohttp": (400, "Server disconnected", unsure("server")),
    "requests": (400, "Remote end closed connection without response", unsure("server")),
    "uvicorn": (400, "The server is shutting down", unsure("server")),
    "OpenAI, 400": (400, "The server had an error while processing it. Sorry!", unsure("server")),
    "a promise": (400, "Please try again later", unsure("server")),
    "LiteLLM, name": (403, "team not allowed to access model", unsure("model")),
}  # fmt: skip
WORDS_ROWS: dict[str, Row] = {
    f"{name} in words: {row[0]}": (row[0], error(row[1]), row[2]) for name, row in IN_WORDS.items()
}

GROUPS = (
    KEY, MODEL, ADDRESS, CREDIT, RATE_LIMIT, NO_RESOURCES, TOO_LONG_ROWS, ANSWER_TOO_LARGE,
    UNSUPPORTED, BAD_GENERATION, FILTERED, PASSING, BAD_REQUEST,
    FURTHER, WORDS_ROWS,
)  # fmt: skip
ROWS = [(name, *row) for group in GROUPS for name, row in group.items()]


def read(status: int, body: Any, *sent: str, **headers: str) -> Fault:
    """The fault without its message."""
    return replace(read_fault(status, headers, body, sent=sent), message="")


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [row[1:] for row in ROWS],
    ids=[f"{row[3].kind} {row[0]}" for row in ROWS],
)
def test_a_form_is_known(status: int, body: Any, fault: Fault) -> None:
    assert read(status, body) == fault
    if not isinstance(body, str | bytes):
        assert read(status, json.dumps(body)) == read(status, json.dumps(body).encode()) == fault


CODES = [(form, code) for form in FORMS if not form.words for code in form.code.split()]


@pytest.mark.parametrize(("form", "code"), CODES, ids=[code for _, code in CODES])
def test_a_code_is_known_in_any_case_and_place(form: Form, code: str) -> None:
    name = code.removeprefix("key:")
    key = name if code.startswith("key:") else "code"
    param = form.param.split()[0] if form.param else "seed" if form.kind == "unsupported" else None
    status = form.status[0] if form.status else 400
    fields = {key: name.title(), "message": "No.", "param": param}
    for body in (
        {"error": fields},
        fields,
        [{"error": {"innererror": fields}}],
        {"detail": fields},
    ):
        fault = read(status, body)
        assert (fault.kind, fault.certain) == (form.kind, True)


@pytest.mark.parametrize("form", [form for form in FORMS if form.words], ids=lambda f: f.words[:40])
def test_an_ordinary_sentence_fits_no_form(form: Form) -> None:
    pattern = re.compile(form.words.replace("~", ".*"), re.IGNORECASE)
    for words in ("", "Something odd happened.", "The request could not be handled: 12, 34."):
        assert pattern.search(words) is None


def test_the_table_knows_each_kind_by_three_forms() -> None:
    kinds = [fault.kind for *_, fault in ROWS]
    assert len(ROWS) >= 120
    assert all(kinds.count(form.kind) >= 3 for form in FORMS)


NOT_PASSING: dict[str, tuple[int, str, FaultKind]] = {
    "what a model cannot be loaded for": (500, "Failed to load model: out of memory", "model"),
    "a tool that is off": (400, "tools are disabled for this model", "unsupported"),
    "a role": (400, "a worker is no role of a message", "bad_request"),
    "a plan": (400, "the engine stops at a role it does not know", "bad_request"),
    "a balance of braces": (400, "The template has not enough braces", "bad_request"),
}  # fmt: skip


@pytest.mark.parametrize(("status", "words", "kind"), NOT_PASSING.values(), ids=NOT_PASSING)
def test_words_near_those_of_a_passing_fault_are_not_waited_for(
    status: int, words: str, kind: FaultKind
) -> None:
    assert read(status, error(words)).kind == kind


# What an endpoint quotes is not its own words.

TRAPS = (
    "seed", "api key not valid", "rate limit", "response_format json_schema is not supported",
    "Please try again in 36s", "This model's maximum context length is 10 tokens",
    "the model does not exist", "insufficient balance", "temperature is not supported",
    "content filter", "overloaded", "Loading model", "Unsupported parameter: 'max_tokens'",
    '{"error": {"code": "invalid_api_key", "type": "insufficient_quota"}}', "<html>", "`", '"',
    "'{", '{"code":"invalid_api_key"}', "CUDA out of memory", "worker died", "subscription expired",
    "the model is disabled", "Sequence length of 5000 exceeds 4096", "try again later",
    "unexpected 'seed' in \\n your prompt, \"tools\" unknown",
)  # fmt: skip
PROMPTS = st.one_of(
    st.sampled_from(TRAPS), st.text(), st.lists(st.sampled_from(TRAPS)).map(" ".join),
    st.builds("{} {} {}".format, st.text(), st.sampled_from(TRAPS), st.text()),
)  # fmt: skip
STATUSES = st.sampled_from([200, 400, 403, 404, 422, 429, 500, 503])


@given(PROMPTS, STATUSES)
@example('{"error": {"code": "invalid_api_key"}}', 400)
@example("rate limit", 403)
def test_a_quoted_prompt_changes_nothing(prompt: str, status: int) -> None:
    for form in ("Invalid request: ... {} ...", "Error code 400: {}", "{}"):
        quoting, bare = (form.format(text) for text in (prompt, ""))
        for wrap in (error, lambda text: {"detail": text}, lambda text: f"No: {text}"):
            assert read(status, wrap(quoting), prompt) == read(status, wrap(bare))


@given(PROMPTS, st.text(), st.sampled_from(["litellm.X: YException - {}", "500 error: {}"]))
def test_an_error_in_a_prompt_is_not_the_endpoint_s(prompt: str, more: str, form: str) -> None:
    text = json.dumps({"error": {"code": "invalid_api_key", "message": prompt}}) + more
    assert read(400, error(form.format(text)), "Mend this:\n" + text) == read(400, error(form))


@pytest.mark.parametrize("trap", TRAPS)
def test_a_part_of_a_prompt_is_known_as_quoted(trap: str) -> None:
    prompt = f"Once upon a time there was {trap} in the deep wood, said the old man."
    half = prompt[14:-14]
    fault = read(400, error(f"Could not read this: {half}"), "Be brief.", prompt)
    assert fault == unsure("bad_request")


@pytest.mark.parametrize("trap", [trap for trap in TRAPS if len(trap.split()) > 1])
@pytest.mark.parametrize("marks", ["``", '""', "''", "“”", "{}", "[]"], ids=repr)
def test_what_stands_in_marks_is_no_word_of_the_endpoint(trap: str, marks: str) -> None:
    plain = trap.replace("'", "").replace('"', "").replace("`", "")
    quotation = f"{marks[0]}he said that {plain} is so{marks[1]}"
    assert read(400, error(f"Invalid text: {quotation} came.")) == unsure("bad_request")
    assert read(400, error(f"Invalid text: {quotation[:-1]}")) == unsure("bad_request")


def test_a_name_in_marks_stays() -> None:
    for name in ("'seed'", '"seed"', "`seed`", "seed"):
        assert read(400, error(f"{name} is not supported")) == unsure("unsupported", "seed")


@pytest.mark.parametrize(
    "key", ["failed_generation_text", "input", "body", "messages", "received", "prompt", "content"]
)
def test_fields_that_may_quote_are_not_read(key: str) -> None:
    quotation = {"code": "invalid_api_key", "message": "rate limit exceeded", "param": "seed"}
    for value in (quotation, json.dumps(quotation), [quotation], "seed is not supported"):
        assert read(400, error("No.") | {key: value}) == unsure("bad_request")
        assert read(400, {"error": {"message": "No.", key: value}}) == unsure("bad_request")


@given(
    st.lists(st.sampled_from([*TRAPS, *(f"'{name}'" for name in ("seed", "tools"))]) | st.text()),
    st.sampled_from([200, 400, 403, 404, 409, 413, 422, 500, 503]),
)
def test_words_alone_are_never_certain(parts: list[str], status: int) -> None:
    text = " ".join(parts).replace("{", "(").replace("[", "(")
    for body in (error(text), {"detail": text}, {"message": text}, error(text, INVALID, 400)):
        assert not read(status, body).certain


@pytest.mark.parametrize("row", [row for row in ROWS if not row[3].certain], ids=lambda row: row[0])
def test_words_of_a_known_form_are_not_certain_elsewhere(row: tuple[Any, ...]) -> None:
    status = row[1] if row[1] not in (401, 402, 429, 498, 529) else 400
    assert not read(status, row[2]).certain


# Waits.

WAITS = {
    "Please try again in 6m23.5s.": 383.5,
    "try again in 20ms": 0.02,
    "Please retry after 36 seconds": 36.0,
    "Please retry in 36.2s.": 36.2,
    "Try again in 1 minute": 60.0,
    "You can try again in a minute.": 60.0,
    "wait 2 minutes and 3 seconds": 123.0,
    "Retry in 1h2m3s": 3723.0,
    "try again in 2 days": 172800.0,
    "limits reset in 5 min": 300.0,
    "(reset after 30s)": 30.0,
    "Rate limit of 10 per 60s exceeded. Please wait 35 seconds before retrying.": 35.0,
    "Limit: 10 / min. Please try again in 36s.": 36.0,
    "请 36 秒后重试": 36.0,
    "请在2分钟之后重试": 120.0,
    "Limit 3 per 60s.": None,
    "Try again later.": None,
    "Please try again. See page 3 min.": None,
    "failed after 3 retries": None,
    "unable to answer in less than 60 second(s)": None,
    "": None,
}


@pytest.mark.parametrize(("words", "wait"), WAITS.items(), ids=WAITS)
def test_a_wait_is_read_from_words(words: str, wait: float | None) -> None:
    assert read_wait({}, None, words) == wait


HEADERS: list[tuple[dict[str, str], float | None]] = [
    ({"retry-after-ms": "250", "Retry-After": "9"}, 0.25),
    ({"Retry-After": "3"}, 3.0),
    ({"RETRY-AFTER": " 0.25 "}, 0.25),
    ({"Retry-After": "-1"}, 0.0),
    ({"Retry-After": "12s"}, 12.0),
    ({"x-ms-retry-after-ms": "1500"}, 1.5),
    *(({"Retry-After": text}, None) for text in ("", "soon", "nan", "inf", "1e999", "9" * 400)),
    # Groq and OpenAI: a reset counts where nothing is left.
    ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
    ({"x-ratelimit-remaining-tokens": "9", "x-ratelimit-reset-tokens": "6m0s"}, None),
    ({"x-ratelimit-reset-tokens": "6m0s"}, None),
    (
        {
            **{"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s"},
            **{"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "7.66s"},
        },
        7.66,
    ),
    ({"X-RateLimit-Reset": "7"}, 7.0),
    ({"X-RateLimit-Reset": "88ms"}, 0.088),
    ({"X-RateLimit-Reset": "1.5", "Retry-After": "3"}, 3.0),
]


@pytest.mark.parametrize(("headers", "wait"), HEADERS, ids=lambda value: str(value)[:60])
def test_a_wait_is_read_from_headers(headers: dict[str, str], wait: float | None) -> None:
    assert read_wait(headers, None, "") == wait


def test_a_wait_may_be_a_time() -> None:
    soon = time.time() + 60
    anthropic_reset = {
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(soon)),
    }
    for headers in (
        {"Retry-After": formatdate(soon, usegmt=True)},
        {"Retry-After": formatdate(soon)},
        {"X-RateLimit-Reset": f"{soon * 1000:.0f}"},
        {"X-RateLimit-Reset": f"{soon:.0f}"},
        anthropic_reset,
    ):
        wait = read_wait(headers, None, "")
        assert wait is not None and 50 < wait < 61, headers
    assert read_wait({"Retry-After": formatdate(0)}, None, "") == 0.0
    assert read_wait({"Retry-After": "Mon, 01 Jan 99999 00:00:00 GMT"}, None, "") is None


DETAILS: list[tuple[Any, float | None]] = [
    (google(429, "X", "m", google_detail("RetryInfo", retryDelay="0.5s")), 0.5),
    (google(429, "X", "m", google_detail("RetryInfo", retryDelay={"seconds": 4})), 4.0),
    ({"error": "loading", "estimated_time": 20.5}, 20.5),
    ({"error": {"retry_after": 7}}, 7.0),
    ({"error": {"message": "x", "retry_after_ms": "250"}}, 0.25),
    ({"detail": {"retryAfter": "9"}}, 9.0),
    (openrouter(429, "x", headers={"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "5"}), 5.0),
    (openrouter(429, "x", **raw("Google", google(429, "X", "m", {"retryDelay": "11s"}))), 11.0),
    ({"input": {"retry_after": 7}}, None),
    ({"error": {"retry_after": float("nan")}}, None),
    ({"error": {"retry_after": True}}, None),
    ([], None),
]


@pytest.mark.parametrize(("value", "wait"), DETAILS)
def test_a_wait_is_read_from_details(value: Any, wait: float | None) -> None:
    assert read_wait({}, value, "") == wait


def test_headers_go_before_details_and_details_before_words() -> None:
    body = {"error": {"message": "Slow down, try again in 3 s", "retry_after": 2}}
    assert read(429, body, **{"retry-after": "1"}).wait == 1.0
    assert read(429, body).wait == 2.0
    assert read(429, error("Slow down, try again in 3 s")).wait == 3.0


def test_only_what_passes_is_waited_for() -> None:
    assert read(400, error("the prompt is too long, try again in 3 s")).wait is None
    left = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9s"}
    assert read(429, error("no"), **left).wait == 9.0
    assert read(500, error("no"), **left).wait is None


# The line that is said.

HTML = {"Content-Type": "text/html; charset=utf-8"}
PAGE = "<!DOCTYPE html><head><style>a{}</style><title>Open&nbsp;WebUI</title><body>Sign in"
LINES: list[tuple[int, dict[str, str], Any, str]] = [
    (400, {}, error("No\n such  thing"), "status 400: No such thing"),
    (
        200, HTML, PAGE, "status 200: what came is a web page (text/html), not JSON: 'Open WebUI "
        "Sign in'; is --base-url the API's address?",
    ),
    (
        404, {"content-type": "text/plain"}, "404 page not found", "status 404: what came is no "
        "JSON (text/plain): '404 page not found'; is --base-url the API's address?",
    ),
    (502, {}, b"", "status 502: an empty body came"),
    (301, {"Location": "https://b.example/v1"}, "", "status 301: it redirects to "
     "https://b.example/v1; is --base-url the API's address?"),
    (200, {}, {"choices": []}, 'status 200: no error was said: {"choices": []}'),
    (200, {}, openrouter(401, "No auth"), "status 200 (401 inside): No auth"),
    (
        400, {}, openrouter(400, "Provider returned error", **raw("X", error("Too odd"))),
        "status 400: Provider returned error; Too odd",
    ),
    (400, {}, error("litellm.BadRequestError: XException - " + json.dumps(error("odd"))),
     "status 400: odd; litellm.BadRequestError: XException"),
    (401, {}, error("Incorrect API key provided: sk-abcdef123456."),
     "status 401: Incorrect API key provided: (key)"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "headers", "body", "line"), LINES, ids=[r[3] for r in LINES])
def test_the_line_names_what_came(
    status: int, headers: dict[str, str], body: Any, line: str
) -> None:
    assert read_fault(status, headers, body).message == line


KEYS_IN_WORDS = [
    "sk-proj-abcDEF123456", "sk-ant-api03-abcdef", "gsk_abcdef123456", "hf_abcdefGHIJK",
    "xai-abcdef123456", "AIzaSyA1234567890abcdef", "Bearer abcdef.123", "nvapi-abcdef123",
    "api key 0123456789abcdef0123", "key: abc***9xyz", "key=Zm9vYmFyOTk", "f" * 32,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.abc", "provided: na***ys9",
]  # fmt: skip


@pytest.mark.parametrize("words", KEYS_IN_WORDS)
def test_a_key_is_never_said(words: str) -> None:
    secret = words.split()[-1].removeprefix("key=")
    for body in (error(f"No: {words}, so"), f"No: {words} so", {"odd": words}):
        line = read_fault(400, {}, body).message
        assert secret not in line and "(key)" in line
    assert secret not in redact_keys(words)


@pytest.mark.parametrize("words", ["the key: please give one", "token limit", "a key-word", "sk-"])
def test_other_words_are_no_keys(words: str) -> None:
    assert redact_keys(words) == words


# Whatever comes.

NAMES = st.sampled_from(
    [
        "error",
        "errors",
        "message",
        "detail",
        "details",
        "code",
        "type",
        "param",
        "loc",
        "status",
        "reason",
        "metadata",
        "raw",
        "choices",
        "headers",
        "ctx",
        "le",
        "description",
        "retryDelay",
        "fieldViolations",
        "retry_after",
        "n_ctx",
        "innererror",
    ]
) | st.text(max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(TRAPS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=30,
)


@given(
    st.integers(0, 999) | STATUSES, st.dictionaries(st.text(), st.text(), max_size=3),
    JSON | st.binary() | st.text() | st.sampled_from(TRAPS), st.lists(PROMPTS, max_size=2),
    st.sampled_from([{}, {"retry-after": "x"}, {"content-type": "text/html"}, {"location": "/"}]),
)  # fmt: skip
def test_anything_is_read(
    status: int, headers: dict[str, str], body: Any, sent: list[str], more: dict[str, str]
) -> None:
    fault = read_fault(status, headers | more, body, sent=sent)
    assert fault.message.startswith("status ") and len(fault.message) <= 300
    assert fault.message.isprintable()
    assert fault.wait is None or 0 <= fault.wait < float("inf")
    assert (fault.feature is not None) <= (fault.kind in ("unsupported", "bad_generation"))


HOSTILE = {
    "deep list": "[" * 100_000,
    "deep object": '{"error":' * 100_000,
    "deep print": error("error: " + "[{" * 3000),
    "many digits": '{"error": {"code": ' + "9" * 5000 + "}}",
    "great number": {"error": {"code": 10**5000, "param": 10**5000, "n_ctx": 10**5000}},
    "lone surrogate": error("\ud800 the seed"),
    "long word": error("a" * 1_000_000),
    "many marks": error("'\"`{[" * 50_000),
    "many spaces": error("max_tokens" + " " * 200_000 + "x"),
    "many names": error("models " * 30_000),
    "many numbers": error("try again in " + "1 m " * 50_000),
    "many tags": "<html>" + "<a " * 100_000,
    "many comments": "<html>" + "<!--" * 100_000,
    "bad bytes": b"\xff\xfe" * 1000,
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_body_is_read_at_once(body: Any) -> None:
    sent = ["the quick brown fox jumps over the lazy dog " * 2000]
    start = time.perf_counter()
    for status in (200, 400, 429):
        read_fault(status, {}, body, sent=sent)
    assert time.perf_counter() - start < 3


def test_an_ordinary_error_takes_no_time() -> None:
    sent = ["word " * 20_000]
    read(429, error("Rate limit reached"), *sent)
    start = time.perf_counter()
    for _ in range(20):
        read(400, error("Something odd happened with this request " * 5), *sent)
    assert time.perf_counter() - start < 3


LIMITS_IN_OTHER_WORDS = (
    "You have reached your request limit for this minute. Please retry after 2 seconds.",
    "RPM limit exceeded",
    "You are sending requests too quickly",
    "exceeded the maximum number of concurrent requests",
)


@pytest.mark.parametrize("words", LIMITS_IN_OTHER_WORDS)
def test_a_limit_in_other_words_is_a_rate_limit_whatever_its_status(words: str) -> None:
    assert read_fault(403, {}, {"message": words}).kind == "rate_limit"
    assert read_fault(403, {}, {"message": "Forbidden"}).kind == "key"


ERROR_LINES = (
    "Error: upstream timed out",
    "error: upstream request timeout\n",
    "[ERROR] The generation failed",
    "**Error**: Rate limit exceeded. Please try again in 20 s.",
    "⚠️ Error: something went wrong, please try again.",
    "Error code: 429 - {'error': {'message': 'Rate limit reached', 'code': 'rate_limited'}}",
    "API Error: Connection error.",
    "APIError: 502 Bad Gateway",
    "Error 503: Service Unavailable",
    "Internal Server Error: no healthy upstream",
    "Upstream error: the model is overloaded",
    "Exception: CUDA out of memory",
    "[Error] Insufficient balance",
    "Error: invalid API key",
    "Error: no response from the provider",
    "Error: failed to generate a response",
    "upstream request timeout",
    "no healthy upstream",
    "502 Bad Gateway",
    "Internal Server Error.",
    "upstream connect error or disconnect/reset before headers. reset reason: overflow",
    "error code: 524",
    "Request timed out.",
    '{"error": {"message": "upstream timed out", "code": 504}}',
    '{"error": "model is overloaded"}',
)
NO_ERROR_LINES = (
    "",
    "So.",
    "Error: division by zero",
    "Errors are how one learns.",
    "Error bars show the spread of the measurements.",
    "Failure is the mother of success.",
    "Exception: nouns that end in -o take -es.",
    "Error: upstream timed out\nSo it is retried.",
    "To mend 'Error: upstream timed out', raise the limit.",
    "The error 'upstream timed out' means that a server did not answer.",
    "A bad gateway is a status.",
    "Timeouts happen.",
    '{"error": null, "result": 4}',
    '{"error": "wrong colour"}',
    '{"error": "timeout", "answer": "So."}',
    "[1, 2]",
    "Error: " + "the rate limit " * 40,
)


@pytest.mark.parametrize("text", ERROR_LINES)
def test_a_line_that_only_says_an_error_is_known(text: str) -> None:
    assert is_error_line(text)


@pytest.mark.parametrize("text", NO_ERROR_LINES)
def test_a_text_that_speaks_of_an_error_is_none(text: str) -> None:
    assert not is_error_line(text)


@given(st.text(max_size=300))
def test_any_text_may_be_asked_for_an_error(text: str) -> None:
    assert is_error_line(text) in (True, False)
