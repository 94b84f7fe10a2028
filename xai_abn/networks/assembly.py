"""Attention Branch Networks built from a description, without running or searching anything.

A classifier is cut on the graph of its own ``forward`` (torch.fx), so functional steps such as a ReLU or a flatten
between modules stay where they are, and parameter names stay the same.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import fx, nn

from xai_abn.errors import UnsupportedModelError
from xai_abn.networks.abn import ABNDescription, AttentionBranch, AttentionBranchNetwork, mechanisms
from xai_abn.networks.masks import MaskBranch
from xai_abn.networks.multi_task import AttributeBranch, MultiTaskABN
from xai_abn.networks.vit_abn import assemble_vit, is_vit

#: By module name, the attributes to set (stride, dilation, padding) and ``replicate``, the edges to replicate first.
Windows: TypeAlias = Mapping[str, Mapping[str, Any]]


def assemble(backbone: nn.Module, description: ABNDescription, classes: int) -> AttentionBranchNetwork:
    """Build the network that a description describes.

    Args:
        backbone: the classifier, in evaluation mode; its modules become the network's own.
        description: from :attr:`AttentionBranchNetwork.description`.
        classes: number of classes K.

    Raises:
        UnknownNameError: no such mechanism.
        UnsupportedModelError: the backbone has no such layer or stage.
    """
    if is_vit(backbone):
        return assemble_vit(backbone, description)
    cut = Cut(description.layer, description.stage, description.channels, description.stage_channels)
    return join(split(backbone, cut), description, classes)


def join(parts: BackboneSplit, description: ABNDescription, classes: int) -> AttentionBranchNetwork:
    """Build the network of a classifier's parts; see :func:`assemble`."""
    stage = copy.deepcopy(parts.last_stage)
    apply_windows(stage, description.windows)
    shared = set(parts.feature_extractor.modules()) & set(parts.perception.modules())
    channels, smoothing = description.stage_channels, description.smoothing
    kind: type[AttentionBranchNetwork]
    branch: AttentionBranch | AttributeBranch
    if description.maps == "shared":
        kind = AttentionBranchNetwork
        branch = AttentionBranch(stage, channels, classes, smoothing, description.normalized)
    else:
        signed = description.maps == "per-attribute-signed"
        kind, branch = MultiTaskABN, AttributeBranch(stage, channels, classes, signed=signed, smoothing=smoothing)
    network = kind(
        feature_extractor=parts.feature_extractor,
        attention_branch=branch,  # type: ignore[arg-type]
        perception_branch=copy.deepcopy(parts.perception) if shared else parts.perception,
        mechanism=mechanisms[description.mechanism](description.channels),
    )
    if description.masks is not None:
        network.mask_branch = MaskBranch(description.masks, channels)
    network.description = description
    return network


@dataclass(frozen=True)
class Cut:
    """Where a classifier is cut: enough to cut it again without running it.

    Attributes:
        layer: name of the module whose output becomes the features.
        stage: what computes the last spatial activation: a module's name, or ``"node:NAME"`` for a functional step,
            named as torch.fx names it.
        channels: C of the features (N, C, h, w).
        stage_channels: C' of the last spatial activation (N, C', h', w').
    """

    layer: str
    stage: str
    channels: int
    stage_channels: int


@dataclass(frozen=True)
class BackboneSplit:
    """A classifier in parts; ``perception(extractor(x))`` equals the classifier's own output.

    Attributes:
        feature_extractor: (N, 3, H, W) to features (N, C, h, w).
        perception: features to logits (N, K).
        last_stage: features to the last spatial activation (N, C', h', w'), before pooling.
        cut: where the classifier was cut.

    All parts share the classifier's modules.
    """

    feature_extractor: nn.Module
    perception: nn.Module
    last_stage: nn.Module
    cut: Cut


class _CoarseTracer(fx.Tracer):
    """Keeps every module whole, except those that contain the cut."""

    def __init__(self, opened: set[str]) -> None:
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return qualified_name not in self.opened


def split(backbone: nn.Module, cut: Cut) -> BackboneSplit:
    """Cut a classifier in evaluation mode.

    Raises:
        UnsupportedModelError: the model cannot be traced, or has no such point.
    """
    modules = [cut.layer] if cut.stage.startswith("node:") else [cut.layer, cut.stage]
    graph = trace(backbone, modules)
    nodes = list(graph.nodes)
    start, output = find_node(cut.layer, nodes), nodes[-1].args[0]
    assert isinstance(output, fx.Node)  # a classifier returns one tensor
    return BackboneSplit(
        feature_extractor=_subgraph(backbone, graph, None, start),
        perception=_subgraph(backbone, graph, start, output),
        last_stage=_subgraph(backbone, graph, start, find_node(cut.stage, nodes[nodes.index(start) + 1 :])),
        cut=cut,
    )


def apply_windows(stage: nn.Module, windows: Windows) -> None:
    """Change the strides, dilations and padding of a stage, in place."""
    for name, change in windows.items():
        module = stage.get_submodule(name)
        for attribute, value in change.items():
            if attribute != "replicate":
                setattr(module, attribute, tuple(value))
        if "replicate" in change:
            parent, _, child = name.rpartition(".")
            padded = nn.Sequential(nn.ReplicationPad2d(tuple(change["replicate"])), module)
            setattr(stage.get_submodule(parent), child, padded)


def trace(backbone: nn.Module, layers: list[str]) -> fx.Graph:
    """Return the graph of a classifier in evaluation mode; modules that contain none of the layers stay whole.

    Raises:
        UnsupportedModelError: torch.fx cannot trace it.
    """
    opened = {layer.rsplit(".", i)[0] for layer in layers for i in range(1, layer.count(".") + 1)}
    try:
        return _CoarseTracer(opened).trace(backbone)
    except Exception as error:  # the network's own forward can raise anything when it is traced
        raise UnsupportedModelError(
            f"torch.fx cannot trace {type(backbone).__name__} ({error}); "
            "build AttentionBranchNetwork from parts of your own"
        ) from error


def find_node(place: str, nodes: list[fx.Node]) -> fx.Node:
    """Return the step that calls a module, or the functional step ``"node:NAME"``.

    Raises:
        UnsupportedModelError: there is no such step.
    """
    for node in nodes:
        called = node.op == "call_module" and node.target == place
        if called or place == f"node:{node.name}":
            return node
    raise UnsupportedModelError(f"layer {place!r} is not called on the path from image (or split) to logits")


def _subgraph(backbone: nn.Module, graph: fx.Graph, start: fx.Node | None, end: fx.Node) -> fx.GraphModule:
    """Return the part of the graph that computes ``end`` from ``start`` (or from the image)."""
    part = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    if start is not None:
        copied[start] = part.placeholder("features")
    needed = _ancestors(end, start)
    for node in graph.nodes:
        if node in needed and node not in copied:
            copied[node] = part.node_copy(node, lambda n: copied[n])
    part.output(copied[end])
    part.lint()
    return fx.GraphModule(backbone, part)


def _ancestors(end: fx.Node, start: fx.Node | None) -> set[fx.Node]:
    found: set[fx.Node] = set()
    pending = [end]
    while pending:
        node = pending.pop()
        if node in found:
            continue
        found.add(node)
        if node is start:
            continue
        if node.op == "placeholder" and start is not None:
            raise UnsupportedModelError(
                "the logits also depend on something before the split layer (a skip around it); name another layer"
            )
        pending.extend(node.all_input_nodes)
    return found
