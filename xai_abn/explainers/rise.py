"""Randomized Input Sampling for Explanation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.explainers.base import register
from xai_abn.explainers.input_space import InputSpaceExplainer
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass


@register("rise")
class RISE(InputSpaceExplainer):
    """The mean of random smooth masks, each weighted by the class's probability under it, over the masks' mean.

    ``S(x, y) = 1 / (N keep) sum_i p_c(I * M_i) M_i(x, y)``, at least 0 for a class. Masked parts are 0 in the
    normalised input, the mean colour. All images and targets see the same masks. A direction's probabilities are
    mixed with its weights.

    Args:
        layer: must be None.
        masks: N; one forward each, of a fast copy of the network.
        side: cells of a mask's coarse grid, along each side.
        keep: probability that a cell is left visible.
        seed: of the masks.
        batch_size: masks at once; bounds memory.

    Raises:
        InvalidInputError: no mask, no cell, or ``keep`` outside (0, 1].

    Source: Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018, eq. 6,
    and the authors' code, whose 4000 to 8000 masks of 7x7 cells are for 224 pixels.
    """

    source = "Petsiuk et al., BMVC 2018"

    def __init__(
        self,
        layer: str | None = None,
        *,
        masks: int = 2000,
        side: int = 7,
        keep: float = 0.5,
        seed: int = 0,
        batch_size: int = 32,
    ) -> None:
        super().__init__(layer)
        if masks < 1 or side < 1 or not 0 < keep <= 1:
            raise InvalidInputError(
                f"rise needs at least one mask and one cell, and keep in (0, 1]; got masks={masks}, side={side}, "
                f"keep={keep}"
            )
        self.masks = masks
        self.side = side
        self.keep = keep
        self.seed = seed
        self.batch_size = batch_size

    def check(self, model: ModelAdapter) -> None:
        """Refuse a layer by name, and a model of whose score no probability can be told."""
        super().check(model)
        if model.scores_only:
            raise UnsupportedModelError(
                f"rise weights its masks by probabilities and {model.name} only has a score; use occlusion"
            )

    @torch.no_grad()
    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, H, W)."""
        pictures = forward_pass.inputs.detach()
        maps = torch.zeros(len(pictures), *pictures.shape[2:], device=pictures.device)
        for stack in self.stacks(pictures.shape[2], pictures.shape[3]):
            stack = stack.to(pictures.device)
            for row, picture in enumerate(pictures):
                seen = picture * stack[:, None].to(picture)
                probabilities = forward_pass.as_probabilities(forward_pass.predict(seen))
                target = targets[row : row + 1]
                scores = forward_pass.scores(probabilities, target.expand(len(stack), *target.shape[1:]))
                maps[row] += torch.tensordot(scores, stack, dims=1)
        return maps / (self.masks * self.keep)

    def stacks(self, height: int, width: int) -> Iterator[Tensor]:
        """Yield all masks, ``batch_size`` at a time, (B, height, width) float32 in [0, 1]."""
        cells = math.ceil(height / self.side), math.ceil(width / self.side)
        grids, shifts = self.choices(cells)
        down, across = enlargement(self.side, cells[0]), enlargement(self.side, cells[1])
        for part in torch.arange(self.masks).split(self.batch_size):
            rows = down[shifts[part, 0, None] + torch.arange(height)]  # (B, height, side)
            columns = across[shifts[part, 1, None] + torch.arange(width)]
            yield rows @ grids[part] @ columns.transpose(1, 2)

    def choices(self, cells: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the random part of all masks: grids (N, side, side) of 0 and 1, and shifts (N, 2) below ``cells``."""
        generator = torch.Generator().manual_seed(self.seed)
        grids = torch.rand(self.masks, self.side, self.side, generator=generator) < self.keep
        shifts = [torch.randint(cell, (self.masks,), generator=generator) for cell in cells]
        return grids.float(), torch.stack(shifts, dim=1)

    @property
    def parameters(self) -> dict[str, Any]:
        """Number of masks, cells along a side, share of visible cells, and seed."""
        return {"masks": self.masks, "side": self.side, "keep": self.keep, "seed": self.seed}


def enlargement(side: int, cell: int) -> Tensor:
    """Return the weights ((side + 1) cell, side) by which the authors' code enlarges a grid, along one axis.

    That is scikit-image's ``resize`` of order 1, mirrored at the borders; it works on each axis by itself, so a mask
    is two small products, and no enlarged mask need be cropped.
    """
    from skimage.transform import resize

    weights = resize(torch.eye(side).numpy(), ((side + 1) * cell, side), order=1, mode="reflect", anti_aliasing=False)
    return torch.from_numpy(weights)
