#!/usr/bin/env bash
# Everything that is measured on a GPU, in under nine minutes, without a network. Needs Python 3.12 with torch and
# torchvision; what else is missing comes from the folder that `make gpu-bundle` makes, if it is there.
#
#   benchmarks/gpu/run.sh [--out FOLDER] [--tiny] [--rows NAME ...]
#
#   --out    where each row writes NAME.json; $OUT, else benchmarks/results/gpu
#   --tiny   small sizes, on a CPU too: shows that the script itself works; its times say nothing
#   --rows   only these
# PYTHON names the interpreter, BUNDLE the folder of wheels.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python3}"
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
"$python" "$here/unpack.py" "${BUNDLE:-$here/bundle}" "$site"
export PYTHONPATH="$site:$here/..${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
"$python" "$here/run.py" "$@"
