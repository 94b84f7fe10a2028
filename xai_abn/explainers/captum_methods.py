"""Methods that attribute the score to the pixels of the input by gradients, computed by captum."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from xai_abn.errors import UnsupportedModelError
from xai_abn.explainers.base import Count, Explainer, Seed, register
from xai_abn.heatmaps import at_least_float32
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.captum_copy import PerCallModules, hookable_copy, unfold_max_pooling
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.nonlinear import nonlinear_steps
from xai_abn.models.targets import target_scores
from xai_abn.networks.tracing import NEED_GRADIENTS, evaluating, on_device
from xai_abn.seeding import seeded


class TargetScore(nn.Module):
    """The score of one image's target, as a function of any number of versions of that image.

    Args:
        network: the network to run, ``forward_pass.model.module`` or a copy of it.
        forward_pass: a pass of the model, which knows where the logits are and what a target is.
        target: (1,) class index, or (1, K) direction.
    """

    def __init__(self, network: nn.Module, forward_pass: ForwardPass, target: Tensor) -> None:
        super().__init__()
        self.network = network
        self.forward_pass = forward_pass
        self._target = target

    def forward(self, versions: Tensor) -> Tensor:
        """Return the logit, or the weighted sum of logits, (B,) of versions (B, C, ...)."""
        gradients = torch.is_grad_enabled()
        model = self.forward_pass.model
        with torch.set_grad_enabled(gradients or self.network in NEED_GRADIENTS):
            if not gradients and self.network is model.module and versions.dtype == torch.float32:
                logits = self.forward_pass.predictor(versions)
            else:
                logits = model.logits_of(self.network(on_device(versions, self.network))).to(versions.dtype)
            scores = target_scores(logits, self._target.expand(len(versions), *self._target.shape[1:]))
        return scores if gradients else scores.detach()


class CaptumMethod(Explainer):
    """A method of captum with a value for every pixel of the input.

    Images are explained one by one, each with the same seed. So the map of an image does not depend on its batch, and
    the memory needed does not grow with the batch.

    Attributes:
        captum_class: name of the class in ``captum.attr``.
        constants: arguments of captum's ``attribute`` that are the same for every image.
        channels: how attributions (N, C, ...) become maps: their ``sum``, which keeps the property that shares of
            the score add up; their ``largest`` magnitude, as Simonyan et al. show gradients; or the ``first``, where
            all channels have the same value.
    """

    reads_layer = False
    no_graph = "captum computes them without a graph"
    captum_class: ClassVar[str]
    constants: ClassVar[dict[str, Any]] = {}
    channels: ClassVar[Literal["sum", "largest", "first"]] = "sum"

    @property
    def cost(self) -> str:
        """Passes beyond the shared one, in words."""
        return f"{self.passes} forward and backward" if self.needs_gradient else f"{self.passes} forward"

    @property
    def passes(self) -> int:
        """Number of versions of the image that the network runs on."""
        return 1

    @property
    def grid(self) -> str:
        """What the values lie on, in words."""
        return "input"

    def captum_method(self, score: TargetScore) -> Any:
        """Return captum's object for a score."""
        import captum.attr

        return getattr(captum.attr, self.captum_class)(score)

    def arguments(self, image: Tensor) -> dict[str, Any]:
        """Return the arguments of captum's ``attribute`` for one image (1, C, ...)."""
        return self.constants

    def attribute_one(self, score: TargetScore, image: Tensor) -> Tensor:
        """Return the attributions (1, C, ...) of one image of that shape, as captum defines them."""
        with warnings.catch_warnings():  # captum announces that it sets hooks; here they are set on a temporary copy
            warnings.filterwarnings("ignore", r"Setting (forward, )?backward hooks", UserWarning)
            attributions: Tensor = self.captum_method(score).attribute(image, **self.arguments(image))
        return attributions

    def network(self, model: ModelAdapter) -> nn.Module:
        """Return the network to run: that of the model, which is not changed."""
        return model.module

    def attributions(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the attribution of each channel of each pixel, shaped as the inputs, detached.

        Args:
            forward_pass: a pass of the model; with gradients if ``needs_gradient``.
            targets: (N,) class indices, or (N, K) directions.
        """
        network, seed, found = self.network(forward_pass.model), getattr(self, "seed", None), []
        with evaluating(network), torch.inference_mode(torch.is_inference_mode_enabled() and not self.needs_gradient):
            for row in range(len(forward_pass)):
                score = TargetScore(network, forward_pass, targets[row : row + 1])
                # single precision for captum's noise and masks; the network computes in its own precision
                image = forward_pass.inputs[row : row + 1].detach().float().clone().requires_grad_(self.needs_gradient)
                repeatable = nullcontext() if seed is None else seeded(seed)
                with torch.set_grad_enabled(self.needs_gradient), repeatable:
                    found.append(self.attribute_one(score, image).detach())
        return torch.cat(found)

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, H, W) or (N, D, H, W), at the resolution of the input."""
        attributions = at_least_float32(self.attributions(forward_pass, targets))
        if self.channels == "sum":
            return attributions.sum(dim=1)
        return attributions.abs().amax(dim=1) if self.channels == "largest" else attributions[:, 0]


class _Gradient(CaptumMethod):
    """A function of the image and its gradient alone, which can be differentiated in turn."""

    needs_gradient = True
    no_graph = ""

    def attributions(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return what captum computes; with a graph, the same by autograd, since captum keeps none."""
        if not forward_pass.create_graph:
            return super().attributions(forward_pass, targets)
        return self.from_gradients(forward_pass.inputs, forward_pass.input_gradients(targets))

    @abstractmethod
    def from_gradients(self, images: Tensor, gradients: Tensor) -> Tensor:
        """Return the attributions of images, from their gradients; all (N, 3, H, W)."""


@register("saliency")
class Saliency(_Gradient):
    """The largest magnitude of the gradient among the channels: ``max_c |dy / dx_c|``, at least 0.

    One forward and one backward pass per image. ``y`` is the logit, before softmax, as in the paper.

    Source: Simonyan et al., "Deep Inside Convolutional Networks: Visualising Image Classification Models and
    Saliency Maps", ICLR workshop 2014, section 3.1.
    """

    source = "Simonyan et al., ICLR workshop 2014"
    captum_class = "Saliency"
    channels = "largest"
    constants: ClassVar[dict[str, Any]] = {"abs": False}

    def from_gradients(self, images: Tensor, gradients: Tensor) -> Tensor:
        """Return the gradients."""
        return gradients


@register("input-x-gradient")
class InputXGradient(_Gradient):
    """The input times the gradient, summed over the channels, signed: ``sum_c x_c dy / dx_c``.

    One forward and one backward pass per image. ``x`` is the normalized input, so pixels of the mean color get 0.
    On a network linear in its input (up to a bias), the map adds up to the logit without the bias.

    Source: Shrikumar et al., "Not Just a Black Box: Learning Important Features Through Propagating Activation
    Differences", 2016, section 2.
    """

    source = "Shrikumar et al., 2016"
    captum_class = "InputXGradient"

    def from_gradients(self, images: Tensor, gradients: Tensor) -> Tensor:
        """Return the images times the gradients."""
        return images * gradients


@register("integrated-gradients")
class IntegratedGradients(CaptumMethod):
    """The mean gradient on the straight path from a blank image, times the path, summed over the channels. Signed.

    The blank image is 0 in the normalized input: the mean color. As the steps increase, the map adds up to the
    difference between the logits of the image and the blank one. Gauss-Legendre quadrature, the default of captum.
    Each step costs a forward and a backward pass.

    Source: Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017, eq. 1 and section 5.
    """

    needs_gradient = True
    source = "Sundararajan et al., ICML 2017"
    captum_class = "IntegratedGradients"

    steps: int = Field(32, ge=1, le=1000, description="Number of points on the path.")
    batch_size: Count = Field(8, exclude=True, description="Number of points per pass; limits memory.")

    @property
    def passes(self) -> int:
        """Number of versions of the image."""
        return self.steps

    def arguments(self, image: Tensor) -> dict[str, Any]:
        """Return the number of steps and the batch size."""
        return {"n_steps": self.steps, "internal_batch_size": self.batch_size}


class _Noisy(CaptumMethod):
    """A statistic of the gradient over noisy versions of the image; each costs a forward and a backward pass.

    ``batch_size`` affects the result, because captum draws the noise one batch at a time.
    """

    needs_gradient = True

    samples: Count = Field(25, description="Number of noisy versions of the image.")
    noise: float = Field(0.15, ge=0, description="Standard deviation of the noise, as a share of the image's range.")
    seed: Seed = Field(0, description="Seed of the noise.")
    batch_size: Count = Field(8, description="Number of noisy versions per pass; limits memory.")

    @property
    def passes(self) -> int:
        """Number of versions of the image."""
        return self.samples

    def deviation(self, image: Tensor) -> float:
        """Return the standard deviation of the noise for an image, in units of the normalized input."""
        return self.noise * float(image.detach().amax() - image.detach().amin())


class _NoiseTunnel(_Noisy):
    """A statistic of the signed gradient, computed by captum's ``NoiseTunnel``."""

    statistic: ClassVar[str]

    def captum_method(self, score: TargetScore) -> Any:
        """Return the noise tunnel around the gradient."""
        from captum.attr import NoiseTunnel, Saliency

        return NoiseTunnel(Saliency(score))

    def arguments(self, image: Tensor) -> dict[str, Any]:
        """Return the statistic and the noise."""
        return {
            "nt_type": self.statistic,
            "nt_samples": self.samples,
            "nt_samples_batch_size": self.batch_size,
            "stdevs": self.deviation(image),
            "abs": False,
        }


@register("smooth-grad")
class SmoothGrad(_NoiseTunnel):
    """The mean signed gradient over noisy versions, then the largest magnitude among the channels, at least 0.

    As published, the gradients are averaged with their signs before taking the magnitude. The paper uses noise of 10
    to 20 % of the range of the image.

    Source: Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, section 2.
    """

    source = "Smilkov et al., 2017"
    statistic = "smoothgrad"
    channels = "largest"


@register("var-grad")
class VarGrad(_NoiseTunnel):
    """The variance of the gradient over noisy versions, summed over the channels. At least 0.

    The sum is the total variance of the three gradient components of a pixel. As in captum, the variance divides by
    the number of samples and is E[g^2] - E[g]^2, so rounding can make it slightly negative.

    Source: Adebayo et al., "Local Explanation Methods for Deep Neural Networks Lack Sensitivity to Parameter
    Values", ICLR workshop 2018.
    """

    source = "Adebayo et al., ICLR workshop 2018"
    statistic = "vargrad"


@register("gradient-shap")
class GradientSHAP(_Noisy):
    """Expected gradients: gradient times difference, at random points between a blank and noisy versions, averaged.

    Signed; its mean adds up to the difference between the logits of the image and the blank one. The background is one
    blank image (0 in the normalized input, the mean color), where the paper draws images from a dataset.

    Source: Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017; as captum's
    ``GradientShap``, after Erion et al., "Improving performance of deep learning models with axiomatic attribution
    priors and expected gradients", Nature Machine Intelligence 2021.
    """

    source = "Lundberg and Lee, NeurIPS 2017; Erion et al., Nature Machine Intelligence 2021"
    captum_class = "GradientShap"

    noise: float = Field(0.05, ge=0, description="Standard deviation of the noise, as a share of the image's range.")

    def attribute_one(self, score: TargetScore, image: Tensor) -> Tensor:
        """Return the expected gradients, one batch of samples at a time, because captum itself takes all at once."""
        method, blank, deviation = self.captum_method(score), image.detach() * 0, self.deviation(image)
        sizes = [min(self.batch_size, self.samples - done) for done in range(0, self.samples, self.batch_size)]
        parts = [method.attribute(image, blank, n_samples=n, stdevs=deviation).detach() * n for n in sizes]
        return torch.stack(parts).sum(dim=0) / self.samples


class _ModifiedGradient(CaptumMethod):
    """A method that replaces the derivative of some modules, on a copy of the network made for each batch."""

    needs_gradient = True
    #: The modules whose derivative is replaced.
    kinds: ClassVar[tuple[type[nn.Module], ...]]

    def check(self, model: ModelAdapter) -> None:
        """Refuse a layer, and a network to which the rule of the method does not apply."""
        if model.detects:  # checked with the score of a detection
            super().check(model)
        else:
            self.network(model)

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps as :meth:`Explainer.explain` does; making the copy also checks the model."""
        with self._running_on(forward_pass.model):
            return self._maps(forward_pass, targets)

    def network(self, model: ModelAdapter) -> nn.Module:
        """Return a copy on which captum may set hooks, where each activation is a module of its own.

        Raises:
            UnsupportedModelError: the rule does not apply to the network; the message says why and what to use.
        """
        super().check(model)
        copy = hookable_copy(model.module, model.example, self.kinds)
        self.refuse(model, copy, nonlinear_steps(copy, model.example, self.kinds, model.logits_of))
        return copy

    @abstractmethod
    def refuse(self, model: ModelAdapter, copy: nn.Module, steps: set[str]) -> None:
        """Refuse a network for ``steps``, its nonlinear operations that are not modules of ``kinds``.

        Raises:
            UnsupportedModelError: the rule does not apply.
        """


#: Operations used in place of the paper's ReLU, which captum does not modify.
RECTIFIERS = {"Relu", "Gelu", "Silu", "Hardswish", "Hardtanh", "LeakyRelu", "Elu", "Mish", "Softplus", "Prelu", "Clamp"}


class _Guided(_ModifiedGradient):
    """A method that keeps only the positive part of the gradient at every ReLU."""

    kinds = (nn.ReLU,)
    channels = "largest"

    def refuse(self, model: ModelAdapter, copy: nn.Module, steps: set[str]) -> None:
        """Refuse a network that runs no ReLU modules, or other rectifiers."""
        others = sorted(steps & RECTIFIERS)
        problem = f"computes {', '.join(others)} outside of nn.ReLU modules" if others else "runs no nn.ReLU"
        if others or not any(isinstance(member, PerCallModules) for member in copy.modules()):
            raise UnsupportedModelError(
                f"{self.name} only changes the gradient of nn.ReLU modules, and {model.name} {problem}; use "
                "smooth-grad, which works with any network"
            )


@register("guided-backprop")
class GuidedBackprop(_Guided):
    """The gradient with only its positive part kept at every ReLU, then the largest magnitude among the channels.

    One forward and one backward pass per image. The map changes little with the class and with the weights of the
    upper layers (Adebayo et al., NeurIPS 2018).

    Source: Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR workshop 2015.
    """

    source = "Springenberg et al., ICLR workshop 2015"
    captum_class = "GuidedBackprop"


@register("guided-grad-cam")
class GuidedGradCAM(_Guided):
    """Guided backpropagation times Grad-CAM, enlarged bilinearly; then the largest magnitude among the channels.

    Two forward and two backward passes per image. The layer is that of Grad-CAM.

    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    ICCV 2017, section 3.2.
    """

    reads_layer = True
    source = "Selvaraju et al., ICCV 2017"

    @property
    def passes(self) -> int:
        """Number of versions of the image."""
        return 2

    def arguments(self, image: Tensor) -> dict[str, Any]:
        """Return how Grad-CAM is enlarged."""
        return {"interpolate_mode": "bilinear" if image.dim() == 4 else "trilinear"}

    def captum_method(self, score: TargetScore) -> Any:
        """Return captum's object for the layer.

        Raises:
            UnsupportedModelError: the output of the layer is not (N, C, h, w).
        """
        from captum.attr import GuidedGradCam

        layer = self.layer_of(score.forward_pass.model)
        if score.forward_pass.layout(layer).kind != "channels-first":
            raise UnsupportedModelError(
                f"{self.name} needs a layer with output (N, C, h, w), which {layer!r} does not have; name another layer"
            )
        return GuidedGradCam(score, score.network.get_submodule(layer))


@register("deep-lift")
class DeepLIFT(_ModifiedGradient):
    """The difference of each activation from a blank image, propagated by the rescale rule; channels summed. Signed.

    The blank image is 0 in the normalized input, the mean color. The map adds up to the difference between the logits
    of the image and the blank one. One forward and one backward pass of both per image. To make the sum exact, which
    captum alone does not ensure, each activation of the copy is a module of its own with an input tensor of its own,
    and max pooling with overlapping windows is computed window by window.

    Source: Shrikumar et al., "Learning Important Features Through Propagating Activation Differences", ICML 2017,
    section 3.5.1, in the gradient form of Ancona et al., ICLR 2018.
    """

    source = "Shrikumar et al., ICML 2017"
    captum_class = "DeepLift"
    constants: ClassVar[dict[str, Any]] = {"baselines": 0}
    kinds = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.MaxPool2d)

    @property
    def passes(self) -> int:
        """Number of versions of the image."""
        return 2

    def network(self, model: ModelAdapter) -> nn.Module:
        """Return the copy, with overlapping max pooling computed window by window.

        Raises:
            UnsupportedModelError: half precision, in which the small differences overflow, or an operation without a
                rule.
        """
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in model.module.parameters()):
            raise UnsupportedModelError(
                f"{self.name} divides by small differences of activations, which the half precision of {model.name} "
                "cannot represent; convert the network to single precision with module.float()"
            )
        copy = super().network(model)
        unfold_max_pooling(copy)
        return copy

    def refuse(self, model: ModelAdapter, copy: nn.Module, steps: set[str]) -> None:
        """Refuse a network with nonlinear operations that have no rule."""
        if steps:
            raise UnsupportedModelError(
                f"{self.name} only has rules for the modules {', '.join(kind.__name__ for kind in self.kinds)} and "
                f"{model.name} also computes {', '.join(sorted(steps))} (names of autograd); use integrated-gradients, "
                "which needs no rules"
            )
