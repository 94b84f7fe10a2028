"""What happens to the score when parts of the input are blanked, as captum computes it. No gradients."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from xai_abn.explainers.base import register
from xai_abn.explainers.input_space import CaptumMethod, Score
from xai_abn.explainers.superpixels import superpixels


class _Blanking(CaptumMethod):
    """A method that blanks whole regions: 0 in the normalised input, the mean colour, in all channels at once."""

    def merge_channels(self, attributions: Tensor) -> Tensor:
        """Return the first channel: a region has one value, which captum writes into every channel."""
        return attributions[:, 0]


@register("occlusion")
class Occlusion(_Blanking):
    """How far the logit falls when a square window is blanked, averaged over the windows on a pixel. Signed.

    Args:
        layer: must be None.
        window: side of the window, as a share of the input's shorter side; 32 of 224 pixels.
        stride: step between windows, as such a share; 16 of 224 pixels.
        batch_size: windows at once.

    One forward a window, 169 at 224 pixels.

    Source: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2, where
    the probability and a grey window are used.
    """

    source = "Zeiler and Fergus, ECCV 2014"

    def __init__(
        self, layer: str | None = None, *, window: float = 1 / 7, stride: float = 1 / 14, batch_size: int = 16
    ) -> None:
        super().__init__(layer)
        self.window = window
        self.stride = stride
        self.batch_size = batch_size

    def attribute_one(self, score: Score, picture: Tensor) -> Tensor:
        """Return the mean fall of the score."""
        from captum.attr import Occlusion

        side = min(picture.shape[2:])
        window = max(1, round(self.window * side))
        stride = min(window, max(1, round(self.stride * side)))
        return Occlusion(score).attribute(
            picture,
            sliding_window_shapes=(picture.shape[1], window, window),
            strides=(picture.shape[1], stride, stride),
            baselines=0,
            perturbations_per_eval=self.batch_size,
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """Window and stride, as shares of the input's shorter side."""
        return {"window": self.window, "stride": self.stride}


@register("feature-ablation")
class FeatureAblation(_Blanking):
    """How far the logit falls when one superpixel is blanked; every pixel of it gets that value. Signed.

    Args:
        layer: must be None.
        segments: superpixels to aim at; one forward each.
        batch_size: superpixels at once.

    Source: captum's ``FeatureAblation``, over the superpixels of Achanta et al., TPAMI 2012.
    """

    source = "Kokhlikyan et al., Captum, 2020; superpixels of Achanta et al., TPAMI 2012"

    def __init__(self, layer: str | None = None, *, segments: int = 50, batch_size: int = 16) -> None:
        super().__init__(layer)
        self.segments = segments
        self.batch_size = batch_size

    def attribute_one(self, score: Score, picture: Tensor) -> Tensor:
        """Return each superpixel's fall of the score."""
        from captum.attr import FeatureAblation

        return FeatureAblation(score).attribute(
            picture,
            baselines=0,
            feature_mask=superpixels(picture, self.segments),
            perturbations_per_eval=self.batch_size,
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """Superpixels aimed at."""
        return {"segments": self.segments}


class _Surrogate(_Blanking):
    """Weights of a linear model of the logit, fitted to random choices of superpixels.

    Args:
        layer: must be None.
        samples: random choices; one forward each.
        segments: superpixels to aim at.
        seed: of the choices.
        batch_size: choices at once.
    """

    def __init__(
        self,
        layer: str | None = None,
        *,
        samples: int = 200,
        segments: int = 50,
        seed: int = 0,
        batch_size: int = 16,
    ) -> None:
        super().__init__(layer, seed=seed)
        self.samples = samples
        self.segments = segments
        self.batch_size = batch_size

    def fitted(self, method: Any, picture: Tensor) -> Tensor:
        """Return what captum's method (``Lime`` or ``KernelShap``) fits, (1, 3, H, W)."""
        return method.attribute(
            picture,
            baselines=0,
            feature_mask=superpixels(picture, self.segments),
            n_samples=self.samples,
            perturbations_per_eval=self.batch_size,
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """Random choices, superpixels aimed at, and seed."""
        return {"samples": self.samples, "segments": self.segments, "seed": self.seed}


@register("kernel-shap")
class KernelSHAP(_Surrogate):
    """Shapley values of the superpixels, estimated by a linear regression with the Shapley kernel. Signed.

    They add up to the difference between the picture's logit and the blank's.

    Source: Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017, section 4.1.
    """

    source = "Lundberg and Lee, NeurIPS 2017"

    def attribute_one(self, score: Score, picture: Tensor) -> Tensor:
        """Return the Shapley values."""
        from captum.attr import KernelShap

        return self.fitted(KernelShap(score), picture)


#: Width of LIME's kernel and strength of its ridge regression, as in the authors' code for images.
WIDTH, RIDGE = 0.25, 1.0


@register("lime")
class LIME(_Surrogate):
    """Weights of a ridge regression of the logit on which superpixels are left, near the whole picture. Signed.

    As the authors' code for images: each superpixel is left with probability 1/2, choices are weighted by
    ``exp(-d^2 / width^2)^(1/2)`` with d the cosine distance from the whole, width 0.25, ridge 1. There the
    probability is fitted, blanks are the superpixel's mean colour, and 1000 choices are drawn.

    Source: Ribeiro et al., "'Why Should I Trust You?': Explaining the Predictions of Any Classifier", KDD 2016.
    """

    source = "Ribeiro et al., KDD 2016"

    def attribute_one(self, score: Score, picture: Tensor) -> Tensor:
        """Return the weights."""
        from captum._utils.models.linear_model import SkLearnRidge
        from captum.attr import Lime

        return self.fitted(Lime(score, SkLearnRidge(alpha=RIDGE), closeness), picture)


def closeness(_picture: Tensor, _version: Tensor, left: Tensor, **_: Any) -> float:
    """Return the weight in (0, 1] of a choice ``left`` (1, regions) of 0 and 1, by its cosine distance from all ones.

    A choice that leaves nothing has no angle and counts as distance 1.
    """
    distance = 1 - math.sqrt(float(left.double().mean()))  # cos(z, 1) = sum z / (sqrt(sum z) sqrt(d)), z of 0 and 1
    return math.exp(-((distance / WIDTH) ** 2) / 2)
