#!/usr/bin/env bash
# The inside of the second machine that host.py makes: runs as process 1 of new network, pid, mount and uts namespaces.
#     host.sh FOLDER ADDRESS GATEWAY USER      (addresses with their prefix length: 10.78.0.2/30)
# FOLDER holds home/ (the user's home folder there), ray/ (what Ray writes) and hostkey. Everything else is this machine's.
set -euo pipefail
folder=$1 address=$2 gateway=$3 user=$4

mount --make-rprivate /
hostname "$(basename "$folder")"
# A home folder and a Ray of its own. /tmp itself stays: Ray's default folder is the only thing below it that two machines
# would fight over, and a checkout may lie there.
awk -F: -v OFS=: -v user="$user" -v home="$folder/home" '$1 == user { $6 = home; $7 = "/bin/bash" } 1' /etc/passwd >"$folder/passwd"
mount --bind "$folder/passwd" /etc/passwd
mkdir -p /tmp/ray
mount --bind "$folder/ray" /tmp/ray
mount -t tmpfs -o size=2g tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd

echo namespaces # host.py now plugs the cable in
read -r _
ip link set lo up
ip address add "$address" dev eth0
ip link set eth0 up
ip route add default via "$gateway" # without one Ray takes 127.0.0.1 for the machine's address

PATH=$PATH:/usr/sbin
exec "$(command -v sshd)" -D -e -f /dev/null -o "ListenAddress=${address%/*}" -o Port=22 -o "HostKey=$folder/hostkey" -o PidFile=none \
    -o "AuthorizedKeysFile=$folder/home/.ssh/authorized_keys" -o StrictModes=no -o PermitRootLogin=prohibit-password \
    -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no -o UsePAM=no
