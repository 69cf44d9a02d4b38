"""A person at the review page: of a real run, and of a real server, in a browser."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

import pytest
from browser import CHROMIUM, ReviewPage
from fakes import Endpoint, ScriptedModel, prompt_of, words
from langgraph_sdk import get_sync_client
from reviewing import BETTER, ReviewProcess, run_for_review
from runs import SEEDS, all_rows, rows, summary_of
from served import free_port, serving

from refloom.runs.review_queue import ReviewQueue

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
GIVEN = {
    "seed": {"instruction": "How waves form at sea"},
    "references": [{"instruction": "Why tides?", "response": "The Moon pulls."}],
}
CONTEXT = {"model": "m", "try_criteria": False, "review": "all"}


@pytest.fixture
def person(browser) -> Iterator:
    """Somebody who has only a keyboard."""
    page = browser.new_page()
    page.set_default_timeout(20_000)
    yield lambda url: ReviewPage(page, url)
    page.close()


def test_a_run_is_reviewed_by_keyboard_and_its_files_follow(person, tmp_path):
    # In a thread: Playwright keeps a loop of its own running in this one.
    with ThreadPoolExecutor() as pool:
        pool.submit(asyncio.run, run_for_review(tmp_path)).result()
    with ReviewProcess(tmp_path) as served:
        seen = person(f"http://127.0.0.1:{served.port}").open()
        seen.keys("a")
        seen.heading("Sample 2")
        seen.keys("e", "Control+A")
        seen.page.keyboard.insert_text(BETTER)
        seen.keys("Control+Enter")
        seen.heading("Sample 3")
        seen.keys("r")
        seen.page.keyboard.type("It is about ponds.")
        seen.keys("Enter")
        seen.heading("All decided")
        seen.keys("u")
        seen.heading("Sample 3")
        seen.keys("a")
        seen.heading("All decided")
        seen.page.get_by_text("3 of 3").first.wait_for()
        seen.check()
    accepted = rows(tmp_path, "accepted")
    assert [row["review"]["decision"] for row in accepted] == ["accept", "edit", "accept"]
    assert accepted[1]["response"] == BETTER
    assert summary_of(tmp_path)["counts"]["pending"] == 0


def test_threads_of_a_server_are_reviewed_by_keyboard(person, tmp_path):
    with (
        Endpoint() as endpoint,
        serving(tmp_path, OPENAI_BASE_URL=endpoint.url, OPENAI_API_KEY="k") as server,
    ):
        client = get_sync_client(url=server.url)
        threads = [client.threads.create()["thread_id"] for _ in range(2)]
        for number, thread in enumerate(threads):
            context = {**CONTEXT, "random_seed": number}
            client.runs.wait(thread, "synthesizer", input=GIVEN, context=context)
        paid = len(endpoint.bodies)
        seen = person(server.url).open()
        seen.keys("a")
        seen.heading("Sample 2")
        seen.keys("r", "Enter")
        seen.heading("All decided")
        seen.page.reload()
        seen.heading("All decided")
        seen.keys("u")
        seen.heading("Sample")
        seen.keys("a")
        seen.heading("All decided")
        seen.page.wait_for_load_state("networkidle")
        seen.check()
        found = [client.threads.get_state(t)["values"]["samples"][0] for t in threads]
        client.http.client.close()
    assert [sample["status"] for sample in found] == ["accepted", "accepted"]
    assert [sample["review"]["decision"] for sample in found] == ["accept", "accept"]
    assert len(endpoint.bodies) == paid


def test_an_edited_response_has_no_thoughts_and_an_accepted_one_keeps_them(person, tmp_path):
    def think(call):
        return {"response": f"{words(prompt_of(call), 40)}.", "thoughts": "</think> <b>So.</b>"}

    model = ScriptedModel(answer=think)
    with ThreadPoolExecutor() as pool:
        job = run_for_review(tmp_path, model, SEEDS[:2], reasoning=True)
        pool.submit(asyncio.run, job).result()
    with ReviewProcess(tmp_path) as served:
        seen = person(f"http://127.0.0.1:{served.port}").open()
        seen.page.locator("#reasoning summary").click()
        assert seen.text("#reasoning pre") == "</think> <b>So.</b>"
        seen.keys("e", "Control+A")
        seen.page.keyboard.insert_text(BETTER)
        seen.keys("Control+Enter")
        seen.heading("Sample 2")
        seen.keys("a")
        seen.heading("All decided")
        seen.page.get_by_text("2 of 2").first.wait_for()
        seen.keys("t")
        seen.heading("Decided sample")
        seen.check()
    thoughts = {row["response"] == BETTER: row["reasoning"] for row in rows(tmp_path, "accepted")}
    assert thoughts == {True: None, False: "</think> <b>So.</b>"}


GONE = "The server cannot be reached"


def test_a_killed_server_loses_no_decision_and_the_page_goes_on_when_it_is_back(person, tmp_path):
    with ThreadPoolExecutor() as pool:
        pool.submit(asyncio.run, run_for_review(tmp_path, None, SEEDS, per_seed=4)).result()
    waiting = [item["id"] for item in ReviewQueue(tmp_path).queue()["items"]]
    wanted = dict(zip(waiting, cycle(["accept", "reject", "reject"]), strict=False))
    keys = {"accept": ["a"], "reject": ["2"]}
    port = free_port()
    seen = person(f"http://127.0.0.1:{port}")
    seen.expected = ("ERR_CONNECTION", "ERR_EMPTY_RESPONSE", "ERR_SOCKET")
    # Killed in the middle of an answer.
    seen.expected += ("ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONTENT_LENGTH_MISMATCH")
    left = iter(wanted.items())

    def decide(count: int) -> None:
        for id_, decision in islice(left, count):
            seen.page.locator("#facts code", has_text=id_).wait_for()
            seen.keys(*keys[decision])

    with ReviewProcess(tmp_path, at=port) as served:
        seen.open()
        decide(8)
        # What was sent may have arrived or not; a flag cannot.
        served.kill()
        seen.keys("f")
        seen.page.locator("#unsent", has_text=GONE).wait_for()
    with ReviewProcess(tmp_path, at=port) as served:
        decide(8)
        seen.page.locator("#unsent").wait_for(state="hidden")
        decide(5)
        served.kill()
    with ReviewProcess(tmp_path, at=port):
        decide(len(wanted))
        seen.heading("All decided")
        # The figures come once all is sent.
        seen.page.locator(".closing", has_text="32 of 32").wait_for()
        assert not seen.page.locator("#unsent").is_visible()
        seen.check()
    found = [(row["id"], row["review"]["decision"]) for row in all_rows(tmp_path)]
    assert sorted(found) == sorted(wanted.items())
