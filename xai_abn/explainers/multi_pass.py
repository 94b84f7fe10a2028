"""CAM methods that look more than once: at noisy copies of a picture, or at several layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.explainers.base import Explainer, register
from xai_abn.explainers.grad_cam import GradCAMPlusPlus, _GradientCAM, weighted_sum
from xai_abn.heatmaps import unit_range, upsample
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.networks.layout import Layout
from xai_abn.seeding import seeded


@register("smooth-grad-cam++")
class SmoothGradCAMPlusPlus(Explainer):
    """Grad-CAM++ with its derivatives averaged over noisy copies of the picture.

    ``a = D2 / (2 D2 + D3 sum A)`` and ``w_k = sum_ij a ReLU(D1)``, D1 to D3 being the means of the gradient's first to
    third powers over the copies, A the activations of the clean picture.

    Args:
        layer: see :class:`Explainer`.
        samples: noisy copies; each costs a forward and a partial backward.
        deviation: of the noise, in normalised units.
        seed: of the noise, which is the same for every picture.

    Source: Omeiza et al., "Smooth Grad-CAM++", 2019, with D2 in the numerator as in Grad-CAM++ (the paper has D1).
    torchcam 0.5 takes the last copy's gradient for D1.
    """

    needs_gradient = True
    source = "Omeiza et al., 2019"

    def __init__(self, layer: str | None = None, *, samples: int = 8, deviation: float = 0.3, seed: int = 0) -> None:
        super().__init__(layer)
        if samples < 1:
            raise InvalidInputError(f"samples must be at least 1, got {samples}")
        self.samples, self.deviation, self.seed = samples, deviation, seed

    @property
    def parameters(self) -> dict[str, Any]:
        """The noise."""
        return {"samples": self.samples, "deviation": self.deviation, "seed": self.seed}

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, h, w), at least 0."""
        layer, inputs = self.layer_of(forward_pass.model), forward_pass.inputs
        with seeded(self.seed):
            noise = torch.randn(self.samples, *inputs.shape[1:]).to(inputs) * self.deviation
        powers = [torch.zeros_like(forward_pass.activations(layer)) for _ in range(3)]
        for sample in noise:
            noisy = forward_pass.model.forward_pass(inputs + sample, [layer], gradients=True)
            gradient = noisy.gradients(layer, targets)
            for power, total in enumerate(powers, 1):
                total += gradient**power / self.samples
        first, second, third = powers
        activations = forward_pass.activations(layer)
        bottom = 2 * second + third * activations.sum(dim=(2, 3), keepdim=True)
        share = torch.where(bottom == 0, 0.0, second / bottom)
        return weighted_sum(activations, (share * first.relu()).sum(dim=(2, 3))).relu()


@register("refine-cam")
class RefineCAM(Explainer):
    """Maps of several layers, each scaled to [0, 1], enlarged to the largest and multiplied: fine and specific.

    Args:
        layer: the last of the layers; default: the model's target layer.
        layers: all of them, by name; default: that one and the last layers of the two resolutions before.
        base: the method whose maps are multiplied.

    Raises:
        InvalidInputError: fewer than two ``layers``.

    Source: "How to Evaluate and Refine your CAM", 2026 (arXiv 2605.14641), with Grad-CAM++ as there.
    """

    needs_gradient = True
    source = "arXiv 2605.14641, 2026"

    def __init__(
        self,
        layer: str | None = None,
        *,
        layers: tuple[str, ...] | None = None,
        base: type[_GradientCAM] = GradCAMPlusPlus,
    ) -> None:
        super().__init__(layer)
        if layers is not None and len(layers) < 2:
            raise InvalidInputError(f"refine-cam needs at least two layers, got {', '.join(layers) or 'none'}")
        self.base, self._layers = base, layers

    @property
    def parameters(self) -> dict[str, Any]:
        """The method multiplied."""
        return {"base": self.base.name, "layers": list(self._layers) if self._layers else "last of three resolutions"}

    def layer_of(self, model: ModelAdapter) -> str:
        """Return the last of the layers."""
        return self._layers[-1] if self._layers else super().layer_of(model)

    def layers(self, model: ModelAdapter) -> tuple[str, ...]:
        """Return the layers multiplied.

        Raises:
            UnsupportedModelError: the network has one resolution only, and no layers were named.
        """
        if self._layers:
            return self._layers
        last = self.layer_of(model)
        chosen: dict[tuple[int, int], str] = {}
        for output in model.spatial_layers():
            if isinstance(output.layout, Layout):
                chosen[output.layout.grid] = output.name
            if output.name == last:
                break
        names = tuple(sorted(chosen.values(), key=list(chosen.values()).index)[-3:-1])
        if not names or (chosen and last not in chosen.values()):
            raise UnsupportedModelError(
                f"refine-cam multiplies maps of several resolutions and {model.name} has one; name layers= yourself"
            )
        return (*names, last)

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, h, w) at the largest layer's resolution, in [0, 1]."""
        maps = [self.base(name).explain(forward_pass, targets).float() for name in self.layers(forward_pass.model)]
        size = max((m.shape[1], m.shape[2]) for m in maps)
        return torch.stack([upsample(unit_range(m), size) for m in maps]).prod(dim=0)
