"""The report page: its figures against hand-made ones, odd runs, what must not break it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import ARGUMENTS, CHROMIUM
from fakes import ScriptedModel, letters, prompt_of, tagged, verdicts, words
from runs import finish_run, references

from memory.novelty import rouge_matrix
from memory.store import write_references
from memory.weights import WeightsUnavailable
from nodes.llm import CallFailed
from refloom.data.record_stats import HashSample, measure_diversity
from refloom.errors import InputError, JournalError
from refloom.evaluation.report import report
from refloom.evaluation.report.charts import bin_counts, bin_shares, round_edges
from refloom.evaluation.report.collect import collect_run, sample_references
from refloom.evaluation.report.diversity import (
    coverage,
    evenness,
    k_means,
    nearest_of,
    pairs_of,
    sample_sizes,
    vendi,
)
from refloom.evaluation.report.samples import (
    comparison_section,
    select_records,
    text_changes,
)
from refloom.evaluation.report.tables import outcome_tables, rank_references
from refloom.evaluation.stats import proportion
from refloom.runs.journal import Journal

NASTY = (
    "<script>window.owned = 1</script> <img src=x onerror='window.owned = 2'> "
    "</style><svg onload=alert(1)> {{ 7 * 7 }} \u202eturned\u2066 nul\x00 half\ud83d end."
)
FIGURE = {"value": 0.75, "low": 0.6, "high": 0.85, "n": 40}
PAIR = {
    "a": "reference", "b": "<b>none</b>", "n": 40, "win_rate": 0.7, "low": 0.55, "high": 0.8,
    "ties": 4, "wins": 26, "losses": 10, "sign_p": 0.0113, "length_controlled": FIGURE,
    "judge": "j", "prompt": "3f9c", "same_in_both_orders": FIGURE, "first_picked": FIGURE,
    "not_judged": 0,
}  # fmt: skip
COMPARED = {
    "pairs": [{**PAIR, "accepted": PAIR}],
    "arms": [
        {
            "name": name, "accepted": 30, "rejected": 8, "failed": 2, "calls": 200,
            "tokens": 12_345, "cost_usd": cost,
            "criteria": [{"criterion": "fully answers", "n": 40, "share": 0.75, **interval}],
        }
        for name, cost, interval in (
            ("reference", 0.5, {"low": 0.6, "high": 0.86}),
            ("none", None, {"low": 0.6, "high": 0.86}),
        )
    ],
    "cards": [
        {
            "instruction": "Why two tides?", "a": "reference", "b": "none", "score": 1.0,
            "a_response": NASTY, "b_response": "Because.", "reasons": ["A says why.", "B not."],
        }
    ],
}  # fmt: skip


def mending(response: str = "") -> ScriptedModel:
    """Drafts lack what is asked for until they are refined; every fourth never gets it."""

    def critique(call):
        candidate = tagged(prompt_of(call), "response")[-1]
        mended = "Mended" in candidate
        return verdicts(prompt_of(call), lambda id_: "pass" if mended or id_[0] != "c" else "fail")

    def generate(call):
        return {"response": f"{words(prompt_of(call), 40).capitalize()}. {response}".strip()}

    def refine(call):
        draft = tagged(prompt_of(call), "response")[-1]
        poor = sum(map(ord, draft)) % 4 == 0
        return {"plan": ["mend"], "response": draft + ("" if poor else " Mended all of it.")}

    return ScriptedModel(critique=critique, generate=generate, refine=refine)


async def page_of(*directories: Path, **more) -> str:
    place = await report(directories, **{"embed": letters, **more})
    return place.read_text(encoding="utf-8")


class Text(HTMLParser):
    """What a reader sees of a page, and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.said: list[str] = []
        self.hidden = 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.hidden += tag in ("style", "title")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("style", "title")

    def handle_data(self, data):
        if not self.hidden:
            self.said.append(data)


def seen(page: str) -> str:
    return " ".join(" ".join(Text(page).said).split())


# Figures


def test_the_vendi_score_of_unrelated_texts_is_their_number_and_of_equal_ones_one():
    assert vendi(np.eye(7, dtype=np.float32)) == pytest.approx(7)
    assert vendi(np.tile(np.eye(7, dtype=np.float32)[0], (5, 1))) == pytest.approx(1)
    # Two pairs of equal texts are two texts.
    assert vendi(np.eye(4, dtype=np.float32)[[0, 0, 1, 1]]) == pytest.approx(2)


def test_rouge_is_that_of_the_novelty_filter():
    texts = ["why two tides", "why two moons", "潮汐", "", "why two tides a day at sea"]
    alike = rouge_matrix(texts)
    assert alike[0].round(3).tolist() == [1.0, 0.667, 0.0, 0.0, 0.6]
    assert alike.diagonal().tolist() == [1.0] * 5
    told = measure_diversity(texts)
    assert pairs_of(alike).mean() == pytest.approx(told.pairwise, abs=1e-3)
    assert nearest_of(alike).mean() == pytest.approx(told.nearest, abs=1e-3)
    assert (alike == rouge_matrix(texts, texts)).all()
    assert rouge_matrix(texts, ["why two tides"])[:, 0].tolist() == alike[0].tolist()
    assert nearest_of(rouge_matrix(["a"])).tolist() == []
    assert rouge_matrix([], ["a"]).shape == (0, 1)
    assert rouge_matrix(["why two tides"], ["why two moons"], max_tokens=2).tolist() == [[1.0]]


def test_coverage_counts_clusters_of_references_that_have_a_row():
    directions = np.eye(8, dtype=np.float32)
    around = np.repeat(directions[:4], 4, axis=0) + 0.01 * directions[[4, 5, 6, 7] * 4]
    references = (around / np.linalg.norm(around, axis=1, keepdims=True)).astype(np.float32)
    found = coverage(references, references[[0, 1, 2, 4]])
    assert found is not None
    assert found.covered == proportion(2, 4)
    assert [c.references for c in found.clusters] == [4, 4, 4, 4]
    assert sorted(c.rows for c in found.clusters) == [0, 0, 1, 3]
    assert found.references_even == 1
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(4)
    assert found.rows_even == pytest.approx(entropy, abs=1e-3)
    assert (k_means(references, 4) == k_means(references, 4)).all()
    assert coverage(references[:1], references[5:]).covered == proportion(1, 1)
    assert coverage(references[[0, 0, 0]], references).covered == proportion(1, 1)
    assert coverage(references[:0], references) is None
    assert evenness([0, 0]) is None


def test_bins_hold_everything_and_edges_are_round():
    assert bin_shares([-1, 0.2, 0.5, 9], [0, 0.5, 1]) == [0.5, 0.5]
    assert bin_counts({0: 1, 5: 2, 99: 1}, [0, 5, 10]) == [0.25, 0.75]
    assert bin_shares([], [0, 1]) == [0.0]
    for most in (1, 7, 24, 25, 190, 1234, 99_999):
        edges = round_edges(most)
        assert edges[-2] < most <= edges[-1]
        assert len(edges) <= 50


def test_a_draw_does_not_depend_on_the_order():
    items = [(i * 7919 % 1000, f"row {i}") for i in range(1000)]
    drawn = []
    for order in (items, items[::-1]):
        sample = HashSample[str](10)
        for digest, item in order:
            sample.add(digest, item)
        drawn.append(sample.items())
    assert drawn[0] == drawn[1] == [item for _, item in sorted(items)[:10]]


# A run


@pytest.fixture(scope="module")
def mended(tmp_path_factory) -> Path:
    """A run whose samples are refined and accepted, but for some that are rejected."""
    out = tmp_path_factory.mktemp("mended")
    seeds = [words(f"seed {i}", 8) for i in range(24)]
    elsewhere = {"base_url": "http://127.0.0.1:9/v1", "judge_model": str(out / "my-model.gguf")}
    verdicts_ = {"judge_method": "verdict", "references_per_seed": 1}
    asyncio.run(finish_run(out, mending(NASTY), seeds, **elsewhere, **verdicts_))
    return out


async def test_figures_are_those_of_the_rows(mended):
    run_data = collect_run("mended", mended)
    counts = run_data.run_json["counts"]
    assert counts["accepted"] and counts["rejected"]
    judged = counts["accepted"] + counts["rejected"]
    found = outcome_tables(run_data)
    assert [part.name for part in found["attempts"]] == [
        "accepted at attempt 2",
        "never: rejected",
    ]
    assert found["attempts"][0].share == proportion(counts["accepted"], judged)
    used = {id_: taught for id_, taught in run_data.reference_stats.items() if taught.judged}
    assert sum(t.judged for t in used.values()) == judged
    assert sum(t.accepted for t in used.values()) == counts["accepted"]
    assert all(t.attempts == 2 * t.accepted + 3 * (t.judged - t.accepted) for t in used.values())
    best, worst, of = rank_references([run_data])
    assert set(best) == set(used) and worst == [] and of == len(used)
    said = seen(await page_of(mended))
    accepted = proportion(counts["accepted"], judged)
    assert f"{100 * accepted.value:.0f} % " in said
    assert f"n = {judged} judged samples" in said
    assert "accepted at once 0 %" in said
    assert "gives a reason for every claim" in said and "from r" in said
    assert f"{counts['accepted']} accepted" in said and "generate" in said


async def test_a_card_tells_draft_verdicts_change_and_references(mended):
    page = await page_of(mended)
    said = seen(page)
    for part in ("Draft", "What the refinement changed", "Final response", "References"):
        assert part in said
    assert "Mended all of it." in "".join(re.findall(r"<ins>(.*?)</ins>", page, re.DOTALL))
    assert "rejected for" in said
    records = select_records(collect_run("x", mended), 8)
    assert len(records) == 8
    assert records[0]["status"] == "accepted" and len(records[0]["attempts"]) == 2
    assert {record["status"] for record in records} == {"accepted", "rejected"}


async def test_nothing_of_the_data_is_more_than_text(mended):
    page = await page_of(mended)
    tags = Text(page).tags
    assert "script" not in tags and "img" not in tags and tags.count("style") == 1
    assert "&lt;script&gt;window.owned" in page and "{{ 7 * 7 }}" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page)
    assert "[U+202E]turned[U+2066] nul[U+0000]" in page
    assert "http://" not in re.sub(r"xmlns='[^']*'", "", page) and "https://" not in page


async def test_no_place_of_the_machine_is_told(mended):
    said = await page_of(mended)
    assert str(mended.parent) not in said and "127.0.0.1" not in said
    assert "my-model.gguf" in said


async def test_the_same_run_has_the_same_page(mended, tmp_path):
    pages = [await page_of(mended, out=tmp_path / f"{i}.html") for i in range(2)]
    dated = [re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", page) for page in pages]
    assert dated[0] == dated[1]


# Odd runs


async def begun(directory: Path, *records: dict, **said) -> Path:
    """A run's directory with these samples in its journal, and maybe a run.json."""
    directory.mkdir(parents=True, exist_ok=True)
    journal = Journal(directory)
    for i, record in enumerate(records):
        sql = "INSERT INTO samples VALUES (?, ?, ?, ?, ?)"
        await journal.put(sql, 0, i, 0, record["status"], json.dumps(record))
    journal.close()
    if said:
        (directory / "run.json").write_text(json.dumps(said))
    return directory


def row(number: int, status: str = "accepted", **more) -> dict:
    told = {
        "id": f"s{number}-0", "seed_id": f"s{number}", "slot": 0, "status": status,
        "instruction": words(f"row {number}", 9), "response": words(f"said {number}", 30),
        "reason": None, "reference_ids": [f"r{number % 3}"], "criteria": [], "attempts": [],
    }  # fmt: skip
    return {**told, **more}


async def test_a_run_without_any_sample_has_a_page(tmp_path):
    said = seen(await page_of(await begun(tmp_path / "none")))
    assert "No sample has been judged." in said and "interrupted" in said
    assert "No call was paid for." in said and "No sample has ended yet." in said


async def test_a_run_of_failures_has_a_page(tmp_path):
    broken = ScriptedModel(propose=lambda call: CallFailed("propose", "length", "<i>cut</i>"))
    await finish_run(tmp_path, broken)
    page = await page_of(tmp_path)
    assert "length in propose" in seen(page)
    assert "(no instruction yet)" in page and "&lt;i&gt;cut&lt;/i&gt;" in page
    assert "There is no accepted row." in page


async def test_one_row_without_references_file_attempts_or_price(tmp_path):
    said = seen(await page_of(await begun(tmp_path / "one", row(1), row(2, "rejected"))))
    assert "(not in the references’ file)" not in said
    assert "50 %" in said and "n = 2 judged samples" in said
    assert "There are no rows to measure." in said
    assert "0 references" in said


async def test_a_cost_that_is_not_known_is_not_nothing(tmp_path):
    await finish_run(tmp_path, ScriptedModel())
    said = seen(await page_of(tmp_path))
    assert "unknown: a model has no price" in said and "dollars a row unknown" in said


async def test_what_waits_for_a_person_is_pending(tmp_path):
    await finish_run(tmp_path, ScriptedModel(), review="all")
    said = seen(await page_of(tmp_path))
    assert "3 pending" in said and "0 accepted" in said


async def test_samples_that_wait_for_a_person_are_part_of_what_was_judged(tmp_path):
    seeds = [words(f"seed {i}", 8) for i in range(24)]
    more = {"judge_method": "verdict", "references_per_seed": 1, "review": "rejected"}
    await finish_run(tmp_path, mending(), seeds, **more)
    run_data = collect_run("run", tmp_path)
    accepted, waiting = run_data.run_json["counts"]["accepted"], run_data.waiting
    assert accepted and waiting and not run_data.run_json["counts"]["rejected"]
    assert run_data.judged == accepted + waiting == 24
    said = seen(await page_of(tmp_path))
    share = 100 * accepted / 24
    assert f"accepted {share:.0f} % " in said and "accepted 100 %" not in said
    assert f"n = 24 judged samples, of which {waiting} wait for a person" in said
    last = outcome_tables(run_data)["attempts"][-1]
    assert last == ("not yet: waits for a person", waiting, proportion(waiting, 24))


async def test_the_vendi_score_does_not_read_as_a_count(mended):
    said = seen(await page_of(mended))
    n = collect_run("mended", mended).run_json["counts"]["accepted"]
    assert re.search(rf"variety \d+\.\d of {n} Vendi score: as varied as so many unrelated", said)
    assert "different instructions" not in said


async def test_what_is_empty_has_no_box(mended, tmp_path):
    await finish_run(tmp_path / "good", ScriptedModel())
    said = seen(await page_of(tmp_path / "good"))
    assert "Attempts until acceptance" in said
    assert "Why samples were rejected" not in said and "How samples failed" not in said
    assert "Why samples were rejected" in seen(await page_of(mended))
    await finish_run(tmp_path / "screened", ScriptedModel(), screen=True)
    said = seen(await page_of(tmp_path / "screened"))
    assert "What they were held to" in said and "such as" not in said
    page = await page_of(await begun(tmp_path / "none"))
    assert "<figure" not in page and page.count("There are no rows to measure.") == 2
    assert "Not drawn: Any two instructions, ROUGE-L F1; Each instruction and" in seen(page)


async def test_a_run_under_way_is_told_as_it_stands(tmp_path):
    await finish_run(tmp_path, ScriptedModel())
    journal = Journal(tmp_path)
    try:
        said = seen(await page_of(tmp_path))
    finally:
        journal.close()
    assert "under way" in said and "these are its figures so far" in said


async def test_of_a_shared_memory_the_runs_own_references_are_taken(tmp_path):
    memory = tmp_path / "memory"
    await finish_run(tmp_path / "run", ScriptedModel(), memory=memory)
    others = [{**r, "id": f"x{i}"} for i, r in enumerate(references(9))]
    write_references(memory, others)
    run_data = collect_run("run", tmp_path / "run")
    sample = sample_references(run_data, list(run_data.reference_stats))
    assert sample.count == 3
    assert set(sample.known) == set(run_data.reference_stats)
    for path in memory.glob("references-*.parquet"):
        path.write_bytes(b"damaged")
    assert sample_references(run_data, ["r0"]).count == 0
    assert "(not in the references’ file)" in await page_of(tmp_path / "run")


async def test_vectors_that_the_run_has_are_not_made_again(mended, tmp_path):
    asked: list[str] = []

    async def embed(texts):
        asked.extend(texts)
        return await letters(texts)

    await page_of(mended, out=tmp_path / "a.html", embed=embed)
    instructions = {r["instruction"] for r in references()}
    assert asked and not instructions & set(asked)
    copied = tmp_path / "copied"
    shutil.copytree(mended, copied)
    (copied / "memory" / "index.json").unlink()
    asked.clear()
    await page_of(copied, embed=embed)
    assert instructions & set(asked)


async def test_without_an_embedding_model_the_page_says_so(mended, tmp_path):
    async def embed(texts):
        raise WeightsUnavailable("run `refloom model pull` first")

    said = seen(await page_of(mended, out=tmp_path / "a.html", embed=embed))
    assert "Meaning was not measured: the embedding model is not available: run `refloom" in said
    assert "Any two instructions, ROUGE-L F1" in said


# Several runs


async def test_runs_stand_side_by_side_on_as_many_rows(mended, tmp_path):
    many = await begun(tmp_path / "many", *(row(i) for i in range(60)))
    few = await begun(tmp_path / "few", *(row(i) for i in range(5)))
    accounts = [collect_run(path.name, path) for path in (many, few)]
    assert sample_sizes(accounts) == [60, 5]
    twenty = await begun(tmp_path / "twenty", *(row(i) for i in range(20)))
    assert sample_sizes([*accounts, collect_run("twenty", twenty)]) == [20, 5, 20]
    assert sample_sizes(accounts[:1] * 20) == [50] * 20
    page = await page_of(mended, many, out=tmp_path / "both.html")
    said = seen(page)
    assert f"<title>{mended.name} and many · refloom report</title>" in page
    assert page.count('class="histogram"') == 2 * 6 - 1  # `many` has no references
    assert "settings that differ are marked" in said
    assert page.count('<figure class="chart">') == 2 * 6


async def test_a_comparison_is_shown_with_and_without_runs(mended, tmp_path):
    page = await page_of(out=tmp_path / "compared.html", compared=COMPARED)
    said = seen(page)
    assert "70 % 55 to 80 %, n = 40" in said and "with the length taken out" in said
    assert "0.0113" in said and "reference preferred" in said and "unknown" in said
    assert "75 % 60 to 86 %, n = 40" in said
    assert "<b>none</b>" not in page and "script" not in Text(page).tags
    assert "Samples to read" not in said
    both = seen(await page_of(mended, out=tmp_path / "both.html", compared=COMPARED))
    assert "Samples to read" in both and "Responses side by side" in both
    figures = dict.fromkeys(("win_rate", "low", "high"), None)
    empty = {**PAIR, **figures, "n": 0, "sign_p": None}
    bare = comparison_section({**COMPARED, "pairs": [{**empty, "accepted": empty}]})
    assert bare["pairs"][0]["rate"].n == 0


async def test_what_a_judge_check_found_is_shown(tmp_path):
    await begun(tmp_path, row(1))
    agreement = {"n": 4, "kappa": {"value": -0.1, "low": None, "high": None, "n": 4}}
    agreement |= {"agreement": FIGURE, "confusion": {"pass_fail": 3}}
    found = {
        "flags": ["the judge <passes> cut answers"], "judge": "j", "method": ["verdict"],
        "unavailable": {}, "prompt": "p1", "random_seed": 1, "samples": 2, "references": 3,
        "notes": [], "failed": 0, "calls": 5, "paid": 4,
        "criteria": [{"id": "c1", "text": "answers", "auc": FIGURE, "against": {"cut": FIGURE}}],
        "canaries": [], "originals": {"verdict": {"n": 7, "passes": FIGURE}},
        "duels": [{"kind": "padded", "share": {**FIGURE, "value": None}}],
        "consistency": {
            "verdicts": {"verdict": FIGURE}, "duels": FIGURE, "first_place": FIGURE
        },
        "human": {
            "method": "verdict", "verdicts": "the run", "without": 1, "criteria": [],
            "all": agreement, "samples": agreement,
        },
    }  # fmt: skip
    (tmp_path / "judge-check.json").write_text(json.dumps(found))
    page = await page_of(tmp_path)
    said = seen(page)
    assert "the judge &lt;passes&gt; cut answers" in page
    assert "0.75 0.60 to 0.85, n = 40" in said and "cut 0.75 (0.60 to 0.85), n = 40" in said
    assert "-0.10, n = 4" in said and "pass/fail 3" in said and "padded" in said
    assert "notes" not in said and "canaries method" not in said
    for broken in ("{broken", "{}", json.dumps({**found, "consistency": [1]})):
        (tmp_path / "judge-check.json").write_text(broken)
        assert "What the judge is worth" not in await page_of(tmp_path)


# The file


async def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(JournalError):
        await report([tmp_path])
    with pytest.raises(InputError, match="nothing to report"):
        await report([])


async def test_a_place_that_cannot_be_written_is_said_before_the_work(mended, tmp_path):
    with pytest.raises(InputError, match="no directory"):
        await report([mended], tmp_path / "none" / "page.html")
    with pytest.raises(InputError, match="is a directory"):
        await report([mended], tmp_path)


async def test_the_page_is_in_the_first_directory_and_nothing_else(mended):
    place = await report([mended], embed=letters)
    assert place == mended / "report.html"
    assert [p.name for p in mended.glob("report*")] == ["report.html"]


def test_what_stays_the_same_is_cut_short():
    same = "word " * 400
    parts = text_changes(f"{same}old {same}", f"{same}new {same}")
    assert [tag for tag, _ in parts] == ["equal", "delete", "insert", "equal"]
    assert "characters the same" in parts[0][1] and len(parts[0][1]) < 400
    long = text_changes("a", "b " * 9000)
    assert long[-1][0] == "note" and "more characters" in long[-1][1]


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    return playwright


@pytest.fixture(scope="module")
def whole(mended, tmp_path_factory) -> Path:
    """A page with everything on it."""
    place = tmp_path_factory.mktemp("whole") / "page.html"
    return asyncio.run(report([mended, mended], place, embed=letters, compared=COMPARED))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
async def test_in_a_browser_nothing_runs_loads_or_overflows(browser, whole, width, scheme):
    wrong, requests = [], []
    async with browser.async_playwright() as started:
        opened = await started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = await opened.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        await page.goto(whole.as_uri())
        await page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        sizes_ = await page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert sizes_[0] == sizes_[1] == width
        assert await page.evaluate("window.owned") is None
        assert await page.locator("script").count() == 0
        assert "<script>window.owned = 1</script>" in await page.locator(".text").first.evaluate(
            "() => document.body.innerText"
        )
        unnamed = await page.evaluate(
            "[...document.querySelectorAll('svg')].filter(s => !s.ariaLabel).length"
        )
        assert unnamed == 0
        # On paper what is folded is open, in the colours of the light page.
        await page.emulate_media(media="print")
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
        await page.set_viewport_size({"width": 700, "height": 800})
        assert await page.evaluate("document.documentElement.scrollWidth") == 700
        await opened.close()
    assert wrong == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
