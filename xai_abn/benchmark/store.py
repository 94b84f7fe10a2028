"""The file of a benchmark run: one SQLite database with every value under a hash of everything it depends on.

docs/formats.md describes the file and which versions are read.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xai_abn.benchmark.format_v1 import upgrade
from xai_abn.errors import RunError, XaiAbnError

#: Format of the file. Newer formats are refused.
FORMAT = 2
#: Seconds to wait for another process that is writing.
TIMEOUT = 10.0
#: Condition on rows: their image has not changed since.
_COUNTS = " AND image IN (SELECT image FROM images WHERE superseded = 0)"

_SCHEMA = (
    "CREATE TABLE run (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE metrics (metric TEXT PRIMARY KEY, record TEXT NOT NULL)",
    "CREATE TABLE methods (method TEXT PRIMARY KEY, record TEXT NOT NULL)",
    """CREATE TABLE images (
        image TEXT PRIMARY KEY, position INTEGER NOT NULL, source TEXT NOT NULL, label TEXT,
        view BLOB NOT NULL, objects TEXT NOT NULL, superseded INTEGER NOT NULL DEFAULT 0)""",
    """CREATE TABLE maps (
        key TEXT PRIMARY KEY, image TEXT NOT NULL, method TEXT NOT NULL, trial TEXT NOT NULL,
        target INTEGER NOT NULL, label TEXT NOT NULL, probability REAL NOT NULL, flaw TEXT, seconds REAL NOT NULL,
        height INTEGER NOT NULL, width INTEGER NOT NULL, map BLOB NOT NULL)""",
    """CREATE TABLE results (
        key TEXT PRIMARY KEY, image TEXT NOT NULL, method TEXT NOT NULL, trial TEXT NOT NULL, target INTEGER NOT NULL,
        metric TEXT NOT NULL, value REAL, flaw TEXT, curve BLOB, measurement TEXT NOT NULL)""",
    "CREATE TABLE failures (source TEXT NOT NULL, image TEXT NOT NULL, reason TEXT NOT NULL, "
    "PRIMARY KEY (source, image))",
    "CREATE INDEX results_by_metric ON results (metric, method)",
    "CREATE INDEX maps_by_image ON maps (image)",
)


@dataclass(frozen=True)
class ImageRow:
    """One image of a run.

    Attributes:
        image: key of its content and annotations.
        position: in the data set.
        source: path, as named in the data set.
        label: class of the whole image, or None.
        view: JPEG of the part the network saw.
        objects: ``[{"label", "box": [left, top, right, bottom], "crowd", "difficult"}]``, boxes as shares of the view.
        superseded: the image or its annotations changed since; its results no longer count.
    """

    image: str
    position: int
    source: str
    label: str | None
    view: bytes
    objects: list[dict[str, Any]]
    superseded: bool = False


@dataclass(frozen=True, eq=False)
class MapRow:
    """One map, kept for the images of the report; large maps are reduced.

    Attributes:
        trial: ``"top-1"`` or the name of an annotated class.
        target: the model's class index.
        label: its name.
        probability: of the target.
        flaw: why the map means nothing, or None.
        seconds: the image's share of the forward pass, and the method's own.
        map: (h, w) float32.
    """

    key: str
    image: str
    method: str
    trial: str
    target: int
    label: str
    probability: float
    flaw: str | None
    seconds: float
    map: np.ndarray


@dataclass(frozen=True, eq=False)
class ResultRow:
    """One value: of one metric with its protocol, for one method, target and image.

    Attributes:
        metric: ``"name:protocol"``.
        value: None if there is none, with the reason in ``flaw``.
        flaw: why the map could not be scored, such as ``"flat"``.
        curve: (T,) float32, or None for a metric without curves.
        measurement: key shared by all trials of one metric and method on one image; they are written together.
    """

    key: str
    image: str
    method: str
    trial: str
    target: int
    metric: str
    value: float | None
    flaw: str | None
    curve: np.ndarray | None = None
    measurement: str = ""


@dataclass(frozen=True)
class FailureRow:
    """An image that could not be measured, and why."""

    source: str
    reason: str
    image: str = ""


@dataclass
class Batch:
    """The rows that one step of a run adds in one transaction."""

    images: list[ImageRow] = field(default_factory=list)
    maps: list[MapRow] = field(default_factory=list)
    results: list[ResultRow] = field(default_factory=list)
    failures: list[FailureRow] = field(default_factory=list)


class Store:
    """One run's file, opened by :meth:`create`, :meth:`open` or :meth:`read`.

    Examples:
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
    def create(
        cls, path: str | Path, identity: Mapping[str, Any], fingerprints_v1: Callable[[], set[str]] = set
    ) -> Store:
        """Create a new file, or open one of the same identity to continue it.

        Args:
            path: of the file; its folder must exist.
            identity: what all values of a run share: model, preprocessing, precision, data.
            fingerprints_v1: returns the fingerprints that format 1 may have of the model; called for a run that was
                begun in that format.

        Raises:
            RunError: the file is not a run, is damaged, busy or of a newer format, or is of another model or other
                data.
        """
        path = Path(path)
        if not (path.exists() and path.stat().st_size) or _holds_nothing(path):
            cls._make(path, identity)
        store = cls.open(path)
        try:
            store._adopt_fingerprint(identity, fingerprints_v1)
            store.check_identity(identity)
        except RunError:
            store.close()
            raise
        return store

    @classmethod
    def _make(cls, path: Path, identity: Mapping[str, Any]) -> None:
        """Make the tables in one transaction, unless another process has done so meanwhile."""
        with _explained(path), contextlib.closing(sqlite3.connect(path, timeout=TIMEOUT, isolation_level=None)) as new:
            new.execute("PRAGMA journal_mode=WAL")
            new.execute("BEGIN IMMEDIATE")
            if not _tables(new):
                for statement in _SCHEMA:
                    new.execute(statement)
                entries = {"format": FORMAT, "identity": dict(identity), "sessions": []}
                new.executemany("INSERT INTO run VALUES (?, ?)", [(k, json.dumps(v)) for k, v in entries.items()])
            new.execute("COMMIT")

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
            raise RunError(f"{path}: no such run; make one with xai-abn benchmark run --output {path}")
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
                f"{path}: written by a newer xai-abn (format {row and row[0]}, this one reads up to {FORMAT}); update "
                "xai-abn"
            )
        with _explained(path):
            if writable:
                connection.execute("PRAGMA journal_mode=WAL")
            if json.loads(row[0]) < FORMAT:
                connection = _upgraded(connection, writable)
        return cls(path, connection, writable)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. A run that was written to becomes one plain file, unless another process has it open."""
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
        """The sessions of the run, each with command, start and environment."""
        result: list[dict[str, Any]] = self._entry("sessions")
        return result

    def add_session(self, record: Mapping[str, Any]) -> int:
        """Record a new session and return its number."""
        with self._transaction():
            sessions = [*self.sessions, dict(record)]
            self._connection.execute("UPDATE run SET value = ? WHERE name = 'sessions'", (json.dumps(sessions),))
        return len(sessions) - 1

    def update_session(self, number: int, **facts: Any) -> None:
        """Add facts to a session, such as how long it took; None takes a fact away."""
        with self._transaction():
            sessions = self.sessions
            known = {**sessions[number], **facts}
            sessions[number] = {name: fact for name, fact in known.items() if fact is not None}
            self._connection.execute("UPDATE run SET value = ? WHERE name = 'sessions'", (json.dumps(sessions),))

    def describe(self, metrics: Mapping[str, Any], methods: Mapping[str, Any]) -> None:
        """Store the records of metrics and methods by name; descriptions of an earlier session are replaced.

        Raises:
            RunError: a metric or method has another version, or a method another layer or other options.
        """
        with self._transaction() as add:
            self.check_described(metrics, methods)
            for table, column, records in (("metrics", "metric", metrics), ("methods", "method", methods)):
                for name, record in records.items():
                    text = json.dumps(record, sort_keys=True)
                    add.execute(
                        f"INSERT INTO {table} VALUES (?, ?) "
                        f"ON CONFLICT ({column}) DO UPDATE SET record = excluded.record",
                        (name, text),
                    )

    def check_described(self, metrics: Mapping[str, Any], methods: Mapping[str, Any]) -> None:
        """Refuse records of metrics and methods that are others than those of the run by the same names.

        Raises:
            RunError: a metric or method has another version, or a method another layer or other options.
        """
        for column, known, records in (("metric", self.metrics(), metrics), ("method", self.methods(), methods)):
            for name, record in records.items():
                before, now = known.get(name, {}).get("identity"), record.get("identity")
                if before is not None and before != json.loads(json.dumps(now)):
                    raise RunError(
                        f"{self.path}: {column} {name!r} was {_short(before)} when this run was begun, and is "
                        f"{_short(now)} now; values are never mixed: choose another --output"
                    )

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
                add.execute("DELETE FROM failures WHERE source = ? AND image != ?", (image.source, image.image))
            _insert(add, "images", ({**vars(i), "objects": json.dumps(i.objects)} for i in batch.images))
            _insert(add, "maps", map(_map_columns, batch.maps))
            _insert(add, "results", ({**vars(r), "curve": _packed(r.curve)} for r in batch.results))
            _insert(add, "failures", map(vars, batch.failures))

    def done(self) -> set[str]:
        """Return the measurement keys of everything measured so far."""
        return {k for (k,) in self._rows("SELECT DISTINCT measurement FROM results")}

    def superseded(self) -> set[str]:
        """Return the keys of images that changed since they were measured; their values do not count."""
        return {k for (k,) in self._rows("SELECT image FROM images WHERE superseded = 1")}

    def images(self, superseded: bool = False, views: bool = True) -> list[ImageRow]:
        """Return the images in the order of the data set; also those changed since, if asked for.

        Without ``views`` each view is empty: of many images they would fill the memory.
        """
        where = "" if superseded else "WHERE superseded = 0"
        columns = "*" if views else "image, position, source, label, x'' AS view, objects, superseded"
        rows = self._records(f"SELECT {columns} FROM images {where} ORDER BY position, image")
        return [
            ImageRow(**{**r, "objects": json.loads(r["objects"]), "superseded": bool(r["superseded"])}) for r in rows
        ]

    def maps(self, image: str | None = None, *, superseded: bool = False) -> list[MapRow]:
        """Return the maps of one image, or all, of images that still count, or also of those changed since."""
        where, values = ("WHERE image = ?", (image,)) if image else ("WHERE 1", ())
        query = f"SELECT * FROM maps {where}{'' if superseded else _COUNTS}"
        found = []
        for r in self._records(f"{query} ORDER BY rowid", values):
            shape = (r.pop("height"), r.pop("width"))
            found.append(MapRow(**{**r, "map": np.frombuffer(r["map"], np.float32).reshape(shape)}))
        return found

    def map_facts(self) -> list[tuple[str, float, str | None]]:
        """Return (method, seconds, flaw) of every map of images that still count, without the maps."""
        query = "SELECT method, seconds, flaw FROM maps WHERE image IN (SELECT image FROM images WHERE superseded = 0)"
        return list(self._rows(f"{query} ORDER BY rowid"))

    def results(
        self, metric: str | None = None, *, all_rows: bool = False, superseded: bool = False
    ) -> list[ResultRow]:
        """Return the values of one metric, or all, of images that still count, or also of those changed since.

        With ``all_rows`` also the rows that only note that an image has no trial for a metric.
        """
        where, values = ("WHERE metric = ?", (metric,)) if metric else ("WHERE 1", ())
        where += "" if all_rows else " AND trial != ''"
        query = f"SELECT * FROM results {where}{'' if superseded else _COUNTS}"
        rows = self._records(f"{query} ORDER BY image, method, trial, metric", values)
        return [
            ResultRow(**{**r, "curve": None if r["curve"] is None else np.frombuffer(r["curve"], np.float32)})
            for r in rows
        ]

    def measured(self) -> list[tuple[str, str]]:
        """Return each metric and method of which there are rows."""
        return list(self._rows("SELECT DISTINCT metric, method FROM results"))

    def rows_of(self, metric: str, method: str) -> Iterator[tuple[str, str, float | None, str | None, bytes | None]]:
        """Yield image, trial, value, flaw and curve of :meth:`results` of one metric and method, as they are stored."""
        query = (
            "SELECT image, trial, value, flaw, curve FROM results WHERE metric = ? AND method = ? AND trial != '' AND "
            "image IN (SELECT image FROM images WHERE superseded = 0) ORDER BY image, trial"
        )
        return self._rows(query, (metric, method))

    def views(self, images: Iterable[str]) -> dict[str, bytes]:
        """Return the views of those of some images that the run has."""
        query = "SELECT image, view FROM images WHERE image = ? AND superseded = 0"
        return dict(row for image in images for row in self._rows(query, (image,)))

    def failures(self) -> list[FailureRow]:
        """Return the images that could not be measured."""
        return [FailureRow(**r) for r in self._records("SELECT source, reason, image FROM failures ORDER BY source")]

    def count(self, table: str) -> int:
        """Return the number of rows of a table of the schema."""
        result: int = next(self._rows(f"SELECT count(*) FROM {table}"))[0]
        return result

    def _entry(self, name: str) -> Any:
        return json.loads(next(self._rows("SELECT value FROM run WHERE name = ?", (name,)))[0])

    def _records(self, query: str, values: Iterable[Any] = ()) -> Iterator[dict[str, Any]]:
        """Yield the rows of a query as dictionaries by column."""
        with _explained(self.path):
            cursor = self._connection.execute(query, tuple(values))
            names = [column[0] for column in cursor.description]
            for row in cursor:
                yield dict(zip(names, row, strict=True))

    def _rows(self, query: str, values: Iterable[Any] = ()) -> Iterator[tuple[Any, ...]]:
        with _explained(self.path):
            yield from self._connection.execute(query, tuple(values))

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """Refuse an identity that differs from the run's, except in the name and file of the model.

        Raises:
            RunError: the message names the first difference.
        """
        known, now = _compared(self.identity), _compared(json.loads(json.dumps(dict(identity))))
        if not ("outputs" in known["model"] and "outputs" in now["model"]):  # one is older than this entry
            for compared in (known, now):
                compared["model"] = {n: v for n, v in compared["model"].items() if n not in _READ_AS}
        for part in sorted(set(known) | set(now)):
            if known.get(part) != now.get(part):
                raise RunError(
                    f"{self.path}: this run has another {part} ({_short(known.get(part))}, now "
                    f"{_short(now.get(part))}); values are never mixed: choose another --output"
                )

    def _adopt_fingerprint(self, identity: Mapping[str, Any], fingerprints_v1: Callable[[], set[str]]) -> None:
        """Replace the model's fingerprint of format 1 by the present one, if it is the same model."""
        known = self.identity
        model = known.get("model", {})
        if "fingerprint_v1" in model and model["fingerprint_v1"] in fingerprints_v1():
            with self._transaction() as change:
                value = json.dumps({**known, "model": identity["model"]})
                change.execute("UPDATE run SET value = ? WHERE name = 'identity'", (value,))

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


def _upgraded(connection: sqlite3.Connection, writable: bool) -> sqlite3.Connection:
    """Return a run of format 1 as one of this format: changed in one transaction, or as a copy in memory."""
    if not writable:
        copy = sqlite3.connect(":memory:", isolation_level=None)
        connection.backup(copy)
        connection.close()
        connection = copy
    connection.execute("BEGIN IMMEDIATE")
    try:
        upgrade(connection)
        connection.execute("UPDATE run SET value = ? WHERE name = 'format'", (json.dumps(FORMAT),))
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return connection


def _insert(connection: sqlite3.Connection, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert rows given by column, replacing those with the same key."""
    rows = list(rows)
    if rows:
        columns = ", ".join(rows[0])
        places = ", ".join(f":{name}" for name in rows[0])
        connection.executemany(f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({places})", rows)


def _map_columns(row: MapRow) -> dict[str, Any]:
    height, width = row.map.shape
    return {**vars(row), "height": height, "width": width, "map": _packed(row.map)}


def _packed(values: np.ndarray | None) -> bytes | None:
    return None if values is None else np.ascontiguousarray(values, np.float32).tobytes()


#: What an identity says of how the network's output is read.
_READ_AS = ("outputs", "output")


def _compared(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of an identity that must be equal."""
    model = {k: v for k, v in identity.get("model", {}).items() if k.startswith("fingerprint") or k in _READ_AS}
    return {**identity, "model": model}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


_BUSY = "another process is writing it; wait for it, or use --shard with one file each"
_FULL = "the disk is full; free some space and run the same command again, nothing measured is lost"
#: What to do, by SQLite's text for its result codes, since Python 3.10 does not give the code
#: (https://sqlite.org/rescode.html).
_ADVICE = {
    "database is locked": _BUSY,
    "database table is locked": _BUSY,
    "attempt to write a readonly database": "the file is read-only; make it writable or choose another --output",
    "disk I/O error": _FULL,
    "database or disk is full": _FULL,
    "unable to open database file": "it cannot be opened or created here; check its folder",
}


@contextmanager
def as_damaged(run: object) -> Iterator[None]:
    """Turn every error that values of a wrong type in a run cause into one.

    Raises:
        RunError: an error that is not the package's was raised inside.
    """
    try:
        yield
    except (XaiAbnError, MemoryError, OSError):
        raise
    except Exception as error:  # a table may hold anything
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{run}: a value in the file has the wrong type ({type(error).__name__}: {reason}); the run is damaged, so "
            "measure again into another file"
        ) from error


def _tables(connection: sqlite3.Connection) -> int:
    number: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return number


def _holds_nothing(path: Path) -> bool:
    """Return whether a file is an SQLite database without tables, as a process killed while making a run leaves it."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=TIMEOUT)) as connection:
            return not _tables(connection)
    except sqlite3.Error:
        return False


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into one that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        other = "it is not a run of xai-abn, or it is damaged; choose another --output or delete it"
        raise RunError(f"{path}: {error}; {_ADVICE.get(str(error), other)}") from error
