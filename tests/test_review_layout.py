"""The review page holds any text at any width: nothing is cut off, nothing wider than its place."""

from __future__ import annotations

import pytest
from browser import CHROMIUM, ReviewPage
from hard_texts import TEXTS, hard_references, hard_sample, hard_thoughts
from review_fakes import Run, sample, screened_sample, served

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
WIDTHS = (375, 768, 1280, 1920)

# What is wider than its place: the page; an element that sticks out of the window; an element
# whose content sticks out of it and can be neither scrolled nor is a list's one-line title.
OVERFLOW = """() => {
  const wrong = [];
  const { clientWidth: width, scrollWidth } = document.documentElement;
  if (scrollWidth > width) wrong.push(`the page: ${scrollWidth} in ${width}`);
  const name = (e) => `${e.tagName.toLowerCase()}#${e.id}.${e.className}`;
  const scrolls = (e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  for (const e of document.querySelectorAll("body *")) {
    if (!e.checkVisibility() || !e.clientWidth || e.matches(".skip, #list-title, option")) continue;
    const style = getComputedStyle(e);
    const title = style.webkitLineClamp !== "none" || e.matches("select, input");
    const out = e.scrollWidth - e.clientWidth;
    if (out > 1 && style.display !== "inline" && !title) {
      const pane = e.matches(".queue, aside, dialog");
      if (pane || !scrolls(e)) wrong.push(`${name(e)}: ${e.scrollWidth} in ${e.clientWidth}`);
    }
    const inner = e.parentElement.closest("pre, table, .scroll");
    const box = e.getBoundingClientRect();
    const outside = box.right > width + 1 || box.left < -1;
    if (!inner && outside) wrong.push(`${name(e)}: to ${box.right}`);
  }
  return [...new Set(wrong)].slice(0, 10);
}"""


@pytest.fixture(scope="module", params=TEXTS)
def kind(request):
    thoughtful = hard_sample(sample(2, reasoning=hard_thoughts(request.param)), request.param)
    backend = Run([hard_sample(screened_sample(1), request.param), thoughtful])
    backend.references = hard_references(request.param)
    backend.reasons = ["It is about ponds " * 12, "w" * 300, "Short."]
    with served(backend) as url:
        yield url


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_its_place(browser, kind, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(20_000)
    seen = ReviewPage(page, kind).open()

    def assert_fits(where: str) -> None:
        assert page.evaluate(OVERFLOW) == [], where

    page.locator("#verdict-list li").first.wait_for()
    assert_fits("as it comes")
    for summary in page.locator("summary").all():
        if not summary.evaluate("e => e.parentElement.open"):
            summary.click()
    assert_fits("all of it open")
    for key in ("s", "d", "v"):
        seen.keys(key)
        assert_fits(key)
    seen.keys("e")
    assert_fits("the editor")
    seen.keys("Escape", "r")
    assert_fits("the reasons")
    seen.keys("Escape", "?")
    assert_fits("the keys")
    seen.keys("Escape", "g")
    page.locator("#figures[open]").wait_for()
    assert_fits("the figures")
    seen.keys("Escape", "l")
    assert page.locator("#search").is_visible()
    assert_fits("the list")
    seen.keys("Escape", "a")
    seen.heading("Sample 2")
    assert_fits("thoughts folded away")
    page.locator("#reasoning summary").click()
    page.locator("#reasoning pre").wait_for()
    assert_fits("thoughts")
    seen.keys("a")
    page.locator(".closing").wait_for()
    assert_fits("the end")
    seen.keys("t")
    seen.heading("Decided sample")
    assert_fits("a decided one")
    for id_ in ("s1", "s2"):
        page.evaluate("id => fetch(`review/items/${id}`, { method: 'DELETE' })", id_)
    seen.check()
    page.close()
