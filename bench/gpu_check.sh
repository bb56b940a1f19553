#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs bench/gpu_check.py, whose head lists the options, from any folder:
#
#   bench/gpu_check.sh [--wheel FILE] [options]
#
# --wheel takes the package from a wheel of this checkout, which is installed nowhere but in a temporary folder. Without
# it the aapt_fast that PYTHON (python3) imports is checked. PYTHON needs torch, pytest and pytest-timeout.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
path=$root
if [ "${1:-}" = --wheel ]; then
  if [ $# -lt 2 ]; then echo "--wheel: expected a file, got none" >&2; exit 2; fi
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$folder" "$2"
  path=$folder:$root
  set -- --package "$folder" "${@:3}"
fi
wanted='import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, ("torch", "aapt_fast"))))'
if ! PYTHONPATH=$path "$python" -c "$wanted"; then
  echo "PYTHON: expected a program that imports torch and aapt_fast, got '$python'" >&2
  exit 2
fi
PYTHONPATH=$path "$python" -m bench.gpu_check "$@"
