"""What `langgraph.json` names: the graphs a LangGraph server serves.

The server executes this file under a name of its own, so it only builds; everything that lives
longer is in normally imported modules. No checkpointer and no store: the server brings its own.
"""

from refloom.serve import stay_offline

stay_offline()

import refloom  # noqa: E402, F401 - its check that no other package shadows refloom's own
from graph.builder import (  # noqa: E402
    build_graph,
    build_indexer,
    build_sample,
)

synthesizer = build_graph()
sample = build_sample()
indexer = build_indexer()
