"""Clips: frames of videos and animated images, and how they become inputs of networks for video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from xai_abn.errors import ImageLoadError, InvalidInputError
from xai_abn.images.loading import EXTENSIONS, LoadedImage, check_file
from xai_abn.images.preprocess import PreparedImage, Preprocess


@dataclass(frozen=True, eq=False)
class LoadedClip:
    """Frames of a clip.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        source: a path, or a short description.
        notes: which frames of the whole they are.
    """

    frames: np.ndarray
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClipPreprocess(Preprocess):
    """Preprocessing that a network for video expects: that of images, of each frame, without antialiasing.

    Attributes:
        frames: number of frames T of the input.
        resized: (height, width) to which frames are resized before they are cropped, ignoring their aspect ratio;
            None for that of ``crop_pct``.
    """

    frames: int = 16
    resized: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        covered = self._covered()
        if self.frames < 2 or any(c < s for c, s in zip(covered, self.height_and_width[::-1], strict=True)):
            raise InvalidInputError(
                f"a clip needs at least 2 frames, resized to at least the size of the input {self.height_and_width}, "
                f"got {self.frames} frames and resized={self.resized}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the input, (C, T, H, W)."""
        return (len(self.mean), self.frames, *self.height_and_width)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Return what the network sees of a frame (RGB, any size) before normalizing: (H, W, C) uint8."""
        size = self._resized(*image.size)
        return self._cropped(cv2.resize(np.asarray(image), size, interpolation=cv2.INTER_LINEAR))

    def _covered(self) -> tuple[int, int]:
        if self.resized is None or self.crop == "squash":
            return super()._covered()
        return self.resized[1], self.resized[0]

    def of_clip(self, clip: LoadedClip) -> PreparedImage:
        """Prepare a clip of the right number of frames."""
        frames = [self(LoadedImage(Image.fromarray(frame), clip.source)) for frame in clip.frames]
        height, width = clip.frames.shape[1:3]
        return replace(
            frames[0],
            tensor=torch.stack([frame.tensor for frame in frames], dim=1),
            view=np.stack([frame.view for frame in frames]),
            notes=clip.notes,
            size=(len(frames), height, width),
        )


def load_clip(path: str | Path, number: int) -> LoadedClip:
    """Read a number of frames of a video or an animated GIF, evenly spaced.

    Raises:
        ImageLoadError: the file is missing or cannot be decoded, or has fewer frames.
    """
    text = str(path)
    check_file(text)
    return _of_image(text, number) if Path(text).suffix.lower() in EXTENSIONS else _of_video(text, number)


def clip_of(frames: np.ndarray, number: int, source: str = "clip") -> LoadedClip:
    """Return a number of evenly spaced frames of an array (T, H, W, 3) of uint8 in [0, 255].

    Raises:
        InvalidInputError: another dtype or shape.
        ImageLoadError: there are fewer frames.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise InvalidInputError(
            f"{source}: expected frames (T, H, W, 3) of uint8 in [0, 255], or a normalized float tensor (C, T, H, W), "
            f"got {frames.dtype} {frames.shape}"
        )
    wanted, notes = _wanted(len(frames), number, source)
    return LoadedClip(frames[wanted], source, notes)


def evenly_spaced(total: int, number: int) -> list[int]:
    """Return ``number`` indices below ``total``: the middle of each of as many equal parts."""
    return [int((part + 0.5) * total / number) for part in range(number)]


def _wanted(total: int, number: int, source: str) -> tuple[list[int], tuple[str, ...]]:
    """Return which frames of a clip are read, and a note if they are not all."""
    if total < number:
        raise ImageLoadError(f"{source}: has {total} frames, and the network takes {number}; give a longer clip")
    wanted = evenly_spaced(total, number)
    listed = ", ".join(map(str, wanted if number <= 4 else [*wanted[:2], "...", wanted[-1]]))
    return wanted, () if total == number else (f"{number} of {total} frames, evenly spaced: {listed}",)


def _of_image(path: str, number: int) -> LoadedClip:
    try:
        with Image.open(path) as image:
            wanted, notes = _wanted(getattr(image, "n_frames", 1), number, path)
            frames = []
            for index in wanted:
                image.seek(index)
                frames.append(np.asarray(image.convert("RGB")))
    except ImageLoadError:
        raise
    except Exception as error:  # decoders raise errors of many types on damaged files
        raise ImageLoadError(f"{path}: damaged, or not an animated image ({error})") from error
    return LoadedClip(np.stack(frames), path, notes)


def _of_video(path: str, number: int) -> LoadedClip:
    capture = cv2.VideoCapture(path)  # once to count the frames, as the number in the header may be wrong
    total = 0
    while capture.grab():
        total += 1
    if not total:
        raise ImageLoadError(f"{path}: not a video that OpenCV can decode, or damaged; convert it to MP4")
    wanted, notes = _wanted(total, number, path)
    return LoadedClip(np.stack(_frames_at(path, wanted)), path, notes)


def _frames_at(path: str, wanted: Sequence[int]) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(path), []
    for index in range(wanted[-1] + 1):
        capture.grab()
        if index in wanted:
            read, frame = capture.retrieve()
            if not read:
                raise ImageLoadError(f"{path}: frame {index} cannot be decoded")
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    return frames
