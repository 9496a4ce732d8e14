#!/usr/bin/env bash
# Build a wheel, install it into an empty environment and run the demo there, in a short form.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip wheel -q --no-deps --wheel-dir "$scratch" .
"$scratch/venv/bin/python" -m pip install -q "$scratch"/pathex-*.whl
cd "$scratch"
venv/bin/pathex --version
venv/bin/pathex demo --epochs 1 --width 4 --out demo
test -s demo/report/index.html
echo "wheel: installed and ran"
