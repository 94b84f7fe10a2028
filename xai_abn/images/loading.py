"""Read one still picture from a file, in colour, upright, or say why not."""

from __future__ import annotations

import glob
import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from xai_abn.errors import ImageLoadError, InvalidInputError

#: File endings searched for in folders.
EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
)
#: Pictures with a side below this many pixels are refused: there is nothing to explain.
MIN_SIDE = 8
#: Pictures with a side above this many pixels are refused, unread: they need more memory than a photo should.
MAX_SIDE = 16_384
#: Pictures with more pixels than this are refused, unread (Pillow's own limit for a decompression bomb).
MAX_PIXELS = 89_478_485
#: Prefix that names one of scikit-image's bundled photos, as in ``example:cat``.
EXAMPLE_PREFIX = "example:"
#: The bundled photos that need no download, and scikit-image's name for each.
EXAMPLES = {
    "astronaut": "astronaut",
    "camera": "camera",
    "cat": "chelsea",
    "coffee": "coffee",
    "rocket": "rocket",
    "retina": "retina",
}


@dataclass(frozen=True)
class LoadedImage:
    """One picture, ready for preprocessing.

    Attributes:
        image: RGB, 8 bits a channel, upright.
        source: where it came from: a path, ``example:NAME``, or a short description.
        notes: what was done to it that a person should know, such as "first of 12 frames".
    """

    image: Image.Image
    source: str
    notes: tuple[str, ...] = field(default=())


def load_image(source: str | Path) -> LoadedImage:
    """Read a picture from a path or ``example:NAME``.

    EXIF rotation is applied. CMYK, grey, palette and 16-bit pictures become 8-bit RGB (16-bit
    values are scaled, not clipped); transparency is laid on white; of several frames the first is
    taken. Each of the last three is noted.

    Raises:
        ImageLoadError: missing, empty, damaged, not a picture, too small or too large.
    """
    text = str(source)
    if text.startswith(EXAMPLE_PREFIX):
        return load_example(text[len(EXAMPLE_PREFIX) :])
    path = Path(source)
    _check_file(path)
    with path.open("rb") as file:
        return _decoded(file, text)


def decode_image(content: bytes, source: str = "bytes") -> LoadedImage:
    """Read a picture from a file's content; see :func:`load_image`.

    Raises:
        ImageLoadError: empty, damaged, not a picture, too small or too large.
    """
    if not content:
        raise ImageLoadError(f"{source}: empty (0 bytes)")
    return _decoded(io.BytesIO(content), source)


def _decoded(file: BinaryIO, text: str) -> LoadedImage:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as picture:
                _check_size(picture.size, text)
                picture.load()
                return to_rgb(picture, text)
    except ImageLoadError:
        raise
    except UnidentifiedImageError as error:
        raise ImageLoadError(f"{text}: not a picture in a format that can be read{_looks_like(file)}") from error
    except Image.DecompressionBombError as error:
        raise ImageLoadError(f"{text}: too large to be a photo ({error}); shrink it first") from error
    except Exception as error:  # the decoders of the formats raise whatever they stumble over
        raise ImageLoadError(f"{text}: damaged or cut short ({error})") from error


def to_rgb(picture: Image.Image, source: str) -> LoadedImage:
    """Turn any Pillow image into an upright 8-bit RGB one, noting what was done.

    Raises:
        ImageLoadError: a side is shorter than ``MIN_SIDE`` or longer than ``MAX_SIDE``.
    """
    _check_size(picture.size, source)
    notes = []
    frames = getattr(picture, "n_frames", 1)
    if frames > 1:
        notes.append(f"first of {frames} frames")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture, note = _eight_bit(picture, source)
        notes.append(note)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        if min(rgba.getchannel("A").tobytes()) < 255:
            notes.append("transparency laid on white")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return LoadedImage(picture.convert("RGB"), source, tuple(notes))


def load_example(name: str) -> LoadedImage:
    """Return one of scikit-image's bundled photos.

    Raises:
        ImageLoadError: there is no such photo.
    """
    if name not in EXAMPLES:
        raise ImageLoadError(f"{EXAMPLE_PREFIX}{name}: no such example; there are {', '.join(EXAMPLES)}")
    import skimage.data

    return from_array(np.asarray(getattr(skimage.data, EXAMPLES[name])()), f"{EXAMPLE_PREFIX}{name}")


def from_array(pixels: np.ndarray, source: str = "array") -> LoadedImage:
    """Wrap an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8 in [0, 255].

    Raises:
        InvalidInputError: another dtype or shape.
        ImageLoadError: too small or too large.
    """
    if pixels.dtype != np.uint8:
        raise InvalidInputError(f"{source}: expected uint8 values in [0, 255], got dtype {pixels.dtype}")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] in (3, 4)):
        raise InvalidInputError(f"{source}: expected shape (H, W), (H, W, 3) or (H, W, 4), got {pixels.shape}")
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)), source)


def find_images(source: str | Path) -> list[str]:
    """Expand a file, folder (recursively), glob or ``example:NAME`` into sorted paths.

    In a folder, files and folders whose name starts with a dot are passed over. A plain path is returned as it is,
    also when nothing is there, so that reading it says so.

    Raises:
        ImageLoadError: a folder without pictures, or a glob that matches nothing.
    """
    text = str(source)
    path = Path(text)
    if text.startswith(EXAMPLE_PREFIX):
        return [text]
    if path.is_dir():
        pictures = (p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        found = sorted(str(p) for p in pictures if not any(n.startswith(".") for n in p.relative_to(path).parts))
        if not found:
            raise ImageLoadError(f"{text}: no pictures in this folder (looked for {', '.join(sorted(EXTENSIONS))})")
        return found
    if not path.exists() and glob.has_magic(text):
        found = sorted(p for p in glob.glob(text, recursive=True) if Path(p).is_file())
        if not found:
            raise ImageLoadError(f"{text}: matches no file")
        return found
    return [text]


def _check_file(path: Path) -> None:
    if not path.exists():
        raise ImageLoadError(f"{path}: no such file")
    if path.is_dir():
        raise ImageLoadError(f"{path}: a folder, not a picture")
    try:
        if path.stat().st_size == 0:
            raise ImageLoadError(f"{path}: the file is empty (0 bytes)")
        with path.open("rb"):
            pass
    except PermissionError as error:
        raise ImageLoadError(f"{path}: may not be read (permission denied)") from error


def _check_size(size: tuple[int, int], source: str) -> None:
    width, height = size
    if min(size) < MIN_SIDE:
        raise ImageLoadError(f"{source}: {width}x{height} pixels is too small; each side needs at least {MIN_SIDE}")
    if max(size) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ImageLoadError(
            f"{source}: {width}x{height} pixels is too large (at most {MAX_SIDE} a side "
            f"and {MAX_PIXELS:,} in all); shrink it first"
        )


def _looks_like(file: BinaryIO) -> str:
    file.seek(0)
    try:
        file.read(512).decode("utf-8")
    except UnicodeDecodeError:
        return ""
    return ", it looks like text"


def _eight_bit(picture: Image.Image, source: str) -> tuple[Image.Image, str]:
    """Scale a high-depth grey picture to 8 bits: integers from 16 bits, floats from [0, 1] or [0, 255]."""
    values = np.asarray(picture, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ImageLoadError(f"{source}: holds pixels that are not finite numbers")
    top = 65535.0 if picture.mode != "F" else (1.0 if np.max(values) <= 1 else 255.0)
    scaled = np.clip(values / top * 255, 0, 255).round().astype(np.uint8)
    return Image.fromarray(scaled), f"grey values scaled from [0, {top:g}] to 8 bits"
