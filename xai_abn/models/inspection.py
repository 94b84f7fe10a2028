"""Look at a network without changing it: its layers' outputs, its target layer, its classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xai_abn.errors import UnsupportedModelError


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put the whole module into evaluation mode, and every submodule back into its own mode afterwards."""
    training = [m for m in _family(module) if m.training]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


def _family(module: nn.Module) -> list[nn.Module]:
    """Return the module and all below it: ``modules()`` ten times as fast, which counts on small networks."""
    found = [module]
    for member in found:  # grows while it is walked
        if member._modules:
            found += [child for child in member._modules.values() if child is not None]
    return found


@dataclass(frozen=True)
class LayerOutput:
    """What one module answered in one forward pass.

    Attributes:
        name: the module's qualified name (empty for the whole network).
        kind: its class name.
        shape: shape of its output.
        order: position in the order in which modules finished.
        identity: equal for modules that returned the very same tensor.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    order: int
    identity: int

    @property
    def spatial(self) -> bool:
        """Whether the output is (N, C, h, w) with more than one position."""
        return len(self.shape) == 4 and self.shape[2] * self.shape[3] > 1

    @property
    def tokens(self) -> bool:
        """Whether the output is (N, tokens, channels), as in a transformer."""
        return len(self.shape) == 3 and self.shape[1] > 1

    @property
    def pooling(self) -> bool:
        """Whether the module pools."""
        return "pool" in self.kind.lower()

    @property
    def transparent(self) -> bool:
        """Whether the module passes its input on unchanged in evaluation mode."""
        return self.kind in ("Identity", "Dropout", "Dropout2d", "DropPath", "StochasticDepth")


def trace_outputs(module: nn.Module, sample: Tensor) -> list[LayerOutput]:
    """Run ``sample`` (N, 3, H, W) once and return every module's tensor output, in order of finishing."""
    found: list[LayerOutput] = []
    kept: list[Tensor] = []  # keeps tensors alive, so that ids stay unique

    def hook(name: str, kind: str) -> Callable[[nn.Module, object, object], None]:
        def record(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                kept.append(output)
                found.append(LayerOutput(name, kind, tuple(output.shape), len(found), id(output)))

        return record

    handles = [m.register_forward_hook(hook(n, type(m).__name__)) for n, m in module.named_modules()]
    try:
        with evaluating(module), torch.no_grad():
            module(sample.to(next(module.parameters())))
    finally:
        for handle in handles:
            handle.remove()
    return found


def spatial_layers(outputs: list[LayerOutput]) -> list[LayerOutput]:
    """Return the named layers with a spatial output of their own, leaving out pooling and pass-through modules."""
    pooled = {o.identity for o in outputs if o.pooling}
    return [o for o in outputs if o.name and o.spatial and o.identity not in pooled and not o.transparent]


def find_target_layer(module: nn.Module, sample: Tensor) -> str:
    """Return the name of the last layer that still has positions: what CAM methods should look at.

    That is the last module to finish whose output is (N, C, h, w) with more than one position and
    does not come straight out of a pooling (``layer4`` of a ResNet, ``features.29`` of VGG16).

    Raises:
        UnsupportedModelError: there is none, or a transformer's token layers come behind it.
    """
    outputs = trace_outputs(module, sample)
    candidates = spatial_layers(outputs)
    if not candidates:
        raise UnsupportedModelError(f"{type(module).__name__} has no layer with a spatial output; name one with layer=")
    target = candidates[-1]
    if any(o.tokens for o in outputs[target.order + 1 :]):
        raise UnsupportedModelError(
            f"{type(module).__name__} computes on tokens behind its last spatial layer {target.name!r}, "
            "as transformers do, so no target layer can be chosen for it; name one with layer="
        )
    return target.name


def find_classifier(module: nn.Module) -> nn.Linear:
    """Return the last linear layer, which gives the logits.

    Raises:
        UnsupportedModelError: the model has no linear layer.
    """
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if not linears:
        raise UnsupportedModelError(f"{type(module).__name__} has no linear layer that could give its logits")
    return linears[-1]
