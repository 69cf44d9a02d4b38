"""What report and card say of screened instructions, of seeds without a row, and of trials."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from browser import ARGUMENTS, CHROMIUM
from fakes import Endpoint, ScriptedModel, letters, prompt_of, screened, tagged, verdicts, words
from processes import refloom
from reviewing import run_for_review
from runs import finish_run, references, rows

from nodes.decisions import ReviewDecision
from nodes.screening import ANSWERABLE_ID, BUILT_IN_IDS, REQUEST_ID
from refloom.data.record_stats import collect_stats
from refloom.evaluation.report import report
from refloom.evaluation.report.collect import collect_run
from refloom.evaluation.report.reviews import review_section
from refloom.evaluation.report.screening import screening_section
from refloom.evaluation.report.tables import trial_table
from refloom.evaluation.stats import proportion
from refloom.runs.review_queue import ReviewQueue

DATA = Path(__file__).parent / "data"
MARKUP = "<script>window.owned = 1</script> {{ 7 * 7 }}"
OWN = {r["instruction"] for r in references()}


def held(count: int = 3) -> ScriptedModel:
    """The first proposals of each seed are vague, and one seed's others are too."""

    def propose(call):
        prompt = prompt_of(call)
        first, seed = "These are taken" not in prompt, tagged(prompt, "seed")[-1]
        vague = f" vague {MARKUP}" if first or "hopeless" in seed else ""
        return {
            "instructions": [
                f"What is {words(f'{seed} {call.seed} {i}', 8)}{vague}?" for i in range(count)
            ]
        }

    def extract(call):
        (reference,) = tagged(prompt_of(call), "instruction")
        (response,) = tagged(prompt_of(call), "response")
        quality = {"text": "gives a reason for every claim", "must": True}
        of_instruction = {"text": "states the situation that it is for", "must": False}
        return {
            "subject_areas": ["geology"],
            "relevant_skills": ["explaining"],
            "characteristics": [{**quality, "quote": " ".join(response.split()[:5])}],
            "instruction_characteristics": [
                {**of_instruction, "quote": " ".join(reference.split()[:5])}
            ],
        }

    def screen(call):
        def verdict(id_, text):
            if id_ in BUILT_IN_IDS:
                return "fail" if "vague" in text and id_ == ANSWERABLE_ID else "pass"
            return "pass" if text in OWN or text.startswith("What") else "fail"

        return screened(prompt_of(call), verdict)

    return ScriptedModel(propose=propose, screen=screen, extract=extract)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    import asyncio

    out = tmp_path_factory.mktemp("screened")
    seeds = [f"{words('one', 7)} hopeful", f"{words('two', 7)} hopeless"]
    asyncio.run(finish_run(out, held(), seeds, screen=True, try_criteria=True, per_seed=3))
    return out


async def page_of(*directories: Path) -> str:
    place = await report(directories, embed=letters)
    return place.read_text(encoding="utf-8")


def seen(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.split("</style>")[1]).split())


def test_the_section_counts_what_was_proposed_and_dropped_and_by_which_criterion(run_dir):
    run = collect_run("run", run_dir)
    found = screening_section(run.screening, run.run_json)
    assert (found["proposed"], found["candidates"]) == (12, 3)
    assert found["reasons"] == [("failed its criteria", 9, proportion(9, 12))]
    line = found["criteria"][0]
    assert line.text.startswith("can be answered in text") and line.must
    assert (line.verdicts["fail"], line.failed) == (9, proportion(9, 12))
    assert len(line.examples) == 2
    assert all(MARKUP in text and why == f"about {ANSWERABLE_ID}" for text, why in line.examples)
    others = {one.text: one for one in found["criteria"][1:]}
    own = others["states the situation that it is for"]
    assert (own.must, own.verdicts["fail"], own.judged_by) == (False, 0, "judge, from references")
    outcomes = found["outcomes"]
    assert outcomes["proposed"] == outcomes["earned"] == 3 and outcomes["dropped"] == 0
    assert found["seeds_without_rows"] == 1
    (seed,) = found["seeds"]
    assert (seed["rows"], seed["screened"]) == (0, 6)


def test_trials_stand_in_rows_and_are_added_up_by_criterion(run_dir):
    lines, more = trial_table(collect_run("run", run_dir))
    assert more == 0
    by_kind = {line.of: line for line in lines}
    # Of the references' criteria with the same words each row has one.
    of_response, of_instruction = by_kind["response"], by_kind["instruction"]
    assert (of_response.own, of_response.references) == (1, 1)
    assert of_response.spoiled == {"cut": 1, "shuffled": 1, "another": 1}
    assert (of_instruction.own, of_instruction.references) == (1, 1)
    assert of_instruction.spoiled["first_clause"] == 0
    (row, *_) = rows(run_dir, "accepted")
    other = json.loads(json.dumps(row))
    (tried,) = [c for c in other["criteria"] if c["trial"]]
    tried |= {"id": "of another reference", "trial": {"references": 2, "own": 1, "spoiled": {}}}
    # One that several rows have is counted once.
    stats = collect_stats(map(json.dumps, (row, row, other)))
    added = stats.trials["response", tried["text"]]
    assert (added.references, added.own, dict(added.spoiled)) == (
        3,
        2,
        {"cut": 1, "shuffled": 1, "another": 1},
    )


async def test_the_page_shows_the_section_with_all_of_it_escaped(run_dir):
    page = await page_of(run_dir)
    text = seen(page)
    assert "Screening of instructions" in text and 'href="#screening"' in page
    assert "12 proposed, 3 became candidates, 9 dropped" in text
    assert "such as" in text and "&lt;script&gt;window.owned" in page
    assert "<script>" not in page and "49" not in re.findall(r"vague [^?]*\?", text)[0]
    assert "Seeds that left no row 1" in text
    assert "3 earned their place in their trial" in text
    assert "The instruction states the situation that it is for 1 of 1" in text
    assert "screened instructions, dropped before 9" in text
    assert "marked as wrong" not in text


async def test_two_runs_each_have_their_section_and_a_run_without_one_has_none(run_dir, tmp_path):
    await finish_run(tmp_path / "plain", ScriptedModel(), screen=False)
    assert "Screening of instructions" not in await page_of(tmp_path / "plain")
    both = await page_of(run_dir, tmp_path / "plain")
    assert both.count("became candidates") == 1


@pytest.mark.parametrize("name", ["half_done_run", "finished_run"])
async def test_a_run_of_an_earlier_version_has_no_section_and_no_trial(tmp_path, name):
    shutil.copytree(DATA / name / "out", tmp_path / "out")
    page = await page_of(tmp_path / "out")
    assert "Screening" not in page and "<h3>Trial</h3>" not in page
    assert "screened" not in seen(page)


async def test_a_criterion_that_a_reviewer_marked_as_wrong_is_counted_for_it(tmp_path):
    model = ScriptedModel(critique=lambda call: verdicts(prompt_of(call)))
    await run_for_review(tmp_path, model, screen=True)
    queue = ReviewQueue(tmp_path)
    for entry in queue.queue()["items"]:
        sample = queue.item(entry["id"])["sample"]
        wrong = [sample["criteria"][0]["id"], REQUEST_ID]
        queue.decide(entry["id"], ReviewDecision(decision="accept"), wrong_criteria=wrong)
    text = seen(await page_of(tmp_path))
    assert text.count("marked as wrong by a reviewer: 3") == 2


async def test_verdicts_that_reviewers_mark_as_wrong_are_counted_by_criterion(tmp_path):
    await run_for_review(tmp_path, ScriptedModel(), screen=True)
    assert "Reviewers" not in seen(await page_of(tmp_path))
    queue = ReviewQueue(tmp_path)
    first, second, _ = (entry["id"] for entry in queue.queue()["items"])
    criterion = queue.item(first)["sample"]["criteria"][0]
    wrong = {"wrong_verdicts": [criterion["id"], REQUEST_ID]}
    queue.decide(first, ReviewDecision(decision="accept"), "ada", **wrong)
    queue.decide(second, ReviewDecision(decision="reject"), "bob", wrong_criteria=[REQUEST_ID])
    reviews = collect_run("run", tmp_path).reviews
    assert reviews is not None
    lines = {line["text"]: line for line in review_section(reviews)["criteria"]}
    assert len(lines) == 2
    assert lines[criterion["text"]]["share"] == proportion(1, 2)
    assert lines[criterion["text"]]["wrong"] == 0
    (request,) = (line for line in lines.values() if line["of"] == "instruction")
    assert (request["share"], request["wrong"]) == (proportion(1, 2), 1)
    page = await page_of(tmp_path)
    text = seen(page)
    assert 'href="#reviews"' in page
    assert "2 decided: 1 accepted, 0 edited, 1 rejected; 1 waits for a person" in text
    assert "Who decided" in text and "ada 1" in text
    assert "Flagged samples" not in text


async def test_flags_of_reviewers_stand_in_the_report_and_in_no_row(tmp_path):
    await run_for_review(tmp_path, ScriptedModel())
    queue = ReviewQueue(tmp_path)
    first, second, _ = (entry["id"] for entry in queue.queue()["items"])
    queue.mark(first, "flag", True, "ada")
    queue.mark(first, "flag", True, MARKUP)
    queue.mark(second, "flag", True)
    queue.mark(second, "skip", True, "ada")
    page = await page_of(tmp_path)
    assert "Flagged samples 2" in seen(page) and "<script>" not in page
    assert "0 decided" in seen(page) and "waits for a person" in seen(page)
    queue.decide(first, ReviewDecision(decision="accept"), "ada")
    queue.mark(second, "flag", False)
    await run_for_review(tmp_path, ScriptedModel())
    assert "Flagged samples 1" in seen(await page_of(tmp_path))
    (row,) = rows(tmp_path, "accepted")
    assert "flag" not in json.dumps(row)


def test_export_compare_and_push_take_the_keys_of_screening_as_they_come(run_dir, tmp_path):
    """The rows without these keys are exported the same, and are compared as equal."""
    plain = tmp_path / "plain"
    shutil.copytree(run_dir, plain)
    with closing(sqlite3.connect(plain / "journal.sqlite")) as journal:
        for name in ("instruction_criteria", "instruction_verdicts"):
            journal.execute(f"UPDATE samples SET record = json_remove(record, '$.{name}')")
        journal.commit()

    def call(*words: object) -> str:
        ended = refloom(*words, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    for form in ("messages", "alpaca", "kto", "trajectory"):
        for out, name in ((run_dir, "new"), (plain, "old")):
            call("export", out, f"{name}-{form}.jsonl", "--format", form)
        texts = [(tmp_path / f"{name}-{form}.jsonl").read_text() for name in ("new", "old")]
        assert texts[0] == texts[1]
    with Endpoint() as endpoint:
        said = call("compare", run_dir, plain, "--json", "--base-url", endpoint.url)
    (pair,) = json.loads(said)["pairs"]
    assert pair["n"] == pair["ties"] == 3
    assert "9 were" in call("push", run_dir, "me/rows", "--dry-run")


def card_of(out: Path) -> str:
    return " ".join((out / "README.md").read_text(encoding="utf-8").split())


def test_the_card_says_by_what_instructions_were_screened_and_what_was_dropped(run_dir):
    card = card_of(run_dir)
    assert "they were screened, by the judge's written verdicts: whether each is a request" in card
    assert "by criteria extracted from the references' own instructions" in card
    assert "9 were dropped: 9 failed their criteria." in card
    assert "Of 3 criteria proposed of the references' instructions 3 earned their place" in card
    assert "A row has the trial of each criterion that was tried" in card
    assert "--screen" not in card and "--no-screen" not in card


async def test_the_card_of_a_run_that_did_not_screen_says_nothing_of_it(tmp_path):
    for name, more in (("plain", {"screen": False}), ("answered", {"answer_seeds": True})):
        await finish_run(tmp_path / name, ScriptedModel(), **more)
        card = card_of(tmp_path / name).split("All settings:")[0]
        assert "they were screened" not in card and "Screening" not in card
        assert "the trial of each" not in card


async def test_the_card_of_a_screen_by_log_odds_names_what_it_rests_on(tmp_path):
    def propose(call):
        turned = tagged(prompt_of(call), "seed")[-1].split()[::-1]
        return {"instructions": [f"What of {' '.join(turned)}?"]}

    model = ScriptedModel(propose=propose)
    await finish_run(tmp_path, model, screen=True, judge_method="logodds", try_criteria=False)
    assert "screened, by rules, the cosine with the seed, and the judge's yes or no" in card_of(
        tmp_path
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
async def test_the_section_looks_right_in_a_browser(run_dir):
    from playwright.async_api import async_playwright

    page_text = await page_of(run_dir)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = await browser.new_page(viewport={"width": 390, "height": 800})
        await page.set_content(page_text)
        assert await page.evaluate("window.owned") is None
        width = await page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390
        await browser.close()
