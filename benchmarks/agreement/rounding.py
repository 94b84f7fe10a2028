"""Is efficientnet_b0's difference from captum rounding? The same maps in float32 and float64.

python -m benchmarks.agreement.rounding
"""

from __future__ import annotations

import torch
import torchvision
from captum.attr import LayerGradCam

import xai_abn
from xai_abn.explainers import GradCAM
from xai_abn.heatmaps import unit_range
from xai_abn.models.forward_pass import ForwardPass


def main() -> None:
    inputs = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([1, 2])
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        module = torchvision.models.efficientnet_b0().train()
        module(inputs)  # fills the BatchNorm statistics
        module.eval().to(dtype)
        model = xai_abn.wrap(module)
        ours = GradCAM().explain(ForwardPass(model, inputs, ["features"], gradients=True), targets)
        peer = LayerGradCam(module, module.features).attribute(inputs.to(dtype), target=targets).relu()[:, 0]
        print(dtype, f"{(unit_range(ours) - unit_range(peer)).abs().max().item():.1e}")


if __name__ == "__main__":
    main()
