"""Methods that blank regions of the input and observe the score, computed by captum without gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.explainers.base import Count, Seed, register
from xai_abn.explainers.captum_methods import CaptumMethod, TargetScore


def superpixels(image: Tensor, number: int) -> Tensor:
    """Divide an image into about ``number`` regions of similar color; the same image always gives the same regions.

    Uses SLICO, the variant of SLIC that weighs color against distance by the contrast of each region, so that noise
    is also divided into regions. The image is first scaled to [0, 1] by its own smallest and largest value.

    Args:
        image: (1, C, H, W) or (1, C, D, H, W), normalized or not.
        number: approximate number of regions.

    Returns:
        As the image, long: region numbers from 0 without gaps, equal in all channels.

    Raises:
        InvalidInputError: there are fewer than two regions.

    Source: Achanta et al., "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods", TPAMI 2012.
    """
    from skimage.segmentation import slic

    pixels = image[0].detach().float().cpu()
    span = (pixels.amax() - pixels.amin()).clamp_min(torch.finfo(torch.float32).tiny)
    scaled = ((pixels - pixels.amin()) / span).movedim(0, -1).double().numpy()
    regions = np.unique(slic(scaled, n_segments=number, slic_zero=True, start_label=0), return_inverse=True)[1]
    if regions.max() < 1:
        raise InvalidInputError(f"an image of {tuple(pixels.shape[1:])} gave one superpixel; ask for more segments")
    return torch.from_numpy(regions).long().view(pixels.shape[1:]).to(image.device).expand(image.shape)


class _Blanking(CaptumMethod):
    """A method that blanks whole regions in all channels at once: 0 in the normalized input, the mean color."""

    channels = "first"
    no_graph = "it asks the network again, without a graph"
    constants: ClassVar[dict[str, Any]] = {"baselines": 0}

    batch_size: Count = Field(16, exclude=True, description="Number of blanked images per forward pass.")

    def arguments(self, image: Tensor) -> dict[str, Any]:
        """Return the blank value and the batch size."""
        return {**self.constants, "perturbations_per_eval": self.batch_size}


@register("occlusion")
class Occlusion(_Blanking):
    """How much the logit drops when a square window is blanked, averaged over the windows on a pixel. Signed.

    One forward pass per window, 169 at 224 pixels. In a volume or clip, a window is a block, whose sides are shares of
    the sides of the volume, each of its own: 2197 blocks.

    Source: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2, where
    the probability and a gray window are used.
    """

    source = "Zeiler and Fergus, ECCV 2014"
    captum_class = "Occlusion"

    window: float = Field(1 / 7, gt=0, le=1, description="Side of the window, as a share of the shorter image side.")
    stride: float = Field(1 / 14, gt=0, le=1, description="Step between windows, as a share of the shorter image side.")

    @property
    def cost(self) -> str:
        """Passes beyond the shared one, in words."""
        return "1 forward per window"

    @property
    def grid(self) -> str:
        """What the values lie on, in words."""
        return "windows"

    def arguments(self, image: Tensor) -> dict[str, Any]:
        """Return window and stride in pixels."""
        size = tuple(image.shape[2:])
        sides = size if len(size) == 3 else (min(size),) * 2
        windows = [max(1, round(self.window * side)) for side in sides]
        strides = [min(w, max(1, round(self.stride * side))) for w, side in zip(windows, sides, strict=True)]
        shapes = {
            "sliding_window_shapes": (image.shape[1], *windows),
            "strides": (image.shape[1], *strides),
        }
        return super().arguments(image) | shapes


class _OverSuperpixels(_Blanking):
    """A method that blanks superpixels."""

    segments: Count = Field(50, description="Approximate number of superpixels.")

    @property
    def grid(self) -> str:
        """What the values lie on, in words."""
        return "superpixels"

    def arguments(self, image: Tensor) -> dict[str, Any]:
        """Return the superpixels."""
        return super().arguments(image) | {"feature_mask": superpixels(image, self.segments)}


@register("feature-ablation")
class FeatureAblation(_OverSuperpixels):
    """How much the logit drops when one superpixel is blanked; all its pixels get that value. Signed.

    One forward pass per superpixel.

    Source: captum's ``FeatureAblation``, with the superpixels of Achanta et al., TPAMI 2012.
    """

    source = "Kokhlikyan et al., Captum, 2020; superpixels of Achanta et al., TPAMI 2012"
    captum_class = "FeatureAblation"

    @property
    def cost(self) -> str:
        """Passes beyond the shared one, in words."""
        return "1 forward per superpixel"


class _Surrogate(_OverSuperpixels):
    """The weights of a linear model of the logit, fitted to random selections of superpixels."""

    samples: Count = Field(200, description="Number of random selections; each costs one forward pass.")
    seed: Seed = Field(0, description="Seed of the random selections.")

    @property
    def passes(self) -> int:
        """Number of versions of the image."""
        return self.samples

    def arguments(self, image: Tensor) -> dict[str, Any]:
        """Return the number of samples."""
        return super().arguments(image) | {"n_samples": self.samples}


@register("kernel-shap")
class KernelSHAP(_Surrogate):
    """Shapley values of the superpixels, estimated by a linear regression with the Shapley kernel. Signed.

    They add up to the difference between the logits of the image and the blank one.

    Source: Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017, section 4.1.
    """

    source = "Lundberg and Lee, NeurIPS 2017"
    captum_class = "KernelShap"


#: Width of LIME's kernel and strength of its ridge regression, as in the authors' code for images.
WIDTH, RIDGE = 0.25, 1.0


@register("lime")
class LIME(_Surrogate):
    """Weights of a ridge regression of the logit on which superpixels are kept, near the whole image. Signed.

    As in the authors' code for images, each superpixel is kept with probability 1/2, selections are weighted by
    ``exp(-d^2 / width^2)^(1/2)`` with d the cosine distance from the whole image, width 0.25, ridge 1. That code fits
    the probability, blanks with the mean color of the superpixel, and draws 1000 selections.

    Source: Ribeiro et al., "'Why Should I Trust You?': Explaining the Predictions of Any Classifier", KDD 2016.
    """

    source = "Ribeiro et al., KDD 2016"

    def captum_method(self, score: TargetScore) -> Any:
        """Return captum's LIME with the regression and the weights of the authors' code."""
        from captum.attr import Lime

        return Lime(score, _RidgeRegression(), similarity)


class _RidgeRegression:
    """The interpretable model that captum's ``Lime`` fits; captum's own ridge regression is not public."""

    def fit(self, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Fit to batches of selections (B, regions), logits (B,) and weights (B,)."""
        from sklearn.linear_model import Ridge

        selections, logits, weights = (torch.cat(part).cpu().numpy() for part in zip(*batches, strict=True))
        self.weights = Ridge(alpha=RIDGE).fit(selections, logits, sample_weight=weights).coef_

    def representation(self) -> Tensor:
        """Return the weights (1, regions)."""
        return torch.from_numpy(self.weights).float().view(1, -1)


def similarity(_image: Tensor, _version: Tensor, kept: Tensor, **_: Any) -> float:
    """Return the weight in (0, 1] of a selection ``kept`` (1, regions) of 0 and 1, by cosine distance from all ones.

    A selection that keeps nothing has no angle and counts as distance 1.
    """
    distance = 1 - math.sqrt(float(kept.double().mean()))  # cos(z, 1) = sum z / (sqrt(sum z) sqrt(d)), z of 0 and 1
    return math.exp(-((distance / WIDTH) ** 2) / 2)
