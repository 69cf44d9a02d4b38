"""The index over references: what it finds, what it keeps, what it refuses."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fakes import ScriptedModel, letters, words
from hypothesis import given
from hypothesis import strategies as st
from runs import build_run

from graph.defaults import default_references
from memory import vectors as faiss_vectors
from memory.embed import SLICE, Embedder
from memory.index import Candidates, ReferenceIndex, choose_by_mmr, matching_rows, mmr
from memory.references import IndexUnusable, content_id, distinct
from memory.store import (
    MAX_CACHED_GROUPS,
    ROW_GROUP,
    ReferenceFile,
    load_or_write_references,
    open_reference_file,
    write_references,
)
from refloom.cli import index as index_commands
from refloom.cli import main
from refloom.runs.run import Tools


class Counting:
    """An embedding by letters that keeps every text it was asked for."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.calls = 0

    async def __call__(self, texts):
        self.calls += 1
        self.texts += texts
        await asyncio.sleep(0)
        return await letters(texts)


def reference(id_: str, instruction: str) -> dict:
    return {"id": id_, "instruction": instruction, "response": f"answer to {instruction}"}


def references(n: int, key: str = "") -> list[dict]:
    return [reference(f"r{i}", f"{words(f'{key}{i}', 8)}?") for i in range(n)]


def opened(
    given_, directory: Path | None = None, model: str = "m", embed=None, **options
) -> ReferenceIndex:
    return ReferenceIndex(given_, embed or Counting(), directory, model, **options)


async def found_ids(index: ReferenceIndex, text: str, k: int) -> list[str]:
    return [r["id"] for r in await index.search(text, k)]


def gains(scores, vectors, chosen: list[int]) -> dict[int, float]:
    """What each row not yet chosen would add, by the formula and nothing else."""
    out = {}
    for i in range(len(scores)):
        if i not in chosen:
            nearest = max((float(np.dot(vectors[i], vectors[j])) for j in chosen), default=0.0)
            out[i] = 0.7 * float(scores[i]) - 0.3 * nearest
    return out


def is_mmr(order: list[int], scores, vectors, given_first: int = 0) -> bool:
    """Whether each step takes a row of the greatest gain (a hair's breadth of rounding aside)."""
    for step in range(given_first, len(order)):
        possible = gains(scores, vectors, order[:step])
        if order[step] not in possible or possible[order[step]] < max(possible.values()) - 1e-5:
            return False
    return True


@given(st.integers(0, 12), st.integers(0, 14), st.integers(0, 2**31), st.booleans())
def test_mmr_takes_the_greatest_gain_at_every_step(n, k, seed, with_first):
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(n, 5)).astype(np.float32)
    if n > 2:
        vectors[1] = vectors[0]
    scores = draw.uniform(-1, 1, n).astype(np.float32)
    first = [int(draw.integers(n))] if with_first and n else []
    order = mmr(scores, vectors, k, first)
    assert len(order) == max(min(k, n), len(first)) == len(set(order))
    assert order[: len(first)] == first
    assert is_mmr(order, scores, vectors, len(first))


def test_mmr_prefers_another_thing_to_more_of_the_same():
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    scores = np.array([0.9, 0.9, 0.5], np.float32)
    assert mmr(scores, vectors, 3, []) == [0, 2, 1]
    assert mmr(scores, vectors, 2, [2]) == [2, 0]


@pytest.mark.parametrize("seed", range(12))
async def test_a_search_is_mmr_over_the_exact_scores(seed):
    draw = random.Random(seed)
    given_ = references(draw.randint(1, 24), f"{seed} ")
    k = draw.randint(max(1, len(given_) // 8), 9)
    query = words(f"query {seed}", 7)
    found = await found_ids(opened(given_), query, k)
    vectors = await letters([r["instruction"] for r in given_])
    scores = vectors @ (await letters([query]))[0]
    order = [next(i for i, r in enumerate(given_) if r["id"] == id_) for id_ in found]
    assert len(order) == min(k, len(given_))
    assert is_mmr(order, scores, vectors)


async def test_scores_are_cosines_and_the_best_one_is_that_of_exact_search():
    given_ = references(300)
    query = words("anything", 9)
    found = await opened(given_).search(query, 1)
    scores = (await letters([r["instruction"] for r in given_])) @ (await letters([query]))[0]
    assert found[0]["id"] == given_[int(scores.argmax())]["id"]
    assert found[0]["score"] == pytest.approx(float(scores.max()), abs=1e-3)
    assert "score" not in given_[int(scores.argmax())]


@pytest.mark.parametrize("k", [2, 5])
async def test_what_is_found_is_among_the_nearest_by_exact_search(k):
    given_ = references(300)
    query = words("anything", 9)
    scores = (await letters([r["instruction"] for r in given_])) @ (await letters([query]))[0]
    nearest = {given_[i]["id"] for i in np.argsort(-scores)[: 8 * k]}
    found = await found_ids(opened(given_), query, k)
    assert len(found) == k
    assert found[0] == given_[int(scores.argmax())]["id"]
    assert set(found) <= nearest


@pytest.mark.parametrize("k", [1, 2, 3, 7])
@pytest.mark.parametrize("around", ["{}", "  {}\n"])
async def test_the_reference_with_this_very_instruction_comes_first(k, around):
    given_ = references(40)
    index = opened(given_)
    for own in random.Random(k).sample(given_, 10):
        found = await index.search(around.format(own["instruction"]), k)
        assert found[0]["id"] == own["id"]
        assert len({r["id"] for r in found}) == k


async def test_of_two_references_with_one_instruction_the_earlier_comes_first():
    given_ = [reference("a", "Why?"), reference("b", "Why?"), reference("c", "How so?")]
    for k in (1, 2, 3):
        assert (await found_ids(opened(given_), "Why?", k))[0] == "a"


async def test_the_very_instruction_comes_first_among_many_of_an_equal_vector():
    text = "tides rise and fall"
    cased = ["".join(c.upper() if n >> i & 1 else c for i, c in enumerate(text)) for n in range(32)]
    given_ = [reference(f"r{i}", t) for i, t in enumerate(cased)]
    index = opened(given_)
    assert [(await found_ids(index, t, 2))[0] for t in cased] == [r["id"] for r in given_]


@pytest.mark.parametrize(("n", "k", "expected"), [(0, 3, 0), (2, 3, 2), (5, 0, 0), (5, -1, 0)])
async def test_there_are_at_most_k_and_at_most_all(n, k, expected):
    assert len(await opened(references(n)).search("anything at all", k)) == expected


async def test_a_run_of_seeds_that_are_references_embeds_nothing():
    embed = Counting()
    given_ = references(20)
    index = opened(given_, embed=embed)
    for r in given_:
        assert await found_ids(index, r["instruction"], 1) == [r["id"]]
    assert embed.calls == 0


async def test_searches_at_once_build_the_vectors_once(tmp_path):
    embed = Counting()
    index = opened(references(9), tmp_path, embed=embed)
    await asyncio.gather(*(index.search(words(str(i), 4), 2) for i in range(8)))
    built = [t for t in embed.texts if t.endswith("?")]
    assert sorted(built) == sorted(r["instruction"] for r in references(9))


async def test_vectors_are_kept_on_disk_and_used_again(tmp_path):
    given_ = references(30)
    assert await opened(given_, tmp_path / "deep" / "index").build() == 30
    before = await found_ids(opened(given_), "a new question", 5)
    embed = Counting()
    index = opened(given_, tmp_path / "deep" / "index", embed=embed)
    assert await found_ids(index, "a new question", 5) == before
    assert embed.texts == ["a new question"]
    assert not list(tmp_path.rglob("*.new"))


async def test_adding_references_embeds_only_the_new_ones(tmp_path):
    given_ = references(10)
    await opened(given_[:6], tmp_path).build()
    embed = Counting()
    await opened(given_, tmp_path, embed=embed).build()
    assert embed.texts == [r["instruction"] for r in given_[6:]]
    embed = Counting()
    await opened(given_, tmp_path, embed=embed).build()
    assert embed.texts == []


@pytest.mark.parametrize("seed", range(6))
async def test_references_left_out_added_and_moved_keep_their_own_vectors(tmp_path, seed):
    draw = random.Random(seed)
    every = references(12)
    for _ in range(4):
        given_ = draw.sample(every, draw.randint(1, 12))
        index = opened(given_, tmp_path)
        await assert_right(index, given_)


async def assert_right(index: ReferenceIndex, given_) -> None:
    """Each reference is found by a text with its very vector, and scores 1 there."""
    for r in given_:
        found = await index.search(r["instruction"].upper(), 1)
        assert (found[0]["id"], found[0]["score"]) == (r["id"], pytest.approx(1.0, abs=1e-3))


async def test_a_reference_whose_text_has_changed_under_its_id_is_embedded_anew(tmp_path):
    await opened([reference("1", "why tides"), reference("2", "how ships")], tmp_path).build()
    given_ = [reference("1", "which quartz"), reference("2", "how ships")]
    await assert_right(opened(given_, tmp_path), given_)


async def test_no_directory_keeps_nothing(tmp_path):
    await opened(references(3), None).build()
    assert list(tmp_path.iterdir()) == []


def vectors_in(directory: Path) -> Path:
    (path,) = directory.glob("vectors-*.faiss")
    return path


async def refused(given_, directory: Path, model: str = "m") -> str:
    with pytest.raises(IndexUnusable) as refusal:
        await opened(given_, directory, model).build()
    return str(refusal.value)


def assert_says_how_to_rebuild(said: str, directory: Path) -> None:
    assert str(directory) in said
    assert "Remove index.json" in said


async def test_an_index_of_another_embedding_model_is_refused_and_named(tmp_path):
    await opened(references(3), tmp_path).build()
    kept = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    said = await refused(references(3), tmp_path, "another/model")
    assert "'m'" in said
    assert "'another/model'" in said
    assert_says_how_to_rebuild(said, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == kept


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
async def test_truncated_vectors_are_refused(tmp_path, share):
    await opened(references(20), tmp_path).build()
    path = vectors_in(tmp_path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert_says_how_to_rebuild(await refused(references(20), tmp_path), tmp_path)


@pytest.mark.parametrize("content", [b"no faiss file at all", b"IxFI" + b"\xff" * 60])
async def test_vectors_that_are_none_are_refused(tmp_path, content):
    await opened(references(4), tmp_path).build()
    vectors_in(tmp_path).write_bytes(content)
    assert_says_how_to_rebuild(await refused(references(4), tmp_path), tmp_path)


async def test_missing_vectors_are_refused(tmp_path):
    await opened(references(4), tmp_path).build()
    vectors_in(tmp_path).unlink()
    assert_says_how_to_rebuild(await refused(references(4), tmp_path), tmp_path)


def changed(**keys):
    """A manifest as it was, but for these keys."""
    return lambda kept: json.dumps(json.loads(kept) | keys)


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "{",
        "\x00\x00",
        "{}",
        '{"format": 2}',
        changed(format=99),
        changed(format="1"),
        changed(count=1),
        changed(count="2"),
        changed(vectors="elsewhere.faiss"),
        changed(keys="elsewhere.npy"),
        changed(probes=None),
        changed(kind=7),
        changed(references=None),
        "[]",
        "null",
        "7",
        changed(bytes=3),
    ],
)
async def test_a_broken_manifest_is_refused(tmp_path, manifest):
    await opened(references(2), tmp_path).build()
    path = tmp_path / "index.json"
    path.write_text(manifest(path.read_text()) if callable(manifest) else manifest)
    assert_says_how_to_rebuild(await refused(references(2), tmp_path), tmp_path)


async def test_a_manifest_that_is_no_text_is_refused(tmp_path):
    await opened(references(2), tmp_path).build()
    (tmp_path / "index.json").write_bytes(b"\xff\xfe\x00")
    assert_says_how_to_rebuild(await refused(references(2), tmp_path), tmp_path)


async def test_an_index_can_be_rebuilt_as_the_message_says(tmp_path):
    await opened(references(5), tmp_path).build()
    vectors_in(tmp_path).write_bytes(b"")
    await refused(references(5), tmp_path)
    (tmp_path / "index.json").unlink()
    await assert_right(opened(references(5), tmp_path), references(5))


async def crashed_save(directory: Path, before, after) -> None:
    """An index as a crash leaves it that came after the vectors and before the manifest."""
    if before:
        await opened(before, directory).build()
    whole = directory.with_name("whole")
    if before:
        shutil.copytree(directory, whole)
    await opened(after, whole).build()
    directory.mkdir(exist_ok=True)
    for path in whole.iterdir():
        if path.name != "index.json":
            shutil.copy(path, directory)
    shutil.copy(whole / "index.json", directory / "index.json.new")


async def test_a_crash_while_the_files_are_written_aside_leaves_the_old_index(tmp_path):
    given_ = references(4)
    await opened(given_[:3], tmp_path).build()
    (tmp_path / "vectors.new").write_bytes(b"half of")
    (tmp_path / "index.json.new").write_text('{"format": 2, "kind": [')
    embed = Counting()
    index = opened(given_, tmp_path, embed=embed)
    await index.build()
    assert embed.texts == [given_[3]["instruction"]]
    await assert_right(index, given_)


async def test_a_crash_before_old_vectors_are_removed_leaves_the_new_index(tmp_path):
    given_ = references(5)
    await opened(given_[:3], tmp_path).build()
    old = vectors_in(tmp_path)
    kept = old.read_bytes()
    await opened(given_, tmp_path).build()
    old.write_bytes(kept)
    embed = Counting()
    await opened(given_, tmp_path, embed=embed).build()
    assert embed.texts == []
    await assert_right(opened(given_[::-1], tmp_path), given_)


async def test_a_crash_before_the_first_manifest_is_built_anew(tmp_path):
    given_ = references(4)
    await crashed_save(tmp_path / "index", [], given_)
    await assert_right(opened(given_, tmp_path / "index"), given_)
    await assert_right(opened(given_, tmp_path / "index"), given_)


async def test_a_crash_while_references_are_added_leaves_a_usable_index(tmp_path):
    given_ = references(6)
    await crashed_save(tmp_path / "index", given_[:4], given_)
    await assert_right(opened(given_, tmp_path / "index"), given_)


async def test_a_crash_while_references_change_places_gives_no_id_anothers_vector(tmp_path):
    given_ = references(4)
    await crashed_save(tmp_path / "index", given_, given_[::-1])
    await assert_right(opened(given_, tmp_path / "index"), given_)


ODD = reference("r", "L'été\u2028\n\x00 潮汐 😀 </seed> {{x}}")
FULL = {**reference("f", "What of it?"), "source": "s", "license": "l", "tags": ["a", "b"]}


def test_references_come_back_as_they_were_written(tmp_path):
    given_ = [ODD, FULL, *references(2)]
    first = write_references(tmp_path / "new", given_)
    again = write_references(tmp_path / "new", given_)
    assert first.path == again.path
    assert list(again) == [again[i] for i in range(4)] == again[:] == given_
    assert [p.name for p in (tmp_path / "new").iterdir()] == [again.path.name]
    with pytest.raises(IndexError):
        again[4]


def test_a_file_of_references_keeps_few_of_them_in_memory(tmp_path):
    many = [
        reference(f"r{i}", f"question {i}") for i in range(ROW_GROUP * (MAX_CACHED_GROUPS + 3) + 7)
    ]
    kept = write_references(tmp_path, iter(many))
    draw = random.Random(1)
    for i in draw.sample(range(len(many)), 300):
        assert kept[i] == many[i]
    assert kept[len(many) - 1] == many[-1]
    assert len(kept._groups) == MAX_CACHED_GROUPS
    assert sum(1 for _ in kept) == len(many)


@pytest.mark.parametrize("content", [b"{", b"PAR1 not really PAR1", None])
def test_references_that_cannot_be_read_say_how_to_build_them(tmp_path, content):
    path = tmp_path / "references-x.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IndexUnusable, match="refloom index build"):
        ReferenceFile(path)
    with pytest.raises(IndexUnusable, match="refloom index build"):
        open_reference_file(tmp_path)


async def test_the_environment_names_the_default_references(tmp_path, monkeypatch):
    kept = write_references(tmp_path, references(2))
    await opened(kept, tmp_path).build()
    monkeypatch.setenv("REFLOOM_INDEX", str(tmp_path))
    found, kept_in = default_references()
    assert (list(found), kept_in) == (references(2), tmp_path)
    monkeypatch.delenv("REFLOOM_INDEX")
    bundled, kept_in = default_references()
    assert kept_in is None
    assert all(r["instruction"] and r["response"] for r in bundled)


def test_of_references_under_one_id_none_is_lost():
    same = [reference("a", "Why?"), reference("a", "Why?"), reference("a", "How?")]
    found = list(distinct([*same, reference("b", "Why?"), reference("a", "How?")]))
    assert [r["instruction"] for r in found] == ["Why?", "How?", "Why?"]
    assert len({r["id"] for r in found}) == 3
    assert found[0]["id"] == "a"


# --- filters and quotas ------------------------------------------------------------------------


def sourced(n: int) -> list[dict]:
    return [
        {**r, "source": "even" if i % 2 == 0 else "odd", "tags": [f"t{i % 3}", "all"]}
        for i, r in enumerate(references(n))
    ]


@pytest.mark.parametrize("on_disk", [True, False])
async def test_a_search_can_be_restricted_by_source_and_tags(tmp_path, on_disk):
    given_ = sourced(30)
    kept = write_references(tmp_path, given_) if on_disk else given_
    index = opened(kept, tmp_path if on_disk else None)
    for where, fits in (
        ({"source": ["even"]}, lambda r: r["source"] == "even"),
        ({"tags": ["t1", "t2"]}, lambda r: set(r["tags"]) & {"t1", "t2"}),
        ({"source": ["odd"], "tags": ["t0"]}, lambda r: r["source"] == "odd" and "t0" in r["tags"]),
    ):
        found = await index.search(given_[0]["instruction"], 4, where=where)
        assert len(found) == 4
        assert all(fits(r) for r in found)
        assert matching_rows(kept, where).tolist() == [i for i, r in enumerate(given_) if fits(r)]
    assert await index.search("anything", 3, where={"license": ["none"]}) == []
    with pytest.raises(ValueError, match="unknown filters"):
        await index.search("anything", 3, where={"colour": ["red"]})


def test_what_is_not_allowed_is_chosen_only_when_nothing_else_is_left():
    vectors = np.eye(4, dtype=np.float32)
    found = Candidates([7, 8, 9, 10], np.array([0.9, 0.8, 0.7, 0.6], np.float32), vectors, 0)
    assert choose_by_mmr(found, 2) == [0, 1]
    assert choose_by_mmr(found, 2, lambda row: row not in (7, 8)) == [2, 3]
    assert sorted(choose_by_mmr(found, 3, lambda row: row == 9)) == [0, 1, 2]
    own = Candidates([7, 8, 9, 10], found.scores, vectors, 1)
    assert choose_by_mmr(own, 2, lambda row: row in (9, 10)) == [0, 2]


# --- many vectors ------------------------------------------------------------------------------


def clustered(n: int, dimensions: int = 16, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(40, dimensions))
    made = centres[draw.integers(40, size=n)] + 0.4 * draw.normal(size=(n, dimensions))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


# Lists are used from 500 vectors on, so that a test need not make 50,000.
FLAT_MAX = 500


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 999))
def test_exact_search_in_blocks_is_brute_force(n, k, seed):
    vectors, queries = clustered(n, seed=seed), clustered(3, seed=seed + 1)
    truth = np.sort(queries @ vectors.T, axis=1)[:, ::-1][:, :k]
    found = faiss_vectors.exact_search(vectors, queries, min(k, n))
    scores = np.take_along_axis(queries @ vectors.T, found, 1)
    assert np.allclose(scores, truth, atol=1e-5)
    flat = faiss_vectors.build_index(vectors)
    assert (flat.kind, flat.recall) == ("flat", 1.0)
    assert np.allclose(
        faiss_vectors.search_index(flat.index, queries, min(k, n), 0)[0], truth, atol=1e-5
    )


def test_many_vectors_are_put_in_lists_of_which_enough_are_searched(tmp_path):
    vectors = clustered(6000)
    made = faiss_vectors.build_index(vectors, FLAT_MAX)
    assert made.kind == "IVF310,SQ8"
    assert made.recall >= 0.97
    faiss_vectors.save_index(made.index, tmp_path / "x.faiss")
    mapped = faiss_vectors.open_mapped(tmp_path / "x.faiss")
    queries = clustered(50, seed=0)
    truth = faiss_vectors.exact_search(vectors, queries, 10)
    _, rows, near = faiss_vectors.search_index(mapped, queries, 10, made.probes)
    hits = sum(len(set(a) & set(b)) for a, b in zip(rows.tolist(), truth.tolist(), strict=True))
    assert hits / truth.size >= 0.95
    assert np.allclose(near[0], vectors[rows[0]], atol=0.02)
    among = np.arange(0, 6000, 1000)
    _, rows, _ = faiss_vectors.search_index(mapped, queries, 10, made.probes, among)
    assert set(rows[0].tolist()) == {*among.tolist(), -1}


async def test_many_references_are_added_to_without_embedding_the_old_ones(tmp_path):
    given_ = [reference(f"r{i}", words(f"many {i}", 6)) for i in range(900)]
    await opened(given_[:880], tmp_path, flat_max=FLAT_MAX).build()
    assert json.loads((tmp_path / "index.json").read_text())["kind"].startswith("IVF")
    embed = Counting()
    index = opened(given_, tmp_path, embed=embed, flat_max=FLAT_MAX)
    assert await index.build() == 900
    assert embed.texts == [r["instruction"] for r in given_[880:]]
    for r in given_[895:]:
        assert (await index.search(r["instruction"] + "!", 1))[0]["id"] == r["id"]
    embed = Counting()
    await opened(given_[100:], tmp_path, embed=embed, flat_max=FLAT_MAX).build()
    assert embed.texts == []


class Breaking(Counting):
    """A `Counting` that fails after some calls, as a process that is killed would end."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    async def __call__(self, texts):
        if self.calls == self.after:
            raise InterruptedError
        return await super().__call__(texts)


async def test_embedding_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(faiss_vectors, "TEXTS_PER_BATCH", 10)
    whole, first, second = Counting(), Breaking(after=3), Counting()
    undisturbed = opened(references(65), tmp_path / "whole", embed=whole)
    await undisturbed.build()
    with pytest.raises(InterruptedError):
        await opened(references(65), tmp_path / "cut", embed=first).build()
    # What a kill left of a record is written over.
    with (tmp_path / "cut" / "vectors.spare").open("ab") as file:
        file.write(b"half a record")
    index = opened(references(65), tmp_path / "cut", embed=second)
    await index.build()
    assert len(first.texts) == 30
    assert first.texts + second.texts == whole.texts
    assert not (tmp_path / "cut" / "vectors.spare").exists()
    for r in references(65):
        near = await found_ids(index, r["instruction"] + "!", 3)
        assert near == await found_ids(undisturbed, r["instruction"] + "!", 3)


async def test_a_cut_off_embedding_by_another_model_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(faiss_vectors, "TEXTS_PER_BATCH", 10)
    with pytest.raises(InterruptedError):
        await opened(references(25), tmp_path, embed=Breaking(after=2)).build()
    embed = Counting()
    await opened(references(25), tmp_path, "another", embed=embed).build()
    assert len(embed.texts) == 25


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]\n", b'{"embedding_model": "m"}\n', b"\x00" * 50]
)
async def test_a_damaged_file_of_spare_vectors_counts_as_empty(tmp_path, damage):
    (tmp_path / "vectors.spare").write_bytes(damage)
    embed = Counting()
    await opened(references(5), tmp_path, embed=embed).build()
    assert len(embed.texts) == 5


async def test_no_text_is_embedded_twice_for_a_directory_that_runs_share(tmp_path):
    embed = Counting()
    first, second = references(30, "a"), references(20, "b")
    for given_ in (first, second, first + second[:5], second, first):
        index = opened(given_, tmp_path, embed=embed)
        await index.build()
    assert embed.texts == [r["instruction"] for r in first + second]
    fresh = opened(first, tmp_path / "fresh")
    for r in first:
        text = r["instruction"] + "!"
        assert await found_ids(index, text, 3) == await found_ids(fresh, text, 3)


async def test_progress_is_told_while_references_are_embedded(tmp_path):
    told: list[tuple[int, int]] = []
    index = ReferenceIndex(
        references(5), Counting(), tmp_path, "m", lambda done, total: told.append((done, total))
    )
    await index.build()
    assert told == [(0, 5), (5, 5)]


@given(st.lists(st.text(max_size=5), max_size=4))
def test_a_content_id_is_stable_and_short(parts):
    assert content_id(*parts) == content_id(*parts)
    assert len(content_id(*parts)) == 12
    assert content_id("a", "b") != content_id("ab")


async def test_two_builds_in_one_directory_leave_the_index_of_one_of_them(tmp_path):
    both = [write_references(tmp_path, references(n)) for n in (6, 9)]
    (tmp_path / "references-mine.parquet").write_bytes(b"not ours")
    # All in one thread, which no build may keep while it waits for the other.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    await asyncio.gather(*(opened(kept, tmp_path).build() for kept in both))
    found = open_reference_file(tmp_path)
    assert list(found) in (references(6), references(9))
    await assert_right(opened(found, tmp_path), list(found))
    assert (tmp_path / "references-mine.parquet").read_bytes() == b"not ours"


async def test_references_that_another_build_has_swept_away_are_written_again(tmp_path):
    kept = write_references(tmp_path, references(5))
    kept.path.unlink()
    await opened(kept, tmp_path).build()
    assert list(open_reference_file(tmp_path)) == references(5)


async def test_own_references_of_many_texts_are_found_together(tmp_path):
    kept = write_references(tmp_path, references(600))
    index = ReferenceIndex(kept, letters, tmp_path, "m")
    texts = [kept[i]["instruction"] for i in (0, 599, 300, 0)] + ["nothing like it", ""]
    found = index.find_own([f" {text}\n" for text in texts])
    assert [own and own[0] for own in found] == [0, 599, 300, 0, None, None]
    assert [own[1] for own in found if own] == [kept[i] for i in (0, 599, 300, 0)]
    assert index.find_own([]) == []
    assert ReferenceIndex([], letters, None, "m").find_own(["a"]) == [None]


def test_rows_are_read_in_the_order_they_are_asked_for(tmp_path):
    kept = write_references(tmp_path, references(600))
    rows = [599, 0, 256, 255, 0]
    assert kept.rows(rows) == [kept[row] for row in rows]
    assert kept.rows([]) == []


def test_references_that_are_there_are_not_written_again(tmp_path):
    first = load_or_write_references(tmp_path, lambda: references(300))
    before = first.path.stat()
    again = load_or_write_references(tmp_path, lambda: iter(references(300)))
    assert (again.path, list(again)) == (first.path, list(first))
    # Writing puts a new file in the place of the old one.
    after = first.path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_other_references_and_damaged_ones_are_written(tmp_path):
    first = load_or_write_references(tmp_path, lambda: references(3))
    more = load_or_write_references(tmp_path, lambda: references(4))
    assert more.path != first.path
    assert list(more) == references(4)
    first.path.write_bytes(b"no parquet")
    assert list(load_or_write_references(tmp_path, lambda: references(3))) == references(3)


class ByLength(Embedder):
    """An `Embedder` without a model: each vector is the length of its text."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []

    def _encode(self, texts):
        self.batches.append(list(texts))
        return np.array([[len(text)] for text in texts], np.float32)


async def test_a_few_texts_do_not_wait_until_many_are_embedded():
    embed = ByLength()
    many = ["x" * (1 + i * 37 % 500) for i in range(10 * SLICE + 1)]
    vectors, few = await asyncio.gather(embed(many), embed(["ab", "abc"]))
    assert vectors[:, 0].tolist() == [len(text) for text in many]
    assert few[:, 0].tolist() == [2, 3]
    assert embed.batches.index(["ab", "abc"]) <= 1
    # Texts of like length go together: a batch is padded to its longest.
    for batch in embed.batches:
        assert len(batch) <= SLICE
        assert len(batch[0]) - len(batch[-1]) <= 60


def test_the_command_tells_its_pace_where_no_bar_can_be_drawn(tmp_path, monkeypatch, capsys):
    rows = "".join(json.dumps(r) + "\n" for r in references(30))
    (tmp_path / "pairs.jsonl").write_text(rows, encoding="utf-8")
    monkeypatch.setattr(faiss_vectors, "TEXTS_PER_BATCH", 10)
    monkeypatch.setattr(index_commands, "LINE_EVERY_S", 0)
    monkeypatch.setattr("memory.embed.Embedder", lambda model: letters)
    with pytest.raises(SystemExit) as ended:
        main(["index", "build", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "index")])
    assert ended.value.code == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "embedding references, 0 of 30"
    assert re.fullmatch(r"embedding references, 20 of 30, [0-9,]+/s, 0 s left", told[-1])


async def test_a_run_embeds_none_of_the_references_of_an_index_that_was_built(
    tmp_path, monkeypatch
):
    pairs, built = references(12), tmp_path / "index"
    rows = "".join(json.dumps(pair) + "\n" for pair in pairs)
    (tmp_path / "pairs.jsonl").write_text(rows, encoding="utf-8")
    monkeypatch.setattr("memory.embed.Embedder", lambda model: letters)
    command = ["index", "build", str(tmp_path / "pairs.jsonl"), "--out", str(built)]
    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(main, command)
    assert ended.value.code == 0
    embed = Counting()
    run = build_run(tmp_path / "run", ScriptedModel(), ["Why is it so?"], given=pairs, memory=built)
    run.tools = Tools(complete=run.tools.complete, embed=embed)
    await run.run()
    assert "Why is it so?" in embed.texts
    assert {pair["instruction"] for pair in pairs}.isdisjoint(embed.texts)
