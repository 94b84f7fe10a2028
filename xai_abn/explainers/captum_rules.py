"""Methods that change how the score is differentiated, as captum computes them, on a private copy of the network."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers.base import Explainer, register
from xai_abn.explainers.input_space import CaptumMethod, Score, largest_magnitude
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.captum_copy import Turns, separate_windows, unshared
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.nonlinear import nonlinear_steps

# captum says at each call that it puts hooks on the network: here they are on a copy that is thrown away.
warnings.filterwarnings("ignore", message=r"Setting (forward, )?backward hooks", category=UserWarning)


class _ChangedRule(CaptumMethod):
    """A method that replaces the derivative of some activations, and so must know all of them."""

    needs_gradient = True
    #: The modules whose derivative is replaced.
    kinds: ClassVar[tuple[type[nn.Module], ...]]

    def check(self, model: ModelAdapter) -> None:
        """Refuse a layer by name, and a network that the method's rule does not fit."""
        super().check(model)
        self.network(model)

    def network(self, model: ModelAdapter) -> nn.Module:
        """Return a copy on which captum may put hooks, each activation a module of its own.

        Raises:
            UnsupportedModelError: the rule does not fit the network; the message says why and what to use.
        """
        copy = unshared(model.module, model.blank_input, self.kinds)
        steps = nonlinear_steps(copy, model.blank_input, self.kinds, model.logits_of)
        self.refuse(model, copy, steps)
        return copy

    @abstractmethod
    def refuse(self, model: ModelAdapter, copy: nn.Module, steps: set[str]) -> None:
        """Refuse a network for its other nonlinear steps, those that are no modules of ``kinds``.

        Raises:
            UnsupportedModelError: the rule does not fit.
        """


#: Steps that stand where the paper has a ReLU, and that captum leaves as they are.
RECTIFIERS = {"Relu", "Gelu", "Silu", "Hardswish", "Hardtanh", "LeakyRelu", "Elu", "Mish", "Softplus", "Prelu", "Clamp"}


class _Guided(_ChangedRule):
    """A method that cuts the gradient at every ReLU to its positive part."""

    kinds = (nn.ReLU,)

    def merge_channels(self, attributions: Tensor) -> Tensor:
        """Return the largest magnitude among the channels."""
        return largest_magnitude(attributions)

    def refuse(self, model: ModelAdapter, copy: nn.Module, steps: set[str]) -> None:
        """Refuse a network that runs no ReLU modules, or rectifiers that are none."""
        others = sorted(steps & RECTIFIERS)
        found = f"computes {', '.join(others)} outside of nn.ReLU modules" if others else "runs no nn.ReLU"
        if others or not any(isinstance(member, Turns) for member in copy.modules()):
            raise UnsupportedModelError(
                f"{self.name} changes the gradient of nn.ReLU modules alone and {model.name} {found}; use smooth-grad, "
                "which fits any network"
            )


@register("guided-backprop")
class GuidedBackprop(_Guided):
    """The gradient, cut to its positive part at every ReLU, then the largest magnitude among the channels.

    One forward and one backward an image, on a copy made for each batch. The map changes little with the class and
    with the weights of the upper layers (Adebayo et al., NeurIPS 2018).

    Source: Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR workshop 2015.
    """

    source = "Springenberg et al., ICLR workshop 2015"

    def attribute_one(self, score: Score, picture: Tensor) -> Tensor:
        """Return the guided gradient."""
        from captum.attr import GuidedBackprop

        return GuidedBackprop(score).attribute(picture)


@register("guided-grad-cam")
class GuidedGradCAM(_Guided):
    """Guided backpropagation times Grad-CAM, enlarged bilinearly; then the largest magnitude among the channels.

    Two forwards and two backwards an image, on a copy made for each batch.

    Args:
        layer: the layer of Grad-CAM; default: the model's target layer.

    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    ICCV 2017, section 3.2.
    """

    source = "Selvaraju et al., ICCV 2017"

    def attribute_one(self, score: Score, picture: Tensor) -> Tensor:
        """Return the product."""
        from captum.attr import GuidedGradCam

        layer = score.network.get_submodule(self.layer_of(score.model))
        return GuidedGradCam(score, layer).attribute(picture, interpolate_mode="bilinear")

    def attributions(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the products, (N, 3, H, W), detached.

        Raises:
            UnsupportedModelError: the layer's output is no (N, C, h, w).
        """
        layer = self.layer_of(forward_pass.model)
        if forward_pass.layout(layer).kind != "channels-first":
            raise UnsupportedModelError(f"{self.name} needs a layer that gives (N, C, h, w); {layer!r} does not")
        return super().attributions(forward_pass, targets)

    def check(self, model: ModelAdapter) -> None:
        """Refuse a network that guided backpropagation does not fit."""
        self.network(model)

    def layers(self, model: ModelAdapter) -> tuple[str, ...]:
        """Return the layer of Grad-CAM."""
        return Explainer.layers(self, model)

    def layer_of(self, model: ModelAdapter) -> str:
        """Return the layer of Grad-CAM."""
        return Explainer.layer_of(self, model)


@register("deep-lift")
class DeepLIFT(_ChangedRule):
    """Each activation's difference from a blank picture, passed back by the rescale rule; channels summed. Signed.

    The blank is 0 in the normalised input, the mean colour. The map adds up to the difference between the picture's
    logit and the blank's. One forward and one backward of picture and blank an image, on a copy made for each batch.
    That holds where captum alone would lose some of it: each activation of the copy is a module of its own that reads
    a tensor of its own, and max poolings whose windows overlap are computed window by window.

    Source: Shrikumar et al., "Learning Important Features Through Propagating Activation Differences", ICML 2017,
    section 3.5.1, as Ancona et al., ICLR 2018, write it as a gradient.
    """

    source = "Shrikumar et al., ICML 2017"
    kinds = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.MaxPool2d)

    def attribute_one(self, score: Score, picture: Tensor) -> Tensor:
        """Return the contributions."""
        from captum.attr import DeepLift

        return DeepLift(score).attribute(picture, baselines=0)

    def network(self, model: ModelAdapter) -> nn.Module:
        """Return the copy, its overlapping max poolings computed window by window.

        Raises:
            UnsupportedModelError: half precision, in which the rule's small differences overflow, or a step without
                a rule.
        """
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in model.module.parameters()):
            raise UnsupportedModelError(
                f"{self.name} divides by small differences of activations, which {model.name}'s half precision does "
                "not hold; give it in single precision, as with module.float()"
            )
        copy = super().network(model)
        separate_windows(copy)
        return copy

    def refuse(self, model: ModelAdapter, copy: nn.Module, steps: set[str]) -> None:
        """Refuse a network with nonlinear steps that have no rule."""
        if steps:
            raise UnsupportedModelError(
                f"{self.name} has rules for the modules {', '.join(kind.__name__ for kind in self.kinds)} alone and "
                f"{model.name} also computes {', '.join(sorted(steps))} (as autograd calls it), for which there is "
                "none; use integrated-gradients, which needs no rules"
            )
