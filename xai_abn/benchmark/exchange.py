"""Joining of runs, and their export as tables for other programs."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xai_abn.benchmark.store import Batch, Store, as_damaged
from xai_abn.errors import InvalidInputError, OutputError, RunError
from xai_abn.files import replacing

#: Columns of an exported table.
COLUMNS = (
    "source",
    "image",
    "model",
    "method",
    "trial",
    "target",
    "metric",
    "protocol",
    "value",
    "flaw",
)


def merge_runs(output: str | Path, parts: Sequence[str | Path]) -> tuple[int, int]:
    """Join runs made with the same model, preprocessing, precision and data, as the shards of one run are.

    The result holds what one run over all images would; it is written whole or not at all.

    Args:
        output: the file to make; must not exist.
        parts: the files to join; they are not changed.

    Returns:
        The numbers of images and of values.

    Raises:
        RunError: a part is missing, damaged, or of another model or other data.
        OutputError: ``output`` exists or cannot be written.
    """
    output = Path(output)
    if output.exists():
        raise OutputError(f"{output} exists; choose another name for the merged run, or delete it")
    if not parts:
        raise InvalidInputError("give at least one run to merge")
    with Store.read(parts[0]) as first:
        identity = first.identity
    with replacing(output) as draft:
        try:
            with Store.create(draft, identity) as joined:
                for part in parts:
                    with as_damaged(part):
                        _add(joined, part)
                return joined.count("images"), joined.count("results")
        finally:
            for end in ("-wal", "-shm"):
                draft.with_name(draft.name + end).unlink(missing_ok=True)


def _add(joined: Store, part: str | Path) -> None:
    with Store.read(part) as store:
        try:
            joined.check_identity(store.identity)
        except RunError as error:
            raise RunError(f"{part} does not belong to the other parts: {error}") from error
        joined.describe(store.metrics(), store.methods())
        for session in store.sessions:
            joined.add_session(session)
        images, maps = store.images(superseded=True), store.maps(superseded=True)
        joined.write(Batch(images, maps, store.results(all_rows=True, superseded=True), store.failures()))


def export_run(run: str | Path, output: str | Path) -> int:
    """Write every value of a run as a table with the columns of ``COLUMNS``; return the number of rows.

    Args:
        run: the run's file.
        output: a ``.csv`` or ``.parquet`` file; a CSV leaves missing values empty.

    Raises:
        RunError: no run, or a damaged one.
        InvalidInputError: another ending, or ``.parquet`` without pyarrow.
        OutputError: the file cannot be written.
    """
    output = Path(output)
    if output.suffix not in (".csv", ".parquet"):
        raise InvalidInputError(f"{output}: the file must end in .csv or .parquet")
    with as_damaged(run), Store.read(run) as store:
        rows = list(_rows(store))
    with replacing(output) as draft:
        if output.suffix == ".csv":
            with draft.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(COLUMNS)
                writer.writerows(rows)
        else:
            _write_parquet(draft, rows)
    return len(rows)


def _rows(store: Store) -> Iterator[tuple[Any, ...]]:
    sources = {image.image: image.source for image in store.images()}
    model = store.identity.get("model", {}).get("name", "")
    for r in store.results():
        metric, _, protocol = r.metric.partition(":")
        yield sources[r.image], r.image, model, r.method, r.trial, r.target, metric, protocol, r.value, r.flaw


def _write_parquet(path: Path, rows: list[tuple[Any, ...]]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InvalidInputError(
            "writing .parquet needs pyarrow: pip install 'xai-abn[parquet]', or choose a .csv file"
        ) from error
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    types = {"target": pyarrow.int64(), "value": pyarrow.float64()}
    arrays = [pyarrow.array(c, types.get(n, pyarrow.string())) for n, c in zip(COLUMNS, columns, strict=True)]
    pyarrow.parquet.write_table(pyarrow.table(arrays, names=list(COLUMNS)), path)
