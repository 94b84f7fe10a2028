"""Detectors: targets, scores that follow an object, and maps equal to those of plain autograd."""

from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from support import call
from tiny_detectors import DETECTORS, LABELS
from torch import nn
from torchvision.ops import box_convert, box_iou

import xai_abn
from xai_abn.errors import InvalidInputError, NonFiniteError, UnknownNameError, UnsupportedModelError
from xai_abn.images.loading import from_array
from xai_abn.images.preprocess import Preprocess
from xai_abn.models.detection import find_detection


def model(name="SSDlite", **options):
    torch.manual_seed(0)
    network = DETECTORS[name]().eval()
    preprocess = None if hasattr(network, "transform") else Preprocess(size=128, crop="squash")
    return xai_abn.wrap(network, labels=LABELS, preprocess=preprocess, **options)


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)


def found(output, size):
    """Boxes in pixels of the input, classes and scores of the only image of an output."""
    if isinstance(output, list):
        return output[0]["boxes"], output[0]["labels"], output[0]["scores"]
    logits = output.logits[0]
    with_none = type(output).__name__.startswith(("Detr", "TableTransformer", "Yolos"))
    probabilities = logits.softmax(-1)[:, :-1] if with_none else logits.sigmoid()
    scores, classes = probabilities.max(-1)
    return box_convert(output.pred_boxes[0], "cxcywh", "xyxy") * size, classes, scores


def on_grid(values):
    """A layer's output as maps: of YOLOS the patches, behind a class token and in front of detection tokens."""
    return values if values.dim() == 4 else values[:, 1:65].transpose(1, 2).unflatten(2, (8, 8))


@pytest.mark.parametrize("name", DETECTORS)
def test_the_map_is_that_of_plain_autograd(name, picture):
    """Of the score of the best detection, with a hook on the layer in the backbone."""
    adapter = model(name)
    prepared = adapter.preprocess(from_array(picture))
    # in the same layout: with random weights, a rounding error can select other queries in RT-DETR
    inputs = torch.stack([prepared.tensor]).contiguous(memory_format=adapter.memory_format)
    kept = []
    record = xai_abn.explain(adapter, picture, "grad-cam,hires-cam")[0]["grad-cam"]
    hires = xai_abn.explain(adapter, picture, "hires-cam")["hires-cam"].map
    handle = adapter.module.get_submodule(record.layer).register_forward_hook(lambda _m, _i, o: kept.append(o))
    boxes, classes, scores = found(adapter.module(inputs.clone().requires_grad_()), inputs.shape[-1])
    handle.remove()
    sides = boxes[:, 2:] - boxes[:, :2]
    best = int(torch.where((sides > 0).all(1), scores, -1.0).argmax())
    (gradient,) = torch.autograd.grad(scores[best], kept[0])
    gradient, values = on_grid(gradient), on_grid(kept[0])
    right = [(gradient.mean((2, 3), keepdim=True) * values).sum(1).relu()[0], (gradient * values).sum(1)[0]]
    scale = max(float(map_.detach().abs().max()) for map_ in right)
    assert scale > 0
    for map_, other in zip((record.map, hires), right, strict=True):
        np.testing.assert_allclose(map_, other.detach().numpy(), atol=2e-5 * scale)
    assert record.score == record.probability == pytest.approx(scores[best].item(), rel=1e-5)
    assert (record.target, record.label) == (int(classes[best]), f"{LABELS[int(classes[best])]}#1")
    x0, y0, x1, y1 = (boxes[best] / inputs.shape[-1] * torch.tensor([120, 80, 120, 80])).tolist()
    assert f"box {x0:.0f}, {y0:.0f}, {x1:.0f}, {y1:.0f} (x, y in pixels)" in record.notes[-1]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("Faster R-CNN", "backbone.body.16"),
        ("RetinaNet", "backbone.body.layer4"),
        ("SSDlite", "backbone.features.1"),
        ("DETR", "model.backbone.model.encoder.stages.3"),
        ("Table Transformer", "model.backbone.conv_encoder.model.encoder.stages.3"),
        ("DAB-DETR", "model.backbone.conv_encoder.model.encoder.stages.3"),
        ("RT-DETR", "model.backbone.model.encoder.stages.3"),
        ("DEIM v2", "model.conv_encoder.model.encoder.stages.3"),
        ("RF-DETR", "model.backbone.projector"),
        ("YOLOS", "vit.encoder.layer.1.layernorm_before"),
    ],
)
def test_the_layer_is_the_last_of_the_backbone(name, layer):
    """Not a position embedding beside it, nor a layer of the pyramid."""
    assert model(name).target_layer == layer


@pytest.mark.parametrize("method", ["attention-rollout", "attention-relevance", "legrad"])
def test_attention_is_refused_that_is_read_at_the_class_token(method, picture):
    with pytest.raises(UnsupportedModelError, match="reads the class token, and the detections of YolosForObject"):
        xai_abn.explain(model("YOLOS"), picture, method)


class Fixed(nn.Module):
    """Finds three boxes, with scores that are brightnesses of their places, which one network outputs as it is."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, 4, 1)
        self.boxes = torch.tensor([[0, 0, 16, 16], [16, 16, 32, 32], [0, 0, 16, 12], [5, 5, 5, 9]]).float()
        self.classes = torch.tensor([1, 1, 2, 1])

    def forward(self, x):
        maps = self.backbone(x).sigmoid()
        scores = [maps[:, :, :4, :4], maps[:, :, 4:, 4:] / 2, maps[:, :, :3, :4] / 4, maps]
        scores = torch.stack([s.mean((1, 2, 3)) for s in scores], 1)
        return [{"boxes": self.boxes, "labels": self.classes, "scores": s} for s in scores]


def fixed(network=Fixed, labels=LABELS, **options):
    torch.manual_seed(0)
    preprocess = Preprocess(size=32, crop="squash")
    return xai_abn.wrap(network().eval(), labels=labels, preprocess=preprocess, **options)


def test_targets_choose_detections(picture):
    """By class, by rank, by index and by box; several at once; the box without area is never chosen."""
    adapter = fixed()

    def chosen(target):
        return [e.label for e in xai_abn.explain(adapter, [picture], "grad-cam", [target])[0].values()]

    assert chosen(None) == chosen("a") == chosen(1) == chosen("a#1") == ["a#1"]
    assert chosen("a#2") == chosen(xai_abn.DetectionTarget("a", rank=2)) == ["a#2"]
    assert chosen(xai_abn.DetectionTarget(box=(60, 40, 120, 80))) == ["a#2"]
    assert chosen(xai_abn.DetectionTarget("b", box=(0, 0, 60, 40))) == ["b#1"]
    assert chosen([None, "a", "b", "a#2"]) == ["a#1", "b#1", "a#2"]


def test_a_score_follows_its_object():
    """Overlap times score of the best detection of the class; 0 where nothing overlaps."""
    adapter = fixed()
    prepared = adapter.preprocess(from_array(np.full((32, 32, 3), 99, np.uint8)))
    found = adapter.detections(adapter.module(prepared.tensor[None]), prepared)
    part = find_detection(
        xai_abn.DetectionTarget("a"), found, prepared, adapter.label, lambda _: 1, adapter.detections_in((32, 32))
    )
    box = torch.tensor([[0.0, 0, 16, 16]])
    moved = torch.tensor([[8.0, 0, 24, 16], [0, 2, 16, 16], [20, 20, 30, 30]])
    output = [
        {"boxes": moved, "labels": torch.tensor([1, 1, 1]), "scores": torch.tensor([0.9, 0.4, 1.0])},
        {"boxes": moved, "labels": torch.tensor([2, 2, 2]), "scores": torch.tensor([0.9, 0.4, 1.0])},
        {"boxes": moved[:0], "labels": torch.zeros(0).long(), "scores": torch.zeros(0)},
    ]
    expected = (box_iou(box, moved)[0] * torch.tensor([0.9, 0.4, 1.0])).max()
    torch.testing.assert_close(part.score(output), torch.tensor([float(expected), 0.0, 0.0]))


def test_perturbations_ask_for_the_same_object(picture):
    """RISE weighs its masks by the score of the object, as D-RISE does."""
    adapter = fixed()
    inputs = adapter.preprocess(from_array(picture)).tensor[None]
    result = xai_abn.explain(adapter, picture, "rise:masks=64,seed=1", "a#2")
    (record,) = result[0].values()
    with torch.no_grad():
        score = float(adapter.module(inputs)[0]["scores"][1])
    assert record.probability == pytest.approx(score, rel=1e-5)
    assert record.map.shape == (32, 32)
    first = xai_abn.explain(adapter, picture, "rise:masks=64,seed=1", "a#1")
    assert not np.allclose(next(iter(first[0].values())).map, record.map)


class Counted(Fixed):
    """Notes how many images it sees at a time; copies of it share the list."""

    sizes: ClassVar[list[int]] = []

    def forward(self, x):
        self.sizes.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize(
    ("method", "batches"),
    [
        ("rise:masks=64,batch_size=32", [32, 32]),
        ("occlusion:window=0.25,stride=0.25,batch_size=8", [8, 8]),
        ("score-cam:batch_size=4", [4]),
    ],
)
def test_changed_images_run_in_full_batches(method, batches, picture):
    """One pass finds the object; besides it there are single images and pairs, with which a copy is checked."""
    adapter = fixed(Counted)
    xai_abn.explain(adapter, picture, "grad-cam")
    Counted.sizes.clear()
    xai_abn.explain(adapter, picture, method, "a#2")
    assert [size for size in Counted.sizes if size > 2] == batches
    assert len(Counted.sizes) - len(batches) <= 5


class Rectified(nn.Module):
    """Finds something in bright images alone, through a ReLU and a SiLU."""

    def __init__(self):
        super().__init__()
        self.backbone, self.relu = nn.Conv2d(3, 4, 3, 4, 1), nn.ReLU()

    def forward(self, x):
        values = nn.functional.silu(self.relu(self.backbone(x))).mean((1, 2, 3)).sigmoid()
        boxes = torch.tensor([[0.0, 0, 16, 16]])[: int(x.abs().sum() > 0)]
        return [
            {"boxes": boxes, "labels": torch.ones(len(boxes)).long(), "scores": v[None][: len(boxes)]} for v in values
        ]


def test_the_rules_of_a_method_are_checked_on_the_image_itself(picture):
    """In a blank one nothing is found, so nothing could be seen of the way to the score."""
    adapter = fixed(Rectified)
    with pytest.raises(UnsupportedModelError, match=r"guided-backprop .* computes Silu outside of nn.ReLU modules"):
        xai_abn.explain(adapter, picture, "guided-backprop")
    assert xai_abn.explain(adapter, picture, "saliency")["saliency"].flaw is None


def test_the_detection_is_drawn(picture):
    """A white box with a black edge, on the view alone."""
    adapter = fixed()
    plain = adapter.preprocess(from_array(picture)).view
    record = xai_abn.explain(adapter, picture, "grad-cam", "a#2")["grad-cam"]
    changed = np.argwhere((record.view != plain).any(axis=2))
    height, width = plain.shape[:2]
    assert changed.min(axis=0).tolist() == [round(0.5 * (height - 1)), round(0.5 * (width - 1))]
    assert changed.max(axis=0).tolist() == [height - 1, width - 1]


@pytest.mark.parametrize("name", ["SSDlite", "DETR"])
def test_all_detections_of_an_image_share_one_pass(name, picture):
    """The pass that finds them is the one that is differentiated."""
    adapter = model(name)
    methods = "grad-cam,layer-cam,eigen-cam"
    xai_abn.explain(adapter, picture, methods)  # the layers are known from here on
    ran = []
    handle = adapter.module.register_forward_pre_hook(lambda *_: ran.append(1))
    labels = [one.label for one in xai_abn.explain(adapter, picture, "grad-cam")[0].values()]
    assert len(ran) == 1
    number = LABELS.index(labels[0][:-2])
    result = xai_abn.explain(adapter, [picture], methods, [[f"{number}", f"{number}#2", None]])
    handle.remove()
    assert len(ran) == 2
    assert len(result[0]) == 2 * 2 + 1


class Nothing(Fixed):
    """Finds nothing."""

    def forward(self, x):
        return [{k: v[:0] for k, v in one.items()} for one in super().forward(x)]


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("c", r"the detector finds no 'c'; it finds a#1 \(\d+%\), "),
        ("a#3", "there are 2 such detections, none of rank 3"),
        (xai_abn.DetectionTarget(rank=0), "none of rank 0"),
        (xai_abn.DetectionTarget(box=(0, 60, 20, 80)), r"no detection overlaps the box \[0, 60, 20, 80\] by 50%"),
        (xai_abn.DetectionTarget(box=(9, 9, 3, 3)), r"a box must be \(left, top, right, bottom\)"),
        (xai_abn.DetectionTarget(box="left"), "a box must be"),
        ("e", "unknown label 'e'"),
        (9, "target 9 is out of range; Fixed has classes 0 to 4"),
        ("9#2", "target 9 is out of range; Fixed has classes 0 to 4"),
        (xai_abn.DetectionTarget(-1), "target -1 is out of range; Fixed has classes 0 to 4"),
        (xai_abn.DetectionTarget(rank="2"), "none of rank 2"),
        (xai_abn.Difference("a", versus="b"), "a target of a detector must be a label"),
        (xai_abn.SegmentationTarget("a"), "a target of a detector must be a label"),
    ],
)
def test_what_is_no_detection_is_refused(picture, target, problem):
    with pytest.raises((InvalidInputError, UnknownNameError), match=problem):
        xai_abn.explain(fixed(), picture, "grad-cam", target)


class Odd(Fixed):
    """Outputs one value in another form."""

    def __init__(self, **changed):
        super().__init__()
        self.changed = changed

    def forward(self, x):
        return [one | self.changed for one in super().forward(x)]


NOT_A_NUMBER = torch.tensor([0.1, float("nan"), 0.2, 0.3])


@pytest.mark.parametrize(
    ("changed", "error", "problem"),
    [
        ({"scores": NOT_A_NUMBER}, NonFiniteError, "outputs NaN or infinite boxes or scores"),
        ({"boxes": NOT_A_NUMBER[:, None].expand(4, 4)}, NonFiniteError, "outputs NaN or infinite boxes or scores"),
        ({"boxes": torch.ones(4, 5)}, UnsupportedModelError, r"got boxes \(4, 5\), labels \(4,\), scores \(4,\)"),
        ({"labels": torch.ones(3)}, UnsupportedModelError, r"got boxes \(4, 4\), labels \(3,\), scores \(4,\)"),
    ],
)
def test_what_is_no_list_of_detections_is_refused(changed, error, problem, picture):
    with pytest.raises(error, match=problem):
        xai_abn.explain(fixed(lambda: Odd(**changed)), picture, "grad-cam")


def test_labels_of_detections_may_be_floats(picture):
    changed = {"labels": torch.tensor([1.0, 1.0, 2.0, 1.0])}
    assert xai_abn.explain(fixed(lambda: Odd(**changed)), picture, "grad-cam", "a#2")["grad-cam"].label == "a#2"


def test_without_labels_a_class_is_an_index(picture):
    adapter = fixed(labels=None)
    assert xai_abn.explain(adapter, picture, "grad-cam", 2)["grad-cam"].label == "class 2#1"
    with pytest.raises(InvalidInputError, match="the detector finds no 'class 7'; it finds class 1#1"):
        xai_abn.explain(adapter, picture, "grad-cam", 7)
    with pytest.raises(InvalidInputError, match="target -1 is out of range; Fixed has classes from 0"):
        xai_abn.explain(adapter, picture, "grad-cam", -1)
    with pytest.raises(InvalidInputError, match="Fixed has no labels, so a target must be an index, got 'dog'"):
        xai_abn.explain(adapter, picture, "grad-cam", "dog")


def test_other_refusals(picture, gap_net):
    """A detector that finds nothing, a classifier, and a benchmark."""
    with pytest.raises(InvalidInputError, match="the detector finds nothing"):
        xai_abn.explain(fixed(Nothing), picture, "grad-cam")
    with pytest.raises(InvalidInputError, match="a DetectionTarget is for a network that detects"):
        xai_abn.explain(gap_net, picture, "cam", xai_abn.DetectionTarget("a"))
    with pytest.raises(UnsupportedModelError, match="outputs no boxes"):
        gap_net.detections(torch.zeros(1, 3), gap_net.preprocess(from_array(picture)))


def test_detectors_are_loaded_by_name(tmp_path, picture, monkeypatch):
    """Of torchvision and of Hugging Face, also in a command; they get pixels as they expect them."""
    Image.fromarray(picture).save(tmp_path / "a.png")
    name = "torchvision:ssdlite320_mobilenet_v3_large"
    adapter = xai_abn.load_model(name, weights="random")
    assert adapter.labels[18] == "dog"
    assert (adapter.preprocess.size, adapter.preprocess.mean, adapter.preprocess.std) == (320, (0.0,) * 3, (1.0,) * 3)
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    DETECTORS["DETR"]().save_pretrained(tmp_path / "detr")
    size = {"shortest_edge": 128, "longest_edge": 200}
    transformers.DetrImageProcessor(size=size).save_pretrained(tmp_path / "detr")
    loaded = xai_abn.load_model(f"hf:{tmp_path / 'detr'}")
    assert (loaded.preprocess.size, loaded.preprocess.crop) == (128, "squash")
    assert loaded.preprocess.mean == pytest.approx((0.485, 0.456, 0.406))
    arguments = ("--model", f"hf:{tmp_path / 'detr'}", "--output", tmp_path / "out")
    code, out, err = call("explain", tmp_path / "a.png", *arguments, "--method", "grad-cam", "--json")
    assert code == 0, err
    (record,) = json.loads(out)["explanations"]
    assert record["label"].endswith("#1")
    code, _, err = call("explain", tmp_path / "a.png", *arguments, "--target", f"{record['label'][:-1]}9")
    assert code == 1
    assert "none of rank 9" in err
    (tmp_path / "set/one").mkdir(parents=True)
    Image.fromarray(picture).save(tmp_path / "set/one/a.png")
    options = ("--metric", "gini", "--method", "saliency", "--output", tmp_path / "run.sqlite")
    code, _, err = call("benchmark", "run", "--data", f"images:{tmp_path / 'set'}", *arguments[:2], *options)
    assert code == 2
    assert "is not a classifier, which a benchmark needs" in err
