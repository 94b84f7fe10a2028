"""Maps that an Attention Branch Network computes while it predicts."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers.base import Explainer, register
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.targets import select_targets
from xai_abn.networks.abn import AttentionBranchNetwork
from xai_abn.networks.masks import class_masks, united_masks


class _AttentionBranchMap(Explainer):
    """A map of the attention branch."""

    reads_layer = False
    no_graph = ""

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
    The published loss does not determine its sign (see docs/how-to/polarity.md); that of the shipped model is measured.
    For a multi-task ABN, this is the map from which the score of the target attribute was computed. It is then
    class-specific, and signed if the network was built with signed maps.

    Source: Fukui et al., "Attention Branch Network", CVPR 2019, section 3.
    """

    class_specific = False
    maps_read = ("attention_map",)
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
            return select_targets(forward_pass.attention_map, targets)
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

    maps_read = ("class_maps",)
    source = "Fukui et al., CVPR 2019"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the class maps of ``targets``, (N, h, w)."""
        assert forward_pass.class_maps is not None  # check() refuses other models
        return select_targets(forward_pass.class_maps, targets)


@register("abn-mask")
class ABNMask(_AttentionBranchMap):
    """The mask of the target class, in [0, 1]: what must stay visible for the class to be predicted.

    Near 0 where the attention branch sees no such class, and everywhere if it sees none in the image. It is drawn from
    0 to 1. The union of several masks is weighted by the root of the attention map, if the network uses that map, so
    that its peak lies where the network looks.

    It is trained so that the network still predicts the class from what the mask keeps, and no longer does from what it
    hides, at every share of the area (see docs/how-to/class-masks.md). It costs a few convolutions beyond the
    prediction, for any class.

    Source: this project. Related: Stalder et al., "What You See is What You Classify", NeurIPS 2022; Ntrougkas et al.,
    "T-TAME", 2024.
    """

    version = 3
    maps_read = ("class_maps", "attention_map")
    limits = (0.0, 1.0)
    no_graph = "the mask branch runs without a graph; it is trained by an objective of its own"
    source = "this project; related: Stalder et al., NeurIPS 2022"

    unite: int = Field(
        0,
        ge=0,
        le=1000,
        description="Unite the masks of this many most probable classes. 0 shows the mask of the target.",
    )

    def check(self, model: ModelAdapter) -> None:
        """Also refuse a network without a mask branch."""
        super().check(model)
        if model.module.mask_branch is None:
            raise UnsupportedModelError(
                f"{self.name} needs a mask branch, which {model.name} does not have; train one with 'xai-abn distill "
                "--objective masks', or use abn-class"
            )

    def is_class_specific(self, model: ModelAdapter) -> bool:
        """Return whether the map is that of the target."""
        return self.unite == 0

    def layers_read(self, model: ModelAdapter) -> tuple[str, ...]:
        """Return the layers that the mask branch reads."""
        branch = getattr(model.module, "mask_branch", None)
        return () if branch is None else tuple(branch.description.layers)

    def layer_of(self, model: ModelAdapter) -> str:
        """Return the name recorded with the map."""
        return "mask_branch"

    @property
    def grid(self) -> str:
        """What the values lie on, in words."""
        return "mask branch"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the masks of ``targets``, (N, H, W).

        Raises:
            UnsupportedModelError: a target is a difference of classes or a function of the output.
        """
        network = forward_pass.model.module
        assert isinstance(network, AttentionBranchNetwork)
        assert forward_pass.class_maps is not None
        if targets.is_floating_point():
            raise UnsupportedModelError(f"{self.name} has one mask for each class; use abn-class for a difference")
        top = min(self.unite, forward_pass.logits.shape[1])
        wanted = forward_pass.logits.topk(top).indices if top else targets[:, None]
        features = [forward_pass.activations(layer) for layer in self.layers_read(forward_pass.model)]
        class_maps = forward_pass.class_maps
        with torch.no_grad():
            wanted = wanted.to(class_maps.device)
            scores = network.mask_scores(features, class_maps, wanted)
            if not top:
                return class_masks(scores, class_maps, wanted)[:, 0]
            attention_map = forward_pass.attention_map if network.uses_map else None
            return united_masks(scores, class_maps, wanted, attention_map)
