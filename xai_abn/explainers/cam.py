"""Class Activation Mapping."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers.base import Explainer, register
from xai_abn.models.forward_pass import ForwardPass

#: The head counts as GAP + linear if it gives the targets' logits within this share of the largest logit.
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
        linear = forward_pass.model.classifier
        layer = self.layer_of(forward_pass.model)
        output = forward_pass.activations(layer)
        found = (
            f"{linear.in_features} inputs to its last linear layer but a layer output of shape {tuple(output.shape)}"
        )
        if output.shape[1] == linear.in_features and len(linear.weight) == forward_pass.logits.shape[1]:
            weights = forward_pass.weights(targets, linear.weight.detach())
            for pooled in (output, output.relu()):  # torchvision's DenseNet pools a functional ReLU of its last layer
                maps = torch.einsum("nkhw,nk->nhw", pooled, weights.to(pooled))
                if _accounts_for_logits(maps, forward_pass, targets):
                    return maps
            found = "other steps between that layer and the logits"
        raise UnsupportedModelError(
            "CAM needs a head of global average pooling and one linear layer right behind its layer; "
            f"{forward_pass.model.name} has, behind {layer!r}, {found}. Use grad-cam, which needs no such head"
        )


def _accounts_for_logits(maps: Tensor, forward_pass: ForwardPass, targets: Tensor) -> bool:
    """Return whether mean(CAM) + bias is the target's logit, for every image."""
    bias = forward_pass.model.classifier.bias
    shift = forward_pass.weights(targets, bias.detach().float()) if bias is not None else 0.0
    expected = maps.mean(dim=(1, 2)).float() + shift
    logits = forward_pass.scores(forward_pass.logits, targets)
    largest = forward_pass.logits.abs().max().clamp_min(1.0)
    return bool((logits - expected).abs().max() <= TOLERANCE * largest)
