"""A run in shards that are merged into it: nothing is measured twice, whatever happened before."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from support import make_images

from xai_abn import cluster
from xai_abn.benchmark import BenchmarkSettings, Store, benchmark
from xai_abn.benchmark.shards import benchmark_on_ray, shards_of
from xai_abn.datasets import read_dataset
from xai_abn.errors import InvalidInputError, OutputError, RunError


@pytest.fixture(autouse=True)
def without_processes(monkeypatch):
    """Do the work of Ray's processes in this one."""
    monkeypatch.setattr(cluster, "connected", nullcontext)
    monkeypatch.setattr(cluster, "available", lambda device: 2)
    monkeypatch.setattr(cluster, "spread", lambda make, items, processes, device: map(make(), items))


@pytest.fixture
def measure(gap_net, tmp_path):
    """Return a function that measures the run of eight images."""
    make_images(tmp_path / "set")
    (tmp_path / "set/images/3.png").write_bytes(b"no image")

    def measure(methods=("cam", "center"), output="run.sqlite", model=gap_net, **more):
        read = lambda model: read_dataset(f"coco:{tmp_path / 'set'}")  # noqa: E731
        return benchmark_on_ray(lambda device: model, read, methods, ["gini", "deletion"], tmp_path / output, **more)

    return measure


def values(path):
    with Store.read(path) as store:
        return {row.key: row.value for row in store.results()}, {row.source: row.reason for row in store.failures()}


def test_the_merged_run_is_that_of_one_process(measure, gap_net, tmp_path):
    """Values, failures and images; the shards are gone."""
    told = []
    made = measure(processes=3, progress=lambda *numbers: told.append(numbers))
    assert (made.images, made.measured, made.known, len(made.failed)) == (8, 7, 0, 1)
    assert told[-1] == (8, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.sqlite", "set"]
    data = read_dataset(f"coco:{tmp_path / 'set'}")
    benchmark(gap_net, data, ["cam", "center"], ["gini", "deletion"], tmp_path / "plain.sqlite")
    (found, failed), (expected, also) = values(tmp_path / "run.sqlite"), values(tmp_path / "plain.sqlite")
    assert (found.keys(), failed) == (expected.keys(), also)
    assert found == pytest.approx(expected, rel=1e-4)


def test_nothing_is_measured_twice(measure, gap_net, tmp_path, monkeypatch):
    """With another number of processes, with more methods, after an interruption, and by a run without Ray."""
    measure(processes=3)
    again = measure(processes=2)
    assert (again.measured, again.known, len(again.failed)) == (0, 7, 1)
    more = measure(("cam", "center", "random-7"))
    assert (more.measured, len(values(tmp_path / "run.sqlite")[0])) == (7, 42)
    work = []
    original = cluster.spread

    def stop_after_one(make, items, processes, device):
        work.append(len(items))
        yield next(original(make, items, processes, device))
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "spread", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        measure(output="other.sqlite", processes=2)
    assert [path.name for path in shards_of(tmp_path / "other.sqlite").iterdir()] == ["1-of-2.sqlite"]
    monkeypatch.setattr(cluster, "spread", original)
    rest = measure(output="other.sqlite", processes=3)
    assert (rest.measured, rest.known) == (3, 4)
    assert not shards_of(tmp_path / "other.sqlite").exists()
    data = read_dataset(f"coco:{tmp_path / 'set'}")
    plain = benchmark(gap_net, data, ["cam", "center"], ["gini", "deletion"], tmp_path / "other.sqlite")
    assert (plain.measured, plain.known) == (0, 7)


def test_an_image_that_changes_and_is_restored(measure, tmp_path):
    """Its old values do not count while it is another, and count again without being computed."""
    path = tmp_path / "set/images/0.png"
    first, other = path.read_bytes(), (tmp_path / "set/images/1.png").read_bytes()
    measure()
    before = values(tmp_path / "run.sqlite")[0]
    path.write_bytes(other)
    changed = measure()
    assert (changed.measured, changed.superseded) == (1, 1)
    path.write_bytes(first)
    restored = measure()
    assert (restored.measured, restored.superseded) == (0, 1)
    assert values(tmp_path / "run.sqlite")[0] == before


def test_mistakes_are_told(measure, small_resnet, tmp_path):
    """Another model or another version of a method, a shard, and a place that cannot be written."""
    measure()
    with pytest.raises(RunError, match=r"run\.sqlite: this run has another model"):
        measure(model=small_resnet)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xai_abn.explainers.cam.CAM.version", 99)
        with pytest.raises(RunError, match="method 'cam' was"):
            measure()
    with pytest.raises(InvalidInputError, match="leave out --shard"):
        measure(settings=BenchmarkSettings(shard=(1, 2)))
    with pytest.raises(OutputError, match="cannot write"):
        measure(output="nowhere/run.sqlite")
