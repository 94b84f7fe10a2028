"""Print a table that keeps its rows whole, however narrow the terminal is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()) -> None:
    """Print rows under column names; the columns named in ``right`` are set flush right."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    unlimited = console.options.update(width=100_000)
    console.width = max(console.width, Measurement.get(console, unlimited, table).maximum)
    console.print(table)
