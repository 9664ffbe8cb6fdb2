#!/usr/bin/env bash
# The demo, step by step: train a small model on this machine, index this repository's documentation, ask three
# questions. Every line is a command to try by hand; `make demo` runs them all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${GRITKIT_DEMO_OUT:-out/demo}

step() { printf '\n$ %s\n' "$*" >&2; "$@"; }

step gritkit train quickstart output="$out/model"
export GRITKIT_MODEL="$out/model"
step gritkit index "$out/kb" README.md CONTRIBUTING.md
step gritkit ask "$out/kb" "How do I run the tests?"
step gritkit ask "$out/kb" "How do I add a recipe?"
step gritkit ask "$out/kb" "Which Python versions are supported?"
