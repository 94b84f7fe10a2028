"""Grad-CAM and its variants: channels weighted by gradients, from one pass and one partial backward pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.explainers.base import Count, Explainer, LayerNames, register
from xai_abn.heatmaps import upsample
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.targets import target_scores


def weighted_sum(activations: Tensor, weights: Tensor) -> Tensor:
    """Return ``sum_k w_k A_k`` (N, ...) of activations (N, C, ...) and weights (N, C)."""
    return torch.einsum("nk...,nk->n...", activations, weights)


def positions(values: Tensor) -> tuple[int, ...]:
    """Return the axes of the positions of values (N, C, h, w) or (N, C, d, h, w)."""
    return tuple(range(2, values.dim()))


def largest_of(maps: Sequence[Tensor]) -> Tensor:
    """Return the largest of maps (N, ...) of at least 0 at each position of the finest, each scaled to [0, 1]."""
    size = max(tuple(m.shape[1:]) for m in maps)
    found = torch.stack([upsample(m, size) for m in maps])
    peaks = found.amax(dim=positions(found), keepdim=True)
    return (found / torch.where(peaks > 0, peaks, 1.0)).amax(dim=0)


class GradientCAM(Explainer):
    """A map computed from the activations A of a layer and the gradients G of the score, both (N, C, h, w).

    With several ``layers``, such as the stages of a backbone, each map is enlarged to the largest and divided by its
    largest value, and at each position the largest counts. So small objects show, which only fine layers see, beside
    large ones.

    Source: Jiang et al., "LayerCAM", IEEE TIP 2021, section III-C, without the tanh of eq. 9 that lifts the values of
    shallow layers by up to two; as in ultralytics 8.4.

    Of volumes and clips, they are (N, C, d, h, w) and the maps (N, d, h, w).
    """

    needs_gradient = True
    no_graph = ""

    layers: LayerNames = Field(None, description="Names of several layers, joined by '+', whose maps are combined.")

    def check(self, model: ModelAdapter) -> None:
        """Refuse a layer beside several, and what :meth:`Explainer.check` does."""
        if self.layer is not None and self.layers is not None:
            raise InvalidInputError(f"{self.name} takes layer or layers, got both; leave one out")
        super().check(model)

    def layer_of(self, model: ModelAdapter) -> str:
        """Return the last of the layers."""
        return self.layers[-1] if self.layers else super().layer_of(model)

    def layers_read(self, model: ModelAdapter) -> tuple[str, ...]:
        """Return the layers whose maps are combined."""
        return self.layers or super().layers_read(model)

    @property
    def grid(self) -> str:
        """What the values lie on, in words."""
        return "finest layer" if self.layers else super().grid

    @property
    def options(self) -> dict[str, Any]:
        """All options that affect the result; without ``layers`` where none are given, as in runs from before them."""
        return {name: value for name, value in super().options.items() if (name, value) != ("layers", None)}

    @property
    def cost(self) -> str:
        """Passes beyond the shared one, in words."""
        return f"{len(self.layers)} partial backward" if self.layers else super().cost

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, h, w); at least 0 if the method has a ReLU, and in [0, 1] of several."""
        layers = self.layers_read(forward_pass.model)
        maps = [self.combine(forward_pass.activations(n), forward_pass.gradients(n, targets)) for n in layers]
        return maps[0] if len(maps) == 1 else largest_of(maps)

    @abstractmethod
    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return maps (N, h, w) from activations and gradients (N, C, h, w)."""


@register("grad-cam")
class GradCAM(GradientCAM):
    """Channels weighted by their mean gradient: ``ReLU(sum_k a_k A_k)``, ``a_k = mean_ij dy_c / dA_k,ij``.

    ``y_c`` is the logit, before softmax. On a network with GAP and one linear layer this is
    ``ReLU(CAM) / (h w)``.

    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017, eq. 1 and 2.
    """

    source = "Selvaraju et al., ICCV 2017"

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return ``ReLU(sum_k mean(G_k) A_k)``."""
        return weighted_sum(activations, gradients.mean(dim=positions(gradients))).relu()


@register("grad-cam++")
class GradCAMPlusPlus(GradientCAM):
    """Channels weighted by a weighted sum of their positive gradients, so that several objects of a class count.

    ``w_k = sum_ij a_ij ReLU(G_ij)`` with ``a = G^2 / (2 G^2 + G^3 sum A)``, which is ``1 / (2 + G sum A)`` where G is
    not 0. Written like that, no constant has to be added to the denominator. (grad-cam 1.5 adds 1e-6, which dominates
    the denominator where gradients are below a thousandth; torchcam 0.5 does not divide at all.)

    Source: Chattopadhyay et al., "Grad-CAM++", WACV 2018, eq. 19, for scores passed through an exponential.
    """

    source = "Chattopadhyay et al., WACV 2018"

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return ``ReLU(sum_k w_k A_k)``."""
        positive, axes = gradients.relu(), positions(gradients)
        share = positive / (2 + positive * activations.sum(dim=axes, keepdim=True))
        return weighted_sum(activations, torch.where(positive > 0, share, 0.0).sum(dim=axes)).relu()


@register("xgrad-cam")
class XGradCAM(GradientCAM):
    """Channels weighted by the mean of their gradients, each in proportion to the activation there.

    ``w_k = sum_ij G_ij A_ij / sum A_k``; a channel that sums to 0 has weight 0.

    Source: Fu et al., "Axiom-based Grad-CAM", BMVC 2020, eq. 8.
    """

    source = "Fu et al., BMVC 2020"

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return ``ReLU(sum_k w_k A_k)``."""
        axes = positions(gradients)
        total = activations.sum(dim=axes)
        # a divisor of 0 is replaced before dividing, since the derivative of what is masked afterwards would be NaN
        share = (gradients * activations).sum(dim=axes) / torch.where(total == 0, 1.0, total)
        return weighted_sum(activations, torch.where(total == 0, 0.0, share)).relu()


@register("hires-cam")
class HiResCAM(GradientCAM):
    """Activation times gradient, summed over channels: ``sum_k G_k * A_k``. Signed.

    Nothing is averaged, so on a network that ends in one linear layer the map sums to the score minus its bias.

    Source: Draelos and Carin, "Use HiResCAM instead of Grad-CAM", 2020, eq. 7. No ReLU, as there; grad-cam adds one.
    """

    source = "Draelos and Carin, 2020"

    def check(self, model: ModelAdapter) -> None:
        """Refuse several layers, and what :meth:`GradientCAM.check` does."""
        if self.layers is not None:
            raise UnsupportedModelError(
                f"{self.name} has negative values, which the largest of several layers would hide; use "
                "grad-cam-elementwise with layers, which is its positive part"
            )
        super().check(model)

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return the sum over channels of gradient times activation."""
        return (gradients * activations).sum(dim=1)


@register("grad-cam-elementwise")
class GradCAMElementwise(GradientCAM):
    """The positive products of activation and gradient: ``sum_k ReLU(G_k * A_k)``.

    Source: Pillai and Pirsiavash, "Explainable Models with Consistent Interpretations", AAAI 2021, section 3.
    """

    source = "Pillai and Pirsiavash, AAAI 2021"

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return the sum over channels of the positive products."""
        return (gradients * activations).relu().sum(dim=1)


@register("layer-cam")
class LayerCAM(GradientCAM):
    """Each position weighted by its own positive gradient: ``ReLU(sum_k ReLU(G_k) * A_k)``. Also works in early layers.

    Source: Jiang et al., "LayerCAM", IEEE TIP 2021, eq. 6 and 7.
    """

    source = "Jiang et al., TIP 2021"

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return the positive part of the sum over channels of positive gradient times activation."""
        return (gradients.relu() * activations).sum(dim=1).relu()


@register("finer-cam")
class FinerCAM(GradCAM):
    """Grad-CAM of the score of the class minus that of the most similar classes: what sets it apart from them.

    The score is ``y_c - strength * mean(y_d)`` over the ``references`` classes d with the closest logits.

    Source: Zhang et al., "Finer-CAM", CVPR 2025; defaults of torchcam 0.5. (grad-cam 1.5 weights the classes by
    probability and also differentiates that weight.)
    """

    source = "Zhang et al., CVPR 2025"

    references: Count = Field(3, description="Number of similar classes to compare with.")
    strength: float = Field(0.6, description="Weight of the comparison; 0 gives Grad-CAM.")

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps, (N, h, w), at least 0."""
        logits = forward_pass.logits
        if not targets.is_floating_point() and logits.shape[1] > 1:
            distance = (logits - target_scores(logits, targets)[:, None]).abs()
            distance = distance.scatter(1, targets.to(logits.device)[:, None], float("inf"))
            closest = distance.topk(min(self.references, logits.shape[1] - 1), dim=1, largest=False).indices
            direction = torch.zeros_like(logits).scatter_(1, closest, -self.strength / closest.shape[1])
            targets = direction.scatter_(1, targets.to(logits.device)[:, None], 1.0)
        return super().compute(forward_pass, targets)


@register("shapley-cam")
class ShapleyCAM(Explainer):
    """Channels weighted by their gradient minus half its change along the activations: ``mean(G - H A / 2)``.

    H is the second derivative of the score. With a linear head it is 0, and the method equals Grad-CAM. Attention is
    computed without fused kernels, which have no second derivative.

    Source: Cai, "CAMs as Shapley Value-based Explainers", 2025, eq. 14.
    """

    needs_gradient = True
    needs_attention = True
    no_graph = ""
    source = "Cai, The Visual Computer 2025"

    @property
    def cost(self) -> str:
        """Passes beyond the shared one, in words."""
        return "2 partial backward"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, h, w), at least 0."""
        layer = self.layer_of(forward_pass.model)
        activations, gradients = forward_pass.activations(layer), forward_pass.gradients(layer, targets)
        weights = gradients - 0.5 * forward_pass.curvature(layer, targets)
        return weighted_sum(activations, weights.mean(dim=positions(weights))).relu()
