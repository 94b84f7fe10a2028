"""Is efficientnet_b0's difference from captum rounding? The same maps in float32 and float64.

python benchmarks/agreement/rounding.py
"""

from __future__ import annotations

import torch
import torchvision
from captum.attr import LayerGradCam

import xai_abn
from xai_abn.explainers import GradCAM


def main() -> None:
    inputs = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([1, 2])
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        module = torchvision.models.efficientnet_b0().train()
        module(inputs)  # fills the BatchNorm statistics
        module.eval().to(dtype)
        model = xai_abn.wrap(module)
        ours = GradCAM().explain(model.forward_pass(inputs, ["features"], gradients=True), targets)
        peer = LayerGradCam(module, module.features).attribute(inputs.to(dtype), target=targets).relu()[:, 0]
        print(dtype, f"{(scaled(ours) - scaled(peer)).abs().max().item():.1e}")


def scaled(maps: torch.Tensor) -> torch.Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


if __name__ == "__main__":
    main()
