"""Principal components of a layer: what its channels agree on."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_abn.explainers.base import Explainer, register
from xai_abn.models.forward_pass import ForwardPass


def first_component(values: Tensor) -> Tensor:
    """Return, for values (N, C, h, w), each position's projection on the first principal component, (N, h, w).

    A component has no sign of its own: the one is taken whose largest magnitude is positive.
    """
    positions = values.double().flatten(2).transpose(1, 2)
    centred = positions - positions.mean(dim=1, keepdim=True)
    if centred.shape[1] <= centred.shape[2]:
        scale, vectors = torch.linalg.eigh(centred @ centred.mT)
        projected = vectors[..., -1] * scale[..., -1:].clamp_min(0).sqrt()
    else:
        projected = (centred @ torch.linalg.eigh(centred.mT @ centred).eigenvectors[..., -1:])[..., 0]
    return _upright(projected).unflatten(1, values.shape[2:]).float()


def _upright(projected: Tensor) -> Tensor:
    """Return projections (N, P) with the sign that makes the largest magnitude positive."""
    flipped = projected.amin(dim=1).abs() > projected.amax(dim=1).abs()
    return torch.where(flipped[:, None], -projected, projected)


@register("eigen-cam")
class EigenCAM(Explainer):
    """The layer's first principal component at every position. Knows no class.

    Source: Muhammad and Yeasin, "Eigen-CAM", IJCNN 2020. Channels are centred first, as in grad-cam (the paper's
    formula does not); sign as in Chung and Ying, "Seg-Eigen-CAM", Applied Sciences 2025, eq. 13.
    """

    class_specific = False
    source = "Muhammad and Yeasin, IJCNN 2020"

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return signed maps, (N, h, w); ``targets`` do not matter."""
        return first_component(forward_pass.activations(self.layer_of(forward_pass.model)))


@register("eigengrad-cam")
class EigenGradCAM(Explainer):
    """The first principal component of activation times gradient.

    Source: Gildenblat et al., pytorch-grad-cam, 2021 (no paper); sign as in :class:`EigenCAM`.
    """

    needs_gradient = True
    source = "pytorch-grad-cam, 2021"

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return signed maps of ``targets``, (N, h, w)."""
        layer = self.layer_of(forward_pass.model)
        return first_component(forward_pass.activations(layer) * forward_pass.gradients(layer, targets))


@register("kpca-cam")
class KPCACAM(Explainer):
    """The first component of the layer under a kernel, ``tanh(x y / C + 1)``. Knows no class.

    Source: Karmani et al., "KPCA-CAM", IEEE MMSP 2024; kernel and its numbers as grad-cam's default (scikit-learn's
    sigmoid), channels centred first; sign as in :class:`EigenCAM`.
    """

    class_specific = False
    source = "Karmani et al., MMSP 2024"

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return signed maps, (N, h, w); ``targets`` do not matter."""
        values = forward_pass.activations(self.layer_of(forward_pass.model))
        positions = values.double().flatten(2).transpose(1, 2)
        centred = positions - positions.mean(dim=1, keepdim=True)
        kernel = (centred @ centred.mT / centred.shape[2] + 1).tanh()
        kernel = kernel - kernel.mean(dim=1, keepdim=True)
        kernel = kernel - kernel.mean(dim=2, keepdim=True)
        scale, vectors = torch.linalg.eigh(kernel)
        projected = vectors[..., -1] * scale[..., -1:].clamp_min(0).sqrt()
        return _upright(projected).unflatten(1, values.shape[2:]).float()
