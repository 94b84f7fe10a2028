"""What does the Grad-CAM of a detection cost, as a multiple of the detector's forward pass? With random weights.

    python -m benchmarks.models.detectors [--only DETECTOR] [--size 512]

Medians of interleaved runs on one prepared image, in a process that has explained an image before. Needs
``pip install "xai-abn[test]"``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.models import detection

import xai_abn
from benchmarks._harness import machine, make_parser, ratios, write_json

#: Detectors find nothing with random weights and their own thresholds.
ANY = {"score_thresh": 0.0}


def of_torchvision(name: str, **options: Any) -> nn.Module:
    made: nn.Module = getattr(detection, name)(weights=None, weights_backbone=None, **options)
    return made


def of_hugging_face(name: str, backbone: Any = None) -> nn.Module:
    import transformers

    plain = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None} if backbone else {}
    config = getattr(transformers, f"{name}Config")(**plain, **({"backbone_config": backbone} if backbone else {}))
    made: nn.Module = getattr(transformers, f"{name}ForObjectDetection")(config)
    return made


def detr() -> nn.Module:
    import transformers

    return of_hugging_face("Detr", transformers.ResNetConfig(out_features=["stage4"]))  # type: ignore[call-arg]


#: How each is made for an input of a side; the first and the fourth have a size of their own, 320.
DETECTORS: dict[str, Callable[[int], nn.Module]] = {
    "Faster R-CNN, MobileNetV3": lambda _: of_torchvision(
        "fasterrcnn_mobilenet_v3_large_320_fpn", box_score_thresh=0.0
    ),
    "Faster R-CNN, ResNet-50": lambda side: of_torchvision(
        "fasterrcnn_resnet50_fpn", box_score_thresh=0.0, min_size=side, max_size=side
    ),
    "RetinaNet, ResNet-50": lambda side: of_torchvision("retinanet_resnet50_fpn", **ANY, min_size=side, max_size=side),
    "FCOS, ResNet-50": lambda side: of_torchvision("fcos_resnet50_fpn", **ANY, min_size=side, max_size=side),
    "SSDlite, MobileNetV3": lambda _: of_torchvision("ssdlite320_mobilenet_v3_large"),
    "DETR, ResNet-50": lambda _: detr(),
    "RT-DETR, ResNet-50": lambda _: of_hugging_face("RTDetr"),
}


def measured(make: Callable[[int], nn.Module], size: int, rounds: int) -> dict[str, float]:
    """Return the cost of an explanation by one method, and by two, as multiples of a forward pass."""
    torch.manual_seed(0)
    network = make(size).eval()
    preprocess = None if hasattr(network, "transform") else xai_abn.Preprocess(size=size, crop="squash")
    model = xai_abn.wrap(network, preprocess=preprocess)
    height, width = model.preprocess.height_and_width
    image = torch.rand(3, height, width)
    xai_abn.explain(model, image, "grad-cam")
    inputs = image[None].contiguous(memory_format=model.memory_format)

    def forward() -> None:
        with torch.no_grad():
            network(inputs)

    contenders = {
        "grad-cam": lambda: xai_abn.explain(model, image, "grad-cam"),
        "grad-cam and layer-cam": lambda: xai_abn.explain(model, image, ["grad-cam", "layer-cam"]),
    }
    return ratios(forward, contenders, rounds)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--only", choices=DETECTORS, help="one detector")
    parser.add_argument("--size", type=int, default=512, help="side of the input where the detector has none")
    parser.add_argument("--rounds", type=int, default=5, help="number of interleaved rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {"machine": machine(), "size": arguments.size, "ratios": {}}
    for name in [arguments.only] if arguments.only else DETECTORS:
        found = measured(DETECTORS[name], arguments.size, arguments.rounds)
        result["ratios"][name] = found
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in found.values())} |", flush=True)
    write_json(arguments.output, result)


if __name__ == "__main__":
    main()
