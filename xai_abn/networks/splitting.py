"""Cut a classifier into feature extractor, last stage and head, and build an ABN from the pieces.

The cut is made on the graph of the model's own ``forward`` (torch.fx), so functional steps such as
a ReLU or a flatten between modules stay where they are, and parameter names stay the same.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from timm.layers import Conv2dSame
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, fx, nn

from xai_abn.errors import InvalidInputError, UnknownNameError, UnsupportedModelError
from xai_abn.networks.abn import AttentionBranch, AttentionBranchNetwork, initialise, mechanisms
from xai_abn.networks.multi_task import AttributeBranch, MultiTaskABN
from xai_abn.networks.tracing import evaluating, find_classifier, spatial_layers, trace_outputs

#: What :func:`abn_from` takes as ``maps``.
MAPS = ("shared", "per-attribute", "per-attribute-signed")


@dataclass(frozen=True)
class Split:
    """A classifier in parts; ``perception(extractor(x))`` equals the classifier's own answer.

    Attributes:
        feature_extractor: (N, 3, H, W) to features (N, C, h, w).
        perception: features to logits (N, K); shares the classifier's weights.
        last_stage: features to the last spatial activation (N, C', h', w'), before pooling; shares weights.
        channels: C.
        stage_channels: C'.
        layer: name of the module whose output is cut.
    """

    feature_extractor: nn.Module
    perception: nn.Module
    last_stage: nn.Module
    channels: int
    stage_channels: int
    layer: str


_Window = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d


class _CoarseTracer(fx.Tracer):
    """Keeps every module whole, except those that contain the cut."""

    def __init__(self, opened: set[str]) -> None:
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return qualified_name not in self.opened


def split_classifier(
    backbone: nn.Module, layer: str | None = None, input_size: int = 224, stage: str | None = None
) -> Split:
    """Cut a classifier behind ``layer``.

    Args:
        backbone: a CNN classifier (N, 3, H, W) -> (N, K) that torch.fx can trace at its top level.
        layer: name of the module whose output becomes the features. Default: the last module
            before the network's final downsampling, as published (``layer3`` of a ResNet).
        input_size: height and width of the blank image used to find shapes.
        stage: name of the module that ends the last stage; default: the last spatial activation, with whatever
            normalises it (a DenseNet's last BatchNorm and ReLU).

    Raises:
        UnknownNameError: no module is called ``layer`` or ``stage``.
        UnsupportedModelError: the model cannot be traced, or has no such point.
    """
    sample = torch.zeros(1, 3, input_size, input_size)
    layer = layer or default_split_layer(backbone, sample)
    names = dict(backbone.named_modules())
    for name in (layer, stage):
        if name is not None and name not in names:
            raise UnknownNameError("layer", name, [n for n in names if n])
    graph = _trace(backbone, [layer] if stage is None else [layer, stage])
    nodes = list(graph.nodes)
    cut = _call_of(layer, nodes)
    shapes = _node_shapes(backbone, graph, sample)
    behind = nodes[nodes.index(cut) + 1 :]
    spatial = [n for n in behind if len(shapes.get(n, ())) == 4 and shapes[n][2] * shapes[n][3] > 1]
    spatial = [n for n in spatial if not _is_pooling(backbone, n)]
    if stage is not None:
        spatial = [_call_of(stage, behind)]
    if not spatial:
        raise UnsupportedModelError(f"nothing spatial is computed behind {layer!r}; name an earlier layer")
    output = next(n for n in nodes if n.op == "output").args[0]
    return Split(
        feature_extractor=_subgraph(backbone, graph, None, cut),
        perception=_subgraph(backbone, graph, cut, output),
        last_stage=_subgraph(backbone, graph, cut, spatial[-1]),
        channels=shapes[cut][1],
        stage_channels=shapes[spatial[-1]][1],
        layer=layer,
    )


def _call_of(layer: str, nodes: list[fx.Node]) -> fx.Node:
    for node in nodes:
        if node.op == "call_module" and node.target == layer:
            return node
    raise UnsupportedModelError(f"layer {layer!r} is not called on the path from image (or split) to logits")


def default_split_layer(backbone: nn.Module, sample: Tensor) -> str:
    """Return the last module before the final downsampling of the feature map.

    Raises:
        UnsupportedModelError: there is none, or the model does not take the sample.
    """
    try:
        outputs = spatial_layers(trace_outputs(backbone, sample))
    except (AssertionError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"{type(backbone).__name__} does not take a blank image of {sample.shape[2]}x{sample.shape[3]} "
            f"({str(error).partition(chr(10))[0]}); give another input size"
        ) from error
    if not outputs:
        raise UnsupportedModelError("the model has no spatial feature maps to split behind")
    final = min(o.shape[2] * o.shape[3] for o in outputs)
    larger = [o for o in outputs if o.shape[2] * o.shape[3] > final]
    last_size = min((o.shape[2] * o.shape[3] for o in larger), default=0)
    if not last_size:
        raise UnsupportedModelError("the model never downsamples; name the layer to split behind")
    stage = [o for o in larger if o.shape[2] * o.shape[3] == last_size]
    first_final = next(o.name for o in outputs if o.shape[2] * o.shape[3] == final)
    # modules inside the next stage (its first, still unstrided convolution) come after the cut
    roots = {first_final.rsplit(".", i)[0] for i in range(first_final.count(".") + 1)}
    depth_ok = [o for o in stage if not any(_shares_block(o.name, r, backbone) for r in roots)]
    if not depth_ok:
        raise UnsupportedModelError("no module ends before the final downsampling; name the layer to split behind")
    return max(depth_ok, key=lambda o: (o.order, -o.name.count("."))).name


def _shares_block(name: str, root: str, backbone: nn.Module) -> bool:
    """Return whether ``name`` lies inside ``root`` and ``root`` is a block, not a plain sequence of stages."""
    inside = name.startswith(root + ".")
    return inside and not isinstance(backbone.get_submodule(root), nn.Sequential)


def _trace(backbone: nn.Module, layers: list[str]) -> fx.Graph:
    opened = {layer.rsplit(".", i)[0] for layer in layers for i in range(1, layer.count(".") + 1)}
    with evaluating(backbone):
        try:
            return _CoarseTracer(opened).trace(backbone)
        except Exception as error:
            raise UnsupportedModelError(
                f"torch.fx cannot trace {type(backbone).__name__} ({error}); "
                "build AttentionBranchNetwork from parts of your own"
            ) from error


def _node_shapes(backbone: nn.Module, graph: fx.Graph, sample: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                shapes[n] = tuple(result.shape)
            return result

    shapes: dict[fx.Node, tuple[int, ...]] = {}
    parameter = next(backbone.parameters())
    try:
        with evaluating(backbone), torch.no_grad():
            Recorder(fx.GraphModule(backbone, graph)).run(sample.to(parameter))
    except Exception as error:  # of whatever the network computes
        reason = str(error).partition("\n")[0]
        raise UnsupportedModelError(
            f"what torch.fx traced of {type(backbone).__name__} does not run ({reason}); build AttentionBranchNetwork "
            "from parts of your own"
        ) from error
    return shapes


def _is_pooling(backbone: nn.Module, node: fx.Node) -> bool:
    name = type(backbone.get_submodule(str(node.target))).__name__ if node.op == "call_module" else str(node.target)
    return "pool" in name.lower() or "dropout" in name.lower()


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
) -> AttentionBranchNetwork:
    """Turn a CNN classifier into an Attention Branch Network.

    The attention branch starts from the backbone's own last stage with its stride removed and, where
    the head is one linear layer, from its classifier, so that it classifies before any training.
    Everything is copied; the backbone is left as it was.

    Args:
        backbone: a torchvision, timm or other CNN classifier (N, 3, H, W) -> (N, K), or a timm Vision Transformer
            (:func:`xai_abn.networks.vit_abn.abn_from_vit`).
        mechanism: ``"residual"`` g(1+M) as published, ``"product"`` g*M, ``"concatenation"``, or ``"auxiliary"``, g:
            the control that does not use the map.
        layer: where to split; default the last module before the final downsampling, of a Vision Transformer
            the block before the last two, such as ``"blocks.9"``.
        input_size: height and width of the blank image used to find shapes; a Vision Transformer needs none.
        dilate: give the convolutions behind the removed stride twice the dilation, so that they see
            at every position what they were trained to see (Yu et al., 2017); poolings stay as they are. The released
            code, which trains from scratch, does not; pass False for its exact branch.
        smoothing: how many times to average the map over 3x3 neighbours; 0 as published.
        stage: name of the module that ends the last stage; default: see :func:`split_classifier`.
        start: ``"classifier"`` sets the branch from the backbone's stage and classifier; ``"random"`` draws it
            anew, as the released code does, for a network that is trained from scratch.
        maps: ``"shared"`` gives the published network with one map for all classes. For a classifier of attributes
            that may hold at once, ``"per-attribute"`` gives a :class:`~xai_abn.networks.multi_task.MultiTaskABN`, which
            has a map for each of them, and ``"per-attribute-signed"`` leaves out the sigmoid of the maps, which is,
            with ``mechanism="product"``, the published multi-task network.

    Returns:
        A network in evaluation mode whose perception branch computes the backbone's logits
        whenever the mechanism passes the features on unchanged.

    Raises:
        UnsupportedModelError: the model cannot be split, or is a Vision Transformer and ``maps`` not ``"shared"``.
        UnknownNameError: no such mechanism, layer, start or kind of maps.
        InvalidInputError: ``dilate=False`` or a ``stage`` for a Vision Transformer.

    Example:
        >>> import torch, torchvision, xai_abn
        >>> network = xai_abn.abn_from(torchvision.models.resnet18())
        >>> network(torch.zeros(1, 3, 224, 224)).attention_map.shape
        torch.Size([1, 1, 14, 14])
    """
    if maps not in MAPS:
        raise UnknownNameError("kind of maps", maps, MAPS)
    if isinstance(backbone, VisionTransformer):
        from xai_abn.networks.vit_abn import abn_from_vit, blocks_behind

        if not dilate or stage is not None:
            what = "stage" if dilate else "dilate=False"
            raise InvalidInputError(f"{what} is for networks with strides to remove, not for a Vision Transformer")
        if maps != "shared":
            raise UnsupportedModelError("the ABN of a Vision Transformer has one map: maps must be 'shared'")
        behind = blocks_behind(backbone, layer)
        return abn_from_vit(backbone, blocks=behind, mechanism=mechanism, smoothing=smoothing, start=start)
    combine = mechanisms.get(mechanism)
    parts = split_classifier(backbone, layer, input_size, stage)
    classifier = find_classifier(backbone)
    last_stage = copy.deepcopy(parts.last_stage)
    sample = torch.zeros(1, 3, input_size, input_size).to(next(backbone.parameters()))
    with evaluating(parts.feature_extractor), torch.no_grad():
        features = parts.feature_extractor(sample)
    _remove_stride(last_stage, features, dilate)
    kind, branch = _kind_and_branch(maps, last_stage, parts.stage_channels, classifier.out_features, smoothing)
    start_branch(branch, classifier, mechanism, start)
    network = kind(
        feature_extractor=copy.deepcopy(parts.feature_extractor),
        attention_branch=branch,  # type: ignore[arg-type]
        perception_branch=copy.deepcopy(parts.perception),
        mechanism=combine(parts.channels),
    )
    network = network.to(next(backbone.parameters())).eval()
    _check_runs(network, sample, parts.layer)
    return network


def _check_runs(network: AttentionBranchNetwork, sample: Tensor, layer: str) -> None:
    try:
        with torch.no_grad():
            network(sample)
    except Exception as error:  # of whatever the network asserts
        raise UnsupportedModelError(
            f"the stage behind {layer!r} does not run without its stride ({error}); "
            "name another layer, or build AttentionBranchNetwork from parts of your own"
        ) from error


def _kind_and_branch(
    maps: str, stage: nn.Module, channels: int, classes: int, smoothing: int
) -> tuple[type[AttentionBranchNetwork], AttentionBranch | AttributeBranch]:
    if maps == "shared":
        return AttentionBranchNetwork, AttentionBranch(stage, channels, classes, smoothing)
    signed = maps == "per-attribute-signed"
    return MultiTaskABN, AttributeBranch(stage, channels, classes, signed=signed, smoothing=smoothing)


def start_branch(branch: AttentionBranch | AttributeBranch, classifier: nn.Linear, mechanism: str, start: str) -> None:
    """Set a new branch's weights from the classifier's, or draw them; see :func:`abn_from`.

    Raises:
        UnknownNameError: ``start`` is neither ``"classifier"`` nor ``"random"``.
    """
    if start == "random":
        initialise(branch)
    elif start != "classifier":
        raise UnknownNameError("start", start, ["classifier", "random"])
    elif isinstance(branch, AttributeBranch):
        branch.start_as(classifier)
    else:
        _initialise_from_classifier(branch, classifier, map_bias=1.0 if mechanism == "product" else 0.0)


def _initialise_from_classifier(branch: AttentionBranch, classifier: nn.Linear, map_bias: float) -> None:
    """Set the branch so that its class maps are the rectified class evidence of the backbone.

    Class maps start as ReLU(w_c . A + b_c): BatchNorms as identities, the second 1x1 convolution too.
    The map head starts as a blurred sum over the rectified class maps: M is high where any class has
    evidence. Its BatchNorm bias, the logit around which M lies once the statistics are learned, is 0
    (or 1 for the product, which starts by letting most of the features through).
    """
    with torch.no_grad():
        if classifier.in_features == branch.att_conv.in_channels:
            branch.att_conv.weight.copy_(classifier.weight[:, :, None, None])
            if classifier.bias is not None:
                branch.bn_att2.bias.copy_(classifier.bias)
            nn.init.dirac_(branch.att_conv2.weight)
        classes = branch.att_conv3.in_channels
        branch.att_conv3.weight.fill_(1.0 / (9 * classes**0.5))
        branch.bn_att3.bias.fill_(map_bias)


def _remove_stride(stage: nn.Module, features: Tensor, dilate: bool) -> None:
    """Make the stage keep its input's size, in place.

    Args:
        stage: the last stage as it was.
        features: what it gets, (1, C, h, w).
        dilate: give each convolution as much more dilation as its input has become larger.
    """
    rates = _input_rates(stage, features)
    for name, module in list(stage.named_modules()):
        if not isinstance(module, _Window):
            continue
        rate = rates.get(name, 1) if dilate and max(_pair(module.kernel_size)) > 1 else 1
        if isinstance(module, nn.Conv2d) and rate > 1 and isinstance(module.padding, tuple):
            module.dilation = tuple(rate * d for d in module.dilation)
            module.padding = tuple(rate * p for p in module.padding)
        if max(_pair(module.stride)) == 1:
            continue
        module.stride = (1, 1)
        spread = [(_span(module, axis) - 1, _pair(module.padding)[axis]) for axis in (0, 1)]
        if any(extra != 2 * pad for extra, pad in spread) and not isinstance(module, Conv2dSame):
            _pad_to_same_size(stage, name, module, spread)


def _input_rates(stage: nn.Module, features: Tensor) -> dict[str, int]:
    """Return how many times smaller than the features the input of each convolution and pooling is, by its name.

    Looked at on features four times as large, where the stage takes them: without padding, small ones shrink more.
    """
    large = features.new_zeros(1, features.shape[1], 4 * features.shape[2], 4 * features.shape[3])
    try:
        heights, height = _input_heights(stage, large), large.shape[2]
    except Exception:  # of whatever the network asserts; the features themselves it takes
        heights, height = _input_heights(stage, features), features.shape[2]
    return {name: round(height / found) for name, found in heights.items()}


def _input_heights(stage: nn.Module, features: Tensor) -> dict[str, int]:
    """Return how high the input of each convolution and pooling is, by its name."""
    heights: dict[str, int] = {}

    def note(name: str, inputs: tuple[Tensor, ...]) -> None:
        if inputs:
            heights.setdefault(name, inputs[0].shape[2])

    windows = [(name, module) for name, module in stage.named_modules() if isinstance(module, _Window)]
    hooks = [m.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs)) for name, m in windows]
    try:
        with evaluating(stage), torch.no_grad():
            stage(features)
    finally:
        for hook in hooks:
            hook.remove()
    return heights


def _span(module: _Window, axis: int) -> int:
    """Return how many pixels the kernel reaches over."""
    return (_pair(module.kernel_size)[axis] - 1) * _pair(getattr(module, "dilation", 1))[axis] + 1


def _pad_to_same_size(stage: nn.Module, name: str, module: _Window, spread: list[tuple[int, int]]) -> None:
    """Replace an even-sized window, such as 2x2 pooling, by the same window over a padded edge."""
    (rows, top), (columns, left) = spread
    module.padding = (0, 0)
    padding = nn.ReplicationPad2d((left, columns - left, top, rows - top))
    parent, _, attribute = name.rpartition(".")
    setattr(stage.get_submodule(parent), attribute, nn.Sequential(padding, module))


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value, value)
