"""Attention Branch Network: its three parts, the mechanism between them, and the whole.

Source: H. Fukui, T. Hirakawa, T. Yamashita, H. Fujiyoshi, "Attention Branch Network: Learning of
Attention Mechanism for Visual Explanation", CVPR 2019, and the authors' released code, which
differs from the paper's Figure 2: the map comes from a 3x3 (not 1x1) convolution, and there is a
BatchNorm before the ReLU over the class maps. The published numbers come from the code, so this module follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from xai_abn.errors import InvalidInputError
from xai_abn.networks.masks import MaskBranch, MaskDescription
from xai_abn.registry import Registry


class ABNOutput(NamedTuple):
    """Outputs of an Attention Branch Network.

    Attributes:
        logits: (N, K) class scores of the perception branch: the network's prediction.
        attention_logits: (N, K) class scores of the attention branch.
        attention_map: (N, 1, h, w) the map M that weighted the features, class-agnostic, in [0, 1]. For a
            :class:`xai_abn.networks.multi_task.MultiTaskABN` (N, K, h, w), one per attribute, unbounded if signed.
        class_maps: (N, K, h, w) per-class maps of the attention branch, signed; their spatial
            mean is exactly ``attention_logits``, so each is a CAM of that branch. (With signed attention maps,
            their maximum is.)
    """

    logits: Tensor
    attention_logits: Tensor
    attention_map: Tensor
    class_maps: Tensor


# so that torch.export.save can write a program that returns one
torch.utils._pytree._register_namedtuple(ABNOutput, serialized_type_name="xai_abn.networks.abn.ABNOutput")

#: Largest number of times a map can be averaged; more would blur it completely.
MAX_SMOOTHING = 100
#: Attributes of a convolution or pooling that are changed so that its stage keeps its size.
_Change: TypeAlias = Annotated[str, Field(pattern="^(stride|dilation|padding|replicate)$")]
_Numbers: TypeAlias = Annotated[list[Annotated[int, Field(ge=-1000, le=1000)]], Field(min_length=2, max_length=4)]


@dataclass(frozen=True)
class ABNDescription:
    """How an ABN was made of a classifier: everything needed to build it again without running anything.

    Attributes:
        layer: name of the module behind which the classifier is cut.
        stage: what ends the last stage, see :class:`xai_abn.networks.assembly.Cut`; empty for a Vision Transformer.
        channels: channels of the features.
        stage_channels: channels of the last stage's output.
        windows: changes that remove the stride from the attention branch's stage, see
            :data:`xai_abn.networks.assembly.Windows`.
        mechanism: registered name of the attention mechanism.
        maps: ``"shared"``, ``"per-attribute"`` or ``"per-attribute-signed"``.
        smoothing: how many times the map is averaged over 3x3 neighbors.
        normalized: whether the attention branch normalizes its stage's output, as all released networks but ResNeXt do.
        masks: what the mask branch reads; None without one.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # of checkpoints, which are checked when read

    layer: Annotated[str, Field(max_length=500)]
    stage: Annotated[str, Field(max_length=500)]
    channels: Annotated[int, Field(ge=1, le=100_000)]
    stage_channels: Annotated[int, Field(ge=1, le=100_000)]
    windows: Mapping[str, Mapping[_Change, _Numbers]] = field(default_factory=dict)
    mechanism: Annotated[str, Field(max_length=200)] = "residual"
    maps: Annotated[str, Field(pattern="^(shared|per-attribute|per-attribute-signed)$")] = "shared"
    smoothing: Annotated[int, Field(ge=0, le=MAX_SMOOTHING)] = 0
    normalized: bool = True
    masks: MaskDescription | None = None


class AttentionBranch(nn.Module):
    """The attention branch: a copy of the last stage, class maps, and one attention map.

    ``A = BN(stage(F)); A = ReLU(BN(conv1x1(A)))``; class maps ``S = conv1x1(A)``, scores
    ``GAP(S)``, attention map ``M = sigmoid(BN(conv3x3(A)))``. Pooling is global, so any input
    size works (the released code requires 224). Attributes have the released code's names.

    Args:
        stage: maps features (N, C, h, w) to (N, channels, h, w) without striding.
        channels: number of channels the stage gives.
        num_classes: K.
        smoothing: how many times to average the map over 3x3 neighbors; 0 as published. A sigmoid
            map saturates into plateaus with an arbitrary maximum; averaging moves the peak to the
            middle of a plateau.
        normalized: whether a BatchNorm follows the stage, as published; the released ResNeXt has none.
    """

    def __init__(
        self, stage: nn.Module, channels: int, num_classes: int, smoothing: int = 0, normalized: bool = True
    ) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.stage = stage
        self.bn_att = nn.BatchNorm2d(channels) if normalized else nn.Identity()
        self.att_conv = nn.Conv2d(channels, num_classes, 1, bias=False)
        self.bn_att2 = nn.BatchNorm2d(num_classes)
        self.att_conv2 = nn.Conv2d(num_classes, num_classes, 1, bias=False)
        self.att_conv3 = nn.Conv2d(num_classes, 1, 3, padding=1, bias=False)
        self.bn_att3 = nn.BatchNorm2d(1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(attention_logits (N, K), attention_map (N, 1, h, w), class_maps (N, K, h, w))``."""
        evidence = self._evidence(features)
        class_maps = self.att_conv2(evidence)
        return class_maps.mean(dim=(2, 3)), self._map(evidence), class_maps

    def attend(self, features: Tensor) -> Tensor:
        """Return the attention map (N, 1, h, w) alone, which is all that a prediction needs."""
        return self._map(self._evidence(features))

    def _evidence(self, features: Tensor) -> Tensor:
        evidence = self.bn_att(self.stage(features))
        return torch.relu(self.bn_att2(self.att_conv(evidence)))

    def _map(self, evidence: Tensor) -> Tensor:
        attention_map = torch.sigmoid(self.bn_att3(self.att_conv3(evidence)))
        return smoothed(attention_map, self.smoothing)

    @property
    def map_layers(self) -> list[nn.Module]:
        """The layers that make the attention map and nothing else."""
        return [self.att_conv3, self.bn_att3]

    @torch.no_grad()
    def start_from(self, classifier: nn.Linear, map_bias: float = 0.0) -> None:
        """Set the weights so that the class maps are the rectified class evidence of the backbone.

        Class maps start as ReLU(w_c . A + b_c), if the classifier reads the stage's channels: BatchNorms as
        identities, the second 1x1 convolution too. The map head starts as a blurred sum over the rectified class maps,
        so M is high where any class has evidence.

        Args:
            classifier: the backbone's last linear layer.
            map_bias: bias of the map's BatchNorm: the logit around which M lies once the statistics are learned.
        """
        if classifier.in_features == self.att_conv.in_channels:
            self.att_conv.weight.copy_(classifier.weight[:, :, None, None])
            if classifier.bias is not None:
                self.bn_att2.bias.copy_(classifier.bias)
            nn.init.dirac_(self.att_conv2.weight)
        classes = self.att_conv3.in_channels
        self.att_conv3.weight.fill_(1.0 / (9 * classes**0.5))
        self.bn_att3.bias.fill_(map_bias)


def smoothed(maps: Tensor, times: int) -> Tensor:
    """Return maps (N, M, h, w) averaged ``times`` times over 3x3 neighbors, at the edges over those that exist."""
    for _ in range(times):
        maps = F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
    return maps


class Mechanism(nn.Module):
    """How features and attention map are combined. A subclass implements :meth:`forward`.

    Args:
        channels: C of the features.

    Attributes:
        uses_map: whether the output depends on the map.
        initial_map_bias: the logit around which the map of an untrained network lies.
    """

    uses_map: bool = True
    initial_map_bias: ClassVar[float] = 0.0

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, features: Tensor, attention: Tensor) -> Tensor:
        """Weight features (N, C, h, w) by attention (N, 1, h, w); same shape as the features."""
        raise NotImplementedError

    def match_scale(self, features: Tensor, attention: Tensor, momentum: float = 1.0) -> None:
        """Adjust to the magnitude of features that a pretrained perception branch expects; most mechanisms do nothing.

        Args:
            features: (N, C, h, w).
            attention: (N, 1, h, w).
            momentum: how far to move, in (0, 1].
        """


mechanisms: Registry[type[Mechanism]] = Registry("mechanism")


@mechanisms.register("residual")
class Residual(Mechanism):
    """``g * (1 + M)``, the published mechanism (eq. 3). With M = 0 the features do not change.

    Attributes:
        scale: the weighted features are divided by this buffer: 1, as published, unless
            :meth:`match_scale` was called, so that a pretrained perception branch gets features of
            the magnitude it was trained on.
    """

    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, features: Tensor, attention: Tensor) -> Tensor:
        """Weight features (N, C, h, w) by attention (N, 1, h, w); same shape as the features."""
        return (features * attention + features) / self.scale

    @torch.no_grad()
    def match_scale(self, features: Tensor, attention: Tensor, momentum: float = 1.0) -> None:
        """Move ``scale`` towards the least-squares factor between g(1 + M) and g, 1 + sum(g^2 M) / sum(g^2).

        Args:
            features: (N, C, h, w).
            attention: (N, 1, h, w).
            momentum: how far to move, in (0, 1].
        """
        energy = features.float().square()
        factor = 1 + (energy * attention.float()).sum() / energy.sum()
        self.scale.lerp_(factor.to(self.scale), momentum)


@mechanisms.register("product")
class Product(Mechanism):
    """``g * M``, the published ablation (eq. 2). What M hides cannot reach the prediction.

    The map of an untrained network lies around sigmoid(1), which passes most of the features on.
    """

    initial_map_bias = 1.0

    def forward(self, features: Tensor, attention: Tensor) -> Tensor:
        """Weight features (N, C, h, w) by attention (N, 1, h, w); same shape as the features."""
        return features * attention


@mechanisms.register("auxiliary")
class Auxiliary(Mechanism):
    """``g``: the map is computed but not used, so the attention branch is an auxiliary classifier only.

    It serves to compare how much of an ABN's accuracy comes from the second loss and how much from the map. The map
    gets no gradient and keeps its initial weights.
    """

    uses_map = False

    def forward(self, features: Tensor, attention: Tensor) -> Tensor:
        """Return the features (N, C, h, w) as they are."""
        return features


@mechanisms.register("concatenation")
class Concatenation(Mechanism):
    """``conv1x1([g * M, g])``: attended and original features side by side, mixed back to C channels.

    The mixing weights start as two identities, so an untrained one equals ``residual``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.mix = nn.utils.skip_init(nn.Conv2d, 2 * channels, channels, 1, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(channels).repeat(1, 2)[:, :, None, None])

    def forward(self, features: Tensor, attention: Tensor) -> Tensor:
        """Weight features (N, C, h, w) by attention (N, 1, h, w); same shape as the features."""
        result: Tensor = self.mix(torch.cat([features * attention, features], dim=1))
        return result


def initialize(module: nn.Module) -> None:
    """Draw weights, in place, as the released code does: convolutions N(0, 2 / (k * k * out)), BatchNorms 1 and 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d | nn.Linear):
            part.reset_parameters()


class AttentionBranchNetwork(nn.Module):
    """A classifier that weights its features with an attention map that it learns.

    Args:
        feature_extractor: image batch (N, 3, H, W) to features (N, C, h, w).
        attention_branch: any module from features to ``(attention_logits, attention_map, class_maps)``.
        perception_branch: attended features (N, C, h, w) to logits (N, K).
        mechanism: combines features and map; see ``mechanisms.names()``.

    Attributes:
        description: how the network was made of a classifier; None if it was built from parts.
        mask_branch: makes a mask for any class; None without one. It does not change the prediction.

    Build one from an existing classifier with :func:`xai_abn.abn_from`.
    """

    feature_extractor: nn.Module
    attention_branch: AttentionBranch
    perception_branch: nn.Module
    mechanism: Mechanism
    description: ABNDescription | None = None
    mask_branch: MaskBranch | None

    def __init__(
        self,
        feature_extractor: nn.Module,
        attention_branch: AttentionBranch,
        perception_branch: nn.Module,
        mechanism: Mechanism,
    ) -> None:
        super().__init__()
        self.feature_extractor = feature_extractor
        self.attention_branch = attention_branch
        self.perception_branch = perception_branch
        self.mechanism = mechanism
        self.mask_branch = None

    def forward(self, images: Tensor, attention: Tensor | None = None) -> ABNOutput:
        """Return the prediction and the maps, optionally with another attention map.

        Args:
            images: (N, 3, H, W), normalized as the backbone expects.
            attention: replaces the network's own map: (N, 1, h, w) or (1, 1, h, w), values in
                [0, 1]. ``attention_map`` in the output is then this map.

        Raises:
            InvalidInputError: ``attention`` does not fit the features.
        """
        features = self.feature_extractor(images)
        attention_logits, attention_map, class_maps = self.attention_branch(features)
        if attention is not None:
            attention_map = _checked_attention(attention, attention_map, self.bounded)
        return ABNOutput(self.perceive(features, attention_map), attention_logits, attention_map, class_maps)

    @property
    def bounded(self) -> bool:
        """Whether attention maps lie in [0, 1]."""
        return True

    @property
    def uses_map(self) -> bool:
        """Whether the prediction depends on the attention map."""
        return self.mechanism.uses_map

    def perceive(self, features: Tensor, attention_map: Tensor) -> Tensor:
        """Return logits (N, K) for features (N, C, h, w) weighted by a map (N, 1, h, w)."""
        logits: Tensor = self.perception_branch(self.mechanism(features, attention_map))
        return logits

    def mask_scores(self, features: Sequence[Tensor], class_maps: Tensor, targets: Tensor) -> Tensor:
        """Return the standardized scores of the masks of T classes of each image; see :func:`xai_abn.networks.masks`.

        Args:
            features: maps of the layers that the mask branch reads, the finest first.
            class_maps: of the attention branch, (N, K, h, w).
            targets: class indices (N, T).

        Returns:
            (N, T, H, W), at least twice as fine as the class maps; masks in [0, 1] are made of them by
            :func:`xai_abn.networks.masks.class_masks`.

        Raises:
            InvalidInputError: the network has no mask branch.
        """
        if self.mask_branch is None:
            raise InvalidInputError("the network has no mask branch; make one with abn_from(..., masks=True)")
        scores: Tensor = self.mask_branch(features, class_maps, self.class_rows, targets)
        return scores

    @property
    def class_rows(self) -> Tensor:
        """The rows of the attention branch's classifier, (K, C'), detached."""
        return self.attention_branch.att_conv.weight.detach().flatten(1)

    def as_classifier(self) -> nn.Module:
        """Return a module that outputs only the perception logits (N, K), and computes no more than they need.

        It shares the weights.
        """
        return _PerceptionLogits(self)


class _PerceptionLogits(nn.Module):
    def __init__(self, network: AttentionBranchNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        network = self.network
        features = network.feature_extractor(images)
        # a mechanism that does not use the map gets the features in its place
        attention_map = network.attention_branch.attend(features) if network.uses_map else features
        return network.perceive(features, attention_map)


def _checked_attention(attention: Tensor, like: Tensor, bounded: bool) -> Tensor:
    if attention.dim() != 4 or attention.shape[0] not in (1, like.shape[0]) or attention.shape[1:] != like.shape[1:]:
        raise InvalidInputError(
            f"attention must have shape {tuple(like.shape)} (or 1 in place of {like.shape[0]}), "
            f"got {tuple(attention.shape)}"
        )
    if bounded and not bool(((attention >= 0) & (attention <= 1)).all()):
        raise InvalidInputError("attention must lie in [0, 1]; scale it before passing it")
    return attention.to(like).expand_as(like)
