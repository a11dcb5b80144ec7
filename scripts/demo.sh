#!/usr/bin/env bash
# The whole job on real data, typed as a user would type it: a language model trained from scratch, tuned, pruned, quantized,
# compared, gated and served. Needs no network. Takes about ten minutes on two cores; leaves its workspace in demo-workspace/.
set -euo pipefail
cd "$(dirname "$0")/.."

table=$PWD/benchmarks/demo_table.py
rm -rf demo-workspace
mkdir demo-workspace
cd demo-workspace
export HF_HUB_OFFLINE=1

# Where there is no curl, python speaks HTTP as well.
command -v curl >/dev/null || curl() {
    python -c 'import sys, urllib.request as u
print(u.urlopen(u.Request(sys.argv[2], sys.argv[6].encode(), {"Content-Type": "application/json"})).read().decode())' "$@"
}

# Show a command as it would be typed, then run it.
type_() {
    printf '\n\033[1m$ %s\033[0m\n' "$*"
    eval "$*"
}

type_ llmos doctor
type_ llmos init mymodel --template causal-lm
type_ cd mymodel
type_ llmos train -s train.max_seconds=60
type_ llmos generate HEAD -p "'The for statement is used to'" --max-tokens 60
type_ llmos tune --trials 8 --jobs 2 --apply
type_ llmos train
type_ llmos tag base
type_ llmos prune --method wanda --sparsity 0.5 --heal 100
type_ llmos quantize --method gptq --bits 4
type_ llmos eval base HEAD --require "'bits_per_byte <= 1.05 * base'"
type_ llmos diff base HEAD
type_ llmos log --graph
type_ llmos status
type_ llmos du
type_ llmos deploy --port 0 --detach
type_ llmos ps
url=$(llmos ps --json | python -c 'import json, sys; print(json.load(sys.stdin)["processes"][0]["url"])')
type_ curl -sS "$url/v1/completions" -H "'Content-Type: application/json'" -d "'{\"prompt\": \"The for statement\", \"max_tokens\": 24}'"
printf '\n'
type_ llmos logs mymodel --last 5
type_ llmos stop mymodel

printf '\n'
python "$table" base HEAD~1 HEAD
printf '\nThe workspace is in demo-workspace/mymodel. Try next:\n'
printf '  llmos predict HEAD FILE          score the texts of a file, row by row\n  llmos export HEAD -o FOLDER      take the model elsewhere\n  llmos init x -t image-classification   begin another one\n'
