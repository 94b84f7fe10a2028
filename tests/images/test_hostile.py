"""Files and arguments that are no ordinary images: one typed error or a note, and bounded memory."""

import io
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

import xai_abn
from xai_abn.errors import ImageLoadError, InvalidInputError
from xai_abn.images.loading import decode_image, find_images, load_image


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n", b"%PDF-1.4\n"])
@pytest.mark.parametrize("name", ["a.jpg", "a.eps"])
def test_documents_are_not_handed_to_other_programs(tmp_path, content, name):
    """A PostScript file is refused, whatever its name."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageLoadError, match="not an image in a known format"):
        load_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a" * 300 + ".jpg", "a\x00b.jpg", "x/" * 3000 + "a.jpg"])
@pytest.mark.parametrize("read", [load_image, find_images])
def test_impossible_names_are_one_error(name, read):
    """Longer than the file system takes, or with a null byte."""
    with pytest.raises(ImageLoadError):
        load_image(read(name)[0]) if read is find_images else read(name)


@pytest.mark.parametrize("source", [None, 5, b"x", []])
def test_other_arguments_are_refused(source):
    """A path is a text or a Path."""
    with pytest.raises(InvalidInputError, match="path"):
        load_image(source)


def test_a_warning_of_the_decoder_is_a_note_of_the_image(tmp_path):
    """Once, and nothing on standard error."""
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x02\x00\x0f\x01\x02\x00\xff\xff\x00\x00\xff\xff\xff\x7f"
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "TIFF", tiffinfo={271: "x"})
    Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_image(tmp_path / "a.jpg")
    assert len(set(loaded.notes)) == len(loaded.notes)


@pytest.mark.parametrize("mode", ["I;16", "F", "LA", "RGBA", "RGB", "L"])
def test_a_small_file_takes_bounded_memory(tmp_path, mode):
    """Of 64 million pixels: at most 1 GiB and 5 s beyond an empty process."""
    side = 8000
    kinds = {"I;16": np.uint16, "F": np.float32}
    if mode in kinds:
        Image.fromarray(np.zeros((side, side), kinds[mode])).save(tmp_path / "a.tif", compression="tiff_deflate")
        path = tmp_path / "a.tif"
    else:
        Image.new(mode, (side, side)).save(tmp_path / "a.png")
        path = tmp_path / "a.png"
    code = (
        "import resource, sys, time\n"
        "from xai_abn.images.loading import load_image\n"
        "before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()\n"
        "load_image(sys.argv[1])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - started)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    kilobytes, seconds = map(float, done.stdout.split())
    assert kilobytes < 2**20
    assert seconds < 5


def test_high_depth_is_scaled_as_before(tmp_path):
    """In strips, to the same pixels as at once."""
    values = np.arange(700 * 9, dtype=np.uint16).reshape(700, 9) * 10
    Image.fromarray(values).save(tmp_path / "a.png")
    found = np.asarray(load_image(tmp_path / "a.png").image)[..., 0]
    assert np.array_equal(found, np.clip(values / 65535.0 * 255, 0, 255).round().astype(np.uint8))


def test_transparency_is_laid_on_white(tmp_path):
    """Of RGBA and of gray images."""
    for mode, color in (("RGBA", (10, 20, 30, 0)), ("LA", (10, 0))):
        image = Image.new(mode, (16, 16), color)
        image.putpixel((0, 0), (*color[:-1], 255))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        loaded = decode_image(buffer.getvalue())
        assert loaded.image.getpixel((5, 5)) == (255, 255, 255)
        assert loaded.image.getpixel((0, 0)) == (color[:3] if mode == "RGBA" else (10, 10, 10))
        assert "transparency" in loaded.notes[0]


def test_threads_keep_their_warnings_apart_and_leave_the_filters(tmp_path):
    """Each thread notes what Pillow said of its own image; the process's filters and display stay."""
    plain = tmp_path / "plain.jpg"
    Image.new("RGB", (64, 64)).save(plain)
    odd = tmp_path / "odd.tif"
    Image.new("RGB", (64, 64)).save(odd, tiffinfo={270: "x" * 40})
    before, show = list(warnings.filters), warnings.showwarning

    class Talking(TiffImagePlugin.TiffImageFile):
        def load(self):
            exec(compile("import warnings; warnings.warn('odd file')", "x", "exec"), {"__name__": "PIL.Talking"})
            return super().load()

    Image.register_open("TIFF", Talking, lambda start: start[:4] in (b"II*\0", b"MM\0*"))
    try:
        with ThreadPoolExecutor(8) as pool, warnings.catch_warnings(record=True) as leaked:
            loaded = list(pool.map(load_image, [plain, odd] * 40))
    finally:
        Image.register_open("TIFF", TiffImagePlugin.TiffImageFile, lambda start: start[:4] in (b"II*\0", b"MM\0*"))
    assert [image.notes for image in loaded] == [(), ("odd file",)] * 40
    assert not leaked
    assert (list(warnings.filters), warnings.showwarning) == (before, show)


def test_a_phone_s_hundred_megapixels_are_read(tmp_path):
    """A JPEG of 101 million pixels is read; a progressive one, which takes more memory, and a PNG are refused."""
    large = Image.new("L", (11600, 8700))
    large.save(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg").image.size == large.size
    large.save(tmp_path / "b.jpg", progressive=True)
    large.save(tmp_path / "c.png", compress_level=1)
    for name in ("b.jpg", "c.png"):
        with pytest.raises(ImageLoadError, match="too large"):
            load_image(tmp_path / name)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_half_an_image_of_pillow_s_is_one_error(gap_net, image, kind):
    """As of an upload that was cut: Pillow reads the pixels only when asked."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    half = buffer.getvalue()[: len(buffer.getvalue()) * 2 // 3]
    opened = Image.open(io.BytesIO(half))
    with pytest.raises(ImageLoadError, match="damaged or cut short"):
        xai_abn.explain(gap_net, opened, "cam")


def test_open_files_are_images(gap_net, image_file):
    """A file, a buffer and bytes give the same map."""
    content = image_file.read_bytes()
    with image_file.open("rb") as file:
        results = [xai_abn.explain(gap_net, image, "cam")["cam"].map for image in (file, io.BytesIO(content), content)]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
