"""Chromium, where this machine has one, and a page of it whose faults are kept."""

from __future__ import annotations

import shutil

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class ReviewPage:
    """A page that is looked at, and all that must not have happened on it."""

    def __init__(self, page, url):
        self.page, self.url = page, url
        self.wrong, self.requests, self.dialogs = [], [], []
        self.expected = ()
        page.on(
            "console",
            lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))

    def open(self):
        self.page.goto(f"{self.url}/review")
        self.heading("Sample 1 of")
        return self

    def keys(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def heading(self, text):
        self.page.wait_for_function(
            "t => document.getElementById('heading').textContent.startsWith(t)"
            " && (document.querySelector('.response, .message'))",
            arg=text,
        )

    def says(self, text):
        self.page.wait_for_function(
            "t => document.getElementById('status').textContent.includes(t)", arg=text
        )

    def text(self, selector):
        return self.page.locator(selector).inner_text()

    def check(self):
        wrong = [line for line in self.wrong if not any(e in line for e in self.expected)]
        assert not wrong, wrong
        assert self.dialogs == []
        assert [url for url in self.requests if not url.startswith(self.url)] == []
        assert self.page.evaluate("window.owned") is None
