"""Find the layer that class activation maps read, and the attention blocks of a transformer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from xai_abn.errors import UnsupportedModelError
from xai_abn.models.attention import AttentionWatch
from xai_abn.networks.tracing import LayerOutput, evaluating, in_this_thread, on_device, spatial_layers, trace_outputs
from xai_abn.seeding import seeded


def find_target_layer(module: nn.Module, sample: Tensor, scores: Callable[[object], Tensor]) -> str:
    """Return the name of the last layer that still has positions: what CAM methods should look at.

    That is the last module to finish whose output is (N, C, h, w) with more than one position and
    does not come straight out of a pooling (``layer4`` of a ResNet, ``features.29`` of VGG16).

    Raises:
        UnsupportedModelError: there is none, or a transformer's token layers come behind it.
    """
    outputs = trace_outputs(module, sample)
    candidates = spatial_layers(outputs)
    behind = outputs[candidates[-1].order + 1 :] if candidates else outputs
    tokens = [o for o in behind if o.name and o.layout is not None and o.layout.kind == "tokens" and not o.transparent]
    if tokens:
        return _last_token_layer(module, sample, scores, tokens)
    if not candidates:
        raise UnsupportedModelError(f"{type(module).__name__} has no layer with a spatial output; name one with layer=")
    if any(o.tokens for o in behind):
        raise UnsupportedModelError(
            f"{type(module).__name__} computes, behind its last spatial layer {candidates[-1].name!r}, on tokens that "
            "fit no grid of patches, so no target layer can be chosen for it; name one with layer="
        )
    return candidates[-1].name


def _last_token_layer(
    module: nn.Module, sample: Tensor, scores: Callable[[object], Tensor], tokens: list[LayerOutput]
) -> str:
    """Return the last layer, as wide as the network's last and in no attention, on whose patches the scores depend.

    Behind the last attention of a network that reads its class token, patches have no say: their gradient is 0. It is
    taken on noise, for a random mixture of what the last linear layer reads, since new networks often score 0.
    """
    inside = tuple(f"{place}." for place in attention_places(module, sample))
    named = {o.name: o.layout for o in tokens if o.shape[2] == tokens[-1].shape[2] and not o.name.startswith(inside)}
    kept: dict[str, Tensor] = {}
    read: list[Tensor] = []

    def hook(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            kept[name] = output if output.requires_grad else output.detach().requires_grad_()
            return kept[name]

        return keep

    with seeded(0):
        noise = torch.randn_like(sample)
        handles = [module.get_submodule(n).register_forward_hook(in_this_thread(hook(n))) for n in named]
        linear = [m for m in module.modules() if isinstance(m, nn.Linear)][-1:]
        note = in_this_thread(lambda _, inputs: read.append(inputs[0]))
        handles += [m.register_forward_pre_hook(note) for m in linear]
        try:
            with evaluating(module), torch.inference_mode(False), torch.enable_grad():
                found = scores(module(on_device(noise.clone(), module)))
        finally:
            for handle in handles:
                handle.remove()
        found = read[-1] if read and read[-1].dim() == 2 else found
        mixed = (found * torch.randn_like(found)).sum()
    gradients = torch.autograd.grad(mixed, list(kept.values()), allow_unused=True)
    depends = [
        name
        for name, gradient in zip(kept, gradients, strict=True)
        if gradient is not None and bool(named[name].to_maps(gradient).abs().amax() > 0)  # type: ignore[union-attr]
    ]
    if not depends:
        raise UnsupportedModelError(
            f"the scores of {type(module).__name__} depend on the patches of no layer; name one with layer="
        )
    return depends[-1]


def attention_blocks(module: nn.Module, sample: Tensor) -> list[str]:
    """Return the name of the block around each self-attention, in order of computing; empty without any.

    A block is the outermost module that holds that attention and no other.
    """
    places = attention_places(module, sample)
    for depth in range(1, 1 + max((p.count(".") + 1 for p in places), default=0)):
        blocks = [".".join(p.split(".")[:depth]) for p in places]
        if len(set(blocks)) == len(blocks):
            return blocks
    return []


def attention_places(module: nn.Module, sample: Tensor) -> list[str]:
    """Return the name of the innermost module around each self-attention, in order of computing."""
    active: list[str] = []
    places: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: active.append(name)

    def note(weights: Tensor) -> Tensor:
        places.append(active[-1] if active else "")
        return weights

    handles = []
    for name, member in module.named_modules():
        handles.append(member.register_forward_pre_hook(in_this_thread(enter(name))))
        handles.append(member.register_forward_hook(in_this_thread(lambda *_: active.pop() and None)))
    try:
        with evaluating(module), torch.no_grad(), AttentionWatch(note):
            module(on_device(sample, module))
    finally:
        for handle in handles:
            handle.remove()
    return places
