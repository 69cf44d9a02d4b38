"""Reading references and seeds: every shape and kind of file, and what is wrong with a file."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.references import content_id
from refloom.data.read import Source, describe_report
from refloom.data.responses import parse_response
from refloom.errors import InputError

HARD = "Say “so”,\nthen: \\frac{1}{2}\t潮汐 😀 \u202e \u2028 <|im_end|> {{ x }}"
PAIR = {"instruction": "Why?", "response": "So."}


def write(path: Path, rows) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), "utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(k for r in rows for k in r)))
            writer.writeheader()
            writer.writerows(rows)
    return path


def references(given_, **more) -> list:
    return list(Source(given_, as_reference=True, **more))


def seeds(given_, **more) -> list:
    return list(Source(given_, as_reference=False, **more))


def pairs(items) -> list[tuple[str, str]]:
    return [(i["instruction"], i["response"]) for i in items]


FLAT = {
    "alpaca": ({"instruction": "Why?", "input": "", "output": "So."}, "Why?"),
    "alpaca with an input": (
        {"instruction": "Add.", "input": "1, 2", "output": "So."},
        "Add.\n\n1, 2",
    ),
    "alpaca with a blank input": ({"instruction": "Why?", "input": " \n", "output": "So."}, "Why?"),
    "alpaca without an input": ({"instruction": "Why?", "output": "So."}, "Why?"),
    "response": (PAIR, "Why?"),
    "response with an input": ({**PAIR, "input": "1, 2"}, "Why?\n\n1, 2"),
    "completion": ({"prompt": "Why?", "completion": "So."}, "Why?"),
    "more keys": ({**PAIR, "category": "x", "text": "Why? So."}, "Why?"),
    "hard text": ({"instruction": HARD, "response": "So."}, HARD),
}


def turns(who, what, *said):
    return [{who: a, what: b} for a, b in said]


NESTED = {
    "messages": {"messages": turns("role", "content", ("user", "Why?"), ("assistant", "So."))},
    "messages after a system message": {
        "messages": turns(
            "role", "content", ("system", "Be kind."), ("user", "Why?"), ("assistant", "So.")
        )
    },
    "messages of many turns": {
        "messages": turns(
            "role",
            "content",
            ("user", "Why?"),
            ("assistant", "So."),
            ("user", "And then?"),
            ("assistant", "Then this."),
        )
    },
    "LIMA": {"conversations": ["Why?", "So."], "source": "lima"},
    "LIMA of many turns": {"conversations": ["Why?", "So.", "And then?", "Then this."]},
    "ShareGPT": {"conversations": turns("from", "value", ("human", "Why?"), ("gpt", "So."))},
    "ShareGPT with other names": {
        "conversations": turns("from", "value", ("user", "Why?"), ("assistant", "So."))
    },
    "ShareGPT of many turns": {
        "conversations": turns(
            "from", "value", ("system", "x"), ("human", "Why?"), ("gpt", "So."), ("human", "And?")
        )
    },
    "Self-Instruct": {"instruction": "Why?", "instances": [{"input": "", "output": "So."}]},
    "Self-Instruct with more instances": {
        "instruction": "Why?",
        "instances": [{"input": "", "output": "So."}, {"input": "x", "output": "Other."}],
    },
}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
@pytest.mark.parametrize("name", FLAT)
def test_a_flat_shape_is_read_from_every_kind_of_file(tmp_path, name, suffix):
    row, instruction = FLAT[name]
    path = write(tmp_path / f"given{suffix}", [row])
    found = references(path)
    assert pairs(found) == [(instruction, "So.")]
    assert found[0]["id"] == content_id(instruction, "So.")
    assert [s["instruction"] for s in seeds(path)] == [instruction]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("name", NESTED)
def test_a_nested_shape_is_read_as_its_first_question_and_answer(tmp_path, name, suffix):
    path = write(tmp_path / f"given{suffix}", [NESTED[name]])
    assert pairs(references(path)) == [("Why?", "So.")]
    assert [s["instruction"] for s in seeds(path)] == ["Why?"]
    assert pairs(references([NESTED[name]])) == [("Why?", "So.")]


def test_self_instruct_joins_the_input_of_its_first_instance():
    row = {"instruction": "Add.", "instances": [{"input": "1, 2", "output": "3"}]}
    assert pairs(references([row])) == [("Add.\n\n1, 2", "3")]


@pytest.mark.parametrize(
    ("row", "instruction"),
    [
        ({"instruction": "Why?"}, "Why?"),
        ({"instruction": "Add.", "input": "1, 2"}, "Add.\n\n1, 2"),
        ({"prompt": "Why?"}, "Why?"),
        ({"turns": ["Why?", "And then?"]}, "Why?"),
        ({"conversations": ["Why?"]}, "Why?"),
        ({"messages": [{"role": "user", "content": "Why?"}]}, "Why?"),
        ({"instruction": "Why?", "instances": []}, "Why?"),
        ({"instruction": "Why?", "output": ""}, "Why?"),
        ("  Why?\n", "Why?"),
    ],
)
def test_a_seed_needs_no_response_and_a_reference_does(row, instruction):
    assert [s["instruction"] for s in seeds([row])] == [instruction]
    source = Source([row], as_reference=True)
    assert list(source) == []
    assert source.report.skipped_count == 1


def test_a_text_file_is_one_seed_a_line(tmp_path):
    path = tmp_path / "seeds.txt"
    path.write_bytes("\ufeffWhy?\r\n\r\n  how so \n\n潮汐\nlast".encode())
    assert [s["instruction"] for s in seeds(path)] == ["Why?", "how so", "潮汐", "last"]


def test_a_text_file_holds_no_references(tmp_path):
    path = tmp_path / "seeds.txt"
    path.write_text("Why?\n")
    with pytest.raises(InputError, match=r"seeds\.txt: no usable row; line 1"):
        Source(path, as_reference=True).scan()


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Why?", "answer": "So."},
        {"text": "Why? So."},
        {},
        {"instruction": "Why?"},
        {"instruction": None, "response": "So."},
        {"instruction": "", "response": "So."},
        {"instruction": " \n", "response": "So."},
        {"instruction": ["Why?"], "response": "So."},
        {"instruction": "Why?", "response": None},
        {"instruction": "Why?", "response": " "},
        {"instruction": "Why?", "response": {"text": "So."}},
        {"prompt": [{"role": "user", "content": "Why?"}]},
        {"prompt": [{"role": "system", "content": "Be brief."}], "completion": "So."},
        {"messages": None},
        {"messages": []},
        {"messages": "Why?"},
        {"messages": ["Why?", "So."]},
        {"messages": [{"role": "assistant", "content": "So."}]},
        {"messages": [{"role": "user", "content": "Why?"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "user", "content": "So."}]},
        {"messages": [{"role": ["user"], "content": "Why?"}, {"role": "assistant"}]},
        {"messages": [{"role": "user", "content": "Why?"}, None]},
        {"conversations": []},
        {"conversations": {}},
        {"conversations": ["Why?"]},
        {"conversations": ["Why?", 7]},
        {"conversations": [{"from": "human", "value": "Why?"}]},
        {"conversations": [{"from": "human"}, {"from": "gpt", "value": "So."}]},
        {"instruction": "Why?", "instances": []},
        {"instruction": "Why?", "instances": None},
        {"instruction": "Why?", "instances": ["So."]},
        pytest.param(
            {"instruction": "Why?", "instances": {"output": "So."}},
        ),
        pytest.param(
            {"instruction": "Why?", "instances": 7},
        ),
        "Why?",
        "",
        7,
        None,
        True,
        ["Why?", "So."],
    ],
    ids=repr,
)
def test_a_reference_of_no_use_is_skipped_and_named(tmp_path, row):
    path = write(tmp_path / "given.jsonl", [PAIR, row, {**PAIR, "instruction": "How?"}])
    source = Source(path, as_reference=True)
    assert [i for i, _ in pairs(source)] == ["Why?", "How?"]
    assert source.report.skipped_count == 1
    named = source.report.skipped[0]
    assert (named["file"], named["line"]) == (str(path), 2)
    assert named["why"]


@pytest.mark.parametrize(
    "row",
    [
        {"seed": "Why?"},
        {"instruction": ""},
        {"turns": []},
        {"turns": "Why?"},
        {"turns": [7]},
        7,
        None,
        ["Why?"],
        pytest.param(
            "",
        ),
        pytest.param(
            " \n",
        ),
    ],
    ids=repr,
)
def test_a_seed_of_no_use_is_skipped_and_named(row):
    source = Source(["Why?", row], as_reference=False)
    assert [s["instruction"] for s in source] == ["Why?"]
    assert [(s["file"], s["line"]) for s in source.report.skipped] == [("rows given", 2)]


def test_a_row_of_no_known_shape_is_named_by_its_keys():
    source = Source([{"question": "Why?", "answer": "So."}, PAIR], as_reference=True)
    assert len(list(source)) == 1
    assert "answer, question" in source.report.skipped[0]["why"]


def test_rows_of_several_shapes_are_read_from_one_file_and_counted(tmp_path):
    rows = [PAIR, NESTED["LIMA"], NESTED["messages"], {**PAIR, "instruction": "How?"}, {"x": 1}]
    source = Source(write(tmp_path / "mixed.jsonl", rows), as_reference=True)
    report = source.scan()
    assert (report.taken, report.skipped_count) == (4, 1)
    assert report.shapes == {"instruction/response": 2, "conversations": 1, "messages": 1}


def test_no_more_than_a_thousand_skipped_rows_are_named_and_all_are_counted():
    source = Source([PAIR, *[{"x": i} for i in range(1500)]], as_reference=True)
    report = source.scan()
    assert (len(report.skipped), report.skipped_count) == (1000, 1500)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_a_file_in_which_no_row_fits_is_bad_and_says_why(tmp_path, suffix):
    path = write(tmp_path / f"given{suffix}", [{"question": "Why?"}, {"question": "How?"}])
    with pytest.raises(InputError) as refusal:
        Source(path, as_reference=True, skip_bad_lines=True).scan()
    said = str(refusal.value)
    assert said.startswith(f"{path}: no usable row; line ")
    assert "question" in said
    assert "messages" in said


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("e.jsonl", b""),
        ("e.jsonl", b"\n\n  \n"),
        ("e.jsonl", b"\xef\xbb\xbf"),
        ("e.json", b"[]"),
        ("e.csv", b""),
        ("e.csv", b"instruction,response\n"),
        ("e.txt", b"\n \n"),
    ],
)
def test_an_empty_file_is_bad(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"e\.\w+: no usable row \(it is empty\)"):
        Source(path, as_reference=False).scan()


def test_no_rows_at_all_are_bad():
    for given_ in ([], iter([])):
        with pytest.raises(InputError, match="no usable row"):
            Source(given_, as_reference=True).scan()


def lines_with(seventh: bytes) -> bytes:
    good = [json.dumps({"instruction": f"Why {i}?", "response": "So."}).encode() for i in range(10)]
    good[6] = seventh
    return b"\n".join(good) + b"\n"


@pytest.mark.parametrize(
    "seventh",
    [
        b'{"instruction": "Why?", "response": "So."',
        b"{'instruction': 'Why?'}",
        b"Why?",
        b'{"instruction": "Why?", "response": "So."} {"more": 1}',
        b'{"instruction": "caf\xe9", "response": "So."}',
        b'{"instruction": "Why\x00?", "response": "So."}',
        b'{"instruction": "Why?", "response": "So."}\x00',
        b"\x00" * 30,
        b"\xff\xfe{\x00}\x00",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"instruction": "Why?", "n": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda b: repr(b[:40]),
)
def test_a_line_that_cannot_be_parsed_is_named_or_skipped_if_asked(tmp_path, seventh):
    path = tmp_path / "given.jsonl"
    path.write_bytes(lines_with(seventh))
    with pytest.raises(InputError) as refusal:
        references(path)
    assert f"{path}: line 7 " in str(refusal.value)
    assert "--skip-bad-lines" in str(refusal.value)
    assert len(str(refusal.value)) < 600
    source = Source(path, as_reference=True, skip_bad_lines=True)
    report = source.scan()
    assert (report.taken, report.skipped_count) == (9, 1)
    assert [(s["file"], s["line"]) for s in report.skipped] == [(str(path), 7)]
    assert "Why 6?" not in [i for i, _ in pairs(source)]


def test_what_comes_before_a_bad_line_is_yielded_before_it_is_found(tmp_path):
    path = tmp_path / "given.jsonl"
    path.write_bytes(lines_with(b"{"))
    reading = iter(Source(path, as_reference=True))
    assert [next(reading)["instruction"] for _ in range(6)] == [f"Why {i}?" for i in range(6)]
    with pytest.raises(InputError):
        next(reading)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b'"Why?"', "must hold a list"),
        (b'[{"instruction": "Why?"},]', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"instruction": "Why?"}\n{"instruction"\n', "line 2 is not valid JSON"),
        (b'{"instruction": "Why?"} and more', "is not valid JSON"),
    ],
    ids=lambda v: repr(v[:30]),
)
def test_a_json_file_that_is_no_list_is_bad(tmp_path, content, told):
    path = tmp_path / "given.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as refusal:
        seeds(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert told in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("g.jsonl", b'{"instruction": "Why?", "response": "So."}\n'),
        ("g.json", b'[{"instruction": "Why?", "response": "So."}]'),
        ("g.csv", b"instruction,response\r\nWhy?,So.\r\n"),
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + content)
    assert pairs(references(path)) == [("Why?", "So.")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("g.txt", b"Why?\ncaf\xe9\n"),
        ("g.csv", b"instruction,response\nWhy?,So.\ncaf\xe9,So.\n"),
        ("g.json", b'["Why?",\n"caf\xe9"\n]'),
    ],
)
def test_text_that_is_no_utf_8_is_bad_in_every_kind_of_file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"line \d is not UTF-8"):
        seeds(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("g.txt", b"How?\nWhy\x00?\n"), ("g.csv", b"instruction\nWhy\x00?\n")],
)
def test_nul_bytes_are_bad_in_text_and_csv_too(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match="line 2 "):
        seeds(path)


def test_an_escaped_nul_is_text_as_any_other(tmp_path):
    path = write(tmp_path / "g.jsonl", [{"instruction": "Why\x00?", "response": "So.\x00"}])
    assert pairs(references(path)) == [("Why\x00?", "So.\x00")]


def test_a_line_of_ten_megabytes_is_left_out_and_named(tmp_path):
    long = "tide " * 2_000_000
    path = write(tmp_path / "g.jsonl", [PAIR, {"instruction": "Why?", "response": long}, PAIR])
    source = Source(path, as_reference=True)
    assert len(pairs(source)) == 2
    (skipped,) = source.report.skipped
    assert (skipped["line"], skipped["why"]) == (
        2,
        "its response is 10,000,000 characters long, more than 1,000,000",
    )


def test_a_long_field_of_a_csv_file_is_read(tmp_path):
    long = "tide " * 40_000
    path = write(tmp_path / "g.csv", [{"instruction": "Why?", "response": long}])
    assert pairs(references(path)) == [("Why?", long)]


def test_a_deeply_nested_value_that_is_not_asked_for_does_no_harm(tmp_path):
    path = tmp_path / "g.jsonl"
    deep = "[" * 400 + "]" * 400
    path.write_text(f'{{"instruction": "Why?", "response": "So.", "extra": {deep}}}\n')
    assert pairs(references(path)) == [("Why?", "So.")]


def test_csv_fields_hold_line_breaks_quotes_and_commas(tmp_path):
    path = tmp_path / "g.csv"
    path.write_bytes(b'instruction,response\r\n"Why,\r\n""so""?","a\nb"\r\nHow?,So.\r\n')
    assert pairs(references(path)) == [('Why,\r\n"so"?', "a\nb"), ("How?", "So.")]


def test_a_csv_row_that_is_short_is_named_and_one_that_is_long_is_bad(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text("instruction,response\nWhy?\nHow?,Well, so.\n\nWhen?,Now.\n")
    with pytest.raises(InputError, match=r"line 3 has 3 cells for 2 columns"):
        references(path)
    source = Source(path, as_reference=True, skip_bad_lines=True)
    assert pairs(source) == [("When?", "Now.")]
    assert [s["line"] for s in source.report.skipped] == [2, 3]


BROKEN_CSV = b"instruction,response\nHow?,So.\nWhy\rthis?,So.\nWhen?,Now.\n"


def test_a_csv_file_that_cannot_be_parsed_is_bad(tmp_path):
    path = tmp_path / "g.csv"
    path.write_bytes(BROKEN_CSV)
    with pytest.raises(InputError, match=r"g\.csv: line \d is not valid CSV"):
        references(path)


def test_a_csv_line_that_cannot_be_parsed_is_named(tmp_path):
    path = tmp_path / "g.csv"
    path.write_bytes(BROKEN_CSV)
    with pytest.raises(InputError, match="line 3 is not valid CSV"):
        references(path)


def test_a_csv_line_that_cannot_be_parsed_is_skipped_if_asked(tmp_path):
    path = tmp_path / "g.csv"
    path.write_bytes(BROKEN_CSV)
    source = Source(path, as_reference=True, skip_bad_lines=True)
    assert pairs(source) == [("How?", "So."), ("When?", "Now.")]
    assert source.report.skipped_count == 1


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet", b"PAR1" + b"\xff" * 40 + b"PAR1"])
def test_a_file_that_is_no_parquet_is_bad(tmp_path, content):
    path = tmp_path / "g.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"g\.parquet: is not a parquet file"):
        references(path)


def test_a_truncated_parquet_file_is_bad(tmp_path):
    path = write(tmp_path / "g.parquet", [PAIR] * 2000)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError):
        references(path)


def test_parquet_is_read_over_the_edges_of_its_batches(tmp_path):
    rows = [{"instruction": f"Why {i}?", "response": "So."} for i in range(2500)]
    rows[1500] = {"instruction": None, "response": "So."}
    source = Source(write(tmp_path / "g.parquet", rows), as_reference=True)
    assert [i for i, _ in pairs(source)] == [r["instruction"] for r in rows if r["instruction"]]
    assert [s["line"] for s in source.report.skipped] == [1501]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt", ".parquet"])
def test_a_missing_file_is_named(tmp_path, suffix, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (f"gone{suffix}", tmp_path / f"gone{suffix}"):
        with pytest.raises(InputError) as refusal:
            Source(path, as_reference=True).scan()
        assert str(refusal.value) == f"{path}: no such file"


def test_a_missing_path_without_a_suffix_is_named(tmp_path):
    with pytest.raises(InputError, match="gone: no such file"):
        seeds(tmp_path / "gone")


def test_a_file_of_an_unknown_kind_is_refused_with_those_that_are_known(tmp_path):
    path = tmp_path / "g.xlsx"
    path.write_bytes(b"PK")
    with pytest.raises(
        InputError, match=r"g\.xlsx: unknown kind of file; known kinds are .*\.parquet"
    ):
        seeds(path)


def test_a_directory_is_a_dataset_or_bad(tmp_path):
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    write(full / "train.jsonl", [PAIR, {**PAIR, "instruction": "How?"}])
    with pytest.raises(InputError, match="empty: is neither a file nor a dataset"):
        seeds(empty)
    assert pairs(references(full)) == [("Why?", "So."), ("How?", "So.")]


def test_a_directory_with_the_name_of_a_file_is_bad(tmp_path):
    path = tmp_path / "seeds.jsonl"
    path.mkdir()
    with pytest.raises(InputError, match=r"seeds\.jsonl"):
        seeds(path)


@pytest.mark.parametrize(
    ("own", "id_"),
    [
        ({"id": "mine"}, "mine"),
        ({"id": 7}, "7"),
        ({"id": 0}, "0"),
        ({"id": ""}, None),
        ({"id": " "}, None),
        ({"id": None}, None),
        ({"id": ["x"]}, None),
        ({}, None),
    ],
)
def test_an_id_is_the_rows_own_else_a_hash_of_its_content(own, id_):
    assert references([{**PAIR, **own}])[0]["id"] == (id_ or content_id("Why?", "So."))
    assert seeds([{**PAIR, **own}])[0]["id"] == (id_ or content_id("Why?"))


def test_a_content_hash_tells_contents_apart_and_shapes_not():
    one, other = references([PAIR, {**PAIR, "response": "No."}])
    assert one["id"] != other["id"]
    assert references([{"prompt": "Why?", "completion": "So."}])[0]["id"] == one["id"]
    assert seeds(["Why?"])[0]["id"] == seeds([{"instruction": "Why?"}])[0]["id"]


def test_a_reference_keeps_its_source_licence_and_tags():
    more = {"source": "forum", "license": "CC0", "tags": ["a", 7], "category": "x"}
    assert references([{**PAIR, **more, "id": "r"}]) == [
        {"id": "r", **PAIR, "source": "forum", "license": "CC0", "tags": ["a", "7"]}
    ]
    assert references([{**PAIR, "source": 1, "license": None, "tags": "a", "id": "r"}]) == [
        {"id": "r", **PAIR}
    ]


rows_of = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"instruction": st.text("ab?潮 \n", max_size=6), "response": st.text("xy", max_size=3)},
            optional={"id": st.integers(0, 3), "source": st.just("s")},
        ),
        st.fixed_dictionaries({"prompt": st.text("ab", max_size=3)}),
        st.just({"x": 1}),
    ),
    max_size=12,
)


@given(rows_of, st.integers(0, 12))
def test_reading_again_gives_the_same_items_and_the_same_report(rows, limit):
    source = Source(iter(rows), as_reference=True, limit=limit)
    first, report = list(source), source.report
    assert list(source) == first == references(rows)[:limit]
    assert source.report == report


@given(rows_of, rows_of, st.booleans())
def test_a_digest_of_the_first_items_tells_appending_from_changing(rows, more, as_reference):
    before = Source([*rows, PAIR], as_reference=as_reference)
    after = Source([*rows, PAIR, *more], as_reference=as_reference)
    report = before.scan()
    assert after.digest_of(report.taken) == report.digest
    changed = Source([*rows, {**PAIR, "instruction": "Who?"}, *more], as_reference=as_reference)
    assert changed.digest_of(report.taken) != report.digest


def test_a_file_that_became_shorter_has_another_digest():
    report = Source(["a", "b", "c"], as_reference=False).scan()
    assert Source(["a", "b"], as_reference=False).digest_of(3) != report.digest
    assert Source(["a", "c", "b"], as_reference=False).digest_of(3) != report.digest


def test_two_readings_at_once_do_not_disturb_each_other(tmp_path):
    path = write(tmp_path / "g.jsonl", [{"instruction": f"Why {i}?"} for i in range(50)])
    source = Source(path, as_reference=False)
    assert all(a == b for a, b in zip(source, source, strict=True))


def test_a_limit_takes_the_first_and_reads_no_further(tmp_path):
    path = tmp_path / "g.jsonl"
    path.write_bytes(lines_with(b"{"))
    source = Source(path, as_reference=True, limit=3)
    assert source.scan().taken == 3
    assert [i for i, _ in pairs(source)] == ["Why 0?", "Why 1?", "Why 2?"]


# Columns of other names.


def test_mapped_columns_are_read_under_the_names_they_are_mapped_to():
    rows = [{"question": "Why?", "answer": "So.", "lic": "MIT", "prompt": "-", "completion": "-"}]
    columns = {"instruction": "question", "response": "answer", "license": "lic"}
    source = Source(rows, as_reference=True, columns=columns)
    (found,) = source
    assert (found["instruction"], found["response"], found["license"]) == ("Why?", "So.", "MIT")
    assert source.report.shapes == {"instruction/response": 1}


def test_a_mapped_column_may_be_inside_another():
    rows = [{"data": {"q": "Why?", "a": {"text": "So."}}, "data.q": "taken first"}]
    columns = {"instruction": "data.q", "response": "data.a.text"}
    assert pairs(references(rows, columns=columns)) == [("taken first", "So.")]
    assert pairs(references([{"data": rows[0]["data"]}], columns=columns)) == [("Why?", "So.")]


def test_turns_under_another_name_are_mapped_too():
    rows = [{"dialogue": turns("role", "content", ("user", "Why?"), ("assistant", "So."))}]
    assert pairs(references(rows, columns={"messages": "dialogue"})) == [("Why?", "So.")]


def test_a_row_without_a_mapped_column_is_named_and_the_others_are_read():
    source = Source(
        [PAIR, {"q": "Why?", "response": "So."}], as_reference=True, columns={"instruction": "q"}
    )
    assert list(source) == []
    source = Source(
        [PAIR, {"q": "Why?", "a": "So."}],
        as_reference=True,
        columns={"instruction": "q", "response": "a"},
    )
    assert pairs(source) == [("Why?", "So.")]
    assert source.report.kinds == {"without a mapped column": 1}
    assert "no column 'q', only instruction, response" in source.report.skipped[0]["why"]


def test_only_what_is_about_a_row_may_be_mapped_and_missing():
    (found,) = references([PAIR], columns={"license": "lic", "id": "key"})
    assert found == {"id": content_id("Why?", "So."), **PAIR}


# Several turns.

TALK = [("system", "Be brief."), ("user", "Why?"), ("assistant", "So."), ("user", "Really?"),
        ("user", "Sure?"), ("assistant", "Yes."), ("user", "And?")]  # fmt: skip


def test_of_several_turns_the_first_exchange_is_used_and_the_fact_counted():
    source = Source([{"messages": turns("role", "content", *TALK)}, PAIR], as_reference=True)
    first, other = source
    assert (first["instruction"], first["response"]) == ("Why?", "So.")
    assert first["history"] == [{"role": "system", "content": "Be brief."}]
    assert "history" not in other
    assert source.report.several_turns == 1


def test_every_answered_exchange_is_a_reference_with_what_was_said_before_it():
    row = {"messages": turns("role", "content", *TALK), "id": "talk"}
    source = Source([row], as_reference=True, turns="all")
    found = list(source)
    assert pairs(found) == [("Why?", "So."), ("Sure?", "Yes.")]
    assert [r["id"] for r in found] == ["talk", "talk-2"]
    assert [t["content"] for t in found[1]["history"]] == ["Be brief.", "Why?", "So.", "Really?"]
    assert (source.report.taken, source.report.several_turns) == (2, 1)


def test_the_same_words_after_another_history_are_another_reference():
    rows = [{"conversations": [start, "Hm.", "Why?", "So."]} for start in ("One.", "Two.")]
    ids = [r["id"] for r in references(rows, turns="all")]
    assert len(set(ids)) == 4


def test_a_turn_that_is_no_text_costs_only_what_comes_after_it():
    said = turns("role", "content", ("user", "Why?"), ("assistant", "So."), ("user", ["image"]))
    first = Source([{"messages": said}], as_reference=True)
    assert pairs(first) == [("Why?", "So.")]
    assert first.report.skipped_count == 0
    every = Source([{"messages": said}], as_reference=True, turns="all")
    assert pairs(every) == [("Why?", "So.")]
    assert every.report.kinds == {"with a field that is not text": 1}


def test_turns_that_are_never_answered_are_no_references():
    source = Source([{"conversations": ["Why?"]}], as_reference=True, turns="all")
    assert list(source) == []
    assert source.report.kinds == {"without a response": 1}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": turns("from", "value", ("human", "Why?"), ("gpt", "So."))},
        {"conversations": turns("role", "content", ("user", "Why?"), ("assistant", "So."))},
        {
            "prompt": turns("role", "content", ("user", "Why?")),
            "completion": turns("role", "content", ("assistant", "So.")),
        },
    ],
)
def test_turns_are_known_by_their_keys_whatever_holds_them(row):
    assert pairs(references([row])) == [("Why?", "So.")]


@pytest.mark.parametrize("column", ["prompt", "instruction"])
@pytest.mark.parametrize("answer", ["completion", "response"])
def test_turns_in_place_of_a_question_are_answered_by_a_text(column, answer):
    asked = turns("role", "content", ("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?"))
    row = {column: asked, answer: "So."}
    columns = {"instruction": column, "response": answer} if column != "prompt" else None
    source = Source([row], as_reference=True, columns=columns, turns="all")
    assert pairs(source) == [("Hi", "Yes?"), ("Why?", "So.")]
    row_of_text = {**row, column: json.dumps(asked)}
    assert pairs(Source([row_of_text], as_reference=True, columns=columns))[0] == ("Hi", "Yes?")
    seeds = Source([{column: asked}], as_reference=False)
    assert [seed["instruction"] for seed in seeds] == ["Hi"]
    _, _, scored = parse_response(1, row, columns or {})
    assert (scored.instruction, scored.response) == ("Why?", "So.")
    assert [turn["content"] for turn in scored.history] == ["Hi", "Yes?"]


# Licences and what is left out.


def test_licences_are_counted_and_one_may_be_set_for_all():
    rows = [{**PAIR, "license": " CC  BY "}, {**PAIR, "license": "MIT"}, PAIR]
    source = Source(rows, as_reference=True)
    source.scan()
    assert source.report.licences == {"CC BY": 1, "MIT": 1, "not stated": 1}
    source = Source(rows, as_reference=True, licence="CC0")
    assert {r["license"] for r in source} == {"CC0"}
    assert source.report.licences == {"CC0": 3}


def test_what_is_left_out_is_counted_by_reason():
    rows = [{"x": 1}, {"y": 2}, {**PAIR, "response": ""}, {**PAIR, "instruction": [3]}, 7, PAIR]
    source = Source(rows, as_reference=True)
    source.scan()
    assert source.report.kinds == {
        "of no known shape": 2,
        "without a response": 1,
        "with a field that is not text": 1,
        "that are not objects": 1,
    }


# Names of the `datasets` library.


def test_a_split_of_a_folder_of_files_is_read_by_its_name(tmp_path):
    write(tmp_path / "train.jsonl", [PAIR])
    write(tmp_path / "test.jsonl", [{**PAIR, "instruction": "How?"}])
    assert pairs(references(f"{tmp_path}@test")) == [("How?", "So.")]
    with pytest.raises(InputError, match="@dev: is neither a file nor a dataset"):
        references(f"{tmp_path}@dev")


@pytest.mark.filterwarnings("default")
def test_what_the_datasets_library_saved_is_read(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list([PAIR])
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "dev": rows}).save_to_disk(tmp_path / "several")
    for name in ("one", "several", "several@dev"):
        assert pairs(references(str(tmp_path / name))) == [("Why?", "So.")]


def test_a_quote_that_is_never_closed_does_not_swallow_the_rest_of_a_csv_file(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text('instruction,response\nWhy?,So.\nWhat?,"It is\nHow?,So.\nWhen?,Now.\n')
    with pytest.raises(InputError, match=r"starts in line 3"):
        references(path)


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text("instruction,response,response\nWhy?,So.,No.\n")
    with pytest.raises(InputError, match="two columns 'response'"):
        references(path)


def test_a_parquet_value_that_cannot_be_read_is_one_line(tmp_path):
    path = tmp_path / "far.parquet"
    far = pyarrow.array([1 << 60], pyarrow.timestamp("ms"))
    pyarrow.parquet.write_table(
        pyarrow.table({"instruction": ["Why?"], "response": ["So."], "when": far}), path
    )
    with pytest.raises(InputError, match="a row from 1 on cannot be read"):
        references(path)


def test_columns_that_are_empty_in_a_row_do_not_say_what_shape_it_is():
    empty = {"messages": None, "output": None, "conversations": None}
    assert pairs(references([{**PAIR, **empty}])) == [("Why?", "So.")]


def test_licences_of_seeds_are_counted_too():
    source = Source([{"instruction": "Why?", "license": "CC BY"}, "How?"], as_reference=False)
    source.scan()
    assert source.report.licences == {"CC BY": 1, "not stated": 1}


def test_of_very_many_licences_the_later_are_counted_together_and_long_ones_cut():
    rows = [{**PAIR, "license": f"{i} " + "x" * 600} for i in range(1200)]
    source = Source(rows, as_reference=True)
    source.scan()
    assert len(source.report.licences) == 1001
    assert max(map(len, source.report.licences)) < 510
    assert sum(source.report.licences.values()) == 1200


# Files of another name, packing or encoding.

HOW = {**PAIR, "instruction": "How?"}
LINES = "".join(json.dumps(row) + "\n" for row in (PAIR, HOW))
BOTH = [("Why?", "So."), ("How?", "So.")]
LIST = json.dumps([PAIR, HOW])
TABLE = "instruction,response\nWhy?,So.\nHow?,So.\n"


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
@pytest.mark.parametrize(("name", "text"), [("g.jsonl", LINES), ("g.json", LIST), ("g.csv", TABLE)])
def test_packed_files_are_read_whatever_they_are_called(tmp_path, pack, name, text):
    for called in (f"{name}.gz", f"{name}.ZST", name):
        path = tmp_path / called
        path.write_bytes(pack(text.encode()))
        assert pairs(references(path)) == BOTH


def test_a_file_called_packed_that_is_not_is_read(tmp_path):
    path = tmp_path / "g.jsonl.gz"
    path.write_text(LINES)
    assert pairs(references(path)) == BOTH


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_a_packed_file_that_is_cut_short_is_bad(tmp_path, pack):
    path = tmp_path / "g.jsonl.gz"
    rows = "".join(json.dumps({**PAIR, "id": content_id(str(i))}) + "\n" for i in range(5000))
    path.write_bytes(pack(rows.encode())[:-2000])
    with pytest.raises(InputError, match=r"g\.jsonl\.gz: cannot be (read|unpacked)"):
        references(path)


def test_a_packed_parquet_file_is_to_be_unpacked(tmp_path):
    path = tmp_path / "g.parquet.gz"
    path.write_bytes(gzip.compress(write(tmp_path / "g.parquet", [PAIR]).read_bytes()))
    with pytest.raises(InputError, match="unpack it first"):
        references(path)


@pytest.mark.parametrize(
    ("name", "magic", "told"),
    [("g.jsonl", b"PAR1", "parquet"), ("g.csv", b"PK\x03\x04", "workbook")],
)
def test_a_file_of_bytes_under_the_name_of_a_text_is_named(tmp_path, name, magic, told):
    path = tmp_path / name
    path.write_bytes(magic + b"\x00\x01\xff" * 20)
    with pytest.raises(InputError, match=told):
        references(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("g.JSONL", LINES),
        ("g.ndjson", LINES),
        ("g.Json", LIST),
        ("g.CSV", TABLE),
        ("g.tsv", TABLE.replace(",", "\t")),
        ("g.json", LINES),
        ("g.json", "\n" + LINES.replace("\n", "\n\n")),
        ("g.jsonl", LIST),
        ("g.jsonl", json.dumps([PAIR, HOW], indent=2)),
        ("g.jsonl", json.dumps(PAIR, indent=2) + json.dumps(HOW, indent=2)),
        ("g.json", LINES.replace("\n", " ")),
        ("g.jsonl", "\ufeff" + json.dumps([PAIR, HOW], indent=2)),
    ],
)
def test_names_in_capitals_and_json_in_lines_or_a_list_are_read(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    assert pairs(references(path)) == BOTH


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_one_object_is_one_row_however_it_is_laid_out(tmp_path, suffix):
    path = tmp_path / f"g{suffix}"
    for indent in (None, 2):
        path.write_text(json.dumps({**PAIR, "examples": [{"x": "y"}]}, indent=indent))
        assert pairs(references(path)) == [("Why?", "So.")]


def test_a_bad_line_of_a_json_file_of_lines_is_named_or_skipped_if_asked(tmp_path):
    path = tmp_path / "g.json"
    path.write_text(LINES + '{"instruction": \n' + json.dumps(PAIR))
    with pytest.raises(InputError, match="line 3 is not valid JSON"):
        references(path)
    source = Source(path, as_reference=True, skip_bad_lines=True)
    assert len(list(source)) == 3
    assert [s["line"] for s in source.report.skipped] == [3]


def test_a_bad_first_line_of_many_is_named_or_skipped_if_asked(tmp_path):
    path = tmp_path / "g.jsonl"
    path.write_text('{"instruction": \n' + LINES)
    with pytest.raises(InputError, match="line 1 is not valid JSON"):
        references(path)
    assert pairs(references(path, skip_bad_lines=True)) == BOTH


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    ("name", "text"),
    [("g.jsonl", LINES), ("g.json", LIST), ("g.csv", TABLE), ("g.txt", "Why?\n潮\n")],
)
def test_utf_16_with_a_byte_order_mark_is_read(tmp_path, encoding, name, text):
    path = tmp_path / name
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"
    path.write_bytes((mark + text).encode(encoding))
    wanted = ["Why?", "潮"] if name == "g.txt" else ["Why?", "How?"]
    assert [s["instruction"] for s in seeds(path)] == wanted


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_byte_order_mark_is_told_by_name(tmp_path, encoding):
    path = tmp_path / "g.csv"
    path.write_bytes(TABLE.encode(encoding))
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    with pytest.raises(InputError, match=f"looks like {name} .*iconv -f {name} -t UTF-8"):
        references(path, skip_bad_lines=True)


def test_utf_16_that_is_cut_short_is_bad(tmp_path):
    path = tmp_path / "g.jsonl"
    path.write_bytes(LINES.encode("utf-16")[:-1])
    with pytest.raises(InputError, match=r"g\.jsonl: is not valid utf-16"):
        references(path)


@pytest.mark.parametrize(
    ("text", "encoding", "told"),
    [
        ("Is a café “open”?", "cp1252", "it looks like Windows-1252. Convert"),
        ("Is a café open?", "latin-1", "it looks like Windows-1252 or Latin-1. Convert"),
        ("カフェは開いていますか", "shift_jis", "find out its encoding"),
    ],
)
def test_a_file_in_another_encoding_is_told_by_name(tmp_path, text, encoding, told):
    path = tmp_path / "my table.csv"
    path.write_bytes(f"instruction,response\n{text},So.\n".encode(encoding))
    with pytest.raises(InputError, match="line 2 is not UTF-8") as refusal:
        references(path)
    assert told in str(refusal.value)
    assert f"'{path}' > '{tmp_path / 'my table-utf8.csv'}'`" in str(refusal.value)
    assert "\n" not in str(refusal.value)


# Lists in objects, and splits.


@pytest.mark.parametrize(
    "value",
    [
        {"data": [PAIR, HOW]},
        {"version": "1.0", "data": [PAIR, HOW]},
        {"pairs": [PAIR, HOW]},
        {"result": {"count": 2, "items": [PAIR, HOW]}},
        {"train": [PAIR, HOW], "test": [PAIR]},
        {"meta": {"authors": [{"name": "A"}]}, "data": [PAIR, HOW]},
        {"rows": [{"row_idx": 0, "row": PAIR}, {"row_idx": 1, "row": HOW}]},
    ],
    ids=lambda v: ",".join(v),
)
@pytest.mark.parametrize("name", ["g.json", "g.jsonl"])
def test_a_list_in_an_object_is_read(tmp_path, value, name):
    path = tmp_path / name
    path.write_text(json.dumps(value, indent=1))
    assert pairs(references(path)) == BOTH


@pytest.mark.parametrize("form", [list, lambda cells: dict(enumerate(cells))])
def test_a_table_by_columns_is_read(tmp_path, form):
    path = tmp_path / "g.json"
    path.write_text(
        json.dumps({"instruction": form(["Why?", "How?"]), "response": form(["So."] * 2)})
    )
    assert pairs(references(path)) == BOTH


def test_one_row_of_lists_is_no_table_by_columns(tmp_path):
    row = {key: turns("role", "content", (who, text)) for key, who, text in
           (("prompt", "user", "Why?"), ("completion", "assistant", "So."))}  # fmt: skip
    path = tmp_path / "g.json"
    path.write_text(json.dumps(row))
    assert pairs(references(path)) == [("Why?", "So.")]


def test_of_several_lists_train_is_read_and_the_others_are_named(tmp_path):
    path = tmp_path / "g.json"
    path.write_text(json.dumps({"train": [PAIR], "test": [HOW]}))
    source = Source(path, as_reference=True)
    assert pairs(source) == [("Why?", "So.")]
    (note,) = source.report.notes
    assert "train is read, of train (1), test (1)" in note
    said = describe_report("references", "g", source.report, takes_first=True)
    assert any(note in line for line in said)
    assert pairs(references(f"{path}@test")) == [("How?", "So.")]
    with pytest.raises(InputError, match=r"g\.json: has no dev, only train"):
        references(f"{path}@dev")


def test_several_lists_without_train_are_named_and_one_is_asked_for(tmp_path):
    path = tmp_path / "g.json"
    path.write_text(json.dumps({"dev": [PAIR], "test": [HOW]}))
    with pytest.raises(InputError, match=r"dev \(1\), test \(1\)\. Name one, as .*@dev"):
        references(path)


def test_a_file_of_one_list_has_no_splits(tmp_path):
    for path in (write(tmp_path / "g.json", [PAIR]), write(tmp_path / "g.csv", [PAIR])):
        with pytest.raises(InputError, match="leave out @train"):
            references(f"{path}@train")


@pytest.mark.filterwarnings("default")
def test_splits_that_were_saved_are_named_if_none_is_train(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list([PAIR])
    datasets.DatasetDict({"dev": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match=r"several lists of rows: dev .*, test"):
        references(str(tmp_path / "saved"))
    assert pairs(references(f"{tmp_path / 'saved'}@dev")) == [("Why?", "So.")]


# Tables.


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_the_separator_of_a_table_is_found_in_its_header(tmp_path, separator):
    path = tmp_path / "g.csv"
    row = ["Why, then?", f'So{separator} and so,\n"so".']
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([["instruction", "response"], row])
    assert pairs(references(path)) == [tuple(row)]


def test_a_line_that_names_the_separator_is_no_header(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text("sep=;\ninstruction;response\nWhy?;So.\n")
    assert pairs(references(path)) == [("Why?", "So.")]


def test_a_header_with_one_column_stays_one(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text("instruction\nWhy; how?\n")
    assert [s["instruction"] for s in seeds(path)] == ["Why; how?"]


def test_too_many_cells_are_told_with_the_separator(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text("instruction;response\nWhy?;So;.\n")
    with pytest.raises(InputError, match="3 cells for 2 columns; quote cells with semicolons"):
        references(path)


def test_a_table_whose_lines_end_in_carriage_returns_is_told(tmp_path):
    path = tmp_path / "g.csv"
    path.write_bytes(b"instruction,response\rWhy?,So.\r")
    with pytest.raises(InputError, match="line 1 is not valid CSV"):
        references(path)


def test_cells_that_say_they_are_empty_are_so_and_answers_stay(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text(
        "id,instruction,input,output\nnan,Why?,NaN,None\nNone,How?,null,null\n3,Who?,<NA>,nan\n"
    )
    source = Source(path, as_reference=True)
    assert pairs(source) == [("Why?", "None"), ("How?", "null")]
    assert source.report.kinds == {"without a response": 1}
    assert references(path)[0]["id"] == content_id("Why?", "None")


# What is no file.


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("https://example.org/rows.jsonl", "is an address"),
        ("hf://datasets/a/b", "is an address"),
        ("-", "is a stream"),
        ("/dev/stdin", "is a stream"),
        ("/dev/fd/63", "is a stream"),
    ],
)
def test_an_address_and_a_stream_are_told_that_files_are_read(name, told):
    with pytest.raises(InputError, match=f"{name}: {told}"):
        references(name)


def test_a_pipe_is_a_stream(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(InputError, match=r"pipe\.jsonl: is a stream"):
        references(tmp_path / "pipe.jsonl")


# What is part of a question, and what is not used.


@pytest.mark.parametrize(
    ("more", "instruction"),
    [
        ({"context": "Rain falls."}, "Why?\n\nRain falls."),
        ({"context": ["Rain falls.", "", "It is wet."]}, "Why?\n\nRain falls.\n\nIt is wet."),
        ({"context": ""}, "Why?"),
        ({"context": None}, "Why?"),
        ({"context": float("nan")}, "Why?"),
        ({"context": "Why?"}, "Why?"),
        ({"input": "1", "context": "2"}, "Why?\n\n1\n\n2"),
    ],
)
def test_a_context_is_part_of_the_question(more, instruction):
    source = Source([{**PAIR, **more}], as_reference=True)
    assert pairs(source) == [(instruction, "So.")]
    assert source.report.unread == {}
    assert [s["instruction"] for s in seeds([{**PAIR, **more}])] == [instruction]


def test_a_context_beside_a_prompt_is_part_of_the_question():
    row = {"prompt": "Why?", "completion": "So.", "context": "Rain falls."}
    assert pairs(references([row])) == [("Why?\n\nRain falls.", "So.")]


BEFORE = [{"role": "user", "content": "Wet?"}, {"role": "assistant", "content": "Yes."}]


@pytest.mark.parametrize(
    "history",
    [
        [["Wet?", "Yes."]],
        ["Wet?", "Yes."],
        BEFORE,
        [{"from": "human", "value": "Wet?"}, {"from": "gpt", "value": "Yes."}],
        json.dumps([["Wet?", "Yes."]]),
    ],
    ids=str,
)
def test_a_history_and_a_system_prompt_are_what_was_said_before(history):
    row = {**PAIR, "system": "Be brief.", "history": history}
    (found,) = references([row])
    system = {"role": "system", "content": "Be brief."}
    assert found["history"] == [system, *BEFORE]
    assert (found["instruction"], found["response"]) == ("Why?", "So.")
    (seed,) = seeds([row])
    assert seed["instruction"] == "Be brief.\n\nuser: Wet?\n\nassistant: Yes.\n\nuser: Why?"


@pytest.mark.parametrize("history", [None, [], "", float("nan")], ids=str)
def test_an_empty_history_is_none(history):
    row = {**PAIR, "system": " ", "history": history}
    assert references([row]) == references([PAIR])
    assert seeds([row]) == seeds([PAIR])


def test_a_system_prompt_beside_a_conversation_comes_before_it():
    row = {"conversations": ["Why?", "So.", "And?", "Then."], "system": "Be brief."}
    first, second = references([row], turns="all")
    assert first["history"] == [{"role": "system", "content": "Be brief."}]
    assert [t["content"] for t in second["history"]] == ["Be brief.", "Why?", "So."]
    row = {**NESTED["messages after a system message"], "system": "Be brief."}
    assert [t["content"] for t in references([row])[0]["history"]] == ["Be kind."]


def test_columns_with_text_that_are_not_used_are_named_once():
    rows = [
        {**PAIR, "id": "a", "notes": "Look here.", "category": "qa", "n": 3, "page_id": "x"},
        {**PAIR, "notes": "", "rejected": [{"content": "No."}], "history": {"odd": "text"}},
        {**PAIR, "notes": "And here.", "copy": "Why?"},
    ]
    source = Source(rows, as_reference=True)
    report = source.scan()
    assert report.unread == {"notes": 2, "rejected": 1, "history": 1}
    (line,) = [
        line
        for line in describe_report("references", "g", report, takes_first=True)
        if "not used" in line
    ]
    assert "`notes` (2)" in line
    assert "`rejected` (1)" in line


def test_mapped_columns_are_used():
    row = {"q": "Why?", "a": "So.", "c": "Rain.", "sys": {"text": "Be brief."}, "prompt": "Other"}
    columns = {"instruction": "q", "response": "a", "context": "c", "system": "sys.text"}
    source = Source([row], as_reference=True, columns=columns)
    (found,) = source
    assert found["instruction"] == "Why?\n\nRain."
    assert found["history"] == [{"role": "system", "content": "Be brief."}]
    assert source.report.unread == {"prompt": 1}


# Values that are not text as they are.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (42, "42"),
        (0, "0"),
        (2.5, "2.5"),
        (True, "true"),
        (Decimal("1.50"), "1.50"),
        ("None", "None"),
        ("null", "null"),
        ([{"type": "text", "text": "So."}], "So."),
        (
            [{"type": "input_text", "text": "So,"}, {"type": "output_text", "text": "so."}],
            "So,\nso.",
        ),
        ([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "So."}], "So."),
        ({"type": "text", "text": "So."}, "So."),
    ],
    ids=str,
)
def test_numbers_and_parts_of_text_are_text(value, text):
    assert pairs(references([{"instruction": "Why?", "output": value}])) == [("Why?", text)]
    said = turns("role", "content", ("user", "Why?"), ("assistant", value))
    assert pairs(references([{"messages": said}])) == [("Why?", text)]
    said = turns("from", "value", ("human", "Why?"), ("gpt", value))
    assert pairs(references([{"conversations": said}])) == [("Why?", text)]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_nan_is_an_empty_cell(tmp_path, suffix):
    nan = float("nan")
    rows = [{**PAIR, "id": nan, "input": nan, "messages": nan}]
    found = references(write(tmp_path / f"g{suffix}", rows))
    assert found == [{"id": content_id("Why?", "So."), **PAIR}]


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_columns_of_another_table_are_empty_in_a_row_of_a_csv_file(tmp_path, key):
    rows = [
        {"instruction": "Why?", "output": "", "response": "So.", key: ""},
        {"instruction": "", "output": "", "response": "", key: json.dumps(["x"])},
        {"instruction": "", "output": "", "response": "", key: json.dumps(BEFORE)},
    ]
    source = Source(write(tmp_path / "g.csv", rows), as_reference=True)
    assert pairs(source) == [("Why?", "So."), ("Wet?", "Yes.")]


@pytest.mark.parametrize("kind", ["image_url", "input_image", "image", "input_audio", "video"])
def test_rows_with_more_than_text_are_left_out_as_multi_modal(kind):
    parts = [{"type": kind, kind: "x"}, {"type": "text", "text": "Why?"}]
    rows = [
        {"messages": turns("role", "content", ("user", parts), ("assistant", "So."))},
        {**PAIR, "instruction": "<image>\nWhy?", "image": "x.png"},
        {**PAIR, "images": [{"bytes": b"x", "path": None}]},
        {**PAIR, "image": "", "images": []},
    ]
    source = Source(rows, as_reference=True)
    assert pairs(source) == [("Why?", "So.")]
    assert source.report.kinds == {"that are multi-modal": 3}
    assert "only text is read" in source.report.skipped[0]["why"]


# Turns.


@pytest.mark.parametrize(
    ("user", "assistant"),
    [
        ("User", "Assistant"),
        ("HUMAN", "AI"),
        ("human", "model"),
        ("prompter", "assistant"),
        ("user", "bot"),
        ("Human", "ChatGPT"),
        ("customer", "chatbot"),
    ],
)
def test_who_speaks_is_known_by_many_names_in_any_case(user, assistant):
    for key, keys in (("messages", ("role", "content")), ("conversations", ("from", "value"))):
        said = turns(*keys, ("system", "Be brief."), (user, "Why?"), (assistant, "So."))
        assert pairs(references([{key: said}])) == [("Why?", "So.")]


def test_turns_in_parts_of_gemini_are_read():
    said = [
        {"role": "user", "parts": [{"text": "Why?"}]},
        {"role": "model", "parts": [{"text": "So."}]},
    ]
    assert pairs(references([{"messages": said}])) == [("Why?", "So.")]


def test_turns_of_a_speaker_and_a_text_are_read():
    said = turns("speaker", "text", ("human", "Why?"), ("bot", "So."))
    assert pairs(references([{"conversations": said}])) == [("Why?", "So.")]


def test_roles_that_are_not_known_are_named():
    source = Source([{"messages": turns("role", "content", ("alice", "Why?"))}], as_reference=True)
    assert list(source) == []
    assert source.report.skipped[0]["why"] == "it has no user turn, only alice"


def test_an_answer_that_is_a_call_of_a_tool_is_told():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    question = {"role": "user", "content": "Why?"}
    rows = [
        {"messages": [question, call, {"role": "tool", "content": "42"}]},
        {"conversations": turns("from", "value", ("human", "Why?"), ("function_call", "{}"))},
        {"messages": [question, {**call, "content": "So."}]},
    ]
    source = Source(rows, as_reference=True)
    assert pairs(source) == [("Why?", "So.")]
    assert source.report.kinds == {"with tools": 2}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": turns("role", "content", ("user", "Why?"), ("assistant", "So."))},
        {
            "messages": {
                "messages": turns("role", "content", ("user", "Why?"), ("assistant", "So."))
            }
        },
        {"conversations": turns("from", "value", ("human", "Why?"), ("gpt", "So."))},
        {"conversations": ["Why?", "So."]},
        {"instruction": "Why?", "instances": [{"input": "", "output": "So."}]},
        {
            "prompt": turns("role", "content", ("user", "Why?")),
            "completion": turns("role", "content", ("assistant", "So.")),
        },
    ],
    ids=lambda row: ",".join(row),
)
def test_json_text_in_a_cell_is_parsed(tmp_path, row):
    cells = {key: v if isinstance(v, str) else json.dumps(v) for key, v in row.items()}
    assert pairs(references(write(tmp_path / "g.csv", [cells]))) == [("Why?", "So.")]


def test_a_prompt_that_only_looks_like_a_list_stays_text():
    for prompt in ("[1, 2] is what?", "[1, 2]", '["user"]', "[]", '[{"a": 1}]'):
        row = {"prompt": prompt, "completion": "So."}
        assert pairs(references([row])) == [(prompt, "So.")]


@pytest.mark.parametrize(
    "cell",
    [
        "[{'role': 'user', 'content': 'Why?'}, {'role': 'assistant', 'content': 'So.'}]",
        "[{'role': 'user', 'content': 'Why?'}\n {'role': 'assistant', 'content': 'So.'}]",
        "array([{'role': 'user', 'content': 'Why?'}], dtype=object)",
    ],
)
@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_a_printout_of_a_list_is_told_and_how_to_write_it(tmp_path, key, cell):
    path = write(tmp_path / "g.csv", [{key: cell}])
    with pytest.raises(InputError, match=r"Python's printout of a list.*json\.dumps") as refusal:
        Source(path, as_reference=True).scan()
    assert "\n" not in str(refusal.value)


# Ids.


def test_an_id_that_is_too_long_for_a_seed_is_cut_and_told_apart():
    one, other, short = seeds(
        [{**PAIR, "id": "x" * 300 + end} for end in "ab"] + [{**PAIR, "id": 7}]
    )
    assert len(one["id"]) == len(other["id"]) == 200
    assert one["id"] != other["id"]
    assert short["id"] == "7"
    (seed,) = seeds(Source([{**PAIR, "id": "x" * 300 + "a"}], as_reference=True))
    assert seed["id"] == one["id"]
    assert references([{**PAIR, "id": "x" * 300}])[0]["id"] == "x" * 300
