#!/usr/bin/env bash
# Runs the tests; makes the environment first where it is missing. Arguments go to pytest:
#   bash scripts/test.sh                        everything but the slow tests (ruff, mypy and mlinter included)
#   bash scripts/test.sh -m slow                the slow ones
#   bash scripts/test.sh tests/test_masking.py -k tube
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_environment.sh
exec .venv/bin/python -m pytest "$@"
