"""Another package adds a method, a metric and a model; a broken one is named and left out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xai_abn.benchmark import Store

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which pip installed the example plug-in."""
    folder = tmp_path_factory.mktemp("plugins")
    source = shutil.copytree(PLUGIN, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, "--target", str(folder / "site"), str(source)], check=True, capture_output=True)
    return folder / "site"


def run(site, *command, cwd):
    """Run Python in a process that sees the packages in ``site``."""
    path = os.pathsep.join([str(site), str(PLUGIN.parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "COLUMNS": "200"}
    return subprocess.run([sys.executable, *command], env=environment, cwd=cwd, capture_output=True, text=True)


def test_an_installed_plugin_is_listed(installed, tmp_path):
    """``xai-abn list`` shows the method, the metric, the model and the data set of the plug-in."""
    code = "from xai_abn.cli.main import app\n"
    code += "for subject in ('methods', 'metrics', 'models', 'datasets'): app(['list', subject], standalone_mode=False)"
    done = run(installed, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line]
    names = ("brightness", "grad-cam", "mean-value:example", "deletion:xai-abn", "two-colors", "abn-lite0", "colors:")
    for name in (*names, "coco:"):
        assert [row[0] for row in rows].count(name) == 1
    assert "Classifies images as red or blue." in done.stdout


def test_a_benchmark_of_plugins_alone(installed, tmp_path):
    """A model, a method and a metric of a plug-in are enough for a run."""
    for name, color in (("red", (220, 20, 20)), ("blue", (20, 20, 220))):
        (tmp_path / "set" / name).mkdir(parents=True)
        pixels = np.full((40, 50, 3), color, np.uint8)
        pixels[:10] = 128
        Image.fromarray(pixels).save(tmp_path / "set" / name / "a.png")
    wanted = ["--data", "images:set", "--model", "two-colors", "--method", "brightness", "--metric", "mean-value"]
    done = run(installed, "-m", "xai_abn.cli", "benchmark", "run", *wanted, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 images measured" in done.stdout
    with Store.read(tmp_path / "run.sqlite") as store:
        assert store.identity["model"]["name"] == "two-colors"
        rows = store.results("mean-value:example")
    assert [row.method for row in rows] == ["brightness", "brightness"]
    assert all(row.value is not None for row in rows)


def test_a_reader_from_a_plugin_serves_training_and_benchmark(installed, tmp_path):
    """One function is all that a data set needs: its images are trained on, distilled on and measured."""
    for color, rgb in (("red", (220, 20, 20)), ("blue", (20, 20, 220))):
        for number in range(8):
            image = np.full((40, 50, 3), rgb, np.uint8)
            image[: 4 + number] = 128
            (tmp_path / "set").mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / "set" / f"{color}-{number}.png")
    options = "--arch resnet20 --size 32 --epochs 1 --batch-size 2 --validation 0.25 --maps-every 0 --workers 0"
    train = ["train", "--data", "colors:set", *options.split(), "--output", "run"]
    done = run(installed, "-m", "xai_abn.cli", *train, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"test_accuracy"' in (tmp_path / "run" / "result.json").read_text()
    wanted = ["--data", "colors:set", "--model", "run/final.safetensors", "--method", "cam", "--metric", "deletion"]
    done = run(installed, "-m", "xai_abn.cli", "benchmark", "run", *wanted, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Store.read(tmp_path / "run.sqlite") as store:
        assert len(store.results("deletion:xai-abn")) == 8  # the test split alone
    code = "from xai_abn.datasets.splits import find_samples; print(len(find_samples(['colors:set'])))"
    assert run(installed, "-c", code, cwd=tmp_path).stdout.split() == ["8"]


def test_a_broken_plugin_is_reported_once_and_skipped(installed, tmp_path):
    """A module that cannot be imported gives one line on stderr, and the exit code is 0."""
    site = shutil.copytree(installed, tmp_path / "site")
    (site / "xai_abn_example_plugin.py").write_text("import a_module_that_is_not_there")
    done = run(site, "-m", "xai_abn.cli", "list", "methods", cwd=tmp_path)
    assert done.returncode == 0
    assert "grad-cam" in done.stdout
    assert "brightness" not in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: the plug-in xai-abn-example-plugin cannot be used (xai_abn_example_plugin: Mod")
    assert line.endswith("No module named 'a_module_that_is_not_there'); repair or uninstall it")
