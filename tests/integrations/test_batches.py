"""Columns in, columns out: plainly, pickled and with Hugging Face's datasets; with Ray in test_ray.py."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import xai_abn
from xai_abn.errors import ImageLoadError, InvalidInputError, UnknownNameError
from xai_abn.integrations import BatchExplainer, batches


@pytest.fixture
def files(tmp_path):
    """Two images and a file that is none."""
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.png").write_text("nothing to see")
    return [str(tmp_path / name) for name in ("a.png", "bad.png", "b.png")]


def test_every_way_to_hold_a_image_gives_the_same(gap_net, files):
    """Paths, bytes, dictionaries, arrays and Pillow images; columns that are there stay."""
    path = files[0]
    with Image.open(path) as image:
        pixels = np.asarray(image)
    content = open(path, "rb").read()  # noqa: SIM115
    held = [path, content, {"bytes": content, "path": None}, {"bytes": None, "path": path}, pixels, Image.open(path)]
    explain = BatchExplainer(gap_net, ["cam", "grad-cam"], batch_size=4)
    found = explain({"image": held, "id": [0, 1, 2, 3, 4, 5]})
    assert sorted(found) == ["cam_map", "grad-cam_map", "id", "image", "label", "probability"]
    assert (found["cam_map"].shape, found["cam_map"].dtype) == ((6, 8, 8), np.float32)
    record = xai_abn.explain(gap_net, path, "cam")["cam"]
    assert found["label"] == [record.label] * 6
    for i in range(6):
        np.testing.assert_allclose(found["cam_map"][i], record.map, rtol=1e-4, atol=1e-5)
        assert found["probability"][i] == pytest.approx(record.probability, rel=1e-4)
    chosen = BatchExplainer(gap_net, "cam", target="kite", keep=False, prefix="x_")({"image": [path], "x": [1]})
    assert (sorted(chosen), chosen["x_label"]) == (["x_cam_map", "x_label", "x_probability"], ["kite"])


def test_a_bad_image_is_raised_or_recorded(gap_net, files):
    """Never left out: an error, or a row with its reason."""
    with pytest.raises(ImageLoadError, match=r"bad\.png: not an image"):
        BatchExplainer(gap_net, "cam")({"image": files})
    held = [*files, b"", None, {"bytes": b"x", "path": "in/a.zip"}, {}]
    found = BatchExplainer(gap_net, "cam", errors="record")({"image": held})
    assert [e is None for e in found["error"]] == [True, False, True, False, False, False, False]
    assert "row 3: empty" in found["error"][3]
    assert "row 4: there is no image" in found["error"][4]
    assert found["error"][5].startswith("in/a.zip: not an image")
    assert [m is None for m in found["cam_map"]] == [e is not None for e in found["error"]]
    assert found["label"][1] is None
    assert found["probability"][1] is None


def test_mistakes_are_refused(gap_net, files):
    """A column that is missing or would be replaced, and unknown names."""
    with pytest.raises(InvalidInputError, match="no column 'image'; there are photo, label"):
        BatchExplainer(gap_net)({"photo": files, "label": [0, 1, 2]})
    with pytest.raises(InvalidInputError, match="already has a column 'label'"):
        BatchExplainer(gap_net, "cam")({"image": files[:1], "label": [0]})
    with pytest.raises(InvalidInputError, match="errors must be raise or record"):
        BatchExplainer(gap_net, errors="ignore")
    with pytest.raises(InvalidInputError, match="batch_size must be a whole number of at least 1"):
        BatchExplainer(gap_net, batch_size=0)
    with pytest.raises(UnknownNameError, match="unknown model 'lite9'"):
        BatchExplainer("lite9")({"image": files[:1]})


def test_a_pickle_holds_the_name_and_a_process_loads_once(files, monkeypatch):
    """Weights do not travel; the second batch, also of another copy, finds the model loaded."""
    loads = []
    monkeypatch.setattr(batches, "load_model", lambda spec, **more: loads.append(spec) or xai_abn.load_model(spec))
    batches._load_once.cache_clear()
    explain = BatchExplainer("lite0", ["cam"])
    first = explain({"image": files[:1]})
    travelled = pickle.dumps(explain)
    assert len(travelled) < 1000
    again = pickle.loads(travelled)({"image": files[:1]})
    assert loads == ["lite0"]
    np.testing.assert_array_equal(first["cam_map"], again["cam_map"])
    batches._load_once.cache_clear()


def test_an_adapter_travels_whole(files):
    """A model of one's own is pickled with its weights."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    explain = BatchExplainer(xai_abn.wrap(network, preprocess=xai_abn.Preprocess(size=32)), "cam")
    first = explain({"image": files[:1]})
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(explain))({"image": files[:1]})["cam_map"], first["cam_map"]
    )


def test_datasets_of_hugging_face(gap_net, files):
    """``map(batched=True)`` adds the columns beside its own, from images decoded or not."""
    datasets = pytest.importorskip("datasets")
    good = [files[0], files[2]]
    columns = {"image": good, "label": [0, 1]}
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    explain = BatchExplainer(gap_net, "cam", prefix="xai_", keep=False)
    made = data.map(explain, batched=True, batch_size=2, new_fingerprint="decoded")
    assert made["label"][:] == [0, 1]
    expected = xai_abn.explain(gap_net, good, "cam")
    np.testing.assert_allclose(np.array(made["xai_cam_map"][1]), expected[1]["cam"].map, rtol=1e-4, atol=1e-5)
    data = data.cast_column("image", datasets.Image(decode=False))
    encoded = data.map(explain, batched=True, new_fingerprint="encoded")
    assert encoded["xai_label"][:] == made["xai_label"][:]
