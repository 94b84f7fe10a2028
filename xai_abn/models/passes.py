"""Forward passes over many batches, from the quickest backend that gives what the network gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.predictor import BOUND_OF_SCORES, Predictor
from xai_abn.networks.tracing import hooks, main_tensor, on_device


class Passes:
    """Forward passes without gradients of one model, of which only some outputs are read.

    The first passes run the network. As soon as the images to come pay for it, other backends are tried as for
    predictions (see :class:`~xai_abn.models.predictor.Predictor`): they compute the logits, layers and maps that are
    read, and the quickest whose outputs agree with those of the network is taken.

    The bounds are those of predictions, and ``BOUND_OF_SCORES`` of the largest value for each layer and map.

    Args:
        model: the model; it is not changed.
        layers: the layers to keep.
        maps: the maps of an Attention Branch Network to keep, by their names in its output.
        images: how many will come.
    """

    def __init__(self, model: ModelAdapter, layers: Sequence[str], maps: Sequence[str], images: int) -> None:
        self._model, self._layers, self._maps = model, tuple(dict.fromkeys(layers)), tuple(dict.fromkeys(maps))
        self._network: ForwardPass | None = None  # the last pass through the network
        self.predictor = _Outputs(self)
        self.predictor.expect(images)

    def __call__(self, inputs: Tensor, sources: Sequence[str] = ()) -> ForwardPass:
        """Return the pass of inputs (N, C, H, W) or (N, C, D, H, W); arguments and errors as for a forward pass."""
        inputs = on_device(inputs, self._model.module)
        if self._network is not None and self._network.size != tuple(inputs.shape[2:]):
            return self._pass(inputs, sources)
        started = perf_counter()
        found = self.predictor(inputs)
        assert self._network is not None  # which is asked first
        if self.predictor.backend == "network":
            self._network.sources = tuple(sources)
            return self._network
        shapes = zip(self._split(found), self._shapes, strict=True)
        logits, *others = (part.reshape(len(inputs), *shape) for part, shape in shapes)
        read = dict(zip((*self._layers, *self._maps), others, strict=True))
        backend = f"{self.predictor.backend}, {self.predictor.precision}"
        return self._network.given(inputs, logits, read, backend, sources, perf_counter() - started)

    def _pass(self, inputs: Tensor, sources: Sequence[str] = ()) -> ForwardPass:
        return ForwardPass(self._model, inputs, self._layers, sources=sources)

    def network(self, inputs: Tensor) -> Tensor:
        """Return what the network computes of inputs, side by side, and keep the pass."""
        self._network = self._pass(inputs)
        return torch.cat([part.detach().flatten(1).float() for part in self._read(self._network)], dim=1)

    def _read(self, done: ForwardPass) -> list[Tensor]:
        layers = [done.raw_output(name) for name in self._layers]
        return [done.logits, *layers, *(getattr(done, name) for name in self._maps)]

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        assert self._network is not None
        return [tuple(part.shape[1:]) for part in self._read(self._network)]

    def _split(self, found: Tensor) -> list[Tensor]:
        return list(found.split([math.prod(shape) for shape in self._shapes], dim=1))

    def agreement(self, found: Tensor, expected: Tensor) -> tuple[float, bool]:
        """Return how far outputs side by side are from others, and whether that is allowed."""
        if found.shape != expected.shape:
            return math.inf, False
        (logits, *others), (own, *network) = self._split(found), self._split(expected)
        worst, agrees = Predictor(self._model, backend="network").agreement(logits, own)
        for part, right in zip(others, network, strict=True):
            gap = float((part - right).abs().max()) / max(float(right.abs().max()), 1e-30)
            worst, agrees = max(worst, gap), agrees and gap <= BOUND_OF_SCORES  # NaN is not
        return worst, agrees

    def packed(self) -> ModelAdapter:
        """Return a model whose scores are all that is read of this one, side by side, (N, M)."""
        model, maps = self._model, self._maps
        _ = model.memory_format, model.example  # found out once, for both

        def side_by_side(found: Any) -> Tensor:
            output, *layers = found
            parts = [model.logits_of(output), *layers, *(getattr(output, name) for name in maps)]
            return torch.cat([part.flatten(1).float() for part in parts], dim=1)

        made = replace(model, module=_Recorded(model.module, self._layers), output=side_by_side, layer=None)
        return made.knowing(model)


class _Outputs(Predictor):
    """The predictor of what is read of a network, side by side."""

    def __init__(self, passes: Passes) -> None:
        super().__init__(passes.packed())
        self._passes = passes
        self._base = passes.network

    def agreement(self, found: Tensor, expected: Tensor) -> tuple[float, bool]:
        """Return how far outputs are from others, and whether that is allowed."""
        return self._passes.agreement(found, expected)


class _Recorded(nn.Module):
    """A network that outputs what it does and, after it, the outputs of layers."""

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.network, self._layers = network, tuple(layers)

    def forward(self, images: Tensor) -> tuple[Any, ...]:
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(_module: nn.Module, _inputs: object, output: object) -> None:
                tensor = main_tensor(output)
                assert tensor is not None  # a pass has captured it
                kept[name] = tensor.clone()  # the next operation may work in place

            return hook

        with hooks(self.network.get_submodule(name).register_forward_hook(keep(name)) for name in self._layers):
            output = self.network(images)
        return (output, *(kept[name] for name in self._layers))
