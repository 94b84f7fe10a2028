"""What all methods share that put a value on every pixel of the input, instead of on a layer's positions."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers.base import Explainer
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.networks.tracing import evaluating, on_device
from xai_abn.seeding import seeded


class Score(nn.Module):
    """The score that one image is explained for, as a function of any number of versions of that image.

    Args:
        network: what answers, ``forward_pass.model.module`` or a copy of it.
        forward_pass: a pass of the model, which says where the logits are and what a target is.
        target: (1,) class index, or (1, K) direction.
    """

    def __init__(self, network: nn.Module, forward_pass: ForwardPass, target: Tensor) -> None:
        super().__init__()
        self.network = network
        self.model = forward_pass.model
        self._forward_pass = forward_pass
        self._target = target

    def forward(self, versions: Tensor) -> Tensor:
        """Return the logit, or the mixture of logits, (B,) of versions (B, 3, H, W)."""
        logits = self.model.logits_of(self.network(on_device(versions, self.network))).to(versions.dtype)
        return self._forward_pass.scores(logits, self._target.expand(len(versions), *self._target.shape[1:]))


class InputSpaceExplainer(Explainer):
    """A method with a value for every pixel of the input: it reads no layer."""

    def check(self, model: ModelAdapter) -> None:
        """Refuse a layer by name: the method looks at the input."""
        if self.layer is not None:
            raise UnsupportedModelError(
                f"{self.name} explains the input and reads no layer (got {self.layer!r}); leave the layer out"
            )

    def layers(self, model: ModelAdapter) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    def layer_of(self, model: ModelAdapter) -> str:
        """Return "input" for the record."""
        return "input"


class CaptumMethod(InputSpaceExplainer):
    """A method of captum's. A subclass writes :meth:`attribute_one`.

    Images are explained one by one, each under the same seed: so a batch equals its singles, and what a method
    needs at once does not grow with the batch.
    """

    def __init__(self, layer: str | None = None, *, seed: int | None = None) -> None:
        super().__init__(layer)
        self.seed = seed

    @abstractmethod
    def attribute_one(self, score: Score, picture: Tensor) -> Tensor:
        """Return the attributions (1, 3, H, W) of one picture (1, 3, H, W), raw, as the method defines them."""

    def merge_channels(self, attributions: Tensor) -> Tensor:
        """Return maps (N, H, W) of attributions (N, 3, H, W): their sum, as a signed share of the score adds up."""
        return attributions.sum(dim=1)

    def network(self, model: ModelAdapter) -> nn.Module:
        """Return the network to ask: the model's own, which stays as it is."""
        return model.module

    def attributions(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return what the method says of each channel of each pixel, (N, 3, H, W), detached.

        Args:
            forward_pass: a pass of the model; with gradients if ``needs_gradient``.
            targets: (N,) class indices, or (N, K) directions.
        """
        network = self.network(forward_pass.model)
        found = []
        with evaluating(network), torch.inference_mode(torch.is_inference_mode_enabled() and not self.needs_gradient):
            for row in range(len(forward_pass)):
                score = Score(network, forward_pass, targets[row : row + 1])
                # in single precision, as captum's noise and masks; the network computes in its own
                picture = (
                    forward_pass.inputs[row : row + 1].detach().float().clone().requires_grad_(self.needs_gradient)
                )
                with torch.set_grad_enabled(self.needs_gradient), self._repeating():
                    found.append(self.attribute_one(score, picture).detach())
        return torch.cat(found)

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, H, W), at the input's resolution."""
        return self.merge_channels(self.attributions(forward_pass, targets)).float()

    def _repeating(self) -> Any:
        return nullcontext() if self.seed is None else seeded(self.seed)


def largest_magnitude(attributions: Tensor) -> Tensor:
    """Return (N, H, W), the largest magnitude among the channels of (N, 3, H, W), as Simonyan et al. show gradients."""
    return attributions.abs().amax(dim=1)
