"""CAM methods that combine several maps: of noisy copies of an image, or of several layers."""

from __future__ import annotations

import torch
from pydantic import Field, field_validator
from torch import Tensor

from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.explainers.base import Count, Explainer, LayerNames, Seed, get, register
from xai_abn.explainers.grad_cam import GradientCAM, positions, weighted_sum
from xai_abn.heatmaps import at_least_float32, unit_range, upsample
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.networks.layout import Layout
from xai_abn.seeding import seeded


@register("smooth-grad-cam++")
class SmoothGradCAMPlusPlus(Explainer):
    """Grad-CAM++ with its derivatives averaged over noisy copies of the image.

    ``a = D2 / (2 D2 + D3 sum A)`` and ``w_k = sum_ij a ReLU(D1)``, where D1 to D3 are the means of the first to third
    powers of the gradient over the copies, and A the activations of the clean image. Each copy costs a forward and a
    partial backward pass.

    Source: Omeiza et al., "Smooth Grad-CAM++", 2019, with D2 in the numerator as in Grad-CAM++ (the paper has D1).
    torchcam 0.5 uses the gradient of the last copy for D1.
    """

    needs_gradient = True
    no_graph = "it asks the network again for each noisy copy, without a graph"
    source = "Omeiza et al., 2019"

    samples: Count = Field(8, description="Number of noisy copies of the image.")
    deviation: float = Field(
        0.3, ge=0, description="Standard deviation of the noise, in units of the normalized input."
    )
    seed: Seed = Field(0, description="Seed of the noise, which is the same for every image.")

    @property
    def cost(self) -> str:
        """Passes beyond the shared one, in words."""
        return f"{self.samples} forward and partial backward"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, h, w), at least 0."""
        layer, inputs = self.layer_of(forward_pass.model), forward_pass.inputs
        with seeded(self.seed):
            noise = torch.randn(self.samples, *inputs.shape[1:]).to(inputs) * self.deviation
        powers = [torch.zeros_like(forward_pass.activations(layer)) for _ in range(3)]
        for sample in noise:
            noisy = ForwardPass(forward_pass.model, inputs + sample, [layer], gradients=True)
            gradient = noisy.gradients(layer, targets)
            for power, total in enumerate(powers, 1):
                total += gradient**power / self.samples
        first, second, third = powers
        activations = forward_pass.activations(layer)
        axes = positions(activations)
        denominator = 2 * second + third * activations.sum(dim=axes, keepdim=True)
        share = torch.where(denominator == 0, 0.0, second / denominator)
        return weighted_sum(activations, (share * first.relu()).sum(dim=axes)).relu()


@register("refine-cam")
class RefineCAM(Explainer):
    """Maps of several layers, each scaled to [0, 1], enlarged to the largest and multiplied: fine and specific.

    By default, the layers are the given layer (or the target layer) and the last layers of the two resolutions before.

    Source: "How to Evaluate and Refine your CAM", 2026 (arXiv 2605.14641), with Grad-CAM++ as there.
    """

    needs_gradient = True
    no_graph = ""
    source = "arXiv 2605.14641, 2026"

    layers: LayerNames = Field(
        None, description="Names of all layers, joined by '+'; default: the last layers of three resolutions."
    )
    base: str = Field("grad-cam++", description="Name of the gradient method whose maps are multiplied.")

    @field_validator("base")
    @classmethod
    def _check_base(cls, value: str) -> str:
        if not issubclass(get(value), GradientCAM):
            raise InvalidInputError(f"base must be a method that combines activations and gradients, got {value!r}")
        return value

    @property
    def grid(self) -> str:
        """What the values lie on, in words."""
        return "finest layer"

    def layer_of(self, model: ModelAdapter) -> str:
        """Return the last of the layers."""
        return self.layers[-1] if self.layers else super().layer_of(model)

    def layers_read(self, model: ModelAdapter) -> tuple[str, ...]:
        """Return the layers whose maps are multiplied.

        Raises:
            UnsupportedModelError: the network has only one resolution, and no layers were named.
        """
        if self.layers:
            return self.layers
        last = self.layer_of(model)
        layer_by_grid: dict[tuple[int, ...], str] = {}
        for output in model.spatial_layers():
            if isinstance(output.layout, Layout):
                layer_by_grid[output.layout.grid] = output.name
            if output.name == last:
                break
        layers = tuple(layer_by_grid.values())
        if len(layers) < 2 or last not in layers:
            raise UnsupportedModelError(
                f"{self.name} multiplies maps of several resolutions and {model.name} has one; name the layers with "
                "the option layers"
            )
        return (*layers[-3:-1], last)

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, h, w) at the resolution of the largest layer, in [0, 1]."""
        method = get(self.base)
        layers = self.layers_read(forward_pass.model)
        maps = [method(layer=layer).compute(forward_pass, targets) for layer in layers]
        size = max(tuple(m.shape[1:]) for m in maps)
        return torch.stack([upsample(unit_range(at_least_float32(m)), size) for m in maps]).prod(dim=0)
