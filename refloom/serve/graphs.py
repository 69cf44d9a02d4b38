"""The graphs of `langgraph.json`, built for a LangGraph server.

The server runs this file under a module name of its own, so it only builds graphs; everything with
state lives in normally imported modules. No checkpointer and no store: the server brings its own.
"""

from refloom.serve import stay_offline

stay_offline()

import refloom  # noqa: E402, F401 - checks that no other package shadows refloom's
from graph.builder import build_graph, build_indexer, build_sample  # noqa: E402

synthesizer = build_graph()
sample = build_sample()
indexer = build_indexer()
