"""Loading of image files as upright 8-bit RGB."""

from __future__ import annotations

import glob
import io
import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from xai_abn.errors import ImageLoadError, InvalidInputError, XaiAbnWarning
from xai_abn.files import package_folder

#: File endings searched for in folders.
EXTENSIONS = frozenset(
    f".{ending}"
    for ending in "jpg jpeg jpe jfif png bmp gif webp tif tiff ppm pgm jp2 avif".split()  # noqa: SIM905
)
#: Endings of files that are common beside images and are skipped without a warning.
_NO_IMAGES = frozenset(
    (".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".db", ".ini", ".log", ".py")
) | frozenset(
    (".npy", ".npz", ".pt", ".pth", ".safetensors", ".sqlite", ".parquet", ".mat", ".zip", ".tar", ".gz", ".ipynb")
)
#: Images with a side below this many pixels are refused: there is nothing to explain.
MIN_SIDE = 8
#: Images with a side above this many pixels are refused before decoding, to limit memory.
MAX_SIDE = 16_384
#: Images with more pixels are refused before decoding. This is Pillow's own limit for a decompression bomb.
MAX_PIXELS = 89_478_485
#: The same for a JPEG that is not progressive, which takes less memory to decode: phones make 108 megapixels.
MAX_JPEG_PIXELS = 120_000_000
#: Formats that are decoded. Others, such as EPS, PDF and WMF, would start another program or draw a document.
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
#: Folders that systems and network drives make; they hold thumbnails and deleted files.
_SYSTEM_FOLDERS = frozenset(("@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"))
#: Numbers of TIFF's tags: how the image is turned, and whether 0 is white (0) or black (1).
_ORIENTATION, _ZERO_IS = 0x0112, 0x0106
#: Modes whose colors are multiplied by transparency, and those of which they are not.
_STRAIGHT = {"RGBa": "RGBA", "La": "LA"}
#: Share of the range by which floats may leave it, as after resizing; they are clipped.
_OVERSHOOT = 0.05
#: Rows of an image of high depth that are scaled to 8 bits at a time.
_ROWS = 256
#: Prefix that names one of scikit-image's bundled images, as in ``example:cat``.
EXAMPLE_PREFIX = "example:"
#: The bundled images that need no download, and scikit-image's name for each.
EXAMPLES = {
    "astronaut": "astronaut",
    "camera": "camera",
    "cat": "chelsea",
    "coffee": "coffee",
    "rocket": "rocket",
    "retina": "retina",
}


class SkippedFilesWarning(XaiAbnWarning):
    """Given when files of a folder are skipped because of their ending."""


@dataclass(frozen=True)
class LoadedImage:
    """An image, ready for preprocessing.

    Attributes:
        image: upright RGB with 8 bits per channel.
        source: a path, ``example:NAME``, or a short description.
        notes: what a user should know about the conversion, such as "first of 12 frames".
    """

    image: Image.Image
    source: str
    notes: tuple[str, ...] = field(default=())


def load_image(source: str | Path, *, upright: bool = True) -> LoadedImage:
    """Read an image from a path or ``example:NAME``.

    With ``upright``, EXIF rotation is applied. CMYK, gray, palette and 16-bit images become 8-bit RGB (16-bit
    values are scaled, not clipped, and inverted where a TIFF says that 0 is white); transparent areas become white; of
    several frames the first is used. Each of the last three is noted.

    Raises:
        ImageLoadError: missing, empty, damaged, not an image, too small or too large.
    """
    if not isinstance(source, (str, Path)):
        raise InvalidInputError(f"an image file is given by its path, got {type(source).__name__}")
    text = str(source)
    if text.startswith(EXAMPLE_PREFIX):
        return load_example(text[len(EXAMPLE_PREFIX) :])
    check_file(text)
    with open(text, "rb") as file:
        return _decoded(file, text, upright) if file.seekable() else decode_image(file.read(), text)


def decode_image(content: bytes, source: str = "bytes") -> LoadedImage:
    """Read an image from a file's content; see :func:`load_image`.

    Raises:
        ImageLoadError: empty, damaged, not an image, too small or too large.
    """
    if not content:
        raise ImageLoadError(f"{source}: empty (0 bytes)")
    return _decoded(io.BytesIO(content), source)


def _decoded(file: BinaryIO, text: str, upright: bool = True) -> LoadedImage:
    Image.init()
    try:
        with (
            _pillow_warnings.collected() as notes,
            Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image,
        ):
            loaded = to_rgb(image, text, upright=upright)
        return replace(loaded, notes=(*loaded.notes, *dict.fromkeys(notes)))
    except ImageLoadError:
        raise
    except UnidentifiedImageError as error:
        raise ImageLoadError(f"{text}: not an image in a known format{_looks_like(file)}") from error
    except Image.DecompressionBombError as error:
        raise ImageLoadError(f"{text}: the image is too large ({error}); shrink it first") from error
    except Exception as error:  # decoders raise errors of many types on damaged files
        raise ImageLoadError(f"{text}: damaged or cut short ({error})") from error


def to_rgb(image: Image.Image, source: str, *, upright: bool = True) -> LoadedImage:
    """Turn any Pillow image into an 8-bit RGB one, by default an upright one, noting what was done.

    Raises:
        ImageLoadError: a side is shorter than ``MIN_SIDE`` or longer than ``MAX_SIDE``, or the file behind the image is
            damaged.
    """
    _check_size(image, source)
    tags = getattr(image, "tag_v2", None) or {}  # of a TIFF
    white_is_zero = tags.get(_ZERO_IS) == 0
    if not upright and _ORIENTATION in tags:  # Pillow turns a TIFF when it reads it
        tags[_ORIENTATION] = image.getexif()[_ORIENTATION] = 1
    try:
        image.load()  # a Pillow image reads its file only when asked for pixels
    except Exception as error:  # decoders raise errors of many types on damaged files
        raise ImageLoadError(f"{source}: damaged or cut short ({error})") from error
    notes = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"first of {frames} frames")
    own = image
    image = ImageOps.exif_transpose(image) if upright else image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image, note = _eight_bit(image, source)
        image = ImageOps.invert(image) if white_is_zero else image  # as Pillow does for 8 bits
        notes.append(note)
    if image.mode == "CMYK":
        notes.append("colors converted from CMYK without a color profile")
    image = image.convert(_STRAIGHT[image.mode]) if image.mode in _STRAIGHT else image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
        alpha = image.getchannel("A")
        lowest: Any = alpha.getextrema()[0]
        if lowest < 255:
            notes.append("transparency laid on white")
        colors = image.getchannel("L") if image.mode == "LA" else image.convert("RGB")
        image = Image.new(colors.mode, image.size, "white")
        image.paste(colors, mask=alpha)
    if image.mode != "RGB" or image is own:  # always a copy, since the caller may change the image
        image = image.convert("RGB")
    return LoadedImage(image, source, tuple(notes))


def load_example(name: str) -> LoadedImage:
    """Return one of scikit-image's bundled images.

    Raises:
        ImageLoadError: there is no such image.
    """
    if name not in EXAMPLES:
        raise ImageLoadError(f"{EXAMPLE_PREFIX}{name}: no such example; available: {', '.join(EXAMPLES)}")
    source = f"{EXAMPLE_PREFIX}{name}"
    files = Path(package_folder("skimage"), "data").glob(f"{EXAMPLES[name]}.*")
    for file in (file for file in files if file.suffix in EXTENSIONS):  # without importing scikit-image
        with Image.open(file) as image:
            return from_array(np.asarray(image), source)
    import skimage.data

    return from_array(np.asarray(getattr(skimage.data, EXAMPLES[name])()), source)


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

    In a folder, files and folders whose name starts with a dot, and those of systems such as ``@eaDir``, are skipped. A
    plain path is returned as it is, even if no such file exists, so that reading it reports the error.

    Raises:
        ImageLoadError: a folder without images, or a glob that matches nothing.
    """
    text = str(source)
    path = Path(text)
    if text.startswith(EXAMPLE_PREFIX):
        return [text]
    there = _exists(path)
    if path.is_dir():
        closed: list[OSError] = []
        entries = list(_entries_below(path, closed.append))
        if any(error.filename == text for error in closed):
            raise ImageLoadError(f"{text}: the folder cannot be opened ({closed[0].strerror})")
        files = [p for p in entries if p.is_file()]
        found = sorted(str(p) for p in files if p.suffix.lower() in EXTENSIONS)
        others = Counter(p.suffix.lower() or "no ending" for p in files if p.suffix.lower() not in EXTENSIONS)
        skipped = {ending: number for ending, number in others.items() if ending not in _NO_IMAGES}
        listed = ", ".join(f"{number} {ending}" for ending, number in sorted(skipped.items()))
        if not found:
            hint = f"; it has {listed}" if listed else ""
            hint += "; for .heic install pillow-heif and convert them" if ".heic" in skipped else ""
            raise ImageLoadError(f"{text}: no images in this folder (looked for {', '.join(sorted(EXTENSIONS))}){hint}")
        if closed:
            problem = f"{len(closed)} folders cannot be opened: {closed[0].filename} ({closed[0].strerror})"
            warnings.warn(SkippedFilesWarning(f"{text}: {problem}"), stacklevel=2)
        _warn_of_links(text, entries)
        if skipped:
            warnings.warn(
                SkippedFilesWarning(f"{text}: {sum(skipped.values())} files are skipped by their ending: {listed}"),
                stacklevel=2,
            )
        return found
    if not there and glob.has_magic(text):
        matches = glob.glob(text, recursive=True)
        found = sorted(p for p in matches if Path(p).is_file())
        if not found:
            raise ImageLoadError(f"{text}: matches no file")
        _warn_of_links(text, map(Path, matches))
        return found
    return [text]


def _warn_of_links(source: str, entries: Iterable[Path]) -> None:
    broken = [p for p in entries if p.is_symlink() and not p.exists()]
    if broken:
        warnings.warn(SkippedFilesWarning(f"{source}: {len(broken)} links lead nowhere: {broken[0]}"), stacklevel=3)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError) as error:  # a name longer than the file system takes, or with a null byte
        reason = getattr(error, "strerror", None) or error
        shown = str(path) if len(str(path)) <= 80 else f"{str(path)[:77]}..."
        raise ImageLoadError(f"{shown!r}: cannot be the path of a file ({reason})") from error


def is_hidden(name: str) -> bool:
    """Return whether the name of a file or folder starts with a dot, or is that of a folder that systems make."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def _entries_below(folder: Path, closed: Callable[[OSError], None]) -> Iterator[Path]:
    """Yield every entry below a folder and its linked folders that is no folder, except hidden ones.

    ``closed`` is called with the error of each folder that cannot be opened.
    """
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=closed):
        real = os.path.realpath(root)
        if real in seen:  # a link to a folder above, or a second one to the same
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from (Path(root, name) for name in files if not is_hidden(name))


class _PillowWarnings:
    """Collects the warnings that Pillow gives while a thread decodes an image.

    Warning filters belong to the process, so the first of the decoding threads sets them and the last one restores
    them.
    """

    def __init__(self) -> None:
        self._lock, self._threads = threading.Lock(), 0
        self._of_thread = threading.local()
        self._filters = warnings.catch_warnings()

    @contextmanager
    def collected(self) -> Iterator[list[str]]:
        """Yield a list that receives the texts of the warnings of this thread."""
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                self._start()
        found: list[str] = []
        self._of_thread.found = found
        try:
            yield found
        finally:
            self._of_thread.found = None
            with self._lock:
                self._threads -= 1
                if self._threads == 0:
                    self._filters.__exit__(None, None, None)

    def _start(self) -> None:
        self._filters = warnings.catch_warnings()
        self._filters.__enter__()
        warnings.filterwarnings("always", module=r"PIL\.")
        show = warnings.showwarning

        def collect(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            found = getattr(self._of_thread, "found", None)
            if found is None:
                show(message, category, *place, **more)
            elif not issubclass(category, Image.DecompressionBombWarning):  # the size is checked below
                found.append(" ".join(str(message).split()))

        warnings.showwarning = collect


_pillow_warnings = _PillowWarnings()


def check_file(source: str) -> None:
    """Refuse a path that cannot be an image, without decoding it.

    Raises:
        ImageLoadError: a web address, a folder, or a file that is missing, empty or cannot be read.
    """
    if "://" in source:
        raise ImageLoadError(f"{source}: web addresses are not read; download the image and give its path")
    path = Path(source)
    if not _exists(path):
        raise ImageLoadError(f"{path}: no such file")
    if path.is_dir():
        raise ImageLoadError(f"{path}: a folder, not an image")
    if not path.is_file():  # a pipe, which has no size and can be opened only once
        return
    try:
        empty = path.stat().st_size == 0
        with path.open("rb"):
            pass
    except OSError as error:
        raise ImageLoadError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    if empty:
        raise ImageLoadError(f"{path}: the file is empty (0 bytes)")


def _check_size(image: Image.Image, source: str) -> None:
    width, height = image.size
    by_rows = image.format in ("JPEG", "MPO") and not image.info.get("progressive")
    most = MAX_JPEG_PIXELS if by_rows else MAX_PIXELS
    if min(image.size) < MIN_SIDE:
        raise ImageLoadError(f"{source}: {width}x{height} pixels is too small; each side needs at least {MIN_SIDE}")
    if max(image.size) > MAX_SIDE or width * height > most:
        raise ImageLoadError(
            f"{source}: {width}x{height} pixels is too large (at most {MAX_SIDE} a side "
            f"and {most:,} in all); shrink it first"
        )


def _looks_like(file: BinaryIO) -> str:
    file.seek(0)
    try:
        file.read(512).decode("utf-8")
    except UnicodeDecodeError:
        return ""
    return ", it looks like text"


def _eight_bit(image: Image.Image, source: str) -> tuple[Image.Image, str]:
    """Scale a grayscale image of high depth to 8 bits: integers from 16 bits, floats from [0, 1] or [0, 255].

    Raises:
        ImageLoadError: values are not finite, or beyond these ranges, so that nobody knows what is white.
    """
    strips = [(top, min(top + _ROWS, image.height)) for top in range(0, image.height, _ROWS)]

    def values(top: int, bottom: int) -> np.ndarray:
        return np.asarray(image.crop((0, top, image.width, bottom)), dtype=np.float64)

    lowest, highest = 0.0, 0.0
    for strip in strips:
        pixels = values(*strip)
        if not np.isfinite(pixels).all():
            raise ImageLoadError(f"{source}: holds pixels that are not finite numbers")
        lowest, highest = min(lowest, float(pixels.min())), max(highest, float(pixels.max()))
    top_value = 65535.0 if image.mode != "F" else (1.0 if highest <= 1 + _OVERSHOOT else 255.0)
    beyond = _OVERSHOOT * top_value if image.mode == "F" else 0
    if lowest < -beyond or highest > top_value + beyond:
        raise ImageLoadError(
            f"{source}: gray values from {lowest:g} to {highest:g}; expected 0 to {top_value:g}, so what is black and "
            "white is not known; convert the image to 8 bits"
        )
    scaled = np.empty((image.height, image.width), np.uint8)
    for top, bottom in strips:
        scaled[top:bottom] = np.clip(values(top, bottom) / top_value * 255, 0, 255).round()
    return Image.fromarray(scaled), f"gray values scaled from [0, {top_value:g}] to 8 bits"
