"""Training of the mask branch: masks that keep a class when only they are shown, and remove it when they are hidden.

The network is frozen and judges its own masks. Nothing but images is needed, neither labels nor boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from xai_abn.datasets.batches import Batch
from xai_abn.errors import UnsupportedModelError
from xai_abn.metrics.curves import RISE_BLUR, WIDE_BLUR
from xai_abn.models.adapter import ModelAdapter, wrap
from xai_abn.models.folding import frozen_copy, noise_like
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.networks.abn import AttentionBranchNetwork
from xai_abn.networks.masks import standardized
from xai_abn.networks.tracing import on_device
from xai_abn.seeding import mixed_seed
from xai_abn.training.crops import CropsObjective
from xai_abn.training.settings import DistillationSettings

#: Smallest and largest share of the area that a mask keeps in a step.
LEAST_AREA, LARGEST_AREA = 0.02, 0.95
#: Width of the soft threshold, in standard deviations of the scores.
SOFTNESS = 0.15
#: Added to probabilities before their logarithm is taken: of what is kept, and of what is hidden.
FLOORS = (0.005, 0.02)
#: Share of the images whose class is the top one; of the others it is one of the next four.
TOP_SHARE = 0.6
#: Images along the side of a mosaic, either of which is as likely, and mosaics that share their edges.
SIDES, ALIKE = (2, 3), 16
#: How far the edges of a 2x2 mosaic can be from its middle, as a share of the side; in larger ones less.
SHIFT = 0.2
#: Weight decay of the mask branch.
WEIGHT_DECAY = 0.01
#: Shares of the area at which masks are compared with class maps.
CHECKED_AREAS = (0.05, 0.1, 0.2, 0.4)


class Mosaics(NamedTuple):
    """Images put together, with the class of one of them and its places.

    Attributes:
        images: (M, C, H, W).
        targets: (M,) class of one of its images.
        places: (M, H, W) bool, where images of this class are.
    """

    images: Tensor
    targets: Tensor
    places: Tensor


class MaskObjective(CropsObjective):
    """Trains the mask branch of a frozen network on random crops and mosaics of them.

    The loss of a mask of class c with scores z, at a random share of the area, is
    ``-log(p_c(keep) + 0.005) - log(1 - p_c(hide) + 0.02) + variation_weight * TV(z)``, where ``keep`` shows the image
    where z is above its quantile and a blurred or plain image elsewhere, and ``hide`` the reverse. So insertion and
    deletion are trained for at every area, and no weight of an area has to be chosen. In a mosaic, of which the class
    and place of one image are known, it has the further term ``-tile_weight * log(share of softmax(2 z) in this
    place)``.

    Args:
        network: with a mask branch.
        images: gives (3, H, W) crops, or an ImageLoadError for an unreadable image.
        settings: see :class:`DistillationSettings`.

    Raises:
        InvalidInputError: there are fewer images than a batch holds.
        UnsupportedModelError: the network has no mask branch.
    """

    what, advice = "class masks", "lower mask_lr"

    def __init__(self, network: AttentionBranchNetwork, images: Dataset[Any], settings: DistillationSettings) -> None:
        if network.mask_branch is None:
            raise UnsupportedModelError("the network has no mask branch; make one with abn_from(..., masks=True)")
        super().__init__(network, images, settings, [(settings.mask_lr, [network.mask_branch])], WEIGHT_DECAY)
        self.model = wrap(network)
        self._judge: nn.Module | None = None  # made when the size of the images is known

    def judge(self, images: Tensor) -> Tensor:
        """Return the network's logits (N, K), computed by a frozen copy that is quicker."""
        if self._judge is None:
            self._judge = frozen_judge(self.model, images)
        logits: Tensor = self._judge(images)
        return logits

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return loss and terms of a batch; what is drawn depends on seed and step alone."""
        generator = torch.Generator().manual_seed(mixed_seed(self.settings.seed, "masks", step))
        images = batch.images
        with torch.no_grad():
            likely = self.judge(images).topk(min(5, self.network.class_rows.shape[0])).indices
        targets = draw_classes(likely, generator)
        places = torch.ones(len(images), *images.shape[2:], dtype=torch.bool, device=images.device)
        if self.settings.mosaics:
            mosaics = cut_mosaics(images, likely[:, 0], self.settings.mosaics, self.judge, generator)
            images = torch.cat([images, mosaics.images])
            targets, places = torch.cat([targets, mosaics.targets]), torch.cat([places, mosaics.places])
        scores = mask_scores(self.model, images, targets)
        return mask_losses(scores, images, targets, places, self.judge, self.settings, generator)

    def measure(self, held_out: Tensor) -> dict[str, Any]:
        """Compare the masks with the class maps."""
        return check_masks(self.network, held_out).to_dict()

    def frozen(self) -> nn.Module:
        """Return everything but the mask branch."""
        network = self.network
        return nn.ModuleList(
            [network.feature_extractor, network.attention_branch, network.perception_branch, network.mechanism]
        )

    def trained(self) -> Mapping[str, Tensor]:
        """Return the weights of the mask branch."""
        weights = self.network.state_dict().items()
        return {name: values for name, values in weights if name.startswith("mask_branch.")}


def frozen_judge(model: ModelAdapter, images: Tensor) -> nn.Module:
    """Return a frozen copy of an ABN that outputs its logits (N, K) for images like those given."""
    with torch.autocast(images.device.type, enabled=False):
        copy_, _ = frozen_copy(model, on_device(noise_like(images), model.module))
    return copy_.to(memory_format=torch.channels_last)


def mask_scores(model: Any, images: Tensor, targets: Tensor) -> Tensor:
    """Return the standardized scores (N, H, W) of the masks of one class of each image."""
    network = model.module
    layers = network.mask_branch.description.layers
    shared = ForwardPass(model, images.detach(), layers)
    assert shared.class_maps is not None
    features = [shared.activations(layer) for layer in layers]
    scores: Tensor = network.mask_scores(features, shared.class_maps, targets[:, None])[:, 0]
    return scores


def draw_classes(likely: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a class of each image from its most probable ones (N, T): the first in ``TOP_SHARE``, else another."""
    number, count = likely.shape
    others = 1 + torch.randint(max(1, count - 1), (number,), generator=generator)
    first = torch.rand(number, generator=generator) < TOP_SHARE
    column = torch.where(first, torch.zeros_like(others), others.clamp_max(count - 1)).to(likely.device)
    return likely.gather(1, column[:, None])[:, 0]


def cut_mosaics(
    images: Tensor, classes: Tensor, count: int, predict: Callable[[Tensor], Tensor], generator: torch.Generator
) -> Mosaics:
    """Put images together, four or nine at a time, at random edges.

    Args:
        images: (N, C, H, W).
        classes: (N,) the class of each as it is seen alone.
        count: number M of mosaics.
        predict: images to logits (N, K). The more likely the class of an image is in the mosaic, the more often it is
            asked for: of a class that is not recognized there, no mask could be learned.
        generator: random numbers of members, edges and the image that is asked for.
    """
    groups = [
        _cut_alike(images, classes, min(ALIKE, count - first), predict, generator) for first in range(0, count, ALIKE)
    ]
    return Mosaics(*(torch.cat(parts) for parts in zip(*groups, strict=True)))


def _cut_alike(
    images: Tensor, classes: Tensor, count: int, predict: Callable[[Tensor], Tensor], generator: torch.Generator
) -> Mosaics:
    """Make mosaics with the same edges."""
    side = SIDES[int(torch.randint(len(SIDES), (), generator=generator))]
    rows, columns = (_edges(size, side, generator) for size in images.shape[2:])
    order = torch.rand(count, len(images), generator=generator).argsort(dim=1)
    members = order[:, torch.arange(side * side) % len(images)].to(images.device)
    mosaics = images.new_empty(count, *images.shape[1:])
    tiles = torch.zeros(images.shape[2:], dtype=torch.long, device=images.device)
    for tile in range(side * side):
        (top, bottom), (left, right) = (
            edges[at : at + 2] for edges, at in zip((rows, columns), divmod(tile, side), strict=True)
        )
        shown = F.interpolate(images[members[:, tile]], (bottom - top, right - left), mode="bilinear", antialias=True)
        mosaics[:, :, top:bottom, left:right] = shown
        tiles[top:bottom, left:right] = tile
    with torch.no_grad():
        seen = predict(mosaics).float().softmax(dim=1).gather(1, classes[members])
    asked = torch.multinomial(seen.cpu() + 1e-6, 1, generator=generator).to(images.device)
    targets = classes[members.gather(1, asked)]
    places = (classes[members] == targets)[:, tiles]
    return Mosaics(mosaics, targets[:, 0], places)


def _edges(size: int, side: int, generator: torch.Generator) -> list[int]:
    """Return where tiles begin along an axis, and where the last ends: even shares, moved at random."""
    moved = torch.arange(1, side) / side + SHIFT / (side - 1) * (2 * torch.rand(side - 1, generator=generator) - 1)
    return [0, *(moved * size).round().long().clamp(1, size - 1).tolist(), size]


def mask_losses(
    scores: Tensor,
    images: Tensor,
    targets: Tensor,
    places: Tensor,
    predict: Callable[[Tensor], Tensor],
    settings: DistillationSettings,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return the loss of masks and its terms, each a scalar; see :class:`MaskObjective`.

    Args:
        scores: (N, h, w), standardized.
        images: (N, C, H, W), normalized.
        targets: (N,) class indices.
        places: (N, H, W) bool, where the class is known to be; everywhere if nothing is known.
        predict: images to logits (N, K).
        settings: weights of the terms.
        generator: random numbers of the areas and of what replaces pixels.
    """
    draws = torch.rand(len(scores), generator=generator).to(scores.device)
    areas = LEAST_AREA + (LARGEST_AREA - LEAST_AREA) * draws**1.5  # small ones more often
    masks = soft_masks(scores, areas, images.shape[2:])
    blanks = replacements(images, generator)
    seen = torch.cat([images * masks + blanks * (1 - masks), images * (1 - masks) + blanks * masks])
    probabilities = predict(seen).float().softmax(dim=1)
    kept, hidden = probabilities.gather(1, targets.repeat(2)[:, None])[:, 0].chunk(2)
    variation = (scores[:, 1:] - scores[:, :-1]).abs().mean() + (scores[:, :, 1:] - scores[:, :, :-1]).abs().mean()
    terms = {
        "keep": -(kept + FLOORS[0]).log().mean(),
        "hide": -(1 - hidden + FLOORS[1]).log().mean(),
        "variation": variation,
    }
    loss = terms["keep"] + terms["hide"] + settings.variation_weight * variation
    if settings.tile_weight and settings.mosaics:
        known = ~places.flatten(1).all(dim=1)
        inside = F.interpolate(places[:, None].float(), scores.shape[1:], mode="area")[:, 0].flatten(1)
        shares = ((2 * scores.flatten(1)).softmax(dim=1) * inside).sum(dim=1)
        terms["tile"] = (-(shares + 1e-6).log() * known).sum() / known.sum().clamp_min(1)
        loss = loss + settings.tile_weight * terms["tile"]
    return {"loss": loss, **terms}


def soft_masks(scores: Tensor, areas: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Return masks (N, 1, H, W) in [0, 1] that light the given share of the area.

    Args:
        scores: (N, h, w), standardized.
        areas: (N,) in (0, 1): the threshold is the quantile 1 - area of the scores, which is not differentiated.
        size: (H, W).
    """
    flat = scores.detach().float().flatten(1)
    places = ((1 - areas) * (flat.shape[1] - 1)).round().long()
    thresholds = flat.sort(dim=1).values.gather(1, places[:, None])
    soft = torch.sigmoid((scores - thresholds[:, :, None]) / SOFTNESS)
    return F.interpolate(soft[:, None], tuple(size), mode="bilinear", align_corners=False)


def replacements(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return what hides pixels of each image (N, C, H, W): a wide or narrow blur, the mean color, or a random one.

    With one kind alone, masks would learn how the network answers to it.
    """
    kinds = torch.randint(4, (len(images),), generator=generator).to(images.device)
    colors = torch.randn(len(images), images.shape[1], 1, 1, generator=generator).to(images)
    black = images.new_zeros(images.shape[1])
    every = [WIDE_BLUR.make(images, black), RISE_BLUR.make(images, black), torch.zeros_like(images)]
    every.append(colors.expand_as(images))
    return torch.stack(every)[kinds, torch.arange(len(images), device=images.device)]


@dataclass(frozen=True)
class MaskCheck:
    """How much better masks are than class maps, on held-out images; means over images and ``CHECKED_AREAS``.

    Attributes:
        images: number of images.
        kept: probability of the top class where only its mask is shown, the rest blurred.
        hidden: the same where its mask is blurred.
        kept_by_class_map: as ``kept``, with the class map of the attention branch in place of the mask.
        hidden_by_class_map: as ``hidden``, likewise.
        verdict: ``"better"`` if ``kept - hidden`` is larger than of class maps, else ``"no better"``.
    """

    images: int
    kept: float
    hidden: float
    kept_by_class_map: float
    hidden_by_class_map: float

    @property
    def verdict(self) -> str:
        """Whether masks separate what the class needs better than class maps do."""
        gain = (self.kept - self.hidden) - (self.kept_by_class_map - self.hidden_by_class_map)
        return "better" if gain > 0 else "no better"

    @property
    def warning(self) -> str | None:
        """What is wrong with the masks, or None."""
        if self.verdict == "better":
            return None
        return "the masks are no better than the class maps that they refine; train longer, or with more images"

    def to_dict(self) -> dict[str, Any]:
        """Return the values, verdict and warning for JSON."""
        values = {name: round(value, 5) for name, value in vars(self).items()}
        return {**values, "verdict": self.verdict, "warning": self.warning}


@torch.no_grad()
def check_masks(network: AttentionBranchNetwork, inputs: Tensor, *, batch_size: int = 16) -> MaskCheck:
    """Compare masks with the class maps that they refine; the network does not change.

    Args:
        network: with a mask branch.
        inputs: (N, 3, H, W) with N >= 1, normalized, not trained on; on any device.
        batch_size: inputs in a forward pass.
    """
    model, device = wrap(network), next(network.parameters()).device
    judge = frozen_judge(model, inputs)
    sums = torch.zeros(4, dtype=torch.float64)
    for batch in inputs.split(batch_size):
        images = batch.to(device)
        blurred = WIDE_BLUR.make(images, images.new_zeros(images.shape[1]))
        output = network(images)
        targets = output.logits.argmax(dim=1)
        rows = torch.arange(len(images), device=device)
        own = mask_scores(model, images, targets)
        refined = F.interpolate(output.class_maps[rows, targets][:, None], own.shape[1:], mode="bilinear")[:, 0]
        for place, scores in ((0, own), (2, standardized(refined))):
            for area in CHECKED_AREAS:
                masks = soft_masks(scores, torch.full((len(images),), area, device=device), images.shape[2:])
                for offset, shown in ((0, masks), (1, 1 - masks)):
                    probabilities = judge(images * shown + blurred * (1 - shown)).softmax(dim=1)
                    sums[place + offset] += probabilities[rows, targets].double().sum().cpu()
    return MaskCheck(len(inputs), *(sums / (len(inputs) * len(CHECKED_AREAS))).tolist())
