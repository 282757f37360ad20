#!/usr/bin/env bash
# Makes a machine of the cluster ready for prunefront; cluster.yaml runs it on each one after copying the project there.
# A machine whose PATH already has a `prunefront` of its own (a container image, a shared environment) is left as it is.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
venv=$project/.venv

case "$(command -v prunefront || true)" in
    "" | "$venv"/*) ;;
    *) exit 0 ;;
esac
command -v make >/dev/null || {
    echo "setup-host: this machine has no make; on Debian or Ubuntu: sudo apt-get install make python3-venv" >&2
    exit 2
}
make --no-print-directory -C "$project" setup EXTRAS=
# `ray submit` runs `python`, which must be this one, in the shells that `ray` opens over ssh (interactive, login)
line="export PATH=\"$venv/bin:\$PATH\""
grep -qxF "$line" ~/.bashrc 2>/dev/null || echo "$line" >>~/.bashrc
