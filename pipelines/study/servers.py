"""Servers that this person's own searches have used. No other gets this person's credentials from a study's folder."""

import json
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from prunefront.atomic import write_whole
from prunefront.errors import PrunefrontError
from prunefront.reading import read_json

MOST = 1000
"""Most servers that are remembered; the oldest are forgotten first."""

VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI")
"""Variables of the environment that name a server of this person's."""


def remember(*addresses: str | None) -> None:
    """Notes the servers of a study that this person starts. Where that cannot be written, they are asked for later."""
    known = _read()
    asked = {_server(address) for address in addresses if address} - {""}
    if asked <= set(known):
        return
    path = _file()
    text = json.dumps([*known, *sorted(asked - set(known))][-MOST:], indent=1) + "\n"
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, lambda file: file.write(text.encode()))


def check_own(address: str, key: str, remedy: str, source: Path) -> None:
    """Raises PrunefrontError for a server that a study's folder names, and that no search of this person's has used.

    Whoever made a folder must not choose who gets this person's credentials. key: of the study, that names the server.
    remedy: how to name it oneself. source: the folder.
    """
    server = _server(address)
    own = {_server(os.environ[name]) for name in VARIABLES if os.environ.get(name)}
    if server and server not in own and server not in _read():
        raise PrunefrontError(
            f"{source} names the server {server} ({key}), which no search of yours has used, and which would get your "
            f"credentials; if you trust it, {remedy}"
        )


def _server(address: str) -> str:
    """Returns scheme, host and port of an address; "" for one of this machine's disk."""
    try:
        parts = urlsplit(address)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return address
    if not parts.hostname or parts.scheme in ("file", "sqlite"):
        return ""
    return f"{parts.scheme.partition('+')[0]}://{parts.hostname}{port}"


def _file() -> Path:
    return (
        Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
        / "prunefront"
        / "servers.json"
    )


def _read() -> list[str]:
    try:
        found = read_json(_file(), limit=1 << 20)
    except OSError:
        return []
    return [server for server in found if isinstance(server, str)] if isinstance(found, list) else []
