"""Where a study is kept: the journal in its folder, or a database."""

from __future__ import annotations

from pathlib import Path

from optuna.storages import BaseStorage, RDBStorage, get_storage

from tunelab.errors import ConfigError, RunFailed
from tunelab.sweep.journal import open_journal

SECONDS_TO_WAIT = 60
"""For another process that writes to the same SQLite file."""


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """Opens what keeps a study.

    Args:
        url: Of a database; None for the journal in the sweep's folder.
        folder: Of the sweep.

    Raises:
        ConfigError: If it cannot be opened.
    """
    return open_journal(folder / "study.journal") if url is None else get_storage(_database(url))


def _database(url: str) -> RDBStorage:
    from sqlalchemy import event
    from sqlalchemy.engine import ExceptionContext, make_url
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

    key = "`sweep.storage` must be"
    try:
        parsed = make_url(url)
        is_sqlite = parsed.get_backend_name() == "sqlite"
        if is_sqlite and parsed.database in (None, "", ":memory:"):
            raise ValueError("no file")  # what is not kept cannot be taken up again
        wait = {"connect_args": {"timeout": SECONDS_TO_WAIT}} if is_sqlite else {"pool_pre_ping": True}
        storage = RDBStorage(url, wait)
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise ConfigError(
            f"{key} the URL of a database, got {url}. Write sqlite:///study.db or "
            "postgresql://user:password@host/database, or leave it out to keep the study in its folder."
        ) from None
    except ImportError as error:
        driver = getattr(error.__cause__, "name", None) or parsed.get_driver_name()
        raise ConfigError(
            f"{key} a database whose driver is installed, got {_shown(url)}, which needs {driver}. "
            f"Type pip install {INSTALLED_BY.get(driver, driver)}."
        ) from None
    except (SQLAlchemyError, RuntimeError) as error:  # the latter of a study of another version of Optuna
        raise ConfigError(
            f"{key} a database that can be opened, got {_shown(url)}: {_reason(error)}. "
            "Mend that, or leave it out to keep the study in its folder."
        ) from None

    @event.listens_for(storage.engine, "handle_error")
    def say(context: ExceptionContext) -> None:
        error = context.sqlalchemy_exception
        if isinstance(error, DBAPIError) and type(error).__name__ in LOST:
            raise RunFailed(
                f"The study in {_shown(url)} could not be reached: {_reason(error)}. What it holds is whole. "
                "Mend that, then type the same command again."
            )

    return storage


INSTALLED_BY = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""The packages whose names are not those of their modules."""

LOST = {"OperationalError", "InterfaceError"}
"""What a database that is full, locked or gone raises; the other errors are Optuna's to handle."""


def _reason(error: BaseException) -> str:
    """The first line of what a driver said."""
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0].rstrip(".")


def _shown(url: str) -> str:
    """The URL without its password."""
    from sqlalchemy.engine import make_url

    return make_url(url).render_as_string(hide_password=True)
