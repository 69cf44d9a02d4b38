"""What an endpoint's error means, whichever status it came with.

Providers say the same fault in many forms. `FORMS` has one line for each; the first that fits
decides. What the provider names in fields of its own comes first, its words come last. Words are
read only from the endpoint's own messages, without what they quote of a prompt or a generation.
"""

from __future__ import annotations

import ast
import html
import json
import math
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Literal

FaultKind = Literal[
    "key", "address", "model", "credit", "rate_limit", "no_resources", "too_long",
    "answer_too_large", "unsupported", "filtered", "bad_generation", "loading", "overloaded",
    "server", "timeout", "bad_request",
]  # fmt: skip
# Faults that pass: only for these a wait is read.
PASSING: tuple[FaultKind, ...] = (
    "rate_limit", "no_resources", "loading", "overloaded", "server", "timeout",
)  # fmt: skip
MAX_MESSAGE = 300
# What is read of an error: an endpoint may send anything.
MAX_BODY, MAX_TEXT, MAX_WORDS, MAX_DEPTH, MAX_ITEMS = 400_000, 50_000, 4_000, 8, 40
# So many words in a row that also stand in the request are a quotation of it.
QUOTED_RUN = 4
# Quoted or in brackets, more words than these are no name but a text.
MAX_WORDS_IN_BRACKETS = 3


@dataclass(frozen=True, slots=True)
class Fault:
    """What an error means.

    `message` is one line for the user: the status and the endpoint's own words. `feature` is what
    is not supported: `json_schema` (also a `response_format` of a type that is not said), `tools`,
    `json_object`, `logprobs`, or the name of a parameter; a `bad_generation` of `max_tokens` wants
    more room. `certain` means that a field, a code or the status names the fault; words alone may
    start a probe, never decide. `wait` is in seconds, the last three are in tokens.
    A rate limit has a `window` if it takes no request of more tokens than that at all.
    """

    kind: FaultKind
    message: str
    feature: str | None = None
    certain: bool = False
    wait: float | None = None
    window: int | None = None
    prompt_tokens: int | None = None
    largest_answer: int | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """One form of a fault: all that is given must fit.

    `words` is a pattern for the endpoint's words, `code` lists codes, types and reasons, `param`
    parameters (`*` is any that can be left out). `~` in a pattern is a part of the same sentence.
    `feature` is what is not supported; without it the parameter or the group `name` tells.
    """

    kind: FaultKind
    words: str = ""
    code: str = ""
    param: str = ""
    status: tuple[int, ...] = ()
    feature: str | None = None


# The names of what a request may do without, as endpoints spell them.
FEATURE_OF_NAME = {
    "response_format": "json_schema", "json_schema": "json_schema", "response_schema":
    "json_schema", "responseschema": "json_schema", "response_json_schema": "json_schema",
    "structured_output": "json_schema", "structured_outputs": "json_schema", "guided_json":
    "json_schema", "guided_decoding": "json_schema", "guided_grammar": "json_schema",
    "output_config": "json_schema", "output_format": "json_schema", "grammar": "json_schema",
    "json_object": "json_object", "json_mode": "json_object", "response_mime_type": "json_object",
    "tools": "tools", "tool": "tools", "functions": "tools", "function_declarations": "tools",
    "tool_use": "tools", "tool_calls": "tools", "tool_calling": "tools", "tool_call": "tools",
    "function_calling": "tools", "function_calls": "tools", "function_call": "tools",
    "tool_choice": "tool_choice", "strict": "strict", "seed": "seed",
    "temperature": "temperature", "service_tier": "service_tier",
    "max_tokens": "max_tokens", "max_completion_tokens": "max_completion_tokens",
    "logprobs": "logprobs", "log_probs": "logprobs", "logprob": "logprobs",
    "response_logprobs": "logprobs", "responselogprobs": "logprobs",
    "log_probabilities": "logprobs", "top_logprobs": "top_logprobs",
}  # fmt: skip
# No request can do without these.
NEEDED = ("messages", "model", "input", "prompt", "contents")
_ANSWER_PARAMS = "max_tokens max_completion_tokens max_output_tokens max_new_tokens maxoutputtokens"
_NAME = (
    r"(?<!\w)(?P<name>response[_ ]format(?:\.\w+)*|(?:response_)?json[_ ]schema|response_schema"
    r"|structured[_ ]outputs?|guided[_ ]\w+|output_config|json_object|json[_ ]mode"
    r"|tool[_ ]choice|tools(?:\.\w+)+|tools?(?:[_ ](?:use|calls?|calling))?"
    r"|function[_ ]call(?:s|ing)?|functions"
    r"|top_logprobs|(?:response_)?log_?probs?|log[ -]probabilities|seed|temperature"
    r"|max_tokens|max_completion_tokens|service_tier|strict)(?!\w)"
)
# What `~` in a pattern stands for.
_NEAR = r"(?:(?!\. |\n)[\s\S]){0,120}?"
_REFUSAL = (
    r"(?:deprecated|not (?:currently |yet |fully )?(?:supported|allowed|permitted|recognized"
    r"|implemented|available|enabled|accepted)|n[o']t (?:currently |yet )?(?:support|accept|allow)"
    r"|unsupported"
    r"|unavailable|unexpected|unrecognized|cannot (?:be used|find field)|no longer supported"
    r"|is enabled only|extra inputs are|requires? --)"
)
_NO_SUCH = (
    r"(?:unsupported|unrecognized|unknown|unexpected|not (?:supported|allowed|permitted)"
    r"|n[o']t (?:currently |yet )?(?:support|accept|allow)\w*|not allowed to request"
    r"|invalid (?:param\w*|argument|field|value|type)|no endpoints found that support)"
)

# Statuses of a request that is at fault itself.
REFUSING = (400, 403, 404, 422)

# One line a form. What a provider's own fields name comes first, its words after them.
FORMS: tuple[Form, ...] = (
    # A code that says less than the words beside it.
    # DashScope: the tokens of a minute, in the words of an empty account.
    Form("rate_limit", code="insufficient_quota", words=r"token-limit|throttling\.allocationquota"),
    # Gemini: a model without a free tier.
    Form("credit", code="resource_exhausted quotafailure", words=r"\blimit: 0\b(?![.,]?\d)"),
    Form("answer_too_large", param=_ANSWER_PARAMS, code="integer_above_max_value"),  # OpenAI
    Form("answer_too_large", param=_ANSWER_PARAMS, code="less_than_equal less_than"),  # pydantic
    Form("answer_too_large", r"too (?:large|high)\b.*supports at most", param=_ANSWER_PARAMS),
    Form("answer_too_large", r"above max|<=|less than or|be greater", param=_ANSWER_PARAMS),
    Form("too_long", param="*", words=r"maximum context length|context (?:window|limit)"),
    Form("too_long", r"must be at least 1, got -", param=_ANSWER_PARAMS),  # vLLM
    Form("bad_request", r"at least|minimum|>=|greater than or", param=_ANSWER_PARAMS),
    Form("unsupported", r"sample logprobs of \d+", param="*", feature="top_logprobs"),  # vLLM
    Form("bad_request", param=_ANSWER_PARAMS, code="integer_below_min_value"),  # OpenAI
    Form("bad_request", param=_ANSWER_PARAMS, code="greater_than_equal greater_than"),  # pydantic
    Form("model", param="model", code="not_found invalid_value value_error 404 invalidparameter"),
    Form("model", r"\bnot (?:found|exist|a chat)|invalid|unknown|access", param="model"),
    Form("model", r"organization must be verified", param="model"),  # OpenAI
    Form("model", r"^model:|\bthe model\b", code="not_found_error notfounderror"),  # Anthropic
    # A bad generation: the same request may succeed.
    Form("bad_generation", code="json_validate_failed tool_use_failed output_parse_failed"),  # Groq
    Form("bad_generation", code="key:failed_generation"),  # Groq
    Form("bad_generation", code="malformed_function_call malformed_response"),  # Gemini
    # Filters.
    Form("filtered", code="content_filter responsibleaipolicyviolation"),  # Azure
    Form("filtered", code="content_policy_violation contentpolicyviolationerror"),  # OpenAI
    Form("filtered", code="invalid_prompt", words=r"flagged|usage polic|violat"),  # OpenAI
    Form("filtered", code="key:flagged_input moderation_blocked content_moderation"),  # OpenRouter
    Form("filtered", code="key:blockreason prohibited_content safety blocklist recitation spii"),
    Form("filtered", code="datainspectionfailed data_inspection_failed"),  # DashScope
    Form("filtered", code="inputtextsensitivecontentdetected"),  # Volcengine
    Form("filtered", code="1301"),  # Zhipu
    Form("filtered", code="guardrail_intervened guardrailintervened"),  # Bedrock
    Form("filtered", code="sensitive_words_detected"),  # One API
    # The prompt's length.
    Form("too_long", code="context_length_exceeded string_above_max_length"),  # OpenAI, Groq
    Form("too_long", code="exceed_context_size_error"),  # llama.cpp
    Form("too_long", code="contextwindowexceedederror"),  # LiteLLM
    Form("too_long", code="tokens_limit_reached"),  # GitHub Models, 413
    Form("too_long", code="request_too_large prompt_too_long model_context_window_exceeded"),
    Form("too_long", code="1261"),  # Zhipu
    # The account.
    Form("credit", code="insufficient_quota billing_not_active"),  # OpenAI
    Form("credit", code="billing_hard_limit_reached"),  # OpenAI
    Form("credit", code="insufficient_balance insufficientbalance"),  # DeepSeek
    Form("credit", code="insufficient_credits"),  # OpenRouter
    Form("credit", code="credit_limit credits_exhausted payment_required"),  # Together
    Form("credit", code="billing_error"),  # Anthropic
    Form("credit", code="arrearage accessdenied.unpurchased"),  # DashScope
    Form("credit", code="accountoverdueerror"),  # Volcengine
    Form("credit", code="budget_exceeded budgetexceedederror"),  # LiteLLM
    Form("credit", code="billing_disabled"),  # Google
    Form("credit", code="exceeded_current_quota_error"),  # Moonshot
    Form("credit", code="insufficient_funds creditserror"),  # AI gateways
    Form("credit", code="not_enough_balance"),  # Novita
    Form("credit", code="insufficient_user_quota"),  # One API
    Form("credit", code="allocationquota.freetieronly"),  # DashScope
    Form("credit", code="1113"),  # Zhipu
    # The key.
    Form("key", code="invalid_api_key incorrect_api_key account_deactivated"),  # OpenAI
    Form("key", code="invalid_organization missing_api_key invalid_authentication no_api_key"),
    Form("key", code="unsupported_country_region_territory"),  # OpenAI
    Form("key", code="api_key_invalid api_key_service_blocked service_disabled"),  # Google
    Form("key", code="access_token_expired credentials_missing consumer_invalid"),  # Google
    Form("key", code="invalidapikey invalidaccesskeyid"),  # DashScope
    Form("key", code="wrong_api_key"),  # Cerebras
    Form("key", code="invalid_authentication_error incorrect_api_key_error"),  # Moonshot
    Form("key", code="token_not_found_in_db expired_key no_db_connection"),  # LiteLLM
    Form("key", code="unrecognizedclientexception invalidsignatureexception"),  # Bedrock
    Form("key", code="ip_not_authorized autherror"),  # OpenAI
    Form("key", code="organization_restricted"),  # Groq
    # The model.
    Form("model", code="model_not_found"),  # OpenAI, LM Studio
    Form("model", code="deploymentnotfound operationnotsupported unknown_model"),  # Azure
    Form("model", code="model_not_available"),  # Together
    Form("model", code="model_decommissioned model_terms_required"),  # Groq
    Form("model", code="invalidendpointormodel modelnotopen modelnotfound"),  # Volcengine
    Form("model", code="model.accessdenied model_not_supported invalid_model"),  # DashScope, GitHub
    Form("model", code="key_model_access_denied team_model_access_denied"),  # LiteLLM
    Form("model", code="resource_not_found_error"),  # Moonshot
    Form("model", code="resourcenotfoundexception"),  # Bedrock
    Form("model", code="model_permission_blocked_project no_access"),  # Groq, GitHub
    Form("model", code="1211"),  # Zhipu
    # Load.
    Form("no_resources", code="resource_unavailable"),  # OpenAI flex, 429
    Form("no_resources", code="capacity_exceeded"),  # Groq flex, 498
    Form("loading", code="unavailable_error modelnotreadyexception"),  # llama.cpp, Bedrock
    Form("loading", code="key:estimated_time model_loading model_not_ready"),  # Hugging Face
    Form("overloaded", code="overloaded_error overloaded server_overloaded slow_down"),  # Anthropic
    Form("overloaded", code="engine_overloaded_error engine_overloaded serveroverloaded"),
    Form("overloaded", code="model_capacity_exhausted"),  # Google
    Form("overloaded", code="queue_exceeded"),  # Cerebras
    Form("rate_limit", code="rate_limit_exceeded rate_limit_error rate_limited rate_limit"),
    Form("rate_limit", code="resource_exhausted quotafailure ratelimitexceeded"),  # Google
    Form("rate_limit", code="too_many_requests too_many_requests_error toomanyrequests"),
    Form("rate_limit", code="throttling throttlingexception limit_requests limit_burst_rate"),
    Form("rate_limit", code="ratelimitreached rate_limit_reached_error"),  # Azure, Moonshot
    Form("rate_limit", code="token_quota_exceeded request_quota_exceeded"),  # Cerebras
    Form("rate_limit", code="service_tier_capacity_exceeded 3505 1300"),  # Mistral
    Form("rate_limit", code="request_limit_exceeded"),  # Databricks
    Form("rate_limit", code="1302 1303 1305"),  # Zhipu
    # What is not supported, named by a parameter.
    Form("unsupported", code="invalid_json_schema", feature="json_schema"),  # OpenAI
    Form("unsupported", code="invalid_function_parameters", feature="tools"),  # OpenAI
    Form("unsupported", code="unsupported_parameter unsupported_value unknown_parameter"),  # OpenAI
    Form("unsupported", code="extra_forbidden"),  # Mistral, vLLM, SGLang
    Form("unsupported", code="unsupportedparamserror"),  # LiteLLM
    Form("unsupported", param="*", status=(200, 400, 403, 404, 422, 500, 501)),
    # From here on only words.
    Form("bad_generation", r"error parsing tool call|failed to (?:generate json|call a func)"),
    Form("bad_generation", r"failed to parse (?:tool call|input at pos|(?:the )?model output)"),
    Form("bad_generation", r"model (?:generated|produced|returned) (?:an? )?(?:in|mal|output )"),
    # OpenAI: thinking took all of the answer's room.
    Form("bad_generation", r"could not finish the message because", feature="max_tokens"),
    Form("no_resources", r"\bflex\b.{0,60}(?:capacity|resource|unavailable)"),
    Form("no_resources", r"(?:capacity|resource|unavailable).{0,60}\bflex\b"),
    Form("loading", r"\bloading (?:the )?model|model.{0,80}\b(?:currently |still )loading"),
    Form("loading", r"\bwarming up\b|\bcold start|model is (?:not ready|starting|unloaded)"),
    Form("loading", r"waiting for (?:the )?(?:llama runner|llama-server|model) to (?:start|load)"),
    Form("loading", r"^model unloaded|model (?:is )?being loaded|model was unloaded"),
    # The room for an answer; before the length of the prompt, which speaks of tokens too.
    Form("rate_limit", r"too many tokens, please wait"),  # Bedrock
    Form("too_long", r"maximum context (?:length|size|window)"),  # OpenAI, vLLM
    Form("too_long", r"inputs?\W{0,2} tokens \+ \W?max_new_tokens|must have less than \d+ tok"),
    Form("answer_too_large", r"range of `?max_\w*tokens`? (?:is|should be)"),  # DeepSeek
    Form("answer_too_large", r"max_\w*tokens\W+(?:\d+\W+)?(?:is )?too (?:large|high)"),  # OpenAI
    Form("answer_too_large", r"max_\w*tokens\W+\d+ > \d+.*output tokens"),  # Anthropic
    Form("answer_too_large", r"max_?output_?tokens value of"),  # Gemini
    Form("answer_too_large", r"max_\w*tokens.{0,80}(?:above maximum|expected a value <=)"),
    Form("answer_too_large", r"max_\w*tokens.{0,80}cannot be greater than max_model_len"),
    Form("answer_too_large", r"max(?:_\w*|imum )tokens.{0,60}exceeds? the (?:model|max)\w* "),
    Form("answer_too_large", r"max[_ ]\w*tokens\W{1,4}(?:\W?\d+\W+)?must be (?:<=|less than)"),
    Form("answer_too_large", r"max_\w*tokens (?:is limited|cannot exceed|must not exceed)"),
    Form("answer_too_large", r"max_tokens参数"),  # Zhipu
    Form("rate_limit", r"request too large.{0,200}(?:per (?:min|day)|[tr]p[md]\b)"),  # Groq
    Form("too_long", r"context[ _](?:length|window|size|limit)~(?:exceed|only|is \d)"),
    Form("too_long", r"exceed\w*~context (?:length|window|size|limit)"),
    Form("too_long", r"(?:longer|larger) than the (?:model|maximum|context)"),  # SGLang
    Form("too_long", r"(?:prompt|input|request|message)\w*(?: length)? (?:is |are )?too long"),
    Form("too_long", r"(?:prompt|input) (?:token count|length|size)~exceed"),  # Gemini
    Form("too_long", r"sequence length~exceed"),
    Form("too_long", r"tokens?\b~cannot exceed"),  # Cohere, watsonx, Databricks
    Form("too_long", r"keep (?:from|the)~(?:initial prompt|first \d+ tokens)"),
    Form("too_long", r"current length is \d+ while limit is"),  # Cerebras
    Form("too_long", r"maximum prompt length|model token limit|too many tokens"),  # xAI, Moonshot
    Form("too_long", r"prompt tokens limit exceeded|prompt exceeds|range of input length"),
    Form("too_long", r"max_tokens must be at least 1, got -"),  # vLLM before 0.6
    Form("too_long", r"reduce the length of (?:the|your) (?:message|prompt|input)"),
    Form("too_long", r"request (?:body|entity) too large|payload too large"),
    # Load, before the account: such messages advise to buy more.
    Form("overloaded", r"overloaded|over capacity|at capacity|high (?:demand|load|traffic)"),
    Form("overloaded", r"(?:server|model|service|system)\w* (?:is )?(?:currently |too )*busy"),
    Form("overloaded", r"no (?:available|healthy) (?:worker|deployment|upstream|backend|inst)"),
    Form("overloaded", r"no (?:worker|deployment|instance|provider)s? (?:are )?available"),
    Form("overloaded", r"temporarily unavailable|service (?:is )?(?:currently )?unavailable"),
    Form("overloaded", r"maximum pending requests|queue (?:is )?full|not enough capacity"),
    Form("rate_limit", r"exceeded your current quota[\s\S]*(?:retry|try again) in \d"),  # Gemini
    Form("rate_limit", r"rate[ _-]?limit|too many (?:requests|concurrent)|throttl|slow down"),
    Form("rate_limit", r"(?:requests|tokens|queries) ?(?:per|/) ?(?:min|sec|day|hour)"),
    Form("rate_limit", r"quota exceeded for|service tier capacity exceeded|concurrency limit"),
    Form("rate_limit", words=r"\b(?:request|rpm|tpm|hourly|minute|api call) limit|too quickly"),
    Form("rate_limit", words=r"maximum number of concurrent"),
    Form("rate_limit", r"out of call volume quota"),  # Azure
    Form("rate_limit", r"请求过于频繁|限流|速率限制|频率"),
    Form("credit", r"insufficient (?:account )?(?:balance|credit|funds|quota)|insufficient_quota"),
    Form("credit", r"credit (?:balance|limit)|(?:more|any|available|included|purchased) credits"),
    Form("credit", r"exceeded your current quota|out of (?:credit|quota)|no credits"),
    Form("credit", r"key (?:credit )?limit exceeded|(?:spend\w*|billing) limit"),
    Form("credit", r"budget has been exceeded|over budget|exceeded ?budget|payment required"),
    Form("credit", r"balance (?:is )?(?:insufficient|too low)|not enough balance"),
    Form("credit", r"\b(?:balance|quota|credits?) (?:is|are) not enough"),  # One API
    Form("credit", r"subscription (?!key)(?:\w+ ){0,2}expired"),
    Form("credit", r"额度(?:不足|已用尽)"),  # One API
    Form("credit", r"specified api usage limit|regain access on"),  # Anthropic
    Form("credit", r"overdue|in arrears|past invoices|good standing|余额不足|欠费|credit card"),
    Form("key", r"api[ _-]?key~(?:not valid|invalid|expired|incorrect|missing|revoked)"),
    Form("key", r"(?:invalid|incorrect|wrong|missing|expired|bad) (?:x-)?(?:\w+ )?api[ _-]?key"),
    Form("key", r"(?:no|invalid|missing|bad) (?:\w+ ){0,2}(?:credential|auth\b|auth\w* head)"),
    Form("key", r"(?:invalid|expired|missing) (?:access|auth\w*|bearer|api) token|无效的令牌"),
    Form("key", r"not authenticated|unauthenticated|unauthori[sz]ed|invalid subscription key"),
    Form("key", r"authentication (?:failed|fails|required|error)|could not authenticate"),
    Form("key", r"provide an api key|api key (?:is )?required|api key not found|user not found"),
    Form("key", r"location is not supported|region is not supported|unregistered callers"),
    Form("key", r"login fail|authorization failed"),  # MiniMax, NVIDIA
    Form("filtered", r"content management policy|content[ _-]?filter|responsible ?ai"),
    Form("filtered", r"\bflagged (?:as|by|for)|moderation|usage (?:polic|guideline)"),
    Form("filtered", r"safety (?:system|polic|filter|setting)|guardrail|content exists risk"),
    Form("filtered", r"inappropriate content|prohibited (?:use|content)|sensitive (?:word|cont)"),
    Form("filtered", r"violat\w+~polic|blocked by~(?:polic|filter|safety)"),
    # What is not supported, in words: the start of a probe.
    Form("unsupported", r"handle the requested parameters"),  # OpenRouter
    Form("unsupported", r"contain the word\W+json", feature="json_object"),  # OpenAI
    Form("unsupported", r"format.type\W+must be\W+json_sch", feature="json_object"),  # LM Studio
    Form("unsupported", r"invalid schema for function", feature="tools"),  # OpenAI
    Form("unsupported", r"schema conversion failed|unrecognized schema"),
    Form("unsupported", r"parse grammar|initialize samplers|required for format"),  # llama.cpp
    Form("unsupported", r"grammar (?:is )?too (?:large|complex)"),
    Form("unsupported", r"compiled grammar|(?:invalid|empty) grammar"),
    Form("unsupported", r"at 'tools\[\d+\][^'\n]*'\W+cannot find", feature="tools"),  # Gemini
    Form("unsupported", r"at '[\w.]*response_?schema[^'\n]*'"),  # Gemini
    Form("unsupported", r"schema~(?:too (?:many|complex|deep)|not support|nesting)"),
    Form("unsupported", r"sample logprobs of \d+", feature="top_logprobs"),  # vLLM
    Form("unsupported", _NO_SUCH + "~" + _NAME),
    Form("unsupported", _NAME + "~" + _REFUSAL),
    Form("unsupported", r"invalid (?:value for )?\W{0,2}" + _NAME),
    Form("unsupported", r"response_?schema\b"),  # Gemini
    Form("unsupported", r"\bgrammars?\b|\bschemas?\b", status=(400, 422, 500)),
    Form("unsupported", r"^(?P<name>seed|temperature|max_tokens|tools|logprobs)\b: "),
    Form("address", r"invalid url|unexpected endpoint|(?:unknown|no such) (?:url|path|route)"),
    Form("address", r"unknown request url|cannot post /|not found /|method not allowed|no route"),
    Form("address", r"(?:resource|path|route|url|file) not found", status=(404, 200)),
    Form("address", r"api[- ]version (?:is )?(?:not supported|required)"),  # Azure
    Form("address", r"(?:unsupported|missing)~api[- ]version"),  # Azure
    Form("model", r"not a valid model|invalid model|unknown model|no such model|no models? loaded"),
    Form("model", r"models?\b~\bnot (?:exist|found|available|supported|deployed|a chat)"),
    Form("model", r"models?\b~(?:unavailable|decommission|deprecat|no longer|retired)"),
    Form("model", r"not have access to (?:this |the )?model|access (?:to )?(?:this |the )?model"),
    Form("model", r"failed to load model|requires more system memory|no endpoints found"),
    Form("model", r"deployment~not (?:exist|found)|only supported in v1/responses"),
    Form("model", r"\bfunction \S+ not found for account"),  # NVIDIA
    Form("model", r"\bmodel (?:(?:\S+ )?(?:is|was|has been) )?(?:now |currently )?disabled"),
    Form("model", r"on-demand throughput (?:isn.t|is not) supported"),  # Bedrock
    Form("model", r"organization must be verified to use"),  # OpenAI
    Form("model", r"could not find real modelid|no router for requested model"),  # llama-swap
    Form("model", r"no allowed providers|not allowed to (?:access|call) model|模型不存在"),
    Form("model", r"\bmodels?\b", status=(404, 410)),
    # Whatever else is said of a field: a probe tells.
    Form("unsupported", _NAME, status=(400, 422)),
    # Codes that say little, and what passes.
    Form("rate_limit", code="429"),
    Form("credit", code="402"),
    Form("key", code="401"),
    Form("key", code="authentication_error authenticationerror auth_error unauthenticated"),
    Form("key", code="permission_denied permission_error unauthorized access_denied accessdenied"),
    Form("key", code="accessdeniedexception forbidden", status=(400, 401, 403, 200, 500)),
    Form("timeout", code="deadline_exceeded timeout timeout_error request_timeout cancelled"),
    Form("overloaded", code="unavailable service_unavailable serviceunavailable"),
    Form("overloaded", code="serviceunavailableexception service_unavailable_error"),
    Form("timeout", r"timed? ?out\b|timeout|deadline (?:exceeded|expired)"),
    Form("server", r"internal (?:server )?error|internal failure|bad gateway"),
    Form("server", r"has crashed|process has terminated|connection (?:error|reset|refused)"),
    Form("server", code="server_error servererror internal_error internal_server_error internal"),
    Form("server", code="internalservererror api_error upstream_error internalerror serviceerror"),
    # What passes, said with a status that does not.
    Form("server", r"out of memory|outofmemory|\b(?:cuda|nccl|cublas|hip|rocm) error",
         status=REFUSING),
    Form("server", r"\b(?:worker|engine|actor|replica|loop|runner)\w*(?: process| core)?"
         r"(?: has| is| was)? (?:died|dead|crashed|errored|killed|no longer running|encountered)",
         status=REFUSING),
    Form("server", r"upstream connect error|server disconnected|closed (?:the )?connection",
         status=REFUSING),
    Form("server", r"shutting down|had an error while processing|try again later",
         status=REFUSING),
)  # fmt: skip

# What a status means when nothing else is said. The others: 4xx bad_request, 5xx server.
KIND_OF_STATUS: dict[int, FaultKind] = {
    401: "key", 402: "credit", 403: "key", 404: "address", 405: "address", 408: "timeout",
    409: "server", 410: "address", 413: "too_long", 421: "server", 424: "server", 425: "server",
    429: "rate_limit", 498: "no_resources", 499: "timeout", 501: "bad_request", 503: "overloaded",
    504: "timeout", 522: "timeout", 524: "timeout", 529: "overloaded", 598: "timeout",
    599: "timeout",
}  # fmt: skip
# Statuses that leave nothing open.
PLAIN_STATUSES = (401, 402, 429, 498, 529)

# Counts of tokens in an endpoint's words, one line a form.
_N = r"\W{0,3}(?<!\d)(?P<%s>\d[\d,_]{0,11})"
_W, _P, _L = _N % "window", _N % "prompt_tokens", _N % "largest_answer"
COUNTS: tuple[str, ...] = (
    rf"maximum context (?:length|size|window)(?: of [a-z]\S*)?(?: is| of)?(?: only)?{_W}",  # OpenAI
    rf"{_P} (?:in the (?:messages|prompt)|of text input)",  # OpenAI, vLLM, OpenRouter
    rf"messages resulted in{_P} tokens",  # OpenAI
    rf"(?:prompt|request|input) (?:has|contains)(?: at least)?{_P} (?:input )?tokens",  # vLLM
    rf"you passed(?: at least)?{_P} input tokens",  # vLLM
    rf"{_P} tokens from the input",  # SGLang
    rf"context length (?:is|of)(?: only)?{_W}",  # vLLM, LM Studio
    rf"input \({_P} tokens\) is longer than the model's context length \({_W}",  # SGLang
    rf"request \({_P} tokens\) exceeds the available context size \({_W}",  # llama.cpp
    rf"requested tokens \({_P}\) exceed context window of{_W}",  # llama-cpp-python
    rf"n_keep:?{_P}\s*>=\s*n_ctx:?{_W}",  # LM Studio
    rf"keep the first{_P} tokens",  # LM Studio
    rf"input token count \(?{_P}\)? exceeds[^\d\n]*{_W}",  # Gemini
    rf"prompt is too long:{_P}(?: tokens)? >{_W}",  # Anthropic
    rf"prompt is too long:{_P}, model maximum context length:{_W}",  # Fireworks
    rf"exceed context limit:{_P} \+ [\d,]+ >{_W}",  # Anthropic
    rf"too large for model with{_W} maximum",  # Mistral
    rf"max_new_tokens\W* must be <={_W}\.? given:?{_P} \W?inputs",  # Together
    rf"must have less than{_W} tokens\.? given:?{_P}",  # text-generation-inference
    rf"current length is{_P} while limit is{_W}",  # Cerebras
    rf"maximum prompt length is{_W} but the request contains{_P}",  # xAI
    rf"model token limit:?{_W}(?: \(requested:?{_P})?",  # Moonshot
    rf"prompt tokens limit exceeded:?{_P} >{_W}",  # OpenRouter
    rf"range of input length should be \[\d+,{_W}",  # DashScope
    r"max_model_len\W*(?:=|is)\W*(?:\w+=)?(?P<largest_answer>(?P<window>\d+))",  # vLLM
    rf"prompt token count \({_P}\) cannot exceed{_W}",  # Databricks
    rf"prompt cannot exceed{_W} - received{_P}",  # Cohere
    rf"input tokens{_P} cannot exceed the total tokens limit{_W}",  # watsonx
    rf"prompt length \({_P}\) exceeds maximum input length \({_W}",  # TensorRT-LLM
    rf"max size:{_W} tokens",  # GitHub Models
    rf"range of \W?max_\w*tokens\W? (?:is|should be) \[\d+,{_L}",  # DeepSeek, DashScope
    rf"supports at most{_L} completion tokens",  # OpenAI
    rf"too (?:large|high)\W+(?:the )?max(?:imum)?(?: is)?{_L}",  # Novita, SiliconFlow
    rf"sequence length\W[^>\n]*?exceeds[^\d\n]*{_W}",
    rf"max_\w*tokens\W+\d+ >{_L}",  # Anthropic
    rf"expected a value <={_L}",  # OpenAI, Volcengine
    rf"max[_ ]\w*tokens\W+(?:\d+\W+)?must be (?:<=|less than or equal to){_L}",  # Groq, Cohere
    rf"should be less than or equal to{_L}",  # pydantic
    rf"exceeds the (?:model|maximum) limit of{_L}",  # Bedrock
    rf"max_\w*tokens (?:is limited to|cannot exceed|must not exceed){_L}",
    rf"限制为\[\d+,{_L}",  # Zhipu
)
# Gemini gives the end of the range, which itself is too much.
_BELOW = re.compile(r"supported range is from \d+ \(inclusive\) to (\d{1,12}) \(exclusive\)")
_PER_MINUTE = re.compile(
    r"request too large[\s\S]*\blimit (\d[\d,]{0,11}), requested (\d[\d,]{0,11})"
)
_COUNT_OF_KEY = {
    "n_ctx": "window", "max_model_len": "window", "context_length": "window", "max_context_length":
    "window", "n_prompt_tokens": "prompt_tokens", "prompt_tokens": "prompt_tokens",
}  # fmt: skip

# The fields that hold an endpoint's own words, or more fields. All others may hold a prompt, a
# generation or an input that was refused.
_WORD_KEYS = frozenset((
    "error", "errors", "message", "msg", "detail", "details", "description", "error_description",
    "error_message", "errormessage", "title", "raw", "cause", "innererror", "inner_error",
    "metadata", "provider_specific_fields", "fieldviolations", "promptfeedback", "violations",
    "previous_errors", "base_resp",
    "status_msg",
))  # fmt: skip
_CODE_KEYS = frozenset((
    "code", "type", "status", "reason", "error_code", "errorcode", "error_type", "errortype",
    "blockreason", "finish_reason", "native_finish_reason", "@type", "provider_error_code",
    "status_code", "statuscode",
))  # fmt: skip
_KEYS_THAT_TELL = frozenset((
    "failed_generation", "flagged_input", "blockreason", "estimated_time",
))  # fmt: skip
_WAIT_KEYS = {
    "retrydelay": 1.0, "retry_delay": 1.0, "retry_after": 1.0, "retryafter": 1.0,
    "retry_after_seconds": 1.0, "retry_after_ms": 0.001, "retryafterms": 0.001,
    "estimated_time": 1.0,
}  # fmt: skip

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_AMOUNT = (
    r"(\d{1,12}(?:\.\d{1,9})?)\s*(ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?"
    r"|d|days?|秒|分钟|小时)(?![a-z])"
)
_DURATION = re.compile(rf"{_AMOUNT}(?:[, ]{{0,3}}(?:and )?{_AMOUNT}){{0,4}}", re.IGNORECASE)
_WAIT = re.compile(
    r"(?:try(?:ing)?(?: \w+)? again|retry\w*|reset\w*|available|wait\w*|back off)\b[^.\d\n]{0,40}?"
    rf"(?P<wait>{_DURATION.pattern}|\b(?:an?|one) (?:minute|hour)\b)"
    r"|(?P<later>\d{1,9}\s*(?:秒|分钟|小时))\s*[之以]?后",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[+-]?\d{1,15}(?:\.\d{1,15})?")

_KEYS = re.compile(
    r"(?:\b(?:sk|key|gsk|pk|rk|hf|xai|nvapi|r8|tgp|csk|fw|pplx|glpat|ghp)[-_][\w*.-]{6,}"
    r"|\bAIza[\w-]{10,}|\bya29\.[\w.-]{10,}|\beyJ[\w-]{10,}\.[\w.-]+"
    r"|(?<=bearer )[^\s\"',;]{4,}"
    r"|(?:(?<=key: )|(?<=key=)|(?<=token=)|(?<=provided: ))(?=\S*[\d*])[^\s\"',;&]{6,}"
    r"|(?<=key )[0-9a-f]{16,}|\b[0-9a-f]{32,}\b)",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"\w+")
_ESCAPED_SPACE = re.compile(r"\\[nrt]")
# From here on a message shows what the model or the user wrote.
_SHOWS = re.compile(
    r"(?:(?:failed_generation|input_value|(?:model|generated|raw) (?:output|text|response))\s*[:=]"
    r"|\b(?:raw|received|but got|prompt|your (?:input|message)s?)\s*[:=]\s*[\"'`{\[])[\s\S]*",
    re.IGNORECASE,
)
_QUOTES = re.compile(
    r"```[\s\S]*?(?:```|\Z)|`[^`]*(?:`|\Z)|“[^”]*(?:”|\Z)|«[^»]*(?:»|\Z)"
    r"|(?<![\w\"'])\"(?=\S)[\s\S]*?(?:(?<!\\)\"(?!\w)|\Z)"
    r"|(?<![\w\"'])'(?=\S)[\s\S]*?(?:(?<!\\)'(?!\w)|\Z)"
)
_IDENTIFIER = re.compile(r"[`\"'“”«»\\]*[^\s`\"'“”«»]{1,200}[`\"'“”«»]*")
# Not where it is said to be the only type that is allowed.
_ONLY_OBJECT = re.compile(r"^(?!.*(?:should|must) be[^.]*json_object).*json_object", re.DOTALL)
_UNKNOWN_NAME = re.compile(r"Unknown name \W{1,3}([\w$]+)\W{1,3}(?: ?at '([^'\s]+)')?")
_PAGE = re.compile(r"\s*<(?:!doctype|html|head|body|\?xml|center|h1)", re.IGNORECASE)
_MARKUP = re.compile(r"<(script|style)\b[\s\S]*?(?:</\1>|\Z)|<!--[\s\S]*?(?:-->|\Z)", re.IGNORECASE)
_GAP = " … "
MAX_ERROR_LINE = 400
# Kinds that tell of no trouble of an endpoint.
_OF_A_REQUEST = ("bad_request", "unsupported", "address", "bad_generation")
# The fields of an object that says an error and nothing else.
_ENVELOPE = frozenset((
    "error", "code", "status", "type", "message", "detail", "request_id", "success", "object",
))  # fmt: skip
_ERROR_OPENED = re.compile(
    r"[\W_]*(?:(?:an? )?(?:api|upstream|internal|server|gateway|request|network|connection|provider"
    r"|http|model|llm|proxy|fatal)[\s_]*){0,2}(?:error|exception|failure|failed)\b(?=\W|\Z)",
    re.IGNORECASE,
)
_ERROR_WORDS = re.compile(
    r"went wrong|try again|\b(?:unexpected|unknown|internal|upstream) error"
    r"|\b(?:request|generation|completion|inference|call|stream)\w* (?:was |has )?(?:been )?"
    r"(?:failed|aborted|cancell?ed|interrupted|terminated|closed)"
    r"|\bfailed to (?:generate|fetch|connect|reach|get|call|process|complete)"
    r"|\bno (?:response|completion|answer)\b|\bempty response|\b(?:upstream|backend|provider)\b"
    r"|(?:error|code|status|http)\W{1,3}[45]\d\d\b|\A\W*error\W{1,3}[45]\d\d\b",
    re.IGNORECASE,
)
# What stands alone where nothing else could be said.
_GATEWAY_LINE = re.compile(
    r"\W{0,3}(?:(?:http )?(?:error )?[45]\d\d:? )?(?:upstream (?:request timeout|connect error\b.*)"
    r"|no healthy upstream|internal server error|bad gateway|gateway time-?out|stream timeout"
    r"|service (?:temporarily )?unavailable|too many requests|(?:request|upstream|response|read) "
    r"timed? ?out|error code: \d{3,4}|rate limit (?:exceeded|reached))\W{0,3}",
    re.IGNORECASE,
)


@dataclass(slots=True)
class _Evidence:
    """What a reply holds that tells of its fault."""

    status: int
    words: str = ""
    texts: list[str] = field(default_factory=list)
    codes: set[str] = field(default_factory=set)
    params: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    features: list[str] = field(default_factory=list)


def read_fault(
    status: int,
    headers: Mapping[str, str],
    body: bytes | str | object,
    *,
    sent: Sequence[str] = (),
) -> Fault:
    """The fault that a reply tells of, whether its status is an error's or 200.

    `body` is what came, decoded or not; `sent` are the texts of the request's messages, so that
    what the endpoint quotes of them is not taken for its own words. Never raises.

    >>> body = '{"error": {"message": "Slow down, try again in 20 ms", "code": "rate_limited"}}'
    >>> fault = read_fault(403, {}, body)
    >>> fault.kind, fault.certain, fault.wait
    ('rate_limit', True, 0.02)
    """
    headers = {str(name).lower(): str(value) for name, value in headers.items()}
    value, text = _decode(body)
    evidence = _Evidence(status)
    if text is None:
        _gather(value, evidence, sent)
        _take_headers(headers, evidence)
    elif not _PAGE.match(text):
        evidence.texts.append(text[:MAX_TEXT])
    evidence.words = "\n".join(_own_words(part, sent) for part in evidence.texts[:MAX_ITEMS])
    evidence.features = [_feature_of(param, evidence.words) for param in evidence.params]
    # A gateway passes an upstream's error on with a status of its own.
    if evidence.statuses and (status < 400 or status in (500, 502)):
        evidence.status = evidence.statuses[-1]
    fault = _judge(evidence, value, text, headers)
    message = _message(status, headers, evidence, value, text, fault.kind)
    return replace(
        _with_counts(fault, evidence),
        message=message,
        wait=_wait(fault, evidence, headers, value, sent),
    )


def read_wait(
    headers: Mapping[str, str], body_value: object, words: str, *, sent: Sequence[str] = ()
) -> float | None:
    """The seconds an endpoint asks to wait, or None.

    Read from `retry-after-ms`, `Retry-After` (a number or a date), the body's details, the words,
    and last the reset times of limits of which nothing is left.

    >>> read_wait({}, None, "Please try again in 6m23.5s.")
    383.5
    """
    headers = {str(name).lower(): str(value) for name, value in headers.items()}
    waits = (
        _wait_of_headers(headers),
        _wait_of_details(body_value, sent),
        _wait_of_words(words),
        _wait_of_resets(headers),
    )
    return next((round(max(wait, 0.0), 6) for wait in waits if wait is not None), None)


def redact_keys(text: str) -> str:
    """The text without what looks like a key: endpoints quote the one they were sent."""
    return _KEYS.sub("(key)", text)


def is_error_line(text: str) -> bool:
    """Whether a whole text is one line that says a fault, as gateways put it in place of an answer.

    It opens as an error does and goes on with the words of a known form, or it is a gateway's own
    line, or an object that holds an error.

    >>> is_error_line("Error: upstream timed out"), is_error_line("Error: division by zero")
    (True, False)
    """
    line = text.strip()
    if not line or "\n" in line or len(line) > MAX_ERROR_LINE:
        return False
    value, no_json = _decode(line)
    if no_json is None:
        is_error = isinstance(value, Mapping) and "error" in value and not value.keys() - _ENVELOPE
        return is_error and read_fault(400, {}, value).kind not in _OF_A_REQUEST
    if _GATEWAY_LINE.fullmatch(line):
        return True
    opened = _ERROR_OPENED.match(line)
    if opened is None:
        return False
    kind = read_fault(400, {}, {"error": line}).kind
    return kind not in _OF_A_REQUEST or _ERROR_WORDS.search(line, opened.end() - 1) is not None


# Gathering the evidence.


def _decode(body: object) -> tuple[Any, str | None]:
    """A body as its JSON value, or None with its text where it is no JSON."""
    if isinstance(body, bytes | bytearray | memoryview):
        body = bytes(body[:MAX_BODY]).decode("utf-8", "replace").removeprefix("\ufeff")
    if not isinstance(body, str):
        return body, None
    body = body[:MAX_BODY]
    texts = [body]
    if body.startswith(("data:", "event:", ":")):
        # An event stream that nobody asked for: its error is one event.
        events = (line for line in body.splitlines() if line.startswith("data:"))
        texts += [event.removeprefix("data:") for event in events if "error" in event]
    for text in texts:
        with suppress(ValueError, RecursionError):
            return json.loads(text), None
    return None, body


def _gather(value: object, evidence: _Evidence, sent: Sequence[str], depth: int = 0) -> None:
    """Collect codes, parameters, counts and words from an error's fields."""
    if depth > MAX_DEPTH:
        return
    if isinstance(value, str):
        _gather_text(value, evidence, sent, depth)
    elif isinstance(value, list | tuple):
        for item in value[:MAX_ITEMS]:
            _gather(item, evidence, sent, depth + 1)
    elif isinstance(value, Mapping):
        for key, item in list(value.items())[:MAX_ITEMS]:
            _gather_field(str(key).lower(), item, evidence, sent, depth)


def _gather_field(
    key: str, item: object, evidence: _Evidence, sent: Sequence[str], depth: int
) -> None:
    if key in _KEYS_THAT_TELL and item:
        evidence.codes.add(f"key:{key}")
    if key in _CODE_KEYS:
        _take_code(item, evidence)
    elif key in ("param", "loc", "field", "parameter"):
        _take_param(item, evidence, sent, depth)
    elif key == "ctx" and isinstance(item, Mapping):
        _take_count("largest_answer", item.get("le"), evidence)
    elif key in _COUNT_OF_KEY:
        _take_count(_COUNT_OF_KEY[key], item, evidence)
    elif key == "choices" and isinstance(item, list) and item and isinstance(item[0], Mapping):
        fields = ("error", "finish_reason", "native_finish_reason")
        _gather({name: item[0].get(name) for name in fields}, evidence, sent, depth + 1)
    elif key in _WORD_KEYS:
        _gather(item, evidence, sent, depth + 1)
        if key == "description" and isinstance(item, str):
            # Google's details name the field in a sentence of their own.
            for name, at in _UNKNOWN_NAME.findall(item[:MAX_WORDS]):
                evidence.params.append(at or name)


def _gather_text(text: str, evidence: _Evidence, sent: Sequence[str], depth: int) -> None:
    """Take an endpoint's message, or the error of another one that it wraps."""
    text = text[:MAX_TEXT].strip()
    if text.startswith('["') and depth < MAX_DEPTH:
        lines, end = _decode_at(text, 0)
        if isinstance(lines, list) and end == len(text):
            return _gather(
                [line for line in lines if isinstance(line, str)], evidence, sent, depth + 1
            )
    before, inner = _unwrap(text, sent)
    if inner is not None:
        text = before
        _gather(inner, evidence, sent, depth + 1)
    if text and text not in evidence.texts:
        evidence.texts.append(text)


def _unwrap(text: str, sent: Sequence[str]) -> tuple[str, Any]:
    """The words before the error that a message wraps as JSON, and that error or None.

    Gateways write `400 from provider: {"error": ..}`. JSON that stands in the request is never
    taken, nor what is said to be a model's output.
    """
    start = re.search(r"\{|\[\s*\{", text)
    if start is None:
        return text, None
    before = text[: start.start()]
    error_word = re.search(r"error|exception|\b[45]\d\d\b", before, re.IGNORECASE)
    output_word = re.search(
        r"pars|tool|generat|output|json|schema|input|prompt|conten", before, re.IGNORECASE
    )
    if len(before) > 200 or (before.strip() and not error_word) or output_word:
        return text, None
    inner, end = _decode_at(text, start.start())
    envelope = inner[0] if isinstance(inner, list) and inner else inner
    if not isinstance(envelope, Mapping) or not {"error", "detail", "message", "type", "msg"} & {
        str(key) for key in envelope
    }:
        return text, None
    fragment = text[start.start() : end]
    return (text, None) if _quotes(fragment, sent) else (before.strip(" b'\"-:\n"), inner)


def _decode_at(text: str, start: int) -> tuple[Any, int]:
    """The JSON value or Python literal at a place of a text, and where it ends."""
    with suppress(ValueError, RecursionError):
        return json.JSONDecoder(strict=False).raw_decode(text, start)
    end = max(text.rfind("}"), text.rfind("]")) + 1
    if not start < end <= start + MAX_WORDS:
        return None, start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.literal_eval(text[start:end]), end
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None, start


def _take_code(item: object, evidence: _Evidence) -> None:
    """Take a code, a type or a reason; a number of a status is one of those."""
    if isinstance(item, int):
        item = str(item) if abs(item) < 10**9 else ""
    if not isinstance(item, str):
        return
    code = re.sub(r"[\s-]+", "_", item[:200].strip().lower())
    code = code.removeprefix("type.googleapis.com/google.rpc.")
    if re.fullmatch(r"[1-5]\d\d", code):
        evidence.statuses.append(int(code))
        evidence.codes.add(code)
    elif re.fullmatch(r"[\w.]{2,80}", code) and code.count("_") < 6:
        evidence.codes |= {code, code.split(".")[0]}


def _take_headers(headers: Mapping[str, str], evidence: _Evidence) -> None:
    """Take what a header names: Bedrock's type of an error."""
    _take_code(headers.get("x-amzn-errortype", "").split(":")[0], evidence)


def _take_param(item: object, evidence: _Evidence, sent: Sequence[str], depth: int) -> None:
    """Take the name of a parameter, or a path to one. Some write their message there."""
    path = ".".join(map(str, item[:MAX_ITEMS])) if isinstance(item, list | tuple) else item
    if isinstance(path, str) and re.fullmatch(r"[\w.\[\]$-]{1,200}", path):
        path = path.removeprefix("body.")
        if path.lower() not in ("none", "null", "body"):
            evidence.params.append(path)
    elif isinstance(item, str):
        _gather_text(item, evidence, sent, depth)


def _take_count(name: str, item: object, evidence: _Evidence) -> None:
    if isinstance(item, int) and not isinstance(item, bool) and 0 < item < 10**9:
        evidence.counts.setdefault(name, item)


# Words without what they quote.


def _own_words(text: str, sent: Sequence[str]) -> str:
    """A message without what it quotes of a request or of a generation; names stay."""
    text = _without_sent(_ESCAPED_SPACE.sub(" ", text), sent)
    text = _SHOWS.sub(_GAP, text)
    text = _without_fragments(text)
    text = _QUOTES.sub(lambda m: m[0] if _IDENTIFIER.fullmatch(m[0]) else _GAP, text)
    return re.sub(r"[^\S\n]+", " ", text)[:MAX_WORDS]


def _without_sent(text: str, sent: Sequence[str]) -> str:
    """A text without the texts of the request, and without runs of words from them."""
    for part in (_ESCAPED_SPACE.sub(" ", part).strip() for part in sent):
        if _TOKEN.search(part):
            text = _GAP.join(_split_at(text, part))
    spans = list(_quoted_spans(text, sent))
    for start, end in reversed(spans):
        text = text[:start] + _GAP + text[end:]
    return text


def _split_at(text: str, part: str) -> Iterator[str]:
    """The pieces of a text around a part of it that begins and ends with whole words."""
    start = begin = 0
    while (at := text.find(part, begin)) >= 0:
        begin = at + 1
        end = at + len(part)
        inside = at > 0 and _joins(text[at - 1], part[0])
        if not inside and not (end < len(text) and _joins(part[-1], text[end])):
            yield text[start:at]
            start = begin = end
    yield text[start:]


def _joins(left: str, right: str) -> bool:
    return bool(_TOKEN.fullmatch(left + right))


def _quoted_spans(text: str, sent: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where a text repeats `QUOTED_RUN` or more words of the request, without overlaps."""
    tokens = list(_TOKEN.finditer(text)) if sent else []
    runs = _runs([token.group().casefold() for token in tokens])
    own = set(runs)
    repeats = {run for part in sent for run in _runs(_words_of(part)) if run in own}
    first, until = 0, -1
    for at, run in enumerate(runs):
        if run in repeats:
            if at > until >= 0:
                yield tokens[first].start(), tokens[until].end()
            first = first if until >= at else at
            until = at + QUOTED_RUN - 1
    if until >= 0:
        yield tokens[first].start(), tokens[until].end()


def _runs(words: list[str]) -> list[tuple[str, ...]]:
    return list(zip(*(words[at:] for at in range(QUOTED_RUN)), strict=False))


def _words_of(text: str) -> list[str]:
    return [word.casefold() for word in _TOKEN.findall(_ESCAPED_SPACE.sub(" ", text))]


def _quotes(text: str, sent: Sequence[str]) -> bool:
    """Whether a text holds, or is held by, something of the request."""
    text = _ESCAPED_SPACE.sub(" ", text)
    parts = [_ESCAPED_SPACE.sub(" ", part).strip() for part in sent if _TOKEN.search(part)]
    whole = any(len(list(_split_at(text, part))) > 1 for part in parts)
    return whole or next(_quoted_spans(text, sent), None) is not None


def _without_fragments(text: str) -> str:
    """A text without what stands in braces or brackets, if that is more than a few words."""
    pieces, depth, start = [], 0, 0
    for mark in re.finditer(r"[{}\[\]]", text):
        opens = mark.group() in "{["
        if opens and depth == 0:
            pieces.append(text[start : mark.start()])
            start = mark.start()
        depth = depth + 1 if opens else max(depth - 1, 0)
        if not opens and depth == 0:
            pieces.append(text[start : mark.end()])
            start = mark.end()
    pieces.append(text[start:])
    return "".join(
        _GAP if piece[:1] in ("{", "[") and len(_TOKEN.findall(piece)) > MAX_WORDS_IN_BRACKETS
        else piece
        for piece in pieces
    )  # fmt: skip


# Judging.


@cache
def _pattern(words: str) -> re.Pattern[str]:
    return re.compile(words.replace("~", _NEAR), re.IGNORECASE | re.MULTILINE)


def _judge(evidence: _Evidence, value: Any, text: str | None, headers: Mapping[str, str]) -> Fault:
    """The fault of the first form that fits, or what the status or the lack of JSON means."""
    page = text is not None and bool(
        _PAGE.match(text) or "text/html" in headers.get("content-type", "")
    )
    if page and evidence.status < 500 and evidence.status not in (401, 408, 413, 429):
        return Fault("address", "", certain=True)
    for form in FORMS:
        fault = _fit(form, evidence)
        if fault is not None:
            return fault
    return _by_status(evidence, value, text)


def _fit(form: Form, evidence: _Evidence) -> Fault | None:
    """The fault of a form, or None where it does not fit."""
    if form.status and evidence.status not in form.status:
        return None
    if form.code and evidence.codes.isdisjoint(form.code.split()):
        return None
    if form.param and not _names(form.param, evidence):
        return None
    match = _pattern(form.words).search(evidence.words) if form.words else None
    if form.words and match is None:
        return None
    plain = evidence.status in PLAIN_STATUSES and KIND_OF_STATUS[evidence.status] == form.kind
    certain = bool(form.param) or not form.words or plain
    if form.kind != "unsupported":
        return Fault(form.kind, "", form.feature, certain)
    return _unsupported(form, evidence, match)


def _names(param: str, evidence: _Evidence) -> bool:
    """Whether one of the parameters that an error names is the form's."""
    if param == "*":
        return any(feature in FEATURE_OF_NAME.values() for feature in evidence.features)
    return any(re.split(r"[.\[]", name.lower())[-1] in param.split() for name in evidence.params)


def _unsupported(form: Form, evidence: _Evidence, match: re.Match[str] | None) -> Fault | None:
    """What is not supported, by its parameter if one is named, else by words."""
    optional = [feature for feature in evidence.features if feature in FEATURE_OF_NAME.values()]
    if form.words:
        if not form.feature and evidence.features and set(evidence.features) <= set(NEEDED):
            return None
        name = match.groupdict().get("name") if match else None
        feature = form.feature or (_feature_of(name, evidence.words) if name else "json_schema")
        return Fault("unsupported", "", feature)
    feature = form.feature or next(iter(optional or evidence.features), "")
    if feature:
        kind: FaultKind = "bad_request" if feature in NEEDED else "unsupported"
        return Fault(kind, "", None if feature in NEEDED else feature, certain=True)
    match = re.search(_NAME, evidence.words, re.IGNORECASE)
    # The code says that something is not supported; only the words say what.
    return Fault("unsupported", "", _feature_of(match["name"], evidence.words)) if match else None


def _feature_of(name: str, words: str) -> str:
    """The feature that a parameter, or a path to one, belongs to; else its own name."""
    path = [part for part in re.split(r"[.\[\]]+", name) if part]
    plain = [re.sub(r"[\s-]", "_", part.lower()) for part in path]
    if plain and plain[-1] == "strict":
        return "strict"
    feature = next((FEATURE_OF_NAME[part] for part in plain if part in FEATURE_OF_NAME), None)
    if feature == "json_schema" and _ONLY_OBJECT.search(words) and "json_schema" not in words:
        return "json_object"
    return feature or (path[0] if path else name)


def _by_status(evidence: _Evidence, value: Any, text: str | None) -> Fault:
    """What a reply means by its status alone."""
    status = evidence.status
    if 300 <= status < 400:
        return Fault("address", "", certain=True)
    if status < 300:
        return Fault(_kind_of_success(value, text), "")
    kind: FaultKind = "bad_request" if status < 500 else "server"
    kind = KIND_OF_STATUS.get(status, kind)
    if kind in ("key", "bad_request") and _wait_of_words(evidence.words) is not None:
        # Whoever is refused for good is not asked to come back.
        kind = "rate_limit"
    no_api = status in (404, 405) and text is not None
    return Fault(kind, "", certain=no_api or status in PLAIN_STATUSES)


def _kind_of_success(value: Any, text: str | None) -> FaultKind:
    """What a reply with status 200 is that holds no completion and no known error."""
    if text is not None:
        cut = not text.strip() or text.lstrip()[:1] in ("{", "[") or text.startswith(("data:", ":"))
        return "server" if cut else "address"
    if not value or not isinstance(value, Mapping):
        return "server"
    usual = {"choices", "object", "error", "errors", "detail", "message", "code"}
    return "server" if usual & {str(key).lower() for key in value} else "address"


def _with_counts(fault: Fault, evidence: _Evidence) -> Fault:
    """The fault with the counts of tokens that it tells."""
    words = evidence.words.lower()
    if fault.kind == "rate_limit":
        match = _PER_MINUTE.search(words)
        limit, request = (_count(n) for n in match.groups()) if match else (0, 0)
        return replace(fault, window=limit) if request > limit > 0 else fault
    if fault.kind not in ("too_long", "answer_too_large"):
        return fault
    counts: dict[str, int] = {}
    for words_form in COUNTS:
        match = _pattern(words_form).search(words)
        for name, number in match.groupdict().items() if match else ():
            if number:
                counts.setdefault(name, _count(number))
    counts |= evidence.counts
    below = _BELOW.search(words)
    if below:
        counts["largest_answer"] = int(below[1]) - 1
    if fault.kind == "too_long":
        counts.pop("largest_answer", None)
    return replace(
        fault,
        window=counts.get("window"),
        prompt_tokens=counts.get("prompt_tokens"),
        largest_answer=counts.get("largest_answer"),
    )


def _count(number: str) -> int:
    return int(re.sub(r"\D", "", number) or 0)


# The line that is said.


def _message(
    status: int,
    headers: Mapping[str, str],
    evidence: _Evidence,
    value: Any,
    text: str | None,
    kind: FaultKind,
) -> str:
    """One line: the status, and the endpoint's words or what came in their place."""
    if 300 <= status < 400 and "location" in headers:
        reason = f"it redirects to {headers['location']}"
    elif text is not None:
        reason = _what_came(text, headers)
    else:
        reason = "; ".join(evidence.texts) or f"no error was said: {_as_text(value)}"
    inner = f" ({evidence.status} inside)" if evidence.status != status else ""
    tail = "; is --base-url the API's address?" if kind == "address" and text is not None else ""
    line = redact_keys(" ".join(f"status {status}{inner}: {reason}"[:20_000].split()))
    line = line.encode("utf-8", "replace").decode("utf-8")
    line = "".join(character for character in line if character.isprintable())
    room = MAX_MESSAGE - len(tail)
    return (line if len(line) <= room else line[: room - 1] + "…") + tail


def _what_came(text: str, headers: Mapping[str, str]) -> str:
    """What came in place of JSON: its content type and its first words."""
    content_type = headers.get("content-type", "").split(";")[0].strip()[:60]
    if not text.strip():
        return "an empty body came"
    if _PAGE.match(text):
        text = html.unescape(re.sub(r"<[^<>]*>", " ", _MARKUP.sub(" ", text[:20_000])))
        kind = f"a web page ({content_type or 'HTML'}), not JSON"
    else:
        kind = f"no JSON ({content_type or 'no content type'})"
    return f"what came is {kind}: {' '.join(text[:20_000].split())[:150]!r}"


def _as_text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)[:MAX_MESSAGE]
    except (ValueError, TypeError, RecursionError):
        return type(value).__name__


# Waits.


def _wait(
    fault: Fault,
    evidence: _Evidence,
    headers: Mapping[str, str],
    value: object,
    sent: Sequence[str],
) -> float | None:
    if fault.kind not in PASSING:
        return None
    if fault.kind != "rate_limit":
        # Every reply has these; only a limit that was hit makes them a wait.
        headers = {name: text for name, text in headers.items() if "ratelimit" not in name}
    return read_wait(headers, value, evidence.words, sent=sent)


def _wait_of_headers(headers: Mapping[str, str]) -> float | None:
    for name, unit in (
        ("retry-after-ms", 0.001),
        ("x-ms-retry-after-ms", 0.001),
        ("retry-after", 1),
    ):
        text = headers.get(name, "").strip()
        if _NUMBER.fullmatch(text):
            return float(text) * unit
        if name == "retry-after" and text:
            wait = _wait_of_words_alone(text)
            return _until(text) if wait is None else wait
    return None


def _until(text: str) -> float | None:
    """The seconds until a date, as headers and JSON write it."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        try:
            date = datetime.fromisoformat(text)
        except ValueError:
            return None
    try:
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(date.timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError, OSError):
        return None


def _wait_of_details(value: object, sent: Sequence[str], depth: int = 0) -> float | None:
    """A wait in the fields of an error: Google's retryDelay, Hugging Face's estimated_time, .."""
    if depth > MAX_DEPTH:
        return None
    if isinstance(value, list | tuple):
        waits = (_wait_of_details(item, sent, depth + 1) for item in value[:MAX_ITEMS])
    elif isinstance(value, Mapping):
        items = list(value.items())[:MAX_ITEMS]
        waits = (_wait_of_field(str(key).lower(), item, sent, depth) for key, item in items)
    else:
        return None
    return next((wait for wait in waits if wait is not None), None)


def _wait_of_field(key: str, item: object, sent: Sequence[str], depth: int) -> float | None:
    if key in _WAIT_KEYS:
        return _seconds(item, _WAIT_KEYS[key])
    if key == "headers" and isinstance(item, Mapping):
        headers = {str(name).lower(): str(text) for name, text in item.items()}
        wait = _wait_of_headers(headers)
        return _wait_of_resets(headers) if wait is None else wait
    if key in _WORD_KEYS and isinstance(item, str):
        inner = _unwrap(item[:MAX_TEXT].strip(), sent)[1]
        return None if inner is None else _wait_of_details(inner, sent, depth + 1)
    return (
        _wait_of_details(item, sent, depth + 1) if key in _WORD_KEYS or key == "choices" else None
    )


def _seconds(item: object, unit: float) -> float | None:
    """A wait as a number, as text with a unit, or as an object with `seconds`."""
    if isinstance(item, Mapping):
        item = item.get("seconds")
    if isinstance(item, str) and _NUMBER.fullmatch(item.strip()):
        item = float(item)
    if isinstance(item, int | float) and not isinstance(item, bool):
        wait = float(item) if abs(item) < 10**12 else math.inf
        return wait * unit if math.isfinite(wait) else None
    return _wait_of_words_alone(item.strip()) if isinstance(item, str) else None


def _wait_of_words(words: str) -> float | None:
    match = _WAIT.search(words[:MAX_WORDS])
    return None if match is None else _wait_of_words_alone(match["wait"] or match["later"])


def _wait_of_words_alone(text: str) -> float | None:
    """A duration as words: `6m23.5s`, `20ms`, `2 minutes and 3 seconds`, `a minute`."""
    single = re.fullmatch(r"(?:an?|one) (minute|hour)", text.lower())
    if single:
        return _SECONDS[single[1][0]]
    if not _DURATION.fullmatch(text):
        return None
    total = 0.0
    for number, unit in re.findall(_AMOUNT, text.lower()):
        chinese = {"秒": "s", "分钟": "m", "小时": "h"}
        name = chinese.get(unit) or ("ms" if unit == "ms" or unit.startswith("mil") else unit[0])
        total += float(number) * _SECONDS[name]
    return total


def _wait_of_resets(headers: Mapping[str, str]) -> float | None:
    """The wait until the limits of which nothing is left are new."""
    waits = []
    for name, text in headers.items():
        if "ratelimit" not in name or "reset" not in name:
            continue
        remaining = headers.get(name.replace("reset", "remaining"))
        plain = name.endswith("reset") and remaining is None
        if plain or (remaining is not None and remaining.strip() in ("0", "0.0")):
            waits.append(_reset(text.strip()))
    return max((wait for wait in waits if wait is not None), default=None)


def _reset(text: str) -> float | None:
    """A reset as seconds, a duration, a date, or a time since 1970 in seconds or milliseconds."""
    if not _NUMBER.fullmatch(text):
        wait = _wait_of_words_alone(text)
        return _until(text) if wait is None else wait
    number = float(text)
    for since, unit in ((10**11, 0.001), (10**9, 1.0)):
        if number > since:
            return max(number * unit - time.time(), 0.0)
    return number
