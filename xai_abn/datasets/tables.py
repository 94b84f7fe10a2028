"""Tables in CSV files, row by row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from xai_abn.errors import DatasetError


def csv_rows(file: Path, expected: str, errors: str = "strict") -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line in which each row begins, and its cells without blanks at their ends.

    Empty lines are skipped. A cell with a line break is refused, as an open quote would hide the rows behind it.

    Args:
        file: UTF-8, with or without a mark at its start.
        expected: what the file should be, for messages.
        errors: what becomes of other bytes; see :func:`open`.

    Raises:
        DatasetError: the file cannot be read, or a row is none; the message has its line.
    """
    line = 1
    try:
        with file.open(encoding="utf-8-sig", errors=errors, newline="") as stream:
            reader = csv.reader(stream, strict=True)
            for row in reader:
                if any("\n" in cell or "\r" in cell for cell in row):
                    raise csv.Error("a quote is opened and closed in another line")
                if row:
                    yield line, [cell.strip() for cell in row]
                line = reader.line_num + 1
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = "a quote is not closed" if str(error) == "unexpected end of data" else error
        raise DatasetError(f"{file}, line {line}: cannot be read as CSV ({reason}); expected {expected}") from error
