"""What a run is estimated to take, against what a scripted run of it does take."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from fakes import ScriptedModel, answer, letters, prompt_of, tagged, verdicts, words
from runs import references

from nodes.llm import Call
from nodes.llm.protocol import schema_of
from refloom.data.read import ReadReport, Source
from refloom.runs.cost import Price, Prices
from refloom.runs.estimate import (
    CASES,
    SAMPLE,
    STAGES,
    TOKENS,
    WHY,
    Assumptions,
    byte_length,
    estimate,
    format_estimate,
    spread_sample,
)
from refloom.runs.run import Run, Tools
from refloom.settings import Settings

PRICES = Prices(
    {"m": Price(1.0, 2.0, 0.5), "judge": Price(10.0, 20.0), "third": Price(1.0, 2.0)},
)
# What the scripted model answers with: two characteristics, the same for every reference.
SCRIPTED = Assumptions(characteristics=2)


def seeds(n: int) -> list[str]:
    return [words(f"seed {i}", 8) for i in range(n)]


def settings_of(**given: Any) -> Settings:
    return Settings(**{"model": "m", "try_criteria": False, **given})


def report(taken: int) -> ReadReport:
    return ReadReport(taken=taken)


async def estimated(
    n_references: int = 3,
    n_seeds: int = 3,
    *,
    prices: Prices = PRICES,
    assume: Assumptions = SCRIPTED,
    **given: Any,
) -> dict[str, Any]:
    return await estimate(
        settings_of(**given),
        report(n_references),
        report(n_seeds),
        references(n_references),
        prices,
        seed_texts=seeds(n_seeds),
        assume=assume,
    )


def calls(way: dict[str, Any]) -> dict[str, int]:
    return {k: v["calls"] for k, v in way["by_stage"].items() if v["calls"]}


async def ran(
    out: Path, model: ScriptedModel, n_references: int, n_seeds: int | None, **given: Any
) -> dict[str, Any]:
    """What run.json says of a run with the same settings and data."""
    session = Run(
        settings_of(**given),
        Source(references(n_references), as_reference=True),
        None if n_seeds is None else Source(seeds(n_seeds), as_reference=False),
        out,
        tools=Tools(complete=model, embed=letters),
    )
    await session.run()
    said: dict[str, Any] = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return said


def of_both(call: Call) -> dict[str, Any]:
    """An extraction that brings two characteristics of the instruction, too."""
    prompt = prompt_of(call)
    quote = " ".join(tagged(prompt, "instruction")[-1].split()[:4])
    texts = ("states the situation it is for", "asks for one thing that can be checked")
    found = [{"text": text, "quote": quote, "must": True} for text in texts]
    return answer("extract", prompt, call.seed) | {"instruction_characteristics": found}


def scripted(**stages: Any) -> ScriptedModel:
    return ScriptedModel(**{"extract": of_both, **stages})


def to_the_point(call: Call) -> dict[str, Any]:
    """A response so near to its instruction that the rule on its topic passes."""
    return {"response": tagged(prompt_of(call), "instruction")[-1] + " It is so."}


def own_only(call: Call) -> float:
    """The odds of a judge that tells the references' own texts from the spoiled ones."""
    instruction = tagged(prompt_of(call), "instruction")[-1]
    if call.stage == "screen":
        return 3.0 if instruction.endswith("?") else -2.0
    response = tagged(prompt_of(call), "response")[-1]
    own = {r["instruction"]: r["response"] for r in references()}
    return 3.0 if own.get(instruction, response) == response else -2.0


RUNS = [
    {},
    {"per_seed": 3},
    {"answer_seeds": True},
    {"feedback": "none"},
    {"feedback": "generic"},
    {"try_criteria": True},
    {"try_criteria": True, "per_seed": 3, "references_per_seed": 2},
    {"try_criteria": True, "feedback": "generic"},
    {"try_criteria": True, "feedback": "none"},
    {"feedback": "sample"},
    {"feedback": "sample", "paired": True},
    {"feedback": "none", "paired": True, "try_criteria": True},
    {"feedback": "swapped", "try_criteria": True},
    {"max_criteria": 0},
    {"screen": False, "try_criteria": True},
    {"judge_model": "m,judge,third", "try_criteria": True},
    {"max_attempts": 1, "answer_seeds": True},
]


@pytest.mark.parametrize("given", RUNS, ids=str)
async def test_when_all_drafts_pass_the_calls_are_those_of_a_run(tmp_path, given):
    said = await ran(tmp_path, scripted(), 3, 3, **given)
    low = (await estimated(**given))["low"]
    assert calls(low) == said["calls"]["by_stage"]
    assert low["total"]["calls"] == said["calls"]["paid"]
    assert low["candidates"] == said["counts"]["candidates"]
    assert low["accepted"] == said["counts"]["accepted"]


async def test_a_response_costs_its_own_length_and_no_schema():
    by_stage = (await estimated())["low"]["by_stage"]["generate"]
    length = byte_length(references(1)[0]["response"])
    assert by_stage["completion_tokens"] == pytest.approx(by_stage["calls"] * length / 4, rel=0.1)


OWN = [
    {},
    {"try_criteria": True, "per_seed": 2},
    {"pipeline": "refed"},
    {"pipeline": "refed", "per_seed": 4, "novelty_threshold": 1.0},
]


@pytest.mark.parametrize("given", OWN, ids=str)
async def test_references_that_are_their_own_seeds_are_each_used_once(tmp_path, given):
    given = {"references_per_seed": 1, **given}
    said = await ran(tmp_path, scripted(), 4, None, **given)
    found = await estimate(
        settings_of(**given), report(4), report(4), references(4), PRICES, assume=SCRIPTED
    )
    assert calls(found["low"]) == said["calls"]["by_stage"]


@pytest.mark.parametrize("tried", [False, True])
async def test_by_log_odds_every_criterion_is_a_call(tmp_path, tried):
    given = {"judge_method": "logodds", "references_per_seed": 1, "try_criteria": tried}
    model = scripted(odds=own_only, generate=to_the_point)
    said = await ran(tmp_path, model, 3, None, **given)
    found = await estimate(
        settings_of(**given), report(3), report(3), references(), PRICES, assume=SCRIPTED
    )
    assert calls(found["low"])["critique"] == (3 * 4 * 3 if tried else 0) + 3 * 3
    # The bar of two questions: the instruction and its beginning; without a bar nothing is asked.
    assert calls(found["low"]).get("screen", 0) == (3 * 2 * 2 + 3 * 2 if tried else 0)
    assert calls(found["low"]) == said["calls"]["by_stage"]


async def test_bare_answers_are_counted_as_they_are_made(tmp_path):
    said = await ran(tmp_path, scripted(), 3, 3, reasoning=True)
    low = (await estimated(reasoning=True))["low"]
    assert calls(low) == said["calls"]["by_stage"]
    assert calls(low)["answer"] == low["candidates"] == 3
    without = calls((await estimated())["low"])
    assert calls(low)["critique"] == without["critique"] + 3
    assert "answer" not in without


async def test_when_no_bare_answer_passes_their_calls_are_those_of_high(tmp_path):
    def first_ones(call: Call) -> dict[str, Any]:
        bare = tagged(prompt_of(call), "response")[-1].startswith("Bare")
        return verdicts(prompt_of(call), "fail" if bare else "pass")

    def bare(call: Call) -> dict[str, Any]:
        return {"response": f"Bare one {call.seed}.", "thoughts": "So it is."}

    model = scripted(critique=first_ones, answer=bare)
    said = await ran(tmp_path, model, 3, 3, reasoning=True)
    high = (await estimated(reasoning=True))["high"]
    assert calls(high)["answer"] == said["calls"]["by_stage"]["answer"] == 9


async def test_when_no_draft_passes_the_calls_are_those_of_high(tmp_path):
    def never(call: Call) -> dict[str, Any]:
        return verdicts(prompt_of(call), "fail")

    said = await ran(tmp_path, scripted(critique=never), 3, 3, max_attempts=3)
    assert calls((await estimated(max_attempts=3))["high"]) == said["calls"]["by_stage"]


async def test_a_target_takes_at_least_low_and_proposes_for_no_more_than_high(tmp_path):
    said = await ran(tmp_path, scripted(), 3, 8, target=5, answer_seeds=True)
    found = await estimated(3, 8, target=5, answer_seeds=True)
    by_stage = said["calls"]["by_stage"]
    assert by_stage["generate"] == found["low"]["candidates"] == 5
    (tmp_path / "x").mkdir()
    said = await ran(tmp_path / "x", scripted(), 3, 8, target=20, concurrency=2)
    found = await estimated(3, 8, target=20, concurrency=2)
    low, high = calls(found["low"]), calls(found["high"])
    assert low["generate"] == said["calls"]["by_stage"]["generate"] == 20
    assert low["propose"] <= said["calls"]["by_stage"]["propose"] <= high["propose"]


async def test_low_is_at_most_expected_and_expected_at_most_high():
    bare = [{"reasoning": True}, {"reasoning": True, "max_attempts": 1}]
    for given in [*RUNS, *bare, {"target": 50}, {"max_candidates": 2}, {"max_attempts": 10}]:
        found = await estimated(**given)
        for key in (*TOKENS, "cost_usd"):
            low, expected, high = (found[way]["total"][key] for way in CASES)
            assert low <= expected <= high, (given, key)
            assert low > 0


async def test_a_target_asks_for_as_many_candidates_as_the_share_accepted_needs():
    found = await estimated(target=70, max_attempts=2)
    assert found["assumptions"]["accepted_share"]["value"] == 0.75
    assert found["expected"]["candidates"] == 94
    assert found["expected"]["accepted"] == 70
    assert found["low"]["candidates"] == 70


async def test_no_more_candidates_are_counted_than_the_run_makes():
    never = Assumptions(attempts_passing=0.0)
    assert (await estimated(target=7, assume=never))["expected"]["candidates"] == 70
    assert (await estimated(max_candidates=2))["expected"]["candidates"] == 2
    assert (await estimated(target=50, answer_seeds=True))["low"]["candidates"] == 3


async def test_one_call_at_a_time_proposes_for_no_seed_ahead():
    found = await estimated(target=3, concurrency=1, assume=Assumptions(attempts_passing=1.0))
    assert calls(found["expected"])["propose"] == 3


async def test_only_references_that_seeds_can_reach_are_paid_for():
    found = await estimated(40, 3, references_per_seed=2)
    assert calls(found["expected"])["extract"] == 6
    assert found["assumptions"]["references_used"]["value"] == 6


async def test_dollars_are_tokens_at_the_price_of_the_stages_model():
    found = (await estimated(judge_model="judge"))["expected"]
    for stage, part in found["by_stage"].items():
        inward, outward = (10, 20) if stage in ("critique", "screen") else (1, 2)
        dollars = (part["prompt_tokens"] * inward + part["completion_tokens"] * outward) / 1e6
        assert part["cost_usd"] == pytest.approx(dollars)
    total = sum(part["cost_usd"] for part in found["by_stage"].values())
    assert total > 0
    assert found["total"]["cost_usd"] == pytest.approx(total)


async def test_an_unknown_price_leaves_the_dollars_unknown_where_it_counts():
    found = (await estimated(judge_model="unknown"))["expected"]
    assert found["by_stage"]["critique"]["cost_usd"] is None
    assert found["by_stage"]["generate"]["cost_usd"] > 0
    assert found["total"]["cost_usd"] is None
    assert "unknown" in format_estimate(await estimated(judge_model="unknown"))
    unjudged = (await estimated(judge_model="unknown", feedback="none", screen=False))["expected"]
    assert unjudged["total"]["cost_usd"] > 0


async def test_the_prompts_are_as_long_as_those_of_a_run(tmp_path):
    model = scripted()
    await ran(tmp_path, model, 3, 3, try_criteria=True)
    found = (
        await estimated(
            try_criteria=True,
            assume=Assumptions(tokens_per_byte=1.0, characteristics=2, criterion_bytes=30),
        )
    )["low"]["by_stage"]
    for stage in ("extract", "propose", "screen", "generate", "critique"):
        asked = [call for call in model.calls if call.stage == stage]
        schemas = [json.dumps(schema_of(call.answer)) for call in asked if call.answer]
        sent = sum(byte_length(m["content"]) for call in asked for m in call.messages)
        sent += sum(map(byte_length, schemas))
        assert sent == pytest.approx(found[stage]["prompt_tokens"], rel=0.35), stage


async def test_every_assumption_is_named_with_its_value_and_a_reason():
    found = await estimated()
    assert set(found["assumptions"]) == set(WHY) >= set(Assumptions.__dataclass_fields__)
    assert all(set(one) == {"value", "why"} for one in found["assumptions"].values())
    said = format_estimate(found)
    assert all(f"  {name} = " in said for name in WHY)


async def test_an_estimate_is_plain_json_with_the_effective_settings():
    found = await estimated()
    assert json.loads(json.dumps(found)) == found
    assert found["settings"]["judge_model"] == "m"
    assert found["settings"]["judge_method"] == "verdict"
    assert found["settings"]["concurrency"] == 16
    assert found["references"]["taken"] == found["seeds"]["taken"] == 3
    assert all(tuple(found[way]["by_stage"]) == STAGES for way in CASES)


async def test_what_is_shown_holds_counts_stages_and_settings():
    said = format_estimate(await estimated(base_url="http://user:secret@host/v1"))
    assert "references: 3 taken, 0 left out" in said
    assert 'model = "m"' in said
    assert "secret" not in said
    assert re.search(r"\n  stage +calls +prompt +completion +dollars\n", said)
    assert re.search(r'\n  generate +3 +[\d,]+ +[\d,]+ +\$0\.\d{4} +"m"\n', said)
    assert "$0." in said


async def test_a_price_by_a_line_of_toml_makes_the_dollars_known(tmp_path):
    line = '"m" = { input = 1.00, cached_input = 0.50, output = 2.00 }'
    assert tomllib.loads(line)
    (tmp_path / "p.toml").write_text(line, encoding="utf-8")
    assert (await estimated(prices=Prices.load(None)))["expected"]["total"]["cost_usd"] is None
    priced = await estimated(prices=Prices.load(tmp_path / "p.toml"))
    assert priced["expected"]["total"] == (await estimated())["expected"]["total"]


def test_a_long_list_is_measured_in_part_from_end_to_end():
    few = spread_sample(range(1000))
    assert SAMPLE <= len(few) <= 2 * SAMPLE
    assert (few[0], few[-1]) == (0, 950)
    assert spread_sample(range(3)) == [0, 1, 2]


async def test_references_longer_than_an_input_of_the_graph_may_be_are_estimated():
    given = [
        {**reference, "id": "x" * 300 + str(i), "response": words(f"long {i}", 40_000)}
        for i, reference in enumerate(references(2))
    ]
    found = await estimate(settings_of(), report(2), report(2), given, PRICES)
    assert found["expected"]["by_stage"]["generate"]["calls"] > 0


async def test_the_dry_run_takes_the_price_of_the_tier():
    table = Prices({"m": Price(1.0, 2.0, 0.5, None, Price(0.5, 1.0))})
    full = await estimated(prices=table)
    flex = await estimated(prices=table, service_tier="flex")
    either = await estimated(prices=table, service_tier="flex,default")
    for case in ("low", "expected", "high"):
        dollars = full[case]["total"]["cost_usd"]
        assert flex[case]["total"]["cost_usd"] == pytest.approx(dollars / 2)
        falls_back = 1.0 if case == "high" else 0.5
        assert either[case]["total"]["cost_usd"] == pytest.approx(dollars * falls_back)
    said = format_estimate(flex)
    assert 'service_tier = "flex": whose prices are taken' in said
    assert "room_of_a_cut_answer = 8: times max_tokens at most" in said
