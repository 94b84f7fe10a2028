"""The maps that an Attention Branch Network computes while it predicts."""

from __future__ import annotations

import torch
from torch import Tensor

from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers.base import Explainer, register
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass


class _AttentionBranchMap(Explainer):
    """A map out of the attention branch."""

    def check(self, model: ModelAdapter) -> None:
        """Refuse a network without an attention branch, a layer by name, and a map of a class where there is none."""
        if not model.is_abn:
            raise UnsupportedModelError(
                f"{self.name} needs an Attention Branch Network and {model.name} is a plain "
                f"{type(model.module).__name__}; use the model abn-lite0, or make one of yours with "
                "xai_abn.abn_from(...) and xai_abn.training.distill(...)"
            )
        if model.scores_only and self.is_class_specific(model):
            raise UnsupportedModelError(
                f"{self.name} has a map for each class, and none for a score that is a function of the answer; use "
                "grad-cam"
            )
        if self.layer is not None:
            raise UnsupportedModelError(
                f"{self.name} comes from the attention branch; it takes no layer (got {self.layer!r})"
            )

    def layers(self, model: ModelAdapter) -> tuple[str, ...]:
        """Return nothing: the maps are outputs of the network."""
        return ()

    def layer_of(self, model: ModelAdapter) -> str:
        """Return the name recorded with the map."""
        return "attention_branch"


@register("abn")
class ABN(_AttentionBranchMap):
    """The attention map M that weighted the features in this very prediction, in [0, 1].

    Class-agnostic: one map an image, whatever the target. It costs nothing beyond the prediction.
    Nothing in the published loss fixes its sign (see docs/guide.md); the shipped model's is measured.
    Of a multi-task ABN it is the map through which the target attribute's own score was computed: class-specific, and
    signed where the network was made so.

    Source: Fukui et al., "Attention Branch Network", CVPR 2019, section 3.
    """

    class_specific = False
    source = "Fukui et al., CVPR 2019"

    def check(self, model: ModelAdapter) -> None:
        """Refuse a network whose map is not used, too: nothing taught it where to be high."""
        super().check(model)
        if not model.looks:
            raise UnsupportedModelError(
                f"the map of {model.name} is not used and was not trained (mechanism auxiliary); use abn-class for its "
                "attention branch, or grad-cam"
            )

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return M, (N, h, w), whatever the ``targets``; of a multi-task ABN theirs."""
        assert forward_pass.attention_map is not None  # check() refused other models
        if self.is_class_specific(forward_pass.model):
            return _of_targets(forward_pass.attention_map, targets)
        return forward_pass.attention_map[:, 0]

    def is_class_specific(self, model: ModelAdapter) -> bool:
        """Return whether the model has a map for each attribute."""
        return model.is_multi_task


@register("abn-class")
class ABNClass(_AttentionBranchMap):
    """The attention branch's own map of the target class, signed, in that branch's logits.

    Its spatial mean is exactly the attention branch's logit: a CAM of that branch (where a multi-task ABN's maps are
    signed, its maximum is). It explains the
    attention branch, not the perception branch whose answer is the network's prediction.

    Source: Fukui et al., CVPR 2019, section 3.1 (the class maps before pooling).
    """

    source = "Fukui et al., CVPR 2019"

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the class maps of ``targets``, (N, h, w)."""
        assert forward_pass.class_maps is not None  # check() refused other models
        return _of_targets(forward_pass.class_maps, targets)


def _of_targets(maps: Tensor, targets: Tensor) -> Tensor:
    """Return of maps (N, K, h, w) each image's own (N, h, w), or, for directions, their mixture."""
    if targets.is_floating_point():
        return torch.einsum("nk,nkhw->nhw", targets.to(maps), maps)
    rows = torch.arange(len(targets), device=maps.device)
    return maps[rows, targets.to(rows.device)]
