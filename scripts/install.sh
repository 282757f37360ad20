#!/usr/bin/env bash
# Makes a virtual environment and installs prunefront into it: scripts/install.sh PYTHON VENV EXTRAS TORCH (called by `make setup`).
set -euo pipefail
python=$1 venv=$2 extras=$3 torch=$4
minimum=3.11

fail() { printf 'setup: %s\n' "$1" >&2; exit 2; }

command -v "$python" >/dev/null ||
    fail "there is no '$python'; install Python $minimum or newer, or name one: make setup PYTHON=python3.12"
"$python" -c "import sys; sys.exit(sys.version_info < (${minimum/./, }))" ||
    fail "$("$python" --version) is too old, $minimum or newer is needed; name another: make setup PYTHON=python3.12"
"$python" -c "import ensurepip, venv" 2>/dev/null ||
    fail "$python cannot make virtual environments; on Debian or Ubuntu: sudo apt-get install python3-venv"

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "setup: making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi
pip=("$venv/bin/python" -m pip --quiet --quiet) # errors are still shown
"${pip[@]}" install --upgrade pip

# torch goes first and alone: it is the big one, and pip then takes its CPU build (2.13.0+cpu sorts above 2.13.0) wherever
# its configuration offers one: find-links, a mirror, or PIP_EXTRA_INDEX_URL set to PyTorch's CPU index. Otherwise the
# default index decides, which on x86 Linux brings CUDA along. TORCH is the Makefile's, within what pyproject.toml allows.
if ! "$venv/bin/python" -c "import torch" 2>/dev/null; then
    echo "setup: installing $torch"
    "${pip[@]}" install "$torch"
fi
echo "setup: installing prunefront"
"${pip[@]}" install --editable ".${extras:+[$extras]}"
echo "setup: done"
