#!/usr/bin/env bash
# The demo, step by step: train a small model on this machine, index documents that it never saw, ask three questions,
# each from the cached documents and again from nothing. Every line is a command to try by hand; `make demo` runs all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${GRITKIT_DEMO_OUT:-out/demo}

step() { printf '\n$ %s\n' "$*" >&2; "$@"; }

step gritkit train quickstart output="$out"
export GRITKIT_MODEL="$out/model"
step gritkit index "$out/kb" "$out/held_out.jsonl"
for question in "What does read csv rows do?" "What does compress a file do?" "What does parse the email headers do?"; do
    for reuse in cached off; do
        step gritkit ask "$out/kb" "$question" --reuse "$reuse" --max-new-tokens 40
    done
done
