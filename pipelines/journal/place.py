"""The place where a driver works: this machine since it was started, and this folder, which no copy of it shares."""

import hashlib
import socket
import uuid
from pathlib import Path

from prunefront.reading import read_text

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MACHINE = Path("/etc/machine-id")


def place_id(folder: Path) -> str:
    """Returns 32 hex digits that a copy of the folder does not have, nor a copy of the machine, nor this one restarted.

    Two machines of one name, or made of one image, differ in the identity of their start, and a copied folder in its
    place on the disk. Raises OSError where the folder is not there.
    """
    status = folder.stat()
    parts = [socket.gethostname(), f"{status.st_dev} {status.st_ino}"]
    for file in (_BOOT, _MACHINE):
        try:
            parts.append(read_text(file, limit=4096).strip())
        except OSError:  # not Linux, or a container without it
            parts.append(f"{uuid.getnode():x}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
