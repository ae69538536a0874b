#!/usr/bin/env bash
# Runs the tests; makes the environment first where it is missing. Arguments go to pytest:
#   bash scripts/test.sh                        everything but the slow tests (ruff, mypy and mlinter included)
#   bash scripts/test.sh -m slow                the slow ones
#   bash scripts/test.sh tests/test_masking.py -k tube
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_environment.sh
# Files are dealt to the cores, each with one thread; with a selection, the usual single process starts sooner
if [[ $# -eq 0 ]]; then
    export OMP_NUM_THREADS=1
    set -- --numprocesses auto --dist loadfile --no-loadscope-reorder
fi
exec .venv/bin/python -m pytest "$@"
