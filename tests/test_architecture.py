"""The shape of the package: imports go down only, public names are as listed, docs are true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from imports import drawn_layers, import_faults, modules, part_of

import xai_abn

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "xai_abn"


def test_imports_follow_the_drawn_layers():
    """Modules import as docs/architecture.md draws: downward only, never sideways, never in a circle."""
    assert import_faults(PACKAGE, drawn_layers((ROOT / "docs/architecture.md").read_text())) == []


def test_every_part_is_drawn_and_every_file_described():
    """The drawing and the table below it name the parts and files of the package, and nothing else."""
    page = (ROOT / "docs/architecture.md").read_text()
    drawn = {part for row in drawn_layers(page) for part in row}
    assert drawn == {part_of(name) for name in modules(PACKAGE)} - {"weights", "__init__"}
    rows = {
        row.split("|")[1].strip(" `/").removesuffix(".py"): row
        for row in page.split("## The folders")[1].splitlines()
        if row.startswith("| `")
    }
    assert rows.keys() >= drawn
    for name, path in modules(PACKAGE).items():
        if len(name.split(".")) > 2 and part_of(name) in drawn and not path.stem.startswith("__"):
            assert f"`{path.stem}`" in rows[part_of(name)], f"docs/architecture.md does not name {name}"
    for part, row in rows.items():
        known = {piece for name in modules(PACKAGE) if part_of(name) == part for piece in name.split(".")[1:]}
        assert set(re.findall(r"`(\w+)`", row)) <= known, f"docs/architecture.md names files that {part} lacks"


PLANTED = {
    "upward": ("low.py", "from pkg.high import x", "pkg.low imports pkg.high above it"),
    "lazy": ("low.py", "def f():\n    import pkg.high.a", "pkg.low imports pkg.high.a above it"),
    "typing": (
        "low.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pkg.high.a import x",
        "pkg.low imports pkg.high.a above it",
    ),
    "module from the package": ("low.py", "from pkg import high", "pkg.low imports pkg.high above it"),
    "public name": ("low.py", "from pkg import public", "pkg.low imports pkg.high.a above it"),
    "by its name": (
        "low.py",
        "from importlib import import_module\nimport_module('pkg.high.a')",
        "pkg.low imports pkg.high.a above it",
    ),
    "by a table": ("low.py", "TABLE = {'a': ('pkg.high.a', 'a')}", "pkg.low imports pkg.high.a above it"),
    "the package itself": ("low.py", "import pkg", "pkg.low imports pkg, which is not drawn"),
    "relative": ("low.py", "from .high import a", "pkg.low imports pkg.high.a above it"),
    "sideways": ("left.py", "from pkg.right import x", "pkg.left imports pkg.right beside it"),
    "not drawn": ("extra.py", "", "extra is not drawn"),
    "circle": ("high/b.py", "def f():\n    from pkg.high import a", "pkg.high.b imports pkg.high.a in a circle"),
    "circle of a folder": ("high/a.py", "from .. import high", "pkg.high.a imports pkg.high in a circle"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault, tmp_path):
    """A small package without faults passes; each fault planted in it is reported."""
    package = tmp_path / "pkg"
    (package / "high").mkdir(parents=True)
    (package / "__init__.py").write_text("def f():\n    from pkg.high.a import public\n")
    (package / "low.py").write_text("import os\n")
    (package / "left.py").write_text("from pkg.low import x\n")
    (package / "right.py").write_text("from . import low\n")
    (package / "high" / "__init__.py").write_text("from pkg.high.a import x\n")
    (package / "high" / "a.py").write_text("from pkg import left\nfrom .b import y\n")
    (package / "high" / "b.py").write_text("from ..right import x\n")
    layers = [["low"], ["left", "right"], ["high"]]
    assert import_faults(package, layers) == []
    name, code, message = PLANTED[fault]
    with (package / name).open("a") as file:
        file.write(code)
    assert message in import_faults(package, layers)


def test_public_names_are_exactly_those_listed():
    """__all__ is sorted, every name in it loads, and each knows its home."""
    assert xai_abn.__all__ == sorted(xai_abn.__all__, key=str)
    for name in xai_abn.__all__:
        assert getattr(xai_abn, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = xai_abn.nothing


def test_importing_the_package_does_not_import_torch():
    """The command line's --help depends on it."""
    code = "import sys, xai_abn; assert 'torch' not in sys.modules; xai_abn.wrap; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_in_the_changelog():
    """The newest entry of the changelog is this version."""
    newest = re.search(r"^## (\S+)", (ROOT / "docs/changelog.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest.group(1) == xai_abn.__version__
