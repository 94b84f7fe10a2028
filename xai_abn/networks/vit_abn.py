"""Attention Branch Networks of Vision Transformers: an experiment.

The published block needs positions, and a Vision Transformer has them: its patch tokens. The parts are those of
:mod:`xai_abn.networks.abn`; tokens with their grid pass between them. Tokens that are not patches
(class, registers) go through both branches. They have no position in a map and are not weighted by it.
"""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from xai_abn.errors import UnknownNameError, UnsupportedModelError
from xai_abn.networks.abn import ABNDescription, AttentionBranch, AttentionBranchNetwork, Mechanism, mechanisms
from xai_abn.networks.layout import Layout
from xai_abn.networks.masks import MaskBranch

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

#: Default number of a transformer's blocks after the split.
LAST_BLOCKS = 2


def is_vit(network: nn.Module) -> TypeGuard[VisionTransformer]:
    """Return whether a network is timm's VisionTransformer; where timm was not imported, none is."""
    home = sys.modules.get("timm.models.vision_transformer")
    return home is not None and isinstance(network, home.VisionTransformer)


class Tokens(NamedTuple):
    """The features of a Vision Transformer.

    Attributes:
        values: (N, prefix + h w, D).
        layout: positions of the patches among them.
    """

    values: Tensor
    layout: Layout

    @property
    def maps(self) -> Tensor:
        """The patch tokens on their grid, (N, D, h, w)."""
        return self.layout.to_maps(self.values)

    def with_maps(self, maps: Tensor) -> Tokens:
        """Return these tokens with the patches replaced by maps (N, D, h, w)."""
        patches = maps.flatten(2).transpose(1, 2)
        return self._replace(values=torch.cat([self.values[:, : self.layout.prefix], patches], dim=1))


class TokenExtractor(nn.Module):
    """The feature extractor: everything before the split, from an image batch (N, 3, H, W) to tokens."""

    def __init__(self, vit: VisionTransformer, blocks: int) -> None:
        super().__init__()
        self.vit = copy.deepcopy(vit)
        self.vit.prune_intermediate_layers([len(vit.blocks) - blocks - 1], prune_norm=True, prune_head=True)

    def forward(self, images: Tensor) -> Tokens:
        """Return the tokens after the split, with the patch embedding's grid for this image size."""
        grid = self.vit.patch_embed.dynamic_feat_size((images.shape[2], images.shape[3]))
        return Tokens(self.vit.forward_features(images), Layout("tokens", grid, self.vit.num_prefix_tokens))


class TokenStage(nn.Module):
    """The attention branch's stage: copies of the last blocks and the final norm, from tokens to maps (N, D, h, w)."""

    def __init__(self, vit: VisionTransformer, blocks: int) -> None:
        super().__init__()
        self.blocks = copy.deepcopy(vit.blocks[-blocks:])
        self.norm = copy.deepcopy(nn.Sequential(vit.norm, vit.fc_norm))  # one of them: before or after pooling

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the last blocks' output for the patches, (N, D, h, w)."""
        return tokens._replace(values=self.norm(self.blocks(tokens.values))).maps


class TokenClassifier(nn.Module):
    """The perception branch: the last blocks, norm, pooling and head, from tokens to logits (N, K)."""

    def __init__(self, vit: VisionTransformer, blocks: int) -> None:
        super().__init__()
        self.vit = copy.deepcopy(vit)
        self.vit.blocks = self.vit.blocks[-blocks:]
        self.vit.patch_embed = self.vit.norm_pre = nn.Identity()
        self.vit.cls_token = self.vit.reg_token = self.vit.pos_embed = None

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the logits (N, K)."""
        return self.vit.forward_head(self.vit.norm(self.vit.blocks(tokens.values)))


class OnPatches(Mechanism):
    """A mechanism for tokens: applies one for maps to the patches; other tokens do not change.

    Args:
        mechanism: from features (N, D, h, w) and a map (N, 1, h, w) to features; see ``mechanisms``.
    """

    def __init__(self, mechanism: Mechanism) -> None:
        nn.Module.__init__(self)
        self.mechanism = mechanism
        self.uses_map = mechanism.uses_map

    def forward(self, tokens: Tokens, attention: Tensor) -> Tokens:  # type: ignore[override]
        """Weight the patches by attention (N, 1, h, w); as many tokens as before."""
        return tokens.with_maps(self.mechanism(tokens.maps, attention))


def describe_vit(vit: VisionTransformer, layer: str | None, mechanism: str, smoothing: int) -> ABNDescription:
    """Describe the ABN of a timm Vision Transformer cut after a block; see :func:`xai_abn.abn_from`.

    Raises:
        UnsupportedModelError: another kind of transformer, or one without a grid of patches, pooling or linear head.
        UnknownNameError: ``layer`` is not a block that other blocks follow.
    """
    linear_head(vit)
    names = [f"blocks.{i}" for i in range(len(vit.blocks) - 1)]
    if not names:
        raise UnsupportedModelError("an ABN on patches needs at least two blocks, got one")
    layer = layer if layer is not None else names[-min(LAST_BLOCKS, len(names))]
    if layer not in names:
        raise UnknownNameError("layer to split after", layer, names)
    return ABNDescription(layer, "", vit.embed_dim, vit.embed_dim, mechanism=mechanism, smoothing=smoothing)


def assemble_vit(vit: VisionTransformer, description: ABNDescription) -> AttentionBranchNetwork:
    """Build the ABN of a timm Vision Transformer.

    The attention branch's stage is a copy of the last blocks and the final norm. Everything is copied. The map has the
    size of the patch grid, also for image sizes other than the model's own where it takes them
    (``dynamic_img_size``).

    Deviation from the published ABN: the map weights only patch tokens. What a class or register token has collected
    before the split reaches the prediction regardless of the map.
    """
    blocks = len(vit.blocks) - 1 - int(description.layer.removeprefix("blocks."))
    classes = linear_head(vit).out_features
    network = AttentionBranchNetwork(
        feature_extractor=TokenExtractor(vit, blocks),
        attention_branch=AttentionBranch(TokenStage(vit, blocks), vit.embed_dim, classes, description.smoothing),
        perception_branch=TokenClassifier(vit, blocks),
        mechanism=OnPatches(mechanisms[description.mechanism](vit.embed_dim)),
    )
    if description.masks is not None:
        network.mask_branch = MaskBranch(description.masks, vit.embed_dim)
    network.description = description
    return network


def linear_head(vit: VisionTransformer) -> nn.Linear:
    """Return the head of a transformer that can be cut into the parts above.

    Raises:
        UnsupportedModelError: it cannot be; the message says why.
    """
    from timm.models.vision_transformer import VisionTransformer

    if type(vit) is not VisionTransformer:
        reason = f"not {type(vit).__name__}, which has its own forward pass"
    elif not vit.global_pool or not isinstance(vit.head, nn.Linear):
        reason = "with pooling and one linear head, and this one lacks them"
    elif not isinstance(vit.patch_drop, nn.Identity):
        reason = "that keeps all patches; this one drops some while training (patch_drop_rate), so there is no grid"
    elif not hasattr(vit.patch_embed, "dynamic_feat_size"):
        reason = f"that gives its grid of patches, which {type(vit.patch_embed).__name__} does not"
    else:
        return vit.head
    raise UnsupportedModelError(f"an ABN on patches is made from timm's VisionTransformer {reason}")
