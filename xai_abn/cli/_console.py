"""Console output of the commands: tables, a progress bar, and the command line for the record."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

#: Called with the number done, the total, and a short text, which may be empty.
Update = Callable[..., None]


@contextmanager
def progress_bar(text: str, *, hidden: bool = False, unit: str = "images") -> Iterator[Update]:
    """Show a bar with the rate and the time left on standard error while the block runs; yields the update call."""
    if hidden or not _may_be_terminal(sys.stderr):  # in a file the bar would be an empty line before the messages
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]}")
    said = TextColumn("{task.fields[said]}")
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), said)
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda *_: None
        return
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None, rate="", said="")

        def update(done: int, total: int, said: str = "") -> None:
            speed = progress.tasks[0].speed
            progress.update(task, completed=done, total=total, rate=f"{speed:.2f} {unit}/s" if speed else "", said=said)

        yield update


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show a text on standard error while the block runs, in a terminal."""
    if not _may_be_terminal(sys.stderr):
        yield
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


def _may_be_terminal(stream: TextIO) -> bool:
    """Return whether rich may take a stream for a terminal, without importing rich."""
    return stream.isatty() or any(name in os.environ for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()) -> None:
    """Print a table that keeps its rows on one line each; the columns named in ``right`` are right-aligned."""
    rows = [tuple(columns), *map(tuple, rows)]
    if not _may_be_terminal(sys.stdout) and all(cell.isascii() and "[" not in cell for row in rows for cell in row):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = zip(row, columns, widths, strict=True)
            print("  ".join(c.rjust(w) if name in right else c.ljust(w) for c, name, w in cells))
        return
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    console = Console()
    unlimited = console.options.update(width=100_000)
    console.width = max(console.width, Measurement.get(console, unlimited, table).maximum)
    console.print(table)


def command_line() -> str:
    """Return the command as it was typed, for the record of a run."""
    return shlex.join(["xai-abn", *sys.argv[1:]])
