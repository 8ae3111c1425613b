#!/usr/bin/env bash
# The steps of the image, in the Python environment that `python` is of: ray-up and the tests run the same.
#
#   docker/install.sh dependencies    requirements.lock, and torch from TORCH_INDEX (where empty: from pip's own index)
#   docker/install.sh wheel DIR       builds d1ray's wheel into DIR
#   docker/install.sh d1ray WHEEL     installs it
set -euo pipefail
cd "$(dirname "$0")/.."
pip=(python -m pip --disable-pip-version-check --quiet)

case "${1:-}" in
  dependencies)
    # torch is not in the lock file: which build is right depends on the machine. It comes last, so that its own dependencies
    # are those of the lock file, as far as they are there.
    "${pip[@]}" install --require-hashes --no-deps --requirement docker/requirements.lock
    "${pip[@]}" install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "${TORCH:?a requirement such as torch==2.13.0}"
    python -m pip check
    ;;
  wheel)
    "${pip[@]}" wheel --no-deps --wheel-dir "${2:?where to put the wheel}" .
    ;;
  d1ray)
    "${pip[@]}" install --no-index --no-deps "${2:?the wheel}"
    python -m pip check
    ;;
  *)
    echo "usage: docker/install.sh dependencies | wheel DIR | d1ray WHEEL" >&2
    exit 2
    ;;
esac
