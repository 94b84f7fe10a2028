"""Multi-task Attention Branch Network: a classifier of T attributes with an attention map for each.

Source: H. Fukui, T. Hirakawa, T. Yamashita, H. Fujiyoshi, "Attention Branch Network: Learning of Attention Mechanism
    for Visual Explanation", CVPR 2019, section 3.5, and the authors' released code for CelebA (Chainer). Deviations:

- Maps are ``sigmoid(BN(S_t))`` in [0, 1] and features ``g * (1 + M_t)`` by default, as in the single-task network. The
  released maps are ``S_t`` itself, signed and unbounded, and the features ``g * M_t``: ``maps="per-attribute-signed"``
  with ``mechanism="product"`` of :func:`xai_abn.abn_from`. Without the batch normalization the sigmoid saturates: an
  object that fills a thirtieth of an image must score thirty times its share of the mean.
- The branch's scores are the mean of ``S_t``, so that each class map is an exact CAM. The released code takes the
  maximum, as the signed variant does here.
- One logit per attribute with binary cross-entropy, not a softmax over two. In pass t, the t-th of the T logits of the
  classifier's own head counts: with M = 0 and g * (1 + M), the network equals the classifier.
- The 1x1 convolution has a bias, so that the branch can start as the classifier.
- The T passes through the last stage run as one batch. In training, its batch normalization therefore computes one mean
  over all attributes; T passes one after the other would give T means.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xai_abn.networks.abn import AttentionBranchNetwork, smoothed


class AttributeBranch(nn.Module):
    """The attention branch with a map for each attribute: ``S = conv1x1(stage(F))``, ``M_t = sigmoid(BN(S_t))``.

    Args:
        stage: maps features (N, C, h, w) to (N, channels, h, w) without striding.
        channels: number of channels the stage gives.
        attributes: T.
        signed: the maps are S, without normalization and sigmoid, and the scores its maximum, as in the released code.
        smoothing: how many times to average the maps over 3x3 neighbors; 0 as published.
    """

    def __init__(
        self, stage: nn.Module, channels: int, attributes: int, *, signed: bool = False, smoothing: int = 0
    ) -> None:
        super().__init__()
        self.signed, self.smoothing = signed, smoothing
        self.stage = stage
        self.att_conv = nn.Conv2d(channels, attributes, 1)
        self.bn_att = nn.Identity() if signed else nn.BatchNorm2d(attributes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(attention_logits (N, T), attention_map (N, T, h, w), class_maps (N, T, h, w))``."""
        class_maps = self.att_conv(self.stage(features))
        if self.signed:
            return class_maps.amax(dim=(2, 3)), smoothed(class_maps, self.smoothing), class_maps
        attention_map = torch.sigmoid(self.bn_att(class_maps))
        return class_maps.mean(dim=(2, 3)), smoothed(attention_map, self.smoothing), class_maps

    def attend(self, features: Tensor) -> Tensor:
        """Return the attention maps (N, T, h, w) alone."""
        _, attention_map, _ = self(features)
        found: Tensor = attention_map
        return found

    @property
    def map_layers(self) -> list[nn.Module]:
        """The layers that make the attention maps and nothing else."""
        return [self.bn_att]

    @torch.no_grad()
    def start_from(self, classifier: nn.Linear, map_bias: float = 0.0) -> None:
        """Make the class maps the classifier's evidence at each position, if it reads the stage's channels.

        Args:
            classifier: the backbone's last linear layer.
            map_bias: not used: the maps are the class maps.
        """
        if classifier.in_features == self.att_conv.in_channels:
            self.att_conv.weight.copy_(classifier.weight[:, :, None, None])
            if classifier.bias is not None and self.att_conv.bias is not None:
                self.att_conv.bias.copy_(classifier.bias)


class MultiTaskABN(AttentionBranchNetwork):
    """An Attention Branch Network with one map per attribute; the perception branch runs T times.

    It is called like any :class:`AttentionBranchNetwork`, with T maps in place of one: ``attention_map`` and
    ``attention=`` are (N, T, h, w). The score of attribute t depends only on map t. Make one with ``abn_from(backbone,
    maps="per-attribute")``; the modules are those of the single-task network, and the perception branch, features (N,
    C, h, w) to logits (N, T), is shared by all attributes.

    Attributes:
        at_once: for how many attributes the perception branch runs at once outside training; fewer take less memory.
            While training, all run at once, because batch normalization needs them all.
    """

    attention_branch: AttributeBranch  # type: ignore[assignment]
    at_once: int = 8

    @property
    def bounded(self) -> bool:
        """Whether the maps lie in [0, 1]."""
        return not self.attention_branch.signed

    def perceive(self, features: Tensor, attention_map: Tensor) -> Tensor:
        """Return logits (N, T) of features (N, C, h, w) weighted by each of T maps (N, T, h, w)."""
        at_once = attention_map.shape[1] if self.training else self.at_once
        logits: list[Tensor] = []
        for first in range(0, attention_map.shape[1], at_once):
            maps = attention_map[:, first : first + at_once]
            number = maps.shape[1]
            seen = self.mechanism(features.repeat_interleave(number, dim=0), maps.flatten(0, 1)[:, None])
            answers = self.perception_branch(seen).unflatten(0, (-1, number))  # (N, number, T)
            logits.append(answers.diagonal(first, dim1=1, dim2=2))
        return torch.cat(logits, dim=1)
