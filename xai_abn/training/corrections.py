"""Training on corrections: images that a person marked, beside the ordinary ones, and the loss of their maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xai_abn.datasets import TrainingData
from xai_abn.datasets.batches import Batch, Corrected, InMemorySplit, shifted
from xai_abn.datasets.corrections import LOOK, MARKED_MAPS, Correction, Corrections, MarkedMap
from xai_abn.errors import DatasetError, InvalidInputError, UnsupportedModelError
from xai_abn.explainers.base import Explainer, make_explainers, run_pass
from xai_abn.files import digest
from xai_abn.images.preprocess import Preprocess, normalizer
from xai_abn.models.adapter import ModelAdapter, wrap
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.networks.tracing import as_unsupported
from xai_abn.seeding import mixed_seed
from xai_abn.training.correction_losses import (
    COPIES,
    MAP_LOSSES,
    WEIGHTS,
    Marks,
    right_reasons,
    scaled,
)
from xai_abn.training.settings import TrainingSettings

#: Largest shift of a corrected image, as a share of its side, where the training split has none of its own.
_SHIFT = 1 / 8
#: The method whose map is read, for an ABN and for a classifier without an attention branch.
_METHODS = {"class-map": ("abn-class", "cam"), "attention-map": ("abn", None), "grad-cam": ("grad-cam", "grad-cam")}


@dataclass(frozen=True, eq=False)
class CorrectedImages:
    """Images with marks, as a network sees them; one row for each image and class.

    Attributes:
        pixels: (N, 5, H, W) uint8: RGB, where to look (0 or 1), and where not to.
        targets: (N,) class indices.
        sure: (N,) bool, whether the image shows the class: a person marked where to look for it. A mark of where not to
            look can be of a class that is not there.
    """

    pixels: Tensor
    targets: Tensor
    sure: Tensor

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.pixels)

    def fingerprint(self) -> str:
        """Return a hash of pixels, marks and classes."""
        return digest(self.pixels.numpy().data, self.targets.numpy().data)


def read_corrections(
    folder: str, model: ModelAdapter, preprocess: Preprocess, on: MarkedMap | None = None
) -> CorrectedImages:
    """Read a folder of corrections for a model.

    Args:
        folder: see :class:`xai_abn.Corrections`.
        model: its labels are the classes.
        preprocess: what the network sees of an image.
        on: leave out marks that were painted on the other map; None takes all.

    Raises:
        DatasetError: there are none, or one cannot be used: another image, size or class than it was made for, a mask
            that is empty, full or of another size, contradicting marks, or marks outside what the network sees.
        ImageLoadError: an image is missing or damaged.
    """
    corrections = Corrections(folder)
    corrections.check(model)
    if not len(corrections):
        raise DatasetError(f"{folder}: there are no corrections; give a folder with some, as xai-abn app makes it")
    used = [correction for correction in corrections if correction.holds_for(on)]
    if not used:
        raise DatasetError(f"{folder}: no mark is on the {on}; choose another map to train on, or mark this one")
    by_class: dict[tuple[str, int], list[Correction]] = {}
    for correction in used:
        by_class.setdefault((correction.image_digest, correction.target_in(model)), []).append(correction)
    rows = [_as_seen(marks, preprocess) for marks in by_class.values()]
    sure = [any(c.kind == LOOK for c in marks) for marks in by_class.values()]
    return CorrectedImages(torch.stack(rows), torch.tensor([t for _, t in by_class]), torch.tensor(sure))


def _as_seen(corrections: list[Correction], preprocess: Preprocess) -> Tensor:
    """Return what a network sees of an image and its marks for one class, (5, H, W) uint8."""
    loaded = corrections[0].load()
    prepared, pixels = preprocess(loaded), torch.from_numpy(preprocess.pixels(loaded.image).copy()).permute(2, 0, 1)
    marks = torch.zeros(2, *pixels.shape[1:], dtype=torch.uint8)
    masks = [correction.mask for correction in corrections]
    looks = [mask for mask, correction in zip(masks, corrections, strict=True) if correction.kind == LOOK]
    avoids = [mask for mask, correction in zip(masks, corrections, strict=True) if correction.kind != LOOK]
    if any(bool((look & avoid).any()) for look in looks for avoid in avoids):
        raise DatasetError(
            f"{corrections[0].path}: the marks of {corrections[0].name} on the attention map and on the class map "
            "contradict each other; change them, or train on one of these maps"
        )
    for correction, mask in zip(corrections, masks, strict=True):
        seen = torch.from_numpy(prepared.seen_of(mask, (pixels.shape[1], pixels.shape[2])))
        if not bool(seen.any()):
            raise DatasetError(
                f"{correction.path}: the network sees nothing of the marks on {correction.name}, which it crops; "
                "change or delete them"
            )
        marks[int(correction.kind != LOOK)] |= seen.to(torch.uint8)
    return torch.cat([pixels, marks])


class CorrectionObjective:
    """What corrections add to a training: further images in each batch, and a loss of their maps.

    The map is the one that :func:`xai_abn.explain` gives, with its history: the network computes it in evaluation mode,
    in a pass of its own.

    Args:
        settings: see :class:`TrainingSettings`.
        data: the ordinary images.
        network: a classifier or an ABN, on its device.
        name: of the network, for messages.
        ranks: number of processes.

    Raises:
        DatasetError: see :func:`read_corrections`.
        UnsupportedModelError: the network has no such map.
        InvalidInputError: the data has attributes, or the corrections do not fit the ranks.
    """

    def __init__(
        self, settings: TrainingSettings, data: TrainingData, network: nn.Module, name: str, ranks: int
    ) -> None:
        assert settings.corrections is not None
        if data.multi_label:
            raise InvalidInputError(f"corrections are for classes, and {data.name} has attributes; leave them out")
        self.settings, self.ranks = settings, ranks
        self.model = wrap(network, labels=data.labels, preprocess=data.preprocess, name=name)
        reads = settings.on if settings.correction_loss in MAP_LOSSES and settings.on in MARKED_MAPS else None
        self.images = read_corrections(settings.corrections, self.model, data.preprocess, reads)
        if settings.correction_batch % ranks:
            raise InvalidInputError(
                f"correction_batch must be a multiple of the {ranks} ranks, got {settings.correction_batch}"
            )
        if settings.correction_loss in COPIES and not bool(self.images.sure.any()):
            raise DatasetError(
                f"{settings.corrections}: {settings.correction_loss} need the class that an image shows, which "
                "'look here' marks tell; mark where to look as well, or choose another correction_loss"
            )
        own = data.train.padding if isinstance(data.train, InMemorySplit) else None
        self._padding = own if own is not None else max(1, round(_SHIFT * data.preprocess.side))
        device = next(network.parameters()).device
        self._normalize = normalizer(data.preprocess.mean, data.preprocess.std, device)
        self._explainer = self._make_explainer() if settings.correction_loss in MAP_LOSSES else None
        usual = WEIGHTS.get(settings.correction_loss, 0.0)
        self.weight = usual if settings.correction_weight is None else settings.correction_weight

    def _make_explainer(self) -> Explainer:
        of_abn, of_classifier = _METHODS[self.settings.on]
        method = of_abn if self.model.is_abn else of_classifier
        if method is None:
            raise UnsupportedModelError(
                f"{self.model.name} has no attention map; choose on='class-map' or on='grad-cam'"
            )
        return make_explainers(self.model, method)[0]

    def join(self, batch: Batch, step: int, rank: int) -> Batch:
        """Return a batch with this rank's corrected images; those that show their class are ordinary images, too.

        Args:
            batch: of ordinary images.
            step: of all epochs. It decides which images are drawn, each once before one is drawn again, and how
                they are shifted and flipped.
            rank: of this process.
        """
        device, found = batch.images.device, self.images
        rows = self._drawn(step)
        generator = torch.Generator().manual_seed(mixed_seed(self.settings.seed, "corrected images", step))
        corners = torch.randint(0, 2 * self._padding + 1, (len(rows), 2), generator=generator)
        places = torch.cat([corners, torch.randint(0, 2, (len(rows), 1), generator=generator)], dim=1)
        pixels, masks = shifted(found.pixels[rows], places, self._padding).split([3, 2], dim=1)
        make = COPIES.get(self.settings.correction_loss)
        copies = pixels if make is None else make(pixels, masks, generator)
        own = torch.arange(len(rows)).chunk(self.ranks)[rank]
        pixels, masks, targets = pixels[own], masks[own].to(device), found.targets[rows[own]].to(device)
        sure = found.sure[rows[own]]
        shown = [pixels[sure]] if make is None else [pixels[sure], copies[own][sure]]
        images = torch.cat([batch.images, *(self._normalized(part, device) for part in shown)])
        classes = torch.cat([batch.targets, *[targets[sure.to(device)]] * len(shown)])
        corrected = Corrected(self._normalized(pixels, device), targets, masks)
        return Batch(images.contiguous(memory_format=torch.channels_last), classes, batch.skipped, corrected)

    def _drawn(self, step: int) -> Tensor:
        """Return the rows of a step, over all ranks."""
        number, count = len(self.images), self.settings.correction_batch
        places = range(step * count, (step + 1) * count)
        orders = {}
        for turn in {place // number for place in places}:
            generator = torch.Generator().manual_seed(mixed_seed(self.settings.seed, "corrections", turn))
            orders[turn] = torch.randperm(number, generator=generator)
        return torch.stack([orders[place // number][place % number] for place in places])

    def _normalized(self, pixels: Tensor, device: torch.device) -> Tensor:
        return self._normalize(pixels.to(device)).contiguous(memory_format=torch.channels_last)

    def loss(self, corrected: Corrected) -> Tensor | None:
        """Return the mean loss of the maps of corrected images, a scalar; None if nothing is lost by maps."""
        if self.settings.correction_loss in COPIES or not self.weight:
            return None
        if self._explainer is None:
            return right_reasons(self._gradients(corrected.images), corrected.masks).mean()
        shared = run_pass(self.model, corrected.images, [self._explainer], create_graph=True)
        maps = self._explainer.explain(shared, corrected.targets).float()
        if self.settings.on != "attention-map":  # which lies in [0, 1]
            maps = scaled(maps)
        function = MAP_LOSSES[self.settings.correction_loss]
        return function(maps, Marks.of(corrected.masks, maps.shape[1:])).mean()

    def try_loss(self, corrected: Corrected) -> None:
        """Compute the loss and its gradients, and leave no trace.

        Raises:
            UnsupportedModelError: the network has no such map, or it cannot be differentiated by the weights.
        """
        loss = self.loss(corrected)
        if loss is None:
            return
        weights = [weight for weight in self.model.module.parameters() if weight.requires_grad]
        advice = "choose another map or 'counter-examples'" if self._explainer else "choose 'counter-examples'"
        with as_unsupported(f"the maps of {self.model.name} cannot be trained, {advice}"):
            torch.autograd.grad(loss, weights, allow_unused=True)

    def _gradients(self, images: Tensor) -> Tensor:
        """Return the gradients of the sum of all log-probabilities by the pixels, with their history."""

        def log_probabilities(output: Any) -> Tensor:
            return self.model.logits_of(output).float().log_softmax(dim=1).sum(dim=1)

        model = self.model.with_output(log_probabilities, "log-probabilities")
        shared = ForwardPass(model, images, gradients=True, create_graph=True)
        return shared.input_gradients(torch.zeros(len(images), dtype=torch.long, device=images.device))
