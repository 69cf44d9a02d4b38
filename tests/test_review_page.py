"""The review page in a browser, over both of its backends; and what the server does for it."""

from __future__ import annotations

import http.client
import json
import re
import time
from types import SimpleNamespace

import httpx
import pytest
from browser import ReviewPage
from hypothesis import given
from hypothesis import strategies as st
from review_fakes import NASTY, REFERENCES, Run, Threads, sample, screened_sample, served

from nodes.text_diff import diff
from refloom.serve.review_page import (
    MalformedBody,
    parse_sample,
    render_markdown,
    render_sample,
)

FORBIDDEN = [
    "/review/..%2f..%2fpyproject.toml",
    "/review/%2e%2e/x",
    "/review/../review.py",
    "/review/%2e%2e%2freview.py",
    "/review/review.py",
    "/review/page",
    "/review/main.js%00",
]


# What the server does


def test_markdown_becomes_inert_html():
    made = render_markdown(NASTY)
    for tag in ("<script", "<img", "<svg", "<iframe", "<style", "<a ", "style=", 'onerror="'):
        assert tag not in made
    assert "![pixel](http://evil.example/p.png)" in made
    assert '<td class="to-right">1</td>' in made


def test_only_web_links_are_links():
    made = render_markdown(
        "[a](HTTPS://a.example) <http://b.example> <mailto:c@d.example> [e](/f) [g][h]\n\n[h]: file:///x"
    )
    assert made.count("<a ") == 2
    assert made.count('rel="noopener noreferrer nofollow" target="_blank"') == 2


def test_what_would_take_markdown_for_ever_is_shown_as_source():
    for text in ("[" * 100_000, "![a" * 33_000, "<b>" + "x" * 8_000_000):
        assert render_markdown(text).startswith('<pre class="plain">')
    pairs = [{"instruction": "*a* " * 20_000, "response": "*a* " * 50_000}] * 20
    render_sample(parse_sample(json.dumps({"sample": pairs[0], "references": pairs}).encode()))


WORDS = st.lists(
    st.sampled_from(["a ", "the ", "Moon", "\n", "tide  ", "…", " x"]), max_size=30
).map("".join)


@given(WORDS, WORDS)
def test_changes_give_both_texts_back(before, after):
    parts = diff(before, after)
    if before == after:
        assert parts == []
        return
    assert "".join(text for tag, text in parts if tag != "insert") == before
    assert "".join(text for tag, text in parts if tag != "delete") == after
    assert all(text for _, text in parts)


def test_changes_of_long_texts_are_of_lines_and_quick():
    before = "".join(f"line {i} of many, {i * 7919 % 1000}\n" for i in range(3_000))
    after = before.replace("line 7 of", "row 7 of").replace("line 2990 of", "row 2990 of")
    parts = diff(before, after)
    unlike = diff("a\n" * 400_000, "b \n" * 400_000)
    assert [tag for tag, _ in parts] == [
        "equal",
        "delete",
        "insert",
        "equal",
        "delete",
        "insert",
        "equal",
    ]
    assert [tag for tag, _ in unlike] == ["delete", "insert"]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"{", "body: "),
        (b"[]", "body: "),
        (b"{}", "sample: "),
        (b'{"sample": {"instruction": 1}}', "sample.instruction: "),
    ],
)
def test_a_malformed_body_is_refused_in_one_line(body, where):
    with pytest.raises(MalformedBody) as said:
        parse_sample(body)
    assert str(said.value).startswith(where)
    assert "\n" not in str(said.value)


# The page


@pytest.fixture(params=["run", "threads"])
def kind(request):
    return {"run": Run, "threads": Threads}[request.param]


@pytest.fixture
def look(browser):
    """Open a page on a backend; in the end nothing must have gone wrong on it."""
    opened = []

    def open_on(backend, **viewport):
        server = served(backend)
        url = server.__enter__()
        page = browser.new_page(
            viewport={"width": viewport.get("w", 1280), "height": viewport.get("h", 800)}
        )
        page.set_default_timeout(15_000)
        seen = ReviewPage(page, url)
        opened.append(SimpleNamespace(seen=seen, server=server))
        return seen

    yield open_on
    try:
        for one in opened:
            one.seen.check()
    finally:
        for one in opened:
            one.seen.page.close()
            one.server.__exit__(None, None, None)


ACCEPT = {"decision": "accept"}


def settled(backend, wanted):
    """Wait until the server has exactly these decisions."""
    for _ in range(500):
        if backend.taken == wanted:
            return
        time.sleep(0.01)
    assert backend.taken == wanted


def test_accept_edit_reject_and_undo_by_keyboard_alone(kind, look):
    backend = kind([sample(i) for i in range(1, 5)])
    seen = look(backend).open()
    assert seen.text("#count") == "0 of 4 decided"
    seen.keys("a")
    seen.heading("Sample 2")
    seen.says("Accepted. u undoes it.")
    assert seen.page.evaluate("document.activeElement.id") == "heading"
    seen.keys("e")
    seen.page.keyboard.type("Better: ")
    seen.keys("Control+Enter")
    seen.heading("Sample 3")
    seen.keys("r")
    seen.page.keyboard.type("nu jape")  # every letter of it is a key elsewhere
    seen.keys("Enter")
    seen.heading("Sample 4")
    seen.says("Rejected. u undoes it.")
    assert seen.text("#count") == "3 of 4 decided"
    taken = {
        "s1": {"decision": "accept"},
        "s2": {"decision": "edit", "response": "Better: " + backend.samples["s2"]["response"]},
        "s3": {"decision": "reject", "reason": "nu jape"},
    }
    settled(backend, taken)
    for id_, number in (("s3", 3), ("s2", 2), ("s1", 1)):
        seen.keys("u")
        seen.heading(f"Sample {number} of 4")
        del taken[id_]
        settled(backend, taken)
    assert seen.text("#count") == "0 of 4 decided"
    seen.keys("u")
    seen.says("Nothing to undo.")


def test_the_last_decision_can_be_undone_from_the_end(kind, look):
    backend = kind([sample(1), sample(2)])
    seen = look(backend).open()
    seen.keys("r", "Enter")
    seen.heading("Sample 2")
    seen.keys("a")
    seen.heading("All decided")
    settled(backend, {"s1": {"decision": "reject"}, "s2": {"decision": "accept"}})
    seen.keys("u")
    seen.heading("Sample 2")
    settled(backend, {"s1": {"decision": "reject"}})


def test_a_reload_forgets_no_decision_and_no_undo(kind, look):
    backend = kind([sample(1), sample(2), sample(3)])
    seen = look(backend).open()
    seen.keys("a")
    seen.heading("Sample 2")
    settled(backend, {"s1": {"decision": "accept"}})
    seen.page.reload()
    seen.heading("Sample 2 of 3")
    seen.keys("r", "Enter")
    seen.heading("Sample 3")
    seen.keys("u")
    seen.heading("Sample 2")
    settled(backend, {"s1": {"decision": "accept"}})
    seen.keys("u")
    seen.heading("Sample 1")
    settled(backend, {})


def test_after_a_reload_the_last_decision_of_all_can_be_undone(kind, look):
    backend = kind([sample(1)])
    seen = look(backend).open()
    seen.keys("a")
    seen.heading("All decided")
    settled(backend, {"s1": {"decision": "accept"}})
    seen.page.reload()
    seen.page.get_by_role("heading", name=re.compile("decided|Nothing")).wait_for()
    seen.keys("u")
    seen.heading("Sample 1")
    settled(backend, {})


def test_more_samples_than_are_listed_at_once_are_all_shown(look):
    backend = Run([sample(number) for number in (1, 2, 3)])
    backend.most = 2
    seen = look(backend).open()
    assert "0 of 3 decided" in seen.text("#count")
    for number in (1, 2, 3):
        seen.heading(f"Sample {number} of 3")
        seen.keys("a")
    seen.heading("All decided")
    settled(backend, {f"s{number}": {"decision": "accept"} for number in (1, 2, 3)})


def test_a_decision_that_somebody_else_was_faster_with_is_not_shown_as_taken(look):
    backend = Threads([sample(1)])
    seen = look(backend).open()
    backend.taken["s1"] = {"decision": "accept", "by": "bob"}
    seen.keys("r", "Enter")
    seen.page.get_by_text("bob has decided otherwise meanwhile (accept)").first.wait_for()
    assert backend.taken == {"s1": {"decision": "accept", "by": "bob"}}


def test_keys_move_and_toggle_and_are_listed(look):
    seen = look(Run([sample(1), sample(2), sample(3)])).open()
    for key, number in (
        ("n", 2),
        ("j", 3),
        ("ArrowLeft", 2),
        ("p", 1),
        ("ArrowRight", 2),
        ("k", 1),
    ):
        seen.keys(key)
        seen.heading(f"Sample {number}")
    seen.keys("p")
    seen.says("This is the first one.")
    seen.keys("s")
    assert seen.text("#response-text pre") == sample(1)["response"]
    seen.keys("s", "?")
    assert seen.page.locator("dialog#keys").is_visible()
    seen.keys("a", "Escape")
    assert seen.text("#count") == "0 of 3 decided"
    seen.keys("e")
    seen.page.keyboard.type("mine ")
    seen.keys("Escape", "e")
    assert seen.page.locator("textarea[name=response]").input_value().startswith("mine Tides")
    seen.keys("Escape", "r", "Escape")
    assert seen.page.evaluate("document.activeElement.id") == "heading"


def test_evidence_is_marked_and_lit_up(look):
    seen = look(Run([sample(1)])).open()
    marks = seen.page.locator("#response-text mark")
    assert "".join(marks.all_inner_texts()) == (
        "the Moon’s pull is unevenThe near side bulges towards the Moon.24 hours and 50 minutes"
    )
    first = seen.page.locator("#verdict-list button").first
    assert "names who measured it first" in first.inner_text()
    assert "should · fail" in first.inner_text()
    first.focus()
    lit = seen.page.locator("#response-text mark.on")
    assert "".join(lit.all_inner_texts()) == "The near side bulges towards the Moon."
    seen.page.locator("#verdict-list button.verdict").nth(1).hover()
    assert lit.all_inner_texts() == ["the Moon’s pull is uneven"]


def test_the_instruction_has_its_verdicts_beside_it(kind, look):
    passing = screened_sample(2)
    passing["instruction_verdicts"][1]["verdict"] = "pass"
    seen = look(kind([screened_sample(1), passing, sample(3)])).open()
    lines = seen.page.locator("#screening li")
    # What failed comes first, and is open to be seen.
    assert lines.count() == 2 and lines.first.is_visible()
    said = lines.first.inner_text()
    assert "states the situation that it is for" in said and "should · fail" in said
    assert "It names nobody <b>who</b> asks." in said
    assert lines.nth(1).locator("q").inner_text() == "why are there"
    assert "1 failed, 1 passed" in seen.text("#screening summary")
    seen.keys("n")
    seen.heading("Sample 2")
    assert not seen.page.locator("#screening li").first.is_visible()
    seen.page.locator("#screening summary").click()
    seen.page.locator("#screening li").first.wait_for()
    seen.keys("n")
    seen.heading("Sample 3")
    assert seen.page.locator("#screening").count() == 0


def test_a_criterion_is_marked_as_wrong_with_the_decision_and_taken_back_with_it(look):
    backend = Run([screened_sample(1), screened_sample(2)])
    seen = look(backend).open()
    named = seen.page.get_by_role("button", name="This criterion is wrong: ")
    assert named.count() == 6
    wrong = "This criterion is wrong: names who measured it first"
    in_aside = seen.page.get_by_role("button", name=wrong)
    assert in_aside.get_attribute("aria-pressed") == "false"
    in_aside.click()
    assert in_aside.get_attribute("aria-pressed") == "true"
    assert in_aside.inner_text() == "criterion marked as wrong"
    # Marks are each sample's own, and stay while a person looks at another.
    seen.keys("n")
    seen.heading("Sample 2")
    assert seen.page.locator('.wrong[aria-pressed="true"]').count() == 0
    seen.keys("p")
    seen.heading("Sample 1")
    situation = seen.page.get_by_role("button", name="This criterion is wrong: states the")
    situation.click()
    both = seen.page.locator('.wrong[aria-pressed="true"]')
    assert both.count() == 2
    seen.keys("a")
    seen.heading("Sample 2")
    settled(backend, {"s1": {"decision": "accept", "wrong_criteria": ["c4", "i2"]}})
    seen.keys("u")
    seen.heading("Sample 1")
    settled(backend, {})
    assert both.count() == 2
    situation.click()
    in_aside.click()
    seen.keys("r", "Enter")
    seen.heading("Sample 2")
    settled(backend, {"s1": {"decision": "reject"}})


def test_what_needs_a_runs_directory_is_not_shown_for_threads(look):
    seen = look(Threads([screened_sample(1)])).open()
    assert seen.page.locator("#screening li").count() == 2
    assert seen.page.locator(".wrong").count() == 0
    for id_ in ("skip", "flag", "list-tools", "figures-button", "list-button"):
        assert not seen.page.locator(f"#{id_}").is_visible(), id_
    seen.keys("x", "f", "1", "t", "g", "/", "w", "e")
    assert seen.text("#count") == "0 of 1 decided"
    assert seen.page.locator("textarea").count() == 1
    seen.keys("Escape")


def test_verdicts_are_reached_and_marked_by_keys(look):
    backend = Run([screened_sample(1), sample(2)])
    seen = look(backend).open()
    seen.keys("w")
    seen.says("v goes to a verdict first.")
    seen.keys("v", "w", "v", "v", "w", "c")
    pressed = seen.page.locator('.wrong[aria-pressed="true"]')
    assert pressed.all_inner_texts() == [
        "verdict marked as wrong",
        "verdict marked as wrong",
        "criterion marked as wrong",
    ]
    seen.keys("V")
    assert "states the" not in seen.page.evaluate("document.activeElement.textContent")
    seen.keys("a")
    seen.heading("Sample 2")
    marks = {"wrong_criteria": ["c4"], "wrong_verdicts": ["i2", "c4"]}
    settled(backend, {"s1": {"decision": "accept", **marks}})
    seen.keys("u")
    seen.heading("Sample 1")
    assert pressed.count() == 3


def test_one_line_is_current_also_after_an_undo(kind, look):
    seen = look(kind([sample(1), sample(2), sample(3)])).open()
    seen.keys("a")
    seen.heading("Sample 2")
    seen.keys("u")
    seen.heading("Sample 1")
    current = seen.page.locator("#queue [aria-current]")
    assert current.count() == 1 and "Question 1" in current.inner_text()


def test_reasons_are_on_the_number_keys_and_in_the_form(look):
    backend = Run([sample(i) for i in range(1, 4)])
    seen = look(backend).open()
    seen.keys("2")
    seen.heading("Sample 2")
    seen.keys("9")
    seen.says("There is no reason 9.")
    seen.keys("r")
    assert seen.page.locator("#reasons button").count() == 2
    seen.page.keyboard.type("2 of 3 steps")  # digits are text there
    seen.keys("Enter")
    seen.heading("Sample 3")
    seen.keys("r")
    seen.page.get_by_role("button", name="It is about ponds.").click()
    seen.heading("All decided")
    reasons = ["It is too long.", "2 of 3 steps", "It is about ponds."]
    taken = {
        f"s{i}": {"decision": "reject", "reason": reason} for i, reason in enumerate(reasons, 1)
    }
    settled(backend, taken)


def test_the_instruction_is_edited_and_what_is_refused_stays_to_be_mended(look):
    backend = Run([sample(1), sample(2)])
    seen = look(backend).open()
    seen.expected = ("422",)
    seen.keys("i", "Control+A")
    seen.page.keyboard.type("Why does the tide turn?")
    seen.keys("Control+Enter")
    seen.page.get_by_text("The instruction is too near to that of r1").wait_for()
    assert seen.page.evaluate("document.activeElement.name") == "instruction"
    assert backend.taken == {}
    seen.keys("Control+A")
    seen.page.keyboard.type("Why does the sea rise?")
    seen.keys("Control+Enter")
    seen.heading("Sample 2")
    wanted = {"response": sample(1)["response"], "instruction": "Why does the sea rise?"}
    settled(backend, {"s1": {"decision": "edit", **wanted}})
    seen.keys("u")
    seen.heading("Sample 1")
    seen.keys("i")
    area = seen.page.locator("textarea[name=instruction]")
    assert area.input_value() == "Why does the sea rise?"
    seen.keys("Escape")


def test_skipped_ones_come_last_and_flags_stay(look):
    backend = Run([sample(i) for i in range(1, 5)])
    seen = look(backend).open()
    seen.keys("x")
    seen.heading("Sample 2")
    seen.keys("f")
    seen.says("Flagged.")
    assert seen.page.locator("#flag").get_attribute("aria-pressed") == "true"
    seen.keys("n", "n", "n")
    seen.heading("Sample 1")
    seen.page.reload()
    seen.heading("Sample 2")
    titles = seen.page.locator("#queue li")
    numbers = seen.page.locator("#queue .number")
    assert numbers.all_text_contents() == ["2", "3", "4", "1"]
    assert "flagged" in titles.first.text_content()
    assert "skipped" in titles.last.text_content()
    seen.page.locator("#filter-flagged").check()
    assert titles.count() == 1
    seen.page.locator("#filter-flagged").uncheck()
    assert backend.marks == {"skip": {"s1"}, "flag": {"s2"}}
    seen.page.locator("#heading").focus()
    seen.keys("p", "n", "n", "n", "n", "x")
    seen.says("It has its place again.")


def test_the_list_is_searched_filtered_and_sorted(look):
    long = sample(
        2, response="A *long* story of the sea. " * 40, status="rejected", reason="criteria"
    )
    long["attempts"][-1]["verdicts"] = [long["attempts"][-1]["verdicts"][0] | {"verdict": "fail"}]
    seen = look(Run([sample(1), long, sample(3)])).open()
    shown = seen.page.locator("#queue li")
    seen.keys("/")
    seen.page.keyboard.type("STORY long")
    seen.page.wait_for_function("() => document.querySelectorAll('#queue li').length === 1")
    seen.heading("Sample 2")
    seen.keys("Escape")
    assert seen.text("#list-count") == "1 of 3 samples"
    seen.keys("a")
    seen.heading("No sample fits")
    seen.page.get_by_role("button", name="Show all").click()
    seen.heading("Sample 1")
    seen.keys("u")
    seen.heading("Sample 2")
    seen.page.locator("#filter-machine").select_option("accepted")
    assert shown.count() == 2
    seen.page.locator("#filter-machine").select_option("")
    options = seen.page.locator("#filter-failed option").all_inner_texts()
    assert options[1] == "2 × not passed: names who measured it first"
    seen.page.locator("#filter-failed").select_option(index=2)
    assert shown.count() == 1 and "Question 2" in shown.first.text_content()
    seen.page.locator("#filter-failed").select_option("")
    seen.page.locator("#sort").select_option("long")
    assert "Question 2" in shown.first.text_content()


def test_decided_ones_are_come_back_to_changed_and_put_back(look):
    backend = Run([sample(1), sample(2), sample(3)])
    seen = look(backend).open()
    seen.keys("a")
    seen.heading("Sample 2")
    seen.keys("1")
    seen.heading("Sample 3")
    seen.keys("t")
    seen.heading("Decided sample")
    lines = seen.page.locator("#queue li")
    assert lines.locator(".meta").all_text_contents() == ["rejected", "accepted"]
    seen.page.get_by_text("decided: rejected · It is about ponds.").wait_for()
    seen.keys("a")
    seen.says("Changed: accepted.")
    changed = {"decision": "accept", "revise": True}
    settled(backend, {"s1": {"decision": "accept"}, "s2": changed})
    seen.page.get_by_text("decided: accepted").wait_for()
    seen.keys("n", "x")
    seen.says("It waits again.")
    settled(backend, {"s2": changed})
    seen.keys("t")
    seen.heading("Sample")
    assert seen.page.locator("#queue li").count() == 2
    assert "1 of 3 decided" in seen.text("#count")


def test_sixty_are_reviewed_by_keyboard_and_none_is_lost(look):
    backend = Run([screened_sample(i) for i in range(1, 61)])
    seen = look(backend).open()
    wanted = {}
    for number in range(1, 61):
        seen.heading(f"Sample {number} of 60" if number > 1 else "Sample 1")
        decision = {"decision": "accept"}
        if number % 4 == 1:
            decision = {"decision": "reject", "reason": backend.reasons[number % 2]}
            seen.keys(str(number % 2 + 1))
        elif number % 4 == 2:
            decision |= {"wrong_verdicts": ["i2"]}
            seen.keys("v", "w", "a")
        elif number % 4 == 3:
            seen.keys("f", "a")
        else:
            seen.keys("a")
        wanted[f"s{number}"] = decision
    seen.heading("All decided")
    settled(backend, wanted)
    assert len(backend.marks["flag"]) == 15


def test_at_the_end_there_are_figures_and_how_to_go_on(look):
    seen = look(Run([sample(1)])).open()
    seen.keys("a")
    seen.heading("All decided")
    closing = seen.page.locator(".closing")
    closing.wait_for()
    text = closing.inner_text()
    for words in ("4 s", "3 of 4 (75 %)", "alice: 1", "3 (75 %)", "refloom export out out.jsonl"):
        assert words in text, words
    assert closing.locator("b").count() == 0
    seen.keys("g")
    seen.page.locator("#figures[open]").wait_for()
    seen.keys("g")
    seen.page.locator("#figures").wait_for(state="hidden")


def test_what_others_decided_leaves_the_list(look):
    backend = Run([sample(i) for i in range(1, 5)])
    seen = look(backend).open()
    backend.taken["s3"] = {"decision": "reject", "by": "bob"}
    seen.keys("a")
    seen.page.wait_for_function("() => document.querySelectorAll('#queue li').length === 2")
    assert seen.text("#count") == "2 of 4 decided"


def test_differences_and_other_attempts_are_shown(look):
    seen = look(Run([sample(1)])).open()
    seen.keys("d")
    assert "all there is" in " ".join(seen.page.locator(".changes del").all_inner_texts())
    assert "bulges away from it" in " ".join(seen.page.locator(".changes ins").all_inner_texts())
    seen.keys("d")
    assert seen.page.locator(".changes").count() == 0
    seen.page.locator(".attempt summary").click()
    seen.page.locator(".attempt", has_text="Only one bulge is explained.").wait_for()


def test_reasoning_is_shown_as_text_and_bare_answers_are_counted(look):
    bare = sample(1)["attempts"][-1] | {"response": "A bare answer."}
    more = {"response": bare["response"], "answers": [sample(1)["attempts"][0], bare]}
    thoughts = "First <b>the moon</b> <img src=x onerror=alert(1)> then ![the](http://sun.test)."
    thoughts += "</think><script>window.owned = 1</script>\n" + "And so on. " * 50_000
    others = [sample(2, answers=[bare]), sample(3)]
    seen = look(Run([sample(1, reasoning=thoughts, **more), *others])).open()
    shown = seen.page.locator("#reasoning pre")
    assert shown.count() == 0
    assert "150010 words" in seen.text("#reasoning summary")
    seen.page.locator("#reasoning summary").click()
    shown.wait_for()
    assert shown.inner_text() == thoughts
    assert seen.page.locator("#reasoning :is(b, img, script)").count() == 0
    tried = seen.page.locator("#answers-tried")
    assert tried.inner_text() == "2 bare answers tried: the last one is the response."
    # It was written anew, and both attempts of the loop are others now.
    seen.keys("d")
    seen.says("written anew")
    assert seen.page.locator(".attempts .attempt").count() == 2
    seen.keys("j")
    seen.page.locator("#answers-tried", has_text="1 bare answer tried: none was taken.").wait_for()
    assert seen.page.locator("#reasoning").count() == 0
    seen.keys("j")
    tried.wait_for(state="detached")


def test_references_are_beside_it_and_inert(look):
    seen = look(Run([sample(1)])).open()
    assert seen.page.locator(".reference strong").inner_text() == "blue"
    seen.page.locator(".reference summary").nth(1).click()
    question = REFERENCES[1]["history"][0]["content"]
    seen.page.locator(".reference", has_text=question).wait_for()


def test_a_hostile_and_long_sample_is_inert_and_usable(kind, look):
    nasty = NASTY + "word **bold** `code` " * 7_000
    evil = "<img src=x onerror='window.owned=9'>"
    hostile = sample(1, response=nasty, instruction=evil + NASTY, model=evil, reason=evil)
    hostile["criteria"][0]["text"] = hostile["attempts"][1]["verdicts"][0]["reason"] = evil
    hostile["attempts"][1]["verdicts"][1]["evidence"] = evil
    seen = look(kind([hostile, sample(2)])).open()
    inside = "#response-text :is(script, img, svg, iframe, style, a, [style], [onerror])"
    assert seen.page.locator(inside).count() == 0
    assert seen.page.locator("main img, aside img, nav img").count() == 0
    assert len(seen.text("#response-text")) > 100_000
    seen.keys("s", "d", "d", "e", "Escape", "r", "Escape")
    seen.keys("a")
    seen.heading("Sample 2")


def test_a_server_error_keeps_the_edit_until_it_is_taken(kind, look):
    backend = kind([sample(1), sample(2)])
    seen = look(backend).open()
    seen.expected = ("503",)
    backend.fail = 2
    seen.keys("e")
    seen.page.keyboard.type("Mine. ")
    seen.keys("Control+Enter")
    seen.page.wait_for_selector("#unsent:not([hidden])")
    assert "the disk is full" in seen.text("#unsent")
    assert "Not saved: the disk is full" in seen.text("#alert")
    seen.page.reload()  # it is sent again, and fails again
    seen.page.wait_for_selector("#unsent:not([hidden])")
    wanted = {"decision": "edit", "response": "Mine. " + backend.samples["s1"]["response"]}
    assert backend.taken == {}
    seen.page.get_by_role("button", name="Try again").click()
    settled(backend, {"s1": wanted})
    seen.page.wait_for_selector("#unsent", state="hidden")
    seen.page.wait_for_function("() => !Object.keys(localStorage).length")


def test_without_a_server_decisions_are_kept_and_sent_when_it_is_back(kind, look):
    backend = kind([sample(number) for number in (1, 2, 3, 4)])
    seen = look(backend).open()
    seen.expected = ("ERR_INTERNET_DISCONNECTED",)
    seen.page.wait_for_load_state("networkidle")
    seen.page.context.set_offline(True)
    seen.keys("a")
    seen.page.locator("#unsent", has_text="1 decision not saved").wait_for()
    seen.heading("Sample 2")
    seen.keys("r", "Enter")
    seen.says("Rejected. It is sent when the server is back.")
    without = ".message" if kind is Run else "#response-text > pre"
    seen.page.locator(without).wait_for()
    assert backend.taken == {}
    seen.page.context.set_offline(False)
    settled(backend, {"s1": ACCEPT, "s2": {"decision": "reject"}})
    seen.heading("Sample 3")
    seen.page.locator("#unsent").wait_for(state="hidden")
    seen.page.locator("#response-text > .prose").wait_for()
    seen.keys("a")
    seen.heading("Sample 4")


def test_a_page_that_comes_as_its_server_goes_is_read_when_it_is_back(kind, look):
    seen = look(kind([sample(1)]))
    seen.expected = ("ERR_FAILED", "ERR_ABORTED")
    seen.page.route("**/review/config", lambda route: route.abort())
    seen.page.goto(f"{seen.url}/review")
    seen.page.locator(".message", has_text="cannot be reached").wait_for()
    seen.page.unroute("**/review/config")
    seen.heading("Sample 1 of 1")


def test_a_decision_whose_answer_was_lost_is_undone_on_the_server_too(look):
    backend = Run([sample(1), sample(2)])
    seen = look(backend).open()
    seen.expected = ("ERR_FAILED",)
    lost = []

    def lose(route):
        if route.request.method == "POST" and not lost:
            lost.append(route.fetch())
            return route.abort()
        return route.continue_()

    seen.page.route("**/review/items/s1", lose)
    seen.page.route("**/review/config", lambda route: route.abort())
    seen.keys("a")
    seen.page.locator("#unsent", has_text="not saved").wait_for()
    settled(backend, {"s1": ACCEPT})
    seen.keys("u")
    seen.heading("Sample 1")
    settled(backend, {})
    seen.page.unroute("**/review/config")
    seen.page.locator("#unsent").wait_for(state="hidden")
    seen.says("The server is back.")
    assert backend.taken == {}


def test_what_one_run_left_unsent_is_not_sent_to_another(look):
    backend = Run([sample(1), sample(2)])
    seen = look(backend).open()
    seen.expected = ("503",)
    backend.fail = 9
    seen.keys("a")
    seen.page.wait_for_selector("#unsent:not([hidden])")
    backend.run, backend.fail = "another", 0
    seen.page.reload()
    seen.heading("Sample 1 of 2")
    seen.page.wait_for_load_state("networkidle")
    assert backend.taken == {} and not seen.page.locator("#unsent").is_visible()
    seen.keys("u")
    seen.says("Nothing to undo.")
    backend.run = "run"
    seen.page.reload()
    settled(backend, {"s1": ACCEPT})


def test_a_failed_edit_that_is_taken_back_is_a_draft(look):
    backend = Run([sample(1), sample(2)])
    seen = look(backend).open()
    seen.expected = ("503",)
    backend.fail = 1
    seen.keys("e")
    seen.page.keyboard.type("Mine. ")
    seen.keys("Control+Enter")
    seen.page.get_by_role("button", name="Take it back").click()
    seen.heading("Sample 1")
    seen.keys("e")
    assert seen.page.locator("textarea[name=response]").input_value().startswith("Mine. Tides")
    seen.keys("Escape")


def test_a_key_is_asked_for_and_kept_in_the_session_only(kind, look):
    backend = kind([sample(1)])
    backend.key = "sesame"
    seen = look(backend)
    seen.expected = ("401",)
    seen.page.goto(f"{seen.url}/review")
    seen.page.wait_for_selector("#key-dialog[open]")
    seen.page.keyboard.type("wrong")
    seen.keys("Enter")
    seen.page.get_by_text("The server refused this key.").wait_for()
    seen.page.keyboard.type("sesame")
    seen.keys("Enter")
    seen.heading("Sample 1")
    assert seen.page.evaluate("sessionStorage.getItem('refloom-api-key')") == "sesame"
    assert seen.page.evaluate("Object.keys(localStorage)") == []
    assert "sesame" not in "".join(seen.requests)


@pytest.mark.parametrize("w", [390, 360])
def test_a_phone_scrolls_one_way_only(w, look):
    wide = sample(
        1,
        response=NASTY
        + "x" * 500
        + "\n\n```\n"
        + "y" * 500
        + "\n```\n\n|"
        + "wide|" * 60
        + "\n|"
        + "-|" * 60,
    )
    seen = look(Run([wide, sample(2)]), w=w, h=844).open()
    for keys in ("", "s", "e", "Escape", "d", "r"):
        if keys:
            seen.keys(keys)
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= w, keys
    seen.keys("Escape")
    seen.page.locator("#next").click()
    seen.heading("Sample 2")


def test_nothing_else_of_the_disk_is_served():
    with served(Run([])) as url:
        address = url.removeprefix("http://")
        for path in FORBIDDEN:
            connection = http.client.HTTPConnection(address)
            connection.request("GET", path)
            assert connection.getresponse().status == 404, path
            connection.close()
        with httpx.Client(base_url=url) as client:
            page = client.get("/review")
            assert page.headers["content-security-policy"].startswith(
                "default-src 'none'; script-src 'self'"
            )
            assert (
                client.get("/review/main.js").headers["content-type"].startswith("text/javascript")
            )
            assert client.get("/review/config").json() == {"source": "run", "run": "run"}


def test_what_is_shown_is_checked():
    body = {"sample": sample(1), "references": REFERENCES}
    with served(Run([])) as url, httpx.Client(base_url=url, timeout=30) as client:
        made = client.post("/review/shown", json=body).json()
        assert made["references"][0]["id"] == "r1"
        assert "<strong>twice a day</strong>" in made["response"]
        assert made["changes"][0][0] == "equal"
        assert client.post("/review/shown", json={"sample": 1}).status_code == 422
        assert client.get("/review/", follow_redirects=False).headers["location"] == "../review"
