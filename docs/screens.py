"""Make the pictures of docs/: a run on a terminal, the review page, the report.

    python docs/screens.py [terminal] [review] [report]

The run is refloom's own, over HTTP; the answers of its endpoint are the texts below. Chromium takes
the pages; the terminal is what the command wrote to one, drawn by rich.
"""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import ARGUMENTS, CHROMIUM  # noqa: E402
from fakes import Endpoint, screened, stage_of, tagged  # noqa: E402
from reviewing import ReviewProcess  # noqa: E402

COLUMNS, ROWS = 100, 30
FLAGS = ["--references", "pairs.jsonl", "--seeds", "topics.txt", "--model", "my-model"]
FLAGS += ["--references-per-seed", "2", "--max-attempts", "2", "--no-try-criteria"]
FLAGS += ["--prices", "prices.toml"]

RUNS_AS_IS = "shows code that runs as it stands"
NAMES_A_CASE = "names a case in which the advice does not hold"
SAYS_WHY = "says why it is done this way and not the obvious other way"
# Instruction, response, and what it teaches with the words that show it.
REFERENCES = [
    (
        "In Python, how do I count how often each word comes in a text file?",
        "Use `collections.Counter`, which does the counting for you.\n\n```python\nfrom collections "
        "import Counter\n\nwith open('notes.txt', encoding='utf-8') as file:\n    counts = "
        "Counter(file.read().lower().split())\n\nprint(counts.most_common(5))\n```\n\n`split()` cuts "
        "at white space, so \"end.\" and \"end\" count as two words. If that matters, find words with "
        "`re.findall(r'\\w+', text)`.",
        {RUNS_AS_IS: "with open('notes.txt', encoding='utf-8') as file:",
         NAMES_A_CASE: '"end." and "end" count as two words'},
    ),
    (
        "What does `git stash` do, and how do I get my changes back?",
        "It puts uncommitted changes aside and leaves a clean working tree.\n\n```\ngit stash\ngit "
        "stash pop\n```\n\nThe first stores the changes, the second brings them back. Files that git "
        "does not track yet stay where they are; `git stash -u` takes them too.",
        {RUNS_AS_IS: "git stash pop", NAMES_A_CASE: "Files that git does not track yet stay"},
    ),
    (
        "Write an SQL query for the three customers who spent the most in 2024.",
        "```sql\nSELECT customer_id, SUM(total) AS spent\nFROM orders\nWHERE ordered >= '2024-01-01' "
        "AND ordered < '2025-01-01'\nGROUP BY customer_id\nORDER BY spent DESC\nLIMIT 3;\n```\n\nA "
        "range of dates can use an index on `ordered`, which `YEAR(ordered) = 2024` cannot.",
        {RUNS_AS_IS: "GROUP BY customer_id", SAYS_WHY: "A range of dates can use an index"},
    ),
]  # fmt: skip
# Seed; instruction; draft; what the draft misses and why; the refined response, if there is one.
SAMPLES: list[tuple[str, str, str, dict[str, str], str | None]] = [
    (
        "removing duplicates from a list",
        "How do I remove duplicates from a Python list and keep the order of the items?",
        "Turn it into a dictionary and back:\n\n```python\nitems = ['b', 'a', 'b', 'c']\nprint(list("
        "dict.fromkeys(items)))\n```\n\nThis prints `['b', 'a', 'c']`.",
        {NAMES_A_CASE: "Nothing is said of items that cannot be keys of a dictionary."},
        "Turn it into a dictionary and back:\n\n```python\nitems = ['b', 'a', 'b', 'c']\nprint(list("
        "dict.fromkeys(items)))\n```\n\nThis prints `['b', 'a', 'c']`, since a dictionary keeps the "
        "order in which keys came. Items must be hashable: for a list of lists use `if item not in "
        "seen` in a loop instead.",
    ),
    (
        "undoing the last commit",
        "I committed too early. How do I undo my last git commit without losing the changes?",
        "```\ngit reset --soft HEAD~1\n```\n\nThe commit is gone and its changes are staged again, so "
        "you can add to them and commit anew. Do not do this to a commit that you have pushed and "
        "others may have fetched; use `git revert` there.",
        {}, None,
    ),
    (
        "orders without a customer",
        "Write an SQL query that finds the orders whose customer no longer exists.",
        "```sql\nSELECT o.id\nFROM orders AS o\nWHERE o.customer_id NOT IN (SELECT id FROM customers);"
        "\n```",
        {SAYS_WHY: "It is not said why NOT IN is used, and NOT IN finds nothing if an id is NULL.",
         NAMES_A_CASE: "The case of a NULL is left out."},
        "```sql\nSELECT o.id\nFROM orders AS o\nLEFT JOIN customers AS c ON c.id = o.customer_id\n"
        "WHERE c.id IS NULL;\n```\n\nThe join keeps each order once and leaves the customer empty where "
        "there is none. `NOT IN (SELECT id ...)` would find nothing as soon as one id is NULL. Orders "
        "that never had a customer are found too; add `AND o.customer_id IS NOT NULL` to leave them "
        "out.",
    ),
    (
        "reading a large file",
        "How do I read a 20 GB log file in Python without running out of memory?",
        "Go through it line by line; only one line is in memory at a time.\n\n```python\nwith open("
        "'server.log', encoding='utf-8', errors='replace') as file:\n    slow = sum('timeout' in line "
        "for line in file)\nprint(slow)\n```\n\nA file without line ends is one line: read that in "
        "pieces with `file.read(1 << 20)`.",
        {}, None,
    ),
    (
        "finding a lost commit",
        "I deleted a branch by mistake. How do I get its commits back?",
        "Look into the reflog, which has where HEAD was.\n\n```\ngit reflog\ngit branch rescued "
        "HEAD@{2}\n```\n\nTake the number of the entry that names your last commit. Commits that no "
        "branch holds are cleared away after some weeks, so do it soon.",
        {}, None,
    ),
    (
        "dates in a table",
        "How do I count orders for each month in PostgreSQL, also for months without any?",
        "Group by `date_trunc('month', ordered)` and count.",
        {RUNS_AS_IS: "There is no query, only a hint at one.",
         NAMES_A_CASE: "Months without an order are what was asked for, and they are left out."},
        "```sql\nSELECT date_trunc('month', ordered) AS month, count(*)\nFROM orders\nGROUP BY 1\nORDER "
        "BY 1;\n```\n\nMonths without an order do not come up.",
    ),
    (
        "merging two dictionaries",
        "How do I merge two Python dictionaries so that values of equal keys are added up?",
        "```python\nfrom collections import Counter\n\na, b = {'x': 1, 'y': 2}, {'y': 3}\nprint(dict("
        "Counter(a) + Counter(b)))\n```\n\nThis prints `{'x': 1, 'y': 5}`. `Counter` drops sums of "
        "zero or less; where those count, add them in a loop.",
        {}, None,
    ),
    (
        "a clean history",
        "How do I squash my last three commits into one before I open a pull request?",
        "```\ngit reset --soft HEAD~3\ngit commit -m 'Add the search'\n```\n\nThe first line takes the "
        "commits back and leaves their changes staged, so one commit holds them all. `git rebase -i` "
        "does the same where you want to choose. If the branch was pushed before, push it with "
        "`--force-with-lease`.",
        {}, None,
    ),
]  # fmt: skip
# What stays wrong after its refinement.
STILL_POOR = {
    SAMPLES[5][4]: {NAMES_A_CASE: "It says that those months are missing and not how to have them."}
}


def answer(body: dict[str, Any], number: int) -> Any:
    """What the endpoint says to a request; None for the agreeable answer of the tests."""
    time.sleep(0.2)
    stage, prompt = stage_of(body), body["messages"][-1]["content"]
    if stage == "extract":
        instruction = tagged(prompt, "instruction")[-1]
        lessons = next(lessons for text, _, lessons in REFERENCES if text == instruction)
        criteria = [{"text": t, "quote": q, "must": t != SAYS_WHY} for t, q in lessons.items()]
        return {"subject_areas": ["programming"], "relevant_skills": ["explaining"],
                "characteristics": criteria, "instruction_characteristics": []}  # fmt: skip
    if stage == "propose":
        seed = tagged(prompt, "seed")[-1]
        return {"instructions": [s[1] for s in SAMPLES if s[0] in seed]}
    if stage == "screen":
        return screened(prompt)
    if stage == "generate":
        instruction = tagged(prompt, "instruction")[-1]
        return next(s[2] for s in SAMPLES if s[1] == instruction)
    if stage == "refine":
        draft = tagged(prompt, "response")[-1]
        return next(s[4] for s in SAMPLES if s[2] == draft)
    if stage == "critique":
        return {"verdicts": list(judge(prompt))}
    return None


def judge(prompt: str) -> Iterator[dict[str, str]]:
    """A verdict for each criterion of a critique prompt."""
    response = tagged(prompt, "response")[-1]
    missing = STILL_POOR.get(response) or next((s[3] for s in SAMPLES if s[2] == response), {})
    criteria = re.findall(
        r'<(criterion(?:-\w+)?) id="([^"]+)"[^>]*>\n?(.*?)\n?</\1>', prompt, re.DOTALL
    )
    lines = [line for line in response.splitlines() if len(line) > 25] or [response]
    for number, (_, id_, text) in enumerate(criteria):
        why = next((why for part, why in missing.items() if part in text), None)
        yield {
            "criterion_id": id_,
            "reason": why or "The response does, in the words quoted.",
            "evidence": lines[number % len(lines)][:80],
            "verdict": "fail" if why else "pass",
        }


def run_on_a_terminal(folder: Path, *flags: str) -> bytes:
    """Run refloom on a pseudo-terminal; return what it wrote there."""
    parent, child = pty.openpty()
    size = {"COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
    environment = {**os.environ, **size, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "refloom", "run", *FLAGS, *flags]
    process = subprocess.Popen(
        command, cwd=folder, stdin=child, stdout=child, stderr=child, env=environment
    )
    os.close(child)
    written = b""
    while True:
        ready, _, _ = select.select([parent], [], [], 0.2)
        try:
            data = os.read(parent, 1 << 16) if ready else b""
        except OSError:  # the other end was closed
            data = b""
        written += data
        if not data and process.poll() is not None:
            break
    os.close(parent)
    if process.returncode:
        raise SystemExit(written.decode())
    return written


def screen_of(written: bytes) -> list[str]:
    """The lines on a terminal that was written to, with their colours as ANSI codes."""
    lines: list[dict[int, tuple[str, str]]] = [{}]
    row = column = 0
    style = ""
    text = written.decode("utf-8", "replace")
    for code, end, char in re.findall(r"\x1b\[([?\d;]*)([A-Za-z])|(.)", text, re.DOTALL):
        if end == "A":
            row = max(row - int(code or 1), 0)
        elif end == "K":
            lines[row] = {} if code == "2" else {c: v for c, v in lines[row].items() if c < column}
        elif end == "m":
            style = "" if code in ("", "0") else style + f"\x1b[{code}m"
        elif char == "\r":
            column = 0
        elif char == "\n":
            row, column = row + 1, 0
            if row == len(lines):
                lines.append({})
        elif char >= " ":
            lines[row][column] = style, char
            column += 1
    return list(map(_line, lines))


def _line(cells: dict[int, tuple[str, str]]) -> str:
    """A line of a terminal from its cells, each a style and a character."""
    row = [cells.get(i, ("", " ")) for i in range(max(cells, default=-1) + 1)]
    parts = [
        (style, "".join(char for _, char in same)) for style, same in groupby(row, lambda c: c[0])
    ]
    return "".join(f"{style}{text}\x1b[0m" if style else text for style, text in parts)


def draw_terminal(written: bytes, path: Path) -> None:
    """Draw the end of what was written as an SVG picture."""
    from rich.console import Console
    from rich.text import Text

    lines = screen_of(written)
    while lines and not lines[-1].strip():
        lines.pop()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ refloom run {' '.join(FLAGS[:6])} --out rows", style="bold"))
    for line in lines[-ROWS:]:
        console.print(Text.from_ansi(line), soft_wrap=True)
    path.write_text(console.export_svg(title="refloom run", unique_id="refloom"), encoding="utf-8")


def take(url: str, path: Path, *, keys: str = "", height: int = 860) -> None:
    """Take a picture of a page, of few colours so that it stays small."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": height})
        page.goto(url)
        page.wait_for_timeout(1500)
        for key in keys:
            page.keyboard.press(key)
            page.wait_for_timeout(800)
        picture = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    picture.convert("RGB").quantize(96).save(path, optimize=True)


def main(wanted: list[str]) -> None:
    """Make the pictures that are named, or all."""
    docs = ROOT / "docs"
    with tempfile.TemporaryDirectory() as name, Endpoint(answer) as endpoint:
        folder = Path(name)
        pairs = [{"instruction": question, "response": text} for question, text, _ in REFERENCES]
        (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
        (folder / "prices.toml").write_text("my-model = { input = 15, output = 60 }")
        (folder / "topics.txt").write_text("\n".join(s[0] for s in SAMPLES), encoding="utf-8")
        flags = ["--base-url", endpoint.url, "--concurrency", "3"]
        written = run_on_a_terminal(folder, "--out", "rows", *flags)
        if "terminal" in wanted:
            draw_terminal(written, docs / "terminal.svg")
        if "report" in wanted:
            command = [sys.executable, "-m", "refloom", "report", "rows"]
            subprocess.run(
                command, cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )
            take((folder / "rows" / "report.html").as_uri(), docs / "report.png", height=900)
        if "review" in wanted:
            run_on_a_terminal(
                folder, "--out", "review", "--review", "all", "--reuse", "rows", *flags
            )
            with ReviewProcess(folder / "review") as served:
                take(f"http://127.0.0.1:{served.port}/review", docs / "review.png", keys="aa")


if __name__ == "__main__":
    main(sys.argv[1:] or ["terminal", "review", "report"])
