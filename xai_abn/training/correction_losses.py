"""Losses of maps that differ from where a person says that a classifier should look.

Every loss takes maps (N, h, w) in [0, 1] and :class:`Marks`, and gives (N,) numbers of at least 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Added to sums that are divided by.
_SMALL = 1e-6
#: Steepness of the soft threshold of :func:`tolerant`, and the width of its blur in cells.
_STEEPNESS = 5.0
_BLUR = 3


class Marks(NamedTuple):
    """Where the maps of a batch should be, and where not.

    Attributes:
        look: (N, h, w) share of each cell in [0, 1] where the map may be.
        avoid: (N, h, w) share of each cell where it must not be.
        told: (N,) bool, whether a person marked where to look. Then the map should fill ``look``; otherwise ``look`` is
            all that is not to be avoided, and the map may be anywhere in it.
    """

    look: Tensor
    avoid: Tensor
    told: Tensor

    @classmethod
    def of(cls, masks: Tensor, size: Sequence[int]) -> Marks:
        """Return the marks on a grid.

        Without marks of where not to look, this is everything but where to look, and the other way round. Cells with
        neither of two kinds of marks do not count.

        Args:
            masks: (N, 2, H, W) of 0 and 1: where to look, and where not to.
            size: (h, w) of the maps.
        """
        look, avoid = F.adaptive_avg_pool2d(masks.float(), (size[0], size[1])).unbind(1)
        told, forbidden = masks.bool().flatten(2).any(dim=2).unbind(1)
        rest_look, rest_avoid = (~told)[:, None, None], (told & ~forbidden)[:, None, None]
        return cls(torch.where(rest_look, 1 - avoid, look), torch.where(rest_avoid, 1 - look, avoid), told)


def scaled(maps: Tensor) -> Tensor:
    """Return the positive part of maps (N, h, w) divided by its largest value, or 0 where nothing is positive."""
    positive = F.relu(maps)  # without a slope at 0, so a map without anything positive has none
    return positive / positive.amax(dim=(1, 2), keepdim=True).clamp_min(_SMALL)


def energy(maps: Tensor, marks: Marks) -> Tensor:
    """Return the share of the map's sum that is not where to look: ``1 - sum(look * M) / sum((look + avoid) * M)``.

    Source: Rao et al., "Studying How to Efficiently and Effectively Guide Models with Explanations", ICCV 2023,
    where ``look`` is the boxes and everything else is ``avoid``. As in the released code, a map of 0 loses 1.
    """
    inside, outside = _sum(marks.look * maps), _sum(marks.avoid * maps)
    return 1 - inside / (inside + outside).clamp_min(_SMALL)


def kl(maps: Tensor, marks: Marks) -> Tensor:
    """Return the Kullback-Leibler divergence, in nats, of the map's softmax over positions from the mask.

    ``sum(P log(P / Q))`` with ``P = look / sum(look)`` and ``Q = softmax(M)`` over the cells that have a mark. Where a
    person only marked what to avoid, ``-log sum(look * Q)``: the divergence from the nearest distribution without it.

    Source: ryanlyang/Waterbird_Runs (unpublished, 2026), which supervises the CAM of the true class in this way, with
    0 as the least value of each map.
    """
    known = (marks.look + marks.avoid).flatten(1)
    logs = maps.flatten(1) + known.clamp_min(_SMALL).log()
    logs = logs.log_softmax(dim=1)
    mask = marks.look.flatten(1)
    target = mask / mask.sum(dim=1, keepdim=True).clamp_min(_SMALL)
    divergence = (torch.xlogy(target, target) - target * logs).sum(dim=1)
    free = -(mask * logs.exp()).sum(dim=1).clamp_min(_SMALL).log()
    return torch.where(marks.told, divergence, free).clamp_min(0)


def l1(maps: Tensor, marks: Marks) -> Tensor:
    """Return the mean absolute difference of the map from the mask, over the cells that have a mark.

    Source: Gao et al., "Aligning Eyes between Humans and Deep Neural Network through Interactive Attention Alignment"
    (GRADIA), 2022; without their weights of factual and counterfactual attention.
    """
    fill, avoid, known = _wanted(marks)
    return _sum(fill * (1 - maps).abs() + avoid * maps.abs()) / known


def tolerant(maps: Tensor, marks: Marks) -> Tensor:
    """Return a loss that forgives sloppy borders: of a thresholded map, and of the distance from a blurred mask.

    The mean of ``|tanh(5 (M - a)) - F|`` over the cells that have a mark, where F is 1 where to look and -1 where not
    to, plus the mean of ``|M - blur(F+)|`` over all cells. The threshold ``a`` is the value of the map that agrees with
    most marks, counted with equal weight for both kinds.

    Source: Gao et al., "RES: A Robust Framework for Guiding Visual Explanation", KDD 2022, its fixed imputation
    (RES-G) with slack 0. As in the released code, the blur is a 3x3 Gaussian, scaled to a largest value of 1. Here the
    threshold is found for each map and not for a batch, so the loss of an image does not depend on others; where a
    person only marked what to avoid, any high threshold would agree, and it is 0.5.
    """
    fill, avoid, known = _wanted(marks)
    threshold = torch.where(marks.told, _threshold(maps.detach(), fill, avoid), 0.5)
    lit = torch.tanh(_STEEPNESS * (maps - threshold[:, None, None]))
    sides = _sum(fill * (lit - 1).abs() + avoid * (lit + 1).abs()) / known
    blurred = _blurred(fill)
    distance = torch.where(marks.told, (maps - blurred).abs().mean(dim=(1, 2)), 0.0)
    return sides + distance


def abn(maps: Tensor, marks: Marks) -> Tensor:
    """Return the distance ``||M' - M||_2`` of the map from the map as a person edits it.

    M' is 1 where to look, 0 where not to, and M elsewhere.

    Source: Mitsuhara et al., "Embedding Human Knowledge into Deep Neural Network via Attention Map", 2019
    (arXiv:1905.03540). The weight gamma is the setting ``correction_weight``.
    """
    fill, avoid, _ = _wanted(marks)
    squares = _sum((fill * (1 - maps) - avoid * maps).square())
    return (squares + _SMALL**2).sqrt() - _SMALL  # the root has no slope at 0


def right_reasons(gradients: Tensor, masks: Tensor) -> Tensor:
    """Return the squared gradients where not to look, summed over positions and channels.

    Args:
        gradients: (N, C, H, W) of the sum of all classes' log-probabilities by the pixels.
        masks: (N, 2, H, W) as of :meth:`Marks.of`.

    Source: Ross et al., "Right for the Right Reasons", IJCAI 2017: the second term of the loss.
    """
    marks = Marks.of(masks, gradients.shape[2:])
    return (marks.avoid[:, None] * gradients).square().sum(dim=(1, 2, 3))


def counter_examples(pixels: Tensor, masks: Tensor, generator: torch.Generator) -> Tensor:
    """Return copies of images with noise pasted where the network should not look.

    A network trained with the same class on such copies learns that nothing there tells the class.

    Args:
        pixels: (N, 3, H, W) uint8.
        masks: (N, 2, H, W) as of :meth:`Marks.of`.
        generator: random numbers, uniform for each pixel and channel.

    Source: Teso and Kersting, "Explanatory Interactive Machine Learning", AIES 2019 (CAIPI); for images Schramowski et
    al., Nature Machine Intelligence 2020.
    """
    noise = torch.randint(256, pixels.shape, generator=generator, dtype=torch.uint8).to(pixels.device)
    marks = Marks.of(masks, pixels.shape[2:])
    return torch.where(marks.avoid[:, None] > 0.5, noise, pixels)


def backgrounds(pixels: Tensor, masks: Tensor, generator: torch.Generator) -> Tensor:
    """Return copies of images in which what is around the marked part comes from another image of the batch.

    The marked part of the other image is painted over with the mean color of its rest. A network trained with the same
    class on such copies learns that no background tells the class.

    Args:
        pixels: (N, 3, H, W) uint8.
        masks: (N, 2, H, W) as of :meth:`Marks.of`.
        generator: random numbers, which say whose background an image gets.

    Source: images with other backgrounds as in Xiao et al., "Noise or Signal: The Role of Image Backgrounds in Object
    Recognition", ICLR 2021 (Mixed-Rand), from marks.
    """
    marks, number = Marks.of(masks, pixels.shape[2:]), len(pixels)
    part = (marks.look > 0.5)[:, None]
    rest = (~part).float()
    mean = (pixels * rest).sum(dim=(2, 3), keepdim=True) / rest.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    without = torch.where(part, mean.round().to(torch.uint8), pixels)
    shift = int(torch.randint(1, number, (1,), generator=generator)) if number > 1 else 0
    return torch.where(marks.avoid[:, None] > 0.5, without.roll(shift, 0), pixels)


#: Losses of maps by name.
MAP_LOSSES: dict[str, Callable[[Tensor, Marks], Tensor]] = {
    "energy": energy,
    "kl": kl,
    "l1": l1,
    "tolerant": tolerant,
    "abn": abn,
}
#: Name of the loss of gradients by the pixels.
RRR = "rrr"
#: Images that are added in place of a loss of maps, by name.
COPIES: dict[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]] = {
    "counter-examples": counter_examples,
    "backgrounds": backgrounds,
}
#: Weight of each loss unless another is given; see benchmarks/corrections.
WEIGHTS = {"energy": 3.0, "kl": 10.0, "l1": 5.0, "tolerant": 3.0, "abn": 0.5, RRR: 0.01}


def _sum(values: Tensor) -> Tensor:
    return values.sum(dim=(1, 2))


def _wanted(marks: Marks) -> tuple[Tensor, Tensor, Tensor]:
    """Return where the map should be 1, where 0, and the sum of both (N,)."""
    fill = marks.look * marks.told[:, None, None]
    return fill, marks.avoid, _sum(fill + marks.avoid).clamp_min(_SMALL)


def _threshold(maps: Tensor, fill: Tensor, avoid: Tensor) -> Tensor:
    """Return the value (N,) above which most of a map is where to look, and below which most is where not to."""
    values, fill, avoid = maps.flatten(1), fill.flatten(1), avoid.flatten(1)
    candidates = values.sort(dim=1).values
    above = values[:, None, :] > candidates[:, :, None]  # (N, candidates, cells)
    right = (above * fill[:, None]).sum(dim=2) / fill.sum(dim=1, keepdim=True).clamp_min(_SMALL)
    right = right + (~above * avoid[:, None]).sum(dim=2) / avoid.sum(dim=1, keepdim=True).clamp_min(_SMALL)
    return candidates.gather(1, right.argmax(dim=1, keepdim=True))[:, 0]


def _blurred(maps: Tensor) -> Tensor:
    """Return maps blurred by a 3x3 Gaussian (1 2 1, as OpenCV's), scaled to a largest value of 1."""
    kernel = torch.tensor([0.25, 0.5, 0.25]).to(maps)
    found = F.pad(maps[:, None], (_BLUR // 2,) * 4, mode="reflect")
    found = F.conv2d(found, kernel.outer(kernel)[None, None])[:, 0]
    return found / found.amax(dim=(1, 2), keepdim=True).clamp_min(_SMALL)
