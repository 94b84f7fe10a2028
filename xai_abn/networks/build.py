"""Attention Branch Networks built from classifiers."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace

import torch
from torch import Tensor, nn

from xai_abn.errors import InvalidInputError, UnknownNameError, UnsupportedModelError
from xai_abn.networks.abn import ABNDescription, AttentionBranchNetwork, initialize, mechanisms
from xai_abn.networks.assembly import join, split
from xai_abn.networks.dilation import plan_windows
from xai_abn.networks.masks import MaskBranch, MaskDescription
from xai_abn.networks.splitting import ends_in_tokens, find_cut
from xai_abn.networks.tracing import LayerOutput, as_unsupported, evaluating, find_classifier, trace_outputs
from xai_abn.networks.vit_abn import assemble_vit, describe_vit, is_vit, linear_head

#: Kinds of attention maps that :func:`abn_from` takes as ``maps``.
MAPS = ("shared", "per-attribute", "per-attribute-signed")
#: Sources of the attention branch's weights that :func:`abn_from` takes as ``start``.
STARTS = ("classifier", "random")


def abn_from(
    backbone: nn.Module,
    *,
    mechanism: str = "residual",
    layer: str | None = None,
    input_size: int = 224,
    dilate: bool = True,
    smoothing: int = 0,
    stage: str | None = None,
    start: str = "classifier",
    maps: str = "shared",
    masks: bool = False,
) -> AttentionBranchNetwork:
    """Turn a classifier into an Attention Branch Network.

    The attention branch starts from the backbone's own last stage with its stride removed and, where the head is one
    linear layer, from its classifier, so it classifies before any training. Everything is copied; the backbone does
    not change.

    Args:
        backbone: a torchvision, timm or other CNN classifier (N, 3, H, W) -> (N, K), or a timm Vision Transformer,
            which is an experiment (:mod:`xai_abn.networks.vit_abn`).
        mechanism: ``"residual"`` g(1+M) as published, ``"product"`` g*M, ``"concatenation"``, or ``"auxiliary"`` g, for
            comparison, which does not use the map; see ``xai_abn.networks.abn.mechanisms``.
        layer: where to split. Default: the last module before the final downsampling, or the block before the last two
            of a Vision Transformer, such as ``"blocks.9"``.
        input_size: height and width of the blank image used to find shapes; a Vision Transformer needs none.
        dilate: multiply the dilation of the convolutions after a removed stride, so that they see at every position
            what they were trained to see (Yu et al., 2017). The released code, which trains from scratch, does not;
            pass False for its exact branch.
        smoothing: how many times to average the map over 3x3 neighbors; 0 as published.
        stage: name of the module that ends the last stage; default: see :func:`xai_abn.networks.splitting.find_cut`.
        start: ``"classifier"`` copies the branch's weights from the backbone's stage and classifier; ``"random"``
            draws them, as the released code does, for a network that is trained from scratch.
        maps: ``"shared"`` gives the published network with one map for all classes. For a classifier of attributes
            that can hold at once, ``"per-attribute"`` gives a :class:`~xai_abn.networks.multi_task.MultiTaskABN`,
            which has a map for each attribute; ``"per-attribute-signed"`` leaves out the sigmoid of the maps, which is
            the published multi-task network with ``mechanism="product"``.
        masks: add a mask branch, which makes a fine map for any class once it is trained; see
            :func:`add_mask_branch`.

    Returns:
        A network in evaluation mode whose perception branch computes the backbone's logits whenever the mechanism
        passes the features on unchanged. Its ``description`` records how it was made.

    Raises:
        UnsupportedModelError: the model cannot be split, or is a Vision Transformer and ``maps`` is not ``"shared"``.
        UnknownNameError: no such mechanism, layer, start or kind of maps.
        InvalidInputError: ``dilate=False`` or a ``stage`` for a Vision Transformer.

    Examples:
        >>> import torch, torchvision, xai_abn
        >>> network = xai_abn.abn_from(torchvision.models.resnet18())
        >>> network(torch.zeros(1, 3, 224, 224)).attention_map.shape
        torch.Size([1, 1, 14, 14])
    """
    if maps not in MAPS:
        raise UnknownNameError("kind of maps", maps, MAPS)
    if start not in STARTS:
        raise UnknownNameError("start", start, STARTS)
    combine = mechanisms[mechanism]
    weights = next(backbone.parameters(), None)
    if weights is None:
        raise UnsupportedModelError(
            f"{type(backbone).__name__} has no weights to make an ABN of; give a CNN classifier"
        )
    sample = torch.zeros(1, 3, input_size, input_size).to(weights)
    if is_vit(backbone):
        if not dilate or stage is not None:
            what = "stage" if dilate else "dilate=False"
            raise InvalidInputError(f"{what} is for networks with strides to remove, not for a Vision Transformer")
        if maps != "shared":
            raise UnsupportedModelError("the ABN of a Vision Transformer has one map: maps must be 'shared'")
        description = describe_vit(backbone, layer, mechanism, smoothing)
        classifier = linear_head(backbone)
        network = assemble_vit(backbone, description)
    else:
        where = "automatically" if layer is None else f"after {layer!r}"
        with _naming_tokens(backbone, input_size), as_unsupported(f"{type(backbone).__name__} cannot be cut {where}"):
            cut = find_cut(backbone, layer, stage, input_size)
            classifier = find_classifier(backbone)
            copied = copy.deepcopy(backbone)
            with evaluating(copied), torch.no_grad(), redirect_stderr(io.StringIO()):  # torch.fx prints failing code
                parts = split(copied, cut)
                windows = plan_windows(parts.last_stage, parts.feature_extractor(sample), dilate)
        description = ABNDescription(**vars(cut), windows=windows, mechanism=mechanism, maps=maps, smoothing=smoothing)
        network = join(parts, description, classifier.out_features)
    if start == "random":
        initialize(network.attention_branch)
    else:
        network.attention_branch.start_from(classifier, combine.initial_map_bias)
    network = network.to(weights).eval()
    if not is_vit(backbone):
        with _naming_tokens(backbone, input_size):
            _check_runs(network, sample, description.layer)
    return add_mask_branch(network, sample) if masks else network


def add_mask_branch(network: AttentionBranchNetwork, sample: Tensor, width: int = 96) -> AttentionBranchNetwork:
    """Give an Attention Branch Network an untrained mask branch, in place, and return the network.

    The branch reads the stage of the attention branch, the features, and the last layer of the feature extractor that
    is twice as fine, if there is one.

    Args:
        network: made by :func:`abn_from`, with one map for all classes.
        sample: (1, 3, H, W) input used to find the layers.
        width: channels of the branch.

    Raises:
        UnsupportedModelError: the network has a map for each attribute, or was built from parts of its own.
    """
    if network.description is None or network.description.maps != "shared":
        raise UnsupportedModelError(
            "a mask branch needs a network of abn_from with one map for all classes, maps='shared'"
        )
    parts = [o for o in trace_outputs(network, sample) if o.layout is not None and not o.packed]
    extractor = [o for o in parts if o.name.startswith("feature_extractor.")]
    stage = next(o for o in reversed(parts) if o.name in ("attention_branch.stage", "attention_branch.bn_att"))
    assert stage.layout is not None
    coarse = stage.layout.grid
    finer = [o for o in extractor if o.layout is not None and o.layout.grid == (2 * coarse[0], 2 * coarse[1])]
    same = [o for o in extractor if o.layout is not None and o.layout.grid == coarse]
    read = [*finer[-1:], *same[-1:], stage]
    description = MaskDescription([o.name for o in read], [_channels(o) for o in read], width)
    network.mask_branch = MaskBranch(description, network.class_rows.shape[1]).to(sample)
    network.description = replace(network.description, masks=description)
    return network


def _channels(output: LayerOutput) -> int:
    assert output.layout is not None
    return output.shape[1] if output.layout.kind == "channels-first" else output.shape[-1]


@contextmanager
def _naming_tokens(backbone: nn.Module, input_size: int) -> Iterator[None]:
    """Say of a network that cannot be cut whether it computes on tokens at its end, so that no other layer helps."""
    try:
        yield
    except UnsupportedModelError as error:
        if not ends_in_tokens(backbone, torch.zeros(1, 3, input_size, input_size)):
            raise
        reason = error.line.partition("; ")[0]
        raise UnsupportedModelError(
            f"{type(backbone).__name__} computes on tokens, and of transformers only timm's VisionTransformer can "
            f"become an ABN ({reason})"
        ) from error


def _check_runs(network: AttentionBranchNetwork, sample: Tensor, layer: str) -> None:
    try:
        with torch.no_grad(), redirect_stderr(io.StringIO()):
            network(sample)
    except Exception as error:  # the network's modules can raise anything
        raise UnsupportedModelError(
            f"the stage after {layer!r} does not run without its stride ({error}); "
            "name another layer, or build AttentionBranchNetwork from parts of your own"
        ) from error
