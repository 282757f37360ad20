"""Checks that a tracking store answers, and tells its kind by its address."""

import re
from pathlib import Path

from prunefront import text
from prunefront.errors import PrunefrontError
from prunefront.pipelines.events.redaction import without_password, without_secrets

CONNECT_SECONDS = 5.0
"""Longest wait for an answer, in seconds."""


class TrackingError(PrunefrontError):
    """The tracking store cannot be used as the study file asks."""


def reach(uri: str) -> None:
    """Returns when the tracking store answers; else raises TrackingError within seconds, in one line."""
    shown = without_password(uri)
    if uri.startswith(("http://", "https://")):
        import requests

        try:
            # any answer will do, a login page included: MLflow asks for more afterwards
            requests.get(f"{uri.rstrip('/')}/health", timeout=CONNECT_SECONDS).close()
        except requests.RequestException as error:
            raise TrackingError(
                f"no MLflow server answers at {shown} ({type(error).__name__}): start one with `mlflow "
                "server`, or leave out `uri` under [tracking] to record into an SQLite file"
            ) from error
    elif re.match(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://", uri):
        _reach_database(uri, shown)
    elif not uri.startswith("databricks"):
        raise TrackingError(
            f"{shown!r} is not a tracking store; possible: http(s)://HOST:PORT of an MLflow server, "
            "sqlite:///FILE, postgresql://USER:PASSWORD@HOST/DATABASE"
        )


def _reach_database(uri: str, shown: str) -> None:
    import sqlalchemy

    file = sqlite_file(uri)
    options = {"connect_timeout": int(CONNECT_SECONDS)} if uri.startswith(("postgresql", "mysql")) else {}
    try:
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
        # MLflow itself would try ten times, for minutes
        engine = sqlalchemy.create_engine(uri, connect_args=options, poolclass=sqlalchemy.pool.NullPool)
        sqlalchemy.inspect(engine).get_table_names()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, OSError) as error:
        reason = first_line(getattr(error, "orig", None) or error)
        raise TrackingError(
            f"the tracking database {shown} cannot be opened: {reason}; check `uri` under [tracking]"
        ) from error


def sqlite_file(uri: str) -> Path | None:
    """Returns the file of an SQLite tracking store; None for every other kind."""
    match = re.match(r"sqlite(?:\+\w+)?:///(.+)", uri)
    return Path(match[1].partition("?")[0]) if match else None


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, which MLflow and SQLAlchemy put before their details."""
    return without_secrets(text.first_line(error))[:300]
