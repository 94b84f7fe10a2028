"""Progress bar of commands that process many images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Called with what is done, what there is to do, and a few words if there is something to say.
Update = Callable[..., None]


@contextmanager
def progress_bar(text: str, *, hidden: bool = False, unit: str = "images") -> Iterator[Update]:
    """Show a bar with the rate and the time left on standard error while the block runs; it gives the update call."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]}")
    said = TextColumn("{task.fields[said]}")
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), said)
    with Progress(*columns, console=Console(stderr=True), disable=hidden, transient=True) as progress:
        task = progress.add_task("", total=None, rate="", said="")

        def update(done: int, total: int, said: str = "") -> None:
            speed = progress.tasks[0].speed
            progress.update(task, completed=done, total=total, rate=f"{speed:.2f} {unit}/s" if speed else "", said=said)

        yield update
