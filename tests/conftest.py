"""No keys, no endpoint and no other settings of the developer's reach a test."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import ARGUMENTS, CHROMIUM
from fakes import Endpoint, stage_of, tagged, verdicts, words
from hypothesis import settings
from processes import refloom
from xdist.scheduler import LoadScopeScheduling

# Written once for the workers and for the processes that tests start. Where that is turned off,
# each of them compiles all that it imports: some 8 s of a worker, a fifth of a second of a command.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The passes of the garbage collector over seven thousand collected tests take an eighth of the
# time of collecting them. The thresholds are not those that a run sets.
gc.set_threshold(30_000, 20, 50)

# How many examples a property is tried on: HYPOTHESIS_PROFILE=ci or nightly tries more.
EXAMPLES = {"dev": 25, "ci": 100, "nightly": 400}
for profile, examples in EXAMPLES.items():
    settings.register_profile(profile, max_examples=examples, deadline=None, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

# A module that makes something heavy once (a run, a server, a browser) goes to one worker as a
# whole, alone or with those that share what it makes. All other tests go one by one to a free one.
# Modules that embed in this process go to one worker, too: PyTorch and the model take 7 s to load.
GROUPS = dict.fromkeys(("test_card", "test_export", "test_push", "test_training"), "run")
EMBEDDING = ("test_command_line", "test_examples", "test_experiment", "test_golden_keys")
EMBEDDING += ("test_local", "test_resume_old_run", "test_serve", "test_service_tier")
GROUPS |= dict.fromkeys(EMBEDDING, "run")
ALONE = ("test_serve_doors", "test_filters", "test_judge_check")
ALONE += ("test_report", "test_review_page", "test_review_layout", "test_review_whole")
ALONE += ("test_tracing", "test_rubric_export", "test_public_names", "test_screening_report")

# Two workers that each let torch and faiss use every processor wait for one another: that doubles
# the time. Read when those are imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Runs wait for the disk at each group of calls; no test is about power that fails. A container's
# memory for files may be too small: the suite needs half a gigabyte.
IN_MEMORY = Path("/dev/shm")
roomy = IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > 4 << 30
if roomy and os.access(IN_MEMORY, os.W_OK):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))

PREFIXES = ("OPENAI_", "JUDGE_", "REFLOOM_", "LANGSMITH_", "LANGCHAIN_")


class Groups(LoadScopeScheduling):
    """The scheduler of `pytest -n`: by the groups above, the largest first."""

    def _split_scope(self, nodeid: str) -> str:
        module = Path(nodeid.split("::")[0]).stem
        return module if module in ALONE else GROUPS.get(module, nodeid)

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        """Drop what is done as well: xdist counts through all that a worker was given."""
        super().mark_test_complete(node, item_index, duration)
        given = self.assigned_work[node]
        scope = self._split_scope(self.registered_collections[node][item_index])
        if all(given[scope].values()):
            del given[scope]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    return Groups(config, log)


@pytest.fixture(autouse=True, scope="session")
def no_settings_of_the_developer() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(PREFIXES):
                patch.delenv(name)
        yield


@pytest.fixture(autouse=True, scope="session")
def freeze_modules() -> None:
    """Leave what the imports made out of every later collection: half a million objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; a module that asks for it is skipped where there is none.

    Not for a session: while it runs, Playwright keeps an event loop running in this thread.
    """
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()
