"""One forward pass, shared by every explainer that looks at it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.models.abn import ABNOutput
from xai_abn.models.inspection import evaluating

if TYPE_CHECKING:
    from xai_abn.models.adapter import ModelAdapter


class ForwardPass:
    """What a network computed for one batch: scores, activations, ABN's maps, gradients on demand.

    Everything in front of the first captured layer runs without autograd, the rest with it, and only
    where gradients were asked for. Nothing is left on the model: no hook, no ``.grad``, no mode.

    Args:
        model: the model to run.
        inputs: (N, 3, H, W), normalised, on any device.
        layers: names of the layers whose outputs to keep.
        gradients: whether :meth:`gradients` will be called.

    Attributes:
        model: the model.
        inputs: (N, 3, H, W) on the model's device.
        logits: (N, K) float32, detached.
        attention_map: ABN's map (N, 1, h, w), or None for another network.
        class_maps: the attention branch's class maps (N, K, h, w), or None.

    Raises:
        UnknownNameError: no such layer; the message lists the nearest.
        UnsupportedModelError: the network does not answer with (N, K) logits, or a layer not with a tensor.
        InvalidInputError: gradients were asked for inside ``torch.inference_mode()``.

    Example:
        >>> import torch, xai_abn
        >>> model = xai_abn.load_model("lite0")
        >>> shared = model.forward_pass(torch.zeros(2, 3, 224, 224), layers=["bn2"], gradients=True)
        >>> shared.gradients("bn2", torch.tensor([281, 3])).shape
        torch.Size([2, 1280, 7, 7])
    """

    def __init__(
        self, model: ModelAdapter, inputs: Tensor, layers: Sequence[str] = (), gradients: bool = False
    ) -> None:
        if gradients and torch.is_inference_mode_enabled():
            raise InvalidInputError(
                "gradients cannot be had inside torch.inference_mode(); use torch.no_grad() or leave the block"
            )
        self.model = model
        self.inputs = _on_device(inputs, model.module)
        self._kept: dict[str, Tensor] = {}
        self._gradients: dict[tuple[object, ...], Tensor] = {}
        self._differentiable = gradients
        self._linear_call: tuple[Tensor, Tensor, object] | None = None
        output = self._run(model.module, list(dict.fromkeys(layers)))
        self.attention_map: Tensor | None = None
        self.class_maps: Tensor | None = None
        if isinstance(output, ABNOutput):
            self.attention_map = output.attention_map.detach()
            self.class_maps = output.class_maps.detach()
            output = output.logits
        if not isinstance(output, Tensor) or output.dim() != 2:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UnsupportedModelError(f"{model.name} must answer with logits (N, K), got {shape}")
        self._scores = output
        self._pooled = self._input_of_last_linear(output)
        self.logits = output.detach().float()

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.logits)

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, (N, K)."""
        return self.logits.softmax(dim=1)

    def activations(self, layer: str) -> Tensor:
        """Return a captured layer's output, detached; do not change it in place.

        Raises:
            InvalidInputError: the layer was not among ``layers``.
        """
        if layer not in self._kept:
            raise InvalidInputError(
                f"layer {layer!r} was not captured; this pass has {', '.join(self._kept) or 'none'}"
            )
        return self._kept[layer].detach()

    def gradients(self, layer: str, targets: Tensor) -> Tensor:
        """Return d logit[target] / d activation, computed once per layer and targets.

        Only the part of the network behind the layer is differentiated.

        Args:
            layer: a captured layer.
            targets: class indices, (N,) for one an image, or (N, T) for T an image, which one
                batched vector-Jacobian product answers.

        Returns:
            The gradients, shaped as the activation, or (N, T, ...) for several targets.

        Raises:
            InvalidInputError: the pass was made without gradients, or ``targets`` has another shape.
            UnsupportedModelError: the scores do not depend on the layer.
        """
        if not self._differentiable:
            raise InvalidInputError("this pass was made without gradients; use forward_pass(..., gradients=True)")
        self.activations(layer)
        if targets.dim() not in (1, 2) or len(targets) != len(self):
            raise InvalidInputError(
                f"targets must have shape ({len(self)},) or ({len(self)}, T), got {tuple(targets.shape)}"
            )
        key = (layer, tuple(targets.shape), tuple(targets.flatten().tolist()))
        if key not in self._gradients:
            self._gradients[key] = self._differentiate(layer, targets.to(self._scores.device))
        return self._gradients[key]

    def _differentiate(self, layer: str, targets: Tensor) -> Tensor:
        several = targets.dim() == 2
        columns = targets.T if several else targets
        outputs, seeds = self._seeds(layer, columns)
        try:
            (gradient,) = torch.autograd.grad(
                outputs,
                self._kept[layer],
                grad_outputs=seeds,
                retain_graph=True,
                is_grads_batched=several,
            )
        except RuntimeError as error:
            if "not have been used" not in str(error) and "does not require grad" not in str(error):
                raise
            raise UnsupportedModelError(
                f"the scores of {self.model.name} do not depend on layer {layer!r} in a differentiable way"
            ) from error
        return gradient.transpose(0, 1) if several else gradient

    def _seeds(self, layer: str, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return where to start differentiating, and with what.

        Behind a final linear layer the derivative of a logit by the layer's input is a row of its weights. Looking
        the row up spares a product of a one-hot vector with all K rows, which counts at batch 1.
        """
        if self._pooled is not None and self._kept[layer].dim() == 4:
            return self._pooled, self.model.classifier.weight.detach()[columns].to(self._pooled)
        seeds = torch.zeros(*columns.shape, self._scores.shape[1], dtype=self._scores.dtype, device=columns.device)
        return self._scores, seeds.scatter_(-1, columns[..., None], 1)

    def _run(self, module: nn.Module, layers: list[str]) -> object:
        for layer in layers:
            self.model.check_layer(layer)
        handles = [module.get_submodule(layer).register_forward_hook(self._capture(layer)) for layer in layers]
        if self._differentiable and self.model.has_linear_classifier:
            handles.append(self.model.classifier.register_forward_hook(self._note_linear()))
        try:
            with evaluating(module), torch.no_grad():
                output = module(self.inputs)
        finally:
            for handle in handles:
                handle.remove()
        missing = [layer for layer in layers if layer not in self._kept]
        if missing:
            raise UnsupportedModelError(f"layer {missing[0]!r} of {self.model.name} does not run in a forward pass")
        return output

    def _capture(self, layer: str) -> Callable[[nn.Module, object, object], Tensor | None]:
        owner = threading.get_ident()

        def hook(_module: nn.Module, _inputs: object, output: object) -> Tensor | None:
            if threading.get_ident() != owner:
                return None  # another thread's pass through the same network
            if not isinstance(output, Tensor) or not output.is_floating_point():
                raise UnsupportedModelError(
                    f"layer {layer!r} gives {type(output).__name__}, not one tensor; name another"
                )
            if self._differentiable:
                torch.set_grad_enabled(True)  # until the surrounding no_grad() block ends
                output = output if output.requires_grad else output.detach().requires_grad_()
            self._kept[layer] = output
            return output.clone()  # an in-place operation behind the layer changes the copy

        return hook

    def _input_of_last_linear(self, logits: Tensor) -> Tensor | None:
        """Return what the last linear layer read, if the logits are its output and unchanged since, also in place."""
        if self._linear_call is None:
            return None
        pooled, output, step = self._linear_call
        return pooled if output is logits and logits.grad_fn is step else None

    def _note_linear(self) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        owner = threading.get_ident()

        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if threading.get_ident() == owner and inputs[0].dim() == 2 and inputs[0].requires_grad:
                self._linear_call = (inputs[0], output, output.grad_fn)

        return hook


def _on_device(inputs: Tensor, module: nn.Module) -> Tensor:
    parameter = next(module.parameters(), None)
    if parameter is None:
        return inputs
    return inputs.to(parameter.device, parameter.dtype)
