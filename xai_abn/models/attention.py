"""Access to the self-attention of transformers while they run, without changing them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SOFTMAXES = (F.softmax, torch.softmax, Tensor.softmax)
_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


class AttentionWatch(TorchFunctionMode):
    """While active in a thread, passes every attention matrix to a function and continues with the matrix it returns.

    Handles ``F.scaled_dot_product_attention`` (timm), ``nn.MultiheadAttention`` (torchvision) and softmax over square
    matrices (attention written out). It computes the weights that fused kernels never store, so it costs memory, and so
    that there are second derivatives, which fused kernels do not have.

    Args:
        seen: called with weights (N, heads, T, T), after softmax; returns the weights to use.
        other: called at attention of another form: between different sets of tokens, within windows, causal, or with
            separate projections or added tokens.
    """

    def __init__(self, seen: Callable[[Tensor], Tensor], other: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self._seen = seen
        self._other = other

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._scaled_dot_product(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._multi_head(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in _SOFTMAXES and result.dim() >= 4 and _over_last_axis(args, kwargs, result.dim()):
            if result.dim() == 4 and result.shape[-1] == result.shape[-2] > 1:
                return self._seen(result)
            self._other()
        return result

    def _scaled_dot_product(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        over_all = query.dim() == 4 and query.shape[-2] == key.shape[-2] and not (is_causal or enable_gqa)
        if not over_all:
            self._other()
        if is_causal or enable_gqa:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
        if attn_mask is not None:
            blocked = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, float("-inf")) if blocked else scores + attn_mask
        weights = scores.softmax(dim=-1)
        return (self._seen(weights) if over_all else weights) @ value

    def _multi_head(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        call = _MULTI_HEAD.bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        wanted, averaged = given["need_weights"], given["average_attn_weights"]
        given["need_weights"] = True
        weights: Any
        separate = given["in_proj_weight"] is None or given["bias_k"] is not None or given["add_zero_attn"]
        if given["query"].shape[0] != given["key"].shape[0] or separate:
            self._other()
            output, weights = F.multi_head_attention_forward(*call.args, **call.kwargs)
            return output, weights if wanted else None
        given["average_attn_weights"] = False
        _, weights = F.multi_head_attention_forward(*call.args, **call.kwargs)
        weights = self._seen(weights)
        value, bias = given["value"], given["in_proj_bias"]  # (T, N, E)
        width = value.shape[-1]
        projected = F.linear(value, given["in_proj_weight"][2 * width :], None if bias is None else bias[2 * width :])
        heads = projected.unflatten(-1, (given["num_heads"], -1)).permute(1, 2, 0, 3)  # (N, heads, T, E / heads)
        merged = (weights @ heads).permute(2, 0, 1, 3).flatten(2)
        output = F.linear(merged, given["out_proj_weight"], given["out_proj_bias"])
        return output, (weights.mean(dim=1) if averaged else weights) if wanted else None


def _over_last_axis(args: Any, kwargs: Any, axes: int) -> bool:
    """Return whether a softmax with these arguments is over the last of a tensor's ``axes`` axes."""
    axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return axis in (-1, axes - 1)
