"""Gradients of the score by the input, as captum computes them: plain, times the input, and along a path."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from xai_abn.explainers.base import register
from xai_abn.explainers.input_space import CaptumMethod, Score, largest_magnitude


@register("saliency")
class Saliency(CaptumMethod):
    """The gradient's largest magnitude among the channels: ``max_c |dy / dx_c|``, at least 0.

    One forward and one backward an image. ``y`` is the logit, before softmax, as in the paper.

    Source: Simonyan et al., "Deep Inside Convolutional Networks: Visualising Image Classification Models and
    Saliency Maps", ICLR workshop 2014, section 3.1.
    """

    needs_gradient = True
    source = "Simonyan et al., ICLR workshop 2014"

    def attribute_one(self, score: Score, picture: Tensor) -> Tensor:
        """Return the gradient, signed."""
        from captum.attr import Saliency

        return Saliency(score).attribute(picture, abs=False)

    def merge_channels(self, attributions: Tensor) -> Tensor:
        """Return the largest magnitude among the channels."""
        return largest_magnitude(attributions)


@register("input-x-gradient")
class InputXGradient(CaptumMethod):
    """The input times the gradient, summed over the channels, signed: ``sum_c x_c dy / dx_c``.

    One forward and one backward an image. ``x`` is the normalised input, so the mean colour gets 0.
    On a network linear in its input (up to a bias), the map adds up to the logit without the bias.

    Source: Shrikumar et al., "Not Just a Black Box: Learning Important Features Through Propagating Activation
    Differences", 2016, section 2.
    """

    needs_gradient = True
    source = "Shrikumar et al., 2016"

    def attribute_one(self, score: Score, picture: Tensor) -> Tensor:
        """Return x dy/dx."""
        from captum.attr import InputXGradient

        return InputXGradient(score).attribute(picture)


@register("integrated-gradients")
class IntegratedGradients(CaptumMethod):
    """The gradients' mean on the straight path from a blank picture, times the path, summed over the channels.

    The blank is 0 in the normalised input: the mean colour. Signed; as the steps grow, the map adds up to the
    difference between the picture's logit and the blank's. Gauss-Legendre quadrature, captum's default.

    Args:
        layer: must be None.
        steps: points on the path; a forward and a backward each.
        batch_size: points at once; bounds memory.

    Source: Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017, eq. 1 and section 5.
    """

    needs_gradient = True
    source = "Sundararajan et al., ICML 2017"

    def __init__(self, layer: str | None = None, *, steps: int = 32, batch_size: int = 8) -> None:
        super().__init__(layer)
        self.steps = steps
        self.batch_size = batch_size

    def attribute_one(self, score: Score, picture: Tensor) -> Tensor:
        """Return the integrated gradients."""
        from captum.attr import IntegratedGradients

        return IntegratedGradients(score).attribute(picture, n_steps=self.steps, internal_batch_size=self.batch_size)

    @property
    def parameters(self) -> dict[str, Any]:
        """Points on the path."""
        return {"steps": self.steps}
