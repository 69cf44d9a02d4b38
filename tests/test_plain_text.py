"""Responses are asked for and read as plain text, and reach the rows byte for byte."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import Endpoint, ScriptedModel, is_text, letters, prompt_of, stage_of, tagged, verdicts
from processes import refloom

from graph.builder import build_sample
from nodes.chatter import opening_chatter
from nodes.context import Context
from nodes.generate import asks_for_code_alone
from nodes.llm import Call, CallOrigin, make_call
from nodes.llm.protocol import Capabilities, request_body

REFERENCE = {"instruction": "How does a sundial work?", "response": "Its rod throws a shadow. " * 8}
SEED = "Show me every odd character there is."
ODD = (
    'Escapes: C:\\new\\table \\\\server \\u0041 \\n \\" and a "quoted" \'word\' with a `tick`.\n\n'
    "$$\\frac{1}{2} + \\nabla \\times \\vec{B} = \\begin{pmatrix} a & b \\\\ c & d "
    "\\end{pmatrix}$$\n\n"
    '```python\ndef f(x: str = "\\t\\x00") -> dict:\n\treturn {"a": [x, None], \'b\': {}}\n\n\n'
    "```\n"
    "\tA tab, two  spaces, a line end of Windows:\r\nnext; a no-break\u00a0space, \u2028 and "
    "\u200d, an é and an e\u0301, 潮汐, 🧑‍🚀, <b>&amp;</b>, {{ x }} {% y %} ${z} %s {0}\n\n"
    '| a | b |\n|---|---|\n| 1 | {"response": "no", "n": [1, 2,]} |\n\n'
    "<plan>a tag</plan> and <response>\nthis one</response>\n\nIt ends here."
)


def run_to_rows(folder: Path, script: Any) -> tuple[str, Endpoint]:
    """A run of one seed; the response in its exported row, and the endpoint it was made at."""
    (folder / "refs.jsonl").write_text(json.dumps(REFERENCE) + "\n")
    (folder / "seeds.txt").write_text(SEED + "\n")
    flags = ("--no-try-criteria", "--answer-seeds", "--references-per-seed", "1", "--quiet")
    files = ("--references", "refs.jsonl", "--seeds", "seeds.txt", "--out", "out", "--model", "m")
    with Endpoint(script) as endpoint:
        ended = refloom("run", *files, *flags, "--base-url", endpoint.url, cwd=folder)
        assert ended.returncode == 0, ended.stderr
    ended = refloom("export", "out", "rows.jsonl", "--format", "messages", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    (line,) = (folder / "rows.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return json.loads(line)["messages"][-1]["content"], endpoint


def test_a_response_is_byte_true_from_wire_to_export(tmp_path):
    text, endpoint = run_to_rows(
        tmp_path, lambda body, n: f"\n\n{ODD}\n \n" if stage_of(body) == "generate" else None
    )
    assert text == ODD
    (asked,) = [body for body in endpoint.bodies if stage_of(body) == "generate"]
    assert is_text(asked)
    (judged,) = [body for body in endpoint.bodies if stage_of(body) == "critique"]
    assert tagged(judged["messages"][-1]["content"], "response")[-1] == ODD


def test_a_refined_response_is_byte_true_without_its_plan(tmp_path):
    def script(body, number):
        prompt = "\n".join(m["content"] for m in body["messages"])
        if stage_of(body) == "refine":
            return f"<plan>\nsay {{more}}\n</plan>\n\n{ODD}"
        if stage_of(body) == "critique":
            return verdicts(prompt, "pass" if "It ends here." in prompt else "fail")
        return None

    text, endpoint = run_to_rows(tmp_path, script)
    assert text == ODD
    (asked,) = [body for body in endpoint.bodies if stage_of(body) == "refine"]
    assert is_text(asked)


def test_a_text_call_carries_no_shape_on_the_wire():
    text = make_call("refine", [], None, Context(), CallOrigin("a"), text=True)
    body = request_body(text, Capabilities())
    assert not {"response_format", "tools", "logprobs"} & set(body)
    assert body["max_tokens"] == 4000
    assert text.kind == "text"


GIVEN = {
    "seed": {"id": "s", "instruction": SEED},
    "instruction": SEED,
    "references": [REFERENCE | {"id": "r"}],
}


async def sample_of(model: ScriptedModel, instruction: str = SEED, **settings: Any) -> Any:
    graph = build_sample(complete=model, embed=letters)
    given = {**GIVEN, "instruction": instruction}
    return await graph.ainvoke(given, context=Context(model="m", **settings))


async def test_a_refinement_starts_from_the_best_candidate_and_shows_it_last():
    drafts = iter(["The better one is here.", "The poorer one is here.", "The last one is here."])

    def judged(call: Call) -> Any:
        poor = "poorer" in tagged(prompt_of(call), "response")[-1]
        said = verdicts(prompt_of(call), "fail")
        for one in said["verdicts"][poor:]:
            one["verdict"] = "fail" if poor else "pass"
        said["verdicts"][0]["verdict"] = "fail"
        return said

    model = ScriptedModel(
        generate=lambda call: next(drafts),
        refine=lambda call: f"<plan>try</plan>{next(drafts)}",
        critique=judged,
    )
    await sample_of(model, max_attempts=3)
    shown = [tagged(prompt, "response")[-1] for prompt in model.asked("refine")]
    assert shown == ["The better one is here."] * 2
    assert all(call.kind == "text" for call in model.calls if call.stage != "critique")


CODE_ALONE = [
    "Reverse a list in Python. Only the code, please.",
    "Give me just the code for a binary search.",
    "Return only valid JSON with the keys a and b.",
    "Answer with SQL only.",
    "Reply with nothing but the regex.",
    "Output the YAML and nothing else.",
    "Sort a list in Rust, no explanation.",
    "Parse a date in Go without any explanation.",
    "Count words in a file in Perl. Do not explain it.",
    "Write a Python function that reverses a string.",
    "Please implement a thread-safe LRU cache class in Java.",
    "Here is a table of users. Write me a short SQL query that counts them.",
    "Create a Bash script that renames files.",
    "I need to back up a folder: give me a one-liner.",
]
NOT_CODE_ALONE = [
    "How do I reverse a list in Python?",
    "Explain what this function does.",
    "Write a poem about a bridge.",
    "Write a paragraph on the function of the heart.",
    "Give me a summary of the class struggle in two lines.",
    "Return only JSON and do not wrap it in backticks.",
    "Only the code, no markdown fences.",
    "Write an essay about the program of the party.",
    "Plan a week of meals with no nuts.",
    "",
]


@pytest.mark.parametrize("instruction", CODE_ALONE)
def test_an_instruction_that_asks_for_code_alone(instruction: str) -> None:
    assert asks_for_code_alone(instruction)


@pytest.mark.parametrize("instruction", NOT_CODE_ALONE)
def test_an_instruction_that_asks_for_more_than_code(instruction: str) -> None:
    assert not asks_for_code_alone(instruction)


async def test_an_error_in_place_of_a_response_is_asked_again_unless_the_instruction_may_mean_it():
    said = iter(["Error: upstream timed out", "[ERROR] The generation failed", "A draft."] * 2)
    model = ScriptedModel(generate=lambda call: next(said))
    await sample_of(model)
    assert len(model.asked("generate")) == 3
    assert "A draft." in model.asked("critique")[0]
    model = ScriptedModel(generate=lambda call: next(said))
    await sample_of(model, "Which line does a proxy log when its timeout is over?")
    assert len(model.asked("generate")) == 1
    assert "Error: upstream timed out" in model.asked("critique")[0]


@pytest.mark.parametrize("failing", ["generate", "refine"])
async def test_a_response_that_is_only_ever_an_error_fails_the_sample(failing: str):
    said = {"generate": "A draft.", "refine": "<plan>try</plan>Better.", failing: "502 Bad Gateway"}
    model = ScriptedModel(
        generate=lambda call: said["generate"],
        refine=lambda call: said["refine"],
        critique=lambda call: verdicts(prompt_of(call), "fail"),
    )
    sample = await sample_of(model, max_attempts=2)
    assert "502 Bad Gateway" not in {attempt["response"] for attempt in sample.get("attempts", [])}
    assert len(model.asked(failing)) == 3


def test_a_long_instruction_is_looked_through_in_no_time() -> None:
    assert not asks_for_code_alone("write me a very " * 20_000)


@pytest.mark.parametrize("blank", [" \n", "\n", "\r\n", "\t"])
def test_an_instruction_of_blank_lines_takes_no_time(blank: str) -> None:
    instruction = f"Why is this code slow?{blank * 15_000}`"
    began = time.process_time()
    assert not asks_for_code_alone(instruction)
    assert opening_chatter("Certainly! It waits.", instruction) == "Certainly! It waits."
    assert time.process_time() - began < 2


@pytest.mark.parametrize("before", ["", "A list. \n", "A list\n \n\t", "A list:\r\n"])
def test_blank_lines_before_a_request_hide_it_from_nobody(before: str) -> None:
    assert asks_for_code_alone(f"{before}Write a Python function that sorts it.")
    assert opening_chatter("Certainly! It is.", f"{before}Is it sorted?") == ""


def test_settings_of_a_stage_hold_for_a_text_call(tmp_path):
    (tmp_path / "stages.toml").write_text(
        "[stages.generate]\ntemperature = 0.125\nmax_tokens = 77\nextra_body = { top_k = 3 }\n"
    )
    (tmp_path / "refs.jsonl").write_text(json.dumps(REFERENCE) + "\n")
    files = ("--references", "refs.jsonl", "--out", "out", "--model", "m", "--quiet")
    flags = ("--answer-seeds", "--no-try-criteria", "--config", "stages.toml")
    with Endpoint() as endpoint:
        ended = refloom("run", *files, *flags, "--base-url", endpoint.url, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    (body,) = [body for body in endpoint.bodies if stage_of(body) == "generate"]
    assert (body["temperature"], body["max_tokens"], body["top_k"]) == (0.125, 77, 3)
