"""What a jury is worth: jurors that err, alone and together, through the real graph.

python -m benchmarks.jury [--n 1000] [--max-attempts 3]

A scripted writer's drafts are good in half of the cases, and a refinement mends a bad one in 60 %.
Each juror is wrong about a response with a probability of its own, either by itself or so that the
errors of any two jurors are correlated. Printed is what share of the accepted rows is truly good.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.scripted import drawn, words
from benchmarks.tables import table
from graph.builder import build_graph
from memory.embed import Vectors
from nodes.context import Context
from nodes.llm import Call, Reply
from nodes.state import no_usage
from refloom.data.record_stats import JuryVotes, jury_votes
from refloom.evaluation.agreement import jury_agreement
from refloom.evaluation.stats import proportion

ERRORS = {"a": 0.2, "b": 0.2, "c": 0.4}
CORRELATION = 0.5
GOOD_DRAFTS, MENDS = 0.5, 0.6
NORMAL = NormalDist()
REFERENCE = {"id": "r", "instruction": f"{words(12, 'reference')}?", "response": words(60, "r")}


def correlation_of_normals(p: float, q: float, wanted: float) -> float:
    """The correlation of two normals that are under their p and q quantiles with this correlation.

    By bisection; the joint probability is an integral over the first.
    """
    x, y = NORMAL.inv_cdf(p), NORMAL.inv_cdf(q)
    steps = np.linspace(-8, x, 4001)
    density = np.exp(-(steps**2) / 2) / math.sqrt(2 * math.pi)
    low, high = 0.0, 0.9999
    for _ in range(40):
        rho = (low + high) / 2
        inner = np.array([NORMAL.cdf((y - rho * s) / math.sqrt(1 - rho * rho)) for s in steps])
        both = float(np.trapezoid(density * inner, steps))
        reached = (both - p * q) / math.sqrt(p * (1 - p) * q * (1 - q))
        low, high = (rho, high) if reached < wanted else (low, rho)
    return (low + high) / 2


def mixing(correlation: float) -> NDArray[np.float64]:
    """The matrix that turns independent normals into those of the jurors' errors."""
    rhos = np.eye(len(ERRORS))
    rates = list(ERRORS.values())
    if correlation:
        for i, j in combinations(range(len(rates)), 2):
            rhos[i, j] = rhos[j, i] = correlation_of_normals(rates[i], rates[j], correlation)
    return np.asarray(np.linalg.cholesky(rhos), np.float64)


class ErringJurors:
    """A `Complete`: a writer, and jurors that err about a response, the same way each time."""

    def __init__(self, correlation: float) -> None:
        self._mixing = mixing(correlation)
        self.good: dict[str, bool] = {}
        self._errors: dict[str, dict[str, bool]] = {}

    async def __call__(self, call: Call) -> Reply:
        """Answer at once; see `nodes.llm.Complete`."""
        prompt = call.messages[-1]["content"]
        if call.stage == "critique":
            return self._reply(self._verdicts(call.model, prompt))
        if call.stage == "extract":
            return self._reply({"subject_areas": [], "relevant_skills": [], "characteristics": []})
        before = prompt.rpartition("<response>\n")[2].partition("\n</response>")[0]
        source = before if call.stage == "refine" else prompt.rpartition("<instruction>")[2]
        text = words(60, call.stage, source)
        if call.stage == "refine":
            self.good[text] = self.good[before] or drawn("mended", text) < MENDS
        else:
            self.good[text] = drawn("drafted", text) < GOOD_DRAFTS
        return Reply(text, "stop", no_usage())

    def _reply(self, answer: dict[str, Any]) -> Reply:
        return Reply(json.dumps(answer), "stop", no_usage())

    def _verdicts(self, juror: str, prompt: str) -> dict[str, Any]:
        response = prompt.rpartition("<response>\n")[2].partition("\n</response>")[0]
        ids = [part.partition('"')[0] for part in prompt.split('<criterion id="')[1:]]
        passes = self.good[response] != self.errors(response)[juror]
        verdict = {"reason": "so it is", "evidence": " ".join(response.split()[:5])}
        verdict["verdict"] = "pass" if passes else "fail"
        return {"verdicts": [{"criterion_id": id_, **verdict} for id_ in ids]}

    def errors(self, response: str) -> dict[str, bool]:
        """Which jurors are wrong about a response."""
        if response not in self._errors:
            uniform = [drawn("error", response, name) for name in ERRORS]
            normals = self._mixing @ [NORMAL.inv_cdf(min(max(u, 1e-9), 1 - 1e-9)) for u in uniform]
            self._errors[response] = {
                name: bool(normal < NORMAL.inv_cdf(rate))
                for (name, rate), normal in zip(ERRORS.items(), normals, strict=True)
            }
        return self._errors[response]


async def embed(texts: Sequence[str]) -> Vectors:
    """Vectors that say nothing."""
    return np.ones((len(texts), 8), np.float32) / math.sqrt(8)


async def measure(correlation: float, names: str, n: int, max_attempts: int) -> list[Any]:
    """A line of the table: accepted rows, how many of them are good, and agreement."""
    model = ErringJurors(correlation)
    graph = build_graph(complete=model, embed=embed)
    context = Context(
        model="writer",
        judge_model=names,
        judge_method="verdict",
        answer_seeds=True,
        try_criteria=False,
        max_criteria=0,
        max_attempts=max_attempts,
    )
    accepted: list[bool] = []
    juries: Counter[JuryVotes] = Counter()
    for number in range(n):
        graph_input: Any = {
            "seed": {"instruction": f"{words(12, 'seed', number)}?", "id": str(number)},
            "references": [REFERENCE],
        }
        (row,) = (await graph.ainvoke(graph_input, context=context))["samples"]
        if row["status"] == "accepted":
            accepted.append(model.good[row["response"]])
        criteria = {c["id"]: c for c in row["criteria"]}
        for verdict in (v for attempt in row["attempts"] for v in attempt["verdicts"]):
            votes = jury_votes(verdict, criteria[verdict["criterion_id"]])
            if votes is not None:
                juries[votes] += 1
    good = proportion(sum(accepted), len(accepted))
    agreement = jury_agreement(juries)
    wrong = [model.errors(text) for text in model.good]
    return [
        "independent" if not correlation else f"correlated at {correlation}",
        names,
        ", ".join(f"{sum(w[j] for w in wrong) / len(wrong):.0%}" for j in names.split(",")),
        len(accepted),
        f"{good.value:.1%} ({good.low:.1%} to {good.high:.1%})",
        "" if agreement is None else f"{agreement['alpha']:.2f}",
    ]


async def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--max-attempts", type=int, default=3)
    args = parser.parse_args()
    lines = [
        await measure(correlation, names, args.n, args.max_attempts)
        for correlation in (0.0, CORRELATION)
        for names in (*ERRORS, ",".join(ERRORS))
    ]
    head = ["errors", "judge or jury", "err", "accepted", "of these good (95 %)", "alpha"]
    print(table(head, lines))


if __name__ == "__main__":
    asyncio.run(main())
