"""Backward passes that leave out positions without a gradient.

A Vision Transformer that reads its class token alone sends, from its head to the attention of its last block, a
gradient that is 0 at every patch; linear layers and attention need one row of all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_FEW = 0.25  # of the rows; with more of them the whole product is as fast


class SkipZeroRows(TorchFunctionMode):
    """While active in a thread, linear layers and attention are differentiated by their inputs alone, by rows.

    Of inputs with a history only. Gradients by weights are not kept. What is computed stays the same up to rounding: a
    row of zeros times a matrix is a row of zeros.

    Args:
        attention: whether to include ``F.scaled_dot_product_attention``.

    Attributes:
        active: False where a gradient is itself to be differentiated: a row may be 0 where its derivative is not.
    """

    def __init__(self, attention: bool = True) -> None:
        super().__init__()
        self.active = True
        self._steps: dict[Any, Callable[..., Any]] = {F.linear: _Linear.apply}
        if attention:
            self._steps[F.scaled_dot_product_attention] = _Attention.apply

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        step = self._steps.get(func)
        if step is None or not _plain(args) or any(kwargs.values()):
            return func(*args, **kwargs)
        return step(self, *args)


def _plain(tensors: tuple[Any, ...]) -> bool:
    """Return whether these are three tensors of one type, the first with more than one row and a history."""
    alike = all(type(t) in (Tensor, nn.Parameter) and t.dtype == tensors[0].dtype for t in tensors)
    if len(tensors) != 3 or not alike or torch.is_autocast_enabled(tensors[0].device.type):
        return False
    return tensors[0].dim() > 2 and tensors[0].requires_grad


def _few_rows(gradient: Tensor, mode: SkipZeroRows) -> Tensor | None:
    """Return which rows (R, C) have a gradient (NaN is one), or None where it is not worth telling."""
    if not mode.active:
        return None
    kept = gradient.abs().amax(dim=1).nonzero()[:, 0]
    return kept if len(kept) <= _FEW * len(gradient) else None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mode: SkipZeroRows, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.mode = mode
        ctx.save_for_backward(weight.detach())
        return F.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        rows = gradient.flatten(0, -2)
        kept = _few_rows(rows, ctx.mode)
        if kept is None:
            return None, gradient @ weight, None, None
        found = rows.new_zeros(len(rows), weight.shape[1]).index_copy_(0, kept, rows[kept] @ weight)
        return None, found.view(*gradient.shape[:-1], -1), None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mode: SkipZeroRows, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with torch.enable_grad():
            query, key, value = (t.detach().requires_grad_() for t in (query, key, value))
            output = F.scaled_dot_product_attention(query, key, value)
        ctx.mode, ctx.inputs, ctx.output = mode, (query, key, value), output
        return output.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (query, key, value) = gradients, ctx.inputs
        kept = _few_rows(gradient.transpose(0, -2).flatten(1), ctx.mode)
        if kept is None:
            return None, *torch.autograd.grad(ctx.output, ctx.inputs, gradient, retain_graph=True)
        with torch.enable_grad():
            part = F.scaled_dot_product_attention(query[..., kept, :], key, value)
        return None, *torch.autograd.grad(part, ctx.inputs, gradient[..., kept, :])
