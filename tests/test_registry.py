"""The table of names: decorators, entry points, and what is refused."""

from __future__ import annotations

import pytest

import xai_abn.registry
from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.registry import Registry


class Plain:
    """Something with an empty name, as an explainer class has."""

    name = ""


class Point:
    """An entry point that loads ``item``, running its module first."""

    def __init__(self, name, item, on_load=lambda: None):
        self.name, self.item, self.on_load = name, item, on_load

    def load(self):
        self.on_load()
        return self.item


def test_names_keep_their_order_and_are_given_once():
    """A second owner of a name is refused; unknown names are answered with the nearest."""
    shapes = Registry("shape")
    shapes.register("square")(1)
    shapes.register("circle")(2)
    assert shapes.names() == ["square", "circle"]
    assert "circle" in shapes
    with pytest.raises(InvalidInputError, match="'square' is registered already"):
        shapes.register("square")(3)
    with pytest.raises(UnknownNameError, match="unknown shape 'sqare'; did you mean 'square'"):
        shapes.get("sqare")


def test_entry_points_add_names_once_asked(monkeypatch):
    """A plug-in appears under its entry point's name, whether or not its module registered it itself."""
    shapes = Registry("shape", "test.shapes")
    itself = type("Itself", (Plain,), {})
    bare = type("Bare", (Plain,), {})
    points = [Point("itself", itself, lambda: shapes.register("itself")(itself)), Point("bare", bare)]
    monkeypatch.setattr(xai_abn.registry, "entry_points", lambda group: points if group == "test.shapes" else [])
    assert shapes.names() == ["itself", "bare"]
    assert shapes.get("bare").name == "bare"
    assert itself.name == "itself"
