"""Search for the layer that class activation maps read, and for the attention blocks of a transformer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xai_abn.errors import UnsupportedModelError
from xai_abn.models.attention import AttentionWatch
from xai_abn.networks.tracing import (
    LayerOutput,
    evaluating,
    hooks,
    in_this_thread,
    layers,
    main_tensor,
    of_the_image,
    on_device,
    spatial_layers,
    with_main_tensor,
    without_gradients,
)
from xai_abn.seeding import seeded

#: Number of layers that are tried at a time, from the last one backwards.
TRIED_TOGETHER = 8


@dataclass(frozen=True)
class AttentionPlace:
    """Where a network attends.

    Attributes:
        module: name of the innermost module around the attention; empty for the network itself.
        self_attention: whether all tokens attend to all tokens of an image, or of a window.
        whole: whether they attend to all tokens of an image.
    """

    module: str
    self_attention: bool
    whole: bool


def find_target_layer(
    module: nn.Module,
    sample: Tensor,
    outputs: list[LayerOutput],
    places: Sequence[AttentionPlace],
    scores: Callable[[object], Tensor],
    network: str,
) -> str:
    """Return the name of the last layer with positions on which the scores depend, which CAM methods should read.

    In a CNN, it is the last module to finish whose output is (N, C, h, w), or (N, C, d, h, w) of a volume, with more
    than one position and does not come directly from a pooling (``layer4`` of a ResNet, ``features.29`` of VGG16). In a
    transformer, it is the last one, as wide as the last tokens, on whose patches the scores depend. They do not depend
    on patches behind the last attention if the network reads its class token. Layers inside an attention are left out.
    Of a block that returns a tuple, its first part counts where it is of the same kind as the layer found inside: the
    sum of a residual block, not a branch.

    In a segmentation network, whose scores are computed from a map of class scores, it is the last one on the coarsest
    grid in front of the head that computes this map. A layer of the head would only give the map of class scores.

    Args:
        module: the network.
        sample: (1, C, H, W) or (1, C, D, H, W) input.
        outputs: outputs of the network's modules for the sample; see :func:`xai_abn.networks.tracing.trace_outputs`.
        places: where the network attends; see :func:`attention_places`.
        scores: computes scores (N, K) from the network's output.
        network: its name, for messages.

    Raises:
        UnsupportedModelError: there is none, or the network computes on tokens that do not fit a grid of patches.
    """
    packed, outputs = [o for o in outputs if o.packed], [o for o in outputs if not o.packed]
    inside = tuple(f"{place.module}." for place in places if place.module)
    spatial = [o for o in spatial_layers(outputs) if not o.name.startswith(inside)]
    behind = [o for o in outputs if not spatial or o.order > spatial[-1].order]
    tokens = [o for o in behind if o.name and o.layout is not None and o.layout.kind == "tokens" and not o.transparent]
    tokens = [o for o in of_the_image(tokens) if not o.name.startswith(inside)]
    if spatial and not tokens and any(o.sequence for o in behind):
        raise UnsupportedModelError(
            f"behind its last spatial layer {spatial[-1].name!r}, {network} computes on tokens that do not fit a grid "
            "of patches, so no target layer can be chosen; name one with layer="
        )
    with seeded(0):
        noise = torch.randn_like(sample)
    with evaluating(module), without_gradients(module):
        answer = module(on_device(noise, module))
        given = scores(answer)
        class_map = _class_map(answer, given, noise.dim())
    if class_map is not None:
        found = _in_front_of_head(_relevant(module, noise, scores, [*spatial, *tokens]), class_map.shape[1])
    else:
        # without layers that output class scores of each token
        features = [o for o in tokens if o.kind != "Linear" or o.shape[2] != given.shape[1]]
        rest, found = [o for o in features if o.shape[2] == features[-1].shape[2]] or spatial, []
        while rest and not found:
            rest, last = rest[:-TRIED_TOGETHER], rest[-TRIED_TOGETHER:]
            found = _relevant(module, noise, scores, last)
    if found:
        inner = found[-1]
        blocks = [o for o in packed if inner.name.startswith(f"{o.name}.") and o.order > inner.order]
        blocks = [o for o in of_the_image(blocks) if (o.shape, o.layout) == (inner.shape, inner.layout)]
        return [inner, *_relevant(module, noise, scores, blocks)][-1].name
    repeated = next((o for o in outputs if o.name and o.spatial and o.calls > 1), None)
    if spatial or tokens:
        reason = f"has no layer with {'patches' if tokens else 'positions'} on which its scores depend differentiably"
    elif repeated is not None:
        reason = f"runs {repeated.name!r} {repeated.calls} times on an image, so this layer has no single map"
    elif any(o.sequence for o in outputs):
        reason = "computes on tokens that do not fit a grid of patches"
    else:
        reason = "has no layer with a spatial output"
    raise UnsupportedModelError(f"{network} {reason}; name one with layer=, or use occlusion, which reads no layer")


def _class_map(answer: object, scores: Tensor, axes: int) -> Tensor | None:
    """Return the map of class scores (N, K, ...) in a network's output, if its scores are computed from one."""
    parts = list(_tensors(answer))
    maps = [part for part in parts if part.dim() == axes and part[0, 0].numel() > 1]
    return maps[0] if maps and not any(part is scores for part in parts) else None


def _tensors(answer: object) -> Iterator[Tensor]:
    """Yield every tensor in a network's output."""
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, (Mapping, list, tuple)):
        for part in answer.values() if isinstance(answer, Mapping) else answer:
            yield from _tensors(part)


def _in_front_of_head(outputs: list[LayerOutput], classes: int) -> list[LayerOutput]:
    """Return the layers of the coarsest grid outside the head: the largest module with the class map but not all."""
    maps = [o for o in outputs if o.layout is not None and o.layout.kind != "tokens" and o.shape[1] == classes]
    parts = (maps or outputs)[-1].name.split(".") if outputs else []
    for depth in range(1, len(parts) + 1):
        head = ".".join(parts[:depth])
        rest = [o for o in outputs if o.name != head and not o.name.startswith(f"{head}.")]
        if rest:
            grids = {o.order: o.layout.positions for o in rest if o.layout is not None}
            return [o for o in rest if grids[o.order] == min(grids.values())]
    return []


def _relevant(
    module: nn.Module, sample: Tensor, scores: Callable[[object], Tensor], outputs: Sequence[LayerOutput]
) -> list[LayerOutput]:
    """Return the outputs on whose positions the scores depend, by their gradient, in order of computing.

    If the gradient of the scores is 0 everywhere, as in a new network whose last layer is zero, the gradient of the
    input of the linear layer that ran last is used instead.
    """
    ran: Counter[str] = Counter()
    kept: dict[str, Tensor] = {}
    read: list[Tensor] = []
    wanted = {o.name: o for o in outputs}

    def hook(name: str) -> Callable[[nn.Module, object, object], object]:
        def keep(_module: nn.Module, _inputs: object, given: object) -> object:
            ran[name] += 1
            output = main_tensor(given)
            if ran[name] - 1 != wanted[name].call or output is None or not output.is_floating_point():
                return None
            kept[name] = output if output.requires_grad else output.detach().requires_grad_()
            torch.set_grad_enabled(True)  # in a part that the network runs without gradients, until it ends
            return with_main_tensor(given, kept[name].clone())

        return keep

    keeping = (module.get_submodule(n).register_forward_hook(in_this_thread(hook(n))) for n in wanted)
    linear = (m for m in module.modules() if isinstance(m, nn.Linear))
    note = in_this_thread(lambda _, inputs: read.append(inputs[0]))
    reading = (m.register_forward_pre_hook(note) for m in linear)
    with hooks(keeping), hooks(reading), evaluating(module), torch.inference_mode(False), torch.enable_grad():
        found = scores(module(on_device(sample, module)))
    for values in [found, *read[-1:]]:
        with seeded(0), torch.enable_grad():
            mixed = (values * torch.randn_like(values)).sum()
        if not (kept and mixed.requires_grad):
            continue
        gradients = torch.autograd.grad(mixed, list(kept.values()), allow_unused=True, retain_graph=True)
        by_name = {n: g for n, g in zip(kept, gradients, strict=True) if g is not None}
        count = [o for o in outputs if o.name in by_name and _reaches_positions(by_name[o.name], o)]
        if count:
            return count
    return []


def _reaches_positions(gradient: Tensor, output: LayerOutput) -> bool:
    assert output.layout is not None
    return bool(output.layout.to_maps(output.layout.batch_first(gradient)).abs().amax() > 0)


def runs_in_series(module: nn.Module, sample: Tensor, layer: str) -> bool:
    """Return whether the last call of a layer depends on every earlier one, for an input (1, C, H, W)."""
    calls: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, given: object) -> object:
        output = main_tensor(given)
        if output is None:
            return None
        calls.append(output if output.requires_grad else output.detach().requires_grad_())
        return with_main_tensor(given, calls[-1].clone())

    keeping = (module.get_submodule(layer).register_forward_hook(in_this_thread(keep)),)
    with hooks(keeping), evaluating(module), torch.inference_mode(False), torch.enable_grad():
        module(on_device(sample, module))
    with torch.enable_grad():
        gradients = torch.autograd.grad(calls[-1].sum(), calls[:-1], allow_unused=True)
    return all(gradient is not None for gradient in gradients)


def attention_blocks(places: Sequence[AttentionPlace]) -> list[str]:
    """Return the name of the block around each self-attention, in order of computing; empty without any.

    A block is the outermost module that holds that attention and no other. There are none where a module attends
    several times in a pass.
    """
    names = [place.module for place in places if place.self_attention]
    for depth in range(1, 1 + max((n.count(".") + 1 for n in names), default=0)):
        blocks = [".".join(n.split(".")[:depth]) for n in names]
        if len(set(blocks)) == len(blocks):
            return blocks
    return []


def attention_places(module: nn.Module, sample: Tensor) -> list[AttentionPlace]:
    """Run a network once on an input (1, C, H, W) and return where it attends, in order of computing."""
    active: list[str] = []
    places: list[AttentionPlace] = []

    def enter(name: str) -> Callable[..., None]:
        return in_this_thread(lambda *_: active.append(name))

    def leave(*_: object) -> None:
        active.pop()

    def note(weights: Tensor | None) -> None:
        whole = weights is not None and len(weights) == len(sample)
        places.append(AttentionPlace(active[-1] if active else "", weights is not None, whole))

    def seen(weights: Tensor) -> Tensor:
        note(weights)
        return weights

    entering = (m.register_forward_pre_hook(enter(name)) for name, m in layers(module))
    leaving = (m.register_forward_hook(in_this_thread(leave)) for _, m in layers(module))
    watch = AttentionWatch(seen, lambda: note(None))
    with hooks(entering), hooks(leaving), evaluating(module), without_gradients(module), watch:
        module(on_device(sample, module))
    return places
