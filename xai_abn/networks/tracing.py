"""Run a network without changing it, and see what each of its modules returns."""

from __future__ import annotations

import copy
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xai_abn.errors import UnsupportedModelError
from xai_abn.networks.layout import Layout, layout_of

#: What is switched off for a pass, where it is on.
_SWITCHES = ("training", "grad_checkpointing", "gradient_checkpointing", "memory_efficient")
#: Networks in evaluation mode for a while: how many passes want that, and which submodules had which switch on.
_EVALUATING: weakref.WeakKeyDictionary[nn.Module, tuple[int, list[tuple[nn.Module, str]]]] = weakref.WeakKeyDictionary()
_MODES = threading.Lock()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put the whole module into evaluation mode, and every submodule back into its own mode afterwards.

    Blocks that would run again for their gradients (timm's checkpointing, torchvision's memory-efficient DenseNet) run
    once: hooks and watches are gone when they run again.

    Of several passes at once, in different threads, the first sets the mode and the last sets it back.
    """
    with _MODES:
        passes, on = _EVALUATING.get(module, (0, []))
        on = on if passes else [(m, n) for m in _family(module) for n in _SWITCHES if m.__dict__.get(n) is True]
        _EVALUATING[module] = (passes + 1, on)
        for m, name in on:
            setattr(m, name, False)
    try:
        yield
    finally:
        with _MODES:
            passes, on = _EVALUATING.pop(module)
            if passes > 1:
                _EVALUATING[module] = (passes - 1, on)
            else:
                for m, name in on:
                    setattr(m, name, True)


def copied(network: nn.Module) -> nn.Module:
    """Return a deep copy with the hooks of this moment: another thread's pass may add its own meanwhile."""
    tables = [t for m in network.modules() for t in (m._forward_hooks, m._forward_pre_hooks)]
    with torch.inference_mode(False):
        return copy.deepcopy(network, {id(table): OrderedDict(dict.copy(table)) for table in tables})


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
        layout: where positions of the image are in it, or None.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    order: int
    identity: int
    layout: Layout | None = None

    @property
    def spatial(self) -> bool:
        """Whether the output is (N, C, h, w) or (N, h, w, C) with more than one position."""
        found = self.layout
        return found is not None and found.kind != "tokens" and found.grid[0] * found.grid[1] > 1

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


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that does nothing in other threads, which may run the same network meanwhile."""
    owner = threading.get_ident()
    return lambda *arguments: hook(*arguments) if threading.get_ident() == owner else None


def trace_outputs(module: nn.Module, sample: Tensor) -> list[LayerOutput]:
    """Run ``sample`` (N, 3, H, W) once and return every module's tensor output, in order of finishing."""
    found: list[LayerOutput] = []
    kept: list[Tensor] = []  # keeps tensors alive, so that ids stay unique
    size, prefix = (sample.shape[2], sample.shape[3]), prefix_tokens(module)

    def hook(name: str, kind: str) -> Callable[[nn.Module, object, object], None]:
        def record(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                kept.append(output)
                shape = tuple(output.shape)
                found.append(LayerOutput(name, kind, shape, len(found), id(output), layout_of(shape, size, prefix)))

        return record

    handles = [m.register_forward_hook(in_this_thread(hook(n, type(m).__name__))) for n, m in module.named_modules()]
    try:
        with evaluating(module), torch.no_grad():
            module(on_device(sample, module))
    finally:
        for handle in handles:
            handle.remove()
    return found


def prefix_tokens(module: nn.Module) -> int | None:
    """Return how many tokens come before the patches, or None if the network does not say.

    timm's transformers say so. Networks that say how many registers they have, such as DINOv2, also have a class token.
    """
    number = getattr(module, "num_prefix_tokens", None)
    if isinstance(number, int):
        return number
    inside = {n for m in module.modules() if isinstance(n := getattr(m, "num_prefix_tokens", None), int)}
    inside = inside or {
        n + 1 for m in module.modules() if isinstance(n := getattr(m, "num_register_tokens", None), int)
    }
    return inside.pop() if len(inside) == 1 else None


def on_device(inputs: Tensor, module: nn.Module) -> Tensor:
    """Return inputs on the device and in the precision of a network's weights; as they are if it has none."""
    weights = next(module.parameters(), None)
    return inputs if weights is None else inputs.to(weights.device, weights.dtype)


def spatial_layers(outputs: list[LayerOutput]) -> list[LayerOutput]:
    """Return the named layers with a spatial output of their own, leaving out pooling and pass-through modules.

    What is as high as a token sequence is long (heads of an attention, its weights) is not spatial.
    """
    pooled = {o.identity for o in outputs if o.pooling}
    lengths = {o.shape[1] for o in outputs if o.tokens}
    found = [o for o in outputs if o.name and o.spatial and o.identity not in pooled and not o.transparent]
    return [o for o in found if o.shape[2] not in lengths]


def find_classifier(module: nn.Module) -> nn.Linear:
    """Return the last linear layer, which gives the logits.

    Raises:
        UnsupportedModelError: the model has no linear layer.
    """
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if not linears:
        raise UnsupportedModelError(f"{type(module).__name__} has no linear layer that could give its logits")
    return linears[-1]
