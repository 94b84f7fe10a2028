"""Gradients of the score by the input under noise, as captum computes them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from xai_abn.explainers.base import register
from xai_abn.explainers.input_space import CaptumMethod, Score, largest_magnitude


class _Noisy(CaptumMethod):
    """A statistic of a gradient method over noisy versions of the picture.

    Args:
        layer: must be None.
        samples: noisy versions; a forward and a backward each.
        noise: standard deviation of the noise, as a share of the normalised picture's range (largest - smallest).
        seed: of the noise.
        batch_size: versions at once; bounds memory.
    """

    needs_gradient = True

    def __init__(
        self, layer: str | None = None, *, samples: int = 25, noise: float = 0.15, seed: int = 0, batch_size: int = 8
    ) -> None:
        super().__init__(layer, seed=seed)
        self.samples = samples
        self.noise = noise
        self.batch_size = batch_size

    def deviation(self, picture: Tensor) -> float:
        """Return the noise's standard deviation for a picture, in units of the normalised input."""
        return self.noise * float(picture.detach().amax() - picture.detach().amin())

    def tunnel(self, score: Score, picture: Tensor, kind: str) -> Tensor:
        """Return captum's statistic ``kind`` of the signed gradient, (1, 3, H, W)."""
        from captum.attr import NoiseTunnel, Saliency

        return NoiseTunnel(Saliency(score)).attribute(
            picture,
            nt_type=kind,
            nt_samples=self.samples,
            nt_samples_batch_size=self.batch_size,
            stdevs=self.deviation(picture),
            abs=False,
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """Number of samples, share of noise, seed, and the batch in which the noise is drawn."""
        return {"samples": self.samples, "noise": self.noise, "seed": self.seed, "batch_size": self.batch_size}


@register("smooth-grad")
class SmoothGrad(_Noisy):
    """The mean signed gradient over noisy versions, then the largest magnitude among the channels, at least 0.

    As published, the gradients are averaged with their signs and the magnitude is taken of the mean. The paper's
    noise is 10 to 20 % of the picture's range.

    Source: Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, section 2.
    """

    source = "Smilkov et al., 2017"

    def attribute_one(self, score: Score, picture: Tensor) -> Tensor:
        """Return the mean gradient."""
        return self.tunnel(score, picture, "smoothgrad")

    def merge_channels(self, attributions: Tensor) -> Tensor:
        """Return the largest magnitude among the channels."""
        return largest_magnitude(attributions)


@register("var-grad")
class VarGrad(_Noisy):
    """The gradient's variance over noisy versions, summed over the channels: how unsteady it is. At least 0.

    The sum is the total variance of the pixel's three-part gradient. As captum, the variance divides by the number
    of samples and is E[g^2] - E[g]^2, so it can fall below 0 by rounding.

    Source: Adebayo et al., "Local Explanation Methods for Deep Neural Networks Lack Sensitivity to Parameter
    Values", ICLR workshop 2018.
    """

    source = "Adebayo et al., ICLR workshop 2018"

    def attribute_one(self, score: Score, picture: Tensor) -> Tensor:
        """Return the variance of the gradient."""
        return self.tunnel(score, picture, "vargrad")


@register("gradient-shap")
class GradientSHAP(_Noisy):
    """Expected gradients: gradient times difference, at random points between a blank and noisy versions, summed.

    Signed; its mean adds up to the difference between the picture's logit and the blank's. The background is one
    blank picture (0 in the normalised input, the mean colour), where the paper draws from a data set.

    Source: Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017; as captum's
    ``GradientShap``, after Erion et al., "Improving performance of deep learning models with axiomatic attribution
    priors and expected gradients", Nature Machine Intelligence 2021.
    """

    source = "Lundberg and Lee, NeurIPS 2017; Erion et al., Nature Machine Intelligence 2021"

    def __init__(
        self, layer: str | None = None, *, samples: int = 25, noise: float = 0.05, seed: int = 0, batch_size: int = 8
    ) -> None:
        super().__init__(layer, samples=samples, noise=noise, seed=seed, batch_size=batch_size)

    def attribute_one(self, score: Score, picture: Tensor) -> Tensor:
        """Return the expected gradients; captum takes all samples at once, so it is asked for a batch at a time."""
        from captum.attr import GradientShap

        method, blank, deviation = GradientShap(score), picture.detach() * 0, self.deviation(picture)
        sizes = [min(self.batch_size, self.samples - done) for done in range(0, self.samples, self.batch_size)]
        parts = [method.attribute(picture, blank, n_samples=n, stdevs=deviation).detach() * n for n in sizes]
        return sum(parts[1:], parts[0]) / self.samples
