"""Accepted rows as training data: whatever the text, it comes out as it went in."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refloom.data.export import FORMATS, export, messages, rows
from refloom.runs.journal import Journal
from refloom.runs.kept import records

NASTY = {
    "LaTeX": r"\frac{1}{2} \[ \nabla \times \mathbf{B} \] $\text{if } x \neq 0$ \\ \u0041 \t \n",
    "code": "```python\ndef f(x):\n\tprint(f\"{x!r}\\n\", '''\"\"\"''')\n```\n\n    indented\n",
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
    (count,) = export(lambda: records_, path, format_, **more).values()
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


@settings(max_examples=80, deadline=None, database=None)
@given(st.lists(st.tuples(anything, anything), max_size=4))
def test_any_text_survives_export_and_parsing(said):
    found = list(rows([record(a, b) for a, b in said], "messages"))
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
    accepted = list(records(tmp_path / "journal.sqlite", "accepted"))
    found = through_a_file(tmp_path / "t.jsonl", accepted)
    assert [r["messages"][0]["content"] for r in found] == ["Why 0?", "Why 2?"]
    assert found[0]["messages"][1]["content"] == NASTY["NUL and controls"]


@pytest.mark.parametrize("format_", FORMATS)
def test_no_rows_are_an_empty_file(tmp_path, format_):
    assert through_a_file(tmp_path / "t.jsonl", [], format_) == []


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
        export(breaks_off, path, "messages")
    assert path.read_text() == "old\n"
    assert len(through_a_file(path, [record("Why?", "So.")])) == 1
    assert not list(tmp_path.glob("*.new"))


def test_an_unknown_format_is_a_key_error():
    with pytest.raises(KeyError):
        list(rows([record("Why?", "So.")], "no such format"))
