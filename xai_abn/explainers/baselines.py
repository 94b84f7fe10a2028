"""Baselines: maps that ignore the network. A method is worth its cost only if it scores better than they do."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from xai_abn.explainers.base import Explainer, register
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.seeding import content_generator

#: Side of the maps of baselines that have no resolution of their own.
SIDE = 28


class _Baseline(Explainer):
    """A map that ignores the network."""

    class_specific = False
    baseline = True
    reads_layer = False
    no_graph = "it ignores the network"

    @property
    def grid(self) -> str:
        """What the values lie on, in words."""
        return f"{SIDE}x{SIDE}"

    def layer_of(self, model: ModelAdapter) -> str:
        """Return ``""``: nothing of the network is read."""
        return ""


@register("center")
class Center(_Baseline):
    """Decreases with the distance from the center of the image, where photographers tend to place the object."""

    source = "baseline: distance from the center"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the same map for every image, (N, 28, 28) or (N, 28, 28, 28), in [0, 1]."""
        axis = torch.linspace(-1, 1, SIDE, device=forward_pass.inputs.device)
        axes = torch.meshgrid(*[axis] * len(forward_pass.size), indexing="ij")
        distance: Tensor = torch.stack(axes).square().sum(dim=0).sqrt() / len(axes) ** 0.5
        return (1 - distance).expand(len(targets), *distance.shape)


@register("uniform")
class Uniform(_Baseline):
    """1 everywhere. The map is flat, so it has no peak and no ranks; its energy is the objects' share of the area."""

    source = "baseline: 1 everywhere"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return ones, (N, 28, 28) or (N, 28, 28, 28)."""
        return torch.ones(len(targets), *[SIDE] * len(forward_pass.size), device=forward_pass.inputs.device)


class _Random(_Baseline):
    """Random values seeded by the content of the image, so that an image always gets the same map."""

    side: ClassVar[int]

    @property
    def grid(self) -> str:
        """What the values lie on, in words."""
        return f"{self.side}x{self.side}"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return uniform noise in [0, 1), (N, side, side) or (N, side, side, side)."""
        generators = [content_generator(image) for image in forward_pass.inputs]
        maps = [torch.rand([self.side] * len(forward_pass.size), generator=generator) for generator in generators]
        return torch.stack(maps).to(forward_pass.inputs.device)


@register("random-7")
class Random7(_Random):
    """Random values on a 7x7 grid, the resolution of the last layer of most networks."""

    side = 7
    source = "baseline: noise, 7x7"


@register("random-14")
class Random14(_Random):
    """Random values on a 14x14 grid: small spots all over the image, which touch many objects."""

    side = 14
    source = "baseline: noise, 14x14"


@register("sobel")
class Sobel(_Baseline):
    """Edges: the magnitude of the Sobel gradient of the image, averaged over the channels first."""

    source = "baseline: Sobel edges"

    @property
    def grid(self) -> str:
        """What the values lie on, in words."""
        return "input"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the magnitudes, (N, H, W) or (N, D, H, W), at least 0."""
        gray = forward_pass.inputs.detach().float().mean(dim=1, keepdim=True)
        axes = len(forward_pass.size)
        convolve = F.conv2d if axes == 2 else F.conv3d
        edge, even = gray.new_tensor([-1.0, 0, 1]), gray.new_tensor([1.0, 2, 1])
        kernel = edge
        for _ in range(axes - 1):
            kernel = even[(...,) + (None,) * kernel.dim()] * kernel  # edges across the last axis
        padded = F.pad(gray, (1, 1) * axes, mode="replicate")
        found = [convolve(padded, kernel.transpose(axis, -1)[None, None]) ** 2 for axis in range(-1, -1 - axes, -1)]
        return torch.stack(found).sum(dim=0).sqrt()[:, 0]
