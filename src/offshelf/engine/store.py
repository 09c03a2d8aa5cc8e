"""Results of many jobs in one SQLite file, written by several processes at once and safe against ``kill -9``.

While rows are written the file is in SQLite's WAL mode, and its newest rows lie beside it in ``-wal``. `close` brings
them home and leaves one plain file that can be hashed, copied and read without leaving a trace.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from offshelf.engine.files import finite
from offshelf.errors import RunError

FORMAT = 1
APPLICATION = 0x0FF5E1F0  # SQLite keeps this number in the file's header: a database of ours
PATIENCE = 30  # seconds that a writer waits for its turn
Status = Literal["done", "failed", "not applicable"]

TABLE = """
create table results (
    key text primary key, name text not null, kind text not null, spec text not null,
    status text not null check (status in ('done', 'failed', 'not applicable')),
    value text not null, blob blob, reason text not null, attempts integer not null, seconds real not null,
    created text not null
)"""
COLUMNS = "key, name, kind, spec, status, value, blob, reason, attempts, seconds, created"
# What is settled stays as it is; what failed may be tried again.
PUT = f"""
insert into results ({COLUMNS}) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
on conflict (key) do update set ({COLUMNS}) = ({", ".join(f"excluded.{name}" for name in COLUMNS.split(", "))})
where results.status = 'failed'"""


@dataclass(frozen=True)
class Row:
    """What one job came to. ``reason`` says why a job failed or does not apply; ``created`` is UTC, ISO 8601."""

    key: str
    name: str
    kind: str
    spec: dict[str, Any]
    status: Status
    value: dict[str, Any]
    blob: bytes | None
    reason: str
    attempts: int
    seconds: float
    created: str


class ResultStore:
    """One file of results, found by the key of their job.

    A row that is "done" or "not applicable" is settled and never changes; a "failed" one gives way to a later row.

    Parameters
    ----------
    path : Path
        Ends in ``.sqlite`` by custom. Made, with its folder, when it is not there.

    Raises
    ------
    RunError
        When the file is no store of ours or of another format, is damaged, or cannot be written (a full disk).
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._writes = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path}: its folder cannot be made ({error.strerror}); name another one.") from error
        with self._explained():
            self._database = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
        try:
            with self._explained():
                self._database.execute("pragma synchronous = normal")
                self._begin()
        except BaseException:
            self._database.close()
            raise

    def _begin(self) -> None:
        """Check that the file is ours, and lay it out when it is new."""
        if self._pragma("schema_version") == 0:
            with self._transaction():  # only one process lays it out; the others find it done
                if self._pragma("schema_version") == 0:
                    self._database.execute(TABLE)
                    self._database.execute(f"pragma application_id = {APPLICATION}")
                    self._database.execute(f"pragma user_version = {FORMAT}")
        if self._pragma("application_id") != APPLICATION:
            raise RunError(f"{self.path}: a database, but not one of results; nothing was touched. Name another file.")
        found = self._pragma("user_version")
        if found != FORMAT:
            raise RunError(
                f"{self.path}: results in format {found}, expected {FORMAT}. Use the offshelf that wrote them, or "
                "move the file away and run the jobs again."
            )

    def put(
        self,
        key: str,
        *,
        name: str,
        status: Status,
        kind: str = "",
        spec: dict[str, Any] | None = None,
        value: dict[str, Any] | None = None,
        blob: bytes | None = None,
        reason: str = "",
        attempts: int = 1,
        seconds: float = 0.0,
    ) -> bool:
        """Keep a result; False when ``key`` was settled before and the new one is dropped.

        Once this returns, the row survives the death of any process. NaN and infinities in ``value`` become None.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = (key, name, kind, _text(spec), status, _text(value), blob, reason, attempts, seconds, now)
        with self._explained():
            self._write_ahead()
            return self._database.execute(PUT, row).rowcount > 0

    def get(self, key: str) -> Row | None:
        """The row of ``key``, if there is one."""
        with self._explained():
            found = self._database.execute(f"select {COLUMNS} from results where key = ?", (key,)).fetchone()
        return _row(found) if found else None

    def done(self, keys: Iterable[str]) -> set[str]:
        """Those of ``keys`` that are settled ("done" or "not applicable") and need not run."""
        asked = "select key from results where status != 'failed' and key in (select value from json_each(?))"
        with self._explained():
            return {key for (key,) in self._database.execute(asked, (json.dumps(list(keys)),))}

    def rows(self, kind: str | None = None) -> list[Row]:
        """All rows, or those of one kind, sorted by kind, name and key (not by who finished first)."""
        asked = f"select {COLUMNS} from results where ?1 is null or kind = ?1 order by kind, name, key"
        with self._explained():
            return [_row(found) for found in self._database.execute(asked, (kind,))]

    def kinds(self) -> list[str]:
        """The kinds that rows have, sorted."""
        with self._explained():
            return [kind for (kind,) in self._database.execute("select distinct kind from results order by kind")]

    def close(self) -> None:
        """Bring all rows into the one file, so that it can be sealed or copied, and let go of it."""
        with self._explained(), contextlib.closing(self._database):
            if self._writes:
                self._database.execute("pragma busy_timeout = 0")
                # while others have the file open they need its journal: the last one to close tidies up
                with contextlib.suppress(sqlite3.OperationalError):
                    self._database.execute("pragma wal_checkpoint(truncate)")
                    self._database.execute("pragma journal_mode = delete")

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_ahead(self) -> None:
        """Enter WAL mode before the first write. SQLite does not wait for its turn here, so we do."""
        deadline = time.monotonic() + PATIENCE
        while not self._writes:
            try:
                self._pragma("journal_mode = wal")
                self._writes = True
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _pragma(self, what: str) -> Any:
        return self._database.execute(f"pragma {what}").fetchone()[0]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._database.execute("rollback")
            raise
        self._database.execute("commit")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's errors as one of ours: what is wrong with the file, and what to do."""
        try:
            yield
        except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
            raise  # a mistake of the caller, not of the file
        except sqlite3.DatabaseError as error:
            raise RunError(f"{self.path}: {self._meaning(error)}") from error

    def _meaning(self, error: sqlite3.DatabaseError) -> str:
        code = getattr(error, "sqlite_errorname", "")
        if code == "SQLITE_FULL" or code.startswith(("SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHM")):
            free = shutil.disk_usage(self.path.parent).free
            return (
                f"the disk is full ({free:,} bytes free, or a limit on the size of files is reached); the results so "
                "far are kept. Free some space and give the same command again."
            )
        if code == "SQLITE_NOTADB":
            return "not a database of results; nothing was touched. Name another file, or move this one away."
        if code.startswith("SQLITE_CORRUPT"):
            return f"the file is damaged ({error}). Restore it, or move it away and run the jobs again."
        if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return f"another process has kept it locked for {PATIENCE} seconds. Wait for it and run again."
        return f"{error}. Check that the file and its folder can be read and written."


def _text(value: dict[str, Any] | None) -> str:
    return json.dumps(finite(value or {}), ensure_ascii=False, allow_nan=False)


def _row(found: tuple[Any, ...]) -> Row:
    key, name, kind, spec, status, value, *rest = found
    return Row(key, name, kind, json.loads(spec), status, json.loads(value), *rest)
