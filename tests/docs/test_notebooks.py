"""The notebooks of the tutorials."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))
make = runpy.run_path(str(ROOT / "docs/make_notebooks.py"))["notebook"]


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda tutorial: tutorial.stem)
def test_a_notebook_is_that_of_its_tutorial(tutorial):
    """Word for word. If this fails, run python docs/make_notebooks.py."""
    assert tutorial.with_suffix(".ipynb").read_text() == make(tutorial)
    assert f"({tutorial.stem}.ipynb)" in tutorial.read_text()


def test_a_notebook_runs(tmp_path, monkeypatch):
    """The shortest, from beginning to end; the blocks of all tutorials run in test_pages.py."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    notebook = nbformat.read(ROOT / "docs/tutorials/first-image.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    texts, images = [], 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            texts.append(output.get("text", ""))
            images += "image/png" in output.get("data", {})
    assert images == 3
    assert "tiger cat rather than Egyptian cat" in "".join(texts)
