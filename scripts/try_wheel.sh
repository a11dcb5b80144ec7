#!/usr/bin/env bash
# Install a wheel into a clean environment and use it from a folder that is not the checkout.
set -euo pipefail

wheel=$(realpath "$1")
constraints=$(realpath "$(dirname "$0")/../constraints.txt")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check -c "$constraints" "torch==2.13.0" "$wheel"
export PATH="$scratch/venv/bin:$PATH"

cd "$scratch"
set -x
llmos --version
llmos init x
cd x
llmos config check
llmos train --dry-run
