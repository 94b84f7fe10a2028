"""Class Activation Mapping."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers.base import Explainer, register
from xai_abn.models.forward_pass import ForwardPass

#: The head counts as GAP + linear if it gives the logits within this share of their largest magnitude.
TOLERANCE = 1e-3


@register("cam")
class CAM(Explainer):
    """The class's linear weights, applied at every position: ``M_c(x, y) = sum_k w_ck f_k(x, y)``.

    Signed, in logits: the mean of the map plus the class's bias is the class's logit, exactly.
    That identity is checked on the pass at hand, so CAM never explains a head it does not describe.

    Source: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, eq. 2.
    As there, the bias is left out and there is no ReLU.
    """

    source = "Zhou et al., CVPR 2016"

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the class maps of ``targets``, (N, h, w).

        Raises:
            UnsupportedModelError: the head is not global average pooling followed by one linear layer.
        """
        weight = forward_pass.model.classifier.weight.detach()
        activations = _pooled_activations(forward_pass, self.layer_of(forward_pass.model))
        return torch.einsum("nkhw,nk->nhw", activations, weight[targets].to(activations))


def _pooled_activations(forward_pass: ForwardPass, layer: str) -> Tensor:
    """Return what global average pooling averages: the layer's output, or its ReLU (DenseNet's functional one)."""
    linear = forward_pass.model.classifier
    output = forward_pass.activations(layer)
    found = f"{type(forward_pass.model.module).__name__} with {type(linear).__name__}({linear.in_features})"
    if output.dim() == 4 and output.shape[1] == linear.in_features:
        steps: list[Callable[[Tensor], Tensor]] = [lambda x: x, torch.relu]
        for step in steps:
            activations = step(output)
            with torch.no_grad():
                logits = linear(activations.mean(dim=(2, 3))).float()
            size = forward_pass.logits.abs().max().clamp_min(1.0)
            if (
                logits.shape == forward_pass.logits.shape
                and (logits - forward_pass.logits).abs().max() <= TOLERANCE * size
            ):
                return activations
        found = "other steps between the layer and the logits"
    raise UnsupportedModelError(
        "CAM needs a head of global average pooling and one linear layer right behind its layer; "
        f"{forward_pass.model.name} has, behind {layer!r}, {found}. Use grad-cam, which needs no such head"
    )
