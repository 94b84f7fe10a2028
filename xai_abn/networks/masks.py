"""The mask branch: for any class, a fine map of what its prediction needs.

The branch reads layers of a trained Attention Branch Network at several resolutions and refines the class map of the
attention branch. Before training its map is the class map, and training can only refine it.

Source: this project; related are Stalder et al., "What You See is What You Classify" (NN-Explainer), NeurIPS 2022, and
Ntrougkas et al., "T-TAME", 2024, which train a mask for all classes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from torch import Tensor, nn

#: A map of scores (h, w), standardized, becomes a mask by ``sigmoid(STEEPNESS * (score - LEVEL))``.
STEEPNESS, LEVEL = 4.0, 1.0
#: The level of masks that are united: each then shows less, and they cover less together.
LEVEL_UNITED = 1.5
#: By how much the share of a class in some cell of the class maps must exceed chance for the class to count as present.
PRESENT = 0.1
#: Largest value of the mask of a class that is nowhere more likely than chance; above 0, so that the map has an order.
_ABSENT = 1e-3
#: Standard deviation at which a map begins to count as flat.
_LEAST = 1e-6


@dataclass(frozen=True)
class MaskDescription:
    """What a mask branch reads of its network, and how wide it is.

    Attributes:
        layers: names of the layers that are read, the finest first.
        channels: number of channels of each.
        width: channels of the branch.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # of checkpoints, which are checked when read

    layers: Annotated[list[Annotated[str, Field(max_length=500)]], Field(min_length=1, max_length=8)]
    channels: Annotated[list[Annotated[int, Field(ge=1, le=100_000)]], Field(min_length=1, max_length=8)]
    width: Annotated[int, Field(ge=1, le=4096)] = 96


class MaskBranch(nn.Module):
    """Refines the class map of any class to a map at twice its resolution or finer.

    Layers are joined from coarse to fine, once for an image. The class enters by its row of the classifier, which
    weighs the joined channels, and by its class map, to a multiple of which the result is added. A further class costs
    little: one linear layer and a narrow convolution.

    Args:
        description: what is read.
        class_channels: C' of the rows of the classifier.
    """

    def __init__(self, description: MaskDescription, class_channels: int) -> None:
        super().__init__()
        self.description, width = description, description.width
        narrow, half = max(8, width // 3), max(8, width // 6)
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in description.channels)
        self.join = nn.ModuleList(_Join(width) for _ in description.channels)
        self.classes = nn.Sequential(nn.Linear(class_channels, width), nn.GELU(), nn.Linear(width, 3 * width))
        self.weigh = nn.Linear(width + 3, narrow)
        last = nn.Conv2d(half, 1, 1, bias=False)
        smooth = nn.Conv2d(narrow, half, 3, padding=1)
        self.decode = nn.Sequential(nn.GELU(), smooth, nn.GELU(), last)
        self.gain = nn.Parameter(torch.ones(()))
        nn.init.zeros_(last.weight)

    def forward(self, features: Sequence[Tensor], class_maps: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """Return standardized scores (N, T, H, W) of T classes of each image.

        Args:
            features: maps (N, C_l, h_l, w_l) of the layers of the description.
            class_maps: of the attention branch, (N, K, h, w).
            rows: of the classifier, (K, C').
            targets: class indices (N, T).
        """
        joined = self._joined(features, (2 * class_maps.shape[2], 2 * class_maps.shape[3]))
        number, several = targets.shape
        size = (joined.shape[2], joined.shape[3])
        evidence, share = _maps_and_shares(class_maps, targets)
        evidence = standardized(evidence)
        given = F.interpolate(torch.cat([evidence, share], dim=1), size, mode="bilinear").unflatten(1, (2, several))
        weighed = self._weighed(joined, rows[targets], given)
        refined = self.decode(weighed.flatten(0, 1)).unflatten(0, (number, several))[:, :, 0]
        return standardized(self.gain * given[:, 0] + refined)

    def _weighed(self, joined: Tensor, rows: Tensor, given: Tensor) -> Tensor:
        """Return a linear function of what is known, (N, T, narrow, H, W).

        Known are the joined channels, scaled and shifted as the class asks, their similarity to a query of the class,
        the class map and the share. All of it is linear in the joined channels, so one product does it for all classes.
        """
        width = joined.shape[1]
        scale, shift, query = self.classes(F.normalize(rows, dim=2)).chunk(3, dim=2)  # (N, T, width) each
        channels, similarity, others = self.weigh.weight.split((width, 1, 2), dim=1)
        weights = channels * (1 + scale[:, :, None]) + similarity * query[:, :, None] / width**0.5
        bias = self.weigh.bias + shift @ channels.T
        flat = torch.einsum("ntow,nwp->ntop", weights, joined.flatten(2)) + bias[..., None]
        flat = flat + torch.einsum("og,ngtp->ntop", others, given.flatten(3))
        weighed: Tensor = flat.unflatten(3, joined.shape[2:])
        return weighed

    def _joined(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return the layers joined from coarse to fine, (N, width, H, W), at least of that size."""
        laterals = [layer(values) for layer, values in zip(self.lateral, features, strict=True)]
        found: Tensor | None = None
        for values, join in zip(reversed(laterals), reversed(self.join), strict=True):
            if found is not None:
                values = values + F.interpolate(found, values.shape[2:], mode="bilinear")
            found = join(values)
        assert found is not None
        if found.shape[2] < size[0] or found.shape[3] < size[1]:
            found = F.interpolate(found, size, mode="bilinear")
        return found


class _Join(nn.Module):
    """A depthwise 3x3 and a 1x1 convolution with group normalization, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.Conv2d(width, width, 1, bias=False)
        )
        self.normalize = nn.GroupNorm(1, width)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (N, width, h, w) of the same size."""
        return F.gelu(self.normalize(maps + self.convolutions(maps)))


def standardized(maps: Tensor) -> Tensor:
    """Return maps (..., h, w) less their mean, by their standard deviation; a flat map becomes 0."""
    centered = maps - maps.mean(dim=(-2, -1), keepdim=True)
    return centered / (centered.square().mean(dim=(-2, -1), keepdim=True) + _LEAST**2).sqrt()


def class_masks(scores: Tensor, class_maps: Tensor, targets: Tensor) -> Tensor:
    """Return masks in [0, 1] of standardized scores (N, T, H, W): dark where the attention branch sees no such class.

    Each is weighted by the geometric mean of its presence in the image and at the position. Without the latter, the
    mask of a small object would light its surroundings, too.

    Args:
        scores: of the mask branch.
        class_maps: of the attention branch, (N, K, h, w).
        targets: class indices (N, T).
    """
    local = presence(class_maps, targets)
    anywhere = local.amax(dim=(2, 3), keepdim=True)
    local = F.interpolate(local, scores.shape[2:], mode="bilinear")
    return torch.sigmoid(STEEPNESS * (scores - LEVEL)) * (anywhere * local).sqrt()


def united_masks(scores: Tensor, class_maps: Tensor, targets: Tensor, attention_map: Tensor | None) -> Tensor:
    """Return the union of the masks of T classes, (N, H, W) in [0, 1].

    Args:
        scores: (N, T, H, W) of the mask branch, standardized.
        class_maps: of the attention branch, (N, K, h, w).
        targets: class indices (N, T).
        attention_map: M (N, 1, h, w), by the root of which the union is weighted; None if the network does not use it.
    """
    anywhere = presence(class_maps, targets).amax(dim=(2, 3), keepdim=True)
    united = (torch.sigmoid(STEEPNESS * (scores - LEVEL_UNITED)) * anywhere).amax(dim=1)
    if attention_map is None:
        return united
    return united * F.interpolate(attention_map, scores.shape[2:], mode="bilinear")[:, 0].sqrt()


def presence(class_maps: Tensor, targets: Tensor) -> Tensor:
    """Return how much of the classes the attention branch sees at each position, (N, T, h, w) in [0.001, 1].

    That is the share that a class has of the softmax over classes, less what chance would give, by ``PRESENT``.
    Standardized scores cannot tell: of a class that is not in the image they have a largest value, too.

    Args:
        class_maps: of the attention branch, (N, K, h, w).
        targets: class indices (N, T).
    """
    _, shares = _maps_and_shares(class_maps, targets)
    return ((shares - 1 / class_maps.shape[1]) / PRESENT).clamp(_ABSENT, 1)


def _maps_and_shares(class_maps: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class maps of targets, and their shares of the softmax over all classes, (N, T, h, w) each."""
    index = targets[:, :, None, None].expand(-1, -1, *class_maps.shape[2:])
    chosen = class_maps.gather(1, index)
    return chosen, (chosen - class_maps.logsumexp(dim=1, keepdim=True)).exp()
