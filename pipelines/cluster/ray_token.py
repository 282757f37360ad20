"""The token that lets a process use a Ray cluster: kept so that no other user of the machine can read it.

Ray 2.60 writes `~/.ray/auth_token` with the umask's mode, mostly 644, at the first local search and at `ray
get-auth-token --generate`. Its servers listen on all addresses of the machine, whatever address they are given, and the
token alone keeps others out.
"""

import os
import secrets
import stat
from pathlib import Path

from prunefront.errors import PrunefrontError

MODE = 0o600
"""Mode of the token's file."""


def guarded_token(*, create: bool) -> str:
    """Makes the token's file readable by its owner alone. Returns a line for people who could not otherwise know.

    create: a cluster is started here, so a token is made where there is none. "" is returned where all is well, or
    where the token is in RAY_AUTH_TOKEN. Raises PrunefrontError where others can read it and that cannot be mended.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return (
            "RAY_AUTH_MODE = disabled: whoever reaches this machine's ports can run code as this user while Ray runs; "
            "leave the variable out"
        )
    if os.environ.get("RAY_AUTH_TOKEN"):
        return ""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    try:
        if create and not given and _create(path):
            return (
                f"Ray listens on all addresses of this machine while a search runs here; its token {path}, which only "
                "you can read, keeps others out"
            )
        status = path.stat()
    except FileNotFoundError:
        return ""  # Ray says what that means for the cluster that it is asked to join
    except OSError as error:
        raise PrunefrontError(
            f"Ray's token {path} cannot be used: {error.strerror}; check its folder"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise PrunefrontError(f"Ray's token {path} is not a file; remove it, or set RAY_AUTH_TOKEN_PATH")
    if not status.st_mode & 0o077:
        return ""
    try:
        path.chmod(MODE)
    except OSError:
        raise PrunefrontError(
            f"others can read Ray's token {path}, and so run code as whoever uses it; let its owner run: chmod 600 "
            f"{path}, and make a new one (`ray get-auth-token --generate`)"
        ) from None
    return (
        f"Ray's token {path} could be read by other users of this machine (mode {status.st_mode & 0o777:o}); it is 600 "
        "now. If others use this machine, delete it and start again, which makes a new one"
    )


def _create(path: Path) -> bool:
    """Writes a new token and returns True; returns False where there is one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    except FileExistsError:
        return False
    try:
        os.fchmod(file, MODE)  # whatever the umask
        os.write(file, secrets.token_hex(32).encode())
    finally:
        os.close(file)
    return True
