"""Samples of a run that wait for a person: kept, decided, taken back, counted, exported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fakes import ScriptedModel, prompt_of, verdicts
from processes import command, env_of, lines, refloom
from reviewing import BETTER, ReviewProcess, run_for_review
from runs import SEEDS, rows, summary_of
from served import free_port

from nodes.decisions import BadDecision, ReviewDecision
from refloom.errors import JournalError
from refloom.runs import outputs
from refloom.runs.journal import iter_records, open_read_only
from refloom.runs.outputs import read_status, rewrite_files
from refloom.runs.review_figures import review_figures
from refloom.runs.review_queue import Conflict, ReviewQueue, UnknownSample


def failing() -> ScriptedModel:
    """A judge whom no response satisfies."""
    return ScriptedModel(
        critique=lambda call: verdicts(
            prompt_of(call), lambda id_: "fail" if id_.startswith("a") else "pass"
        )
    )


def decide(reviews: ReviewQueue, number: int, said: str, **more) -> dict[str, int]:
    id_ = reviews.queue()["items"][number]["id"]
    return reviews.decide(id_, ReviewDecision(decision=said, **more))


async def test_what_waits_is_pending_and_in_no_file(tmp_path):
    said = await run_for_review(tmp_path)
    counts = said["counts"]
    assert (said["status"], counts["pending"], counts["candidates"]) == ("done", 3, 3)
    assert rows(tmp_path, "accepted") == rows(tmp_path, "rejected") == []


async def test_only_what_was_asked_for_waits(tmp_path):
    said = await run_for_review(tmp_path, review="rejected")
    assert (said["counts"]["pending"], said["counts"]["accepted"]) == (0, 3)
    said = await run_for_review(tmp_path / "b", failing(), review="rejected")
    assert (said["counts"]["pending"], said["counts"]["rejected"]) == (3, 0)


async def test_decisions_reach_journal_files_counts_and_card(tmp_path):
    await run_for_review(tmp_path, failing(), review="rejected")
    reviews = ReviewQueue(tmp_path)
    assert decide(reviews, 0, "accept") == {"waiting": 2, "decided": 1}
    decide(reviews, 0, "edit", response=BETTER)
    decide(reviews, 0, "reject", reason="It is about ponds.")
    assert rewrite_files(tmp_path)
    accepted, rejected = rows(tmp_path, "accepted"), rows(tmp_path, "rejected")
    assert [row["review"]["decision"] for row in accepted] == ["accept", "edit"]
    assert accepted[1]["response"] == BETTER
    assert rejected[0]["reason"] == "reviewer"
    assert rejected[0]["review"]["reason"] == "It is about ponds."
    counts = summary_of(tmp_path)["counts"]
    assert [counts[k] for k in ("accepted", "rejected", "pending")] == [2, 1, 0]
    assert "1 accepted, 1 edited, 1 rejected by a person" in (tmp_path / "README.md").read_text()


async def test_a_finished_run_taken_up_again_has_the_decisions_in_its_files(tmp_path):
    await run_for_review(tmp_path)
    reviews = ReviewQueue(tmp_path)
    id_ = reviews.queue()["items"][0]["id"]
    reviews.decide(id_, ReviewDecision(decision="accept"))
    await run_for_review(tmp_path)
    assert len(rows(tmp_path, "accepted")) == 1
    # The counts are the same again, the row is not.
    reviews.undo(id_)
    reviews.decide(id_, ReviewDecision(decision="edit", response=BETTER))
    await run_for_review(tmp_path)
    assert rows(tmp_path, "accepted")[0]["response"] == BETTER


async def test_a_decision_while_a_run_writes_its_files_is_in_them_at_the_next_command(
    tmp_path, monkeypatch
):
    write = outputs.write_files

    def decide_and_write(out: Path, summary: Any, status: str) -> None:
        write(out, summary, status)
        reviews = ReviewQueue(out)
        if status == "done":
            decide(reviews, 0, "accept")

    with monkeypatch.context() as patch:
        patch.setattr("refloom.runs.run.write_files", decide_and_write)
        await run_for_review(tmp_path)
    assert rows(tmp_path, "accepted") == []
    await run_for_review(tmp_path)
    assert len(rows(tmp_path, "accepted")) == 1


async def test_a_decision_is_taken_back(tmp_path):
    await run_for_review(tmp_path)
    reviews = ReviewQueue(tmp_path)
    id_ = reviews.queue()["items"][1]["id"]
    reviews.decide(id_, ReviewDecision(decision="reject"))
    assert reviews.undo(id_) == {"waiting": 3, "decided": 0}
    assert [item["id"] for item in reviews.queue()["items"]][1] == id_
    with pytest.raises(UnknownSample):
        reviews.undo("nobody")


async def test_criteria_marked_as_wrong_stand_with_the_decision_and_go_with_it(tmp_path):
    await run_for_review(tmp_path, screen=True)
    with ReviewProcess(tmp_path) as process:
        items = process.ask("/review/queue")[1]["items"]
        path = f"/review/items/{items[0]['id']}"
        sample = process.ask(path)[1]["sample"]
        wrong = [sample["criteria"][0]["id"], sample["instruction_criteria"][0]["id"]]
        said = {"decision": "accept", "wrong_criteria": [*wrong, wrong[0]]}
        assert process.ask(path, said, "POST")[0] == 200
        (row,) = decided_rows(tmp_path)
        assert row["review"]["wrong_criteria"] == wrong
        assert process.ask(path, method="DELETE")[0] == 200
        assert decided_rows(tmp_path) == []
        assert process.ask(path, {"decision": "accept"}, "POST")[0] == 200
        (row,) = decided_rows(tmp_path)
        assert "wrong_criteria" not in row["review"]
        for bad, why in (
            (["nobody's"], "no criterion"),
            ("c1", "not a list"),
            ([1], "not a list"),
            (["x"] * 101, "Over 100"),
        ):
            said = {"decision": "accept", "wrong_criteria": bad}
            status, refusal = process.ask(path, said, "POST")
            assert status == 422 and why in refusal["detail"]


def decided_rows(out: Path) -> list[dict[str, Any]]:
    with open_read_only(out / "journal.sqlite") as journal:
        return [json.loads(line) for line in iter_records(journal, "accepted", "rejected")]


async def test_verdicts_marked_as_wrong_stand_beside_criteria_marked_as_wrong(tmp_path):
    await run_for_review(tmp_path, failing())
    reviews = ReviewQueue(tmp_path)
    id_ = reviews.queue()["items"][0]["id"]
    failed = reviews.item(id_)["sample"]["criteria"][-1]["id"]
    accept = ReviewDecision(decision="accept")
    reviews.decide(id_, accept, "alice", wrong_verdicts=[failed, failed])
    (row,) = decided_rows(tmp_path)
    assert row["review"]["wrong_verdicts"] == [failed]
    assert "wrong_criteria" not in row["review"]
    assert reviews.item(id_)["decision"]["wrong_verdicts"] == [failed]
    with pytest.raises(BadDecision, match="no criterion"):
        reviews.decide(id_, accept, "alice", wrong_verdicts=["nobody's"])


INSTRUCTION = "Explain to a child of six why the wind makes waves on a lake."


async def test_an_edited_instruction_keeps_the_one_before_and_was_judged_by_nobody(tmp_path):
    await run_for_review(tmp_path, screen=True)
    reviews = ReviewQueue(tmp_path)
    id_ = reviews.queue()["items"][0]["id"]
    sample = reviews.item(id_)["sample"]
    texts = {"response": sample["response"], "instruction": INSTRUCTION}
    reviews.decide(id_, ReviewDecision(decision="edit", **texts), "alice")
    assert rewrite_files(tmp_path)
    (row,) = rows(tmp_path, "accepted")
    assert (row["instruction"], row["instruction_before"]) == (INSTRUCTION, sample["instruction"])
    assert {v["verdict"] for v in row["instruction_verdicts"]} == {"unknown"}
    judged = {c["id"] for c in row["criteria"] if c["judged_by"] == "judge"}
    last = {v["criterion_id"]: v["verdict"] for v in row["attempts"][-1]["verdicts"]}
    assert {last[id_] for id_ in judged} == {"unknown"} and last["not-empty"] == "pass"
    assert row["response"] == row["attempts"][-1]["response"] == sample["response"]
    assert (row["reasoning"], row["review"]["by"]) == (None, "alice")
    assert "the instruction of 1" in (tmp_path / "README.md").read_text()
    # What answers another instruction is no attempt at this one.
    for format_ in ("preference", "kto", "trajectory"):
        out = tmp_path / f"{format_}.jsonl"
        assert refloom("export", tmp_path, out, "--format", format_, cwd=tmp_path).returncode == 0
        assert len(lines(out)) == (0 if format_ == "preference" else 1)
    # To leave it as it was is no edit of it.
    reviews.decide(
        id_,
        ReviewDecision(decision="edit", **texts | {"instruction": sample["instruction"]}),
        "alice",
    )
    (row,) = decided_rows(tmp_path)
    assert "instruction_before" not in row and len(row["attempts"]) == 1


async def test_an_edited_instruction_is_new_or_refused_with_what_it_is_near_to(tmp_path):
    await run_for_review(tmp_path)
    reviews = ReviewQueue(tmp_path)
    first, second, _ = reviews.queue()["items"]

    def edit(id_: str, instruction: str) -> ReviewDecision:
        texts = {"response": "It is so.", "instruction": instruction}
        return ReviewDecision(decision="edit", **texts)

    own = reviews.item(first["id"])["sample"]["instruction"]
    other = reviews.item(second["id"])["sample"]["instruction"]
    reference = reviews.item(first["id"])["references"][0]
    for text, near in ((other, "of another sample"), (reference["instruction"], reference["id"])):
        with pytest.raises(BadDecision, match=near) as refused:
            reviews.check(first["id"], edit(first["id"], f"{text} please"))
        assert text[:40] in str(refused.value)
    # Its own text before is no duplicate of it.
    reviews.check(first["id"], edit(first["id"], f"{own} please"))
    reviews.decide(first["id"], edit(first["id"], INSTRUCTION))
    # Another that was edited counts from then on, in this process and in the run.
    with pytest.raises(BadDecision, match="of another sample"):
        reviews.decide(second["id"], edit(second["id"], f"Now, {INSTRUCTION}"))
    reviews.decide(first["id"], edit(first["id"], f"{INSTRUCTION} Be short."))
    again = ScriptedModel(propose=lambda call: json.dumps({"instructions": [INSTRUCTION]}))
    said = await run_for_review(tmp_path, again, seeds=SEEDS[:4])
    assert said["counts"]["duplicates"] >= 1 and said["counts"]["candidates"] == 3


async def test_two_reviewers_do_not_put_one_instruction_into_two_samples_at_once(
    tmp_path, monkeypatch
):
    await run_for_review(tmp_path)
    reviews, others = ReviewQueue(tmp_path), ReviewQueue(tmp_path)
    first, second, _ = reviews.queue()["items"]
    edit = ReviewDecision(decision="edit", response="It is so.", instruction=INSTRUCTION)
    find_near, asked = reviews._known.find_near, []

    def find_before_the_other_decides(text, slot):
        near = find_near(text, slot)
        if not asked:
            asked.append(text)
            others.decide(second["id"], edit)
        return near

    monkeypatch.setattr(reviews._known, "find_near", find_before_the_other_decides)
    with pytest.raises(BadDecision, match="of another sample"):
        reviews.decide(first["id"], edit)
    assert [row["id"] for row in decided_rows(tmp_path)] == [second["id"]]


async def test_references_are_found_where_a_run_of_an_older_version_has_them(tmp_path):
    import sqlite3
    from contextlib import closing

    await run_for_review(tmp_path)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as connection:
        connection.execute("DELETE FROM meta WHERE key = 'reference_file'")
        connection.commit()
    (first, *_) = ReviewQueue(tmp_path).queue()["items"]
    reference = ReviewQueue(tmp_path).item(first["id"])["references"][0]["instruction"]
    edit = ReviewDecision(decision="edit", response=BETTER, instruction=reference)
    with pytest.raises(BadDecision, match="too near to that of reference"):
        ReviewQueue(tmp_path).check(first["id"], edit)
    for file in (tmp_path / "memory").glob("references-*.parquet"):
        file.unlink()
    with pytest.raises(BadDecision, match="cannot be read"):
        ReviewQueue(tmp_path).check(first["id"], edit)
    # An edit of the response alone needs no references.
    ReviewQueue(tmp_path).check(first["id"], ReviewDecision(decision="edit", response=BETTER))


async def test_a_benchmarks_prompt_is_no_instruction_either(tmp_path):
    from refloom.data.benchmarks import load_benchmarks

    prompt = "What would a lighthouse keeper say to the sea on the last night of the year, and why?"
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": prompt}))
    await run_for_review(tmp_path / "out")
    reviews = ReviewQueue(tmp_path / "out", load_benchmarks([tmp_path / "exam.jsonl"]))
    with pytest.raises(BadDecision, match="exam"):
        decide(reviews, 0, "edit", response=BETTER, instruction=prompt)
    assert reviews.counts()["decided"] == 0


async def test_skips_and_flags_are_kept_for_who_they_are_for(tmp_path):
    await run_for_review(tmp_path)
    reviews = ReviewQueue(tmp_path)
    first, second, _ = (item["id"] for item in reviews.queue()["items"])
    reviews.mark(first, "skip", True, "alice")
    reviews.mark(second, "flag", True, "alice")

    def marks(by: str | None) -> list[tuple[bool, bool]]:
        items = ReviewQueue(tmp_path).queue(by)["items"]
        return [(item["skipped"], item["flagged"]) for item in items]

    assert marks("alice") == [(True, False), (False, True), (False, False)]
    assert marks("bob") == [(False, False), (False, True), (False, False)]
    assert marks(None) == marks("bob")
    reviews.mark(first, "skip", False, "bob")
    reviews.mark(second, "flag", False, "bob")
    assert marks("alice") == [(True, False), (False, False), (False, False)]
    with pytest.raises(UnknownSample):
        reviews.mark("nobody", "flag", True)


async def test_of_two_who_decide_otherwise_the_first_stands_until_it_is_changed_on_purpose(
    tmp_path,
):
    await run_for_review(tmp_path)
    reviews = ReviewQueue(tmp_path)
    id_ = reviews.queue()["items"][0]["id"]
    accept, reject = (ReviewDecision(decision=word) for word in ("accept", "reject"))
    reviews.decide(id_, accept, "alice")
    with pytest.raises(Conflict, match="alice has decided otherwise meanwhile"):
        reviews.decide(id_, reject, "bob")
    assert reviews.decide(id_, accept, "bob")["decided"] == 1
    reviews.decide(id_, reject, "alice", revise=True)
    (row,) = decided_rows(tmp_path)
    assert (row["status"], row["review"]["by"]) == ("rejected", "alice")
    (item,) = reviews.decided()
    assert (item["id"], item["decision"], item["by"]) == (id_, "reject", "alice")


async def test_lists_say_what_failed_and_are_searched_by_words(tmp_path):
    await run_for_review(tmp_path, failing())
    reviews = ReviewQueue(tmp_path)
    first, *_ = reviews.queue()["items"]
    assert first["failed"] and first["length"] > 0
    sample = reviews.item(first["id"])["sample"]
    words = sample["instruction"].upper().split()[-2:]
    assert reviews.search(" ".join(words)) == [first["id"]]
    assert reviews.search("no-such-word") == [] and len(reviews.search("")) == 3


async def test_figures_count_decisions_agreement_and_pace(tmp_path):
    await run_for_review(tmp_path, failing())
    reviews = ReviewQueue(tmp_path)
    first, second, third = (item["id"] for item in reviews.queue()["items"])
    assert review_figures(tmp_path)["decided"] == 0
    failed = next(
        c for c in reviews.item(first)["sample"]["criteria"] if c["id"] == "answers-instruction"
    )
    accept = ReviewDecision(decision="accept")
    reviews.decide(first, accept, "alice", wrong_verdicts=[failed["id"]])
    reviews.decide(second, ReviewDecision(decision="reject"), "alice")
    reviews.decide(third, ReviewDecision(decision="edit", response=BETTER), "bob")
    said = review_figures(tmp_path)
    assert [said[name] for name in ("waiting", "decided", "accepted", "edited", "rejected")] == [
        0, 3, 1, 1, 1,
    ]  # fmt: skip
    assert said["agreement"] == {"n": 2, "agree": 1}
    row = next(row for row in said["criteria"] if row["text"] == failed["text"])
    assert [row[name] for name in ("n", "failed", "wrong_verdicts", "wrong")] == [3, 3, 1, 0]
    assert [(one["by"], one["decided"]) for one in said["reviewers"]] == [("alice", 2), ("bob", 1)]
    assert said["median_seconds"] is not None and said["median_seconds"] < 10


async def test_decisions_are_in_the_journals_one_file_once_the_page_has_ended(tmp_path):
    await run_for_review(tmp_path)
    with ReviewProcess(tmp_path) as process:
        (first, *_) = process.ask("/review/queue")[1]["items"]
        assert process.ask(f"/review/items/{first['id']}", {"decision": "accept"}, "POST")[0] == 200
    (copy := tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "journal.sqlite", copy)
    assert [row["id"] for row in decided_rows(copy)] == [first["id"]]


async def test_decisions_of_a_killed_page_are_read_where_nothing_can_be_written(
    tmp_path, monkeypatch
):
    await run_for_review(tmp_path)
    with ReviewProcess(tmp_path) as process:
        (first, *_) = process.ask("/review/queue")[1]["items"]
        assert process.ask(f"/review/items/{first['id']}", {"decision": "accept"}, "POST")[0] == 200
        process.kill()
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    assert [row["id"] for row in decided_rows(tmp_path)] == [first["id"]]


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="root may write everywhere")
async def test_where_nothing_can_be_written_the_page_does_not_open(tmp_path):
    await run_for_review(tmp_path)
    tmp_path.chmod(0o500)
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    without = without if os.geteuid() == 0 else []
    start = [*without, *command("review", tmp_path, "--port", free_port())]
    done = subprocess.run(start, env=env_of({}), capture_output=True, text=True, timeout=60)
    tmp_path.chmod(0o700)
    assert done.returncode == JournalError.exit_status
    assert "cannot be written" in done.stderr and len(done.stderr.splitlines()) == 1


async def test_a_person_sees_the_sample_as_the_judge_left_it_and_its_references(tmp_path):
    await run_for_review(tmp_path, failing())
    reviews = ReviewQueue(tmp_path)
    (first, *_) = reviews.queue()["items"]
    assert (first["status"], first["reason"]) == ("rejected", "criteria")
    item = reviews.item(first["id"])
    assert item["sample"]["attempts"][0]["verdicts"]
    assert item["references"][0]["response"]
    assert "review" not in item["sample"]


async def test_a_resumed_run_asks_nobody_again_and_pays_nothing(tmp_path):
    await run_for_review(tmp_path)
    decide(ReviewQueue(tmp_path), 0, "accept")
    model = ScriptedModel()
    said = await run_for_review(tmp_path, model)
    assert model.calls == []
    counts = said["counts"]
    assert [counts[k] for k in ("accepted", "pending", "candidates")] == [1, 2, 3]


async def test_what_waits_counts_towards_the_target_and_a_rejection_makes_room(tmp_path):
    said = await run_for_review(tmp_path, seeds=SEEDS, target=2)
    assert (said["status"], said["counts"]["pending"]) == ("short", 2)
    decide(ReviewQueue(tmp_path), 0, "accept")
    decide(ReviewQueue(tmp_path), 0, "reject")
    rewrite_files(tmp_path)
    assert summary_of(tmp_path)["status"] == "short"
    said = await run_for_review(tmp_path, seeds=SEEDS, target=2)
    assert [said["counts"][k] for k in ("accepted", "rejected", "pending")] == [1, 1, 1]
    decide(ReviewQueue(tmp_path), 0, "accept")
    rewrite_files(tmp_path)
    assert summary_of(tmp_path)["status"] == "done"
    said = await run_for_review(tmp_path, seeds=SEEDS, target=2)
    assert (said["status"], said["counts"]["accepted"]) == ("done", 2)


async def test_several_of_a_seed_wait_each_by_itself(tmp_path):
    said = await run_for_review(tmp_path, seeds=SEEDS[:2], per_seed=3)
    assert said["counts"]["pending"] == 6
    decide(ReviewQueue(tmp_path), 4, "accept")
    rewrite_files(tmp_path)
    assert rows(tmp_path, "accepted")[0]["slot"] == [0, 1, 1]


async def test_a_benchmarks_prompt_is_let_in_by_nobody(tmp_path):
    from memory.contamination import Contamination
    from refloom.data.benchmarks import load_benchmarks

    prompt = "What would a lighthouse keeper say to the sea on the last night of the year, and why?"
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": prompt}))
    found: Contamination = load_benchmarks([tmp_path / "exam.jsonl"])
    await run_for_review(tmp_path / "out")
    reviews = ReviewQueue(tmp_path / "out", found)
    with pytest.raises(BadDecision, match="exam"):
        decide(reviews, 0, "edit", response=f"Ask this: {prompt}")
    assert decide(reviews, 0, "edit", response=BETTER)["decided"] == 1


async def test_a_run_of_an_older_version_has_nobody_waiting(tmp_path):
    import sqlite3
    from contextlib import closing

    await run_for_review(tmp_path, review="never")
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as connection:
        connection.execute("DROP TABLE reviews")
        connection.commit()
    assert read_status(tmp_path)["counts"]["pending"] == 0
    assert ReviewQueue(tmp_path).counts() == {"waiting": 0, "decided": 0}


async def test_an_edit_is_a_preference_that_its_reviewer_decided(tmp_path):
    await run_for_review(tmp_path)
    decide(ReviewQueue(tmp_path), 0, "edit", response=BETTER, reason="Says why.")
    rewrite_files(tmp_path)
    done = refloom(
        "export", tmp_path, tmp_path / "pairs.jsonl", "--format", "preference", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (pair,) = lines(tmp_path / "pairs.jsonl")
    assert pair["chosen"][0]["content"] == BETTER
    assert pair["rejected"][0]["content"] != BETTER
    assert pair["decided_by"][-1]["criterion_id"] == "reviewer"
    assert pair["decided_by"][-1]["reason"] == "Says why."


# --- refloom review, as a process ----------------------------------------------------------------


async def test_the_page_of_a_run_takes_decisions_and_keeps_the_files_fresh(tmp_path):
    await run_for_review(tmp_path)
    with ReviewProcess(tmp_path) as page:
        status, said = page.ask("/review/queue")
        assert (status, said["waiting"]) == (200, 3)
        first, second, _ = (item["id"] for item in said["items"])
        path = f"/review/items/{first}"
        assert page.ask(path)[1]["sample"]["id"] == first
        said = {"decision": "edit", "response": BETTER}
        assert page.ask(path, said, "POST") == (200, {"waiting": 2, "decided": 1})
        page.ask(f"/review/items/{second}", {"decision": "reject"}, "POST")
        assert page.ask(f"/review/items/{second}", None, "DELETE")[1]["waiting"] == 2
        assert page.ask(path, {"decision": "perhaps"}, "POST")[0] == 422
        assert page.ask("/review/items/none", {"decision": "accept"}, "POST")[0] == 404
        assert page.ask("/review/queue", Host="evil.example")[0] == 403
        form = {"Content-Type": "text/plain"}
        assert page.ask(path, {"decision": "reject"}, "POST", **form)[0] == 415
    assert page.process.returncode == 0
    assert [row["response"] for row in rows(tmp_path, "accepted")] == [BETTER]
    assert summary_of(tmp_path)["counts"]["pending"] == 2


async def test_a_page_with_keys_wants_one_and_says_who_decided(tmp_path):
    from refloom.serve.api_keys import create_key

    key, entry = create_key("alice")
    await run_for_review(tmp_path)
    with ReviewProcess(tmp_path, REFLOOM_API_KEYS=entry) as page:
        assert page.ask("/review/config")[0] == 200
        assert page.ask("/review/queue")[0] == 401
        assert page.ask("/review/queue", **{"X-Api-Key": "rk_wrong"})[0] == 401
        own = {"X-Api-Key": key}
        id_ = page.ask("/review/queue", **own)[1]["items"][0]["id"]
        assert page.ask(f"/review/items/{id_}", {"decision": "accept"}, "POST", **own)[0] == 200
    assert rows(tmp_path, "accepted")[0]["review"]["by"] == "alice"
    assert key not in (tmp_path / "journal.sqlite").read_bytes().decode("latin-1")


async def test_the_page_of_a_run_has_reasons_a_reviewer_marks_and_figures(tmp_path):
    await run_for_review(tmp_path / "out")
    (tmp_path / "why.txt").write_text("It is about ponds.\n\nToo short.\n")
    flags = ("--reviewer", "carol", "--reasons", tmp_path / "why.txt")
    with ReviewProcess(tmp_path / "out", *flags) as page:
        queue = page.ask("/review/queue")[1]
        assert (queue["by"], queue["reasons"]) == ("carol", ["It is about ponds.", "Too short."])
        first, *_ = (item["id"] for item in queue["items"])
        path = f"/review/items/{first}"
        assert page.ask(f"{path}/marks", {"kind": "flag", "on": True}, "POST")[0] == 200
        assert page.ask(f"{path}/marks", {"kind": "like", "on": True}, "POST")[0] == 422
        assert page.ask("/review/queue")[1]["items"][0]["flagged"] is True
        edit = {
            "decision": "edit",
            "response": BETTER,
            "instruction": queue["items"][1]["instruction"],
        }
        status, refusal = page.ask(f"{path}/check", edit, "POST")
        assert status == 422 and "too near" in refusal["detail"]
        assert page.ask(f"{path}/check", {"decision": "accept"}, "POST") == (200, {"ok": True})
        assert page.ask(path, {"decision": "accept"}, "POST")[1] == {"waiting": 2, "decided": 1}
        assert page.ask("/review/decided")[1]["items"][0]["by"] == "carol"
        assert page.ask("/review/search?text=zzz")[1] == {"ids": []}
        said = page.ask("/review/figures")[1]
        assert said["decided"] == 1 and "refloom export" in said["steps"][0]["command"]
        assert page.ask("/review/figures", Host="evil.example")[0] == 403
        form = {"Content-Type": "text/plain"}
        assert page.ask(f"{path}/marks", {"kind": "flag", "on": True}, "POST", **form)[0] == 415


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        ((), {}, "there is no run here"),
        (("--host", "0.0.0.0"), {}, "set REFLOOM_API_KEYS first"),
        ((), {"REFLOOM_API_KEYS": "alice:secret"}, "entry 1 is not NAME:HASH"),
        (("--port", "0"), {}, "is not a port"),
        (("--reasons", "none.txt"), {}, "--reasons none.txt: cannot be read"),
        (("--reviewer", "a b"), {}, "is not a user name"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, flags, environment, said):
    done = refloom("review", tmp_path, *flags, cwd=tmp_path, **environment)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
