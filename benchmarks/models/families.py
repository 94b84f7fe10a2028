"""Which methods apply to which families of networks? Every method on one small network of each, with random weights.

    python -m benchmarks.models.families [--only FAMILY]

A cell is "yes" for a map, or the number of the reason for which the method is refused; reasons are listed below the
table, with the names of layers and networks left out. Anything but a map or an error of the package ends the script.
Needs ``pip install "xai-abn[test]"``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
import torchvision
import transformers
from torch import nn

import xai_abn
from benchmarks._harness import machine, make_parser
from xai_abn import explainers
from xai_abn.errors import XaiAbnError

SIZE, CLASSES = 64, 5
#: Options that make a method fast; they do not decide whether it applies.
FAST = {
    "integrated-gradients": "steps=4",
    "smooth-grad": "samples=2",
    "var-grad": "samples=2",
    "gradient-shap": "samples=2",
    "occlusion": "window=0.5,stride=0.5",
    "feature-ablation": "segments=4",
    "kernel-shap": "segments=4,samples=8",
    "lime": "segments=4,samples=8",
    "rise": "masks=4,side=3",
    "ss-cam": "samples=2",
    "is-cam": "steps=2",
    "smooth-grad-cam++": "samples=2",
}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def of_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=CLASSES, **options)


def of_hugging_face(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        config = getattr(transformers, name.replace("For", "Config For").split()[0])
        network: nn.Module = getattr(transformers, name)(config(num_labels=CLASSES, **options))
        return network

    return make


def segmenter() -> nn.Module:
    made: nn.Module = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=CLASSES
    )
    return made


def detector() -> nn.Module:
    made: nn.Module = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=CLASSES, score_thresh=0.0
    )
    return made


def abn() -> nn.Module:
    return xai_abn.abn_from(torchvision.models.resnet18(num_classes=CLASSES))


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "ResNet": lambda: torchvision.models.resnet18(num_classes=CLASSES),
    "ABN of it": abn,
    "EfficientNet": of_timm("tf_efficientnet_lite0"),
    "ConvNeXt (HF)": of_hugging_face("ConvNextForImageClassification", depths=[1] * 4, hidden_sizes=[8, 16, 32, 64]),
    "ViT": of_timm("vit_tiny_patch16_224", img_size=SIZE, depth=3),
    "ViT (HF)": of_hugging_face("ViTForImageClassification", image_size=SIZE, **VIT),
    "BEiT (HF)": of_hugging_face("BeitForImageClassification", image_size=SIZE, **VIT),
    "Swin (HF)": of_hugging_face(
        "SwinForImageClassification",
        image_size=SIZE,
        window_size=2,
        embed_dim=16,
        depths=[2] * 4,
        num_heads=[1, 2, 4, 8],
    ),
    "SegFormer (HF)": of_hugging_face("SegformerForImageClassification", depths=[1] * 4),
    "segmentation": segmenter,
    "detection": detector,
}


def tried(model: xai_abn.ModelAdapter, method: str) -> str | None:
    """Return why a method is refused, or None if it gives a map."""
    options = FAST.get(method)
    spec = f"{method}:{options}" if options else method
    image = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
    try:
        (record,) = xai_abn.explain(model, image, spec)[0].values()
    except XaiAbnError as error:
        reason = str(error).replace(model.name, "it").replace(type(model.module).__name__, "network")
        return re.sub(r"'[^']*'", "'...'", reason.replace(f"{method} ", "", 1)).splitlines()[0]
    assert record.map.ndim == 2
    return None


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--only", choices=FAMILIES, help="one family")
    only = parser.parse_args().only
    machine()
    warnings.simplefilter("ignore")
    names = explainers.names()
    reasons: dict[str, int] = {}
    cells: dict[str, list[str]] = {name: [] for name in names}
    families = {only: FAMILIES[only]} if only else FAMILIES
    for make in families.values():
        torch.manual_seed(0)
        preprocess = xai_abn.Preprocess(size=SIZE, crop="squash")
        network = make().eval()
        detects = hasattr(network, "transform")
        model = xai_abn.wrap(network, preprocess=None if detects else preprocess, name="family")
        for name in names:
            reason = tried(model, name)
            cells[name].append("yes" if reason is None else str(reasons.setdefault(reason, len(reasons) + 1)))
    print(f"| method | {' | '.join(families)} |\n|---|{'---|' * len(families)}")
    for name in names:
        print(f"| {name} | {' | '.join(cells[name])} |")
    print()
    for reason, number in reasons.items():
        print(f"{number}. {reason}")


if __name__ == "__main__":
    main()
