"""The table of seeds in `refloom status`: a seed may leave no row."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fakes import ScriptedModel, prompt_of, screened, tagged, verdicts, words
from processes import refloom
from runs import finish_run

from refloom.runs import seed_table
from refloom.runs.dropped import count_dropped
from refloom.runs.journal import open_read_only
from refloom.runs.outputs import read_status
from refloom.runs.seed_table import read_seed_table

DATA = Path(__file__).parent / "data"
SEEDS = [{"id": f"seed-{i}", "instruction": f"{words(f'seed {i}', 8)} tag{i}"} for i in range(4)]


def by_tag(call: Any, tag: str) -> bool:
    return tag in tagged(prompt_of(call), "seed")[-1]


def picky() -> ScriptedModel:
    """Fails all instructions of one seed, and all responses of another."""

    def screen(call):
        failing = by_tag(call, "tag1")
        return screened(prompt_of(call), "fail" if failing else "pass")

    def propose(call):
        seed = tagged(prompt_of(call), "seed")[-1]
        poor = " poor" if "tag2" in seed else ""
        return {"instructions": [f"What of {words(f'{seed} {call.seed}', 9)}{poor}?"]}

    def critique(call):
        poor = " poor?" in tagged(prompt_of(call), "instruction")[-1]
        return verdicts(prompt_of(call), "fail" if poor else "pass")

    return ScriptedModel(screen=screen, propose=propose, critique=critique)


async def test_the_table_has_what_became_of_each_seed_and_those_without_a_row_come_first(tmp_path):
    await finish_run(tmp_path, picky(), screen=True, seeds=SEEDS, max_attempts=1)
    table = read_seed_table(tmp_path)
    none = dict.fromkeys(("rejected", "failed", "screened", "duplicate", "unfit", "surplus"), 0)
    assert table == {
        "seeds": [
            {"seed_id": "seed-1", "rows": 0, **none, "screened": 2},
            {"seed_id": "seed-2", "rows": 0, **none, "rejected": 1},
            {"seed_id": "seed-0", "rows": 1, **none},
            {"seed_id": "seed-3", "rows": 1, **none},
        ],
        "seeds_without_rows": 2,
    }
    with open_read_only(tmp_path / "journal.sqlite") as journal:
        counts = count_dropped(journal)
    assert counts["screened"] == sum(seed["screened"] for seed in table["seeds"])


async def test_status_shows_the_table_and_says_in_a_line_that_seeds_left_no_row(tmp_path):
    await finish_run(tmp_path, picky(), screen=True, seeds=SEEDS, max_attempts=1)
    said = json.loads(refloom("status", tmp_path, "--json", cwd=tmp_path).stdout)
    assert {key: said[key] for key in ("seeds", "seeds_without_rows")} == read_seed_table(tmp_path)
    text = refloom("status", tmp_path, cwd=tmp_path).stdout
    (line,) = [line for line in text.splitlines() if "left no row" in line]
    assert line == "  2 seeds have left no row, such as seed-1: 2 screened (--json lists them)"
    # The files of a run have no such table.
    assert "seeds_without_rows" not in json.loads((tmp_path / "run.json").read_text())
    assert "seeds" not in read_status(tmp_path)


async def test_a_long_table_is_cut_and_its_total_is_not(tmp_path, monkeypatch):
    await finish_run(tmp_path, picky(), screen=True, seeds=SEEDS, max_attempts=1)
    monkeypatch.setattr(seed_table, "MAX_SEEDS_LISTED", 1)
    table = read_seed_table(tmp_path)
    assert [seed["seed_id"] for seed in table["seeds"]] == ["seed-1"]
    assert table["seeds_without_rows"] == 2


async def test_a_sample_that_waits_for_a_person_is_not_a_seed_without_a_row(tmp_path):
    await finish_run(tmp_path, ScriptedModel(), seeds=SEEDS[:1], review="all")
    table = read_seed_table(tmp_path)
    assert table["seeds_without_rows"] == 0 and table["seeds"][0]["rows"] == 0


@pytest.mark.parametrize("name", ["half_done_run", "finished_run"])
def test_a_journal_of_an_earlier_version_has_zeros_and_ids_from_its_rows(tmp_path, name):
    shutil.copytree(DATA / name / "out", tmp_path / "out")
    table = read_seed_table(tmp_path / "out")
    assert table["seeds"] and all(seed["screened"] == 0 for seed in table["seeds"])
    rows = sum(seed["rows"] for seed in table["seeds"])
    assert rows == read_status(tmp_path / "out")["counts"]["accepted"]
    assert sum(seed["seed_id"] is not None for seed in table["seeds"]) > len(table["seeds"]) / 2
    with sqlite3.connect(tmp_path / "out" / "journal.sqlite") as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(turns)")}
    connection.close()
    assert "dropped" not in columns
