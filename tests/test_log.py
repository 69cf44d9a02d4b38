"""The log of a run."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refloom.errors import InputError
from refloom.runs.event_log import event, json_value, log_to, make_redact

SECRET = "my+very/secret=key"


def lines(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert text.count("\n") == len(text.splitlines())
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def state():
    named = [logging.getLogger(name) for name in ("refloom", "")]
    return [(x.level, x.propagate, x.disabled, list(x.handlers), list(x.filters)) for x in named]


def logged(tmp_path, secrets=(SECRET,), **fields):
    path = tmp_path / "run.log"
    with log_to(path, secrets):
        event("said", **fields)
    return lines(path)[-1]


def test_an_event_is_a_line_of_json_with_time_level_and_fields(tmp_path):
    line = logged(tmp_path, stage="generate", slot=[0, 1, 2], cost=None, seconds=0.25, again=True)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "INFO",
        "event": "said",
        "stage": "generate",
        "slot": [0, 1, 2],
        "cost": None,
        "seconds": 0.25,
        "again": True,
    }


def test_an_event_has_the_level_it_is_given(tmp_path):
    assert logged(tmp_path, level=logging.ERROR)["level"] == "ERROR"


def test_a_field_never_hides_time_and_event(tmp_path):
    line = logged(tmp_path, time="never", event="another", name="kept", self="too", msg="so")
    assert line["event"] == "said" and line["time"] != "never"
    assert (line["time_"], line["event_"], line["name"]) == ("never", "another", "kept")


def test_what_json_does_not_know_is_written_as_text(tmp_path):
    line = logged(
        tmp_path,
        path=Path("a/b"),
        error=ValueError("is bad"),
        much=float("inf"),
        none=float("nan"),
        seen=(1, {"k": {2}}),
        nested={1: None},
        name="%s %d {x}",
    )
    assert line["path"] == str(Path("a/b"))
    assert line["error"] == "ValueError: is bad"
    assert (line["much"], line["none"]) == ("inf", "nan")
    assert line["seen"] == [1, {"k": [2]}] and line["nested"] == {"1": None}
    assert line["name"] == "%s %d {x}"


def test_what_holds_itself_is_cut_off(tmp_path):
    round_: list[object] = []
    round_.append(round_)
    assert "[[" in json.dumps(logged(tmp_path, round_=round_))


def test_what_changes_after_the_event_is_logged_as_it_was(tmp_path):
    path, slot = tmp_path / "run.log", [1]
    with log_to(path, ()):
        event("said", slot=slot)
        slot.append(2)
    assert lines(path)[0]["slot"] == [1]


@pytest.mark.parametrize("text", ["a\nb\r\nc", "a\u2028b\x85c", "half \ud83d of it", "\x00\x1b[2J"])
def test_any_text_stays_on_one_line(tmp_path, text):
    line = logged(tmp_path, text=text, **{"na\nme": [text]})
    expected = text.replace("\ud83d", "\ufffd")
    assert line["text"] == expected and line["na\nme"] == [expected]
    assert (tmp_path / "run.log").read_bytes().isascii()


@given(st.recursive(st.none() | st.floats() | st.integers() | st.text() | st.binary(), st.lists))
def test_any_value_can_be_written(value):
    text = json.dumps(json_value({"v": value}, make_redact(["sk-abcdef"])), allow_nan=False)
    assert len(text.splitlines()) == 1
    text.encode("utf-8")


def spellings():
    yield SECRET
    yield f"https://host/v1?api={quote(SECRET, safe='')}"
    yield f"https://user:{SECRET}@host/v1"
    yield f"\n{SECRET}\n"
    yield {"deep": [{SECRET: 1}]}
    yield ValueError(f"wrong key {SECRET!r}")
    yield json.dumps({"key": SECRET})


@pytest.mark.parametrize("value", list(spellings()))
def test_a_key_in_use_stands_nowhere(tmp_path, value):
    logged(tmp_path, value=value, other=f"x{SECRET}y")
    text = (tmp_path / "run.log").read_text()
    assert "secret" not in text and "(key)" in text


@pytest.mark.parametrize("secret", ['quo"te\\back', "schlüssel-ä", "12345678", "tab\there"])
def test_a_key_is_found_in_every_spelling(tmp_path, secret):
    line = logged(
        tmp_path,
        [secret + "\n", ""],
        plain=secret,
        quoted=repr(secret),
        dumped=json.dumps(secret),
    )
    assert {line["plain"], line["quoted"].strip("'\""), line["dumped"].strip('"')} == {"(key)"}


def test_a_key_that_begins_with_another_is_taken_out_whole(tmp_path):
    line = logged(tmp_path, ["abcdef", "abcdefghij"], text="abcdefghij abcdef")
    assert line["text"] == "(key) (key)"


def test_a_word_too_short_for_a_key_is_left_where_it_is(tmp_path):
    assert logged(tmp_path, ["none", ""], text="none at all")["text"] == "none at all"


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-other-0123456789",
        "first line\nsk-other-0123456789",
        repr("first line\nsk-other-0123456789"),
        "{'headers': {'Authorization': 'Bearer other-0123456789'}}",
        '{"authorization": "Basic other-0123456789=="}',
        '{\\"Authorization\\": \\"Token other-0123456789\\"}',
        "Authorization: Custom other-0123456789\nHost: here",
        "(b'Authorization', b'Bearer other-0123456789')",
        "x-api-key: other-0123456789",
        "sent bearer other-0123456789",
        "http://someone:other-0123456789@host:80/v1 refused",
        "http://other-0123456789@host refused",
        "hf_" + "other0123456789" * 2,
    ],
)
def test_what_looks_like_a_key_is_taken_out_too(tmp_path, text):
    line = logged(tmp_path, [], text=text)
    assert "other" not in line["text"] and "(key)" in line["text"]


def test_a_field_that_is_named_as_a_key_is_not_shown(tmp_path):
    line = logged(tmp_path, headers={"Authorization": "abc", "X-Api-Key": "d", "Host": "h"})
    assert line["headers"] == {"Authorization": "(key)", "X-Api-Key": "(key)", "Host": "h"}


@pytest.mark.parametrize(
    "text", ["https://host/v1?at=a@b", "task-1 asks", "bearer of news", "see a@b.org", "key: value"]
)
def test_what_does_not_look_like_a_key_is_left(tmp_path, text):
    assert logged(tmp_path, text=text)["text"] == text


@pytest.mark.parametrize("text", [" " * 200_000, "authorization" + " " * 200_000, "://" * 90_000])
def test_a_long_text_is_searched_in_one_pass(text):
    make_redact([SECRET])(text + "\n")


def test_what_another_module_of_refloom_logs_comes_in_the_same_shape(tmp_path):
    path = tmp_path / "run.log"
    with log_to(path, [SECRET]):
        logging.getLogger("refloom.part").warning("took %d s with %s", 3, SECRET)
    (line,) = lines(path)
    del line["time"]
    assert line == {"level": "WARNING", "event": "log", "message": "took 3 s with (key)"}


def test_a_second_run_appends(tmp_path):
    logged(tmp_path, at=1)
    logged(tmp_path, at=2)
    assert [line["at"] for line in lines(tmp_path / "run.log")] == [1, 2]


def test_a_line_that_a_kill_cut_off_spoils_no_other(tmp_path):
    path = tmp_path / "run.log"
    path.write_text('{"time": "20')
    with log_to(path, ()):
        event("said")
    first, second = path.read_text().splitlines()
    assert first == '{"time": "20' and json.loads(second)["event"] == "said"


@pytest.mark.parametrize("fails", [False, True])
def test_logging_is_afterwards_as_it_was(tmp_path, monkeypatch, fails):
    logger = logging.getLogger("refloom")
    monkeypatch.setattr(logger, "disabled", True)
    before, threads = state(), threading.active_count()
    try:
        with log_to(tmp_path / "run.log", ()):
            assert state() != before
            event("said")
            if fails:
                raise KeyError
    except KeyError:
        event("not said")
    assert state() == before and threading.active_count() == threads
    assert [line["event"] for line in lines(tmp_path / "run.log")] == ["said"]


def test_without_a_file_nothing_is_logged_and_nothing_changes(caplog):
    before = state()
    with log_to(None, [SECRET]):
        assert state() == before
        event("said", text=SECRET)
    assert caplog.records == []


def bad_paths(tmp_path):
    (tmp_path / "file").write_text("")
    return [tmp_path, tmp_path / "none" / "run.log", tmp_path / "file" / "x", Path("a\0b")]


@pytest.mark.parametrize("which", range(4))
def test_a_path_that_cannot_be_written_is_one_clear_line(tmp_path, which):
    before, threads = state(), threading.active_count()
    path = bad_paths(tmp_path)[which]
    with pytest.raises(InputError) as raised, log_to(path, ()):
        raise AssertionError("not to be reached")
    assert str(raised.value).startswith(f"{path}: the log cannot be written: ")
    assert "\n" not in str(raised.value)
    assert state() == before and threading.active_count() == threads


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write it")
def test_a_file_that_may_not_be_written_is_one_clear_line(tmp_path):
    path = tmp_path / "run.log"
    path.write_text("")
    path.chmod(0o400)
    with pytest.raises(InputError, match="Permission denied"), log_to(path, ()):
        raise AssertionError("not to be reached")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_said_once_and_costs_no_run(capsys):
    with log_to(Path("/dev/full"), ()):
        for _ in range(5):
            event("said")
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "the log is incomplete" in err


async def test_the_file_is_written_from_another_thread(tmp_path, monkeypatch):
    wrote = []
    emit = logging.FileHandler.emit

    def seen(self, record):
        wrote.append(threading.current_thread())
        emit(self, record)

    monkeypatch.setattr(logging.FileHandler, "emit", seen)
    with log_to(tmp_path / "run.log", ()):
        await asyncio.gather(*(asyncio.to_thread(event, "said", at=i) for i in range(50)))
        event("said", at=50)
    assert sorted(line["at"] for line in lines(tmp_path / "run.log")) == list(range(51))
    assert threading.current_thread() not in wrote and len(set(wrote)) == 1
