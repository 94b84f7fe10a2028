"""Volumes from NIfTI files, maps of volumes as NIfTI files, and how volumes are turned to be drawn."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xai_abn.errors import ImageLoadError, InvalidInputError
from xai_abn.images.loading import check_file

#: Endings of NIfTI files.
NIFTI = (".nii", ".nii.gz")
#: Text in the header of a NIfTI file that marks it as ours.
MARK = b"made by xai-abn"


@dataclass(frozen=True, eq=False)
class LoadedVolume:
    """A volume as its file holds it.

    Attributes:
        values: (C, X, Y, Z) float32, the axes in the file's order.
        affine: (4, 4), from indices of voxels to millimeters (right, anterior, superior).
        source: the path.
    """

    values: np.ndarray
    affine: np.ndarray
    source: str


def load_volume(path: str | Path) -> LoadedVolume:
    """Read a NIfTI file; the values are scaled as its header says. A fourth axis counts as channels.

    Raises:
        InvalidInputError: nibabel is not installed.
        ImageLoadError: missing, empty or damaged, or neither three nor four axes.
    """
    nibabel, text = _nibabel(), str(path)
    check_file(text)
    try:
        image = nibabel.load(text)
        values = np.asarray(image.get_fdata(dtype=np.float32))
    except Exception as error:  # nibabel raises errors of many types on damaged files
        raise ImageLoadError(f"{text}: not a NIfTI file, or damaged ({error})") from error
    if values.ndim not in (3, 4) or not values.size:
        raise ImageLoadError(f"{text}: expected a volume of three axes, or four with channels last, got {values.shape}")
    channels = values[None] if values.ndim == 3 else np.moveaxis(values, -1, 0)
    return LoadedVolume(np.ascontiguousarray(channels), np.asarray(image.affine, np.float64), text)


def read_affine(path: str | Path, size: tuple[int, ...]) -> np.ndarray:
    """Return the affine of a NIfTI file whose volume has the given size.

    Raises:
        InvalidInputError: nibabel is not installed, or the volume has another size.
        ImageLoadError: the file cannot be read.
    """
    loaded = load_volume(path)
    if loaded.values.shape[1:] != size:
        raise InvalidInputError(
            f"{path} has a volume of {loaded.values.shape[1:]}, and the input that was explained {size}; give the file "
            "with its grid and order of axes"
        )
    return loaded.affine


def nifti_bytes(values: np.ndarray, affine: np.ndarray, *, zipped: bool = True) -> bytes:
    """Return a volume (X, Y, Z) as the content of a NIfTI file.

    Raises:
        InvalidInputError: nibabel is not installed.
    """
    image = _nibabel().Nifti1Image(np.array(values), affine)
    image.header["descrip"] = MARK
    content: bytes = image.to_bytes()
    return gzip.compress(content, mtime=0) if zipped else content


def is_own_nifti(path: Path) -> bool:
    """Return whether a NIfTI file is one that xai-abn made."""
    content = path.read_bytes()
    return MARK in (gzip.decompress(content) if path.suffix == ".gz" else content)[:352]


def upright(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return a volume (X, Y, Z, ...) as axial slices from the lowest, each with the front on top and the left at left.

    Axes are only reordered and reversed. A volume whose axes are turned by about 45 degrees stays as it is.
    """
    directions = affine[:3, :3]
    axes = [int(np.abs(directions[world]).argmax()) for world in (2, 1, 0)]
    if sorted(axes) != [0, 1, 2]:
        return values
    turned = np.moveaxis(values, axes, (0, 1, 2))
    forward = [directions[world, axis] > 0 for world, axis in zip((2, 1, 0), axes, strict=True)]
    return turned[tuple(slice(None, None, 1 if ahead else -1) for ahead in (forward[0], not forward[1], forward[2]))]


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise InvalidInputError("NIfTI files need nibabel: pip install 'xai-abn[volumes]'") from error
    return nibabel
