"""Providers of models, and the names by which LangChain knows them, such as `anthropic:claude-..`.

A name is a provider's if what stands before its first colon is one that LangChain's
`init_chat_model` knows. Every other colon belongs to the endpoint's own name of a model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec

# The providers that clients of the graph may name, by commas.
LISTED_VARIABLE = "REFLOOM_PROVIDERS"
_USER_INFO = re.compile(r"//[^/@]*@")


@dataclass(frozen=True, slots=True)
class Provider:
    """What is known of a provider: its package, and the variables that hold keys and address.

    `one_try` is the value of `max_retries` with which its client makes a request once.
    """

    package: str
    keys: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    one_try: int = 0

    @property
    def module(self) -> str:
        """The module of its package."""
        return self.package.replace("-", "_")


_GOOGLE_KEYS = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
_AWS_KEYS = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_BEARER_TOKEN_BEDROCK",
)  # fmt: skip
_BEDROCK = Provider(
    "langchain-aws", _AWS_KEYS, ("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "AWS_ENDPOINT_URL")
)
_VERTEX = Provider("langchain-google-vertexai", one_try=1)

# The prefixes of `init_chat_model`, but `openai`: that is what endpoints are.
PROVIDERS: dict[str, Provider] = {
    "anthropic": Provider(
        "langchain-anthropic",
        ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
        ("ANTHROPIC_API_URL", "ANTHROPIC_BASE_URL"),
    ),
    "anthropic_bedrock": _BEDROCK,
    "azure_ai": Provider(
        "langchain-azure-ai",
        ("AZURE_AI_API_KEY", "AZURE_AI_CREDENTIAL", "AZURE_OPENAI_API_KEY"),
        ("AZURE_AI_OPENAI_ENDPOINT", "AZURE_AI_INFERENCE_ENDPOINT", "AZURE_AI_PROJECT_ENDPOINT"),
    ),
    "azure_openai": Provider(
        "langchain-openai",
        ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN"),
        ("AZURE_OPENAI_ENDPOINT",),
    ),
    "baseten": Provider("langchain-baseten", ("BASETEN_API_KEY",), ("BASETEN_API_BASE",)),
    "bedrock": _BEDROCK,
    "bedrock_converse": _BEDROCK,
    "bedrock_mantle_anthropic": _BEDROCK,
    "bedrock_mantle_openai": _BEDROCK,
    "cohere": Provider("langchain-cohere", ("COHERE_API_KEY",), ("CO_API_URL",)),
    "deepseek": Provider("langchain-deepseek", ("DEEPSEEK_API_KEY",), ("DEEPSEEK_API_BASE",)),
    "fireworks": Provider("langchain-fireworks", ("FIREWORKS_API_KEY",), ("FIREWORKS_API_BASE",)),
    "google_anthropic_vertex": _VERTEX,
    # Here 0 means as many as the client itself would make.
    "google_genai": Provider(
        "langchain-google-genai", _GOOGLE_KEYS, ("GOOGLE_GEMINI_BASE_URL",), one_try=1
    ),
    "google_vertexai": _VERTEX,
    "groq": Provider("langchain-groq", ("GROQ_API_KEY",), ("GROQ_API_BASE", "GROQ_BASE_URL")),
    "huggingface": Provider("langchain-huggingface", ("HUGGINGFACEHUB_API_TOKEN", "HF_TOKEN")),
    "ibm": Provider("langchain-ibm", ("WATSONX_APIKEY", "WATSONX_API_KEY"), ("WATSONX_URL",)),
    "langsmith": Provider("langchain-openai", ("LANGSMITH_GATEWAY_API_KEY", "LANGSMITH_API_KEY")),
    "litellm": Provider("langchain-litellm"),
    "meta": Provider("langchain-meta", ("META_API_KEY", "LLAMA_API_KEY")),
    "mistralai": Provider("langchain-mistralai", ("MISTRAL_API_KEY",), ("MISTRAL_BASE_URL",)),
    "nvidia": Provider("langchain-nvidia-ai-endpoints", ("NVIDIA_API_KEY",), ("NVIDIA_BASE_URL",)),
    "ollama": Provider("langchain-ollama", ("OLLAMA_API_KEY",), ("OLLAMA_HOST",)),
    "openrouter": Provider("langchain-openrouter", ("OPENROUTER_API_KEY",)),
    "perplexity": Provider("langchain-perplexity", ("PPLX_API_KEY", "PERPLEXITY_API_KEY")),
    "together": Provider("langchain-together", ("TOGETHER_API_KEY",), ("TOGETHER_API_BASE",)),
    "upstage": Provider("langchain-upstage", ("UPSTAGE_API_KEY",)),
    "xai": Provider("langchain-xai", ("XAI_API_KEY",)),
}


def provider_of(model: str) -> str | None:
    """The provider that a name begins with; None if the name is an endpoint's own.

    >>> provider_of("anthropic:claude-x"), provider_of("qwen2.5:7b"), provider_of("openai:gpt-x")
    ('anthropic', None, None)
    """
    prefix, _, name = model.partition(":")
    return prefix if name and prefix in PROVIDERS else None


def address_of(model: str) -> str | None:
    """What stands for the address in the key of a provider's call; None for an endpoint's model.

    It is the provider, with the address that a variable of its own names, without a password.

    >>> address_of("groq:llama")
    'groq'
    """
    provider = provider_of(model)
    if provider is None:
        return None
    set_here = filter(None, map(os.environ.get, PROVIDERS[provider].addresses))
    return _USER_INFO.sub("//", " ".join([provider, *set_here][:2]))


def find_missing(model: str) -> str | None:
    """The line that says which package a provider's model needs, if it is not installed. Blocks."""
    provider = provider_of(model)
    if provider is None:
        return None
    package = PROVIDERS[provider].package
    missing = [p for p in (package, "langchain") if find_spec(p.replace("-", "_")) is None]
    if not missing:
        return None
    # The extra has three providers; the others' packages have names of their own.
    extra = package in ("langchain-anthropic", "langchain-google-genai", "langchain-aws")
    wanted = "'refloom[providers]'" if extra else " ".join(missing)
    return (
        f"model {model!r} needs the package {' and '.join(missing)}: pip install {wanted} (a model "
        "of an endpoint must not have a name that begins with a provider's)"
    )


def variables_of(models: Iterable[str]) -> list[str]:
    """The environment variables with keys and addresses of the models' providers."""
    providers = [PROVIDERS[p] for m in models if (p := provider_of(m)) is not None]
    return list(dict.fromkeys(name for p in providers for name in (*p.keys, *p.addresses)))


def keys_of(models: Iterable[str]) -> list[str]:
    """The keys of the models' providers that the environment holds, so that logs redact them."""
    providers = [PROVIDERS[p] for m in models if (p := provider_of(m)) is not None]
    return [key for p in providers for name in p.keys if (key := os.environ.get(name))]


def find_unlisted(model: str | None) -> str | None:
    """Why clients may not name a model: its provider is not in `REFLOOM_PROVIDERS`. Else None."""
    provider = provider_of(model or "")
    listed = os.environ.get(LISTED_VARIABLE, "").split(",")
    if provider is None or provider in (name.strip() for name in listed):
        return None
    return (
        f"{model!r} is a model of the provider {provider!r}, which this server does not use: "
        f"{LISTED_VARIABLE} must list it"
    )
