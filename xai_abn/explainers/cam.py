"""Class Activation Mapping."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers.base import Explainer, register
from xai_abn.explainers.grad_cam import positions, weighted_sum
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.targets import target_rows

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

    no_graph = ""
    maps_read = ()
    source = "Zhou et al., CVPR 2016"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the class maps of ``targets``, (N, h, w).

        Raises:
            UnsupportedModelError: the head is not global average pooling with one linear layer or 1x1 convolution.
        """
        head = self.head(forward_pass)
        output = head.pooled(forward_pass.activations(self.layer_of(forward_pass.model)))
        rows = head.rows(output) if forward_pass.create_graph else head.rows(output).detach()
        return weighted_sum(output, target_rows(rows, targets))

    def head(self, forward_pass: ForwardPass) -> Head:
        """Return how the logits come from the layer.

        Raises:
            UnsupportedModelError: not by global average pooling with one linear layer or 1x1 convolution.
        """
        layer = self.layer_of(forward_pass.model)
        output = forward_pass.activations(layer)
        channels, classes = output.shape[1], forward_pass.logits.shape[1]
        classifier = forward_pass.classifier
        heads = []
        if classifier is not None and classifier.weight.shape[1] == channels:
            heads += [Head(classifier, False), Head(classifier, True)]
        if channels == classes:
            heads += [Head(None, False), Head(None, True)]
        for head in heads:
            if head.gives(output, forward_pass.logits):
                return head
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


@dataclass(frozen=True, eq=False)
class Head:
    """How logits come from a layer's output (N, C, h, w): by its mean and the rows of a linear layer.

    Attributes:
        classifier: the linear layer or 1x1 convolution; None if the output is a map of class scores itself.
        rectified: whether a ReLU without a module is in front of the mean, as in torchvision's DenseNet.
    """

    classifier: nn.Linear | nn.Conv2d | nn.Conv3d | None
    rectified: bool

    def pooled(self, output: Tensor) -> Tensor:
        """Return what is averaged, (N, C, h, w)."""
        return output.relu() if self.rectified else output

    def rows(self, output: Tensor) -> Tensor:
        """Return the weights (K, C) of the classes, in the precision of the output."""
        if self.classifier is None:
            return torch.eye(output.shape[1]).to(output)
        return self.classifier.weight.flatten(1).to(output)

    def gives(self, output: Tensor, logits: Tensor) -> bool:
        """Return whether the mean of the maps of every class, plus its bias, is its logit, for every image."""
        output = output.float()
        found = self.pooled(output.detach()).mean(dim=positions(output)) @ self.rows(output).detach().T
        if self.classifier is not None and self.classifier.bias is not None:
            found = found + self.classifier.bias.detach().float()
        shown = logits.isfinite()  # a masked class has minus infinity
        largest = logits[shown].abs().max().clamp_min(1.0)
        return bool((logits - found)[shown].abs().max() <= TOLERANCE * largest)
