"""Is memory flat? 500 explanations with every method, on a small CNN, ABN and ViT: live tensors and resident memory.

    python -m benchmarks.cam_family.memory [--calls 500]

Costly methods get small settings (a few masks, samples, channels): every call still takes every step of the method.
"""

from __future__ import annotations

import gc
from typing import Any

import psutil
import timm
import torch

import xai_abn
from benchmarks._harness import machine, make_parser
from xai_abn import explainers
from xai_abn.errors import UnsupportedModelError
from xai_abn.images.preprocess import Preprocess

SMALL: dict[str, dict[str, Any]] = {
    "integrated-gradients": {"steps": 2},
    "smooth-grad": {"samples": 2},
    "var-grad": {"samples": 2},
    "gradient-shap": {"samples": 2},
    "occlusion": {"window": 0.5, "stride": 0.5},
    "feature-ablation": {"segments": 4},
    "kernel-shap": {"segments": 4, "samples": 6},
    "lime": {"segments": 4, "samples": 6},
    "rise": {"masks": 8, "side": 3},
    "ss-cam": {"samples": 1},
    "is-cam": {"steps": 1},
    "smooth-grad-cam++": {"samples": 1},
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--methods", nargs="+", choices=explainers.names(), default=explainers.names())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine()
    torch.manual_seed(0)
    worst = 0.0
    for name in arguments.methods:
        for model in models():
            explainer = explainers.get(name)(**SMALL.get(name, {}))
            try:
                explainer.check(model)
                explain(model, explainer)
            except UnsupportedModelError:
                continue
            tensors, mebibytes = growth(model, explainer, arguments.calls)
            worst = max(worst, mebibytes)
            print(f"{name:<22} {model.name:<8} {tensors:+d} tensors {mebibytes:+.1f} MiB", flush=True)
    print(f"largest growth between call {arguments.calls // 5} and {arguments.calls}: {worst:.1f} MiB")


def models() -> list[xai_abn.ModelAdapter]:
    def network(name: str, **options: Any) -> torch.nn.Module:
        return timm.create_model(name, num_classes=10, **options).eval()

    small = {"channels": (8, 12, 16, 24)}
    abn = xai_abn.abn_from(network("resnet10t", **small), input_size=64)
    vit = network("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=24)
    made = {"cnn": network("resnet10t", **small), "abn": abn, "vit": vit}
    return [xai_abn.wrap(m, name=n, preprocess=Preprocess(size=64)) for n, m in made.items()]


def explain(model: xai_abn.ModelAdapter, explainer: explainers.Explainer) -> torch.Tensor:
    inputs = torch.randn(1, 3, 64, 64)
    return explainer.explain(explainers.run_pass(model, inputs, [explainer]), torch.tensor([3]))


def growth(model: xai_abn.ModelAdapter, explainer: explainers.Explainer, calls: int) -> tuple[int, float]:
    """Return how many live tensors and MiB were gained between the first fifth and the last call."""
    process, marks = psutil.Process(), []
    for number in range(1, calls + 1):
        explain(model, explainer)
        if number in (calls // 5, calls):
            gc.collect()
            tensors = sum(type(o) in (torch.Tensor, torch.nn.Parameter) for o in gc.get_objects())
            marks.append((tensors, process.memory_info().rss / 2**20))
    return marks[1][0] - marks[0][0], marks[1][1] - marks[0][1]


if __name__ == "__main__":
    main()
