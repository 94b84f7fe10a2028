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
        """Return the same map for every image, (N, 28, 28), in [0, 1]."""
        axis = torch.linspace(-1, 1, SIDE, device=forward_pass.inputs.device)
        distance = (axis[:, None] ** 2 + axis[None] ** 2).sqrt() / 2**0.5
        return (1 - distance).expand(len(targets), -1, -1)


@register("uniform")
class Uniform(_Baseline):
    """1 everywhere. The map is flat, so it has no peak and no ranks; its energy is the objects' share of the area."""

    source = "baseline: 1 everywhere"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return ones, (N, 28, 28)."""
        return torch.ones(len(targets), SIDE, SIDE, device=forward_pass.inputs.device)


class _Random(_Baseline):
    """Random values seeded by the content of the image, so that an image always gets the same map."""

    side: ClassVar[int]

    @property
    def grid(self) -> str:
        """What the values lie on, in words."""
        return f"{self.side}x{self.side}"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return uniform noise in [0, 1), (N, side, side)."""
        generators = [content_generator(image) for image in forward_pass.inputs]
        maps = [torch.rand(self.side, self.side, generator=generator) for generator in generators]
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
        """Return the magnitudes, (N, H, W), at least 0."""
        gray = forward_pass.inputs.detach().float().mean(dim=1, keepdim=True)
        across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=gray.device).view(1, 1, 3, 3)
        padded = F.pad(gray, (1, 1, 1, 1), mode="replicate")
        return (F.conv2d(padded, across) ** 2 + F.conv2d(padded, across.mT) ** 2).sqrt()[:, 0]
