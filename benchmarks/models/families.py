"""Which methods apply to which families of networks? Every method on one small network of each, with random weights.

    python -m benchmarks.models.families [--only FAMILY]

A cell is "yes" for a map, or the number of the reason for which the method is refused; reasons are listed below the
table, with the names of layers and networks left out. Anything but a map or an error of the package ends the script.
Needs ``pip install "xai-abn[test]"``.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import tokenizers
import torch
import torchvision
import transformers
from torch import nn

import xai_abn
from benchmarks._harness import machine, make_parser
from xai_abn import explainers
from xai_abn.errors import XaiAbnError
from xai_abn.integrations.onnx import export_onnx

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


def resnet() -> nn.Module:
    made: nn.Module = torchvision.models.resnet18(num_classes=CLASSES)
    return made


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


class Clips(nn.Module):
    """A small ResNet in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(3, 8, 3, (1, 4, 4), 1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 16, 3, (1, 2, 2), 1), nn.ReLU()
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Return the logits of clips (N, 3, T, H, W)."""
        logits: torch.Tensor = self.head(self.body(clips).mean((2, 3, 4)))
        return logits


def clip() -> xai_abn.ModelAdapter:
    """Return a CLIP that compares images with three texts."""
    library: Any = transformers  # without types
    words = tokenizers.models.WordLevel({w: i for i, w in enumerate(("<s>", "</s>", "dog", "cat", "bird", "?"))}, "?")
    text = {**VIT, "vocab_size": 6, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**VIT, "image_size": SIZE, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    images = library.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    tokens = library.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words), pad_token="</s>")
    processor = library.CLIPProcessor(images, tokens)
    return xai_abn.zero_shot(library.CLIPModel(config).eval(), processor, ["dog", "cat", "bird"])


def onnx_file() -> xai_abn.ModelAdapter:
    """Return a ResNet that was exported to an ONNX file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(wrapped(resnet()), path, method="none")
        return xai_abn.load_model(f"onnx:{path}")


def wrapped(network: nn.Module, **options: Any) -> xai_abn.ModelAdapter:
    own = hasattr(network, "transform") or "example_input" in options
    preprocess = None if own else xai_abn.Preprocess(size=SIZE, crop="squash")
    return xai_abn.wrap(network.eval(), preprocess=preprocess, name="family", **options)


FAMILIES: dict[str, Callable[[], nn.Module | xai_abn.ModelAdapter]] = {
    "ResNet": resnet,
    "ABN of it": lambda: xai_abn.abn_from(resnet(), masks=True),
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
    "CLIP": clip,
    "segmentation": segmenter,
    "detection": detector,
    "regression": lambda: wrapped(resnet(), scores_only=True),
    "clips": lambda: wrapped(Clips(), example_input=torch.zeros(1, 3, 4, SIZE, SIZE)),
    "ONNX file": onnx_file,
}


def tried(model: xai_abn.ModelAdapter, method: str) -> str | None:
    """Return why a method is refused, or None if it gives a map."""
    options = FAST.get(method)
    spec = f"{method}:{options}" if options else method
    rng = np.random.default_rng(0)
    image: Any = rng.integers(0, 256, (80, 120, 3), np.uint8)
    if model.axes == 3:
        image = torch.from_numpy(rng.normal(size=(1, 3, 4, SIZE, SIZE))).float()
    targets = 0 if model.scores_only else None
    try:
        (record,) = xai_abn.explain(model, image, spec, targets)[0].values()
    except XaiAbnError as error:
        reason = str(error).replace(model.name, "it").replace(type(model.module).__name__, "network")
        return re.sub(r"'[^']*'", "'...'", reason.replace(f"{method} ", "", 1)).splitlines()[0]
    assert record.map.ndim == model.axes
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
        made = make()
        model = made if isinstance(made, xai_abn.ModelAdapter) else wrapped(made)
        for name in names:
            reason = tried(model, name)
            cells[name].append("yes" if reason is None else str(reasons.setdefault(reason, len(reasons) + 1)))
    print(f"| method | {' | '.join(families)} |\n|---|{'---|' * len(families)}")
    rows: dict[str, list[str]] = {}
    for name in names:
        rows.setdefault(" | ".join(cells[name]), []).append(name)
    for row, sharing in rows.items():
        print(f"| {', '.join(sharing)} | {row} |")
    print()
    for reason, number in reasons.items():
        print(f"{number}. {reason}")


if __name__ == "__main__":
    main()
