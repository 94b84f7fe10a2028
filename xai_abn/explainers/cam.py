"""Class Activation Mapping."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers.base import Explainer, register
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.targets import target_rows, target_scores

#: Relative tolerance of the check that the head is global average pooling and a linear layer, by the largest logit.
TOLERANCE = 1e-3


@register("cam")
class CAM(Explainer):
    """The linear weights of the class, applied at every position: ``M_c(x, y) = sum_k w_ck f_k(x, y)``.

    Signed, in logits: the mean of the map plus the bias of the class is exactly the logit of the class. This identity
    is checked on every pass, so that CAM never explains a head to which it does not apply.

    Source: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, eq. 2.
    As there, without the bias and without a ReLU.
    """

    source = "Zhou et al., CVPR 2016"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the class maps of ``targets``, (N, h, w).

        Raises:
            UnsupportedModelError: the head is not global average pooling followed by one linear layer.
        """
        linear = forward_pass.classifier
        layer = self.layer_of(forward_pass.model)
        output = forward_pass.activations(layer)
        if linear is None:
            problem = "no linear layer that gives the logits"
        elif output.shape[1] != linear.in_features:
            problem = f"{output.shape[1]} channels, and its last linear layer has {linear.in_features} inputs"
        else:
            weights = target_rows(linear.weight.detach(), targets)
            for pooled in (output, output.relu()):  # torchvision's DenseNet pools a functional ReLU of its last layer
                maps = torch.einsum("nkhw,nk->nhw", pooled, weights.to(pooled))
                if _accounts_for_logits(maps, linear, forward_pass, targets):
                    return maps
            problem = "other operations between that layer and the logits"
        raise UnsupportedModelError(
            "CAM needs a head of global average pooling and one linear layer directly after its layer; after "
            f"{layer!r}, {forward_pass.model.name} has {problem}. Use grad-cam, which works with any head"
        )


def _accounts_for_logits(maps: Tensor, linear: nn.Linear, forward_pass: ForwardPass, targets: Tensor) -> bool:
    """Return whether mean(CAM) + bias is the target's logit, for every image."""
    bias = linear.bias
    shift = target_rows(bias.detach().float(), targets) if bias is not None else 0.0
    expected = maps.mean(dim=(1, 2)).float() + shift
    logits = target_scores(forward_pass.logits, targets)
    largest = forward_pass.logits.abs().max().clamp_min(1.0)
    return bool((logits - expected).abs().max() <= TOLERANCE * largest)
