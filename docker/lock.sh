#!/usr/bin/env bash
# Writes docker/requirements.lock from pyproject.toml: `make lock`. UV is the uv to use, TORCH the torch to resolve for.
# torch and what only its CUDA builds need are left out; docker/install.sh says why.
set -euo pipefail
cd "$(dirname "$0")/.."
lock=docker/requirements.lock

printf '%s\n' "${TORCH:?a requirement such as torch==2.13.0}" |
  "${UV:-uv}" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
    --constraint - pyproject.toml |
  awk '/^[a-z]/ { skip = /^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==/ } !skip' >"$lock.new"
{
  echo "# Every dependency of d1ray but torch, for Python 3.11 and newer. Written by \`make lock\`."
  cat "$lock.new"
} >"$lock"
rm "$lock.new"
