"""Attention Branch Network: the three parts, the block between them, and how they are put together.

Source: H. Fukui, T. Hirakawa, T. Yamashita, H. Fujiyoshi, "Attention Branch Network: Learning of
Attention Mechanism for Visual Explanation", CVPR 2019, and the authors' released code, which
differs from the paper's Figure 2: the map comes from a 3x3 (not 1x1) convolution, and there is a
BatchNorm before the ReLU over the class maps. Here, as the published numbers, after the code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xai_abn.errors import InvalidInputError
from xai_abn.registry import Registry


class ABNOutput(NamedTuple):
    """What an Attention Branch Network answers.

    Attributes:
        logits: (N, K) class scores of the perception branch: the network's prediction.
        attention_logits: (N, K) class scores of the attention branch.
        attention_map: (N, 1, h, w) the map M that weighted the features, class-agnostic, in [0, 1]. Of a
            :class:`xai_abn.networks.multi_task.MultiTaskABN` (N, K, h, w), one an attribute, unbounded where signed.
        class_maps: (N, K, h, w) per-class maps of the attention branch, signed; their spatial
            mean is exactly ``attention_logits``, so each is a CAM of that branch. (Where attention maps are signed,
            their maximum is.)
    """

    logits: Tensor
    attention_logits: Tensor
    attention_map: Tensor
    class_maps: Tensor


class AttentionBranch(nn.Module):
    """The attention branch: a copy of the last stage, class maps, and one attention map.

    ``A = BN(stage(F)); A = ReLU(BN(conv1x1(A)))``; class maps ``S = conv1x1(A)``, scores
    ``GAP(S)``, attention map ``M = sigmoid(BN(conv3x3(A)))``. Pooling is global, so any input
    size works (the released code fixes 224). The attributes keep the released code's names.

    Args:
        stage: maps features (N, C, h, w) to (N, channels, h, w) without striding.
        channels: number of channels the stage gives.
        num_classes: K.
        smoothing: how many times to average the map over 3x3 neighbours; 0 as published. A sigmoid
            map saturates into plateaus whose largest value is an accident; averaging puts the peak
            into their middle.
    """

    def __init__(self, stage: nn.Module, channels: int, num_classes: int, smoothing: int = 0) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.stage = stage
        self.bn_att = nn.BatchNorm2d(channels)
        self.att_conv = nn.Conv2d(channels, num_classes, 1, bias=False)
        self.bn_att2 = nn.BatchNorm2d(num_classes)
        self.att_conv2 = nn.Conv2d(num_classes, num_classes, 1, bias=False)
        self.att_conv3 = nn.Conv2d(num_classes, 1, 3, padding=1, bias=False)
        self.bn_att3 = nn.BatchNorm2d(1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(attention_logits (N, K), attention_map (N, 1, h, w), class_maps (N, K, h, w))``."""
        evidence = self.bn_att(self.stage(features))
        evidence = torch.relu(self.bn_att2(self.att_conv(evidence)))
        class_maps = self.att_conv2(evidence)
        attention_map = torch.sigmoid(self.bn_att3(self.att_conv3(evidence)))
        return class_maps.mean(dim=(2, 3)), smoothed(attention_map, self.smoothing), class_maps


def smoothed(maps: Tensor, times: int) -> Tensor:
    """Return maps (N, M, h, w) averaged over 3x3 neighbours, at the edge over those there are, so many times."""
    for _ in range(times):
        maps = F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
    return maps


mechanisms: Registry[type[nn.Module]] = Registry("mechanism")


@mechanisms.register("residual")
class Residual(nn.Module):
    """``g * (1 + M)``, the published mechanism (eq. 3). With M = 0 it leaves the features alone.

    Attributes:
        scale: the weighted features are divided by this buffer: 1, as published, unless
            :meth:`match_scale` was called, so that a pretrained perception branch meets features of
            the size it knows.
    """

    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, features: Tensor, attention: Tensor) -> Tensor:
        """Weigh features (N, C, h, w) by attention (N, 1, h, w); same shape as the features."""
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
class Product(nn.Module):
    """``g * M``, the published ablation (eq. 2). What M hides cannot reach the prediction."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, features: Tensor, attention: Tensor) -> Tensor:
        """Weigh features (N, C, h, w) by attention (N, 1, h, w); same shape as the features."""
        return features * attention


@mechanisms.register("auxiliary")
class Auxiliary(nn.Module):
    """``g``: the map is computed and not used, so that the attention branch is an auxiliary classifier alone.

    The control that tells what of an ABN's accuracy comes from looking, and what from the second loss. The map gets
    no gradient, so it stays as it was drawn.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, features: Tensor, attention: Tensor) -> Tensor:
        """Return the features (N, C, h, w) as they are."""
        return features


@mechanisms.register("concatenation")
class Concatenation(nn.Module):
    """``conv1x1([g * M, g])``: attended and original features side by side, mixed back to C channels.

    The mixing weights start as two identities, so an untrained one equals ``residual``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, channels, 1, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(channels).repeat(1, 2)[:, :, None, None])

    def forward(self, features: Tensor, attention: Tensor) -> Tensor:
        """Weigh features (N, C, h, w) by attention (N, 1, h, w); same shape as the features."""
        return self.mix(torch.cat([features * attention, features], dim=1))


def initialise(module: nn.Module) -> None:
    """Draw weights, in place, as the released code does: convolutions N(0, 2 / (k * k * out)), BatchNorms 1 and 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d | nn.Linear):
            part.reset_parameters()


class AttentionBranchNetwork(nn.Module):
    """A classifier that learns where to look, and looks there.

    Args:
        feature_extractor: image batch (N, 3, H, W) to features (N, C, h, w).
        attention_branch: features to ``(attention_logits, attention_map, class_maps)``; any module that does.
        perception_branch: attended features (N, C, h, w) to logits (N, K).
        mechanism: combines features and map; see ``mechanisms.names()``.

    Build one from an existing classifier with :func:`xai_abn.abn_from`.
    """

    feature_extractor: nn.Module
    attention_branch: AttentionBranch
    perception_branch: nn.Module
    mechanism: nn.Module

    def __init__(
        self,
        feature_extractor: nn.Module,
        attention_branch: AttentionBranch,
        perception_branch: nn.Module,
        mechanism: nn.Module,
    ) -> None:
        super().__init__()
        self.feature_extractor = feature_extractor
        self.attention_branch = attention_branch
        self.perception_branch = perception_branch
        self.mechanism = mechanism

    def forward(self, images: Tensor, attention: Tensor | None = None) -> ABNOutput:
        """Predict, explain, and optionally look where told.

        Args:
            images: (N, 3, H, W), normalised as the backbone expects.
            attention: replaces the network's own map: (N, 1, h, w) or (1, 1, h, w), values in
                [0, 1]. ``attention_map`` in the answer is then this map.

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
        """Whether the answer depends on the attention map, which with the mechanism ``"auxiliary"`` it does not."""
        return not any(isinstance(part, Auxiliary) for part in self.mechanism.modules())

    def perceive(self, features: Tensor, attention_map: Tensor) -> Tensor:
        """Return logits (N, K) of features (N, C, h, w) looked at through a map (N, 1, h, w)."""
        return self.perception_branch(self.mechanism(features, attention_map))

    def as_classifier(self) -> nn.Module:
        """Return a plain module that gives the perception logits (N, K) alone; weights are shared."""
        return _PerceptionLogits(self)


class _PerceptionLogits(nn.Module):
    def __init__(self, network: AttentionBranchNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).logits


def _checked_attention(attention: Tensor, like: Tensor, bounded: bool) -> Tensor:
    if attention.dim() != 4 or attention.shape[0] not in (1, like.shape[0]) or attention.shape[1:] != like.shape[1:]:
        raise InvalidInputError(
            f"attention must have shape {tuple(like.shape)} (or 1 in place of {like.shape[0]}), "
            f"got {tuple(attention.shape)}"
        )
    if bounded and not bool(((attention >= 0) & (attention <= 1)).all()):
        raise InvalidInputError("attention must lie in [0, 1]; scale it before passing it")
    return attention.to(like).expand_as(like)
