"""A dry run: the calls, tokens and dollars a run may take, worked out before any call is paid.

The real graph runs on a fake model for a few of the user's own seeds and references. That shows
what each unit of work costs: learning from a reference, proposing for a seed, writing a draft,
judging an attempt, refining, a bare answer with its verdicts. Plain arithmetic says how many of
each unit the whole run has.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from statistics import fmean
from typing import Any, cast

import numpy as np

from graph.builder import build_graph
from memory.embed import Vectors
from memory.index import draw_other
from memory.references import Reference
from nodes.answer import MAX_ANSWERS
from nodes.hooks import RunHooks
from nodes.learn import MAX_CHARACTERISTICS
from nodes.llm import MAX_GROWTHS, STAGES_OF_THE_JUDGE, Call, Reply
from nodes.llm.protocol import schema_of
from nodes.own_criteria import OwnCriteria, OwnCriterion
from nodes.state import Usage, no_usage
from refloom.data.read import ReadReport
from refloom.runs.cost import Prices
from refloom.runs.text_table import text_table
from refloom.settings import Settings

CASES = ("low", "expected", "high")
TOKENS = ("calls", "prompt_tokens", "completion_tokens")
STAGES = ("extract", "propose", "screen", "generate", "critique", "refine", "answer", "feedback")
# At least so many seeds and references are tried, if there are so many.
SAMPLE = 20
# What an assumption is, for people. The first ones are `Assumptions`; the others follow from
# settings, data and the fake run.
WHY = {
    "tokens_per_byte": "about right for English, a character being a byte; other scripts differ",
    "attempts_passing": "share of attempts that pass, a guess; a run with --limit 20 shows yours",
    "characteristics": "that stay of each reference, of the three or four asked for",
    "criterion_bytes": "length of a criterion",
    "reason_bytes": "length of a verdict's reason",
    "evidence_bytes": "length of a verdict's evidence, and of a characteristic's quote",
    "verdicts_fed_back": "failed verdicts that a refinement is given",
    "phrase_bytes": "length of a skill, a field, or a step of a plan",
    "reference_instruction_bytes": "mean of the references measured",
    "reference_response_bytes": "mean of the references measured; new responses are as long",
    "seed_bytes": "mean of the seeds measured; new instructions are as long",
    "references_used": "the smaller of the references and seeds * references_per_seed",
    "calls_a_reference": "for a reference used: extraction, and the trial of its criteria on its "
    "own response and on corrupted ones, and on its instruction and spoiled forms of it",
    "calls_of_own_trials": "in all, for the criteria of --criteria FILE, on references and on "
    "corrupted responses",
    "judge_criteria": "per response, the built-in one among them",
    "calls_a_critique": "for an attempt: 1 by verdict, 1 a criterion by log-odds; as many for each "
    "juror, and more with criteria_per_call",
    "attempts": "a candidate, when attempts_passing of them pass; 1 in low, max_attempts in high",
    "accepted_share": "of candidates, by attempts_passing and max_attempts; all of them in low. "
    "With a target, a run that accepts fewer goes on to max_candidates",
    "bare_answers": "a candidate, with reasoning: an accepted one is answered until an answer "
    "passes, of which attempts_passing do; one answer in low, three in high",
    "seeds_ahead": "proposed for beyond what a target needs, at most; none in low",
    "cached_tokens": "no discount by an endpoint's prompt cache is counted",
    "asked_again": "every answer can be read; no call is repeated",
    "duplicates": "every proposed instruction is new, and none fails its criteria: one that does "
    "saves its response, and may have others proposed and screened once more",
    "reasoning_tokens": "a model that thinks before it answers bills more completion tokens",
    "room_of_a_cut_answer": "times max_tokens at most: an answer that is cut, as by thinking, is "
    "asked for again with twice the room, three times at most; a budget reserves what is asked for",
    "service_tier": "whose prices are taken, the full ones where a model has no others; in high "
    "those of the dearest tier allowed",
    "known_already": "calls that a journal or a memory would save are counted",
    "schemas_unbilled": "an answer's JSON schema is billed with its prompt",
}


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What no file tells before a run: shares, counts, and lengths in bytes of UTF-8."""

    tokens_per_byte: float = 0.25
    attempts_passing: float = 0.5
    characteristics: int = 3
    criterion_bytes: int = 70
    reason_bytes: int = 150
    evidence_bytes: int = 80
    verdicts_fed_back: int = 1
    phrase_bytes: int = 25


@dataclass(slots=True)
class StageCost:
    """Calls of a stage, and the bytes of their prompts and completions."""

    calls: float = 0
    prompt_bytes: float = 0
    completion_bytes: float = 0

    def add(self, other: StageCost, times: float = 1) -> None:
        """Add another cost, so many times."""
        self.calls += other.calls * times
        self.prompt_bytes += other.prompt_bytes * times
        self.completion_bytes += other.completion_bytes * times


# What one unit of work costs, by unit and stage.
UnitCosts = dict[str, dict[str, StageCost]]


async def estimate(
    settings: Settings,
    references: ReadReport,
    seeds: ReadReport,
    sample: Sequence[Reference],
    prices: Prices,
    *,
    seed_texts: Sequence[str] = (),
    assume: Assumptions | None = None,
    own_criteria: Sequence[OwnCriterion] = (),
) -> dict[str, Any]:
    """Estimate a run by stage: `low` if every draft passes at once, `expected`, and `high`.

    `high` takes `max_attempts` for every candidate. The graph is tried on `sample`, references of
    which there is at least one, and `seed_texts` (default: the references' instructions).
    `cost_usd` is None where a price is unknown. All of the result is plain JSON.
    """
    assume = assume or Assumptions()
    measured = spread_sample(sample)
    texts = spread_sample(seed_texts or [reference["instruction"] for reference in sample])
    own = OwnCriteria(own_criteria)
    own.choose_examples(measured)
    costs, judge_criteria = await _try_graph(settings, measured, texts, assume, own)
    facts = _facts(settings, measured, texts, costs, judge_criteria, assume)
    first = facts["attempts"] if settings.context().refines_once else 1.0
    low = {**facts, "attempts": first, "accepted_share": 1.0, "seeds_ahead": 0}
    high = dict(facts)
    if facts["attempts"] != first:
        high["attempts"] = settings.max_attempts
    if settings.reasoning:
        low["bare_answers"], high["bare_answers"] = 1.0, MAX_ANSWERS
    cases = {}
    for name, case in zip(CASES, (low, facts, high), strict=True):
        volume = _volume(settings, references.taken, seeds.taken, case)
        # In `high` no call finds room in a cheaper tier.
        tier = settings.service_tiers[-1 if name == "high" else 0]
        total = _total(settings, volume, case, costs, prices, assume, tier)
        cases[name] = volume | total
    facts["references_used"] = cases["expected"]["references_used"]
    values = {**asdict(assume), **facts}
    values |= {"room_of_a_cut_answer": 2**MAX_GROWTHS, "service_tier": settings.service_tier}
    return {
        "references": _counts(references) | {"measured": len(measured)},
        "seeds": _counts(seeds) | {"measured": len(texts)},
        # With what follows from other settings filled in.
        "settings": settings.redacted()
        | {
            "judge_model": settings.judge_names,
            "judge_method": settings.context().method,
            "concurrency": settings.max_in_flight,
            "max_candidates": settings.candidate_limit,
        },
        **cases,
        "assumptions": {k: {"value": values.get(k, 0), "why": why} for k, why in WHY.items()},
    }


def format_estimate(estimated: Mapping[str, Any]) -> str:
    """An estimate as plain text for a terminal."""
    lines = ["dry run: no call is made and nothing is written", ""]
    for name in ("references", "seeds"):
        counts = estimated[name]
        lines.append(f"{name}: {counts['taken']:,} taken, {counts['left_out']:,} left out")
    lines += ["", "settings:"]
    lines += [f"  {k} = {json.dumps(v)}" for k, v in estimated["settings"].items()]
    for name in CASES:
        case = estimated[name]
        lines += ["", f"{name}: {case['candidates']:,} candidates, {case['accepted']:,} accepted"]
        stages = [
            [
                stage,
                *(part[key] for key in TOKENS),
                "unknown" if part["cost_usd"] is None else f"${part['cost_usd']:,.4f}",
                json.dumps(part["model"]) if "model" in part else "",
            ]
            for stage, part in [*case["by_stage"].items(), ("total", case["total"])]
            if part["calls"]
        ]
        head = ("stage", "calls", "prompt", "completion", "dollars", "")
        lines += [f"  {line}" for line in text_table(head, stages).splitlines()]
    lines += ["", "assumed:"]
    for name, assumed in estimated["assumptions"].items():
        lines.append(f"  {name} = {json.dumps(assumed['value'])}: {assumed['why']}")
    return "\n".join(lines)


def spread_sample(items: Sequence[Any]) -> list[Any]:
    """`SAMPLE` to twice as many of the items, evenly spread, or all when there are fewer."""
    return list(islice(items, 0, None, max(1, len(items) // SAMPLE)))


def byte_length(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text.encode("utf-8", "replace"))


def _counts(report: ReadReport) -> dict[str, Any]:
    return {
        "taken": report.taken,
        "left_out": report.skipped_count,
        "shapes": dict(report.shapes),
    }


async def _try_graph(
    settings: Settings,
    references: Sequence[Reference],
    texts: Sequence[str],
    assume: Assumptions,
    own_criteria: OwnCriteria,
) -> tuple[UnitCosts, int]:
    """Run the graph on a fake model; the cost of each unit, and the judge's criteria a response."""
    context = settings.context()
    model = FakeModel(references, texts, assume)
    studied: set[str] = set()

    async def other_reference(
        reference: Reference, avoid: Collection[str], random_seed: int
    ) -> Reference | None:
        other = draw_other(references, reference, avoid, random_seed)
        # With too few references in the sample the reference stands in for another one.
        other = other or reference
        studied.add(other["id"])
        return other

    near: list[Reference] = []

    # As in a run: an input of the graph may not be as long as what a file may hold.
    async def search(text: str, k: int, turn: tuple[int, int] | None = None) -> list[Reference]:
        return near

    graph = build_graph(
        complete=model,
        search=search,
        embed=model.embed,
        draw_other=other_reference,
        hooks=RunHooks(interrupts=False),
        own_criteria=own_criteria,
    )
    judge_criteria: list[int] = []
    for number, text in enumerate(texts):
        near = _near(references, text, number, settings.references_per_seed)
        studied |= {r["id"] for r in (near[:1] if context.pipeline == "refed" else near)}
        state = await graph.ainvoke(cast(Any, {"seed": {"instruction": text}}), context=context)
        for record in state["samples"]:
            judged = [c for c in record["criteria"] if c["judged_by"] == "judge"]
            judge_criteria.append(len(judged))
    calls = model.calls
    units = {
        # Of the criteria in a file, which are tried once.
        "trial": 1,
        "reference": len(studied),
        "turn": len(texts),
        "draft": calls["generate"],
        "attempt": calls["generate"] + calls["refine"],
        "refinement": calls["refine"],
        "answer": calls["answer"],
    }
    costs: UnitCosts = {unit: {} for unit in units}
    for (unit, stage), spent in model.spent.items():
        mean = costs[unit][stage] = StageCost()
        mean.add(spent, 1 / units[unit])
    return costs, max(judge_criteria, default=0)


def _near(references: Sequence[Reference], text: str, number: int, k: int) -> list[Reference]:
    """The references of a seed, as retrieval would give them: first the one that is the seed."""
    start = number % len(references)
    turned = [*references[start:], *references[:start]]
    turned.sort(key=lambda reference: reference["instruction"] != text)
    return turned[:k]


class FakeModel:
    """A `Complete` whose answers have the assumed lengths; it counts calls and bytes by unit.

    References' own responses pass every criterion and corrupted ones fail. A draft fails as many
    criteria as are assumed to be fed back, and its refinement and every bare answer pass.
    """

    def __init__(
        self, references: Sequence[Reference], texts: Sequence[str], assume: Assumptions
    ) -> None:
        self._assume = assume
        self._own = {r["response"] for r in references}
        # Texts whose vectors say that they are about the same thing.
        self._on_topic = {*texts, *self._own, *(r["instruction"] for r in references)}
        self._instruction_bytes = round(fmean(map(byte_length, texts)))
        self._response_bytes = round(fmean(byte_length(r["response"]) for r in references))
        self._drafts: set[str] = set()
        self._bare: set[str] = set()
        # By model and draft: each juror fails as many.
        self._failed: Counter[tuple[str, str]] = Counter()
        self._fillers = 0
        self.calls: Counter[str] = Counter()
        self.spent: defaultdict[tuple[str, str], StageCost] = defaultdict(StageCost)

    async def __call__(self, call: Call) -> Reply:
        """Answer at once; see `nodes.llm.Complete`."""
        prompt = "\n".join(message["content"] for message in call.messages)
        prompt_bytes = sum(byte_length(message["content"]) for message in call.messages)
        if call.kind == "question":
            # One token.
            cost = StageCost(1, prompt_bytes, 1 / self._assume.tokens_per_byte)
            if call.stage == "screen":
                passes = _tagged(prompt, "instruction")[-1] in self._on_topic
            else:
                passes = self._passes(call, prompt)
            yes = 0.99 if passes else 0.01
            reply = Reply("Yes", "stop", no_usage(), odds={"yes": yes, "no": 1 - yes})
        elif call.answer is None:
            text = self._text(call)
            cost = StageCost(1, prompt_bytes, byte_length(text))
            # Thoughts count among the tokens for thinking, which are not estimated.
            thoughts = self._filler(self._assume.reason_bytes)
            reply = Reply(text, "stop", no_usage(), reasoning=thoughts)
        else:
            text = json.dumps(self._answer(call, prompt), ensure_ascii=False)
            schema_bytes = byte_length(json.dumps(schema_of(call.answer)))
            cost = StageCost(1, prompt_bytes + schema_bytes, byte_length(text))
            reply = Reply(text, "stop", no_usage())
        self.calls[call.stage] += 1
        unit = _unit_of(call)
        if unit == "attempt" and _tagged(prompt, "response")[-1] in self._bare:
            unit = "answer"
        self.spent[unit, call.stage].add(cost)
        return reply

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """An `Embed`: one direction for all that is on topic, any other for each other text."""
        await asyncio.sleep(0)
        vectors = np.zeros((len(texts), 64), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            if text in self._on_topic:
                row[0] = 1
            else:
                row[:] = np.random.default_rng(list(text.encode()) or None).standard_normal(64)
                row /= np.linalg.norm(row)
        return vectors

    def _answer(self, call: Call, prompt: str) -> dict[str, Any]:
        assume = self._assume
        if call.stage == "extract":
            phrases = [self._filler(assume.phrase_bytes) for _ in range(3)]
            fields = {"characteristics": "response", "instruction_characteristics": "instruction"}
            assert call.answer is not None
            return {"subject_areas": phrases, "relevant_skills": phrases} | {
                field: [
                    {
                        "text": self._filler(assume.criterion_bytes),
                        "quote": self._quote(_tagged(prompt, tag)[-1]),
                        "must": True,
                    }
                    for _ in range(min(assume.characteristics, MAX_CHARACTERISTICS))
                ]
                for field, tag in fields.items()
                if field in call.answer.model_fields
            }
        if call.stage == "propose":
            count = int(re.findall(r"(\d+) instructions", prompt)[0])
            # The mark makes a request of it, whatever the words are.
            texts = [self._filler(self._instruction_bytes - 1) + "?" for _ in range(count)]
            self._on_topic.update(texts)
            return {"instructions": texts}
        if call.stage == "screen":
            return {"instructions": self._screened(prompt)}
        if call.stage == "critique":
            return {"verdicts": self._verdicts(call, prompt)}
        assert call.answer is not None
        return {name: self._value(name, call) for name in call.answer.model_fields}

    def _value(self, name: str, call: Call) -> Any:
        """What stands in a field of an answer without rules of its own."""
        assert call.answer is not None
        if name == "response":
            return self._response(call)
        if call.stage == "feedback":
            return [self._filler(self._assume.reason_bytes) for _ in range(MAX_CHARACTERISTICS)]
        if call.answer.model_fields[name].annotation is str:
            return self._filler(self._assume.reason_bytes)
        count = self._assume.verdicts_fed_back
        return [self._filler(self._assume.phrase_bytes) for _ in range(count)]

    def _text(self, call: Call) -> str:
        """A response in plain text; a refinement has its plan before it."""
        response = self._response(call)
        if call.stage != "refine":
            return response
        steps = [self._filler(self._assume.phrase_bytes)] * self._assume.verdicts_fed_back
        return "\n".join(["<plan>", *steps, "</plan>", response])

    def _response(self, call: Call) -> str:
        response = self._filler(self._response_bytes - 1) + "."
        self._on_topic.add(response)
        if call.stage == "generate":
            self._drafts.add(response)
        if call.stage == "answer":
            self._bare.add(response)
        return response

    def _verdicts(self, call: Call, prompt: str) -> list[dict[str, str]]:
        ids = re.findall(r'<criterion(?:-\w+)? id="([^"]+)"', prompt)
        reason = self._filler(self._assume.reason_bytes)
        evidence = self._quote(_tagged(prompt, "response")[-1])
        return [
            {
                "criterion_id": id_,
                "reason": reason,
                "evidence": evidence,
                "verdict": "pass" if self._passes(call, prompt) else "fail",
            }
            for id_ in ids
        ]

    def _screened(self, prompt: str) -> list[dict[str, Any]]:
        """A reference's own instruction and all that is proposed pass, what is spoiled fails."""
        ids = re.findall(r'<criterion(?:-\w+)? id="([^"]+)"', prompt)
        reason = self._filler(self._assume.reason_bytes)
        return [
            {
                "number": number,
                "verdicts": [
                    {
                        "criterion_id": id_,
                        "reason": reason,
                        "evidence": self._quote(text),
                        "verdict": "pass" if text in self._on_topic else "fail",
                    }
                    for id_ in ids
                ],
            }
            for number, text in enumerate(_tagged(prompt, "instruction"), 1)
        ]

    def _passes(self, call: Call, prompt: str) -> bool:
        """Whether the next criterion asked about the prompt's response passes."""
        response = _tagged(prompt, "response")[-1]
        if response in self._drafts:
            self._failed[call.model, response] += 1
            return self._failed[call.model, response] > self._assume.verdicts_fed_back
        return response in self._own or response in self._on_topic

    def _quote(self, response: str) -> str:
        """The words that begin a response, as long as evidence is assumed to be."""
        if byte_length(response) <= self._assume.evidence_bytes:
            return response
        start = response.encode()[: self._assume.evidence_bytes].decode("utf-8", "ignore")
        return start.rsplit(None, 1)[0] if len(start.split()) > 1 else start

    def _filler(self, size: int) -> str:
        """Words of so many bytes, none of which says anything; each filler is another."""
        self._fillers += 1
        letters = ""
        while len(letters) < size:
            digest = sha256(f"{self._fillers} {len(letters)}".encode()).digest()
            letters += "".join(chr(ord("a") + byte % 26) for byte in digest)
        # A space for every seventh letter.
        return "".join(" " if i % 7 == 6 else c for i, c in enumerate(letters[:size])).strip()


def _unit_of(call: Call) -> str:
    """The unit of work a call belongs to; a candidate's calls name its slot in their order."""
    of_candidate = len(call.order) > 2
    if call.source.startswith("criteria of file"):
        return "trial"
    if call.stage == "critique":
        return "attempt" if of_candidate else "reference"
    if call.stage == "screen":
        return "reference" if call.source.startswith("reference ") else "turn"
    if call.stage == "feedback":
        return "draft" if of_candidate else "reference"
    units = {"extract": "reference", "propose": "turn", "refine": "refinement"}
    units["answer"] = "answer"
    return units.get(call.stage, "draft" if of_candidate else "turn")


def _tagged(prompt: str, tag: str) -> list[str]:
    """What stands between a prompt's tags of a name; see `prompts.fence`."""
    pairs = re.findall(rf"<({tag}(?:-\w+)?)(?: [^>]*)?>\n(.*?)\n</\1>", prompt, re.DOTALL)
    return [text for _, text in pairs]


def _facts(
    settings: Settings,
    references: Sequence[Reference],
    texts: Sequence[str],
    costs: UnitCosts,
    judge_criteria: int,
    assume: Assumptions,
) -> dict[str, Any]:
    """What follows from settings, data, the fake run and assumptions."""
    passing, attempts_allowed = assume.attempts_passing, settings.max_attempts
    if not judge_criteria:
        passing, attempts_allowed = 1.0, 1
    failing = 1 - passing
    attempts = sum(failing**i for i in range(attempts_allowed))
    accepted_share = 1 - failing**attempts_allowed
    answers = sum(failing**i for i in range(MAX_ANSWERS)) if settings.reasoning else 0
    a_reference = sum(cost.calls for cost in costs["reference"].values())
    a_trial = sum(cost.calls for cost in costs["trial"].values())
    a_critique = costs["attempt"].get("critique", StageCost()).calls
    return {
        "reference_instruction_bytes": round(
            fmean(byte_length(r["instruction"]) for r in references)
        ),
        "reference_response_bytes": round(fmean(byte_length(r["response"]) for r in references)),
        "seed_bytes": round(fmean(map(byte_length, texts))),
        "calls_a_reference": round(a_reference, 2),
        "calls_of_own_trials": round(a_trial),
        "judge_criteria": judge_criteria,
        "calls_a_critique": round(a_critique, 2),
        "attempts": min(2, settings.max_attempts) if settings.context().refines_once else attempts,
        "accepted_share": accepted_share,
        # As many as in low at least, where every candidate is accepted and answered once.
        "bare_answers": max(answers * accepted_share, 1.0) if settings.reasoning else 0,
        "seeds_ahead": settings.seeds_in_flight(settings.target) - 1,
    }


def _volume(
    settings: Settings, references: int, seeds: int, facts: Mapping[str, Any]
) -> dict[str, int]:
    """How many candidates and rows the run has, from how many turns of seeds and references."""
    a_turn = 1 if settings.answer_seeds else settings.per_seed
    turns_allowed = math.inf if settings.target and not settings.answer_seeds else seeds
    wanted = math.inf
    if settings.target:
        wanted = math.ceil(settings.target / max(facts["accepted_share"], 1e-9) - 1e-9)
    candidates = min(wanted, turns_allowed * a_turn, settings.candidate_limit or math.inf)
    turns = int(min(turns_allowed, math.ceil(candidates / a_turn) + facts["seeds_ahead"]))
    accepted = round(candidates * facts["accepted_share"])
    studied = 1
    if settings.pipeline != "refed":
        studied = min(settings.references_per_seed, references)
        studied *= 2 if settings.feedback == "swapped" else 1
    return {
        "candidates": int(candidates),
        "accepted": min(accepted, settings.target or accepted),
        "turns": turns,
        "references_used": min(references, min(turns, seeds) * studied),
    }


def _total(
    settings: Settings,
    volume: Mapping[str, int],
    facts: Mapping[str, Any],
    costs: UnitCosts,
    prices: Prices,
    assume: Assumptions,
    tier: str,
) -> dict[str, Any]:
    """Calls, tokens and dollars by stage and in total, at the prices of a service tier."""
    candidates = volume["candidates"]
    all_attempts = math.ceil(candidates * facts["attempts"])
    units = {
        "trial": 1,
        "reference": volume["references_used"],
        "turn": volume["turns"],
        "draft": candidates,
        "attempt": all_attempts,
        "refinement": all_attempts - candidates,
        "answer": math.ceil(candidates * facts["bare_answers"]),
    }
    spent = {stage: StageCost() for stage in STAGES}
    for unit, by_stage in costs.items():
        for stage, cost in by_stage.items():
            spent[stage].add(cost, units[unit])
    stages: dict[str, dict[str, Any]] = {}
    for stage, cost in spent.items():
        models: tuple[str, ...] = (settings.model,)
        if stage in STAGES_OF_THE_JUDGE:
            # A jury shares the calls of judging; feedback is the first juror's.
            shared = stage in ("critique", "screen")
            models = settings.jurors if shared else (settings.judge,)
        usage: Usage = {
            "calls": round(cost.calls),
            "prompt_tokens": math.ceil(cost.prompt_bytes * assume.tokens_per_byte),
            "cached_tokens": 0,
            "completion_tokens": math.ceil(cost.completion_bytes * assume.tokens_per_byte),
        }
        by_model = [prices.cost(m, usage, tier) if usage["calls"] else 0.0 for m in models]
        known = [cost / len(models) for cost in by_model if cost is not None]
        dollars = sum(known) if len(known) == len(models) else None
        stages[stage] = {"model": ",".join(models), **usage, "cost_usd": dollars}
    total: dict[str, Any] = {k: sum(s[k] for s in stages.values()) for k in TOKENS}
    dollars_by_stage = [s["cost_usd"] for s in stages.values()]
    total["cost_usd"] = None if None in dollars_by_stage else sum(dollars_by_stage)
    return {"by_stage": stages, "total": total}
