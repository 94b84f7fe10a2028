"""Nonlinear steps of a network's computation, found in the graph that autograd records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xai_abn.networks.tracing import hooks, on_device

#: Steps that are linear in what depends on the input (up to a constant), whatever their inputs are.
LINEAR = {
    "AccumulateGrad", "Add", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "Alias", "AsStrided", "AvgPool2D", "AvgPool3D",
    "Cat", "Clone", "ConstantPadNd", "Expand", "Flip", "Im2Col", "Index", "IndexSelect", "Mean", "Narrow", "Neg",
    "Permute", "PixelShuffle", "ReflectionPad2D", "ReflectionPad3D", "Repeat", "ReplicationPad2D", "ReplicationPad3D",
    "ReshapeAlias", "Roll", "Select", "Slice", "Split", "SplitWithSizes", "Squeeze", "Stack", "Sub", "Sum", "T",
    "ToCopy", "Transpose", "Unbind", "UnsafeView",
    "Unsqueeze", "UpsampleBilinear2D", "UpsampleNearest2D", "UpsampleNearest3D", "UpsampleTrilinear3D", "View",
}  # fmt: skip
#: Steps that are linear only if one of their inputs alone depends on the network's input: for a quotient, the first.
PRODUCTS = {"Addmm", "Baddbmm", "Bmm", "Convolution", "Div", "Mm", "Mul", "Mv"}
#: Steps that are linear in evaluation mode, in which they use the statistics they learned.
NORMS = {"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"}


def nonlinear_steps(
    network: nn.Module, sample: Tensor, kinds: Sequence[type[nn.Module]], logits_of: Callable[[object], Tensor]
) -> set[str]:
    """Return the names of the steps that are neither known to be linear nor computed by modules of ``kinds``.

    The names are autograd's, such as ``"Gelu"``: a step is found whether it is written as a module, a function or an
    operator. ``"Mul"`` is a product of two things that both depend on the input.

    Args:
        network: its parameters must be frozen, so that the graph holds only what depends on the input.
        sample: (N, 3, H, W) input to run once.
        kinds: classes of modules, each of whose calls is one step.
        logits_of: finds the logits in the network's output.
    """
    known: set[Any] = set()

    def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        known.add(output.grad_fn)

    noting = (m.register_forward_hook(note) for m in network.modules() if type(m) in kinds)
    with hooks(noting), torch.inference_mode(False), torch.enable_grad():
        last = logits_of(network(on_device(sample.clone().requires_grad_(), network))).grad_fn
    return {_name(step) for step in _behind(last) if step not in known and not _is_linear(step)}


def _behind(last: Any) -> Iterator[Any]:
    """Yield a step and every one that it depends on, once each."""
    waiting = [] if last is None else [last]
    seen = set(waiting)
    while waiting:
        step = waiting.pop()
        yield step
        new = {before for before, _ in step.next_functions if before is not None} - seen
        seen |= new
        waiting += new


def _name(step: Any) -> str:
    """Return a step's name without "Backward" and its number."""
    return str(step.name()).split("::")[-1].split("Backward")[0]


def _is_linear(step: Any) -> bool:
    name, depends = _name(step), [before is not None for before, _ in step.next_functions]
    if name == "Div":
        return depends[0] and not any(depends[1:])
    if name in PRODUCTS:
        return sum(depends) == 1
    if name in NORMS:
        return not getattr(step, "_saved_training", False)
    return name in LINEAR
