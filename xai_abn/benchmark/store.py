"""One SQLite file a run: every value ever measured, found again by what it was measured on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from xai_abn.benchmark.records import Batch, FailureRow, ImageRow, MapRow, ResultRow
from xai_abn.errors import RunError

R = TypeVar("R")

#: Format of the file. A newer format is refused, not guessed.
FORMAT = 1
#: Seconds to wait for another process that is writing.
TIMEOUT = 10.0

_SCHEMA = """
CREATE TABLE run (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE metrics (metric TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE methods (method TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE images (
    image TEXT PRIMARY KEY, position INTEGER NOT NULL, source TEXT NOT NULL, label TEXT,
    view BLOB NOT NULL, objects TEXT NOT NULL, superseded INTEGER NOT NULL DEFAULT 0);
CREATE TABLE maps (
    key TEXT PRIMARY KEY, image TEXT NOT NULL, method TEXT NOT NULL, trial TEXT NOT NULL,
    target INTEGER NOT NULL, label TEXT NOT NULL, probability REAL NOT NULL, flaw TEXT, seconds REAL NOT NULL,
    height INTEGER NOT NULL, width INTEGER NOT NULL, map BLOB NOT NULL);
CREATE TABLE results (
    key TEXT PRIMARY KEY, image TEXT NOT NULL, method TEXT NOT NULL, trial TEXT NOT NULL, target INTEGER NOT NULL,
    metric TEXT NOT NULL, value REAL, flaw TEXT, curve BLOB, work TEXT NOT NULL);
CREATE TABLE failures (
    source TEXT NOT NULL, image TEXT NOT NULL, method TEXT NOT NULL, metric TEXT NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (source, image, method, metric));
CREATE INDEX results_by_metric ON results (metric, method);
CREATE INDEX maps_by_image ON maps (image);
"""


def key_of(**facts: Any) -> str:
    """Return the key of a value: a hash of everything it depends on."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """One run's file, opened by :meth:`create`, :meth:`open` or :meth:`read`.

    Example:
        >>> from xai_abn.benchmark.store import Store
        >>> with Store.create("run.sqlite", {"model": {"name": "lite0"}}) as store:
        ...     store.count("results")
        0
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, writable: bool = True) -> None:
        self.path = path
        self._connection = connection
        self._writable = writable

    @classmethod
    def create(cls, path: str | Path, identity: Mapping[str, Any]) -> Store:
        """Make a new file, or open one of the same identity to go on with it.

        Args:
            path: of the file; its folder must exist.
            identity: what all values of a run share: model, preprocessing, precision, data.

        Raises:
            RunError: the file is no run, damaged, busy, of a newer format, or was made with something else.
        """
        path = Path(path)
        if path.exists() and path.stat().st_size:
            store = cls.open(path)
            try:
                store.check_identity(identity)
            except RunError:
                store.close()
                raise
            return store
        with _explained(path):
            connection = sqlite3.connect(path, timeout=TIMEOUT, isolation_level=None)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            entries = {"format": FORMAT, "identity": dict(identity), "sessions": []}
            connection.executemany("INSERT INTO run VALUES (?, ?)", [(k, json.dumps(v)) for k, v in entries.items()])
            connection.execute("COMMIT")
        return cls(path, connection)

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a run to add to it.

        Raises:
            RunError: no file, no run, damaged, or of a newer format.
        """
        return cls._opened(Path(path), writable=True)

    @classmethod
    def read(cls, path: str | Path) -> Store:
        """Open a run to read it; the file is not changed.

        Raises:
            RunError: no file, no run, damaged, or of a newer format.
        """
        return cls._opened(Path(path), writable=False)

    @classmethod
    def _opened(cls, path: Path, *, writable: bool) -> Store:
        if not path.is_file():
            raise RunError(f"{path}: no such run; make one with xai-abn benchmark --output {path}")
        with _explained(path):
            mode = "rw" if writable else "ro"
            uri = f"{path.absolute().as_uri()}?mode={mode}"
            connection = sqlite3.connect(uri, uri=True, timeout=TIMEOUT, isolation_level=None)
            try:
                row = connection.execute("SELECT value FROM run WHERE name = 'format'").fetchone()
                check = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            except sqlite3.Error:
                connection.close()
                raise
        if check != "ok":
            connection.close()
            raise RunError(f"{path}: the run is damaged ({check}); delete it and measure again")
        if row is None or json.loads(row[0]) > FORMAT:
            connection.close()
            raise RunError(
                f"{path}: made by a newer xai-abn (format {row and row[0]}, this one reads {FORMAT}); update"
            )
        if writable:
            with _explained(path):
                connection.execute("PRAGMA journal_mode=WAL")
        return cls(path, connection, writable)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; one that was written to is then a single plain file, unless another still has it open."""
        with contextlib.suppress(sqlite3.Error):
            if self._writable:
                self._connection.execute("PRAGMA journal_mode=DELETE")
        self._connection.close()

    @property
    def identity(self) -> dict[str, Any]:
        """What all values of the run share."""
        result: dict[str, Any] = self._entry("identity")
        return result

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """Each time the run was worked on: command, start, environment."""
        result: list[dict[str, Any]] = self._entry("sessions")
        return result

    def add_session(self, record: Mapping[str, Any]) -> int:
        """Note that the run is worked on now, and return the session's number."""
        with self._transaction():
            sessions = [*self.sessions, dict(record)]
            self._connection.execute("UPDATE run SET value = ? WHERE name = 'sessions'", (json.dumps(sessions),))
        return len(sessions) - 1

    def update_session(self, number: int, **facts: Any) -> None:
        """Add facts to a session, such as how long it took."""
        with self._transaction():
            sessions = self.sessions
            sessions[number].update(facts)
            self._connection.execute("UPDATE run SET value = ? WHERE name = 'sessions'", (json.dumps(sessions),))

    def describe(self, metrics: Mapping[str, Any], methods: Mapping[str, Any]) -> None:
        """Record what the metrics and methods mean, by name.

        Raises:
            RunError: a name is there with another meaning, as after an update of xai-abn or a plug-in.
        """
        with self._transaction():
            for table, column, records in (("metrics", "metric", metrics), ("methods", "method", methods)):
                for name, record in records.items():
                    text = json.dumps(record, sort_keys=True)
                    query = f"SELECT record FROM {table} WHERE {column} = ?"
                    known = self._connection.execute(query, (name,)).fetchone()
                    if known is not None and known[0] != text:
                        raise RunError(
                            f"{self.path}: {column} {name!r} meant something else when this run was begun; "
                            "choose another --output"
                        )
                    self._connection.execute(f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", (name, text))

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Return the record of every metric by ``"name:protocol"``."""
        return {m: json.loads(r) for m, r in self._rows("SELECT metric, record FROM metrics ORDER BY rowid")}

    def methods(self) -> dict[str, dict[str, Any]]:
        """Return the record of every method by name."""
        return {m: json.loads(r) for m, r in self._rows("SELECT method, record FROM methods ORDER BY rowid")}

    def write(self, batch: Batch) -> None:
        """Add rows, all or none.

        Raises:
            RunError: the file cannot be written: locked, read-only, or the disk is full.
        """
        with self._transaction() as add:
            for image in batch.images:
                add.execute(
                    "UPDATE images SET superseded = 1 WHERE source = ? AND image != ?", (image.source, image.image)
                )
                values = (*asdict(image).values(),)
                packed = [json.dumps(v) if isinstance(v, list) else v for v in values]
                add.execute("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?)", packed)
                add.execute("DELETE FROM failures WHERE source = ? AND image != ?", (image.source, image.image))
            add.executemany(
                "INSERT OR REPLACE INTO maps VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", map(_map_values, batch.maps)
            )
            add.executemany("INSERT OR REPLACE INTO results VALUES (?,?,?,?,?,?,?,?,?,?)", map(_values, batch.results))
            add.executemany(
                "INSERT OR REPLACE INTO failures (source, reason, image, method, metric) VALUES (?,?,?,?,?)",
                [tuple(asdict(f).values()) for f in batch.failures],
            )

    def done(self) -> set[str]:
        """Return the ``work`` keys of everything measured so far."""
        return {k for (k,) in self._rows("SELECT DISTINCT work FROM results")}

    def superseded(self) -> set[str]:
        """Return the keys of photos that changed since they were measured; their values do not count."""
        return {k for (k,) in self._rows("SELECT image FROM images WHERE superseded = 1")}

    def images(self, superseded: bool = False) -> list[ImageRow]:
        """Return the photos in the order of the data set; also those changed since, if asked for."""
        where = "" if superseded else "WHERE superseded = 0"
        rows = self._rows(f"SELECT * FROM images {where} ORDER BY position, image")
        return [_record(ImageRow, r, objects=json.loads(r[5]), superseded=bool(r[6])) for r in rows]

    def maps(self, image: str | None = None) -> list[MapRow]:
        """Return the maps of one photo, or all, of photos that still count."""
        where, values = ("WHERE image = ?", (image,)) if image else ("WHERE 1", ())
        query = f"SELECT * FROM maps {where} AND image IN (SELECT image FROM images WHERE superseded = 0)"
        return [
            _record(MapRow, r, map=np.frombuffer(r[11], np.float32).reshape(r[9], r[10]))
            for r in self._rows(f"{query} ORDER BY rowid", values)
        ]

    def map_facts(self) -> list[tuple[str, float, str | None]]:
        """Return (method, seconds, flaw) of every map of photos that still count, without the maps."""
        query = "SELECT method, seconds, flaw FROM maps WHERE image IN (SELECT image FROM images WHERE superseded = 0)"
        return list(self._rows(f"{query} ORDER BY rowid"))

    def results(self, metric: str | None = None, *, all_rows: bool = False) -> list[ResultRow]:
        """Return the values of one metric, or all, of photos that still count.

        With ``all_rows`` also the rows that only note that a photo has no trial for a metric.
        """
        where, values = ("WHERE metric = ?", (metric,)) if metric else ("WHERE 1", ())
        where += "" if all_rows else " AND trial != ''"
        query = f"SELECT * FROM results {where} AND image IN (SELECT image FROM images WHERE superseded = 0)"
        return [
            _record(ResultRow, r, curve=None if r[8] is None else np.frombuffer(r[8], np.float32))
            for r in self._rows(f"{query} ORDER BY image, method, trial, metric", values)
        ]

    def failures(self) -> list[FailureRow]:
        """Return what could not be measured."""
        query = "SELECT source, reason, image, method, metric FROM failures ORDER BY source, method, metric"
        return [FailureRow(*r) for r in self._rows(query)]

    def count(self, table: str) -> int:
        """Return the number of rows of a table of the schema."""
        result: int = next(self._rows(f"SELECT count(*) FROM {table}"))[0]
        return result

    def _entry(self, name: str) -> Any:
        return json.loads(next(self._rows("SELECT value FROM run WHERE name = ?", (name,)))[0])

    def _rows(self, query: str, values: Iterable[Any] = ()) -> Iterator[tuple[Any, ...]]:
        with _explained(self.path):
            yield from self._connection.execute(query, tuple(values))

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """Refuse another identity than the run's.

        Raises:
            RunError: the message names the first difference.
        """
        known = self.identity
        plain = json.loads(json.dumps(dict(identity)))
        for part in sorted(set(known) | set(plain)):
            if known.get(part) != plain.get(part):
                raise RunError(
                    f"{self.path}: this run has another {part} ({_short(known.get(part))}, now "
                    f"{_short(plain.get(part))}); values are never mixed: choose another --output"
                )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _explained(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def _map_values(row: MapRow) -> tuple[Any, ...]:
    *facts, map_ = (getattr(row, name) for name in row.__dataclass_fields__)
    return (*facts, *map_.shape, np.ascontiguousarray(map_, np.float32).tobytes())


def _values(row: ResultRow) -> tuple[Any, ...]:
    *facts, curve, work = (getattr(row, name) for name in row.__dataclass_fields__)
    return (*facts, None if curve is None else np.ascontiguousarray(curve, np.float32).tobytes(), work)


def _record(kind: type[R], row: tuple[Any, ...], **converted: Any) -> R:
    """Build a record from a row whose first columns are its first fields, with some fields converted."""
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    return kind(**(dict(zip(names, row, strict=False)) | converted))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into one that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if "locked" in text or "busy" in text:
            advice = "another process is writing it; wait for it, or use --shard with one file each"
        elif "readonly" in text or "read-only" in text:
            advice = "the file is read-only; make it writable or choose another --output"
        elif "full" in text or "disk I/O" in text:
            advice = "the disk is full; free some space and run the same command again, nothing measured is lost"
        elif "unable to open" in text:
            advice = "it cannot be opened or made here; check its folder"
        else:
            advice = "it is no run of xai-abn, or damaged; choose another --output or delete it"
        raise RunError(f"{path}: {text}; {advice}") from error
