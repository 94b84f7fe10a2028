"""Networks for video that take the frames of a clip in front of its channels, as those of Hugging Face do."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from xai_abn.errors import UnsupportedModelError
from xai_abn.images.clips import ClipPreprocess


class FramesFirst(nn.Module):
    """A network that takes clips (N, T, C, H, W), as one that takes them as (N, C, T, H, W)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.config: Any = getattr(network, "config", None)
        self.train(network.training)

    def forward(self, clips: Tensor) -> Any:
        """Return the output of the network."""
        return self.network(clips.transpose(1, 2))


def takes_frames_first(module: nn.Module) -> bool:
    """Return whether the network is one of Hugging Face that classifies videos, such as VideoMAE or ViViT."""
    return type(module).__name__.endswith("ForVideoClassification") and hasattr(module, "config")


def check_order(module: nn.Module, example: Tensor) -> None:
    """Refuse an example input (1, T, C, H, W) of another network that takes frames in front of channels.

    It is known by its first convolution, which reads as many channels as the third axis has.

    Raises:
        UnsupportedModelError: the axes would be taken for others.
    """
    first = next((m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))), None)
    if example.dim() == 5 and first is not None and first.in_channels == example.shape[2] != example.shape[1] > 1:
        raise UnsupportedModelError(
            f"{type(module).__name__} takes frames in front of channels, {tuple(example.shape)}; put it into a module "
            "that takes (N, C, T, H, W) and calls it with clips.transpose(1, 2)"
        )


def assumed_clips(module: nn.Module) -> ClipPreprocess:
    """Return a preprocessing of the size and number of frames of such a network, with ImageNet's mean and deviation."""
    config: Any = module.config
    size = getattr(config, "image_size", None) or config.crop_size
    frames = getattr(config, "num_frames", None) or config.frames_per_clip
    return ClipPreprocess(size=size if isinstance(size, int) else size[0], frames=frames, interpolation="bilinear")
