"""What `langgraph.json` names: the graphs a LangGraph server serves.

The server executes this file under a name of its own, so it only builds; everything that lives
longer is in normally imported modules. No checkpointer and no store: the server brings its own.
"""

import refloom  # noqa: F401 - its check that no other package shadows refloom's own
from graph.builder import build_graph

synthesizer = build_graph()
