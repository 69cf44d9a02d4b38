"""The data-set card, the licence that follows from the references', and putting both on the hub."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import Endpoint, stage_of, tagged, verdicts, words
from hub import Hub
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import env_of, lines, refloom

from refloom.data.card import card, md
from refloom.data.diversity import diversity
from refloom.data.export import FORMATS
from refloom.data.facts import MOST_HITS, SAMPLE, Facts, facts_of, quantiles
from refloom.data.found import Report
from refloom.data.licence import licence_of, outcome
from refloom.settings import Settings


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        ("CC BY-NC 4.0", "cc-by-nc-4.0"),
        ("cc-by-nc-sa", "cc-by-nc-sa-4.0"),
        ("CC_BY_SA_3.0", "cc-by-sa-3.0"),
        ("Creative Commons Attribution-NonCommercial-ShareAlike 2.0 Generic", "cc-by-nc-sa-2.0"),
        ("Creative Commons Attribution 4.0", "cc-by-4.0"),
        ("CC BY-NC-ND (4.0)", "cc-by-nc-nd-4.0"),
        ("CC0", "cc0-1.0"),
        ("Apache License, Version 2.0", "apache-2.0"),
        ("MIT License", "mit"),
        ("GPLv3", "gpl-3.0"),
        ("AGPL-3.0-only", "agpl-3.0"),
        ("ODC-By", "odc-by"),
        ("permitted for all", None),
        ("my own words", None),
    ],
)
def test_a_licence_is_known_by_its_usual_names(text, id_):
    assert licence_of(text).id == id_


@pytest.mark.parametrize(
    ("counts", "id_", "says"),
    [
        ({"CC BY-NC 4.0": 5, "MIT": 2}, "cc-by-nc-4.0", "may not be used for money"),
        ({"CC BY-NC 4.0": 5, "CC BY-NC-SA": 1}, "cc-by-nc-sa-4.0", "under the same licence"),
        ({"CC BY-SA 3.0": 1, "CC BY-SA 4.0": 2, "CC BY": 3}, "cc-by-sa-4.0", "therefore"),
        ({"CC BY-NC 4.0": 1, "not stated": 8}, "cc-by-nc-4.0", "without a licence that is known"),
        ({"CC BY-SA 4.0": 1, "CC BY-NC 4.0": 3}, "other", "cannot all be kept"),
        ({"CC BY-SA 4.0": 1, "GPL-3.0": 3}, "other", "cannot all be kept"),
        ({"CC BY-ND 4.0": 1, "MIT": 9}, "other", "may not be shared"),
        ({"All rights reserved": 1, "MIT": 9}, "other", "Terms of its own"),
        ({"MIT": 1, "Apache-2.0": 2}, "other", "apache-2.0, mit"),
        ({"CC BY 4.0": 3}, "cc-by-4.0", "authors"),
        ({"MIT": 3}, "mit", "All references"),
        ({"MIT": 3, "not stated": 1}, "unknown", "Find out"),
        ({}, "unknown", ""),
    ],
)
def test_the_strictest_licence_is_carried_on_and_said_aloud(counts, id_, says):
    found = outcome(counts)
    assert found.id == id_
    assert says in " ".join(found.said)
    assert (found.name is not None) == (id_ == "other")


LICENCES = ["CC BY 4.0", "CC BY-SA 4.0", "CC BY-NC 4.0", "CC BY-NC-SA 3.0", "MIT", "GPL-3.0", "x"]


@settings(max_examples=200, deadline=None, database=None)
@given(st.dictionaries(st.sampled_from(LICENCES), st.integers(1, 9)))
def test_no_outcome_allows_more_than_a_reference_does(counts):
    found = outcome(counts)
    asks = set().union(*(licence_of(text).asks for text in counts))
    if found.id not in ("other", "unknown"):
        assert asks & {"nc", "sa"} <= set(licence_of(found.id).asks)


@settings(max_examples=200, deadline=None, database=None)
@given(st.text(max_size=60))
def test_no_text_becomes_markup(text):
    said = md(text)
    assert "\n" not in said and "<" not in said and "://" not in said
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_|\[\]]", said)


# Facts.


def record(place: int, **more) -> dict:
    criteria = [
        {"id": "not-empty", "text": "is not empty", "must": True, "reference_id": None,
         "judged_by": "rule"},
        {"id": f"c{place:08}", "text": "gives reasons", "must": True, "reference_id": "r",
         "judged_by": "judge"},
    ]  # fmt: skip
    verdicts_ = [
        {"criterion_id": c["id"], "verdict": "pass", "reason": "", "evidence": ""} for c in criteria
    ]
    first = [verdicts_[0], {**verdicts_[1], "verdict": "fail" if place % 2 else "pass"}]
    attempts = [{"response": "a", "verdicts": first}, {"response": "So.", "verdicts": verdicts_}]
    return {
        "id": f"id {place}", "seed_id": f"s{place}", "instruction": f"Why {words(str(place), 6)}?",
        "response": "So.", "status": "accepted", "reason": None, "criteria": criteria,
        "attempts": attempts if place % 2 else attempts[1:],
    } | more  # fmt: skip


def test_criteria_of_the_same_words_are_counted_as_one():
    facts = facts_of(json.dumps(record(i)) for i in range(10))
    rule, drawn = facts.passing(5)
    assert (rule.text, rule.last["pass"]) == ("is not empty", 10)
    assert (drawn.text, drawn.first["pass"], drawn.last["pass"]) == ("gives reasons", 5, 10)
    assert facts.attempts == {1: 5, 2: 5}
    assert len(facts.responses) == 10 and quantiles(facts.responses) == (3, 3, 3)
    assert quantiles([]) is None


def test_the_sample_does_not_depend_on_the_order_and_does_not_grow():
    made = [record(i) for i in range(SAMPLE + 200)]
    there, back = Facts(), Facts()
    for one, other in zip(made, reversed(made), strict=True):
        there.add(one)
        back.add(other)
    assert there.sample == back.sample and len(there.sample) == SAMPLE


def test_contaminated_samples_are_all_counted_and_some_are_named():
    found = {"criterion_id": "not-contaminated", "verdict": "fail", "reason": "It holds x, row 3."}
    hit = {"response": "", "verdicts": [{**found, "evidence": ""}]}
    facts = Facts()
    for i in range(MOST_HITS + 5):
        facts.add(record(i, status="rejected", reason="contaminated", attempts=[hit]))
    assert facts.contaminated == MOST_HITS + 5
    assert len(facts.hits) == MOST_HITS and facts.hits[0] == ("s0", "It holds x, row 3.")


def test_diversity_of_few_texts():
    assert diversity([])[:2] == (0, None)
    assert diversity(["a b"]) == (1, None, None, 1.0)
    same = diversity(["why two tides"] * 3)
    assert (same.pairwise, same.nearest, same.distinct_2) == (1.0, 1.0, 0.333)
    # LCS of 2 in 3 and 4 words: 2 * 2 / 7.
    assert diversity(["a b c", "a x b y"]).pairwise == 0.571


# The card of a run.


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run in which some drafts fail, some references are non-commercial, one row is nasty."""
    folder = tmp_path_factory.mktemp("card")
    nasty = "<script>alert(1)</script> | [x](http://evil.example) {{ 7 * 7 }}"
    rows = [
        {"instruction": f"Explain {words(f'r{i}', 8)}", "response": words(f"a{i}", 50) + ".",
         "license": nasty if i == 0 else "CC BY-NC 4.0" if i % 2 else "MIT"}
        for i in range(20)
    ]  # fmt: skip
    benchmark = words("the prompt of a benchmark", 30)
    (folder / "references.jsonl").write_text("\n".join(map(json.dumps, rows)))
    seeds = [words(f"seed {i}", 9) for i in range(20)] + [benchmark]
    (folder / "seeds.txt").write_text("\n".join(seeds))
    (folder / "exam.jsonl").write_text(json.dumps({"question": benchmark}))

    def script(body, number):
        prompt = body["messages"][-1]["content"]
        if stage_of(body) != "critique":
            return None
        response = tagged(prompt, "response")[-1]
        trial = "explain" in prompt.lower()
        poor = not trial and sum(map(ord, response)) % 2 and len(response.split()) == 40
        return verdicts(prompt, lambda id_: "fail" if poor and id_[0] == "c" else "pass")

    with Endpoint(script) as endpoint:
        done = refloom(
            "run", "--references", folder / "references.jsonl", "--seeds", folder / "seeds.txt",
            "--out", folder / "run", "--base-url", endpoint.url, "--model", "m",
            "--references-per-seed", 1, "--benchmark", folder / "exam.jsonl",
            "--no-try-criteria", cwd=folder,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_run_leaves_a_card_that_says_what_it_is(made):
    text = (made / "README.md").read_text()
    said = json.loads((made / "run.json").read_text())
    assert f"\n{said['counts']['accepted']} pairs of an instruction" in text
    assert "license: cc-by-nc-4.0\n" in text.split("---")[1]
    assert "**cc-by-nc-4.0**: not for commercial use" in text
    assert "References under CC BY-NC 4.0: 10." in text
    assert "**1 samples held a benchmark's prompt and were rejected.**" in text
    assert "It holds the prompt of exam.jsonl, row 1" in text
    assert "graph TD;" in text and "extract `" in text
    assert "| fully answers the instruction | yes | judge |" in text
    assert re.search(
        r"gives a reason for every claim \| yes \| judge, from references \| \d\d %", text
    )
    assert "refloom run --references references.jsonl --out rows --seeds seeds.txt" in text
    assert "mehri-etal-2026-beyond" in text


def test_the_card_shows_untrusted_text_as_text_and_no_place_of_this_machine(made):
    text = (made / "README.md").read_text()
    assert "<script>" not in text and "http://evil" not in text
    assert "{{ 7" in text
    assert "49" not in text.split("## Licence")[1].split("## Limits")[0]
    assert str(made.parent) not in text
    assert "127.0.0.1" not in text


def test_the_card_of_a_run_without_benchmarks_or_rows_says_so():
    said = {
        "status": "interrupted", "fingerprint": "f", "prompts": {}, "written": "", "stopped": None,
        "settings": {**Settings(model="local").shown()}, "versions": {"refloom": "0"},
        "counts": dict.fromkeys(
            ("seeds", "references", "accepted", "rejected", "failed", "pending", "duplicates"), 0
        ),
        "reading": {n: Report("x.jsonl").shown() for n in ("references", "seeds", "benchmarks")},
        "criteria": dict.fromkeys(("proposed", "earned", "demoted", "dropped"), 0),
        "calls": {"paid": 0, "by_stage": {}}, "cost_usd": 0.0,
        "usage": dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens"), 0),
    }  # fmt: skip
    text = card(said, Facts(), "graph TD;")
    assert "**Not compared with any benchmark.**" in text
    assert "The run is **interrupted**" in text
    assert "not worth training on" in text and "license: unknown" in text


# Every preference really is one.


def test_every_rejected_text_failed_a_must_that_its_chosen_text_passed(made, tmp_path):
    path = tmp_path / "p.jsonl"
    assert refloom("export", made, path, "--format", "preference", cwd=tmp_path).returncode == 0
    found, records = lines(path), lines(made / "accepted.jsonl")
    assert len(found) >= 3
    by_instruction = {r["instruction"]: r for r in records}
    for row in found:
        kept = by_instruction[row["prompt"][0]["content"]]
        musts = {c["id"] for c in kept["criteria"] if c["must"]}
        outcomes = {
            a["response"]: {v["criterion_id"]: v["verdict"] for v in a["verdicts"]}
            for a in kept["attempts"]
        }
        chosen = outcomes[row["chosen"][0]["content"]]
        rejected = outcomes[row["rejected"][0]["content"]]
        assert row["chosen"][0]["content"] == kept["response"]
        assert (
            {i for i in musts if rejected.get(i) == "fail" and chosen.get(i) == "pass"}
            == {d["criterion_id"] for d in row["decided_by"]}
            != set()
        )


def test_export_writes_parts_and_says_how_many_rows(made, tmp_path):
    done = refloom(
        "export", made, tmp_path / "d.parquet", "--format", "messages",
        "--split", "train=0.8,validation=0.2", "--max-rows", 10, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.match(r"8 rows in .*d-train.parquet\n2 rows in .*d-validation.parquet\n", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["d.csv", "--format", "messages"], "written as .jsonl or .parquet"),
        (["no/such/d.jsonl", "--format", "messages"], "cannot be written"),
        (["d.jsonl", "--format", "messages", "--split", "train"], "no NAME=SHARE"),
        (["d.jsonl", "--format", "messages", "--max-rows", "0"], "no whole number over 0"),
        (["d.jsonl", "--format", "chatml"], "invalid choice"),
    ],
)
def test_an_odd_export_is_refused_and_writes_nothing(made, tmp_path, arguments, says):
    done = refloom("export", made, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr
    assert list(tmp_path.iterdir()) == []


# The hub.


def push(hub: Hub, *arguments, cwd: Path) -> subprocess.CompletedProcess:
    return refloom("push", *arguments, cwd=cwd, HF_ENDPOINT=hub.url, HF_TOKEN="hf_secret")


@pytest.mark.filterwarnings("default")
def test_rows_and_card_are_put_on_the_hub_and_load_from_there(made, tmp_path):
    import datasets

    with Hub() as hub:
        done = push(
            hub, made, "me/rows", "--format", "messages", "--format", "preference",
            "--split", "train=0.9,validation=0.1", "--despite-contamination", cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{hub.url}/datasets/me/rows (private)")
    assert hub.made[0]["visibility"] == "private"
    assert set(hub.tokens) == {"Bearer hf_secret"}
    for name, content in hub.files.items():
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / name).write_bytes(content)
    # The card's header is what tells the library which file is which.
    loaded = datasets.load_dataset(
        str(tmp_path / "hub"), "messages", cache_dir=str(tmp_path / "cache")
    )
    total = sum(len(part) for part in loaded.values())
    assert set(loaded) == {"train", "validation"}
    assert total == len(lines(made / "accepted.jsonl"))


def test_what_held_a_benchmark_is_not_published_unless_told(made, tmp_path):
    with Hub() as hub:
        done = push(hub, made, "me/rows", cwd=tmp_path)
    assert done.returncode == 2
    assert "--despite-contamination" in done.stderr and done.stderr.count("\n") == 1
    assert not hub.made and not hub.files


@pytest.mark.parametrize(("status", "says"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (500, "500")])
def test_a_hub_that_refuses_ends_with_status_four_and_no_token_is_shown(
    made, tmp_path, status, says
):
    with Hub(status) as hub:
        done = push(hub, made, "me/rows", "--despite-contamination", cwd=tmp_path)
    assert done.returncode == 4 and says in done.stderr
    assert "hf_secret" not in done.stderr + done.stdout and done.stderr.count("\n") == 1


def test_a_hub_that_is_not_there_and_a_name_that_is_none(made, tmp_path):
    hub = Hub()
    hub.__enter__()
    hub.__exit__()
    done = push(hub, made, "me/rows", "--despite-contamination", cwd=tmp_path)
    assert done.returncode == 4 and "cannot be reached" in done.stderr
    with Hub() as hub:
        done = push(hub, made, "me/ro ws", "--despite-contamination", cwd=tmp_path)
    assert done.returncode == 2 and "OWNER/NAME" in done.stderr


def test_a_dry_run_shows_the_card_and_sends_nothing(made, tmp_path):
    with Hub() as hub:
        done = push(hub, made, "me/rows", "--dry-run", "--despite-contamination", cwd=tmp_path)
    assert done.returncode == 0 and "# me/rows" in done.stdout
    assert not hub.made


# What is exported trains.


@pytest.mark.parametrize(
    ("method", "format_"), [("sft", "messages"), ("dpo", "preference"), ("kto", "kto")]
)
def test_an_export_trains_with_the_usual_trainer(made, tmp_path, method, format_):
    root = Path(__file__).parent.parent / "examples" / "training"
    data = tmp_path / "d.jsonl"
    assert refloom("export", made, data, "--format", format_, cwd=tmp_path).returncode == 0
    recipe = (root / "recipes" / f"tiny-{method}.toml").read_text()
    recipe = re.sub(r"num_train_epochs = \d+", "max_steps = 4", recipe)
    (tmp_path / "recipe.toml").write_text(recipe)
    done = subprocess.run(
        [sys.executable, root / "train.py", "recipe.toml", "--train", data, "--validation", data,
         "--out", "trained"],
        cwd=tmp_path, env={**env_of({}), "PYTHONWARNINGS": "default", "MPLBACKEND": "agg"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = map(float, re.findall(r"(\d+\.\d+) (?:before|after)", done.stdout))
    assert after < before
    assert (tmp_path / "trained" / "loss.png").stat().st_size > 1000
    if method == "sft":
        (tmp_path / "q.txt").write_text("Why?\n")
        subprocess.run(
            [sys.executable, root / "answer.py", "trained", "q.txt", "a.json", "--max-tokens", "5"],
            cwd=tmp_path, env={**env_of({}), "PYTHONWARNINGS": "default"}, check=True, timeout=120,
        )  # fmt: skip
        (answer,) = json.loads((tmp_path / "a.json").read_text())
        assert set(answer) == {"instruction", "output", "generator"}
        assert (answer["instruction"], answer["generator"]) == ("Why?", "trained")


def test_every_recipe_is_one_that_its_trainer_takes():
    import dataclasses
    import tomllib

    from peft import LoraConfig
    from trl import DPOConfig, KTOConfig, SFTConfig

    configs = {"sft": SFTConfig, "dpo": DPOConfig, "kto": KTOConfig}
    root = Path(__file__).parent.parent / "examples" / "training" / "recipes"
    for path in root.glob("*.toml"):
        recipe = tomllib.loads(path.read_text())
        known = {field.name for field in dataclasses.fields(configs[recipe["method"]])}
        assert set(recipe["training"]) <= known, path
        LoraConfig(**recipe.get("lora", {}))


def test_every_format_is_named_in_the_readme():
    text = (Path(__file__).parent.parent / "README.md").read_text()
    assert all(f"`{name}`" in text for name in FORMATS)
