"""Networks of ultralytics, whose license keeps them out of the tests: a stand-in with the forms of their outputs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import box_convert, box_iou

import xai_abn
from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.images.loading import from_array
from xai_abn.images.preprocess import Preprocess

NAMES = {0: "cat", 1: "dog", 2: "car"}


class Head(nn.Module):
    """Boxes and classes at the places of two levels; centers are kept for the next input of this size, as YOLO does."""

    def __init__(self, end2end):
        super().__init__()
        self.nc, self.nl, self.end2end = len(NAMES), 2, end2end
        self.shape, self.anchors, self.strides = None, torch.empty(0), torch.empty(0)
        self.box = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(2))
        self.classes = nn.ModuleList(nn.Conv2d(8, self.nc, 1) for _ in range(2))

    def forward(self, levels):
        if self.shape != levels[0].shape:
            grids = [torch.meshgrid(torch.arange(f.shape[2]), torch.arange(f.shape[3]), indexing="ij") for f in levels]
            self.anchors = torch.cat([torch.stack([x, y]).flatten(1) + 0.5 for y, x in grids], 1)
            counts = [f[0, 0].numel() for f in levels]
            self.strides = torch.cat([torch.full((1, n), s) for n, s in zip(counts, (8, 16), strict=True)], 1)
            self.shape = levels[0].shape
        distances = torch.cat([c(f).flatten(2) for c, f in zip(self.box, levels, strict=True)], 2).sigmoid() * 12
        first, last = self.anchors - distances[:, :2], self.anchors + distances[:, 2:]
        scores = torch.cat([c(f).flatten(2) for c, f in zip(self.classes, levels, strict=True)], 2).sigmoid()
        if self.end2end:
            corners = torch.cat([first, last], 1) * self.strides
            best, kinds = scores.max(1)
            found = torch.cat([corners, best[:, None], kinds[:, None].float()], 1).transpose(1, 2)
            return found.gather(1, best.topk(9, dim=1).indices[..., None].expand(-1, -1, 6)), {}
        boxes = torch.cat([(first + last) / 2, last - first], 1) * self.strides
        return torch.cat([boxes, scores], 1), {}


class Network(nn.Module):
    """As ``ultralytics.nn.tasks.DetectionModel``: its parts are in ``model``, the head is the last."""

    def __init__(self, end2end=False):
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.SiLU())
        deep, fine = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.SiLU()), nn.Upsample(scale_factor=2)
        self.model = nn.Sequential(stem, deep, fine, Head(end2end))
        self.names, self.stride, self.args = NAMES, torch.tensor([8.0, 16.0]), {"imgsz": 64}

    def forward(self, x):
        stem, deep, fine, head = self.model
        shallow = stem(x)
        coarse = deep(shallow)
        return head([shallow + fine(coarse), coarse])


class Whole(nn.Module):
    """As ``ultralytics.YOLO``: holds a network and predicts from files."""

    def __init__(self, network):
        super().__init__()
        self.model, self.task, self.predictor = network, "detect", None


def network(**options):
    torch.manual_seed(1)
    made = Network(**options).eval()
    for layer in made.model[-1].classes:
        nn.init.normal_(layer.weight, std=5)
        nn.init.zeros_(layer.bias)
    return made


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (60, 120, 3), np.uint8)


def test_labels_and_preprocessing_are_its_own():
    plain = Preprocess(64, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3, crop="letterbox")
    for given in (network(), Whole(network())):
        model = xai_abn.wrap(given)
        assert (model.labels, model.preprocess, model.detects) == (tuple(NAMES.values()), plain, True)
        assert isinstance(model.module, Network)
        assert model.target_layer == "model.1"  # the last in front of the enlarged maps
    other = network()
    other.args = SimpleNamespace(imgsz=[64, 96])
    assert xai_abn.wrap(other).preprocess.height_and_width == (64, 96)
    other.args = {}
    assert xai_abn.wrap(other).preprocess.size == 640


def suppressed(boxes, scores, classes):
    """Rows of the detections that stay, written out."""
    kept = []
    for row in scores.argsort(descending=True).tolist():
        same = [other for other in kept if classes[other] == classes[row]]
        if all(float(box_iou(boxes[None, row], boxes[None, other])) <= 0.7 for other in same):
            kept.append(row)
    return kept


@pytest.mark.parametrize("end2end", [False, True])
def test_the_detections_are_those_of_the_output(end2end):
    """Of places, the best of those that overlap; end-to-end as they are; in shares of the input."""
    model = xai_abn.wrap(network(end2end=end2end))
    square = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)  # equal borders would give equal scores
    prepared = model.preprocess(from_array(square))
    with torch.no_grad():
        output = model.module(prepared.tensor[None])
    found = model.detections(output, prepared)
    if end2end:
        boxes, scores, classes = output[0][0, :, :4], output[0][0, :, 4], output[0][0, :, 5].long()
        kept = list(range(9))
    else:
        boxes = box_convert(output[0][0, :4].T, "cxcywh", "xyxy")
        scores, classes = output[0][0, 4:].max(0)
        kept = suppressed(boxes, scores, classes)
        assert 1 < len(kept) < len(scores)
    torch.testing.assert_close(found.boxes * 64, boxes[kept])
    torch.testing.assert_close(found.scores, scores[kept])
    assert torch.equal(found.classes, classes[kept])


@pytest.mark.parametrize("end2end", [False, True])
def test_the_map_is_that_of_plain_autograd(end2end, image):
    model = xai_abn.wrap(network(end2end=end2end))
    record = xai_abn.explain(model, image, "hires-cam")["hires-cam"]
    inputs = model.preprocess(from_array(image)).tensor[None]
    kept = []
    handle = model.module.get_submodule(record.layer).register_forward_hook(lambda _m, _i, o: kept.append(o))
    output, _ = model.module(inputs.clone().requires_grad_())
    handle.remove()
    score = output[0, 0, 4] if end2end else output[0, 4:].max()
    (gradient,) = torch.autograd.grad(score, kept[0])
    right = (gradient * kept[0]).sum(1)[0].detach().numpy()
    np.testing.assert_allclose(record.map, right, atol=1e-5 * np.abs(right).max())
    assert record.score == record.probability == pytest.approx(score.item(), rel=1e-5)
    # 120x60 between two borders of 16: an input pixel is 120 / 64 pixels of the image
    corners = (
        output[0, 0, :4] if end2end else box_convert(output[0, :4, output[0, 4:].max(0)[0].argmax()], "cxcywh", "xyxy")
    )
    x0, y0, x1, y1 = ((corners - torch.tensor([0, 16, 0, 16])) * 120 / 64).tolist()
    assert f"box {x0:.0f}, {y0:.0f}, {x1:.0f}, {y1:.0f} (x, y in pixels)" in record.notes[-1]


def test_a_detection_is_found_by_its_box_in_the_image(image):
    """The box is in pixels of the image, without the borders."""
    model = xai_abn.wrap(network())
    record = xai_abn.explain(model, image, "grad-cam", "dog#2")[0]["grad-cam"]
    box = [float(n) for n in record.notes[-1].split("box ")[1].split(" (")[0].split(", ")]
    again = xai_abn.explain(model, image, "grad-cam", xai_abn.DetectionTarget("dog", box=box))[0]["grad-cam"]
    assert again.label == record.label == "dog#2"


def test_centers_kept_from_inference_mode_do_not_hinder_gradients(image):
    """As after ``predict``, and they stay what they were."""
    model = xai_abn.wrap(network())
    right = xai_abn.explain(xai_abn.wrap(network()), image, "grad-cam")["grad-cam"].map
    head = model.module.model[-1]
    for side in (64, 32):
        with torch.inference_mode():
            model.module(torch.zeros(1, 3, side, side))
        kept = head.shape, head.anchors, head.strides
        assert kept[1].is_inference()
        np.testing.assert_allclose(xai_abn.explain(model, image, "grad-cam")["grad-cam"].map, right)
        assert (head.shape, head.anchors, head.strides) == kept or all(
            a is b for a, b in zip((head.shape, head.anchors, head.strides), kept, strict=True)
        )


def test_methods_that_ask_again_follow_the_object(image):
    record = xai_abn.explain(xai_abn.wrap(network()), image, "occlusion:window=0.25,stride=0.25", "dog")
    assert next(iter(record[0].values())).flaw is None


def test_other_outputs_are_refused(image):
    """Masks, poses and turned boxes have more values than boxes and classes."""

    class More(Network):
        def forward(self, x):
            found, more = super().forward(x)
            return torch.cat([found, found[:, :1]], 1), more

    with pytest.raises(UnsupportedModelError, match=r"boxes and 3 classes, \(N, 7, A\) or \(N, D, 6\), got \(1, 8, 80"):
        xai_abn.explain(More().eval(), image, "grad-cam")


def test_files_are_not_opened(tmp_path):
    """They are pickles."""
    (tmp_path / "own.pt").write_bytes(b"not a pickle")
    for name in ("yolov8n.pt", str(tmp_path / "own.pt")):
        with pytest.raises(InvalidInputError, match=r"run code when they are loaded.*wrap\(ultralytics.YOLO\("):
            xai_abn.load_model(f"ultralytics:{name}")
