#!/usr/bin/env bash
# Installs the servers that the `services` tests talk to, on Debian and Ubuntu, as root; quick when they are there.
set -euo pipefail

declare -A program_of=(
    [ceph-mon]=ceph-mon [ceph-osd]=ceph-osd [ceph-common]=ceph-authtool [radosgw]=radosgw
    [openssh-server]=/usr/sbin/sshd [openssh-client]=ssh-keygen [rsync]=rsync [iproute2]=ip [chromium]=chromium
    [postgresql]=pg_ctlcluster
)
missing=()
for package in "${!program_of[@]}"; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${program_of[$package]}" >/dev/null || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "test services: ${missing[*]} are missing; installing them needs root and apt-get" >&2
    exit 1
fi
echo "test services: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# apt's own output is only of interest when it fails
{ apt-get update && apt-get install --yes --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 || {
    cat "$log" >&2
    echo "test services: apt-get failed, see above" >&2
    exit 1
}
