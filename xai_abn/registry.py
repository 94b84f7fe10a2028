"""One small table of names, used for explainers and models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from xai_abn.errors import InvalidInputError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names and what they stand for, filled by a decorator and by entry points.

    Args:
        kind: the word used in error messages, such as ``"method"``.
        group: entry-point group that other packages may add to, such as ``"xai_abn.explainers"``.

    Example:
        >>> shapes = Registry("shape")
        >>> @shapes.register("square")
        ... def square(): ...
        >>> shapes.names()
        ['square']
    """

    def __init__(self, kind: str, group: str | None = None) -> None:
        self.kind = kind
        self.group = group
        self._items: dict[str, T] = {}
        self._entry_points_loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its object under ``name``, and tells it, if it has an empty ``name``.

        Raises:
            InvalidInputError: the name is taken.
        """

        def add(item: T) -> T:
            if name in self._items:
                raise InvalidInputError(f"{self.kind} {name!r} is registered already; choose another name")
            self._items[name] = item
            if getattr(item, "name", None) == "":
                item.name = name  # type: ignore[attr-defined]
            return item

        return add

    def names(self) -> list[str]:
        """Return every known name, in the order of registration."""
        self._load_entry_points()
        return list(self._items)

    def get(self, name: str) -> T:
        """Return what ``name`` stands for.

        Raises:
            UnknownNameError: nothing has this name; the message lists the nearest.
        """
        self._load_entry_points()
        if name not in self._items:
            raise UnknownNameError(self.kind, name, self._items)
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        """Return whether ``name`` is known."""
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.names())

    def _load_entry_points(self) -> None:
        if self._entry_points_loaded or self.group is None:
            return
        self._entry_points_loaded = True
        for point in entry_points(group=self.group):
            item = point.load()
            if point.name not in self._items:  # the module may have registered it itself
                self.register(point.name)(item)
