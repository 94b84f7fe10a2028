"""Score-CAM and its variants: channels weighted by the score of the image masked to, or without, that channel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from xai_abn.explainers.base import Count, Explainer, Seed, register
from xai_abn.explainers.grad_cam import weighted_sum
from xai_abn.heatmaps import unit_range, upsample
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.targets import target_scores

#: Number of activation values that one partial run of the network may hold: 128 MB in float32.
ABLATED_VALUES = 32_000_000


@register("score-cam")
class ScoreCAM(Explainer):
    """Channels weighted by the softmax, over channels, of the score of the image masked to each channel.

    A channel becomes a mask by enlarging it to the input and scaling it to [0, 1]; the normalized input is multiplied
    by the mask. All constant channels give an empty mask and share one prediction.

    Source: Wang et al., "Score-CAM", CVPR Workshops 2020, algorithm 1, with logits. The score of the empty image is
    not subtracted, because it cancels in the softmax.
    """

    no_graph = "it asks the network again, without a graph"
    source = "Wang et al., CVPR Workshops 2020"

    batch_size: Count | None = Field(
        None,
        exclude=True,
        description="Number of masked images per forward pass; default: 8 on a CPU, which has small caches, else 32.",
    )

    @property
    def cost(self) -> str:
        """Passes beyond the shared one, in words."""
        return f"{self._variants} forward per channel"

    @property
    def _variants(self) -> int:
        """Number of variants of each mask."""
        return 1

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, h, w), at least 0."""
        activations = forward_pass.activations(self.layer_of(forward_pass.model)).float()
        forward_pass.predictor.expect(activations.shape[0] * activations.shape[1] * self._variants)
        scores = torch.stack([self._scores(forward_pass, activations, targets, n) for n in range(len(activations))])
        return weighted_sum(activations, scores.softmax(dim=1)).relu()

    def _scores(self, forward_pass: ForwardPass, activations: Tensor, targets: Tensor, row: int) -> Tensor:
        """Return the mean score (C,) of one image masked to each channel."""
        channels, image = activations[row], forward_pass.inputs[row : row + 1]
        empty_score = float(self._score(forward_pass, image * 0, targets, row)[0])
        scores = torch.full((len(channels),), empty_score, device=channels.device)
        batch_size = self.batch_size or (8 if image.device.type == "cpu" else 32)
        for chunk in self.scored_channels(channels).split(batch_size):
            masks = self.masks(channels[chunk], forward_pass.size)
            variants = self.variants(masks, chunk)
            scores[chunk] = torch.stack([self._score(forward_pass, image * m, targets, row) for m in variants]).mean(
                dim=0
            )
        return scores

    def _score(self, forward_pass: ForwardPass, inputs: Tensor, targets: Tensor, row: int) -> Tensor:
        target = targets[row : row + 1].expand(len(inputs), *targets.shape[1:])
        return target_scores(forward_pass.predict(inputs), target)

    def scored_channels(self, channels: Tensor) -> Tensor:
        """Return the indices of the channels (C, h, w) that need a forward pass: all but the constant ones."""
        flat = channels.flatten(1)
        return (flat.amax(dim=1) > flat.amin(dim=1)).nonzero()[:, 0]

    def masks(self, channels: Tensor, size: tuple[int, ...]) -> Tensor:
        """Return channels (B, h, w) as masks (B, 1, H, W) in [0, 1]; those of volumes have one more axis."""
        return unit_range(upsample(channels, size))[:, None]

    def variants(self, masks: Tensor, channels: Tensor) -> Iterator[Tensor]:
        """Yield the variants of the masks (B, 1, H, W) of some channels (B,) over which scores are averaged."""
        yield masks


@register("ss-cam")
class SSCAM(ScoreCAM):
    """Score-CAM with Gaussian noise on the masks, and scores averaged over several samples of the noise.

    Every channel costs ``samples`` predictions. The paper uses 35; the default is 10 to save time.

    Source: Wang et al., "SS-CAM: Smoothed Score-CAM", 2020, the variant with noise on the activation maps.
    """

    source = "Wang et al., 2020 (SS-CAM)"

    samples: Count = Field(10, description="Number of noise samples per channel.")
    deviation: float = Field(2.0, ge=0, description="Standard deviation of the noise on masks in [0, 1].")
    seed: Seed = Field(0, description="Seed of the noise, which is the same for every image.")

    @property
    def _variants(self) -> int:
        return self.samples

    def scored_channels(self, channels: Tensor) -> Tensor:
        """Return all channels, because noise makes an empty mask visible."""
        return torch.arange(len(channels), device=channels.device)

    def variants(self, masks: Tensor, channels: Tensor) -> Iterator[Tensor]:
        """Yield the masks with noise, once per sample."""
        for sample in range(self.samples):
            seeds = [(self.seed * self.samples + sample) * 2**20 + channel for channel in channels.tolist()]
            noise = [torch.randn(masks.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds]
            yield masks + self.deviation * torch.stack(noise).to(masks)


@register("is-cam")
class ISCAM(ScoreCAM):
    """Score-CAM with scores averaged over increasingly bright masks: the i-th is ``sum_j<=i j / steps`` times the mask.

    Source: Naidu et al., "IS-CAM: Integrated Score-CAM", 2020; steps counted from 1, as in torchcam 0.5.
    """

    source = "Naidu et al., 2020"

    steps: Count = Field(10, description="Number of masks per channel.")

    @property
    def _variants(self) -> int:
        return self.steps

    def variants(self, masks: Tensor, channels: Tensor) -> Iterator[Tensor]:
        """Yield the masks at each brightness."""
        brightness = 0.0
        for step in range(1, self.steps + 1):
            brightness += step / self.steps
            yield masks * brightness


@register("ablation-cam")
class AblationCAM(Explainer):
    """Channels weighted by the share of the score that is lost without them: ``(y - y_k) / y``.

    Only the part of the network after the layer runs again, for many channels at once. Where the score is near 0, so
    is the divisor, and a negative score inverts the map: consider the score when reading the map.

    Source: Desai and Ramaswamy, "Ablation-CAM", WACV 2020, eq. 4. A channel is set to 0, as there; grad-cam 1.5 sets
    it far below the others if the layer has negative values.
    """

    no_graph = "it asks the network again, without a graph"
    source = "Desai and Ramaswamy, WACV 2020"

    @property
    def cost(self) -> str:
        """Passes beyond the shared one, in words."""
        return "1 partial forward per channel"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of ``targets``, (N, h, w), at least 0."""
        layer = self.layer_of(forward_pass.model)
        activations = forward_pass.activations(layer)
        full = target_scores(forward_pass.logits, targets)
        rows = [self.ablated_scores(forward_pass, layer, targets, n) for n in range(len(activations))]
        weights = (full[:, None] - torch.stack(rows)) / full[:, None]
        return weighted_sum(activations.float(), weights).relu()

    def ablated_scores(self, forward_pass: ForwardPass, layer: str, targets: Tensor, row: int) -> Tensor:
        """Return the score (C,) of one image without each channel; for an empty channel, the full score."""
        layout, full = forward_pass.layout(layer), forward_pass.activations(layer)[row]
        output = forward_pass.raw_output(layer).detach()[row : row + 1]
        scores = target_scores(forward_pass.logits, targets)[row].expand(len(full)).clone()
        active = full.flatten(1).any(dim=1).nonzero()[:, 0]
        for chunk in active.split(max(1, ABLATED_VALUES // full.numel())):
            ablated = full.expand(len(chunk), *full.shape).clone()
            ablated[torch.arange(len(chunk)), chunk] = 0
            logits = forward_pass.rerun(layer, row, layout.from_maps(ablated, output)).float()
            target = targets[row : row + 1].expand(len(chunk), *targets.shape[1:])
            scores[chunk] = target_scores(logits, target)
        return scores
