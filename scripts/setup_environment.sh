#!/usr/bin/env bash
# Makes .venv beside the README and installs the package with everything its scripts and tests need.
# Does nothing when that has been done for the present dependencies. Variables, all optional:
#   HSST_PYTHON            interpreter for a new .venv (default: the first of python3, python3.12, ... that is >= 3.11)
#   HSST_TORCH_INDEX_URL   where to look for torch, e.g. https://download.pytorch.org/whl/cpu for a machine without CUDA:
#                          a fifth of the download
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
venv="$root/.venv"
python="$venv/bin/python"
stamp="$venv/.hsst-installed"
log="$venv/hsst-install.log"

fail() {
    echo "setup_environment.sh: $*" >&2
    exit 2
}

find_python() {
    local candidate
    for candidate in ${HSST_PYTHON:-python3 python3.12 python3.13 python3.11 python}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    fail "expected Python >= 3.11 with its venv module (Debian: apt install python3-venv), found none" \
        "among: ${HSST_PYTHON:-python3 python3.12 python3.13 python3.11 python}"
}

# The stamp names what was installed: the dependencies, and the place, because the install is an editable one.
fingerprint() {
    { echo "$root"; cat setup.cfg pyproject.toml constraints.txt; } | "$python" -c \
        'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read() + sys.version.encode()).hexdigest())'
}

install() {
    "$python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "$@" >>"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        fail "pip install $* failed; the whole output is in $log"
    }
}

if ! "$python" -c 'import pip' >/dev/null 2>&1; then
    base="$(find_python)"
    "$base" -m venv --clear "$venv" || fail "$base could not make $venv"
fi
if [[ "$(cat "$stamp" 2>/dev/null || true)" != "$(fingerprint)" ]]; then
    echo "Installing HSST and its dependencies into .venv (once; some minutes) ..."
    : >"$log"
    # torch first, by itself: without CUDA a CPU build of the same version is taken wherever pip has one at hand
    if ! "$python" -c 'import torch' >/dev/null 2>&1; then
        if [[ -n "${HSST_TORCH_INDEX_URL:-}" ]]; then
            install torch --index-url "$HSST_TORCH_INDEX_URL"
        else
            install torch
        fi
    fi
    install -e ".[dev,simulate]"
    # mypy follows no editable installation: it finds the package hsst by this link
    mkdir -p "$venv/sources"
    ln -sfn ../../scripts "$venv/sources/hsst"
    fingerprint >"$stamp"
fi
