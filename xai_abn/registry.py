"""One small table of names, used for explainers, metrics, models and data sets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from xai_abn.errors import InvalidInputError, UnknownNameError, XaiAbnWarning

T = TypeVar("T")


class PlugInWarning(XaiAbnWarning):
    """Given when an installed plug-in cannot be used; everything else goes on without it."""


class Registry(Generic[T]):
    """Names and what they stand for, filled by a decorator and by entry points.

    A plug-in that cannot be loaded gives a :class:`PlugInWarning` and is left out.

    Args:
        kind: the word used in error messages, such as ``"method"``.
        group: entry-point group that other packages may add to, such as ``"xai_abn.explainers"``.
        name_of: gives the name of what an entry point stands for, and refuses with an ``InvalidInputError`` what does
            not belong here; default: any object, under the entry point's own name.

    Example:
        >>> shapes = Registry("shape")
        >>> @shapes.register("square")
        ... def square(): ...
        >>> shapes.names()
        ['square']
    """

    def __init__(
        self, kind: str, group: str | None = None, name_of: Callable[[str, object], str] = lambda name, item: name
    ) -> None:
        self.kind = kind
        self.group = group
        self.name_of = name_of
        self._items: dict[str, T] = {}
        self._entry_points_loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its object under ``name``, and tells it, unless it has a ``name`` of its own.

        A class does not have the ``name`` of the class it is derived from.

        Raises:
            InvalidInputError: the name is taken.
        """

        def add(item: T) -> T:
            if name in self._items:
                raise InvalidInputError(f"{self.kind} {name!r} is registered already; choose another name")
            self._items[name] = item
            own = vars(item).get("name", "") if isinstance(item, type) else getattr(item, "name", None)
            if own == "" and hasattr(item, "name"):
                item.name = name
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
        if name not in self:
            raise UnknownNameError(self.kind, name, self._items)
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        """Return whether ``name`` is known; plug-ins are only looked at if it is not one of ours."""
        return name in self._items or name in self.names()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.names())

    def _load_entry_points(self) -> None:
        if self._entry_points_loaded or self.group is None:
            return
        self._entry_points_loaded = True
        for point in entry_points(group=self.group):
            try:
                self._add_entry_point(point)
            except Exception as error:  # whatever a foreign module may raise
                warnings.warn(PlugInWarning(_complaint(point, error)), stacklevel=1)

    def _add_entry_point(self, point: EntryPoint) -> None:
        item = point.load()
        name = self.name_of(point.name, item)
        if self._items.get(name) is not item:  # else the module registered it itself
            self.register(name)(item)


def _complaint(point: EntryPoint, error: Exception) -> str:
    """Return what is wrong with a plug-in, the same for all names it cannot give for the same reason."""
    package = point.dist.name if point.dist is not None else point.module
    reason = str(error) if isinstance(error, InvalidInputError) else f"{type(error).__name__}: {error}"
    return f"the plug-in {package} cannot be used ({point.module}: {reason}); repair or uninstall it"
