"""A benchmark run: nothing measured twice, nothing mixed, nothing lost."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from support import make_images

import xai_abn
from xai_abn import explainers, metrics
from xai_abn.benchmark import BenchmarkSettings, Store, benchmark, runner
from xai_abn.benchmark import store as store_module
from xai_abn.benchmark.exchange import export_run, merge_runs
from xai_abn.benchmark.report.build import make_report
from xai_abn.benchmark.scoring import Scorer
from xai_abn.benchmark.store import Batch, FailureRow
from xai_abn.datasets import Sample, read_dataset
from xai_abn.datasets.grids import make_grids
from xai_abn.errors import DatasetError, InvalidInputError, OutputError, RunError, UnknownNameError, XaiAbnError
from xai_abn.heatmaps import unit_range
from xai_abn.metrics import average_drop, upsample
from xai_abn.metrics.base import METRICS as REGISTERED
from xai_abn.metrics.curves import Curve, curve_metric
from xai_abn.metrics.deletion_insertion import PROTOCOLS
from xai_abn.models.folding import FastPredictor
from xai_abn.networks.checkpoint import fingerprint

METHODS = ["cam", "grad-cam", "center", "uniform"]
METRICS = ["deletion", "insertion", "pointing-game", "energy-confusion", "object-recall", "max-box-accuracy", "gini"]


@pytest.fixture
def images(tmp_path):
    """A COCO folder of eight seeded images; each shows a cat, every second one a dog too."""
    return make_images(tmp_path / "set")


def run(model, folder, output, methods=METHODS, metrics=METRICS, **settings):
    return benchmark(model, read_dataset(f"coco:{folder}"), methods, metrics, output, BenchmarkSettings(**settings))


def values(path):
    """Everything measured, without the seconds and the order of writing."""
    with Store.read(path) as store:
        rows = [(r.image, r.method, r.trial, r.target, r.metric, r.value, r.flaw) for r in store.results(all_rows=True)]
        curves = {r.key: r.curve.tolist() for r in store.results() if r.curve is not None}
        maps = {m.key: m.map.tolist() for m in store.maps()}
    return sorted(map(repr, rows)), curves, maps


def test_a_run_holds_one_row_for_each_image_method_target_and_metric(gap_net, images, tmp_path):
    """Top-1 metrics have one row an image and method, class metrics one for each class present."""
    summary = run(gap_net, images, tmp_path / "run.sqlite")
    assert (summary.images, summary.measured, summary.known, summary.failed) == (8, 8, 0, [])
    with Store.read(tmp_path / "run.sqlite") as store:
        count = {}
        for r in store.results():
            count[r.metric] = count.get(r.metric, 0) + 1
        assert count["deletion:xai-abn"] == 8 * 4
        assert count["pointing-game:torchray-15px"] == 12 * 4
        assert {r.trial for r in store.results("pointing-game:torchray-15px")} == {"cat", "dog"}
        assert {r.flaw for r in store.results() if r.method == "uniform" and r.metric.startswith("del")} == {"flat"}
        assert len(store.images()) == 8
        assert store.sessions[0]["measured"] == 8


def test_attributes_are_measured_by_their_own_probabilities(gap_net, images, tmp_path):
    """Of a multi-label model a probability is a sigmoid, in maps, curves and definitions; infidelity reads logits."""
    model = xai_abn.wrap(
        gap_net.module, labels=gap_net.labels, preprocess=xai_abn.Preprocess(size=32), name="many", multi_label=True
    )
    metrics = ["deletion:xai-abn", "average-drop:undivided", "polarity", "infidelity"]
    run(model, images, tmp_path / "run.sqlite", ["grad-cam"], metrics)
    with Store.read(tmp_path / "run.sqlite") as store:
        names = {i.image: i.source for i in store.images()}
        shown = xai_abn.Preprocess(size=32, crop="squash")
        for row in store.maps():
            inputs = shown(xai_abn.images.load_image(images / "images" / names[row.image])).tensor[None]
            with torch.no_grad():
                expected = gap_net.module(inputs).sigmoid()[0, row.target].item()
            assert row.probability == pytest.approx(expected, abs=1e-5)
            (deleted,) = [r for r in store.results("deletion:xai-abn") if r.image == row.image]
            assert deleted.curve[0] == pytest.approx(expected, abs=1e-5)
        told = {m: "sigmoid of the target's logit" in record["definition"] for m, record in store.metrics().items()}
    assert told == {m: not m.startswith("infidelity") for m in told}
    assert len(told) == 4
    inputs, maps = torch.randn(2, 3, 32, 32), torch.rand(2, 4, 4)
    predict, targets = FastPredictor(model), torch.tensor([1, 3])
    drop = average_drop(predict, inputs, maps, targets, divided=False)
    scaled = upsample(unit_range(maps), (32, 32))[:, None]
    with torch.no_grad():
        before, after = (gap_net.module(x).sigmoid()[[0, 1], targets] for x in (inputs, inputs * scaled))
    torch.testing.assert_close(drop, (before - after).clamp_min(0), atol=1e-5, rtol=0)


def test_the_values_are_the_metrics_own(gap_net, images, tmp_path):
    """What a run stores is what the public functions return for the same maps."""
    from xai_abn.metrics import Objects, deletion, gini, object_recall

    run(gap_net, images, tmp_path / "run.sqlite", batch_size=3)
    with Store.read(tmp_path / "run.sqlite") as store:
        names = {i.image: i.source for i in store.images()}
        rows = {(names[r.image], r.method, r.metric): r for r in store.results() if r.trial == "top-1"}
        maps = {(names[m.image], m.method): m for m in store.maps() if m.trial == "top-1"}
    preprocess = xai_abn.Preprocess(size=32, crop="squash")
    for name in ("0.png", "1.png", "6.png"):
        shown = preprocess(xai_abn.images.load_image(images / "images" / name)).tensor[None]
        found = maps[name, "cam"]
        assert gap_net.module(shown).argmax() == found.target
        map_, target = torch.tensor(found.map)[None], torch.tensor([found.target])
        boxes = [[5, 5, 25, 25], [30, 10, 55, 35]][: 1 + int(name[0]) % 2]
        objects = Objects.from_boxes(torch.tensor(boxes) * torch.tensor([32 / 60, 32 / 40] * 2), (32, 32))
        expected = {
            "deletion:xai-abn": deletion(gap_net.module, shown, map_, target),
            "gini:raw-map": gini(map_),
            "object-recall:top-20%": object_recall(map_, [objects]),
        }
        for metric, value in expected.items():
            assert rows[name, "cam", metric].value == pytest.approx(value.item(), abs=1e-6)


def test_a_repeated_run_computes_nothing(gap_net, images, tmp_path, monkeypatch):
    """The second time, no network is run and no row is written."""
    run(gap_net, images, tmp_path / "run.sqlite")
    before = values(tmp_path / "run.sqlite")
    monkeypatch.setattr(Scorer, "score", None)
    summary = run(gap_net, images, tmp_path / "run.sqlite")
    assert (summary.measured, summary.known) == (0, 8)
    assert values(tmp_path / "run.sqlite") == before


def test_a_new_method_or_metric_adds_only_its_own_values(gap_net, images, tmp_path, monkeypatch):
    """Adding methods and metrics later gives what one run with all of them gives, and asks only for what is missing."""
    path, asked = tmp_path / "run.sqlite", []
    run(gap_net, images, path, ["cam"], METRICS[:2])
    original = Scorer.score

    def spy(self, images, methods, wanted):
        asked.append({m.full_name: tuple(names) for m, names in wanted})
        return original(self, images, methods, wanted)

    monkeypatch.setattr(Scorer, "score", spy)
    run(gap_net, images, path)
    assert asked[0]["deletion:xai-abn"] == ("grad-cam", "center", "uniform")
    assert asked[0]["gini:raw-map"] == tuple(METHODS)
    run(gap_net, images, tmp_path / "whole.sqlite")
    assert values(path)[0] == values(tmp_path / "whole.sqlite")[0]


def test_two_layers_of_one_method_are_measured_apart(gap_net, images, tmp_path):
    """Each gives the values that it gives in a run of its own."""
    methods = ["grad-cam", "grad-cam:layer=features.0"]
    run(gap_net, images, tmp_path / "both.sqlite", methods, ["gini"])
    alone = []
    for number, method in enumerate(methods):
        run(gap_net, images, tmp_path / f"{number}.sqlite", [method], ["gini"])
        alone += values(tmp_path / f"{number}.sqlite")[0]
    assert values(tmp_path / "both.sqlite")[0] == sorted(alone)


def test_batch_size_and_shards_change_nothing(gap_net, images, tmp_path):
    """Merged shards, in batches of other sizes, hold what a single run holds; parts stay as they were."""
    run(gap_net, images, tmp_path / "single.sqlite", batch_size=8)
    parts = []
    for i in (1, 2, 3):
        parts.append(tmp_path / f"part{i}.sqlite")
        assert run(gap_net, images, parts[-1], batch_size=1, shard=(i, 3)).images == (3 if i < 3 else 2)
    counted = merge_runs(tmp_path / "merged.sqlite", parts)
    assert counted[0] == 8
    single, merged = values(tmp_path / "single.sqlite"), values(tmp_path / "merged.sqlite")
    assert [r.split(", ")[:5] for r in single[0]] == [r.split(", ")[:5] for r in merged[0]]
    assert single[1].keys() == merged[1].keys()
    for key, curve in single[1].items():
        assert merged[1][key] == pytest.approx(curve, abs=1e-5)
    with pytest.raises(OutputError, match="exists"):
        merge_runs(tmp_path / "merged.sqlite", parts)


def test_runs_of_different_models_do_not_merge(gap_net, images, tmp_path):
    """Parts must agree in model, preprocessing, precision and data; no half-made file is left."""
    run(gap_net, images, tmp_path / "a.sqlite", limit=2)
    with torch.no_grad():
        gap_net.module.fc.bias.add_(1)
    run(gap_net, images, tmp_path / "b.sqlite", limit=2)
    with pytest.raises(RunError, match=r"b\.sqlite does not belong"):
        merge_runs(tmp_path / "m.sqlite", [tmp_path / "a.sqlite", tmp_path / "b.sqlite"])
    assert not list(tmp_path.glob("m.sqlite*"))


def test_a_changed_model_is_noticed(gap_net, images, tmp_path):
    """One weight moved: the run is refused, and keeps what it has."""
    run(gap_net, images, tmp_path / "run.sqlite", limit=2)
    before = values(tmp_path / "run.sqlite")
    with torch.no_grad():
        gap_net.module.fc.weight[0, 0] += 1e-3
    with pytest.raises(RunError, match="another model"):
        run(gap_net, images, tmp_path / "run.sqlite", limit=2)
    with pytest.raises(RunError, match=r"another (model|precision)"):
        run(gap_net, images, tmp_path / "run.sqlite", limit=2, bf16=True)
    assert values(tmp_path / "run.sqlite") == before


def test_words_do_not_change_what_a_run_holds(gap_net, images, tmp_path, monkeypatch):
    """Another docstring, source, unit or definition: nothing is measured again, and the newest words are kept."""
    path = tmp_path / "run.sqlite"
    run(gap_net, images, path)
    before = values(path)
    kind, metric = explainers.get("cam"), metrics.get("deletion")
    monkeypatch.setattr(kind, "__doc__", "Other words.")
    monkeypatch.setattr(kind, "source", "another page")
    other = dataclasses.replace(metric, definition="Other words.", source="another page", units="something")
    monkeypatch.setitem(REGISTERED, metric.full_name, other)
    summary = run(gap_net, images, path)
    assert (summary.measured, summary.known) == (0, 8)
    assert values(path) == before
    with Store.read(path) as store:
        assert (
            store.methods()["cam"]["definition"] == store.metrics()["deletion:xai-abn"]["definition"] == "Other words."
        )


@pytest.mark.parametrize("changed", ["metric", "method", "option"])
def test_another_version_or_option_is_refused(gap_net, images, tmp_path, monkeypatch, changed):
    """Values of two computations never stand under one name."""
    path = tmp_path / "run.sqlite"
    run(gap_net, images, path, limit=2)
    if changed == "metric":
        other = dataclasses.replace(metrics.get("deletion"), version=2)
        monkeypatch.setitem(REGISTERED, "deletion:xai-abn", other)
    elif changed == "method":
        monkeypatch.setattr(explainers.get("cam"), "version", 2)
    else:
        monkeypatch.setattr(explainers.get("cam"), "options", {"power": 2})
    with pytest.raises(RunError, match="values are never mixed"):
        run(gap_net, images, path, limit=2)


def test_outputs_read_in_another_way_are_refused(gap_net, images, tmp_path):
    """Sigmoids never stand beside softmaxes; a run that does not say which it has goes on as before."""
    path = tmp_path / "run.sqlite"
    run(gap_net, images, path, limit=1)
    for other in ({"multi_label": True}, {"output": lambda logits: logits.flip(1)}):
        with pytest.raises(RunError, match=r"another model \(.*values are never mixed"):
            run(dataclasses.replace(gap_net, **other), images, path, limit=1)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE run SET value = json_remove(value, '$.model.outputs') WHERE name = 'identity'")
    assert run(gap_net, images, path, limit=2).measured
    assert run(dataclasses.replace(gap_net, multi_label=True), images, path, limit=3).measured


def test_a_changed_image_or_annotation_is_measured_anew(gap_net, images, tmp_path):
    """Old values of a changed image no longer count and are reported; changed back, they count again."""
    path, changed = tmp_path / "run.sqlite", images / "images" / "3.png"
    run(gap_net, images, path)
    first, original = values(path), changed.read_bytes()
    Image.new("RGB", (60, 40), "red").save(changed)
    summary = run(gap_net, images, path)
    assert (summary.measured, summary.known, summary.superseded) == (1, 7, 1)
    assert len(values(path)[0]) == len(first[0])
    assert values(path) != first
    changed.write_bytes(original)
    summary = run(gap_net, images, path)
    assert (summary.measured, summary.superseded) == (0, 1)
    assert values(path) == first


@pytest.mark.parametrize("moment", [0.02, 0.3, 0.8])
def test_killed_at_any_moment_a_run_goes_on(gap_net, images, tmp_path, moment):
    """Killed with SIGKILL while it writes, a run is whole, and finished gives what an uninterrupted one gives."""
    path = tmp_path / "run.sqlite"
    torch.save(gap_net.module.state_dict(), tmp_path / "weights.pt")
    script = f"""
import sys, time, torch
sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
from support import GapNet
import xai_abn
from xai_abn.datasets import read_dataset
from xai_abn.benchmark import BenchmarkSettings, benchmark
net = GapNet().eval(); net.load_state_dict(torch.load({str(tmp_path / "weights.pt")!r}))
labels = ["cat", "dog", "bicycle", "sofa", "kite"]
model = xai_abn.wrap(net, labels=labels, preprocess=xai_abn.Preprocess(size=32), name="gap-net")
def progress(done, total):
    print(done, flush=True); time.sleep(0.15)
data, settings = read_dataset("coco:{images}"), BenchmarkSettings(batch_size=1)
benchmark(model, data, {METHODS!r}, {METRICS!r}, {str(path)!r}, settings, progress=progress)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.readline()  # one batch is written
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Store.read(path) as store:
        assert 1 <= len(store.images()) < 8
    summary = run(gap_net, images, path, batch_size=1)
    assert summary.known >= 1
    assert summary.known + summary.measured == 8
    run(gap_net, images, tmp_path / "whole.sqlite", batch_size=1)
    assert values(path) == values(tmp_path / "whole.sqlite")


def test_a_image_that_fails_is_recorded_and_tried_again(gap_net, images, tmp_path):
    """A damaged image and a box outside are failures with reasons; the others are measured; mended, they follow."""
    broken, path = images / "images" / "2.png", tmp_path / "run.sqlite"
    original = broken.read_bytes()
    broken.write_bytes(original[:100])
    content = json.loads((images / "instances.json").read_text())
    content["annotations"][0]["bbox"] = [50, 5, 40, 20]
    (images / "instances.json").write_text(json.dumps(content))
    summary = run(gap_net, images, path)
    assert summary.measured == 6
    assert sorted(name for name, _ in summary.failed) == ["0.png", "2.png"]
    assert "reaches outside the image" in str(summary.failed)
    with Store.read(path) as store:
        assert sorted(f.source for f in store.failures()) == ["0.png", "2.png"]
    broken.write_bytes(original)
    assert run(gap_net, images, path).measured == 1
    with Store.read(path) as store:
        assert [f.source for f in store.failures()] == ["0.png"]


@pytest.mark.parametrize("usual", ["center", "squash", "squash-center"])
def test_the_usual_crop_is_the_one_of_the_model(gap_net, images, tmp_path, usual):
    """Also of a model that never crops."""
    preprocess = dataclasses.replace(gap_net.preprocess, crop=usual)
    model = dataclasses.replace(gap_net, preprocess=preprocess)
    run(model, images, tmp_path / "run.sqlite", crop="center")
    with Store.read(tmp_path / "run.sqlite") as store:
        assert store.identity["preprocess"]["crop"] == usual


def test_a_image_with_non_finite_scores_is_set_aside(gap_net, images, tmp_path, monkeypatch):
    """NaN logits fail that image alone."""
    forward = type(gap_net.module).forward
    seen = xai_abn.Preprocess(size=32, crop="squash")(xai_abn.images.load_image(images / "images" / "5.png")).tensor

    def poisoned(self, x):
        scores = forward(self, x)
        hit = torch.tensor([bool(torch.equal(row, seen)) for row in x])
        return torch.where(hit[:, None], torch.full_like(scores, float("nan")), scores)

    monkeypatch.setattr(type(gap_net.module), "forward", poisoned)
    summary = run(gap_net, images, tmp_path / "run.sqlite")
    assert summary.measured == 7
    assert summary.failed[0][0] == "5.png"
    assert "NaN" in summary.failed[0][1]


def test_bad_requests_are_refused_before_anything_is_written(gap_net, images, tmp_path):
    """Unknown names, none, one twice, impossible shards, metrics without annotations."""
    path = tmp_path / "run.sqlite"
    for methods, chosen, error in (
        (["nothing"], ["deletion"], UnknownNameError),
        (["cam"], ["delation"], UnknownNameError),
        (["cam"], ["deletion:rise"], UnknownNameError),
        ([], ["deletion"], InvalidInputError),
        (["cam"], [], InvalidInputError),
        (["cam"], ["deletion", "deletion:xai-abn"], InvalidInputError),
    ):
        with pytest.raises(error):
            run(gap_net, images, path, methods, chosen)
    for shard in ((0, 2), (3, 2)):
        with pytest.raises(InvalidInputError, match="shard"):
            BenchmarkSettings(shard=shard)
    bare = read_dataset(f"images:{images / 'images'}")
    with pytest.raises(DatasetError, match="need annotated objects"):
        benchmark(gap_net, bare, ["cam"], ["object-recall"], path)
    strange = xai_abn.wrap(gap_net.module, labels=list("vwxyz"), preprocess=gap_net.preprocess)
    with pytest.raises(DatasetError, match="knows none of the classes"):
        run(strange, images, path, ["cam"], ["pointing-game"])
    assert not path.exists()


def test_damaged_foreign_and_newer_files_are_refused(gap_net, images, tmp_path):
    """A text file, a truncated run, another database and a newer format each give one line that says so."""
    text, other, short, newer = (tmp_path / f"{n}.sqlite" for n in ("text", "other", "short", "newer"))
    text.write_text("not a database, but a text of some length\n" * 200)
    sqlite3.connect(other).execute("CREATE TABLE t (x)").connection.close()
    run(gap_net, images, short)
    short.write_bytes(short.read_bytes()[: short.stat().st_size // 2])
    run(gap_net, images, newer, limit=1)
    with sqlite3.connect(newer) as connection:
        connection.execute("UPDATE run SET value = '99' WHERE name = 'format'")
    connection.close()
    for path in (text, other, short, newer):
        content = path.read_bytes()
        for opener in (Store.read, Store.open, lambda p: run(gap_net, images, p)):
            with pytest.raises(RunError, match=path.name):
                opener(path)
        assert path.read_bytes() == content
    with pytest.raises(RunError, match="no such run"):
        Store.read(tmp_path / "absent.sqlite")
    with pytest.raises(RunError, match="check its folder"):
        run(gap_net, images, tmp_path / "no" / "folder.sqlite")


def test_a_locked_run_is_not_waited_for_for_ever(gap_net, images, tmp_path, monkeypatch):
    """While another process holds the file, one clear error; afterwards the run goes on."""
    path = tmp_path / "run.sqlite"
    run(gap_net, images, path, limit=2)
    monkeypatch.setattr(store_module, "TIMEOUT", 0.2)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RunError, match="another process"):
        run(gap_net, images, path)
    holder.execute("ROLLBACK")
    holder.close()
    assert run(gap_net, images, path).measured == 6


def test_a_full_disk_loses_only_the_batch_in_flight(gap_net, images, tmp_path, monkeypatch):
    """When the file cannot grow, one clear error; with space again, the same command goes on."""
    path = tmp_path / "run.sqlite"
    run(gap_net, images, path, limit=2, batch_size=1)
    opened = Store.open.__func__

    def cramped(cls, path):
        store = opened(cls, path)
        pages = next(store._rows("PRAGMA page_count"))[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages + 4}")
        return store

    monkeypatch.setattr(Store, "open", classmethod(cramped))
    with pytest.raises(RunError, match="disk is full"):
        run(gap_net, images, path, batch_size=1)
    monkeypatch.undo()
    summary = run(gap_net, images, path, batch_size=1)
    assert summary.known >= 2
    assert summary.known + summary.measured == 8


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_run_is_refused(gap_net, images, tmp_path):
    """A run that cannot be written to says so."""
    path = tmp_path / "run.sqlite"
    run(gap_net, images, path, limit=2)
    path.chmod(0o444)
    with pytest.raises(RunError, match="read-only"):
        run(gap_net, images, path)


def test_a_read_only_file_is_named(gap_net, images, tmp_path):
    """SQLite's own refusal to write becomes one line that says what to do."""
    path = tmp_path / "run.sqlite"
    run(gap_net, images, path, limit=1)
    with Store.read(path) as store, pytest.raises(RunError, match="read-only"):
        store.write(Batch(failures=[FailureRow("a", "b")]))


def test_exports_hold_every_value(gap_net, images, tmp_path):
    """The CSV and the Parquet table have a row for each value, and the values themselves."""
    pyarrow = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "run.sqlite"
    run(gap_net, images, path)
    rows = export_run(path, tmp_path / "run.csv")
    assert export_run(path, tmp_path / "run.parquet") == rows
    with (tmp_path / "run.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    with Store.read(path) as store:
        assert len(table) == rows == len(store.results())
    parquet = pyarrow.read_table(tmp_path / "run.parquet").to_pylist()
    assert [r["value"] if r["value"] is not None else "" for r in parquet] == [
        float(r["value"]) if r["value"] else "" for r in table
    ]
    with pytest.raises(InvalidInputError, match="must end in"):
        export_run(path, tmp_path / "run.xlsx")


def test_a_flat_map_counts_as_a_miss_only_where_there_was_something_to_hit(gap_net, images, tmp_path):
    """A flat map is flagged for a difficult-subset metric only on trials of that subset."""
    path = tmp_path / "run.sqlite"
    run(gap_net, images, path, ["cam", "uniform"], ["pointing-game-difficult"])
    with Store.read(path) as store:
        rows = store.results()
    scored = {(r.image, r.trial) for r in rows if r.method == "cam" and r.value is not None}
    flagged = {(r.image, r.trial) for r in rows if r.method == "uniform" and r.flaw is not None}
    assert scored == flagged
    assert len(scored) == 4  # the cats beside dogs; the dogs cover more than a quarter


def test_another_process_at_work_on_a_run_is_told(tmp_path, gap_net):
    """The second is told; one that was killed, or has ended, does not count."""
    data = read_dataset(f"coco:{make_images(tmp_path / 'set', 2)}")
    path = tmp_path / "run.sqlite"
    benchmark(gap_net, data, ["center"], ["gini"], path)
    with Store.open(path) as store:
        assert "process" not in store.sessions[0]
        other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        store.add_session({"machine": runner._process()["machine"], "process": other.pid, "active": 0})
    try:
        with pytest.warns(runner.SharedRunWarning, match=rf"another process, {other.pid}, is measuring this run, too"):
            benchmark(gap_net, data, ["center"], ["gini"], path)
        with Store.open(path) as store, pytest.warns(runner.SharedRunWarning):  # it began after this one
            runner._warn_of_others(store, 0)
    finally:
        other.kill()
        other.wait()
    benchmark(gap_net, data, ["center"], ["gini"], path)


def test_grids_are_scored_without_boxes(gap_net, tmp_path):
    """Images in class folders become grids of different classes whose cells are the objects."""
    for name in ("cat", "dog", "bicycle", "sofa"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng(i).integers(0, 255, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.png")
    data = make_grids(read_dataset(f"images:{tmp_path / 'set'}"), 2, cell=32)
    assert len(data.samples) == 2
    assert {o.label for o in data.samples[0].objects} == {"cat", "dog", "bicycle", "sofa"}
    assert data.samples[0].load().image.size == (64, 64)
    benchmark(gap_net, data, ["cam", "uniform"], ["grid-pointing", "energy-confusion"], tmp_path / "run.sqlite")
    with Store.read(tmp_path / "run.sqlite") as store:
        even = [r.value for r in store.results("grid-pointing:gridpg-2021") if r.method == "uniform"]
        assert even == pytest.approx([0.25] * 8)
        assert len(store.results("energy-confusion:xai-abn")) == 16
    with pytest.raises(DatasetError, match="9 classes"):
        make_grids(read_dataset(f"images:{tmp_path / 'set'}"), 3)


def test_the_fast_copy_answers_as_the_model(abn_resnet18, resnet18, gap_net):
    """Folding batch normalisation changes the logits by rounding alone, and leaves the model as it was."""
    for model, folds in ((gap_net, 1), (resnet18, 20), (abn_resnet18, 27)):
        before = fingerprint(model.module)
        predictor = FastPredictor(model)
        inputs = torch.randn(3, 3, model.preprocess.size, model.preprocess.size)
        with torch.no_grad():
            expected = model.module(inputs)
        expected = expected.logits if model.is_abn else expected
        torch.testing.assert_close(predictor(inputs), expected, atol=1e-4, rtol=1e-4)
        assert predictor.folded == folds
        assert fingerprint(model.module) == before
        half = FastPredictor(model, bf16=True)(inputs)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, expected, atol=0.05 * expected.abs().max().item(), rtol=0.05)
        assert not torch.equal(half, predictor(inputs))


def test_a_normalisation_that_is_not_the_convolutions_only_reader_is_left(gap_net):
    """Where a convolution's output is used twice, folding would change the answer: the copy is not folded."""

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
            self.norm.running_mean.fill_(2.0)
            self.fc = torch.nn.Linear(4, 5)

        def forward(self, x):
            y = self.conv(x)
            return self.fc((self.norm(y) + y).mean(dim=(2, 3)))

    model = xai_abn.wrap(Twice().eval(), preprocess=gap_net.preprocess)
    predictor, inputs = FastPredictor(model), torch.randn(2, 3, 32, 32)
    assert predictor.folded == 0
    torch.testing.assert_close(predictor(inputs), model.module(inputs))


def test_large_maps_are_kept_small(gap_net, images, tmp_path):
    """Of a map finer than 56 cells a side a reduced copy is kept, with its mean; its values are scored as they are."""
    from dataclasses import replace

    gap_net = replace(gap_net, preprocess=replace(gap_net.preprocess, size=112))
    run(gap_net, images, tmp_path / "run.sqlite", ["sobel", "cam"], ["gini"], limit=1)
    with Store.read(tmp_path / "run.sqlite") as store:
        shapes = {m.method: m.map.shape for m in store.maps()}
    assert shapes == {"sobel": (56, 56), "cam": (28, 28)}


def test_an_annotated_image_knows_its_own_content(images):
    """The digest changes with the file and with the annotations, and with nothing else."""
    image = Sample(str(images / "images" / "0.png"))
    assert image.digest() == Sample(str(images / "images" / "0.png")).digest()
    assert image.digest() != Sample(str(images / "images" / "1.png")).digest()
    assert image.digest() != Sample(image.source, label="cat").digest()


@pytest.fixture
def lerf():
    """A perturbation curve of another package: the least relevant pixels are deleted first."""
    curve = Curve("lerf", least_first=True, higher_is_better=True, axis_label="share of pixels deleted, least first")
    metric = metrics.register(curve_metric(curve, PROTOCOLS["xai-abn"], "Least relevant first.", "Samek et al., 2017"))
    yield metric
    REGISTERED.pop(metric.full_name)


def test_a_new_curve_is_one_record(lerf, gap_net, images, tmp_path):
    """It is measured, stored and reported beside deletion; its values are those worked out by hand."""
    path = tmp_path / "run.sqlite"
    run(gap_net, images, path, ["grad-cam", "center"], ["deletion", "lerf"], limit=2)
    with Store.read(path) as store:
        found = {r.image: r for r in store.results("lerf:xai-abn") if r.method == "grad-cam"}
        maps = {m.image: torch.from_numpy(m.map.copy())[None] for m in store.maps() if m.method == "grad-cam"}
        names = {i.image: i.source for i in store.images()}
    (section,) = make_report([path]).sections
    curves = next(c for c in section["curves"] if c["metric"] == "lerf:xai-abn")
    assert {s["method"] for s in curves["series"]} == {"grad-cam", "center"}
    protocol = PROTOCOLS["xai-abn"]
    for key, row in found.items():
        shown = xai_abn.Preprocess(size=32, crop="squash")
        inputs = shown(xai_abn.images.load_image(images / "images" / names[key])).tensor[None]
        ranks = protocol.ranks(upsample(maps[key], (32, 32)))[0].view(32, 32)
        blank = protocol.deletion.make(inputs, torch.zeros(3))
        for point, count in enumerate(protocol.counts(32, 32)):
            image = torch.where(ranks >= 32 * 32 - count, blank, inputs)
            with torch.no_grad():
                expected = gap_net.module(image).softmax(dim=1)[0, row.target].item()
            assert row.curve[point] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE results SET value = 'text'",
        "UPDATE results SET curve = x'00'",
        "UPDATE maps SET map = x'0102'",
        "UPDATE run SET value = '[]' WHERE name = 'identity'",
        "UPDATE run SET value = '5' WHERE name = 'sessions'",
        "UPDATE metrics SET record = '[]'",
        "UPDATE metrics SET record = '{}'",
        "UPDATE methods SET record = '5'",
        "UPDATE images SET objects = '5'",
        "UPDATE images SET view = x''",
    ],
)
def test_a_damaged_run_is_one_error(gap_net, images, tmp_path, statement):
    """Whatever is wrong in it: report, merge and export answer, or refuse in one line."""
    path = tmp_path / "run.sqlite"
    benchmark(
        gap_net, read_dataset(f"coco:{images}"), ["cam", "center"], ["deletion"], path, BenchmarkSettings(limit=2)
    )
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    for use in (
        lambda: make_report([path]),
        lambda: merge_runs(tmp_path / "merged.sqlite", [path]),
        lambda: export_run(path, tmp_path / "table.csv"),
    ):
        with contextlib.suppress(XaiAbnError):
            use()


def test_a_network_of_values_is_refused(gap_net, images, tmp_path):
    """The metrics need probabilities; one output is no class unless it is said to be."""
    for model in (
        dataclasses.replace(gap_net, scores_only=True),
        xai_abn.wrap(torch.nn.Sequential(gap_net.module, torch.nn.Linear(5, 1)), preprocess=gap_net.preprocess),
    ):
        with pytest.raises(InvalidInputError, match="is not a classifier, which a benchmark needs"):
            benchmark(model, images, ["center"], ["gini"], tmp_path / "run.sqlite")
