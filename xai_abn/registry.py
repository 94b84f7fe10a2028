"""Registry of names for explainers, metrics, models, mechanisms, architectures and data sets."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from xai_abn.errors import InvalidInputError, UnknownNameError, XaiAbnWarning

T = TypeVar("T")


class PlugInWarning(XaiAbnWarning):
    """Given when an installed plug-in cannot be used; everything else works without it."""


class Registry(dict[str, T]):
    """A dictionary of names, filled by a decorator and by the entry points of other packages.

    Plug-ins are loaded when the names are listed or an unknown name is looked up. A plug-in that cannot be loaded
    gives a :class:`PlugInWarning` and is left out.

    Args:
        kind: the word used in error messages, such as ``"method"``.
        group: entry-point group that other packages may add to, such as ``"xai_abn.explainers"``.
        name_of: returns the name of the object of an entry point, and raises ``InvalidInputError`` for an object that
            does not belong here; default: any object, under the name of its entry point.

    Examples:
        >>> shapes = Registry("shape")
        >>> @shapes.register("square")
        ... def square(): ...
        >>> shapes.names()
        ['square']
    """

    def __init__(
        self, kind: str, group: str | None = None, name_of: Callable[[str, object], str] = lambda name, item: name
    ) -> None:
        super().__init__()
        self.kind = kind
        self.group = group
        self.name_of = name_of
        self._plugins_loaded = group is None

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers an object under ``name``.

        Raises:
            InvalidInputError: the name is taken.
        """

        def add(item: T) -> T:
            if dict.__contains__(self, name):
                raise InvalidInputError(f"{self.kind} {name!r} is registered already; choose another name")
            self[name] = item
            return item

        return add

    def names(self) -> list[str]:
        """Return every known name, in the order of registration."""
        return list(self)

    def __missing__(self, name: str) -> T:
        """Look for the name in plug-ins.

        Raises:
            UnknownNameError: nothing has this name; the message suggests the nearest.
        """
        if name not in self:
            raise UnknownNameError(self.kind, name, self)
        return self[name]

    def __contains__(self, name: object) -> bool:
        """Return whether the name is known; plug-ins are loaded only if the package does not have it."""
        return super().__contains__(name) or name in self.names()

    def __iter__(self) -> Iterator[str]:
        """Iterate over every known name."""
        self._load_plugins()
        return super().__iter__()

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        self._plugins_loaded = True
        for point in entry_points(group=self.group or ""):
            try:
                item = point.load()
                name = self.name_of(point.name, item)
                if dict.get(self, name) is not item:  # else the module registered it itself
                    self.register(name)(item)
            except Exception as error:  # whatever a foreign module may raise
                warnings.warn(PlugInWarning(_complaint(point, error)), stacklevel=1)


def _complaint(point: EntryPoint, error: Exception) -> str:
    """Return the message for a plug-in that cannot be used."""
    package = point.dist.name if point.dist is not None else point.module
    reason = str(error) if isinstance(error, InvalidInputError) else f"{type(error).__name__}: {error}"
    return f"the plug-in {package} cannot be used ({point.module}: {reason}); repair or uninstall it"


def load_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` that loads the public names of a package when they are first used.

    Args:
        package: its ``__name__``.
        homes: by public name, the module of the package that defines it.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return find
