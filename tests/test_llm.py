from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any, get_args

import pytest
from fakes import USAGE, ScriptedModel, prompt_of
from hypothesis import given
from hypothesis import strategies as st

from nodes.context import Context
from nodes.llm import (
    MAX_ASKS,
    MAX_GROWTHS,
    Answer,
    AskResult,
    Call,
    CallFailed,
    CallOrigin,
    PlainText,
    ProviderStopped,
    Reply,
    Stage,
    ask,
    ask_text,
    draw_seed,
    make_call,
)
from nodes.state import Usage

STAGES = get_args(Stage)


class Drafted(Answer):
    """An answer of one field."""

    response: str


GOOD = '{"response": "so"}'
CONTEXT = Context(model="writer", judge_model="judge")
MESSAGES = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})
CALL = make_call("generate", MESSAGES, Drafted, CONTEXT, CallOrigin("a", "0/0", (0, 1, 2)))


def times(n: int) -> Usage:
    return {
        "calls": n,
        "prompt_tokens": 10 * n,
        "cached_tokens": 4 * n,
        "completion_tokens": 5 * n,
        "reasoning_tokens": 2 * n,
    }


def reply(text: str | None, finish: str = "stop", refusal: str | None = None) -> Reply:
    return Reply(text, finish, dict(USAGE), refusal)


def saying(*replies: Any) -> ScriptedModel:
    """A model that says one thing after the other, and the last of them for ever."""
    left = list(replies)
    return ScriptedModel(generate=lambda call: left.pop(0) if len(left) > 1 else left[0])


async def failing(model: ScriptedModel, call: Call = CALL) -> CallFailed:
    with pytest.raises(CallFailed) as raised:
        await ask(model, call, Drafted)
    return raised.value


async def test_a_good_answer_is_asked_for_once() -> None:
    model = saying(GOOD)
    asked = await ask(model, CALL, Drafted)
    assert asked == AskResult(Drafted(response="so"), times(1))
    assert model.calls == [CALL]


async def test_a_malformed_answer_is_asked_again_with_what_is_wrong_with_it() -> None:
    model = saying('{"reply": "so"}', GOOD)
    asked = await ask(model, CALL, Drafted)
    assert asked == AskResult(Drafted(response="so"), times(2))
    first, second = model.calls
    assert second.messages[:2] == first.messages
    assert second.messages[2] == {"role": "assistant", "content": '{"reply": "so"}'}
    assert second.messages[3]["role"] == "user"
    assert "response: Field required" in second.messages[3]["content"]
    assert len(second.messages) == 4


async def test_each_ask_names_only_what_was_wrong_with_the_one_before() -> None:
    model = saying("first try", "{second try", GOOD)
    await ask(model, CALL, Drafted)
    assert [len(call.messages) for call in model.calls] == [2, 4, 4]
    last = prompt_of(model.calls[2])
    assert "{second try" in last
    assert "not valid JSON" in last
    assert "first try" not in last


async def test_a_long_malformed_answer_is_fed_back_shortened() -> None:
    model = saying("x" * 100_000, GOOD)
    await ask(model, CALL, Drafted)
    assert len(prompt_of(model.calls[1])) < 10_000


async def test_repeated_asks_carry_other_seeds_and_are_alike_otherwise() -> None:
    last = replace(CALL, seed=2**31 - 1)
    model = saying(reply(""), reply(""), GOOD)
    await ask(model, last, Drafted)
    seeds = [call.seed for call in model.calls]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert all(replace(call, seed=last.seed) == last for call in model.calls)


async def test_a_cut_answer_is_asked_again_with_more_room_and_the_same_seed() -> None:
    model = saying(reply(GOOD, "length"), reply(None, "length"), reply(GOOD, "length"), GOOD)
    asked = await ask(model, CALL, Drafted)
    assert asked == AskResult(Drafted(response="so"), times(4))
    assert [call.room for call in model.calls] == [1, 2, 4, 8]
    assert [replace(call, room=1) for call in model.calls] == [CALL] * 4


async def test_an_answer_that_is_cut_with_eight_times_the_room_fails() -> None:
    model = saying(reply('{"response": "s', "length"))
    failed = await failing(model)
    assert failed.kind == "cut"
    assert failed.usage == times(1 + MAX_GROWTHS) == times(4)
    assert len(model.calls) == 4


async def test_the_room_a_cut_answer_won_stays() -> None:
    model = saying(reply(GOOD, "length"), "no JSON", GOOD)
    await ask(model, CALL, Drafted)
    assert [call.room for call in model.calls] == [1, 2, 2]


async def test_a_cut_after_a_malformed_answer_still_gets_its_room() -> None:
    model = saying("no JSON", reply(GOOD, "length"), GOOD)
    await ask(model, CALL, Drafted)
    assert [call.room for call in model.calls] == [1, 1, 2]


async def test_a_generation_that_the_endpoint_threw_away_is_the_next_draw() -> None:
    thrown_away = CallFailed("generate", "bad_generation", "not the JSON that was asked for")
    model = saying(thrown_away, GOOD)
    asked = await ask(model, CALL, Drafted)
    assert asked.answer == Drafted(response="so")
    assert [call.seed - CALL.seed for call in model.calls] == [0, 1]
    assert [call.unreadable for call in model.calls] == [0, 1]
    assert (await failing(saying(thrown_away))).kind == "malformed"


async def test_thoughts_in_a_field_of_their_own_are_read_only_if_they_fit_the_shape() -> None:
    thought = replace(reply(None), reasoning='Hm. {"response": "so"}')
    assert (await ask(saying(thought), CALL, Drafted)).answer == Drafted(response="so")
    failed = await failing(saying(replace(reply(None), reasoning="Hm.")))
    assert failed.kind == "empty"
    # Plain text has no shape that would tell an answer from thoughts.
    with pytest.raises(CallFailed) as caught:
        await ask_text(saying(thought), TEXT_CALL)
    assert caught.value.kind == "empty"


TEXT_CALL = replace(CALL, answer=None, text=True)


async def test_plain_text_is_what_is_left_without_thoughts_and_plan() -> None:
    model = saying("<think>Hm.</think>\n<plan>\nMore.\n</plan>\n\nAs `{x}` is \\frac.")
    asked = await ask_text(model, TEXT_CALL, planned=True)
    assert asked.answer == PlainText("As `{x}` is \\frac.", "More.")
    assert (TEXT_CALL.kind, CALL.kind) == ("text", "structured")


async def test_plain_text_that_is_all_thoughts_is_the_next_draw_and_not_fed_back() -> None:
    model = saying("<think>Hm.</think>", "So.")
    assert (await ask_text(model, TEXT_CALL)).answer == PlainText("So.")
    assert [call.messages for call in model.calls] == [TEXT_CALL.messages] * 2
    assert model.calls[1].seed == TEXT_CALL.seed + 1


FAULTS = {
    "malformed": (reply("I would rather not."), "malformed", "no JSON object"),
    "wrong shape": (reply('{"response": 1}'), "malformed", "response: "),
    "empty": (reply(""), "empty", "empty"),
    "blank": (reply(" \n\t "), "empty", "empty"),
    "nothing": (reply(None), "empty", "empty"),
    "refused": (reply(None, refusal="I cannot help."), "refused", "I cannot help."),
    "refused in words": (reply(GOOD, refusal="No."), "refused", "No."),
    "filtered": (reply(None, "content_filter"), "filtered", "content filter"),
    "filtered half-way": (reply('{"resp', "content_filter"), "filtered", "content filter"),
    "filtered and refused": (
        reply(None, "content_filter", refusal="No."),
        "filtered",
        "content filter",
    ),
}


@pytest.mark.parametrize(("said", "kind", "message"), FAULTS.values(), ids=FAULTS)
async def test_an_answer_is_asked_for_three_times_at_most(
    said: Reply, kind: str, message: str
) -> None:
    model = saying(said)
    failed = await failing(model)
    assert (failed.stage, failed.kind) == ("generate", kind)
    assert message in failed.message
    assert str(failed) == f"generate: {kind}: {failed.message}"
    assert failed.usage == times(MAX_ASKS) == times(3)
    assert len(model.calls) == 3


@pytest.mark.parametrize("first", [said for said, _, _ in FAULTS.values()], ids=FAULTS)
async def test_one_bad_answer_costs_one_more_ask(first: Reply) -> None:
    asked = await ask(saying(first, GOOD), CALL, Drafted)
    assert asked == AskResult(Drafted(response="so"), times(2))


async def test_the_last_fault_names_the_failure() -> None:
    failed = await failing(saying("no JSON", reply(""), reply(None, refusal="No.")))
    assert failed.kind == "refused"


async def test_a_call_that_fails_is_not_asked_again_and_keeps_what_was_used() -> None:
    lost = CallFailed("generate", "server", "down", times(1))
    model = saying("no JSON", lost)
    failed = await failing(model)
    assert failed is lost
    assert failed.usage == times(2)
    assert len(model.calls) == 2


async def test_a_stopped_provider_stops_at_once() -> None:
    model = saying(ProviderStopped("no key"))
    with pytest.raises(ProviderStopped, match="no key"):
        await ask(model, CALL, Drafted)
    assert len(model.calls) == 1


def test_a_failed_call_has_used_nothing_unless_said() -> None:
    assert CallFailed("generate", "server", "down").usage == times(0)


# seeds and calls


def test_a_seed_is_what_it_always_was() -> None:
    # Journals are found again by it: a change makes every run pay anew.
    digest = sha256(b"7\x1fa\x1f0/2\x1fgenerate\x1f3").hexdigest()
    first_31_bits = int(digest, 16) >> (256 - 31)
    assert draw_seed(7, "a", "0/2", "generate", 3) == first_31_bits
    assert draw_seed(0, "a", "0/0", "generate", 0) == 645793937


NAME = st.text("ab0/", max_size=5)
DRAWS = st.tuples(st.integers(0, 9), NAME, NAME, st.sampled_from(STAGES), st.integers(0, 99))


@given(DRAWS, DRAWS)
def test_the_same_draw_has_the_same_seed_and_another_draw_another(
    left: tuple[Any, ...], right: tuple[Any, ...]
) -> None:
    assert 0 <= draw_seed(*left) < 2**31
    assert (draw_seed(*left) == draw_seed(*right)) == (left == right)


def test_seeds_use_all_of_their_31_bits() -> None:
    seeds = [draw_seed(0, "a", str(i), "generate", 0) for i in range(2000)]
    assert max(seeds).bit_length() == 31
    assert len(set(seeds)) == 2000
    assert sum(seed & 1 for seed in seeds) in range(900, 1100)


def test_a_seed_can_be_had_for_text_that_is_no_unicode() -> None:
    assert 0 <= draw_seed(0, "\ud800", "", "generate", 0) < 2**31


CHANGES: dict[str, Callable[[], Call]] = {
    "random seed": lambda: called(context=CONTEXT.model_copy(update={"random_seed": 1})),
    "seed": lambda: called(place=CallOrigin("b", "0/0")),
    "slot": lambda: called(place=CallOrigin("a", "0/1")),
    "stage": lambda: called(stage="refine"),
    "draw": lambda: called(draw=1),
}


def called(
    stage: Any = "generate",
    context: Context = CONTEXT,
    place: CallOrigin = CallOrigin("a", "0/0"),  # noqa: B008 - frozen
    draw: int = 0,
    answer: type[Answer] | None = Drafted,
) -> Call:
    return make_call(stage, MESSAGES, answer, context, place, draw)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_a_draw_is_made_of_changes_its_seed(change: Callable[[], Call]) -> None:
    assert change().seed != called().seed


def test_neither_turn_nor_words_change_the_seed_of_a_call() -> None:
    assert called(place=CallOrigin("a", "0/0", (3, 4))).seed == called().seed
    other = make_call("generate", [], None, CONTEXT, CallOrigin("a", "0/0"))
    assert other.seed == called().seed


@pytest.mark.parametrize("stage", STAGES)
def test_the_judge_is_asked_to_judge_and_the_writer_to_write(stage: str) -> None:
    call = called(stage=stage)
    judging = stage in ("screen", "critique", "feedback", "compare")
    assert (call.judge, call.model) == ((True, "judge") if judging else (False, "writer"))
    assert call.stage == stage


def test_without_a_judge_model_the_writer_judges() -> None:
    call = called(stage="critique", context=Context(model="writer"))
    assert (call.judge, call.model) == (True, "writer")


@pytest.mark.parametrize("stage", STAGES)
def test_verdicts_are_drawn_cold_and_texts_warm(stage: str) -> None:
    temperature = called(stage=stage).temperature
    if stage in ("screen", "critique", "compare"):
        assert temperature == 0
    else:
        assert 0 < temperature <= 1


def test_a_question_of_one_token_has_room_for_one() -> None:
    assert called(answer=None).max_tokens == 1
    assert called().max_tokens > 1000


def test_a_call_keeps_its_turn_and_its_words() -> None:
    assert CALL.order == (0, 1, 2)
    assert CALL.messages == MESSAGES
    assert CALL.answer is Drafted
    assert (CALL.room, CALL.extra_body) == (1, {})


def test_an_answer_lets_unknown_keys_go_but_asks_for_none() -> None:
    assert Drafted.model_validate({"response": "a", "more": 1}) == Drafted(response="a")
    assert Drafted.model_json_schema()["additionalProperties"] is False
