"""Maps that know nothing of the network: what a method must beat before its score means anything."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers.base import Explainer, register
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.seeding import content_generator

#: Side of the maps of the controls that have no resolution of their own.
SIDE = 28


class _Control(Explainer):
    """A map that does not look at the network."""

    class_specific = False
    control = True

    def check(self, model: ModelAdapter) -> None:
        """Refuse a layer by name: there is nothing to read."""
        if self.layer is not None:
            raise UnsupportedModelError(f"{self.name} reads no layer (got {self.layer!r})")

    def layers(self, model: ModelAdapter) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    def layer_of(self, model: ModelAdapter) -> str:
        """Return "" for the record."""
        return ""


@register("centre")
class Centre(_Control):
    """Falls off with the distance from the middle: most photographers put their object there."""

    source = "control: distance from the middle"

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the same map for every picture, (N, 28, 28), in [0, 1]."""
        axis = torch.linspace(-1, 1, SIDE, device=forward_pass.inputs.device)
        distance = (axis[:, None] ** 2 + axis[None] ** 2).sqrt() / 2**0.5
        return (1 - distance).expand(len(targets), -1, -1)


@register("uniform")
class Uniform(_Control):
    """The same everywhere. Flat, so it has no peak and no ranks; its energy is the objects' share of the area."""

    source = "control: 1 everywhere"

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return ones, (N, 28, 28)."""
        return torch.ones(len(targets), SIDE, SIDE, device=forward_pass.inputs.device)


class _Random(_Control):
    """Random values, drawn from the picture's own content, so that each picture always gets the same map."""

    side: ClassVar[int]

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return uniform noise in [0, 1), (N, side, side)."""
        generators = [content_generator(picture) for picture in forward_pass.inputs]
        maps = [torch.rand(self.side, self.side, generator=generator) for generator in generators]
        return torch.stack(maps).to(forward_pass.inputs.device)


@register("random-7")
class Random7(_Random):
    """Random values on a 7x7 grid, the resolution of most networks' last layer."""

    side = 7
    source = "control: noise, 7x7"


@register("random-14")
class Random14(_Random):
    """Random values on a 14x14 grid: specks strewn over the picture, which touch many objects."""

    side = 14
    source = "control: noise, 14x14"


@register("sobel")
class Sobel(_Control):
    """Edges: the magnitude of the picture's Sobel gradient, its channels averaged first. No network involved."""

    source = "control: Sobel edges"

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the magnitudes, (N, H, W), at least 0."""
        grey = forward_pass.inputs.detach().float().mean(dim=1, keepdim=True)
        across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=grey.device).view(1, 1, 3, 3)
        padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
        return (F.conv2d(padded, across) ** 2 + F.conv2d(padded, across.mT) ** 2).sqrt()[:, 0]
