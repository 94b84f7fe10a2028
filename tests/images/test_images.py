"""Reading images: what is accepted, what is noted, what is refused."""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from xai_abn.errors import ImageLoadError, InvalidInputError
from xai_abn.images.loading import EXAMPLES, MAX_SIDE, find_images, from_array, load_image, to_rgb
from xai_abn.images.preprocess import Preprocess


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_a_missing_file_is_named(tmp_path):
    """The message starts with the path and says there is no such file."""
    with pytest.raises(ImageLoadError, match=r"nothing\.jpg: no such file"):
        load_image(tmp_path / "nothing.jpg")


def test_an_empty_file_is_refused(tmp_path):
    """A file of 0 bytes is said to be empty."""
    path = tmp_path / "empty.jpg"
    path.touch()
    with pytest.raises(ImageLoadError, match="empty"):
        load_image(path)


def test_text_named_jpg_is_refused(tmp_path):
    """A text file is not an image, and the message says what it looks like."""
    path = tmp_path / "notes.jpg"
    path.write_text("this is no image\n" * 10)
    with pytest.raises(ImageLoadError, match=r"not an image.*looks like text"):
        load_image(path)


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.webp"])
def test_a_truncated_file_is_refused(tmp_path, image, name):
    """An image cut in half is damaged, never half grey."""
    path = saved(tmp_path, Image.fromarray(image), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageLoadError):
        load_image(path)


@pytest.mark.parametrize("error", [RuntimeError("Failed to decode frame 0"), TypeError("Missing dimensions")])
def test_whatever_a_decoder_raises_means_a_damaged_file(tmp_path, image, error, monkeypatch):
    """Pillow's AVIF and TIFF decoders raise such errors at damaged files."""

    def load(self):
        raise error

    path = saved(tmp_path, Image.fromarray(image), "image.bmp")
    monkeypatch.setattr("PIL.BmpImagePlugin.BmpImageFile.load", load)
    with pytest.raises(ImageLoadError, match=f"damaged or cut short.*{error}"):
        load_image(path)


def test_random_bytes_are_refused(tmp_path):
    """Bytes that are no image are refused."""
    path = tmp_path / "noise.png"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(ImageLoadError, match="not an image"):
        load_image(path)


def test_one_pixel_is_too_small(tmp_path):
    """A 1x1 image has nothing to explain."""
    with pytest.raises(ImageLoadError, match="1x1 pixels is too small"):
        load_image(saved(tmp_path, Image.new("RGB", (1, 1)), "dot.png"))


@pytest.mark.parametrize("size", [(20_000, 100), (100, MAX_SIDE + 1), (16_000, 16_000)])
def test_huge_images_are_refused_unread(tmp_path, size):
    """A decompression bomb is refused by its header."""
    path = saved(tmp_path, Image.new("1", size), "bomb.png")
    with pytest.raises(ImageLoadError, match="too large"):
        load_image(path)


def test_a_folder_is_not_a_image(tmp_path):
    """Reading a folder as an image says so."""
    with pytest.raises(ImageLoadError, match="a folder"):
        load_image(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path, image_file):
    """A file without read permission says so."""
    image_file.chmod(0)
    with pytest.raises(ImageLoadError, match="permission"):
        load_image(image_file)


def test_cmyk_becomes_rgb(tmp_path, image):
    """A CMYK JPEG keeps its colours, roughly."""
    path = saved(tmp_path, Image.fromarray(image).convert("CMYK"), "print.jpg", quality=95)
    loaded = load_image(path)
    assert loaded.image.mode == "RGB"
    assert np.abs(np.asarray(loaded.image, float)[25:35, 35:45] - 250).mean() < 12


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    """A 16-bit ramp becomes an 8-bit ramp, and this is noted."""
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(32, axis=0)
    loaded = load_image(saved(tmp_path, Image.fromarray(ramp), "deep.png"))
    grey = np.asarray(loaded.image)[0, :, 0].astype(int)
    assert np.abs(grey - np.linspace(0, 255, 64)).max() <= 1
    assert "8 bits" in loaded.notes[0]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_of_which_zero_is_white_is_inverted(tmp_path, bits):
    """With 16 bits as with 8, as scanners write."""
    ramp = np.linspace(0, 255, 64).round().astype(np.uint16)[None].repeat(32, axis=0)
    stored = (255 - ramp).astype(np.uint8) if bits == 8 else 65535 - ramp * 257
    path = saved(tmp_path, Image.fromarray(stored), "scan.tif")
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<HHI", 262, 3, 1)) + 8] = 0  # PhotometricInterpretation
    path.write_bytes(content)
    np.testing.assert_array_equal(np.asarray(load_image(path).image)[..., 0], ramp)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_tiff_is_not_turned_for_annotations_of_the_stored_pixels(tmp_path, image, orientation, compression):
    """As no other file is."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(image), "turned.tif", exif=exif, compression=compression)
    np.testing.assert_array_equal(load_image(path, upright=False).image, image)
    np.testing.assert_array_equal(load_image(path).image, np.rot90(image, 2 if orientation == 3 else -1))


@pytest.mark.parametrize("values", [(0.0, 1000.0), (-1.0, 1.0), (0, 70_000), (-1000, 3000)])
def test_gray_values_beyond_the_range_are_refused(tmp_path, values):
    """Instead of clipping most of a height map or a CT image."""
    kind = np.float32 if isinstance(values[0], float) else np.int32
    path = saved(tmp_path, Image.fromarray(np.linspace(*values, 256).astype(kind).reshape(16, 16)), "map.tif")
    with pytest.raises(ImageLoadError, match=f"gray values from {values[0]:g} to {values[1]:g}"):
        load_image(path)


def test_values_a_little_above_one_are_white(tmp_path):
    """Resizing with bicubic interpolation gives such values; the image is not one of [0, 255]."""
    ramp = np.linspace(-0.01, 1.02, 256, dtype=np.float32).reshape(16, 16)
    loaded = load_image(saved(tmp_path, Image.fromarray(ramp), "resized.tif"))
    assert loaded.image.getextrema() == ((0, 255),) * 3


@pytest.mark.parametrize(("mode", "color"), [("RGBa", (0, 0, 0, 0)), ("La", (0, 0))])
def test_transparency_that_is_multiplied_in_is_laid_on_white(mode, color):
    """Images of these modes come from Pillow alone."""
    loaded = to_rgb(Image.new(mode, (16, 16), color), "image")
    assert loaded.image.getpixel((0, 0)) == (255, 255, 255)


def test_palette_with_alpha_is_laid_on_white(tmp_path):
    """Transparent palette entries turn white, and this is noted."""
    image = Image.new("P", (16, 16), 0)
    image.putpalette([10, 20, 30, 200, 0, 0] + [0] * 762)
    image.paste(1, (0, 0, 16, 8))
    loaded = load_image(saved(tmp_path, image, "palette.png", transparency=0))
    assert loaded.image.getpixel((8, 12)) == (255, 255, 255)
    assert loaded.image.getpixel((8, 2)) == (200, 0, 0)
    assert loaded.notes == ("transparency laid on white",)


def test_exif_rotation_is_honoured(tmp_path):
    """An image stored lying down comes back upright."""
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    loaded = load_image(saved(tmp_path, image, "phone.jpg", exif=exif, quality=95))
    assert loaded.image.size == (20, 40)
    top, bottom = loaded.image.getpixel((10, 5)), loaded.image.getpixel((10, 35))
    assert top[2] > 200 > top[0] + 100
    assert bottom[0] > 200


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp", "moving.png"])
def test_of_an_animation_the_first_frame_is_taken_and_said(tmp_path, name):
    """The first frame is explained, and the note tells how many there are."""
    frames = [Image.new("RGB", (16, 16), c) for c in ("red", "green", "blue")]
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
    loaded = load_image(path)
    assert loaded.image.getpixel((8, 8))[0] > 200
    assert loaded.notes == ("first of 3 frames",)


def test_grey_becomes_rgb(tmp_path):
    """A grey image gets three equal channels and needs no note."""
    loaded = load_image(saved(tmp_path, Image.new("L", (16, 16), 77), "grey.png"))
    assert loaded.image.getpixel((0, 0)) == (77, 77, 77)
    assert loaded.notes == ()


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_loads_without_a_network(name):
    """Each bundled image named in EXAMPLES is there."""
    assert min(load_image(f"example:{name}").image.size) >= 256


def test_an_unknown_example_lists_the_known():
    """The message lists the examples there are."""
    with pytest.raises(ImageLoadError, match="astronaut"):
        load_image("example:unicorn")


def test_arrays_need_uint8_and_a_image_shape():
    """Floats and odd shapes are refused with what was expected."""
    with pytest.raises(InvalidInputError, match="uint8"):
        from_array(np.zeros((20, 20, 3)))
    with pytest.raises(InvalidInputError, match=r"\(H, W, 3\)"):
        from_array(np.zeros((20, 20, 5), np.uint8))


def test_folders_are_searched_recursively_and_sorted(tmp_path, image):
    """Images below a folder are found, other files are not."""
    (tmp_path / "b").mkdir()
    for name in ("z.jpg", "b/a.PNG"):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "readme.txt").write_text("no")
    assert [os.path.basename(p) for p in find_images(tmp_path)] == ["a.PNG", "z.jpg"]


def test_globs_expand_and_empty_ones_are_refused(tmp_path, image_file):
    """A glob gives its matches; one without matches says so, as does a folder without images."""
    assert find_images(str(tmp_path / "*.png")) == [str(image_file)]
    with pytest.raises(ImageLoadError, match="matches no file"):
        find_images(str(tmp_path / "*.tiff"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageLoadError, match="no images"):
        find_images(tmp_path / "empty")


def test_a_file_whose_name_holds_brackets_is_not_a_glob(tmp_path, image):
    """An existing file named like a glob is read as it is."""
    path = tmp_path / "image [1].png"
    Image.fromarray(image).save(path)
    assert find_images(path) == [str(path)]


def prepared(size, preprocess):
    """An empty image of (width, height), as a network sees it."""
    return preprocess(to_rgb(Image.new("RGB", size), "empty"))


def test_cells_are_where_the_image_is():
    """A box in pixels of the image covers the cells that show it, in part where it ends within a cell."""
    squashed = prepared((400, 200), Preprocess(size=64, crop="squash"))
    expected = np.zeros((4, 4), np.float32)
    expected[1, 1:3] = 1
    np.testing.assert_array_equal(squashed.cells((100, 50, 300, 100), (4, 4)), expected)
    half = squashed.cells((100, 50, 250, 75), (4, 4))
    np.testing.assert_allclose(half[1], [0, 0.5, 0.25, 0])
    cropped = prepared((400, 200), Preprocess(size=64, crop_pct=1.0))  # the network sees x from 100 to 300
    np.testing.assert_array_equal(cropped.cells((100, 0, 150, 50), (4, 4))[0], [1, 0, 0, 0])
    assert cropped.cells((0, 0, 400, 200), (4, 4)).min() == 1


def test_cells_of_a_polygon_and_of_a_tensor():
    """A triangle covers half of its box; without an image, pixels are those of the tensor."""
    squashed = prepared((400, 200), Preprocess(size=64, crop="squash"))
    assert squashed.cells([(0, 0), (400, 0), (0, 200)], (5, 5)).mean() == pytest.approx(0.5, abs=0.01)
    tensor = Preprocess(size=64).prepared_tensor(torch.zeros(3, 64, 32), "tensor")
    np.testing.assert_array_equal(tensor.cells((0, 32, 16, 64), (2, 2)), [[0, 0], [1, 0]])


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ((1, 2, 3), "a box"),
        ([(1, 2), (3, 4)], "at least three corners"),
        ((0, 0, float("nan"), 9), "a box"),
        ("left", "a box"),
        ([(1, 2), (3,), (4, 5)], "a box"),
        ((0, 0, 99, 99), "the network saw nothing of .* from 100, 0 to 300, 200"),
        ((150, 50, 150, 90), "saw nothing"),
    ],
)
def test_outlines_that_mark_nothing_are_refused(outline, message):
    """Outside of the crop, without area, or no outline at all."""
    cropped = prepared((400, 200), Preprocess(size=64, crop_pct=1.0))
    with pytest.raises(InvalidInputError, match=message):
        cropped.cells(outline, (7, 7))


def test_a_letterbox_keeps_the_proportions():
    """A wide image lies between gray borders above and below, in the input, the view and the region alike."""
    left_red = np.zeros((30, 60, 3), np.uint8)
    left_red[:, :30, 0] = 255
    preprocess = Preprocess(40, crop="letterbox", interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)
    prepared = preprocess(from_array(left_red))
    pixels = (prepared.tensor * 255).round().byte().permute(1, 2, 0).numpy()
    assert pixels.shape == (40, 40, 3)
    for shown, scale in ((pixels, 1), (prepared.view, 2)):
        border = np.concatenate([shown[: 10 * scale], shown[30 * scale :]])
        assert (border == 114).all()
        assert (shown[10 * scale : 30 * scale, : 18 * scale] == [255, 0, 0]).all()
        assert (shown[10 * scale : 30 * scale, 22 * scale :] == 0).all()
    assert prepared.region == (0, -15, 60, 45)
    cells = prepared.cells((0, 0, 30, 30), (4, 4))
    assert cells.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    tall = preprocess(from_array(left_red.transpose(1, 0, 2).copy()))
    assert tall.region == (-15, 0, 45, 60)
    same = Preprocess(40, crop="squash", interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)
    square = from_array(left_red[:, :30].copy())
    assert torch.equal(preprocess(square).tensor, same(square).tensor)
    gray = Preprocess(40, crop="letterbox", mean=(0.0,), std=(1.0,))(from_array(left_red))
    assert gray.tensor.shape == (1, 40, 40)
    assert float(gray.tensor[0, 0, 0]) == pytest.approx(114 / 255)
    line = preprocess(from_array(np.zeros((8, 900, 3), np.uint8)))  # its height would be less than a pixel
    assert line.tensor.shape == (3, 40, 40)
    with pytest.raises(InvalidInputError, match="inputs with borders cannot be trained on"):
        _ = preprocess.side
