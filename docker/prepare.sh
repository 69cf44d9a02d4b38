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

options=
for extra; do options="$options --extra $extra"; done
# LangGraph's image says which versions its server bears.
if [ -f /api/constraints.txt ]; then options="$options -c /api/constraints.txt"; fi
# shellcheck disable=SC2086 - each option is a word.
uv pip install --system --no-cache $options -r pyproject.toml

# Where the weights lie, whoever runs the image: $XDG_CACHE_HOME.
python -c 'from memory.weights import minilm_path; print(minilm_path())'
chmod -R a+rX "$XDG_CACHE_HOME/refloom"
