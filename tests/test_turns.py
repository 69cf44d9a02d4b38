"""Later turns of a conversation as references: what was said before them goes along."""

from __future__ import annotations

import json

from fakes import ScriptedModel, letters, tagged, words

from refloom.data.read import read_references
from refloom.runs.run import Run, Tools
from refloom.settings import Settings


def talk(n: int) -> dict:
    one, other = (words(f"{key}{n}", 40) + "." for key in "ab")
    turns = [("system", "Be brief."), ("user", f"Why {n}?"), ("assistant", one),
             ("user", f"And then {n}?"), ("assistant", other)]  # fmt: skip
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


async def test_a_run_on_every_exchange_shows_the_model_what_was_said_before(tmp_path):
    model = ScriptedModel()
    chosen = Settings(model="m", references_per_seed=1, turns="all")
    references = read_references([talk(i) for i in range(3)], chosen)
    run = Run(chosen, references, None, tmp_path, tools=Tools(model, letters))
    summary = await run.run()
    assert summary.counts["references"] == summary.counts["seeds"] == 6
    extracts = [call for call in model.calls if call.stage == "extract"]
    assert len(extracts) == 6
    histories = {tagged(call.messages[-1]["content"], "history")[0] for call in extracts}
    assert "system: Be brief." in histories
    assert any("user: Why 0?\n\nassistant:" in history for history in histories)
    # A trial judges the reference's own response to what was asked when it was said.
    own = [c for c in model.calls if c.stage == "critique" and "<history>" in str(c.messages)]
    assert own
    said = json.loads((tmp_path / "run.json").read_text())["reading"]["references"]
    assert said["several_turns"] == 3 and said["shapes"] == {"messages": 6}
    kept = [r for r in run.references if r["instruction"].startswith("And then")]
    assert all(len(r["history"]) == 3 for r in kept)
