"""The two maps that an Attention Branch Network computes while it predicts."""

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
        """Refuse a network without an attention branch, and a layer by name."""
        if not model.is_abn:
            raise UnsupportedModelError(
                f"{self.name} needs an Attention Branch Network and {model.name} is a plain "
                f"{type(model.module).__name__}; use the model abn-lite0, or make one of yours with "
                "xai_abn.abn_from(...) and xai_abn.training.distill(...)"
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

    Source: Fukui et al., "Attention Branch Network", CVPR 2019, section 3.
    """

    class_specific = False
    source = "Fukui et al., CVPR 2019"

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return M, (N, h, w), in [0, 1]; ``targets`` do not matter."""
        assert forward_pass.attention_map is not None  # check() refused other models
        return forward_pass.attention_map[:, 0]


@register("abn-class")
class ABNClass(_AttentionBranchMap):
    """The attention branch's own map of the target class, signed, in that branch's logits.

    Its spatial mean is exactly the attention branch's logit: a CAM of that branch. It explains the
    attention branch, not the perception branch whose answer is the network's prediction.

    Source: Fukui et al., CVPR 2019, section 3.1 (the class maps before pooling).
    """

    source = "Fukui et al., CVPR 2019"

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the class maps of ``targets``, (N, h, w)."""
        assert forward_pass.class_maps is not None  # check() refused other models
        maps = forward_pass.class_maps
        if targets.is_floating_point():
            return torch.einsum("nk,nkhw->nhw", targets.to(maps), maps)
        rows = torch.arange(len(targets), device=maps.device)
        return maps[rows, targets.to(rows.device)]
