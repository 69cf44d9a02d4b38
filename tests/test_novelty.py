"""The exact greedy ROUGE-L filter against a filter that knows no shortcut."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from memory.novelty import NoveltyFilter, copied_run, novel, tokens

THRESHOLDS = [0.05, 0.3, 0.5, 0.7, 0.85, 0.99, 1.0]
NASTY = "aAbB01 !?\n\t潮汐éßİK😀\u202e\u0301-_'"
quick = settings(max_examples=200, deadline=None, database=None)


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


@quick
@given(texts_of)
def test_novel_keeps_what_the_naive_filter_keeps(texts):
    assert list(novel(texts)) == naive_novel(texts, 0.7)


@quick
@given(texts_of, st.sampled_from(THRESHOLDS))
def test_novel_is_exact_at_every_threshold(texts, threshold):
    assert list(novel(texts, threshold)) == naive_novel(texts, threshold)


@quick
@given(texts_of, st.floats(0.01, 1.0, allow_nan=False), st.data())
def test_a_collision_names_the_first_near_text_there_is(texts, threshold, data):
    assume(texts)
    text = data.draw(st.sampled_from(texts))
    known = NoveltyFilter(threshold)
    for i, other in enumerate(texts):
        known.add(other, f"n{i}")
    first = next((i for i, other in enumerate(texts) if near(text, other, threshold)), None)
    assert known.collision(text) == (None if first is None else f"n{first}")


@quick
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


def naive_copied(text: str, source: str, words: int) -> str | None:
    ours, theirs = split(text), split(source)
    for i in range(len(ours) - words + 1):
        for j in range(len(theirs) - words + 1):
            if ours[i : i + words] == theirs[j : j + words]:
                return " ".join(ours[i : i + words])
    return None


@quick
@given(
    st.one_of(few_words.map(" ".join), st.text(NASTY, max_size=20)),
    st.one_of(few_words.map(" ".join), st.text(NASTY, max_size=20)),
    st.integers(1, 6),
)
def test_copied_run_is_the_first_run_that_a_naive_look_finds(text, source, words):
    assert copied_run(text, source, words) == naive_copied(text, source, words)


def test_copied_run_folds_case_and_marks_but_needs_the_whole_length():
    source = "The tide, it is said, follows the Moon."
    assert copied_run("So THE TIDE it is said!", source, 5) == "the tide it is said"
    assert copied_run("So THE TIDE it is said!", source, 6) is None
    assert copied_run("", source, 1) is None
    assert copied_run("tide", "", 1) is None
