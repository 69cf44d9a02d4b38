#!/bin/sh
# Install what an image needs before refloom's own code: PyTorch's CPU build, the packages of
# pyproject.toml with the extras named as arguments, and the weights of the embedding model.
# Makefile, pyproject.toml and memory/ lie beside this file. TORCH_INDEX replaces the Makefile's
# index of CPU builds; if it is empty, uv looks where it always looks.
set -eu
cd "$(dirname "$0")"

torch="torch==$(sed -n 's/^TORCH := //p' Makefile)+cpu"
index=${TORCH_INDEX-$(sed -n 's/^TORCH_CPU_INDEX := //p' Makefile)}
uv pip install --system --no-cache ${index:+--index-url "$index"} "$torch"

# LangGraph's image says which versions its server bears.
set -- $(printf -- '--extra %s ' "$@")
if [ -f /api/constraints.txt ]; then set -- "$@" -c /api/constraints.txt; fi
uv pip install --system --no-cache "$@" -r pyproject.toml

# Where the weights lie, whoever runs the image: $XDG_CACHE_HOME.
python -c 'from memory.weights import minilm_path; print(minilm_path())'
chmod -R a+rX "$XDG_CACHE_HOME/refloom"
