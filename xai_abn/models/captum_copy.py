"""A copy of a network for captum's hooks: each activation runs once per forward pass, on a tensor of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xai_abn.networks.tracing import copied, evaluating, hooks, layers, on_device


class PerCallModules(nn.Module):
    """Replaces a module that runs several times per forward pass: the n-th call goes to the n-th instance.

    Each instance reads a view of its own. A hook on its input therefore sees the gradient of that path alone, even if
    others read the same tensor. It also runs before the hook on the output of the previous activation, which would
    otherwise take the gradient too early. A call on what does not depend on the image, such as a second, fixed image,
    has no gradient for hooks to see, so they are left out.
    """

    def __init__(self, module: nn.Module, calls: int) -> None:
        super().__init__()
        self.instances = nn.ModuleList(copy.deepcopy(module) for _ in range(calls))
        self._turn = 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output of the next instance."""
        instance = self.instances[self._turn]
        self._turn = (self._turn + 1) % len(self.instances)
        run = instance if inputs.requires_grad else instance.forward
        result: Tensor = run(inputs.view_as(inputs))
        return result


class UnfoldedMaxPool(nn.Module):
    """Max pooling with overlapping windows, computed on copies of the windows side by side. The values are equal."""

    def __init__(self, pooling: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel, self.stride = _pair(pooling.kernel_size), _pair(pooling.stride)
        self.padding, self.dilation = _pair(pooling.padding), _pair(pooling.dilation)
        self.ceil_mode = pooling.ceil_mode
        self.pool = nn.MaxPool2d((1, self.kernel[0] * self.kernel[1]))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the largest value of each window, (N, C, h, w)."""
        place = torch.empty(1, *inputs.shape[2:], device="meta")
        height, width = F.max_pool2d(
            place, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode
        ).shape[1:]
        edges = [self._behind(axis, number, inputs.shape[2 + axis]) for axis, number in enumerate((height, width))]
        padding = (self.padding[1], edges[1], self.padding[0], edges[0])
        padded = F.pad(inputs, padding, value=torch.finfo(inputs.dtype).min)
        windows = F.unfold(padded, self.kernel, self.dilation, 0, self.stride)  # (N, C k, h w)
        laid = windows.unflatten(1, (inputs.shape[1], -1)).transpose(2, 3)  # (N, C, h w, k)
        result: Tensor = self.pool(laid).view(len(inputs), -1, height, width)
        return result

    def _behind(self, axis: int, number: int, size: int) -> int:
        """Return how much to pad (or, if negative, to crop) at the end, so that ``number`` windows fit exactly."""
        reach = (number - 1) * self.stride[axis] + self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return reach - size - self.padding[axis]


def hookable_copy(network: nn.Module, sample: Tensor, kinds: Sequence[type[nn.Module]]) -> nn.Module:
    """Return a frozen copy, in evaluation mode, that gives the same logits and is safe to hook.

    No activation works in place; each module of exactly one of ``kinds`` that runs becomes :class:`PerCallModules`.

    Args:
        network: it is not changed.
        sample: (N, 3, H, W) input, run once to count the calls.
        kinds: classes of modules, such as ``nn.ReLU``.
    """
    with evaluating(network):
        own = copied(network).requires_grad_(False)
    for _, member in layers(own):
        if isinstance(getattr(member, "inplace", None), bool):
            member.inplace = False  # type: ignore[assignment]
    calls = _calls(own, sample, kinds)
    replacements = {member: PerCallModules(member, number) for member, number in calls.items()}
    for parent in list(own.modules()):
        for name, child in parent.named_children():
            if child in replacements:
                setattr(parent, name, replacements[child])
    return replacements.get(own, own)


def unfold_max_pooling(network: nn.Module) -> None:
    """Replace, in place, every max pooling with overlapping windows by :class:`UnfoldedMaxPool`."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.MaxPool2d and _overlap(child):
                setattr(parent, name, UnfoldedMaxPool(child))


def _overlap(pooling: nn.MaxPool2d) -> bool:
    sizes = zip(_pair(pooling.kernel_size), _pair(pooling.stride), _pair(pooling.dilation), strict=True)
    return any(stride < kernel or (dilation > 1 and kernel > 1) for kernel, stride, dilation in sizes)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _calls(network: nn.Module, sample: Tensor, kinds: Sequence[type[nn.Module]]) -> dict[nn.Module, int]:
    """Return how often each module of the kinds runs in one forward pass; those that do not run are left out."""
    calls: dict[nn.Module, int] = {}

    def count(module: nn.Module, _inputs: object, _output: object) -> None:
        calls[module] = calls.get(module, 0) + 1

    counting = (m.register_forward_hook(count) for m in network.modules() if type(m) in kinds)
    with hooks(counting), torch.inference_mode(False), torch.enable_grad():
        network(on_device(sample.clone().requires_grad_(), network))
    return calls
