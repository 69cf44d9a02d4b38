"""A web handler that makes samples for a seed: `uvicorn --app-dir examples fastapi_app:app`.

    curl -d '{"instruction": "How waves form at sea"}' -H 'Content-Type: application/json' \
        http://127.0.0.1:8000/samples

Model and endpoint come from `REFLOOM_MODEL`, `OPENAI_BASE_URL` and `OPENAI_API_KEY`; references
from the index of `REFLOOM_INDEX`, or else the demo's.
"""

from fastapi import FastAPI
from typing_extensions import TypedDict

from graph.builder import build_graph
from refloom import Settings

app, graph, settings = FastAPI(), build_graph(), Settings()


class Seed(TypedDict):
    """What new data should be about."""

    instruction: str


@app.post("/samples")
async def make_samples(seed: Seed) -> list[dict]:
    """The samples of one seed, with their verdicts."""
    return (await graph.ainvoke({"seed": seed}, context=settings.context()))["samples"]
