"""Recipro-CAM: the score of the features of one position alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xai_abn.explainers.base import Explainer, register
from xai_abn.explainers.score_cam import ABLATED_VALUES
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.targets import target_scores


@register("recipro-cam")
class ReciproCAM(Explainer):
    """The probability of the class from the features of one position alone, all others set to 0, at every position.

    ``M_c(x, y) = p_c(head(A * 1_xy))``, without gradients. Only the part of the network after the layer runs again,
    once per position. Of a transformer, the patch tokens are set to 0 and the others stay. For a direction, the
    probabilities are combined with its weights; a model without probabilities gives its scores.

    Source: Byun and Lee, "Recipro-CAM: Fast gradient-free visual explanations for convolutional neural networks", 2022
    (arXiv 2209.14074), and the authors' code, without its scaling to [0, 1].
    """

    no_graph = "it asks the network again, without a graph"
    source = "Byun and Lee, 2022 (arXiv 2209.14074)"

    @property
    def cost(self) -> str:
        """Passes beyond the shared one, in words."""
        return "1 partial forward per position"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, h, w)."""
        layer, model = self.layer_of(forward_pass.model), forward_pass.model
        layout, activations = forward_pass.layout(layer), forward_pass.activations(layer)
        alone = single_positions(*activations.shape[2:]).to(activations)
        maps = []
        for row, features in enumerate(activations):
            output, target = forward_pass.raw_output(layer).detach()[row : row + 1], targets[row : row + 1]
            values = []
            for mask in alone.split(max(1, ABLATED_VALUES // features.numel())):
                logits = forward_pass.rerun(layer, row, layout.from_maps(features * mask, output)).float()
                scores = model.probabilities(logits) if model.has_probabilities else logits
                values.append(target_scores(scores, target.expand(len(mask), *target.shape[1:])))
            maps.append(torch.cat(values).view(activations.shape[2:]))
        return torch.stack(maps)


def single_positions(*grid: int) -> Tensor:
    """Return, for each of h w positions, a mask that is true there alone: (h w, 1, h, w) bool; also of three axes."""
    places = torch.arange(math.prod(grid))
    return (places[:, None] == places).view(-1, 1, *grid)
