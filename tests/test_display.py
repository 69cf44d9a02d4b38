"""What a person sees of a run."""

from __future__ import annotations

import io
import re
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fakes import ScriptedModel, answer, letters, prompt_of
from rich.console import Console
from runs import SEEDS, build_run

from refloom.runs.progress import (
    MAX_COUNTED,
    MAX_COUNTED_CHARS,
    Progress,
    RunStats,
    find_notebook,
    format_seconds,
)
from refloom.runs.run import Tools

SEEN = RunStats(
    accepted=0,
    rejected=0,
    failed=0,
    target=100,
    seeds=50,
    candidates=0,
    paid=0,
    reused=0,
    retried=0,
    in_flight=8,
    limit=16,
    waiting=4,
    slots=None,
    cost=0.0,
    max_cost=None,
)
NEVER = 3600.0


class Watched:
    """A run that says what it is told to say, at the time it is told."""

    def __init__(self, seen=SEEN, **given):
        self.seen, self.now = seen, 100.0
        self.to = io.StringIO()
        given = {"to": self.to, "clock": lambda: self.now, "tick_s": NEVER, **given}
        self.progress = Progress(**given)

    def begin(self):
        return self.progress.begin(lambda: self.seen)

    def after(self, seconds, **changed):
        """Let time pass, and give what was written at its end."""
        self.seen, self.now = replace(self.seen, **changed), self.now + seconds
        before = len(self.to.getvalue())
        self.progress.tick()
        return self.to.getvalue()[before:]


class Screen(Watched):
    """The same on a terminal."""

    def __init__(self, seen=SEEN, width=100, **given):
        self.drawn = io.StringIO()
        console = Console(
            file=self.drawn,
            force_terminal=True,
            width=width,
            height=30,
            color_system=None,
            _environ={"TERM": "xterm"},
        )
        super().__init__(seen, console=console, **given)

    def after(self, seconds, **changed):
        self.seen, self.now = replace(self.seen, **changed), self.now + seconds
        before = len(self.drawn.getvalue())
        self.progress.tick()
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.drawn.getvalue()[before:])


def record(status="accepted", failing=(), **more):
    criteria = [{"id": f"c{i}", "text": text} for i, text in enumerate(failing)]
    verdicts = [{"criterion_id": c["id"], "verdict": "fail"} for c in criteria]
    return {
        "status": status,
        "instruction": "Why?",
        "response": "So.\nAnd so.",
        "seed_id": "s1",
        "reason": "criteria",
        "criteria": criteria,
        "attempts": [{"response": "So.", "verdicts": verdicts}],
        **more,
    }


def test_a_line_is_written_every_half_minute_and_no_sooner():
    run = Watched()
    with run.begin():
        assert run.after(29) == ""
        assert run.after(1).count("\n") == 2
        assert run.after(29) == ""
        assert run.after(2).startswith("[  61 s] accepted 0 of 100, ")


def test_lines_say_all_there_is_to_say_and_are_short():
    run = Watched(replace(SEEN, max_cost=5.0))
    with run.begin():
        run.progress(record("rejected", ["gives a reason", "is short"]))
        run.progress(record("rejected", ["gives a reason"]))
        run.progress.count_error("timeout")
        run.progress.count_error("rate_limit")
        run.progress.count_error("timeout")
        said = run.after(
            30,
            accepted=10,
            rejected=2,
            failed=1,
            paid=60,
            retried=3,
            reused=7,
            cost=0.5,
        )
    assert said == (
        "[  30 s] accepted 10 of 100, rejected 2, failed 1; 20.0 rows a minute; about 4 min left\n"
        "         60 calls paid; 7 reused; 3 retried; 8 of 16 in flight; 4 waiting\n"
        "         $0.5000 so far; about $4.50 to come; $5.00 allowed\n"
        "         failed 2 times: the response gives a reason\n"
        "         errors: timeout 2, rate_limit 1\n"
    )
    assert max(map(len, said.splitlines())) < 100


def test_a_line_that_is_too_long_is_broken_between_its_parts():
    run = Watched(replace(SEEN, target=None, slots=600_000))
    with run.begin():
        run.after(30, accepted=1000, rejected=100, failed=10)
        said = run.after(30, accepted=2000, rejected=200, failed=20)
    assert said.splitlines()[:2] == [
        "[  60 s] accepted 2,000, rejected 200, failed 20 (2,220 of 600,000 samples)",
        "         2,220.0 samples a minute; about 4 h 29 min left",
    ]


def test_what_fails_most_is_said_in_full_on_lines_that_are_short():
    run = Watched()
    text = "names each of the things that the reader has to do " + "and when " * 15 + "so."
    with run.begin():
        run.progress(record("rejected", [text]))
        said = run.after(30)
    assert " ".join(text.split()) in " ".join(said.split())
    assert max(map(len, said.splitlines())) < 100


def test_a_run_says_what_it_is_doing_before_it_makes_rows():
    run = Watched(replace(SEEN, activity="loading the model into this process"))
    with run.begin():
        assert run.after(4) == "", "most runs are past it by now"
        assert run.after(2) == "", "since when it is so is known from the first look on"
        assert run.after(4) == "[  10 s] loading the model into this process\n"
        assert run.after(10) == "", "it is said once"
        embedding = "embedding references, {:,} of 10,000"
        assert run.after(1, activity=embedding.format(1000)) == ""
        assert run.after(5, activity=embedding.format(2000)) == (
            "[  26 s] embedding references, 2,000 of 10,000\n"
        )
        assert run.after(5, activity=embedding.format(3000)) == "", "numbers make no news"
        assert run.after(25, activity=embedding.format(7000)) == (
            "[  56 s] embedding references, 7,000 of 10,000\n"
        )
        assert run.after(6, activity="making rows") == "", "rows speak for themselves"


async def test_a_run_tells_reading_embedding_learning_and_making(tmp_path):
    told: list[str] = []

    def tell(call):
        told.append(f"{call.stage}: {run.stats().activity}")
        return answer(call.stage, prompt_of(call), 1)

    async def embed(texts):
        told.append(run.stats().activity)
        return await letters(texts)

    model = ScriptedModel(extract=tell, generate=tell)
    run = build_run(tmp_path, model, SEEDS[:1])
    run.tools = Tools(complete=model, embed=embed)
    assert run.stats().activity == "reading the inputs"
    await run.run()
    assert "embedding references, 0 of 3" in told
    assert "extract: learning from references" in told
    assert "generate: making rows" in told


def test_the_end_says_how_it_went_in_one_line_with_the_speed_of_the_whole():
    run = Watched()
    with run.begin():
        run.after(10, accepted=50, paid=100)
        run.after(100, accepted=100, paid=220)
    last = run.to.getvalue().splitlines()[-1]
    assert last == "[ 110 s] accepted 100 of 100, rejected 0, failed 0; 54.5 rows a minute"


def test_a_run_in_which_nothing_happened_ends_without_a_word():
    run = Watched()
    with run.begin():
        pass
    assert run.to.getvalue() == ""


def test_speed_and_time_left_are_those_of_the_last_minute():
    run = Watched(replace(SEEN, accepted=40, paid=500))
    with run.begin():
        assert "20.0 rows a minute; about 2 min left" in run.after(30, accepted=50)
        assert "20.0 rows a minute; about 2 min left" in run.after(30, accepted=60)
        # Without two rows in the last minute it is the whole session's.
        run.after(100, accepted=62)
        assert "5.5 rows a minute; about 6 min left" in run.after(100, accepted=64)


def test_the_first_few_rows_do_not_tell_how_long_the_rest_takes():
    run = Watched(replace(SEEN, target=None, slots=6, limit=4))
    with run.begin():
        for done in (1, 2):
            said = run.after(30, accepted=done, cost=0.1)
            assert "2.0 samples a minute" in said
            assert "left" not in said and "to come" not in said
        said = run.after(30, accepted=3)
        assert "about 90 s left" in said and "to come" in said


def test_of_many_as_many_as_are_made_at_once_tell_how_long_the_rest_takes():
    run = Watched(replace(SEEN, limit=16, target=1000))
    with run.begin():
        assert "left" not in run.after(30, accepted=15)
        assert "left" in run.after(30, accepted=16)


def test_the_time_before_the_first_row_is_begun_does_not_slow_the_rate():
    run = Watched(replace(SEEN, target=None, slots=6, limit=4, activity="loading the model"))
    with run.begin():
        run.after(90, activity="learning from references")
        run.after(10, activity="making rows")
        assert "6.0 samples a minute; about 30 s left" in run.after(30, accepted=3)
        run.after(30, accepted=6)
    assert run.to.getvalue().splitlines()[-1].endswith("6.0 samples a minute")


def test_rows_that_an_earlier_session_made_do_not_quicken_the_rate():
    run = Watched(replace(SEEN, activity="reading the inputs"))
    with run.begin():
        run.after(1, activity="making rows", accepted=80)
        assert "20.0 rows a minute; about 30 s left" in run.after(30, accepted=90)


def test_speed_is_unknown_before_any_row():
    run = Watched()
    with run.begin():
        said = run.after(30)
    assert "a minute" not in said and "left" not in said


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(0, "0 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (9000, "2 h 30 min")],
)
def test_times_are_said_in_words(seconds, says):
    assert format_seconds(seconds) == says


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"accepted": 10, "cost": 0.5}, "$0.5000 so far; about $4.50 to come"),
        ({"accepted": 100, "cost": 2000.0}, "$2,000.00 so far"),
        ({"accepted": 0, "cost": 0.5}, "$0.5000 so far"),
        (
            {"accepted": 5, "rejected": 4, "failed": 1, "target": None, "slots": 40, "cost": 1.0},
            "$1.00 so far; about $3.00 to come",
        ),
    ],
)
def test_the_rest_is_reckoned_to_cost_what_it_cost_so_far(changed, says):
    run = Watched()
    with run.begin():
        assert " ".join(run.after(30, **changed).split()).endswith(says)


@pytest.mark.parametrize("cost", [None, 0.0])
def test_of_a_cost_that_is_none_or_unknown_nothing_is_said(cost):
    run = Watched()
    with run.begin():
        assert "$" not in run.after(30, accepted=10, cost=cost)


def test_without_a_target_the_measure_is_the_samples_that_ended():
    run = Watched(replace(SEEN, target=None))
    with run.begin():
        assert "accepted 5, rejected 4, failed 1 (10 of 50 samples); 20.0 samples a m" in run.after(
            30, accepted=5, rejected=4, failed=1
        )
        assert "(10 of 200 samples)" in run.after(30, slots=200)


def test_a_run_in_which_no_call_ends_says_so():
    run = Watched()
    with run.begin():
        run.after(5, paid=1)
        assert "no call" not in run.after(30)
        assert "no call has ended for 95 s" in run.after(65)
        assert "no call" not in run.after(30, paid=2)
        run.after(60)
        run.progress.count_error("timeout")
        assert "no call" not in run.after(30)


def test_a_run_that_hangs_is_watched_from_another_thread():
    looked = threading.Event()
    run = Watched(tick_s=0.001)

    def look():
        if threading.current_thread().name == "refloom-display":
            looked.set()
        return run.seen

    with run.progress.begin(look):
        assert looked.wait(60)


def test_no_thread_is_left_and_the_end_may_come_twice():
    run = Watched(tick_s=0.001)
    before = threading.active_count()
    with run.begin():
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    run.progress.end()
    with run.begin():
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_it_ends_when_the_run_raises():
    run = Watched()
    before = threading.active_count()
    with pytest.raises(KeyError), run.begin():
        run.seen = replace(SEEN, paid=1)
        raise KeyError
    assert threading.active_count() == before
    assert run.to.getvalue().startswith("[   0 s] accepted 0 of 100")


def test_what_it_looks_at_may_be_given_when_it_is_made():
    to = io.StringIO()
    with Progress(to=to, read_stats=lambda: replace(SEEN, paid=3), tick_s=NEVER):
        pass
    assert "accepted 0 of 100" in to.getvalue()


def test_a_terminal_shows_bar_calls_money_criteria_and_errors():
    run = Screen()
    with run.begin():
        run.progress(record("rejected", ["gives a reason"]))
        run.progress.count_error("timeout")
        seen = run.after(30, accepted=25, rejected=1, paid=60, cost=0.25)
    lines = [line.rstrip() for line in seen.splitlines()]
    assert lines[0].startswith("making rows ━━")
    assert lines[0].endswith(" 25 of 100 accepted, 1 rejected")
    assert lines[1:] == [
        "50.0 rows a minute, about 90 s left",
        "60 calls paid, 8 of 16 in flight, 4 waiting",
        "$0.2500 so far, about $0.7500 to come",
        "failed once: the response gives a reason",
        "errors: timeout 1",
    ]
    assert run.to.getvalue() == ""


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (100, ["learning from references ━━ 7 of 24 samples: 5 accepted, 1 rejected, 1 failed"]),
        (
            40,
            [
                "learning from references",
                "━━ 7 of 24 samples",
                "5 accepted, 1 rejected, 1 failed",
            ],
        ),
    ],
)
def test_a_narrow_terminal_shows_all_that_a_wide_one_shows(width, shown):
    learning = replace(SEEN, target=None, slots=24, activity="learning from references")
    run = Screen(learning, width=width)
    with run.begin():
        seen = run.after(1, accepted=5, rejected=1, failed=1)
    lines = [re.sub("[━╺╸]+ +", "━━ ", line.rstrip()) for line in seen.splitlines()]
    assert lines[: len(shown)] == shown
    assert "…" not in seen


def test_lines_fit_a_terminal_that_can_not_be_drawn_on(monkeypatch):
    class Dumb(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "60")
    to = Dumb()
    run = Watched(to=to)
    with run.begin():
        run.progress(record("rejected", ["gives a reason " * 8]))
        run.after(30, accepted=10, rejected=2, failed=1, paid=60)
    said = to.getvalue()
    assert max(map(len, said.splitlines())) <= 60
    assert "accepted 10 of 100" in said and "gives a reason" in said
    assert "\x1b" not in said


def test_a_terminal_says_at_once_what_a_run_is_doing():
    run = Screen(replace(SEEN, activity="loading the model into this process"))
    with run.begin():
        seen = run.after(0.5)
        assert seen.startswith("loading the model into this process ")
        assert len(seen.splitlines()) == 1, "there is nothing else to say yet"


def test_rows_stand_above_the_live_view():
    run = Screen(show_rows=True)
    with run.begin():
        run.progress(record(response="[b]So.[/b]"))
        seen = run.after(1, accepted=1, paid=3)
    assert seen.index("  | [b]So.[/b]") < seen.index("making rows")


def test_a_notebook_shows_one_text_in_place_of_the_last():
    shown: list[str] = []
    run = Watched(notebook=shown.append)
    with run.begin():
        run.after(1, activity="learning from references")
        run.after(30, activity="making rows", accepted=10, paid=60)
    assert shown[0].startswith("[   1 s] learning from references; accepted 0 of 100")
    assert shown[1].startswith("[  31 s] making rows; accepted 10 of 100")
    assert shown[2].startswith("[  31 s] accepted 10 of 100")
    assert run.to.getvalue() == ""


def test_a_notebook_is_known_by_its_kernel(monkeypatch):
    shown: list[dict] = []

    class Handle:
        def update(self, data, raw):
            shown.append(data)

    def display(data, raw, display_id):
        shown.append(data)
        return Handle()

    shell = SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    assert find_notebook() is None, "a shell in a terminal has none"
    shell.kernel = object()
    run = Watched()
    with run.begin():
        run.after(1, activity="learning from\x1b references")
    assert [set(data) for data in shown] == [{"text/plain"}] * 3
    assert "learning from\ufffd references" in shown[1]["text/plain"]


def test_a_terminal_keeps_the_last_picture_and_gets_its_cursor_back():
    run = Screen()
    with run.begin():
        run.after(1, accepted=3, paid=9)
        assert run.drawn.getvalue().count("\x1b[?25l") == 1
    assert "3 of 100 accepted" in run.drawn.getvalue().rpartition("\x1b[2K")[0]
    assert run.drawn.getvalue().endswith("\x1b[?25h")


@pytest.mark.parametrize("text", ["[red]is[/red] short", "[/]", "[link=file:///x]y", ":smile: \\["])
def test_what_looks_like_markup_is_shown_as_it_is(text):
    run = Screen()
    with run.begin():
        run.progress(record("rejected", [text]))
        run.progress.count_error(text)
        seen = run.after(1)
    assert f"failed once: the response {text}" in seen
    assert f"errors: {text} 1" in seen


def test_nothing_a_stranger_wrote_reaches_the_terminal_as_a_command():
    text = "is\x1b]0;title\x07 \x9b2J short\r\n\u202eand\ud800 so"
    screen, plain = Screen(), Watched()
    shown = Watched(show_rows=True)
    for run in (screen, plain, shown):
        with run.begin():
            run.progress(record("rejected", [text], instruction=text, response=text))
            run.after(30, paid=1)
    for written in (screen.drawn, plain.to, shown.to):
        assert not re.search("\x1b\\]|\x07|\x9b|\u202e|\ud800", written.getvalue())
    assert "is\ufffd]0;title\ufffd \ufffd2J short \ufffdand\ufffd so" in screen.drawn.getvalue()
    assert len(plain.to.getvalue().splitlines()) == 4


@pytest.mark.parametrize("width", [1, 10, 24, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width):
    from rich.cells import cell_len

    run = Screen(width=width)
    with run.begin():
        run.progress(record("rejected", ["理由を述べる" * 30, "gives a reason " * 30]))
        run.progress.count_error("timeout")
        seen = run.after(100, accepted=100_000, target=1_000_000, cost=123456.0)
    lines = seen.splitlines()
    assert all(cell_len(line) <= width for line in lines)


def test_a_terminal_without_utf_8_gets_a_bar_it_can_show(monkeypatch):
    raw = io.BytesIO()
    ascii_only = io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace")
    console = Console(file=ascii_only, force_terminal=True, width=100, _environ={"TERM": "xterm"})
    run = Watched(console=console)
    with run.begin():
        run.after(1, accepted=50)
    ascii_only.flush()
    assert b"---" in raw.getvalue() and b"\\u" not in raw.getvalue()


def test_a_terminal_that_can_not_be_drawn_on_gets_lines():
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    run = Watched(console=console)
    with run.begin():
        assert run.after(30).count("\n") == 2


def test_colour_is_left_out_where_that_is_wished(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, color_system="standard", width=100)
    run = Watched(console=console)
    with run.begin():
        run.progress.count_error("timeout")
        run.after(1, accepted=1)
    assert "errors: timeout" in drawn.getvalue()
    assert not re.search(r"\x1b\[(?:\d+;)*3\dm", drawn.getvalue())


def test_what_is_remembered_is_bounded_and_what_fails_most_stays():
    run = Watched()
    for i in range(20_000):
        run.progress(record("rejected", [f"criterion {i} " + "x" * 1000, "fails always"]))
        run.progress.count_error(f"kind {i}")
    assert len(run.progress._failed_criteria) <= MAX_COUNTED
    assert len(run.progress._errors) <= MAX_COUNTED
    assert max(map(len, run.progress._failed_criteria)) <= MAX_COUNTED_CHARS
    assert run.progress._failed_criteria.most_common(1) == [("fails always", 20_000)]


def test_equal_criteria_of_different_references_are_counted_together():
    run = Watched()
    with run.begin():
        for id_ in ("a", "b"):
            one = record("rejected", ["is  short"])
            one["criteria"][0]["id"] = one["attempts"][0]["verdicts"][0]["criterion_id"] = id_
            run.progress(one)
        assert "failed 2 times: the response is short" in run.after(30)


def test_a_reader_that_went_away_costs_no_run():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    run = Watched(to=Gone(), show_rows=True)
    with run.begin():
        run.progress(record())
        run.after(31)
    terminal = Console(file=Gone(), force_terminal=True, _environ={"TERM": "xterm"})
    terminal.on_broken_pipe = lambda: (_ for _ in ()).throw(OSError("gone"))
    with Watched(console=terminal).begin() as progress:
        progress.tick()


def test_a_process_without_stderr_costs_no_run(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    progress = Progress(show_rows=True, tick_s=NEVER)
    with progress.begin(lambda: replace(SEEN, paid=1)):
        progress(record())


def test_rows_are_shown_as_they_end_with_and_without_a_look():
    alone = Watched(show_rows=True)
    alone.progress(record())
    alone.progress(record("rejected", ["short"]))
    assert alone.to.getvalue() == (
        "[   0 s] accepted at the first attempt\n> Why?\n  | So.\n  | And so.\n\n"
        "[   0 s] rejected at the first attempt\n> Why?\n"
        '  failed:  "short"\n  | So.\n  | And so.\n\n'
    )
    run = Watched(show_rows=True)
    with run.begin():
        run.progress(record())
        assert run.after(1).endswith("> Why?\n  | So.\n  | And so.\n\n")
        assert run.after(28) == ""


def test_a_refinement_can_be_followed_from_what_failed_to_what_passed():
    run = Watched(show_rows=True)
    long = record("accepted", ["has at most 3 words"])
    fault = long["attempts"][0]["verdicts"][0] | {"reason": "It has 4 words."}
    long["attempts"] = [
        {"response": "So it is now.", "verdicts": [fault]},
        {"response": "So it was.", "verdicts": [fault | {"verdict": "pass"}]},
    ]
    run.progress(long | {"response": "So it was."})
    assert run.to.getvalue() == (
        "[   0 s] accepted after 2 attempts\n"
        "> Why?\n"
        '  failed:  "has at most 3 words": It has 4 words.\n'
        "  changed: 4 words to 3\n"
        '           "is now." to "was."\n'
        "  passed:  all that it has to\n"
        "  | So it was.\n\n"
    )


def test_a_failed_row_is_shown_with_its_error():
    run = Watched(show_rows=True)
    error = {"stage": "propose", "kind": "timeout", "message": "no answer"}
    run.progress(record("failed", instruction=None, attempts=[], error=error))
    assert "failed: s1\n  propose: timeout: no answer\n" in run.to.getvalue()


def test_it_writes_to_stderr_and_leaves_stdout_alone(capsys):
    with Progress(tick_s=NEVER).begin(lambda: replace(SEEN, paid=1)):
        print("a result")
    out, err = capsys.readouterr()
    assert out == "a result\n" and err.count("\n") == 1


def test_it_needs_no_rich_where_there_is_no_terminal():
    import subprocess

    code = (
        "import sys; from refloom.runs.progress import Progress; p = Progress(); "
        "print([m for m in sys.modules if m.split('.')[0] == 'rich'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
