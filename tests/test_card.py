"""The data-set card, the licence that follows from the references', and putting both on the hub."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from fakes import Endpoint, words
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment
from langgraph.graph import StateGraph
from processes import refloom

from refloom.data.card import escape_markdown, render_card
from refloom.data.licenses import combine_licenses, parse_license
from refloom.data.read import ReadReport
from refloom.data.record_stats import (
    INSTRUCTION_SAMPLE,
    MAX_HITS,
    RecordStats,
    collect_stats,
    measure_diversity,
    quantiles,
)
from refloom.runs.journal import open_read_only
from refloom.runs.outputs import card_text
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
        ("https://creativecommons.org/licenses/by-nc/4.0/", "cc-by-nc-4.0"),
        ("CC BY–NC4.0", "cc-by-nc-4.0"),
        ("GNU General Public License v3", "gpl-3.0"),
        ("permitted for all", None),
        ("my own words", None),
    ],
)
def test_a_licence_is_known_by_its_usual_names(text, id_):
    assert parse_license(text).id == id_


@pytest.mark.parametrize(
    ("counts", "id_", "says"),
    [
        ({"CC BY-NC 4.0": 5, "MIT": 2}, "cc-by-nc-4.0", "may not be used for money"),
        ({"CC BY-NC 4.0": 5, "CC BY-NC-SA": 1}, "cc-by-nc-sa-4.0", "under the same licence"),
        ({"CC BY-SA 3.0": 1, "CC BY-SA 4.0": 2, "CC BY": 3}, "cc-by-sa-4.0", "therefore"),
        ({"CC BY-NC 4.0": 1, "not stated": 8}, "cc-by-nc-4.0", "Without a licence that"),
        ({"CC BY-SA 4.0": 1, "CC BY-NC 4.0": 3}, "other", "No single licence"),
        ({"CC BY-SA 4.0": 1, "GPL-3.0": 3}, "other", "No single licence"),
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
    found = combine_licenses(counts)
    assert found.id == id_
    assert says in " ".join(found.notes)
    assert (found.name is not None) == (id_ == "other")


ODD = [
    "CC BY 4.0 and CC BY-NC 4.0", "CC BY 4.0; GPL-3.0", "CC-BY 4.0 (answers: NonCommercial)",
    "MIT (non-commercial use only)", "MIT, all rights reserved", "not MIT", "research only",
    "nur mit Genehmigung", "Apache-2.0 with Commons Clause", "Public domain except answers",
    "CC BY-SA 2.0", "bsd-4-clause", "MIT License, found " + "somewhere " * 15 + "CC BY-ND",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_a_licence_with_anything_beside_its_name_allows_nothing(text):
    assert parse_license(text).id is None and "unknown" in parse_license(text).terms
    assert combine_licenses({text: 3}).id in ("other", "unknown")
    for known in ("MIT", "CC BY-SA 4.0"):
        assert combine_licenses({text: 3, known: 1}).id in ("other", "unknown")
    found = combine_licenses({text: 1, "CC BY-NC 4.0": 1})
    assert found.id == "other" or ("-nc" in found.id and "Without a licence" in str(found.notes))


LICENCES = ["CC BY 4.0", "CC BY-SA 4.0", "CC BY-NC 4.0", "CC BY-NC-SA 3.0", "MIT", "GPL-3.0", "x"]


@given(st.dictionaries(st.sampled_from(LICENCES), st.integers(1, 9)))
def test_no_outcome_allows_more_than_a_reference_does(counts):
    found = combine_licenses(counts)
    terms = set().union(*(parse_license(text).terms for text in counts)) - {"unknown"}
    if found.id not in ("other", "unknown"):
        assert terms & {"nc", "sa"} <= set(parse_license(found.id).terms)


@given(st.text(max_size=60))
def test_no_text_becomes_markup(text):
    said = escape_markdown(text)
    assert "\n" not in said and "<" not in said and "://" not in said
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_|\[\]]", said)


def test_seeds_and_what_goes_into_requests_show_in_no_card_but_seeds_licences_do(tmp_path):
    """Words of the seeds may be in the rows; a key may be in `extra_body`."""
    folder = tmp_path
    (folder / "r.jsonl").write_text(
        json.dumps({"instruction": "Why?", "response": words("a", 30) + ".", "license": "MIT"})
    )
    seed = {"instruction": "How `far` is $(it)?", "license": "CC BY-NC-ND 4.0"}
    (folder / "s.jsonl").write_text(json.dumps(seed))
    (folder / "c.toml").write_text(
        '[stages.generate]\nextra_body = {api_key = "sk-hidden", user = "/home/me", top_k = 3}\n'
    )
    with Endpoint() as endpoint:
        done = refloom(
            "run", "--references", "r.jsonl", "--seeds", "s.jsonl", "--out", "run", "--model", "m",
            "--base-url", endpoint.url, "--answer-seeds", "--config", "c.toml",
            "--license", "MIT`$(touch PWNED)`x", cwd=folder,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert endpoint.bodies[-2]["api_key"] == "sk-hidden"
    text = (folder / "run" / "README.md").read_text()
    assert "license: other" in text and "CC BY-NC-ND 4.0" in text
    assert "taken as they are" in text and "were proposed" not in text
    assert "/home/me" not in text
    kept = b"".join(p.read_bytes() for p in (folder / "run").rglob("*") if p.is_file())
    assert b"sk-hidden" not in kept
    command = text.split("How to make it again")[1].split("With the same")[0]
    printed = re.search(r"^(`+)\n(.*)\n\1$", command, re.MULTILINE)[2]
    assert "MIT`$(touch PWNED)`x" in shlex.split(printed)


JUDGED = "Every response in it was judged, criterion by criterion"
METHOD = "made by **reference-level feedback**"
TAG = "- refloom - reference-level-feedback"
WAYS = {
    "reference": (
        ["--feedback", "reference"],
        [METHOD, JUDGED, "was extracted as criteria", "judged, and refined until it passed",
         "| judge | m (the same model), by written verdicts |", "proposed from references",
         "The model judged its own writing", "A judge model's verdicts",
         TAG],
        ["No model judged", "comparison arm"],
    ),
    "generic": (
        ["--feedback", "generic"],
        [JUDGED, "one fixed checklist", "judged, and refined until it passed", "| judge |",
         "comparison arm", "The model judged its own writing"],
        [METHOD, TAG, "No model judged", "extracted as criteria", "proposed from references"],
    ),
    "swapped": (
        ["--feedback", "swapped"],
        [JUDGED, "extracted from other references", "judged, and refined until it passed",
         "| judge |", "comparison arm", "proposed from references"],
        [METHOD, TAG, "No model judged", "what makes them good"],
    ),
    "sample": (
        ["--feedback", "sample"],
        ["No model judged", "a model's feedback on the draft itself", "refined at most once",
         "| feedback by | m (the same model) |", "comparison arm",
         "The model gave feedback on its own writing", "All of them are rules"],
        [METHOD, TAG, JUDGED, "| judge |", "until it passed", "extracted as criteria",
         "The model judged", "judge model's verdicts", "proposed from references"],
    ),
    "none": (
        ["--feedback", "none"],
        ["No model judged", "was written once", "comparison arm", "All of them are rules"],
        [METHOD, TAG, JUDGED, "| judge |", "feedback by", "until it passed",
         "extracted as criteria", "refined",
         "its own writing", "judge model's verdicts", "proposed from references"],
    ),
    "refed": (
        ["--preset", "refed", "--per-seed", 2],
        [METHOD, TAG, "No model judged",
         "feedback on the instruction and on the response of the first",
         "proposed from that feedback", "refined at most once",
         "| feedback by | m (the same model) |", "| pipeline | refed |", "as its authors ran it",
         "All of them are rules"],
        [JUDGED, "| judge |", "until it passed", "extracted as criteria", "comparison arm",
         "its own writing", "judge model's verdicts", "proposed from references",
         "compared with all", "too near"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_card_tells_each_arm_and_pipeline_as_it_is(tmp_path, way):
    flags, says, not_said = WAYS[way]
    rows = [{"instruction": f"Why {i}?", "response": words(f"a{i}", 30) + "."} for i in range(5)]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with Endpoint() as endpoint:
        done = refloom(
            "run", "--references", "r.jsonl", "--out", "run", "--model", "m", "--base-url",
            endpoint.url, *flags, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run" / "README.md").read_text()
    # The settings and the citation are the same words in every card.
    told = " ".join(text.split("All settings:")[0].split())
    for wanted in says:
        assert " ".join(wanted.split()) in told, wanted
    for unwanted in not_said:
        assert unwanted not in told, unwanted


def test_criteria_that_were_not_tried_are_not_said_to_be(tmp_path):
    row = {"instruction": "Why?", "response": words("a", 30) + "."}
    (tmp_path / "r.jsonl").write_text(json.dumps(row))
    with Endpoint() as endpoint:
        refloom(
            "run", "--references", "r.jsonl", "--out", "run", "--model", "m", "--base-url",
            endpoint.url, "--no-try-criteria", cwd=tmp_path,
        )  # fmt: skip
    text = (tmp_path / "run" / "README.md").read_text()
    assert "were not tried on their references" in text
    assert "criteria that are tried" not in " ".join(text.split())


# Statistics of records.


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
    stats = collect_stats(json.dumps(record(i)) for i in range(10))
    rule, extracted = stats.top_criteria(5)
    assert (rule.text, rule.last["pass"]) == ("is not empty", 10)
    assert (extracted.text, extracted.first["pass"], extracted.last["pass"]) == (
        "gives reasons",
        5,
        10,
    )
    assert stats.attempts == {1: 5, 2: 5}
    assert len(stats.responses) == 10 and quantiles(stats.responses) == (3, 3, 3)
    assert quantiles([]) is None


def test_the_sample_does_not_depend_on_the_order_and_does_not_grow():
    made = [record(i) for i in range(INSTRUCTION_SAMPLE + 200)]
    there, back = RecordStats(), RecordStats()
    for one, other in zip(made, reversed(made), strict=True):
        there.add(one)
        back.add(other)
    assert there.sample.items() == back.sample.items()
    assert len(there.sample.items()) == INSTRUCTION_SAMPLE


def test_contaminated_samples_are_all_counted_and_some_are_named():
    found = {"criterion_id": "not-contaminated", "verdict": "fail", "reason": "It holds x, row 3."}
    hit = {"response": "", "verdicts": [{**found, "evidence": ""}]}
    stats = RecordStats()
    for i in range(MAX_HITS + 5):
        stats.add(record(i, status="rejected", reason="contaminated", attempts=[hit]))
    assert stats.reasons == {"contaminated": MAX_HITS + 5}
    assert len(stats.hits) == MAX_HITS and stats.hits[0] == ("s0", "It holds x, row 3.")


def test_diversity_of_few_texts():
    assert measure_diversity([])[:2] == (0, None)
    assert measure_diversity(["a b"]) == (1, None, None, 1.0)
    same = measure_diversity(["why two tides"] * 3)
    assert (same.pairwise, same.nearest, same.distinct_2) == (1.0, 1.0, 0.333)
    # LCS of 2 in 3 and 4 words: 2 * 2 / 7.
    assert measure_diversity(["a b c", "a x b y"]).pairwise == 0.571


# The card of a run.


def test_a_run_leaves_a_card_that_says_what_it_is(made):
    text = (made / "README.md").read_text()
    said = json.loads((made / "run.json").read_text())
    assert f"\n{said['counts']['accepted']} pairs of an instruction" in text
    assert "license: cc-by-nc-4.0\n" in text.split("---")[1]
    assert "**cc-by-nc-4.0**: not for commercial use" in text
    assert "Under CC BY-NC 4.0: 10." in text
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


def run_json(**more) -> dict:
    """What run.json says of a run that was interrupted before its first row."""
    return {
        "status": "interrupted", "fingerprint": "f", "prompts": {}, "written": "", "stopped": None,
        "settings": {**Settings(**{"model": "local", **more}).redacted()},
        "versions": {"refloom": "0"},
        "counts": dict.fromkeys(
            ("seeds", "references", "accepted", "rejected", "failed", "pending", "duplicates",
             "contaminated"), 0
        ),
        "reading": {
            n: ReadReport("x.jsonl").as_json() for n in ("references", "seeds", "benchmarks")
        },
        "criteria": dict.fromkeys(("proposed", "earned", "demoted", "dropped"), 0),
        "calls": {"paid": 0, "by_stage": {}}, "cost_usd": 0.0,
        "usage": dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens"), 0),
    }  # fmt: skip


def test_only_the_first_card_of_a_process_compiles_its_template_and_draws_the_graph(
    made, monkeypatch
):
    """Each decision of a reviewer writes the card anew, and each arm of an experiment has one."""
    compiled = []
    for kind in (Environment, StateGraph):
        compile_ = kind.compile
        monkeypatch.setattr(
            kind, "compile", lambda *a, _do=compile_, **k: (compiled.append(a), _do(*a, **k))[1]
        )
    found = json.loads((made / "run.json").read_text())
    cards = []
    with open_read_only(made / "journal.sqlite") as journal:
        for _ in range(2):
            del compiled[:]
            cards.append(card_text(journal, found))
    assert compiled == []
    assert cards[0] == cards[1]
    assert "graph TD;" in cards[0]


def test_the_card_of_a_run_without_benchmarks_or_rows_says_so():
    text = render_card(run_json(), RecordStats(), "graph TD;")
    assert "**Not compared with any benchmark.**" in text
    assert "The run is **interrupted**" in text
    assert "not worth training on" in text and "license: unknown" in text


def test_the_card_says_that_a_person_may_have_decided_against_the_judge():
    stats = RecordStats()
    assert "except where a person decided" not in render_card(run_json(), stats, "graph TD;")
    stats.add(record(0, review={"decision": "edit"}))
    text = render_card(run_json(), stats, "graph TD;")
    assert "met all criteria that are a must, except where a person decided" in text
    assert "1 edited by a person" in text


def test_the_card_says_how_reasoning_was_made_and_how_many_rows_have_it():
    plain = render_card(run_json(), RecordStats(), "graph TD;")
    assert "answered again" not in plain and "have reasoning" not in plain
    stats = RecordStats()
    answers = [{"response": "So.", "verdicts": []}]
    talk = [{"stage": "answer", "kind": "prompt_talk"}]
    stats.add(record(0, reasoning="Hm.", answers=answers, answer_errors=[]))
    stats.add(record(1, reasoning=None, answers=answers * 3, answer_errors=talk))
    stats.add(record(2))
    run = run_json(reasoning=True)
    run["counts"]["accepted"] = 3
    text = render_card(run, stats, "graph TD;")
    assert "**1 of 3 rows\nhave reasoning**" in text
    assert "The thoughts of 1 spoke of a prompt" in text
    assert "need not be how it came to its answer" in text
    assert "without thoughts" not in text
    assert "--reasoning" in text.split("## How to make it again")[1]


def test_instructions_that_were_not_compared_are_not_said_to_be():
    assert "compared with all others" in render_card(run_json(), RecordStats(), "graph TD;")
    text = render_card(run_json(novelty_threshold=1.0), RecordStats(), "graph TD;")
    assert "compared with all others" not in text
    assert "Instructions were not compared with each other" in text


def test_only_models_whose_answers_are_in_the_rows_or_chose_them_are_named():
    models = {"model": "writer", "judge_model": "another"}
    text = render_card(run_json(**models), RecordStats(), "graph TD;")
    assert "The terms of the models (writer, another)" in text
    text = render_card(run_json(feedback="none", **models), RecordStats(), "graph TD;")
    assert "The terms of the models (writer)" in text
