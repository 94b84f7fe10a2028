"""Work spread over the processes of Ray, on this machine or on a cluster."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from xai_abn.errors import InvalidInputError, RunError, XaiAbnError

Item = TypeVar("Item")
Made = TypeVar("Made")

#: Name of the one column of rows that Ray carries: Arrow knows bytes, not our records.
_CELL = "cell"


def check_installed() -> None:
    """Refuse to go on without Ray Data and the libraries that come with it.

    Raises:
        InvalidInputError: one is not installed.
    """
    try:
        import fsspec  # noqa: F401
        import pyarrow  # noqa: F401
        import ray.data  # noqa: F401
    except ImportError as error:
        raise InvalidInputError(f"the engine ray needs {error.name or error}: pip install 'xai-abn[ray]'") from error


@contextmanager
def connected() -> Iterator[None]:
    """Be connected to Ray while the block runs: to the cluster that Ray itself finds, or to a new one on this machine.

    Raises:
        InvalidInputError: Ray is not installed.
    """
    check_installed()
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # every pool of processes logs an error of Ray's own
    ray.init(logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def available(device: str) -> int:
    """Return how many processes with a model on a device the cluster takes: one a CPU core, or one a GPU.

    Raises:
        InvalidInputError: a GPU is named by number, or there is none.
    """
    import ray

    kind = "GPU" if _gpus(device) else "CPU"
    found = int(ray.cluster_resources().get(kind, 0))  # type: ignore[no-untyped-call]
    if not found:
        raise InvalidInputError(f"the cluster of Ray has no {kind}; choose another --device")
    return found


def spread(
    make: Callable[[], Callable[[Item], Made]], items: Sequence[Item], processes: int, device: str = "cpu"
) -> Iterator[Made]:
    """Yield what a function makes of each item, in the order in which they are done, computed by processes of Ray.

    If a process dies, Ray starts another and gives it the items that are not done; so an item may be computed twice.

    Args:
        make: called once in each process; returns the function. It, the items and what is made of them are pickled.
        items: the items.
        processes: number of processes.
        device: where each has its model: a process reserves one core of a CPU, or one GPU.

    Raises:
        RunError: the function raised an error of this package; the message is the same.
        InvalidInputError: a GPU is named by number.
    """
    import ray.data

    gpus = _gpus(device)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{_CELL: pickle.dumps(item)} for item in items]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Process,
        fn_constructor_args=(make, os.getcwd()),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=processes),
        num_cpus=0 if gpus else 1,
        num_gpus=gpus,
    )
    for row in done.iter_rows():
        made = pickle.loads(row[_CELL])
        if isinstance(made, _Failure):
            raise RunError(made.line)
        yield made


class _Process(Generic[Item, Made]):
    """What Ray calls in each process with one item at a time.

    Args:
        make: returns the function.
        folder: where relative paths begin, if this machine has it.
    """

    def __init__(self, make: Callable[[], Callable[[Item], Made]], folder: str) -> None:
        self._make = make
        if os.path.isdir(folder):
            os.chdir(folder)
        self._function: Callable[[Item], Made] | None = None

    def __call__(self, batch: Mapping[str, Sequence[bytes]]) -> dict[str, list[bytes]]:
        try:
            if self._function is None:
                self._function = self._make()
            made: Any = self._function(pickle.loads(batch[_CELL][0]))
        except XaiAbnError as error:  # Ray would wrap it in several others
            made = _Failure(error.line)
        return {_CELL: [pickle.dumps(made)]}


class _Failure:
    """The error that ended the work on an item."""

    def __init__(self, line: str) -> None:
        self.line = line


def _gpus(device: str) -> int:
    kind, _, number = device.partition(":")
    if number:
        raise InvalidInputError(f"Ray gives each process a GPU; write --device {kind}, not {device}")
    return int(kind != "cpu")
