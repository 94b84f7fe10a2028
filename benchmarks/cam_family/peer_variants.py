"""Our methods with the deviations of grad-cam 1.5 and torchcam 0.5 from the papers, so that numbers can be compared."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from xai_abn import explainers
from xai_abn.explainers.grad_cam import weighted_sum
from xai_abn.heatmaps import unit_range


class EpsilonGradCAMPlusPlus(explainers.GradCAMPlusPlus):
    """Grad-CAM++ with 1e-6 added to the denominator of the weights, as in grad-cam."""

    def combine(self, activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """Return ``ReLU(sum_k w_k A_k)``."""
        square, total = gradients**2, activations.sum(dim=(2, 3), keepdim=True)
        alpha = square / (2 * square + gradients**3 * total + 1e-6)
        weights = torch.where(gradients != 0, alpha, 0.0) * gradients.relu()
        return weighted_sum(activations, weights.sum(dim=(2, 3))).relu()


class CornersScoreCAM(explainers.ScoreCAM):
    """Score-CAM that enlarges masks with aligned corners, as in grad-cam."""

    def masks(self, channels: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        """Return channels (B, h, w) as masks (B, 1, H, W) in [0, 1]."""
        return unit_range(F.interpolate(channels[:, None], size, mode="bilinear", align_corners=True))


class _ScaleFirst(explainers.ScoreCAM):
    """Masks are scaled to [0, 1] before they are enlarged, as in torchcam."""

    def masks(self, channels: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        """Return channels (B, h, w) as masks (B, 1, H, W) in [0, 1]."""
        return F.interpolate(unit_range(channels[:, None]), size, mode="bilinear")


class ScaleFirstScoreCAM(_ScaleFirst):
    """Score-CAM as in torchcam."""


class ScaleFirstISCAM(_ScaleFirst, explainers.ISCAM):
    """IS-CAM as in torchcam."""
