"""Work in threads, in order and without running far ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def in_order(
    function: Callable[[Item], Made], items: Iterable[Item], workers: int, *, ahead: int = 16
) -> Iterator[Made]:
    """Yield what a function makes of each item, in order, computed by threads.

    The items are taken in the calling thread. When the iterator is closed, work that has not begun is left out, and
    what has begun ends by itself.

    Args:
        function: it should return errors that concern one item, as one that it raises ends the iterator.
        items: taken as they are needed.
        workers: number of threads; 0 computes in the calling thread.
        ahead: how many items may be under way or done and not yet asked for, which bounds memory.
    """
    if not workers:
        yield from map(function, items)
        return
    waiting: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(workers, "xai-abn")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # one of the threads may be the one that collects the iterator
