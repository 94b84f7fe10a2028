"""Maps that an Attention Branch Network computes while it predicts."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers.base import Explainer, register
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass


class _AttentionBranchMap(Explainer):
    """A map of the attention branch."""

    reads_layer = False

    def check(self, model: ModelAdapter) -> None:
        """Refuse a layer, a network without an attention branch, and a score without a class map."""
        super().check(model)
        if not model.is_abn:
            raise UnsupportedModelError(
                f"{self.name} needs an Attention Branch Network and {model.name} is a plain "
                f"{type(model.module).__name__}; use the model abn-lite0, or make one from your network with "
                "xai_abn.abn_from(...) and xai_abn.training.distill(...)"
            )
        if model.scores_only and self.is_class_specific(model):
            raise UnsupportedModelError(
                f"{self.name} has one map per class, and none for a score that is a function of the output; use "
                "grad-cam"
            )

    @property
    def grid(self) -> str:
        """What the values lie on, in words."""
        return "attention branch"

    def layer_of(self, model: ModelAdapter) -> str:
        """Return the name recorded with the map."""
        return "attention_branch"


@register("abn")
class ABN(_AttentionBranchMap):
    """The attention map M that weighted the features in this prediction, in [0, 1].

    Class-agnostic: one map per image, whatever the target. It costs nothing beyond the prediction.
    The published loss does not determine its sign (see docs/guide.md); that of the shipped model is measured.
    For a multi-task ABN, this is the map from which the score of the target attribute was computed. It is then
    class-specific, and signed if the network was built with signed maps.

    Source: Fukui et al., "Attention Branch Network", CVPR 2019, section 3.
    """

    class_specific = False
    source = "Fukui et al., CVPR 2019"

    def check(self, model: ModelAdapter) -> None:
        """Also refuse a network that does not use its map: such a map was not trained."""
        super().check(model)
        if not model.uses_attention_map:
            raise UnsupportedModelError(
                f"the map of {model.name} is not used and was not trained (mechanism auxiliary); use abn-class for its "
                "attention branch, or grad-cam"
            )

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return M, (N, h, w), for any ``targets``; for a multi-task ABN, the maps of the targets."""
        assert forward_pass.attention_map is not None  # check() refuses other models
        if self.is_class_specific(forward_pass.model):
            return _select_targets(forward_pass.attention_map, targets)
        return forward_pass.attention_map[:, 0]

    def is_class_specific(self, model: ModelAdapter) -> bool:
        """Return whether the model has one map per attribute."""
        return model.is_multi_task


@register("abn-class")
class ABNClass(_AttentionBranchMap):
    """The attention branch's own map of the target class, signed, in the logits of that branch.

    Its spatial mean is exactly the logit of the attention branch: it is a CAM of that branch. (For a multi-task ABN
    with signed maps, its maximum is.) It explains the attention branch, not the perception branch, whose output is the
    prediction of the network.

    Source: Fukui et al., CVPR 2019, section 3.1 (the class maps before pooling).
    """

    source = "Fukui et al., CVPR 2019"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the class maps of ``targets``, (N, h, w)."""
        assert forward_pass.class_maps is not None  # check() refuses other models
        return _select_targets(forward_pass.class_maps, targets)


def _select_targets(maps: Tensor, targets: Tensor) -> Tensor:
    """Return the map of each image's target, (N, h, w), from maps (N, K, h, w); for directions, the weighted sum."""
    if targets.is_floating_point():
        return torch.einsum("nk,nkhw->nhw", targets.to(maps), maps)
    rows = torch.arange(len(targets), device=maps.device)
    return maps[rows, targets.to(rows.device)]
