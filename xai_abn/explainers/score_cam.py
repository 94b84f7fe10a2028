"""Score-CAM and its kin: a channel counts by what the network answers when it sees only that, or all but that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.explainers.base import Explainer, register
from xai_abn.explainers.grad_cam import weighted_sum
from xai_abn.heatmaps import unit_range
from xai_abn.models.forward_pass import ForwardPass

#: Values of activations that one run of the network's last part may hold: 128 MB in float32.
ABLATED_VALUES = 32_000_000


@register("score-cam")
class ScoreCAM(Explainer):
    """Channels weighted by the softmax, over channels, of the score of the picture seen through each.

    A channel becomes a mask by enlarging it and scaling it to [0, 1]; the normalised input is multiplied by it. A
    channel that is the same everywhere gives an empty mask, and all of those share one prediction.

    Args:
        layer: see :class:`Explainer`.
        batch_size: masked pictures per forward pass; default: 8 on a CPU, whose caches hold no more, else 32.
        corners: enlarge with aligned corners, as grad-cam 1.5 does; default: half-pixel centres, as torchcam.
        scale_first: scale to [0, 1] before enlarging, as torchcam 0.5 does; default: after, as published.
        progress: show a bar on standard error.

    Raises:
        InvalidInputError: ``batch_size`` below 1.

    Source: Wang et al., "Score-CAM", CVPR Workshops 2020, algorithm 1, with logits and a black-in-normalised-space
    baseline, which cancels in the softmax.
    """

    source = "Wang et al., CVPR Workshops 2020"

    def __init__(
        self,
        layer: str | None = None,
        *,
        batch_size: int | None = None,
        corners: bool = False,
        scale_first: bool = False,
        progress: bool = False,
    ) -> None:
        super().__init__(layer)
        if batch_size is not None and batch_size < 1:
            raise InvalidInputError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size, self.corners, self.scale_first, self.progress = batch_size, corners, scale_first, progress

    @property
    def parameters(self) -> dict[str, Any]:
        """How masks were made."""
        return {"corners": self.corners, "scale_first": self.scale_first}

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, h, w), at least 0."""
        activations = forward_pass.activations(self.layer_of(forward_pass.model)).float()
        scores = torch.stack([self._scores(forward_pass, activations, targets, n) for n in range(len(activations))])
        return weighted_sum(activations, scores.softmax(dim=1)).relu()

    def _scores(self, forward_pass: ForwardPass, activations: Tensor, targets: Tensor, row: int) -> Tensor:
        """Return the mean score (C,) of one picture seen through each channel."""
        channels, picture = activations[row], forward_pass.inputs[row : row + 1]
        spread = channels.flatten(1).amax(dim=1) - channels.flatten(1).amin(dim=1)
        empty = picture * 0
        plain = float(self._score(forward_pass, empty, targets, row)[0])
        scores = torch.full((len(channels),), plain, device=channels.device)
        live = self._live(spread)
        size = self.batch_size or (8 if picture.device.type == "cpu" else 32)
        for chunk in self._shown(live.split(size)):
            masks = self._masks(channels[chunk], (picture.shape[2], picture.shape[3]))
            seen = [self._score(forward_pass, picture * m, targets, row) for m in self._variants(masks, chunk)]
            scores[chunk] = torch.stack(seen).mean(dim=0)
        return scores

    def _live(self, spread: Tensor) -> Tensor:
        """Return the channels worth a forward pass of their own."""
        return (spread > 0).nonzero()[:, 0]

    def _variants(self, masks: Tensor, channels: Tensor) -> Iterator[Tensor]:
        """Yield the masks (B, 1, H, W) to look through for a chunk of channels."""
        yield masks

    def _score(self, forward_pass: ForwardPass, inputs: Tensor, targets: Tensor, row: int) -> Tensor:
        wanted = targets[row : row + 1].expand(len(inputs), *targets.shape[1:])
        return forward_pass.scores(forward_pass.predict(inputs), wanted)

    def _masks(self, channels: Tensor, size: tuple[int, int]) -> Tensor:
        """Return channels (B, h, w) as masks (B, 1, H, W) in [0, 1]."""
        masks = channels[:, None]
        if self.scale_first:
            masks = unit_range(masks)
        masks = F.interpolate(masks, size, mode="bilinear", align_corners=self.corners)
        return masks if self.scale_first else unit_range(masks)

    def _shown(self, chunks: tuple[Tensor, ...]) -> Iterable[Tensor]:
        if not self.progress:
            return chunks
        from rich.console import Console
        from rich.progress import track

        return track(chunks, description=self.name, console=Console(stderr=True), transient=True)


@register("ss-cam")
class SSCAM(ScoreCAM):
    """Score-CAM with Gaussian noise on the masks, its scores averaged over ``samples``.

    Args:
        layer: see :class:`Explainer`.
        samples: of the noise; every channel costs so many predictions. The paper takes 35; 10 here, for patience.
        deviation: standard deviation of the noise on masks in [0, 1].
        seed: of the noise, which is the same for every picture.
        settings: as for :class:`ScoreCAM`.

    Source: Wang et al., "SS-CAM: Smoothed Score-CAM", 2020, the variant with noise on the activation maps.
    """

    source = "Wang et al., 2020 (SS-CAM)"

    def __init__(
        self, layer: str | None = None, *, samples: int = 10, deviation: float = 2.0, seed: int = 0, **settings: Any
    ) -> None:
        super().__init__(layer, **settings)
        if samples < 1:
            raise InvalidInputError(f"samples must be at least 1, got {samples}")
        self.samples, self.deviation, self.seed = samples, deviation, seed

    @property
    def parameters(self) -> dict[str, Any]:
        """How masks were made and blurred."""
        return super().parameters | {"samples": self.samples, "deviation": self.deviation, "seed": self.seed}

    def _live(self, spread: Tensor) -> Tensor:
        """Return every channel: noise fills an empty mask, too."""
        return torch.arange(len(spread), device=spread.device)

    def _variants(self, masks: Tensor, channels: Tensor) -> Iterator[Tensor]:
        for sample in range(self.samples):
            seeds = [(self.seed * self.samples + sample) * 2**20 + channel for channel in channels.tolist()]
            noise = [torch.randn(masks.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds]
            yield masks + self.deviation * torch.stack(noise).to(masks)


@register("is-cam")
class ISCAM(ScoreCAM):
    """Score-CAM with scores averaged over brightening masks: the i-th is ``sum_j<=i j / steps`` times the mask.

    Args:
        layer: see :class:`Explainer`.
        steps: number of masks a channel.
        settings: as for :class:`ScoreCAM`.

    Source: Naidu et al., "IS-CAM: Integrated Score-CAM", 2020; steps counted from 1, as in torchcam 0.5.
    """

    source = "Naidu et al., 2020"

    def __init__(self, layer: str | None = None, *, steps: int = 10, **settings: Any) -> None:
        super().__init__(layer, **settings)
        if steps < 1:
            raise InvalidInputError(f"steps must be at least 1, got {steps}")
        self.steps = steps

    @property
    def parameters(self) -> dict[str, Any]:
        """How masks were made and brightened."""
        return super().parameters | {"steps": self.steps}

    def _variants(self, masks: Tensor, channels: Tensor) -> Iterator[Tensor]:
        brightness = 0.0
        for step in range(1, self.steps + 1):
            brightness += step / self.steps
            yield masks * brightness


@register("ablation-cam")
class AblationCAM(Explainer):
    """Channels weighted by the share of the score that is lost without them: ``(y - y_k) / y``.

    Only what lies behind the layer runs again, for many channels at once. Where the score is near 0, so is the
    divisor, and where it is negative the map turns round: read the score beside it.

    Source: Desai and Ramaswamy, "Ablation-CAM", WACV 2020, eq. 4. A channel is set to 0, as there; grad-cam 1.5 sets
    it far below the others where the layer has negative values.
    """

    source = "Desai and Ramaswamy, WACV 2020"

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, h, w), at least 0."""
        layer = self.layer_of(forward_pass.model)
        activations = forward_pass.activations(layer)
        whole = forward_pass.scores(forward_pass.logits, targets)
        rows = [self._without_each(forward_pass, layer, targets, n) for n in range(len(activations))]
        weights = (whole[:, None] - torch.stack(rows)) / whole[:, None]
        return weighted_sum(activations.float(), weights).relu()

    def _without_each(self, forward_pass: ForwardPass, layer: str, targets: Tensor, row: int) -> Tensor:
        """Return one picture's score (C,) without each channel; an empty channel's is that of the whole."""
        layout, full = forward_pass.layout(layer), forward_pass.activations(layer)[row]
        like = forward_pass.tokens(layer).detach()[row : row + 1]
        scores = forward_pass.scores(forward_pass.logits, targets)[row].expand(len(full)).clone()
        live = full.flatten(1).any(dim=1).nonzero()[:, 0]
        for chunk in live.split(max(1, ABLATED_VALUES // full.numel())):
            cut = full.expand(len(chunk), -1, -1, -1).clone()
            cut[torch.arange(len(chunk)), chunk] = 0
            logits = forward_pass.rerun(layer, row, layout.from_maps(cut, like)).float()
            wanted = targets[row : row + 1].expand(len(chunk), *targets.shape[1:])
            scores[chunk] = forward_pass.scores(logits, wanted)
        return scores
