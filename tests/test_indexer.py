"""References that are added while others search: the graph `indexer`, and the search that sees."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from fakes import letters, words
from processes import env_of
from pydantic import TypeAdapter

import graph.defaults as defaults
from graph.builder import build_indexer
from graph.defaults import DefaultSearch, add_to_index, default_references
from memory.embed import Embed
from memory.index import AddResult, add_references
from memory.references import IndexUnusable, Reference, content_id
from memory.store import open_reference_file
from nodes.inputs import BadInput, IndexerInput

FOLDER = Path(__file__).parent


def reference(number: int, key: str = "r", **more) -> Reference:
    asked = f"{words(f'{key} {number}', 8)}?"
    return {"id": f"{key}{number}", "instruction": asked, "response": f"About {asked}", **more}


def some(n: int, key: str = "r") -> list[Reference]:
    return [reference(i, key) for i in range(n)]


class Counting:
    """An embedding by letters that keeps what it was asked for, and fails when told to."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.fails = False

    async def __call__(self, texts: Sequence[str]) -> np.ndarray:
        await asyncio.sleep(0)
        if self.fails:
            raise OSError("the model is gone")
        self.texts += texts
        return await letters(list(texts))


def ids(directory: Path) -> list[str]:
    return [r["id"] for r in open_reference_file(directory)]


def files(directory: Path) -> set[str]:
    """What is kept, without the files of locks."""
    return {path.name for path in directory.iterdir() if not path.name.endswith(".lock")}


def assert_whole(directory: Path) -> None:
    """One index, made of one file of references, and nothing beside it."""
    manifest = json.loads((directory / "index.json").read_text())
    kept = {"index.json", manifest["vectors"], manifest["keys"]}
    assert files(directory) == kept | {f"references-{manifest['references']}.parquet"}
    assert manifest["count"] == len(open_reference_file(directory))


async def searched(directory: Path, text: str, monkeypatch, k: int = 1) -> list[Reference]:
    monkeypatch.setenv("REFLOOM_INDEX", str(directory))
    return await DefaultSearch(letters, "m")(text, k)


# --- adding --------------------------------------------------------------------------------------


async def test_the_first_references_make_the_index(tmp_path, monkeypatch):
    directory = tmp_path / "not" / "there"
    assert await add_references(directory, some(3), letters, "m") == AddResult(3, 0, 3)
    assert ids(directory) == ["r0", "r1", "r2"]
    assert_whole(directory)
    (found,) = await searched(directory, some(3)[1]["instruction"], monkeypatch)
    assert found["id"] == "r1"


async def test_the_same_again_adds_and_embeds_nothing(tmp_path):
    embed = Counting()
    await add_references(tmp_path, some(3), embed, "m")
    before = files(tmp_path)
    embed.texts.clear()
    assert await add_references(tmp_path, some(3), embed, "m") == AddResult(0, 3, 3)
    assert embed.texts == [] and files(tmp_path) == before


async def test_only_what_is_new_is_embedded_and_comes_last(tmp_path):
    embed = Counting()
    await add_references(tmp_path, some(3), embed, "m")
    embed.texts.clear()
    assert await add_references(tmp_path, [*some(2), *some(2, "x")], embed, "m") == AddResult(
        2, 2, 5
    )
    assert embed.texts == [r["instruction"] for r in some(2, "x")]
    assert ids(tmp_path) == ["r0", "r1", "r2", "x0", "x1"]
    assert_whole(tmp_path)


async def test_a_pair_that_is_given_twice_is_added_once(tmp_path):
    assert await add_references(tmp_path, [*some(2), *some(2)], letters, "m") == AddResult(2, 2, 2)


async def test_another_pair_under_an_id_that_is_taken_gets_its_own(tmp_path):
    await add_references(tmp_path, some(1), letters, "m")
    other: Reference = {**reference(1, "x"), "id": "r0"}
    assert (await add_references(tmp_path, [other], letters, "m")).added == 1
    first, second = open_reference_file(tmp_path)
    assert first["id"] == "r0" != second["id"] and second["id"].startswith("r0-")
    assert second["instruction"] == other["instruction"]
    assert (await add_references(tmp_path, [other], letters, "m")).added == 0


async def test_everything_a_reference_carries_is_kept(tmp_path):
    full = reference(
        1,
        source="me",
        license="CC BY 4.0",
        tags=["sea", "физика"],
        history=[{"role": "user", "content": "Hm."}],
    )
    bare = reference(2)
    await add_references(tmp_path, [full], letters, "m")
    await add_references(tmp_path, [bare], letters, "m")
    assert list(open_reference_file(tmp_path)) == [full, bare]


async def test_adding_none_changes_nothing(tmp_path):
    await add_references(tmp_path, some(2), letters, "m")
    before = files(tmp_path)
    assert await add_references(tmp_path, [], letters, "m") == AddResult(0, 0, 2)
    assert files(tmp_path) == before


async def test_an_index_of_another_embedding_model_is_left_as_it_is(tmp_path):
    await add_references(tmp_path, some(2), letters, "m")
    before = files(tmp_path)
    with pytest.raises(IndexUnusable, match="embedding model 'm'"):
        await add_references(tmp_path, some(2, "x"), letters, "other")
    assert files(tmp_path) == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"references": 5}', '{"references": "gone"}'])
async def test_a_broken_index_is_not_added_to_nor_replaced(tmp_path, content):
    await add_references(tmp_path, some(2), letters, "m")
    (tmp_path / "index.json").write_text(content)
    before = files(tmp_path)
    with pytest.raises(IndexUnusable) as caught:
        await add_references(tmp_path, some(2, "x"), letters, "m")
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before


async def test_a_failed_embedding_leaves_the_old_index_whole(tmp_path, monkeypatch):
    embed = Counting()
    await add_references(tmp_path, some(3), embed, "m")
    before = files(tmp_path)
    embed.fails = True
    with pytest.raises(OSError, match="the model is gone"):
        await add_references(tmp_path, some(2, "x"), embed, "m")
    assert files(tmp_path) == before
    assert_whole(tmp_path)
    assert len(await searched(tmp_path, "anything", monkeypatch, 5)) == 3
    embed.fails = False
    assert await add_references(tmp_path, some(2, "x"), embed, "m") == AddResult(2, 0, 5)


async def test_a_failed_first_embedding_leaves_nothing(tmp_path):
    embed = Counting()
    embed.fails = True
    with pytest.raises(OSError, match="the model is gone"):
        await add_references(tmp_path, some(2), embed, "m")
    assert files(tmp_path) == set()


async def test_an_add_that_is_cancelled_while_it_embeds_leaves_the_old_index_whole(tmp_path):
    await add_references(tmp_path, some(3), letters, "m")
    before, began = files(tmp_path), asyncio.Event()

    async def never(texts: Sequence[str]) -> np.ndarray:
        began.set()
        return await asyncio.get_running_loop().create_future()

    adding = asyncio.create_task(add_references(tmp_path, some(2, "x"), never, "m"))
    await began.wait()
    adding.cancel()
    await asyncio.gather(adding, return_exceptions=True)
    assert files(tmp_path) == before
    assert await add_references(tmp_path, some(2, "x"), letters, "m") == AddResult(2, 0, 5)


class Slow(Sequence):
    """References that are handed out only once they are let go."""

    def __init__(self, kept: list[Reference]) -> None:
        self.kept, self.asked, self.go = kept, threading.Event(), threading.Event()

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, at):
        return self.kept[at]

    def __iter__(self) -> Iterator[Reference]:
        self.asked.set()
        assert self.go.wait(20)
        yield from self.kept


async def test_an_add_that_is_cancelled_while_it_writes_spoils_no_later_one(tmp_path):
    """A cancelled run leaves its thread behind, which must not write into the next one's file."""
    await add_references(tmp_path, some(3), letters, "m")
    slow = Slow(some(400, "slow"))
    adding = asyncio.create_task(add_references(tmp_path, slow, letters, "m"))
    await asyncio.to_thread(slow.asked.wait, 20)
    adding.cancel()
    await asyncio.wait([adding], timeout=0.3)
    later = asyncio.create_task(add_references(tmp_path, some(2, "x"), letters, "m"))
    await asyncio.wait([later], timeout=0.5)
    slow.go.set()
    await asyncio.gather(adding, return_exceptions=True)
    found = await later
    await asyncio.sleep(0.3)
    assert found.added == 2
    assert {"r0", "r1", "r2", "x0", "x1"} <= set(ids(tmp_path))
    assert_whole(tmp_path)


async def test_adds_at_once_lose_nothing(tmp_path):
    await add_references(tmp_path, some(2), letters, "m")
    keys = ("a", "b", "c", "d")
    done = await asyncio.gather(
        *(add_references(tmp_path, some(3, key), letters, "m") for key in keys)
    )
    assert [one.added for one in done] == [3] * 4
    assert sorted(one.total for one in done) == [5, 8, 11, 14]
    assert set(ids(tmp_path)) == {r["id"] for key in ("r", *keys) for r in some(3, key)} - {"r2"}
    assert_whole(tmp_path)


async def test_the_same_added_at_once_is_added_once(tmp_path):
    done = await asyncio.gather(
        *(add_references(tmp_path, some(3), letters, "m") for _ in range(3))
    )
    assert sorted(one.added for one in done) == [0, 0, 3]
    assert len(ids(tmp_path)) == 3


ADDING = """
import asyncio, sys
from pathlib import Path
from fakes import letters, words
from memory.index import add_references

async def main(directory, key, rounds):
    for number in range(rounds):
        asked = f"{words(f'{key} {number}', 8)}?"
        one = {"id": f"{key}{number}", "instruction": asked, "response": f"About {asked}"}
        print((await add_references(directory, [one], letters, "m")).total, flush=True)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
"""


def adding(directory: Path, key: str, rounds: int) -> subprocess.Popen[str]:
    """Another process that adds a reference at a time."""
    root = FOLDER.parent
    paths = {"PYTHONPATH": f"{root}:{FOLDER}"}
    return subprocess.Popen(
        [sys.executable, "-c", ADDING, str(directory), key, str(rounds)],
        env=env_of(paths),
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> list[int]:
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return [int(line) for line in said.split()]


def test_two_processes_that_add_at_once_lose_nothing(tmp_path):
    both = [adding(tmp_path, key, 6) for key in ("a", "b")]
    totals = [total for process in both for total in ended(process)]
    assert sorted(totals) == list(range(1, 13))
    assert set(ids(tmp_path)) == {r["id"] for key in ("a", "b") for r in some(6, key)}
    assert_whole(tmp_path)


# --- the graph -----------------------------------------------------------------------------------


def into(directory: Path, embed: Embed = letters):
    """The indexer over an index of its own."""

    async def add_to_own(references: Sequence[Reference]) -> AddResult:
        return await add_references(directory, references, embed, "m")

    return build_indexer(add_to_index=add_to_own)


async def test_the_indexer_says_what_it_added(tmp_path):
    given = {"references": [{"instruction": "Why tides?", "response": "The Moon pulls."}]}
    graph = into(tmp_path)
    assert await graph.ainvoke(given) == {"added": 1, "known": 0, "total": 1}
    assert await graph.ainvoke(given) == {"added": 0, "known": 1, "total": 1}
    (kept,) = open_reference_file(tmp_path)
    id_ = content_id("Why tides?", "The Moon pulls.")
    assert kept == {"id": id_, "instruction": "Why tides?", "response": "The Moon pulls."}


async def test_the_indexer_keeps_ids_tags_source_and_licence_and_nothing_else(tmp_path):
    full = {**reference(1), "source": "me", "license": "MIT", "tags": ["sea", "moon"]}
    given = {"references": [{**full, "score": 5, "secret": "x", "key": 3}]}
    await into(tmp_path).ainvoke(given)
    assert list(open_reference_file(tmp_path)) == [full]


async def test_what_is_given_as_null_is_not_there(tmp_path):
    one = {"instruction": "a", "response": "b", "id": None, "tags": None, "source": None}
    await into(tmp_path).ainvoke({"references": [one]})
    assert set(open_reference_file(tmp_path)[0]) == {"id", "instruction", "response"}


BAD = [
    ({}, "references: "),
    ({"references": None}, "references: "),
    ({"references": []}, "references: "),
    ({"references": "a"}, "references: "),
    ({"references": [1]}, "references.0: "),
    ({"references": [{"instruction": "a"}]}, "references.0.response: "),
    ({"references": [{"instruction": "", "response": "b"}]}, "references.0.instruction: "),
    ({"references": [{"instruction": 5, "response": "b"}]}, "references.0.instruction: "),
    ({"references": [reference(1), {"response": "b"}]}, "references.1.instruction: "),
    ({"references": [{**reference(1), "id": "x" * 201}]}, "references.0.id: "),
    ({"references": [{**reference(1), "response": "x" * 200_001}]}, "references.0.response: "),
    ({"references": [{**reference(1), "tags": "sea"}]}, "references.0.tags: "),
    ({"references": [{**reference(1), "tags": [5]}]}, "references.0.tags.0: "),
    ({"references": [{**reference(1), "tags": ["x" * 201]}]}, "references.0.tags.0: "),
    ({"references": [{**reference(1), "tags": ["x"] * 51}]}, "references.0.tags: "),
    ({"references": [{**reference(1), "license": "x" * 501}]}, "references.0.license: "),
    ({"references": [{**reference(1), "source": {}}]}, "references.0.source: "),
    ({"references": [{**reference(1), "response": "\ud800"}]}, "references.0.response: "),
    ({"references": some(1001)}, "references: "),
]


@pytest.mark.parametrize(("given", "why"), BAD, ids=lambda x: x if isinstance(x, str) else "")
async def test_bad_references_are_refused_with_the_field_named_and_nothing_is_added(given, why):
    added: list[object] = []

    async def add_to(references: Sequence[Reference]) -> AddResult:
        added.append(references)
        return AddResult(0, 0, 0)

    # LangGraph wants some key of the input, whatever it holds.
    with pytest.raises(BadInput) as caught:
        await build_indexer(add_to_index=add_to).ainvoke({"references": None, **given})
    assert str(caught.value).startswith(why) and "\n" not in str(caught.value)
    assert added == []


@pytest.mark.parametrize("given", [{"references": [{"instruction": " ", "response": "\n\t"}]}])
async def test_references_without_a_word_are_refused(given, tmp_path):
    with pytest.raises(BadInput, match=r"references\.0\."):
        await into(tmp_path).ainvoke(given)


async def test_a_thousand_references_go_in_at_once(tmp_path):
    out = await into(tmp_path).ainvoke({"references": some(1000)})
    assert out == {"added": 1000, "known": 0, "total": 1000}


async def test_without_an_index_the_indexer_says_what_to_do():
    with pytest.raises(IndexUnusable) as caught:
        await build_indexer().ainvoke({"references": some(1)})
    said = str(caught.value)
    assert "REFLOOM_INDEX=DIR" in said and "\n" not in said


async def test_bad_input_is_said_before_a_missing_index():
    with pytest.raises(BadInput):
        await build_indexer().ainvoke({"references": [{}]})


async def test_an_error_of_the_indexer_is_one_a_server_shows(monkeypatch):
    """LangGraph's server hides the message of any error but a few kinds of them."""
    with pytest.raises((ValueError, RuntimeError)):
        await add_to_index(some(1))


def test_the_input_has_a_schema_with_a_title_for_everything():
    schema = TypeAdapter(IndexerInput).json_schema()
    assert schema["properties"]["references"]["maxItems"] == 1000
    fields = schema["$defs"]["IndexedReference"]["properties"]
    assert set(fields) == {"instruction", "response", "id", "source", "license", "tags"}
    assert all(field["title"] for field in fields.values())
    assert set(schema["$defs"]["IndexedReference"]["required"]) == {"instruction", "response"}


async def test_the_indexer_tells_what_it_did(tmp_path):
    graph = into(tmp_path)
    told = [e async for e in graph.astream({"references": some(2)}, stream_mode="custom")]
    assert told == [{"event": "added", "message": "2 added, 0 known before, 2 in all."}]


# --- searching meanwhile -------------------------------------------------------------------------


async def test_a_search_sees_what_was_added_since(tmp_path, monkeypatch):
    monkeypatch.setenv("REFLOOM_INDEX", str(tmp_path))
    await add_references(tmp_path, some(3), letters, "m")
    search = DefaultSearch(letters, "m")
    wanted = reference(0, "x")
    assert (await search(wanted["instruction"], 1))[0]["id"] != "x0"
    await add_references(tmp_path, [wanted], letters, "m")
    assert (await search(wanted["instruction"], 1))[0]["id"] == "x0"


async def test_an_index_that_stays_is_opened_once(tmp_path, monkeypatch):
    monkeypatch.setenv("REFLOOM_INDEX", str(tmp_path))
    await add_references(tmp_path, some(3), letters, "m")
    search = DefaultSearch(letters, "m")
    first = await search.current()
    await add_references(tmp_path, some(3), letters, "m")
    found = await asyncio.gather(*(search.current() for _ in range(5)))
    assert all(one is found[0] for one in found)
    assert len(first.references) == len(found[0].references) == 3


async def test_searches_at_once_open_a_new_index_once_and_embed_nothing_of_it(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("REFLOOM_INDEX", str(tmp_path))
    await add_references(tmp_path, some(3), letters, "m")
    embed = Counting()
    search = DefaultSearch(embed, "m")
    found = await asyncio.gather(*(search.current() for _ in range(10)))
    assert len({id(one) for one in found}) == 1
    assert embed.texts == []


async def test_the_bundled_references_are_searched_without_an_index(monkeypatch):
    monkeypatch.delenv("REFLOOM_INDEX", raising=False)
    assert len(await DefaultSearch(letters, "m")("How do waves form?", 3)) == 3


async def test_who_has_an_index_open_goes_on_with_it_while_it_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("REFLOOM_INDEX", str(tmp_path))
    await add_references(tmp_path, some(300), letters, "m")
    old = await DefaultSearch(letters, "m").current()
    await add_references(tmp_path, some(3, "x"), letters, "m")
    found = await old.search(some(300)[299]["instruction"], 5)
    assert found[0]["id"] == "r299" and len(found) == 5


async def test_an_index_that_vanishes_is_one_line_and_found_again(tmp_path, monkeypatch):
    directory = tmp_path / "index"
    monkeypatch.setenv("REFLOOM_INDEX", str(directory))
    await add_references(directory, some(3), letters, "m")
    search = DefaultSearch(letters, "m")
    await search("anything", 1)
    shutil.rmtree(directory)
    for _ in range(2):
        with pytest.raises(IndexUnusable) as caught:
            await search("anything", 1)
        said = str(caught.value)
        assert str(directory) in said and "refloom index build" in said and "\n" not in said
    assert not directory.exists()
    await add_references(directory, some(1, "x"), letters, "m")
    assert [r["id"] for r in await search("anything", 3)] == ["x0"]


@pytest.mark.parametrize("gone", ["references-*.parquet", "vectors-*.faiss", "vectors-*.npy"])
async def test_a_part_that_vanishes_is_one_line(tmp_path, monkeypatch, gone):
    monkeypatch.setenv("REFLOOM_INDEX", str(tmp_path))
    await add_references(tmp_path, some(3), letters, "m")
    for path in tmp_path.glob(gone):
        path.unlink()
    with pytest.raises(IndexUnusable) as caught:
        await DefaultSearch(letters, "m")("anything", 1)
    assert "\n" not in str(caught.value)


async def test_a_search_that_opened_just_before_an_add_does_not_undo_it(tmp_path, monkeypatch):
    """Between its references and its vectors the index may be replaced: then it opens it anew."""
    monkeypatch.setenv("REFLOOM_INDEX", str(tmp_path))
    await add_references(tmp_path, some(3), letters, "m")
    left = [some(2, "x")]

    def then_replaced():
        opened = default_references()
        if left:
            asyncio.run(add_references(tmp_path, left.pop(), letters, "m"))
        return opened

    monkeypatch.setattr(defaults, "default_references", then_replaced)
    search = DefaultSearch(letters, "m")
    await search("anything", 1)
    assert ids(tmp_path) == ["r0", "r1", "r2", "x0", "x1"]
    assert len((await search.current()).references) == 5


async def test_searches_go_on_for_many_rounds_while_another_process_adds(tmp_path, monkeypatch):
    monkeypatch.setenv("REFLOOM_INDEX", str(tmp_path))
    await add_references(tmp_path, some(5), letters, "m")
    searches = [DefaultSearch(letters, "m") for _ in range(3)]
    process = adding(tmp_path, "x", 20)
    rounds, seen = 0, [0]
    try:
        while process.poll() is None:
            found = await asyncio.gather(*(one("What of the sea?", 3) for one in searches))
            assert [len(one) for one in found] == [3, 3, 3]
            seen.append(len((await searches[0].current()).references))
            rounds += 1
    finally:
        totals = ended(process)
    assert totals == list(range(6, 26))
    assert seen == sorted(seen) and len(set(seen)) > 3 and rounds > 10
    assert len(ids(tmp_path)) == 25
    assert_whole(tmp_path)
    for search in searches:
        last = reference(19, "x")
        assert (await search(last["instruction"], 1))[0]["id"] == last["id"]
