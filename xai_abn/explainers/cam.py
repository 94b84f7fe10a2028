"""Class Activation Mapping."""

from __future__ import annotations

import torch
from torch import Tensor

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

    Of a network that ends in a map of class scores and its mean (SqueezeNet, Network in Network), it is this map.

    Source: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, eq. 2.
    As there, without the bias and without a ReLU. A map of class scores is Lin et al., "Network In Network", ICLR 2014.
    """

    source = "Zhou et al., CVPR 2016"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the class maps of ``targets``, (N, h, w).

        Raises:
            UnsupportedModelError: the head is not global average pooling with one linear layer or 1x1 convolution.
        """
        layer = self.layer_of(forward_pass.model)
        output = forward_pass.activations(layer)
        channels, classes = output.shape[1], forward_pass.logits.shape[1]
        heads = []
        classifier = forward_pass.classifier
        if classifier is not None:
            heads.append((classifier.weight.detach().flatten(1), classifier.bias))
        if channels == classes:
            heads.append((torch.eye(classes, device=output.device), None))
        for weights, bias in heads:
            if weights.shape[1] != channels:
                continue
            rows = target_rows(weights, targets).to(output)
            for pooled in (output, output.relu()):  # torchvision's DenseNet pools a functional ReLU of its last layer
                maps = torch.einsum("nkhw,nk->nhw", pooled, rows)
                if _accounts_for_logits(maps, bias, forward_pass, targets):
                    return maps
        if classifier is None:
            problem = "no linear layer or 1x1 convolution that gives the logits"
        elif channels != classifier.weight.shape[1]:
            problem = f"{channels} channels, and its last linear layer has {classifier.weight.shape[1]} inputs"
        else:
            problem = "other operations between that layer and the logits"
        raise UnsupportedModelError(
            "CAM needs a head of global average pooling and one linear layer or 1x1 convolution directly after its "
            f"layer; after {layer!r}, {forward_pass.model.name} has {problem}. Use grad-cam, which works with any head"
        )


def _accounts_for_logits(maps: Tensor, bias: Tensor | None, forward_pass: ForwardPass, targets: Tensor) -> bool:
    """Return whether mean(CAM) + bias is the target's logit, for every image."""
    shift = target_rows(bias.detach().float(), targets) if bias is not None else 0.0
    expected = maps.mean(dim=(1, 2)).float() + shift
    logits = target_scores(forward_pass.logits, targets)
    largest = forward_pass.logits.abs().max().clamp_min(1.0)
    return bool((logits - expected).abs().max() <= TOLERANCE * largest)
