"""Images explained and methods scored on a real Ray of four processes, one of which is killed on the way."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import timm
import torch
from PIL import Image
from support import make_images

import xai_abn
from xai_abn import cluster
from xai_abn.benchmark import Store, benchmark
from xai_abn.benchmark.shards import benchmark_on_ray
from xai_abn.datasets import read_dataset
from xai_abn.errors import InvalidInputError, RunError
from xai_abn.images.preprocess import Preprocess
from xai_abn.integrations import BatchExplainer
from xai_abn.integrations.partitions import Question, explain_partitions
from xai_abn.networks.checkpoint import CheckpointConfig, save_checkpoint

pytestmark = pytest.mark.slow  # processes that import torch take their time to start


@pytest.fixture(scope="module", autouse=True)
def four_processes():
    """A Ray on this machine with room for four processes, which find the package where this one does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        paths = [str(Path(xai_abn.__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        ray.init(num_cpus=4, include_dashboard=False, logging_level="error", object_store_memory=100 * 2**20)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file of a small, untrained ABN that knows cats and dogs."""
    torch.manual_seed(0)
    network = xai_abn.abn_from(timm.create_model("test_resnet", num_classes=2), input_size=64)
    config = CheckpointConfig("timm:test_resnet", 2, network.description, Preprocess(size=64), ["cat", "dog"])
    path = tmp_path_factory.mktemp("models") / "small.safetensors"
    save_checkpoint(path, network, config)
    return str(path)


@pytest.fixture
def images(tmp_path):
    """A folder with forty images and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    (folder / "21.5.png").write_text("nothing to see")
    return folder


def mortal(checkpoint, marker, passes):
    """Return a function that loads a model which kills the first process that runs it so many times."""

    def load(device):
        model = xai_abn.load_model(checkpoint, device=device)
        seen = []

        def die(*_):
            seen.append(1)
            if len(seen) == passes and not os.path.exists(marker):
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)

        if ray.get_runtime_context().get_actor_id() is not None:  # not the process of the test
            model.module.register_forward_pre_hook(die)
        return model

    return load


def test_a_killed_process_loses_no_image(checkpoint, images, tmp_path):
    """The maps are complete, each row once, in order, and those of a run without Ray; so are they if resumed."""
    output, marker = tmp_path / "maps.parquet", tmp_path / "killed"
    question = Question(mortal(checkpoint, marker, 2), ["abn", "grad-cam"])
    told = []
    made = explain_partitions(
        [str(images)], str(output), question, size=4, processes=4, progress=lambda *numbers: told.append(numbers)
    )
    assert marker.exists()
    assert (made.partitions, made.known, made.images, made.processes) == (11, 0, 41, 4)
    assert [source for source, _ in made.failures] == [str(images / "21.5.png")]
    assert told == [(number, 11) for number in range(1, 12)]
    table = pq.read_table(output)
    names = sorted(images.iterdir())
    assert table["source"].to_pylist() == list(map(str, names))
    good = [name for name in names if name.name != "21.5.png"]
    expected = xai_abn.explain(xai_abn.load_model(checkpoint), good, ["abn", "grad-cam"])
    rows = table.filter(table["error"].is_null())
    assert rows["label"].to_pylist() == [one["grad-cam"].label for one in expected]
    for method in ("abn", "grad-cam"):
        maps = rows[f"{method}_map"].combine_chunks().to_numpy_ndarray()
        np.testing.assert_allclose(maps, [one[method].map for one in expected], rtol=1e-4, atol=1e-6)
    kept = (output / "part-00003.parquet").read_bytes()
    (output / "part-00005.parquet").unlink()
    again = explain_partitions([str(images)], str(output), question, size=4, processes=2, resume=True)
    assert (again.known, again.images, again.processes) == (10, 4, 1)
    resumed = pq.read_table(output)
    assert resumed["source"].equals(table["source"])
    assert resumed.filter(resumed["error"].is_null()).equals(rows)  # NaN is not equal to itself
    assert (output / "part-00003.parquet").read_bytes() == kept
    found = ray.data.read_parquet(str(output)).take_all()
    assert sorted(row["source"] for row in found) == table["source"].to_pylist()
    assert {row["abn_map"].shape for row in found} == {expected[0]["abn"].map.shape}


def test_a_killed_process_loses_no_value(checkpoint, tmp_path):
    """The merged run has the values of a run without Ray; with more methods only theirs are computed."""
    make_images(tmp_path / "set", 16)
    data, output, marker = f"coco:{tmp_path / 'set'}", tmp_path / "ray.sqlite", tmp_path / "killed"
    load = mortal(checkpoint, marker, 3)
    metrics = ["deletion", "gini"]
    made = benchmark_on_ray(load, lambda model: read_dataset(data), ["abn", "center"], metrics, output, processes=4)
    assert marker.exists()
    assert (made.images, made.failed) == (16, [])
    assert not (tmp_path / "ray.shards").exists()
    plain = benchmark(
        xai_abn.load_model(checkpoint), read_dataset(data), ["abn", "center"], metrics, tmp_path / "plain.sqlite"
    )
    assert plain.measured == 16
    assert values(output).keys() == values(tmp_path / "plain.sqlite").keys()
    for key, value in values(tmp_path / "plain.sqlite").items():
        assert values(output)[key] == pytest.approx(value, rel=1e-4, abs=1e-6)
    before = values(output)
    methods = ["abn", "center", "random-7"]
    more = benchmark_on_ray(load, lambda model: read_dataset(data), methods, metrics, output, processes=2)
    assert (more.measured, len(values(output))) == (16, 96)
    assert before.items() <= values(output).items()


def values(run):
    """Return the values of a run by key."""
    with Store.read(run) as store:
        return {row.key: row.value for row in store.results()}


def test_errors_and_unknown_devices_are_told():
    """An error of a process is raised here, on one line; Ray chooses the GPU itself, and here is none."""

    def make():
        def refuse(item):
            raise InvalidInputError(f"no {item}; give another")

        return refuse

    with pytest.raises(RunError, match="no seven; give another"):
        list(cluster.spread(make, ["seven"], 1))
    with pytest.raises(InvalidInputError, match="write --device cuda, not cuda:1"):
        cluster.available("cuda:1")
    assert cluster.available("cpu") == 4


def test_columns_are_added_by_two_processes(images, checkpoint):
    """``map_batches`` explains blocks of paths; the bad one keeps its row and its reason."""
    files = [str(images / name) for name in ("00.png", "21.5.png", "01.png")]
    rows = [{"image": path} for path in files * 2]
    explain = BatchExplainer(checkpoint, ["cam"], errors="record")
    found = ray.data.from_items(rows, override_num_blocks=2).map_batches(explain, batch_size=3).take_all()
    assert sorted(row["image"] for row in found) == sorted(files * 2)
    expected = xai_abn.explain(xai_abn.load_model(checkpoint), files[0], "cam")["cam"]
    for row in found:
        if row["image"] == files[1]:
            assert "not an image" in row["error"]
            assert row["cam_map"] is None
        elif row["image"] == files[0]:
            np.testing.assert_allclose(row["cam_map"], expected.map, rtol=1e-3, atol=1e-4)
            assert row["error"] is None
