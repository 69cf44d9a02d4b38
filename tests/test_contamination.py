"""Benchmark prompts in instructions and responses: found when they are there, and only then."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.contamination import Contamination, Hit, word_tokens
from memory.novelty import tokens
from refloom.data.benchmarks import load_benchmarks, prompts_in
from refloom.data.read import ReadReport
from refloom.data.shapes import UnknownShape
from refloom.errors import InputError

OPENINGS = [
    "Draft a short letter for", "Suppose you must advise", "List five mistakes made by",
    "Outline a lesson taught to", "Write a dialogue between you and", "Estimate yearly costs of",
    "Compare two working days of", "Invent a riddle known to", "Describe the first week of",
    "Solve this puzzle posed by",
]  # fmt: skip
PEOPLE = [
    "a lighthouse keeper on Fair Isle", "the baker of Lyon's old town", "an unpaid museum guard",
    "three students of marine biology", "a retired train driver", "my neighbour's beekeeping club",
    "the youngest judge in Ghana", "one very tired night nurse",
]  # fmt: skip
MATTERS = [
    "who counts 37 migrating geese daily.", "whose oven fails before dawn!",
    "arguing over a stolen compass.", "with only 12 euros left,", "who never learned to swim.",
    "planning a bridge out of paper:", "that hears bells under water?", "when clocks run wild.",
    "after the harvest was lost;", "using nothing except salt and string.",
]  # fmt: skip
ENDINGS = [
    "Keep it under 90 words.", "Use no adjectives at all.", "Give your answer as a table.",
    "End with one honest question.", "Explain each step to beginners.", "Rhyme wherever you can.",
    "Quote one law of physics.", "Name the sources you trust.", "Mention rain exactly twice.",
    "Add a title in Latin.",
]  # fmt: skip
QUESTIONS = [
    f"{OPENINGS[i % 10]} {PEOPLE[i // 10]} {MATTERS[(3 * i + i // 10) % 10]} "
    f"{ENDINGS[(7 * i + 3 * (i // 10)) % 10]}"
    for i in range(80)
]
VOCABULARY = sorted({word for question in QUESTIONS for word in question.split()})
FILLER = "Colours faded slowly while nobody in that valley said much about it, and so on."


def index(**options: object) -> Contamination:
    found = Contamination(**options)  # type: ignore[arg-type]
    for row, question in enumerate(QUESTIONS, 1):
        found.add(question, "made.jsonl", row)
    return found


@pytest.fixture(scope="module")
def made() -> Contamination:
    return index()


def changed(question: str, at: int) -> str:
    split = question.split()
    split[at] = "otherwise"
    return " ".join(split)


WAYS: dict[str, Callable[[str], str]] = {
    "itself": lambda q: q,
    "shouted": lambda q: q.upper(),
    "unpunctuated": lambda q: "  ".join(tokens(q)) + " ???",
    "embedded": lambda q: f"{FILLER} Now answer this: {q} {FILLER} {FILLER}",
    "a sentence before": lambda q: f"Please think with care. {q}",
    "a sentence after": lambda q: f"{q} Thank you for all your help with this.",
    "a word changed": lambda q: changed(q, 9),
    "two words changed": lambda q: changed(changed(q, 5), 12),
    "the last sentence gone": lambda q: q[: max(q.rfind(e) for e in ENDINGS)],
}


@pytest.mark.parametrize("way", WAYS)
def test_every_question_is_found_and_its_row_named(made: Contamination, way: str) -> None:
    for row, question in enumerate(QUESTIONS, 1):
        hit = made.find_in_instruction(WAYS[way](question))
        assert hit is not None, question
        assert (hit.benchmark, hit.row) == ("made.jsonl", row)
        assert 0 < len(hit.evidence) <= 200


def test_a_response_that_quotes_a_question_is_found(made: Contamination) -> None:
    for row, question in enumerate(QUESTIONS, 1):
        hit = made.find_in_response(f"{FILLER} {FILLER} You asked: «{question}» {FILLER * 20}")
        assert hit is not None
        assert (hit.row, hit.how) == (row, "13-gram")
        assert set(hit.evidence.split()) <= set(tokens(question))


def test_texts_on_the_same_matters_are_free(made: Contamination) -> None:
    for i in range(80):
        person, matter, ending = PEOPLE[i // 10], MATTERS[i % 10], ENDINGS[(i * 3) % 10]
        text = f"{matter} That is what I heard about {person}, or so it seemed. {ending}"
        assert made.find_in_instruction(text) is None, text
        assert made.find_in_response(text + f" {FILLER} {text}") is None, text


def test_hundreds_of_unrelated_texts_of_the_same_words_are_free(made: Contamination) -> None:
    rng = random.Random(7)
    for size in [*range(1, 60)] * 8:
        text = " ".join(rng.choices(VOCABULARY, k=size))
        assert made.find_in_instruction(text) is None, text
        assert made.find_in_response(text) is None, text
    for question in QUESTIONS:
        mixed = question.split()
        rng.shuffle(mixed)
        assert made.find_in_instruction(" ".join(mixed)) is None


@pytest.mark.parametrize("digest", [lambda run: 0, lambda run: ord(run[0]) % 4])
def test_equal_digests_of_different_runs_hide_no_hit_and_make_none(
    digest: Callable[[str], int],
) -> None:
    colliding, exact = index(digest=digest), index()
    rng = random.Random(3)
    texts = [" ".join(rng.choices(VOCABULARY, k=30)) for _ in range(40)]
    texts += [way(question) for question in QUESTIONS[::16] for way in WAYS.values()]
    for text in texts:
        assert colliding.find_in_instruction(text) == exact.find_in_instruction(text)
        assert colliding.find_in_response(text) == exact.find_in_response(text)


def short(*prompts: str) -> Contamination:
    found = Contamination()
    for row, prompt in enumerate(prompts, 1):
        found.add(prompt, "short.txt", row)
    return found


def test_a_short_prompt_is_found_where_it_stands_whole() -> None:
    found = short("Can moss grow on glass?", "List nine rivers that flow into the Baltic Sea.")
    for asked in (found.find_in_instruction, found.find_in_response):
        assert asked(f"{FILLER} So: can moss grow on glass? {FILLER}") == Hit(
            "short.txt", 1, "whole prompt", "can moss grow on glass"
        )
        assert asked(f"{FILLER} Can moss then grow on glass? {FILLER}") is None
        hit = asked(f"List nine rivers that flow into the Baltic {FILLER} {FILLER}")
        assert hit is not None and (hit.row, hit.how) == (2, "8-gram coverage")


def test_a_prompt_of_fewer_than_five_words_is_found_only_as_an_instruction_of_its_own() -> None:
    found = short("What is love?", "Prove Euclid's lemma.", "Sing")
    for text in ("what is LOVE", "What is love, please?", "Prove Euclid's lemma!", "Sing!"):
        assert (hit := found.find_in_instruction(text)) is not None and hit.how == "near-duplicate"
        assert found.find_in_response(text) is None
    for text in ("What is love in the songs of Brel?", "What is justice?", "Sing a song", ""):
        assert found.find_in_instruction(text) is None


def test_the_prompt_with_the_longest_run_is_named() -> None:
    head = "Answer the following question with one letter and give no reason for your answer:"
    found = short(f"{head} which metal melts in the hand?", f"{head} who wrote about whales?")
    for row, rest in ((1, "which metal melts in the hand?"), (2, "who wrote about whales?")):
        assert (hit := found.find_in_instruction(f"{head} {rest}")) is not None and hit.row == row


def test_words_of_other_scripts_count_as_words() -> None:
    russian = "Почему приливы бывают дважды в сутки, а луна проходит над нами лишь однажды за день?"
    chinese = "为什么潮汐每天两次而月亮每天只经过我们头顶一次请用 Python 计算"
    found = short(russian, chinese)
    for row, text in ((1, russian), (2, chinese)):
        hit = found.find_in_instruction(f"Bitte: {text.upper()} Danke!")
        assert hit is not None and (hit.row, hit.how) == (row, "13-gram")
    for text in (
        "Почему два и два четыре, а не пять, и кто это решил в первый раз?",
        "用 Python 写",
    ):
        assert found.find_in_instruction(text) is None
        assert found.find_in_response(text * 5) is None


@given(st.text(st.characters(codec="ascii")))
def test_english_words_are_the_tokens_of_the_novelty_filter(text: str) -> None:
    assert word_tokens(text) == ([] if not word_tokens(text) else tokens(text))
    assert word_tokens(text + "—") == word_tokens(text)


def test_a_prompt_without_words_is_left_out() -> None:
    found = short("???", "")
    assert len(found) == 0
    assert found.find_in_instruction("???") is None
    assert found.find_in_instruction("") is None
    assert found.find_in_response("") is None


def grams(found: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def lcs(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before, row = row, [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
    return row[-1]


def holds(text: list[str], prompt: list[str], n: int, short_n: int, *, reply: bool) -> bool:
    """The definition, with no shortcut."""
    size = len(prompt)
    near = 2 * lcs(text, prompt) > Fraction(7, 10) * (len(text) + size)
    if size < 5:
        whole = tuple(prompt) in grams(text, size)
        return not reply and whole and (near or text == prompt)
    run = bool(grams(text, n) & grams(prompt, n))
    whole = size < n and tuple(prompt) in grams(text, size)
    covered = {
        at
        for i in range(size - short_n + 1)
        if tuple(prompt[i : i + short_n]) in grams(text, short_n)
        for at in range(i, i + short_n)
    }
    return run or whole or near or 2 * len(covered) >= size > 0 < len(covered)


FEW = st.lists(st.sampled_from("abc"), max_size=16)
SOME = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=24)


@given(st.lists(FEW | SOME, max_size=5), FEW | SOME, st.data())
def test_a_text_is_a_hit_exactly_when_the_definition_says_so(
    prompts: list[list[str]], text: list[str], data: st.DataObject
) -> None:
    if any(prompts) and data.draw(st.booleans()):
        prompt = data.draw(st.sampled_from([p for p in prompts if p]))
        start = data.draw(st.integers(0, len(prompt) - 1))
        text = [*text[:3], *prompt[start : start + data.draw(st.integers(1, 24))], *text[3:]]
    for n, short_n in ((13, 8), (7, 5)):
        found = Contamination(n=n, short_n=short_n, digest=lambda run: hash(run) % 16)
        for row, prompt in enumerate(prompts, 1):
            found.add(" ".join(prompt), "p", row)
        for reply, ask in ((False, found.find_in_instruction), (True, found.find_in_response)):
            right = {
                row
                for row, prompt in enumerate(prompts, 1)
                if prompt and holds(text, prompt, n, short_n, reply=reply)
            }
            hit = ask(" ".join(text))
            assert (hit is not None) == bool(right)
            assert hit is None or hit.row in right


@given(question=st.sampled_from(QUESTIONS), data=st.data())
def test_any_thirteen_words_of_a_prompt_are_a_hit(
    made: Contamination, question: str, data: st.DataObject
) -> None:
    found = tokens(question)
    start = data.draw(st.integers(0, len(found) - 13))
    around = st.lists(st.sampled_from([*VOCABULARY, "zebra"]), max_size=40).map(" ".join)
    text = f"{data.draw(around)} {' '.join(found[start : start + 13])} {data.draw(around)}"
    for hit in (made.find_in_instruction(text), made.find_in_response(text)):
        assert hit is not None and hit.how == "13-gram"


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "prompts"),
    [
        ({"turns": ["One?", "Two?"], "question_id": 1}, ["One?", "Two?"]),
        ({"prompt": ["One?", "Two?"]}, ["One?", "Two?"]),
        ({"turns": [{"role": "user", "content": "One?"}]}, ["One?"]),
        (
            {"messages": [
                {"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"},
                {"role": "assistant", "content": "1"}, {"role": "user", "content": "Two?"},
            ]},
            ["One?", "Two?"],
        ),
        (
            {"conversations": [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "1"}]},
            ["One?"],
        ),
        ({"conversations": ["One?", "1", "Two?", "2"]}, ["One?", "Two?"]),
        ({"instruction": "Add.", "input": "1 and 1", "output": "2"}, ["Add.\n\n1 and 1"]),
        ({"instruction": "Add.", "output": ["2", "two"]}, ["Add."]),
        ({"question": "One?", "answer": "1"}, ["One?"]),
        ({"Question": "One?", "Best Answer": "1"}, ["One?"]),
        ({"task_id": 3, "text": "One?", "code": "1"}, ["One?"]),
        ({"goal": "One?", "sol1": "1"}, ["One?"]),
        ({"turns": '["One?", "Two?"]'}, ["One?", "Two?"]),
        ({"messages": '[{"role": "User", "content": "One?"}]'}, ["One?"]),
        (
            {"messages": [{"role": "HUMAN", "content": [{"type": "text", "text": "One?"}]}]},
            ["One?"],
        ),
        ({"prompt": "[1, 2] is what?"}, ["[1, 2] is what?"]),
        ({"prompt": '["one", "two"]'}, ['["one", "two"]']),
        ("One?", ["One?"]),
    ],
)  # fmt: skip
def test_every_turn_of_a_user_is_a_prompt(row: object, prompts: list[str]) -> None:
    assert prompts_in(row)[1] == prompts


@pytest.mark.parametrize(
    "row",
    [
        3, {}, {"label": "x"}, {"question": " "}, {"turns": []}, {"turns": [1]}, {"prompt": "?!"},
        {"messages": [{"role": "assistant", "content": "1"}]}, {"question": "\ud800 a"},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
    ],
)  # fmt: skip
def test_a_row_that_asks_nothing_is_unfit(row: object) -> None:
    with pytest.raises(UnknownShape):
        prompts_in(row)


def test_the_line_of_the_file_is_named_and_unusable_rows_are_counted(tmp_path: Path) -> None:
    rows: list[object] = [{"turns": QUESTIONS[:2]}, {"label": 1}, {"question": QUESTIONS[2]}]
    path = write(tmp_path / "bench.jsonl", rows)
    path.write_text("\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    report = ReadReport()
    found = load_benchmarks([path], report=report)
    assert len(found) == 3
    assert (report.taken, report.skipped_count, report.skipped[0]["line"]) == (2, 1, 3)
    for question, line in zip(QUESTIONS[:3], (2, 2, 4), strict=True):
        hit = found.find_in_instruction(question)
        assert hit is not None and (hit.benchmark, hit.row) == ("bench.jsonl", line)
    again = ReadReport()
    load_benchmarks([path], report=again)
    assert again.digest == report.digest != ""


def test_files_of_one_name_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    paths = []
    for folder, question in zip("ab", QUESTIONS, strict=False):
        (tmp_path / folder).mkdir()
        paths.append(write(tmp_path / folder / "test.jsonl", [{"question": question}]))
    found = load_benchmarks(paths)
    assert [
        (found.find_in_instruction(q) or pytest.fail("free")).benchmark for q in QUESTIONS[:2]
    ] == [
        "a/test.jsonl",
        "b/test.jsonl",
    ]


def test_text_and_csv_files_are_benchmarks_too(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("\n".join(QUESTIONS[:3]), encoding="utf-8")
    (tmp_path / "b.csv").write_text(f'id,Question\n1,"{QUESTIONS[5]}"\n', encoding="utf-8")
    found = load_benchmarks([tmp_path / "b.txt", tmp_path / "b.csv"])
    assert len(found) == 4
    hit = found.find_in_response(f"{FILLER} {QUESTIONS[5]}")
    assert hit is not None and (hit.benchmark, hit.row) == ("b.csv", 2)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.jsonl", None, "no such file"),
        ("empty.jsonl", "", "it is empty"),
        ("keys.jsonl", '{"a": 1}\n{"b": 1}\n', "any of its 2 rows; line 1: its keys"),
        ("broken.jsonl", '{"question": "Why?"}\n{"questi', "line 2 is not valid JSON"),
    ],
)
def test_a_file_without_a_prompt_is_one_clear_line(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    good = write(tmp_path / "good.jsonl", [{"question": "Why?"}, {"label": 1}])
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        load_benchmarks([good, tmp_path / name])
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert len(load_benchmarks([])) == 0


@pytest.mark.parametrize(("fillers", "how"), [(5, "near-duplicate"), (6, None)])
def test_a_text_is_too_long_to_be_a_near_duplicate_only_past_the_threshold(fillers, how):
    known = Contamination()
    known.add(" ".join(f"w{i}" for i in range(7)), "bench", 1)
    text = " ".join(f"w{i} x{i}" if i < fillers else f"w{i}" for i in range(7))
    hit = known.find_in_response(text)
    assert (hit.how if hit else None) == how
