"""Measure abn-lite0 beside lite0: accuracy, where its map lies, how many objects it finds, its polarity.

    python -m benchmarks.default_abn.evaluate --data DIR [--model SPEC] [--output results.json]

DIR holds imagenet_val/ (images/, boxes.csv: file,wnid,boxes) and coco_multi/ (images/, instances.json).
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo

from benchmarks._harness import machine, make_parser, write_json
from xai_abn import ModelAdapter, load_model
from xai_abn.explainers import ABN, CAM, ABNClass, GradCAM, Random7, Random14, Uniform
from xai_abn.explainers.baselines import Center
from xai_abn.images.loading import load_image
from xai_abn.metrics import Objects, energy_pointing_game, object_recall, peak_inside, polarity
from xai_abn.models.forward_pass import ForwardPass

SIZE = 224
BATCH = 16


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--model", default="abn-lite0", help="an ABN made from lite0")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    abn, plain = load_model(arguments.model), load_model("lite0")
    samples = read_imagenet(arguments.data / "imagenet_val")
    scenes = read_coco(arguments.data / "coco_multi")
    result = {
        **machine(),
        "accuracy": accuracy(abn, plain, samples),
        "imagenet_val": localization(abn, plain, samples),
        "coco_multi": localization(abn, plain, scenes),
        "polarity": polarities(abn, samples),
    }
    show(result)
    write_json(arguments.output, result)


def read_imagenet(folder: Path) -> list[dict[str, Any]]:
    index = {wnid: i for i, wnid in enumerate(ImageNetInfo().label_names())}
    rows = list(csv.DictReader((folder / "boxes.csv").open()))
    return [
        {
            "path": folder / "images" / row["file"],
            "target": index[row["wnid"]],
            "boxes": [[float(v) for v in box.split()] for box in row["boxes"].split(";")],
        }
        for row in rows
    ]


def read_coco(folder: Path) -> list[dict[str, Any]]:
    content = json.loads((folder / "instances.json").read_text())
    boxes: dict[int, list[list[float]]] = {}
    for note in content["annotations"]:
        left, top, width, height = note["bbox"]
        boxes.setdefault(note["image_id"], []).append([left, top, left + width, top + height])
    return [{"path": folder / "images" / i["file_name"], "boxes": boxes[i["id"]]} for i in content["images"]]


def batches(
    model: ModelAdapter, samples: list[dict[str, Any]], crop: str
) -> Iterator[tuple[torch.Tensor, list[dict[str, Any]]]]:
    """Yield inputs (N, 3, 224, 224) and their samples."""
    preprocess = dataclasses.replace(model.preprocess, crop=crop)
    for start in range(0, len(samples), BATCH):
        chunk = samples[start : start + BATCH]
        inputs = torch.stack([preprocess(load_image(p["path"])).tensor for p in chunk])
        yield inputs.contiguous(memory_format=torch.channels_last), chunk


def accuracy(abn: ModelAdapter, plain: ModelAdapter, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Top-1 with the usual center crop."""
    right: dict[str, list[bool]] = {"lite0": [], "perception branch": [], "attention branch": []}
    for inputs, chunk in batches(abn, samples, "center"):
        truth = torch.tensor([p["target"] for p in chunk])
        with torch.inference_mode():
            output = abn.module(inputs)
            answers = {
                "lite0": plain.module(inputs),
                "perception branch": output.logits,
                "attention branch": output.attention_logits,
            }
        for name, logits in answers.items():
            right[name] += (logits.argmax(dim=1) == truth).tolist()
    agree = np.mean(np.array(right["lite0"]) == np.array(right["perception branch"]))
    return {**{n: float(np.mean(r)) for n, r in right.items()}, "both right or both wrong": float(agree)}


def localization(abn: ModelAdapter, plain: ModelAdapter, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Each method's map of the whole image, squashed to 224x224, against the boxes.

    CAM and Grad-CAM explain lite0's own top-1 class.
    """
    values: dict[str, list[Any]] = {}
    for inputs, chunk in batches(abn, samples, "squash"):
        shared_abn = ForwardPass(abn, inputs, [abn.target_layer], gradients=True)
        shared = ForwardPass(plain, inputs, [plain.target_layer], gradients=True)
        top, top_abn = shared.logits.argmax(dim=1), shared_abn.logits.argmax(dim=1)
        maps = {
            "abn": ABN().explain(shared_abn, top_abn),
            "abn-class (top-1)": ABNClass().explain(shared_abn, top_abn),
            "grad-cam of abn-lite0 (top-1)": GradCAM().explain(shared_abn, top_abn),
            "cam of lite0 (top-1)": CAM().explain(shared, top),
            "grad-cam of lite0 (top-1)": GradCAM().explain(shared, top),
            "center": Center().explain(shared, top),
            "uniform": Uniform().explain(shared, top),
            "random 7x7": Random7().explain(shared, top),
            "random 14x14": Random14().explain(shared, top),
        }
        boxes = [scaled_boxes(sample) for sample in chunk]
        for name, batch in maps.items():
            metrics = (energy_pointing_game, peak_inside, object_recall)
            found = [metric(batch.detach(), boxes).tolist() for metric in metrics]
            for energy, peak, recall, around in zip(*found, boxes, strict=True):
                number = len(around.boxes)
                values.setdefault(name, []).append([energy, peak, recall, recall * number, number])
    return {name: summary(np.array(rows)) for name, rows in values.items()}


def scaled_boxes(sample: dict[str, Any]) -> Objects:
    """Return the boxes in pixels of the whole image squashed to 224x224."""
    with Image.open(sample["path"]) as image:
        width, height = image.size
    boxes = torch.tensor(sample["boxes"]) * torch.tensor([SIZE / width, SIZE / height] * 2)
    return Objects.from_boxes(boxes, (SIZE, SIZE))


def summary(rows: np.ndarray) -> dict[str, Any]:
    """Mean over images; None for what a constant map does not have: a peak and top pixels."""
    energy, peak, recall, found, objects = rows.T
    kept = ~np.isnan(peak)
    return {
        "energy inside": mean(energy[~np.isnan(energy)]),
        "peak inside": mean(peak[kept]),
        "object recall": float(found[kept].sum() / objects[kept].sum()) if kept.any() else None,
        "object recall, mean over images": mean(recall[kept]),
        "flat maps": int((~kept).sum()),
        "images": len(rows),
        "objects": int(objects.sum()),
    }


def mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def polarities(abn: ModelAdapter, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Probability of the own top-1 class without the map's bottom 20 % of pixels minus without its top 20 %."""
    values: list[float] = []

    def predict(inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = abn.module(inputs).logits
        return logits

    for inputs, _ in batches(abn, samples, "squash"):
        shared = ForwardPass(abn, inputs)
        assert shared.attention_map is not None
        values += polarity(predict, inputs, shared.attention_map[:, 0], shared.logits.argmax(dim=1)).tolist()
    return {
        "mean": float(np.mean(values)),
        "share above 0": float(np.mean(np.array(values) > 0)),
        "images": len(values),
    }


def show(result: dict[str, Any]) -> None:
    for part in ("accuracy", "polarity"):
        print(f"\n{part}")
        for name, value in result[part].items():
            print(f"  {name:<28} {value:.4g}")
    for part in ("imagenet_val", "coco_multi"):
        first = next(iter(result[part].values()))
        print(f"\n{part}: {first['images']} images, {first['objects']} objects, whole image at {SIZE}x{SIZE}")
        print(f"  {'map':<32} {'energy':>7} {'peak':>7} {'recall':>7} {'(mean)':>7} {'flat':>5}")
        for name, v in result[part].items():
            cells = [v[k] for k in ("energy inside", "peak inside", "object recall", "object recall, mean over images")]
            text = " ".join("      -" if c is None else f"{c:7.3f}" for c in cells)
            print(f"  {name:<32} {text} {v['flat maps']:5d}")


if __name__ == "__main__":
    main()
