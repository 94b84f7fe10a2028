"""The table of names: decorators, entry points, and what is refused."""

from __future__ import annotations

import pytest

import xai_abn.registry
from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.registry import PlugInWarning, Registry


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
        shapes["sqare"]


def test_entry_points_add_names_once_asked(monkeypatch):
    """A plug-in appears under its entry point's name, whether or not its module registered it itself."""
    shapes = Registry("shape", "test.shapes")
    itself = type("Itself", (Plain,), {})
    bare = type("Bare", (Plain,), {})
    points = [Point("itself", itself, lambda: shapes.register("itself")(itself)), Point("bare", bare)]
    monkeypatch.setattr(xai_abn.registry, "entry_points", lambda group: points if group == "test.shapes" else [])
    assert shapes.names() == ["itself", "bare"]
    assert shapes["bare"] is bare


def broken():
    """Fail as a module does that imports what is not installed."""
    raise ImportError("no module named 'gone'")


def test_a_plugin_that_cannot_be_used_is_named_and_left_out(monkeypatch):
    """An error on import and an object of another kind: each a warning, the rest is there."""

    def name_of(name, item):
        if not isinstance(item, int):
            raise InvalidInputError(f"{name!r} must be an int")
        return f"{name}:{item}"

    shapes = Registry("shape", "test.shapes", name_of)
    shapes.register("square:3")(3)
    points = [Point("gone", 1, broken), Point("text", "4"), Point("circle", 7)]
    for point in points:
        point.dist, point.module = None, "another"
    monkeypatch.setattr(xai_abn.registry, "entry_points", lambda group: points)
    with pytest.warns(PlugInWarning) as given:
        assert shapes.names() == ["square:3", "circle:7"]
    assert [str(w.message).split("(")[1].split(")")[0] for w in given] == [
        "another: ImportError: no module named 'gone'",
        "another: 'text' must be an int",
    ]


def test_our_own_names_need_no_plugins(monkeypatch):
    """Looking one of our names up imports nobody's module."""
    shapes = Registry("shape", "test.shapes")
    shapes.register("square")(1)
    monkeypatch.setattr(xai_abn.registry, "entry_points", lambda group: pytest.fail("asked for plug-ins"))
    assert shapes["square"] == 1
    assert "square" in shapes


def test_a_plugin_cannot_take_a_name_of_ours(monkeypatch):
    """The name keeps its meaning, and the plug-in is named."""
    shapes = Registry("shape", "test.shapes")
    shapes.register("square")("ours")
    point = Point("square", "theirs")
    point.dist, point.module = None, "another"
    monkeypatch.setattr(xai_abn.registry, "entry_points", lambda group: [point])
    with pytest.warns(PlugInWarning, match="plug-in another cannot be used .*'square' is registered already"):
        assert shapes.names() == ["square"]
    assert shapes["square"] == "ours"
