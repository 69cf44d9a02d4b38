"""Rubrics as training data: what each item says, what comes back, and what is held out."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fakes import ScriptedModel, prompt_of, tagged, verdicts, words
from hub import Hub
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from processes import lines, refloom
from runs import all_rows, finish_run, number_of, references

from nodes.own_criteria import read_own_criterion
from prompts import render
from refloom.data.export import RubricSettings, export_rows
from refloom.data.rubrics import (
    CATEGORIES,
    RubricCounts,
    describe_item,
    has_standing_instruction,
    is_held_out,
    read_item,
    read_rubrics,
    rubric_of,
    write_item,
)
from refloom.data.write import replace_lines

OWN = [
    {"text": "blames the reader", "weight": -3, "must": False, "id": "blame"},
    {"text": "JSON is not all it holds", "must": False, "id": "not-all"},
    {"text": "has at most 200 words", "check": "max_words:200", "id": "words"},
    {"text": "names a number", "must": False, "weight": 4, "id": "number"},
]
COLUMN = {"rar": "rubric", "healthbench": "rubrics"}
PUBLIC = {
    "rar": {
        "question": "string",
        "reference_answer": "string",
        "question_source": "string",
        "rubric": [{"title": "string", "description": "string", "weight": "int64"}],
        "rubric_list": ["string"],
        "rubric_count": "int64",
    },
    "healthbench": {
        "example_tags": ["string"],
        "ideal_completions_data": {
            "ideal_completion": "string",
            "ideal_completions_group": "string",
            "ideal_completions_ref_completions": ["string"],
        },
        "prompt": [{"role": "string", "content": "string"}],
        "prompt_id": "string",
        "rubrics": [{"criterion": "string", "points": "int64", "tags": ["string"]}],
    },
}
PROOF = {
    "criterion_id": "string",
    "must": "bool",
    "quote": "string",
    "reference_id": "string",
    "judged_by": "string",
    "check": "string",
    "trial": {
        "references": "int64",
        "own": "int64",
        "spoiled": [{"kind": "string", "passed": "int64"}],
    },
    "pass_rate": "double",
    "verdict": "string",
}


class JudgingModel(ScriptedModel):
    """Passes what a reference says as it stands, fails what is spoiled of it, and some drafts."""

    def __init__(self) -> None:
        super().__init__(critique=self._critique)
        self.good = {r["response"] for r in references()}

    def _critique(self, call: Any) -> Any:
        response = tagged(prompt_of(call), "response")[-1]
        draft = not any(response[:20] in good for good in self.good)
        number = number_of(response)

        def outcome(id_: str) -> str:
            if not draft:
                return "pass" if response in self.good else "fail"
            return "fail" if number % 3 == 0 or (number % 7 == 1 and id_ == "number") else "pass"

        return verdicts(prompt_of(call), outcome)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, JudgingModel]:
    """A run of sixty samples with extracted, built-in and a person's criteria, and its model."""
    folder, model = tmp_path_factory.mktemp("rubrics"), JudgingModel()
    replace_lines(folder / "own.jsonl", map(json.dumps, OWN))
    running = finish_run(
        folder / "run",
        model,
        [words(f"seed {i}", 8) for i in range(20)],
        per_seed=3,
        max_attempts=2,
        try_criteria=True,
        criteria=folder / "own.jsonl",
    )
    counts = asyncio.run(running)["counts"]
    assert counts["candidates"] == 60
    assert counts["accepted"] >= 20 and counts["rejected"] >= 5, counts
    return folder / "run", model


def export(run: Path, file: Path, *more: object) -> str:
    done = refloom("export", run, file, "--format", "rubric", *more, cwd=file.parent)
    assert done.returncode == 0, done.stderr
    return done.stderr


def plain(feature: Any) -> Any:
    """The type of a column without what the `datasets` library calls it."""
    if isinstance(feature, dict):
        return {name: plain(part) for name, part in feature.items()}
    inner = getattr(feature, "feature", None)
    if inner is not None:
        return [plain(inner)]
    return {"float64": "double"}.get(feature.dtype, feature.dtype)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("shape", ["rar", "healthbench"])
def test_names_and_types_are_those_of_the_public_data(
    made: tuple[Path, JudgingModel], tmp_path: Path, shape: str
) -> None:
    import datasets

    expected = PUBLIC[shape] | {COLUMN[shape]: [PUBLIC[shape][COLUMN[shape]][0] | PROOF]}  # type: ignore[dict-item, index]
    found = []
    for suffix, kind in ((".jsonl", "json"), (".parquet", "parquet")):
        path = tmp_path / f"rows{suffix}"
        export(made[0], path, "--rubric-shape", shape)
        cache = {"cache_dir": str(tmp_path / "cache")}
        loaded = datasets.load_dataset(kind, data_files=str(path), split="train", **cache)
        assert plain(dict(loaded.features)) == expected
        found.append(loaded.to_list())
    assert found[0] == found[1] == lines(tmp_path / "rows.jsonl")
    assert len(found[0]) == sum(map(has_standing_instruction, all_rows(made[0])))


def test_every_instruction_that_stands_has_a_row_with_its_proof(
    made: tuple[Path, JudgingModel], tmp_path: Path
) -> None:
    run, _ = made
    export(run, tmp_path / "r.jsonl")
    rows, records = lines(tmp_path / "r.jsonl"), all_rows(run)
    assert [row["question"] for row in rows] == [
        r["instruction"] for r in records if r["status"] != "failed"
    ]
    passed, known = Counter[str](), Counter[str]()
    for record in records:
        for verdict in (v for attempt in record["attempts"] for v in attempt["verdicts"]):
            passed[verdict["criterion_id"]] += verdict["verdict"] == "pass"
            known[verdict["criterion_id"]] += verdict["verdict"] in ("pass", "fail")
    for row, record in zip(rows, (r for r in records if r["status"] != "failed"), strict=True):
        accepted = record["status"] == "accepted"
        assert row["reference_answer"] == (record["response"] if accepted else "")
        assert row["question_source"] == record["seed_id"]
        assert row["rubric_count"] == len(row["rubric"]) == len(row["rubric_list"])
        assert row["rubric_list"] == [item["description"] for item in row["rubric"]]
        assert [i["criterion_id"] for i in row["rubric"]] == [
            c["id"] for c in rubric_of(record["criteria"])
        ]
        for item in row["rubric"]:
            criterion = next(c for c in record["criteria"] if c["id"] == item["criterion_id"])
            id_ = criterion["id"]
            rate = passed[id_] / known[id_] if known[id_] else None
            assert item["pass_rate"] == rate
            assert (item["verdict"] != "") == accepted
            assert item["quote"] == (criterion["quote"] or "")
            assert (item["trial"] is None) == (criterion["trial"] is None)
    items = {item["criterion_id"]: item for row in rows for item in row["rubric"]}
    assert items["blame"]["description"] == "Pitfall Criteria: Blames the reader"
    assert [items[id_]["weight"] for id_ in ("blame", "words", "number", "not-all")] == [
        -3,
        5,
        4,
        2,
    ]
    assert items["answers-instruction"]["description"].startswith("Essential Criteria: Fully")
    assert items["words"]["check"] == "max_words:200"
    assert any(item["trial"] and item["trial"]["own"] for item in items.values())
    assert 0 < items["number"]["pass_rate"] < 1


@pytest.mark.parametrize("shape", ["rar", "healthbench"])
def test_a_rubric_read_back_asks_the_judge_in_the_same_words(
    made: tuple[Path, JudgingModel], tmp_path: Path, shape: str
) -> None:
    run, model = made
    file = tmp_path / "r.parquet"
    export(run, file, "--rubric-shape", shape)
    rubrics, asked = read_rubrics(file), set(model.asked("critique"))
    checked = 0
    for record in all_rows(run):
        if record["status"] != "failed":
            rubric = rubrics[" ".join(record["instruction"].split())]
            by_judge = [c for c in rubric.criteria if c["judged_by"] == "judge"]
            messages = render(
                "critique",
                criteria=by_judge,
                instruction=record["instruction"],
                response=record["attempts"][0]["response"],
                history=rubric.history,
            )
            assert "\n".join(m["content"] for m in messages) in asked
            checked += 1
    assert checked > 30


@given(
    # A criterion that says nothing is refused where it is read.
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip),
    st.sampled_from(["", "The response ", "Essential Criteria: ", "Pitfall Criteria: "]),
    st.sampled_from([None, 3, -2]),
    st.booleans(),
    st.sampled_from(["rar", "healthbench"]),
)
def test_any_text_comes_back(text: str, before: str, weight: Any, must: bool, shape: Any) -> None:
    own = read_own_criterion({"text": "x", "weight": weight, "must": must}, trusted=False)
    words_before = own["criterion"]["text"].removesuffix("x")
    criterion = {**own["criterion"], "text": words_before + before + text}
    got = read_item(json.loads(json.dumps(write_item(criterion, shape))))  # type: ignore[arg-type]
    for key in ("id", "text", "must", "judged_by", "check", "reference_id", "quote"):
        assert got[key] == criterion[key]  # type: ignore[literal-required]


def sample(*texts: str, **more: Any) -> str:
    """The record of a sample whose one draft passed these criteria."""
    criteria = [
        read_own_criterion({"text": text, "id": f"i{i}"}, trusted=False)["criterion"]
        for i, text in enumerate(texts)
    ]
    verdicts = [{"criterion_id": c["id"], "verdict": "pass"} for c in criteria]
    record = {"id": "x", "seed_id": "s", "instruction": "Why?", "response": "So.",
              "status": "accepted", "reason": None, "criteria": criteria,
              "attempts": [{"response": "So.", "verdicts": verdicts}]}  # fmt: skip
    return json.dumps(record | more)


def exported(path: Path, *records: str, share: float = 0.0, shape: Any = "rar", **more: Any) -> Any:
    counts = RubricCounts(share)
    for record in records:
        counts.add(json.loads(record))
    rubric = RubricSettings(shape, counts)
    written = export_rows(lambda: records, path, "rubric", rubric=rubric, **more)
    assert [len(lines(file)) for file in written] == list(written.values())
    return [lines(file) for file in written], counts


@pytest.mark.parametrize(
    ("more", "has_row"),
    [
        ({"status": "rejected", "reason": "criteria"}, True),
        ({"status": "rejected", "reason": "reviewer"}, True),
        ({"status": "rejected", "reason": "contaminated"}, False),
        ({"status": "failed"}, False),
        ({"criteria": []}, False),
    ],
)
def test_a_row_is_there_if_the_instruction_stands(
    tmp_path: Path, more: dict[str, Any], has_row: bool
) -> None:
    for shape in ("rar", "healthbench"):
        (rows,), _ = exported(tmp_path / "r.jsonl", sample("names it", **more), shape=shape)
        assert len(rows) == has_row
    if has_row:
        assert rows[0]["ideal_completions_data"] is None


def test_a_bare_answer_is_the_reference_answer_with_its_own_verdicts(tmp_path: Path) -> None:
    bare = {"response": "Bare.", "verdicts": [{"criterion_id": "i0", "verdict": "fail"}]}
    line = sample("names it", response="Bare.", reasoning="I think.", answers=[bare])
    ((row,),), _ = exported(tmp_path / "r.jsonl", line)
    (item,) = row["rubric"]
    assert (row["reference_answer"], item["verdict"]) == ("Bare.", "fail")
    assert item["pass_rate"] == 0.5
    assert "I think." not in json.dumps(row)


@pytest.mark.parametrize(
    ("unknown", "rate"), [("unknown", None), ("not_applicable", None), ("fail", 0.0)]
)
def test_only_known_verdicts_count_in_a_pass_rate(
    tmp_path: Path, unknown: str, rate: float | None
) -> None:
    line = json.loads(sample("names it"))
    line["attempts"][0]["verdicts"][0]["verdict"] = unknown
    ((row,),), _ = exported(tmp_path / "r.jsonl", json.dumps(line))
    assert row["rubric"][0]["pass_rate"] == rate


def test_weights_with_decimals_make_all_weights_decimals(tmp_path: Path) -> None:
    import pyarrow.parquet

    own = read_own_criterion({"text": "is short", "weight": 1.5}, trusted=False)["criterion"]
    line = json.loads(sample("names it"))
    line["criteria"].append(own)
    (rows,), counts = exported(tmp_path / "r.jsonl", json.dumps(line), sample("is plain"))
    assert [[repr(i["weight"]) for i in row["rubric"]] for row in rows] == [["5.0", "1.5"], ["5.0"]]
    rubric = RubricSettings("rar", counts)
    export_rows(lambda: [json.dumps(line)], tmp_path / "r.parquet", "rubric", rubric=rubric)
    assert "weight: double" in str(pyarrow.parquet.read_schema(tmp_path / "r.parquet"))


# Criteria that are held out.


def test_the_same_criterion_is_held_out_in_every_row_and_every_export(tmp_path: Path) -> None:
    texts = [words(f"criterion {i}", 5) for i in range(40)]
    records = [sample(*texts[i : i + 8], id=str(i), seed_id=f"s{i}") for i in range(30)]
    (rest, out), counts = exported(tmp_path / "r.jsonl", *records, share=0.3)
    assert (tmp_path / "r-heldout.jsonl").is_file()
    assert [r["question_source"] for r in rest] == [r["question_source"] for r in out]
    assert [len(a["rubric"]) + len(b["rubric"]) for a, b in zip(rest, out, strict=True)] == [8] * 30
    in_rest, in_out = (
        {item["description"] for row in rows for item in row["rubric"]} for rows in (rest, out)
    )
    assert not in_rest & in_out and len(in_rest | in_out) == 37
    assert 5 <= len(in_out) <= 18
    assert counts.held_out == sum(row["rubric_count"] for row in out)
    (_, again), _ = exported(tmp_path / "s.jsonl", *records[::-1][:9], share=0.3, random_seed=5)
    assert {i["description"] for row in again for i in row["rubric"]} <= in_out
    (_, more), _ = exported(tmp_path / "t.jsonl", *records, share=0.5)
    assert in_out < {i["description"] for row in more for i in row["rubric"]}


def test_a_row_with_nothing_held_out_stays(tmp_path: Path) -> None:
    texts = [words(f"criterion {i}", 5) for i in range(20)]
    own = [read_own_criterion(text, trusted=False)["criterion"] for text in texts]
    held = next(t for t, c in zip(texts, own, strict=True) if is_held_out(c, 0.3))
    other = next(t for t, c in zip(texts, own, strict=True) if not is_held_out(c, 0.3))
    records = [sample(held), sample(other), sample(held, other)]
    for shape in ("rar", "healthbench"):
        (rest, out), counts = exported(tmp_path / "r.jsonl", *records, share=0.3, shape=shape)
        column = COLUMN[shape]
        assert [len(row[column]) for row in rest] == [0, 1, 1]
        assert [len(row[column]) for row in out] == [1, 0, 1]
    assert (counts.rubrics, counts.items, counts.held_out) == (3, 4, 2)
    assert (counts.none_held_out, counts.all_held_out) == (1, 1)


def test_held_out_criteria_go_with_parts_and_the_first_rows(
    made: tuple[Path, JudgingModel], tmp_path: Path
) -> None:
    said = export(made[0], tmp_path / "r.jsonl", "--split-criteria", 0.3, "--max-rows", 20,
                  "--split", "train=0.8,validation=0.2")  # fmt: skip
    assert "held out: " in said and " have none held out" in said
    for part in ("train", "validation"):
        rest, out = (lines(tmp_path / f"r-{part}{end}.jsonl") for end in ("", "-heldout"))
        assert [r["question"] for r in rest] == [r["question"] for r in out] and rest
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--format", "messages", "--rubric-shape", "rar"], "--rubric-shape: only with"),
        (["--format", "messages", "--split-criteria", "0.3"], "--split-criteria: only with"),
        (["--format", "rubric", "--split-criteria", "1"], "1 is not between 0 and 1"),
        (["--format", "rubric", "--split-criteria", "nan"], "nan is not between 0 and 1"),
        (["--format", "rubric", "--split-criteria", "x"], "'x' is not a number"),
        (["--format", "rubric", "--rubric-shape", "other"], "invalid choice"),
        (["--format", "rubric", "--think-tags"], "--think-tags: not with --format rubric"),
        (["--format", "rubric", "--filter", "rouge"], "choose among accepted samples"),
    ],
)
def test_what_does_not_go_together_is_refused(
    made: tuple[Path, JudgingModel], tmp_path: Path, more: list[str], says: str
) -> None:
    done = refloom("export", made[0], "r.jsonl", *more, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr
    assert not list(tmp_path.iterdir())


def test_descriptions_begin_as_those_of_rar() -> None:
    texts = {"must": {}, "should": {"must": False}, "pitfall": {"weight": -1}}
    for level, fields in texts.items():
        own = read_own_criterion({"text": "cites a source", **fields}, trusted=False)
        assert describe_item(own["criterion"]) == f"{CATEGORIES[level]}Cites a source"
    assert rubric_of([own["criterion"]]) == [own["criterion"]]


# On the hub.


@pytest.mark.filterwarnings("default")
def test_rubrics_and_held_out_criteria_are_put_on_the_hub_with_a_card_that_says_their_limits(
    made: tuple[Path, JudgingModel], tmp_path: Path
) -> None:
    import datasets

    with Hub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        flags = ("--format", "rubric", "--split-criteria", 0.3)
        parts = ("--split", "train=0.8,validation=0.2")
        done = refloom("push", made[0], "me/rows", *flags, *parts, cwd=tmp_path, HF_TOKEN="x")
    assert done.returncode == 0, done.stderr
    assert "held out: " in done.stderr
    card = hub.files["README.md"].decode()
    assert "- `rubric_heldout`: 60 rows" in card
    assert "**The writing model saw all criteria while it wrote**" in card
    assert "tried on the reference and on spoiled copies" in card
    for name, content in hub.files.items():
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / name).write_bytes(content)
    rest, out = (
        datasets.load_dataset(str(tmp_path / "hub"), name, cache_dir=str(tmp_path / "cache"))
        for name in ("rubric", "rubric_heldout")
    )
    assert set(rest) == set(out) == {"train", "validation"}
    for part in rest:
        assert rest[part]["question"] == out[part]["question"]
        assert rest[part].features == out[part].features
    assert rest["train"].num_rows + rest["validation"].num_rows == 60


def test_a_card_tells_of_rubrics_unless_other_rows_go_with_it(
    made: tuple[Path, JudgingModel], tmp_path: Path
) -> None:
    assert "## Rubrics" in (made[0] / "README.md").read_text()
    flags = ("--format", "messages", "--dry-run")
    done = refloom("push", made[0], "me/rows", *flags, cwd=tmp_path)
    assert done.returncode == 0 and "## Rubrics" not in done.stdout
