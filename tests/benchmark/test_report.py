"""Reports of generated runs: the tables are right, the page is whole, safe, and needs nothing but itself."""

from __future__ import annotations

import dataclasses
import hashlib
import html as markup
import io
import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image
from support import make_images
from typer.testing import CliRunner

from xai_abn import explainers, metrics
from xai_abn.benchmark import BenchmarkSettings, benchmark
from xai_abn.benchmark.report.build import make_report
from xai_abn.benchmark.report.gallery import _boxes
from xai_abn.benchmark.report.text import meaning, overview
from xai_abn.benchmark.store import Batch, FailureRow, ImageRow, MapRow, ResultRow, Store
from xai_abn.datasets import read_dataset
from xai_abn.errors import OutputError, RunError, UnknownNameError
from xai_abn.metrics import base

LABEL = "<b>&cat"
IMAGES = 12
AXIS = [0.0, 0.25, 0.5, 0.75, 1.0]
#: Probability of the target with no pixel changed, by method; deletion falls from it to 0 in a straight line.
LEVELS = {"abn": 0.4, "cam": 0.6, "grad-cam": 0.8, "center": 1.0}
METHODS = {
    name: {
        "baseline": name == "center",
        "class_specific": name not in ("abn", "center"),
        "layer": "features.3",
        "source": f"paper of {name}",
        "definition": f"what {name} does",
        "parameters": {},
    }
    for name in LEVELS
}


def record(higher, subject="top-1", counts_as=None, axis=None, **more):
    return {
        "higher_is_better": higher, "subject": subject, "flat_counts_as": counts_as, "axis": axis, "units": "share",
        "range": [0, 1], "source": "the paper", "definition": "what it is", "needs": "model", "parameters": {},
        "aggregated": "mean", **more,
    }  # fmt: skip


METRICS = {
    "deletion:test": record(False, axis=AXIS),
    "insertion:test": record(True, axis=AXIS),
    "pointing-game:test": record(True, "classes", 0.0, needs="objects"),
}


def view(index):
    pixels = np.random.default_rng(index).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def result(image, method, trial, metric, value, flaw=None, curve=None):
    curve = None if curve is None else np.array(curve, np.float32)
    return ResultRow(f"{image} {method} {trial} {metric}", image, method, trial, 1, metric, value, flaw, curve)


def map_row(image, method, trial, label, flat):
    values = np.zeros((4, 6)) if flat else np.random.default_rng(len(method)).random((4, 6))
    flaw = "flat" if flat else None
    return MapRow(f"{image} {method} {trial}", image, method, trial, 1, label, 0.75, flaw, 0.02, values)


def rows_of(image, index, method):
    """One image: straight deletion and insertion lines, hits on even images, grad-cam flat on image 0."""
    flat = method == "grad-cam" and index == 0
    level = LEVELS[method] * (1 + index / 100)
    maps = [map_row(image, method, trial, LABEL, flat) for trial in ("top-1", LABEL)]
    flaw = "flat" if flat else None
    line = None if flat else [level * (1 - x) for x in AXIS]
    rising = None if flat else [level * x for x in AXIS]
    results = [
        result(image, method, "top-1", "deletion:test", None if flat else level / 2, flaw, line),
        result(image, method, "top-1", "insertion:test", None if flat else level / 2, flaw, rising),
        result(image, method, LABEL, "pointing-game:test", None if flat else float(index % 2 == 0), flaw),
    ]
    return maps, results


def write_run(path, *, model="net", data="coco", images=range(IMAGES), metrics=METRICS, methods=METHODS):
    identity = {"model": {"name": model, "fingerprint": model * 3}, "precision": "float32", "data": {"kind": data}}
    batch = Batch(failures=[FailureRow("broken.jpg", "broken.jpg: truncated"), FailureRow("b.jpg", "b.jpg: truncated")])
    for index in images:
        image = f"key{index:02d}"
        objects = [{"label": LABEL, "box": [0.1, -0.2, 0.5, 0.6], "crowd": False, "difficult": True}]
        batch.images.append(ImageRow(image, index, f"image{index}.jpg", None, view(index), objects))
        for method in METHODS:
            maps, results = rows_of(image, index, method)
            batch.maps += maps
            batch.results += [r for r in results if r.metric in metrics]
    with Store.create(path, identity) as store:
        store.describe(metrics, methods)
        store.add_session({"command": "xai-abn benchmark", "started": "2026-01-02", "versions": {"torch": "2.6"}})
        store.write(batch)
    return path


@pytest.fixture
def run(tmp_path):
    """A run of 12 images, 3 methods and a baseline, 3 metrics; grad-cam's map of the first image is flat."""
    return write_run(tmp_path / "run.sqlite")


def cell(report, metric, method, section=0):
    (found,) = [c for c in report.sections[section]["summary"] if (c["metric"], c["method"]) == (metric, method)]
    return found


def test_means_are_over_photos_and_flat_maps_are_left_out_or_miss(run):
    """Deletion leaves the flat map out; the pointing game counts it as a miss; both flag it."""
    report = make_report([run])
    assert cell(report, "deletion:test", "cam")["value"] == pytest.approx(0.3 * 1.055)
    flat = cell(report, "deletion:test", "grad-cam")
    assert flat["value"] == pytest.approx(0.4 * (1 + np.arange(1, 12).mean() / 100))
    assert (flat["images"], flat["flaws"]) == (11, {"flat": 1})
    missed = cell(report, "pointing-game:test", "grad-cam")
    assert (missed["value"], missed["images"], missed["flaws"]) == (pytest.approx(5 / 12), 12, {"flat": 1})
    assert cell(report, "pointing-game:test", "cam")["value"] == pytest.approx(6 / 12)


def test_the_best_method_is_no_control_and_a_better_control_is_told(run):
    """Insertion is best for grad-cam, though the baseline is higher; the report says so."""
    report = make_report([run])
    best = [(c["metric"], c["method"]) for c in report.sections[0]["summary"] if c["best"]]
    assert ("deletion:test", "abn") in best
    assert ("insertion:test", "grad-cam") in best
    assert cell(report, "insertion:test", "center")["beats_best"]
    assert "Baselines that do at least as well as every method: center on insertion" in report.html()


def test_a_best_mean_that_may_be_chance_is_told(run):
    """Deletion's order is certain; a method that leads by means alone is not called ahead."""
    report = make_report([run])
    assert cell(report, "deletion:test", "abn")["level_with"] == []
    assert cell(report, "deletion:test", "cam")["level_with"] is None
    level = cell(report, "pointing-game:test", "abn")["level_with"]
    assert level == ["cam", "grad-cam"]
    (line,) = [text for text in overview(report.sections[0]) if text.startswith("Best mean")]
    assert "abn on 2 of 3: deletion, pointing-game (not significantly ahead of cam, grad-cam)" in line


def test_sanity_checks_have_a_verdict(tmp_path):
    """By the interval of the mean correlation; maps that know no class are not blamed for it."""
    values = {"abn": 0.05, "cam": 0.2, "grad-cam": 0.95, "center": 1.0}
    found = {}
    for depends_on in ("the weights", "the class"):
        name = f"check-{depends_on[4:]}:test"
        path = write_run(tmp_path / f"{depends_on}.sqlite", metrics=METRICS)
        with Store.open(path) as store:
            store.describe({name: record(None, depends_on=depends_on)}, {})
            rows = [
                result(f"key{i:02d}", method, "top-1", name, value + (0.5 * (i % 2) if method == "cam" else i / 1000))
                for method, value in values.items()
                for i in range(IMAGES)
            ]
            store.write(Batch(results=rows))
        report = make_report([path], gallery=0)
        found |= {(row["depends_on"], row["method"]): row["verdict"] for row in report.sections[0]["sanity"]}
        assert f"Sanity check {name.partition(':')[0]}: maps of" in report.html()
        assert "maps of grad-cam hardly depend on" in report.markdown()
    assert found == {
        ("the weights", "abn"): "passes",
        ("the weights", "cam"): "undecided",
        ("the weights", "grad-cam"): "fails",
        ("the class", "abn"): "by design",
        ("the class", "cam"): "undecided",
        ("the class", "grad-cam"): "fails",
    }
    assert not make_report([write_run(tmp_path / "none.sqlite")], gallery=0).sections[0]["sanity"]


def test_each_method_is_tested_against_the_reference(run):
    """The default is abn; p values are Holm's over the methods of one metric; directions are understood."""
    section = make_report([run]).sections[0]
    assert section["reference"] == "abn"
    rows = {(c["metric"], c["method"]): c for c in section["comparisons"]}
    assert len(rows) == 9
    assert rows["deletion:test", "cam"]["verdict"] == "worse"
    assert rows["insertion:test", "cam"]["verdict"] == "better"
    assert rows["pointing-game:test", "cam"]["verdict"] == "no difference shown"
    assert rows["deletion:test", "cam"]["p"] == pytest.approx(2 / 2**12)
    assert rows["deletion:test", "cam"]["p_holm"] == pytest.approx(3 * 2 / 2**12)
    assert rows["deletion:test", "cam"]["effect"] == pytest.approx(1)
    assert make_report([run], "cam").sections[0]["reference"] == "cam"


def test_metrics_that_prefer_opposite_methods_contradict_each_other(run):
    """Here deletion and insertion have the same values, and better ends that differ."""
    agreement = make_report([run]).sections[0]["agreement"]
    first = agreement["metrics"].index("deletion:test")
    second = agreement["metrics"].index("insertion:test")
    assert agreement["matrix"][first][second] == pytest.approx(-1)


def test_curves_classes_times_and_failures_are_in_the_report(run):
    """Mean curves by method, means by class, median time, failures with reason and number."""
    section = make_report([run]).sections[0]
    assert [c["metric"] for c in section["curves"]] == ["deletion:test", "insertion:test"]
    cam = next(s for s in section["curves"][0]["series"] if s["method"] == "cam")
    np.testing.assert_allclose(cam["mean"], 0.6 * 1.055 * (1 - np.array(AXIS)), rtol=1e-5)
    (classes,) = section["classes"]
    assert [row["class"] for row in classes["rows"]] == [LABEL]
    assert classes["rows"][0]["cells"][classes["methods"].index("cam")] == {"mean": 0.5, "n": 12}
    assert classes["over_classes"][classes["methods"].index("grad-cam")] == pytest.approx(5 / 12)
    assert all(m["median_seconds"] == pytest.approx(0.02) for m in section["methods"])
    (failure,) = section["failures"]
    assert (failure["count"], failure["reason"]) == (2, "…: truncated")


def test_a_value_of_the_whole_data_set_comes_from_the_metric_itself(tmp_path):
    """An aggregated metric is combined by the function registered under its name; an unknown one has no value."""
    from xai_abn.metrics import base

    overall = base.Metric(
        "largest", "test", function=lambda maps: maps, higher_is_better=True, range=(0, 1),
        units="share", source="here", definition="largest mean", aggregate=lambda c, w: float((w @ c).max()),
    )  # fmt: skip
    records = {"largest:test": overall.to_dict(), "lost:test": {**overall.to_dict(), "name": "lost"}}
    path = write_run(tmp_path / "run.sqlite", metrics=METRICS)
    with Store.open(path) as store:
        store.describe(records, {})
        values = [(f"key{i:02d}", m, name) for i in range(4) for m in ("abn", "cam") for name in records]
        curves = [result(i, m, "top-1", n, None, None, [LEVELS[m], float(i[-1])]) for i, m, n in values]
        store.write(Batch(results=curves))
    base.register(overall)
    try:
        report = make_report([path])
    finally:
        base.METRICS.pop("largest:test")
    assert cell(report, "largest:test", "cam")["value"] == pytest.approx(1.5)
    assert not [c for c in report.sections[0]["summary"] if c["metric"] == "lost:test"]
    (row,) = [c for c in report.sections[0]["comparisons"] if c["metric"] == "largest:test"]
    assert (row["method"], row["value"], row["verdict"]) == ("cam", 0, "not tested")


def test_shards_of_one_run_are_put_together(tmp_path):
    """Two files of one identity give what one file of all images gives; images in both count once."""
    whole = make_report([write_run(tmp_path / "whole.sqlite")], gallery=0)
    parts = [write_run(tmp_path / f"{i}.sqlite", images=p) for i, p in enumerate((range(7), range(5, IMAGES)))]
    report = make_report(parts, gallery=0)
    for name in ("images", "summary", "comparisons", "agreement", "curves", "classes"):
        assert report.sections[0][name] == whole.sections[0][name]


def test_models_are_named_before_their_methods_and_data_sets_stand_apart(tmp_path):
    """Runs of two models share a section as MODEL: METHOD; another data set gets a section of its own."""
    runs = [write_run(tmp_path / f"{m}.sqlite", model=m) for m in ("a", "b")]
    report = make_report([*runs, write_run(tmp_path / "c.sqlite", data="voc")], gallery=2)
    assert [s["models"] for s in report.sections] == [["a", "b"], ["net"]]
    assert [m["name"] for m in report.sections[0]["methods"]][:2] == ["a: abn", "a: cam"]
    assert [m["name"] for m in report.sections[0]["methods"]][-1] == "b: center"
    assert report.sections[0]["reference"] == "a: abn"
    assert "a, b on coco" in report.html()
    with pytest.raises(UnknownNameError, match="a: abn"):
        make_report(runs, "ab")


def test_the_axis_of_curves_may_differ_between_models(tmp_path):
    """Networks of another input size have other points on their curves; they are compared all the same."""
    other = {**METRICS, "deletion:test": record(False, axis=[x**2 for x in AXIS])}
    runs = [write_run(tmp_path / "a.sqlite", model="a"), write_run(tmp_path / "b.sqlite", model="b", metrics=other)]
    (section,) = make_report(runs, gallery=0).sections
    axes = {s["method"]: s["axis"] for s in section["curves"][0]["series"]}
    assert (axes["a: cam"][1], axes["b: cam"][1]) == (0.25, 0.0625)


def test_the_gallery_shows_the_photos_with_the_largest_spread(run):
    """Each metric chooses in turn, by its own spread, here larger in later images; the flat map is bare, says why."""
    report = make_report([run], gallery=IMAGES)
    gallery = report.sections[0]["gallery"]
    assert gallery["metrics"] == list(METRICS)
    chosen = {metric: [r["source"] for r in gallery["rows"] if r["metric"] == metric] for metric in METRICS}
    assert chosen["deletion:test"][:2] == ["image11.jpg", "image9.jpg"]  # insertion has taken 10
    assert chosen["insertion:test"][:2] == ["image10.jpg", "image8.jpg"]
    assert chosen["pointing-game:test"][0] == "image0.jpg"  # where one method misses
    assert [len(sources) for sources in chosen.values()] == [4, 4, 4]
    assert len(report.drawings) == IMAGES * (1 + len(METHODS))
    index, row = next((i, r) for i, r in enumerate(gallery["rows"]) if r["source"] == "image0.jpg")
    assert next(m for m in row["methods"] if m["method"] == "grad-cam")["flaw"] == "flat"
    assert report.drawings[0, index, "grad-cam"] == report.drawings[0, index, ""]
    assert report.drawings[0, index, "cam"] != report.drawings[0, index, ""]
    (box,) = row["objects"]
    assert [box[k] for k in ("left", "top", "width", "height")] == pytest.approx([10, 0, 40, 60])
    assert box["label"] == f"{LABEL} (difficult)"
    few = make_report([run], gallery=2).sections[0]["gallery"]["rows"]
    assert [row["source"] for row in few] == ["image11.jpg", "image10.jpg"]


def test_names_of_objects_never_cover_each_other():
    """Whatever the boxes, named places are inside the image and apart, and at least one object is named."""
    draw = np.random.default_rng(0)
    for number in [1, 2, 5, 40] * 10:
        corners = draw.random((number, 2, 2))
        things = [
            {"label": f"object {i % 9}" * (1 + i % 2), "box": [*c.min(axis=0), *c.max(axis=0)]}
            for i, c in enumerate(corners)
        ]
        boxes = _boxes(ImageRow("k", 0, "a.jpg", None, b"", things), [], "object 1")
        places = [box["name_at"] for box in boxes if box["name_at"]]
        assert places
        assert all(0 <= x <= x + w <= 100 and 0 <= y <= 94 for x, y, w in places)
        for (x, y, w), (u, v, o) in itertools.combinations(places, 2):
            assert x + w <= u or u + o <= x or y + 6 <= v or v + 6 <= y


def test_formulas_are_no_raw_markup(tmp_path):
    """The double backticks of docstrings become code on the page, and labels in them stay text."""
    methods = {**METHODS, "cam": {**METHODS["cam"], "definition": "Weights: ``M_c <= sum_k w_ck``. Signed."}}
    html = make_report([write_run(tmp_path / "run.sqlite", methods=methods)]).html()
    assert "Weights: <code>M_c &lt;= sum_k w_ck</code>. Signed." in html
    assert "``" not in html


def test_an_outsider_is_told_what_each_metric_measures(tmp_path):
    """The first sentence of each definition stands under the summary; deletion's is not insertion's."""
    names = ("deletion:xai-abn", "insertion:xai-abn")
    records = {name: {**METRICS["deletion:test"], "definition": metrics.get(name).definition} for name in names}
    first, second = (meaning({"definition": record["definition"]}) for record in records.values())
    assert first.startswith("Mean probability of the target while pixels are deleted")
    assert second.startswith("Mean probability of the target while pixels are inserted")
    described = {**METRICS, "deletion:test": {**METRICS["deletion:test"], "definition": f"{first} And how."}}
    above = make_report([write_run(tmp_path / "run.sqlite", metrics=described)]).html().partition('id="tests-0"')[0]
    assert f"<dd>{markup.escape(first, quote=False)}</dd>" in above.replace("&#39;", "'")


def test_whiskers_have_a_scale(run):
    """Under each heading stand the ends of the scale on which the intervals below are drawn."""
    report = make_report([run])
    ends = [c[end] for c in report.sections[0]["summary"] if c["metric"] == "deletion:test" for end in ("low", "high")]
    low, high = f"{min(ends):.3f}", f"{max(ends):.3f}"
    assert f'<span class="scale" aria-hidden="true"><span>{low}</span><span>{high}</span></span>' in report.html()


def test_labels_are_text_and_never_markup(run):
    """A class called <b>&cat is shown as such, in the page and in Markdown."""
    report = make_report([run])
    assert "&lt;b&gt;&amp;cat" in report.html()
    assert LABEL not in report.html()
    assert "<b>" not in report.markdown()


def test_the_page_loads_nothing_from_elsewhere(run):
    """Every source is a data URI, every link stays on the page, and the page forbids the rest."""
    html = make_report([run]).html()
    sources = re.findall(r'\b(?:src|href|action|data)="([^"]*)"', html)
    assert sources
    assert all(s.startswith(("data:image/jpeg;base64,", "#")) for s in sources)
    assert not re.search(r"@import|url\(", html)
    assert "default-src 'none'" in html


def test_the_run_is_only_read(run):
    """Not a byte of the run changes."""
    before = hashlib.sha256(run.read_bytes()).hexdigest()
    make_report([run]).save(run.parent / "report")
    assert hashlib.sha256(run.read_bytes()).hexdigest() == before


def test_the_json_is_strict_and_equal_runs_give_equal_files(run):
    """No NaN or infinity stands in the JSON, and a second report is the same byte for byte."""
    paths = make_report([run]).save(run.parent / "report")
    assert [p.name for p in paths] == ["report.html", "report.json", "report.md"]
    content = paths[1].read_text(encoding="utf-8")

    def refuse(word):
        raise AssertionError(word)

    assert json.loads(content, parse_constant=refuse)["sections"][0]["images"] == IMAGES
    again = make_report([run]).save(run.parent / "again")
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in paths]
    assert not [*run.parent.rglob("*.part")]


def test_a_report_replaces_reports_but_nothing_else(run):
    """A second report takes the place of the first; a foreign file stays, and then none is written."""
    folder = run.parent / "report"
    make_report([run]).save(folder)
    make_report([run]).save(folder)
    (folder / "report.md").write_text("my notes")
    (folder / "report.html").unlink()
    with pytest.raises(OutputError, match=r"report\.md exists"):
        make_report([run]).save(folder)
    assert (folder / "report.md").read_text() == "my notes"
    assert not (folder / "report.html").exists()


def test_superseded_photos_no_longer_count_and_are_told(run):
    """An image that changed since is left out of every table, and the report says how many there are."""
    with Store.open(run) as store:
        store.write(Batch(images=[ImageRow("new", 3, "image3.jpg", None, view(3), [])]))
    section = make_report([run]).sections[0]
    assert (section["images"], section["superseded"]) == (IMAGES - 1, 1)
    assert "1 image changed since" in make_report([run]).markdown()


def test_missing_facts_are_no_obstacle(tmp_path):
    """A run that records next to nothing of its model, metrics and methods still has its report."""
    path = tmp_path / "bare.sqlite"
    with Store.create(path, {}) as store:
        store.write(Batch(images=[ImageRow("k", 0, "a.jpg", None, view(0), [])]))
        store.write(Batch(results=[result("k", "cam", "top-1", "mystery", 0.5)]))
    report = make_report([path])
    assert cell(report, "mystery", "cam")["value"] == 0.5
    assert "mystery" in report.html()
    assert "mystery" in report.markdown()


def test_a_run_without_results_is_refused(tmp_path):
    """The error says what to do."""
    with Store.create(tmp_path / "empty.sqlite", {}):
        pass
    with pytest.raises(RunError, match=r"has no results yet; run xai-abn benchmark"):
        make_report([tmp_path / "empty.sqlite"])
    with pytest.raises(RunError, match="no run to report"):
        make_report([])


def test_an_unknown_reference_is_refused(run):
    """The error names the nearest method."""
    with pytest.raises(UnknownNameError, match="unknown reference method 'gradcam'; did you mean 'grad-cam'"):
        make_report([run], "gradcam")


def test_shards_that_contradict_each_other_are_refused(run, tmp_path):
    """The same method name with another meaning is an error, never a mixture."""
    other = write_run(tmp_path / "other.sqlite", methods={**METHODS, "cam": {"layer": "features.1"}})
    with pytest.raises(RunError, match="method 'cam' means something else"):
        make_report([run, other])


def test_words_do_not_keep_runs_apart(gap_net, tmp_path, monkeypatch):
    """Two shards made by versions with other docstrings and definitions are one run."""
    data = read_dataset(f"coco:{make_images(tmp_path / 'set', 4)}")
    for index in (1, 2):
        settings = BenchmarkSettings(shard=(index, 2))
        benchmark(gap_net, data, ["cam", "center"], ["gini"], tmp_path / f"{index}.sqlite", settings)
        monkeypatch.setattr(explainers.get("cam"), "__doc__", "Other words.")
        other = dataclasses.replace(metrics.get("gini"), definition="Other words.", source="another page")
        monkeypatch.setitem(base.METRICS, other.full_name, other)
    (section,) = make_report([tmp_path / "1.sqlite", tmp_path / "2.sqlite"]).sections
    assert {m["method"] for m in section["methods"]} == {"cam", "center"}
    assert all(c["images"] == 4 for c in section["summary"])


def test_the_command_prints_the_summary_and_the_paths(run):
    """Values, intervals and flagged maps stand in the terminal too."""
    from xai_abn.cli.main import app

    found = CliRunner().invoke(
        app, ["benchmark", "report", str(run), "--output", str(run.parent / "out"), "--gallery", "1"]
    )
    assert found.exit_code == 0, found.output
    assert re.search(r"cam +0\.317 \[0\.3\d\d, 0\.3\d\d\]", found.output)
    assert "(1 flat)" in found.output
    assert "center (baseline)" in found.output
    assert (run.parent / "out" / "report.html").is_file()


def opened(browser, run, width):
    """Show a run's report in a window of some width, all drawings loaded."""
    path = make_report([run]).save(run.parent / "report")[0]
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    browser.execute_async_script(
        "const done = arguments[0], all = [...document.images]; all.forEach((i) => { i.loading = 'eager'; });"
        "Promise.allSettled(all.map((i) => i.decode())).then(() => done());"
    )


def test_every_image_shows_and_the_console_is_silent(browser, run):
    """In a browser each drawing has pixels, and nothing is blocked, missing or wrong."""
    opened(browser, run, 1280)
    widths = browser.execute_script("return [...document.images].map((i) => i.naturalWidth)")
    assert len(widths) == IMAGES * (1 + len(METHODS))
    assert all(width > 0 for width in widths)
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("how", ["click", "enter"])
def test_a_heading_sorts_up_then_down_and_baselines_stay_apart(browser, run, how):
    """The second column is deletion: first the least on top, then the largest, the baseline below both times."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    opened(browser, run, 1280)
    button = browser.find_element(By.CSS_SELECTOR, "table.summary th:nth-child(2) button")

    def order():
        if how == "click":
            button.click()
        else:
            button.send_keys(Keys.ENTER)
        names = "[...document.querySelectorAll('table.summary tbody tr:not(.divider) th')].map((h) => h.dataset.value)"
        sorted_by = "document.querySelector('table.summary th:nth-child(2)').getAttribute('aria-sort')"
        return browser.execute_script(f"return [{sorted_by}, {names}]")

    assert order() == ["ascending", ["abn", "cam", "grad-cam", "center"]]
    assert order() == ["descending", ["grad-cam", "cam", "abn", "center"]]


def test_a_drawing_is_enlarged_beside_the_whole_image(browser, run):
    """By click or Enter, to more than twice its size on a wide window; Escape closes."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    opened(browser, run, 1440)
    tile = browser.find_element(By.CSS_SELECTOR, ".tiles .frame-of")
    small = tile.size["width"]
    for how in (tile.click, lambda: tile.send_keys(Keys.ENTER)):
        how()
        shown = browser.find_elements(By.CSS_SELECTOR, "dialog[open] img")
        assert [image.size["width"] > 2 * small for image in shown] == [True, True]
        browser.switch_to.active_element.send_keys(Keys.ESCAPE)
        assert browser.find_elements(By.CSS_SELECTOR, "dialog[open]") == []


def test_bands_are_shown_one_by_one(browser, run):
    """At first the reference's alone, so that they do not cover each other; the legend shows and hides them."""
    from selenium.webdriver.common.by import By

    opened(browser, run, 1280)
    figure = browser.find_element(By.CSS_SELECTOR, ".figures figure")
    buttons = {b.text: b for b in figure.find_elements(By.CSS_SELECTOR, ".legend button")}

    def shown():
        bands = figure.find_elements(By.CSS_SELECTOR, ".band")
        return [name for name, band in zip(buttons, bands, strict=True) if band.is_displayed()]

    assert shown() == ["abn"]
    buttons["cam"].click()
    assert shown() == ["abn", "cam"]
    buttons["abn"].click()
    assert shown() == ["cam"]


def test_a_phone_shows_the_verdict_and_that_there_is_more(browser, run):
    """The third column of the paired tests is on screen; a table with more to the right says so until it is reached."""
    opened(browser, run, 390)
    right = "document.querySelector('#tests-0 ~ .sides th:nth-child(3)').getBoundingClientRect().right"
    assert browser.execute_script(f"return {right}") <= 390
    more = "[...document.querySelectorAll('.sides.more .scroll')].map((s) => s.scrollWidth > s.clientWidth)"
    found = browser.execute_script(f"return {more}")
    assert found
    assert all(found)
    browser.execute_async_script(
        "const done = arguments[0]; document.querySelectorAll('.scroll').forEach((s) => { s.scrollLeft = 9999; });"
        "requestAnimationFrame(() => requestAnimationFrame(() => done()));"
    )
    assert browser.execute_script(f"return {more}") == []


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_never_scrolls_sideways(browser, run, width):
    """Wide tables scroll inside their own frame, on a phone too."""
    opened(browser, run, width)
    whole, window = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert (whole <= window, window) == (True, width)
