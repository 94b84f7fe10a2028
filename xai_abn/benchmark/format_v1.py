"""Upgrade of benchmark runs of format 1, which identified values by the text of definitions and docstrings."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from xai_abn.errors import XaiAbnError
from xai_abn.explainers import get
from xai_abn.files import key_of

#: Methods, metrics and kinds of data sets that were renamed, and values of records that were prose.
_METHODS = {"centre": "center"}
_METRICS = {"max-box-acc": "max-box-accuracy", "randomisation": "model-parameter-randomization"}
_KINDS = {"folder": "images"}
_VALUES = {
    "top-1": "prediction",
    "each class present": "classes",
    "objects of the class and of others": "class-objects",
    "over the data set": "data-set",
}
#: Labels of the axes of curves, which format 1 derived from the name of the metric.
_AXES = {"deletion": "share of pixels deleted", "insertion": "share of pixels inserted"}


def upgrade(connection: sqlite3.Connection) -> None:
    """Change tables, names and keys of a run of format 1 into those of format 2, inside the caller's transaction.

    Values and maps stay as they are. The fingerprint of the model cannot be computed without the model; it is kept as
    ``fingerprint_v1`` until the run is continued with that model.
    """
    connection.execute("ALTER TABLE results RENAME COLUMN work TO measurement")
    connection.execute("ALTER TABLE failures RENAME TO old_failures")
    connection.execute(
        "CREATE TABLE failures (source TEXT NOT NULL, image TEXT NOT NULL, reason TEXT NOT NULL, "
        "PRIMARY KEY (source, image))"
    )
    connection.execute("INSERT OR REPLACE INTO failures SELECT source, image, reason FROM old_failures")
    connection.execute("DROP TABLE old_failures")
    identity = _entry(connection, "identity")
    if "fingerprint" in identity.get("model", {}):
        identity["model"]["fingerprint_v1"] = identity["model"].pop("fingerprint")
    data = identity.get("data", {})
    kind, *rest = str(data.get("kind", "")).split(" ", 1)
    data["kind"] = " ".join([_KINDS.get(kind, kind), *rest])
    connection.execute("UPDATE run SET value = ? WHERE name = 'identity'", (json.dumps(identity),))
    metrics = dict(_metric(name, record) for name, record in _records(connection, "metrics", "metric"))
    methods = dict(_method(name, record) for name, record in _records(connection, "methods", "method"))
    new_methods = dict(zip((n for n, _ in _records(connection, "methods", "method")), methods, strict=True))
    new_metrics = dict(zip((n for n, _ in _records(connection, "metrics", "metric")), metrics, strict=True))
    for table, column, records in (("metrics", "metric", metrics), ("methods", "method", methods)):
        connection.execute(f"DELETE FROM {table}")
        rows = [(name, json.dumps(record, sort_keys=True)) for name, record in records.items()]
        connection.executemany(f"INSERT INTO {table} ({column}, record) VALUES (?, ?)", rows)
    for table, column, renamed in (
        ("maps", "method", new_methods),
        ("results", "method", new_methods),
        ("results", "metric", new_metrics),
    ):
        changes = [(new, old) for old, new in renamed.items() if new != old]
        connection.executemany(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", changes)
    maps = connection.execute("SELECT key, image, method, trial FROM maps").fetchall()
    connection.executemany(
        "UPDATE maps SET key = ? WHERE key = ?",
        [(key_of(image=image, method=method, trial=trial), key) for key, image, method, trial in maps],
    )
    changed = []
    for key, image, method, trial, metric in connection.execute(
        "SELECT key, image, method, trial, metric FROM results"
    ).fetchall():
        measurement = key_of(
            image=image, method=methods.get(method, {}).get("identity"), metric=metrics.get(metric, {}).get("identity")
        )
        changed.append((key_of(measurement=measurement, trial=trial), measurement, key))
    connection.executemany("UPDATE results SET key = ?, measurement = ? WHERE key = ?", changed)


def _entry(connection: sqlite3.Connection, name: str) -> Any:
    row = connection.execute("SELECT value FROM run WHERE name = ?", (name,)).fetchone()
    return json.loads(row[0]) if row else {}


def _records(connection: sqlite3.Connection, table: str, column: str) -> list[tuple[str, dict[str, Any]]]:
    rows = connection.execute(f"SELECT {column}, record FROM {table} ORDER BY rowid").fetchall()
    return [(name, json.loads(record)) for name, record in rows]


def _metric(name: str, record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name and the record of a metric with its identity; prose that named a choice becomes an identifier."""
    name, _, protocol = name.partition(":")
    name = record["name"] = _METRICS.get(name, name)
    record["at_image_size"] = record.pop("at_photo_size", False)
    for choice in ("subject", "needs", "aggregated"):
        record[choice] = _VALUES.get(str(record.get(choice)), record.get(choice))
    if name in _AXES:
        record |= {"axis_label": _AXES[name], "reads_probabilities": True}
    identity = {"name": name, "protocol": protocol, "version": 1, "parameters": record.get("parameters") or {}}
    return f"{name}:{protocol}", {**record, "identity": identity}


def _method(name: str, record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name and the record of a method with its identity.

    A method that is still known is named by its specification. Another, such as one of a plug-in that is not
    installed, keeps its name and the settings in the file.
    """
    name = _METHODS.get(name, name)
    options = record.get("parameters") or {}
    try:
        explainer = get(name)(**options)
        name, options = explainer.spec, explainer.options
        identity = {"name": explainer.name, "version": 1}
    except XaiAbnError:
        identity = {"name": name, "version": 1}
    record["baseline"] = record.pop("control", False)
    return name, {**record, "identity": {**identity, "options": options, "layer": record.get("layer", "")}}
