"""What pyproject.toml promises about versions is what the environments of tox.ini test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import xai_abn

ROOT = Path(__file__).parents[1]


def test_the_lowest_versions_tested_are_those_promised():
    """.ci/lowest.txt pins each dependency to the lower bound in pyproject.toml."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    bounds: dict[str, list[str]] = {}
    for extra in (
        "test",
        "parquet",
        "onnx",
        "ray",
        "datasets",
        "tensorboard",
        "transformers",
        "app",
        "lightning",
        "volumes",
    ):
        for requirement in extras[extra]:
            if match := re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement):
                bounds.setdefault(match[1], []).append(match[2])
    for requirement in project["dependencies"]:
        name, _, bound = requirement.partition(">=")
        bounds.setdefault(name, []).append(bound)
    pins = dict(line.split("==") for line in (ROOT / ".ci/lowest.txt").read_text().splitlines() if "==" in line)
    assert pins.keys() == bounds.keys()
    for name, pin in pins.items():
        assert all((pin + ".").startswith(bound + ".") for bound in bounds[name]), f"{name}: {bounds[name]}, {pin}"


def test_the_citation_names_this_version():
    """CITATION.cff is released with the package."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == xai_abn.__version__
    assert cited["references"][0]["authors"][0]["family-names"] == "Fukui"


def test_workflows_call_tox_alone():
    """With environments that tox.ini has, one of them for each Python that is promised."""
    known = set(re.findall(r"^\[testenv:([\w{},]+)\]", (ROOT / "tox.ini").read_text(), re.MULTILINE)) | {"py"}
    known |= {f"py{minor}" for minor in re.findall(r"3\d\d", "".join(known))}
    called = []
    for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            rows = job.get("strategy", {}).get("matrix", {}).get("include", [{}])
            for step in job["steps"]:
                run = step.get("run", "tox")
                assert "tox" in run or run.startswith("apt-get"), run
                called += [run.replace("${{ matrix.env }}", row.get("env", "")) for row in rows if "tox -e" in run]
    used = {env for line in called for env in line.split("-e ")[1].split(",")}
    assert used <= known
    assert used >= {"lint", "docs", "dist", "wheel", "lowest", "py310", "py", "py312", "py313"}


def test_the_map_for_language_models_leads_to_pages():
    """docs/llms.txt names pages of the site."""
    links = re.findall(r"\]\((\S+)\)", (ROOT / "docs/llms.txt").read_text())
    assert len(links) > 10
    for link in links:
        assert (ROOT / "docs" / link.replace(".html", ".md")).is_file(), link
