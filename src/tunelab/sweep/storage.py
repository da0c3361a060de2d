"""Where a study is kept: the journal in its folder, or a database."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

from optuna import Study
from optuna.storages import BaseStorage, RDBStorage, get_storage

from tunelab.errors import ConfigError, RunFailed, as_typed
from tunelab.folder import write_atomic
from tunelab.sweep.journal import open_journal

SECONDS_TO_WAIT = 60
"""For another process that writes to the same SQLite file."""

KEPT = "study.json"
"""The file of a sweep's folder that says which study of a database is its own."""

FOLDER = "tunelab_folder"
"""The attribute of a study in a database that says which folder is its own."""

SECONDS_TO_BIND = 1.0
"""Within which whoever made a study has said whose it is."""


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """Opens what keeps a study.

    Args:
        url: Of a database; None for the journal in the sweep's folder.
        folder: Of the sweep.

    Raises:
        ConfigError: If it cannot be opened.
    """
    return open_journal(folder / "study.journal") if url is None else get_storage(_database(url))


def name_of(folder: Path) -> str:
    """What a folder's study is called in a database: what the folder was called when it was made."""
    name: str = _kept(folder).get("study", folder.name)
    return name


def refuse_elsewhere(url: str | None, folder: Path) -> None:
    """Refuses to make a study for a folder with trials, whose study is kept elsewhere.

    Args:
        url: Of a database, where it is not; None for the journal in the folder.
        folder: Of the sweep.

    Raises:
        ConfigError: With where it is.
    """
    kept, journal = _kept(folder), folder / "study.journal"
    in_folder = url is not None and journal.is_file() and journal.stat().st_size > 0
    if not (kept or in_folder) or not any(path.name.isdigit() for path in folder.iterdir()):
        return
    where, there = _shown(url) if url else as_typed(journal), kept.get("storage", as_typed(journal))
    remedy = f"Type sweep.storage={there} with its password, if it has one" if kept else "Leave sweep.storage out"
    if there == where:
        there, remedy = f"{there}, which has lost it", "Put that back"
    raise ConfigError(
        f"`sweep.storage` must be where {as_typed(folder)} has its study, got {where}: this folder's study is in "
        f"{there}. {remedy}, or choose another name=…"
    )


def bind(study: Study, url: str, folder: Path, is_new: bool) -> None:
    """Makes a study of a database a folder's own: what keeps two processes from one trial is in the folder.

    A kill on the way leaves what the next call completes.

    Args:
        study: That is there.
        url: Of its database.
        folder: Of the sweep, in which no other process does this meanwhile.
        is_new: Whether this process has made it.

    Raises:
        ConfigError: If it is another folder's.
    """
    token = _kept(folder).get("token")
    bound = study.user_attrs.get(FOLDER)
    if bound is None and not is_new and token is None:
        time.sleep(SECONDS_TO_BIND)
        bound = study.user_attrs.get(FOLDER)
    if bound is not None and bound["token"] != token:
        raise ConfigError(
            f"Study {study.study_name!r} in {_shown(url)} is kept with another folder, {bound['folder']}: run it from "
            "there, or choose another name=…"
        )
    if bound is None:
        token = token or uuid.uuid4().hex
        said = {"token": token, "study": study.study_name, "storage": _shown(url)}
        write_atomic(folder / KEPT, json.dumps(said) + "\n")
        study.set_user_attr(FOLDER, {"token": token, "folder": str(folder.resolve())})


def _kept(folder: Path) -> dict[str, str]:
    try:
        kept: dict[str, str] = json.loads((folder / KEPT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise ConfigError(f"`{as_typed(folder / KEPT)}` must say which study is this folder's. Restore it.") from None
    return kept


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
