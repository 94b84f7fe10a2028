"""Benchmark runs of every format version are read, exported, merged and continued."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from support import make_images

from xai_abn.benchmark import BenchmarkSettings, Store, benchmark
from xai_abn.benchmark.exchange import export_run, merge_runs
from xai_abn.benchmark.report.build import make_report
from xai_abn.datasets import read_dataset
from xai_abn.models.zoo import load_checkpoint

HERE = Path(__file__).parent
WHOLE = json.loads((HERE / "expected-v1.json").read_text())["run-v1.sqlite"]["values"]
RENAMED = {"centre": "center", "rise": "rise:masks=8", "max-box-acc:wsol-v1": "max-box-accuracy:wsol-v1"}
METHODS = ["abn", "grad-cam", "rise:masks=8", "center", "uniform"]
METRICS = [
    *("deletion", "insertion", "deletion:rise-2018", "pointing-game", "energy-pointing-game"),
    *("max-box-accuracy", "pxap", "average-drop", "gini"),
]


def expected(sources):
    """Values of some images by source, method, trial and metric."""
    return {
        (source, RENAMED.get(method, method), trial, RENAMED.get(metric, metric)): (value, flaw)
        for source, method, trial, metric, value, flaw in WHOLE
        if source in sources
    }


def check_values(path, sources):
    """The run holds the expected values of these images, up to rounding.

    Rounding can move a pixel to the other side of a threshold, which changes pxap by a little more.
    """
    with Store.read(path) as store:
        names = {i.image: i.source for i in store.images()}
        found = {(names[r.image], r.method, r.trial, r.metric): (r.value, r.flaw) for r in store.results()}
    wanted = expected(sources)
    assert found.keys() == wanted.keys()
    for key, (value, flaw) in wanted.items():
        assert found[key][1] == flaw, key
        assert (found[key][0] is None) == (value is None), key
        if value is not None:
            tolerance = 1e-3 if key[3].startswith("pxap") else 1e-4
            assert found[key][0] == pytest.approx(value, abs=tolerance), key


FIRST = ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("version", [1, 2])
def test_a_run_is_read_and_not_changed(version, tmp_path):
    """Values, an exported table and a report; the file keeps its bytes."""
    path = HERE / f"run-v{version}.sqlite"
    before = path.read_bytes()
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as connection:
        assert connection.execute("SELECT value FROM run WHERE name = 'format'").fetchone() == (str(version),)
    check_values(path, FIRST)
    assert export_run(path, tmp_path / "table.csv") == len(expected(FIRST))
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        assert {row["method"] for row in csv.DictReader(file)} == set(METHODS)
    (section,) = make_report([path]).sections
    assert {m["method"] for m in section["methods"]} == set(METHODS)
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", [1, 2])
def test_a_run_is_continued(version, tmp_path):
    """Three images are known and one is measured, as if the run had never been interrupted."""
    path = tmp_path / "run.sqlite"
    shutil.copy(HERE / f"run-v{version}.sqlite", path)
    model = load_checkpoint(HERE / "checkpoint-v1-abn.safetensors", name="abn")
    data = read_dataset(f"coco:{make_images(tmp_path / 'set', 4)}")
    summary = benchmark(model, data, METHODS, METRICS, path, BenchmarkSettings(evaluations=64))
    assert (summary.measured, summary.known, summary.failed) == (1, 3, [])
    check_values(path, [*FIRST, "3.png"])
    assert benchmark(model, data, METHODS, METRICS, path).measured == 0


def test_runs_of_version_1_merge(tmp_path):
    """The merged run is of the present version and holds the same values."""
    part = shutil.copy(HERE / "run-v1.sqlite", tmp_path / "part.sqlite")
    assert merge_runs(tmp_path / "merged.sqlite", [HERE / "run-v1.sqlite", part])[0] == 3
    check_values(tmp_path / "merged.sqlite", FIRST)
