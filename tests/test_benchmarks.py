"""What the benchmarks reckon, judge and write; what they measure is no matter of tests."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import peers, prose, results, sections
from benchmarks.authors import Sizes, authors, judged_once, per_row, total
from benchmarks.cost_by_part import PARTS, part_of, profiled
from benchmarks.cost_by_part import ROOT as PROFILED_ROOT
from benchmarks.journal import report
from benchmarks.mock_endpoint import made
from benchmarks.own_cost import ratios
from benchmarks.scripted import KnownModel, World, make_references, tagged
from benchmarks.scripted_run import ScriptedRun
from benchmarks.tables import Bar, Row, beside_bars, figure, median, spread, table
from nodes.context import Context
from nodes.criteria import RuleInput, answers_instruction
from nodes.critique import apply_rules
from nodes.judge import Critiqued
from nodes.llm import CallOrigin, make_call
from prompts import render

ROOT = Path(__file__).parent.parent
SIZES = Sizes(60, 600, 50, 500, judge_prompt=900, judge_answer=300)
CHANCES = {"passes": 0.5, "mends": 0.6, "spoils": 0.0}


def run_of(wall: float, cpu: float = 1.0, accepted: int = 1000) -> dict:
    """A repeat of own_cost as results.json keeps it, with a floor of 10 s."""
    own = {"wall_s": 10 * wall, "cpu_s": 3 * cpu, "calls": 3000, "accepted": accepted}
    own |= {"peak_mb": 200.0, "process_wall_s": 10 * wall + 4, "process_cpu_s": 3 * cpu + 3}
    floor = {"wall_s": 10.0, "cpu_s": 1.5, "process_wall_s": 11.0, "process_cpu_s": 2.0}
    return ratios(floor, own) | {"whole": {"floor": floor, "refloom": own}}


def cell_of(in_flight: int, latency_ms: int, *runs: dict) -> dict:
    return {"in_flight": in_flight, "latency_ms": latency_ms, "runs": [*runs]}


def peer(name: str, **more) -> dict:
    """A line of a results.jsonl."""
    row = {"name": name, "n": 1000, "conc": 64, "latency_ms": 200, "rc": 0, "wall_s": 40.0}
    row |= {"samples_s": 25.0, "cpu_s": 42.0, "calls": 3000, "lost": 0, "peak_rss_mb": 100.0}
    row |= {"peak_tree_pss_mb": 90.0, "procs": 1, "ratio_wall": 4.0, "ratio_span": 3.5}
    return row | {"other_cpus": 0.1, "mode": {"schema": 3000}} | more


def kept(**figures) -> dict:
    return {name: results.entry(one, False, None) for name, one in figures.items()}


START = {"help_s": [0.4, 0.3, 0.9], "bare_s": [0.02], "loaded": []}


# Figures and tables


def test_a_cell_cannot_end_its_row():
    assert table(["a"], [["x|y\nz"]]).splitlines()[2] == r"| x\|y z |"


def test_a_median_is_one_of_the_figures():
    assert [median([3, 1, 2]), median([4, 1])] == [2, 1]


@pytest.mark.parametrize(
    ("values", "said"), [([1.234], "1.23"), ([3, 1, 2], "2.00 (1.00 to 3.00)")]
)
def test_a_spread_names_least_and_most_where_there_are_several(values, said):
    assert spread(values) == said


def test_what_was_not_measured_is_a_dash():
    assert [figure(None), figure(12345.6, 0)] == ["–", "12,346"]


# Bars


@pytest.mark.parametrize(
    ("values", "bar", "said"),
    [
        ([1.15], Bar(1.15), "yes"),
        ([1.151], Bar(1.15), "**no**"),
        ([0.95], Bar(0.95, most=False), "yes"),
        ([0.949], Bar(0.95, most=False), "**no**"),
        ([1.1, 1.2, 9], Bar(1.2), "yes"),
        ([], Bar(1), "not measured"),
        ([5], None, "–"),
    ],
)
def test_the_median_is_judged_by_the_bar(values, bar, said):
    assert Row("it", values, bar=bar).judged() == said


def test_small_numbers_reach_no_bar():
    assert Row("it", [0.1], bar=Bar(1.15), enough=False).judged() == "too few to say"


def test_a_figure_stands_beside_its_bar_and_what_was_measured_before():
    row = Row("wall", [1.1, 1.2, 9], "x", bar=Bar(1.15))
    said = beside_bars([row], {"wall": Row("wall", [3, 2, 4])})
    line = "| wall | 1.20 (1.10 to 9.00)x | at most 1.15x | **no** | 3.00 |"
    assert said.splitlines()[-1] == line


# The authors' pipeline


def test_the_authors_calls_are_two_a_reference_one_for_ten_and_two_a_row():
    stages = authors(SIZES, 3, 10, **CHANCES)["stages"]
    calls = {name: stage["calls"] for name, stage in stages.items()}
    assert calls == {"feedback": 6, "propose": 3, "generate": 30, "refine": 30}


def test_eleven_instructions_are_two_calls():
    assert authors(SIZES, 3, 11, **CHANCES)["stages"]["propose"]["calls"] == 6


def test_the_authors_export_everything_as_good_as_one_refinement_makes_it():
    one = authors(SIZES, 3, 10, passes=0.5, mends=0.6, spoils=0.1)
    assert (one["candidates"], one["rows"]) == (30, 30)
    assert one["good"] == pytest.approx(30 * (0.5 * 0.9 + 0.5 * 0.6))


def test_an_authors_draft_reads_the_pair_and_the_instruction():
    one = authors(SIZES, 1, 1, **CHANCES)["stages"]["generate"]
    assert (one["prompt_tokens"], one["completion_tokens"]) == (167 + 60 + 600 + 50, 500)


def test_all_instructions_are_written_however_many_a_call_brings():
    assert authors(SIZES, 2, 15, **CHANCES)["stages"]["propose"]["completion_tokens"] == 1500


def test_a_judge_behind_it_drops_what_it_holds_for_bad():
    one = judged_once(authors(SIZES, 1, 100, **CHANCES), SIZES, errs=0.1)
    assert (one["good"], one["rows"]) == (pytest.approx(72), pytest.approx(72 + 2))
    assert one["stages"]["critique"]["calls"] == 100


def test_per_row_is_of_what_was_exported():
    stages = {"a": {"calls": 6, "prompt_tokens": 30, "completion_tokens": 12}, "b": {"calls": 4}}
    one = {"candidates": 9, "rows": 5, "good": 4, "stages": stages}
    assert total(one, "calls") == 10
    found = per_row(one)
    assert [found[k] for k in ("calls", "calls_a_good", "good_share")] == [2, 2.5, 0.8]
    assert [found[k] for k in ("read", "written", "written_a_good")] == [6, 2.4, 3]


def test_per_row_of_nothing_is_nothing():
    assert set(per_row({"rows": 0, "good": 0, "stages": {}}).values()) == {0.0}


# The model of known quality


def call_of(stage, answer, seed, **said):
    origin, messages = CallOrigin(str(seed)), render(stage, **said)
    return make_call(stage, messages, answer, Context(), origin, text=answer is None)


async def drafts(model: KnownModel, n: int) -> list[str]:
    said = {"plain": True, "reference": None, "criteria": [], "instruction": "Why?"}
    calls = [call_of("generate", None, i, **said) for i in range(n)]
    return [(await model(call)).text or "" for call in calls]


async def verdict_of(model: KnownModel, response: str, seed: int) -> str:
    said = {"history": (), "instruction": "Why?", "response": response}
    call = call_of("critique", Critiqued, seed, criteria=[answers_instruction(None)], **said)
    return json.loads((await model(call)).text)["verdicts"][0]["verdict"]


async def test_drafts_are_good_as_often_as_was_said():
    model = KnownModel(World(0.6), [])
    good = [model.good[text] for text in await drafts(model, 200)]
    assert 100 < sum(good) < 140


async def test_a_plainly_bad_draft_fails_a_rule_and_no_other_does():
    for plain in (1.0, 0.0):
        model = KnownModel(World(0.0, plain=plain), [])
        (text,) = await drafts(model, 1)
        found = {v["criterion_id"]: v["verdict"] for v in apply_rules(RuleInput("Why?", text, ()))}
        assert found["finished"] == ("fail" if plain else "pass")


async def test_a_judge_that_errs_not_knows_and_says_the_same_again():
    model = KnownModel(World(0.5, errs=0.0), [])
    for text in await drafts(model, 20):
        said = [await verdict_of(model, text, seed) for seed in (1, 2)]
        assert said == ["pass" if model.good[text] else "fail"] * 2
    assert set(model.judged.values()) == {2}


async def test_a_judge_that_always_errs_says_the_opposite():
    model = KnownModel(World(0.5, errs=1.0), [])
    for text in await drafts(model, 10):
        assert await verdict_of(model, text, 1) == ("fail" if model.good[text] else "pass")


def test_made_references_are_all_different():
    assert len({row["response"] for row in make_references(50)}) == 50


# The Python mock


def test_the_mock_judges_every_criterion_on_words_of_the_response():
    said = {"history": (), "instruction": "Why?", "response": "So it is."}
    call = call_of("critique", Critiqued, 1, criteria=[answers_instruction(None)], **said)
    prompt = call.messages[-1]["content"]
    (found,) = made(Critiqued.model_json_schema(), prompt)["verdicts"]
    assert (found["criterion_id"], found["verdict"]) == ("answers-instruction", "pass")
    assert tagged(prompt, "response")[-1] == found["evidence"]


def test_the_mock_gives_as_many_instructions_as_were_asked_for():
    schema = {"properties": {"instructions": {"type": "array", "items": {"type": "string"}}}}
    assert len(set(made(schema, "Asked for: 7 instructions.")["instructions"])) == 7


# The journal's ratios


def test_the_journal_is_compared_with_both_plain_ways():
    said = report({"commit_a_row": [90, 100, 700], "waiters_64": [500], "one_transaction": [1000]})
    assert said["to_commit_a_row"]["waiters_64"] == 5
    assert said["to_one_transaction"]["waiters_64"] == 0.5


# Sections


def test_an_endpoint_that_answers_at_once_has_no_bar():
    cells = [cell_of(64, 0, run_of(5)), cell_of(64, 200, run_of(1.1))]
    rows = sections.own_cost({"n": 1000, "cells": cells})
    assert {row.what for row in rows if row.bar} == {
        "64 in flight, 200 ms: wall to floor",
        "64 in flight, 200 ms: CPU to floor",
    }


def test_cost_by_part_is_a_figure_a_part():
    figures = {"n": 1000, "cells": [], "parts_ms": {"graph": 0.25}}
    (row,) = sections.own_cost(figures)
    assert (row.what, row.values) == ("CPU a call: graph", [0.25])


@pytest.mark.parametrize(("loaded", "said"), [([], "yes"), (["torch"], "**no**")])
def test_a_heavy_import_is_judged(loaded, said):
    *_, last = sections.start(START | {"loaded": loaded})
    assert last.judged() == said


@pytest.mark.parametrize(("samples", "said"), [(10_000, "too few to say"), (100_000, "yes")])
def test_memory_is_judged_at_100_000_samples_only(samples, said):
    run = {"samples": samples, "over_start_mb": 299.0, "seconds": 9, "cpu_ms_per_call": 1}
    run |= dict.fromkeys(("first_tenth_per_s", "last_tenth_per_s"), 100)
    run |= dict.fromkeys(("before_mb", "start_mb", "peak_mb"), 300)
    assert [r.judged() for r in sections.memory({"runs": [run]}) if r.bar] == [said, said]


def test_novelty_is_judged_by_its_ratio_and_its_growth():
    few, many = {"n": 10_000, "cpu_s": 1.0}, {"n": 100_000, "cpu_s": 40.0}
    figures = {"filter": few, "big": many, "every_pair_cpu_s": 6.0, "exact": True}
    for one in (few, many):
        one |= {"kept": 1, "added_mb": 1}
    judged = [row.judged() for row in sections.novelty(figures)][:3]
    assert judged == ["yes", "**no**", "yes"]


# Peers


def test_only_runs_beside_a_floor_are_read(tmp_path):
    path = tmp_path / "results.jsonl"
    alone = {k: v for k, v in peer("curator").items() if k != "ratio_wall"}
    rows = [peer("langgraph"), peer("floor_aiohttp"), alone]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (row,) = peers.read(path)
    assert row["name"] == "langgraph"
    assert "mode" not in row


def test_a_line_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("{}\nno\n")
    with pytest.raises(SystemExit, match=r"results\.jsonl, line 2"):
        peers.read(path)


def test_the_least_disturbed_run_that_ended_well_is_shown():
    rows = [peer("a", other_cpus=0.5), peer("a", other_cpus=0.2, lost=1), peer("a", rc=1)]
    assert [row["lost"] for row in peers.best(rows)] == [1]


def test_memory_of_several_processes_is_that_of_all():
    assert peers.figures_of(peer("a", procs=3))["peak_mb"] == 90
    assert peers.figures_of(peer("a"))["peak_mb"] == 100


def test_calls_that_were_never_made_cost_nothing_that_can_be_said():
    assert peers.figures_of(peer("a", calls=0))["cpu_ms"] is None


def test_versions_are_those_installed(tmp_path):
    packages = tmp_path / "venvs" / "sdghub" / "lib" / "python3.11" / "site-packages"
    (packages / "sdg_hub-0.9.2.dist-info").mkdir(parents=True)
    assert peers.versions(tmp_path) == {"sdghub": "0.9.2"}
    found = {"rows": [peer("sdghub")], "versions": peers.versions(tmp_path)}
    assert "| SDG Hub (0.9.2) |" in sections.beside_peers(found, {})


def test_refloom_stands_beside_its_peers_with_its_start_up():
    own = cell_of(64, 200, run_of(1.1, accepted=999)) | {"n": 1000}
    before = {"rows": [peer("langgraph", cpu_s=60.0)]}
    said = sections.beside_peers({"rows": [peer("langgraph")], "own": [own]}, before)
    first, second = said.splitlines()[-2:]
    assert first == "| **refloom** | 1.36 | 1.10 | 2.00 | – | 66.6 | 200 | 1 |"
    assert second == "| LangGraph + ChatOpenAI | 4.00 | 3.50 | 14.00 | 20.00 | 25.0 | 100 | 0 |"


def test_every_cell_of_the_peers_has_a_table():
    rows = [peer("curator", n=n, conc=conc) for n in (1000, 5000) for conc in (64, 256)]
    assert peers.cells(rows) == [(n, c, 200) for n in (1000, 5000) for c in (64, 256)]
    assert sections.beside_peers({"rows": rows}, {}).count("**") == 8


# results.json and RESULTS.md


def test_no_text_holds_no_figures():
    assert results.load("") == {}


@pytest.mark.parametrize("text", ["{", "[]"])
def test_damaged_figures_are_refused(text):
    with pytest.raises(SystemExit, match=r"results\.json"):
        results.load(text)


def test_a_part_run_alone_changes_its_own_section(tmp_path):
    given = argparse.Namespace(results=tmp_path / "r.json", table=tmp_path / "R.md", quick=True)
    given.table.write_text(f"# Mine\n\n{results.BEGIN}\nold\n{results.END}\n\nBelow.\n")
    own = {"n": 1000, "cells": [cell_of(64, 200, run_of(1.1))]}
    results.keep("own_cost", results.entry(own, False, "python"), given)
    before = given.table.read_text()
    results.keep("start", results.entry(START, True, None), given)
    after = given.table.read_text()
    assert set(results.load(given.results.read_text())) == {"own_cost", "start"}
    assert after.startswith("# Mine\n") and after.endswith(f"{results.END}\n\nBelow.\n")
    section = before.split("## Own cost")[1].split(results.END)[0].strip()
    assert section in after and "old" not in after
    assert "Python mock" in section and results.QUICK not in section
    assert results.QUICK in after.split("## Start-up")[1]


def test_texts_that_were_measured_on_are_named(tmp_path):
    args = argparse.Namespace(results=tmp_path / "r.json", table=tmp_path / "R.md", quick=True)
    results.keep("start", results.entry(START, True, None, [tmp_path / "pairs.jsonl"]), args)
    assert "--only start --texts pairs.jsonl`" in args.table.read_text()


def test_figures_of_another_version_cost_their_own_section_only():
    said = results.written("", kept(own_cost={"n": 1000}, start=START), {})
    assert results.OLDER in said.split("## Start-up")[0]
    assert "`refloom --help`" in said.split("## Start-up")[1]


def test_figures_of_before_that_cannot_be_read_are_dashes():
    said = results.written("", kept(start=START), {"start": {"figures": {"older": 1}}})
    assert said.count("| – |\n") == 3


def test_a_new_table_has_a_heading():
    assert results.written("", kept(start=START), {}).startswith("# Results\n")


def test_a_table_without_a_place_for_figures_gets_one_at_its_end():
    said = results.written("# Mine\n", kept(start=START), {})
    assert said.startswith(f"# Mine\n\n{results.BEGIN}\n")


def asked(**more) -> argparse.Namespace:
    plain = {"only": None, "peers": None, "peer_results": None}
    return argparse.Namespace(**plain | more)


def test_parts_come_in_the_order_of_the_suite():
    assert results.parts_of(asked(only="calls,start")) == ["start", "calls"]
    assert results.parts_of(asked(peer_results=Path("x")))[-1] == "peers"
    assert "peers" not in results.parts_of(asked())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"only": "call"}, "there is no call"),
        ({"only": "peers"}, "--peer-results"),
    ],
)
def test_what_cannot_be_run_is_refused(more, said):
    with pytest.raises(SystemExit, match=said):
        results.parts_of(asked(**more))


def test_the_machine_is_described_without_its_name():
    import platform

    said = results.machine()
    assert said["cores"] and said["python"] == platform.python_version()
    assert platform.node() not in json.dumps(said)


# A run like a real one


def test_made_up_prose_has_natural_lengths():
    pairs = prose.make_pairs(50)
    assert len({pair["instruction"] for pair in pairs}) == 50
    for pair in pairs:
        assert 10 <= len(pair["instruction"].split()) <= 60
        assert 80 <= len(pair["response"].split()) <= 520
    assert any("```" in pair["response"] for pair in pairs)
    assert prose.make_pairs(2) == pairs[:2]


def shape_of(name: str, **more) -> dict:
    return {"properties": {name: {}, **more}}


def test_a_scripted_run_knows_a_reference_from_its_spoiled_forms():
    say = ScriptedRun()
    pair = "<instruction>\nWhy?\n</instruction>\n<response>\n{}\n</response>"
    say(pair.format("So it is."), shape_of("characteristics"))

    def verdict(response: str) -> str:
        prompt = '<criterion id="a">\nIt is.\n</criterion>\n' + pair.format(response)
        (found,) = json.loads(say(prompt, shape_of("verdicts")))["verdicts"]
        return found["verdict"]

    assert [verdict("So it is."), verdict("So is it.")] == ["pass", "fail"]


def test_a_scripted_run_proposes_as_many_as_were_asked_for_and_some_alike():
    prompt = "Asked for: 50 instructions, each new."
    said = json.loads(ScriptedRun()(prompt, shape_of("instructions")))["instructions"]
    assert len(said) == 50
    beginnings = [" ".join(text.split()[6:10]) for text in said]
    assert len(set(beginnings)) < 50


@pytest.mark.parametrize(
    ("file", "part"),
    [
        (f"{PROFILED_ROOT}/memory/novelty.py", "novelty"),
        (f"{PROFILED_ROOT}/nodes/llm/endpoint.py", "http"),
        (f"{PROFILED_ROOT}/nodes/begin.py", "nodes"),
        ("/any/lib/python3.11/site-packages/langgraph/pregel/main.py", "graph"),
        ("/any/lib/python3.11/site-packages/pydantic/main.py", None),
        ("/any/lib/python3.11/asyncio/events.py", "event loop"),
        ("<string>", None),
    ],
)
def test_a_file_belongs_to_a_part(file, part):
    assert part_of(file) == part


def test_every_module_that_a_part_names_is_there():
    rooms = ("graph/", "nodes/", "memory/", "prompts/", "refloom/")
    named = [one for prefixes in PARTS.values() for one in prefixes if one.startswith(rooms)]
    assert len(named) > 20
    assert [one for one in named if not [*ROOT.glob(f"{one}*")]] == []


def test_a_profile_gives_the_time_to_who_spent_it():
    import time

    with profiled() as profile:
        begun = time.process_time()
        while time.process_time() - begun < 0.3:
            prose.make_pairs(2)
    spent = profile.table_ms(1)
    assert sum(spent.values()) > 150
    assert max(spent, key=spent.__getitem__) == "other"


# A part as a process


def test_the_calls_part_runs_and_its_early_ends_are_free(tmp_path):
    command = [sys.executable, "benchmarks/results.py", "--quick", "--only", "calls"]
    command += ["--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "results.json").read_text())
    (one,) = kept["calls"]["figures"]["qualities"]
    own, theirs = one["pipelines"]["refloom"], one["pipelines"]["authors"]
    early = own["early"]
    assert early["drafts"] == own["candidates"] == theirs["rows"] == 20
    assert early["judge_calls_on_them"] == early["refinements_of_them"] == 0
    assert early["passed_at_once"] > 0
    # Each of two references has its own response and three spoiled ones judged once.
    assert own["stages"]["trial"]["calls"] == 8
    assert own["stages"]["critique"]["calls"] == early["judge_calls"]
    assert own["per_row"]["good_share"] > one["world"]["passes"]
    assert "## Calls and tokens a row" in (tmp_path / "RESULTS.md").read_text()


def test_the_program_that_others_measure_with_gives_its_figures(tmp_path):
    endpoint = [sys.executable, "benchmarks/mock_endpoint.py", "--latency-ms", "0"]
    with subprocess.Popen(endpoint, cwd=ROOT, stdout=subprocess.PIPE, text=True) as mock:
        try:
            assert mock.stdout is not None
            url = mock.stdout.readline().split()[-1] + "/v1"
            command = [sys.executable, "benchmarks/own_cost.py", "--endpoint", url, "--json"]
            command += ["--n", "6", "--in-flight", "4", "--out", str(tmp_path)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        finally:
            mock.terminate()
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    names = {"wall_ratio", "cpu_ratio", "cpu_ms_per_call", "samples_per_s", "peak_mb", "calls"}
    assert measured.keys() == names
    assert measured["calls"] == 18
    written = json.loads((tmp_path / "own_cost.json").read_text())
    assert written["floor"]["cpu_s"] > 0 < written["refloom"]["cpu_s"]


def test_a_run_like_a_real_one_does_all_of_it(tmp_path):
    command = [sys.executable, "benchmarks/real_run.py", "--n", "20", "--latency-ms", "0", "--json"]
    command += ["--no-embeddings", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    stages = {"extract", "propose", "screen", "generate", "critique", "refine"}
    assert stages <= said["by_stage"].keys()
    assert said["accepted"] > 10 and said["failed"] == 0
    assert sum(said["parts_ms"].values()) > 0 < said["cpu_ratio"]
    lines = (tmp_path / "floor.jsonl").read_text().splitlines()
    assert len(lines) == pytest.approx(said["calls"], rel=0.05)


def test_the_bars_are_those_of_the_design():
    assert {k: bar.limit for k, bar in sections.WALL.items()} == {64: 1.12, 256: 1.8}
    one_core = (sections.CPU, sections.REAL_CPU, sections.START, sections.GROWTH)
    assert [bar.limit for bar in one_core] == [5, 8, 12, 1.5]


def test_files_of_the_repository_that_benchmarks_name_are_there():
    joined = re.compile(r'ROOT((?: / "[^"]+")+)')
    texts = [path.read_text("utf-8") for path in sorted((ROOT / "benchmarks").glob("*.py"))]
    named = {
        ROOT.joinpath(*re.findall(r'"([^"]+)"', parts))
        for text in texts
        for parts in joined.findall(text)
    }
    assert ROOT / "refloom/resources/demo/references.jsonl" in named
    assert [path for path in named if not path.exists()] == []
