"""The commands benchmark, merge, export and report: parse, call, print, one line for each mistake."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys

import pytest
from support import call, make_images

from xai_abn import cluster
from xai_abn.models import zoo


@pytest.fixture(autouse=True)
def here(gap_net, monkeypatch, tmp_path):
    """Work in an empty folder with an image set, and know the small model as ``small``."""
    monkeypatch.setitem(zoo.models, "small", lambda: gap_net)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    make_images(tmp_path / "set")


BASE = (
    "benchmark",
    "run",
    "--data",
    "coco:set",
    "--model",
    "small",
    "--method",
    "cam,center",
    "--metric",
    "deletion,gini",
)


def test_a_benchmark_from_shards_to_report(tmp_path):
    """Shards, merge, export and report work one after the other and say what they did."""
    for i in (1, 2):
        code, out, _ = call(*BASE, "--shard", f"{i}/2", "--output", "r.sqlite")
        assert code == 0
        assert out.startswith(f"r.{i}-of-2.sqlite: 4 images measured")
    code, out, _ = call("benchmark", "merge", "r.sqlite", "r.1-of-2.sqlite", "r.2-of-2.sqlite")
    assert (code, out) == (0, "r.sqlite: 8 images, 32 values from 2 files\n")
    assert call(*BASE, "--output", "r.sqlite")[1].startswith("r.sqlite: 0 images measured")
    assert call("benchmark", "export", "r.sqlite", "r.csv")[:2] == (0, "r.csv: 32 rows\n")
    code, out, _ = call("benchmark", "report", "r.sqlite", "--output", "rep")
    assert code == 0
    assert "deletion:xai-abn" in out
    assert json.loads((tmp_path / "rep" / "report.json").read_text())


def test_torchruns_environment_splits_the_work(monkeypatch):
    """Rank and world size choose the shard where none is named."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call(*BASE, "--output", "r.sqlite")[1].startswith("r.2-of-2.sqlite: 4 images")


def test_processes_of_ray_measure_shards(monkeypatch, tmp_path):
    """One command measures and merges; what it says is what a plain run says. Ray's own work is in test_ray.py."""
    monkeypatch.setattr(cluster, "connected", contextlib.nullcontext)
    monkeypatch.setattr(cluster, "spread", lambda make, items, processes, device: map(make(), items))
    ray = (*BASE, "--output", "r.sqlite", "--engine", "ray", "--processes", 2)
    code, out, _ = call(*ray)
    assert code == 0
    assert out.startswith("r.sqlite: 8 images measured")
    assert call(*ray)[1].startswith("r.sqlite: 0 images measured")
    assert call(*BASE, "--output", "r.sqlite")[1].startswith("r.sqlite: 0 images measured")
    assert "leave out --shard" in call(*ray, "--shard", "1/2")[2]
    assert "--processes is an option of --engine ray" in call(*BASE, "--processes", 2)[2]


def test_torchrun_itself_splits_the_work(tmp_path):
    """``torchrun --nproc-per-node 2`` gives two shards that merge into the whole run."""
    module = ["-m", "xai_abn.cli", "benchmark", "run", "--data", "coco:set", "--model", "abn-lite0", "--limit", "4"]
    rest = ["--method", "abn,center", "--metric", "gini,object-recall", "--output", "t.sqlite"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *module, *rest]
    subprocess.run(launch, check=True, cwd=tmp_path, capture_output=True, timeout=300)
    assert call("benchmark", "merge", "t.sqlite", "t.1-of-2.sqlite", "t.2-of-2.sqlite")[1].startswith(
        "t.sqlite: 4 images"
    )


@pytest.mark.parametrize(
    ("arguments", "message", "expected"),
    [
        (("--data", "set"), "data must be KIND:PLACE", 1),
        (("--data", "cocoo:set"), "did you mean 'coco'", 2),
        (("--data", "coco:nowhere"), "nowhere", 1),
        (("--method", "cam,gradcam"), "did you mean 'grad-cam'", 2),
        (("--metric", "deletoin"), "did you mean 'deletion'", 2),
        (("--shard", "3"), "shard takes I/N", 2),
        (("--shard", "3/2"), "1 <= I <= N", 2),
        (("--grid", "2"), "grids need images with one class each", 1),
        (("--output", "no/where.sqlite"), "check its folder", 1),
    ],
)
def test_mistakes_are_one_line(arguments, message, expected):
    """Wrong data, names, shards and places each give one line that says what to do; 2 is for a wrong command."""
    at = BASE.index(arguments[0]) if arguments[0] in BASE else len(BASE)
    code, _, error = call(*BASE[:at], *arguments, *BASE[at + 2 :])
    assert code == expected
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_an_empty_or_damaged_set_is_refused(tmp_path):
    """No images, damaged JSON, a class folder without images: one line each."""
    (tmp_path / "set" / "instances.json").write_text('{"images": [')
    assert "instances.json" in call(*BASE)[2]
    (tmp_path / "set" / "instances.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert call(*BASE)[0] == 1
    (tmp_path / "set" / "empty").mkdir()
    assert "empty" in call(*BASE[:2], "--data", "images:set", *BASE[4:])[2]


def test_a_image_that_fails_is_counted_and_the_exit_code_says_so(tmp_path):
    """An image listed but absent is named with its reason; the rest is measured; the command exits 1."""
    (tmp_path / "set" / "images" / "4.png").unlink()
    code, out, error = call(*BASE, "--output", "r.sqlite")
    assert code == 1
    assert "7 images measured" in out
    assert "1 failed" in out
    assert "4.png" in error


def test_a_file_that_is_no_run_is_named(tmp_path):
    """Report, merge and export of a foreign file say that it is no run."""
    (tmp_path / "x.sqlite").write_text("nothing of the kind, at some length" * 100)
    sqlite3.connect(tmp_path / "y.sqlite").execute("CREATE TABLE t (x)").connection.close()
    for name in ("x.sqlite", "y.sqlite", "absent.sqlite"):
        for command in (("report", name), ("merge", "m.sqlite", name), ("export", name, "t.csv")):
            code, _, error = call("benchmark", *command)
            assert code == 1
            assert name in error
            assert len(error.strip().splitlines()) == 1


def test_metrics_are_listed():
    """Every registered metric stands in the list with its protocol."""
    from xai_abn import metrics

    code, out, _ = call("list", "metrics")
    assert code == 0
    assert all(name in out for name in metrics.names())
