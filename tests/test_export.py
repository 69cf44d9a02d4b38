"""Accepted rows as training data: whatever the text, it comes out as it went in."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import lines, refloom

from refloom.data.export import (
    FORMATS,
    assign_parts,
    export_rows,
    format_rows,
    has_taggable_thoughts,
    messages,
    parse_shares,
    seeded_hash,
)
from refloom.data.read import Source
from refloom.runs.journal import Journal, read_records

NASTY = {
    "LaTeX": r"\frac{1}{2} \[ \nabla \times \mathbf{B} \] $\text{if } x \neq 0$ \\ \u0041 \t \n",
    "code": "```python\ndef f(x):\n\tprint(f\"{x!r}\\n\", '''\"\"\"''')\n```\n\n    indented\n",
    "C": '#include <stdio.h>\nint main(void) {\n\tprintf("%d\\n", a[0] ? 1 : 2);\n\treturn 0;\n}\n',
    "Go": "func f(m map[string]int) {\n\tfor k := range m {\n\t\tfmt.Println(`\\raw`, k)\n\t}\n}\n",
    "Rust": 'fn f<\'a>(x: &\'a str) -> String {\n\tformat!("{x:?} {{}}") // r#"raw"#\n}\n',
    "JavaScript": "const f = ({a, ...r}) =>`${a}\\n`;\n\tif(/[\"'`]\\/$/.test(s)) { throw 1; }\n",
    "CRLF": "one\r\ntwo\rthree\n\r\n",
    "other line ends": "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg",
    "emoji": "😀 👩‍👩‍👧‍👦 🏳️‍🌈 \U0010ffff",
    "right to left": "שלום \u202eevil\u202c مرحبا\u200f",
    "NUL and controls": "a\x00b\x01\x07\x1b[31mred\x7f\x9f",
    "chat markers": "<|im_start|>user\nhi<|im_end|></s>[INST] <<SYS>> [/INST]<|eot_id|>",
    "jinja": "{{ 7 * 7 }} {% raw %}{# no #}{% endraw %} {{ ''.__class__ }}",
    "JSON": '{"response": "x\\"y\\\\", "n": null}\n{"messages": []}',
    "HTML": "<script>alert(1)</script> </response> &amp; &lt;",
    "spaces": " \t leading and trailing \n ",
    "composed and not": "é e\u0301 \ufeff ﬁ K Å",
    "only a space": " ",
    "100 kB": "".join(f"{i}: \\alpha 潮\n" for i in range(7000)),
}


def record(instruction: str, response: str, **more) -> str:
    whole = {"id": "x", "seed_id": "s", "instruction": instruction, "response": response}
    whole |= {"status": "accepted", "criteria": [], "attempts": []}
    return json.dumps(whole | more, ensure_ascii=False)


def through_a_file(path, records_, format_="messages", **more) -> list[dict]:
    (count,) = export_rows(lambda: records_, path, format_, **more).values()
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == count
    return [json.loads(line.decode("utf-8")) for line in lines]


@pytest.mark.parametrize("name", NASTY)
def test_messages_hold_the_text_byte_for_byte(tmp_path, name):
    text = NASTY[name]
    found = through_a_file(tmp_path / "t.jsonl", [record(text, "So."), record("Why?", text)])
    assert [m["content"].encode() for m in found[0]["messages"]] == [text.encode(), b"So."]
    assert [m["content"].encode() for m in found[1]["messages"]] == [b"Why?", text.encode()]


def test_all_of_it_in_one_file_keeps_its_order(tmp_path):
    every = list(NASTY.values())
    found = through_a_file(tmp_path / "t.jsonl", [record(t, t[::-1]) for t in every])
    assert [r["messages"][0]["content"] for r in found] == every
    assert [r["messages"][1]["content"] for r in found] == [t[::-1] for t in every]


anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(st.lists(st.tuples(anything, anything), max_size=4))
def test_any_text_survives_export_and_parsing(said):
    found = list(format_rows([record(a, b) for a, b in said], "messages"))
    lines = [json.dumps(row, ensure_ascii=False) for _, row in found]
    assert not any("\n" in line or "\r" in line for line in lines)
    back = [json.loads(line.encode("utf-8").decode("utf-8")) for line in lines]
    assert [tuple(m["content"] for m in row["messages"]) for row in back] == said


def test_messages_are_a_users_and_an_assistants_and_nothing_else():
    (found,) = messages(json.loads(record("Why?", "So.", usage={"calls": 3})))
    assert found == {
        "messages": [
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "So."},
        ]
    }


async def test_what_the_journal_holds_as_accepted_is_exported_in_slot_order(tmp_path):
    journal = Journal(tmp_path)
    for position, status in [(2, "accepted"), (0, "accepted"), (1, "rejected"), (3, "failed")]:
        line = record(f"Why {position}?", NASTY["NUL and controls"], status=status)
        values = (0, position, 0, status, line)
        await journal.put("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", *values)
    journal.close()
    accepted = list(read_records(tmp_path / "journal.sqlite", "accepted"))
    found = through_a_file(tmp_path / "t.jsonl", accepted)
    assert [r["messages"][0]["content"] for r in found] == ["Why 0?", "Why 2?"]
    assert found[0]["messages"][1]["content"] == NASTY["NUL and controls"]


@pytest.mark.parametrize("format_", FORMATS)
def test_no_rows_are_an_empty_file(tmp_path, format_):
    assert through_a_file(tmp_path / "t.jsonl", [], format_) == []


def test_a_parquet_file_of_no_rows_has_its_columns_and_no_empty_group(tmp_path):
    import datasets
    import pyarrow.parquet

    path = tmp_path / "t.parquet"
    assert export_rows(lambda: [], path, "messages") == {path: 0}
    file = pyarrow.parquet.ParquetFile(path)
    assert (file.schema_arrow.names, file.metadata.num_row_groups) == (["messages"], 0)
    # The datasets library takes the size of its batches from the first group.
    streamed = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", streaming=True, cache_dir=str(tmp_path)
    )
    assert list(streamed) == []


@pytest.mark.parametrize("format_", FORMATS)
def test_no_format_changes_the_record(format_):
    given_ = json.loads(record(NASTY["CRLF"], NASTY["code"]))
    before = json.dumps(given_)
    FORMATS[format_].rows(given_)
    assert json.dumps(given_) == before


def test_an_export_replaces_a_file_whole_or_not_at_all(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("old\n")

    def breaks_off():
        yield record("Why?", "So.")
        raise RuntimeError("the journal is gone")

    with pytest.raises(RuntimeError):
        export_rows(breaks_off, path, "messages")
    assert path.read_text() == "old\n"
    assert len(through_a_file(path, [record("Why?", "So.")])) == 1
    assert not list(tmp_path.glob("*.new"))


async def test_two_exports_of_one_file_at_once_leave_one_of_them_whole(tmp_path):
    path = tmp_path / "t.jsonl"
    code = (
        "import json, sys; from pathlib import Path; from refloom.data.export import export_rows\n"
        "row = {'seed_id': 's', 'instruction': sys.argv[2] * 50, 'response': 'So.'}\n"
        "for _ in range(20):\n"
        "    export_rows(lambda: [json.dumps(row)] * 300, Path(sys.argv[1]), 'messages')"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, path, n], cwd=Path(__file__).parent.parent)
        for n in "12"
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    found = [
        row["messages"][0]["content"] for row in map(json.loads, path.read_text().splitlines())
    ]
    assert len(found) == 300 and len(set(found)) == 1


def test_an_unknown_format_is_a_key_error():
    with pytest.raises(KeyError):
        list(format_rows([record("Why?", "So.")], "no such format"))


# Every format, on text that breaks others.


def judged(instruction: str, *responses: str, fails: int | None = None) -> str:
    """A record of some attempts; all but the last fail `fails` of three musts (by default one)."""
    criteria = [
        {"id": f"c{i}", "text": f"does {i}", "must": i < 3, "reference_id": None, "quote": None,
         "judged_by": "judge"}
        for i in range(4)
    ]  # fmt: skip
    attempts = []
    for place, response in enumerate(responses):
        last = place == len(responses) - 1
        failed = set() if last else set(range(place, place + (1 if fails is None else fails)))
        attempts.append({"response": response, "verdicts": [
            {"criterion_id": f"c{i}", "verdict": "fail" if i in failed else "pass",
             "reason": f"about {i}", "evidence": response[:9], "score": None}
            for i in range(4)
        ]})  # fmt: skip
    return record(instruction, responses[-1], criteria=criteria, attempts=attempts)


def texts_in(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in texts_in(part)]


def analysed(response: str) -> dict[str, object]:
    """What a record of the paper's pipeline has beyond others."""
    names = ("original_strengths", "improvement_opportunities", "relevant_feedback")
    return {
        "analysis": {name: [f"{name} of it"] for name in names},
        "implementation_strategy": {"planned_changes": ["say why"], "rationale": "so"},
        "improved_response": response,
    }


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_gives_back_every_text_through_the_datasets_library(tmp_path, format_, suffix):
    import datasets

    drafts = {n: f"{text[:500]} a poor draft in other words" for n, text in NASTY.items()}
    made = [
        json.dumps(
            json.loads(judged(f"{NASTY[n][:500]}?", drafts[n], f"{NASTY[n]}!"))
            | analysed(f"{NASTY[n]}!")
        )
        for n in NASTY
    ]
    path = tmp_path / f"rows{suffix}"
    (count,) = export_rows(lambda: made, path, format_).values()
    kind = "parquet" if suffix == ".parquet" else "json"
    cache = {"cache_dir": str(tmp_path / "cache")}
    found = datasets.load_dataset(kind, data_files=str(path), split="train", **cache)
    assert len(found) == count >= len(NASTY)
    assert [texts_in(row) for row in found] == [
        texts_in(row) for _, row in format_rows(made, format_)
    ]
    texts = {text.encode() for row in found for text in texts_in(row)}
    assert {f"{text[:500]}?".encode() for text in NASTY.values()} <= texts
    assert {f"{text}!".encode() for text in NASTY.values()} <= texts
    if format_.startswith(("preference", "kto", "trajectory", "refed")):
        assert {text.encode() for text in drafts.values()} <= texts


READABLE = ["messages", "prompt_completion", "alpaca", "sharegpt"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("format_", READABLE)
def test_what_is_exported_is_read_as_references_byte_for_byte(tmp_path, format_, suffix):
    texts = [text for text in NASTY.values() if text.strip()]
    path = tmp_path / f"rows{suffix}"
    export_rows(lambda: [record(t[:99], t) for t in texts], path, format_)
    found = list(Source(path, as_reference=True))
    assert [(r["instruction"], r["response"]) for r in found] == [(t[:99], t) for t in texts]


# Preferences.


def test_a_preference_sets_the_accepted_response_over_the_attempt_that_failed_most():
    line = json.loads(judged("Why?", "no idea at all", "only half of it", "So it is.", fails=2))
    (found,) = FORMATS["preference"].rows(line)
    assert found["chosen"] == [{"role": "assistant", "content": "So it is."}]
    assert found["rejected"] == [{"role": "assistant", "content": "no idea at all"}]
    assert [d["criterion_id"] for d in found["decided_by"]] == ["c0", "c1"]
    assert found["decided_by"][0]["criterion"] == "The response does 0."


@pytest.mark.parametrize(
    ("why", "line"),
    [
        ("there is one attempt", judged("Why?", "So.")),
        ("only a should failed", judged("Why?", "a b c", "d e f", "g h i", "So.", fails=0)),
        ("the texts hardly differ", judged("Why?", "word " * 50 + "end", "word " * 50 + "End")),
        ("the attempt is blank", judged("Why?", " \n", "So.")),
        ("a person wrote the response", json.dumps(json.loads(judged("Why?", "a", "b c d"))
                                                   | {"response": "Mine."})),
    ],
)  # fmt: skip
def test_there_is_no_preference_where(why, line):
    assert FORMATS["preference"].rows(json.loads(line)) == []


def test_an_unknown_verdict_decides_nothing():
    line = json.loads(judged("Why?", "no idea at all", "So it is."))
    line["attempts"][0]["verdicts"][0]["verdict"] = "unknown"
    assert FORMATS["preference"].rows(line) == []
    line = json.loads(judged("Why?", "no idea at all", "So it is."))
    line["attempts"][1]["verdicts"][0]["verdict"] = "not_applicable"
    assert FORMATS["preference"].rows(line) == []


def test_kto_has_the_accepted_response_and_each_attempt_that_failed_once():
    line = json.loads(judged("Why?", "no idea at all", "only half of it", "So it is."))
    found = [(r["completion"][0]["content"], r["label"]) for r in FORMATS["kto"].rows(line)]
    assert found == [("So it is.", True), ("no idea at all", False), ("only half of it", False)]


def test_plain_pairs_have_the_words_of_those_in_turns():
    line = json.loads(judged("Why?", "no idea at all", "only half of it", "So it is."))
    (pair,), (turns,) = (FORMATS[name].rows(line) for name in ("preference_text", "preference"))
    assert [turns[k][0]["content"] for k in ("prompt", "chosen", "rejected")] == [
        pair[k] for k in ("prompt", "chosen", "rejected")
    ]
    assert pair["decided_by"] == turns["decided_by"]
    assert FORMATS["kto_text"].rows(line) == [
        {"prompt": "Why?", "completion": "So it is.", "label": True},
        {"prompt": "Why?", "completion": "no idea at all", "label": False},
        {"prompt": "Why?", "completion": "only half of it", "label": False},
    ]


def test_a_trajectory_pairs_each_draft_with_what_was_made_from_it():
    line = json.loads(judged("Why?", "first", "second", "third"))
    # The second attempt breaks what the first had: the third is made from the first again.
    line["attempts"][1]["verdicts"][0]["verdict"] = "pass"
    line["attempts"][1]["verdicts"][1]["verdict"] = "fail"
    found = FORMATS["trajectory"].rows(line)
    assert [(r["draft"], r["refinement"]) for r in found] == [
        ("first", "second"),
        ("first", "third"),
        ("second", ""),
        ("third", ""),
    ]
    assert [v["verdict"] for v in found[0]["verdicts"]] == ["fail", "pass", "pass", "pass"]


# Thoughts.

THOUGHTS = "First the sky,\nthen the sea."


def thought(*answers: str, reasoning: str | None = THOUGHTS) -> str:
    """A record whose bare answers stand apart from its two attempts; the last is the response."""
    line = json.loads(judged("Why?", "no idea at all", "So it is."))
    bare = json.loads(judged("Why?", *answers))["attempts"]
    return json.dumps(line | {"answers": bare, "response": answers[-1], "reasoning": reasoning})


def test_messages_have_the_thoughts_where_chat_templates_look_for_them():
    made = [thought("It is blue."), record("Why?", "So.", reasoning=None), record("Why?", "So.")]
    turns = [row["messages"] for _, row in format_rows(made, "messages")]
    assert turns[0][1] == {
        "role": "assistant", "content": "It is blue.", "reasoning_content": THOUGHTS
    }  # fmt: skip
    assert turns[0][0] == {"role": "user", "content": "Why?"}
    assert turns[1] == turns[2] and "reasoning_content" not in turns[1][1]


@pytest.mark.parametrize("format_", ["messages", "prompt_completion", "alpaca", "sharegpt"])
def test_thoughts_may_stand_inside_the_text(format_):
    tagged = f"<think>\n{THOUGHTS}\n</think>\n\nIt is blue."
    (row,) = [row for _, row in format_rows([thought("It is blue.")], format_, think_tags=True)]
    assert texts_in(row)[-1] == tagged and "reasoning_content" not in json.dumps(row)
    (row,) = [row for _, row in format_rows([record("Why?", "So.")], format_, think_tags=True)]
    assert texts_in(row)[-1] == "So."
    others = [row for _, row in format_rows([thought("It is blue.")], format_)]
    assert ("sea" in json.dumps(others)) == (format_ == "messages")


@pytest.mark.parametrize("mark", ["</think>", "< / THINK >", "</thinking>"])
def test_thoughts_that_would_close_the_tag_are_left_out_of_the_text(mark):
    said = thought("It is blue.", reasoning=f"It asks what {mark} is for.")
    (row,) = [row for _, row in format_rows([said], "messages", think_tags=True)]
    assert row["messages"][1] == {"role": "assistant", "content": "It is blue."}
    assert not has_taggable_thoughts(json.loads(said))
    (row,) = [row for _, row in format_rows([said], "messages")]
    assert mark in row["messages"][1]["reasoning_content"]


@pytest.mark.parametrize("format_", sorted(set(FORMATS) - {"messages"}))
def test_no_other_format_has_thoughts(format_):
    assert "the sea" not in json.dumps(FORMATS[format_].rows(json.loads(thought("It is blue."))))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("with_thoughts", [True, False])
def test_a_table_has_a_column_of_thoughts_if_any_row_has_some(tmp_path, with_thoughts):
    import datasets

    made = [record("Why?", "So.")] * 2 + [thought("It is blue.")] * with_thoughts
    found = {}
    for suffix, kind in ((".jsonl", "json"), (".parquet", "parquet")):
        path = tmp_path / f"rows{suffix}"
        export_rows(lambda: made, path, "messages")
        cache = {"cache_dir": str(tmp_path / "cache")}
        found[kind] = datasets.load_dataset(kind, data_files=str(path), split="train", **cache)
    read = {
        kind: [[{k: v for k, v in turn.items() if v is not None} for turn in row["messages"]]
               for row in rows]
        for kind, rows in found.items()
    }  # fmt: skip
    assert read["json"] == read["parquet"] == [messages(json.loads(m))[0]["messages"] for m in made]
    assert ("reasoning_content" in str(found["parquet"].features)) == with_thoughts


def test_parts_of_an_export_have_the_same_columns(tmp_path):
    import pyarrow.parquet

    made = [*several(3, 1), thought("It is blue.")]
    parts = {"train": 0.5, "validation": 0.5}
    written = export_rows(lambda: made, tmp_path / "r.parquet", "messages", parts=parts)
    schemas = [pyarrow.parquet.read_schema(path) for path in written]
    assert schemas[0] == schemas[1] and "reasoning_content" in str(schemas[0])


def test_a_bare_answer_is_set_over_attempts_and_bare_answers_that_failed():
    line = json.loads(thought("poor words of mine", "not quite it at all", "It is blue."))
    (pair,) = FORMATS["preference"].rows(line)
    assert pair["chosen"] == [{"role": "assistant", "content": "It is blue."}]
    found = [(r["completion"][0]["content"], r["label"]) for r in FORMATS["kto"].rows(line)]
    assert found == [
        ("It is blue.", True),
        ("no idea at all", False),
        ("poor words of mine", False),
        ("not quite it at all", False),
    ]


def test_bare_answers_that_failed_are_set_under_a_response_that_stayed():
    line = json.loads(thought("poor words of mine", "passes without thoughts", reasoning=None))
    line["response"] = "So it is."
    found = [(r["completion"][0]["content"], r["label"]) for r in FORMATS["kto"].rows(line)]
    assert found == [
        ("So it is.", True), ("no idea at all", False), ("poor words of mine", False)
    ]  # fmt: skip


def test_a_bare_answer_with_an_attempts_words_is_judged_by_its_own_verdicts():
    line = json.loads(thought("poor words of mine", "no idea at all"))
    (row, *_) = FORMATS["preference"].rows(line)
    assert row["chosen"][0]["content"] == "no idea at all"
    assert row["rejected"][0]["content"] == "poor words of mine"
    line["reasoning"] = None
    assert FORMATS["preference"].rows(line) == []


def test_a_trajectory_tells_of_the_attempts_alone():
    line = json.loads(thought("poor words of mine", "It is blue."))
    drafts = [row["draft"] for row in FORMATS["trajectory"].rows(line)]
    assert drafts == ["no idea at all", "So it is."]


@pytest.mark.filterwarnings("default")
def test_a_chat_template_of_trl_puts_the_thoughts_before_the_answer():
    from transformers.utils.chat_template_utils import render_jinja_template

    # Read as a file: to import TRL's modules takes seconds.
    (folder,) = find_spec("trl").submodule_search_locations
    template = Path(folder, "chat_templates", "qwen3_training.jinja").read_text(encoding="utf-8")
    rows = [row for _, row in format_rows([thought("It is blue.")], "messages")]
    (text,), (learned,) = render_jinja_template(
        [row["messages"] for row in rows],
        chat_template=template,
        return_assistant_tokens_mask=True,
    )
    answer = f"<think>\n{THOUGHTS}\n</think>\n\nIt is blue.<|im_end|>\n"
    assert text == f"<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n{answer}"
    assert [text[start:end] for start, end in learned] == [answer]


# Parts.


def several(seeds: int, each: int) -> list[str]:
    return [
        record(f"Why {s} {i}?", "So.", seed_id=f"seed {s}")
        for s in range(seeds)
        for i in range(each)
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_parts_hold_their_shares_and_siblings_stay_together(tmp_path, suffix):
    made = several(40, 3)
    parts = {"train": 0.9, "validation": 0.1}
    written = export_rows(lambda: made, tmp_path / f"r{suffix}", "prompt_completion", parts=parts)
    assert {p.name: n for p, n in written.items()} == {
        f"r-train{suffix}": 108, f"r-validation{suffix}": 12,
    }  # fmt: skip
    seen = [{r["instruction"].split()[1] for r in Source(p, as_reference=True)} for p in written]
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 40
    again = export_rows(lambda: made, tmp_path / f"s{suffix}", "prompt_completion", parts=parts)
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in written]
    other = export_rows(
        lambda: made, tmp_path / f"t{suffix}", "prompt_completion", parts=parts, random_seed=1
    )
    assert [p.read_bytes() for p in other] != [p.read_bytes() for p in written]


@given(
    st.lists(st.integers(0, 8), max_size=30),
    st.lists(st.floats(0.01, 1), min_size=1, max_size=4),
    st.integers(0, 3),
)
def test_each_row_is_in_one_part_and_none_is_empty_while_there_are_seeds(seeds, wanted, draw):
    parts = {f"p{i}": share / sum(wanted) for i, share in enumerate(wanted)}
    names = [f"s{s}" for s in seeds]
    made = assign_parts(names, parts, draw)
    assert set(made) == {seeded_hash(name, draw) for name in names}
    assert len(set(made.values())) == min(len(parts), len(set(names)))


def test_the_first_rows_only_if_asked(tmp_path):
    made = several(5, 2)
    assert len(through_a_file(tmp_path / "t.jsonl", made, limit=3)) == 3
    written = export_rows(
        lambda: made, tmp_path / "p.jsonl", "alpaca", limit=4, parts={"a": 0.5, "b": 0.5}
    )
    assert list(written.values()) == [2, 2]


@pytest.mark.parametrize(
    "text", ["train", "train=x", "train=0,a=1", "a=1,a=2", "=1", "a b=1", "x=inf"]
)
def test_odd_shares_are_refused(text):
    with pytest.raises(ValueError, match=r"not NAME=SHARE|not a number|above 0"):
        parse_shares(text)


# Of a run.


def test_every_rejected_text_failed_a_must_that_its_chosen_text_passed(made, tmp_path):
    path = tmp_path / "p.jsonl"
    assert refloom("export", made, path, "--format", "preference", cwd=tmp_path).returncode == 0
    found, records = lines(path), lines(made / "accepted.jsonl")
    assert len(found) >= 3
    by_instruction = {r["instruction"]: r for r in records}
    for row in found:
        kept = by_instruction[row["prompt"][0]["content"]]
        musts = {c["id"] for c in kept["criteria"] if c["must"]}
        outcomes = {
            a["response"]: {v["criterion_id"]: v["verdict"] for v in a["verdicts"]}
            for a in kept["attempts"]
        }
        chosen = outcomes[row["chosen"][0]["content"]]
        rejected = outcomes[row["rejected"][0]["content"]]
        assert row["chosen"][0]["content"] == kept["response"]
        assert (
            {i for i in musts if rejected.get(i) == "fail" and chosen.get(i) == "pass"}
            == {d["criterion_id"] for d in row["decided_by"]}
            != set()
        )


def test_export_writes_parts_and_says_how_many_rows(made, tmp_path):
    done = refloom(
        "export", made, tmp_path / "d.parquet", "--format", "messages",
        "--split", "train=0.8,validation=0.2", "--max-rows", 10, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.match(r"8 rows in .*d-train.parquet\n2 rows in .*d-validation.parquet\n", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["d.csv", "--format", "messages"], "written as .jsonl or .parquet"),
        (["no/such/d.jsonl", "--format", "messages"], "cannot be written"),
        (["d.jsonl", "--format", "messages", "--split", "train"], "not NAME=SHARE"),
        (
            ["d.jsonl", "--format", "messages", "--max-rows", "0"],
            "not a whole number of at least 1",
        ),
        (["d.jsonl", "--format", "chatml"], "invalid choice"),
        (["d.jsonl", "--format", "kto", "--think-tags"], "--think-tags: not with --format kto"),
    ],
)
def test_an_odd_export_is_refused_and_writes_nothing(made, tmp_path, arguments, says):
    done = refloom("export", made, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_columns_that_llama_factory_is_told_of_are_there():
    path = Path(__file__).parent.parent / "examples/training/llama_factory/dataset_info.json"
    entries = json.loads(path.read_text())
    line = json.loads(judged("Why?", "no idea at all", "So it is."))
    for name, entry in entries.items():
        (row, *_) = FORMATS[name].rows(line)
        assert entry["file_name"] == f"{name}.jsonl"
        assert set(entry.get("columns", {}).values()) <= set(row)
        if turns := row.get(entry.get("columns", {}).get("messages")):
            tags = {"role_tag": "from", "user_tag": "human", "assistant_tag": "gpt"}
            tags |= entry.get("tags", {})
            roles = [turn[tags["role_tag"]] for turn in turns]
            assert roles == [tags["user_tag"], tags["assistant_tag"]]
