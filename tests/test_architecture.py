"""The shape of the package: imports go down only, public names are as listed, docs are true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import xai_abn

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "xai_abn"
LAYERS = [
    {"errors"},
    {"registry", "files", "seeding", "settings"},
    {"heatmaps", "images"},
    {"rendering", "networks"},
    {"explanation", "models"},
    {"explainers", "metrics"},
    {"datasets", "pipeline"},
    {"training", "benchmark", "integrations"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.name != "__init__.py")


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path):
    """Yield the parts of the package that a module imports at its top level."""
    for node in ast.parse(path.read_text()).body:
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
        yield from (n.split(".")[1] for n in names if n and n.startswith("xai_abn."))


@pytest.mark.parametrize(
    "path", [p for p in MODULES if part(p) != "weights"], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_go_down_only(path):
    """A module imports from its own part or from lower layers."""
    own = part(path)
    for other in imports(path):
        assert other == own or LEVEL[other] <= LEVEL[own], f"{own} imports {other}"


def test_every_part_has_a_layer():
    """No file or folder stands outside the drawn architecture, and every part is described."""
    parts = {part(p) for p in MODULES} - {"weights"}
    assert parts == set(LEVEL)
    text = (ROOT / "docs/architecture.md").read_text()
    assert all(f"`{name}" in text for name in parts)


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


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


PYTHON_BLOCKS = [(name, i) for name in ("README.md", "docs/guide.md") for i in range(len(blocks(name, "python")))]


@pytest.mark.parametrize(("name", "index"), PYTHON_BLOCKS)
def test_the_docs_python_runs(name, index, tmp_path, monkeypatch):
    """Every Python block of README and guide runs by itself (training for two steps on one generated photo)."""
    import numpy as np
    from PIL import Image

    from xai_abn.explainers.base import explainers
    from xai_abn.metrics.base import metrics

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photos" / "a.png")
    code = blocks(name, "python")[index].replace("steps=1000", "steps=2, batch_size=1, mosaics=0, workers=0")
    known = {*explainers.names(), *metrics.names()}
    try:
        exec(compile(code, f"{name}, block {index}", "exec"), {"__name__": "docs"})
    finally:
        for registry in (explainers, metrics):
            for extra in set(registry.names()) - known:
                registry._items.pop(extra)


def test_the_commands_in_the_docs_have_real_options():
    """Every xai-abn command shown uses options that its --help names."""
    commands = re.findall(r"^xai-abn (\w+)(.*)$", "\n".join(blocks("docs/guide.md", "bash")), re.MULTILINE)
    commands += re.findall(
        r"xai-abn (explain|list|benchmark|report)(.*)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert len(commands) >= 8
    from typer.testing import CliRunner

    from xai_abn.cli.main import app

    for command, rest in commands:
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "250"}).stdout
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest.split("#")[0]):
            assert option in shown, f"{command} has no {option}"
