#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything about this checkout that needs a GPU, in one command without network: tests, sanitizer, timings.
#
#   bench/gpu_check.sh [--quick] [--out FOLDER] [--wheel FILE] [--commit NAME] [--plan] [--rehearse]
#
#   --quick    under 4 minutes instead of under 9; --plan prints the stages
#   --out      folder for gpu_check.json and the logs (gpu_check in the present folder)
#   --wheel    a wheel of this checkout for this Python; else one in dist/, else a build from source, which needs nvcc,
#              scikit-build-core, pybind11, cmake, ninja and CUTLASS_DIR
#   --commit   name of this state where there is no git
#   --rehearse the same stages without a GPU, on tiny shapes and emulated kernels (--emulated-build FOLDER)
#
# PYTHON (python3) must have torch, pytest and pytest-timeout. Status: 0 all passed, 1 something failed, 2 wrong
# arguments, 3 no GPU.
set -euo pipefail
started=$(date +%s)
here=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

python=${PYTHON:-python3}
out="$here/gpu_check"
wheel=""
plan=""
rehearse=""
options=()
total=525
while [ $# -gt 0 ]; do
  case "$1" in
    --quick) options+=(--quick); total=225 ;;
    --rehearse) options+=(--rehearse); rehearse=yes ;;
    --plan) plan=yes ;;
    --out | --wheel | --commit | --emulated-build)
      if [ $# -lt 2 ]; then echo "$1: expected a value, got none" >&2; exit 2; fi
      case "$1" in
        --out) out=$2 ;;
        --wheel) wheel=$(realpath "$2") ;;
        --commit) options+=(--commit "$2") ;;
        --emulated-build) options+=(--emulated-build "$(realpath "$2")") ;;
      esac
      shift ;;
    *) echo "unknown argument '$1': see the head of ${BASH_SOURCE[0]}" >&2; exit 2 ;;
  esac
  shift
done
python=$(realpath -s "$(command -v "$python")") || { echo "PYTHON: expected a program, got '${PYTHON:-python3}'" >&2; exit 2; }
cd "$root"
if ! "$python" -c 'import torch'; then
  echo "$python has no torch that can be imported, so no GPU can be used"
  exit 3
fi
if [ -n "$plan" ]; then
  PYTHONPATH="$root/python" exec "$python" -m bench.gpu_check --plan ${options[@]+"${options[@]}"}
fi
if [ -z "$rehearse" ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2> /dev/null | head -n 1) || true
  versions=$("$python" -c 'import torch; print(torch.__version__, "built for CUDA", torch.version.cuda or "none")')
  echo "no GPU: torch $versions finds none, nvidia-smi says: driver ${driver:-unknown}"
  exit 3
fi
case "$out" in /*) ;; *) out="$here/$out" ;; esac
mkdir -p "$out"

# ---- install: an environment of its own, which borrows torch and pytest ----

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

install_wheel() {
  "$python" -m venv --system-site-packages --without-pip "$scratch/venv"
  # From a Python that is itself in a virtual environment, --system-site-packages would borrow from the one below it.
  "$python" - "$("$scratch/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" << 'PROGRAM'
import pathlib, sys, sysconfig
folders = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
# Without the import hooks of editable installs, one of which may be this package's.
borrow = "import site, sys; hooks = sys.meta_path[:]; site.addsitedir({!r}); sys.meta_path[:] = hooks\n"
lines = [borrow.format(folder) for folder in folders]
pathlib.Path(sys.argv[1], "zz_borrowed.pth").write_text("".join(lines))
PROGRAM
  if [ -z "$wheel" ] && ls dist/*.whl > /dev/null 2>&1; then
    source=(--find-links dist aapt_fast) # pip takes the wheel that fits this Python, if there is one
  elif [ -n "$wheel" ]; then
    source=("$wheel")
  else
    echo "no wheel: building from source"
    # With the probes of single instructions, which no ordinary wheel has.
    probes=(--config-settings=cmake.define.AAPT_PROBES=ON)
    if [ "${AAPT_CUDA:-AUTO}" = OFF ]; then probes=(); fi
    "$python" -m pip wheel --disable-pip-version-check --no-index --no-deps --no-build-isolation \
      ${probes[@]+"${probes[@]}"} -w "$scratch" .
    source=("$scratch"/*.whl)
  fi
  # Not into the borrowed packages: --ignore-installed leaves a copy of aapt_fast that is there alone.
  "$python" -m pip --python "$scratch/venv/bin/python" install --disable-pip-version-check --no-index --no-deps \
    --ignore-installed --no-compile "${source[@]}"
  "$scratch/venv/bin/python" -c '
import sys, aapt_fast
from aapt_fast import _C
assert aapt_fast.__file__.startswith(sys.prefix), f"expected aapt_fast in {sys.prefix}, got {aapt_fast.__file__}"
print(_C.build_info())'
}

# In a process of its own: `set -e` does not hold inside the condition of an `if`.
export -f install_wheel
export python wheel scratch
status=0
timeout --kill-after 10 200 bash -euo pipefail -c install_wheel > "$out/install.log" 2>&1 || status=$?
elapsed=$(($(date +%s) - started))
if [ "$status" -ne 0 ]; then
  echo "install        failed   after $elapsed s (status $status); the end of $out/install.log:"
  tail -n 15 "$out/install.log"
  exit 1
fi
echo "install        passed   $elapsed s"

# The stages keep to the deadline by themselves; this is for the case that they do not.
status=0
timeout --kill-after 10 $((total + 10 - elapsed)) \
  "$scratch/venv/bin/python" -m bench.gpu_check --out "$out" --elapsed "$elapsed" \
  ${options[@]+"${options[@]}"} || status=$?
exit "$status"
