"""What calls cost, and caps that no call may pass."""

from __future__ import annotations

import asyncio
import json
import random
import tomllib
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.generate import Generated
from nodes.llm import Call
from nodes.state import Usage
from refloom.errors import BudgetSpent, InputError
from refloom.runs.cost import (
    TOKENS_PER_BYTE,
    TOKENS_PER_CALL,
    Budget,
    Price,
    Prices,
    Reservation,
    check_priced,
)
from refloom.runs.rate_limit import Limiter

TIERED = Price(1.0, 2.0, 0.5, 1.25, Price(0.5, 1.0))
PRICES = Prices({"m": Price(1.0, 2.0, 0.5), "dear": Price(10.0, 20.0)})


def usage(prompt: int, completion: int = 0, cached: int = 0) -> Usage:
    return {
        "calls": 1,
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "completion_tokens": completion,
    }


def call(
    completion: int = 100, *, text: str = "", order: tuple[int, ...] = (), **more: object
) -> Call:
    given = {
        "stage": "generate",
        "messages": ({"role": "user", "content": text},),
        "answer": None,
        "model": "m",
        "judge": False,
        "seed": 0,
        "temperature": 0.0,
        "max_tokens": completion,
        "order": order,
    }
    return Call(**{**given, **more})


def tokens_only(most: int, **more: object) -> Budget:
    return Budget(max_cost=None, max_tokens=most, prices=PRICES, **more)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def admits(budget: Budget, wanted: Call) -> bool:
    """Whether a call is let on at once; it stays in flight if so."""
    return budget.reserve(wanted) is not None


class Waiting:
    """A call that waits in a limiter, and is in flight from then on until it is told its bill."""

    def __init__(self, limiter: Limiter, wanted: Call) -> None:
        self.limiter = limiter
        self.reservation: Reservation | None = None
        self.ended: asyncio.Future[Usage | None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._go(wanted))

    async def _go(self, wanted: Call) -> None:
        async with self.limiter.acquire(wanted) as permit:
            self.reservation = permit.reservation
            billed = await self.ended
            if billed is not None:
                self.limiter.budget.settle(permit.reservation, billed)

    @property
    def in_flight(self) -> bool:
        return self.reservation is not None and not self.task.done()


def limiter_of(budget: Budget) -> Limiter:
    """A limiter that has an answer already, so that only the budget bounds it."""
    limiter = Limiter(1000)
    limiter.budget = budget
    limiter.for_model("m", False).responsive = True
    limiter.for_model("dear", False).responsive = True
    return limiter


def assert_nothing_reserved(budget: Budget, max_tokens: int) -> None:
    """A call for all that is not spent is let on, and then no other."""
    rest = max_tokens - budget.spent_tokens
    assert admits(budget, call(rest - TOKENS_PER_CALL))
    assert not admits(budget, call(0))


def lines(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prices.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- prices ------------------------------------------------------------------------------------


def test_the_bundled_table_knows_list_prices_and_dated_names():
    prices = Prices.load(None)
    assert prices.get("gpt-4o-mini") == Price(0.15, 0.60, 0.075)
    assert prices.get("gpt-4o-mini-2024-07-18") == prices.get("gpt-4o-mini")
    assert prices.get("gpt-4o-2024-08-06") == prices.get("gpt-4o")


def test_a_dated_name_with_a_price_of_its_own_keeps_it():
    assert Prices.load(None).get("gpt-4o-2024-05-13") == Price(5.0, 15.0)


@pytest.mark.parametrize(
    "model",
    ["gpt-4o-mini-0718", "gpt-4o-mini-2024-07-18-x", "gpt-4o-minimal", "GPT-4o", "", "x/gpt-4o"],
)
def test_an_unknown_name_has_no_price_and_no_cost(model):
    prices = Prices.load(None)
    assert prices.get(model) is None
    assert prices.cost(model, usage(5)) is None


@pytest.mark.parametrize("model", ["local", "models/some.gguf"])
def test_an_embedded_model_costs_nothing(model):
    assert Prices.load(None).cost(model, usage(10**6, 10**6)) == 0


def test_cached_tokens_are_part_of_the_prompt_and_have_their_own_price():
    assert PRICES.cost("m", usage(1_000_000, 0, 400_000)) == pytest.approx(0.8)
    assert PRICES.cost("m", usage(0, 1_000_000)) == pytest.approx(2.0)


def test_without_a_cached_price_cached_tokens_cost_as_much_as_others():
    assert PRICES.cost("dear", usage(1_000_000, 0, 400_000)) == pytest.approx(10.0)


def test_written_and_cached_tokens_are_each_a_part_of_the_prompt():
    price = Price(1.0, 2.0, 0.5, 1.25)
    spent = {**usage(1_000_000, 0, 400_000), "cache_write_tokens": 200_000}
    assert price.cost(spent) == pytest.approx(0.4 + 0.2 + 0.25)
    assert Price(1.0, 2.0).cost(spent) == pytest.approx(1.0)
    # An endpoint may count what it wrote beside the prompt.
    spent = {**usage(100, 0, 60), "cache_write_tokens": 1_000_000}
    assert price.cost(spent) == pytest.approx((60 * 0.5 + 40 * 1.25) / 1e6)
    assert price.max_cost(1_000_000, 0) == pytest.approx(1.25)


def test_thinking_is_part_of_the_completion_and_not_billed_twice():
    thought = {**usage(0, 1_000_000), "reasoning_tokens": 900_000}
    assert PRICES.cost("m", thought) == pytest.approx(2.0)


def test_a_tier_without_prices_of_its_own_costs_the_full_price():
    prices = Prices({"m": TIERED, "plain": Price(1.0, 2.0)})
    for tier in (None, "default", "priority", "flex"):
        halved = 0.5 if tier == "flex" else 1.0
        assert prices.cost("m", usage(1_000_000), tier) == pytest.approx(halved)
        assert prices.cost("plain", usage(1_000_000), tier) == pytest.approx(1.0)


def test_a_price_comes_back_from_what_a_journal_keeps():
    assert Price.from_dict(json.loads(json.dumps(asdict(TIERED)))) == TIERED
    # As versions before the tiers wrote it.
    assert Price.from_dict({"input": 1.0, "output": 2.0, "cached_input": None}) == Price(1.0, 2.0)


def test_a_model_of_its_maker_has_the_price_of_its_name_and_others_have_none():
    prices = Prices.load(None)
    haiku = prices.get("claude-haiku-4-5")
    assert haiku is not None
    assert haiku.cache_write == pytest.approx(1.25 * haiku.input)
    assert prices.get("anthropic:claude-haiku-4-5-20251001") == haiku
    assert prices.get("google_genai:gemini-2.5-flash") == prices.get("gemini-2.5-flash")
    assert prices.get("groq:openai/gpt-oss-120b") is not None
    for unknown in ("openai/gpt-oss-120b", "gpt-oss-120b", "bedrock_converse:claude-haiku-4-5"):
        assert prices.get(unknown) is None


def test_bundled_flex_prices_are_below_the_full_ones():
    table = tomllib.loads(files("refloom.runs").joinpath("prices.toml").read_text("utf-8"))
    prices = Prices.load(None)
    tiered = [price for name in table if (price := prices.get(name)) and price.flex]
    assert len(tiered) > 20
    for price in tiered:
        assert price.flex.input <= 0.51 * price.input
        assert price.flex.output <= 0.51 * price.output


def test_a_file_of_the_users_may_have_prices_of_a_tier(tmp_path):
    text = '["m"]\ninput = 1\noutput = 2\ncached_input = 0.5\ncache_write = 1.25\n'
    text += "flex = { input = 0.5, output = 1 }\n"
    assert Prices.load(lines(tmp_path, text)).get("m") == TIERED


def test_a_file_of_the_users_goes_over_the_bundled_one(tmp_path):
    text = '"gpt-4o-mini" = { input = 1, output = 2 }\n["my/model:1"]\ninput = 0\noutput = 0.5\n'
    prices = Prices.load(lines(tmp_path, text))
    assert prices.get("gpt-4o-mini-2024-07-18") == Price(1.0, 2.0)
    assert prices.get("my/model:1") == Price(0.0, 0.5)
    assert prices.get("gpt-4o") == Price(2.5, 10.0, 1.25)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[x", "is not TOML"),
        ("x = 3", "'x' has no prices but 3"),
        ('["x"]\ninput = 1', "'x' has no 'output'"),
        ('["x"]\ninput = -1\noutput = 1', "input = -1; give dollars per million"),
        ('["x"]\ninput = nan\noutput = 1', "input = nan"),
        ('["x"]\ninput = inf\noutput = 1', "input = inf"),
        (f'["x"]\ninput = 1{"0" * 400}\noutput = 1', "input = 1000"),
        (f'["x"]\ninput = 1{"0" * 9000}\noutput = 1', "is not TOML"),
        ('["x"]\ninput = true\noutput = 1', "input = True"),
        ('["x"]\ninput = "1"\noutput = 1', "input = '1'"),
        ('["x"]\ninput = 1\noutput = 1\ncached = 1', "unknown key 'cached'; known are input"),
        ('["x"]\ninput = 1\noutput = 1\nflex = 1', "'x', flex has no prices but 1"),
        ('["x"]\ninput = 1\noutput = 1\nflex = { input = 1 }', "'x', flex has no 'output'"),
        (
            '["x"]\ninput = 1\noutput = 1\nflex = { input = 1, output = 1, flex = 1 }',
            "'x', flex has an unknown key 'flex'",
        ),
        ("[gpt-4.1]\ninput = 1\noutput = 1", 'needs quotes: ["gpt-4.1"]'),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong_in_it(tmp_path, text, said):
    path = lines(tmp_path, text)
    with pytest.raises(InputError) as refused:
        Prices.load(path)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        Prices.load(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        Prices.load(tmp_path)
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        Prices.load(tmp_path / "x.toml")


def test_a_cap_in_dollars_needs_the_price_of_every_model():
    check_priced(PRICES, ["m", "unknown"], None)
    check_priced(PRICES, ["m", "local"], 1.0)
    with pytest.raises(InputError, match="--prices FILE") as refused:
        check_priced(PRICES, ["m", "a.b", "a.b", "c"], 1.0)
    said = str(refused.value)
    assert "'a.b', 'c'" in said
    line = said[said.index('"a.b"') : said.index('  "c"')]
    assert set(tomllib.loads(line)["a.b"]) == {"input", "cached_input", "output"}


# --- budget ------------------------------------------------------------------------------------


async def test_a_call_is_reserved_at_its_most_and_settled_at_its_bill():
    budget = Budget(max_cost=1.0, max_tokens=10_000, prices=PRICES)
    reservation = budget.reserve(call(100, room=2))
    assert reservation.tokens == TOKENS_PER_CALL + 200
    assert reservation.pico == (TOKENS_PER_CALL + 400) * 10**6
    budget.settle(reservation, usage(20, 30, 10))
    assert budget.spent_tokens == 50
    assert budget.spent_cost == pytest.approx((10 * 1.0 + 10 * 0.5 + 30 * 2.0) / 1e6)
    assert_nothing_reserved(budget, 10_000)


async def test_what_is_reserved_in_dollars_is_free_again_when_it_is_settled():
    # Exactly what two calls of 264 micro-dollars may cost.
    budget = Budget(max_cost=528 / 1e6, max_tokens=None, prices=PRICES)
    first = budget.reserve(call(100))
    assert admits(budget, call(100))
    assert not admits(budget, call(0))
    budget.settle(first, None)
    assert admits(budget, call(100))
    assert not admits(budget, call(0))


async def test_a_failed_call_is_billed_nothing():
    budget = tokens_only(1000)
    budget.settle(budget.reserve(call()), None)
    assert budget.spent_tokens == 0
    assert_nothing_reserved(budget, 1000)


async def test_a_reservation_is_settled_only_once():
    budget = tokens_only(1000)
    kept = budget.reserve(call())
    budget.settle(kept, None)
    with pytest.raises(ValueError, match="once"):
        budget.settle(kept, usage(1))


@pytest.mark.parametrize(("tiers", "share"), [(("flex",), 0.5), (("flex", "default"), 1.0)])
async def test_a_call_is_reserved_at_the_dearest_tier_allowed(tiers, share):
    budget = Budget(max_cost=1.0, max_tokens=None, prices=Prices({"m": TIERED}), tiers=tiers)
    full = TIERED if "default" in tiers else TIERED.flex
    kept = budget.reserve(call(1000))
    assert kept.pico == round(full.max_cost(TOKENS_PER_CALL, 1000) * 1e12)
    budget.settle(kept, usage(0, 1000), "flex")
    assert budget.spent_cost == pytest.approx(1000 * 1.0 / 1e6)


async def test_a_tier_that_answers_unasked_is_billed_and_reserved_from_then_on():
    prices = Prices({"m": TIERED})
    budget = Budget(max_cost=1.0, max_tokens=None, prices=prices, tiers=("flex",))
    kept = budget.reserve(call(1000))
    budget.settle(kept, usage(0, 1000), None)
    assert budget.spent_cost == pytest.approx(1000 * 2.0 / 1e6)
    assert (budget.reserve(call(1000))).pico > 1.9 * kept.pico


async def test_the_prompt_and_the_schema_are_counted_in_bytes():
    budget = tokens_only(10_000)
    plain = budget.reserve(call(0, text="é" * 50))
    assert plain.tokens == TOKENS_PER_CALL + 100 * TOKENS_PER_BYTE
    shaped = budget.reserve(call(0, text="é" * 50, answer=Generated))
    assert shaped.tokens > plain.tokens + 20


async def test_the_tokens_of_a_byte_are_learned_upwards_by_model():
    budget = tokens_only(100_000)
    for prompt in (TOKENS_PER_CALL + 100, 20):
        kept = budget.reserve(call(0, text="x" * 100))
        budget.settle(kept, usage(prompt))
    assert (budget.reserve(call(0, text="x" * 100))).tokens == TOKENS_PER_CALL + 100
    other = budget.reserve(call(0, text="x" * 100, model="dear"))
    assert other.tokens == TOKENS_PER_CALL + 100 * TOKENS_PER_BYTE


async def test_a_body_of_the_users_that_asks_for_more_is_reserved_for():
    budget = tokens_only(10_000)
    kept = budget.reserve(call(100, extra_body={"max_completion_tokens": 3000}))
    assert kept.tokens == TOKENS_PER_CALL + 3000


async def test_without_a_cap_nothing_is_reserved_and_everything_is_counted():
    budget = Budget(max_cost=None, max_tokens=None, prices=PRICES, cost=1.5, tokens=7)
    for _ in range(3):
        reservation = budget.reserve(call(10**9))
        assert (reservation.tokens, reservation.pico) == (0, 0)
        budget.settle(reservation, usage(100, 100))
    assert budget.spent_tokens == 607
    assert budget.spent_cost == pytest.approx(1.5 + 3 * 300 / 1e6)


async def test_what_a_model_without_a_price_has_cost_is_not_known():
    budget = Budget(max_cost=None, max_tokens=10**6, prices=PRICES)
    budget.settle(budget.reserve(call(model="unknown")), usage(100))
    assert budget.spent_cost is None
    assert budget.spent_tokens == 100


async def test_a_cap_in_dollars_refuses_a_model_without_a_price():
    budget = Budget(max_cost=1.0, max_tokens=None, prices=PRICES)
    with pytest.raises(InputError, match="unknown"):
        budget.reserve(call(model="unknown"))


async def test_a_call_that_can_never_fit_is_refused_with_what_to_do():
    budget = tokens_only(1000, tokens=900)
    with pytest.raises(BudgetSpent) as spent:
        budget.reserve(call(100))
    assert str(spent.value) == (
        "--max-tokens is 1,000: 900 are used and the next call (generate, m) may use 164; "
        "raise --max-tokens and run again to resume"
    )
    budget = Budget(max_cost=0.05, max_tokens=None, prices=PRICES, cost=0.0499)
    with pytest.raises(BudgetSpent) as spent:
        budget.reserve(call(100))
    assert str(spent.value) == (
        "--max-cost is $0.05: $0.0499 is spent and the next call (generate, m) may cost "
        "$0.000264; raise --max-cost and run again to resume"
    )


async def test_what_does_not_fit_beside_others_waits_for_them_lower_orders_first():
    budget, entered = tokens_only(1000), []
    limiter = limiter_of(budget)
    first = Waiting(limiter, call(1000 - TOKENS_PER_CALL))
    await turns()

    async def one(order):
        async with limiter.acquire(call(500, order=order)) as permit:
            entered.append(order)
            await turns()
            budget.settle(permit.reservation, usage(1))

    orders = [(3,), (1, 2), (2,), (1,), (1, 1)]
    tasks = [asyncio.create_task(one(order)) for order in orders]
    await turns()
    assert entered == []
    first.ended.set_result(usage(10))
    await asyncio.gather(first.task, *tasks)
    assert entered == sorted(orders)
    assert budget.spent_tokens == 15
    assert_nothing_reserved(budget, 1000)
    limiter.close()


async def test_once_spent_it_is_spent_for_all_who_wait_and_all_who_come():
    budget = tokens_only(1000)
    limiter = limiter_of(budget)
    first = Waiting(limiter, call(900))
    await turns()
    waiting = [Waiting(limiter, call(500, order=(i,))).task for i in range(3)]
    await turns()
    assert not any(task.done() for task in waiting)
    first.ended.set_result(usage(64, 900))
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in found] == [BudgetSpent] * 3
    with pytest.raises(BudgetSpent, match="964 are used"):
        budget.reserve(call(0))
    limiter.close()


async def test_a_hopeless_call_ends_the_run_when_it_is_next_and_not_before():
    budget = tokens_only(1000)
    limiter = limiter_of(budget)
    first = Waiting(limiter, call(900))
    await turns()
    fitting = Waiting(limiter, call(100, order=(0,)))
    hopeless = Waiting(limiter, call(5000, order=(1,)))
    await turns()
    assert not fitting.in_flight
    assert not hopeless.task.done()
    first.ended.set_result(usage(1))
    with pytest.raises(BudgetSpent):
        await hopeless.task
    assert fitting.in_flight
    fitting.ended.set_result(usage(1))
    await fitting.task
    assert budget.spent_tokens == 2
    with pytest.raises(BudgetSpent):
        budget.reserve(call(0))
    limiter.close()


async def test_a_big_call_that_is_given_up_lets_those_behind_it_on():
    budget = tokens_only(1000)
    limiter = limiter_of(budget)
    assert budget.reserve(call(500)) is not None
    big = Waiting(limiter, call(900, order=(0,)))
    small = Waiting(limiter, call(100, order=(1,)))
    await turns()
    assert not small.in_flight
    big.task.cancel()
    await turns()
    assert small.in_flight
    assert big.task.cancelled()
    small.ended.set_result(None)
    await small.task
    limiter.close()


async def test_one_given_up_in_the_moment_it_is_let_on_gives_its_part_back():
    budget = tokens_only(1000)
    limiter = limiter_of(budget)
    first = Waiting(limiter, call(900))
    await turns()
    lost = Waiting(limiter, call(900))
    await turns()
    first.ended.set_result(None)
    await asyncio.sleep(0)
    # It is let on, and does not know it yet.
    assert limiter.in_flight == 1
    assert not lost.in_flight
    lost.task.cancel()
    await turns()
    assert lost.task.cancelled()
    assert limiter.in_flight == 0
    assert_nothing_reserved(budget, 1000)
    limiter.close()


async def test_a_call_is_reserved_in_the_size_that_it_has_when_it_is_let_on():
    budget = tokens_only(1000)
    limiter, size = limiter_of(budget), 100
    first = Waiting(limiter, call(900))
    await turns()

    async def grown() -> int:
        fit = lambda wanted: replace(wanted, wire_tokens=size)  # noqa: E731
        async with limiter.acquire(call(100), fit=fit) as permit:
            assert permit.reservation.tokens == permit.call.most_tokens + TOKENS_PER_CALL
            return permit.call.most_tokens

    waiting = asyncio.create_task(grown())
    await turns()
    size = 300
    first.ended.set_result(usage(1))
    assert await waiting == 300
    limiter.close()


async def test_a_call_that_waits_for_room_takes_no_place_in_flight():
    budget = tokens_only(1000)
    limiter = limiter_of(budget)
    first = Waiting(limiter, call(900))
    await turns()
    waiting = [Waiting(limiter, call(900)) for _ in range(3)]
    await turns()
    assert limiter.in_flight == 1
    for one in (first, *waiting):
        one.ended.set_result(None)
    await asyncio.gather(first.task, *(one.task for one in waiting))
    assert_nothing_reserved(budget, 1000)
    limiter.close()


class Played:
    """Calls on their way through a limiter and its budget, ended and given up as a draw says."""

    def __init__(self, max_pico: int | None, max_tokens: int | None, draw: random.Random) -> None:
        max_cost = None if max_pico is None else max_pico / 1e6
        self.max_cost, self.max_tokens, self.draw = max_cost, max_tokens, draw
        self.budget = Budget(max_cost=max_cost, max_tokens=max_tokens, prices=PRICES)
        self.limiter = limiter_of(self.budget)
        self.calls: list[Waiting] = []

    def under_way(self) -> list[Reservation]:
        return [c.reservation for c in self.calls if c.in_flight and not c.reservation.settled]

    def settle_one(self) -> None:
        open_ = [one for one in self.calls if one.in_flight and not one.ended.done()]
        if open_:
            kept = self.draw.choice(open_)
            kept.ended.set_result(self.bill(kept.reservation))

    def bill(self, kept: Reservation) -> Usage | None:
        """Nothing, or anything up to what was set aside, which a test's prompt never passes."""
        if self.draw.random() < 0.2:
            return None
        most = max(kept.tokens - TOKENS_PER_CALL, 0)
        prompt, completion = self.draw.randint(0, TOKENS_PER_CALL), self.draw.randint(0, most)
        if self.draw.random() < 0.3:
            prompt, completion = TOKENS_PER_CALL, most
        return usage(prompt, completion, self.draw.randint(0, prompt))

    def give_one_up(self) -> None:
        open_ = [one.task for one in self.calls if not one.task.done()]
        if open_:
            self.draw.choice(open_).cancel()

    def check(self) -> None:
        in_flight = self.under_way()
        if self.max_tokens is not None:
            tokens = self.budget.spent_tokens + sum(one.tokens for one in in_flight)
            assert tokens <= self.max_tokens
        if self.max_cost is not None:
            cost = self.budget.spent_cost + sum(one.pico for one in in_flight) / 1e12
            assert cost <= self.max_cost + 1e-11

    def check_that_nothing_is_reserved(self) -> None:
        """A call for nearly all that is left is let on, if there may be any more, and no other."""
        rests = []
        if self.max_tokens is not None:
            rests.append(self.max_tokens - self.budget.spent_tokens - TOKENS_PER_CALL)
        if self.max_cost is not None:
            left = round((self.max_cost - self.budget.spent_cost) * 1e6, 3) - TOKENS_PER_CALL
            # An answer's token costs two micro-dollars; one is left over for what rounding takes.
            rests.append(int(left // 2) - 1)
        if not rests or min(rests) < 0:
            return
        try:
            assert admits(self.budget, call(min(rests)))
            assert not admits(self.budget, call(0))
        except BudgetSpent:
            # One of them was refused, perhaps in the moment it was given up.
            assert any(one.task.cancelled() or one.task.exception() for one in self.calls)

    async def play(self, calls: list[tuple[int, int, str]]) -> None:
        for completion, order, model in calls:
            self.calls.append(Waiting(self.limiter, call(completion, order=(order,), model=model)))
            for act in self.draw.choices((self.settle_one, self.give_one_up, None), k=2):
                await asyncio.sleep(0) if act is None else act()
                self.check()
        while any(not one.task.done() for one in self.calls):
            await turns()
            self.check()
            left = [one for one in self.calls if not one.task.done()]
            assert not left or any(one.in_flight for one in left), "they wait for nothing"
            self.settle_one()
        self.check()
        assert self.limiter.in_flight == 0
        self.limiter.close()


@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 5), st.sampled_from(["m", "dear"])),
        max_size=25,
    ),
    st.one_of(st.none(), st.integers(0, 20_000)),
    st.one_of(st.none(), st.integers(0, 3000)),
    st.integers(0, 2**32),
)
def test_no_order_of_things_passes_a_cap_or_leaves_anyone_waiting(calls, micro, most, seed):
    async def main() -> None:
        played = Played(micro, most, random.Random(seed))
        await played.play(calls)
        played.check_that_nothing_is_reserved()
        tasks = [one.task for one in played.calls]
        refused = [t for t in tasks if not t.cancelled() and t.exception()]
        assert all(type(t.exception()) is BudgetSpent for t in refused)
        if micro is None and most is None:
            assert not refused

    asyncio.run(main())
