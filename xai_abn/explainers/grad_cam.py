"""Gradient-weighted Class Activation Mapping."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_abn.explainers.base import Explainer, register
from xai_abn.models.forward_pass import ForwardPass


@register("grad-cam")
class GradCAM(Explainer):
    """Channels weighted by their mean gradient: ``ReLU(sum_k a_k A_k)``, ``a_k = mean_ij dy_c / dA_k,ij``.

    ``y_c`` is the logit, before softmax. On a network with GAP and one linear layer this is
    ``ReLU(CAM) / (h w)``.

    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017, eq. 1 and 2.
    """

    needs_gradient = True
    source = "Selvaraju et al., ICCV 2017"

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, h, w), at least 0."""
        layer = self.layer_of(forward_pass.model)
        weights = forward_pass.gradients(layer, targets).mean(dim=(2, 3))
        return torch.einsum("nkhw,nk->nhw", forward_pass.activations(layer), weights).relu()
