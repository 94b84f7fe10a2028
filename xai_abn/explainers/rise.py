"""Randomized Input Sampling for Explanation."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from xai_abn.explainers.base import Count, Explainer, Seed, register
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.targets import target_scores


@register("rise")
class RISE(Explainer):
    """The mean of random smooth masks, each weighted by the probability of the class under it, over the mean mask.

    ``S(x, y) = 1 / (N keep) sum_i p_c(I * M_i) M_i(x, y)``, at least 0 for a class. Masked pixels are 0 in the
    normalized input, the mean color. All images and targets get the same masks. For a direction, the probabilities
    are combined with its weights. Each mask costs one forward pass of a fast copy of the network. The masks of a volume
    or clip have as many cells in depth or time; along an axis with fewer slices than cells, each slice has its own.

    Where the output has no probabilities, as in regression, similarity and segmentation, the zero of a score means
    nothing. Each mask is then weighted by its score less the mean score of all masks. The map has both signs: it is the
    covariance of the score with each pixel's visibility, divided by ``keep``. This case is not in the paper.

    Source: Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018, eq. 6,
    and the authors' code, which uses 4000 to 8000 masks of 7x7 cells for 224 pixels.
    """

    source = "Petsiuk et al., BMVC 2018"
    reads_layer = False
    no_graph = "it asks the network again, without a graph"

    masks: Count = Field(2000, description="Number of masks; each costs one forward pass.")
    side: int = Field(7, ge=1, le=256, description="Number of cells along each side of the coarse grid of a mask.")
    keep: float = Field(0.5, gt=0, le=1, description="Probability that a cell stays visible.")
    seed: Seed = Field(0, description="Seed of the random masks.")
    batch_size: Count = Field(32, exclude=True, description="Number of masks per forward pass; limits memory.")

    @property
    def cost(self) -> str:
        """Passes beyond the shared one, in words."""
        return f"{self.masks} forward"

    @property
    def grid(self) -> str:
        """What the values lie on, in words."""
        return f"masks of {self.side}x{self.side}"

    @torch.no_grad()
    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, H, W), or (N, D, H, W) of volumes."""
        images = forward_pass.inputs.detach()
        forward_pass.predictor.expect(self.masks * len(images))
        probable = forward_pass.model.has_probabilities
        unmasked = torch.zeros(len(images)) if probable else target_scores(forward_pass.logits, targets)
        maps = torch.zeros(len(images), *images.shape[2:], device=images.device)
        visible, totals = torch.zeros_like(maps[0]), torch.zeros(len(images), device=images.device)
        for stack in self.stacks(*forward_pass.size):
            stack = stack.to(images.device)
            visible += stack.sum(dim=0)
            for row, image in enumerate(images):
                outputs = forward_pass.predict(image * stack[:, None].to(image))
                outputs = forward_pass.as_probabilities(outputs) if probable else outputs
                target = targets[row : row + 1]
                scores = target_scores(outputs, target.expand(len(stack), *target.shape[1:])) - unmasked[row]
                maps[row] += torch.tensordot(scores, stack, dims=1)
                totals[row] += scores.sum()
        if not probable:
            maps -= torch.tensordot(totals / self.masks, visible, dims=0)
        return maps / (self.masks * self.keep)

    def stacks(self, *size: int) -> Iterator[Tensor]:
        """Yield all masks, ``batch_size`` at a time, (B, height, width) or (B, depth, height, width), in [0, 1]."""
        cells = tuple(math.ceil(length / self.side) for length in size)
        grids, shifts = self.random_grids(cells)
        larger = [enlargement(self.side, cell) for cell in cells]
        for part in torch.arange(self.masks).split(self.batch_size):
            # (B, length, side) for each axis
            depth, *rows, columns = (
                weights[shifts[part, axis, None] + torch.arange(length)]
                for axis, (weights, length) in enumerate(zip(larger, size, strict=True))
            )
            masks = (depth @ grids[part].flatten(2)).unflatten(2, grids.shape[2:])
            masks = rows[0][:, None] @ masks if rows else masks
            yield masks @ (columns.mT[:, None] if rows else columns.mT)

    def random_grids(self, cells: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return the random part of all masks: grids (N, side, side) of 0 and 1, and shifts (N, 2) below ``cells``.

        Of volumes, grids have three axes and shifts three numbers.
        """
        generator = torch.Generator().manual_seed(self.seed)
        grids = torch.rand(self.masks, *[self.side] * len(cells), generator=generator) < self.keep
        shifts = [torch.randint(cell, (self.masks,), generator=generator) for cell in cells]
        return grids.float(), torch.stack(shifts, dim=1)


def enlargement(side: int, cell: int) -> Tensor:
    """Return the weights ((side + 1) cell, side) with which the authors' code enlarges a grid along one axis.

    This is scikit-image's ``resize`` of order 1, mirrored at the borders. It is separable, so a mask is the product of
    three small matrices, and the enlarged mask is never stored before cropping.
    """
    from skimage.transform import resize

    weights = resize(torch.eye(side).numpy(), ((side + 1) * cell, side), order=1, mode="reflect", anti_aliasing=False)
    return torch.from_numpy(weights)
