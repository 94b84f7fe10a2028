"""Search for the place where a classifier is cut into feature extractor, last stage and head."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from xai_abn.errors import UnknownNameError, UnsupportedModelError
from xai_abn.networks.assembly import Cut, find_node, trace
from xai_abn.networks.tracing import as_unsupported, evaluating, spatial_layers, trace_outputs


def find_cut(backbone: nn.Module, layer: str | None = None, stage: str | None = None, input_size: int = 224) -> Cut:
    """Find where to cut a classifier, by running it on a blank image.

    Args:
        backbone: a CNN classifier (N, 3, H, W) -> (N, K) that torch.fx can trace at its top level.
        layer: name of the module whose output becomes the features. Default: the last module before the network's
            final downsampling, as published (``layer3`` of a ResNet).
        stage: name of the module that ends the last stage. Default: the last spatial activation, with whatever
            normalizes it (a DenseNet's last BatchNorm and ReLU).
        input_size: height and width of the blank image.

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
    with evaluating(backbone):
        graph = trace(backbone, [layer] if stage is None else [layer, stage])
    nodes = list(graph.nodes)
    cut = find_node(layer, nodes)
    shapes = _node_shapes(backbone, graph, sample)
    behind = nodes[nodes.index(cut) + 1 :]
    if stage is not None:
        last = find_node(stage, behind)
    else:
        spatial = [n for n in behind if len(shapes.get(n, ())) == 4 and shapes[n][2] * shapes[n][3] > 1]
        spatial = [n for n in spatial if not _is_pooling(backbone, n)]
        if not spatial:
            raise UnsupportedModelError(f"no spatial output is computed after {layer!r}; name an earlier layer")
        last = spatial[-1]
    end = str(last.target) if last.op == "call_module" else f"node:{last.name}"
    return Cut(layer, end, shapes[cut][1], shapes[last][1])


def default_split_layer(backbone: nn.Module, sample: Tensor) -> str:
    """Return the name of the last module before the final downsampling of the feature map.

    Raises:
        UnsupportedModelError: there is none, or the model does not accept the sample (1, 3, H, W).
    """
    size = f"{sample.shape[2]}x{sample.shape[3]}"
    with as_unsupported(f"{type(backbone).__name__} does not take an image of {size}; give another input_size"):
        outputs = spatial_layers(trace_outputs(backbone, sample))
    if not outputs:
        raise UnsupportedModelError("the model has no spatial feature maps to split after")
    final = min(o.shape[2] * o.shape[3] for o in outputs)
    larger = [o for o in outputs if o.shape[2] * o.shape[3] > final]
    last_size = min((o.shape[2] * o.shape[3] for o in larger), default=0)
    if not last_size:
        raise UnsupportedModelError("the model never downsamples; name the layer to split after")
    stage = [o for o in larger if o.shape[2] * o.shape[3] == last_size]
    first_final = next(o.name for o in outputs if o.shape[2] * o.shape[3] == final)
    # modules inside the next stage (its first, still unstrided convolution) come after the cut
    roots = {first_final.rsplit(".", i)[0] for i in range(first_final.count(".") + 1)}
    candidates = [o for o in stage if not any(_shares_block(o.name, r, backbone) for r in roots)]
    if not candidates:
        raise UnsupportedModelError("no module ends before the final downsampling; name the layer to split after")
    return max(candidates, key=lambda o: (o.order, -o.name.count("."))).name


def ends_in_tokens(backbone: nn.Module, sample: Tensor) -> bool:
    """Return whether a network computes on a sequence behind its last spatial output, for a sample (1, 3, H, W)."""
    try:
        outputs = trace_outputs(backbone, sample)
    except Exception:  # the network can raise anything
        return False
    last = max((o.order for o in spatial_layers(outputs)), default=-1)
    return any(o.sequence and o.order > last for o in outputs)


def _shares_block(name: str, root: str, backbone: nn.Module) -> bool:
    """Return whether ``name`` lies inside ``root`` and ``root`` is a block, not a plain sequence of stages."""
    inside = name.startswith(root + ".")
    return inside and not isinstance(backbone.get_submodule(root), nn.Sequential)


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
    except Exception as error:  # the network can raise anything
        reason = str(error).partition("\n")[0]
        raise UnsupportedModelError(
            f"the torch.fx trace of {type(backbone).__name__} does not run ({reason}); build AttentionBranchNetwork "
            "from parts of your own"
        ) from error
    return shapes


def _is_pooling(backbone: nn.Module, node: fx.Node) -> bool:
    name = type(backbone.get_submodule(str(node.target))).__name__ if node.op == "call_module" else str(node.target)
    return "pool" in name.lower() or "dropout" in name.lower()
