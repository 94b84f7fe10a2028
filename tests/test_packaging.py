"""What pyproject.toml promises about versions is what the environments of tox.ini test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
