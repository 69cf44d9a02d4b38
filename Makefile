# Everything happens in .venv; nothing is installed by hand. `make help` lists the targets.
PYTHON ?= python3.11
BIN := .venv/bin
# PyTorch's CPU build: from PyTorch's public index, or, where pip is told of a folder
# of wheels (find-links) or TORCH_INDEX is empty, from where pip already finds it.
# pip knows the CPU build by its local version (+cpu); macOS wheels carry none.
TORCH := 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
ifeq ($(shell uname -s),Darwin)
TORCH_INDEX ?=
TORCH_SPEC := torch==$(TORCH)
else
TORCH_INDEX ?= $(if $(shell $(PYTHON) -m pip config list 2>/dev/null | grep find-links),,$(TORCH_CPU_INDEX))
TORCH_SPEC := torch==$(TORCH)+cpu
endif

.PHONY: help install demo test check fix bench kill-test fault-test serve-test image-test dev readme clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/'

install: .venv/.installed  ## make .venv with everything: refloom, the embedded model's runtime, the tools

.venv/.installed: pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH_SPEC)
	$(BIN)/pip install --quiet --no-compile -e '.[local,dev]'
	@# By all processors, where pip would take one; files that are no Python 3 are left.
	@$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
	$(BIN)/python -c 'from memory.weights import minilm_path; minilm_path()'
	touch $@

demo: install  ## make real rows on the embedded model; no key
	$(BIN)/refloom demo

test: install  ## run all tests (HYPOTHESIS_PROFILE=ci or nightly tries more examples)
	@# One more than the processors of a small machine: a test waits a third of its time.
	$(BIN)/python -m pytest -n 3

check: install  ## format, lint, types, import law, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/redraw.py --check

fix: install  ## format, and fix what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install  ## measure all and write benchmarks/RESULTS.md (MOCK=PROGRAM or ENDPOINT=URL; ONLY=PART,.. QUICK=1)
	$(BIN)/python benchmarks/results.py --out bench-run $(if $(MOCK),--mock $(MOCK)) \
	$(if $(ENDPOINT),--endpoint $(ENDPOINT)) $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick)

kill-test: install  ## kill a run 100 times, and stop it 20 times, and compare its rows (half an hour)
	$(BIN)/python benchmarks/kill_test.py --kills 100 --out bench-run/kill
	$(BIN)/python benchmarks/kill_test.py --kills 20 --faults 0.3 --out bench-run/kill-faults
	$(BIN)/python benchmarks/kill_test.py --kills 20 --signal TERM --out bench-run/term

fault-test: install  ## 500 seeds at an endpoint of which 30 % of the calls fail
	$(BIN)/python benchmarks/fault_test.py --seeds 500 --out bench-run/faults

serve-test: install  ## load a server, kill it in mid-run, and account for every seed
	$(BIN)/python benchmarks/serving.py --seeds 200 --out bench-run/serving

image-test: install  ## make what both images hold in a folder, without Docker, and try it without a network
	$(BIN)/python docker/rehearse.py bench-run/image
	$(BIN)/python docker/rehearse.py bench-run/server-image --server

readme: install  ## redraw the generated parts of README and docs
	$(BIN)/python docs/redraw.py

# An index of the demo's references, so that the graph `indexer` has one to add to.
INDEX ?= dev-index
PORT ?= 2024

dev: install  ## serve the graphs for LangGraph Studio on 127.0.0.1:2024; no key, nothing sent out
	test -e $(INDEX)/index.json || $(BIN)/refloom index build refloom/resources/demo/references.jsonl --out $(INDEX)
	LANGGRAPH_CLI_NO_ANALYTICS=1 LANGGRAPH_NO_VERSION_CHECK=true LANGSMITH_TRACING=false \
	LANGSMITH_API_KEY= LANGCHAIN_API_KEY= REFLOOM_INDEX=$(INDEX) \
	$(BIN)/langgraph dev --no-browser --host 127.0.0.1 --port $(PORT) --n-jobs-per-worker 16

clean:  ## remove what the other targets made
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .langgraph_api demo-run dev-index
