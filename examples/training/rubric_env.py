"""A `verifiers` environment: questions of a rubric file, each answer scored by its own rubric.

    export PYTHONPATH=examples/training
    vf-eval rubric_env --env.agent.harness.id null --env.agent.runtime.type subprocess \
        --model STUDENT --client.base-url URL -n 8 -r 4 --no-push \
        --env.taskset.rubric rubric.jsonl \
        --env.taskset.task.judge-model JUDGE --env.taskset.task.base-url URL

Needs the package `verifiers` (tried with 0.4.0), which refloom does not depend on. An answer of
which too little is known has no reward: it is an error of its rollout, and never a 0.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import verifiers.v1 as vf

from refloom.data.files import read_rows
from refloom.data.rubrics import read_rubric
from refloom.reward import RubricReward, rubric_reward

__all__ = ["RubricTaskset"]


class RubricData(vf.TaskData):
    """A question, as `prompt`, and the items of its rubric."""

    rubric: list[dict[str, Any]]


class RubricTaskConfig(vf.TaskConfig):
    """The judge; see `refloom.reward.rubric_reward`. A journal is of one process."""

    judge_model: str | None = None
    base_url: str | None = None
    journal: str | None = None
    max_cost: float | None = None
    concurrency: int | None = None


class RubricTask(vf.Task[RubricData, vf.State, RubricTaskConfig]):
    """Answers are scored by the criteria of the row."""

    @vf.reward(weight=1.0)
    async def rubric(self, trace: vf.Trace) -> float:
        """The score of the last reply, from 0 to 1."""
        config = self.config
        reward = open_reward(
            config.judge_model, config.base_url, config.journal, config.max_cost, config.concurrency
        )
        prompt = self.data.prompt
        if not isinstance(prompt, str):
            prompt = [message.model_dump() for message in prompt]
        scores = await reward([prompt], [trace.last_reply], rubric=[self.data.rubric])
        if scores[0] is None:
            raise ValueError("the score is unknown: too few verdicts of the judge are known")
        return scores[0]


class RubricTasksetConfig(vf.TasksetConfig):
    """A rubric file, as `refloom export --format rubric` writes it, of either shape."""

    rubric: Path = Path(__file__).parent / "rubrics.jsonl"
    task: RubricTaskConfig = RubricTaskConfig()


class RubricTaskset(vf.Taskset[RubricTask, RubricTasksetConfig]):
    """The rows of a rubric file."""

    def load(self) -> list[RubricTask]:
        """A task for each row with an item."""
        tasks = []
        for _, row in read_rows(self.config.rubric, None):
            rubric = read_rubric(row)
            items = row.get("rubric") or row.get("rubrics")
            if not items:
                continue
            turns = [*rubric.history, {"role": "user", "content": rubric.instruction}]
            prompt = turns if rubric.history else rubric.instruction
            tasks.append(RubricTask(RubricData(prompt=prompt, rubric=items), self.config.task))
        return tasks


@cache
def open_reward(
    judge_model: str | None,
    base_url: str | None,
    journal: str | None,
    max_cost: float | None,
    concurrency: int | None,
) -> RubricReward:
    """One reward, with one journal and its limits, for all tasks of a process."""
    return rubric_reward(
        journal=journal,
        judge_model=judge_model,
        base_url=base_url,
        max_cost=max_cost,
        concurrency=concurrency,
    )
