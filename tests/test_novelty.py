"""The exact greedy ROUGE-L filter against a filter that knows no shortcut."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rapidfuzz.distance import LCSseq

from memory.novelty import (
    CosineFilter,
    NoveltyFilter,
    find_copied_run,
    find_copied_source,
    novel,
    tokens,
)
from refloom.data.dedup import MeaningFilter, deduplicate
from refloom.errors import InputError

THRESHOLDS = [0.001, 0.05, 0.3, 0.5, 0.7, 0.85, 0.99, 1.0]
NASTY = "aAbB01 !?\n\t潮汐éßİK😀\u202e\u0301-_'"


def lcs(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
    return row[-1]


def split(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower()) or list(text)


def near(a: str, b: str, threshold: float) -> bool:
    left, right = split(a), split(b)
    if not left and not right:
        return True
    return 2 * lcs(left, right) > Fraction(str(threshold)) * (len(left) + len(right))


def naive_novel(texts: Sequence[str], threshold: float) -> list[int]:
    kept: list[int] = []
    for i, text in enumerate(texts):
        if not any(near(text, texts[j], threshold) for j in kept):
            kept.append(i)
    return kept


few_words = st.lists(st.sampled_from("a b c d e".split()), max_size=14)  # noqa: SIM905
many_words = st.lists(st.sampled_from([f"w{i}" for i in range(40)]), max_size=14)


@st.composite
def edited_copies(draw: st.DrawFn) -> list[str]:
    """Texts made from one another by small edits, so that many pairs lie near the threshold."""
    texts = [draw(st.lists(st.sampled_from([f"w{i}" for i in range(12)]), min_size=1, max_size=12))]
    for _ in range(draw(st.integers(1, 9))):
        text = list(draw(st.sampled_from(texts)))
        for _ in range(draw(st.integers(0, 5))):
            at = draw(st.integers(0, len(text)))
            kind = draw(st.sampled_from(["insert", "drop", "turn", "repeat"]))
            if kind == "insert":
                text.insert(at, draw(st.sampled_from(["w1", "x", "y"])))
            elif kind == "drop":
                del text[at : at + 1]
            elif kind == "turn":
                text = text[at:] + text[:at]
            else:
                text = text[:at] + text[at : at + 2] * 2 + text[at + 2 :]
        texts.append(text)
    return [" ".join(words) for words in texts]


texts_of = st.one_of(
    st.lists(few_words.map(" ".join), max_size=12),
    st.lists(many_words.map(" ".join), max_size=12),
    st.lists(st.text(NASTY, max_size=12), max_size=12),
    edited_copies(),
)


@given(texts_of)
def test_novel_keeps_what_the_naive_filter_keeps(texts):
    assert list(novel(texts)) == naive_novel(texts, 0.7)


@given(texts_of, st.sampled_from(THRESHOLDS))
def test_novel_is_exact_at_every_threshold(texts, threshold):
    assert list(novel(texts, threshold)) == naive_novel(texts, threshold)


@given(texts_of, st.floats(0.01, 1.0, allow_nan=False), st.data())
def test_a_collision_names_the_first_near_text_there_is(texts, threshold, data):
    assume(texts)
    text = data.draw(st.sampled_from(texts))
    known = NoveltyFilter(threshold)
    for i, other in enumerate(texts):
        known.add(other, f"n{i}")
    first = next((i for i, other in enumerate(texts) if near(text, other, threshold)), None)
    assert known.collision(text) == (None if first is None else f"n{first}")


@given(texts_of)
def test_asking_changes_nothing(texts):
    known = NoveltyFilter()
    for text in texts:
        known.add(text, text)
    assert [known.collision(t) for t in texts] == [known.collision(t) for t in texts]


def numbered(n: int, shared: int, own: str) -> str:
    """n words, of which the first `shared` are the same in every such text."""
    return " ".join([f"s{i}" for i in range(shared)] + [f"{own}{i}" for i in range(n - shared)])


@pytest.mark.parametrize(
    ("m", "n", "shared", "threshold"),
    [
        (10, 10, 7, 0.7),
        (20, 20, 14, 0.7),
        (13, 7, 7, 0.7),
        (1, 1, 0, 0.7),
        (4, 6, 2, 0.4),
        (50, 50, 15, 0.3),
        (3, 3, 3, 1.0),
    ],
)
def test_a_tie_at_the_threshold_is_kept_and_one_word_more_is_not(m, n, shared, threshold):
    a, b = numbered(m, shared, "a"), numbered(n, shared, "b")
    assert 2 * shared <= Fraction(str(threshold)) * (m + n)
    assert list(novel([a, b], threshold)) == [0, 1]
    if shared < min(m, n):
        more = numbered(n, shared + 1, "b")
        assert list(novel([numbered(m, shared + 1, "a"), more], threshold)) == [0]


@pytest.mark.parametrize(
    ("texts", "kept"),
    [
        ([], []),
        ([""], [0]),
        (["", "", "a", ""], [0, 2]),
        (["a", "a", "A", "a!"], [0]),
        (["a", "b", "a b"], [0, 1, 2]),
        (["潮汐为什么", "潮汐为什么？", "月亮为什么"], [0, 2]),
        (["!!!!!!!!!!", "!!!!!!!!!", "?"], [0, 2]),
        (["Почему приливы?", "Почему приливы?"], [0]),
        (["a a a a a a a a a a", "a a a a a", "a a a a a a"], [0, 1]),
        (["1 2 3 4 5 6 7 8 9 0", "0 9 8 7 6 5 4 3 2 1"], [0, 1]),
    ],
)
def test_empty_short_repeated_and_foreign_texts(texts, kept):
    assert list(novel(texts)) == kept == naive_novel(texts, 0.7)


def test_novel_is_lazy_and_takes_any_iterable():
    def endless():
        i = 0
        while True:
            yield numbered(5, 0, f"x{i}y")
            i += 1

    found = novel(endless())
    assert [next(found) for _ in range(3)] == [0, 1, 2]


def test_token_numbers_step_over_the_surrogates():
    known = NoveltyFilter()
    known.add(" ".join(f"w{i}" for i in range(0xD800 - 3)), "filler")
    text = "seven new words stand about the gap"
    known.add(text, "gap")
    assert known.collision(text) == "gap"
    assert known.collision(text + " w0") == "gap"
    assert known.collision("other new words of which none is there") is None


@pytest.mark.parametrize("text", ["", " ", "Why?", "L'été à 20°C", "潮汐", "a_b-c", "\x00", "İx"])
def test_tokens_are_those_of_rouge_score_else_characters(text):
    assert tokens(text) == split(text)


def admitted(known: NoveltyFilter, texts: Sequence[str]) -> list[int]:
    return [i for i, text in enumerate(texts) if known.admit(text, "") is None]


@given(texts_of, st.sampled_from(THRESHOLDS), st.data())
def test_where_the_length_of_masks_changes_changes_no_decision(texts, threshold, data):
    texts = [data.draw(st.sampled_from(texts)) for _ in texts] + texts + texts[::-1]
    known = NoveltyFilter(threshold, mask_lengths=((4, 128), (9, 512), (1 << 32, 2048)))
    assert admitted(known, texts) == naive_novel(texts, threshold)


@given(texts_of, st.sampled_from(THRESHOLDS), st.integers(0, 6), st.data())
def test_to_look_up_rare_tokens_changes_no_decision(texts, threshold, indexed, data):
    texts = [data.draw(st.sampled_from(texts)) for _ in texts] + texts + texts[::-1]
    known = NoveltyFilter(threshold, indexed_texts=indexed)
    assert admitted(known, texts) == naive_novel(texts, threshold)


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.85])
def test_texts_looked_up_by_rare_tokens_are_decided_as_by_the_naive_filter(threshold):
    draw = random.Random(5)
    texts: list[list[str]] = []
    for _ in range(200):
        if texts and draw.random() < 0.5:
            share, old = draw.random() * 0.7, draw.choice(texts)
            text = [w if draw.random() > share else str(draw.randrange(3000)) for w in old]
            texts.append(text[draw.randrange(3) :])
        else:
            size = draw.choice([4, 15, 30, 63, 64])
            texts.append([str(int(3000 * draw.random() ** 2)) for _ in range(size)])
    given = [" ".join(words) for words in texts]
    known = NoveltyFilter(threshold, indexed_texts=0)
    assert admitted(known, given) == naive_novel(given, threshold)


@pytest.mark.parametrize(("shared", "looked_up"), [(4, {7}), (8, None)])
def test_only_texts_with_a_rare_token_are_compared_unless_these_are_many(shared, looked_up):
    known = NoveltyFilter(indexed_texts=40)
    text = known._tokenize(numbered(10, shared, "x7y"))
    for i in range(40):
        assert known._with_rare_token(text) is None
        known.add(numbered(10, shared, f"x{i}y"), f"n{i}")
    rows = known._with_rare_token(text)
    assert (rows if rows is None else set(rows)) == looked_up


@given(st.text(NASTY + "\x00\x1c\x7f\x80\u212a\ud800 azAZ09", max_size=30))
def test_tokens_of_any_characters_are_those_of_rouge_score(text):
    assert tokens(text) == split(text)


@pytest.mark.parametrize("threshold", [0.05, 0.4, 0.7, 0.9])
def test_collisions_of_texts_of_every_length_of_mask_have_the_name_of_the_first(threshold):
    draw = random.Random(7)
    texts: list[list[str]] = []
    known = NoveltyFilter(threshold)
    for i in range(90):
        if texts and draw.random() < 0.7:
            share, old = draw.random() / 2, draw.choice(texts)
            text = [w if draw.random() > share else str(draw.randrange(40)) for w in old]
        else:
            text = [str(draw.randrange(300)) for _ in range(draw.choice([5, 38, 41, 150, 200]))]
        numbers = np.array(text, np.int64)
        near = (
            2 * LCSseq.similarity(numbers, np.array(other, np.int64))
            > Fraction(str(threshold)) * (len(text) + len(other))
            for other in texts
        )
        first = next((f"n{j}" for j, is_near in enumerate(near) if is_near), None)
        assert known.collision(" ".join(text)) == first
        known.add(" ".join(text), f"n{i}")
        texts.append(text)


def test_texts_longer_than_a_size_is_held_are_found():
    words = [f"w{i % 50_000}" for i in range(70_000)]
    known = NoveltyFilter()
    known.add(" ".join(words), "long")
    assert known.collision(" ".join(words[:66_000])) == "long"
    assert known.collision(" ".join(words[:30_000])) is None


@given(texts_of, st.integers(0, 12))
def test_tokens_past_the_last_code_point_are_compared_alike(texts, last):
    assert admitted(NoveltyFilter(last_code_point=last), texts) == naive_novel(texts, 0.7)


def test_tokens_past_the_real_last_code_point_are_compared_alike():
    known = NoveltyFilter()
    known.add("old words", "old")
    known._numbers.update((-1 - i, 0) for i in range(0x110000))
    assert known.admit("seven words stand beyond the last point", "far") is None
    assert known.admit("seven old words stand beyond the last point", "near") == "far"
    assert known.admit("old words", "again") == "old"


@pytest.mark.parametrize("seed", range(2))
def test_long_texts_and_texts_of_every_length_are_decided_as_by_the_naive_filter(seed):
    draw = random.Random(seed)
    texts: list[list[str]] = []
    for _ in range(60):
        if texts and draw.random() < 0.6:
            share = draw.random() / 2
            old = draw.choice(texts)
            text = [w if draw.random() > share else str(draw.randrange(30)) for w in old]
            texts.append(text[draw.randrange(1 + len(text) // 2) :])
        else:
            texts.append([str(draw.randrange(200)) for _ in range(draw.choice([3, 30, 90]))])
    given = [" ".join(words) for words in texts]
    assert list(novel(given)) == naive_novel(given, 0.7)


@given(texts_of, st.sampled_from(THRESHOLDS))
def test_to_admit_is_to_ask_and_then_to_add_what_is_new(texts, threshold):
    at_once, by_steps = NoveltyFilter(threshold), NoveltyFilter(threshold)
    for i, text in enumerate(texts):
        collided = by_steps.collision(text)
        if collided is None:
            by_steps.add(text, f"n{i}")
        assert at_once.admit(text, f"n{i}") == collided
    assert len(at_once) == len(by_steps)


def test_a_text_may_repeat_one_token_very_often():
    assert list(novel(["!" * 50_000, "!" * 49_000, "a " * 40_000])) == [0, 2]


@pytest.mark.parametrize("threshold", [1 / 3, 0.1 + 0.2, 0.7000000000000001, 1e-12])
def test_thresholds_of_many_digits_are_exact(threshold):
    texts = [numbered(10, shared, own) for own, shared in zip("abcdefg", range(2, 9), strict=True)]
    assert list(novel(texts, threshold)) == naive_novel(texts, threshold)


def test_novel_holds_no_texts_and_looks_at_one_at_a_time():
    alive = 0

    class Text(str):
        def __new__(cls, text):
            nonlocal alive
            alive += 1
            return super().__new__(cls, text)

        def __del__(self):
            nonlocal alive
            alive -= 1

    most = 0
    for _ in novel(Text(numbered(9, 2, f"x{i}y")) for i in range(2000)):
        most = max(most, alive)
    assert most <= 3


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


def test_near_vectors_name_the_first_over_the_threshold():
    draw = np.random.default_rng(1)
    known = CosineFilter(0.5, block=4)
    held: list[np.ndarray] = []
    assert known.collision(unit(1, 0, 0)) is None
    for i in range(30):
        vector = unit(*draw.normal(size=3))
        first = next((f"n{j}" for j, other in enumerate(held) if other @ vector > 0.5), None)
        assert known.collision(vector) == first
        known.add(vector, f"n{i}")
        held.append(vector)


def test_a_cosine_at_the_threshold_is_no_duplicate():
    known = CosineFilter(0.0)
    known.add(unit(1, 0), "east")
    assert known.collision(unit(0, 1)) is None
    assert known.collision(unit(1, 9)) == "east"


WHY = "Why are tides high twice a day?"
NEAR = "Why are tides high twice each day?"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_dedup_keeps_rows_as_they_were_and_names_what_they_collided_with(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": WHY}], "score": 1.5, "id": 7},
        {"about": "no shape at all"},
        {"instruction": NEAR, "input": "", "output": "The Moon."},
        {"instruction": "Name a colour.", "output": "Rot 🟥", "more": {"a": [None]}},
    ]
    found = deduplicate(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl") == [rows[0], rows[3]]
    assert found.dropped == [(3, 1, NEAR, "rouge-l")]
    assert (found.written, found.report.taken, found.report.skipped_count) == (2, 3, 1)
    assert found.report.skipped[0]["line"] == 2
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["in.jsonl", "out.jsonl"]


def test_dedup_minds_the_threshold(tmp_path):
    given = write(tmp_path / "in.jsonl", [{"instruction": WHY}, {"instruction": NEAR}])
    assert deduplicate(given, tmp_path / "out.jsonl", threshold=0.99).written == 2


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
def test_dedup_reads_every_kind_of_file(tmp_path, kind):
    given, texts = tmp_path / f"in.{kind}", [WHY, NEAR, "Name a colour."]
    rows = [json.dumps({"instruction": text}) for text in texts]
    lines = {"jsonl": rows, "json": [f"[{','.join(rows)}]"], "csv": ["instruction", *texts]}
    given.write_text("\n".join(lines.get(kind, texts)) + "\n", encoding="utf-8")
    assert deduplicate(given, tmp_path / "out.jsonl").written == 2
    assert read(tmp_path / "out.jsonl") == [{"instruction": WHY}, {"instruction": "Name a colour."}]


def test_dedup_reads_packed_files_messages_in_parts_and_contexts(tmp_path):
    parts = [{"role": "user", "content": [{"type": "text", "text": WHY}]}]
    rows = [
        {"messages": parts, "score": 1.5},
        {"instruction": NEAR, "input": float("nan"), "output": 42},
        {"instruction": "Sum up.", "context": "Rain falls on the hills.", "response": "Rain."},
        {"instruction": "Sum up.", "context": "Nine ships left on Monday.", "response": "Ships."},
    ]
    given = tmp_path / "in.JSONL.gz"
    given.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    found = deduplicate(given, tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl") == [rows[0], *rows[2:]]
    assert found.dropped == [(2, 1, NEAR, "rouge-l")]


def test_dedup_writes_no_other_kind_of_file(tmp_path):
    given = write(tmp_path / "in.jsonl", [{"instruction": WHY}])
    with pytest.raises(InputError, match="parquet"):
        deduplicate(given, tmp_path / "out.csv")


def test_dedup_writes_parquet_with_every_column_and_keeps_the_types_of_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"instruction": WHY, "n": 1}, {"instruction": NEAR}, {"prompt": "Sing.", "late": "x"}]
    out, again = tmp_path / "out.parquet", tmp_path / "again.parquet"
    deduplicate(write(tmp_path / "in.jsonl", rows), out)
    empty = {"instruction": None, "n": None, "prompt": None, "late": None}
    assert pyarrow.parquet.read_table(out).to_pylist() == [empty | rows[0], empty | rows[2]]
    typed = pyarrow.table({"instruction": [WHY, NEAR], "n": pyarrow.array([1, 2], "int8")})
    pyarrow.parquet.write_table(typed, tmp_path / "typed.parquet")
    deduplicate(tmp_path / "typed.parquet", again)
    assert pyarrow.parquet.read_table(again).equals(typed.slice(0, 1))


def test_dedup_of_what_fits_no_table_says_so_and_leaves_nothing(tmp_path):
    rows = [{"instruction": WHY, "n": 1}, {"instruction": "Sing.", "n": ["a"]}]
    with pytest.raises(InputError, match="jsonl"):
        deduplicate(write(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_dedup_writes_what_parquet_holds_and_json_does_not(tmp_path):
    import datetime

    import pyarrow
    import pyarrow.parquet

    day = datetime.date(2026, 1, 2)
    pyarrow.parquet.write_table(
        pyarrow.table({"instruction": [WHY], "day": [day]}), tmp_path / "in.parquet"
    )
    deduplicate(tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl") == [{"instruction": WHY, "day": "2026-01-02"}]
    pyarrow.parquet.write_table(
        pyarrow.table({"instruction": [WHY], "raw": [b"x"]}), tmp_path / "raw.parquet"
    )
    with pytest.raises(InputError, match="line 1"):
        deduplicate(tmp_path / "raw.parquet", tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl") == [{"instruction": WHY, "day": "2026-01-02"}]


def test_dedup_keeps_half_a_surrogate_pair_as_json_has_it(tmp_path):
    rows = [{"instruction": WHY, "note": "\ud83d"}]
    deduplicate(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl") == rows


def test_dedup_refuses_its_own_file_whatever_it_is_called(tmp_path):
    given = write(tmp_path / "in.jsonl", [{"instruction": WHY}])
    (tmp_path / "soft.jsonl").symlink_to(given)
    (tmp_path / "hard.jsonl").hardlink_to(given)
    for name in ("in.jsonl", "soft.jsonl", "hard.jsonl"):
        with pytest.raises(InputError, match="is the input file"):
            deduplicate(given, tmp_path / name)
    assert read(given) == [{"instruction": WHY}]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"instruction": "Sing."}\nno json\n', "line 2"),
        ("", "it is empty"),
        ('{"about": 1}\n', "line 1"),
    ],
)
def test_dedup_of_a_bad_file_says_where_and_leaves_the_old_output(tmp_path, text, why):
    (tmp_path / "in.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "out.jsonl").write_text("old", encoding="utf-8")
    with pytest.raises(InputError, match=why):
        deduplicate(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_dedup_goes_past_bad_lines_when_told_to_and_counts_them(tmp_path):
    (tmp_path / "in.jsonl").write_text('no json\n{"prompt": "Sing."}\n', encoding="utf-8")
    found = deduplicate(tmp_path / "in.jsonl", tmp_path / "out.jsonl", skip_bad_lines=True)
    assert (found.written, found.report.skipped_count) == (1, 1)


def test_dedup_says_when_it_cannot_write(tmp_path):
    given = write(tmp_path / "in.jsonl", [{"instruction": WHY}])
    with pytest.raises(InputError, match="cannot be written"):
        deduplicate(given, tmp_path / "nowhere" / "out.jsonl")
    (tmp_path / "there.jsonl").mkdir()
    with pytest.raises(InputError, match="directory"):
        deduplicate(given, tmp_path / "there.jsonl")


def test_dedup_drops_what_is_near_by_embedding_too(tmp_path):
    texts = [WHY, NEAR, "Name a colour.", "What colour is there?", "Sing."]
    units = [unit(1, 0), unit(1, 0), unit(0, 1), unit(1, 9), unit(-1, 0)]
    vectors = dict(zip(texts, units, strict=True))
    found = deduplicate(
        write(tmp_path / "in.jsonl", [{"instruction": text} for text in texts]),
        tmp_path / "out.jsonl",
        meaning=MeaningFilter(0.9, lambda given: np.array([vectors[text] for text in given])),
    )
    assert found.dropped == [(2, 1, NEAR, "rouge-l"), (4, 3, texts[3], "embedding")]
    assert found.written == 3


def naive_copied(text: str, source: str, words: int) -> str | None:
    ours, theirs = split(text), split(source)
    for i in range(len(ours) - words + 1):
        for j in range(len(theirs) - words + 1):
            if ours[i : i + words] == theirs[j : j + words]:
                return " ".join(ours[i : i + words])
    return None


@given(
    st.one_of(few_words.map(" ".join), st.text(NASTY, max_size=20)),
    st.one_of(few_words.map(" ".join), st.text(NASTY, max_size=20)),
    st.integers(1, 6),
)
def test_copied_run_is_the_first_run_that_a_naive_look_finds(text, source, words):
    assert find_copied_run(text, source, words) == naive_copied(text, source, words)


@given(
    st.one_of(few_words.map(" ".join), st.text(NASTY, max_size=20)),
    st.lists(st.one_of(few_words.map(" ".join), st.text(NASTY, max_size=20)), max_size=4),
    st.one_of(few_words.map(" ".join), st.text(NASTY, max_size=20)),
    st.integers(1, 7),
)
def test_the_source_of_a_copy_is_the_first_that_has_a_run(text, sources, allowed, words):
    permitted = {tuple(split(allowed)[i : i + words]) for i in range(len(split(allowed)))}
    ours = [split(text)[i : i + words] for i in range(len(split(text)) - words + 1)]
    expected = None
    for i, source in enumerate(sources):
        theirs = [split(source)[j : j + words] for j in range(len(split(source)) - words + 1)]
        runs = [run for run in ours if run in theirs and tuple(run) not in permitted]
        if runs:
            expected = i, " ".join(runs[0])
            break
    assert find_copied_source(text, sources, words, allowed) == expected


@pytest.mark.parametrize("words", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("at", range(12))
def test_a_copy_is_found_wherever_it_stands(words, at):
    run = [f"r{i}" for i in range(words)]
    text = [f"a{i}" for i in range(at)] + run + ["end"]
    source = [f"b{i}" for i in range(at // 2)] + run
    found = find_copied_source(" ".join(text), ["none", " ".join(source)], words)
    assert found == (1, " ".join(run))


def test_copied_run_folds_case_and_marks_but_needs_the_whole_length():
    source = "The tide, it is said, follows the Moon."
    assert find_copied_run("So THE TIDE it is said!", source, 5) == "the tide it is said"
    assert find_copied_run("So THE TIDE it is said!", source, 6) is None
    assert find_copied_run("", source, 1) is None
    assert find_copied_run("tide", "", 1) is None
