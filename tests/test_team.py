"""Runs with workers: the same rows as alone, whoever is lost on the way."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from fakes import ScriptedModel, answer, letters, prompt_of, verdicts, words
from ray import cloudpickle
from runs import (
    SEEDS,
    MixedModel,
    build_run,
    call_content,
    references,
    rows,
    stable_rows,
    summary_of,
)

from memory.references import IndexUnusable
from memory.weights import WeightsUnavailable
from nodes.inputs import BadInput
from nodes.llm import CallFailed, ProviderStopped
from nodes.llm.protocol import Transient
from prompts import PromptTooLong
from refloom.errors import BudgetSpent, CheckUnusable, InputError, JournalError, WorkersLost
from refloom.runs.client import Interrupted
from refloom.runs.ray.rpc import Batch, RpcChannel, WorkerDied, sendable
from refloom.runs.ray.worker import Worker
from refloom.runs.run import Run


def crossed(value: Any) -> Any:
    """What is left of a value on its way to another process, as Ray carries it."""
    return cloudpickle.loads(cloudpickle.dumps(value))


class Inside:
    """A worker in this process, and the way to it, which can be cut."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.cut = asyncio.Event()
        self.cut_by: Exception = WorkerDied("it was killed")
        self.delivered = 0

    def kill(self, by: Exception | None = None) -> None:
        self.cut_by = by or self.cut_by
        self.cut.set()

    async def deliver(self, batch: Batch) -> None:
        if self.cut.is_set():
            raise self.cut_by
        self.delivered += 1
        self.worker.channel.receive(crossed(batch))

    async def collect(self) -> Batch:
        batch = asyncio.ensure_future(self.worker.channel.batch())
        end = asyncio.ensure_future(self.cut.wait())
        await asyncio.wait([batch, end], return_when=asyncio.FIRST_COMPLETED)
        if self.cut.is_set():
            batch.cancel()
            # What a process does ends with it.
            await self.worker.close()
            raise self.cut_by
        end.cancel()
        return crossed(batch.result())


# Nobody is there: workers answer by a scripted model.
ADDRESS = "http://model.invalid/v1"


class Office:
    """Hires workers that send by a scripted model, each over a watched one of its own."""

    def __init__(self, complete: Any) -> None:
        self.complete = complete
        self.hired: list[Inside] = []
        self.on_call: Callable[[Inside, int], None] = lambda far, n: None
        self.sent = self.answered = 0
        self.run: Run | None = None

    def __call__(self, orders: Any, contamination: Any) -> Any:
        said = crossed(orders)

        async def hire() -> Inside:
            async def send(call):
                self.sent += 1
                self.on_call(far, self.sent)
                reply = await self.complete(call)
                self.answered += 1
                return reply

            far = Inside(Worker(said, contamination, complete=send, embed=letters))
            self.hired.append(far)
            return far

        return hire


@pytest.fixture
def office():
    return Office


async def together(out, office: Office, *args: Any, **more: Any) -> dict[str, Any]:
    run = build_run(
        out,
        office.complete,
        *args,
        **{"engine": "ray", "workers": 2, "concurrency": 4, "base_url": ADDRESS, **more},
    )
    office.run, run.tools.worker_starter = run, office
    async with asyncio.timeout(60):
        await run.run()
    return summary_of(out)


async def alone(out, complete: Any, *args: Any, **more: Any) -> dict[str, Any]:
    async with asyncio.timeout(60):
        await build_run(out, complete, *args, **{"base_url": ADDRESS, **more}).run()
    return summary_of(out)


@pytest.mark.parametrize("workers", [1, 5])
async def test_workers_make_the_rows_that_one_process_makes(tmp_path, office, workers):
    few = {"given": references(8), "references_per_seed": 2, "reference_quota": 1.0, "per_seed": 3}
    one = await alone(tmp_path / "one", MixedModel(), SEEDS, **few)
    many = await together(tmp_path / "many", office(MixedModel()), SEEDS, workers=workers, **few)
    assert stable_rows(tmp_path / "many") == stable_rows(tmp_path / "one")
    for name in ("counts", "criteria", "usage"):
        assert many[name] == one[name]
    assert many["calls"]["paid"] == one["calls"]["paid"]


async def test_workers_hold_rows_to_a_persons_criteria_and_tell_of_their_trial_once(
    tmp_path, office
):
    path = tmp_path / "criteria.jsonl"
    path.write_text('{"text": "is even", "id": "even", "tags": ["law"]}\n{"text": "is told"}\n')
    tagged = [{**r, "tags": ["law"]} if r["id"] in "r1 r2 r3" else r for r in references(8)]
    tagged[0]["criteria"] = ["names who says so"]
    more = {"given": tagged, "references_per_seed": 2, "criteria": path, "try_criteria": True}

    def critique(call):
        return verdicts(prompt_of(call), lambda id_: "fail" if id_ == "even" else "pass")

    def model():
        return ScriptedModel(critique=critique)

    one = await alone(tmp_path / "one", model(), SEEDS, **more)
    notices: list[str] = []
    staff = office(model())
    staff.on_call = lambda far, n: far.kill() if n in (30, 60) else None
    run = build_run(
        tmp_path / "many", staff.complete, SEEDS, engine="ray", workers=2, concurrency=8,
        base_url=ADDRESS, **more,
    )  # fmt: skip
    run.on_notice, run.tools.worker_starter = notices.append, staff
    async with asyncio.timeout(60):
        await run.run()
    rows_of_one = stable_rows(tmp_path / "one")
    assert stable_rows(tmp_path / "many") == rows_of_one
    assert any(c["text"] == "names who says so" for row in rows_of_one for c in row["criteria"])
    assert summary_of(tmp_path / "many")["calls"]["paid"] == one["calls"]["paid"]
    assert notices == ['criterion "is even": fails on 3 of 3 of your references']


async def test_workers_ask_with_every_character_that_one_process_asks_with(tmp_path, office):
    """Half a surrogate pair, which UTF-8 cannot hold: models and users write it."""
    asked = []
    for name, make in (("one", alone), ("many", together)):
        model = ScriptedModel(generate=lambda call: "Half of a pair: \ud83d, and no more.")
        await make(tmp_path / name, model if make is alone else office(model), SEEDS[:2])
        asked.append(sorted(map(call_content, model.calls)))
    assert any("\\ud83d" in content for content in asked[0])
    assert asked[1] == asked[0]


async def test_every_worker_gets_seeds(tmp_path, office):
    staff = office(ScriptedModel())
    await together(tmp_path, staff, SEEDS, workers=3)
    assert len(staff.hired) == 3
    assert all(far.delivered > 1 for far in staff.hired)


@pytest.mark.parametrize("target", [3, 16])
async def test_a_target_is_reached_exactly(tmp_path, office, target):
    said = await together(tmp_path, office(MixedModel()), SEEDS, target=target, workers=3)
    assert said["counts"]["accepted"] == target
    await alone(tmp_path / "one", MixedModel(), SEEDS, target=target)
    assert stable_rows(tmp_path) == stable_rows(tmp_path / "one")


@pytest.mark.parametrize("at", [1, 9, 22, 31])
async def test_a_worker_that_is_lost_costs_its_calls_in_flight_only(tmp_path, office, at):
    few = {"given": references(8), "references_per_seed": 2, "reference_quota": 1.0, "per_seed": 2}
    calm = office(MixedModel())
    one = await together(tmp_path / "one", calm, SEEDS, **few)
    staff = office(MixedModel())
    staff.on_call = lambda far, n: far.kill() if n == at else None
    many = await together(tmp_path / "many", staff, SEEDS, **few)
    assert stable_rows(tmp_path / "many") == stable_rows(tmp_path / "one")
    assert many["counts"] == one["counts"]
    assert many["calls"]["paid"] == one["calls"]["paid"]
    assert len(staff.hired) == 3
    # Calls that fail for good are not kept, and cost nothing when they are made again.
    assert calm.answered <= staff.answered <= calm.answered + 4


async def test_a_worker_to_which_nothing_can_be_carried_is_replaced(tmp_path, office):
    staff = office(MixedModel())
    staff.on_call = lambda far, n: far.kill(TypeError("cannot pickle it")) if n == 9 else None
    await together(tmp_path / "many", staff, SEEDS)
    await alone(tmp_path / "one", MixedModel(), SEEDS)
    assert stable_rows(tmp_path / "many") == stable_rows(tmp_path / "one")
    assert len(staff.hired) == 3


async def test_workers_that_are_lost_again_and_again_are_replaced(tmp_path, office):
    few = {"given": references(8), "per_seed": 2}
    await alone(tmp_path / "one", MixedModel(), SEEDS, **few)
    staff = office(MixedModel())
    staff.on_call = lambda far, n: far.kill() if n % 9 == 0 and n < 60 else None
    await together(tmp_path / "many", staff, SEEDS, **few)
    assert stable_rows(tmp_path / "many") == stable_rows(tmp_path / "one")
    assert len(staff.hired) > 4


async def test_when_every_worker_is_lost_the_run_stops_and_can_be_gone_on_with(tmp_path, office):
    staff = office(MixedModel())
    staff.on_call = lambda far, n: far.kill()
    with pytest.raises((WorkersLost, WorkerDied), match=r"lost|killed"):
        await together(tmp_path / "many", staff, SEEDS)
    assert summary_of(tmp_path / "many")["status"] == "stopped"
    await together(tmp_path / "many", office(MixedModel()), SEEDS)
    await alone(tmp_path / "one", MixedModel(), SEEDS)
    assert stable_rows(tmp_path / "many") == stable_rows(tmp_path / "one")


@pytest.mark.parametrize("at", [4, 17])
async def test_a_run_is_gone_on_with_by_another_engine_and_number_of_workers(tmp_path, office, at):
    few = {"given": references(6), "references_per_seed": 2, "per_seed": 2}
    one = await alone(tmp_path / "one", MixedModel(), SEEDS, **few)
    staff = office(MixedModel())
    staff.on_call = lambda far, n: staff.run.stop() if n == at else None
    first = await together(tmp_path / "many", staff, SEEDS, workers=3, **few)
    assert first["status"] == "interrupted"
    last = await alone(tmp_path / "many", MixedModel(), SEEDS, **few)
    assert stable_rows(tmp_path / "many") == stable_rows(tmp_path / "one")
    assert last["calls"]["paid"] == one["calls"]["paid"]


async def test_a_budget_is_one_for_all_workers(tmp_path, office):
    cap = {"max_tokens": 4000, "workers": 4, "concurrency": 8}
    staff = office(ScriptedModel())
    with pytest.raises(Exception, match="--max-tokens"):
        await together(tmp_path, staff, SEEDS, **cap)
    used = summary_of(tmp_path)["usage"]
    assert used["prompt_tokens"] + used["completion_tokens"] <= 4000


async def test_places_are_shared_by_all_workers(tmp_path, office):
    at_once, most = 0, 0

    async def slow(call):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        return await ScriptedModel()(call)

    await together(tmp_path, office(slow), SEEDS, workers=4, concurrency=3)
    assert most == 3


async def test_a_provider_that_refuses_stops_the_run(tmp_path, office):
    async def refuse(call):
        raise ProviderStopped("no key")

    with pytest.raises(ProviderStopped, match="no key"):
        await together(tmp_path, office(refuse), SEEDS)


async def test_a_reference_that_two_workers_want_is_learned_from_once(tmp_path, office):
    model = ScriptedModel()
    await together(tmp_path, office(model), SEEDS, given=references(2), workers=4)
    asked = Counter(model.asked("extract"))
    assert set(asked.values()) == {1}


async def test_a_seed_that_cannot_be_taken_costs_itself(tmp_path, office):
    def propose(call):
        if "seed 3" in prompt_of(call):
            return CallFailed("propose", "bad_request", "no")
        return answer("propose", prompt_of(call), call.seed)

    seeds = [*SEEDS[:3], "seed 3 " + words("x", 5), *SEEDS[4:]]
    said = await together(tmp_path, office(ScriptedModel(propose=propose)), seeds)
    assert said["counts"]["failed"] == 1
    assert rows(tmp_path, "failed")[0]["error"]["kind"] == "bad_request"


# --- the line ----------------------------------------------------------------------------------


async def joined(
    answer_here: Any, answer_there: Any
) -> tuple[RpcChannel, RpcChannel, list[asyncio.Task]]:
    here, there = RpcChannel(answer_here), RpcChannel(answer_there)

    async def carry(one: RpcChannel, other: RpcChannel) -> None:
        while True:
            other.receive(crossed(await one.batch()))

    return here, there, [asyncio.create_task(carry(*p)) for p in ((here, there), (there, here))]


async def nothing(what: str, values: list[Any]) -> None:
    return None


async def test_what_is_asked_is_answered_whoever_is_quicker():
    async def wait(what, values):
        await asyncio.sleep(values[0])
        return [what, values[0]]

    here, _, tasks = await joined(nothing, wait)
    said = await asyncio.gather(here.ask("a", 0.05), here.ask("b", 0.0), here.ask("c", 0.02))
    assert said == [["a", 0.05], ["b", 0.0], ["c", 0.02]]
    for task in tasks:
        task.cancel()


class Crooked(ValueError):
    """Cannot be built again from its message."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name} is {number}")


class Locked(ValueError):
    """Holds what no other process can have."""

    def __init__(self) -> None:
        super().__init__("it is locked")
        self.lock = threading.Lock()


ERRORS = [
    CallFailed("generate", "filtered", "no", {"calls": 1}),
    KeyError("seed"),
    Crooked("n", 3),
    Locked(),
    *(
        kind("check the key")
        for kind in (
            *(ProviderStopped, BudgetSpent, Interrupted, BadInput, IndexUnusable),
            *(WeightsUnavailable, JournalError, CheckUnusable, InputError, PromptTooLong),
        )
    ),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
async def test_what_goes_wrong_there_goes_wrong_here(error):
    async def fail(what, values):
        raise error

    here, _, tasks = await joined(nothing, fail)
    with pytest.raises(Exception) as raised:
        async with asyncio.timeout(10):
            await here.ask("x")
    whole = not isinstance(error, Crooked | Locked)
    assert (type(raised.value) is type(error)) is whole
    assert type(raised.value).__name__ == type(error).__name__
    assert str(raised.value) == str(error)
    for task in tasks:
        task.cancel()


def test_a_passing_fault_keeps_what_the_endpoint_asked_for():
    fault = Transient("critique", "rate_limit", "slow down", {"calls": 2})
    fault.retry_after = 2.5
    again = crossed(sendable(fault))
    assert isinstance(again, Transient)
    assert (again.stage, again.kind, again.message) == ("critique", "rate_limit", "slow down")
    assert (again.retry_after, again.usage) == (2.5, {"calls": 2})


async def test_who_asks_a_line_that_is_cut_is_told():
    here, _, tasks = await joined(nothing, nothing)
    for task in tasks:
        task.cancel()
    asked = asyncio.create_task(here.ask("x"))
    await asyncio.sleep(0)
    here.fail_pending(WorkerDied("gone"))
    with pytest.raises(WorkerDied, match="gone"):
        await asked
    with pytest.raises(WorkerDied, match="gone"):
        await here.ask("y")


async def test_who_gives_up_asking_is_not_answered_any_more():
    begun, ended = asyncio.Event(), []

    async def long(what, values):
        begun.set()
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            ended.append(what)
            raise

    here, _, tasks = await joined(nothing, long)
    asked = asyncio.create_task(here.ask("x"))
    await begun.wait()
    asked.cancel()
    async with asyncio.timeout(5):
        while not ended:
            await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()


async def test_a_call_is_the_same_after_its_way_to_another_process(tmp_path):
    model = ScriptedModel()
    await alone(tmp_path, model, SEEDS[:2])
    for call in model.calls:
        assert crossed(call) == call


async def test_a_cluster_with_less_room_makes_the_rows_with_the_workers_it_has(tmp_path, office):
    staff = office(ScriptedModel())

    def crowded(orders, contamination):
        hire = staff(orders, contamination)

        async def one() -> Inside:
            if staff.hired:
                await asyncio.sleep(3600)
            return await hire()

        return one

    ray = {"engine": "ray", "workers": 3, "concurrency": 4, "base_url": ADDRESS}
    run = build_run(tmp_path, staff.complete, SEEDS, **ray)
    run.tools.worker_starter = crowded
    async with asyncio.timeout(30):
        await run.run()
    assert summary_of(tmp_path)["counts"]["accepted"] == len(SEEDS)
    assert len(staff.hired) == 1


@pytest.mark.parametrize(
    "given",
    [
        {"feedback": "sample"},
        {"feedback": "swapped", "paired": True},
        {"pipeline": "refed", "per_seed": 4, "novelty_threshold": 1.0},
        {"feedback": "generic", "judge_votes": 3},
    ],
    ids=str,
)
async def test_workers_make_every_arm(tmp_path, office, given):
    one = await alone(tmp_path / "one", MixedModel(), SEEDS, **given)
    many = await together(tmp_path / "many", office(MixedModel()), SEEDS, **given)
    assert stable_rows(tmp_path / "many") == stable_rows(tmp_path / "one")
    assert many["calls"]["by_stage"] == one["calls"]["by_stage"]


@pytest.mark.parametrize("at", [0, 3, 9])
async def test_what_failed_is_tried_again_by_workers_as_by_one_process(tmp_path, office, at):
    """A seed has lost its proposals, drafts have failed; a worker is killed on the way."""

    def broken() -> MixedModel:
        model = MixedModel()
        propose = model.stages["propose"]
        lost = CallFailed("propose", "timeout", "no")
        model.stages["propose"] = lambda call: lost if call.seed % 3 == 0 else propose(call)
        model.stages["generate"] = lambda call: (
            "" if call.seed % 2 else CallFailed("generate", "server", "no")
        )
        return model

    few = {"per_seed": 3, "references_per_seed": 1, "max_failure_rate": 1.0}
    await alone(tmp_path / "one", broken(), SEEDS, **few)
    assert len(rows(tmp_path / "one", "failed")) > 8
    shutil.copytree(tmp_path / "one", tmp_path / "many")
    one = await alone(tmp_path / "one", MixedModel(), SEEDS, **few)
    staff = office(MixedModel())
    staff.on_call = lambda far, number: far.kill() if number == at else None
    many = await together(tmp_path / "many", staff, SEEDS, **few)
    assert one["counts"]["accepted"] > 4
    assert stable_rows(tmp_path / "many") == stable_rows(tmp_path / "one")
    assert many["counts"] == one["counts"]


CHECK = """
import os

def careful(response, instruction, reference):
    with open(os.environ["NOTES"], "a") as file:
        file.write("x")
    return "It has an odd number of letters." if len(response) % 2 else None
"""


async def test_checks_are_made_by_the_run_and_once(tmp_path, office, monkeypatch):
    (tmp_path / "checks_of_a_team.py").write_text(CHECK, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    notes, file = tmp_path / "notes", tmp_path / "mine.jsonl"
    monkeypatch.setenv("NOTES", str(notes))
    criterion = {"text": "has an even length", "check": "checks_of_a_team:careful"}
    file.write_text(json.dumps(criterion), encoding="utf-8")
    more = {"criteria": file, "base_url": ADDRESS}
    await build_run(tmp_path / "one", ScriptedModel(), SEEDS, **more).run()
    alone = len(notes.read_text(encoding="utf-8"))
    workers = office(ScriptedModel())
    workers.on_call = lambda far, n: far.kill() if n == 9 else None
    await together(tmp_path / "two", workers, SEEDS, **more)
    assert stable_rows(tmp_path / "two") == stable_rows(tmp_path / "one")
    assert len(notes.read_text(encoding="utf-8")) == 2 * alone
