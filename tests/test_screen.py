"""New instructions are held to criteria, proposed once more, and dropped with the reason."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fakes import ScriptedModel, answer, criterion_ids, letters, prompt_of, screened, tagged, words
from runs import CountingModel, all_rows, references, rows, stable_rows, summary_of
from runs import build_run as build_plain_run

from graph.builder import build_graph
from nodes.context import Context
from nodes.llm import Call, CallFailed
from nodes.screening import ANSWERABLE_ID, BUILT_IN_IDS, REQUEST_ID, is_request
from nodes.trial import spoil_instruction
from refloom.runs.run import Run


def build_run(out: Path, model: Any, **settings: Any) -> Run:
    return build_plain_run(out, model, **{"screen": True, **settings})


async def finish_run(out: Path, model: Any, **settings: Any) -> dict[str, Any]:
    async with asyncio.timeout(20):
        await build_run(out, model, **settings).run()
    return summary_of(out)


def dropped(out: Path) -> list[dict[str, Any]]:
    text = (out / "dropped.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def proposing(*batches: list[str]) -> Any:
    """Proposes one batch after another to each seed, fixed by whether it is asked again."""

    def propose(call: Call) -> dict[str, Any]:
        again = "These are taken" in prompt_of(call)
        return {"instructions": batches[1 if again and len(batches) > 1 else 0]}

    return propose


def fail_vague(call: Call) -> dict[str, Any]:
    """Fails what says "vague" for want of what is needed."""
    return screened(
        prompt_of(call),
        lambda id_, text: "fail" if "vague" in text and id_ == ANSWERABLE_ID else "pass",
    )


async def test_what_fails_is_proposed_again_and_told_and_no_response_is_paid_for_it(tmp_path):
    model = ScriptedModel(
        propose=proposing(["Say more, vague amber cedar?"], ["How do umber fjords form in delta?"]),
        screen=fail_vague,
    )
    said = await finish_run(tmp_path, model, seeds=[words("seed", 8)])
    assert [row["instruction"] for row in rows(tmp_path, "accepted")] == [
        "How do umber fjords form in delta?"
    ]
    (line,) = dropped(tmp_path)
    assert line["reason"] == "screened" and line["ask"] == 1 and line["near"] is None
    assert line["instruction"] == "Say more, vague amber cedar?"
    assert {v["criterion_id"]: v["verdict"] for v in line["verdicts"]}[ANSWERABLE_ID] == "fail"
    assert f"about {ANSWERABLE_ID}" in line["why"]
    assert said["counts"]["screened"] == 1 and said["counts"]["candidates"] == 1
    _, second = model.asked("propose")
    assert "vague" in tagged(second, "verdict")[0] and f"about {ANSWERABLE_ID}" in second
    assert len(model.asked("generate")) == 1 and "vague" not in model.asked("generate")[0]


async def test_a_row_has_its_instruction_criteria_and_verdicts(tmp_path):
    await finish_run(tmp_path, ScriptedModel(), seeds=[words("seed", 8)])
    (row,) = rows(tmp_path, "accepted")
    assert [c["id"] for c in row["instruction_criteria"]] == list(BUILT_IN_IDS)
    assert all(c["must"] and c["judged_by"] == "judge" for c in row["instruction_criteria"])
    assert [v["verdict"] for v in row["instruction_verdicts"]] == ["pass"] * 3


async def test_a_seed_whose_instructions_all_fail_leaves_no_row(tmp_path):
    model = ScriptedModel(
        propose=proposing(["Vague, vague amber cedar?"], ["So vague umber fjord delta lotus?"]),
        screen=fail_vague,
    )
    said = await finish_run(tmp_path, model, seeds=[words("seed", 8)])
    assert said["status"] == "done" and said["counts"]["candidates"] == 0
    assert [(d["ask"], d["reason"]) for d in dropped(tmp_path)] == [
        (1, "screened"),
        (2, "screened"),
    ]
    assert not model.asked("generate")


async def test_without_screening_no_verdict_is_asked_and_prompts_are_as_they_were(tmp_path):
    model = ScriptedModel()
    await finish_run(tmp_path, model, seeds=[words("seed", 8)], screen=False)
    assert not model.asked("screen")
    (row,) = rows(tmp_path, "accepted")
    assert row["instruction_criteria"] == [] and row["instruction_verdicts"] == []
    assert "instruction_characteristics" not in model.asked("extract")[0]


async def test_near_duplicates_and_unfit_and_surplus_ones_stand_in_the_file(tmp_path):
    near = references()[0]["instruction"]
    model = ScriptedModel(
        propose=proposing(
            [near, "Write about [your name] in amber.", "How do fjords form in umber?"],
            [f"Which {words(f'again {i}', 8)}?" for i in range(3)],
        )
    )
    await finish_run(tmp_path, model, seeds=[words("seed", 8)], per_seed=3)
    by_reason = {}
    for line in dropped(tmp_path):
        by_reason.setdefault(line["reason"], []).append(line)
    (duplicate,) = by_reason["duplicate"]
    assert duplicate["near"] == {"instruction": near, "reference_id": "r0", "score": 1.0}
    (unfit,) = by_reason["unfit"]
    assert "blank" in unfit["why"]
    (surplus,) = by_reason["surplus"]
    assert surplus["ask"] == 2
    assert len(rows(tmp_path, "accepted")) == 3


async def test_a_duplicate_of_an_earlier_slot_names_it(tmp_path):
    model = ScriptedModel(propose=proposing(["How do umber fjords form in the delta?"]))
    await finish_run(tmp_path, model, seeds=[words("one", 8), words("two", 8)])
    line = next(d for d in dropped(tmp_path) if d["ask"] == 1)
    assert line["near"]["slot"] == [0, 0, 0] and line["near"]["score"] == 1.0


async def test_a_verdict_that_cannot_be_read_twice_counts_against_its_instruction(tmp_path):
    def unread(call: Call) -> dict[str, Any]:
        said = screened(prompt_of(call))
        for item in said["instructions"]:
            for verdict in item["verdicts"]:
                if verdict["criterion_id"] == REQUEST_ID:
                    verdict["evidence"] = "words that are not there"
        return said

    model = ScriptedModel(screen=unread)
    said = await finish_run(tmp_path, model, seeds=[words("seed", 8)])
    assert said["counts"]["screened"] == 2 and said["counts"]["failed"] == 0
    assert {v["verdict"] for d in dropped(tmp_path) for v in d["verdicts"]} == {"unknown", "pass"}
    # Each set is asked about twice, the second time for what is missing.
    prompts = model.asked("screen")
    assert len(prompts) == 4 and prompts[1].count("<criterion ") == 1


@pytest.mark.parametrize("form", ['"{}"', " {}.0", '" {} "'])
async def test_an_instruction_is_known_by_its_number_written_as_text_too(tmp_path, form):
    def write_number(call: Call) -> dict[str, Any]:
        said = fail_vague(call)
        for item in said["instructions"]:
            item["number"] = json.loads(form.format(item["number"]))
        return said

    model = ScriptedModel(
        propose=proposing(["Say more, vague amber cedar?"], ["How do umber fjords form in delta?"]),
        screen=write_number,
    )
    said = await finish_run(tmp_path, model, seeds=[words("seed", 8)])
    assert said["counts"]["failed"] == 0 and said["counts"]["accepted"] == 1
    assert [row["instruction"] for row in rows(tmp_path, "accepted")] == [
        "How do umber fjords form in delta?"
    ]
    assert len(model.asked("screen")) == 2


async def test_a_number_that_is_no_instructions_is_not_read(tmp_path):
    def write_number(call: Call) -> dict[str, Any]:
        said = screened(prompt_of(call))
        said["instructions"] += [
            {"number": number, "verdicts": []} for number in (0, 9, "one", 1.5)
        ]
        return said

    said = await finish_run(tmp_path, ScriptedModel(screen=write_number), seeds=[words("seed", 8)])
    assert said["counts"]["accepted"] == 1 and said["counts"]["screened"] == 0


async def test_a_screen_that_brings_nothing_readable_fails_the_seed(tmp_path):
    model = ScriptedModel(screen=lambda call: "no JSON at all")
    said = await finish_run(tmp_path, model, seeds=[words("seed", 8)])
    (row,) = rows(tmp_path, "failed")
    assert row["error"]["stage"] == "screen" and row["instruction"] is None
    assert said["counts"]["failed"] == 1 and said["counts"]["screened"] == 0


async def test_where_a_filter_refuses_the_call_each_instruction_is_asked_about_alone(tmp_path):
    def refuse_amber(call: Call) -> Any:
        prompt = prompt_of(call)
        if "amber amber" in "".join(tagged(prompt, "instruction")):
            return CallFailed("screen", "filtered", "not this")
        return screened(prompt)

    model = ScriptedModel(
        propose=proposing(["What of amber amber now here?", "How do umber fjords form in delta?"]),
        screen=refuse_amber,
    )
    said = await finish_run(tmp_path, model, seeds=[words("seed", 8)], per_seed=2)
    assert [row["instruction"] for row in rows(tmp_path, "accepted")] == [
        "How do umber fjords form in delta?"
    ]
    assert said["counts"]["screened"] == 1 and said["counts"]["failed"] == 0
    assert "would not judge" in dropped(tmp_path)[0]["why"]


class ChancyModel(ScriptedModel):
    """Proposals of which a third are alike, and half of which fail their screening."""

    def __init__(self) -> None:
        super().__init__(propose=self._propose, screen=self._screen)

    def _propose(self, call: Call) -> dict[str, Any]:
        said = answer("propose", prompt_of(call), call.seed)
        if call.seed % 3 == 0:
            said["instructions"][0] = "which quartz river has umber and violet banks"
        return said

    def _screen(self, call: Call) -> dict[str, Any]:
        return screened(
            prompt_of(call),
            lambda id_, text: (
                "fail" if id_ == ANSWERABLE_ID and sum(map(ord, text)) % 2 else "pass"
            ),
        )

    async def __call__(self, call: Call) -> Any:
        for _ in range(call.seed % 7):
            await asyncio.sleep(0)
        return await super().__call__(call)


SEEDS = [words(f"seed {i}", 8) for i in range(6)]
RUN: dict[str, Any] = {"seeds": SEEDS, "per_seed": 2, "target": 14}


async def test_rows_and_dropped_lines_do_not_depend_on_what_is_in_flight(tmp_path):
    for name, concurrency in (("one", 1), ("many", 32)):
        await finish_run(tmp_path / name, ChancyModel(), **RUN, concurrency=concurrency)
    assert stable_rows(tmp_path / "one") == stable_rows(tmp_path / "many")
    assert dropped(tmp_path / "one") == dropped(tmp_path / "many")
    reasons = {line["reason"] for line in dropped(tmp_path / "one")}
    assert {"duplicate", "screened"} <= reasons


async def test_rows_and_dropped_lines_of_a_run_stopped_anywhere_are_as_undisturbed(tmp_path):
    whole = tmp_path / "whole"
    counting = CountingModel(ChancyModel())
    await finish_run(whole, counting, **RUN)
    for at in range(1, counting.begun, max(1, counting.begun // 7)):
        out = tmp_path / str(at)
        model = CountingModel(ChancyModel(), at)
        run = build_run(out, model, **RUN)
        model.then = run.stop
        await run.run()
        model.at = 0
        await finish_run(out, model, **RUN)
        assert stable_rows(out) == stable_rows(whole), at
        assert dropped(out) == dropped(whole), at
        assert max(model.answered.values()) == 1


@pytest.mark.parametrize("limit", [None, 12])
async def test_screened_instructions_count_for_max_candidates(tmp_path, limit):
    model = ChancyModel()
    said = await finish_run(
        tmp_path, model, seeds=SEEDS[:3], target=40, max_candidates=limit, per_seed=2
    )
    counts = said["counts"]
    if limit is None:
        assert said["status"] == "done" and counts["accepted"] == 40
    else:
        assert said["status"] == "short"
        assert counts["candidates"] + counts["screened"] <= limit + 2 * 2


async def test_a_judge_whom_nothing_pleases_ends_the_run(tmp_path):
    model = ScriptedModel(screen=lambda call: screened(prompt_of(call), "fail"))
    said = await finish_run(tmp_path, model, seeds=SEEDS[:2], target=3)
    assert said["status"] == "short" and said["counts"]["candidates"] == 0
    assert 30 <= said["counts"]["screened"] <= 34


async def test_instruction_characteristics_are_tried_and_shown(tmp_path):
    def extract(call: Call) -> dict[str, Any]:
        said = answer("extract", prompt_of(call), call.seed)
        ask = tagged(prompt_of(call), "instruction")[-1]
        quote = " ".join(ask.split()[:3])
        said["instruction_characteristics"] = [
            {"text": "The instruction states the case it is for.", "quote": quote, "must": True},
            {"text": "names nobody at all", "quote": "words not there", "must": True},
            {"text": "asks for one result", "quote": quote, "must": True},
            {"text": "sets a firm limit", "quote": quote, "must": True},
        ]
        return said

    own = {r["instruction"] for r in references()}

    def screen(call: Call) -> dict[str, Any]:
        prompt = prompt_of(call)
        texts = dict(zip(criterion_ids(prompt), tagged(prompt, "criterion"), strict=True))

        def verdict(id_: str, text: str) -> str:
            if "one result" in texts[id_]:
                return "fail" if text in own else "pass"
            if "states the case" in texts[id_] and "<seed>" not in prompt:
                return "pass" if text in own else "fail"
            return "pass"

        return screened(prompt, verdict)

    model = ScriptedModel(extract=extract, screen=screen)
    said = await finish_run(
        tmp_path, model, seeds=[words("seed", 8)], try_criteria=True, references_per_seed=1
    )
    assert said["instruction_criteria"] == {
        "proposed": 4,
        "earned": 1,
        "demoted": 1,
        "dropped": 2,
    }
    (row,) = rows(tmp_path, "accepted")
    earned, demoted = row["instruction_criteria"][3:]
    assert earned["text"] == "states the case it is for" and not earned["must"]
    assert earned["trial"]["own"] == 1 and not any(earned["trial"]["spoiled"].values())
    assert all(demoted["trial"]["spoiled"].values())
    assert "states the case it is for" in model.asked("propose")[0]
    trials = [p for p in model.asked("screen") if not tagged(p, "seed")]
    assert all(p.count("<instruction number=") == 1 for p in trials)


def test_a_spoiled_instruction_is_never_the_instruction() -> None:
    ask = "Sort these numbers: 3, 1, 2, and say why each step is needed."
    assert ask not in spoil_instruction(ask, "1, 2, 3. Compare neighbours first.").values()
    assert "cut_out" not in spoil_instruction("Why is the sky blue at noon today", "It scatters.")


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("To iron a cotton shirt without leaving creases, you can follow these steps:", "fail"),
        ("Here are three ways to keep bread fresh for longer.", "fail"),
        ("There are several reasons why bread goes stale.", "fail"),
        ("Which other appliance would you like to consider for your kitchen?", "fail"),
        ("What is your goal for your trip to Oslo?", "fail"),
        ("How can I keep bread fresh without a freezer?", "pass"),
        ("What do you think of rye bread?", "pass"),
        ("Write a haiku about rust, and explain its form.", "pass"),
        ("I have a rusty gate. What is the cheapest way to save it?", "pass"),
    ],
)
def test_by_its_form_an_answer_is_told_from_a_request(text, outcome) -> None:
    assert is_request(text)["verdict"] == outcome


async def test_by_log_odds_rules_come_first_and_one_question_has_a_bar() -> None:
    def odds(call: Call) -> float:
        # A reference's own instruction and what is proposed hold all that is needed.
        return 3.0 if "?" in tagged(prompt_of(call), "instruction")[-1] else -3.0

    model = ScriptedModel(
        propose=proposing(
            ["To form fjords, you can follow umber steps:"], ["How do umber fjords form in delta?"]
        ),
        odds=odds,
    )
    graph = build_graph(complete=model, embed=letters)
    context = Context(model="m", judge_method="logodds", references_per_seed=1)
    state = await graph.ainvoke(
        {"seed": {"instruction": "Umber fjords in the delta"}, "references": references(1)},
        context=context,
    )
    (sample,) = state["samples"]
    assert sample["instruction"] == "How do umber fjords form in delta?"
    assert [c["judged_by"] for c in sample["instruction_criteria"]] == ["rule", "judge", "rule"]
    screen_calls = [c for c in model.calls if c.stage == "screen"]
    assert screen_calls and all(c.kind == "question" for c in screen_calls)
    assert not any("umber steps" in prompt_of(c) for c in screen_calls)


async def test_by_log_odds_what_a_filter_refuses_is_dropped_and_the_seed_goes_on() -> None:
    def odds(call: Call) -> float | CallFailed:
        text = tagged(prompt_of(call), "instruction")[-1]
        if "amber fjords" in text and call.stage == "screen":
            return CallFailed("screen", "filtered", "not this")
        return 3.0 if "?" in text else -3.0

    model = ScriptedModel(
        propose=proposing(["What of amber fjords now?", "How do umber fjords form in delta?"]),
        odds=odds,
    )
    graph = build_graph(complete=model, embed=letters)
    context = Context(model="m", judge_method="logodds", references_per_seed=1, per_seed=2)
    state = await graph.ainvoke(
        {"seed": {"instruction": "Umber fjords in the delta"}, "references": references(1)},
        context=context,
    )
    made = [s["instruction"] for s in state["samples"] if s["instruction"] is not None]
    assert made == ["How do umber fjords form in delta?"]


async def test_all_arms_make_and_screen_the_same_instructions() -> None:
    keys = {}
    for arm in ("reference", "sample", "none", "generic", "swapped"):
        model = ScriptedModel()
        graph = build_graph(complete=model, embed=letters)
        context = Context(model="m", feedback=arm, paired=True, references_per_seed=1)
        await graph.ainvoke(
            {"seed": {"instruction": words("seed", 8)}, "references": references(3)},
            context=context,
        )
        keys[arm] = {
            (c.stage, c.seed, json.dumps(c.messages))
            for c in model.calls
            if c.stage in ("propose", "screen", "generate")
        }
    assert len({frozenset(one) for one in keys.values()}) == 1
    assert {stage for stage, _, _ in keys["none"]} == {"propose", "screen", "generate"}


async def test_on_a_run_all_rows_name_what_was_dropped(tmp_path):
    said = await finish_run(tmp_path, ChancyModel(), **RUN)
    lines = dropped(tmp_path)
    assert said["counts"]["screened"] == sum(d["reason"] == "screened" for d in lines)
    assert said["counts"]["duplicates"] == sum(d["reason"] == "duplicate" for d in lines)
    assert {row["instruction"] for row in all_rows(tmp_path)}.isdisjoint(
        d["instruction"] for d in lines if d["reason"] == "screened"
    )


async def test_an_old_memory_is_used_and_what_is_learned_once_more_is_told(tmp_path):
    more: dict[str, Any] = {"seeds": [words("seed", 8)], "memory": tmp_path / "memory"}
    await finish_run(tmp_path / "old", ScriptedModel(), **more, screen=False)
    notices: list[str] = []
    for out in ("new", "again"):
        run = build_run(tmp_path / out, ScriptedModel(), **more)
        run.on_notice = notices.append
        await run.run()
    (notice,) = notices
    assert "knows 3 of the references by other prompts" in notice and "calls" in notice


@pytest.mark.parametrize("odd", ["case", "quotes", "passed"])
async def test_a_verdict_with_an_odd_id_or_word_is_read(tmp_path, odd):
    def screen(call: Call) -> dict[str, Any]:
        said = screened(prompt_of(call))
        for verdict in said["instructions"][0]["verdicts"]:
            id_ = verdict["criterion_id"]
            named = {"case": id_.upper(), "quotes": f'"{id_}"', "passed": id_}
            verdict["criterion_id"] = named[odd]
            verdict["verdict"] = "Passed." if odd == "passed" else "pass"
        return said

    model = ScriptedModel(screen=screen)
    said = await finish_run(tmp_path, model, seeds=[words("seed", 8)])
    assert said["counts"]["accepted"] == 1 and len(model.asked("screen")) == 1


async def test_no_built_in_criterion_of_instructions_is_without_application(tmp_path):
    model = ScriptedModel(
        screen=lambda call: screened(
            prompt_of(call), lambda id_, text: "not_applicable" if id_ == REQUEST_ID else "pass"
        )
    )
    said = await finish_run(tmp_path, model, seeds=[words("seed", 8)])
    assert said["counts"]["accepted"] == 0 and said["counts"]["screened"] == 2
