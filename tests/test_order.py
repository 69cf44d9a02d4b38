"""The order of work: whatever the timing, the same slots are admitted, begun and counted."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.novelty import NoveltyFilter
from nodes.context import Context
from nodes.propose import drop, proposal_of
from refloom.runs.scheduler import EarlierWork, SlotScheduler, read_turns

PROPOSALS = [
    "why do tides rise twice a day",
    "why do tides rise twice each day",
    "how do ships keep off a lee shore",
    "how do ships keep clear of a lee shore",
    "which stars does a navigator need",
    "what makes fog over cold water",
    "name the parts of an anchor",
    "name all the parts of an anchor",
]


class Turns:
    """A journal of turns alone."""

    def __init__(self) -> None:
        # What was admitted, its verdicts, slots, and how many were duplicates and screened.
        self.turns: dict[tuple[int, int], tuple[str, str, int, int, int]] = {}
        self.order: list[tuple[int, int]] = []
        self.finished: list[tuple[int, int, int]] = []

    def put_soon(self, sql: str, *values) -> None:
        assert "turns" in sql
        self.order.append(values[:2])
        self.turns[values[:2]] = values[2:7]

    def read(self, sql: str, *values) -> list:
        round_, first, last = values
        if "samples" in sql:
            return [
                (p, slot, "accepted")
                for r, p, slot in self.finished
                if r == round_ and first <= p <= last
            ]
        return [
            (place[1], admitted, verdicts, slots, screened)
            for place, (admitted, verdicts, slots, _, screened) in self.turns.items()
            if place[0] == round_ and first <= place[1] <= last
        ]


async def take_turn(order, seed, texts, context) -> list[str]:
    """A turn that admits what is new; gives its texts."""
    near = await order.compare(seed, texts, context)
    if near is None:
        await order.end_turn(seed, [], [])
        return []
    pairs = list(zip(texts, near, strict=True))
    admitted = [{"text": text, "verdicts": []} for text, hit in pairs if hit is None]
    dropped = [drop(proposal_of(text), "duplicate", "too near", hit) for text, hit in pairs if hit]
    await order.end_turn(seed, admitted, dropped)
    return [one["text"] for one in admitted]


@dataclass
class Seen:
    """What became of a run: the turns, what was begun in which order, and the counts."""

    order: SlotScheduler
    journal: Turns
    turns: list[int] = field(default_factory=list)
    begun: list[tuple[int, int, int]] = field(default_factory=list)
    refused: set[tuple[int, int, int]] = field(default_factory=set)
    in_flight: int = 0
    most_wanted: int = 0

    @property
    def counts(self) -> dict[str, int]:
        names = ("candidates", "accepted", "rejected", "failed")
        duplicates = sum(turn[3] for turn in self.journal.turns.values())
        return {n: getattr(self.order, n) for n in names} | {"duplicates": duplicates}

    @property
    def admitted(self) -> dict[tuple[int, int], list[str]]:
        return {place: json.loads(row[0]) for place, row in self.journal.turns.items()}


@dataclass(frozen=True)
class Plan:
    """What each seed proposes (None: it is lost before its turn) and how each slot would end.

    With `seeds`, the proposals are those of so many seeds in one round after another.
    """

    proposals: list[list[str] | None]
    ends: dict[tuple[int, int], str]
    target: int | None = None
    max_candidates: int | None = None
    seeds: int | None = None

    def place(self, number: int) -> tuple[int, int]:
        return divmod(number, self.seeds or len(self.proposals))

    def status(self, slot: tuple[int, int, int]) -> str:
        number = slot[0] * (self.seeds or 0) + slot[1]
        if self.proposals[number] is None:
            return "failed"
        return self.ends.get((number, slot[2]), "accepted")


def new_order(plan: Plan, journal: Turns, context: Context) -> SlotScheduler:
    return SlotScheduler(
        journal,
        context,
        seeds=plan.seeds or len(plan.proposals),
        target=plan.target,
        max_candidates=plan.max_candidates,
    )


async def run(plan: Plan, timing: random.Random, context: Context | None = None) -> Seen:
    """All seeds at once, each step of each after a random number of turns of the loop."""
    context = context or Context(model="m")
    journal = Turns()
    order = new_order(plan, journal, context)
    seen = Seen(order, journal)

    async def a_while() -> None:
        for _ in range(timing.choice([0, 0, 1, 2, 7, 30])):
            await asyncio.sleep(0)

    async def one_slot(slot) -> None:
        await a_while()
        if not await order.start(slot):
            seen.refused.add(slot)
            return
        seen.begun.append(slot)
        seen.in_flight += 1
        seen.most_wanted = max(seen.most_wanted, order.accepted + seen.in_flight)
        await a_while()
        seen.in_flight -= 1
        await order.count_finished({"status": plan.status(slot)})

    async def one_seed(number: int) -> None:
        place = plan.place(number)
        seed = {"instruction": "x", "round": place[0], "position": place[1]}
        await a_while()
        texts = plan.proposals[number]
        if texts is None:
            await one_slot((*place, 0))
            return
        near = await order.compare(seed, texts, context)
        seen.turns.append(number)
        await a_while()
        # A worker that is replaced asks again, and is told the same.
        assert await order.compare(seed, texts, context) == near
        seen.turns.append(number)
        kept = len(await take_turn(order, seed, texts, context))
        await asyncio.gather(*(one_slot((*place, slot)) for slot in range(kept)))

    async with asyncio.timeout(20):
        await asyncio.gather(*(one_seed(p) for p in range(len(plan.proposals))))
    return seen


def by_hand(plan: Plan, threshold: float = 0.7) -> dict:
    """The same, one thing after another."""
    known = NoveltyFilter(threshold)
    admitted, queue, duplicates = {}, [], 0
    late: set[tuple[int, int, int]] = set()
    barren, new_in_round, offered = False, 0, 0
    for number, texts in enumerate(plan.proposals):
        place = plan.place(number)
        kept = []
        full = plan.max_candidates is not None and offered >= plan.max_candidates
        for text in [] if barren or full else texts or []:
            if known.collision(text) is None:
                known.add(text, "")
                kept.append(text)
            else:
                duplicates += 1
        admitted[place] = kept
        slots = [(*place, slot) for slot in range(1 if texts is None else len(kept))]
        late.update(slots) if barren else queue.extend(slots)
        new_in_round += len(slots)
        offered += 0 if barren and texts is None else len(slots)
        if plan.place(number + 1)[0] > place[0]:
            barren, new_in_round = barren or not new_in_round, 0
    counts = {"candidates": 0, "accepted": 0, "rejected": 0, "failed": 0, "duplicates": duplicates}
    begun = []
    for slot in queue:
        if plan.target is not None and counts["accepted"] >= plan.target:
            break
        if plan.max_candidates is not None and counts["candidates"] >= plan.max_candidates:
            break
        begun.append(slot)
        counts["candidates"] += 1
        counts[plan.status(slot)] += 1
    return {
        "begun": begun,
        "refused": late | set(queue) - set(begun),
        "counts": counts,
        "admitted": admitted,
    }


proposals_of = st.lists(
    st.one_of(st.none(), st.lists(st.sampled_from(PROPOSALS), max_size=4)), min_size=1, max_size=8
)
ends_of = st.dictionaries(
    st.tuples(st.integers(0, 7), st.integers(0, 3)),
    st.sampled_from(["accepted", "rejected", "failed"]),
    max_size=16,
)
plans = st.builds(
    Plan,
    proposals_of,
    ends_of,
    target=st.one_of(st.none(), st.integers(1, 8)),
    max_candidates=st.one_of(st.none(), st.integers(1, 12)),
)


@given(plans, st.integers(0, 2**32))
def test_whatever_the_timing_it_is_as_if_one_came_after_the_other(plan, timing):
    seen = asyncio.run(run(plan, random.Random(timing)))
    expected = by_hand(plan)
    assert seen.begun == expected["begun"]
    assert seen.refused == expected["refused"]
    assert seen.counts == expected["counts"]
    assert seen.admitted == expected["admitted"]
    assert seen.journal.order == sorted(seen.journal.order)
    if plan.target is not None:
        assert seen.most_wanted <= plan.target


@given(
    st.lists(st.one_of(st.none(), st.lists(st.sampled_from(PROPOSALS), max_size=3)), min_size=1),
    ends_of,
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(0, 2**32),
)
def test_rounds_end_with_the_first_that_has_no_news_whatever_the_timing(
    proposals, ends, seeds, target, timing
):
    plan = Plan(proposals[: 8 * seeds], ends, target=target, seeds=seeds)
    seen = asyncio.run(run(plan, random.Random(timing)))
    expected = by_hand(plan)
    assert seen.begun == expected["begun"]
    assert seen.refused == expected["refused"]
    assert seen.counts == expected["counts"]
    assert seen.admitted == expected["admitted"]


async def test_what_was_admitted_before_a_round_without_news_is_still_begun():
    context = Context(model="m")
    order = new_order(Plan([None], {}, target=1), Turns(), context)

    async def turn(round_, *texts):
        seed = {"instruction": "", "round": round_, "position": 0}
        return await take_turn(order, seed, texts, context)

    assert await turn(0, "a b c", "d e f") == ["a b c", "d e f"]
    assert await order.start((0, 0, 0))
    assert await turn(1, "a b c") == []
    await order.count_finished({"status": "rejected"})
    async with asyncio.timeout(5):
        assert await order.start((0, 0, 1))


@given(proposals_of, st.integers(0, 2**32))
def test_turns_do_not_overlap_and_come_in_order(proposals, timing):
    seen = asyncio.run(run(Plan(proposals, {}), random.Random(timing)))
    with_turn = [p for p, texts in enumerate(proposals) if texts is not None]
    assert seen.turns == [p for p in with_turn for _ in range(2)]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=8),
    st.lists(st.sampled_from(["accepted", "rejected", "failed"]), min_size=32, max_size=32),
    st.integers(1, 10),
    st.integers(0, 2**32),
)
def test_a_target_is_met_exactly_by_the_shortest_prefix_that_holds_it(sizes, ends, target, timing):
    texts = iter([f"w{i} x{i} y{i}" for i in range(40)])
    proposals = [[next(texts) for _ in range(n)] for n in sizes]
    queue = [(0, p, s) for p, n in enumerate(sizes) for s in range(n)]
    outcome = dict(zip(queue, ends, strict=False))
    plan = Plan(proposals, {(p, s): e for (_, p, s), e in outcome.items()}, target=target)
    seen = asyncio.run(run(plan, random.Random(timing)))
    reached = [i for i, _ in enumerate(queue) if accepted(queue[: i + 1], outcome) == target]
    shortest = reached[0] + 1 if reached else len(queue)
    assert seen.begun == queue[:shortest]
    assert seen.order.accepted == min(target, accepted(queue, outcome))


def accepted(slots, outcome) -> int:
    return sum(outcome[slot] == "accepted" for slot in slots)


@pytest.mark.parametrize("timing", range(5))
async def test_a_seed_lost_before_its_turn_does_not_block_the_others(timing):
    plan = Plan([None, ["a b c"], None, None, ["d e f"], None], {})
    seen = await run(plan, random.Random(timing))
    assert seen.begun == [(0, p, 0) for p in range(6)]
    assert seen.counts["failed"] == 4
    assert seen.counts["accepted"] == 2


async def test_a_seed_that_fails_inside_its_turn_leaves_one_failed_slot_and_lets_others_in():
    context, journal = Context(model="m"), Turns()
    order = new_order(Plan([None] * 3, {}), journal, context)

    async def good(position):
        seed = {"instruction": "", "round": 0, "position": position}
        assert await take_turn(order, seed, [f"w{position}"], context)
        assert await order.start((0, position, 0))
        await order.count_finished({"status": "accepted"})

    async def bad(position):
        await order.compare({"instruction": "", "round": 0, "position": position}, [], context)
        assert await order.start((0, position, 0))
        await order.count_finished({"status": "failed"})

    async with asyncio.timeout(5):
        await asyncio.gather(good(2), bad(1), good(0))
    assert (order.accepted, order.failed, order.candidates) == (2, 1, 3)
    assert journal.order == [(0, 0), (0, 1), (0, 2)]
    assert journal.turns[0, 1] == ("[]", "[]", 1, 0, 0)


async def test_a_turn_waits_for_all_earlier_ones_and_for_no_later_one():
    context = Context(model="m")
    order = new_order(Plan([None] * 3, {}), Turns(), context)
    entered = []

    async def one(position, gate):
        seed = {"instruction": "", "round": 0, "position": position}
        await order.compare(seed, [], context)
        entered.append(position)
        await gate.wait()
        await order.end_turn(seed, [], [])

    gates = [asyncio.Event() for _ in range(3)]
    tasks = [asyncio.create_task(one(p, gates[p])) for p in (2, 1, 0)]
    for expected in ([0], [0, 1], [0, 1, 2]):
        for _ in range(10):
            await asyncio.sleep(0)
        assert entered == expected
        gates[len(expected) - 1].set()
    await asyncio.gather(*tasks)


async def test_later_rounds_follow_earlier_ones():
    context, journal = Context(model="m"), Turns()
    order = new_order(Plan([None] * 2, {}), journal, context)

    async def one(round_, position):
        seed = {"instruction": "", "round": round_, "position": position}
        await take_turn(order, seed, [f"r{round_} p{position}"], context)
        assert await order.start((round_, position, 0))
        await order.count_finished({"status": "accepted"})

    places = [(r, p) for r in range(3) for p in range(2)]
    async with asyncio.timeout(5):
        await asyncio.gather(*(one(*place) for place in reversed(places)))
    assert journal.order == places


@pytest.mark.parametrize(
    ("proposals", "duplicates"),
    [
        ([["a b c", "a b c"]], 1),
        ([["a b c"], ["A, b: c!"]], 1),
        ([["a b c"], ["c b a"]], 0),
        ([[PROPOSALS[0], PROPOSALS[1]], [PROPOSALS[1], PROPOSALS[2]]], 2),
        ([[], []], 0),
    ],
)
async def test_duplicates_are_counted_and_take_no_slot(proposals, duplicates):
    seen = await run(Plan(proposals, {}), random.Random(0))
    total = sum(map(len, proposals))
    assert seen.counts["duplicates"] == duplicates
    assert seen.counts["candidates"] == total - duplicates
    assert sum(row[3] for row in seen.journal.turns.values()) == duplicates


async def test_an_instruction_is_new_against_all_admitted_before_whatever_became_of_them():
    for end in ("accepted", "rejected", "failed"):
        seen = await run(Plan([["a b c"], ["a b c"]], {(0, 0): end}), random.Random(1))
        assert seen.admitted == {(0, 0): ["a b c"], (0, 1): []}


async def test_seeds_that_are_answered_as_they_are_are_duplicates_only_if_the_same():
    context = Context(model="m", answer_seeds=True)
    plan = Plan([["Why tides?"], ["why tides"], ["Why tides?"], ["Why tides? "]], {})
    seen = await run(plan, random.Random(2), context)
    assert seen.begun == [(0, 0, 0), (0, 1, 0), (0, 3, 0)]
    assert seen.counts["duplicates"] == 1


async def test_the_novelty_threshold_is_that_of_the_settings():
    context = Context(model="m", novelty_threshold=1.0)
    seen = await run(Plan([[PROPOSALS[0], PROPOSALS[1]]], {}), random.Random(2), context)
    assert seen.counts["duplicates"] == 0


@pytest.mark.parametrize("most", [1, 3, 5, 9])
async def test_no_more_candidates_are_begun_than_asked_for(most):
    plan = Plan([[f"w{p} x{p}"] for p in range(6)], {}, max_candidates=most)
    seen = await run(plan, random.Random(most))
    assert seen.begun == [(0, p, 0) for p in range(min(most, 6))]
    assert seen.order.exhausted() == (most <= 6)


async def test_candidates_that_fail_count_towards_the_most():
    ends = {(p, 0): "failed" for p in range(6)}
    plan = Plan([[f"w{p} x{p}"] for p in range(6)], ends, target=2, max_candidates=4)
    seen = await run(plan, random.Random(0))
    assert seen.counts == {
        "candidates": 4,
        "accepted": 0,
        "rejected": 0,
        "failed": 4,
        "duplicates": 0,
    }


async def propose_again(order, seed, texts: list[str] | None, context: Context) -> int:
    """Repeat the seed's turn, or take one; gives the number of its slots."""
    if texts is None:
        return 1
    repeated = await order.repeat_turn(seed)
    if repeated is not None:
        return len(repeated)
    return len(await take_turn(order, seed, texts, context))


def earlier_work(plan: Plan, journal: Turns, done: list[tuple[int, int, int]]) -> EarlierWork:
    ends = [plan.status(slot) for slot in done]
    return EarlierWork(
        [
            ((*place, number), text)
            for place, turn in journal.turns.items()
            for number, text in enumerate(json.loads(turn[0]))
        ],
        edited=[],
        pending=0,
        **{status: ends.count(status) for status in ("accepted", "rejected", "failed")},
    )


@given(plans, st.integers(0, 2**32), st.data())
def test_a_run_that_is_taken_up_again_ends_as_it_would_have(plan, timing, data):
    """Some seeds of the first session are finished; they are replayed, the others made anew."""

    async def resumed() -> Seen:
        first = await run(plan, random.Random(timing))
        begun = set(first.begun)
        cut = data.draw(st.integers(0, len(plan.proposals)))
        journal = Turns()
        journal.turns = {k: v for k, v in first.journal.turns.items() if k[1] < cut}
        context = Context(model="m")
        order = new_order(plan, journal, context)
        done = journal.finished = [slot for slot in begun if slot[:2] in journal.turns]
        order.resumed = True
        order.count_earlier(earlier_work(plan, journal, done))
        seen = Seen(order, journal)
        sleep = random.Random(timing + 1)

        async def one_seed(position) -> None:
            seed = {"instruction": "", "round": 0, "position": position}
            kept = {
                s: plan.status((0, position, s))
                for _, p, s in begun
                if p == position and (0, position) in journal.turns
            }
            for _ in range(sleep.randint(0, 9)):
                await asyncio.sleep(0)
            turn = read_turns(journal, 0, position, position).get((0, position))
            if turn is not None and order.is_finished((0, position), turn, kept):
                await order.replay(seed, turn)
                seen.begun += [(0, position, s) for s in kept]
                return
            slots = await propose_again(order, seed, plan.proposals[position], context)
            await asyncio.gather(*(one_slot((0, position, s), kept) for s in range(slots)))
            await order.end_seed(seed)

        async def one_slot(slot, kept) -> None:
            if slot[2] in kept:
                seen.begun.append(slot)
            elif await order.start(slot):
                seen.begun.append(slot)
                for _ in range(sleep.randint(0, 9)):
                    await asyncio.sleep(0)
                await order.count_finished({"status": plan.status(slot)})

        async with asyncio.timeout(20):
            await asyncio.gather(*(one_seed(p) for p in range(len(plan.proposals))))
        return seen

    seen = asyncio.run(resumed())
    expected = by_hand(plan)
    assert sorted(seen.begun) == expected["begun"]
    assert seen.counts == expected["counts"]
    assert seen.admitted == expected["admitted"]
