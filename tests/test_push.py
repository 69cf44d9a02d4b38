"""Putting rows and card on the Hugging Face hub, a stand-in of it on loopback."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from hub import Hub
from huggingface_hub import constants
from processes import CommandResult, lines, refloom


def push(hub: Hub, *arguments, cwd: Path) -> CommandResult:
    with pytest.MonkeyPatch.context() as patch:
        # The library reads HF_ENDPOINT once, when it is imported.
        patch.setattr(constants, "ENDPOINT", hub.url)
        return refloom("push", *arguments, cwd=cwd, HF_TOKEN="hf_secret")


@pytest.mark.filterwarnings("default")
def test_rows_and_card_are_put_on_the_hub_and_load_from_there(made, tmp_path):
    import datasets

    with Hub() as hub:
        done = push(
            hub, made, "me/rows", "--format", "messages", "--format", "preference",
            "--split", "train=0.9,validation=0.1", "--despite-contamination", cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{hub.url}/datasets/me/rows (private): ")
    rows = re.findall(r"(\d+) rows of (\w+)", done.stdout)
    assert [name for _, name in rows] == ["messages", "preference"]
    card = hub.files["README.md"].decode()
    assert all(f"- `{name}`: {count} rows" in card for count, name in rows)
    assert hub.made[0]["visibility"] == "private"
    assert set(hub.tokens) == {"Bearer hf_secret"}
    for name, content in hub.files.items():
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / name).write_bytes(content)
    # The card's header is what tells the library which file is which.
    loaded = datasets.load_dataset(
        str(tmp_path / "hub"), "messages", cache_dir=str(tmp_path / "cache")
    )
    total = sum(len(part) for part in loaded.values())
    assert set(loaded) == {"train", "validation"}
    assert total == len(lines(made / "accepted.jsonl"))


def test_what_held_a_benchmark_is_not_published_unless_told(made, tmp_path):
    with Hub() as hub:
        done = push(hub, made, "me/rows", cwd=tmp_path)
    assert done.returncode == 2
    assert "--despite-contamination" in done.stderr and done.stderr.count("\n") == 1
    assert not hub.made and not hub.files


@pytest.mark.parametrize(("status", "says"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (500, "500")])
def test_a_hub_that_refuses_ends_with_status_four_and_no_token_is_shown(
    made, tmp_path, status, says
):
    with Hub(status) as hub:
        done = push(hub, made, "me/rows", "--despite-contamination", cwd=tmp_path)
    assert done.returncode == 4 and says in done.stderr
    assert "hf_secret" not in done.stderr + done.stdout and done.stderr.count("\n") == 1


def test_a_hub_that_is_not_there_and_a_name_that_is_none(made, tmp_path):
    hub = Hub()
    hub.__enter__()
    hub.__exit__()
    done = push(hub, made, "me/rows", "--despite-contamination", cwd=tmp_path)
    assert done.returncode == 4 and "cannot be reached" in done.stderr
    with Hub() as hub:
        done = push(hub, made, "me/ro ws", "--despite-contamination", cwd=tmp_path)
    assert done.returncode == 2 and "OWNER/NAME" in done.stderr


def test_a_dry_run_shows_the_card_and_sends_nothing(made, tmp_path):
    with Hub() as hub:
        done = push(hub, made, "me/rows", "--dry-run", "--despite-contamination", cwd=tmp_path)
    assert done.returncode == 0 and "# me/rows" in done.stdout
    assert not hub.made


def test_a_data_set_that_is_there_is_added_to_and_not_called_private(made, tmp_path):
    with Hub(there=True) as hub:
        flags = ("--despite-contamination", "--format", "messages", "--format", "messages")
        done = push(hub, made, "me/rows", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(visibility unchanged)" in done.stdout and "private" not in done.stdout
    assert set(hub.files) == {"README.md", "messages/rows-train.parquet"}


@pytest.mark.parametrize(
    ("said", "status"), [("{}", 2), ('{"settings": {}, "reading": {}}', 2), ("", 2), ("[]", 2)]
)
def test_a_run_whose_summary_is_damaged_is_not_published(made, tmp_path, said, status):
    shutil.copytree(made, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(said)
    with Hub() as hub:
        done = push(hub, tmp_path / "run", "me/rows", cwd=tmp_path)
    assert done.returncode == status and "run.json" in done.stderr
    assert "Traceback" not in done.stderr and not hub.made
